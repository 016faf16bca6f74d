"""
HDF5 of public datasets: CODE-15% (Zenodo 4916206) and its relatives, and SPH.

CODE-15% has files of many exams, `exam_id` (n,) and `tracings` (n, 4096, 12) float32. CODE-test and SaMi-Trop have
`tracings` without `exam_id`; there an exam's id is its index. SPH (Shandong Provincial Hospital) has a file per
recording, `ecg` (12, n) of 16-bit floats, by its documentation in mV at 500 Hz in the order of `STANDARD_LEADS`.

Properties of CODE-15% that are not in its files: 400 Hz, the order of the leads (DI DII DIII AVR AVL AVF V1 to V6),
zeros at both ends of a shorter recording, and a last row that is no exam. The unit is less certain: its authors
multiply volts by 1000, which gives mV, but call that a scale of 1e-4 V. mV is the default of `units`. The model's input
is standardised, so the unit makes no difference to it.

Chunks are unpacked here and not by HDF5, which does not report two kinds of damage: a chunk that was never written
(its samples are read as zeros), and a chunk that unpacks to too few bytes (the rest is uninitialised memory).
"""

import itertools
import math
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..feature_extraction_ecgfm import STANDARD_LEADS
from .channels import Channels, record_of
from .record import ECGReadError, ECGRecord, missing_arguments, refuse_infinite, regular_file_size

_RATE, _SPH_RATE = 400.0, 500.0
_MOST_SAMPLES = 1 << 24  # of a lead
_LARGEST_CHUNK = 1 << 28  # bytes that one chunk of a dataset may unpack to
_MOST_EXAMS = 1 << 24
# HDF5's own filters and h5py's LZF. A file may name others, which HDF5 would look for among plug-ins.
_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000
_CHECKSUM_BYTES = 4


def read_hdf5(path: str, exam_id: int | None = None, units: str = "mV") -> Channels:
    """Read one exam of a CODE-15% file or its relatives, or the recording of an SPH file."""
    with _opened(path) as file:
        names = _names_in(path, file)
        if "ecg" in names and not names & {"tracings", "exam_id"}:
            if exam_id is not None:
                raise ECGReadError(f"{path}: found exam_id={exam_id} for a file of one recording, expected none")
            return _sph_channels(path, file, units)
        if exam_id is None and "tracings" in names:
            raise missing_arguments(path, "HDF5 (CODE-15% or a relative)", ["exam_id"])
    with opened_code_15(path, units) as exams:
        return exams.channels(exams.row_of(0 if exam_id is None else exam_id))


def exam_ids_in(path: str) -> list[int] | None:
    """Return the exams of a file of CODE-15% or its relatives, without a last row of zeros; None for other HDF5."""
    with _opened(path) as file:
        if "tracings" not in _names_in(path, file):
            return None
    with opened_code_15(path) as exams:
        return exams.exam_ids[: len(exams.exam_ids) - exams.ends_in_dummy].tolist()


def _names_in(path: str, file: Any) -> set[str]:
    try:
        return {name for name in ("ecg", "tracings", "exam_id") if name in file}
    except Exception as error:  # h5py meets damage with errors of several types
        raise ECGReadError(f"{path}: damaged HDF5 file ({type(error).__name__}: {error})") from error


def _sph_channels(path: str, file: Any, units: str) -> Channels:
    try:
        dataset = _dataset(path, file, "ecg")
        if dataset.ndim != 2 or dataset.shape[0] != len(STANDARD_LEADS) or dataset.dtype.kind != "f":
            raise ECGReadError(
                f"{path}: found ecg of shape {dataset.shape} and type {dataset.dtype}, expected (12, samples) of floats"
            )
        if not 1 <= dataset.shape[1] <= _MOST_SAMPLES:
            raise ECGReadError(f"{path}: found {dataset.shape[1]} samples, expected 1 to {_MOST_SAMPLES}")
        samples = _rows(path, dataset, 0, len(STANDARD_LEADS))
    except ECGReadError:
        raise
    except Exception as error:  # h5py meets damage with errors of several types
        raise ECGReadError(f"{path}: damaged HDF5 file ({type(error).__name__}: {error})") from error
    samples = samples.astype(np.float32 if samples.dtype.itemsize < 8 else np.float64)
    refuse_infinite(path, samples, STANDARD_LEADS)
    return _channels(path, None, samples, units, _SPH_RATE)


def _channels(path: str, recording_id: str | None, samples: np.ndarray, units: str, rate: float) -> Channels:
    leads = len(STANDARD_LEADS)
    return Channels(
        path=path,
        recording_id=recording_id,
        names=STANDARD_LEADS,
        samples=samples,
        gain=[1.0] * leads,
        baseline=[0.0] * leads,
        units=[units] * leads,
        rates=rate,
    )


def read_code_15(
    path: str | os.PathLike[str],
    units: str = "mV",
    on_error: Callable[[int, ECGReadError], None] | None = None,
) -> Iterator[ECGRecord]:
    """
    Iterate over the exams of a CODE-15% file, without the last row if it is all zeros.

    Args:
        path: one of `exams_part0.hdf5` to `exams_part17.hdf5`.
        units: unit of the samples, if it is not mV.
        on_error: called with the exam's id and the error of each exam that cannot be read. Without it the first such
            error is raised and ends the iteration. An error of the file as a whole is always raised.

    Returns:
        An iterator of records; `recording_id` is the exam's id, as text. The file stays open until it ends.
    """
    with opened_code_15(path, units) as file:
        last = len(file.exam_ids) - 1
        for row, exam_id in enumerate(file.exam_ids.tolist()):
            try:
                if row == last and file.ends_in_dummy:
                    return
                record = record_of(file.channels(row))
            except ECGReadError as error:
                if on_error is None:
                    raise
                on_error(exam_id, error)
                continue
            yield record


@contextmanager
def opened_code_15(path: str | os.PathLike[str], units: str = "mV") -> Iterator["Code15File"]:
    """
    Open a CODE-15% file once, for exams in any order.

        with opened_code_15(path) as file:
            records = [file.exam(exam_id) for exam_id in wanted]

    Args:
        path: one of `exams_part0.hdf5` to `exams_part17.hdf5`.
        units: unit of the samples, if it is not mV.

    Returns:
        A context manager of a [`Code15File`], which can be used until it ends.

    Raises:
        ECGReadError: the file is missing, damaged or of another kind, or h5py is not installed.
    """
    path = os.fsdecode(path)
    with _opened(path) as file:
        try:
            tracings = _dataset(path, file, "tracings")
            if "exam_id" in file:
                ids = _dataset(path, file, "exam_id")
                _check_shapes(path, ids, tracings)
                numbers = _rows(path, ids, 0, len(ids))
            else:
                numbers = np.arange(tracings.shape[0] if tracings.ndim else 0)
                _check_shapes(path, numbers, tracings)
        except ECGReadError:
            raise
        except Exception as error:  # h5py meets damage with errors of several types
            raise ECGReadError(f"{path}: damaged HDF5 file ({type(error).__name__}: {error})") from error
        yield Code15File(path, numbers, tracings, units)


@contextmanager
def _opened(path: str) -> Iterator[Any]:  # Any: h5py has no types
    regular_file_size(path)
    try:
        import h5py
    except ImportError as error:
        raise ECGReadError(
            f"{path}: reading HDF5 needs h5py: pip install 'ecgfm-hf[formats]'",
            "needs h5py: pip install 'ecgfm-hf[formats]'",
        ) from error
    try:
        file = h5py.File(path, "r")
    except Exception as error:  # OSError as a rule, but damage has other effects too
        raise ECGReadError(f"{path}: damaged HDF5 file ({error})") from error
    with file:
        yield file


class Code15File:
    """
    An open CODE-15% file (see [`opened_code_15`]).

    Attributes:
        path: the file.
        exam_ids: (n,) whole numbers, the exam of each row.
    """

    def __init__(self, path: str, exam_ids: np.ndarray, tracings: Any, units: str) -> None:  # Any: h5py has no types
        self.path, self.exam_ids = path, exam_ids
        self._tracings, self._units = tracings, units

    @property
    def ends_in_dummy(self) -> bool:
        """Return whether the last row is all zeros, or was never written, and so no exam. Reads that row."""
        return not self._samples(len(self.exam_ids) - 1).any()

    def exam(self, exam_id: int) -> ECGRecord:
        """Read one exam now. `ECGReadError` if it cannot be read or does not occur exactly once."""
        return record_of(self.channels(self.row_of(exam_id)))

    def row_of(self, exam_id: int) -> int:
        """Return the row of an exam. `ECGReadError` if it does not occur exactly once, or is no exam."""
        ids = self.exam_ids
        is_whole = isinstance(exam_id, int | np.integer) and not isinstance(exam_id, bool)
        rows = np.flatnonzero(ids == exam_id).tolist() if is_whole else []
        if len(rows) != 1:
            listed = f"{len(ids)} exams, {ids[0]} to {ids[-2] if len(ids) > 1 else ids[-1]}"
            raise ECGReadError(
                f"{self.path}: found exam_id {exam_id!r} {len(rows)} times, expected once; the file has {listed}"
            )
        if rows[0] == len(ids) - 1 and self.ends_in_dummy:
            raise ECGReadError(f"{self.path}: exam_id {exam_id} is the last row, all zeros, which is no exam")
        return int(rows[0])

    def _samples(self, row: int) -> np.ndarray:
        """Return (4096, 12) of one exam. Only the last row may never have been written."""
        try:
            return _rows(self.path, self._tracings, row, row + 1, may_be_unwritten=row == len(self.exam_ids) - 1)[0]
        except ECGReadError:
            raise
        except Exception as error:  # h5py meets damage with errors of several types
            raise ECGReadError(f"{self.path}: cannot read row {row} of tracings ({error})") from error

    def channels(self, row: int) -> Channels:
        """Read the exam in a row, without the zeros around it."""
        exam_id, samples = int(self.exam_ids[row]), self._samples(row)
        live = np.flatnonzero(samples.any(axis=1))  # NaN counts as a sample
        if not len(live):
            raise ECGReadError(f"{self.path}: exam {exam_id} is all zeros", "all zeros")
        samples = samples[live[0] : live[-1] + 1].T
        refuse_infinite(self.path, samples, STANDARD_LEADS, where=f"exam {exam_id}: ")
        return _channels(self.path, str(exam_id), np.ascontiguousarray(samples), self._units, _RATE)


def _dataset(path: str, file: Any, name: str) -> Any:
    """Return an open dataset that lies within the file and can be unpacked within bounds."""
    import h5py

    if name not in file:
        found = ", ".join(sorted(map(repr, list(file)[:10]))) or "nothing"
        raise ECGReadError(
            f"{path}: an HDF5 file of another kind; expected exam_id and tracings (CODE-15%), tracings (CODE-test, "
            f"SaMi-Trop) or ecg (SPH), found {found}"
        )
    dataset = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        raise ECGReadError(f"{path}: {name} is no dataset within the file itself")
    filters = _filters(dataset)
    if not set(filters) <= {_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF}:
        raise ECGReadError(f"{path}: {name} is stored with the HDF5 filters {filters}, which are not supported")
    if dataset.chunks and _chunk_bytes(dataset) > _LARGEST_CHUNK:
        raise ECGReadError(f"{path}: {name} has chunks of shape {dataset.chunks}, too large to read one exam")
    return dataset


def _check_shapes(path: str, ids: Any, tracings: Any) -> None:
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not 1 <= len(ids) <= _MOST_EXAMS:
        raise ECGReadError(f"{path}: found exam_id of shape {ids.shape} and type {ids.dtype}, expected whole numbers")
    expected = (len(ids), 4096, len(STANDARD_LEADS))
    if tracings.shape != expected or tracings.dtype.kind != "f" or tracings.dtype.itemsize not in (4, 8):
        raise ECGReadError(
            f"{path}: found tracings of shape {tracings.shape} and type {tracings.dtype}, expected {expected} of floats"
        )


# Chunks of a dataset


def _filters(dataset: Any) -> list[int]:
    settings = dataset.id.get_create_plist()
    return [settings.get_filter(index)[0] for index in range(settings.get_nfilters())]


def _chunk_bytes(dataset: Any) -> int:
    return math.prod(dataset.chunks) * dataset.dtype.itemsize


def _rows(path: str, dataset: Any, first: int, end: int, may_be_unwritten: bool = False) -> np.ndarray:
    """
    Return the rows `first` to `end` of a dataset, in the byte order of this machine.

    Raises:
        ECGReadError: a part of them was never written (all of them may be where `may_be_unwritten`, and are zeros), or
            a chunk does not unpack to its size.
    """
    rows = np.zeros((end - first, *dataset.shape[1:]), dataset.dtype.newbyteorder("="))
    if dataset.chunks is None:
        if dataset.id.get_storage_size() == rows.dtype.itemsize * math.prod(dataset.shape):
            rows[:] = dataset[first:end]
        elif not may_be_unwritten:
            raise ECGReadError(f"{path}: {dataset.name} was never written in full", "truncated")
        return rows
    steps, shape = dataset.chunks, dataset.shape
    corners = itertools.product(
        range(first - first % steps[0], end, steps[0]),
        *(range(0, size, step) for size, step in zip(shape[1:], steps[1:], strict=True)),
    )
    written = 0
    missing = None
    for corner in corners:
        chunk = _chunk(path, dataset, corner)
        if chunk is None:
            missing = corner
            continue
        written += 1
        low = [max(corner[0], first), *corner[1:]]
        high = [min(start + step, size) for start, step, size in zip(corner, steps, (end, *shape[1:]), strict=True)]
        inside = tuple(slice(a - start, b - start) for a, b, start in zip(low, high, corner, strict=True))
        rows[(slice(low[0] - first, high[0] - first), *map(slice, low[1:], high[1:]))] = chunk[inside]
    if missing is not None and (written or not may_be_unwritten):
        raise ECGReadError(f"{path}: the chunk of {dataset.name} at {missing} was never written", "truncated")
    return rows


def _chunk(path: str, dataset: Any, corner: tuple[int, ...]) -> np.ndarray | None:
    """Return a chunk in its shape, or None if it was never written."""
    info = dataset.id.get_chunk_info_by_coord(corner)
    if info.byte_offset is None:
        return None
    expected, filters = _chunk_bytes(dataset), _filters(dataset)
    where = f"{path}: the chunk of {dataset.name} at {corner}"
    if info.size > 2 * expected + 4096:  # no filter makes a chunk much larger
        raise ECGReadError(f"{where} has {info.size} bytes, expected {expected}")
    mask, stored = dataset.id.read_direct_chunk(corner)
    content: bytes | None = bytes(stored)
    for index, kind in reversed(list(enumerate(filters))):
        if mask >> index & 1 or content is None:  # a filter that was skipped for this chunk
            continue
        most = expected + _CHECKSUM_BYTES * filters[:index].count(_FLETCHER32)
        if kind == _DEFLATE:
            content = _inflated(content, most)
        elif kind == _FLETCHER32:
            content = _without_checksum(content)
        elif kind == _LZF and len(content) < most:
            content = _lzf(content, most)
        elif kind == _SHUFFLE:
            size = dataset.dtype.itemsize
            whole = len(content) - len(content) % size
            content = np.frombuffer(content[:whole], np.uint8).reshape(size, -1).T.tobytes() + content[whole:]
    if content is None or len(content) != expected:
        found = "damaged data" if content is None else f"{len(content)} bytes"
        raise ECGReadError(f"{where} unpacks to {found}, expected {expected} bytes")
    return np.frombuffer(content, dataset.dtype).reshape(dataset.chunks)


def _inflated(content: bytes, most: int) -> bytes | None:
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(content, most + 1)
    except zlib.error:
        return None
    return unpacked if unpacker.eof else None


def _without_checksum(content: bytes) -> bytes | None:
    """Return the content before its Fletcher-32 checksum, or None if they do not agree."""
    content, stored = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    words = np.frombuffer(content + b"\0" * (len(content) % 2), ">u2").astype(np.uint64)
    first = int(words.sum()) % 65535
    second = int((words * np.arange(len(words), 0, -1, dtype=np.uint64) % 65535).sum()) % 65535
    found = int.from_bytes(stored, "little")
    return content if (found & 0xFFFF) % 65535 == first and (found >> 16) % 65535 == second else None


def _lzf(content: bytes, most: int) -> bytes | None:
    """Unpack LZF: runs of bytes, and repetitions of what was unpacked before."""
    unpacked, at = bytearray(), 0
    try:
        while at < len(content) and len(unpacked) <= most:
            control = content[at]
            at += 1
            if control < 32:
                run = content[at : at + control + 1]
                if len(run) != control + 1:
                    return None
                unpacked += run
                at += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += content[at]
                at += 1
            start = len(unpacked) - ((control & 31) << 8) - content[at] - 1
            at += 1
            if start < 0:
                return None
            for index in range(start, start + length + 2):  # may reach into what it adds
                unpacked.append(unpacked[index])
    except IndexError:
        return None
    return bytes(unpacked)


__all__ = ["Code15File", "exam_ids_in", "opened_code_15", "read_code_15", "read_hdf5"]
