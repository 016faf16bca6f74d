"""
Augmentations of recordings in mV and of segments, and how a run draws them.

The augmentations of these names in fairseq-signals act on standardised segments. They recompute III, aVR, aVL and aVF
from I and II as if leads still were voltages, although III is II - I only in mV: the recomputed leads get standard
deviations of 0.29 to 1.65. Here noise is added to the whole recording in mV, before it is standardised, in the
recording's own lead order and sampling rate. So amplitudes are in mV: an amplitude of 0.1 in fairseq-signals is a tenth
of a lead's deviation, which is about 0.02 mV.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..records.record import ECGRecord

# The weights of I and II in each.
LIMB_LEADS = {"III": (-1.0, 1.0), "aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}

# numpy's legacy RandomState has the same methods; tests draw from it, as fairseq-signals does.
Random = np.random.Generator | np.random.RandomState


def recompute_limb_leads(signal: np.ndarray, lead_names: Sequence[str]) -> np.ndarray:
    """
    Recompute III, aVR, aVL and aVF from I and II, in place.

    Args:
        signal (`np.ndarray` (leads, samples)): In mV; for standardised leads the relation does not hold.
        lead_names (sequence of `str`): One per lead. Missing leads are skipped; without I and II nothing is changed.
    """
    rows = {name: row for row, name in enumerate(lead_names)}
    if "I" in rows and "II" in rows:
        first, second = signal[rows["I"]], signal[rows["II"]]
        for name, (of_first, of_second) in LIMB_LEADS.items():
            if name in rows:
                signal[rows[name]] = of_first * first + of_second * second
    return signal


# ----------------------------------------------------------------------------------------------------------------------
# Noise, on recordings in mV
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Noise:
    """
    Noise that is added to a recording in mV.

    Constant leads (an electrode that was off, a lead that was never recorded) are not changed: standardising would make
    a lead of pure noise of them.

    Attributes:
        max_amplitude, min_amplitude: mV; each kind of noise draws its amplitudes between them.
        dependency: Recompute III, aVR, aVL and aVF from the noisy I and II instead of adding noise to them; unless I or
            II is constant or has NaN, which would spread to valid leads.
        apply_probability: Share of the recordings that get the noise.

    Raises:
        `ValueError`: a value outside its range.
    """

    max_amplitude: float = 0.1
    min_amplitude: float = 0.0
    dependency: bool = True
    apply_probability: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_amplitude <= self.max_amplitude < math.inf:
            raise ValueError(
                "amplitudes must be 0 <= min_amplitude <= max_amplitude, in mV, "
                f"found: {self.min_amplitude} and {self.max_amplitude}"
            )
        _check_probability("apply_probability", self.apply_probability)

    def __call__(
        self, signal: np.ndarray, sampling_rate: float, lead_names: Sequence[str], random: Random
    ) -> np.ndarray:
        """
        Return a noisy copy.

        Args:
            signal (`np.ndarray` (leads, samples)): In mV.
            sampling_rate (`float`): Hz.
            lead_names (sequence of `str`): One per lead, in any order.
            random: Draws random numbers, in the order of fairseq-signals.
        """
        if not self.apply_probability > random.uniform():
            return signal
        num_leads, num_samples = signal.shape
        noisy = signal + self._draw(num_leads, num_samples, sampling_rate, random)
        constant = signal.max(axis=1) == signal.min(axis=1)
        if self.dependency:
            sound = ~constant & np.isfinite(signal).all(axis=1)
            recompute_limb_leads(
                noisy, [name if usable else "" for name, usable in zip(lead_names, sound, strict=True)]
            )
        noisy[constant] = signal[constant]
        return noisy.astype(signal.dtype, copy=False)

    def _draw(self, num_leads: int, num_samples: int, sampling_rate: float, random: Random) -> np.ndarray:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class PowerlineNoise(Noise):
    """
    A sine wave of the mains, with one amplitude and phase for all leads.

    Attributes:
        frequencies: Hz; one of them is drawn.
    """

    frequencies: tuple[float, ...] = (50.0, 60.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "frequencies", tuple(self.frequencies))
        if not self.frequencies or not all(0 < frequency < math.inf for frequency in self.frequencies):
            raise ValueError(f"frequencies must be above 0 Hz, found: {list(self.frequencies)}")

    def _draw(self, num_leads: int, num_samples: int, sampling_rate: float, random: Random) -> np.ndarray:
        amplitude = random.uniform(self.min_amplitude, self.max_amplitude)
        # fairseq-signals takes 50 Hz for numbers above a half: the list from its end.
        choice = min(int((1.0 - random.uniform()) * len(self.frequencies)), len(self.frequencies) - 1)
        return amplitude * _cosine(self.frequencies[choice], num_samples, sampling_rate, random)


@dataclass(frozen=True, kw_only=True)
class EMGNoise(Noise):
    """White noise of the muscles; each lead has its own amplitude (standard deviation)."""

    def _draw(self, num_leads: int, num_samples: int, sampling_rate: float, random: Random) -> np.ndarray:
        amplitudes = random.uniform(self.min_amplitude, self.max_amplitude, size=(num_leads, 1))
        return random.normal(0.0, 1.0, size=(num_leads, num_samples)) * amplitudes


@dataclass(frozen=True, kw_only=True)
class BaselineShift(Noise):
    """
    Spans of the recording that are shifted by one amplitude, each lead up or down at random.

    fairseq-signals shifts by +1 - amplitude or -1 - amplitude, so by about a whole deviation for any amplitude; here
    the shift is the product.

    Attributes:
        shift_ratio: Mean length of a span as a share of the recording; its deviation is a fifth of that.
        num_segment: Number of spans; they may overlap, and a sample is shifted once.
    """

    shift_ratio: float = 0.2
    num_segment: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.shift_ratio <= 1:
            raise ValueError(f"shift_ratio must be above 0 and at most 1, found: {self.shift_ratio}")
        _check_count("num_segment", self.num_segment)

    def _draw(self, num_leads: int, num_samples: int, sampling_rate: float, random: Random) -> np.ndarray:
        directions = random.choice([1, -1], size=(num_leads, 1))
        amplitude = random.uniform(self.min_amplitude, self.max_amplitude)
        shifted = np.zeros(num_samples)
        mean_length = num_samples * self.shift_ratio
        for _ in range(self.num_segment):
            # The normal distribution has no ends; in fairseq-signals a span may exceed the recording.
            length = min(max(random.normal(mean_length, mean_length * 0.2), 0.0), float(num_samples))
            begin = int(random.uniform(0, num_samples - length))
            shifted[begin : int(begin + length)] = 1.0
        return directions * amplitude * shifted


@dataclass(frozen=True, kw_only=True)
class BaselineWander(Noise):
    """
    A sum of slow sine waves, as of breathing and movement; each lead's share of it is around 1 (deviation 0.5).

    Attributes:
        min_freq, max_freq: Hz.
        k: Number of sine waves.
    """

    min_freq: float = 0.01
    max_freq: float = 0.2
    k: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_freq <= self.max_freq < math.inf:
            raise ValueError(
                f"frequencies must be 0 <= min_freq <= max_freq, in Hz, found: {self.min_freq} and {self.max_freq}"
            )
        _check_count("k", self.k)

    def _draw(self, num_leads: int, num_samples: int, sampling_rate: float, random: Random) -> np.ndarray:
        shares = random.normal(1.0, 0.5, size=(num_leads, 1))
        amplitudes = random.uniform(self.min_amplitude, self.max_amplitude, size=self.k)
        wander = np.zeros(num_samples)
        for amplitude in amplitudes:
            frequency = random.uniform(self.min_freq, self.max_freq)
            wander += amplitude * _cosine(frequency, num_samples, sampling_rate, random)
        return shares * wander


def _cosine(frequency: float, num_samples: int, sampling_rate: float, random: Random) -> np.ndarray:
    """Return a cosine (samples,) of amplitude 1 and random phase."""
    phase = random.uniform(0.0, 2 * np.pi)
    return np.cos(2 * np.pi * frequency * (np.arange(num_samples) / sampling_rate) + phase)


# ----------------------------------------------------------------------------------------------------------------------
# Lead masking, on standardised segments
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RandomLeadMasking:
    """
    RLM (Oh et al. 2022): each lead is set to 0 independently, so all of them may be. There is no `conditional` masking,
    which crashes in fairseq-signals.

    Attributes:
        p: Probability of masking a lead (`mask_leads_prob` in fairseq-signals).
        apply_probability: Share of the segments with masking (`p` in fairseq-signals).

    Raises:
        `ValueError`: a value outside its range.
    """

    p: float = 0.5
    apply_probability: float = 1.0

    def __post_init__(self) -> None:
        _check_probability("p", self.p)
        _check_probability("apply_probability", self.apply_probability)

    def __call__(self, values: np.ndarray, random: Random) -> np.ndarray:
        """Set some leads of `values` (leads, samples) to 0; in place where the array can be written to."""
        if not self.apply_probability > random.uniform():
            return values
        masked = random.uniform(size=len(values)) < self.p
        if not values.flags.writeable:
            values = values.copy()
        values[masked] = 0.0
        return values


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, found: {value}")


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, found: {value}")


# ----------------------------------------------------------------------------------------------------------------------
# In a run
# ----------------------------------------------------------------------------------------------------------------------

# In the order in which they act: electrodes, wires, and last what is hidden from the model.
AUGMENTATIONS = {
    "baseline_wander": BaselineWander,
    "baseline_shift": BaselineShift,
    "emg_noise": EMGNoise,
    "powerline_noise": PowerlineNoise,
    "random_lead_masking": RandomLeadMasking,
}


class _Draws:
    """
    A random generator that is seeded again for every name, from the run's seed, the epoch and the name.

    So draws do not depend on the order of reading, on the number of workers, or on where a run was resumed.
    """

    def __init__(self, seed: int, epoch: torch.Tensor | None = None):
        self._seed = int(seed)
        # In shared memory, as persistent workers hold a copy of this object from their start.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_() if epoch is None else epoch
        self._bits = np.random.Philox(0)
        self._generator = np.random.Generator(self._bits)
        self._beginning = self._bits.state

    def __reduce__(self) -> tuple[type["_Draws"], tuple[int, torch.Tensor]]:
        # A copied generator would no longer draw from the copied bits.
        return _Draws, (self._seed, self._epoch)

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(int(epoch))

    def of(self, *name: str | int) -> np.random.Generator:
        """Return the generator of a name, valid until the next call. New ones would cost ten times as much."""
        text = repr((self._seed, self._epoch.item(), *name))
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        self._beginning["state"]["key"] = np.frombuffer(key, dtype=np.uint64)
        self._bits.state = self._beginning
        return self._generator


class SignalAugmentations:
    """
    Several kinds of noise, for `as_model_inputs(..., signal_transform=)`; [`build_augmentations`] makes it.

    Attributes:
        steps (`dict[str, Noise]`): By name.
    """

    def __init__(self, steps: Mapping[str, Noise], draws: _Draws):
        self.steps, self._draws = dict(steps), draws

    def set_epoch(self, epoch: int) -> None:
        """Draw other noise from now on, in running workers too. Both transforms of a run change."""
        self._draws.set_epoch(epoch)

    def __call__(self, signal: np.ndarray, record: ECGRecord) -> np.ndarray:
        """Add noise to a signal (leads, samples) in mV: the same for all segments of a recording in an epoch."""
        for name, noise in self.steps.items():
            random = self._draws.of(name, record.recording_id)
            signal = noise(signal, record.sampling_rate, record.lead_names, random)
        return signal


class InputAugmentations:
    """
    Changes of standardised segments, for `as_model_inputs(..., transform=)`; [`build_augmentations`] makes it.

    Attributes:
        steps (`dict[str, RandomLeadMasking]`): By name.
    """

    def __init__(self, steps: Mapping[str, RandomLeadMasking], draws: _Draws):
        self.steps, self._draws = dict(steps), draws

    def set_epoch(self, epoch: int) -> None:
        """Draw other masks from now on, in running workers too. Both transforms of a run change."""
        self._draws.set_epoch(epoch)

    def __call__(self, values: np.ndarray, item: Mapping[str, Any]) -> np.ndarray:
        """
        Change a segment or a pair of segments.

        Args:
            values (`np.ndarray` (leads, samples) or (2, leads, samples)): Changed in place if possible. Each segment of
                a pair gets the draws that it would get by itself.
            item (mapping): With `recording_id` and `segment` (the first one of a pair).
        """
        recording, segment = item["recording_id"], int(item["segment"])
        for name, step in self.steps.items():
            if values.ndim == 2:
                values = step(values, self._draws.of(name, recording, segment))
                continue
            if not values.flags.writeable:
                values = values.copy()
            for index in range(len(values)):
                values[index] = step(values[index], self._draws.of(name, recording, segment + index))
        return values


def build_augmentations(
    settings: Mapping[str, Mapping[str, Any] | None], seed: int
) -> tuple[SignalAugmentations | None, InputAugmentations | None]:
    """
    Build the augmentations of a run.

    Args:
        settings (mapping): Settings by name, such as `{"random_lead_masking": {"p": 0.5}, "emg_noise": {}}`. Names:
            `baseline_wander`, `baseline_shift`, `emg_noise`, `powerline_noise`, `random_lead_masking`; they act in
            this order. Their settings are the attributes of their classes.
        seed (`int`)

    Returns:
        `signal_transform` and `transform` for [`as_model_inputs`], None where there is nothing to do. Both have
        `set_epoch(epoch)`; one call changes both, also in running `DataLoader` workers. The draws for an item depend on
        seed, epoch, recording and segment only; noise in mV is the same for all segments of a recording.

    Raises:
        `ValueError`: an unknown name or setting, or a value outside its range; the message lists those that exist.
    """
    if unknown := [name for name in settings if name not in AUGMENTATIONS]:
        raise ValueError(f"unknown augmentation {', '.join(map(repr, unknown))} (known: {', '.join(AUGMENTATIONS)})")
    steps = {name: _build(name, settings[name]) for name in AUGMENTATIONS if name in settings}
    draws = _Draws(seed)
    noises = {name: step for name, step in steps.items() if isinstance(step, Noise)}
    maskings = {name: step for name, step in steps.items() if isinstance(step, RandomLeadMasking)}
    return (
        SignalAugmentations(noises, draws) if noises else None,
        InputAugmentations(maskings, draws) if maskings else None,
    )


def _build(name: str, given: Mapping[str, Any] | None) -> Noise | RandomLeadMasking:
    kind = AUGMENTATIONS[name]
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"{name} takes settings by name, such as {{}}, found: {given!r}")
    known = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := [key for key in given or {} if key not in known]:
        raise ValueError(f"{name} has no setting {', '.join(map(repr, unknown))} (known: {', '.join(known)})")
    try:
        return kind(**(given or {}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None


__all__ = [
    "BaselineShift",
    "BaselineWander",
    "EMGNoise",
    "InputAugmentations",
    "Noise",
    "PowerlineNoise",
    "RandomLeadMasking",
    "SignalAugmentations",
    "build_augmentations",
    "recompute_limb_leads",
]
