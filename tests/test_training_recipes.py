"""Recipes: every key explained, none unknown, changes typed as YAML has them."""

import argparse
import dataclasses
import re

import pytest
import yaml

from ecgfm_hf import ECGFMConfig
from ecgfm_hf.cli.pretrain import add_pretrain_arguments, run_pretrain
from ecgfm_hf.training import PretrainSettings, SettingsError, find_recipe, read_recipe, recipe_names
from ecgfm_hf.training.settings import effective_batch

RECIPES = ("pretrain_base", "pretrain_large", "pretrain_tiny")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_hold_every_setting_and_explain_it(name):
    assert name in recipe_names()
    text = find_recipe(name).read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    assert set(values) == {spec.name for spec in dataclasses.fields(PretrainSettings)}
    own_words = {"model", "learning_rate", "betas", "eps"}
    for key in values:
        line = re.search(rf"^{key}:.*$", text, re.MULTILINE).group()
        assert "  # " in line or key in own_words, key
    assert find_recipe(find_recipe(name)) == find_recipe(f"{name}.yaml") == find_recipe(name)


def test_base_and_large_are_the_published_ones():
    base, large = read_recipe("pretrain_base"), read_recipe("pretrain_large")
    assert dataclasses.replace(large, architecture="base") == base
    assert effective_batch(base, processes=4) == 1024
    assert (base.optimizer, base.learning_rate, base.betas) == ("fairseq_adam", 5e-5, [0.9, 0.98])
    assert (base.eps, base.weight_decay, base.clip_norm) == (1e-6, 0.01, 0.0)
    assert (base.schedule, base.warmup, base.epochs, base.cmsc_positives) == ("fixed", 0, 200, "recording")
    assert base.augmentations == {"random_lead_masking": {"p": 0.5}}
    assert ECGFMConfig.base(**base.model) == ECGFMConfig.base()
    assert ECGFMConfig.large(**large.model) == ECGFMConfig.large()
    tiny = read_recipe("pretrain_tiny")
    assert ECGFMConfig.base(**tiny.model).num_frames(2500) == 78


def test_defaults_of_the_settings_are_the_recipes():
    base = read_recipe("pretrain_base")
    differs = {"model", "augmentations", "num_workers"}
    for spec in dataclasses.fields(PretrainSettings):
        if spec.name not in differs:
            assert getattr(base, spec.name) == getattr(PretrainSettings(), spec.name), spec.name


def test_changes_are_typed_as_yaml_has_them():
    settings = read_recipe(
        "pretrain_tiny",
        [
            "data=some/store",
            "learning_rate=5e-5",
            "warmup=1e2",
            "pairs=16",
            "valid_split=null",
            "betas=[0.9, 1e-1]",
            "model.hidden_dropout=0",
            "model.conv_dim=[8, 8, 8, 8, 8]",
            "feature_extractor.nan_samples=interpolate",
            "augmentations={}",
            "trackers=[wandb]",
        ],
    )
    assert (settings.data, settings.learning_rate, settings.warmup, settings.pairs) == ("some/store", 5e-5, 100, 16)
    assert (settings.valid_split, settings.betas) == (None, [0.9, 0.1])
    assert settings.model["hidden_dropout"] == 0
    assert settings.model["conv_dim"] == [8] * 5
    assert settings.model["hidden_size"] == 128
    assert settings.feature_extractor == {"nan_samples": "interpolate"}
    assert (settings.augmentations, settings.trackers) == ({}, ["wandb"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("learning_rat=1e-4", "unknown setting learning_rat; did you mean learning_rate?"),
        ("model.hiden_size=8", "unknown setting model.hiden_size; did you mean hidden_size?"),
        ("pairs.x=1", "pairs.x: pairs is no mapping"),
        ("pairs=4.5", "pretrain_tiny.yaml as changed: pairs must be a whole number, found: 4.5"),
        ("pairs=0", "pairs must be at least 1, found: 0"),
        ("pairs=true", "pairs must be a whole number, found: True"),
        ("learning_rate=fast", "learning_rate must be a number, found: 'fast'"),
        ("learning_rate=.nan", "learning_rate must be at least 0, found: nan"),
        ("precision=bf16", "precision must be one of float32, bfloat16, float16, found: 'bf16'"),
        ("betas=[0.9]", "betas must be two numbers"),
        ("epochs=null", "epochs and max_updates are both null"),
        ("warmup=2.5", "warmup must be a share below 1 or a whole number"),
        ("pairs", "changes look like key=value, found: pairs"),
        ("betas=[0.9", "betas: '[0.9' is no YAML"),
    ],
)
def test_impossible_settings_are_refused_by_name(change, message):
    with pytest.raises(SettingsError) as error:
        read_recipe("pretrain_tiny", [change])
    assert message in str(error.value)


def test_files_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("pairs: 3\nmodel:\n  hidden_size: 64\n")
    assert read_recipe(path).pairs == 3
    path.write_text("pairs: 3\npair: 3\n")
    with pytest.raises(SettingsError, match=re.escape(f"{path}: unknown setting pair; did you mean pairs?")):
        read_recipe(path)
    path.write_text("pairs: 3\npairs: 4\n")
    with pytest.raises(SettingsError, match="found pairs twice"):
        read_recipe(path)
    path.write_text("- pairs\n")
    with pytest.raises(SettingsError, match="must hold key: value lines, found list"):
        read_recipe(path)
    with pytest.raises(SettingsError, match="no recipe 'pretrain_bas'; did you mean pretrain_base"):
        find_recipe("pretrain_bas")


def run(*arguments):
    parser = argparse.ArgumentParser()
    add_pretrain_arguments(parser)
    return run_pretrain(parser.parse_args(["--config", *arguments]))


def test_the_command_shows_a_recipe_and_refuses_what_is_wrong(capsys):
    assert run("pretrain_tiny", "pairs=7", "--show") == 0
    shown = capsys.readouterr().out
    assert "# Required. A store that `ecgfm prepare` wrote" in shown
    assert yaml.safe_load(shown.partition("# As changed:")[2])["pairs"] == 7
    for arguments, message in (
        (("pretrain_tin",), "did you mean pretrain_tiny"),
        (("pretrain_tiny", "pair=7"), "unknown setting pair; did you mean pairs?"),
        (("pretrain_tiny", "output_dir=out", "device=cpu"), "data is required"),
    ):
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err
