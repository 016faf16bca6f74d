"""Recordings for the tests of studies: beats whose height and rate decide the labels."""

from typing import Any

import numpy as np

RARE = "rare"
_LEADS = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
_WEIGHTS = np.array([0.5, 1.0, 0.5, -0.75, 0.0, 0.75, -0.5, 0.4, 0.8, 1.1, 1.0, 0.8])


def make_recordings(
    count: int, patients: int, seed: int = 0, seconds: float = 10
) -> tuple[list[dict[str, Any]], dict[str, list[int]], list[tuple[float, float]]]:
    """
    Return recordings for `load_arrays`, their labels, and the height (mV) and rate of each.

    `tall` follows from the height with some noise, `fast` from the rate, and `rare` has 3 positives.
    """
    random = np.random.default_rng(seed)
    recordings, truths = [], []
    labels: dict[str, list[int]] = {"tall": [], "fast": [], RARE: []}
    at = np.arange(round(500 * seconds)) / 500
    for number in range(count):
        height, rate = random.uniform(0.8, 2.0), random.uniform(55, 110)
        beats = np.arange(0.4, seconds, 60 / rate)
        signal = sum(
            size * np.exp(-0.5 * ((at[:, None] - beats - shift) / width) ** 2).sum(axis=1)
            for size, shift, width in ((height, 0, 0.012), (0.12, -0.16, 0.02), (0.25, 0.28, 0.045))
        )
        noise = random.normal(0, 0.01, (12, len(at)))
        recordings.append(
            {
                "signal": (_WEIGHTS[:, None] * signal + noise).astype(np.float32),
                "sampling_rate": 500,
                "lead_names": _LEADS,
                "recording_id": f"recording-{number:04d}",
                "patient_id": f"patient-{number % patients:04d}",
                "units": "mV",
            }
        )
        truths.append((height, rate))
        labels["tall"].append(int(height + random.normal(0, 0.15) > 1.4))
        labels["fast"].append(int(rate + random.normal(0, 5) > 85))
        labels[RARE].append(int(number < 3))
    return recordings, labels, truths
