"""The loss of a micro-batch, its parts, and what shows a collapse."""

import torch
import torch.distributed as dist
import torch.nn.functional as F

from ..modeling_ecgfm import ECGFMForPreTraining, ECGFMForPreTrainingOutput
from .pair_batches import PairBatch

LOSS_PARTS = ("loss", "contrastive_loss", "diversity_loss", "feature_penalty", "cmsc_loss")
METRICS = (
    *LOSS_PARTS,
    "code_perplexity",
    "prob_perplexity",
    "contrastive_accuracy",
    "codebook_usage",
    "embedding_std",
    "cmsc_accuracy",
)


class _GatherWithGradient(torch.autograd.Function):
    """
    Rows of all processes, in their order. Backward, each process gets the sum of all processes' gradients for its rows.

    `accelerator.gather` has no gradient, `torch.distributed.nn.functional.all_gather` is deprecated.
    """

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        ctx.count = len(rows)
        return _gather(rows.contiguous())

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
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
    The model's output for a micro-batch, with `loss` in nats a masked frame.

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
    # The loss is the same on every process, and so are its gradients' sums.
    cmsc_loss = bare._cmsc_loss(embeddings, _gather(batch.ids), _gather(batch.segment_ids))
    output.cmsc_loss = bare.config.cmsc_loss_weight * cmsc_loss
    output.loss = output.loss + output.cmsc_loss
    return output


@torch.no_grad()
def batch_metrics(output: ECGFMForPreTrainingOutput, batch: PairBatch, model: ECGFMForPreTraining) -> torch.Tensor:
    """
    `METRICS` of a micro-batch, (len(METRICS),) float64.

    - `loss` and its parts: nats a masked frame. The perplexities are sums over the groups.
    - `codebook_usage`: the code perplexity, from 0 (each group always takes the same code) to 1 (all codes equally).
    - `embedding_std`: spread of the normalised embeddings, 0 where all segments have the same, 1 where they point
      everywhere.
    - `cmsc_accuracy`: share of segments whose nearest other half is their own recording's (patient's), within the
      micro-batch; 1 for a single pair.
    """
    config = model.config
    groups, codes = config.num_codevector_groups, config.num_codevectors_per_group
    embeddings = F.normalize(output.pooler_output.float(), dim=-1)
    spread = embeddings.std(dim=0, unbiased=False).square().sum().sqrt()
    first, second = batch.segment_ids == 0, batch.segment_ids == 1
    similarity = embeddings[first] @ embeddings[second].T
    positive = batch.ids[first][:, None] == batch.ids[second][None, :]
    rows = positive.gather(1, similarity.argmax(dim=1, keepdim=True))
    columns = positive.gather(0, similarity.argmax(dim=0, keepdim=True))
    values = {part: getattr(output, part) for part in METRICS[: METRICS.index("codebook_usage")]}
    values["codebook_usage"] = (output.code_perplexity - groups) / max(1, groups * codes - groups)
    values["embedding_std"] = spread
    values["cmsc_accuracy"] = torch.cat([rows.flatten(), columns.flatten()]).float().mean()
    return torch.stack([values[name].detach().double().reshape(()) for name in METRICS])


__all__ = ["LOSS_PARTS", "METRICS", "batch_metrics", "forward_loss"]
