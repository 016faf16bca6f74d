"""
Measured features: what a reader measures on a 12-lead recording, as numbers for a logistic regression.

The waves are delineated by neurokit2. What cannot be measured is missing (NaN), and stays so here: whoever fits a model
imputes it, from its training recordings only.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..records.record import ECGRecord
from ..records.store_rows import record_from_row
from ..utils.resumable_parts import map_in_processes

if TYPE_CHECKING:
    from datasets import Dataset

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
# Leads that intervals are measured in: the median of what is found counts.
_MEASURED_LEADS = ("II", "I", "V1", "V5")
_INTERVALS = ("pr", "p_duration", "qrs", "qt", "qtc")
_RHYTHM = ("rate", "rr_variation", "rr_successive", "rr_shortest", "rr_longest", "beats_without_p")
_BOUNDS = ("P_Onsets", "P_Offsets", "R_Onsets", "R_Offsets", "T_Offsets")  # as neurokit2 names them
_AMPLITUDES = ("p", "r", "s", "st", "t")
FEATURES = (
    *_RHYTHM,
    *_INTERVALS,
    "axis_cos",
    "axis_sin",
    *(f"{wave}_{lead}" for wave in _AMPLITUDES for lead in LEADS),
    "age",
    "sex",
)
# Recordings that a process measures at a time.
_CHUNK = 16


def measure(record: ECGRecord) -> dict[str, float]:
    """
    Measure one recording.

    Args:
        record ([`ECGRecord`]): Any leads; those of `LEADS` that it does not have give missing features.

    Returns:
        The features by name, in the order of `FEATURES`: rate in beats per minute, intervals in ms (QTc by Fridericia),
        RR variation relative to the mean RR, amplitudes in mV from the median beat, the QRS axis as cosine and sine,
        age in years, sex (1 female, 0 male). NaN where it cannot be measured.
    """
    found = dict.fromkeys(FEATURES, np.nan)
    found["age"] = np.nan if record.age is None else float(record.age)
    found["sex"] = {"F": 1.0, "M": 0.0}.get(record.sex or "", np.nan)
    leads = {
        name: np.nan_to_num(np.asarray(signal, dtype=np.float64))
        for name, signal in zip(record.lead_names, record.signal, strict=True)
        if name in LEADS and np.isfinite(signal).mean() > 0.9 and np.nanstd(signal) > 1e-4
    }
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        _measure_waves(leads, float(record.sampling_rate), found)
    return found


def feature_table(
    dataset: "Dataset", *, num_proc: int = 1, advance: Callable[[int], object] | None = None
) -> np.ndarray:
    """
    Measure the recordings of a store.

    Args:
        dataset (`Dataset`): Rows of a store, with signals.
        num_proc (`int`): Processes.
        advance (callable, *optional*): Is given the number of recordings that were measured since the last call.

    Returns:
        `np.ndarray` (recordings, features) float64, in the order of rows and of `FEATURES`; NaN where missing.
    """
    values = np.full((len(dataset), len(FEATURES)), np.nan)
    chunks = [range(start, min(start + _CHUNK, len(dataset))) for start in range(0, len(dataset), _CHUNK)]

    def measured(rows: range) -> np.ndarray:
        found = [measure(record_from_row(dataset[row])) for row in rows]
        return np.array([[of[name] for name in FEATURES] for of in found])

    found = ((rows, measured(rows)) for rows in chunks)
    for rows, of in found if num_proc == 1 else map_in_processes(measured, chunks, num_proc):
        values[rows.start : rows.stop] = of
        if advance is not None:
            advance(len(rows))
    return values


def _measure_waves(leads: dict[str, np.ndarray], rate: float, found: dict[str, float]) -> None:
    import neurokit2

    cleaned = {name: np.asarray(neurokit2.ecg_clean(signal, sampling_rate=rate)) for name, signal in leads.items()}
    peaks = np.zeros(0, dtype=np.int64)
    for name in [lead for lead in (*_MEASURED_LEADS, *LEADS) if lead in cleaned]:
        peaks = _r_peaks(cleaned[name], rate)
        if len(peaks) >= 3:
            break
    if len(peaks) < 3:
        return
    intervals = np.diff(peaks) / rate
    found["rate"] = 60 / float(np.median(intervals))
    relative = intervals / intervals.mean()
    found["rr_variation"] = float(relative.std())
    found["rr_successive"] = float(np.sqrt(np.mean(np.square(np.diff(relative)))))
    found["rr_shortest"], found["rr_longest"] = float(relative.min()), float(relative.max())
    _measure_intervals(cleaned, peaks, rate, found)
    _measure_amplitudes(cleaned, peaks, rate, found)


def _r_peaks(signal: np.ndarray, rate: float) -> np.ndarray:
    import neurokit2

    try:
        _, about = neurokit2.ecg_peaks(signal, sampling_rate=rate)
    except (ValueError, IndexError, ZeroDivisionError):  # how neurokit2 fails where there is no beat
        return np.zeros(0, dtype=np.int64)
    return np.asarray(about["ECG_R_Peaks"], dtype=np.int64)


def _measure_intervals(cleaned: dict[str, np.ndarray], peaks: np.ndarray, rate: float, found: dict[str, float]) -> None:
    import neurokit2

    measured: dict[str, list[float]] = {name: [] for name in _INTERVALS}
    without_p = []
    for name in [lead for lead in _MEASURED_LEADS if lead in cleaned]:
        try:
            # Of its methods the one whose intervals follow the truth of synthetic recordings best, and the fastest.
            _, waves = neurokit2.ecg_delineate(cleaned[name], peaks, sampling_rate=rate, method="prominence")
        except (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError):  # as above
            continue
        at = {wave: np.full(len(peaks), np.nan) for wave in _BOUNDS}
        for wave, times in at.items():
            own = np.asarray(waves.get(f"ECG_{wave}", ()), dtype=np.float64)[: len(peaks)]
            times[: len(own)] = own / rate * 1000
        without_p.append(float(np.isnan(at["P_Onsets"]).mean()))
        for interval, first, last in (
            ("pr", "P_Onsets", "R_Onsets"),
            ("p_duration", "P_Onsets", "P_Offsets"),
            ("qrs", "R_Onsets", "R_Offsets"),
            ("qt", "R_Onsets", "T_Offsets"),
        ):
            measured[interval].append(float(np.nanmedian(at[last] - at[first])))
    for interval, values in measured.items():
        if np.isfinite(values).any():
            found[interval] = float(np.nanmedian(values))
    if without_p:
        found["beats_without_p"] = float(np.median(without_p))
    found["qtc"] = found["qt"] / np.cbrt(60 / found["rate"])


def _measure_amplitudes(
    cleaned: dict[str, np.ndarray], peaks: np.ndarray, rate: float, found: dict[str, float]
) -> None:
    def samples(seconds: float) -> int:
        return round(seconds * rate)

    before, after = samples(0.25), samples(0.40)
    areas: dict[str, float] = {}
    for name, signal in cleaned.items():
        whole = [peak for peak in peaks if before <= peak < len(signal) - after]
        if not whole:
            continue
        beat = np.median([signal[peak - before : peak + after] for peak in whole], axis=0)

        def part(start: float, stop: float, beat: np.ndarray = beat) -> np.ndarray:
            return beat[before + samples(start) : before + samples(stop)]

        beat = beat - np.median(part(-0.08, -0.05))
        complex_, t_wave = part(-0.06, 0.08, beat), part(0.14, 0.38, beat)
        areas[name] = float(complex_.sum())
        found[f"p_{name}"] = float(part(-0.22, -0.08, beat).max())
        found[f"r_{name}"], found[f"s_{name}"] = float(complex_.max()), float(complex_.min())
        found[f"st_{name}"] = float(part(0.08, 0.11, beat).mean())
        found[f"t_{name}"] = float(t_wave[np.argmax(np.abs(t_wave))])
    if {"I", "aVF"} <= areas.keys():
        axis = np.arctan2(areas["aVF"], areas["I"])
        found["axis_cos"], found["axis_sin"] = float(np.cos(axis)), float(np.sin(axis))


class Imputation:
    """
    Fills in missing features by the median, with a further column for each feature that was missing somewhere.

    Medians, limits (the outermost 1% are clipped) and the choice of columns come from the training recordings.

    Args:
        training (`np.ndarray` (n, features)): NaN where missing.
    """

    def __init__(self, training: np.ndarray):
        self._measured = np.isfinite(training).any(axis=0)
        training = training[:, self._measured]
        self._missing = np.isnan(training).any(axis=0)
        self._low, self._middle, self._high = np.nanquantile(training, [0.01, 0.5, 0.99], axis=0)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return features without missing values (m, features + indicators)."""
        features = features[:, self._measured]
        is_missing = np.isnan(features)
        filled = np.where(is_missing, self._middle, np.clip(features, self._low, self._high))
        return np.hstack([filled, is_missing[:, self._missing].astype(np.float64)])


__all__ = ["FEATURES", "LEADS", "Imputation", "feature_table", "measure"]
