"""Embeddings of recordings: in one call, and as rows of a Parquet file."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..model_folder import load_feature_extractor, load_model
from ..modeling_ecgfm import ECGFMForMultiLabelClassification, ECGFMForPreTraining, ECGFMModel
from ..pipeline_ecgfm import segment_times
from ..records.record import ECGRecord
from ..utils.precision import resolve_device, resolve_precision, weights_dtype
from .model_runner import ID_COLUMNS, SEGMENT_COLUMNS, ModelRunner
from .read_ahead import ReadRecording, read_in_order
from .recording_sources import PythonSource, RecordingInput


def embed(
    model: str | os.PathLike | ECGFMModel | ECGFMForPreTraining | ECGFMForMultiLabelClassification,
    recordings: RecordingInput | Sequence[RecordingInput],
    *,
    feature_extractor: ECGFMFeatureExtractor | None = None,
    per_segment: bool = False,
    layer: int = -1,
    batch_size: int = 16,
    num_workers: int = 0,
    precision: str = "float32",
    compile: bool = False,
    device: str | torch.device | None = None,
    progress: bool = False,
    **policies: str,
) -> np.ndarray | list[np.ndarray]:
    """
    Return the embedding of each recording.

    A segment's embedding is the mean over frames of the encoder's output, as published. A recording's embedding is the
    mean over its segments.

    Args:
        model: A folder or Hub repository of any ECG-FM model, or a loaded model.
        recordings: A path; a dictionary with `signal` (leads, samples), `sampling_rate` in Hz and `lead_names`,
            optionally `units` and `recording` (a name for messages); an [`ECGRecord`]; the row of a store; or several
            of these, such as a list or a store's dataset. `ecgfm embed` takes folders.
        feature_extractor ([`ECGFMFeatureExtractor`], *optional*): Only with a loaded model; by default one with the
            default settings.
        per_segment: Return one embedding for every 5 s segment instead of their mean.
        layer: Average this hidden state over frames: 0 is the first layer's input, 1 its output, and so on; -1 is the
            last, which gives the published embedding.
        batch_size: Segments that run together, also of several recordings. float32 embeddings do not depend on it.
        num_workers: Processes that read and preprocess ahead.
        precision, compile: As in [`run_recordings`].
        device: Where to run a model that is loaded here; `"cpu"` by default. A loaded model runs on its own device.
        progress: Whether to show a progress bar.
        policies: `missing_leads`, `nan_samples`, `constant_leads`, `short_recordings`, in place of the feature
            extractor's own.

    Returns:
        float32 array (hidden_size,), with `per_segment` (segments, hidden_size). For a list of recordings (recordings,
        hidden_size), with `per_segment` a list of (segments, hidden_size).

    Raises:
        `ValueError`: a recording that cannot be read or that the feature extractor refuses, named; an unknown layer,
            precision or argument.
        `ImportError`: int8 without torchao.
        [`ModelFolderError`]: the folder has no whole model.
    """
    from tqdm import tqdm

    if isinstance(model, ECGFMModel | ECGFMForPreTraining | ECGFMForMultiLabelClassification):
        if device is not None:
            raise ValueError("a loaded model runs on its own device: give device only with a folder")
        extractor = ECGFMFeatureExtractor() if feature_extractor is None else feature_extractor
    else:
        if feature_extractor is not None:
            raise ValueError(f"{os.fspath(model)} has its own feature extractor: give one only with a loaded model")
        model, extractor = load_encoder(model, device=device or "cpu", precision=precision)
    if isinstance(recordings, str | os.PathLike | Mapping | ECGRecord):
        given, is_single = [recordings], True
    else:
        given, is_single = list(recordings), False
    source = PythonSource(given, extractor, policies)
    encoder = model if isinstance(model, ECGFMModel) else model.ecgfm
    runner = ModelRunner(encoder, batch_size, precision, embeddings=True, layer=layer, compile=compile)
    found: list[np.ndarray] = []
    outputs = runner.run(read_in_order(source, num_workers=num_workers))
    for read, _, embeddings in tqdm(outputs, total=len(source), unit="recording", disable=not progress):
        if read.failure is not None or embeddings is None:
            raise ValueError(f"{read.recording_id}: {read.failure}")
        found.append(embeddings if per_segment else _mean_embedding(embeddings))
    if is_single:
        return found[0]
    if per_segment:
        return found
    return np.stack(found) if found else np.zeros((0, model.config.hidden_size), dtype=np.float32)


def load_encoder(
    model_dir: str | os.PathLike, *, device: str | torch.device = "cpu", precision: str = "float32", **policies: str
) -> tuple[ECGFMModel, ECGFMFeatureExtractor]:
    """
    Load the encoder and the feature extractor of any ECG-FM model's folder or Hub repository.

    Args:
        model_dir: Folder or repository, of any kind of model.
        device: Where to put the encoder.
        precision: Of its weights, `"float32"` or `"bfloat16"`. `"int8"` gives the weights that [`ModelRunner`]
            quantises.
        policies: The feature extractor's `missing_leads`, `nan_samples`, `constant_leads`, `short_recordings`.

    Raises:
        [`ModelFolderError`]: no such folder; weights are missing or unused; the model and the feature extractor differ
            in the number of leads.
        [`DeviceNotFoundError`]: this machine does not have the device.
    """
    device = resolve_device(device)
    model = load_model(model_dir, ECGFMModel, dtype=weights_dtype(resolve_precision(precision, device), device))
    extractor = load_feature_extractor(model_dir, config=model.config, **policies)
    torch.nn.Module.to(model, device)
    return model, extractor


def embedding_schema(hidden_size: int, per_segment: bool) -> pa.Schema:
    """
    Return the columns of embedding rows: ids, `segments` (count), and `embedding`.

    Rows per segment have `segment` (from 0), `start_s` and `end_s` instead of `segments`.
    """
    segments = SEGMENT_COLUMNS if per_segment else (("segments", pa.int32()),)
    return pa.schema([*ID_COLUMNS, *segments, ("embedding", pa.list_(pa.float32(), hidden_size))])


def embedding_rows(
    read: ReadRecording, embeddings: np.ndarray, per_segment: bool, extractor: ECGFMFeatureExtractor
) -> list[dict[str, Any]]:
    """Return a recording's rows with the columns of [`embedding_schema`], one or one per segment."""
    ids = {"recording_id": read.recording_id, "patient_id": read.patient_id}
    if per_segment:
        assert read.segments is not None  # they have run
        valid_seconds = read.segments.shape[2] / extractor.sampling_rate
        times = segment_times(len(embeddings), extractor.segment_seconds, valid_seconds, read.start_s)
        return [ids | time | {"embedding": row} for time, row in zip(times, embeddings, strict=True)]
    return [ids | {"segments": len(embeddings), "embedding": _mean_embedding(embeddings)}]


def _mean_embedding(embeddings: np.ndarray) -> np.ndarray:
    """Average (segments, hidden_size) over segments, in float64; float32 (hidden_size,)."""
    return embeddings.mean(axis=0, dtype=np.float64).astype(np.float32)


__all__ = ["embed", "embedding_rows", "embedding_schema", "load_encoder"]
