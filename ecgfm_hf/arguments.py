"""Arguments and settings that several commands take: one definition of each."""

import argparse
import csv
import difflib
import io
from collections.abc import Iterable, Sequence
from typing import Any


class SettingsError(ValueError):
    """A setting that is unknown or impossible. The message names the key, and what was found and expected."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean NAME?` where a known name is close, else nothing."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


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


def add_precision_argument(parser: Any, default: str, gradients: bool = False) -> None:
    """Declares `--precision`; with `gradients`, of a model that has to have them, which int8 has not."""
    from .fast_paths import PRECISIONS

    quantised = "" if gradients else "; int8: of linear layers, on a CPU (needs ecgfm-hf[int8])"
    parser.add_argument(
        "--precision",
        "--dtype",
        dest="precision",
        choices=[name for name in PRECISIONS if not (gradients and name == "int8")],
        default=default,
        help="auto: bfloat16 where the processor or GPU has instructions for it, else float32"
        f"{quantised} (default: {default})",
    )


__all__ = ["SettingsError", "add_precision_argument", "as_names", "names", "suggestion"]
