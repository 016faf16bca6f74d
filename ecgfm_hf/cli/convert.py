"""`ecgfm convert`: its arguments, and what it prints."""

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..fairseq.checkpoint import CheckpointError
from ..fairseq.convert import ConversionReport, convert_checkpoint
from ..fairseq.export_checkpoint import ExportReport, export_fairseq_checkpoint
from ..model_folder import ModelFolderError, ModelNotFoundError
from ..utils.errors import InputNotFoundError, OutputExistsError, SettingsError


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `ecgfm convert`."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        type=Path,
        help="fairseq-signals checkpoint (.pt); with --to-fairseq the model folder (DIR)",
    )
    parser.add_argument(
        "output_dir",
        metavar="OUT_DIR",
        type=Path,
        help="folder to write, new or empty; with --to-fairseq the file to write (OUT.pt)",
    )
    parser.add_argument(
        "--to-fairseq",
        action="store_true",
        help="the other way: ecgfm convert --to-fairseq DIR OUT.pt writes a model folder as a checkpoint",
    )
    parser.add_argument(
        "--old-weight-norm",
        action="store_true",
        help="with --to-fairseq: names for fairseq-signals from before 2025-01-20",
    )
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
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace OUT_DIR if it is an ECG-FM model folder, OUT.pt if it is a checkpoint",
    )
    parser.add_argument(
        "--card",
        metavar="NAME",
        help="the file is the published checkpoint of this name: write its model card as README.md "
        "(`ecgfm card --list` names them)",
    )
    parser.add_argument("--dry-run", action="store_true", help="do everything, but keep nothing")


def run_convert(args: argparse.Namespace, card: Callable[[str, Mapping[str, Any], Any], str] | None = None) -> int:
    """
    Runs `ecgfm convert`.

    Args:
        args (`argparse.Namespace`)
        card (callable, *optional*): `(name, facts, model) -> text` for `--card`, of a room that this one does not know.

    Returns:
        `int`: 0 converted, 1 the model cannot be converted or verification failed, 2 usage.
    """
    try:
        _check_together(args)
        report = _export(args) if args.to_fairseq else _convert(args, card)
    except (ModelNotFoundError, SettingsError, InputNotFoundError, OutputExistsError) as error:
        print(f"ecgfm convert: {error}", file=sys.stderr)
        return 2
    except (CheckpointError, ModelFolderError) as error:
        print(f"ecgfm convert: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"ecgfm convert: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # no space, no permission
        print(f"ecgfm convert: {error}", file=sys.stderr)
        return 1
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(_export_summary(report) if args.to_fairseq else _summary(report))
    return 0


def _check_together(args: argparse.Namespace) -> None:
    if args.to_fairseq:
        if given := [name for name in ("labels", "heads", "like", "leads", "card") if getattr(args, name) is not None]:
            options = ", ".join(f"--{name}" for name in given)
            raise ValueError(f"{options} cannot be used with --to-fairseq: a model folder says all of it")
    elif args.old_weight_norm:
        raise ValueError("--old-weight-norm is for --to-fairseq; a checkpoint's own names are recognised")


def _convert(args: argparse.Namespace, card: Callable[[str, Mapping[str, Any], Any], str] | None) -> ConversionReport:
    return convert_checkpoint(
        args.checkpoint,
        args.output_dir,
        labels=args.labels,
        heads=args.heads,
        like=args.like,
        lead_names=None if args.leads is None else [name.strip() for name in args.leads.split(",")],
        verify=args.verify,
        overwrite=args.overwrite,
        dry_run=args.dry_run,
        card=None if card is None or args.card is None else partial(card, args.card),
        published=args.card,
    )


def _export(args: argparse.Namespace) -> ExportReport:
    return export_fairseq_checkpoint(
        args.checkpoint,
        args.output_dir,
        old_weight_norm=args.old_weight_norm,
        verify=args.verify,
        overwrite=args.overwrite,
        dry_run=args.dry_run,
    )


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
        ("updates", "not in the file" if report.num_updates is None else f"{report.num_updates:,}"),
    ]
    if "classifier" in report.parameters:
        rows.append(("labels", f"{config.num_labels}: {', '.join(config.label_names)}"))
        rows.append(("pos_weight", "none" if config.pos_weight is None else "carried over"))
    if report.differences is not None:
        rows.append(("tensors", "bit-equal to the source's"))
    return _table(rows, report)


def _export_summary(report: ExportReport) -> str:
    rows = [
        ("model", report.model_class),
        ("leads", " ".join(report.lead_names)),
        ("parameters", f"{report.num_parameters:,}"),
        ("updates", "unknown, 0 was written" if report.num_updates is None else f"{report.num_updates:,}"),
        ("tensors", f"{report.num_tensors}, read back bit-equal"),
        ("settings", "read back equal, except those listed as lost" if report.lost_settings else "read back equal"),
    ]
    rows.extend((f"lost: {name}", _shortened(value)) for name, value in report.lost_settings.items())
    return _table(rows, report)


def _shortened(value: Any) -> str:
    text = ", ".join(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else str(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _table(rows: list[tuple[str, str]], report: ConversionReport | ExportReport) -> str:
    """What was written, with the verification's figures and the destination, which every report has, at the end."""
    destination = report.output if isinstance(report, ExportReport) else report.output_dir
    rows = [
        *rows,
        *(
            (f"difference, {name}", f"{value:.2e} of the largest value")
            for name, value in (report.differences or {}).items()
        ),
        ("written to", "nothing (dry run)" if destination is None else str(destination)),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
