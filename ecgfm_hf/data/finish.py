"""The short end of a preparation: filters, split, files by split, label definition, report, card."""

import math
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from .card import store_card
from .filters import filter_recordings
from .labels import UNSCORED_CODES, LabelDefinition, LabelTable, define_labels, scored_codes, write_label_def
from .parts import write_json
from .published_splits import import_split
from .sources.base import LeftOut
from .splits import STRATEGIES, SplitError, SplitResult, split_recordings
from .store import CARD_FILE, DATA_FOLDER, LABEL_DEF_FILE, REPORT_FILE, UNSPLIT, StoreWriter, store_schema

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

FINISHED = "finished"
_ROWS_A_FILE = 4096
# What decides filters and splits, and what the report counts: all small.
_FACTS = ("recording_id", "patient_id", "source", "path", "time", "age", "sex", "sampling_rate", "num_samples")
_FACTS += ("lead_names", "nan_samples", "constant", "clipped")


@dataclass(frozen=True)
class SplitSettings:
    """
    How recordings are split, and which are left out before.

    Args:
        strategy (`str`, *optional*): One of `STRATEGIES`, `"imported"`, or None: a single split `all`.
        fractions (mapping of `str` to `float`, *optional*): See [`split_recordings`], as `counts` and `seed`.
        assume_independent (`bool`): Recordings of unknown patients are taken to be of one patient each.
        published (mapping of `str` to `str`, *optional*): For `"imported"`, the result of [`read_split_csv`].
        drop_nan_leads, drop_constant_leads (`bool`): Leave out recordings with such a lead.
    """

    strategy: str | None = None
    fractions: Mapping[str, float] | None = None
    counts: Mapping[str, int | None] | None = None
    seed: int = 0
    assume_independent: bool = False
    published: Mapping[str, str] | None = None
    drop_nan_leads: bool = False
    drop_constant_leads: bool = False

    def __post_init__(self):
        if self.strategy not in (None, "imported", *STRATEGIES):
            raise SplitError(f"strategy must be one of {', '.join(STRATEGIES)}, found: {self.strategy!r}")
        if (self.strategy == "imported") != (self.published is not None):
            raise SplitError("a published split and the strategy 'imported' belong together")

    def to_json(self) -> dict[str, Any]:
        content = asdict(self)
        if self.published is not None:
            content["published"] = f"{len(self.published)} recordings"
        return content

    def check(self, index: pa.Table, published: Mapping[str, str] | None = None) -> None:
        """Rehearses the split on what is known before reading, so that hours of work do not end at its errors."""
        if self.strategy is None or not index.num_rows:
            return
        columns = index.column_names
        if "temporal" in self.strategy and "time" not in columns:
            return  # perhaps the files say it
        names = [name for name in ("recording_id", "patient_id", "time") if name in columns]
        self.apply({name: index[name].to_pylist() for name in names}, published)

    def apply(self, facts: Mapping[str, list], published: Mapping[str, str] | None = None) -> SplitResult:
        """The split of recordings with these `recording_id`, `patient_id` and `time`."""
        ids, patients = facts["recording_id"], facts.get("patient_id") or [None] * len(facts["recording_id"])
        if self.strategy == "imported":
            return import_split(published if published is not None else self.published, ids, patients=patients)
        if self.strategy is None:
            known = len({patient for patient in patients if patient is not None})
            return SplitResult(tuple(ids), (UNSPLIT,) * len(ids), (UNSPLIT,), "none", patients={UNSPLIT: known})
        return split_recordings(
            ids,
            self.strategy,
            fractions=self.fractions,
            counts=self.counts,
            seed=self.seed,
            patients=patients,
            times=facts.get("time"),
            assume_independent=self.assume_independent,
        )


def finish_store(
    out: Path,
    work: Path,
    parts: Sequence[Path],
    label_names: Sequence[str],
    settings: SplitSettings,
    plan: Mapping[str, Any],
    *,
    published: Mapping[str, str] | None = None,
    num_proc: int = 1,
    progress: bool = False,
) -> dict[str, Any]:
    """
    Write a store from parts. The caller is [`alone`].

    Args:
        out (`Path`): The store's folder.
        work (`Path`): Its folder for unfinished things.
        parts (sequence of `Path`): Parquet files with all rows, in order.
        label_names (sequence of `str`)
        settings ([`SplitSettings`])
        plan (mapping): What the report begins with; `left_out` (list of [`LeftOut`]), `notes` and `codes` among it.
        published (mapping of `str` to `str`, *optional*): For an imported split, by recording id.

    Returns:
        The report.

    Raises:
        `SplitError`: the split cannot be made, or nothing is left.
    """
    left_out: list[LeftOut] = list(plan["left_out"])
    facts = _read_facts(parts, label_names)
    if not facts.num_rows:
        raise SplitError(f"no recording is left: {_most_common(left_out)}")
    keep = _filtered(facts, settings, left_out, bool(plan.get("pseudonymised")))
    kept_rows = np.flatnonzero(keep)
    kept = facts.take(pa.array(kept_rows))
    result = settings.apply(
        {name: kept[name].to_pylist() for name in ("recording_id", "patient_id", "time")}, published
    )
    splits = list(result.splits)
    for recording, path, split in zip(kept["recording_id"].to_pylist(), kept["path"].to_pylist(), splits, strict=True):
        if split is None:
            reason = ", ".join(result.excluded) or "in no split"
            left_out.append(LeftOut(recording, path, "split", reason))

    finished = work / FINISHED
    shutil.rmtree(finished, ignore_errors=True)  # of a run that died here
    (finished / DATA_FOLDER).mkdir(parents=True)
    _write_files(parts, kept_rows, splits, result.names, finished / DATA_FOLDER, label_names, num_proc, progress)
    labels = _label_table(kept, label_names)
    report = _report(plan, settings, result, kept, labels, left_out)
    if label_names:
        write_label_def(finished / LABEL_DEF_FILE, _define(labels, result))
    (finished / CARD_FILE).write_text(store_card(report), encoding="utf-8")
    # Last: with it the store is complete, and a later run only moves it into place.
    write_json(finished / REPORT_FILE, report)
    _move_into_place(out, work)
    return report


@contextmanager
def alone(work: Path) -> Iterator[None]:
    """
    One process at a time: two that finish one store at once would pull each other's files away. Others wait.

    Raises:
        `FileNotFoundError`: the folder `work` is gone, as when the process that was waited for has finished the store.
    """
    while True:
        with open(work / "lock", "ab") as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX)
                except OSError:  # a network file system without locks
                    yield
                    return
                try:
                    current = os.path.samestat(os.fstat(file.fileno()), os.stat(work / "lock"))
                except FileNotFoundError:
                    current = False
                if not current:  # the folder went while this process waited
                    continue
            yield
            return


def roll_forward(out: Path) -> None:
    """Moves a complete store from `work` into its place; what a kill interrupted, a second call finishes."""
    work = out / "work"
    if not _is_to_be_moved(work):
        return
    try:
        with alone(work):
            if _is_to_be_moved(work):
                _move_into_place(out, work)
    except FileNotFoundError:
        if work.exists():
            raise  # otherwise another process has done it


def sweep(out: Path) -> None:
    """Removes what a kill left beside a finished store."""
    work = out / "work"
    if work.is_dir():
        try:
            with alone(work):
                _remove(work)
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
    _remove(work)


def _remove(work: Path) -> None:
    # Another process may be writing a part, which nobody needs any more, into a folder that is being emptied.
    for _ in range(5):
        shutil.rmtree(work, ignore_errors=True)
        if not work.exists():
            return


def _read_facts(parts: Sequence[Path], label_names: Sequence[str]) -> pa.Table:
    columns = [*_FACTS, *label_names]
    return pa.concat_tables([pq.read_table(part, columns=columns) for part in parts])


def _filtered(facts: pa.Table, settings: SplitSettings, left_out: list[LeftOut], pseudonyms: bool) -> np.ndarray:
    flags = {}
    if settings.drop_nan_leads:
        flags["nan_leads"] = [any(counts) for counts in facts["nan_samples"].to_pylist()]
    if settings.drop_constant_leads:
        flags["constant_leads"] = [any(leads) for leads in facts["constant"].to_pylist()]
    if not flags:
        return np.ones(facts.num_rows, dtype=bool)
    keep = filter_recordings(**flags).keep
    names = {"nan_leads": "a lead has NaN", "constant_leads": "a lead is constant"}
    for row in np.flatnonzero(~keep).tolist():
        reason = next(names[flag] for flag, values in flags.items() if values[row])
        left_out.append(LeftOut(facts["recording_id"][row].as_py(), facts["path"][row].as_py(), "filter", reason))
    return keep


def _write_files(parts, kept_rows, splits, names, folder: Path, label_names, num_proc: int, progress: bool) -> None:
    """Each file is written from the stretch of parts that its rows lie in."""
    counts = [pq.read_metadata(part).num_rows for part in parts]
    starts = np.concatenate([[0], np.cumsum(counts)])
    if names == (UNSPLIT,) and len(kept_rows) == starts[-1]:
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
            for path, rows in tasks:
                _write_file(path, rows, parts, starts, label_names)
                bar.update(len(rows))
            return
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("fork" if "fork" in methods else None)
        with ProcessPoolExecutor(min(num_proc, len(tasks)), mp_context=context) as pool:
            futures = {
                pool.submit(_write_file, path, rows, parts, starts, label_names): len(rows) for path, rows in tasks
            }
            for future in as_completed(futures):
                future.result()
                bar.update(futures[future])


def _write_file(path: Path, rows: np.ndarray, parts: Sequence[Path], starts: np.ndarray, label_names) -> None:
    with StoreWriter(path, store_schema(label_names)) as writer:
        for number in np.unique(np.searchsorted(starts, rows, side="right") - 1).tolist():
            inside = rows[(rows >= starts[number]) & (rows < starts[number + 1])] - starts[number]
            with pq.ParquetFile(parts[number]) as part:
                first = 0
                for group in range(part.num_row_groups):
                    length = part.metadata.row_group(group).num_rows
                    wanted = inside[(inside >= first) & (inside < first + length)] - first
                    if len(wanted):
                        writer.write_table(part.read_row_group(group, use_threads=False).take(pa.array(wanted)))
                    first += length


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _file_name(split: str, number: int, count: int) -> str:
    return f"{split}-{number:05d}-of-{count:05d}.parquet"


def _label_table(kept: pa.Table, label_names: Sequence[str]) -> LabelTable:
    values = np.full((kept.num_rows, len(label_names)), np.nan)
    for column, name in enumerate(label_names):
        values[:, column] = kept[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
    return LabelTable(tuple(kept["recording_id"].to_pylist()), tuple(label_names), values)


def _define(labels: LabelTable, result: SplitResult) -> LabelDefinition:
    """By split; where nothing was split, of everything."""
    return define_labels(labels, None if result.names == (UNSPLIT,) else result.splits)


def _report(
    plan: Mapping[str, Any],
    settings: SplitSettings,
    result: SplitResult,
    kept: pa.Table,
    labels: LabelTable,
    left_out: list[LeftOut],
) -> dict[str, Any]:
    in_split = np.array([split is not None for split in result.splits])
    rows = kept.filter(pa.array(in_split))
    patients = rows["patient_id"].to_pylist()
    definition = _define(labels, result) if labels.names else None
    seconds = sum(
        n / rate for n, rate in zip(rows["num_samples"].to_pylist(), rows["sampling_rate"].to_pylist(), strict=True)
    )
    beginning = {
        key: value for key, value in plan.items() if key not in ("left_out", "notes", "codes", "split", "indexed")
    }
    return {
        **beginning,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "recordings": {
            "found": rows.num_rows + len(left_out),
            "kept": rows.num_rows,
            "left_out": len(left_out),
        },
        "left_out_by_reason": dict(Counter(one.reason for one in left_out).most_common()),
        "splits": result.summary(),
        "filters": {
            "drop_nan_leads": settings.drop_nan_leads,
            "drop_constant_leads": settings.drop_constant_leads,
        },
        "patients": {
            "known": len({patient for patient in patients if patient is not None}),
            "recordings_without": patients.count(None),
        },
        "sources": _counted(rows["source"].to_pylist()),
        "sampling_rates": _counted(rows["sampling_rate"].to_pylist()),
        "lead_layouts": _counted(" ".join(names) for names in rows["lead_names"].to_pylist()),
        "hours": round(seconds / 3600, 3),
        "quality": {
            f"recordings with a {what} lead": sum(map(any, rows[column].to_pylist()))
            for what, column in (("NaN", "nan_samples"), ("constant", "constant"), ("clipped", "clipped"))
        },
        "label_counts": {} if definition is None else _label_counts(definition),
        "diagnosis_codes": _codes(plan.get("codes") or {}),
        "notes": list(plan["notes"]),
        "left_out": [asdict(one) for one in left_out],
    }


def _label_counts(definition: LabelDefinition) -> dict[str, dict[str, dict[str, int | float | None]]]:
    """By label and split: positives, unknown and the weight of positives, which is null where there is none."""
    counts: dict[str, dict] = {}
    for number, name in enumerate(definition.names):
        counts[name] = {}
        for split, positives in definition.positives.items():
            weight = definition.weights.get(split)
            value = None if weight is None or not np.isfinite(weight[number]) else float(weight[number])
            facts = {"positive": int(positives[number]), "unknown": int(definition.unknown[split][number])}
            counts[name][split] = facts if split == "all" else facts | {"pos_weight": value}
    return counts


def _codes(codes: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Diagnosis codes of no scored class, with the number of recordings that carry them."""
    scored = scored_codes()
    others = {code: count for code, count in Counter(codes).most_common() if code not in scored}
    return {
        "unscored": {code: count for code, count in others.items() if code in UNSCORED_CODES},
        "unknown": {code: count for code, count in others.items() if code not in UNSCORED_CODES},
    }


def _counted(values) -> dict[str, int]:
    return {f"{value:g}" if isinstance(value, float) else str(value): n for value, n in Counter(values).most_common()}


def _most_common(left_out: Sequence[LeftOut]) -> str:
    found = Counter(one.reason for one in left_out).most_common(3)
    return "; ".join(f"{count} x {reason}" for reason, count in found) or "the source has none"
