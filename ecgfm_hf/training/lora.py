"""LoRA through peft: few trainable weights beside the frozen ones, merged into them at the end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.modeling_utils import PreTrainedModel

from .settings import SettingsError

ADAPTERS_FOLDER = "adapters"
HEAD = "classifier"
CONVOLUTIONS = "feature_extractor.conv_layers."
PEFT_PREFIX = "base_model.model."


def add_lora(model: PreTrainedModel, lora: Mapping[str, Any]) -> Any:
    """
    The model within peft's: only adapters and head are trained.

    Args:
        model (`ECGFMForMultiLabelClassification`): Changed.
        lora (mapping): For peft's `LoraConfig`, such as `{"r": 8, "lora_alpha": 16, "target_modules": ["q_proj",
            "v_proj"]}`.

    Raises:
        [`SettingsError`]: peft is not installed, a setting that it does not have, no such module, adapters where no
            gradient comes, or that could not be merged.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise SettingsError("lora needs peft: pip install 'ecgfm-hf[lora]'") from None
    if "modules_to_save" in lora:
        raise SettingsError("lora.modules_to_save: the head is always trained, and nothing else besides the adapters")
    try:
        adapted = get_peft_model(model, LoraConfig(modules_to_save=[HEAD], **lora))
    except (TypeError, ValueError) as error:
        raise SettingsError(f"lora: {error}") from None
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    if model.config.feature_grad_multiplier == 0 and any(CONVOLUTIONS in name for name in trained):
        raise SettingsError(
            "lora.target_modules adapts the convolutions, but no gradient reaches them: set "
            "model.feature_grad_multiplier=1.0, or leave them out"
        )
    for name, module in adapted.named_modules():
        # peft would say so after the training.
        if hasattr(module, "lora_A") and getattr(module.get_base_layer(), "groups", 1) > 1:
            raise SettingsError(
                f"lora.target_modules adapts {name.removeprefix(PEFT_PREFIX)}, a convolution in groups, which cannot "
                "be merged: leave it out, such as by lora.exclude_modules=[pos_conv_embed.conv]"
            )
    return adapted


def merge_lora(model: Any, adapters: str | Path | None = None) -> PreTrainedModel:
    """
    The classifier with its adapters merged into its weights.

    Args:
        model: From [`add_lora`]; must not be used any more.
        adapters (`str` or `Path`, *optional*): Folder for adapters and head by themselves, which peft's
            `PeftModel.from_pretrained(classifier, adapters)` puts on the model that training began from.
    """
    if adapters is not None:
        model.save_pretrained(str(adapters))
    return model.merge_and_unload()


__all__ = ["ADAPTERS_FOLDER", "add_lora", "merge_lora"]
