"""WFDB recordings are two files: a header and the signals it names."""

import os
from collections.abc import Iterable
from pathlib import Path

from .base import LeftOut, walk_files

_SIGNALS = (".mat", ".dat")
_LONGEST_HEADER = 1 << 20


def header_of(root: Path, path: str) -> str:
    """The header that is read where a table says `path` (`001`, `001.mat`); `path` itself where it is no WFDB."""
    stem, suffix = os.path.splitext(path)
    if suffix.lower() in _SIGNALS:
        header = f"{stem}.hea"
    elif suffix.lower() == ".hea" or os.path.isfile(os.path.join(root, path)):
        return path
    else:
        header = f"{path}.hea"
    return header if os.path.isfile(os.path.join(root, header)) else path


def tell_headless(root: Path, headers: Iterable[str], left_out: list[LeftOut], taken: Iterable[str] = ()) -> None:
    """
    Accounts for signal files whose header is gone, which would otherwise be lost without a word.

    Args:
        root (`Path`)
        headers (iterable of `str`): Those found, relative to the folder.
        left_out (list of [`LeftOut`]): What is found goes here.
        taken (iterable of `str`): Files that are recordings by themselves.
    """
    by_folder: dict[str, list[str]] = {}
    for header in headers:
        by_folder.setdefault(header.rpartition("/")[0], []).append(header)
    headed = {header[: -len(".hea")] for found in by_folder.values() for header in found}
    taken = set(taken)
    named: dict[str, set[str]] = {}
    told = {os.path.splitext(one.path)[0] for one in left_out if one.path is not None}
    unnamable: list[LeftOut] = []
    for path in walk_files(root, _SIGNALS, unnamable):
        folder, _, name = path.rpartition("/")
        if path[: -len(".mat")] in headed or path in taken:
            continue
        if folder not in named:  # a header may name signals that are not called like it
            named[folder] = {word for header in by_folder.get(folder, ()) for word in _first_words(root / header)}
        if name not in named[folder]:
            detail = f"{path}: a signal file without a header"
            left_out.append(LeftOut(None, path, "index", "signal file without a header", detail))
    # Of pairs whose names no table can hold, the header has been told already; folders, too.
    left_out += [one for one in unnamable if os.path.splitext(one.path or "")[0] not in told]


def _first_words(header: Path) -> list[str]:
    if not header.is_file():
        return []
    try:
        with open(header, encoding="utf-8", errors="replace") as file:
            lines = file.read(_LONGEST_HEADER).splitlines()
    except OSError:
        return []
    return [line.split(maxsplit=1)[0] for line in lines if line.strip() and not line.startswith("#")]
