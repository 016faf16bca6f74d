"""
Find private details in text before it is published: paths, addresses, names of user and host, secrets, training ids.

This finds accidents, such as a path that a tool wrote into a config. It does not find what is hidden on purpose.

Secrets are found by the forms that their issuers document. detect-secrets, which has such a list, had its last release
in May 2024 and misses several of them (fine-grained GitHub tokens, project keys of OpenAI, Hugging Face tokens).
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

from ..data.leakage import seen_ids
from ..utils.redaction import find_paths

# Accounts and hosts with these names identify no person.
_COMMON_NAMES = {"root", "user", "admin", "administrator", "ubuntu", "debian", "jovyan", "runner", "nobody", "guest"}
_COMMON_NAMES |= {"localhost", "localdomain", "ec2-user", "vscode", "docker", "container", "test", "local"}
_COMMON_NAMES |= {"home", "work", "workspace"}
_SHORTEST_NAME = 3
_PATH, _SECRET = "a path of a machine", "a secret"

_PRIVATE_ADDRESS = re.compile(
    r"(?<![\w.])(?:10\.\d{1,3}\.\d{1,3}\.\d{1,3}|192\.168\.\d{1,3}\.\d{1,3}|172\.(?:1[6-9]|2\d|3[01])\.\d{1,3}\.\d{1,3})"
    r"(?![\w.]*\w)"
    # IPv6: unique local and link-local.
    r"|(?<![\w:])(?:f[cd][0-9a-f]{2}|fe80):[0-9a-f:]*[0-9a-f](?![\w:])",
    re.IGNORECASE,
)
_PRIVATE_HOST = re.compile(
    r"(?<![\w.@-])(?:[\w-]+\.)+(?:local|lan|intranet|internal|corp|localdomain)(?![\w(-]|\.\w)", re.IGNORECASE
)
_MAIL = re.compile(r"(?<![\w.+-])(?!git@)[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_STORAGE = re.compile(
    r"\b(?:s3[an]?|gs|gcs|abfss?|wasbs?|adl|hdfs|dbfs|r2|oss|cos|swift|smb|cifs|nfs|sftp|scp|ssh|rsync)://[^\s\"'<>)\]]+"
    r"|\b[\w.-]+\.s3[\w.-]*\.amazonaws\.com\b|\bs3[\w.-]*\.amazonaws\.com/[^\s\"'<>)\]]+"
    r"|\bstorage\.(?:googleapis|cloud\.google)\.com/[^\s\"'<>)\]]+"
    r"|\b[\w-]+\.(?:blob|dfs|file)\.core\.windows\.net\b",
    re.IGNORECASE,
)
# What is secret is the group `secret`, or all of a match without one.
_TOKEN = re.compile(
    "|".join(
        (
            r"\bhf_[A-Za-z0-9]{16,}",
            r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----",
            r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b",  # AWS
            r"\bgh[oprsu]_[A-Za-z0-9]{30,}",
            r"\bgithub_pat_\w{20,}",
            r"\bgl(?:pat|ptt|dt|rt|cbt|ft|agent|soat)-[\w-]{16,}",  # GitLab
            r"\bsk-(?=[\w-]*\d)[\w-]{20,}",  # OpenAI, Anthropic
            r"\b[rs]k_(?:live|test)_\w{16,}",  # Stripe
            r"\bxox[a-z](?:\.xox[a-z])?-[\w-]{10,}|\bxapp-[\w-]{10,}",  # Slack
            r"\bhooks\.slack\.com/services/[\w/]+",
            r"\bAIza[\w-]{35}",  # Google
            r"\bya29\.[\w-]{20,}",
            r"\bpypi-[\w-]{50,}",
            r"\bnpm_[A-Za-z0-9]{36}",
            r"\bSG\.[\w-]{16,}\.[\w-]{16,}",  # SendGrid
            r"\bdckr_pat_[\w-]{20,}",
            r"\bwandb_v\d_\w{20,}",
            r"\bAccountKey=[\w+/=]{40,}|[?&]sig=[\w%+/=-]{20,}",  # Azure
            r"[?&]X-(?:Amz|Goog)-Signature=\w{16,}",
            r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+",  # JSON web token
            r"(?i:\bauthorization[\"']?\s*[:=]\s*[\"']?(?:basic|bearer|token|digest)\s+\S{8,})",
            r"(?i:\b(?:wandb|(?:api|access|secret)[ _-]?key|token|secret|passw(?:or)?d)\W{1,4}(?:is\W+)?"
            r"[0-9a-f]{32,}\b)",
            r"(?i:(?:\b|_)(?:passw(?:or)?d|pwd|secret|(?:api|access|secret)_?key|(?:access|auth)_token)[\"']?\s*[:=]\s*"
            r"[\"']?(?=[^\s\"']*\d)(?=[^\s\"']*[a-z])[^\s\"'(){}<>]{8,})",
            r"\b[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@\"'<>]*:[^\s/@\"'<>]+@",  # user:password@
        )
    )
)


@dataclass(frozen=True)
class PrivateDetail:
    """
    A finding in a text.

    Args:
        where (`str`): Such as `"line 3"`, or a key of a JSON file.
        kind (`str`): Such as `"a path of a machine"`.
        text (`str`): The text that was found; of a secret, only the first letters.
    """

    where: str
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}, {self.text!r}"


@dataclass(frozen=True)
class Machine:
    """
    The names of a machine that must not be published.

    Args:
        users (tuple of `str`): Names of its user, case-sensitive: `smith` does not match `Smith et al.`
        hosts (tuple of `str`): Names of the host, in any case.
        home (`str`): The user's home folder.
    """

    users: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    home: str = ""

    def pushing_to(self, repo_id: str | None) -> "Machine":
        """Return this machine without the user name that is also the namespace of `repo_id`: it is public there."""
        namespace = repo_id.partition("/")[0].lower() if repo_id and "/" in repo_id else None
        return replace(self, users=tuple(name for name in self.users if name.lower() != namespace))


def this_machine() -> Machine:
    """Return the names of this machine from the system and the environment. Uses no network."""
    users = [os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")]
    with contextlib.suppress(OSError, KeyError, ImportError):  # a container whose user has no name
        users.append(getpass.getuser())
    home = os.path.expanduser("~")
    users.append(Path(home).name)
    hosts = [socket.gethostname(), platform.node(), os.environ.get("HOSTNAME", "")]
    hosts += [host.partition(".")[0] for host in hosts]
    # `~` if the home is unknown, `/` if a service has none.
    return Machine(_long_enough(users), _long_enough(hosts), home if len(home) > 1 else "")


def _long_enough(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({name for name in names if len(name) >= _SHORTEST_NAME}))


def find_private_details(text: str, machine: Machine, allow: Iterable[str] = ()) -> list[PrivateDetail]:
    """
    Find private details in a text: as it is, with percent signs and HTML entities decoded, and, if it is JSON, string
    by string.

    Args:
        text (`str`)
        machine ([`Machine`]): The names to search for. A name that is an ordinary word (a word of the model code, or a
            common account) is only found before an `@` and in paths.
        allow (iterable of `str`): Findings with exactly this text are ignored.

    Returns:
        list of [`PrivateDetail`]: each text and kind once. Names inside a path that was found are not repeated.
    """
    allowed = set(allow)
    found: dict[tuple[str, str], PrivateDetail] = {}
    for where, reading in readings(text):
        paths: list[tuple[int, int]] = []
        for (start, end), detail in _findings(reading, machine):
            if detail.text in allowed:
                continue
            if detail.kind == _PATH:
                paths.append((start, end))
            elif detail.kind != _SECRET and any(first <= start and end <= last for first, last in paths):
                continue
            key = (detail.kind, detail.text)
            found.setdefault(key, PrivateDetail(where or detail.where, detail.kind, detail.text))
    return list(found.values())


def readings(text: str) -> Iterator[tuple[str, str]]:
    """
    Yield a text as a reader may see it: as it is, with percent signs and HTML entities decoded, and JSON's strings.

    Returns:
        Pairs (the JSON file's key as in `"key a.b"`, otherwise an empty text; text).
    """
    yield "", text
    for read in (unquote, html.unescape):
        if (other := read(text)) != text:
            yield "", other
    with contextlib.suppress(ValueError, RecursionError):  # not JSON, or nested too deeply
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


def _findings(text: str, machine: Machine) -> Iterator[tuple[tuple[int, int], PrivateDetail]]:
    """Yield findings with their spans; paths come before the names that may be in them."""

    def finding(match: re.Match[str], kind: str) -> tuple[tuple[int, int], PrivateDetail]:
        line = text.count("\n", 0, match.start()) + 1
        shown = _TOKEN.sub(_beginning, match.group().rstrip(".,;:)"))
        return match.span(), PrivateDetail(f"line {line}", kind, shown)

    for match in find_paths(text):
        yield finding(match, _PATH)
    for match in _TOKEN.finditer(text):
        yield finding(match, _SECRET)
    for pattern, kind in (
        (_STORAGE, "an address of a storage"),
        (_PRIVATE_HOST, "a host in a private network"),
        (_MAIL, "a mail address"),
    ):
        for match in pattern.finditer(text):
            yield finding(match, kind)
    if machine.home:
        for match in re.finditer(rf"(?<![\w/.]){re.escape(machine.home)}(?![\w-])", text):
            yield finding(match, "the user's folder")
    for match in _PRIVATE_ADDRESS.finditer(text):
        yield finding(match, "an address in a private network")
    for names, flags, kind in (
        (machine.users, 0, "the user's name"),
        (machine.hosts, re.IGNORECASE, "the host's name"),
    ):
        for name in names:
            # An ordinary word counts as a name only before an @. Paths were searched above.
            after = r"(?=@[\w-])" if _is_ordinary(name) else r"(?![A-Za-z0-9])"
            for match in re.finditer(rf"(?<![A-Za-z0-9]){re.escape(name)}{after}", text, flags):
                yield finding(match, kind)


def _beginning(secret: re.Match[str]) -> str:
    """Return the part of a secret that may be printed."""
    return f"{secret.group()[:5]}..."


def _is_ordinary(name: str) -> bool:
    return name.lower() in _COMMON_NAMES or name.lower() in _words_of_every_model()


@functools.cache
def _words_of_every_model() -> frozenset[str]:
    """Return the words of the model code, which is uploaded with every model: they identify no person."""
    code = (path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].glob("*_ecgfm.py"))
    return frozenset(word.lower() for text in code for word in re.findall(r"[A-Za-z][A-Za-z0-9]+", text))


# Numbers with a fraction are no ids; of a column with gaps ids end in `.0`.
_DECIMAL = re.compile(r"(?<![\w.])\d+\.(?!0\b)\d+(?:e[-+]?\d+)?(?![\w.])", re.IGNORECASE)
_SHORTEST_ID = 6
_MOST_PARTS = 8  # of an id, such as MRN-00-12-34


def find_training_ids(text: str, model_dir: str | Path) -> list[str]:
    """
    Find ids of training recordings and patients as whole words of a text, in any letter case.

    Ids of fewer than six characters are not searched: such words and numbers are in any text.

    Args:
        text (`str`)
        model_dir (`str` or `Path`): The folder whose list of training ids is used; without one nothing is found.

    Returns:
        list of `str`: where each is (`"line 3"`, or a key of a JSON file). The id itself is not returned, because
            output may be logged.

    Raises:
        `ValueError`: the list is damaged.
    """
    found: dict[str, dict[str, None]] = {}
    for where, reading in readings(text):
        new: dict[str, dict[str, None]] = {}
        for number, line in enumerate(reading.splitlines(), 1):
            for word in _possible_ids(line) - found.keys():
                new.setdefault(word, {})[where or f"line {number}"] = None
        found |= new
    ids = seen_ids(model_dir, found)
    return list(dict.fromkeys(where for word, lines in found.items() if word in ids for where in lines))


def _possible_ids(line: str) -> set[str]:
    """Return the words of a line, and those joined by signs as in `MRN-001`, if they are long enough to be ids."""
    words: set[str] = set()
    for chunk in _DECIMAL.sub(" ", line).split():
        spans = [match.span() for match in re.finditer(r"[^\W_]+", chunk)]
        for first, (start, _) in enumerate(spans):
            words.update(chunk[start:end] for _, end in spans[first : first + _MOST_PARTS])
    return {word for word in words if len(word) >= _SHORTEST_ID}


__all__ = ["Machine", "PrivateDetail", "find_private_details", "find_training_ids", "readings", "this_machine"]
