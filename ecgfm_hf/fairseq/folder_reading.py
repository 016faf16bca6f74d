"""Processed folders of fairseq-signals, read as data sets of model inputs without a copy."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..records.record import ECGReadError
from ..utils.errors import SettingsError
from ..utils.ids import canonical_id
from .label_sets import read_labels
from .manifests import (
    FairseqFolderError,
    Manifest,
    ManifestEntry,
    Segment,
    path_below,
    read_cmsc_manifest,
    read_manifest,
    read_segment,
)

LABELED_SPLITS_FILE = "meta_split_labeled.csv"
# Lines of a manifest whose files are looked for to find the folder of segments.
_TRIED_LINES = 20


class SkippedLine(NamedTuple):
    """A line of a manifest that gives no item, with the reason."""

    line: int
    recording_id: str
    reason: str


class FairseqFolder:
    """
    A processed folder, written by fairseq-signals' scripts or by [`export_fairseq_folder`].

        segmented/RECORDING_0.mat ...     manifests/train.tsv, manifests/cmsc/train.tsv ...
        labels/y.npy, label_def.csv, pos_weight.txt, meta_split_labeled.csv     meta.csv

    Only the segments and the manifest of a split are required. The root in a manifest is a path on the machine that
    wrote it. The segments are looked for below this folder instead (`segmented`, the last part of the root, the folder
    itself, beside the manifest), or below `root`. No file outside is opened.

    Args:
        path: The folder.
        root: The folder that the names in the manifests are relative to.
        labels: The folder of `y.npy`. Defaults to `labels`, or to `path` itself.
        patient_column: The column of `meta.csv` with patient ids.
        sampling_rate: Of every segment, in Hz.
        segment_samples: Samples of every segment.

    Attributes:
        label_names (`tuple[str, ...]`): In the order of `y.npy`'s columns; empty without labels.
        pos_weight (`np.ndarray | None`): (L,) float64, from `pos_weight.txt`.

    Raises:
        `FairseqFolderError`: no such folder, or files that contradict one another.
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
        self.manifests = self.path / "manifests"
        if not self.manifests.is_dir():
            self.manifests = self.path
        self._read_labels(Path(labels) if labels is not None else self.path / "labels")
        self._recordings, self._patients = self._read_meta(patient_column)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have a manifest."""
        return tuple(sorted(path.stem for path in self.manifests.glob("*.tsv")))

    def dataset(self, split: str = "train", pairs: bool = False, errors: str = "raise") -> "FairseqSegments":
        """Return a split as a data set, as [`load_fairseq_folder`]."""
        if errors not in ("raise", "skip"):
            raise SettingsError(f"errors is {errors!r}, expected 'raise' or 'skip'")
        if Path(split).name != split:
            raise FairseqFolderError(f"{split!r} cannot be the name of a split")
        file = self.manifests / "cmsc" / f"{split}.tsv" if pairs else self.manifests / f"{split}.tsv"
        return FairseqSegments(self, split, read_cmsc_manifest(file) if pairs else read_manifest(file), errors)

    def labels_of(self, idx: int | None, where: str) -> np.ndarray:
        """Return the labels of a recording, (L,) float32: 1 or 0, or all NaN if the recording is not labelled."""
        if idx is None or not 0 <= idx < len(self._values):
            raise FairseqFolderError(f"{where}: idx is {idx}, but y.npy has rows 0 to {len(self._values) - 1}")
        if self._labelled is not None and idx not in self._labelled:
            return np.full(len(self.label_names), np.nan, dtype=np.float32)
        return np.array(self._values[idx], dtype=np.float32)

    def recording_of(self, segment: Segment, name: str) -> tuple[str, str | None]:
        """Return recording id and patient id, from `meta.csv` if it has them."""
        if segment.idx is None:
            return name, segment.patient_id
        return self._recordings.get(segment.idx, name), self._patients.get(segment.idx, segment.patient_id)

    def segments_root(self, manifest: Manifest) -> Path:
        """Return the folder that the names in a manifest are relative to."""
        if self.root is not None:
            return self.root
        last = [] if manifest.root_name in ("", ".", "..") else [manifest.root_name]
        folders = [self.path / name for name in dict.fromkeys(("segmented", *last, "."))]
        folders += [manifest.path.parent / name for name in (*last, ".")]
        names = [entry.files[0] for entry in manifest.entries[:_TRIED_LINES]]
        for folder in folders:
            if any((folder / name).is_file() for name in names):
                return folder
        tried = ", ".join(str(folder) for folder in dict.fromkeys(folders))
        shown = names[0] if names else "its segments"
        raise FairseqFolderError(f"{manifest.path}: {shown} is in none of {tried}; pass the folder of segments as root")

    def _read_labels(self, folder: Path) -> None:
        folder = folder if (folder / "y.npy").is_file() else self.path
        self.label_names: tuple[str, ...] = ()
        self.pos_weight: np.ndarray | None = None
        self._values: np.ndarray = np.empty((0, 0))
        self._labelled: set[int] | None = None
        file = folder / "y.npy"
        if not file.is_file():
            return
        try:
            self._values = np.load(file, mmap_mode="r", allow_pickle=False)
            if self._values.ndim != 2 or self._values.dtype.kind not in "fiub":
                raise ValueError(f"found {self._values.dtype} of shape {self._values.shape}, expected (rows, labels)")
        except (ValueError, EOFError, OSError) as error:
            raise FairseqFolderError(f"{file} is not an array of labels: {error}") from None
        count = self._values.shape[1]
        self.label_names = tuple(f"LABEL_{number}" for number in range(count))
        try:
            if (folder / "label_def.csv").is_file():
                self.label_names = read_labels(folder / "label_def.csv").names
        except SettingsError as error:
            raise FairseqFolderError(str(error)) from error
        if (folder / "pos_weight.txt").is_file():
            self.pos_weight = read_pos_weight(folder / "pos_weight.txt")
        weights = count if self.pos_weight is None else len(self.pos_weight)
        if not count == len(self.label_names) == weights:
            raise FairseqFolderError(
                f"{folder}: y.npy has {count} labels, label_def.csv {len(self.label_names)}, pos_weight.txt {weights}"
            )
        if (folder / LABELED_SPLITS_FILE).is_file():
            self._labelled = {idx for idx, _ in _numbered_rows(folder / LABELED_SPLITS_FILE)}

    def _read_meta(self, patient_column: str) -> tuple[dict[int, str], dict[int, str]]:
        file = self.path / "meta.csv"
        recordings: dict[int, str] = {}
        patients: dict[int, str] = {}
        for idx, row in _numbered_rows(file) if file.is_file() else ():
            if recording := row.get("recording_id"):
                recordings[idx] = recording
            if (patient := canonical_id(row.get(patient_column))) is not None:
                patients[idx] = patient
        return recordings, patients


class FairseqSegments:
    """
    The segments of a split, or its pairs of adjacent segments, in the manifest's order.

    Attributes:
        folder ([`FairseqFolder`]): The folder.
        split (`str`): The split.
        unpaired (`int`): Segments without a partner in a CMSC manifest.
        skipped (`list[SkippedLine]`): Lines without an item; empty unless `errors="skip"`.
    """

    def __init__(self, folder: FairseqFolder, split: str, manifest: Manifest, errors: str):
        self.folder, self.split, self.manifest_path = folder, split, manifest.path
        self.unpaired = manifest.unpaired
        self.root = folder.segments_root(manifest)
        self.skipped: list[SkippedLine] = []
        self._entries: list[ManifestEntry] = []
        for entry in manifest.entries:
            if errors == "raise":
                self._check_exists(entry)
            else:
                try:
                    self._item(entry)
                except FairseqFolderError as error:
                    self.skipped.append(SkippedLine(entry.line, entry.recording, str(error)))
                    continue
            self._entries.append(entry)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._item(self._entries[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self._item, self._entries)

    def _where(self, entry: ManifestEntry) -> str:
        return f"{self.manifest_path}, line {entry.line}"

    def _check_exists(self, entry: ManifestEntry) -> None:
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
            samples = segment.values.shape[1]
            for found, expected, name in (
                (f"{samples} samples", f"{entry.samples} samples", ""),
                (f"{samples} samples", f"{folder.segment_samples} samples", ""),
                (f"{segment.sampling_rate:g} Hz", f"{folder.sampling_rate:g} Hz", ""),
                (number if segment.number is None else segment.number, number, "segment_i "),
                (segment.idx, segments[0].idx, "idx "),
            ):
                if found != expected:
                    raise FairseqFolderError(
                        f"{self._where(entry)}: {self.root / file} has {name}{found}, expected {expected}"
                    )
        return segments

    def _item(self, entry: ManifestEntry) -> dict[str, Any]:
        segments = self._read(entry)
        recording, patient = self.folder.recording_of(segments[0], entry.recording)
        item: dict[str, Any] = {"segment": entry.segments[0], "recording_id": recording, "patient_id": patient}
        if len(segments) > 1:
            return {"input_values": np.stack([segment.values for segment in segments]), **item}
        if self.folder.label_names:
            item["labels"] = self.folder.labels_of(segments[0].idx, self._where(entry))
        return {"input_values": segments[0].values, **item}


def load_fairseq_folder(
    path: str | Path, split: str = "train", pairs: bool = False, *, errors: str = "raise", **settings: Any
) -> FairseqSegments:
    """
    Open a split of a processed folder of fairseq-signals as a map-style data set.

    The segments were standardised over their whole recordings when the folder was made. They are the model's input:
    do not pass them through a feature extractor.

    Args:
        path: The folder.
        split: The split.
        pairs: Return pairs of adjacent segments for CMSC (`manifests/cmsc`) instead of segments.
        errors: `"raise"`: a missing file is an error at once, a damaged one when it is read; the message names the
            manifest's line. `"skip"`: every file is read once at the start, and bad lines are listed in `skipped`.
        settings: As for [`FairseqFolder`]: `root`, `labels`, `patient_column`, `sampling_rate`, `segment_samples`.

    Returns:
        A data set for torch's `DataLoader`. Its items are as in [`as_model_inputs`]:

        - `input_values`: (12, 2500) float32, or (2, 12, 2500) for pairs
        - `labels`: (L,) float32, 1 or 0, NaN if the recording is not labelled; only with labels, not for pairs
        - `recording_id`: from `meta.csv`, else the name of the files
        - `patient_id`: from `meta.csv`, else from the file, else None
        - `segment`: its number in the recording; for a pair, the number of the first segment

    Raises:
        `FairseqFolderError`: the folder, its manifest or a segment cannot be read.
    """
    return FairseqFolder(path, **settings).dataset(split, pairs, errors)


def _numbered_rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (idx, row) of a table with a column idx."""
    with open(file, encoding="utf-8-sig", newline="") as stream:
        for row in csv.DictReader(stream):
            idx = canonical_id(row.get("idx"))
            if idx is None or not (idx.isascii() and idx.isdigit()):
                raise FairseqFolderError(f"{file}: found idx {row.get('idx')!r}, expected whole numbers from 0")
            yield int(idx), row


def read_pos_weight(path: str | Path) -> np.ndarray:
    """
    Read the weights of a `pos_weight.txt`, (L,) float64.

    Raises:
        `FairseqFolderError`: the file is not a list of numbers such as `[1.5,2.0]`.
    """
    text = Path(path).read_text(encoding="utf-8").strip()
    try:
        if not (text.startswith("[") and text.endswith("]")):
            raise ValueError("no list in brackets")
        return np.array([float(part) for part in text[1:-1].split(",")])
    except ValueError as error:
        raise FairseqFolderError(f"{path} is not a list of weights such as [1.5,2.0]: {error}") from None


__all__ = [
    "LABELED_SPLITS_FILE",
    "FairseqFolder",
    "FairseqSegments",
    "SkippedLine",
    "load_fairseq_folder",
    "read_pos_weight",
]
