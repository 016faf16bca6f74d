"""Pretraining in one process: updates, checkpoints, exact continuation, what stops it, what it leaves."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from killed_runs import damage_file
from tiny_pretraining import MODEL
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForPreTraining

from ecgfm_hf import ECGFMFeatureExtractor, ECGFMForMultiLabelClassification, ECGFMForPreTraining, save_model_folder
from ecgfm_hf.data import load_arrays, load_prepared
from ecgfm_hf.fairseq import (
    build_model,
    config_from_checkpoint,
    convert_checkpoint,
    export_fairseq_checkpoint,
    load_fairseq_checkpoint,
)
from ecgfm_hf.fairseq.checkpoint import CheckpointError
from ecgfm_hf.fairseq.training_state import RunCounters, load_training_state
from ecgfm_hf.feature_extraction_ecgfm import STANDARD_LEADS
from ecgfm_hf.provenance import read_steps
from ecgfm_hf.training import NonFiniteError, Pretrainer, PretrainSettings, SettingsError, read_recipe
from ecgfm_hf.training.monitoring import Monitor
from ecgfm_hf.training.objective import METRICS
from ecgfm_hf.training.pretraining_data import _Collate, epoch_order, open_pairs, train_batches
from ecgfm_hf.training.run_folder import RunFolder


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """22 pairs of 11 patients to train, 3 to validate: one recording is too short for a pair."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data")
    recordings = [
        {
            "recording_id": f"r{n}",
            "patient_id": f"p{n // 2}",
            # Slow waves: neighbouring segments of a recording are alike.
            "signal": np.cumsum(rng.standard_normal((12, 5000 if n != 7 else 2500)), axis=1).astype(np.float32),
            "sampling_rate": 500,
            "lead_names": STANDARD_LEADS,
            "units": "mV",
        }
        for n in range(26)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        counts = {"train": 11, "valid": 2}
        load_arrays(recordings, folder / "store", split="grouped", counts=counts, progress=False)
        yield folder / "store"


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps its state for the process; here each test is a run of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def settings(store, tmp_path):
    def make(**changes):
        chosen = {
            "data": str(store),
            "output_dir": str(tmp_path / "out"),
            "architecture": "base",
            "model": MODEL,
            "per_device_train_batch_size": 6,
            "gradient_accumulation_steps": 2,
            "num_train_epochs": 2,
            "learning_rate": 1e-3,
            "use_cpu": True,
            "logging_steps": 1,
        }
        changes = {k: str(v) if k in ("output_dir", "init_from") and v else v for k, v in changes.items()}
        return PretrainSettings(**{**chosen, **changes})

    return make


def weights(folder):
    return AutoModelForPreTraining.from_pretrained(folder).state_dict()


def assert_bit_equal(found, expected):
    found, expected = weights(found), weights(expected)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def logged(folder, kind="train"):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def interrupt_after(trainer, updates, number=signal.SIGTERM):
    """Raises a signal when the trainer begins its `updates`-th update."""
    original = trainer.updater.update

    def update(done, batches, received):
        if done + 1 == updates:
            signal.raise_signal(number)
            received = int(number)
        return original(done, batches, received)

    trainer.updater.update = update


# ----------------------------------------------------------------------------------------------------------------------
# Data
# ----------------------------------------------------------------------------------------------------------------------


def test_order_depends_on_seed_and_epoch_and_not_on_processes(settings):
    chosen = settings()
    data, _ = open_pairs(chosen, ECGFMFeatureExtractor())
    assert len(data) == 22
    assert sorted(epoch_order(22, 1, 0)) == list(range(22))
    assert list(epoch_order(22, 1, 0)) != list(epoch_order(22, 1, 1))
    assert list(epoch_order(22, 1, 0)) != list(epoch_order(22, 2, 0))

    def ids(accumulation, processes, first=0):
        shares = [
            [
                batch.recording_ids
                for batch in train_batches(
                    data, settings(gradient_accumulation_steps=accumulation), 0, first, r, processes
                )
            ]
            for r in range(processes)
        ]
        return [share[turn] for turn in range(len(shares[0])) for share in shares]

    one = ids(4, 1)
    assert len(one) == 4
    assert one == ids(2, 2) == ids(1, 4)
    assert len({recording for batch in one for recording in batch}) == 12
    assert ids(1, 2, first=2) == ids(1, 2)[4:]


def test_batches_hold_both_segments_and_positives_share_an_id(settings):
    data, _ = open_pairs(settings(), ECGFMFeatureExtractor())
    items = data.__getitems__(range(4))
    batch = _Collate("recording")(items)
    assert batch.input_values.shape == (8, 12, 2500)
    np.testing.assert_array_equal(batch.input_values[3], items[1]["input_values"][1])
    assert batch.segment_ids.tolist() == [0, 1] * 4
    assert batch.ids[::2].tolist() == batch.ids[1::2].tolist()
    assert len(set(batch.ids.tolist())) == 4
    patients = [item["patient_id"] for item in items]
    by_patient = _Collate("patient")(items).ids[::2].tolist()
    assert [a == b for a in by_patient for b in by_patient] == [a == b for a in patients for b in patients]
    assert len(set(patients)) < 4
    nobody = [{**item, "patient_id": None} for item in items]
    assert len(set(_Collate("patient")(nobody).ids.tolist())) == 4


def test_augmentations_depend_on_epoch_and_item_and_not_on_workers(settings):
    augmentations = {"random_lead_masking": {"p": 0.5}, "powerline_noise": {}}

    def values(epoch, num_workers=0, processes=1, **changes):
        chosen = settings(
            augmentations=augmentations,
            dataloader_num_workers=num_workers,
            gradient_accumulation_steps=2 // processes,
            **changes,
        )
        train, valid = open_pairs(chosen, ECGFMFeatureExtractor())
        found = {}
        for process in range(processes):
            for batch in train_batches(train, chosen, epoch, 0, process, processes):
                for number, recording in enumerate(batch.recording_ids):
                    found[recording] = batch.input_values[2 * number : 2 * number + 2]
        return found, valid

    plain, valid = values(0)
    masked = torch.stack(list(plain.values())).abs().sum(dim=-1) == 0
    assert 0.4 < masked.float().mean() < 0.6
    assert not (torch.from_numpy(valid[0]["input_values"]).abs().sum(dim=-1) == 0).any()
    for other in (values(0, num_workers=2), values(0, processes=2)):
        assert all(torch.equal(plain[recording], segments) for recording, segments in other[0].items())
    for other in (values(1), values(0, seed=2)):
        shared = plain.keys() & other[0].keys()
        assert len(shared) > 10
        assert not any(torch.equal(plain[recording], other[0][recording]) for recording in shared)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "data is required"),
        ({"output_dir": None}, "output_dir is required"),
        ({"data": "nowhere"}, "nowhere has no report.json"),
        ({"train_split": "fit"}, "has no split fit, only train, valid:"),
        (
            {"per_device_train_batch_size": 200},
            "an update takes 400 segments .* the data has 44 in pairs: lower per_device",
        ),
        ({"processes": 2}, "expected 2 processes, found 1.*torchrun"),
        ({"fp16": True}, "fp16=true needs a GPU"),
        ({"report_to": ["tensorbord"]}, "unknown tracker 'tensorbord'"),
        ({"init_from": "nowhere"}, "init_from: nowhere is no model folder"),
        ({"init_from": "some.pt"}, "`ecgfm convert`"),
        ({"model": {**MODEL, "num_attention_heads": 3}}, "model: hidden_size must be a multiple"),
        ({"model": {**MODEL, "mask_time_prob": 0.0}}, "mask_time_prob is 0, but pretraining predicts masked frames"),
        ({"augmentations": {"random_lead_mask": {}}}, "augmentations: unknown augmentation 'random_lead_mask'"),
        ({"feature_extractor": {"nan_sample": "zero"}}, "feature_extractor: .*nan_samples"),
    ],
)
def test_impossible_runs_are_refused(settings, changes, message):
    with pytest.raises(SettingsError, match=f"(?s){message}"):
        Pretrainer(settings(**changes))


def test_an_engine_that_accelerate_leaves_out_on_cpus_is_refused(settings, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SettingsError, match="configuration names FSDP, which it does not use here"):
        Pretrainer(settings())


# ----------------------------------------------------------------------------------------------------------------------
# Runs
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def golden_folder(checkpoint_path, tmp_path_factory):
    source = load_fairseq_checkpoint(checkpoint_path("pretrain"))
    model = build_model(source, config_from_checkpoint(source))
    folder = tmp_path_factory.mktemp("golden") / "model"
    save_model_folder(model, ECGFMFeatureExtractor(), folder)
    return folder


def test_twenty_updates_from_a_converted_checkpoint_are_bit_equal_from_run_to_run(settings, golden_folder, tmp_path):
    shared = {
        "init_from": golden_folder,
        "gumbel_updates_before": 0,
        "model": {"attention_dropout": 0.2},
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
    }
    shared |= {"max_steps": 20, "eval_strategy": "no", "save_strategy": "no"}
    result = Pretrainer(settings(**shared, output_dir=tmp_path / "a")).run()
    assert (result.update, result.finished, result.signal) == (20, True, 0)
    Pretrainer(settings(**shared, output_dir=tmp_path / "b", dataloader_num_workers=1)).run()
    assert_bit_equal(tmp_path / "a", tmp_path / "b")
    config = AutoModelForPreTraining.from_pretrained(tmp_path / "a").config
    assert config.attention_dropout == 0.2
    before, after = weights(golden_folder), weights(tmp_path / "a")
    assert not any(torch.equal(before[name], after[name]) for name in before if not name.endswith("k_proj.bias"))
    # Nothing is noted beside the golden weights.
    unknown, step = read_steps(tmp_path / "a")
    assert (unknown["step"], step["step"], step["updates"]) == ("unknown", "pretraining", 20)
    assert step["effective_batch_segments"] == 8
    assert step["data"]["splits"]["train"]["recordings"] == len(load_prepared(settings().data, "train"))
    assert str(tmp_path) not in (tmp_path / "a" / "provenance.json").read_text()
    Pretrainer(settings(**shared | {"max_steps": 1}, output_dir=tmp_path / "c", seed=2)).run()
    assert logged(tmp_path / "c")[0]["loss"] != logged(tmp_path / "a")[0]["loss"]


def test_gradient_is_the_sum_over_micro_batches_weighted_by_masked_frames(settings):
    trainer = Pretrainer(settings(per_device_train_batch_size=4, gradient_accumulation_steps=3))
    updater = trainer.updater
    batches = list(train_batches(trainer.train_data, trainer.settings, 0, 0, 0, 1))[:3]
    model = updater.bare
    model.set_gumbel_temperature(model.gumbel_temperature_at(0))
    losses, counts = [], []
    for index, batch in enumerate(batches):
        mask = updater.mask("train", 0, index, batch)
        output, _ = updater.forward("train", 0, index, batch, mask)
        losses.append(output.loss)
        counts.append(int(mask.sum()))
    assert len(set(counts)) > 1
    total = sum(count * loss for count, loss in zip(counts, losses, strict=True)) / sum(counts)
    total.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    updater.optimizer.zero_grad()
    found = {}

    class Recording:
        param_groups = updater.optimizer.param_groups

        def step(self):
            found.update({name: p.grad.clone() for name, p in model.named_parameters()})

        def zero_grad(self):
            pass

    updater.optimizer = Recording()
    metrics, _ = updater.update(0, batches)
    differences = torch.cat([(found[name] - gradient).flatten() for name, gradient in expected.items()])
    assert float(differences.norm()) <= 1e-6 * float(torch.cat([g.flatten() for g in expected.values()]).norm())
    assert metrics["loss"] == pytest.approx(total.item(), rel=1e-6)
    parts = ("contrastive_loss", "diversity_loss", "feature_penalty", "cmsc_loss")
    assert sum(metrics[part] for part in parts) == pytest.approx(metrics["loss"], rel=1e-6)


@pytest.mark.parametrize(("number", "at"), [(signal.SIGTERM, 2), (signal.SIGINT, 4)])
def test_a_run_that_is_interrupted_continues_to_bit_equal_weights(settings, tmp_path, number, at):
    shared = {"augmentations": {"random_lead_masking": {"p": 0.5}, "emg_noise": {}}}
    shared |= {"lr_scheduler_type": "cosine", "warmup_steps": 0.3, "model": {**MODEL, "gumbel_temperature_decay": 0.9}}
    whole = Pretrainer(settings(**shared, output_dir=tmp_path / "whole")).run()
    assert whole.update == 6
    broken = Pretrainer(settings(**shared))
    interrupt_after(broken, at, number)
    result = broken.run()
    assert (result.update, result.finished, result.signal) == (at, False, number)
    assert result.checkpoint == tmp_path / "out" / "checkpoints" / f"step-{at:08d}"
    assert not (tmp_path / "out" / "model.safetensors").exists()
    # The number of workers is free to change.
    rest = Pretrainer(settings(**shared, dataloader_num_workers=1))
    assert f"resuming at update {at}" in rest.describe()
    assert rest.run().finished
    assert_bit_equal(tmp_path / "out", tmp_path / "whole")
    assert [line["update"] for line in logged(tmp_path / "out")] == [1, 2, 3, 4, 5, 6]
    for kind in ("train", "valid"):
        for found, expected in zip(logged(tmp_path / "out", kind), logged(tmp_path / "whole", kind), strict=True):
            assert all(found[name] == expected[name] for name in METRICS), kind
    # How long a run took that was interrupted nobody knows.
    assert (read_steps(tmp_path / "out")[0]["seconds"], read_steps(tmp_path / "whole")[0]["seconds"] is None) == (
        None,
        0,
    )
    # Finished: nothing is left to do.
    assert Pretrainer(settings(**shared)).run().finished
    assert Pretrainer(settings(**shared, output_dir=tmp_path / "whole")).run().finished
    assert read_steps(tmp_path / "whole")[0]["seconds"] is not None


def test_what_a_kill_left_half_written_is_no_checkpoint(settings, tmp_path):
    chosen = settings(max_steps=4, save_strategy="steps", save_steps=2, eval_strategy="no", save_total_limit=2)
    Pretrainer(chosen).run()
    folder = tmp_path / "out" / "checkpoints"
    run_folder = RunFolder(chosen)
    shutil.copytree(folder / "step-00000004", folder / ".writing-step-00000006" / "step-00000006")
    assert [path.name for path in run_folder.checkpoints.all()] == ["step-00000002", "step-00000004"]
    run_folder.checkpoints.prune(None)
    assert not (folder / ".writing-step-00000006").exists()
    line = '{"update": 5, "kind": "tr'
    metrics = tmp_path / "out" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + line)
    Pretrainer(settings(max_steps=5, eval_strategy="no")).run()
    assert [line["update"] for line in logged(tmp_path / "out")] == [1, 2, 3, 4, 5]


def test_the_last_and_the_best_checkpoints_are_kept(settings, tmp_path, caplog):
    trainer = Pretrainer(
        settings(save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1, save_total_limit=3)
    )
    losses = iter([5.0, 3.0, 4.0, 6.0, 3.5, 3.1, 9.0])
    trainer.validate = lambda: dict.fromkeys(METRICS, 0.5) | {"loss": next(losses)}
    result = trainer.run()
    names = [path.name for path in trainer.folder.checkpoints.all()]
    assert names == ["step-00000002", "step-00000005", "step-00000006"]
    assert result.best.name == "step-00000002"
    assert AutoModel.from_pretrained(result.best).config.hidden_size == 16
    model = AutoModelForPreTraining.from_pretrained(result.best)
    assert load_training_state(result.best, model).settings["gradient_accumulation_steps"] == 2
    file = tmp_path / "out" / "settings.yaml"
    file.write_text(file.read_text().replace("gradient_accumulation_steps: 2", "gradient_accumulation_steps: 3"))
    with pytest.raises(CheckpointError, match=r"settings\.yaml or .*run\.json cannot be read \(it has changed"):
        load_training_state(result.best, model)
    (result.best.parent / "run.json").unlink()
    with pytest.raises(CheckpointError, match=r"run\.json cannot be read .*restore it from a copy"):
        load_training_state(result.best, model)
    # What decides which one is the best.
    state = result.best / "trainer_state.json"
    state.write_text(state.read_text().replace("3.0", "7.0"))
    assert trainer.folder.checkpoints.best() is None
    (result.best.parent / ".writing-step-00000008").mkdir()
    trainer.folder.checkpoints.prune(None)
    assert [path.name for path in trainer.folder.checkpoints.all()] == names
    assert not list(result.best.parent.glob(".writing-*"))
    assert f"{state} is damaged, so the best checkpoint is unknown" in caplog.text


def test_another_run_in_the_same_folder_is_refused(settings):
    Pretrainer(settings(max_steps=1, eval_strategy="no")).run()
    for changes, message in (
        ({"learning_rate": 5e-4}, "learning_rate was 0.001, now 0.0005"),
        ({"gradient_accumulation_steps": 3}, "processes x gradient_accumulation_steps was 2, now 3"),
        ({"per_device_train_batch_size": 4}, "per_device_train_batch_size was 6, now 4"),
        ({"resume_from_checkpoint": False}, "holds a run and resume_from_checkpoint is false"),
    ):
        with pytest.raises(SettingsError, match=message):
            Pretrainer(settings(max_steps=2, **changes))
    # A fixed learning rate lets a run be made longer.
    assert Pretrainer(settings(max_steps=2, eval_strategy="no")).run().update == 2


def test_a_run_of_0_1_0_is_refused_with_the_new_names(settings, tmp_path):
    Pretrainer(settings(max_steps=1, eval_strategy="no")).run()
    file = tmp_path / "out" / "settings.yaml"
    file.write_text(file.read_text().replace("gradient_accumulation_steps:", "accumulation:"))
    with pytest.raises(SettingsError, match=r"cannot be resumed.*accumulation is now gradient_accumulation_steps"):
        Pretrainer(settings(max_steps=2))


def test_a_changed_setting_of_the_model_is_reported_alone(settings):
    Pretrainer(settings(max_steps=1, eval_strategy="no")).run()
    with pytest.raises(SettingsError, match=r"another run: model\.hidden_size was 16, now 32\. Resume"):
        Pretrainer(settings(max_steps=2, model={**MODEL, "hidden_size": 32}))


def test_other_recordings_do_not_continue_a_run_though_they_are_as_many(settings, store, tmp_path, monkeypatch):
    Pretrainer(settings(max_steps=1, eval_strategy="no")).run()
    rows = load_prepared(store, "train")
    monkeypatch.setattr(
        "ecgfm_hf.training.pretraining_data.load_prepared", lambda *_, **__: rows.select(range(len(rows) - 1, -1, -1))
    )
    with pytest.raises(SettingsError, match="the data had other recordings, splits or targets"):
        Pretrainer(settings(max_steps=2, eval_strategy="no"))


@pytest.mark.parametrize("damage", ["flipped", "cut short", "empty", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_resumed(settings, tmp_path, damage, caplog):
    run = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"}
    Pretrainer(settings(**run)).run()
    last = tmp_path / "out" / "checkpoints" / "step-00000002"
    expected = {path.name: path.read_bytes() for path in last.iterdir()}
    assert {"model.safetensors", "optimizer.pt", "trainer_state.json", "config.json", "checksums.json"} <= set(expected)
    for name, content in expected.items():
        if damage == "gone" and name == "optimizer.pt":
            (last / name).unlink()
            with pytest.raises(SettingsError, match=f"{last.name} has no {name}, so the run cannot be resumed exactly"):
                RunFolder(settings(**run))
        else:
            damage_file(last / name, damage)
            caplog.clear()
            folder = RunFolder(settings(**run))
            assert folder.latest.name == "step-00000001"
            found = "" if name == "checksums.json" else name  # digests that have changed accuse any file
            assert f"{last} is damaged ({found}" in caplog.text
        (last / name).write_bytes(content)
    damage_file(last / "model.safetensors", damage)
    assert Pretrainer(settings(**run)).run().update == 2
    assert {path.name: path.read_bytes() for path in last.iterdir()} == expected
    for checkpoint in last.parent.glob("step-*"):
        damage_file(checkpoint / "optimizer.pt", "flipped")
    with pytest.raises(SettingsError, match=r"2 is damaged \(optimizer.pt.*1 is damaged.*no checkpoint is left"):
        Pretrainer(settings(**run))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt"])
def test_a_full_disk_is_an_os_error_and_leaves_no_checkpoint(settings, tmp_path, file):
    resource = pytest.importorskip("resource", reason="limits the size of files")
    run = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"}
    run["model"] = {**MODEL, "hidden_size": 64}  # Weights are larger than the code beside them.
    trainer = Pretrainer(settings(**run))
    size = 4 * sum(p.numel() for p in trainer.updater.bare.parameters()) * (2 if file == "optimizer.pt" else 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1000, before[1]))
    try:
        with pytest.raises(OSError, match="step-00000001 cannot be written"):
            trainer.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert trainer.folder.checkpoints.all() == []
    assert Pretrainer(settings(**run)).run().update == 2


def test_two_runs_do_not_write_in_one_folder_and_a_killed_one_leaves_it_free(settings, tmp_path):
    trainer = Pretrainer(settings(max_steps=1, eval_strategy="no"))
    reading, writing = os.pipe()
    other = os.fork()  # Locks are a process's.
    if other == 0:
        folder = RunFolder(trainer.settings)
        os.write(writing, b"1" if folder.claim() else b"0")
        time.sleep(600)
    try:
        assert os.read(reading, 1) == b"1"
        with pytest.raises(SettingsError, match="is in use: another run is writing there"):
            trainer.run()
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    assert trainer.run().finished


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run(settings, tmp_path, what, monkeypatch):
    trainer = Pretrainer(settings(save_strategy="steps", save_steps=1))
    original = trainer.updater.forward
    good = {}

    def forward(kind, number, index, batch, mask):
        output, batch = original(kind, number, index, batch, mask)
        if number == 2 and kind == "train" and index == 1:
            good.update({name: p.detach().clone() for name, p in trainer.updater.bare.named_parameters()})
            if what == "loss":
                output.loss = output.loss * float("nan")
            else:
                output.loss.register_hook(lambda gradient: gradient * float("inf"))
        return output, batch

    trainer.updater.forward = forward
    with pytest.raises(NonFiniteError, match=f"the {what} of update 3 is not finite") as error:
        trainer.run()
    assert str(tmp_path / "out" / "checkpoints" / "step-00000002") in str(error.value)
    facts = json.loads((tmp_path / "out" / "nonfinite" / "update-00000003-process-0.json").read_text())
    mode = (tmp_path / "out" / "nonfinite" / "update-00000003-process-0.json").stat().st_mode
    assert mode & 0o777 == 0o600
    order = epoch_order(22, 1, 0)[12:18]
    data = trainer.train_data
    expected = [data[int(item)]["recording_id"] for item in order]
    assert [r for batch in facts["micro_batches"] for r in batch["recording_ids"]] == expected
    for name, parameter in trainer.updater.bare.named_parameters():
        assert torch.equal(parameter, good[name])
    saved = weights(tmp_path / "out" / "checkpoints" / "step-00000002")
    assert all(torch.equal(saved[name], parameter) for name, parameter in good.items())


def test_validation_is_the_same_every_time_and_changes_nothing(settings, tmp_path):
    Pretrainer(settings(output_dir=tmp_path / "without", valid_split=None)).run()
    trainer = Pretrainer(settings(eval_strategy="steps", eval_steps=1))
    assert trainer.validate() == trainer.validate()
    trainer.run()
    assert_bit_equal(tmp_path / "out", tmp_path / "without")
    found = logged(tmp_path / "out", "valid")
    assert [line["update"] for line in found] == [1, 2, 3, 4, 5, 6]
    assert found[-1]["loss"] < found[0]["loss"]
    assert trainer.updater.model.training


# ----------------------------------------------------------------------------------------------------------------------
# Outputs and reports
# ----------------------------------------------------------------------------------------------------------------------


def test_the_folder_and_every_checkpoint_load_through_the_auto_classes(settings, tmp_path):
    Pretrainer(settings(feature_extractor={"nan_samples": "interpolate"}, num_train_epochs=1)).run()
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoints" / "step-00000003"):
        extractor = AutoFeatureExtractor.from_pretrained(folder)
        assert extractor.nan_samples == "interpolate"
        model = AutoModel.from_pretrained(folder).eval()
        with torch.no_grad():
            embedding = model(torch.randn(2, 12, 2500)).pooler_output
        assert embedding.shape == (2, 16)
        assert AutoModelForPreTraining.from_pretrained(folder).quantizer.num_codes == 8
    assert read_recipe(tmp_path / "out" / "settings.yaml").model == MODEL
    # A checkpoint of one run begins another.
    second = Pretrainer(settings(init_from=folder, output_dir=tmp_path / "second", num_train_epochs=1))
    assert torch.equal(second.updater.bare.project_q.weight, weights(folder)["project_q.weight"])
    assert second.feature_extractor.nan_samples == "interpolate"


def test_the_gumbel_temperature_continues_where_the_weights_are(settings, tmp_path):
    """As in fairseq-signals, which reads the number of updates from the checkpoint."""
    model = {**MODEL, "gumbel_temperature_decay": 0.9}
    Pretrainer(settings(model=model, num_train_epochs=2, save_strategy="epoch")).run()
    done = [line["update"] for line in logged(tmp_path / "out") if "loss" in line][-1]
    # Beginning from the finished folder, and from a checkpoint of it.
    for folder, updates in ((tmp_path / "out", done), (tmp_path / "out" / "checkpoints" / "step-00000003", 3)):
        again = {"init_from": folder, "output_dir": tmp_path / f"from-{updates}", "model": model}
        trainer = Pretrainer(settings(**again, num_train_epochs=1))
        assert trainer.updater.updates_before == updates
        trainer.run()
        first = next(line for line in logged(tmp_path / f"from-{updates}") if "gumbel_temperature" in line)
        assert first["gumbel_temperature"] == pytest.approx(2 * 0.9**updates)
        resumed = Pretrainer(settings(**again, num_train_epochs=2))
        assert resumed.updater.updates_before == updates
    third = settings(init_from=tmp_path / "from-3", output_dir=tmp_path / "third", model=model)
    assert Pretrainer(third).updater.updates_before == 3 + 3
    chosen = settings(init_from=tmp_path / "out", output_dir=tmp_path / "chosen", model=model, gumbel_updates_before=1)
    assert Pretrainer(chosen).updater.updates_before == 1


def test_a_run_that_was_exported_and_converted_back_makes_the_same_updates(settings, tmp_path):
    """Exported at update 4, which is within its second epoch; then five more updates."""
    changes = {"max_steps": 9, "save_strategy": "steps", "save_steps": 4, "eval_strategy": "no", "save_total_limit": 9}
    Pretrainer(settings(**changes)).run()
    export_fairseq_checkpoint(tmp_path / "out" / "checkpoints" / "step-00000004", tmp_path / "state.pt")
    report = convert_checkpoint(tmp_path / "state.pt", tmp_path / "converted")
    assert report.training.counters == RunCounters(update=4, epoch=1, update_in_epoch=1)
    again = {**changes, "output_dir": tmp_path / "again", "resume_from_checkpoint": str(tmp_path / "converted")}
    with pytest.raises(SettingsError, match=r"its optimizer has adam_epsilon 1e-06, the settings have 1e-08"):
        Pretrainer(settings(**again, adam_epsilon=1e-8))
    Pretrainer(settings(**again)).run()
    assert [line["update"] for line in logged(tmp_path / "again")] == [5, 6, 7, 8, 9]
    last = [tmp_path / folder / "checkpoints" / "step-00000009" for folder in ("out", "again")]
    assert_bit_equal(last[1], last[0])
    states = [torch.load(folder / "optimizer.pt", weights_only=True)["optimizer"]["state"] for folder in last]
    for index, state in states[0].items():
        assert all(
            torch.equal(torch.as_tensor(states[1][index][key]), torch.as_tensor(of)) for key, of in state.items()
        )
    assert (last[0] / "trainer_state.json").read_text() == (last[1] / "trainer_state.json").read_text()
    # A finished folder has no moments to continue with.
    with pytest.raises(SettingsError, match=r"has no trainer_state\.json and no optimizer\.pt: give a checkpoint"):
        Pretrainer(settings(**again | {"resume_from_checkpoint": str(tmp_path / "out"), "output_dir": tmp_path / "no"}))


def test_weights_without_a_count_of_updates_are_not_given_a_temperature(settings, golden_folder, tmp_path):
    with pytest.raises(SettingsError, match=r"no count of updates .* set gumbel_updates_before"):
        Pretrainer(settings(init_from=golden_folder, model={}))


def test_beginning_from_a_folder_that_does_not_fit_is_refused(settings, tmp_path, tiny_config):
    save_model_folder(ECGFMForMultiLabelClassification(tiny_config()), ECGFMFeatureExtractor(), tmp_path / "classifier")
    with pytest.raises(SettingsError, match="no pretraining model"):
        Pretrainer(settings(init_from=tmp_path / "classifier", model={}))
    save_model_folder(ECGFMForPreTraining(tiny_config()), ECGFMFeatureExtractor(), tmp_path / "other")
    with pytest.raises(SettingsError, match=r"has hidden_size=32, the settings have model.hidden_size=16"):
        Pretrainer(settings(init_from=tmp_path / "other"))


def test_the_effective_batch_is_counted_as_the_original_does(settings):
    text = Pretrainer(settings()).describe()
    assert "12 segments: 6 x 1 process x 2 accumulation (published: 1,024)" in text


def test_a_collapsed_codebook_is_reported_once(settings, tmp_path, capsys):
    trainer = Pretrainer(settings(collapse_below=0.9))
    trainer.run()
    assert capsys.readouterr().err.count("the codebook has collapsed") == 1
    figures = logged(tmp_path / "out")[0]
    assert {"codebook_usage", "embedding_std", "cmsc_accuracy", "segments_per_s", "gradient_norm"} <= figures.keys()
    assert 0 <= figures["codebook_usage"] <= 1
    assert 0 < figures["embedding_std"] < 1


def test_trackers_get_figures_and_never_paths_or_recordings(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("ecgfm_hf.training.pretraining.check_trackers", lambda names: None)
    seen = []
    chosen = settings(report_to=["tensorboard"])
    trainer = Pretrainer(chosen)
    accelerator = trainer.accelerator
    monkeypatch.setattr(
        accelerator, "init_trackers", lambda project, config, init_kwargs: seen.append((project, config, init_kwargs))
    )
    monkeypatch.setattr(accelerator, "log", lambda values, step: seen.append((step, values)))
    (tmp_path / "out").mkdir()
    monitor = Monitor(accelerator, chosen, 4, 0)
    monitor.log("train", 1, {"loss": 1.0})
    monitor.close()
    assert seen[0][0] == "ecgfm-pretraining"
    assert seen[0][1]["learning_rate"] == 1e-3
    wandb = seen[0][2].pop("wandb")
    assert wandb["dir"] == str(tmp_path / "out")  # Where it keeps files; it is not sent.
    assert wandb["settings"]["host"] == ""  # Else the machine's name is.
    assert seen[1] == (1, {"train/loss": 1.0})
    assert str(tmp_path) not in json.dumps(seen)
    assert "recording" not in json.dumps(seen[1:])


@pytest.mark.parametrize("changes", [{"bf16": True}, {"gradient_checkpointing": True}, {"optim": "adamw_torch_fused"}])
def test_other_ways_to_compute(settings, changes, tmp_path):
    plain = Pretrainer(settings(num_train_epochs=1, output_dir=tmp_path / "plain", eval_strategy="no")).run()
    AcceleratorState._reset_state(reset_partial_state=True)
    result = Pretrainer(settings(num_train_epochs=1, **changes, max_grad_norm=100.0, eval_strategy="no")).run()
    tolerance = 2e-2 if "bf16" in changes else 1e-3 if "optim" in changes else 1e-6
    assert result.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=tolerance)
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "out").values())


def test_clipping_bounds_the_gradient(settings):
    trainer = Pretrainer(settings(max_grad_norm=1e-3, max_steps=1, eval_strategy="no"))
    norms = []
    step = trainer.updater.optimizer.step

    def recorded():
        gradients = [p.grad for p in trainer.updater.bare.parameters() if p.grad is not None]
        if trainer.accelerator.sync_gradients:
            norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        step()

    trainer.updater.optimizer.step = recorded
    result = trainer.run()
    assert norms == [pytest.approx(1e-3, rel=1e-3)]
    assert result.metrics["gradient_norm"] > 1e-2  # As it was before clipping.


def test_several_stores_are_one_after_the_other(settings, store, tmp_path):
    rng = np.random.default_rng(1)
    others = [
        {
            "recording_id": f"other{n}",
            "patient_id": f"q{n}",
            "signal": np.cumsum(rng.standard_normal((12, 5000)), axis=1).astype(np.float32),
            "sampling_rate": 500,
            "lead_names": STANDARD_LEADS,
            "units": "mV",
        }
        for n in range(4)
    ]
    load_arrays(others, tmp_path / "other", split="grouped", counts={"train": 3, "valid": 1}, progress=False)
    one, _ = open_pairs(settings(), ECGFMFeatureExtractor())
    both, valid = open_pairs(settings(data=[str(store), str(tmp_path / "other")]), ECGFMFeatureExtractor())
    assert len(both) == len(one) + 3
    assert len(valid) == 3 + 1
    assert both[len(one)]["recording_id"].startswith("other")
    assert both.fingerprint != one.fingerprint


def test_stores_that_cannot_be_joined_are_named(settings, store, tmp_path):
    with pytest.raises(SettingsError, match="empty list"):
        open_pairs(settings(data=[]), ECGFMFeatureExtractor())
    with pytest.raises(SettingsError, match="nowhere"):
        open_pairs(settings(data=[str(store), str(tmp_path / "nowhere")]), ECGFMFeatureExtractor())
    with pytest.raises(SettingsError, match="in more than one store"):
        open_pairs(settings(data=[str(store), str(store)]), ECGFMFeatureExtractor())
