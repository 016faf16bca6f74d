"""Recordings, a store of them and a small classifier, for tests of inference."""

from pathlib import Path

import numpy as np
import torch

from ecgfm_hf import ECGFMFeatureExtractor, ECGFMForMultiLabelClassification, save_model_folder
from ecgfm_hf.data import load_arrays, load_prepared
from ecgfm_hf.feature_extraction_ecgfm import STANDARD_LEADS

SECONDS = (10, 5, 23, 3, 10, 15, 4, 10, 5, 10)
LABELS = {"A": [1, 0, 1, None, 0, 1, 0, 0, None, 1], "C": [0, None, 0, 1, 1, 0, 0, 1, 1, 0]}


def recordings(seconds=SECONDS, seed=0) -> list[dict]:
    """Made-up recordings at two rates, the limb leads in agreement."""
    rng = np.random.default_rng(seed)
    found = []
    for number, length in enumerate(seconds):
        rate = (500, 250)[number % 2]
        one, two, *chest = rng.standard_normal((8, length * rate)).cumsum(axis=1) * 20
        limbs = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
        found.append(
            {
                "recording_id": f"r{number}",
                "patient_id": None if number == 1 else f"p{number}",
                "signal": np.stack([*limbs, *chest]).round().astype(np.int32),
                "sampling_rate": rate,
                "lead_names": STANDARD_LEADS,
                "units": "uV",
                "age": None if number == 2 else 40.0 + number,
                "sex": "female",
            }
        )
    return found


def write_store(folder: Path, given: list[dict], labels: dict | None = None) -> Path:
    load_arrays(given, folder, labels, progress=False)
    return folder


def open_store(folder: Path):
    return load_prepared(folder, "all")


def write_model(folder: Path, config, seed: int = 3, **policies) -> Path:
    torch.manual_seed(seed)
    save_model_folder(ECGFMForMultiLabelClassification(config).eval(), ECGFMFeatureExtractor(**policies), folder)
    return folder


def as_pipeline_input(recording: dict) -> dict:
    return {name: recording[name] for name in ("signal", "sampling_rate", "lead_names", "units")}
