"""
The recording store: one row per recording, with its samples unchanged.

    STORE/data/train-00000-of-00004.parquet    `all-...` where nothing is split
    STORE/report.json                          what was found, kept and excluded, and why
    STORE/checksums.json                       digests of all files, checked by whoever reads the store
    STORE/label_def.csv                        how often each label occurs, where there are labels
    STORE/README.md                            the dataset card

`signal` is the array (leads, samples) of `dtype`, lead after lead, little-endian: a flat binary column is read several
times faster than nested lists. Nothing is preprocessed, so another setting of the feature extractor needs no second
preparation, and the two neighbouring segments for CMSC are two slices of one row.
"""

import contextlib
import functools
import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..records.store_rows import (
    COLUMNS,
    LABEL_CLASSES,
    OPTIONAL_COLUMNS,
    label_columns,
    quality_facts,
    record_from_row,
    row_from_record,
)
from ..utils.errors import ECGFMError
from ..utils.integrity import (
    CHECKSUMS_FILE,
    changed_files,
    checksum_once,
    file_checksum,
    file_state,
    mapped_checksum,
    read_checksums,
    write_checksums,
)
from .splits import UNSPLIT

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

DATA_FOLDER, REPORT_FILE, LABEL_DEF_FILE, CARD_FILE = "data", "report.json", "label_def.csv", "README.md"
# Exists while a store is being prepared.
WORK_FOLDER = ".ecgfm-work"

# Rows are written in groups of about this size, which bounds the memory of writers and readers.
_GROUP_ROWS, _GROUP_BYTES = 64, 1 << 25
_ALGORITHM = "xxh3_128"
# The states of files when their digests were compared.
_checked: set[tuple[int, ...]] = set()


class DataError(ECGFMError, ValueError):
    """A dataset or store that is missing, unfinished, damaged or not as expected. The message names the file."""


def store_schema(label_names: Sequence[str]) -> pa.Schema:
    """
    Return the columns of a store with these labels. `DataError` where a label has the name of another column.

    The metadata is what 🤗 datasets writes and reads: labels are `ClassLabel`s, wherever the files go.
    """
    return _schema_of(tuple(label_names))


@functools.lru_cache(maxsize=16)
def _schema_of(label_names: tuple[str, ...]) -> pa.Schema:
    from datasets import ClassLabel, Features

    if taken := [name for name in label_names if name in COLUMNS]:
        raise DataError(f"a label cannot be called {', '.join(taken)}: the store has another column of that name")
    # Text, as torch has no type for a time.
    features = Features.from_arrow_schema(pa.schema(COLUMNS | {"time": pa.string()}))
    return Features({**features, **{name: ClassLabel(names=LABEL_CLASSES) for name in label_names}}).arrow_schema


def with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with the columns of `schema`; those that it does not have are null."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def default_labels(dataset: "Dataset | IterableDataset") -> tuple[str, ...]:
    """
    Return the labels of a store's dataset, for callers who name none.

    Raises:
        `DataError`: a column of numbers may be a label that is marked as none, as after `cast_column`.
    """
    features = dataset.features or {}
    labels = label_columns(list(features), features)
    others = [name for name in features if name not in COLUMNS and name not in labels]
    kinds = ("bool", "int", "uint", "float")
    if unclear := [name for name in others if str(getattr(features[name], "dtype", "")).startswith(kinds)]:
        raise DataError(
            f"the dataset has columns of numbers that are not marked as labels: {', '.join(unclear)}. Name the labels "
            "(labels=[...]), remove the columns, or cast a label to ClassLabel(names=['absent', 'present'])"
        )
    return labels


class StoreWriter:
    """Writes rows to one Parquet file in constant memory. A context manager."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._schema = schema
        # Noisy samples of 16 bits shrink to 46% at level 1, in 0.35 ms for 10 s; level 3 takes 0.5 ms for 42%.
        # Dictionaries and statistics of signals would only cost time.
        repeated = [name for name in ("source", "sex", "dtype") if name in schema.names]
        self._writer = pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=repeated,
            write_statistics=repeated,
            write_page_checksum=True,  # noise is stored uncompressed, and a flipped bit there is another sample
        )
        self._rows: list[dict] = []
        self._tables: list[pa.Table] = []
        self._bytes = 0
        self.num_rows = 0

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row; missing columns are null."""
        self._rows.append(dict(row))
        self._bytes += len(row["signal"])
        self.num_rows += 1
        if len(self._rows) >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._flush()

    def write_table(self, table: pa.Table) -> None:
        """Add the rows of a table."""
        self.num_rows += table.num_rows
        self._tables.append(with_schema(table, self._schema))
        self._bytes += table.nbytes
        # Tables of few rows are collected, so that groups are not too small.
        if sum(map(len, self._tables)) >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        tables = self._tables
        if self._rows:
            columns = [pa.array([row.get(f.name) for row in self._rows], f.type) for f in self._schema]
            tables = [*tables, pa.table(columns, schema=self._schema)]
        if tables:
            self._writer.write_table(pa.concat_tables(tables), row_group_size=_GROUP_ROWS)
        self._rows, self._tables, self._bytes = [], [], 0

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()


def read_report(store: str | Path) -> dict[str, Any]:
    """Return `report.json` of a store. `DataError` where there is none, as in an unfinished preparation."""
    path = Path(store) / REPORT_FILE
    if not path.is_file():
        unfinished = (Path(store) / WORK_FOLDER).is_dir()
        hint = "its preparation is unfinished: run the same `ecgfm prepare` again" if unfinished else "not a store"
        raise DataError(f"{store} has no {REPORT_FILE}: {hint}")
    _check(store, [REPORT_FILE])
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if not isinstance(report, dict) or not {"format", "plan", "splits", "recordings", "excluded"} <= report.keys():
        raise DataError(f"{path} is not the report of a store")
    return report


def write_store_checksums(store: str | Path) -> None:
    """Write the digests of a store's files, and of the Parquet files' footers, which readers need first."""
    folder = Path(store)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    footers = {name: _footer_checksum(folder / name) for name in names if name.endswith(".parquet")}
    write_checksums(folder, names, _ALGORITHM, footers=footers)


def check_footers(store: str | Path, files: Sequence[Path]) -> None:
    """
    Check the footers of a store's files, which the checksums of the pages do not cover.

    Raises:
        `DataError`: the first that has changed.
    """
    footers = _checksums(store).get("footers", {})
    for path in files:
        name = f"{DATA_FOLDER}/{path.name}"
        if footers.get(name) != _footer_checksum(path):
            raise _damaged(store, f"the footer of {name} has changed")


def content_digest(files: Sequence[Path]) -> str:
    """Return a digest of stores' Parquet files as they were written, from their `checksums.json`."""
    digests = {folder: _checksums(folder)["files"] for folder in {path.parent.parent for path in files}}
    found = [(path.name, digests[path.parent.parent].get(f"{DATA_FOLDER}/{path.name}")) for path in files]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _footer_checksum(path: Path) -> str:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        length = int.from_bytes(file.read(4), "little")
    return file_checksum(path, _ALGORITHM, start=max(0, size - 8 - length))


def _checksums(store: str | Path) -> dict[str, Any]:
    with _errors_of_checksums(store):
        return read_checksums(store)


@contextlib.contextmanager
def _errors_of_checksums(store: str | Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{store} has no {CHECKSUMS_FILE}, so damage cannot be noticed: prepare it again") from None
    except ValueError as error:
        raise _damaged(store, f"{CHECKSUMS_FILE}: {error}") from None


def check_files(store: str | Path, files: Sequence[Path]) -> None:
    """
    Check Parquet files of a store in whole, each once in a run.

    Raises:
        `DataError`: one has changed.
        `FileNotFoundError`: one has gone.
    """
    states = {path: file_state(path) for path in files}
    if unchecked := [path for path, state in states.items() if state not in _checked]:
        _check(store, [f"{DATA_FOLDER}/{path.name}" for path in unchecked])
        _checked.update(states.values())


def map_checked(path: Path) -> pa.NativeFile:
    """
    Map a Parquet file of a store into memory, and check it in whole, once in a process.

    The digest is computed of the map: its pages are then there when Arrow reads them, without a copy.

    Raises:
        `DataError`: it has changed, or cannot be read.
    """
    store, name = path.parent.parent, f"{DATA_FOLDER}/{path.name}"
    checksums = _checksums(store)
    try:
        state = file_state(path)
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        found = None if state in _checked else mapped_checksum(path, content, checksums["algorithm"])
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise _damaged(store, f"{name} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if found is not None and found != checksums["files"].get(name):
        raise _damaged(store, f"{name} has changed")
    _checked.add(state)
    return pa.BufferReader(pa.py_buffer(content))


def _check(store: str | Path, names: Sequence[str]) -> None:
    with _errors_of_checksums(store):
        changed = changed_files(store, names, checksum_once)
    if changed:
        raise _damaged(store, "; ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else ""))


def _damaged(store: str | Path, problem: str) -> DataError:
    return DataError(f"{store} is damaged: {problem}. Copy it again, or prepare it again (overwrite=True, --overwrite)")


def store_files(store: str | Path) -> dict[str, list[Path]]:
    """
    Return the Parquet files of a store by split, in order; train, valid and test come first.

    Raises:
        `DataError`: no store, or a missing file.
    """
    splits = list(read_report(store)["splits"]["recordings"])
    found = {}
    for split in splits:
        files = sorted((Path(store) / DATA_FOLDER).glob(f"{split}-?????-of-?????.parquet"))
        expected = int(files[0].stem[-5:]) if files else 1
        if len(files) != expected:
            raise DataError(f"{store}: split {split} has {len(files)} of {expected} Parquet files")
        found[split] = files
    return found


__all__ = [
    "CARD_FILE",
    "CHECKSUMS_FILE",
    "COLUMNS",
    "DATA_FOLDER",
    "LABEL_CLASSES",
    "LABEL_DEF_FILE",
    "OPTIONAL_COLUMNS",
    "REPORT_FILE",
    "UNSPLIT",
    "WORK_FOLDER",
    "DataError",
    "StoreWriter",
    "check_files",
    "check_footers",
    "content_digest",
    "default_labels",
    "label_columns",
    "map_checked",
    "quality_facts",
    "read_report",
    "record_from_row",
    "row_from_record",
    "store_files",
    "store_schema",
    "with_schema",
    "write_store_checksums",
]
