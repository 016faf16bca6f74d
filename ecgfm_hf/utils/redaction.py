"""
Withhold what must not leave the machine: small counts of patients, figures that would reveal them, and paths.

Results are computed exactly, with a [`Cell`] in place of each count. [`redact`] turns them into plain values once,
where they become a file. JSON cannot write a `Cell`, so exact results cannot get into a file by mistake. The rules, for
a smallest cell of 10 patients:

- A count is of recordings; what decides is how many patients they are of. A recording of an unknown patient counts as a
  patient of its own. Zeros are shown.
- A count of 1 to 9 patients becomes `"<10"`. Another count becomes `"withheld"` where the total, less what is shown,
  would leave the small one no choice.
- A label has figures only if 10 patients have it and 10 do not. All digits of a figure, a curve or a rate give the
  counts that it was made of: a label with a withheld count has rounded figures, and no curve or decisions.
- Rates of decisions become bounds where a decision's count is withheld. So do the accuracy and means over such rates.
- A mean over labels is rounded where one of them has too few patients with or without it, so that the mean less the
  others does not give its figure. Labels with known values of too few patients are not in the mean.
- Groups have no counts by label, and rounded figures: the total less the other groups' counts would be the last one's.
- A table of given and true classes is withheld as a whole if any of its cells is small.
- A point of a ROC or precision-recall curve gives four counts. It is left out where one of them is small but not 0.
- Bins of the other curves are joined or left out.

A smallest cell of 1 withholds nothing.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SMALLEST_CELL = 10
WITHHELD = "withheld"

Count = int | str
Figure = dict[str, Any]


class Cell:
    """
    Recordings that are counted together.

    Args:
        patients (`np.ndarray` (recordings,) int): The number of each recording's patient.
    """

    def __init__(self, patients: np.ndarray):
        self._patients = np.asarray(patients)

    def __len__(self) -> int:
        return len(self._patients)

    def __or__(self, other: "Cell") -> "Cell":
        """Return the recordings of both, which share none."""
        return Cell(np.concatenate([self._patients, other._patients]))

    @functools.cached_property
    def patients(self) -> int:
        return len(np.unique(self._patients))


@dataclass(frozen=True)
class Quantiles:
    """Values that cut the recordings of a cell into equal parts. Shown if each part has enough patients."""

    cell: Cell
    values: list[int]


@dataclass(frozen=True)
class ReliabilityBin:
    """Recordings of similar scores: their mean score, and those with and without the label."""

    score: float
    positive: Cell
    negative: Cell

    def __len__(self) -> int:
        return len(self.positive) + len(self.negative)

    def __or__(self, other: "ReliabilityBin") -> "ReliabilityBin":
        score = (self.score * len(self) + other.score * len(other)) / (len(self) + len(other))
        return ReliabilityBin(score, self.positive | other.positive, self.negative | other.negative)


@dataclass(frozen=True)
class Curve:
    """
    A curve of decisions at falling thresholds.

    Args:
        points: Pairs (x, y).
        before, after (`np.ndarray` (points,) int): Of the decisions just before and after each point, the patients of
            the smallest of the four counts, of those that are not 0. The point lies between these two.
    """

    points: list[list[float]]
    before: np.ndarray
    after: np.ndarray


def label_cells(labels: np.ndarray, patients: np.ndarray, problem_type: str) -> list[dict[str, Cell]]:
    """
    Return each label's recordings by their value.

    Args:
        labels (`np.ndarray` (n, L)): 1 and 0, or a regression's values; NaN where unknown.
        patients (`np.ndarray` (n,) int): The number of each recording's patient.
        problem_type (`str`): As in the config.

    Returns:
        By label `"positive"` and `"negative"` (of a regression `"known"`), and `"unknown"`.
    """
    cells = []
    for column in labels.T:
        unknown = np.isnan(column)
        if problem_type == "regression":
            sides = {"known": ~unknown}
        else:
            sides = {"positive": column == 1, "negative": column == 0}
        cells.append({name: Cell(patients[rows]) for name, rows in {**sides, "unknown": unknown}.items()})
    return cells


def redact(results: Mapping[str, Any], smallest_cell: int = SMALLEST_CELL) -> dict[str, Any]:
    """
    Return exact results as plain values that may leave the machine.

    Args:
        results (mapping): Of one set of recordings, which `"recordings"` counts. All keys but that are optional; any
            other key is an error. A rate or mean that depends on what is shown is a function of label names.

            - `"recordings"` ([`Cell`]), `"patients"` (`int` or None if unknown), `"left_out"` (recordings by reason);
            - `"sexes"`, `"sources"` ([`Cell`] by group, which make up all recordings), `"age"` ([`Quantiles`]);
            - `"problem_type"` (`str`) and `"labels"` ([`label_cells`] by name), for all that follows;
            - `"metrics"` (figures by label and metric), `"macro"` (label names to figures of their mean);
            - `"curves"` (by label), `"decisions"` (`"threshold"`, `"counts"` and `"metrics"` by label that has them),
              `"rates"` (label names to means of the decisions' rates);
            - `"accuracy"` (`"right"`, `"wrong"` and the `"figure"`), `"challenge"` (`"figure"`, `"unscored"`
              recordings), `"classes"` (`"counts"`, `"metrics"`, `"macro"`);
            - `"subgroups"` (by attribute a list of `"group"` and the keys `"recordings"`, `"labels"`, `"metrics"` and
              `"macro"` as above).
        smallest_cell (`int`): Fewest patients that a count may be of; 1 shows everything.

    Returns:
        `dict`: Results without labels keep their layout. Results with `"metrics"` have `"macro"` and `"per_label"`
        (by label `"counts"`, `"metrics"`, `"curves"`, `"decisions"`) instead. Where all recordings are of too few
        patients, there are only their counts.

    Raises:
        `ValueError`: a smallest cell below 1, or an unknown key.
    """
    if unknown := sorted(set(results) - _KEYS):
        raise ValueError(f"redact has no rule for {', '.join(unknown)}")
    rule = _Rule(smallest_cell)
    total: Cell = results["recordings"]
    enough = rule.enough(total)
    redacted: dict[str, Any] = {"recordings": len(total) if enough else f"<{smallest_cell}"}
    if "patients" in results:
        patients = results["patients"]
        redacted["patients"] = None if patients is None else rule.single_count(patients)
    if "left_out" in results:
        redacted["left_out"] = {reason: rule.single_count(count) for reason, count in results["left_out"].items()}
    if enough:
        for name in ("sources", "sexes"):
            if name in results:
                redacted[name] = dict(zip(results[name], rule.counts(list(results[name].values())), strict=True))
        if "age" in results and rule.enough_by(results["age"]):
            redacted["age"] = results["age"].values
    if "challenge" in results:
        redacted["unscored"] = rule.single_count(results["challenge"]["unscored"])
    if "metrics" in results:
        return redacted | _Labelled(results, rule).figures()
    if "labels" in results and enough:
        redacted["labels"] = _Labelled(results, rule).counts
    return redacted


_KEYS = {
    *("recordings", "patients", "left_out", "sources", "sexes", "age", "problem_type", "labels", "metrics", "macro"),
    *("curves", "decisions", "rates", "accuracy", "challenge", "classes", "subgroups"),
}


class _Rule:
    """What counts may be shown with a smallest cell of `smallest` patients."""

    def __init__(self, smallest: int):
        if smallest < 1:
            raise ValueError(f"the smallest cell must be at least 1 patient, found: {smallest}")
        self.smallest = smallest
        self.few_text = f"<{smallest}"

    def few(self, cell: Cell) -> bool:
        return 0 < cell.patients < self.smallest

    def enough(self, *cells: Cell) -> bool:
        return all(cell.patients >= self.smallest for cell in cells)

    def enough_by(self, quantiles: Quantiles) -> bool:
        return quantiles.cell.patients >= (len(quantiles.values) + 1) * self.smallest

    def single_count(self, count: int) -> Count:
        """Return a count of which no total is shown: itself, or `"<10"`."""
        return self.few_text if 0 < count < self.smallest else count

    def counts(self, cells: Sequence[Cell]) -> list[Count]:
        """
        Return the counts of cells that make up a shown total, so of enough patients themselves.

        Returns:
            A number; `"<10"` of too few patients; `"withheld"` where the number would give another one away: the total
            less what is shown must leave every small count open. Where that cannot be, all but zeros are withheld.
        """
        sizes = [len(cell) for cell in cells]
        small = [self.few(cell) for cell in cells]
        hidden = {index for index, is_small in enumerate(small) if is_small}
        if not hidden:
            return list(sizes)
        others = sorted((i for i in range(len(cells)) if i not in hidden and sizes[i]), key=lambda i: sizes[i])
        while not (open_ := self._open(sum(sizes[i] for i in hidden), sum(small), len(hidden) - sum(small))) and others:
            hidden.add(others.pop(0))
        few = self.few_text if open_ else WITHHELD
        return [few if small[i] else WITHHELD if i in hidden else sizes[i] for i in range(len(cells))]

    def _open(self, total: int, small: int, large: int) -> bool:
        """Return whether each of `small` small counts can still be any, given their total with `large` others."""
        most = self.smallest - 1
        if total < most + (small - 1) + self.smallest * large:
            return False
        return large > 0 or total <= most * (small - 1) + 1

    def bounds(self, cells: Sequence[Cell]) -> range | None:
        """
        Return what the first of two parts of a shown total can be, given what [`counts`] shows of them.

        Returns:
            One number where it is shown, a range where few are hidden, None where nothing may be shown.
        """
        parts, sizes = self.counts(cells), [len(cell) for cell in cells]
        if isinstance(parts[0], int):
            return range(parts[0], parts[0] + 1)
        # "<10" is of patients. Of more recordings than that nothing follows.
        small = [size for part, size in zip(parts, sizes, strict=True) if part == self.few_text]
        if not small or max(small) >= self.smallest:
            return None
        total = sum(sizes)
        limits = [(1, self.smallest - 1) if part == self.few_text else (self.smallest, None) for part in parts]
        (low, high), (other_low, other_high) = limits
        high = total - other_low if high is None else min(high, total - other_low)
        low = low if other_high is None else max(low, total - other_high)
        return range(low, high + 1)

    def label_counts(
        self, labels: Sequence[Mapping[str, Cell]], problem_type: str, enough: bool
    ) -> list[dict[str, Count]]:
        """
        Return each label's counts. How many are unknown is about the labelling, not about patients; it is shown unless
        the known ones would follow from it and are few.
        """
        # Classes exclude one another, so that together they make up the total.
        single = problem_type == "single_label_classification"
        classes = self.counts([cells["positive"] for cells in labels]) if single else []
        counted: list[dict[str, Count]] = []
        for index, cells in enumerate(labels):
            sides = {name: cell for name, cell in cells.items() if name != "unknown"}
            if not enough or self.few(_known(cells)):
                counted.append(dict.fromkeys(cells, WITHHELD))
                continue
            if single:
                exact = isinstance(classes[index], int) and self.enough(cells["negative"])
                shown: list[Count] = [classes[index], len(cells["negative"]) if exact else WITHHELD]
            else:
                shown = self.counts(list(sides.values()))
            counted.append({**dict(zip(sides, shown, strict=True)), "unknown": len(cells["unknown"])})
        return counted

    def shares(self, cells: Sequence[Cell]) -> list[float | None]:
        """Return each cell's share of the recordings of all, which make up a shown total; None where withheld."""
        total = sum(len(cell) for cell in cells)
        return [None if isinstance(count, str) else round(count / total, 4) for count in self.counts(cells)]

    def reliability(self, bins: Sequence[ReliabilityBin]) -> list[list[float]]:
        """
        Return triples (mean score, share of positives, share of recordings).

        A bin with few patients with the label, or few without, joins the neighbour with fewer recordings.
        """
        total, joined = sum(len(one) for one in bins), list(bins)

        def few(one: ReliabilityBin) -> bool:
            return self.few(one.positive) or self.few(one.negative)

        while len(joined) > 1 and any(few(one) for one in joined):
            index = next(i for i, one in enumerate(joined) if few(one))
            neighbours = [i for i in (index - 1, index + 1) if 0 <= i < len(joined)]
            first = min(index, min(neighbours, key=lambda i: len(joined[i])))
            joined[first : first + 2] = [joined[first] | joined[first + 1]]
        return [
            [round(value, 3) for value in (one.score, len(one.positive) / len(one), len(one) / total)]
            for one in joined
            if not few(one)
        ]

    def curve(self, curve: Curve) -> list[list[float | None]]:
        """Return pairs (x, y), with None for y where a count of the decisions there is small."""
        shown = np.minimum(curve.before, curve.after) >= self.smallest
        return [[x, y if show else None] for (x, y), show in zip(curve.points, shown.tolist(), strict=True)]

    def curves(self, curves: Mapping[str, Any]) -> dict[str, Any]:
        if "density" in curves:
            density = curves["density"]
            shares, width = self.shares([cell for row in density["cells"] for cell in row]), len(density["cells"][0])
            rows = [shares[start : start + width] for start in range(0, len(shares), width)]
            return {"density": {"low": density["low"], "high": density["high"], "shares": rows}}
        return {
            **curves,
            "roc": self.curve(curves["roc"]),
            "precision_recall": self.curve(curves["precision_recall"]),
            "reliability": self.reliability(curves["reliability"]),
            "histogram": self.shares(curves["histogram"]),
        }

    def decisions(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Return one label's decisions, with bounds for a rate that would give a small count away."""
        cells: Mapping[str, Cell] = found["counts"]
        counts: dict[str, Count] = {}
        possible = {}
        for pair in (("true_positive", "false_negative"), ("false_positive", "true_negative")):
            counts |= dict(zip(pair, self.counts([cells[kind] for kind in pair]), strict=True))
            possible[pair[0]] = self.bounds([cells[kind] for kind in pair])
        positives = len(cells["true_positive"]) + len(cells["false_negative"])
        negatives = len(cells["false_positive"]) + len(cells["true_negative"])
        true, false = possible["true_positive"], possible["false_positive"]
        ways: dict[str, tuple[list[range | None], Callable[..., np.ndarray]]] = {
            "sensitivity": ([true], lambda t: t / positives),
            "specificity": ([false], lambda f: 1 - f / negatives),
            "ppv": ([true, false], lambda t, f: t / np.maximum(t + f, 1)),
            "f1": ([true, false], lambda t, f: 2 * t / (t + positives + f)),
        }
        figures = {}
        for rate, (needed, formula) in ways.items():
            known = [one for one in needed if one is not None]
            if len(known) < len(needed):
                figures[rate] = _bounded(None)
            elif all(len(one) == 1 for one in known):
                figures[rate] = found["metrics"][rate]
            else:
                figures[rate] = _bounded(formula(*np.meshgrid(*(np.array(one, dtype=float) for one in known))))
        return {"threshold": found["threshold"], "counts": counts, "metrics": figures}

    def accuracy(self, found: Mapping[str, Any]) -> Figure:
        """Return the share of right classes, or bounds where it would give small counts away."""
        right, wrong = found["right"], found["wrong"]
        possible = self.bounds([right, wrong])
        if possible is not None and len(possible) == 1:
            return found["figure"]
        return _bounded(None if possible is None else np.array(possible) / (len(right) + len(wrong)))

    def classes(self, found: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return given and true classes, None if any cell is small: rows, columns and accuracy would reveal it."""
        if any(self.few(cell) for row in found["counts"] for cell in row):
            return None
        return {**found, "counts": [[len(cell) for cell in row] for row in found["counts"]]}


class _Labelled:
    """What may be shown of the labels of one set of recordings."""

    def __init__(self, results: Mapping[str, Any], rule: _Rule):
        self._results, self._rule = results, rule
        self._labels: Mapping[str, Mapping[str, Cell]] = results["labels"]
        self._enough = rule.enough(results["recordings"])
        counted = rule.label_counts(list(self._labels.values()), results["problem_type"], self._enough)
        self.counts = dict(zip(self._labels, counted, strict=True))
        sides = {name: _sides(cells) for name, cells in self._labels.items()}
        self._shown = [name for name, of in sides.items() if rule.enough(*of)]
        # With values of so few patients, a mean would have to be rounded until it is meaningless.
        self._averaged = [name for name, cells in self._labels.items() if not rule.few(_known(cells))]
        self._hidden = [name for name in self._averaged if any(rule.few(cell) for cell in sides[name])]
        self._exact = [n for n in self._shown if not any(isinstance(count, str) for count in self.counts[n].values())]

    def figures(self) -> dict[str, Any]:
        results, rule, per_label = self._results, self._rule, {}
        for name, counts in self.counts.items():
            found: dict[str, Any] = {"counts": counts, "metrics": {}}
            if name in self._exact:
                found["metrics"] = results["metrics"][name]
                if "curves" in results:
                    found["curves"] = rule.curves(results["curves"][name])
                if name in results.get("decisions", {}):
                    found["decisions"] = rule.decisions(results["decisions"][name])
            elif name in self._shown:
                found["metrics"] = _rounded(results["metrics"][name], self._decimals(name))
            per_label[name] = found
        redacted: dict[str, Any] = {"macro": self._macro(per_label), "per_label": per_label}
        if "subgroups" in results:
            redacted["subgroups"] = self._subgroups() if self._enough else {}
        if "classes" in results:
            redacted["classes"] = rule.classes(results["classes"]) if self._enough else None
        return redacted

    def _macro(self, per_label: Mapping[str, Mapping[str, Any]]) -> dict[str, Figure]:
        results, rule = self._results, self._rule
        macro: dict[str, Figure] = {}
        if self._shown:
            macro = results["macro"](self._averaged)
            if self._hidden:
                macro = _rounded(macro, self._mean_decimals())
        decided = [name for name in self._exact if "decisions" in per_label[name]]
        if decided:
            shown = [per_label[name]["decisions"]["metrics"] for name in decided]
            exact = [results["decisions"][name]["metrics"] for name in decided]
            macro |= _mean_rates(exact, shown, results["rates"](decided))
        if self._shown and "accuracy" in results:
            macro["accuracy"] = rule.accuracy(results["accuracy"])
        if self._enough and "challenge" in results:
            figure = results["challenge"]["figure"]
            macro["challenge_score"] = _rounded(figure) if rule.smallest > 1 else figure
        return macro

    def _subgroups(self) -> dict[str, list[dict[str, Any]]]:
        redacted = {}
        for attribute, groups in self._results["subgroups"].items():
            counts = self._rule.counts([group["recordings"] for group in groups])
            redacted[attribute] = [
                {"group": group["group"], "recordings": count, **self._group(group)}
                for group, count in zip(groups, counts, strict=True)
            ]
        return redacted

    def _group(self, group: Mapping[str, Any]) -> dict[str, Any]:
        labelled = _Labelled({**group, "problem_type": self._results["problem_type"]}, self._rule)
        shown = labelled._shown
        figures = {name: group["metrics"][name] for name in shown}
        macro = group["macro"](shown) if shown else {}
        if shown and self._rule.smallest > 1:
            decimals = {name: labelled._decimals(name) for name in shown}
            figures = {name: _rounded(found, decimals[name]) for name, found in figures.items()}
            macro = _rounded(macro, min(decimals.values()))
        return {"macro": macro, "macro_labels": len(shown), "per_label": figures}

    def _mean_decimals(self) -> int:
        """Return how many decimals of a mean do not reveal a hidden label's figure, and so its counts."""
        if self._results["problem_type"] == "regression":
            return 3
        # One positive or negative more or less moves a hidden label's AUROC by 1 / pairs or more, were its positives
        # but one. Of that a part reaches the mean.
        pairs = min(len(_known(self._labels[name])) - 1 for name in self._hidden)
        labels = sum(all(_sides(self._labels[name])) for name in self._averaged)
        return max(0, min(3, math.floor(math.log10(max(1, labels * pairs)))))

    def _decimals(self, name: str) -> int:
        """Return how many decimals of a label's figures do not reveal the number of recordings."""
        sides = _sides(self._labels[name])
        if len(sides) == 2:
            # All digits of an AUROC reveal the number of pairs of a positive and a negative.
            return min(3, math.floor(math.log10(len(sides[0]) * len(sides[1]))))
        figure = self._results["metrics"][name]["mean_absolute_error"]
        return 2 - math.floor(math.log10(figure.get("value", figure.get("first")) or 1.0))


def _sides(cells: Mapping[str, Cell]) -> list[Cell]:
    return [cell for name, cell in cells.items() if name != "unknown"]


def _known(cells: Mapping[str, Cell]) -> Cell:
    return functools.reduce(Cell.__or__, _sides(cells))


def _mean_rates(
    exact: Sequence[Mapping[str, Figure]], shown: Sequence[Mapping[str, Figure]], whole: Mapping[str, Figure]
) -> dict[str, Figure]:
    """
    Return the means of rates over labels.

    Args:
        exact, shown: Of each label by rate the figure, and what is shown in its place: the same, bounds, or nothing.
        whole: By rate the figure of the mean.

    Returns:
        By rate that figure; where a label has bounds in place of a rate, bounds; nothing where one has nothing.
    """
    found = {}
    for rate in whole:
        pairs = [(of[rate], instead[rate]) for of, instead in zip(exact, shown, strict=True)]
        if all(instead is of for of, instead in pairs):
            found[rate] = whole[rate]
        elif all(instead is of or "bounds" in instead for of, instead in pairs):
            ends = [instead.get("bounds", [of.get("value")] * 2) for of, instead in pairs]
            defined = np.array([pair for pair in ends if None not in pair], dtype=float)
            counts = {"labels": len(defined), "left_out": len(pairs) - len(defined)}
            found[rate] = _bounded(defined.mean(axis=0)) | counts
        else:
            found[rate] = _bounded(None)
    return found


def _bounded(values: np.ndarray | None) -> Figure:
    """Return between which values a figure can be, of all that its counts can be; an empty figure for None."""
    if values is None:
        return {"value": None, "low": None, "high": None}
    return {"bounds": [round(float(values.min()), 4), round(float(values.max()), 4)]}


def _rounded(found: Any, decimals: int = 3) -> Any:
    if isinstance(found, dict):
        return {name: _rounded(value, decimals) for name, value in found.items()}
    return round(found, decimals) if isinstance(found, float) else found


# ----------------------------------------------------------------------------------------------------------------------
# Paths
# ----------------------------------------------------------------------------------------------------------------------

_PART = r"[^\s/\"'`<>|()\[\]{},;:*?\\]+"
_PATH = re.compile(
    "|".join(
        (
            # A path begins a line or word; `and/or`, `mm/mV`, `</td>` and what follows `https:` do not.
            rf"(?:^|(?<=[\s\"'`=(\[{{,;:|>!]))/(?=[^/\s]*[A-Za-z]){_PART}/(?:{_PART}/?)*",
            r"\b[Ff][Ii][Ll][Ee]:/+[^\s\"'`<>]+",
            # Windows: a drive, a share.
            r"(?<![A-Za-z0-9])(?:[A-Za-z]:(?:\\{1,2}[\w .$-]+\\|/[\w.$-])|[A-Z]:\\{1,2}\w{2})[^\s\"'`<>|*?]*",
            r"(?<!\\)\\\\[A-Za-z0-9][\w.$-]+\\[\w$][^\s\"'`<>|*?]*",
            # Out of the folder that is pushed, or into the user's own.
            r"(?<![\w/.~])(?:\.\./|~/)(?=[A-Za-z0-9.]*[A-Za-z0-9])(?!\.cache\b)[^\s\"'`<>|]+",
            # Wherever it begins: an escaped line feed before it, for example, is a letter.
            r"(?P<home>/(?:home|Users)/[\w.-]+(?:/[^\s\"'`<>|]*)?)",
        )
    ),
    re.MULTILINE,
)
_LONGEST_ADDRESS = 300


def find_paths(text: str) -> Iterator[re.Match[str]]:
    """
    Yield each path of a machine in a text once: absolute paths of any system, `file:` addresses, and paths that lead
    out of a folder or into the user's own. Web addresses and ordinary slashes are none.
    """
    start = 0
    while match := _PATH.search(text, start):
        if match["home"] and _in_address(text, match.start()):
            start = match.start() + 1
        else:
            yield match
            start = match.end()


def _in_address(text: str, index: int) -> bool:
    """Return whether the text at this index is part of a web page's address."""
    return "://" in re.split(r"\s", text[max(0, index - _LONGEST_ADDRESS) : index])[-1]


__all__ = [
    "SMALLEST_CELL",
    "WITHHELD",
    "Cell",
    "Curve",
    "Quantiles",
    "ReliabilityBin",
    "find_paths",
    "label_cells",
    "redact",
]
