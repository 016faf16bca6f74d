"""What is told of decisions: counts and rates at thresholds, the challenge's score, the confusion of classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..inference.prediction_table import Predictions
from ..utils.redaction import SmallCells
from .decisions import confusion
from .measuring import RATES, Figure, Measurer


def bounded(values: np.ndarray | None) -> Figure:
    """What a figure can be, of what its counts can be; nothing for None."""
    if values is None:
        return {"value": None, "low": None, "high": None}
    return {"bounds": [round(float(values.min()), 4), round(float(values.max()), 4)]}


def label_decisions(
    labels: np.ndarray, decided: np.ndarray, threshold: float, exact: Mapping[str, Figure], cells: SmallCells
) -> dict[str, Any]:
    """
    Counts of one label's decisions, and rates; bounds for a rate that would give a small count away.

    Args:
        labels, decided (`np.ndarray` (n,))
        threshold (`float`)
        exact: By rate the figure with its interval.
        cells ([`SmallCells`])
    """
    kinds = confusion(labels, decided)
    told, ranges, sizes = {}, {}, {kind: int(rows.sum()) for kind, rows in kinds.items()}
    for pair in (("true_positive", "false_negative"), ("false_positive", "true_negative")):
        parts = cells.counts([kinds[kind][:, 0] for kind in pair])
        told |= dict(zip(pair, parts, strict=True))
        ranges[pair[0]] = cells.bounds(parts, [sizes[kind] for kind in pair])
    positives = sizes["true_positive"] + sizes["false_negative"]
    negatives = sizes["false_positive"] + sizes["true_negative"]
    true, false = ranges["true_positive"], ranges["false_positive"]
    ways = {
        "sensitivity": ([true], lambda t: t / positives),
        "specificity": ([false], lambda f: 1 - f / negatives),
        "ppv": ([true, false], lambda t, f: t / np.maximum(t + f, 1)),
        "f1": ([true, false], lambda t, f: 2 * t / (t + positives + f)),
    }
    figures = {}
    for rate, (needed, formula) in ways.items():
        if any(one is None for one in needed):
            figures[rate] = bounded(None)
        elif all(len(one) == 1 for one in needed):
            figures[rate] = exact[rate]
        else:
            figures[rate] = bounded(formula(*np.meshgrid(*(np.array(one, dtype=float) for one in needed))))
    return {"threshold": float(threshold), "counts": told, "metrics": figures}


def macro_rates(
    exact: Mapping[str, Sequence[Figure]], told: Sequence[Mapping[str, Figure]], whole: Mapping[str, Figure]
) -> dict[str, Figure]:
    """
    The means of rates over the labels that have decisions.

    Args:
        exact: By rate the figure of each of these labels.
        told: Of each label by rate what is told in its place: the same, bounds, or nothing.
        whole: By rate the figure of their mean.

    Returns:
        By rate that figure; where a label has bounds in place of a rate, bounds; nothing where one has nothing.
    """
    found = {}
    for rate in RATES:
        pairs = list(zip(exact[rate], (figures[rate] for figures in told), strict=True))
        if all(shown is own for own, shown in pairs):
            found[rate] = whole[rate]
        elif all(shown is own or "bounds" in shown for own, shown in pairs):
            ends = [shown.get("bounds", [own.get("value")] * 2) for own, shown in pairs]
            ends = np.array([pair for pair in ends if None not in pair], dtype=float)
            found[rate] = bounded(ends.mean(axis=0)) | {"labels": len(ends), "left_out": len(told) - len(ends)}
        else:
            found[rate] = bounded(None)
    return found


def accuracy(predictions: Predictions, measurer: Measurer, cells: SmallCells) -> Figure:
    """The share of recordings whose class has the highest score; bounds where it would give small counts away."""
    known, true, given = _classes(predictions)
    right = known & (true == given)
    kinds = [right, known & ~right]
    parts, sizes = cells.counts(kinds), [int(rows.sum()) for rows in kinds]
    possible = cells.bounds(parts, sizes)
    if possible is not None and len(possible) == 1:
        return measurer.accuracy()
    return bounded(None if possible is None else np.array(possible) / sum(sizes))


def class_confusion(predictions: Predictions, measurer: Measurer, cells: SmallCells) -> dict[str, Any] | None:
    """
    How often each class was taken for each, by the highest score, and what follows for each class.

    Returns:
        `{"counts", "metrics", "macro"}`: counts as lists, a row a true class and a column a given one; by rate the
        figure of each class; and of their mean. None where any cell is of few patients: what rows, columns, accuracy
        and the number of recordings tell together would give it away.
    """
    known, true, given = _classes(predictions)
    width = len(predictions.label_names)
    table = [[known & (true == row) & (given == column) for column in range(width)] for row in range(width)]
    if not all(cells.enough(rows) or not rows.any() for line in table for rows in line):
        return None
    decided = (given[:, None] == np.arange(width)).astype(np.float64)
    measured = measurer.rates(decided)
    return {
        "counts": [[int(rows.sum()) for rows in line] for line in table],
        "metrics": measured.per_label,
        "macro": measured.macro,
    }


def _classes(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of recordings: whether its class is known, the class, and the one of the highest score (of equal the first)."""
    known = ~np.isnan(predictions.labels).any(axis=1)
    return known, np.nan_to_num(predictions.labels).argmax(axis=1), predictions.scores.argmax(axis=1)
