"""
Readers of CSV, TSV and NumPy's `.npy`: samples without sampling rate and unit.

A CSV or TSV has a column a lead, with the leads' names in its first line; an `.npy` file has a row a lead, and the
caller names them. Which of two dimensions is time is never guessed from their lengths.
"""

import csv
import io
import math
import os
from array import array
from collections.abc import Sequence

import numpy as np

from ..feature_extraction_ecgfm import canonical_lead_name
from .record import ECGReadError, ECGRecord, file_stem, read_whole_file, refuse_infinite

_LARGEST_TEXT, _LARGEST_ARRAY = 1 << 26, 1 << 29
_LONGEST_NUMBER = 100  # characters
# What `.npy` files hold, by kind and bytes, and the type of the record. The values of wider integers are checked.
_STORED = {"i1": "i2", "u1": "i2", "i2": "i2", "u2": "i4", "i4": "i4", "u4": "i8", "i8": "i8", "u8": "u8"}
_STORED |= {"f2": "f4", "f4": "f4", "f8": "f8"}


def read_text_table(
    path: str, sampling_rate: float, units: str | Sequence[str], lead_names: Sequence[str] | None = None
) -> ECGRecord:
    """
    Read a CSV or TSV. An empty field is a missing sample.

    Every column must be a lead; if a table has others too (a time, a number), `lead_names` selects the leads.
    """
    separator = "\t" if os.path.splitext(path)[1].lower() == ".tsv" else ","
    try:
        text = read_whole_file(path, _LARGEST_TEXT, "CSV or TSV").decode("utf-8-sig")
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        header = [name.strip() for name in next(rows, [])]
        if not header:
            raise ECGReadError(f"{path}: the first line is empty, expected the names of the leads", "lead names")
        columns = _columns(path, header, lead_names)
        values = array("d")
        for row in rows:
            if row:
                values.extend(_numbers(path, rows.line_num, header, row, columns))
    except UnicodeDecodeError as error:
        raise ECGReadError(f"{path}: not text in UTF-8 ({error})") from error
    except csv.Error as error:
        raise ECGReadError(f"{path}: line {rows.line_num}: not a table ({error})") from error
    samples = np.frombuffer(values, np.float64).reshape(-1, len(columns)).T
    return _record(path, np.ascontiguousarray(samples), sampling_rate, [header[i] for i in columns], units)


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


def read_npy(path: str, sampling_rate: float, lead_names: Sequence[str], units: str | Sequence[str]) -> ECGRecord:
    """Read a (leads, samples) array of integers or floats."""
    names = _checked_names(path, lead_names)
    content = read_whole_file(path, _LARGEST_ARRAY, "npy")
    file = io.BytesIO(content)
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
    if len(shape) != 2 or shape[0] != len(names):
        turned = (
            "; the dimensions look swapped, save its transpose" if len(shape) == 2 and shape[1] == len(names) else ""
        )
        raise ECGReadError(f"{path}: found an array of shape {shape}, expected ({len(names)} leads, samples){turned}")
    stored = memoryview(content)[file.tell() :]
    if shape[1] < 1 or len(stored) != math.prod(shape) * dtype.itemsize:
        expected = math.prod(shape) * dtype.itemsize
        raise ECGReadError(f"{path}: found {len(stored)} bytes of samples, expected {expected} for shape {shape}")
    samples = np.frombuffer(stored, dtype).reshape(shape, order="F" if by_columns else "C")
    samples = samples.astype(_STORED[dtype.str[1:]], order="C")
    if samples.dtype.itemsize == 8 and samples.dtype.kind in "iu":
        if samples.max() >= 2**31 or int(samples.min()) < -(2**31):
            raise ECGReadError(f"{path}: found integers of more than 32 bits, expected samples of an ECG")
        samples = samples.astype(np.int32)
    return _record(path, samples, sampling_rate, names, units)


def _checked_names(path: str, lead_names: Sequence[str]) -> list[str]:
    if isinstance(lead_names, str) or not all(isinstance(name, str) for name in lead_names) or not len(lead_names):
        raise ECGReadError(f"{path}: found lead_names={lead_names!r}, expected a list of names")
    return list(lead_names)


def _record(
    path: str, samples: np.ndarray, sampling_rate: float, names: Sequence[str], units: str | Sequence[str]
) -> ECGRecord:
    refuse_infinite(path, samples, names)
    return ECGRecord(
        recording_id=file_stem(path),
        path=path,
        samples=samples,
        gain=np.ones(len(names)),
        baseline=np.zeros(len(names)),
        units=(units,) * len(names) if isinstance(units, str) else tuple(units),
        sampling_rate=sampling_rate,
        lead_names=tuple(names),
    )
