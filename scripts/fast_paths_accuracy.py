"""
What the fast paths of inference change of a classifier's scores, and of its AUROC.

    python scripts/fast_paths_accuracy.py MODEL STORE [--split test] [--paths int8-eager ...] [--json]

Scores a split of a store in float32 and along each path, and prints the largest change of a recording's score and of
a label's AUROC. Exit status 1 where an AUROC changes by more than 0.002. A classifier and a synthetic store:

    ecgfm synthesize cohort --patients 2000 --seed 5
    ecgfm prepare table cohort store --table cohort/labels.csv --split grouped \\
        --fractions train=0.5,valid=0.1,test=0.4
    ecgfm pretrain --config pretrain_tiny data=store output_dir=encoder
    ecgfm finetune --config finetune_small data=store init_from=encoder output_dir=classifier
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from benchmarks.paths import INFERENCE_PATHS, REFERENCE

from ecgfm_hf import load_pipeline
from ecgfm_hf.data import as_model_inputs, load_prepared
from ecgfm_hf.evaluation import auroc
from ecgfm_hf.inference import predict_recordings
from ecgfm_hf.inference.onnx_export import MODEL_FILE, export_onnx
from ecgfm_hf.pipeline_ecgfm import recording_scores
from ecgfm_hf.utils.precision import keep_freed_memory

PATHS = tuple(path for path in INFERENCE_PATHS if path != REFERENCE)
MOST = 0.002


def main() -> int:
    parser = argparse.ArgumentParser(description="What the fast paths of inference change of scores and AUROC.")
    parser.add_argument("model", metavar="MODEL", help="folder of a classifier")
    parser.add_argument("store", metavar="STORE", help="of `ecgfm prepare`, with its labels")
    parser.add_argument("--split", default="test", help="default: test")
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=PATHS, help="default: all")
    parser.add_argument("--batch-size", type=int, default=8, help="default: 8")
    parser.add_argument("--json", action="store_true", help="an object a line")
    options = parser.parse_args()
    keep_freed_memory()
    pipeline = load_pipeline(options.model)
    dataset = load_prepared(options.store, options.split)
    given = pipeline.model, pipeline.feature_extractor, dataset
    exact = predict_recordings(*given, batch_size=options.batch_size)
    expected, passed = auroc(exact.labels, exact.scores), True
    if not options.json:
        print(f"{len(exact.scores)} recordings, mean AUROC {np.nanmean(expected):.4f} in float32")
    for path in options.paths:
        precision, how = path.split("-")
        if how == "onnx":
            scores = _onnx_scores(options.model, *given)
        else:
            compiled = how == "compiled"
            found = predict_recordings(*given, batch_size=options.batch_size, precision=precision, compile=compiled)
            scores = found.scores
        changes = np.abs(auroc(exact.labels, scores) - expected)
        result = {
            "name": f"accuracy/{path}",
            "recordings": len(scores),
            "labels": int(np.isfinite(changes).sum()),
            "largest_score_change": float(np.abs(scores - exact.scores).max()),
            "largest_auroc_change": float(np.nanmax(changes)),
            "label": exact.label_names[int(np.nanargmax(changes))],
        }
        passed &= result["largest_auroc_change"] <= MOST
        print(json.dumps(result) if options.json else _line(result), flush=True)
    if not options.json:
        print(f"goal: no label's AUROC changes by more than {MOST}")
    return 0 if passed else 1


def _line(result: dict) -> str:
    return (
        f"{result['name']:32} scores change by {result['largest_score_change']:.1e} at most, AUROC by "
        f"{result['largest_auroc_change']:.1e} ({result['label']}; {result['labels']} labels)"
    )


def _onnx_scores(folder: str, model, extractor, dataset) -> np.ndarray:
    """(recordings, labels), in order of rows: as a user of the file gets them."""
    import onnxruntime

    inputs = as_model_inputs(dataset, extractor, labels=())
    recordings = np.asarray(inputs.recordings)
    with tempfile.TemporaryDirectory() as scratch:
        export_onnx(folder, Path(scratch) / "onnx")
        session = onnxruntime.InferenceSession(Path(scratch) / "onnx" / MODEL_FILE)
        found = []
        for row in np.unique(recordings):
            segments = np.stack([inputs[int(item)]["input_values"] for item in np.flatnonzero(recordings == row)])
            (logits,) = session.run(["logits"], {"input_values": segments.astype(np.float32)})
            found.append(list(recording_scores(logits, model.config).values()))
    return np.array(found)


if __name__ == "__main__":
    sys.exit(main())
