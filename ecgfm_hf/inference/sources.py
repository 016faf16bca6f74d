"""Where recordings come from: files, folders of them, tables that name them, and prepared stores."""

import codecs
import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.sources.base import LeftOut, inside
from ..data.sources.table import RecordingTable
from ..data.store import DATA_FOLDER, REPORT_FILE, WORK_FOLDER, StoreError, record_from_row, store_files
from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..records.reading import read_with_defaults
from ..records.record import ECGRecord
from .reading import ReadRecording, failed, in_chunks, prepared

# What reading needs of a store's row.
_SIGNAL_COLUMNS = ("recording_id", "patient_id", "path", "sampling_rate", "num_samples", "lead_names", "units")
_SIGNAL_COLUMNS += ("signal", "dtype", "gain", "baseline", "missing_value")
_OF_A_RECORD = (b".hea", b".dat", b".mat")
_UNREADABLE = (OSError, pa.ArrowException)  # of a Parquet file
# What a table may say of a file that does not say it itself; the index of a table has it under these names.
_ARGUMENTS = ("sampling_rate", "units", "lead_names", "exam_id")
_FILES_SCHEMA = pa.schema(
    [
        ("recording_id", pa.string()),
        ("patient_id", pa.string()),
        ("path", pa.binary()),  # a file's name need not be UTF-8
        ("_sampling_rate", pa.float64()),
        ("_units", pa.string()),
        ("_lead_names", pa.list_(pa.string())),
        ("_exam_id", pa.int64()),
        ("failure", pa.string()),
    ]
)


class FileSource:
    """
    Files, each read when its number comes.

    Args:
        table (`pa.Table`): As `_FILES_SCHEMA`, a row a recording; `failure` where it is known before reading. Arrow and
            not a list: a worker that counts references to Python objects would copy the whole list, page by page.
        extractor: With the policies.
        arguments: `sampling_rate`, `units`, `lead_names`, `exam_id` of all files that do not say them.
        inspect: Whether to look for clipped leads and so on, for warnings.
    """

    def __init__(
        self,
        table: pa.Table,
        extractor: ECGFMFeatureExtractor,
        arguments: Mapping[str, Any] | None = None,
        inspect: bool = True,
    ):
        self._table, self._extractor = table.combine_chunks(), extractor
        self._arguments, self._inspect = dict(arguments or {}), inspect

    def __len__(self) -> int:
        return self._table.num_rows

    def read_together(self, places: Sequence[int]) -> Iterable[list[int]]:
        """Places in the groups that are read at one go."""
        return in_chunks(places, 4)

    def __getitems__(self, places: Sequence[int]) -> list[ReadRecording]:
        return [self._read(place) for place in places]

    def unread(self, place: int, reason: str) -> ReadRecording:
        """The row of a recording that was not read, and why."""
        (row,) = self._table.slice(place, 1).to_pylist()
        return failed(place, row["recording_id"], row["patient_id"], reason, _shown(row["path"]))

    def fingerprint(self) -> str:
        """Changes when another file is among them, or one of them changes (size and time)."""
        digest = hashlib.sha256(repr(sorted(self._arguments.items())).encode())
        for batch in self._table.to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                digest.update(repr((*row.values(), _stamp(row["path"]))).encode("utf-8", "backslashreplace"))
        return digest.hexdigest()

    def record(self, place: int) -> ECGRecord:
        """A recording as it is in its file. Raises whatever the reader raises."""
        (row,) = self._table.slice(place, 1).to_pylist()
        own = {name: row[f"_{name}"] for name in _ARGUMENTS if row[f"_{name}"] is not None}
        return read_with_defaults(os.fsdecode(row["path"]), **(self._arguments | own))

    def _read(self, place: int) -> ReadRecording:
        (row,) = self._table.slice(place, 1).to_pylist()
        ids = row["recording_id"], row["patient_id"]
        shown = _shown(row["path"])
        if row["failure"] is not None:
            return failed(place, *ids, row["failure"], shown)
        try:
            record = self.record(place)
            return replace(prepared(place, *ids, record, self._extractor, inspect=self._inspect), path=shown)
        # Whatever a reader or its library makes of a damaged file, the other files are to be answered.
        except Exception as error:
            return failed(place, *ids, error, shown)


class StoreSource:
    """
    The recordings of stores that `ecgfm prepare` wrote, read from their Parquet files group by group: without the
    uncompressed copy that `load_prepared` makes for reading in any order.

    Args:
        stores: Their folders.
        extractor: With the policies.
        split: Which of the splits; all by default.

    Raises:
        `StoreError`: no store, an unfinished one, no such split; several with recordings of the same id.
    """

    def __init__(self, stores: Sequence[str | Path], extractor: ECGFMFeatureExtractor, split: str | None = None):
        self._extractor = extractor
        self.files: list[Path] = []
        for store in stores:
            found = store_files(store)
            if split is not None and split not in found:
                raise StoreError(f"{store} has no split {split!r}, only {', '.join(found)}")
            self.files += [path for name, paths in found.items() if split in (None, name) for path in paths]
        if len(stores) > 1:
            _check_ids(self.files)
        groups = [
            (number, group, rows)
            for number, path in enumerate(self.files)
            for group, rows in enumerate(_group_sizes(path))
        ]
        self._groups = np.array(groups, dtype=np.int64).reshape(-1, 3)
        self._first = np.concatenate([[0], np.cumsum(self._groups[:, 2])])
        self._open: tuple[Path, pq.ParquetFile] | None = None

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}

    def read_together(self, places: Sequence[int]) -> Iterable[list[int]]:
        """Places in the groups that are read at one go."""
        places = np.asarray(places, dtype=np.int64)
        groups = np.searchsorted(self._first, places, side="right")
        for found in np.split(places, np.flatnonzero(np.diff(groups)) + 1):
            if len(found):
                yield found.tolist()

    def __getitems__(self, places: Sequence[int]) -> list[ReadRecording]:
        group = self._group(places[0])
        try:
            rows = self._rows(group, _SIGNAL_COLUMNS)
        except _UNREADABLE as error:
            if getattr(error, "errno", None) is not None:  # the file's place, not its content: it may come back
                raise
            return [self.unread(place, f"a damaged part of {self._path(group)}: {error}") for place in places]
        return [self._read(place, rows, place - int(self._first[group])) for place in places]

    def record(self, place: int) -> ECGRecord:
        """A recording as it is in its row."""
        group = self._group(place)
        return record_from_row(self._row(self._rows(group, _SIGNAL_COLUMNS), place, group))

    def unread(self, place: int, reason: str) -> ReadRecording:
        """The row of a recording that was not read, and why."""
        group = self._group(place)
        try:
            row = self._row(self._rows(group, ("recording_id", "patient_id", "path")), place, group)
        except _UNREADABLE:
            row = {"recording_id": f"{self._path(group)}: row {place}", "patient_id": None, "path": None}
        return failed(place, row["recording_id"], row["patient_id"], reason, row["path"])

    def fingerprint(self) -> str:
        """Changes when the stores are prepared or split anew, or another is among them."""
        digest = hashlib.sha256()
        for path in self.files:
            digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def _group(self, place: int) -> int:
        """A row's group, among those of all files."""
        return int(np.searchsorted(self._first, place, side="right")) - 1

    def _path(self, group: int) -> Path:
        return self.files[self._groups[group, 0]]

    def _rows(self, group: int, columns: Sequence[str]) -> pa.Table:
        path = self._path(group)
        if self._open is None or self._open[0] != path:
            self._open = path, pq.ParquetFile(path, page_checksum_verification=True)
        return self._open[1].read_row_group(int(self._groups[group, 1]), columns=list(columns), use_threads=False)

    def _row(self, rows: pa.Table, place: int, group: int) -> dict[str, Any]:
        return rows.slice(place - int(self._first[group]), 1).to_pylist()[0]

    def _read(self, place: int, rows: pa.Table, row_in_group: int) -> ReadRecording:
        (row,) = rows.slice(row_in_group, 1).to_pylist()
        ids = row["recording_id"], row["patient_id"]
        try:
            record = record_from_row(row)
            # Warnings were due when the store was made.
            return prepared(place, *ids, record, self._extractor, inspect=False)
        except Exception as error:  # as for files
            return failed(place, *ids, error, row["path"])


def find_recordings(
    inputs: Sequence[str],
    extractor: ECGFMFeatureExtractor,
    *,
    table: str | None = None,
    root: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    inspect: bool = True,
) -> "FileSource | StoreSource":
    """
    All recordings that a command was given, before any is read.

    Args:
        inputs: Files, folders (searched through, hidden files and links to folders passed over) or stores.
        table: A CSV or Parquet table with a column `path` or `recording_id`, as for `ecgfm prepare table`.
        root: The folder that its paths are relative to; by default the table's own.
        columns: The table's names for our columns.
        split: Of stores.
        arguments, inspect: As of [`FileSource`].

    Raises:
        `ValueError`: nothing given, stores beside files, a folder without recordings, a table without what is needed.
    """
    stores = [path for path in inputs if is_store(path)]
    if stores:
        if len(stores) < len(inputs) or table is not None:
            raise ValueError(f"{stores[0]} is a store: stores cannot be mixed with files in one run")
        return StoreSource(stores, extractor, split)
    if split is not None:
        raise ValueError("only stores have splits")
    found: list[dict[str, Any]] = []
    said = {name: value for name, value in (arguments or {}).items() if value is not None and name != "exam_id"}
    for path in inputs:
        found += _in_folder(path, said) if os.path.isdir(path) else [_file_row(path)]
    if table is not None:
        folder = root or os.path.dirname(table) or "."
        found += _in_table(RecordingTable(folder, table, labels=(), columns=columns, **said))
    if not found:
        raise ValueError("there are no recordings")
    return FileSource(
        pa.Table.from_pylist(list(_once_each(found)), schema=_FILES_SCHEMA), extractor, arguments, inspect
    )


def is_store(path: str) -> bool:
    """Whether a folder is a store, finished or not."""
    return os.path.isdir(os.path.join(path, WORK_FOLDER)) or (
        os.path.isfile(os.path.join(path, REPORT_FILE)) and os.path.isdir(os.path.join(path, DATA_FOLDER))
    )


def read_list(file: Iterable[bytes]) -> list[str]:
    """The paths of a list of files, one a line; empty lines are passed over. Names need not be UTF-8."""
    lines = (line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n") for line in file)
    return [os.fsdecode(line) for line in lines if line.strip()]


def _once_each(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Without files that were given twice; another file under the same id has failed, since no answer could name it."""
    paths: dict[str, bytes] = {}
    for row in rows:
        if row.get("failure") is None:
            path = paths.setdefault(row["recording_id"], row["path"])
            if path is not row["path"]:
                if path == row["path"]:
                    continue
                row["failure"] = "another recording has the same id"
        yield row


def _file_row(path: str) -> dict[str, Any]:
    return {"recording_id": _as_text(path), "path": os.fsencode(path)}


def _as_text(path: str) -> str:
    """A path as it can be written; its name need not be UTF-8."""
    return _shown(os.fsencode(path))


def _shown(path: bytes | None) -> str | None:
    return None if path is None else path.decode("utf-8", "backslashreplace")


def _in_folder(folder: str, arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every recording below a folder, called by its path; and what looks like one and cannot be used."""
    index = RecordingTable(folder, **arguments).index()
    for path in index.table["path"].to_pylist():
        yield _file_row(os.path.join(folder, path))
    for one in index.left_out:
        yield _file_row(os.path.join(folder, one.path or "")) | {"failure": _reason(one)}


def _in_table(table: RecordingTable) -> Iterator[dict[str, Any]]:
    index = table.index()
    wanted = [name for name in _FILES_SCHEMA.names if name in index.table.column_names]
    for row in index.table.select(wanted).to_pylist():
        yield row | {"path": os.fsencode(inside(table.root, row["path"]))}
    for one in index.left_out:
        yield {
            "recording_id": one.recording_id or one.path or one.detail,
            "path": None if one.path is None else os.fsencode(os.path.join(table.root, one.path)),
            "failure": _reason(one),
        }


def _reason(left_out: LeftOut) -> str:
    return left_out.detail.removeprefix(f"{left_out.path}: ") or left_out.reason


def _stamp(path: bytes | None) -> str:
    """Size and time of a file; of WFDB, of the header and of the signal file that bears its name."""
    if path is None:
        return ""
    stem = path.removesuffix(b".hea")
    candidates = (path,) if stem == path and os.path.isfile(path) else tuple(stem + end for end in _OF_A_RECORD)
    found = []
    for candidate in candidates:
        with contextlib.suppress(OSError, ValueError):  # there is none, or no such name
            status = os.stat(candidate)
            found.append(f"{status.st_size} {status.st_mtime_ns}")
    return " ".join(found)


def _check_ids(files: Sequence[Path]) -> None:
    ids = pa.concat_tables(pq.read_table(path, columns=["recording_id"]) for path in files)["recording_id"]
    counts = ids.value_counts()
    if len(counts) < len(ids):
        same = counts.field("values")[int(np.argmax(counts.field("counts")))]
        raise StoreError(f"recordings of several stores have the same id, such as {same}: run the stores one by one")


def _group_sizes(path: Path) -> list[int]:
    try:
        metadata = pq.read_metadata(path)
    except pa.ArrowException as error:
        raise StoreError(f"{path} is damaged: {error}") from None
    return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


__all__ = ["FileSource", "StoreSource", "find_recordings", "is_store", "read_list"]
