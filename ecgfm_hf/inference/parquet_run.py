"""
Predictions or embeddings of any number of recordings in one Parquet file, by a run that can be killed and shared.

    OUTPUT.parquet            all rows, in the recordings' order, once the run is complete
    OUTPUT.failures.csv       recordings without rows and the reason, where there are any
    OUTPUT.parquet.parts/     the unfinished run; see `utils/resumable_parts.py`
"""

import contextlib
import csv
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import distributed
from transformers.modeling_utils import PreTrainedModel

from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..utils.errors import SettingsError
from ..utils.files import atomic_path, begins_with, check_output, remove_unfinished
from ..utils.resumable_parts import (
    PartAccount,
    ResumableParts,
    ResumeError,
    Task,
    content_digest,
    exclusive,
    exit_with_parent,
    plan_differences,
)
from ..utils.text import to_cells
from .model_runner import ModelRunner
from .read_ahead import ReadRecording, read_in_order
from .recording_sources import FileSource, FolderSource, StoreSource

_METADATA = b"ecgfm_inference"
_FORMAT = 2
# The first line of a list of failures, by which one is recognised.
FAILURES_HEADER = "recording_id,path,reason\n"
_NO_PART_OF_THE_MODEL = ("_name_or_path", "transformers_version")
# For processes to find each other, between two heartbeats, and after the last one of a process that has ended.
_CONNECT_SECONDS, _BEAT_SECONDS, _DEAD_SECONDS = 90.0, 5.0, 60.0

# From a recording's logits and embeddings to its rows: none, one or several.
ToRows = Callable[[ReadRecording, np.ndarray | None, np.ndarray | None], list[dict[str, Any]]]


class Processes:
    """
    The processes of `torchrun` or `accelerate launch` that share a run; only this one where there are no others.

    A process that has finished its share may wait for days, as long as the others live: each counts up a heartbeat in
    the launcher's key-value store. A process whose launcher was killed ends.

    Attributes:
        rank, count: This process's index, from 0, and the number of processes.

    Raises:
        `OSError`: the others cannot be reached.
    """

    def __init__(self) -> None:
        self.rank, self.count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.is_main = self.rank == 0
        self._waits, self._ended = 0, threading.Event()
        if self.count == 1:
            return
        if "TORCHELASTIC_RUN_ID" in os.environ:
            exit_with_parent(os.getppid(), "the launcher of this process has ended: run the same command again")
        try:
            store, _, _ = next(distributed.rendezvous("env://", timeout=timedelta(seconds=_CONNECT_SECONDS)))
        except (ValueError, RuntimeError) as error:
            what = f"WORLD_SIZE is {self.count}, but the {self.count} processes of this run cannot connect"
            raise OSError(f"{what}: {error}") from error
        self._store = distributed.PrefixStore("ecgfm", store)
        threading.Thread(target=self._beat, daemon=True).start()

    def wait(self) -> None:
        """Wait until all processes have called this. `OSError` where one of them has ended."""
        if self.count == 1:
            return
        self._waits += 1
        try:
            self._store.add(f"waits/{self.rank}", 1)
            for rank in range(self.count):
                beats, changed = -1, time.monotonic()
                # `add` of 0 reads a counter; `get` would block the heartbeat, too.
                while self._store.add(f"waits/{rank}", 0) < self._waits:
                    found = self._store.add(f"beats/{rank}", 0)
                    if found != beats:
                        beats, changed = found, time.monotonic()
                    elif time.monotonic() - changed > _DEAD_SECONDS:
                        raise RuntimeError(f"no heartbeat of process {rank} for {_DEAD_SECONDS:g} s")
                    time.sleep(0.05)
        except RuntimeError as error:
            raise OSError(f"another process of this run has ended ({error}): run the same command again") from error

    def end(self) -> None:
        """Leave the others. The main process, which may hold the store, leaves last."""
        if self.count == 1 or self._ended.is_set():
            return
        self._ended.set()
        with contextlib.suppress(RuntimeError):  # the others have gone already
            self._store.add("ended", 1)
            end = time.monotonic() + _BEAT_SECONDS
            while self.is_main and self._store.add("ended", 0) < self.count and time.monotonic() < end:
                time.sleep(0.05)

    def _beat(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store has gone, which `wait` reports
            while not self._ended.is_set():
                self._store.add(f"beats/{self.rank}", 1)
                self._ended.wait(_BEAT_SECONDS)


@dataclass(frozen=True)
class RunResult:
    """
    The result of a run.

    Args:
        output: The Parquet file.
        recordings: Number of recordings.
        failed: Number of them without rows.
        failures_file: The CSV that names these; None where there are none.
        was_complete: Whether an earlier run had completed it.
    """

    output: Path
    recordings: int
    failed: int
    failures_file: Path | None
    was_complete: bool = False


class ParquetRun:
    """
    Runs a model over recordings and writes one Parquet file.

    Args:
        output: A path ending in `.parquet`.
        source: The recordings.
        runner: The model.
        schema: Of the rows.
        to_rows: Makes a recording's rows.
        plan: All that decides the rows, JSON-able; see [`plan_of`]. Only a run with the same plan is resumed.
        failures_file: Defaults to the output's name with `.failures.csv`.
        part_size: Recordings a part. Belongs to the plan.
        num_workers: Processes that read, for each process that computes.
        progress: Whether to show a progress bar.
        processes: Those that share the run.
    """

    def __init__(
        self,
        output: Path,
        source: FileSource | StoreSource | FolderSource,
        runner: ModelRunner,
        schema: pa.Schema,
        to_rows: ToRows,
        plan: Mapping[str, Any],
        *,
        failures_file: Path | None = None,
        part_size: int = 256,
        num_workers: int = 0,
        progress: bool = False,
        processes: Processes | None = None,
    ):
        self.output, self.source, self.runner, self.schema, self.to_rows = output, source, runner, schema, to_rows
        self.failures_file = failures_file or output.with_name(f"{output.name.removesuffix('.parquet')}.failures.csv")
        self.num_workers, self.progress = num_workers, progress
        self.processes = processes or Processes()
        work = output.with_name(f"{output.name}.parts")
        self.parts = ResumableParts(
            work, {**plan, "format": _FORMAT}, len(source), part_size, lambda task: source.stamps(task.start, task.stop)
        )

    def run(self, overwrite: bool = False) -> RunResult:
        """
        Run, or resume, to the end.

        Args:
            overwrite: Discard what another run wrote, finished or not.

        Raises:
            [`ResumeError`]: the output, finished or not, is of another run.
            [`OutputExistsError`]: the list of failures would replace a file that no run has written.
            [`SettingsError`]: the output is no file.
            `OSError`: it cannot be written.
        """
        processes = self.processes
        if self.output.exists() and not self.output.is_file():
            raise SettingsError(f"{self.output} is a folder, device or pipe, not a file: give another path")
        if processes.is_main:
            remove_unfinished(self.output.parent)
            check_output(self.failures_file, overwrite=overwrite, is_own=begins_with(FAILURES_HEADER))
        if overwrite:
            if processes.is_main:
                self.parts.remove()
            processes.wait()
        # The old output stays until the new one replaces it.
        earlier = None if overwrite else self._earlier()
        # All processes look before one begins: what a process finds must not depend on how fast the others are.
        processes.wait()
        if earlier is not None:
            return earlier
        try:
            self.parts.claim()
            self._write_parts()
            processes.wait()
            result = self._join() if processes.is_main else None
            processes.wait()
        except FileNotFoundError:
            # Another run with the same output was faster, or discarded this one.
            if (earlier := self._earlier()) is None:
                raise
            return earlier
        result = result or self._earlier()
        assert result is not None, "the main process has written the output"
        return result

    def _earlier(self) -> RunResult | None:
        """Return the result of a complete run of this plan, or None. `ResumeError` where there is one of another."""
        if not self.output.exists():
            self.parts.check()
            return None
        metadata = _metadata(self.output)
        if metadata is None:
            raise ResumeError(
                f"{self.output} exists and is no output of this command. Give another output, or replace it with "
                "overwrite=True"
            )
        if differences := plan_differences(metadata["plan"], self.parts.plan):
            raise ResumeError(
                f"{self.output} is of a run that differs in: {'; '.join(differences)}. Give another output, or replace "
                "it with overwrite=True"
            )
        self.parts.check_contents(metadata["contents"], self.output, (self.processes.rank, self.processes.count))
        if self.processes.is_main:  # a kill may have come just before this
            self.parts.remove()
        failures = self.failures_file if metadata["failed"] else None
        return RunResult(self.output, len(self.source), metadata["failed"], failures, True)

    def _remove_failures(self) -> None:
        if begins_with(FAILURES_HEADER)(self.failures_file):  # nothing but what a run has written
            self.failures_file.unlink()

    def _write_parts(self) -> None:
        # The main process shows its own share, which stands for the others'.
        progress = self.progress and self.processes.is_main
        self.parts.run(
            _ModelExecutor(self.runner, self.source, self.schema, self.to_rows, self.num_workers),
            shard=(self.processes.rank, self.processes.count),
            progress=progress,
        )

    def _join(self) -> RunResult:
        with exclusive(self.parts.work):
            accounts = self.parts.accounts()
            failures = [failure for account in accounts for failure in account.failures]
            if failures:
                write_failures(self.failures_file, (tuple(failure.values()) for failure in failures))
            else:
                self._remove_failures()
            contents = [account.content for account in accounts]
            about = json.dumps({"plan": self.parts.plan, "failed": len(failures), "contents": contents})
            schema = self.schema.with_metadata({**(self.schema.metadata or {}), _METADATA: about.encode()})
            # Last: with it the run is complete.
            tables = (pq.read_table(path, schema=self.schema) for path in self.parts.paths)
            with (
                atomic_path(self.output) as scratch,
                pq.ParquetWriter(scratch, schema, compression="zstd") as out,
            ):
                for table in tables:
                    out.write_table(table)
            self.parts.remove()
        return RunResult(self.output, len(self.source), len(failures), self.failures_file if failures else None)


class _ModelExecutor:
    """Writes parts in this process. Batches end with their part, so that its rows do not depend on other parts."""

    def __init__(
        self,
        runner: ModelRunner,
        source: FileSource | StoreSource | FolderSource,
        schema: pa.Schema,
        to_rows: ToRows,
        num_workers: int,
    ):
        self._runner, self._source, self._schema, self._to_rows = runner, source, schema, to_rows
        self._num_workers = num_workers

    def run(self, tasks: Sequence[Task], advance: Callable[[int], object]) -> Iterator[PartAccount]:
        """Finish all tasks; see `Executor`."""
        indices = [np.arange(task.start, task.stop) for task in tasks] or [np.zeros(0, dtype=np.int64)]
        recordings = read_in_order(self._source, np.concatenate(indices).tolist(), num_workers=self._num_workers)
        for task in tasks:
            rows: list[dict[str, Any]] = []
            failures: list[dict[str, str | None]] = []
            stamps: list[str] = []
            for read, logits, embeddings in self._runner.run(islice(recordings, task.stop - task.start)):
                if read.failure is None:
                    rows += self._to_rows(read, logits, embeddings)
                else:
                    failures.append({"recording_id": read.recording_id, "path": read.path, "reason": read.failure})
                stamps.append(read.stamp)
                advance(1)
            columns = [_column([row[column.name] for row in rows], column.type) for column in self._schema]
            table = pa.table(columns, schema=self._schema)
            account = PartAccount(table.num_rows, failures, content=content_digest(stamps))
            yield task.finish(partial(_write_table, table, account))


def _write_table(table: pa.Table, account: PartAccount, path: Path) -> PartAccount:
    pq.write_table(table, path, compression="zstd")
    return account


def plan_of(
    model: PreTrainedModel,
    extractor: ECGFMFeatureExtractor,
    source: FileSource | StoreSource | FolderSource,
    **settings: Any,
) -> dict[str, Any]:
    """
    Return all that decides the rows, besides the content of files: weights and config, preprocessing, the list of
    recordings, and `settings`.
    """
    # The folder of a model does not matter.
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NO_PART_OF_THE_MODEL}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(dtype=torch.uint8).numpy())
    return {
        "model": digest.hexdigest(),
        "preprocessing": json.loads(json.dumps(extractor.to_dict(), default=str)),
        "recordings": source.fingerprint(),
        "settings": settings,
    }


def write_failures(path: Path, failures: Iterable[Sequence[str | None]]) -> None:
    """Write a CSV of recordings, files and reasons, whole or not at all."""
    with (
        atomic_path(path) as scratch,
        open(scratch, "w", encoding="utf-8", newline="", errors="backslashreplace") as file,
    ):
        file.write(FAILURES_HEADER)
        csv.writer(file, lineterminator="\n").writerows(map(to_cells, failures))


def is_output(path: Path) -> bool:
    """Return whether a file is the complete output of a run."""
    return path.is_file() and _metadata(path) is not None


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        flat = np.concatenate(values) if values else np.zeros(0, dtype=np.float32)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), kind.list_size)
    return pa.array(values, kind)


def _metadata(output: Path) -> dict[str, Any] | None:
    try:
        return json.loads((pq.read_schema(output).metadata or {})[_METADATA])
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None


__all__ = ["ParquetRun", "Processes", "ResumeError", "RunResult", "is_output", "plan_of", "write_failures"]
