"""A processed folder of fairseq-signals as data sets of model inputs, without copying it."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.labels import LabelTableError, read_label_def, read_pos_weight
from ..records import ECGReadError
from ..utils.ids import canonical_id
from .manifests import (
    FairseqFolderError,
    Manifest,
    ManifestEntry,
    path_below,
    read_cmsc_manifest,
    read_manifest,
)
from .mat_file import Segment, read_segment

LABELED_SPLITS_FILE = "meta_split_labeled.csv"
# How many lines are looked at to find out where the segments are.
_LOOKED_AT = 20


class LeftOut(NamedTuple):
    """A manifest's line that gives no item, and why."""

    line: int
    recording_id: str
    reason: str


class FairseqFolder:
    """
    A folder that fairseq-signals' scripts made, or [`export_fairseq_folder`].

        segmented/RECORDING_0.mat ...     manifests/train.tsv, manifests/cmsc/train.tsv ...
        labels/y.npy, label_def.csv, pos_weight.txt, meta_split_labeled.csv     meta.csv

    All but segments and the manifest asked for may be missing. Manifests hold the absolute path of whoever made them;
    segments are looked for below this folder instead (`segmented`, the last part of that path, the folder itself,
    beside the manifest), or below `root`, and nothing outside is ever opened.

    Args:
        path (`str` or `Path`)
        root (`str` or `Path`, *optional*): The folder that the manifests' names are below.
        labels (`str` or `Path`, *optional*): The folder of `y.npy`. Defaults to `labels`, or `path` itself.
        patient_column (`str`, defaults to `"patient_id"`): The column of `meta.csv` that tells patients apart.
        sampling_rate (`float`, defaults to 500), segment_samples (`int`, defaults to 2500):
            What every segment must have.

    Attributes:
        label_names (`tuple[str, ...]`): In the order of `y.npy`'s columns; empty where there are no labels.
        pos_weight (`np.ndarray` `(L,)`, *optional*)

    Raises:
        `FairseqFolderError`: no such folder, files that contradict one another.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        root: str | Path | None = None,
        labels: str | Path | None = None,
        patient_column: str = "patient_id",
        sampling_rate: float = 500,
        segment_samples: int = 2500,
    ):
        self.path, self.root = Path(path), None if root is None else Path(root)
        for folder in (self.path, self.root):
            if folder is not None and not folder.is_dir():
                raise FairseqFolderError(f"{folder}: no such folder")
        self.sampling_rate, self.segment_samples = sampling_rate, segment_samples
        at = self.path / "manifests"
        self.manifests = at if at.is_dir() else self.path
        self._read_labels(Path(labels) if labels is not None else self.path / "labels")
        self._recordings, self._patients = self._read_meta(patient_column)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that have a manifest."""
        return tuple(sorted(path.stem for path in self.manifests.glob("*.tsv")))

    def dataset(self, split: str = "train", pairs: bool = False, errors: str = "raise") -> "FairseqSegments":
        """As [`load_fairseq_folder`]."""
        if errors not in ("raise", "skip"):
            raise ValueError(f"errors must be 'raise' or 'skip', found: {errors!r}")
        if Path(split).name != split:
            raise FairseqFolderError(f"{split!r} is no name of a split")
        file = self.manifests / "cmsc" / f"{split}.tsv" if pairs else self.manifests / f"{split}.tsv"
        return FairseqSegments(self, split, read_cmsc_manifest(file) if pairs else read_manifest(file), errors)

    def labels_of(self, idx: int | None, what: str) -> np.ndarray:
        """(L,) float32 of a recording: 1, 0, or NaN throughout where it was not labelled."""
        if idx is None or not 0 <= idx < len(self._values):
            raise FairseqFolderError(f"{what}: idx is {idx}, but y.npy has rows 0 to {len(self._values) - 1}")
        if self._labelled is not None and idx not in self._labelled:
            return np.full(len(self.label_names), np.nan, dtype=np.float32)
        return np.array(self._values[idx], dtype=np.float32)

    def recording_of(self, segment: Segment, name: str) -> tuple[str, str | None]:
        """Recording id and patient id, by `meta.csv` where it has them."""
        return self._recordings.get(segment.idx, name), self._patients.get(segment.idx, segment.patient_id)

    def segments_root(self, manifest: Manifest) -> Path:
        """The folder that a manifest's names are below."""
        if self.root is not None:
            return self.root
        last = [] if manifest.root_name in ("", ".", "..") else [manifest.root_name]
        places = [self.path / name for name in dict.fromkeys(("segmented", *last, "."))]
        places += [manifest.path.parent / name for name in (*last, ".")]
        names = [entry.files[0] for entry in manifest.entries[:_LOOKED_AT]]
        for place in places:
            if any((place / name).is_file() for name in names):
                return place
        tried = ", ".join(str(place) for place in dict.fromkeys(places))
        shown = names[0] if names else "its segments"
        raise FairseqFolderError(
            f"{manifest.path}: {shown} is in none of {tried}; say where its names are below (root)"
        )

    def _read_labels(self, folder: Path) -> None:
        folder = folder if (folder / "y.npy").is_file() else self.path
        self.label_names: tuple[str, ...] = ()
        self.pos_weight, self._values, self._labelled = None, np.empty((0, 0)), None
        file = folder / "y.npy"
        if not file.is_file():
            return
        try:
            self._values = np.load(file, mmap_mode="r", allow_pickle=False)
            if self._values.ndim != 2 or self._values.dtype.kind not in "fiub":
                raise ValueError(f"found {self._values.dtype} of shape {self._values.shape}, expected (rows, labels)")
        except (ValueError, EOFError, OSError) as error:
            raise FairseqFolderError(f"{file} is no array of labels: {error}") from None
        count = self._values.shape[1]
        self.label_names = tuple(f"LABEL_{number}" for number in range(count))
        try:
            if (folder / "label_def.csv").is_file():
                self.label_names = read_label_def(folder / "label_def.csv").names
            if (folder / "pos_weight.txt").is_file():
                self.pos_weight = read_pos_weight(folder / "pos_weight.txt")
        except LabelTableError as error:
            raise FairseqFolderError(str(error)) from error
        weights = count if self.pos_weight is None else len(self.pos_weight)
        if not count == len(self.label_names) == weights:
            raise FairseqFolderError(
                f"{folder}: y.npy has {count} labels, label_def.csv {len(self.label_names)}, pos_weight.txt {weights}"
            )
        if (folder / LABELED_SPLITS_FILE).is_file():
            self._labelled = {idx for idx, _ in _numbered_rows(folder / LABELED_SPLITS_FILE)}

    def _read_meta(self, patient_column: str) -> tuple[dict[int, str], dict[int, str]]:
        file = self.path / "meta.csv"
        recordings, patients = {}, {}
        for idx, row in _numbered_rows(file) if file.is_file() else ():
            if recording := row.get("recording_id"):
                recordings[idx] = recording
            if (patient := canonical_id(row.get(patient_column))) is not None:
                patients[idx] = patient
        return recordings, patients


class FairseqSegments:
    """
    The segments of a split, or its pairs of neighbouring segments, in the manifest's order.

    Attributes:
        folder ([`FairseqFolder`]), split (`str`)
        unpaired (`int`): Of a CMSC manifest, segments without a partner.
        left_out (`list[LeftOut]`): Lines without an item; empty unless `errors="skip"`.
    """

    def __init__(self, folder: FairseqFolder, split: str, manifest: Manifest, errors: str):
        self.folder, self.split, self.manifest_path = folder, split, manifest.path
        self.unpaired = manifest.unpaired
        self.root = folder.segments_root(manifest)
        self.left_out: list[LeftOut] = []
        self._entries: list[ManifestEntry] = []
        for entry in manifest.entries:
            try:
                self._check(entry) if errors == "raise" else self._item(entry)
            except FairseqFolderError as error:
                if errors == "raise":
                    raise
                self.left_out.append(LeftOut(entry.line, entry.recording, str(error)))
            else:
                self._entries.append(entry)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._item(self._entries[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self._item, self._entries)

    def _where(self, entry: ManifestEntry) -> str:
        return f"{self.manifest_path}, line {entry.line}"

    def _check(self, entry: ManifestEntry) -> None:
        for file in entry.files:
            if not (self.root / file).is_file():
                raise FairseqFolderError(f"{self._where(entry)}: {self.root / file}: no such file")

    def _read(self, entry: ManifestEntry) -> list[Segment]:
        try:
            segments = [read_segment(path_below(self.root, file)) for file in entry.files]
        except (ECGReadError, FairseqFolderError) as error:
            raise FairseqFolderError(f"{self._where(entry)}: {error}") from error
        folder = self.folder
        for file, number, segment in zip(entry.files, entry.segments, segments, strict=True):
            for what, found, expected in (
                ("samples", segment.values.shape[1], entry.samples),
                ("samples", segment.values.shape[1], folder.segment_samples),
                ("Hz", segment.sampling_rate, folder.sampling_rate),
                ("as its number", number if segment.number is None else segment.number, number),
                ("as its idx", segment.idx, segments[0].idx),
            ):
                if found != expected:
                    raise FairseqFolderError(
                        f"{self._where(entry)}: {self.root / file} has {found} {what}, expected {expected}"
                    )
        return segments

    def _item(self, entry: ManifestEntry) -> dict[str, Any]:
        segments = self._read(entry)
        recording, patient = self.folder.recording_of(segments[0], entry.recording)
        item = {"segment": entry.segments[0], "recording_id": recording, "patient_id": patient}
        if len(segments) > 1:
            return {"input_values": np.stack([segment.values for segment in segments]), **item}
        if self.folder.label_names:
            item["labels"] = self.folder.labels_of(segments[0].idx, self._where(entry))
        return {"input_values": segments[0].values, **item}


def load_fairseq_folder(
    path: str | Path, split: str = "train", pairs: bool = False, *, errors: str = "raise", **settings: Any
) -> FairseqSegments:
    """
    A split of a processed folder of fairseq-signals as a map-style data set.

    The segments were standardised over their whole recordings when the folder was made. They are the model's input as
    they are, and no feature extractor may see them again.

    Args:
        path (`str` or `Path`)
        split (`str`, defaults to `"train"`)
        pairs (`bool`, defaults to `False`): Neighbouring segments for CMSC, by `manifests/cmsc`, in place of segments.
        errors (`str`, defaults to `"raise"`):
            `"raise"`: a missing file is an error at once, a damaged one when it is read, and names the manifest's line.
            `"skip"`: every file is read once at the start, and lines that give nothing go to `left_out` with a reason.
        settings: As for [`FairseqFolder`]: `root`, `labels`, `patient_column`, `sampling_rate`, `segment_samples`.

    Returns:
        [`FairseqSegments`], which torch's `DataLoader` takes. Its items are those of [`as_model_inputs`]:

        - `input_values`: (12, 2500) float32, or (2, 12, 2500) for pairs
        - `labels`: (L,) float32, 1 or 0, NaN where the recording is not labelled; only where there are labels, not for
          pairs
        - `recording_id`: `meta.csv`'s `recording_id`, else the name of the files
        - `patient_id`: `meta.csv`'s, else the file's own, else None
        - `segment`: its number in the recording, of a pair that of the first

    Raises:
        `FairseqFolderError`
    """
    return FairseqFolder(path, **settings).dataset(split, pairs, errors)


def _numbered_rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(idx, row) of a table with a column idx."""
    with open(file, encoding="utf-8-sig", newline="") as stream:
        for row in csv.DictReader(stream):
            idx = canonical_id(row.get("idx"))
            if idx is None or not (idx.isascii() and idx.isdigit()):
                raise FairseqFolderError(f"{file}: found idx {row.get('idx')!r}, expected whole numbers from 0")
            yield int(idx), row
