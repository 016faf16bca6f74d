"""
Preprocessing of ECG recordings: the only definition in this package, for training as for inference.

Steps: order leads by name, handle bad samples, resample, standardise each lead over the whole recording, cut into
segments. Values are equal to the original implementation (fairseq-signals). On the Hub this file is remote code, so it
needs only numpy and transformers.
"""

import contextlib
import difflib
import math
import numbers
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Of a recording: one for all leads, one for each, or unknown.
Units = str | Sequence[str] | None

STANDARD_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
# Leads that files have besides the twelve: posterior and right-sided chest leads, Frank's X, Y, Z, monitoring leads
# (Mason-Likar, MCL, bipolar chest), EASI, Cabrera's inverted aVR. None of these names can mean a standard lead. Other
# channels are ignored with a warning, unless one of them may be a missing lead.
OTHER_LEADS = (
    *("V7", "V8", "V9", *(f"V{i}R" for i in range(1, 10)), "VX", "VY", "VZ", "X", "Y", "Z", "MLI", "MLII", "MLIII"),
    *(*(f"MCL{i}" for i in range(1, 7)), "CM2", "CM5", "CC5", "CS5", "ES", "AS", "AI", "-aVR"),
)
_CANONICAL_NAMES = {name.upper(): name for name in (*STANDARD_LEADS, *OTHER_LEADS)}
# I, II and III in Spanish, Portuguese and French, where D is for "derivation".
_CANONICAL_NAMES |= {"DI": "I", "DII": "II", "DIII": "III", "D1": "I", "D2": "II", "D3": "III"}
# Prefixes of lead names in files. A hyphen before the name and after a space is a minus: "Lead -aVR" is aVR inverted.
_PREFIX = re.compile(r"(?:MDC_ECG_LEAD_|(?:ECG|EKG|LEAD)(?:-\s*|[\s_:.]*(?:-\s+)?))+(?=[A-Z-])", re.IGNORECASE)
_MILLIVOLTS = {"v": 1e3, "mv": 1.0, "uv": 1e-3, "µv": 1e-3, "nv": 1e-6}
_MILLIVOLTS |= {"volt": 1e3, "millivolt": 1.0, "microvolt": 1e-3, "nanovolt": 1e-6}

# Each limb lead as a weighted sum of two others, and the formula in words where it is used as a check.
_LIMB_LEADS: dict[str, dict[str, float]] = {
    "I": {"II": 1, "III": -1},
    "II": {"I": 1, "III": 1},
    "III": {"II": 1, "I": -1},
    "aVR": {"I": -0.5, "II": -0.5},
    "aVL": {"I": 1, "II": -0.5},
    "aVF": {"II": 1, "I": -0.5},
}
_CHECKS = {"III": "II - I (Einthoven)", "aVR": "-(I + II) / 2 (Goldberger)"}
_CHECKS |= {"aVL": "I - II / 2 (Goldberger)", "aVF": "II - I / 2 (Goldberger)"}

POLICIES: dict[str, tuple[str, ...]] = {
    "missing_leads": ("error", "zero", "derive"),
    "nan_samples": ("error", "zero", "interpolate"),
    "constant_leads": ("zero", "error"),
    "short_recordings": ("error", "pad"),
}
# A property of the model, as the sampling rate is: no call can change it.
STANDARDIZATIONS = ("recording", "all_leads", "none")
_SETTINGS = ("sampling_rate", "lead_names", "segment_seconds", "standardize", *POLICIES)
# Keys of preprocessor_config.json that transformers itself writes or reads.
_HF_KEYS = {"feature_extractor_type", "auto_map", "processor_class", "transformers_version", "custom_pipelines"}

# No ECG recorder is slower or faster. A period, a rate in kHz or a number of samples is outside this range.
_MIN_RATE, _MAX_RATE = 25, 50_000
_MIN_MV, _MAX_MV = 0.01, 50.0  # of the widest lead, peak to peak
# How the warning ends where more than half of the leads are flat, or 0 for being missing.
MOST_LEADS_EMPTY = "calibration and thresholds are not valid for this recording"
# Squares of larger or smaller values would over- or underflow. In no unit are such values voltages.
LARGEST_SAMPLE, SMALLEST_RANGE = 1e100, 1e-100


class PreparedRecording(NamedTuple):
    segments: np.ndarray  # (n, leads, samples) float32, standardised
    valid_samples: int  # of each segment: fewer than all where a short recording was padded
    warnings: list[str]
    mean: np.ndarray  # (leads,) float64, what standardisation subtracted: in mV if units were given, else in theirs
    std: np.ndarray  # (leads,) float64, what it divided by; 0 for a lead that is 0


@contextlib.contextmanager
def small_buffers() -> Iterator[None]:
    """
    Have numpy work with small buffers: several times faster where a row of samples and a number are combined.

    Since 2.3, numpy fills its buffer with copies of the number where the row is shorter, which it is by default below
    8,192 samples. Results are the same.
    """
    before = np.setbufsize(512)
    try:
        yield
    finally:
        np.setbufsize(before)


def canonical_lead_name(name: str) -> str:
    """
    Return the usual spelling of a lead's name, one of `STANDARD_LEADS` or `OTHER_LEADS`.

    Case, blanks and a prefix `lead`, `ECG`, `EKG` or `MDC_ECG_LEAD_` are ignored (`" avr"`, `"Lead II"`, `"ECG_V1"`);
    `DI` is I. Any other name is a `ValueError` that quotes it.
    """
    canonical = _canonical_or_none(name) if isinstance(name, str) else None
    if canonical is not None:
        return canonical
    raise ValueError(f"unknown lead name {name!r}; the standard leads are {', '.join(STANDARD_LEADS)}")


def millivolts_per_unit(unit: str) -> float:
    """
    Return the millivolts in one V, mV, uV (or µV) or nV, in any case, or in one volt, millivolt, microvolt or nanovolt.

    Any other unit is a `ValueError` that quotes it; so is `"MV"`, which may be a megavolt.
    """
    millivolts = _millivolts_or_none(unit) if isinstance(unit, str) else None
    if millivolts is not None:
        return millivolts
    raise ValueError(f"unknown unit {unit!r}, expected one of V, mV, uV (µV), nV")


# A dataset of millions of recordings has only a few spellings of leads and units.
@lru_cache(maxsize=1024)
def _canonical_or_none(name: str) -> str | None:
    key = _PREFIX.sub("", name.strip(), count=1) if _PREFIX.match(name.strip()) else name
    return _CANONICAL_NAMES.get("".join(key.split()).upper())


@lru_cache(maxsize=256)
def _millivolts_or_none(unit: str) -> float | None:
    if unit.strip() in ("MV", "Mv"):
        return None
    text = unit.strip().replace("\u03bc", "\u00b5").lower()  # the Greek letter to the micro sign
    return _MILLIVOLTS.get(text.removesuffix("s") if len(text) > 3 else text)


@lru_cache(maxsize=1024)
def resampled_length(num_samples: int, from_rate: float, to_rate: float) -> int:
    """Return `floor(num_samples * to_rate / from_rate)` in exact arithmetic."""
    # 257.1 has no exact binary form: take the nearest simple fraction, which is what its writer meant.
    old, new = (Fraction(rate).limit_denominator(1_000_000) for rate in (from_rate, to_rate))
    return math.floor(num_samples * new / old)


@lru_cache(maxsize=64)
def _interpolation_grid(num_samples: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    position = np.linspace(0, num_samples - 1, length)
    left = np.minimum(position.astype(np.intp), max(num_samples - 2, 0))
    return left, position - left


def resample(signal: np.ndarray, from_rate: float, to_rate: float) -> np.ndarray:
    """
    Resample (leads, n) float64 as the original does: linearly, at [`resampled_length`] points spread evenly from the
    first sample to the last, without a low-pass filter (the published model was trained that way). Returns (leads, m)
    float64, which is `signal` itself if the length stays the same.
    """
    length = resampled_length(signal.shape[1], from_rate, to_rate)
    if length == signal.shape[1]:
        return signal
    grid = _interpolation_grid if length < 100_000 else _interpolation_grid.__wrapped__  # a day's is not worth keeping
    left, weight = grid(signal.shape[1], length)
    # a + (b - a) * w and not a * (1 - w) + b * w: between equal neighbours the result is exactly their value.
    start = signal.take(left, axis=1)
    out = signal.take(left + 1, axis=1, mode="clip")
    out -= start
    out *= weight
    out += start
    return out


def standardise(signal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Scale each lead of (leads, n) float64 to mean 0 and population standard deviation 1, *in place*; zeros stay zeros.

    Returns the means (leads,) and standard deviations (leads,) before.
    """
    mean = signal.mean(axis=1, keepdims=True)
    signal -= mean
    energy = (signal[:, None, :] @ signal[:, :, None]).reshape(-1)  # the fastest sum of squares
    std = np.sqrt(energy / signal.shape[1])
    signal *= np.divide(1.0, std, out=np.zeros_like(std), where=std > 0)[:, None]
    return mean[:, 0], std


def _rescale(
    signal: np.ndarray, mean: np.ndarray, std: np.ndarray, live: np.ndarray, how: str
) -> tuple[np.ndarray, np.ndarray]:
    """
    Turn standardised (leads, n) into what another model takes, *in place*; returns what [`standardise`] would return.

    `"none"` restores the samples; `"all_leads"` takes one mean and standard deviation over all leads with a signal.
    """
    center, scale = 0.0, 1.0
    if how == "all_leads":
        center = mean[live].mean()
        scale = np.sqrt((std[live] ** 2 + (mean[live] - center) ** 2).mean())
    signal[live] *= (std[live] / scale)[:, None]
    signal[live] += ((mean[live] - center) / scale)[:, None]
    return np.where(live, center, mean), np.where(live, scale, 0.0)


def segment(signal: np.ndarray, segment_samples: int) -> np.ndarray:
    """
    Cut (leads, n) into consecutive segments without overlap.

    A shorter tail is dropped. A recording shorter than a segment is padded with zeros at its end. Returns
    (max(n // segment_samples, 1), leads, segment_samples) float32.
    """
    leads, num_samples = signal.shape
    count = num_samples // segment_samples
    if count == 0:
        return np.pad(signal, ((0, 0), (0, segment_samples - num_samples))).astype(np.float32)[None]
    out = np.empty((count, leads, segment_samples), dtype=np.float32)
    out.transpose(1, 0, 2)[...] = signal[:, : count * segment_samples].reshape(leads, count, segment_samples)
    return out


def clipped_leads(signal: np.ndarray, low: np.ndarray, high: np.ndarray, sampling_rate: float) -> list[tuple[int, str]]:
    """
    Return the leads of (leads, samples) whose peaks are cut off at the recorder's limits, as `(row, description)`.

    Such a lead stays at exactly its maximum `high` (leads,) or minimum `low`, not counting the recording's ends. It
    stays there once for 20 ms or three times for 6 ms, at more than 2 standard deviations from its mean, or for 100 ms
    at more than 1. (Coarse quantisation makes plateaus of up to 16 ms in real recordings, but near the baseline.)
    """
    shortest, long = max(3, math.ceil(0.006 * sampling_rate)), max(5, math.ceil(0.02 * sampling_rate))
    flagged = []
    for side, level in (("maximum", high), ("minimum", low)):
        at_level = signal == level[:, None]
        rests = at_level[:, 2:] & at_level[:, 1:-1] & at_level[:, :-2]
        # Most recordings return here; the rest is slow.
        for row in np.flatnonzero(rests.any(axis=1)) if rests.any() else ():
            lead, hits = signal[row], at_level[row]
            edges = np.flatnonzero(np.diff(hits))
            edges = edges[int(hits[0]) : len(edges) - int(hits[-1])]
            lengths = edges[1::2] - edges[::2]
            longest = lengths.max(initial=0)
            if longest < long and np.count_nonzero(lengths >= shortest) < 3:
                continue
            distance = abs(level[row] - lead.mean()) / lead.std()
            if distance > 2 or (longest >= 0.1 * sampling_rate and distance > 1):
                flagged.append((int(row), f"rests at its {side} for {1000 * longest / sampling_rate:.0f} ms"))
    return flagged


@lru_cache(maxsize=256)
def _check_matrix(leads: tuple[str, ...], usable: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """Return the limb leads that can be checked, and a matrix (checks, rows) whose product with the rows must be 0."""
    checked = [lead for lead in _CHECKS if {lead, "I", "II"} <= set(usable)]
    rows = 1 + max((leads.index(lead) for lead in (*checked, "I", "II") if checked), default=0)
    matrix = [[(name == lead) - _LIMB_LEADS[lead].get(name, 0) for name in leads[:rows]] for lead in checked]
    return checked, np.array(matrix, dtype=np.float64)


def contradicting_leads(
    signal: np.ndarray, std: np.ndarray, leads: tuple[str, ...], usable: tuple[str, ...], sampling_rate: float
) -> list[tuple[str, float]]:
    """
    Return limb leads that contradict the others, as `(lead, largest difference as a share of lead II's range)`.

    Such leads differ from the value that follows from I and II by more than 5% of lead II's range, for 20 ms or more in
    all (in sound recordings the first samples after a filter may differ). The cause is a wrong order, unit or gain.
    Offsets are ignored. Takes standardised (leads, n) in the order of `leads`, the standard deviations before, and
    which leads are `usable`: recorded and not dead.
    """
    checked, matrix = _check_matrix(leads, usable)
    if not checked:
        return []
    rows, ii = matrix.shape[1], leads.index("II")
    difference = np.abs((matrix * std[:rows]) @ signal[:rows])
    range_ii = std[ii] * (signal[ii].max() - signal[ii].min())
    shares = difference.max(axis=1) / range_ii
    seconds = {i: (difference[i] > 0.05 * range_ii).sum() / sampling_rate for i in np.flatnonzero(shares > 0.05)}
    return [(checked[i], float(shares[i])) for i in seconds if seconds[i] >= 0.02]


class _Plan(NamedTuple):
    """Which rows of a recording to read: leads the model wants, then leads needed only to derive others."""

    leads: tuple[str, ...]
    rows: list[int]
    as_is: bool  # every row, in order: nothing to pick
    missing: dict[str, dict[str, float]]  # by lead, the weighted sum that derives it (empty: it becomes 0)
    ignored: tuple[str, ...]


@lru_cache(maxsize=256)
def _plan(names: tuple[str, ...], wanted: tuple[str, ...], policy: str) -> _Plan:
    """Match a recording's lead names with the model's. Cached: a dataset has few layouts."""
    found: dict[str, int] = {}
    for row, own in enumerate(names):
        name = _canonical_or_none(own) if isinstance(own, str) else canonical_lead_name(own)
        name = own if name is None else name
        if name in found:
            raise ValueError(f"duplicate lead {name} (rows {found[name]} and {row})")
        found[name] = row
    missing: dict[str, dict[str, float]] = {}
    lost = []
    for name in wanted:
        if name not in found:
            formula = _derivation(name, found) if policy == "derive" else {}
            missing[name] = formula
            if not formula and policy != "zero":
                lost.append(name)
    if lost or (len(missing) == len(wanted) and not any(missing.values())):
        raise ValueError(_missing_message(lost or list(missing), found, policy))
    leads = [name for name in wanted if name in found]
    leads += sorted({source for formula in missing.values() for source in formula}.difference(leads))
    rows = [found[name] for name in leads]
    ignored = tuple(name for name in found if name not in STANDARD_LEADS)
    return _Plan(tuple(leads), rows, rows == list(range(len(names))), missing, ignored)


def _missing_message(lost: list[str], found: dict[str, int], policy: str) -> str:
    """Return an error message about missing leads that lists the remedies, the safest first."""
    unknown = [name for name in found if _canonical_or_none(name) is None]
    advice = []
    if unknown:
        advice.append(
            f"if one of {', '.join(map(repr, unknown))} is such a lead, name it: rename_leads='{unknown[0]}={lost[0]}'"
        )
    if policy == "error" and all(_derivation(name, found) for name in lost):
        advice.append("missing_leads='derive' computes them exactly from the limb leads")
    if policy != "zero":
        advice.append("missing_leads='zero' reads them as flat, which changes the scores")
    return f"missing lead {', '.join(lost)}, found {', '.join(found)} ({'; '.join(advice) or 'nothing is left'})"


def _derivation(name: str, found: dict[str, int]) -> dict[str, float]:
    """Return `name` as a weighted sum of two recorded leads of I, II and III; empty if that is impossible."""
    if name not in _LIMB_LEADS or len({"I", "II", "III"} & set(found)) < 2:
        return {}
    formula: dict[str, float] = {}
    for source, weight in _LIMB_LEADS[name].items():
        for lead, factor in ({source: 1} if source in found else _LIMB_LEADS[source]).items():
            formula[lead] = formula.get(lead, 0) + weight * factor
    return formula


def _clean_nan(signal: np.ndarray, leads: tuple[str, ...], policy: str, live: np.ndarray, warnings: list[str]) -> None:
    """Apply the policy to leads with NaN, in place, and refuse infinite samples."""
    for row in np.flatnonzero(~(np.abs(signal).max(axis=1) <= LARGEST_SAMPLE)):  # written so that NaN is among them
        bad = np.isnan(signal[row])
        if (np.abs(signal[row][~bad]) > LARGEST_SAMPLE).any():
            raise ValueError(f"lead {leads[row]} has infinite samples (or any above {LARGEST_SAMPLE:g})")
        found = f"lead {leads[row]} has {bad.sum()} NaN in {len(bad)} samples"
        if policy == "error":
            raise ValueError(f"{found} (nan_samples='interpolate' or nan_samples='zero' would allow it)")
        if policy == "interpolate":
            if bad.all():
                raise ValueError(f"{found}: there is nothing to interpolate between")
            signal[row, bad] = np.interp(np.flatnonzero(bad), np.flatnonzero(~bad), signal[row, ~bad])
        else:
            signal[row], live[row] = 0, False
        warnings.append(f"{found}: {'bridged linearly' if live[row] else 'the lead is set to 0'}")


def _drop_constant(
    signal: np.ndarray,
    constant: np.ndarray,
    leads: tuple[str, ...],
    policy: str,
    live: np.ndarray,
    warnings: list[str],
) -> None:
    """Set constant leads to 0, in place: after centring, only rounding noise is left."""
    for row in np.flatnonzero(constant & live):
        if policy == "error":
            raise ValueError(f"lead {leads[row]} is constant (constant_leads='zero' would allow it)")
        warnings.append(f"lead {leads[row]} is constant (dead): set to 0")
        signal[row], live[row] = 0, False


def _assemble(
    signal: np.ndarray, live: np.ndarray, plan: _Plan, wanted: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the model's leads (leads, samples), derived or 0 if missing; which have a signal; which are constant."""
    out, constant = np.zeros((len(wanted), signal.shape[1])), np.zeros(len(wanted), dtype=bool)
    row_of = {lead: row for row, lead in enumerate(plan.leads)}
    for slot, name in enumerate(wanted):
        formula = plan.missing.get(name, {name: 1})
        for source, weight in formula.items():
            if name in plan.missing and not live[row_of[source]]:
                raise ValueError(f"missing lead {name} cannot be derived: lead {source} carries no signal")
            out[slot] += weight * signal[row_of[source]]
        # Sources that differ by a constant leave rounding noise, which standardisation would amplify.
        constant[slot] = len(formula) == 2 and np.ptp(out[slot]) <= 1e-6 * np.ptp(signal[row_of[source]])
    return out, np.array([bool(plan.missing[n]) if n in plan.missing else live[row_of[n]] for n in wanted]), constant


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _check_number(name: str, value: Any, low: float, high: float) -> float:
    if getattr(value, "ndim", None) == 0:  # of numpy or torch, as a dataset's rows have
        value = value.item()
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low} to {high}, found: {value!r}")
    return int(value) if value == int(value) else float(value)


def _check_policy(name: str, value: Any) -> str:
    if value not in POLICIES[name]:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, POLICIES[name]))}, found: {value!r}")
    return value


def _check_names(names: Any) -> tuple[str, ...]:
    if not _is_sequence(names) or len(names) == 0:
        raise ValueError(f"lead_names must be a list of lead names, found: {names!r}")
    return tuple(names)


def _as_array(values: Any) -> np.ndarray:
    # A torch tensor may require a gradient, or be on a GPU.
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _check_recording(recording: Any, num_names: int) -> np.ndarray:
    array = _as_array(recording)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"a recording must hold integers or floats, found: dtype {array.dtype}")
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(
            f"a recording must have shape (leads, samples), with at least one sample, found: {array.shape}"
        )
    if array.shape[0] != num_names:
        hint = ": it looks transposed" if array.shape[1] == num_names else ""
        raise ValueError(
            f"a recording must have shape (leads, samples), found: {array.shape} and {num_names} names{hint}"
        )
    return array


def _check_units(units: Any, plan: _Plan, num_names: int) -> np.ndarray:
    """Return the millivolts per unit of each lead that is read; the units of other leads are ignored."""
    units = list(units) if _is_sequence(units) else [units] * num_names
    if len(units) != num_names:
        raise ValueError(f"{len(units)} units for {num_names} leads")
    gains = []
    for lead, row in zip(plan.leads, plan.rows, strict=True):
        try:
            gains.append(millivolts_per_unit(units[row]))
        except ValueError as error:
            raise ValueError(f"lead {lead}: {error}") from None
    return np.array(gains)


def _split_recordings(recordings: Any) -> list:
    if isinstance(recordings, list | tuple) and len(recordings):
        is_lead = _is_sequence(recordings[0]) and not any(map(_is_sequence, recordings[0]))
        return [recordings] if is_lead else list(recordings)
    array = _as_array(recordings)
    if array.shape[:1] == (0,) and array.ndim != 2:
        raise ValueError(f"there are no recordings in {recordings!r}")
    return list(array) if array.ndim == 3 else [array]


def _spread(name: str, value: Any, count: int, shared: bool) -> list:
    if not shared and len(value) != count:
        raise ValueError(f"{name}: {len(value)} of them for {count} recordings")
    return [value] * count if shared else list(value)


def _units_are_shared(units: Any, recordings: list) -> bool:
    """Return whether `units` apply to every recording. A flat list has one by lead or by recording: see its length."""
    if not _is_sequence(units) or any(unit is None or _is_sequence(unit) for unit in units):
        return not _is_sequence(units)
    per_recording = len(units) == len(recordings)
    per_lead = any(hasattr(recording, "__len__") and len(recording) == len(units) for recording in recordings)
    if per_recording and per_lead and len(set(units)) > 1:
        raise ValueError(f"units {list(units)} may be one per lead or one per recording: give a list per recording")
    return per_lead or not per_recording


def _suggestion(key: str) -> str:
    close = difflib.get_close_matches(key, _SETTINGS, n=1, cutoff=0.75)
    return f" (did you mean {close[0]!r}?)" if close else ""


class ECGFMFeatureExtractor(FeatureExtractionMixin):
    r"""
    Turn recordings into the segments that an ECG-FM model takes.

    Leads are put in order by name, resampled linearly, standardised (mean 0, population standard deviation 1 per lead,
    over the whole recording) and cut into segments of 5 s; a shorter tail is dropped. So the unit of a lead makes no
    difference. Values are equal to the original's (fairseq-signals, `scripts/preprocess/ecg`), with three differences:
    names match in any case, a missing lead or a NaN never reaches the model, and short recordings raise an error.

    Args:
        sampling_rate (`int` or `float`, defaults to 500): of the model's input, in Hz.
        lead_names (sequence of `str`, defaults to the twelve standard leads): of the model's input, in its order.
        segment_seconds (`float`, defaults to 5.0)
        standardize (`str`, defaults to `"recording"`): of the model's input: `"recording"` (each lead over the whole
            recording), `"all_leads"` (one mean and standard deviation for all leads of the recording), or `"none"`: the
            model takes mV, so units are required.
        missing_leads (`str`, defaults to `"derive"`): for a missing lead: `"error"`, `"zero"`, or
            `"derive"`: a limb lead is computed from two of I, II and III, which is exact; any other is an error.
        nan_samples (`str`, defaults to `"error"`): for a lead with NaN: `"error"`, `"zero"` (the whole lead), or
            `"interpolate"`: gaps are bridged linearly in time, at the ends by the nearest value; a lead with only NaN
            is an error. Infinity is always an error.
        constant_leads (`str`, defaults to `"zero"`): for a lead that never changes, as of a loose electrode: `"zero"`
            or `"error"`.
        short_recordings (`str`, defaults to `"error"`): for a recording shorter than a segment: `"error"`, or `"pad"`:
            zeros follow the standardised samples.

    Raises:
        ValueError, TypeError: another value, or an unknown setting.

    Example:

        >>> import numpy as np
        >>> from ecgfm_hf import ECGFMFeatureExtractor
        >>> extractor = ECGFMFeatureExtractor()
        >>> signal = np.random.default_rng(0).normal(size=(12, 4000))  # 10 s at 400 Hz
        >>> inputs = extractor(signal, sampling_rate=400, lead_names=extractor.lead_names, units="mV")
        >>> inputs["input_values"].shape
        (2, 12, 2500)
    """

    model_input_names = ["input_values", "attention_mask"]
    # Short recordings are padded with this value; transformers' pipelines read it.
    padding_value = 0.0
    missing_leads: str
    nan_samples: str
    constant_leads: str
    short_recordings: str

    def __init__(
        self,
        sampling_rate: float = 500,
        lead_names: Sequence[str] = STANDARD_LEADS,
        segment_seconds: float = 5.0,
        standardize: str = "recording",
        missing_leads: str = "derive",
        nan_samples: str = "error",
        constant_leads: str = "zero",
        short_recordings: str = "error",
        **kwargs: Any,
    ):
        for key in kwargs:
            if key not in _HF_KEYS and not key.startswith("_"):
                raise TypeError(f"unknown setting {key!r}{_suggestion(key)}; the settings are {', '.join(_SETTINGS)}")
        super().__init__(**kwargs)
        self.sampling_rate = _check_number("sampling_rate (Hz)", sampling_rate, _MIN_RATE, _MAX_RATE)
        self.lead_names = [canonical_lead_name(name) for name in _check_names(lead_names)]
        if not set(self.lead_names) <= set(STANDARD_LEADS) or len(set(self.lead_names)) < len(self.lead_names):
            raise ValueError(f"lead_names must be standard leads, each once, found: {list(lead_names)}")
        self.segment_seconds = float(_check_number("segment_seconds", segment_seconds, 0.01, 86_400))
        if abs(self.sampling_rate * self.segment_seconds - self.segment_samples) > 1e-6 or self.segment_samples == 0:
            raise ValueError(f"segment_seconds={segment_seconds} is no whole number of samples at {sampling_rate} Hz")
        if standardize not in STANDARDIZATIONS:
            raise ValueError(
                f"standardize must be one of {', '.join(map(repr, STANDARDIZATIONS))}, got {standardize!r}"
            )
        self.standardize = standardize
        given = (missing_leads, nan_samples, constant_leads, short_recordings)
        for key, value in zip(POLICIES, given, strict=True):
            setattr(self, key, _check_policy(key, value))

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Load as the base class does. The caller's settings replace the file's; unknown ones are errors."""
        given = {key: kwargs.pop(key) for key in list(kwargs) if key in _SETTINGS or _suggestion(key)}
        return super().from_dict({**feature_extractor_dict, **given}, **kwargs)

    @property
    def segment_samples(self) -> int:
        """Samples of a segment at the model's sampling rate: 2500 by default."""
        return round(self.sampling_rate * self.segment_seconds)

    def num_segments(self, num_samples: int, sampling_rate: float) -> int:
        """Return the number of segments of a recording of this length; 0 if it is refused as too short."""
        count = resampled_length(num_samples, sampling_rate, self.sampling_rate) // self.segment_samples
        return 1 if count == 0 and self.short_recordings == "pad" else count

    def refusal(
        self,
        num_samples: int,
        sampling_rate: float,
        lead_names: Sequence[str],
        nan_samples: Sequence[int] | None = None,
        constant: Sequence[bool] | None = None,
    ) -> str | None:
        """
        Return why a recording would be refused, as far as its metadata show it; None if they show no reason.

        Args:
            num_samples, sampling_rate, lead_names: As in `__call__`.
            nan_samples, constant: For each lead the number of NaN samples, and whether it is constant, if known.
        """
        try:
            rate = _check_number("sampling_rate (Hz)", sampling_rate, _MIN_RATE, _MAX_RATE)
            plan = _plan(tuple(lead_names), tuple(self.lead_names), self.missing_leads)
        except ValueError as error:
            return str(error)
        if self.num_segments(num_samples, rate) == 0:
            return f"shorter than {self.segment_seconds:g} s"
        missing = [] if nan_samples is None else [nan_samples[row] for row in plan.rows]
        flat = [] if constant is None else [constant[row] for row in plan.rows]
        if any(missing) and (
            self.nan_samples == "error" or (self.nan_samples == "interpolate" and num_samples in missing)
        ):
            return "a lead has NaN"
        if flat and all(flat):
            return "no lead carries a signal"
        if self.constant_leads == "error" and any(flat):
            return "a lead is constant"
        return None

    def __call__(
        self,
        recordings: ArrayLike,
        *,
        sampling_rate: float | Sequence[float] | np.ndarray,
        lead_names: Sequence[str] | Sequence[Sequence[str]],
        units: Units | Sequence[Units] = None,
        return_tensors: str | None = None,
        return_recording_info: bool = False,
        **policies: str | None,
    ) -> BatchFeature:
        """
        Prepare one recording or several for the model: `model(**extractor(...))`.

        Args:
            recordings: A (leads, samples) array of integers or floats, a list of them, or an array
                (recordings, leads, samples).
            sampling_rate: Of the recordings, in Hz, 25 to 50,000: one number, or one for each recording.
            lead_names: Of the rows: one list, or one for each recording. Case and blanks are ignored. Other channels
                are ignored with a warning; standard leads that the model does not take are ignored without one.
            units: `"mV"`, `"uV"` and so on: one for all, or a list with one for each lead, or a list with one of these
                (or None) for each recording. Without it, all leads of a recording are assumed to have the same unit.
            return_tensors: `"pt"` for torch tensors; numpy arrays otherwise.
            return_recording_info: Also return where each segment comes from, and warnings; without it, the first
                warning of the process is logged.
            missing_leads, nan_samples, constant_leads, short_recordings: In place of the extractor's own settings.

        Returns:
            [`BatchFeature`] with

            - `input_values` (n, leads, samples) float32: the segments of all recordings, in order
            - `attention_mask` (n, samples) int64: 1 where a sample is real; with `short_recordings="pad"`, also where
              nothing was padded, so that all batches of `Dataset.map` have the same columns

            and with `return_recording_info`, all n long, so that `Dataset.map(batched=True)` takes them:

            - `recording_index` (n,) int64: which recording a segment belongs to
            - `segment_start` (n,) int64: where it starts, in samples at the model's sampling rate
            - `warnings`: for each segment a list of strings about its recording: leads that are missing, ignored, dead
              or clipped, have NaN or contradict each other, amplitudes that cannot be in the given units, seconds
              padded, or dropped at the end

        Missing or wrong input is a `ValueError` with the recording's index, the lead and the value.
        """
        pieces = _split_recordings(recordings)
        count = len(pieces)
        nested_names = _is_sequence(lead_names) and any(map(_is_sequence, lead_names))
        rates = _spread("sampling_rate", sampling_rate, count, not _is_sequence(sampling_rate))
        names = _spread("lead_names", lead_names, count, not nested_names)
        all_units = _spread("units", units, count, _units_are_shared(units, pieces))
        values = np.empty((0, len(self.lead_names), self.segment_samples), dtype=np.float32)
        counts, valid, warnings, end = [], [], [], 0
        for i, (piece, rate, its_leads, its_units) in enumerate(zip(pieces, rates, names, all_units, strict=True)):
            segments, valid_samples, notes, *_ = self.prepare_recording(
                piece, rate, its_leads, its_units, name=f"recording {i}", inspect=True, **policies
            )
            counts.append(len(segments))
            valid.append(valid_samples)
            warnings.append(notes)
            start, end = end, end + len(segments)
            if count == 1:
                values = segments
                break
            if end > len(values):  # once, if all are as long as the first
                room = np.empty((max(end, count * len(segments)), *values.shape[1:]), dtype=np.float32)
                room[:start] = values[:start]
                values = room
            values[start:end] = segments
        data: dict[str, Any] = {"input_values": values if len(values) == end else values[:end].copy()}
        if return_recording_info:
            data["recording_index"] = np.repeat(np.arange(count), counts)
            data["segment_start"] = np.concatenate([np.arange(n) * self.segment_samples for n in counts])
            data["warnings"] = [notes for notes, n in zip(warnings, counts, strict=True) for _ in range(n)]
        elif any(warnings):
            logger.warning_once(
                "The feature extractor has warnings about recordings (missing, dead or clipped leads, units, seconds "
                "dropped). They are returned with return_recording_info=True; this is logged once."
            )
        if (policies.get("short_recordings") or self.short_recordings) == "pad":
            valid_samples_of = np.repeat(valid, counts)
            data["attention_mask"] = (np.arange(self.segment_samples) < valid_samples_of[:, None]).astype(np.int64)
        return BatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=["warnings"])

    @small_buffers()
    def prepare_recording(
        self,
        recording: ArrayLike,
        sampling_rate: float,
        lead_names: Sequence[str],
        units: Units = None,
        *,
        name: str = "recording",
        inspect: bool = True,
        **policies: str | None,
    ) -> PreparedRecording:
        """
        Prepare one recording as `__call__` does, without a batch; error messages contain its `name`.

        Without `inspect`, clipped or contradicting leads and impossible amplitudes are not looked for. That takes more
        than half of the time, and changes only the warnings.
        """
        if unknown := [key for key in policies if key not in POLICIES]:
            raise TypeError(
                f"unknown argument {', '.join(unknown)}; recordings are cut into segments of equal length, so there is "
                f"nothing to pad or truncate; the policies are {', '.join(POLICIES)}"
            )
        given = {key: value for key, value in policies.items() if value is not None}
        try:
            checked = {key: _check_policy(key, given.get(key, getattr(self, key))) for key in POLICIES}
            rate = _check_number("sampling_rate (Hz)", sampling_rate, _MIN_RATE, _MAX_RATE)
            return self._prepare(recording, rate, _check_names(lead_names), units, inspect, **checked)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    @small_buffers()
    def segments_by_statistics(
        self,
        read: Callable[[int, int], np.ndarray],
        segments: range,
        sampling_rate: float,
        lead_names: Sequence[str],
        mean: np.ndarray,
        std: np.ndarray,
    ) -> np.ndarray | None:
        """
        Return adjacent segments of a recording by its statistics, without the rest of its samples.

        Args:
            read: `(start, stop) -> (leads, stop - start)` float64: samples of all leads in mV, in a new array.
            segments: Which; the recording must have them in full.
            sampling_rate, lead_names: Of the recording.
            mean, std: (leads,) float64 over the whole recording, as [`standardise`] returns them; NaN where unknown.

        Returns:
            (segments, leads, samples) float32, to the last bit those of `prepare_recording`. None where these depend on
            the whole recording: it is resampled, a lead is missing or has no statistics, or `standardize` is not
            `"recording"`.
        """
        plan = _plan(tuple(lead_names), tuple(self.lead_names), self.missing_leads)
        if sampling_rate != self.sampling_rate or plan.missing or self.standardize != "recording":
            return None
        start, stop = segments.start * self.segment_samples, segments.stop * self.segment_samples
        if not plan.as_is:
            mean, std = mean[plan.rows], std[plan.rows]
        if math.isnan(std @ std):
            return None
        signal = read(start, stop) if plan.as_is else read(start, stop)[plan.rows]
        signal -= mean[:, None]
        signal *= (1.0 / std)[:, None]
        return segment(signal, self.segment_samples)

    def _prepare(
        self,
        recording: ArrayLike,
        rate: float,
        names: tuple[str, ...],
        units: Units,
        inspect: bool,
        *,
        missing_leads: str,
        nan_samples: str,
        constant_leads: str,
        short_recordings: str,
    ) -> PreparedRecording:
        array = _check_recording(recording, len(names))
        if units is None and self.standardize == "none":
            raise ValueError("units are unknown, but the model takes mV that are not standardised: give units")
        wanted = tuple(self.lead_names)
        plan = _plan(names, wanted, missing_leads)
        length = resampled_length(array.shape[1], rate, self.sampling_rate)
        if length == 0 or (length < self.segment_samples and short_recordings == "error"):
            advice = "short_recordings='pad' would allow it" if length else "nothing is left after resampling"
            raise ValueError(
                f"{array.shape[1]} samples at {rate} Hz are shorter than {self.segment_seconds:g} s ({advice})"
            )
        warnings = [f"missing lead {lead}: {'derived' if plan.missing[lead] else 'set to 0'}" for lead in plan.missing]
        warnings += [f"ignored lead {lead}: not a standard lead" for lead in plan.ignored]

        signal = np.array(array if plan.as_is else array[plan.rows], dtype=np.float64, order="C")
        live = np.ones(len(plan.leads), dtype=bool)
        low, high = signal.min(axis=1), signal.max(axis=1)
        if not max(-low.min(), high.max()) <= LARGEST_SAMPLE:  # or NaN
            _clean_nan(signal, plan.leads, nan_samples, live, warnings)
            low, high = signal.min(axis=1), signal.max(axis=1)
        constant = high - low < SMALLEST_RANGE
        level = np.where(constant, low, 0.0)  # that a dead lead rests at
        _drop_constant(signal, constant, plan.leads, constant_leads, live, warnings)
        clipped = clipped_leads(signal, low, high, rate) if inspect else ()
        warnings += [f"lead {plan.leads[row]} looks clipped: it {what}" for row, what in clipped]
        unit = 1.0  # of the signal, in mV
        if units is not None:
            gains = _check_units(units, plan, len(names))
            widest = ((high - low) * gains)[live].max(initial=0)
            if inspect and live.any() and not _MIN_MV <= widest <= _MAX_MV:
                warnings.append(f"the widest lead spans {widest:.3g} mV: units or gains may be wrong")
            if (gains != gains[0]).any():
                signal *= gains[:, None]
                level *= gains
            else:
                unit = gains[0]
        if plan.leads != wanted:
            signal, live, cancelled = _assemble(signal, live, plan, wanted)
            _drop_constant(signal, cancelled, wanted, constant_leads, live, warnings)

        if length != array.shape[1]:
            signal = resample(signal, rate, self.sampling_rate)
            flat = signal.max(axis=1) == signal.min(axis=1)  # of a lead with one spike between two new samples
            _drop_constant(signal, flat, wanted, constant_leads, live, warnings)
        if not live.any():
            raise ValueError("no lead carries a signal, so there is nothing to score (every lead is flat, or set to 0)")
        if 2 * live.sum() < len(wanted):  # first, since pages have room for a few warnings only
            warnings.insert(0, f"only {live.sum()} of {len(wanted)} leads carry a signal: {MOST_LEADS_EMPTY}")
        mean, std = standardise(signal)
        if constant.any():
            mean += [level[plan.leads.index(lead)] if lead in plan.leads else 0.0 for lead in wanted]
        recorded = tuple(lead for lead, ok in zip(wanted, live, strict=True) if ok and lead not in plan.missing)
        found = contradicting_leads(signal, std, wanted, recorded, self.sampling_rate) if inspect else ()
        for lead, share in found:
            differs = f"lead {lead} differs from {_CHECKS[lead]} by up to {share:.0%} of lead II's range"
            warnings.append(f"{differs}: the order of leads, units or gains may be wrong")
        if self.standardize != "recording":
            mean, std = _rescale(signal, unit * mean, unit * std, live, self.standardize)
            unit = 1.0
        rest = length % self.segment_samples
        if length < self.segment_samples:
            warnings.append(f"only {length / self.sampling_rate:.3g} s long: padded to {self.segment_seconds:g} s")
        if length > self.segment_samples and rest:
            warnings.append(f"the last {rest / self.sampling_rate:.3g} s are dropped: shorter than a segment")
        segments, valid_samples = segment(signal, self.segment_samples), min(length, self.segment_samples)
        return PreparedRecording(segments, valid_samples, warnings, unit * mean, unit * std)
