"""The command line: argument parsing and printing, nothing else."""

import argparse
import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ecgfm`, with one subparser a command."""
    parser = argparse.ArgumentParser(
        prog="ecgfm", description="ECG-FM, the open foundation model for the 12-lead electrocardiogram."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_inference(commands)
    _add_convert(commands)
    _add_export_onnx(commands)
    _add_data(commands)
    _add_synthesize(commands)
    _add_label(commands)
    _add_training(commands)
    _add_evaluate(commands)
    _add_app(commands)
    _add_hub(commands)
    _add_card(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 all went well, 1 some failed, 2 usage."""
    try:
        parser = build_parser()
        options = parser.parse_args(arguments)
        if options.version:
            from importlib.metadata import version

            print(f"ecgfm-hf {version('ecgfm-hf')}")
            return 0
        if options.command is None:
            parser.print_help(sys.stderr)
            return 2
        with _quiet_libraries():
            status = options.run(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("ecgfm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (such as `head`) has left; Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"ecgfm: {error}", file=sys.stderr)
        return 2


# ----------------------------------------------------------------------------------------------------------------------
# ecgfm predict, embed, embed-map
# ----------------------------------------------------------------------------------------------------------------------


def _add_inference(commands: Any) -> None:
    from .plot_options import add_plot_arguments, pages
    from .predict import (
        EXIT_STATUS,
        READS,
        add_embed_arguments,
        add_embed_map_arguments,
        add_predict_arguments,
        run_embed,
        run_embed_map,
        run_predict,
    )

    parser = commands.add_parser(
        "predict",
        help="score recordings with a classifier",
        description=f"Scores each recording: one answer a recording. {READS}",
        epilog=EXIT_STATUS,
    )
    add_predict_arguments(parser)
    add_plot_arguments(parser)
    parser.set_defaults(run=functools.partial(run_predict, pages=pages))
    parser = commands.add_parser(
        "embed",
        help="turn recordings into vectors",
        description=f"Writes an embedding for each recording, or for each of its segments. {READS}",
        epilog=EXIT_STATUS,
    )
    add_embed_arguments(parser)
    parser.set_defaults(run=run_embed)
    parser = commands.add_parser("embed-map", help="show embeddings in a plane, coloured by a label")
    add_embed_map_arguments(parser)
    parser.set_defaults(run=run_embed_map)


# ----------------------------------------------------------------------------------------------------------------------
# ecgfm convert
# ----------------------------------------------------------------------------------------------------------------------


def _add_convert(commands: Any) -> None:
    from .convert import add_convert_arguments, run_convert

    parser = commands.add_parser("convert", help="turn a fairseq-signals checkpoint into a model folder")
    add_convert_arguments(parser)

    from .card import card_of_converted

    parser.set_defaults(run=functools.partial(run_convert, card=card_of_converted))


def _add_export_onnx(commands: Any) -> None:
    from .export_onnx import add_export_onnx_arguments, run_export_onnx

    parser = commands.add_parser(
        "export-onnx",
        help="write a classifier as an ONNX file, checked against torch",
        description="Writes model.onnx with labels, aggregation and preprocessing settings beside it (needs "
        "ecgfm-hf[onnx]). Takes any number of segments of any length.",
        epilog="Exit status: 0 written, 1 the model cannot be exported or the outputs differ, 2 usage.",
    )
    add_export_onnx_arguments(parser)
    parser.set_defaults(run=run_export_onnx)


# ----------------------------------------------------------------------------------------------------------------------
# ecgfm synthesize
# ----------------------------------------------------------------------------------------------------------------------


def _add_data(commands: Any) -> None:
    from .prepare import add_prepare_arguments, add_split_arguments, run_prepare, run_split

    parser = commands.add_parser(
        "prepare",
        help="turn a dataset's files into a store that training reads",
        description="One row a recording, samples as they came, in Parquet files by split, with an account of what was "
        "left out. Run again after an interruption, it goes on where it was.",
        epilog="Exit status: 0 done (the table says what was left out), 1 cannot be written, 2 usage.",
    )
    add_prepare_arguments(parser)
    parser.set_defaults(run=run_prepare)
    parser = commands.add_parser("split", help="split a store anew")
    add_split_arguments(parser)
    parser.set_defaults(run=run_split)

    from .export_fairseq import add_export_arguments, run_export

    parser = commands.add_parser("export-fairseq", help="write a store as fairseq-signals' processed folder")
    add_export_arguments(parser)
    parser.set_defaults(run=run_export)


def _add_training(commands: Any) -> None:
    from .finetune import add_finetune_arguments, run_finetune
    from .pretrain import add_pretrain_arguments, run_pretrain
    from .probe import add_probe_arguments, run_probe

    parser = commands.add_parser("pretrain", help="pretrain with W2V + CMSC + RLM on a store")
    add_pretrain_arguments(parser)
    parser.set_defaults(run=run_pretrain)
    parser = commands.add_parser("finetune", help="train a classifier on a labelled store")
    add_finetune_arguments(parser)
    parser.set_defaults(run=run_finetune)
    parser = commands.add_parser("probe", help="fit a linear classifier on a frozen encoder's embeddings, in seconds")
    add_probe_arguments(parser)
    parser.set_defaults(run=run_probe)


def _add_evaluate(commands: Any) -> None:
    from .evaluate import add_evaluate_arguments, run_evaluate

    parser = commands.add_parser(
        "evaluate",
        help="measure a classifier on a split: predictions, metrics with intervals, report",
        epilog="Exit status: 0 evaluated, 1 the results cannot be written, 2 usage.",
    )
    add_evaluate_arguments(parser)
    parser.set_defaults(run=run_evaluate)


def _add_app(commands: Any) -> None:
    from .app import DESCRIPTION, EXIT_STATUS, add_app_arguments, run_app

    parser = commands.add_parser(
        "app",
        help="serve a page where a recording can be dropped",
        description=DESCRIPTION,
        epilog=EXIT_STATUS,
    )
    add_app_arguments(parser)
    parser.set_defaults(run=run_app)


def _add_hub(commands: Any) -> None:
    from .push import EXIT_STATUS, add_push_arguments, run_push

    parser = commands.add_parser(
        "push",
        help="publish a model folder on the Hugging Face Hub",
        description="Weights, config, feature extractor, pipeline, code, licence and card go, in one commit; data, "
        "checkpoints and logs never do. Paths and names of this machine in them are an error.",
        epilog=EXIT_STATUS,
    )
    add_push_arguments(parser)
    parser.set_defaults(run=run_push)


def _add_card(commands: Any) -> None:
    from .card import EXIT_STATUS, add_card_arguments, run_card

    parser = commands.add_parser("card", help="write a model's card", epilog=EXIT_STATUS)
    add_card_arguments(parser)
    parser.set_defaults(run=run_card)


def _add_synthesize(commands: Any) -> None:
    from .synthesize import add_synthesize_arguments, run_synthesize

    parser = commands.add_parser("synthesize", help="write a synthetic, labelled cohort as WFDB")
    add_synthesize_arguments(parser)
    parser.set_defaults(run=run_synthesize)


def _add_label(commands: Any) -> None:
    from .label import add_label_arguments, run_label

    parser = commands.add_parser("label", help="turn free-text reports into labels")
    add_label_arguments(parser)
    parser.set_defaults(run=run_label)


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keeps libraries' progress bars and advice out of what a command prints; their errors still come through."""
    from transformers.utils import logging

    verbosity, progress_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        # A caller of `main` in Python gets its own settings back.
        logging.set_verbosity(verbosity)
        if progress_bar:
            logging.enable_progress_bar()
