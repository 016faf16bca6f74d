"""
How well scores rank recordings: AUROC, average precision, sensitivity at a fixed specificity.

Each is computed in one place, for many weightings of the recordings at once (`RankedLabel`). A weighting says how often
each recording counts: once for the metric itself, as often as it was drawn for a bootstrap resample.
"""

from collections.abc import Sequence

import numpy as np

from .metric_input import MetricInputError, label_arrays, ratio


class RankedLabel:
    """
    One label's recordings in order of their scores, highest first. Recordings of one score are one step: no order among
    them is taken for knowledge.

    Args:
        labels (`np.ndarray` (n,)): 1, 0, or NaN where unknown; unknown ones count nowhere.
        scores (`np.ndarray` (n,))
    """

    def __init__(self, labels: np.ndarray, scores: np.ndarray):
        known = np.flatnonzero(~np.isnan(labels))
        self._order = known[np.argsort(-scores[known], kind="stable")]
        ordered = scores[self._order]
        positive = np.flatnonzero(labels[self._order] == 1)
        # Steps that hold a positive: only there do sensitivity and the areas change.
        last = np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)]
        ends = np.flatnonzero(last)
        steps, first = np.unique(np.searchsorted(ends, positive), return_index=True)
        self._positive = positive
        self._end = ends[steps] + 1
        self._start = np.concatenate([[0], ends + 1])[steps].astype(np.int64)
        self._positive_end = np.append(first[1:], len(positive)).astype(np.int64)[: len(steps)]

    def counts(self, weights: np.ndarray) -> "StepCounts":
        """
        Args:
            weights (`np.ndarray` (n, b), integers): How often each recording counts, in each of b weightings.
        """
        weights = weights[self._order]
        below = _counts_below(weights)
        positives = _counts_below(weights[self._positive])
        true_positive = positives[self._positive_end]
        true_before = np.concatenate([np.zeros_like(positives[:1]), true_positive[:-1]])[: len(true_positive)]
        return StepCounts(
            true_positive=true_positive,
            true_before=true_before,
            false_positive=below[self._end] - true_positive,
            false_before=below[self._start] - true_before,
            positives=positives[-1],
            negatives=below[-1] - positives[-1],
        )


class StepCounts:
    """
    Weighted counts at the steps down the scores that hold a positive, each (steps, b), and in all, each (b,).

    `true_positive` and `false_positive` are the counts at or above a step, `true_before` and `false_before` above it.
    """

    def __init__(self, true_positive, true_before, false_positive, false_before, positives, negatives):
        self.true_positive, self.true_before = true_positive, true_before
        self.false_positive, self.false_before = false_positive, false_before
        self.positives, self.negatives = positives, negatives

    def auroc(self) -> np.ndarray:
        """(b,): the share of pairs of a positive and a negative in which the positive is higher; ties are half."""
        in_step = (self.true_positive - self.true_before).astype(np.float64)
        higher_negatives = 0.5 * np.einsum("sb,sb->b", in_step, self.false_positive + self.false_before)
        positives, negatives = self.positives.astype(np.float64), self.negatives.astype(np.float64)
        return ratio(positives * negatives - higher_negatives, positives * negatives)

    def average_precision(self) -> np.ndarray:
        """(b,): the mean over the positives of the precision at their score. NaN without positives or negatives."""
        in_step = self.true_positive - self.true_before
        flagged = self.true_positive + self.false_positive
        precision = np.divide(self.true_positive, flagged, out=np.zeros(flagged.shape), where=flagged > 0)
        mean = ratio(np.einsum("sb,sb->b", in_step.astype(np.float64), precision), self.positives)
        return np.where(self.negatives > 0, mean, np.nan)

    def sensitivity_at(self, specificity: float) -> np.ndarray:
        """(b,): the highest sensitivity of a threshold whose specificity is at least that."""
        # A hair wider than asked: 0.95 of 20 negatives is 19, though 20 * (1 - 0.95) is less than 1 in binary.
        allowed = (1 - specificity) * self.negatives * (1 + 1e-12) + 1e-12
        admitted = self.false_positive <= allowed
        reached = np.where(admitted, self.true_positive, 0).max(axis=0, initial=0)
        return np.where(self.negatives > 0, ratio(reached, self.positives), np.nan)


def _counts_below(weights: np.ndarray) -> np.ndarray:
    """(m + 1, b): what the first 0, 1, ... m rows count together."""
    counts = np.zeros((len(weights) + 1, weights.shape[1]), dtype=np.int64)
    np.cumsum(weights, axis=0, out=counts[1:])
    return counts


def auroc(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """
    Area under the receiver operating characteristic of each label, as scikit-learn's `roc_auc_score`.

    Args:
        labels (`np.ndarray` (n, L) or (n,)): 1, 0, or NaN where unknown; a label's unknown recordings are left out.
        scores (`np.ndarray` of the same shape)

    Returns:
        (L,) float64; NaN where a label lacks positives or negatives.

    Raises:
        `MetricInputError`: shapes that differ, labels other than 0, 1 and NaN, scores that are not finite.
    """
    return _by_label(labels, scores, lambda counts: counts.auroc())


def average_precision(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """
    Average precision (area under the precision-recall curve by steps) of each label, as scikit-learn's
    `average_precision_score`. Arguments, returns and errors as [`auroc`]. It depends on how common the label is: by
    chance it equals the label's prevalence, not 0.5.
    """
    return _by_label(labels, scores, lambda counts: counts.average_precision())


def sensitivity_at_specificity(labels: np.ndarray, scores: np.ndarray, specificity: float = 0.95) -> np.ndarray:
    """
    The highest sensitivity of each label among thresholds whose specificity is at least `specificity`; the thresholds
    are chosen on these very recordings. Arguments, returns and errors as [`auroc`].
    """
    if not 0 <= specificity <= 1:
        raise MetricInputError(f"specificity must be within 0 and 1, found: {specificity}")
    return _by_label(labels, scores, lambda counts: counts.sensitivity_at(specificity))


def _by_label(labels, scores, metric) -> np.ndarray:
    labels, scores = label_arrays(labels, scores)
    once = np.ones((len(labels), 1), dtype=np.int64)
    pairs = zip(labels.T, scores.T, strict=True)
    return np.array([metric(RankedLabel(*pair).counts(once))[0] for pair in pairs], dtype=np.float64)


def roc_points(labels: Sequence[float], scores: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    The receiver operating characteristic of one label.

    Args:
        labels (sequence of n): 1, 0, or NaN where unknown; unknown recordings are left out.
        scores (sequence of n)

    Returns:
        False positive rates, sensitivities and thresholds, each (points,), from (0, 0) with threshold infinity to
        (1, 1): flagged is what scores at least the threshold. Rates are NaN where a label lacks that class.
    """
    true_positive, false_positive, thresholds = threshold_counts(labels, scores)
    return ratio(false_positive, false_positive[-1]), ratio(true_positive, true_positive[-1]), thresholds


def precision_recall_points(
    labels: Sequence[float], scores: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Precision against recall of one label.

    Args:
        labels (sequence of n): 1, 0, or NaN where unknown; unknown recordings are left out.
        scores (sequence of n)

    Returns:
        Recalls, precisions and thresholds, each (points,), from the highest score to the lowest.
    """
    true_positive, false_positive, thresholds = (values[1:] for values in threshold_counts(labels, scores))
    recall = ratio(true_positive, true_positive[-1] if len(true_positive) else 0)
    return recall, ratio(true_positive, true_positive + false_positive), thresholds


def threshold_counts(labels, scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Positives and negatives of one label at or above each distinct score, and these scores, from none (infinity) to all.
    """
    labels, scores = (values[:, 0] for values in label_arrays(np.ravel(labels), np.ravel(scores)))
    known = ~np.isnan(labels)
    labels, scores = labels[known], scores[known]
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)])
    true_positive = np.concatenate([[0], np.cumsum(labels[order])[ends]])
    false_positive = np.concatenate([[0], ends + 1]) - true_positive
    return true_positive, false_positive, np.concatenate([[np.inf], ordered[ends]])
