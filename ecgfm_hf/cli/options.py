"""What several commands share: options, parsers of values, progress, logging, failures. Imports no torch."""

import contextlib
import dataclasses
import functools
import importlib.util
import inspect
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO, get_type_hints

import typer

from ..utils.errors import ECGFMError, SettingsError
from ..utils.precision import Precision
from ..utils.text import names, printable, without_secrets
from .outputs import Reads

if TYPE_CHECKING:
    from ..utils.resumable_parts import Distribute

DEFAULT_CLUSTER = "default"  # of `--ray` without an address
# The feature extractor's policies. Its file is remote code, which must work without this package and imports
# transformers, which help must not wait for; tests/test_cli.py compares them.
MissingLeads = Literal["error", "zero", "derive"]
NanSamples = Literal["error", "zero", "interpolate"]
ConstantLeads = Literal["zero", "error"]
ShortRecordings = Literal["error", "pad"]
POLICIES = ("missing_leads", "nan_samples", "constant_leads", "short_recordings")
MISSING_LEADS = "Missing leads: refuse the recording, set them to zero, or derive limb leads from two others."
NAN_SAMPLES = "Missing samples: refuse the recording, set them to zero, or interpolate them."
CONSTANT_LEADS = "Constant leads: set them to zero, or refuse the recording."

PrecisionOption = Annotated[
    Precision,
    typer.Option(
        "--precision",
        "--dtype",
        help="auto: bfloat16 where the processor or GPU has instructions for it, else float32. int8: quantised linear "
        "layers, on a CPU (needs ecgfm-hf\\[int8]).",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="DEVICE", help="Such as cpu, cuda or cuda:0.")]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Segments per batch.")]
NumWorkersOption = Annotated[
    int, typer.Option("--num-workers", min=0, metavar="N", help="Worker processes that read recordings; 0: none.")
]
NumProcOption = Annotated[int, typer.Option("--num-proc", min=1, metavar="N", help="Number of processes.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, metavar="S", help="Seed of the random numbers.")]
SmallestCellOption = Annotated[
    int,
    typer.Option(
        "--smallest-cell",
        min=1,
        metavar="N",
        help="Withhold counts of fewer patients; 1 withholds nothing, for public data.",
    ),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="OURS=THEIRS,...",
        help='The table\'s names for our columns, such as patient_id=MRN,"path=file, raw". An empty name (age=) means '
        "that the table has no such column.",
    ),
]
RootOption = Annotated[
    str | None,
    typer.Option(
        "--root",
        metavar="DIR",
        help="Folder of a processed folder's segments, where it is not beside its manifests or as they name it.",
    ),
    Reads(),
]
StoreArgument = Annotated[Path, typer.Argument(metavar="STORE", help="Folder that `ecgfm prepare` wrote."), Reads()]


_FORMATS, _POLICIES = "What files contain", "Policies (default: as in the model's folder)"


@dataclasses.dataclass(frozen=True)
class ReadingOptions:
    """The options of commands that read recordings: what their files do not contain, and what is done with flaws."""

    sampling_rate: Annotated[
        float | None,
        typer.Option(
            "--sampling-rate",
            metavar="HZ",
            help="Sampling rate in Hz of CSV, TSV and .npy files.",
            rich_help_panel=_FORMATS,
        ),
    ] = None
    units: Annotated[
        str | None,
        typer.Option(
            "--units",
            metavar="UNIT",
            help="Unit of CSV, TSV, .npy and .mat files, such as mV. CODE-15 files are in mV by default.",
            rich_help_panel=_FORMATS,
        ),
    ] = None
    lead_names: Annotated[
        str | None,
        typer.Option(
            "--lead-names",
            metavar="I,II,...",
            help="Leads of the rows of .npy files. In CSV and TSV files: which columns are leads; without a "
            "header, all columns.",
            rich_help_panel=_FORMATS,
        ),
    ] = None
    rename_leads: Annotated[
        str | None,
        typer.Option(
            "--rename-leads",
            metavar="THEIRS=LEAD,...",
            help="Leads by the names in any file, such as ECG=I,MLII=II.",
            rich_help_panel=_FORMATS,
        ),
    ] = None
    leads: Annotated[
        str | None,
        typer.Option(
            "--leads", metavar="I,II,...", help="Read only these leads of any file.", rich_help_panel=_FORMATS
        ),
    ] = None
    checksums: Annotated[
        Literal["verify", "ignore"] | None,
        typer.Option(
            "--checksums",
            help="verify (default) refuses samples whose checksum is wrong; ignore reads them, with a warning.",
            rich_help_panel=_FORMATS,
        ),
    ] = None
    exam_id: Annotated[
        int | None,
        typer.Option(
            "--exam-id",
            metavar="N",
            help="Exam to read from a file of several: its exam_id in HDF5, its index from 0 in .npy.",
            rich_help_panel=_FORMATS,
        ),
    ] = None
    missing_leads: Annotated[
        MissingLeads | None,
        typer.Option("--missing-leads", help=MISSING_LEADS + " Usually: derive.", rich_help_panel=_POLICIES),
    ] = None
    nan_samples: Annotated[
        NanSamples | None,
        typer.Option("--nan-samples", help=NAN_SAMPLES + " Usually: error.", rich_help_panel=_POLICIES),
    ] = None
    constant_leads: Annotated[
        ConstantLeads | None,
        typer.Option("--constant-leads", help=CONSTANT_LEADS + " Usually: zero.", rich_help_panel=_POLICIES),
    ] = None
    short_recordings: Annotated[
        ShortRecordings | None,
        typer.Option(
            "--short-recordings",
            help="Recordings shorter than a segment: refuse them, or pad them with zeros. Usually: error.",
            rich_help_panel=_POLICIES,
        ),
    ] = None

    def __post_init__(self) -> None:
        self.arguments  # noqa: B018  # errors of usage come before anything heavy is imported

    @property
    def arguments(self) -> dict[str, Any]:
        """What `read_ecg` takes for formats that do not hold it."""
        return _given(
            sampling_rate=self.sampling_rate,
            units=self.units,
            lead_names=parse_names(self.lead_names, "--lead-names"),
            rename_leads=self.rename_leads,
            leads=parse_names(self.leads, "--leads"),
            checksums=self.checksums,
            exam_id=self.exam_id,
        )

    @property
    def policies(self) -> dict[str, Any]:
        """What the feature extractor takes in place of the model's own policies."""
        return _given(**{name: getattr(self, name) for name in POLICIES})


_SEVERAL = "Several processes or machines (docs/cluster.md)"


@dataclasses.dataclass(frozen=True)
class SharingOptions:
    """The options of commands whose parts may be shared: among processes by `--shard`, among machines by `--ray`."""

    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Write the I-th of N shares (I from 1), for several processes or machines. A run without --shard "
            "completes the output.",
            rich_help_panel=_SEVERAL,
        ),
    ] = None
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="[ADDRESS]",
            help="Run on a Ray cluster: HOST:PORT of its head, auto for this machine's, local to start one here "
            "(default: RAY_ADDRESS, else auto, else local). Needs ecgfm-hf\\[ray].",
            rich_help_panel=_SEVERAL,
        ),
    ] = None
    ray_workers: Annotated[
        int | None,
        typer.Option(
            "--ray-workers",
            min=1,
            metavar="N",
            help="At most N processes on the cluster (default: as many as it has room for).",
            rich_help_panel=_SEVERAL,
        ),
    ] = None
    gpus_per_worker: Annotated[
        float,
        typer.Option(
            "--gpus-per-worker",
            min=0,
            metavar="G",
            help="GPUs of each of these processes, also shares such as 0.5 (default: 0, on CPUs).",
            rich_help_panel=_SEVERAL,
        ),
    ] = 0.0

    def __post_init__(self) -> None:
        self.share  # noqa: B018  # errors of usage come first
        if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
            raise CommandFailed(
                "torchrun and accelerate launch would have each process do all of this work: start the command once "
                "with --ray, or once for each share with --shard I/N"
            )
        if self.ray is None and (self.ray_workers is not None or self.gpus_per_worker):
            raise SettingsError("--ray-workers and --gpus-per-worker need --ray")
        if self.ray is not None and self.share is not None:
            raise SettingsError("--ray and --shard exclude each other: Ray shares the parts itself")
        if self.ray is not None and importlib.util.find_spec("ray") is None:
            raise CommandFailed("--ray needs Ray: pip install 'ecgfm-hf[ray]'")

    @property
    def share(self) -> tuple[int, int] | None:
        """`--shard` as `(i, n)`, i from 0."""
        if self.shard is None:
            return None
        number, _, count = self.shard.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise SettingsError(f"--shard: must be I/N with I from 1 to N, found: {self.shard}")
        return int(number) - 1, int(count)

    def distribute(self, cpus_per_worker: int = 1) -> "Distribute | None":
        """Return what shares the parts among machines; None without `--ray`."""
        if self.ray is None:
            return None
        from ..distributed import RayExecutor

        return functools.partial(
            RayExecutor,
            address=None if self.ray == DEFAULT_CLUSTER else self.ray,
            workers=self.ray_workers,
            cpus_per_worker=cpus_per_worker,
            gpus_per_worker=self.gpus_per_worker,
        )

    def report_share(self, output: str | Path) -> None:
        """Print that a share is written."""
        assert self.share is not None
        print(
            f"share {self.share[0] + 1} of {self.share[1]} is written; the command without --shard completes {output}"
        )


def with_default_cluster(arguments: Sequence[str]) -> list[str]:
    """Return arguments in which `--ray` has an address, as an option's value is not optional in typer."""
    found = []
    for argument, after in zip_longest(arguments, arguments[1:], fillvalue=""):
        found.append(argument)
        if argument == "--ray" and not re.fullmatch(r"auto|local|\S*:\d+|\d+(\.\d+){3}", after):
            found.append(DEFAULT_CLUSTER)
    return found


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def expand_options(command: Callable[..., int]) -> Callable[..., int]:
    """
    Return a command with an option for each field of the dataclasses among its parameters.

    Options that several commands have are so defined once. A field is annotated as a parameter of a typer command.
    """
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        group = hints[parameter.name]
        fields = {parameter.name: parameter.default}
        if dataclasses.is_dataclass(group):
            groups[parameter.name] = group
            fields = {field.name: field.default for field in dataclasses.fields(group)}
        found = get_type_hints(group, include_extras=True) if dataclasses.is_dataclass(group) else hints
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=found[name])
            for name, default in fields.items()
        ]

    @functools.wraps(command)
    def expanded(**values: Any) -> int:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        return command(**values)

    return _with_parameters(expanded, parameters)


class CommandFailed(Exception):
    """A command cannot do its work. The message is printed; the command ends with `status`."""

    def __init__(self, message: object, status: int = 2) -> None:
        super().__init__(str(message))
        self.status = status


@contextlib.contextmanager
def failing_with(status: int, *errors: type[Exception], note: str = "") -> Iterator[None]:
    """End the command with this exit status where one of `errors` is raised; `note` is added to the message."""
    try:
        yield
    except errors as error:
        raise CommandFailed(f"{error}{note}", status) from error


# ----------------------------------------------------------------------------------------------------------------------
# Values
# ----------------------------------------------------------------------------------------------------------------------


def parse_names(text: str | None, option: str) -> list[str] | None:
    """Return the names in `A,B` or `"A, b",C`; None where the option is not given."""
    if text is None:
        return None
    try:
        return names(text)
    except SettingsError as error:
        raise SettingsError(f"{option}: {error}") from None


def parse_mapping(text: str | None, option: str = "--columns") -> dict[str, str] | None:
    """Return `OURS=THEIRS,...` as a mapping; None where the option is not given. Quote a pair that holds a comma."""
    found = parse_names(text, option)
    if found is None:
        return None
    pairs = [pair.partition("=") for pair in found]
    if not pairs or not all(ours.strip() and sign for ours, sign, _ in pairs):
        raise SettingsError(
            f"{option}: must look like OURS=THEIRS,... such as patient_id=MRN,path=file (age= ignores a column), "
            f"found: {text}"
        )
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


# ----------------------------------------------------------------------------------------------------------------------
# Progress and logging
# ----------------------------------------------------------------------------------------------------------------------

_QUIET = _VERBOSE = False

VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Log what is done, and print a traceback where a command fails.")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress bars and no warnings; errors are still printed.")
]


def show_progress() -> bool:
    """Return whether progress bars are shown: on a terminal, without `--quiet`."""
    return sys.stderr.isatty() and not _QUIET


class _EscapedStream:
    """
    A stream that shows control characters of names, labels and reports as escapes, since they act on a terminal, and
    addresses without passwords.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text. tqdm's own movements stay: a leading carriage return, or only moves by whole lines."""
        if text and not text.strip("\n\x1b[A"):
            return self._stream.write(text)
        start = "\r" if text.startswith("\r") else ""
        self._stream.write(start + printable(without_secrets(text[len(start) :])))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        if name == "_stream":  # not set yet, as in copies
            raise AttributeError(name)
        return getattr(self._stream, name)


def exact(stream: TextIO) -> TextIO:
    """Return a stream that writes what programs read as it is, unless it is a terminal."""
    return stream._stream if isinstance(stream, _EscapedStream) and not stream.isatty() else stream


@contextlib.contextmanager
def escaped_output() -> Iterator[None]:
    """Escape control characters in all that is printed, logged or warned of; see [`printable`]."""
    with contextlib.ExitStack() as stack:
        # Commands may be nested, and a stream may be missing (`pythonw`).
        if sys.stdout is not None and not isinstance(sys.stdout, _EscapedStream):
            stack.enter_context(contextlib.redirect_stdout(_EscapedStream(sys.stdout)))
        if sys.stderr is not None and not isinstance(sys.stderr, _EscapedStream):
            stack.enter_context(contextlib.redirect_stderr(_EscapedStream(sys.stderr)))
        yield


@contextlib.contextmanager
def logging_for(verbose: bool, quiet: bool) -> Iterator[None]:
    """
    Set the level of this package's log for a command: INFO with `verbose`, ERROR with `quiet`; then restore it.

    Both options may stand before the command or after it, so contexts may be nested.
    """
    global _QUIET, _VERBOSE
    before = _QUIET, _VERBOSE
    if (verbose or _VERBOSE) and (quiet or _QUIET):
        raise typer.BadParameter("--verbose and --quiet exclude each other")
    logger = logging.getLogger("ecgfm_hf")
    level, handler = logger.level, logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    if verbose and not _VERBOSE:
        logger.addHandler(handler)
    if verbose or quiet:
        logger.setLevel(logging.INFO if verbose else logging.ERROR)
    _QUIET, _VERBOSE = quiet or _QUIET, verbose or _VERBOSE
    try:
        with warnings.catch_warnings():
            if quiet:
                warnings.simplefilter("ignore")
            yield
    finally:
        _QUIET, _VERBOSE = before
        logger.setLevel(level)
        logger.removeHandler(handler)


def with_logging(command: Callable[..., int]) -> Callable[..., int]:
    """Return a command that takes `--verbose` and `--quiet`, too."""

    @functools.wraps(command)
    def logged(*, verbose: bool, quiet: bool, **values: Any) -> int:
        with escaped_output(), logging_for(verbose, quiet):
            return command(**values)

    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
        for name, option in (("verbose", VerboseOption), ("quiet", QuietOption))
    ]
    parameters = [*inspect.signature(command, eval_str=True).parameters.values(), *added]
    return _with_parameters(logged, parameters)


def _with_parameters(command: Callable[..., int], parameters: list[inspect.Parameter]) -> Callable[..., int]:
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect reads it, typeshed omits it
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


@contextlib.contextmanager
def quiet_libraries(datasets_too: bool = False) -> Iterator[None]:
    """Keep progress bars and advice of transformers (and datasets) out of the output; errors still come through."""
    if datasets_too:
        import datasets

        datasets.disable_progress_bars()
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    progress_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        # A caller of `main` in Python gets its own settings back.
        transformers_logging.set_verbosity(verbosity)
        if progress_bar:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that worker processes end with this one."""

    def interrupt(*_: object) -> None:
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


@contextlib.contextmanager
def loading(model: str) -> Iterator[None]:
    """Report any error in loading a model as one line that names the model."""
    try:
        yield
    except (ECGFMError, OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        # A damaged folder or a missing device is a KeyError or RuntimeError of a library; all else is a defect.
        what = f"{type(error).__name__}: {error}"
        local = os.path.isdir(model) or isinstance(error, FileNotFoundError)
        where = "" if local else "it is no folder here, and from the Hub: "
        raise CommandFailed(f"cannot load the model {model}: {where}{what}") from error
