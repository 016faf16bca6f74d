"""Recordings by age band, sex and source, and how the model does on each group."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..utils.redaction import SmallCells

# The first age of each band, in years.
AGE_BANDS = ((0, "under 18"), (18, "18 to 39"), (40, "40 to 59"), (60, "60 to 79"), (80, "80 and over"))
UNKNOWN = "unknown"
_SEXES = {"F": "female", "M": "male"}

# From rows (n,) to the metrics of each label with enough patients, those of all together, and how many labels.
Measure = Callable[[np.ndarray], tuple[dict[str, dict[str, Any]], dict[str, Any], int]]


def subgroup_masks(facts: Mapping[str, np.ndarray], n: int) -> dict[str, dict[str, np.ndarray]]:
    """
    Groups of recordings by attribute.

    Args:
        facts: As `Predictions.facts`.
        n: Recordings.

    Returns:
        `{"age": {"18 to 39": mask (n,), ...}, "sex": ..., "source": ...}`: groups that have a recording; unknown last;
        attributes with one group only are left out, which would be the whole again.
    """
    masks = {}
    for attribute in ("age", "sex", "source"):
        values = facts.get(attribute)
        if values is None:
            continue
        names = np.array([_group(attribute, value) for value in values], dtype=object).reshape(n)
        order = [name for _, name in AGE_BANDS] if attribute == "age" else sorted(set(names.tolist()) - {UNKNOWN})
        groups = {name: names == name for name in [*order, UNKNOWN]}
        groups = {name: rows for name, rows in groups.items() if rows.any()}
        if len(groups) > 1:
            masks[attribute] = groups
    return masks


def _group(attribute: str, value: Any) -> str:
    if value is None or value != value or value == "":
        return UNKNOWN
    if attribute == "age":
        return next((name for first, name in reversed(AGE_BANDS) if value >= first), UNKNOWN)
    return _SEXES.get(value, str(value)) if attribute == "sex" else str(value)


def subgroup_figures(
    facts: Mapping[str, np.ndarray], n: int, cells: SmallCells, measure: Measure
) -> dict[str, list[dict[str, Any]]]:
    """
    What each group's recordings show.

    Args:
        facts, n: As of [`subgroup_masks`].
        cells: What may be told.
        measure: Of rows, a mask (n,): the metrics of each label, those of all together, and of how many labels.

    Returns:
        By attribute a list of `{"group", "recordings", "per_label", "macro", "macro_labels"}`. `per_label` and `macro`
        lack what is of too few patients. No counts by group and label are given: there are too many ways to subtract
        them from one another.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for attribute, groups in subgroup_masks(facts, n).items():
        counts = cells.counts(list(groups.values()))
        found[attribute] = []
        for (name, rows), count in zip(groups.items(), counts, strict=True):
            per_label, macro, labels = measure(rows)
            found[attribute].append(
                {"group": name, "recordings": count, "macro": macro, "macro_labels": labels, "per_label": per_label}
            )
    return found
