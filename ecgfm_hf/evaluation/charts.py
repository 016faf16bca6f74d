"""
Charts of the report: what they are drawn from, and the drawing as inline SVG.

The page's style colours them, so that they follow light, dark and print.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from ..utils.redaction import Cell, Curve, ReliabilityBin
from .formatting import text
from .metrics import precision_recall_points, roc_points

_STEPS = np.linspace(0.0, 1.0, 101)
_SCORE_BINS, _RELIABILITY_BINS, _DENSITY_BINS = 20, 10, 12


def roc_curve(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> Curve:
    """Return pairs (1 - specificity, sensitivity) at 101 equal steps of the first; labels (n,) are of both classes."""
    false_positive, sensitivity, thresholds = roc_points(labels, scores)
    # Of points above one another, np.interp takes the last, the highest, as it is met; between points it is exact.
    heights = np.interp(_STEPS, false_positive, sensitivity)
    before = np.searchsorted(false_positive, _STEPS, side="right") - 1
    after = before + (false_positive[before] < _STEPS)
    fewest = _fewest_patients(labels, scores, patients, thresholds)
    return Curve([[0.0, 0.0], *_pairs(_STEPS, heights)], fewest[[0, *before]], fewest[[0, *after]])


def precision_recall_curve(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> Curve:
    """Return pairs (recall, precision) at 100 equal steps of recall, with the precision where each is first reached."""
    recall, precision, thresholds = precision_recall_points(labels, scores)
    reached = np.minimum(np.searchsorted(recall, _STEPS[1:] - 1e-9), len(precision) - 1)
    fewest = _fewest_patients(labels, scores, patients, thresholds)[reached]
    return Curve(_pairs(_STEPS[1:], precision[reached]), fewest, fewest)


def _fewest_patients(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
    """Return for each threshold the patients of its smallest count of decisions; zeros do not count."""
    counts = []
    for side in (1, 0):
        numbers, of = np.unique(patients[labels == side], return_inverse=True)
        highest, lowest = np.full(len(numbers), -np.inf), np.full(len(numbers), np.inf)
        np.maximum.at(highest, of, scores[labels == side])
        np.minimum.at(lowest, of, scores[labels == side])
        counts.append(len(numbers) - np.searchsorted(np.sort(highest), thresholds))
        counts.append(np.searchsorted(np.sort(lowest), thresholds))
    return np.min([np.where(count == 0, len(scores), count) for count in counts], axis=0)


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


# ----------------------------------------------------------------------------------------------------------------------
# Drawing
# ----------------------------------------------------------------------------------------------------------------------

_SIZE = 240.0
_LEFT, _BOTTOM, _TOP, _RIGHT = 38.0, 34.0, 8.0, 10.0
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def roc_figure(curve: Sequence[Sequence[float | None]], name: str) -> Markup:
    """Draw sensitivity over 1 − specificity; `curve` is pairs (1 − specificity, sensitivity or None if withheld)."""
    diagonal = _path([(0.0, 0.0), (1.0, 1.0)], "guide")
    lines = "".join(_path(run, "line") for run in _runs(curve))
    return _square(diagonal + lines, f"ROC curve of {name}", "1 − specificity", "sensitivity")


def precision_recall_figure(curve: Sequence[Sequence[float | None]], prevalence: float, name: str) -> Markup:
    """
    Draw PPV over sensitivity in steps; `curve` is pairs (recall, precision or None if withheld).

    Dashed: the prevalence, or chance.
    """
    lines = ""
    for run in _runs(curve):
        steps = [(max(run[0][0] - _STEPS[1], 0.0), run[0][1])]
        for recall, precision in run:
            steps += [(steps[-1][0], precision), (recall, precision)]
        lines += _path(steps, "line")
    chance = _path([(0.0, prevalence), (1.0, prevalence)], "guide")
    return _square(chance + lines, f"Precision-recall curve of {name}", "sensitivity (recall)", "PPV")


def reliability_figure(
    bins: Sequence[Sequence[float]], histogram: Sequence[float | None], name: str, calibrated: bool
) -> Markup:
    """
    Draw the share of positives over the score, above a histogram of the scores.

    Args:
        bins: Triples (mean score, share of positives, share of recordings in the bin).
        histogram: Share of recordings in equal bins of the score from 0 to 1; `None` where that is withheld.
        name: The label.
        calibrated: Whether the score is a probability.
    """
    inner = _path([(0.0, 0.0), (1.0, 1.0)], "guide")
    inner += _path([point[:2] for point in bins], "line")
    inner += "".join(f'<circle class="dot" cx="{_x(p[0]):.0f}" cy="{_y(p[1]):.0f}" r="3.2"/>' for p in bins)
    tallest = max((share for share in histogram if share is not None), default=0.0) or 1.0
    width = (_x(1.0) - _x(0.0)) / max(len(histogram), 1)
    bars = ""
    for place, share in enumerate(histogram):
        left = _x(0.0) + place * width
        if share is None:
            where = f'x="{left + 1:.1f}" y="{_y(0) - 6:.0f}" width="{width - 2:.1f}"'
            bars += f'<rect class="withheld" {where} height="5.5"/>'
        elif share > 0:
            high = max(1, round(42 * share / tallest))
            where = f'x="{left + 0.5:.1f}" y="{_y(0) - high:.0f}" width="{width - 1:.1f}"'
            bars += f'<rect class="bar" {where} height="{high}"/>'
    kind = "probability" if calibrated else "score (uncalibrated)"
    return _square(bars + inner, f"Reliability of {name}", kind, "observed share")


def forest_figure(
    rows: Sequence[tuple[str, float, float | None, float | None]], reference: float | None, caption: str, axis: str
) -> Markup:
    """Draw values with intervals, one per row `(name, value, low, high)`; dashed: `reference`, the value of all."""
    line, left, width = 24.0, 150.0, 480.0
    ends = [v for _, *values in rows for v in values if v is not None] + ([] if reference is None else [reference])
    low, high, ticks = nice_scale(min(ends), max(ends))
    right = width - 20.0
    height = _TOP + line * len(rows) + _BOTTOM + 4
    foot = _TOP + line * len(rows)

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    parts = []
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{place(tick):.1f}" x2="{place(tick):.1f}" y1="{_TOP}" y2="{foot}"/>')
        parts.append(f'<text class="tick" text-anchor="middle" x="{place(tick):.1f}" y="{foot + 14}">{tick:g}</text>')
    if reference is not None:
        at = place(reference)
        parts.append(f'<line class="guide" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{foot}"/>')
    for number, (name, value, start, end) in enumerate(rows):
        y = _TOP + line * (number + 0.5)
        shown = name if len(name) <= 22 else f"{name[:21]}…"
        parts.append(f'<text text-anchor="end" x="{left - 12}" y="{y + 4}">{text(shown)}</text>')
        if start is not None and end is not None:
            parts.append(f'<line class="whisker" x1="{place(start):.1f}" x2="{place(end):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<rect class="dot" x="{place(value) - 4:.1f}" y="{y - 4}" width="8" height="8"/>')
    parts.append(f'<text text-anchor="middle" x="{(left + right) / 2}" y="{height - 6}">{text(axis)}</text>')
    return _svg("".join(parts), width, height, caption)


def density_figure(
    shares: Sequence[Sequence[float | None]], low: float, high: float, name: str, x_label: str, y_label: str
) -> Markup:
    """
    Draw a 2-D histogram: `shares[row][column]` is the share of recordings with y in bin `row` and x in bin `column`.

    Both go from `low` to `high`; a share is `None` where withheld. Dashed: where both agree.
    """
    most = max((share for row in shares for share in row if share is not None), default=0.0) or 1.0
    size = (_x(1.0) - _x(0.0)) / max(len(shares), 1)
    cells = ""
    for row, line in enumerate(shares):
        for column, share in enumerate(line):
            where = f'x="{_x(0) + column * size:.1f}" y="{_y(0) - (row + 1) * size:.1f}"'
            if share is None:
                inside = f'x="{_x(0) + column * size + 2:.1f}" y="{_y(0) - (row + 1) * size + 2:.1f}"'
                cells += f'<rect class="withheld" {inside} width="{size - 4:.1f}" height="{size - 4:.1f}"/>'
            elif share > 0:
                shade = round(0.15 + 0.85 * math.sqrt(share / most), 2)
                cells += f'<rect class="cell" {where} width="{size:.1f}" height="{size:.1f}" opacity="{shade}"/>'
    inner = cells + _path([(0.0, 0.0), (1.0, 1.0)], "guide")
    _, _, ticks = nice_scale(low, high)
    placed = [((tick - low) / (high - low), f"{tick:g}") for tick in ticks if low <= tick <= high]
    return _square(inner, f"{y_label} and {x_label} of {name}", x_label, y_label, placed)


def nice_scale(low: float, high: float) -> tuple[float, float, list[float]]:
    """Return ends and ticks at round numbers around `low` and `high`."""
    if high <= low:
        low, high = low - 0.05 * max(abs(low), 1.0), high + 0.05 * max(abs(high), 1.0)
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (step * factor) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(step * k, 10) for k in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def _x(share: float) -> float:
    return _LEFT + share * (_SIZE - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return _SIZE - _BOTTOM - share * (_SIZE - _BOTTOM - _TOP)


def _runs(curve: Sequence[Sequence[float | None]]) -> list[list[tuple[float, float]]]:
    """Return the parts of a curve between its withheld points."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in curve:
        if x is None or y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def _path(points: Sequence[Sequence[float]], kind: str) -> str:
    # Whole pixels: no reader can see more.
    shown = dict.fromkeys(f"{_x(x):.0f},{_y(y):.0f}" for x, y in points)
    return f'<polyline class="{kind}" points="{" ".join(shown)}"/>' if len(shown) > 1 else ""


def _square(
    inner: str, title: str, x_label: str, y_label: str, ticks: Sequence[tuple[float, str]] | None = None
) -> Markup:
    """Draw a square plot from 0 to 1 on both axes; `ticks` are pairs (position, text)."""
    parts = []
    for place, shown in [(tick, f"{tick:g}") for tick in _TICKS] if ticks is None else ticks:
        x, y = _x(place), _y(place)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_y(0):.1f}" y2="{_y(1):.1f}"/>')
        parts.append(f'<line class="grid" x1="{_x(0):.1f}" x2="{_x(1):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{_y(0) + 12:.1f}">{shown}</text>')
        parts.append(f'<text class="tick" text-anchor="end" x="{_x(0) - 4:.1f}" y="{y + 3:.1f}">{shown}</text>')
    width, height = _x(1) - _x(0), _y(0) - _y(1)
    parts.append(f'<rect class="frame" x="{_x(0)}" y="{_y(1)}" width="{width}" height="{height}"/>')
    middle_x, middle_y = _x(0.5), _y(0.5)
    parts.append(f'<text text-anchor="middle" x="{middle_x:.1f}" y="{_SIZE - 6:.1f}">{text(x_label)}</text>')
    turned = f'transform="translate(9 {middle_y:.1f}) rotate(-90)"'
    parts.append(f'<text text-anchor="middle" {turned}>{text(y_label)}</text>')
    return _svg("".join(parts) + inner, _SIZE, _SIZE, title)


def _svg(inner: str, width: float, height: float, title: str) -> Markup:
    """Return the chart as markup; whoever makes `inner` escapes what is text in it."""
    return Markup(
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{text(title)}"><title>{text(title)}</title>'
        f"{inner}</svg>\n"
    )
