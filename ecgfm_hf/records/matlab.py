"""
MATLAB files of level 5: fairseq-signals and CPSC 2018, and the one parser of such files in this package.

fairseq-signals writes `feats` as (12, samples), always in the order of `STANDARD_LEADS`, at `curr_sample_rate` Hz.
Where it has standardised a recording it leaves `mean` and `std` (12, 1) beside it, from which the voltages are
restored. Their unit is not in the file: the caller gives it.

CPSC 2018 (China Physiological Signal Challenge) writes a struct `ECG` of `sex`, `age` and `data` (12, samples). That
these are in mV at 500 Hz, in the order of `STANDARD_LEADS`, is the dataset's documentation.

Why a parser of our own, and not scipy's: a damaged size in a file must not decide how much memory is taken, and only
real matrices of numbers are needed. Element layout: MAT-File Format, The MathWorks, "Level 5 MAT-File Format".
"""

import math
import zlib
from collections.abc import Collection, Iterator, Mapping
from typing import Literal

import numpy as np

from ..feature_extraction_ecgfm import STANDARD_LEADS
from .channels import Channels
from .record import ECGReadError, missing_arguments, read_whole_file, refuse_infinite

_LARGEST = 1 << 26  # bytes of a file, and of all that its compressed parts unpack to
_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
# Storage types of the numbers in a file, by their number there.
_NUMBERS = {16: "u1", 1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_DOUBLE_CLASS, _SINGLE_CLASS, _UINT64_CLASS = 6, 7, 15  # numeric classes lie between; others are text, cells, ...
_COMPLEX = 0x0800
# `org_sample_rate`, `idx` and the labels, ages and patients of older files stay unread.
_OF_A_RECORDING = ("feats", "curr_sample_rate", "curr_sample_size", "mean", "std", "segment_i")
_OF_CPSC = ("ECG.data", "ECG.sex", "ECG.age")
_CPSC_RATE, _OLDEST = 500.0, 150
_STRUCT_CLASS, _TEXT_CLASS = 2, 4

_SMALLEST_STD = 1e-12  # below it a lead was constant, and the division by std left nothing to restore


def read_mat_recording(path: str, units: str | None = None) -> Channels:
    """
    Read a recording of fairseq-signals (`feats`) or of CPSC 2018 (`ECG`); the variables in the file decide which.

    Raises:
        ECGReadError: the file is damaged, has neither, or is of fairseq-signals and `units` is not given.
    """
    variables = read_mat(path, (*_OF_A_RECORDING, *_OF_CPSC))
    if "ECG.data" in variables and "feats" not in variables:
        return _cpsc_channels(path, variables, units)
    if "feats" not in variables:
        found = ", ".join(sorted(variables)) or "none of the variables of either"
        raise ECGReadError(
            f"{path}: a MATLAB file without feats (fairseq-signals) or ECG (CPSC 2018), found {found}; give other data "
            "as .npy or CSV, with sampling rate, unit and lead names"
        )
    if units is None:
        raise missing_arguments(path, "fairseq-signals .mat", ["units"])
    return read_fairseq_mat(path, units)


def _cpsc_channels(path: str, variables: Mapping[str, np.ndarray], units: str | None) -> Channels:
    data = variables["ECG.data"]
    if data.shape[0] != len(STANDARD_LEADS):
        raise ECGReadError(f"{path}: found ECG.data of shape {data.shape}, expected ({len(STANDARD_LEADS)}, samples)")
    samples = _stored(path, data)
    text = bytes(variables["ECG.sex"].astype(np.uint8)).decode("latin-1").lower() if "ECG.sex" in variables else ""
    age = variables["ECG.age"].ravel() if "ECG.age" in variables else np.empty(0)
    return Channels(
        path=path,
        names=STANDARD_LEADS,
        samples=samples,
        gain=[1.0] * len(STANDARD_LEADS),
        baseline=[0.0] * len(STANDARD_LEADS),
        units=[units or "mV"] * len(STANDARD_LEADS),
        rates=_CPSC_RATE,
        age=float(age[0]) if age.size == 1 and 0 <= age[0] <= _OLDEST else None,
        sex={"male": "M", "female": "F"}.get(text),
    )


def read_fairseq_mat(path: str, units: str) -> Channels:
    """
    Read a recording, or a segment of one, as fairseq-signals stores it; `units` is the unit before standardising.

    The record of a standardised file has the gain and baseline that undo the standardising, so that `signal` is in mV
    either way. A segment is a recording of its own here, with the mean and std of the recording that it comes from.
    """
    variables = read_mat(path, _OF_A_RECORDING)
    feats = feats_of(path, variables)
    leads = len(STANDARD_LEADS)
    if "curr_sample_size" in variables:
        declared = number_of(path, variables, "curr_sample_size")
        if declared != feats.shape[1]:
            raise ECGReadError(
                f"{path}: found {feats.shape[1]} samples, expected {declared:g} by curr_sample_size", "truncated"
            )
    gain, baseline = np.ones(leads), np.zeros(leads)
    if "mean" in variables or "std" in variables:
        mean, std = (_per_lead(path, variables, name) for name in ("mean", "std"))
        gain, baseline = _undo_standardising(path, feats, mean, std)
    elif "segment_i" in variables or _looks_standardised(feats):
        raise ECGReadError(f"{path}: standardised, or a segment, without mean and std: its voltages cannot be restored")
    return Channels(
        path=path,
        names=STANDARD_LEADS,
        samples=_stored(path, feats),
        gain=gain,
        baseline=baseline,
        units=(units,) * leads,
        rates=number_of(path, variables, "curr_sample_rate"),
    )


def feats_of(path: str, variables: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return `feats` of [`read_mat`], (12, samples). `ECGReadError` if it is missing or has another shape."""
    feats = _variable(path, variables, "feats")
    if feats.shape[0] != len(STANDARD_LEADS):
        raise ECGReadError(
            f"{path}: found feats of shape {feats.shape}, expected ({len(STANDARD_LEADS)}, samples), one row per lead"
        )
    return feats


def number_of(path: str, variables: Mapping[str, np.ndarray], name: str) -> float:
    """Return a variable of [`read_mat`] that is one finite number. `ECGReadError` if it is missing or is not one."""
    value = _variable(path, variables, name)
    if value.size != 1 or not math.isfinite(value.item()):
        raise ECGReadError(f"{path}: found {name} of shape {value.shape}, expected one finite number")
    return float(value.item())


def _looks_standardised(feats: np.ndarray) -> bool:
    if not np.isfinite(feats).all():
        return False
    mean, std = feats.mean(axis=1, dtype=np.float64), feats.std(axis=1, dtype=np.float64)
    live = std > _SMALLEST_STD
    return bool(live.any() and (np.abs(mean[live]) < 1e-3).all() and (np.abs(std[live] - 1) < 1e-3).all())


def _undo_standardising(
    path: str, feats: np.ndarray, mean: np.ndarray, std: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gain and baseline with which `(feats - baseline) / gain` is the x of `feats = (x - mean) / std`."""
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
        refuse_infinite(path, feats, STANDARD_LEADS)
        return feats
    small = feats.dtype.itemsize < 2 or feats.dtype == np.int16
    if feats.dtype.itemsize > 4 or feats.dtype == np.uint32:
        raise ECGReadError(f"{path}: found feats of type {feats.dtype}, expected floats or integers of up to 32 bits")
    return feats.astype(np.int16 if small else np.int32)


def _variable(path: str, variables: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in variables:
        found = ", ".join(sorted(variables)) or "none of its variables"
        raise ECGReadError(f"{path}: no {name}, which a fairseq-signals file has; found {found}")
    return variables[name]


def _per_lead(path: str, variables: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    value = _variable(path, variables, name)
    if value.size != len(STANDARD_LEADS):
        raise ECGReadError(f"{path}: found {name} of shape {value.shape}, expected {len(STANDARD_LEADS)} numbers")
    return value.ravel().astype(np.float64)


# The file's elements


def read_mat(path: str, names: Collection[str]) -> dict[str, np.ndarray]:
    """
    Read variables of a MATLAB file of level 5; others stay unread.

    Args:
        path: the file, of at most 64 MiB, compressed or not.
        names: the variables to read, each a matrix of real numbers; `ECG.data` is field `data` of the struct `ECG`.

    Returns:
        The matrices (two dimensions, in the byte order of this machine) of those names that the file has.

    Raises:
        ECGReadError: the file is damaged, truncated or too large, or one of these variables is something else.
    """
    content = read_whole_file(path, _LARGEST, "MATLAB")
    order = {b"IM": "<", b"MI": ">"}.get(content[126:_HEADER_BYTES])
    if order is None:
        raise ECGReadError(f"{path}: damaged MATLAB header, found {content[126:_HEADER_BYTES]!r}, expected IM or MI")
    found: dict[str, np.ndarray] = {}
    left = _LARGEST
    for kind, data in _elements(path, memoryview(content)[_HEADER_BYTES:], order):
        if kind == _COMPRESSED:
            unpacked = _unpacked(path, data, left)
            left -= len(unpacked)
            kind, data = next(_elements(path, memoryview(unpacked), order), (0, memoryview(b"")))
        if kind != _MATRIX:
            raise ECGReadError(f"{path}: damaged MATLAB file, found an element of type {kind}, expected a matrix")
        name, parts = _named_parts(path, data, order)
        if name in found:
            raise ECGReadError(f"{path}: damaged MATLAB file, {name} occurs twice")
        if name in names:
            found[name] = _matrix(path, name, parts, order)
        elif any(wanted.startswith(f"{name}.") for wanted in names):
            for field, part in _fields(path, name, parts, order):
                if f"{name}.{field}" in names:
                    found[f"{name}.{field}"] = _matrix(path, field, _named_parts(path, part, order)[1], order)
    return found


def _fields(path: str, name: str, parts: list[tuple[int, memoryview]], order: str) -> Iterator[tuple[str, memoryview]]:
    """Yield the fields of a struct, one that is no array of structs."""
    flags = int(np.frombuffer(parts[0][1], f"{order}u4")[0])
    if flags & 0xFF != _STRUCT_CLASS or len(parts) < 5 or bytes(parts[1][1]) != np.ones(2, f"{order}i4").tobytes():
        return
    width = int(np.frombuffer(parts[3][1], f"{order}i4")[0]) if len(parts[3][1]) == 4 else 0
    titles = bytes(parts[4][1])
    if width < 1 or len(titles) % width or len(titles) // width != len(parts) - 5:
        raise ECGReadError(f"{path}: damaged MATLAB file, the struct {name} has other fields than it declares")
    for number, (kind, content) in enumerate(parts[5:]):
        if kind == _MATRIX:
            yield titles[number * width : (number + 1) * width].split(b"\0")[0].decode("latin-1"), content


def _unpacked(path: str, data: memoryview, most: int) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(data, most + 1)
    except zlib.error as error:
        raise ECGReadError(f"{path}: damaged MATLAB file ({error})") from error
    if len(unpacked) > most:
        raise ECGReadError(f"{path}: unpacks to more than {_LARGEST} bytes", "too large")
    if not unpacker.eof:
        raise ECGReadError(f"{path}: truncated, a compressed part does not end", "truncated")
    return unpacked


def _elements(path: str, data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yield type and content of the elements in `data`, one after another."""
    endian: Literal["little", "big"] = "little" if order == "<" else "big"
    at = 0
    while at < len(data):
        if len(data) - at < 8:
            raise ECGReadError(f"{path}: truncated, {len(data) - at} bytes are too few for an element", "truncated")
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
            raise ECGReadError(f"{path}: truncated, an element of {size} bytes goes beyond the end", "truncated")
        yield kind, data[start : start + size]
        at = end


def _named_parts(path: str, data: memoryview, order: str) -> tuple[str, list[tuple[int, memoryview]]]:
    """Return the name of a matrix, and its elements: flags, shape, name, values."""
    parts = list(_elements(path, data, order))
    if len(parts) < 3 or len(parts[0][1]) != 8:
        raise ECGReadError(f"{path}: damaged MATLAB file, a matrix without kind, shape and name")
    return bytes(parts[2][1]).decode("latin-1"), parts


def _matrix(path: str, name: str, parts: list[tuple[int, memoryview]], order: str) -> np.ndarray:
    flags = int(np.frombuffer(parts[0][1], f"{order}u4")[0])
    if (
        not (_DOUBLE_CLASS <= flags & 0xFF <= _UINT64_CLASS or (name == "sex" and flags & 0xFF == _TEXT_CLASS))
        or flags & _COMPLEX
        or len(parts) != 4
    ):
        raise ECGReadError(f"{path}: {name} is no matrix of real numbers")
    if parts[1][0] != 5 or len(parts[1][1]) != 8:
        raise ECGReadError(f"{path}: {name} is no matrix of two dimensions")
    shape = tuple(np.frombuffer(parts[1][1], f"{order}i4").tolist())
    kind, stored = parts[3]
    dtype = np.dtype(order + _NUMBERS[kind]) if kind in _NUMBERS else None
    if dtype is None or min(shape) < 1 or math.prod(shape) * dtype.itemsize != len(stored):
        raise ECGReadError(f"{path}: {name} has shape {shape}, which does not fit its {len(stored)} bytes")
    values = np.frombuffer(stored, dtype).reshape(shape, order="F")
    # A double whose values are whole numbers may be stored in fewer bytes, and is a double all the same.
    wide: dict[int, np.dtype] = {_DOUBLE_CLASS: np.dtype("f8"), _SINGLE_CLASS: np.dtype("f4")}
    return np.ascontiguousarray(values, dtype=wide.get(flags & 0xFF, dtype.newbyteorder("=")))
