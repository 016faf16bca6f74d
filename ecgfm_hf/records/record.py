"""One recording, exactly as its file holds it."""

import math
import os
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from ..feature_extraction_ecgfm import canonical_lead_name, millivolts_per_unit
from .errors import ECGReadError

_STORED_TYPES = tuple(np.dtype(name) for name in ("int16", "int32", "float32", "float64"))

# Outside of these a sampling rate is a damaged number, not an ECG, and resampling from it could fill the memory.
_LOWEST_RATE, _HIGHEST_RATE = 20.0, 100_000.0


@dataclass(frozen=True, eq=False, kw_only=True)
class ECGRecord:
    """A recording without loss: stored samples, and what turns them into millivolts.

    Attributes:
        recording_id: the file's name without its suffix.
        path: the file, as the caller named it.
        samples: (leads, samples), int16, int32, float32 or float64, as stored. Read-only.
        gain: (leads,) float64, stored units per physical unit; never 0. Read-only.
        baseline: (leads,) float64, the stored value of 0 physical units. Read-only.
        units: physical unit of each lead, as the file spells it ("mV", "mv", "uV").
        sampling_rate: Hz.
        lead_names: one per lead; standard leads in their usual spelling, others as the file has them.
        missing_value: the stored integer that marks a missing sample, or None. Float samples use NaN.
        age: years, or None.
        sex: "M", "F" or None.
        diagnoses: SNOMED CT codes, as text.
        time: when the recording was made, without a time zone, or None.
        report: text of the interpretation; no reader fills it from a file, since it may hold names.
        patient_id: likewise only given by a caller who knows, such as a dataset's own table.

    Raises:
        ECGReadError: a field is missing, or two contradict one another; names the file and the lead.
    """

    recording_id: str
    path: str
    samples: np.ndarray = field(repr=False)
    gain: np.ndarray
    baseline: np.ndarray
    units: tuple[str, ...]
    sampling_rate: float
    lead_names: tuple[str, ...]
    missing_value: int | None = None
    age: float | None = None
    sex: str | None = None
    diagnoses: tuple[str, ...] = ()
    time: datetime | None = None
    report: str | None = None
    patient_id: str | None = None

    def __post_init__(self):
        # The dataclass is frozen for its users; this is the one moment at which it settles its own values.
        settle = object.__setattr__
        settle(self, "path", os.fspath(self.path))
        settle(self, "samples", self._checked_samples())
        settle(self, "lead_names", self._checked_names())
        settle(self, "units", tuple(self.units))
        settle(self, "gain", self._one_per_lead("gain"))
        settle(self, "baseline", self._one_per_lead("baseline"))
        settle(self, "diagnoses", tuple(self.diagnoses))
        self._check_units()
        self._check_scalars()

    def _error(self, message: str) -> ECGReadError:
        return ECGReadError(f"{self.path}: {message}")

    def _checked_samples(self) -> np.ndarray:
        samples = np.asarray(self.samples)
        if samples.ndim != 2 or 0 in samples.shape:
            raise self._error(f"samples must have shape (leads, samples) and hold at least one, found {samples.shape}")
        if samples.dtype not in _STORED_TYPES:
            raise self._error(f"samples must be int16, int32, float32 or float64, found {samples.dtype}")
        return _read_only(samples)

    def _checked_names(self) -> tuple[str, ...]:
        names = tuple(_canonical_where_standard(name) for name in self.lead_names)
        if len(names) != len(self.samples):
            raise self._error(f"{len(names)} lead names for {len(self.samples)} leads of samples: {list(names)}")
        for index, name in enumerate(names):
            if not name.strip():
                raise self._error(f"lead {index + 1} of {len(names)} has no name; leads are never told by position")
            if name in names[:index]:
                raise self._error(f"lead {name} is there twice (as number {names.index(name) + 1} and {index + 1})")
        return names

    def _one_per_lead(self, attribute: str) -> np.ndarray:
        values = np.array(getattr(self, attribute), dtype=np.float64)
        if values.shape != (len(self.samples),):
            raise self._error(f"{attribute} must have shape ({len(self.samples)},), one per lead, found {values.shape}")
        for name, value in zip(self.lead_names, values.tolist(), strict=True):
            if not math.isfinite(value) or (attribute == "gain" and not _usable_gain(value)):
                raise self._error(f"lead {name} has {attribute} {value:g}, which gives no voltage")
        return _read_only(values)

    def _check_units(self):
        if len(self.units) != len(self.samples):
            raise self._error(f"{len(self.units)} units for {len(self.samples)} leads: {list(self.units)}")
        for name, unit in zip(self.lead_names, self.units, strict=True):
            try:
                millivolts_per_unit(unit)
            except ValueError as error:
                raise self._error(f"lead {name}: {error}") from error

    def _check_scalars(self):
        rate = float(self.sampling_rate)
        if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:  # NaN fails too
            raise self._error(
                f"found a sampling rate of {rate:g} Hz, expected {_LOWEST_RATE:g} to {_HIGHEST_RATE:g} Hz"
            )
        object.__setattr__(self, "sampling_rate", rate)
        if self.missing_value is not None and self.samples.dtype.kind != "i":
            raise self._error(f"missing_value is for stored integers, found {self.samples.dtype} samples")
        if self.sex not in (None, "M", "F"):
            raise self._error(f"sex must be 'M', 'F' or None, found {self.sex!r}")
        if self.age is not None and not 0 <= self.age < math.inf:
            raise self._error(f"age must be a number of years or None, found {self.age!r}")

    @property
    def signal(self) -> np.ndarray:
        """(leads, samples) float64 in mV, NaN where a sample is missing. Computed anew, so the caller may change it."""
        millivolts = np.array([millivolts_per_unit(unit) for unit in self.units])
        # Baseline first, in stored units, and one division: the same order as wfdb's, to the last bit.
        if self.baseline.any():
            signal = self.samples - self.baseline[:, None]
            signal /= self.gain[:, None]
        else:  # the same numbers in one pass
            signal = self.samples / self.gain[:, None]
        if (millivolts != 1.0).any():
            signal *= millivolts[:, None]
        if self.missing_value is not None:
            missing = self.samples == self.missing_value
            if missing.any():
                signal[missing] = np.nan
        return signal


def _usable_gain(value: float) -> bool:
    # A gain of 1e-300 is finite and not 0, but the voltages it gives are not numbers any more.
    return 1e-12 < abs(value) < 1e12


def _canonical_where_standard(name: str) -> str:
    try:
        return canonical_lead_name(name)
    except ValueError:
        return name


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.setflags(write=False)
    return view
