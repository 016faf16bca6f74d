"""Which part of a recording a page shows, and the traces themselves."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..records.record import ECGRecord
from .paper import FAINT_INK, INK, Box, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

MM_PER_SECOND = 25.0
PAGE_SECONDS = 10.0
_DEAD_SECONDS = 1.0  # a lead that stands still for longer is no line of an ECG
_LINE = 0.85  # points: 0.3 mm
_UNKNOWN = "#8f8f8f"  # where saliency says nothing


@dataclass(frozen=True, eq=False)
class Leads:
    """
    The leads of a recording by name, (samples,) in mV with each lead's median over the page subtracted: an offset
    between electrodes says nothing, and would carry a trace off the paper.

    Attributes:
        signals: by name; NaN where samples are missing.
        flat: by name, where a lead does not change by a single unit for a second or more.
        saliency: by name, from -1 to 1, NaN where unknown; empty without.
        sampling_rate: Hz.
        start_s, end_s: of the page's window in the recording.
    """

    signals: dict[str, np.ndarray]
    flat: dict[str, np.ndarray]
    saliency: dict[str, np.ndarray]
    sampling_rate: float
    start_s: float
    end_s: float


def select_leads(record: ECGRecord, start_s: float, saliency: np.ndarray | None) -> Leads:
    """
    The window of 10 s from `start_s`, or what there is of it.

    Raises:
        ValueError: the recording has ended by then; `saliency` has another shape than the recording.
    """
    seconds = record.samples.shape[1] / record.sampling_rate
    if not 0 <= start_s < seconds:
        raise ValueError(f"{record.path}: start_s must lie within the recording's {seconds:g} s, found: {start_s:g}")
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
        flat[name] = _standing_still(lead, max(2, round(_DEAD_SECONDS * record.sampling_rate)))
    colored = {} if saliency is None else dict(zip(record.lead_names, saliency, strict=True))
    return Leads(signals, flat, colored, record.sampling_rate, start_s, end_s)


def _standing_still(lead: np.ndarray, shortest: int) -> np.ndarray:
    """(samples,) bool: runs of at least `shortest` equal samples."""
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
    `seconds` of a lead from `start_s` of the recording, its first sample at `left` and its median at `baseline`, both
    in mm. What leaves `room` is cut off, and marked there. Returns whether anything was.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba

    if name not in leads.signals:
        _say(axes, left, baseline, f"{name} not recorded")
        return False
    first = max(0, round(start_s * leads.sampling_rate))
    last = min(round((start_s + seconds) * leads.sampling_rate), round(leads.end_s * leads.sampling_rate))
    signal, flat = leads.signals[name][first : last + 1], leads.flat[name][first : last + 1]
    if not np.isfinite(signal).any():
        _say(axes, left, baseline, f"{name} has no samples here")
        return False
    if flat.all():
        _say(axes, left, baseline, f"{name} has no signal here (constant)")
        return False
    x = left + MM_PER_SECOND * ((first + np.arange(len(signal))) / leads.sampling_rate - start_s)
    y = baseline - mm_per_mv * signal
    cut = (y < room.top) | (y > room.bottom)
    shown = np.clip(y, room.top, room.bottom)
    if cut.any():
        _mark_cuts(axes, x, y, room)
    # Drawn apart, as dots: a straight line is what asystole looks like.
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
    lines.set_color(np.where(known[:, None], colormap(0.5 + 0.5 * values), to_rgba(_UNKNOWN)))
    lines.set_linewidth(_LINE * (1 + 1.1 * np.abs(values)))
    axes.add_collection(lines)
    return bool(cut.any())


def _say(axes: "Axes", left: float, baseline: float, text: str) -> None:
    write(axes, left + 2, baseline, text, 6.5, color=FAINT_INK, style="italic", va="center")


def _mark_cuts(axes: "Axes", x: np.ndarray, y: np.ndarray, room: Box) -> None:
    for beyond, edge, marker in ((y < room.top, room.top, "^"), (y > room.bottom, room.bottom, "v")):
        starts = np.flatnonzero(np.diff(np.concatenate([[False], beyond]).astype(np.int8)) == 1)
        axes.plot(x[starts], np.full(len(starts), edge), marker, color=INK, markersize=3.0, zorder=6)


def draw_calibration_pulse(axes: "Axes", right: float, baseline: float, mm_per_mv: float) -> None:
    """1 mV for 0.2 s, on a line that ends at `right` mm."""
    width = 0.2 * MM_PER_SECOND
    x = [right - width - 2, right - width - 1, right - width - 1, right - 1, right - 1, right]
    y = [baseline, baseline, baseline - mm_per_mv, baseline - mm_per_mv, baseline, baseline]
    pulse = axes.plot(x, y, color=INK, linewidth=_LINE, solid_joinstyle="miter", zorder=5)[0]
    pulse.set_gid("calibration pulse")


__all__ = ["MM_PER_SECOND", "PAGE_SECONDS", "Leads", "draw_calibration_pulse", "draw_trace", "select_leads"]
