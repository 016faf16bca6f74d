"""The PhysioNet/CinC Challenge 2021: folders of WFDB files, and labels from the SNOMED CT codes in their headers."""

import functools
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from ...records import ECGRecord
from ...utils.ids import canonical_id
from ..exclusion import Excluded
from ..store import DataError
from .base import Source, SourceIndex, exclude_headless, unique_rows, walk_files

# Codes in the challenge's recordings that it does not score (its dx_mapping_unscored.csv).
UNSCORED_CODES = frozenset(
    """
    233892002 164951009 251187003 61277005 426664006 251139008 57054005 413444003 426434006 54329005 251173003
    195080001 195126007 251268003 106068003 713422000 233917008 50799005 29320008 251166008 233897008 251170000
    418818005 74615001 426749004 251199005 61721007 698247007 27885002 204384007 53741008 413844008 251198002 82226007
    428417006 13640000 164942001 84114007 368009 251259000 251200008 195042002 426183003 425419005 251120003 704997005
    49260003 426995002 251164006 426648003 253352002 67741000119109 446813000 425623009 445211001 164873001 55827005
    370365005 164865005 164861001 54016002 428750005 164867002 282825002 251205003 67198005 425856008 164912004
    253339007 164921003 446358003 67751000119106 314208002 89792004 17366009 65778007 5609005 60423000 49578007
    77867006 55930002 429622005 164931005 164930006 251168009 426761007 266257000 251223006 164937009 11157007
    164884008 75532003 81898007 164896001 111288001 266249003 195060002 251266004 251182009 164895002 251180001
    195101003 74390002
    """.split()  # noqa: SIM905 (a list takes a line for each code)
)


class PhysioNet2021(Source):
    """
    The challenge's training folders, any of them: `ROOT/**/*.hea`.

    A recording's source is the folder below `training` that it lies in (`cpsc_2018`, `ptb-xl`, `georgia`, ...), and
    its labels are the 26 scored classes of its header's SNOMED codes ([`snomed_values`]); other codes stay in the
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
        excluded: list[Excluded] = []
        paths = list(walk_files(self.root, (".hea",), excluded))
        if not paths:
            raise DataError(f"{self.root}: found no WFDB header (.hea) in this folder or below")
        table = pa.table(
            {
                "recording_id": [path.rpartition("/")[2][: -len(".hea")] for path in paths],
                "path": paths,
                "source": [self._source_of(path) for path in paths],
            }
        )
        table = unique_rows(table, excluded)
        exclude_headless(self.root, paths, excluded)
        return SourceIndex(table, excluded, ["Headers of PhysioNet 2021 carry no patient id."])

    def labels(self, record: ECGRecord, entry: Mapping[str, Any]) -> dict[str, int | None]:
        return snomed_values(record.diagnoses)

    def _source_of(self, path: str) -> str:
        """Return `georgia` for `training/georgia/g1/E00001.hea`, whichever of these folders is the root."""
        below = path.split("/")[:-1]
        folders = [*os.path.abspath(self.root).split(os.sep)[-3:], *below]
        if "training" in folders[:-1]:
            return folders[folders.index("training") + 1]
        return below[0] if below else folders[-1]


def scored_classes() -> tuple[str, ...]:
    """Return the 26 classes that the challenge scores, in the order of its `weights.csv`."""
    return _scored_classes()[0]


def scored_codes() -> frozenset[str]:
    """Return the codes of these classes."""
    return frozenset(_scored_classes()[1])


def snomed_values(codes: str | Iterable[int | str] | None) -> dict[str, int | None]:
    """
    Return the labels of one recording: 1 or 0 by class, or None for all if it has no codes.

    Codes that the challenge scores as one share a class. As there, a recording with codes has 0 for all other classes.

    Args:
        codes: The codes, or the header's text ("284470004,427084000"), or None.
    """
    names, column_of = _scored_classes()
    parts: Iterable[int | str | None]
    if isinstance(codes, str):
        parts = re.split(r"[,;|\s]+", codes)
    else:
        parts = codes if isinstance(codes, Iterable) else (codes,)
    found = {code for part in parts if (code := canonical_id(part)) is not None}
    if not found:
        return dict.fromkeys(names)
    positive = {names[column_of[code]] for code in found if code in column_of}
    return {name: int(name in positive) for name in names}


@functools.cache
def _scored_classes() -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the names of the scored classes, and the column of each code."""
    # Imported late: `fairseq` imports torch.
    from ...fairseq.label_sets import PHYSIONET_CLASSES

    names = tuple(name for _, _, name in PHYSIONET_CLASSES)
    return names, {str(code): column for column, (codes, _, _) in enumerate(PHYSIONET_CLASSES) for code in codes}
