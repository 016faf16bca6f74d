"""The 12-lead page as clinicians know it: 25 mm/s, 10 mm/mV, three rows of four leads and a rhythm strip."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..records.record import ECGRecord
from .paper import FAINT_INK, INK, NOT_FOR_CLINICAL_USE, SIZES, Box, draw_grid, fit_text, new_sheet, text_width, write
from .traces import MM_PER_SECOND, PAGE_SECONDS, Leads, draw_calibration_pulse, draw_trace, select_leads

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from .attribution import Attribution

ROWS = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
GAINS = (5.0, 10.0, 20.0)  # mm/mV that ECG recorders offer
_COLUMN_SECONDS = PAGE_SECONDS / 4
_PULSE_ROOM = 10.0  # mm to the left of the traces, two squares of the grid
_WIDTH = _PULSE_ROOM + PAGE_SECONDS * MM_PER_SECOND
_TOP = 27.0  # mm of the sheet's head
# From against to for. Blue and vermilion are told apart by the colour-blind too; the steps are uneven, since brown and
# navy are hard to tell from ink.
_SHADES = ((0.0, "#0091e6"), (0.3, "#0072b2"), (0.45, "#1f4b66"), (0.5, INK), (0.55, "#70390f"), (0.7, "#d55e00"))
_SHADES += ((1.0, "#ff7a00"),)


def plot_ecg(
    record: ECGRecord,
    *,
    start_s: float = 0.0,
    saliency: "Attribution | None" = None,
    title: str | None = None,
    facts: Sequence[str] = (),
    mm_per_mv: float = 10.0,
    rhythm_lead: str = "II",
    paper: str = "a4",
) -> "Figure":
    """
    One landscape page: 10 s from `start_s`, 2.5 s of each of the twelve leads one after another, a rhythm strip below.

    Nothing is filtered. Each lead's median over the page lies on its line. Of a recording, or rest, under 10 s, the
    later columns begin earlier, so that every lead is seen for 2.5 s; what second a column begins at stands above it.
    Leads that were not recorded, are constant, or have no samples are named and not drawn. Leads other than the twelve
    are left out. No name, identifier of the patient, or date is printed: only the recording's `title`.

    Args:
        record: In whatever leads and rate.
        start_s: Where the page begins, in seconds of the recording.
        saliency: From `attribute`, as colour along the traces (smoothed over 40 ms).
        title: The recording's identifier unless given.
        facts: More to print in the head, such as `"filter 0.05-150 Hz"`, where it is known.
        mm_per_mv: 5, 10 or 20.
        rhythm_lead: Of the strip.
        paper: `"a4"` or `"letter"`.

    Returns:
        A matplotlib `Figure` of the paper's size; [`save_page`] keeps its scale.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a setting outside these, `start_s` after the end, saliency of another recording.
    """
    figure, axes = new_sheet(paper)
    box = grid_box(paper, row_height=37.5)
    draw_head(axes, box, record, start_s, title, facts, mm_per_mv, saliency)
    draw_ecg(axes, box, record, start_s, saliency, mm_per_mv, rhythm_lead)
    draw_foot(axes, paper, box)
    return figure


def grid_box(paper: str, row_height: float) -> Box:
    """Where the grid lies: four rows, and a square to spare."""
    left = (SIZES[paper][0] - _WIDTH) / 2
    return Box(left, _TOP, left + _WIDTH, _TOP + 4 * row_height + 5)


def draw_head(
    axes: "Axes",
    box: Box,
    record: ECGRecord,
    start_s: float,
    title: str | None,
    facts: Sequence[str],
    mm_per_mv: float,
    saliency: "Attribution | None",
) -> None:
    """Title, what is known of the recording, the scale; the meaning of colours."""
    write(axes, box.left, 12, fit_text(title or record.recording_id, 11, 145, bold=True), 11, weight="bold")
    seconds, leads = record.samples.shape[1] / record.sampling_rate, len(record.lead_names)
    known = [f"{leads} lead{'s' * (leads != 1)}", f"{record.sampling_rate:g} Hz", f"{seconds:.4g} s recorded"]
    if record.age is not None:
        known.append("90 years or older" if record.age >= 90 else f"{record.age:.0f} years")
    if record.sex is not None:
        known.append({"M": "male", "F": "female"}[record.sex])
    write(axes, box.left, 17, fit_text(" · ".join([*known, *facts]), 7, 145), 7, color=FAINT_INK)
    end = min(seconds, start_s + PAGE_SECONDS)
    scale = f"{MM_PER_SECOND:g} mm/s · {mm_per_mv:g} mm/mV · {start_s:g} s to {end:.4g} s · no filter added"
    write(axes, box.right, 17, scale, 7, ha="right")
    write(axes, box.right, 12, NOT_FOR_CLINICAL_USE, 9, weight="bold", ha="right")
    if saliency is not None:
        _draw_color_bar(axes, box.left + 120, box.right, 22.5, saliency)


def draw_ecg(
    axes: "Axes",
    box: Box,
    record: ECGRecord,
    start_s: float,
    saliency: "Attribution | None",
    mm_per_mv: float,
    rhythm_lead: str,
) -> None:
    """Grid, calibration pulses, traces and names."""
    if mm_per_mv not in GAINS:
        raise ValueError(f"mm_per_mv must be one of {', '.join(f'{gain:g}' for gain in GAINS)}, found: {mm_per_mv}")
    leads = select_leads(record, start_s, None if saliency is None else _shades(saliency))
    colormap = None if saliency is None else _colormap()
    draw_grid(axes, box)
    row_height, left = (box.height - 5) / 4, box.left + _PULSE_ROOM
    lowered = max(0.0, mm_per_mv + 1 - 2.5 - 0.5 * row_height)  # a pulse of 20 mm would leave the grid
    cut: list[str] = []
    for row in range(4):
        baseline = box.top + 2.5 + (row + 0.5) * row_height
        # Tall complexes may reach over their neighbours, as on any printout, but no further than those reach.
        room = Box(left, max(box.top, baseline - 1.5 * row_height), box.right, min(box.bottom, baseline + row_height))
        draw_calibration_pulse(axes, left, baseline + lowered, mm_per_mv)
        if row == 3:
            if draw_trace(axes, leads, rhythm_lead, start_s, PAGE_SECONDS, left, baseline, mm_per_mv, room, colormap):
                cut.append(f"{rhythm_lead} (rhythm strip)")
            _name(axes, left, baseline, row_height, rhythm_lead)
            _mark_end(axes, leads, left, baseline, row_height)
            continue
        for column, name in enumerate(ROWS[row]):
            begin = max(start_s, min(start_s + column * _COLUMN_SECONDS, leads.end_s - _COLUMN_SECONDS))
            x = left + column * _COLUMN_SECONDS * MM_PER_SECOND
            if draw_trace(axes, leads, name, begin, _COLUMN_SECONDS, x, baseline, mm_per_mv, room, colormap):
                cut.append(name)
            _name(axes, x, baseline, row_height, name)
            if column:
                axes.plot([x, x], [baseline - 4, baseline + 4], color=FAINT_INK, linewidth=0.9, zorder=6)
            if row == 0:
                write(axes, x + 1, box.top + 2.6, f"{begin:.4g} s", 5.5, color=FAINT_INK)
    if cut:
        text = fit_text(f"cut off at the small triangles: {', '.join(cut)}", 6, 115)
        write(axes, box.left, 25.3, text, 6, color=FAINT_INK)


def draw_foot(axes: "Axes", paper: str, box: Box) -> None:
    """What this sheet is not."""
    text = "Research output of a model, not a diagnosis. Print at 100 % for the scale to hold."
    y = SIZES[paper][1] - 7
    write(axes, box.left, y, NOT_FOR_CLINICAL_USE, 7, weight="bold")
    write(axes, box.right, y, text, 6.5, color=FAINT_INK, ha="right")


def _name(axes: "Axes", x: float, baseline: float, row_height: float, name: str) -> None:
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2.2, foreground="#fffafa")]
    write(axes, x + 1.2, baseline - 0.5 * row_height + 6, name, 8.5, weight="bold", path_effects=halo)


def _mark_end(axes: "Axes", leads: Leads, left: float, baseline: float, row_height: float) -> None:
    seconds = leads.end_s - leads.start_s
    if seconds < PAGE_SECONDS - 0.05:
        x = left + seconds * MM_PER_SECOND
        axes.plot([x, x], [baseline - 5, baseline + 5], color=INK, linewidth=0.9, zorder=6)
        write(axes, x + 1.5, baseline, "end of the recording", 6.5, color=FAINT_INK, style="italic", va="center")


def _shades(saliency: "Attribution") -> np.ndarray:
    """(leads, samples) from -1 to 1: 1 is what only 1 in 200 samples exceeds."""
    values = saliency.smoothed()
    known = np.abs(values[np.isfinite(values)])
    largest = np.quantile(known, 0.995) if len(known) else 0.0
    return np.clip(values / largest, -1, 1) if largest > 0 else np.zeros_like(values)


def _colormap() -> "Colormap":
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("saliency", _SHADES)


def _draw_color_bar(axes: "Axes", left: float, right: float, y: float, saliency: "Attribution") -> None:
    low = "against" if saliency.signed else "least"
    if saliency.signed:
        how = f" ({saliency.method.replace('_', ' ')})"
        what = fit_text(f"for {saliency.label}", 6.5, right - left - 72 - text_width(how, 6.5)) + how
    else:
        what = "most attention (of no label)"
    end = right - text_width(what, 6.5) - 1.5
    edges = np.linspace(end - 28, end, 57)
    values = np.linspace(-1 if saliency.signed else 0, 1, 56)
    axes.pcolormesh(
        edges, [y - 1.9, y + 0.1], values[None], cmap=_colormap(), vmin=-1, vmax=1, zorder=7, edgecolors="face", lw=0.1
    )
    write(axes, right, y, what, 6.5, ha="right")
    if not np.isfinite(saliency.values).all():
        low = f"grey: not covered    {low}"
    write(axes, end - 29.5, y, low, 6.5, ha="right")


__all__ = ["draw_ecg", "draw_foot", "draw_head", "grid_box", "plot_ecg"]
