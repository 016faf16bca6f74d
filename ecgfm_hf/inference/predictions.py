"""
A model's scores of recordings beside their labels: the table that evaluation reads, and how a store gives one.

Reading a table needs no torch.
"""

import copy
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..utils.errors import ECGFMError
from ..utils.files import atomic_path

if TYPE_CHECKING:
    from datasets import Dataset

    from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
    from ..modeling_ecgfm import ECGFMForMultiLabelClassification

PROBLEM_TYPES = ("multi_label_classification", "single_label_classification", "regression")
FACTS = ("age", "sex", "source")
_SCORE, _LABEL = "score:", "label:"
_METADATA = b"ecgfm_predictions"


class PredictionsError(ECGFMError, ValueError):
    """Predictions that contradict themselves, or a file without predictions. The message quotes what was found."""


@dataclass(frozen=True)
class Predictions:
    """
    Scores and labels of recordings, one row each.

    Args:
        recording_ids (`list[str]`, length n): Unique.
        patient_ids (`list[str | None]`, length n): `None` where the patient is unknown.
        label_names (`tuple[str, ...]`, length L): In the order of the columns.
        scores (`np.ndarray` of shape `(n, L)`, float64): The recording's sigmoid score; for a single label the softmax,
            for a regression the predicted value. All finite.
        labels (`np.ndarray` of shape `(n, L)`, float64): 1, 0, or NaN where unknown. Single label: 1 in the column of
            the class, all NaN where unknown. Regression: the value, or NaN.
        facts (`dict[str, np.ndarray]`): Any of `"age"` (n,) float with NaN where unknown, `"sex"` and `"source"` (n,)
            objects with None where unknown.
        problem_type (`str`): One of `PROBLEM_TYPES`.
        calibrated (`tuple[bool, ...]`, length L): Labels whose scores were calibrated, so that they are probabilities.

    Raises:
        `PredictionsError`: shapes that differ, repeated ids, impossible values.
    """

    recording_ids: list[str]
    patient_ids: list[str | None]
    label_names: tuple[str, ...]
    scores: np.ndarray
    labels: np.ndarray
    facts: dict[str, np.ndarray] = field(default_factory=dict)
    problem_type: str = "multi_label_classification"
    calibrated: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        names = tuple(self.label_names)
        as_given = {
            "recording_ids": list(self.recording_ids),
            "patient_ids": list(self.patient_ids),
            "label_names": names,
            "scores": np.asarray(self.scores, dtype=np.float64),
            "labels": np.asarray(self.labels, dtype=np.float64),
            "facts": {
                name: np.asarray(values, dtype=np.float64 if name == "age" else object)
                for name, values in self.facts.items()
            },
            "calibrated": tuple(bool(flag) for flag in self.calibrated) or (False,) * len(names),
        }
        for name, value in as_given.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        n, width = len(self.recording_ids), len(self.label_names)
        if self.problem_type not in PROBLEM_TYPES:
            raise PredictionsError(
                f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, found: {self.problem_type}"
            )
        for what, items in (("recording", self.recording_ids), ("label", self.label_names)):
            if repeated := [item for item, count in Counter(items).items() if count > 1]:
                raise PredictionsError(f"{what} given more than once: {', '.join(map(str, repeated[:3]))}")
        for what, values in (("scores", self.scores), ("labels", self.labels)):
            if values.shape != (n, width):
                raise PredictionsError(
                    f"{what} must have a row for each of {n} recordings and a column for each of {width} labels, "
                    f"found shape {values.shape}"
                )
        for what, size, wanted in (
            ("patient_ids", len(self.patient_ids), n),
            ("calibrated", len(self.calibrated), width),
        ):
            if size != wanted:
                raise PredictionsError(f"{what} must have length {wanted}, found: {size}")
        for name, values in self.facts.items():
            if name not in FACTS or values.shape != (n,):
                raise PredictionsError(
                    f"facts must be among {', '.join(FACTS)} with a value for each of {n} recordings, found: {name} of "
                    f"shape {values.shape}"
                )
        if not np.isfinite(self.scores).all():
            row, column = np.argwhere(~np.isfinite(self.scores))[0]
            raise PredictionsError(
                f"recording {self.recording_ids[row]}, label {self.label_names[column]}: the score must be finite, "
                f"found: {self.scores[row, column]}"
            )
        if self.problem_type != "regression":
            self._check_classes()
        elif np.isinf(self.labels).any():
            raise PredictionsError("labels of a regression must be finite or NaN, found infinite ones")

    def _check_classes(self) -> None:
        known = ~np.isnan(self.labels)
        wrong = known & (self.labels != 0) & (self.labels != 1)
        outside = (self.scores < 0) | (self.scores > 1)
        for what, values, bad in (
            ("label must be 0, 1 or NaN", self.labels, wrong),
            ("score must be within 0 and 1", self.scores, outside),
        ):
            if bad.any():
                row, column = np.argwhere(bad)[0]
                raise PredictionsError(
                    f"recording {self.recording_ids[row]}, label {self.label_names[column]}: the {what}, "
                    f"found: {values[row, column]}"
                )
        if self.problem_type == "single_label_classification":
            bad = known.any(axis=1) & (~known.all(axis=1) | (np.nansum(self.labels, axis=1) != 1))
            if bad.any():
                row = int(np.flatnonzero(bad)[0])
                raise PredictionsError(
                    f"recording {self.recording_ids[row]}: for a single label one class must be 1 and the others 0, or "
                    f"all NaN, found: {self.labels[row].tolist()}"
                )

    def __len__(self) -> int:
        return len(self.recording_ids)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Predictions":
        """Return these rows (indices or a boolean mask), in the order given."""
        rows = np.arange(len(self))[np.asarray(rows)]
        return Predictions(
            [self.recording_ids[row] for row in rows],
            [self.patient_ids[row] for row in rows],
            self.label_names,
            self.scores[rows],
            self.labels[rows],
            {name: values[rows] for name, values in self.facts.items()},
            self.problem_type,
            self.calibrated,
        )

    def to_parquet(self, path: str | os.PathLike) -> None:
        """
        Write the columns `recording_id`, `patient_id`, age, sex and source, `score:NAME` and `label:NAME` (null where
        unknown). Label names, problem type and calibration go into the file's metadata. A failed write leaves an old
        file as it was.
        """
        columns = {
            "recording_id": pa.array(self.recording_ids, pa.string()),
            "patient_id": pa.array(self.patient_ids, pa.string()),
        }
        for name, values in self.facts.items():
            columns[name] = pa.array(values, pa.float64() if name == "age" else pa.string(), from_pandas=True)
        for column, name in enumerate(self.label_names):
            columns[_SCORE + name] = pa.array(self.scores[:, column], pa.float64())
        for column, name in enumerate(self.label_names):
            columns[_LABEL + name] = pa.array(self.labels[:, column], pa.float64(), from_pandas=True)
        about = {
            "label_names": self.label_names,
            "problem_type": self.problem_type,
            "calibrated": self.calibrated,
        }
        table = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(about).encode()})
        with atomic_path(path) as scratch:
            pq.write_table(table, scratch)

    @classmethod
    def from_parquet(cls, path: str | os.PathLike) -> "Predictions":
        """
        Read a file that [`Predictions.to_parquet`] wrote.

        Raises:
            `PredictionsError`: another kind of file, named.
        """
        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise PredictionsError(f"{os.fspath(path)}: not a Parquet file ({error})") from error
        try:
            about = json.loads((table.schema.metadata or {})[_METADATA])
            names = tuple(about["label_names"])
            scores = [table[_SCORE + name].to_numpy() for name in names]
            labels = [_with_nan(table[_LABEL + name]) for name in names]
            facts = {
                name: _with_nan(table[name]) if name == "age" else np.array(table[name].to_pylist(), dtype=object)
                for name in FACTS
                if name in table.column_names
            }
            n = table.num_rows
            return cls(
                table["recording_id"].to_pylist(),
                table["patient_id"].to_pylist(),
                names,
                np.stack(scores, axis=1) if names else np.zeros((n, 0)),
                np.stack(labels, axis=1) if names else np.zeros((n, 0)),
                facts,
                about["problem_type"],
                tuple(about["calibrated"]),
            )
        except PredictionsError as error:
            raise PredictionsError(f"{os.fspath(path)}: {error}") from error
        except KeyError as error:
            raise PredictionsError(
                f"{os.fspath(path)} is not a file that Predictions.to_parquet wrote: {error.args[0]} is missing"
            ) from error


def select_labels(predictions: Predictions, labels: Sequence[str]) -> Predictions:
    """Return the predictions of these labels only, in this order. `PredictionsError` for unknown labels."""
    if missing := [name for name in labels if name not in predictions.label_names]:
        raise PredictionsError(
            f"the predictions have no label {', '.join(missing)} (found: {', '.join(predictions.label_names)})"
        )
    if predictions.problem_type == "single_label_classification" and set(labels) != set(predictions.label_names):
        raise PredictionsError("the classes of a single label exclude one another: they must be evaluated together")
    columns = [predictions.label_names.index(name) for name in labels]
    return replace(
        predictions,
        label_names=tuple(labels),
        scores=predictions.scores[:, columns],
        labels=predictions.labels[:, columns],
        calibrated=tuple(predictions.calibrated[column] for column in columns),
    )


def predict_recordings(
    model: "ECGFMForMultiLabelClassification",
    feature_extractor: "ECGFMFeatureExtractor",
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
    Score the recordings of one split of a store.

    Args:
        model ([`ECGFMForMultiLabelClassification`]): Runs on its own device.
        feature_extractor ([`ECGFMFeatureExtractor`]): With the policies for missing leads, NaN and so on.
        dataset (`Dataset`): From `load_prepared(store, split)`.
        labels: Which of the model's labels, in which order; all by default.
        calibrated: Whether to apply the config's calibration. Otherwise scores are only aggregated over segments.
        batch_size, num_workers, precision, compile, progress: As in [`run_recordings`].

    Returns:
        [`Predictions`] of the recordings that the extractor accepts, in the order of rows. Recordings of which more
        than half of the leads carry no signal are excluded: calibration and thresholds are not valid for them, and
        `ecgfm predict` decides nothing about them either. A label without a column in the dataset is unknown (NaN).

    Raises:
        `ValueError`: a label that the model does not have; a label column without numbers.
    """
    from ..data.model_inputs import as_model_inputs
    from ..pipeline_ecgfm import is_calibration_valid, recording_scores
    from .model_runner import run_recordings

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
        assert output.logits is not None  # a classifier has logits
        if not is_calibration_valid(output.warnings):
            continue
        found = recording_scores(output.logits, config)
        rows.append(output.row)
        ids.append(output.recording_id)
        patients.append(output.patient_id)
        scores.append([found[name] for name in names])
    columns = [name for name in dict.fromkeys((*FACTS, *names)) if name in dataset.column_names]
    table = dataset.select_columns(columns).with_format("arrow")[:]
    calibration = config.label_calibration or {}
    return Predictions(
        recording_ids=ids,
        patient_ids=patients,
        label_names=names,
        scores=np.array(scores, dtype=np.float64).reshape(len(rows), len(names)),
        labels=np.stack([column_values(table, name)[rows] for name in names], axis=1),
        facts={name: _fact(table, name)[rows] for name in FACTS if name in table.column_names},
        problem_type=config.problem_type or "multi_label_classification",
        calibrated=tuple(name in calibration for name in names),
    )


def column_values(table: pa.Table, name: str) -> np.ndarray:
    """Return a column (rows,) as float64, NaN where it is null; all NaN if there is no such column."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    try:
        return table[name].cast("float64").to_numpy()
    except (ValueError, NotImplementedError):
        raise ValueError(
            f"label {name}: the dataset's column has the type {table[name].type}, expected numbers"
        ) from None


def _fact(table: pa.Table, name: str) -> np.ndarray:
    if name == "age":
        return column_values(table, name)
    return np.array(table[name].to_pylist(), dtype=object)


def _with_nan(column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.to_numpy(zero_copy_only=False), dtype=np.float64)


__all__ = [
    "FACTS",
    "PROBLEM_TYPES",
    "Predictions",
    "PredictionsError",
    "column_values",
    "predict_recordings",
    "select_labels",
]
