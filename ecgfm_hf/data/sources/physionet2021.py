"""The PhysioNet/CinC Challenge 2021 in its own layout: folders of WFDB files with age, sex and codes in the headers."""

import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ...records import ECGRecord
from ..labels import scored_classes, snomed_values
from .base import LeftOut, Source, SourceError, SourceIndex, unique_rows, walk_files
from .wfdb_pairs import tell_headless


class PhysioNet2021(Source):
    """
    The challenge's training folders, any of them: `ROOT/**/*.hea`.

    A recording's source is the folder below `training` that it lies in (`cpsc_2018`, `ptb-xl`, `georgia`, ...), and
    its labels are the 26 scored classes of its header's SNOMED codes ([`snomed_labels`]); other codes stay in the
    column `diagnoses` and are counted in the report. Headers carry no patient id, so `patient_id` is unknown
    throughout.

    Args:
        root (`str` or `Path`): The folder that holds `training`, `training` itself, or one source in it.
    """

    name = "physionet2021"

    @property
    def label_names(self) -> tuple[str, ...]:
        return scored_classes()

    def index(self) -> SourceIndex:
        left_out: list[LeftOut] = []
        paths = list(walk_files(self.root, (".hea",), left_out))
        if not paths:
            raise SourceError(f"{self.root}: found no WFDB header (.hea) in this folder or below")
        table = pa.table(
            {
                "recording_id": [path.rpartition("/")[2][: -len(".hea")] for path in paths],
                "path": paths,
                "source": [self._source_of(path) for path in paths],
            }
        )
        table = unique_rows(table, left_out)
        tell_headless(self.root, paths, left_out)
        return SourceIndex(table, left_out, ["Headers of PhysioNet 2021 carry no patient id."])

    def labels(self, record: ECGRecord, entry: Mapping[str, Any]) -> dict[str, int | None]:
        return snomed_values(record.diagnoses)

    def _source_of(self, path: str) -> str:
        """`georgia` of `training/georgia/g1/E00001.hea`, wherever on that way the root lies."""
        below = path.split("/")[:-1]
        folders = [*os.path.abspath(self.root).split(os.sep)[-3:], *below]
        if "training" in folders[:-1]:
            return folders[folders.index("training") + 1]
        return below[0] if below else folders[-1]
