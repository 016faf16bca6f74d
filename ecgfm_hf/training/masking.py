"""Which frames pretraining masks, and the seeds of everything that is drawn."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from ..configuration_ecgfm import ECGFMConfig


def derived_seed(*parts: int | str) -> int:
    """
    A seed of 63 bits from anything that names a draw, such as `(seed, "train", update, micro-batch)`.

    Every draw of a run has its own, so there is no random state that a checkpoint would have to hold, and what is drawn
    depends neither on the number of processes nor on where the run was interrupted.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def compute_mask_indices(
    shape: tuple[int, int],
    mask_prob: float,
    mask_length: int,
    min_masks: int,
    random: np.random.RandomState,
    num_valid: Sequence[int] | None = None,
) -> np.ndarray:
    """
    Spans of masked frames, the same number of frames in every row.

    Spans may overlap. Rows with more masked frames than the least one give up single frames, which breaks spans; the
    masked share is therefore below `mask_prob`: 0.4204 +- 0.0355 for (8, 156), 0.65 and spans of 10. Equal to the
    original under the same numpy seed: `np.random.seed(seed)` there, `np.random.RandomState(seed)` here.

    Args:
        shape (`(rows, frames)`)
        mask_prob (`float`): Spans x `mask_length` / frames, rounded up or down at random.
        mask_length (`int`): Frames a span.
        min_masks (`int`): Least number of spans a row.
        random (`np.random.RandomState`)
        num_valid (sequence of `int`, *optional*): Frames of each row that are no padding.

    Returns:
        `np.ndarray` (rows, frames) bool

    Raises:
        `ValueError`: a row too short for its spans.

    Source: `compute_mask_indices` of fairseq (wav2vec 2.0, MIT), static lengths.
    """
    rows, frames = shape
    # Drawn even where `num_valid` replaces it, as the original does: the stream of random numbers must not shift.
    common = max(min_masks, int(mask_prob * frames / float(mask_length) + random.rand()))
    chosen = []
    for row in range(rows):
        valid, spans = frames, common
        if num_valid is not None:
            valid = int(num_valid[row])
            spans = max(min_masks, int(mask_prob * valid / float(mask_length) + random.rand()))
        # Where the row has fewer starts than spans, they may begin closer to its end.
        starts = valid - (mask_length if valid - mask_length > spans else valid - spans - 1)
        if spans > starts or valid < 2:
            raise ValueError(f"row {row} has {valid} frames: too short for {spans} masked spans of {mask_length}")
        first = random.choice(starts, spans, replace=False)
        masked = (first[:, None] + np.arange(mask_length)).reshape(-1)
        chosen.append(np.unique(masked[masked < valid]))
    least = min(len(masked) for masked in chosen)
    mask = np.zeros(shape, dtype=bool)
    for row, masked in enumerate(chosen):
        kept = masked if len(masked) == least else random.choice(masked, least, replace=False)
        mask[row, kept] = True
    return mask


def draw_mask(config: ECGFMConfig, rows: int, samples: int, seed: int) -> torch.Tensor:
    """A batch's `mask_time_indices` (rows, frames) bool, by the model's own `mask_time_*` settings."""
    mask = compute_mask_indices(
        (rows, config.num_frames(samples)),
        config.mask_time_prob,
        config.mask_time_length,
        config.mask_time_min_masks,
        # Its seeds have 32 bits each; any number of them makes a state.
        np.random.RandomState(np.array([seed & 0xFFFFFFFF, seed >> 32], dtype=np.uint32)),
    )
    return torch.from_numpy(mask)


__all__ = ["compute_mask_indices", "derived_seed", "draw_mask"]
