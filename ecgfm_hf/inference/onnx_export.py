"""A classifier as an ONNX file, by transformers' own exporter, checked against torch before it takes its place."""

import contextlib
import importlib.util
import io
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers.modeling_utils import PreTrainedModel

from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..utils.errors import ECGFMError
from ..utils.logs import only_errors

MODEL_FILE = "model.onnx"
OUTPUTS = ("logits", "pooler_output")
# Of an output's largest value. Both compute in float32, but add in different orders.
TOLERANCE = 1e-4
_NEEDED = ("onnx", "onnxruntime", "onnxscript")


class OnnxExportError(ECGFMError, RuntimeError):
    """The exported file does not compute what the model does, or could not be made. Nothing is left of it."""


@dataclass(frozen=True)
class OnnxReport:
    """
    What an export has come to.

    Attributes:
        folder: What was written.
        size: Of the file with its weights, in bytes.
        differences: By output, the largest difference from torch as a share of the output's largest value.
        score_difference: The largest difference of a sigmoid.
        checked: Shapes (segments, leads, samples) that both were given.
    """

    folder: Path
    size: int
    differences: dict[str, float]
    score_difference: float
    checked: tuple[tuple[int, int, int], ...]


def export_onnx(
    model_dir: str | os.PathLike, output_dir: str | os.PathLike, *, tolerance: float = TOLERANCE
) -> OnnxReport:
    """
    Writes a classifier as `model.onnx` (with `model.onnx.data`, its weights), and beside it `config.json` (labels,
    aggregation, calibration, thresholds) and `preprocessor_config.json` (what its input is made with).

    The file takes `input_values` (segments, leads, samples) float32, of any number of segments and any length that the
    model takes, without padding; it gives `logits` (segments, labels) and `pooler_output` (segments, hidden_size), the
    published embedding. It is run by onnxruntime and compared with torch, on synthetic recordings at several numbers
    of segments and lengths, before it takes its place.

    Args:
        model_dir: A folder or Hub repository of a classifier.
        output_dir: A folder that does not exist or is empty.
        tolerance: The largest difference that is accepted, as a share of an output's largest value.

    Raises:
        `ImportError`: a library is absent.
        `FileExistsError`: the folder is not empty.
        `OnnxExportError`: it cannot be exported, or the outputs differ by more.
        `ValueError`, `OSError`: as [`load_pipeline`].
    """
    from ..model_folder import load_pipeline

    check_libraries()
    folder = Path(output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not an empty folder: choose another")
    pipeline = load_pipeline(model_dir)
    model, extractor = pipeline.model, pipeline.feature_extractor
    inputs = _recordings(extractor, model.config.min_samples)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that moving it there is a renaming.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        made = Path(scratch) / "model"
        _export(model, inputs[0], made)
        extractor.save_pretrained(made)
        differences, score_difference = _compare(model, made / MODEL_FILE, inputs)
        for name, difference in differences.items():
            if not difference <= tolerance:
                raise OnnxExportError(
                    f"{name} of the exported file differs from torch's by {difference:.1e} of its largest value, "
                    f"allowed: {tolerance:.1e}"
                )
        if folder.exists():
            folder.rmdir()
        shutil.move(made, folder)
    size = sum(path.stat().st_size for path in folder.glob(f"{MODEL_FILE}*"))
    shapes = tuple(tuple(segments.shape) for segments in inputs)
    return OnnxReport(folder, size, differences, score_difference, shapes)


def check_libraries() -> None:
    """`ImportError` that says what to install, where something is absent."""
    absent = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise ImportError(f"ONNX needs {', '.join(absent)}: pip install 'ecgfm-hf[onnx]'")
    if importlib.util.find_spec("transformers.exporters") is None:
        import transformers

        raise ImportError(f"ONNX needs transformers with exporters (5.23), found: {transformers.__version__}")


def _recordings(extractor: ECGFMFeatureExtractor, least: int) -> list[np.ndarray]:
    """Segments (n, leads, samples) of synthetic recordings: of several numbers, and of other lengths."""
    from ..synthetic import SyntheticCohort

    found = []
    for record in SyntheticCohort(3, seed=0):
        segments = extractor.prepare_recording(record.signal, record.sampling_rate, record.lead_names, "mV").segments
        found.append(segments)
    together = np.concatenate(found).astype(np.float32)[:5]
    half = max(least, together.shape[2] // 2 + 1)
    return [together[:2], together[:1], together, together[:3, :, :half], together[-1:, :, -least:]]


def _export(model: PreTrainedModel, segments: np.ndarray, folder: Path) -> None:
    from torch.export import Dim
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    # The number of segments and their length stay open.
    shapes = {"input_values": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}, "output_pooler_output": None}
    given = {"input_values": torch.from_numpy(segments), "output_pooler_output": True}
    try:
        # torch tells on standard output how far it is.
        with contextlib.redirect_stdout(io.StringIO()), only_errors("torch.onnx"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = OnnxExporter().export(model, given, OnnxConfig(dynamic_shapes=shapes))
        exported.save_pretrained(folder)
    # Whatever torch.export, onnxscript and the exporter's patches of them raise.
    except Exception as error:
        raise OnnxExportError(f"the model cannot be exported: {type(error).__name__}: {error}") from error


def _compare(model: PreTrainedModel, file: Path, inputs: list[np.ndarray]) -> tuple[dict[str, float], float]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    largest, difference, score_difference = dict.fromkeys(OUTPUTS, 0.0), dict.fromkeys(OUTPUTS, 0.0), 0.0
    for segments in inputs:
        with torch.no_grad():
            expected = model(torch.from_numpy(segments), output_pooler_output=True)
        for name, found in zip(OUTPUTS, session.run(list(OUTPUTS), {"input_values": segments}), strict=True):
            wanted = expected[name].numpy()
            # NaN is greater than nothing, and must not pass.
            difference[name] = float(np.maximum(difference[name], np.abs(found - wanted).max()))
            largest[name] = max(largest[name], float(np.abs(wanted).max()))
            if name == "logits":
                sigmoids = (1 / (1 + np.exp(-values.astype(np.float64))) for values in (found, wanted))
                score_difference = max(score_difference, float(np.abs(np.subtract(*sigmoids)).max()))
    return {name: difference[name] / max(largest[name], 1e-12) for name in OUTPUTS}, score_difference


__all__ = [
    "MODEL_FILE",
    "OUTPUTS",
    "OnnxExportError",
    "OnnxReport",
    "check_libraries",
    "export_onnx",
]
