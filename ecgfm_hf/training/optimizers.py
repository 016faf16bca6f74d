"""Optimisers and learning rates of pretraining and fine-tuning."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from .settings import RunSettings


class FairseqAdam(torch.optim.AdamW):
    """
    Adam as in fairseq-signals: weight decay decoupled, `eps` added to the root of the second moment *before* the bias
    correction. torch's AdamW adds it after, and differs by up to 0.45 learning rates on the first update.

    The two formulas agree if torch's is given `eps / sqrt(1 - beta2 ** t)` at a parameter's update t, so torch's fused
    kernel computes it: one pass over the weights on CPU and GPU.

    Args:
        params: Parameters or groups.
        lr (`float`), betas (`tuple[float, float]`), eps (`float`), weight_decay (`float`):
            Default to the published ones: 5e-5, (0.9, 0.98), 1e-6, 0.01.

    Source: `fairseq_signals/optim/adam.py` (MIT), after Kingma and Ba 2015 and Loshchilov and Hutter 2019.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict],
        lr: float = 5e-5,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
        # A gradient scaler must skip an overflown update itself: counted here, it would not have happened.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def allocate_state(self) -> None:
        """
        Allocate the moments now, once the parameters are on their device. Allocated in the first update, between freed
        activations, they leave gaps that nothing fits into: a twentieth of the peak at base size.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad and not self.state[parameter]:
                    self.state[parameter] = {
                        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # as in torch, whose step is overloaded
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups, self.param_groups = self.param_groups, [part for g in self.param_groups for part in self._parts(g)]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["updates"] = state.get("updates", 0) + 1
        return loss

    def _updates(self, parameter: torch.Tensor) -> int:
        """Return how often a parameter has been updated: kept as a number, as reading `step` synchronises a GPU."""
        state = self.state[parameter]
        if state and "updates" not in state:
            # Allocated and not used yet, or from the checkpoint of an engine that keeps only tensors, as FSDP does.
            state["updates"] = int(state["step"])
        return state.get("updates", 0)

    def _parts(self, group: dict) -> list[dict]:
        """Split a group by how often its parameters have been updated: almost always one part."""
        parts: dict[int, list[torch.Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                parts.setdefault(self._updates(parameter) + 1, []).append(parameter)
        beta2 = group["betas"][1]
        return [
            {**group, "params": parameters, "eps": group["eps"] / math.sqrt(1.0 - beta2**updates)}
            for updates, parameters in parts.items()
        ]


def build_optimizer(
    parameters: Iterable[torch.Tensor] | Iterable[dict], settings: RunSettings
) -> torch.optim.Optimizer:
    """
    Build [`FairseqAdam`] or torch's AdamW (fused) over the trainable ones of the parameters, or over groups of them.
    Every weight decays, as in fairseq-signals.
    """
    # Any: torch accepts a list of parameters or of groups, which mypy cannot distinguish from a list of both.
    trainable: Any = [given for given in parameters if isinstance(given, dict) or given.requires_grad]
    rate, betas = settings.learning_rate, (settings.adam_beta1, settings.adam_beta2)
    if settings.optim == "adamw_torch_fused":
        return torch.optim.AdamW(trainable, rate, betas, settings.adam_epsilon, settings.weight_decay, fused=True)
    return FairseqAdam(trainable, rate, betas, settings.adam_epsilon, settings.weight_decay)


def learning_rate_at(update: int, total_updates: int, settings: RunSettings) -> float:
    """
    Return the learning rate of an update, a function of its number: there is no state to save.

    Args:
        update (`int`): From 0.
        total_updates (`int`): Of the whole run.
        settings ([`RunSettings`]): `learning_rate`, `warmup_steps` (updates, or a share
            of the run if below 1), `lr_scheduler_type`, `final_learning_rate` (what linear and cosine end at).
    """
    warmup = settings.warmup_steps if settings.warmup_steps >= 1 else round(settings.warmup_steps * total_updates)
    if update < warmup:
        return settings.learning_rate * (update + 1) / warmup
    if settings.lr_scheduler_type.startswith("constant"):
        return settings.learning_rate
    done = min(1.0, (update - warmup) / max(1.0, total_updates - warmup))
    left = 1.0 - done if settings.lr_scheduler_type == "linear" else (1.0 + math.cos(math.pi * done)) / 2.0
    return settings.final_learning_rate + (settings.learning_rate - settings.final_learning_rate) * left


__all__ = ["FairseqAdam", "build_optimizer", "learning_rate_at"]
