"""
Predictions or embeddings of any number of recordings in one Parquet file, by a run that can be killed and shared.

    OUTPUT.parquet            all rows, in the recordings' order, once the run is complete
    OUTPUT.failures.csv       recordings without rows and the reason, where there are any
    OUTPUT.parquet.parts/     the unfinished run; see `utils/resumable_parts.py`
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers.modeling_utils import PreTrainedModel

from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..utils.errors import SettingsError
from ..utils.files import atomic_path, begins_with, check_output, remove_unfinished
from ..utils.resumable_parts import (
    Distribute,
    Executor,
    PartAccount,
    ResumableParts,
    ResumeError,
    Task,
    content_digest,
    exclusive,
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

# From a recording's logits and embeddings to its rows: none, one or several.
ToRows = Callable[[ReadRecording, np.ndarray | None, np.ndarray | None], list[dict[str, Any]]]


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
        make_runner: Makes the model's runner, such as `functools.partial(ModelRunner, model)`.
        schema: Of the rows.
        to_rows: Makes a recording's rows.
        plan: All that decides the rows, JSON-able; see [`plan_of`]. Only a run with the same plan is resumed.
        failures_file: Defaults to the output's name with `.failures.csv`.
        part_size: Recordings a part. Belongs to the plan.
        num_workers: Processes that read, for each process that computes.
        progress: Whether to show a progress bar.
        shard: `(i, n)`, i from 0: write this share of the parts only; a run without it completes the output.
        distribute: Has the parts written on several machines, such as
            `functools.partial(ecgfm_hf.distributed.RayExecutor, address="auto")`.
    """

    def __init__(
        self,
        output: Path,
        source: FileSource | StoreSource | FolderSource,
        make_runner: Callable[[], ModelRunner],
        schema: pa.Schema,
        to_rows: ToRows,
        plan: Mapping[str, Any],
        *,
        failures_file: Path | None = None,
        part_size: int = 256,
        num_workers: int = 0,
        progress: bool = False,
        shard: tuple[int, int] | None = None,
        distribute: Distribute | None = None,
    ):
        self.output, self.source, self.schema, self.shard = output, source, schema, shard
        self.failures_file = failures_file or output.with_name(f"{output.name.removesuffix('.parquet')}.failures.csv")
        self.progress, self._distribute = progress, distribute
        self._make = partial(_ModelExecutor, make_runner, source, schema, to_rows, num_workers)
        work = output.with_name(f"{output.name}.parts")
        self.parts = ResumableParts(
            work, {**plan, "format": _FORMAT}, len(source), part_size, lambda task: source.stamps(task.start, task.stop)
        )

    def run(self, overwrite: bool = False) -> RunResult | None:
        """
        Run, or resume, to the end; with `shard`, only that share.

        Args:
            overwrite: Discard what another run wrote, finished or not.

        Returns:
            The result; None for a share of a run that is not complete.

        Raises:
            [`ResumeError`]: the output, finished or not, is of another run.
            [`OutputExistsError`]: the list of failures would replace a file that no run has written.
            [`SettingsError`]: the output is no file.
            `OSError`: it cannot be written.
        """
        if self.output.exists() and not self.output.is_file():
            raise SettingsError(f"{self.output} is a folder, device or pipe, not a file: give another path")
        if overwrite and self.shard is not None:
            raise SettingsError("overwrite and shard exclude each other: each process would discard the others' parts")
        remove_unfinished(self.output.parent)
        check_output(self.failures_file, overwrite=overwrite, is_own=begins_with(FAILURES_HEADER))
        if overwrite:
            self.parts.remove()
        # The old output stays until the new one replaces it.
        earlier = None if overwrite else self._earlier()
        if earlier is not None:
            return earlier
        try:
            self.parts.claim()
            self._write_parts()
            return self._join() if self.shard is None else None
        except FileNotFoundError:
            # Another run with the same output was faster, or discarded this one.
            if (earlier := self._earlier()) is None:
                raise
            return earlier

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
        self.parts.check_contents(metadata["contents"], self.output, self.shard or (0, 1))
        self.parts.remove()  # a kill may have come just before this
        failures = self.failures_file if metadata["failed"] else None
        return RunResult(self.output, len(self.source), metadata["failed"], failures, True)

    def _remove_failures(self) -> None:
        if begins_with(FAILURES_HEADER)(self.failures_file):  # nothing but what a run has written
            self.failures_file.unlink()

    def _write_parts(self) -> None:
        executor: Executor = self._make(False)
        if self._distribute is not None:
            files = self.source.files if isinstance(self.source, StoreSource) else islice(self.source.paths(), 1)
            found = [Path(file) for file in files]
            executor = self._distribute(self._make, [*found, *(path.parent for path in found[:1])])
        self.parts.run(executor, shard=self.shard or (0, 1), progress=self.progress)

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
    """
    Writes parts in this process. Batches end with their part, so that its rows do not depend on other parts.

    `watched` has another process read, which may die of a recording.
    """

    def __init__(
        self,
        make_runner: Callable[[], ModelRunner],
        source: FileSource | StoreSource | FolderSource,
        schema: pa.Schema,
        to_rows: ToRows,
        num_workers: int,
        watched: bool,
    ):
        self._make_runner, self._source, self._schema, self._to_rows = make_runner, source, schema, to_rows
        self._num_workers = max(1, num_workers) if watched else num_workers

    @cached_property
    def _runner(self) -> ModelRunner:
        return self._make_runner()

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


__all__ = ["ParquetRun", "ResumeError", "RunResult", "is_output", "plan_of", "write_failures"]
