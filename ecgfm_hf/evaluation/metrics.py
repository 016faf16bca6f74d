"""
Metrics of each label: ranking, decisions, probabilities, regression.

All take labels (recordings, labels), or one label (recordings,), with NaN where a label is unknown, and return a value
for each label, NaN where it is undefined. [`macro`] averages the labels that have a value.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..utils.errors import ECGFMError


class MetricInputError(ECGFMError, ValueError):
    """Arrays or settings that no metric can be computed from. The message has what was expected and found."""


def label_arrays(labels: np.ndarray, values: np.ndarray, *, what: str = "scores") -> tuple[np.ndarray, np.ndarray]:
    """
    Return both as float64 of shape (n, L); one label may be given as (n,).

    Args:
        labels: 1, 0, or NaN where unknown.
        values: Scores or decisions of the same shape, finite (True and False are 1 and 0).
        what: What an error calls the values.

    Raises:
        `MetricInputError`: shapes that differ, labels that are not 0, 1 or NaN, values that are not finite.
    """
    labels, values = _same_shape(labels, values, what)
    if (wrong := (labels != 0) & (labels != 1) & ~np.isnan(labels)).any():
        raise MetricInputError(f"labels must be 0, 1 or NaN where unknown, found: {labels[wrong][0]}")
    return labels, values


def target_arrays(targets: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the same for a regression, whose targets are any finite numbers, or NaN where unknown."""
    targets, values = _same_shape(targets, values, "predicted values")
    if np.isinf(targets).any():
        raise MetricInputError("targets must be finite, or NaN where unknown, found: infinity")
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
    """Return labels as [`label_arrays`] does, and decisions as 1 or 0, or NaN where there is none."""
    decisions = np.asarray(positive, dtype=np.float64)
    if (wrong := (decisions != 0) & (decisions != 1) & ~np.isnan(decisions)).any():
        raise MetricInputError(
            f"decisions must be True or False (1 or 0), or NaN where there is none, found: {decisions[wrong][0]}; "
            "compare scores with thresholds first (at_thresholds)"
        )
    labels, decided = label_arrays(labels, np.nan_to_num(decisions), what="decisions")
    return labels, np.where(np.isnan(decisions.reshape(decided.shape)), np.nan, decided)


def macro(values: np.ndarray) -> tuple[float, int]:
    """Return the mean over the labels that have a value, NaN if none has, and how many labels have no value."""
    values = np.asarray(values, dtype=np.float64).reshape(-1)
    defined = ~np.isnan(values)
    return (float(values[defined].mean()) if defined.any() else float("nan")), int((~defined).sum())


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return numerator / denominator, NaN where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(
        np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    )
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator != 0)


# ----------------------------------------------------------------------------------------------------------------------
# Ranking
# ----------------------------------------------------------------------------------------------------------------------


class RankedLabel:
    """
    One label's recordings in order of their scores, highest first, for many weightings of the recordings at once.

    A weighting is how often each recording counts: once for the metric itself, as often as it was drawn for a bootstrap
    resample. Recordings of equal scores are one step.

    Args:
        labels (`np.ndarray` (n,)): 1, 0, or NaN where unknown; unknown ones do not count.
        scores (`np.ndarray` (n,))
    """

    def __init__(self, labels: np.ndarray, scores: np.ndarray):
        known = np.flatnonzero(~np.isnan(labels))
        self._order = known[np.argsort(-scores[known], kind="stable")]
        ordered = scores[self._order]
        positive = np.flatnonzero(labels[self._order] == 1)
        # Steps with a positive: only there do sensitivity and the areas change.
        last = np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)]
        ends = np.flatnonzero(last)
        steps, first = np.unique(np.searchsorted(ends, positive), return_index=True)
        self._positive = positive
        self._end = ends[steps] + 1
        self._start = np.concatenate([[0], ends + 1])[steps].astype(np.int64)
        self._positive_end = np.append(first[1:], len(positive)).astype(np.int64)[: len(steps)]

    def counts(self, weights: np.ndarray) -> "StepCounts":
        """
        Return the counts at each step.

        Args:
            weights (`np.ndarray` (n, b), integers): How often each recording counts, in each of b weightings.
        """
        # Sums along contiguous recordings are several times faster than across them.
        drawn = np.ascontiguousarray(weights[self._order].T)
        below = _counts_below(drawn)
        positives = _counts_below(drawn[:, self._positive])
        true_positive = positives[:, self._positive_end]
        true_before = np.concatenate([np.zeros_like(positives[:, :1]), true_positive[:, :-1]], axis=1)
        true_before = true_before[:, : true_positive.shape[1]]
        return StepCounts(
            true_positive=true_positive.T,
            true_before=true_before.T,
            false_positive=(below[:, self._end] - true_positive).T,
            false_before=(below[:, self._start] - true_before).T,
            positives=positives[:, -1],
            negatives=below[:, -1] - positives[:, -1],
        )


@dataclass(frozen=True)
class StepCounts:
    """
    Weighted counts at the steps down the scores that have a positive, each (steps, b), and in all, each (b,).

    `true_positive` and `false_positive` are the counts at or above a step, `true_before` and `false_before` above it.
    """

    true_positive: np.ndarray
    true_before: np.ndarray
    false_positive: np.ndarray
    false_before: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray

    def auroc(self) -> np.ndarray:
        """Return (b,): the share of pairs of a positive and a negative in which the positive is higher; ties half."""
        in_step = (self.true_positive - self.true_before).astype(np.float64)
        higher_negatives = 0.5 * np.einsum("sb,sb->b", in_step, self.false_positive + self.false_before)
        positives, negatives = self.positives.astype(np.float64), self.negatives.astype(np.float64)
        return ratio(positives * negatives - higher_negatives, positives * negatives)

    def average_precision(self) -> np.ndarray:
        """Return (b,): the mean over the positives of the precision at their score; NaN without both classes."""
        in_step = self.true_positive - self.true_before
        flagged = self.true_positive + self.false_positive
        precision = np.divide(self.true_positive, flagged, out=np.zeros(flagged.shape), where=flagged > 0)
        mean = ratio(np.einsum("sb,sb->b", in_step.astype(np.float64), precision), self.positives)
        return np.where(self.negatives > 0, mean, np.nan)

    def sensitivity_at(self, specificity: float) -> np.ndarray:
        """Return (b,): the highest sensitivity of a threshold that has at least this specificity."""
        # Slightly wider, for rounding: 0.95 of 20 negatives is 19, but 20 * (1 - 0.95) is less than 1 in binary.
        allowed = (1 - specificity) * self.negatives * (1 + 1e-12) + 1e-12
        admitted = self.false_positive <= allowed
        reached = np.where(admitted, self.true_positive, 0).max(axis=0, initial=0)
        return np.where(self.negatives > 0, ratio(reached, self.positives), np.nan)


def _counts_below(weights: np.ndarray) -> np.ndarray:
    """Return (b, m + 1): the sums of the first 0, 1, ... m columns."""
    counts = np.zeros((weights.shape[0], weights.shape[1] + 1), dtype=np.int64)
    np.cumsum(weights, axis=1, out=counts[:, 1:])
    return counts


def auroc(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """
    Return the area under the receiver operating characteristic of each label, as scikit-learn's `roc_auc_score`.

    Args:
        labels (`np.ndarray` (n, L) or (n,)): 1, 0, or NaN where unknown; a label's unknown recordings are excluded.
        scores (`np.ndarray` of the same shape)

    Returns:
        (L,) float64; NaN where a label has no positives or no negatives.

    Raises:
        `MetricInputError`: shapes that differ, labels other than 0, 1 and NaN, scores that are not finite.
    """
    return _by_label(labels, scores, lambda counts: counts.auroc())


def average_precision(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """
    Return the average precision (area under the precision-recall curve by steps) of each label, as scikit-learn's
    `average_precision_score`.

    It depends on how common the label is: by chance it equals the label's prevalence, not 0.5. Arguments, returns and
    errors as [`auroc`].
    """
    return _by_label(labels, scores, lambda counts: counts.average_precision())


def sensitivity_at_specificity(labels: np.ndarray, scores: np.ndarray, specificity: float = 0.95) -> np.ndarray:
    """
    Return the highest sensitivity of each label among thresholds whose specificity is at least `specificity`.

    The thresholds are chosen on these very recordings. Arguments, returns and errors as [`auroc`].
    """
    if not 0 <= specificity <= 1:
        raise MetricInputError(f"specificity must be within 0 and 1, found: {specificity}")
    return _by_label(labels, scores, lambda counts: counts.sensitivity_at(specificity))


def _by_label(labels: np.ndarray, scores: np.ndarray, metric: Callable[[StepCounts], np.ndarray]) -> np.ndarray:
    labels, scores = label_arrays(labels, scores)
    once = np.ones((len(labels), 1), dtype=np.int64)
    pairs = zip(labels.T, scores.T, strict=True)
    return np.array([metric(RankedLabel(*pair).counts(once))[0] for pair in pairs], dtype=np.float64)


def roc_points(
    labels: Sequence[float] | np.ndarray, scores: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Return the receiver operating characteristic of one label.

    Args:
        labels (sequence of n): 1, 0, or NaN where unknown; unknown recordings are excluded.
        scores (sequence of n)

    Returns:
        False positive rates, sensitivities and thresholds, each (points,), from (0, 0) with threshold infinity to
        (1, 1): a recording is flagged if its score reaches the threshold. Rates of a missing class are NaN.
    """
    true_positive, false_positive, thresholds = threshold_counts(labels, scores)
    return ratio(false_positive, false_positive[-1]), ratio(true_positive, true_positive[-1]), thresholds


def precision_recall_points(
    labels: Sequence[float] | np.ndarray, scores: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Return precision against recall of one label.

    Args:
        labels (sequence of n): 1, 0, or NaN where unknown; unknown recordings are excluded.
        scores (sequence of n)

    Returns:
        Recalls, precisions and thresholds, each (points,), from the highest score to the lowest.
    """
    true_positive, false_positive, thresholds = (values[1:] for values in threshold_counts(labels, scores))
    recall = ratio(true_positive, true_positive[-1] if len(true_positive) else np.zeros(()))
    return recall, ratio(true_positive, true_positive + false_positive), thresholds


def threshold_counts(
    labels: Sequence[float] | np.ndarray, scores: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Return the positives and negatives of one label at or above each score, and these scores.

    The scores are distinct and fall, from infinity, which no recording reaches, to the lowest.
    """
    truth, ranks = (values[:, 0] for values in label_arrays(np.ravel(labels), np.ravel(scores)))
    known = ~np.isnan(truth)
    truth, ranks = truth[known], ranks[known]
    order = np.argsort(-ranks, kind="stable")
    ordered = ranks[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)])
    true_positive = np.concatenate([[0], np.cumsum(truth[order])[ends]])
    false_positive = np.concatenate([[0], ends + 1]) - true_positive
    return true_positive, false_positive, np.concatenate([[np.inf], ordered[ends]])


# ----------------------------------------------------------------------------------------------------------------------
# Decisions
# ----------------------------------------------------------------------------------------------------------------------


def confusion_counts(labels: np.ndarray, positive: np.ndarray) -> dict[str, np.ndarray]:
    """
    Return the counts of each label's decisions.

    Args:
        labels (`np.ndarray` (n, L) or (n,)): 1, 0, or NaN where unknown.
        positive (`np.ndarray` of the same shape): True or False; NaN where there is no decision because there is no
            threshold. A recording counts for a label where both are known.

    Returns:
        `"true_positive"`, `"false_positive"`, `"false_negative"`, `"true_negative"`, each (L,) int64.

    Raises:
        `MetricInputError`: shapes that differ, labels other than 0, 1 and NaN, scores in place of decisions.
    """
    return {kind: mask.sum(axis=0) for kind, mask in confusion_masks(labels, positive).items()}


def confusion_masks(labels: np.ndarray, positive: np.ndarray) -> dict[str, np.ndarray]:
    """Return which recordings [`confusion_counts`] counts, each (n, L) bool."""
    labels, positive = decision_arrays(labels, positive)
    return {
        "true_positive": (labels == 1) & (positive == 1),
        "false_positive": (labels == 0) & (positive == 1),
        "false_negative": (labels == 1) & (positive == 0),
        "true_negative": (labels == 0) & (positive == 0),
    }


def rates(
    true_positive: np.ndarray, false_positive: np.ndarray, false_negative: np.ndarray, true_negative: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the four rates of counts of any one shape; NaN where the denominator is 0."""
    return {
        "sensitivity": ratio(true_positive, true_positive + false_negative),
        "specificity": ratio(true_negative, true_negative + false_positive),
        "ppv": ratio(true_positive, true_positive + false_positive),
        "f1": ratio(2 * true_positive, 2 * true_positive + false_positive + false_negative),
    }


def sensitivity(labels: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return (L,): the share of positives that were flagged; NaN without positives. As [`confusion_counts`]."""
    return rates(**confusion_counts(labels, positive))["sensitivity"]


def specificity(labels: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return (L,): the share of negatives that were not flagged; NaN without negatives. As [`confusion_counts`]."""
    return rates(**confusion_counts(labels, positive))["specificity"]


def ppv(labels: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """
    Return (L,): the positive predictive value (precision), the share of flagged recordings that are positive.

    NaN where nothing was flagged. Arguments and errors as [`confusion_counts`].
    """
    return rates(**confusion_counts(labels, positive))["ppv"]


def f1(labels: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """
    Return (L,): the harmonic mean of sensitivity and positive predictive value.

    0 where all positives were missed, NaN where nothing is positive or flagged. Arguments and errors as
    [`confusion_counts`].
    """
    return rates(**confusion_counts(labels, positive))["f1"]


# ----------------------------------------------------------------------------------------------------------------------
# Probabilities
# ----------------------------------------------------------------------------------------------------------------------


def brier(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """
    Return the Brier score of each label, the mean squared difference of score and label.

    0 is best; a constant score that equals the prevalence f has f * (1 - f).

    Args:
        labels (`np.ndarray` (n, L) or (n,)): 1, 0, or NaN where unknown; a label's unknown recordings are excluded.
        scores (`np.ndarray` of the same shape): Within 0 and 1.

    Returns:
        (L,) float64; NaN where no label is known.

    Raises:
        `MetricInputError`: shapes that differ, labels other than 0, 1 and NaN, scores outside 0 and 1.
    """
    squared, known = squared_differences(labels, scores)
    return ratio(squared.sum(axis=0), known.sum(axis=0))


def squared_differences(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each recording's squared difference (n, L), 0 where unknown, and whether its label is known."""
    labels, scores = _probability_arrays(labels, scores)
    known = ~np.isnan(labels)
    return np.where(known, (scores - labels) ** 2, 0.0), known


def calibration_error(labels: np.ndarray, scores: np.ndarray, bins: int = 10) -> np.ndarray:
    """
    Return the expected calibration error of each label.

    It is the mean over the recordings of the distance between the mean score and the share of positives of the
    recording's bin ([`reliability`]). A perfect model has more than 0 too, the more the fewer recordings a bin has.
    Arguments, returns and errors as [`brier`].
    """
    labels, scores = _probability_arrays(labels, scores)
    errors = np.full(labels.shape[1], np.nan)
    for column, (label, score) in enumerate(zip(labels.T, scores.T, strict=True)):
        counts, mean_scores, positives = reliability(label, score, bins)
        if len(counts):
            errors[column] = np.average(np.abs(mean_scores - positives), weights=counts)
    return errors


def reliability(labels: np.ndarray, scores: np.ndarray, bins: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Return one label's known recordings in bins of about equally many, by rising score.

    Recordings of equal scores share a bin. (Bins of equal width would put nearly all recordings of a rare label into
    the first.)

    Args:
        labels, scores (`np.ndarray` (n,)): As in [`brier`].
        bins (`int`): The most bins; there are fewer where scores are equal or recordings few.

    Returns:
        Counts (int64), mean scores and shares of positives, each (bins,).
    """
    if bins < 1:
        raise MetricInputError(f"bins must be at least 1, found: {bins}")
    labels, scores = (values[:, 0] for values in _probability_arrays(np.ravel(labels), np.ravel(scores)))
    known = ~np.isnan(labels)
    order = np.argsort(scores[known], kind="stable")
    labels, scores = labels[known][order], scores[known][order]
    if not len(scores):
        return np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0)
    # A bin begins at the first recording of the score at an even cut.
    cuts = np.arange(bins) * len(scores) // bins
    starts = np.unique(np.searchsorted(scores, scores[cuts]))
    counts = np.diff(np.append(starts, len(scores)))
    return counts, np.add.reduceat(scores, starts) / counts, np.add.reduceat(labels, starts) / counts


def _probability_arrays(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = label_arrays(labels, scores)
    if ((scores < 0) | (scores > 1)).any():
        outside = scores[(scores < 0) | (scores > 1)][0]
        raise MetricInputError(f"scores must be within 0 and 1, found: {outside}; give sigmoids, not logits")
    return labels, scores


# ----------------------------------------------------------------------------------------------------------------------
# Regression
# ----------------------------------------------------------------------------------------------------------------------


def mean_absolute_error(targets: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """
    Return the mean absolute error of each target.

    Args:
        targets (`np.ndarray` (n, L) or (n,)): NaN where unknown; a target's unknown recordings are excluded.
        predicted (`np.ndarray` of the same shape)

    Returns:
        (L,) float64, in the target's unit; NaN where no target is known.

    Raises:
        `MetricInputError`: shapes that differ, values that are not finite.
    """
    return mean_absolute_error_of(_sums(targets, predicted))


def r_squared(targets: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """
    Return the coefficient of determination of each target, as scikit-learn's `r2_score`.

    It is 1 minus the squared error as a share of the squared deviation from the mean; NaN where fewer than two values
    are known or all are equal. Arguments and errors as [`mean_absolute_error`].
    """
    return r_squared_of(_sums(targets, predicted))


def error_moments(targets: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Return what each recording adds to these metrics, (n, L) each; 0 where the target is unknown."""
    targets, predicted = target_arrays(targets, predicted)
    known = ~np.isnan(targets)
    errors = np.where(known, targets - predicted, 0.0)
    # Relative to the mean of the known targets, so that sums of squares keep their digits in any unit.
    center = ratio(np.where(known, targets, 0.0).sum(axis=0), known.sum(axis=0))
    deviations = np.where(known, targets - center, 0.0)
    return {
        "known": known.astype(np.float64),
        "error": errors,
        "absolute": np.abs(errors),
        "squared": errors**2,
        "deviation": deviations,
        "squared_deviation": deviations**2,
    }


def mean_absolute_error_of(sums: dict[str, np.ndarray]) -> np.ndarray:
    """Return the mean absolute error of summed [`error_moments`], of any one shape."""
    return ratio(sums["absolute"], sums["known"])


def r_squared_of(sums: dict[str, np.ndarray]) -> np.ndarray:
    """Return R2 of summed [`error_moments`], of any one shape."""
    spread = sums["squared_deviation"] - ratio(sums["deviation"] ** 2, sums["known"])
    # Rounding leaves a constant target a spread that is not quite 0.
    constant = ~(spread > 1e-12 * sums["squared_deviation"])
    return np.where(constant, np.nan, 1.0 - ratio(sums["squared"], np.where(constant, 0.0, spread)))


def _sums(targets: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values.sum(axis=0) for name, values in error_moments(targets, predicted).items()}
