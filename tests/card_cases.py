"""A tiny model folder, its facts and its evaluation: fixed, so that a card of it is."""

import json
import shutil
from pathlib import Path

import torch
from tiny_pretraining import MODEL

from ecgfm_hf import ECGFMConfig, ECGFMFeatureExtractor, ECGFMForMultiLabelClassification, save_model_folder
from ecgfm_hf.provenance import weights_digest

FIXTURES = Path(__file__).parent / "fixtures" / "cards"
LABELS = ("atrial fibrillation", "1st degree av block", "pacing rhythm")
DETAILS = {
    "name": "ECG-FM for three rhythms",
    "license": "mit",
    "developers": "The Rhythm Group, Example University",
    "contact": "rhythm at example.org",
    "summary": "Three rhythms from 12 leads.",
    "intended_use": "Research on rhythm in adults who had an electrocardiogram in the clinic.",
    "training_data": "Recordings of the clinic's devices, 2015 to 2020; read by one cardiologist; approved (EX-12/3).",
    "limitations": "- Adults only.\n- One cardiologist's reading.",
    "dataset_name": "Clinic ECG 2021",
    "dataset_id": "example/clinic-ecg",
    "evaluation_data": "Recordings of 2021, read by another cardiologist.",
    "training_datasets": ["example/clinic-ecg"],
    "tags": ["arrhythmia"],
    "citation": "@article{rhythm2024, title = {Three rhythms}}",
}


def tiny_config(names=LABELS, **fields):
    content = {
        **MODEL,
        "mask_time_prob": 0.0,
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": "multi_label_classification",
        **fields,
    }
    return ECGFMConfig(**content)


def write_model(folder, config):
    """A classifier of random weights, with no facts."""
    torch.manual_seed(0)
    save_model_folder(ECGFMForMultiLabelClassification(config).eval(), ECGFMFeatureExtractor(), folder)
    return folder


def fine_tuned(folder):
    """The folder of a fine-tuned model as `ecgfm finetune` leaves it, with the fixture's facts."""
    config = tiny_config(
        # One label has only few patients, so that no weights are reported.
        pos_weight=None,
        label_aggregation={"pacing rhythm": "max"},
        label_thresholds={"atrial fibrillation": 0.41, "1st degree av block": 0.52},
        label_calibration={
            "atrial fibrillation": {"slope": 1.1, "intercept": -1.2},
            "1st degree av block": {"slope": 0.9, "intercept": -2.0},
        },
        label_notes={"pacing rhythm": "Spikes are hard to see at 500 Hz."},
    )
    write_model(folder, config)
    shutil.copy(FIXTURES / "provenance.json", folder)
    return folder


def evaluation_of(folder, into, **changes):
    """The folder of an evaluation of that model."""
    results = json.loads((FIXTURES / "metrics.json").read_text(encoding="utf-8"))
    results |= {"weights": weights_digest(folder), **changes}
    into.mkdir(exist_ok=True)
    (into / "metrics.json").write_text(json.dumps(results), encoding="utf-8")
    return into
