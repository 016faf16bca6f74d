"""The report: the results of [`evaluate_predictions`] as one HTML page that needs no other file."""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from ..utils.files import write_text
from .charts import density_figure, forest_figure, precision_recall_figure, reliability_figure, roc_figure
from .formatting import METRIC_NAMES, count, figure_text, literal, number, plural

_RATES = ("sensitivity", "specificity", "ppv", "f1")
# Of all labels together, and no mean over them.
OF_ALL = ("accuracy", "challenge_score")
_ATTRIBUTES = {"age": "Age", "sex": "Sex", "source": "Source"}

Results = Mapping[str, Any]
# A kind of the template's `block` macro, and its content.
Block = tuple[str, Any]
Cell = str | tuple[str, str]


def write_html_report(results: Results, path: str | os.PathLike[str]) -> None:
    """
    Write the report, whole or not at all.

    Args:
        results: Of [`evaluate_predictions`], with `"comparison"` from [`compare_predictions`] if there is one.
        path: The file to write. An existing file is replaced.
    """
    write_text(Path(path), html_report(results))


def html_report(results: Results) -> str:
    """Return the page. Names of labels, models and groups are escaped."""
    data = [results["dataset"] or "stored predictions"]
    data += [f"split {results['split']}"] if results["split"] else []
    classes = results["problem_type"] != "regression"
    sections = [
        ("evaluated", "What was evaluated", _evaluated(results)),
        ("labels", "By label", _labels(results)),
        ("classes", "Given and true classes", _classes(results)),
        ("thresholds", "Decisions at thresholds", _decisions(results) if classes else []),
        ("comparison", "Comparison of two models", _comparison(results.get("comparison"))),
        ("subgroups", "Subgroups", _subgroups(results)),
        ("curves", "Curves" if classes else "Predicted and true values", _curves(results)),
        ("limits", "Limits", [("list", results["notes"])]),
    ]
    return render_page(
        f"Evaluation of {results['model']}", ", ".join(data), results["warnings"], _tiles(results), sections
    )


def render_page(
    title: str,
    data: str,
    warnings: Sequence[str],
    tiles: Sequence[tuple[str, str, str]],
    sections: Sequence[tuple[str, str, Sequence[Block]]],
) -> str:
    """
    Return a page in the style of the reports. All texts are escaped.

    Args:
        title, data: The heading, and the line below it.
        warnings: Shown first.
        tiles: Triples (caption, value, line below).
        sections: Triples (anchor, heading, blocks); one without blocks is left out.
    """
    shown = [section for section in sections if section[2]]
    return _template().render(title=title, data=data, warnings=warnings, tiles=tiles, sections=shown)


@functools.cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else literal(value),
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html")


def _table(headings: Sequence[str], rows: Sequence[Sequence[Cell]], note: str = "") -> Block:
    """Return a table; the first cell of a row heads it."""
    return "table", {"headings": headings, "rows": rows, "note": note}


def _cell(figure: Mapping[str, Any] | None, signed: bool = False) -> Cell:
    """Return a figure's value, and its interval to be set small and below."""
    value, _, interval = figure_text(figure, signed).partition(" (")
    return value, interval.rstrip(")")


def _tiles(results: Results) -> list[tuple[str, str, str]]:
    """Return triples (caption, value, line below)."""
    tiles = [("recordings", count(results["recordings"]), "")]
    if results["patients"] is not None:
        tiles.append(("patients", count(results["patients"]), ""))
    for metric, figure in results["macro"].items():
        value, _, interval = figure_text(figure).partition(" (")
        several = "macro " if len(results["labels"]) > 1 and metric not in OF_ALL else ""
        below = f"95% interval {interval.rstrip(')')}" if interval else ""
        if figure.get("left_out") or figure.get("labels", len(results["labels"])) < len(results["labels"]):
            below += f"; over {plural(figure['labels'], 'label')}"
            below += f", {figure['left_out']} undefined" if figure.get("left_out") else ""
        tiles.append((several + METRIC_NAMES[metric], value, below.lstrip("; ")))
    return tiles


def _evaluated(results: Results) -> list[Block]:
    intervals, calibrated = results["intervals"], results["calibrated"]
    how_many = sum(calibrated.values())
    pairs = [
        ("Model", results["model"]),
        ("Data", results["dataset"] or "stored predictions"),
        *([("Split", results["split"])] if results["split"] else []),
        ("Problem", results["problem_type"].replace("_", " ")),
        ("Labels", str(len(results["labels"]))),
        ("Recordings", count(results["recordings"])),
        ("Patients", "unknown" if results["patients"] is None else count(results["patients"])),
        ("Excluded", "; ".join(f"{count(n)} {reason}" for reason, n in results["left_out"].items()) or "none"),
        (
            "Intervals",
            f"95%, from {intervals['resamples']:,} bootstrap resamples of {intervals['unit']}, seed "
            f"{intervals['seed']}",
        ),
    ]
    if results["problem_type"] != "regression":
        some = f"{how_many} of {plural(len(calibrated), 'label')} calibrated"
        pairs += [
            ("Calibration", some if how_many else "none: outputs are scores"),
            ("Thresholds", results["thresholds_from"] or "none stored, and none assumed"),
        ]
    pairs.append(("Versions", ", ".join(f"{name} {version}" for name, version in results["versions"].items())))
    return [("definitions", pairs)]


def _labels(results: Results) -> list[Block]:
    per_label = results["per_label"]
    metrics = [m for m in METRIC_NAMES if any(m in found["metrics"] for found in per_label.values())]
    kinds = list(dict.fromkeys(kind for found in per_label.values() for kind in found["counts"]))
    rows = [
        [
            label,
            *(count(found["counts"].get(kind)) for kind in kinds),
            *(_cell(found["metrics"].get(metric)) for metric in metrics),
        ]
        for label, found in per_label.items()
    ]
    notes = ["Counts are of recordings; figures have 95% intervals. A dash: undefined, or of too few patients."]
    if results["smallest_cell"] > 1 and results["recordings"]:
        few = results["smallest_cell"]
        notes.append(
            f"“<{few}”: fewer than {few} patients; “withheld”: would give such a count away. A label has figures if "
            f"at least {few} patients have it and {few} do not."
        )
    if "average_precision" in metrics:
        notes.append("By chance AUROC is 0.5, and AUPRC the share of positives.")
    headings = ["Label", *map(str.capitalize, kinds), *(METRIC_NAMES[m] for m in metrics)]
    return [_table(headings, rows, " ".join(notes))]


def _classes(results: Results) -> list[Block]:
    """Return the confusion of the classes of a single label."""
    if "classes" not in results:
        return []
    found = results["classes"]
    if found is None:
        few = results["smallest_cell"]
        return [("text", f"Withheld: some pair of a true and a given class has fewer than {few} patients.")]
    names = results["labels"]
    counted = [[name, *(count(n) for n in row)] for name, row in zip(names, found["counts"], strict=True)]
    note = "A row is a true class, a column the class of the highest score; counts are of recordings."
    rates = [[name, *(_cell(found["metrics"][rate][row]) for rate in _RATES)] for row, name in enumerate(names)]
    rates.append(["Macro", *(_cell(found["macro"][rate]) for rate in _RATES)])
    return [
        _table(["True class", *(f"given {name}" for name in names)], counted, note),
        _table(["Class", *(METRIC_NAMES[rate] for rate in _RATES)], rates),
    ]


def _decisions(results: Results) -> list[Block]:
    decided = {label: found["decisions"] for label, found in results["per_label"].items() if found.get("decisions")}
    if not decided and "classes" in results:
        return []
    if not decided:
        return [
            (
                "text",
                "The model has no thresholds, and none is assumed: there are no decisions to count. Thresholds are "
                "fitted on a validation split and stored with the model.",
            )
        ]
    cells = ("true_positive", "false_negative", "false_positive", "true_negative")
    rows = [
        [
            label,
            number(found["threshold"]),
            *(count(found["counts"][cell]) for cell in cells),
            *(_cell(found["metrics"].get(rate)) for rate in _RATES),
        ]
        for label, found in decided.items()
    ]
    if len(decided) > 1:
        rows.append(["Macro", *[""] * 5, *(_cell(results["macro"].get(rate)) for rate in _RATES)])
    headings = ["Label", "Threshold", *(cell.replace("_", " ").capitalize() for cell in cells)]
    note = f"Thresholds: {results['thresholds_from']}. A recording is positive if its score reaches the threshold."
    if results["smallest_cell"] > 1:
        note += " a … b: the figure is between a and b; its exact value would give a small count away."
    missing = len(results["labels"]) - len(decided)
    note += f" Not shown: {plural(missing, 'label')} without a threshold or with too few patients." if missing else ""
    return [_table([*headings, *(METRIC_NAMES[rate] for rate in _RATES)], rows, note)]


def _comparison(found: Results | None) -> list[Block]:
    if not found:
        return []
    first, second = found["model"], found["other"]
    blocks: list[Block] = [
        (
            "text",
            f"Differences are {first} minus {second}, on the same recordings, with 95% intervals from "
            f"{found['intervals']['resamples']:,} paired resamples of {found['intervals']['unit']}: each resample "
            "measures both models. An interval that contains 0 does not show a difference.",
        )
    ]
    for metric in found["macro"]:
        figures = [("All labels" if len(found["per_label"]) > 1 else "All", found["macro"][metric])]
        figures += [(label, metrics[metric]) for label, metrics in found["per_label"].items() if metric in metrics]
        if len(found["per_label"]) == 1 and len(figures) == 2:
            figures = figures[1:]
        rows = [
            [name, number(of["first"]), number(of["second"]), _cell(of["difference"], signed=True)]
            for name, of in figures
        ]
        blocks.append(_table([METRIC_NAMES[metric], first, second, "Difference"], rows))
    return blocks


def _subgroups(results: Results) -> list[Block]:
    blocks: list[Block] = []
    several = "macro " if len(results["labels"]) > 1 else ""
    for attribute, groups in results["subgroups"].items():
        metric = next((m for g in groups for m in g["macro"]), None)
        rows = [
            (g["group"], f["value"], f["low"], f["high"])
            for g in groups
            if (f := g["macro"].get(metric)) and f["value"] is not None
        ]
        blocks.append(("heading", _ATTRIBUTES.get(attribute, attribute)))
        if metric is not None and rows:
            overall = results["macro"].get(metric, {}).get("value")
            caption = f"{several}{METRIC_NAMES[metric]} by {attribute}, with 95% intervals; dashed: all recordings"
            drawn = forest_figure(rows, overall, caption, several + METRIC_NAMES[metric])
            blocks.append(("chart", {"svg": drawn, "caption": caption}))
        blocks.append(_subgroup_table(groups, results))
    if not blocks:
        return []
    smallest = results["smallest_cell"]
    notes = ["Of many groups some differ by chance; nothing here is corrected for that."]
    if smallest > 1:
        sides = "" if results["problem_type"] == "regression" else " with the label, or without it"
        notes.insert(0, f"A dash: fewer than {smallest} patients{sides}.")
    if several and any(len({g["macro_labels"] for g in groups}) > 1 for groups in results["subgroups"].values()):
        notes.append("Macro figures of the groups are over different labels where some have too few patients.")
    return [*blocks, ("note", " ".join(notes))]


def _subgroup_table(groups: list[Mapping[str, Any]], results: Results) -> Block:
    """Return a column for each group; rows for all labels together, and for each label."""
    metrics = [m for m in METRIC_NAMES if any(m in found for g in groups for found in g["per_label"].values())]
    several = len(results["labels"]) > 1
    rows: list[list[Cell]] = [["Recordings", *(count(group["recordings"]) for group in groups)]]
    for metric in metrics if several else ():
        rows.append([f"Macro {METRIC_NAMES[metric]}", *(_cell(group["macro"].get(metric)) for group in groups)])
    if several and metrics:
        rows.append(["over labels", *(count(group["macro_labels"]) for group in groups)])
        # With many labels one metric is enough to read; metrics.json has all.
        metrics = metrics[:1]
    for label in results["labels"]:
        for metric in metrics:
            name = f"{label}, {METRIC_NAMES[metric]}" if several else METRIC_NAMES[metric]
            rows.append([name, *(_cell(group["per_label"].get(label, {}).get(metric)) for group in groups)])
    return _table(["", *(group["group"] for group in groups)], rows)


def _curves(results: Results) -> list[Block]:
    cards = []
    for label, found in results["per_label"].items():
        curves = found.get("curves")
        if not curves:
            continue
        if "density" in curves:
            of = curves["density"]
            drawn = [density_figure(of["shares"], of["low"], of["high"], label, "true value", "predicted value")]
        else:
            calibrated = results["calibrated"][label]
            drawn = [
                roc_figure(curves["roc"], label),
                precision_recall_figure(curves["precision_recall"], curves["prevalence"], label),
                reliability_figure(curves["reliability"], curves["histogram"], label, calibrated),
            ]
        cards.append((label, drawn))
    if not cards:
        no_curve = ("text", "No label has enough patients with it and without it for a curve.")
        return [no_curve] if results["labels"] else []
    few, regression = results["smallest_cell"], results["problem_type"] == "regression"
    if regression:
        note = "The darker, the more recordings; dashed: predicted is true. The last bins have the values beyond them."
    else:
        note = (
            "ROC, dashed: chance. Precision-recall, dashed: the share of positives, which is chance. Reliability, "
            "dashed: calibrated; bars: how many recordings have such a score."
        )
    if few > 1:
        note += f" Dotted outlines: withheld, as there are fewer than {few} patients or such a count would follow."
        if not regression:
            note += f" Curves have gaps where a decision's count would be of fewer than {few} patients."
            note += f" Reliability bins are joined until each has at least {few} patients with the label and without."
    return [("note", note), ("cards", cards)]
