"""Counts, shares and `pos_weight` of labels, and the one writer of `label_def.csv`, the original's file of them."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..utils.files import atomic_path
from ..utils.text import to_cell


class LabelCounts:
    """
    Count positives by label and split.

        >>> counts = LabelCounts(["Infarction"])
        >>> counts.add([1], split="train")
        >>> counts.add([0], split="train")
        >>> counts.pos_weight("train")
        [1.0]

    Args:
        labels: names, in the order of the rows that are added.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self._positives: dict[str, list[int]] = {}
        self._recordings: dict[str, int] = {}

    def add(self, row: Iterable[float], split: str = "train") -> None:
        """
        Count one recording: a label is positive with any value above 0.

        Raises:
            ValueError: the row has not one value per label.
        """
        row = list(row)
        if len(row) != len(self.labels):
            raise ValueError(f"a row must have one value per label ({len(self.labels)}), found {len(row)}")
        positives = self._positives.setdefault(split, [0] * len(row))
        self._recordings[split] = self._recordings.get(split, 0) + 1
        for index, value in enumerate(row):
            positives[index] += value > 0

    def totals(self) -> tuple[list[int], int]:
        """Return positives by label, and recordings, of all splits together."""
        positives = [sum(counts) for counts in zip(*self._positives.values(), strict=True)] or [0] * len(self.labels)
        return positives, sum(self._recordings.values())

    def pos_weight(self, split: str = "train") -> list[float]:
        """
        Return the weight of a positive by label, `(1 - f) / f` with `f` the share of positives.

        It is infinite for a label without positives: such a label cannot be trained with this weight.

        Raises:
            KeyError: nothing was counted in the split.
        """
        return [_weight(count / self._recordings[split]) for count in self._positives[split]]

    def write(self, path: str | Path) -> None:
        """
        Write the counts as a `label_def.csv` (see [`write_label_columns`]).

        Recordings of a split called `all`, as of data without splits, are in the last columns only.

        Raises:
            OSError: it cannot be written.
        """
        everywhere, total = self.totals()
        positives = {**self._positives, "all": everywhere}
        recordings = {**self._recordings, "all": total}
        shares = {
            split: [count / recordings[split] if recordings[split] else math.nan for count in counts]
            for split, counts in positives.items()
        }
        weights = {split: self.pos_weight(split) for split in self._positives if split != "all"}
        write_label_columns(path, self.labels, positives, shares, weights)


def write_label_columns(
    path: str | Path,
    labels: Sequence[str],
    positives: Mapping[str, Sequence[int]],
    shares: Mapping[str, Sequence[float]],
    weights: Mapping[str, Sequence[float]],
) -> None:
    """
    Write a `label_def.csv`, one row per label, with the columns of the original's file and its digits.

    Args:
        path: the file; it is replaced.
        labels: the names, in order.
        positives: positive recordings by split, and of all splits under `"all"`; one number a label.
        shares: positives among the recordings whose label is known, likewise. NaN leaves a cell empty.
        weights: `pos_weight` by split, without `"all"`.
    """
    splits = sorted(weights)
    columns: dict[str, Sequence[float]] = {f"pos_count_{split}": positives[split] for split in splits}
    columns |= {f"pos_percent_{split}": shares[split] for split in splits}
    columns |= {f"pos_weight_{split}": weights[split] for split in splits}
    columns |= {"pos_count_all": positives["all"], "pos_percent_all": shares["all"]}
    with atomic_path(path) as scratch, open(scratch, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("name", *columns))
        for name, *numbers in zip(labels, *columns.values(), strict=True):
            # repr gives the shortest text that reads as the same number.
            writer.writerow((to_cell(name), *("" if number != number else repr(number) for number in numbers)))


def _weight(share: float) -> float:
    return (1 - share) / share if share else math.inf
