"""What several commands share: options, parsers of values, progress, logging, failures. Imports no torch."""

import contextlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..utils.errors import SettingsError
from ..utils.name_lists import names

# Choices that help lists. tests/test_cli.py compares them with the library's own, whose modules import torch.
Precision = Literal["auto", "float32", "bfloat16", "int8"]
MissingLeads = Literal["error", "zero", "derive"]
NanSamples = Literal["error", "zero", "interpolate"]
ConstantLeads = Literal["zero", "error"]
ShortRecordings = Literal["error", "pad"]

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
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="OURS=THEIRS,...",
        help='The table\'s names for our columns, such as patient_id=MRN,"path=file, raw". An empty name (age=) means '
        "that the table has no such column.",
    ),
]
StoreArgument = Annotated[Path, typer.Argument(metavar="STORE", help="Folder that `ecgfm prepare` wrote.")]


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

_QUIET = False


def show_progress() -> bool:
    """Return whether progress bars are shown: on a terminal, without `--quiet`."""
    return sys.stderr.isatty() and not _QUIET


@contextlib.contextmanager
def logging_for(verbose: bool, quiet: bool) -> Iterator[None]:
    """Set the level of this package's log for a command: INFO with `verbose`, ERROR with `quiet`; then restore it."""
    global _QUIET
    logger, before = logging.getLogger("ecgfm_hf"), _QUIET
    level, handler = logger.level, logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s" if verbose else "%(message)s"))
    if verbose:
        logger.addHandler(handler)
    if verbose or quiet:
        logger.setLevel(logging.INFO if verbose else logging.ERROR)
    _QUIET = quiet
    try:
        with warnings.catch_warnings():
            if quiet:
                warnings.simplefilter("ignore")
            yield
    finally:
        _QUIET = before
        logger.setLevel(level)
        logger.removeHandler(handler)


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
    """Report whatever goes wrong while a model is loaded as one line that names the model."""
    try:
        yield
    except Exception as error:  # what libraries raise for a damaged folder or a missing device has no common class
        what = f"{type(error).__name__}: {error}"
        local = os.path.isdir(model) or isinstance(error, FileNotFoundError)
        where = "" if local else "it is no folder here, and from the Hub: "
        raise CommandFailed(f"cannot load the model {model}: {where}{what}") from error
