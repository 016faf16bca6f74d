"""What the report's charts are drawn from: curves at fixed steps, and recordings in bins."""

from typing import Any

import numpy as np

from ..utils.redaction import Cell, ReliabilityBin
from .ranking import precision_recall_points, roc_points

_STEPS = np.linspace(0.0, 1.0, 101)
_SCORE_BINS, _RELIABILITY_BINS, _DENSITY_BINS = 20, 10, 12


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> list[list[float]]:
    """Return pairs (1 - specificity, sensitivity) at 101 equal steps of the first; labels (n,) are of both classes."""
    false_positive, sensitivity, _ = roc_points(labels, scores)
    # Of points above one another, np.interp takes the last, the highest, as it is met; between points it is exact.
    heights = np.interp(_STEPS, false_positive, sensitivity)
    return [[0.0, 0.0], *_pairs(_STEPS, heights)]


def precision_recall_curve(labels: np.ndarray, scores: np.ndarray) -> list[list[float]]:
    """Return pairs (recall, precision) at 100 equal steps of recall, with the precision where each is first reached."""
    recall, precision, _ = precision_recall_points(labels, scores)
    reached = np.searchsorted(recall, _STEPS[1:] - 1e-9)
    return _pairs(_STEPS[1:], precision[np.minimum(reached, len(precision) - 1)])


def reliability_bins(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> list[ReliabilityBin]:
    """Return ten bins of equally many recordings by score, fewer where scores are equal."""
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, _RELIABILITY_BINS + 1)[1:-1]))
    number = np.searchsorted(edges, scores, side="right")
    return [
        ReliabilityBin(
            float(scores[rows].mean()), Cell(patients[rows & (labels == 1)]), Cell(patients[rows & (labels == 0)])
        )
        for rows in (number == index for index in range(len(edges) + 1))
        if rows.any()
    ]


def score_bins(scores: np.ndarray, patients: np.ndarray) -> list[Cell]:
    """Return the recordings in each of 20 equal bins of the score from 0 to 1."""
    number = np.minimum((scores * _SCORE_BINS).astype(np.int64), _SCORE_BINS - 1)
    return [Cell(patients[number == index]) for index in range(_SCORE_BINS)]


def density(values: np.ndarray, predicted: np.ndarray, patients: np.ndarray) -> dict[str, Any]:
    """
    Return a 2-D histogram of a regression: `cells[row][column]` are the recordings with the predicted value in bin
    `row` and the true one in bin `column`, 12 bins each from `low` to `high`.
    """
    # Not from the least to the greatest value, which are single patients'.
    low, high = np.quantile(np.concatenate([values, predicted]), [0.01, 0.99])
    if high <= low:
        low, high = low - 1.0, high + 1.0
    low, high = float(f"{low:.2g}"), float(f"{high:.2g}")
    if high <= low:
        high = low + 1.0

    def bin_of(of: np.ndarray) -> np.ndarray:
        return np.clip(((of - low) / (high - low) * _DENSITY_BINS).astype(np.int64), 0, _DENSITY_BINS - 1)

    rows, columns = bin_of(predicted), bin_of(values)
    bins = range(_DENSITY_BINS)
    cells = [[Cell(patients[(rows == row) & (columns == column)]) for column in bins] for row in bins]
    return {"low": low, "high": high, "cells": cells}


def _pairs(x: np.ndarray, y: np.ndarray) -> list[list[float]]:
    return [[round(float(a), 3), round(float(b), 3)] for a, b in zip(x, y, strict=True)]
