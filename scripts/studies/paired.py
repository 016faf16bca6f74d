"""
Intervals of a mean over draws of training data, judged by the same test patients.

Two things vary: which recordings were labelled (and with them the seeds of training), and which patients are in the
test set. The variance of the mean over D draws is taken as

    s^2 / D + v

with s^2 the variance between draws (all judged by the whole test set) and v the variance of the mean under a bootstrap
of the test patients, the same resample for all draws. Intervals are mean +- t * root of that, t the 97.5% point of
Student's t with degrees of freedom after Satterthwaite, D - 1 if only draws varied. A difference of two arms is taken
draw by draw and resample by resample first: both saw the same recordings and are judged by the same patients.

What they leave out: there is one pretrained encoder, one cohort and one choice of hyper-parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ecgfm_hf.evaluation.metrics import RankedLabel


@dataclass(frozen=True)
class Estimate:
    """A mean over draws with its 95% interval; standard errors that came from draws and from patients."""

    mean: float
    low: float
    high: float
    error_draws: float
    error_patients: float
    draws: int


@dataclass(frozen=True)
class Judged:
    """Macro AUROC of each draw: on the test set (draws,), and on resamples of its patients (draws, resamples)."""

    whole: np.ndarray
    resampled: np.ndarray

    def __sub__(self, other: "Judged") -> "Judged":
        return Judged(self.whole - other.whole, self.resampled - other.resampled)


def patient_weights(patient_ids: Sequence[str], resamples: int, seed: int) -> np.ndarray:
    """How often each recording counts (recordings, 1 + resamples): once, then as often as its patient was drawn."""
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(patient_ids))}
    random = np.random.default_rng(seed)
    drawn = random.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size=resamples).T
    counts = np.concatenate([np.ones((len(numbers), 1), dtype=np.int64), drawn], axis=1)
    return counts[[numbers[patient] for patient in patient_ids]]


def judge(labels: np.ndarray, scores: Sequence[np.ndarray], weights: np.ndarray) -> Judged:
    """
    Macro AUROC of some draws.

    Args:
        labels (`np.ndarray` (recordings, labels))
        scores (sequence of `np.ndarray` (recordings, labels)): Of each draw.
        weights: From [`patient_weights`].
    """
    values = np.array(
        [
            np.nanmean(
                [RankedLabel(*pair).counts(weights).auroc() for pair in zip(labels.T, of.T, strict=True)], axis=0
            )
            for of in scores
        ]
    )
    return Judged(values[:, 0], values[:, 1:])


def estimate(judged: Judged) -> Estimate:
    """Mean and interval. With one draw the variance between draws is unknown, and so is the interval (NaN)."""
    draws = len(judged.whole)
    mean = float(judged.whole.mean())
    patients = float(judged.resampled.mean(axis=0).var(ddof=1))
    if draws < 2:
        return Estimate(mean, math.nan, math.nan, math.nan, math.sqrt(patients), draws)
    between = float(judged.whole.var(ddof=1)) / draws
    total = between + patients
    freedom = total**2 / (between**2 / (draws - 1)) if between > 0 else math.inf
    reach = float(stats.t.ppf(0.975, freedom)) * math.sqrt(total)
    return Estimate(mean, mean - reach, mean + reach, math.sqrt(between), math.sqrt(patients), draws)


__all__ = ["Estimate", "Judged", "estimate", "judge", "patient_weights"]
