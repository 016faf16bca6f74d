"""One recording as its file holds it, and what every reader needs: the error, and whole files read within bounds."""

import html
import math
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

from ..feature_extraction_ecgfm import canonical_lead_name, millivolts_per_unit
from ..utils.errors import ECGFMError

_STORED_TYPES = tuple(np.dtype(name) for name in ("int16", "int32", "float32", "float64"))

# Outside of these a sampling rate is a damaged number, and resampling from it could fill the memory.
_LOWEST_RATE, _HIGHEST_RATE = 20.0, 100_000.0
_SHOWN_SECONDS = 10


class ECGReadError(ECGFMError, ValueError):
    """
    A recording cannot be read, or its content contradicts itself.

    The message begins with the path and gives what was found and what was expected.

    Args:
        message: The message.
        code: The kind of problem in a few words, the same for every recording: no path, name or number of one.
    """

    def __init__(self, message: str, code: str = "damaged"):
        super().__init__(message)  # the only argument: pickle passes it on, and adds the attributes
        self.code = code


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ECGRecord:
    """
    A recording without loss: samples as stored, and the numbers that turn them into millivolts.

    Attributes:
        recording_id: the file's name without its suffix.
        path: the file, as the caller gave it.
        samples: (leads, samples), int16, int32, float32 or float64, as stored. Read-only.
        gain: (leads,) float64, stored units per physical unit; never 0. Read-only.
        baseline: (leads,) float64, the stored value of 0 physical units. Read-only.
        units: physical unit of each lead, as the file spells it ("mV", "mv", "uV").
        sampling_rate: Hz.
        lead_names: one per lead; standard leads in their usual spelling, others as in the file.
        missing_value: the stored integer that marks a missing sample, or None. Float samples use NaN.
        age: years, or None.
        sex: "M", "F" or None.
        diagnoses: SNOMED CT codes, as text.
        time: when the recording was made, without a time zone, or None.
        report: text of the interpretation. No reader fills it from a file, since it may hold names.
        patient_id: given by the caller only, for example from a dataset's own table.
        start_s: seconds of the file before the first sample, where a calibration pulse was cut off; times of segments
            count from the file's beginning.
        warnings: what a reader did that its user should see: channels left out or renamed, a calibration pulse cut off,
            checks that the file does not allow.

    Raises:
        ECGReadError: a field is missing, or two contradict each other; names the file and the lead.
    """

    recording_id: str
    path: str
    samples: np.ndarray
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
    start_s: float = 0.0
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Frozen for its users; only here are the fields brought into their final form.
        settle = object.__setattr__
        settle(self, "path", os.fspath(self.path))
        settle(self, "samples", self._checked_samples())
        settle(self, "lead_names", self._checked_names())
        settle(self, "units", tuple(self.units))
        settle(self, "gain", self._one_per_lead("gain"))
        settle(self, "baseline", self._one_per_lead("baseline"))
        settle(self, "diagnoses", tuple(self.diagnoses))
        settle(self, "warnings", tuple(self.warnings))
        self._check_units()
        self._check_scalars()

    def _error(self, message: str, code: str = "damaged") -> ECGReadError:
        return ECGReadError(f"{self.path}: {message}", code)

    def _checked_samples(self) -> np.ndarray:
        samples = np.asarray(self.samples)
        if samples.ndim != 2 or 0 in samples.shape:
            raise self._error(
                f"found samples of shape {samples.shape}, expected (leads, samples), at least one of each"
            )
        if samples.dtype not in _STORED_TYPES:
            raise self._error(f"found samples of type {samples.dtype}, expected int16, int32, float32 or float64")
        return _read_only(samples)

    def _checked_names(self) -> tuple[str, ...]:
        names = tuple(standard_or_own_name(name) for name in self.lead_names)
        if len(names) != len(self.samples):
            raise self._error(
                f"{len(names)} lead names for {len(self.samples)} leads of samples: {list(names)}", "lead names"
            )
        for index, name in enumerate(names):
            if not name.strip():
                raise self._error(
                    f"lead {index + 1} of {len(names)} has no name; a position does not identify a lead", "lead names"
                )
            if name in names[:index]:
                raise self._error(
                    f"lead {name} occurs twice (as number {names.index(name) + 1} and {index + 1})", "lead names"
                )
        return names

    def _one_per_lead(self, attribute: str) -> np.ndarray:
        values = np.array(getattr(self, attribute), dtype=np.float64)
        if values.shape != (len(self.samples),):
            raise self._error(
                f"found {attribute} of shape {values.shape}, expected ({len(self.samples)},), one per lead"
            )
        for name, value in zip(self.lead_names, values.tolist(), strict=True):
            # A gain of 1e-300 is finite and not 0, but dividing by it leaves no numbers.
            if not math.isfinite(value) or (attribute == "gain" and not 1e-12 < abs(value) < 1e12):
                raise self._error(f"lead {name} has {attribute} {value:g}, which gives no voltage", "gain")
        return _read_only(values)

    def _check_units(self) -> None:
        if len(self.units) != len(self.samples):
            raise self._error(
                f"{len(self.units)} units for {len(self.samples)} leads: {list(self.units)}", "unknown unit"
            )
        for name, unit in zip(self.lead_names, self.units, strict=True):
            try:
                millivolts_per_unit(unit)
            except ValueError as error:
                raise self._error(f"lead {name}: {error}", "unknown unit") from error

    def _check_scalars(self) -> None:
        rate = float(self.sampling_rate)
        if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:  # NaN fails too
            raise self._error(
                f"found a sampling rate of {rate:g} Hz, expected {_LOWEST_RATE:g} to {_HIGHEST_RATE:g} Hz",
                "sampling rate",
            )
        object.__setattr__(self, "sampling_rate", rate)
        if self.missing_value is not None and self.samples.dtype.kind != "i":
            raise self._error(f"missing_value is for stored integers, found {self.samples.dtype} samples")
        if self.sex not in (None, "M", "F"):
            raise self._error(f"sex must be 'M', 'F' or None, found {self.sex!r}")
        if self.age is not None and not 0 <= self.age < math.inf:
            raise self._error(f"age must be a number of years or None, found {self.age!r}")

    def __repr__(self) -> str:
        leads, samples = self.samples.shape
        seconds = samples / self.sampling_rate
        return (
            f"ECGRecord({self.path!r}: {leads} leads ({', '.join(self.lead_names)}), "
            f"{samples} samples at {self.sampling_rate:g} Hz, {seconds:g} s)"
        )

    def _repr_html_(self) -> str:
        """Return the first ten seconds as a picture, for notebooks."""
        count = min(self.samples.shape[1], round(_SHOWN_SECONDS * self.sampling_rate))
        signal = replace(self, samples=self.samples[:, :count]).signal
        width, height = 900, 55
        step = max(1, count // (2 * width))
        drawn = []
        for row, (name, lead) in enumerate(zip(self.lead_names, signal, strict=True)):
            middle = (row + 0.5) * height
            offset = np.nanmedian(lead) if np.isfinite(lead).any() else 0.0
            points = " ".join(
                f"{60 + index * (width - 60) / count:.1f},{middle - 20 * max(-2.0, min(2.0, value)):.1f}"
                for index, value in zip(range(0, count, step), (lead[::step] - offset).tolist(), strict=True)
                if math.isfinite(value)
            )
            drawn.append(f'<text x="2" y="{middle:.1f}" font-size="12">{html.escape(name)}</text>')
            drawn.append(f'<polyline points="{points}" fill="none" stroke="black" stroke-width="0.8"/>')
        picture = (
            f'<svg width="{width}" height="{height * len(signal)}" style="background:white">{"".join(drawn)}</svg>'
        )
        return f"<pre>{html.escape(repr(self))}</pre>{picture}"

    @property
    def signal(self) -> np.ndarray:
        """(leads, samples) float64 in mV, NaN where a sample is missing. A new array at every access."""
        return in_millivolts(self.samples, self.gain, self.baseline, self.units, self.missing_value)


def in_millivolts(
    samples: np.ndarray, gain: np.ndarray, baseline: np.ndarray, units: Sequence[str], missing_value: int | None
) -> np.ndarray:
    """Return stored samples (leads, samples) as a new float64 array in mV, NaN where a sample is missing."""
    # Baseline first, in stored units, and one division: the same order as wfdb's, to the last bit.
    if np.count_nonzero(baseline):
        signal = samples - baseline[:, None]
        signal /= gain[:, None]
    else:  # the same numbers in one pass
        signal = samples / gain[:, None]
    if any(unit != "mV" for unit in units):
        signal *= np.array([millivolts_per_unit(unit) for unit in units])[:, None]
    if missing_value is not None:
        missing = samples == missing_value
        if missing.any():
            signal[missing] = np.nan
    return signal


def standard_or_own_name(name: str) -> str:
    """Return the usual spelling of a standard lead's name, and any other name as it is."""
    try:
        return canonical_lead_name(name)
    except ValueError:
        return name


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.setflags(write=False)
    return view


def file_stem(path: str) -> str:
    """Return a file's name without folder and suffix."""
    return os.path.splitext(os.path.basename(path))[0]


def regular_file_size(path: str, role: str = "file") -> int:
    """
    Return the size in bytes of a file that is safe to open: it exists, is an ordinary file and is not empty.

    Other kinds are refused before they are opened: opening a named pipe waits for ever, and a device may never end.

    Args:
        path: the file.
        role: what the file is for ("header", "signal file"), for messages.

    Raises:
        ECGReadError: the file is missing, empty, or no ordinary file.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise ECGReadError(f"{path}: no such {role}", f"no such {role}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise ECGReadError(f"{path}: cannot open this {role} ({error})", "cannot be opened") from error
    if stat.S_ISDIR(status.st_mode):
        advice = "; pass its files; `ecgfm predict` and `ecgfm embed` take folders" if role == "file" else ""
        raise ECGReadError(f"{path}: is a folder, expected a {role}{advice}", "not a file")
    if not stat.S_ISREG(status.st_mode):
        raise ECGReadError(f"{path}: is a device or pipe, expected a {role}", "not a file")
    if status.st_size == 0:
        raise ECGReadError(f"{path}: is empty, expected a {role} with content", "empty")
    return status.st_size


def read_bytes(path: str, size: int, role: str = "file", first: int | None = None, start: int = 0) -> bytes:
    """
    Read a file of `size` bytes, or the `first` of them from `start` on.

    Raises:
        ECGReadError: it has another size by now, or is unreadable.
    """
    wanted = size if first is None else first
    try:
        with open(path, "rb") as file:
            file.seek(start)
            content = file.read(wanted if wanted < size else size + 1)
    except OSError as error:
        raise ECGReadError(f"{path}: cannot read this {role} ({error})", "cannot be opened") from error
    if len(content) != wanted:
        raise ECGReadError(
            f"{path}: the {role} changed while it was read, expected {size} bytes", "changed while it was read"
        )
    return content


def read_whole_file(path: str, largest: int, kind: str, role: str = "file") -> bytes:
    """Read an ordinary file of at most `largest` bytes; `kind` ("DICOM waveform") names the format in messages."""
    size = regular_file_size(path, role)
    if size > largest:
        raise ECGReadError(f"{path}: found {size} bytes, expected at most {largest} in a {kind} file", "too large")
    return read_bytes(path, size, role)


def refuse_pointer(path: str, start: bytes) -> None:
    """Raise `ECGReadError` if a file's first bytes are a Git LFS pointer, a placeholder of the real file."""
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise ECGReadError(
            f"{path}: a Git LFS pointer, not the file itself; run `git lfs pull` in its repository",
            "a Git LFS pointer: run `git lfs pull`",
        )


def missing_arguments(path: str, format_name: str, missing: Sequence[str]) -> ECGReadError:
    """Return the error of a file that does not contain what these arguments of `read_ecg` would give."""
    names = ", ".join(name.replace("_", " ") for name in missing)
    in_python = ", ".join(f"{name}=" for name in missing)
    return ECGReadError(
        f"{path}: a {format_name} file does not contain its {names}; pass {in_python}",
        f"no {names}: pass {in_python}",
    )


def refuse_infinite(path: str, samples: np.ndarray, lead_names: Sequence[str], where: str = "") -> None:
    """Raise `ECGReadError` if float `samples` (leads, samples) hold an infinite value. NaN is a missing sample."""
    if samples.dtype.kind == "f":
        infinite = np.isinf(samples).any(axis=1)
        if infinite.any():
            raise ECGReadError(
                f"{path}: {where}lead {lead_names[int(infinite.argmax())]} has infinite samples", "infinite samples"
            )


__all__ = ["ECGReadError", "ECGRecord"]
