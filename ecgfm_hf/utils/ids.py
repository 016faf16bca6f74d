"""Ids of recordings and patients as text: the one definition of when two ids are the same."""

import math
from numbers import Integral, Real

from .errors import ECGFMError

# How text tables write a missing id.
_UNKNOWN = {"", "nan", "nat", "none", "null", "<na>", "na", "n/a", "unknown"}


class IdError(ECGFMError, ValueError):
    """A number that cannot be an id. The message gives it."""


def canonical_id(value: object) -> str | None:
    """
    Return an id as text, the same however a table library read it (13, "13", 13.0 of a column with gaps).

    Args:
        value: A cell of any table: text, bytes, a number or null.

    Returns:
        None for an unknown id: null, NaN, empty text, "unknown" and the like.

    Raises:
        `IdError`: a float that is not a whole number, or one too large to be exact.
    """
    if value is None:
        return None
    if isinstance(value, Real) and not isinstance(value, Integral):
        number = float(value)
        if math.isnan(number):
            return None
        if not number.is_integer() or abs(number) >= 2**53:
            raise IdError(f"{value!r} cannot be an id; expected an integer or text: read the column as one of these")
        value = int(number)
    text = value.decode() if isinstance(value, bytes) else str(value).strip()
    if text.endswith(".0") and text[:-2].isascii() and text[:-2].isdigit():  # a text column written from floats
        text = text[:-2]
    return None if text.lower() in _UNKNOWN else text


__all__ = ["IdError", "canonical_id"]
