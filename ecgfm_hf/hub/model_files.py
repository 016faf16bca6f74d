"""Check that config, feature extractor and weights of a model folder are complete and belong together."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from ..configuration_ecgfm import ECGFMConfig
from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..modeling_ecgfm import (
    AUTO_MAP,
    CUSTOM_PIPELINES,
    ECGFMForMultiLabelClassification,
    ECGFMForPreTraining,
    ECGFMModel,
)
from ..provenance import PROVENANCE_FILE, ProvenanceError, labels_with_withheld_counts, read_steps
from ..utils.errors import ECGFMError

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
MODEL_CLASSES = {c.__name__: c for c in (ECGFMModel, ECGFMForPreTraining, ECGFMForMultiLabelClassification)}
_SHOWN = 4


class WeightsError(ECGFMError, ValueError):
    """The folder has no weights, or an index that does not match its files."""


def is_weights_file(name: str) -> bool:
    """Return whether transformers loads a file of this name as weights or as their index."""
    return name in (SINGLE_FILE, INDEX_FILE) or SHARD.fullmatch(name) is not None


def weight_files(folder: Path) -> list[str]:
    """
    Return the names of the weight files that transformers loads from a folder: one file, or an index and its shards.

    Raises:
        [`WeightsError`]: there are none, or the index is damaged or names other or missing files.
    """
    if (folder / SINGLE_FILE).is_file():
        return [SINGLE_FILE]
    if not (folder / INDEX_FILE).is_file():
        others = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
        pickled = (
            f"; {others[0]} is a pickle, which is never uploaded: load the model and save it again" if others else ""
        )
        raise WeightsError(f"{SINGLE_FILE}: missing{pickled}")
    try:
        shards = sorted(set(json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{INDEX_FILE}: damaged: {error!r}") from None
    for shard in shards:
        if not isinstance(shard, str) or SHARD.fullmatch(shard) is None:
            raise WeightsError(
                f"{INDEX_FILE}: names the shard {shard!r}, expected a name such as model-00001-of-00002.safetensors"
            )
        if not (folder / shard).is_file():
            raise WeightsError(f"{INDEX_FILE}: names {shard}, which is missing")
    return [INDEX_FILE, *shards]


def header_texts(folder: Path, files: list[str]) -> Iterator[tuple[str, str]]:
    """Yield file name and text of what weight files hold besides numbers: their metadata and their tensor names."""
    for name in files:
        if name != INDEX_FILE:
            try:
                with safe_open(folder / name, framework="pt") as file:
                    yield name, json.dumps(file.metadata() or {})
                    yield name, "\n".join(file.keys())
            except SafetensorError:
                continue  # `weight_problems` reports it


def weight_problems(folder: Path, files: list[str], config: ECGFMConfig, class_name: str) -> list[str]:
    """
    Return what is wrong with weights: keys or shapes that are not the model's, numbers that are not finite, or a head
    that was never trained.

    Args:
        folder (`Path`)
        files (list of `str`): From [`weight_files`].
        config ([`ECGFMConfig`])
        class_name (`str`): The config's architecture.

    Returns:
        list of `str`: each names its file.
    """
    try:
        with torch.device("meta"):
            model = MODEL_CLASSES[class_name](config)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:  # such as an unknown activation
        return [f"config.json: cannot build {class_name} from it: {type(error).__name__}: {error}"]
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    problems: list[str] = []
    found: dict[str, tuple[str, list[int]]] = {}
    not_finite: list[str] = []
    for name in files:
        if name == INDEX_FILE:
            continue
        try:
            with safe_open(folder / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - no mapping
                    if key in found:
                        problems.append(f"{name}: {key} is also in {found[key][0]}")
                    found[key] = (name, file.get_slice(key).get_shape())
                    tensor = file.get_tensor(key)
                    if not bool(torch.isfinite(tensor).all()):
                        not_finite.append(f"{name}: {key} holds NaN or infinite numbers")
                    elif key == "classifier.bias" and not bool(tensor.any()):
                        # It starts at zero, and training always changes it.
                        problems.append(f"{name}: the classification head was never trained: its bias is all zeros")
        except SafetensorError as error:
            problems.append(f"{name}: not a safetensors file, or damaged: {error}")
    if problems and not found:
        return problems
    loading = INDEX_FILE if INDEX_FILE in files else SINGLE_FILE
    if missing := sorted(expected.keys() - found.keys()):
        problems.append(f"{loading}: weights of {class_name} are missing and would be random: {_some(missing)}")
    if unexpected := sorted(found.keys() - expected.keys()):
        problems.append(f"{loading}: has tensors that {class_name} does not use: {_some(unexpected)}")
    for key in sorted(found.keys() & expected.keys()):
        name, shape = found[key]
        if shape != expected[key]:
            problems.append(f"{name}: {key} has shape {shape}, the config expects {expected[key]}")
    return problems + not_finite[:_SHOWN]


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


CONFIG_FILE, EXTRACTOR_FILE = "config.json", "preprocessor_config.json"
SAVE_AGAIN = "save the model again with ecgfm_hf.save_model_folder"
_EXTRACTOR_MAP = {"AutoFeatureExtractor": "feature_extraction_ecgfm.ECGFMFeatureExtractor"}
# What impossible values in a file raise.
_IMPOSSIBLE = (StrictDataclassError, ValueError, TypeError, AttributeError, LookupError)


def settings_problems(
    config_text: str, extractor_text: str
) -> tuple[list[str], list[str], tuple[ECGFMConfig, str] | None]:
    """
    Check config.json and preprocessor_config.json.

    Returns:
        Problems and notes, each naming its file; the config and its architecture, or None if there are problems.
    """
    try:
        content = _json_object(CONFIG_FILE, config_text)
        extractor = _json_object(EXTRACTOR_FILE, extractor_text)
    except ValueError as error:
        return [str(error)], [], None
    if content.get("model_type") != ECGFMConfig.model_type:
        return [f"{CONFIG_FILE}: model_type must be 'ecgfm', found: {content.get('model_type')!r}"], [], None
    problems, architectures = [], content.get("architectures") or []
    if architectures not in [[name] for name in MODEL_CLASSES]:
        problems.append(f"{CONFIG_FILE}: architectures must be one of {list(MODEL_CLASSES)}, found: {architectures!r}")
    for key, wanted in (("auto_map", AUTO_MAP), ("custom_pipelines", CUSTOM_PIPELINES)):
        if content.get(key) != wanted:
            problems.append(f"{CONFIG_FILE}: {key} does not name the code files beside it: {SAVE_AGAIN}")
    if extractor.get("auto_map") != _EXTRACTOR_MAP:
        problems.append(f"{EXTRACTOR_FILE}: auto_map does not name the code files beside it: {SAVE_AGAIN}")
    try:
        config = ECGFMConfig.from_dict(content)
    except _IMPOSSIBLE as error:
        return [*problems, f"{CONFIG_FILE}: {_describe(error)}"], [], None
    try:
        leads = len(ECGFMFeatureExtractor.from_dict(extractor).lead_names)
    except _IMPOSSIBLE as error:
        return [*problems, f"{EXTRACTOR_FILE}: {_describe(error)}"], [], None
    if leads != config.num_leads:
        problems.append(f"{EXTRACTOR_FILE}: has {leads} leads, but the model takes {config.num_leads}")
    if problems:
        return problems, [], None
    notes = _label_notes(config) if architectures[0] == "ECGFMForMultiLabelClassification" else []
    return [], notes, (config, architectures[0])


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if isinstance(error, LookupError | AttributeError) else str(error)


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: damaged: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name}: damaged: not a JSON object")
    return content


def _label_notes(config: ECGFMConfig) -> list[str]:
    unnamed = [name for name in config.label_names if re.fullmatch(r"LABEL_\d+", name)]
    notes = [f"{CONFIG_FILE}: {len(unnamed)} labels have default names ({unnamed[0]}, ...)"] if unnamed else []
    if config.problem_type in (None, "multi_label_classification"):
        for key in ("label_thresholds", "label_calibration"):
            if missing := [name for name in config.label_names if name not in (getattr(config, key) or {})]:
                notes.append(f"{CONFIG_FILE}: {key} is missing for {len(missing)} of {config.num_labels} labels")
    return notes


def pos_weight_problems(folder: Path, config: ECGFMConfig) -> list[str]:
    """Return a problem if `pos_weight` reveals counts that the provenance withholds."""
    if not config.pos_weight:
        return []
    try:
        few = labels_with_withheld_counts(read_steps(folder), config.label_names)
    except ProvenanceError as error:
        return [f"{PROVENANCE_FILE}: {error}"]
    if not few:
        return []
    return [
        f"{CONFIG_FILE}: pos_weight reveals counts of few patients for {', '.join(few)}, which {PROVENANCE_FILE} "
        "withholds: set it to null (only training reads it)"
    ]
