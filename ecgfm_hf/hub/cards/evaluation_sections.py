"""The section of a card that follows from `metrics.json` of `ecgfm evaluate`, and its results for the front matter."""

from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult

from ...evaluation.formatting import METRIC_NAMES, count, figure_text
from ...evaluation.intervals import RANKING
from ...evaluation.results import PROBABILITY, RATES, REGRESSION
from .details import CardDetails, placeholder
from .markdown import bullets, paragraphs, plain, table

Results = Mapping[str, Any]
# What the Hub calls the metrics that it knows.
METRIC_IDS = {
    "auroc": "roc_auc",
    "average_precision": "average_precision",
    "brier": "brier_score",
    "accuracy": "accuracy",
    "mean_absolute_error": "mae",
    "r_squared": "r_squared",
}
NOT_EVALUATED = (
    "**No evaluation is reported.** How good the model is on patients that it has not seen is unknown; `ecgfm "
    "evaluate` measures it."
)
_TASKS = {
    "multi_label_classification": "12-lead ECG, multi-label classification",
    "single_label_classification": "12-lead ECG, classification",
    "regression": "12-lead ECG, regression",
}


def evaluation_section(results: Results, details: CardDetails, decided_elsewhere: bool, checked: bool) -> str:
    """
    All figures with their intervals, and what to know about them.

    Args:
        results (mapping): Of [`evaluate_predictions`].
        details ([`CardDetails`]): `dataset_name`, `evaluation_data`.
        decided_elsewhere (`bool`): Whether decisions are at other thresholds than those in the model's config.
        checked (`bool`): Whether the figures are known to be of these weights.
    """
    intervals = results["intervals"]
    data = placeholder("dataset_name") if details.dataset_name is None else f"Data: {plain(details.dataset_name)}."
    people = "" if results["patients"] is None else f" of {count(results['patients'])} patients"
    split = f", split `{plain(results['split'])}`" if results["split"] else ""
    unit = {"patients": "patients, each with all of their recordings"}.get(intervals["unit"], intervals["unit"])
    said = (
        f"{count(results['recordings'])} recordings{people}{split}. In brackets 95% intervals, from "
        f"{intervals['resamples']:,} bootstrap resamples of {unit}."
    )
    left_out = "; ".join(f"{count(number)} {plain(reason)}" for reason, number in results["left_out"].items())
    notes = [plain(note) for note in results["notes"]]
    if not checked:
        notes.append("The evaluation does not record which weights it is of.")
    if decided_elsewhere:
        notes.append("The decisions above are at other thresholds than those in the model's config.")
    return paragraphs(
        data,
        details.evaluation_data,
        *(f"**Warning: {plain(warning)}**" for warning in results["warnings"]),
        said,
        f"Left out: {left_out}." if left_out else None,
        _macro(results),
        _per_label(results),
        _decisions(results),
        *_subgroups(results),
        "### To read these figures\n\n" + bullets(notes),
        f"<!-- smallest cell: {results['smallest_cell']} -->",
    )


def _macro(results: Results) -> str | None:
    if not results["macro"] or (len(results["labels"]) == 1 and "accuracy" not in results["macro"]):
        return None
    rows = []
    for metric, figure in results["macro"].items():
        labels = figure.get("labels")
        over = "all recordings" if labels is None else f"mean over {labels} labels"
        if figure.get("left_out"):
            over += f"; of {figure['left_out']} more undefined"
        rows.append([METRIC_NAMES[metric], figure_text(figure), over])
    return "### All labels together\n\n" + table(["metric", "figure", ""], rows)


def _shown(results: Results, metrics: tuple[str, ...]) -> list[str]:
    found = {metric for label in results["per_label"].values() for metric in label["metrics"]}
    return [metric for metric in metrics if metric in found]


def _per_label(results: Results) -> str:
    regression = results["problem_type"] == "regression"
    metrics = _shown(results, REGRESSION if regression else (*RANKING, *PROBABILITY))
    kinds = ("known",) if regression else ("positive", "negative")
    rows = [
        [
            plain(label),
            *(count(found["counts"].get(kind)) for kind in kinds),
            *(figure_text(found["metrics"].get(metric)) for metric in metrics),
        ]
        for label, found in results["per_label"].items()
    ]
    return "### By label\n\n" + table(["label", *kinds, *(METRIC_NAMES[metric] for metric in metrics)], rows)


def _decisions(results: Results) -> str | None:
    rows = [
        [
            plain(label),
            f"{found['decisions']['threshold']:.3g}",
            *(figure_text(found["decisions"]["metrics"].get(rate)) for rate in RATES),
        ]
        for label, found in results["per_label"].items()
        if "decisions" in found
    ]
    if not rows:
        return None
    return "### Decisions at thresholds\n\n" + table(
        ["label", "threshold", *(METRIC_NAMES[rate] for rate in RATES)], rows
    )


def _subgroups(results: Results) -> Iterator[str]:
    single = len(results["labels"]) == 1
    metrics = REGRESSION if results["problem_type"] == "regression" else RANKING
    for attribute, groups in results["subgroups"].items():
        shown = [metric for metric in metrics if any(metric in group["macro"] for group in groups)]
        rows = [
            [
                plain(group["group"]),
                count(group["recordings"]),
                *([] if single else [f"{group['macro_labels']} of {len(results['labels'])}"]),
                *(figure_text(group["macro"].get(metric)) for metric in shown),
            ]
            for group in groups
        ]
        mean = [] if single else ["labels in the mean"]
        headings = [plain(attribute), "recordings", *mean, *(METRIC_NAMES[metric] for metric in shown)]
        yield f"### By {plain(attribute)}\n\n{table(headings, rows)}"
        first = metrics[0]
        if not single and any(group["per_label"] for group in groups):
            by_label = [
                [plain(label), *(figure_text(group["per_label"].get(label, {}).get(first)) for group in groups)]
                for label in results["labels"]
            ]
            yield paragraphs(
                f"{METRIC_NAMES[first]} by label:",
                table(["label", *(plain(group["group"]) for group in groups)], by_label),
            )


def evaluation_results(results: Results, details: CardDetails, pipeline_tag: str) -> list[EvalResult]:
    """For the front matter: macro figures and each label's ranking, or error; none while the data have no name."""
    if details.dataset_name is None:
        return []
    dataset = {
        "task_type": pipeline_tag,
        "task_name": _TASKS[results["problem_type"]],
        "dataset_type": details.dataset_id or _slug(details.dataset_name),
        "dataset_name": details.dataset_name,
        "dataset_split": results["split"],
    }
    single = len(results["labels"]) == 1
    found = []
    for metric, figure in results["macro"].items():
        if metric in METRIC_IDS and figure.get("value") is not None:
            name = (
                METRIC_NAMES[metric] if single or metric == "accuracy" else f"{METRIC_NAMES[metric]}, mean over labels"
            )
            found.append(_result(dataset, metric, name, figure))
    first = "mean_absolute_error" if results["problem_type"] == "regression" else "auroc"
    for label, one in results["per_label"].items():
        figure = one["metrics"].get(first)
        if figure and figure.get("value") is not None and not (single and first in results["macro"]):
            found.append(_result(dataset, first, f"{METRIC_NAMES[first]}, {label}", figure))
    return found


def _result(dataset: Mapping[str, Any], metric: str, name: str, figure: Mapping[str, Any]) -> EvalResult:
    return EvalResult(
        metric_type=METRIC_IDS[metric], metric_value=round(figure["value"], 4), metric_name=name, **dataset
    )


def _slug(name: str) -> str:
    kept = "".join(character if character.isalnum() and character.isascii() else "-" for character in name.lower())
    return "-".join(part for part in kept.split("-") if part) or "dataset"


def evaluation_limits(results: Results | None) -> list[str]:
    """What a reader must know that follows from what was evaluated, and what was not."""
    if results is None:
        return ["Not evaluated on patients that it has not seen, as far as this card reports."]
    limits = []
    measured = {name for name, groups in results["subgroups"].items() if any(group["per_label"] for group in groups)}
    if missing := [name for name in ("age", "sex", "source") if name not in measured]:
        limits.append(f"No figures by {', '.join(missing)}: whether it is worse for some of these groups is unknown.")
    return limits


__all__ = ["METRIC_IDS", "NOT_EVALUATED", "evaluation_limits", "evaluation_results", "evaluation_section"]
