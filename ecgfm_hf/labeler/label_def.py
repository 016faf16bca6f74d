"""Counts, shares and `pos_weight` of labels, in the form of the original's `label_def.csv`."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


class LabelCounts:
    """
    Counts positives by label and split.

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
        Counts one recording: a label is positive with any value above 0.

        Raises:
            ValueError: the row has not one value a label.
        """
        row = list(row)
        if len(row) != len(self.labels):
            raise ValueError(f"a row must have one value a label ({len(self.labels)}), found {len(row)}")
        positives = self._positives.setdefault(split, [0] * len(row))
        self._recordings[split] = self._recordings.get(split, 0) + 1
        for index, value in enumerate(row):
            positives[index] += value > 0

    @classmethod
    def from_totals(cls, positives: Mapping[str, Sequence[int]], recordings: Mapping[str, int], labels: Sequence[str]):
        """Counts that are known already, as `{split: positives by label}` and `{split: recordings}`."""
        counts = cls(labels)
        counts._positives = {split: list(values) for split, values in positives.items()}
        counts._recordings = dict(recordings)
        return counts

    def totals(self) -> tuple[list[int], int]:
        """Positives by label, and recordings, of all splits together."""
        positives = [sum(counts) for counts in zip(*self._positives.values(), strict=True)] or [0] * len(self.labels)
        return positives, sum(self._recordings.values())

    def pos_weight(self, split: str = "train") -> list[float]:
        """
        The weight of a positive by label, `(1 - f) / f` with `f` the share of positives (source: `design/facts.md`).

        Returns:
            `list[float]`: infinite for a label without positives, which no loss should be given.

        Raises:
            KeyError: nothing was counted in the split.
        """
        return [_weight(count / self._recordings[split]) for count in self._positives[split]]

    def rows(self) -> list[dict[str, object]]:
        """A row a label, with the columns of the original's file: splits in alphabetical order, then all together."""
        splits = sorted(self._recordings)
        total = sum(self._recordings.values())
        rows = []
        for index, label in enumerate(self.labels):
            counts = {split: self._positives[split][index] for split in splits}
            shares = {split: counts[split] / self._recordings[split] for split in splits}
            rows.append(
                {
                    "name": label,
                    **{f"pos_count_{split}": counts[split] for split in splits},
                    **{f"pos_percent_{split}": shares[split] for split in splits},
                    **{f"pos_weight_{split}": _weight(shares[split]) for split in splits},
                    "pos_count_all": sum(counts.values()),
                    "pos_percent_all": sum(counts.values()) / total if total else math.nan,
                }
            )
        return rows

    def write(self, path: str | Path) -> None:
        """
        Writes the table as CSV.

        Raises:
            OSError: it cannot be written.
        """
        rows = self.rows()
        with open(path, "w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else ["name"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def _weight(share: float) -> float:
    return (1 - share) / share if share else math.inf
