"""
What an arm of a study may see: inputs and targets of its training fold, and later the inputs of the test fold.

An arm is fitted on a [`TrainingData`]. Any other row, also for standardising, choosing hyper-parameters or calibration,
is a `LeakError`. What it returns is then given the inputs of test rows, never their targets, and must score a recording
alike whichever others are scored with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np

from ..data.leakage import LeakError
from .folds import Fold, StudyError, StudyTable, check_fold, inner_folds

# Test recordings that are scored a second time, without the others.
_SCORED_AGAIN = 8
_SCORE_TOLERANCE = 1e-2


class Guarded:
    """
    Values of all recordings, of which only some rows can be taken: `values[rows]`, with rows of the study's table.

    Args:
        values: Anything that an array of rows can be taken from by `[]`, such as an array or a `Dataset`.
        allowed (`np.ndarray`): Rows.
        what (`str`): What an error calls the values.
    """

    def __init__(self, values: Any, allowed: np.ndarray, what: str):
        self._values, self._what = values, what
        self.rows = np.sort(allowed)

    def __getitem__(self, rows: np.ndarray | Sequence[int]) -> Any:
        wanted = np.asarray(rows)
        if wanted.dtype == bool or wanted.ndim != 1 or (len(wanted) and not np.issubdtype(wanted.dtype, np.integer)):
            raise StudyError(
                f"{self._what}: take an array of rows of the table, not {type(rows).__name__} {rows!r:.60}"
            )
        outside = np.setdiff1d(wanted, self.rows)
        if len(outside):
            raise LeakError(
                f"{self._what} of {len(outside)} recordings outside the training fold were asked for, such as row "
                f"{outside[0]}: an arm may standardise, tune and calibrate on its training rows only"
            )
        return self._values[wanted.astype(np.int64)]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> NoReturn:
        self._refuse_all()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NoReturn:
        self._refuse_all()

    def _refuse_all(self) -> NoReturn:
        raise LeakError(f"{self._what} of the whole table were asked for: take training rows, such as values[rows]")


@dataclass(frozen=True)
class TrainingData:
    """
    What an arm is fitted on.

    Args:
        rows (`np.ndarray`): The training rows of the table.
        inputs ([`Guarded`]): Of these rows: features, embeddings or what else the arm reads.
        targets ([`Guarded`]): (rows, L), NaN where unknown.
        table ([`StudyTable`]): For ids and patients; its targets are those of the training rows, NaN elsewhere.
    """

    rows: np.ndarray
    inputs: Guarded
    targets: Guarded
    table: StudyTable

    def inner_folds(self, folds: int = 3, seed: int = 0) -> list[Fold]:
        """Return folds within the training rows, to choose hyper-parameters with."""
        return inner_folds(self.table, self.rows, folds=folds, seed=seed)


class Arm(Protocol):
    """What a study compares."""

    def fit(self, data: TrainingData, seed: int) -> Callable[[Any], np.ndarray]:
        """Return a function from inputs of recordings to their scores (rows, L)."""


def fit_and_score(arm: Arm, table: StudyTable, inputs: Any, fold: Fold, seed: int) -> np.ndarray:
    """
    Fit an arm on a fold's training rows and return the scores (test rows, L) of its test rows.

    Raises:
        `LeakError`: a patient in both; the arm asked for rows outside the training fold; the score of a test recording
            depends on the other test recordings. [`StudyError`]: scores of another shape, or not finite.
    """
    check_fold(table, fold)
    own = np.full_like(table.targets, np.nan)
    own[fold.train] = table.targets[fold.train]
    visible = StudyTable(table.ids, table.patients, own, table.label_names)
    data = TrainingData(fold.train, Guarded(inputs, fold.train, "inputs"), Guarded(own, fold.train, "targets"), visible)
    score = arm.fit(data, seed)
    scores = np.asarray(score(inputs[fold.test]), dtype=np.float64)
    check_scores(scores, fold, len(table.label_names))
    few = fold.test[:: max(1, len(fold.test) // _SCORED_AGAIN)][:_SCORED_AGAIN]
    again = np.asarray(score(inputs[few]), dtype=np.float64)
    before = scores[np.isin(fold.test, few)]
    if again.shape != before.shape or np.abs(again - before).max() > _SCORE_TOLERANCE * max(1.0, np.ptp(scores)):
        raise LeakError(
            f"repeat {fold.repeat}, fold {fold.fold}: the scores of {len(few)} test recordings change where the others "
            "are absent. An arm may use no figure of the test fold, such as its mean"
        )
    return scores


def check_scores(scores: np.ndarray, fold: Fold, labels: int) -> None:
    """Raise [`StudyError`] where scores do not have one finite number for each test row and label."""
    where = f"repeat {fold.repeat}, fold {fold.fold}"
    if scores.shape != (len(fold.test), labels):
        raise StudyError(
            f"{where}: scores must be {(len(fold.test), labels)} (test rows, labels), found {scores.shape}"
        )
    if not np.isfinite(scores).all():
        row = int(np.argwhere(~np.isfinite(scores))[0, 0])
        raise StudyError(f"{where}: the scores of table row {fold.test[row]} are not finite")
