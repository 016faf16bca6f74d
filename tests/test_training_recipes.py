"""Recipes: every key explained, none unknown, changes typed as YAML has them."""

import dataclasses
import re

import pytest
import yaml

from ecgfm_hf import ECGFMConfig
from ecgfm_hf.cli.main import main
from ecgfm_hf.training import FinetuneSettings, PretrainSettings, SettingsError, find_recipe, read_recipe, recipe_names
from ecgfm_hf.training.settings import REFUSED_TRAINING_ARGS, RENAMED

RECIPES = ("pretrain_base", "pretrain_large", "pretrain_tiny")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_hold_every_setting_and_explain_it(name):
    assert name in recipe_names()
    text = find_recipe(name).read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    assert set(values) == {spec.name for spec in dataclasses.fields(PretrainSettings)}
    own_words = {"model", "learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon"}
    for key in values:
        line = re.search(rf"^{key}:.*$", text, re.MULTILINE).group()
        assert "  # " in line or key in own_words, key
    assert find_recipe(find_recipe(name)) == find_recipe(f"{name}.yaml") == find_recipe(name)


def test_base_and_large_are_the_published_ones():
    base, large = read_recipe("pretrain_base"), read_recipe("pretrain_large")
    assert dataclasses.replace(large, architecture="base") == base
    assert base.effective_batch(processes=4) == 1024
    assert (base.optim, base.learning_rate, base.adam_beta1, base.adam_beta2) == ("fairseq_adam", 5e-5, 0.9, 0.98)
    assert (base.adam_epsilon, base.weight_decay, base.max_grad_norm) == (1e-6, 0.01, 0.0)
    assert (base.lr_scheduler_type, base.warmup_steps, base.num_train_epochs) == ("constant", 0, 200)
    assert (base.pairs, base.cmsc_positives) == (64, "recording")
    assert base.augmentations == {"random_lead_masking": {"p": 0.5}}
    # A checkpoint every tenth epoch, all kept; validation every epoch.
    assert (base.save_strategy, base.save_steps * base.num_train_epochs, base.save_total_limit) == ("steps", 10, None)
    assert base.eval_strategy == "epoch"
    assert ECGFMConfig.base(**base.model) == ECGFMConfig.base()
    assert ECGFMConfig.large(**large.model) == ECGFMConfig.large()
    tiny = read_recipe("pretrain_tiny")
    assert ECGFMConfig.base(**tiny.model).num_frames(2500) == 78


def test_defaults_of_the_settings_are_the_recipes():
    base = read_recipe("pretrain_base")
    differs = {"model", "augmentations", "dataloader_num_workers", "save_strategy", "save_steps", "save_total_limit"}
    for spec in dataclasses.fields(PretrainSettings):
        if spec.name not in differs:
            assert getattr(base, spec.name) == getattr(PretrainSettings(), spec.name), spec.name


def test_changes_are_typed_as_yaml_has_them():
    settings = read_recipe(
        "pretrain_tiny",
        [
            "data=some/store",
            "learning_rate=5e-5",
            "warmup_steps=1e2",
            "per_device_train_batch_size=16",
            "valid_split=null",
            "adam_beta2=1e-1",
            "save_strategy=no",
            "num_train_epochs=0.5",
            "model.hidden_dropout=0",
            "model.conv_dim=[8, 8, 8, 8, 8]",
            "feature_extractor.nan_samples=interpolate",
            "augmentations={}",
            "report_to=[wandb]",
        ],
    )
    assert (settings.data, settings.learning_rate, settings.warmup_steps, settings.pairs) == (
        "some/store",
        5e-5,
        100,
        8,
    )
    assert (settings.valid_split, settings.adam_beta2, settings.save_strategy) == (None, 0.1, "no")
    assert settings.total_steps(steps_per_epoch=7) == 4
    assert settings.model["hidden_dropout"] == 0
    assert settings.model["conv_dim"] == [8] * 5
    assert settings.model["hidden_size"] == 128
    assert settings.feature_extractor == {"nan_samples": "interpolate"}
    assert (settings.augmentations, settings.report_to) == ({}, ["wandb"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("learning_rat=1e-4", "unknown setting learning_rat; did you mean learning_rate?"),
        ("model.hiden_size=8", "unknown setting model.hiden_size; did you mean hidden_size?"),
        ("seed.x=1", "seed.x: seed is not a mapping"),
        ("seed=4.5", "pretrain_tiny.yaml as changed: seed must be a whole number, found: 4.5"),
        ("per_device_train_batch_size=0", "per_device_train_batch_size must be at least 1, found: 0"),
        (
            "per_device_train_batch_size=7",
            "must be even, as segments come in pairs, found: 7",
        ),
        ("seed=true", "seed must be a whole number, found: True"),
        ("learning_rate=fast", "learning_rate must be a number, found: 'fast'"),
        ("learning_rate=.nan", "learning_rate must be at least 0, found: nan"),
        ("optim=adam", "optim must be one of fairseq_adam, adamw_torch_fused, found: 'adam'"),
        ("adam_beta1=1", "adam_beta1 must be at least 0 and below 1, found: 1.0"),
        ("num_train_epochs=0", "num_train_epochs is 0 and max_steps is -1: set one of them"),
        ("num_train_epochs=null", "num_train_epochs must be a number, found: None"),
        ("max_steps=0", "max_steps must be at least 1, or -1 for num_train_epochs, found: 0"),
        ("warmup_steps=2.5", "warmup_steps must be a whole number of steps or a share below 1, found: 2.5"),
        ("lr_scheduler_type=constant", "lr_scheduler_type=constant has no warm-up, found warmup_steps=0.08"),
        ("lr_scheduler_type=fixed", "cosine, found: 'fixed'; fixed is now constant"),
        ("seed", "changes look like key=value, found: seed"),
        ("report_to=[wandb", "report_to: '[wandb' is not YAML"),
    ],
)
def test_impossible_settings_are_refused_by_name(change, message):
    with pytest.raises(SettingsError) as error:
        read_recipe("pretrain_tiny", [change])
    assert message in str(error.value)


def test_files_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 3\nmodel:\n  hidden_size: 64\n")
    assert read_recipe(path).seed == 3
    path.write_text("seed: 3\nsede: 3\n")
    with pytest.raises(SettingsError, match=re.escape(f"{path}: unknown setting sede; did you mean seed?")):
        read_recipe(path)
    path.write_text("seed: 3\nseed: 4\n")
    with pytest.raises(SettingsError, match="found seed twice"):
        read_recipe(path)
    path.write_text("- seed\n")
    with pytest.raises(SettingsError, match="must hold key: value lines, found list"):
        read_recipe(path)
    with pytest.raises(SettingsError, match="no recipe 'pretrain_bas'; did you mean pretrain_base"):
        find_recipe("pretrain_bas")


def run(*arguments):
    return main(["pretrain", "--config", *arguments])


def test_the_command_shows_a_recipe_and_refuses_what_is_wrong(capsys):
    assert run("pretrain_tiny", "seed=7", "--show") == 0
    shown = capsys.readouterr().out
    assert "# Required. A store that `ecgfm prepare` wrote" in shown
    assert yaml.safe_load(shown.partition("# As changed:")[2])["seed"] == 7
    for arguments, message in (
        (("pretrain_tin",), "did you mean pretrain_tiny"),
        (("pretrain_tiny", "sede=7"), "unknown setting sede; did you mean seed?"),
        (("pretrain_tiny", "output_dir=out", "use_cpu=true"), "data is required"),
    ):
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("old", RENAMED)
def test_names_of_0_1_0_are_refused_with_the_new_ones(old, tmp_path):
    new, remark = RENAMED[old]
    found = 0
    for recipe, cls in (("pretrain_tiny", PretrainSettings), ("finetune_small", FinetuneSettings)):
        known = {spec.name for spec in dataclasses.fields(cls)}
        if new.split(", ")[0] not in known:
            continue
        found += 1
        assert set(new.split(", ")) <= known
        message = re.escape(f"{old} is now {new}" + (f" ({remark})" if remark else ""))
        with pytest.raises(SettingsError, match=message):
            read_recipe(recipe, [f"{old}=1"], cls)
        with pytest.raises(SettingsError, match=message):
            cls(**{old: 1})
        path = tmp_path / "old.yaml"
        path.write_text(f"{old}: 1\n")
        with pytest.raises(SettingsError, match=re.escape(str(path)) + ".*" + message):
            read_recipe(path, (), cls)
    assert found


def test_a_misspelt_name_in_python_is_refused_with_the_right_one():
    with pytest.raises(SettingsError, match="unknown setting learning_rat; did you mean learning_rate"):
        FinetuneSettings(learning_rat=1)


def test_other_training_arguments_are_passed_on_unless_they_would_break_a_promise():
    settings = read_recipe("finetune_small", ["training_args.dataloader_prefetch_factor=4"], FinetuneSettings)
    assert settings.training_args == {"dataloader_prefetch_factor": 4}
    for name, message in (
        ("seed", "training_args.seed is a setting of its own: set seed"),
        ("push_to_hub", "training_args.push_to_hub cannot be set: it would upload absolute paths"),
        ("loging_dir", "unknown setting training_args.loging_dir; did you mean"),
    ):
        with pytest.raises(SettingsError, match=re.escape(message)):
            FinetuneSettings(training_args={name: True})


def test_refused_training_arguments_exist_and_every_other_one_can_be_passed_on():
    from transformers import TrainingArguments

    known = {spec.name for spec in dataclasses.fields(TrainingArguments) if spec.init}
    own = {spec.name for spec in dataclasses.fields(FinetuneSettings)}
    assert not own & REFUSED_TRAINING_ARGS.keys()
    # Fields that came or went between the versions of transformers that are supported.
    assert len(REFUSED_TRAINING_ARGS.keys() - known) < 8
    FinetuneSettings(training_args=dict.fromkeys(known - own - REFUSED_TRAINING_ARGS.keys()))
