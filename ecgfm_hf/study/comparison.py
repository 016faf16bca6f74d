"""
Comparison of arms from the scores of their test folds: figures, differences, and how sure they are.

What is estimated is the expected macro AUROC of an arm trained on that many recordings, over training sets and patients
from where the table's come from. The estimate is the mean over folds of each fold's AUROC, then over labels.

No unbiased variance of a cross-validation exists (Bengio and Grandvalet, 2004). The variance here is the sum of

- the variance over patients: patients are drawn with replacement, each with all its test scores of all repeats;
- the variance over training sets: the squared spread between folds, times the factor by which Nadeau and Bengio (2003)
  correct it, test recordings / training recordings. Few folds measure a spread poorly, so for a difference it
  is the mean of its own spread and the spread of all pairs at its size.

Degrees of freedom are added by Welch and Satterthwaite. Differences of two arms are of the same folds and the same
resamples. Their joint intervals hold for all pairs and sizes of the study at once (max-t: the highest of all
standardised differences, drawn with their correlations), and the verdict follows from these alone.
`scripts/study_calibration.py` measures how often all this is right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..data.leakage import LeakError
from ..evaluation.intervals import (
    Freedom,
    Statistics,
    interval_around,
    ranking_statistics,
    resampled_values,
)
from .folds import Fold, StudyError, StudyTable, check_fold
from .guard import check_scores

METRICS = ("auroc", "average_precision")
# A difference counts as one that the study could have shown if it is found with this probability.
POWER = 0.8
_DRAWS = 20_000


@dataclass(frozen=True)
class FoldScores:
    """
    An arm's scores of a fold's test rows.

    Args:
        arm (`str`)
        size (`float`): The training size asked for: a share, or a number of recordings. 1.0 is all.
        fold ([`Fold`]): With the rows that the arm was trained on.
        scores (`np.ndarray` (test rows, L))
    """

    arm: str
    size: float
    fold: Fold
    scores: np.ndarray


@dataclass(frozen=True)
class Estimate:
    """
    A figure with its interval (NaN with the `reason` if there is none).

    Args:
        over_patients, over_training (`float`): The parts of its standard error, whose squares add up.
        degrees (`float`): Of freedom.
    """

    value: float
    low: float
    high: float
    over_patients: float
    over_training: float
    degrees: float
    reason: str | None = None


@dataclass(frozen=True)
class ArmResult:
    """
    An arm at one training size.

    Args:
        macro (`dict[str, Estimate]`): By metric of `METRICS`, the mean over labels.
        labels (`dict[str, tuple[Estimate, ...]]`): By metric, each label.
        recordings (`float`): Training recordings, the mean over folds.
        folds (`int`): Folds of all repeats that the arm has scores of.
    """

    arm: str
    size: float
    recordings: float
    folds: int
    macro: dict[str, Estimate]
    labels: dict[str, tuple[Estimate, ...]]


@dataclass(frozen=True)
class Difference:
    """
    The macro AUROC of the first arm minus the macro AUROC of the second, at one training size, on the folds of both.

    Args:
        own ([`Estimate`]): With the interval of this difference by itself.
        joint_low, joint_high (`float`): The interval that holds for all differences of the study at once.
        detectable (`float`): The true difference that this study would have shown with a probability of `POWER`.
        labels (`tuple[Estimate, ...]`): Of each label, each by itself.
    """

    first: str
    second: str
    size: float
    folds: int
    own: Estimate
    joint_low: float
    joint_high: float
    detectable: float
    labels: tuple[Estimate, ...]

    @property
    def better(self) -> str | None:
        """The better arm, where the joint interval excludes 0."""
        if self.joint_low > 0:
            return self.first
        return self.second if self.joint_high < 0 else None


@dataclass(frozen=True)
class Comparison:
    """
    All arms of a study.

    Args:
        arms (`tuple[ArmResult, ...]`), differences (`tuple[Difference, ...]`): By size, then by arm, as given.
        covers (`str`): What intervals cover: `"patients and training sets"`, `"patients and seeds"` or `"patients"`.
        level (`float`): Of all intervals.
        joint_level (`float`): The level of each difference's interval that makes all of them hold with `level`.
        notes (`tuple[str, ...]`): Sentences for the reader of the intervals.
    """

    label_names: tuple[str, ...]
    arms: tuple[ArmResult, ...]
    differences: tuple[Difference, ...]
    recordings: int
    patients: int
    unit: str
    covers: str
    level: float
    joint_level: float
    notes: tuple[str, ...]
    resamples: int
    seed: int


def compare(
    table: StudyTable, results: Sequence[FoldScores], *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Comparison:
    """
    Compare all arms of a study at all its training sizes.

    Args:
        table ([`StudyTable`]): With the labels that are studied, those of the scores.
        results: Of each arm, size and fold, in any order; an arm may lack folds.
        resamples (`int`), level (`float`), seed (`int`): The same seed gives the same comparison.

    Raises:
        `LeakError`: a patient in both parts of a fold, or a recording tested twice in a repeat.
        [`StudyError`]: no scores, scores of another shape, or twice the same arm, size and fold.
    """
    if not results:
        raise StudyError("there are no scores to compare")
    _check(table, results)
    cells = _cells(table, results, resamples, seed)
    arms = tuple(_arm_result(cell, table.groups.unit, level) for cell in cells)
    pairs = [
        _Pair.of(first, second)
        for index, first in enumerate(cells)
        for second in cells[index + 1 :]
        if first.size == second.size and first.folds.keys() & second.folds.keys()
    ]
    pairs = _with_shared_spread(pairs)
    joint_level = _joint_level(pairs, level, seed)
    groups = table.groups
    return Comparison(
        label_names=table.label_names,
        arms=arms,
        differences=tuple(_difference(pair, groups.unit, level, joint_level) for pair in pairs),
        recordings=len(table),
        patients=groups.count,
        unit=groups.unit,
        covers=min((cell.training.covers for cell in cells), key=len),
        level=level,
        joint_level=joint_level,
        notes=_notes(table, cells),
        resamples=resamples,
        seed=seed,
    )


def _check(table: StudyTable, results: Sequence[FoldScores]) -> None:
    if not results:
        raise StudyError("there are no scores to compare")
    checked: set[int] = set()
    tested: dict[tuple[str, float, int], np.ndarray] = {}
    for found in results:
        fold = found.fold
        if id(fold) not in checked:
            check_fold(table, fold)
            checked.add(id(fold))
        check_scores(found.scores, fold, len(table.label_names))
        rows = tested.setdefault((found.arm, found.size, fold.repeat), np.zeros(len(table), dtype=bool))
        if rows[fold.test].any():
            again = table.ids[fold.test[rows[fold.test]][0]]
            raise LeakError(
                f"arm {found.arm}, size {found.size:g}, repeat {fold.repeat}: recordings are tested twice, such as "
                f"{again}; folds must not share recordings"
            )
        rows[fold.test] = True


# ----------------------------------------------------------------------------------------------------------------------
# An arm at a size
# ----------------------------------------------------------------------------------------------------------------------

_Key = tuple[int, int]  # repeat and fold


@dataclass(frozen=True)
class _Training:
    """
    What the spread between folds shows of the variance of training.

    The factor of Nadeau and Bengio is test recordings / training recordings, where these are all others. It serves for
    smaller training sets too: folds draw them independently, so less of their variance is shared than of whole ones.

    Args:
        factor (`float`): Times the squared spread, the variance of the mean over folds.
        covers (`str`): As of [`Comparison`].
    """

    factor: float
    covers: str

    @classmethod
    def of(cls, folds: Sequence[Fold], recordings: int) -> "_Training":
        count = len(folds)
        if count == 1:
            return cls(0.0, "patients")
        if len({fold.repeat for fold in folds}) == count:
            # The same split, trained with several seeds.
            return cls(1 / count, "patients and seeds")
        tested = sum(len(fold.test) for fold in folds)
        return cls(tested / (count * recordings - tested), "patients and training sets")


@dataclass(frozen=True)
class _Cell:
    """An arm at a size: by metric the values (folds, L) and those of the resamples (folds, L, resamples)."""

    arm: str
    size: float
    folds: dict[_Key, Fold]
    values: dict[str, np.ndarray]
    resampled: dict[str, np.ndarray]
    rarer: np.ndarray  # (L,): patients of the rarer kind in all tests
    training: _Training
    recordings: int  # of the table


def _cells(table: StudyTable, results: Sequence[FoldScores], resamples: int, seed: int) -> list[_Cell]:
    parts = [ranking_statistics(table.targets[found.fold.test], found.scores, METRICS) for found in results]

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = [part.compute(weights[one.fold.test]) for part, one in zip(parts, results, strict=True)]
        return {metric: np.concatenate([values[metric] for values in found]) for metric in METRICS}

    known = (table.targets == 1, table.targets == 0)
    everything = Statistics(compute, dict.fromkeys(METRICS, "logit"), dict.fromkeys(METRICS, known))
    values, resampled = resampled_values(everything, table.groups, resamples=resamples, seed=seed)
    shape = (len(results), len(table.label_names))
    values = {metric: found.reshape(shape) for metric, found in values.items()}
    resampled = {metric: found.reshape(*shape, resamples) for metric, found in resampled.items()}

    members: dict[tuple[float, str], dict[_Key, int]] = {}
    for index, found in enumerate(results):
        key = (found.fold.repeat, found.fold.fold)
        if members.setdefault((found.size, found.arm), {}).setdefault(key, index) != index:
            raise StudyError(f"arm {found.arm}, size {found.size:g}: repeat {key[0]}, fold {key[1]} was given twice")
    recordings: dict[float, int] = {}
    for found in results:
        recordings[found.size] = max(recordings.get(found.size, 0), len(found.fold.train))
    arms = list(dict.fromkeys(found.arm for found in results))
    cells = []
    for size, arm in sorted(members, key=lambda cell: (recordings[cell[0]], arms.index(cell[1]))):
        own = dict(sorted(members[size, arm].items()))
        chosen = list(own.values())
        folds = {key: results[index].fold for key, index in own.items()}
        tested = np.unique(np.concatenate([fold.test for fold in folds.values()]))
        rarer = np.minimum(table.patients_with(1, tested), table.patients_with(0, tested))
        training = _Training.of(list(folds.values()), len(table))
        cells.append(
            _Cell(
                arm,
                size,
                folds,
                {metric: found[chosen] for metric, found in values.items()},
                {metric: found[chosen] for metric, found in resampled.items()},
                rarer,
                training,
                len(table),
            )
        )
    return cells


def _mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Return the mean of the defined values, NaN where there is none."""
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _spread(values: np.ndarray, keys: Sequence[_Key]) -> tuple[np.ndarray, int]:
    """
    Return the deviations (folds, L) from the mean of each repeat, and their degrees of freedom.

    Seeds on one split, a fold each, deviate from their common mean.
    """
    repeats = np.array([repeat for repeat, _ in keys])
    if len(set(repeats.tolist())) == len(repeats):
        repeats = np.zeros_like(repeats)
    deviations = np.empty_like(values)
    for repeat in np.unique(repeats):
        own = repeats == repeat
        deviations[own] = values[own] - _mean(values[own])
    return deviations, len(repeats) - len(np.unique(repeats))


@dataclass(frozen=True)
class _Error:
    """
    A figure, its resamples, and its variance: over patients, and over training sets.

    Args:
        of_patients ([`Freedom`]), degrees (`int`): Of the two variances; `degrees` is 0 without a spread.
        deviations (`np.ndarray` (folds,)): The sum of their squares is the variance over training sets.
    """

    value: float
    resampled: np.ndarray
    over_patients: float
    of_patients: Freedom
    degrees: int
    deviations: np.ndarray

    @classmethod
    def of_labels(
        cls, values: np.ndarray, resampled: np.ndarray, rarer: np.ndarray, keys: Sequence[_Key], training: _Training
    ) -> "list[_Error]":
        """Of each label; arrays (folds, L) and (folds, L, resamples)."""
        deviations, degrees = _spread(values, keys)
        about = zip(_mean(values).tolist(), _mean(resampled), rarer.tolist(), deviations.T, strict=True)
        return [
            cls._of(value, drawn, Freedom.of(max(count, 2)), deviation, degrees, training)
            for value, drawn, count, deviation in about
        ]

    @classmethod
    def of_macro(
        cls, values: np.ndarray, resampled: np.ndarray, rarer: np.ndarray, keys: Sequence[_Key], training: _Training
    ) -> "_Error":
        """Of the mean over labels."""
        by_label, each = _mean(values), _mean(resampled)
        defined = ~np.isnan(by_label)
        by_label, each, counts = by_label[defined], each[defined], np.maximum(rarer[defined], 2)
        value = float(by_label.mean()) if len(by_label) else math.nan
        drawn = _mean(each) if len(each) else np.full(resampled.shape[-1], np.nan)
        deviations, degrees = _spread(values, keys)
        return cls._of(
            value, drawn, Freedom.of_mean(each, counts), _mean(deviations[:, defined], axis=1), degrees, training
        )

    @classmethod
    def _of(
        cls,
        value: float,
        resampled: np.ndarray,
        freedom: Freedom,
        deviations: np.ndarray,
        degrees: int,
        training: _Training,
    ) -> "_Error":
        known = resampled[~np.isnan(resampled)]
        patients = float(known.var(ddof=1)) * freedom.widened**2 if len(known) > 1 else math.nan
        scaled = np.nan_to_num(deviations) * (math.sqrt(training.factor / degrees) if degrees else 0.0)
        return cls(value, resampled, patients, freedom, degrees, scaled)

    @property
    def over_training(self) -> float:
        return float(self.deviations @ self.deviations)

    @property
    def freedom(self) -> Freedom:
        """Of the sum of both variances, by Welch and Satterthwaite."""
        own, added = self.over_patients, self.over_training
        if not added > 0:
            return self.of_patients
        total = (own + added) ** 2 / (own**2 / self.of_patients.degrees + added**2 / self.degrees)
        return replace(self.of_patients, degrees=total)

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.over_patients + self.over_training)

    def estimate(self, scale: str, unit: str, level: float) -> Estimate:
        parts = (math.sqrt(self.over_patients), math.sqrt(self.over_training), self.freedom.degrees)
        if scale == "plain" and self.standard_error == 0:  # two arms of the same scores
            return Estimate(self.value, self.value, self.value, *parts)
        low, high, reason = interval_around(
            self.value, self.resampled, scale, self.freedom, unit, level, of_all=True, added=self.over_training
        )
        return Estimate(self.value, low, high, *parts, reason)


def _arm_result(cell: _Cell, unit: str, level: float) -> ArmResult:
    keys = list(cell.folds)
    macro, labels = {}, {}
    for metric in METRICS:
        about = (cell.values[metric], cell.resampled[metric], cell.rarer, keys, cell.training)
        macro[metric] = _Error.of_macro(*about).estimate("logit", unit, level)
        labels[metric] = tuple(error.estimate("logit", unit, level) for error in _Error.of_labels(*about))
    recordings = float(np.mean([len(fold.train) for fold in cell.folds.values()]))
    return ArmResult(cell.arm, cell.size, recordings, len(keys), macro, labels)


# ----------------------------------------------------------------------------------------------------------------------
# Pairs
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    first: _Cell
    second: _Cell
    keys: list[_Key]
    error: _Error
    of_labels: list[_Error]

    @classmethod
    def of(cls, first: _Cell, second: _Cell) -> "_Pair":
        keys = [key for key in first.folds if key in second.folds]
        rows = [[list(cell.folds).index(key) for key in keys] for cell in (first, second)]
        about = (
            first.values["auroc"][rows[0]] - second.values["auroc"][rows[1]],
            first.resampled["auroc"][rows[0]] - second.resampled["auroc"][rows[1]],
            np.minimum(first.rarer, second.rarer),
            keys,
            _Training.of([first.folds[key] for key in keys], first.recordings),
        )
        return cls(first, second, keys, _Error.of_macro(*about), _Error.of_labels(*about))


def _with_shared_spread(pairs: Sequence[_Pair]) -> list[_Pair]:
    """
    Return the pairs with the mean of their own variance over training sets and of that of all pairs at their size.

    Two arms of equal scores have no variance and are left as they are. With three arms or more this doubles the degrees
    of freedom.
    """
    found = []
    for pair in pairs:
        others = [one.error for one in pairs if one.first.size == pair.first.size and one.error.standard_error > 0]
        own = pair.error.over_training
        if len(others) > 1 and own > 0:
            shared = (own + sum(error.over_training for error in others) / len(others)) / 2
            deviations = pair.error.deviations * math.sqrt(shared / own)
            error = replace(pair.error, deviations=deviations, degrees=2 * pair.error.degrees)
            found.append(replace(pair, error=error))
        else:
            found.append(pair)
    return found


def _joint_level(pairs: Sequence[_Pair], level: float, seed: int) -> float:
    """Return the level of each interval with which all of them hold with `level`."""
    errors = [pair.error for pair in pairs]
    kept = [index for index, error in enumerate(errors) if error.standard_error > 0]
    if len(kept) < 2:
        return level
    from scipy.special import ndtr

    keys = sorted({key for pair in pairs for key in pair.keys})
    over_training = np.zeros((len(kept), len(keys)))
    for row, index in zip(over_training, kept, strict=True):
        row[[keys.index(key) for key in pairs[index].keys]] = errors[index].deviations
    over_patients = np.nan_to_num(
        np.stack([errors[i].resampled - np.nanmean(errors[i].resampled) for i in kept])
        * np.array([errors[i].freedom.widened for i in kept])[:, None]
    )
    covariance = over_patients @ over_patients.T / (over_patients.shape[1] - 1) + over_training @ over_training.T
    deviation = np.sqrt(np.diag(covariance))
    values, vectors = np.linalg.eigh(covariance / np.outer(deviation, deviation))
    root = vectors * np.sqrt(np.clip(values, 0, None))
    drawn = np.random.default_rng(seed).standard_normal((_DRAWS, len(kept))) @ root.T
    highest = float(np.quantile(np.abs(drawn).max(axis=1), level))
    return min(1.0, max(level, float(2 * ndtr(highest) - 1)))


def _difference(pair: _Pair, unit: str, level: float, joint_level: float) -> Difference:
    from scipy.special import stdtrit

    error, first, second = pair.error, pair.first, pair.second
    own, joint = (error.estimate("plain", unit, one) for one in (level, joint_level))
    degrees = error.freedom.degrees
    reach = (stdtrit(degrees, (1 + joint_level) / 2) + stdtrit(degrees, POWER)) * error.standard_error
    return Difference(
        first=first.arm,
        second=second.arm,
        size=first.size,
        folds=len(pair.keys),
        own=own,
        joint_low=joint.low,
        joint_high=joint.high,
        detectable=float(reach),
        labels=tuple(one.estimate("plain", unit, level) for one in pair.of_labels),
    )


def _notes(table: StudyTable, cells: Sequence[_Cell]) -> tuple[str, ...]:
    notes = [table.groups.note] if table.groups.note else []
    covers = {cell.training.covers for cell in cells}
    if "patients" in covers:
        notes.append(
            "There is one training of each arm on one split: intervals cover which patients are tested, but not what "
            "another training set or seed would change."
        )
    if "patients and seeds" in covers:
        notes.append(
            "Arms were trained on one training set: intervals cover which patients are tested, and the seeds, but not "
            "what another training set would change."
        )
    most = max(len(cell.folds) for cell in cells)
    for cell in cells:
        if len(cell.folds) < most:
            notes.append(f"{cell.arm} at size {cell.size:g} has {len(cell.folds)} of {most} folds.")
    return tuple(notes)
