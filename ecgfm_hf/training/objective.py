"""The pretraining objective: masks, the loss of a micro-batch with its parts, and the update of the weights."""

import math
import signal
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator, DistributedType

from ..configuration_ecgfm import ECGFMConfig
from ..modeling_ecgfm import ECGFMForPreTraining, ECGFMForPreTrainingOutput
from .monitoring import NonFiniteError
from .optimizers import learning_rate_at
from .pretraining_data import PairBatch
from .settings import PretrainSettings, derived_seed

_LOSS_PARTS = ("loss", "contrastive_loss", "diversity_loss", "feature_penalty", "cmsc_loss")
METRICS = (
    *_LOSS_PARTS,
    "code_perplexity",
    "prob_perplexity",
    "contrastive_accuracy",
    "codebook_usage",
    "embedding_std",
    "cmsc_accuracy",
)


def compute_mask_indices(
    shape: tuple[int, int],
    mask_prob: float,
    mask_length: int,
    min_masks: int,
    random: np.random.RandomState,
    num_valid: Sequence[int] | None = None,
) -> np.ndarray:
    """
    Draw spans of masked frames, the same number of frames in every row.

    Spans may overlap. Rows with more masked frames than the least one unmask single frames, which breaks spans; so the
    masked share is below `mask_prob`: 0.4204 +- 0.0355 for (8, 156), 0.65 and spans of 10. Equal to fairseq-signals
    under the same numpy seed: `np.random.seed(seed)` there, `np.random.RandomState(seed)` here.

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
    # Drawn even where `num_valid` replaces it, as in fairseq-signals: the stream of random numbers must not shift.
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
    """Draw a batch's `mask_time_indices` (rows, frames) bool by the model's `mask_time_*` settings."""
    mask = compute_mask_indices(
        (rows, config.num_frames(samples)),
        config.mask_time_prob,
        config.mask_time_length,
        config.mask_time_min_masks,
        # RandomState takes seeds of 32 bits, and any number of them.
        np.random.RandomState(np.array([seed & 0xFFFFFFFF, seed >> 32], dtype=np.uint32)),
    )
    return torch.from_numpy(mask)


class _GatherWithGradient(torch.autograd.Function):
    """
    Gather the rows of all processes in order. Backward, each process gets the sum of all gradients for its rows.

    `accelerator.gather` has no gradient, `torch.distributed.nn.functional.all_gather` is deprecated.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:  # Any: torch gives it attributes at will
        ctx.count = len(rows)
        return _gather(rows.contiguous())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank() * ctx.count : (dist.get_rank() + 1) * ctx.count]


def _gather(rows: torch.Tensor) -> torch.Tensor:
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


def forward_loss(
    model: torch.nn.Module, bare: ECGFMForPreTraining, batch: PairBatch, mask: torch.Tensor, across_processes: bool
) -> ECGFMForPreTrainingOutput:
    """
    Compute the model's output for a micro-batch, with `loss` in nats per masked frame.

    Args:
        model (`torch.nn.Module`): As accelerate prepared it.
        bare ([`ECGFMForPreTraining`]): The same, unwrapped.
        batch ([`PairBatch`])
        mask (`torch.BoolTensor` (2 pairs, frames))
        across_processes (`bool`): CMSC compares with the segments of all processes, and its gradient reaches them.
    """
    inputs = {"input_values": batch.input_values, "mask_time_indices": mask}
    if not (across_processes and dist.is_initialized() and dist.get_world_size() > 1):
        return model(**inputs, patient_ids=batch.ids, segment_ids=batch.segment_ids)
    output = model(**inputs)
    embeddings = _GatherWithGradient.apply(output.pooler_output.float())
    # The loss is the same on every process, and so is the sum of its gradients.
    ids, segment_ids = (_gather(values.to(embeddings.device)) for values in (batch.ids, batch.segment_ids))
    cmsc_loss = bare._cmsc_loss(embeddings, ids, segment_ids)
    output.cmsc_loss = bare.config.cmsc_loss_weight * cmsc_loss
    output.loss = output.loss + output.cmsc_loss
    return output


@torch.no_grad()
def batch_metrics(output: ECGFMForPreTrainingOutput, batch: PairBatch, model: ECGFMForPreTraining) -> torch.Tensor:
    """
    Compute the `METRICS` of a micro-batch, (len(METRICS),) float32, on the output's device.

    - `loss` and its parts: nats per masked frame. The perplexities are sums over the groups.
    - `codebook_usage`: the code perplexity, from 0 (each group always takes the same code) to 1 (all codes equally).
    - `embedding_std`: spread of the normalised embeddings, from 0 (all segments have the same) to 1 (all directions).
    - `cmsc_accuracy`: share of segments whose nearest other half is from their own recording (patient), within the
      micro-batch; 1 for a single pair.
    """
    # Optional in the output's class, but always there in pretraining.
    pooled, perplexity, config = output.pooler_output, output.code_perplexity, model.config
    if pooled is None or perplexity is None:
        raise ValueError("the output has no embeddings or codes: give the model mask_time_indices")
    groups, codes = config.num_codevector_groups, config.num_codevectors_per_group
    embeddings = F.normalize(pooled.float(), dim=-1)
    spread = embeddings.std(dim=0, unbiased=False).square().sum().sqrt()
    first, second = ((batch.segment_ids == half).nonzero().squeeze(1) for half in (0, 1))
    positive = batch.ids[first][:, None] == batch.ids[second][None, :]
    first, second, positive = (found.to(pooled.device, non_blocking=True) for found in (first, second, positive))
    similarity = embeddings[first] @ embeddings[second].T
    rows = positive.gather(1, similarity.argmax(dim=1, keepdim=True))
    columns = positive.gather(0, similarity.argmax(dim=0, keepdim=True))
    values = {part: getattr(output, part) for part in METRICS[: METRICS.index("codebook_usage")]}
    values["codebook_usage"] = (perplexity - groups) / max(1, groups * codes - groups)
    values["embedding_std"] = spread
    values["cmsc_accuracy"] = torch.cat([rows.flatten(), columns.flatten()]).float().mean()
    return torch.stack([values[name].detach().float().reshape(()) for name in METRICS])


class NonFiniteBatchError(NonFiniteError):
    """
    A loss or gradient that is NaN or infinite, raised on every process before a weight has changed.

    Attributes:
        what (`str`): `loss` or `gradient`.
        micro_batches (`list[dict]`): Loss and recording ids of this process's micro-batches, if it is one of these.
    """

    def __init__(self, what: str, micro_batches: list[dict[str, Any]]):
        super().__init__(f"the {what} is not finite")
        self.what, self.micro_batches = what, micro_batches


class Updater:
    """
    Compute updates, and the outputs that validation measures.

    Args:
        accelerator (`Accelerator`)
        settings ([`PretrainSettings`])
        model, optimizer: As the accelerator prepared them.
        total_updates (`int`): Of the whole run, for the learning rate.
        updates_before (`int`): Of the weights before the run, for the Gumbel temperature.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        settings: PretrainSettings,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        total_updates: int,
        updates_before: int,
    ):
        self.accelerator, self.settings = accelerator, settings
        self.model, self.optimizer = model, optimizer
        self.total_updates, self.updates_before = total_updates, updates_before
        self.bare = accelerator.unwrap_model(model)

    def update(self, number: int, batches: list[PairBatch], signal_number: int = 0) -> tuple[dict[str, float], int]:
        """
        Take one optimiser step over this process's micro-batches.

        The gradient is sum_i(n_i dL_i) / sum_i(n_i) over the micro-batches of all processes, n_i being the masked
        frames of micro-batch i and L_i its loss per masked frame.

        Args:
            number (`int`): Updates done before.
            batches (list of [`PairBatch`])
            signal_number (`int`): The signal that this process has received, 0 if none.

        Returns:
            `METRICS` and more over all processes; the signal that any process has received, 0 if none.

        Raises:
            [`NonFiniteBatchError`]: on all processes.
        """
        accelerator, settings = self.accelerator, self.settings
        learning_rate = learning_rate_at(number, self.total_updates, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        temperature = self.bare.gumbel_temperature_at(self.updates_before + number)
        self.bare.set_gumbel_temperature(temperature)

        # Numbered over processes and accumulation together, as the data is cut.
        indices = [a * accelerator.num_processes + accelerator.process_index for a in range(len(batches))]
        masks = [self.mask("train", number, index, batch) for index, batch in zip(indices, batches, strict=True)]
        counts = [int(mask.sum()) for mask in masks]
        total = float(self.sum(torch.tensor([float(sum(counts))]))[0])
        share = len(batches) * accelerator.num_processes / total
        # Read once an update: a value that is read makes the process wait for its device.
        computed: list[torch.Tensor] = []
        losses: list[float] = []
        sums, norm, received = torch.zeros(len(METRICS), dtype=torch.float64), None, 0
        for index, batch, mask, count in zip(indices, batches, masks, counts, strict=True):
            # The forward pass too: DistributedDataParallel decides there whether this backward pass synchronises.
            with accelerator.accumulate(self.model):
                output, batch = self.forward("train", number, index, batch, mask)
                computed.append(batch_metrics(output, batch, self.bare))
                loss: torch.Tensor = output.loss  # type: ignore[assignment]  # optional without targets
                if len(computed) == len(batches):
                    # Before the last backward pass, as some engines step in it.
                    read = torch.stack(computed).cpu().double()
                    losses = read[:, METRICS.index("loss")].tolist()
                    sums = torch.tensor(counts, dtype=torch.float64) @ read
                    sums, received = self._agree(sums, losses, batches, signal_number)
                # accelerate divides by the accumulation steps, and engines average over processes.
                accelerator.backward(loss * (count * share))
                norm = self._gradient_norm(losses, batches) if accelerator.sync_gradients else None
                self.optimizer.step()
                self.optimizer.zero_grad()
        metrics = dict(zip(METRICS, (sums / total).tolist(), strict=True))
        metrics |= {"learning_rate": learning_rate, "gumbel_temperature": temperature}
        return metrics if norm is None else metrics | {"gradient_norm": norm}, received

    def settle(self, num_samples: int) -> None:
        """
        Let DistributedDataParallel arrange its buckets before the first update, by a pass that changes nothing.

        It arranges them after its first backward pass. With three processes or more, buckets decide in which order
        gradients are summed, and so their last bits: a resumed run must begin with the buckets that it had.
        """
        if not isinstance(self.model, torch.nn.parallel.DistributedDataParallel):
            return
        torch.manual_seed(0)
        values = torch.randn(2, self.bare.config.num_leads, num_samples)
        batch = PairBatch(values, torch.zeros(2, dtype=torch.long), torch.arange(2), [])
        output, _ = self.forward("settle", 0, 0, batch, self.mask("settle", 0, 0, batch))
        self.accelerator.backward(output.loss * 0.0)  # type: ignore[operator]  # optional without targets
        self.optimizer.zero_grad()

    def mask(self, kind: str, number: int, index: int, batch: PairBatch) -> torch.Tensor:
        """Draw the mask (rows, frames) of a micro-batch: a function of the seed and its index in the run."""
        seed = derived_seed(self.settings.seed, kind, "mask", number, index)
        rows, _, samples = batch.input_values.shape
        return draw_mask(self.bare.config, rows, samples, seed)

    def forward(
        self, kind: str, number: int, index: int, batch: PairBatch, mask: torch.Tensor
    ) -> tuple[ECGFMForPreTrainingOutput, PairBatch]:
        """
        Compute the model's output for a micro-batch; return it and the micro-batch, its signals on the model's device.
        Mask and ids stay on the CPU, where the model can count them without waiting.
        """
        values = batch.input_values.to(self.accelerator.device, non_blocking=True)
        batch = PairBatch(values, batch.ids, batch.segment_ids, batch.recording_ids)
        # Dropout, negatives and Gumbel noise are torch's draws, on every device from this seed.
        torch.manual_seed(derived_seed(self.settings.seed, kind, number, index))
        across = self.settings.cmsc_across_processes and kind != "valid"
        return forward_loss(self.model, self.bare, batch, mask, across), batch

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all processes, in float64 where the device has it."""
        if self.accelerator.num_processes == 1:
            return values
        device = self.accelerator.device
        values = values.to(device, torch.float32 if device.type == "mps" else torch.float64)
        return self.accelerator.reduce(values, reduction="sum").cpu()

    def _agree(
        self, sums: torch.Tensor, losses: list[float], batches: list[PairBatch], signal_number: int
    ) -> tuple[torch.Tensor, int]:
        """Sum over all processes; all stop where one has a non-finite loss or has received a signal."""
        bad = not all(map(math.isfinite, losses))
        flags = torch.tensor([float(bad), float(signal_number > 0)], dtype=torch.float64)
        sums = self.sum(torch.cat([sums, flags]))
        bad_anywhere, received = sums[-2:].tolist()
        if bad_anywhere:
            raise NonFiniteBatchError("loss", _micro_batches(losses, batches) if bad else [])
        return sums[:-2], (signal_number or int(signal.SIGTERM)) if received else 0

    def _gradient_norm(self, losses: list[float], batches: list[PairBatch]) -> float | None:
        accelerator, clip = self.accelerator, self.settings.max_grad_norm
        # All of them: accelerate recognises an engine's parameters by the whole list.
        parameters = list(self.model.parameters())
        if clip > 0:
            norm = accelerator.clip_grad_norm_(parameters, clip)
        elif accelerator.distributed_type == DistributedType.DEEPSPEED:
            return None  # It has made its step by now.
        elif accelerator.distributed_type == DistributedType.FSDP:
            # Each process holds a part of the gradient: accelerate adds them up, and clips nothing here.
            norm = accelerator.clip_grad_norm_(parameters, math.inf)
        else:
            accelerator.unscale_gradients()
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = None if norm is None else float(norm)
        # A gradient scaler handles overflows itself.
        if norm is not None and accelerator.scaler is None and not math.isfinite(norm):
            raise NonFiniteBatchError("gradient", _micro_batches(losses, batches))
        return norm


def _micro_batches(losses: list[float], batches: list[PairBatch]) -> list[dict[str, Any]]:
    return [{"loss": loss, "recording_ids": b.recording_ids} for loss, b in zip(losses, batches, strict=True)]


__all__ = [
    "METRICS",
    "NonFiniteBatchError",
    "Updater",
    "batch_metrics",
    "compute_mask_indices",
    "draw_mask",
    "forward_loss",
]
