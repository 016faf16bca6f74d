"""Recordings to vectors, in one call."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.modeling_utils import PreTrainedModel

from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..model_folder import _check_leads
from ..modeling_ecgfm import ECGFMModel
from ..pipeline_ecgfm import RECORDING_KEYS
from ..records import ECGRecord, read_ecg
from ..utils.precision import resolve_precision, weights_dtype
from .answers import mean_embedding
from .reading import ReadRecording, failed, in_chunks, read_in_order
from .recordings import ModelRunner

if TYPE_CHECKING:
    import torch

# A path, a dictionary as the pipeline takes, or a record.
Recording = str | os.PathLike | Mapping[str, Any] | ECGRecord


def embed(
    model: str | os.PathLike | PreTrainedModel,
    recordings: Recording | Sequence[Recording],
    *,
    feature_extractor: ECGFMFeatureExtractor | None = None,
    per_segment: bool = False,
    layer: int = -1,
    batch_size: int = 16,
    num_workers: int = 0,
    precision: str = "float32",
    compile: bool = False,
    device: "str | torch.device | None" = None,
    progress: bool = False,
    **policies: str,
) -> np.ndarray | list[np.ndarray]:
    """
    Embeddings of recordings: the mean over frames of the encoder's output, as published. A recording has the mean of
    its segments' embeddings.

    Args:
        model: A folder or Hub repository of any ECG-FM model, or an encoder or classifier that is loaded.
        recordings: A path; a dictionary with `signal` (leads, samples), `sampling_rate` in Hz and `lead_names`,
            optionally `units` and `recording` (a name for messages); an [`ECGRecord`]; or a list of such. `ecgfm embed`
            does folders and datasets.
        feature_extractor ([`ECGFMFeatureExtractor`], *optional*): Only with a model that is loaded; by default one with
            its own defaults.
        per_segment: An embedding for every 5 s, in place of their mean.
        layer: Mean over frames of this hidden state: 0 is the first layer's input, 1 its output, and so on; -1 the
            last, which is the published embedding.
        batch_size: Segments run together, also of several recordings. float32 embeddings do not depend on it.
        num_workers: Processes that read and preprocess ahead.
        precision, compile: As of [`run_recordings`].
        device: Where to run a model that is loaded here; `"cpu"` by default. One that is given runs where it is.
        progress: Whether to show a progress bar.
        policies: `missing_leads`, `nan_samples`, `constant_leads`, `short_recordings`, in place of the feature
            extractor's own.

    Returns:
        float32: (hidden_size,), per segment (segments, hidden_size); of a list of recordings (recordings, hidden_size),
        per segment a list of (segments, hidden_size).

    Raises:
        `ValueError`: a recording that cannot be read or that the feature extractor refuses, by its name; a layer, a
            precision, an argument that there is not.
        `ImportError`: int8 without torchao.
        `OSError`: there is no such model.
    """
    from tqdm import tqdm

    if isinstance(model, PreTrainedModel):
        if device is not None:
            raise ValueError("a model that is loaded runs where it is; device is for one that is loaded here")
        extractor = ECGFMFeatureExtractor() if feature_extractor is None else feature_extractor
    else:
        if feature_extractor is not None:
            raise ValueError(f"{os.fspath(model)} brings its own feature extractor")
        model, extractor = load_encoder(model, device=device or "cpu", precision=precision)
    alone = isinstance(recordings, str | os.PathLike | Mapping | ECGRecord)
    source = _Given([recordings] if alone else list(recordings), extractor, policies)
    runner = ModelRunner(model.base_model, batch_size, precision, embeddings=True, layer=layer, compile=compile)
    found: list[np.ndarray] = []
    answers = runner.run(read_in_order(source, num_workers=num_workers))
    for read, _, embeddings in tqdm(answers, total=len(source), unit="recording", disable=not progress):
        if read.failure is not None:
            raise ValueError(f"{read.recording_id}: {read.failure}")
        found.append(embeddings if per_segment else mean_embedding(embeddings))
    if alone:
        return found[0]
    if per_segment:
        return found
    return np.stack(found) if found else np.zeros((0, model.config.hidden_size), dtype=np.float32)


def load_encoder(
    model_dir: str | os.PathLike, *, device: "str | torch.device" = "cpu", precision: str = "float32", **policies: str
) -> tuple[ECGFMModel, ECGFMFeatureExtractor]:
    """
    The encoder of any ECG-FM model's folder or Hub repository, and its feature extractor with these policies. For int8
    it has the weights that [`ModelRunner`] quantises.

    Args:
        model_dir: Folder or repository, of any kind of model.
        device: Where the encoder shall be.
        precision: `"float32"` or `"bfloat16"`, of its weights.
        policies: The feature extractor's `missing_leads`, `nan_samples`, `constant_leads`, `short_recordings`.

    Raises:
        `ValueError`: weights are missing, or the two disagree about the number of leads.
        `OSError`: there is no such folder, or it lacks a file.
    """
    if os.fspath(model_dir).startswith((".", os.sep)) and not os.path.isdir(model_dir):
        # transformers would take it for the name of a Hub repository, and complain of its spelling.
        raise FileNotFoundError(f"there is no folder {os.fspath(model_dir)}")
    dtype = weights_dtype(resolve_precision(precision, device), device)
    model, loading = ECGFMModel.from_pretrained(model_dir, dtype=dtype, output_loading_info=True)
    # The mask embedding is not needed, and fine-tuned models have none.
    absent = sorted(set(loading["missing_keys"]) - {"masked_spec_embed"})
    if absent:
        raise ValueError(f"{os.fspath(model_dir)} is no trained model: its weights lack {', '.join(absent)}")
    extractor = ECGFMFeatureExtractor.from_pretrained(model_dir, **policies)
    _check_leads(model.config, extractor)
    return model.eval().to(device), extractor


class _Given:
    """Recordings that were given in Python."""

    def __init__(self, recordings: list[Recording], extractor: ECGFMFeatureExtractor, policies: Mapping[str, str]):
        self._recordings, self._extractor, self._policies = recordings, extractor, dict(policies)

    def __len__(self) -> int:
        return len(self._recordings)

    def read_together(self, places: Sequence[int]) -> Iterator[list[int]]:
        return in_chunks(places, 4)

    def __getitems__(self, places: Sequence[int]) -> list[ReadRecording]:
        return [self._read(place, self._recordings[place]) for place in places]

    def unread(self, place: int, reason: str) -> ReadRecording:
        return failed(place, f"recording {place}", None, reason)

    def _read(self, place: int, given: Recording) -> ReadRecording:
        name = f"recording {place}"
        try:
            if isinstance(given, str | os.PathLike):
                name = os.fspath(given)
                given = read_ecg(given)
            if isinstance(given, ECGRecord):
                name = given.path or name
                given = {
                    "signal": given.signal,
                    "sampling_rate": given.sampling_rate,
                    "lead_names": given.lead_names,
                    "units": "mV",
                }
            if not isinstance(given, Mapping):
                raise TypeError(f"a recording must be a path, a dictionary or a record, found: {type(given).__name__}")
            name = str(given.get("recording") or name)
            if unknown := sorted(given.keys() - RECORDING_KEYS):
                raise ValueError(f"unknown keys: {', '.join(map(str, unknown))}")
            if missing := [key for key in ("signal", "sampling_rate", "lead_names") if key not in given]:
                raise ValueError(f"missing keys: {', '.join(missing)}")
            found = self._extractor.prepare_recording(
                given["signal"],
                given["sampling_rate"],
                given["lead_names"],
                given.get("units"),
                name=name,
                inspect=False,
                **self._policies,
            )
        except (OSError, ValueError, TypeError) as error:
            return failed(place, name, None, error)
        segments = found.segments[:, :, : found.valid_samples]
        return ReadRecording(place, name, None, segments, tuple(found.warnings))


__all__ = ["embed", "load_encoder"]
