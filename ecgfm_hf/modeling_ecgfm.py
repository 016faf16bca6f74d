"""
ECG-FM: a wav2vec 2.0-style encoder of 12-lead electrocardiograms, its pretraining objective (W2V + CMSC) and a
classifier.

Sources: Baevski et al. 2020, "wav2vec 2.0"; Oh et al. 2022, "Lead-agnostic self-supervised learning for local and
global representations of electrocardiogram" (the W2V + CMSC + RLM objective); Kiyasseh et al. 2021, "CLOCS" (CMSC);
McKeen et al. 2024, "ECG-FM: an open electrocardiogram foundation model". Outputs agree with fairseq-signals.
"""

import copy
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_ecgfm import ECGFMConfig

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

ModelT = TypeVar("ModelT", bound="ECGFMPreTrainedModel")

# The code in a saved folder, as its config declares it.
AUTO_MAP = {
    "AutoConfig": "configuration_ecgfm.ECGFMConfig",
    "AutoModel": "modeling_ecgfm.ECGFMModel",
    "AutoModelForPreTraining": "modeling_ecgfm.ECGFMForPreTraining",
    "AutoModelForSequenceClassification": "modeling_ecgfm.ECGFMForMultiLabelClassification",
    "AutoModelForAudioClassification": "modeling_ecgfm.ECGFMForMultiLabelClassification",
}
PRETRAINING_HEADS = [r"^quantizer\.", r"^project_q\.", r"^project_hid\."]
CUSTOM_PIPELINES = {
    "ecg-classification": {
        "impl": "pipeline_ecgfm.ECGClassificationPipeline",
        "pt": ["AutoModelForSequenceClassification"],
    }
}

# ----------------------------------------------------------------------------------------------------------------------
# Outputs
# ----------------------------------------------------------------------------------------------------------------------


@dataclass
class ECGFMModelOutput(ModelOutput):
    """
    Output of [`ECGFMModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, frames, hidden_size)`):
            The encoder's output. Values of padded frames are meaningless.
        extract_features (`torch.FloatTensor` of shape `(batch, frames, conv_dim[-1])`):
            Convolutional features after their layer norm: what pretraining quantizes.
        pooler_output (`torch.FloatTensor` of shape `(batch, hidden_size)`):
            The published embedding: the mean over unpadded frames. NaN for a row without a single unpadded frame.
        conv_features (`torch.FloatTensor` of shape `(batch, conv_dim[-1], frames)`):
            Convolutional features before the layer norm: what pretraining's feature penalty acts on.
        hidden_states (tuple of `torch.FloatTensor` of shape `(batch, frames, hidden_size)`, *optional*):
            The input of the first layer and the output of every layer; the last equals `last_hidden_state`.
        attentions (tuple of `torch.FloatTensor` of shape `(batch, heads, frames, frames)`, *optional*):
            Attention weights of every layer, after the softmax.
    """

    last_hidden_state: torch.Tensor | None = None
    extract_features: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    conv_features: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class ECGFMForPreTrainingOutput(ModelOutput):
    """
    Output of [`ECGFMForPreTraining`]. The four parts are weighted and add up to `loss`; all are in nats and per masked
    frame (fairseq-signals sums over masked frames, and logs in bits).

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): The objective; `None` without `mask_time_indices`.
        contrastive_loss, diversity_loss, feature_penalty (`torch.FloatTensor` of shape `()`, *optional*): Its parts.
        cmsc_loss (`torch.FloatTensor` of shape `()`, *optional*): Its CMSC part; `None` without `patient_ids`.
        num_masked_frames (`torch.LongTensor` of shape `()`, *optional*): Masked frames in the batch.
        code_perplexity, prob_perplexity (`torch.FloatTensor` of shape `()`, *optional*):
            Effective number of codes in use, summed over groups, of the hard choices and of the probabilities.
        contrastive_accuracy (`torch.FloatTensor` of shape `()`, *optional*):
            Share of masked frames whose own target is more similar than every negative.
        last_hidden_state, extract_features, pooler_output, hidden_states, attentions:
            As in [`ECGFMModelOutput`], of the masked pass where frames were masked.
    """

    loss: torch.Tensor | None = None
    contrastive_loss: torch.Tensor | None = None
    diversity_loss: torch.Tensor | None = None
    feature_penalty: torch.Tensor | None = None
    cmsc_loss: torch.Tensor | None = None
    num_masked_frames: torch.Tensor | None = None
    code_perplexity: torch.Tensor | None = None
    prob_perplexity: torch.Tensor | None = None
    contrastive_accuracy: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    extract_features: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class ECGFMClassifierOutput(ModelOutput):
    """
    Output of [`ECGFMForMultiLabelClassification`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): Given `labels`.
        logits (`torch.FloatTensor` of shape `(batch, num_labels)`): Before sigmoid, softmax or nothing (regression).
        pooler_output (`torch.FloatTensor` of shape `(batch, hidden_size)`, *optional*):
            The published embedding, also of models with `pooling="attention"`; on request
            (`output_pooler_output=True`).
        hidden_states, attentions: As in [`ECGFMModelOutput`].
        pooler_attentions (`torch.FloatTensor` of shape `(batch, heads, frames)`, *optional*):
            With `pooling="attention"` and `output_attentions=True`: how much each frame counts in each head's average.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    pooler_attentions: torch.Tensor | None = None


# ----------------------------------------------------------------------------------------------------------------------
# Memory and time in training
# ----------------------------------------------------------------------------------------------------------------------


def _draw_kept(shape: torch.Size, probability: float) -> tuple[torch.Tensor, float]:
    """
    Return which values of a shape dropout keeps (one byte each), and the factor that restores their mean; for a CPU.

    torch's own dropout draws one number at a time and keeps its mask as floats. In a pretraining step, the draws take
    6% of the time and the masks 10% of the memory. Here 16 random bits decide each value, so the probability is rounded
    to a multiple of 2^-16.
    """
    dropped_levels = round(probability * 2**16)
    words = torch.empty(-(-shape.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.int16)[: shape.numel()] >= dropped_levels - 2**15
    return kept.view(shape), 2**16 / (2**16 - dropped_levels)


def _draws_bits(device: torch.device, probability: float) -> bool:
    """Return whether to use `_draw_kept`; on other devices and in compiled code torch's own dropout is good."""
    is_drawable = 0 < round(probability * 2**16) < 2**16
    return is_drawable and device.type == "cpu" and not torch.compiler.is_compiling()


class ECGFMDropout(nn.Dropout):
    """Dropout that takes less time and memory on a CPU."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if not self.training or not _draws_bits(values.device, self.p):
            return super().forward(values)
        kept, factor = _draw_kept(values.shape, self.p)
        # In place: the backward pass of a product with a number needs no saved tensor.
        return (values * kept).mul_(factor)


def _recompute(function: Callable[..., torch.Tensor], *inputs: torch.Tensor | None) -> torch.Tensor:
    """
    Return `function(*inputs)`; the backward pass recomputes the operations between `inputs` and the last one.

    For cheap functions before a matrix product: recomputation stops before the product itself, as soon as all saved
    tensors are there. `function` must draw no random numbers.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


# ----------------------------------------------------------------------------------------------------------------------
# Feature encoder
# ----------------------------------------------------------------------------------------------------------------------


class _ScaleGradient(torch.autograd.Function):
    """The identity; the backward pass multiplies the gradient."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.factor, None


class ECGFMGroupNorm(nn.GroupNorm):
    """
    Normalise every channel over time, always in float32.

    With `valid` (batch, positions), the statistics exclude padded positions; the original includes them.
    """

    def forward(self, hidden_states: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        values, weight, bias = hidden_states.float(), self.weight.float(), self.bias.float()
        if valid is None:
            normalised = F.group_norm(values, self.num_groups, weight, bias, self.eps)
        else:
            valid = valid[:, None, :].float()
            count = valid.sum(-1, keepdim=True)
            mean = (values * valid).sum(-1, keepdim=True) / count
            variance = ((values - mean).square() * valid).sum(-1, keepdim=True) / count
            normalised = (values - mean) * torch.rsqrt(variance + self.eps) * weight[:, None] + bias[:, None]
        return normalised.to(hidden_states.dtype)


class ECGFMChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of (batch, channels, positions), in float32."""

    def forward(self, hidden_states: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        values = hidden_states.transpose(1, 2).float()
        values = F.layer_norm(values, self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return values.transpose(1, 2).to(hidden_states.dtype)


class ECGFMConvLayer(nn.Module):
    """Convolution, optional norm, activation."""

    def __init__(self, config: ECGFMConfig, layer: int):
        super().__init__()
        channels_in = config.conv_dim[layer - 1] if layer > 0 else config.num_leads
        channels_out = config.conv_dim[layer]
        self.conv = nn.Conv1d(
            channels_in,
            channels_out,
            kernel_size=config.conv_kernel[layer],
            stride=config.conv_stride[layer],
            bias=config.conv_bias,
        )
        self.layer_norm: ECGFMChannelLayerNorm | ECGFMGroupNorm | None
        if config.feat_extract_norm == "layer":
            self.layer_norm = ECGFMChannelLayerNorm(channels_out, eps=config.layer_norm_eps)
        elif layer == 0:
            self.layer_norm = ECGFMGroupNorm(channels_out, channels_out, eps=config.layer_norm_eps)
        else:
            self.layer_norm = None
        self.activation = ACT2FN[config.feat_extract_activation]

    def forward(self, hidden_states: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        hidden_states = self.conv(hidden_states)
        if self.layer_norm is not None:
            hidden_states = self.layer_norm(hidden_states, valid)
        return self.activation(hidden_states)


class ECGFMFeatureEncoder(nn.Module):
    """Strided convolutions: (batch, leads, samples) to (batch, conv_dim[-1], frames)."""

    def __init__(self, config: ECGFMConfig):
        super().__init__()
        self.config = config
        self.conv_layers = nn.ModuleList(ECGFMConvLayer(config, i) for i in range(len(config.conv_dim)))

    def forward(self, input_values: torch.Tensor, num_samples: torch.Tensor | None = None) -> torch.Tensor:
        """`num_samples` (batch,) counts valid samples; it is used only with `config.padding_safe`."""
        valid = None
        if num_samples is not None and self.config.padding_safe:
            valid = _valid_positions(
                self.config.num_frames(num_samples, 1), self.config.num_frames(input_values.shape[-1], 1)
            )
        if self.training:
            # The first convolutions' outputs, 1250 positions long, are the cheapest to recompute in training.
            hidden_states = _recompute(self._convolve, input_values, valid)
        else:
            hidden_states = self._convolve(input_values, valid)
        factor = float(self.config.feature_grad_multiplier)
        # A traced program computes no gradients, and cannot hold the function.
        if hidden_states.requires_grad and 0.0 < factor != 1.0 and not torch.jit.is_tracing():
            hidden_states = _ScaleGradient.apply(hidden_states, factor)
        return hidden_states

    def _convolve(self, hidden_states: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        for layer in self.conv_layers:
            hidden_states = layer(hidden_states, valid)
        return hidden_states


class ECGFMFeatureProjection(nn.Module):
    """Layer norm, a linear map to the encoder's width (none if the widths are equal), dropout."""

    def __init__(self, config: ECGFMConfig):
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        same_width = config.conv_dim[-1] == config.hidden_size
        self.projection = None if same_width else nn.Linear(config.conv_dim[-1], config.hidden_size)
        self.dropout = ECGFMDropout(config.feat_proj_dropout)

    def forward(self, conv_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, channels, frames) to hidden states (batch, frames, hidden_size) and the normed features."""
        extract_features = self.layer_norm(conv_features.transpose(1, 2))
        hidden_states = extract_features if self.projection is None else self.projection(extract_features)
        return self.dropout(hidden_states), extract_features


# ----------------------------------------------------------------------------------------------------------------------
# Transformer encoder
# ----------------------------------------------------------------------------------------------------------------------


def _linear(in_features: int, out_features: int, weight_init: Callable[[torch.Tensor], torch.Tensor]) -> nn.Linear:
    # `_init_weights` gets a module without its position in the model, so its parent declares the initialisation.
    linear = nn.Linear(in_features, out_features)
    linear.weight_init = weight_init  # type: ignore[assignment]  # torch declares attributes as tensors and modules
    return linear


class ECGFMPositionalConv(nn.Conv1d):
    """
    A convolution of stride 1, equal to `nn.Conv1d` and faster on a CPU.

    Only its own `forward` uses its parameters, so hooks that provide them there work: offloading, sharding, adapters.
    """

    padding: tuple[int, ...]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._spectrum: tuple[torch.Tensor, int, torch.Tensor] | None = None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        in_frequencies = (
            hidden_states.device.type == "cpu"
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
        )
        return self._convolve_spectra(hidden_states) if in_frequencies else self._convolve(hidden_states)

    def _convolve(self, hidden_states: torch.Tensor) -> torch.Tensor:
        is_narrow = hidden_states.device.type == "cpu" and self.in_channels < 16 * self.groups
        if is_narrow and (hidden_states.dtype.itemsize == 2 or torch.is_autocast_enabled("cpu")):
            # With AMX, oneDNN 3.12 returns other numbers for so few channels a group, which only tiny models have.
            bias = None if self.bias is None else self.bias.float()
            with torch.autocast("cpu", enabled=False):
                positions = self._conv2d(hidden_states.float(), self.weight.float(), bias)
            return positions.to(hidden_states.dtype)
        return self._conv2d(hidden_states, self.weight, self.bias)

    def _conv2d(self, hidden_states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        # Hidden states are (batch, frames, width) in memory, which is channels-last order: oneDNN convolves that more
        # than twice as fast as conv1d.
        positions = F.conv2d(
            hidden_states.unsqueeze(2),
            weight.unsqueeze(2).contiguous(memory_format=torch.channels_last),
            bias,
            padding=(0, self.padding[0]),
            groups=self.groups,
        )
        return positions.squeeze(2)

    def _convolve_spectra(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Convolve by a Fourier transform: a third of the time, since the kernel's spectrum is cached."""
        batch, _, num_frames = hidden_states.shape
        spectrum, length = self._kernel_spectrum(num_frames)
        # Zeros before the frames are the convolution's padding; zeros after them prevent wrap-around.
        values = F.pad(hidden_states.transpose(1, 2).float(), (0, 0, self.padding[0], 0))
        values = torch.fft.rfft(values, n=length, dim=1)
        values = values.view(batch, len(spectrum), self.groups, -1).permute(1, 2, 0, 3)
        if batch == 1:
            # A product with one row takes another kernel, which rounds differently. In 16 bits this would change scores
            # by the size of the batch.
            values = values.expand(-1, -1, 2, -1)
        values = torch.matmul(values, spectrum)[:, :, :batch]
        values = values.permute(2, 0, 1, 3).reshape(batch, len(spectrum), self.out_channels)
        num_positions = num_frames + 2 * self.padding[0] - self.kernel_size[0] + 1
        positions = torch.fft.irfft(values, n=length, dim=1)[:, :num_positions]
        if self.bias is not None:
            positions = positions + self.bias
        return positions.to(hidden_states.dtype).transpose(1, 2)

    def _kernel_spectrum(self, num_frames: int) -> tuple[torch.Tensor, int]:
        """
        Return the kernel's conjugated spectrum (frequencies, groups, in, out), and the length of the transform.

        It is cached until the weight changes. The whole weight is compared, since a change through `.data` is not
        visible otherwise. For offloaded weights nothing is cached.
        """
        weight, needed = self.weight, num_frames + self.kernel_size[0] - 1
        is_offloaded = any(parameter.is_meta for parameter in self.parameters())
        if self._spectrum is not None and not is_offloaded:
            spectrum, length, made_of = self._spectrum
            if length >= needed and made_of.dtype == weight.dtype and _have_same_bits(made_of, weight):
                return spectrum, length
        # A multiple of 32 has only small factors at these sizes.
        length = -(-needed // 32) * 32
        kernel = torch.fft.rfft(weight.float(), n=length).conj()
        kernel = kernel.view(self.groups, -1, *kernel.shape[1:]).permute(3, 0, 2, 1)
        spectrum = kernel.resolve_conj().contiguous()
        self._spectrum = None if is_offloaded else (spectrum, length, weight.detach().clone())
        return spectrum, length

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple:
        if not parametrize.is_parametrized(self):
            return super().__reduce_ex__(protocol)
        # torch gives each parametrized module its own class and hook, which cannot be pickled.
        left_out = ("_spectrum", "_load_state_dict_pre_hooks")
        state = {name: value for name, value in vars(self).items() if name not in left_out}
        return _positional_conv, (self.in_channels, self.kernel_size[0], self.groups), state


def _have_same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Compare two tensors of one type as whole numbers of 64 bits, which torch does two to four times as fast."""
    wide = [
        tensor.detach().view(-1).view(torch.int64)
        for tensor in (first, second)
        if tensor.is_contiguous()
        and all(count * tensor.element_size() % 8 == 0 for count in (tensor.numel(), tensor.storage_offset()))
    ]
    return torch.equal(*wide) if len(wide) == 2 else torch.equal(first, second)


def _positional_conv(width: int, kernel_size: int, groups: int) -> nn.Conv1d:
    conv = ECGFMPositionalConv(width, width, kernel_size, padding=kernel_size // 2, groups=groups)
    return weight_norm(conv, name="weight", dim=2)


class ECGFMPositionalConvEmbedding(nn.Module):
    """A relative position embedding: a convolution over frames, then an activation."""

    def __init__(self, config: ECGFMConfig):
        super().__init__()
        self.conv = _positional_conv(
            config.hidden_size, config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
        )
        self.activation = ACT2FN[config.feat_extract_activation]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        positions = self.conv(hidden_states.transpose(1, 2)).transpose(1, 2)
        # An even kernel gives one frame too many.
        return self.activation(positions[:, : hidden_states.shape[1]])


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    output_attentions: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Attention as two matrix products, with the softmax in float32; `attention_mask` is True for visible frames.

    Training multiplies queries and keys twice instead of keeping scores and weights for the backward pass, which would
    be a third of a layer's memory. With `output_attentions` the weights before dropout are returned.
    """

    def attention_weights(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        scores = torch.matmul(query * scaling, key.transpose(2, 3))
        if attention_mask is not None:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        return F.softmax(scores, dim=-1, dtype=torch.float32)

    if module.training and dropout > 0 and not output_attentions and _draws_bits(query.device, dropout):
        # Drawn once: the recomputation must use the same dropout.
        kept, factor = _draw_kept(query.shape[:-1] + key.shape[-2:-1], dropout)

        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            weights = (attention_weights(query, key) * kept).mul_(factor)
            return torch.matmul(weights.to(value.dtype), value)

        return _recompute(attend, query, key, value).transpose(1, 2), None
    weights = attention_weights(query, key).to(query.dtype)
    output = torch.matmul(F.dropout(weights, p=dropout, training=module.training), value)
    return output.transpose(1, 2), weights


class ECGFMAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: ECGFMConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        weight_init = partial(init.normal_, std=config.initializer_range)
        self.q_proj = _linear(config.hidden_size, config.hidden_size, weight_init)
        self.k_proj = _linear(config.hidden_size, config.hidden_size, weight_init)
        self.v_proj = _linear(config.hidden_size, config.hidden_size, weight_init)
        self.out_proj = _linear(config.hidden_size, config.hidden_size, weight_init)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: "torch.Tensor | BlockMask | None" = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = hidden_states.shape[:-1]
        query, key, value = (
            projection(hidden_states).view(*shape, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        implementation = self.config._attn_implementation
        dropout = self.config.attention_dropout if self.training else 0.0
        # Only eager attention can return weights. And on a CPU, torch's fused kernel is slower than two matrix products
        # in 16 bits, and has no dropout.
        slow_fused_kernel = query.device.type == "cpu" and (query.dtype.itemsize == 2 or dropout > 0)
        if output_attentions or (slow_fused_kernel and implementation == "sdpa"):
            implementation = "eager"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=dropout,
            output_attentions=output_attentions,
        )
        return self.out_proj(output.reshape(*shape, -1)), weights if output_attentions else None


class ECGFMFeedForward(nn.Module):
    def __init__(self, config: ECGFMConfig):
        super().__init__()
        weight_init = partial(init.normal_, std=config.initializer_range)
        self.intermediate_dense = _linear(config.hidden_size, config.intermediate_size, weight_init)
        self.activation = ACT2FN[config.hidden_act]
        self.intermediate_dropout = ECGFMDropout(config.activation_dropout)
        self.output_dense = _linear(config.intermediate_size, config.hidden_size, weight_init)
        self.output_dropout = ECGFMDropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.intermediate_dense(hidden_states)
        if self.training and self.intermediate_dropout.p == 0:
            # The activation's output is a seventh of a layer's memory, and recomputing it takes 1% of its time. Drawing
            # the numbers of a dropout again would take 3%.
            hidden_states = _recompute(self._second_half, hidden_states)
        else:
            hidden_states = self._second_half(hidden_states)
        return self.output_dropout(hidden_states)

    def _second_half(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.output_dense(self.intermediate_dropout(self.activation(hidden_states)))


class ECGFMEncoderLayer(GradientCheckpointingLayer):
    """A transformer layer, post-norm as published or pre-norm (`do_stable_layer_norm`)."""

    def __init__(self, config: ECGFMConfig):
        super().__init__()
        self.pre_norm = config.do_stable_layer_norm
        self.attention = ECGFMAttention(config)
        self.dropout = ECGFMDropout(config.hidden_dropout)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = ECGFMFeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: "torch.Tensor | BlockMask | None" = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.pre_norm:
            attended, weights = self.attention(self.layer_norm(hidden_states), attention_mask, output_attentions)
            hidden_states = hidden_states + self.dropout(attended)
            hidden_states = hidden_states + self.feed_forward(self.final_layer_norm(hidden_states))
        else:
            attended, weights = self.attention(hidden_states, attention_mask, output_attentions)
            hidden_states = self.layer_norm(hidden_states + self.dropout(attended))
            hidden_states = self.final_layer_norm(hidden_states + self.feed_forward(hidden_states))
        return hidden_states, weights


class ECGFMEncoder(nn.Module):
    """Position embedding and transformer layers."""

    def __init__(self, config: ECGFMConfig):
        super().__init__()
        self.config = config
        self.pos_conv_embed = ECGFMPositionalConvEmbedding(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = ECGFMDropout(config.hidden_dropout)
        self.layers = nn.ModuleList(ECGFMEncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        hidden_states: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None, tuple[torch.Tensor, ...] | None]:
        """
        Encode (batch, frames, hidden_size) given the mask of valid frames (batch, frames).

        Returns the last hidden state and, if requested, all hidden states and attention weights. As in the original,
        padded frames are zeroed only after the position embedding is added. `config.padding_safe` zeroes them before
        as well.
        """
        if frame_mask is not None and self.config.padding_safe:
            hidden_states = hidden_states.masked_fill(~frame_mask[..., None], 0.0)
        hidden_states = hidden_states + self.pos_conv_embed(hidden_states)
        if frame_mask is not None:
            hidden_states = hidden_states.masked_fill(~frame_mask[..., None], 0.0)
        if not self.config.do_stable_layer_norm:
            hidden_states = self.layer_norm(hidden_states)
        hidden_states = self.dropout(hidden_states)

        attention_mask = self._attention_mask(hidden_states, frame_mask, output_attentions)
        if self._needs_gradient_at_input(hidden_states):
            hidden_states.requires_grad_(True)
        all_hidden_states, all_attentions = [], []
        for layer in self.layers:
            all_hidden_states.append(hidden_states)
            if self.training and self.config.layerdrop > 0 and torch.rand(()) < self.config.layerdrop:
                continue
            hidden_states, weights = layer(hidden_states, attention_mask, output_attentions)
            all_attentions.append(weights)
        if self.config.do_stable_layer_norm:
            hidden_states = self.layer_norm(hidden_states)
        all_hidden_states.append(hidden_states)
        return (
            hidden_states,
            tuple(all_hidden_states) if output_hidden_states else None,
            tuple(all_attentions) if output_attentions else None,
        )

    def _needs_gradient_at_input(self, hidden_states: torch.Tensor) -> bool:
        """
        Return whether checkpointed layers are trained while no weight before them is, as with adapters.

        Reentrant checkpointing gives weights a gradient only where an input of the layer has one.
        """
        return (
            self.training
            and torch.is_grad_enabled()
            and not hidden_states.requires_grad
            and any(layer.gradient_checkpointing for layer in self.layers)
            and any(parameter.requires_grad for parameter in self.layers.parameters())
        )

    def _attention_mask(
        self, hidden_states: torch.Tensor, frame_mask: torch.Tensor | None, output_attentions: bool
    ) -> "torch.Tensor | BlockMask | None":
        if frame_mask is None:
            return None
        if output_attentions or self.config._attn_implementation in ("eager", "sdpa"):
            # Broadcast over heads and queries. transformers' function would build the whole square and, outside
            # tracing, read the mask's values first.
            return frame_mask[:, None, None, :]
        return create_bidirectional_mask(self.config, hidden_states, frame_mask)


def _valid_positions(num_valid: torch.Tensor, length: int) -> torch.Tensor:
    """Return a bool mask (batch, length), True at the first `num_valid` (batch,) positions."""
    return torch.arange(length, device=num_valid.device)[None, :] < num_valid[:, None]


def _mean_over_frames(hidden_states: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
    # The original divides each channel by its count of values that are not zero, not by the number of valid frames.
    hidden_states = hidden_states.float()
    if frame_mask is not None:
        hidden_states = hidden_states.masked_fill(~frame_mask[..., None], 0.0)
    return hidden_states.sum(dim=1) / (hidden_states != 0).sum(dim=1)


class ECGFMAttentionPooler(nn.Module):
    """
    Average frames by the attention of one learned query: (batch, frames, hidden_size) to (batch, hidden_size).

    Multi-head cross-attention without biases and without an output projection, which the linear head after it is. Its
    query, keys and values have the form of the attentive probe of V-JEPA (Bardes et al. 2024, "Revisiting feature
    prediction for learning visual representations from video"), as in the ECG benchmark of Al-Masud et al. (ICLR 2026).
    It needs frames only, so it can be trained on the stored frames of a frozen encoder.

    Args:
        config ([`ECGFMConfig`]):
            `hidden_size`, `num_attention_heads` and, for the initial weights, `initializer_range` count.
    """

    def __init__(self, config: ECGFMConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.initializer_range = config.initializer_range
        width = config.hidden_size
        self.query = nn.Parameter(torch.empty(width))
        self.key = nn.Parameter(torch.empty(width, width))
        self.value = nn.Parameter(torch.empty(width, width))
        self.initialize()

    def initialize(self) -> None:
        """Draw query, keys and values from a normal distribution, as V-JEPA does with a deviation of 0.02."""
        for parameter in self.parameters():
            init.normal_(parameter, std=self.initializer_range)

    def forward(
        self, frames: torch.Tensor, frame_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            frames (`torch.Tensor` of shape `(batch, frames, hidden_size)`): The encoder's output.
            frame_mask (`torch.BoolTensor` of shape `(batch, frames)`, *optional*): False for padded frames.

        Returns:
            the average (batch, hidden_size), and the weight of each frame in each head (batch, heads, frames). Both are
            NaN for a row without a single unpadded frame.
        """
        query, key, value = (
            weight.view(self.num_heads, -1, *weight.shape[1:]) for weight in (self.query, self.key, self.value)
        )
        # One query: its product with the keys' matrix is a direction for each head, and averages are taken before the
        # values' matrix. So no matrix product with all frames is needed.
        direction = torch.einsum("hd,hdi->hi", query, key) / math.sqrt(query.shape[-1])
        scores = torch.einsum("hi,bfi->bhf", direction, frames).float()
        if frame_mask is not None:
            frames = frames.masked_fill(~frame_mask[..., None], 0.0)
            scores = scores.masked_fill(~frame_mask[:, None, :], -math.inf)
        weights = F.softmax(scores, dim=-1).to(frames.dtype)
        average = torch.einsum("bhf,bfi->bhi", weights, frames)
        return torch.einsum("hdi,bhi->bhd", value, average).flatten(1), weights


# ----------------------------------------------------------------------------------------------------------------------
# Models
# ----------------------------------------------------------------------------------------------------------------------


def _check_unused(arguments: dict[str, None]) -> None:
    """Refuse unknown arguments. PEFT's classes for a `task_type` pass arguments of language models as None."""
    for name, value in arguments.items():
        if value is not None or name not in ("input_ids", "inputs_embeds"):
            raise TypeError(f"forward() got an unexpected keyword argument {name!r}")


def _sample(weights: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return 256 numbers or more of each weight; None if one is quantised or sharded."""
    if not all(type(weight.data) is torch.Tensor and weight.is_floating_point() for weight in weights):
        return None
    return torch.cat([weight.flatten()[:: max(1, weight.numel() // 256)].cpu() for weight in weights])


def _rounded_hash(sample: torch.Tensor | None, rounded_to: torch.dtype) -> str:
    """Return a hash of numbers rounded to bfloat16, after rounding to another type; empty if there are none."""
    if sample is None:
        return ""
    digest = hashlib.sha256()
    for part in sample.split(1 << 14):  # torch would convert more in several threads, whose start takes milliseconds
        digest.update(part.to(rounded_to).to(torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


def _copy_code(source: Path, target: Path) -> None:
    if source.resolve() != target.resolve():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


class ECGFMPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation that all ECG-FM models share."""

    config: ECGFMConfig
    config_class = ECGFMConfig
    base_model_prefix = "ecgfm"
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    # No **kwargs in `forward` and no `num_items_in_batch`: the Trainer then scales the loss itself.
    accepts_loss_kwargs = False
    # The weights of the second are computed from two tensors together.
    _no_split_modules = ["ECGFMEncoderLayer", "ECGFMPositionalConvEmbedding"]
    _supports_sdpa = True
    # Both go through the attention interface. Flash attention is untested: it needs a GPU. Flex attention has been
    # run on a CPU only.
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """
        Initialise as the original does, from scratch and for keys missing from a checkpoint.

        transformers skips modules that have no tensor of their own, so each branch names the owner of the tensor.
        """
        if isinstance(module, parametrize.ParametrizationList):
            # Weight norm of the position embedding: the direction has the original's deviation, the magnitude is its
            # norm, so that the effective weight equals the direction. Writing to `conv.weight` would do nothing.
            magnitude, direction = module.parameters()
            init.normal_(direction, std=2.0 / math.sqrt(direction.shape[0] * direction.shape[-1]))
            init.copy_(magnitude, torch.linalg.vector_norm(direction, dim=(0, 1), keepdim=True))
        elif isinstance(module, nn.Conv1d) and parametrize.is_parametrized(module):
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d):
            init.kaiming_normal_(module.weight)
            if module.bias is not None:
                bound = 1.0 / math.sqrt(module.weight.shape[1] * module.weight.shape[2])
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Linear) and callable(weight_init := getattr(module, "weight_init", None)):
            weight_init(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = 1.0 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ECGFMGumbelQuantizer):
            init.uniform_(module.codevectors)
        elif isinstance(module, ECGFMAttentionPooler):
            module.initialize()
        elif isinstance(module, ECGFMModel) and module.masked_spec_embed is not None:
            init.uniform_(module.masked_spec_embed)

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """
        Save as in transformers, and copy the code into the folder.

        So the folder loads without this package (`trust_remote_code=True`), under every Auto class and as a pipeline.
        A subclass is saved as the class of this package that it derives from, unless `register_for_auto_class` was
        called for it. Then the folder names the subclass and has its file too.
        """
        self._stamp_fitted()
        # The class that this file has code for: this one or its base.
        own = next(each for each in type(self).__mro__ if f"modeling_ecgfm.{each.__name__}" in AUTO_MAP.values())
        # transformers would name only the class being saved, and AutoModel would then fail on a classifier.
        self.config.auto_map = dict(AUTO_MAP)
        if type(self) is not own:
            if is_main_process:
                _copy_code(Path(__file__), Path(save_directory) / "modeling_ecgfm.py")
            if self._auto_class is None:
                self.config.saved_as = own.__name__
            else:
                module = type(self).__module__.rpartition(".")[-1]
                for auto_class, code in AUTO_MAP.items():
                    if code == f"modeling_ecgfm.{own.__name__}":
                        self.config.auto_map[auto_class] = f"{module}.{type(self).__name__}"
        # Run as remote code, this file may be the only one in transformers' cache; the model's folder has the
        # pipeline's code.
        places = [Path(__file__).parent, *([Path(self.config._name_or_path)] if self.config._name_or_path else [])]
        pipeline_code = next((p for place in places if (p := place / "pipeline_ecgfm.py").is_file()), None)
        if pipeline_code is not None:
            self.config.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)
            if is_main_process:
                _copy_code(pipeline_code, Path(save_directory) / pipeline_code.name)
        elif hasattr(self.config, "custom_pipelines"):
            del self.config.custom_pipelines
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        # safetensors (0.8) makes weights readable only for their owner; give them the mode of the other files.
        config_file = Path(save_directory) / "config.json"
        for weights in Path(save_directory).glob("*.safetensors"):
            if config_file.is_file():
                weights.chmod(config_file.stat().st_mode)

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        # Inherited, it would have a subclass's file copied into every folder.
        cls._auto_class = None

    def __init__(self, config: ECGFMConfig, *args: Any, **kwargs: Any):
        # Validate what was assigned after the config was made, so that a contradiction does not first show at a save.
        config.validate()
        super().__init__(config, *args, **kwargs)

    def post_init(self) -> None:
        super().post_init()
        self._freeze_untrained()

    @classmethod
    def from_pretrained(cls: type[ModelT], *args: Any, **kwargs: Any) -> ModelT:
        """Load as in transformers, which makes every weight trainable, and freeze again what the config freezes."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._freeze_untrained()
        model.check_fitted()
        return loaded

    def _freeze_untrained(self) -> None:
        """
        Freeze weights that get no gradient: distributed training waits for the gradient of every trainable weight.

        The graph stays, since saliency needs the input's gradient.
        """
        if self.config.feature_grad_multiplier <= 0:
            self.freeze_feature_encoder()

    def check_fitted(self, *, before_quantising: bool = False) -> None:
        """
        Drop thresholds and calibration that were fitted to other weights, with a warning.

        Matrices can only be compared before they are quantised; `before_quantising` records that this call did it.
        """

    def _stamp_fitted(self) -> None:
        """Record in the config which weights its thresholds and calibration belong to."""

    def freeze_feature_encoder(self) -> None:
        """Freeze the convolutions; layer norm, projection and position embedding stay trainable."""
        self.base_model.feature_extractor.requires_grad_(False)

    def freeze_base_model(self) -> None:
        """Stops training the encoder; only a head is trained."""
        self.base_model.requires_grad_(False)

    def enable_input_require_grads(self) -> None:
        """PEFT calls this; the encoder needs no hook, see [`ECGFMEncoder._needs_gradient_at_input`]."""

    def disable_input_require_grads(self) -> None:
        """As in transformers."""

    def get_input_embeddings(self) -> None:  # type: ignore[override]  # transformers declares a module
        """Return None: there is no embedding table. Quantised loading calls this."""
        return None


class ECGFMModel(ECGFMPreTrainedModel):
    """
    The ECG-FM encoder: standardised segments in, frames and the published embedding out. It has no head.

    Inherits from `PreTrainedModel` (loading, saving, resizing and pushing) and is a `torch.nn.Module`.

    Args:
        config ([`ECGFMConfig`]):
            Architecture and settings. A model made from a config has random weights; `from_pretrained` loads weights.
    """

    # AutoModel also loads the encoder from folders of the other two classes, without their heads.
    _keys_to_ignore_on_load_unexpected = [*PRETRAINING_HEADS, r"^classifier\.", r"^pooler\."]
    masked_spec_embed: nn.Parameter | None

    def __init__(self, config: ECGFMConfig):
        super().__init__(config)
        self.feature_extractor = ECGFMFeatureEncoder(config)
        self.feature_projection = ECGFMFeatureProjection(config)
        # As in Wav2Vec2, only if masking is configured: fine-tuned checkpoints have no mask embedding.
        embed = nn.Parameter(torch.empty(config.hidden_size).uniform_()) if config.mask_time_prob > 0 else None
        self.register_parameter("masked_spec_embed", embed)
        self.encoder = ECGFMEncoder(config)
        self.post_init()

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **unused: None,
    ) -> ECGFMModelOutput | tuple:
        """
        Args:
            input_values (`torch.FloatTensor` of shape `(batch, num_leads, samples)`):
                Segments from `ECGFMFeatureExtractor`: 500 Hz, standardised per lead. Any length from
                `config.min_samples`.
            attention_mask (`torch.Tensor` of shape `(batch, samples)`, *optional*):
                1 for samples, 0 for padding, which has to be at the end.
            mask_time_indices (`torch.BoolTensor` of shape `(batch, frames)`, *optional*):
                Frames to replace by the mask embedding. Nothing is masked without it, in training or not.
            output_attentions, output_hidden_states, return_dict (`bool`, *optional*):
                As in transformers; the default is the config's. With `output_attentions`, attention is always eager.

        Returns:
            [`ECGFMModelOutput`]

        Raises:
            `ValueError`: wrong shapes, too few samples, a mask for a model without mask embedding.

        Example:

            >>> import torch
            >>> from ecgfm_hf import ECGFMConfig, ECGFMModel
            >>> config = ECGFMConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
            >>> model = ECGFMModel(config).eval()  # from_pretrained(FOLDER) loads weights
            >>> input_values = torch.randn(2, 12, 2500)  # from the feature extractor
            >>> with torch.no_grad():
            ...     output = model(input_values)
            >>> output.last_hidden_state.shape, output.pooler_output.shape
            (torch.Size([2, 156, 32]), torch.Size([2, 32]))
        """
        _check_unused(unused)
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return_dict = config.return_dict if return_dict is None else return_dict

        num_samples = self._check_inputs(input_values, attention_mask)
        conv_features = self.feature_extractor(input_values.to(self.dtype), num_samples)
        hidden_states, extract_features = self.feature_projection(conv_features)
        num_frames = hidden_states.shape[1]
        if mask_time_indices is not None:
            hidden_states = self._mask(hidden_states, mask_time_indices)
        frame_mask = None
        if num_samples is not None:
            frame_mask = _valid_positions(config.num_frames(num_samples), num_frames)
        last_hidden_state, all_hidden_states, all_attentions = self.encoder(
            hidden_states, frame_mask, output_attentions, output_hidden_states
        )
        output = ECGFMModelOutput(
            last_hidden_state=last_hidden_state,
            extract_features=extract_features,
            pooler_output=_mean_over_frames(last_hidden_state, frame_mask).to(last_hidden_state.dtype),
            conv_features=conv_features,
            hidden_states=all_hidden_states,
            attentions=all_attentions,
        )
        return output if return_dict else output.to_tuple()

    def _check_inputs(self, input_values: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """Check shapes and return the number of valid samples in each row; `None` if nothing is padded."""
        config = self.config
        if input_values.ndim != 3 or input_values.shape[1] != config.num_leads:
            raise ValueError(
                f"input_values must have shape (batch, {config.num_leads} leads, samples), "
                f"found: {tuple(input_values.shape)}"
            )
        if input_values.shape[2] < config.min_samples:
            raise ValueError(
                f"input_values must hold at least {config.min_samples} samples, found: {input_values.shape[2]}"
            )
        if attention_mask is None:
            return None
        expected = (input_values.shape[0], input_values.shape[2])
        if tuple(attention_mask.shape) != expected:
            raise ValueError(
                f"attention_mask must have shape (batch, samples) = {expected}, found: {tuple(attention_mask.shape)}"
            )
        return attention_mask.long().sum(dim=-1)

    def _mask(self, hidden_states: torch.Tensor, mask_time_indices: torch.Tensor) -> torch.Tensor:
        if self.masked_spec_embed is None:
            raise ValueError("mask_time_indices needs a mask embedding; this model's config has mask_time_prob = 0")
        if mask_time_indices.shape != hidden_states.shape[:2]:
            raise ValueError(
                f"mask_time_indices must have shape (batch, frames) = {tuple(hidden_states.shape[:2])}, "
                f"found: {tuple(mask_time_indices.shape)}"
            )
        embed = self.masked_spec_embed.to(hidden_states.dtype)
        mask = mask_time_indices.to(hidden_states.device, non_blocking=True).bool()
        return torch.where(mask[..., None], embed, hidden_states)


class ECGFMGumbelQuantizer(nn.Module):
    """
    Product quantizer with a Gumbel softmax: hard straight-through choices in training, the arg max in evaluation.

    Source: Baevski et al. 2020; Jang et al. 2017, "Categorical reparameterization with Gumbel-softmax".
    """

    def __init__(self, config: ECGFMConfig):
        super().__init__()
        self.num_groups = config.num_codevector_groups
        self.num_codes = config.num_codevectors_per_group
        width = config.codevector_dim // self.num_groups
        self.codevectors = nn.Parameter(torch.empty(1, self.num_groups * self.num_codes, width).uniform_())
        self.weight_proj = _linear(
            config.conv_dim[-1], self.num_groups * self.num_codes, partial(init.normal_, std=1.0)
        )
        self.temperature = float(config.max_gumbel_temperature)

    def forward(
        self, features: torch.Tensor, gumbel_noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            features (`torch.Tensor` of shape `(..., conv_dim[-1])`)
            gumbel_noise (`torch.Tensor` of shape `(..., groups, codes)`, *optional*): drawn in training if absent.

        Returns:
            quantized features `(..., codevector_dim)`, codes `(..., groups)`, code perplexity, probability perplexity.
        """
        logits = self.weight_proj(features).unflatten(-1, (self.num_groups, self.num_codes)).float()
        codevectors = self.codevectors.view(self.num_groups, self.num_codes, -1)
        hard = logits.argmax(dim=-1)
        if self.training:
            if gumbel_noise is None:
                gumbel_noise = -torch.empty_like(logits).exponential_().log()
            soft = F.softmax((logits + gumbel_noise.view_as(logits)) / self.temperature, dim=-1)
            codes = soft.argmax(dim=-1)
            one_hot = F.one_hot(codes, self.num_codes).to(soft.dtype)
            choice = (one_hot - soft.detach() + soft).to(codevectors.dtype)
            # One matrix product for each group; the original multiplies every code vector with every frame.
            quantized = torch.einsum("...gc,gcw->...gw", choice, codevectors)
        else:
            codes = hard
            groups = torch.arange(self.num_groups, device=codes.device)
            quantized = codevectors[groups, codes]

        frame_dims = tuple(range(logits.ndim - 2))
        code_perplexity = self._perplexity(F.one_hot(hard, self.num_codes).float().mean(dim=frame_dims))
        prob_perplexity = self._perplexity(F.softmax(logits, dim=-1).mean(dim=frame_dims))
        return quantized.flatten(-2), codes, code_perplexity, prob_perplexity

    @staticmethod
    def _perplexity(probabilities: torch.Tensor) -> torch.Tensor:
        """Return exp(entropy) of (groups, codes), summed over groups."""
        return torch.exp(-(probabilities * torch.log(probabilities + 1e-7)).sum(dim=-1)).sum()


class ECGFMForPreTraining(ECGFMPreTrainedModel):
    """
    The ECG-FM encoder with its pretraining objective, W2V + CMSC. Random lead masking, the third part of the published
    pretraining, is an augmentation of the input.

    Its parts are, per masked frame, InfoNCE against negatives of the same segment, codebook diversity and a penalty on
    large features; and CMSC, which pulls the embeddings of two adjacent segments of one recording together.

    Inherits from `PreTrainedModel` (loading, saving, resizing and pushing) and is a `torch.nn.Module`.

    Args:
        config ([`ECGFMConfig`]):
            Architecture and settings. A model made from a config has random weights; `from_pretrained` loads weights.
    """

    def __init__(self, config: ECGFMConfig):
        super().__init__(config)
        self.ecgfm = ECGFMModel(config)
        self.dropout_features = ECGFMDropout(config.feat_quantizer_dropout)
        self.quantizer = ECGFMGumbelQuantizer(config)
        self.project_q = nn.Linear(config.codevector_dim, config.proj_codevector_dim)
        self.project_hid = nn.Linear(config.hidden_size, config.proj_codevector_dim)
        self.post_init()

    def set_gumbel_temperature(self, temperature: float) -> None:
        """Set the quantizer's temperature for training."""
        self.quantizer.temperature = float(temperature)

    def gumbel_temperature_at(self, num_updates: int) -> float:
        """Return `max(max_gumbel_temperature * decay ** num_updates, min_gumbel_temperature)`, as published."""
        config = self.config
        temperature = config.max_gumbel_temperature * config.gumbel_temperature_decay**num_updates
        return max(temperature, config.min_gumbel_temperature)

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        sampled_negative_indices: torch.Tensor | None = None,
        patient_ids: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        gumbel_noise: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **unused: None,
    ) -> ECGFMForPreTrainingOutput | tuple:
        """
        Args:
            input_values, attention_mask, output_attentions, output_hidden_states, return_dict:
                As in [`ECGFMModel`].
            mask_time_indices (`torch.BoolTensor` of shape `(batch, frames)`, *optional*):
                Frames to mask and predict, the same number in every row. Without it no frame is masked and `loss` is
                `None`. On the CPU, this and the three below cost no wait, even if the model is on another device:
                they are counted on the device where they are.
            sampled_negative_indices (`torch.LongTensor` of shape `(batch, masked frames, negatives)`, *optional*):
                Negatives of every masked frame as positions among the masked frames of its own row. Drawn uniformly
                from the other masked frames if absent.
            patient_ids, segment_ids (`torch.Tensor` of shape `(batch,)`, *optional*):
                For CMSC: rows with equal id and different `segment_ids` (0 or 1) are positives. In the published
                training the id is the recording's. Without them there is no CMSC loss.
            gumbel_noise (`torch.Tensor` of shape `(batch, masked frames, groups, codes)`, *optional*):
                Noise of the quantizer in training; drawn if absent.

        Returns:
            [`ECGFMForPreTrainingOutput`]

        Raises:
            `ValueError`: wrong shapes, rows with different numbers of masked frames or fewer than two, only one of
            `patient_ids` and `segment_ids`, no positive pair.

        Example:

            >>> import torch
            >>> from ecgfm_hf import ECGFMConfig, ECGFMForPreTraining
            >>> config = ECGFMConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
            >>> model = ECGFMForPreTraining(config).train()  # from_pretrained(FOLDER) loads weights
            >>> input_values = torch.randn(2, 12, 2500)  # from the feature extractor
            >>> mask = torch.zeros(2, 156, dtype=torch.bool)
            >>> mask[:, 20:80] = True
            >>> pair = {"patient_ids": torch.tensor([7, 7]), "segment_ids": torch.tensor([0, 1])}
            >>> output = model(input_values, mask_time_indices=mask, **pair)
            >>> output.loss.backward()
            >>> output.num_masked_frames
            tensor(120)
        """
        _check_unused(unused)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        if (patient_ids is None) != (segment_ids is None):
            raise ValueError("patient_ids and segment_ids go together; found only one of them")
        encoded = self.ecgfm(
            input_values,
            attention_mask=attention_mask,
            mask_time_indices=mask_time_indices,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        losses = {}
        if mask_time_indices is not None:
            losses = self._losses(
                encoded,
                mask_time_indices.bool(),
                sampled_negative_indices,
                patient_ids,
                segment_ids,
                gumbel_noise,
            )
        output = ECGFMForPreTrainingOutput(
            **losses,
            last_hidden_state=encoded.last_hidden_state,
            extract_features=encoded.extract_features,
            pooler_output=encoded.pooler_output,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return output if return_dict else output.to_tuple()

    def _losses(
        self,
        encoded: ECGFMModelOutput,
        mask: torch.Tensor,
        negatives: torch.Tensor | None,
        patient_ids: torch.Tensor | None,
        segment_ids: torch.Tensor | None,
        gumbel_noise: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """Return the objective and its parts, by their names in the output."""
        config = self.config
        last_hidden_state, extract_features, pooler_output, conv_features = encoded[:4]
        device = extract_features.device
        masked_per_row = self._masked_per_row(mask)
        shape = (mask.shape[0], masked_per_row, -1)
        # Found where the mask is: a mask on the CPU makes nothing wait for another device.
        masked = mask.flatten().nonzero().squeeze(1).to(device, non_blocking=True)
        features = self.dropout_features(extract_features).flatten(0, 1)[masked].view(shape)
        quantized, codes, code_perplexity, prob_perplexity = self.quantizer(features, gumbel_noise)
        targets = self.project_q(quantized)
        predictions = self.project_hid(last_hidden_state.flatten(0, 1)[masked].view(shape))
        if negatives is None:
            negatives = self._sample_negatives(mask.shape[0], masked_per_row, device)
        else:
            self._check_negatives(negatives, mask.shape[0], masked_per_row)
            negatives = negatives.to(device, non_blocking=True)
        contrastive_loss, contrastive_accuracy = self._contrastive_loss(predictions, targets, codes, negatives)
        num_codes = config.num_codevector_groups * config.num_codevectors_per_group
        diversity_loss = config.diversity_loss_weight * (1.0 - prob_perplexity / num_codes)
        feature_penalty = config.feature_penalty_weight * conv_features.float().square().mean()
        losses = {
            "loss": contrastive_loss + diversity_loss + feature_penalty,
            "contrastive_loss": contrastive_loss,
            "diversity_loss": diversity_loss,
            "feature_penalty": feature_penalty,
            "num_masked_frames": torch.full((), mask.shape[0] * masked_per_row, device=device),
            "code_perplexity": code_perplexity,
            "prob_perplexity": prob_perplexity,
            "contrastive_accuracy": contrastive_accuracy,
        }
        if patient_ids is not None and segment_ids is not None:
            cmsc_loss = self._cmsc_loss(pooler_output.float(), patient_ids, segment_ids)
            losses["cmsc_loss"] = config.cmsc_loss_weight * cmsc_loss
            losses["loss"] = losses["loss"] + losses["cmsc_loss"]
        return losses

    def _masked_per_row(self, mask: torch.Tensor) -> int:
        counts = mask.sum(dim=1)
        least, most = int(counts.min()), int(counts.max())
        if least != most:
            raise ValueError(
                f"every row of mask_time_indices must mask the same number of frames, found {least} to {most}"
            )
        if least < 2:
            raise ValueError(f"mask_time_indices must mask at least 2 frames per row, found: {least}")
        return least

    def _sample_negatives(self, batch: int, masked_per_row: int, device: torch.device) -> torch.Tensor:
        shape = (batch, masked_per_row, self.config.num_negatives)
        drawn = torch.randint(masked_per_row - 1, shape, device=device)
        # Skip the frame's own position; the others stay equally likely.
        own = torch.arange(masked_per_row, device=device)[None, :, None]
        return drawn + (drawn >= own)

    @staticmethod
    def _check_negatives(negatives: torch.Tensor, batch: int, masked_per_row: int) -> None:
        if negatives.ndim != 3 or negatives.shape[:2] != (batch, masked_per_row):
            raise ValueError(
                f"sampled_negative_indices must have shape (batch, masked frames, negatives) = "
                f"({batch}, {masked_per_row}, ...), found: {tuple(negatives.shape)}"
            )
        least, most = int(negatives.min()), int(negatives.max())
        if least < 0 or most >= masked_per_row:
            raise ValueError(
                f"sampled_negative_indices are positions among a row's masked frames, 0 to {masked_per_row - 1}, "
                f"found: {least} to {most}"
            )

    def _contrastive_loss(
        self, predictions: torch.Tensor, targets: torch.Tensor, codes: torch.Tensor, negatives: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """InfoNCE in nats a masked frame, and accuracy; predictions and targets are (batch, masked frames, width)."""
        # A segment's cosine similarities are one small matrix product; gathering from it spares the 100 copies of every
        # target that the negatives would be.
        predictions = F.normalize(predictions.float(), dim=-1, eps=1e-8)
        targets = F.normalize(targets.float(), dim=-1, eps=1e-8)
        similarity = predictions @ targets.transpose(1, 2) / self.config.contrastive_logits_temperature
        positive = similarity.diagonal(dim1=1, dim2=2)
        # A negative with the codes of its positive is the same vector, so it is excluded.
        same = (codes[:, :, None] == codes[:, None, :]).all(dim=-1)
        negative = similarity.masked_fill(same, -math.inf).gather(2, negatives.long())
        logits = torch.cat([positive[..., None], negative], dim=-1).flatten(0, 1)
        loss = -F.log_softmax(logits, dim=-1)[:, 0].mean()
        correct = logits[:, :1] >= logits
        # As the original counts: a row whose logits are all equal is not a hit.
        hit = correct.all(dim=-1) & ~(logits[:, :1] <= logits).all(dim=-1)
        return loss, hit.float().mean()

    def _cmsc_loss(
        self, embeddings: torch.Tensor, patient_ids: torch.Tensor, segment_ids: torch.Tensor
    ) -> torch.Tensor:
        """Contrastive multi-segment coding (Kiyasseh et al. 2021) between first and second segments."""
        # The norm is detached, as in the original: an ordinary normalisation has the same value and another gradient.
        norm = torch.linalg.vector_norm(embeddings.detach(), dim=-1, keepdim=True).clamp_min(1e-8)
        embeddings = embeddings / norm
        first, second = ((segment_ids == half).nonzero().squeeze(1) for half in (0, 1))
        positive = (patient_ids[first][:, None] == patient_ids[second][None, :]).nonzero()
        if not len(positive):
            raise ValueError("CMSC needs rows of equal patient_ids with segment_ids 0 and 1; found no such pair")
        found = (first, second, positive)
        first, second, positive = (rows.to(embeddings.device, non_blocking=True) for rows in found)
        similarity = embeddings[first] @ embeddings[second].T / self.config.cmsc_temperature
        rows = -F.log_softmax(similarity, dim=1)[positive.unbind(1)].mean()
        columns = -F.log_softmax(similarity, dim=0)[positive.unbind(1)].mean()
        return (rows + columns) / 2


class ECGFMForMultiLabelClassification(ECGFMPreTrainedModel):
    """
    The ECG-FM encoder with a linear head: several labels, one class, or regression.

    With `config.pooling` `"mean"` the head takes the published embedding, the mean over frames. With `"attention"` it
    takes the frames' average by an [`ECGFMAttentionPooler`].

    `config.problem_type` chooses the loss: `"multi_label_classification"`, `"single_label_classification"` or
    `"regression"`; without it the shape of the labels decides.

    Inherits from `PreTrainedModel` (loading, saving, resizing and pushing) and is a `torch.nn.Module`.

    Args:
        config ([`ECGFMConfig`]):
            Architecture and settings. A model made from a config has random weights; `from_pretrained` loads weights.
    """

    _keys_to_ignore_on_load_unexpected = PRETRAINING_HEADS

    def __init__(self, config: ECGFMConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.ecgfm = ECGFMModel(config)
        self.pooler = ECGFMAttentionPooler(config) if config.pooling == "attention" else None
        self.dropout = ECGFMDropout(config.final_dropout)
        self.classifier = _linear(config.hidden_size, config.num_labels, init.xavier_uniform_)
        self.post_init()

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_pooler_output: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **unused: None,
    ) -> ECGFMClassifierOutput | tuple:
        """
        Args:
            input_values, attention_mask, output_attentions, output_hidden_states, return_dict:
                As in [`ECGFMModel`].
            labels (`torch.Tensor`, *optional*):
                Multi-label: `(batch, num_labels)`, from 0 to 1; regression: `(batch, num_labels)`; both `(batch,)` with
                one label; single-label: class numbers `(batch,)`. A config without `problem_type` becomes single-label
                with integers `(batch,)`, and multi-label otherwise. NaN (-100 for single-label) is an unknown target.
                The loss is the mean over the batch's known targets, 0 if there are none. Gradient accumulation
                averages such means. Training drops thresholds and calibration, with a warning: they were fitted to
                other weights.
            output_pooler_output (`bool`, defaults to `False`): Return the embedding too.

        Returns:
            [`ECGFMClassifierOutput`]

        Raises:
            `ValueError`: `labels` of the wrong shape; targets outside 0 to 1, or class numbers with fractions, where
                they are on the CPU.

        Example:

            >>> import torch
            >>> from ecgfm_hf import ECGFMConfig, ECGFMForMultiLabelClassification
            >>> config = ECGFMConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_labels=3)
            >>> model = ECGFMForMultiLabelClassification(config).train()  # from_pretrained(FOLDER) loads weights
            >>> input_values = torch.randn(2, 12, 2500)  # from the feature extractor
            >>> labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, float("nan")]])  # NaN is unknown
            >>> output = model(input_values, labels=labels)
            >>> output.loss.backward()
            >>> output.logits.shape
            torch.Size([2, 3])
        """
        _check_unused(unused)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        encoded = self.ecgfm(
            input_values,
            attention_mask=attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        pooled, weights = encoded.pooler_output, None
        if self.pooler is not None:
            frames, frame_mask = encoded.last_hidden_state, None
            if attention_mask is not None:
                num_frames = self.config.num_frames(attention_mask.long().sum(dim=-1))
                frame_mask = _valid_positions(num_frames, frames.shape[1])
            pooled, weights = self.pooler(frames, frame_mask)
        logits = self.classifier(self.dropout(pooled))
        output = ECGFMClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            pooler_output=encoded.pooler_output if output_pooler_output else None,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            pooler_attentions=None if encoded.attentions is None else weights,
        )
        return output if return_dict else output.to_tuple()

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.training and torch.is_grad_enabled():
            self.config.drop_fitted_to_weights()
        problem_type = self._problem_type(labels)
        self._check_targets(labels, problem_type)
        logits, labels = logits.float(), labels.to(logits.device)
        if problem_type == "single_label_classification":
            self._check_labels(labels, logits.shape[:1], problem_type)
            # Divide by at least 1: `mean` would be NaN if every target is unknown.
            total = F.cross_entropy(logits, labels.long(), reduction="sum", ignore_index=-100)
            return total / (labels != -100).sum().clamp_min(1)
        if self.num_labels == 1 and labels.ndim == 1:
            labels = labels[:, None]
        self._check_labels(labels, logits.shape, problem_type)
        labels = labels.float()
        known = ~labels.isnan()
        labels = labels.nan_to_num(nan=0.0)
        if problem_type == "regression":
            losses = (logits - labels).square()
        else:
            given = self.config.pos_weight
            weight = None if given is None else torch.tensor(given, dtype=logits.dtype, device=logits.device)
            losses = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight, reduction="none")
        return (losses * known).sum() / known.sum().clamp_min(1)

    def _problem_type(self, labels: torch.Tensor) -> str:
        """Return the config's problem type, or the one that the labels' shape implies, as in transformers' models."""
        are_classes = labels.ndim == 1 and self.num_labels > 1 and not labels.is_floating_point()
        if self.config.problem_type is None and are_classes:
            # Scores depend on it, so the config must record it.
            self.config.problem_type = "single_label_classification"
        return self.config.problem_type or "multi_label_classification"

    @staticmethod
    def _check_targets(labels: torch.Tensor, problem_type: str) -> None:
        """Refuse meaningless targets, if checking them causes neither a graph break nor a wait for a GPU."""
        if problem_type == "regression" or labels.device.type != "cpu" or torch.compiler.is_compiling():
            return
        if problem_type == "multi_label_classification":
            # Comparisons with NaN, an unknown target, are false.
            wrong, expected = labels[(labels < 0) | (labels > 1)], "between 0 and 1, or NaN where unknown"
        elif labels.is_floating_point():
            wrong, expected = labels[labels != labels.round()], "whole class numbers, or -100 where unknown"
        else:
            return
        if wrong.numel():
            raise ValueError(f"labels of a {problem_type} must be {expected}; found: {wrong.flatten()[0].item():g}")

    # Set once, before quantising.
    _matrices_were_compared = False

    def weights_fingerprint(self) -> str | None:
        """
        Return hashes of a sample of each weight, encoder and head; `None` where weights are not in memory.

        One hash is of biases and norms, one of matrices (empty where these are quantised). They are made of numbers
        rounded to bfloat16, so that a copy in bfloat16 has the same; the same two after rounding to float16 follow.
        Training changes them: at a learning rate of 1e-5 one step moves some percent of the weights to another bfloat16
        number.
        """
        vectors: list[torch.Tensor] = []
        matrices: list[torch.Tensor] = []
        for _, weight in sorted(self.named_parameters()):
            if weight.is_meta:
                return None
            (vectors if weight.ndim < 2 else matrices).append(weight.detach())
        samples = _sample(vectors), _sample(matrices)
        return " ".join(_rounded_hash(sample, kind) for kind in (torch.bfloat16, torch.float16) for sample in samples)

    def check_fitted(self, *, before_quantising: bool = False) -> None:
        if self.config.label_fingerprint is not None:
            found = self.weights_fingerprint()
            # Offloaded weights come from the files as they are.
            if found is not None:
                self.config.check_fitted_to_weights(found, check_matrices=not self._matrices_were_compared)
        self._matrices_were_compared = self._matrices_were_compared or before_quantising

    def _stamp_fitted(self) -> None:
        # An existing fingerprint stays, even if the weights have changed since.
        config = self.config
        if config.label_fingerprint is None and (config.label_thresholds or config.label_calibration):
            config.label_fingerprint = self.weights_fingerprint()

    def _freeze_untrained(self) -> None:
        super()._freeze_untrained()
        if self.ecgfm.masked_spec_embed is not None:
            self.ecgfm.masked_spec_embed.requires_grad_(False)  # Classification never masks.

    @staticmethod
    def _check_labels(labels: torch.Tensor, expected: torch.Size, problem_type: str) -> None:
        if labels.shape != expected:
            raise ValueError(
                f"labels must have shape {tuple(expected)}, found: {tuple(labels.shape)} of {labels.dtype}; "
                f"config.problem_type is {problem_type!r}"
            )


__all__ = [
    "ECGFMAttentionPooler",
    "ECGFMClassifierOutput",
    "ECGFMForMultiLabelClassification",
    "ECGFMForPreTraining",
    "ECGFMForPreTrainingOutput",
    "ECGFMModel",
    "ECGFMModelOutput",
    "ECGFMPreTrainedModel",
]
