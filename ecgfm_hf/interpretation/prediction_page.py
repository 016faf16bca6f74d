"""A recording and a model's answer on one page."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..configuration_ecgfm import ECGFMConfig
from ..records.record import ECGRecord
from .ecg_page import draw_ecg, draw_foot, draw_head, grid_box
from .paper import SIZES, Box, new_sheet
from .scores_panel import draw_scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .attribution import Attribution


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
    The page of [`plot_ecg`], with a panel of scores, thresholds and notes of labels below.

    Args:
        scores: By label name, as the pipeline answers.
        positive: Labels at or above their thresholds; `None` where the model has no thresholds.
        config: The model's, which knows thresholds, calibration and notes.
        warnings: Of the answer, such as that a lead is dead; printed below the scores.
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


__all__ = ["plot_prediction"]
