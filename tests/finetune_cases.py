"""The smallest model and store that fine-tuning tests train on."""

import numpy as np
from tiny_pretraining import MODEL

from ecgfm_hf.data.store import write_store_checksums
from ecgfm_hf.training.settings import FINETUNED_MODEL

LABELS = ("slow", "fast", "rare")
TINY_MODEL = {**FINETUNED_MODEL, "activation_dropout": 0.0, **MODEL}


def recordings(patients, seed=0, seconds=10):
    """
    Recordings of two a patient, and labels by name: `fast` recordings hold a faster sine, `slow` the others, `rare` is
    noise and often unknown, `rate` its frequency.
    """
    from ecgfm_hf.feature_extraction_ecgfm import STANDARD_LEADS

    rng = np.random.default_rng(seed)
    found, labels = [], {name: [] for name in LABELS}
    for number in range(2 * patients):
        patient, fast = number // 2, int(rng.integers(2))
        rate = 3.0 + 6.0 * fast + rng.uniform(0, 1)
        time = np.arange(seconds * 100) / 100
        signal = np.sin(2 * np.pi * (rate * time + rng.uniform(size=(12, 1)))) + 0.1 * rng.standard_normal(
            (12, len(time))
        )
        found.append(
            {
                "recording_id": f"r{seed}_{number}",
                "patient_id": f"p{seed}_{patient}",
                "age": float(20 + 5 * rate),
                "signal": signal.astype(np.float32),
                "sampling_rate": 100,
                "lead_names": STANDARD_LEADS,
                "units": "mV",
            }
        )
        labels["fast"].append(fast)
        labels["slow"].append(1 - fast)
        labels["rare"].append(None if rng.uniform() < 0.6 else int(rng.uniform() < 0.4))
    return found, labels


def train_in_memory(model, data, settings, folder):
    """Trains a model on data in memory."""
    from dataclasses import replace

    from ecgfm_hf.training import Finetuner

    return Finetuner(replace(settings, output_dir=str(folder)), data=data, model=model).run()


def make_store(folder, patients=20, **split):
    """A prepared store; split by patient by default."""
    from ecgfm_hf.data import load_arrays

    found, labels = recordings(patients)
    how = {"split": "grouped", "fractions": {"train": 0.6, "valid": 0.2, "test": 0.2}} | split
    load_arrays(found, folder, labels, progress=False, **how)
    return folder


def plant_leak(store, into, patient):
    """Gives the recordings of a split to a patient, behind the back of the preparation, which would refuse."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (path,) = (store / "data").glob(f"{into}-*.parquet")
    table = pq.read_table(path)
    column = table.column_names.index("patient_id")
    pq.write_table(table.set_column(column, "patient_id", pa.array([patient] * table.num_rows, pa.string())), path)
    write_store_checksums(store)
