"""Groups of recordings by age band, sex and source."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# The first age of each band, in years.
AGE_BANDS = ((0, "under 18"), (18, "18 to 39"), (40, "40 to 59"), (60, "60 to 79"), (80, "80 and over"))
UNKNOWN = "unknown"
_SEXES = {"F": "female", "M": "male"}


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
