"""Which weights of a classifier are trained, how fast, and from which update on: LoRA, layer decay, freezing."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback
from transformers.modeling_utils import PreTrainedModel

from ..modeling_ecgfm import ECGFMForMultiLabelClassification
from .settings import FinetuneSettings, SettingsError

ADAPTERS_FOLDER = "adapters"
_HEAD = ("pooler", "classifier")
_CONVOLUTIONS = "feature_extractor.conv_layers."
_PEFT_PREFIX = "base_model.model."
_LAYER = re.compile(r"\bencoder\.layers\.(\d+)\.")


def add_lora(model: PreTrainedModel, lora: Mapping[str, Any]) -> nn.Module:
    """
    Wrap a model in peft's, so that only adapters and head are trained.

    Args:
        model (`ECGFMForMultiLabelClassification`): Changed in place.
        lora (mapping): For peft's `LoraConfig`, such as `{"r": 8, "lora_alpha": 16, "target_modules": ["q_proj",
            "v_proj"]}`.

    Raises:
        [`SettingsError`]: peft is not installed or has no such setting; no such module; adapters that no gradient
            reaches, or that cannot be merged.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise SettingsError("lora needs peft: pip install 'ecgfm-hf[lora]'") from None
    if "modules_to_save" in lora:
        raise SettingsError(
            "lora.modules_to_save cannot be set: besides the adapters, the head is always trained and nothing else"
        )
    try:
        head = [name for name in _HEAD if getattr(model, name) is not None]
        adapted = get_peft_model(model, LoraConfig(modules_to_save=head, **lora))
    except (TypeError, ValueError) as error:
        raise SettingsError(f"lora: {error}") from None
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    if model.config.feature_grad_multiplier <= 0 and any(_CONVOLUTIONS in name for name in trained):
        raise SettingsError(
            "lora.target_modules adapts the convolutions, but no gradient reaches them: set "
            "model.feature_grad_multiplier=1.0, or exclude them"
        )
    for name, module in adapted.named_modules():
        # peft raises an error only after the training.
        if hasattr(module, "lora_A") and getattr(module.get_base_layer(), "groups", 1) > 1:
            raise SettingsError(
                f"lora.target_modules adapts {name.removeprefix(_PEFT_PREFIX)}, a convolution in groups, which cannot "
                "be merged: exclude it, such as with lora.exclude_modules=[pos_conv_embed.conv]"
            )
    return adapted


def merge_lora(model: Any, adapters: str | Path | None = None) -> ECGFMForMultiLabelClassification:
    """
    Merge the adapters into the weights of the classifier, and return it.

    Args:
        model: From [`add_lora`]; must not be used afterwards.
        adapters (`str` or `Path`, *optional*): Folder to save adapters and head to as well. peft's
            `PeftModel.from_pretrained(classifier, adapters)` puts them on the model that training began from.
    """
    if adapters is not None:
        model.save_pretrained(str(adapters))
    return model.merge_and_unload()


def parameter_groups(model: nn.Module, num_layers: int, settings: FinetuneSettings) -> list[dict[str, Any]]:
    """
    Group the trainable weights by learning rate: `learning_rate` x `layer_decay` ** depth.

    The head, with its attention pooling, has depth 0, the last transformer layer 1, the first one `num_layers`,
    everything before it `num_layers` + 1.

    Args:
        model: A classifier, also within peft.
        num_layers (`int`): Of its transformer.
        settings ([`FinetuneSettings`]): `learning_rate`, `layer_decay`.

    Returns:
        Groups for an optimiser, fastest first, each with `lr`, `params` and `depth`; one group where nothing decays.
    """
    by_depth: dict[int, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            depth = 0 if settings.layer_decay == 1 else depth_of(name, num_layers)
            by_depth.setdefault(depth, []).append(parameter)
    rate, decay = settings.learning_rate, settings.layer_decay
    return [{"params": by_depth[depth], "lr": rate * decay**depth, "depth": depth} for depth in sorted(by_depth)]


def depth_of(name: str, num_layers: int) -> int:
    """Return how far a weight is from the head: 0 for the head itself."""
    if _is_of_head(name):
        return 0
    found = _LAYER.search(name)
    return num_layers + 1 if found is None else num_layers - int(found[1])


def encoder_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return all trainable weights but the head's (with its attention pooling)."""
    return [p for name, p in model.named_parameters() if p.requires_grad and not _is_of_head(name)]


def _is_of_head(name: str) -> bool:
    return not set(_HEAD).isdisjoint(name.split("."))


class FreezeEncoder(TrainerCallback):
    """
    Train only the head in the first updates, as `freeze_finetune_updates` of fairseq-signals.

    Args:
        parameters (list of `nn.Parameter`): The encoder's.
        updates (`int`)
    """

    def __init__(self, parameters: list[nn.Parameter], updates: int):
        self._parameters, self._updates = parameters, updates

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Freeze or unfreeze the encoder before an update."""
        trained = state.global_step >= self._updates
        if self._parameters[0].requires_grad != trained:
            for parameter in self._parameters:
                parameter.requires_grad_(trained)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of trainable weights and of all weights."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trainable in sizes if trainable), sum(size for size, _ in sizes)


__all__ = ["FreezeEncoder", "add_lora", "count_parameters", "merge_lora", "parameter_groups"]
