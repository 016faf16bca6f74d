"""Lists of names in one text: `A,B` or `"A, b",C`."""

import csv
import io
from collections.abc import Sequence

from .errors import SettingsError


def names(text: str) -> list[str]:
    """
    Return the names in `A,B` or `"A, b",C`, read as a row of a CSV: quote a name that holds a comma.

    Raises:
        [`SettingsError`]: the text is no such row.
    """
    try:
        parts = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise SettingsError(f'must look like A,B or "A, b",C, found: {text} ({error})') from None
    return [part.strip() for part in parts if part.strip()]


def as_names(found: Sequence[str]) -> str:
    """Return a list as text that [`names`] reads."""
    row = io.StringIO()
    csv.writer(row, lineterminator="").writerow(found)
    return row.getvalue()


__all__ = ["as_names", "names"]
