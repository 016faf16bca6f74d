"""What the Trainer reads: segments with their recording's target, in an order that seed and epoch decide."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ..data.segments import ModelInputs
from ..data.targets import UNKNOWN_CLASS
from .masking import derived_seed

# Stands for no segment: see `EpochOrder`.
_FILLER = -1


class LabelledSegments(Dataset):
    """
    Segments by number.

    Args:
        inputs ([`ModelInputs`]): Segments, with or without labels of their own.
        targets (`np.ndarray`): By row of the dataset that `inputs` is of: (rows, L) float32 with NaN for unknown, or
            for a single label (rows,) int64 with -100 for unknown.
        transforms: Of [`build_augmentations`], which are told the epoch; they act in `inputs`.
    """

    def __init__(self, inputs: ModelInputs, targets: np.ndarray, transforms: Sequence[Callable | None] = ()):
        self.inputs, self.targets = inputs, targets
        self.epoch = 0
        self._transforms = [transform for transform in transforms if hasattr(transform, "set_epoch")]

    @property
    def rows(self) -> np.ndarray:
        """The dataset's row (segments,) of each segment."""
        return self.inputs.recordings

    def recording_targets(self) -> np.ndarray:
        """The targets of those recordings that have segments: a row each."""
        return self.targets[np.unique(self.rows)]

    def set_epoch(self, epoch: int) -> None:
        """Another order and other augmentations from now on; the Trainer calls it."""
        self.epoch = int(epoch)
        for transform in self._transforms:
            transform.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        real = [number for number in numbers if number != _FILLER]
        # A batch of nothing but fillers borrows the shape of the first segment.
        found = self.inputs.__getitems__(real or [0])
        shape, answers = found[0]["input_values"].shape, iter(found)
        return [self._filler(shape) if number == _FILLER else self._item(number, next(answers)) for number in numbers]

    def _item(self, number: int, item: dict[str, Any]) -> dict[str, Any]:
        return {"input_values": item["input_values"], "labels": self.targets[self.rows[number]]}

    def _filler(self, shape: tuple[int, ...]) -> dict[str, Any]:
        unknown = np.full_like(self.targets[0], UNKNOWN_CLASS if self.targets.dtype.kind == "i" else np.nan)
        return {"input_values": np.zeros(shape, dtype=np.float32), "labels": unknown}


class EpochOrder(Sampler[int]):
    """
    All segments in the random order of an epoch: a function of seed and epoch alone, so there is no state to save.

    With several processes the last batches are filled up with empty segments of unknown targets, which change neither
    loss nor gradient: each process then has as many batches, and the sum is that of the segments. (accelerate would
    fill up with segments of the epoch's beginning, which would count twice.)

    Args:
        dataset ([`LabelledSegments`]): Knows the epoch.
        seed (`int`)
        multiple (`int`): The length becomes a multiple of this: batch size x processes; 1 with one process.
    """

    def __init__(self, dataset: LabelledSegments, seed: int, multiple: int = 1):
        self._dataset, self._seed, self._multiple = dataset, seed, multiple

    def __len__(self) -> int:
        return -(-len(self._dataset) // self._multiple) * self._multiple

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng(derived_seed(self._seed, "order", self._dataset.epoch))
        yield from random.permutation(len(self._dataset)).tolist()
        yield from [_FILLER] * (len(self) - len(self._dataset))


def collate_segments(items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch: `input_values` (batch, leads, samples) float32 and `labels`, stacked."""
    return {name: torch.from_numpy(np.stack([item[name] for item in items])) for name in ("input_values", "labels")}


def count_known(labels: torch.Tensor) -> torch.Tensor:
    """How many targets are known: not NaN, or not -100 where they are class numbers."""
    known = ~labels.isnan() if labels.is_floating_point() else labels != UNKNOWN_CLASS
    return known.sum()


__all__ = ["EpochOrder", "LabelledSegments", "collate_segments", "count_known"]
