"""`ecgfm predict`, `ecgfm embed` and `ecgfm embed-map`."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer

from .options import (
    BatchSizeOption,
    ColumnsOption,
    CommandFailed,
    ConstantLeads,
    MissingLeads,
    NanSamples,
    PrecisionOption,
    ShortRecordings,
    loading,
    parse_mapping,
    parse_names,
    quiet_libraries,
    show_progress,
    sigterm_as_interrupt,
)
from .prediction_pages import GAINS, PageOptions

if TYPE_CHECKING:
    import pyarrow as pa

    from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
    from ..inference import FileSource, ModelRunner, StoreSource
    from ..modeling_ecgfm import ECGFMPreTrainedModel

_MORE, _RUN, _FORMATS = "More recordings", "Running", "What files contain"
_POLICIES, _PAGES = (
    "Policies (default: as in the model's folder)",
    "A page for each recording (needs ecgfm-hf\\[plots])",
)

_Inputs = Annotated[
    list[str] | None,
    typer.Argument(metavar="FILE", help="Recordings (.hea or record name, DICOM file, ...), folders, or stores."),
]
_List = Annotated[
    str | None,
    typer.Option(
        "--list", metavar="FILE", help="Text file with one path per line; - is standard input.", rich_help_panel=_MORE
    ),
]
_Table = Annotated[
    str | None,
    typer.Option(
        "--table",
        metavar="FILE",
        help="CSV or Parquet table with a column path (or recording_id).",
        rich_help_panel=_MORE,
    ),
]
_Root = Annotated[
    str | None,
    typer.Option(
        "--root",
        metavar="DIR",
        help="Folder of the table's paths (default: the table's folder).",
        rich_help_panel=_MORE,
    ),
]
_Split = Annotated[
    str | None,
    typer.Option("--split", metavar="NAME", help="Split of the stores (default: all).", rich_help_panel=_MORE),
]
_Workers = Annotated[
    int,
    typer.Option("--workers", min=0, metavar="N", help="Processes that read ahead.", rich_help_panel=_RUN),
]
_Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Such as cpu, cuda (each process takes its own) or cuda:0.",
        rich_help_panel=_RUN,
    ),
]
_Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Use torch.compile: takes about a minute first; for thousands of recordings.",
        rich_help_panel=_RUN,
    ),
]
_Failures = Annotated[
    str | None,
    typer.Option(
        "--failures",
        metavar="CSV",
        help="List the recordings that failed in this file (.parquet: by default beside the output).",
        rich_help_panel=_RUN,
    ),
]
_PartSize = Annotated[
    int,
    typer.Option(
        "--part-size",
        min=1,
        metavar="N",
        help=".parquet: recordings per part; a kill loses at most one part per process.",
        rich_help_panel=_RUN,
    ),
]
_Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help=".parquet: replace the output of another run.", rich_help_panel=_RUN),
]
_SamplingRate = Annotated[
    float | None,
    typer.Option(
        "--sampling-rate", metavar="HZ", help="CSV, TSV and .npy: sampling rate in Hz.", rich_help_panel=_FORMATS
    ),
]
_Units = Annotated[
    str | None,
    typer.Option(
        "--units",
        metavar="UNIT",
        help="CSV, TSV, .npy and .mat: unit, such as mV; CODE-15: default mV.",
        rich_help_panel=_FORMATS,
    ),
]
_LeadNames = Annotated[
    str | None,
    typer.Option(
        "--lead-names",
        metavar="I,II,...",
        help=".npy: the leads of its rows; CSV and TSV: which columns are leads (all, if the first line has no names).",
        rich_help_panel=_FORMATS,
    ),
]
_RenameLeads = Annotated[
    str | None,
    typer.Option(
        "--rename-leads", metavar="THEIRS=LEAD,...", help="Of all: such as ECG=I,MLII=II.", rich_help_panel=_FORMATS
    ),
]
_Leads = Annotated[
    str | None,
    typer.Option("--leads", metavar="I,II,...", help="Of all: read only these leads.", rich_help_panel=_FORMATS),
]
_Checksums = Annotated[
    Literal["verify", "ignore"] | None,
    typer.Option("--checksums", help="Of all: ignore reads damaged samples, with a warning.", rich_help_panel=_FORMATS),
]
_ExamId = Annotated[
    int | None,
    typer.Option("--exam-id", metavar="N", help="HDF5 and .npy with many exams: which.", rich_help_panel=_FORMATS),
]
_MissingLeads = Annotated[
    MissingLeads | None,
    typer.Option("--missing-leads", help="Usually: error.", rich_help_panel=_POLICIES),
]
_NanSamples = Annotated[
    NanSamples | None,
    typer.Option("--nan-samples", help="Usually: error.", rich_help_panel=_POLICIES),
]
_ConstantLeads = Annotated[
    ConstantLeads | None,
    typer.Option("--constant-leads", help="Usually: zero.", rich_help_panel=_POLICIES),
]
_ShortRecordings = Annotated[
    ShortRecordings | None,
    typer.Option("--short-recordings", help="Shorter than a segment. Usually: error.", rich_help_panel=_POLICIES),
]


@dataclass(frozen=True)
class _Run:
    """What `predict` and `embed` are asked for. `list_file` is `--list`; the other names are those of the options."""

    command: str
    model: str
    output: str | None
    inputs: list[str]
    list_file: str | None
    table: str | None
    root: str | None
    columns: dict[str, str] | None
    split: str | None
    batch_size: int
    workers: int
    device: str
    precision: str
    compile: bool
    failures: str | None
    part_size: int
    overwrite: bool
    arguments: dict[str, Any]  # of read_ecg, for formats that do not hold them
    policies: dict[str, Any]  # of the feature extractor


def _own_device(device: str) -> str:
    """Return the GPU of this process where several processes share a run and `cuda` is wanted."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def predict(
    model: Annotated[str, typer.Option("--model", metavar="DIR", help="Folder or Hub repository of a classifier.")],
    inputs: _Inputs = None,
    format: Annotated[
        Literal["table", "csv", "json"] | None,
        typer.Option("--format", help="Output format (default: table)."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", metavar="PATH", help="File to write instead of standard output; for FILE.parquet see above."
        ),
    ] = None,
    list_file: _List = None,
    table: _Table = None,
    root: _Root = None,
    columns: ColumnsOption = None,
    split: _Split = None,
    batch_size: BatchSizeOption = 8,
    workers: _Workers = 0,
    device: _Device = "cpu",
    precision: PrecisionOption = "float32",
    compile: _Compile = False,
    failures: _Failures = None,
    part_size: _PartSize = 256,
    overwrite: _Overwrite = False,
    sampling_rate: _SamplingRate = None,
    units: _Units = None,
    lead_names: _LeadNames = None,
    rename_leads: _RenameLeads = None,
    leads: _Leads = None,
    checksums: _Checksums = None,
    exam_id: _ExamId = None,
    missing_leads: _MissingLeads = None,
    nan_samples: _NanSamples = None,
    constant_leads: _ConstantLeads = None,
    short_recordings: _ShortRecordings = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="DIR",
            help="Write a 12-lead page with scores for each recording.",
            rich_help_panel=_PAGES,
        ),
    ] = None,
    plot_format: Annotated[
        Literal["pdf", "png"], typer.Option("--plot-format", help="File format.", rich_help_panel=_PAGES)
    ] = "pdf",
    plot_paper: Annotated[
        Literal["a4", "letter"], typer.Option("--plot-paper", help="Paper.", rich_help_panel=_PAGES)
    ] = "a4",
    plot_start: Annotated[
        float, typer.Option("--plot-start", metavar="S", help="Start of the page, in seconds.", rich_help_panel=_PAGES)
    ] = 0.0,
    plot_gain: Annotated[
        float, typer.Option("--plot-gain", metavar="MM", help="mm/mV: 5, 10 or 20.", rich_help_panel=_PAGES)
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

    Each recording gets one row. Inputs are files, folders, tables of files, and stores of `ecgfm prepare`.
    Reads WFDB (.hea with .dat or .mat) and DICOM; with ecgfm-hf\\[formats] also EDF, MUSE XML, Sierra XML, aECG,
    SCP-ECG and CODE-15's HDF5; with options for the missing information, CSV, TSV, .npy and
    fairseq-signals .mat. With --output FILE.parquet a run that was killed resumes when it is started again, and may be
    shared among processes by `torchrun` or `accelerate launch`.

    Exit status: 0 all scored, 1 some failed, 2 usage, 130 interrupted.
    """
    if plot_gain not in GAINS:
        raise typer.BadParameter(f"--plot-gain must be 5, 10 or 20 mm/mV, found: {plot_gain:g}")
    pages = PageOptions(plot, plot_format, plot_paper, plot_start, plot_gain, plot_saliency) if plot else None
    to_parquet = output is not None and output.endswith(".parquet")
    if to_parquet and format is not None:
        raise CommandFailed(f"--format {format} is of what is printed, and {output} is Parquet")
    if to_parquet and pages is not None:
        raise CommandFailed(f"pages are for answers that are printed, and {output} is Parquet")
    run = _Run(
        "predict",
        model,
        output,
        list(inputs or ()),
        list_file,
        table,
        root,
        parse_mapping(columns),
        split,
        batch_size,
        workers,
        _own_device(device),
        precision,
        compile,
        failures,
        part_size,
        overwrite,
        _given(
            sampling_rate=sampling_rate,
            units=units,
            lead_names=parse_names(lead_names, "--lead-names"),
            rename_leads=rename_leads,
            leads=parse_names(leads, "--leads"),
            checksums=checksums,
            exam_id=exam_id,
        ),
        _given(
            missing_leads=missing_leads,
            nan_samples=nan_samples,
            constant_leads=constant_leads,
            short_recordings=short_recordings,
        ),
    )
    _check_outputs(run)
    with sigterm_as_interrupt(), quiet_libraries():
        return _predict(run, format or "table", pages, to_parquet)


def embed(
    model: Annotated[str, typer.Option("--model", metavar="DIR", help="Folder or Hub repository of any ECG-FM model.")],
    output: Annotated[str, typer.Option("--output", metavar="PATH", help="A Parquet file, ending in .parquet.")],
    inputs: _Inputs = None,
    per_segment: Annotated[
        bool, typer.Option("--per-segment", help="Write a row per segment (default: their mean, a row per recording).")
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
    list_file: _List = None,
    table: _Table = None,
    root: _Root = None,
    columns: ColumnsOption = None,
    split: _Split = None,
    batch_size: BatchSizeOption = 8,
    workers: _Workers = 0,
    device: _Device = "cpu",
    precision: PrecisionOption = "float32",
    compile: _Compile = False,
    failures: _Failures = None,
    part_size: _PartSize = 256,
    overwrite: _Overwrite = False,
    sampling_rate: _SamplingRate = None,
    units: _Units = None,
    lead_names: _LeadNames = None,
    rename_leads: _RenameLeads = None,
    leads: _Leads = None,
    checksums: _Checksums = None,
    exam_id: _ExamId = None,
    missing_leads: _MissingLeads = None,
    nan_samples: _NanSamples = None,
    constant_leads: _ConstantLeads = None,
    short_recordings: _ShortRecordings = None,
) -> int:
    """
    Compute embeddings of recordings.

    Writes an embedding for each recording, or for each of its segments. Takes and reads what `ecgfm predict` does. A
    run that was killed resumes when it is started again, and may be shared among processes by `torchrun` or
    `accelerate launch`.

    Exit status: 0 all embedded, 1 some failed, 2 usage, 130 interrupted.
    """
    if not output.endswith(".parquet"):
        raise CommandFailed(f"--output must end in .parquet, found: {output}")
    run = _Run(
        "embed",
        model,
        output,
        list(inputs or ()),
        list_file,
        table,
        root,
        parse_mapping(columns),
        split,
        batch_size,
        workers,
        _own_device(device),
        precision,
        compile,
        failures,
        part_size,
        overwrite,
        _given(
            sampling_rate=sampling_rate,
            units=units,
            lead_names=parse_names(lead_names, "--lead-names"),
            rename_leads=rename_leads,
            leads=parse_names(leads, "--leads"),
            checksums=checksums,
            exam_id=exam_id,
        ),
        _given(
            missing_leads=missing_leads,
            nan_samples=nan_samples,
            constant_leads=constant_leads,
            short_recordings=short_recordings,
        ),
    )
    _check_outputs(run)
    with sigterm_as_interrupt(), quiet_libraries():
        return _embed(run, layer, per_segment)


def embed_map(
    embeddings: Annotated[Path, typer.Argument(metavar="EMBEDDINGS", help="Parquet file that `ecgfm embed` wrote.")],
    output: Annotated[Path, typer.Option("--output", metavar="PATH", help="Picture: .png, .pdf or .svg.")],
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels", metavar="TABLE", help="CSV or Parquet with a column recording_id or path, or the store."
        ),
    ] = None,
    columns: ColumnsOption = None,
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="NAME", help="Which column of the table (default: the only one)."),
    ] = None,
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


def _predict(run: _Run, format: str, pages: PageOptions | None, to_parquet: bool) -> int:
    import torch

    from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
    from ..inference.scoring import ModelRunner, score_rows, score_schema
    from ..model_folder import load_pipeline
    from ..modeling_ecgfm import ECGFMForMultiLabelClassification
    from ..utils.precision import keep_freed_memory, resolve_precision, weights_dtype
    from .predict_output import print_answers

    keep_freed_memory()
    with contextlib.ExitStack() as stack:
        stream = sys.stdout
        if run.output is not None and not to_parquet:
            stream = stack.enter_context(_opened(run.output))
        with loading(run.model):
            precision = resolve_precision(run.precision, run.device)
            # Gradients are of float32; without them the weights are read as they are used.
            has_gradients = pages is not None and pages.saliency is not None
            dtype = torch.float32 if has_gradients else weights_dtype(precision, run.device)
            pipeline = load_pipeline(run.model, device=run.device, dtype=dtype, **run.policies)
        model, extractor = pipeline.model, pipeline.feature_extractor
        # The package's own classes, by load_pipeline.
        assert isinstance(model, ECGFMForMultiLabelClassification)
        assert isinstance(extractor, ECGFMFeatureExtractor)
        source = _source(run, extractor, inspect=True)
        page = None if pages is None else pages.writer(pipeline, run.model)
        runner = ModelRunner(model, run.batch_size, precision, False, None, run.compile)
        if to_parquet:
            return _write_parquet(
                run,
                model,
                runner,
                extractor,
                source,
                score_schema(model.config),
                lambda read, logits, _: score_rows(read, logits, model.config),
                layer=None,
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise CommandFailed("several processes share a run only with --output FILE.parquet")
        return print_answers(
            runner, source, model.config, format, stream, failures=run.failures, workers=run.workers, page=page
        )


def _embed(run: _Run, layer: int, per_segment: bool) -> int:
    from ..inference.embeddings import embedding_rows, embedding_schema, load_encoder
    from ..inference.scoring import ModelRunner, check_layer
    from ..utils.precision import keep_freed_memory, resolve_precision

    keep_freed_memory()
    with loading(run.model):
        precision = resolve_precision(run.precision, run.device)
        model, extractor = load_encoder(run.model, device=run.device, precision=precision, **run.policies)
    chosen = check_layer(layer, model.config.num_hidden_layers)
    return _write_parquet(
        run,
        model,
        ModelRunner(model, run.batch_size, precision, True, chosen, run.compile),
        extractor,
        _source(run, extractor, inspect=False),
        embedding_schema(model.config.hidden_size, per_segment),
        lambda read, _, embeddings: embedding_rows(read, embeddings, per_segment),
        layer=chosen,
        per_segment=per_segment,
    )


@contextlib.contextmanager
def _opened(path: str) -> Iterator[TextIO]:
    """Open a file to write, which keeps its content until it is truncated. Errors name it."""
    try:
        with open(path, "a", encoding="utf-8", newline="") as stream:
            yield stream
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror or error}" if error.filename is None else error) from error


def _check_outputs(run: _Run) -> None:
    """Check that the outputs can be written, before hours of work."""
    paths = [path for path in (run.output, run.failures) if path is not None]
    for path in paths:
        if not os.path.isdir(folder := os.path.dirname(path) or "."):
            raise CommandFailed(f"there is no folder {folder}")
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise CommandFailed(f"--output and --failures are the same file: {run.output}")


def _source(run: _Run, extractor: "ECGFMFeatureExtractor", inspect: bool) -> "FileSource | StoreSource":
    from ..inference.sources import find_recordings, read_list

    inputs = list(run.inputs)
    if run.list_file == "-":
        inputs += read_list(sys.stdin.buffer)
    elif run.list_file is not None:
        with open(run.list_file, "rb") as file:
            inputs += read_list(file)
    if not inputs and run.table is None:
        raise CommandFailed("there are no recordings: give files, folders or stores, --list or --table")
    return find_recordings(
        inputs,
        extractor,
        table=run.table,
        root=run.root,
        columns=run.columns,
        split=run.split,
        arguments=run.arguments,
        inspect=inspect,
    )


def _write_parquet(
    run: _Run,
    model: "ECGFMPreTrainedModel",
    runner: "ModelRunner",
    extractor: "ECGFMFeatureExtractor",
    source: "FileSource | StoreSource",
    schema: "pa.Schema",
    to_rows: Callable[..., list[dict[str, Any]]],
    **settings: Any,
) -> int:
    from ..inference.parquet_run import ParquetRun, Processes, plan_of
    from .predict_output import report_written

    assert run.output is not None
    settings = {"command": run.command, "precision": runner.precision, "compile": run.compile, **settings}
    processes = Processes()
    try:
        parquet_run = ParquetRun(
            Path(run.output),
            source,
            runner,
            schema,
            to_rows,
            plan_of(model, extractor, source, **settings),
            failures_file=None if run.failures is None else Path(run.failures),
            part_size=run.part_size,
            num_workers=run.workers,
            progress=show_progress(),
            processes=processes,
        )
        result = parquet_run.run(overwrite=run.overwrite)
    except KeyboardInterrupt:
        raise CommandFailed("interrupted; the same command resumes", 130) from None
    except OSError as error:
        raise CommandFailed(f"{run.output}: {error}; the same command resumes", 1) from error
    finally:
        processes.end()
    if not processes.is_main:
        return 0
    if result.was_complete:
        print(f"ecgfm: {result.output} is complete already", file=sys.stderr)
    else:
        report_written(result.recordings - result.failed, run.output)
    if result.failed:
        where = f"{result.failed} of {result.recordings} recordings failed: see {result.failures_file}"
        print(f"ecgfm: {where}", file=sys.stderr)
    return 1 if result.failed else 0
