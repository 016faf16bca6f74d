"""
From scores to honest numbers: metrics, intervals over patients, thresholds, calibration, reports.

Nothing is imported until it is asked for. The plain functions need numpy alone.
"""

import importlib
from typing import Any

_HOMES = {
    ".calibration": ("apply_calibration", "fit_calibration"),
    ".probabilities": ("brier", "calibration_error", "reliability"),
    ".challenge": ("challenge_classes", "challenge_columns", "challenge_score", "challenge_weights"),
    ".comparison": ("compare_predictions",),
    ".decisions": ("confusion_counts", "f1", "ppv", "sensitivity", "specificity"),
    ".evaluating": ("evaluate_predictions",),
    ".hf_metrics": (
        "ECGFMAuroc",
        "ECGFMAveragePrecision",
        "ECGFMBrier",
        "ECGFMCalibrationError",
        "ECGFMChallengeScore",
        "ECGFMDecisions",
        "ECGFMRegression",
    ),
    ".intervals": ("Interval", "Intervals", "bootstrap_difference", "bootstrap_intervals", "patient_groups"),
    ".metric_input": ("MetricInputError", "macro"),
    ".predictions": ("Predictions", "PredictionsError"),
    ".ranking": (
        "auroc",
        "average_precision",
        "precision_recall_points",
        "roc_points",
        "sensitivity_at_specificity",
    ),
    ".regression": ("mean_absolute_error", "r_squared"),
    ".report": ("write_html_report",),
    ".thresholds": ("at_thresholds", "fit_thresholds"),
    ".weighted": (
        "accuracy_statistics",
        "challenge_statistics",
        "decision_statistics",
        "probability_statistics",
        "ranking_statistics",
        "regression_statistics",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
