"""
The recording store: one row a recording, its samples as they came.

    STORE/data/train-00000-of-00004.parquet    split `all` where nothing was split
    STORE/report.json                          what was found, kept, left out and why
    STORE/label_def.csv                        how often the labels occur, where there are labels
    STORE/README.md                            the same for readers, and for the Hub

`signal` is the array (leads, samples) of `dtype`, row after row, little-endian: a flat binary column is read several
times faster than nested lists. Nothing is preprocessed here. A changed setting of the feature extractor therefore
needs no second preparation, and the two neighbouring segments that CMSC takes are two slices of one row.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..feature_extraction_ecgfm import STANDARD_LEADS, clipped_leads, contradicting_leads, standardise
from ..records.record import ECGRecord
from ..utils.errors import ECGFMError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

DATA_FOLDER, REPORT_FILE, LABEL_DEF_FILE, CARD_FILE = "data", "report.json", "label_def.csv", "README.md"
UNSPLIT = "all"
# While a store is being made. Nobody else calls a folder this.
WORK_FOLDER = ".ecgfm-work"

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
    "nan_samples": pa.list_(pa.int64()),
    "constant": pa.list_(pa.bool_()),
    "clipped": pa.list_(pa.bool_()),
    "contradicting": pa.list_(pa.bool_()),
    "min_mv": pa.list_(pa.float32()),
    "max_mv": pa.list_(pa.float32()),
}
# What a user may ask to leave empty; the rest is needed to read a signal.
OPTIONAL_COLUMNS = ("patient_id", "path", "time", "age", "sex", "report", "diagnoses")
LABEL_TYPE = pa.int8()
# A binary cell must stay below 2 GB.
_LARGEST_SIGNAL = 1 << 30
# Rows are written in groups of about this size, which bounds the memory of writers and readers.
_GROUP_ROWS, _GROUP_BYTES = 64, 1 << 25


class StoreError(ECGFMError, ValueError):
    """A store that is missing, unfinished or not one. The message names the file."""


def store_schema(label_names: Sequence[str]) -> pa.Schema:
    """The columns of a store with these labels. `StoreError` where a label has the name of another column."""
    if taken := [name for name in label_names if name in COLUMNS]:
        raise StoreError(f"a label cannot be called {', '.join(taken)}: the store has another column of that name")
    return pa.schema([*COLUMNS.items(), *((name, LABEL_TYPE) for name in label_names)])


def label_columns(columns: Sequence[str], features: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """
    Of a store's columns, those that are labels, in order. With the dataset's `features`, columns of another type than a
    store's labels, which somebody added later, are none.
    """
    found = [name for name in columns if name not in COLUMNS]
    if features is not None:
        found = [name for name in found if getattr(features.get(name), "dtype", None) == str(LABEL_TYPE)]
    return tuple(found)


def quality_facts(record: ECGRecord) -> dict[str, list]:
    """
    What is wrong with each lead, in the recording's order of leads.

    Returns:
        `nan_samples`: how many are missing; `constant`: whether all that are there are equal (or none is there);
        `clipped`: whether peaks are cut off ([`clipped_leads`]); `contradicting`: whether a limb lead contradicts the
        others, which betrays wrong gains or a wrong order ([`contradicting_leads`]); `min_mv`, `max_mv`: None where
        nothing is there.
    """
    signal = record.signal
    missing = np.isnan(signal)
    counts = missing.sum(axis=1)
    with np.errstate(invalid="ignore"):
        low = np.where(missing, np.inf, signal).min(axis=1) if counts.any() else signal.min(axis=1)
        high = np.where(missing, -np.inf, signal).max(axis=1) if counts.any() else signal.max(axis=1)
    constant = low >= high
    clipped, contradicting = np.zeros((2, len(signal)), dtype=bool)
    whole = np.flatnonzero((counts == 0) & ~constant & np.isfinite(low) & np.isfinite(high))
    if len(whole):
        every = len(whole) == len(signal)
        found = clipped_leads(signal if every else signal[whole], low[whole], high[whole], record.sampling_rate)
        clipped[[whole[row] for row, _ in found]] = True
        contradicting[_contradicting_rows(record, signal, whole)] = True
    return {
        "nan_samples": counts.tolist(),
        "constant": constant.tolist(),
        "clipped": clipped.tolist(),
        "contradicting": contradicting.tolist(),
        "min_mv": [value if np.isfinite(value) else None for value in low.tolist()],
        "max_mv": [value if np.isfinite(value) else None for value in high.tolist()],
    }


def _contradicting_rows(record: ECGRecord, signal: np.ndarray, whole: np.ndarray) -> list[int]:
    limbs = [row for row in whole.tolist() if record.lead_names[row] in STANDARD_LEADS[:6]]
    names = tuple(record.lead_names[row] for row in limbs)
    if not {"I", "II"} < set(names):
        return []
    standardised = signal[limbs]
    _, std = standardise(standardised)
    found = contradicting_leads(standardised, std, names, names, record.sampling_rate)
    return [limbs[names.index(lead)] for lead, _ in found]


def row_from_record(record: ECGRecord, **facts: Any) -> dict[str, Any]:
    """
    A store's row.

    Args:
        record ([`ECGRecord`])
        facts: Columns that the dataset's own tables know better, and labels (1, 0 or None). `recording_id`, `source`
            and `path` (relative to the dataset) should be among them; None leaves what the record says.

    Raises:
        `StoreError`: more samples than a cell holds.
    """
    if record.samples.nbytes > _LARGEST_SIGNAL:
        raise StoreError(f"{record.path}: {record.samples.nbytes} bytes of samples, expected at most {_LARGEST_SIGNAL}")
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
        **quality_facts(record),
    }
    return row | {name: value for name, value in facts.items() if value is not None or name not in row}


def record_from_row(row: Mapping[str, Any]) -> ECGRecord:
    """
    The recording of a store's row, equal to the one that was written, sample for sample.

    Args:
        row (mapping): As indexing a dataset of [`load_prepared`] gives it.

    Raises:
        `ECGReadError`: what the row says contradicts itself.
    """
    name = row["path"] or row["recording_id"]
    leads = len(row["lead_names"])
    samples = np.frombuffer(row["signal"], dtype=np.dtype(row["dtype"]).newbyteorder("<"))
    if leads == 0 or samples.size % leads or samples.size != leads * row["num_samples"]:
        raise StoreError(f"{name}: {samples.size} samples for {leads} leads of {row['num_samples']} samples")
    return ECGRecord(
        recording_id=row["recording_id"],
        path=name,
        samples=samples.reshape(leads, -1).astype(row["dtype"], copy=False),
        gain=row["gain"],
        baseline=row["baseline"],
        units=tuple(row["units"]),
        sampling_rate=row["sampling_rate"],
        lead_names=tuple(row["lead_names"]),
        missing_value=row["missing_value"],
        age=row.get("age"),
        sex=row.get("sex"),
        diagnoses=tuple(row.get("diagnoses") or ()),
        time=row.get("time"),
        report=row.get("report"),
        patient_id=row.get("patient_id"),
    )


class StoreWriter:
    """Writes rows to one Parquet file, in memory that does not grow with their number. A context manager."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._schema = schema
        # Noisy samples of 16 bits shrink to 46% at level 1, in 0.35 ms for 10 s; level 3 takes 0.5 ms for 42%.
        # Dictionaries and statistics of signals would only cost time.
        repeated = [name for name in ("source", "sex", "dtype") if name in schema.names]
        self._writer = pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=repeated,
            write_statistics=repeated,
            write_page_checksum=True,  # noise is stored as it is, where a flipped bit would be another sample
        )
        self._rows: list[dict] = []
        self._tables: list[pa.Table] = []
        self._bytes = 0
        self.num_rows = 0

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row; columns that it lacks are null."""
        self._rows.append(dict(row))
        self._bytes += len(row["signal"])
        self.num_rows += 1
        if len(self._rows) >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._flush()

    def write_table(self, table: pa.Table) -> None:
        """Adds rows that are in Arrow already."""
        self.num_rows += table.num_rows
        self._tables.append(table.cast(self._schema))
        self._bytes += table.nbytes
        # Few rows of each table may be wanted; together they make groups of a decent size.
        if sum(map(len, self._tables)) >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        tables = self._tables
        if self._rows:
            columns = [pa.array([row.get(f.name) for row in self._rows], f.type) for f in self._schema]
            tables = [*tables, pa.table(columns, schema=self._schema)]
        if tables:
            self._writer.write_table(pa.concat_tables(tables), row_group_size=_GROUP_ROWS)
        self._rows, self._tables, self._bytes = [], [], 0

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self._flush()
        self._writer.close()


def read_report(store: str | Path) -> dict[str, Any]:
    """`report.json` of a store. `StoreError` where there is none, as while a preparation is unfinished."""
    path = Path(store) / REPORT_FILE
    if not path.is_file():
        unfinished = (Path(store) / WORK_FOLDER).is_dir()
        hint = "its preparation is unfinished: run the same `ecgfm prepare` again" if unfinished else "not a store"
        raise StoreError(f"{store} has no {REPORT_FILE}: {hint}")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{path} is damaged: {error}") from None
    if not isinstance(report, dict) or not {"format", "plan", "splits", "recordings", "left_out"} <= report.keys():
        raise StoreError(f"{path} is not the report of a store")
    return report


def store_files(store: str | Path) -> dict[str, list[Path]]:
    """
    The Parquet files of a store by split, in order, train, valid and test first.

    Raises:
        `StoreError`: no store, a split with a file missing.
    """
    splits = list(read_report(store)["splits"]["recordings"])
    found = {}
    for split in splits:
        files = sorted((Path(store) / DATA_FOLDER).glob(f"{split}-?????-of-?????.parquet"))
        expected = int(files[0].stem[-5:]) if files else 1
        if len(files) != expected:
            raise StoreError(f"{store}: split {split} has {len(files)} of {expected} Parquet files")
        found[split] = files
    return found


def load_prepared(
    store: str | Path | Sequence[str | Path],
    split: str | None = None,
    *,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
) -> "Dataset | DatasetDict | IterableDataset | IterableDatasetDict":
    """
    Open a store that `ecgfm prepare` wrote, or several one after the other.

    Args:
        store (`str` or `Path`, or a sequence of them): Of several with different labels, the result has all labels;
            where a store lacks one, it is None (unknown), never 0.
        split (`str`, *optional*): Defaults to all, as a dictionary.
        streaming (`bool`): Read the Parquet files from first to last, without a copy. Otherwise 🤗 datasets makes one,
            uncompressed and memory-mapped, in its cache, so that rows can be read in any order.
        cache_dir (`str` or `Path`, *optional*): For that copy. Defaults to 🤗 datasets' own.

    Returns:
        `Dataset` or `DatasetDict` (their `Iterable` kin if streaming) with `COLUMNS` and one column a label: 1, 0 or
        None where nobody knows. [`record_from_row`] gives the recording of a row, [`as_model_inputs`] what a model
        takes.

    Raises:
        `StoreError`: no store, an unfinished one, no such split.
    """
    if not isinstance(store, str | os.PathLike):
        return _load_several(list(store), split, streaming, cache_dir)
    from datasets import load_dataset
    from pyarrow.dataset import ParquetFragmentScanOptions

    files = store_files(store)
    if split is not None and split not in files:
        raise StoreError(f"{store} has no split {split!r}, only {', '.join(files)}")
    # 🤗 datasets takes `all` for a word of its own and will not have a split of that name.
    theirs = {name: "train" if name == UNSPLIT else name for name in files}
    data = load_dataset(
        "parquet",
        data_files={theirs[name]: [str(path) for path in files[name]] for name in files if split in (None, name)},
        split=None if split is None else theirs[split],
        streaming=streaming,
        cache_dir=None if cache_dir is None else str(cache_dir),
        # Arrow would otherwise fetch whole files ahead, which fills the memory and is slower from a disk.
        fragment_scan_options=ParquetFragmentScanOptions(pre_buffer=False) if streaming else None,
    )
    if split is not None or UNSPLIT not in files:
        return data
    return type(data)({UNSPLIT: data["train"]})


def _load_several(stores: list, split: str | None, streaming: bool, cache_dir):
    import datasets

    splits = dict.fromkeys(name for store in stores for name in store_files(store) if split in (None, name))
    if not splits:
        raise StoreError(f"no store has a split {split!r}: {', '.join(map(str, stores))}")
    features = datasets.Features.from_arrow_schema(
        store_schema(dict.fromkeys(label for store in stores for label in read_report(store)["label_counts"]))
    )
    joined = {}
    for name in splits:
        found = [
            _with_columns(load_prepared(store, name, streaming=streaming, cache_dir=cache_dir), features, streaming)
            for store in stores
            if name in store_files(store)
        ]
        joined[name] = datasets.concatenate_datasets(found)
    if split is not None:
        return joined[split]
    return (datasets.IterableDatasetDict if streaming else datasets.DatasetDict)(joined)


def _with_columns(dataset, features, streaming: bool):
    """The same with null columns for labels that it lacks."""
    missing = [name for name in features if name not in dataset.column_names]
    if not streaming:
        return dataset  # concatenating fills in nulls
    # A stream does not: it would ask the files for columns that they lack.
    return dataset.map(lambda row: row | dict.fromkeys(missing), features=features) if missing else dataset
