"""Thresholds of scores, fitted on a validation split. There is no default: 0.5 has no meaning for a score."""

import logging
from collections.abc import Sequence

import numpy as np

from .metrics import MetricInputError, auroc, label_arrays, threshold_counts

logger = logging.getLogger(__name__)

HOW = ("youden", "f1", "sensitivity")


def fit_thresholds(
    labels: np.ndarray,
    scores: np.ndarray,
    how: str = "youden",
    target: float | None = None,
    label_names: Sequence[str] | None = None,
) -> np.ndarray:
    """
    Return a threshold for each label. A recording is positive if its score reaches the threshold.

    Fit on the validation split, never on the recordings that the decisions are evaluated on. Give the scores as they
    will be used: calibrated, if the config calibrates.

    Args:
        labels (`np.ndarray` (n, L) or (n,)): 1, 0, or NaN where unknown; a label's unknown recordings are excluded.
        scores (`np.ndarray` of the same shape)
        how (`str`): `"youden"` maximises sensitivity + specificity - 1, `"f1"` the F1 score; `"sensitivity"` takes the
            highest threshold that reaches the `target` sensitivity, so the best specificity.
        target (`float`, *optional*): For `"sensitivity"`, above 0 and at most 1.
        label_names (sequence of `str`, *optional*): For warnings.

    Returns:
        (L,) float64: halfway between two neighbouring scores; of equally good thresholds the one that flags fewest. NaN
        where a label has no positives or no negatives, and, with a warning, where its AUROC is not above 0.5: positives
        do not score higher than negatives, so no threshold helps.

    Raises:
        `MetricInputError`: shapes that differ, an unknown `how`, a target that is missing, impossible or not needed.
    """
    if how not in HOW:
        raise MetricInputError(f"how must be one of {', '.join(HOW)}, found: {how!r}")
    if (target is not None) != (how == "sensitivity") or (target is not None and not 0 < target <= 1):
        raise MetricInputError(
            f"how='sensitivity' needs a target above 0 and at most 1, the others take none; found how={how!r}, "
            f"target={target}"
        )
    labels, scores = label_arrays(labels, scores)
    names = [f"label {index}" for index in range(labels.shape[1])] if label_names is None else label_names
    thresholds = np.full(labels.shape[1], np.nan)
    for index, area in enumerate(auroc(labels, scores)):
        if area > 0.5:
            thresholds[index] = _fit(labels[:, index], scores[:, index], how, target)
        elif area <= 0.5:
            logger.warning("%s gets no threshold: its AUROC is %.3f, not above chance (0.5)", names[index], area)
    return thresholds


def _fit(label: np.ndarray, score: np.ndarray, how: str, target: float | None) -> float:
    true_positive, false_positive, values = (column[1:] for column in threshold_counts(label, score))
    positives, negatives = true_positive[-1], false_positive[-1]
    if how == "sensitivity":
        # Slightly less, for rounding: 0.9 of 10 is 9, which binary fractions may miss.
        best = int(np.argmax(true_positive >= target * positives * (1 - 1e-12)))
    elif how == "f1":
        best = int(np.argmax(2 * true_positive / (true_positive + false_positive + positives)))
    else:
        best = int(np.argmax(true_positive / positives - false_positive / negatives))
    if best == len(values) - 1:  # everything is flagged; there is no lower neighbour
        return float(values[best])
    middle = (values[best] + values[best + 1]) / 2
    # Neighbouring floats have nothing between them.
    return float(middle if values[best + 1] < middle <= values[best] else values[best])


def at_thresholds(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """
    Return decisions (n, L) float64: 1 where a score reaches its label's threshold, otherwise 0, NaN without threshold.

    Args:
        scores (`np.ndarray` (n, L))
        thresholds (`np.ndarray` (L,)): NaN where a label has none.

    Raises:
        `MetricInputError`: the numbers of thresholds and labels differ.
    """
    scores, thresholds = np.asarray(scores, dtype=np.float64), np.asarray(thresholds, dtype=np.float64)
    if scores.ndim != 2 or thresholds.shape != scores.shape[1:]:
        raise MetricInputError(
            f"scores must have shape (recordings, labels) and thresholds (labels,), found: {scores.shape} and "
            f"{thresholds.shape}"
        )
    return np.where(np.isnan(thresholds), np.nan, scores >= thresholds)
