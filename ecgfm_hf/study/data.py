"""What a study reads: the recordings of a table, store or folder, and what arms learn from, computed once."""

import contextlib
import hashlib
import itertools
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.leakage import LeakError, seen
from ..data.model_inputs import as_model_inputs
from ..data.opening import is_processed_folder, load_prepared
from ..data.preparation import PrepareSettings, prepare
from ..data.sources.table import RecordingTable
from ..data.splits import UNSPLIT
from ..data.store import REPORT_FILE, default_labels, read_report
from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..inference.predictions import column_values
from ..model_folder import load_model
from ..modeling_ecgfm import ECGFMModel
from ..utils.files import atomic_path
from ..utils.integrity import CHECKSUMS_FILE, add_checksum, changed_files, write_checksums
from ..utils.precision import evaluation_mode
from .features import feature_table
from .folds import StudyError, StudyTable

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

STORE_FOLDER = "store"
_BATCH = 16


@dataclass(frozen=True)
class StudyData:
    """
    The recordings of a study.

    Args:
        dataset (`Dataset`): Their rows.
        table ([`StudyTable`]): Ids, patients and labels, in the order of rows.
        splits (`list[str | None]`): The split of each in the store; None without splits.
        has_signals (`bool`): Whether rows have the recordings as they are, not standardised segments.
        excluded (`dict[str, int]`): Recordings that are left out, by reason.
        synthetic (`bool`): Whether some are synthetic.
        digest (`str`): Of recordings, patients, labels and signals.
        notes (`tuple[str, ...]`): What was assumed when they were prepared. It may hold small counts: not for a report.
    """

    dataset: "Dataset"
    table: StudyTable
    splits: list[str | None]
    has_signals: bool
    excluded: dict[str, int] = field(default_factory=dict)
    synthetic: bool = False
    digest: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    def with_labels(self, columns: Sequence[int]) -> "StudyData":
        """Return the data with these labels, without recordings of which none is known."""
        table = self.table.with_labels(columns)
        known = np.flatnonzero(~np.isnan(table.targets).all(axis=1))
        excluded = dict(self.excluded)
        if len(known) < len(table):
            reason = "without a known label"
            excluded[reason] = excluded.get(reason, 0) + len(table) - len(known)
        return replace(
            self,
            dataset=self.dataset if len(known) == len(table) else self.dataset.select(known),
            table=StudyTable(
                tuple(table.ids[row] for row in known),
                tuple(table.patients[row] for row in known),
                table.targets[known],
                table.label_names,
            ),
            splits=[self.splits[row] for row in known],
            excluded=excluded,
            digest=hashlib.sha256(f"{self.digest} {list(table.label_names)}".encode()).hexdigest(),
        )


def open_data(
    path: str | os.PathLike,
    store: Path,
    extractor: ECGFMFeatureExtractor,
    *,
    root: str | None = None,
    labels: Sequence[str] | None = None,
    targets: str | None = None,
    table: Mapping[str, Any] | None = None,
    num_proc: int = 1,
    progress: bool = False,
) -> StudyData:
    """
    Open the recordings of a study.

    Args:
        path: A table of recordings (CSV, TSV, Excel, Parquet), a store, or a processed folder of fairseq-signals.
        store (`Path`): Where a table's recordings are prepared.
        extractor ([`ECGFMFeatureExtractor`]): Recordings that it refuses are excluded.
        root: Folder of a table's recordings (default: the table's), or of a processed folder's segments.
        labels: Columns, in this order. Defaults to all labels.
        targets: The labels of a processed folder: its `y.npy`.
        table: Further arguments of [`RecordingTable`].
        num_proc, progress: Of the preparation.

    Raises:
        [`StudyError`]: nothing of these; labels that are no 0 and 1. `DataError`: as of the store or the source.
    """
    given, report = Path(path), dict[str, Any]()
    is_table = given.is_file()
    if table and not is_table:
        raise StudyError(f"{given} is no table: {', '.join(table)} are for tables of recordings")
    if is_table:
        source = RecordingTable(root or given.parent, given, labels=labels, **(table or {}))
        report = prepare(source, store, PrepareSettings(), num_proc=num_proc, progress=progress) or {}
        opened = load_prepared(store)
    elif is_processed_folder(given):
        opened = load_prepared(given, root=root, labels=targets)
    elif (given / REPORT_FILE).is_file():
        report = read_report(given)
        opened = load_prepared(given)
    else:
        raise StudyError(
            f"{given} is no table of recordings (CSV, TSV, Excel, Parquet), no store that `ecgfm prepare` wrote and no "
            "processed folder of fairseq-signals. For a folder of recordings write a table: a row for each, with its "
            "path, patient_id and labels"
        )
    excluded = Counter[str](report.get("excluded_by_reason", {}))
    data = _as_study_data(opened, extractor, labels, excluded, has_signals=not is_processed_folder(given))
    return replace(data, notes=tuple(report.get("notes", ())))


def _as_study_data(
    opened: "DatasetDict",
    extractor: ECGFMFeatureExtractor,
    labels: Sequence[str] | None,
    excluded: Counter[str],
    has_signals: bool,
) -> StudyData:
    import datasets

    parts = dict(opened)
    dataset = datasets.concatenate_datasets(list(parts.values()))
    names = tuple(default_labels(dataset) if labels is None else labels)
    if unknown := [name for name in names if name not in dataset.column_names]:
        raise StudyError(f"labels: the data have no label {', '.join(unknown)}")
    if not names:
        raise StudyError("the data have no labels: a study compares how well labels are found")
    splits = np.repeat(["" if name == UNSPLIT else name for name in parts], [len(part) for part in parts.values()])
    inputs = as_model_inputs(dataset, extractor, labels=())
    excluded.update(inputs.skipped)
    usable = np.unique(inputs.recordings)
    columns = ["recording_id", "patient_id", "source", *names]
    known = dataset.select_columns([name for name in dict.fromkeys(columns) if name in dataset.column_names])
    known = known.with_format("arrow")[:].take(usable)
    try:
        values = np.stack([column_values(known, name) for name in names], axis=1)
    except ValueError as error:
        raise StudyError(str(error)) from None
    for name, column in zip(names, values.T, strict=True):
        if (found := np.unique(column[~np.isnan(column)])).size and not np.isin(found, (0, 1)).all():
            raise StudyError(
                f"label {name} must be 0, 1 or unknown, found: {', '.join(f'{value:g}' for value in found[:5])}. Make "
                f"a label of a number by a limit, such as binarise={name}<=40"
            )
    table = StudyTable(tuple(known["recording_id"].to_pylist()), tuple(known["patient_id"].to_pylist()), values, names)
    sources = known["source"].to_pylist() if "source" in known.column_names else []
    content = (table.ids, table.patients, names, [part._fingerprint for part in parts.values()], extractor.to_dict())
    digest = hashlib.sha256(repr(content).encode() + values.tobytes()).hexdigest()
    data = StudyData(
        dataset.select(usable),
        table,
        [split or None for split in splits[usable].tolist()],
        has_signals,
        dict(excluded),
        any("synthetic" in str(name).lower() for name in set(sources)),
        digest,
    )
    return data.with_labels(range(len(names)))


def check_unseen(model_dir: str | os.PathLike, table: StudyTable, allow_seen: bool) -> list[str]:
    """
    Return what a reader must be warned of: what the encoder has seen of the recordings before.

    Raises:
        [`LeakError`]: it has seen some, without `allow_seen`.
    """
    found = seen(Path(model_dir), table.ids, table.patients)
    if found is None:
        return ["It is unknown which recordings the encoder was trained on: figures may be too good."]
    if not found:
        return []
    if not allow_seen:
        raise LeakError(
            f"the encoder has seen {found} of this study, so its arms would look too good. Give an encoder that was "
            "trained on other patients, or accept it with allow_seen=True; the report then has a warning"
        )
    return [f"The encoder has seen {found} of this study: figures of its arms are too good."]


class Segments:
    """
    Preprocessed segments of recordings, or the encoder's frames of them, on disk.

    Args:
        values (`np.ndarray` (segments, ...)): Of all recordings, memory-mapped.
        segment_rows (`np.ndarray` (segments,) int64): The recording of each, rising.
        rows (`np.ndarray`): The recordings to have, renumbered from 0 in this order.

    Attributes:
        recordings (`np.ndarray` (chosen segments,) int64): The number of each segment's recording.
    """

    def __init__(self, values: np.ndarray, segment_rows: np.ndarray, rows: np.ndarray):
        self._values, self._segment_rows, self._rows = values, segment_rows, np.asarray(rows, dtype=np.int64)
        first, last = (np.searchsorted(segment_rows, self._rows, side=side) for side in ("left", "right"))
        self._chosen = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)] or [first])
        self.recordings = np.repeat(np.arange(len(self._rows)), last - first)
        self._first = np.concatenate([[0], np.cumsum(last - first)])

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, rows: np.ndarray) -> "Segments":
        """Return the segments of some of these recordings."""
        return Segments(self._values, self._segment_rows, self._rows[rows])

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """Return segments as [`ModelInputs`] does, for fine-tuning."""
        return [{"input_values": np.array(self._values[self._chosen[number]])} for number in numbers]

    @property
    def num_recordings(self) -> int:
        """Number of recordings."""
        return len(self._rows)

    def of_recordings(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the values of some recordings' segments, and the index in `numbers` of each one's recording."""
        counts = self._first[numbers + 1] - self._first[numbers]
        chosen = np.concatenate([np.arange(self._first[n], self._first[n + 1]) for n in numbers])
        return self._values[self._chosen[chosen]], np.repeat(np.arange(len(numbers)), counts)


class StudyInputs:
    """
    What arms learn from, by row of the data: computed once, kept on disk, removed at the end. There are no labels here.

    Args:
        data ([`StudyData`])
        model_dir: The encoder's folder.
        extractor ([`ECGFMFeatureExtractor`])
        folder (`Path`): For the files; one of this data and encoder.
        device (`torch.device`), num_proc (`int`)
    """

    def __init__(
        self,
        data: StudyData,
        model_dir: str | os.PathLike,
        extractor: ECGFMFeatureExtractor,
        folder: Path,
        *,
        device: torch.device,
        num_proc: int = 1,
    ):
        self.data, self.model_dir, self.extractor, self.folder = data, model_dir, extractor, folder
        self.device, self._num_proc = device, num_proc

    def load(self, name: str) -> "np.ndarray | Segments":
        """
        Return what [`compute`] has computed, of all recordings, by row.

        `features` (NaN where missing) and `embeddings` (the mean of a recording's segments) are float64 arrays,
        `segments` (leads, samples) and `frames` (frames, hidden_size) are [`Segments`].
        """
        if name in ("features", "embeddings"):
            return np.asarray(self._stored(name))
        return Segments(self._stored(name, mapped=True), self._stored("segment_rows"), np.arange(len(self.data)))

    def has(self, name: str) -> bool:
        """Return whether `features`, `segments`, `embeddings` or `frames` are computed."""
        return (self.folder / f"{name}.npy").is_file()

    def compute(self, name: str, advance: Callable[[int], object] = lambda _: None) -> None:
        """Compute `features`, `segments`, `embeddings` or `frames`, unless they are there."""
        if self.has(name):
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it has recordings
        if name == "features":
            found = feature_table(self.data.dataset, num_proc=self._num_proc, advance=advance)
            self._store("features", found)
        elif name == "segments":
            self._compute_segments(advance)
        else:
            self.compute("segments")
            self._encode(name == "frames", advance)

    def check(self) -> None:
        """Remove files of an earlier run if one has changed since it was written: they are computed again."""
        names = [path.name for path in self.folder.glob("*.npy")]
        try:
            changed = changed_files(self.folder, names) if names else []
        except (FileNotFoundError, ValueError) as error:
            changed = [str(error)]
        if changed:
            logger.warning("%s is damaged (%s): its files are computed again", self.folder, "; ".join(changed))
            self.remove()

    def remove(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _stored(self, name: str, mapped: bool = False) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r" if mapped else None, allow_pickle=False)

    def _store(self, name: str, values: np.ndarray) -> None:
        with self._writing(name) as scratch, scratch.open("wb") as file:
            np.save(file, values)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        """Yield a path to write `NAME.npy` to, whole or not at all, with its digest."""
        with atomic_path(self.folder / f"{name}.npy") as scratch:
            yield scratch
        if not (self.folder / CHECKSUMS_FILE).is_file():
            write_checksums(self.folder, (), "xxh3_128")
        add_checksum(self.folder, f"{name}.npy")

    def _compute_segments(self, advance: Callable[[int], object]) -> None:
        inputs = as_model_inputs(self.data.dataset, self.extractor, labels=())
        self._store("segment_rows", inputs.recordings)
        first = inputs[0]["input_values"]
        with self._writing("segments") as scratch:
            shape = (len(inputs), *first.shape)
            values = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.float32, shape=shape)
            for start in range(0, len(inputs), _BATCH):
                items = inputs.__getitems__(range(start, min(start + _BATCH, len(inputs))))
                for number, item in enumerate(items):
                    if item["input_values"].shape != first.shape:
                        raise StudyError(
                            f"recording {item['recording_id']} is shorter than a segment of "
                            f"{first.shape[-1]} samples: leave it out"
                        )
                    values[start + number] = item["input_values"]
                advance(len({item["recording_id"] for item in items}))
            values.flush()

    def _encode(self, frames: bool, advance: Callable[[int], object]) -> None:
        model = load_model(self.model_dir, ECGFMModel)
        torch.nn.Module.to(model, self.device)
        values, rows = self._stored("segments", mapped=True), self._stored("segment_rows")
        means = np.zeros((len(values), model.config.hidden_size))
        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(self._writing("frames")) if frames else None
            kept = None
            for start in range(0, len(values), _BATCH):
                own = slice(start, min(start + _BATCH, len(values)))
                with evaluation_mode(model), torch.no_grad():
                    output = model(torch.from_numpy(np.array(values[own])).to(self.device), return_dict=True)
                means[own] = output.pooler_output.float().cpu().numpy()
                if scratch is not None:
                    # In float16, which rounds by 0.05% at most.
                    found = output.last_hidden_state.half().cpu().numpy()
                    if kept is None:
                        shape = (len(values), *found.shape[1:])
                        kept = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.float16, shape=shape)
                    kept[own] = found
                advance(len(np.unique(rows[own])))
            if kept is not None:
                kept.flush()
            first = np.searchsorted(rows, np.arange(len(self.data) + 1))
            # Before the frames, which come from the same pass: a kill leaves none without these.
            self._store("embeddings", np.stack([means[a:b].mean(axis=0) for a, b in itertools.pairwise(first)]))


__all__ = ["STORE_FOLDER", "Segments", "StudyData", "StudyInputs", "check_unseen", "open_data"]
