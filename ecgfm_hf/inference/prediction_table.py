"""What a model said of recordings, beside what is known of them: the one table that evaluation reads."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..utils.errors import ECGFMError

PROBLEM_TYPES = ("multi_label_classification", "single_label_classification", "regression")
FACTS = ("age", "sex", "source")
_SCORE, _LABEL = "score:", "label:"
_METADATA = b"ecgfm_predictions"


class PredictionsError(ECGFMError, ValueError):
    """Predictions that contradict themselves, or a file that holds none. The message names what was found."""


@dataclass(frozen=True)
class Predictions:
    """
    Scores and labels of recordings, a row each.

    Args:
        recording_ids (`list[str]`, length n): Each once.
        patient_ids (`list[str | None]`, length n): `None` where the patient is unknown.
        label_names (`tuple[str, ...]`, length L): In the order of the columns.
        scores (`np.ndarray` of shape `(n, L)`, float64): Of the recording; a sigmoid's, or of a single label the
            softmax; of a regression the value predicted. All finite.
        labels (`np.ndarray` of shape `(n, L)`, float64): 1, 0, or NaN where unknown; single label: 1 in the column of
            the class, a row all NaN where unknown; regression: the value, or NaN.
        facts (`dict[str, np.ndarray]`): Any of `"age"` (n,) float with NaN unknown, `"sex"` and `"source"` (n,) objects
            with None unknown.
        problem_type (`str`): One of `PROBLEM_TYPES`.
        calibrated (`tuple[bool, ...]`, length L): Whose scores were calibrated, and are probabilities.

    Raises:
        `PredictionsError`: shapes that differ, ids given twice, values that cannot be.
    """

    recording_ids: list[str]
    patient_ids: list[str | None]
    label_names: tuple[str, ...]
    scores: np.ndarray
    labels: np.ndarray
    facts: dict[str, np.ndarray] = field(default_factory=dict)
    problem_type: str = "multi_label_classification"
    calibrated: tuple[bool, ...] = ()

    def __post_init__(self):
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
            "calibrated": tuple(bool(one) for one in self.calibrated) or (False,) * len(names),
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
                    f"recording {self.recording_ids[row]}: of a single label one class must be 1 and the others 0, or "
                    f"all NaN, found: {self.labels[row].tolist()}"
                )

    def __len__(self) -> int:
        return len(self.recording_ids)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Predictions":
        """These rows (numbers, or a boolean mask), in the order given."""
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
        Writes columns `recording_id`, `patient_id`, the facts, `score:NAME` and `label:NAME` (null where unknown); the
        rest is in the file's metadata. The file is there whole or not at all.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {
            "recording_id": pa.array(self.recording_ids, pa.string()),
            "patient_id": pa.array(self.patient_ids, pa.string()),
        }
        for name, values in self.facts.items():
            columns[name] = pa.array(values, pa.float64() if name == "age" else pa.string(), from_pandas=True)
        for place, name in enumerate(self.label_names):
            columns[_SCORE + name] = pa.array(self.scores[:, place], pa.float64())
        for place, name in enumerate(self.label_names):
            columns[_LABEL + name] = pa.array(self.labels[:, place], pa.float64(), from_pandas=True)
        about = {
            "label_names": self.label_names,
            "problem_type": self.problem_type,
            "calibrated": self.calibrated,
        }
        table = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(about).encode()})
        path = Path(path)
        scratch = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            pq.write_table(table, scratch)
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)

    @classmethod
    def from_parquet(cls, path: str | os.PathLike) -> "Predictions":
        """
        Reads what [`Predictions.to_parquet`] wrote.

        Raises:
            `PredictionsError`: a file that is no predictions, naming it.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

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
                f"{os.fspath(path)}: not predictions as Predictions.to_parquet writes them: {error.args[0]} is missing"
            ) from error


def select_labels(predictions: Predictions, labels: Sequence[str]) -> Predictions:
    """The predictions of these labels only, in this order. `PredictionsError` for labels that there are not."""
    if missing := [name for name in labels if name not in predictions.label_names]:
        raise PredictionsError(
            f"the predictions have no label {', '.join(missing)} (found: {', '.join(predictions.label_names)})"
        )
    if predictions.problem_type == "single_label_classification" and set(labels) != set(predictions.label_names):
        raise PredictionsError("the classes of a single label exclude one another, and are evaluated all together")
    places = [predictions.label_names.index(name) for name in labels]
    return replace(
        predictions,
        label_names=tuple(labels),
        scores=predictions.scores[:, places],
        labels=predictions.labels[:, places],
        calibrated=tuple(predictions.calibrated[place] for place in places),
    )


def _with_nan(column) -> np.ndarray:
    return np.array(column.to_numpy(zero_copy_only=False), dtype=np.float64)
