"""What fine-tuning reads: segments of a store or processed folder with their targets, in a seeded order."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ..data import loading
from ..data.finetuning_targets import UNKNOWN_CLASS, TargetColumns, read_targets, untrainable
from ..data.leakage import check_splits
from ..data.model_inputs import ModelInputs, as_model_inputs
from ..data.opening import data_digest, label_file, load_prepared, split_names
from ..data.splits import draw_patients
from ..data.store import DataError
from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..utils.text import without_secrets
from .augmentations import build_augmentations
from .settings import FinetuneSettings, SettingsError, derived_seed

if TYPE_CHECKING:
    from datasets import Dataset as HFDataset

STORE_FOLDER = "store"
# Stands for no segment: see `EpochOrder`.
_FILLER = -1
# With so many, half of them positive, the 95% interval of an AUROC of 0.8 is 0.25 wide (Hanley and McNeil 1982).
_FEW_RECORDINGS = 50


@dataclass
class FinetuneData:
    """
    Segments to train on and to validate with, and where they come from.

    Args:
        names (`tuple[str, ...]`): Labels, classes or quantities, in the order of the model's outputs.
        problem_type (`str`)
        train, valid ([`LabelledSegments`]): Only `train` is augmented.
        scale (two `np.ndarray` (L,), *optional*): Mean and deviation that regression targets were standardised with:
            of the training recordings.
        notes (`list[str]`): Sentences for the user, such as labels without a threshold.
        digest (`str`): Of the recordings of each split in their order, their content and their targets.
        datasets (`dict[str, Dataset]`): By split (`train`, `valid`): the recordings, with ids.
        rows (`dict[str, np.ndarray]`): By split the rows of its dataset that have segments, in order.
        can_choose (`bool`): Whether `valid` can compare updates: not if each label has one class only.
        feature_extractor ([`ECGFMFeatureExtractor`], *optional*): What the segments were made with.
    """

    names: tuple[str, ...]
    problem_type: str
    train: "LabelledSegments"
    valid: "LabelledSegments | None"
    scale: tuple[np.ndarray, np.ndarray] | None = None
    notes: list[str] = field(default_factory=list)
    digest: str = ""
    datasets: "dict[str, HFDataset]" = field(default_factory=dict)
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    can_choose: bool = True
    feature_extractor: ECGFMFeatureExtractor = field(default_factory=ECGFMFeatureExtractor)

    @classmethod
    def from_datasets(
        cls,
        train: "HFDataset",
        valid: "HFDataset | None",
        feature_extractor: ECGFMFeatureExtractor,
        settings: FinetuneSettings,
    ) -> "FinetuneData":
        """
        Make segments and targets of datasets, by `problem_type`, `labels`, `classes`, `targets`, `augmentations` and
        `untrainable_labels`. Recordings whose targets are all unknown are skipped.

        Args:
            train, valid (`Dataset`): Splits of a store, as [`load_prepared`] gives them, or selections of them. Without
                `valid` the last update is kept, without calibration and thresholds.
            feature_extractor ([`ECGFMFeatureExtractor`])
            settings ([`FinetuneSettings`])

        Raises:
            [`SettingsError`]: targets that are missing or cannot be learnt; no segment to use.
            [`LeakError`]: a recording or patient in both datasets.
        """
        datasets = {"train": train} | ({} if valid is None else {"valid": valid})
        check_splits(datasets)
        return _make_data(datasets, feature_extractor, settings)


def load_finetune_data(settings: FinetuneSettings, feature_extractor: ECGFMFeatureExtractor) -> FinetuneData:
    """
    Load the splits of the store that `data` names, or that is made of `source`, as segments with targets.

    Raises:
        [`SettingsError`]: there is no store, or it misses a split; targets that are missing or cannot be learnt.
        [`LeakError`]: a recording or patient in two splits, the test split included.
    """
    splits = _open_splits(settings)
    used = [settings.train_split, *([settings.valid_split] if settings.valid_split else [])]
    content = data_digest([store_folder(settings)], used, labels=label_file(settings.targets))
    return _make_data(splits, feature_extractor, settings, content)


def _make_data(
    datasets: "Mapping[str, HFDataset]",
    feature_extractor: ECGFMFeatureExtractor,
    settings: FinetuneSettings,
    content: str = "",
) -> FinetuneData:
    subset: list[str] = []
    if settings.train_fraction < 1:
        whole = datasets["train"]
        chosen_rows = draw_patients(whole["recording_id"], whole["patient_id"], settings.train_fraction, settings.seed)
        datasets = {**datasets, "train": whole.select(chosen_rows)}
        subset = [f"train_fraction={settings.train_fraction:g}: {len(chosen_rows)} of {len(whole)} recordings are used"]
    targets_csv = None if label_file(settings.targets) else settings.targets
    columns = TargetColumns(settings.problem_type, settings.labels, settings.classes, targets_csv)
    targets = read_targets(datasets, columns)
    try:
        transforms = build_augmentations(settings.augmentations, derived_seed(settings.seed, "augment"))
    except (TypeError, ValueError) as error:
        raise SettingsError(f"augmentations: {error}") from None
    segments: dict[str, LabelledSegments] = {}
    rows: dict[str, np.ndarray] = {}
    notes = subset
    digest = hashlib.sha256(repr((targets.names, content)).encode())
    for split, dataset in datasets.items():
        known = np.flatnonzero(targets.known(split))
        chosen = dataset if len(known) == len(dataset) else dataset.select(known)
        signal_transform, transform = transforms if split == "train" else (None, None)
        inputs = as_model_inputs(
            chosen, feature_extractor, labels=(), signal_transform=signal_transform, transform=transform
        )
        digest.update(repr((split, dataset["recording_id"][:])).encode() + targets.values[split].tobytes())
        left_out = "; ".join(f"{count} {reason}" for reason, count in inputs.skipped.items())
        if not len(inputs):
            raise SettingsError(
                f"{split} has no segment to use: {len(dataset)} recordings, {len(known)} with a known target"
                f"{f', excluded: {left_out}' if left_out else ''}"
            )
        if left_out:
            notes.append(f"recordings of {split} are excluded: {left_out}")
        if len(known) < len(dataset):
            notes.append(f"{len(dataset) - len(known)} recordings of {split} are excluded, as no target is known")
        rows[split] = known[np.unique(inputs.recordings)]
        segments[split] = LabelledSegments(inputs, targets.values[split][known], (signal_transform, transform))
    data = FinetuneData(
        targets.names,
        targets.problem_type,
        segments["train"],
        segments.get("valid"),
        notes=notes,
        digest=digest.hexdigest(),
        datasets=dict(datasets),
        rows=rows,
        feature_extractor=feature_extractor,
    )
    if data.valid is None:
        notes.append("without a validation split the last update is kept, without calibration and thresholds")
    elif len(data.valid.recording_targets()) < _FEW_RECORDINGS:
        notes.append(
            f"validation has only {len(data.valid.recording_targets())} recordings: its metrics, and the update that "
            "they choose, are unreliable"
        )
    if data.problem_type == "regression":
        _standardise(data)
    else:
        _drop_untrainable(data, settings)
    if data.valid is not None and not _can_choose(data):
        data.can_choose = False
        notes.append(
            "validation cannot choose an update: no label there has positives and negatives, or no quantity has two "
            "values. The last update is kept, and training does not stop early"
        )
    return data


def _can_choose(data: FinetuneData) -> bool:
    if data.valid is None:
        return False
    values = data.valid.recording_targets()
    if data.problem_type == "regression":
        return any(len(np.unique(column[~np.isnan(column)])) > 1 for column in values.T)
    return len(untrainable(data.names, values)) < len(data.names)


def _standardise(data: FinetuneData) -> None:
    values = data.train.recording_targets().astype(np.float64)
    mean, deviation = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    for name, found in zip(data.names, deviation, strict=True):
        if not found > 0:
            raise SettingsError(
                f"labels: {name} is the same (or unknown) in all recordings of train, so it cannot be learnt"
            )
    data.scale = mean, deviation
    for segments in (data.train, data.valid):
        if segments is not None:
            segments.targets = ((segments.targets - mean) / deviation).astype(np.float32)


def _drop_untrainable(data: FinetuneData, settings: FinetuneSettings) -> None:
    reasons = untrainable(data.names, data.train.recording_targets())
    if not reasons:
        return
    listed = ", ".join(f"{name} ({reason})" for name, reason in reasons.items())
    if data.problem_type == "single_label_classification":
        raise SettingsError(f"classes without recordings in train: {listed}. Exclude them with labels or classes")
    kept = [index for index, name in enumerate(data.names) if name not in reasons]
    if settings.untrainable_labels == "error" or not kept:
        raise SettingsError(
            f"labels without positives or without negatives in train cannot be learnt: {listed}. Name the others with "
            "labels=[...], or set untrainable_labels=drop"
        )
    data.names = tuple(data.names[index] for index in kept)
    data.notes.append(f"labels without positives or without negatives in train are dropped: {listed}")
    for segments in (data.train, data.valid):
        if segments is not None:
            segments.targets = np.ascontiguousarray(segments.targets[:, kept])


def _open_splits(settings: FinetuneSettings) -> "dict[str, HFDataset]":
    """Open the splits `train` and, if there is one, `valid` of the run's store."""
    store = _store(settings)
    try:
        available = split_names(store)
        wanted = {"train": settings.train_split} | ({"valid": settings.valid_split} if settings.valid_split else {})
        if absent := [name for name in wanted.values() if name not in available]:
            raise SettingsError(
                f"data: {without_secrets(str(store))} has no split {', '.join(absent)}, only "
                f"{', '.join(available)}: make splits with "
                "`ecgfm split`; or, without validation, set train_split=NAME valid_split=null"
            )
        if settings.test_split in available:
            wanted["test"] = settings.test_split
        labels = label_file(settings.targets)
        found = {name: load_prepared(store, split, root=settings.root, labels=labels) for name, split in wanted.items()}
    except (DataError, FileNotFoundError) as error:
        raise SettingsError(f"data: {error}") from None
    check_splits(found)
    found.pop("test", None)
    return found


def store_folder(settings: FinetuneSettings) -> str | Path:
    """Return the store of a run: what `data` names, or what is made of a source."""
    if settings.source is None:
        return settings.data or ""
    return Path(settings.output_dir or "") / STORE_FOLDER


def _store(settings: FinetuneSettings) -> str | Path:
    if settings.data is None:
        raise SettingsError(
            "data is required: a store (`ecgfm prepare`), or with source=physionet2021 (for example) a dataset's folder"
        )
    store = store_folder(settings)
    if settings.source is None:
        return store
    how = dict(settings.prepare)
    if "split_csv" not in how:
        how.setdefault("split", "grouped")
    try:
        getattr(loading, f"load_{settings.source}")(settings.data, store, progress=False, **how)
    except TypeError as error:
        raise SettingsError(f"prepare: {error}") from None
    except ValueError as error:  # of sources, splits, labels, preparation: all messages have a remedy
        raise SettingsError(f"data: {error}") from None
    return store


class LabelledSegments(Dataset):
    """
    Segments by index, each with the target of its recording.

    Args:
        inputs ([`ModelInputs`]): Segments, with or without labels of their own.
        targets (`np.ndarray`): By row of the dataset that `inputs` is of: (rows, L) float32 with NaN for unknown, or
            for a single label (rows,) int64 with -100 for unknown.
        transforms: From [`build_augmentations`]; they act in `inputs`, and get the epoch here.
    """

    def __init__(self, inputs: ModelInputs, targets: np.ndarray, transforms: Sequence[Callable | None] = ()):
        self.inputs, self.targets = inputs, targets
        self.epoch = 0
        self._transforms = [t for t in transforms if t is not None and hasattr(t, "set_epoch")]

    @property
    def rows(self) -> np.ndarray:
        """Return the dataset's row (segments,) of each segment."""
        return self.inputs.recordings

    def recording_targets(self) -> np.ndarray:
        """Return the targets of the recordings that have segments, a row each."""
        return self.targets[np.unique(self.rows)]

    def set_epoch(self, epoch: int) -> None:
        """Change order and augmentations to an epoch's; the Trainer calls it."""
        self.epoch = int(epoch)
        for transform in self._transforms:
            transform.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        real = [number for number in numbers if number != _FILLER]
        # A batch of only fillers takes the shape of the first segment.
        found = self.inputs.__getitems__(real or [0])
        shape, items = found[0]["input_values"].shape, iter(found)
        return [self._filler(shape) if number == _FILLER else self._item(number, next(items)) for number in numbers]

    def _item(self, number: int, item: dict[str, Any]) -> dict[str, Any]:
        return {"input_values": item["input_values"], "labels": self.targets[self.rows[number]]}

    def _filler(self, shape: tuple[int, ...]) -> dict[str, Any]:
        unknown = np.full_like(self.targets[0], UNKNOWN_CLASS if self.targets.dtype.kind == "i" else np.nan)
        return {"input_values": np.zeros(shape, dtype=np.float32), "labels": unknown}


class EpochOrder(Sampler[int]):
    """
    All segments in the random order of an epoch: a function of seed and epoch, so there is no state to save.

    With several processes the last batches are filled up with empty segments of unknown targets, which change neither
    loss nor gradient. So each process has as many batches, and no segment counts twice. (accelerate would fill up with
    segments from the beginning of the epoch.)

    Args:
        dataset ([`LabelledSegments`]): Has the epoch.
        seed (`int`)
        multiple (`int`): Pad the length to a multiple of this: batch size x processes; 1 with one process.
    """

    def __init__(self, dataset: LabelledSegments, seed: int, multiple: int = 1):
        self._dataset, self._seed, self._multiple = dataset, seed, multiple

    def __len__(self) -> int:
        return -(-len(self._dataset) // self._multiple) * self._multiple

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng(derived_seed(self._seed, "order", self._dataset.epoch))
        yield from random.permutation(len(self._dataset)).tolist()
        yield from [_FILLER] * (len(self) - len(self._dataset))


def collate_segments(items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack items to a batch: `input_values` (batch, leads, samples) float32 and `labels`."""
    return {name: torch.from_numpy(np.stack([item[name] for item in items])) for name in ("input_values", "labels")}


def count_known(labels: torch.Tensor) -> torch.Tensor:
    """Count the known targets: those that are not NaN, or not -100 if they are class numbers."""
    known = ~labels.isnan() if labels.is_floating_point() else labels != UNKNOWN_CLASS
    return known.sum()


__all__ = ["EpochOrder", "FinetuneData", "LabelledSegments", "load_finetune_data", "store_folder"]
