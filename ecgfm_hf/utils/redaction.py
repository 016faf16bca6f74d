"""
What may be told about few patients: no count of 1 to 9 of them, nor anything that it could be worked out from.

Zeros are told: they are about nobody. A count is of recordings, but what decides is how many patients those are of;
where a patient is unknown, each recording counts as one.
"""

from collections.abc import Sequence

import numpy as np

WITHHELD = "withheld"


class SmallCells:
    """
    The rule for one set of recordings.

    Args:
        patients (`np.ndarray` (n,) int): A number for each recording, the same for recordings of one patient.
        smallest (`int`): Fewest patients that a count may be of; 1 tells everything.
    """

    def __init__(self, patients: np.ndarray, smallest: int = 10):
        if smallest < 1:
            raise ValueError(f"the smallest cell must be at least 1 patient, found: {smallest}")
        self._patients, self.smallest = patients, smallest

    def patients(self, rows: np.ndarray) -> int:
        """Patients of these recordings, a boolean mask (n,)."""
        return len(np.unique(self._patients[rows]))

    def enough(self, *cells: np.ndarray) -> bool:
        """Whether there are enough patients in each of these cells, masks (n,)."""
        return all(self.patients(rows) >= self.smallest for rows in cells)

    def told(self, count: int) -> int | str:
        """A count of which no total is told: itself, or `"<10"`."""
        return f"<{self.smallest}" if 0 < count < self.smallest else count

    def counts(self, cells: Sequence[np.ndarray]) -> list[int | str]:
        """
        Recordings in each of some cells that together make up a total that is told, so of enough patients itself.

        Args:
            cells: Masks (n,) that do not overlap.

        Returns:
            A number; `"<10"` of too few patients; `"withheld"` where the number would give another one away: the total
            less what is told must leave every hidden count open. Where that cannot be, all but zeros are withheld.
        """
        sizes = [int(rows.sum()) for rows in cells]
        small = [0 < self.patients(rows) < self.smallest for rows in cells]
        hidden = {place for place, is_small in enumerate(small) if is_small}
        if not hidden:
            return list(sizes)
        others = sorted((p for p in range(len(cells)) if p not in hidden and sizes[p]), key=lambda p: sizes[p])
        while not (open_ := self._open(sum(sizes[p] for p in hidden), sum(small), len(hidden) - sum(small))) and others:
            hidden.add(others.pop(0))
        few = f"<{self.smallest}" if open_ else WITHHELD
        return [few if small[p] else WITHHELD if p in hidden else sizes[p] for p in range(len(cells))]

    def _open(self, total: int, small: int, large: int) -> bool:
        """Whether each of `small` counts below the limit can still be any, given their total with `large` others."""
        most = self.smallest - 1
        if total < most + (small - 1) + self.smallest * large:
            return False
        return large > 0 or total <= most * (small - 1) + 1

    def bounds(self, parts: Sequence[int | str], sizes: Sequence[int]) -> range | None:
        """
        What the first of two parts of a known total can be, as [`counts`] tells them; `sizes` are their recordings.

        Returns:
            One number where it is told, a range where few are hidden, None where nothing is to be said.
        """
        if isinstance(parts[0], int):
            return range(parts[0], parts[0] + 1)
        few = f"<{self.smallest}"
        # "<10" is of patients. Of more recordings than that nothing follows.
        small = [size for part, size in zip(parts, sizes, strict=True) if part == few]
        if not small or max(small) >= self.smallest:
            return None
        total, limits = sum(sizes), [(1, self.smallest - 1) if part == few else (self.smallest, None) for part in parts]
        (low, high), (other_low, other_high) = limits
        high = total - other_low if high is None else min(high, total - other_low)
        low = low if other_high is None else max(low, total - other_high)
        return range(low, high + 1)


def label_counts(labels: np.ndarray, problem_type: str, cells: SmallCells) -> list[dict[str, int | str]]:
    """
    Of each label the recordings that have it, that do not, and of which that is unknown. How many are unknown is about
    the labelling, not about patients, and is told unless the known ones would follow from it and are few.

    Args:
        labels (`np.ndarray` (n, L)): 1 and 0, or a regression's values; NaN where unknown.
        problem_type (`str`): As in the config. Classes of a single label exclude one another: a column each.
        cells ([`SmallCells`]): Of these recordings.

    Returns:
        By label `"positive"` and `"negative"` (of a regression `"known"`), and `"unknown"`.
    """
    kinds = ("known",) if problem_type == "regression" else ("positive", "negative")
    single = problem_type == "single_label_classification"
    enough = cells.enough(np.ones(len(labels), dtype=bool))
    # Classes exclude one another, so that together they make up the total.
    classes = cells.counts(list((labels == 1).T)) if single else []
    counts = []
    for place, column in enumerate(labels.T):
        known = ~np.isnan(column)
        if not enough or not (cells.enough(known) or not known.any()):
            counts.append(dict.fromkeys((*kinds, "unknown"), WITHHELD))
            continue
        if problem_type == "regression":
            told: list[int | str] = [int(known.sum())]
        elif single:
            all_told = isinstance(classes[place], int) and cells.enough(column == 0)
            told = [classes[place], int((column == 0).sum()) if all_told else WITHHELD]
        else:
            told = cells.counts([column == 1, column == 0])
        counts.append(dict(zip(kinds, told, strict=True)) | {"unknown": int((~known).sum())})
    return counts
