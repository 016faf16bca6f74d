"""
Readers of CSV, TSV and NumPy's `.npy`, samples without sampling rate and unit, and of the CSV that watches export.

A CSV or TSV has a column a lead, whose names are in its first line or given by the caller; an `.npy` file has a row a
lead, and the caller names them. Which of two dimensions is time is never guessed from their lengths.
"""

import csv
import io
import math
import os
import re
from array import array
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np

from ..feature_extraction_ecgfm import canonical_lead_name
from .channels import Channels
from .record import (
    ECGReadError,
    file_stem,
    missing_arguments,
    read_bytes,
    read_whole_file,
    refuse_infinite,
    regular_file_size,
)

_LARGEST_TEXT, _LARGEST_ARRAY = 1 << 26, 1 << 29
_LONGEST_NUMBER = 100  # characters
_LONGEST_NPY_HEADER = 1 << 14  # bytes
# What `.npy` files hold, by kind and bytes, and the type of the record. The values of wider integers are checked.
_STORED = {"i1": "i2", "u1": "i2", "i2": "i2", "u2": "i4", "i4": "i4", "u4": "i8", "i8": "i8", "u8": "u8"}
_STORED |= {"f2": "f4", "f4": "f4", "f8": "f8"}


def read_text_table(
    path: str, sampling_rate: float, units: str | Sequence[str], lead_names: Sequence[str] | None = None
) -> Channels:
    """
    Read a CSV or TSV. An empty field is a missing sample.

    Every column must be a lead; if a table has others too (a time, a number), `lead_names` selects the leads. If the
    first line has numbers, `lead_names` names all columns, in order.
    """
    separator = "\t" if os.path.splitext(path)[1].lower() == ".tsv" else ","
    try:
        text = read_whole_file(path, _LARGEST_TEXT, "CSV or TSV").decode("utf-8-sig")
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        header = [name.strip() for name in next(rows, [])]
        if not header:
            raise ECGReadError(f"{path}: the first line is empty, expected the names of the leads", "lead names")
        values = array("d")
        if len(header) > 2 and header in ([str(start + i) for i in range(len(header))] for start in (0, 1)):
            raise ECGReadError(
                f"{path}: the first line counts the columns ({', '.join(header[:3])}, ...), as pandas does where they "
                "have no names; expected names of leads or samples: write the leads' names there, or no first line",
                "lead names",
            )
        if all(map(_is_number, header)):  # no names, but the first samples
            first, header = header, _names_of_columns(path, len(header), lead_names)
            columns = list(range(len(header)))
            values.extend(_numbers(path, 1, header, first, columns))
        else:
            columns = _columns(path, header, lead_names)
        first_gap, adjacent, is_after_gap = 0, 0, False
        for row in rows:
            if row:
                values.extend(_numbers(path, rows.line_num, header, row, columns))
                if is_after_gap:
                    first_gap = first_gap or rows.line_num - 1
                else:
                    adjacent += 1
            is_after_gap = not row
        if first_gap and adjacent > 1:  # writers on Windows may put an empty line behind every line
            raise ECGReadError(
                f"{path}: line {first_gap} is empty, and samples follow: expected one recording in a file"
            )
        _refuse_cut(path, text)
    except UnicodeDecodeError as error:
        raise ECGReadError(f"{path}: not text in UTF-8 ({error})") from error
    except csv.Error as error:
        raise ECGReadError(f"{path}: line {rows.line_num}: not a table ({error})") from error
    samples = np.frombuffer(values, np.float64).reshape(-1, len(columns)).T
    return _channels(path, np.ascontiguousarray(samples), sampling_rate, [header[i] for i in columns], units)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text, re.ASCII) is not None


def _names_of_columns(path: str, count: int, lead_names: Sequence[str] | None) -> list[str]:
    if lead_names is None:
        raise missing_arguments(path, "headerless .csv or .tsv", ["lead_names"])
    names = _checked_names(path, lead_names)
    if len(names) != count:
        raise ECGReadError(f"{path}: found {len(names)} lead names for {count} columns without names")
    return names


def _refuse_cut(path: str, text: str) -> None:
    """Refuse a table that ends within a number: without a line's end, and with fewer decimals than other lines."""
    if text.endswith(("\n", "\r")):
        return
    *others, last = text.split("\n")
    decimals = {len(line.rstrip("\r").rpartition(".")[2]) for line in others[-100:-1] if "." in line}
    final = last.rpartition(".")[2] if "." in last else ""
    if len(decimals) == 1 and len(others) > 10 and len(final) < decimals.pop():
        raise ECGReadError(f"{path}: truncated, the last line ends in the middle of a number ({last[-20:]!r})")


def _columns(path: str, header: list[str], lead_names: Sequence[str] | None) -> list[int]:
    """Return the indices of the leads: all columns, or those that the caller names."""
    shown = ", ".join(repr(name) for name in header[:20])
    if lead_names is None:
        for name in header:
            try:
                canonical_lead_name(name)
            except ValueError as error:
                raise ECGReadError(
                    f"{path}: found the columns {shown}, of which {name!r} is no known lead; expected lead names in "
                    "the first line; lead_names= selects the columns that are leads",
                    "lead names",
                ) from error
        return list(range(len(header)))
    columns = []
    for name in _checked_names(path, lead_names):
        if header.count(name.strip()) != 1:
            number = header.count(name.strip())
            raise ECGReadError(f"{path}: found {number} columns {name!r}, expected one; the columns are {shown}")
        columns.append(header.index(name.strip()))
    return columns


def _numbers(path: str, line: int, header: list[str], row: list[str], columns: list[int]) -> list[float]:
    if len(row) != len(header):
        raise ECGReadError(f"{path}: line {line}: found {len(row)} fields, expected {len(header)}", "truncated")
    numbers = []
    for column in columns:
        field = row[column].strip()
        try:
            # Python reads 1_000, digits of other scripts and any number of digits; a table that has them is damaged.
            plain = field.isascii() and "_" not in field and len(field) <= _LONGEST_NUMBER
            numbers.append(float(field if plain else "?") if field else math.nan)
        except ValueError:
            raise ECGReadError(
                f"{path}: line {line}: lead {header[column]}: found {field[:40]!r}, expected a number"
            ) from None
    return numbers


def read_npy(
    path: str, sampling_rate: float, lead_names: Sequence[str], units: str | Sequence[str], exam_id: int | None = None
) -> Channels:
    """Read a (leads, samples) array of integers or floats, or recording `exam_id` of a stack of such arrays."""
    names = _checked_names(path, lead_names)
    header = _npy_header(path)
    shape = header.shape
    if len(shape) == 3:
        if exam_id is None and shape[0] == 1:
            exam_id = 0
        if exam_id is None or not 0 <= exam_id < shape[0]:
            given = "no exam_id" if exam_id is None else f"exam_id={exam_id}"
            raise ECGReadError(
                f"{path}: found {given} for a stack of {shape[0]} recordings, expected 0 to {shape[0] - 1}: pass "
                "exam_id="
            )
        shape = shape[1:]
    elif exam_id is not None:
        raise ECGReadError(f"{path}: found exam_id={exam_id}, which is for a stack of recordings; found one recording")
    if len(shape) != 2 or shape[0] != len(names):
        turned = (
            "; the dimensions look swapped, save its transpose" if len(shape) == 2 and shape[1] == len(names) else ""
        )
        raise ECGReadError(f"{path}: found an array of shape {shape}, expected ({len(names)} leads, samples){turned}")
    count = math.prod(shape) * header.dtype.itemsize
    if not 0 < count <= _LARGEST_ARRAY:
        raise ECGReadError(f"{path}: found {count} bytes of samples, expected 1 to {_LARGEST_ARRAY}", "too large")
    stored = read_bytes(path, header.size, first=count, start=header.start + (exam_id or 0) * count)
    samples = np.frombuffer(stored, header.dtype).reshape(shape, order="F" if header.by_columns else "C")
    samples = samples.astype(_STORED[header.dtype.str[1:]], order="C")
    if samples.dtype.itemsize == 8 and samples.dtype.kind in "iu":
        if samples.max() >= 2**31 or int(samples.min()) < -(2**31):
            raise ECGReadError(f"{path}: found integers of more than 32 bits, expected samples of an ECG")
        samples = samples.astype(np.int32)
    return _channels(path, samples, sampling_rate, names, units, exam_id)


def exams_of_npy(path: str) -> list[int] | None:
    """Return the exams of a stack, by index; None for the array of one recording."""
    shape = _npy_header(path).shape
    return list(range(shape[0])) if len(shape) == 3 else None


class _NpyHeader(NamedTuple):
    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype
    start: int  # of the samples, in bytes
    size: int  # of the file


def _npy_header(path: str) -> _NpyHeader:
    """Read the header of an array, which must agree with the size of the file."""
    size = regular_file_size(path)
    file = io.BytesIO(read_bytes(path, size, first=min(size, _LONGEST_NPY_HEADER)))
    try:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, by_columns, dtype = readers[version](file)
    except KeyError:
        raise ECGReadError(f"{path}: found version {version} of the npy format, expected 1.0 or 2.0") from None
    except Exception as error:  # numpy meets a damaged header with errors of several types
        raise ECGReadError(f"{path}: damaged npy header ({error})") from error
    if dtype.str[1:] not in _STORED:
        raise ECGReadError(f"{path}: found an array of {dtype.str}, expected integers or floats of up to 64 bits")
    expected = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 1 or size - file.tell() != expected:
        raise ECGReadError(
            f"{path}: found {size - file.tell()} bytes of samples, expected {expected} for shape {shape}"
        )
    if by_columns and len(shape) == 3:
        raise ECGReadError(f"{path}: a stack in Fortran order is not supported; save it with numpy.ascontiguousarray")
    return _NpyHeader(shape, by_columns, dtype, file.tell(), size)


def read_watch_export(path: str) -> Channels:
    """Read the CSV that a watch exports: lines of a name and a value, among them lead, unit and rate, then samples."""
    try:
        lines = read_whole_file(path, _LARGEST_TEXT, "CSV").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ECGReadError(f"{path}: not text in UTF-8 ({error})") from error
    start = next((index for index, line in enumerate(lines) if _is_number(line.strip())), len(lines))
    given = {
        name.strip(): value.strip().strip('"') for name, _, value in (line.partition(",") for line in lines[:start])
    }
    if any(map(_is_number, given)):
        raise ECGReadError(f"{path}: found lines of two numbers, expected one sample a line, with a decimal point")
    rate = re.match(r"(\d+(?:\.\d+)?) *(?:hertz|Hz)", given.get("Sample Rate", ""), re.IGNORECASE | re.ASCII)
    if rate is None:
        raise ECGReadError(f"{path}: found the Sample Rate {given.get('Sample Rate', '')[:30]!r}, expected one in Hz")
    values = array("d")
    for number, line in enumerate(lines[start:], start=start + 1):
        if line.strip():
            values.extend(_numbers(path, number, ["1"], [line], [0]))
    if not values:
        raise ECGReadError(f"{path}: found no samples")
    try:
        time = datetime.strptime(given.get("Recorded Date", "")[:19], "%Y-%m-%d %H:%M:%S")
    except ValueError:
        time = None
    return Channels(
        path=path,
        names=[given["Lead"]],
        samples=np.frombuffer(values, np.float64)[None],
        gain=[1.0],
        baseline=[0.0],
        units=[given["Unit"]],
        rates=float(rate[1]),
        time=time,
    )


def _checked_names(path: str, lead_names: Sequence[str]) -> list[str]:
    if isinstance(lead_names, str) or not all(isinstance(name, str) for name in lead_names) or not len(lead_names):
        raise ECGReadError(f"{path}: found lead_names={lead_names!r}, expected a list of names")
    return list(lead_names)


def _channels(
    path: str,
    samples: np.ndarray,
    sampling_rate: float,
    names: Sequence[str],
    units: str | Sequence[str],
    exam_id: int | None = None,
) -> Channels:
    refuse_infinite(path, samples, names)
    units = [units] * len(names) if isinstance(units, str) else list(units)
    if len(units) != len(names):
        raise ECGReadError(f"{path}: {len(units)} units for {len(names)} leads: {units}")
    return Channels(
        path=path,
        recording_id=None if exam_id is None else f"{file_stem(path)}-{exam_id}",
        names=list(names),
        samples=samples,
        gain=[1.0] * len(names),
        baseline=[0.0] * len(names),
        units=units,
        rates=float(sampling_rate),
    )


__all__ = ["exams_of_npy", "read_npy", "read_text_table", "read_watch_export"]
