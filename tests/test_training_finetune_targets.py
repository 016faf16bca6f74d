"""What is learnt: columns of a store or of a table, and what cannot be learnt."""

import dataclasses
import re

import numpy as np
import pytest
import yaml
from datasets import Dataset

from ecgfm_hf.data.finetuning_targets import TargetColumns, balanced_weights, read_targets, untrainable
from ecgfm_hf.training import FinetuneSettings, SettingsError, find_recipe, read_recipe, recipe_names
from ecgfm_hf.training.settings import FINETUNED_MODEL, parse_threshold_rule

RECIPES = ("finetune_mimic_iv_ecg", "finetune_physionet2021", "finetune_small")
ROWS = {
    "recording_id": ["a", "b", "c", "d"],
    "age": [50.0, None, 70.0, float("nan")],
    "sex": ["F", "M", None, "F"],
    "AFIB": [1, 0, None, 1],
    "PVC": [0, 1, 0, 1],
    "rhythm": [2, 0, None, 1],
}


def targets(tmp_path=None, table=None, rows=ROWS, **changes):
    if table is not None:
        (tmp_path / "t.csv").write_text(table)
        changes["targets"] = str(tmp_path / "t.csv")
    columns = TargetColumns(**{"problem_type": "multi_label_classification", **changes})
    return read_targets({"train": Dataset.from_dict(rows)}, columns)


def test_multi_label_columns_keep_what_is_unknown():
    found = targets(labels=["PVC", "AFIB"])
    np.testing.assert_array_equal(found.values["train"], [[0, 1], [1, 0], [0, np.nan], [1, 1]])
    assert found.names == ("PVC", "AFIB")
    assert balanced_weights(found.values["train"]) == pytest.approx([1.0, 0.5])


def test_one_hot_columns_make_a_single_label_where_exactly_one_is_set():
    found = targets(labels=["PVC", "AFIB"], problem_type="single_label_classification")
    # Of recording c only PVC = 0 is known, and d is both.
    assert found.values["train"].tolist() == [1, 0, -100, -100]
    assert found.known("train").tolist() == [True, True, False, False]


def test_a_class_column_of_numbers_or_names():
    single = {"problem_type": "single_label_classification"}
    found = targets(labels=["rhythm"], **single)
    assert (found.names, found.values["train"].tolist()) == (("0", "1", "2"), [2, 0, -100, 1])
    found = targets(labels=["rhythm"], classes=["sinus", "flutter", "fibrillation"], **single)
    assert (found.names, found.values["train"].tolist()) == (("sinus", "flutter", "fibrillation"), [2, 0, -100, 1])
    found = targets(labels=["sex"], classes=["M", "F"], **single)
    assert found.values["train"].tolist() == [1, 0, -100, 1]
    with pytest.raises(SettingsError, match="'sex' of the data has 'F' in train, not one of M, W"):
        targets(labels=["sex"], classes=["M", "W"], **single)


def test_regression_takes_any_number_and_leaves_unknown_ones():
    found = targets(labels=["age"], problem_type="regression").values["train"]
    np.testing.assert_array_equal(found, np.array([[50], [np.nan], [70], [np.nan]], dtype=np.float32))


def test_a_table_beside_the_store_is_joined_by_recording(tmp_path):
    found = targets(
        tmp_path, "recording_id,ejection\nd,35.5\nx,60\na,\nb,55\n", problem_type="regression", labels=["ejection"]
    )
    np.testing.assert_array_equal(found.values["train"], np.array([[np.nan], [55], [np.nan], [35.5]], dtype=np.float32))


def test_a_table_of_targets_is_read_as_spreadsheets_write_it(tmp_path):
    table = "recording_id;Größe;AF\na;1,5;ja\nb;NA;nein\n"
    path = tmp_path / "targets.csv"
    path.write_text(table, encoding="cp1252")
    sizes = targets(targets=str(path), problem_type="regression", labels=["Größe"]).values["train"]
    np.testing.assert_array_equal(sizes, np.array([[1.5], [np.nan], [np.nan], [np.nan]], dtype=np.float32))
    found = targets(targets=str(path), labels=["AF"]).values["train"]
    np.testing.assert_array_equal(found, np.array([[1], [0], [np.nan], [np.nan]], dtype=np.float32))


def test_labels_of_reports_that_were_not_labelled_are_unknown(tmp_path):
    rows = "a,1,labelled\nb,0,no match\nc,0,empty\nd,0,labelled\na,1,labelled\n"
    found = targets(tmp_path, f"recording_id,x,status\n{rows}")
    assert found.names == ("x",)
    np.testing.assert_array_equal(found.values["train"], np.array([[1], [np.nan], [np.nan], [0]], dtype=np.float32))


@pytest.mark.parametrize(
    ("changes", "table", "message"),
    [
        ({"labels": ["AFB"]}, None, "the data has no 'AFB'; did you mean AFIB?"),
        ({"labels": ["recording_id"]}, None, "the data has no 'recording_id'"),
        ({"labels": ["rhythm"]}, None, "'rhythm' of the data must be 0, 1 or unknown, found: 2"),
        ({"labels": ["sex"]}, None, "'sex' of the data must hold numbers, found: 'F'"),
        ({}, "id,x\n1,2\n", "must have a column recording_id"),
        ({}, "recording_id,x\na,1\na,0\n", "rows 1 and 2: recording a has different values: x is '1' and '0'"),
        ({}, "recording_id,x\na\n", "row 1: 1 cells under 2 columns"),
        (
            {},
            "recording_id,x\nz,1\n",
            "its column recording_id has 'z', the store has 'a'",
        ),
        ({"problem_type": "regression"}, "recording_id,x\na,yes\n", "must hold numbers, found: 'yes'"),
        ({"problem_type": "regression"}, "recording_id,x\na,inf\n", "holds an infinite number"),
    ],
)
def test_impossible_targets_are_refused_by_name(tmp_path, changes, table, message):
    with pytest.raises(SettingsError, match=re.escape(message)):
        targets(tmp_path, table, **changes)


def test_labels_without_both_kinds_cannot_be_learnt():
    values = np.array([[1, 0, np.nan, 1], [0, 0, np.nan, np.nan], [1, 0, np.nan, 1]])
    assert untrainable("abcd", values) == {
        "b": "0 positive of 3",
        "c": "0 positive of 0",
        "d": "2 positive of 2",
    }
    assert untrainable("abc", np.array([0, 1, -100, 1])) == {"c": "0 positive of 3"}


# ----------------------------------------------------------------------------------------------------------------------
# Settings and recipes
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_hold_every_setting_and_explain_it(name):
    assert name in recipe_names("finetune")
    assert name not in recipe_names("pretrain")
    text = find_recipe(name).read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    assert set(values) == {spec.name for spec in dataclasses.fields(FinetuneSettings)}
    for key in values:
        line = re.search(rf"^{key}:.*$", text, re.MULTILINE).group()
        assert "  # " in line or key in ("adam_beta1", "adam_beta2", "adam_epsilon"), key
    read_recipe(name, settings_class=FinetuneSettings)


def test_published_recipes_are_the_originals_fine_tuning():
    from ecgfm_hf.fairseq import MIMIC17

    mimic = read_recipe("finetune_mimic_iv_ecg", settings_class=FinetuneSettings)
    physionet = read_recipe("finetune_physionet2021", settings_class=FinetuneSettings)
    for recipe in (mimic, physionet):
        assert (recipe.optim, recipe.adam_beta1, recipe.adam_beta2) == ("fairseq_adam", 0.9, 0.98)
        assert (recipe.adam_epsilon, recipe.learning_rate, recipe.weight_decay) == (1e-8, 1e-6, 0.0)
        assert (recipe.lr_scheduler_type, recipe.save_strategy, recipe.save_total_limit) == ("constant", "epoch", None)
        assert recipe.model == FINETUNED_MODEL
    assert (mimic.num_train_epochs, mimic.per_device_train_batch_size, mimic.effective_batch(1)) == (40, 256, 256)
    assert (physionet.num_train_epochs, physionet.per_device_train_batch_size) == (50, 64)
    assert physionet.effective_batch(processes=4) == 256
    assert (mimic.valid_split, physionet.valid_split, physionet.eval_strategy) == (None, "valid", "epoch")
    assert (mimic.pos_weight, physionet.pos_weight) == ("mimic17", "physionet26")
    assert mimic.label_aggregation == MIMIC17.aggregation
    free = {"source", "prepare", "label_aggregation", "num_train_epochs", "per_device_train_batch_size", "valid_split"}
    free |= {"pos_weight"}
    assert all(
        getattr(mimic, s.name) == getattr(physionet, s.name)
        for s in dataclasses.fields(FinetuneSettings)
        if s.name not in free
    )


def test_defaults_of_the_settings_are_the_published_ones():
    published, defaults = read_recipe("finetune_physionet2021", settings_class=FinetuneSettings), FinetuneSettings()
    # On one process, for any labels, without filling the disk.
    free = {"source", "prepare", "pos_weight", "dataloader_num_workers", "gradient_accumulation_steps"}
    free |= {"save_total_limit"}
    for spec in dataclasses.fields(FinetuneSettings):
        if spec.name not in free:
            assert getattr(published, spec.name) == getattr(defaults, spec.name), spec.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("learning_rat=1", "unknown setting learning_rat; did you mean learning_rate?"),
        ("model.hiden_size=8", "unknown setting model.hiden_size; did you mean hidden_size?"),
        ("model.pos_weight=[1]", "model.pos_weight is decided by other settings"),
        ("test_split=valid", "train_split, valid_split and test_split must differ, found: train, valid, valid"),
        ("valid_split=null", "early_stopping_patience needs a validation split, but valid_split is null"),
        ("thresholds=0.5", "thresholds must be text, found: 0.5"),
        ("thresholds=sensitivity:1.5", "thresholds must be youden, f1, sensitivity:0.9"),
        ("freeze_encoder=all", "freeze_encoder must be a number of updates or always, found: 'all'"),
        ("pos_weight=auto", "pos_weight must be balanced, mimic17, physionet26, null or a list of numbers"),
        ("layer_decay=2", "layer_decay must be above 0 and at most 1, found: 2.0"),
        ("labels=[a, a]", "labels must be different names, at least one"),
        ("label_aggregation.x=median", "label_aggregation of 'x' must be one of mean, max"),
        ("problem_type=binary", "problem_type must be one of"),
        ("source=ptb", "source must be one of"),
        ("eval_strategy=steps", "must come with each validation: set save_strategy=steps save_steps=500"),
        ("eval_strategy=no", "eval_strategy is no: to train without validation, set valid_split=null"),
        ("classes=[a, b]", "classes names the classes of one column"),
    ],
)
def test_impossible_settings_are_refused_by_name(change, message):
    with pytest.raises(SettingsError) as error:
        read_recipe("finetune_small", [change], FinetuneSettings)
    assert message in str(error.value)


def test_lora_and_a_frozen_encoder_do_not_go_together():
    with pytest.raises(SettingsError, match="lora and freeze_encoder exclude each other"):
        FinetuneSettings(lora={"r": 4}, freeze_encoder=3)


def test_parse_threshold_rules():
    assert parse_threshold_rule("none") is None
    assert parse_threshold_rule("f1") == ("f1", None)
    assert parse_threshold_rule("sensitivity:0.95") == ("sensitivity", 0.95)
