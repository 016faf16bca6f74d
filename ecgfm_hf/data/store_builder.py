"""
The builder of 🤗 datasets that reads a store's Parquet files, each checked before its first row.

A file comes from the disk once: Arrow reads the memory that the digest was computed of, without a copy. That saves more
time than the digest takes.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from datasets.builder import Key
from datasets.packaged_modules.parquet.parquet import Parquet

from .remote_stores import open_store_file

T = TypeVar("T")


class StoreBuilder(Parquet):
    """
    Reads files of stores; all else is as in `Parquet`.

    Attributes:
        address (`str`, *optional*): Of the store, where its files are fetched; see [`open_store_file`].

    Raises while reading:
        `DataError`: a file has changed, or cannot be fetched.
    """

    address: str | None = None

    def _generate_tables(
        self, files: Sequence[str], row_groups_list: Sequence[Sequence[int] | None]
    ) -> Iterator[tuple[Key, pa.Table]]:
        schema = self.info.features.arrow_schema  # made anew at each look, which takes milliseconds
        for key, table in _one_ahead(self._row_groups(files, row_groups_list)):
            yield key, table if table.schema == schema else self._cast_table(table)

    def _row_groups(
        self, files: Sequence[str], row_groups_list: Sequence[Sequence[int] | None]
    ) -> Iterator[tuple[Key, pa.Table]]:
        for number, (name, groups) in enumerate(zip(files, row_groups_list, strict=True)):
            with open_store_file(Path(name), self.address) as file:
                for index in range(file.num_row_groups) if groups is None else groups:
                    yield Key(number, index), file.read_row_group(index, use_threads=False)


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield items, each made by a thread while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


__all__ = ["StoreBuilder"]
