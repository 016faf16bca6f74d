"""
The long part of a preparation: recordings are read and written part by part.

A part is a stretch of the index. It is finished when its account (`part-00007.json`) exists, which is written after its
rows (`part-00007.parquet`), each under a name of its own first. What is in a part follows from the index alone: a part
that was begun by a process that died, or by two at once, comes out the same.
"""

import json
import multiprocessing
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ..records.record import ECGRecord
from .sources.base import LeftOut, Source
from .store import StoreWriter, row_from_record, store_schema

PARTS_FOLDER = "parts"
_FEWEST, _MOST, _PARTS = 64, 4096, 64


@dataclass
class PartAccount:
    """What came of a part: rows kept, recordings left out, and counts for the report."""

    kept: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    codes: Counter = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {"kept": self.kept, "left_out": [asdict(one) for one in self.left_out], "codes": dict(self.codes)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "PartAccount":
        return cls(content["kept"], [LeftOut(**one) for one in content["left_out"]], Counter(content["codes"]))


def part_size(num_recordings: int) -> int:
    """Recordings a part: about 64 parts, none of fewer than 64 or more than 4,096 (some 230 MB)."""
    return min(max(-(-num_recordings // _PARTS), _FEWEST), _MOST)


def part_ranges(num_recordings: int) -> list[tuple[int, int]]:
    """First and last + 1 row of each part."""
    size = part_size(num_recordings)
    return [(start, min(start + size, num_recordings)) for start in range(0, num_recordings, size)]


def part_path(work: Path, number: int) -> Path:
    return work / PARTS_FOLDER / f"part-{number:05d}.parquet"


def read_account(work: Path, number: int) -> PartAccount | None:
    """The account of a finished part, or None."""
    path = part_path(work, number).with_suffix(".json")
    try:
        return PartAccount.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def is_finished(work: Path, number: int) -> bool:
    """Whether a part has its account, and the rows that the account speaks of."""
    account = read_account(work, number)
    if account is None:
        return False
    try:
        return pq.read_metadata(part_path(work, number)).num_rows == account.kept
    except (OSError, pa.ArrowException):  # deleted, or cut short when the power went
        return False


def write_parts(
    source: Source,
    index: pa.Table,
    work: Path,
    *,
    pseudonyms: bool = False,
    num_proc: int = 1,
    shard: tuple[int, int] | None = None,
    progress: bool = False,
) -> None:
    """
    Write all parts that are not finished yet.

    Args:
        source ([`Source`])
        index (`pa.Table`): See [`SourceIndex`].
        work (`Path`): Where parts go.
        pseudonyms (`bool`): The index's ids are pseudonyms: nothing written may name the file.
        num_proc (`int`): Processes.
        shard (`tuple[int, int]`, *optional*): `(i, n)`: only every n-th part, from i in 0 to n - 1.
    """
    (work / PARTS_FOLDER).mkdir(parents=True, exist_ok=True)
    ranges = part_ranges(index.num_rows)
    mine = [number for number in range(len(ranges)) if shard is None or number % shard[1] == shard[0]]
    todo = [number for number in mine if not is_finished(work, number)]
    total = sum(ranges[number][1] - ranges[number][0] for number in mine)
    finished = total - sum(ranges[number][1] - ranges[number][0] for number in todo)
    with tqdm(total=total, initial=finished, unit="recording", desc=source.name, disable=not progress) as bar:
        tasks = {number: index.slice(ranges[number][0], ranges[number][1] - ranges[number][0]) for number in todo}
        if num_proc == 1 or not tasks:
            for number, rows in tasks.items():
                _write_part(source, rows, number, work, pseudonyms, bar.update)
            return
        for _ in _in_processes(source, tasks, work, pseudonyms, num_proc, bar):
            pass


def _in_processes(source, tasks, work, pseudonyms, num_proc, bar) -> Iterator[int]:
    # Forking, as 🤗 datasets does: scripts need no `if __name__ == "__main__"` for it, and nothing is imported anew.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else None)
    left = dict(tasks)
    while left:
        try:
            for number in _in_pool(source, left, work, pseudonyms, num_proc, context):
                bar.update(left.pop(number).num_rows)
                yield number
        except BrokenProcessPool:
            # A process died (a library crashed on a damaged file, or memory ran out). Each part that was being written
            # goes to a process of its own, which notes what it reads: the recording that kills it is left out, and
            # named. The others go on as before.
            begun = [number for number in left if _was_begun(work, number)]
            for number in begun or list(left):
                rows = left.pop(number)
                if not is_finished(work, number):
                    _write_carefully(source, rows, number, work, pseudonyms, context)
                bar.update(rows.num_rows)
                yield number


def _in_pool(source, tasks, work, pseudonyms, num_proc, context) -> Iterator[int]:
    workers = min(num_proc, len(tasks))
    with ProcessPoolExecutor(workers, context, initializer=_end_with, initargs=(os.getpid(),)) as pool:
        futures = {
            # A slice would be sent with the whole table that it is of.
            pool.submit(_write_part, source, rows.take(np.arange(rows.num_rows)), number, work, pseudonyms): number
            for number, rows in tasks.items()
        }
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _was_begun(work: Path, number: int) -> bool:
    return any(part_path(work, number).parent.glob(f"{part_path(work, number).stem}.*.partial"))


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone: the workers of a pool whose owner was killed would wait for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_carefully(source, rows, number, work, pseudonyms, context) -> None:
    target = part_path(work, number)
    marker, failure = target.with_suffix(".reading"), target.with_suffix(".failed")
    deadly: set[str] = set()
    while True:
        marker.unlink(missing_ok=True)
        failure.unlink(missing_ok=True)
        process = context.Process(
            target=_write_noting, args=(failure, source, rows, number, work, pseudonyms, marker, deadly)
        )
        process.start()
        process.join()
        if process.exitcode == 0:
            marker.unlink(missing_ok=True)
            return
        if failure.exists():  # an error, such as a full disk, and no recording's fault
            raise OSError(f"part {number} cannot be written: {failure.read_text(encoding='utf-8')}")
        culprit = marker.read_text(encoding="utf-8") if marker.exists() else None
        if culprit is None or culprit in deadly:
            raise OSError(f"part {number}: the process that reads it ended with exit code {process.exitcode}")
        deadly.add(culprit)


def _write_noting(failure: Path, source, rows, number, work, pseudonyms, marker, deadly) -> None:
    _end_with(os.getppid())
    try:
        _write_part(source, rows, number, work, pseudonyms, None, marker, frozenset(deadly))
    except Exception as error:
        failure.write_text(str(error) or type(error).__name__, encoding="utf-8", errors="backslashreplace")
        raise


def _write_part(
    source: Source,
    rows: pa.Table,
    number: int,
    work: Path,
    pseudonyms: bool,
    advance=None,
    marker: Path | None = None,
    deadly: frozenset[str] = frozenset(),
) -> None:
    target = part_path(work, number)
    # Two processes may write one part; each has its own file until it is whole.
    scratch = target.with_suffix(f".{os.uname().nodename}-{os.getpid()}.partial")
    account = PartAccount()
    entries = rows.to_pylist()
    try:
        with StoreWriter(scratch, store_schema(source.label_names)) as writer:
            for entry, record in source.read(_noted(entries, marker, deadly, account, pseudonyms)):
                row = record
                if not isinstance(record, Exception):
                    row = row_of(source, record, entry, pseudonyms)
                if isinstance(row, Exception):
                    account.left_out.append(left_out_of(entry, row, source, pseudonyms))
                else:
                    writer.write(row)
                    account.kept += 1
                    account.codes.update(record.diagnoses)
                if advance is not None:
                    advance(1)
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)
    write_json(target.with_suffix(".json"), account.to_json())


def _noted(entries, marker: Path | None, deadly: frozenset[str], account: PartAccount, pseudonyms: bool):
    """The entries, without those that killed a reader; in careful mode each is noted before it is read."""
    if marker is None:
        return entries
    for entry in entries:
        if entry["recording_id"] in deadly:
            path = None if pseudonyms else entry.get("path")
            what = ("the reader's process died on it", "the reader's process died")
            account.left_out.append(LeftOut(entry["recording_id"], path, "read", *what))
    return _Noted([entry for entry in entries if entry["recording_id"] not in deadly], marker)


class _Noted(Sequence):
    def __init__(self, entries: list, marker: Path):
        self._entries, self._marker = entries, marker

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, place):
        entry = self._entries[place]
        if not isinstance(place, slice):
            self._marker.write_text(entry["recording_id"], encoding="utf-8")
        return entry


def row_of(
    source: Source, record: ECGRecord, entry: Mapping[str, Any], pseudonyms: bool = False
) -> dict[str, Any] | Exception:
    """The store's row of a recording and its row in the index, or what is wrong with them."""
    facts = {name: value for name, value in entry.items() if not name.startswith("_")}
    facts["source"] = facts.get("source") or source.name
    try:
        row = row_from_record(record, **(facts | source.labels(record, entry)))
    except (ValueError, OverflowError) as error:
        return error
    if pseudonyms:
        row["path"] = None
        row["patient_id"] = entry.get("patient_id")  # never what the file itself calls the patient
    return row


def left_out_of(entry: Mapping[str, Any], error: Exception, source: Source, pseudonyms: bool = False) -> LeftOut:
    """The account of a recording that could not be read."""
    path, root = entry.get("path"), getattr(source, "root", None)
    detail = str(error) or type(error).__name__
    if root is not None:
        # Reports travel with the data: the folder on this machine is nobody's business. Libraries may name it in full.
        for folder in dict.fromkeys((os.path.realpath(root), os.path.abspath(root), os.fspath(root))):
            detail = re.sub(rf"(?<![\w./-]){re.escape(folder)}/", "", detail)
    if pseudonyms:
        return LeftOut(entry["recording_id"], None, "read", _kind_of(detail))
    return LeftOut(entry["recording_id"], path, "read", reason_of(detail, entry), detail)


# What may be said of a recording whose id is a pseudonym: these words and no others, since any part of a message may
# quote the name of a file, and a file may bear the name of a patient.
_KINDS = (
    *("no such signal file", "no such header", "no such file", "is empty", "truncated", "longer than its header says"),
    *("checksum", "initial value", "unknown unit", "gain", "sampling rate", "number of samples", "lead name"),
    *("signal format", "cannot be decoded", "damaged", "infinite samples", "all zeros", "unknown kind of file"),
    *("leads out of", "not supported", "not a WFDB header", "units", "header"),
)


def _kind_of(message: str) -> str:
    found = next((kind for kind in _KINDS if kind in message), None)
    return "cannot be read" if found is None else f"cannot be read: {found}"


def reason_of(message: str, entry: Mapping[str, Any]) -> str:
    """
    A message without what differs from recording to recording, so that a thousand of a kind become one line: names,
    quotations and what is in brackets go, numbers become N. What to pass stays.
    """
    # Readers' messages begin with the file, whose name may hold anything.
    first, colon, rest = message.partition(": ")
    if colon and ("/" in first or "." in first or first.startswith("recording ")):
        message = rest
    names = [str(entry[key]) for key in ("path", "recording_id") if entry.get(key)]
    names += [os.path.splitext(name)[0] for name in names] + [os.path.splitext(os.path.basename(n))[0] for n in names]
    for name in sorted({name for name in names if len(name) > 3}, key=len, reverse=True):
        message = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "", message)
    message = re.sub(r"^\S*\s*:\s+", "", message.strip())
    message = re.sub(r"(?<!\w)'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", "...", message)
    message = re.sub(r"\[Errno \d+\] ([^:()]*)(?:: \.\.\.)?", r"\1", message)
    message = re.sub(r"\bsignal \d+(?: \([^)]*\))?:", "a signal:", message)
    message = re.sub(r"\blead [^\s:,;]+(?=:| is | has | begins )", "a lead", message)
    message = re.sub(r", (?:in|found) the (?:record )?line .*|; (?!pass ).*|\[[^]]*\]", "", message, flags=re.DOTALL)
    message = re.sub(r"\b(found|expected) \([^()]*\)", r"\1 ...", message)
    message = re.sub(r" \((?=[^)]*\d)[^()]*\)", "", message)
    message = re.sub(r"(?<![\w.])(?!0 samples)-?\d[\d.]*(?:[eE][+-]?\d+)?(?<!\.)", "N", message)
    message = re.sub(r"\s+", " ", message).strip(" :,.")
    return (message if len(message) <= 120 else message[:117].rsplit(" ", 1)[0] + "...") or "unreadable"


def write_json(path: Path, content: Any) -> None:
    """Writes JSON so that the file is there whole or not at all."""
    scratch = path.with_suffix(f".{os.uname().nodename}-{os.getpid()}.partial")
    # Names of files need not be UTF-8; what is not is written as JSON's own escape, and read again as it was.
    with open(scratch, "w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(content, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)
