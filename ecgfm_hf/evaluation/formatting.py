"""Text, numbers and figures as a reader sees them: in the report, on cards and on the command line."""

import html
from collections.abc import Mapping
from typing import Any

from ..utils.text import is_control

ABSENT = "–"
METRIC_NAMES = {
    "auroc": "AUROC",
    "average_precision": "AUPRC",
    "sensitivity_at_specificity": "Sensitivity at 95% specificity",
    "brier": "Brier score",
    "calibration_error": "Calibration error",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "f1": "F1",
    "accuracy": "Accuracy",
    "challenge_score": "Challenge score",
    "mean_absolute_error": "Mean absolute error",
    "r_squared": "R²",
    "bias": "Mean residual",
}


def text(value: Any) -> str:
    """Return any value as escaped text for HTML; see [`literal`]."""
    return html.escape(literal(value), quote=True)


def literal(value: Any) -> str:
    """Return any value as text. Control characters, lone surrogates and marks that turn the direction become `�`."""
    return "".join("\ufffd" if is_control(c) else c for c in str(value))


def number(value: float | None) -> str:
    """Return a figure with three decimals below 10, fewer above, four digits in all; a dash for None."""
    if value is None:
        return ABSENT
    decimals = next((places for places, limit in ((3, 10), (2, 100), (1, 1000)) if abs(value) < limit), 0)
    return f"{value:,.{decimals}f}".replace("-", "−")


def figure_text(figure: Mapping[str, Any] | None, signed: bool = False) -> str:
    """Return `0.912 (0.880 to 0.940)`; bounds where the value is withheld; a dash where there is none."""
    if figure is None:
        return ABSENT
    if "bounds" in figure:
        low, high = figure["bounds"]
        return f"{number(low)} … {number(high)}"
    if figure.get("value") is None:
        return ABSENT
    sign = "+" if signed and figure["value"] > 0 else ""
    if figure.get("low") is None or figure.get("high") is None:
        return f"{sign}{number(figure['value'])}"
    return f"{sign}{number(figure['value'])} ({number(figure['low'])} to {number(figure['high'])})"


def count(value: int | str | None) -> str:
    """Return a count with thousands separators; `<10` and `withheld` as they are; a dash for None."""
    if value is None:
        return ABSENT
    return f"{value:,}" if isinstance(value, int) else str(value)


def plural(number_of: int | str, noun: str) -> str:
    """Return `1 label`, `2 labels`, `<10 labels`."""
    return f"{count(number_of)} {noun}{'' if number_of == 1 else 's'}"
