"""The report: what [`evaluate_predictions`] found, as one page that needs nothing besides itself."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .charts import density_figure, forest_figure, precision_recall_figure, reliability_figure, roc_figure
from .formatting import (
    banner,
    count,
    definitions,
    figure_cell,
    figure_text,
    number,
    page,
    plural,
    table,
    text,
    tile,
)

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
_RATES = ("sensitivity", "specificity", "ppv", "f1")
# Of all labels together, and no mean over them.
OF_ALL = ("accuracy", "challenge_score")
_ATTRIBUTES = {"age": "Age", "sex": "Sex", "source": "Source"}


def write_html_report(results: Mapping[str, Any], path: str | os.PathLike) -> None:
    """
    Writes the report; the file is there whole or not at all.

    Args:
        results: Of [`evaluate_predictions`], with `"comparison"` where [`compare_predictions`] was asked too.
        path: Where to. An existing file is replaced.
    """
    path = Path(path)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        scratch.write_text(html_report(results), encoding="utf-8")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def html_report(results: Mapping[str, Any]) -> str:
    """The page. Names of labels, models and groups are text in it, whatever they hold."""
    title = f"Evaluation of {results['model']}"
    on = [results["dataset"] or "stored predictions"]
    on += [f"split {results['split']}"] if results["split"] else []
    classes = results["problem_type"] != "regression"
    sections = {
        "evaluated": ("What was evaluated", _evaluated(results)),
        "labels": ("By label", _labels(results)),
        "classes": ("Given and true classes", _classes(results)),
        "thresholds": ("Decisions at thresholds", _decisions(results) if classes else ""),
        "comparison": ("Comparison of two models", _comparison(results.get("comparison"))),
        "subgroups": ("Subgroups", _subgroups(results)),
        "curves": ("Curves" if classes else "Predicted and true values", _curves(results)),
        "limits": ("Limits", _limits(results)),
    }
    shown = {anchor: section for anchor, section in sections.items() if section[1]}
    links = " ".join(f'<a href="#{anchor}">{text(heading)}</a>' for anchor, (heading, _) in shown.items())
    body = f'<h1>{text(title)}</h1>\n<p class="lead">{text(", ".join(on))}</p>\n'
    body += banner(["Research use only: not for clinical use."]) + banner(results["warnings"], alarm=True)
    body += f"<nav>{links}</nav>\n{_tiles(results)}"
    for anchor, (heading, content) in shown.items():
        body += f'<section id="{anchor}">\n<h2>{text(heading)}</h2>\n{content}</section>\n'
    return page(title, body)


def _tiles(results: Mapping[str, Any]) -> str:
    tiles = [tile(count(results["recordings"]), "recordings")]
    if results["patients"] is not None:
        tiles.append(tile(count(results["patients"]), "patients"))
    for metric, figure in results["macro"].items():
        value, _, interval = figure_text(figure).partition(" (")
        several = "macro " if len(results["labels"]) > 1 and metric not in OF_ALL else ""
        below = f"95% interval {interval.rstrip(')')}" if interval else ""
        if figure.get("left_out") or figure.get("labels", len(results["labels"])) < len(results["labels"]):
            below += f"; over {plural(figure['labels'], 'label')}"
            below += f", {figure['left_out']} undefined" if figure.get("left_out") else ""
        tiles.append(tile(value, several + METRIC_NAMES[metric], below.lstrip("; ")))
    return f'<div class="tiles">{"".join(tiles)}</div>\n'


def _evaluated(results: Mapping[str, Any]) -> str:
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
        ("Left out", "; ".join(f"{count(n)} {reason}" for reason, n in results["left_out"].items()) or "none"),
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
    return definitions(pairs)


def _labels(results: Mapping[str, Any]) -> str:
    per_label = results["per_label"]
    metrics = [m for m in METRIC_NAMES if any(m in found["metrics"] for found in per_label.values())]
    kinds = list(dict.fromkeys(kind for found in per_label.values() for kind in found["counts"]))
    rows = []
    for label, found in per_label.items():
        counts = [text(count(found["counts"].get(kind))) for kind in kinds]
        figures = [figure_cell(found["metrics"].get(metric)) for metric in metrics]
        rows.append([label, *counts, *figures])
    notes = ["Counts are of recordings; figures with 95% intervals. A dash: not defined, or of too few patients."]
    if results["smallest_cell"] > 1 and results["recordings"]:
        notes.append(_withheld_note(results["smallest_cell"]))
    if "average_precision" in metrics:
        notes.append("By chance AUROC is 0.5, and AUPRC the share of positives.")
    return table(["Label", *map(str.capitalize, kinds), *(METRIC_NAMES[m] for m in metrics)], rows, " ".join(notes))


def _withheld_note(smallest: int) -> str:
    return (
        f"“<{smallest}”: of fewer than {smallest} patients; “withheld”: would give such a count away. A label "
        f"with fewer than {smallest} patients on either side has no figures."
    )


def _classes(results: Mapping[str, Any]) -> str:
    """The confusion of the classes of a single label."""
    if "classes" not in results:
        return ""
    found = results["classes"]
    if found is None:
        return (
            f"<p>Withheld: some class was given to fewer than {results['smallest_cell']} patients of another one, or "
            "of its own.</p>"
        )
    names = results["labels"]
    counted = [[name, *(text(count(n)) for n in row)] for name, row in zip(names, found["counts"], strict=True)]
    note = "A row a true class, a column the class of the highest score; counts are of recordings."
    rates = [
        [name, *(figure_cell(found["metrics"][rate][place]) for rate in _RATES)] for place, name in enumerate(names)
    ]
    rates.append(["Macro", *(figure_cell(found["macro"][rate]) for rate in _RATES)])
    return table(["True class", *(f"given {name}" for name in names)], counted, note) + table(
        ["Class", *(METRIC_NAMES[rate] for rate in _RATES)], rates
    )


def _decisions(results: Mapping[str, Any]) -> str:
    decided = {label: found["decisions"] for label, found in results["per_label"].items() if found.get("decisions")}
    if not decided and "classes" in results:
        return ""
    if not decided:
        return (
            "<p>The model has no thresholds, and none is assumed: there are no decisions to count. "
            "Thresholds are fitted on a validation split and stored with the model.</p>"
        )
    cells = ("true_positive", "false_negative", "false_positive", "true_negative")
    rows = []
    for label, found in decided.items():
        counts = [text(count(found["counts"][cell])) for cell in cells]
        figures = [figure_cell(found["metrics"].get(rate)) for rate in _RATES]
        rows.append([label, number(found["threshold"]), *counts, *figures])
    if len(decided) > 1:
        rows.append(["Macro", *[""] * 5, *(figure_cell(results["macro"].get(rate)) for rate in _RATES)])
    headings = ["Label", "Threshold", *(cell.replace("_", " ").capitalize() for cell in cells)]
    note = f"Thresholds: {results['thresholds_from']}. A recording is positive whose score reaches the threshold."
    if results["smallest_cell"] > 1:
        note += " a … b: between which the figure lies, where its exact value would give a small count away."
    missing = len(results["labels"]) - len(decided)
    note += f" Not shown: {plural(missing, 'label')} without a threshold or with too few patients." if missing else ""
    return table([*headings, *(METRIC_NAMES[rate] for rate in _RATES)], rows, note)


def _comparison(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    parts = [
        f"<p>Differences are {text(found['model'])} minus {text(found['other'])}, on the same recordings, with 95% "
        f"intervals from {found['intervals']['resamples']:,} paired resamples of {found['intervals']['unit']}: both "
        "models are scored on each resample. An interval that holds 0 does not tell the models apart.</p>"
    ]
    for metric in found["macro"]:
        rows = [("All labels" if len(found["per_label"]) > 1 else "All", found["macro"][metric])]
        rows += [(label, metrics[metric]) for label, metrics in found["per_label"].items() if metric in metrics]
        if len(found["per_label"]) == 1 and len(rows) == 2:
            rows = rows[1:]
        cells = [
            [
                name,
                number(figure["first"]),
                number(figure["second"]),
                figure_cell(figure["difference"], signed=True),
            ]
            for name, figure in rows
        ]
        parts.append(table([METRIC_NAMES[metric], found["model"], found["other"], "Difference"], cells))
    return "".join(parts)


def _subgroups(results: Mapping[str, Any]) -> str:
    parts = []
    for attribute, groups in results["subgroups"].items():
        metric = next((m for g in groups for m in g["macro"]), None)
        overall = results["macro"].get(metric, {}).get("value") if metric else None
        rows = [
            (g["group"], f["value"], f["low"], f["high"])
            for g in groups
            if (f := g["macro"].get(metric)) and f["value"] is not None
        ]
        parts.append(f"<h3>{text(_ATTRIBUTES.get(attribute, attribute))}</h3>\n")
        if rows:
            several = "macro " if len(results["labels"]) > 1 else ""
            caption = f"{several}{METRIC_NAMES[metric]} by {attribute}, with 95% intervals; dashed: all recordings"
            drawn = forest_figure(rows, overall, caption, several + METRIC_NAMES[metric])
            parts.append(f'<figure class="wide">{drawn}<figcaption>{text(caption)}</figcaption></figure>\n')
        parts.append(_subgroup_table(groups, results))
    if not parts:
        return ""
    smallest = results["smallest_cell"]
    notes = ["Of many groups some differ by chance alone; nothing here is corrected for that."]
    if smallest > 1:
        sides = "" if results["problem_type"] == "regression" else " with the label, or without it"
        notes.insert(0, f"A dash: fewer than {smallest} patients{sides}.")
    if len(results["labels"]) > 1 and any(
        len({g["macro_labels"] for g in groups}) > 1 for groups in results["subgroups"].values()
    ):
        notes.append("The groups' macro figures are over different labels where some have too few patients.")
    return "".join(parts) + f'<p class="note">{text(" ".join(notes))}</p>\n'


def _subgroup_table(groups: list[Mapping[str, Any]], results: Mapping[str, Any]) -> str:
    """A column a group; rows for all labels together, and for each label."""
    metrics = [m for m in METRIC_NAMES if any(m in found for g in groups for found in g["per_label"].values())]
    several = len(results["labels"]) > 1
    rows = [["Recordings", *(text(count(group["recordings"])) for group in groups)]]
    for metric in metrics if several else ():
        rows.append([f"Macro {METRIC_NAMES[metric]}", *(figure_cell(group["macro"].get(metric)) for group in groups)])
    if several and metrics:
        rows.append(["over labels", *(text(count(group["macro_labels"])) for group in groups)])
        # With many labels one metric is enough to read; metrics.json has all.
        metrics = metrics[:1]
    for label in results["labels"]:
        for metric in metrics:
            name = f"{label}, {METRIC_NAMES[metric]}" if several else METRIC_NAMES[metric]
            rows.append([name, *(figure_cell(group["per_label"].get(label, {}).get(metric)) for group in groups)])
    return table(["", *(group["group"] for group in groups)], rows)


def _curves(results: Mapping[str, Any]) -> str:
    cards = []
    for label, found in results["per_label"].items():
        curves = found.get("curves")
        if not curves:
            continue
        if "density" in curves:
            d = curves["density"]
            drawn = [density_figure(d["shares"], d["low"], d["high"], label, "true value", "predicted value")]
        else:
            calibrated = results["calibrated"][label]
            drawn = [
                roc_figure(curves["roc"], label),
                precision_recall_figure(curves["precision_recall"], curves["prevalence"], label),
                reliability_figure(curves["reliability"], curves["histogram"], label, calibrated),
            ]
        figures = "".join(f"<figure>{one}</figure>" for one in drawn)
        cards.append(f'<div class="card"><h3>{text(label)}</h3><div class="row">{figures}</div></div>\n')
    if not cards:
        return "<p>No label has enough patients on both sides for a curve.</p>" if results["labels"] else ""
    if results["problem_type"] == "regression":
        note = (
            "The darker, the more recordings; dashed: predicted is true. Values beyond the ends are in the last bins."
        )
    else:
        note = (
            "ROC, dashed: chance. Precision-recall, dashed: the share of positives, which is chance. Reliability, "
            "dashed: calibrated; bars: how many recordings have such a score."
        )
    if results["smallest_cell"] > 1:
        few = results["smallest_cell"]
        note += f" Dotted outlines: withheld, of fewer than {few} patients or giving those away."
        if results["problem_type"] != "regression":
            note += f" Bins of the reliability are joined until none has fewer than {few} patients on either side."
    return f'<p class="note">{text(note)}</p>\n<div class="cards">{"".join(cards)}</div>\n'


def _limits(results: Mapping[str, Any]) -> str:
    return "<ul>" + "".join(f"<li>{text(note)}</li>" for note in results["notes"]) + "</ul>\n"
