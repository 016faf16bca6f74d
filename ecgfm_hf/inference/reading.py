"""Recordings read and preprocessed ahead of the model, by worker processes, in order."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..feature_extraction_ecgfm import ECGFMFeatureExtractor, resampled_length
from ..records.record import ECGRecord
from ..utils.resumable_parts import exit_with_parent

if TYPE_CHECKING:
    from ..data.model_inputs import ModelInputs


@dataclass(frozen=True)
class ReadRecording:
    """
    What a model takes of one recording, or why it takes nothing.

    Attributes:
        row: Its number in what was given.
        recording_id: Of a store's row, or the path of a file.
        patient_id: None where unknown.
        segments (`np.ndarray` of shape (segments, leads, samples), float32): Of a short recording that the extractor
            admits, the samples that it has, without padding. None where it failed.
        warnings: The extractor's.
        failure: Why there are no segments; None where there are.
        path: The file that it is from, where known.
    """

    row: int
    recording_id: str
    patient_id: str | None
    segments: np.ndarray | None
    warnings: tuple[str, ...] = ()
    failure: str | None = None
    path: str | None = None


class Source(Protocol):
    """Recordings by number. Goes to worker processes, so it must be picklable, and opens nothing before it is asked."""

    def __len__(self) -> int: ...

    def read_together(self, places: Sequence[int]) -> Iterable[list[int]]:
        """Cuts numbers in rising order into those that are best read by one worker at a time."""

    def __getitems__(self, places: Sequence[int]) -> list[ReadRecording]:
        """Reads and preprocesses. What is wrong with a recording is its `failure`."""

    def unread(self, place: int, reason: str) -> ReadRecording:
        """A recording that cannot be read for this reason."""


def in_chunks(places: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(places), size):
        yield list(places[start : start + size])


def prepared(
    row: int, recording_id: str, patient_id: str | None, record: ECGRecord, extractor: ECGFMFeatureExtractor, **options
) -> ReadRecording:
    """
    A recording as a model takes it. `options` are those of `ECGFMFeatureExtractor.prepare_recording`; what it refuses
    is its `ValueError`.
    """
    found = extractor.prepare_recording(
        record.signal, record.sampling_rate, record.lead_names, "mV", name=record.path, **options
    )
    segments = found.segments[:, :, : found.valid_samples]
    return ReadRecording(row, recording_id, patient_id, segments, tuple(found.warnings), path=record.path)


def failed(
    row: int, recording_id: str, patient_id: str | None, error: Exception | str, path: str | None = None
) -> ReadRecording:
    """A recording that failed, with what an exception or a sentence says; its own name in front is left out."""
    reason = str(error) or type(error).__name__
    for name in (path, recording_id):
        if name is not None:
            reason = reason.removeprefix(f"{name}: ")
    return ReadRecording(row, recording_id, patient_id, None, failure=reason, path=path)


class InputsSource:
    """The recordings of [`ModelInputs`] that have items, each with all of its items."""

    def __init__(self, inputs: "ModelInputs"):
        self._inputs = inputs
        self._rows, self._first = np.unique(inputs.recordings, return_index=True)
        self._end = np.append(self._first[1:], len(inputs))
        self._valid = _valid_samples(inputs, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def read_together(self, places: Sequence[int]) -> Iterable[list[int]]:
        return in_chunks(places, 4)

    def __getitems__(self, places: Sequence[int]) -> list[ReadRecording]:
        items = self._inputs.__getitems__([i for place in places for i in range(self._first[place], self._end[place])])
        found, start = [], 0
        for place in places:
            own = items[start : start + self._end[place] - self._first[place]]
            start += len(own)
            segments = np.stack([item["input_values"] for item in own])[:, :, : self._valid[place]]
            ids = own[0]["recording_id"], own[0]["patient_id"]
            found.append(ReadRecording(int(self._rows[place]), *ids, segments))
        return found

    def unread(self, place: int, reason: str) -> ReadRecording:
        row = self._inputs._rows.select_columns(["recording_id", "patient_id", "path"])[int(self._rows[place])]
        facts = [None if value is None else value.as_py() for value in (row[name][0] for name in row.column_names)]
        return failed(int(self._rows[place]), facts[0], facts[1], reason, facts[2])


def _valid_samples(inputs: "ModelInputs", rows: np.ndarray) -> np.ndarray:
    """Samples (rows,) of a segment that are not padding."""
    extractor = inputs._reader.feature_extractor
    facts = inputs._rows.select_columns(["num_samples", "sampling_rate"]).with_format("numpy")[:]
    lengths = [
        resampled_length(int(samples), float(rate), extractor.sampling_rate)
        for samples, rate in zip(facts["num_samples"][rows], facts["sampling_rate"][rows], strict=True)
    ]
    return np.minimum(np.array(lengths, dtype=np.int64), extractor.segment_samples)


def read_in_order(
    source: Source, places: Sequence[int] | None = None, *, num_workers: int = 0, start_method: str | None = None
) -> Iterator[ReadRecording]:
    """
    The recordings of a source, in order whatever the number of workers.

    Where a worker dies (a library crashed on a damaged file, or memory ran out), the recording that it died of comes
    back as failed, and the others as ever.

    Args:
        source: Where from.
        places: Which of them, in rising order; all by default.
        num_workers: Processes that read and preprocess ahead; 0 does it in this one.
        start_method: How they start: `"fork"` or `"spawn"`. By default they fork where that is possible: scripts need
            no `if __name__ == "__main__"` for it, and nothing is imported anew.
    """
    chunks = deque(source.read_together(range(len(source)) if places is None else places))
    if num_workers == 0:
        for chunk in chunks:
            yield from source.__getitems__(chunk)
        return
    if start_method is None:
        start_method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(start_method)
    while chunks:
        try:
            for found in _read_ahead(source, chunks, num_workers, context):
                chunks.popleft()
                yield from found
        except BrokenProcessPool:
            # Which recording it was nobody knows. Of the next ones each gets a process of its own; then on as before.
            for place in chunks.popleft():
                yield _read_alone(source, place, context)


def _read_ahead(source: Source, chunks: Iterable[list[int]], num_workers: int, context: Any) -> Iterator[list]:
    with ProcessPoolExecutor(num_workers, context, initializer=_begin, initargs=(os.getpid(), source)) as pool:
        ahead: deque = deque()
        try:
            for chunk in list(chunks):
                ahead.append(pool.submit(_read, chunk))
                # Two a worker: one that is being read, one that waits. More would only fill the memory.
                if len(ahead) >= 2 * num_workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _read_alone(source: Source, place: int, context: Any) -> ReadRecording:
    try:
        with ProcessPoolExecutor(1, context, initializer=_begin, initargs=(os.getpid(), source)) as pool:
            return pool.submit(_read, [place]).result()[0]
    except BrokenProcessPool:
        return source.unread(place, "the process that read it died")


_source: Source | None = None  # of a worker process


def _begin(parent: int, source: Source) -> None:
    global _source
    _source = source
    # Ctrl-C goes to all processes; the parent decides what to do about it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    exit_with_parent(parent)


def _read(chunk: list[int]) -> list[ReadRecording]:
    return _source.__getitems__(chunk)


__all__ = ["InputsSource", "ReadRecording", "Source", "failed", "in_chunks", "prepared", "read_in_order"]
