"""The sections of a card that follow from `provenance.json`: what was done to the weights, on which recordings."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...evaluation.formatting import count
from ...provenance import UNKNOWN, splits_of
from .card import published_link
from .markdown import bullets, code, duration, facts_table, paragraphs, plain, settings_text, table

Step = Mapping[str, Any]
_HEADINGS = {
    "conversion": "Conversion",
    "pretraining": "Pretraining",
    "fine-tuning": "Fine-tuning",
    "linear probe": "Linear probe",
    UNKNOWN: "Before that",
}
_USES = {"train": "training", "valid": "validation"}
# What validation recordings decided, so that figures of them would flatter: of labels that do not exclude one another.
_DECIDED = {
    "fine-tuning": ("the update, calibration and thresholds", "the update"),
    "linear probe": ("calibration and thresholds", ""),
}
_NOT_NOTED = "Not noted."


def procedure_section(steps: Sequence[Step]) -> str:
    """What was done, step by step: settings, time, hardware, versions."""
    if not steps:
        return "How these weights came to be is not noted beside them, and is unknown here."
    return paragraphs(*(f"### {_HEADINGS.get(step['step'], plain(step['step']))}\n\n{_step(step)}" for step in steps))


def _step(step: Step) -> str:
    if step["step"] == UNKNOWN:
        return "What was done to the weights that this began from is not noted beside them, and is unknown here."
    return _conversion(step) if step["step"] == "conversion" else _training(step)


def _conversion(step: Step) -> str:
    published, difference = step.get("published"), step.get("largest_difference")
    if step.get("verified") and difference is not None:
        verified = (
            "tensors bit-equal to the source's; outputs compared with an independent evaluation of the source's "
            f"weights: largest difference {difference:.1e} of the largest value"
        )
    else:
        verified = "not compared with the source's outputs (`ecgfm convert --verify` does)"
    said = [plain(warning) for warning in step.get("warnings") or ()]
    return paragraphs(
        "Weights of a fairseq-signals checkpoint, renamed and written as safetensors; no weight was changed.",
        facts_table(
            [
                ("Source, as who converted it says", None if published is None else published_link(published)),
                ("SHA-256 of the source file", code(step["source_sha256"]) if step.get("source_sha256") else None),
                ("Tensors", f"{step['tensors']:,}" if "tensors" in step else None),
                ("Check", verified),
                ("Versions", _versions(step)),
            ]
        ),
        "Decided in conversion:\n\n" + bullets(said) if said else None,
    )


def _training(step: Step) -> str:
    settings = dict(step.get("settings") or {})
    seconds, hardware = step.get("seconds"), step.get("hardware") or {}
    processes = hardware.get("processes", 1)
    device = plain(hardware["device"]) if "device" in hardware else None
    if device is not None and processes > 1:
        device = f"{processes} × {device}"
    best = step.get("best_update")
    updates = None if "updates" not in step else f"{step['updates']:,}"
    if updates is not None and best is not None and best != step["updates"]:
        updates += f" (the weights are those after {best:,}, which validation chose)"
    batch, trained = step.get("effective_batch_segments"), step.get("trained_parameters")
    return facts_table(
        [
            ("Objective", plain(step["objective"]) if "objective" in step else None),
            ("Pairs of segments", f"{step['pairs']:,}" if "pairs" in step else None),
            ("Updates", updates),
            ("Effective batch", None if batch is None else f"{batch:,} segments"),
            ("Trained parameters", None if trained is None else f"{trained:,}"),
            ("Weight of positives", _pos_weight(step)),
            ("Settings", settings_text(settings) or _NOT_NOTED),
            (
                "Duration",
                "Not noted (the run was interrupted and continued)." if seconds is None else duration(seconds),
            ),
            ("Hardware", device or _NOT_NOTED),
            ("Versions", _versions(step)),
        ]
    )


def _pos_weight(step: Step) -> str | None:
    if "pos_weight" not in step:
        return None
    how = {"balanced": "negatives / positives of the training recordings", "given": "given by hand", None: "none"}
    return how.get(step["pos_weight"], plain(step["pos_weight"]))


def _versions(step: Step) -> str:
    return (
        ", ".join(f"{plain(name)} {plain(which)}" for name, which in (step.get("versions") or {}).items()) or _NOT_NOTED
    )


def chosen_on(steps: Sequence[Step]) -> str | None:
    """Which recordings the thresholds in the config were chosen on; None where that is not noted."""
    last = steps[-1] if steps else {}
    fitted = last.get("step") in _DECIDED and (last.get("settings") or {}).get("thresholds") not in (None, "none")
    return "the validation recordings below" if fitted else None


def is_weighted(steps: Sequence[Step]) -> bool:
    """Whether the last step is known to have weighted positives."""
    return bool(steps) and steps[-1].get("pos_weight") is not None


def data_section(steps: Sequence[Step]) -> str:
    """Tables of the recordings that each step used; nothing for steps that note none."""
    parts: list[str | None] = []
    few = None
    for step in steps:
        data = step.get("data") or {}
        if splits := data.get("splits"):
            few = data.get("smallest_cell", few)
            uses = {**_USES, "valid": _validation(step, splits)}
            heading = f"### Recordings used in {_HEADINGS.get(step['step'], plain(step['step'])).lower()}"
            parts += [heading, _split_table(splits, uses), _label_counts(splits)]
    if not parts:
        return "How many recordings and patients the weights have seen is not noted beside them, and is unknown here."
    if few is not None:
        parts.append(
            f"Counts are of recordings; `<{few}` stands for those of fewer than {few} patients. Nothing is told of so "
            "few, nor what would give such a count away."
        )
    return paragraphs(*parts)


def _validation(step: Step, splits: Mapping[str, Mapping[str, Any]]) -> str:
    """What validation recordings were used for in a step."""
    kinds = {kind for facts in splits.values() for counts in (facts.get("labels") or {}).values() for kind in counts}
    kind = (step.get("settings") or {}).get("problem_type", "multi_label_classification")
    with_thresholds, without = _DECIDED.get(step["step"], ("", ""))
    chose = with_thresholds if kind == "multi_label_classification" and "known" not in kinds else without
    return f"{_USES['valid']} (chose {chose})" if chose else _USES["valid"]


def _split_table(splits: Mapping[str, Mapping[str, Any]], uses: Mapping[str, str]) -> str:
    rows = []
    for use, facts in splits.items():
        age = facts.get("age")
        rows.append(
            [
                uses.get(use, plain(use)),
                count(facts["recordings"]),
                "unknown" if facts["patients"] is None else count(facts["patients"]),
                _groups(facts.get("sexes"), {"F": "female", "M": "male"}),
                "not noted" if age is None else f"{age[1]} ({age[0]} to {age[2]})",
                _groups(facts.get("sources"), {}),
            ]
        )
    return table(["used for", "recordings", "patients", "sex", "age, median (quartiles)", "source"], rows)


def _groups(groups: Mapping[str, Any] | None, names: Mapping[str, str]) -> str:
    if not groups:
        return "not noted"
    return ", ".join(f"{plain(names.get(name, name))} {count(number)}" for name, number in groups.items())


def _label_counts(splits: Mapping[str, Mapping[str, Any]]) -> str | None:
    counted = {use: facts["labels"] for use, facts in splits.items() if facts.get("labels")}
    if not counted:
        return None
    labels = list(dict.fromkeys(label for counts in counted.values() for label in counts))
    kinds = list(next(iter(next(iter(counted.values())).values())))
    columns = ["label", *(f"{use}: {kind}" for use in counted for kind in kinds)]
    rows = [
        [plain(label), *(count(counts.get(label, {}).get(kind)) for counts in counted.values() for kind in kinds)]
        for label in labels
    ]
    return table(columns, rows)


def history_limits(steps: Sequence[Step]) -> list[str]:
    """What a reader must know that follows from the steps."""
    limits, sources = [], set()
    for _, use, facts in splits_of(steps):
        if use == "train":
            sources |= set(facts.get("sources") or {})
    if any("synthetic" in source.lower() for source in sources):
        limits.append(
            "**Trained on synthetic recordings:** what the model says of a real one means nothing until it was "
            "measured on real ones."
        )
    elif len(sources) == 1:
        limits.append("All training recordings that are noted are from one source; on others the model may do worse.")
    if any(step.get("published") for step in steps):
        limits.append(
            "The published pretraining has seen MIMIC-IV-ECG and PhysioNet/CinC 2021. Figures on recordings of these "
            "are too good, whichever split they are from."
        )
    if not steps or any(step["step"] == UNKNOWN for step in steps):
        limits.append(
            "What the weights were trained on is not wholly known, so no evaluation can be sure to be on unseen "
            "patients."
        )
    return limits
