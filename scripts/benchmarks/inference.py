"""The fast paths of inference side by side: speed, memory, and what they change of the scores."""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from .ceiling import timed_shares
from .model import GFLOP_PER_SEGMENT, run_cases
from .paths import INFERENCE_PATHS, REFERENCE

GOAL = "the best path at least 3.5 times the ceiling, a change of a score at most 0.01"
LABELS = 17


def run(options: argparse.Namespace) -> int:
    """Print the figures of every path. float32 comes first; the other scores are compared with it."""
    paths = [REFERENCE, *(path for path in INFERENCE_PATHS if path in options.paths and path != REFERENCE)]
    with tempfile.TemporaryDirectory(prefix="ecgfm-benchmark-") as scratch:
        cases = [
            {
                "name": f"inference/{path}/batch{options.batch_size}",
                "path": path,
                "batch": options.batch_size,
                "runs": options.runs,
                "folder": scratch,
            }
            for path in paths
        ]
        if "float32-onnx" in paths:
            # In a process of its own too, since what it needs is not to be counted.
            export = {"name": "export", "path": "export", "folder": scratch}
            if status := run_cases("inference", [export], as_json=True, show=False):
                return status
        scores: dict[str, list] = {}

        def compare(result: dict) -> None:
            found = result.pop("scores")
            expected = scores.setdefault(REFERENCE, found)
            result["largest_score_change"] = max(
                abs(one - other) for row in zip(found, expected, strict=True) for one, other in zip(*row, strict=True)
            )

        status = run_cases("inference", cases, options.json, finish=compare)
    if not options.json and not status:
        print(f"goal: {GOAL}")
    return status


def measure(case: dict) -> int:
    """Prints one object: a case's figures."""
    import torch

    from ecgfm_hf.utils.precision import keep_freed_memory

    kept = keep_freed_memory()
    if case["path"] == "export":
        _export(Path(case["folder"]))
        print(json.dumps({"name": case["name"]}))
        return 0
    precision, how = case["path"].split("-")
    inputs = _segments(case["batch"])
    if how == "onnx":
        step = _onnx_step(Path(case["folder"]), inputs.numpy())
    else:
        from ecgfm_hf.utils.precision import weights_dtype, with_compiled_layers, with_precision

        model = with_precision(_base_model(weights_dtype(precision)), precision)
        if how == "compiled":
            model = with_compiled_layers(model)

        def step() -> torch.Tensor:
            return model(inputs).logits

    with torch.no_grad():
        start = time.perf_counter()
        logits = torch.as_tensor(step())
        first = time.perf_counter() - start
        figures = timed_shares(step, case["batch"], GFLOP_PER_SEGMENT["base"], case["runs"])
    print(
        json.dumps(
            {
                "name": case["name"],
                **figures,
                "first_run_s": round(first, 1),
                "scores": torch.sigmoid(logits.double()).tolist(),
                "threads": torch.get_num_threads(),
                "keeps_freed_memory": bool(kept),
                "torch": torch.__version__,
            }
        )
    )
    return 0


def _goldens():
    # The rule of the full-size goldens' weights and their segments, which the tests compare with the original's.
    sys.path.append(str(Path(__file__).parents[2] / "tests"))
    import goldens

    return goldens


def _segments(batch: int):
    """(batch, 12, 2500) of real recordings, preprocessed; in a circle."""
    import numpy as np
    import torch

    found = list(_goldens().segments().values())
    return torch.from_numpy(np.stack([found[number % len(found)] for number in range(batch)])).float()


def _base_model(dtype):
    """The base classifier with the goldens' weights, which a rule makes from the tensors' names."""
    import torch

    from ecgfm_hf import ECGFMConfig, ECGFMForMultiLabelClassification
    from ecgfm_hf.fairseq.state_dict import convert_state_dict, revert_state_dict

    rule = _goldens().recipe_weight
    with torch.device("meta"):
        model = ECGFMForMultiLabelClassification(ECGFMConfig.base(num_labels=LABELS, mask_time_prob=0.0))
    names = revert_state_dict(model.state_dict())
    weights = {name: rule(name, tuple(tensor.shape)).to(dtype) for name, tensor in names.items()}
    model.load_state_dict(convert_state_dict(weights), strict=True, assign=True)
    return model.eval()


def _export(folder: Path) -> None:
    import torch

    from ecgfm_hf import ECGFMFeatureExtractor, save_model_folder
    from ecgfm_hf.inference.onnx_export import export_onnx

    save_model_folder(_base_model(torch.float32), ECGFMFeatureExtractor(), folder / "model")
    export_onnx(folder / "model", folder / "onnx")


def _onnx_step(folder: Path, segments):
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", options)
    return lambda: session.run(["logits"], {"input_values": segments})[0]
