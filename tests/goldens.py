"""What the original code computes, for the tests: `tests/fixtures/golden`, cut by `scripts/make_fixtures.py`."""

import functools
import re
import zlib
from pathlib import Path

import numpy as np
import torch

FIXTURES = Path(__file__).parent / "fixtures" / "golden"


def golden(case: str) -> dict[str, torch.Tensor]:
    """
    Inputs and outputs of a case such as `tiny/a_finetune_eval`, under the original's names.

    Beside every input `source` stands `attention_mask` (with the same prefix), where it has padding.
    """
    arrays = np.load(FIXTURES / f"{case.replace('/', '_')}.npz")
    result = {}
    for key in arrays.files:
        if "source" in key:
            result[key] = torch.from_numpy(build_source(arrays[key].tolist(), segments()))
            lengths = torch.tensor([int(line.split("|")[1].split("/")[0]) for line in arrays[key].tolist()])
            result[key.replace("source", "attention_mask")] = (
                torch.arange(result[key].shape[2])[None, :] < lengths[:, None]
            ).long()
        else:
            result[key] = torch.from_numpy(arrays[key])
    return result


@functools.cache
def segments() -> dict[str, np.ndarray]:
    """Ten preprocessed CODE-15% segments by name."""
    files = (np.load(FIXTURES / f"segments_{part}.npz") for part in "ab")
    return {name: arrays[name] for arrays in files for name in arrays.files}


def build_source(recipe: list[str], available: dict[str, np.ndarray]) -> np.ndarray:
    """The input (batch, 12, samples) that a recipe of `scripts/make_fixtures.py` describes."""
    rows = []
    for line in recipe:
        names, extent, dead = line.split("|")
        length, total = map(int, extent.split("/"))
        signal = np.concatenate([available[name] for name in names.split("+")], axis=1)
        row = np.zeros((signal.shape[0], total), dtype=np.float32)
        row[:, :length] = signal[:, :length]
        row[[int(lead) for lead in dead.split(",") if lead]] = 0.0
        rows.append(row)
    return np.stack(rows)


def recipe_weight(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """
    The weight that the full-size goldens were computed with, by its name in fairseq-signals.

    A standard normal seeded with the name's CRC-32: scaled by 0.02; around 1 for norms; 0.5 plus a tenth of its
    size for the magnitudes of weight norm.
    """
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode("utf-8"))))
    normal = torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
    if key.endswith("weight.original0"):
        return normal.abs() * 0.1 + 0.5
    if re.search(r"layer_norm\.weight$|conv_layers\.\d+\.2\.weight$", key):
        return 1.0 + 0.02 * normal
    return 0.02 * normal


def scaled_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference as a share of the largest expected absolute value."""
    assert found.shape == expected.shape, f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    difference = (found.detach().float() - expected.float()).abs().max()
    return float(difference / expected.float().abs().max())
