"""
An independent evaluation of fairseq-signals weights, to verify converted models.

It is plain tensor arithmetic on the source's own names, and imports nothing of this package's modeling.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoint import CheckpointError

if TYPE_CHECKING:
    from ..modeling_ecgfm import ECGFMForMultiLabelClassification, ECGFMForPreTraining

# Of the largest value. Rounding is near a tenth of this at full size (24 layers of width 1024).
VERIFICATION_TOLERANCE = 1e-5
_EPS = 1e-5


@dataclass(frozen=True)
class ReferenceOutput:
    """
    Outputs of [`reference_forward`].

    Args:
        frames: (batch, frames, width), the encoder's output; padded frames are not zeroed.
        pooled: (batch, width), the published embedding.
        logits: (batch, labels) of a classifier, else `None`.
        frame_mask: (batch, frames) bool, `True` where a frame is valid.
    """

    frames: Tensor
    pooled: Tensor
    logits: Tensor | None
    frame_mask: Tensor


@torch.no_grad()
def reference_forward(
    tensors: Mapping[str, Tensor],
    input_values: Tensor,
    num_samples: Sequence[int] | None = None,
    *,
    strides: Sequence[int],
    heads: int,
    pre_norm: bool,
) -> ReferenceOutput:
    """
    Compute the outputs of fairseq-signals in eval mode, without masking.

    Args:
        tensors: State dict with fairseq-signals names, pretrained or fine-tuned.
        input_values: (batch, leads, samples), standardised segments.
        num_samples: Valid samples of each row; all by default.
        strides, heads, pre_norm: The settings that the tensors do not show.

    Returns:
        The outputs in the input's dtype.
    """
    prefix = "encoder." if "proj.weight" in tensors else ""

    def get(name: str) -> Tensor | None:
        tensor = tensors.get(prefix + name)
        return None if tensor is None else tensor.to(input_values.dtype)

    def weight_of(name: str) -> Tensor:
        return tensors[f"{prefix}{name}.weight"].to(input_values.dtype)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, [x.shape[-1]], get(f"{name}.weight"), get(f"{name}.bias"), _EPS)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weight_of(name), get(f"{name}.bias"))

    x = input_values
    lengths = torch.tensor([x.shape[-1]] * x.shape[0] if num_samples is None else list(num_samples))
    for i, stride in enumerate(strides):
        conv = f"feature_extractor.conv_layers.{i}"
        weight = weight_of(f"{conv}.0")
        x = F.conv1d(x, weight, get(f"{conv}.0.bias"), stride=stride)
        lengths = (lengths - weight.shape[-1]) // stride + 1
        if get(f"{conv}.2.weight") is not None:
            x = F.group_norm(x, x.shape[1], get(f"{conv}.2.weight"), get(f"{conv}.2.bias"), _EPS)
        elif get(f"{conv}.2.1.weight") is not None:
            x = norm(x.transpose(1, 2), f"{conv}.2.1").transpose(1, 2)
        x = F.gelu(x)
    x = norm(x.transpose(1, 2), "layer_norm")
    if get("post_extract_proj.weight") is not None:
        x = linear(x, "post_extract_proj")
    valid = torch.arange(x.shape[1])[None, :] < lengths[:, None]

    x = x + _position(x, get)
    x = x * valid[..., None]
    if not pre_norm:
        x = norm(x, "encoder.layer_norm")
    layer = 0
    while get(f"encoder.layers.{layer}.fc1.weight") is not None:
        name = f"encoder.layers.{layer}"

        def attend(x: Tensor, name: str = f"{name}.self_attn") -> Tensor:
            query, key, value = (
                linear(x, f"{name}.{part}_proj").unflatten(-1, (heads, -1)).transpose(1, 2) for part in "qkv"
            )
            scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
            scores = scores.masked_fill(~valid[:, None, None, :], float("-inf"))
            return linear((scores.softmax(-1) @ value).transpose(1, 2).flatten(2), f"{name}.out_proj")

        def feed(x: Tensor, name: str = name) -> Tensor:
            return linear(F.gelu(linear(x, f"{name}.fc1")), f"{name}.fc2")

        if pre_norm:
            x = x + attend(norm(x, f"{name}.self_attn_layer_norm"))
            x = x + feed(norm(x, f"{name}.final_layer_norm"))
        else:
            x = norm(x + attend(x), f"{name}.self_attn_layer_norm")
            x = norm(x + feed(x), f"{name}.final_layer_norm")
        layer += 1
    if pre_norm:
        x = norm(x, "encoder.layer_norm")

    # fairseq-signals divides each channel by its own number of nonzero values.
    zeroed = x * valid[..., None]
    pooled = zeroed.sum(1) / (zeroed != 0).sum(1)
    logits = None
    if prefix:
        logits = pooled @ tensors["proj.weight"].to(x.dtype).T + tensors["proj.bias"].to(x.dtype)
    return ReferenceOutput(x, pooled, logits, valid)


def _position(x: Tensor, get: Callable[[str], Tensor | None]) -> Tensor:
    """Return the convolutional position embedding of (batch, frames, width). It sees padded frames unchanged."""
    name = "conv_pos.pos_conv.0"
    magnitude, direction = get(f"{name}.weight_g"), get(f"{name}.weight_v")
    if magnitude is None:
        magnitude, direction = (get(f"{name}.parametrizations.weight.original{i}") for i in (0, 1))
    if magnitude is None or direction is None:
        raise CheckpointError(f"tensor {name}.parametrizations.weight.original0 or original1 is missing")
    weight = magnitude * direction / direction.square().sum((0, 1), keepdim=True).sqrt()
    kernel = weight.shape[-1]
    groups = weight.shape[0] // weight.shape[1]
    y = F.conv1d(x.transpose(1, 2), weight, get(f"{name}.bias"), padding=kernel // 2, groups=groups)
    if kernel % 2 == 0:
        y = y[..., :-1]
    return F.gelu(y).transpose(1, 2)


@torch.no_grad()
def verify_conversion(
    model: "ECGFMForPreTraining | ECGFMForMultiLabelClassification",
    tensors: Mapping[str, Tensor],
    channels: Sequence[int] | None = None,
) -> dict[str, float]:
    """
    Compare a converted model with [`reference_forward`] on the same seeded noise.

    Both see two whole segments, then a whole and a padded one.

    Args:
        model: The converted model, on the CPU, in float32.
        tensors: The source's tensors, with fairseq-signals names.
        channels: The source's input channels that the model takes, all by default. The source gets 0 in the others.

    Returns:
        The largest absolute difference of each output, relative to the reference's largest absolute value: `frames`,
        `logits` (classifiers) and the same with `_padded`. Padded frames are not compared.
    """
    config = model.config
    samples = max(2500, 4 * config.min_samples)
    inputs = torch.randn(2, config.num_leads, samples, generator=torch.Generator().manual_seed(0))
    inputs = (inputs - inputs.mean(-1, keepdim=True)) / inputs.std(-1, correction=0, keepdim=True)
    was_training = model.training
    model.eval()
    differences = {}
    for suffix, num_samples in (("", [samples, samples]), ("_padded", [samples, samples * 2 // 3])):
        inside = torch.arange(samples)[None, :] < torch.tensor(num_samples)[:, None]
        segment = inputs * inside[:, None, :]
        whole = segment
        if channels is not None:
            first = next(t for name, t in tensors.items() if name.endswith("feature_extractor.conv_layers.0.0.weight"))
            whole = segment.new_zeros(len(segment), first.shape[1], samples)
            whole[:, list(channels)] = segment
        reference = reference_forward(
            tensors,
            whole,
            num_samples,
            strides=config.conv_stride,
            heads=config.num_attention_heads,
            pre_norm=config.do_stable_layer_norm,
        )
        attention_mask = None if inside.all() else inside.long()
        frames = model.ecgfm(segment, attention_mask=attention_mask).last_hidden_state
        if frames.shape != reference.frames.shape:
            raise CheckpointError(
                f"the model gives frames of shape {tuple(frames.shape)}, the source {tuple(reference.frames.shape)}"
            )
        seen = reference.frame_mask
        differences[f"frames{suffix}"] = _difference(frames[seen], reference.frames[seen])
        if reference.logits is not None:
            logits = model(segment, attention_mask=attention_mask).logits
            differences[f"logits{suffix}"] = _difference(logits, reference.logits)
    model.train(was_training)
    return differences


def _difference(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def check_differences(differences: Mapping[str, float], problem: str) -> None:
    """
    Check the result of [`verify_conversion`].

    Raises:
        `CheckpointError`: a difference above `VERIFICATION_TOLERANCE`; the message begins with `problem`.
    """
    # `not <=` also catches NaN.
    wrong = {name: value for name, value in differences.items() if not value <= VERIFICATION_TOLERANCE}
    if wrong:
        shown = ", ".join(f"{name} {value:.2e}" for name, value in wrong.items())
        raise CheckpointError(f"{problem} by more than {VERIFICATION_TOLERANCE} of the largest value: {shown}")


__all__ = ["VERIFICATION_TOLERANCE", "ReferenceOutput", "check_differences", "reference_forward", "verify_conversion"]
