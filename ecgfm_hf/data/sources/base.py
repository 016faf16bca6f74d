"""What a dataset's own layout comes down to: a table of recordings, and a way to read each."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...records import ECGReadError, ECGRecord, read_ecg
from ...utils.errors import ECGFMError
from ..exclusion import Excluded


class SourceError(ECGFMError, ValueError):
    """A dataset that is not laid out as its source expects. The message names the file or folder."""


@dataclass(frozen=True)
class SourceIndex:
    """
    All recordings of a dataset, before any is read.

    Args:
        table (`pa.Table`): One row a recording. `recording_id` (unique) and `path` (relative, with `/`), and any of the
            store's columns `patient_id, source, time, age, sex, report` and labels (int8, null for unknown). Other
            columns begin with `_` and are for the source's own `read`.
        excluded (list of [`Excluded`]): What the dataset's tables promise and does not exist, or cannot be used.
        notes (list of `str`): Sentences that belong in the report.
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
            raise SourceError(f"{root}: no such folder")

    @property
    def settings(self) -> dict[str, Any]:
        """What, besides the files, decides the rows; JSON-able, without absolute paths. Part of the report."""
        return {}

    @property
    @abstractmethod
    def label_names(self) -> tuple[str, ...]:
        """The labels, in order. Known before indexing."""

    @abstractmethod
    def index(self) -> SourceIndex:
        """Finds all recordings. Raises `SourceError` where the dataset as a whole cannot be used."""

    def labels(self, record: ECGRecord, entry: Mapping[str, Any]) -> dict[str, int | None]:
        """Labels of a recording, 1, 0 or None; by default those of its row in the index."""
        return {name: entry.get(name) for name in self.label_names}

    def read(self, entries: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], ECGRecord | Exception]]:
        """
        Reads rows of the index, in order: each row comes back with its recording, or with the error in its place.
        Sources that keep many recordings in a file override this to open it once.
        """
        for entry in entries:
            try:
                yield entry, self.read_one(entry)
            except (ECGReadError, OSError, ValueError) as error:
                yield entry, error

    def stamps(self, table: pa.Table) -> list[str] | None:
        """
        A text for each row that changes when its file does: here size and time of what its `path` names, the header
        of WFDB. None where there are no files. Copies of a dataset pass for the same if they keep their times.
        """
        if getattr(self, "root", None) is None:
            return None
        paths = table["path"].to_pylist()
        stamp_of = {path: _stamp(self.root, path) for path in dict.fromkeys(paths)}
        return [stamp_of[path] for path in paths]

    def read_one(self, entry: Mapping[str, Any]) -> ECGRecord:
        """Reads one row of the index. Raises [`ECGReadError`] or `ValueError` where it cannot be read."""
        return read_ecg(inside(self.root, entry["path"]))


def _stamp(root: Path, path: str) -> str:
    for candidate in (path, f"{path}.hea"):
        try:
            status = os.stat(os.path.join(root, candidate))
        except (OSError, ValueError):
            continue
        return f"{status.st_size} {status.st_mtime_ns}"
    return ""


def inside(root: Path, path: str) -> str:
    """`root / path`, refused with `SourceError` where a table's path leads out of the folder."""
    normal = os.path.normpath(path)
    if os.path.isabs(normal) or normal == ".." or normal.startswith(".." + os.sep) or "\0" in path:
        raise SourceError(f"the path {path!r} leads out of the dataset's folder")
    return os.path.join(root, normal)


def walk_files(root: Path, suffixes: Iterable[str], excluded: list[Excluded] | None = None) -> Iterator[str]:
    """
    Relative paths (with `/`) of all files with these suffixes, in sorted order; hidden ones are passed over.

    What stands in the way of others goes to `excluded`: folders that cannot be read, folders that are links (they may
    lead anywhere, also round in circles), and names that are no UTF-8, which no table can hold.
    """
    suffixes = tuple(suffixes)

    def tell(path: str, reason: str) -> None:
        if excluded is not None:
            shown = os.path.relpath(path, root).replace(os.sep, "/")
            shown = shown.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            excluded.append(Excluded(None, shown, "index", reason, f"{shown}: {reason}"))

    def unreadable(error: OSError) -> None:
        tell(error.filename, f"folder cannot be read ({error.strerror})")

    for folder, folders, files in os.walk(root, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                tell(os.path.join(folder, name), "folder is a link, which is not followed")
        prefix = os.path.relpath(folder, root).replace(os.sep, "/")
        for name in sorted(files):
            if name.lower().endswith(suffixes) and not name.startswith("."):
                path = name if prefix == "." else f"{prefix}/{name}"
                try:
                    path.encode("utf-8")
                except UnicodeEncodeError:
                    tell(os.path.join(folder, name), "file name is not UTF-8")
                else:
                    yield path


def unique_rows(table: pa.Table, excluded: list[Excluded]) -> pa.Table:
    """The table without rows whose `recording_id` an earlier row has; these go to `excluded`."""
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


def exclude_headless(root: Path, headers: Iterable[str], excluded: list[Excluded], taken: Iterable[str] = ()) -> None:
    """
    Accounts for signal files whose header is gone, which would otherwise be lost without a word.

    Args:
        root (`Path`)
        headers (iterable of `str`): Those found, relative to the folder.
        excluded (list of [`Excluded`]): What is found goes here.
        taken (iterable of `str`): Files that are recordings by themselves.
    """
    by_folder: dict[str, list[str]] = {}
    for header in headers:
        by_folder.setdefault(header.rpartition("/")[0], []).append(header)
    headed = {header[: -len(".hea")] for found in by_folder.values() for header in found}
    taken = set(taken)
    named: dict[str, set[str]] = {}
    told = {os.path.splitext(one.path)[0] for one in excluded if one.path is not None}
    unnamable: list[Excluded] = []
    for path in walk_files(root, _SIGNALS, unnamable):
        folder, _, name = path.rpartition("/")
        if path[: -len(".mat")] in headed or path in taken:
            continue
        if folder not in named:  # a header may name signals that are not called like it
            named[folder] = {word for header in by_folder.get(folder, ()) for word in _first_words(root / header)}
        if name not in named[folder]:
            detail = f"{path}: a signal file without a header"
            excluded.append(Excluded(None, path, "index", "signal file without a header", detail))
    # Of pairs whose names no table can hold, the header has been told already; folders, too.
    excluded += [one for one in unnamable if os.path.splitext(one.path or "")[0] not in told]


def _first_words(header: Path) -> list[str]:
    if not header.is_file():
        return []
    try:
        with open(header, encoding="utf-8", errors="replace") as file:
            lines = file.read(_LONGEST_HEADER).splitlines()
    except OSError:
        return []
    return [line.split(maxsplit=1)[0] for line in lines if line.strip() and not line.startswith("#")]
