"""Recordings of fairseq-signals: MATLAB files (level 5) with the matrix `feats` and what was done to it.

Known of the format, and not guessed: fairseq-signals writes `feats` as (12, samples), always in the order of
`STANDARD_LEADS`, at `curr_sample_rate` Hz. Where it has standardised a recording it leaves `mean` and `std` (12, 1)
beside it, from which the voltages come back. Not in the file: their unit, which the caller has to say.

The few kinds of element that such a file has are parsed here rather than by scipy, because a damaged size must not
decide how much memory is taken. Element layout: MAT-File Format, The MathWorks, "Level 5 MAT-File Format".
"""

import math
import os
import zlib

import numpy as np

from ..feature_extraction_ecgfm import STANDARD_LEADS
from .errors import ECGReadError, read_bytes, regular_file_size
from .record import ECGRecord

_LARGEST = 1 << 26  # bytes of a file, and of all that its compressed parts unpack to
_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
# Storage types of the numbers in a file, by their number there.
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_DOUBLE_CLASS, _UINT64_CLASS = 6, 15  # the numeric classes lie between; others are text, cells, structures
_COMPLEX = 0x0800
# `org_sample_rate`, `idx` and the labels, ages and patients of older files are left unread.
_WANTED = ("feats", "curr_sample_rate", "curr_sample_size", "mean", "std", "segment_i")

_SMALLEST_STD = 1e-12  # below it a lead was constant, and dividing by this number left nothing to recover


def read_fairseq_mat(path: str, units: str) -> ECGRecord:
    """Read a recording, or a segment of one, as fairseq-signals stores it; `units` is the unit before standardising.

    A standardised file comes with the gain and baseline that undo it, so that `signal` is in mV either way. A segment
    is a recording of its own here: its mean and deviation are those of the recording that it was cut from.
    """
    size = regular_file_size(path)
    if size > _LARGEST:
        raise ECGReadError(f"{path}: {size} bytes, expected at most {_LARGEST} in a fairseq-signals file")
    found = _variables(path, read_bytes(path, size))
    feats = _matrix(path, found, "feats")
    leads = len(STANDARD_LEADS)
    if feats.shape[0] != leads:
        raise ECGReadError(f"{path}: found feats of shape {feats.shape}, expected ({leads}, samples), one row a lead")
    if "curr_sample_size" in found and _number(path, found, "curr_sample_size") != feats.shape[1]:
        declared = _number(path, found, "curr_sample_size")
        raise ECGReadError(f"{path}: found {feats.shape[1]} samples, the file says {declared:g}")
    gain, baseline = np.ones(leads), np.zeros(leads)
    if "mean" in found or "std" in found:
        gain, baseline = _undo_standardising(path, feats, *(_per_lead(path, found, name) for name in ("mean", "std")))
    elif "segment_i" in found or _looks_standardised(feats):
        raise ECGReadError(f"{path}: standardised, or a segment, without mean and std, so its voltages cannot be told")
    return ECGRecord(
        recording_id=os.path.splitext(os.path.basename(path))[0],
        path=path,
        samples=_stored(path, feats),
        gain=gain,
        baseline=baseline,
        units=(units,) * leads,
        sampling_rate=_number(path, found, "curr_sample_rate"),
        lead_names=STANDARD_LEADS,
    )


def _looks_standardised(feats: np.ndarray) -> bool:
    if not np.isfinite(feats).all():
        return False
    mean, std = feats.mean(axis=1, dtype=np.float64), feats.std(axis=1, dtype=np.float64)
    live = std > _SMALLEST_STD
    return bool(live.any() and (np.abs(mean[live]) < 1e-3).all() and (np.abs(std[live] - 1) < 1e-3).all())


def _undo_standardising(path: str, feats: np.ndarray, mean: np.ndarray, std: np.ndarray):
    """Gain and baseline with which `(feats - baseline) / gain` is what `feats = (x - mean) / std` was made from."""
    gain, baseline = np.ones(len(feats)), np.zeros(len(feats))
    for row, (name, middle, deviation) in enumerate(zip(STANDARD_LEADS, mean, std, strict=True)):
        if not math.isfinite(middle) or not 0 <= deviation < math.inf:
            raise ECGReadError(f"{path}: lead {name} has mean {middle:g} and std {deviation:g}, which give no voltage")
        if deviation > _SMALLEST_STD:
            gain[row], baseline[row] = 1 / deviation, -middle / deviation
            continue
        finite = feats[row][np.isfinite(feats[row])]
        if len(finite) and np.ptp(finite):
            raise ECGReadError(f"{path}: lead {name} varies although its std is {deviation:g}")
        baseline[row] = (finite[0] if len(finite) else 0.0) - middle  # a constant lead, at its mean
    return gain, baseline


def _stored(path: str, feats: np.ndarray) -> np.ndarray:
    if feats.dtype.kind == "f":
        infinite = np.isinf(feats).any(axis=1)
        if infinite.any():
            raise ECGReadError(f"{path}: lead {STANDARD_LEADS[int(infinite.argmax())]} has infinite samples")
        return feats
    small = feats.dtype.itemsize < 2 or feats.dtype == np.int16
    if feats.dtype.itemsize > 4 or feats.dtype == np.uint32:
        raise ECGReadError(f"{path}: found feats of type {feats.dtype}, expected floats or integers of up to 32 bits")
    return feats.astype(np.int16 if small else np.int32)


def _matrix(path: str, found: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in found:
        there = ", ".join(sorted(found)) or "nothing of it"
        raise ECGReadError(f"{path}: no {name}, which a fairseq-signals file has; found {there}")
    return found[name]


def _number(path: str, found: dict[str, np.ndarray], name: str) -> float:
    value = _matrix(path, found, name)
    if value.size != 1 or not math.isfinite(value.item()):
        raise ECGReadError(f"{path}: found {name} of shape {value.shape}, expected one number")
    return float(value.item())


def _per_lead(path: str, found: dict[str, np.ndarray], name: str) -> np.ndarray:
    value = _matrix(path, found, name)
    if value.size != len(STANDARD_LEADS):
        raise ECGReadError(f"{path}: found {name} of shape {value.shape}, expected {len(STANDARD_LEADS)} numbers")
    return value.ravel().astype(np.float64)


# The file's elements


def _variables(path: str, content: bytes) -> dict[str, np.ndarray]:
    """The wanted variables of a level 5 file, as matrices."""
    order = {b"IM": "<", b"MI": ">"}.get(content[126:_HEADER_BYTES])
    if order is None:
        raise ECGReadError(f"{path}: damaged MATLAB header, its byte order is neither IM nor MI")
    found: dict[str, np.ndarray] = {}
    left = _LARGEST
    for kind, data in _elements(path, memoryview(content)[_HEADER_BYTES:], order):
        if kind == _COMPRESSED:
            unpacked = _unpacked(path, data, left)
            left -= len(unpacked)
            kind, data = next(_elements(path, memoryview(unpacked), order), (0, memoryview(b"")))
        if kind != _MATRIX:
            raise ECGReadError(f"{path}: damaged MATLAB file, found an element of type {kind}, expected a matrix")
        name, values = _array(path, data, order)
        if name in found:
            raise ECGReadError(f"{path}: damaged MATLAB file, {name} is there twice")
        if values is not None:
            found[name] = values
    return found


def _unpacked(path: str, data: memoryview, most: int) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(data, most + 1)
    except zlib.error as error:
        raise ECGReadError(f"{path}: damaged MATLAB file ({error})") from error
    if len(unpacked) > most:
        raise ECGReadError(f"{path}: unpacks to more than {_LARGEST} bytes")
    if not unpacker.eof:
        raise ECGReadError(f"{path}: truncated, a compressed part does not end")
    return unpacked


def _elements(path: str, data: memoryview, order: str):
    """(type, content) of the elements that follow one another in `data`."""
    endian = "little" if order == "<" else "big"
    at = 0
    while at < len(data):
        if len(data) - at < 8:
            raise ECGReadError(f"{path}: truncated, {len(data) - at} bytes are too few for an element")
        kind, size = (int.from_bytes(data[at + i : at + i + 4], endian) for i in (0, 4))
        if kind >> 16:  # a small element: four bytes of content beside its type and size
            kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
            if size > 4:
                raise ECGReadError(f"{path}: damaged MATLAB file, a small element of {size} bytes")
        else:
            start = at + 8
            # Everything but compressed data is padded to 8 bytes.
            end = start + (size if kind == _COMPRESSED else size + -size % 8)
        if start + size > len(data):
            raise ECGReadError(f"{path}: truncated, an element of {size} bytes goes beyond the end")
        yield kind, data[start : start + size]
        at = end


def _array(path: str, data: memoryview, order: str) -> tuple[str, np.ndarray | None]:
    """Name and values of a matrix; no values if it is not wanted."""
    parts = list(_elements(path, data, order))
    if len(parts) < 3 or len(parts[0][1]) != 8:
        raise ECGReadError(f"{path}: damaged MATLAB file, a matrix without kind, shape and name")
    name = bytes(parts[2][1]).decode("latin-1")
    if name not in _WANTED:
        return name, None
    flags = int(np.frombuffer(parts[0][1], f"{order}u4")[0])
    if not _DOUBLE_CLASS <= flags & 0xFF <= _UINT64_CLASS or flags & _COMPLEX or len(parts) != 4:
        raise ECGReadError(f"{path}: {name} is no matrix of real numbers")
    if parts[1][0] != 5 or len(parts[1][1]) != 8:
        raise ECGReadError(f"{path}: {name} is no matrix of two dimensions")
    shape = tuple(np.frombuffer(parts[1][1], f"{order}i4").tolist())
    kind, stored = parts[3]
    dtype = np.dtype(order + _NUMBERS[kind]) if kind in _NUMBERS else None
    if dtype is None or min(shape) < 1 or math.prod(shape) * dtype.itemsize != len(stored):
        raise ECGReadError(f"{path}: {name} has shape {shape}, which is not what its {len(stored)} bytes hold")
    values = np.frombuffer(stored, dtype).reshape(shape, order="F")
    return name, np.ascontiguousarray(values, dtype=_class_type(flags & 0xFF, dtype))


def _class_type(class_: int, stored: np.dtype) -> np.dtype:
    # A double whose values are whole numbers may be stored in fewer bytes, and is a double all the same.
    return {6: np.dtype("f8"), 7: np.dtype("f4")}.get(class_, stored.newbyteorder("="))
