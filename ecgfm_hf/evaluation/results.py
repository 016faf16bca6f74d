"""The results of an evaluation: all figures of a model's predictions, and the differences between two models."""

import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from ..inference.predictions import Predictions, PredictionsError, select_labels
from ..utils.redaction import SMALLEST_CELL, Cell, label_cells, redact
from . import charts
from .challenge import challenge_columns
from .intervals import (
    RANKING,
    Intervals,
    Statistics,
    accuracy_statistics,
    bootstrap_difference,
    bootstrap_intervals,
    challenge_statistics,
    decision_statistics,
    patient_groups,
    probability_statistics,
    ranking_statistics,
    regression_statistics,
)
from .metrics import calibration_error, confusion_masks
from .metrics import macro as macro_mean
from .thresholds import at_thresholds

REGRESSION = ("mean_absolute_error", "r_squared", "bias")
# Of scores as probabilities. The calibration error has no interval: resampling inflates it.
PROBABILITY = ("brier", "calibration_error")
RATES = ("sensitivity", "specificity", "ppv", "f1")
_GROUP_RANKING = ("auroc", "average_precision")
# The first age of each band, in years.
_AGE_BANDS = ((0, "under 18"), (18, "18 to 39"), (40, "40 to 59"), (60, "60 to 79"), (80, "80 and over"))
_UNKNOWN = "unknown"
_SEXES = {"F": "female", "M": "male"}
# At which `sensitivity_at_specificity` is.
_SPECIFICITY = 0.95
# With fewer patients than this the notes state plainly that they are few.
_FEW_PATIENTS = 100

Figure = dict[str, Any]
Metrics = dict[str, dict[str, Figure]]
MeanOver = Callable[[Sequence[str]], dict[str, Figure]]


def evaluate_predictions(
    predictions: Predictions,
    *,
    model: str = "model",
    dataset: str | None = None,
    split: str | None = None,
    thresholds: Mapping[str, float] | None = None,
    thresholds_from: str | None = None,
    left_out: Mapping[str, int] | None = None,
    warnings: Sequence[str] = (),
    notes: Sequence[str] = (),
    versions: Mapping[str, str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    smallest_cell: int = SMALLEST_CELL,
) -> dict[str, Any]:
    """
    Return all figures with their intervals, as plain values for JSON, without ids of recordings and patients.

    Args:
        predictions ([`Predictions`])
        model, dataset, split: Names for the report; not paths.
        thresholds: By label name, on the (calibrated) score. Labels without one have no decisions; none is assumed.
            Thresholds of other labels are ignored.
        thresholds_from: Where the thresholds come from, for readers.
        left_out: How many recordings have no predictions, by reason.
        warnings: Shown first in the report, such as recordings that the model was trained on.
        notes: For the reader of the report.
        versions: Of further software.
        resamples (`int`), seed (`int`): Of the bootstrap over patients; over recordings if all patients are unknown.
        smallest_cell (`int`): Fewest patients that a count may be of. Smaller counts, and what would reveal them,
            are withheld ([`redact`]); 1 shows everything.

    Returns:
        `dict`: `"macro"`, `"per_label"`, `"subgroups"`, of a single label `"classes"`, `"warnings"`, `"notes"`, and
        what was evaluated. A figure is `{"value", "low", "high"}`, None where undefined or withheld; a macro figure
        also has `"labels"` and `"left_out"`, how many labels the mean is over and how many have no value. A figure that
        would reveal a small count has `"bounds"` instead. Sensitivity, specificity, PPV and F1 are at the
        thresholds; `"challenge_score"` needs thresholds for its 26 classes.

    Raises:
        `PredictionsError`: no recordings.
    """
    if not len(predictions):
        raise PredictionsError("there are no predictions to evaluate")
    limits = {name: value for name, value in (thresholds or {}).items() if name in predictions.label_names}
    exact = _Exact(predictions, resamples, seed)
    redacted = redact(exact.results(limits) | {"left_out": left_out or {}}, smallest_cell)
    unscored = redacted.pop("unscored", 0)
    results = {
        "format": 1,
        "model": model,
        "dataset": dataset,
        "split": split,
        "problem_type": predictions.problem_type,
        "labels": list(predictions.label_names),
        "calibrated": dict(zip(predictions.label_names, predictions.calibrated, strict=True)),
        "intervals": exact.intervals,
        "smallest_cell": smallest_cell,
        "thresholds_from": thresholds_from if limits else None,
        **redacted,
        "warnings": list(warnings),
        "versions": {
            "ecgfm-hf": version("ecgfm-hf"),
            "python": platform.python_version(),
            "numpy": np.__version__,
            **(versions or {}),
        },
    }
    if split == "train":
        results["warnings"].append("These are recordings of a training split: the figures are not of new patients.")
    # Sources are named by whoever made them; `ecgfm synthesize` names its own so.
    if any("synthetic" in str(source).lower() for source in predictions.facts.get("source", ())):
        results["warnings"].append("Some recordings are SYNTHETIC: the figures do not apply to real recordings.")
    results["notes"] = [*_notes(results, predictions), *_challenge_notes(predictions, limits, unscored), *notes]
    return results


def compare_predictions(
    first: Predictions,
    second: Predictions,
    *,
    names: tuple[str, str] = ("first", "second"),
    resamples: int = 1000,
    seed: int = 0,
    smallest_cell: int = SMALLEST_CELL,
) -> dict[str, Any]:
    """
    Return the differences first minus second by paired bootstrap: each resample of patients measures both models.

    Args:
        first, second ([`Predictions`]): Of the same recordings, in any order, with the same known labels. The labels
            that are compared are the first's; the second may have more.
        names: Names for the report.
        resamples, seed, smallest_cell: As of [`evaluate_predictions`].

    Returns:
        `{"model", "other", "recordings", "intervals", "macro", "per_label"}`; `"macro"` and each label of `"per_label"`
        have by metric `{"first": value, "second": value, "difference": {"value", "low", "high"}}`. Labels with too few
        patients are missing.

    Raises:
        `PredictionsError`: other recordings, patients, labels or problem; different labels of a recording.
    """
    exact = _Exact(first, resamples, seed)
    redacted = redact(exact.differences(_paired(first, second)), smallest_cell)
    return {
        "model": names[0],
        "other": names[1],
        "recordings": redacted["recordings"],
        "intervals": exact.intervals,
        "macro": redacted["macro"],
        "per_label": {name: found["metrics"] for name, found in redacted["per_label"].items() if found["metrics"]},
    }


class _Exact:
    """Exact results of predictions, for [`redact`]."""

    def __init__(self, predictions: Predictions, resamples: int, seed: int):
        self._predictions = predictions
        self._names = predictions.label_names
        self._regression = predictions.problem_type == "regression"
        self._patients = patient_groups(predictions.patient_ids).numbers
        self._draw = {"resamples": resamples, "seed": seed}
        unit = "patients" if set(predictions.patient_ids) - {None} else "recordings"
        self.intervals = {"level": 0.95, "unit": unit, "resamples": resamples, "seed": seed}

    def results(self, thresholds: Mapping[str, float]) -> dict[str, Any]:
        labels, scores = self._predictions.labels, self._predictions.scores
        found = self._bootstrap(self._statistics(labels, scores))
        metrics = self._by_label(found)
        if not self._regression:
            for name, value in zip(self._names, calibration_error(labels, scores), strict=True):
                metrics[name]["calibration_error"] = _figure(value, np.nan, np.nan)
        # Errors in different units have no mean.
        several = self._regression and len(self._names) > 1
        known_patients = set(self._predictions.patient_ids) - {None}
        exact = {
            **self._counted(slice(None)),
            "patients": len(known_patients) or None,
            "metrics": metrics,
            "macro": self._mean(found, ("r_squared",) if several else (*RANKING, *REGRESSION)),
            "curves": {name: self._curves(column) for column, name in enumerate(self._names)},
            "subgroups": self._subgroups(),
        }
        if self._predictions.problem_type == "single_label_classification":
            exact |= self._classes()
        limits = np.array([thresholds.get(name, np.nan) for name in self._names], dtype=np.float64)
        decided = at_thresholds(scores, limits)
        if thresholds:
            exact |= self._decisions(decided, thresholds)
        if self._predictions.problem_type == "multi_label_classification":
            exact |= self._challenge(decided, thresholds)
        return exact

    def differences(self, other: Predictions) -> dict[str, Any]:
        """Return figures `{"first", "second", "difference"}`, the difference first minus second; rows as in ours."""
        parts = [self._statistics(one.labels, one.scores) for one in (self._predictions, other)]
        found = bootstrap_difference(parts[1], parts[0], self._predictions.patient_ids, **self._draw)
        first, second = (_values(part, len(other)) for part in parts)
        metrics = self._by_label(found)
        for column, name in enumerate(self._names):
            for metric, figure in metrics[name].items():
                pair = {"first": _plain(first[metric][column]), "second": _plain(second[metric][column])}
                metrics[name][metric] = pair | {"difference": figure}
        several = self._regression and len(self._names) > 1
        mean = self._mean(found, ("r_squared",) if several else (*RANKING, *REGRESSION))

        def macro(labels: Sequence[str]) -> dict[str, Figure]:
            columns = [self._names.index(name) for name in labels]
            return {
                metric: {
                    "first": _plain(macro_mean(first[metric][columns])[0]),
                    "second": _plain(macro_mean(second[metric][columns])[0]),
                    "difference": figure,
                }
                for metric, figure in mean(labels).items()
            }

        return {**self._counted(slice(None)), "metrics": metrics, "macro": macro}

    def _statistics(self, labels: np.ndarray, scores: np.ndarray) -> list[Statistics]:
        if self._regression:
            return [regression_statistics(labels, scores)]
        ranking = ranking_statistics(labels, scores, RANKING, _SPECIFICITY)
        return [ranking, probability_statistics(labels, scores)]

    def _bootstrap(self, statistics: Statistics | list[Statistics]) -> Intervals:
        return bootstrap_intervals(statistics, self._predictions.patient_ids, **self._draw)

    def _counted(self, rows: np.ndarray | slice) -> dict[str, Any]:
        labels, patients = self._predictions.labels[rows], self._patients[rows]
        cells = label_cells(labels, patients, self._predictions.problem_type)
        return {
            "recordings": Cell(patients),
            "problem_type": self._predictions.problem_type,
            "labels": dict(zip(self._names, cells, strict=True)),
        }

    def _by_label(self, found: Intervals, names: Sequence[str] | None = None) -> Metrics:
        return {
            name: {
                metric: _figure(of.values[column], of.low[column], of.high[column])
                for metric, of in found.metrics.items()
            }
            for column, name in enumerate(self._names if names is None else names)
        }

    def _mean(self, found: Intervals, metrics: Sequence[str], names: Sequence[str] | None = None) -> MeanOver:
        """Return the function from labels to the figures of their mean."""
        columns = {name: column for column, name in enumerate(self._names if names is None else names)}

        def mean(labels: Sequence[str]) -> dict[str, Figure]:
            means = {}
            for metric in metrics:
                if metric in found.metrics:
                    one = found[metric].mean_over([columns[name] for name in labels])
                    counts = {"labels": one.labels, "left_out": one.labels_left_out}
                    means[metric] = _figure(one.value, one.low, one.high) | counts
            return means

        return mean

    def _curves(self, column: int) -> dict[str, Any]:
        known = ~np.isnan(self._predictions.labels[:, column])
        labels, scores = self._predictions.labels[known, column], self._predictions.scores[known, column]
        patients = self._patients[known]
        if self._regression:
            return {"density": charts.density(labels, scores, patients)} if len(labels) else {}
        if len(np.unique(labels)) < 2:
            return {}
        return {
            "prevalence": round(float(labels.mean()), 3),
            "roc": charts.roc_curve(labels, scores, patients),
            "precision_recall": charts.precision_recall_curve(labels, scores, patients),
            "reliability": charts.reliability_bins(labels, scores, patients),
            "histogram": charts.score_bins(scores, patients),
        }

    def _subgroups(self) -> dict[str, list[dict[str, Any]]]:
        """Return by attribute each group's recordings, and its figures by label and of their mean."""
        predictions = self._predictions
        found: dict[str, list[dict[str, Any]]] = {}
        # Errors in different units have no mean.
        means = () if self._regression and len(self._names) > 1 else (*_GROUP_RANKING, *REGRESSION)
        for attribute, groups in _subgroup_masks(predictions.facts, len(predictions)).items():
            found[attribute] = []
            for name, rows in groups.items():
                labels, scores = predictions.labels[rows], predictions.scores[rows]
                if self._regression:
                    statistics = regression_statistics(labels, scores)
                else:
                    statistics = ranking_statistics(labels, scores, _GROUP_RANKING)
                ids = [predictions.patient_ids[row] for row in np.flatnonzero(rows)]
                intervals = bootstrap_intervals(statistics, ids, **self._draw)
                group = {"metrics": self._by_label(intervals), "macro": self._mean(intervals, means)}
                found[attribute].append({"group": name, **self._counted(rows), **group})
        return found

    def _decisions(self, decided: np.ndarray, thresholds: Mapping[str, float]) -> dict[str, Any]:
        names = [name for name in self._names if name in thresholds]
        columns = [self._names.index(name) for name in names]
        labels, decided = self._predictions.labels[:, columns], decided[:, columns]
        found = self._bootstrap(decision_statistics(labels, decided))
        metrics, kinds = self._by_label(found, names), confusion_masks(labels, decided)
        decisions = {
            name: {
                "threshold": float(thresholds[name]),
                "counts": {kind: Cell(self._patients[rows[:, column]]) for kind, rows in kinds.items()},
                "metrics": metrics[name],
            }
            for column, name in enumerate(names)
        }
        return {"decisions": decisions, "rates": self._mean(found, RATES, names)}

    def _classes(self) -> dict[str, Any]:
        """Return the accuracy of a single label, and how often each class was taken for each, by the highest score."""
        labels, scores = self._predictions.labels, self._predictions.scores
        known = ~np.isnan(labels).any(axis=1)
        true, given = np.nan_to_num(labels).argmax(axis=1), scores.argmax(axis=1)
        accuracy = self._bootstrap(accuracy_statistics(labels, scores))
        classes = np.arange(len(self._names))
        rates = self._bootstrap(decision_statistics(labels, (given[:, None] == classes).astype(np.float64)))
        metrics = self._by_label(rates)
        counts = [[Cell(self._patients[known & (true == row) & (given == c)]) for c in classes] for row in classes]
        return {
            "accuracy": {
                "right": Cell(self._patients[known & (true == given)]),
                "wrong": Cell(self._patients[known & (true != given)]),
                "figure": self._by_label(accuracy, ["all"])["all"]["accuracy"],
            },
            "classes": {
                "counts": counts,
                "metrics": {rate: [metrics[name][rate] for name in self._names] for rate in RATES},
                "macro": self._mean(rates, RATES)(self._names),
            },
        }

    def _challenge(self, decided: np.ndarray, thresholds: Mapping[str, float]) -> dict[str, Any]:
        """Return the challenge's score, where its 26 classes are there and have thresholds."""
        columns = challenge_columns(self._names)
        if columns is None or not all(self._names[column] in thresholds for column in columns):
            return {}
        true = self._predictions.labels[:, columns]
        known = ~np.isnan(true).any(axis=1, keepdims=True)
        # A recording without a class and without a decision adds nothing: that leaves it out.
        found = self._bootstrap(challenge_statistics((true == 1) & known, (decided[:, columns] == 1) & known))
        figure = self._by_label(found, ["all"])["all"]["challenge_score"]
        return {"challenge": {"figure": figure, "unscored": int((~known).sum())}}


def _subgroup_masks(facts: Mapping[str, np.ndarray], n: int) -> dict[str, dict[str, np.ndarray]]:
    """
    Return groups of recordings by attribute.

    Args:
        facts: As `Predictions.facts`.
        n: Recordings.

    Returns:
        `{"age": {"18 to 39": mask (n,), ...}, "sex": ..., "source": ...}`: groups that have a recording, unknown last.
        Attributes with a single group, which is all recordings, are excluded.
    """
    masks = {}
    for attribute in ("age", "sex", "source"):
        values = facts.get(attribute)
        if values is None:
            continue
        names = np.array([_group(attribute, value) for value in values], dtype=object).reshape(n)
        order = [name for _, name in _AGE_BANDS] if attribute == "age" else sorted(set(names.tolist()) - {_UNKNOWN})
        groups = {name: names == name for name in [*order, _UNKNOWN]}
        groups = {name: rows for name, rows in groups.items() if rows.any()}
        if len(groups) > 1:
            masks[attribute] = groups
    return masks


def _group(attribute: str, value: Any) -> str:
    if value is None or value != value or value == "":
        return _UNKNOWN
    if attribute == "age":
        return next((name for first, name in reversed(_AGE_BANDS) if value >= first), _UNKNOWN)
    return _SEXES.get(value, str(value)) if attribute == "sex" else str(value)


def _paired(first: Predictions, second: Predictions) -> Predictions:
    """Return the second's predictions of the first's recordings and labels, in the first's order."""
    if first.problem_type != second.problem_type:
        raise PredictionsError(
            f"models of different problems cannot be compared: {first.problem_type} and {second.problem_type}"
        )
    if first.label_names != second.label_names:
        second = select_labels(second, first.label_names)
    rows = {recording: row for row, recording in enumerate(second.recording_ids)}
    only_first = [recording for recording in first.recording_ids if recording not in rows]
    only_second = set(second.recording_ids) - set(first.recording_ids)
    if only_first or only_second:
        raise PredictionsError(
            f"the two must be of the same recordings: {_some(only_first)} only in the first, "
            f"{_some(sorted(only_second))} only in the second"
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


def _figure(value: float, low: float, high: float) -> Figure:
    return {"value": _plain(value), "low": _plain(low), "high": _plain(high)}


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _values(parts: Sequence[Statistics], recordings: int) -> dict[str, np.ndarray]:
    """Return the metrics of all recordings, each (L,)."""
    once = np.ones((recordings, 1), dtype=np.int64)
    return {name: values[:, 0] for part in parts for name, values in part.compute(once).items()}


def _notes(results: Mapping[str, Any], predictions: Predictions) -> list[str]:
    """Return notes on how to read the figures."""
    notes = ["Research use only: not for clinical use."]
    smallest, regression = results["smallest_cell"], predictions.problem_type == "regression"
    unknown = predictions.patient_ids.count(None)
    patients = len(set(predictions.patient_ids) - {None}) + unknown
    if patients < _FEW_PATIENTS:
        few = f"fewer than {smallest}" if patients < smallest else str(patients)
        notes.append(f"These are {few} patients: so few show that the evaluation runs, not how good the model is.")
    if not regression and not all(predictions.calibrated):
        how_many = "No label's" if not any(predictions.calibrated) else "Not all labels'"
        notes.append(
            f"{how_many} output is calibrated: an uncalibrated output is a score, not a probability. It ranks "
            "recordings; Brier score, calibration error and reliability then show how far it is from one."
        )
    if unknown == len(predictions):
        notes.append(
            "Patients are unknown: intervals are over recordings, and too narrow if patients have several recordings."
        )
    elif unknown:
        notes.append("The patients of some recordings are unknown: each such recording counts as a patient of its own.")
    if not any(found["metrics"] for found in results["per_label"].values()):
        notes.append(
            f"No label has {smallest} patients with it and {smallest} without, so there are no figures. A smallest "
            "cell of 1 shows everything, which is for public data."
        )
    undefined = max((f.get("left_out", 0) for f in results["macro"].values()), default=0)
    if undefined:
        notes.append(
            f"{undefined} of {len(predictions.label_names)} labels have an undefined metric, for example because all "
            "recordings are of one class. The macro figures exclude them; they are not set to a value."
        )
    if smallest > 1:
        notes.append(
            f"Counts of fewer than {smallest} patients are withheld, and so is what they would follow from, except how "
            "many recordings have no value for a label. Macro figures are over all labels where they are defined."
        )
    if any("sensitivity_at_specificity" in found["metrics"] for found in results["per_label"].values()):
        notes.append(
            f"The sensitivity at a specificity of {_SPECIFICITY:g} uses a threshold chosen on these very recordings."
        )
    if results["thresholds_from"]:
        notes.append(
            "Decisions are at these thresholds. PPV and F1 also depend on how common a label is, here and elsewhere."
        )
    notes.append(
        "The figures are of these recordings. Where devices, patients or labelling differ, the figures may differ."
    )
    return notes


def _challenge_notes(predictions: Predictions, thresholds: Mapping[str, float], unscored: int | str) -> list[str]:
    columns = challenge_columns(predictions.label_names)
    if columns is None or predictions.problem_type != "multi_label_classification":
        return []
    undecided = sum(predictions.label_names[column] not in thresholds for column in columns)
    if undecided:
        return [
            "No PhysioNet/CinC 2021 challenge score: it needs a decision on each of its 26 classes, and "
            f"{undecided} have no threshold."
        ]
    if unscored == 0:
        return []
    return [f"{unscored} recordings are not in the challenge score, because one of their scored classes is unknown."]
