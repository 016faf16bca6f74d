"""Training commands of fairseq-signals: translated, run, and refused where they have no counterpart."""

import dataclasses
import re

import pytest
import torch
from doc_blocks import ROOT
from finetune_cases import recordings

from ecgfm_hf import ECGFMConfig, ECGFMModel
from ecgfm_hf.cli import fairseq_hydra_train
from ecgfm_hf.cli.main import main
from ecgfm_hf.data import load_arrays, load_prepared
from ecgfm_hf.fairseq import export_fairseq_folder
from ecgfm_hf.fairseq.training_options import OPTIONS, read_configuration, translate
from ecgfm_hf.model_folder import load_model
from ecgfm_hf.training import FinetuneSettings, PretrainSettings, SettingsError, read_recipe

# The settings of the original's two configurations that decide something.
CONFIGURATIONS = {
    "w2v_cmsc_rlm": """
common: {fp16: false, log_format: json, log_interval: 10}
checkpoint: {save_dir: checkpoints, save_interval: 1, keep_last_epochs: 1, no_epoch_checkpoints: false}
task: {_name: ecg_pretraining, data: "???", perturbation_mode: [random_leads_masking], p: [1.0], mask_leads_prob: 0.5,
  mask_leads_selection: random, normalize: false, enable_padding: true, leads_to_load: null}
dataset: {num_workers: 6, max_tokens: null, batch_size: 64, valid_subset: "", disable_validation: true}
distributed_training: {distributed_world_size: 4}
criterion: {_name: wav2vec2_with_cmsc, infonce: true, log_keys: [temp], loss_weights: [0.1, 10]}
optimization: {max_epoch: 200, lr: [5e-5], update_freq: [2]}
optimizer: {_name: adam, adam_betas: "(0.9, 0.98)", adam_eps: 1e-06, weight_decay: 0.01}
lr_scheduler: {_name: fixed, warmup_updates: 0}
model: {_name: wav2vec2_cmsc, apply_mask: true, mask_prob: 0.65, quantize_targets: true, final_dim: 256,
  dropout_input: 0.1, dropout_features: 0.1, feature_grad_mult: 0.1, encoder_embed_dim: 768, in_d: 12}
""",
    "diagnosis": """
common: {fp16: false, log_format: json, all_gather_list_size: 2048000}
checkpoint: {save_dir: checkpoints, save_interval: 1, keep_last_epochs: 1, save_interval_updates: 0}
task: {_name: ecg_classification, data: "???", normalize: false, enable_padding: true, leads_to_load: null}
dataset: {num_workers: 6, batch_size: 128, valid_subset: "valid,test"}
distributed_training: {distributed_world_size: 1}
criterion: {_name: binary_cross_entropy_with_logits, report_auc: true, report_cinc_score: false, weights_file: "???"}
optimization: {max_epoch: 100, max_update: 320000, lr: [0.00005]}
optimizer: {_name: adam, adam_betas: "(0.9, 0.98)", adam_eps: 1e-08}
lr_scheduler: {_name: fixed, warmup_updates: 0}
model: {_name: ecg_transformer_classifier, model_path: null, num_labels: 26, no_pretrained_weights: false, dropout: 0.0,
  attention_dropout: 0.0, activation_dropout: 0.1, feature_grad_mult: 0.0, freeze_finetune_updates: 0, in_d: 12}
""",
}
# As in the README of ECG-FM.
PRETRAINING = [
    *("dataset.valid_subset=valid", "dataset.batch_size=64", "dataset.num_workers=10"),
    *("dataset.disable_validation=false", "distributed_training.distributed_world_size=4"),
    *("optimization.update_freq=[2]", "checkpoint.save_interval=10", "checkpoint.keep_last_epochs=0"),
    "common.log_format=csv",
]
FINETUNING = [
    *("optimization.lr=[1e-06]", "optimization.max_epoch=140", "dataset.batch_size=256", "dataset.num_workers=5"),
    *("dataset.disable_validation=true", "distributed_training.distributed_world_size=1"),
    *("distributed_training.find_unused_parameters=True", "checkpoint.save_interval=1"),
    *("checkpoint.keep_last_epochs=0", "common.log_format=csv"),
]


@pytest.fixture
def configurations(tmp_path):
    for name, text in CONFIGURATIONS.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def translated(folder, name, *overrides):
    return translate(read_configuration(folder, name, ["task.data=DATA", "checkpoint.save_dir=OUT", *overrides]))


def test_the_published_pretraining_is_the_recipe_of_the_published_model(configurations):
    found = translated(configurations, "w2v_cmsc_rlm", *PRETRAINING)
    settings = read_recipe(found.recipe, found.arguments[3:])
    published = read_recipe("pretrain_base", ["data=DATA", "output_dir=OUT", "processes=4"])
    assert dataclasses.replace(settings, model=published.model) == published
    assert ECGFMConfig.base(**settings.model) == ECGFMConfig.base(**published.model)
    assert settings.effective_batch(4) == 1024
    assert [note.partition("=")[0] for note in found.notes] == [
        *("common.log_format", "task.enable_padding", "criterion.log_keys", "model.apply_mask")
    ]


def test_the_published_fine_tuning_is_translated_option_by_option(configurations, tmp_path):
    added = [
        "model.model_path=MODEL",
        "model.num_labels=2",
        "+task.label_file=L/y.npy",
        "+criterion.pos_weight=[2.0,3.5]",
    ]
    found = translated(configurations, "diagnosis", *FINETUNING, *added)
    settings = read_recipe(found.recipe, found.arguments[3:], FinetuneSettings)
    expected = {
        **{"data": "DATA", "output_dir": "OUT", "init_from": "MODEL", "targets": "L/y.npy", "pos_weight": [2.0, 3.5]},
        **{"learning_rate": 1e-6, "num_train_epochs": 140, "per_device_train_batch_size": 256, "processes": 1},
        **{"gradient_accumulation_steps": 1, "valid_split": None, "save_strategy": "epoch", "save_total_limit": None},
        **{
            "adam_beta1": 0.9,
            "adam_beta2": 0.98,
            "adam_epsilon": 1e-8,
            "weight_decay": 0.0,
            "dataloader_num_workers": 5,
        },
        **{
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "freeze_encoder": 0,
            "source": None,
            "dataloader_num_workers": 5,
        },
    }
    assert {name: getattr(settings, name) for name in expected} == expected
    assert settings.model["activation_dropout"] == 0.1
    assert settings.model["feature_grad_multiplier"] == 0.0
    # A checkpoint of fairseq-signals is converted first.
    (tmp_path / "weights.pt").write_bytes(b"")
    with_file = translated(configurations, "diagnosis", f"model.model_path={tmp_path / 'weights.pt'}")
    assert with_file.checkpoint == tmp_path / "weights.pt"
    # Of several validation subsets the first chooses the best checkpoint.
    assert with_file.settings["valid_split"] == "valid"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("task.normalize=true", "task.normalize=true has no counterpart: segments are standardised"),
        ("optimization.lr=[1e-4,1e-5]", "learning_rate takes one number"),
        ("optimization.lrs=[1e-4]", r"no counterpart here.*optimization\.lr"),
        ("lr_scheduler._name=tri_stage", "lr_scheduler._name=tri_stage has no counterpart here, only fixed"),
        ("task._name=ecg_question_answering", "only ecg_pretraining, ecg_classification"),
        ("task.perturbation_mode=[emg_noise]", "needs a store"),
        ("hydra.run.dir=x", "hydra.run.dir=x has no counterpart"),
        ("~task.p", "changes look like group.key=value"),
    ],
)
def test_an_option_without_a_counterpart_is_an_error_that_names_it(configurations, option, message):
    with pytest.raises(SettingsError, match=message):
        translated(configurations, "w2v_cmsc_rlm", option)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("optimization.update_freq=[2]", "here gradient_accumulation_steps=2"),
        ("update_freq=[2]", "here gradient_accumulation_steps=2"),
        ("gradient_accumulation_steps=[2]", r"found: \[2\]: write gradient_accumulation_steps=2"),
        ("+task.label_file=y.npy", "here targets=y.npy"),
        ("model.encoder_layers=24", "here model.num_hidden_layers=24"),
        ("common.log_format=csv", "without a counterpart here: progress is text"),
    ],
)
def test_an_option_of_fairseq_signals_typed_to_our_command_gets_ours(typed, message):
    with pytest.raises(SettingsError, match=message):
        read_recipe("pretrain_tiny", [typed])


def test_every_setting_in_the_table_exists_here():
    known = {*PretrainSettings.__dataclass_fields__, *FinetuneSettings.__dataclass_fields__}
    for key, option in OPTIONS.items():
        assert option.ours or option.reason, key
        for name in option.ours:
            group, _, own = name.partition(".")
            assert own in ECGFMConfig.__annotations__ if group == "model" and own else name in known, (key, name)


def test_the_page_explains_each_option_of_the_two_published_commands():
    text = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    section = text.partition("## The two commands as typed\n")[2].partition("\n## ")[0]
    rows = {
        cells[0]: cells for line in section.splitlines() if (cells := re.findall(r"`([^`]+)`", line)) and "|" in line
    }
    typed = ["task.data=", "checkpoint.save_dir=", *PRETRAINING, *FINETUNING, "model.model_path=", "model.num_labels="]
    typed += ["+task.label_file=", "+criterion.pos_weight="]
    names = {option.partition("=")[0].lstrip("+") for option in typed}
    assert set(rows) == {*names, "--config-dir", "--config-name"}
    for name in names:
        assert set(OPTIONS[name].ours) <= set(rows[name]), name
    tests = {cell for cells in rows.values() for cell in cells if cell.startswith("test_")}
    assert tests
    assert all(test in globals() for test in tests)


def test_fine_tuning_from_a_checkpoint_file_runs_to_the_end(configurations, checkpoint_path, tmp_path, capsys):
    found, labels = recordings(6)
    halves = {"split": "grouped", "fractions": {"train": 0.5, "valid": 0.5}}
    load_arrays(found, tmp_path / "store", {name: labels[name] for name in ("fast", "slow")}, progress=False, **halves)
    export_fairseq_folder(load_prepared(tmp_path / "store", cache_dir=tmp_path / "cache"), tmp_path / "processed")
    capsys.readouterr()
    typed = [
        *(f"task.data={tmp_path / 'processed' / 'manifests'}", f"model.model_path={checkpoint_path('pretrain')}"),
        *(f"checkpoint.save_dir={tmp_path / 'run'}", "model.num_labels=2", "+criterion.pos_weight=[1.0,2.0]"),
        f"+task.label_file={tmp_path / 'processed' / 'labels' / 'y.npy'}",
        *("optimization.max_epoch=1", "dataset.batch_size=4", "dataset.num_workers=0", "dataset.valid_subset=valid"),
    ]
    given = [*FINETUNING, *typed, "--config-dir", str(configurations), "--config-name", "diagnosis"]
    assert main(["fairseq-hydra-train", *given]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"ecgfm convert {checkpoint_path('pretrain')} {tmp_path / 'run'}-model_path")
    assert printed[1].startswith("ecgfm finetune --config")
    model = load_model(tmp_path / "run")
    assert model.config.label_names == ["fast", "slow"]
    converted = load_model(tmp_path / "run-model_path", ECGFMModel)
    # Convolutions are frozen, the rest was trained.
    before = converted.state_dict()
    same = {name for name, value in model.ecgfm.state_dict().items() if torch.equal(value, before[name])}
    assert "feature_extractor.conv_layers.0.conv.weight" in same
    assert "encoder.layers.0.feed_forward.output_dense.weight" not in same


def test_the_command_prints_its_equivalent_and_runs_it(configurations, tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(fairseq_hydra_train.os, "execv", lambda path, arguments: ran.append(arguments))
    monkeypatch.setattr("ecgfm_hf.cli.main.main", lambda arguments: ran.append(arguments) or 0)
    arguments = ["--config-dir", str(configurations), "--config-name", "w2v_cmsc_rlm", "task.data=D"]
    assert main(["fairseq-hydra-train", "checkpoint.save_dir=O", *PRETRAINING, *arguments]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        "torchrun --standalone --nproc_per_node 4 -m ecgfm_hf.cli pretrain --config pretrain_base data=D"
    )
    assert "note: common.log_format=csv has no counterpart" in printed
    assert ran[0][1:7] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4", "-m"]
    one = ["distributed_training.distributed_world_size=1", "checkpoint.save_dir=O"]
    assert main(["fairseq-hydra-train", *arguments, *one]) == 0
    assert ran[-1][:3] == ["pretrain", "--config", "pretrain_base"]
