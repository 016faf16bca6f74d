"""Segments of fairseq-signals: MATLAB files of level 5, read by the pieces of the reader of recordings, and written."""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..feature_extraction_ecgfm import STANDARD_LEADS
from ..records import mat_reader
from ..records.errors import ECGReadError, read_bytes, regular_file_size

# A segment of 5 s takes 0.24 MB as the original writes it.
_LARGEST = 1 << 26
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
    size = regular_file_size(path)
    if size > _LARGEST:
        raise ECGReadError(f"{path}: {size} bytes, expected at most {_LARGEST} in a segment's file")
    content = read_bytes(path, size)
    found = mat_reader._variables(path, content)
    feats = mat_reader._matrix(path, found, "feats")
    if feats.shape[0] != len(STANDARD_LEADS):
        raise ECGReadError(f"{path}: found feats of shape {feats.shape}, expected ({len(STANDARD_LEADS)}, samples)")
    for name in ("mean", "std"):
        if name not in found:
            raise ECGReadError(f"{path}: no {name}, so it was not standardised; expected a segment's file")
    bad = ~np.isfinite(feats).all(axis=1)
    if bad.any():
        raise ECGReadError(f"{path}: lead {STANDARD_LEADS[int(bad.argmax())]} has samples that are no finite numbers")
    number = mat_reader._number(path, found, "segment_i") if "segment_i" in found else None
    identity = _identity(path, content)
    return Segment(
        np.ascontiguousarray(feats, dtype=np.float32),
        mat_reader._number(path, found, "curr_sample_rate"),
        identity.get("idx"),
        None if number is None else int(number),
        None if "patient_id" not in identity else str(identity["patient_id"]),
    )


def _identity(path: str, content: bytes) -> dict[str, int]:
    """`idx` and, in older files, `patient_id`, which the reader of recordings passes over."""
    order = "<" if content[126:128] == b"IM" else ">"
    found = {}
    for kind, data in mat_reader._elements(path, memoryview(content)[128:], order):
        if kind != _MATRIX:
            data = memoryview(mat_reader._unpacked(path, data, _LARGEST))
            _, data = next(mat_reader._elements(path, data, order))
        parts = []
        for part in mat_reader._elements(path, data, order):
            parts.append(part)
            if len(parts) == 3 and bytes(part[1]) not in (b"idx", b"patient_id"):
                break
        if len(parts) == 4:
            name, (stored, value) = bytes(parts[2][1]).decode(), parts[3]
            dtype = mat_reader._NUMBERS.get(stored)
            if dtype is None or len(value) != np.dtype(dtype).itemsize:
                raise ECGReadError(f"{path}: found {name} of {len(value)} bytes, expected one number")
            number = np.frombuffer(value, order + dtype)[0].item()
            if not math.isfinite(number) or number != int(number):
                raise ECGReadError(f"{path}: found {name} {number}, expected a whole number")
            found[name] = int(number)
    return found


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
