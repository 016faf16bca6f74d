"""Find the recordings that a command was given: files, folders, tables of files, stores, processed folders."""

import codecs
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

from ..data.exclusion import Excluded
from ..data.opening import is_processed_folder
from ..data.sources.base import inside
from ..data.sources.table import RecordingTable
from ..data.store import DATA_FOLDER, REPORT_FILE, WORK_FOLDER
from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..records.reading import exam_ids
from .recording_sources import FILE_COLUMNS, FileSource, FolderSource, StoreSource, displayed


def find_recordings(
    inputs: Sequence[str],
    extractor: ECGFMFeatureExtractor,
    *,
    table: str | None = None,
    root: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    inspect: bool = True,
) -> FileSource | StoreSource | FolderSource:
    """
    Find all recordings that a command was given, before any is read.

    Args:
        inputs: Files, folders (searched through; hidden files and links to folders are skipped), stores, or processed
            folders of fairseq-signals.
        extractor: The feature extractor, with its policies.
        table: A CSV or Parquet table with a column `path` or `recording_id`, as for `ecgfm prepare table`.
        root: The folder that its paths are relative to; by default the table's own folder. Of processed folders, the
            folder of their segments.
        columns: The table's names for our columns, such as `{"path": "file"}`.
        split: Which split of stores and processed folders; all by default.
        arguments, inspect: As in [`FileSource`].

    Raises:
        `ValueError`: no recordings given or found, stores mixed with files, a table without the columns it needs.
    """
    stores = [path for path in inputs if is_store(path)]
    if stores:
        if len(stores) < len(inputs) or table is not None:
            raise ValueError(f"{stores[0]} is a store: stores cannot be mixed with files in one run")
        return StoreSource(stores, extractor, split)
    if processed := [path for path in inputs if os.path.isdir(path) and is_processed_folder(path)]:
        if len(processed) < len(inputs) or table is not None:
            raise ValueError(
                f"{processed[0]} is a processed folder of fairseq-signals: these cannot be mixed with files in one run"
            )
        return FolderSource(processed, extractor, split, root)
    if split is not None:
        raise ValueError("only stores and processed folders have splits")
    found: list[dict[str, Any]] = []
    given = {name: value for name, value in (arguments or {}).items() if value is not None and name != "exam_id"}
    exam_id = (arguments or {}).get("exam_id")
    for path in inputs:
        found += _in_folder(path, given, exam_id) if os.path.isdir(path) else _file_rows(path, arguments or {})
    if table is not None:
        folder = root or os.path.dirname(table) or "."
        found += _in_table(RecordingTable(folder, table, labels=(), columns=columns, **given))
    if not found:
        raise ValueError("there are no recordings")
    return FileSource(_once_each(found), extractor, arguments, inspect)


def is_store(path: str) -> bool:
    """Return whether a folder is a store, finished or not."""
    return os.path.isdir(os.path.join(path, WORK_FOLDER)) or (
        os.path.isfile(os.path.join(path, REPORT_FILE)) and os.path.isdir(os.path.join(path, DATA_FOLDER))
    )


def read_list(file: Iterable[bytes]) -> list[str]:
    """Return the paths of a list of files, one per line. Empty lines are skipped; names need not be UTF-8."""
    lines = (line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n") for line in file)
    return [os.fsdecode(line) for line in lines if line.strip()]


def _once_each(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Drop files given twice. Another file with the same id fails: the output identifies recordings by id."""
    paths: dict[str, bytes] = {}
    for row in rows:
        if row.get("failure") is None:
            path = paths.setdefault(row["recording_id"], row["path"])
            if path is not row["path"]:
                if path == row["path"]:
                    continue
                row["failure"] = "another recording has the same id"
        yield row


def _file_rows(path: str, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for a file, or for each of its exams."""
    return [_file_row(path, exam) for exam in exam_ids(path, arguments)]


def _file_row(path: str, exam: int | None = None) -> dict[str, Any]:
    encoded = os.fsencode(path)
    name = displayed(encoded)
    return {"recording_id": name if exam is None else f"{name}#{exam}", "path": encoded, "_exam_id": exam}


def _in_folder(folder: str, arguments: Mapping[str, Any], exam_id: int | None) -> Iterator[dict[str, Any]]:
    """
    Yield a row for every recording below a folder, with its path as id, and for files that cannot be used.

    Of files of several exams, all are used, or `exam_id`.
    """
    index = RecordingTable(folder, **arguments).index()
    exams = index.table["_exam_id"].to_pylist() if "_exam_id" in index.table.column_names else repeat(None)
    for path, exam in zip(index.table["path"].to_pylist(), exams, strict=False):
        if exam_id is None or exam in (None, exam_id):
            yield _file_row(os.path.join(folder, path), exam)
    for entry in index.excluded:
        yield _file_row(os.path.join(folder, entry.path or "")) | {"failure": _reason(entry)}


def _in_table(table: RecordingTable) -> Iterator[dict[str, Any]]:
    index = table.index()
    wanted = [name for name in FILE_COLUMNS if name in index.table.column_names]
    for row in index.table.select(wanted).to_pylist():
        yield row | {"path": os.fsencode(inside(table.root, row["path"]))}
    for entry in index.excluded:
        yield {
            "recording_id": entry.recording_id or entry.path or entry.detail,
            "path": None if entry.path is None else os.fsencode(os.path.join(table.root, entry.path)),
            "failure": _reason(entry),
        }


def _reason(excluded: Excluded) -> str:
    return excluded.detail.removeprefix(f"{excluded.path}: ") or excluded.reason


__all__ = ["find_recordings", "is_store", "read_list"]
