"""Run a model on many recordings, in batches that mix their segments; return logits, embeddings, answers, rows."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from ..configuration_ecgfm import ECGFMConfig
from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..modeling_ecgfm import ECGFMForMultiLabelClassification, ECGFMModel, _mean_over_frames
from ..pipeline_ecgfm import recording_answer, segment_answers
from ..utils.precision import evaluation_mode, resolve_device, resolve_precision, with_compiled_layers, with_precision
from .read_ahead import ReadRecording, read_in_order
from .recording_sources import DatasetSource

if TYPE_CHECKING:
    from ..data.model_inputs import ModelInputs

UNCALIBRATED = "score, uncalibrated; not for clinical use"
CALIBRATED = "calibrated; not for clinical use"
ID_COLUMNS = (("recording_id", pa.string()), ("patient_id", pa.string()))
SEGMENT_COLUMNS = (("segment", pa.int32()), ("start_s", pa.float64()), ("end_s", pa.float64()))


@dataclass(frozen=True)
class RecordingOutput:
    """
    A model's output for one recording.

    Attributes:
        row: Its row in the dataset.
        recording_id, patient_id: From that row; `patient_id` is None where unknown.
        logits (`np.ndarray` of shape (segments, labels), float32): None for a model without a head.
        embeddings (`np.ndarray` of shape (segments, hidden_size), float32): None unless requested.
        warnings: That calibration and thresholds are not valid, because most leads carry no signal.
    """

    row: int
    recording_id: str
    patient_id: str | None
    logits: np.ndarray | None
    embeddings: np.ndarray | None
    warnings: tuple[str, ...] = ()


def run_recordings(
    model: ECGFMModel | ECGFMForMultiLabelClassification,
    inputs: "ModelInputs",
    *,
    batch_size: int = 16,
    num_workers: int = 0,
    precision: str = "float32",
    compile: bool = False,
    embeddings: bool = False,
    layer: int | None = None,
    progress: bool = False,
) -> Iterator[RecordingOutput]:
    """
    Run a model over the recordings of [`ModelInputs`], in the order of their rows.

    While a batch runs, the model is in evaluation mode and computes no gradients; between batches it is in its former
    mode. Recordings that the extractor refuses have no output; `inputs.skipped` counts them. A short recording that
    the extractor admits runs at its true length, without padding.

    Args:
        model ([`ECGFMModel`] or [`ECGFMForMultiLabelClassification`]): Runs on its own device.
        inputs ([`ModelInputs`]): From `as_model_inputs` (not pairs).
        batch_size: Segments that run together, of one recording or several. float32 results do not depend on it (to
            1e-5); in other precisions they do, by less than they differ from float32.
        num_workers: Processes that read and preprocess ahead.
        precision: `"float32"`, `"bfloat16"`, `"int8"` (CPU, needs torchao) or `"auto"`: bfloat16 where the device
            computes it well, else float32. A model in another precision is copied.
        compile: Whether to run a copy with compiled encoder layers. The first batch then takes about a minute.
        embeddings: Whether to return embeddings too.
        layer: Average this hidden state over frames: 0 is the first layer's input, 1 its output, and so on. None and
            -1 give the published embedding.
        progress: Whether to show a progress bar.

    Yields:
        [`RecordingOutput`]

    Raises:
        `ValueError`: an unknown precision, layer or batch size; a recording shorter than the model accepts.
    """
    runner = ModelRunner(model, batch_size, precision, embeddings, layer, compile)
    return _outputs(runner, DatasetSource(inputs), num_workers, progress)


def _outputs(
    runner: "ModelRunner", source: DatasetSource, num_workers: int, progress: bool
) -> Iterator[RecordingOutput]:
    from tqdm import tqdm

    recordings = runner.run(read_in_order(source, num_workers=num_workers))
    for read, logits, embeddings in tqdm(recordings, total=len(source), unit="recording", disable=not progress):
        if read.failure is not None:
            raise ValueError(f"{read.recording_id}: {read.failure}")
        yield RecordingOutput(read.row, read.recording_id, read.patient_id, logits, embeddings, read.warnings)


class ModelRunner:
    """
    A model that runs segments of several recordings together. Create it once, then call [`ModelRunner.run`] any number
    of times. Memory does not grow with the number of recordings.

    Args:
        model ([`ECGFMModel`] or [`ECGFMForMultiLabelClassification`]): Runs on its own device.
        batch_size, precision, embeddings, layer, compile: As in [`run_recordings`].
        device (*optional*): Where to move the model before.

    Attributes:
        precision: The precision in use, never `"auto"`.

    Raises:
        `ValueError`: an unknown precision, layer or batch size, or another kind of model.
        `ImportError`: int8 without torchao.
    """

    def __init__(
        self,
        model: ECGFMModel | ECGFMForMultiLabelClassification,
        batch_size: int = 16,
        precision: str = "float32",
        embeddings: bool = False,
        layer: int | None = None,
        compile: bool = False,
        device: str | torch.device | None = None,
    ):
        if not isinstance(model, ECGFMModel | ECGFMForMultiLabelClassification):
            raise ValueError(f"the model must be an encoder or a classifier, found: {type(model).__name__}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found: {batch_size}")
        if device is not None:
            torch.nn.Module.to(model, resolve_device(device))
        self.precision = resolve_precision(precision, model.device)
        self._model = with_precision(model, self.precision)
        if compile:
            self._model = with_compiled_layers(self._model)
        self._is_compiled = compile
        self._batch_size = batch_size
        self._layer = check_layer(layer, model.config.num_hidden_layers) if embeddings else None
        self._embeddings = embeddings

    def run(
        self, recordings: Iterable[ReadRecording]
    ) -> Iterator[tuple[ReadRecording, np.ndarray | None, np.ndarray | None]]:
        """
        Yield each recording, in order, with its logits (segments, labels) and embeddings (segments, hidden_size).

        Both are float32, or None where there are none. A recording that cannot run comes back with its `failure`.
        """
        waiting: deque[_PendingRecording] = deque()
        segments: list[tuple[_PendingRecording, np.ndarray]] = []
        for read in recordings:
            waiting.append(_PendingRecording(self._checked(read)))
            for segment in waiting[-1].read.segments if waiting[-1].read.segments is not None else ():
                segments.append((waiting[-1], segment))
                if len(segments) == self._batch_size:
                    self._run_batch(segments)
                    segments = []
            while waiting and waiting[0].is_finished:
                yield waiting.popleft().result()
        if segments:
            self._run_batch(segments)
        for pending in waiting:
            yield pending.result()

    def _checked(self, read: ReadRecording) -> ReadRecording:
        least = self._model.config.min_samples
        if read.segments is None or read.segments.shape[2] >= least:
            return read
        failure = f"{read.segments.shape[2]} samples after resampling, the model takes at least {least}"
        return replace(read, segments=None, failure=failure)

    def _run_batch(self, segments: "list[tuple[_PendingRecording, np.ndarray]]") -> None:
        # Padding never influences a result: segments of each length run separately. There is more than one length only
        # where recordings shorter than a segment are admitted.
        for length in {segment.shape[1]: None for _, segment in segments}:
            together = [(recording, segment) for recording, segment in segments if segment.shape[1] == length]
            logits, embeddings = self._forward(np.stack([segment for _, segment in together]))
            for number, (recording, _) in enumerate(together):
                recording.add(
                    None if logits is None else logits[number], None if embeddings is None else embeddings[number]
                )

    def _forward(self, batch: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        model, options, rows = self._model, {}, len(batch)
        if self._is_compiled and rows < self._batch_size:
            # Another number of segments would compile again, which takes as long as the first time.
            batch = np.concatenate([batch, np.repeat(batch[:1], self._batch_size - rows, axis=0)])
        if self._layer is not None:
            options["output_hidden_states"] = True
        elif self._embeddings and isinstance(model, ECGFMForMultiLabelClassification):
            options["output_pooler_output"] = True
        with evaluation_mode(model), torch.no_grad():
            output = model(torch.from_numpy(batch).to(model.device), return_dict=True, **options)
            embeddings = None
            if self._layer is not None:
                embeddings = _mean_over_frames(output.hidden_states[self._layer], None)
            elif self._embeddings:
                embeddings = output.pooler_output
        logits = getattr(output, "logits", None)
        return _as_array(logits, rows), _as_array(embeddings, rows)


class _PendingRecording:
    """A recording that waits until all of its segments have run."""

    def __init__(self, read: ReadRecording):
        self.read = read
        self._missing = 0 if read.segments is None else len(read.segments)
        self._logits: list[np.ndarray | None] = []
        self._embeddings: list[np.ndarray | None] = []

    @property
    def is_finished(self) -> bool:
        return self._missing == 0

    def add(self, logits: np.ndarray | None, embedding: np.ndarray | None) -> None:
        self._missing -= 1
        self._logits.append(logits)
        self._embeddings.append(embedding)

    def result(self) -> tuple[ReadRecording, np.ndarray | None, np.ndarray | None]:
        logits, embeddings = _stacked(self._logits), _stacked(self._embeddings)
        if all(values is None or np.isfinite(values).all() for values in (logits, embeddings)):
            return self.read, logits, embeddings
        return replace(self.read, segments=None, failure="the model's output is not finite"), None, None


def check_layer(layer: int | None, num_layers: int) -> int | None:
    """
    Return the index of a hidden state, counted from 0, in an encoder with `num_layers` layers.

    None stands for the last one, whose mean is the published embedding. `ValueError` for an index out of range.
    """
    if layer is None:
        return None
    if not -num_layers - 1 <= layer <= num_layers:
        raise ValueError(f"layer must be from {-num_layers - 1} to {num_layers}, found: {layer}")
    layer %= num_layers + 1
    return None if layer == num_layers else layer


def answer_of(read: ReadRecording, logits: np.ndarray, config: ECGFMConfig) -> dict[str, Any]:
    """Return a recording's answer as the pipeline returns it."""
    return recording_answer(read.recording_id, logits, read.warnings, config)


def score_note(config: ECGFMConfig) -> str:
    """Return what scores of this model are: calibrated only if every label has a calibration and a threshold."""
    labels = set(config.label_names)
    calibrated = labels <= (config.label_calibration or {}).keys() and labels <= (config.label_thresholds or {}).keys()
    return CALIBRATED if calibrated else UNCALIBRATED


def score_schema(config: ECGFMConfig, per_segment: bool = False, logits: bool = False) -> pa.Schema:
    """
    Return the columns of score rows: ids, `score:NAME` for each label, `positive`, `segments`, `warnings`.

    Rows per segment have `segment`, `start_s` and `end_s` instead of `segments`, and on request `logit:NAME`.
    """
    scores = [(f"score:{name}", pa.float64()) for name in config.label_names]
    texts = pa.list_(pa.string())
    if not per_segment:
        return pa.schema([*ID_COLUMNS, *scores, ("positive", texts), ("segments", pa.int32()), ("warnings", texts)])
    scores += [(f"logit:{name}", pa.float32()) for name in config.label_names if logits]
    return pa.schema([*ID_COLUMNS, *SEGMENT_COLUMNS, *scores, ("positive", texts), ("warnings", texts)])


def score_rows(read: ReadRecording, logits: np.ndarray, config: ECGFMConfig) -> list[dict[str, Any]]:
    """Return a recording's one row with the columns of [`score_schema`]."""
    return [_as_row(read, answer_of(read, logits, config))]


def segment_score_rows(
    read: ReadRecording, logits: np.ndarray, config: ECGFMConfig, extractor: ECGFMFeatureExtractor
) -> list[dict[str, Any]]:
    """Return a recording's rows per segment with the columns of [`score_schema`]."""
    return [_as_row(read, answer) for answer in segment_answers_of(read, logits, config, extractor)]


def segment_answers_of(
    read: ReadRecording, logits: np.ndarray, config: ECGFMConfig, extractor: ECGFMFeatureExtractor
) -> list[dict[str, Any]]:
    """Return an answer per segment: as [`segment_answers`], with the recording's name, warnings, and `logits`."""
    assert read.segments is not None  # they have run
    valid_seconds, warnings = read.segments.shape[2] / extractor.sampling_rate, list(read.warnings)
    names = config.label_names
    return [
        {
            "recording": read.recording_id,
            **answer,
            "logits": dict(zip(names, own.tolist(), strict=True)),
            "warnings": warnings,
        }
        for answer, own in zip(
            segment_answers(logits, extractor.segment_seconds, valid_seconds, config, warnings, read.start_s),
            logits,
            strict=True,
        )
    ]


def _as_row(read: ReadRecording, answer: dict[str, Any]) -> dict[str, Any]:
    row = {"recording_id": read.recording_id, "patient_id": read.patient_id, **answer}
    row |= {f"score:{name}": score for name, score in answer["scores"].items()}
    return row | {f"logit:{name}": logit for name, logit in answer.get("logits", {}).items()}


def _as_array(values: torch.Tensor | None, rows: int) -> np.ndarray | None:
    return None if values is None else values[:rows].float().cpu().numpy()


def _stacked(rows: list[np.ndarray | None]) -> np.ndarray | None:
    present = [row for row in rows if row is not None]
    return np.stack(present) if present else None


__all__ = [
    "CALIBRATED",
    "ID_COLUMNS",
    "SEGMENT_COLUMNS",
    "UNCALIBRATED",
    "ModelRunner",
    "RecordingOutput",
    "answer_of",
    "check_layer",
    "run_recordings",
    "score_note",
    "score_rows",
    "score_schema",
    "segment_answers_of",
    "segment_score_rows",
]
