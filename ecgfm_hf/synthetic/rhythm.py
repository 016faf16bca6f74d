"""Rhythm: the time and origin of every beat."""

from dataclasses import dataclass

import numpy as np

from .settings import PREMATURE_FRACTION, SEGMENT_SECONDS, CohortSettings

SINUS, ATRIAL_PREMATURE, VENTRICULAR_PREMATURE, PACED, FIBRILLATION = range(5)
BEAT_KINDS = ("sinus", "atrial premature", "ventricular premature", "paced", "conducted from fibrillation")

# Seconds before and after the recording with beats, whose waves reach into it.
MARGIN = 1.5
_SHORTEST_RR = 0.30
_COMPLEX = 0.20  # s: from a ventricular beat's main peak to where it is recognised, rounded up


@dataclass(frozen=True)
class Beats:
    """
    The beats of a recording and a margin around it.

    Attributes:
        times: (beats,) s from the recording's start, of the fiducial points.
        kinds: (beats,) indices into `BEAT_KINDS`.
        p_times: (beats,) s: the fiducial point that the beat would have by the sinus node's schedule. NaN where the
            atria do not contract. The P wave of a premature ventricular beat is not conducted.
        rate: beats/min of the underlying rhythm within the recording.
    """

    times: np.ndarray
    kinds: np.ndarray
    p_times: np.ndarray
    rate: float


def sinus_beats(
    rng: np.random.Generator,
    seconds: float,
    rr: float,
    arrhythmia: float,
    atrial: float,
    ventricular: float,
    settings: CohortSettings,
) -> Beats:
    """
    Draw a sinus rhythm that follows breathing, with premature beats.

    Args:
        rr: mean interval, s.
        arrhythmia: largest deviation of an interval with breathing, as a share of it.
        atrial, ventricular: shares of premature beats.
    """
    count = int((seconds + 2 * MARGIN) / rr * 1.35) + 6
    breathing = 2 * np.pi * rng.uniform(0.17, 0.33)
    phase, slow_phase = rng.uniform(0, 2 * np.pi, 2)
    start = rng.uniform(0, 1)
    nominal = np.arange(count) * rr
    intervals = rr * (
        1
        + arrhythmia * np.sin(breathing * nominal + phase)
        + 0.012 * np.sin(2 * np.pi * 0.09 * nominal + slow_phase)
        + 0.006 * rng.standard_normal(count)
    )
    intervals = np.maximum(intervals, _SHORTEST_RR)
    scheduled = -MARGIN - start * rr + np.concatenate([[0.0], np.cumsum(intervals[:-1])])
    inside = (scheduled >= 0) & (scheduled < seconds)
    rate = 60 / intervals[inside].mean() if inside.any() else 60 / rr

    draws = rng.random((2, count))
    couplings, pauses = rng.random((2, count))
    is_ventricular = _isolated(draws[0] < ventricular)
    is_atrial = _isolated((draws[1] < atrial) & ~_beside(is_ventricular))
    kinds = np.full(count, SINUS)
    times = scheduled.copy()

    for i in np.flatnonzero(is_ventricular | is_atrial):
        low, high = settings.ventricular_coupling if is_ventricular[i] else settings.atrial_coupling
        coupled = max((low + (high - low) * couplings[i]) * intervals[i - 1], _SHORTEST_RR)
        if not _shows_prematurity(times[i - 1], times[i - 1] + coupled, seconds):
            continue
        if is_ventricular[i]:  # does not reset the sinus node: the pause compensates for the early beat
            kinds[i] = VENTRICULAR_PREMATURE
            times[i] = times[i - 1] + coupled
        else:  # resets the sinus node, which hesitates: every later beat moves
            if coupled <= (1 - PREMATURE_FRACTION) * intervals[i - 1]:  # otherwise it looks like sinus arrhythmia
                kinds[i] = ATRIAL_PREMATURE
            shift = coupled - intervals[i - 1]
            pause = settings.atrial_pause * intervals[i] * pauses[i]
            times[i:] += shift
            times[i + 1 :] += pause
            scheduled[i:] += shift
            scheduled[i + 1 :] += pause
    return Beats(times, kinds, np.where(kinds == VENTRICULAR_PREMATURE, scheduled, times), float(rate))


def fibrillation_beats(
    rng: np.random.Generator,
    seconds: float,
    rr: float,
    irregularity: float,
    ventricular: float,
    settings: CohortSettings,
) -> Beats:
    """
    Draw atrial fibrillation: independent intervals without P waves.

    The intervals are gamma distributed, with `irregularity` as the coefficient of variation.
    """
    count = int((seconds + 2 * MARGIN) / rr * 1.6) + 8
    shape = 1 / irregularity**2
    intervals = np.maximum(rng.gamma(shape, rr / shape, count), _SHORTEST_RR)
    times = -MARGIN - rng.uniform(0, rr) + np.concatenate([[0.0], np.cumsum(intervals[:-1])])
    kinds = np.full(count, FIBRILLATION)
    low, high = settings.ventricular_coupling
    couplings = rng.random(count)
    for i in np.flatnonzero(_isolated(rng.random(count) < ventricular)):
        moved = times[i - 1] + max((low + (high - low) * couplings[i]) * rr, _SHORTEST_RR)
        if not _shows_prematurity(times[i - 1], moved, seconds):
            continue
        kinds[i] = VENTRICULAR_PREMATURE
        pause = max(1.1 * rr, times[i + 1] - times[i])
        times[i + 1 :] += moved + pause - times[i + 1]
        times[i] = moved
    inside = (times >= 0) & (times < seconds)
    rate = 60 / np.diff(times[inside]).mean() if inside.sum() > 1 else 60 / rr
    return Beats(times, kinds, np.full(count, np.nan), float(rate))


def paced_beats(
    rng: np.random.Generator, seconds: float, rr: float, atria: bool, ventricular: float, settings: CohortSettings
) -> Beats:
    """Draw a pacemaker's regular rhythm. With `atria`, P waves precede it; else the atria fibrillate."""
    count = int((seconds + 2 * MARGIN) / rr * 1.2) + 6
    times = -MARGIN - rng.uniform(0, rr) + np.arange(count) * rr + 0.001 * rng.standard_normal(count)
    kinds = np.full(count, PACED)
    low, high = settings.ventricular_coupling
    couplings = rng.random(count)
    for i in np.flatnonzero(_isolated(rng.random(count) < ventricular)):
        moved = times[i - 1] + max((low + (high - low) * couplings[i]) * rr, _SHORTEST_RR)
        if not _shows_prematurity(times[i - 1], moved, seconds):
            continue
        kinds[i] = VENTRICULAR_PREMATURE
        times[i + 1 :] -= times[i] - moved  # the device waits its interval after the beat it senses
        times[i] = moved
    p_times = np.where((kinds == PACED) & atria, times, np.nan)
    return Beats(times, kinds, p_times, 60 / rr)


def _shows_prematurity(before: float, time: float, seconds: float) -> bool:
    """
    Return whether a segment shows that a beat at `time` is premature.

    The segment must contain the beat before it and its own complex. Other premature beats are not made, since no
    segment would show their label. Outside the recording all are allowed.
    """
    if not -1 < time < seconds + 1:
        return True
    start = SEGMENT_SECONDS * (time // SEGMENT_SECONDS)
    return start <= before - _COMPLEX / 2 and time + _COMPLEX <= start + SEGMENT_SECONDS


def _isolated(wanted: np.ndarray) -> np.ndarray:
    """Return `wanted` without the first and last two beats, and without beats that directly follow another."""
    kept = wanted.copy()
    kept[:2] = kept[-2:] = False
    for i in np.flatnonzero(kept):
        if kept[i - 1]:
            kept[i] = False
    return kept


def _beside(marked: np.ndarray) -> np.ndarray:
    """Return the marked beats and their neighbours."""
    near = marked.copy()
    near[1:] |= marked[:-1]
    near[:-1] |= marked[1:]
    return near
