"""Calibration: probabilities from scores, fitted on a validation split."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from .metrics import MetricInputError, label_arrays

logger = logging.getLogger(__name__)

HOW = ("platt", "temperature")
Fit = Mapping[str, float]
# As in the pipeline: scores are clipped off 0 and 1, where the logit is infinite.
_SMALLEST = 1e-12
_STEPS = 100


def fit_calibration(
    labels: np.ndarray,
    scores: np.ndarray,
    pos_weight: Sequence[float] | np.ndarray | None = None,
    how: str = "platt",
    label_names: Sequence[str] | None = None,
) -> list[dict[str, float] | None]:
    """
    Return each label's slope a and intercept b that make `sigmoid(a * logit(score) + b)` a probability, as in
    `ECGFMConfig.label_calibration`. Fit on the validation split, on scores of recordings.

    A model trained with a `pos_weight` w overstates the odds w times. That is undone first, and the fit corrects the
    rest. The targets are Platt's (Advances in Large Margin Classifiers, 1999): (P + 1) / (P + 2) for positives and
    1 / (N + 2) for negatives, with P positives and N negatives, so that few positives, or scores that separate the
    classes without error, do not give an infinite slope.

    Args:
        labels (`np.ndarray` (n, L) or (n,)): 1, 0, or NaN where unknown; a label's unknown recordings are excluded.
        scores (`np.ndarray` of the same shape): Within 0 and 1, uncalibrated.
        pos_weight (sequence of `float` (L,), *optional*): Of the training loss.
        how (`str`): `"platt"` fits slope and intercept; `"temperature"` one slope with which a score of 0.5, after
            undoing `pos_weight`, stays 0.5.
        label_names (sequence of `str`, *optional*): For warnings.

    Returns:
        `list` (L,): `{"slope": a, "intercept": b}`, for the scores as they are. None, with a warning, if a label has no
        positives or no negatives, if all its scores are the same, or if positives do not score higher: then no rising
        curve fits, and the label needs more recordings or a better model.

    Raises:
        `MetricInputError`: shapes that differ, scores outside 0 and 1, weights that are not positive, unknown `how`.
    """
    if how not in HOW:
        raise MetricInputError(f"how must be one of {', '.join(HOW)}, found: {how!r}")
    labels, scores = label_arrays(labels, scores)
    if ((scores < 0) | (scores > 1)).any():
        outside = scores[(scores < 0) | (scores > 1)][0]
        raise MetricInputError(f"scores must be within 0 and 1, found: {outside}; give sigmoids, not logits")
    width = labels.shape[1]
    shifts = np.zeros(width)
    if pos_weight is not None:
        weights = np.asarray(pos_weight, dtype=np.float64)
        if weights.shape != (width,) or not (np.isfinite(weights) & (weights > 0)).all():
            raise MetricInputError(f"pos_weight must be {width} positive numbers, found: {weights.tolist()}")
        shifts = np.log(weights)
    names = [f"label {index}" for index in range(width)] if label_names is None else list(label_names)
    fits: list[dict[str, float] | None] = []
    for name, label, score, shift in zip(names, labels.T, scores.T, shifts, strict=True):
        known = ~np.isnan(label)
        slope, intercept, refusal = _fit(label[known], _logit(score[known]) - shift, how)
        if refusal is not None:
            logger.warning("%s is not calibrated: %s", name, refusal)
            fits.append(None)
        else:
            fits.append({"slope": float(slope), "intercept": float(intercept - slope * shift)})
    return fits


def apply_calibration(scores: np.ndarray, fits: Sequence[Fit | None]) -> np.ndarray:
    """
    Return calibrated scores (n, L), as the pipeline calibrates a recording's; scores of a label without fit stay as
    they are.

    Raises:
        `MetricInputError`: the numbers of fits and labels differ.
    """
    scores = np.array(scores, dtype=np.float64)
    if scores.ndim != 2 or len(fits) != scores.shape[1]:
        raise MetricInputError(
            f"scores must have shape (recordings, labels) with a fit or None for each label, found: {scores.shape} and "
            f"{len(fits)} fits"
        )
    for column, fit in enumerate(fits):
        if fit is not None:
            scores[:, column] = _sigmoid(fit["slope"] * _logit(scores[:, column]) + fit["intercept"])
    return scores


def _fit(label: np.ndarray, logit: np.ndarray, how: str) -> tuple[float, float, str | None]:
    """Return slope and intercept, or the reason why there are none."""
    positives, negatives = int((label == 1).sum()), int((label == 0).sum())
    if not positives or not negatives:
        return 1.0, 0.0, f"it has {positives} positives and {negatives} negatives"
    if logit.min() == logit.max():
        return 1.0, 0.0, "all its scores are the same"
    target = np.where(label == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    # Newton's method on standardised logits; back to the logit's own scale after.
    center, scale = (logit.mean(), logit.std()) if how == "platt" else (0.0, np.sqrt((logit**2).mean()))
    columns = [(logit - center) / scale] + ([np.ones_like(logit)] if how == "platt" else [])
    coefficients = _logistic(np.stack(columns, axis=1), target)
    slope = coefficients[0] / scale
    intercept = coefficients[1] - slope * center if how == "platt" else 0.0
    if slope <= 0:
        return slope, intercept, f"positives do not score higher (slope {slope:.3g}, {positives} positives)"
    return slope, intercept, None


def _logistic(columns: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the coefficients of least cross entropy, by Newton's steps, halved until they descend."""
    coefficients = np.zeros(columns.shape[1])
    loss = _cross_entropy(columns @ coefficients, target)
    for _ in range(_STEPS):
        probability = _sigmoid(columns @ coefficients)
        gradient = columns.T @ (probability - target)
        curvature = columns.T @ (columns * (probability * (1 - probability))[:, None])
        step = np.linalg.solve(curvature + 1e-12 * np.trace(curvature) * np.eye(len(curvature)), gradient)
        size = 1.0
        while (new := _cross_entropy(columns @ (coefficients - size * step), target)) > loss and size > 1e-10:
            size /= 2
        coefficients, before, loss = coefficients - size * step, loss, min(new, loss)
        if before - loss <= 1e-14 * max(loss, 1.0) and np.abs(size * step).max() < 1e-9:
            break
    return coefficients


def _cross_entropy(logits: np.ndarray, target: np.ndarray) -> float:
    return float((np.logaddexp(0.0, logits) - target * logits).sum())


def _logit(scores: np.ndarray) -> np.ndarray:
    scores = np.clip(scores, _SMALLEST, 1 - _SMALLEST)
    return np.log(scores / (1 - scores))


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * values))
