"""Scores of a prepared dataset's recordings beside their labels: what evaluation takes."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.model_inputs import as_model_inputs
from ..data.store import COLUMNS
from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..modeling_ecgfm import ECGFMForMultiLabelClassification
from ..pipeline_ecgfm import recording_scores
from .prediction_table import Predictions
from .recordings import run_recordings

if TYPE_CHECKING:
    from datasets import Dataset

_FACTS = ("age", "sex", "source")


def predict_recordings(
    model: ECGFMForMultiLabelClassification,
    feature_extractor: ECGFMFeatureExtractor,
    dataset: "Dataset",
    *,
    labels: Sequence[str] | None = None,
    calibrated: bool = True,
    batch_size: int = 16,
    num_workers: int = 0,
    precision: str = "float32",
    compile: bool = False,
    progress: bool = False,
) -> Predictions:
    """
    Scores the recordings of one split of a store.

    Args:
        model ([`ECGFMForMultiLabelClassification`]): Where it is, it runs.
        feature_extractor ([`ECGFMFeatureExtractor`]): With the policies for missing leads, NaN and so on.
        dataset (`Dataset`): From `load_prepared(store, split)`.
        labels: Which of the model's, in which order. Defaults to all.
        calibrated: Whether to calibrate as the model's config says; without, scores are aggregated over segments only.
        batch_size, num_workers, precision, compile, progress: As of [`run_recordings`].

    Returns:
        [`Predictions`] of the recordings that the extractor does not refuse, in order of rows. A label that the dataset
        has no column for is unknown (NaN).

    Raises:
        `ValueError`: a label that the model does not have; a label's column that holds no numbers.
    """
    config = model.config
    names = tuple(config.label_names) if labels is None else tuple(labels)
    if unknown := [name for name in names if name not in config.label_names]:
        raise ValueError(f"the model has no label {', '.join(unknown)} (found: {', '.join(config.label_names)})")
    if not calibrated:
        config = copy.copy(config)
        config.label_calibration = None
    inputs = as_model_inputs(dataset, feature_extractor, labels=())
    rows, ids, patients, scores = [], [], [], []
    for output in run_recordings(
        model,
        inputs,
        batch_size=batch_size,
        num_workers=num_workers,
        precision=precision,
        compile=compile,
        progress=progress,
    ):
        found = recording_scores(output.logits, config)
        rows.append(output.row)
        ids.append(output.recording_id)
        patients.append(output.patient_id)
        scores.append([found[name] for name in names])
    known = dataset.select_columns([name for name in dict.fromkeys((*_FACTS, *names)) if name in dataset.column_names])
    known = known.with_format("arrow")[:]
    fits = config.label_calibration or {}
    return Predictions(
        recording_ids=ids,
        patient_ids=patients,
        label_names=names,
        scores=np.array(scores, dtype=np.float64).reshape(len(rows), len(names)),
        labels=np.stack([_numbers(known, name)[rows] for name in names], axis=1),
        facts={name: _fact(known, name)[rows] for name in _FACTS if name in known.column_names},
        problem_type=config.problem_type or "multi_label_classification",
        calibrated=tuple(name in fits for name in names),
    )


def _numbers(table: Any, name: str) -> np.ndarray:
    """A column (rows,) as float64, NaN where it is null; all NaN where there is no such column."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    try:
        return table[name].cast("float64").to_numpy()
    except (ValueError, NotImplementedError):
        raise ValueError(f"label {name}: the dataset's column holds {table[name].type}, expected numbers") from None


def _fact(table: Any, name: str) -> np.ndarray:
    if COLUMNS[name] == "float":
        return _numbers(table, name)
    return np.array(table[name].to_pylist(), dtype=object)


__all__ = ["predict_recordings"]
