"""Processed folders of fairseq-signals, written from the rows of a store."""

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..feature_extraction_ecgfm import STANDARD_LEADS, ECGFMFeatureExtractor, PreparedRecording
from ..labeler.label_def import LabelCounts
from ..records.record import ECGRecord
from ..records.store_rows import label_columns, record_from_row
from ..utils.errors import OutputExistsError, SettingsError
from ..utils.files import atomic_folder
from .folder_reading import LABELED_SPLITS_FILE
from .manifests import FairseqFolderError, write_cmsc_manifest, write_manifest, write_mat

_UNSPLIT = "all"
_TRAINING = "train"
_META = ("recording_id", "patient_id", "source", "age", "sex")


@dataclass
class ExportedFolder:
    """
    The result of [`export_fairseq_folder`].

    Args:
        path: The folder.
        recordings, segments: How many, by split.
        label_names: Labels in the order of `y.npy`'s columns.
        unlabelled: Recordings with an unknown label, by split: their segments are in the CMSC manifests only.
        unpaired: Recordings of one segment, by split, which are in no CMSC manifest.
        skipped: Recordings that gave no segments, with the reason.
        warnings: Files that were not written, with the reason.
    """

    path: Path
    recordings: dict[str, int] = field(default_factory=dict)
    segments: dict[str, int] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()
    unlabelled: dict[str, int] = field(default_factory=dict)
    unpaired: dict[str, int] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    warnings: tuple[str, ...] = ()

    def skip_reasons(self) -> Counter[str]:
        """Count the reasons in `skipped`, each without its recording and numbers."""
        return Counter(
            re.sub(r"(?<![A-Za-z])\d+(\.\d+)?", "N", reason.partition(": ")[2] or reason) for _, reason in self.skipped
        )


def export_fairseq_folder(
    dataset: Mapping[str, Iterable[Mapping[str, Any]]] | Iterable[Mapping[str, Any]],
    out: str | Path,
    feature_extractor: ECGFMFeatureExtractor | None = None,
    *,
    root: str | None = None,
    errors: str = "raise",
    progress: Callable[[Iterable[Mapping[str, Any]]], Iterable[Mapping[str, Any]]] | None = None,
) -> ExportedFolder:
    """
    Write a processed folder that fairseq-signals trains from.

    Args:
        dataset: A store's rows by split ([`load_prepared`], streaming or not), or one iterable of rows, which form
            the split `all`.
        out: New or empty folder. It is written whole or not at all.
        feature_extractor: Must deliver the twelve standard leads. Defaults to the published model's.
        root: Folder of the segments in the manifests. Defaults to `out/segmented`.
        errors: `"raise"`, or `"skip"`: recordings that the extractor refuses are listed in `skipped` with the reason.
        progress: Wrapped around each split's rows, such as `tqdm`.

    Raises:
        `OutputExistsError`: `out` is not empty.
        `FairseqFolderError`: an extractor with other leads, no recordings, or with `errors="raise"` a recording
            without segments.

    The files are as in fairseq-signals with one difference: `feats` is float64 and computed in float64 there; here
    it holds the float32 values that this package's models see, so the two differ by rounding (1e-7). `mean` and `std`
    restore mV from `feats`. `y.npy` cannot represent an unknown label: a recording with one is in no classification
    manifest, and is not counted in `label_def.csv`.
    """
    out, extractor = Path(out).absolute(), feature_extractor or ECGFMFeatureExtractor()
    if errors not in ("raise", "skip"):
        raise SettingsError(f"errors is {errors!r}, expected 'raise' or 'skip'")
    if tuple(extractor.lead_names) != STANDARD_LEADS or extractor.sampling_rate != int(extractor.sampling_rate):
        found = f"{', '.join(extractor.lead_names)} at {extractor.sampling_rate:g} Hz"
        raise FairseqFolderError(
            f"the feature extractor delivers {found}; segments hold the twelve standard leads at a whole number of Hz"
        )

    def check_empty() -> None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputExistsError(f"{out} is not empty; choose a new or empty folder")

    by_split: Mapping[str, Iterable[Mapping[str, Any]]]
    by_split = dataset if isinstance(dataset, Mapping) else {_UNSPLIT: dataset}
    with atomic_folder(out, check_empty) as folder:
        writer = _FolderWriter(folder, extractor, str(out / "segmented") if root is None else root, errors)
        for split, rows in by_split.items():
            for row in progress(rows) if progress else rows:
                writer.add(split, row)
        return writer.write_tables(out)


@dataclass
class _Recording:
    name: str  # of its files, without number and extension
    split: str
    num_segments: int
    meta: dict[str, Any]
    labels: tuple[int | None, ...]


class _FolderWriter:
    def __init__(self, folder: Path, extractor: ECGFMFeatureExtractor, root: str, errors: str):
        self.folder, self.extractor, self.root, self.errors = folder, extractor, root, errors
        self.label_names: tuple[str, ...] | None = None
        self.recordings: list[_Recording] = []
        self.skipped: list[tuple[str, str]] = []
        self._names: set[str] = set()
        (folder / "segmented").mkdir()

    def add(self, split: str, row: Mapping[str, Any]) -> None:
        labels = label_columns(list(row))
        if self.label_names not in (None, labels):
            raise FairseqFolderError(f"split {split} has labels {labels}, expected {self.label_names}")
        self.label_names = labels
        identity = row["recording_id"]
        try:
            record = record_from_row(row)
            prepared = self._prepared(record)
        except ValueError as error:
            if self.errors == "raise":
                raise FairseqFolderError(f"recording {identity}: {error}") from error
            self.skipped.append((identity, str(error)))
            return
        idx, name = len(self.recordings), self._free_name(identity)
        self._write(name, idx, record, prepared)
        meta = {key: row.get(key) for key in _META} | {
            "dataset": row.get("source"),
            "sample_rate": _whole(record.sampling_rate),
            "sample_size": row["num_samples"],
            "lead_order": list(record.lead_names),
            "avail_leads": [lead for lead in STANDARD_LEADS if lead in record.lead_names],
            "nan_any": any(row.get("nan_samples") or ()),
            "constant_leads_any": any(row.get("constant") or ()),
        }
        # Other table libraries write NaN for null.
        values = tuple(None if row[label] != row[label] else row[label] for label in labels)
        self.recordings.append(_Recording(name, split, len(prepared.segments), meta, values))

    def _prepared(self, record: ECGRecord) -> PreparedRecording:
        prepared = self.extractor.prepare_recording(
            record.signal, record.sampling_rate, record.lead_names, "mV", name=record.recording_id, inspect=False
        )
        if prepared.valid_samples < self.extractor.segment_samples:
            raise FairseqFolderError(
                f"{prepared.valid_samples} samples are too few: a segment's file cannot hold padding"
            )
        return prepared

    def _write(self, name: str, idx: int, record: ECGRecord, prepared: PreparedRecording) -> None:
        def number(value: float) -> np.ndarray:
            return np.full((1, 1), _whole(value))

        for segment_i, feats in enumerate(prepared.segments):
            variables = {
                "org_sample_rate": number(record.sampling_rate),
                "curr_sample_rate": number(self.extractor.sampling_rate),
                "org_sample_size": number(record.samples.shape[1]),
                "curr_sample_size": number(feats.shape[1]),
                "feats": feats.astype(np.float64),
                "idx": number(idx),
                "mean": prepared.mean[:, None],
                "std": prepared.std[:, None],
                "segment_i": number(segment_i),
            }
            write_mat(self.folder / "segmented" / f"{name}_{segment_i}.mat", variables)

    def _free_name(self, recording_id: str) -> str:
        """Return a name for files. Ids that cannot be file names, or differ in case only, get a number."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", recording_id).strip(".-") or "recording"
        if name != recording_id or name.lower() in self._names or len(name) > 100:
            name = f"{name[:100]}-{len(self.recordings)}"
        while name.lower() in self._names:
            name += "-"
        self._names.add(name.lower())
        return name

    def write_tables(self, out: Path) -> ExportedFolder:
        if not self.recordings:
            why = f"; the first of {len(self.skipped)} skipped: {self.skipped[0][1]}" if self.skipped else ""
            raise FairseqFolderError(f"there is no recording to export{why}")
        splits = list(dict.fromkeys(recording.split for recording in self.recordings))
        report = ExportedFolder(out, label_names=self.label_names or (), skipped=self.skipped)
        self._write_meta()
        samples = self.extractor.segment_samples
        numbered = list(enumerate(self.recordings))
        self._write_splits("meta_split.csv", "segmented_split.csv", numbered)
        (self.folder / "manifests" / "cmsc").mkdir(parents=True)
        for split in splits:
            here = [recording for recording in self.recordings if recording.split == split]
            known = [recording for recording in here if None not in recording.labels]
            files = [(f"{one.name}_{number}.mat", samples) for one in known for number in range(one.num_segments)]
            pairs = [(one.name, samples, range(one.num_segments)) for one in here if one.num_segments > 1]
            if files:
                write_manifest(self.folder / "manifests" / f"{split}.tsv", self.root, files)
            if pairs:
                write_cmsc_manifest(self.folder / "manifests" / "cmsc" / f"{split}.tsv", self.root, pairs)
            report.recordings[split] = len(here)
            report.segments[split] = sum(recording.num_segments for recording in here)
            report.unlabelled[split] = len(here) - len(known)
            report.unpaired[split] = len(here) - len(pairs)
        if self.label_names:
            labelled = [(idx, recording) for idx, recording in numbered if None not in recording.labels]
            report.warnings = self._write_labels(labelled)
        return report

    def _write_meta(self) -> None:
        with open(self.folder / "meta.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("idx", "save_file", *self.recordings[0].meta))
            for idx, recording in enumerate(self.recordings):
                writer.writerow((idx, f"{recording.name}.mat", *recording.meta.values()))

    def _write_splits(self, meta: str, segmented: str, numbered: list[tuple[int, _Recording]]) -> None:
        recordings = [recording for _, recording in numbered]
        files, splits = [f"{one.name}.mat" for one in recordings], [one.split for one in recordings]
        write_split_csv(self.folder / meta, [idx for idx, _ in numbered], files, splits)
        with open(self.folder / segmented, "w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("idx", "save_file", "split", "path", "sample_size"))
            for idx, recording in numbered:
                for number in range(recording.num_segments):
                    path = f"{self.root.rstrip('/')}/{recording.name}_{number}.mat"
                    row = (idx, f"{recording.name}.mat", recording.split, path, self.extractor.segment_samples)
                    writer.writerow(row)

    def _write_labels(self, labelled: list[tuple[int, _Recording]]) -> tuple[str, ...]:
        """Write the files of labels, for the recordings whose labels are all known; return warnings."""
        folder, names, warnings = self.folder / "labels", self.label_names or (), []
        folder.mkdir()
        values = np.zeros((len(self.recordings), len(names)))
        counts = LabelCounts(names)
        for idx, recording in labelled:
            values[idx] = [label or 0 for label in recording.labels]
            counts.add(values[idx].tolist(), recording.split)
        np.save(folder / "y.npy", values)
        counts.write(folder / "label_def.csv")
        try:
            write_pos_weight(folder / "pos_weight.txt", self._training_weights(counts))
        except FairseqFolderError as error:
            warnings.append(f"pos_weight.txt was not written: {error}")
        self._write_splits(f"labels/{LABELED_SPLITS_FILE}", "labels/segmented_split_labeled.csv", labelled)
        return tuple(warnings)

    def _training_weights(self, counts: LabelCounts) -> list[float]:
        try:
            weights = counts.pos_weight(_TRAINING)
        except KeyError:
            raise FairseqFolderError(f"no labelled recording is in split {_TRAINING!r}") from None
        for problem, value in (("no positives", math.inf), ("no negatives", 0.0)):
            if labels := [repr(name) for name, weight in zip(counts.labels, weights, strict=True) if weight == value]:
                raise FairseqFolderError(
                    f"{problem} in {_TRAINING} for {', '.join(labels)}; exclude or merge the label"
                )
        return weights


def write_split_csv(
    path: str | Path, idx: Sequence[int], save_files: Sequence[str], splits: Sequence[str | None]
) -> None:
    """Write `idx, save_file, split` as fairseq-signals does, without recordings that are in no split."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("idx", "save_file", "split"))
        writer.writerows(row for row in zip(idx, save_files, splits, strict=True) if row[2] is not None)


def write_pos_weight(path: str | Path, weights: Sequence[float]) -> None:
    """
    Write `pos_weight.txt`: `[0.518519,47.0]`, six decimals, no line end, which a shell passes on as one argument.

    Raises:
        `FairseqFolderError`: a weight is not finite.
    """
    if not np.isfinite(weights).all():
        raise FairseqFolderError(f"weights are {list(weights)}, expected finite numbers")
    text = ",".join(str(weight) for weight in np.round(np.asarray(weights, dtype=np.float64), 6).tolist())
    Path(path).write_text(f"[{text}]", encoding="utf-8")


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value


__all__ = ["ExportedFolder", "export_fairseq_folder", "write_pos_weight", "write_split_csv"]
