"""
Intervals of metrics by bootstrap over patients.

Recordings of a patient are alike, so patients are drawn with replacement, each with all of its recordings. The interval
is the metric plus and minus t standard errors on the scale on which its errors are about normal (shares: the logit).
The standard error is that of the resamples: half the distance of their 16th and 84th percentile on that scale. As many
degrees of freedom as patients of the rarer kind (with the label, or without), less one, widen it where these are few;
percentiles of the resamples themselves are too narrow there.
`scripts/interval_coverage.py` measures how often the
intervals hold the truth, beside percentiles and BCa.
"""

import functools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from .metric_input import MetricInputError, macro
from .weighted import Statistics

# Fewer resamples in which a metric is defined tell no standard error.
FEWEST_RESAMPLES = 100
# Numbers in a block of counts: what fits a cache, measured.
_BLOCK = 2**18
_ONE_SIGMA = 0.15865525393145707


@dataclass(frozen=True)
class Groups:
    """
    What is drawn together.

    Args:
        numbers (`np.ndarray` (n,) int64): The group of each recording, 0 to `count` - 1.
        count (`int`)
        unit (`str`): `"patient"`, or `"recording"` where no patient is known.
        note (`str`, *optional*): What a reader of the intervals must know.
    """

    numbers: np.ndarray
    count: int
    unit: str
    note: str | None


@dataclass(frozen=True)
class Interval:
    """A metric over all labels: `value`, from `low` to `high` (NaN with the `reason` where there is none)."""

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
    One metric.

    Args:
        values, low, high (`np.ndarray` (L,)): NaN where undefined.
        patients (`np.ndarray` (L,) int64): Patients (or recordings, see `Intervals.unit`) of the rarer kind.
        resamples_left_out (`np.ndarray` (L,) int64): In which the metric is undefined.
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
        """Return the mean over those of these labels, by index, that have a value."""
        chosen = np.array(labels, dtype=np.int64)
        value, labels_left_out = macro(self.values[chosen])
        defined = chosen[~np.isnan(self.values[chosen])]
        rows, counts = self.resampled[defined], np.maximum(self.patients[defined], 2)
        means = rows.mean(axis=0) if len(rows) else np.full(self.resampled.shape[1], np.nan)
        freedom = _Freedom.of_mean(rows, counts)
        low, high, reason = _interval(value, means, self.scale, freedom, self.unit, self.level, of_all=True)
        undefined = int(np.isnan(rows).any(axis=0).sum())
        return Interval(value, low, high, len(defined), labels_left_out, undefined, reason)


@dataclass(frozen=True)
class Intervals:
    """By metric, and how they were made. `unit` is `"patient"` or `"recording"`, `count` how many there are."""

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
    """Recordings of a patient as one group. One whose patient is unknown (None) is a group of its own."""
    numbers: dict[Hashable, int] = {}
    group = [numbers.setdefault((0, i) if one is None else (1, one), len(numbers)) for i, one in enumerate(patient_ids)]
    unknown = sum(one is None for one in patient_ids)
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
    return Groups(np.array(group, dtype=np.int64), len(numbers), unit, note)


def bootstrap_intervals(
    statistics: Statistics | Sequence[Statistics],
    patient_ids: Sequence[Hashable | None],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Intervals:
    """
    Values and intervals of metrics.

    Args:
        statistics ([`Statistics`] or several): Such as `ranking_statistics(labels, scores)`; all of the same
            recordings, and drawn together.
        patient_ids (sequence (n,)): Whose recordings they are; None where unknown.
        resamples (`int`), level (`float`), seed (`int`): The same seed gives the same intervals.

    Returns:
        [`Intervals`]. A label's resamples in which a metric is undefined (no positive was drawn, say) are left out of
        its interval and counted; so are those of the macro value in which any of its labels is.

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
    Differences of two models on the same recordings, the second's metric less the first's: both are computed on the
    same resamples, so that what makes recordings hard for both does not widen the interval. Otherwise as
    [`bootstrap_intervals`]; the standard error is the standard deviation of the resampled differences.
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
    """The resamples, made anew from the seed for every statistics: kept, they would be gigabytes."""

    def __init__(self, groups: Groups, resamples: int, seed: int):
        self._groups, self._resamples, self._seed = groups, resamples, seed
        self._block = int(np.clip(_BLOCK // len(groups.numbers), 8, 128))

    def values(self, part: Statistics) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Of each metric the values (L,), and those of the resamples (L, resamples)."""
        once = part.compute(np.ones((len(part), 1), dtype=np.int64))
        resampled = {metric: np.empty((len(value), self._resamples)) for metric, value in once.items()}
        generator = np.random.default_rng(self._seed)
        for start in range(0, self._resamples, self._block):
            size = min(self._block, self._resamples - start)
            for metric, values in part.compute(self._counts(generator, size)).items():
                resampled[metric][:, start : start + size] = values
        return {metric: value[:, 0] for metric, value in once.items()}, resampled

    def _counts(self, generator: np.random.Generator, size: int) -> np.ndarray:
        """(n, size): how often each recording is in each resample."""
        count = self._groups.count
        drawn = generator.integers(count, size=(size, count)) * size + np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)
        return times[self._groups.numbers]


def _patients(kinds: tuple[np.ndarray, ...], groups: Groups) -> np.ndarray:
    """(L,) int64: how many groups have recordings of a kind, of the kind with fewest."""
    counts = []
    for kind in kinds:
        rows, columns = np.nonzero(kind)
        pairs = np.unique(columns * groups.count + groups.numbers[rows])
        counts.append(np.bincount(pairs // groups.count, minlength=kind.shape[1]))
    return np.min(counts, axis=0).astype(np.int64)


def _intervals(values, resampled, scale: str, patients: np.ndarray, unit: str, level: float) -> MetricIntervals:
    ends = []
    left_out = np.isnan(resampled).sum(axis=1)
    for value, row, count in zip(values, resampled, patients.tolist(), strict=True):
        ends.append(_interval(value, row, scale, _Freedom.of(count), unit, level))
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
class _Freedom:
    """How many patients stand behind a standard error."""

    patients: int
    degrees: float
    # A bootstrap's variance is that of a population of the sample: divided by m, not m - 1.
    widened: float

    @classmethod
    def of(cls, patients: int) -> "_Freedom":
        return cls(patients, patients - 1, math.sqrt(patients / (patients - 1)) if patients > 1 else math.nan)

    @classmethod
    def of_mean(cls, resampled: np.ndarray, patients: np.ndarray) -> "_Freedom":
        """Of the mean over labels, by Welch and Satterthwaite: a label counts by its share of the variance."""
        variances = np.array([np.var(row[~np.isnan(row)]) if (~np.isnan(row)).any() else 0.0 for row in resampled])
        if not variances.sum():
            return cls.of(int(patients.min()) if len(patients) else 0)
        degrees = variances.sum() ** 2 / (variances**2 / (patients - 1)).sum()
        widened = math.sqrt((variances * patients / (patients - 1)).sum() / variances.sum())
        return cls(int(patients.min()), degrees, widened)


def _interval(
    value: float, resampled: np.ndarray, scale: str, freedom: _Freedom, unit: str, level: float, of_all: bool = False
) -> tuple[float, float, str | None]:
    from scipy.special import stdtrit

    known = resampled[~np.isnan(resampled)]
    if np.isnan(value):
        return math.nan, math.nan, "no label has a value" if of_all else "the value is undefined"
    if freedom.patients < 2:
        return math.nan, math.nan, f"a single {unit} decides"
    if len(known) < FEWEST_RESAMPLES:
        return math.nan, math.nan, f"it is undefined in all but {len(known)} resamples"
    t = float(stdtrit(freedom.degrees, (1 + level) / 2))
    if scale == "logit" and value in (0.0, 1.0):
        # Nothing differs between resamples. Wilson's interval, of as many trials as patients.
        away = t**2 / (freedom.patients + t**2)
        return (1 - away, 1.0, None) if value == 1.0 else (0.0, away, None)
    center, error = _standard_error(value, known, scale)
    if not np.isfinite(center) or not error > 0:
        return math.nan, math.nan, "it is the same in all resamples"
    reach = t * freedom.widened * error
    return float(_from_scale(center - reach, scale)), float(_from_scale(center + reach, scale)), None


def _standard_error(value: float, resampled: np.ndarray, scale: str) -> tuple[float, float]:
    """
    The value and its standard error, both on the scale. The metric has no bias to speak of, so its logit has one, half
    the variance by the scale's curvature; that is taken off.
    """
    deviation = float(resampled.std(ddof=1))
    if scale == "plain":
        return value, deviation
    with np.errstate(divide="ignore", invalid="ignore"):
        center = float(_to_scale(value, scale))
        low, high = _to_scale(np.quantile(resampled, [_ONE_SIGMA, 1 - _ONE_SIGMA]), scale)
        error = float(high - low) / 2
    if not np.isfinite(error) or error <= 0:
        # Percentiles that are at the end of the scale, or few values: by the slope of the scale instead.
        slope = {"logit": value * (1 - value), "log": value, "log_one_minus": 1 - value}[scale]
        error = deviation / slope if slope else math.nan
    curvature = {"logit": 2 * value - 1, "log": -1.0, "log_one_minus": 1.0}[scale]
    return center - 0.5 * curvature * error**2, error


def _to_scale(values, scale: str):
    if scale == "logit":
        return np.log(values) - np.log1p(-np.asarray(values))
    return np.log(values) if scale == "log" else -np.log1p(-np.asarray(values))


def _from_scale(values, scale: str):
    if scale == "plain":
        return values
    if scale == "logit":
        return 0.5 * (1.0 + np.tanh(0.5 * values))
    return np.exp(values) if scale == "log" else -np.expm1(-values)
