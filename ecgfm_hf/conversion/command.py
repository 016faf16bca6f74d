"""`ecgfm convert`: its arguments, and what it prints."""

import argparse
import sys
from pathlib import Path

from .convert import ConversionReport, convert_checkpoint
from .labels import LabelError
from .loading import CheckpointError
from .verify import VerificationError


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `ecgfm convert`."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="fairseq-signals checkpoint (.pt)")
    parser.add_argument("output_dir", metavar="OUT_DIR", type=Path, help="folder to write; must be new or empty")
    parser.add_argument(
        "--labels",
        metavar="LABELS",
        help="labels of a classifier in order: mimic17, physionet26, a file (CSV with a column 'name', or one name a "
        'line), or "A,B,..."',
    )
    parser.add_argument("--heads", metavar="N", type=int, help="attention heads, where the file cannot tell")
    parser.add_argument(
        "--like", metavar="PRETRAINED.pt", type=Path, help="pretrained checkpoint that a fine-tuned one began from"
    )
    parser.add_argument(
        "--leads", metavar="I,II,...", help="names of the model's leads in order, where it takes fewer than 12"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the written model with the source's weights, evaluated independently",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT_DIR if it is an ECG-FM model folder")
    parser.add_argument("--dry-run", action="store_true", help="do everything, but keep no folder")


def run_convert(args: argparse.Namespace) -> int:
    """
    Runs `ecgfm convert`.

    Returns:
        `int`: 0 converted, 1 the checkpoint cannot be converted or verification failed, 2 usage.
    """
    try:
        report = convert_checkpoint(
            args.checkpoint,
            args.output_dir,
            labels=args.labels,
            heads=args.heads,
            like=args.like,
            lead_names=None if args.leads is None else [name.strip() for name in args.leads.split(",")],
            verify=args.verify,
            overwrite=args.overwrite,
            dry_run=args.dry_run,
        )
    except (CheckpointError, VerificationError) as error:
        print(f"ecgfm convert: {error}", file=sys.stderr)
        return 1
    except (LabelError, FileNotFoundError, FileExistsError, ValueError) as error:
        print(f"ecgfm convert: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # no space, no permission
        print(f"ecgfm convert: {error}", file=sys.stderr)
        return 1
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(_summary(report))
    return 0


def _summary(report: ConversionReport) -> str:
    config = report.config
    rows = [
        ("model", report.model_class),
        (
            "encoder",
            f"{config.num_hidden_layers} layers of width {config.hidden_size}, {config.num_attention_heads} heads, "
            f"{'pre' if config.do_stable_layer_norm else 'post'}-norm",
        ),
        ("leads", " ".join(report.lead_names)),
        ("parameters", f"{report.num_parameters:,}"),
    ]
    if "classifier" in report.parameters:
        rows.append(("labels", f"{config.num_labels}: {', '.join(config.label_names)}"))
        rows.append(("pos_weight", "none" if config.pos_weight is None else "carried over"))
    if report.differences is not None:
        rows.append(("tensors", "bit-equal to the source's"))
        rows.extend(
            (f"difference, {name}", f"{value:.2e} of the largest value") for name, value in report.differences.items()
        )
    rows.append(("written to", "nothing (dry run)" if report.output_dir is None else str(report.output_dir)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
