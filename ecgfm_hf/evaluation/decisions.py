"""Decisions beside the truth: sensitivity, specificity, positive predictive value, F1."""

import numpy as np

from .metric_input import decision_arrays, ratio


def confusion_counts(labels: np.ndarray, positive: np.ndarray) -> dict[str, np.ndarray]:
    """
    Counts of each label's decisions.

    Args:
        labels (`np.ndarray` (n, L) or (n,)): 1, 0, or NaN where unknown.
        positive (`np.ndarray` of the same shape): True or False; NaN where there was no decision, for want of a
            threshold. A recording counts for a label where both are known.

    Returns:
        `"true_positive"`, `"false_positive"`, `"false_negative"`, `"true_negative"`, each (L,) int64.

    Raises:
        `MetricInputError`: shapes that differ, labels other than 0, 1 and NaN, scores in place of decisions.
    """
    return {name: here.sum(axis=0) for name, here in confusion(labels, positive).items()}


def confusion(labels: np.ndarray, positive: np.ndarray) -> dict[str, np.ndarray]:
    """As [`confusion_counts`], before counting: which recordings are of each kind, (n, L) bool."""
    labels, positive = decision_arrays(labels, positive)
    return {
        "true_positive": (labels == 1) & (positive == 1),
        "false_positive": (labels == 0) & (positive == 1),
        "false_negative": (labels == 1) & (positive == 0),
        "true_negative": (labels == 0) & (positive == 0),
    }


def rates(true_positive, false_positive, false_negative, true_negative) -> dict[str, np.ndarray]:
    """The four rates of counts of any one shape; NaN where one is of nothing."""
    return {
        "sensitivity": ratio(true_positive, true_positive + false_negative),
        "specificity": ratio(true_negative, true_negative + false_positive),
        "ppv": ratio(true_positive, true_positive + false_positive),
        "f1": ratio(2 * true_positive, 2 * true_positive + false_positive + false_negative),
    }


def sensitivity(labels: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(L,): the share of positives that were found; NaN without positives. Arguments as [`confusion_counts`]."""
    return rates(**confusion_counts(labels, positive))["sensitivity"]


def specificity(labels: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(L,): the share of negatives that were not flagged; NaN without negatives. Arguments as [`confusion_counts`]."""
    return rates(**confusion_counts(labels, positive))["specificity"]


def ppv(labels: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(L,): positive predictive value (precision), the share of flagged that are positive; NaN where nothing was
    flagged. Arguments as [`confusion_counts`]."""
    return rates(**confusion_counts(labels, positive))["ppv"]


def f1(labels: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(L,): the harmonic mean of sensitivity and positive predictive value; 0 where positives were all missed, NaN
    where there was neither a positive nor a flag. Arguments as [`confusion_counts`]."""
    return rates(**confusion_counts(labels, positive))["f1"]
