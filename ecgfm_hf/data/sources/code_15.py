"""CODE-15%: a table of exams, and HDF5 files of some 20,000 exams each."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa

from ...records import ECGReadError, ECGRecord
from ...records.hdf5 import Code15File, opened_code_15
from ..exclusion import Excluded
from ..store import DataError
from .base import Source, SourceIndex, inside, unique_rows, walk_files
from .csv_columns import (
    find_table,
    id_column,
    label_column,
    label_value,
    number_column,
    read_text_columns,
    refuse_cell,
    translated_column,
)

_EXAMS = "exams.csv"
_LABELS = ("1dAVb", "RBBB", "LBBB", "SB", "ST", "AF", "normal_ecg")
# CODE-15% has 18 files; a table that names more must not open them all at once.
_MOST_OPEN = 32
_LARGEST_ID = 2.0**53


class Code15(Source):
    """
    CODE-15% as Zenodo gives it: `exams.csv` (may be gzipped) and, beside it, the files `exams_part*.hdf5` that its
    column `trace_file` names. Exams in files that were not downloaded are excluded, with the reason.

    A recording's id is its `exam_id`; labels are 1dAVb, RBBB, LBBB, SB, ST, AF and normal_ecg. Rows are in the
    order of the exams in each file, file by file, without the zeros at both ends of a tracing and without each file's
    dummy last row. Needs h5py (`pip install 'ecgfm-hf[formats]'`).

    Args:
        root (`str` or `Path`): The folder with `exams.csv`.
        units (`str`): Unit of the samples; see `ecgfm_hf.records.hdf5` for what is known about it.
    """

    name = "code_15"

    def __init__(self, root: str | os.PathLike, *, units: str = "mV"):
        super().__init__(root)
        exams = find_table(self.root, _EXAMS)
        if exams is None:
            raise DataError(f"{self.root}: has no {_EXAMS} or {_EXAMS}.gz")
        self._exams, self._units = exams, units

    @property
    def settings(self) -> dict[str, Any]:
        return {"units": self._units}

    @property
    def label_names(self) -> tuple[str, ...]:
        return _LABELS

    def index(self) -> SourceIndex:
        try:
            import h5py  # noqa: F401
        except ImportError:
            raise DataError(f"{self.root}: reading HDF5 needs h5py: pip install 'ecgfm-hf[formats]'") from None
        excluded: list[Excluded] = []
        notes: list[str] = []
        table = unique_rows(self._exam_table(excluded), excluded)
        exams = table["_exam_id"].to_numpy()
        paths = table["path"].combine_chunks().dictionary_encode()
        codes, order = paths.indices.to_numpy(), []
        readable = 0
        for path, code in sorted((path, code) for code, path in enumerate(paths.dictionary.to_pylist())):
            mine = np.flatnonzero(codes == code)
            try:
                with opened_code_15(inside(self.root, path), self._units) as file:
                    rows, counts = _rows_of(file.exam_ids, exams[mine])
                    surplus = ~np.isin(file.exam_ids, exams)
                    surplus[-1] &= not _ends_in_dummy(file)
            except (DataError, ECGReadError, OSError) as error:
                reason = self._why(path, error)
                detail = str(error).replace(str(self.root) + os.sep, "")
                excluded += [Excluded(str(exam), path, "index", reason, detail) for exam in exams[mine].tolist()]
                continue
            readable += 1
            order.append(mine[np.argsort(rows, kind="stable")][(counts != 1).sum() :])
            for exam, count in zip(exams[mine[counts != 1]].tolist(), counts[counts != 1].tolist(), strict=True):
                reason = "the exam is in its HDF5 file more than once" if count else "the exam is not in its HDF5 file"
                detail = f"{path}: found exam_id {exam} {count} times, expected once"
                excluded.append(Excluded(str(exam), path, "index", reason, detail))
            if surplus.any():
                notes.append(f"{int(surplus.sum())} exams of {path} are not in {_EXAMS}.")
        if not readable:
            detail = excluded[-1].detail
            raise DataError(f"{self.root}: none of the {len(paths.dictionary)} HDF5 files can be read: {detail}")
        named = set(paths.dictionary.to_pylist())
        if idle := sum(path not in named for path in walk_files(self.root, (".hdf5",))):
            notes.append(f"{idle} HDF5 files in the folder are not named by {_EXAMS}.")
        return SourceIndex(table.take(pa.array(np.concatenate(order))), excluded, notes)

    def read(self, entries: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], ECGRecord | Exception]]:
        """
        Read rows of the index, in the order given. Each file is opened once and closed at the end.

        Exams of one file in their order are read fastest.
        """
        with ExitStack() as stack:
            files: dict[str, Code15File | Exception] = {}
            for entry in entries:
                path = entry["path"]
                if path not in files:
                    if len(files) == _MOST_OPEN:
                        stack.close()
                        files.clear()
                    try:
                        files[path] = stack.enter_context(opened_code_15(inside(self.root, path), self._units))
                    except (ECGReadError, OSError, ValueError) as error:
                        files[path] = error
                file = files[path]
                if isinstance(file, Exception):
                    yield entry, file
                    continue
                try:
                    record = file.exam(entry["_exam_id"])
                except (ECGReadError, OSError, ValueError) as error:
                    yield entry, error
                else:
                    yield entry, record

    def read_one(self, entry: Mapping[str, Any]) -> ECGRecord:
        """Read one row of the index; see [`Source.read_one`]."""
        _, found = next(self.read([entry]))
        if isinstance(found, Exception):
            raise found
        return found

    def _exam_table(self, excluded: list[Excluded]) -> pa.Table:
        """Return `exams.csv` without rows that name no file; `_exam_id` is the number in the HDF5 files."""
        where = self._exams
        columns = read_text_columns(where, ("exam_id", "patient_id", "age", "is_male", "trace_file", *_LABELS))
        exams = number_column(where, "exam_id", columns["exam_id"], 0, _LARGEST_ID)
        refuse_cell(where, "exam_id", columns["exam_id"], ~np.isnan(exams) & (exams % 1 != 0), "a whole number")
        paths = [None if path is None else path.strip() or None for path in columns["trace_file"].to_pylist()]
        usable = np.array([path is not None for path in paths]) & ~np.isnan(exams)
        for row in np.flatnonzero(~usable).tolist():
            exam = None if np.isnan(exams[row]) else str(int(exams[row]))
            reason = f"{_EXAMS} gives no {'exam_id' if exam is None else 'trace_file'}"
            excluded.append(Excluded(exam, paths[row], "index", reason, f"{where.name}, row {row + 1}"))
        numbers = pa.array(np.where(usable, exams, 0).astype(np.int64))
        sexes = translated_column(where, "is_male", columns["is_male"], _sex, "True, False or nothing", pa.string())
        age = number_column(where, "age", columns["age"], 0, 150).astype(np.float32)
        table = pa.table(
            {
                "recording_id": numbers.cast(pa.string()),
                "patient_id": id_column(columns["patient_id"]),
                "path": pa.array(paths, pa.string()),
                "age": pa.array(age, from_pandas=True),
                "sex": sexes,
                "_exam_id": numbers,
                **{name: label_column(where, name, columns[name]) for name in _LABELS},
            }
        )
        return table if usable.all() else table.filter(pa.array(usable))

    def _why(self, path: str, error: Exception) -> str:
        if isinstance(error, DataError):
            return "the path leads out of the dataset's folder"
        there = os.path.lexists(inside(self.root, path))
        return "its HDF5 file cannot be read" if there else "its HDF5 file is not there"


def _rows_of(exam_ids: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each wanted exam's row in a file (-1 unless it is there once) and how often it is there."""
    order = np.argsort(exam_ids, kind="stable")
    sorted_ids = exam_ids[order]
    start, end = np.searchsorted(sorted_ids, wanted, "left"), np.searchsorted(sorted_ids, wanted, "right")
    counts = end - start
    rows = np.where(counts == 1, order[np.minimum(start, len(order) - 1)], -1)
    return rows, counts


def _ends_in_dummy(file: Code15File) -> bool:
    try:
        return file.ends_in_dummy
    except ECGReadError:
        return False  # a damaged last row must not cost the others


def _sex(text: str) -> str | None:
    male = label_value(text)
    return None if male is None else "M" if male else "F"
