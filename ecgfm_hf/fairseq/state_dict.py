"""Tensor names of fairseq-signals and of this package: one table, read in both directions."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
    """A tensor's two names. `{i}` is a layer's number, `{p}` `weight` or `bias`; `layout` limits it to some files."""

    fairseq: str
    ours: str
    layout: str | None = None


_POSITION = "conv_pos.pos_conv.0"
_POSITION_OURS = "encoder.pos_conv_embed.conv"

ENCODER_NAMES = (
    NamePair("feature_extractor.conv_layers.{i}.0.{p}", "feature_extractor.conv_layers.{i}.conv.{p}"),
    NamePair("feature_extractor.conv_layers.{i}.2.{p}", "feature_extractor.conv_layers.{i}.layer_norm.{p}", GROUP_NORM),
    NamePair(
        "feature_extractor.conv_layers.{i}.2.1.{p}", "feature_extractor.conv_layers.{i}.layer_norm.{p}", LAYER_NORM
    ),
    NamePair("layer_norm.{p}", "feature_projection.layer_norm.{p}"),
    NamePair("post_extract_proj.{p}", "feature_projection.projection.{p}"),
    NamePair("mask_emb", "masked_spec_embed"),
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
    NamePair("encoder.layer_norm.{p}", "encoder.layer_norm.{p}"),
    NamePair("encoder.layers.{i}.self_attn.q_proj.{p}", "encoder.layers.{i}.attention.q_proj.{p}"),
    NamePair("encoder.layers.{i}.self_attn.k_proj.{p}", "encoder.layers.{i}.attention.k_proj.{p}"),
    NamePair("encoder.layers.{i}.self_attn.v_proj.{p}", "encoder.layers.{i}.attention.v_proj.{p}"),
    NamePair("encoder.layers.{i}.self_attn.out_proj.{p}", "encoder.layers.{i}.attention.out_proj.{p}"),
    NamePair("encoder.layers.{i}.self_attn_layer_norm.{p}", "encoder.layers.{i}.layer_norm.{p}"),
    NamePair("encoder.layers.{i}.fc1.{p}", "encoder.layers.{i}.feed_forward.intermediate_dense.{p}"),
    NamePair("encoder.layers.{i}.fc2.{p}", "encoder.layers.{i}.feed_forward.output_dense.{p}"),
    NamePair("encoder.layers.{i}.final_layer_norm.{p}", "encoder.layers.{i}.final_layer_norm.{p}"),
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
# What stands before the encoder's names in a fairseq-signals file; in ours it is `ecgfm.` for both kinds.
FAIRSEQ_PREFIX: dict[ModelKind, str] = {"pretraining": "", "classification": "encoder."}

_MODULES_OF_SETTINGS = {
    "target_glu": "target_glu",
    "input_quantizer": "quantize_input",
    "project_inp": "quantize_input",
}


def model_kind(names: Iterable[str]) -> ModelKind:
    """
    `"classification"` for fairseq-signals names of a fine-tuned classifier, else `"pretraining"`.

    Raises:
        `CheckpointError`: the names are of neither.
    """
    names = set(names)
    if "proj.weight" in names and any(name.startswith("encoder.feature_extractor.") for name in names):
        return "classification"
    if any(name.startswith("feature_extractor.") for name in names):
        return "pretraining"
    shown = ", ".join(sorted(names)[:4])
    raise CheckpointError(f"these are not the tensors of an ECG-FM encoder or classifier (found: {shown}, ...)")


def has_old_weight_norm(names: Iterable[str]) -> bool:
    """Whether fairseq-signals names are those of a file from before 2025-01-20 (`weight_g`, `weight_v`)."""
    return any(name.endswith(f"{_POSITION}.weight_v") for name in names)


def convert_state_dict(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Renames a fairseq-signals state dict for this package's models; the tensors themselves are the same objects.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): With fairseq-signals names, of a pretrained or fine-tuned model.

    Returns:
        `dict[str, torch.Tensor]` for `load_state_dict(strict=True)` of `ECGFMForPreTraining` or
        `ECGFMForMultiLabelClassification`.

    Raises:
        `CheckpointError`: a name that this package has no place for, or two names for one place.
    """
    kind = model_kind(tensors)
    renamed: dict[str, torch.Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        ours = _translate(name, kind, to_ours=True)
        if ours is None:
            unknown.append(name)
        elif ours in renamed:
            raise CheckpointError(f"two tensors would become {ours}; one of them is {name}")
        else:
            renamed[ours] = tensor
    if unknown:
        raise CheckpointError(_unknown_message(unknown, kind))
    return renamed


def revert_state_dict(
    tensors: Mapping[str, torch.Tensor], *, layer_norm_extractor: bool = False, old_weight_norm: bool = False
) -> dict[str, torch.Tensor]:
    """
    The inverse of [`convert_state_dict`].

    Args:
        tensors (`Mapping[str, torch.Tensor]`): State dict of one of this package's two models with heads.
        layer_norm_extractor (`bool`): Whether the model's `feat_extract_norm` is `"layer"`.
        old_weight_norm (`bool`): Name the position convolution's weights as files before 2025-01-20 do.

    Raises:
        `ValueError`: a name that fairseq-signals has no place for.
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
            raise ValueError(f"fairseq-signals has no place for a tensor named {name} in a {kind} model")
        renamed[theirs] = tensor
    return renamed


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
    because = f"; they belong to {', '.join(sorted(causes))}, which is not implemented here" if causes else ""
    return f"{len(names)} tensors have no place in a {kind} model of this package: {shown}{because}"
