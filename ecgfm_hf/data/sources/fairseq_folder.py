"""A processed folder of fairseq-signals as a source: its recordings in mV, its labels and splits."""

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...fairseq.folder_reading import IDX, SEGMENT_FILES, FairseqFolder, record_from_segments
from ...fairseq.manifests import FairseqFolderError
from ...records import ECGRecord
from ..store import COLUMNS, DataError
from .base import Source, SourceIndex, recording_stamps


class FairseqFolderSource(Source):
    """
    A processed folder of fairseq-signals.

    The voltages are restored by the mean and standard deviation in the segments' files. A recording's tail that was cut
    off when the folder was made is missing, so standardising the rest gives slightly other values.

    Args:
        root (`str` or `Path`): The folder, or a folder of manifests.
        segments (`str` or `Path`, *optional*): The folder of the segments, where it is not beside the manifests.
        labels (`str` or `Path`, *optional*): `y.npy`, where it is not beside the manifests.
    """

    name = "fairseq"

    def __init__(
        self,
        root: str | os.PathLike,
        segments: str | os.PathLike | None = None,
        labels: str | os.PathLike | None = None,
    ):
        super().__init__(root)
        self._segments = None if segments is None else Path(segments)
        self._labels = None if labels is None else Path(labels)

    @cached_property
    def _folder(self) -> FairseqFolder:
        try:
            return FairseqFolder(self.root, root=self._segments, labels=self._labels)
        except FairseqFolderError as error:
            raise DataError(str(error)) from error

    @property
    def label_names(self) -> tuple[str, ...]:
        return self._folder.label_names

    def published_split(self) -> dict[str, str]:
        """Return the split of each recording, by the manifests."""
        table = self._table
        return dict(zip(table["recording_id"].to_pylist(), table["_of_split"].to_pylist(), strict=True))

    def index(self) -> SourceIndex:
        return SourceIndex(self._table)

    @cached_property
    def _table(self) -> pa.Table:
        """Return all recordings of all splits; `DataError` where one is in two of them."""
        wanted = ("recording_id", "patient_id", "source", "age", "sex", "path", *self.label_names)
        parts = []
        try:
            for split in self._folder.splits:
                for table in self._folder.recordings(split, check=False):
                    columns = {name: table[name].cast(COLUMNS.get(name, pa.int8())) for name in wanted}
                    columns |= {"_files": table[SEGMENT_FILES], "_idx": table[IDX]}
                    parts.append(pa.table(columns | {"_of_split": pa.repeat(split, len(table))}))
        except FairseqFolderError as error:
            raise DataError(str(error)) from error
        if not parts:
            raise DataError(f"{self.root} has no recordings: its manifests are empty")
        whole = pa.concat_tables(parts)
        for counts in whole["recording_id"].value_counts():
            if counts["counts"].as_py() > 1:
                raise DataError(f"{self.root}: recording {counts['values']} is in two splits, expected one")
        return whole

    def read_one(self, entry: Mapping[str, Any]) -> ECGRecord:
        """Read one row of the index; see [`Source.read_one`]."""
        return record_from_segments({**entry, SEGMENT_FILES: entry["_files"], IDX: entry["_idx"]})

    def stamps(self, table: pa.Table) -> list[str]:
        rows = table["_files"].to_pylist()
        stamp_of = recording_stamps(file for files in rows for file in files)
        return [" ".join(stamp_of[file] for file in files) for files in rows]


__all__ = ["FairseqFolderSource"]
