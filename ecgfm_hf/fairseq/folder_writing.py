"""From recordings of a store to a processed folder of fairseq-signals."""

import csv
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.labels import (
    LabelDefinition,
    LabelTable,
    LabelTableError,
    define_labels,
    fairseq_label_array,
    label_table,
    pos_weight,
    write_label_def,
    write_pos_weight,
)
from ..data.splits import write_split_csv
from ..feature_extraction_ecgfm import STANDARD_LEADS, ECGFMFeatureExtractor, PreparedRecording
from ..records.record import ECGRecord
from ..records.rows import label_columns, record_from_row
from .folder_reading import LABELED_SPLITS_FILE
from .manifests import FairseqFolderError, write_cmsc_manifest, write_manifest
from .mat_file import write_mat

UNSPLIT = "all"
TRAINING = "train"
_META = ("recording_id", "patient_id", "source", "age", "sex")


@dataclass
class ExportedFolder:
    """
    What [`export_fairseq_folder`] wrote.

    Args:
        path (`Path`)
        recordings, segments (`dict[str, int]`): By split.
        label_names (`tuple[str, ...]`)
        unlabelled (`dict[str, int]`):
            By split, recordings with an unknown label: their segments are in the CMSC manifests only.
        unpaired (`dict[str, int]`): By split, recordings of one segment, which are in no CMSC manifest.
        left_out (`list[tuple[str, str]]`): Recordings that gave no segments, with the reason.
        notes (`tuple[str, ...]`): What was not written, and why.
    """

    path: Path
    recordings: dict[str, int] = field(default_factory=dict)
    segments: dict[str, int] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()
    unlabelled: dict[str, int] = field(default_factory=dict)
    unpaired: dict[str, int] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: tuple[str, ...] = ()


def export_fairseq_folder(
    dataset: Any,
    out: str | Path,
    feature_extractor: ECGFMFeatureExtractor | None = None,
    *,
    root: str | None = None,
    errors: str = "raise",
    progress: Callable[[Iterable], Iterable] | None = None,
) -> ExportedFolder:
    """
    Write a processed folder that fairseq-signals trains from.

    Args:
        dataset (mapping of `str` to iterables of rows, or one iterable):
            A store by split ([`load_prepared`], streaming or not); rows of one iterable are of split `all`.
        out (`str` or `Path`): New or empty folder. It appears whole or not at all.
        feature_extractor ([`ECGFMFeatureExtractor`], *optional*):
            Its twelve leads must be the standard ones. Defaults to the published model's.
        root (`str`, *optional*): Where the manifests say that the segments are. Defaults to `out/segmented`.
        errors (`str`, defaults to `"raise"`):
            `"skip"`: recordings that the extractor refuses go to `left_out` with the reason.
        progress (callable, *optional*): Wrapped around each split's rows, such as `tqdm`.

    Returns:
        [`ExportedFolder`]

    Raises:
        `FileExistsError`: `out` is in use.
        `FairseqFolderError`: another extractor, no recordings, with `errors="raise"` a recording without segments.

    The files are the original's, but for this: `feats` is float64 there and made of float64; here it holds the float32
    that this package's models see, so that both differ by rounding (1e-7). `mean` and `std` turn `feats` back into mV.
    `y.npy` cannot say unknown: a recording with any unknown label is in none of the classification manifests, nor in
    the counts of `label_def.csv`.
    """
    out, extractor = Path(out).absolute(), feature_extractor or ECGFMFeatureExtractor()
    if errors not in ("raise", "skip"):
        raise ValueError(f"errors must be 'raise' or 'skip', found: {errors!r}")
    if tuple(extractor.lead_names) != STANDARD_LEADS or extractor.sampling_rate != int(extractor.sampling_rate):
        found = f"{', '.join(extractor.lead_names)} at {extractor.sampling_rate:g} Hz"
        raise FairseqFolderError(f"segments hold the twelve standard leads at a whole number of Hz, found: {found}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is in use; give a new or empty folder")
    by_split = dataset if isinstance(dataset, Mapping) else {UNSPLIT: dataset}
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        writer = _FolderWriter(work / "new", extractor, str(out / "segmented") if root is None else root, errors)
        for split, rows in by_split.items():
            for row in progress(rows) if progress else rows:
                writer.add(split, row)
        report = writer.finish(out)
        (work / "new").rename(out)  # onto a missing or an empty folder: the system refuses any other
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return report


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
        self.left_out: list[tuple[str, str]] = []
        self._names: set[str] = set()
        (folder / "segmented").mkdir(parents=True)

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
            self.left_out.append((identity, str(error)))
            return
        idx, name = len(self.recordings), self._free_name(identity)
        self._write(name, idx, record, prepared)
        meta = {key: row.get(key) for key in _META} | {
            **{
                "dataset": row.get("source"),
                "sample_rate": _whole(record.sampling_rate),
                "sample_size": row["num_samples"],
            },
            **{
                "lead_order": list(record.lead_names),
                "avail_leads": [lead for lead in STANDARD_LEADS if lead in record.lead_names],
            },
            **{"nan_any": any(row.get("nan_samples") or ()), "constant_leads_any": any(row.get("constant") or ())},
        }
        # Tables of other libraries say NaN for null.
        values = tuple(None if row[label] != row[label] else row[label] for label in labels)
        self.recordings.append(_Recording(name, split, len(prepared.segments), meta, values))

    def _prepared(self, record: ECGRecord) -> PreparedRecording:
        prepared = self.extractor.prepare_recording(
            record.signal, record.sampling_rate, record.lead_names, "mV", name=record.recording_id, inspect=False
        )
        if prepared.valid_samples < self.extractor.segment_samples:
            raise FairseqFolderError(f"only {prepared.valid_samples} samples long, and segments have no padding there")
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
        """A name for files; ids that are none, or that differ in case only, get a number."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", recording_id).strip(".-") or "recording"
        if name != recording_id or name.lower() in self._names or len(name) > 100:
            name = f"{name[:100]}-{len(self.recordings)}"
        while name.lower() in self._names:
            name += "-"
        self._names.add(name.lower())
        return name

    def finish(self, out: Path) -> ExportedFolder:
        if not self.recordings:
            why = f"; the first of {len(self.left_out)} left out: {self.left_out[0][1]}" if self.left_out else ""
            raise FairseqFolderError(f"there is no recording to export{why}")
        splits = list(dict.fromkeys(recording.split for recording in self.recordings))
        report = ExportedFolder(out, label_names=self.label_names or (), left_out=self.left_out)
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
            report.notes = self._write_labels(labelled)
        return report

    def _write_meta(self) -> None:
        with open(self.folder / "meta.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("idx", "save_file", *self.recordings[0].meta))
            for idx, recording in enumerate(self.recordings):
                writer.writerow((idx, f"{recording.name}.mat", *recording.meta.values()))

    def _write_splits(self, meta: str, segmented: str, numbered: list[tuple[int, _Recording]]) -> None:
        columns = [(idx, f"{recording.name}.mat", recording.split) for idx, recording in numbered]
        write_split_csv(self.folder / meta, *zip(*columns, strict=True) if columns else ((), (), ()))
        with open(self.folder / segmented, "w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("idx", "save_file", "split", "path", "sample_size"))
            for idx, recording in numbered:
                for number in range(recording.num_segments):
                    path = f"{self.root.rstrip('/')}/{recording.name}_{number}.mat"
                    row = (idx, f"{recording.name}.mat", recording.split, path, self.extractor.segment_samples)
                    writer.writerow(row)

    def _write_labels(self, labelled: list[tuple[int, _Recording]]) -> tuple[str, ...]:
        """Files of labels, from the recordings whose labels are all known; returns what was not written, and why."""
        folder, names, notes = self.folder / "labels", self.label_names, []
        folder.mkdir()
        splits = [recording.split for _, recording in labelled]
        columns = {name: [recording.labels[place] for _, recording in labelled] for place, name in enumerate(names)}
        table = label_table([idx for idx, _ in labelled], columns)
        values, _ = fairseq_label_array(table, len(self.recordings))
        np.save(folder / "y.npy", values)
        write_label_def(folder / "label_def.csv", _definition(table, splits))
        try:
            write_pos_weight(folder / "pos_weight.txt", pos_weight(table, splits, TRAINING))
        except LabelTableError as error:
            notes.append(f"pos_weight.txt was not written: {error}")
        self._write_splits(f"labels/{LABELED_SPLITS_FILE}", "labels/segmented_split_labeled.csv", labelled)
        return tuple(notes)


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _definition(table: LabelTable, splits: list[str]) -> LabelDefinition:
    if UNSPLIT not in splits:
        return define_labels(table, splits)
    # An unsplit folder has only the columns of all recordings.
    whole = define_labels(table, ["unsplit"] * len(splits))
    return LabelDefinition(
        whole.names, {UNSPLIT: whole.positives[UNSPLIT]}, {UNSPLIT: whole.fractions[UNSPLIT]}, {}, {}
    )


def reasons(left_out: Iterable[tuple[str, str]]) -> Counter[str]:
    """How often each reason occurs, without what is particular to one recording."""
    return Counter(
        re.sub(r"(?<![A-Za-z])\d+(\.\d+)?", "N", reason.partition(": ")[2] or reason) for _, reason in left_out
    )
