"""
Answers for any number of recordings in one Parquet file, by a run that may be killed and shared among processes.

    OUTPUT.parquet                     all answers, in order, once all are there
    OUTPUT.failures.csv                what could not be answered, and why, where there is any
    OUTPUT.parquet.parts/plan.json     while it runs: what is being done, to which recordings, with which model
    OUTPUT.parquet.parts/DIGEST/parts/ part-00007.parquet, and part-00007.json, its account

A part is a stretch of recordings. It is finished when its account exists, which is written after its rows, each under a
name of its own first. So a run that died goes on at the first part that is not finished, without a lost or doubled row,
and in which process a part came about makes no difference.

DIGEST is that of the plan. Two runs with one output do the same work twice, and the first to end decides; but what one
of another plan writes, begun in the same moment or left over when its output was overwritten, never gets among ours.
"""

import contextlib
import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers.modeling_utils import PreTrainedModel

from ..data.finish import alone
from ..data.parts import PARTS_FOLDER, part_path, write_json
from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..utils.errors import ECGFMError
from .processes import Processes
from .reading import ReadRecording, read_in_order
from .recordings import ModelRunner
from .sources import FileSource, StoreSource

_METADATA = b"ecgfm_inference"
_PLAN_FILE = "plan.json"
_FORMAT = 1
_NO_PART_OF_THE_MODEL = ("_name_or_path", "transformers_version")

# From a recording's logits and embeddings to the rows of its answer, none, one or several.
ToRows = Callable[[ReadRecording, np.ndarray | None, np.ndarray | None], list[dict[str, Any]]]


class ResumeError(ECGFMError, ValueError):
    """What is at the output's place was made by another run. The message says what differs."""


@dataclass(frozen=True)
class RunResult:
    """
    What a run has come to.

    Args:
        output: The Parquet file.
        recordings: How many there were.
        failed: How many of them have no answer.
        failures_file: Where these are named; None where there are none.
        was_complete: Whether an earlier run had done it all.
    """

    output: Path
    recordings: int
    failed: int
    failures_file: Path | None
    was_complete: bool = False


@dataclass
class ParquetRun:
    """
    One run.

    Args:
        output: A path ending in `.parquet`.
        source: The recordings.
        runner: The model.
        schema: Of the answers.
        to_rows: Makes them.
        plan: All that decides the answers, JSON-able; see [`plan_of`]. A run with another does not go on with this one.
        failures_file: By default the output's name with `.failures.csv`.
        part_size: Recordings a part. Part of the plan.
        num_workers: Processes that read, for each process that computes.
        progress: Whether to show a progress bar.
    """

    output: Path
    source: FileSource | StoreSource
    runner: ModelRunner
    schema: pa.Schema
    to_rows: ToRows
    plan: Mapping[str, Any]
    failures_file: Path | None = None
    part_size: int = 256
    num_workers: int = 0
    progress: bool = False
    processes: Processes = field(default_factory=Processes)

    def __post_init__(self):
        self.output = Path(self.output)
        self._work = self.output.with_name(f"{self.output.name}.parts")
        if self.failures_file is None:
            self.failures_file = self.output.with_name(f"{self.output.name.removesuffix('.parquet')}.failures.csv")
        self.plan = {**self.plan, "format": _FORMAT, "num_recordings": len(self.source), "part_size": self.part_size}
        digest = hashlib.sha256(json.dumps(self.plan, sort_keys=True).encode()).hexdigest()
        self._own = self._work / digest[:16]

    def run(self, overwrite: bool = False) -> RunResult:
        """
        Runs, or goes on, to the end.

        Args:
            overwrite: Begin anew whatever is at the output's place.

        Raises:
            `ResumeError`: another run's output, finished or not, is at the output's place.
            `OSError`: it cannot be written.
        """
        if overwrite:
            self._discard()
        earlier = self._earlier()
        # Nobody begins before everybody has looked: what a process finds must not depend on how fast others are.
        self.processes.wait()
        if earlier is not None:
            return earlier
        try:
            if self.processes.is_main:
                (self._own / PARTS_FOLDER).mkdir(parents=True, exist_ok=True)
                write_json(self._work / _PLAN_FILE, self.plan)
            self.processes.wait()
            self._write_parts()
            self.processes.wait()
            result = self._join() if self.processes.is_main else None
            self.processes.wait()
        except FileNotFoundError:
            # Another run with the same output was faster, or began anew.
            if (earlier := self._earlier()) is None:
                raise
            return earlier
        return result or self._earlier()

    def _earlier(self) -> RunResult | None:
        """The result of an earlier run of this plan that is complete. `ResumeError` where there is one of another."""
        if self.output.exists():
            metadata = _metadata(self.output)
            _compare(self.output, metadata.get("plan"), self.plan)
            # A kill may have come just before this.
            if self.processes.is_main:
                shutil.rmtree(self._work, ignore_errors=True)
            failures = self.failures_file if metadata["failed"] else None
            return RunResult(self.output, len(self.source), metadata["failed"], failures, True)
        with contextlib.suppress(FileNotFoundError):
            found = json.loads((self._work / _PLAN_FILE).read_text(encoding="utf-8"))
            _compare(self._work, found, self.plan)
        return None

    def _discard(self) -> None:
        if self.processes.is_main:
            shutil.rmtree(self._work, ignore_errors=True)
            self.output.unlink(missing_ok=True)
            self.failures_file.unlink(missing_ok=True)
        self.processes.wait()

    def _num_parts(self) -> int:
        return -(-len(self.source) // self.part_size)

    def _write_parts(self) -> None:
        from tqdm import tqdm

        mine = range(self.processes.rank, self._num_parts(), self.processes.count)
        missing = [number for number in mine if not _is_finished(self._own, number)]
        size, total = self.part_size, len(self.source)
        places = np.concatenate(
            [np.arange(n * size, min((n + 1) * size, total)) for n in missing] or [np.zeros(0, dtype=np.int64)]
        )
        known = sum(min(size, total - n * size) for n in mine) - len(places)
        answers = self.runner.run(read_in_order(self.source, places, num_workers=self.num_workers))
        part = _Part()
        # The main process shows its own share, which stands for the others'.
        with tqdm(
            total=known + len(places),
            initial=known,
            unit="recording",
            disable=not (self.progress and self.processes.is_main),
        ) as bar:
            for read, logits, embeddings in answers:
                part.add(read, [] if read.failure is not None else self.to_rows(read, logits, embeddings))
                if (read.row + 1) % size == 0 or read.row + 1 == total:
                    part.write(self._own, read.row // size, self.schema)
                    part = _Part()
                bar.update()

    def _join(self) -> RunResult:
        with alone(self._work):
            accounts = [_account(self._own, number) for number in range(self._num_parts())]
            failed = sum(len(account["failures"]) for account in accounts)
            self._write_failures(accounts, failed)
            about = json.dumps({"plan": self.plan, "failed": failed})
            schema = self.schema.with_metadata({**(self.schema.metadata or {}), _METADATA: about.encode()})
            scratch = self._own / "joined.partial"
            with pq.ParquetWriter(scratch, schema, compression="zstd") as writer:
                for number in range(self._num_parts()):
                    writer.write_table(pq.read_table(part_path(self._own, number), schema=self.schema))
            _sync(scratch)
            # Last: with it the run is complete.
            os.replace(scratch, self.output)
            shutil.rmtree(self._work, ignore_errors=True)
        return RunResult(self.output, len(self.source), failed, self.failures_file if failed else None)

    def _write_failures(self, accounts: Sequence[Mapping[str, Any]], failed: int) -> None:
        if not failed:
            self.failures_file.unlink(missing_ok=True)
            return
        scratch = self._own / "failures.partial"
        write_failures(scratch, (failure for account in accounts for failure in account["failures"]))
        os.replace(scratch, self.failures_file)


class _Part:
    """Answers that are not on the disk yet."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._failures: list[tuple[str, str | None, str]] = []
        self._recordings = 0

    def add(self, read: ReadRecording, rows: list[dict[str, Any]]) -> None:
        self._recordings += 1
        self._rows += rows
        if read.failure is not None:
            self._failures.append((read.recording_id, read.path, read.failure))

    def write(self, work: Path, number: int, schema: pa.Schema) -> None:
        target = part_path(work, number)
        # Two processes may write one part; each has its own file until it is whole.
        scratch = target.with_suffix(f".{os.uname().nodename}-{os.getpid()}.partial")
        columns = [_column([row[column.name] for row in self._rows], column.type) for column in schema]
        try:
            pq.write_table(pa.table(columns, schema=schema), scratch, compression="zstd")
            _sync(scratch)
            os.replace(scratch, target)
        finally:
            scratch.unlink(missing_ok=True)
        account = {"recordings": self._recordings, "rows": len(self._rows), "failures": self._failures}
        write_json(target.with_suffix(".json"), account)


def plan_of(
    model: PreTrainedModel, extractor: ECGFMFeatureExtractor, source: FileSource | StoreSource, **settings: Any
) -> dict[str, Any]:
    """What decides the answers: the weights and the config, the preprocessing, the recordings, and settings."""
    # Where a model lies is no part of it.
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


def write_failures(path: Path, failures: Iterator[tuple[str, str | None, str]]) -> None:
    """Writes a CSV of recordings, files and reasons."""
    with open(path, "w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["recording_id", "path", "reason"])
        writer.writerows(failures)
        file.flush()
        os.fsync(file.fileno())


def _column(values: list, kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        flat = np.concatenate(values) if values else np.zeros(0, dtype=np.float32)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), kind.list_size)
    return pa.array(values, kind)


def _account(work: Path, number: int) -> dict[str, Any]:
    return json.loads(part_path(work, number).with_suffix(".json").read_text(encoding="utf-8"))


def _is_finished(work: Path, number: int) -> bool:
    """Whether a part has its account, and the rows that the account speaks of."""
    try:
        return pq.read_metadata(part_path(work, number)).num_rows == _account(work, number)["rows"]
    except (OSError, ValueError, pa.ArrowException):  # absent, or cut short when the power went
        return False


def _metadata(output: Path) -> dict[str, Any]:
    try:
        return json.loads((pq.read_schema(output).metadata or {})[_METADATA])
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return {}


def _compare(place: Path, found: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> None:
    if found is None:
        raise ResumeError(f"{place} exists and is no output of this command; --overwrite replaces it")
    # As JSON gives it back.
    wanted = json.loads(json.dumps(wanted))
    differing = []
    for name in sorted(found.keys() | wanted.keys()):
        ours, theirs = wanted.get(name), found.get(name)
        if ours == theirs:
            continue
        if isinstance(ours, dict) and isinstance(theirs, dict):
            inner = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
            differing += [f"{key} ({theirs.get(key)}, now {ours.get(key)})" for key in inner]
        else:
            short = isinstance(ours, int)
            differing.append(f"{name} ({theirs}, now {ours})" if short else f"another {name}".removesuffix("s"))
    if differing:
        what = "; ".join(differing)
        raise ResumeError(f"{place} is of a run that differs: {what}. --overwrite begins anew")


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


__all__ = ["ParquetRun", "ResumeError", "RunResult", "plan_of", "write_failures"]
