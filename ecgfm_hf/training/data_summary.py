"""Counts of the recordings that a model was trained on, for its provenance; none of few patients."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.finetuning_targets import UNKNOWN_CLASS
from ..utils.redaction import SMALLEST_CELL, Cell, Quantiles, label_cells, redact

if TYPE_CHECKING:
    from datasets import Dataset


def summarize_data(splits: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Combine the summaries of the splits that were used, by what they were used for, for `provenance.json`."""
    return {"smallest_cell": SMALLEST_CELL, "splits": dict(splits)}


def summarize_split(
    dataset: "Dataset",
    rows: np.ndarray,
    label_names: Sequence[str] = (),
    targets: np.ndarray | None = None,
    problem_type: str = "multi_label_classification",
) -> dict[str, Any]:
    """
    Summarize the recordings of a split.

    Args:
        dataset (`Dataset`): From a store.
        rows (`np.ndarray` (n,) int): Which of its recordings were used.
        label_names (sequence of `str`): That were learnt.
        targets (`np.ndarray`, *optional*): Of these rows: (n, L) with NaN, or (n,) class numbers, negative if unknown.
        problem_type (`str`)

    Returns:
        `dict`: `"recordings"`; `"patients"`, null where no patient is known; and if there are ten patients or more,
        `"sources"`, `"sexes"`, `"age"` (quartiles in years), each only if known, and `"labels"` (counts by name).
    """
    columns = [name for name in ("patient_id", "source", "sex", "age") if name in dataset.column_names]
    table = dataset.select_columns(columns).with_format("arrow")[:].take(np.asarray(rows, dtype=np.int64))
    # Lists of a million Nones would only cost memory.
    columns = [name for name in columns if table[name].null_count < len(table)]
    patients = table["patient_id"].to_pylist() if "patient_id" in columns else [None] * len(rows)
    known = set(patients) - {None}
    return _summarize(
        len(rows),
        patients,
        len(known) or None,
        {name: table[name].to_pylist() for name in columns if name != "patient_id"},
        label_names,
        targets,
        problem_type,
    )


def summarize_recordings(
    patients: Sequence[str | None],
    label_names: Sequence[str],
    targets: np.ndarray,
    problem_type: str = "multi_label_classification",
) -> dict[str, Any]:
    """Summarize recordings by their patients (None if unknown) and targets; see [`summarize_split`]."""
    known = set(patients) - {None}
    return _summarize(len(patients), patients, len(known) or None, {}, label_names, targets, problem_type)


def _summarize(
    recordings: int,
    patients: Sequence[str | None],
    known_patients: int | None,
    columns: Mapping[str, Sequence[Any]],
    label_names: Sequence[str],
    targets: np.ndarray | None,
    problem_type: str,
) -> dict[str, Any]:
    from ..evaluation.intervals import patient_groups

    numbers = patient_groups(patients).numbers
    exact: dict[str, Any] = {"recordings": Cell(numbers), "patients": known_patients, "problem_type": problem_type}
    for name, called in (("source", "sources"), ("sex", "sexes")):
        values = np.array([value or "unknown" for value in columns.get(name, ())], dtype=object)
        groups = sorted(set(values.tolist()))
        if groups and groups != ["unknown"]:
            exact[called] = {group: Cell(numbers[values == group]) for group in groups}
    ages = np.array([np.nan if age is None else age for age in columns.get("age", ())], dtype=np.float64)
    known = ~np.isnan(ages)
    if known.any():
        quartiles = [round(float(value)) for value in np.quantile(ages[known], (0.25, 0.5, 0.75))]
        exact["age"] = Quantiles(Cell(numbers[known]), quartiles)
    if targets is not None:
        if targets.ndim == 1:
            classes = np.arange(len(label_names))
            targets = np.where(targets[:, None] == UNKNOWN_CLASS, np.nan, targets[:, None] == classes)
        exact["labels"] = dict(zip(label_names, label_cells(targets, numbers, problem_type), strict=True))
    return redact(exact)


__all__ = ["summarize_data", "summarize_recordings", "summarize_split"]
