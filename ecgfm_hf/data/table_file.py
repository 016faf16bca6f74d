"""A user's own table: CSV, TSV, Excel or Parquet, with the encoding, separator and decimal sign that it has."""

import codecs
import csv
import functools
import io
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..utils.text import from_cell, read_cells
from .store import DataError

MOST_NAMES = 40
_SEPARATORS = ",;\t|"
_WORKBOOKS = (".xlsx", ".xlsm")
# Of text that is not UTF-8, what a spreadsheet on Windows writes; it has no character for five bytes.
_WINDOWS = "cp1252"
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_ROWS_TO_SNIFF = 200


@dataclass(frozen=True)
class TableFile:
    """
    A table in a file. It is read once: rows stay in memory until `forget`.

    Args:
        path (`Path`): `.parquet`, `.xlsx`, `.xlsm`, or text with separators.
        encoding (`str`, *optional*): Of text. By default as its byte order mark says, else UTF-8, else Windows-1252.
        separator (`str`, *optional*): Of text: one character. By default the one of `,`, `;`, tab and `|` that gives
            all rows the same number of cells.
        sheet (`str`, *optional*): Of a workbook. By default its only sheet with cells.

    Raises:
        [`DataError`]: settings that do not belong to this kind of file.
    """

    path: Path
    encoding: str | None = None
    separator: str | None = None
    sheet: str | None = None

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such table")
        suffix = self.path.suffix.lower()
        if suffix in (".xls", ".ods", ".numbers", ".sav", ".sas7bdat", ".dta", ".rds"):
            raise DataError(f"{self.path}: tables of this kind are not read; save it as .xlsx or .csv")
        if self._is_text and self.sheet is not None:
            raise DataError(f"{self.path} is no workbook: sheet= is for .xlsx")
        if not self._is_text and (self.encoding or self.separator):
            raise DataError(f"{self.path} is no text: encoding= and separator= are for .csv and .tsv")
        if self.separator is not None and len(self.separator) != 1:
            raise DataError(f"separator must be one character, found: {self.separator!r}")

    @property
    def _is_text(self) -> bool:
        return self.path.suffix.lower() not in (".parquet", *_WORKBOOKS)

    def header(self) -> list[str]:
        """
        Return the columns' names, without blanks around them and without line breaks; empty for columns without one.

        Raises:
            [`DataError`]: a file that cannot be read, no header, a name twice.
        """
        if self.path.suffix.lower() == ".parquet":
            try:
                names: Iterable[Any] = pq.read_schema(self.path).names
            except (OSError, pa.ArrowException) as error:
                raise self._unreadable(error) from None
        else:
            names = next(iter(self._read[0]), [])
        header = ["" if name is None else clean_name(name) for name in names]
        if not any(header):
            raise DataError(f"{self.path} is empty" if not header else f"{self.path}: the first row names no column")
        if repeated := sorted({name for name in header if name and header.count(name) > 1}):
            raise DataError(f"{self.path} has several columns called {', '.join(repeated)}")
        return header

    def columns(self) -> dict[str, list[Any]]:
        """Return the cells of all columns with a name. `DataError` as [`header`], and for rows of another length."""
        header = self.header()
        if self.path.suffix.lower() == ".parquet":
            try:
                cells: list[list[Any]] = [column.to_pylist() for column in pq.read_table(self.path).itercolumns()]
            except (OSError, pa.ArrowException) as error:
                raise self._unreadable(error) from None
            return {name: column for name, column in zip(header, cells, strict=True) if name}
        rows = self._read[0][1:]
        for number, row in enumerate(rows, start=1):
            if len(row) != len(header):
                raise DataError(f"{self.path}, row {number}: {len(row)} cells under {len(header)} columns")
        return {name: [row[index] for row in rows] for index, name in enumerate(header) if name}

    def notes(self) -> list[str]:
        """Return sentences about what was assumed."""
        if self.encoding is None and self._read[1] == _WINDOWS:
            return [
                f"{self.path.name} is not UTF-8 and was read as {_WINDOWS}; if letters are wrong, give its encoding."
            ]
        return []

    def forget(self) -> None:
        """Free the rows; they are read again when they are needed."""
        self.__dict__.pop("_read", None)

    @functools.cached_property
    def _read(self) -> tuple[list[list[Any]], str | None]:
        """All rows with a cell, the header first, and the encoding of text; of Parquet none."""
        try:
            if self._is_text:
                text, encoding = self._text()
                by_suffix = "\t" if self.path.suffix.lower() in (".tsv", ".tab") else None
                separator = self.separator or by_suffix or _separator(self.path, text)
                return [row for row in read_cells(io.StringIO(text, newline=""), separator) if row], encoding
            return [] if self.path.suffix.lower() == ".parquet" else list(self._workbook_rows()), None
        except (OSError, csv.Error) as error:
            raise self._unreadable(error) from None

    def _text(self) -> tuple[str, str]:
        """Return the whole text and the name of its encoding."""
        content = self.path.read_bytes()
        found = next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)
        if self.encoding is not None:
            tried = [found if found and self.encoding.lower() in (found, found.removesuffix("-sig")) else self.encoding]
        elif found is None and content[:2].count(0) == 1:  # ASCII in UTF-16 has a zero in each pair
            tried = ["utf-16-be" if content[0] == 0 else "utf-16-le"]
        else:
            tried = [found] if found else ["utf-8", _WINDOWS]
        for name in tried:
            try:
                return content.decode(name), name
            except LookupError:
                raise DataError(f"encoding must be one that Python knows, such as cp1252, found: {name!r}") from None
            except UnicodeDecodeError as error:
                last = error
        raise DataError(
            f"{self.path}: byte {last.start} is not {' or '.join(tried)}; save the table as UTF-8, or give encoding="
        )

    def _workbook_rows(self) -> Iterator[list[Any]]:
        values, formulas = (self._sheet_rows(data_only) for data_only in (True, False))
        width = 0
        for number, (cells, sources) in enumerate(zip(values, formulas, strict=True), start=1):
            for cell, source in zip(cells, sources, strict=True):
                if cell is None and isinstance(source, str) and source.startswith("="):
                    raise DataError(
                        f"{self.path}, row {number} of the sheet: the workbook does not hold the result of {source!r}; "
                        "open and save it in a spreadsheet, or save it as .csv"
                    )
            row = [from_cell(cell) if isinstance(cell, str) else cell for cell in cells]
            while row and row[-1] is None:
                del row[-1]
            if row:
                width = width or len(row)
                yield row + [None] * (width - len(row))

    def _sheet_rows(self, data_only: bool) -> Iterator[tuple[Any, ...]]:
        try:
            from openpyxl import load_workbook
            from openpyxl.utils.exceptions import InvalidFileException
        except ImportError:
            raise DataError(
                f"{self.path}: reading a workbook needs openpyxl: pip install 'ecgfm-hf[excel]', or save it as .csv"
            ) from None
        try:
            workbook = load_workbook(self.path, read_only=True, data_only=data_only)
        except (InvalidFileException, zipfile.BadZipFile, KeyError, ValueError) as error:
            raise self._unreadable(error) from None
        try:
            filled = [
                sheet.title
                for sheet in workbook.worksheets
                if any(any(row) for row in sheet.iter_rows(max_row=_ROWS_TO_SNIFF, values_only=True))
            ]
            shown = ", ".join(sheet.title for sheet in workbook.worksheets)
            if self.sheet is not None and self.sheet not in workbook.sheetnames:
                raise DataError(f"{self.path} has no sheet {self.sheet!r} (found: {shown})")
            if self.sheet is None and len(filled) > 1:
                raise DataError(f"{self.path} has several sheets with cells ({', '.join(filled)}); give sheet=")
            title = self.sheet or next(iter(filled), workbook.sheetnames[0])
            yield from workbook[title].iter_rows(values_only=True)
        finally:
            workbook.close()

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(f"{self.path}: cannot read this table ({error})")


def clean_name(name: Any) -> str:
    """Return a column's name as labels and settings use it."""
    text = re.sub(r"\s*[\r\n]+\s*", " ", str(name)).strip().removeprefix("\ufeff")
    return "" if re.fullmatch(r"__index_level_\d+__", text) else text  # pandas' index, which has no name


def shown_header(header: Iterable[str]) -> str:
    names = [name for name in header if name]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"found: {', '.join(names[:MOST_NAMES]) or 'no named column'}{more}"


def point_decimals(where: Any, name: str, values: list[Any], decimal: str | None) -> list[Any]:
    """
    Return a column of numbers with decimal points, where it has decimal commas; others stay as they are.

    Args:
        where, name: The table and its column, for the error.
        decimal (`str`, *optional*): `","` or `"."`. By default a comma counts as decimal where a column has only
            numbers with at most one comma each.

    Raises:
        [`DataError`]: every comma is followed by three digits, so that it may stand between thousands.
    """
    texts = [value for value in values if isinstance(value, str) and "," in value]
    if decimal == "." or not texts or not all(_is_number_with_comma(value) for value in values):
        return values
    if decimal is None and all(re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", text.strip()) for text in texts):
        raise DataError(
            f"{where}: {name} has numbers such as {texts[0].strip()}: give decimal=',' if the comma is the decimal "
            "sign; without it, write numbers without a sign between thousands"
        )
    return [value.replace(",", ".") if isinstance(value, str) else value for value in values]


@functools.lru_cache(256)
def _is_number_with_comma(value: Any) -> bool:
    text = "" if value is None else str(value).strip()
    return text.lower() in ("", "nan", "none", "na", "n/a") or bool(re.fullmatch(r"[+-]?\d+([.,]\d+)?", text))


def _separator(where: Path, text: str) -> str:
    """Return the separator that divides all of the first rows into the same number of cells, the most of them."""
    widths = {}
    for sign in _SEPARATORS:
        rows = [row for row in islice(read_cells(io.StringIO(text, newline=""), sign), _ROWS_TO_SNIFF) if row]
        widths[sign] = [len(row) for row in rows]
    even = {sign: found[0] for sign, found in widths.items() if len(set(found)) == 1 < found[0]}
    # A row of another length is an error, reported later: then the header decides.
    candidates = even or {sign: found[0] if found else 0 for sign, found in widths.items()}
    best = [sign for sign, width in candidates.items() if width == max(candidates.values())]
    if len(best) > 1 and candidates[best[0]] > 1:
        shown = " and ".join(map(repr, best))
        raise DataError(f"{where}: {shown} divide the rows equally well; give separator=")
    return best[0]


__all__ = ["MOST_NAMES", "TableFile", "clean_name", "point_decimals", "shown_header"]
