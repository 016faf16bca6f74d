"""`ecgfm probe`: its arguments, and what it prints."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.name_lists import names
from .options import add_precision_argument

if TYPE_CHECKING:
    from ..inference.predictions import Predictions
    from ..training.linear_probe import Embeddings, LinearProbe


def add_probe_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `ecgfm probe`."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="model folder; its encoder is used, a head is not")
    parser.add_argument("store", metavar="STORE", type=Path, help="folder that `ecgfm prepare` wrote")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="folder for the classifier")
    parser.add_argument("--labels", metavar="A,B", type=names, help="default: all label columns of the store")
    parser.add_argument("--split", metavar="NAME", default="train", help="to fit heads on (default: train)")
    parser.add_argument(
        "--valid-split",
        metavar="NAME",
        default="valid",
        help="for the figures printed, calibration and thresholds; `none` does without (default: valid)",
    )
    parser.add_argument("--regression", action="store_true", help="the labels are values, not classes")
    parser.add_argument(
        "--thresholds",
        metavar="HOW",
        default="youden",
        help="fitted on the validation split: youden, f1, sensitivity:0.9 (for example) or none (default: youden)",
    )
    parser.add_argument(
        "--calibration",
        choices=("platt", "temperature", "none"),
        default="platt",
        help="fitted on the validation split (default: platt)",
    )
    parser.add_argument(
        "--min-cases",
        metavar="N",
        type=int,
        default=5,
        help="a label with fewer positives or negatives in the validation split gets neither (default: 5)",
    )
    parser.add_argument("--folds", metavar="N", type=int, default=5, help="of the cross-validation (default: 5)")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of the folds (default: 0)")
    parser.add_argument(
        "--cache", metavar="DIR", type=Path, help="keep embeddings here, so that the next heads take seconds"
    )
    parser.add_argument("--batch-size", metavar="N", type=int, default=16, help="segments run together (default: 16)")
    parser.add_argument("--num-workers", metavar="N", type=int, default=0, help="processes that read (default: 0)")
    add_precision_argument(parser, default="float32")


def run_probe(args: argparse.Namespace) -> int:
    """
    Runs `ecgfm probe`.

    Returns:
        `int`: 0 done, 1 the output cannot be written, 2 usage.
    """
    from ..data.leakage import write_guard
    from ..utils.errors import ECGFMError

    started = time.monotonic()
    try:
        probe, extractor, train, valid = _probe(args)
    except (ECGFMError, FileNotFoundError) as error:
        print(f"ecgfm probe: {error}", file=sys.stderr)
        return 2
    try:
        from ..model_folder import save_model_folder
        from ..provenance import add_step

        # Before the weights: there must be no model without a note of what it has seen.
        used = ((), ()) if valid is None else (valid.recording_ids, valid.patient_ids)
        write_guard(args.output, (train.recording_ids, train.patient_ids), used, began_from=args.model)
        save_model_folder(probe.model, extractor, args.output)
        facts = _facts(args, probe, train, valid, round(time.monotonic() - started))
        add_step(args.output, "linear probe", facts, began_from=args.model)
    except OSError as error:  # no space, no permission
        print(f"ecgfm probe: {error}", file=sys.stderr)
        return 1
    print(f"model       {args.output}, for `ecgfm predict` and `ecgfm evaluate`")
    return 0


def _probe(args: argparse.Namespace) -> "tuple[LinearProbe, Any, Embeddings, Embeddings | None]":
    from ..data.leakage import check_guard, check_splits
    from ..data.store import load_prepared
    from ..training.linear_probe import LinearProbeError, embed_split, fit_linear_probe
    from ..training.settings import FinetuneSettings
    from ..utils.precision import keep_freed_memory

    # Its rules for thresholds and calibration are those of fine-tuning.
    settings = FinetuneSettings(thresholds=args.thresholds, calibration=args.calibration, min_cases=args.min_cases)
    validates = args.valid_split != "none"
    if validates and args.valid_split == args.split:
        raise LinearProbeError(f"--valid-split must be another one than --split, found: {args.split} twice")
    keep_freed_memory()
    encoder, extractor = _load(args.model)
    try:
        check_guard(args.model)
    except ValueError as error:
        raise LinearProbeError(str(error)) from None
    started = time.perf_counter()

    splits = {args.split: load_prepared(args.store, args.split)}
    if validates:
        splits[args.valid_split] = load_prepared(args.store, args.valid_split)
    check_splits(splits)

    def embed(split: str) -> "Embeddings":
        return embed_split(
            encoder,
            extractor,
            splits[split],
            args.labels,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            precision=args.precision,
            cache_dir=args.cache,
            progress=sys.stderr.isatty(),
        )

    train = embed(args.split)
    valid = embed(args.valid_split) if validates else None
    embedded = time.perf_counter()
    segments = len(train.values) + (0 if valid is None else len(valid.values))
    print(f"embedded    {segments:,} segments in {embedded - started:.1f} s")
    probe = fit_linear_probe(
        encoder,
        train,
        problem_type="regression" if args.regression else "multi_label_classification",
        folds=args.folds,
        seed=args.seed,
    )
    print(
        f"fitted      {len(probe.strengths)} labels on {len(train):,} recordings of {args.split} in "
        f"{time.perf_counter() - embedded:.1f} s"
    )
    for note in (f"{name}: {text}" for name, text in probe.notes.items()):
        print(f"note        {note}")
    if valid is None:
        print("no validation split: no calibration, no thresholds, and no figure")
    else:
        if not args.regression:
            _decide(probe, valid, settings)
        _print_figures(probe, probe.predict(valid), args.valid_split)
    return probe, extractor, train, valid


def _facts(
    args: argparse.Namespace, probe: "LinearProbe", train: "Embeddings", valid: "Embeddings | None", seconds: int
) -> dict[str, Any]:
    """For `provenance.json`."""
    from ..provenance import hardware, select_settings, versions
    from ..training.data_summary import summarize_data, summarize_recordings

    config = probe.model.config
    splits = {}
    for name, found in (("train", train), ("valid", valid)):
        if found is not None:
            targets = found.labels[:, [found.label_names.index(label) for label in config.label_names]]
            splits[name] = summarize_recordings(found.patient_ids, config.label_names, targets, config.problem_type)
    return {
        "data": summarize_data(splits),
        "strengths": probe.strengths,
        "settings": select_settings(
            vars(args), ("thresholds", "calibration", "min_cases", "folds", "seed", "precision")
        ),
        "seconds": seconds,
        "hardware": hardware(probe.model.device),
        "versions": versions("torch", "transformers", "scikit-learn"),
    }


def _load(folder: Path) -> tuple[Any, Any]:
    """Load the encoder and the feature extractor of a model folder."""
    import transformers

    from ..model_folder import load_feature_extractor, load_model
    from ..modeling_ecgfm import ECGFMModel

    transformers.logging.set_verbosity_error()
    model = load_model(folder, ECGFMModel)
    return model, load_feature_extractor(folder, config=model.config)


def _decide(probe: "LinearProbe", valid: "Embeddings", settings: Any) -> None:
    """Calibration and thresholds of the validation split for the model's config."""
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
    missing = f", {left_out} labels left out (undefined)" if left_out else ""
    print(f"{split:<11} macro {called} {mean:.3f} on {len(found):,} recordings{missing}")


__all__ = ["add_probe_arguments", "run_probe"]
