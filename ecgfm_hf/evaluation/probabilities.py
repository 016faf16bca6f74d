"""How far scores are from probabilities."""

import numpy as np

from .metric_input import MetricInputError, label_arrays, ratio


def brier(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """
    Brier score of each label: the mean squared difference of score and label; 0 is best, and always answering with the
    prevalence f gives f * (1 - f).

    Args:
        labels (`np.ndarray` (n, L) or (n,)): 1, 0, or NaN where unknown; a label's unknown recordings are left out.
        scores (`np.ndarray` of the same shape): Within 0 and 1.

    Returns:
        (L,) float64; NaN where nothing is known.

    Raises:
        `MetricInputError`: shapes that differ, labels other than 0, 1 and NaN, scores outside 0 and 1.
    """
    squared, known = squared_differences(labels, scores)
    return ratio(squared.sum(axis=0), known.sum(axis=0))


def squared_differences(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each recording and label (n, L): the squared difference, 0 where unknown; and whether the label is known."""
    labels, scores = _checked(labels, scores)
    known = ~np.isnan(labels)
    return np.where(known, (scores - labels) ** 2, 0.0), known


def calibration_error(labels: np.ndarray, scores: np.ndarray, bins: int = 10) -> np.ndarray:
    """
    Expected calibration error of each label: the mean over the recordings of the distance between the mean score and
    the share of positives of the recording's bin ([`reliability`]).

    It is above 0 for a perfect model too, the more so the fewer recordings a bin has. Arguments, returns and errors as
    [`brier`].
    """
    labels, scores = _checked(labels, scores)
    errors = np.full(labels.shape[1], np.nan)
    for place, (label, score) in enumerate(zip(labels.T, scores.T, strict=True)):
        counts, mean_scores, positives = reliability(label, score, bins)
        if len(counts):
            errors[place] = np.average(np.abs(mean_scores - positives), weights=counts)
    return errors


def reliability(labels: np.ndarray, scores: np.ndarray, bins: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    One label's known recordings in bins of about equally many, by rising score; recordings of one score share a bin.
    Bins of equal width would put nearly all recordings of a rare label into the first.

    Args:
        labels, scores (`np.ndarray` (n,)): As in [`brier`].
        bins (`int`): At most as many come back: fewer where scores are equal or recordings few.

    Returns:
        Counts (int64), mean scores and shares of positives, each (bins,).
    """
    if bins < 1:
        raise MetricInputError(f"bins must be at least 1, found: {bins}")
    labels, scores = (values[:, 0] for values in _checked(np.ravel(labels), np.ravel(scores)))
    known = ~np.isnan(labels)
    order = np.argsort(scores[known], kind="stable")
    labels, scores = labels[known][order], scores[known][order]
    # A bin begins at the first recording of the score that an even cut would fall on.
    cuts = np.arange(bins) * len(scores) // bins
    starts = np.unique(np.searchsorted(scores, scores[cuts])) if len(scores) else np.zeros(0, dtype=np.int64)
    counts = np.diff(np.append(starts, len(scores)))
    if not len(scores):
        return counts, np.zeros(0), np.zeros(0)
    return counts, np.add.reduceat(scores, starts) / counts, np.add.reduceat(labels, starts) / counts


def _checked(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = label_arrays(labels, scores)
    if ((scores < 0) | (scores > 1)).any():
        outside = scores[(scores < 0) | (scores > 1)][0]
        raise MetricInputError(f"scores must be within 0 and 1, found: {outside}; give sigmoids, not logits")
    return labels, scores
