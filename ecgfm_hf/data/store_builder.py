"""
The builder of 🤗 datasets that reads a store's Parquet files, each checked before its first row.

A file comes from the disk once: Arrow reads the memory that the digest was computed of, without a copy. That saves more
time than the digest takes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
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

    def _generate_tables(
        self, files: Sequence[str], row_groups_list: Sequence[Sequence[int] | None]
    ) -> Iterator[tuple[Key, pa.Table]]:
        for number, (name, groups) in enumerate(zip(files, row_groups_list, strict=True)):
            with open_store_file(Path(name), self.address) as file:
                for index in range(file.num_row_groups) if groups is None else groups:
                    yield Key(number, index), self._cast_table(file.read_row_group(index, use_threads=False))


__all__ = ["StoreBuilder"]
