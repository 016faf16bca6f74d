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

from .labels import UNSCORED_CODES, LabelDefinition, LabelTable, define_labels, scored_codes
from .sources.base import LeftOut
from .splits import SplitResult
from .store import UNSPLIT

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
    left_out: list[LeftOut],
) -> dict[str, Any]:
    """
    The content of `report.json`.

    Args:
        plan (mapping): What it begins with; `left_out`, `notes` and `codes` among it.
        filters (mapping of `str` to `bool`): Which are on.
        result ([`SplitResult`]): Of the rows in `kept`.
        kept (`pa.Table`): What is known of the recordings that passed the filters, without their signals.
        labels ([`LabelTable`]): Of the same.
        left_out (list of [`LeftOut`]): All of them.
    """
    in_split = np.array([split is not None for split in result.splits])
    rows = kept.filter(pa.array(in_split))
    patients = rows["patient_id"].to_pylist()
    definition = definition_of(labels, result) if labels.names else None
    seconds = math.fsum(rows["num_samples"].to_numpy() / rows["sampling_rate"].to_numpy())
    beginning = {key: value for key, value in plan.items() if key not in ("left_out", "notes", "codes", "split")}
    return {
        **beginning,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "recordings": {
            "found": rows.num_rows + len(left_out),
            "kept": rows.num_rows,
            "left_out": len(left_out),
        },
        "left_out_by_reason": dict(Counter(one.reason for one in left_out).most_common()),
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
        "left_out": [asdict(one) for one in left_out],
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
