"""
The metrics of many weightings of the same recordings at once, which is what a bootstrap asks for.

A resample need not be copied: it is how often each recording was drawn. A `Statistics` takes such counts, integers of
shape (recordings, b), and gives each of its metrics for each of the b weightings, (L, b). With every recording once
that is the metric itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .challenge import credits, scaled_credit
from .decisions import confusion, rates
from .metric_input import MetricInputError, label_arrays, ratio
from .probabilities import squared_differences
from .ranking import RankedLabel
from .regression import error_moments, mean_absolute_error_of, r_squared_of

Values = dict[str, np.ndarray]
RANKING = ("auroc", "average_precision", "sensitivity_at_specificity")


@dataclass(frozen=True)
class Statistics:
    """
    Args:
        compute (callable): Counts (n, b) to values (L, b) by metric, NaN where undefined.
        scales (`dict[str, str]`): Of each metric, the scale on which its errors are about normal: `"logit"` of shares,
            `"log"` of amounts, `"log_one_minus"` of what is at most 1, `"plain"`.
        needed (`dict[str, tuple]`): Of each metric, the kinds of recordings (n, L) bool that it is made of, such as
            positives and negatives. The kind with the fewest patients limits what is known of it.
    """

    compute: Callable[[np.ndarray], Values]
    scales: Mapping[str, str]
    needed: Mapping[str, tuple[np.ndarray, ...]]

    def __len__(self) -> int:
        return len(next(iter(self.needed.values()))[0])


def ranking_statistics(
    labels: np.ndarray,
    scores: np.ndarray,
    metrics: tuple[str, ...] = ("auroc", "average_precision"),
    specificity: float = 0.95,
) -> Statistics:
    """Any of `RANKING`; arguments as [`auroc`] and [`sensitivity_at_specificity`]."""
    if unknown := sorted(set(metrics) - set(RANKING)):
        raise MetricInputError(f"ranking metrics are {', '.join(RANKING)}, found: {', '.join(unknown)}")
    labels, scores = label_arrays(labels, scores)
    ranked = [RankedLabel(label, score) for label, score in zip(labels.T, scores.T, strict=True)]

    def compute(weights: np.ndarray) -> Values:
        values = {metric: np.empty((len(ranked), weights.shape[1])) for metric in metrics}
        for place, label in enumerate(ranked):
            counts = label.counts(weights)
            for metric, rows in values.items():
                if metric == "auroc":
                    rows[place] = counts.auroc()
                elif metric == "average_precision":
                    rows[place] = counts.average_precision()
                else:
                    rows[place] = counts.sensitivity_at(specificity)
        return values

    both = (labels == 1, labels == 0)
    return Statistics(compute, dict.fromkeys(metrics, "logit"), dict.fromkeys(metrics, both))


def decision_statistics(labels: np.ndarray, positive: np.ndarray) -> Statistics:
    """`sensitivity`, `specificity`, `ppv` and `f1`; arguments as [`confusion_counts`]."""
    kinds = confusion(labels, positive)
    columns = _Columns(kinds)
    found, flagged = kinds["true_positive"], kinds["true_positive"] | kinds["false_positive"]
    needed = {
        "sensitivity": (found | kinds["false_negative"],),
        "specificity": (kinds["true_negative"] | kinds["false_positive"],),
        "ppv": (flagged,),
        "f1": (flagged | kinds["false_negative"],),
    }
    return Statistics(lambda weights: rates(**columns.sums(weights)), dict.fromkeys(needed, "logit"), needed)


def probability_statistics(labels: np.ndarray, scores: np.ndarray) -> Statistics:
    """`brier`; arguments as [`brier`]. (The calibration error has no interval: resampling inflates it.)"""
    squared, known = squared_differences(labels, scores)
    columns = _Columns({"squared": squared, "known": known})

    def compute(weights: np.ndarray) -> Values:
        sums = columns.sums(weights)
        return {"brier": ratio(sums["squared"], sums["known"])}

    return Statistics(compute, {"brier": "logit"}, {"brier": (known,)})


def regression_statistics(targets: np.ndarray, predicted: np.ndarray) -> Statistics:
    """`mean_absolute_error`, `r_squared` and `bias` (the mean of predicted - true); arguments as [`r_squared`]."""
    moments = error_moments(targets, predicted)
    columns = _Columns(moments)

    def compute(weights: np.ndarray) -> Values:
        sums = columns.sums(weights)
        return {
            "mean_absolute_error": mean_absolute_error_of(sums),
            "r_squared": r_squared_of(sums),
            "bias": ratio(-sums["error"], sums["known"]),
        }

    scales = {"mean_absolute_error": "log", "r_squared": "log_one_minus", "bias": "plain"}
    return Statistics(compute, scales, dict.fromkeys(scales, (moments["known"] == 1,)))


def challenge_statistics(y_true: np.ndarray, y_pred: np.ndarray) -> Statistics:
    """`challenge_score`, of one row; arguments as [`challenge_score`]."""
    columns = _Columns({"credits": credits(y_true, y_pred)})
    scored = np.asarray(y_true).astype(bool).any(axis=1, keepdims=True)

    def compute(weights: np.ndarray) -> Values:
        return {"challenge_score": scaled_credit(columns.sums(weights)["credits"])[None]}

    return Statistics(compute, {"challenge_score": "plain"}, {"challenge_score": (scored,)})


def accuracy_statistics(labels: np.ndarray, scores: np.ndarray) -> Statistics:
    """
    `accuracy` of a single label, of one row: the share of recordings whose class has the highest score (of equal ones
    the first). Labels (n, classes) with 1 in the column of the class, rows of NaN where unknown.
    """
    labels, scores = label_arrays(labels, scores)
    known = ~np.isnan(labels).any(axis=1, keepdims=True)
    right = known[:, 0] & (np.nan_to_num(labels).argmax(axis=1) == scores.argmax(axis=1))
    columns = _Columns({"right": right[:, None], "known": known})

    def compute(weights: np.ndarray) -> Values:
        sums = columns.sums(weights)
        return {"accuracy": ratio(sums["right"], sums["known"])}

    return Statistics(compute, {"accuracy": "logit"}, {"accuracy": (known,)})


class _Columns:
    """Sums over weighted recordings, of all arrays (n, columns) in one product."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._names = list(arrays)
        self._ends = np.cumsum([array.shape[1] for array in arrays.values()])
        self._table = np.ascontiguousarray(np.concatenate(list(arrays.values()), axis=1).T, dtype=np.float64)

    def sums(self, weights: np.ndarray) -> Values:
        """(columns, b) each."""
        sums = np.split(self._table @ weights.astype(np.float64), self._ends[:-1])
        return dict(zip(self._names, sums, strict=True))
