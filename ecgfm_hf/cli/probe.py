"""`ecgfm probe`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .options import (
    BatchSizeOption,
    NumWorkersOption,
    PrecisionOption,
    RootOption,
    parse_names,
    quiet_libraries,
    show_progress,
)
from .outputs import Reads, Writes

if TYPE_CHECKING:
    from ..inference import Predictions
    from ..training import LinearProbe


def probe(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Model folder; its encoder is used, not its head."), Reads()
    ],
    store: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="Store that `ecgfm prepare` wrote, or a processed folder of fairseq-signals."
        ),
        Reads(),
    ],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder for the classifier."), Writes()],
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="A,B", help="Default: all label columns of the store."),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option("--targets", metavar="FILE", help="The labels of a processed folder: its y.npy."),
        Reads(),
    ] = None,
    root: RootOption = None,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="Split that heads are fitted on.")] = "train",
    valid_split: Annotated[
        str,
        typer.Option(
            "--valid-split",
            metavar="NAME",
            help="Split for the printed figures, calibration and thresholds; `none` does without.",
        ),
    ] = "valid",
    train_fraction: Annotated[
        float,
        typer.Option(
            "--train-fraction",
            metavar="F",
            help="Share of the training patients to use, drawn by the seed; a larger share contains a smaller one.",
        ),
    ] = 1.0,
    regression: Annotated[bool, typer.Option("--regression", help="The labels are values, not classes.")] = False,
    thresholds: Annotated[
        str,
        typer.Option(
            "--thresholds",
            metavar="HOW",
            help="How thresholds are fitted on the validation split: youden, f1, none, or such as sensitivity:0.9.",
        ),
    ] = "youden",
    calibration: Annotated[
        Literal["platt", "temperature", "none"],
        typer.Option("--calibration", help="How scores are calibrated on the validation split."),
    ] = "platt",
    min_cases: Annotated[
        int,
        typer.Option(
            "--min-cases",
            metavar="N",
            help="A label with fewer positives or negatives in the validation split gets no threshold and no "
            "calibration.",
        ),
    ] = 5,
    folds: Annotated[int, typer.Option("--folds", metavar="N", help="Folds of the cross-validation.")] = 5,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Seed of the folds and of --train-fraction.")] = 0,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="DIR", help="Keep embeddings here, so that the next heads take seconds."),
        Writes(names=()),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model in the folder.")] = False,
    batch_size: BatchSizeOption = 16,
    num_workers: NumWorkersOption = 0,
    precision: PrecisionOption = "float32",
) -> int:
    """
    Fit a linear classifier on a frozen encoder's embeddings, in seconds.

    Exit status: 0 done, 1 the output cannot be written, 2 usage.
    """
    chosen = parse_names(labels, "--labels")
    from ..training import Prober, ProbeSettings
    from ..utils.precision import keep_freed_memory

    keep_freed_memory()
    settings = ProbeSettings(
        data=str(store),
        output_dir=str(output),
        init_from=str(model),
        labels=chosen,
        targets=targets,
        root=root,
        train_split=split,
        train_fraction=train_fraction,
        valid_split=None if valid_split == "none" else valid_split,
        problem_type="regression" if regression else "multi_label_classification",
        thresholds=thresholds,
        calibration=calibration,
        min_cases=min_cases,
        folds=folds,
        seed=seed,
        cache_dir=None if cache is None else str(cache),
        per_device_eval_batch_size=batch_size,
        dataloader_num_workers=num_workers,
        precision=precision,
        overwrite=overwrite,
    )
    with quiet_libraries(datasets_too=True):
        result = Prober(settings, progress=show_progress()).run()
    print(f"embedded    {result.segments:,} segments in {result.embed_seconds:.1f} s")
    print(
        f"fitted      {len(result.probe.strengths)} labels on {result.recordings:,} recordings of {split} in "
        f"{result.fit_seconds:.1f} s"
    )
    for note in result.notes:
        print(f"note        {note}")
    if result.valid is None:
        print("no validation split: no calibration, no thresholds, and no figure")
    else:
        _print_figures(result.probe, result.valid, valid_split)
    print(f"model       {output}, for `ecgfm predict` and `ecgfm evaluate`")
    return 0


def _print_figures(probe: "LinearProbe", found: "Predictions", split: str) -> None:
    from ..evaluation import auroc, macro, r_squared

    regression = found.problem_type == "regression"
    metric, called = (r_squared, "R2") if regression else (auroc, "AUROC")
    values = metric(found.labels, found.scores)
    width = max(len("label"), *map(len, found.label_names))
    rows = [("strength", "threshold", called)]
    for name, value in zip(found.label_names, values, strict=True):
        threshold = (probe.model.config.label_thresholds or {}).get(name)
        shown = "-" if threshold is None else f"{threshold:.3f}"
        rows.append((f"{probe.strengths[name]:g}", shown, "undefined" if value != value else f"{value:.3f}"))
    for name, row in zip(("label", *found.label_names), rows, strict=True):
        print(f"  {name:<{width}}  " + "  ".join(f"{cell:>9}" for cell in row))
    mean, left_out = macro(values)
    missing = f", without {left_out} labels (undefined)" if left_out else ""
    print(f"{split:<11} macro {called} {mean:.3f} on {len(found):,} recordings{missing}")
