"""Scores with their thresholds, and what must be known about labels, as a panel on a page."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..configuration_ecgfm import ECGFMConfig
from .paper import FAINT_INK, INK, Box, fit_text, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINE_HEIGHT, _NOTE_HEIGHT = 3.9, 2.6  # mm
_POSITIVE, _NEGATIVE, _TRACK = "#d55e00", "#7d8a96", "#ececec"


def draw_scores(
    axes: "Axes", box: Box, scores: dict[str, float], positive: Sequence[str] | None, config: ECGFMConfig
) -> None:
    """
    A bar a label in `box`, in the model's order, with a tick where its threshold is; positive labels stand out. A value
    is called a probability only where the config calibrates it. Below, notes of the labels, positive ones first.

    More labels than fit: the positive ones and the highest scores are shown, and how many there are is said.
    """
    notes = {label: " ".join(text.split()) for label, text in (config.label_notes or {}).items() if label in scores}
    columns = 2 if len(scores) <= 24 else 3
    notes_height = min(0.35 * box.height, 1.5 + _NOTE_HEIGHT * len(_wrapped(notes, positive, box))) if notes else 0.0
    lines = max(1, int((box.height - 6 - notes_height) / _LINE_HEIGHT))
    labels = _chosen(scores, positive, columns * lines)
    _draw_heading(axes, box, scores, len(labels), positive, config)
    width = (box.width - 8 * (columns - 1)) / columns
    lines = min(lines, -(-len(labels) // columns))
    for number, label in enumerate(labels):
        column, line = divmod(number, lines)
        left = box.left + column * (width + 8)
        y = box.top + 9 + line * _LINE_HEIGHT
        _draw_label(axes, left, left + width, y, label, scores[label], positive, config)
    _draw_notes(axes, box, box.top + 9 + lines * _LINE_HEIGHT, notes, positive)


def _chosen(scores: dict[str, float], positive: Sequence[str] | None, count: int) -> list[str]:
    ranked = sorted(scores, key=lambda label: (label not in (positive or ()), -scores[label]))
    kept = set(ranked[:count])
    return [label for label in scores if label in kept]


def _calibrated(config: ECGFMConfig, label: str) -> bool:
    return label in (config.label_calibration or {}) and config.problem_type != "regression"


def _draw_heading(
    axes: "Axes",
    box: Box,
    scores: dict[str, float],
    shown: int,
    positive: Sequence[str] | None,
    config: ECGFMConfig,
) -> None:
    calibrated = sum(_calibrated(config, label) for label in scores)
    if config.problem_type == "regression":
        title, explanation = "Predicted values", ""
    elif calibrated == len(scores):
        title, explanation = "Probabilities", "calibrated"
    elif calibrated:
        title, explanation = "Scores", "a probability only where marked p"
    else:
        title, explanation = "Scores", "uncalibrated: not probabilities"
    parts = [explanation] if explanation else []
    if config.problem_type != "regression":
        parts.append("the model has no thresholds" if positive is None else "tick: threshold, bold: at or above it")
    if shown < len(scores):
        parts.append(f"{shown} of {len(scores)} labels shown, the highest")
    write(axes, box.left, box.top + 4, title, 8.5, weight="bold")
    write(axes, box.left + 27, box.top + 4, "; ".join(parts), 6.5, color=FAINT_INK)


def _draw_label(
    axes: "Axes",
    left: float,
    right: float,
    y: float,
    label: str,
    score: float,
    positive: Sequence[str] | None,
    config: ECGFMConfig,
) -> None:
    from matplotlib.patches import Rectangle

    is_positive = label in (positive or ())
    weight = "bold" if is_positive else "normal"
    bar_left, bar_right = left + 0.56 * (right - left), right - 13
    name = fit_text(label, 6.8, bar_left - left - 3.5, is_positive) + "*" * (label in (config.label_notes or {}))
    write(axes, left, y, name, 6.8, weight=weight)
    if config.problem_type == "regression":
        write(axes, right, y, f"{score:.4g}", 6.8, ha="right", weight=weight)
        return
    mark = " p" if _calibrated(config, label) else ""
    write(axes, right - 3.2, y, f"{score:.3f}", 6.8, ha="right", weight=weight)
    write(axes, right - 3.0, y, mark, 6.8, color=FAINT_INK)
    width, top, height = bar_right - bar_left, y - 2.0, 2.0
    color = _POSITIVE if is_positive else _NEGATIVE
    axes.add_patch(Rectangle((bar_left, top), width, height, facecolor=_TRACK, edgecolor="none", zorder=3))
    filled = width * min(max(score, 0.0), 1.0)
    axes.add_patch(Rectangle((bar_left, top), filled, height, facecolor=color, edgecolor="none", zorder=4))
    threshold = (config.label_thresholds or {}).get(label)
    if threshold is not None:
        x = bar_left + width * threshold
        axes.plot([x, x], [top - 0.5, top + height + 0.5], color=INK, linewidth=1.1, solid_capstyle="butt", zorder=5)


def _wrapped(notes: dict[str, str], positive: Sequence[str] | None, box: Box) -> list[str]:
    order = sorted(notes, key=lambda label: label not in (positive or ()))
    # A character of this size is about a millimetre wide on average.
    return [line for label in order for line in textwrap.wrap(f"* {label}: {notes[label]}", int(box.width / 1.05))]


def _draw_notes(axes: "Axes", box: Box, top: float, notes: dict[str, str], positive: Sequence[str] | None) -> None:
    lines = _wrapped(notes, positive, box)
    fit = max(0, int((box.bottom - top) / _NOTE_HEIGHT))
    if len(lines) > fit:
        rest = "* more notes than fit here: see the model's configuration (label_notes)"
        lines = [*lines[: max(0, fit - 1)], rest][:fit]
    for number, line in enumerate(lines):
        write(axes, box.left, top + number * _NOTE_HEIGHT, line, 5.8, color=FAINT_INK)


__all__ = ["draw_scores"]
