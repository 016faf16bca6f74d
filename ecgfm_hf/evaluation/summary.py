"""All metrics of predictions with their intervals, as plain values."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .challenge import challenge_columns
from .decisions import confusion_counts
from .intervals import Interval, Intervals, MetricIntervals, bootstrap_intervals
from .metric_input import MetricInputError
from .predictions import Predictions
from .probabilities import calibration_error
from .ranking import auroc
from .thresholds import at_thresholds
from .weighted import (
    RANKING,
    Statistics,
    accuracy_statistics,
    challenge_statistics,
    decision_statistics,
    probability_statistics,
    ranking_statistics,
    regression_statistics,
)

# Metrics of all labels together; the others are of each label, and their macro value is the mean.
OF_ALL = ("accuracy", "challenge_score")
_FEW = 10


def all_metrics(
    predictions: Predictions,
    thresholds: Mapping[str, float] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    *,
    level: float = 0.95,
    specificity: float = 0.95,
) -> dict[str, Any]:
    """
    Every metric that the predictions allow, with intervals over patients; undefined values are None, never guessed. For
    the eyes of whoever has the data: counts are exact, however few patients they are of; `ecgfm evaluate` hides those.

    Args:
        predictions ([`Predictions`]): At least one recording.
        thresholds (`dict[str, float]`, *optional*): By label name, on the (calibrated) score. Labels without one have
            no decisions, so no sensitivity, specificity, PPV or F1. None is assumed.
        resamples (`int`), seed (`int`), level (`float`): Of [`bootstrap_intervals`].
        specificity (`float`): Of [`sensitivity_at_specificity`].

    Returns:
        `dict`, ready for JSON:

        - `"per_label"`: by label `"known"`, `"unknown"`, `"positives"` and `"negatives"` (not of a regression),
          `"calibrated"`, `"threshold"`, `"counts"` of decisions, `"calibration_error"`, and `"metrics"`: by name
          `{"value", "low", "high", "patients", "resamples_left_out", "reason"}`
        - `"macro"`: by name `{"value", "low", "high", "labels", "labels_left_out", "resamples_left_out", "reason"}`
        - `"overall"`: accuracy of a single label, with its `"confusion"` (true class by row); the challenge score where
          the 26 scored classes are there and have thresholds
        - `"recordings"`, `"patients"`, `"intervals"` (level, unit, resamples, seed), `"notes"`: what was left out, why

    Raises:
        `MetricInputError`: no recordings; a threshold of an unknown label.
    """
    if not len(predictions):
        raise MetricInputError("there are no predictions to evaluate")
    limits = threshold_row(predictions, thresholds)
    statistics, notes = statistics_of(predictions, limits, specificity)
    found = bootstrap_intervals(statistics, predictions.patient_ids, resamples=resamples, level=level, seed=seed)
    per_label = [name for name in found.metrics if name not in OF_ALL]
    overall: dict[str, Any] = {name: _of_macro(found[name].macro) for name in OF_ALL if name in found.metrics}
    if predictions.problem_type == "single_label_classification":
        overall["confusion"] = _confusion(predictions)
    return plain_json(
        {
            "problem_type": predictions.problem_type,
            "recordings": len(predictions),
            "patients": found.count if found.unit == "patient" else None,
            "intervals": {"level": level, "unit": found.unit, "resamples": resamples, "seed": seed},
            "macro": {name: _of_macro(found[name].macro) for name in per_label},
            "overall": overall,
            "per_label": _labels(predictions, limits, {name: found[name] for name in per_label}),
            "notes": notes + _notes(found, predictions, specificity),
        }
    )


def threshold_row(predictions: Predictions, thresholds: Mapping[str, float] | None) -> np.ndarray:
    """(L,) thresholds, NaN where there is none. `MetricInputError` for labels that there are not."""
    thresholds = thresholds or {}
    if unknown := sorted(set(thresholds) - set(predictions.label_names)):
        raise MetricInputError(
            f"thresholds of unknown labels: {', '.join(unknown)} (found: {', '.join(predictions.label_names)})"
        )
    return np.array([thresholds.get(name, np.nan) for name in predictions.label_names], dtype=np.float64)


def statistics_of(
    predictions: Predictions, limits: np.ndarray, specificity: float = 0.95
) -> tuple[list[Statistics], list[str]]:
    """What can be computed of predictions, for [`bootstrap_intervals`]; and notes on what was left out."""
    labels, scores = predictions.labels, predictions.scores
    if predictions.problem_type == "regression":
        return [regression_statistics(labels, scores)], []
    parts = [ranking_statistics(labels, scores, RANKING, specificity), probability_statistics(labels, scores)]
    if predictions.problem_type == "single_label_classification":
        return [*parts, accuracy_statistics(labels, scores)], []
    notes: list[str] = []
    if np.isnan(limits).all():
        return parts, notes
    decided = at_thresholds(scores, limits)
    parts.append(decision_statistics(labels, decided))
    columns = challenge_columns(predictions.label_names)
    if columns is not None and not np.isnan(limits[columns]).any():
        true, given = labels[:, columns], decided[:, columns] == 1
        known = ~np.isnan(true).any(axis=1)
        # A recording without a class and without a decision adds nothing: that leaves it out.
        parts.append(challenge_statistics((true == 1) & known[:, None], given & known[:, None]))
        if not known.all():
            notes.append(f"{(~known).sum()} recordings are not in the challenge score: a scored class is unknown.")
    return parts, notes


def _labels(predictions: Predictions, limits: np.ndarray, metrics: dict[str, MetricIntervals]) -> dict[str, Any]:
    regression = predictions.problem_type == "regression"
    decided = None if regression or np.isnan(limits).all() else at_thresholds(predictions.scores, limits)
    counts = None if decided is None else confusion_counts(predictions.labels, decided)
    errors = None if regression else calibration_error(predictions.labels, predictions.scores)
    rows = {}
    for place, name in enumerate(predictions.label_names):
        column = predictions.labels[:, place]
        row: dict[str, Any] = {"known": int((~np.isnan(column)).sum()), "unknown": int(np.isnan(column).sum())}
        if not regression:
            row |= {"positives": int((column == 1).sum()), "negatives": int((column == 0).sum())}
            row |= {"calibrated": predictions.calibrated[place], "calibration_error": errors[place]}
            row["threshold"] = limits[place]
            if counts is not None and not math.isnan(limits[place]):
                row["counts"] = {kind: count[place] for kind, count in counts.items()}
        row["metrics"] = {
            metric: {
                "value": of.values[place],
                "low": of.low[place],
                "high": of.high[place],
                "patients": of.patients[place],
                "resamples_left_out": of.resamples_left_out[place],
                "reason": of.reasons[place],
            }
            for metric, of in metrics.items()
        }
        rows[name] = row
    return rows


def _of_macro(interval: Interval) -> dict[str, Any]:
    return {
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "labels": interval.labels,
        "labels_left_out": interval.labels_left_out,
        "resamples_left_out": interval.resamples_left_out,
        "reason": interval.reason,
    }


def _confusion(predictions: Predictions) -> list[list[int]]:
    known = ~np.isnan(predictions.labels).any(axis=1)
    true, given = predictions.labels[known].argmax(axis=1), predictions.scores[known].argmax(axis=1)
    width = len(predictions.label_names)
    return np.bincount(true * width + given, minlength=width * width).reshape(width, width).tolist()


def _notes(found: Intervals, predictions: Predictions, specificity: float) -> list[str]:
    notes = [] if found.note is None else [found.note]
    if predictions.problem_type == "regression":
        return notes
    names = predictions.label_names
    undefined = [
        name
        for name, value in zip(names, auroc(predictions.labels, predictions.scores), strict=True)
        if np.isnan(value)
    ]
    if undefined:
        notes.append(f"Without positives or without negatives, so left out of means: {', '.join(undefined)}.")
    patients = found["auroc"].patients
    few = [name for name, count in zip(names, patients, strict=True) if 0 < count < _FEW]
    if few:
        notes.append(f"Intervals are unreliable with fewer than {_FEW} {found.unit}s of a kind: {', '.join(few)}.")
    notes.append(
        f"sensitivity_at_specificity is at a specificity of {specificity:g}, its thresholds chosen on these recordings."
    )
    return notes


def plain_json(value: Any) -> Any:
    """The same in Python's own types: NaN and infinities are None, arrays lists, numpy's numbers Python's."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return plain_json(value.tolist())
    if isinstance(value, list | tuple):
        return [plain_json(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
