"""
Recordings as rows of a table: the columns of a store, a row from a recording, and the recording back from its row.

`signal` holds the stored array (leads, samples) of `dtype`, lead after lead, little-endian. Every other column but the
labels describes the recording.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from ..feature_extraction_ecgfm import (
    LARGEST_SAMPLE,
    SMALLEST_RANGE,
    clipped_leads,
    contradicting_leads,
    small_buffers,
    standardise,
)
from .record import ECGReadError, ECGRecord

# Every column but the labels, in order.
COLUMNS: dict[str, pa.DataType] = {
    "recording_id": pa.string(),
    "patient_id": pa.string(),
    "source": pa.string(),
    "path": pa.string(),
    "time": pa.timestamp("us"),
    "age": pa.float32(),
    "sex": pa.string(),
    "report": pa.string(),
    "diagnoses": pa.list_(pa.string()),
    "sampling_rate": pa.float64(),
    "num_samples": pa.int64(),
    "lead_names": pa.list_(pa.string()),
    "units": pa.list_(pa.string()),
    "signal": pa.binary(),
    "dtype": pa.string(),
    "gain": pa.list_(pa.float64()),
    "baseline": pa.list_(pa.float64()),
    "missing_value": pa.int64(),
    "start_s": pa.float64(),
    "nan_samples": pa.list_(pa.int64()),
    "constant": pa.list_(pa.bool_()),
    "clipped": pa.list_(pa.bool_()),
    "contradicting": pa.list_(pa.bool_()),
    "warnings": pa.list_(pa.string()),
    "min_mv": pa.list_(pa.float32()),
    "max_mv": pa.list_(pa.float32()),
    "mean_mv": pa.list_(pa.float64()),
    "std_mv": pa.list_(pa.float64()),
}
# What a user may ask to leave empty; the rest is needed to read a signal.
OPTIONAL_COLUMNS = ("patient_id", "path", "time", "age", "sex", "report", "diagnoses")
# What a recording's signal is made of. Reading no other columns halves the time.
SIGNAL_COLUMNS = (
    *("recording_id", "patient_id", "path", "sampling_rate", "num_samples", "lead_names", "units", "signal", "dtype"),
    *("gain", "baseline", "missing_value"),
)
# What makes it possible to read some segments of a recording without the others. Older stores have none.
STATISTICS_COLUMNS = ("mean_mv", "std_mv")
# A label is a `ClassLabel` of 🤗 datasets with these names, in this order.
LABEL_CLASSES = ["absent", "present"]
# A binary cell must stay below 2 GB.
_LARGEST_SIGNAL = 1 << 30


def label_columns(columns: Sequence[str], features: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """
    Return the columns of a store that are labels, in order.

    With the dataset's `features`, these are its columns of type `ClassLabel` with two classes.
    """
    found = [name for name in columns if name not in COLUMNS]
    if features is not None:
        found = [name for name in found if getattr(features[name], "num_classes", None) == len(LABEL_CLASSES)]
    return tuple(found)


@small_buffers()
def quality_facts(record: ECGRecord) -> dict[str, list]:
    """
    What is wrong with each lead, in the recording's order of leads.

    Returns:
        `nan_samples`: how many are missing; `constant`: whether all that are there are equal (or none is there);
        `clipped`: whether peaks are cut off ([`clipped_leads`]); `contradicting`: whether a limb lead contradicts the
        others, which betrays wrong gains or a wrong order ([`contradicting_leads`]); `min_mv`, `max_mv`: None where
        nothing is there; `mean_mv`, `std_mv`: to the last bit what standardisation of the recording at its own rate
        subtracts and divides by, None for a lead that is constant or has missing samples.
    """
    signal = record.signal
    missing = np.isnan(signal)
    counts = missing.sum(axis=1)
    with np.errstate(invalid="ignore"):
        low = np.where(missing, np.inf, signal).min(axis=1) if counts.any() else signal.min(axis=1)
        high = np.where(missing, -np.inf, signal).max(axis=1) if counts.any() else signal.max(axis=1)
    constant = low >= high
    clipped, contradicting = np.zeros((2, len(signal)), dtype=bool)
    mean, std = np.full((2, len(signal)), np.nan)
    whole = np.flatnonzero((counts == 0) & ~constant & np.isfinite(low) & np.isfinite(high))
    if len(whole):
        names = tuple(record.lead_names[row] for row in whole)
        leads = signal if len(whole) == len(signal) else signal[whole]
        found = clipped_leads(leads, low[whole], high[whole], record.sampling_rate)
        clipped[[whole[row] for row, _ in found]] = True
        mean[whole], std[whole] = standardise(leads)  # in place: the signal is this function's own
        wrong = contradicting_leads(leads, std[whole], names, names, record.sampling_rate)
        contradicting[[whole[names.index(lead)] for lead, _ in wrong]] = True
        # The extractor takes such leads as constant or as infinite.
        std[(high - low < SMALLEST_RANGE) | (np.maximum(-low, high) > LARGEST_SAMPLE)] = np.nan
    return {
        "nan_samples": counts.tolist(),
        "constant": constant.tolist(),
        "clipped": clipped.tolist(),
        "contradicting": contradicting.tolist(),
        "min_mv": _finite_or_none(low),
        "max_mv": _finite_or_none(high),
        "mean_mv": _finite_or_none(mean),
        "std_mv": _finite_or_none(std),
    }


def _finite_or_none(values: np.ndarray) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def row_from_record(record: ECGRecord, **facts: Any) -> dict[str, Any]:
    """
    Return a recording's row of a store.

    Args:
        record ([`ECGRecord`])
        facts: Columns from the dataset's own tables, and labels (1, 0 or None). `recording_id`, `source` and `path`
            (relative to the dataset) should be among them; None keeps the value of the record.

    Raises:
        `ECGReadError`: more samples than a cell holds.
    """
    if record.samples.nbytes > _LARGEST_SIGNAL:
        raise ECGReadError(
            f"{record.path}: {record.samples.nbytes} bytes of samples, expected at most {_LARGEST_SIGNAL}", "too large"
        )
    samples = np.ascontiguousarray(record.samples, dtype=record.samples.dtype.newbyteorder("<"))
    row = {
        "recording_id": record.recording_id,
        "patient_id": record.patient_id,
        "time": record.time,
        "age": record.age,
        "sex": record.sex,
        "report": record.report,
        "diagnoses": list(record.diagnoses),
        "sampling_rate": record.sampling_rate,
        "num_samples": samples.shape[1],
        "lead_names": list(record.lead_names),
        "units": list(record.units),
        "signal": samples.tobytes(),
        "dtype": samples.dtype.name,
        "gain": record.gain.tolist(),
        "baseline": record.baseline.tolist(),
        "missing_value": record.missing_value,
        "start_s": record.start_s,
        "warnings": list(record.warnings),
        **quality_facts(record),
    }
    row |= {name: value for name, value in facts.items() if value is not None or name not in row}
    return row | {"time": None if row["time"] is None else str(row["time"])}


def record_from_row(row: Mapping[str, Any]) -> ECGRecord:
    """
    The recording of a store's row, equal to the one that was written, sample for sample.

    Args:
        row (mapping): As indexing a dataset of [`load_prepared`] gives it.

    Raises:
        `ECGReadError`: contradicting values in the row.
    """
    samples = samples_from_row(row)
    return ECGRecord(
        recording_id=row["recording_id"],
        path=row["path"] or row["recording_id"],
        samples=samples,
        gain=row["gain"],
        baseline=row["baseline"],
        units=tuple(row["units"]),
        sampling_rate=row["sampling_rate"],
        lead_names=tuple(row["lead_names"]),
        missing_value=row["missing_value"],
        age=row.get("age"),
        sex=row.get("sex"),
        diagnoses=tuple(row.get("diagnoses") or ()),
        time=None if row.get("time") is None else datetime.fromisoformat(row["time"]),
        report=row.get("report"),
        patient_id=row.get("patient_id"),
        start_s=row.get("start_s") or 0.0,
        warnings=tuple(row.get("warnings") or ()),
    )


def samples_from_row(row: Mapping[str, Any]) -> np.ndarray:
    """Return the stored samples (leads, samples) of a row. `ECGReadError` where its values contradict each other."""
    leads = len(row["lead_names"])
    own, stored = _dtypes(row["dtype"])
    samples = np.frombuffer(row["signal"], stored)
    if leads == 0 or samples.size % leads or samples.size != leads * row["num_samples"]:
        name = row["path"] or row["recording_id"]
        raise ECGReadError(f"{name}: {samples.size} samples for {leads} leads of {row['num_samples']} samples")
    samples = samples.reshape(leads, -1)
    return samples if own == stored else samples.astype(own)


@functools.cache
def _dtypes(name: str) -> tuple[np.dtype, np.dtype]:
    """Return the type of a row's samples on this machine and in the row."""
    return np.dtype(name), np.dtype(name).newbyteorder("<")


__all__ = [
    "COLUMNS",
    "LABEL_CLASSES",
    "OPTIONAL_COLUMNS",
    "SIGNAL_COLUMNS",
    "STATISTICS_COLUMNS",
    "label_columns",
    "quality_facts",
    "record_from_row",
    "row_from_record",
    "samples_from_row",
]
