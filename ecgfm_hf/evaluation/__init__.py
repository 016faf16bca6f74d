"""
From scores to honest numbers: metrics, intervals over patients, thresholds, calibration, reports.

Nothing is imported until it is asked for. The plain functions need numpy alone.
"""

from ..utils.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        ".calibration": ("apply_calibration", "fit_calibration"),
        ".probabilities": ("brier", "calibration_error", "reliability"),
        ".challenge": ("challenge_classes", "challenge_columns", "challenge_score", "challenge_weights"),
        ".decisions": ("confusion_counts", "f1", "ppv", "sensitivity", "specificity"),
        ".results": ("compare_predictions", "evaluate_predictions"),
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
        "..inference.prediction_table": ("Predictions", "PredictionsError"),
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
    },
)
