"""`ecgfm`: the table of commands, which are imported on demand, how errors are reported, and exit statuses."""

import ast
import contextlib
import importlib
import logging
import os
import re
import select
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from .. import __version__
from ..utils.errors import ECGFMError
from ..utils.text import as_names, printable, without_secrets
from .options import (
    CommandFailed,
    QuietOption,
    VerboseOption,
    logging_for,
    with_default_cluster,
    with_logging,
)
from .outputs import with_checked_outputs

# The base of all errors of usage; typer exports only this one of its kind.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]
# How a library's message names an argument: `overwrite=True`, `units='mV'`, `labels=['AF']`, `heads=4`, `heads=N` or
# `labels=`.
_ARGUMENT = re.compile(
    r"""(?<![\w./\\-])(\w+)=(True|False|[A-Z]+\b|\d+(?:\.\d+)?(?![\w.]*\w)|'[^']*'|"[^"]*"|\[[^]]*\]|\{[^}]*\}"""
    r"""|(?=[\s,;:.)]|$))"""
)


class _Command(NamedTuple):
    panel: str
    module: str
    function: str


# In the order of help. Functions are named like their commands, with underscores.
COMMANDS = {
    name: _Command(panel, f".{module}", name.replace("-", "_"))
    for panel, commands in {
        "Using models": {
            "inspect": "inspect",
            "predict": "predict",
            "embed": "predict",
            "embed-map": "predict",
            "app": "app",
            "export-onnx": "export_onnx",
        },
        "Data": {"prepare": "prepare", "split": "prepare", "label": "label", "synthesize": "synthesize"},
        "Training": {"pretrain": "pretrain", "finetune": "finetune", "probe": "probe"},
        "Evaluation": {"evaluate": "evaluate", "study": "study"},
        "Integrity": {"verify": "verify"},
        "Sharing": {"card": "card", "push": "push"},
        "fairseq-signals": {
            "convert": "convert",
            "export-fairseq": "export_fairseq",
            "fairseq-hydra-train": "fairseq_hydra_train",
        },
    }.items()
    for name, module in commands.items()
}


class _WithOptionalAddress(TyperCommand):
    """A command whose `--ray` may stand without an address, which typer has no options for."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # typer's context, vendored or not
        return super().parse_args(ctx, with_default_cluster(args))


class _Commands(TyperGroup):
    """Imports a command's module when the command is used or its help is shown."""

    chosen: TyperCommand | None = None

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # typer's context, vendored or not
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> TyperCommand | None:  # type: ignore[override]  # as above
        if cmd_name not in COMMANDS:
            return None
        self.chosen = load_command(cmd_name)
        return self.chosen

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # as above
        """Run a command; with `--verbose`, log the traceback of what stops it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise CommandFailed("interrupted", 130) from None
        except BrokenPipeError as error:
            if _reader_left():
                raise
            raise CommandFailed(
                "a pipe was closed while it was written to: the reader of an output, or a process of this run, has "
                "ended. Run the same command again",
                1,
            ) from error
        except (typer.Exit, typer.Abort, _UsageError):
            raise
        except Exception:
            logging.getLogger(__name__).info("the command failed", exc_info=True)
            raise


def load_command(name: str) -> TyperCommand:
    """Return a command, with its options."""
    found = COMMANDS[name]
    function = getattr(importlib.import_module(found.module, __package__), found.function)
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    app.command(name, cls=_WithOptionalAddress, rich_help_panel=found.panel, no_args_is_help=False)(
        with_logging(with_checked_outputs(function))
    )
    command = typer.main.get_command(app)
    assert isinstance(command, TyperCommand)
    return command


def in_options(message: str, command: TyperCommand | None) -> str:
    """
    Return a library's message with its arguments as the options of a command: `units='mV'` becomes `--units mV`.

    What the command has no option for stays as it is.
    """
    options: dict[str | None, Any] = {} if command is None else {option.name: option for option in command.params}

    def as_option(found: re.Match[str]) -> str:
        option, value = options.get(found[1]), found[2]
        names = [name for name in getattr(option, "opts", ()) if name.startswith("--")]
        if not names:
            return found[0]
        if value in ("", "True"):
            return names[0]
        if value == "False":
            return next(iter(getattr(option, "secondary_opts", ())), found[0])
        try:
            given = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            given = value  # a word in capitals, for what the user has to fill in
        given = value if isinstance(given, int | float) else given
        given = [f"{key}={of}" for key, of in given.items()] if isinstance(given, dict) else given
        return f"{names[0]} {shlex.quote(given if isinstance(given, str) else as_names(given))}"

    return _ARGUMENT.sub(as_option, message)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"ecgfm-hf {__version__}")
        raise typer.Exit


def _ecgfm(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """ECG-FM, the open foundation model for the 12-lead electrocardiogram."""
    ctx.with_resource(logging_for(verbose, quiet))


def build_command() -> Any:
    """Return the command `ecgfm`: typer's group, with completion."""
    app = typer.Typer(cls=_Commands, rich_markup_mode="rich", pretty_exceptions_enable=False)
    app.callback()(_ecgfm)
    return typer.main.get_command(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Args:
        arguments (sequence of `str`, *optional*): Default: the process's.

    Returns:
        `int`: the exit status. 0 all went well, 1 something failed, 2 usage, 130 interrupted.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if not given and "_ECGFM_COMPLETE" not in os.environ:
        with contextlib.redirect_stdout(sys.stderr):
            _run(["--help"])
        return 2
    return _run(given)


def _run(arguments: list[str]) -> int:
    group = build_command()
    try:
        status = group.main(args=arguments, prog_name="ecgfm", standalone_mode=False)
        sys.stdout.flush()
        return int(status or 0)
    except SystemExit as error:  # completion, and a reader of standard output that has left
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except (KeyboardInterrupt, typer.Abort):  # while arguments are read
        return _failed("interrupted", 130)
    except BrokenPipeError:
        # The reader (such as `head`) has left; Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except CommandFailed as error:
        return _failed(in_options(str(error), group.chosen), error.status)
    except _UsageError as error:
        context = getattr(error, "ctx", None)
        path = "ecgfm" if context is None else context.command_path
        message = getattr(error, "format_message", error.__str__)()
        return _failed(f"{message} (see {path} --help)", 2)
    except (ECGFMError, ValueError, RuntimeError, ImportError) as error:
        if _lost_process(error):
            print("ecgfm: another process of this run has ended, and its error is the cause", file=sys.stderr)
            return 1
        if not _is_message(error):
            return _failed_unexpectedly()
        # A RuntimeError of this package is a failure of the work; all else is input that cannot be used.
        status = 1 if isinstance(error, RuntimeError) else 2
        return _failed(in_options(str(error), group.chosen), status)
    except OSError as error:
        unusable = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
        status = 2 if isinstance(error, unusable) else 1  # else no space or no permission
        return _failed(in_options(str(error), group.chosen), status)
    except Exception:
        return _failed_unexpectedly()


def _reader_left() -> bool:
    """Return whether the reader of standard output or standard error has ended, as `head` does."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # no file, or closed
            poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _is_message(error: Exception) -> bool:
    """Return whether an error was raised for the user to read, and is not a defect of this package."""
    if isinstance(error, ECGFMError):
        return True
    if isinstance(error, ImportError):
        return not (error.name or "").startswith("ecgfm_hf")  # a missing extra
    *_, frame = traceback.extract_tb(error.__traceback__)
    return Path(frame.filename).is_relative_to(Path(__file__).parents[1])


def _lost_process(error: Exception) -> bool:
    """Return whether torch reports that another process of the same run has ended."""
    return "RANK" in os.environ and re.search(r"Connection (closed|reset) by peer", str(error)) is not None


def _failed_unexpectedly() -> int:
    """Print the traceback of the error that is being handled, and how to report it; return the exit status."""
    print(printable(without_secrets(traceback.format_exc())), end="", file=sys.stderr)
    return _failed(
        "unexpected error: this is a defect of ecgfm-hf. Please send its maintainers the traceback above, the "
        "command, and what `ecgfm --version` prints. Remove names, ids and paths of patients first",
        1,
    )


def _failed(message: object, status: int) -> int:
    """Print why a command failed, once among several processes; return its exit status."""
    if os.environ.get("RANK", "0") == "0":
        print(printable(without_secrets(f"ecgfm: {message}")), file=sys.stderr)
    return status
