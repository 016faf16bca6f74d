"""
The builder of 🤗 datasets that reads a store's Parquet files, each checked before its first row.

A file comes from the disk once: Arrow reads the memory that the digest was computed of, without a copy. That saves more
time than the digest takes.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets.builder import Key
from datasets.packaged_modules.parquet.parquet import Parquet

from .remote_stores import open_store_file


class StoreBuilder(Parquet):
    """
    Reads files of stores; all else is as in `Parquet`.

    Attributes:
        address (`str`, *optional*): Of the store, where its files are fetched; see [`open_store_file`].

    Raises while reading:
        `DataError`: a file has changed, or cannot be fetched.
    """

    address: str | None = None
    # Its parent's wait of 5 s at the end of a shuffled stream is for threads of Arrow; here none reads.
    SLEEP_ON_THREADS_SHUTDOWNS = False

    def _generate_tables(
        self, files: Sequence[str], row_groups_list: Sequence[Sequence[int] | None]
    ) -> Iterator[tuple[Key, pa.Table]]:
        schema = self.info.features.arrow_schema  # made anew at each look, which takes milliseconds
        for number, (name, groups) in enumerate(zip(files, row_groups_list, strict=True)):
            with open_store_file(Path(name), self.address) as file:
                for index, table in _row_groups(file, range(file.num_row_groups) if groups is None else groups):
                    yield Key(number, index), table if table.schema == schema else self._cast_table(table)


def _row_groups(file: pq.ParquetFile, indices: Sequence[int]) -> Iterator[tuple[int, pa.Table]]:
    """Yield row groups, each read by a thread while the one before is used."""
    ahead: _Reading | None = None
    try:
        for number, index in enumerate(indices):
            table = (ahead or _Reading(file, index)).table()
            ahead = _Reading(file, indices[number + 1]) if number + 1 < len(indices) else None
            yield index, table
    finally:
        if ahead is not None:
            ahead.join()


class _Reading(threading.Thread):
    def __init__(self, file: pq.ParquetFile, index: int):
        super().__init__(daemon=True)
        self._read = functools.partial(file.read_row_group, index, use_threads=False)
        self._table: pa.Table | None = None
        self.start()

    def run(self) -> None:
        with contextlib.suppress(Exception):
            self._table = self._read()

    def table(self) -> pa.Table:
        self.join()
        # There is none if reading failed, or if this process was forked meanwhile, without its threads.
        return self._read() if self._table is None else self._table


__all__ = ["StoreBuilder"]
