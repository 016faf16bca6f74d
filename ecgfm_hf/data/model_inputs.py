"""Segments and pairs for a model from the rows of a store: the feature extractor preprocesses a row when it is read."""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..fairseq.folder_reading import IDX, SEGMENT_FILES, read_segments, segment_number
from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..records.record import ECGRecord, in_millivolts
from ..records.store_rows import (
    COLUMNS,
    SIGNAL_COLUMNS,
    STATISTICS_COLUMNS,
    label_columns,
    record_from_row,
    samples_from_row,
)
from .store import DataError, default_labels

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)

_REFUSAL_COLUMNS = ("num_samples", "sampling_rate", "lead_names", "nan_samples", "constant")
_STREAM_BATCH = 16

SignalTransform = Callable[[np.ndarray, ECGRecord], np.ndarray]
Transform = Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]


def as_model_inputs(
    dataset: "Dataset | IterableDataset",
    feature_extractor: ECGFMFeatureExtractor,
    *,
    pairs: bool = False,
    labels: Sequence[str] | None = None,
    signal_transform: SignalTransform | None = None,
    transform: Transform | None = None,
) -> "ModelInputs | IterableDataset":
    """
    Segments for classification, or adjacent pairs of segments for CMSC, from one split of a store.

    Args:
        dataset (`Dataset` or `IterableDataset`): From [`load_prepared`]; possibly filtered, shuffled or sharded.
        feature_extractor ([`ECGFMFeatureExtractor`]): With the policies for missing leads, NaN and so on.
        pairs (`bool`): Each item is a pair: segments 0 and 1, 2 and 3, ... of a recording. A last segment without a
            neighbour is skipped, and so is a recording of one segment.
        labels (sequence of `str`, *optional*): Labels, in order. Defaults to all label columns (`ClassLabel` of two
            classes); none for pairs.
        signal_transform (callable, *optional*): `(signal, record) -> signal`, (leads, samples) in mV, in the
            recording's own order and rate, before preprocessing: for physical augmentations.
        transform (callable, *optional*): `(input_values, item) -> input_values` of an item, after preprocessing. `item`
            has the item's other values, such as `recording_id` and `segment`. It may work in place.

    Returns:
        For a `Dataset` a [`ModelInputs`], for an `IterableDataset` another. Items are

        - `input_values` (leads, samples) float32, or (2, leads, samples) for pairs
        - `labels` (L,) float32 with NaN where unknown; only where there are labels
        - `recording_id`, `patient_id` (None where unknown)
        - `segment`: its number in the recording; of a pair, the first one's

        Recordings that the extractor refuses (too short, NaN, missing leads, by its policies) are skipped. A
        warning gives their number by reason, and so does `ModelInputs.skipped`.

    Raises:
        `DataError`: missing columns, a name that is not a label, or, without `labels`, columns of numbers that may be
            labels.
    """
    columns = dataset.column_names
    if columns is None or (missing := [n for n in (*SIGNAL_COLUMNS, *_REFUSAL_COLUMNS) if n not in columns]):
        what = "no columns" if columns is None else f"no column {', '.join(missing[:3])}"
        raise DataError(f"the dataset has {what}: give one split of a store, as load_prepared(store, split=...) does")
    found = label_columns(columns, dataset.features)
    wanted = (() if pairs else default_labels(dataset)) if labels is None else tuple(labels)
    if unknown := [name for name in wanted if name not in columns or name in COLUMNS]:
        raise DataError(f"the dataset has no label {', '.join(unknown)} (found: {', '.join(found) or 'none'})")
    reader = _Reader(feature_extractor, wanted, pairs, signal_transform, transform)
    if not hasattr(dataset, "__len__"):
        return reader.stream(dataset)
    return ModelInputs(dataset, reader)


class ModelInputs:
    """
    Items by index, for torch's `DataLoader` (with [`collate_items`]) and the `Trainer`; [`as_model_inputs`] makes it.

    Items of one recording follow one another. A batch reads each of its recordings once; labels are read at the start
    and take 4 bytes each. By the statistics of the store, an item needs no other samples than its own. Where these are
    missing, `shuffle_recordings` reads faster: it keeps the items of a recording together.

    Attributes:
        label_names (`tuple[str, ...]`)
        skipped (`dict[str, int]`): Recordings without an item, by reason.
        recordings (`np.ndarray` (items,) int64): The row of the dataset that each item is from.
    """

    def __init__(self, dataset: "Dataset", reader: "_Reader"):
        self.label_names = reader.label_names
        self._reader = reader
        counts, self.skipped = _item_counts(dataset, reader)
        self.recordings = np.repeat(np.arange(len(counts)), counts)
        self._first_item = np.concatenate([[0], np.cumsum(counts)])
        # A batch of rows takes time for each of its columns, and there may be more labels than other columns.
        self._labels = _read_labels(dataset, reader.label_names)
        self._rows = dataset.select_columns([*SIGNAL_COLUMNS, *_optional_columns(dataset)]).with_format("arrow")
        _warn_skipped(self.skipped, len(counts))

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, item: int) -> dict[str, Any]:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int]) -> list[dict[str, Any]]:
        chosen = np.asarray(items, dtype=np.int64)
        if len(items) and not -len(self) <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"index {chosen.max()} is out of range: the dataset has {len(self)} segments")
        chosen = chosen % max(len(self), 1)
        rows = self.recordings[chosen]
        indices = chosen - self._first_item[rows]
        wanted: dict[int, list[int]] = {}
        for number, recording in enumerate(rows.tolist()):
            wanted.setdefault(recording, []).append(number)
        answers: list[dict[str, Any]] = [{}] * len(items)
        recordings = list(wanted)
        found = zip(_as_rows(self._rows[recordings]), self._labels[recordings], wanted.values(), strict=True)
        for row, labels, numbers in found:
            made = self._reader.items(row, labels, indices[numbers].tolist())
            for number, item in zip(numbers, made, strict=True):
                answers[number] = item
        return answers

    def shuffle_recordings(self, generator: np.random.Generator) -> np.ndarray:
        """Return all items (items,) int64 in random order of recordings, with the items of a recording together."""
        if not len(self):
            return np.zeros(0, dtype=np.int64)
        order = generator.permutation(np.flatnonzero(np.diff(self._first_item)))
        return np.concatenate([np.arange(self._first_item[row], self._first_item[row + 1]) for row in order])


def _as_rows(table: pa.Table) -> list[dict[str, Any]]:
    """
    Return the rows of a table, as `to_pylist` does but several times faster: signals are views of the table's memory,
    and what there is of each lead is an array.
    """
    small = table.drop_columns(["signal"]).combine_chunks()
    columns = {name: _as_list(small[name]) for name in small.column_names} | {"signal": _views(table["signal"])}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _as_list(column: pa.ChunkedArray) -> list:
    if not pa.types.is_list(column.type) or column.null_count:
        return column.to_pylist()
    lists = column.combine_chunks()
    ends = lists.offsets.to_numpy() - lists.offsets[0].as_py()
    flat = lists.flatten()
    if pa.types.is_string(flat.type) and not flat.null_count:  # names, of which there are few
        flat = flat.dictionary_encode()
        values = flat.dictionary.to_numpy(zero_copy_only=False)[flat.indices.to_numpy()]
    else:
        values = flat.to_numpy(zero_copy_only=False)  # NaN for null
    return [values[start:end] for start, end in itertools.pairwise(ends.tolist())]


def _views(signals: pa.ChunkedArray) -> list[pa.Buffer | bytes | None]:
    """Return binary cells without the copy that a scalar of Arrow is."""
    found: list[pa.Buffer | bytes | None] = []
    for chunk in signals.chunks:
        _, offsets, data = chunk.buffers()
        if chunk.null_count:  # of segments in files
            found += chunk.to_pylist()
            continue
        ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
        found += [data.slice(start, end - start) for start, end in itertools.pairwise(ends)]
    return found


def collate_items(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """
    Return a batch for a model: `input_values`, `labels` and `segment` as stacked torch tensors, ids as lists.

    torch's own collate function refuses None, the id of an unknown patient.
    """
    import torch

    batch: dict[str, Any] = {name: [item[name] for item in items] for name in items[0]}
    for name, values in batch.items():
        if name in ("input_values", "labels"):
            batch[name] = torch.from_numpy(np.stack(values))
        elif name == "segment":
            batch[name] = torch.tensor(values)
    return batch


class _Reader:
    """Turns rows into items."""

    def __init__(
        self,
        feature_extractor: ECGFMFeatureExtractor,
        label_names: tuple[str, ...],
        pairs: bool,
        signal_transform: SignalTransform | None,
        transform: Transform | None,
    ):
        self.feature_extractor, self.label_names, self.pairs = feature_extractor, label_names, pairs
        self._signal_transform, self._transform = signal_transform, transform
        self._reported: set[str] = set()  # reasons for which streams skip recordings

    def num_items(self, num_samples: int, sampling_rate: float) -> int:
        segments = self.feature_extractor.num_segments(num_samples, sampling_rate)
        return segments // 2 if self.pairs else segments

    def items(
        self, row: Mapping[str, Any], labels: np.ndarray, indices: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """Return the items of a row with these labels (L,): all, or those with these indices."""
        width = 2 if self.pairs else 1
        known = {"recording_id": row["recording_id"], "patient_id": row["patient_id"]}
        if self.label_names:
            known["labels"] = labels
        items = []
        for values, segment in self._values(row, width, indices):
            item = {"input_values": values, "segment": segment, **known}
            if self._transform is not None:
                # Items do not overlap, so a transform may work in place.
                item["input_values"] = self._transform(values, item)
            items.append(item)
        return items

    def _values(
        self, row: Mapping[str, Any], width: int, indices: Sequence[int] | None
    ) -> Iterator[tuple[np.ndarray, int]]:
        """Yield the input values of a row's items, and the number of the first segment of each."""
        files = row.get(SEGMENT_FILES)
        if files is not None and len(files):
            for index in range(len(files) // width) if indices is None else indices:
                own = files[width * index : width * (index + 1)]
                values = read_segments(own, row, self.feature_extractor)
                yield (values if self.pairs else values[0]), segment_number(own[0])
            return
        if (found := self._by_statistics(row, width, indices)) is not None:
            yield from found
            return
        record = record_from_row(row)
        signal = record.signal
        if self._signal_transform is not None:
            signal = self._signal_transform(signal, record)
        # The store's report has warned already; its columns have the quality of each lead.
        segments = self.feature_extractor.prepare_recording(
            signal, record.sampling_rate, record.lead_names, "mV", name=record.path, inspect=False
        ).segments
        for index in range(len(segments) // width) if indices is None else indices:
            yield (segments[2 * index : 2 * index + 2] if self.pairs else segments[index]), width * index

    def _by_statistics(
        self, row: Mapping[str, Any], width: int, indices: Sequence[int] | None
    ) -> list[tuple[np.ndarray, int]] | None:
        """Return what `_values` yields, made of these items' samples only; None where the whole recording is needed."""
        extractor, mean, std = self.feature_extractor, row.get("mean_mv"), row.get("std_mv")
        is_short = row["num_samples"] < extractor.segment_samples
        if self._signal_transform is not None or mean is None or std is None or is_short:
            return None
        samples, gain, baseline = samples_from_row(row), np.asarray(row["gain"]), np.asarray(row["baseline"])
        mean, std = np.asarray(mean, float), np.asarray(std, float)

        def read(start: int, stop: int) -> np.ndarray:
            return in_millivolts(samples[:, start:stop], gain, baseline, row["units"], row["missing_value"])

        if indices is None:
            indices = range(self.num_items(row["num_samples"], row["sampling_rate"]))
        is_one_run = len(indices) > 0 and max(indices) - min(indices) < len(indices)
        found = []
        for run in [indices] if is_one_run else [[index] for index in indices]:
            wanted = range(width * min(run), width * (max(run) + 1))
            segments = extractor.segments_by_statistics(
                read, wanted, row["sampling_rate"], row["lead_names"], mean, std
            )
            if segments is None:
                return None
            items = segments.reshape(-1, 2, *segments.shape[1:]) if self.pairs else segments
            found += [(items[index - min(run)], width * index) for index in run]
        return found

    def stream(self, dataset: "IterableDataset") -> "IterableDataset":
        dataset = dataset.with_format(None)
        own = (*SIGNAL_COLUMNS, *_REFUSAL_COLUMNS, *self.label_names, *_optional_columns(dataset))
        columns = list(dict.fromkeys(own))
        selected = dataset.select_columns(columns)
        return selected.map(self._expand, batched=True, batch_size=_STREAM_BATCH, remove_columns=columns)

    def _expand(self, batch: Mapping[str, list]) -> dict[str, list]:
        """Return the items of a batch of rows, as columns."""
        names = ["input_values", "segment", "recording_id", "patient_id", *(["labels"] if self.label_names else [])]
        out: dict[str, list] = {name: [] for name in names}
        labels = _label_values([batch[name] for name in self.label_names], len(batch["recording_id"]))
        columns = {name: column for name, column in batch.items() if name not in self.label_names}
        for number in range(len(labels)):
            row = {name: column[number] for name, column in columns.items()}
            known = [row[name] for name in _REFUSAL_COLUMNS]
            reason = None if row.get(SEGMENT_FILES) else self.feature_extractor.refusal(*known)
            if reason is not None:
                if reason not in self._reported:
                    self._reported.add(reason)
                    logger.warning("recordings are skipped while streaming: %s", reason)
                continue
            for item in self.items(row, labels[number]):
                for name, column in out.items():
                    column.append(item[name])
        return out


def _optional_columns(dataset: "Dataset | IterableDataset") -> tuple[str, ...]:
    """Return the columns that not every dataset has: statistics, and of recordings that are segments in files."""
    return tuple(name for name in (*STATISTICS_COLUMNS, SEGMENT_FILES, IDX) if name in (dataset.column_names or ()))


def _read_labels(dataset: "Dataset", names: Sequence[str]) -> np.ndarray:
    """Return the labels of all rows (rows, L) float32, NaN where unknown."""
    labels = np.empty((len(dataset), len(names)), dtype=np.float32)
    start = 0
    for table in dataset.select_columns(list(names)).with_format("arrow").iter(batch_size=10_000) if names else ():
        labels[start : start + len(table)] = _label_values([table[name].to_numpy() for name in names], len(table))
        start += len(table)
    return labels


def _label_values(columns: Sequence[Sequence[float | None] | np.ndarray], rows: int) -> np.ndarray:
    return np.array(columns, dtype=np.float32).reshape(len(columns), rows).T  # None becomes NaN


def _item_counts(dataset: "Dataset", reader: _Reader) -> tuple[np.ndarray, dict[str, int]]:
    """Return the number of items of each row, 0 where the extractor refuses it, and the refused rows by reason."""
    extractor = reader.feature_extractor
    counts, refused = np.zeros(len(dataset), dtype=np.int64), Counter[str]()
    optional = [name for name in _optional_columns(dataset) if name == SEGMENT_FILES]
    known = dataset.select_columns([*_REFUSAL_COLUMNS, *optional]).with_format("arrow")
    start = 0
    for table in known.iter(batch_size=10_000):
        files = np.zeros(table.num_rows, dtype=np.int64)
        if SEGMENT_FILES in table.column_names:
            files = pc.fill_null(pc.list_value_length(table[SEGMENT_FILES]), 0).to_numpy()
            counts[start : start + table.num_rows] = files // (2 if reader.pairs else 1)
            single = int(((files > 0) & (counts[start : start + table.num_rows] == 0)).sum())
            refused.update({"only one segment long": single} if single else {})
        others = np.flatnonzero(files == 0)
        for row, columns in zip(others.tolist(), table.take(others).to_pylist(), strict=True):
            reason = extractor.refusal(*(columns[name] for name in _REFUSAL_COLUMNS))
            if reason is None:
                counts[start + row] = reader.num_items(columns["num_samples"], columns["sampling_rate"])
                reason = "only one segment long" if counts[start + row] == 0 else None
            if reason is not None:
                refused[reason] += 1
        start += table.num_rows
    return counts, dict(refused.most_common())


def _warn_skipped(skipped: Mapping[str, int], total: int) -> None:
    if skipped:
        reasons = "; ".join(f"{count} {reason}" for reason, count in skipped.items())
        logger.warning("%d of %d recordings are skipped: %s", sum(skipped.values()), total, reasons)
