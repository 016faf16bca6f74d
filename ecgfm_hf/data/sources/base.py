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


class SourceError(ECGFMError, ValueError):
    """A dataset that is not laid out as its source expects. The message names the file or folder."""


@dataclass(frozen=True)
class LeftOut:
    """
    A recording that did not make it.

    Args:
        recording_id (`str`, *optional*): None where it has none.
        path (`str`, *optional*): Relative to the dataset's folder.
        stage (`str`): `"index"`, `"read"` or `"filter"`.
        reason (`str`): A phrase that groups: no ids or paths in it.
        detail (`str`): The whole message.
    """

    recording_id: str | None
    path: str | None
    stage: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class SourceIndex:
    """
    All recordings of a dataset, before any is read.

    Args:
        table (`pa.Table`): One row a recording. `recording_id` (unique) and `path` (relative, with `/`), and any of the
            store's columns `patient_id, source, time, age, sex, report` and labels (int8, null for unknown). Other
            columns begin with `_` and are for the source's own `read`.
        left_out (list of [`LeftOut`]): What the dataset's tables promise and does not exist, or cannot be used.
        notes (list of `str`): Sentences that belong in the report.
    """

    table: pa.Table
    left_out: list[LeftOut] = field(default_factory=list)
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


def walk_files(root: Path, suffixes: Iterable[str], left_out: list[LeftOut] | None = None) -> Iterator[str]:
    """
    Relative paths (with `/`) of all files with these suffixes, in sorted order; hidden ones are passed over.

    What stands in the way of others goes to `left_out`: folders that cannot be read, folders that are links (they may
    lead anywhere, also round in circles), and names that are no UTF-8, which no table can hold.
    """
    suffixes = tuple(suffixes)

    def tell(path: str, reason: str) -> None:
        if left_out is not None:
            shown = os.path.relpath(path, root).replace(os.sep, "/")
            shown = shown.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            left_out.append(LeftOut(None, shown, "index", reason, f"{shown}: {reason}"))

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


def unique_rows(table: pa.Table, left_out: list[LeftOut]) -> pa.Table:
    """The table without rows whose `recording_id` an earlier row has; these go to `left_out`."""
    seen: dict[str, int] = {}
    keep = []
    for row, recording in enumerate(table["recording_id"].to_pylist()):
        if seen.setdefault(recording, row) == row:
            keep.append(row)
        else:
            path, first = table["path"][row].as_py(), table["path"][seen[recording]].as_py()
            left_out.append(
                LeftOut(recording, path, "index", "another recording has the same id", f"{path}: same id as {first}")
            )
    return table if len(keep) == table.num_rows else table.take(keep)
