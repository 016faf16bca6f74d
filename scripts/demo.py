"""
The package's main job from beginning to end, on recordings that are made on the spot.

    python scripts/demo.py [OUTPUT_DIR]

Makes a synthetic cohort, prepares and splits it by patient, pretrains a tiny encoder for a minute, fine-tunes a
classifier, evaluates it on held-out patients with intervals, loads it through `AutoModel`, and predicts a real 12-lead
recording (the DICOM file that comes with pydicom). Every step is an `ecgfm` command that is printed before it runs.

The cohort is SYNTHETIC and the model has learnt nothing else: its scores of a real recording mean nothing.
"""

import json
import shlex
import shutil
import sys
import time
from pathlib import Path

import torch
from pydicom.data import get_testdata_file
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.utils.logging import disable_progress_bar

from ecgfm_hf import ECGFMFeatureExtractor, read_ecg
from ecgfm_hf.cli.main import main as ecgfm

# Of 1.9 recordings on average.
PATIENTS = 420
# The labels of the cohort that can be learnt in a minute of training.
LABELS = ["sinus bradycardia", "sinus tachycardia", "atrial fibrillation", "premature ventricular contractions"]


class StepFailed(Exception):
    """A command's exit status was not 0."""


def step(number: int, title: str, *command: str) -> None:
    """Prints a command and runs it."""
    print(f"\n{number}. {title}\n\n   $ ecgfm {shlex.join(command)}\n", flush=True)
    if status := ecgfm(list(command)):
        raise StepFailed(f"ecgfm {command[0]} ended with status {status}")


def main() -> int:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "demo_output")
    real = get_testdata_file("waveform_ecg.dcm", download=False)
    if real is None:
        print("the installed pydicom does not bring its recording waveform_ecg.dcm", file=sys.stderr)
        return 1
    start = time.monotonic()
    disable_progress_bar()
    shutil.rmtree(out, ignore_errors=True)
    cohort, store, encoder, classifier, evaluation = (
        str(out / name) for name in ("cohort", "store", "encoder", "classifier", "evaluation")
    )
    table = str(out / "cohort" / "labels.csv")
    try:
        step(1, "SYNTHETIC recordings", "synthesize", cohort, "--patients", str(PATIENTS), "--num-proc", "2")
        step(
            2,
            "A store: signals as they came, labels, splits by patient",
            *("prepare", "table", cohort, store, "--table", table, "--split", "grouped", "--num-proc", "2"),
        )
        step(
            3,
            "Pretraining without labels (W2V + CMSC + RLM), briefly",
            *("pretrain", "--config", "pretrain_tiny", f"data={store}", f"output_dir={encoder}", "use_cpu=true"),
            *("num_train_epochs=3", "save_strategy=no", "logging_steps=5", "model.gumbel_temperature_decay=0.97"),
        )
        step(
            4,
            "Fine-tuning on the training split; validation chooses the update, calibration and thresholds",
            *("finetune", "--config", "finetune_small", f"data={store}", f"init_from={encoder}"),
            *(f"output_dir={classifier}", f"labels={json.dumps(LABELS)}", "use_cpu=true", "num_train_epochs=10"),
        )
        step(
            5,
            "Evaluation on patients that no step has seen; the public cohort has no small cells to hide",
            *("evaluate", classifier, store, "--split", "test", "--output", evaluation, "--smallest-cell", "1"),
        )
        check_auto_classes(6, classifier, real)
        step(
            7,
            f"A REAL recording, {Path(real).name}, with a page on ECG paper",
            *("predict", real, "--model", classifier, "--plot", str(out / "pages"), "--plot-format", "png"),
            *("--plot-saliency", LABELS[-1]),
        )
    except StepFailed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print(f"\nDone in {time.monotonic() - start:.0f} s. {evaluation}/report.html is the report to look at.")
    print("The model has only seen SYNTHETIC recordings: its scores of the real one mean nothing.")
    print("For published weights: ecgfm convert --help")
    return 0


def check_auto_classes(number: int, classifier: str, recording: str) -> None:
    """What users of transformers do: load by folder, embed, score."""
    print(f"\n{number}. The same folder through AutoModel")
    extractor = ECGFMFeatureExtractor.from_pretrained(classifier)
    record = read_ecg(recording)
    inputs = extractor(
        record.signal,
        sampling_rate=record.sampling_rate,
        lead_names=record.lead_names,
        units="mV",
        return_tensors="pt",
    )["input_values"]
    with torch.no_grad():
        embedding = AutoModel.from_pretrained(classifier)(inputs).pooler_output
        logits = AutoModelForSequenceClassification.from_pretrained(classifier)(inputs).logits
    print(f"   embeddings {tuple(embedding.shape)}, logits {tuple(logits.shape)}: one row per segment of 5 s")


if __name__ == "__main__":
    sys.exit(main())
