"""`report.json`: what was found, kept and left out, and what is in the store."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .exclusion import Excluded
from .labels import LabelDefinition, LabelTable, define_labels
from .sources.physionet2021 import UNSCORED_CODES, scored_codes
from .splits import UNSPLIT, SplitResult

# Columns that say what is wrong with each lead, and how the report puts it.
QUALITY = {
    "nan_samples": "a lead with NaN",
    "constant": "a constant lead",
    "clipped": "a clipped lead",
    "contradicting": "limb leads that contradict each other (wrong gains, units or order?)",
}


def label_table_of(kept: pa.Table, label_names: Sequence[str]) -> LabelTable:
    values = np.full((kept.num_rows, len(label_names)), np.nan)
    for column, name in enumerate(label_names):
        values[:, column] = kept[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
    return LabelTable(tuple(kept["recording_id"].to_pylist()), tuple(label_names), values)


def definition_of(labels: LabelTable, result: SplitResult) -> LabelDefinition:
    """By split; where nothing was split, of everything."""
    return define_labels(labels, None if result.names == (UNSPLIT,) else result.splits)


def store_report(
    plan: Mapping[str, Any],
    filters: Mapping[str, bool],
    result: SplitResult,
    kept: pa.Table,
    labels: LabelTable,
    excluded: list[Excluded],
) -> dict[str, Any]:
    """
    The content of `report.json`.

    Args:
        plan (mapping): What it begins with; `excluded`, `notes` and `codes` among it.
        filters (mapping of `str` to `bool`): Which are on.
        result ([`SplitResult`]): Of the rows in `kept`.
        kept (`pa.Table`): What is known of the recordings that passed the filters, without their signals.
        labels ([`LabelTable`]): Of the same.
        excluded (list of [`Excluded`]): All of them.
    """
    in_split = np.array([split is not None for split in result.splits])
    rows = kept.filter(pa.array(in_split))
    patients = rows["patient_id"].to_pylist()
    definition = definition_of(labels, result) if labels.names else None
    seconds = math.fsum(rows["num_samples"].to_numpy() / rows["sampling_rate"].to_numpy())
    beginning = {key: value for key, value in plan.items() if key not in ("excluded", "notes", "codes", "split")}
    return {
        **beginning,
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
        "label_counts": {} if definition is None else _label_counts(definition),
        "diagnosis_codes": _codes(plan.get("codes") or {}),
        "notes": list(plan["notes"]),
        "excluded": [asdict(one) for one in excluded],
    }


def any_of(lists: pa.ChunkedArray) -> np.ndarray:
    """Whether any value of each list is true or not 0. As Python's lists a million recordings would fill gigabytes."""
    found, start = np.zeros(len(lists), dtype=bool), 0
    for chunk in lists.chunks:
        values = pc.list_flatten(chunk).cast(pa.int64()).to_numpy(zero_copy_only=False)
        found[start + pc.list_parent_indices(chunk).to_numpy()[values != 0]] = True
        start += len(chunk)
    return found


def _label_counts(definition: LabelDefinition) -> dict[str, dict[str, dict[str, int | float | None]]]:
    """By label and split: positives, unknown and the weight of positives, which is null where there is none."""
    counts: dict[str, dict] = {}
    for number, name in enumerate(definition.names):
        counts[name] = {}
        for split, positives in definition.positives.items():
            weight = definition.weights.get(split)
            value = None if weight is None or not np.isfinite(weight[number]) else float(weight[number])
            facts = {"positive": int(positives[number]), "unknown": int(definition.unknown[split][number])}
            counts[name][split] = facts if split == "all" else facts | {"pos_weight": value}
    return counts


def _codes(codes: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Diagnosis codes of no scored class, with the number of recordings that carry them."""
    scored = scored_codes()
    others = {code: count for code, count in Counter(codes).most_common() if code not in scored}
    return {
        "unscored": {code: count for code, count in others.items() if code in UNSCORED_CODES},
        "unknown": {code: count for code, count in others.items() if code not in UNSCORED_CODES},
    }


def _counted(values) -> dict[str, int]:
    return {f"{value:g}" if isinstance(value, float) else str(value): n for value, n in Counter(values).most_common()}


def store_card(report: Mapping[str, Any]) -> str:
    """The text of a store's `README.md`. No ids, no paths of this machine."""
    splits = report["splits"]["recordings"]
    # Where nothing is split, the Hub's name for all of it is `train`; `all` it does not take.
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
        "One row a recording, samples as they came, prepared with `ecgfm prepare`. Read it with "
        "`ecgfm_hf.data.load_prepared`; `ecgfm_hf.data.as_model_inputs` gives what a model takes.",
        "",
        f"{counts['kept']:,} recordings ({report['hours']:,.1f} hours) of {counts['found']:,} found; "
        f"{counts['excluded']:,} left out.",
        "",
        _table(("left out because", "recordings"), report["excluded_by_reason"].items()),
        _table(("split", "recordings"), splits.items()),
        _table(("source", "recordings"), report["sources"].items()),
        _table(
            ("label", "positive", "unknown"),
            [(name, by["all"]["positive"], by["all"]["unknown"]) for name, by in report["label_counts"].items()],
        ),
        "\n".join(f"- {sentence}" for sentence in sentences(report)),
        "",
    ]
    return "\n".join(line for line in lines if line is not None) + "\n"


def sentences(report: Mapping[str, Any]) -> list[str]:
    """What a user of the data must know: assumptions of the split, unknown patients, pseudonyms, quality."""
    told = list(report["splits"]["assumptions"]) + list(report["notes"])
    told += [f"{count:,} {what}." for what, count in report["quality"].items() if count]
    if report["pseudonymised"]:
        told.append(
            "Ids of recordings and patients are salted hashes, and paths are left out. Times, ages, sex and texts"
            " of reports are as they were, save the columns that were dropped."
        )
    if report["dropped_columns"]:
        told.append(f"Left empty: {', '.join(report['dropped_columns'])}.")
    return told


def _table(header: tuple[str, ...], rows) -> str | None:
    rows = [
        tuple(f"{cell:,}" if isinstance(cell, int) else str(cell).replace("|", "/") for cell in row) for row in rows
    ]
    if not rows:
        return None
    cells = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells) + "\n"
