"""
Noise of the electrodes, and the atria's waves in fibrillation.

Noise arises at electrodes and reaches the leads as differences of potentials. The limb leads therefore obey Einthoven's
law, and the chest leads contain the noise of the limbs.
"""

import numpy as np

from .settings import CohortSettings

# Potentials of RA, LA, LL, V1..V6 to the eight independent leads; chest leads refer to Wilson's central terminal.
_LEADS_FROM_ELECTRODES = np.zeros((8, 9))
_LEADS_FROM_ELECTRODES[0, :2] = -1, 1
_LEADS_FROM_ELECTRODES[1, :3] = -1, 0, 1
_LEADS_FROM_ELECTRODES[2:, 3:] = np.eye(6)
_LEADS_FROM_ELECTRODES[2:, :3] = -1 / 3


def lognormal(rng: np.random.Generator, median_and_log_sd: tuple[float, float]) -> float:
    """Draw from the log-normal distribution with this median and standard deviation of the logarithm."""
    median, log_sd = median_and_log_sd
    return float(median * np.exp(log_sd * rng.standard_normal()))


def electrode_noise(
    rng: np.random.Generator, samples: int, sampling_rate: float, settings: CohortSettings
) -> tuple[np.ndarray, dict[str, float]]:
    """
    Draw the noise of the eight independent leads.

    Returns:
        (8, samples) mV, and its amounts: `white_mv`, `muscle_mv`, `wander_mv`, `mains_mv` (each for one electrode),
        `mains_hz`, `contact_mv` (0 if no electrode jumped).
    """
    amounts = {
        "white_mv": lognormal(rng, settings.white_mv),
        "muscle_mv": lognormal(rng, settings.muscle_mv),
        "wander_mv": lognormal(rng, settings.wander_mv),
        "mains_mv": lognormal(rng, settings.mains_mv),
        "mains_hz": 60.0 if rng.random() < settings.mains_60_hz else 50.0,
        "contact_mv": 0.0,
    }
    clock = np.arange(samples) / sampling_rate

    # A difference of two samples passes the frequencies of muscles and stops slow ones; the amount varies in time.
    gap = max(1, round(0.004 * sampling_rate))
    potentials = rng.standard_normal((9, samples + gap))
    centre, spread = rng.uniform(0, clock[-1]), rng.uniform(0.4, 4)
    burst = 0.6 + 1.2 * np.exp(-0.5 * ((clock - centre) / spread) ** 2)
    muscle = (potentials[:, gap:] - potentials[:, :-gap]) * (burst * (amounts["muscle_mv"] / np.sqrt(2)))
    muscle *= np.exp(0.4 * rng.standard_normal((9, 1)))
    potentials = potentials[:, gap:] * amounts["white_mv"]
    potentials += muscle

    # Breathing and slower drift: three frequencies, in a mixture of its own for each electrode.
    frequencies = np.array([rng.uniform(0.17, 0.33), rng.uniform(0.04, 0.15), rng.uniform(0.3, 0.6)])
    turns = np.exp(2j * np.pi * frequencies[:, None] * clock)
    slow = rng.standard_normal((9, 6)) * np.repeat(amounts["wander_mv"] * np.array([0.6, 0.7, 0.25]), 2)
    slow *= np.exp(0.4 * rng.standard_normal((9, 1)))
    basis = turns.view(np.float64).reshape(3, samples, 2)
    potentials += slow @ basis.transpose(0, 2, 1).reshape(6, samples)

    hum = np.exp(2j * np.pi * (amounts["mains_hz"] * clock + rng.random()))
    wave = hum.real + 0.15 * (hum**3).real
    potentials += amounts["mains_mv"] * np.exp(0.5 * rng.standard_normal((9, 1))) * wave

    if rng.random() < settings.contact_share:
        amounts["contact_mv"] = lognormal(rng, settings.contact_mv)
        _jump(rng, potentials[rng.integers(9)], clock, amounts["contact_mv"])
    return _LEADS_FROM_ELECTRODES @ potentials, amounts


def _jump(rng: np.random.Generator, potential: np.ndarray, clock: np.ndarray, size: float) -> None:
    """Let an electrode's potential jump and creep back, once to three times, in place."""
    for _ in range(int(rng.integers(1, 4))):
        since = clock - rng.uniform(0, clock[-1])
        height, recovery = rng.normal(0, size), rng.uniform(0.05, 0.8)
        potential += height * np.where(since >= 0, np.exp(-np.maximum(since, 0) / recovery), 0)


def fibrillation_waves(rng: np.random.Generator, samples: int, sampling_rate: float, size: float) -> np.ndarray:
    """
    Draw the atria's activity in fibrillation as a vectorcardiogram (3, samples) in mV.

    The waves have 4 to 8 Hz, wandering phase and size, and are largest towards V1.
    """
    clock = np.arange(samples) / sampling_rate
    frequency = rng.uniform(4.2, 8.2)
    knots = np.arange(0, clock[-1] + 0.5, 0.25)
    wander = np.interp(clock, knots, np.cumsum(rng.standard_normal(len(knots))) * 0.55)
    swell = np.interp(clock, knots[::2], 1 + 0.35 * rng.standard_normal(len(knots[::2])))
    phase = 2 * np.pi * frequency * clock + wander + rng.uniform(0, 2 * np.pi)
    turn = np.exp(1j * phase)
    main = np.array([-0.25, 0.55, -0.85]) + 0.2 * rng.standard_normal(3)
    side = 0.35 * rng.standard_normal(3)
    wave = turn.imag + 0.35 * (turn**2).real
    return size * swell * (main[:, None] * wave + side[:, None] * turn.real)
