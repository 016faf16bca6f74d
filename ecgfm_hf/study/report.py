"""The report of a study: its figures as plain values that may be shared, and one page of them as HTML and PDF."""

import csv
import dataclasses
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ..evaluation.charts import forest_figure, nice_scale
from ..evaluation.formatting import ABSENT, METRIC_NAMES, count, figure_text, plural, text
from ..evaluation.report import Block, render_page
from ..utils.files import atomic_path, files_in, write_json, write_text
from ..utils.redaction import Cell, label_cells, redact
from .arms import WITH_ENCODER
from .comparison import METRICS, Comparison, Difference, Estimate
from .folds import StudyTable
from .verdict import verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS_FILE, TABLE_FILE, PAGE_FILE, PDF_FILE = "results.json", "results.csv", "report.html", "report.pdf"
ARM_NAMES = {
    "features": "Logistic regression on measured features",
    "linear": "Linear probe of the encoder",
    "attention": "Attention pooling on the frozen encoder",
    "lora": "Fine-tuning with LoRA",
    "finetune": "Fine-tuning of all weights",
    "scratch": "Training from random weights",
}
# Of Okabe and Ito, which readers who are colour-blind can tell apart.
_COLOURS = {
    "features": "#8c6d00",
    "linear": "#0072b2",
    "attention": "#009e73",
    "lora": "#cc79a7",
    "finetune": "#d55e00",
    "scratch": "#7f7f7f",
}
_CSV_COLUMNS = ("kind", "arm", "other_arm", "size", "training_recordings", "metric", "label", "value", "low", "high")

Results = Mapping[str, Any]


def summarise(
    table: StudyTable,
    comparison: Comparison,
    *,
    about: Mapping[str, Any],
    notes: Sequence[str] = (),
    left_out: Sequence[str] = (),
    smallest_cell: int,
) -> dict[str, Any]:
    """
    Return the results of a study as plain values, without ids; counts of few patients are withheld.

    Args:
        table ([`StudyTable`]), comparison ([`Comparison`])
        about (mapping): What was compared and how; `excluded` are recordings by reason.
        notes, left_out: Sentences for the reader.
        smallest_cell (`int`): Fewest patients that a count may be of. A label with a withheld count has no figures of
            its own, and means over labels are then rounded.
    """
    numbers = table.groups.numbers
    redacted = redact(
        {
            "recordings": Cell(numbers),
            "patients": table.groups.count,
            "left_out": about["excluded"],
            "problem_type": "multi_label_classification",
            "labels": dict(
                zip(table.label_names, label_cells(table.targets, numbers, "multi_label_classification"), strict=True)
            ),
        },
        smallest_cell,
    )
    counts = redacted.get("labels", {})
    shown = [
        all(isinstance(counts.get(name, {}).get(side), int) for side in ("positive", "negative"))
        for name in table.label_names
    ]
    decimals = 4 if all(shown) else 2

    def by_label(estimates: Sequence[Estimate]) -> dict[str, dict[str, Any] | None]:
        return {
            name: _figure(estimate, 4) if is_shown else None
            for name, estimate, is_shown in zip(table.label_names, estimates, shown, strict=True)
        }

    warnings = ["Some recordings are SYNTHETIC: the figures do not apply to real recordings."]
    return {
        "format": 1,
        **{name: value for name, value in about.items() if name not in ("excluded", "synthetic")},
        "recordings": redacted["recordings"],
        "patients": redacted["patients"],
        "unit": comparison.unit,
        "excluded": redacted["left_out"],
        "labels": counts,
        "smallest_cell": smallest_cell,
        "verdict": dataclasses.asdict(verdict(comparison, WITH_ENCODER)),
        "arms": [
            {
                "arm": arm.arm,
                "size": arm.size,
                "training_recordings": round(arm.recordings, 1),
                "folds": arm.folds,
                "macro": {metric: _figure(arm.macro[metric], decimals) for metric in METRICS},
                "per_label": {metric: by_label(arm.labels[metric]) for metric in METRICS},
            }
            for arm in comparison.arms
        ],
        "differences": [
            _difference(of, decimals) | {"per_label": by_label(of.labels)} for of in comparison.differences
        ],
        "intervals": {
            "level": comparison.level,
            "joint_level": round(comparison.joint_level, 5),
            "cover": comparison.covers,
            "resamples": comparison.resamples,
            "seed": comparison.seed,
        },
        "left_out": list(left_out),
        "warnings": warnings if about.get("synthetic") else [],
        "notes": list(notes),
        "versions": {"ecgfm-hf": version("ecgfm-hf"), "python": platform.python_version()},
    }


def _figure(estimate: Estimate, decimals: int) -> dict[str, Any]:
    found = {name: _plain(getattr(estimate, name), decimals) for name in ("value", "low", "high")}
    return found if estimate.reason is None else found | {"reason": estimate.reason}


def _difference(of: Difference, decimals: int) -> dict[str, Any]:
    return {
        "first": of.first,
        "second": of.second,
        "size": of.size,
        "folds": of.folds,
        **_figure(of.own, decimals),
        "joint_low": _plain(of.joint_low, decimals),
        "joint_high": _plain(of.joint_high, decimals),
        "detectable": _plain(of.detectable, decimals),
        "better": of.better,
    }


def _plain(value: float, decimals: int) -> float | None:
    return None if math.isnan(value) else round(float(value), decimals)


def write_report(results: Results, folder: str | Path) -> None:
    """
    Write `results.json`, `results.csv`, `report.html` and, with matplotlib, `report.pdf` to a folder.

    Args:
        results: Of [`summarise`].
    """
    with files_in(folder) as scratch:
        write_json(scratch / RESULTS_FILE, results)
        with open(scratch / TABLE_FILE, "w", encoding="utf-8", newline="", errors="backslashreplace") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(_CSV_COLUMNS)
            writer.writerows(_csv_rows(results))
        write_text(scratch / PAGE_FILE, html_report(results))
        _write_pdf(results, scratch / PDF_FILE)


def _csv_rows(results: Results) -> list[list[Any]]:
    rows = []
    for arm in results["arms"]:
        first = ["arm", arm["arm"], "", arm["size"], arm["training_recordings"]]
        for metric in METRICS:
            for label, of in {"": arm["macro"][metric], **arm["per_label"][metric]}.items():
                rows.append([*first, metric, label, *((of or {}).get(name) for name in ("value", "low", "high"))])
    for of in results["differences"]:
        first = ["difference", of["first"], of["second"], of["size"], ""]
        rows.append([*first, "auroc", "", of["value"], of["low"], of["high"]])
        rows.append(["joint_difference", *first[1:], "auroc", "", of["value"], of["joint_low"], of["joint_high"]])
    return rows


# ----------------------------------------------------------------------------------------------------------------------
# The page
# ----------------------------------------------------------------------------------------------------------------------


def html_report(results: Results) -> str:
    """Return the page. Names of labels and files are escaped."""
    several = "macro " if len(results["labels"]) > 1 else ""
    sections: list[tuple[str, str, list[Block]]] = [
        ("verdict", "Verdict", _verdict_blocks(results)),
        ("arms", f"{several}AUROC by arm".capitalize().replace("auroc", "AUROC"), _arm_blocks(results)),
        ("curves", "With how many labelled recordings", _chart_blocks(results)),
        ("differences", "Differences between arms", _difference_blocks(results)),
        ("labels", "By label", _label_blocks(results)),
        ("how", "How it was done", [("definitions", _definitions(results))]),
        ("limits", "Limits", [("list", _limits(results))]),
    ]
    tiles = [
        ("recordings", count(results["recordings"]), ""),
        (f"{results['unit']}s", count(results["patients"]), "") if results["unit"] != "recording" else None,
        ("labels", count(len(results["labels"])), ""),
        ("trainings and tests", count(sum(arm["folds"] for arm in results["arms"])), ""),
    ]
    return render_page(
        f"Study of {results['data']}",
        f"Encoder {results['model']}",
        results["warnings"],
        [tile for tile in tiles if tile is not None],
        sections,
    )


def _verdict_blocks(results: Results) -> list[Block]:
    found = results["verdict"]
    return [("text", found["headline"]), ("list", further_sentences(results))]


def further_sentences(results: Results) -> list[str]:
    """Return the verdict's sentences that its headline does not contain."""
    found = results["verdict"]
    return [line for line in found["by_size"] if line not in found["headline"]]


def _limits(results: Results) -> list[str]:
    left_out = [f"Left out: {line}" for line in results["left_out"]]
    return [*left_out, *results["verdict"]["caveats"], *results["notes"]]


def size_text(size: float) -> str:
    """Return a training size as a reader sees it."""
    return "all" if size == 1 else f"{size:g}" if size > 1 else f"{size:.0%}"


def _sizes(results: Results) -> list[float]:
    return list(dict.fromkeys(arm["size"] for arm in results["arms"]))


def main_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return the headings and rows of the main table: the macro AUROC of each arm at each size, with intervals."""
    found = {(arm["arm"], arm["size"]): arm for arm in results["arms"]}
    arms = list(dict.fromkeys(arm["arm"] for arm in results["arms"]))
    sizes = _sizes(results)
    trained = {arm["size"]: arm["training_recordings"] for arm in results["arms"]}
    headings = ["Arm", *(_heading(size, trained[size]) for size in sizes)]
    rows = [
        [
            ARM_NAMES[arm],
            *(figure_text(found[arm, size]["macro"]["auroc"] if (arm, size) in found else None) for size in sizes),
        ]
        for arm in arms
    ]
    return headings, rows


def _heading(size: float, recordings: float) -> str:
    return f"{recordings:,.0f} recordings" if size > 1 else f"{size_text(size)} ({recordings:,.0f} recordings)"


def _arm_blocks(results: Results) -> list[Block]:
    headings, rows = main_table(results)
    note = (
        "Columns: labelled recordings to train on. 95% intervals cover "
        f"{results['intervals']['cover']}. By chance the AUROC is 0.5."
    )
    return [("table", {"headings": headings, "rows": [[row[0], *map(_cell, row[1:])] for row in rows], "note": note})]


def _cell(shown: str) -> tuple[str, str]:
    value, _, interval = shown.partition(" (")
    return value, interval.rstrip(")")


def _chart_blocks(results: Results) -> list[Block]:
    several = "macro " if len(results["labels"]) > 1 else ""
    if len(_sizes(results)) == 1:
        rows = [
            (arm["arm"], of["value"], of["low"], of["high"])
            for arm in results["arms"]
            if (of := arm["macro"]["auroc"])["value"] is not None
        ]
        caption = f"{several}AUROC of each arm, with 95% intervals"
        drawn = forest_figure(rows, None, caption, f"{several}AUROC")
    else:
        caption = f"{several}AUROC by labelled training recordings, with 95% intervals"
        drawn = _curves_figure(results, caption, f"{several}AUROC")
    return [("chart", {"svg": drawn, "caption": caption[0].upper() + caption[1:]})]


def _difference_blocks(results: Results) -> list[Block]:
    rows = [
        [
            f"{of['first']} − {of['second']}",
            size_text(of["size"]),
            _cell(figure_text(of, signed=True)),
            _cell(figure_text(of | {"low": of["joint_low"], "high": of["joint_high"]}, signed=True))[1],
            ABSENT if of["detectable"] is None else f"{of['detectable']:.3f}",
            of["better"] or "no difference shown",
        ]
        for of in results["differences"]
    ]
    if not rows:
        return []
    note = (
        "First interval: of this difference by itself, 95%. All at once: with 95% probability all of these intervals "
        "hold together; only they decide which arm is better. Could have shown: the true difference that this study "
        "would have found in 80% of such studies."
    )
    headings = ["Difference", "Size", "AUROC", "Interval, all at once", "Could have shown", "Better"]
    return [("table", {"headings": headings, "rows": rows, "note": note})]


def _label_blocks(results: Results) -> list[Block]:
    size = _sizes(results)[-1]
    arms = [arm for arm in results["arms"] if arm["size"] == size]
    rows = [
        [
            label,
            count(counts["positive"]),
            count(counts["negative"]),
            count(counts["unknown"]),
            *(_cell(figure_text(arm["per_label"]["auroc"][label])) for arm in arms),
        ]
        for label, counts in results["labels"].items()
    ]
    note = (
        f"AUROC at size {size_text(size)}. Counts are of recordings; a dash, or a count with “<”: of too few patients."
    )
    headings = ["Label", "Positive", "Negative", "Unknown", *(arm["arm"] for arm in arms)]
    return [("table", {"headings": headings, "rows": rows, "note": note})] if rows else []


def _definitions(results: Results) -> list[tuple[str, str]]:
    intervals, provenance = results["intervals"], results["provenance"]
    if results["test_split"] is not None:
        seeds = plural(results["repeats"], "seed")
        design = f"trained on the other splits, tested on split {results['test_split']}; {seeds}"
    else:
        repeats = plural(results["repeats"], "cross-validation")
        design = f"{repeats} of {results['folds']} folds, grouped by {results['unit']}"
    return [
        ("Design", design),
        ("Excluded", "; ".join(f"{count(n)} {reason}" for reason, n in results["excluded"].items()) or "none"),
        (
            "Intervals",
            f"{intervals['level']:.0%}, {intervals['resamples']:,} resamples of {results['unit']}s, seed "
            f"{intervals['seed']}",
        ),
        ("Chosen inside", "penalties, learning rates and epochs: by patients of the training recordings only"),
        ("Time", "; ".join(f"{arm} {seconds:,.0f} s" for arm, seconds in results["seconds"].items())),
        ("Metrics", f"{', '.join(METRIC_NAMES[metric] for metric in METRICS)} in results.csv"),
        ("Data", provenance["data"][:16]),
        ("Encoder's weights", (provenance["weights"] or "unknown")[:16]),
        ("Versions", ", ".join(f"{n} {v}" for n, v in {**results["versions"], **provenance["versions"]}.items())),
    ]


def _curves_figure(results: Results, caption: str, axis: str) -> Markup:
    """Draw a learning curve for each arm, with intervals, over the logarithm of the training recordings."""
    left, right, top, bottom, width, height = 46.0, 150.0, 10.0, 36.0, 620.0, 330.0
    curves = _curves(results)
    points = [point for curve in curves.values() for point in curve]
    ends = [value for _, *values in points for value in values if value is not None]
    low, high, ticks = nice_scale(min(ends), max(ends))
    sizes = sorted({size for size, *_ in points})
    start, stop = math.log(sizes[0]), math.log(sizes[-1])

    def x(size: float) -> float:
        share = (math.log(size) - start) / (stop - start) if stop > start else 0.5
        return left + 16 + share * (width - left - right - 32)

    def y(value: float) -> float:
        return height - bottom - (value - low) / (high - low) * (height - bottom - top)

    parts = []
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{left - 6}" y="{y(tick) + 3:.1f}">{tick:g}</text>')
    for size in sizes:
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{x(size):.1f}" y="{height - bottom + 14}">{size:,.0f}</text>'
        )
    for number, (arm, curve) in enumerate(curves.items()):
        shift, colour = 5 * (number - (len(curves) - 1) / 2), _COLOURS[arm]
        line = " ".join(f"{x(size) + shift:.1f},{y(value):.1f}" for size, value, *_ in curve)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.8" points="{line}"/>')
        for size, value, lower, upper in curve:
            at = f"{x(size) + shift:.1f}"
            if lower is not None and upper is not None:
                ends_at = f'x1="{at}" x2="{at}" y1="{y(lower):.1f}" y2="{y(upper):.1f}"'
                parts.append(f'<line {ends_at} stroke="{colour}" stroke-width="1.2"/>')
            parts.append(f'<circle cx="{at}" cy="{y(value):.1f}" r="3.2" fill="{colour}"/>')
        legend = top + 14 + 18 * number
        parts.append(f'<rect x="{width - right + 14}" y="{legend - 8}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{width - right + 30}" y="{legend + 1}">{text(arm)}</text>')
    middle = (left + width - right) / 2
    parts.append(f'<text text-anchor="middle" x="{middle}" y="{height - 4}">labelled training recordings</text>')
    across = (top + height - bottom) / 2
    parts.append(f'<text text-anchor="middle" transform="translate(10 {across}) rotate(-90)">{text(axis)}</text>')
    shown = text(caption)
    return Markup(
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{shown}"><title>{shown}</title>'
        f"{''.join(parts)}</svg>\n"
    )


def _curves(results: Results) -> dict[str, list[tuple[float, float, float | None, float | None]]]:
    """Return for each arm its points: training recordings, AUROC, and the ends of the interval."""
    curves: dict[str, list[tuple[float, float, float | None, float | None]]] = {}
    for arm in results["arms"]:
        of = arm["macro"]["auroc"]
        if of["value"] is not None:
            curves.setdefault(arm["arm"], []).append((arm["training_recordings"], of["value"], of["low"], of["high"]))
    return curves


def _write_pdf(results: Results, path: Path) -> None:
    """Write the page as PDF: verdict, main table, learning curves, limits."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.transforms import Bbox
    except ImportError as error:
        raise ImportError("the PDF needs matplotlib: pip install 'ecgfm-hf[study]'") from error
    figure, found = Figure(figsize=(8.27, 11.69)), results["verdict"]
    figure.text(0.08, 0.955, _wrapped(f"Study of {results['data']}", 60, 1), fontsize=16, weight="bold", va="top")
    subtitle = (
        f"Encoder {results['model']}. {count(results['recordings'])} recordings of {count(results['patients'])} "
        f"{results['unit']}s, {plural(len(results['labels']), 'label')}. Research use only: not for clinical use."
    )
    figure.text(0.08, 0.925, _wrapped(subtitle, 105, 2), fontsize=9, color="0.35", va="top")
    verdict = _bullets([*results["warnings"], found["headline"], *further_sentences(results)], 92, 15)
    figure.text(0.08, 0.885, verdict, fontsize=9.5, va="top", linespacing=1.4)
    table_top = 0.875 - 0.0175 * (verdict.count("\n") + 1)
    headings, rows = main_table(results)
    height = 0.035 * (len(rows) + 1)
    axes = figure.add_axes((0.08, table_top - height, 0.84, height))
    axes.axis("off")
    cells = [[row[0], *(shown.replace(" (", "\n(") for shown in row[1:])] for row in rows]
    widths = [0.36, *[0.64 / (len(headings) - 1)] * (len(headings) - 1)]
    table = axes.table(
        cells, colLabels=headings, colWidths=widths, cellLoc="center", bbox=Bbox.unit(), edges="horizontal"
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8 if len(headings) < 6 else 6.5)
    for (row, column), cell in table.get_celld().items():
        cell.set_edgecolor("0.8")
        if column == 0:
            cell.get_text().set_horizontalalignment("left")
        if row == 0:
            cell.get_text().set_fontweight("bold")
    bottom = 0.17
    _draw_curves(figure.add_axes((0.13, bottom, 0.6, min(0.36, table_top - height - bottom - 0.04))), results)
    limits = _bullets(_limits(results), 125, 7)
    figure.text(0.08, 0.115, limits, fontsize=7.5, color="0.35", va="top")
    with atomic_path(path) as scratch:
        figure.savefig(scratch, format="pdf", metadata={"Title": f"Study of {results['data']}", "CreationDate": None})


def _draw_curves(axes: "Axes", results: Results) -> None:
    curves = _curves(results)
    for number, (arm, curve) in enumerate(curves.items()):
        shift = 1 + 0.012 * (number - (len(curves) - 1) / 2)
        sizes, values, lows, highs = zip(*curve, strict=True)
        at = tuple(size * shift for size in sizes)
        axes.plot(at, values, "o-", color=_COLOURS[arm], label=arm, markersize=4, linewidth=1.3)
        for one, low, high in zip(at, lows, highs, strict=True):
            if low is not None and high is not None:
                axes.plot([one, one], [low, high], color=_COLOURS[arm], linewidth=0.9)
    ticks = sorted({size for curve in curves.values() for size, *_ in curve})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("labelled training recordings", fontsize=8)
    axes.set_ylabel(f"{'macro ' if len(results['labels']) > 1 else ''}AUROC, 95% intervals", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=8, frameon=False)


def _wrapped(sentence: str, width: int, lines: int) -> str:
    """Return a sentence in at most so many lines. matplotlib would read dollar signs as formulas."""
    import textwrap

    found = textwrap.wrap(sentence, width, max_lines=lines, placeholder=" …")
    return "\n".join(found).replace("$", r"\$")


def _bullets(sentences: Sequence[str], width: int, lines: int) -> str:
    shown: list[str] = []
    for number, sentence in enumerate(sentences):
        own = _wrapped(sentence, width, 4).split("\n")
        if len(shown) + len(own) > lines:
            shown.append(f"… and {len(sentences) - number} more: see {PAGE_FILE}")
            break
        shown += [f"{'•' if index == 0 else ' '} {line}" for index, line in enumerate(own)]
    return "\n".join(shown)


__all__ = [
    "ARM_NAMES",
    "PAGE_FILE",
    "PDF_FILE",
    "RESULTS_FILE",
    "TABLE_FILE",
    "further_sentences",
    "html_report",
    "main_table",
    "size_text",
    "summarise",
    "write_report",
]
