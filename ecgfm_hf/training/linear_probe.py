"""
Linear probing: the encoder stays as it is, its embeddings are computed once, and only heads are fitted.

A head is fitted on one row per recording, the mean of its segments' embeddings: labels are of recordings, and long ones
would count more otherwise. It is a linear layer on a segment's embedding all the same, so the result is an ordinary
classifier whose logits, averaged over a recording's segments, are exactly those that were fitted.
"""

import hashlib
import itertools
import json
import logging
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..configuration_ecgfm import LABEL_FIELDS
from ..data.model_inputs import as_model_inputs
from ..data.sources.base import recording_stamps
from ..data.store import default_labels
from ..fairseq.folder_reading import SEGMENT_FILES
from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..inference.model_runner import run_recordings
from ..inference.predictions import Predictions, column_values
from ..modeling_ecgfm import ECGFMForMultiLabelClassification, ECGFMModel
from ..pipeline_ecgfm import recording_scores
from ..utils.errors import ECGFMError
from ..utils.files import atomic_path
from ..utils.precision import resolve_precision

if TYPE_CHECKING:
    from datasets import Dataset
    from sklearn.linear_model import LogisticRegression

logger = logging.getLogger(__name__)

# Inverse of the L2 penalty, as in scikit-learn, for features of unit deviation; ridge takes their inverses.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
FOLDS = 5
PROBLEM_TYPES = ("multi_label_classification", "regression")
_CACHE_VERSION = 1


class LinearProbeError(ECGFMError, ValueError):
    """Embeddings or labels that no head can be fitted on. The message names what was found."""


@dataclass(frozen=True)
class Embeddings:
    """
    The embeddings of a split's segments.

    Args:
        values (`np.ndarray` (segments, hidden_size) float32): Embeddings, segments of a recording together.
        recordings (`np.ndarray` (segments,) int64): The index of each one's recording in `recording_ids`.
        recording_ids (`list[str]`, length n)
        patient_ids (`list[str | None]`, length n): None where unknown.
        label_names (`tuple[str, ...]`, length L)
        labels (`np.ndarray` (n, L) float64): NaN where unknown.
    """

    values: np.ndarray
    recordings: np.ndarray
    recording_ids: list[str]
    patient_ids: list[str | None]
    label_names: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.recording_ids)

    def segments_of_recordings(self) -> list[slice]:
        """Return the slice of `values` with the segments of each recording."""
        bounds = np.searchsorted(self.recordings, np.arange(len(self) + 1))
        return [slice(first, end) for first, end in itertools.pairwise(bounds)]

    def recording_means(self) -> np.ndarray:
        """Return the mean of each recording's segments, (n, hidden_size) float64."""
        if not len(self):
            return np.zeros((0, self.values.shape[1]))
        return np.stack([self.values[own].mean(axis=0, dtype=np.float64) for own in self.segments_of_recordings()])

    def take(self, rows: Sequence[int] | np.ndarray) -> "Embeddings":
        """Return these recordings (indices, or a boolean mask), in the order given."""
        rows = np.arange(len(self))[np.asarray(rows)]
        segments = self.segments_of_recordings()
        values = [self.values[segments[row]] for row in rows]
        return Embeddings(
            np.concatenate([self.values[:0], *values]),
            np.repeat(np.arange(len(rows)), [len(own) for own in values]),
            [self.recording_ids[row] for row in rows],
            [self.patient_ids[row] for row in rows],
            self.label_names,
            self.labels[rows],
        )


def embed_split(
    model: ECGFMModel,
    feature_extractor: ECGFMFeatureExtractor,
    dataset: "Dataset",
    labels: Sequence[str] | None = None,
    *,
    batch_size: int = 16,
    num_workers: int = 0,
    precision: str = "float32",
    cache_dir: str | os.PathLike | None = None,
    progress: bool = False,
) -> Embeddings:
    """
    Embed the recordings of one split.

    Args:
        model ([`ECGFMModel`]): Runs on the device that it is on.
        feature_extractor ([`ECGFMFeatureExtractor`]): With the policies for missing leads, NaN and so on.
        dataset (`Dataset`): From `load_prepared(store, split)`.
        labels: Columns, in this order. Defaults to the dataset's label columns.
        batch_size, num_workers, precision, progress: As of `run_recordings`.
        cache_dir: Folder to keep embeddings in, in a file named after the encoder's weights and settings, the feature
            extractor, the precision and the dataset's fingerprint. Embeddings found there are not computed again.

    Returns:
        [`Embeddings`] of the recordings that the extractor does not refuse, in order of rows.

    Raises:
        [`LinearProbeError`]: a label that the dataset does not have, or without numbers; no recording to embed.
    """
    names = tuple(default_labels(dataset) if labels is None else labels)
    if unknown := [name for name in names if name not in dataset.column_names]:
        raise LinearProbeError(f"the dataset has no label {', '.join(unknown)}")
    path = None
    if cache_dir is not None:
        key = _fingerprint(model, feature_extractor, dataset, resolve_precision(precision, model.device))
        path = Path(cache_dir) / f"embeddings-{key}.npz"
    found = None if path is None else _read_cache(path)
    if found is None:
        inputs = as_model_inputs(dataset, feature_extractor, labels=())
        outputs = run_recordings(
            model,
            inputs,
            batch_size=batch_size,
            num_workers=num_workers,
            precision=precision,
            embeddings=True,
            progress=progress,
        )
        embedded = [(output.row, output.embeddings) for output in outputs if output.embeddings is not None]
        if not embedded:
            raise LinearProbeError(f"none of the {len(dataset)} recordings can be embedded: {inputs.skipped}")
        row_of = np.repeat(np.array([row for row, _ in embedded], np.int64), [len(own) for _, own in embedded])
        found = np.concatenate([own for _, own in embedded]), row_of
        if path is not None:
            _write_cache(path, *found)
    values, segment_rows = found
    rows, recordings = np.unique(segment_rows, return_inverse=True)
    known = dataset.select_columns(list(dict.fromkeys(("recording_id", "patient_id", *names))))
    known = known.with_format("arrow")[:].take(rows)
    try:
        targets = [column_values(known, name) for name in names]
    except ValueError as error:
        raise LinearProbeError(str(error)) from None
    return Embeddings(
        values,
        recordings,
        known["recording_id"].to_pylist(),
        known["patient_id"].to_pylist(),
        names,
        np.stack(targets, axis=1) if names else np.zeros((len(rows), 0)),
    )


def _fingerprint(
    model: ECGFMModel, feature_extractor: ECGFMFeatureExtractor, dataset: "Dataset", precision: str
) -> str:
    """Return a digest of all that embeddings depend on. A dataset's fingerprint covers its files and all changes."""
    digest = hashlib.blake2b(digest_size=16)
    settings = {key: value for key, value in model.config.to_dict().items() if key not in LABEL_FIELDS}
    if SEGMENT_FILES in dataset.column_names:  # whose content the dataset's fingerprint does not cover
        files = [name for own in dataset[SEGMENT_FILES][:] for name in own or ()]
        settings["segments"] = hashlib.sha256(repr(sorted(recording_stamps(files).items())).encode()).hexdigest()
    about = [_CACHE_VERSION, precision, dataset._fingerprint, len(dataset), feature_extractor.to_dict(), settings]
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _read_cache(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Read values and rows of segments; None where there is no file, or, with a warning, a damaged one."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["values"], arrays["rows"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s is damaged (%s): embeddings are computed again", path, error)
        return None


def _write_cache(path: Path, values: np.ndarray, rows: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as scratch, scratch.open("wb") as file:
        np.savez(file, values=values, rows=rows)


@dataclass(frozen=True)
class LinearProbe:
    """
    Fitted heads on an encoder.

    Args:
        model ([`ECGFMForMultiLabelClassification`]): The encoder (a copy) with them, ready to be saved.
        strengths (`dict[str, float]`): The one of `STRENGTHS` that was chosen for each label of the model.
        notes (`dict[str, str]`): Why a label is not in the model, or was fitted in another way.
    """

    model: ECGFMForMultiLabelClassification
    strengths: dict[str, float]
    notes: dict[str, str] = field(default_factory=dict)

    def predict(self, embeddings: Embeddings) -> Predictions:
        """Score recordings from embeddings of the same encoder: the same scores as running the model, at once."""
        config, head = self.model.config, self.model.classifier
        weight = head.weight.detach().cpu().double().numpy()
        logits = embeddings.values.astype(np.float64) @ weight.T + head.bias.detach().cpu().double().numpy()
        names = tuple(config.label_names)
        if unknown := [name for name in names if name not in embeddings.label_names]:
            raise LinearProbeError(f"the embeddings have no label {', '.join(unknown)}")
        scores = [list(recording_scores(logits[own], config).values()) for own in embeddings.segments_of_recordings()]
        return Predictions(
            recording_ids=embeddings.recording_ids,
            patient_ids=embeddings.patient_ids,
            label_names=names,
            scores=np.array(scores, dtype=np.float64).reshape(len(embeddings), len(names)),
            labels=embeddings.labels[:, [embeddings.label_names.index(name) for name in names]],
            problem_type=config.problem_type or "multi_label_classification",
            calibrated=tuple(name in (config.label_calibration or {}) for name in names),
        )


def fit_linear_probe(
    encoder: ECGFMModel,
    embeddings: Embeddings,
    *,
    problem_type: str = "multi_label_classification",
    label_aggregation: Mapping[str, str] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    folds: int = FOLDS,
    seed: int = 0,
) -> LinearProbe:
    """
    Fit a head for each label on embeddings: logistic regression, or ridge regression for values.

    Features are standardised on these recordings, and the standardisation folded into the head's weights. The
    penalty of a label's weights is chosen by cross-validation (log loss, or squared error, of the held-out recordings),
    with all recordings of a patient in the same fold; a recording of an unknown patient counts as a patient of its own.
    Recordings with an unknown label are skipped for that label. A label with one class only is not in the model, with a
    note; one with positives or negatives of a single patient cannot be cross-validated, and takes the median of the
    other labels' strengths.

    Args:
        encoder ([`ECGFMModel`]): That made the embeddings; not changed.
        embeddings ([`Embeddings`]): Of the training split.
        problem_type (`str`): One of `PROBLEM_TYPES`.
        label_aggregation: For the model's config: how segments' scores become the recording's. The default is the
            mean, which heads are fitted for.
        strengths: Inverses of the penalty to choose from.
        folds (`int`): At least 2; fewer are used where a class has fewer patients.
        seed (`int`): For the folds.

    Returns:
        [`LinearProbe`]

    Raises:
        [`LinearProbeError`]: no label that can be fitted; labels with other values; another encoder.
    """
    width = embeddings.values.shape[1]
    if width != encoder.config.hidden_size:
        raise LinearProbeError(f"the encoder's embeddings have {encoder.config.hidden_size} values, these have {width}")
    heads = fit_heads(
        embeddings.recording_means(),
        embeddings.labels,
        embeddings.label_names,
        embeddings.recording_ids,
        embeddings.patient_ids,
        problem_type=problem_type,
        strengths=strengths,
        folds=folds,
        seed=seed,
    )
    model = _classifier(encoder, list(heads.strengths), problem_type, label_aggregation)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(heads.weight))
        model.classifier.bias.copy_(torch.from_numpy(heads.bias))
    return LinearProbe(model.eval(), heads.strengths, heads.notes)


@dataclass(frozen=True)
class Heads:
    """
    Linear heads: `features @ weight.T + bias` are logits, or values of a regression.

    Args:
        weight (`np.ndarray` (heads, features) float64), bias (`np.ndarray` (heads,) float64)
        strengths, notes: As of [`LinearProbe`]; the keys of `strengths` name the heads, in order.
    """

    weight: np.ndarray
    bias: np.ndarray
    strengths: dict[str, float]
    notes: dict[str, str]


def fit_heads(
    features: np.ndarray,
    labels: np.ndarray,
    label_names: Sequence[str],
    recording_ids: Sequence[str],
    patient_ids: Sequence[str | None],
    *,
    problem_type: str = "multi_label_classification",
    strengths: Sequence[float] = STRENGTHS,
    folds: int = FOLDS,
    seed: int = 0,
) -> Heads:
    """
    Fit heads on any features (n, features) of recordings, with labels (n, L), NaN unknown.

    For other arguments and errors see [`fit_linear_probe`].
    """
    _check(features, labels, label_names, recording_ids, problem_type, strengths, folds)
    mean, scale = features.mean(axis=0), features.std(axis=0)
    # A constant feature carries no information; its deviation is rounding.
    scale = np.where(scale > 1e-6 * np.maximum(1.0, np.abs(mean)), scale, np.inf)
    features = (features - mean) / scale
    groups, strengths = _groups(patient_ids), sorted(strengths)
    kind = _Ridge if problem_type == "regression" else _Logistic

    chosen: dict[str, float | None] = {}
    tasks: dict[str, _Logistic | _Ridge] = {}
    notes: dict[str, str] = {}
    for name, column in zip(label_names, labels.T, strict=True):
        known = ~np.isnan(column)
        reason = kind.refusal(column[known])
        if reason is not None:
            notes[name] = f"not in the model: {reason}"
            continue
        tasks[name] = kind(features[known], column[known], groups[known])
        chosen[name] = tasks[name].choose(strengths, folds, seed)
    if not tasks:
        raise LinearProbeError(f"there is no label to fit: {notes or 'none was given'}")
    usual = [strength for strength in chosen.values() if strength is not None]
    median = float(np.median(usual)) if usual else strengths[len(strengths) // 2]
    for name, strength in chosen.items():
        if strength is None:
            notes[name] = f"strength {median:g} is the median of the other labels: too few patients to cross-validate"
    fitted = {name: median if strength is None else strength for name, strength in chosen.items()}
    fits = [tasks[name].fit(strength) for name, strength in fitted.items()]
    weight = np.stack([coefficients for coefficients, _ in fits]) / scale
    return Heads(weight, np.array([intercept for _, intercept in fits]) - weight @ mean, fitted, notes)


class _Logistic:
    """Logistic regression of one label on standardised features."""

    def __init__(self, features: np.ndarray, targets: np.ndarray, groups: np.ndarray):
        self._features, self._targets, self._groups = features, targets.astype(np.int64), groups

    @staticmethod
    def refusal(targets: np.ndarray) -> str | None:
        if len(targets) == 0:
            return "unknown in all recordings"
        if targets.min() == targets.max():
            return f"all {len(targets)} known recordings are {'positive' if targets[0] else 'negative'}"
        return None

    def choose(self, strengths: Sequence[float], folds: int, seed: int) -> float | None:
        from sklearn.model_selection import StratifiedGroupKFold

        folds = min(folds, *(len(np.unique(self._groups[self._targets == value])) for value in (0, 1)))
        if folds < 2:
            return None
        splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        # Patients of several recordings may leave a fold without a class.
        parts = [
            (self._regression(), train, held_out)
            for train, held_out in splits.split(self._features, self._targets, self._groups)
            if len(np.unique(self._targets[train])) == 2
        ]
        if not parts:
            return None
        best, least, since = None, math.inf, 0
        # From strong penalties to weak ones, which take longest: each begins where the last ended. After two in a row
        # that are worse than the best, the rest is skipped.
        for strength in strengths:
            loss = sum(self._loss(regression, strength, *rows) for regression, *rows in parts)
            best, least, since = (strength, loss, 0) if loss < least else (best, least, since + 1)
            if since == 2:
                break
        return best

    def _loss(
        self, regression: "LogisticRegression", strength: float, train: np.ndarray, held_out: np.ndarray
    ) -> float:
        """Return the log loss, summed over the held-out recordings."""
        regression.set_params(C=strength).fit(self._features[train], self._targets[train])
        signs = 2 * self._targets[held_out] - 1
        return float(np.logaddexp(0, -signs * regression.decision_function(self._features[held_out])).sum())

    def fit(self, strength: float) -> tuple[np.ndarray, float]:
        regression = self._regression().set_params(C=strength).fit(self._features, self._targets)
        return regression.coef_[0], float(regression.intercept_[0])

    @staticmethod
    def _regression() -> "LogisticRegression":
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(warm_start=True, max_iter=1000)


class _Ridge:
    """Ridge regression of one value on standardised features; the value is standardised as well."""

    def __init__(self, features: np.ndarray, targets: np.ndarray, groups: np.ndarray):
        self._features, self._groups = features, groups
        self._mean, self._scale = targets.mean(), targets.std()
        self._targets = (targets - self._mean) / self._scale

    @staticmethod
    def refusal(targets: np.ndarray) -> str | None:
        if len(targets) == 0:
            return "unknown in all recordings"
        return f"all {len(targets)} known values are {targets[0]:g}" if targets.min() == targets.max() else None

    def choose(self, strengths: Sequence[float], folds: int, seed: int) -> float | None:
        from sklearn.linear_model import Ridge
        from sklearn.model_selection import GroupKFold

        folds = min(folds, len(np.unique(self._groups)))
        if folds < 2:
            return None
        losses = np.zeros(len(strengths))
        splits = GroupKFold(folds, shuffle=True, random_state=seed)
        for train, held_out in splits.split(self._features, self._targets, self._groups):
            for index, strength in enumerate(strengths):
                regression = Ridge(1 / strength).fit(self._features[train], self._targets[train])
                losses[index] += np.square(regression.predict(self._features[held_out]) - self._targets[held_out]).sum()
        return float(strengths[int(losses.argmin())])

    def fit(self, strength: float) -> tuple[np.ndarray, float]:
        from sklearn.linear_model import Ridge

        regression = Ridge(1 / strength).fit(self._features, self._targets)
        return regression.coef_ * self._scale, float(regression.intercept_ * self._scale + self._mean)


def _check(
    features: np.ndarray,
    labels: np.ndarray,
    label_names: Sequence[str],
    recording_ids: Sequence[str],
    problem_type: str,
    strengths: Sequence[float],
    folds: int,
) -> None:
    if problem_type not in PROBLEM_TYPES:
        raise LinearProbeError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, found: {problem_type!r}")
    if not strengths or not all(0 < strength < math.inf for strength in strengths):
        raise LinearProbeError(f"strengths must be above 0 and finite, found: {list(strengths)}")
    if folds < 2:
        raise LinearProbeError(f"folds must be at least 2, found: {folds}")
    if not np.isfinite(features).all():
        row = np.argwhere(~np.isfinite(features))[0, 0]
        raise LinearProbeError(f"recording {recording_ids[row]}: its embedding or features are not finite")
    bad = np.isinf(labels) if problem_type == "regression" else ~np.isnan(labels) & (labels != 0) & (labels != 1)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        wanted = "finite" if problem_type == "regression" else "0, 1 or unknown (NaN)"
        raise LinearProbeError(
            f"recording {recording_ids[row]}, label {label_names[column]}: must be {wanted}, "
            f"found: {labels[row, column]:g}"
        )


def _groups(patient_ids: Sequence[str | None]) -> np.ndarray:
    """Return a number (n,) for each patient; a recording of an unknown patient has its own."""
    keys = [(None, row) if patient is None else (patient, 0) for row, patient in enumerate(patient_ids)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)


def _classifier(
    encoder: ECGFMModel, names: list[str], problem_type: str, label_aggregation: Mapping[str, str] | None
) -> ECGFMForMultiLabelClassification:
    """Build a classifier of these labels with a copy of the encoder, in float32."""
    content = encoder.config.to_dict()
    for name in (*LABEL_FIELDS, "num_labels"):
        content.pop(name, None)
    content |= {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
        # Nothing is masked, so there is no mask embedding, as in fine-tuned models.
        "mask_time_prob": 0.0,
        "pooling": "mean",
        "problem_type": problem_type,
        "label_aggregation": {n: how for n, how in (label_aggregation or {}).items() if n in names} or None,
    }
    config = type(encoder.config)(**content)
    model = ECGFMForMultiLabelClassification(config).float()
    weights = encoder.state_dict()
    weights.pop("masked_spec_embed", None)
    model.ecgfm.load_state_dict(weights)
    return model.to(encoder.device)


__all__ = [
    "STRENGTHS",
    "Embeddings",
    "Heads",
    "LinearProbe",
    "LinearProbeError",
    "embed_split",
    "fit_heads",
    "fit_linear_probe",
]
