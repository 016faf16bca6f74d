"""Tables of reports in CSV and Parquet, read and written in blocks, with all their columns."""

import csv
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from ..utils.errors import ECGFMError
from ..utils.files import atomic_path
from ..utils.text import from_cell, to_cells
from .batch import ReportRow
from .report_labels import STATUSES

STATUS_COLUMN = "status"

_BLOCK = 20000  # Rows in memory at a time.


class TableError(ECGFMError, ValueError):
    """A table cannot be used; the message names the file."""


class Block:
    """Some rows of a table, by column: lists of text, or Arrow arrays."""

    def __init__(self, columns: Sequence[Any], number: int) -> None:
        self.columns, self.number = columns, number

    def texts(self, index: int) -> list:
        """Return a column as a list, with None for a missing value. (`_Reader.read_as_text` makes it text.)"""
        column = self.columns[index]
        return column if isinstance(column, list) else column.to_pylist()


class _Reader:
    """A table with a header. `number` of rows is None where it is unknown before reading."""

    number: int | None = None
    types: Sequence[Any] | None = None  # Arrow types of the columns; None where all are text.

    def __init__(self, path: Path, header: list[str]) -> None:
        self.path, self.header = path, header
        repeated = [column for column, count in Counter(header).items() if count > 1]
        if repeated:
            raise TableError(f"{path}: the column {repeated[0]!r} occurs twice")

    def index(self, column: str) -> int:
        if column not in self.header:
            raise TableError(f"{self.path}: has no column {column!r}; columns: {', '.join(self.header)}")
        return self.header.index(column)

    def read_as_text(self, index: int) -> None:
        """
        Read a column as text from now on: bytes are decoded as UTF-8.

        Raises:
            TableError: it is neither text nor bytes, and not empty.
        """

    def blocks(self) -> Iterator[Block]:
        raise NotImplementedError


class _CsvReader(_Reader):
    """A CSV file. Values stay the text that they are: "001" is no 1."""

    def __init__(self, path: Path) -> None:
        csv.field_size_limit(sys.maxsize)  # A report may be longer than the module's limit of 128 kB.
        with open(path, encoding="utf-8-sig", newline="") as stream:
            rows = self._rows(stream, path)
            header = next(rows, None)
        if not header:
            raise TableError(f"{path}: is empty; it must begin with a header")
        super().__init__(path, header)

    def blocks(self) -> Iterator[Block]:
        with open(self.path, encoding="utf-8-sig", newline="") as stream:
            rows = self._rows(stream, self.path)
            next(rows)
            while block := list(islice(rows, _BLOCK)):
                yield Block([list(column) for column in zip(*block, strict=True)], len(block))

    @staticmethod
    def _rows(stream: Any, path: Path) -> Iterator[list[str]]:
        reader, width = csv.reader(stream), None
        try:
            for row in reader:
                if width is None:
                    if not "".join(row).strip() and len(row) < 2:
                        continue  # A blank line before the header.
                    width = len(row)
                elif not row:
                    if width > 1:
                        continue  # A blank line.
                    row = [""]  # An empty report in a table with only this column.
                elif len(row) != width:
                    raise TableError(f"{path}: line {reader.line_num}: has {len(row)} fields, the header has {width}")
                yield list(map(from_cell, row))
        except (UnicodeDecodeError, csv.Error) as error:
            raise TableError(f"{path}: cannot be read as CSV in UTF-8: {error}") from error


class _ParquetReader(_Reader):
    """A Parquet file. Values keep their types."""

    def __init__(self, path: Path) -> None:
        arrow = _arrow()
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            self._file = arrow.parquet.ParquetFile(path)
        except arrow.ArrowInvalid as error:
            raise TableError(f"{path}: cannot be read as Parquet: {error}") from error
        super().__init__(path, list(self._file.schema_arrow.names))
        self.number = self._file.metadata.num_rows
        self.types = self._arrow_types = list(self._file.schema_arrow.types)
        self._encoded: set[int] = set()  # Columns of bytes that are text.

    def read_as_text(self, index: int) -> None:
        is_, found = _arrow().types, self._arrow_types[index]
        inner = found.value_type if is_.is_dictionary(found) else found
        if is_.is_binary(found) or is_.is_large_binary(found):
            self._encoded.add(index)
        elif not (is_.is_string(inner) or is_.is_large_string(inner) or self._is_empty(index)):
            raise TableError(f"{self.path}: the column {self.header[index]!r} must be text, found: {found}")

    def _is_empty(self, index: int) -> bool:
        """Return whether a column has no value in any row, as the last of `report_0`, `report_1`, ... may."""
        for batch in self._file.iter_batches(_BLOCK, columns=[self.header[index]]):
            column = batch.column(0)
            if column.is_null(nan_is_null=True).true_count < len(column):
                return False
        return True

    def blocks(self) -> Iterator[Block]:
        start = 0
        for batch in self._file.iter_batches(_BLOCK):
            if batch.num_rows:
                columns = [
                    self._decoded(column, index, start) if index in self._encoded else column
                    for index, column in enumerate(batch.columns)
                ]
                yield Block(columns, batch.num_rows)
                start += batch.num_rows

    def _decoded(self, column: Any, index: int, start: int) -> list:
        texts = []
        for row, value in enumerate(column.to_pylist(), start + 1):
            try:
                texts.append(None if value is None else value.decode("utf-8"))
            except UnicodeDecodeError as error:
                column = self.header[index]
                raise TableError(f"{self.path}: row {row}: the column {column!r} is no UTF-8: {error}") from error
        return texts


class _CsvWriter:
    def __init__(self, path: Path, reader: _Reader, labels: Sequence[str], soft: bool) -> None:
        self._stream = open(path, "w", encoding="utf-8", newline="")  # noqa: SIM115 (closed by __exit__)
        self._writer = csv.writer(self._stream, lineterminator="\n")
        self._writer.writerow(to_cells([*reader.header, *labels, STATUS_COLUMN]))
        self._soft = soft

    def write(self, block: Block, rows: Sequence[ReportRow]) -> None:
        columns = map(block.texts, range(len(block.columns)))
        for kept, row in zip(zip(*columns, strict=True), rows, strict=True):
            values = [round(value, 6) for value in row.values] if self._soft else row.values
            self._writer.writerow(to_cells([*kept, *values, row.status]))

    def __enter__(self) -> "_CsvWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


class _ParquetWriter:
    """Labels as int8, or float64 where soft."""

    def __init__(self, path: Path, reader: _Reader, labels: Sequence[str], soft: bool) -> None:
        self._arrow = _arrow()
        types = reader.types or [self._arrow.string()] * len(reader.header)
        value = self._arrow.float64() if soft else self._arrow.int8()
        fields = [*zip(reader.header, types, strict=True), *((label, value) for label in labels)]
        fields.append((STATUS_COLUMN, self._arrow.string()))
        self._schema = self._arrow.schema(fields)
        self._writer = self._arrow.parquet.ParquetWriter(path, self._schema)

    def write(self, block: Block, rows: Sequence[ReportRow]) -> None:
        labels = zip(*(row.values for row in rows), strict=True)
        columns = [*block.columns, *labels, [row.status for row in rows]]
        arrays = [
            column if isinstance(column, self._arrow.Array) else self._arrow.array(column, field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))

    def __enter__(self) -> "_ParquetWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()


def open_reader(path: Path) -> _Reader:
    """
    Open a table to read, by its suffix.

    Raises:
        TableError: the suffix is neither .csv nor .parquet, or the file is no such table.
        OSError: it cannot be opened.
        ModuleNotFoundError: Parquet without pyarrow.
    """
    return _by_suffix(path, path.suffix, {".csv": _CsvReader, ".parquet": _ParquetReader})(path)


def open_writer(suffix: str, path: Path, reader: _Reader, labels: Sequence[str], soft: bool) -> Any:
    """Open a table to write, of the kind `suffix`: the columns of `reader`, the labels, the status."""
    return _by_suffix(path, suffix, {".csv": _CsvWriter, ".parquet": _ParquetWriter})(path, reader, labels, soft)


def is_labelled(path: Path) -> bool:
    """Return whether a table was written by [`open_writer`]: its last column is the status of each report."""
    try:
        reader = open_reader(path)
        block = next(reader.blocks(), None) if reader.header[-1] == STATUS_COLUMN else None
    except (TableError, OSError, ImportError):
        return False
    return block is not None and block.texts(len(reader.header) - 1)[0] in STATUSES


def write_counts(path: Path, counts: Counter[str]) -> None:
    """Write texts and how often they occur, the most frequent first, as CSV."""
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    with atomic_path(path) as scratch, open(scratch, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["text", "count"])
        writer.writerows(map(to_cells, rows))


def _by_suffix(path: Path, suffix: str, kinds: dict[str, type]) -> type:
    if suffix.lower() not in kinds:
        raise TableError(f"{path}: must end with .csv or .parquet")
    return kinds[suffix.lower()]


def _arrow() -> ModuleType:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ModuleNotFoundError("Parquet needs pyarrow: pip install pyarrow (or use .csv)") from error
    return pyarrow
