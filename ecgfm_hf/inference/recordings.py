"""A model over many recordings: segments of several recordings run together, answers a recording."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.modeling_utils import PreTrainedModel

from ..modeling_ecgfm import ECGFMForMultiLabelClassification, ECGFMModel, _mean_over_frames
from ..utils.precision import evaluation_mode, resolve_precision, with_compiled_layers, with_precision
from .reading import InputsSource, ReadRecording, read_in_order

if TYPE_CHECKING:
    from ..data.model_inputs import ModelInputs


@dataclass(frozen=True)
class RecordingOutput:
    """
    What a model says of one recording.

    Attributes:
        row: Its row in the dataset.
        recording_id, patient_id: From there; None for an unknown patient.
        logits (`np.ndarray` of shape (segments, labels), float32): None for a model without a head.
        embeddings (`np.ndarray` of shape (segments, hidden_size), float32): None unless asked for.
    """

    row: int
    recording_id: str
    patient_id: str | None
    logits: np.ndarray | None
    embeddings: np.ndarray | None


def run_recordings(
    model: PreTrainedModel,
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
    Runs a model over the recordings of [`ModelInputs`], in the order of their rows.

    The model is in evaluation mode and without gradients while it runs, and as it was before in between. Recordings
    that the extractor refuses have no answer; `inputs.left_out` counts them. A recording shorter than a segment that
    the extractor admits runs at its true length.

    Args:
        model ([`ECGFMModel`] or [`ECGFMForMultiLabelClassification`]): Where it is, it runs.
        inputs ([`ModelInputs`]): From `as_model_inputs` (not pairs).
        batch_size: Segments run together, of one recording or of several. float32 answers do not depend on it, to
            1e-5; those of the other precisions do by less than they differ from float32.
        num_workers: Processes that read and preprocess ahead.
        precision: `"float32"`, `"bfloat16"`, `"int8"` (CPU, needs torchao) or `"auto"`: bfloat16 where the device
            computes it well, else float32. A model of another precision is copied.
        compile: Whether to run a copy with compiled encoder layers. The first batch then takes a minute or so.
        embeddings: Whether to return them as well.
        layer: Which hidden state they are the mean over frames of: 0 is the first layer's input, 1 its output, and so
            on; None and -1 are the published embedding.
        progress: Whether to show a progress bar.

    Yields:
        [`RecordingOutput`]

    Raises:
        `ValueError`: a precision, a layer or a batch size that there is not; a recording shorter than the model takes.
    """
    runner = ModelRunner(model, batch_size, precision, embeddings, layer, compile)
    return _outputs(runner, InputsSource(inputs), num_workers, progress)


def _outputs(
    runner: "ModelRunner", source: InputsSource, num_workers: int, progress: bool
) -> Iterator[RecordingOutput]:
    from tqdm import tqdm

    recordings = runner.run(read_in_order(source, num_workers=num_workers))
    for read, logits, embeddings in tqdm(recordings, total=len(source), unit="recording", disable=not progress):
        if read.failure is not None:
            raise ValueError(f"{read.recording_id}: {read.failure}")
        yield RecordingOutput(read.row, read.recording_id, read.patient_id, logits, embeddings)


class ModelRunner:
    """
    Runs a model over recordings that have been read; arguments as of [`run_recordings`].

    Memory does not grow with the number of recordings: what has been answered is let go.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batch_size: int = 16,
        precision: str = "float32",
        embeddings: bool = False,
        layer: int | None = None,
        compile: bool = False,
    ):
        if not isinstance(model, ECGFMModel | ECGFMForMultiLabelClassification):
            raise ValueError(f"the model must be an encoder or a classifier, found: {type(model).__name__}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found: {batch_size}")
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
        Yields each recording in order with its logits (segments, labels) and embeddings (segments, hidden_size),
        float32, None where there are none. One that cannot be run comes back with its `failure`.
        """
        waiting: deque[_Unfinished] = deque()
        segments: list[tuple[_Unfinished, np.ndarray]] = []
        for read in recordings:
            waiting.append(_Unfinished(self._checked(read)))
            for segment in waiting[-1].read.segments if waiting[-1].read.segments is not None else ():
                segments.append((waiting[-1], segment))
                if len(segments) == self._batch_size:
                    self._run_batch(segments)
                    segments = []
            while waiting and waiting[0].is_finished:
                yield waiting.popleft().answer()
        if segments:
            self._run_batch(segments)
        for unfinished in waiting:
            yield unfinished.answer()

    def _checked(self, read: ReadRecording) -> ReadRecording:
        least = self._model.config.min_samples
        if read.segments is None or read.segments.shape[2] >= least:
            return read
        failure = f"{read.segments.shape[2]} samples after resampling, the model takes at least {least}"
        return replace(read, segments=None, failure=failure)

    def _run_batch(self, segments: "list[tuple[_Unfinished, np.ndarray]]") -> None:
        # Padding never influences an answer: each length runs by itself. There is more than one only where recordings
        # shorter than a segment are admitted.
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
            # Code for another number of segments would take as long to compile as the first.
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


class _Unfinished:
    """A recording of which not all segments have run."""

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

    def answer(self) -> tuple[ReadRecording, np.ndarray | None, np.ndarray | None]:
        logits, embeddings = _stacked(self._logits), _stacked(self._embeddings)
        if all(values is None or np.isfinite(values).all() for values in (logits, embeddings)):
            return self.read, logits, embeddings
        return replace(self.read, segments=None, failure="what the model makes of it is not finite"), None, None


def check_layer(layer: int | None, num_layers: int) -> int | None:
    """
    The number of a hidden state, counted from 0, of an encoder with `num_layers` layers; None for the last, whose mean
    is the published embedding. `ValueError` where there is no such hidden state.
    """
    if layer is None:
        return None
    if not -num_layers - 1 <= layer <= num_layers:
        raise ValueError(f"layer must be from {-num_layers - 1} to {num_layers}, found: {layer}")
    layer %= num_layers + 1
    return None if layer == num_layers else layer


def _as_array(values: torch.Tensor | None, rows: int) -> np.ndarray | None:
    return None if values is None else values[:rows].float().cpu().numpy()


def _stacked(rows: list[np.ndarray | None]) -> np.ndarray | None:
    return np.stack(rows) if rows and rows[0] is not None else None


__all__ = ["ModelRunner", "RecordingOutput", "check_layer", "run_recordings"]
