"""`ecgfm predict`, `ecgfm embed` and `ecgfm embed-map`: their arguments, and what they print."""

import argparse
import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from ..utils.name_lists import names
from .options import add_precision_argument

READS = (
    "Takes files, folders of them, tables that name them, and stores of `ecgfm prepare`. Reads WFDB (.hea with .dat or "
    ".mat) and DICOM; with ecgfm-hf[formats] installed also EDF, MUSE XML, Sierra XML, aECG, SCP-ECG and CODE-15's "
    "HDF5; with the options for files that do not say everything, CSV, TSV, .npy and fairseq-signals .mat. With "
    "--output FILE.parquet a run may be killed and goes on when started again, and may be shared among processes by "
    "`torchrun` or `accelerate launch`."
)
EXIT_STATUS = "Exit status: 0 all answered, 1 some failed, 2 usage, 130 interrupted."

_POLICIES = ("missing_leads", "nan_samples", "constant_leads", "short_recordings")
_ARGUMENTS = ("sampling_rate", "units", "lead_names", "exam_id")


# ----------------------------------------------------------------------------------------------------------------------
# Arguments
# ----------------------------------------------------------------------------------------------------------------------


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `ecgfm predict`."""
    _add_recordings(parser)
    parser.add_argument("--model", required=True, metavar="DIR", help="folder or Hub repository of a classifier")
    parser.add_argument("--format", choices=("table", "csv", "json"), help="of what is printed (default: table)")
    parser.add_argument(
        "--output", metavar="PATH", help="write there instead of standard output; ending in .parquet: see above"
    )
    _add_running(parser)


def add_embed_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `ecgfm embed`."""
    _add_recordings(parser)
    parser.add_argument("--model", required=True, metavar="DIR", help="folder or Hub repository of any ECG-FM model")
    parser.add_argument("--output", required=True, metavar="PATH", help="a Parquet file, ending in .parquet")
    parser.add_argument("--per-segment", action="store_true", help="a row a segment (default: the recording's mean)")
    parser.add_argument(
        "--layer",
        type=int,
        default=-1,
        metavar="N",
        help="mean over frames of hidden state N: 0 is the first layer's input, 1 its output, ... (default: -1, the "
        "last, which is the published embedding)",
    )
    _add_running(parser)


def add_embed_map_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `ecgfm embed-map`."""
    parser.add_argument("embeddings", metavar="EMBEDDINGS", type=Path, help="Parquet file that `ecgfm embed` wrote")
    parser.add_argument(
        "--labels", metavar="TABLE", type=Path, help="CSV or Parquet with a column recording_id or path, or the store"
    )
    parser.add_argument("--columns", metavar="OURS=THEIRS,...", type=_mapping, help="the table's names for our columns")
    parser.add_argument("--label", metavar="NAME", help="which column of it (default: the only one)")
    parser.add_argument("--output", required=True, metavar="PATH", type=Path, help="picture: .png, .pdf or .svg")


def _add_recordings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="FILE",
        help="recordings (.hea or record name, DICOM file, ...), folders, or stores",
    )
    where = parser.add_argument_group("more recordings")
    where.add_argument("--list", metavar="FILE", help="a path a line; - is standard input")
    where.add_argument("--table", metavar="FILE", help="CSV or Parquet with a column path (or recording_id)")
    where.add_argument("--root", metavar="DIR", help="what the table's paths are relative to (default: its folder)")
    where.add_argument("--columns", metavar="OURS=THEIRS,...", type=_mapping, help="the table's names for our columns")
    where.add_argument("--split", metavar="NAME", help="of stores (default: all)")


def _add_running(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("running")
    run.add_argument("--batch-size", type=_positive, default=8, metavar="N", help="segments together (default: 8)")
    run.add_argument("--workers", type=_count, default=0, metavar="N", help="processes that read ahead (default: 0)")
    run.add_argument("--device", default="cpu", help="such as cpu, cuda (a process its own) or cuda:0 (default: cpu)")
    add_precision_argument(run, default="float32")
    run.add_argument("--compile", action="store_true", help="compile first: a minute or so, worth it for thousands")
    run.add_argument("--failures", metavar="CSV", help="name what failed there (.parquet: default beside the output)")
    run.add_argument(
        "--part-size",
        type=_positive,
        default=256,
        metavar="N",
        help=".parquet: recordings written together, the most that a kill costs (default: 256)",
    )
    run.add_argument("--overwrite", action="store_true", help=".parquet: begin anew in place of another run's output")
    lacking = parser.add_argument_group("what some formats do not say; files that say it themselves are not touched")
    lacking.add_argument("--sampling-rate", type=float, metavar="HZ", help="of CSV, TSV and .npy")
    lacking.add_argument("--units", metavar="UNIT", help="of CSV, TSV, .npy and .mat, such as mV; CODE-15: default mV")
    lacking.add_argument(
        "--lead-names", type=names, metavar="I,II,...", help="of .npy: one a row; of CSV and TSV: which columns"
    )
    lacking.add_argument("--exam-id", type=int, metavar="N", help="of CODE-15's HDF5: which exam")
    policies = parser.add_argument_group("what to do about (default: as the model's folder says)")
    policies.add_argument("--missing-leads", choices=("error", "zero", "derive"), help="usually: error")
    policies.add_argument("--nan-samples", choices=("error", "zero", "interpolate"), help="usually: error")
    policies.add_argument("--constant-leads", choices=("error", "zero"), help="usually: zero")
    policies.add_argument("--short-recordings", choices=("error", "pad"), help="under a segment; usually: error")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, found: {text}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, found: {text}")
    return int(text)


def _mapping(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(ours.strip() and equals for ours, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"must be OURS=THEIRS,..., found: {text}")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


# ----------------------------------------------------------------------------------------------------------------------
# Running
# ----------------------------------------------------------------------------------------------------------------------


class _UsageError(Exception):
    """Told, and exit status 2."""


def run_predict(args: argparse.Namespace, pages: Callable[..., Any] | None = None) -> int:
    """
    Runs `ecgfm predict`.

    Args:
        args: What was parsed.
        pages (callable, *optional*): `(args, pipeline)` gives `(record, answer)`, which writes a recording's page, or
            None where no pages are asked for.

    Returns:
        `int`: 0 all answered, 1 some failed or nothing more can be written, 2 usage, 130 interrupted.
    """
    return _told(functools.partial(_predict, pages=pages), args)


def run_embed(args: argparse.Namespace) -> int:
    """Runs `ecgfm embed`; exit status as of [`run_predict`]."""
    return _told(_embed, args)


def run_embed_map(args: argparse.Namespace) -> int:
    """Runs `ecgfm embed-map`. Returns 0 written, 2 usage."""
    from ..inference.embedding_map import draw_embedding_map

    try:
        print(
            draw_embedding_map(args.embeddings, args.output, labels=args.labels, label=args.label, columns=args.columns)
        )
    except (ValueError, ImportError) as error:
        print(f"ecgfm: {error}", file=sys.stderr)
        return 2
    return 0


def _told(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    from ..utils.precision import keep_freed_memory

    keep_freed_memory()
    try:
        with _terminated_as_interrupted():
            return run(args)
    except _UsageError as error:
        # Every process finds the same, and one says so.
        if os.environ.get("RANK", "0") == "0":
            print(f"ecgfm: {error}", file=sys.stderr)
        return 2


def _predict(args: argparse.Namespace, pages: Callable[..., Any] | None) -> int:
    import torch

    from ..model_folder import load_pipeline
    from ..utils.precision import resolve_precision, weights_dtype

    to_parquet = args.output is not None and args.output.endswith(".parquet")
    _check_places(args)
    if to_parquet and args.format is not None:
        raise _UsageError(f"--format {args.format} is of what is printed, and {args.output} is Parquet")
    with contextlib.ExitStack() as stack:
        stream = sys.stdout
        if args.output is not None and not to_parquet:
            stream = stack.enter_context(_opened(args.output))
        with _loading(args.model):
            precision = resolve_precision(args.precision, _device(args))
            # Gradients are of float32; without them the weights are read as they are used.
            has_gradients = getattr(args, "plot_saliency", None) is not None
            dtype = torch.float32 if has_gradients else weights_dtype(precision, _device(args))
            pipeline = load_pipeline(args.model, device=_device(args), dtype=dtype, **_policies(args))
        model, extractor = pipeline.model, pipeline.feature_extractor
        source = _source(args, extractor, inspect=True)
        try:
            page = None if pages is None else pages(args, pipeline)
        except (ValueError, ImportError) as error:
            raise _UsageError(str(error)) from None
        if not to_parquet:
            from .predict_output import print_answers

            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise _UsageError("several processes share a run only with --output FILE.parquet")
            return print_answers(_runner(args, model, precision), source, model.config, args, stream, page)
        if page is not None:
            raise _UsageError(f"pages are for answers that are printed, and {args.output} is Parquet")
        from ..inference.scoring import score_rows, score_schema

        config = model.config
        return _write_parquet(
            args,
            model,
            precision,
            extractor,
            source,
            score_schema(config),
            lambda read, logits, _: score_rows(read, logits, config),
        )


def _embed(args: argparse.Namespace) -> int:
    from ..inference.embeddings import embedding_rows, embedding_schema, load_encoder
    from ..inference.scoring import check_layer
    from ..utils.precision import resolve_precision

    if not args.output.endswith(".parquet"):
        raise _UsageError(f"--output must end in .parquet, found: {args.output}")
    _check_places(args)
    with _loading(args.model):
        precision = resolve_precision(args.precision, _device(args))
        model, extractor = load_encoder(args.model, device=_device(args), precision=precision, **_policies(args))
    try:
        layer = check_layer(args.layer, model.config.num_hidden_layers)
    except ValueError as error:
        raise _UsageError(str(error)) from None
    return _write_parquet(
        args,
        model,
        precision,
        extractor,
        _source(args, extractor, inspect=False),
        embedding_schema(model.config.hidden_size, args.per_segment),
        lambda read, _, embeddings: embedding_rows(read, embeddings, args.per_segment),
        embeddings=True,
        layer=layer,
        per_segment=args.per_segment,
    )


@contextlib.contextmanager
def _opened(path: str) -> Iterator[TextIO]:
    """A file to write, which keeps what it holds until it is emptied. Errors name it."""
    try:
        with open(path, "a", encoding="utf-8", newline="") as stream:
            yield stream
    except OSError as error:
        raise error if error.filename is not None else OSError(error.errno, error.strerror, path) from error


def _check_places(args: argparse.Namespace) -> None:
    """Hours of work must not end at a place where nothing can be written."""
    places = [path for path in (args.output, args.failures) if path is not None]
    for path in places:
        if not os.path.isdir(folder := os.path.dirname(path) or "."):
            raise _UsageError(f"there is no folder {folder}")
    if len({os.path.realpath(path) for path in places}) < len(places):
        raise _UsageError(f"--output and --failures are the same file: {args.output}")


@contextlib.contextmanager
def _loading(model: str) -> Iterator[None]:
    try:
        yield
    # Whatever libraries make of a folder or a device that something is wrong with.
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        where = (
            ""
            if os.path.isdir(model) or isinstance(error, FileNotFoundError)
            else "it is no folder here, and from the Hub: "
        )
        raise _UsageError(f"cannot load the model {model}: {where}{what}") from None


def _device(args: argparse.Namespace) -> str:
    return f"cuda:{os.environ['LOCAL_RANK']}" if args.device == "cuda" and "LOCAL_RANK" in os.environ else args.device


def _policies(args: argparse.Namespace) -> dict[str, str]:
    return {name: getattr(args, name) for name in _POLICIES if getattr(args, name) is not None}


def _source(args: argparse.Namespace, extractor: Any, inspect: bool) -> Any:
    from ..inference.sources import find_recordings, read_list

    inputs = list(args.inputs)
    if args.list == "-":
        inputs += read_list(sys.stdin.buffer)
    elif args.list is not None:
        with open(args.list, "rb") as file:
            inputs += read_list(file)
    if not inputs and args.table is None:
        raise _UsageError("there are no recordings: give files, folders or stores, --list or --table")
    arguments = {name: getattr(args, name) for name in _ARGUMENTS if getattr(args, name) is not None}
    try:
        return find_recordings(
            inputs,
            extractor,
            table=args.table,
            root=args.root,
            columns=args.columns,
            split=args.split,
            arguments=arguments,
            inspect=inspect,
        )
    except ValueError as error:
        raise _UsageError(str(error)) from None


def _write_parquet(
    args: argparse.Namespace,
    model: Any,
    precision: str,
    extractor: Any,
    source: Any,
    schema: Any,
    to_rows: Any,
    embeddings: bool = False,
    layer: int | None = None,
    **settings: Any,
) -> int:
    from ..inference.parquet_run import ParquetRun, Processes, ResumeError, plan_of
    from .predict_output import say_written

    settings = {"command": args.command, "precision": precision, "compile": args.compile, "layer": layer, **settings}
    processes = Processes()
    try:
        run = ParquetRun(
            Path(args.output),
            source,
            _runner(args, model, precision, embeddings, layer),
            schema,
            to_rows,
            plan_of(model, extractor, source, **settings),
            failures_file=None if args.failures is None else Path(args.failures),
            part_size=args.part_size,
            num_workers=args.workers,
            progress=sys.stderr.isatty(),
            processes=processes,
        )
        result = run.run(overwrite=args.overwrite)
    except ResumeError as error:
        raise _UsageError(str(error)) from None
    except KeyboardInterrupt:
        print("ecgfm: interrupted; the same command goes on", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"ecgfm: {args.output}: {error}; the same command goes on", file=sys.stderr)
        return 1
    finally:
        processes.end()
    if not processes.is_main:
        return 0
    if result.was_complete:
        print(f"ecgfm: {result.output} is complete already", file=sys.stderr)
    else:
        say_written(result.recordings - result.failed, args.output)
    if result.failed:
        where = f"{result.failed} of {result.recordings} recordings failed: see {result.failures_file}"
        print(f"ecgfm: {where}", file=sys.stderr)
    return 1 if result.failed else 0


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM as Ctrl-C, so that worker processes end with this one."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _runner(
    args: argparse.Namespace, model: Any, precision: str, embeddings: bool = False, layer: int | None = None
) -> Any:
    from ..inference.scoring import ModelRunner

    try:
        return ModelRunner(model, args.batch_size, precision, embeddings, layer, args.compile)
    except ValueError as error:
        raise _UsageError(str(error)) from None
