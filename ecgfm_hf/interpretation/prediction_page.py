"""A page with a recording, its scores and thresholds, and notes on labels."""

import copy
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..configuration_ecgfm import ECGFMConfig
from ..feature_extraction_ecgfm import MOST_LEADS_EMPTY
from ..pipeline_ecgfm import is_calibration_valid
from ..records.record import ECGRecord
from .ecg_page import draw_ecg, draw_foot, draw_head, grid_box
from .paper import FAINT_INK, INK, SIZES, Box, fit_label, new_sheet, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .saliency import Attribution


_LINE_HEIGHT, _NOTE_HEIGHT = 3.9, 2.6  # mm
_WARNING_LINES = 3
_POSITIVE, _NEGATIVE, _TRACK = "#d55e00", "#7d8a96", "#ececec"


def plot_prediction(
    record: ECGRecord,
    scores: dict[str, float],
    positive: Sequence[str] | None,
    config: ECGFMConfig,
    *,
    warnings: Sequence[str] = (),
    start_s: float = 0.0,
    saliency: "Attribution | None" = None,
    title: str | None = None,
    facts: Sequence[str] = (),
    mm_per_mv: float = 10.0,
    rhythm_lead: str = "II",
    paper: str = "a4",
) -> "Figure":
    """
    Draw the page of [`plot_ecg`] with a panel of scores, thresholds and label notes below.

    Args:
        scores: By label name, as in the pipeline's answer.
        positive: Labels at or above their thresholds; `None` if the model has no thresholds.
        config: The model's config, with thresholds, calibration and notes.
        warnings: From the answer, such as a dead lead; printed below the scores.
        record, start_s, saliency, title, facts, mm_per_mv, rhythm_lead, paper: As in [`plot_ecg`].

    Returns:
        A matplotlib `Figure`.
    """
    figure, axes = new_sheet(paper)
    box = grid_box(paper, row_height=27.5)
    draw_head(axes, box, record, start_s, title, facts, mm_per_mv, saliency)
    draw_ecg(axes, box, record, start_s, saliency, mm_per_mv, rhythm_lead)
    panel = Box(box.left, box.bottom + 2, box.right, SIZES[paper][1] - 10)
    draw_scores(axes, panel, scores, positive, config, warnings)
    draw_foot(axes, paper, box)
    return figure


def draw_scores(
    axes: "Axes",
    box: Box,
    scores: dict[str, float],
    positive: Sequence[str] | None,
    config: ECGFMConfig,
    warnings: Sequence[str] = (),
) -> None:
    """
    Draw one bar per label in `box`, in the model's order, with a tick at its threshold; positive labels are bold.

    A value is called a probability only if the config calibrates it. Below are the recording's warnings and the label
    notes, positive labels first. If not all labels fit, the positive ones and the highest scores are shown, and the
    heading gives their number. Where the warnings show that calibration and thresholds are not valid, the heading has
    this instead of thresholds.
    """
    notes = {label: " ".join(text.split()) for label, text in (config.label_notes or {}).items() if label in scores}
    small_print = [*_warned(warnings, box), *_noted(notes, positive, box)]
    columns = 2 if len(scores) <= 24 else 3
    notes_height = min(0.35 * box.height, 1.5 + _NOTE_HEIGHT * len(small_print)) if small_print else 0.0
    lines = max(1, int((box.height - 6 - notes_height) / _LINE_HEIGHT))
    labels = _chosen(scores, positive, columns * lines)
    is_valid = is_calibration_valid(warnings)
    if not is_valid:
        config = copy.copy(config)
        config.label_calibration = config.label_thresholds = None
    _draw_heading(axes, box, scores, len(labels), positive, config, is_valid)
    width = (box.width - 8 * (columns - 1)) / columns
    lines = min(lines, -(-len(labels) // columns))
    for number, label in enumerate(labels):
        column, line = divmod(number, lines)
        left = box.left + column * (width + 8)
        y = box.top + 9 + line * _LINE_HEIGHT
        _draw_label(axes, left, left + width, y, label, scores[label], positive, config)
    _draw_small_print(axes, box, box.top + 9 + lines * _LINE_HEIGHT, small_print)


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
    is_valid: bool,
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
    if not is_valid:
        parts = [MOST_LEADS_EMPTY]
    elif config.problem_type != "regression":
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
    name, size = fit_label(label, 6.8, 5.4, bar_left - left - 3.5, is_positive)
    write(axes, left, y, name + "*" * (label in (config.label_notes or {})), size, weight=weight)
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


def _noted(notes: dict[str, str], positive: Sequence[str] | None, box: Box) -> list[tuple[str, bool]]:
    """Return the notes as lines, each with whether it is a warning."""
    order = sorted(notes, key=lambda label: label not in (positive or ()))
    return [(line, False) for label in order for line in _lines(f"* {label}: {notes[label]}", box)]


def _warned(warnings: Sequence[str], box: Box) -> list[tuple[str, bool]]:
    """Return all warnings as one paragraph, cut off where the room ends; it begins with their number."""
    if not warnings:
        return []
    counted = f"{len(warnings)} warning{'s' * (len(warnings) != 1)}: "
    lines = _lines(counted + "; ".join(" ".join(one.split()) for one in warnings), box)
    if len(lines) > _WARNING_LINES:
        lines = [*lines[: _WARNING_LINES - 1], f"{lines[_WARNING_LINES - 1].rstrip(' ;')} …"]
    return [(line, True) for line in lines]


def _lines(text: str, box: Box) -> list[str]:
    # A character of this size is about a millimetre wide on average.
    return textwrap.wrap(text, int(box.width / 1.05))


def _draw_small_print(axes: "Axes", box: Box, top: float, lines: list[tuple[str, bool]]) -> None:
    fit = max(0, int((box.bottom - top) / _NOTE_HEIGHT))
    if len(lines) > fit:
        rest = ("* more notes than fit here: see the model's configuration (label_notes)", False)
        lines = [*lines[: max(0, fit - 1)], rest][:fit]
    for number, (line, is_warning) in enumerate(lines):
        color = INK if is_warning else FAINT_INK
        write(axes, box.left, top + number * _NOTE_HEIGHT, line, 5.8, color=color)


__all__ = ["plot_prediction"]
