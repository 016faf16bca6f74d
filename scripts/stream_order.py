"""
What does the order of a stream do to training?

    python scripts/stream_order.py [--patients 750] [--epochs 4] [--seeds 3]

A tiny classifier is trained on synthetic recordings, whose rows are sorted by the most balanced label: the worst order
for a stream. It reads them in four orders. For each, the mean AUROC of the test recordings over the labels is printed:

- `random`: any segment at any time, from the copy that a `Dataset` is
- `groups`: a stream of groups of 64 recordings, as `reshard()` makes them, and `shuffle(buffer_size=500)`
- `file`: `shuffle(buffer_size=500)` only
- `sorted`: no shuffling
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from ecgfm_hf import ECGFMConfig, ECGFMFeatureExtractor, ECGFMForMultiLabelClassification
from ecgfm_hf.data import (
    PhysioNet2021,
    PrepareSettings,
    SplitSettings,
    as_model_inputs,
    collate_items,
    load_prepared,
    prepare,
)
from ecgfm_hf.evaluation.metrics import auroc
from ecgfm_hf.synthetic import SyntheticCohort

ORDERS = ("random", "groups", "file", "sorted")
GROUP, BUFFER, BATCH = 64, 500, 32
LEAST_CASES = 8
_TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
_TINY |= {"conv_dim": [32] * 4, "num_conv_pos_embeddings": 32, "num_conv_pos_embedding_groups": 4}


def main() -> int:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description="What does the order of a stream do to training?")
    parser.add_argument("--patients", metavar="N", type=int, default=750)
    parser.add_argument("--epochs", metavar="N", type=int, default=4)
    parser.add_argument("--seeds", metavar="N", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ecgfm-order-") as folder:
        train, test = cohort(Path(folder), options.patients)
        for order in ORDERS:
            found = [trained(train, test, order, seed, options.epochs) for seed in range(options.seeds)]
            each = ", ".join(f"{one:.3f}" for one in found)
            print(f"{order:8} mean AUROC {np.mean(found):.3f} (by seed: {each})", flush=True)
    return 0


def cohort(folder: Path, patients: int) -> tuple[Dataset, Dataset]:
    """Return sorted training rows, and test rows."""
    SyntheticCohort(patients, seed=1).write_wfdb(folder / "wfdb")
    split = SplitSettings("random", assume_independent=True)
    prepare(PhysioNet2021(folder / "wfdb"), folder / "store", PrepareSettings(split=split))
    train, test = load_prepared(folder / "store", "train"), load_prepared(folder / "store", "test")
    names = as_model_inputs(test, ECGFMFeatureExtractor()).label_names
    balanced = min(names, key=lambda name: abs(sum(value or 0 for value in train[name]) / len(train) - 0.5))
    return train.sort([balanced, "recording_id"]), test


def trained(train: Dataset, test: Dataset, order: str, seed: int, epochs: int, least_cases: int = LEAST_CASES) -> float:
    """Return the mean AUROC of a model that read `train` in this order, over labels with enough cases and others."""
    torch.manual_seed(seed)
    held_out = as_model_inputs(test, ECGFMFeatureExtractor())
    batch = collate_items(held_out.__getitems__(range(len(held_out))))
    model = ECGFMForMultiLabelClassification(ECGFMConfig.base(num_labels=len(held_out.label_names), **_TINY)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(epochs):
        for inputs in _batches(train, order, 1000 * seed + epoch):
            loss = model(inputs["input_values"], labels=inputs["labels"]).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    with torch.no_grad():
        parts = batch["input_values"].split(2 * BATCH)
        scores = torch.cat([model.eval()(part).logits for part in parts]).double().numpy()
    labels = batch["labels"].double().numpy()
    cases = np.nansum(labels, axis=0)
    enough = (cases >= least_cases) & (cases <= len(labels) - least_cases)
    return float(np.nanmean(auroc(labels[:, enough], scores[:, enough])))


def _batches(rows: Dataset, order: str, seed: int) -> Iterator[dict]:
    """Yield an epoch's batches."""
    if order == "random":
        inputs = as_model_inputs(rows, ECGFMFeatureExtractor())
        chosen = np.random.default_rng(seed).permutation(len(inputs))
        for first in range(0, len(chosen), BATCH):
            yield collate_items(inputs.__getitems__(chosen[first : first + BATCH]))
        return
    stream = rows.to_iterable_dataset(num_shards=-(-len(rows) // GROUP) if order == "groups" else 1)
    if order != "sorted":
        stream = stream.shuffle(seed=seed, buffer_size=BUFFER)
    for batch in as_model_inputs(stream, ECGFMFeatureExtractor()).batch(BATCH):
        yield collate_items([dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)])


if __name__ == "__main__":
    sys.exit(main())
