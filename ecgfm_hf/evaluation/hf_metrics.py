"""
The metrics as `evaluate.Metric`s. They are in the package, so nothing is downloaded:

    >>> from ecgfm_hf.evaluation import ECGFMAuroc
    >>> ECGFMAuroc().compute(predictions=scores, references=labels)  # (recordings, labels) each
    {'macro_auroc': 0.93, 'labels_left_out': 0, 'auroc': [0.95, 0.91]}

`evaluate.load(ecgfm_hf.evaluation.hf_metrics.__file__, "auroc")` gives the same. References are 1, 0, or NaN where
unknown. Undefined values are NaN, excluded from the mean and counted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

# Absolute imports, because `evaluate.load` runs a copy of this file.
from ecgfm_hf.evaluation import challenge, metrics

try:
    import datasets
    import evaluate
except ImportError as error:
    raise ImportError("metrics of 🤗 evaluate need it: pip install 'ecgfm-hf[evaluation]'") from error

_LABELS = "1, 0, or NaN where unknown"


@dataclass(frozen=True)
class _Metric:
    """What a metric computes of each label, and of what."""

    description: str
    functions: dict[str, Callable[..., np.ndarray]]
    predictions: str = "scores"
    references: str = _LABELS
    citation: str = ""


_METRICS = {
    "auroc": _Metric(
        "Area under the receiver operating characteristic, of each label and their mean.", {"auroc": metrics.auroc}
    ),
    "average_precision": _Metric(
        "Average precision, of each label and their mean.", {"average_precision": metrics.average_precision}
    ),
    "decisions": _Metric(
        "Sensitivity, specificity, positive predictive value and F1 of decisions, of each label and their mean.",
        {
            "sensitivity": metrics.sensitivity,
            "specificity": metrics.specificity,
            "ppv": metrics.ppv,
            "f1": metrics.f1,
        },
        predictions="decisions, 1 or 0, or NaN where there is no threshold",
    ),
    "brier": _Metric("Brier score, of each label and their mean.", {"brier": metrics.brier}),
    "calibration_error": _Metric(
        "Expected calibration error in bins of equally many recordings, of each label and their mean.",
        {"calibration_error": metrics.calibration_error},
    ),
    "regression": _Metric(
        "Mean absolute error and coefficient of determination, of each target and their mean.",
        {"mean_absolute_error": metrics.mean_absolute_error, "r_squared": metrics.r_squared},
        predictions="predicted values",
        references="true values, or NaN where unknown",
    ),
    "challenge_score": _Metric(
        "The score of the PhysioNet/Computing in Cardiology Challenge 2021.",
        {},
        predictions="decisions, 1 or 0, of the 26 scored classes in the official order",
        references="1 or 0, of the same classes",
        citation="Reyna et al., Will Two Do? Varying Dimensions in Electrocardiography, Computing in Cardiology 2021",
    ),
}


class ECGFMMetric(evaluate.Metric):
    """
    The metric that `config_name` names; the classes below have a name each.

    The first class of this file, which is the one that `evaluate.load` takes.
    """

    default_name: ClassVar[str] = "auroc"

    def __init__(self, config_name: str | None = None, **settings: Any):
        name = self.default_name if config_name is None else config_name
        if name not in _METRICS:
            raise ValueError(f"config_name must be one of {', '.join(_METRICS)}; found: {name!r}")
        self._metric = _METRICS[name]
        super().__init__(config_name=name, **settings)

    def _info(self) -> evaluate.MetricInfo:
        columns = datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=self._metric.description,
            citation=self._metric.citation,
            inputs_description=f"""
predictions (recordings, labels): {self._metric.predictions}
references (recordings, labels): {self._metric.references}
""",
            features=datasets.Features({"predictions": columns, "references": columns}),
        )

    def _compute(self, predictions: list, references: list, **settings: Any) -> dict[str, Any]:
        if not self._metric.functions:
            return {"challenge_score": challenge.challenge_score(np.array(references), np.array(predictions))}
        result: dict[str, Any] = {}
        for name, function in self._metric.functions.items():
            values = function(
                np.array(references, dtype=np.float64), np.array(predictions, dtype=np.float64), **settings
            )
            mean, left_out = metrics.macro(values)
            found = {f"macro_{name}": mean, "labels_left_out": left_out, name: values.tolist()}
            if len(self._metric.functions) > 1:
                found[f"{name}_labels_left_out"] = found.pop("labels_left_out")
            result |= found
        return result


class ECGFMAuroc(ECGFMMetric):
    """[`auroc`]"""

    default_name = "auroc"


class ECGFMAveragePrecision(ECGFMMetric):
    """[`average_precision`]"""

    default_name = "average_precision"


class ECGFMDecisions(ECGFMMetric):
    """[`sensitivity`], [`specificity`], [`ppv`], [`f1`] of decisions"""

    default_name = "decisions"


class ECGFMBrier(ECGFMMetric):
    """[`brier`]"""

    default_name = "brier"


class ECGFMCalibrationError(ECGFMMetric):
    """[`calibration_error`]; `compute(..., bins=10)`"""

    default_name = "calibration_error"


class ECGFMRegression(ECGFMMetric):
    """[`mean_absolute_error`] and [`r_squared`]"""

    default_name = "regression"


class ECGFMChallengeScore(ECGFMMetric):
    """[`challenge_score`]"""

    default_name = "challenge_score"
