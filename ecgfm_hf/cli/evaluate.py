"""`ecgfm evaluate`: its arguments, the steps, and what it prints."""

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..utils.name_lists import names

PREDICTIONS_FILE, METRICS_FILE, REPORT_FILE = "predictions.parquet", "metrics.json", "report.html"
_MOST_LABELS_PRINTED, _WIDEST_CELL = 30, 60


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `ecgfm evaluate`."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder or Hub repository of a classifier, or a predictions.parquet")
    add("dataset", metavar="DATASET", nargs="?", help="store that `ecgfm prepare` wrote; none for stored predictions")
    add("--split", default="test", help="which split of it (default: test)")
    files = f"{PREDICTIONS_FILE}, {METRICS_FILE} and {REPORT_FILE}"
    add("--output", metavar="DIR", default="evaluation", help=f"folder for {files} (default: evaluation)")
    add("--overwrite", action="store_true", help="replace these files where they exist")
    add("--labels", metavar="A,B", type=names, help="evaluate only these of the model's labels")
    add("--targets", metavar="CSV", help="the true values by recording_id, instead of the dataset's labels")
    add("--class-column", metavar="NAME", help="for a single label: the column that holds the class")
    add("--compare", metavar="OTHER", help="a second model or predictions.parquet, on the same recordings")
    add("--thresholds", metavar="MODEL", help="whose thresholds to decide by (default: the evaluated model's own)")
    add("--resamples", type=_at_least(100), default=1000, metavar="N", help="of the bootstrap (default: 1000)")
    add("--seed", type=_at_least(0), default=0, metavar="N", help="of the bootstrap (default: 0)")
    few = "nothing is told of fewer patients than that (default: 10; 1 tells everything, for public data)"
    add("--smallest-cell", type=_at_least(1), default=10, metavar="N", help=few)
    seen = "evaluate also on recordings or patients that the model has seen; the report says so"
    add("--allow-seen", action="store_true", help=seen)
    add("--batch-size", type=_at_least(1), default=16, metavar="N", help="segments together (default: 16)")
    add("--num-workers", type=_at_least(0), default=0, metavar="N", help="processes that read (default: 0)")
    add("--precision", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    add("--device", default="cpu", help="such as cpu or cuda:0 (default: cpu)")


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, found: {text}")
        return int(text)

    return number


def run_evaluate(args: argparse.Namespace) -> int:
    """
    Runs `ecgfm evaluate`.

    Returns:
        `int`: 0 evaluated, 1 the results cannot be written, 2 usage.
    """
    from ..evaluation.prediction_sources import distinct_names, load_predictions
    from ..evaluation.results import compare_predictions, evaluate_predictions

    output = Path(args.output)
    try:
        _check_output(output, args.overwrite)
        _quiet()
        names = ("split", "labels", "targets", "class_column", "thresholds", "allow_seen", "batch_size", "num_workers")
        options = {name: getattr(args, name) for name in (*names, "precision", "device")}
        options["progress"] = sys.stderr.isatty()
        first, second = load_predictions(args.model, args.dataset, **options), None
        if args.compare is not None:
            # A file has its own labels.
            dataset = None if os.path.isfile(args.compare) else args.dataset
            second = load_predictions(args.compare, dataset, **options)
        results = evaluate_predictions(
            first.predictions,
            model=first.name,
            dataset=None if first.stored else Path(args.dataset).resolve().name,
            split=None if first.stored else args.split,
            thresholds=first.thresholds,
            thresholds_from=first.thresholds_from,
            left_out=first.left_out,
            warnings=first.warnings,
            notes=first.notes,
            versions=first.versions,
            resamples=args.resamples,
            seed=args.seed,
            smallest_cell=args.smallest_cell,
        )
        # A model card tells by it whether the figures are of the weights that it is of.
        results["weights"] = first.weights
        if second is not None:
            results["warnings"] += [f"{second.name}: {line}" for line in second.warnings]
            results["comparison"] = compare_predictions(
                first.predictions,
                second.predictions,
                names=distinct_names(first.name, second.name),
                resamples=args.resamples,
                seed=args.seed,
                smallest_cell=args.smallest_cell,
            )
    except (OSError, ValueError) as error:
        print(f"ecgfm evaluate: {error}", file=sys.stderr)
        return 2
    try:
        _write(output, first.predictions, results)
    except OSError as error:
        print(f"ecgfm evaluate: cannot write {output}: {error}", file=sys.stderr)
        return 1
    print(summary(results))
    print(f"\n{output / REPORT_FILE}, {output / METRICS_FILE}")
    print(f"{output / PREDICTIONS_FILE}: a row a recording, with the ids of recordings and patients; only there")
    return 0


# ----------------------------------------------------------------------------------------------------------------------
# What comes out
# ----------------------------------------------------------------------------------------------------------------------


def _quiet() -> None:
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)


def _check_output(output: Path, overwrite: bool) -> None:
    from ..evaluation.prediction_sources import EvaluateError

    if output.exists() and not output.is_dir():
        raise EvaluateError(f"{output} is not a folder")
    there = [name for name in (PREDICTIONS_FILE, METRICS_FILE, REPORT_FILE) if (output / name).exists()]
    if there and not overwrite:
        raise EvaluateError(f"{output} already holds {', '.join(there)}: choose another --output, or --overwrite")
    # Before the model runs: hours of work must not end at a folder that cannot be written.
    output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK):
        raise EvaluateError(f"{output} cannot be written")


def _write(output: Path, predictions: Any, results: Mapping[str, Any]) -> None:
    """The three files, which take their places only once all of them are written."""
    from ..evaluation.report import write_html_report

    with tempfile.TemporaryDirectory(prefix=".ecgfm-evaluate.", dir=output) as work:
        scratch = Path(work)
        predictions.to_parquet(scratch / PREDICTIONS_FILE)
        # Labels need not be UTF-8; what is not is written as JSON's own escape.
        with open(scratch / METRICS_FILE, "w", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(results, file, indent=1, ensure_ascii=False, allow_nan=False)
            file.write("\n")
        write_html_report(results, scratch / REPORT_FILE)
        for name in (PREDICTIONS_FILE, METRICS_FILE, REPORT_FILE):
            os.replace(scratch / name, output / name)


def summary(results: Mapping[str, Any]) -> str:
    """The results as a short table, and what to know about them."""
    from ..evaluation.formatting import METRIC_NAMES, count, figure_text
    from ..evaluation.report import OF_ALL

    per_label, macro = results["per_label"], results["macro"]
    metrics = [m for m in macro if any(m in found["metrics"] for found in per_label.values())]
    rows = []
    if len(per_label) <= _MOST_LABELS_PRINTED:
        for label, found in per_label.items():
            positives = found["counts"].get("positive", found["counts"].get("known"))
            rows.append([label, count(positives), *(figure_text(found["metrics"].get(m)) for m in metrics)])
    if len(per_label) > 1 or not rows:
        rows.append(["macro", "", *(figure_text(macro[m]) for m in metrics)])
    second = "known" if results["problem_type"] == "regression" else "positive"
    lines = _aligned([["label", second, *(METRIC_NAMES[m] for m in metrics)], *rows])
    intervals = results["intervals"]
    people = "" if results["patients"] is None else f" of {count(results['patients'])} patients"
    head = f"{results['model']}: {count(results['recordings'])} recordings{people}"
    head += f"; 95% intervals over {intervals['unit']}"
    parts = [head, "", *lines]
    others = [(name, figure) for name, figure in macro.items() if name not in metrics]
    if others:
        several = "macro " if len(per_label) > 1 else ""
        shown = [f"{'' if name in OF_ALL else several}{METRIC_NAMES[name]}" for name, _ in others]
        over = [_over(figure, len(per_label)) for _, figure in others]
        rows = [[name, figure_text(one[1]), of] for name, one, of in zip(shown, others, over, strict=True)]
        parts += ["", *_aligned(rows)]
    if results["left_out"]:
        reasons = "; ".join(f"{count(number)} {reason}" for reason, number in results["left_out"].items())
        parts += ["", f"left out: {reasons}"]
    if "comparison" in results:
        parts += ["", *_compared(results["comparison"])]
    notes = [f"WARNING: {line}" for line in results["warnings"]] + list(results["notes"])
    return "\n".join([*parts, "", *notes])


def _over(figure: Mapping[str, Any], labels: int) -> str:
    """Over how many labels a mean is, where that is not over all."""
    return f"over {figure['labels']} of {labels} labels" if figure.get("labels", labels) < labels else ""


def _compared(found: Mapping[str, Any]) -> list[str]:
    from ..evaluation.formatting import METRIC_NAMES, figure_text, number

    rows = [["", found["model"], found["other"], "difference"]]
    several = len(found["per_label"]) > 1
    for metric, figure in found["macro"].items():
        name = f"{'macro ' if several else ''}{METRIC_NAMES[metric]}"
        shown = [number(figure["first"]), number(figure["second"]), figure_text(figure["difference"], signed=True)]
        rows.append([name, *shown])
    return _aligned(rows)


def _aligned(rows: list[list[str]]) -> list[str]:
    from ..evaluation.formatting import literal

    rows = [[_clipped(literal(cell)) for cell in row] for row in rows]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _clipped(cell: str) -> str:
    return cell if len(cell) <= _WIDEST_CELL else f"{cell[: _WIDEST_CELL - 1]}…"
