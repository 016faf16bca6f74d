"""From predictions to everything that metrics.json and the report say."""

import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from ..inference.prediction_table import Predictions, PredictionsError
from ..utils.redaction import SmallCells, label_counts
from . import curves
from .challenge import challenge_columns
from .deciding import accuracy, class_confusion, label_decisions, macro_rates
from .measuring import OF_GROUPS, PROBABILITY, RATES, REGRESSION, SPECIFICITY, Figure, Measured, Measurer
from .subgroups import subgroup_figures
from .thresholds import at_thresholds

# Of fewer patients than this the notes say plainly that they are few.
_FEW_PATIENTS = 100


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
    smallest_cell: int = 10,
) -> dict[str, Any]:
    """
    All figures with their intervals, as plain values for JSON. No id of a recording or a patient is among them.

    Args:
        predictions ([`Predictions`])
        model, dataset, split: What to call them; not paths.
        thresholds: By label name, on the (calibrated) score; labels without one have no decisions. None is assumed.
            Those of other labels are passed over.
        thresholds_from: Where they come from, for readers.
        left_out: Recordings that have no predictions, by reason.
        warnings: What must stand out, such as recordings that the model was trained on.
        notes: What else a reader must know.
        versions: Of further software.
        resamples (`int`), seed (`int`): Of the bootstrap over patients; over recordings where no patient is known.
        smallest_cell (`int`): Fewest patients that anything is told of; see [`SmallCells`]. A label with fewer patients
            that have it, or that do not, has counts that hide it and no figures. 1 tells everything.

    Returns:
        `dict` with `"macro"` (metric: figure), `"per_label"` (label: counts, metrics, decisions at its threshold,
        curves), `"subgroups"`, `"classes"` of a single label (see [`class_confusion`]), `"notes"`, `"warnings"` and
        what was evaluated. A figure is `{"value", "low", "high"}`, None where undefined or withheld; of a macro figure
        also `"labels"` and `"left_out"`, how many the mean is over and how many have no value. In place of a value that
        would give a small count away stand `"bounds"`. Sensitivity, specificity, PPV and F1 are at the thresholds;
        `"challenge_score"` is there with the thresholds of its 26 classes.

    Raises:
        `PredictionsError`: no recordings.
    """
    if not len(predictions):
        raise PredictionsError("there are no predictions to evaluate")
    limits = {name: value for name, value in (thresholds or {}).items() if name in predictions.label_names}
    evaluation = Evaluation(predictions, limits, resamples, seed, smallest_cell)
    patients = set(predictions.patient_ids) - {None}
    cells = evaluation.cells
    results = {
        "format": 1,
        "model": model,
        "dataset": dataset,
        "split": split,
        "problem_type": predictions.problem_type,
        "labels": list(predictions.label_names),
        "calibrated": dict(zip(predictions.label_names, predictions.calibrated, strict=True)),
        "recordings": evaluation.recordings,
        "patients": cells.told(len(patients)) if patients else None,
        "intervals": evaluation.intervals,
        "smallest_cell": smallest_cell,
        "thresholds_from": thresholds_from if limits else None,
        "left_out": {reason: cells.told(count) for reason, count in (left_out or {}).items()},
        **evaluation.figures(),
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
        results["warnings"].append("There are SYNTHETIC recordings among these: figures say nothing about real ones.")
    results["notes"] = [*_notes(results, predictions), *evaluation.notes, *notes]
    return results


class Evaluation:
    """The figures of one set of predictions."""

    def __init__(
        self, predictions: Predictions, thresholds: dict[str, float], resamples: int, seed: int, smallest_cell: int
    ):
        self.predictions, self.thresholds = predictions, thresholds
        self.regression = predictions.problem_type == "regression"
        self.measurer = Measurer(predictions, resamples, seed)
        self.cells = SmallCells(self.measurer.groups, smallest_cell)
        self.all = np.ones(len(predictions), dtype=bool)
        self.enough = self.cells.enough(self.all)
        self.by_group = REGRESSION if self.regression else OF_GROUPS
        limits = np.array([thresholds.get(name, np.nan) for name in predictions.label_names], dtype=np.float64)
        self.decided = at_thresholds(predictions.scores, limits)
        self.recordings = len(predictions) if self.enough else f"<{smallest_cell}"
        unit = "patients" if set(predictions.patient_ids) - {None} else "recordings"
        self.notes: list[str] = []
        self.intervals = {"level": 0.95, "unit": unit, "resamples": resamples, "seed": seed}

    def figures(self) -> dict[str, Any]:
        names, shown = self.predictions.label_names, self.shown(self.all)
        counted = self._counts()
        open_ = self.open(shown, counted)
        measured = self.measurer.measure() if shown else Measured({}, {})
        for place in set(shown) - set(open_):
            self._coarsen(measured, place, self.all, place)
        decided = [place for place in open_ if names[place] in self.thresholds]
        rates = self.measurer.rates(self.decided, decided) if decided else Measured({}, {})
        per_label = {}
        for place, (name, counts) in enumerate(zip(names, counted, strict=True)):
            found: dict[str, Any] = {"counts": counts, "metrics": {}}
            if place in shown:
                found["metrics"] = {metric: figures[place] for metric, figures in measured.per_label.items()}
            if place in open_:
                found["curves"] = self._curves(place)
            if place in decided:
                exact = {rate: rates.per_label[rate][decided.index(place)] for rate in RATES}
                columns = self.predictions.labels[:, place], self.decided[:, place]
                found["decisions"] = label_decisions(*columns, self.thresholds[name], exact, self.cells)
            per_label[name] = found
        macro = self.macro(measured, shown)
        if decided:
            told = [per_label[names[place]]["decisions"]["metrics"] for place in decided]
            macro |= macro_rates(rates.per_label, told, rates.macro)
        groups = subgroup_figures(self.predictions.facts, len(self.all), self.cells, self._measure_group)
        found = {"macro": macro, "per_label": per_label, "subgroups": groups if self.enough else {}}
        if self.predictions.problem_type == "single_label_classification":
            if shown:
                macro["accuracy"] = accuracy(self.predictions, self.measurer, self.cells)
            found["classes"] = class_confusion(self.predictions, self.measurer, self.cells) if self.enough else None
        elif self.enough and not self.regression:
            macro |= self._challenge()
        return found

    def open(self, shown: Sequence[int], counted: Sequence[Mapping[str, int | str]]) -> list[int]:
        """Of the labels shown those whose counts are told: of others a rate, a curve or all digits would tell them."""
        return [place for place in shown if not any(isinstance(count, str) for count in counted[place].values())]

    def _challenge(self) -> dict[str, Figure]:
        """The challenge's score, where its 26 classes are there; without all of their thresholds a note says so."""
        columns = challenge_columns(self.predictions.label_names)
        if columns is None:
            return {}
        undecided = sum(self.predictions.label_names[place] not in self.thresholds for place in columns)
        if undecided:
            self.notes.append(
                "No PhysioNet/CinC 2021 challenge score: it needs a decision on each of its 26 classes, and "
                f"{undecided} have no threshold."
            )
            return {}
        figure, unknown = self.measurer.challenge(self.decided, columns)
        if unknown:
            left = self.cells.told(unknown)
            self.notes.append(
                f"{left} recordings are not in the challenge score, as a scored class of theirs is unknown."
            )
        return {"challenge_score": _rounded(figure) if self.cells.smallest > 1 else figure}

    def macro(self, measured: Measured, shown: Sequence[int]) -> dict[str, Any]:
        """Of what was measured on all recordings, the figures of all labels together."""
        width = len(self.predictions.label_names)
        # Errors in different units have no mean.
        left = ("mean_absolute_error", "bias") if self.regression and width > 1 else PROBABILITY
        found = {metric: figure for metric, figure in measured.macro.items() if metric not in left}
        # A mean with all its digits, less what else is told, would be all digits of what is withheld.
        return found if len(shown) == width else _rounded(found)

    def shown(self, rows: np.ndarray) -> list[int]:
        """Places of labels with enough patients among these recordings: with the label and without it."""
        shown = []
        for place, column in enumerate(self.predictions.labels.T):
            sides = [~np.isnan(column)] if self.regression else [column == 1, column == 0]
            if self.cells.enough(*(rows & side for side in sides)):
                shown.append(place)
        return shown

    def compare(self, other: Predictions) -> Measured:
        """The differences to another model, coarsened as the figures themselves are; only of labels [`shown`]."""
        shown = self.shown(self.all)
        if not shown:
            return Measured({}, {})
        measured = self.measurer.compare(other)
        for place in set(shown) - set(self.open(shown, self._counts())):
            self._coarsen(measured, place, self.all, place)
        names = self.predictions.label_names
        per_label = {names[place]: {m: figures[place] for m, figures in measured.per_label.items()} for place in shown}
        return Measured(per_label, self.macro(measured, shown))

    def _counts(self) -> list[dict[str, int | str]]:
        return label_counts(self.predictions.labels, self.predictions.problem_type, self.cells)

    def _coarsen(self, measured: Measured, place: int, rows: np.ndarray, label: int) -> int:
        """
        Rounds the figures in one place of `measured`, which are of a label on these recordings, until they do not tell
        its counts: all digits of an AUROC tell how many pairs of a positive and a negative it was counted over.

        Returns:
            `int`: to how many decimals.
        """
        column = self.predictions.labels[rows, label]
        if self.regression:
            figure = measured.per_label["mean_absolute_error"][place]
            error = figure.get("value", figure.get("first")) or 1.0
            decimals = 2 - math.floor(math.log10(error))
        else:
            decimals = min(3, math.floor(math.log10((column == 1).sum() * (column == 0).sum())))
        for figures in measured.per_label.values():
            figures[place] = _rounded(figures[place], decimals)
        return decimals

    def _measure_group(self, rows: np.ndarray) -> tuple[dict[str, dict[str, Figure]], dict[str, Figure], int]:
        shown = self.shown(rows)
        if not shown:
            return {}, {}, 0
        measured = self.measurer.measure(rows, shown)
        names = [self.predictions.label_names[place] for place in shown]
        if self.cells.smallest > 1:
            # Counts by group and label are not told, and must not follow.
            decimals = [self._coarsen(measured, place, rows, label) for place, label in enumerate(shown)]
            measured.macro = _rounded(measured.macro, min(decimals))
        per_label = {
            name: {metric: figures[place] for metric, figures in measured.per_label.items() if metric in self.by_group}
            for place, name in enumerate(names)
        }
        comparable = not self.regression or len(self.predictions.label_names) == 1
        macro = {metric: figure for metric, figure in measured.macro.items() if metric in self.by_group}
        return per_label, macro if comparable else {}, len(shown)

    def _curves(self, place: int) -> dict[str, Any]:
        known = ~np.isnan(self.predictions.labels[:, place])
        labels, scores = self.predictions.labels[known, place], self.predictions.scores[known, place]
        cells = SmallCells(self.measurer.groups[known], self.cells.smallest)
        if self.regression:
            return {"density": curves.density(labels, scores, cells)}
        return {
            "prevalence": round(float(labels.mean()), 3),
            "roc": curves.roc_curve(labels, scores),
            "precision_recall": curves.precision_recall_curve(labels, scores),
            "reliability": curves.reliability_bins(labels, scores, cells),
            "histogram": curves.score_histogram(scores, cells),
        }


def _rounded(found: Any, decimals: int = 3) -> Any:
    if isinstance(found, dict):
        return {name: _rounded(value, decimals) for name, value in found.items()}
    return round(found, decimals) if isinstance(found, float) else found


def _notes(results: Mapping[str, Any], predictions: Predictions) -> list[str]:
    """What a reader must know to read the figures rightly."""
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
            "recordings; Brier score, calibration error and reliability then say how far it is from one."
        )
    if unknown == len(predictions):
        notes.append(
            "Patients are unknown: intervals are over recordings, and too narrow if patients have several recordings."
        )
    elif unknown:
        notes.append("Of some recordings the patient is unknown: each of these counts as a patient of its own.")
    if not any(found["metrics"] for found in results["per_label"].values()):
        notes.append(
            f"No label has {smallest} patients on each side, so there are no figures; a smallest cell of 1 tells "
            "everything, which is for public data."
        )
    undefined = max((f.get("left_out", 0) for f in results["macro"].values()), default=0)
    if undefined:
        notes.append(
            f"{undefined} of {len(predictions.label_names)} labels have a metric that is not defined, such as of "
            "one class only: they are left out of the macro figures, not set to a value."
        )
    if smallest > 1:
        notes.append(
            f"Nothing is told of fewer than {smallest} patients, nor what would give such a count away, but how many "
            "recordings lack a label; macro figures are over all labels where they are defined."
        )
    if any("sensitivity_at_specificity" in found["metrics"] for found in results["per_label"].values()):
        notes.append(
            f"The sensitivity at a specificity of {SPECIFICITY:g} is of a threshold chosen on these very recordings."
        )
    if results["thresholds_from"]:
        notes.append(
            "Decisions are at these thresholds. PPV and F1 also depend on how common a label is, here and elsewhere."
        )
    notes.append(
        "The figures are of these recordings. Where devices, patients or labelling differ, the figures may differ."
    )
    return notes
