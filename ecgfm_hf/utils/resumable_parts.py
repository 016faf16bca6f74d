"""
Work that is done part by part: it can be killed at any time, shared among processes and machines, and resumed.

    WORK/plan.json                           all that decides the result; a run with another plan is refused
    WORK/lock                                locked by the process that joins the parts
    WORK/parts-DIGEST/part-00007.parquet     the rows of part 7
    WORK/parts-DIGEST/part-00007.json        its account, written last: a part is finished once it has one

A part is a range of items, so what is in it follows from the plan and not from the process that wrote it. DIGEST is the
plan's: what a run of another plan still writes, after its output was overwritten, never gets among these parts.

The plan does not cover the content of the items' files, which would all have to be read before the first part. A part's
account has a digest of those that the part was made of; a run that finds the part finished compares it.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Protocol, TypeVar

from filelock import FileLock, Timeout

from .errors import ECGFMError
from .files import atomic_path, lock_file
from .integrity import read_with_digest, write_with_digest

T = TypeVar("T")
R = TypeVar("R")

_LONGEST_VALUE = 40

logger = logging.getLogger(__name__)


class ResumeError(ECGFMError, ValueError):
    """The output was made, or begun, by another run. The message names what differs and what to do."""


@dataclass
class PartAccount:
    """
    What came out of one part.

    Args:
        rows: Rows in the part's file.
        failures: A mapping for each item without rows, with at least its reason; JSON-able.
        counts: Further counts.
        content: Digest of the items' files, taken before they were read; see [`content_digest`].
        sha256: Of the part's file.
    """

    rows: int = 0
    failures: list[dict[str, str | None]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    content: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Task:
    """
    One part to write.

    Args:
        number: The part's number.
        start, stop: Its items: the first, and the last + 1.
        path: The file for its rows.
    """

    number: int
    start: int
    stop: int
    path: Path

    def finish(self, write: Callable[[Path], PartAccount]) -> PartAccount:
        """Write the part whole or not at all: `write` writes its rows to the path that it gets."""
        with atomic_path(self.path) as scratch:
            account = write(scratch)
            account.sha256 = _sha256(scratch)
        write_with_digest(self.path.with_suffix(".json"), asdict(account))
        return account


class ItemWatch:
    """
    What the writer of a part calls before each item.

    Attributes:
        deadly: Names of items that killed the process that worked on them, to be skipped.
    """

    def __init__(self, begin: Callable[[str], object], deadly: frozenset[str] = frozenset()):
        self.begin = begin
        self.deadly = deadly


# Writes a part's rows to a path. Must be picklable where processes are spawned.
PartWriter = Callable[[Task, Path, ItemWatch], PartAccount]


# Returns each item of a part with its name and a stamp, a text that changes with the content of its files.
ItemStamps = Callable[[Task], Sequence[tuple[str, str]]]


def content_digest(stamps: Iterable[str]) -> str:
    """Return the digest of a part's items from the stamps of all, in order."""
    return hashlib.sha256("\n".join(stamps).encode("utf-8", "backslashreplace")).hexdigest()[:32]


class Executor(Protocol):
    """What works through parts: [`LocalExecutor`] on this machine, `ecgfm_hf.distributed.RayExecutor` on several."""

    def run(self, tasks: Sequence[Task], advance: Callable[[int], object]) -> Iterator[PartAccount]:
        """Finish all tasks, in any order; yield each part's account and call `advance(number of items)` meanwhile."""


# Makes what works through parts in one process. With True, an item that kills the process which reads it costs only
# itself.
MakeExecutor = Callable[[bool], Executor]


# Returns what shares parts among machines, from what each process does and the paths that each machine must see.
Distribute = Callable[[MakeExecutor, Sequence[Path]], Executor]


class ResumableParts:
    """
    The parts of one run.

    Args:
        work: Folder for the plan and the parts.
        plan: All that decides the result: JSON-able, and the same in every process that shares the run.
        num_items: Number of items.
        part_size: Items a part; the last may have fewer.
        stamps: Of a part's items as their files are now.
    """

    def __init__(self, work: Path, plan: Mapping[str, Any], num_items: int, part_size: int, stamps: ItemStamps):
        self.work, self._stamps = work, stamps
        self.plan: dict[str, Any] = json.loads(json.dumps({**plan, "num_items": num_items, "part_size": part_size}))
        self.num_items = num_items
        self.digest = hashlib.sha256(json.dumps(self.plan, sort_keys=True).encode()).hexdigest()[:32]
        self.folder = work / f"parts-{self.digest[:16]}"
        starts = range(0, num_items, part_size)
        self.tasks = [
            Task(number, start, min(start + part_size, num_items), self.folder / f"part-{number:05d}.parquet")
            for number, start in enumerate(starts)
        ]

    @property
    def paths(self) -> list[Path]:
        """The files with rows, in order."""
        return [task.path for task in self.tasks]

    def check(self) -> None:
        """Raise [`ResumeError`] where the work folder is of another plan, or its plan is damaged."""
        file = self.work / "plan.json"
        try:
            found = read_with_digest(file)
        except FileNotFoundError:
            return
        except ValueError as error:
            raise ResumeError(
                f"{file} is damaged ({error}), so it is unknown which run has begun there: discard it with "
                "overwrite=True, or give another output"
            ) from None
        if differences := plan_differences(found, self.plan):
            raise ResumeError(
                f"{self.work} holds an unfinished run that differs in: {'; '.join(differences)}. Finish that run, "
                "give another output, or discard it with overwrite=True"
            )

    def claim(self) -> None:
        """
        Make the work folder and write the plan, or check that the plan there is the same.

        Raises:
            [`ResumeError`]: the folder is of another plan.
            `OSError`: it cannot be written.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        with exclusive(self.work):
            self.check()
            if not (self.work / "plan.json").exists():
                write_with_digest(self.work / "plan.json", self.plan)
            self.folder.mkdir(exist_ok=True)

    def run(
        self,
        executor: Executor,
        *,
        shard: tuple[int, int] = (0, 1),
        progress: bool = False,
        description: str | None = None,
        unit: str = "recording",
    ) -> None:
        """
        Write all parts that are not finished.

        Args:
            executor: What writes them.
            shard: `(i, n)`: only every n-th part, beginning with the i-th, i from 0.
            progress: Whether to show a progress bar, with `description` and `unit`.

        Raises:
            [`ResumeError`]: a file has changed since a finished part was made of it.
            `FileNotFoundError`: another process removed the work folder, such as one that finished the same run.
        """
        from tqdm import tqdm

        index, count = shard
        share = self.tasks[index::count]
        missing = []
        for task in share:
            if (account := self.account(task)) is None:
                missing.append(task)
            else:
                self._check_content(task, account.content, self.work)
        total, remaining = (sum(task.stop - task.start for task in tasks) for tasks in (share, missing))
        with tqdm(
            total=total, initial=total - remaining, unit=unit, desc=description, disable=not progress
        ) as progress_bar:
            try:
                for _ in executor.run(missing, progress_bar.update):
                    pass
            except ECGFMError:
                # Refused, such as for a cluster that cannot be used: it need not be resumed.
                with suppress(FileNotFoundError):
                    if count == 1 and not any(self.folder.iterdir()):
                        self.remove()
                raise

    def account(self, task: Task) -> PartAccount | None:
        """Return the account of a finished part. None where it is not finished or, with a warning, damaged."""
        try:
            account = _read_account(task)
            if account.sha256 == _sha256(task.path):
                return account
        except FileNotFoundError:  # not finished
            return None
        except (OSError, ValueError, TypeError, KeyError):
            pass
        logger.warning("%s or its account is damaged: the part is computed again", task.path)
        return None

    def check_contents(self, contents: Sequence[str], output: Path, shard: tuple[int, int] = (0, 1)) -> None:
        """
        Raise [`ResumeError`] where a file has changed since a complete output was made of it.

        Args:
            contents: `content` of each part's account.
            output: For the message.
            shard: As in [`run`]: which parts to check.
        """
        for task, content in list(zip(self.tasks, contents, strict=True))[shard[0] :: shard[1]]:
            self._check_content(task, content, output)

    def _check_content(self, task: Task, content: str, output: Path) -> None:
        stamps = self._stamps(task)
        if content_digest(stamp for _, stamp in stamps) != content:
            first, last = stamps[0][0], stamps[-1][0]
            which = f"{first}" if len(stamps) == 1 else f"one of the {len(stamps)} recordings from {first} to {last}"
            raise ResumeError(
                f"the content of {which} has changed since {output} was written: restore it, give another output, or "
                "discard the earlier results with overwrite=True"
            )

    def accounts(self) -> list[PartAccount]:
        """Return the accounts of all parts, in order. `FileNotFoundError` where one is not finished."""
        return [_read_account(task) for task in self.tasks]

    def remove(self) -> None:
        """Remove the work folder and all that is in it."""
        remove_work_folder(self.work)


class LocalExecutor:
    """
    Writes parts in this process or in several. A process that dies costs only the item that it worked on.

    Args:
        write: Writes one part.
        num_proc: Number of processes.
        watched: With one process, write each part in a process of its own, which may die of an item.
    """

    def __init__(self, write: PartWriter, num_proc: int = 1, watched: bool = False):
        self._write, self._num_proc, self._watched = write, num_proc, watched

    def run(self, tasks: Sequence[Task], advance: Callable[[int], object]) -> Iterator[PartAccount]:
        """Finish all tasks; see [`Executor`]."""
        if self._watched:
            for task in tasks:
                yield _write_part_watched(self._write, task)
                advance(task.stop - task.start)
            return
        if self._num_proc == 1:
            watch = ItemWatch(lambda _: advance(1))
            for task in tasks:
                yield _write_part(self._write, task, watch)
            return
        remaining = {task.number: task for task in tasks}
        while remaining:
            try:
                for task, account in map_in_processes(self._write_part, list(remaining.values()), self._num_proc):
                    del remaining[task.number]
                    advance(task.stop - task.start)
                    yield account
            except BrokenProcessPool:
                # A process died: a library crashed on a damaged file, or memory ran out. Each part that was being
                # written goes to a process of its own, which reports every item before it begins.
                begun = [task for task in remaining.values() if any(task.path.parent.glob(f".{task.path.name}.*"))]
                for task in begun or list(remaining.values()):
                    account = _write_part_watched(self._write, task)
                    del remaining[task.number]
                    advance(task.stop - task.start)
                    yield account

    def _write_part(self, task: Task) -> PartAccount:
        return _write_part(self._write, task, ItemWatch(lambda _: None))


def map_in_processes(function: Callable[[T], R], items: Sequence[T], num_proc: int) -> Iterator[tuple[T, R]]:
    """
    Yield each item with what `function` returns for it, in the order in which processes finish.

    Raises:
        `BrokenProcessPool`: a process died. Any error that `function` raises.
    """
    context = process_context()
    with ProcessPoolExecutor(
        min(num_proc, len(items)), context, initializer=_begin_worker, initargs=(os.getpid(), function)
    ) as pool:
        futures = {pool.submit(_call_in_worker, item): item for item in items}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def process_context() -> BaseContext:
    """Return how processes start: by forking where possible, so that scripts need no `if __name__ == "__main__"`."""
    return multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)


def exit_with_parent(parent: int) -> None:
    """End this process once its parent has gone: it would wait for others forever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def exclusive(work: Path) -> Iterator[None]:
    """
    Let one process at a time work in a folder; others wait. Where the file system has no locks, none waits.

    Raises:
        `FileNotFoundError`: the folder is gone, as when the process that was waited for has finished.
    """
    while True:
        try:
            lock = _lock(work / "lock")
        except FileNotFoundError:
            if not work.is_dir():
                raise
            continue
        try:
            yield
            return
        finally:
            lock.release()


def try_lock(path: Path) -> FileLock | None:
    """Lock a file until `release`, or the end of this process. None where another process has locked it."""
    try:
        return _lock(path, timeout=0)
    except Timeout:
        return None


def _lock(path: Path, timeout: float = -1) -> FileLock:
    lock = lock_file(path, timeout)
    if not lock.is_locked:
        logger.warning("%s is on a file system without locks: start no second run with this output", path.parent)
    return lock


def remove_work_folder(work: Path) -> None:
    """Remove a folder in which another process may still be writing a part that is not needed any more."""
    for _ in range(5):
        shutil.rmtree(work, ignore_errors=True)
        if not work.exists():
            return


def plan_differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return what differs between two plans, such as `layer (1, now None)`; long values are named without content."""
    differences = []
    for name in sorted(found.keys() | wanted.keys()):
        theirs, ours = found.get(name), wanted.get(name)
        if ours == theirs:
            continue
        if isinstance(ours, dict) and isinstance(theirs, dict):
            differences += plan_differences(theirs, ours)
        elif max(len(str(ours)), len(str(theirs))) <= _LONGEST_VALUE:
            differences.append(f"{name} ({theirs}, now {ours})")
        else:
            differences.append(name)
    return differences


def _write_part(write: PartWriter, task: Task, watch: ItemWatch) -> PartAccount:
    return task.finish(lambda scratch: write(task, scratch, watch))


def _write_part_watched(write: PartWriter, task: Task) -> PartAccount:
    """Write a part in a process of its own, without the items that kill it."""
    context, deadly = process_context(), frozenset[str]()
    while True:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_write_and_report, args=(sender, os.getpid(), write, task, deadly))  # type: ignore[attr-defined]  # typeshed: BaseContext has no Process
        process.start()
        sender.close()
        item, result = None, None
        try:
            while result is None:
                message = receiver.recv()
                item, result = (message, None) if isinstance(message, str) else (item, message)
        except EOFError:
            pass
        process.join()
        if isinstance(result, PartAccount):
            return result
        if isinstance(result, FileNotFoundError):
            raise result
        if result is not None:  # such as a full disk, and not the fault of an item
            raise OSError(f"part {task.number} cannot be written: {result}") from result
        if item is None or item in deadly:
            raise OSError(
                f"part {task.number}: the process that writes it ended with exit code {process.exitcode}, as when "
                "memory runs out. Run the same command again: it resumes"
            )
        deadly |= {item}


def _write_and_report(sender: Connection, parent: int, write: PartWriter, task: Task, deadly: frozenset[str]) -> None:
    exit_with_parent(parent)
    try:
        sender.send(_write_part(write, task, ItemWatch(sender.send, deadly)))
    except Exception as error:
        sender.send(error if isinstance(error, OSError) else OSError(str(error) or type(error).__name__))


_function: Callable[[Any], Any]  # of a worker process


def _begin_worker(parent: int, function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    exit_with_parent(parent)


def _call_in_worker(item: Any) -> Any:
    return _function(item)


def _read_account(task: Task) -> PartAccount:
    """Return a part's account. `ValueError` where it has changed since it was written."""
    path = task.path.with_suffix(".json")
    try:
        return PartAccount(**read_with_digest(path))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and run the same command again") from None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = [
    "Distribute",
    "Executor",
    "ItemStamps",
    "ItemWatch",
    "LocalExecutor",
    "MakeExecutor",
    "PartAccount",
    "PartWriter",
    "ResumableParts",
    "ResumeError",
    "Task",
    "content_digest",
    "exclusive",
    "exit_with_parent",
    "map_in_processes",
    "plan_differences",
    "process_context",
    "remove_work_folder",
    "try_lock",
]
