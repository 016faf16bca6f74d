"""Recordings in memory as a source."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ...records import ECGReadError, ECGRecord
from ...utils.ids import canonical_id
from ..labels import LabelTable, label_table
from ..store import COLUMNS, DataError
from .base import Source, SourceIndex
from .table_cells import EXPECTED, age_in_years, check_label_names, convert_cells, sex_in, text_or_none, time_cells

_FACTS = ("recording_id", "patient_id", "source", "time", "age", "sex", "report")
_MEANINGS: dict[str, Callable[[Any], Any]] = {"age": age_in_years, "sex": sex_in}
_SIGNAL = ("signal", "sampling_rate", "lead_names", "units")


class Arrays(Source):
    """
    Recordings in memory.

    Args:
        recordings (iterable of mappings): Each with `recording_id`, `signal` (leads, samples; integers or floats),
            `sampling_rate` (Hz), `lead_names`, `units` (one, or one per lead), and optionally `patient_id, source,
            time, age, sex, report`. Times are `datetime` or text in ISO 8601.
        labels (mapping of `str` to sequences, *optional*): By label, one value per recording: 1, 0 or None.
    """

    name = "arrays"

    def __init__(self, recordings: Iterable[Mapping[str, Any]], labels: Mapping[str, Sequence[Any]] | None = None):
        self._recordings = list(recordings)
        self._labels = {} if labels is None else {name: list(values) for name, values in dict(labels).items()}
        check_label_names(self._labels, "labels")
        known = {*_FACTS, *_SIGNAL}
        for number, recording in enumerate(self._recordings):
            if unknown := [name for name in recording if name not in known]:
                raise DataError(
                    f"recording {number}: unknown key {', '.join(unknown)}, expected {', '.join(sorted(known))}"
                )
            if missing := [name for name in ("recording_id", *_SIGNAL) if name not in recording]:
                raise DataError(f"recording {number}: missing {', '.join(missing)}")

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(self._labels)

    def index(self) -> SourceIndex:
        ids = [canonical_id(recording["recording_id"]) for recording in self._recordings]
        if repeated := [name for name, count in Counter(ids).items() if count > 1 or name is None]:
            raise DataError(f"recording ids must be unique and known, found several times or empty: {repeated[:3]}")
        columns: dict[str, Any] = {"recording_id": pa.array(ids, pa.string()), "path": pa.nulls(len(ids), pa.string())}
        columns["_row"] = pa.array(range(len(ids)))
        for name in _FACTS[1:]:
            values = [recording.get(name) for recording in self._recordings]
            if name == "patient_id":
                values = [canonical_id(value) for value in values]
            elif name == "time":
                values = time_cells("recordings", values)
            else:
                meaning = _MEANINGS.get(name, text_or_none)
                values = convert_cells("recordings", name, values, meaning, EXPECTED.get(name, "text"))
            columns[name] = pa.array(values, COLUMNS[name])
        return SourceIndex(pa.table(columns | _label_arrays(label_table(ids, self._labels))))

    def stamps(self, table: pa.Table) -> list[str]:
        stamps = []
        for row in table["_row"].to_pylist():
            recording = self._recordings[row]
            samples = np.ascontiguousarray(recording["signal"])
            facts = [recording[name] for name in ("sampling_rate", "lead_names", "units")]
            digest = hashlib.blake2b(samples.tobytes(), digest_size=16)
            digest.update(repr((samples.shape, samples.dtype.str, facts)).encode())
            stamps.append(digest.hexdigest())
        return stamps

    def read_one(self, entry: Mapping[str, Any]) -> ECGRecord:
        """Read one row of the index; see [`Source.read_one`]."""
        recording = self._recordings[entry["_row"]]
        samples = np.asarray(recording["signal"])
        where = f"recording {entry['recording_id']}"
        if samples.ndim != 2:
            raise ECGReadError(f"{where}: signal must have shape (leads, samples), found {samples.shape}")
        if samples.dtype.kind in "ui" and samples.size:
            low, high = int(samples.min()), int(samples.max())
            fits = next((t for t in (np.int16, np.int32) if np.iinfo(t).min < low and high <= np.iinfo(t).max), None)
            if fits is None and max(-low, high) >= 2**53:
                raise ECGReadError(f"{where}: samples from {low} to {high} cannot be an ECG")
            if samples.dtype not in (np.int16, np.int32):
                samples = samples.astype(fits or np.float64)
        units = recording["units"]
        count = len(samples)
        return ECGRecord(
            recording_id=entry["recording_id"],
            path=where,
            samples=samples.astype(np.float32) if samples.dtype == np.float16 else samples,
            gain=np.ones(count),
            baseline=np.zeros(count),
            units=(units,) * count if isinstance(units, str) else tuple(units),
            sampling_rate=recording["sampling_rate"],
            lead_names=tuple(recording["lead_names"]),
        )


def _label_arrays(labels: LabelTable) -> dict[str, pa.Array]:
    """Return a store's columns for these labels: int8, null for unknown."""
    arrays = {}
    for number, name in enumerate(labels.names):
        values = labels.values[:, number]
        unknown = np.isnan(values)
        arrays[name] = pa.array(np.where(unknown, 0, values).astype(np.int8), mask=unknown)
    return arrays
