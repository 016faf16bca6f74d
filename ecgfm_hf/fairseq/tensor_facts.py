"""What the names and shapes of a fairseq-signals state dict tell about the architecture."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from .checkpoint import CheckpointError
from .state_dict import FAIRSEQ_PREFIX, ModelKind, model_kind


@dataclass(frozen=True)
class TensorFacts:
    """Everything about the architecture that the tensors' names and shapes tell; names as in [`ECGFMConfig`]."""

    kind: ModelKind
    num_leads: int
    conv_dim: list[int]
    conv_kernel: list[int]
    conv_bias: bool
    feat_extract_norm: str
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_conv_pos_embeddings: int
    num_conv_pos_embedding_groups: int
    has_mask_embedding: bool
    num_labels: int | None = None
    quantizer: dict[str, int] = field(default_factory=dict)


def read_tensor_facts(tensors: Mapping[str, torch.Tensor]) -> TensorFacts:
    """
    Sizes of the model that a fairseq-signals state dict belongs to. Meta tensors will do.

    Raises:
        `CheckpointError`: a tensor is missing or has an impossible shape.
    """
    kind = model_kind(tensors)
    prefix = FAIRSEQ_PREFIX[kind]

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in tensors:
            raise CheckpointError(f"tensor {name} is missing")
        found = tuple(tensors[name].shape)
        if len(found) != dimensions or 0 in found:
            raise CheckpointError(
                f"tensor {name} must have {dimensions} dimensions, none of them 0, found shape: {found}"
            )
        return found

    def count(pattern: str) -> int:
        numbers = {int(match.group(1)) for name in tensors if (match := re.match(re.escape(prefix) + pattern, name))}
        if not numbers or numbers != set(range(len(numbers))):
            raise CheckpointError(
                f"layers named {prefix}{pattern} must be numbered from 0 without gaps: {sorted(numbers)}"
            )
        return len(numbers)

    convs = [
        shape(f"{prefix}feature_extractor.conv_layers.{i}.0.weight", 3)
        for i in range(count(r"feature_extractor\.conv_layers\.(\d+)\."))
    ]
    first = f"{prefix}feature_extractor.conv_layers.0"
    position = f"{prefix}conv_pos.pos_conv.0"
    direction = f"{position}.weight_v" if f"{position}.weight_v" in tensors else None
    hidden_size, position_in, position_kernel = shape(direction or f"{position}.parametrizations.weight.original1", 3)
    if hidden_size % position_in:
        raise CheckpointError(f"{position}: {hidden_size} channels cannot form groups of {position_in}")
    return TensorFacts(
        kind=kind,
        num_leads=convs[0][1],
        conv_dim=[conv[0] for conv in convs],
        conv_kernel=[conv[2] for conv in convs],
        conv_bias=f"{first}.0.bias" in tensors,
        feat_extract_norm="layer" if f"{first}.2.1.weight" in tensors else "group",
        hidden_size=hidden_size,
        num_hidden_layers=count(r"encoder\.layers\.(\d+)\."),
        intermediate_size=shape(f"{prefix}encoder.layers.0.fc1.weight", 2)[0],
        num_conv_pos_embeddings=position_kernel,
        num_conv_pos_embedding_groups=hidden_size // position_in,
        has_mask_embedding=f"{prefix}mask_emb" in tensors,
        num_labels=shape("proj.weight", 2)[0] if kind == "classification" else None,
        quantizer=_quantizer_facts(shape) if kind == "pretraining" and "quantizer.vars" in tensors else {},
    )


def _quantizer_facts(shape: Callable[[str, int], tuple[int, ...]]) -> dict[str, int]:
    _, codes, width = shape("quantizer.vars", 3)
    final_width, quantized_width = shape("project_q.weight", 2)
    # Each group contributes `width` channels to a quantized vector, which `project_q` takes whole.
    groups, rest = divmod(quantized_width, width)
    if rest or groups == 0 or codes % groups or shape("quantizer.weight_proj.weight", 2)[0] != codes:
        raise CheckpointError(
            f"quantizer: {codes} codes of width {width} do not fit project_q's input of width {quantized_width}"
        )
    return {
        "num_codevectors_per_group": codes // groups,
        "num_codevector_groups": groups,
        "codevector_dim": quantized_width,
        "proj_codevector_dim": final_width,
    }
