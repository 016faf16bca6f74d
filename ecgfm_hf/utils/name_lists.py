"""Lists of names in one text: `A,B` or `"A, b",C`."""

import argparse
import csv
import io
from collections.abc import Sequence


def names(text: str) -> list[str]:
    """
    `A,B` or `"A, b",C` as a list, for `argparse`; read as a row of a CSV, so that a label with a comma can be quoted.

    Raises:
        `argparse.ArgumentTypeError`: text that is no such row.
    """
    try:
        parts = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise argparse.ArgumentTypeError(f'must look like A,B or "A, b",C, found: {text} ({error})') from None
    return [part.strip() for part in parts if part.strip()]


def as_names(found: Sequence[str]) -> str:
    """A list as [`names`] reads it."""
    row = io.StringIO()
    csv.writer(row, lineterminator="").writerow(found)
    return row.getvalue()


__all__ = ["as_names", "names"]
