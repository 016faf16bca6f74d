"""
Columns of a dataset's CSV tables, a million rows in seconds.

Cells are read as text, so that no id loses digits, and then made what they must be. Errors name the file, the row
(counted from 1, without the header) and the column, and never quote free text.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from ...utils.ids import canonical_id
from ..labels import label_table
from ..store import DataError

_LONGEST_QUOTE = 40


def find_table(folder: Path, name: str) -> Path | None:
    """`name` in the folder, or else its gzipped copy `name.gz`, or None."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def csv_header(path: Path) -> list[str]:
    """
    The column names of a CSV, gzipped or not.

    Raises:
        `DataError`: no such file, one that cannot be read, no header, a name twice.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such table")
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        # A file is read ahead; rows further down that are not UTF-8 are reported when they are read.
        with opener(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
            header = next(csv.reader(file), [])
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise DataError(f"{path}: cannot read the header ({error})") from None
    if not header:
        raise DataError(f"{path}: is empty, expected a header with column names")
    if repeated := sorted({name for name in header if name and header.count(name) > 1}):
        raise DataError(f"{path}: has several columns called {', '.join(repeated[:3])}")
    return header


def read_text_columns(path: Path, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    """
    Columns of a CSV as text, null where a cell is empty.

    Args:
        path (`Path`): Ending in `.gz` where it is gzipped.
        names (sequence of `str`): The columns wanted; others are passed over.

    Raises:
        `DataError`: the file cannot be read, or has no rows or not all columns; a row has too few or too many cells; a
            cell wanted has a line break (as after a quote that is never closed) or is not UTF-8.
    """
    header = csv_header(path)
    if missing := [name for name in names if name not in header]:
        raise DataError(f"{path}: has no column {', '.join(missing)} (found: {', '.join(header[:40])})")
    uneven = []

    def note_uneven(row: arrow_csv.InvalidRow) -> str:
        uneven.append(row)
        return "error"

    try:
        table = arrow_csv.read_csv(
            path,
            # One thread: otherwise Arrow does not count rows.
            read_options=arrow_csv.ReadOptions(use_threads=False),
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note_uneven),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=list(names),
                column_types=dict.fromkeys(names, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except (pa.ArrowException, OSError, EOFError) as error:
        if uneven:
            row = uneven[0]
            where = "" if row.number is None else f", row {row.number - 1}"
            found = f"found {row.actual_columns} cells under {row.expected_columns} columns"
            raise DataError(f"{path}{where}: {found}") from None
        raise DataError(f"{path}: {_without_cells(str(error), header)}") from None
    if not table.num_rows:
        raise DataError(f"{path}: has no rows")
    for name in names:
        broken = pc.match_substring_regex(table[name], r"[\r\n]")
        if pc.any(broken).as_py():
            row = pc.index(broken, True).as_py() + 1
            raise DataError(f"{path}, row {row}: {name} has a line break; is a quote not closed there?")
    return {name: table[name] for name in names}


def id_column(values: pa.ChunkedArray) -> pa.Array:
    """Return ids as text, the same however a table library wrote them (see [`canonical_id`]); null for unknown."""
    return pa.array([canonical_id(value) for value in values.to_pylist()], pa.string())


def time_column(path: Path, name: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert times in ISO 8601 without a zone, to microseconds. `DataError` with the row of any other."""
    return _cast(path, name, values, pa.timestamp("us"), "a time such as 2020-01-31 08:30:00")


def number_column(path: Path, name: str, values: pa.ChunkedArray, low: float, high: float) -> np.ndarray:
    """Convert numbers from `low` to `high`, float64, NaN for empty cells. `DataError` with the row of any other."""
    expected = f"a number from {low:g} to {high:g}"
    numbers = _cast(path, name, values, pa.float64(), expected).to_numpy(zero_copy_only=False)
    there = pc.is_valid(values).to_numpy(zero_copy_only=False)
    refuse_cell(path, name, values, there & ~((numbers >= low) & (numbers <= high)), expected)
    return numbers


def translated_column(
    path: Path, name: str, values: pa.ChunkedArray, meaning: Callable[[str], Any], expected: str, type_: pa.DataType
) -> pa.ChunkedArray:
    """
    Convert a column of few different texts.

    Args:
        meaning: Converts one text, to None for unknown; raises `ValueError` where it cannot.
        expected (`str`): What cells may hold, for the error.
        type_ (`pa.DataType`): Of the result.
    """

    def translate(text: str) -> Any:
        try:
            return meaning(text)
        except ValueError:
            refuse_cell(path, name, values, pc.equal(values, text).fill_null(False).to_numpy(), expected)
            raise

    different = pc.unique(values).drop_null()
    meanings = pa.array([translate(text) for text in different.to_pylist()], type_)
    return pa.chunked_array([meanings.take(pc.index_in(chunk, different)) for chunk in values.chunks], type_)


def label_column(path: Path, name: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert a label to a store's column: int8, null for unknown; see [`label_table`] for what cells may hold."""
    return translated_column(path, name, values, label_value, "0, 1, True, False or nothing", pa.int8())


def label_value(text: str) -> int | None:
    """Convert a label's cell to 1, 0 or None. `LabelTableError`, a `ValueError`, where it cannot."""
    value = label_table(["cell"], {"label": [text]}).values[0, 0]
    return None if np.isnan(value) else int(value)


def refuse_cell(path: Path, name: str, values: pa.ChunkedArray, wrong: np.ndarray, expected: str) -> None:
    """Raise `DataError` about the first wrong cell, if there is one."""
    rows = np.flatnonzero(wrong)
    if len(rows):
        found = values[int(rows[0])].as_py()
        if found is not None and len(found) > _LONGEST_QUOTE:
            found = found[:_LONGEST_QUOTE] + "..."
        found = "nothing" if found is None else repr(found)
        raise DataError(f"{path}, row {rows[0] + 1}: {name} is {found}, expected {expected}")


def first_rows(ids: pa.Array) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """
    Find where ids occur first.

    Returns:
        The different ids, without null; the first row of each; and the rows that repeat an earlier row's id.
    """
    encoded = ids.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    rows = np.arange(len(codes))
    first = np.zeros(len(encoded.dictionary) + 1, dtype=np.int64)
    first[codes[::-1]] = rows[::-1]  # of several values for one index, the last stays: here the first row
    repeated = rows[(codes >= 0) & (first[codes] != rows)]
    return encoded.dictionary, first[:-1], repeated


def _cast(path: Path, name: str, values: pa.ChunkedArray, type_: pa.DataType, expected: str) -> pa.ChunkedArray:
    values = pc.utf8_trim_whitespace(values)
    values = pc.if_else(pc.equal(values, ""), None, values)
    try:
        return pc.cast(values, type_)
    except pa.ArrowInvalid:
        low, high = 0, len(values)  # the first cell that cannot be cast lies between
        while high - low > 1:
            middle = (low + high) // 2
            try:
                pc.cast(values.slice(low, middle - low), type_)
                low = middle
            except pa.ArrowInvalid:
                high = middle
        refuse_cell(path, name, values, np.arange(len(values)) == low, expected)
        raise


def _without_cells(message: str, header: Sequence[str]) -> str:
    """Return Arrow's message about a file without the file's content."""
    found = re.search(r"CSV column #(\d+): Row #(\d+): .*invalid UTF8", message)
    if found:
        return f"row {int(found[2]) - 1}: column {header[int(found[1])]} is not UTF-8"
    if "straddling object" in message:
        return "a row is longer than a megabyte; is a quote not closed?"
    return "cannot be read as CSV; is it damaged or cut off?"
