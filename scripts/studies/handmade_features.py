"""
Features of a 12-lead recording as electrocardiography books name them: rates, intervals, axis, amplitudes.

A yardstick for learnt models, and no diagnostic tool: about 140 numbers from one median beat and the intervals between
beats, for a logistic regression. It knows the definitions of what it is to find, such as a PR interval above 200 ms.
Its own constants were chosen by comparing intervals with the truth of synthetic recordings of the split `valid`.
"""

import numpy as np
from scipy import ndimage, signal

RATE = 500.0  # Hz
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
BEFORE, AFTER = 0.35, 0.60  # s of the median beat about the R peak
_INDEPENDENT = (0, 1, 6, 7, 8, 9, 10, 11)
# Leads that look at neighbouring parts of the heart: an elevation counts where two of them agree.
_NEIGHBOURS = ((1, 5), (1, 2), (2, 5), (0, 4), (6, 7), (7, 8), (8, 9), (9, 10), (10, 11))


def handmade_features(recording: np.ndarray) -> dict[str, float]:
    """
    Features of one recording by name, all finite; 0 where one cannot be measured (see `beats`).

    Args:
        recording (`np.ndarray` (12, samples)): mV at 500 Hz, leads in the order of `LEADS`, 5 s or longer.

    Raises:
        `ValueError`: another shape.
    """
    recording = np.asarray(recording, dtype=np.float64)
    if recording.ndim != 2 or recording.shape[0] != 12 or recording.shape[1] < 5 * RATE:
        raise ValueError(f"a recording must have shape (12, {5 * RATE:.0f} or more), found: {recording.shape}")
    recording = np.nan_to_num(recording)
    clean = signal.sosfiltfilt(signal.butter(2, (0.5, 40), "bandpass", fs=RATE, output="sos"), recording)
    peaks = r_peaks(clean)
    features = {"beats": float(len(peaks)), **_spikes(recording, peaks)}
    beats = _beats(clean, peaks)
    if len(beats) < 2:
        return _complete(features)
    alike, median = _dominant(beats)
    features |= _rhythm(peaks, alike, beats)
    features |= _waves(median, 60 / max(features["rate"], 20.0))
    features |= _atria(clean, peaks, beats[alike], median)
    return _complete(features)


def feature_table(recordings: "list[np.ndarray]") -> tuple[np.ndarray, tuple[str, ...]]:
    """Features (recordings, features) of several, and their names."""
    rows = [handmade_features(recording) for recording in recordings]
    names = tuple(_NAMES)
    return np.array([[row[name] for name in names] for row in rows]), names


def r_peaks(clean: np.ndarray) -> np.ndarray:
    """Samples (beats,) at which QRS complexes peak, in all leads together."""
    band = signal.sosfiltfilt(signal.butter(2, (6, 28), "bandpass", fs=RATE, output="sos"), clean[list(_INDEPENDENT)])
    energy = ndimage.uniform_filter1d(np.sqrt(np.square(band).sum(axis=0)), _samples(0.09))
    # The usual height of a complex: the largest in each 2 s, which contain one complex at 30 beats per minute.
    width = _samples(2.0)
    tops = [energy[start : start + width].max() for start in range(0, len(energy) - width + 1, width)]
    height = float(np.median(tops))
    found, _ = signal.find_peaks(energy, height=0.38 * height, distance=_samples(0.24), prominence=0.25 * height)
    return found


def _beats(clean: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """(beats, 12, samples) of those that are wholly in the recording, levelled before the P wave's end."""
    before, after = _samples(BEFORE), _samples(AFTER)
    whole = [peak for peak in peaks if before <= peak <= clean.shape[1] - after]
    return np.array([clean[:, peak - before : peak + after] for peak in whole]).reshape(-1, 12, before + after)


def _dominant(beats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which beats look like most others, and their median (12, samples), aligned to each other."""
    core = slice(_samples(BEFORE - 0.10), _samples(BEFORE + 0.14))
    shapes = beats[:, _INDEPENDENT, core].reshape(len(beats), -1)
    shapes = shapes - shapes.mean(axis=1, keepdims=True)
    shapes /= np.linalg.norm(shapes, axis=1, keepdims=True) + 1e-9
    likeness = shapes @ shapes.T
    centre = int(np.argmax(np.median(likeness, axis=1)))
    alike = likeness[centre] > 0.85
    # Peaks of the energy jitter by some samples: shift each to where it fits the centre best.
    reference = beats[centre][list(_INDEPENDENT)]
    aligned = []
    for beat in beats[alike]:
        shifts = range(-8, 9)
        fits = [np.sum(reference[:, core] * np.roll(beat[list(_INDEPENDENT)], s, axis=1)[:, core]) for s in shifts]
        aligned.append(np.roll(beat, shifts[int(np.argmax(fits))], axis=1))
    return alike, np.median(aligned, axis=0)


def _rhythm(peaks: np.ndarray, alike: np.ndarray, beats: np.ndarray) -> dict[str, float]:
    """Rates, irregularity, premature beats and what they look like."""
    rr = np.diff(peaks) / RATE
    usual = float(np.median(rr))
    ratio = rr / usual
    before, after = ratio[:-1], ratio[1:]
    early = (before < 0.87) & (after > before + 0.08)
    rate = 60 / usual
    size = np.ptp(beats, axis=2).sum(axis=1)
    own = np.median(size[alike])
    core = beats[:, :, _samples(BEFORE - 0.15) : _samples(BEFORE + 0.2)]
    vector = np.sqrt(np.square(core).sum(axis=1))
    width = (vector > 0.3 * vector.max(axis=1, keepdims=True)).mean(axis=1) * 0.35
    other = ~alike
    return {
        "rate": rate,
        "rate_above_100": max(0.0, rate - 100),
        "rate_below_60": max(0.0, 60 - rate),
        "is_above_100": float(rate > 100),
        "is_below_60": float(rate < 60),
        "mean_rate": 60 / float(rr.mean()),
        "rr_cv": float(rr.std() / rr.mean()),
        "rr_mad": float(np.median(np.abs(ratio - 1))),
        "rr_successive": float(np.median(np.abs(np.diff(ratio)))) if len(ratio) > 1 else 0.0,
        "rr_successive_rms": float(np.sqrt(np.mean(np.square(np.diff(ratio))))) if len(ratio) > 1 else 0.0,
        "rr_least": float(ratio.min()),
        "rr_most": float(ratio.max()),
        "early": float(early.sum()),
        "any_early": float(early.any()),
        "other_beats": float(other.sum()),
        "any_other": float(other.any()),
        "other_share": float(other.mean()),
        "other_width": float(width[other].mean() - width[alike].mean()) if other.any() else 0.0,
        "other_size": float(size[other].mean() / own - 1) if other.any() else 0.0,
        "early_without_other": float(early.sum() - other.sum()),
        "early_alike": float(early.any() and not other.any()),
    }


def _waves(median: np.ndarray, rr: float) -> dict[str, float]:
    """Intervals, axis and amplitudes of the median beat (12, samples)."""
    vector, level = _vector(median)
    median = median - level[:, None]
    onset, end = _qrs(median)
    features = {"qrs": (end - onset) / RATE * 1000}
    features["qrs_above_120"] = max(0.0, features["qrs"] - 120)
    features["is_wide"] = float(features["qrs"] >= 120)

    p_window = slice(_samples(0.02), max(onset - _samples(0.02), _samples(0.06)))
    p = ndimage.gaussian_filter1d(vector[p_window], 3)
    # The end of the T wave before may be higher than the P wave, but is no peak of its own.
    tops, about = signal.find_peaks(p, prominence=0.0)
    p_peak = int(tops[np.argmax(about["prominences"])]) if len(tops) else int(np.argmax(p))
    floor = float(p[max(0, p_peak - _samples(0.09)) : p_peak + 1].min())
    rise = p[: p_peak + 1] > floor + 0.15 * (p[p_peak] - floor)
    p_onset = p_peak - int(np.argmin(rise[::-1])) + 1 if not rise.all() else 0
    features["pr"] = (onset - p_window.start - p_onset) / RATE * 1000
    features["pr_above_200"] = max(0.0, features["pr"] - 200)
    features["is_long_pr"] = float(features["pr"] > 200)
    features["p_peak_to_qrs"] = (onset - p_window.start - p_peak) / RATE * 1000
    features["p_size"] = float(p[p_peak] - floor)

    t_start = min(end + _samples(0.06), median.shape[1] - _samples(0.12))
    t_stop = min(median.shape[1], onset + _samples(min(0.62, 0.78 * rr + 0.06)))
    t_window = slice(t_start, max(t_stop, t_start + _samples(0.10)))
    t = ndimage.gaussian_filter1d(vector[t_window], 5)
    t_peak = int(np.argmax(t))
    slope = np.diff(t[t_peak:])
    # The tangent at the steepest descent meets the base line where the T wave ends.
    if len(slope) > 2 and slope.min() < 0:
        steepest = int(np.argmin(slope))
        t_end = t_peak + steepest + (t[t_peak + steepest] - min(t.min(), 0.0)) / -slope[steepest]
    else:
        t_end = float(len(t))
    t_end = min(t_end, len(t) + _samples(0.05))
    qt = (t_window.start + t_end - onset) / RATE
    features["qt"] = qt * 1000
    features["qtc"] = qt / np.cbrt(rr) * 1000
    features["qtc_bazett"] = qt / np.sqrt(rr) * 1000
    features["jt_corrected"] = (qt - (end - onset) / RATE) / np.cbrt(rr) * 1000
    features["t_peak_corrected"] = (t_window.start + t_peak - onset) / RATE / np.cbrt(rr) * 1000
    features["qtc_above_460"] = max(0.0, features["qtc"] - 460)

    qrs = median[:, onset : end + 1]
    area = qrs.sum(axis=1) / RATE * 1000
    axis = float(np.degrees(np.arctan2((area[1] + area[2]) / np.sqrt(3), area[0])))
    features |= {
        "axis": axis,
        "axis_cos": float(np.cos(np.radians(axis))),
        "axis_sin": float(np.sin(np.radians(axis))),
        "is_left": float(-120 < axis < -30),
        "is_right": float(axis > 90),
        "left_by": float(np.clip(-30 - axis, -40, 40)),
        "right_by": float(np.clip(axis - 90, -40, 40)),
    }
    late = median[:, max(end - _samples(0.045), onset) : end + 1].mean(axis=1)
    st_at = min(end + _samples(0.06), median.shape[1] - 1)
    st = median[:, max(st_at - 3, 0) : st_at + 4].mean(axis=1)
    around = slice(max(0, t_window.start + t_peak - _samples(0.03)), t_window.start + t_peak + _samples(0.03))
    t_size = median[:, around].mean(axis=1)
    p_at = p_window.start + p_peak
    p_size = median[:, max(0, p_at - 5) : p_at + 6].mean(axis=1)
    for number, lead in enumerate(LEADS):
        features |= {
            f"r_{lead}": float(qrs[number].max()),
            f"s_{lead}": float(qrs[number].min()),
            f"area_{lead}": float(area[number]),
            f"late_{lead}": float(late[number]),
            f"st_{lead}": float(st[number]),
            f"t_{lead}": float(t_size[number]),
            f"p_{lead}": float(p_size[number]),
        }
    elevated = max(min(st[a], st[b]) for a, b in _NEIGHBOURS)
    inverted = min(max(t_size[a], t_size[b]) for a, b in _NEIGHBOURS)
    features |= {
        "st_shared": float(elevated),
        "is_st_elevated": float(elevated >= 0.1),
        "t_shared": float(inverted),
        "is_t_inverted": float(inverted <= -0.1),
        "late_v1_wide": float(late[6] * (features["qrs"] >= 115)),
        "late_v6_wide": float(late[11] * (features["qrs"] >= 115)),
    }
    return features


def _vector(median: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Length (samples,) of the leads' vector above the base line, and that base line (12,): the flattest stretch."""
    width = _samples(0.03)
    independent = list(_INDEPENDENT)
    spread = np.sqrt(ndimage.uniform_filter1d(np.square(np.gradient(median[independent], axis=1)).sum(axis=0), width))
    search = slice(_samples(BEFORE - 0.16), _samples(BEFORE - 0.03))
    flat = search.start + int(np.argmin(spread[search]))
    level = median[:, flat - width // 2 : flat + width // 2 + 1].mean(axis=1)
    return np.sqrt(np.square(median[independent] - level[independent, None]).sum(axis=0)), level


def _qrs(median: np.ndarray) -> tuple[int, int]:
    """First and last sample of the QRS complex: where the leads together move fast."""
    steps = np.gradient(median[list(_INDEPENDENT)], axis=1)
    speed = ndimage.gaussian_filter1d(np.sqrt(np.square(steps).sum(axis=0)), 2)
    at = _samples(BEFORE)
    near = slice(at - _samples(0.13), at + _samples(0.16))
    fast = np.flatnonzero(speed[near] > 0.10 * speed[near].max()) + near.start
    centre = near.start + int(np.argmax(speed[near]))
    # Gaps of up to 20 ms are notches of one complex.
    gaps = np.flatnonzero(np.diff(fast) > _samples(0.020))
    bounds = np.concatenate([[0], gaps + 1, [len(fast)]])
    group = int(np.searchsorted(fast[bounds[1:] - 1], centre))
    return int(fast[bounds[group]]), int(fast[bounds[group + 1] - 1])


def _atria(clean: np.ndarray, peaks: np.ndarray, beats: np.ndarray, median: np.ndarray) -> dict[str, float]:
    """Whether there are P waves, the same before every beat, or fibrillation between the beats."""
    window = slice(_samples(0.02), _samples(BEFORE - 0.06))
    parts = beats[:, _INDEPENDENT, window]
    parts = parts - parts.mean(axis=2, keepdims=True)
    usual = median[list(_INDEPENDENT), window]
    usual = usual - usual.mean(axis=1, keepdims=True)
    likeness = (parts * usual).sum(axis=(1, 2))
    likeness /= np.linalg.norm(parts, axis=(1, 2)) * np.linalg.norm(usual) + 1e-9

    # What remains between complexes once the median beat is taken away.
    rest = clean.copy()
    before, after = _samples(BEFORE), _samples(AFTER)
    for number, peak in enumerate(peaks):
        start, stop = max(0, peak - before), min(clean.shape[1], peak + after)
        if number:
            start = max(start, int(peaks[number - 1] + 0.65 * (peak - peaks[number - 1])))
        if number + 1 < len(peaks):
            stop = min(stop, int(peak + 0.65 * (peaks[number + 1] - peak)))
        rest[:, start:stop] -= median[:, start - peak + before : stop - peak + before]
    band = signal.sosfiltfilt(signal.butter(2, (3.5, 10), "bandpass", fs=RATE, output="sos"), rest)
    high = signal.sosfiltfilt(signal.butter(2, (14, 30), "bandpass", fs=RATE, output="sos"), rest)
    quiet = np.ones(clean.shape[1], dtype=bool)
    for peak in peaks:
        quiet[max(0, peak - _samples(0.08)) : peak + _samples(0.16)] = False
    if quiet.sum() < _samples(0.3):
        quiet[:] = True
    f_waves, noise = (np.median(np.abs(b[:, quiet]), axis=1) for b in (band, high))
    return {
        "p_likeness": float(np.median(likeness)),
        "p_likeness_least": float(likeness.min()),
        "p_power": float(np.sqrt(np.square(usual).mean())),
        "f_waves_ii": float(f_waves[1]),
        "f_waves_v1": float(f_waves[6]),
        "f_waves": float(f_waves.mean()),
        "f_waves_to_noise": float(np.log(f_waves.mean() / (noise.mean() + 1e-4) + 1e-3)),
    }


def _spikes(recording: np.ndarray, peaks: np.ndarray) -> dict[str, float]:
    """How far single samples stand out: a pacemaker's pulses."""
    independent = recording[list(_INDEPENDENT)]
    sharp = np.abs(independent - ndimage.median_filter(independent, size=(1, 7))).sum(axis=0)
    usual = float(np.median(sharp)) + 1e-4
    before = [sharp[max(0, p - _samples(0.16)) : p + _samples(0.02)].max(initial=0.0) for p in peaks] or [0.0]
    return {
        "spike": float(np.log1p(np.median(before) / usual)),
        "spike_mv": float(np.median(before)),
        "spike_share": float(np.mean(np.array(before) > 12 * usual)),
    }


def _samples(seconds: float) -> int:
    return round(seconds * RATE)


def _complete(features: dict[str, float]) -> dict[str, float]:
    """All names, finite: what was not measured is 0."""
    return {name: float(np.nan_to_num(features.get(name, 0.0), posinf=0.0, neginf=0.0)) for name in _NAMES}


_BEATLESS = ("beats", "spike", "spike_mv", "spike_share")


def _names() -> tuple[str, ...]:
    """Names of all features, as a plain made-up beat has them."""
    beat = np.zeros((12, _samples(BEFORE + AFTER)))
    at = np.arange(beat.shape[1]) / RATE - BEFORE
    beat += np.exp(-0.5 * (at / 0.015) ** 2) + 0.2 * np.exp(-0.5 * ((at - 0.3) / 0.04) ** 2)
    beats = np.stack([beat] * 3)
    peaks = np.array([300, 700, 1100])
    found = [_rhythm(peaks, np.ones(3, dtype=bool), beats), _waves(beat, 0.8)]
    found.append(_atria(np.tile(beat, 4)[:, :1500], peaks, beats, beat))
    return (*_BEATLESS, *(name for part in found for name in part))


_NAMES = _names()
