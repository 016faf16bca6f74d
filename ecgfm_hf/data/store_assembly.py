"""The short end of a preparation: filters, split, files by split, label definition, report, card."""

import functools
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
from .report import QUALITY, any_of, definition_of, label_table_of, store_card, store_report
from .splits import SplitError, SplitSettings, match_published_splits
from .store import (
    CARD_FILE,
    DATA_FOLDER,
    LABEL_DEF_FILE,
    REPORT_FILE,
    UNSPLIT,
    WORK_FOLDER,
    StoreError,
    StoreWriter,
    read_report,
    store_files,
    store_schema,
)

FINISHED = "finished"
# Of the report, what a new split does not change.
_UNCHANGED_BY_A_SPLIT = ("format", "source", "source_settings", "labels", "keep_sources", "drop_sources")
_UNCHANGED_BY_A_SPLIT += ("dropped_columns", "pseudonymised")
_ROWS_A_FILE = 4096
# What decides filters and splits, and what the report counts: all small.
_FACTS = ("recording_id", "patient_id", "source", "path", "time", "age", "sex", "sampling_rate", "num_samples")
_FACTS += ("lead_names", *QUALITY)


def finish_store(
    out: Path,
    work: Path,
    parts: Sequence[Path],
    label_names: Sequence[str],
    settings: SplitSettings,
    plan: Mapping[str, Any],
    *,
    published: Mapping[str, str] | None = None,
    originals: Mapping[str, tuple[str, str | None]] | None = None,
    num_proc: int = 1,
    progress: bool = False,
) -> dict[str, Any]:
    """
    Write a store from parts. The caller holds the lock of `work` ([`exclusive`]).

    Args:
        out (`Path`): The store's folder.
        work (`Path`): Its folder for unfinished things.
        parts (sequence of `Path`): Parquet files with all rows, in order.
        label_names (sequence of `str`)
        settings ([`SplitSettings`])
        plan (mapping): What the report begins with; `excluded` (list of [`Excluded`]), `notes` and `codes` among it.
            Its `dropped_columns` are emptied here and not before: a split may need them.
        published (mapping of `str` to `str`, *optional*): For an imported split, by recording id.
        originals (mapping, *optional*): The recording and patient behind each pseudonym, by which to split: the same
            seed is to give the same split, whatever the salt.

    Returns:
        The report.

    Raises:
        `SplitError`: the split cannot be made, or nothing is left.
    """
    excluded: list[Excluded] = list(plan["excluded"])
    facts = _read_facts(parts, label_names)
    if not facts.num_rows:
        raise SplitError(f"no recording is left: {_most_common(excluded)}")
    keep = _filtered(facts, settings, excluded, bool(plan.get("pseudonymised")))
    kept_rows = np.flatnonzero(keep)
    kept = facts.take(pa.array(kept_rows))
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

    finished = work / FINISHED
    shutil.rmtree(finished, ignore_errors=True)  # of a run that died here
    (finished / DATA_FOLDER).mkdir(parents=True)
    drop = tuple(plan.get("dropped_columns", ()))
    _write_files(parts, kept_rows, splits, result.names, finished / DATA_FOLDER, label_names, drop, num_proc, progress)
    kept = _emptied(kept, drop)
    labels = label_table_of(kept, label_names)
    report = store_report(plan, settings.filters, result, kept, labels, excluded)
    if label_names:
        write_label_def(finished / LABEL_DEF_FILE, definition_of(labels, result))
    write_text(finished / CARD_FILE, store_card(report))
    # Last: with it the store is complete, and a later run only moves it into place.
    write_json(finished / REPORT_FILE, report)
    _move_into_place(out, work)
    return report


def split_store(
    store: str | os.PathLike,
    settings: SplitSettings,
    *,
    num_proc: int = 1,
    progress: bool = False,
) -> dict[str, Any]:
    """
    Split a finished store anew, in place. Nothing is read from the recordings' own files.

    Args:
        store (`str` or `Path`)
        settings ([`SplitSettings`])
        num_proc, progress: As in [`prepare`].

    Returns:
        The new report. Recordings that the old split left out stay out.

    Raises:
        `StoreError`, `SplitError`
    """
    out = Path(store)
    if out.is_dir():
        roll_forward(out)
    read_report(out)  # a store, before anything is made in its folder
    work = out / WORK_FOLDER
    work.mkdir(exist_ok=True)
    with exclusive(work):
        try:
            return _split_alone(out, work, settings, num_proc, progress)
        except BaseException:
            # The store itself is as it was; what was begun beside it is worth nothing.
            if not (work / "moved").exists():
                shutil.rmtree(work, ignore_errors=True)
            raise


def _split_alone(out: Path, work: Path, settings: SplitSettings, num_proc: int, progress: bool) -> dict[str, Any]:
    report = read_report(out)
    files = [path for paths in store_files(out).values() for path in paths]
    labels = list(report["label_counts"])
    columns = ["recording_id", "patient_id", "time", "path", "source"]
    index = pa.concat_tables([pq.read_table(path, columns=columns) for path in files])
    published = None
    if settings.published is not None:
        if report["pseudonymised"]:
            raise StoreError(f"{out}: its recordings have pseudonyms, which a published split does not name")
        splits = match_published_splits(index, report["source"], settings.published)
        published = dict(zip(index["recording_id"].to_pylist(), splits, strict=True))
    plan = {name: report[name] for name in _UNCHANGED_BY_A_SPLIT if name in report}
    digest = hashlib.sha256(json.dumps([report["plan"], settings.to_json()], sort_keys=True).encode())
    plan["plan"] = digest.hexdigest()[:32]
    plan["excluded"] = [Excluded(**one) for one in report["excluded"]]
    codes = report["diagnosis_codes"]
    plan["codes"] = codes["unscored"] | codes["unknown"]
    plan["notes"] = report["notes"]
    return finish_store(
        out, work, files, labels, settings, plan, published=published, num_proc=num_proc, progress=progress
    )


def roll_forward(out: Path) -> None:
    """Moves a complete store from `work` into its place; what a kill interrupted, a second call finishes."""
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


def sweep(out: Path) -> None:
    """Removes what a kill left beside a finished store."""
    work = out / WORK_FOLDER
    if work.is_dir():
        try:
            with exclusive(work):
                remove_work_folder(work)
        except FileNotFoundError:
            pass  # another process has done it


def _is_to_be_moved(work: Path) -> bool:
    return (work / FINISHED / REPORT_FILE).is_file() or (work / "moved").exists()


def _move_into_place(out: Path, work: Path) -> None:
    finished = work / FINISHED
    (work / "moved").touch()
    if (finished / DATA_FOLDER).exists():
        if (out / DATA_FOLDER).exists():
            os.rename(out / DATA_FOLDER, work / f"replaced-{os.getpid()}")
        os.rename(finished / DATA_FOLDER, out / DATA_FOLDER)
    for name in (LABEL_DEF_FILE, CARD_FILE, REPORT_FILE):  # the report last: it vouches for the rest
        if (finished / name).exists():
            os.replace(finished / name, out / name)
    (work / "salt").unlink(missing_ok=True)  # first: whatever a kill leaves behind, it is not what undoes pseudonyms
    remove_work_folder(work)


def _read_facts(parts: Sequence[Path], label_names: Sequence[str]) -> pa.Table:
    columns = [*_FACTS, *label_names]
    return pa.concat_tables([pq.read_table(part, columns=columns) for part in parts])


def _filtered(facts: pa.Table, settings: SplitSettings, excluded: list[Excluded], pseudonyms: bool) -> np.ndarray:
    flags = {}
    if settings.drop_nan_leads:
        flags["nan_leads"] = any_of(facts["nan_samples"]).tolist()
    if settings.drop_constant_leads:
        flags["constant_leads"] = any_of(facts["constant"]).tolist()
    if not flags:
        return np.ones(facts.num_rows, dtype=bool)
    keep = filter_recordings(**flags).keep
    names = {"nan_leads": "a lead has NaN", "constant_leads": "a lead is constant"}
    for row in np.flatnonzero(~keep).tolist():
        reason = next(names[flag] for flag, values in flags.items() if values[row])
        excluded.append(Excluded(facts["recording_id"][row].as_py(), facts["path"][row].as_py(), "filter", reason))
    return keep


def _emptied(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    for name in set(columns) & set(table.column_names):
        place = table.column_names.index(name)
        table = table.set_column(
            place, table.schema.field(name), pa.nulls(table.num_rows, table.schema.field(name).type)
        )
    return table


def _write_files(
    parts, kept_rows, splits, names, folder: Path, label_names, drop: Sequence[str], num_proc: int, progress: bool
) -> None:
    """Each file is written from the stretch of parts that its rows lie in."""
    counts = [pq.read_metadata(part).num_rows for part in parts]
    starts = np.concatenate([[0], np.cumsum(counts)])
    if names == (UNSPLIT,) and len(kept_rows) == starts[-1] and not drop:
        # Nothing moves from file to file: parts become files as they are.
        full = [part for part, count in zip(parts, counts, strict=True) if count]
        for number, part in enumerate(full):
            _link(part, folder / _file_name(UNSPLIT, number, len(full)))
        return
    homes = np.array([names.index(split) if split is not None else -1 for split in splits])
    tasks = []
    for number, name in enumerate(names):
        rows = kept_rows[homes == number]
        pieces = np.array_split(rows, max(1, math.ceil(len(rows) / _ROWS_A_FILE)))
        tasks += [(folder / _file_name(name, k, len(pieces)), piece) for k, piece in enumerate(pieces)]
    with tqdm(total=len(kept_rows), unit="recording", desc="writing splits", disable=not progress) as bar:
        if num_proc == 1 or len(tasks) == 1:
            for task in tasks:
                _write_file(task, parts, starts, label_names, drop)
                bar.update(len(task[1]))
            return
        write = functools.partial(_write_file, parts=parts, starts=starts, label_names=label_names, drop=drop)
        for (_, rows), _ in map_in_processes(write, tasks, num_proc):
            bar.update(len(rows))


def _write_file(task: tuple[Path, np.ndarray], parts: Sequence[Path], starts, label_names, drop) -> None:
    path, rows = task
    with StoreWriter(path, store_schema(label_names)) as writer:
        for number in np.unique(np.searchsorted(starts, rows, side="right") - 1).tolist():
            inside = rows[(rows >= starts[number]) & (rows < starts[number + 1])] - starts[number]
            with pq.ParquetFile(parts[number]) as part:
                first = 0
                for group in range(part.num_row_groups):
                    length = part.metadata.row_group(group).num_rows
                    wanted = inside[(inside >= first) & (inside < first + length)] - first
                    if len(wanted):
                        table = part.read_row_group(group, use_threads=False).take(pa.array(wanted))
                        writer.write_table(_emptied(table, drop))
                    first += length


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _file_name(split: str, number: int, count: int) -> str:
    return f"{split}-{number:05d}-of-{count:05d}.parquet"


def _most_common(excluded: Sequence[Excluded]) -> str:
    found = Counter(one.reason for one in excluded).most_common(3)
    return "; ".join(f"{count} x {reason}" for reason, count in found) or "the source has none"
