"""
Cells of a user's own table, as text, numbers, times, labels.

`csv_columns` reads the tables of public datasets, whose form is known. Here an error reports everything that is wrong
with a column, because its reader has to mend the table.
"""

import csv
import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...utils.ids import canonical_id
from ...utils.text import read_cells
from ..labels import LabelTableError
from ..splits import parse_time
from ..store import DataError, store_schema
from .csv_columns import label_value

_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F"}
_UNKNOWN_SEXES = ("u", "unk", "unknown", "other")
# De-identified ages: 90 stands for all above 89.
_OVER_89 = (">89", ">=90", "≥90", "90+")
OVER_89_YEARS = 90.0
_LONGEST_QUOTE, MOST_QUOTES, MOST_NAMES = 40, 20, 40
_LONGEST_HEADER = 1 << 20

EXPECTED = {
    "recording_id": "text or a whole number",
    "patient_id": "text or a whole number",
    "time": "a time in ISO 8601 (such as 2020-01-31 08:30:00)",
    "age": "years from 0 to 150, or >89, 90+ or 300 for over 89, or nothing",
    "sex": "M, F, male or female, or for unknown U, unknown, other or nothing",
    "sampling_rate": "a number",
    "exam_id": "a whole number",
}


def read_header(path: Path) -> list[str]:
    """
    Return the columns' names, without blanks around them and without line breaks; empty for columns without a name.

    Raises:
        `DataError`: no such file, one that cannot be read, no header, a name twice.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such table")
    try:
        if path.suffix.lower() == ".parquet":
            names = pq.read_schema(path).names
        else:
            with open(path, encoding="utf-8-sig", newline="") as file:
                names = next((row for row in read_cells(file, _delimiter(path)) if row), [])
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot read this table ({error})") from None
    if not names:
        raise DataError(f"{path} is empty")
    header = [clean_name(name) for name in names]
    if repeated := sorted({name for name in header if name and header.count(name) > 1}):
        raise DataError(f"{path} has several columns called {', '.join(repeated)}")
    return header


def read_columns(path: Path) -> dict[str, list]:
    """Return all columns with a name. `DataError` as [`read_header`], and for rows of another length."""
    header = read_header(path)
    try:
        if path.suffix.lower() == ".parquet":
            table = pq.read_table(path)
            return {name: column.to_pylist() for name, column in zip(header, table.itercolumns(), strict=True) if name}
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [row for row in read_cells(file, _delimiter(path)) if row][1:]
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot read this table ({error})") from None
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise DataError(f"{path}, row {number}: {len(row)} cells under {len(header)} columns")
    return {name: [row[index] for row in rows] for index, name in enumerate(header) if name}


def clean_name(name: Any) -> str:
    """Return a column's name as labels and settings use it."""
    text = re.sub(r"\s*[\r\n]+\s*", " ", str(name)).strip()
    return "" if re.fullmatch(r"__index_level_\d+__", text) else text  # pandas' index, which has no name


def shown_header(header: Iterable[str]) -> str:
    names = [name for name in header if name]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"found: {', '.join(names[:MOST_NAMES]) or 'no named column'}{more}"


def check_label_names(names: Iterable[str], where: Any) -> None:
    """`DataError` where a label cannot be a column of a store."""
    names = list(names)
    hint = "choose the labels without it (labels=) or rename it"
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{where}: label given more than once: {', '.join(repeated)}")
    if internal := [name for name in names if not name or name.startswith("_")]:
        raise DataError(
            f"{where}: a label cannot be called {', '.join(map(repr, internal))}: names that begin with '_' are for "
            f"internal columns; {hint}"
        )
    try:
        store_schema(names)
    except DataError as error:
        raise DataError(f"{where}: {error}; {hint}") from None


def convert_cells(
    where: Any, name: str, values: Sequence[Any], meaning: Callable[[Any], Any], expected: str, hint: str = ""
) -> list:
    """
    Convert the cells of a column.

    Args:
        where: The table, for the error.
        name (`str`): The column, for the error.
        meaning: Converts one cell; raises `ValueError`, `TypeError` or `OverflowError` where it cannot.
        expected (`str`): What cells may hold, for the error.
        hint (`str`): What else the user can do, for the error.

    Raises:
        `DataError`: names every different wrong cell, how often it occurs and the row where it is first.
    """
    result: list = []
    odd: dict[str, list[int]] = {}
    for row, value in enumerate(values, start=1):
        try:
            result.append(meaning(value))
        except (ValueError, TypeError, OverflowError):
            odd.setdefault(str(value).strip(), []).append(row)
    if odd:
        quoted = [
            f"row {rows[0]}: {name} is {_quoted(text)} ({len(rows)} row{'s' * (len(rows) > 1)})"
            for text, rows in list(odd.items())[:MOST_QUOTES]
        ]
        more = f"; and {len(odd) - MOST_QUOTES} other values" if len(odd) > MOST_QUOTES else ""
        raise DataError(f"{where}, {'; '.join(quoted)}{more}; expected {expected}{hint}")
    return result


def text_of(value: Any) -> str:
    """Return a cell as text, empty for an empty cell."""
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in ("", "nan", "none") else text


def text_or_none(value: Any) -> str | None:
    return text_of(value) or None


def over_89(value: Any) -> bool:
    """Return whether an age means "over 89": in words, or as PTB-XL (300) and MIMIC-III (300 + years since) code it."""
    text = re.sub(r"\s", "", text_of(value))
    try:
        return text in _OVER_89 or 300 <= float(text) < 320
    except ValueError:
        return False


def age_in_years(value: Any) -> float | None:
    if over_89(value):
        return OVER_89_YEARS
    text = text_of(value)
    if canonical_id(text) is None:
        return None
    age = float(text)
    if not 0 <= age < 150:
        raise ValueError(f"{age} is not an age")
    return age


def sex_in(value: Any) -> str | None:
    text = text_of(value).lower()
    if text in _UNKNOWN_SEXES or canonical_id(text) is None:
        return None
    if text not in _SEXES:
        raise ValueError(f"{text!r} is not a sex")
    return _SEXES[text]


def time_cells(where: Any, values: Sequence[Any], hint: str = "") -> list[datetime | None]:
    """Convert times to times without a zone, in UTC where they have one. `DataError` where only some have one."""
    found = convert_cells(where, "time", values, _time, EXPECTED["time"], hint)
    zoned = [time is not None and time.tzinfo is not None for time in found]
    bare = [time is not None and time.tzinfo is None for time in found]
    if any(zoned) and any(bare):
        first, other = zoned.index(True), bare.index(True)
        raise DataError(
            f"{where}: some times have a time zone (row {first + 1}: {_quoted(values[first])}) and others do not "
            f"(row {other + 1}: {_quoted(values[other])}), so they cannot be compared; give all a zone, or none"
        )
    return [None if time is None else time.replace(tzinfo=None) for time in found]


def number_in(value: Any) -> float | None:
    text = text_of(value)
    return float(text) if text else None


def whole_number_in(value: Any) -> int | None:
    if not text_of(value):
        return None
    found = int(canonical_id(value) or "")  # also 3.0 of a column with gaps
    if abs(found) >= 2**63:
        raise ValueError(f"{found} is too large")
    return found


def lead_names_in(value: Any) -> list[str] | None:
    if isinstance(value, list | np.ndarray):
        return [str(name) for name in value]
    return text_of(value).replace(",", " ").split() or None


def label_cells(where: Any, name: str, values: Sequence[Any], hint: str = "") -> pa.Array:
    """Convert a column of labels to int8, null where unknown."""
    texts = [str(value) for value in values]
    meanings = convert_cells(where, f"label {name!r}", texts, _label, "0, 1, True, False or nothing", hint)
    return pa.array(meanings, pa.int8())


def numeric_range(values: Sequence[Any]) -> tuple[float, float] | None:
    """Return the smallest and largest number of a column of numbers of which most are not 0 or 1, else None."""
    try:
        numbers = [float(text) for value in values if (text := text_of(value))]
    except ValueError:
        return None
    # Few other numbers among labels are mistakes, which `label_cells` reports cell by cell.
    if 2 * sum(number not in (0.0, 1.0) for number in numbers) <= len(numbers):
        return None
    return min(numbers), max(numbers)


def shown_label(value: int | None) -> str:
    return "unknown" if value is None else str(value)


@functools.lru_cache(256)
def _label(text: str) -> int | None:
    try:
        return label_value(text)
    except LabelTableError as error:
        raise ValueError(str(error)) from None


def _time(value: Any) -> datetime | None:
    time = parse_time(value, 0)
    if isinstance(time, float) and math.isnan(time):
        return None
    if time is not None and not isinstance(time, datetime):
        raise ValueError(f"{time!r} is not a time in ISO 8601")
    return time if time is None or time.tzinfo is None else time.astimezone(UTC)


def _delimiter(path: Path) -> str:
    if path.suffix.lower() in (".tsv", ".tab"):
        return "\t"
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        start = file.read(_LONGEST_HEADER)
    bare = re.sub(r'"[^"]*("|$)', "", start).strip("\n").partition("\n")[0]  # quoted names may have any of them
    return next((sign for sign in ",;\t" if sign in bare), ",")


def _quoted(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "...")


__all__ = [
    "EXPECTED",
    "MOST_NAMES",
    "MOST_QUOTES",
    "OVER_89_YEARS",
    "age_in_years",
    "check_label_names",
    "clean_name",
    "convert_cells",
    "label_cells",
    "lead_names_in",
    "number_in",
    "numeric_range",
    "over_89",
    "read_columns",
    "read_header",
    "sex_in",
    "shown_header",
    "shown_label",
    "text_of",
    "text_or_none",
    "time_cells",
    "whole_number_in",
]
