"""Recordings of one's own: files and a table, files alone, or arrays."""

import csv
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...records import ECGReadError, ECGRecord
from ...records.reading import read_with_defaults
from ..labels import LabelTable, LabelTableError, label_table
from ..splits import SplitError, canonical_id, parse_time
from ..store import COLUMNS
from .base import LeftOut, Source, SourceError, SourceIndex, inside, unique_rows, walk_files

# Files that say everything themselves, and files that do once their rate, unit or leads are given.
_COMPLETE = (".hea", ".dcm", ".dicom", ".edf", ".xml", ".scp", ".ecg")
_WITH_ARGUMENTS = (".npy", ".csv", ".tsv", ".mat")
# Columns that mean something by their names; all others are labels, unless `labels` says which are.
_FACTS = ("recording_id", "patient_id", "path", "source", "time", "age", "sex", "report")
_ARGUMENTS = ("sampling_rate", "units", "lead_names", "exam_id")
_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F"}


class RecordingTable(Source):
    """
    A folder of recordings in any format that `read_ecg` knows, with a CSV or Parquet table of what is known of them.

    Columns of the table, all optional but one of the first two: `path` (relative to the folder), `recording_id` (by
    default the path without suffix; without `path`, the file under the folder that has this name), `patient_id`,
    `source`, `time` (ISO 8601), `age` (years), `sex` (M, F, male, female), `report`; `sampling_rate`, `units`,
    `lead_names` (separated by blanks or commas) and `exam_id` for files that lack them. Every other column is a label:
    1, 0, true, false, or empty for unknown.

    Args:
        root (`str` or `Path`): The folder.
        table (`str` or `Path`, *optional*): Without it, every recording in the folder is taken, without labels.
        labels (sequence of `str`, *optional*): The columns that are labels, in order. Defaults to all columns whose
            names mean nothing else.
        columns (mapping of `str` to `str`, *optional*): The table's own names for the columns above:
            `{"patient_id": "MRN", "path": "file"}`.
        sampling_rate, units, lead_names: For all files that lack them; see [`read_ecg`].
    """

    name = "table"

    def __init__(
        self,
        root: str | os.PathLike,
        table: str | os.PathLike | None = None,
        *,
        labels: Sequence[str] | None = None,
        columns: Mapping[str, str] | None = None,
        sampling_rate: float | None = None,
        units: str | None = None,
        lead_names: Sequence[str] | None = None,
    ):
        super().__init__(root)
        self.table_path = None if table is None else Path(table)
        arguments = {"sampling_rate": sampling_rate, "units": units, "lead_names": lead_names}
        self._arguments = {name: value for name, value in arguments.items() if value is not None}
        self._columns = dict(columns or {})
        if unknown := [name for name in self._columns if name not in (*_FACTS, *_ARGUMENTS)]:
            raise SourceError(f"columns names {', '.join(unknown)}, expected among {', '.join((*_FACTS, *_ARGUMENTS))}")
        header = [] if table is None else _header(self.table_path)
        for ours, theirs in self._columns.items():
            if theirs not in header:
                raise SourceError(f"{table} has no column {theirs!r} for {ours} (found: {', '.join(header)})")
        named = set(self._columns.values())
        free = [name for name in header if name and name not in named and name not in (*_FACTS, *_ARGUMENTS)]
        self._label_names = tuple(free if labels is None else labels)
        if missing := [name for name in self._label_names if name not in header]:
            raise SourceError(f"{table} has no label column {', '.join(missing)} (found: {', '.join(header)})")
        self._labels_given = labels is not None

    @property
    def settings(self) -> dict[str, Any]:
        return {"columns": self._columns, "labels": list(self._label_names), **self._arguments}

    @property
    def label_names(self) -> tuple[str, ...]:
        return self._label_names

    def index(self) -> SourceIndex:
        left_out: list[LeftOut] = []
        notes: list[str] = []
        files = self._files()
        if self.table_path is None:
            if not files:
                raise SourceError(f"{self.root}: found no recording (files ending in {', '.join(_COMPLETE)})")
            table = pa.table({"recording_id": [_stem(path) for path in files], "path": files})
            notes.append("No table was given: patients and labels are unknown.")
            return SourceIndex(unique_rows(table, left_out), left_out, notes)

        columns = _read_columns(self.table_path)
        columns = {
            ours: columns[self._columns.get(ours, ours)] for ours in (*_FACTS, *_ARGUMENTS) if self._has(ours, columns)
        } | {name: columns[name] for name in self._label_names}
        rows = len(next(iter(columns.values()), ()))
        if not rows:
            raise SourceError(f"{self.table_path} has no rows")
        self._locate(columns, files, left_out)
        used = {_without_suffix(path) for path in columns["path"] if path is not None}
        if idle := sum(_without_suffix(path) not in used for path in files):
            notes.append(f"{idle} files that look like recordings lie in the folder, but the table does not name them.")
        table = self._typed(columns)
        table = table.filter(pa.array([path is not None for path in columns["path"]]))
        return SourceIndex(unique_rows(table, left_out), left_out, notes)

    def read_one(self, entry: Mapping[str, Any]) -> ECGRecord:
        own = {name: entry[f"_{name}"] for name in _ARGUMENTS if entry.get(f"_{name}") is not None}
        return read_with_defaults(inside(self.root, entry["path"]), **(self._arguments | own))

    def _has(self, ours: str, columns: Mapping[str, list]) -> bool:
        return self._columns.get(ours, ours) in columns and not (self._labels_given and ours in self._label_names)

    def _files(self) -> list[str]:
        suffixes = _COMPLETE + (_WITH_ARGUMENTS if self._arguments else ())
        found = list(walk_files(self.root, suffixes))
        own = None if self.table_path is None else os.path.abspath(self.table_path)
        found = [path for path in found if os.path.abspath(os.path.join(self.root, path)) != own]
        headed = {path[:-4] for path in found if path.lower().endswith(".hea")}
        return [path for path in found if not (path.lower().endswith(".mat") and path[:-4] in headed)]

    def _locate(self, columns: dict[str, list], files: list[str], left_out: list[LeftOut]) -> None:
        """Fills `path` and `recording_id`; rows that cannot be found get no path and go to `left_out`."""
        where = str(self.table_path)
        if "path" not in columns and "recording_id" not in columns:
            raise SourceError(f"{where} needs a column path or recording_id (see columns=)")
        ids = [canonical_id(value) for value in columns.get("recording_id", [])]
        if "path" in columns:
            paths = [self._relative(path, row, left_out) for row, path in enumerate(columns["path"])]
            columns["recording_id"] = ids or [None if path is None else _stem(path) for path in paths]
        else:
            by_name: dict[str, list[str]] = {}
            for path in files:
                by_name.setdefault(_stem(path.rpartition("/")[2]), []).append(path)
                if "/" in path:
                    by_name.setdefault(_stem(path), []).append(path)
            paths = []
            for recording in ids:
                found = by_name.get(recording, []) if recording is not None else []
                paths.append(found[0] if len(found) == 1 else None)
                if recording is not None and len(found) != 1:
                    reason = "several files have the recording's name" if found else "no file has the recording's name"
                    left_out.append(
                        LeftOut(recording, None, "index", reason, f"{recording}: {', '.join(found) or reason}")
                    )
            columns["recording_id"] = ids
        for row, recording in enumerate(columns["recording_id"]):
            if recording is None and not (paths[row] is None and "path" in columns):
                left_out.append(LeftOut(None, paths[row], "index", "the table gives no recording_id", f"row {row + 1}"))
                paths[row] = None
        columns["path"] = paths

    def _relative(self, path: Any, row: int, left_out: list[LeftOut]) -> str | None:
        text = "" if path is None else str(path).strip()
        try:
            if not text:
                raise SourceError("the table gives no path")
            if os.path.isabs(text):  # inside the folder it is as good as a relative one
                text = os.path.relpath(os.path.normpath(text), os.path.abspath(self.root))
            inside(self.root, text)
        except SourceError as error:
            reason = "the table gives no path" if not text else "the path leads out of the dataset's folder"
            left_out.append(LeftOut(None, None, "index", reason, f"row {row + 1}: {error}"))
            return None
        return os.path.normpath(text).replace(os.sep, "/")

    def _typed(self, columns: Mapping[str, list]) -> pa.Table:
        where = self.table_path
        typed: dict[str, pa.Array] = {}
        for name in _FACTS:
            if name in columns:
                values = [self._fact(name, value, row) for row, value in enumerate(columns[name])]
                typed[name] = pa.array(values, COLUMNS[name])
        for name in _ARGUMENTS:
            if name in columns:
                values = [self._argument(name, value, row) for row, value in enumerate(columns[name])]
                if any(value is not None for value in values):
                    typed[f"_{name}"] = pa.array(values)
        try:
            labels = label_table(range(len(columns["path"])), {name: columns[name] for name in self._label_names})
        except LabelTableError as error:
            hint = "" if self._labels_given else "; say which columns are labels"
            raise SourceError(f"{where} (counting rows from 0): {error}{hint}") from None
        return pa.table(typed | label_arrays(labels))

    def _fact(self, name: str, value: Any, row: int) -> Any:
        where = f"{self.table_path}, row {row + 1}: {name}"
        if name == "path":
            return value
        try:
            if name in ("recording_id", "patient_id"):
                return canonical_id(value)
            if name == "time":
                return None if canonical_id(str(value)) is None else _naive(parse_time(value, row + 1))
        except SplitError as error:
            raise SourceError(f"{where}: {error}") from None
        text = "" if value is None else str(value).strip()
        if text.lower() in ("", "nan", "none"):
            return None
        if name == "age":
            return _age(text, where)
        if name == "sex":
            if text.lower() not in _SEXES:
                raise SourceError(f"{where} is {text!r}, expected M, F, male, female or nothing")
            return _SEXES[text.lower()]
        return text

    def _argument(self, name: str, value: Any, row: int) -> Any:
        text = "" if value is None else str(value).strip()
        if text.lower() in ("", "nan", "none"):
            return None
        if name == "lead_names":
            return list(value) if isinstance(value, list | np.ndarray) else text.replace(",", " ").split()
        if name == "units":
            return text
        try:
            return int(canonical_id(value)) if name == "exam_id" else float(text)
        except (TypeError, ValueError):
            raise SourceError(f"{self.table_path}, row {row + 1}: {name} is {text!r}, expected a number") from None


class Arrays(Source):
    """
    Recordings that are in memory.

    Args:
        recordings (iterable of mappings): Each with `recording_id`, `signal` (leads, samples; integers or floats),
            `sampling_rate` (Hz), `lead_names`, `units` (one, or one a lead), and what else is known: `patient_id,
            source, time, age, sex, report`.
        labels (mapping of `str` to sequences, *optional*): By label, a value a recording: 1, 0 or None.
    """

    name = "arrays"

    def __init__(self, recordings: Iterable[Mapping[str, Any]], labels: Mapping[str, Sequence[Any]] | None = None):
        self._recordings = list(recordings)
        self._labels = {} if labels is None else {name: list(values) for name, values in dict(labels).items()}
        known = {*_FACTS, "signal", "sampling_rate", "lead_names", "units"} - {"path"}
        for number, recording in enumerate(self._recordings):
            if unknown := [name for name in recording if name not in known]:
                raise SourceError(
                    f"recording {number}: unknown key {', '.join(unknown)}, expected {', '.join(sorted(known))}"
                )
            if missing := [
                n for n in ("recording_id", "signal", "sampling_rate", "lead_names", "units") if n not in recording
            ]:
                raise SourceError(f"recording {number} lacks {', '.join(missing)}")

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(self._labels)

    def index(self) -> SourceIndex:
        ids = [canonical_id(recording["recording_id"]) for recording in self._recordings]
        if repeated := [name for name, count in Counter(ids).items() if count > 1 or name is None]:
            raise SourceError(f"recording ids must be unique and known, found several times or empty: {repeated[:3]}")
        columns: dict[str, Any] = {"recording_id": pa.array(ids, pa.string()), "path": pa.nulls(len(ids), pa.string())}
        columns["_row"] = pa.array(range(len(ids)))
        for name in ("patient_id", "source", "time", "age", "sex", "report"):
            values = [recording.get(name) for recording in self._recordings]
            if name == "patient_id":
                values = [canonical_id(value) for value in values]
            columns[name] = pa.array(values, COLUMNS[name])
        return SourceIndex(pa.table(columns | label_arrays(label_table(ids, self._labels))))

    def read_one(self, entry: Mapping[str, Any]) -> ECGRecord:
        recording = self._recordings[entry["_row"]]
        samples = np.asarray(recording["signal"])
        where = f"recording {entry['recording_id']}"
        if samples.ndim != 2:
            raise ECGReadError(f"{where}: signal must have shape (leads, samples), found {samples.shape}")
        if samples.dtype.kind in "ui" and samples.size:
            low, high = int(samples.min()), int(samples.max())
            fits = next((t for t in (np.int16, np.int32) if np.iinfo(t).min < low and high <= np.iinfo(t).max), None)
            if fits is None and max(-low, high) >= 2**53:
                raise ECGReadError(f"{where}: samples from {low} to {high} are no ECG")
            if samples.dtype not in (np.int16, np.int32):
                samples = samples.astype(fits or np.float64)
        units = recording["units"]
        count = len(samples)
        return ECGRecord(
            recording_id=entry["recording_id"],
            path=where,
            samples=samples.astype(np.float32) if samples.dtype == np.float16 else samples,
            gain=np.ones(count),
            baseline=np.zeros(count),
            units=(units,) * count if isinstance(units, str) else tuple(units),
            sampling_rate=recording["sampling_rate"],
            lead_names=tuple(recording["lead_names"]),
        )


def label_arrays(labels: LabelTable) -> dict[str, pa.Array]:
    """The columns of a store for these labels: int8, null where the value is unknown."""
    arrays = {}
    for number, name in enumerate(labels.names):
        values = labels.values[:, number]
        unknown = np.isnan(values)
        arrays[name] = pa.array(np.where(unknown, 0, values).astype(np.int8), mask=unknown)
    return arrays


def _header(path: Path) -> list[str]:
    if not path.is_file():
        raise SourceError(f"{path}: no such table")
    try:
        if path.suffix.lower() == ".parquet":
            return pq.read_schema(path).names
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file, delimiter=_delimiter(path)), [])
    except (OSError, ValueError, csv.Error) as error:
        raise SourceError(f"{path}: cannot read this table ({error})") from None
    if repeated := [name for name, count in Counter(header).items() if count > 1 and name]:
        raise SourceError(f"{path} has several columns called {', '.join(repeated)}")
    return header


def _read_columns(path: Path) -> dict[str, list]:
    try:
        if path.suffix.lower() == ".parquet":
            return pq.read_table(path).to_pydict()
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, delimiter=_delimiter(path)))
    except (OSError, ValueError, csv.Error) as error:
        raise SourceError(f"{path}: cannot read this table ({error})") from None
    if not rows:
        raise SourceError(f"{path} is empty")
    header, rows = rows[0], [row for row in rows[1:] if row]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise SourceError(f"{path}, row {number}: {len(row)} cells under {len(header)} columns")
    return {name: [row[place] for row in rows] for place, name in enumerate(header) if name}


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() in (".tsv", ".tab") else ","


def _stem(path: str) -> str:
    return os.path.splitext(path)[0] if path.lower().endswith((*_COMPLETE, *_WITH_ARGUMENTS, ".dat")) else path


_without_suffix = _stem


def _naive(time: Any) -> datetime:
    if not isinstance(time, datetime):
        raise SplitError(f"{time!r} is no time in ISO 8601 (such as 2020-01-31 08:30:00)")
    return time.replace(tzinfo=None)


def _age(text: str, where: str) -> float:
    try:
        age = float(text)
    except ValueError:
        age = -1.0
    if not 0 <= age < 150:
        raise SourceError(f"{where} is {text!r}, expected years from 0 to 150")
    return age
