"""One update: forward and backward over all micro-batches, normalised together, and the optimiser's step."""

import math
import signal

import torch
from accelerate import Accelerator, DistributedType

from ..modeling_ecgfm import ECGFMForPreTrainingOutput
from ..utils.errors import ECGFMError
from .masking import derived_seed, draw_mask
from .objective import METRICS, batch_metrics, forward_loss
from .optimizers import learning_rate_at
from .pair_batches import PairBatch
from .settings import PretrainSettings


class NotFiniteError(ECGFMError, RuntimeError):
    """
    A loss or gradient that is NaN or infinite, raised on every process before a weight has changed.

    Attributes:
        what (`str`): `loss` or `gradient`.
        facts (`list[dict]`): Loss and recording ids of the micro-batches, where they are this process's fault.
    """

    def __init__(self, what: str, facts: list[dict]):
        super().__init__(f"the {what} is not finite")
        self.what, self.facts = what, facts


class Updater:
    """
    Computes updates and validation losses.

    Args:
        accelerator (`Accelerator`)
        settings ([`PretrainSettings`])
        model, optimizer: As the accelerator prepared them.
        total_updates (`int`): Of the whole run, for the learning rate.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        settings: PretrainSettings,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        total_updates: int,
    ):
        self.accelerator, self.settings = accelerator, settings
        self.model, self.optimizer, self.total_updates = model, optimizer, total_updates
        self.bare = accelerator.unwrap_model(model)

    def update(self, number: int, batches: list[PairBatch], signal_number: int = 0) -> tuple[dict[str, float], int]:
        """
        One optimiser step over this process's micro-batches.

        The gradient is sum_i(n_i dL_i) / sum_i(n_i) over the micro-batches of all processes, n_i being the masked
        frames of micro-batch i and L_i its loss a masked frame.

        Args:
            number (`int`): Updates done before.
            batches (list of [`PairBatch`])
            signal_number (`int`): The signal that this process has received, 0 if none.

        Returns:
            `METRICS` and more over all processes; the signal that any process has received, 0 if none.

        Raises:
            [`NotFiniteError`]: on all processes.
        """
        accelerator, settings = self.accelerator, self.settings
        learning_rate = learning_rate_at(number, self.total_updates, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        temperature = self.bare.gumbel_temperature_at(settings.gumbel_updates_before + number)
        self.bare.set_gumbel_temperature(temperature)

        # Numbered over processes and accumulation together, as the data is cut.
        places = [a * accelerator.num_processes + accelerator.process_index for a in range(len(batches))]
        masks = [self.mask("train", number, place, batch) for place, batch in zip(places, batches, strict=True)]
        counts = [int(mask.sum()) for mask in masks]
        total = float(self.sum(torch.tensor([float(sum(counts))]))[0])
        share = len(batches) * accelerator.num_processes / total
        sums, losses, norm, received = torch.zeros(len(METRICS), dtype=torch.float64), [], None, 0
        for place, batch, mask, count in zip(places, batches, masks, counts, strict=True):
            # The forward pass too: DistributedDataParallel decides there whether this backward pass synchronises.
            with accelerator.accumulate(self.model):
                output, batch = self.forward("train", number, place, batch, mask)
                sums += batch_metrics(output, batch, self.bare).cpu() * count
                losses.append(float(output.loss.detach()))
                if len(losses) == len(batches):
                    # Before the last backward pass, as some engines step in it.
                    sums, received = self._agree(sums, losses, batches, signal_number)
                # accelerate divides by the accumulation steps, and engines average over processes.
                accelerator.backward(output.loss * (count * share))
                norm = self._gradient_norm(losses, batches) if accelerator.sync_gradients else None
                self.optimizer.step()
                self.optimizer.zero_grad()
        metrics = dict(zip(METRICS, (sums / total).tolist(), strict=True))
        metrics |= {"learning_rate": learning_rate, "gumbel_temperature": temperature}
        return metrics if norm is None else metrics | {"gradient_norm": norm}, received

    def settle(self, num_samples: int) -> None:
        """
        Lets DistributedDataParallel arrange its buckets before the first update, by a pass that changes nothing.

        It does so after the first backward pass that it sees. With three processes or more, buckets decide in which
        order gradients are summed, and so their last bits: a continued run has to begin with those that it had.
        """
        if not isinstance(self.model, torch.nn.parallel.DistributedDataParallel):
            return
        torch.manual_seed(0)
        values = torch.randn(2, self.bare.config.num_leads, num_samples)
        batch = PairBatch(values, torch.zeros(2, dtype=torch.long), torch.arange(2), [])
        output, _ = self.forward("settle", 0, 0, batch, self.mask("settle", 0, 0, batch))
        self.accelerator.backward(output.loss * 0.0)
        self.optimizer.zero_grad()

    def mask(self, kind: str, number: int, place: int, batch: PairBatch) -> torch.Tensor:
        """The mask (rows, frames) of a micro-batch: a function of the seed and its place in the run."""
        seed = derived_seed(self.settings.seed, kind, "mask", number, place)
        return draw_mask(self.bare.config, *batch.input_values.shape[::2], seed)

    def forward(
        self, kind: str, number: int, place: int, batch: PairBatch, mask: torch.Tensor
    ) -> tuple[ECGFMForPreTrainingOutput, PairBatch]:
        """The model's output for a micro-batch, and the micro-batch on the model's device."""
        device = self.accelerator.device
        tensors = (batch.input_values, batch.ids, batch.segment_ids, mask)
        *tensors, mask = (tensor.to(device, non_blocking=True) for tensor in tensors)
        batch = PairBatch(*tensors, batch.recording_ids)
        # Dropout, negatives and Gumbel noise are torch's draws, on every device from this seed.
        torch.manual_seed(derived_seed(self.settings.seed, kind, number, place))
        across = self.settings.cmsc_across_processes and kind != "valid"
        return forward_loss(self.model, self.bare, batch, mask, across), batch

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Over all processes, in float64 where the device has it."""
        if self.accelerator.num_processes == 1:
            return values
        device = self.accelerator.device
        values = values.to(device, torch.float32 if device.type == "mps" else torch.float64)
        return self.accelerator.reduce(values, reduction="sum").cpu()

    def _agree(
        self, sums: torch.Tensor, losses: list[float], batches: list[PairBatch], signal_number: int
    ) -> tuple[torch.Tensor, int]:
        """Sums over all processes; all stop where one has a loss that is not finite, or has received a signal."""
        bad = not all(map(math.isfinite, losses))
        flags = torch.tensor([float(bad), float(signal_number > 0)], dtype=torch.float64)
        *sums, bad_anywhere, received = self.sum(torch.cat([sums, flags])).unbind()
        if bad_anywhere:
            raise NotFiniteError("loss", _facts(losses, batches) if bad else [])
        return torch.stack(sums), (signal_number or int(signal.SIGTERM)) if received else 0

    def _gradient_norm(self, losses: list[float], batches: list[PairBatch]) -> float | None:
        accelerator, clip = self.accelerator, self.settings.max_grad_norm
        # All of them: accelerate knows an engine's parameters by the whole list.
        parameters = list(self.model.parameters())
        if clip > 0:
            norm = accelerator.clip_grad_norm_(parameters, clip)
        elif accelerator.distributed_type == DistributedType.DEEPSPEED:
            return None  # It has made its step by now.
        elif accelerator.distributed_type == DistributedType.FSDP:
            # Each process holds a part of the gradient: accelerate knows how to add them up, and clips nothing here.
            norm = accelerator.clip_grad_norm_(parameters, math.inf)
        else:
            accelerator.unscale_gradients()
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = None if norm is None else float(norm)
        # A gradient scaler meets overflows by itself.
        if norm is not None and accelerator.scaler is None and not math.isfinite(norm):
            raise NotFiniteError("gradient", _facts(losses, batches))
        return norm


def _facts(losses: list[float], batches: list[PairBatch]) -> list[dict]:
    return [{"loss": loss, "recording_ids": b.recording_ids} for loss, b in zip(losses, batches, strict=True)]


__all__ = ["NotFiniteError", "Updater"]
