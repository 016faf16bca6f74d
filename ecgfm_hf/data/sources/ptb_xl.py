"""PTB-XL: a table of recordings with SCP-ECG statements, WFDB files at 100 and 500 Hz, and ten published folds."""

import ast
import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..exclusion import Excluded
from ..store import DataError
from .base import Source, SourceIndex, inside, unique_rows
from .csv_columns import (
    csv_header,
    find_table,
    id_column,
    number_column,
    read_text_columns,
    time_column,
    translated_column,
)
from .table_cells import OVER_89_YEARS

_TABLE, _STATEMENTS = "ptbxl_database.csv", "scp_statements.csv"
_PATHS = {100: "filename_lr", 500: "filename_hr"}
_SEXES = {"0": "M", "1": "F"}
_FOLDS = {"9": "valid", "10": "test"} | {str(fold): "train" for fold in range(1, 9)}
_SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
_OVER_89 = 300.0

Kind = Literal["superclass", "subclass", "diagnostic", "form", "rhythm", "all"]
# SCP-ECG codes with their likelihoods in percent.
Statements = tuple[tuple[str, float], ...]


class PTBXL(Source):
    """
    PTB-XL as PhysioNet gives it: `ptbxl_database.csv`, `scp_statements.csv` and the folders of recordings.

    A recording's id is its `ecg_id`. A label is 1 where a statement of it is given, with any likelihood (0 means
    not graded), and 0 otherwise. Where a recording has no statement of the chosen kind, its labels are unknown: the
    published benchmark leaves it out. Ages of 300 are over 89 and become 90.

    Args:
        root (`str` or `Path`): The folder with `ptbxl_database.csv`.
        statements (`str`): The labels: `"superclass"` (5), `"subclass"` (23), `"diagnostic"` (44), `"form"` (19) or
            `"rhythm"` (12) by `scp_statements.csv`; `"all"` for every statement that occurs.
        likelihood (`float`): Statements with less than this likelihood (in percent) count as not given. The default, 0,
            takes all.
        sampling_rate (`int`): 500 or 100, in Hz.
    """

    name = "ptb_xl"

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        statements: Kind = "superclass",
        likelihood: float = 0.0,
        sampling_rate: int = 500,
    ):
        super().__init__(root)
        if sampling_rate not in _PATHS:
            raise DataError(f"PTB-XL has recordings at 100 and 500 Hz, found: sampling_rate={sampling_rate}")
        if not 0 <= likelihood <= 100:
            raise DataError(f"likelihood must be from 0 to 100 percent, found: {likelihood}")
        table = find_table(self.root, _TABLE)
        if table is None:
            raise DataError(f"{self.root}: has no {_TABLE} or {_TABLE}.gz")
        self._table, self._path_column = table, _PATHS[int(sampling_rate)]
        self._settings: dict[str, Any] = {"statements": statements, "likelihood": likelihood}
        self._settings["sampling_rate"] = int(sampling_rate)
        self._likelihood = likelihood
        self._label_of = self._labels_by_statement(statements)

    @property
    def settings(self) -> dict[str, Any]:
        return self._settings

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._label_of.values()))

    def published_split(self) -> dict[str, str]:
        """Return the split that the authors recommend: folds 1 to 8 train, 9 valid, 10 test."""
        columns = read_text_columns(self._table, ("ecg_id", "strat_fold"))
        expected = "a fold from 1 to 10"
        splits = translated_column(self._table, "strat_fold", columns["strat_fold"], _fold, expected, pa.string())
        ids = id_column(columns["ecg_id"]).to_pylist()
        return {name: split for name, split in zip(ids, splits.to_pylist(), strict=True) if name and split}

    def index(self) -> SourceIndex:
        table, names = self._table, ("ecg_id", "patient_id", "age", "sex", "recording_date", "report", "scp_codes")
        columns = read_text_columns(table, (*names, self._path_column))
        ages = number_column(table, "age", columns["age"], 0, _OVER_89)
        over = ages == _OVER_89
        paths = columns[self._path_column]
        given = [self._labels_in(codes) for codes in _statements(table, columns["scp_codes"])]
        index = {
            "recording_id": id_column(columns["ecg_id"]),
            "path": pc.if_else(pc.ends_with(paths, ".hea"), paths, pc.binary_join_element_wise(paths, "hea", ".")),
            "patient_id": id_column(columns["patient_id"]),
            "time": time_column(table, "recording_date", columns["recording_date"]),
            "age": pa.array(np.where(over, OVER_89_YEARS, ages), from_pandas=True),
            "sex": translated_column(table, "sex", columns["sex"], _sex, "0 (male) or 1 (female)", pa.string()),
            "report": columns["report"],
        }
        for name in self.label_names:
            values = [None if found is None else int(name in found) for found in given]
            index[name] = pa.array(values, pa.int8())
        notes = [f"{int(over.sum())} ages given as over 89 are stored as {OVER_89_YEARS:g}."] if over.any() else []
        excluded: list[Excluded] = []
        rows = unique_rows(pa.table(index), excluded)
        there = [os.path.isfile(inside(self.root, path)) for path in rows["path"].to_pylist()]
        for row in rows.filter(pa.array([not found for found in there])).to_pylist():
            reason = "the recording is not in the folder"
            excluded.append(Excluded(row["recording_id"], row["path"], "index", reason, f"{row['path']}: {reason}"))
        return SourceIndex(rows.filter(pa.array(there)), excluded, notes)

    def _labels_in(self, codes: Statements) -> set[str] | None:
        """Return a recording's labels; None where it has no statement of the chosen kind."""
        mine = {code: likelihood for code, likelihood in codes if code in self._label_of}
        return {self._label_of[code] for code, grade in mine.items() if grade >= self._likelihood} if mine else None

    def _labels_by_statement(self, statements: str) -> dict[str, str]:
        """Return the label of each statement."""
        if statements == "all":
            column = read_text_columns(self._table, ("scp_codes",))["scp_codes"]
            codes = {code for statements in _statements(self._table, column) for code, _ in statements}
            return {code: code for code in sorted(codes)}
        kinds = {"superclass": "diagnostic_class", "subclass": "diagnostic_subclass"}
        kind = "diagnostic" if statements in kinds else statements
        if kind not in ("diagnostic", "form", "rhythm"):
            raise DataError(
                f"statements must be superclass, subclass, diagnostic, form, rhythm or all, found: {statements!r}"
            )
        path = find_table(self.root, _STATEMENTS)
        if path is None:
            raise DataError(
                f"{self.root}: has no {_STATEMENTS}, which says which statements are {kind}; it is published beside "
                f"{_TABLE}. statements='all' needs no such file"
            )
        own = kinds.get(statements)
        code_column = csv_header(path)[0]  # without a name in the published file
        columns = read_text_columns(path, [code_column, kind, *([] if own is None else [own])])
        labels = columns[own or code_column].to_pylist()
        rows = zip(columns[code_column].to_pylist(), columns[kind].to_pylist(), labels, strict=True)
        found = {code: label for code, is_kind, label in rows if code and label and is_kind in ("1", "1.0")}
        if statements != "superclass":
            return found
        return dict(sorted(found.items(), key=lambda pair: _SUPERCLASSES.index(pair[1])))


def _statements(table: Path, column: pa.ChunkedArray) -> Iterator[Statements]:
    """Yield the statements of each recording. `DataError` with the row of a cell that cannot be read."""
    for row, text in enumerate(column.to_pylist(), start=1):
        try:
            yield _codes(text or "{}")
        except ValueError:
            raise DataError(
                f"{table}, row {row}: scp_codes is {text[:40]!r}, expected statements such as {{'NORM': 100.0}}"
            ) from None


@functools.lru_cache(4096)
def _codes(text: str) -> Statements:
    """Return the statements in `{'NORM': 100.0, 'SR': 0.0}`. `ValueError` for other texts."""
    try:
        found = ast.literal_eval(text)
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if not isinstance(found, Mapping) or not all(isinstance(code, str) for code in found):
        raise ValueError("is no dictionary of statements")
    return tuple((code, float(grade)) for code, grade in found.items())


def _fold(text: str) -> str:
    return _FOLDS[_whole(text, _FOLDS)]


def _sex(text: str) -> str:
    return _SEXES[_whole(text, _SEXES)]


def _whole(text: str, known: Iterable[str]) -> str:
    """Return `1` for `1` and `1.0`. `ValueError` for other texts than `known`."""
    whole = text.strip().removesuffix(".0")
    if whole not in known:
        raise ValueError(f"{text!r} is not expected")
    return whole
