"""
The tensors of fairseq-signals checkpoints: their names here and there, and the architecture that they show.

One table of names is read in both directions.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch

from .checkpoint import CheckpointError

ModelKind = Literal["pretraining", "classification"]

# Layouts: names that differ between fairseq-signals files for the same tensor of ours.
GROUP_NORM = "group norm on the first convolution"
LAYER_NORM = "layer norm on every convolution"
NEW_WEIGHT_NORM = "weight norm as files since 2025-01-20 have it"
OLD_WEIGHT_NORM = "weight norm as older files have it"


@dataclass(frozen=True)
class NamePair:
    """A tensor's two names. `{i}` is a layer's index, `{p}` is `weight` or `bias`; `layout` limits it to some files."""

    fairseq: str
    ours: str
    layout: str | None = None


_POSITION = "conv_pos.pos_conv.0"
_POSITION_OURS = "encoder.pos_conv_embed.conv"

# In the order of fairseq-signals' parameters, by which its optimizer numbers them.
ENCODER_NAMES = (
    NamePair("mask_emb", "masked_spec_embed"),
    NamePair("encoder.layers.{i}.self_attn.k_proj.{p}", "encoder.layers.{i}.attention.k_proj.{p}"),
    NamePair("encoder.layers.{i}.self_attn.v_proj.{p}", "encoder.layers.{i}.attention.v_proj.{p}"),
    NamePair("encoder.layers.{i}.self_attn.q_proj.{p}", "encoder.layers.{i}.attention.q_proj.{p}"),
    NamePair("encoder.layers.{i}.self_attn.out_proj.{p}", "encoder.layers.{i}.attention.out_proj.{p}"),
    NamePair("encoder.layers.{i}.self_attn_layer_norm.{p}", "encoder.layers.{i}.layer_norm.{p}"),
    NamePair("encoder.layers.{i}.fc1.{p}", "encoder.layers.{i}.feed_forward.intermediate_dense.{p}"),
    NamePair("encoder.layers.{i}.fc2.{p}", "encoder.layers.{i}.feed_forward.output_dense.{p}"),
    NamePair("encoder.layers.{i}.final_layer_norm.{p}", "encoder.layers.{i}.final_layer_norm.{p}"),
    NamePair("encoder.layer_norm.{p}", "encoder.layer_norm.{p}"),
    NamePair("feature_extractor.conv_layers.{i}.0.{p}", "feature_extractor.conv_layers.{i}.conv.{p}"),
    NamePair("feature_extractor.conv_layers.{i}.2.{p}", "feature_extractor.conv_layers.{i}.layer_norm.{p}", GROUP_NORM),
    NamePair(
        "feature_extractor.conv_layers.{i}.2.1.{p}", "feature_extractor.conv_layers.{i}.layer_norm.{p}", LAYER_NORM
    ),
    NamePair("post_extract_proj.{p}", "feature_projection.projection.{p}"),
    NamePair(f"{_POSITION}.bias", f"{_POSITION_OURS}.bias"),
    NamePair(
        f"{_POSITION}.parametrizations.weight.original0",
        f"{_POSITION_OURS}.parametrizations.weight.original0",
        NEW_WEIGHT_NORM,
    ),
    NamePair(
        f"{_POSITION}.parametrizations.weight.original1",
        f"{_POSITION_OURS}.parametrizations.weight.original1",
        NEW_WEIGHT_NORM,
    ),
    NamePair(f"{_POSITION}.weight_g", f"{_POSITION_OURS}.parametrizations.weight.original0", OLD_WEIGHT_NORM),
    NamePair(f"{_POSITION}.weight_v", f"{_POSITION_OURS}.parametrizations.weight.original1", OLD_WEIGHT_NORM),
    NamePair("layer_norm.{p}", "feature_projection.layer_norm.{p}"),
)
HEAD_NAMES: dict[ModelKind, tuple[NamePair, ...]] = {
    "pretraining": (
        NamePair("quantizer.vars", "quantizer.codevectors"),
        NamePair("quantizer.weight_proj.{p}", "quantizer.weight_proj.{p}"),
        NamePair("project_q.{p}", "project_q.{p}"),
        NamePair("final_proj.{p}", "project_hid.{p}"),
    ),
    "classification": (NamePair("proj.{p}", "classifier.{p}"),),
}
# Prefix of the encoder's names in a fairseq-signals file. Ours is `ecgfm.` for both kinds.
FAIRSEQ_PREFIX: dict[ModelKind, str] = {"pretraining": "", "classification": "encoder."}

_MODULES_OF_SETTINGS = {
    "target_glu": "target_glu",
    "input_quantizer": "quantize_input",
    "project_inp": "quantize_input",
}


def model_kind(names: Iterable[str]) -> ModelKind:
    """
    Return `"classification"` for the tensor names of a fine-tuned classifier, else `"pretraining"`.

    Raises:
        `CheckpointError`: the names belong to neither kind.
    """
    names = set(names)
    if "proj.weight" in names and any(name.startswith("encoder.feature_extractor.") for name in names):
        return "classification"
    if any(name.startswith("feature_extractor.") for name in names):
        return "pretraining"
    shown = ", ".join(sorted(names)[:4])
    raise CheckpointError(f"the tensors are not those of an ECG-FM encoder or classifier (found: {shown}, ...)")


def has_old_weight_norm(names: Iterable[str]) -> bool:
    """Return whether tensor names are those of a file from before 2025-01-20 (`weight_g`, `weight_v`)."""
    return any(name.endswith(f"{_POSITION}.weight_v") for name in names)


def convert_state_dict(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Rename the tensors of a fairseq-signals state dict for this package's models. The tensors are not copied.

    Args:
        tensors: By fairseq-signals name, of a pretrained or fine-tuned model.

    Returns:
        The tensors for `load_state_dict(strict=True)` of `ECGFMForPreTraining` or `ECGFMForMultiLabelClassification`.

    Raises:
        `CheckpointError`: a tensor that the model here does not have, or two tensors for the same one.
    """
    kind = model_kind(tensors)
    renamed: dict[str, torch.Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        ours = _translate(name, kind, to_ours=True)
        if ours is None:
            unknown.append(name)
        elif ours in renamed:
            raise CheckpointError(f"two tensors are named for {ours}; one of them is {name}")
        else:
            renamed[ours] = tensor
    if unknown:
        raise CheckpointError(_unknown_message(unknown, kind))
    return renamed


def revert_state_dict(
    tensors: Mapping[str, torch.Tensor], *, layer_norm_extractor: bool = False, old_weight_norm: bool = False
) -> dict[str, torch.Tensor]:
    """
    Rename tensors of this package for fairseq-signals, the inverse of [`convert_state_dict`], in its parameters' order.

    Args:
        tensors: State dict of `ECGFMForPreTraining` or `ECGFMForMultiLabelClassification`.
        layer_norm_extractor: Whether the model's `feat_extract_norm` is `"layer"`.
        old_weight_norm: Name the position convolution's weights as files before 2025-01-20 do.

    Raises:
        `CheckpointError`: a tensor that fairseq-signals does not have.
    """
    kind: ModelKind = "classification" if "classifier.weight" in tensors else "pretraining"
    layouts = frozenset(
        (
            LAYER_NORM if layer_norm_extractor else GROUP_NORM,
            OLD_WEIGHT_NORM if old_weight_norm else NEW_WEIGHT_NORM,
        )
    )
    renamed = {}
    for name, tensor in tensors.items():
        theirs = _translate(name, kind, to_ours=False, layouts=layouts)
        if theirs is None:
            raise CheckpointError(f"a {kind} model of fairseq-signals has no tensor {name}")
        renamed[theirs] = tensor
    return {name: renamed[name] for name in sorted(renamed, key=lambda name: _rank(name, kind))}


def _rank(name: str, kind: ModelKind) -> tuple[int, int, int, bool]:
    """Return a sorting key by which fairseq-signals' names come in the order of its parameters."""
    pairs = [FAIRSEQ_PREFIX[kind] + pair.fairseq for pair in ENCODER_NAMES]
    pairs += [pair.fairseq for pair in HEAD_NAMES[kind]]
    for rank, (pattern, template) in enumerate(zip(_patterns(kind, True), pairs, strict=True)):
        if match := pattern[0].fullmatch(name):
            # All of a layer comes before the next one.
            group = next(i for i, other in enumerate(pairs) if other.split("{i}")[0] == template.split("{i}")[0])
            return group, int(match.groupdict().get("i") or 0), rank, name.endswith("bias")
    raise ValueError(f"{name} is no tensor of a {kind} model")


def _translate(name: str, kind: ModelKind, *, to_ours: bool, layouts: frozenset[str] | None = None) -> str | None:
    for pattern, template, layout in _patterns(kind, to_ours):
        if layouts is not None and layout is not None and layout not in layouts:
            continue
        match = pattern.fullmatch(name)
        if match is not None:
            return template.format(**match.groupdict())
    return None


@cache
def _patterns(kind: ModelKind, to_ours: bool) -> tuple[tuple[re.Pattern[str], str, str | None], ...]:
    pairs = [NamePair(FAIRSEQ_PREFIX[kind] + pair.fairseq, "ecgfm." + pair.ours, pair.layout) for pair in ENCODER_NAMES]
    pairs.extend(HEAD_NAMES[kind])
    patterns = []
    for pair in pairs:
        source, target = (pair.fairseq, pair.ours) if to_ours else (pair.ours, pair.fairseq)
        expression = (
            re.escape(source).replace(r"\{i\}", r"(?P<i>0|[1-9]\d{0,4})").replace(r"\{p\}", "(?P<p>weight|bias)")
        )
        patterns.append((re.compile(expression), target, pair.layout))
    return tuple(patterns)


def _unknown_message(names: list[str], kind: ModelKind) -> str:
    causes = {
        setting
        for name in names
        for module, setting in _MODULES_OF_SETTINGS.items()
        if name.removeprefix(FAIRSEQ_PREFIX[kind]).startswith(module + ".")
    }
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    because = f"; they come from {', '.join(sorted(causes))}, which this package does not implement" if causes else ""
    return f"{len(names)} tensors do not belong to a {kind} model of this package: {shown}{because}"


@dataclass(frozen=True)
class Architecture:
    """The part of a model's architecture that its tensors show; attributes as in [`ECGFMConfig`]."""

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


def read_architecture(tensors: Mapping[str, torch.Tensor]) -> Architecture:
    """
    Read the sizes of a model off the tensors of a fairseq-signals state dict. Meta tensors are enough.

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
            raise CheckpointError(f"tensor {name} has shape {found}, expected {dimensions} dimensions, none of size 0")
        return found

    def count(pattern: str) -> int:
        numbers = {int(match.group(1)) for name in tensors if (match := re.match(re.escape(prefix) + pattern, name))}
        if not numbers or numbers != set(range(len(numbers))):
            raise CheckpointError(
                f"layers {prefix}{pattern} are numbered {sorted(numbers)}, expected numbers from 0 without gaps"
            )
        return len(numbers)

    convs = [
        shape(f"{prefix}feature_extractor.conv_layers.{i}.0.weight", 3)
        for i in range(count(r"feature_extractor\.conv_layers\.(\d+)\."))
    ]
    first = f"{prefix}feature_extractor.conv_layers.0"
    position = prefix + _POSITION
    direction = "weight_v" if f"{position}.weight_v" in tensors else "parametrizations.weight.original1"
    hidden_size, position_in, position_kernel = shape(f"{position}.{direction}", 3)
    if hidden_size % position_in:
        raise CheckpointError(f"{position}: {hidden_size} channels cannot form groups of {position_in}")
    return Architecture(
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
        quantizer=_quantizer_sizes(shape) if kind == "pretraining" and "quantizer.vars" in tensors else {},
    )


def _quantizer_sizes(shape: Callable[[str, int], tuple[int, ...]]) -> dict[str, int]:
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


__all__ = [
    "FAIRSEQ_PREFIX",
    "Architecture",
    "ModelKind",
    "convert_state_dict",
    "has_old_weight_norm",
    "model_kind",
    "read_architecture",
    "revert_state_dict",
]
