"""Export of a classifier to ONNX by transformers' exporter, with a comparison to torch before the folder appears."""

import contextlib
import importlib.util
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..model_folder import load_feature_extractor, load_model
from ..modeling_ecgfm import ECGFMForMultiLabelClassification
from ..utils.errors import ECGFMError
from ..utils.files import atomic_folder
from ..utils.logs import only_errors

MODEL_FILE = "model.onnx"
OUTPUTS = ("logits", "pooler_output")
# As a share of an output's largest value. Both compute in float32, but add in different orders.
TOLERANCE = 1e-4
_REQUIRED = ("onnx", "onnxruntime", "onnxscript")


class OnnxExportError(ECGFMError, RuntimeError):
    """The export failed, or the exported file gives other results than the model. Nothing is written."""


@dataclass(frozen=True)
class OnnxReport:
    """
    The result of an export.

    Attributes:
        folder: The folder that was written.
        size: Size of the file and its weights, in bytes.
        differences: For each output, the largest difference from torch as a share of the output's largest value.
        score_difference: The largest difference of a sigmoid score.
        checked: Shapes (segments, leads, samples) of the inputs that were compared.
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
    Write a classifier as `model.onnx` (weights in `model.onnx.data`), with `config.json` (labels, aggregation,
    calibration, thresholds) and `preprocessor_config.json` (preprocessing) beside it.

    The file takes `input_values` (segments, leads, samples) float32 without padding, with any number of segments and
    any length that the model accepts. It returns `logits` (segments, labels) and `pooler_output` (segments,
    hidden_size), the published embedding. Before the folder appears, onnxruntime runs the file on synthetic recordings
    with several numbers of segments and lengths, and the results are compared with torch's.

    Args:
        model_dir: A folder or Hub repository of a classifier.
        output_dir: A folder that does not exist or is empty.
        tolerance: The largest accepted difference, as a share of an output's largest value.

    Raises:
        `ImportError`: a library is not installed.
        `FileExistsError`: the folder is not empty.
        `OnnxExportError`: the model cannot be exported, or the outputs differ by more than the tolerance.
        [`ModelFolderError`]: as in [`load_model`].
    """
    check_libraries()
    # Once it is imported, onnxruntime keeps an id of the machine and reports its use to its makers.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    folder = Path(output_dir)

    def check_empty() -> None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} is not an empty folder: choose another one")

    check_empty()
    model = load_model(model_dir, ECGFMForMultiLabelClassification)
    extractor = load_feature_extractor(model_dir, config=model.config)
    inputs = _recordings(extractor, model.config.min_samples)
    with atomic_folder(folder, check_empty) as made:
        _export(model, inputs[0], made)
        extractor.save_pretrained(made)
        differences, score_difference = _compare(model, made / MODEL_FILE, inputs)
        for name, difference in differences.items():
            if not difference <= tolerance:
                raise OnnxExportError(
                    f"{name} of the exported file differs from torch's by {difference:.1e} of its largest value, "
                    f"allowed: {tolerance:.1e}"
                )
    size = sum(path.stat().st_size for path in folder.glob(f"{MODEL_FILE}*"))
    shapes = tuple(tuple(segments.shape) for segments in inputs)
    return OnnxReport(folder, size, differences, score_difference, shapes)


def check_libraries() -> None:
    """Raise `ImportError` with what to install if a library is missing."""
    missing = [name for name in _REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX needs {', '.join(missing)}: pip install 'ecgfm-hf[onnx]'")
    if importlib.util.find_spec("transformers.exporters") is None:
        import transformers

        raise ImportError(f"ONNX needs transformers with exporters (5.23), found: {transformers.__version__}")


def _recordings(extractor: ECGFMFeatureExtractor, least: int) -> list[np.ndarray]:
    """Return inputs (n, leads, samples) from synthetic recordings, with several n and lengths."""
    from ..synthetic import SyntheticCohort

    found = []
    for record in SyntheticCohort(3, seed=0):
        segments = extractor.prepare_recording(record.signal, record.sampling_rate, record.lead_names, "mV").segments
        found.append(segments)
    together = np.concatenate(found).astype(np.float32)[:5]
    half = max(least, together.shape[2] // 2 + 1)
    return [together[:2], together[:1], together, together[:3, :, :half], together[-1:, :, -least:]]


def _export(model: ECGFMForMultiLabelClassification, segments: np.ndarray, folder: Path) -> None:
    from torch.export import Dim
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    # The number of segments and their length remain variable.
    shapes = {"input_values": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}, "output_pooler_output": None}
    inputs: dict[str, Any] = {"input_values": torch.from_numpy(segments), "output_pooler_output": True}
    try:
        # torch prints its progress to standard output.
        with contextlib.redirect_stdout(io.StringIO()), only_errors("torch.onnx"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = OnnxExporter().export(model, inputs, OnnxConfig(dynamic_shapes=shapes))
        exported.save_pretrained(folder)
    # torch.export, onnxscript and the exporter raise many kinds of errors.
    except Exception as error:
        raise OnnxExportError(f"the model cannot be exported: {type(error).__name__}: {error}") from error


def _compare(
    model: ECGFMForMultiLabelClassification, file: Path, inputs: list[np.ndarray]
) -> tuple[dict[str, float], float]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    largest, difference, score_difference = dict.fromkeys(OUTPUTS, 0.0), dict.fromkeys(OUTPUTS, 0.0), 0.0
    for segments in inputs:
        with torch.no_grad():
            expected = model(torch.from_numpy(segments), output_pooler_output=True)
        for name, found in zip(OUTPUTS, session.run(list(OUTPUTS), {"input_values": segments}), strict=True):
            wanted = expected[name].numpy()
            # maximum keeps NaN, which must not pass.
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
