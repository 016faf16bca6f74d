"""
Label tables: one row per recording, one column per label; 1, 0, or NaN for unknown.

NaN stays out of losses, weights and metrics, and is counted. `label_def.csv` is the file of fairseq-signals.
Differences from it:

- it drops a recording from all counts where any of its labels is missing; here each label counts its known values;
- its counts and weights depend on how a column was stored (counts of float columns end in `.0`, a bool column with
  missing rows and no positive crashes); here 1, 1.0, True and "True" are the same, and counts are whole numbers;
- a training weight without positives is infinite there; here it is an error that names the label.
"""

import csv
import functools
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..labeler.label_def import write_label_columns
from ..labeler.report_labels import LABELLED
from ..labeler.tables import STATUS_COLUMN
from ..utils.errors import ECGFMError
from ..utils.ids import canonical_id
from ..utils.text import from_cell, read_cells


class LabelTableError(ECGFMError, ValueError):
    """Labels that are contradictory or cannot be used. The message names the label and what was found."""


@dataclass(frozen=True)
class LabelTable:
    """
    Labels of recordings.

    Args:
        ids (`tuple[str, ...]`, length n): Unique recording ids, as text.
        names (`tuple[str, ...]`, length L): Unique labels, in order.
        values (`np.ndarray` of shape `(n, L)`, float64): 1, 0, or NaN for unknown.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    values: np.ndarray

    def __post_init__(self) -> None:
        for what, items in (("recording", self.ids), ("label", self.names)):
            if repeated := [item for item, count in Counter(items).items() if count > 1]:
                raise LabelTableError(f"{what} given more than once: {', '.join(repeated[:3])}")
        if self.values.shape != (len(self.ids), len(self.names)):
            raise LabelTableError(
                f"values must have shape {(len(self.ids), len(self.names))}, found: {self.values.shape}"
            )
        if ((self.values != 0) & (self.values != 1) & ~np.isnan(self.values)).any():
            raise LabelTableError("values must be 0, 1 or NaN")


def label_table(ids: Sequence[Hashable], columns: Mapping[str, Sequence[Any]]) -> LabelTable:
    """
    Return a table made from columns of any kind.

    Args:
        ids (sequence, length n): Unique recording ids.
        columns (mapping of `str` to sequence of length n): By label. True, 1, 1.0 and the texts 1, true, yes, y, ja,
            oui, si are positive; False, 0, 0.0 and 0, false, no, n, nein, non negative; None, NaN, empty text, NA, N/A
            and NULL are unknown. Letter case does not matter.

    Raises:
        `LabelTableError`: another value, another length, repeated or missing ids.
    """
    recordings, columns = tuple(known_ids(ids)), dict(columns.items())  # of a data frame, too
    values = np.empty((len(recordings), len(columns)))
    for number, (name, column) in enumerate(columns.items()):
        column = list(column)
        if len(column) != len(recordings):
            raise LabelTableError(f"label {name!r} has {len(column)} values for {len(recordings)} recordings")
        for row, value in enumerate(column):
            parsed = parse_label(str(value))
            if parsed is None:
                raise LabelTableError(
                    f"label {name!r} of recording {recordings[row]} is {value!r}, expected 0, 1, True, False or nothing"
                )
            values[row, number] = parsed
    return LabelTable(recordings, tuple(columns), values)


def read_label_csv(path: str | Path, id_column: str = "idx", columns: Sequence[str] | None = None) -> LabelTable:
    """
    Labels from a CSV with a column of recording ids and one per label, such as fairseq-signals' `labels.csv`.

    Args:
        path (`str` or `Path`)
        id_column (`str`)
        columns (sequence of `str`, *optional*): The labels, in order. Defaults to all other columns with a name.

    Raises:
        `LabelTableError`: a missing column, a row of another length, and what [`label_table`] raises.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = [row for row in read_cells(file) if row]
    header = rows[0] if rows else []
    # pandas leaves the name of its index empty.
    status = STATUS_COLUMN if STATUS_COLUMN in header and STATUS_COLUMN not in (id_column, *(columns or ())) else None
    labels = list(columns) if columns is not None else [name for name in header if name not in ("", id_column, status)]
    if missing := [name for name in (id_column, *labels) if name not in header]:
        raise LabelTableError(f"{path} has no column {', '.join(missing[:3])} (found: {', '.join(header[:20])})")
    if repeated := [name for name in (id_column, *labels) if header.count(name) > 1]:
        raise LabelTableError(f"{path} has several columns called {', '.join(repeated[:3])}")
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise LabelTableError(f"{path}, row {number}: {len(row)} cells under {len(header)} columns")
    column_of = {name: header.index(name) for name in (id_column, *labels)}
    ids = [row[column_of[id_column]] for row in rows[1:]]
    table = label_table(ids, {name: [row[column_of[name]] for row in rows[1:]] for name in labels})
    if status is not None:
        unlabelled = [row[header.index(status)] != LABELLED for row in rows[1:]]
        table.values[unlabelled] = np.nan
    return table


@dataclass(frozen=True)
class LabelDefinition:
    """
    How often labels occur: the contents of fairseq-signals' `label_def.csv`.

    Args:
        names (`tuple[str, ...]`, length L): Labels in order.
        positives (`dict[str, np.ndarray]`): Positive recordings `(L,)` int64 by split, and under `"all"`.
        fractions (`dict[str, np.ndarray]`): Of the recordings whose label is known, `(L,)` float64 likewise. NaN where
            none is known. The file calls them percent.
        weights (`dict[str, np.ndarray]`): (1 - f) / f `(L,)` by split, without `"all"`; infinite without positives.
        unknown (`dict[str, np.ndarray]`): Recordings with an unknown label, likewise. Empty when read from a
            file, which has no such column.
    """

    names: tuple[str, ...]
    positives: dict[str, np.ndarray]
    fractions: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    unknown: dict[str, np.ndarray] = field(default_factory=dict)


def define_labels(table: LabelTable, splits: Sequence[str | None] | None) -> LabelDefinition:
    """
    Count labels by split.

    Args:
        table ([`LabelTable`])
        splits (sequence, *optional*): The split of each row of `table`; rows with None are not counted, not even under
            `"all"`. Without splits there is only `"all"`.
    """
    if splits is None:
        everything = define_labels(table, ["-"] * len(table.ids))
        return LabelDefinition(
            table.names,
            {"all": everything.positives["all"]},
            {"all": everything.fractions["all"]},
            {},
            {"all": everything.unknown["all"]},
        )
    if len(splits) != len(table.ids):
        raise LabelTableError(f"{len(table.ids)} recordings, but splits for {len(splits)}")
    home = np.array(["" if split is None else split for split in splits])
    rows = {split: home == split for split in sorted(set(home.tolist()) - {""})}
    if "all" in rows:
        raise LabelTableError("a split must not be called 'all': label_def.csv uses this name for all recordings")
    rows["all"] = home != ""
    positives = {split: (table.values[here] == 1).sum(axis=0) for split, here in rows.items()}
    unknown = {split: np.isnan(table.values[here]).sum(axis=0) for split, here in rows.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        fractions = {split: positives[split] / (here.sum() - unknown[split]) for split, here in rows.items()}
        weights = {split: (1 - fractions[split]) / fractions[split] for split in rows if split != "all"}
    return LabelDefinition(table.names, positives, fractions, weights, unknown)


def pos_weight(table: LabelTable, splits: Sequence[str | None], split: str = "train") -> np.ndarray:
    """
    Return the weights of positives in the loss, `(L,)` float64: (1 - f) / f.

    f is the fraction of positives among the known values of one split, by default `train`.

    Raises:
        `LabelTableError`: no such split; a label without positives or without negatives there, by name.
    """
    definition = define_labels(table, splits)
    if split not in definition.weights:
        raise LabelTableError(f"no recording is in split {split!r}, only in {', '.join(definition.weights) or 'none'}")
    weights = definition.weights[split]
    for what, bad in (
        ("no known value", np.isnan(weights)),
        ("no positives", np.isinf(weights)),
        ("no negatives", weights == 0),
    ):
        if bad.any():
            labels = ", ".join(repr(table.names[number]) for number in np.flatnonzero(bad))
            raise LabelTableError(f"{what} in {split} for {labels}: so there is no weight; exclude or merge the label")
    return weights


def write_label_def(path: str | Path, definition: LabelDefinition) -> None:
    """Write `label_def.csv`, columns and digits as fairseq-signals does."""
    by_split = (
        {split: column.tolist() for split, column in columns.items()}
        for columns in (definition.positives, definition.fractions, definition.weights)
    )
    write_label_columns(path, definition.names, *by_split)


def read_label_def(path: str | Path) -> LabelDefinition:
    """
    Read a `label_def.csv`, with columns for any splits, or only `pos_count_all` and `pos_percent_all`.

    Raises:
        `LabelTableError`: no names, a name twice, a missing column, a cell that is no number.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        rows, header = list(reader), reader.fieldnames or []
    names = tuple(from_cell(row.get("name") or "") for row in rows)
    if not names or "" in names or len(set(names)) != len(names):
        raise LabelTableError(f"{path} must have a column 'name' with labels, each once, found: {list(names)[:20]}")
    splits = [column.removeprefix("pos_weight_") for column in header if column.startswith("pos_weight_")]

    def column(kind: str, split: str, dtype: type) -> np.ndarray:
        try:
            # Counts of float columns are written 24.0 there.
            return np.array([float(row[f"pos_{kind}_{split}"] or "nan") for row in rows]).astype(dtype)
        except KeyError as error:
            raise LabelTableError(f"{path} has no column {error} (found: {', '.join(header)})") from None
        except (TypeError, ValueError) as error:
            raise LabelTableError(f"{path}, column pos_{kind}_{split}: {error}") from None

    everywhere = [*splits, "all"]
    return LabelDefinition(
        names,
        {split: column("count", split, np.int64) for split in everywhere},
        {split: column("percent", split, np.float64) for split in everywhere},
        {split: column("weight", split, np.float64) for split in splits},
    )


def known_ids(ids: Iterable[Hashable]) -> list[str]:
    known = [canonical_id(recording) for recording in ids]
    found = [recording for recording in known if recording is not None]
    if len(found) < len(known):
        raise LabelTableError(f"{known.count(None)} recordings have no id, the first in row {known.index(None)}")
    return found


_POSITIVE = ("1", "1.0", "true", "yes", "y", "ja", "oui", "sí", "si")
_NEGATIVE = ("0", "0.0", "false", "no", "n", "nein", "non")
_UNKNOWN = ("", "nan", "none", "<na>", "na", "n/a", "#n/a", "null")
_MEANINGS = dict.fromkeys(_POSITIVE, 1.0) | dict.fromkeys(_NEGATIVE, 0.0)


@functools.lru_cache(maxsize=64)  # millions of cells, a dozen ways to write them
def parse_label(text: str) -> float | None:
    """Return 1.0, 0.0, NaN for unknown, or None for text that is not a label."""
    text = text.strip().casefold()
    return float("nan") if text in _UNKNOWN else _MEANINGS.get(text)
