"""What a store contains: its `report.json` and its dataset card."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from .exclusion import Excluded
from .labels import LabelDefinition, LabelTable, define_labels
from .sources.physionet2021 import UNSCORED_CODES, scored_codes
from .splits import UNSPLIT, SplitResult

# Columns with the quality of each lead, and their words in the report.
QUALITY = {
    "nan_samples": "a lead with NaN",
    "constant": "a constant lead",
    "clipped": "a clipped lead",
    "contradicting": "limb leads that contradict each other (wrong gains, units or order?)",
}
# What decides whether the feature extractor refuses a recording, in the order of `refusal`'s arguments.
REFUSAL_COLUMNS = ("num_samples", "sampling_rate", "lead_names", "nan_samples", "constant")


@dataclass(frozen=True)
class StoreOrigin:
    """
    What is known of a store before it is split.

    Args:
        settings (mapping): Begins the report: source, settings, `plan` and `contents` (digests); JSON-able.
        excluded (sequence of [`Excluded`]): Recordings that were not read, or that could not be.
        notes (sequence of `str`): Sentences for the report.
        codes (mapping of `str` to `int`): Diagnosis codes, with the number of recordings that have them.
    """

    settings: Mapping[str, Any]
    excluded: Sequence[Excluded]
    notes: Sequence[str]
    codes: Mapping[str, int]


def define_labels_of(kept: pa.Table, label_names: Sequence[str], result: SplitResult) -> LabelDefinition | None:
    """Return how often labels occur in a store's rows, by split unless nothing was split; None without labels."""
    if not label_names:
        return None
    columns = [kept[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in label_names]
    table = LabelTable(tuple(kept["recording_id"].to_pylist()), tuple(label_names), np.stack(columns, axis=1))
    return define_labels(table, None if result.names == (UNSPLIT,) else result.splits)


def store_report(
    origin: StoreOrigin,
    filters: Mapping[str, bool],
    result: SplitResult,
    kept: pa.Table,
    definition: LabelDefinition | None,
    excluded: Sequence[Excluded],
) -> dict[str, Any]:
    """
    Return the content of `report.json`.

    Args:
        origin ([`StoreOrigin`])
        filters (mapping of `str` to `bool`): Which are on.
        result ([`SplitResult`]): Of the rows in `kept`.
        kept (`pa.Table`): The recordings that passed the filters, without their signals.
        definition ([`LabelDefinition`], *optional*): Of the same.
        excluded (sequence of [`Excluded`]): All of them.
    """
    in_split = np.array([split is not None for split in result.splits])
    rows = kept.filter(pa.array(in_split))
    patients = rows["patient_id"].to_pylist()
    seconds = math.fsum(rows["num_samples"].to_numpy() / rows["sampling_rate"].to_numpy())
    return {
        **origin.settings,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "recordings": {
            "found": rows.num_rows + len(excluded),
            "kept": rows.num_rows,
            "excluded": len(excluded),
        },
        "excluded_by_reason": dict(Counter(one.reason for one in excluded).most_common()),
        "splits": result.summary(),
        "filters": dict(filters),
        "patients": {
            "known": len({patient for patient in patients if patient is not None}),
            "recordings_without": patients.count(None),
        },
        "sources": _counted(rows["source"].to_pylist()),
        "sampling_rates": _counted(rows["sampling_rate"].to_pylist()),
        "lead_layouts": _counted(pc.binary_join(rows["lead_names"], " ").to_pylist()),
        "hours": round(seconds / 3600, 3),
        "quality": {f"recordings with {what}": int(any_of(rows[column]).sum()) for column, what in QUALITY.items()},
        "refused_by_reason": count_refusals(_refusal_rows(rows)),
        "label_counts": {} if definition is None else _label_counts(definition, kept, result),
        "diagnosis_codes": _codes(origin.codes),
        "notes": list(origin.notes),
        "excluded": [asdict(one) for one in excluded],
    }


def any_of(lists: pa.ChunkedArray) -> np.ndarray:
    """Return whether each list has a value that is true or not 0 (rows,). Python lists would fill gigabytes."""
    found, start = np.zeros(len(lists), dtype=bool), 0
    for chunk in lists.chunks:
        values = pc.list_flatten(chunk).cast(pa.int64()).to_numpy(zero_copy_only=False)
        found[start + pc.list_parent_indices(chunk).to_numpy()[values != 0]] = True
        start += len(chunk)
    return found


def count_refusals(rows: Iterable[Sequence[Any]]) -> dict[str, int]:
    """
    Return why the feature extractor, with its default policies, would refuse recordings, and how many.

    Args:
        rows: The columns `REFUSAL_COLUMNS` of each recording.
    """
    kinds = Counter((*row[:2], *map(tuple, row[2:])) for row in rows)  # a data set has few
    extractor, found = ECGFMFeatureExtractor(), Counter[str]()
    for kind, count in kinds.items():
        if (reason := extractor.refusal(*kind)) is not None:
            found[reason.partition(", found")[0]] += count
    return dict(found.most_common())


def _refusal_rows(rows: pa.Table) -> Iterator[Sequence[Any]]:
    for batch in rows.select(REFUSAL_COLUMNS).to_batches():
        yield from zip(*(column.to_pylist() for column in batch), strict=True)


def refusals_sentence(refused: Mapping[str, int]) -> str:
    """Return a sentence about what [`count_refusals`] found."""
    reasons = "; ".join(f"{reason}: {count:,}" for reason, count in refused.items())
    count = f"{sum(refused.values()):,} recordings"
    return f"{count} would be refused by the feature extractor's default policies ({reasons})."


def _label_counts(
    definition: LabelDefinition, kept: pa.Table, result: SplitResult
) -> dict[str, dict[str, dict[str, int | float | None]]]:
    """
    Return by label and split: positives, the known patients among them, unknown, and the weight of positives, null
    without positives.
    """
    patients = np.array([patient or "" for patient in kept["patient_id"].to_pylist()], dtype=object)
    splits = np.array(result.splits, dtype=object)
    counts: dict[str, dict[str, dict[str, int | float | None]]] = {}
    for number, name in enumerate(definition.names):
        counts[name] = {}
        is_positive = pc.equal(kept[name], 1).fill_null(False).to_numpy() & (splits != None)  # noqa: E711
        for split, positives in definition.positives.items():
            here = patients[is_positive if split == "all" else is_positive & (splits == split)]
            weight = definition.weights.get(split)
            value = None if weight is None or not np.isfinite(weight[number]) else float(weight[number])
            cells: dict[str, int | float | None] = {
                "positive": int(positives[number]),
                "patients": len({*here} - {""}),
                "unknown": int(definition.unknown[split][number]),
            }
            counts[name][split] = cells if split == "all" else cells | {"pos_weight": value}
    return counts


def _codes(codes: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Return diagnosis codes outside the scored classes, with the number of recordings that have them."""
    scored = scored_codes()
    others = {code: count for code, count in Counter(codes).most_common() if code not in scored}
    return {
        "unscored": {code: count for code, count in others.items() if code in UNSCORED_CODES},
        "unknown": {code: count for code, count in others.items() if code not in UNSCORED_CODES},
    }


def _counted(values: Iterable[Any]) -> dict[str, int]:
    return {f"{value:g}" if isinstance(value, float) else str(value): n for value, n in Counter(values).most_common()}


def store_card(report: Mapping[str, Any]) -> str:
    """Return the text of a store's `README.md`, without ids and without paths of this machine."""
    splits = report["splits"]["recordings"]
    # The Hub calls a dataset that is not split `train`, and refuses `all`.
    names = {name: "train" if name == UNSPLIT else name for name in splits}
    files = "\n".join(f'  - split: {names[name]}\n    path: "data/{name}-*.parquet"' for name in splits)
    counts = report["recordings"]
    synthetic = any("synthetic" in source.lower() for source in report["sources"])
    lines = [
        "---",
        f"configs:\n- config_name: default\n  data_files:\n{files}",
        "tags:\n- ecg\n- electrocardiogram" + ("\n- synthetic" if synthetic else ""),
        "---",
        "",
        f"# 12-lead ECG recordings from {report['source']}" + (" (synthetic)" if synthetic else ""),
        "",
        "One row per recording, with unchanged samples, prepared with `ecgfm prepare`. Read it with "
        "`ecgfm_hf.data.load_prepared`; `ecgfm_hf.data.as_model_inputs` turns it into a model's input.",
        "",
        f"{counts['kept']:,} recordings ({report['hours']:,.1f} hours) of {counts['found']:,} found; "
        f"{counts['excluded']:,} excluded.",
        "",
        _table(("excluded because", "recordings"), report["excluded_by_reason"].items()),
        _table(("split", "recordings"), splits.items()),
        _table(("source", "recordings"), report["sources"].items()),
        _table(
            ("label", "positive", "unknown"),
            [(name, by["all"]["positive"], by["all"]["unknown"]) for name, by in report["label_counts"].items()],
        ),
        "\n".join(f"- {sentence}" for sentence in report_sentences(report)),
        "",
    ]
    return "\n".join(line for line in lines if line is not None) + "\n"


def report_sentences(report: Mapping[str, Any]) -> list[str]:
    """Return sentences that users of the data need: assumptions of the split, pseudonyms, quality."""
    found = list(report["splits"]["assumptions"]) + list(report["notes"])
    found += [f"{count:,} {what}." for what, count in report["quality"].items() if count]
    if report.get("refused_by_reason"):
        found.append(refusals_sentence(report["refused_by_reason"]))
    if report["pseudonymised"]:
        found.append(
            "Ids of recordings and patients are salted hashes, and paths are removed. Times, ages, sex and texts of"
            " reports are unchanged, except in dropped columns."
        )
    if report["dropped_columns"]:
        found.append(f"Dropped columns: {', '.join(report['dropped_columns'])}.")
    return found


def _table(header: tuple[str, ...], entries: Iterable[tuple[Any, ...]]) -> str | None:
    rows = [
        tuple(f"{cell:,}" if isinstance(cell, int) else str(cell).replace("|", "/") for cell in row) for row in entries
    ]
    if not rows:
        return None
    cells = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells) + "\n"
