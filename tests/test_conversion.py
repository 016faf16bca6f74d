"""Conversion of fairseq-signals checkpoints: names, settings, labels, the folder written, verification, the command."""

import argparse
import contextlib
import copy
import csv
import dataclasses
import functools
import json
import os
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conversions import INPUT_OPTIONS, convert_checkpoint, convert_with
from hub_cases import mock_hub
from mock_hub import Repository
from transformers import AutoFeatureExtractor, AutoModelForPreTraining, AutoModelForSequenceClassification

from ecgfm_hf import (
    ECGFMConfig,
    ECGFMFeatureExtractor,
    ECGFMForMultiLabelClassification,
    ECGFMForPreTraining,
    load_pipeline,
)
from ecgfm_hf.cli.main import main
from ecgfm_hf.fairseq import (
    MIMIC17,
    PHYSIONET26,
    PHYSIONET_CLASSES,
    CheckpointError,
    DownloadError,
    UnknownInputError,
    build_model,
    config_from_checkpoint,
    convert,
    convert_state_dict,
    download_checkpoint,
    load_fairseq_checkpoint,
    parse_conv_feature_layers,
    read_architecture,
    reference_forward,
    resolve_labels,
    revert_state_dict,
    verify_conversion,
)
from ecgfm_hf.model_folder import load_feature_extractor, load_model
from ecgfm_hf.utils.errors import InputNotFoundError, SettingsError

FIXTURES = Path(__file__).parent / "fixtures" / "checkpoints"
SHARED = Path(os.environ.get("ECGFM_SHARED", Path(__file__).parents[2] / "shared"))
VARIANTS = ("conv_bias", "extractor_ln", "latent_dim", "ln_first")

needs_shared = pytest.mark.skipif(
    not (SHARED / "golden" / "tiny").is_dir(), reason=f"the original's reference data is not at {SHARED} (ECGFM_SHARED)"
)


@functools.cache
def _raw(name):
    return torch.load(FIXTURES / f"{name}.pt", weights_only=False)


@pytest.fixture
def edit(tmp_path):
    """Writes a fixture's checkpoint with changes to its content, and returns the path."""

    def edit(name, change=None, **sections):
        content = copy.deepcopy(_raw(name))
        for section, values in sections.items():
            content["cfg"][section] |= values
        if change is not None:
            change(content)
        path = tmp_path / "edited.pt"
        torch.save(content, path)
        return path

    return edit


def settings_of(path, **kwargs):
    return config_from_checkpoint(path if isinstance(path, Path) else FIXTURES / f"{path}.pt", **kwargs)


def relative_difference(found, expected):
    expected = torch.as_tensor(expected)
    return ((found - expected).abs().max() / expected.abs().max()).item()


# Names


@pytest.mark.parametrize("name", ["pretrain", "pretrain_old_weight_norm", "finetune", "finetune_default_cfg"])
def test_names_go_there_and_back(name):
    tensors = load_fairseq_checkpoint(FIXTURES / f"{name}.pt").tensors
    ours = convert_state_dict(tensors)
    back = revert_state_dict(ours, old_weight_norm="old" in name)
    assert back.keys() == tensors.keys()
    assert all(back[key] is tensors[key] for key in tensors)
    assert len(ours) == len(tensors)


@needs_shared
@pytest.mark.parametrize("kind", ["pretrain", "classifier"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_names_of_the_variants_go_there_and_back(variant, kind):
    tensors = load_fairseq_checkpoint(SHARED / "golden" / "variants" / f"{variant}_{kind}.pt").tensors
    back = revert_state_dict(convert_state_dict(tensors), layer_norm_extractor=variant == "extractor_ln")
    assert back.keys() == tensors.keys()
    assert all(back[key] is tensors[key] for key in tensors)


def test_old_and_new_weight_norm_names_give_the_same_model():
    old = convert_state_dict(load_fairseq_checkpoint(FIXTURES / "pretrain_old_weight_norm.pt").tensors)
    new = convert_state_dict(load_fairseq_checkpoint(FIXTURES / "pretrain.pt").tensors)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) for key in new)


def test_a_tensor_without_a_place_is_named_with_the_setting_it_belongs_to():
    tensors = dict(load_fairseq_checkpoint(FIXTURES / "pretrain.pt").tensors)
    tensors["target_glu.0.weight"] = torch.ones(2, 2)
    with pytest.raises(CheckpointError, match=r"target_glu\.0\.weight; they come from target_glu"):
        convert_state_dict(tensors)


def test_reverting_a_name_of_nobody_is_an_error():
    with pytest.raises(ValueError, match="something_else"):
        revert_state_dict({"classifier.weight": torch.ones(1), "something_else": torch.ones(1)})


def drop(name):
    return lambda content: content["model"].pop(name)


def reshape(name, *shape):
    return lambda content: content["model"].__setitem__(name, torch.ones(*shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("encoder.layers.1.fc2.bias"), r"feed_forward\.output_dense\.bias"),
        (drop("project_q.bias"), r"project_q\.bias"),
        (drop("post_extract_proj.weight"), r"feature_projection\.projection\.weight"),
        (drop("encoder.layers.0.fc1.weight"), r"encoder\.layers\.0\.fc1\.weight is missing"),
        (drop("conv_pos.pos_conv.0.parametrizations.weight.original1"), "original1 is missing"),
        (drop("quantizer.vars"), "quantize_targets=False"),
        (reshape("encoder.layers.0.self_attn.q_proj.weight", 32, 16), "size mismatch"),
        (reshape("quantizer.vars", 1, 15, 8), "quantizer: 15 codes"),
        (reshape("encoder.layers.7.fc1.bias", 64), "expected numbers from 0 without gaps"),
        (reshape("encoder.layers.0.something", 3), "do not belong to a pretraining model"),
        (lambda content: content.update(model={"a": torch.ones(1)}), "not those of an ECG-FM encoder"),
    ],
)
def test_loading_is_strict_both_ways(edit, tmp_path, change, message):
    path = edit("pretrain", change)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert_checkpoint(path, tmp_path / "out")
    assert str(path) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda model: model.update(mask_emb=model["mask_emb"].to(torch.float8_e4m3fn)),
            "is of type torch.float8_e4m3fn",
        ),
        (lambda model: model.update(mask_emb=model["mask_emb"].to(torch.int8)), "is of type torch.int8"),
        (lambda model: model.update(mask_emb=torch.empty(32, device="meta")), "is not an ordinary dense tensor"),
    ],
)
def test_weights_that_are_no_ordinary_numbers_are_refused_by_name(edit, change, message):
    path = edit("pretrain", lambda content: change(content["model"]))
    with pytest.raises(CheckpointError, match=f"edited.pt: tensor mask_emb {message}"):
        load_fairseq_checkpoint(path)


def test_a_setting_without_readable_numbers_is_refused(edit):
    path = edit("pretrain", lambda content: content["cfg"]["model"].update(dropout=torch.empty(3, device="meta")))
    with pytest.raises(CheckpointError, match="its settings hold a tensor without readable values"):
        load_fairseq_checkpoint(path)


# Settings


def test_pretraining_settings_are_carried_over(edit):
    path = edit(
        "pretrain",
        model={"dropout": 0.2, "dropout_features": 0.3, "encoder_layerdrop": 0.05, "latent_temp": [3, 0.25, 0.9]},
        criterion={"loss_weights": [0.2, 5.0], "temp": 0.2, "cmsc_weights": 0.5},
    )
    config = settings_of(path).config
    expected = {
        "num_leads": 12,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "conv_dim": [16] * 4,
        "conv_kernel": [2] * 4,
        "conv_stride": [2] * 4,
        "conv_bias": False,
        "feat_extract_norm": "group",
        "do_stable_layer_norm": False,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "num_codevectors_per_group": 8,
        "num_codevector_groups": 2,
        "codevector_dim": 16,
        "proj_codevector_dim": 16,
        "hidden_dropout": 0.2,
        "attention_dropout": 0.1,
        "feat_proj_dropout": 0.1,
        "feat_quantizer_dropout": 0.3,
        "layerdrop": 0.05,
        "feature_grad_multiplier": 0.1,
        "mask_time_prob": 0.65,
        "mask_time_length": 10,
        "num_negatives": 100,
        "contrastive_logits_temperature": 0.1,
        "max_gumbel_temperature": 3,
        "min_gumbel_temperature": 0.25,
        "gumbel_temperature_decay": 0.9,
        "diversity_loss_weight": 0.2,
        "feature_penalty_weight": 5.0,
        "cmsc_temperature": 0.2,
        "cmsc_loss_weight": 0.5,
    }
    assert {name: getattr(config, name) for name in expected} == expected


def test_fine_tuning_settings_are_carried_over():
    config = settings_of("finetune").config
    assert config.pos_weight == [0.4, 2.3, 2.3, 9.0, 4.0, 4.0, 9.0, 9.0]
    assert config.problem_type == "multi_label_classification"
    assert (config.hidden_dropout, config.activation_dropout, config.feat_proj_dropout) == (0.0, 0.1, 0.0)
    assert config.mask_time_prob == 0.0
    assert config.feature_grad_multiplier == 0.0
    assert config.num_labels == 8


def conv_gradient(path, folder):
    """The gradient of the first convolution in a converted classifier; None if it is frozen."""
    convert_checkpoint(path, folder, overwrite=True)
    model = ECGFMForMultiLabelClassification.from_pretrained(folder)
    inputs = torch.randn(2, 12, 500, generator=torch.Generator().manual_seed(0))
    model(inputs).logits.sum().backward()
    return model.ecgfm.feature_extractor.conv_layers[0].conv.weight.grad


@pytest.mark.parametrize("stated", [0, -1, -0.5, 0.1])
def test_a_gradient_multiplier_of_0_or_less_freezes_the_convolutions_as_in_fairseq_signals(edit, tmp_path, stated):
    """There: `if feature_grad_mult > 0: scale the gradient, else: run the convolutions without gradients`."""
    path = edit("finetune", model={"feature_grad_mult": stated})
    assert settings_of(path).config.feature_grad_multiplier == stated
    found = conv_gradient(path, tmp_path / "out")
    if stated <= 0:
        assert found is None
    else:
        whole = conv_gradient(edit("finetune", model={"feature_grad_mult": 1}), tmp_path / "out")
        torch.testing.assert_close(found, stated * whole)


@needs_shared
def test_a_quantizer_of_its_own_width_is_read_off_the_tensors():
    config = settings_of(SHARED / "golden" / "variants" / "latent_dim_pretrain.pt").config
    found = (config.num_codevectors_per_group, config.num_codevector_groups, config.codevector_dim)
    assert (*found, config.proj_codevector_dim) == (5, 3, 24, 16)


@needs_shared
@pytest.mark.parametrize(
    ("variant", "field", "value"),
    [
        ("conv_bias", "conv_bias", True),
        ("extractor_ln", "feat_extract_norm", "layer"),
        ("ln_first", "do_stable_layer_norm", True),
    ],
)
def test_variants_are_recognised(variant, field, value):
    for kind in ("pretrain", "classifier"):
        settings = settings_of(SHARED / "golden" / "variants" / f"{variant}_{kind}.pt")
        assert getattr(settings.config, field) == value
        assert not [warning for warning in settings.warnings if "labels" not in warning]


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("[(256, 2, 2)] * 4", [(256, 2, 2)] * 4),
        (
            "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] * 2",
            [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2,
        ),
        ("3 * [(8, 2, 1), (4, 3, 2)]", [(8, 2, 1), (4, 3, 2)] * 3),
        (" ([(8, 2, 1)] + [(4, 3, 2)]) * 2 ", [(8, 2, 1), (4, 3, 2)] * 2),
        ([[8, 2, 1], [4, 3, 2]], [(8, 2, 1), (4, 3, 2)]),
    ],
)
def test_conv_feature_layers_are_read(text, layers):
    assert parse_conv_feature_layers(text) == layers


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[(256, 2)] * 4",
        "[(256, 2, 2.5)]",
        "[(256, 2, -2)]",
        "[(256, 2, True)]",
        "[(256, 2, 2)] * 10 ** 10",
        "[(256, 2, 2)] * 100000000",
        "(([(256, 2, 2)] * 60) * 60) * 60",
        "[(2, 2, 2)] * 4 * -1",
        "[(256, 2, 2)] - [(1, 1, 1)]",
        "__import__('os').system('true')",
        "[(x, 2, 2) for x in range(4)]",
        "[(256, 2, 2)] if 1 else [(1, 1, 1)]",
        "[*[(1, 2, 3)]]",
        "(" * 1000,
        "-" * 1900 + "1",
        "[(1, 1, 1)]" + " + [(1, 1, 1)]" * 100,
        "[(1, 1, 1)] " + " " * 3000,
        None,
        7,
    ],
)
def test_conv_feature_layers_of_any_other_grammar_are_refused(text):
    with pytest.raises(ValueError, match="conv_feature_layers"):
        parse_conv_feature_layers(text)


def test_python_in_the_settings_is_not_run(edit, tmp_path):
    marker = tmp_path / "marker"
    path = edit("pretrain", model={"conv_feature_layers": f"[open({str(marker)!r}, 'w')]"})
    with pytest.raises(CheckpointError, match="conv_feature_layers cannot be read"):
        settings_of(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("setting", "value", "seen"),
    [
        ("encoder_layers", 6, 2),
        ("encoder_layers", 12, 2),
        ("encoder_ffn_embed_dim", 128, 64),
        ("in_d", 8, 12),
        ("conv_pos", 32, 16),
        ("conv_pos_groups", 8, 4),
        ("conv_bias", True, False),
        ("extractor_mode", "layer_norm", "default"),
        ("conv_feature_layers", "[(24, 2, 2)] * 4", [(16, 2)] * 4),
        ("latent_vars", 320, 8),
        ("latent_groups", 4, 2),
        ("latent_dim", 8, 16),
        ("final_dim", 256, 16),
    ],
)
def test_where_settings_and_tensors_disagree_the_tensors_win_with_a_warning(edit, setting, value, seen):
    expected = settings_of("pretrain").config.to_dict()
    settings = settings_of(edit("pretrain", model={setting: value}))
    assert settings.config.to_dict() == expected
    found = [warning for warning in settings.warnings if setting in warning]
    assert found
    assert repr(value) in found[0]
    assert repr(seen) in found[0]


def test_a_checkpoint_that_agrees_with_itself_gives_no_warning():
    assert settings_of("pretrain").warnings == ()
    assert settings_of("finetune", labels="a,b,c,d,e,f,g,h").warnings == ()


def test_default_settings_leave_the_heads_open():
    with pytest.raises(CheckpointError, match=r"(?s)is 12.*width 32.*heads=N.*like="):
        settings_of("finetune_default_cfg")


def test_heads_of_default_settings_are_not_believed_even_where_they_would_divide_the_width(edit):
    """12 heads divide a width of 48 as well as 4 do; believing the default would give a silently wrong model."""

    def widen(content):
        for name, tensor in content["model"].items():
            repeats = [3 if size == 32 else 1 for size in tensor.shape]
            content["model"][name] = tensor.repeat(repeats)[
                tuple(slice(48) if r == 3 else slice(None) for r in repeats)
            ]
        content["cfg"]["model"]["encoder_embed_dim"] = 48
        content["model"]["encoder.conv_pos.pos_conv.0.parametrizations.weight.original1"] = torch.ones(48, 12, 16)

    path = edit("finetune_default_cfg", widen)
    with pytest.raises(CheckpointError, match="holds the defaults of fairseq-signals"):
        settings_of(path)
    assert settings_of(path, heads=4).config.num_attention_heads == 4


def test_heads_for_another_width_are_not_believed(edit):
    with pytest.raises(CheckpointError, match="for a width of 64, but the tensors have width 32"):
        settings_of(edit("pretrain", model={"encoder_embed_dim": 64}))


@pytest.mark.parametrize("heads", [0, -4, 5, 64])
def test_impossible_heads_are_refused(heads):
    with pytest.raises(ValueError, match=f"heads is {heads}, expected a divisor of the encoder's width of 32"):
        settings_of("finetune_default_cfg", heads=heads)


def test_heads_given_are_taken_and_what_else_is_open_is_reported():
    settings = settings_of("finetune_default_cfg", heads=4)
    assert settings.config.num_attention_heads == 4
    for word in ("encoder_layers", "conv_pos", "conv_feature_layers", "post-norm"):
        assert any(word in warning for warning in settings.warnings), word


ARCHITECTURE = [
    "num_leads",
    "conv_dim",
    "conv_kernel",
    "conv_stride",
    "conv_bias",
    "feat_extract_norm",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "do_stable_layer_norm",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
]


def test_the_pretrained_checkpoint_fills_in_what_default_settings_lack():
    found = settings_of("finetune_default_cfg", like=FIXTURES / "pretrain.pt")
    expected = settings_of("finetune").config
    assert {name: getattr(found.config, name) for name in ARCHITECTURE} == {
        name: getattr(expected, name) for name in ARCHITECTURE
    }
    assert not any("post-norm" in warning for warning in found.warnings)


def test_the_pretrained_checkpoint_decides_pre_norm_and_strides(edit):
    like = edit("pretrain", model={"layer_norm_first": True, "conv_feature_layers": "[(16, 2, 1)] + [(16, 2, 2)] * 3"})
    config = settings_of("finetune_default_cfg", like=like).config
    assert config.do_stable_layer_norm is True
    assert config.conv_stride == [1, 2, 2, 2]


def test_a_pretrained_checkpoint_of_another_shape_is_refused(edit):
    like = edit("pretrain", reshape("encoder.layers.0.fc1.weight", 63, 32))
    with pytest.raises(CheckpointError, match=r"edited\.pt is not the model that it started from"):
        settings_of("finetune_default_cfg", like=like)


def test_a_pretrained_checkpoint_with_unknown_heads_does_not_help(edit):
    like = edit("pretrain", lambda content: content["cfg"]["model"].pop("encoder_attention_heads"))
    with pytest.raises(CheckpointError, match=r"edited\.pt.*encoder_attention_heads is missing"):
        settings_of("finetune_default_cfg", like=like)


def test_heads_and_pretrained_checkpoint_must_agree():
    with pytest.raises(ValueError, match="heads is 8, but the checkpoint given as like has 4"):
        settings_of("finetune_default_cfg", like=FIXTURES / "pretrain.pt", heads=8)


def test_strides_of_other_kernels_are_not_believed(edit):
    path = edit("pretrain", model={"conv_feature_layers": "[(16, 3, 2)] * 4"})
    with pytest.raises(CheckpointError, match=r"does not fit convolutions of kernels \[2, 2, 2, 2\].*like="):
        settings_of(path)
    assert settings_of(path, like=FIXTURES / "pretrain.pt").config.conv_stride == [2] * 4


def test_without_settings_the_pretrained_checkpoint_is_needed(edit):
    path = edit("finetune", lambda content: content.pop("cfg"))
    with pytest.raises(CheckpointError, match="holds no settings"):
        settings_of(path)
    assert settings_of(path, like=FIXTURES / "pretrain.pt").config.num_attention_heads == 4


def test_heads_are_enough_for_a_file_without_settings(edit, tmp_path):
    """The rest is as in the published models, and warnings list it."""
    path = edit("finetune", lambda content: content.pop("cfg"))
    report = convert_checkpoint(path, tmp_path / "out", heads=4, verify=True)
    assert report.largest_difference < 2e-6
    assert report.config.conv_stride == [2] * 4
    for assumed in ("post-norm layers are assumed", "strides of the convolutions are assumed"):
        assert any(assumed in warning for warning in report.warnings)
    inputs = torch.randn(2, 12, 500)
    convert_checkpoint(FIXTURES / "finetune.pt", tmp_path / "whole")
    with torch.no_grad():
        found, expected = (load_model(tmp_path / name)(inputs).logits for name in ("out", "whole"))
    assert torch.equal(found, expected)


def test_only_model_and_model_settings_are_required(edit):
    def strip(content):
        content["cfg"] = {"model": content["cfg"]["model"]}
        for key in list(content):
            if key not in ("cfg", "model"):
                del content[key]

    assert settings_of(edit("pretrain", strip)).config.to_dict() == settings_of("pretrain").config.to_dict()
    assert settings_of(edit("finetune", strip)).config.pos_weight is None


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_an_argparse_namespace_gives_the_same_model_as_a_cfg(edit, name):
    def to_namespace(content):
        cfg = content["cfg"]
        flat = {**cfg["task"], **cfg["criterion"], **cfg["model"]}
        flat |= {"arch": flat.pop("_name"), "criterion": cfg["criterion"]["_name"], "task": cfg["task"]["_name"]}
        flat["latent_temp"] = "(2.0, 0.5, 0.999995)"  # as an old command line has it
        content.update(args=argparse.Namespace(**flat), cfg=None)

    assert settings_of(edit(name, to_namespace)).config.to_dict() == settings_of(name).config.to_dict()


@pytest.mark.parametrize(
    ("section", "setting", "value"),
    [
        ("model", "target_glu", True),
        ("model", "quantize_input", True),
        ("model", "same_quantizer", True),
        ("model", "negatives_from_everywhere", True),
        ("model", "codebook_negatives", 10),
        ("model", "cross_sample_negatives", 5),
        ("model", "quantize_targets", False),
        ("model", "mask_channel_prob", 0.1),
        ("model", "mask_selection", "uniform"),
        ("model", "no_mask_overlap", True),
        ("criterion", "infonce", False),
    ],
)
def test_what_is_not_implemented_in_pretraining_is_refused_by_name(edit, section, setting, value):
    with pytest.raises(CheckpointError, match=f"{setting}={value!r}"):
        settings_of(edit("pretrain", **{section: {setting: value}}))
    if section == "model":
        # A fine-tuned model no longer has that objective.
        settings_of(edit("finetune", model={setting: value}))


def test_all_refusals_are_reported_at_once(edit):
    with pytest.raises(CheckpointError, match=r"target_glu=True, codebook_negatives=3"):
        settings_of(edit("pretrain", model={"target_glu": True, "codebook_negatives": 3}))


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
@pytest.mark.parametrize(("setting", "value"), [("activation_fn", "relu"), ("extractor_mode", "batch_norm")])
def test_another_architecture_is_refused_for_every_model(edit, name, setting, value):
    with pytest.raises(CheckpointError, match=f"{setting}={value!r}"):
        settings_of(edit(name, model={setting: value}))


@pytest.mark.parametrize("name", ["wav2vec2_3kg", "clocs", "resnet_classifier"])
def test_another_model_type_is_refused_by_name(edit, name):
    with pytest.raises(CheckpointError, match=f"model type '{name}' is not implemented"):
        settings_of(edit("pretrain", model={"_name": name}))


def test_pretraining_without_cmsc_is_converted_without_its_loss(edit):
    settings = settings_of(edit("pretrain", model={"_name": "wav2vec2"}, criterion={"_name": "wav2vec2"}))
    assert settings.config.cmsc_loss_weight == 0.0
    assert any("CMSC" in warning for warning in settings.warnings)


def test_the_tensors_show_the_kind_of_model(edit):
    settings = settings_of(edit("finetune", model={"_name": "wav2vec2_cmsc"}))
    assert settings.kind == "classification"
    assert any("_name is 'wav2vec2_cmsc'" in warning for warning in settings.warnings)
    assert settings_of(edit("finetune", model={"_name": None})).kind == "classification"


@pytest.mark.parametrize(("value", "expected"), [(None, (0.0, 0.0)), ([3.0], (3.0, 3.0)), ("[0.1, 10]", (0.1, 10))])
def test_loss_weights_are_read_as_the_original_reads_them(edit, value, expected):
    config = settings_of(edit("pretrain", criterion={"loss_weights": value})).config
    assert (config.diversity_loss_weight, config.feature_penalty_weight) == expected


@pytest.mark.parametrize("value", [[1.0] * 7, [0.0] * 8, [float("inf")] * 8, "nonsense", ["a"] * 8])
def test_a_pos_weight_that_cannot_be_is_left_out_with_a_warning(edit, value):
    settings = settings_of(edit("finetune", criterion={"pos_weight": value}))
    assert settings.config.pos_weight is None
    assert any("it is not carried over" in warning for warning in settings.warnings)


@pytest.mark.parametrize("value", [[2.0], 2.0, np.full(8, 2.0), [2] * 8])
def test_a_pos_weight_in_any_form_the_loss_takes_is_carried_over(edit, value):
    assert settings_of(edit("finetune", criterion={"pos_weight": value})).config.pos_weight == [2.0] * 8


@pytest.mark.parametrize("name", ["pretrain", "finetune", "finetune_default_cfg"])
def test_settings_of_the_wrong_type_never_crash(name):
    checkpoint = load_fairseq_checkpoint(FIXTURES / f"{name}.pt")
    for section in ("model_cfg", "criterion_cfg", "task_cfg"):
        settings = getattr(checkpoint, section)
        for setting in settings:
            for value in (None, [], {}, "x", "[" * 500, True, -1, 0.5, 10**400, float("nan"), [[1, 2]], "1e400"):
                edited = dataclasses.replace(checkpoint, **{section: {**settings, setting: value}})
                # What can be made of it, or an error that says why not.
                with contextlib.suppress(CheckpointError):
                    config_from_checkpoint(edited, heads=4)


def test_a_model_type_of_other_tensors_is_still_refused_by_name(edit):
    path = edit("pretrain", lambda content: content.update(model={"fc.weight": torch.ones(1)}), model={"_name": "fc"})
    with pytest.raises(CheckpointError, match="model type 'fc' is not implemented"):
        settings_of(path)


def test_inputs_that_the_original_changed_while_loading_are_reported(edit):
    warnings = settings_of(edit("pretrain", task={"normalize": True})).warnings
    assert any("normalize" in warning for warning in warnings)


def one_lead_less(content):
    name = "feature_extractor.conv_layers.0.0.weight"
    content["model"][name] = content["model"][name][:, :3]
    content["cfg"]["model"]["in_d"] = 3


def test_leads_are_asked_for_where_the_file_does_not_tell(edit):
    path = edit("pretrain", one_lead_less)
    with pytest.raises(CheckpointError, match=r"takes 3 leads.*lead_names="):
        settings_of(path)
    assert settings_of(path, lead_names=["I", "II", "V2"]).lead_names == ("I", "II", "V2")
    with pytest.raises(ValueError, match="expected 3 different leads"):
        settings_of(path, lead_names=["I", "I", "V2"])


@pytest.mark.parametrize("value", ["[0, 1, 7]", [0, 1, 7], "['I', 'ii', 'v2']"])
def test_leads_that_the_file_states_are_taken(edit, value):
    def change(content):
        one_lead_less(content)
        content["cfg"]["task"]["leads_to_load"] = value

    assert settings_of(edit("pretrain", change)).lead_names == ("I", "II", "V2")


# Labels


def test_mimic17_is_the_published_label_set():
    assert len(MIMIC17.names) == 17
    assert MIMIC17.aggregation.keys() <= set(MIMIC17.names)
    assert "atrial fibrillation and atrial flutter" in MIMIC17.notes["Accessory pathway conduction"]


@needs_shared
def test_mimic17_agrees_with_the_published_label_definition():
    with (SHARED / "data" / "mimic_iv_ecg" / "label_def.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert tuple(rows) == MIMIC17.names
    for name, counts in {
        "Accessory pathway conduction": "74,977",
        "Atrial fibrillation": "63,672",
        "Atrial flutter": "11,258",
    }.items():
        assert f"{int(rows[name]['pos_count_train']):,}" == counts
        assert counts in MIMIC17.notes["Accessory pathway conduction"]
    rare = rows["Ventricular tachycardia"]
    training = round(int(rare["pos_count_train"]) / float(rare["pos_percent_train"]))
    note = MIMIC17.notes["Ventricular tachycardia"]
    assert f"{rare['pos_count_train']} positives in {training:,}" in note
    assert f"{float(rare['pos_weight_train']):,.0f}" in note


def test_physionet26_has_26_names():
    assert len(set(PHYSIONET26.names)) == 26
    assert PHYSIONET26.notes.keys() == {name for codes, _, name in PHYSIONET_CLASSES if len(codes) > 1}


@needs_shared
def test_physionet26_is_in_the_order_of_the_challenge():
    folder = SHARED / "data" / "cinc2021"
    for file, column in (("weights.csv", 0), ("weights_abbreviations.csv", 1)):
        header = (folder / file).read_text().splitlines()[0].split(",")[1:]
        ours = ["|".join(map(str, row[0])) if column == 0 else row[1] for row in PHYSIONET_CLASSES]
        assert ours == header
    with (folder / "dx_mapping_scored.csv").open() as file:
        names = {row["SNOMEDCTCode"]: row["Dx"].lower() for row in csv.DictReader(file)}
    for codes, _, name in PHYSIONET_CLASSES:
        assert name.lower() in {names[str(code)] for code in codes}
        for code in codes if len(codes) > 1 else ():
            assert f"{names[str(code)]} ({code})" in PHYSIONET26.notes[name]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("plain.txt", "b, not a\nc\n\n  d  \n"),
        ("label_def.csv", 'pos_count_train,name\n3,"b, not a"\n4,c\n5, d\n'),
        ("bom.csv", '\ufeffname\n"b, not a"\nc\nd\n'),
    ],
)
def test_labels_come_from_a_file(tmp_path, file, text):
    path = tmp_path / file
    if file == "plain.txt":
        text = text.replace("b, not a", '"b, not a"')
    path.write_text(text, encoding="utf-8")
    assert resolve_labels(str(path), 3).names == ("b, not a", "c", "d")
    assert resolve_labels(path, 3).names == ("b, not a", "c", "d")


@needs_shared
def test_the_published_label_definition_is_read():
    assert resolve_labels(SHARED / "data" / "mimic_iv_ecg" / "label_def.csv", 17).names == MIMIC17.names


def test_labels_come_from_a_list():
    assert resolve_labels("AF, sinus rhythm ,VT", 3).names == ("AF", "sinus rhythm", "VT")
    assert resolve_labels(["AF", "VT"], 2).names == ("AF", "VT")
    assert resolve_labels("one", 1).names == ("one",)


def test_labels_of_another_number_get_the_known_set_of_that_number_named():
    with pytest.raises(SettingsError, match="26 outputs, but mimic17 has 17 labels; physionet26 has as many"):
        resolve_labels("mimic17", 26)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("mimic17", "has 8 outputs, but mimic17 has 17 labels"),
        ("physionet26", "has 8 outputs, but physionet26 has 26 labels$"),
        ("a,b,c", "has 8 outputs, but the list given has 3 labels"),
        ("mimic18", "label sets by name: mimic17, physionet26"),
        ("a,b,c,d,e,f,g,a", "more than once: a"),
        ("a,b,c,d,e,f,g,", "label 7 of the list given is empty"),
        (["a"] * 9, "has 8 outputs, but the list given has 9 labels"),
        (list(range(8)), "expected names"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, message):
    with pytest.raises(SettingsError, match=message):
        convert_checkpoint(FIXTURES / "finetune.pt", tmp_path / "out", labels=labels)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "has no labels"), ("a;b\nx,y\n", "several columns"), ("label,count\na,1\n", "none is called 'name'")],
)
def test_a_label_file_without_names_is_refused(tmp_path, text, message):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        resolve_labels(path, 2)


def test_a_label_file_that_is_missing_or_no_text_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file of labels"):
        resolve_labels(str(tmp_path / "nothing.csv"), 2)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(SettingsError, match="UTF-8"):
        resolve_labels(tmp_path / "binary.csv", 2)


def test_thresholds_come_with_the_labels(tmp_path):
    (tmp_path / "labels.csv").write_text("name,threshold\na,0.25\nb,\n" + "".join(f"{name},0.5\n" for name in "cdefgh"))
    convert_checkpoint(FIXTURES / "finetune.pt", tmp_path / "out", labels=tmp_path / "labels.csv")
    config = load_model(tmp_path / "out").config
    assert config.label_thresholds == {"a": 0.25, **dict.fromkeys("cdefgh", 0.5)}
    (tmp_path / "labels.csv").write_text("name,threshold\na,0.25\nb,high\n")
    with pytest.raises(SettingsError, match="the threshold of 'b' is 'high', expected a number from 0 to 1"):
        resolve_labels(tmp_path / "labels.csv", 2)


def test_labels_for_a_model_without_a_classifier_are_refused():
    with pytest.raises(SettingsError, match="without a classifier"):
        settings_of("pretrain", labels="a,b")


def test_no_labels_means_numbered_outputs_and_a_warning():
    settings = settings_of("finetune")
    assert settings.config.label_names == [f"LABEL_{i}" for i in range(8)]
    assert any("no labels were given" in warning for warning in settings.warnings)


def test_a_label_set_brings_aggregation_and_notes(edit):
    def seventeen(content):
        content["model"]["proj.weight"] = torch.ones(17, 32)
        content["model"]["proj.bias"] = torch.ones(17)
        content["cfg"]["model"]["num_labels"] = 17
        content["cfg"]["criterion"]["pos_weight"] = None

    config = settings_of(edit("finetune", seventeen), labels="mimic17").config
    assert config.label_names == list(MIMIC17.names)
    assert config.label_aggregation == MIMIC17.aggregation
    assert config.label_notes == MIMIC17.notes
    assert config.aggregations()[:3] == ["max", "mean", "max"]
    assert config.label_thresholds is None
    assert config.label_calibration is None


# The folder


def test_a_pretrained_checkpoint_becomes_a_folder_that_loads(tmp_path):
    report = convert_checkpoint(FIXTURES / "pretrain.pt", tmp_path / "out", verify=True)
    assert report.model_class == "ECGFMForPreTraining"
    assert report.num_parameters == 25_056
    assert sum(report.parameters.values()) == 25_056
    assert report.largest_difference < 2e-6
    model, loading = AutoModelForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert isinstance(model, ECGFMForPreTraining)
    assert not any(loading.values())
    source = convert_state_dict(load_fairseq_checkpoint(FIXTURES / "pretrain.pt").tensors)
    assert model.state_dict().keys() == source.keys()
    assert all(torch.equal(tensor, source[name]) for name, tensor in model.state_dict().items())


def test_a_fine_tuned_checkpoint_becomes_a_folder_that_loads(tmp_path):
    labels = [f"label {i}" for i in range(8)]
    report = convert_checkpoint(FIXTURES / "finetune.pt", tmp_path / "out", labels=labels, verify=True)
    assert report.model_class == "ECGFMForMultiLabelClassification"
    assert report.num_parameters == 24_088
    assert report.largest_difference < 2e-6
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert isinstance(model, ECGFMForMultiLabelClassification)
    assert model.config.label_names == labels
    assert model.config.pos_weight == [0.4, 2.3, 2.3, 9.0, 4.0, 4.0, 9.0, 9.0]
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert list(extractor.lead_names) == ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    assert extractor.sampling_rate == 500


@pytest.mark.parametrize("length", [32, 33, 1000])
def test_converted_models_compute_what_the_original_computed(length):
    source = load_fairseq_checkpoint(FIXTURES / "finetune.pt")
    model = build_model(source, config_from_checkpoint(source))
    with np.load(FIXTURES / "finetune_lengths.npz") as golden, torch.no_grad():
        inputs = torch.from_numpy(golden[f"source_{length}"])
        assert relative_difference(model.ecgfm(inputs).last_hidden_state, golden[f"encoder_out_{length}"]) < 1e-5
        assert relative_difference(model.ecgfm(inputs).pooler_output, golden[f"pooled_{length}"]) < 1e-5
        assert relative_difference(model(inputs).logits, golden[f"out_{length}"]) < 1e-5


def test_default_settings_and_the_pretrained_checkpoint_give_a_verified_model(tmp_path):
    report = convert_checkpoint(
        FIXTURES / "finetune_default_cfg.pt", tmp_path / "out", like=FIXTURES / "pretrain.pt", verify=True
    )
    assert report.num_parameters == 24_088
    assert report.largest_difference < 2e-6


def test_old_weight_norm_files_convert_to_the_same_weights(tmp_path):
    for name in ("pretrain", "pretrain_old_weight_norm"):
        convert_checkpoint(FIXTURES / f"{name}.pt", tmp_path / name, verify=True)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("pretrain", "pretrain_old_weight_norm")]
    assert files[0] == files[1]


def paths_in(value):
    if isinstance(value, dict):
        return {path for item in value.values() for path in paths_in(item)}
    if isinstance(value, (list, tuple)):
        return {path for item in value for path in paths_in(item)}
    return {value} if isinstance(value, str) and re.search(r"[/\\]|\.(pt|npy|log|csv|txt)$", value) else set()


def test_no_path_of_the_source_gets_into_the_folder(edit, tmp_path):
    secret = "/home/somebody/study-4711"
    path = edit(
        "finetune",
        model={"data": f"{secret}/data", "model_path": f"{secret}/pretrained.pt", "args": {"data": f"{secret}/more"}},
        task={"data": f"{secret}/data", "label_file": f"{secret}/y.npy"},
        checkpoint={"save_dir": f"{secret}/checkpoints"},
    )
    (tmp_path / "names.csv").write_text("name\n" + "\n".join("abcdefgh"))
    convert_checkpoint(path, tmp_path / "out", labels=tmp_path / "names.csv", like=FIXTURES / "pretrain.pt")
    paths = {*paths_in(torch.load(path, weights_only=False)["cfg"]), secret, "4711", str(tmp_path), str(FIXTURES)}
    assert len(paths) > 8
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert len(files) >= 3
    for file in files:
        content = file.read_bytes()
        assert not [text for text in paths if text.encode() in content], file


def test_a_folder_in_use_is_left_alone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"is not empty|is not an ECG-FM model folder"):
            convert_checkpoint(FIXTURES / "pretrain.pt", out, overwrite=overwrite)
    assert [file.name for file in out.iterdir()] == ["thesis.tex"]
    with pytest.raises(FileExistsError, match="is not a folder"):
        convert_checkpoint(FIXTURES / "pretrain.pt", out / "thesis.tex")


def test_overwriting_replaces_a_model_folder_whole(tmp_path):
    out = tmp_path / "out"
    convert_checkpoint(FIXTURES / "finetune.pt", out)
    (out / "model-00001-of-00002.safetensors").write_text("from before")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        convert_checkpoint(FIXTURES / "pretrain.pt", out)
    convert_checkpoint(FIXTURES / "pretrain.pt", out, overwrite=True)
    assert not (out / "model-00001-of-00002.safetensors").exists()
    assert json.loads((out / "config.json").read_text())["architectures"] == ["ECGFMForPreTraining"]


def test_overwriting_does_not_remove_other_peoples_files(tmp_path):
    out = tmp_path / "out"
    convert_checkpoint(FIXTURES / "finetune.pt", out)
    (out / "results").mkdir()
    with pytest.raises(FileExistsError, match="also holds results"):
        convert_checkpoint(FIXTURES / "finetune.pt", out, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_in_the_folder_meanwhile_is_not_removed(tmp_path, monkeypatch, overwrite):
    from ecgfm_hf.fairseq import convert

    out, save = tmp_path / "out", convert._save

    def save_slowly(*arguments):
        save(*arguments)
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")

    monkeypatch.setattr(convert, "_save", save_slowly)
    with pytest.raises(FileExistsError, match=r"is not empty|is not an ECG-FM model folder"):
        convert_checkpoint(FIXTURES / "finetune.pt", out, overwrite=overwrite)
    assert [file.name for file in out.iterdir()] == ["thesis.tex"]


def test_overwriting_does_not_remove_the_checkpoint_itself(tmp_path):
    out = tmp_path / "out"
    convert_checkpoint(FIXTURES / "pretrain.pt", out)
    inside = out / "source.pt"
    inside.write_bytes((FIXTURES / "pretrain.pt").read_bytes())
    with pytest.raises(FileExistsError, match="holds the checkpoint itself"):
        convert_checkpoint(inside, out, overwrite=True)
    assert inside.exists()


def test_a_conversion_that_fails_leaves_nothing_and_what_was_there(tmp_path, monkeypatch):
    out = tmp_path / "out"
    convert_checkpoint(FIXTURES / "finetune.pt", out)
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}

    def fail(model, settings, folder):
        (folder / "half.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "_save", fail)
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(FIXTURES / "pretrain.pt", out, overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(FIXTURES / "pretrain.pt", tmp_path / "new")
    assert {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_and_a_missing_parent_will_do(tmp_path):
    (tmp_path / "empty").mkdir()
    convert_checkpoint(FIXTURES / "pretrain.pt", tmp_path / "empty")
    convert_checkpoint(FIXTURES / "pretrain.pt", tmp_path / "a" / "b" / "c")
    assert (tmp_path / "empty" / "config.json").exists()
    assert (tmp_path / "a" / "b" / "c" / "config.json").exists()
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_dry_run_reports_and_keeps_nothing(tmp_path):
    report = convert_checkpoint(FIXTURES / "pretrain.pt", tmp_path / "out", dry_run=True, verify=True)
    assert report.output_dir is None
    assert report.num_parameters == 25_056
    assert report.largest_difference < 2e-6
    assert list(tmp_path.iterdir()) == []


def test_half_precision_sources_are_written_in_single_precision(edit, tmp_path):
    def halve(content):
        content["model"] = {name: tensor.half() for name, tensor in content["model"].items()}

    report = convert_checkpoint(edit("pretrain", halve), tmp_path / "out", verify=True)
    assert any("float16" in warning for warning in report.warnings)
    assert report.largest_difference < 2e-6
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_converting_draws_no_random_numbers(tmp_path):
    before = torch.get_rng_state()
    convert_checkpoint(FIXTURES / "pretrain.pt", tmp_path / "out", verify=True)
    assert torch.equal(torch.get_rng_state(), before)


# What a model takes


def test_an_unknown_input_is_refused_with_the_options_to_give(edit, tmp_path, capsys):
    assert main(["convert", str(FIXTURES / "finetune.pt"), str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert "the preprocessing that its model was trained with is unknown" in printed
    assert "--sampling-rate 500 --segment-seconds 5.0 --standardize recording" in printed
    with pytest.raises(UnknownInputError, match=r"\(known: sampling_rate=250\)") as caught:
        convert_with(edit("finetune", task={"sample_rate": 250}), tmp_path / "out")
    assert caught.value.missing == ("segment_seconds", "standardize")
    with pytest.raises(SettingsError, match=r"segment_seconds=0\.0123 is no whole number of samples"):
        convert_checkpoint(FIXTURES / "finetune.pt", tmp_path / "out", segment_seconds=0.0123)
    assert not (tmp_path / "out").exists()


def test_an_unknown_input_is_asked_for_on_a_terminal(tmp_path, monkeypatch, capsys):
    answers = iter(["250", "10", "none"])
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", lambda text, type=str, err=False: type(next(answers)))
    assert main(["convert", str(FIXTURES / "pretrain.pt"), str(tmp_path / "out")]) == 0
    assert "sampling_rate 250, segment_seconds 10.0, standardize none" in capsys.readouterr().out
    extractor = load_feature_extractor(tmp_path / "out")
    assert (extractor.sampling_rate, extractor.segment_samples, extractor.standardize) == (250, 2500, "none")


def test_published_checkpoints_are_recognised_by_name_and_number_of_labels(edit, tmp_path, capsys):
    def seventeen(content):
        content["model"] |= {"proj.weight": torch.ones(17, 32), "proj.bias": torch.ones(17)}
        content["cfg"]["criterion"]["pos_weight"] = None

    path = edit("finetune", seventeen).rename(tmp_path / "mimic_iv_ecg_finetuned.pt")
    assert main(["convert", str(path), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "mimic_iv_ecg_finetuned, by its name and number of labels" in printed.out
    assert "17: Poor data quality, Sinus rhythm" in printed.out
    extractor = load_feature_extractor(tmp_path / "out")
    assert (extractor.sampling_rate, extractor.segment_samples, extractor.standardize) == (500, 2500, "recording")
    report = convert_with(path, tmp_path / "other", sampling_rate=250)
    assert "sampling_rate is 250, as given; the published checkpoint has 500" in report.warnings
    with pytest.raises(UnknownInputError):
        convert_with(edit("finetune", seventeen).rename(tmp_path / "physionet_finetuned.pt"), tmp_path / "no")


@pytest.mark.parametrize("standardize", ["none", "all_leads"])
def test_a_model_for_10_s_at_250_hz_gives_what_an_independent_evaluation_gives(tmp_path, standardize):
    given = {"sampling_rate": 250, "segment_seconds": 10, "standardize": standardize}
    report = convert_checkpoint(FIXTURES / "finetune.pt", tmp_path / "out", verify=True, **given)
    assert report.largest_difference < 1e-5
    # 20 s at 1000 Hz in uV, evaluated with numpy's interpolation and the source's tensors.
    random, leads = np.random.default_rng(0), ECGFMFeatureExtractor().lead_names
    signal = 800 * random.standard_normal((12, 20_000)).cumsum(axis=1) / 100 + 50
    grid = np.linspace(0, 19_999, 5000)
    resampled = np.stack([np.interp(grid, np.arange(20_000), lead / 1000) for lead in signal])
    if standardize == "all_leads":
        resampled = (resampled - resampled.mean()) / resampled.std()
    source = load_fairseq_checkpoint(FIXTURES / "finetune.pt")
    segments = torch.from_numpy(np.stack(np.split(resampled, 2, axis=1))).float()
    expected = reference_forward(source.tensors, segments, strides=[2] * 4, heads=4, pre_norm=False).logits
    recording = {"signal": signal, "sampling_rate": 1000, "lead_names": leads, "units": "uV"}
    model, extractor = load_model(tmp_path / "out"), load_feature_extractor(tmp_path / "out")
    inputs = extractor(signal, sampling_rate=1000, lead_names=leads, units="uV", return_tensors="pt")
    assert inputs["input_values"].shape == (2, 12, 2500)
    with torch.no_grad():
        assert relative_difference(model(**inputs).logits, expected.numpy()) < 1e-5
    scores = load_pipeline(tmp_path / "out")(recording)["scores"]
    assert np.allclose(list(scores.values()), expected.sigmoid().mean(0), atol=1e-5)
    if standardize == "none":
        with pytest.raises(ValueError, match="units are unknown, but the model takes mV"):
            extractor(signal, sampling_rate=1000, lead_names=leads)


@pytest.mark.parametrize("name", ["pretrain", "conv_bias_classifier"])
def test_a_model_cut_to_leads_equals_the_whole_one_with_the_others_at_zero(tmp_path, name):
    report = convert_checkpoint(FIXTURES / f"{name}.pt", tmp_path / "out", keep_leads=["V1", "II"], verify=True)
    assert report.largest_difference < 2e-6
    assert report.lead_names == ("V1", "II")
    convert_checkpoint(FIXTURES / f"{name}.pt", tmp_path / "whole")
    cut, whole = load_model(tmp_path / "out"), load_model(tmp_path / "whole")
    values = torch.randn(2, 12, 1000)
    zeroed = torch.zeros_like(values)
    zeroed[:, [6, 1]] = values[:, [6, 1]]
    with torch.no_grad():
        expected = whole.ecgfm(zeroed).last_hidden_state
        assert relative_difference(cut.ecgfm(values[:, [6, 1]]).last_hidden_state, expected.numpy()) < 2e-6
    with pytest.raises(SettingsError, match=r"keep_leads is V7, expected .* among those of the model: I, II"):
        convert_checkpoint(FIXTURES / f"{name}.pt", tmp_path / "no", keep_leads=["V7"])


# From the Hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A mock Hub with a checkpoint, and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with mock_hub() as hub:
        hub.repositories["wanglab/ecg-fm"] = repository = Repository(private=False)
        content = (FIXTURES / "pretrain.pt").read_bytes()
        repository.commit("main", "weights", {"mimic_iv_ecg_physionet_pretrained.pt": content})
        yield hub


def test_a_checkpoint_on_the_hub_is_downloaded_once_and_recognised(hub, tmp_path, capsys):
    address = "hf://wanglab/ecg-fm/mimic_iv_ecg_physionet_pretrained.pt"
    assert main(["convert", address, str(tmp_path / "out")]) == 0
    assert "mimic_iv_ecg_physionet_pretrained, by its name and number of labels" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").is_file()
    hub.patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert convert_with(address, tmp_path / "again").published == "mimic_iv_ecg_physionet_pretrained"


def test_what_the_hub_does_not_have_is_named(hub):
    for address, message in (
        ("hf://wanglab/ecg-fm/other.pt", "wanglab/ecg-fm has no file other.pt"),
        ("hf://wanglab/other/x.pt", "there is no repository wanglab/other"),
        ("hf://wanglab/ecg-fm@v9/mimic_iv_ecg_physionet_pretrained.pt", "has no revision v9"),
    ):
        with pytest.raises(InputNotFoundError, match=message):
            download_checkpoint(address)
    with pytest.raises(SettingsError, match="expected hf://OWNER/NAME/FILE"):
        download_checkpoint("hf://wanglab/ecg-fm")


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_a_download_fails_in_three_seconds(hub, offline):
    hub.patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    hub.patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    hub.patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    began = time.monotonic()
    reason = "HF_HUB_OFFLINE is set" if offline else "the Hub cannot be reached"
    with pytest.raises(DownloadError, match=f"cannot be downloaded .{reason}.*cache does not have it"):
        download_checkpoint("hf://wanglab/ecg-fm/mimic_iv_ecg_finetuned.pt")
    assert time.monotonic() - began < 3


# Verification


def test_the_reference_computes_what_the_original_computed():
    tensors = load_fairseq_checkpoint(FIXTURES / "finetune.pt").tensors
    with np.load(FIXTURES / "finetune_lengths.npz") as golden:
        for length in (32, 33, 1000):
            inputs = torch.from_numpy(golden[f"source_{length}"])
            found = reference_forward(tensors, inputs, strides=[2] * 4, heads=4, pre_norm=False)
            assert relative_difference(found.frames, golden[f"encoder_out_{length}"]) < 1e-5
            assert relative_difference(found.pooled, golden[f"pooled_{length}"]) < 1e-5
            assert relative_difference(found.logits, golden[f"out_{length}"]) < 1e-5


def evaluate(path, inputs, padding=None):
    source = load_fairseq_checkpoint(path)
    config = config_from_checkpoint(source).config
    num_samples = None if padding is None else (~padding[:, 0]).sum(-1).tolist()
    return reference_forward(
        source.tensors,
        torch.from_numpy(inputs),
        num_samples,
        strides=config.conv_stride,
        heads=config.num_attention_heads,
        pre_norm=config.do_stable_layer_norm,
    )


@needs_shared
def test_the_reference_agrees_with_the_tiny_goldens():
    tiny = SHARED / "golden" / "tiny"
    with np.load(tiny / "a_finetune_eval.npz") as golden:
        found = evaluate(tiny / "finetune_checkpoint.pt", golden["source"])
        assert relative_difference(found.frames, golden["encoder_out"]) < 1e-5
        assert relative_difference(found.pooled, golden["pooled"]) < 1e-5
        assert relative_difference(found.logits, golden["out"]) < 1e-5
    with np.load(tiny / "b_finetune_padded.npz") as golden:
        found = evaluate(tiny / "finetune_checkpoint.pt", golden["source"], golden["padding_mask"])
        assert np.array_equal(~found.frame_mask.numpy(), golden["frame_padding_mask"])
        assert relative_difference(found.frames * found.frame_mask[..., None], golden["encoder_out"]) < 1e-5
        assert relative_difference(found.pooled, golden["pooled"]) < 1e-5
        assert relative_difference(found.logits, golden["out"]) < 1e-5
    with np.load(tiny / "d_pretrain_features.npz") as golden:
        for name in ("pretrain_checkpoint", "pretrain_checkpoint_oldweightnorm_DERIVED"):
            found = evaluate(tiny / f"{name}.pt", golden["source"])
            assert relative_difference(found.frames, golden["x"]) < 1e-5
            found = evaluate(tiny / f"{name}.pt", golden["padded_source"], golden["padded_padding_mask"])
            assert relative_difference(found.frames, golden["padded_x"]) < 1e-5


@needs_shared
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_reference_agrees_with_the_variants(variant):
    folder = SHARED / "golden" / "variants"
    with np.load(folder / f"{variant}.npz") as golden:
        padding = golden["padded_padding_mask"]
        found = evaluate(folder / f"{variant}_pretrain.pt", golden["source"])
        assert relative_difference(found.frames, golden["x"]) < 1e-5
        found = evaluate(folder / f"{variant}_pretrain.pt", golden["padded_source"], padding)
        assert relative_difference(found.frames, golden["padded_x"]) < 1e-5
        found = evaluate(folder / f"{variant}_classifier.pt", golden["source"])
        assert relative_difference(found.frames, golden["cls_encoder_out"]) < 1e-5
        assert relative_difference(found.logits, golden["cls_out"]) < 1e-5
        found = evaluate(folder / f"{variant}_classifier.pt", golden["padded_source"], padding)
        assert relative_difference(found.logits, golden["cls_padded_out"]) < 1e-5


@needs_shared
@pytest.mark.parametrize("kind", ["pretrain", "classifier"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_converts_and_verifies(tmp_path, variant, kind):
    path = SHARED / "golden" / "variants" / f"{variant}_{kind}.pt"
    assert convert_checkpoint(path, tmp_path / "out", verify=True).largest_difference < 2e-6


@needs_shared
@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("pretrain_checkpoint", None),
        ("pretrain_checkpoint_oldweightnorm_DERIVED", None),
        ("finetune_checkpoint", None),
        ("finetune_defaultcfg_checkpoint", "pretrain_checkpoint"),
    ],
)
def test_the_files_of_the_original_trainer_convert_and_verify(tmp_path, name, like):
    tiny = SHARED / "golden" / "tiny"
    like = None if like is None else tiny / f"{like}.pt"
    report = convert_checkpoint(tiny / f"{name}.pt", tmp_path / "out", like=like, verify=True)
    assert report.largest_difference < 2e-6


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_verification_notices_a_wrong_model(name):
    source = load_fairseq_checkpoint(FIXTURES / f"{name}.pt")
    settings = config_from_checkpoint(source)
    assert max(verify_conversion(build_model(source, settings), source.tensors).values()) < 2e-6

    changed = {key: tensor.clone() for key, tensor in source.tensors.items()}
    key = next(key for key in changed if key.endswith("layers.1.fc1.weight"))
    changed[key][3, 5] += 0.01
    assert max(verify_conversion(build_model(source, settings), changed).values()) > 1e-5

    model = build_model(source, settings)
    for layer in model.ecgfm.encoder.layers:
        layer.final_layer_norm.eps = 1e-3
    assert max(verify_conversion(model, source.tensors).values()) > 1e-5


def test_verification_compares_with_what_was_written(tmp_path, monkeypatch):
    save = convert._save

    def save_wrongly(model, settings, folder):
        with torch.no_grad():
            head = model.project_hid.weight  # no output that verification looks at depends on it
            wrong = head.clone()
            wrong[0, 0] += 1e-3
            model.project_hid.weight = torch.nn.Parameter(wrong)
        save(model, settings, folder)

    monkeypatch.setattr(convert, "_save", save_wrongly)
    with pytest.raises(CheckpointError, match=r"1 written tensors differ from the source's: final_proj\.weight"):
        convert_checkpoint(FIXTURES / "pretrain.pt", tmp_path / "out", verify=True)
    assert list(tmp_path.iterdir()) == []


def test_a_difference_fails_the_conversion(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "verify_conversion", lambda *_: {"frames": float("nan")})
    with pytest.raises(CheckpointError, match="frames nan"):
        convert_checkpoint(FIXTURES / "pretrain.pt", tmp_path / "out", verify=True)
    assert list(tmp_path.iterdir()) == []


# Full size


@needs_shared
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("full_base_pretrain", 90_883_072),
        ("full_large_pretrain", 311_940_352),
        ("full_base_classifier17", 90_386_321),
        ("full_large_classifier17", 311_382_161),
    ],
)
def test_full_size_models_have_the_original_s_tensors_to_the_unit(name, parameters):
    full = SHARED / "golden" / "full"
    shapes = json.loads((full / f"{name}_keys_shapes.json").read_text())
    with torch.device("meta"):
        tensors = {key: torch.empty(shape) for key, (shape, _) in shapes.items()}
        architecture = read_architecture(tensors)
        size = ECGFMConfig.large if "large" in name else ECGFMConfig.base
        if architecture.kind == "classification":
            model = ECGFMForMultiLabelClassification(size(mask_time_prob=0.0, num_labels=17))
        else:
            model = ECGFMForPreTraining(size())
    expected = {key: tuple(tensor.shape) for key, tensor in convert_state_dict(tensors).items()}
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == expected
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    preset = model.config
    for field in (
        "hidden_size",
        "num_hidden_layers",
        "intermediate_size",
        "num_conv_pos_embedding_groups",
        "num_leads",
    ):
        assert getattr(architecture, field) == getattr(preset, field)
    for field, value in architecture.quantizer.items():
        assert value == getattr(preset, field)


# The command


def run(*arguments):
    return main(["convert", *map(str, arguments), *INPUT_OPTIONS])


def test_the_command_converts_and_summarises(tmp_path, capsys):
    out = tmp_path / "out"
    code = run(FIXTURES / "finetune.pt", out, "--labels", "a,b,c,d,e,f,g,h", "--verify")
    printed = capsys.readouterr()
    assert code == 0
    assert (out / "model.safetensors").exists()
    for text in ("ECGFMForMultiLabelClassification", "24,088", "8: a, b, c", "difference, logits", str(out)):
        assert text in printed.out
    assert "warning" not in printed.err


def test_the_command_prints_warnings_and_a_dry_run_reports_it(tmp_path, capsys):
    assert run(FIXTURES / "finetune_default_cfg.pt", tmp_path / "out", "--heads", 4, "--dry-run") == 0
    printed = capsys.readouterr()
    assert "warning: cfg.model.encoder_layers is 12, but the tensors have 2, which is used" in printed.err
    assert "nothing (dry run)" in printed.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["finetune_default_cfg.pt", "out"], 1, "--heads"),
        (["README.md", "out"], 1, "not a PyTorch checkpoint"),
        (["nothing.pt", "out"], 2, "no such file"),
        (["finetune.pt", "out", "--labels", "a,b"], 2, "has 8 outputs, but the list given has 2 labels"),
        (["finetune.pt", "out", "--labels", "missing.csv"], 2, "no such file of labels"),
        (["finetune_default_cfg.pt", "out", "--heads", "5"], 2, "heads is 5, expected a divisor"),
        (["finetune_default_cfg.pt", "out", "--like", "gone.pt"], 2, "gone.pt: no such file"),
        (["pretrain.pt", "out", "--leads", "I,II"], 2, "expected 12 different leads"),
        (["finetune.pt", "."], 2, "contains an input"),
    ],
)
def test_the_command_s_exit_status_shows_what_went_wrong(tmp_path, monkeypatch, capsys, arguments, code, message):
    for file in FIXTURES.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
