"""A fine-tuning run from its settings: the folder that it writes, what it refuses, the command."""

import json
import shlex
import shutil

import numpy as np
import pytest
import torch
from finetune_cases import TINY_MODEL, make_store, plant_leak, recordings
from killed_runs import damage_file
from safetensors.torch import load_file

from ecgfm_hf import ECGFMConfig, ECGFMFeatureExtractor, ECGFMForPreTraining, save_model_folder
from ecgfm_hf.cli.main import main
from ecgfm_hf.data import load_arrays, load_prepared
from ecgfm_hf.data.leakage import GUARD_FILE, LeakError, seen
from ecgfm_hf.model_folder import load_pipeline
from ecgfm_hf.provenance import read_steps
from ecgfm_hf.training import Finetuner, FinetuneSettings, SettingsError
from ecgfm_hf.training.finetuning import read_result
from ecgfm_hf.training.run_folder import RunFolder, update_of


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    import datasets

    datasets.disable_progress_bars()
    folder = tmp_path_factory.mktemp("finetune_run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        make_store(folder / "store")
        yield folder


def settings_for(workplace, out, **changes):
    given = {
        "data": str(workplace / "store"),
        "output_dir": str(out),
        "model": TINY_MODEL,
        "labels": ["slow", "fast"],
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "min_cases": 2,
        "use_cpu": True,
    }
    return FinetuneSettings(**{**given, **changes})


@pytest.fixture(scope="module")
def finished(workplace):
    """A finished run: its folder and result."""
    out = workplace / "finished"
    return out, Finetuner(settings_for(workplace, out, num_train_epochs=6)).run()


def test_the_folder_is_a_model_that_the_pipeline_uses_with_its_operating_points(finished, workplace):
    out, result = finished
    points = result.operating_points
    assert points.calibration.keys() == points.thresholds.keys() == {"slow", "fast"}
    pipeline = load_pipeline(out)
    config = pipeline.model.config
    assert config.label_thresholds == points.thresholds
    assert config.label_calibration == points.calibration
    found, labels = recordings(3, seed=5)
    right = 0
    for number, recording in enumerate(found):
        recording = {k: v for k, v in recording.items() if k in ("signal", "sampling_rate", "lead_names", "units")}
        answer = pipeline(recording)
        assert answer["positive"] is not None
        right += ("fast" in answer["positive"]) == bool(labels["fast"][number])
    assert right >= 4
    state = result.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in pipeline.model.state_dict().items())


def test_weights_of_positives_are_in_the_config_unless_they_would_reveal_counts_of_few(finished, workplace):
    out, result = finished
    # Trained with weights, on twelve patients.
    assert read_steps(out)[0]["pos_weight"] == "balanced"
    assert ECGFMConfig.from_pretrained(out).pos_weight is None
    assert result.model.config.pos_weight is None
    assert "pos_weight is withheld from config.json" in result.notes[-1]
    store = make_store(workplace / "many", patients=60)
    more = Finetuner(
        settings_for(workplace, workplace / "of_many", data=str(store), max_steps=1, num_train_epochs=1)
    ).run()
    config = ECGFMConfig.from_pretrained(workplace / "of_many")
    counts = read_steps(workplace / "of_many")[0]["data"]["splits"]["train"]["labels"]
    assert config.pos_weight == pytest.approx([counts[n]["negative"] / counts[n]["positive"] for n in ("slow", "fast")])
    assert not any("pos_weight" in note for note in more.notes)


def test_the_folder_says_what_it_is_and_holds_no_ids(finished, workplace):
    out, result = finished
    content = json.loads((out / "finetuning.json").read_text())
    assert "not of a test" in content["metrics_are"]
    assert content["best_update"] == result.best_update
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {"train", "valid"} == {line["kind"] for line in lines}
    for path in out.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            text = path.read_text()
            assert "r0_" not in text, path
            assert "p0_" not in text, path


def test_the_model_knows_what_it_has_seen(finished, workplace):
    out, _ = finished
    found = {}
    for split in ("train", "valid", "test"):
        data = load_prepared(workplace / "store", split)
        found[split] = (len(data), seen(out, data["recording_id"][:], data["patient_id"][:]))
    count, note = found["train"]
    assert (note.training_recordings, note.training_patients) == (count, count // 2)
    count, note = found["valid"]
    assert (note.training_recordings, note.validation_recordings) == (0, count)
    assert not found["test"][1]


def test_the_folder_shows_what_was_done_and_on_how_many(finished, workplace):
    out, result = finished
    (step,) = read_steps(out)
    assert (step["step"], step["updates"], step["best_update"]) == ("fine-tuning", result.update, result.best_update)
    assert step["settings"]["learning_rate"] == 1e-2
    assert not {"data", "output_dir", "init_from", "prepare", "targets"} & step["settings"].keys()
    assert step["seconds"] >= 0
    train = load_prepared(workplace / "store", "train")
    splits = step["data"]["splits"]
    assert splits["train"]["recordings"] == len(train)
    assert splits["train"]["patients"] == len(train) // 2
    positive = sum(train["fast"][:])
    assert splits["train"]["labels"]["fast"] in (
        {"positive": positive, "negative": len(train) - positive, "unknown": 0},
        # Of fewer than ten patients.
        {"positive": "<10", "negative": "withheld", "unknown": 0},
        {"positive": "withheld", "negative": "<10", "unknown": 0},
    )
    # Four patients.
    assert splits["valid"] == {"recordings": "<10", "patients": "<10"}
    assert str(workplace) not in (out / "provenance.json").read_text()


def test_a_finished_run_is_not_run_again(finished, workplace):
    out, result = finished
    before = (out / "model.safetensors").stat().st_mtime_ns
    again = Finetuner(settings_for(workplace, out, num_train_epochs=6)).run()
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert again.metrics == result.metrics
    assert again.operating_points.thresholds == result.operating_points.thresholds
    with pytest.raises(SettingsError, match=r"holds another run: learning_rate was 0.01, now 0.5"):
        Finetuner(settings_for(workplace, out, num_train_epochs=6, learning_rate=0.5))
    with pytest.raises(SettingsError, match="holds a run and resume_from_checkpoint is false"):
        Finetuner(settings_for(workplace, out, num_train_epochs=6, resume_from_checkpoint=False))


# ----------------------------------------------------------------------------------------------------------------------
# Where a run begins
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(workplace):
    torch.manual_seed(3)
    sizes = {k: v for k, v in TINY_MODEL.items() if k not in ("final_dropout",)}
    model = ECGFMForPreTraining(ECGFMConfig.base(**sizes))
    save_model_folder(model, ECGFMFeatureExtractor(nan_samples="zero"), workplace / "pretrained")
    return workplace / "pretrained", model


def test_it_begins_from_a_pretrained_encoder_and_its_feature_extractor(pretrained, workplace, tmp_path):
    folder, model = pretrained
    finetuner = Finetuner(settings_for(workplace, tmp_path, init_from=str(folder), model={"activation_dropout": 0.1}))
    classifier = finetuner.trainer.model
    for name, value in classifier.ecgfm.state_dict().items():
        assert torch.equal(value, model.ecgfm.state_dict()[name]), name
    assert classifier.ecgfm.masked_spec_embed is None
    assert classifier.config.activation_dropout == 0.1
    assert finetuner.feature_extractor.nan_samples == "zero"
    with pytest.raises(SettingsError, match=r"has hidden_size=16, the settings have model.hidden_size=32"):
        Finetuner(settings_for(workplace, tmp_path, init_from=str(folder), model={"hidden_size": 32}))


def test_a_classifier_of_the_same_labels_keeps_its_head_and_another_gets_a_new_one(finished, workplace, tmp_path):
    out, result = finished
    head = result.model.classifier.weight
    same = Finetuner(settings_for(workplace, tmp_path / "a", init_from=str(out))).trainer.model
    assert torch.equal(same.classifier.weight, head)
    assert same.config.label_thresholds is None
    for number, labels in enumerate((["fast", "slow"], ["fast"])):
        other = Finetuner(settings_for(workplace, tmp_path / str(number), init_from=str(out), labels=labels))
        assert not torch.equal(other.trainer.model.classifier.weight, head)
        assert torch.equal(
            other.trainer.model.ecgfm.encoder.layers[0].attention.q_proj.weight,
            result.model.ecgfm.encoder.layers[0].attention.q_proj.weight,
        )


def test_what_a_model_began_from_had_seen_goes_with_it(finished, workplace, tmp_path):
    out, _ = finished
    changes = {"train_split": "test", "test_split": None, "valid_split": None, "untrainable_labels": "drop"}
    Finetuner(settings_for(workplace, tmp_path, init_from=str(out), max_steps=1, **changes)).run()
    train = load_prepared(workplace / "store", "train")
    assert seen(tmp_path, train["recording_id"][:], train["patient_id"][:]).training_recordings == len(train)


@pytest.mark.parametrize("what", ["nothing", "file.pt"])
def test_no_model_folder_is_an_error(workplace, tmp_path, what):
    with pytest.raises(SettingsError, match="is no model folder"):
        Finetuner(settings_for(workplace, tmp_path, init_from=str(tmp_path / what)))


# ----------------------------------------------------------------------------------------------------------------------
# Leaks and data
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def leaky(workplace, tmp_path):
    """Makes a store in which a patient of train is in another split too."""

    def make(into):
        store = make_store(tmp_path / f"leaky_{into}")
        plant_leak(store, into, load_prepared(workplace / "store", "train")["patient_id"][0])
        return store

    return make


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_patient_in_two_splits_is_refused(workplace, tmp_path, leaky, split):
    # In the split to test on, too, which is not read for anything else.
    with pytest.raises(LeakError, match=f"the splits train and {split} share 0 recordings and 1 patients"):
        Finetuner(settings_for(workplace, tmp_path / "out", data=str(leaky(split))))


def test_splits_that_are_missing_are_named(workplace, tmp_path):
    with pytest.raises(SettingsError, match="has no split dev, only train, valid, test"):
        Finetuner(settings_for(workplace, tmp_path, valid_split="dev"))
    with pytest.raises(SettingsError, match=r"has no report.json"):
        Finetuner(settings_for(workplace, tmp_path / "out", data=str(tmp_path)))
    for key in ("data", "output_dir"):
        with pytest.raises(SettingsError, match=f"{key} is required"):
            Finetuner(settings_for(workplace, tmp_path, **{key: None}))


def test_labels_that_nothing_can_be_learnt_of_are_named_or_dropped(workplace, tmp_path):
    (tmp_path / "t.csv").write_text(
        "recording_id,fast,never\n"
        + "".join(f"{i},{n % 2},0\n" for n, i in enumerate(load_prepared(workplace / "store", "train")["recording_id"]))
        + "".join(f"{i},{n % 2},1\n" for n, i in enumerate(load_prepared(workplace / "store", "valid")["recording_id"]))
    )
    changes = {"labels": None, "targets": str(tmp_path / "t.csv")}
    with pytest.raises(SettingsError, match=r"cannot be learnt: never \(0 positive of 24\)"):
        Finetuner(settings_for(workplace, tmp_path / "out", **changes))
    finetuner = Finetuner(settings_for(workplace, tmp_path / "out", untrainable_labels="drop", **changes))
    assert finetuner.data.names == ("fast",)
    assert "never (0 positive of 24)" in finetuner.describe()


def test_a_source_is_prepared_first(workplace, tmp_path):
    from ecgfm_hf.cli.main import main

    assert main(["synthesize", str(tmp_path / "cohort"), "--patients", "12"]) == 0
    changes = {
        "data": str(tmp_path / "cohort"),
        "source": "table",
        "prepare": {"table": str(tmp_path / "cohort" / "labels.csv"), "fractions": {"train": 0.7, "valid": 0.3}},
        "labels": None,
        "untrainable_labels": "drop",
        "max_steps": 1,
    }
    result = Finetuner(settings_for(workplace, tmp_path / "out", **changes)).run()
    assert result.finished
    assert (tmp_path / "out" / "store" / "report.json").is_file()
    assert 1 <= len(result.model.config.label_names) <= 14
    with pytest.raises(SettingsError, match=r"prepare: .*tabel"):
        Finetuner(settings_for(workplace, tmp_path / "other", **changes | {"prepare": {"tabel": "x"}}))


# ----------------------------------------------------------------------------------------------------------------------
# The command
# ----------------------------------------------------------------------------------------------------------------------


def run(*arguments):
    return main(["finetune", "--config", *arguments])


def test_the_command_trains_and_says_what_the_figures_are(workplace, tmp_path, capsys):
    recipe = tmp_path / "recipe.json"  # JSON is YAML.
    settings = settings_for(workplace, tmp_path / "out").to_dict()
    recipe.write_text(json.dumps(settings))
    assert (
        run(str(recipe), "num_train_epochs=1", "report_to=[tensorboard]" if _has_tensorboard() else "report_to=[]") == 0
    )
    shown = capsys.readouterr().out
    assert "task             multi label classification, 2 outputs: slow, fast" in shown
    assert "it chose the update, so the figure is too good" in shown
    # A command that can be pasted.
    assert shlex.join(["ecgfm", "evaluate", str(tmp_path / "out"), settings["data"], "--split", "test"]) in shown
    assert (
        run(str(recipe), "num_train_epochs=1", "report_to=[tensorboard]" if _has_tensorboard() else "report_to=[]") == 0
    )
    assert "holds this run, finished" in capsys.readouterr().out


def _has_tensorboard():
    import importlib.util

    return importlib.util.find_spec("tensorboard") is not None


def test_the_command_shows_a_recipe_and_refuses_what_is_wrong(leaky, tmp_path, capsys):
    assert run("finetune_small", "per_device_train_batch_size=7", "--show") == 0
    assert "batch_size: 7" in capsys.readouterr().out.partition("# As changed:")[2]
    for arguments, message in (
        (("finetune_smal",), "did you mean finetune_small"),
        (("pretrain_tiny",), "unknown setting"),
        (("finetune_small", "output_dir=out"), "data is required"),
        (("finetune_small", f"data={leaky('valid')}", f"output_dir={tmp_path / 'o'}"), "leak: the splits train"),
    ):
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err


def test_regression_by_settings_is_saved_in_the_targets_units(workplace, tmp_path):
    settings = settings_for(workplace, tmp_path, labels=["age"], problem_type="regression", num_train_epochs=1)
    result = Finetuner(settings).run()
    assert result.operating_points.thresholds == {}
    found, _ = recordings(2, seed=7)
    answers = [
        load_pipeline(tmp_path)({k: r[k] for k in ("signal", "sampling_rate", "lead_names", "units")}) for r in found
    ]
    predicted = np.array([answer["scores"]["age"] for answer in answers])
    assert (predicted > 15).all()
    assert (predicted < 120).all()


# ----------------------------------------------------------------------------------------------------------------------
# Continuing, and what would be wrong only at the end
# ----------------------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_taken_for_one_with_other_thresholds(finished, workplace):
    out, _ = finished
    with pytest.raises(SettingsError, match="thresholds was 'youden', now 'f1'"):
        Finetuner(settings_for(workplace, out, num_train_epochs=6, thresholds="f1"))


def test_a_run_is_not_continued_on_splits_that_were_drawn_anew(workplace, tmp_path):
    settings = settings_for(workplace, tmp_path / "run", data=str(make_store(tmp_path / "store")), num_train_epochs=1)
    Finetuner(settings).run()
    (tmp_path / "run" / "finetuning.json").unlink()  # as if killed after its last checkpoint
    Finetuner(settings)
    shutil.rmtree(tmp_path / "store")
    make_store(tmp_path / "store", seed=5)
    with pytest.raises(SettingsError, match="the data had other recordings, splits or targets"):
        Finetuner(settings)


def test_a_folder_that_another_run_is_at_work_in_is_refused(workplace, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ecgfm_hf.training.run_folder.RunFolder.claim", lambda self: False)
    finetuner = Finetuner(settings_for(workplace, tmp_path, num_train_epochs=1))
    with pytest.raises(SettingsError, match="is in use: another run is writing there"):
        finetuner.run()
    assert not (tmp_path / "settings.yaml").exists()


def test_validation_of_one_class_chooses_nothing_and_stops_nothing(workplace, tmp_path):
    rows, labels = recordings(20)
    validation_patients = {f"p0_{number}" for number in range(4)}
    labels = {
        "fast": [
            1 if row["patient_id"] in validation_patients else v for row, v in zip(rows, labels["fast"], strict=True)
        ]
    }
    split = tmp_path / "split.csv"
    lines = [
        f"{row['recording_id']},{'valid' if row['patient_id'] in validation_patients else 'train'}" for row in rows
    ]
    split.write_text("\n".join(["save_file,split", *lines]) + "\n")
    load_arrays(rows, tmp_path / "store", labels, split_csv=split, progress=False)
    settings = settings_for(
        workplace,
        tmp_path / "run",
        data=str(tmp_path / "store"),
        labels=["fast"],
        early_stopping_patience=1,
        num_train_epochs=4,
    )
    result = Finetuner(settings).run()
    assert (result.update, result.best_update) == (4 * 8, 4 * 8)
    assert result.metrics == {"auroc_undefined": 1}
    assert any("cannot choose an update" in note for note in result.notes)

    def no_json(constant):
        raise AssertionError(f"{constant} is no JSON")

    file = tmp_path / "run" / "finetuning.json"
    json.loads(file.read_text(), parse_constant=no_json)
    file.write_text(file.read_text().replace('"update": 32', '"update": 34'))
    with pytest.raises(SettingsError, match=r"finetuning\.json is damaged"):
        read_result(tmp_path / "run")


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_misses_what_exact_resuming_needs_is_refused_by_name(workplace, tmp_path, file):
    settings = settings_for(workplace, tmp_path, num_train_epochs=1)
    Finetuner(settings).run()
    (tmp_path / "finetuning.json").unlink()  # as if killed after its last checkpoint
    last = RunFolder(settings).latest
    # The weights that were loaded belong to no threshold yet.
    assert ECGFMConfig.from_pretrained(last).label_thresholds is None
    (last / file).unlink()
    with pytest.raises(SettingsError, match=f"{last.name} has no {file}, so the run cannot be resumed exactly"):
        Finetuner(settings)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_resumed(workplace, tmp_path, caplog):
    settings = settings_for(workplace, tmp_path / "run", num_train_epochs=3, save_total_limit=None)
    Finetuner(settings).run()
    model = load_file(tmp_path / "run" / "model.safetensors")
    (tmp_path / "run" / "finetuning.json").unlink()  # as if killed after its last checkpoint
    before, last = RunFolder(settings).checkpoints.all()[-2:]
    for path in sorted(last.iterdir()):
        content = path.read_bytes()
        damage_file(path)
        caplog.clear()
        assert RunFolder(settings).latest == before
        assert f"{last} is damaged ({'' if path.name == 'checksums.json' else path.name}" in caplog.text
        path.write_bytes(content)
    # Moved, and the weights that the run would end with are damaged.
    (tmp_path / "run").rename(tmp_path / "moved")
    settings = settings_for(workplace, tmp_path / "moved", num_train_epochs=3, save_total_limit=None)
    folder = RunFolder(settings)
    best = json.loads((folder.latest / "trainer_state.json").read_text())["best_global_step"]
    best = folder.checkpoints.path(best)
    damage_file(best / "model.safetensors")
    assert best != folder.checkpoints.all()[0]
    rest = Finetuner(settings)
    assert update_of(rest.folder.latest) < update_of(best)
    rest.run()
    found = load_file(tmp_path / "moved" / "model.safetensors")
    assert found.keys() == model.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.items())


def test_a_run_of_0_1_0_is_refused_with_the_new_names(workplace, tmp_path):
    settings = settings_for(workplace, tmp_path, num_train_epochs=1)
    Finetuner(settings).run()
    file = tmp_path / "settings.yaml"
    file.write_text(file.read_text().replace("num_train_epochs:", "epochs:"))
    with pytest.raises(SettingsError, match=r"cannot be resumed.*epochs is now num_train_epochs"):
        Finetuner(settings)


def test_a_damaged_note_of_what_the_start_had_seen_is_reported_before_training(finished, workplace, tmp_path):
    shutil.copytree(finished[0], tmp_path / "start")
    (tmp_path / "start" / GUARD_FILE).write_text("{")
    with pytest.raises(SettingsError, match=f"init_from: .*{GUARD_FILE} is damaged"):
        Finetuner(settings_for(workplace, tmp_path / "run", init_from=str(tmp_path / "start"), model={}))
