"""Attention pooling: what it computes, how it is stored, trained, explained and refused."""

import copy

import numpy as np
import pytest
import torch
from finetune_cases import TINY_MODEL, make_store, train_in_memory
from safetensors.torch import load_file, save_file

from ecgfm_hf import (
    ECGFMFeatureExtractor,
    ECGFMForMultiLabelClassification,
    ECGFMModel,
    ECGRecord,
    save_model_folder,
)
from ecgfm_hf.data import load_prepared
from ecgfm_hf.fairseq import CheckpointError, export_fairseq_checkpoint
from ecgfm_hf.feature_extraction_ecgfm import STANDARD_LEADS
from ecgfm_hf.interpretation import attribute
from ecgfm_hf.model_folder import ModelFolderError, load_model
from ecgfm_hf.modeling_ecgfm import ECGFMAttentionPooler
from ecgfm_hf.training import FinetuneData, FinetuneSettings, SettingsError, build_classifier
from ecgfm_hf.training.linear_probe import embed_split, fit_linear_probe
from ecgfm_hf.training.trainer import build_trainer


def pooling_classifier(tiny_config, **settings):
    torch.manual_seed(0)
    model = ECGFMForMultiLabelClassification(tiny_config(pooling="attention", mask_time_prob=0.0, **settings)).eval()
    with torch.no_grad():
        # As after training: attention that is far from even.
        model.pooler.query.mul_(100)
        model.pooler.value.mul_(10)
        model.classifier.bias.add_(0.1)
    return model


@pytest.fixture(scope="module")
def folder(tiny_config, tmp_path_factory):
    made = tmp_path_factory.mktemp("attention") / "model"
    save_model_folder(pooling_classifier(tiny_config), ECGFMFeatureExtractor(), made)
    return made


# ----------------------------------------------------------------------------------------------------------------------
# The model
# ----------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_pooler_is_multi_head_attention_of_one_query_over_unpadded_frames(tiny_config):
    pooler = ECGFMAttentionPooler(tiny_config())
    pooler.query.mul_(1000)
    reference = torch.nn.MultiheadAttention(32, num_heads=4, bias=False, batch_first=True)
    reference.in_proj_weight.copy_(torch.cat([torch.eye(32), pooler.key, pooler.value]))
    reference.out_proj.weight.copy_(torch.eye(32))
    frames, mask = torch.randn(3, 20, 32), torch.arange(20)[None] < torch.tensor([20, 11, 1])[:, None]
    query = pooler.query.expand(3, 1, 32)
    expected, weights = reference(query, frames, frames, key_padding_mask=~mask, average_attn_weights=False)
    frames[~mask] = float("nan")  # what padding holds must not matter
    found, attention = pooler(frames, mask)
    torch.testing.assert_close(found, expected[:, 0], atol=1e-6, rtol=0)
    torch.testing.assert_close(attention, weights[:, :, 0], atol=1e-6, rtol=0)
    assert weights[0].max() > 0.3


def test_the_base_model_gets_1_2_million_parameters_of_deviation_0_02():
    from ecgfm_hf import ECGFMConfig

    pooler = ECGFMAttentionPooler(ECGFMConfig())
    assert sum(parameter.numel() for parameter in pooler.parameters()) == 1_180_416
    assert all(parameter.std().item() == pytest.approx(0.02, rel=0.1) for parameter in pooler.parameters())


@torch.no_grad()
def test_a_padded_segment_scores_as_the_segment_in_a_padding_safe_model(tiny_config):
    model = pooling_classifier(tiny_config, padding_safe=True)
    segment, mask = torch.randn(1, 12, 1600), torch.ones(1, 2000)
    mask[:, 1600:] = 0
    padded = torch.nn.functional.pad(segment, (0, 400))
    torch.testing.assert_close(model(padded, attention_mask=mask).logits, model(segment).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_logits_come_from_the_pooler_and_the_embedding_stays_the_mean(tiny_config):
    model = pooling_classifier(tiny_config)
    segments = torch.randn(2, 12, 2500)
    output = model(segments, output_attentions=True, output_pooler_output=True)
    encoded = model.ecgfm(segments)
    pooled, weights = model.pooler(encoded.last_hidden_state)
    torch.testing.assert_close(output.logits, model.classifier(pooled), atol=1e-6, rtol=0)
    torch.testing.assert_close(output.pooler_output, encoded.pooler_output, atol=1e-6, rtol=0)
    assert output.pooler_attentions.shape == (2, 4, 156)
    torch.testing.assert_close(output.pooler_attentions.sum(-1), torch.ones(2, 4))
    torch.testing.assert_close(output.pooler_attentions, weights, atol=1e-6, rtol=0)
    assert model(segments).pooler_attentions is None
    assert model(segments, return_dict=False)[0].shape == (2, 3)


def test_the_mean_has_no_pooler_and_another_pooling_is_refused(tiny_config):
    model = ECGFMForMultiLabelClassification(tiny_config())
    assert not [name for name in model.state_dict() if "pooler" in name]
    with pytest.raises(Exception, match=r"pooling must be one of.*found: 'max'"):
        tiny_config(pooling="max")


# ----------------------------------------------------------------------------------------------------------------------
# Folders
# ----------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_saved_pooler_loads_and_the_encoder_leaves_it(folder, tiny_config):
    segments, model = torch.randn(1, 12, 2500), pooling_classifier(tiny_config)
    assert torch.equal(load_model(folder)(segments).logits, model(segments).logits)
    encoder = load_model(folder, ECGFMModel)
    assert torch.equal(encoder(segments).pooler_output, model.ecgfm(segments).pooler_output)
    _, loading = ECGFMModel.from_pretrained(folder, output_loading_info=True)
    assert not loading["unexpected_keys"]


def test_a_folder_without_its_pooler_or_with_one_too_many_is_refused(folder, tmp_path):
    import shutil

    damaged = shutil.copytree(folder, tmp_path / "damaged")
    tensors = load_file(damaged / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if not name.startswith("pooler.")}
    save_file(kept, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelFolderError, match=r"missing tensors: pooler\.query.*no trained attention pooling"):
        load_model(damaged)
    config = load_model(folder).config
    config.pooling = "mean"
    with pytest.raises(ModelFolderError, match="unused tensors: pooler"):
        load_model(folder, config=config)


def test_fairseq_signals_cannot_have_it(folder, tmp_path):
    with pytest.raises(
        CheckpointError, match="has pooling='attention', but fairseq-signals' classifier takes the mean"
    ):
        export_fairseq_checkpoint(folder, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_a_logit_is_explained_through_the_pooler(tiny_config):
    pytest.importorskip("captum")
    samples = np.random.default_rng(0).standard_normal((12, 2500))
    record = ECGRecord(
        recording_id="r",
        path="r.npy",
        samples=samples,
        gain=np.ones(12),
        baseline=np.zeros(12),
        units=("mV",) * 12,
        sampling_rate=500.0,
        lead_names=STANDARD_LEADS,
    )
    found = attribute(pooling_classifier(tiny_config), record, "A")
    assert abs(found.values.sum() - (found.logits - found.baseline_logits).sum()) < 0.05


# ----------------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    made = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", made / "cache")
        make_store(made / "store", patients=10)
        yield load_prepared(made / "store")


def prepared(store, **changes):
    given = {
        "labels": ["slow", "fast"],
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "thresholds": "none",
        "calibration": "none",
    }
    given |= {} if "init_from" in changes else {"model": TINY_MODEL}
    settings = FinetuneSettings(**{**given, **changes})
    data = FinetuneData.from_datasets(store["train"], store["valid"], ECGFMFeatureExtractor(), settings)
    return settings, data, build_classifier(settings, data.names)


def test_on_a_frozen_encoder_pooler_and_head_are_trained(store, tmp_path):
    settings, data, model = prepared(store, pooling="attention", freeze_encoder="always")
    before = copy.deepcopy(model.state_dict())
    train_in_memory(model, data, settings, tmp_path)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"pooler.query", "pooler.key", "pooler.value", "classifier.weight", "classifier.bias"}


def test_pooler_and_head_learn_at_the_same_rate_and_before_the_encoder(store, tmp_path):
    settings, data, model = prepared(store, pooling="attention", layer_decay=0.5, freeze_encoder=1, max_steps=1)
    fastest = build_trainer(model, data, settings, tmp_path).create_optimizer().param_groups[0]
    assert fastest["lr"] == settings.learning_rate
    assert {id(p) for p in fastest["params"]} == {
        id(p) for m in (model.pooler, model.classifier) for p in m.parameters()
    }
    before = copy.deepcopy(model.state_dict())
    train_in_memory(model, data, settings, tmp_path / "run")
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"pooler", "classifier"}


def test_lora_trains_the_pooler_and_merges(store, tmp_path):
    pytest.importorskip("peft")
    lora = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    settings, data, model = prepared(store, pooling="attention", lora=lora)
    before = copy.deepcopy(model.state_dict())
    merged = train_in_memory(model, data, settings, tmp_path).model
    assert merged.state_dict().keys() == before.keys()
    assert not torch.equal(merged.pooler.query, before["pooler.query"])
    assert not torch.equal(merged.classifier.weight, before["classifier.weight"])


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_fine_tuning_with_stochastic_depth_begins_with_the_head_of_a_probe(store, tmp_path, pooling):
    if pooling == "mean":
        _, _, model = prepared(store)
        embeddings = embed_split(model.ecgfm.eval(), ECGFMFeatureExtractor(), store["train"], ["slow", "fast"])
        probe = fit_linear_probe(model.ecgfm, embeddings, folds=2).model
    else:
        settings, data, model = prepared(store, pooling=pooling, freeze_encoder="always")
        probe = train_in_memory(model, data, settings, tmp_path / "run").model
    save_model_folder(probe, ECGFMFeatureExtractor(), tmp_path / "probe")
    depth = {"layerdrop": 0.5}
    settings, data, model = prepared(store, init_from=str(tmp_path / "probe"), model=depth, max_steps=1)
    assert (model.config.pooling, model.config.layerdrop) == (pooling, 0.5)
    stored = probe.state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    train_in_memory(model, data, settings, tmp_path / "refined")
    assert not torch.equal(model.classifier.weight, stored["classifier.weight"])


def test_another_pooling_than_the_folders_gets_a_new_head_with_a_warning(store, folder, caplog):
    _, _, model = prepared(store, init_from=str(folder), pooling="mean", model={})
    assert model.pooler is None
    assert torch.equal(model.ecgfm.encoder.layer_norm.weight, load_model(folder).ecgfm.encoder.layer_norm.weight)
    assert "head is new" in caplog.text


def test_pooling_is_a_setting_of_its_own():
    with pytest.raises(SettingsError, match=r"pooling must be one of mean, attention, found: 'max'"):
        FinetuneSettings(pooling="max")
    with pytest.raises(SettingsError, match=r"model\.pooling is decided by other settings, such as labels and pooling"):
        FinetuneSettings(model={"pooling": "attention"})
