"""The wrapper that docs/benchmark.md gives, with stand-ins for the two modules of the benchmark that it imports."""

import dataclasses
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from doc_blocks import ROOT, blocks_of
from torch import nn

from ecgfm_hf import ECGFMConfig, ECGFMModel

MODES = ("linear", "frozen", "finetuning_linear", "finetuning_nonlinear")


class _Head(nn.Module):
    """Stands in for the benchmark's attention pooling: the same arguments, and the same way to be called."""

    def __init__(self, hparams_head, hparams_input_shape, target_dim):
        super().__init__()
        dataclasses.replace(hparams_input_shape)  # as the benchmark's does: it must be a dataclass
        self.output = nn.Linear(hparams_input_shape.channels, target_dim)

    def forward(self, **kwargs):
        return {"seq": self.output(kwargs["seq"]).amax(dim=1)}


class _Base(nn.Module):
    def __init__(self, num_classes, num_output_tokens):
        super().__init__()


@pytest.fixture
def wrapper(monkeypatch):
    heads, base = ModuleType("clinical_ts.utils.heads"), ModuleType("main_lite_base")
    heads.LearnableQueryAttentionPoolingHead = _Head
    heads.LearnableQueryAttentionPoolingHeadConfig = SimpleNamespace
    base.FMWrapperBase = _Base
    utils = ModuleType("clinical_ts.utils")
    utils.heads = heads
    modules = {"clinical_ts": ModuleType("clinical_ts"), utils.__name__: utils}
    for name, module in {**modules, heads.__name__: heads, base.__name__: base}.items():
        monkeypatch.setitem(sys.modules, name, module)
    (block,) = (block for block in blocks_of(ROOT / "docs" / "benchmark.md") if block.language == "python")
    assert block.text.count("\n") <= 60
    names = {"__name__": "wrapper"}
    exec(compile(block.text, "benchmark.md", "exec"), names)
    return names["EcgfmHFWrapper"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = ECGFMConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(16, 16, 16, 16)
    )
    path = tmp_path_factory.mktemp("model")
    ECGFMModel(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_trains_what_the_page_states(wrapper, folder, mode):
    model = wrapper(5, 2500, folder, mode).train()
    signal = torch.randn(2, 12, 2500)
    model(signal).sum().backward()
    encoder_learns = any(weight.grad is not None for weight in model.model.parameters())
    assert encoder_learns == mode.startswith("finetuning")
    assert model.model.training == mode.startswith("finetuning")
    groups = model.get_params()
    grouped = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(grouped) == sorted(id(weight) for weight in model.parameters() if weight.requires_grad)
    assert [group["lr"] for group in groups] == pytest.approx([1e-3, 1e-4, 1e-5] if encoder_learns else [1e-3])


def test_scores_do_not_depend_on_scale_offset_and_missing_samples_are_no_error(wrapper, folder):
    model = wrapper(5, 2500, folder, "linear").eval()
    signal = torch.randn(2, 12, 1300)
    with torch.no_grad():
        expected = model(signal)
        torch.testing.assert_close(model(3 * signal + 7), expected, atol=1e-4, rtol=1e-4)
        signal[0, 3, 10:20] = torch.nan
        assert model(signal).isfinite().all()


def test_another_rate_is_resampled_to_the_model_s(wrapper, folder):
    signal = torch.sin(torch.linspace(0, 60, 12 * 2500)).reshape(1, 12, 2500)
    with torch.no_grad():
        expected = wrapper(5, 2500, folder, "linear").eval().model(signal).last_hidden_state.shape
        slow = wrapper(5, 500, folder, "linear", sampling_rate=100).eval()
        found = []
        slow.model.register_forward_hook(lambda module, inputs, outputs: found.append(outputs.last_hidden_state.shape))
        slow(signal[..., ::5])
    assert found == [expected]


def test_an_older_transformers_is_named_together_with_the_version_needed(monkeypatch):
    import importlib

    import transformers.utils.versions

    import ecgfm_hf.configuration_ecgfm as module

    older = {**vars(transformers.utils.versions.importlib.metadata), "version": lambda name: "4.53.2"}
    monkeypatch.setattr(transformers.utils.versions.importlib, "metadata", SimpleNamespace(**older))
    source = importlib.util.find_spec(module.__name__).loader.get_source(module.__name__)
    with pytest.raises(ImportError, match=r"transformers>=5\.6\.2.*4\.53\.2"):
        exec(compile(source, module.__file__, "exec"), {"__name__": "older"})
