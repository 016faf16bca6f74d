"""A sheet of paper in millimetres: (x, y) is printed x mm from the left edge and y mm from the top edge."""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZES = {"a4": (297.0, 210.0), "letter": (279.4, 215.9)}  # landscape, mm
NOT_FOR_CLINICAL_USE = "NOT FOR CLINICAL USE"
INK, FAINT_INK = "#1a1a1a", "#5f5f5f"
_MM_PER_INCH = 25.4
_FINE_GRID, _COARSE_GRID, _PAPER = "#fbdcd9", "#f0aaa4", "#fffafa"
_FORMATS = (".png", ".pdf")
# In the metadata of a page, by which an earlier one is recognised.
PAGE_MARK = "ecgfm-hf page"
_DPI = 200
_FONT = "DejaVu Sans"  # comes with matplotlib
_FINE_DPI = 1200  # for measuring text


@dataclass(frozen=True)
class Box:
    """A rectangle on the sheet, in mm; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top


def new_sheet(paper: str = "a4") -> tuple["Figure", "Axes"]:
    """
    Return an empty landscape sheet and its axes, whose unit is the millimetre.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `paper` is not one of `SIZES`.
    """
    if paper not in SIZES:
        raise ValueError(f"paper must be one of {', '.join(map(repr, SIZES))}, found: {paper!r}")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'ecgfm-hf[plots]'") from error

    width, height = SIZES[paper]
    # pyplot would keep every figure and look for a screen.
    figure = Figure(figsize=(width / _MM_PER_INCH, height / _MM_PER_INCH), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return figure, axes


def draw_grid(axes: "Axes", box: Box) -> None:
    """Draw ECG paper in `box`: a line every millimetre, a stronger one every five, from its left and top edges."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((box.left, box.top), box.width, box.height, facecolor=_PAPER, edgecolor="none", zorder=0))
    columns, rows = range(round(box.width) + 1), range(round(box.height) + 1)
    for color, width, coarse in ((_FINE_GRID, 0.35, False), (_COARSE_GRID, 0.55, True)):
        lines = [[(box.left + i, box.top), (box.left + i, box.bottom)] for i in columns if (i % 5 == 0) == coarse]
        lines += [[(box.left, box.top + i), (box.right, box.top + i)] for i in rows if (i % 5 == 0) == coarse]
        axes.add_collection(LineCollection(lines, colors=color, linewidths=width, zorder=1 + coarse))


def write(axes: "Axes", x: float, y: float, text: str, size: float = 7.0, **settings: Any) -> None:
    """Write text, its size in points, by default with left end and baseline at (x, y). No character is markup."""
    settings = {"color": INK, "ha": "left", "va": "baseline", "zorder": 8, **settings}
    axes.text(x, y, text, fontsize=size, family=_FONT, parse_math=False, **settings)


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """Return the width in mm of `text` as [`write`] sets it."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family=_FONT, weight="bold" if bold else "normal")))
    font.set_size(size, _FINE_DPI)
    font.set_text(text)
    return font.get_width_height()[0] / 64 / _FINE_DPI * _MM_PER_INCH  # 64ths of a dot


def fit_text(text: str, size: float, width: float, bold: bool = False) -> str:
    """Return `text`, or as much of its beginning as fits into `width` mm, with an ellipsis."""
    text = " ".join(text.split())
    if text_width(text, size, bold) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(f"{text[:middle]}…", size, bold) <= width:
            low = middle
        else:
            high = middle - 1
    return f"{text[:low].rstrip()}…"


def fit_label(text: str, size: float, smallest: float, width: float, bold: bool = False) -> tuple[str, float]:
    """
    Return a label that fits into `width` mm, and its size in points.

    The size is reduced to `smallest` if necessary; then the label's middle is left out, since labels may differ only in
    their beginning ("incomplete ... block") or their end.
    """
    text = " ".join(text.split())
    size = min(size, max(smallest, 0.99 * size * width / max(text_width(text, size, bold), 1e-9)))
    kept = len(text)
    shown = text
    while kept and text_width(shown, size, bold) > width:
        kept -= 1
        shown = f"{text[: (kept + 1) // 2].rstrip()}…{text[len(text) - kept // 2 :].lstrip()}"
    return shown, size


def save_page(figure: "Figure", path: str | os.PathLike) -> None:
    """
    Write a page as PNG (200 dots per inch) or PDF (vectors), by the suffix of `path`.

    The page has its true size: printed at 100 %, 10 mm are 1 mV. A failed write leaves an old file as it was. The file
    contains neither author nor date.

    Raises:
        ValueError: `path` has another suffix.
        OSError: it cannot be written.
    """
    from matplotlib import rc_context

    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise ValueError(f"{path}: pages are written as {' or '.join(_FORMATS)}")
    metadata = {"CreationDate": None, "Creator": PAGE_MARK, "Producer": None}
    if suffix == ".png":
        metadata = {"Software": PAGE_MARK}
    with atomic_path(path) as scratch, rc_context({"pdf.fonttype": 42, "savefig.bbox": None}):  # text remains text
        figure.savefig(scratch, format=suffix[1:], dpi=_DPI, metadata=metadata, facecolor="white")


__all__ = [
    "NOT_FOR_CLINICAL_USE",
    "SIZES",
    "Box",
    "draw_grid",
    "fit_label",
    "fit_text",
    "new_sheet",
    "save_page",
    "write",
]
