"""`ecgfm probe`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..utils.errors import SettingsError
from .options import (
    BatchSizeOption,
    NumWorkersOption,
    PrecisionOption,
    StoreArgument,
    parse_names,
    quiet_libraries,
    show_progress,
)

if TYPE_CHECKING:
    from ..inference import Predictions
    from ..training import Embeddings, FinetuneSettings, LinearProbe


def probe(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder; its encoder is used, a head is not.")],
    store: StoreArgument,
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder for the classifier.")],
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="A,B", help="Default: all label columns of the store."),
    ] = None,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="Split that heads are fitted on.")] = "train",
    valid_split: Annotated[
        str,
        typer.Option(
            "--valid-split",
            metavar="NAME",
            help="Split for the printed figures, calibration and thresholds; `none` does without.",
        ),
    ] = "valid",
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
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Seed of the folds.")] = 0,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="DIR", help="Keep embeddings here, so that the next heads take seconds."),
    ] = None,
    batch_size: BatchSizeOption = 16,
    num_workers: NumWorkersOption = 0,
    precision: PrecisionOption = "float32",
) -> int:
    """
    Fit a linear classifier on a frozen encoder's embeddings, in seconds.

    Exit status: 0 done, 1 the output cannot be written, 2 usage.
    """
    started = time.monotonic()
    chosen = parse_names(labels, "--labels")
    if valid_split == split:
        raise SettingsError(f"--valid-split must be another one than --split, found: {split} twice")
    from ..data.leakage import check_guard, check_splits, write_guard
    from ..data.store import load_prepared
    from ..model_folder import load_feature_extractor, load_model, save_model_folder
    from ..modeling_ecgfm import ECGFMModel
    from ..provenance import add_step
    from ..training import FinetuneSettings, embed_split, fit_linear_probe
    from ..utils.precision import keep_freed_memory

    # The rules for thresholds and calibration are those of fine-tuning.
    settings = FinetuneSettings(thresholds=thresholds, calibration=calibration, min_cases=min_cases)
    keep_freed_memory()
    with quiet_libraries(datasets_too=True):
        encoder = load_model(model, ECGFMModel)
        extractor = load_feature_extractor(model, config=encoder.config)
        check_guard(model)
        before = time.perf_counter()
        validates = valid_split != "none"
        splits = {name: load_prepared(store, name) for name in ([split, valid_split] if validates else [split])}
        check_splits(splits)
        train, *others = [
            embed_split(
                encoder,
                extractor,
                rows,
                chosen,
                batch_size=batch_size,
                num_workers=num_workers,
                precision=precision,
                cache_dir=cache,
                progress=show_progress(),
            )
            for rows in splits.values()
        ]
        valid = others[0] if others else None
        embedded = time.perf_counter()
        segments = len(train.values) + (0 if valid is None else len(valid.values))
        print(f"embedded    {segments:,} segments in {embedded - before:.1f} s")
        fitted = fit_linear_probe(
            encoder,
            train,
            problem_type="regression" if regression else "multi_label_classification",
            folds=folds,
            seed=seed,
        )
        print(
            f"fitted      {len(fitted.strengths)} labels on {len(train):,} recordings of {split} in "
            f"{time.perf_counter() - embedded:.1f} s"
        )
        for name, text in fitted.notes.items():
            print(f"note        {name}: {text}")
        if valid is None:
            print("no validation split: no calibration, no thresholds, and no figure")
        else:
            if not regression:
                _fit_operating_points(fitted, valid, settings)
            _print_figures(fitted, fitted.predict(valid), valid_split)
        # Before the weights: there must be no model without a note of what it has seen.
        used = ((), ()) if valid is None else (valid.recording_ids, valid.patient_ids)
        write_guard(output, (train.recording_ids, train.patient_ids), used, began_from=model)
        save_model_folder(fitted.model, extractor, output)
        chosen_settings = {
            "thresholds": thresholds,
            "calibration": calibration,
            "min_cases": min_cases,
            "folds": folds,
            "seed": seed,
            "precision": precision,
        }
        record = _provenance(fitted, train, valid, chosen_settings, round(time.monotonic() - started))
        add_step(output, "linear probe", record, began_from=model)
    print(f"model       {output}, for `ecgfm predict` and `ecgfm evaluate`")
    return 0


def _provenance(
    probe: "LinearProbe",
    train: "Embeddings",
    valid: "Embeddings | None",
    settings: dict[str, Any],
    seconds: int,
) -> dict[str, Any]:
    """Return this step's entry of `provenance.json`."""
    from ..provenance import hardware, versions
    from ..training.data_summary import summarize_data, summarize_recordings

    config = probe.model.config
    splits = {}
    for name, found in (("train", train), ("valid", valid)):
        if found is not None:
            targets = found.labels[:, [found.label_names.index(label) for label in config.label_names]]
            splits[name] = summarize_recordings(
                found.patient_ids, config.label_names, targets, config.problem_type or ""
            )
    return {
        "data": summarize_data(splits),
        "strengths": probe.strengths,
        "settings": settings,
        "seconds": seconds,
        "hardware": hardware(probe.model.device),
        "versions": versions("torch", "transformers", "scikit-learn"),
    }


def _fit_operating_points(probe: "LinearProbe", valid: "Embeddings", settings: "FinetuneSettings") -> None:
    """Fit calibration and thresholds on the validation split and put them into the model's config."""
    from ..training.operating_points import fit_operating_points

    found = probe.predict(valid)
    points = fit_operating_points(found.label_names, found.labels, found.scores, None, settings)
    probe.model.config.label_calibration = points.calibration or None
    probe.model.config.label_thresholds = points.thresholds or None
    for note in points.notes:
        print(f"note        {note}")


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
