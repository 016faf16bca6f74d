"""Text that others wrote: lists of names, cells of tables that a spreadsheet may open, and text for a terminal."""

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from .errors import SettingsError

# What makes a spreadsheet run a cell as a formula, if it stands first: also in full width, and after line ends.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
# An address: scheme, user and password, host and path, query. It has one slash after it was taken for a path; a name
# before "@" then counts only if a password follows it.
_SCHEME = r"[A-Za-z][\w+.-]{0,20}"
_ADDRESS = re.compile(
    rf"""\b({_SCHEME})(://?)((?<=//)[^\s/'"]*@|[^\s/'":]*:[^\s/'"]*@)?((?:(?!{_SCHEME}:/)[^\s?'"])*)(\?[^\s'")]+)?"""
)
# Of these, the part before "@" is a container or a repository.
_NO_USERS = ("abfs", "abfss", "wasb", "wasbs", "adl", "github")
_SHORTEST_SECRET = 4  # characters that are replaced wherever they are
_TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
_MARKS = "\u200e\u200f\u061c\u2028\u2029"  # marks of direction, and separators that end a line


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


def is_control(character: str) -> bool:
    """Return whether a character acts on a terminal or a page: control characters but tab and line feed, surrogates,
    and those that turn the direction of text."""
    if character in _MARKS or unicodedata.category(character) in ("Cc", "Cs"):
        return character not in "\t\n"
    return unicodedata.bidirectional(character) in _TURNING


def printable(text: str) -> str:
    r"""Return text with every control character as its escape, such as `\x1b`; tabs and line feeds stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode("ascii") if is_control(c) else c for c in text)


def without_secrets(text: str, address: str = "") -> str:
    """
    Return text with `***` for users, passwords and queries in addresses: `ftp://***@host/path?***`.

    Args:
        text: Such as a message.
        address: Its password and query are replaced wherever they stand in the text, as in messages of libraries.
    """
    for found in _ADDRESS.finditer(address):
        user = "" if found[1] in _NO_USERS else (found[3] or "").rstrip("@")
        for secret in (user.partition(":")[2], (found[5] or "").lstrip("?")):
            if len(secret) >= _SHORTEST_SECRET:
                text = text.replace(secret, "***")
    return _ADDRESS.sub(_redacted, text)


def _redacted(address: re.Match[str]) -> str:
    scheme, slashes, user, rest, query = address.groups()
    shown = user or "" if scheme in _NO_USERS or not user else "***@"
    return f"{scheme}{slashes}{shown}{rest}{'?***' if query else ''}"


def to_cell(text: str) -> str:
    """
    Return text as a cell of a CSV: an apostrophe goes before what a spreadsheet would run as a formula.

    That is a cell that begins with `=`, `+`, `-`, `@`, a tab or a line end and is no number. [`from_cell`] takes the
    apostrophe away, so every text comes back as it was.
    """
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def from_cell(cell: str) -> str:
    """Return the text of which [`to_cell`] made a cell."""
    return cell[1:] if cell.startswith("'") and to_cell(cell[1:]) != cell[1:] else cell


def read_cells(lines: Iterable[str], delimiter: str = ",") -> Iterator[list[str]]:
    """Yield the rows of a CSV, with the texts of which [`to_cell`] made cells. Errors are those of `csv.reader`."""
    for row in csv.reader(lines, delimiter=delimiter):
        yield [from_cell(cell) for cell in row]


def to_cells(row: Iterable[str | float | None]) -> list[str | float | None]:
    """Return a row with its texts as cells; numbers stay numbers."""
    return [to_cell(value) if isinstance(value, str) else value for value in row]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii() and text.isprintable()


__all__ = [
    "as_names",
    "from_cell",
    "is_control",
    "names",
    "printable",
    "read_cells",
    "to_cell",
    "to_cells",
    "without_secrets",
]
