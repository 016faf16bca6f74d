"""Whether config and feature extractor of a folder are whole and agree, and what their numbers would give away."""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from ..configuration_ecgfm import ECGFMConfig
from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..modeling_ecgfm import AUTO_MAP, CUSTOM_PIPELINES
from ..provenance import PROVENANCE_FILE, ProvenanceError, labels_of_few, read_steps
from .weights import MODEL_CLASSES

CONFIG_FILE, EXTRACTOR_FILE = "config.json", "preprocessor_config.json"
AGAIN = "save the model again, with ecgfm_hf.save_model_folder"
_EXTRACTOR_MAP = {"AutoFeatureExtractor": "feature_extraction_ecgfm.ECGFMFeatureExtractor"}
# What impossible values in a file raise: of the strict dataclass, or where they are of another kind than expected.
_IMPOSSIBLE = (StrictDataclassError, ValueError, TypeError, AttributeError, LookupError)


def settings_problems(
    config_text: str, extractor_text: str
) -> tuple[list[str], list[str], tuple[ECGFMConfig, str] | None]:
    """
    Looks through both files of settings.

    Returns:
        Problems and notes, each naming its file; config and architecture, None where there are problems.
    """
    try:
        content = _json_object(CONFIG_FILE, config_text)
        extractor = _json_object(EXTRACTOR_FILE, extractor_text)
    except ValueError as error:
        return [str(error)], [], None
    if content.get("model_type") != ECGFMConfig.model_type:
        return [f"{CONFIG_FILE}: model_type must be 'ecgfm', found: {content.get('model_type')!r}"], [], None
    problems, architectures = [], content.get("architectures")
    if architectures not in [[name] for name in MODEL_CLASSES]:
        problems.append(f"{CONFIG_FILE}: architectures must be one of {list(MODEL_CLASSES)}, found: {architectures!r}")
    for key, wanted in (("auto_map", AUTO_MAP), ("custom_pipelines", CUSTOM_PIPELINES)):
        if content.get(key) != wanted:
            problems.append(f"{CONFIG_FILE}: {key} does not name all of the code beside it: {AGAIN}")
    if extractor.get("auto_map") != _EXTRACTOR_MAP:
        problems.append(f"{EXTRACTOR_FILE}: auto_map does not name the code beside it: {AGAIN}")
    try:
        config = ECGFMConfig.from_dict(content)
    except _IMPOSSIBLE as error:
        return [*problems, f"{CONFIG_FILE}: {_said(error)}"], [], None
    try:
        leads = len(ECGFMFeatureExtractor.from_dict(extractor).lead_names)
    except _IMPOSSIBLE as error:
        return [*problems, f"{EXTRACTOR_FILE}: {_said(error)}"], [], None
    if leads != config.num_leads:
        problems.append(f"{EXTRACTOR_FILE}: gives {leads} leads, the model takes {config.num_leads}")
    if problems:
        return problems, [], None
    notes = _label_notes(config) if architectures[0] == "ECGFMForMultiLabelClassification" else []
    return [], notes, (config, architectures[0])


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if isinstance(error, LookupError | AttributeError) else str(error)


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: damaged: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name}: damaged: no JSON object")
    return content


def _label_notes(config: ECGFMConfig) -> list[str]:
    unnamed = [name for name in config.label_names if re.fullmatch(r"LABEL_\d+", name)]
    notes = [f"{CONFIG_FILE}: {len(unnamed)} labels have no name ({unnamed[0]}, ...)"] if unnamed else []
    if config.problem_type in (None, "multi_label_classification"):
        for key in ("label_thresholds", "label_calibration"):
            if missing := [name for name in config.label_names if name not in (getattr(config, key) or {})]:
                notes.append(f"{CONFIG_FILE}: {key} has nothing for {len(missing)} of {config.num_labels} labels")
    return notes


def pos_weight_problems(folder: Path, config: ECGFMConfig) -> list[str]:
    """Weights that give away counts which the note beside them withholds."""
    if not config.pos_weight:
        return []
    try:
        few = labels_of_few(read_steps(folder), config.label_names)
    except ProvenanceError as error:
        return [f"{PROVENANCE_FILE}: {error}"]
    if not few:
        return []
    return [
        f"{CONFIG_FILE}: pos_weight tells how few training recordings have, or lack, {', '.join(few)}, which "
        f"{PROVENANCE_FILE} withholds: set it to null (nothing but training reads it)"
    ]


__all__ = ["AGAIN", "CONFIG_FILE", "EXTRACTOR_FILE", "pos_weight_problems", "settings_problems"]
