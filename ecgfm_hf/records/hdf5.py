"""CODE-15% (Zenodo 4916206): HDF5 files of many exams, `exam_id` (n,) and `tracings` (n, 4096, 12) float32.

Known of the dataset, and not in its files: 400 Hz, the order of the leads (DI DII DIII AVR AVL AVF V1 to V6), zeros at
both ends of a shorter recording, and a last row that is no exam. The unit is less well known: its authors say to
multiply volts by 1000, which makes it mV, and call that a scale of 1e-4 V, which would be another. mV is taken unless
`units` says otherwise; the model, whose input is standardised, sees no difference.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from ..feature_extraction_ecgfm import STANDARD_LEADS
from .record import ECGReadError, ECGRecord, regular_file_size

_RATE = 400.0
_DATASETS = ("exam_id", "tracings")
_LARGEST_CHUNK = 1 << 28  # bytes that one compressed piece of a dataset may unpack to
_MOST_EXAMS = 1 << 24
# Filters that HDF5 itself has. A file may name others, which would be looked for among plug-ins.
_OWN_FILTERS = {"1", "2", "3", "32000"}  # gzip, shuffle, checksum, lzf


def read_code_15_exam(path: str, exam_id: int, units: str = "mV") -> ECGRecord:
    """Read one exam of a CODE-15% file; `opened_code_15` and `read_code_15` are faster where many are wanted."""
    with opened_code_15(path, units) as file:
        return file.exam(exam_id)


@contextmanager
def opened_code_15(path: str | os.PathLike, units: str = "mV") -> Iterator["Code15File"]:
    """Open a CODE-15% file once, for exams in any order.

        with opened_code_15(path) as file:
            records = [file.exam(exam_id) for exam_id in wanted]

    Args:
        path: one of `exams_part0.hdf5` to `exams_part17.hdf5`.
        units: unit of the samples, if it is not mV.

    Returns:
        A context manager that gives a `Code15File`. It is of no use once the file is closed.

    Raises:
        ECGReadError: the file is missing, damaged or of another kind, or h5py is not installed.
    """
    path = os.fsdecode(path)
    with _opened(path) as (ids, tracings):
        yield Code15File(path, ids, tracings, units)


class Code15File:
    """An open CODE-15% file (see `opened_code_15`).

    Attributes:
        path: the file.
        exam_ids: (n,) whole numbers, the exam of each row.
    """

    def __init__(self, path: str, exam_ids: np.ndarray, tracings, units: str):
        self.path, self.exam_ids = path, exam_ids
        self._tracings, self._units = tracings, units

    @property
    def ends_in_dummy(self) -> bool:
        """Whether the last row is all zeros, and so no exam. Reads that row."""
        return not _row(self.path, self._tracings, len(self.exam_ids) - 1).any()

    def exam(self, exam_id: int) -> ECGRecord:
        """One exam, read from the file now. `ECGReadError` where it is not there exactly once or cannot be read."""
        ids = self.exam_ids
        rows = np.flatnonzero(ids == exam_id).tolist() if _is_whole(exam_id) else []
        if len(rows) != 1:
            there = f"{len(ids)} exams, {ids[0]} to {ids[-2] if len(ids) > 1 else ids[-1]}"
            raise ECGReadError(
                f"{self.path}: found exam_id {exam_id!r} {len(rows)} times, expected once; it has {there}"
            )
        samples = _row(self.path, self._tracings, rows[0])
        if rows[0] == len(ids) - 1 and not samples.any():
            raise ECGReadError(f"{self.path}: exam_id {exam_id} is the last row, all zeros, which is no exam")
        return _exam(self.path, int(ids[rows[0]]), samples, self._units)


def read_code_15(
    path: str | os.PathLike,
    units: str = "mV",
    on_error: Callable[[int, ECGReadError], None] | None = None,
) -> Iterator[ECGRecord]:
    """The exams of a CODE-15% file, one `ECGRecord` after another, without the last row if it is all zeros.

    Args:
        path: one of `exams_part0.hdf5` to `exams_part17.hdf5`.
        units: unit of the samples, if it is not mV.
        on_error: called with the exam's id and the error of each exam that cannot be read; without it, the first such
            error is raised and ends the iteration. An error of the file as a whole is always raised.

    Returns:
        An iterator; `recording_id` is the exam's id, as text. The file stays open until it ends.
    """
    path = os.fsdecode(path)
    with _opened(path) as (ids, tracings):
        for row, exam_id in enumerate(ids.tolist()):
            try:
                samples = _row(path, tracings, row)
                if row == len(ids) - 1 and not samples.any():
                    return
                record = _exam(path, exam_id, samples, units)
            except ECGReadError as error:
                if on_error is None:
                    raise
                on_error(exam_id, error)
                continue
            yield record


def _exam(path: str, exam_id: int, samples: np.ndarray, units: str) -> ECGRecord:
    live = np.flatnonzero(samples.any(axis=1))  # NaN counts as a sample
    if not len(live):
        raise ECGReadError(f"{path}: exam {exam_id} is all zeros")
    samples = samples[live[0] : live[-1] + 1].T
    infinite = np.isinf(samples).any(axis=1)
    if infinite.any():
        lead = STANDARD_LEADS[int(infinite.argmax())]
        raise ECGReadError(f"{path}: exam {exam_id}: lead {lead} has infinite samples")
    return ECGRecord(
        recording_id=str(exam_id),
        path=path,
        samples=np.ascontiguousarray(samples),
        gain=np.ones(len(STANDARD_LEADS)),
        baseline=np.zeros(len(STANDARD_LEADS)),
        units=(units,) * len(STANDARD_LEADS),
        sampling_rate=_RATE,
        lead_names=STANDARD_LEADS,
    )


def _row(path: str, tracings, row: int) -> np.ndarray:
    """(4096, 12) of one exam."""
    try:
        return tracings[row].astype(tracings.dtype.newbyteorder("="), copy=False)
    except Exception as error:  # h5py meets damage with errors of several types
        raise ECGReadError(f"{path}: cannot read row {row} of tracings ({error})") from error


@contextmanager
def _opened(path: str):
    """`exam_id` as an array and `tracings` as an open dataset, once both are known to be what they should be."""
    regular_file_size(path)
    try:
        import h5py
    except ImportError as error:
        raise ECGReadError(f"{path}: reading HDF5 needs h5py; pip install 'ecgfm-hf[formats]' has it") from error
    try:
        file = h5py.File(path, "r")
    except Exception as error:  # OSError as a rule, but damage has other effects too
        raise ECGReadError(f"{path}: damaged HDF5 file ({error})") from error
    with file:
        try:
            ids, tracings = (_dataset(path, file, name) for name in _DATASETS)
            _check_shapes(path, ids, tracings)
            numbers = ids[:]
        except ECGReadError:
            raise
        except Exception as error:
            raise ECGReadError(f"{path}: damaged HDF5 file ({type(error).__name__}: {error})") from error
        yield numbers, tracings


def _dataset(path: str, file, name: str):
    import h5py

    if name not in file:
        there = ", ".join(sorted(map(repr, list(file)[:10]))) or "nothing"
        raise ECGReadError(f"{path}: expected exam_id and tracings, as CODE-15% has them, found {there}")
    dataset = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        raise ECGReadError(f"{path}: {name} is no dataset within the file itself")
    filters = set(dataset._filters)
    if not filters <= {"gzip", "shuffle", "fletcher32", "lzf"} | _OWN_FILTERS:
        raise ECGReadError(f"{path}: {name} is stored with the filters {sorted(filters)}, which are not supported")
    if dataset.chunks and math.prod(dataset.chunks) * dataset.dtype.itemsize > _LARGEST_CHUNK:
        raise ECGReadError(f"{path}: {name} has chunks of shape {dataset.chunks}, too large to read one exam")
    return dataset


def _check_shapes(path: str, ids, tracings):
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not 1 <= len(ids) <= _MOST_EXAMS:
        raise ECGReadError(f"{path}: found exam_id of shape {ids.shape} and type {ids.dtype}, expected whole numbers")
    expected = (len(ids), 4096, len(STANDARD_LEADS))
    if tracings.shape != expected or tracings.dtype.kind != "f" or tracings.dtype.itemsize not in (4, 8):
        raise ECGReadError(
            f"{path}: found tracings of shape {tracings.shape} and type {tracings.dtype}, expected {expected} of floats"
        )


def _is_whole(value) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
