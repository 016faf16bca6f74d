"""Model folders back to fairseq-signals checkpoints: what comes back equal, what is reported, what is refused."""

import json
from pathlib import Path

import pytest
import torch
from conversions import INPUT_OPTIONS, convert_checkpoint, convert_with
from safetensors.torch import load_file, save_file

from ecgfm_hf import ECGFMFeatureExtractor, ECGFMForMultiLabelClassification, ECGFMForPreTraining, ECGFMModel
from ecgfm_hf.cli.main import main
from ecgfm_hf.fairseq import (
    CheckpointError,
    config_from_checkpoint,
    convert_state_dict,
    export_checkpoint,
    export_fairseq_checkpoint,
    load_fairseq_checkpoint,
    parse_conv_feature_layers,
)
from ecgfm_hf.fairseq.training_state import RunCounters
from ecgfm_hf.model_folder import ModelFolderError, load_feature_extractor, load_model, save_model_folder
from ecgfm_hf.provenance import add_step, num_updates, read_steps

VARIANTS = [f"{name}_{kind}" for name in ("conv_bias", "latent_dim", "ln_first") for kind in ("pretrain", "classifier")]
SECTIONS = (
    *("_name", "common", "common_eval", "distributed_training", "dataset", "optimization", "checkpoint"),
    *("model", "task", "criterion", "lr_scheduler", "optimizer"),
)


def folder_of(tmp_path, model, **extractor):
    folder = tmp_path / "model"
    extractor = ECGFMFeatureExtractor(**extractor)
    save_model_folder(model.eval(), extractor, folder)
    return folder


def settings_of(folder):
    """config.json without what depends on the library that wrote it."""
    return {
        key: value for key, value in json.loads((folder / "config.json").read_text()).items() if "version" not in key
    }


def run(*arguments):
    return main(["convert", *map(str, arguments)])


@pytest.fixture
def classifier(tmp_path, tiny_config):
    """A folder with a classifier of three labels."""
    return folder_of(tmp_path, ECGFMForMultiLabelClassification(tiny_config(mask_time_prob=0.0)))


# There and back


@pytest.mark.parametrize("name", ["pretrain", "finetune", "pretrain_old_weight_norm", *VARIANTS])
def test_a_checkpoint_converted_and_exported_has_the_same_tensors_and_settings(tmp_path, checkpoint_path, name):
    source = load_fairseq_checkpoint(checkpoint_path(name))
    convert_checkpoint(checkpoint_path(name), tmp_path / "model")
    report = export_fairseq_checkpoint(
        tmp_path / "model", tmp_path / "back.pt", old_weight_norm="old" in name, verify=True
    )
    back = load_fairseq_checkpoint(tmp_path / "back.pt")
    assert back.tensors.keys() == source.tensors.keys()
    assert all(torch.equal(back.tensors[key], tensor) for key, tensor in source.tensors.items())
    assert config_from_checkpoint(back).config.to_dict() == config_from_checkpoint(source).config.to_dict()
    assert report.lost_settings == {}
    assert report.largest_difference < 1e-5
    convert_checkpoint(tmp_path / "back.pt", tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "model" / "model.safetensors"
    ).read_bytes()
    assert settings_of(tmp_path / "again") == settings_of(tmp_path / "model")


def test_a_checkpoint_whose_settings_did_not_describe_it_comes_back_with_settings_that_do(tmp_path, checkpoint_path):
    source = load_fairseq_checkpoint(checkpoint_path("finetune_default_cfg"))
    convert_checkpoint(source.path, tmp_path / "model", heads=4)
    export_fairseq_checkpoint(tmp_path / "model", tmp_path / "back.pt", verify=True)
    back = load_fairseq_checkpoint(tmp_path / "back.pt")
    assert back.tensors.keys() == source.tensors.keys()
    assert all(torch.equal(back.tensors[key], tensor) for key, tensor in source.tensors.items())
    settings = config_from_checkpoint(back)
    assert settings.config.to_dict() == config_from_checkpoint(source, heads=4).config.to_dict()
    assert not [warning for warning in settings.warnings if "labels" not in warning]


@pytest.mark.parametrize("kind", ["pretrain", "classifier"])
def test_a_layer_norm_extractor_goes_back_and_the_original_s_crash_is_reported(tmp_path, checkpoint_path, kind):
    source = load_fairseq_checkpoint(checkpoint_path(f"extractor_ln_{kind}"))
    convert_checkpoint(source.path, tmp_path / "model")
    report = export_fairseq_checkpoint(tmp_path / "model", tmp_path / "back.pt", verify=True)
    back = load_fairseq_checkpoint(tmp_path / "back.pt").tensors
    assert back.keys() == source.tensors.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in source.tensors.items())
    assert any("fairseq-signals crashes" in note for note in report.warnings)


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_the_settings_have_every_field_that_the_original_s_own_files_have(tmp_path, checkpoint_path, name):
    original = torch.load(checkpoint_path(name), weights_only=False)
    convert_checkpoint(checkpoint_path(name), tmp_path / "model")
    export_fairseq_checkpoint(tmp_path / "model", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back.keys() == original.keys() | {"ecgfm_hf"}
    assert list(back["model"]) == list(original["model"])
    assert set(SECTIONS) <= back["cfg"].keys()
    for section in ("model", "task", "criterion"):
        assert back["cfg"][section].keys() == original["cfg"][section].keys()
        for key, value in back["cfg"][section].items():
            found = original["cfg"][section][key]
            alike = (
                value is None
                or found is None
                or type(value) is type(found)
                or {type(value), type(found)} == {int, float}
            )
            assert alike, f"{section}.{key} is {value!r}, the original writes {found!r}"
    assert {type(value) for value in back["cfg"].values()} <= {dict, type(None)}


def test_the_file_opens_with_torch_s_restricted_unpickler_and_holds_what_the_original_s_loader_asks_for(
    tmp_path, classifier
):
    export_fairseq_checkpoint(classifier, tmp_path / "out.pt")
    content = torch.load(tmp_path / "out.pt", weights_only=True)
    assert content["args"] is None
    assert {"lr_scheduler_state", "num_updates"} <= content["optimizer_history"][-1].keys()
    assert content["extra_state"]["train_iterator"]["epoch"] == 1
    assert content["last_optimizer_state"] is None
    # Or loading the classifier would first look for the checkpoint that it began from.
    assert content["cfg"]["model"]["no_pretrained_weights"] is True


def test_settings_unlike_the_defaults_come_back(tmp_path, tiny_config):
    settings = {
        **{"hidden_dropout": 0.2, "attention_dropout": 0.3, "activation_dropout": 0.05, "feat_proj_dropout": 0.15},
        **{"feat_quantizer_dropout": 0.25, "layerdrop": 0.05, "feature_grad_multiplier": 0.5},
        **{"conv_dim": [16, 16, 24, 24], "conv_kernel": [3, 3, 2, 2], "conv_stride": [2, 2, 2, 1]},
        **{"mask_time_prob": 0.4, "mask_time_length": 7, "num_negatives": 20, "contrastive_logits_temperature": 0.2},
        **{"max_gumbel_temperature": 3.0, "min_gumbel_temperature": 0.25, "gumbel_temperature_decay": 0.9},
        **{"diversity_loss_weight": 0.3, "feature_penalty_weight": 4.0, "cmsc_loss_weight": 0.0},
        **{"cmsc_temperature": 0.3, "num_codevectors_per_group": 6, "codevector_dim": 12},
        **{"do_stable_layer_norm": True, "num_conv_pos_embeddings": 9},
    }
    folder = folder_of(tmp_path, ECGFMForPreTraining(tiny_config(**settings)))
    report = export_fairseq_checkpoint(folder, tmp_path / "out.pt", verify=True)
    back = config_from_checkpoint(tmp_path / "out.pt").config
    assert {name: getattr(back, name) for name in settings} == settings
    assert report.lost_settings == {}
    cfg = torch.load(tmp_path / "out.pt", weights_only=True)["cfg"]["model"]
    layers = list(zip(settings["conv_dim"], settings["conv_kernel"], settings["conv_stride"], strict=True))
    assert parse_conv_feature_layers(cfg["conv_feature_layers"]) == layers


@pytest.mark.parametrize(
    ("problem_type", "pos_weight"),
    [("multi_label_classification", [1.5, 2.0, 1105.25]), ("single_label_classification", None), ("regression", None)],
)
def test_the_kind_of_loss_and_its_weights_come_back(tmp_path, tiny_config, problem_type, pos_weight):
    config = tiny_config(mask_time_prob=0.0, problem_type=problem_type, pos_weight=pos_weight, final_dropout=0.2)
    export_fairseq_checkpoint(folder_of(tmp_path, ECGFMForMultiLabelClassification(config)), tmp_path / "out.pt")
    back = config_from_checkpoint(tmp_path / "out.pt").config
    assert (back.problem_type, back.pos_weight, back.final_dropout) == (problem_type, pos_weight, 0.2)


def test_fewer_leads_or_another_order_come_back(tmp_path, tiny_config):
    config = tiny_config(num_leads=3, mask_time_prob=0.0)
    folder = folder_of(tmp_path, ECGFMForMultiLabelClassification(config), lead_names=["V1", "I", "II"])
    assert export_fairseq_checkpoint(folder, tmp_path / "out.pt").lead_names == ("V1", "I", "II")
    assert config_from_checkpoint(tmp_path / "out.pt").lead_names == ("V1", "I", "II")


def test_a_classifier_with_a_mask_embedding_keeps_it(tmp_path, tiny_config):
    folder = folder_of(tmp_path, ECGFMForMultiLabelClassification(tiny_config(mask_time_prob=0.65)))
    report = export_fairseq_checkpoint(folder, tmp_path / "out.pt")
    back = load_fairseq_checkpoint(tmp_path / "out.pt")
    assert "encoder.mask_emb" in back.tensors
    assert back.model_cfg["apply_mask"] is True
    assert any("never masks" in note for note in report.warnings)


def test_weights_in_several_files_are_read_whole(tmp_path, tiny_config):
    model = ECGFMForPreTraining(tiny_config()).eval()
    save_model_folder(model, ECGFMFeatureExtractor(), tmp_path / "model", max_shard_size="40KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    report = export_fairseq_checkpoint(tmp_path / "model", tmp_path / "out.pt")
    assert report.num_parameters == sum(parameter.numel() for parameter in model.parameters())


def test_half_precision_is_written_as_it_is_stored(tmp_path, classifier):
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(classifier / "model.safetensors").items()}
    save_file(tensors, classifier / "model.safetensors", metadata={"format": "pt"})
    report = export_fairseq_checkpoint(classifier, tmp_path / "out.pt", verify=True)
    written = load_fairseq_checkpoint(tmp_path / "out.pt").tensors
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert any("bfloat16" in note for note in report.warnings)


# The number of updates


@pytest.mark.parametrize(("name", "updates"), [("pretrain", 6), ("finetune", 12)])
def test_the_number_of_updates_goes_to_the_provenance_file_and_back(tmp_path, checkpoint_path, name, updates):
    report = convert_checkpoint(checkpoint_path(name), tmp_path / "model")
    assert report.num_updates == updates
    (step,) = read_steps(tmp_path / "model")
    assert step["updates"] == updates
    exported = export_fairseq_checkpoint(tmp_path / "model", tmp_path / "back.pt")
    assert exported.num_updates == updates
    assert torch.load(tmp_path / "back.pt", weights_only=True)["optimizer_history"][-1]["num_updates"] == updates
    assert load_fairseq_checkpoint(tmp_path / "back.pt").num_updates == updates


def test_continued_pretraining_counts_on_and_fine_tuning_counts_anew(tmp_path, checkpoint_path):
    convert_checkpoint(checkpoint_path("pretrain"), tmp_path / "model")
    (tmp_path / "longer").mkdir()
    add_step(tmp_path / "longer", "pretraining", {"updates": 100}, began_from=tmp_path / "model")
    assert num_updates(read_steps(tmp_path / "longer")) == 106
    (tmp_path / "tuned").mkdir()
    add_step(tmp_path / "tuned", "fine-tuning", {"updates": 30}, began_from=tmp_path / "longer")
    assert num_updates(read_steps(tmp_path / "tuned")) == 30
    assert num_updates([{"step": "unknown"}, {"step": "pretraining", "updates": 100}]) is None
    assert num_updates([{"step": "pretraining", "updates": 100}]) == 100
    assert num_updates([]) is None


@pytest.mark.parametrize("history", [None, [], [{}], "text", [{"num_updates": -1}], [{"num_updates": True}]])
def test_a_missing_number_of_updates_is_reported_both_ways(tmp_path, checkpoint_path, history):
    content = torch.load(checkpoint_path("pretrain"), weights_only=False) | {"optimizer_history": history}
    torch.save(content, tmp_path / "without.pt")
    report = convert_checkpoint(tmp_path / "without.pt", tmp_path / "model")
    assert report.num_updates is None
    assert any("no number of updates" in warning for warning in report.warnings)
    exported = export_fairseq_checkpoint(tmp_path / "model", tmp_path / "back.pt")
    assert exported.num_updates is None
    assert any("no number of updates: 0 is written" in warning for warning in exported.warnings)


# The training state


def with_states(path, output, flat=False, **changes):
    """A checkpoint with Adam's states by the parameters' order: those of parameter i are i and i + 0.5 everywhere."""
    content = torch.load(path, weights_only=False)
    tensors = list(content["model"].values())
    moments = {
        key: [torch.full_like(tensor, i + add) for i, tensor in enumerate(tensors)]
        for key, add in (("exp_avg", 0.0), ("exp_avg_sq", 0.5))
    }
    if flat:
        moments = {key: [torch.cat([part.flatten() for part in parts])] for key, parts in moments.items()}
    count = len(moments["exp_avg"])
    content["last_optimizer_state"]["state"] = {
        i: {"step": 6} | {key: parts[i] for key, parts in moments.items()} for i in range(count)
    }
    content["last_optimizer_state"]["param_groups"][0]["params"] = list(range(count))
    content["extra_state"]["train_iterator"] |= {"epoch": 3, "iterations_in_epoch": 5}
    content["cfg"]["optimization"]["update_freq"] = [2]
    torch.save(content | changes, output)
    return content


@pytest.mark.parametrize(
    ("name", "flat"), [("pretrain", False), ("pretrain", True), ("pretrain_old_weight_norm", False)]
)
def test_moments_go_to_the_parameters_that_they_are_of_and_back(tmp_path, checkpoint_path, name, flat):
    content = with_states(checkpoint_path(name), tmp_path / "state.pt", flat)
    report = convert_checkpoint(tmp_path / "state.pt", tmp_path / "model", verify=True)
    assert report.training.counters == RunCounters(update=6, epoch=2, update_in_epoch=2)
    assert "the file does not contain an update from the last 1 micro-batches" in " ".join(report.warnings)
    settings = {"learning_rate": 0.0005, "adam_epsilon": 1e-6, "weight_decay": 0.01, "adam_beta1": 0.9}
    assert settings.items() <= report.training.settings.items()
    ours = [name for name, _ in load_model(tmp_path / "model").named_parameters()]
    expected = {key: i for i, key in enumerate(convert_state_dict(content["model"]))}
    states = torch.load(tmp_path / "model" / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    assert len(states) == len(ours) == 55
    for index, name_of_ours in enumerate(ours):
        assert states[index]["exp_avg"].unique().tolist() == [expected[name_of_ours]]
        assert states[index]["exp_avg_sq"].unique().tolist() == [expected[name_of_ours] + 0.5]
        assert (states[index]["updates"], int(states[index]["step"])) == (6, 6)
    export_fairseq_checkpoint(tmp_path / "model", tmp_path / "back.pt", old_weight_norm="old" in name)
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(back["model"]) == list(content["model"])
    assert all(back["last_optimizer_state"]["state"][i]["exp_avg"].unique().tolist() == [i] for i in range(55))
    assert back["optimizer_history"][-1].items() >= content["optimizer_history"][-1].items()
    groups = [of["last_optimizer_state"]["param_groups"][0] for of in (back, content)]
    assert {key: groups[0][key] for key in groups[1] if key != "params"} == {
        key: value for key, value in groups[1].items() if key != "params"
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"last_optimizer_state": None}, "the file has no Adam moments"),
        ({"optimizer_history": []}, "the file has no number of updates"),
        ({"extra_state": {}}, None),
    ],
)
def test_what_a_file_lacks_of_the_training_state_is_named(tmp_path, checkpoint_path, capsys, changes, message):
    with_states(checkpoint_path("pretrain"), tmp_path / "state.pt", **changes)
    assert run(tmp_path / "state.pt", tmp_path / "model", *INPUT_OPTIONS) == 0
    printed = capsys.readouterr()
    if message is None:
        assert "the epoch (extra_state.train_iterator): the run continues at the beginning of epoch 1" in printed.err
        assert f"resume_from_checkpoint={tmp_path / 'model'} learning_rate=0.0005" in printed.out
    else:
        assert message in printed.out
        assert not (tmp_path / "model" / "optimizer.pt").exists()


def test_moments_in_another_order_are_refused(tmp_path, checkpoint_path):
    content = with_states(checkpoint_path("pretrain"), tmp_path / "state.pt")
    states = content["last_optimizer_state"]["state"]
    states[0], states[1] = states[1], states[0]
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"exp_avg of .* are not in the order of the tensors"):
        convert_checkpoint(tmp_path / "state.pt", tmp_path / "model")


# What the format cannot hold


def test_what_the_format_cannot_hold_is_reported(tmp_path, tiny_config):
    lost = {
        "label_aggregation": {"A": "max"},
        "label_thresholds": {"A": 0.3},
        "label_calibration": {"B": {"slope": 1.0, "intercept": -2.0}},
        "label_notes": {"C": "rare"},
        "mask_time_min_masks": 3,
        "padding_safe": True,
    }
    config = tiny_config(mask_time_prob=0.0, **lost)
    folder = folder_of(tmp_path, ECGFMForMultiLabelClassification(config), nan_samples="zero", segment_seconds=10)
    report = export_fairseq_checkpoint(folder, tmp_path / "out.pt", verify=True)
    expected = {**lost, "label_names": ["A", "B", "C"]}
    quantizer = ("num_codevectors_per_group", "codevector_dim", "proj_codevector_dim")
    found = {name: value for name, value in report.lost_settings.items() if name not in quantizer}
    assert found == expected


def test_the_feature_extractor_comes_back(tmp_path, tiny_config):
    settings = {"nan_samples": "zero", "segment_seconds": 10.0, "sampling_rate": 250, "standardize": "none"}
    folder = folder_of(tmp_path, ECGFMForPreTraining(tiny_config(num_leads=2)), lead_names=["V1", "I"], **settings)
    export_fairseq_checkpoint(folder, tmp_path / "out.pt")
    convert_with(tmp_path / "out.pt", tmp_path / "back")
    assert load_feature_extractor(tmp_path / "back").to_dict() == load_feature_extractor(folder).to_dict()


@pytest.mark.parametrize(("setting", "value"), [("hidden_act", "relu"), ("layer_norm_eps", 1e-3)])
def test_a_model_that_the_original_cannot_compute_is_refused(tmp_path, tiny_config, setting, value):
    config = tiny_config(mask_time_prob=0.0, **{setting: value})
    folder = folder_of(tmp_path, ECGFMForMultiLabelClassification(config))
    with pytest.raises(CheckpointError, match=f"cannot represent {setting}="):
        export_fairseq_checkpoint(folder, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_moments_of_fine_tuning_are_named_as_not_carried(tmp_path, classifier, checkpoint_path):
    (classifier / "optimizer.pt").write_bytes(b"")
    (warning,) = export_fairseq_checkpoint(classifier, tmp_path / "out.pt").warnings
    assert warning.startswith("Adam moments of fine-tuning (optimizer.pt) are not carried over")
    report = convert_checkpoint(checkpoint_path("finetune"), tmp_path / "back")
    assert report.training.startswith("Adam moments of fine-tuning are not carried over")


# What cannot be exported


def test_an_encoder_alone_is_refused(tmp_path, tiny_config):
    folder = folder_of(tmp_path, ECGFMModel(tiny_config()))
    with pytest.raises(CheckpointError, match="without quantizer or classifier"):
        export_fairseq_checkpoint(folder, tmp_path / "out.pt")


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path, classifier):
    tensors = load_file(classifier / "model.safetensors")
    tensors.pop("classifier.bias")
    save_file(tensors, classifier / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFolderError, match=r"missing tensors: classifier\.bias"):
        export_fairseq_checkpoint(classifier, tmp_path / "out.pt")


@pytest.mark.parametrize("missing", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_folder_without_one_of_its_files_is_refused_by_that_name(tmp_path, classifier, missing):
    (classifier / missing).unlink()
    with pytest.raises(ModelFolderError, match=missing):
        export_fairseq_checkpoint(classifier, tmp_path / "out.pt")


def test_damaged_weights_are_refused(tmp_path, classifier):
    (classifier / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelFolderError, match=r"model\.safetensors is damaged"):
        export_fairseq_checkpoint(classifier, tmp_path / "out.pt")


# The file


def test_a_file_in_use_is_left_alone_unless_it_is_a_checkpoint_to_be_overwritten(tmp_path, classifier):
    out = tmp_path / "out.pt"
    out.write_text("letters")
    with pytest.raises(FileExistsError, match="exists"):
        export_fairseq_checkpoint(classifier, out)
    with pytest.raises(FileExistsError, match="is not a checkpoint"):
        export_fairseq_checkpoint(classifier, out, overwrite=True)
    with pytest.raises(FileExistsError, match="is a folder"):
        export_fairseq_checkpoint(classifier, classifier, overwrite=True)
    with pytest.raises(FileExistsError, match="is not a checkpoint"):
        export_fairseq_checkpoint(classifier, classifier / "model.safetensors", overwrite=True)
    assert out.read_text() == "letters"
    torch.save({"model": {}}, out)
    export_fairseq_checkpoint(classifier, out, overwrite=True)
    assert load_fairseq_checkpoint(out).tensors


def test_an_export_that_fails_leaves_nothing_and_what_was_there(tmp_path, classifier, monkeypatch):
    out = tmp_path / "out.pt"
    torch.save({"model": {}}, out)
    before = out.read_bytes()

    def save_wrongly(content, path):
        wrong = content["model"] | {"proj.bias": content["model"]["proj.bias"] + 1}
        save(content | {"model": wrong}, path)

    save = torch.save
    monkeypatch.setattr(export_checkpoint.torch, "save", save_wrongly)
    with pytest.raises(CheckpointError, match=r"proj\.bias"):
        export_fairseq_checkpoint(classifier, out, overwrite=True)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out.pt"]


def test_a_dry_run_keeps_nothing(tmp_path, classifier):
    assert export_fairseq_checkpoint(classifier, tmp_path / "out.pt", dry_run=True).output is None
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_no_path_gets_into_the_file(tmp_path, classifier):
    export_fairseq_checkpoint(classifier, tmp_path / "out.pt")
    assert str(tmp_path).encode() not in (tmp_path / "out.pt").read_bytes()


# The command


def test_the_command_exports_and_reports_what_is_lost(tmp_path, classifier, capsys):
    assert run("--to-fairseq", classifier, tmp_path / "out.pt", "--verify") == 0
    printed = capsys.readouterr()
    texts = ("ECGFMForMultiLabelClassification", "read back bit-equal", "lost: label_names", "A, B, C")
    for text in (*texts, "difference, logits", str(tmp_path / "out.pt")):
        assert text in printed.out
    assert "warning" not in printed.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--to-fairseq", "model", "out.pt", "--labels", "a,b,c"], 2, "--labels cannot be used with --to-fairseq"),
        (["--to-fairseq", "model", "out.pt", "--heads", "4", "--leads", "I"], 2, "--heads, --leads cannot"),
        (["model", "out.pt", "--old-weight-norm"], 2, "is for --to-fairseq"),
        (["--to-fairseq", "gone", "out.pt"], 2, "gone: no such folder"),
        (["--to-fairseq", "model", "model"], 2, "model is an input (model), which is never overwritten"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(
    tmp_path, classifier, monkeypatch, capsys, arguments, code, message
):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == code
    assert message in capsys.readouterr().err
    assert not Path("out.pt").exists()
