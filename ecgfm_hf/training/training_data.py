"""From the splits of a store to segments with targets: what is left out, and what cannot be learnt."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..data.segments import as_model_inputs
from ..data.targets import TargetColumns, read_targets, untrainable
from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from .augmentations import build_augmentations
from .labelled_segments import LabelledSegments
from .masking import derived_seed
from .settings import FinetuneSettings, SettingsError

if TYPE_CHECKING:
    from datasets import Dataset

# With so many, half of them positive, the 95% interval of an AUROC of 0.8 is 0.25 wide (Hanley and McNeil 1982).
_FEW_RECORDINGS = 50


@dataclass
class TrainingData:
    """
    Segments to learn from and to choose by.

    Args:
        names (`tuple[str, ...]`): Labels, classes or quantities, in the order of the model's outputs.
        problem_type (`str`)
        train, valid ([`LabelledSegments`]): Only `train` is augmented.
        scale (two `np.ndarray` (L,), *optional*): Mean and deviation that the targets of a regression were
            standardised with: those of the recordings to train on.
        notes (`list[str]`): What a user has to know, a sentence each.
        digest (`str`): Of the recordings of either split in their order, and their targets.
        rows (`dict[str, np.ndarray]`): By split the rows of its dataset that have segments, in order.
        chooses (`bool`): Whether `valid` can tell one update from another: not where each label has one class only.
    """

    names: tuple[str, ...]
    problem_type: str
    train: LabelledSegments
    valid: LabelledSegments | None
    scale: tuple[np.ndarray, np.ndarray] | None = None
    notes: list[str] = field(default_factory=list)
    digest: str = ""
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    chooses: bool = True


def training_data(
    train: "Dataset", valid: "Dataset | None", feature_extractor: ECGFMFeatureExtractor, settings: FinetuneSettings
) -> TrainingData:
    """
    The segments of two splits and their targets, as `labels`, `classes`, `targets`, `augmentations` and
    `untrainable_labels` say. Recordings whose every target is unknown are left out.

    Raises:
        [`SettingsError`]: targets that are missing or cannot be learnt, no segment to use.
    """
    datasets: Mapping[str, Dataset] = {"train": train} | ({} if valid is None else {"valid": valid})
    columns = TargetColumns(settings.problem_type, settings.labels, settings.classes, settings.targets)
    targets = read_targets(datasets, columns)
    try:
        transforms = build_augmentations(settings.augmentations, derived_seed(settings.seed, "augment"))
    except (TypeError, ValueError) as error:
        raise SettingsError(f"augmentations: {error}") from None
    segments, rows, notes, digest = {}, {}, [], hashlib.sha256(repr(targets.names).encode())
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
                f"{f', left out: {left_out}' if left_out else ''}"
            )
        if left_out:
            notes.append(f"of {split}, recordings are left out: {left_out}")
        if len(known) < len(dataset):
            notes.append(f"of {split}, {len(dataset) - len(known)} recordings have no known target and are left out")
        rows[split] = known[np.unique(inputs.recordings)]
        segments[split] = LabelledSegments(inputs, targets.values[split][known], (signal_transform, transform))
    data = TrainingData(
        targets.names,
        targets.problem_type,
        segments["train"],
        segments.get("valid"),
        notes=notes,
        digest=digest.hexdigest(),
        rows=rows,
    )
    if data.valid is None:
        notes.append("without a validation split the last update is kept, and there are no calibration and thresholds")
    elif len(data.valid.recording_targets()) < _FEW_RECORDINGS:
        notes.append(
            f"validation has {len(data.valid.recording_targets())} recordings: figures, and the update that they "
            "choose, prove nothing"
        )
    if data.problem_type == "regression":
        _standardise(data)
    else:
        _drop_untrainable(data, settings)
    if data.valid is not None and not _tells(data):
        data.chooses = False
        notes.append(
            "validation cannot choose an update, as no label there has both kinds of recordings, no quantity two "
            "values: the last update is kept, and nothing stops early"
        )
    return data


def _tells(data: TrainingData) -> bool:
    values = data.valid.recording_targets()
    if data.problem_type == "regression":
        return any(len(np.unique(column[~np.isnan(column)])) > 1 for column in values.T)
    return len(untrainable(data.names, values)) < len(data.names)


def _standardise(data: TrainingData) -> None:
    values = data.train.recording_targets().astype(np.float64)
    mean, deviation = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    for name, found in zip(data.names, deviation, strict=True):
        if not found > 0:
            raise SettingsError(f"labels: {name} is the same (or unknown) in all recordings of train: nothing to learn")
    data.scale = mean, deviation
    for segments in (data.train, data.valid):
        if segments is not None:
            segments.targets = ((segments.targets - mean) / deviation).astype(np.float32)


def _drop_untrainable(data: TrainingData, settings: FinetuneSettings) -> None:
    reasons = untrainable(data.names, data.train.recording_targets())
    if not reasons:
        return
    told = ", ".join(f"{name} ({reason})" for name, reason in reasons.items())
    if data.problem_type == "single_label_classification":
        raise SettingsError(f"classes without recordings in train: {told}. Leave them out with labels or classes")
    kept = [place for place, name in enumerate(data.names) if name not in reasons]
    if settings.untrainable_labels == "error" or not kept:
        raise SettingsError(
            f"train has no positives, or no negatives, of {told}: nothing can be learnt of them. Name the others with "
            "labels=[...], or set untrainable_labels=drop"
        )
    data.names = tuple(data.names[place] for place in kept)
    data.notes.append(f"train has no positives, or no negatives, of labels that are dropped therefore: {told}")
    for segments in (data.train, data.valid):
        if segments is not None:
            segments.targets = np.ascontiguousarray(segments.targets[:, kept])


__all__ = ["TrainingData", "training_data"]
