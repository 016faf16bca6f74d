"""The command line: argument parsing and printing, nothing else."""

import argparse
import contextlib
import csv
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

UNCALIBRATED = "score, uncalibrated; not for clinical use"
CALIBRATED = "calibrated; not for clinical use"


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ecgfm`, with one subparser a command."""
    parser = argparse.ArgumentParser(
        prog="ecgfm", description="ECG-FM, the open foundation model for the 12-lead electrocardiogram."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_predict(commands)
    _add_convert(commands)
    _add_data(commands)
    _add_synthesize(commands)
    _add_label(commands)
    _add_pretrain(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 all went well, 1 some failed, 2 usage."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.version:
        from importlib.metadata import version

        print(f"ecgfm-hf {version('ecgfm-hf')}")
        return 0
    if options.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
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
# ecgfm predict
# ----------------------------------------------------------------------------------------------------------------------


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="score recordings with a classifier",
        description="Scores each recording: one answer a file. Reads WFDB (.hea with .dat or .mat) and DICOM; with "
        "ecgfm-hf[formats] installed also EDF, MUSE XML, Sierra XML, aECG, SCP-ECG and CODE-15's HDF5; with the "
        "options for files that do not say everything, CSV, TSV, .npy and fairseq-signals .mat.",
        epilog="Exit status: 0 all answered, 1 some failed, 2 usage.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="recordings: .hea or record name, DICOM file, ...")
    parser.add_argument("--model", required=True, metavar="DIR", help="folder or Hub repository of a classifier")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table", help="default: table")
    parser.add_argument("--output", metavar="PATH", help="write there instead of standard output")
    parser.add_argument("--batch-size", type=_positive, default=8, metavar="N", help="segments together (default: 8)")
    parser.add_argument("--device", default="cpu", help="such as cpu or cuda:0 (default: cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    lacking = parser.add_argument_group("what some formats do not say; files that say it themselves are not touched")
    lacking.add_argument("--sampling-rate", type=float, metavar="HZ", help="of CSV, TSV and .npy")
    lacking.add_argument("--units", metavar="UNIT", help="of CSV, TSV, .npy and .mat, such as mV; CODE-15: default mV")
    lacking.add_argument("--lead-names", metavar="I,II,...", help="of .npy: one a row; of CSV and TSV: which columns")
    lacking.add_argument("--exam-id", type=int, metavar="N", help="of CODE-15's HDF5: which exam")
    parser.add_argument("--missing-leads", choices=("error", "zero", "derive"), help="default: error")
    parser.add_argument("--nan-samples", choices=("error", "zero", "interpolate"), help="default: error")
    parser.add_argument("--constant-leads", choices=("error", "zero"), help="default: zero")
    parser.add_argument("--short-recordings", choices=("error", "pad"), help="under a segment; default: error")
    parser.set_defaults(run=_predict)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, found: {text}")
    return int(text)


def _predict(options: argparse.Namespace) -> int:
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from tqdm import tqdm

    from .memory import keep_freed_memory
    from .saving import load_pipeline

    keep_freed_memory()
    policies = {
        name: getattr(options, name)
        for name in ("missing_leads", "nan_samples", "constant_leads", "short_recordings")
        if getattr(options, name) is not None
    }
    # Whatever may be wrong with a folder or a device.
    unloadable = (OSError, ValueError, RuntimeError, KeyError, AssertionError)
    # Opened first: hours of work must not end at a folder that cannot be written.
    with contextlib.ExitStack() as stack:
        stream = sys.stdout
        if options.output is not None:
            stream = stack.enter_context(open(options.output, "w", encoding="utf-8", newline=""))
        try:
            pipeline = load_pipeline(
                options.model, device=options.device, dtype=options.dtype, batch_size=options.batch_size, **policies
            )
        except (*unloadable, SafetensorError, StrictDataclassError) as error:
            print(f"ecgfm: cannot load the model {options.model}: {type(error).__name__}: {error}", file=sys.stderr)
            return 2

        answers, failures, interrupted = [], 0, False
        show_progress = len(options.files) > 1 and sys.stderr.isatty()
        try:
            for path in tqdm(options.files, unit="recording", disable=not show_progress):
                try:
                    answers.append(pipeline(_inputs(path, options)))
                except (OSError, ValueError, TypeError, RuntimeError) as error:
                    failures += 1
                    tqdm.write(f"ecgfm: {_named(path, error)}", file=sys.stderr)
        except KeyboardInterrupt:
            interrupted = True  # What has been answered is still written.

        config = pipeline.model.config
        note = CALIBRATED if _fully_calibrated(config) else UNCALIBRATED
        {"table": _write_table, "csv": _write_csv, "json": _write_json}[options.format](answers, config, note, stream)
    if failures:
        print(f"ecgfm: {failures} of {len(options.files)} recordings failed", file=sys.stderr)
    if interrupted:
        print(f"ecgfm: interrupted after {len(answers) + failures} of {len(options.files)} recordings", file=sys.stderr)
        return 130
    return 1 if failures else 0


def _inputs(path: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the pipeline takes, read with the options for files that do not say everything."""
    from .records.reading import read_with_defaults

    names = None if options.lead_names is None else [name.strip() for name in options.lead_names.split(",")]
    record = read_with_defaults(
        path,
        sampling_rate=options.sampling_rate,
        units=options.units,
        lead_names=names,
        exam_id=options.exam_id,
    )
    return {
        "signal": record.signal,
        "sampling_rate": record.sampling_rate,
        "lead_names": record.lead_names,
        "units": "mV",
        "recording": path,
    }


def _fully_calibrated(config: Any) -> bool:
    """Whether every label has a calibration and a threshold; one without makes the answer a mixture."""
    labels = set(config.label_names)
    return labels <= (config.label_calibration or {}).keys() and labels <= (config.label_thresholds or {}).keys()


def _named(path: str, error: Exception) -> str:
    message = str(error)
    return message if message.startswith(path) else f"{path}: {message}"


def _write_json(answers: list[dict], config: Any, note: str, stream: TextIO) -> None:
    json.dump([{**answer, "note": note} for answer in answers], stream, indent=1, ensure_ascii=False)
    stream.write("\n")


def _write_csv(answers: list[dict], config: Any, note: str, stream: TextIO) -> None:
    # The columns are for programs; the note goes where people look.
    print(f"ecgfm: {note}", file=sys.stderr)
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["recording", *config.label_names, "segments", "warnings"])
    for answer in answers:
        scores = [f"{answer['scores'][label]:.6g}" for label in config.label_names]
        writer.writerow([answer["recording"], *scores, answer["segments"], "; ".join(answer["warnings"])])


def _write_table(answers: list[dict], config: Any, note: str, stream: TextIO) -> None:
    """Labels down, a column a recording, as many columns as the terminal is wide."""
    if not answers:
        return
    thresholds, labels = config.label_thresholds or {}, config.label_names
    names = _headings(answers)
    label_width = max(len("label"), *map(len, labels))
    width = shutil.get_terminal_size((120, 24)).columns if stream.isatty() else 120
    cell = max(10, *(min(len(name), 24) for name in names)) + 2
    per_block = max(1, (width - label_width) // cell)
    for start in range(0, len(answers), per_block):
        block = answers[start : start + per_block]
        headings = (name[-cell + 2 :].rjust(cell) for name in names[start : start + per_block])
        stream.write("label".ljust(label_width) + "".join(headings) + "\n")
        for label in labels:
            marks = ("*" if label in (answer["positive"] or []) else " " for answer in block)
            cells = (f"{a['scores'][label]:.3f}{mark}".rjust(cell) for a, mark in zip(block, marks, strict=True))
            stream.write(label.ljust(label_width) + "".join(cells).rstrip() + "\n")
        stream.write("segments".ljust(label_width) + "".join(f"{a['segments']} ".rjust(cell) for a in block) + "\n\n")
    for answer in answers:
        for warning in answer["warnings"]:
            stream.write(f"{answer['recording']}: {warning}\n")
    for label, text in (config.label_notes or {}).items():
        stream.write(f"{label}: {text}\n")
    if thresholds:
        stream.write("* at or above the label's threshold\n")
    stream.write(f"{note}\n")


def _headings(answers: list[dict]) -> list[str]:
    """File names; whole paths where two files have the same name."""
    names = [os.path.basename(answer["recording"]) for answer in answers]
    return names if len(set(names)) == len(names) else [answer["recording"] for answer in answers]


# ----------------------------------------------------------------------------------------------------------------------
# ecgfm convert
# ----------------------------------------------------------------------------------------------------------------------


def _add_convert(commands: Any) -> None:
    from .conversion.command import add_convert_arguments, run_convert

    parser = commands.add_parser("convert", help="turn a fairseq-signals checkpoint into a model folder")
    add_convert_arguments(parser)

    parser.set_defaults(run=run_convert)


# ----------------------------------------------------------------------------------------------------------------------
# ecgfm synthesize
# ----------------------------------------------------------------------------------------------------------------------


def _add_data(commands: Any) -> None:
    from .data.command import add_prepare_arguments, add_split_arguments, run_prepare, run_split

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

    from .data.fairseq_folder.command import add_export_arguments, run_export

    parser = commands.add_parser("export-fairseq", help="write a store as fairseq-signals' processed folder")
    add_export_arguments(parser)
    parser.set_defaults(run=run_export)


def _add_pretrain(commands: Any) -> None:
    from .training.command import add_pretrain_arguments, run_pretrain

    parser = commands.add_parser("pretrain", help="pretrain with W2V + CMSC + RLM on a store")
    add_pretrain_arguments(parser)
    parser.set_defaults(run=run_pretrain)


def _add_synthesize(commands: Any) -> None:
    from .data.synthetic.command import add_synthesize_arguments, run_synthesize

    parser = commands.add_parser("synthesize", help="write a synthetic, labelled cohort as WFDB")
    add_synthesize_arguments(parser)
    parser.set_defaults(run=run_synthesize)


def _add_label(commands: Any) -> None:
    from .labeler.command import add_label_arguments, run_label

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


if __name__ == "__main__":
    sys.exit(main())
