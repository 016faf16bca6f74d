"""Targets of fine-tuning: numbers by recording, from a store's label columns or from a separate table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..labeler.report_labels import LABELLED, STATUSES
from ..labeler.tables import STATUS_COLUMN
from ..utils.errors import SettingsError, suggestion
from ..utils.ids import canonical_id
from .labels import parse_label
from .store import COLUMNS, DataError, default_labels, label_columns
from .table_file import TableFile, point_decimals

if TYPE_CHECKING:
    from datasets import Dataset

# Columns of a store that are not labels and can be learnt.
LEARNABLE = ("age", "sex")
ID_COLUMN = "recording_id"
# Unknown, for a single label; torch's cross entropy ignores it.
UNKNOWN_CLASS = -100


@dataclass(frozen=True)
class TargetColumns:
    """
    Where the targets are.

    Args:
        problem_type (`str`): As of transformers' configurations.
        labels (list of `str`, *optional*): Columns. None means all labels.
        classes (list of `str`, *optional*): Names of the classes of a single label in one column.
        targets (`str`, *optional*): CSV, TSV, Excel or Parquet with a column `recording_id`, instead of the store's
            columns.
    """

    problem_type: str
    labels: list[str] | None = None
    classes: list[str] | None = None
    targets: str | None = None


@dataclass(frozen=True)
class Targets:
    """
    Targets of the recordings of some datasets.

    Args:
        names (`tuple[str, ...]`): Labels, classes or quantities, in the order of the model's outputs.
        values (`dict[str, np.ndarray]`): By split, one row per recording: (rows, L) float32 with NaN for unknown, or
            for a single label (rows,) int64 with -100 for unknown.
        problem_type (`str`)
    """

    names: tuple[str, ...]
    values: dict[str, np.ndarray]
    problem_type: str

    def known(self, split: str) -> np.ndarray:
        """Return whether a recording has any known target (rows,)."""
        values = self.values[split]
        return values != UNKNOWN_CLASS if values.ndim == 1 else ~np.isnan(values).all(axis=1)


def read_targets(datasets: Mapping[str, "Dataset"], wanted: TargetColumns) -> Targets:
    """
    Return the targets of recordings.

    Args:
        datasets (mapping of `str` to `Dataset`): By split, `train` first: it gives the classes where `wanted` has none.
        wanted ([`TargetColumns`])

    Raises:
        [`SettingsError`]: columns that are missing or of another kind, values that cannot be targets.
    """
    first = next(iter(datasets.values()))
    if wanted.targets is None:
        available, offered = [*first.column_names], [*label_columns(first.column_names, first.features), *LEARNABLE]
        offered += [name for name in available if name not in COLUMNS and name not in offered]
        where = "the data"
    else:
        table = _without_unlabelled(_read_table(Path(wanted.targets)), wanted.labels or ())
        offered, where = [name for name in table if name != ID_COLUMN], wanted.targets
        ids = table[ID_COLUMN]
    if wanted.labels is None:
        labels = offered if wanted.targets is not None else list(default_labels(first))
        if not labels:
            raise SettingsError(f"{where} has no labels: name what to learn with labels=[...], or give targets=TABLE")
    else:
        labels = wanted.labels
    for name in labels:
        if name not in offered:
            raise SettingsError(
                f"labels: {where} has no {name!r}{suggestion(name, offered)}; it has {', '.join(offered)}"
            )
    columns: dict[str, dict[str, list]] = {}
    for split, dataset in datasets.items():
        if wanted.targets is None:
            columns[split] = {name: dataset[name][:] for name in labels}
        else:
            columns[split] = _joined(table, ids, dataset[ID_COLUMN][:], labels, where, split)
    if wanted.problem_type == "single_label_classification":
        return _classes(columns, labels, wanted, where)
    words = wanted.problem_type == "multi_label_classification"
    values = {
        split: np.stack([_numbers(found[name], name, where, words) for name in labels], axis=1)
        for split, found in columns.items()
    }
    if wanted.problem_type == "multi_label_classification":
        for found in values.values():
            _check_binary(found, labels, where)
    return Targets(tuple(labels), values, wanted.problem_type)


def untrainable(names: Sequence[str], values: np.ndarray) -> dict[str, str]:
    """
    Return labels or classes without positives or without negatives, with their counts: a head would learn a constant.

    Args:
        names (sequence of `str`)
        values (`np.ndarray`): (recordings, L) with NaN, or (recordings,) class numbers with -100.
    """
    if values.ndim == 1:
        values = np.where(values[:, None] == UNKNOWN_CLASS, np.nan, values[:, None] == np.arange(len(names)))
    known, positive = (~np.isnan(values)).sum(axis=0), np.nansum(values, axis=0)
    return {
        name: f"{int(p)} positive of {int(k)}"
        for name, p, k in zip(names, positive, known, strict=True)
        if p == 0 or p == k
    }


def balanced_weights(values: np.ndarray) -> list[float]:
    """(1 - f) / f by label, with f its share of positives among the known recordings of `values` (recordings, L)."""
    share = np.nanmean(values.astype(np.float64), axis=0)
    return ((1.0 - share) / share).tolist()


def _classes(columns: dict, labels: list[str], wanted: TargetColumns, where: str) -> Targets:
    if len(labels) == 1:
        return _class_column(columns, labels[0], wanted.classes, where)
    values = {}
    for split, found in columns.items():
        matrix = np.stack([_numbers(found[name], name, where, True) for name in labels], axis=1)
        _check_binary(matrix, labels, where)
        # A recording of two classes, or of none, has no single label.
        single = np.nansum(matrix, axis=1) == 1
        values[split] = np.where(single, np.nan_to_num(matrix).argmax(axis=1), UNKNOWN_CLASS).astype(np.int64)
    return Targets(tuple(labels), values, wanted.problem_type)


def _class_column(columns: dict, label: str, classes: list[str] | None, where: str) -> Targets:
    found = {split: [_class_name(value) for value in column[label]] for split, column in columns.items()}
    first = next(iter(found.values()))
    present = {name for name in first if name is not None}
    if classes is None:
        numeric = all(name.lstrip("-").isdecimal() for name in present)
        classes = sorted(present, key=int if numeric else None)
    elif present and present <= {str(number) for number in range(len(classes))}:
        numbers = {str(number): name for number, name in enumerate(classes)}
        found = {split: [numbers.get(name) if name else None for name in names] for split, names in found.items()}
    if len(classes) < 2:
        raise SettingsError(f"labels: {label!r} of {where} has the classes {classes}, expected at least two")
    index_of = {name: number for number, name in enumerate(classes)}
    values = {}
    for split, names in found.items():
        if strange := sorted({name for name in names if name is not None and name not in index_of}):
            raise SettingsError(
                f"labels: {label!r} of {where} has {strange[0]!r} in {split}, not one of {', '.join(classes)}"
            )
        values[split] = np.array([UNKNOWN_CLASS if n is None else index_of[n] for n in names], dtype=np.int64)
    return Targets(tuple(classes), values, "single_label_classification")


def _class_name(value: Any) -> str | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    return str(value)


def _numbers(column: Sequence[Any], name: str, where: str, words: bool) -> np.ndarray:
    """Return a column as numbers, NaN for unknown; with `words`, yes and no are 1 and 0."""
    values = np.full(len(column), np.nan, dtype=np.float32)
    for row, value in enumerate(column):
        if value is None or value == "":
            continue
        try:
            values[row] = float(value)
        except (TypeError, ValueError):
            found = parse_label(str(value))
            if found is not None and (words or found != found):
                values[row] = found
                continue
            raise SettingsError(f"labels: {name!r} of {where} must hold numbers, found: {value!r}") from None
    if np.isinf(values).any():
        raise SettingsError(f"labels: {name!r} of {where} holds an infinite number")
    return values


def _check_binary(values: np.ndarray, labels: Sequence[str], where: str) -> None:
    wrong = (values != 0) & (values != 1) & ~np.isnan(values)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise SettingsError(
            f"labels: {labels[column]!r} of {where} must be 0, 1 or unknown, found: {values[row, column]:g}. For "
            "classes set problem_type=single_label_classification, for quantities problem_type=regression"
        )


def _without_unlabelled(table: dict[str, list[str]], labels: Sequence[str]) -> dict[str, list[str]]:
    """Return the table of `ecgfm label` without its statuses: labels of reports that were not labelled are unknown."""
    statuses = table.get(STATUS_COLUMN)
    if statuses is None or STATUS_COLUMN in labels or not set(statuses) <= set(STATUSES):
        return table
    return {
        name: column
        if name == ID_COLUMN
        else [cell if status == LABELLED else "" for cell, status in zip(column, statuses, strict=True)]
        for name, column in table.items()
        if name != STATUS_COLUMN
    }


def _read_table(path: Path) -> dict[str, list[str]]:
    """Return the columns of a table as text, a row a recording."""
    try:
        table = TableFile(path).columns()
    except DataError as error:
        raise SettingsError(f"targets: {error}") from None
    header = list(table)
    if ID_COLUMN not in header or len(header) < 2:
        raise SettingsError(f"targets: {path} must have a column {ID_COLUMN} and others, found: {', '.join(header)}")
    text: list[list[str]] = []
    for name, column in table.items():
        is_id = name == ID_COLUMN
        cells = [canonical_id(cell) if not isinstance(cell, str) else cell for cell in column] if is_id else column
        cells = cells if is_id else point_decimals(path, name, cells, None)
        text.append(["" if cell is None or cell != cell else str(cell).strip() for cell in cells])
    rows = [list(row) for row in zip(*text, strict=True)]
    first: dict[str, tuple[int, list[str]]] = {}
    for number, cells in enumerate(rows, start=1):
        line, before = first.setdefault(cells[header.index(ID_COLUMN)], (number, cells))
        if different := [
            f"{name} is {one!r} and {other!r}"
            for name, one, other in zip(header, before, cells, strict=True)
            if one != other
        ]:
            raise SettingsError(
                f"targets: {path}, rows {line} and {number}: recording {cells[header.index(ID_COLUMN)]} has different "
                f"values: {', '.join(different)}. Keep the right one of the two rows"
            )
    return {name: [cells[index] for _, cells in first.values()] for index, name in enumerate(header)}


def _joined(
    table: dict[str, list[str]], ids: list[str], recordings: list[str], labels: list[str], where: str, split: str
) -> dict[str, list[str]]:
    row_of = {recording: row for row, recording in enumerate(ids)}
    rows = [row_of.get(recording) for recording in recordings]
    if recordings and all(row is None for row in rows):
        raise SettingsError(
            f"targets: {where} has none of the {len(recordings)} recordings of {split}: its column {ID_COLUMN} has "
            f"{next(iter(ids), None)!r}, the store has {recordings[0]!r}; write the store's ids into the table"
        )
    return {name: ["" if row is None else table[name][row] for row in rows] for name in labels}


__all__ = ["UNKNOWN_CLASS", "TargetColumns", "Targets", "balanced_weights", "read_targets", "untrainable"]
