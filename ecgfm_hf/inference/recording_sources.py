"""Where recordings to score or embed are read from: files, stores, processed folders, datasets, Python values."""

import hashlib
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.opening import folder_rows, split_names
from ..data.sources.base import recording_stamp, recording_stamps
from ..data.store import (
    DataError,
    check_files,
    check_footers,
    content_digest,
    store_files,
)
from ..fairseq.folder_reading import IDX, SEGMENT_FILES, FairseqFolder, read_segments, record_from_segments
from ..feature_extraction_ecgfm import MOST_LEADS_EMPTY, ECGFMFeatureExtractor, resampled_length
from ..pipeline_ecgfm import as_recording
from ..records.reading import read_with_defaults
from ..records.record import ECGReadError, ECGRecord
from ..records.store_rows import SIGNAL_COLUMNS, record_from_row
from .read_ahead import ReadRecording, failed_recording, in_groups, prepare_record

if TYPE_CHECKING:
    from ..data.model_inputs import ModelInputs

# A recording in Python: a path, a dictionary as the pipeline takes it, or a record.
RecordingInput = str | os.PathLike | Mapping[str, Any] | ECGRecord

_STORE_COLUMNS = (*SIGNAL_COLUMNS, "start_s")
_READ_TOGETHER = 4  # recordings that a worker reads at a time, where they lie in files of their own
_OF_SEGMENTS = ("recording_id", "patient_id", "path", "age", "sex", "num_samples", SEGMENT_FILES, IDX)
# What a table may give for files whose format does not contain it; a table's index prefixes these with "_".
_ARGUMENTS = ("sampling_rate", "units", "lead_names", "exam_id", "rename_leads")
# `path` is bytes: file names need not be UTF-8.
FILE_COLUMNS = ("recording_id", "patient_id", "path", *(f"_{name}" for name in _ARGUMENTS), "failure")


class FileSource:
    """
    Files, each opened when it is read.

    Args:
        rows (iterable of mappings): With any of `FILE_COLUMNS`, one for each recording; `failure` where one is known
            before reading. They are kept as bytes, since workers that count references to a list's items would copy all
            its memory.
        extractor: The feature extractor, with its policies.
        arguments: Of `read_ecg`, for all files: `rename_leads`, `leads`, `checksums`, and what formats do not contain.
        inspect: Whether to look for clipped leads and the like, for warnings.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        extractor: ECGFMFeatureExtractor,
        arguments: Mapping[str, Any] | None = None,
        inspect: bool = True,
    ):
        pickled = [pickle.dumps(tuple(map(row.get, FILE_COLUMNS))) for row in rows]
        self._bytes, self._ends = b"".join(pickled), np.cumsum([0, *map(len, pickled)])
        self._extractor = extractor
        self._arguments, self._inspect = dict(arguments or {}), inspect

    def __len__(self) -> int:
        return len(self._ends) - 1

    def groups(self, indices: Sequence[int]) -> Iterable[list[int]]:
        """Split indices into groups that one worker should read at a time."""
        return in_groups(indices, _READ_TOGETHER)

    def read(self, indices: Sequence[int]) -> list[ReadRecording]:
        """Read and preprocess recordings. One that cannot be read comes back with its `failure`."""
        return [self._read(index) for index in indices]

    def failed(self, index: int, reason: str) -> ReadRecording:
        """Return the recording as failed for this reason, without reading its file."""
        row = self._row(index)
        failed = failed_recording(index, row["recording_id"], row["patient_id"], reason, displayed(row["path"]))
        return replace(failed, stamp=self.stamps(index, index + 1)[0][1])

    def fingerprint(self) -> str:
        """Return a digest of the list of files and their arguments. No file is read; see [`stamps`] for content."""
        digest = hashlib.sha256(repr(sorted(self._arguments.items())).encode())
        for index in range(len(self)):
            digest.update(repr(tuple(self._row(index).values())).encode("utf-8", "backslashreplace"))
        return digest.hexdigest()

    def stamps(self, start: int, stop: int) -> list[tuple[str, str]]:
        """Return the id of each of these recordings with a text that changes with the content of its files."""
        rows = [self._row(index) for index in range(start, stop)]
        stamp_of = recording_stamps(os.fsdecode(row["path"]) for row in rows if row["path"] is not None)
        return [
            (row["recording_id"], "" if row["path"] is None else stamp_of[os.fsdecode(row["path"])]) for row in rows
        ]

    def paths(self) -> Iterator[str]:
        """Yield the file of each recording that has one."""
        for index in range(len(self)):
            path = self._row(index)["path"]
            if path is not None:
                yield os.fsdecode(path)

    def record(self, index: int) -> ECGRecord:
        """Read a recording as its file contains it. `ECGReadError` if it cannot be read, or is known to be unusable."""
        row = self._row(index)
        if row["failure"] is not None:
            raise ECGReadError(row["failure"])
        own = {name: row[f"_{name}"] for name in _ARGUMENTS if row[f"_{name}"] is not None}
        return read_with_defaults(os.fsdecode(row["path"]), **(self._arguments | own))

    def _row(self, index: int) -> dict[str, Any]:
        start, end = self._ends[index : index + 2]
        return dict(zip(FILE_COLUMNS, pickle.loads(self._bytes[start:end]), strict=True))

    def _read(self, index: int) -> ReadRecording:
        row = self._row(index)
        ids, path = (row["recording_id"], row["patient_id"]), displayed(row["path"])
        stamp = "" if row["path"] is None else recording_stamp(os.fsdecode(row["path"]))
        try:
            recording = prepare_record(index, *ids, self.record(index), self._extractor, inspect=self._inspect)
        # A damaged file may raise any error of a reader or its library. The other files must still be answered.
        except Exception as error:
            recording = failed_recording(index, *ids, error, path)
        return replace(recording, path=path, stamp=stamp)


class StoreSource:
    """
    The recordings of stores that `ecgfm prepare` wrote, read from their Parquet files one row group at a time. Unlike
    `load_prepared` this writes no uncompressed copy for random access.

    Args:
        stores: Their folders.
        extractor: The feature extractor, with its policies.
        split: Which split; all by default.

    Raises:
        `DataError`: not a store, an unfinished one, no such split, or several stores with equal recording ids.
    """

    def __init__(self, stores: Sequence[str | Path], extractor: ECGFMFeatureExtractor, split: str | None = None):
        self._extractor = extractor
        self.files: list[Path] = []
        for store in stores:
            found = store_files(store)
            check_footers(store, [path for paths in found.values() for path in paths])
            if split is not None and split not in found:
                raise DataError(f"{store} has no split {split!r}, only {', '.join(found)}")
            self.files += [path for name, paths in found.items() if split in (None, name) for path in paths]
        if len(stores) > 1:
            _check_unique_ids(self.files)
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

    def groups(self, indices: Sequence[int]) -> Iterable[list[int]]:
        """Split rising indices by row group."""
        rising = np.asarray(indices, dtype=np.int64)
        groups = np.searchsorted(self._first, rising, side="right")
        for group in np.split(rising, np.flatnonzero(np.diff(groups)) + 1):
            if len(group):
                yield group.tolist()

    def read(self, indices: Sequence[int]) -> list[ReadRecording]:
        """
        Read and preprocess recordings of one row group. One that cannot be read comes back with its `failure`.

        Raises:
            `DataError`: the file has changed since it was written.
        """
        group = self._group(indices[0])
        rows = self._rows(group, _STORE_COLUMNS)
        return [self._read(index, self._row(rows, index, group)) for index in indices]

    def record(self, index: int) -> ECGRecord:
        """Read a recording as its row contains it."""
        group = self._group(index)
        return record_from_row(self._row(self._rows(group, _STORE_COLUMNS), index, group))

    def failed(self, index: int, reason: str) -> ReadRecording:
        """Return the recording as failed for this reason, without reading its signal."""
        group = self._group(index)
        row = self._row(self._rows(group, ("recording_id", "patient_id", "path")), index, group)
        return failed_recording(index, row["recording_id"], row["patient_id"], reason, row["path"])

    def fingerprint(self) -> str:
        """Return a digest of the stores' content; see [`content_digest`]."""
        return content_digest(self.files)

    def stamps(self, start: int, stop: int) -> list[tuple[str, str]]:
        """Return an empty stamp for each recording: the fingerprint covers the content."""
        return [("", "")] * (stop - start)

    def _group(self, index: int) -> int:
        """Return the row group of a recording, counted over all files."""
        return int(np.searchsorted(self._first, index, side="right")) - 1

    def _path(self, group: int) -> Path:
        return self.files[self._groups[group, 0]]

    def _rows(self, group: int, columns: Sequence[str]) -> pa.Table:
        path = self._path(group)
        if self._open is None or self._open[0] != path:
            # All of the file: checksums of its pages do not cover their headers, nor columns that are not read.
            check_files(path.parent.parent, [path])
            self._open = path, pq.ParquetFile(path)
        return self._open[1].read_row_group(int(self._groups[group, 1]), columns=list(columns), use_threads=False)

    def _row(self, rows: pa.Table, index: int, group: int) -> dict[str, Any]:
        return rows.slice(index - int(self._first[group]), 1).to_pylist()[0]

    def _read(self, index: int, row: Mapping[str, Any]) -> ReadRecording:
        ids = row["recording_id"], row["patient_id"]
        try:
            # Warnings were reported when the store was made.
            return prepare_record(index, *ids, record_from_row(row), self._extractor, inspect=False)
        except Exception as error:  # as for files
            return failed_recording(index, *ids, error, row["path"])


class FolderSource:
    """
    The recordings of processed folders of fairseq-signals, whose segments are the model's input as they are.

    Args:
        folders: The folders.
        extractor: Whose leads, rate and length the segments must have.
        split: Which split; all by default.
        root: The folder of the segments, where it is not beside the manifests.

    Raises:
        `DataError`: damaged manifests or tables, no such split, equal recording ids.
    """

    def __init__(
        self,
        folders: Sequence[str | Path],
        extractor: ECGFMFeatureExtractor,
        split: str | None = None,
        root: str | None = None,
    ):
        from datasets import concatenate_datasets  # slow to import, and files do not need it

        self._extractor = extractor
        tables = []
        for path in folders:
            if split is not None and split not in (found := split_names(path)):
                raise DataError(f"{path} has no split {split!r}, only {', '.join(found)}")
            names = split_names(path) if split is None else (split,)
            folder = FairseqFolder(path, root=root)
            tables += [folder_rows(folder, name, check=False).select_columns(list(_OF_SEGMENTS)) for name in names]
        self._rows = concatenate_datasets(tables).with_format("arrow")
        counts = self._rows[:]["recording_id"].value_counts()
        if len(counts) < len(self._rows):
            repeated = counts.field("values")[int(np.argmax(counts.field("counts")))]
            raise DataError(
                f"recording {repeated} is in more than one split or folder: give --split, or run one by one"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def groups(self, indices: Sequence[int]) -> Iterable[list[int]]:
        """Split indices into groups that one worker should read at a time."""
        return in_groups(indices, _READ_TOGETHER)

    def read(self, indices: Sequence[int]) -> list[ReadRecording]:
        """Read recordings. One that cannot be read comes back with its `failure`."""
        return [self._read(index, row) for index, row in zip(indices, self._rows[indices].to_pylist(), strict=True)]

    def failed(self, index: int, reason: str) -> ReadRecording:
        """Return the recording as failed for this reason, without reading its segments."""
        row = self._row(index)
        failed = failed_recording(index, row["recording_id"], row["patient_id"], reason, row["path"])
        return replace(failed, stamp=_segment_stamp(row))

    def record(self, index: int) -> ECGRecord:
        """Return a recording in mV, by the mean and std in its segments' files."""
        return record_from_segments(self._row(index))

    def fingerprint(self) -> str:
        """Return a digest of the list of recordings. No segment is read; see [`stamps`] for content."""
        digest = hashlib.sha256()
        for batch in self._rows.iter(batch_size=10_000):
            for row in batch.to_pylist():
                names = [os.path.basename(file) for file in row[SEGMENT_FILES]]
                digest.update(repr((row["recording_id"], names)).encode("utf-8", "backslashreplace"))
        return digest.hexdigest()

    def stamps(self, start: int, stop: int) -> list[tuple[str, str]]:
        """Return the id of each of these recordings with a text that changes with the content of its segments."""
        rows = self._rows[start:stop].to_pylist()
        return [(row["recording_id"], _segment_stamp(row)) for row in rows]

    def paths(self) -> Iterator[str]:
        """Yield the file of each segment."""
        for batch in self._rows.iter(batch_size=10_000):
            for files in batch[SEGMENT_FILES].to_pylist():
                yield from files

    def _row(self, index: int) -> dict[str, Any]:
        return self._rows[[index]].to_pylist()[0]

    def _read(self, index: int, row: Mapping[str, Any]) -> ReadRecording:
        ids = row["recording_id"], row["patient_id"]
        stamp = _segment_stamp(row)
        try:
            segments = read_segments(row[SEGMENT_FILES], row, self._extractor)
        except Exception as error:  # as for files
            return replace(failed_recording(index, *ids, error, row["path"]), stamp=stamp)
        return ReadRecording(index, *ids, segments, path=row["path"], stamp=stamp)


def _segment_stamp(row: Mapping[str, Any]) -> str:
    stamp_of = recording_stamps(row[SEGMENT_FILES])
    return " ".join(stamp_of[file] for file in row[SEGMENT_FILES])


class DatasetSource:
    """The recordings of [`ModelInputs`] that have items, each with all of its items."""

    def __init__(self, inputs: "ModelInputs"):
        self._inputs = inputs
        self._rows, self._first = np.unique(inputs.recordings, return_index=True)
        self._end = np.append(self._first[1:], len(inputs))
        self._valid_samples = _valid_samples(inputs, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def groups(self, indices: Sequence[int]) -> Iterable[list[int]]:
        """Split indices into groups that one worker should read at a time."""
        return in_groups(indices, _READ_TOGETHER)

    def read(self, indices: Sequence[int]) -> list[ReadRecording]:
        """Read and preprocess recordings. The only warning is that most leads are empty."""
        items = self._inputs.__getitems__([i for index in indices for i in range(self._first[index], self._end[index])])
        found, start = [], 0
        for index in indices:
            own = items[start : start + self._end[index] - self._first[index]]
            start += len(own)
            segments = np.stack([item["input_values"] for item in own])[:, :, : self._valid_samples[index]]
            ids = own[0]["recording_id"], own[0]["patient_id"]
            warnings = (MOST_LEADS_EMPTY,) if 2 * segments.any(axis=(0, 2)).sum() < segments.shape[1] else ()
            found.append(ReadRecording(int(self._rows[index]), *ids, segments, warnings))
        return found

    def failed(self, index: int, reason: str) -> ReadRecording:
        """Return the recording as failed for this reason, without reading its signal."""
        row = self._inputs._rows.select_columns(["recording_id", "patient_id", "path"])[int(self._rows[index])]
        recording_id, patient_id, path = (row[name][0].as_py() for name in ("recording_id", "patient_id", "path"))
        return failed_recording(int(self._rows[index]), recording_id, patient_id, reason, path)


class PythonSource:
    """
    Recordings given in Python.

    Args:
        recordings: As the pipeline takes them: paths, dictionaries, records, rows of a store.
        extractor: The feature extractor.
        policies: In place of the extractor's own.
    """

    def __init__(
        self, recordings: Sequence[RecordingInput], extractor: ECGFMFeatureExtractor, policies: Mapping[str, str]
    ):
        self._recordings, self._extractor, self._policies = recordings, extractor, dict(policies)

    def __len__(self) -> int:
        return len(self._recordings)

    def groups(self, indices: Sequence[int]) -> Iterator[list[int]]:
        """Split indices into groups that one worker should read at a time."""
        return in_groups(indices, _READ_TOGETHER)

    def read(self, indices: Sequence[int]) -> list[ReadRecording]:
        """Read and preprocess recordings. One that cannot be read comes back with its `failure`."""
        return [self._read(index, self._recordings[index]) for index in indices]

    def failed(self, index: int, reason: str) -> ReadRecording:
        """Return the recording as failed for this reason."""
        return failed_recording(index, f"recording {index}", None, reason)

    def _read(self, index: int, given: RecordingInput) -> ReadRecording:
        name = f"recording {index}"
        try:
            if isinstance(given, str | os.PathLike):
                name = os.fspath(given)
            recording = as_recording(given)
            name = str(recording.get("recording") or name)
            prepared = self._extractor.prepare_recording(
                recording["signal"],
                recording["sampling_rate"],
                recording["lead_names"],
                recording.get("units"),
                name=name,
                inspect=False,
                **self._policies,
            )
        except (OSError, ValueError, TypeError) as error:
            return failed_recording(index, name, None, error)
        segments = prepared.segments[:, :, : prepared.valid_samples]
        return ReadRecording(index, name, None, segments, (*recording.get("warnings", ()), *prepared.warnings))


def displayed(path: bytes | None) -> str | None:
    """Return a path as text that can be written; file names need not be UTF-8."""
    return None if path is None else path.decode("utf-8", "backslashreplace")


def _check_unique_ids(files: Sequence[Path]) -> None:
    ids = pa.concat_tables(pq.read_table(path, columns=["recording_id"]) for path in files)["recording_id"]
    counts = ids.value_counts()
    if len(counts) < len(ids):
        repeated = counts.field("values")[int(np.argmax(counts.field("counts")))]
        raise DataError(f"several stores have recordings with the same id, such as {repeated}: run them one by one")


def _group_sizes(path: Path) -> list[int]:
    try:
        metadata = pq.read_metadata(path)
    except pa.ArrowException as error:
        raise DataError(f"{path} is damaged: {error}") from None
    return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


def _valid_samples(inputs: "ModelInputs", rows: np.ndarray) -> np.ndarray:
    """Return how many samples of a segment are not padding, (rows,)."""
    extractor = inputs._reader.feature_extractor
    columns = inputs._rows.select_columns(["num_samples", "sampling_rate"]).with_format("numpy")[:]
    lengths = [
        resampled_length(int(samples), float(rate), extractor.sampling_rate)
        for samples, rate in zip(columns["num_samples"][rows], columns["sampling_rate"][rows], strict=True)
    ]
    return np.minimum(np.array(lengths, dtype=np.int64), extractor.segment_samples)


__all__ = [
    "FILE_COLUMNS",
    "DatasetSource",
    "FileSource",
    "FolderSource",
    "PythonSource",
    "RecordingInput",
    "StoreSource",
    "displayed",
]
