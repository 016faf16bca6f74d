"""
The package's main job on a real recording, with a model that has learnt nothing.

    python scripts/demo.py [OUTPUT_DIR]

Builds a tiny classifier with random weights, saves it, loads it again through `AutoModel`, and scores the real 12-lead
DICOM recording that comes with pydicom by `ecgfm predict`. The scores mean nothing: only the way is real. Then makes
synthetic recordings and prepares them for training.
"""

import shutil
import sys
from pathlib import Path

import torch
from pydicom.data import get_testdata_file
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.utils.logging import disable_progress_bar

from ecgfm_hf import ECGFMConfig, ECGFMFeatureExtractor, ECGFMForMultiLabelClassification, read_ecg, save_model_folder
from ecgfm_hf.cli import main as ecgfm
from ecgfm_hf.conversion import MIMIC17
from ecgfm_hf.data import as_model_inputs, load_prepared


def main() -> int:
    output_dir = Path(sys.argv[1] if len(sys.argv) > 1 else "demo_output")
    recording = get_testdata_file("waveform_ecg.dcm", download=False)
    if recording is None:
        print("the installed pydicom does not bring its recording waveform_ecg.dcm", file=sys.stderr)
        return 1

    disable_progress_bar()
    print("1. A tiny ECG-FM classifier with RANDOM weights: untrained, its scores mean nothing.")
    torch.manual_seed(0)
    config = ECGFMConfig.base(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=[16] * 4,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        id2label=dict(enumerate(MIMIC17.names)),
        label2id={name: i for i, name in enumerate(MIMIC17.names)},
    )
    model = ECGFMForMultiLabelClassification(config).eval()
    print(f"   {sum(parameter.numel() for parameter in model.parameters()):,} parameters, {config.num_labels} labels")

    model_dir = output_dir / "tiny-random-model"
    shutil.rmtree(model_dir, ignore_errors=True)
    save_model_folder(model, ECGFMFeatureExtractor(), model_dir)
    print(f"2. Saved to {model_dir}: {', '.join(sorted(path.name for path in model_dir.iterdir()))}")

    reloaded = AutoModelForSequenceClassification.from_pretrained(model_dir)
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, reloaded.state_dict()[name]):
            print(f"{name} changed on its way through the folder", file=sys.stderr)
            return 1
    encoder = AutoModel.from_pretrained(model_dir)
    record = read_ecg(recording)
    inputs = ECGFMFeatureExtractor.from_pretrained(model_dir)(
        record.signal,
        sampling_rate=record.sampling_rate,
        lead_names=record.lead_names,
        units="mV",
        return_tensors="pt",
    )
    with torch.no_grad():
        embedding = encoder(inputs["input_values"]).pooler_output
    print(f"3. Loaded through AutoModel, every weight equal; embeddings of its segments: {tuple(embedding.shape)}")

    leads, samples = record.signal.shape
    print(
        f"4. A real recording, {Path(recording).name}: {leads} leads, {record.sampling_rate:g} Hz, "
        f"{samples / record.sampling_rate:g} s\n\n   $ ecgfm predict {Path(recording).name} --model {model_dir}\n"
    )
    status = ecgfm(["predict", recording, "--model", str(model_dir)])
    status = status or _prepare(output_dir)
    print("\nThe scores come from RANDOM weights. Convert a published checkpoint for real ones: ecgfm convert --help")
    return status


def _prepare(output_dir: Path) -> int:
    """A dataset of synthetic recordings, split by patient, and the segments that training reads from it."""
    cohort, store = output_dir / "cohort", output_dir / "store"
    for folder in (cohort, store):
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\n5. A dataset: synthetic recordings\n\n   $ ecgfm synthesize {cohort} --patients 60\n")
    status = ecgfm(["synthesize", str(cohort), "--patients", "60"])
    table = str(cohort / "labels.csv")
    print(f"\n   $ ecgfm prepare table {cohort} {store} --table {table} --split grouped\n")
    status = status or ecgfm(["prepare", "table", str(cohort), str(store), "--table", table, "--split", "grouped"])
    if status == 0:
        inputs = as_model_inputs(load_prepared(store, "train"), ECGFMFeatureExtractor())
        shape = inputs[0]["input_values"].shape
        print(f"\n   The split train gives a model {len(inputs)} segments of shape {shape}.")
    return status


if __name__ == "__main__":
    sys.exit(main())
