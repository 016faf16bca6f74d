"""Two models on the same recordings: the differences of their figures, with intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..inference.prediction_table import Predictions, PredictionsError, select_labels
from .evaluating import Evaluation


def compare_predictions(
    first: Predictions,
    second: Predictions,
    *,
    names: tuple[str, str] = ("first", "second"),
    resamples: int = 1000,
    seed: int = 0,
    smallest_cell: int = 10,
) -> dict[str, Any]:
    """
    Differences first minus second by paired bootstrap: both models are measured on each resample of patients.

    Args:
        first, second ([`Predictions`]): Of the same recordings, in any order, with the same known labels. The labels
            that are compared are the first's; the second may have more.
        names: What to call them.
        resamples, seed, smallest_cell: As of [`evaluate_predictions`].

    Returns:
        `{"model", "other", "recordings", "intervals", "macro", "per_label"}`; `"macro"` and each label of `"per_label"`
        hold by metric `{"first": value, "second": value, "difference": {"value", "low", "high"}}`. Labels with too few
        patients are not among them.

    Raises:
        `PredictionsError`: other recordings, patients, labels or problem; what is known of a recording differs.
    """
    second = _paired(first, second)
    evaluation = Evaluation(first, {}, resamples, seed, smallest_cell)
    measured = evaluation.compare(second)
    return {
        "model": names[0],
        "other": names[1],
        "recordings": evaluation.recordings,
        "intervals": evaluation.intervals,
        "macro": measured.macro,
        "per_label": measured.per_label,
    }


def _paired(first: Predictions, second: Predictions) -> Predictions:
    """The second's predictions of the first's recordings and labels, in the first's order."""
    if first.problem_type != second.problem_type:
        raise PredictionsError(
            f"models of different problems cannot be compared: {first.problem_type} and {second.problem_type}"
        )
    if first.label_names != second.label_names:
        second = select_labels(second, first.label_names)
    rows = {recording: row for row, recording in enumerate(second.recording_ids)}
    alone = [recording for recording in first.recording_ids if recording not in rows]
    others = set(second.recording_ids) - set(first.recording_ids)
    if alone or others:
        raise PredictionsError(
            f"the two must be of the same recordings: {_some(alone)} only in the first, {_some(sorted(others))} "
            "only in the second"
        )
    second = second.take([rows[recording] for recording in first.recording_ids])
    for row, recording in enumerate(first.recording_ids):
        if first.patient_ids[row] != second.patient_ids[row]:
            raise PredictionsError(f"recording {recording} is of different patients in the two")
    differ = ~((first.labels == second.labels) | (np.isnan(first.labels) & np.isnan(second.labels)))
    if differ.any():
        row, column = np.argwhere(differ)[0]
        raise PredictionsError(
            f"recording {first.recording_ids[row]}, label {first.label_names[column]}: the first was evaluated against "
            f"{first.labels[row, column]:g}, the second against {second.labels[row, column]:g}"
        )
    return second


def _some(recordings: Sequence[str]) -> str:
    if not recordings:
        return "none"
    more = ", ..." if len(recordings) > 3 else ""
    return f"{len(recordings)} ({', '.join(recordings[:3])}{more})"
