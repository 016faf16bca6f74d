"""Fine-tuning in memory: gradients, heads, frozen weights, early stopping, what the config gets."""

import copy
import dataclasses
import multiprocessing

import numpy as np
import pytest
import torch
from finetune_cases import TINY_MODEL, make_store, train_in_memory

from ecgfm_hf import ECGFMFeatureExtractor, ECGFMForMultiLabelClassification
from ecgfm_hf.data import load_prepared, record_from_row
from ecgfm_hf.data.leakage import LeakError, seen
from ecgfm_hf.fairseq.label_sets import LABEL_SETS
from ecgfm_hf.training import FinetuneData, FinetuneSettings, SettingsError, build_classifier
from ecgfm_hf.training.finetuning_data import EpochOrder
from ecgfm_hf.training.trainer import build_trainer


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    import datasets

    datasets.disable_progress_bars()
    folder = tmp_path_factory.mktemp("finetune")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        make_store(folder / "store")
        yield load_prepared(folder / "store")


def settings_for(**changes):
    given = {
        "model": TINY_MODEL,
        "labels": ["slow", "fast", "rare"],
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "calibration": "none",
        "thresholds": "none",
    }
    return FinetuneSettings(**{**given, **changes})


def prepared(store, settings, valid=True):
    data = FinetuneData.from_datasets(
        store["train"], store["valid"] if valid else None, ECGFMFeatureExtractor(), settings
    )
    return build_classifier(settings, data.names), data


def run(store, folder, valid=True, **changes):
    settings = settings_for(**changes)
    model, data = prepared(store, settings, valid)
    return train_in_memory(model, data, settings, folder)


def test_a_share_of_the_training_patients_is_drawn_and_validation_stays_whole(store):
    found = {share: prepared(store, settings_for(train_fraction=share))[1] for share in (0.25, 0.5, 1.0)}
    ids = {share: set(data.datasets["train"]["recording_id"]) for share, data in found.items()}
    people = {share: set(data.datasets["train"]["patient_id"]) for share, data in found.items()}
    assert ids[0.25] < ids[0.5] < ids[1.0] == set(store["train"]["recording_id"])
    assert len(people[0.5]) == -(-len(people[1.0]) // 2)
    assert ids[0.5] == {r["recording_id"] for r in store["train"] if r["patient_id"] in people[0.5]}
    assert found[0.5].datasets["valid"]["recording_id"] == store["valid"]["recording_id"]
    assert f"train_fraction=0.5: {len(ids[0.5])} of {len(ids[1.0])} recordings are used" in found[0.5].notes
    with pytest.raises(SettingsError, match=r"train_fraction must be .* at most 1, found: 1\.5"):
        settings_for(train_fraction=1.5)


# ----------------------------------------------------------------------------------------------------------------------
# The gradient of an update
# ----------------------------------------------------------------------------------------------------------------------


def first_gradient(store, folder, **changes):
    """Gradient and loss of a run's first update, and its numbers of known targets by micro-batch."""
    settings = settings_for(**changes)
    model, data = prepared(store, settings, valid=False)
    # Float32 rounds sums in other orders by 2e-6 of the gradient.
    trainer = build_trainer(model.double(), data, settings, folder)
    trainer.create_optimizer()
    loader = iter(trainer.get_train_dataloader())
    batches, known = trainer.get_batch_samples(loader, settings.gradient_accumulation_steps, trainer.args.device)
    loss = sum(float(trainer.training_step(model, batch, known)) for batch in batches)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return gradients, loss, [int((~batch["labels"].isnan()).sum()) for batch in batches]


def test_accumulation_has_the_gradient_of_the_big_batch_however_targets_are_unknown(store, tmp_path):
    expected, loss, _ = first_gradient(store, tmp_path / "one", per_device_train_batch_size=16)
    found, sum_of_losses, known = first_gradient(
        store, tmp_path / "four", per_device_train_batch_size=4, gradient_accumulation_steps=4
    )
    assert len(set(known)) > 1, "the case needs unequal numbers of unknown targets"
    assert sum_of_losses == pytest.approx(loss, rel=1e-6)
    whole = torch.cat([gradient.flatten() for gradient in expected.values()])
    apart = torch.cat([(found[name] - gradient).flatten() for name, gradient in expected.items()])
    assert found.keys() == expected.keys()
    assert float(apart.norm()) <= 1e-6 * float(whole.norm())


def test_the_last_window_of_an_epoch_is_normalised_by_what_it_has(store, tmp_path):
    settings = settings_for(per_device_train_batch_size=7, gradient_accumulation_steps=4, pos_weight=None)
    model, data = prepared(store, settings, valid=False)
    trainer = build_trainer(model, data, settings, tmp_path)
    trainer.create_optimizer()
    loader = iter(trainer.get_train_dataloader())
    window, known = trainer.get_batch_samples(loader, 4, trainer.args.device)
    while rest := trainer.get_batch_samples(loader, 4, trainer.args.device)[0]:
        window, known = rest, sum((~batch["labels"].isnan()).sum() for batch in rest)
    assert len(window) < 4
    trainer._micro_batch = 0
    found = sum(float(trainer.training_step(model, batch, known)) for batch in window)
    together = {name: torch.cat([batch[name] for batch in window]) for name in window[0]}
    assert found == pytest.approx(model(**together).loss.item(), rel=1e-5)


def test_fillers_change_neither_the_loss_nor_the_order(store):
    settings = settings_for()
    _, data = prepared(store, settings, valid=False)
    plain, filled = list(EpochOrder(data.train, 1)), list(EpochOrder(data.train, 1, multiple=7))
    assert sorted(plain) == list(range(len(data.train)))
    assert filled[: len(plain)] == plain
    assert len(filled) % 7 == 0
    fillers = data.train.__getitems__([0, *filled[len(plain) :]])
    assert all(np.isnan(item["labels"]).all() and not item["input_values"].any() for item in fillers[1:])
    assert np.array_equal(fillers[0]["input_values"], data.train[0]["input_values"])
    data.train.set_epoch(1)
    assert list(EpochOrder(data.train, 1)) != plain
    assert list(EpochOrder(data.train, 2)) != list(EpochOrder(data.train, 1))


def test_an_update_without_a_known_target_changes_nothing_but_by_decay(store, tmp_path):
    settings = settings_for()
    model, data = prepared(store, settings, valid=False)
    data.train.targets[:] = np.nan
    before = copy.deepcopy(model.state_dict())
    trainer = build_trainer(model, data, settings_for(max_steps=1, pos_weight=[1.0, 1.0, 1.0]), tmp_path)
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ----------------------------------------------------------------------------------------------------------------------
# Heads
# ----------------------------------------------------------------------------------------------------------------------


def test_multi_label_learns_and_is_judged_by_recordings(store, tmp_path):
    from sklearn.metrics import roc_auc_score

    from ecgfm_hf.pipeline_ecgfm import recording_scores

    result = run(store, tmp_path, labels=["slow", "fast"], num_train_epochs=6, learning_rate=1e-2)
    assert result.finished
    assert result.metrics["auroc_macro"] > 0.95
    # The same figure, from the model that was returned and by other code.
    truth, scores, extractor = [], [], ECGFMFeatureExtractor()
    for row in store["valid"]:
        record = record_from_row(row)
        segments = extractor.prepare_recording(record.signal, record.sampling_rate, record.lead_names, "mV").segments
        with torch.no_grad():
            logits = result.model(torch.from_numpy(segments)).logits.numpy()
        scores.append(recording_scores(logits, result.model.config))
        truth.append([row["slow"], row["fast"]])
    scores = np.array([[found["slow"], found["fast"]] for found in scores])
    expected = np.mean([roc_auc_score(np.array(truth)[:, index], scores[:, index]) for index in (0, 1)])
    assert result.metrics["auroc_macro"] == pytest.approx(expected, abs=1e-6)
    share = np.mean(store["train"]["fast"][:])
    settings = settings_for(labels=["slow", "fast"])
    config = build_trainer(*prepared(store, settings), settings, tmp_path / "weights").classifier.config
    assert config.pos_weight == pytest.approx([share / (1 - share), (1 - share) / share], rel=1e-6)


def test_published_weights_of_positives_go_by_the_labels_names(store, tmp_path, monkeypatch):
    from ecgfm_hf.fairseq import MIMIC17, PHYSIONET26

    weights = dict(zip(PHYSIONET26.names, PHYSIONET26.pos_weight, strict=True))
    assert weights["sinus rhythm"] == 1.994518  # the most frequent class: a third of the recordings
    assert dict(zip(MIMIC17.names, MIMIC17.pos_weight, strict=True))["Ventricular tachycardia"] == 1104.575439
    settings = settings_for(labels=["slow", "fast"], pos_weight="mimic17")
    with pytest.raises(SettingsError, match=r"mimic17 has no weight for 'slow', 'fast', only for Poor data quality"):
        build_trainer(*prepared(store, settings), settings, tmp_path)
    named = dataclasses.replace(MIMIC17, names=("fast", *MIMIC17.names[1:-1], "slow"))
    monkeypatch.setitem(LABEL_SETS, "mimic17", named)
    config = build_trainer(*prepared(store, settings), settings, tmp_path).classifier.config
    assert config.pos_weight == [24.640965, 36.796317]  # by name, not by position


def test_binary_is_multi_label_with_one_label(store, tmp_path):
    result = run(store, tmp_path, labels=["fast"], num_train_epochs=6, learning_rate=1e-2)
    assert result.model.config.label_names == ["fast"]
    assert result.metrics["auroc_macro"] > 0.95


def test_a_single_label_from_one_hot_columns(store, tmp_path):
    changes = {"problem_type": "single_label_classification", "num_train_epochs": 6, "learning_rate": 1e-2}
    result = run(store, tmp_path, labels=["slow", "fast"], **changes)
    assert result.metrics["auroc_macro"] > 0.95
    assert result.model.config.pos_weight is None
    assert result.model.config.problem_type == "single_label_classification"


def test_regression_gives_the_targets_own_units(store, tmp_path):
    changes = {"problem_type": "regression", "labels": ["age"], "num_train_epochs": 12, "learning_rate": 1e-2}
    result = run(store, tmp_path, **changes)
    assert result.metrics["r_squared_macro"] > 0.5
    segments = FinetuneData.from_datasets(store["valid"], None, ECGFMFeatureExtractor(), settings_for(**changes)).train
    with torch.no_grad():
        values = torch.from_numpy(np.stack([segments[n]["input_values"] for n in range(len(segments))]))
        predicted = result.model(values).logits[:, 0].numpy()
    ages = np.array(store["valid"]["age"][:])[segments.rows]
    assert np.abs(predicted - ages).mean() < 0.7 * np.abs(ages - ages.mean()).mean()
    assert ages.min() - 40 < predicted.min() < predicted.max() < ages.max() + 40


# ----------------------------------------------------------------------------------------------------------------------
# What is trained
# ----------------------------------------------------------------------------------------------------------------------


def changed(before, model):
    after = model.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_convolutions_are_frozen_and_the_rest_is_trained(store, tmp_path):
    settings = settings_for(max_steps=2)
    model, data = prepared(store, settings, valid=False)
    before = copy.deepcopy(model.state_dict())
    train_in_memory(model, data, settings, tmp_path)
    moved = changed(before, model)
    assert not [name for name in moved if name.startswith("ecgfm.feature_extractor.")]
    still = {name for name in before if name not in moved and not name.startswith("ecgfm.feature_extractor.")}
    assert not {name for name in still if not name.endswith("k_proj.bias")}


def test_the_encoder_waits_for_its_updates_and_then_begins(store, tmp_path):
    for updates, moves in ((2, False), (1, True)):
        settings = settings_for(max_steps=2, freeze_encoder=updates)
        model, data = prepared(store, settings, valid=False)
        before = copy.deepcopy(model.state_dict())
        train_in_memory(model, data, settings, tmp_path / str(updates))
        assert "classifier.weight" in changed(before, model)
        assert bool([name for name in changed(before, model) if name.startswith("ecgfm.")]) == moves


def test_an_encoder_that_is_frozen_always_is_not_in_the_optimizer(store, tmp_path):
    settings = settings_for(freeze_encoder="always")
    model, data = prepared(store, settings, valid=False)
    trainer = build_trainer(model, data, settings, tmp_path)
    (group,) = trainer.create_optimizer().param_groups
    assert {p.shape for p in group["params"]} == {model.classifier.weight.shape, model.classifier.bias.shape}


def test_layers_learn_slower_the_deeper_they_lie(store, tmp_path):
    settings = settings_for(
        layer_decay=0.5,
        model={**TINY_MODEL, "num_hidden_layers": 3},
        lr_scheduler_type="linear",
        max_steps=4,
        warmup_steps=2,
    )
    model, data = prepared(store, settings, valid=False)
    trainer = build_trainer(model, data, settings, tmp_path)
    trainer.create_optimizer_and_scheduler(4)
    rates = {}
    for group in trainer.optimizer.param_groups:
        rates |= {id(parameter): group["initial_lr"] for parameter in group["params"]}
    named = {name: rates.get(id(parameter)) for name, parameter in model.named_parameters()}
    assert named["classifier.weight"] == 1e-3
    for layer, expected in ((2, 5e-4), (1, 2.5e-4), (0, 1.25e-4)):
        found = {rate for name, rate in named.items() if f"encoder.layers.{layer}." in name}
        assert found == {expected}
    before_layers = {
        rate for name, rate in named.items() if "layers" not in name and "classifier" not in name and rate is not None
    }
    assert before_layers == {6.25e-5}
    # The first update of a warm-up of two, at all depths.
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [
        pytest.approx(group["initial_lr"] / 2) for group in trainer.optimizer.param_groups
    ]


# ----------------------------------------------------------------------------------------------------------------------
# What chooses
# ----------------------------------------------------------------------------------------------------------------------


def test_early_stopping_ends_a_run_and_the_best_weights_come_back(store, tmp_path):
    result = run(store, tmp_path, labels=["fast"], num_train_epochs=40, learning_rate=1e-2, early_stopping_patience=2)
    assert result.update < 40 * 6
    assert result.best_update <= result.update
    best = tmp_path / "checkpoints" / f"checkpoint-{result.best_update}"
    stored = ECGFMForMultiLabelClassification.from_pretrained(best)
    assert all(torch.equal(value, stored.state_dict()[name]) for name, value in result.model.state_dict().items())


def test_thresholds_and_calibration_come_from_validation_and_reach_the_config(store, tmp_path):
    result = run(
        store,
        tmp_path,
        num_train_epochs=6,
        learning_rate=1e-2,
        calibration="platt",
        thresholds="sensitivity:0.9",
        min_cases=2,
    )
    points, config = result.operating_points, result.model.config
    assert config.label_calibration == points.calibration
    assert config.label_thresholds == points.thresholds
    assert {"slow", "fast"} <= points.calibration.keys() & points.thresholds.keys()
    positives = int(np.nansum(np.array(store["valid"]["fast"][:], dtype=float)))
    assert points.cases["fast"] == (positives, len(store["valid"]) - positives)
    assert all(threshold != 0.5 for threshold in points.thresholds.values())


def test_labels_with_few_cases_get_neither_and_it_is_reported(store, tmp_path):
    result = run(store, tmp_path, calibration="platt", thresholds="youden", min_cases=10**6)
    assert result.model.config.label_calibration is None
    assert result.model.config.label_thresholds is None
    (note,) = [note for note in result.notes if "min_cases=1000000" in note]
    assert "fast (" in note


def test_without_validation_there_are_no_thresholds(store, tmp_path):
    result = run(store, tmp_path, valid=False, calibration="platt", thresholds="youden")
    assert (result.metrics, result.model.config.label_thresholds) == ({}, None)
    assert result.best_update == result.update


def test_datasets_and_a_model_in_memory_take_the_place_of_folders(store, tmp_path):
    settings = settings_for(labels=["fast", "slow"])
    data = FinetuneData.from_datasets(store["train"], store["valid"], ECGFMFeatureExtractor(), settings)
    model = build_classifier(settings, data.names)
    result = train_in_memory(model, data, settings, tmp_path)
    assert result.finished
    assert result.model is model
    assert ECGFMForMultiLabelClassification.from_pretrained(tmp_path).config.label_names == ["fast", "slow"]
    ids = store["train"]["recording_id"][:], store["train"]["patient_id"][:]
    assert seen(tmp_path, *ids).training_recordings == len(store["train"])
    with pytest.raises(SettingsError, match=r"data\.datasets is empty"):
        train_in_memory(model, FinetuneData(data.names, data.problem_type, data.train, None), settings, tmp_path / "x")


def test_a_leak_between_datasets_is_refused(store):
    with pytest.raises(LeakError, match="share 4 recordings and 2 patients"):
        FinetuneData.from_datasets(
            store["train"], store["train"].select(range(4)), ECGFMFeatureExtractor(), settings_for()
        )


# ----------------------------------------------------------------------------------------------------------------------
# Other ways to compute
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"bf16": True},
        {"gradient_checkpointing": True},
        {"optim": "adamw_torch_fused", "weight_decay": 0.1, "max_grad_norm": 1.0},
        {"dataloader_num_workers": 1},
        {"augmentations": {"random_lead_masking": {"p": 0.5}, "emg_noise": {}}},
        {
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.5,
        },
    ],
)
def test_every_way_of_training_runs(store, tmp_path, changes):
    result = run(store, tmp_path, max_steps=3, **changes)
    assert result.finished
    assert result.update == 3
    assert next(result.model.parameters()).dtype == torch.float32
    assert all(torch.isfinite(parameter).all() for parameter in result.model.parameters())
    assert not multiprocessing.active_children()


def test_augmentations_act_on_training_only_and_change_with_the_epoch(store):
    settings = settings_for(augmentations={"random_lead_masking": {"p": 0.5}, "emg_noise": {}})
    _, data = prepared(store, settings)
    _, plain = prepared(store, settings_for())
    first = data.train[0]["input_values"].copy()
    assert not np.array_equal(first, plain.train[0]["input_values"])
    assert np.array_equal(data.valid[0]["input_values"], plain.valid[0]["input_values"])
    assert np.array_equal(first, data.train[0]["input_values"])
    data.train.set_epoch(1)
    assert not np.array_equal(first, data.train[0]["input_values"])


def test_a_loss_that_is_not_finite_stops_the_run(store, tmp_path):
    from ecgfm_hf.training import NonFiniteError

    settings = settings_for()
    model, data = prepared(store, settings, valid=False)
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="the loss of update 1 is not finite"):
        train_in_memory(model, data, settings, tmp_path)


def test_a_gradient_that_is_not_finite_changes_no_weight(store, tmp_path):
    from ecgfm_hf.training import NonFiniteError

    settings = settings_for()
    model, data = prepared(store, settings, valid=False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    # The loss is finite; its gradient is not.
    model.classifier.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match="the gradient of update 1 is not finite"):
        train_in_memory(model, data, settings, tmp_path)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_weights_that_ran_away_are_reported_when_they_are_judged(store, tmp_path):
    from ecgfm_hf.training import NonFiniteError

    settings = settings_for(optim="adamw_torch_fused", learning_rate=1e30, max_steps=1)
    model, data = prepared(store, settings)
    with pytest.raises(NonFiniteError, match="after update 1 the model's outputs are not finite"):
        train_in_memory(model, data, settings, tmp_path)


def test_other_labels_than_the_models_are_refused(store, tmp_path):
    settings = settings_for(labels=["fast", "slow"])
    model = build_classifier(settings, ["slow", "fast"])
    _, data = prepared(store, settings)
    with pytest.raises(SettingsError, match=r"the model's labels are \['slow', 'fast'\]"):
        train_in_memory(model, data, settings, tmp_path)
