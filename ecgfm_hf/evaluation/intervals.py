"""
Intervals of metrics by bootstrap over patients.

Recordings of a patient are alike, so patients are drawn with replacement, each with all of its recordings. The interval
is the metric plus and minus t standard errors on the scale on which its errors are about normal (shares: the logit).
The standard error comes from the resamples: half the distance of their 16th and 84th percentile on that scale. Its
degrees of freedom are the patients of the rarer kind (with the label, or without) minus one, which widens the interval
where these are few; percentiles of the resamples are too narrow there. `scripts/interval_coverage.py` measures how
often the intervals contain the truth, and compares percentiles and BCa.

A resample is not copied: it is how often each recording was drawn. A [`Statistics`] takes such counts, integers of
shape (recordings, b), and returns each of its metrics for each of the b weightings, (L, b).
"""

import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .challenge import credits, scaled_credit
from .metrics import (
    MetricInputError,
    RankedLabel,
    confusion_masks,
    error_moments,
    label_arrays,
    macro,
    mean_absolute_error_of,
    r_squared_of,
    rates,
    ratio,
    squared_differences,
)

# With fewer resamples in which a metric is defined there is no standard error.
FEWEST_RESAMPLES = 100
# Numbers in a block of counts: what fits a cache, measured.
_BLOCK = 2**18
_ONE_SIGMA = 0.15865525393145707

Values = dict[str, np.ndarray]
RANKING = ("auroc", "average_precision", "sensitivity_at_specificity")


@dataclass(frozen=True)
class Statistics:
    """
    Metrics of many weightings of the same recordings.

    Args:
        compute (callable): Counts (n, b) to values (L, b) by metric, NaN where undefined.
        scales (`dict[str, str]`): By metric the scale on which its errors are about normal: `"logit"` of shares,
            `"log"` of amounts, `"log_one_minus"` of what is at most 1, `"plain"`.
        needed (`dict[str, tuple]`): By metric the kinds of recordings (n, L) bool that it is made of, such as positives
            and negatives. The kind with the fewest patients limits its precision.
    """

    compute: Callable[[np.ndarray], Values]
    scales: Mapping[str, str]
    needed: Mapping[str, tuple[np.ndarray, ...]]

    def __len__(self) -> int:
        return len(next(iter(self.needed.values()))[0])


def ranking_statistics(
    labels: np.ndarray,
    scores: np.ndarray,
    metrics: tuple[str, ...] = ("auroc", "average_precision"),
    specificity: float = 0.95,
) -> Statistics:
    """Return any of `RANKING`; arguments as [`auroc`] and [`sensitivity_at_specificity`]."""
    if unknown := sorted(set(metrics) - set(RANKING)):
        raise MetricInputError(f"ranking metrics are {', '.join(RANKING)}, found: {', '.join(unknown)}")
    labels, scores = label_arrays(labels, scores)
    ranked = [RankedLabel(label, score) for label, score in zip(labels.T, scores.T, strict=True)]

    def compute(weights: np.ndarray) -> Values:
        values = {metric: np.empty((len(ranked), weights.shape[1])) for metric in metrics}
        for column, label in enumerate(ranked):
            counts = label.counts(weights)
            for metric, rows in values.items():
                if metric == "auroc":
                    rows[column] = counts.auroc()
                elif metric == "average_precision":
                    rows[column] = counts.average_precision()
                else:
                    rows[column] = counts.sensitivity_at(specificity)
        return values

    both = (labels == 1, labels == 0)
    return Statistics(compute, dict.fromkeys(metrics, "logit"), dict.fromkeys(metrics, both))


def decision_statistics(labels: np.ndarray, positive: np.ndarray) -> Statistics:
    """Return `sensitivity`, `specificity`, `ppv` and `f1`; arguments as [`confusion_counts`]."""
    kinds = confusion_masks(labels, positive)
    columns = _Columns(kinds)
    found, flagged = kinds["true_positive"], kinds["true_positive"] | kinds["false_positive"]
    needed = {
        "sensitivity": (found | kinds["false_negative"],),
        "specificity": (kinds["true_negative"] | kinds["false_positive"],),
        "ppv": (flagged,),
        "f1": (flagged | kinds["false_negative"],),
    }
    return Statistics(lambda weights: rates(**columns.sums(weights)), dict.fromkeys(needed, "logit"), needed)


def probability_statistics(labels: np.ndarray, scores: np.ndarray) -> Statistics:
    """Return `brier`; arguments as [`brier`]. (The calibration error has no interval: resampling inflates it.)"""
    squared, known = squared_differences(labels, scores)
    columns = _Columns({"squared": squared, "known": known})

    def compute(weights: np.ndarray) -> Values:
        sums = columns.sums(weights)
        return {"brier": ratio(sums["squared"], sums["known"])}

    return Statistics(compute, {"brier": "logit"}, {"brier": (known,)})


def regression_statistics(targets: np.ndarray, predicted: np.ndarray) -> Statistics:
    """
    Return `mean_absolute_error`, `r_squared` and `bias` (the mean of predicted - true).

    Arguments as [`r_squared`].
    """
    moments = error_moments(targets, predicted)
    columns = _Columns(moments)

    def compute(weights: np.ndarray) -> Values:
        sums = columns.sums(weights)
        return {
            "mean_absolute_error": mean_absolute_error_of(sums),
            "r_squared": r_squared_of(sums),
            "bias": ratio(-sums["error"], sums["known"]),
        }

    scales = {"mean_absolute_error": "log", "r_squared": "log_one_minus", "bias": "plain"}
    return Statistics(compute, scales, dict.fromkeys(scales, (moments["known"] == 1,)))


def challenge_statistics(y_true: np.ndarray, y_pred: np.ndarray) -> Statistics:
    """Return `challenge_score`, of one row; arguments as [`challenge_score`]."""
    columns = _Columns({"credits": credits(y_true, y_pred)})
    scored = np.any(np.asarray(y_true).astype(bool), axis=1)[:, None]

    def compute(weights: np.ndarray) -> Values:
        return {"challenge_score": scaled_credit(columns.sums(weights)["credits"])[None]}

    return Statistics(compute, {"challenge_score": "plain"}, {"challenge_score": (scored,)})


def accuracy_statistics(labels: np.ndarray, scores: np.ndarray) -> Statistics:
    """
    Return `accuracy` of a single label, of one row.

    It is the share of recordings whose class has the highest score, the first of equal ones. Labels (n, classes) have 1
    in the column of the class; a row is all NaN where unknown.
    """
    labels, scores = label_arrays(labels, scores)
    known = ~np.isnan(labels).any(axis=1, keepdims=True)
    right = known[:, 0] & (np.nan_to_num(labels).argmax(axis=1) == scores.argmax(axis=1))
    columns = _Columns({"right": right[:, None], "known": known})

    def compute(weights: np.ndarray) -> Values:
        sums = columns.sums(weights)
        return {"accuracy": ratio(sums["right"], sums["known"])}

    return Statistics(compute, {"accuracy": "logit"}, {"accuracy": (known,)})


class _Columns:
    """Sums over weighted recordings of all arrays (n, columns), in one product."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._names = list(arrays)
        self._ends = np.cumsum([array.shape[1] for array in arrays.values()])
        self._table = np.ascontiguousarray(np.concatenate(list(arrays.values()), axis=1).T, dtype=np.float64)

    def sums(self, weights: np.ndarray) -> Values:
        """Return the sums by array, each (columns, b)."""
        sums = np.split(self._table @ weights.astype(np.float64), self._ends[:-1])
        return dict(zip(self._names, sums, strict=True))


# ----------------------------------------------------------------------------------------------------------------------
# Bootstrap
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Groups:
    """
    Recordings that are drawn together.

    Args:
        numbers (`np.ndarray` (n,) int64): The group of each recording, 0 to `count` - 1.
        count (`int`): How many groups.
        unit (`str`): `"patient"`, or `"recording"` if all patients are unknown.
        note (`str`, *optional*): For the reader of the intervals.
    """

    numbers: np.ndarray
    count: int
    unit: str
    note: str | None


@dataclass(frozen=True)
class Interval:
    """The mean of a metric over labels: `value`, from `low` to `high` (NaN with the `reason` if there is none)."""

    value: float
    low: float
    high: float
    labels: int
    labels_left_out: int
    resamples_left_out: int
    reason: str | None


@dataclass(frozen=True)
class MetricIntervals:
    """
    One metric of each label.

    Args:
        values, low, high (`np.ndarray` (L,)): NaN where undefined.
        patients (`np.ndarray` (L,) int64): Patients (or recordings, see `Intervals.unit`) of the rarer kind.
        resamples_left_out (`np.ndarray` (L,) int64): How many resamples have no value.
        reasons (`tuple[str | None, ...]` (L,)): Why there is no interval.
        resampled (`np.ndarray` (L, resamples)): The metric in each resample, NaN where undefined.
        scale (`str`): As of [`Statistics`]; `"plain"` for a difference.
        unit (`str`), level (`float`): As of [`Intervals`].
    """

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    patients: np.ndarray
    resamples_left_out: np.ndarray
    reasons: tuple[str | None, ...]
    resampled: np.ndarray
    scale: str
    unit: str
    level: float

    @functools.cached_property
    def macro(self) -> Interval:
        """The mean over all labels that have a value."""
        return self.mean_over(range(len(self.values)))

    def mean_over(self, labels: Sequence[int]) -> Interval:
        """Return the mean over the labels with these indices that have a value."""
        chosen = np.array(labels, dtype=np.int64)
        value, labels_left_out = macro(self.values[chosen])
        defined = chosen[~np.isnan(self.values[chosen])]
        rows, counts = self.resampled[defined], np.maximum(self.patients[defined], 2)
        means = rows.mean(axis=0) if len(rows) else np.full(self.resampled.shape[1], np.nan)
        freedom = Freedom.of_mean(rows, counts)
        low, high, reason = interval_around(value, means, self.scale, freedom, self.unit, self.level, of_all=True)
        undefined = int(np.isnan(rows).any(axis=0).sum())
        return Interval(value, low, high, len(defined), labels_left_out, undefined, reason)


@dataclass(frozen=True)
class Intervals:
    """Intervals by metric, and how they were made. `unit` is `"patient"` or `"recording"`, `count` how many."""

    metrics: dict[str, MetricIntervals]
    unit: str
    count: int
    note: str | None
    resamples: int
    level: float
    seed: int

    def __getitem__(self, metric: str) -> MetricIntervals:
        return self.metrics[metric]


def patient_groups(patient_ids: Sequence[Hashable | None]) -> Groups:
    """Return recordings of a patient as one group; a recording of an unknown patient (None) is its own group."""
    numbers: dict[Hashable, int] = {}
    group = np.empty(len(patient_ids), dtype=np.int64)
    unknown = 0
    for i, one in enumerate(patient_ids):
        number = len(numbers) + unknown
        if one is None:
            unknown += 1
        else:
            number = numbers.setdefault(one, number)
        group[i] = number
    unit, note = "patient", None
    if unknown == len(group):
        unit = "recording"
        note = (
            "Patients are unknown, so the intervals are over recordings: they are too narrow if patients have several."
        )
    elif unknown:
        note = (
            f"The patients of {unknown} of {len(group)} recordings are unknown; each counts as a patient of its own, "
            "so the intervals may be too narrow."
        )
    return Groups(group, len(numbers) + unknown, unit, note)


def bootstrap_intervals(
    statistics: Statistics | Sequence[Statistics],
    patient_ids: Sequence[Hashable | None],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Intervals:
    """
    Return values and intervals of metrics.

    Args:
        statistics ([`Statistics`] or several): Such as `ranking_statistics(labels, scores)`; all of the same
            recordings, drawn together.
        patient_ids (sequence (n,)): The patient of each recording; None where unknown.
        resamples (`int`), level (`float`), seed (`int`): The same seed gives the same intervals.

    Returns:
        [`Intervals`]. Resamples in which a label's metric is undefined (for example without a positive) are excluded
        from its interval and counted. The macro value excludes resamples in which any of its labels is undefined.

    Raises:
        `MetricInputError`: lengths that differ, fewer than 100 resamples, a level not between 0 and 1.
    """
    parts = [statistics] if isinstance(statistics, Statistics) else list(statistics)
    groups = _groups(parts, patient_ids, resamples, level)
    drawn = _Draws(groups, resamples, seed)
    metrics = {}
    for part in parts:
        values, resampled = drawn.values(part)
        for metric, scale in part.scales.items():
            patients = _patients(part.needed[metric], groups)
            metrics[metric] = _intervals(values[metric], resampled[metric], scale, patients, groups.unit, level)
    return Intervals(metrics, groups.unit, groups.count, groups.note, resamples, level, seed)


def bootstrap_difference(
    first: Statistics | Sequence[Statistics],
    second: Statistics | Sequence[Statistics],
    patient_ids: Sequence[Hashable | None],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Intervals:
    """
    Return the differences of two models on the same recordings, the second's metric minus the first's.

    Both are computed on the same resamples, so that recordings that are hard for both do not widen the interval. The
    standard error is the standard deviation of the resampled differences. Otherwise as [`bootstrap_intervals`].
    """
    pairs = [[one] if isinstance(one, Statistics) else list(one) for one in (first, second)]
    if [list(part.scales) for part in pairs[0]] != [list(part.scales) for part in pairs[1]]:
        raise MetricInputError("both models need statistics of the same metrics, in the same order")
    groups = _groups(pairs[0] + pairs[1], patient_ids, resamples, level)
    drawn = _Draws(groups, resamples, seed)
    metrics = {}
    for one, other in zip(*pairs, strict=True):
        (values, resampled), (other_values, other_resampled) = drawn.values(one), drawn.values(other)
        for metric in one.scales:
            if values[metric].shape != other_values[metric].shape:
                raise MetricInputError(
                    f"the models have {len(values[metric])} and {len(other_values[metric])} labels; compare the same"
                )
            patients = np.minimum(_patients(one.needed[metric], groups), _patients(other.needed[metric], groups))
            metrics[metric] = _intervals(
                other_values[metric] - values[metric],
                other_resampled[metric] - resampled[metric],
                "plain",
                patients,
                groups.unit,
                level,
            )
    return Intervals(metrics, groups.unit, groups.count, groups.note, resamples, level, seed)


def resampled_values(
    statistics: Statistics, groups: Groups, *, resamples: int = 1000, seed: int = 0
) -> tuple[Values, Values]:
    """Return by metric the values (L,) and those of the resamples (L, resamples), to make other intervals of."""
    return _Draws(groups, resamples, seed).values(statistics)


def _groups(parts: Sequence[Statistics], patient_ids: Sequence, resamples: int, level: float) -> Groups:
    if resamples < FEWEST_RESAMPLES:
        raise MetricInputError(f"resamples must be at least {FEWEST_RESAMPLES}, found: {resamples}")
    if not 0 < level < 1:
        raise MetricInputError(f"level must be between 0 and 1, found: {level}")
    for part in parts:
        if len(part) != len(patient_ids):
            raise MetricInputError(f"there are {len(part)} recordings, but {len(patient_ids)} patient ids")
    if not len(patient_ids):
        raise MetricInputError("there are no recordings to draw from")
    return patient_groups(patient_ids)


class _Draws:
    """The resamples, made again from the seed for each statistics: stored, they would be gigabytes."""

    def __init__(self, groups: Groups, resamples: int, seed: int):
        self._groups, self._resamples, self._seed = groups, resamples, seed
        self._block = int(np.clip(_BLOCK // len(groups.numbers), 8, 128))

    def values(self, part: Statistics) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return by metric the values (L,), and the values of the resamples (L, resamples)."""
        once = part.compute(np.ones((len(part), 1), dtype=np.int64))
        resampled = {metric: np.empty((len(value), self._resamples)) for metric, value in once.items()}
        generator = np.random.default_rng(self._seed)
        for start in range(0, self._resamples, self._block):
            size = min(self._block, self._resamples - start)
            for metric, values in part.compute(self._counts(generator, size)).items():
                resampled[metric][:, start : start + size] = values
        return {metric: value[:, 0] for metric, value in once.items()}, resampled

    def _counts(self, generator: np.random.Generator, size: int) -> np.ndarray:
        """Return (n, size): how often each recording is in each resample."""
        count = self._groups.count
        drawn = generator.integers(count, size=(size, count)) * size + np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)
        return times[self._groups.numbers]


def _patients(kinds: tuple[np.ndarray, ...], groups: Groups) -> np.ndarray:
    """Return (L,) int64: how many groups have recordings of a kind, for the kind with the fewest."""
    counts = []
    for kind in kinds:
        rows, columns = np.nonzero(kind)
        pairs = np.unique(columns * groups.count + groups.numbers[rows])
        counts.append(np.bincount(pairs // groups.count, minlength=kind.shape[1]))
    return np.min(counts, axis=0).astype(np.int64)


def _intervals(
    values: np.ndarray, resampled: np.ndarray, scale: str, patients: np.ndarray, unit: str, level: float
) -> MetricIntervals:
    ends = []
    left_out = np.isnan(resampled).sum(axis=1)
    for value, row, count in zip(values, resampled, patients.tolist(), strict=True):
        ends.append(interval_around(value, row, scale, Freedom.of(count), unit, level))
    low, high, reasons = zip(*ends, strict=True) if ends else ((), (), ())
    return MetricIntervals(
        values,
        np.array(low, dtype=np.float64),
        np.array(high, dtype=np.float64),
        patients,
        left_out,
        tuple(reasons),
        resampled,
        scale,
        unit,
        level,
    )


@dataclass(frozen=True)
class Freedom:
    """
    How many patients a bootstrap's standard error is based on.

    Args:
        patients (`int`): Of the rarer kind.
        degrees (`float`): Degrees of freedom.
        widened (`float`): By which the standard error is to be multiplied.
    """

    patients: int
    degrees: float
    # A bootstrap's variance divides by the number of patients m, not by m - 1; this factor corrects it.
    widened: float

    @classmethod
    def of(cls, patients: int) -> "Freedom":
        return cls(patients, patients - 1, math.sqrt(patients / (patients - 1)) if patients > 1 else math.nan)

    @classmethod
    def of_mean(cls, resampled: np.ndarray, patients: np.ndarray) -> "Freedom":
        """Return the freedom of a mean over labels (Welch and Satterthwaite): labels weigh by their variance."""
        variances = np.array([np.var(row[~np.isnan(row)]) if (~np.isnan(row)).any() else 0.0 for row in resampled])
        if not variances.sum():
            return cls.of(int(patients.min()) if len(patients) else 0)
        degrees = variances.sum() ** 2 / (variances**2 / (patients - 1)).sum()
        widened = math.sqrt((variances * patients / (patients - 1)).sum() / variances.sum())
        return cls(int(patients.min()), degrees, widened)


def interval_around(
    value: float,
    resampled: np.ndarray,
    scale: str,
    freedom: Freedom,
    unit: str,
    level: float,
    of_all: bool = False,
    added: float = 0.0,
) -> tuple[float, float, str | None]:
    """
    Return the ends of a value's interval, or why there is none.

    Args:
        value (`float`), resampled (`np.ndarray`): In all recordings, and in the resamples (NaN where undefined).
        scale, unit, level: As of [`MetricIntervals`].
        freedom ([`Freedom`]): Of the standard error.
        of_all (`bool`): Whether the value is a mean over labels.
        added (`float`): A variance of the value that resamples do not have, such as of training.
    """
    from scipy.special import stdtrit

    known = resampled[~np.isnan(resampled)]
    if np.isnan(value):
        return math.nan, math.nan, "no label has a value" if of_all else "the value is undefined"
    if freedom.patients < 2:
        return math.nan, math.nan, f"it depends on a single {unit}"
    if len(known) < FEWEST_RESAMPLES:
        return math.nan, math.nan, f"it is undefined in all but {len(known)} resamples"
    t = float(stdtrit(freedom.degrees, (1 + level) / 2))
    if scale == "logit" and value in (0.0, 1.0):
        # All resamples have this value. Wilson's interval, of as many trials as patients.
        away = t**2 / (freedom.patients + t**2)
        return (1 - away, 1.0, None) if value == 1.0 else (0.0, away, None)
    center, error = _standard_error(value, known, scale)
    if not np.isfinite(center) or not error > 0:
        return math.nan, math.nan, "it is the same in all resamples"
    reach = t * math.hypot(freedom.widened * error, math.sqrt(added) / _slope(value, scale))
    return _from_scale(center - reach, scale), _from_scale(center + reach, scale), None


def _slope(value: float, scale: str) -> float:
    """Return how much the value changes with its value on the scale."""
    return {"plain": 1.0, "logit": value * (1 - value), "log": value, "log_one_minus": 1 - value}[scale]


def _standard_error(value: float, resampled: np.ndarray, scale: str) -> tuple[float, float]:
    """
    Return the value and its standard error, both on the scale.

    The metric has next to no bias, so its logit has one: half the variance times the scale's curvature, which is
    subtracted.
    """
    deviation = float(resampled.std(ddof=1))
    if scale == "plain":
        return value, deviation
    with np.errstate(divide="ignore", invalid="ignore"):
        center = float(_to_scale(value, scale))
        low, high = _to_scale(np.quantile(resampled, [_ONE_SIGMA, 1 - _ONE_SIGMA]), scale)
        error = float(high - low) / 2
    if not np.isfinite(error) or error <= 0:
        # Percentiles at the end of the scale, or few distinct values: by the slope of the scale instead.
        slope = _slope(value, scale)
        error = deviation / slope if slope else math.nan
    curvature = {"logit": 2 * value - 1, "log": -1.0, "log_one_minus": 1.0}[scale]
    return center - 0.5 * curvature * error**2, error


def _to_scale(values: float | np.ndarray, scale: str) -> np.ndarray:
    if scale == "logit":
        return np.asarray(np.log(values) - np.log1p(-np.asarray(values)))
    return np.asarray(np.log(values) if scale == "log" else -np.log1p(-np.asarray(values)))


def _from_scale(value: float, scale: str) -> float:
    if scale == "plain":
        return value
    if scale == "logit":
        return 0.5 * (1.0 + math.tanh(0.5 * value))
    return float(np.exp(value) if scale == "log" else -np.expm1(-value))
