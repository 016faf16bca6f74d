"""The `ecg-classification` pipeline: one recording in, one score per label out."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import logging

from .feature_extraction_ecgfm import MOST_LEADS_EMPTY

if TYPE_CHECKING:
    from .configuration_ecgfm import ECGFMConfig

logger = logging.get_logger(__name__)

RECORDING_KEYS = {"signal", "sampling_rate", "lead_names", "units", "recording"}


def recording_scores(segment_logits: np.ndarray, config: "ECGFMConfig") -> dict[str, float]:
    """
    Return the scores of one recording from the logits of its segments.

    Multi-label: the sigmoid of every segment, aggregated by `config.label_aggregation` (default: mean), then calibrated
    if `config.label_calibration` has the label. Single-label: the mean of the softmax. Regression: the mean.

    Args:
        segment_logits (`np.ndarray` of shape `(segments, num_labels)`)
        config (`ECGFMConfig`)

    Returns:
        `dict[str, float]`: by label name, in output order. Only a calibrated score is a probability.
    """
    logits = np.asarray(segment_logits, dtype=np.float64)
    if config.problem_type == "regression":
        return dict(zip(config.label_names, logits.mean(axis=0).tolist(), strict=True))
    if config.problem_type == "single_label_classification":
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = odds / odds.sum(axis=1, keepdims=True)
    else:
        scores = _sigmoid(logits)
    result, fits = {}, config.label_calibration or {}
    columns = np.ascontiguousarray(scores.T)  # so that the mean of one is rounded as its own
    found = zip(columns.mean(axis=1), columns.max(axis=1), strict=True)
    for label, how, (mean, largest) in zip(config.label_names, config.aggregations(), found, strict=True):
        score = largest if how == "max" else mean
        fit = fits.get(label)
        if fit is not None:
            # The logit of 0 and 1 is infinite.
            score = np.clip(score, 1e-12, 1 - 1e-12)
            score = _sigmoid(fit["slope"] * np.log(score / (1 - score)) + fit["intercept"])
        result[label] = float(score)
    return result


def positive_labels(scores: dict[str, float], config: "ECGFMConfig", warnings: Iterable[str] = ()) -> list[str] | None:
    """
    Return the labels whose score reaches their threshold.

    `None` if the config has no thresholds, or if the recording's `warnings` show that they are not valid for it.
    """
    thresholds = config.label_thresholds
    if not thresholds or not is_calibration_valid(warnings):
        return None
    return [label for label, score in scores.items() if label in thresholds and score >= thresholds[label]]


def is_calibration_valid(warnings: Iterable[str]) -> bool:
    """
    Return whether calibration and thresholds are valid for a recording with these warnings.

    They are not where more than half of the leads carry no signal: `positive` is then `None`, and `ecgfm evaluate`
    excludes the recording.
    """
    return not any(warning.endswith(MOST_LEADS_EMPTY) for warning in warnings)


def recording_answer(
    recording: str | None, segment_logits: np.ndarray, warnings: Iterable[str], config: "ECGFMConfig"
) -> dict[str, Any]:
    """
    Return the answer for one recording: its scores, positive labels, number of segments and warnings.

    Where more than half of the leads carry no signal, `positive` is `None`, and the first warning says why.

    Args:
        recording (`str`, *optional*): The recording's name.
        segment_logits (`np.ndarray` of shape `(segments, num_labels)`)
        warnings: From the feature extractor.
        config (`ECGFMConfig`)

    Returns:
        `dict` with the keys `recording`, `scores`, `positive`, `segments`, `warnings`, as the pipeline returns it.
    """
    scores, found = recording_scores(segment_logits, config), list(warnings)
    return {
        "recording": recording,
        "scores": scores,
        "positive": positive_labels(scores, config, found),
        "segments": len(segment_logits),
        "warnings": found,
    }


def segment_answers(
    segment_logits: np.ndarray,
    segment_seconds: float,
    valid_seconds: float,
    config: "ECGFMConfig",
    warnings: Iterable[str] = (),
    start_s: float = 0.0,
) -> list[dict[str, Any]]:
    """
    Return an answer for each segment of a recording, as if the recording were this segment.

    Calibration and thresholds are those of the model, which belong to the scores of whole recordings.

    Args:
        segment_logits (`np.ndarray` of shape `(segments, num_labels)`)
        segment_seconds (`float`): From the start of a segment to the start of the next.
        valid_seconds (`float`): Of each segment that are no padding.
        config (`ECGFMConfig`)
        warnings: Of the recording.
        start_s (`float`): Of the first segment.

    Returns:
        `list[dict]` with the keys `segment` (from 0), `start_s` and `end_s` in the recording, `scores`, `positive`.
    """
    found, warnings = [], list(warnings)
    times = segment_times(len(segment_logits), segment_seconds, valid_seconds, start_s)
    for time, logits in zip(times, segment_logits, strict=True):
        scores = recording_scores(logits[None], config)
        found.append({**time, "scores": scores, "positive": positive_labels(scores, config, warnings)})
    return found


def segment_times(
    count: int, segment_seconds: float, valid_seconds: float, start_s: float = 0.0
) -> list[dict[str, float]]:
    """Return `segment` (from 0), `start_s` and `end_s` of each segment; arguments as in [`segment_answers`]."""
    starts = [start_s + number * segment_seconds for number in range(count)]
    return [
        {"segment": number, "start_s": start, "end_s": start + valid_seconds} for number, start in enumerate(starts)
    ]


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * values))


def as_recording(given: Any) -> dict[str, Any]:
    """
    Return any form of a recording as arguments of `ECGFMFeatureExtractor.prepare_recording`.

    Args:
        given: A path, a record of `ecgfm_hf.read_ecg`, the row of a store, or a dictionary as the pipeline takes it.

    Returns:
        `dict` with `signal`, `sampling_rate`, `lead_names`, and where known `units`, `recording` (a name), `warnings`
        and `start_s` (seconds of the file before the first sample).

    Raises:
        `ValueError`: missing or unknown keys, or another type.
        `ImportError`: a path or a row needs the `ecgfm_hf` package.
    """
    is_path = isinstance(given, (str, os.PathLike))
    if is_path or (isinstance(given, Mapping) and isinstance(given.get("signal"), bytes)):  # or a store's row
        try:
            from ecgfm_hf.records import read_ecg
            from ecgfm_hf.records.store_rows import record_from_row
        except ImportError as error:
            raise ImportError(
                f"reading {given if is_path else 'the row of a store'} needs the package ecgfm-hf (pip install "
                "ecgfm-hf); without it, pass a dictionary with 'signal', 'sampling_rate' and 'lead_names'"
            ) from error
        given = read_ecg(given) if is_path else record_from_row(given)
    if hasattr(given, "signal") and hasattr(given, "lead_names"):  # an `ecgfm_hf.ECGRecord`
        return {
            "signal": given.signal,
            "sampling_rate": given.sampling_rate,
            "lead_names": list(given.lead_names),
            "units": "mV",
            "recording": os.fspath(given.path) or None,
            "warnings": given.warnings,
            "start_s": given.start_s,
        }
    form = "a dictionary with 'signal' (leads, samples), 'sampling_rate' in Hz and 'lead_names'"
    if not isinstance(given, Mapping):
        raise ValueError(f"a recording must be a path, a record or {form}, found: {type(given).__name__}")
    missing = sorted({"signal", "sampling_rate", "lead_names"} - given.keys())
    unknown = sorted(given.keys() - RECORDING_KEYS)
    if missing or unknown:
        raise ValueError(
            f"a recording must be {form}, optionally 'units' and 'recording'; missing: {missing}, unknown: {unknown}"
        )
    return dict(given)


@dataclass
class _Item:
    """One of several inputs, and its index for error messages."""

    index: int
    recording: Any


class _Items(Dataset):
    """The rows of any dataset, as a torch dataset, which transformers' pipelines take row by row."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> _Item:
        return _Item(index, self.rows[index])


class ECGClassificationPipeline(ChunkPipeline):
    """
    Score recordings with an `ECGFMForMultiLabelClassification` model.

    Input: a path or the row of a store (both need the `ecgfm_hf` package), a record of `ecgfm_hf.read_ecg`, or a
    dictionary with

    - `signal`: array of shape `(leads, samples)`,
    - `sampling_rate`: in Hz,
    - `lead_names`: one name for each row of `signal`,
    - `units` (optional): such as `"mV"`; one for all leads, or one for each lead,
    - `recording` (optional): a name, which the output repeats,

    or several of these. A list gives a list; a dataset (of torch or 🤗 datasets, with these columns) or another
    iterable gives an iterator.

    Keyword arguments of the call, or of the constructor, are `ECGFMFeatureExtractor`'s policies: `missing_leads`,
    `nan_samples`, `constant_leads`, `short_recordings`; and `batch_size`, in segments.

    Output for each recording: `{"recording": name, "scores": {label: float}, "positive": [label, ...] or None,
    "segments": int, "warnings": [str, ...]}`. `positive` is `None` unless the config has thresholds that are valid for
    the recording ([`is_calibration_valid`]). With `per_segment=True` also `"by_segment"`: a list with an answer for
    each segment, as [`segment_answers`] gives it.

    With `short_recordings="pad"`, a recording shorter than a segment is run at its true length, so padding has no
    effect on its scores. The model is put into evaluation mode. An error about one of several recordings begins
    with its index.
    """

    # transformers declares other types for these: a model with any config, a feature extractor of its own, None.
    model: Any
    feature_extractor: Any
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = True
    _load_tokenizer: Any = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model.eval()
        if self.model.config.problem_type is None and self.model.config.num_labels > 1:
            logger.warning_once(
                "The model's config has no problem_type: each score is the sigmoid of one label, as for labels that "
                "occur together. For classes that exclude one another, load the model with "
                "problem_type='single_label_classification'."
            )
        # Thresholds and calibration that belong to other weights.
        if hasattr(self.model, "check_fitted"):
            self.model.check_fitted()

    def _sanitize_parameters(
        self,
        missing_leads: str | None = None,
        nan_samples: str | None = None,
        constant_leads: str | None = None,
        short_recordings: str | None = None,
        per_segment: bool | None = None,
        **unknown: Any,
    ) -> tuple[dict, dict, dict]:
        if unknown:
            raise TypeError(
                f"unknown argument {', '.join(unknown)}; the pipeline takes missing_leads, nan_samples, "
                "constant_leads, short_recordings, per_segment and batch_size, and returns the scores of all labels"
            )
        policies = {
            "missing_leads": missing_leads,
            "nan_samples": nan_samples,
            "constant_leads": constant_leads,
            "short_recordings": short_recordings,
        }
        given = {name: policy for name, policy in policies.items() if policy is not None}
        return given, {}, {} if per_segment is None else {"per_segment": per_segment}

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Score one recording, or several (see the class)."""
        # If the model was trained since, dropout would be on and scores would differ from call to call.
        self.model.eval()
        if isinstance(inputs, (list, tuple)):
            if not inputs:
                return []
            inputs = [_Item(index, recording) for index, recording in enumerate(inputs)]
        elif isinstance(inputs, (str, Mapping, np.ndarray, torch.Tensor)):
            pass  # one recording; an array has neither sampling rate nor lead names, which `as_recording` reports
        elif hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):
            inputs = _Items(inputs)
        elif isinstance(inputs, Iterable):
            inputs = (_Item(index, recording) for index, recording in enumerate(inputs))
        return super().__call__(inputs, *args, **kwargs)

    def preprocess(  # type: ignore[override]  # a ChunkPipeline yields; its types have no iterator
        self, inputs: Any, **policies: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield the segments of one recording."""
        if not isinstance(inputs, _Item):
            yield from self._segments(inputs, "recording", policies)
            return
        label = f"recording {inputs.index}"
        try:
            yield from self._segments(inputs.recording, label, policies)
        except Exception as error:
            # The error keeps its type, by which callers catch it.
            if len(error.args) == 1 and not str(error.args[0]).startswith(label):
                error.args = (f"{label}: {error.args[0]}",)
            raise

    def _segments(self, inputs: Any, label: str, policies: dict[str, Any]) -> Iterator[dict[str, Any]]:
        recording = as_recording(inputs)
        name, found = recording.pop("recording", None), recording.pop("warnings", ())
        start_s = recording.pop("start_s", 0.0)
        # One recording at a time: two in one array would be averaged.
        segments, valid_samples, warnings, *_ = self.feature_extractor.prepare_recording(
            recording.pop("signal"), **recording, name=label if name is None else str(name), **policies
        )
        mask = (torch.arange(segments.shape[2]) < valid_samples).long()[None]
        for i, segment in enumerate(torch.from_numpy(segments)):
            yield {
                "is_last": i == len(segments) - 1,
                "input_values": segment[None],
                "attention_mask": mask,
                "recording": name,
                "warnings": [*found, *warnings],
                "start_s": start_s,
            }

    def _forward(  # type: ignore[override]  # the base class declares a ModelOutput, and takes any dictionary
        self, input_tensors: dict[str, Any], **_: Any
    ) -> dict[str, Any]:
        segments, lengths = input_tensors.pop("input_values"), input_tensors.pop("attention_mask").sum(dim=1)
        logits = torch.empty(len(segments), self.model.config.num_labels, device=segments.device)
        for length in lengths.unique().tolist():
            rows = lengths == length
            logits[rows] = self.model(segments[rows, :, :length]).logits.float()
        return {"logits": logits, "lengths": lengths, **input_tensors}

    def postprocess(  # type: ignore[override]  # a ChunkPipeline passes a list; its types have no list
        self, model_outputs: list[dict[str, Any]], per_segment: bool = False, **_: Any
    ) -> dict[str, Any]:
        """Join the segments of one recording."""
        logits = torch.cat([output["logits"] for output in model_outputs]).cpu().numpy()
        first = model_outputs[0]
        answer = recording_answer(first["recording"], logits, first["warnings"], self.model.config)
        if per_segment:
            extractor = self.feature_extractor
            valid_seconds = int(first["lengths"][0]) / extractor.sampling_rate
            answer["by_segment"] = segment_answers(
                logits,
                extractor.segment_seconds,
                valid_seconds,
                self.model.config,
                answer["warnings"],
                first["start_s"],
            )
        return answer


__all__ = [
    "ECGClassificationPipeline",
    "as_recording",
    "is_calibration_valid",
    "positive_labels",
    "recording_answer",
    "recording_scores",
    "segment_answers",
    "segment_times",
]
