"""
A store from its parts: filters, split, one file or more a split, label definition, report, card.

The files are written to `STORE/.ecgfm-work/finished`. Their checksums come last: once they are there, the store is
complete, and this run or the next one moves it into place.
"""

import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ..utils.files import write_json, write_text
from ..utils.resumable_parts import exclusive, map_in_processes, remove_work_folder
from .exclusion import Excluded, filter_recordings
from .labels import write_label_def
from .report import QUALITY, StoreOrigin, any_of, define_labels_of, store_card, store_report
from .splits import SplitError, SplitResult, SplitSettings, match_published_splits
from .store import (
    CARD_FILE,
    CHECKSUMS_FILE,
    DATA_FOLDER,
    LABEL_DEF_FILE,
    REPORT_FILE,
    UNSPLIT,
    WORK_FOLDER,
    DataError,
    StoreWriter,
    check_files,
    read_report,
    store_files,
    store_schema,
    write_store_checksums,
)

_FINISHED = "finished"
# Of the report, what a new split does not change.
_UNCHANGED_BY_A_SPLIT = (
    *("format", "source", "source_settings", "labels", "keep_sources", "drop_sources", "dropped_columns"),
    "pseudonymised",
)
_ROWS_A_FILE = 4096
# Columns that filters, splits and the report need: all small.
SMALL_COLUMNS = (
    *("recording_id", "patient_id", "source", "path", "time", "age", "sex", "sampling_rate", "num_samples"),
    *("lead_names", *QUALITY),
)


def assemble_store(
    out: Path,
    work: Path,
    parts: Sequence[Path],
    label_names: Sequence[str],
    settings: SplitSettings,
    origin: StoreOrigin,
    *,
    published: Mapping[str, str | None] | None = None,
    originals: Mapping[str, tuple[str, str | None]] | None = None,
    num_proc: int = 1,
    progress: bool = False,
) -> dict[str, Any]:
    """
    Write a store from parts. The caller has locked `work` ([`exclusive`]).

    Args:
        out (`Path`): The store's folder.
        work (`Path`): Its folder for unfinished files.
        parts (sequence of `Path`): Parquet files with all rows, in order.
        label_names (sequence of `str`)
        settings ([`SplitSettings`])
        origin ([`StoreOrigin`]): Its `dropped_columns` are emptied here and not before: a split may need them.
        published (mapping of `str` to `str`, *optional*): For an imported split, by recording id.
        originals (mapping, *optional*): The recording and patient behind each pseudonym. The split is drawn by these,
            so that one seed gives one split for every salt.

    Returns:
        The report.

    Raises:
        `SplitError`: the split cannot be made, or nothing is left.
    """
    columns = [*SMALL_COLUMNS, *label_names]
    rows = pa.concat_tables([pq.read_table(part, columns=columns) for part in parts])
    kept_rows, kept, result, excluded = split_rows(rows, settings, origin.excluded, published, originals)

    finished = work / _FINISHED
    shutil.rmtree(finished, ignore_errors=True)  # of a run that died here
    (finished / DATA_FOLDER).mkdir(parents=True)
    writer = _SplitWriter(parts, store_schema(label_names), tuple(origin.settings.get("dropped_columns", ())))
    writer.write(finished / DATA_FOLDER, kept_rows, result, num_proc, progress)
    kept = writer.empty_columns(kept)
    definition = define_labels_of(kept, label_names, result)
    report = store_report(origin, settings.filters, result, kept, definition, excluded)
    if definition is not None:
        write_label_def(finished / LABEL_DEF_FILE, definition)
    write_text(finished / CARD_FILE, store_card(report))
    write_json(finished / REPORT_FILE, report)
    write_store_checksums(finished)
    _move_into_place(out, work)
    return report


def split_rows(
    rows: pa.Table,
    settings: SplitSettings,
    excluded: Sequence[Excluded],
    published: Mapping[str, str | None] | None = None,
    originals: Mapping[str, tuple[str, str | None]] | None = None,
) -> tuple[np.ndarray, pa.Table, SplitResult, list[Excluded]]:
    """
    Filter recordings and split the others.

    Args:
        rows (`pa.Table`): `SMALL_COLUMNS` and labels of all recordings that were read.
        excluded (sequence of [`Excluded`]): Those that were not.
        settings, published, originals: As of [`assemble_store`].

    Returns:
        The rows that passed the filters, as numbers and as a table; their split; and all that are excluded.

    Raises:
        `SplitError`: the split cannot be made, or nothing is left.
    """
    excluded = list(excluded)
    if not rows.num_rows:
        raise SplitError(f"no recording is left: {most_common(excluded)}")
    kept_rows = np.flatnonzero(_filter(rows, settings, excluded))
    kept = rows.take(pa.array(kept_rows))
    known = {name: kept[name].to_pylist() for name in ("recording_id", "patient_id", "time")}
    if originals is not None:
        published = None if published is None else {originals[name][0]: split for name, split in published.items()}
        known["patient_id"] = [originals[name][1] for name in known["recording_id"]]
        known["recording_id"] = [originals[name][0] for name in known["recording_id"]]
    result = settings.apply(known, published)
    splits = list(result.splits)
    for recording, path, split in zip(kept["recording_id"].to_pylist(), kept["path"].to_pylist(), splits, strict=True):
        if split is None:
            reason = ", ".join(result.excluded) or "in no split"
            excluded.append(Excluded(recording, path, "split", reason))
    return kept_rows, kept, result, excluded


def split_store(
    store: str | os.PathLike,
    settings: SplitSettings,
    *,
    num_proc: int = 1,
    progress: bool = False,
) -> dict[str, Any]:
    """
    Split a finished store again, in place, without reading the recordings' own files.

    Args:
        store (`str` or `Path`)
        settings ([`SplitSettings`])
        num_proc, progress: As in [`prepare`].

    Returns:
        The new report. Recordings that the old split excluded stay excluded.

    Raises:
        `DataError`, `SplitError`
    """
    out = Path(store)
    if out.is_dir():
        complete_move(out)
    read_report(out)  # an error where it is not a store, before anything is written to its folder
    work = out / WORK_FOLDER
    work.mkdir(exist_ok=True)
    with exclusive(work):
        try:
            return _split_locked(out, work, settings, num_proc, progress)
        except BaseException:
            # The store itself has not changed, and what was written beside it cannot be resumed.
            if not (work / "moved").exists():
                shutil.rmtree(work, ignore_errors=True)
            raise


def _split_locked(out: Path, work: Path, settings: SplitSettings, num_proc: int, progress: bool) -> dict[str, Any]:
    report = read_report(out)
    files = [path for paths in store_files(out).values() for path in paths]
    check_files(out, files)
    labels = list(report["label_counts"])
    columns = ["recording_id", "patient_id", "time", "path", "source"]
    index = pa.concat_tables([pq.read_table(path, columns=columns) for path in files])
    published = None
    if settings.published is not None:
        if report["pseudonymised"]:
            raise DataError(f"{out}: its recordings have pseudonyms, which a published split does not name")
        splits = match_published_splits(index, report["source"], settings.published)
        published = dict(zip(index["recording_id"].to_pylist(), splits, strict=True))
    unchanged = {name: report[name] for name in _UNCHANGED_BY_A_SPLIT if name in report}
    digest = hashlib.sha256(json.dumps([report["plan"], settings.to_json()], sort_keys=True).encode())
    codes = report["diagnosis_codes"]
    origin = StoreOrigin(
        unchanged | {"plan": digest.hexdigest()[:32]},
        [Excluded(**one) for one in report["excluded"]],
        report["notes"],
        codes["unscored"] | codes["unknown"],
    )
    return assemble_store(
        out, work, files, labels, settings, origin, published=published, num_proc=num_proc, progress=progress
    )


def complete_move(out: Path) -> None:
    """Move a complete store from its work folder into place, also where a kill interrupted that."""
    work = out / WORK_FOLDER
    if not _is_to_be_moved(work):
        return
    try:
        with exclusive(work):
            if _is_to_be_moved(work):
                _move_into_place(out, work)
    except FileNotFoundError:
        if work.exists():
            raise  # otherwise another process has done it


def remove_leftovers(out: Path) -> None:
    """Remove what a kill left beside a finished store."""
    work = out / WORK_FOLDER
    if work.is_dir():
        try:
            with exclusive(work):
                remove_work_folder(work)
        except FileNotFoundError:
            pass  # another process has done it


def _is_to_be_moved(work: Path) -> bool:
    return (work / _FINISHED / CHECKSUMS_FILE).is_file() or (work / "moved").exists()


def _move_into_place(out: Path, work: Path) -> None:
    finished = work / _FINISHED
    (work / "moved").touch()
    if (finished / DATA_FOLDER).exists():
        if (out / DATA_FOLDER).exists():
            os.rename(out / DATA_FOLDER, work / f"replaced-{os.getpid()}")
        os.rename(finished / DATA_FOLDER, out / DATA_FOLDER)
    for name in (
        LABEL_DEF_FILE,
        CARD_FILE,
        CHECKSUMS_FILE,
        REPORT_FILE,
    ):  # the report last: with it the store is complete
        if (finished / name).exists():
            os.replace(finished / name, out / name)
    (work / "salt").unlink(missing_ok=True)  # before the rest: a kill must not leave what undoes pseudonyms
    remove_work_folder(work)


def _filter(rows: pa.Table, settings: SplitSettings, excluded: list[Excluded]) -> np.ndarray:
    """Return which rows pass the filters (rows,); `excluded` receives the others."""
    flags = {}
    if settings.drop_nan_leads:
        flags["nan_leads"] = any_of(rows["nan_samples"])
    if settings.drop_constant_leads:
        flags["constant_leads"] = any_of(rows["constant"])
    if not flags:
        return np.ones(rows.num_rows, dtype=bool)
    keep = filter_recordings(nan_leads=flags.get("nan_leads"), constant_leads=flags.get("constant_leads")).keep
    reasons = {"nan_leads": "a lead has NaN", "constant_leads": "a lead is constant"}
    for row in np.flatnonzero(~keep).tolist():
        reason = next(reasons[flag] for flag, values in flags.items() if values[row])
        excluded.append(Excluded(rows["recording_id"][row].as_py(), rows["path"][row].as_py(), "filter", reason))
    return keep


class _SplitWriter:
    """Writes the files of a store's splits from its parts, with the columns `drop` empty."""

    def __init__(self, parts: Sequence[Path], schema: pa.Schema, drop: Sequence[str]):
        self._parts, self._schema, self._drop = list(parts), schema, drop
        self._counts = [pq.read_metadata(part).num_rows for part in self._parts]
        self._starts = np.concatenate([[0], np.cumsum(self._counts)])

    def write(self, folder: Path, kept_rows: np.ndarray, result: SplitResult, num_proc: int, progress: bool) -> None:
        """Write all files; `kept_rows` are the rows, counted through all parts, that `result` splits."""
        if result.names == (UNSPLIT,) and len(kept_rows) == self._starts[-1] and not self._drop:
            # No row changes its file: parts become files as they are.
            full = [part for part, count in zip(self._parts, self._counts, strict=True) if count]
            for number, part in enumerate(full):
                _link(part, folder / _file_name(UNSPLIT, number, len(full)))
            return
        tasks = []
        for name in result.names:
            rows = kept_rows[result.indices(name)]
            pieces = np.array_split(rows, max(1, math.ceil(len(rows) / _ROWS_A_FILE)))
            tasks += [(folder / _file_name(name, k, len(pieces)), piece) for k, piece in enumerate(pieces)]
        with tqdm(total=len(kept_rows), unit="recording", desc="writing splits", disable=not progress) as bar:
            if num_proc == 1 or len(tasks) == 1:
                for task in tasks:
                    self._write_file(task)
                    bar.update(len(task[1]))
                return
            for (_, rows), _ in map_in_processes(self._write_file, tasks, num_proc):
                bar.update(len(rows))

    def empty_columns(self, table: pa.Table) -> pa.Table:
        """Return the table with null in the columns to drop."""
        for name in set(self._drop) & set(table.column_names):
            index = table.column_names.index(name)
            field = table.schema.field(name)
            table = table.set_column(index, field, pa.nulls(table.num_rows, field.type))
        return table

    def _write_file(self, task: tuple[Path, np.ndarray]) -> None:
        path, rows = task
        with StoreWriter(path, self._schema) as writer:
            for number in np.unique(np.searchsorted(self._starts, rows, side="right") - 1).tolist():
                start, stop = self._starts[number : number + 2]
                inside = rows[(rows >= start) & (rows < stop)] - start
                with pq.ParquetFile(self._parts[number]) as part:
                    first = 0
                    for group in range(part.num_row_groups):
                        length = part.metadata.row_group(group).num_rows
                        wanted = inside[(inside >= first) & (inside < first + length)] - first
                        if len(wanted):
                            table = part.read_row_group(group, use_threads=False).take(pa.array(wanted))
                            writer.write_table(self.empty_columns(table))
                        first += length


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _file_name(split: str, number: int, count: int) -> str:
    return f"{split}-{number:05d}-of-{count:05d}.parquet"


def most_common(excluded: Sequence[Excluded]) -> str:
    """Return the most frequent reasons for excluding recordings, and the first with its details."""
    found = Counter(one.reason for one in excluded).most_common(3)
    first = next((f"; the first: {one.detail}" for one in excluded if one.detail and one.detail != one.reason), "")
    return ("; ".join(f"{count} x {reason}" for reason, count in found) or "the source has none") + first
