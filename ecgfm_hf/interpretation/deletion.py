"""Deleting parts of a recording, to see whether a map points at what a score rests on."""

import numpy as np

from .attribution import Attribution

_BIN_SECONDS = 0.04


def most_salient_times(attribution: Attribution, share: float = 0.1) -> np.ndarray:
    """
    (samples,) bool: the `share` of the attributed time, in bins of 40 ms, whose values are largest when summed over
    leads and samples. Signed values count with their sign: the question is what speaks for the label.

    Raises:
        ValueError: `share` is not between 0 and 1, or nothing was attributed.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, found: {share}")
    seen = np.isfinite(attribution.values).any(axis=0)
    if not seen.any():
        raise ValueError("the attribution is NaN everywhere")
    width = max(1, round(_BIN_SECONDS * attribution.sampling_rate))
    bins = np.arange(len(seen)) // width
    sums = np.bincount(bins, np.nansum(attribution.values, axis=0))
    sums[np.bincount(bins, seen) < width / 2] = -np.inf
    count = max(1, round(share * np.isfinite(sums).sum()))
    chosen = np.zeros(len(sums), dtype=bool)
    chosen[np.argsort(-sums, kind="stable")[:count]] = True
    return chosen[bins] & seen


def shifted_times(times: np.ndarray, within: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """
    (samples,) bool: `times`, moved in a circle by a random number of samples `within` a mask. A fair control: as many
    samples, in as many pieces of the same lengths, somewhere else.
    """
    places = np.flatnonzero(within)
    moved = np.zeros_like(times)
    moved[places] = np.roll(times[places], int(generator.integers(1, len(places))))
    return moved


def delete_times(signal: np.ndarray, times: np.ndarray) -> np.ndarray:
    """A copy of (leads, samples) in which a straight line bridges each piece of `times`, in all leads: no step."""
    if times.all():
        raise ValueError("all of the recording would be deleted: there is nothing to bridge between")
    out = np.array(signal, dtype=np.float64)
    kept = np.flatnonzero(~times)
    for lead in out:
        lead[times] = np.interp(np.flatnonzero(times), kept, lead[kept])
    return out


__all__ = ["delete_times", "most_salient_times", "shifted_times"]
