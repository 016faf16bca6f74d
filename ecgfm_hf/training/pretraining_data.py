"""Pairs of adjacent segments in batches: the order of pairs depends only on seed and epoch."""

import hashlib
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset as HFDataset
from torch.utils.data import DataLoader, Dataset

from ..data.model_inputs import ModelInputs, as_model_inputs
from ..data.opening import data_digest, is_processed_folder, load_prepared, split_names
from ..data.store import DataError
from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..utils.text import without_secrets
from .data_summary import summarize_split
from .settings import PretrainSettings, SettingsError, derived_seed


@dataclass
class PairBatch:
    """
    A micro-batch.

    Args:
        input_values (`torch.FloatTensor` (2 pairs, leads, samples)): First and second segments alternate.
        ids (`torch.LongTensor` (2 pairs,)): Equal where segments are positives of each other in CMSC.
        segment_ids (`torch.LongTensor` (2 pairs,)): 0 and 1 alternate.
        recording_ids (`list[str]`): One a pair; for local files only.
    """

    input_values: torch.Tensor
    ids: torch.Tensor
    segment_ids: torch.Tensor
    recording_ids: list[str]


class PairDataset(Dataset):
    """
    Pairs by index, augmented.

    Args:
        pairs: Items as [`as_model_inputs`] (`pairs=True`) gives them.
        transform: `(input_values, item) -> input_values`, of an item's (2, leads, samples); what it draws must depend
            on seed, epoch and item only, as in [`build_augmentations`].
        signal_transform: Acts in the dataset; here it only gets the epoch.
        fingerprint (`str`): Of the recordings, in their order, and their content; empty where unknown.
        summary (`dict`, *optional*): From [`summarize_split`]; None where nothing is known of the recordings.
    """

    def __init__(
        self,
        pairs: Any,
        transform: Callable | None = None,
        signal_transform: Callable | None = None,
        fingerprint: str = "",
        summary: dict[str, Any] | None = None,
    ):
        self.pairs, self._transform, self._signal_transform = pairs, transform, signal_transform
        self.fingerprint, self.summary = fingerprint, summary

    def set_epoch(self, epoch: int) -> None:
        """Give the augmentations the epoch that begins; before workers are started, which inherit it."""
        for transform in (self._transform, self._signal_transform):
            if transform is not None and hasattr(transform, "set_epoch"):
                transform.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        many = getattr(self.pairs, "__getitems__", None)
        numbers = np.asarray(numbers).tolist()
        items = [self.pairs[number] for number in numbers] if many is None else many(numbers)
        if self._transform is None:
            return items
        return [{**item, "input_values": self._transform(item["input_values"], item)} for item in items]

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.__getitems__([number])[0]


def open_pairs(
    settings: PretrainSettings, feature_extractor: ECGFMFeatureExtractor
) -> tuple[PairDataset, PairDataset | None]:
    """
    Open the training and validation pairs of a store or a processed folder of fairseq-signals, or of several (their
    splits of one name are concatenated). Only training is augmented.

    Raises:
        [`SettingsError`]: `data` is neither, misses a split, or has no pair; augmentations that it does not allow.
    """
    if settings.data is None:
        raise SettingsError("data is required: a store (`ecgfm prepare`) or a processed folder of fairseq-signals")
    folders = [settings.data] if isinstance(settings.data, str) else list(settings.data)
    if not folders:
        raise SettingsError("data is an empty list, expected a store or several")
    processed = [folder for folder in folders if is_processed_folder(folder)]
    named = without_secrets(", ".join(map(str, folders)))
    signal_transform, transform = None, None
    if settings.augmentations:
        from .augmentations import build_augmentations

        try:
            signal_transform, transform = build_augmentations(
                settings.augmentations, derived_seed(settings.seed, "augment")
            )
        except (TypeError, ValueError) as error:
            raise SettingsError(f"augmentations: {error}") from None
    if signal_transform is not None and processed:
        raise SettingsError(
            f"{processed[0]} holds standardised segments: augmentations in mV need a store (`ecgfm prepare`); "
            "random_lead_masking works with both"
        )
    try:
        for store in folders:
            splits = split_names(store)
            if absent := [s for s in (settings.train_split, settings.valid_split) if s and s not in splits]:
                raise SettingsError(
                    f"{without_secrets(str(store))} has no split {', '.join(absent)}, only "
                    f"{', '.join(splits)}: make splits with "
                    "`ecgfm split`; or, without validation, set train_split=NAME valid_split=null"
                )

        def open_split(
            split: str, transform: Callable | None = None, signal_transform: Callable | None = None
        ) -> PairDataset:
            rows = load_prepared(folders, split, root=settings.root, pairs=True)
            pairs = as_model_inputs(rows, feature_extractor, pairs=True, signal_transform=signal_transform)
            summary = summarize_split(rows, np.unique(pairs.recordings))
            content = data_digest(folders, [split], pairs=True)
            return PairDataset(pairs, transform, signal_transform, _fingerprint(rows, pairs, content), summary)

        train = open_split(settings.train_split, transform, signal_transform)
        valid = None if settings.valid_split is None else open_split(settings.valid_split)
    except (DataError, FileNotFoundError) as error:
        raise SettingsError(f"data: {error}") from None
    for split, found in ((settings.train_split, train), (settings.valid_split, valid)):
        if found is not None and len(found) == 0:
            raise SettingsError(
                f"data: {named}, split {split}: no recording has two adjacent segments of "
                f"{feature_extractor.segment_seconds:g} s"
            )
    return train, valid


def _fingerprint(rows: HFDataset, pairs: ModelInputs, content: str) -> str:
    """Return a digest of the recording of each pair and of the store's content."""
    names = rows.select_columns(["recording_id"]).with_format("arrow")[:]["recording_id"]
    if pc.count_distinct(names).as_py() < len(names):
        # Pairs of one id are each other's positives.
        counts = pc.value_counts(names)
        twice = counts.field("values")[int(np.argmax(counts.field("counts")))]
        raise DataError(f"recording {twice} is in more than one store: recording ids must be unique over all stores")
    digest = hashlib.blake2b(content.encode(), digest_size=16)
    for start in range(0, len(names), 10_000):
        digest.update(repr(names.slice(start, 10_000).to_pylist()).encode())
    digest.update(pairs.recordings.tobytes())
    return digest.hexdigest()


def epoch_order(num_pairs: int, seed: int, epoch: int) -> np.ndarray:
    """Return all pairs (num_pairs,) int64 in an order that depends only on (seed, epoch)."""
    return np.random.default_rng(derived_seed(seed, "order", epoch)).permutation(num_pairs)


def train_batches(
    dataset: PairDataset,
    settings: PretrainSettings,
    epoch: int,
    first_update: int,
    process: int,
    processes: int,
) -> Iterator[PairBatch]:
    """
    Iterate over this process's micro-batches of an epoch, from an update on.

    Micro-batch `a` of process `r` is number `a * processes + r` of its update, so that as many micro-batches on other
    numbers of processes hold the same pairs. Pairs at the end of an epoch that do not fill an update are skipped; they
    are others in every epoch.
    """
    order = epoch_order(len(dataset), settings.seed, epoch)
    a_update = settings.pairs * settings.gradient_accumulation_steps * processes
    numbers = [
        order[begin : begin + settings.pairs]
        for update in range(first_update, len(order) // a_update)
        for micro in range(settings.gradient_accumulation_steps)
        for begin in [update * a_update + (micro * processes + process) * settings.pairs]
    ]
    dataset.set_epoch(epoch)
    return iter(_loader(dataset, numbers, settings))


def valid_batches(
    dataset: PairDataset, settings: PretrainSettings, process: int, processes: int
) -> Iterator[tuple[int, bool, PairBatch]]:
    """
    Iterate over `(number, counts, batch)` of this process's share of the validation batches.

    The batches are the same for any number of processes. All processes get equally many: where one has too few, batches
    that do not count are repeated.
    """
    numbers = [list(range(b, min(b + settings.pairs, len(dataset)))) for b in range(0, len(dataset), settings.pairs)]
    rounds = -(-len(numbers) // processes)
    mine = [(turn * processes + process) for turn in range(rounds)]
    loader = _loader(dataset, [numbers[number % len(numbers)] for number in mine], settings)
    for number, batch in zip(mine, loader, strict=True):
        yield number, number < len(numbers), batch


def _loader(
    dataset: PairDataset, numbers: Sequence[Sequence[int] | np.ndarray], settings: PretrainSettings
) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=numbers,  # type: ignore[arg-type]  # torch declares lists; a million numbers are 40 MB of objects
        collate_fn=_Collate(settings.cmsc_positives),
        num_workers=settings.dataloader_num_workers,
        worker_init_fn=_ignore_signals,
        pin_memory=torch.cuda.is_available() and not settings.use_cpu,
    )


def _ignore_signals(worker: int) -> None:
    """
    Let a worker ignore Ctrl-C and SIGTERM, which terminals and batch systems send to it as well: it is needed for the
    update that is being finished. It ends with the process that started it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _Collate:
    """Make a [`PairBatch`] of items."""

    def __init__(self, positives: str):
        self._positives = positives

    def __call__(self, items: list[dict[str, Any]]) -> PairBatch:
        values = torch.from_numpy(np.stack([item["input_values"] for item in items])).flatten(0, 1)
        ids = torch.tensor([self._id(item) for item in items])
        segments = torch.arange(2).repeat(len(items))
        return PairBatch(values, ids.repeat_interleave(2), segments, [str(item["recording_id"]) for item in items])

    def _id(self, item: dict[str, Any]) -> int:
        # A recording of an unknown patient is a positive of itself only.
        by_patient = self._positives == "patient" and item["patient_id"] is not None
        text = f"patient {item['patient_id']}" if by_patient else f"recording {item['recording_id']}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


__all__ = ["PairBatch", "PairDataset", "epoch_order", "open_pairs", "train_batches", "valid_batches"]
