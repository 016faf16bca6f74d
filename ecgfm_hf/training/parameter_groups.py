"""Which weights are trained, how fast, and from when on."""

import re
from typing import Any

from torch import nn
from transformers import TrainerCallback

from .settings import FinetuneSettings

_LAYER = re.compile(r"\bencoder\.layers\.(\d+)\.")


def parameter_groups(model: nn.Module, num_layers: int, settings: FinetuneSettings) -> list[dict[str, Any]]:
    """
    The trainable weights by learning rate: `learning_rate` x `layer_decay` ** depth. The head has depth 0, the last
    layer of the transformer 1, its first layer `num_layers`, all that comes before it `num_layers` + 1.

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
    """How far a weight is from the head: 0 for the head itself."""
    if "classifier" in name.split("."):
        return 0
    found = _LAYER.search(name)
    return num_layers + 1 if found is None else num_layers - int(found[1])


def encoder_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All trainable weights but the head's."""
    return [p for name, p in model.named_parameters() if p.requires_grad and "classifier" not in name.split(".")]


class FreezeEncoder(TrainerCallback):
    """
    Trains nothing but the head in the first updates, as the original's `freeze_finetune_updates`.

    Args:
        parameters (list of `nn.Parameter`): The encoder's.
        updates (`int`)
    """

    def __init__(self, parameters: list[nn.Parameter], updates: int):
        self._parameters, self._updates = parameters, updates

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called before each update."""
        trained = state.global_step >= self._updates
        if self._parameters[0].requires_grad != trained:
            for parameter in self._parameters:
                parameter.requires_grad_(trained)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Trainable weights, and all."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trainable in sizes if trainable), sum(size for size, _ in sizes)


__all__ = ["FreezeEncoder", "count_parameters", "depth_of", "encoder_parameters", "parameter_groups"]
