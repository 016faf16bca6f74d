"""
The metrics as `evaluate.Metric`s. They are in the package, so nothing is downloaded:

    >>> from ecgfm_hf.evaluation import ECGFMAuroc
    >>> ECGFMAuroc().compute(predictions=scores, references=labels)  # (recordings, labels) each
    {'macro_auroc': 0.93, 'labels_left_out': 0, 'auroc': [0.95, 0.91]}

References are 1, 0, or NaN where unknown. Undefined values are NaN, excluded from the mean and counted.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from . import challenge, metrics

try:
    import datasets
    import evaluate
except ImportError as error:
    raise ImportError("metrics of 🤗 evaluate need it: pip install 'ecgfm-hf[evaluation]'") from error

_INPUTS = """
predictions (recordings, labels): {predictions}
references (recordings, labels): {references}
"""
_LABELS = "1, 0, or NaN where unknown"


class _LabelMetric(evaluate.Metric):
    """Metrics of each label and their mean."""

    description: str
    citation = ""
    predictions, references = "scores", _LABELS
    functions: dict[str, Callable[..., np.ndarray]]

    def _info(self) -> evaluate.MetricInfo:
        columns = datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=self.description,
            citation=self.citation,
            inputs_description=_INPUTS.format(predictions=self.predictions, references=self.references),
            features=datasets.Features({"predictions": columns, "references": columns}),
        )

    def _compute(self, predictions: list, references: list, **settings: Any) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, function in self.functions.items():
            values = function(
                np.array(references, dtype=np.float64), np.array(predictions, dtype=np.float64), **settings
            )
            mean, left_out = metrics.macro(values)
            found = {f"macro_{name}": mean, "labels_left_out": left_out, name: values.tolist()}
            if len(self.functions) > 1:
                found[f"{name}_labels_left_out"] = found.pop("labels_left_out")
            result |= found
        return result


class ECGFMAuroc(_LabelMetric):
    """[`auroc`]"""

    description = "Area under the receiver operating characteristic, of each label and their mean."
    functions = {"auroc": metrics.auroc}


class ECGFMAveragePrecision(_LabelMetric):
    """[`average_precision`]"""

    description = "Average precision, of each label and their mean."
    functions = {"average_precision": metrics.average_precision}


class ECGFMDecisions(_LabelMetric):
    """[`sensitivity`], [`specificity`], [`ppv`], [`f1`] of decisions"""

    description = (
        "Sensitivity, specificity, positive predictive value and F1 of decisions, of each label and their mean."
    )
    predictions = "decisions, 1 or 0, or NaN where there is no threshold"
    functions = {
        "sensitivity": metrics.sensitivity,
        "specificity": metrics.specificity,
        "ppv": metrics.ppv,
        "f1": metrics.f1,
    }


class ECGFMBrier(_LabelMetric):
    """[`brier`]"""

    description = "Brier score, of each label and their mean."
    functions = {"brier": metrics.brier}


class ECGFMCalibrationError(_LabelMetric):
    """[`calibration_error`]; `compute(..., bins=10)`"""

    description = "Expected calibration error in bins of equally many recordings, of each label and their mean."
    functions = {"calibration_error": metrics.calibration_error}


class ECGFMRegression(_LabelMetric):
    """[`mean_absolute_error`] and [`r_squared`]"""

    description = "Mean absolute error and coefficient of determination, of each target and their mean."
    predictions, references = "predicted values", "true values, or NaN where unknown"
    functions = {"mean_absolute_error": metrics.mean_absolute_error, "r_squared": metrics.r_squared}


class ECGFMChallengeScore(_LabelMetric):
    """[`challenge_score`]"""

    description = "The score of the PhysioNet/Computing in Cardiology Challenge 2021."
    citation = "Reyna et al., Will Two Do? Varying Dimensions in Electrocardiography, Computing in Cardiology 2021"
    predictions = "decisions, 1 or 0, of the 26 scored classes in the official order"
    references = "1 or 0, of the same classes"

    def _compute(self, predictions: list, references: list, **settings: Any) -> dict[str, Any]:
        return {"challenge_score": challenge.challenge_score(np.array(references), np.array(predictions))}
