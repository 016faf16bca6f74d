"""Whether the weights of a folder are those that its config asks for, from the files' headers."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..configuration_ecgfm import ECGFMConfig
from ..modeling_ecgfm import ECGFMForMultiLabelClassification, ECGFMForPreTraining, ECGFMModel
from ..utils.errors import ECGFMError

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
MODEL_CLASSES = {c.__name__: c for c in (ECGFMModel, ECGFMForPreTraining, ECGFMForMultiLabelClassification)}
_SHOWN = 4


class WeightsError(ECGFMError, ValueError):
    """There are no weights that can be told apart from others, or an index that does not fit its files."""


def is_weights_file(name: str) -> bool:
    """Whether a file of this name is weights, or their index, to transformers."""
    return name in (SINGLE_FILE, INDEX_FILE) or SHARD.fullmatch(name) is not None


def weight_files(folder: Path) -> list[str]:
    """
    Names of the files that transformers loads from a folder: one file, or an index and its shards.

    Raises:
        [`WeightsError`]: there are none; an index that is damaged, names other files, or files that are not there.
    """
    if (folder / SINGLE_FILE).is_file():
        return [SINGLE_FILE]
    if not (folder / INDEX_FILE).is_file():
        others = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
        pickled = f"; {others[0]} is a pickle, which never goes: load and save the model again" if others else ""
        raise WeightsError(f"{SINGLE_FILE}: there is no such file{pickled}")
    try:
        shards = sorted(set(json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{INDEX_FILE}: damaged: {error!r}") from None
    for shard in shards:
        if not isinstance(shard, str) or SHARD.fullmatch(shard) is None:
            raise WeightsError(f"{INDEX_FILE}: names {shard!r} as a shard, must be such as model-00001-of-00002")
        if not (folder / shard).is_file():
            raise WeightsError(f"{INDEX_FILE}: names {shard}, which is not there")
    return [INDEX_FILE, *shards]


def header_texts(folder: Path, files: list[str]) -> Iterator[tuple[str, str]]:
    """File and text of what stands in the files beside numbers: free entries, and names of tensors."""
    for name in files:
        if name != INDEX_FILE:
            try:
                with safe_open(folder / name, framework="pt") as file:
                    yield name, json.dumps(file.metadata() or {})
                    yield name, "\n".join(file.keys())
            except SafetensorError:
                continue  # told by `weight_problems`


def weight_problems(folder: Path, files: list[str], config: ECGFMConfig, class_name: str) -> list[str]:
    """
    What is wrong with weights: keys and shapes that are not the model's, numbers that are not finite, a head that was
    never trained.

    Args:
        folder (`Path`)
        files (list of `str`): As [`weight_files`] gives them.
        config ([`ECGFMConfig`])
        class_name (`str`): The config's architecture.

    Returns:
        list of `str`: each names its file.
    """
    try:
        with torch.device("meta"):
            model = MODEL_CLASSES[class_name](config)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:  # such as an activation that there is not
        return [f"config.json: no {class_name} can be built of it: {type(error).__name__}: {error}"]
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    problems, found, not_finite = [], {}, []
    for name in files:
        if name == INDEX_FILE:
            continue
        try:
            with safe_open(folder / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - no mapping
                    if key in found:
                        problems.append(f"{name}: {key} is in {found[key][0]} as well")
                    found[key] = (name, file.get_slice(key).get_shape())
                    tensor = file.get_tensor(key)
                    if not bool(torch.isfinite(tensor).all()):
                        not_finite.append(f"{name}: {key} holds NaN or infinite numbers")
                    elif key == "classifier.bias" and not bool(tensor.any()):
                        # Zeros are where it starts, and no training leaves it there.
                        problems.append(f"{name}: the classification head was never trained: its bias is all zeros")
        except SafetensorError as error:
            problems.append(f"{name}: no safetensors file, or damaged: {error}")
    if problems and not found:
        return problems
    loading = INDEX_FILE if INDEX_FILE in files else SINGLE_FILE
    if missing := sorted(expected.keys() - found.keys()):
        problems.append(f"{loading}: lacks weights of {class_name}, which would start at random: {_some(missing)}")
    if unexpected := sorted(found.keys() - expected.keys()):
        problems.append(f"{loading}: holds what {class_name} has not: {_some(unexpected)}")
    for key in sorted(found.keys() & expected.keys()):
        name, shape = found[key]
        if shape != expected[key]:
            problems.append(f"{name}: {key} has shape {shape}, the config asks for {expected[key]}")
    return problems + not_finite[:_SHOWN]


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


__all__ = ["INDEX_FILE", "MODEL_CLASSES", "SINGLE_FILE", "WeightsError", "header_texts", "is_weights_file"]
__all__ += ["weight_files", "weight_problems"]
