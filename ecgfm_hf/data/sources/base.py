"""A dataset on disk as a source: a table of its recordings, and a way to read each of them."""

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...records import ECGReadError, ECGRecord, read_ecg
from ...utils.integrity import checksum_once, file_checksum
from ..exclusion import Excluded
from ..store import DataError

_SIGNALS = (".mat", ".dat")
_LONGEST_HEADER = 1 << 20
# Files of this size may have many recordings: their digests are remembered while their times stay the same.
_LARGE_BYTES = 1 << 24


@dataclass(frozen=True)
class SourceIndex:
    """
    All recordings of a dataset, before any is read.

    Args:
        table (`pa.Table`): One row per recording. `recording_id` (unique) and `path` (relative, with `/`), and any of
            the store's columns `patient_id, source, time, age, sex, report` and labels (int8, null for unknown). Other
            columns begin with `_` and are for the source's own `read`.
        excluded (list of [`Excluded`]): Recordings that the dataset names but that are missing or cannot be used.
        notes (list of `str`): Sentences for the report.
    """

    table: pa.Table
    excluded: list[Excluded] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Source(ABC):
    """
    A dataset on disk. Small and picklable: worker processes get a copy.

    Args:
        root (`str` or `Path`): Its folder. Nothing outside is read.
    """

    name: str

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{root}: no such folder")

    @property
    def settings(self) -> dict[str, Any]:
        """Return what decides the rows besides the files: JSON-able, without absolute paths. Part of the report."""
        return {}

    @property
    @abstractmethod
    def label_names(self) -> tuple[str, ...]:
        """Return the labels, in order; available before indexing."""

    def published_split(self) -> dict[str, str] | None:
        """Return the split of each recording that the dataset's authors recommend, by id; None where there is none."""
        return None

    @abstractmethod
    def index(self) -> SourceIndex:
        """Find all recordings. `DataError` where the dataset as a whole cannot be used."""

    def labels(self, record: ECGRecord, entry: Mapping[str, Any]) -> dict[str, int | None]:
        """Return the labels of a recording, 1, 0 or None: by default from its row in the index."""
        return {name: entry.get(name) for name in self.label_names}

    def read(self, entries: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], ECGRecord | Exception]]:
        """
        Read rows of the index, in order, and yield each with its recording or with the error that reading it raised.

        Sources with many recordings in a file override this to open it once.
        """
        for entry in entries:
            try:
                yield entry, self.read_one(entry)
            except (ECGReadError, OSError, ValueError) as error:
                yield entry, error

    def stamps(self, table: pa.Table) -> list[str]:
        """
        Return a text for each row that changes when a file of its recording does; empty where there are no files.

        See [`recording_stamp`]. A copy of a dataset counts as the same.
        """
        root = getattr(self, "root", None)
        if root is None:
            return [""] * table.num_rows
        paths = table["path"].to_pylist()
        stamp_of = recording_stamps((os.path.join(root, path) for path in paths), root)
        return [stamp_of[os.path.join(root, path)] for path in paths]

    def read_one(self, entry: Mapping[str, Any]) -> ECGRecord:
        """Read one row of the index. [`ECGReadError`] or `ValueError` where it cannot be read."""
        return read_ecg(inside(self.root, entry["path"]))


def recording_stamp(path: str, root: str | os.PathLike | None = None) -> str:
    """
    Return a text that changes when the content of any file of a recording does: for WFDB, its header, all its signal
    files and segments.

    Args:
        path: A file, or a WFDB record's name.
        root: A folder outside of which no file is opened.
    """
    return _recording_stamp(path, None if root is None else _Root(root))


def recording_stamps(paths: Iterable[str], root: str | os.PathLike | None = None) -> dict[str, str]:
    """Return the stamp of each path; see [`recording_stamp`]."""
    found = None if root is None else _Root(root)  # threads would only wait for one another
    return {path: _recording_stamp(path, found) for path in dict.fromkeys(paths)}


def recording_files(path: str) -> list[str]:
    """Return a recording's file and, for WFDB, its header, signal files and segments; some may not exist."""
    return _recording_files(path, None)


class _Root:
    """A folder outside of which no file is opened. Links in the names of its folders are followed once."""

    def __init__(self, path: str | os.PathLike):
        self._path = os.path.realpath(path)
        self._folders: dict[str, str] = {}

    def __contains__(self, file: str) -> bool:
        folder, name = os.path.split(file)
        if (real := self._folders.get(folder)) is None:
            real = self._folders[folder] = os.path.realpath(folder)
        real = os.path.join(real, name)
        if name in ("", ".", "..") or os.path.islink(real):
            real = os.path.realpath(real)
        return os.path.commonpath([real, self._path]) == self._path


def _recording_stamp(path: str, root: _Root | None) -> str:
    return " ".join(_file_stamp(file, root) for file in _recording_files(path, root))


def _recording_files(path: str, root: _Root | None, is_segment: bool = False) -> list[str]:
    stem, suffix = os.path.splitext(path)
    header = f"{stem if suffix.lower() in (*_SIGNALS, '.hea') else path}.hea"
    found = [path, header]
    if not os.path.isfile(header) or not (root is None or header in root):
        return found[:1]
    folder, own = os.path.split(header)
    names = [*_signal_files(_read_header(header)), *(os.path.basename(stem) + suffix for suffix in _SIGNALS)]
    for name in dict.fromkeys(names):
        file = os.path.join(folder, name)
        found.append(file)
        if not is_segment and f"{name}.hea" != own and os.path.isfile(f"{file}.hea"):
            found += _recording_files(f"{file}.hea", root, is_segment=True)
    return list(dict.fromkeys(found))


def _file_stamp(file: str, root: _Root | None) -> str:
    """Return a file's name with its size and, unless it is no regular file or lies elsewhere, its content's digest."""
    try:
        status = os.stat(file)
        about = f"{os.path.basename(file)} {status.st_size}"
        if not stat.S_ISREG(status.st_mode) or not (root is None or file in root):
            return f"{about} {status.st_mtime_ns}"
        checksum = file_checksum if status.st_size < _LARGE_BYTES else checksum_once
        return f"{about} {checksum(file, 'xxh3_128')}"
    except (OSError, ValueError):  # no such file, not a possible name, or one that may not be read
        return ""


def inside(root: Path, path: str) -> str:
    """Return `root / path`. `DataError` where a table's path leads out of the folder."""
    normal = os.path.normpath(path)
    if os.path.isabs(normal) or normal == ".." or normal.startswith(".." + os.sep) or "\0" in path:
        raise DataError(f"the path {path!r} leads out of the dataset's folder")
    return os.path.join(root, normal)


def walk_files(root: Path, suffixes: Iterable[str], excluded: list[Excluded] | None = None) -> Iterator[str]:
    """
    Yield the relative paths (with `/`) of all files with these suffixes, sorted, without hidden ones.

    `excluded` receives what is skipped: folders that cannot be read, folders that are links (which may lead anywhere,
    and in circles), and names that are not UTF-8, which a table cannot hold.
    """
    suffixes = tuple(suffixes)

    def exclude(path: str, reason: str) -> None:
        if excluded is not None:
            shown = os.path.relpath(path, root).replace(os.sep, "/")
            shown = shown.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            excluded.append(Excluded(None, shown, "index", reason, f"{shown}: {reason}"))

    def unreadable(error: OSError) -> None:
        exclude(error.filename, f"folder cannot be read ({error.strerror})")

    for folder, folders, files in os.walk(root, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                exclude(os.path.join(folder, name), "folder is a link, which is not followed")
        prefix = os.path.relpath(folder, root).replace(os.sep, "/")
        for name in sorted(files):
            if name.lower().endswith(suffixes) and not name.startswith("."):
                path = name if prefix == "." else f"{prefix}/{name}"
                try:
                    path.encode("utf-8")
                except UnicodeEncodeError:
                    exclude(os.path.join(folder, name), "file name is not UTF-8")
                else:
                    yield path


def unique_rows(table: pa.Table, excluded: list[Excluded]) -> pa.Table:
    """Return the table without rows whose `recording_id` an earlier row has; `excluded` receives these."""
    seen: dict[str, int] = {}
    keep = []
    for row, recording in enumerate(table["recording_id"].to_pylist()):
        if seen.setdefault(recording, row) == row:
            keep.append(row)
        else:
            path, first = table["path"][row].as_py(), table["path"][seen[recording]].as_py()
            excluded.append(
                Excluded(recording, path, "index", "another recording has the same id", f"{path}: same id as {first}")
            )
    return table if len(keep) == table.num_rows else table.take(keep)


def header_of(root: Path, path: str) -> str:
    """Return the header that is read for a table's `path` (`001`, `001.mat`), or `path` where it is not WFDB."""
    stem, suffix = os.path.splitext(path)
    if suffix.lower() in _SIGNALS:
        header = f"{stem}.hea"
    elif suffix.lower() == ".hea" or os.path.isfile(os.path.join(root, path)):
        return path
    else:
        header = f"{path}.hea"
    return header if os.path.isfile(os.path.join(root, header)) else path


def exclude_headless(root: Path, headers: Iterable[str], excluded: list[Excluded], taken: Iterable[str] = ()) -> None:
    """
    Add signal files without a header to `excluded`, so that they are reported.

    Args:
        root (`Path`)
        headers (iterable of `str`): Those found, relative to the folder.
        excluded (list of [`Excluded`]): Receives them.
        taken (iterable of `str`): Files that are recordings by themselves.
    """
    by_folder: dict[str, list[str]] = {}
    for header in headers:
        by_folder.setdefault(header.rpartition("/")[0], []).append(header)
    headed = {header[: -len(".hea")] for found in by_folder.values() for header in found}
    taken = set(taken)
    named: dict[str, set[str]] = {}
    reported = {os.path.splitext(one.path)[0] for one in excluded if one.path is not None}
    unnamable: list[Excluded] = []
    for path in walk_files(root, _SIGNALS, unnamable):
        folder, _, name = path.rpartition("/")
        if path[: -len(".mat")] in headed or path in taken:
            continue
        if folder not in named:  # a header may name signals that are not called like it
            contents = [_read_header(root / header) for header in by_folder.get(folder, ())]
            named[folder] = {name for content in contents for name in _signal_files(content)}
        if name not in named[folder]:
            detail = f"{path}: a signal file without a header"
            excluded.append(Excluded(None, path, "index", "signal file without a header", detail))
    # Headers and folders whose names a table cannot hold have been reported already.
    excluded += [one for one in unnamable if os.path.splitext(one.path or "")[0] not in reported]


def _read_header(header: str | os.PathLike) -> bytes:
    if not os.path.isfile(header):
        return b""
    try:
        with open(header, "rb") as file:
            return file.read(_LONGEST_HEADER)
    except OSError:
        return b""


def _signal_files(header: bytes) -> list[str]:
    """Return the first word of each line: the names of the record and of its signal files."""
    lines = header.decode("utf-8", "replace").splitlines()
    return [line.split(maxsplit=1)[0] for line in lines if line.strip() and not line.startswith("#")]
