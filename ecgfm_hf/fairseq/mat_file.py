"""Segments of fairseq-signals: MATLAB files of level 5, read by the pieces of the reader of recordings, and written."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..feature_extraction_ecgfm import STANDARD_LEADS
from ..records.mat import feats_of, number_of, read_mat
from ..records.record import ECGReadError

# `patient_id` is in older files only.
_VARIABLES = ("feats", "curr_sample_rate", "mean", "std", "segment_i", "idx", "patient_id")
_TEXT = b"MATLAB 5.0 MAT-file, a segment in the format of fairseq-signals"
_INT32, _UINT32, _INT8, _DOUBLE, _INT64, _MATRIX = 5, 6, 1, 9, 12, 14
_CLASSES = {"f8": (6, _DOUBLE), "i8": (14, _INT64)}


class Segment(NamedTuple):
    """
    What a segment's file holds.

    `values` (12, samples) float32, standardised as the file has them; `sampling_rate` in Hz; `idx` the recording's row
    in `y.npy`, `number` the segment's place in its recording, `patient_id`: None where the file has none.
    """

    values: np.ndarray
    sampling_rate: float
    idx: int | None
    number: int | None
    patient_id: str | None


def read_segment(path: str) -> Segment:
    """
    Read a standardised segment. Its values are the model's input: they must not be standardised again.

    Raises:
        `ECGReadError`: missing or damaged, not 12 leads, without the mean and deviation that standardising leaves, with
        samples that are no numbers.
    """
    variables = read_mat(path, _VARIABLES)
    feats = feats_of(path, variables)
    for name in ("mean", "std"):
        if name not in variables:
            raise ECGReadError(f"{path}: no {name}, so it was not standardised; expected a segment's file")
    bad = ~np.isfinite(feats).all(axis=1)
    if bad.any():
        raise ECGReadError(f"{path}: lead {STANDARD_LEADS[int(bad.argmax())]} has samples that are no finite numbers")
    patient = _whole_number(path, variables, "patient_id")
    return Segment(
        np.ascontiguousarray(feats, dtype=np.float32),
        number_of(path, variables, "curr_sample_rate"),
        _whole_number(path, variables, "idx"),
        _whole_number(path, variables, "segment_i"),
        None if patient is None else str(patient),
    )


def _whole_number(path: str, variables: Mapping[str, np.ndarray], name: str) -> int | None:
    if name not in variables:
        return None
    number = number_of(path, variables, name)
    if number != int(number):
        raise ECGReadError(f"{path}: found {name} {number}, expected a whole number")
    return int(number)


def write_mat(path: str | Path, variables: Mapping[str, np.ndarray]) -> None:
    """
    Write matrices of float64 or int64 as an uncompressed level 5 file; the same values give the same bytes.

    Args:
        path (`str` or `Path`)
        variables (mapping of `str` to `np.ndarray` of two dimensions)
    """
    with open(path, "wb") as file:
        file.write(_TEXT.ljust(124) + struct.pack("<H2s", 0x0100, b"IM"))
        for name, values in variables.items():
            kind, stored = _CLASSES[values.dtype.str.lstrip("<>|=")]
            parts = _element(_UINT32, struct.pack("<II", kind, 0))
            parts += _element(_INT32, struct.pack("<ii", *values.shape))
            parts += _element(_INT8, name.encode("ascii"))
            parts += _element(stored, values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes(order="F"))
            file.write(_element(_MATRIX, parts))


def _element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)
