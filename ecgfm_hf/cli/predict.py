"""`ecgfm predict`, `ecgfm embed` and `ecgfm embed-map`."""

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..utils.errors import SettingsError
from ..utils.files import begins_with, check_output
from .options import (
    BatchSizeOption,
    ColumnsOption,
    CommandFailed,
    PrecisionOption,
    ReadingOptions,
    SharingOptions,
    expand_options,
    loading,
    parse_mapping,
    quiet_libraries,
    show_progress,
    sigterm_as_interrupt,
)
from .outputs import Reads, Writes, companions
from .predict_output import format_of, is_answers, is_parquet_output, print_answers, report_written
from .prediction_pages import PageOptions

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
    from ..inference import FileSource, FolderSource, ModelRunner, StoreSource
    from ..inference.read_ahead import ReadRecording
    from ..modeling_ecgfm import ECGFMPreTrainedModel

_MORE, _RUN = "More recordings", "Running"
_PAGES = "A page for each recording (needs ecgfm-hf\\[plots])"

FAILURES_HEADER = "recording_id,path,reason\n"


def _is_map(path: Path) -> bool:
    from ..inference.embedding_map import MAP_MARK

    return path.is_file() and MAP_MARK.encode() in path.read_bytes()


def _is_unfinished(folder: Path) -> bool:
    """Return whether a folder holds an unfinished run, killed at any time."""
    return folder.is_dir() and all(
        re.fullmatch(r"lock|plan\.json|parts-.*|\..*", path.name) for path in folder.iterdir()
    )


def _run_files(values: Mapping[str, Any]) -> Iterator[tuple[Path, Callable[[Path], bool]]]:
    """Yield what a run with Parquet output writes beside the output."""
    output = Path(values["output"] or "")
    if output.suffix.lower() == ".parquet":
        yield output.with_name(f"{output.name}.parts"), _is_unfinished
        if values["failures"] is None:
            stem = output.name.removesuffix(".parquet")
            yield output.with_name(f"{stem}.failures.csv"), begins_with(FAILURES_HEADER)


@dataclass(frozen=True)
class RecordingOptions(ReadingOptions):
    """The options of `predict` and `embed`: which recordings, how they are read, and how the model runs."""

    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Recordings (.hea or record name, DICOM file, ...), folders, or stores."),
        Reads(),
    ] = None
    list_file: Annotated[
        str | None,
        typer.Option(
            "--list",
            metavar="FILE",
            help="File with one path per line; - is standard input.",
            rich_help_panel=_MORE,
        ),
        Reads(),
    ] = None
    table: Annotated[
        str | None,
        typer.Option(
            "--table",
            metavar="FILE",
            help="CSV or Parquet table with a column path (or recording_id).",
            rich_help_panel=_MORE,
        ),
        Reads(),
    ] = None
    root: Annotated[
        str | None,
        typer.Option(
            "--root",
            metavar="DIR",
            help="Folder of the table's paths (default: the table's folder), or of a processed folder's segments.",
            rich_help_panel=_MORE,
        ),
        Reads(),
    ] = None
    columns: ColumnsOption = None
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="NAME",
            help="Split of stores and processed folders (default: all).",
            rich_help_panel=_MORE,
        ),
    ] = None
    batch_size: BatchSizeOption = 16
    workers: Annotated[
        int,
        typer.Option("--workers", min=0, metavar="N", help="Processes that read ahead.", rich_help_panel=_RUN),
    ] = 0
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="DEVICE",
            help="Such as cpu, cuda or cuda:0.",
            rich_help_panel=_RUN,
        ),
    ] = "cpu"
    precision: PrecisionOption = "float32"
    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Use torch.compile. It takes about a minute at the start, so use it for thousands of recordings.",
            rich_help_panel=_RUN,
        ),
    ] = False
    failures: Annotated[
        str | None,
        typer.Option(
            "--failures",
            metavar="CSV",
            help="File for the list of failed recordings. With a .parquet output it is by default beside the output.",
            rich_help_panel=_RUN,
        ),
        Writes(begins_with(FAILURES_HEADER)),
    ] = None
    part_size: Annotated[
        int,
        typer.Option(
            "--part-size",
            min=1,
            metavar="N",
            help="Recordings per part of a .parquet output. A killed run loses at most one part per process.",
            rich_help_panel=_RUN,
        ),
    ] = 256
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace files that this command did not write, and a .parquet of another run; never inputs.",
            rich_help_panel=_RUN,
        ),
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mapping  # noqa: B018

    @property
    def mapping(self) -> dict[str, str] | None:
        """`--columns`, as a mapping."""
        return parse_mapping(self.columns)

    @property
    def named_inputs(self) -> list[str]:
        """The files and folders that the options name."""
        return [path for path in (*(self.inputs or ()), self.list_file, self.table, self.root) if path is not None]


@expand_options
def predict(
    model: Annotated[
        str, typer.Option("--model", metavar="DIR", help="Folder or Hub repository of a classifier."), Reads()
    ],
    options: RecordingOptions,
    sharing: SharingOptions,
    format: Annotated[
        Literal["table", "csv", "tsv", "json", "xlsx"] | None,
        typer.Option("--format", help="Output format (default: by the suffix of --output, else table)."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            metavar="PATH",
            help="File to write instead of standard output; .csv, .tsv, .json, .xlsx and .parquet give its format.",
        ),
        Writes(is_answers, also=_run_files),
    ] = None,
    per_segment: Annotated[
        bool, typer.Option("--per-segment", help="Write a row per segment, with its start and end in seconds.")
    ] = False,
    logits: Annotated[bool, typer.Option("--logits", help="With --per-segment: write logits, too.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="DIR",
            help="Write a 12-lead page with scores for each recording.",
            rich_help_panel=_PAGES,
        ),
        Writes(names=()),
    ] = None,
    plot_format: Annotated[
        Literal["pdf", "png"], typer.Option("--plot-format", help="File format.", rich_help_panel=_PAGES)
    ] = "pdf",
    plot_paper: Annotated[
        Literal["a4", "letter"], typer.Option("--plot-paper", help="Paper size.", rich_help_panel=_PAGES)
    ] = "a4",
    plot_start: Annotated[
        float,
        typer.Option(
            "--plot-start", metavar="S", help="Start of the page, in seconds of the file.", rich_help_panel=_PAGES
        ),
    ] = 0.0,
    plot_gain: Annotated[
        float, typer.Option("--plot-gain", metavar="MM", help="Gain in mm/mV: 5, 10 or 20.", rich_help_panel=_PAGES)
    ] = 10.0,
    plot_saliency: Annotated[
        str | None,
        typer.Option(
            "--plot-saliency",
            metavar="LABEL",
            help="Colour what increases the score of this label (integrated gradients; needs ecgfm-hf\\[saliency]), "
            "or 'attention' for the published attention map.",
            rich_help_panel=_PAGES,
        ),
    ] = None,
) -> int:
    """
    Score recordings with a classifier.

    Each recording gets one row, or one per segment. Inputs are files, folders, tables of files, and stores of
    `ecgfm prepare`.
    Reads WFDB, DICOM, EDF, ISHNE, SCP-ECG, and XML of Sierra, CardioSoft and Schiller; with ecgfm-hf\\[formats] also
    MUSE and Mortara XML, aECG and HDF5. CSV, TSV, .npy and fairseq-signals .mat need options for what they do not
    contain. With --output FILE.parquet a run that was killed resumes when it is started again, and may be shared among
    processes and machines (--shard, --ray).

    Exit status: 0 all scored, 1 some failed, 2 usage, 130 interrupted.
    """
    pages = PageOptions(plot, plot_format, plot_paper, plot_start, plot_gain, plot_saliency) if plot else None
    chosen = (format or "table") if output is None else format_of(output, format)
    if chosen == "xlsx":
        if output is None:
            raise SettingsError("--format xlsx needs --output FILE.xlsx: a workbook cannot be printed")
        if importlib.util.find_spec("openpyxl") is None:
            raise CommandFailed("a workbook needs openpyxl: pip install 'ecgfm-hf[excel]', or write .csv")
    if chosen == "parquet" and pages is not None:
        raise CommandFailed(
            f"--plot needs scores that are printed or written to a file other than .parquet, found --output {output}"
        )
    if logits and not per_segment:
        raise CommandFailed("--logits needs --per-segment")
    if chosen != "parquet" and (sharing.ray or sharing.shard):
        raise CommandFailed("--ray and --shard need --output FILE.parquet")
    _check_outputs(output, options)
    with sigterm_as_interrupt(), quiet_libraries():
        return _predict(model, output, options, sharing, chosen, pages, per_segment, logits)


@expand_options
def embed(
    model: Annotated[
        str, typer.Option("--model", metavar="DIR", help="Folder or Hub repository of any ECG-FM model."), Reads()
    ],
    output: Annotated[
        str,
        typer.Option("--output", metavar="PATH", help="A Parquet file, ending in .parquet."),
        Writes(is_parquet_output, also=_run_files),
    ],
    options: RecordingOptions,
    sharing: SharingOptions,
    per_segment: Annotated[
        bool,
        typer.Option(
            "--per-segment",
            help="Write a row per segment, with its start and end in seconds (default: their mean, a row per "
            "recording).",
        ),
    ] = False,
    layer: Annotated[
        int,
        typer.Option(
            "--layer",
            metavar="N",
            help="Mean over frames of hidden state N: 0 is the first layer's input, 1 its output, ... -1 is the last, "
            "which is the published embedding.",
        ),
    ] = -1,
) -> int:
    """
    Compute embeddings of recordings.

    Writes an embedding for each recording, or for each of its segments. Takes and reads what `ecgfm predict` does. A
    run that was killed resumes when it is started again, and may be shared among processes and machines (--shard,
    --ray).

    Exit status: 0 all embedded, 1 some failed, 2 usage, 130 interrupted.
    """
    if Path(output).suffix.lower() != ".parquet":
        raise CommandFailed(f"--output must end in .parquet, found: {output}")
    _check_outputs(output, options)
    with sigterm_as_interrupt(), quiet_libraries():
        return _embed(model, output, options, sharing, layer, per_segment)


def embed_map(
    embeddings: Annotated[
        Path, typer.Argument(metavar="EMBEDDINGS", help="Parquet file that `ecgfm embed` wrote."), Reads()
    ],
    output: Annotated[
        Path, typer.Option("--output", metavar="PATH", help="Picture: .png, .pdf or .svg."), Writes(_is_map)
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels", metavar="TABLE", help="CSV or Parquet with a column recording_id or path, or the store."
        ),
        Reads(),
    ] = None,
    columns: ColumnsOption = None,
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="NAME", help="Column to colour by (default: the only one)."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that this command did not write.")
    ] = False,
) -> int:
    """
    Plot embeddings in two dimensions, coloured by a label.

    Exit status: 0 written, 1 the picture cannot be written, 2 usage.
    """
    mapping = parse_mapping(columns)
    from ..inference import draw_embedding_map

    print(draw_embedding_map(embeddings, output, labels=labels, label=label, columns=mapping))
    return 0


# ----------------------------------------------------------------------------------------------------------------------
# Running
# ----------------------------------------------------------------------------------------------------------------------


def _predict(
    name: str,
    output: str | None,
    options: RecordingOptions,
    sharing: SharingOptions,
    format: str,
    pages: PageOptions | None,
    per_segment: bool,
    logits: bool,
) -> int:
    import torch

    from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
    from ..inference.model_runner import ModelRunner, score_rows, score_schema, segment_answers_of, segment_score_rows
    from ..model_folder import load_pipeline
    from ..modeling_ecgfm import ECGFMForMultiLabelClassification
    from ..utils.precision import keep_freed_memory, resolve_precision, weights_dtype

    keep_freed_memory()
    device, works_on = _devices(options, sharing)
    with loading(name):
        precision = resolve_precision(options.precision, works_on)
        # Gradients are of float32; without them the weights are read as they are used.
        has_gradients = pages is not None and pages.saliency is not None
        dtype = torch.float32 if has_gradients else weights_dtype(precision, works_on)
        pipeline = load_pipeline(name, device=device, dtype=dtype, **options.policies)
    model, extractor = pipeline.model, pipeline.feature_extractor
    # The package's own classes, by load_pipeline.
    assert isinstance(model, ECGFMForMultiLabelClassification)
    assert isinstance(extractor, ECGFMFeatureExtractor)
    source = _source(options, extractor, output, inspect=True)
    page = None if pages is None else pages.writer(pipeline, name, [name, *options.named_inputs], options.overwrite)
    make_runner = partial(ModelRunner, model, options.batch_size, precision, False, None, options.compile, works_on)
    if output is not None and format == "parquet":
        config = model.config

        def to_rows(read: "ReadRecording", found: "np.ndarray", _: object) -> list[dict[str, Any]]:
            if per_segment:
                return segment_score_rows(read, found, config, extractor)
            return score_rows(read, found, config)

        return _write_parquet(
            "predict",
            output,
            options,
            sharing,
            model,
            make_runner,
            extractor,
            source,
            score_schema(config, per_segment, logits),
            to_rows,
            precision=precision,
            layer=None,
            **({"per_segment": True, "logits": logits} if per_segment else {}),
        )
    by_segment = partial(segment_answers_of, config=model.config, extractor=extractor) if per_segment else None
    return print_answers(
        make_runner(),
        source,
        model.config,
        format,
        output,
        failures=options.failures,
        workers=options.workers,
        page=page,
        by_segment=by_segment,
        logits=logits,
    )


def _embed(
    name: str, output: str, options: RecordingOptions, sharing: SharingOptions, layer: int, per_segment: bool
) -> int:
    from ..inference.embeddings import embedding_rows, embedding_schema, load_encoder
    from ..inference.model_runner import ModelRunner, check_layer
    from ..utils.precision import keep_freed_memory, resolve_precision

    keep_freed_memory()
    device, works_on = _devices(options, sharing)
    with loading(name):
        precision = resolve_precision(options.precision, works_on)
        model, extractor = load_encoder(name, device=device, precision=precision, **options.policies)
    chosen = check_layer(layer, model.config.num_hidden_layers)
    return _write_parquet(
        "embed",
        output,
        options,
        sharing,
        model,
        partial(ModelRunner, model, options.batch_size, precision, True, chosen, options.compile, works_on),
        extractor,
        _source(options, extractor, output, inspect=False),
        embedding_schema(model.config.hidden_size, per_segment),
        lambda read, _, embeddings: embedding_rows(read, embeddings, per_segment, extractor),
        precision=precision,
        layer=chosen,
        per_segment=per_segment,
    )


def _devices(options: RecordingOptions, sharing: SharingOptions) -> tuple[str, str]:
    """Return the device on which this process loads the model, and the one on which the processes run it."""
    if sharing.ray is None:
        return options.device, options.device
    if options.device != "cpu":
        raise SettingsError("--device is for this machine, found --ray: give --gpus-per-worker")
    if options.precision == "auto":
        raise SettingsError("--precision auto depends on the machine, found --ray: name the precision")
    return "cpu", "cuda" if sharing.gpus_per_worker else "cpu"


def _check_outputs(output: str | None, options: RecordingOptions) -> None:
    """Check that the outputs can be written, before hours of work."""
    for path in (path for path in (output, options.failures) if path is not None):
        if not os.path.isdir(folder := os.path.dirname(path) or "."):
            raise CommandFailed(f"there is no folder {folder}")
        if os.path.isdir(path):
            raise CommandFailed(f"{path}: is a folder, expected a file to write")
        if not os.access(path if Path(path).is_char_device() else folder, os.W_OK):
            raise CommandFailed(f"{path}: cannot be written there", 1)


def _source(
    options: RecordingOptions, extractor: "ECGFMFeatureExtractor", output: str | None, inspect: bool
) -> "FileSource | StoreSource | FolderSource":
    """Return the recordings; an error where an output would replace one that a list or a table names."""
    from ..inference.recording_inputs import find_recordings, read_list
    from ..inference.recording_sources import StoreSource

    inputs = list(options.inputs or ())
    if options.list_file == "-":
        inputs += read_list(sys.stdin.buffer)
    elif options.list_file is not None:
        with open(options.list_file, "rb") as file:
            inputs += read_list(file)
    if not inputs and options.table is None:
        raise CommandFailed("there are no recordings: give files, folders or stores, --list or --table")
    source = find_recordings(
        inputs,
        extractor,
        table=options.table,
        root=options.root,
        columns=options.mapping,
        split=options.split,
        arguments=options.arguments,
        inspect=inspect,
    )
    # Without --overwrite, only outputs of this command are replaced, which are no recordings.
    written = [path for path in (output, options.failures) if options.overwrite and path and os.path.isfile(path)]
    if written and not isinstance(source, StoreSource):
        read = [file for path in source.paths() for file in (path, *companions(path))]
        for path in written:
            check_output(path, read, overwrite=True)
    return source


def _write_parquet(
    command: str,
    output: str,
    options: RecordingOptions,
    sharing: SharingOptions,
    model: "ECGFMPreTrainedModel",
    make_runner: "Callable[[], ModelRunner]",
    extractor: "ECGFMFeatureExtractor",
    source: "FileSource | StoreSource | FolderSource",
    schema: "pa.Schema",
    to_rows: Callable[..., list[dict[str, Any]]],
    **settings: Any,
) -> int:
    from ..inference.parquet_run import ParquetRun, plan_of

    settings = {"command": command, "compile": options.compile, **settings}
    try:
        parquet_run = ParquetRun(
            Path(output),
            source,
            make_runner,
            schema,
            to_rows,
            plan_of(model, extractor, source, **settings),
            failures_file=None if options.failures is None else Path(options.failures),
            part_size=options.part_size,
            num_workers=options.workers,
            progress=show_progress(),
            shard=sharing.share,
            distribute=sharing.distribute(1 + options.workers),
        )
        result = parquet_run.run(overwrite=options.overwrite)
    except KeyboardInterrupt:
        raise CommandFailed("interrupted; the same command resumes", 130) from None
    except OSError as error:
        raise CommandFailed(f"{output}: {error}; the same command resumes", 1) from error
    if result is None:
        sharing.report_share(output)
        return 0
    if result.was_complete:
        print(f"ecgfm: {result.output} is complete already", file=sys.stderr)
    else:
        report_written(result.recordings - result.failed, output)
    if result.failed:
        where = f"{result.failed} of {result.recordings} recordings failed: see {result.failures_file}"
        print(f"ecgfm: {where}", file=sys.stderr)
    return 1 if result.failed else 0
