"""
Traces of the machine, and secrets, in text that is about to be published: absolute paths, names of the user and the
host, access tokens.

Meant for accidents, such as a path that a tool wrote into a config; whoever wants to hide a path from it can.
"""

import contextlib
import functools
import getpass
import html
import json
import os
import platform
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..utils.redaction import find_paths

# Accounts and hosts of this name say nothing about anybody.
_EVERYBODY = {"root", "user", "admin", "administrator", "ubuntu", "debian", "jovyan", "runner", "nobody", "guest"}
_EVERYBODY |= {"localhost", "localdomain", "ec2-user", "vscode", "docker", "container", "test", "local"}
_EVERYBODY |= {"home", "work", "workspace"}
_SHORTEST_NAME = 3
_PATH, _SECRET = "a path of a machine", "a secret"

_PRIVATE_ADDRESS = re.compile(
    r"(?<![\w.])(?:10\.\d{1,3}\.\d{1,3}\.\d{1,3}|192\.168\.\d{1,3}\.\d{1,3}|172\.(?:1[6-9]|2\d|3[01])\.\d{1,3}\.\d{1,3})"
    r"(?![\w.]*\w)"
)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}|-----BEGIN [A-Z ]*PRIVATE KEY-----")


@dataclass(frozen=True)
class Trace:
    """
    Args:
        where (`str`): Such as `"line 3"`, or a key of a JSON file.
        kind (`str`): Such as `"a path of a machine"`.
        text (`str`): What was found; of a secret, its first letters.
    """

    where: str
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}, {self.text!r}"


@dataclass(frozen=True)
class Machine:
    """
    What must not be told of the machine.

    Args:
        users (tuple of `str`): Names of its user. Compared as written: `smith` is not `Smith et al.`
        hosts (tuple of `str`): Names of the host, in any case.
        home (`str`): The user's folder.
    """

    users: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    home: str = ""

    def pushing_to(self, repo_id: str | None) -> "Machine":
        """The same, but for a user who has the same name on the Hub, where it is in the repository's name anyway."""
        namespace = repo_id.partition("/")[0].lower() if repo_id and "/" in repo_id else None
        return replace(self, users=tuple(name for name in self.users if name.lower() != namespace))


def this_machine() -> Machine:
    """This one, as the system and the environment name it. Asks no network."""
    users = [os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")]
    with contextlib.suppress(OSError, KeyError, ImportError):  # a container whose user has no name
        users.append(getpass.getuser())
    home = os.path.expanduser("~")
    users.append(Path(home).name)
    hosts = [socket.gethostname(), platform.node(), os.environ.get("HOSTNAME", "")]
    hosts += [host.partition(".")[0] for host in hosts]
    # `~` where the home is unknown, `/` where a service has none.
    return Machine(_known(users), _known(hosts), home if len(home) > 1 else "")


def _known(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({name for name in names if len(name) >= _SHORTEST_NAME}))


def find_traces(text: str, machine: Machine, allow: Iterable[str] = ()) -> list[Trace]:
    """
    Looks through a text: as it stands, with its escapes read (percent signs, HTML entities), and, where it is JSON,
    string by string.

    Args:
        text (`str`)
        machine ([`Machine`]): Whose names are looked for. One that is an ordinary word (it is in the code that goes
            with every model, or an account that everybody has) is only found before an `@` and in paths.
        allow (iterable of `str`): Findings of exactly this text are left out.

    Returns:
        list of [`Trace`]: each text and kind once, and of a path no names that stand in it.
    """
    allow, found = set(allow), {}
    for where, reading in _readings(text):
        paths: list[tuple[int, int]] = []
        for (start, end), trace in _look(reading, machine):
            if trace.text in allow:
                continue
            if trace.kind == _PATH:
                paths.append((start, end))
            elif trace.kind != _SECRET and any(first <= start and end <= last for first, last in paths):
                continue
            key = (trace.kind, trace.text)
            found.setdefault(key, Trace(where or trace.where, trace.kind, trace.text))
    return list(found.values())


def _readings(text: str) -> Iterator[tuple[str, str]]:
    yield "", text
    for read in (unquote, html.unescape):
        if (other := read(text)) != text:
            yield "", other
    with contextlib.suppress(ValueError, RecursionError):  # no JSON, or nested without end
        yield from list(_strings(json.loads(text), ""))


def _strings(content: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(content, str):
        yield f"key {key}", content
    elif isinstance(content, dict):
        for name, value in content.items():
            yield f"a key in {key or 'the file'}", name
            yield from _strings(value, f"{key}.{name}".lstrip("."))
    elif isinstance(content, list):
        for number, value in enumerate(content):
            yield from _strings(value, f"{key}[{number}]")


def _look(text: str, machine: Machine) -> Iterator[tuple[tuple[int, int], Trace]]:
    """Findings and where they stand; paths before the names that may be in them."""

    def trace(match: re.Match, kind: str) -> tuple[tuple[int, int], Trace]:
        line = text.count("\n", 0, match.start()) + 1
        shown = _TOKEN.sub(_beginning, match.group().rstrip(".,;:)"))
        return match.span(), Trace(f"line {line}", kind, shown)

    for match in find_paths(text):
        yield trace(match, _PATH)
    for match in _TOKEN.finditer(text):
        yield trace(match, _SECRET)
    if machine.home:
        for match in re.finditer(rf"(?<![\w/.]){re.escape(machine.home)}(?![\w-])", text):
            yield trace(match, "the user's folder")
    for match in _PRIVATE_ADDRESS.finditer(text):
        yield trace(match, "an address in a private network")
    for names, flags, kind in (
        (machine.users, 0, "the user's name"),
        (machine.hosts, re.IGNORECASE, "the host's name"),
    ):
        for name in names:
            # An ordinary word needs a context that makes a name of it; paths have been looked for above.
            after = r"(?=@[\w-])" if _is_ordinary(name) else r"(?![A-Za-z0-9])"
            for match in re.finditer(rf"(?<![A-Za-z0-9]){re.escape(name)}{after}", text, flags):
                yield trace(match, kind)


def _beginning(secret: re.Match) -> str:
    """As much of a secret as may be printed."""
    return f"{secret.group()[:5]}..."


def _is_ordinary(name: str) -> bool:
    return name.lower() in _EVERYBODY or name.lower() in _words_of_every_model()


@functools.cache
def _words_of_every_model() -> frozenset[str]:
    """Words of the code that goes with every model: they cannot give anybody away."""
    code = (path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].glob("*_ecgfm.py"))
    return frozenset(word.lower() for text in code for word in re.findall(r"[A-Za-z][A-Za-z0-9]+", text))


__all__ = ["Machine", "Trace", "find_traces", "this_machine"]
