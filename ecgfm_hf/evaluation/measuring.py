"""Metrics with their intervals, as plain figures: `{"value", "low", "high"}`, None where there is none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..inference.prediction_table import Predictions
from .intervals import Intervals, bootstrap_difference, bootstrap_intervals, patient_groups
from .probabilities import calibration_error
from .weighted import (
    RANKING,
    Statistics,
    accuracy_statistics,
    challenge_statistics,
    decision_statistics,
    probability_statistics,
    ranking_statistics,
    regression_statistics,
)

OF_GROUPS, REGRESSION = ("auroc", "average_precision"), ("mean_absolute_error", "r_squared", "bias")
# Of scores as probabilities. The calibration error has no interval: resampling inflates it.
PROBABILITY = ("brier", "calibration_error")
RATES = ("sensitivity", "specificity", "ppv", "f1")
# At which `sensitivity_at_specificity` is.
SPECIFICITY = 0.95

Figure = dict[str, Any]


@dataclass
class Measured:
    """
    Args:
        per_label: By metric a figure a label, in the order of the labels that were measured.
        macro: By metric the figure of the mean over the labels that have a value, with `"labels"`, how many have, and
            `"left_out"`, how many have not.
    """

    per_label: dict[str, list[Figure]]
    macro: dict[str, Figure]


class Measurer:
    """
    Measures predictions, or some of their recordings and labels.

    Args:
        predictions ([`Predictions`])
        resamples (`int`), seed (`int`): Of the bootstrap.

    Attributes:
        groups (`np.ndarray` (n,) int): The patient of each recording, as a number; where unknown, one of its own.
    """

    def __init__(self, predictions: Predictions, resamples: int, seed: int):
        self.predictions = predictions
        self.groups = patient_groups(predictions.patient_ids).numbers
        self._drawing = {"resamples": resamples, "seed": seed}

    def measure(self, rows: np.ndarray | None = None, labels: Sequence[int] | None = None) -> Measured:
        """The figures of all recordings, or of those of a mask (n,); of all labels, or of those in these places."""
        subset = _Subset(self.predictions, rows, labels)
        measured = _plain(bootstrap_intervals(subset.statistics(), subset.patients, **self._drawing))
        if self.predictions.problem_type != "regression":
            values = calibration_error(subset.labels, subset.scores)
            measured.per_label["calibration_error"] = [_figure(value, np.nan, np.nan) for value in values]
        return measured

    def rates(self, decided: np.ndarray, labels: Sequence[int] | None = None) -> Measured:
        """Rates of all labels, or of those in these places; `decided` (n, L) is 1, 0, or NaN without a threshold."""
        places = slice(None) if labels is None else list(labels)
        statistics = decision_statistics(self.predictions.labels[:, places], decided[:, places])
        return _plain(bootstrap_intervals(statistics, self.predictions.patient_ids, **self._drawing))

    def challenge(self, decided: np.ndarray, columns: np.ndarray) -> tuple[Figure, int]:
        """The challenge's score, and of how many recordings a scored class is unknown: these are left out."""
        true, given = self.predictions.labels[:, columns], decided[:, columns] == 1
        known = ~np.isnan(true).any(axis=1)
        # A recording without a class and without a decision adds nothing: that leaves it out.
        statistics = challenge_statistics((true == 1) & known[:, None], given & known[:, None])
        found = _plain(bootstrap_intervals(statistics, self.predictions.patient_ids, **self._drawing))
        return found.per_label["challenge_score"][0], int((~known).sum())

    def accuracy(self) -> Figure:
        """Of a single label."""
        statistics = accuracy_statistics(self.predictions.labels, self.predictions.scores)
        found = _plain(bootstrap_intervals(statistics, self.predictions.patient_ids, **self._drawing))
        return found.per_label["accuracy"][0]

    def compare(self, other: Predictions) -> Measured:
        """Figures `{"first", "second", "difference"}`, the difference first less second; rows and labels the same."""
        one, two = _Subset(self.predictions), _Subset(other)
        difference = _plain(
            bootstrap_difference(two.statistics(), one.statistics(), self.predictions.patient_ids, **self._drawing)
        )
        first, second = one.values(), two.values()
        per_label = {
            metric: [
                {"first": a, "second": b, "difference": figure}
                for a, b, figure in zip(_values(first[metric]), _values(second[metric]), figures, strict=True)
            ]
            for metric, figures in difference.per_label.items()
        }
        macro = {
            metric: {"first": _mean(first[metric]), "second": _mean(second[metric]), "difference": figure}
            for metric, figure in difference.macro.items()
        }
        return Measured(per_label, macro)


class _Subset:
    """Some recordings and labels of predictions."""

    def __init__(self, predictions: Predictions, rows: np.ndarray | None = None, labels: Sequence[int] | None = None):
        places = np.arange(len(predictions)) if rows is None else np.flatnonzero(rows)
        columns = np.arange(len(predictions.label_names)) if labels is None else np.asarray(labels, dtype=np.int64)
        self.labels = predictions.labels[np.ix_(places, columns)]
        self.scores = predictions.scores[np.ix_(places, columns)]
        self.patients = [predictions.patient_ids[place] for place in places]
        self._regression = predictions.problem_type == "regression"

    def statistics(self) -> list[Statistics]:
        if self._regression:
            return [regression_statistics(self.labels, self.scores)]
        return [
            ranking_statistics(self.labels, self.scores, RANKING, SPECIFICITY),
            probability_statistics(self.labels, self.scores),
        ]

    def values(self) -> dict[str, np.ndarray]:
        once = np.ones((len(self.labels), 1), dtype=np.int64)
        return {name: values[:, 0] for part in self.statistics() for name, values in part.compute(once).items()}


def _plain(intervals: Intervals) -> Measured:
    per_label, macro = {}, {}
    for metric, found in intervals.metrics.items():
        per_label[metric] = [_figure(*ends) for ends in zip(found.values, found.low, found.high, strict=True)]
        whole = found.macro
        counts = {"labels": whole.labels, "left_out": whole.labels_left_out}
        macro[metric] = _figure(whole.value, whole.low, whole.high) | counts
    return Measured(per_label, macro)


def _figure(value: float, low: float, high: float) -> Figure:
    return dict(zip(("value", "low", "high"), _values([value, low, high]), strict=True))


def _values(numbers: Sequence[float]) -> list[float | None]:
    return [float(number) if np.isfinite(number) else None for number in numbers]


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
