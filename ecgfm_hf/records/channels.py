"""
From the channels of a file to a recording: which of them are ECG leads, what they are called, and where the ECG ends.

Every reader returns `Channels`, as its file holds them; `record_of` makes the recording of them. Names, renaming,
channels that are no ECG, and calibration pulses are handled here, for every format alike.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np

from ..feature_extraction_ecgfm import STANDARD_LEADS, millivolts_per_unit
from .record import ECGReadError, ECGRecord, file_stem, standard_or_own_name

# Signals that monitors and polysomnographs record beside an ECG, some of them in millivolts too.
_OTHER_SIGNAL = re.compile(
    r"resp\w*|rr|imp\w*|thor\w*|abd\w*|airflow|flow|abp\w*|art\w*|bp|nibp\w*|cvp\w*|pap|icp|p[1-6]|pleth\w*|ppg\w*"
    r"|spo2|sao2|so2|o2|co2|etco2|hr|pulse|temp\w*|eeg\w*|emg\w*|eog\w*|acc\w*|gyro\w*|sound|pcg\w*|pos\w*|marker\w*"
    r"|annotation\w*|edfannotations|status|trigger\w*|event\w*|pace\w*|qrs|beat\w*|battery|time|timestamp",
    re.IGNORECASE,
)


Fault = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Channels:
    """
    What a reader finds in a file, before leads are chosen.

    Attributes:
        path: the file, as the caller gave it.
        names: of the channels, as in the file; "" where it gives none.
        samples: (channels, samples), or a row per channel where they differ in length.
        gain, baseline, units: one per channel, as in [`ECGRecord`].
        rates: Hz, one for all or one per channel.
        faults: what is wrong with a channel, as (code, description) of [`ECGReadError`]; empty if nothing is.
        warnings: about the file as a whole.
        recording_id: by default the file's name without its suffix.
        missing_value, age, sex, diagnoses, time: as in [`ECGRecord`].
    """

    path: str
    names: Sequence[str]
    samples: np.ndarray | Sequence[np.ndarray]
    gain: Sequence[float] | np.ndarray
    baseline: Sequence[float] | np.ndarray
    units: Sequence[str]
    rates: float | Sequence[float]
    faults: Sequence[Fault | None] = ()
    warnings: Sequence[str] = ()
    recording_id: str | None = None
    missing_value: int | None = None
    age: float | None = None
    sex: str | None = None
    diagnoses: Sequence[str] = ()
    time: datetime | None = None


def record_of(
    found: Channels, rename_leads: Mapping[str, str] | None = None, leads: Sequence[str] | None = None
) -> ECGRecord:
    """
    Return the recording in these channels.

    Args:
        found: from a reader.
        rename_leads: leads by the names that the file has for them (`{"ECG": "I"}`). Names that the file does not have
            are ignored, since one mapping may serve many files.
        leads: which leads to keep, by their names after renaming; by default all that are voltages at the ECG's rate.

    Raises:
        ECGReadError: a lead that is kept cannot be used, `leads` has one that the file does not have, or nothing is
            left.
    """
    rates = tuple(found.rates) if isinstance(found.rates, Sequence) else (float(found.rates),) * len(found.names)
    renamed = () if rename_leads is None else tuple(rename_leads.items())
    try:
        choice = _choose(
            tuple(found.names),
            tuple(found.units),
            rates,
            tuple(found.faults),
            renamed,
            None if leads is None else tuple(leads),
        )
    except ECGReadError as error:
        raise ECGReadError(f"{found.path}: {error}", error.code) from error
    rows = list(choice.rows)
    samples = found.samples
    gain, baseline = np.asarray(found.gain, dtype=np.float64), np.asarray(found.baseline, dtype=np.float64)
    units = tuple(found.units)
    if len(rows) < len(found.names) or not isinstance(samples, np.ndarray):
        chosen = [samples[row] for row in rows]
        if len({len(row) for row in chosen}) > 1:
            code = "leads of different lengths or rates"
            listed = ", ".join(f"{name} {len(row)}" for name, row in zip(choice.names, chosen, strict=True))
            raise ECGReadError(f"{found.path}: leads of different lengths ({listed} samples) are not supported", code)
        samples, gain, baseline, units = np.stack(chosen), gain[rows], baseline[rows], tuple(units[row] for row in rows)
    elif len(samples) != len(found.names):
        raise ECGReadError(f"{found.path}: found {len(samples)} rows of samples for {len(found.names)} lead names")
    warnings, start_s = (*found.warnings, *choice.warnings), 0.0
    pulse = find_calibration_pulse(samples, gain, baseline, units, choice.names, rates[rows[0]])
    if pulse is not None:
        samples, first, warning = _without_pulse(samples, pulse, rates[rows[0]])
        warnings, start_s = (*warnings, warning), first / rates[rows[0]]
    return ECGRecord(
        recording_id=file_stem(found.path) if found.recording_id is None else found.recording_id,
        path=found.path,
        samples=samples,
        gain=gain,
        baseline=baseline,
        units=units,
        sampling_rate=rates[rows[0]],
        lead_names=choice.names,
        missing_value=found.missing_value,
        age=found.age,
        sex=found.sex,
        diagnoses=tuple(found.diagnoses),
        time=found.time,
        start_s=start_s,
        warnings=warnings,
    )


# Names


class _Choice(NamedTuple):
    rows: tuple[int, ...]
    names: tuple[str, ...]
    warnings: tuple[str, ...]


# A data set has few layouts, for millions of recordings.
@lru_cache(maxsize=256)
def _choose(
    names: tuple[str, ...],
    units: tuple[str, ...],
    rates: tuple[float, ...],
    faults: tuple[Fault | None, ...],
    renamed: tuple[tuple[str, str], ...],
    leads: tuple[str, ...] | None,
) -> _Choice:
    """Choose the leads among channels. `ECGReadError`, without a path, where that is impossible."""
    own = [name.strip() or f"channel {number}" for number, name in enumerate(names, start=1)]
    called, warnings = _renamed(own, dict(renamed))
    rows = list(range(len(names)))
    if leads is not None:
        rows = _picked(called, leads)
    reasons: dict[int, str] = {}
    for row in rows:
        fault = faults[row] if faults else None
        if fault is None:
            fault = _no_voltage(units[row])
        is_free = called[row] not in STANDARD_LEADS and leads is None  # to be left out
        if fault is None and is_free and _OTHER_SIGNAL.fullmatch(re.sub(r"[\s_.:-]", "", own[row])):
            fault = "lead names", "not an ECG signal"
        if fault is not None:
            if not is_free:
                raise ECGReadError(f"lead {called[row]}: {fault[1]}", fault[0])
            reasons[row] = fault[1]
    rows = [row for row in rows if row not in reasons]
    if not rows:
        listed = "; ".join(f"{own[row]}: {why}" for row, why in reasons.items())
        raise ECGReadError(f"no channel is an ECG lead ({listed})", "no leads")
    rate = _ecg_rate([rates[row] for row in rows], [called[row] in STANDARD_LEADS for row in rows])
    for row in rows:
        if rates[row] != rate:
            reasons[row] = f"{rates[row]:g} Hz, where the ECG has {rate:g} Hz"
            if leads is not None:
                raise ECGReadError(
                    f"lead {called[row]}: {reasons[row]}; pick leads of one rate", "leads of different lengths or rates"
                )
    warnings += [f"channel {own[row]!r} is excluded: {reasons[row]}" for row in sorted(reasons)]
    rows = [row for row in rows if row not in reasons]
    return _Choice(tuple(rows), tuple(called[row] for row in rows), tuple(warnings))


def _renamed(own: list[str], renamed: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the channels' names after renaming, each lead in its usual spelling, and what was renamed."""
    called, warnings = [], []
    exact = {name.strip(): lead for name, lead in renamed.items()}
    folded = {name.casefold(): lead for name, lead in exact.items()}
    for number, name in enumerate(own, start=1):
        lead = exact.get(name, folded.get(name.casefold()))
        if lead is not None:
            warnings.append(f"channel {name!r} is read as lead {standard_or_own_name(lead)} (rename_leads)")
        usual = standard_or_own_name(name if lead is None else lead)
        # Two channels of one unknown name are different channels; two leads of one name are a contradiction.
        called.append(f"{usual} (channel {number})" if usual in called and usual not in STANDARD_LEADS else usual)
    for lead in STANDARD_LEADS:
        if called.count(lead) > 1:
            both = ", ".join(repr(name) for name, usual in zip(own, called, strict=True) if usual == lead)
            raise ECGReadError(f"lead {lead} occurs twice (channels {both})", "lead names")
    return called, warnings


def _picked(called: list[str], leads: Sequence[str]) -> list[int]:
    rows = []
    for name in map(standard_or_own_name, leads):
        if name not in called:
            raise ECGReadError(f"found no lead {name!r} to pick; the file has {', '.join(called)}", "lead names")
        rows.append(called.index(name))
    return sorted(set(rows))


@lru_cache(maxsize=256)
def _no_voltage(unit: str) -> Fault | None:
    if not unit.strip():
        return "unknown unit", f"found the unit {unit!r}, expected one of a voltage"
    try:
        millivolts_per_unit(unit)
    except ValueError as error:
        return "unknown unit", str(error)
    return None


def _ecg_rate(rates: list[float], standard: list[bool]) -> float:
    """Return the sampling rate of most standard leads, or of most channels where there are none."""
    counts = Counter(rate for rate, lead in zip(rates, standard, strict=True) if lead or not any(standard))
    return max(counts, key=lambda rate: (counts[rate], rate))


# Calibration pulses

_PULSE_MV, _PULSE_SECONDS = 1.0, 0.2
_BASELINE_SECONDS = 0.1  # of the flat line on either side of a pulse
_NEAR_END = 2.0  # seconds from an end within which a pulse is looked for
_LEVEL_ERROR, _NOISE = 0.06, 0.03  # mV, of the pulse's height, and around its levels
# In leads that were computed from I and II the pulses of these cancel or add.
_COMPUTED_HEIGHTS = {"III": 0.0, "aVR": -1.0, "aVL": 0.5, "aVF": 0.5}


class Pulse(NamedTuple):
    """A calibration pulse: its samples `start` to `end`, and `first` to `last` with the flat baseline around it."""

    first: int
    start: int
    end: int
    last: int


def find_calibration_pulse(
    samples: np.ndarray,
    gain: np.ndarray,
    baseline: np.ndarray,
    units: Sequence[str],
    names: Sequence[str],
    rate: float,
) -> Pulse | None:
    """
    Find a pulse of 1 mV and 200 ms on a flat baseline, at the same samples of all leads, near an end of a recording.

    Electrocardiographs of Philips end each recording with one. No heartbeat looks like it: it is rectangular, and all
    leads have it at once.

    Args:
        samples: (leads, samples), as stored.
        gain, baseline, units: one per lead, as in [`ECGRecord`].
        names: of the leads, in their usual spelling.
        rate: Hz.

    Returns:
        Where it is, or None.
    """
    window, length = round(_NEAR_END * rate), round(_PULSE_SECONDS * rate)
    step = length // 4
    if step < 2 or samples.shape[1] <= window + length:
        return None
    height = abs(float(gain[0])) / millivolts_per_unit(units[0]) * _PULSE_MV
    tolerance = (_LEVEL_ERROR + _NOISE) / _PULSE_MV * height
    for offset in (samples.shape[1] - window, 0):
        # Points 50 ms apart: between the line and the plateau two neighbours, or the next but one, differ by 1 mV.
        points = samples[0, offset : offset + window : step].tolist()  # few: faster than arrays
        if max(points) - min(points) < height - tolerance:
            continue
        pairs = chain(pairwise(points), zip(points, points[2:], strict=False))
        if not any(abs(abs(after - before) - height) <= tolerance for before, after in pairs):
            continue
        scale = np.array([millivolts_per_unit(unit) for unit in units]) / gain
        part = (samples[:, offset : offset + window] - baseline[:, None]) * scale[:, None]
        pulse = _pulse_in(part, names, rate)
        if pulse is not None:
            return Pulse(*(offset + index for index in pulse))
    return None


def _pulse_in(part: np.ndarray, names: Sequence[str], rate: float) -> Pulse | None:
    """Find the pulse in (leads, samples) in mV."""
    count = part.shape[1]
    shortest, longest = round(0.9 * _PULSE_SECONDS * rate), round(1.1 * _PULSE_SECONDS * rate)
    edge, base = max(2, round(0.01 * rate)), max(3, round(0.03 * rate))
    steps = part[0, edge:] - part[0, :-edge]
    for rise in np.flatnonzero(steps > 0.5 * _PULSE_MV).tolist():
        before = part[0, rise]
        above = part[0, rise:] > before + 0.5 * _PULSE_MV
        start = rise + int(above.argmax())
        high = above[start - rise :]
        end = start + (int((~high).argmax()) if not high.all() else len(high))
        if not shortest <= end - start <= longest or start < base:
            continue
        plateau, low = part[:, start + edge : end - edge], part[:, start - base : start - edge // 2]
        after = part[:, end + edge : end + base]
        level = low.mean(axis=1)
        height = plateau.mean(axis=1) - level
        flat = [plateau, low, *([after] if after.shape[1] else [])]
        if any((np.abs(piece - piece.mean(axis=1)[:, None]) > _NOISE).any() for piece in flat):
            continue
        if after.shape[1] and (np.abs(after.mean(axis=1) - level) > _LEVEL_ERROR).any():
            continue
        usual = np.abs(height - _PULSE_MV) <= _LEVEL_ERROR
        computed = [
            abs(height[row] - _COMPUTED_HEIGHTS.get(name, 1.0)) <= _LEVEL_ERROR for row, name in enumerate(names)
        ]
        if not (usual.all() or (all(computed) and {"I", "II"} <= set(names))):
            continue
        rests = (np.abs(part - level[:, None]) <= _NOISE).all(axis=0)
        first, last = start, end
        while first > 0 and (rests[first - 1] or start - first < edge // 2):
            first -= 1
        while last < count and (rests[last] or last - end < edge // 2):
            last += 1
        # Towards the recording's middle a flat line further away may be the patient's.
        most = round(_BASELINE_SECONDS * rate)
        if first > 0 or last == count:
            first = max(first, start - most)
        if last < count or first == 0:
            last = min(last, end + most)
        return Pulse(first, start, end, last)
    return None


def _without_pulse(samples: np.ndarray, pulse: Pulse, rate: float) -> tuple[np.ndarray, int, str]:
    """Return the longer part of the recording before or after a pulse, its first sample's number, and a warning."""
    keep = slice(0, pulse.first) if pulse.first >= samples.shape[1] - pulse.last else slice(pulse.last, None)
    kept = samples[:, keep]
    seconds = (samples.shape[1] - kept.shape[1]) / rate
    where = "end" if keep.start == 0 else "beginning"
    return (
        kept,
        keep.start,
        (
            f"calibration pulse of 1 mV in all leads at {pulse.start / rate:.3f} to {pulse.end / rate:.3f} s: "
            f"{math.ceil(seconds * 1000) / 1000:g} s at the {where} of the recording are excluded"
        ),
    )


__all__ = ["Channels", "Pulse", "find_calibration_pulse", "record_of"]
