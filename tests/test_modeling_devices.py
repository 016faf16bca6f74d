"""
The models on another device than the CPU, with torch's meta device in its part: it has shapes and no values, so that
tensors of two devices in one operation, and a value that the CPU would have to wait for, are errors there.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from ecgfm_hf import ECGFMForMultiLabelClassification, ECGFMForPreTraining
from ecgfm_hf.training.objective import METRICS, batch_metrics, draw_mask
from ecgfm_hf.training.pretraining_data import PairBatch


def _on_other_device(model):
    model = model.to("meta").train()
    return model, torch.empty(4, 12, 2500, device="meta")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        ("multi_label_classification", torch.zeros(4, 3)),
        ("single_label_classification", torch.zeros(4, dtype=torch.long)),
        ("regression", torch.zeros(4, 3)),
    ],
)
def test_a_classifier_computes_on_one_device_and_waits_for_nothing(tiny_config, attention, problem_type, labels):
    config = tiny_config(problem_type=problem_type, pos_weight=None)
    model, segments = _on_other_device(ECGFMForMultiLabelClassification(config))
    model.set_attn_implementation(attention)
    mask = torch.ones(4, 2500, dtype=torch.long, device="meta")
    output = model(segments, attention_mask=mask, labels=labels.to("meta"), output_hidden_states=True)
    output.loss.backward()
    assert output.logits.device.type == "meta"
    assert all(weight.grad.device.type == "meta" for weight in model.parameters() if weight.requires_grad)


def test_a_pretraining_step_waits_for_nothing_if_mask_and_ids_are_on_the_cpu(tiny_config):
    model, segments = _on_other_device(ECGFMForPreTraining(tiny_config()))
    mask = draw_mask(model.config, rows=4, samples=2500, seed=0)
    batch = PairBatch(segments, torch.tensor([5, 5, 7, 7]), torch.tensor([0, 1, 0, 1]), ["a", "b"])
    output = model(segments, mask_time_indices=mask, patient_ids=batch.ids, segment_ids=batch.segment_ids)
    output.loss.backward()
    metrics = batch_metrics(output, batch, model)
    assert metrics.shape == (len(METRICS),)
    assert metrics.device.type == "meta"


def test_the_form_of_a_mask_changes_no_loss(tiny_config):
    """Bool, integer, and not contiguous."""
    model = ECGFMForPreTraining(tiny_config()).eval()
    segments = torch.randn(4, 12, 2500)
    mask = draw_mask(model.config, rows=4, samples=2500, seed=0)
    strided = torch.stack([mask, mask], dim=-1)[..., 0]
    losses = []
    for given in (mask, mask.long(), strided):
        torch.manual_seed(0)
        losses.append(model(segments, mask_time_indices=given).loss.item())
    assert losses[0] == losses[1] == losses[2]


@pytest.fixture(scope="module")
def gpu_check():
    """`scripts/gpu_check.py` as a module."""
    path = Path(__file__).parents[1] / "scripts/gpu_check.py"
    spec = importlib.util.spec_from_file_location("gpu_check", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _outcomes(gpu_check, monkeypatch, capsys, *checks):
    monkeypatch.setattr("sys.argv", ["gpu_check.py", "--device", "cpu", "--json", "--only", *checks])
    status = gpu_check.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return status, {line["name"]: line["outcome"] for line in lines}


def test_the_gpu_check_runs_on_a_cpu_what_it_can_and_names_the_rest(gpu_check, monkeypatch, capsys):
    status, outcomes = _outcomes(gpu_check, monkeypatch, capsys, "forward", "explanations", "compiled", "waits")
    assert status == 0
    assert outcomes == {"forward": "passed", "explanations": "passed", "compiled": "not run", "waits": "not run"}


def test_the_gpu_check_fails_where_a_figure_is_too_large_or_a_check_breaks(gpu_check, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "FLOAT32", 0.0)
    monkeypatch.setattr(gpu_check, "attribute", None)
    status, outcomes = _outcomes(gpu_check, monkeypatch, capsys, "forward", "explanations")
    assert status == 1
    assert outcomes == {"forward": "FAILED", "explanations": "FAILED"}


@pytest.mark.slow
def test_the_gpu_check_passes_on_a_cpu(gpu_check, monkeypatch, capsys):
    status, outcomes = _outcomes(gpu_check, monkeypatch, capsys, *gpu_check.CHECKS)
    assert status == 0
    assert {name for name, outcome in outcomes.items() if outcome == "not run"} == {
        "flash_attention",
        "compiled",
        "waits",
    }
