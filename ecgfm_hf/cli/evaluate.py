"""`ecgfm evaluate`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..evaluation import METRICS_FILE, PREDICTIONS_FILE, REPORT_FILE
from ..utils.files import files_in
from ..utils.text import without_secrets
from .options import (
    BatchSizeOption,
    CommandFailed,
    DeviceOption,
    NumWorkersOption,
    PrecisionOption,
    RootOption,
    SeedOption,
    SmallestCellOption,
    failing_with,
    parse_names,
    quiet_libraries,
    show_progress,
)
from .outputs import Reads, Writes

if TYPE_CHECKING:
    from ..evaluation.prediction_sources import LoadedPredictions
    from ..inference import Predictions

_MOST_LABELS_PRINTED, _WIDEST_CELL = 30, 60


def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Folder or Hub repository of a classifier, or a predictions.parquet."),
        Reads(),
    ],
    dataset: Annotated[
        str | None,
        typer.Argument(
            metavar="DATASET",
            help="Store, or processed folder of fairseq-signals; none for stored predictions.",
        ),
        Reads(),
    ] = None,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="Split of the dataset.")] = "test",
    output: Annotated[
        Path,
        typer.Option(
            "--output", metavar="DIR", help=f"Folder for {PREDICTIONS_FILE}, {METRICS_FILE} and {REPORT_FILE}."
        ),
        Writes(names=(PREDICTIONS_FILE, METRICS_FILE, REPORT_FILE)),
    ] = Path("evaluation"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace these files where they exist.")] = False,
    labels: Annotated[
        str | None, typer.Option("--labels", metavar="A,B", help="Evaluate only these of the model's labels.")
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            "--targets",
            metavar="CSV",
            help="True values by recording_id, instead of the dataset's labels; or a processed folder's y.npy.",
        ),
        Reads(),
    ] = None,
    root: RootOption = None,
    class_column: Annotated[
        str | None,
        typer.Option(
            "--class-column", metavar="NAME", help="For single-label models: the column that holds the class."
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare", metavar="OTHER", help="A second model or predictions.parquet, on the same recordings."
        ),
        Reads(),
    ] = None,
    thresholds: Annotated[
        str | None,
        typer.Option(
            "--thresholds", metavar="MODEL", help="Decide by this model's thresholds (default: the evaluated model's)."
        ),
        Reads(),
    ] = None,
    resamples: Annotated[
        int, typer.Option("--resamples", min=100, metavar="N", help="Resamples of the bootstrap.")
    ] = 1000,
    seed: SeedOption = 0,
    smallest_cell: SmallestCellOption = 10,
    allow_seen: Annotated[
        bool,
        typer.Option(
            "--allow-seen",
            help="Include recordings and patients that the model has seen; the report says so.",
        ),
    ] = False,
    batch_size: BatchSizeOption = 16,
    num_workers: NumWorkersOption = 0,
    precision: PrecisionOption = "float32",
    device: DeviceOption = "cpu",
) -> int:
    """
    Measure a classifier on a split.

    Writes predictions, metrics with confidence intervals, and a report.

    Exit status: 0 evaluated, 1 the results cannot be written, 2 usage.
    """
    chosen = parse_names(labels, "--labels")
    _check_output(output)
    from ..evaluation.prediction_sources import distinct_names, load_predictions
    from ..evaluation.results import compare_predictions, evaluate_predictions

    def load(path: str, store: str | None) -> "LoadedPredictions":
        return load_predictions(
            path,
            store,
            split=split,
            labels=chosen,
            targets=targets,
            class_column=class_column,
            root=root,
            thresholds=thresholds,
            allow_seen=allow_seen,
            batch_size=batch_size,
            num_workers=num_workers,
            precision=precision,
            device=device,
            progress=show_progress(),
        )

    # OSError: a model or store that is not there or cannot be read. ImportError: int8 without torchao.
    with quiet_libraries(datasets_too=True), failing_with(2, OSError, ImportError):
        first, second = load(model, dataset), None
        if compare is not None:
            second = load(compare, None if os.path.isfile(compare) else dataset)  # a file has its own labels
    results = evaluate_predictions(
        first.predictions,
        model=first.name,
        dataset=None if dataset is None or first.stored else Path(without_secrets(dataset)).resolve().name,
        split=None if first.stored else split,
        thresholds=first.thresholds,
        thresholds_from=first.thresholds_from,
        left_out=first.left_out,
        warnings=first.warnings,
        notes=first.notes,
        versions=first.versions,
        resamples=resamples,
        seed=seed,
        smallest_cell=smallest_cell,
    )
    # By it a model card finds whether the figures belong to its weights.
    results["weights"] = first.weights
    if second is not None:
        results["warnings"] += [f"{second.name}: {line}" for line in second.warnings]
        results["comparison"] = compare_predictions(
            first.predictions,
            second.predictions,
            names=distinct_names(first.name, second.name),
            resamples=resamples,
            seed=seed,
            smallest_cell=smallest_cell,
        )
    try:
        _write(output, first.predictions, results)
    except OSError as error:
        raise CommandFailed(f"cannot write {output}: {error}", 1) from error
    print(summary(results))
    print(f"\n{output / REPORT_FILE}, {output / METRICS_FILE}")
    print(f"{output / PREDICTIONS_FILE}: one row per recording; the only file with ids of recordings and patients")
    return 0


def _check_output(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise CommandFailed(f"{output} is not a folder")
    # Before the model runs for hours.
    output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK):
        raise CommandFailed(f"{output} cannot be written")


def _write(output: Path, predictions: "Predictions", results: Mapping[str, Any]) -> None:
    """Write the three files, each under its name only once all of them are written."""
    from ..evaluation.report import write_html_report

    with files_in(output) as scratch:
        predictions.to_parquet(scratch / PREDICTIONS_FILE)
        # Labels need not be UTF-8; what is not is written as JSON's own escape.
        with open(scratch / METRICS_FILE, "w", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(results, file, indent=1, ensure_ascii=False, allow_nan=False)
            file.write("\n")
        write_html_report(results, scratch / REPORT_FILE)


def summary(results: Mapping[str, Any]) -> str:
    """Return the results as a short table, with warnings and notes."""
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
        parts += ["", f"excluded: {reasons}"]
    if "comparison" in results:
        parts += ["", *_compared(results["comparison"])]
    notes = [f"WARNING: {line}" for line in results["warnings"]] + list(results["notes"])
    return "\n".join([*parts, "", *notes])


def _over(figure: Mapping[str, Any], labels: int) -> str:
    """Return the number of labels that a mean is over, where it is not over all."""
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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _clipped(cell: str) -> str:
    return cell if len(cell) <= _WIDEST_CELL else f"{cell[: _WIDEST_CELL - 1]}…"
