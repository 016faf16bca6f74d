"""The position embedding's two ways, convolution and spectra: they must never disagree."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from ecgfm_hf import ECGFMConfig
from ecgfm_hf.modeling_ecgfm import ECGFMPositionalConvEmbedding


def position_embedding(kernel=16, width=32, groups=4, seed=0):
    torch.manual_seed(seed)
    config = ECGFMConfig.base(
        hidden_size=width,
        num_attention_heads=4,
        num_conv_pos_embeddings=kernel,
        num_conv_pos_embedding_groups=groups,
    )
    return ECGFMPositionalConvEmbedding(config)


def difference(module, frames):
    """Between the module and torch's own convolution."""
    with torch.no_grad():
        expected = nn.Conv1d.forward(module.conv, frames.transpose(1, 2)).transpose(1, 2)[:, : frames.shape[1]]
        return (module(frames) - module.activation(expected)).abs().max().item()


@settings(max_examples=30, deadline=None)
@given(
    kernel=st.integers(1, 40), frames=st.integers(1, 90), batch=st.integers(1, 3), groups=st.sampled_from([1, 4, 32])
)
def test_spectra_give_what_the_convolution_gives(kernel, frames, batch, groups):
    module = position_embedding(kernel, groups=groups)
    assert difference(module, torch.randn(batch, frames, 32)) < 1e-5


@pytest.mark.parametrize("lengths", [(20, 90, 20), (90, 20)])
def test_a_longer_input_after_a_shorter_one_is_not_wrapped_around(lengths):
    module = position_embedding()
    for length in lengths:
        assert difference(module, torch.randn(2, length, 32)) < 1e-5


def _in_place(module):
    with torch.no_grad():
        module.conv.parametrizations.weight.original0.mul_(2.0)


def _behind_autograd(module):
    module.conv.parametrizations.weight.original1.data.add_(1.0)


def _loaded(module):
    module.load_state_dict(position_embedding(seed=1).state_dict())


def _a_view_of_a_flat_tensor(module):
    weight = parametrize.remove_parametrizations(module.conv, "weight").weight
    weight.data = torch.cat([torch.zeros(1), 2 * weight.data.flatten()])[1:].view(weight.shape)


def _cast(module):
    module.bfloat16().float()


@pytest.mark.parametrize("change", [_in_place, _behind_autograd, _loaded, _a_view_of_a_flat_tensor, _cast])
def test_changed_weights_are_never_answered_for_by_an_old_spectrum(change):
    module, frames = position_embedding(), torch.randn(2, 30, 32)
    assert difference(module, frames) < 1e-5  # the spectrum is kept now
    change(module)
    assert difference(module, frames) < 1e-5
    assert difference(copy.deepcopy(module), frames) < 1e-5


def test_gradients_are_the_convolutions():
    module, frames = position_embedding(), torch.randn(2, 30, 32, requires_grad=True)
    with torch.no_grad():
        without = module(frames)
    with_gradient = module(frames)
    assert torch.allclose(without, with_gradient, atol=1e-5)
    with_gradient.sum().backward()
    assert frames.grad.abs().sum() > 0


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("width", [16, 32, 56, 64])
def test_few_channels_a_group_are_right_in_bfloat16_too(width, autocast):
    """torch's own convolution returns other numbers on processors with AMX."""
    module, frames = position_embedding(width=width).bfloat16(), torch.randn(2, 40, width).bfloat16()
    expected = copy.deepcopy(module).float()(frames.float())  # with a gradient, so no spectra
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = (module.float() if autocast else module)(frames.float() if autocast else frames)
    assert found.requires_grad
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()
