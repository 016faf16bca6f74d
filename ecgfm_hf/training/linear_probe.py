"""
Linear probing: the encoder stays as it is, its embeddings are computed once, and only heads are fitted.

A head is fitted on a row a recording, the mean of its segments' embeddings: labels are of recordings, and long ones
would count more otherwise. It is a linear layer on a segment's embedding all the same, so the result is an ordinary
classifier whose logits, averaged over a recording's segments, are exactly those that were fitted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..configuration_ecgfm import LABEL_FIELDS
from ..inference.predictions import Predictions
from ..modeling_ecgfm import ECGFMForMultiLabelClassification, ECGFMModel
from ..pipeline_ecgfm import recording_scores
from .embeddings import Embeddings, LinearProbeError, embed_split

# Inverse of the L2 penalty, as scikit-learn has it, for features of unit deviation; ridge takes their inverses.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
FOLDS = 5
PROBLEM_TYPES = ("multi_label_classification", "regression")


@dataclass(frozen=True)
class LinearProbe:
    """
    Heads that were fitted.

    Args:
        model ([`ECGFMForMultiLabelClassification`]): The encoder (a copy) with them, ready to be saved.
        strengths (`dict[str, float]`): Chosen for each label of the model, as `STRENGTHS` are.
        notes (`dict[str, str]`): Why a label is not in the model, or how one was fitted otherwise.
    """

    model: ECGFMForMultiLabelClassification
    strengths: dict[str, float]
    notes: dict[str, str] = field(default_factory=dict)

    def predict(self, embeddings: Embeddings) -> Predictions:
        """What the model says of recordings, from embeddings of the same encoder: equal to running it, in no time."""
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
            problem_type=config.problem_type,
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
    Fits a head a label on embeddings: logistic regression, or ridge regression for values.

    Features are standardised on these recordings, and the standardisation folded into the head's weights. How strongly
    a label's weights are penalised is chosen by cross-validation (log loss, or squared error, of the recordings held
    out), all recordings of a patient in the same fold; a recording of an unknown patient stands for itself. Recordings
    whose label is unknown take no part in that label. A label of which there is one class only is not in the model, a
    note says so; one with positives or negatives of a single patient cannot be cross-validated, and takes the median
    of the other labels' strengths.

    Args:
        encoder ([`ECGFMModel`]): The one that made the embeddings. It is not changed.
        embeddings ([`Embeddings`]): Of the training split.
        problem_type (`str`): One of `PROBLEM_TYPES`.
        label_aggregation: For the model's config: how segments' scores become the recording's; mean where it says
            nothing, which is what heads are fitted for.
        strengths: To choose from: inverses of the penalty.
        folds (`int`): At least 2; fewer where a class has fewer patients.
        seed (`int`): Of the folds.

    Returns:
        [`LinearProbe`]

    Raises:
        [`LinearProbeError`]: no label that can be fitted; values that are no labels; another encoder.
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
    [`fit_linear_probe`] for any features (n, features) of recordings, with labels (n, L), NaN unknown. Other arguments
    and errors as there.
    """
    _check(features, labels, label_names, recording_ids, problem_type, strengths, folds)
    mean, scale = features.mean(axis=0), features.std(axis=0)
    # A feature that never differs says nothing; its deviation is rounding.
    scale = np.where(scale > 1e-6 * np.maximum(1.0, np.abs(mean)), scale, np.inf)
    features = (features - mean) / scale
    groups, strengths = _groups(patient_ids), sorted(strengths)
    kind = _Ridge if problem_type == "regression" else _Logistic

    chosen, notes, tasks = {}, {}, {}
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
    for name, strength in chosen.items():
        if strength is None:
            chosen[name] = float(np.median(usual)) if usual else strengths[len(strengths) // 2]
            notes[name] = f"strength {chosen[name]:g} is not its own: too few patients to cross-validate"
    fits = [tasks[name].fit(chosen[name]) for name in chosen]
    weight = np.stack([coefficients for coefficients, _ in fits]) / scale
    return Heads(weight, np.array([intercept for _, intercept in fits]) - weight @ mean, chosen, notes)


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
        # From strong penalties to weak ones, which take longest: each begins where the last ended, and once two in a
        # row were worse than the best, those after them are not tried.
        for strength in strengths:
            loss = sum(self._loss(regression, strength, *rows) for regression, *rows in parts)
            best, least, since = (strength, loss, 0) if loss < least else (best, least, since + 1)
            if since == 2:
                break
        return best

    def _loss(self, regression: Any, strength: float, train: np.ndarray, held_out: np.ndarray) -> float:
        """Log loss, summed over the recordings held out."""
        regression.set_params(C=strength).fit(self._features[train], self._targets[train])
        signs = 2 * self._targets[held_out] - 1
        return float(np.logaddexp(0, -signs * regression.decision_function(self._features[held_out])).sum())

    def fit(self, strength: float) -> tuple[np.ndarray, float]:
        regression = self._regression().set_params(C=strength).fit(self._features, self._targets)
        return regression.coef_[0], float(regression.intercept_[0])

    @staticmethod
    def _regression() -> Any:
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
            for place, strength in enumerate(strengths):
                regression = Ridge(1 / strength).fit(self._features[train], self._targets[train])
                losses[place] += np.square(regression.predict(self._features[held_out]) - self._targets[held_out]).sum()
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
    """A number (n,) for each patient; a recording of nobody known has its own."""
    keys = [(None, row) if patient is None else (patient, 0) for row, patient in enumerate(patient_ids)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)


def _classifier(
    encoder: ECGFMModel, names: list[str], problem_type: str, label_aggregation: Mapping[str, str] | None
) -> ECGFMForMultiLabelClassification:
    """A classifier of these labels with a copy of the encoder, in float32."""
    content = encoder.config.to_dict()
    for name in (*LABEL_FIELDS, "num_labels"):
        content.pop(name, None)
    content |= {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
        # Nothing is masked, so there is no mask embedding, as in fine-tuned models.
        "mask_time_prob": 0.0,
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
