"""
The manifests of fairseq-signals: which segments belong to a split.

Two kinds. Classification (`manifests/train.tsv`): the root folder, after a tab that pandas leaves, then
`file<TAB>samples` a segment. CMSC (`manifests/cmsc/train.tsv`): the root, the files' extension, then
`name<TAB>samples<TAB>group of leads<TAB>0,1` a recording, whose files are `name_0.mat` and `name_1.mat`.

The root is an absolute path of whoever wrote the file. It is read for its last part only, and nothing is opened by it.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..utils.errors import ECGFMError

_SEGMENT_FILE = re.compile(r"(?P<recording>.+)_(?P<segment>0|[1-9]\d{0,5})\.mat")
_LONGEST_LINE = 4096


class FairseqFolderError(ECGFMError, ValueError):
    """A folder that is not what fairseq-signals writes, or a line of it. The message names the file and the line."""


class ManifestEntry(NamedTuple):
    """One item of a manifest: a segment, or the two of a pair."""

    line: int
    files: tuple[str, ...]
    recording: str
    segments: tuple[int, ...]
    samples: int


class Manifest(NamedTuple):
    """A manifest's items, its own root's last part, and of a CMSC manifest how many segments have no partner."""

    path: Path
    root_name: str
    entries: list[ManifestEntry]
    unpaired: int = 0


def read_manifest(path: str | Path) -> Manifest:
    """
    Read a classification manifest.

    Raises:
        `FairseqFolderError`: no such file, a line of another form, a name that leads out of the folder.
    """
    path = Path(path)
    root, lines = _lines(path, header=1)
    entries = []
    for number, line in lines:
        name, samples = _cells(path, number, line, 2)
        _check_name(path, number, name)
        match = _SEGMENT_FILE.fullmatch(PurePosixPath(name).name)
        if match is None:
            raise FairseqFolderError(
                f"{path}, line {number}: found {name!r}, expected a segment's file (RECORDING_0.mat)"
            )
        found = (match["recording"], (int(match["segment"]),))
        entries.append(ManifestEntry(number, (name,), *found, _count(path, number, samples)))
    return Manifest(path, _last_part(root), entries)


def read_cmsc_manifest(path: str | Path) -> Manifest:
    """
    Read a CMSC manifest. Pairs are a recording's segments two by two, as the original takes them; an odd one is left.

    Raises:
        `FairseqFolderError`: as [`read_manifest`]; another extension than `mat`.
    """
    path = Path(path)
    root, lines = _lines(path, header=2)
    entries, unpaired = [], 0
    for number, line in lines:
        if number == 2:
            if line.strip() != "mat":
                raise FairseqFolderError(f"{path}, line 2: found {line.strip()!r}, expected the extension mat")
            continue
        name, samples, _, numbers = _cells(path, number, line, 4)
        _check_name(path, number, name)
        segments = [_count(path, number, cell) for cell in numbers.split(",")]
        unpaired += len(segments) % 2
        for pair in zip(segments[::2], segments[1::2], strict=False):
            files = tuple(f"{name}_{segment}.mat" for segment in pair)
            found = (PurePosixPath(name).name, pair)
            entries.append(ManifestEntry(number, files, *found, _count(path, number, samples)))
    return Manifest(path, _last_part(root), entries, unpaired)


def write_manifest(path: str | Path, root: str, segments: Iterable[tuple[str, int]]) -> None:
    """Write a classification manifest from (file below `root`, samples) of each segment."""
    lines = [f"\t{_with_slash(root)}", *(f"{_writable(name)}\t{samples}" for name, samples in segments)]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def write_cmsc_manifest(path: str | Path, root: str, recordings: Iterable[tuple[str, int, Sequence[int]]]) -> None:
    """Write a CMSC manifest from (name, samples of a segment, numbers of its segments) of each recording."""
    lines = [_with_slash(root), "mat"]
    lines += [
        f"{_writable(name)}\t{samples}\t0\t{','.join(map(str, numbers))}" for name, samples, numbers in recordings
    ]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def path_below(root: str | Path, name: str) -> str:
    """
    The path of a manifest's file.

    Raises:
        `FairseqFolderError`: a link on the way leads out of `root`.
    """
    path, base = os.path.join(root, name), os.path.realpath(root)
    if os.path.commonpath([base, os.path.realpath(path)]) != base:
        raise FairseqFolderError(f"{path} leads out of {root}, which is not followed")
    return path


def _lines(path: Path, header: int) -> tuple[str, list[tuple[int, str]]]:
    """The root, and the other lines with their numbers."""
    if not path.is_file():
        raise FairseqFolderError(f"{path}: no such manifest")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FairseqFolderError(f"{path} is no text in UTF-8: {error}") from None
    lines = text.split("\n")
    root = lines[0].strip()
    if len([line for line in lines if line.strip()]) < header or not root or "\t" in root:
        raise FairseqFolderError(f"{path}, line 1: found {lines[0][:80]!r}, expected the segments' root folder")
    return root, [(number, line) for number, line in enumerate(lines[1:], 2) if line.strip()]


def _cells(path: Path, number: int, line: str, count: int) -> list[str]:
    cells = line.rstrip("\r").split("\t")
    if len(cells) != count or len(line) > _LONGEST_LINE:
        shown = line[:80]
        raise FairseqFolderError(f"{path}, line {number}: found {shown!r}, expected {count} cells between tabs")
    return cells


def _check_name(path: Path, number: int, name: str) -> None:
    parts = name.split("/")
    outside = name.startswith(("/", "~")) or ".." in parts or "\\" in name or ":" in parts[0]
    if outside or "" in parts or not name.isprintable():
        raise FairseqFolderError(f"{path}, line {number}: {name!r} is no file below the segments' folder")


def _count(path: Path, number: int, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise FairseqFolderError(f"{path}, line {number}: found {text[:40]!r}, expected a whole number")
    return int(text)


def _last_part(root: str) -> str:
    return root.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _with_slash(root: str) -> str:
    return root if root.endswith("/") else f"{root}/"


def _writable(name: str) -> str:
    if not name.isprintable():
        raise FairseqFolderError(f"{name!r} cannot stand in a manifest")
    return name
