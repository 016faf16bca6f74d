"""The 12-lead page in clinicians' usual layout: 25 mm/s, 10 mm/mV, three rows of four leads and a rhythm strip."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..records.record import ECGRecord
from .paper import FAINT_INK, INK, NOT_FOR_CLINICAL_USE, SIZES, Box, draw_grid, fit_text, new_sheet, text_width, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from .saliency import Attribution

MM_PER_SECOND = 25.0
PAGE_SECONDS = 10.0
_DEAD_SECONDS = 1.0  # a lead that is constant for longer is not drawn as a signal
_LINE = 0.85  # points: 0.3 mm
_UNKNOWN = "#8f8f8f"  # where there is no saliency
ROWS = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
GAINS = (5.0, 10.0, 20.0)  # mm/mV that ECG recorders offer
_COLUMN_SECONDS = PAGE_SECONDS / 4
_PULSE_ROOM = 10.0  # mm to the left of the traces, two squares of the grid
_WIDTH = _PULSE_ROOM + PAGE_SECONDS * MM_PER_SECOND
_TOP = 27.0  # mm of the sheet's head
# From negative to positive. Colour-blind readers can distinguish blue and vermilion; the steps are uneven because brown
# and navy look like ink.
_SHADES = (
    *((0.0, "#0091e6"), (0.3, "#0072b2"), (0.45, "#1f4b66"), (0.5, INK), (0.55, "#70390f"), (0.7, "#d55e00")),
    (1.0, "#ff7a00"),
)


@dataclass(frozen=True, eq=False)
class Leads:
    """
    The leads of a recording by name, (samples,) in mV, minus each lead's median over the page. An offset between
    electrodes has no meaning and would move a trace off the paper.

    Attributes:
        signals: By name; NaN where samples are missing.
        flat: By name, a mask of stretches of a second or more in which all samples are equal.
        saliency: By name, from -1 to 1, NaN where unknown; empty without saliency.
        sampling_rate: Hz.
        start_s, end_s: The page's window, in seconds after the recording's first sample.
    """

    signals: dict[str, np.ndarray]
    flat: dict[str, np.ndarray]
    saliency: dict[str, np.ndarray]
    sampling_rate: float
    start_s: float
    end_s: float


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
    Draw one landscape page: 10 s from `start_s`, each of the twelve leads for 2.5 s, and a rhythm strip below.

    No filter is applied. Each lead's median over the page lies on its line. If fewer than 10 s remain, later columns
    start earlier, so that every lead is shown for 2.5 s; the start of each column is printed above it. Leads that were
    not recorded, are constant, or have no samples are named instead of drawn. Other leads than the twelve are not
    shown. No patient name, patient identifier or date is printed, only the `title`.

    Args:
        record: With any leads and sampling rate.
        start_s: Start of the page, in seconds of the file, as the times on the page are. If it lies in a calibration
            pulse that was excluded, the page starts after the pulse.
        saliency: From `attribute`; shown as colour along the traces (smoothed over 40 ms).
        title: By default the recording's identifier.
        facts: More details for the head, such as `"filter 0.05-150 Hz"`.
        mm_per_mv: 5, 10 or 20.
        rhythm_lead: The lead of the rhythm strip.
        paper: `"a4"` or `"letter"`.

    Returns:
        A matplotlib `Figure` of the paper's size; [`save_page`] preserves its scale.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: an unknown setting, `start_s` after the end, saliency of another recording.
    """
    figure, axes = new_sheet(paper)
    box = grid_box(paper, row_height=37.5)
    draw_head(axes, box, record, start_s, title, facts, mm_per_mv, saliency)
    draw_ecg(axes, box, record, start_s, saliency, mm_per_mv, rhythm_lead)
    draw_foot(axes, paper, box)
    return figure


def grid_box(paper: str, row_height: float) -> Box:
    """Return the grid's rectangle: four rows and one square more."""
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
    """Draw title, details of the recording, scale and colour legend."""
    write(axes, box.left, 12, fit_text(title or record.recording_id, 11, 145, bold=True), 11, weight="bold")
    seconds, leads = record.samples.shape[1] / record.sampling_rate, len(record.lead_names)
    details = [f"{leads} lead{'s' * (leads != 1)}", f"{record.sampling_rate:g} Hz", f"{seconds:.4g} s recorded"]
    if record.age is not None:
        details.append("90 years or older" if record.age >= 90 else f"{record.age:.0f} years")
    if record.sex is not None:
        details.append({"M": "male", "F": "female"}[record.sex])
    write(axes, box.left, 17, fit_text(" · ".join([*details, *facts]), 7, 145), 7, color=FAINT_INK)
    start_s = max(start_s, record.start_s)
    end = min(record.start_s + seconds, start_s + PAGE_SECONDS)
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
    """Draw grid, calibration pulses, traces and lead names."""
    if mm_per_mv not in GAINS:
        raise ValueError(f"mm_per_mv must be one of {', '.join(f'{gain:g}' for gain in GAINS)}, found: {mm_per_mv}")
    leads = select_leads(record, start_s, None if saliency is None else _shades(saliency))
    start_s = leads.start_s
    colormap = None if saliency is None else _colormap()
    draw_grid(axes, box)
    row_height, left = (box.height - 5) / 4, box.left + _PULSE_ROOM
    lowered = max(0.0, mm_per_mv + 1 - 2.5 - 0.5 * row_height)  # a pulse of 20 mm would leave the grid
    cut: list[str] = []
    for row in range(4):
        baseline = box.top + 2.5 + (row + 0.5) * row_height
        # Tall complexes may overlap the neighbouring rows, as on any printout, but not go beyond them.
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
                write(axes, x + 1, box.top + 2.6, f"{record.start_s + begin:.4g} s", 5.5, color=FAINT_INK)
    if cut:
        text = fit_text(f"cut off at the small triangles: {', '.join(cut)}", 6, 115)
        write(axes, box.left, 25.3, text, 6, color=FAINT_INK)


def draw_foot(axes: "Axes", paper: str, box: Box) -> None:
    """Draw the line that this page is not for clinical use."""
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
    """Scale saliency to -1 to 1, (leads, samples); only 1 in 200 samples exceeds 1 before it is clipped."""
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


def select_leads(record: ECGRecord, start_s: float, saliency: np.ndarray | None) -> Leads:
    """
    Select the window of 10 s from `start_s` of the file, or what remains of the recording.

    Raises:
        ValueError: `start_s` lies outside the recording; `saliency` has another shape than the recording.
    """
    seconds = record.samples.shape[1] / record.sampling_rate
    file_seconds = record.start_s + seconds
    if not 0 <= start_s < file_seconds:
        raise ValueError(
            f"{record.path}: start_s must lie within the recording's {file_seconds:g} s, found: {start_s:g}"
        )
    start_s = max(0.0, start_s - record.start_s)
    if saliency is not None and saliency.shape != record.samples.shape:
        raise ValueError(
            f"{record.path}: saliency must have the recording's shape {record.samples.shape}, found: {saliency.shape}"
        )
    end_s = min(seconds, start_s + PAGE_SECONDS)
    shown = slice(round(start_s * record.sampling_rate), round(end_s * record.sampling_rate))
    signals, flat = {}, {}
    for name, lead in zip(record.lead_names, record.signal, strict=True):
        known = lead[shown][np.isfinite(lead[shown])]
        signals[name] = lead - (np.median(known) if len(known) else 0.0)
        flat[name] = _constant_runs(lead, max(2, round(_DEAD_SECONDS * record.sampling_rate)))
    colored = {} if saliency is None else dict(zip(record.lead_names, saliency, strict=True))
    return Leads(signals, flat, colored, record.sampling_rate, start_s, end_s)


def _constant_runs(lead: np.ndarray, shortest: int) -> np.ndarray:
    """Return a mask (samples,) of runs of at least `shortest` equal samples."""
    edges = np.flatnonzero(np.concatenate([[True], np.diff(lead) != 0, [True]]))
    lengths = np.diff(edges)
    return np.repeat(lengths >= shortest, lengths)


def draw_trace(
    axes: "Axes",
    leads: Leads,
    name: str,
    start_s: float,
    seconds: float,
    left: float,
    baseline: float,
    mm_per_mv: float,
    room: Box,
    colormap: "Colormap | None",
) -> bool:
    """
    Draw `seconds` of a lead from `start_s`, its first sample at `left` and its median at `baseline`, both in mm.

    What lies outside `room` is cut off and marked. Returns whether anything was cut off.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba

    if name not in leads.signals:
        _write_note(axes, left, baseline, f"{name} not recorded")
        return False
    first = max(0, round(start_s * leads.sampling_rate))
    last = min(round((start_s + seconds) * leads.sampling_rate), round(leads.end_s * leads.sampling_rate))
    signal, flat = leads.signals[name][first : last + 1], leads.flat[name][first : last + 1]
    if not np.isfinite(signal).any():
        _write_note(axes, left, baseline, f"{name} has no samples here")
        return False
    if flat.all():
        _write_note(axes, left, baseline, f"{name} has no signal here (constant)")
        return False
    x = left + MM_PER_SECOND * ((first + np.arange(len(signal))) / leads.sampling_rate - start_s)
    y = baseline - mm_per_mv * signal
    cut = (y < room.top) | (y > room.bottom)
    shown = np.clip(y, room.top, room.bottom)
    if cut.any():
        _mark_cuts(axes, x, y, room)
    # Constant stretches are dotted, since a straight line would look like asystole.
    axes.plot(x, np.where(flat, shown, np.nan), color=FAINT_INK, linewidth=0.6, linestyle=(0, (1, 3)), zorder=4)
    shown = np.where(flat, np.nan, shown)
    saliency = leads.saliency.get(name)
    if saliency is None or colormap is None:
        axes.plot(x, shown, color=INK, linewidth=_LINE, solid_joinstyle="round", solid_capstyle="round", zorder=5)
        return bool(cut.any())
    values = saliency[first : last + 1]
    points = np.stack([x, shown], axis=1)
    pieces = np.stack([points[:-1], points[1:]], axis=1)
    drawn = np.isfinite(pieces).all(axis=(1, 2))
    values = values[:-1][drawn]
    known = np.isfinite(values)
    values = np.where(known, values, 0.0)
    lines = LineCollection(pieces[drawn], capstyle="round", joinstyle="round", zorder=5)
    lines.set_color(list(np.where(known[:, None], colormap(0.5 + 0.5 * values), to_rgba(_UNKNOWN))))
    lines.set_linewidth(_LINE * (1 + 1.1 * np.abs(values)))
    axes.add_collection(lines)
    return bool(cut.any())


def _write_note(axes: "Axes", left: float, baseline: float, text: str) -> None:
    write(axes, left + 2, baseline, text, 6.5, color=FAINT_INK, style="italic", va="center")


def _mark_cuts(axes: "Axes", x: np.ndarray, y: np.ndarray, room: Box) -> None:
    for beyond, edge, marker in ((y < room.top, room.top, "^"), (y > room.bottom, room.bottom, "v")):
        starts = np.flatnonzero(np.diff(np.concatenate([[False], beyond]).astype(np.int8)) == 1)
        axes.plot(x[starts], np.full(len(starts), edge), marker, color=INK, markersize=3.0, zorder=6)


def draw_calibration_pulse(axes: "Axes", right: float, baseline: float, mm_per_mv: float) -> None:
    """Draw a pulse of 1 mV for 0.2 s on a line that ends at `right` mm."""
    width = 0.2 * MM_PER_SECOND
    x = [right - width - 2, right - width - 1, right - width - 1, right - 1, right - 1, right]
    y = [baseline, baseline, baseline - mm_per_mv, baseline - mm_per_mv, baseline, baseline]
    pulse = axes.plot(x, y, color=INK, linewidth=_LINE, solid_joinstyle="miter", zorder=5)[0]
    pulse.set_gid("calibration pulse")


__all__ = ["draw_ecg", "draw_foot", "draw_head", "grid_box", "plot_ecg"]
