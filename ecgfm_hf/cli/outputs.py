"""Which options name inputs and which outputs: one check for all commands, before they do anything."""

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.errors import OutputExistsError, SettingsError
from ..utils.files import check_output

IsOwn = Callable[[Path], bool]
_WFDB = (".hea", ".dat", ".mat")


@dataclass(frozen=True)
class Reads:
    """Marks an option that names an input: a file, a folder, several of them, or a name on the Hub."""


@dataclass(frozen=True)
class Writes:
    """
    Marks an option that names an output: a file or a folder.

    Args:
        is_own: Returns whether an existing file or folder is the output of an earlier run of the same command.
        names: Of the files that are written into a folder whose other files stay; None where all of the path is.
        also: Returns further paths that are written, given all options by name, each with its own `is_own`.
    """

    is_own: IsOwn | None = None
    names: tuple[str, ...] | None = None
    also: Callable[[Mapping[str, Any]], Iterable[tuple[Path, IsOwn]]] | None = None


def roles_of(command: Callable[..., int]) -> dict[str, Reads | Writes]:
    """Return which parameters of a command name inputs and outputs."""
    return {
        name: mark
        for name, parameter in inspect.signature(command, eval_str=True).parameters.items()
        for mark in getattr(parameter.annotation, "__metadata__", ())
        if isinstance(mark, Reads | Writes)
    }


def with_checked_outputs(command: Callable[..., int]) -> Callable[..., int]:
    """Return a command that first checks that its outputs replace nothing but its own earlier ones; see [`Writes`]."""
    roles = roles_of(command)

    @functools.wraps(command)
    def checked(**values: Any) -> int:
        inputs = [
            path
            for name, mark in roles.items()
            if isinstance(mark, Reads) and values[name] is not None
            for given in (values[name] if isinstance(values[name], list) else [values[name]])
            for path in (os.fspath(given), *companions(os.fspath(given)))
        ]
        used: dict[str, str] = {}
        for name, mark in roles.items():
            value = values[name]
            if isinstance(mark, Reads) or value is None or os.fspath(value) == "-":
                continue
            option = f"--{name.replace('_', '-')}"
            try:
                os.fspath(value).encode()
            except UnicodeEncodeError:
                # Tables and JSON files cannot hold such a name.
                raise SettingsError(f"{option}: the name {os.fspath(value)!r} is not UTF-8: give another") from None
            # Names that differ in letter case are one file on some file systems.
            if (first := used.setdefault(os.path.realpath(value).casefold(), option)) != option:
                raise SettingsError(f"{first} and {option} are the same file: {value}")
            _check(Path(value), mark, inputs, values)
        return command(**values)

    return checked


def _check(path: Path, mark: Writes, inputs: list[str], values: Mapping[str, Any]) -> None:
    written = [(path, mark.is_own)]
    if mark.names is not None:
        for given in inputs:
            if path.is_dir() and os.path.exists(given) and os.path.samefile(path, given):
                raise OutputExistsError(f"{path} is an input, and nothing is written into it: give another folder")
        written = [(path / name, mark.is_own) for name in mark.names]
    for each, is_own in (*written, *(() if mark.also is None else mark.also(values))):
        check_output(each, inputs, overwrite=values.get("overwrite"), is_own=is_own)


def companions(path: str) -> list[str]:
    """Return the files of a WFDB recording, its segments included, given its name, header or signal file."""
    stem, suffix = os.path.splitext(path)
    header = Path(f"{stem if suffix.lower() in _WFDB else path}.hea")
    if not header.is_file():
        return []
    from ..data.sources.base import recording_files  # imports pyarrow

    return recording_files(path)


__all__ = ["Reads", "Writes", "companions", "roles_of", "with_checked_outputs"]
