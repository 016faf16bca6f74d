"""`ecgfm convert`."""

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from ..utils.errors import SettingsError
from .options import failing_with, parse_names, quiet_libraries
from .outputs import Reads, Writes

if TYPE_CHECKING:
    from ..fairseq import ConversionReport, ExportReport
    from ..modeling_ecgfm import ECGFMPreTrainedModel

# As in the feature extractor, which help must not import; tests/test_cli.py compares them.
Standardize = Literal["recording", "all_leads", "none"]


def convert(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="fairseq-signals checkpoint (.pt), or its address on the Hub (hf://OWNER/NAME/FILE); with "
            "--to-fairseq the model folder (DIR).",
        ),
        Reads(),
    ],
    output_dir: Annotated[
        Path,
        typer.Argument(
            metavar="OUT_DIR", help="Folder to write, new or empty; with --to-fairseq the file to write (OUT.pt)."
        ),
        Writes(),
    ],
    to_fairseq: Annotated[
        bool,
        typer.Option(
            "--to-fairseq",
            help="Convert the other way: ecgfm convert --to-fairseq DIR OUT.pt writes a model folder as a checkpoint.",
        ),
    ] = False,
    old_weight_norm: Annotated[
        bool,
        typer.Option("--old-weight-norm", help="With --to-fairseq: names for fairseq-signals from before 2025-01-20."),
    ] = False,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="LABELS",
            help="Labels of a classifier in order: mimic17, physionet26, a file (CSV with a column 'name' and "
            "optionally 'threshold', or one name a line), or \"A,B,...\". Published checkpoints have their own.",
        ),
        Reads(),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option("--heads", metavar="N", help="Number of attention heads, where the file does not contain it."),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            "--like", metavar="PRETRAINED.pt", help="Pretrained checkpoint that a fine-tuned one started from."
        ),
        Reads(),
    ] = None,
    lead_names: Annotated[
        str | None,
        typer.Option(
            "--leads", metavar="I,II,...", help="Names of the model's leads in order, where it takes fewer than 12."
        ),
    ] = None,
    sampling_rate: Annotated[
        float | None,
        typer.Option(
            "--sampling-rate", metavar="HZ", help="Of the model's input in Hz, where the file does not contain it."
        ),
    ] = None,
    segment_seconds: Annotated[
        float | None,
        typer.Option("--segment-seconds", metavar="S", help="Length of the model's input, likewise."),
    ] = None,
    standardize: Annotated[
        Standardize | None,
        typer.Option(
            help="Likewise: each lead over the whole recording, all_leads together, or none (the model takes mV)."
        ),
    ] = None,
    keep_leads: Annotated[
        str | None,
        typer.Option(
            "--keep-leads",
            metavar="II,...",
            help="Cut the model to these leads: as if the others were 0.",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare the written model with the source's weights, evaluated independently."),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace OUT_DIR if it is an ECG-FM model folder, OUT.pt if it is a checkpoint."
        ),
    ] = False,
    card: Annotated[
        str | None,
        typer.Option(
            "--card",
            metavar="NAME",
            help="The file is the published checkpoint of this name: write its model card as README.md (`ecgfm card "
            "--list` names them).",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything, but write no output.")] = False,
) -> int:
    """
    Turn a fairseq-signals checkpoint into a model folder.

    Exit status: 0 converted, 1 the model cannot be converted or verification failed, 2 usage.
    """
    if to_fairseq:
        others: dict[str, object] = {
            "--labels": labels,
            "--heads": heads,
            "--like": like,
            "--leads": lead_names,
            "--card": card,
        }
        others |= {"--sampling-rate": sampling_rate, "--segment-seconds": segment_seconds, "--standardize": standardize}
        others |= {"--keep-leads": keep_leads}
        if given := [name for name, value in others.items() if value is not None]:
            raise SettingsError(
                f"{', '.join(given)} cannot be used with --to-fairseq: a model folder holds all of this"
            )
    elif old_weight_norm:
        raise SettingsError("--old-weight-norm is for --to-fairseq; a checkpoint's own names are recognised")
    with quiet_libraries():
        from ..fairseq import CheckpointError, convert_checkpoint, export_fairseq_checkpoint
        from ..fairseq.published import UnknownInputError
        from ..model_folder import ModelFolderError, ModelNotFoundError

        with failing_with(1, CheckpointError, ModelFolderError), failing_with(2, ModelNotFoundError):
            if to_fairseq:
                exported = export_fairseq_checkpoint(
                    checkpoint,
                    output_dir,
                    old_weight_norm=old_weight_norm,
                    verify=verify,
                    overwrite=overwrite,
                    dry_run=dry_run,
                )
                notes, text = exported.warnings, _export_summary(exported)
            else:
                convert_with = functools.partial(
                    convert_checkpoint,
                    checkpoint,
                    output_dir,
                    labels=labels,
                    heads=heads,
                    like=like,
                    lead_names=parse_names(lead_names, "--leads"),
                    keep_leads=parse_names(keep_leads, "--keep-leads"),
                    verify=verify,
                    overwrite=overwrite,
                    dry_run=dry_run,
                    card=None if card is None else lambda facts, model: _card(card, facts, model),
                    published=card,
                )
                stated: dict[str, Any] = {"sampling_rate": sampling_rate, "segment_seconds": segment_seconds}
                stated["standardize"] = standardize
                try:
                    converted = convert_with(**stated)
                except UnknownInputError as error:
                    if not (sys.stdin.isatty() and sys.stderr.isatty()):
                        raise
                    print(f"{error}\n", file=sys.stderr)
                    converted = convert_with(**stated | {name: _ask(name) for name in error.missing})
                notes, text = converted.warnings, _summary(converted)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    print(text)
    return 0


def _ask(name: str) -> float | str:
    """Ask for what the file does not contain. There is no default: an empty answer must not decide."""
    if name == "standardize":
        return typer.prompt(f"standardize ({', '.join(get_args(Standardize))})", err=True)
    unit = {"sampling_rate": "Hz", "segment_seconds": "s"}[name]
    return typer.prompt(f"{name} ({unit})", type=float, err=True)


def _card(name: str, facts: Mapping[str, Any], model: "ECGFMPreTrainedModel") -> str:
    """Return the published checkpoint's card, with what conversion found; `fairseq` may not import `hub` itself."""
    from ..hub.cards import converted_card

    return converted_card(name, facts, model)


def _summary(report: "ConversionReport") -> str:
    config = report.config
    rows = [
        ("model", report.model_class),
        (
            "encoder",
            f"{config.num_hidden_layers} layers of width {config.hidden_size}, {config.num_attention_heads} heads, "
            f"{'pre' if config.do_stable_layer_norm else 'post'}-norm",
        ),
        ("leads", " ".join(report.lead_names)),
        ("input", ", ".join(f"{name} {value}" for name, value in report.input_settings.items())),
        ("parameters", f"{report.num_parameters:,}"),
        ("updates", "not in the file" if report.num_updates is None else f"{report.num_updates:,}"),
        ("training state", f"none: {report.training}"),
    ]
    if not isinstance(report.training, str):
        state, counters = report.training, report.training.counters
        position = f"update {counters.update:,}, epoch {counters.epoch + 1}, moments of {len(state.moments)} tensors"
        settings = [f"resume_from_checkpoint={report.output_dir}"]
        settings += [f"{name}={value}" for name, value in state.settings.items()]
        rows[-1:] = [("training state", position), ("to continue", " ".join(["ecgfm pretrain ...", *settings]))]
    if report.published is not None:
        rows.insert(0, ("recognised", f"{report.published}, by its name and number of labels"))
    if "classifier" in report.parameters:
        rows.append(("labels", f"{config.num_labels}: {', '.join(config.label_names)}"))
        rows.append(("pos_weight", "none" if config.pos_weight is None else "carried over"))
    if report.differences is not None:
        rows.append(("tensors", "bit-equal to the source's"))
    return _table(rows, report, report.output_dir)


def _export_summary(report: "ExportReport") -> str:
    rows = [
        ("model", report.model_class),
        ("leads", " ".join(report.lead_names)),
        ("parameters", f"{report.num_parameters:,}"),
        ("updates", "unknown, 0 was written" if report.num_updates is None else f"{report.num_updates:,}"),
        ("tensors", f"{report.num_tensors}, read back bit-equal"),
        ("training state", "moments and counters written" if report.has_training_state else "none written"),
        ("settings", "read back equal, except those listed as lost" if report.lost_settings else "read back equal"),
    ]
    rows.extend((f"lost: {name}", _shortened(value)) for name, value in report.lost_settings.items())
    return _table(rows, report, report.output)


def _shortened(value: object) -> str:
    text = ", ".join(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else str(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _table(rows: list[tuple[str, str]], report: "ConversionReport | ExportReport", destination: Path | None) -> str:
    """Return rows as a table, with the verification's figures and the destination at the end."""
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
