"""Read and preprocess recordings ahead of the model, in worker processes, and return them in order."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Protocol

import numpy as np

from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..records.record import ECGRecord
from ..utils.files import private_folder
from ..utils.integrity import share_checksums
from ..utils.resumable_parts import exit_with_parent


@dataclass(frozen=True)
class ReadRecording:
    """
    A recording as the model takes it, or the reason why there is none.

    Attributes:
        row: Its index in the source; for a dataset, its row.
        recording_id: The id in the store, or the path of the file.
        patient_id: None where unknown.
        segments (`np.ndarray` of shape (segments, leads, samples), float32): A short recording that the extractor
            admits has its true length, without padding. None where reading failed.
        warnings: From the feature extractor.
        failure: Why there are no segments; None on success.
        path: The file that it was read from, where known.
        start_s: Seconds of the file before the first segment.
        stamp: Changes with the content of its files; taken before they were read. Empty where there are none.
    """

    row: int
    recording_id: str
    patient_id: str | None
    segments: np.ndarray | None
    warnings: tuple[str, ...] = ()
    failure: str | None = None
    path: str | None = None
    start_s: float = 0.0
    stamp: str = ""


class RecordingSource(Protocol):
    """Recordings by index. Worker processes get a copy: it must be picklable and open files only when it reads."""

    def __len__(self) -> int: ...

    def groups(self, indices: Sequence[int]) -> Iterable[list[int]]:
        """Split rising indices into groups that one worker should read at a time."""

    def read(self, indices: Sequence[int]) -> list[ReadRecording]:
        """Read and preprocess one group. A recording that cannot be read comes back with its `failure`."""

    def failed(self, index: int, reason: str) -> ReadRecording:
        """Return the recording as failed for this reason, without reading its signal."""


def in_groups(indices: Sequence[int], size: int) -> Iterator[list[int]]:
    """Split indices into groups of `size`."""
    for start in range(0, len(indices), size):
        yield list(indices[start : start + size])


def prepare_record(
    row: int,
    recording_id: str,
    patient_id: str | None,
    record: ECGRecord,
    extractor: ECGFMFeatureExtractor,
    inspect: bool = True,
) -> ReadRecording:
    """
    Preprocess a record. With `inspect` the extractor also looks for clipped leads and the like, for its warnings.

    Raises:
        `ValueError`: the extractor refuses the recording.
    """
    prepared = extractor.prepare_recording(
        record.signal, record.sampling_rate, record.lead_names, "mV", name=record.path, inspect=inspect
    )
    segments = prepared.segments[:, :, : prepared.valid_samples]
    warnings = (*record.warnings, *prepared.warnings)
    return ReadRecording(row, recording_id, patient_id, segments, warnings, path=record.path, start_s=record.start_s)


def failed_recording(
    row: int, recording_id: str, patient_id: str | None, error: Exception | str, path: str | None = None
) -> ReadRecording:
    """Return a failed recording; the reason is the error's message without the recording's name before it."""
    reason = str(error) or type(error).__name__
    for name in (path, recording_id):
        if name is not None:
            reason = reason.removeprefix(f"{name}: ")
    return ReadRecording(row, recording_id, patient_id, None, failure=reason, path=path)


def read_in_order(
    source: RecordingSource,
    indices: Sequence[int] | None = None,
    *,
    num_workers: int = 0,
    start_method: str | None = None,
) -> Iterator[ReadRecording]:
    """
    Yield the recordings of a source, in the same order for any number of workers.

    If a worker dies (a library crashed on a damaged file, or memory ran out), the recording that killed it comes back
    as failed. All others are read.

    Args:
        source: The recordings.
        indices: Which of them, in rising order; all by default.
        num_workers: Processes that read and preprocess ahead; 0 reads in this process.
        start_method: `"fork"` or `"spawn"`. By default workers fork where the system can: scripts then need no
            `if __name__ == "__main__"`, and nothing is imported again.
    """
    groups = deque(source.groups(range(len(source)) if indices is None else indices))
    if num_workers == 0:
        for group in groups:
            yield from source.read(group)
        return
    if start_method is None:
        start_method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(start_method)
    while groups:
        try:
            for recordings in _read_ahead(source, groups, num_workers, context):
                groups.popleft()
                yield from recordings
        except BrokenProcessPool:
            # It is unknown which recording did it. Each of the next group gets its own process, then the pool resumes.
            for index in groups.popleft():
                yield _read_in_own_process(source, index, context)


def _read_ahead(
    source: RecordingSource, groups: Iterable[list[int]], num_workers: int, context: BaseContext
) -> Iterator[list[ReadRecording]]:
    arguments = os.getpid(), source, private_folder()
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=arguments) as pool:
        ahead: deque = deque()
        try:
            for group in list(groups):
                ahead.append(pool.submit(_read_group, group))
                # Two per worker: one being read, one waiting. More would only fill the memory.
                if len(ahead) >= 2 * num_workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _read_in_own_process(source: RecordingSource, index: int, context: BaseContext) -> ReadRecording:
    try:
        arguments = os.getpid(), source, private_folder()
        with ProcessPoolExecutor(1, context, initializer=_start_worker, initargs=arguments) as pool:
            return pool.submit(_read_group, [index]).result()[0]
    except BrokenProcessPool:
        return source.failed(index, "the process that read it died")


_worker_source: RecordingSource | None = None  # set in worker processes


def _start_worker(parent: int, source: RecordingSource, folder: Path) -> None:
    global _worker_source
    _worker_source = source
    share_checksums(folder)
    # Ctrl-C reaches all processes; the parent decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    exit_with_parent(parent)


def _read_group(group: list[int]) -> list[ReadRecording]:
    if _worker_source is None:
        raise RuntimeError("a worker process was started without its source")
    return _worker_source.read(group)


__all__ = ["ReadRecording", "RecordingSource", "failed_recording", "in_groups", "prepare_record", "read_in_order"]
