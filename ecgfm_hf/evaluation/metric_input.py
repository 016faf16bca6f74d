"""What all metrics take: arrays of one shape, NaN where a label is unknown."""

import numpy as np

from ..utils.errors import ECGFMError


class MetricInputError(ECGFMError, ValueError):
    """Arrays that no metric can be computed of. The message says what was expected and found."""


def label_arrays(labels: np.ndarray, values: np.ndarray, *, what: str = "scores") -> tuple[np.ndarray, np.ndarray]:
    """
    Both as float64 of shape (n, L); one label may come as (n,).

    Args:
        labels: 1, 0, or NaN where unknown.
        values: Scores or decisions of the same shape, finite (True and False are 1 and 0).
        what: What the values are called in an error.

    Raises:
        `MetricInputError`: shapes that differ, labels that are not 0, 1 or NaN, values that are not finite.
    """
    labels, values = _same_shape(labels, values, what)
    if (wrong := (labels != 0) & (labels != 1) & ~np.isnan(labels)).any():
        raise MetricInputError(f"labels must be 0, 1 or NaN where unknown, found: {labels[wrong][0]}")
    return labels, values


def target_arrays(targets: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same for a regression: targets are any finite numbers, or NaN where unknown."""
    targets, values = _same_shape(targets, values, "predicted values")
    if np.isinf(targets).any():
        raise MetricInputError("targets must be finite, or NaN where unknown; found infinite ones")
    return targets, values


def _same_shape(labels: np.ndarray, values: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    labels, values = np.asarray(labels, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if labels.shape != values.shape or labels.ndim not in (1, 2):
        raise MetricInputError(
            f"labels and {what} must have the same shape (recordings, labels) or (recordings,), found: {labels.shape} "
            f"and {values.shape}"
        )
    if not np.isfinite(values).all():
        raise MetricInputError(f"{what} must be finite, found: {values[~np.isfinite(values)][0]}")
    return (labels[:, None], values[:, None]) if labels.ndim == 1 else (labels, values)


def decision_arrays(labels: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels as [`label_arrays`], decisions 1 or 0, or NaN where none was taken."""
    decisions = np.asarray(positive, dtype=np.float64)
    if (wrong := (decisions != 0) & (decisions != 1) & ~np.isnan(decisions)).any():
        raise MetricInputError(
            f"decisions must be True or False (1 or 0), or NaN where there is none, found: {decisions[wrong][0]}; "
            "compare scores with thresholds first (at_thresholds)"
        )
    labels, decided = label_arrays(labels, np.nan_to_num(decisions), what="decisions")
    return labels, np.where(np.isnan(decisions.reshape(decided.shape)), np.nan, decided)


def macro(values: np.ndarray) -> tuple[float, int]:
    """The mean over the labels that have a value, NaN if none has; and how many were left out for want of one."""
    values = np.asarray(values, dtype=np.float64).reshape(-1)
    defined = ~np.isnan(values)
    return (float(values[defined].mean()) if defined.any() else float("nan")), int((~defined).sum())


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divided, NaN where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(
        np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    )
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator != 0)
