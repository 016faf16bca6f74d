"""
Cells of a user's own table, as text, numbers, times, labels.

`csv_columns` reads the tables of public datasets, whose form is known. Here an error reports everything that is wrong
with a column, because its reader has to mend the table.
"""

import functools
import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from ...utils.ids import canonical_id
from ..labels import LabelTableError
from ..splits import parse_time
from ..store import DataError, store_schema
from .csv_columns import label_value

_SEXES = {"m": "M", "male": "M", "männlich": "M", "f": "F", "female": "F", "w": "F", "weiblich": "F"}
_UNKNOWN_SEXES = ("u", "unk", "unknown", "other", "d", "divers")
# De-identified ages: 90 stands for all above 89.
_OVER_89 = (">89", ">=90", "≥90", "90+")
OVER_89_YEARS = 90.0
_LONGEST_QUOTE, MOST_QUOTES = 40, 20
_COMPARISONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}

EXPECTED = {
    "recording_id": "text or a whole number",
    "patient_id": "text or a whole number",
    "time": "a time in ISO 8601 (such as 2020-01-31 08:30:00)",
    "age": "years from 0 to 150, or >89, 90+ or 300 for over 89, or nothing",
    "sex": "M, F, male or female (also W, männlich or weiblich), or for unknown U, unknown, other or nothing",
    "sampling_rate": "a number",
    "exam_id": "a whole number",
}


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


@dataclass(frozen=True)
class LabelCodes:
    """
    How a table writes labels.

    Args:
        positive, negative, unknown (sequence of `str`): Texts, in any letter case. Empty cells are always unknown.
            Where positive or negative codes are given, no others count. By default those of [`label_table`].
    """

    positive: Sequence[str] = ()
    negative: Sequence[str] = ()
    unknown: Sequence[str] = ()

    def __post_init__(self) -> None:
        codes = [code.strip().casefold() for code in (*self.positive, *self.negative, *self.unknown)]
        if repeated := sorted({code for code in codes if codes.count(code) > 1}):
            raise DataError(f"positive, negative and unknown must have different codes, found twice: {repeated[0]!r}")

    def meaning(self, text: str) -> int | None:
        """Return what a cell means: 1, 0 or None. `ValueError` where it is no code."""
        code = text_of(text).casefold()
        for codes, value in ((self.positive, 1), (self.negative, 0), (self.unknown, None)):
            if code in (one.strip().casefold() for one in codes):
                return value
        value = _label(text)
        if value is not None and (self.positive or self.negative):
            raise ValueError(f"{text!r} is no code of a label")
        return value

    @property
    def expected(self) -> str:
        if self.positive or self.negative:
            return f"{', '.join((*self.positive, *self.negative, *self.unknown))} or nothing"
        return "0, 1, true, false, yes, no or nothing; other codes: positive=, negative=, unknown="


def label_cells(where: Any, name: str, values: Sequence[Any], codes: LabelCodes, hint: str = "") -> pa.Array:
    """Convert a column of labels to int8, null where unknown."""
    meaning = functools.lru_cache(256)(codes.meaning)
    meanings = convert_cells(where, f"label {name!r}", [str(value) for value in values], meaning, codes.expected, hint)
    return pa.array(meanings, pa.int8())


def why_no_label(values: Sequence[Any], codes: LabelCodes) -> str | None:
    """
    Return what a column holds if it cannot be a label: numbers that are mostly no codes of labels, or only texts that
    are none. A few other cells are mistakes, or codes to be named, which `label_cells` reports cell by cell.
    """
    texts = [text for value in values if (text := text_of(value))]
    is_code = {text: _is_code(text, codes) for text in set(texts)}
    odd = sum(not is_code[text] for text in texts)
    numbers = numeric_range(texts)
    if numbers is not None:
        return f"{numbers[0]:g} to {numbers[1]:g}" if 2 * odd > len(texts) else None
    return "text" if texts and odd == len(texts) else None


def numeric_range(values: Sequence[Any]) -> tuple[float, float] | None:
    """Return the smallest and largest number of a column of numbers, None where other cells are in it."""
    try:
        numbers = [float(text) for value in values if (text := text_of(value))]
    except ValueError:
        return None
    return (min(numbers), max(numbers)) if numbers else None


@dataclass(frozen=True)
class Binarised:
    """
    A label made of a column of numbers.

    Args:
        name (`str`): The label.
        column (`str`): The numbers.
        sign (`str`): `<=`, `>=`, `<` or `>`.
        limit (`float`)
    """

    name: str
    column: str
    sign: str
    limit: float

    def cells(self, where: Any, values: Sequence[Any], hint: str = "") -> pa.Array:
        """Return the label, int8, null where the column has no number."""
        numbers = convert_cells(where, repr(self.column), values, number_in, "a number or nothing", hint)
        compare = _COMPARISONS[self.sign]
        return pa.array([None if n is None or n != n else int(compare(n, self.limit)) for n in numbers], pa.int8())


def binarised(text: str) -> Binarised:
    """Return the label that `LVEF<=40` or `low_ef=LVEF<=40` describes. `DataError` for other texts."""
    found = re.fullmatch(r"(?:([^<>=]+)=)?(.+?)\s*(<=|>=|<|>)\s*([+-]?\d+(?:\.\d+)?)", text.strip())
    if found is None:
        raise DataError(f"binarise must look like LVEF<=40 or low_ef=LVEF<=40, found: {text}")
    column = found[2].strip()
    name = (found[1] or f"{column}{found[3]}{found[4]}").strip()
    return Binarised(name, column, found[3], float(found[4]))


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


def _is_code(text: str, codes: LabelCodes) -> bool:
    try:
        codes.meaning(text)
    except ValueError:
        return False
    return True


def _quoted(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "...")


__all__ = [
    "EXPECTED",
    "MOST_QUOTES",
    "OVER_89_YEARS",
    "Binarised",
    "LabelCodes",
    "age_in_years",
    "binarised",
    "check_label_names",
    "convert_cells",
    "label_cells",
    "lead_names_in",
    "number_in",
    "numeric_range",
    "over_89",
    "sex_in",
    "shown_label",
    "text_of",
    "text_or_none",
    "time_cells",
    "whole_number_in",
    "why_no_label",
]
