"""What the report's figures are drawn from: curves at fixed steps, and bins that hold enough patients."""

from typing import Any

import numpy as np

from ..utils.redaction import SmallCells
from .ranking import precision_recall_points, roc_points

_STEPS = np.linspace(0.0, 1.0, 101)
_SCORE_BINS, _RELIABILITY_BINS, _DENSITY_BINS = 20, 10, 12


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> list[list[float]]:
    """Pairs (1 - specificity, sensitivity) at 101 equal steps of the first; labels (n,) known, of both classes."""
    false_positive, sensitivity, _ = roc_points(labels, scores)
    # Of points above one another, np.interp takes the last, the highest, as it is met; between points it is exact.
    heights = np.interp(_STEPS, false_positive, sensitivity)
    return [[0.0, 0.0], *_pairs(_STEPS, heights)]


def precision_recall_curve(labels: np.ndarray, scores: np.ndarray) -> list[list[float]]:
    """Pairs (recall, precision) at 100 equal steps of recall, each with the precision at which it is first reached."""
    recall, precision, _ = precision_recall_points(labels, scores)
    reached = np.searchsorted(recall, _STEPS[1:] - 1e-9)
    return _pairs(_STEPS[1:], precision[np.minimum(reached, len(precision) - 1)])


def reliability_bins(labels: np.ndarray, scores: np.ndarray, cells: SmallCells) -> list[list[float]]:
    """
    Triples (mean score, share of positives, share of recordings) in bins of the score.

    Bins begin as ten of equally many recordings. One with few patients that have the label, or few that do not, joins
    the neighbour with fewer recordings; few are above none and below the smallest cell.
    """
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, _RELIABILITY_BINS + 1)[1:-1]))
    number = np.searchsorted(edges, scores, side="right")
    bins = [number == place for place in range(len(edges) + 1)]
    bins = [rows for rows in bins if rows.any()]

    def few(rows: np.ndarray) -> bool:
        return any(0 < cells.patients(rows & (labels == value)) < cells.smallest for value in (0, 1))

    while len(bins) > 1 and any(few(rows) for rows in bins):
        place = next(p for p, rows in enumerate(bins) if few(rows))
        neighbours = [p for p in (place - 1, place + 1) if 0 <= p < len(bins)]
        other = min(neighbours, key=lambda p: bins[p].sum())
        first = min(place, other)
        bins[first : first + 2] = [bins[first] | bins[first + 1]]
    return [
        [round(float(value), 3) for value in (scores[rows].mean(), labels[rows].mean(), rows.mean())]
        for rows in bins
        if not few(rows)
    ]


def score_histogram(scores: np.ndarray, cells: SmallCells) -> list[float | None]:
    """Share of the recordings in each of 20 equal bins from 0 to 1; None where that is withheld."""
    number = np.minimum((scores * _SCORE_BINS).astype(np.int64), _SCORE_BINS - 1)
    return _shares(cells.counts([number == place for place in range(_SCORE_BINS)]), len(scores))


def density(values: np.ndarray, predicted: np.ndarray, cells: SmallCells) -> dict[str, Any]:
    """
    A 2-D histogram of a regression: `shares[row][column]` of the recordings with the predicted value in bin `row` and
    the true one in bin `column`, 12 bins each from `low` to `high`; None where that is withheld.
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

    place = bin_of(predicted) * _DENSITY_BINS + bin_of(values)
    shares = _shares(cells.counts([place == cell for cell in range(_DENSITY_BINS**2)]), len(values))
    rows = [shares[start : start + _DENSITY_BINS] for start in range(0, len(shares), _DENSITY_BINS)]
    return {"low": low, "high": high, "shares": rows}


def _pairs(x: np.ndarray, y: np.ndarray) -> list[list[float]]:
    return [[round(float(a), 3), round(float(b), 3)] for a, b in zip(x, y, strict=True)]


def _shares(counts: list[int | str], total: int) -> list[float | None]:
    return [None if isinstance(count, str) else round(count / total, 4) for count in counts]
