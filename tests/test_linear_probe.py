"""Linear probing: embeddings computed once, heads that are what scikit-learn fits, a model folder like any other."""

import logging
import re

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ecgfm_hf import ECGFMConfig, ECGFMFeatureExtractor, ECGFMForPreTraining, ECGFMModel, load_pipeline
from ecgfm_hf.cli.main import main
from ecgfm_hf.data import load_arrays, load_prepared, record_from_row
from ecgfm_hf.data.leakage import GUARD_FILE, seen
from ecgfm_hf.feature_extraction_ecgfm import STANDARD_LEADS
from ecgfm_hf.inference import predict_recordings
from ecgfm_hf.model_folder import save_model_folder
from ecgfm_hf.provenance import read_steps
from ecgfm_hf.training import linear_probe as embeddings_module
from ecgfm_hf.training.linear_probe import Embeddings, LinearProbeError, embed_split, fit_heads, fit_linear_probe
from tests.tiny_pretraining import MODEL

RECORDINGS = 60


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def encoder():
    return ECGFMModel(ECGFMConfig.base(**MODEL)).eval()


@pytest.fixture
def store(tmp_path):
    """Recordings of 5 or 10 s, two a patient; `fast` ones oscillate faster, `amount` says how much."""
    rng = np.random.default_rng(0)
    recordings, labels = [], {"fast": [], "amount": [], "never": []}
    for number in range(RECORDINGS):
        samples = 5000 if number % 3 else 2500
        hertz = rng.uniform(2, 40)
        wave = np.sin(2 * np.pi * hertz * np.arange(samples) / 500 + rng.uniform(0, 6, (12, 1)))
        recordings.append(
            {
                "recording_id": f"r{number}",
                "patient_id": f"p{number // 2}",
                "signal": (1000 * wave + 100 * rng.standard_normal((12, samples))).astype(np.int16),
                "sampling_rate": 500,
                "lead_names": STANDARD_LEADS,
                "units": "uV",
            }
        )
        labels["fast"].append(None if number % 10 == 9 else int(hertz > 20))
        labels["amount"].append(int(hertz > 30))
        labels["never"].append(0)
    load_arrays(
        recordings,
        tmp_path / "store",
        labels,
        split="grouped",
        fractions={"train": 0.6, "valid": 0.4},
        progress=False,
    )
    return tmp_path / "store"


def made(n=80, width=16, segments=2, seed=0, patients=None, labels=None) -> Embeddings:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((n * segments, width)).astype(np.float32) * np.arange(1, width + 1) + 3
    means = values.reshape(n, segments, width).mean(axis=1)
    if labels is None:
        labels = (means[:, :1] + 2 * rng.standard_normal((n, 1)) > 3).astype(np.float64)
    return Embeddings(
        values,
        np.repeat(np.arange(n), segments),
        [f"r{i}" for i in range(n)],
        [f"p{i}" for i in range(n)] if patients is None else patients,
        tuple(f"label {i}" for i in range(labels.shape[1])),
        labels,
    )


def test_the_saved_model_scores_through_every_way_what_the_probe_says(store, encoder, tmp_path):
    train, valid = (load_prepared(store, split) for split in ("train", "valid"))
    extractor = ECGFMFeatureExtractor()
    probe = fit_linear_probe(encoder, embed_split(encoder, extractor, train, ["fast", "amount"]))
    expected = probe.predict(embed_split(encoder, extractor, valid, ["fast", "amount"]))
    save_model_folder(probe.model, extractor, tmp_path / "model")

    pipeline = load_pipeline(tmp_path / "model")
    found = predict_recordings(pipeline.model, pipeline.feature_extractor, valid)
    assert found.recording_ids == expected.recording_ids
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_array_equal(found.labels, expected.labels)
    for row, scores in zip(valid.with_format("arrow")[:].to_pylist(), expected.scores, strict=True):
        record = record_from_row(row)
        answer = pipeline(
            {"signal": record.signal, "sampling_rate": 500, "lead_names": list(record.lead_names), "units": "mV"}
        )
        np.testing.assert_allclose([answer["scores"][name] for name in expected.label_names], scores, atol=1e-5)
    assert expected.scores.std() > 0.01


def test_a_head_is_the_logistic_regression_of_the_recordings_means(encoder):
    embeddings = made()
    probe = fit_linear_probe(encoder, embeddings)
    means = embeddings.values.reshape(80, 2, 16).mean(axis=1, dtype=np.float64)
    features = StandardScaler().fit_transform(means)
    reference = LogisticRegression(C=probe.strengths["label 0"], max_iter=1000).fit(features, embeddings.labels[:, 0])
    head = probe.model.classifier
    logits = means @ head.weight.detach().double().numpy().T + head.bias.detach().double().numpy()
    np.testing.assert_allclose(logits[:, 0], reference.decision_function(features), atol=2e-3)


def test_embedding_and_fitting_leave_the_encoder_as_it_was(store, encoder):
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    probe = fit_linear_probe(
        encoder, embed_split(encoder, ECGFMFeatureExtractor(), load_prepared(store, "train"), ["fast"])
    )
    with torch.no_grad():
        probe.model.ecgfm.feature_projection.projection.weight.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_an_unknown_label_is_no_negative_one(encoder):
    embeddings = made()
    labels = np.concatenate([embeddings.labels, embeddings.labels], axis=1)
    labels[::3, 1] = np.nan
    both = fit_linear_probe(encoder, made(labels=labels))
    known = np.arange(80) % 3 != 0
    # The same features for all, so that the standardisation is the same.
    features = embeddings.recording_means()
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    reference = LogisticRegression(C=both.strengths["label 1"], max_iter=1000)
    reference.fit(features[known], embeddings.labels[known, 0])
    head = both.model.classifier
    logits = (
        embeddings.recording_means() @ head.weight.detach().double().numpy().T + head.bias.detach().double().numpy()
    )
    np.testing.assert_allclose(logits[:, 1], reference.decision_function(features), atol=2e-3)
    assert np.abs(logits[:, 0] - logits[:, 1]).max() > 0.01


def test_a_label_of_one_class_is_left_out_with_a_note_and_the_others_fitted(encoder):
    labels = np.concatenate([made().labels, np.zeros((80, 1)), np.full((80, 1), np.nan)], axis=1)
    probe = fit_linear_probe(encoder, made(labels=labels))
    assert probe.model.config.label_names == ["label 0"]
    assert probe.notes == {
        "label 1": "not in the model: all 80 known recordings are negative",
        "label 2": "not in the model: unknown in all recordings",
    }
    with pytest.raises(LinearProbeError, match="no label to fit"):
        fit_linear_probe(encoder, made(labels=labels[:, 1:]))


def test_a_label_of_one_patient_takes_the_strength_of_the_others(encoder):
    rare = np.zeros((80, 1))
    rare[3] = 1
    probe = fit_linear_probe(encoder, made(labels=np.concatenate([made().labels, rare], axis=1)))
    assert probe.strengths["label 1"] == probe.strengths["label 0"]
    assert list(probe.notes) == ["label 1"]
    assert "too few patients" in probe.notes["label 1"]


def test_recordings_of_a_patient_are_never_on_both_sides_of_a_fold():
    rng = np.random.default_rng(1)
    # Every patient looks like nobody else and always alike, and labels mean nothing: memory alone helps.
    looks, answers = rng.standard_normal((30, 60)), rng.integers(0, 2, 30)
    features = np.repeat(looks, 6, axis=0) + 0.01 * rng.standard_normal((180, 60))
    labels = np.repeat(answers, 6).astype(np.float64)[:, None]
    ids = [f"r{i}" for i in range(180)]
    grouped = fit_heads(features, labels, ["x"], ids, [f"p{i // 6}" for i in range(180)])
    unknown = fit_heads(features, labels, ["x"], ids, [None] * 180)
    # 1e-4 to 1e-2, by the folds of the version of scikit-learn, and 100.
    assert 1000 * grouped.strengths["x"] <= unknown.strengths["x"]
    assert unknown.strengths["x"] >= 1


def test_regression_gives_values_in_their_own_units(encoder):
    embeddings = made()
    values = 400 + 25 * embeddings.recording_means()[:, [0]] / 1.0
    values[5] = np.nan
    probe = fit_linear_probe(encoder, made(labels=values), problem_type="regression")
    found = probe.predict(made(labels=values))
    assert found.problem_type == "regression"
    np.testing.assert_allclose(found.scores, 400 + 25 * embeddings.recording_means()[:, [0]], atol=1)
    assert probe.strengths["label 0"] == 100


def test_a_feature_that_never_differs_has_no_weight(encoder):
    embeddings = made()
    embeddings.values[:, 4] = 7
    probe = fit_linear_probe(encoder, embeddings)
    assert probe.model.classifier.weight[0, 4] == 0
    assert torch.isfinite(probe.model.classifier.weight).all()


def test_embeddings_are_found_again_until_weights_or_data_or_policies_change(
    store, encoder, tmp_path, monkeypatch, caplog
):
    train, extractor = load_prepared(store, "train"), ECGFMFeatureExtractor()

    def embed(encoder=encoder, extractor=extractor, data=train, **options):
        return embed_split(encoder, extractor, data, ["fast"], cache_dir=tmp_path / "kept", **options)

    first = embed()
    runs = []
    real = embeddings_module.run_recordings
    monkeypatch.setattr(embeddings_module, "run_recordings", lambda *a, **k: (runs.append(1), real(*a, **k))[1])
    again = embed()
    assert not runs
    np.testing.assert_array_equal(first.values, again.values)
    assert (first.recording_ids, first.patient_ids) == (again.recording_ids, again.patient_ids)
    np.testing.assert_array_equal(first.labels, again.labels)
    # Other labels of the same recordings need no encoder.
    assert embed_split(encoder, extractor, train, ["amount"], cache_dir=tmp_path / "kept").label_names == ("amount",)
    assert not runs

    embed(data=train.select(range(10)))
    embed(extractor=ECGFMFeatureExtractor(nan_samples="interpolate"))
    embed(precision="bfloat16")
    with torch.no_grad():
        encoder.feature_projection.projection.bias[0] += 0.01
    changed = embed()
    assert len(runs) == 4
    assert np.abs(changed.values - first.values).max() > 0

    for path in (tmp_path / "kept").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(embed().values, changed.values)
    assert "damaged" in caplog.text
    assert len(runs) == 5


def test_selected_recordings_keep_their_segments_and_labels():
    embeddings = made(n=5, segments=3)
    found = embeddings.take([4, 1])
    assert found.recording_ids == ["r4", "r1"]
    np.testing.assert_array_equal(found.values, embeddings.values[[12, 13, 14, 3, 4, 5]])
    np.testing.assert_array_equal(found.recordings, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(found.labels, embeddings.labels[[4, 1]])
    assert len(embeddings.take(np.zeros(5, dtype=bool))) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem_type": "single_label_classification"}, "problem_type must be one of"),
        ({"strengths": []}, "strengths must be above 0"),
        ({"strengths": [0.0]}, "strengths must be above 0"),
        ({"folds": 1}, "folds must be at least 2"),
    ],
)
def test_impossible_settings_are_refused(encoder, change, message):
    with pytest.raises(LinearProbeError, match=message):
        fit_linear_probe(encoder, made(), **change)


def test_values_that_are_no_labels_or_embeddings_are_refused_by_name(encoder):
    labels = made().labels
    labels[7] = 0.5
    with pytest.raises(LinearProbeError, match=r"recording r7, label label 0: must be 0, 1 or unknown .* found: 0\.5"):
        fit_linear_probe(encoder, made(labels=labels))
    embeddings = made()
    embeddings.values[5, 3] = np.nan
    with pytest.raises(LinearProbeError, match=r"recording r2: .* not finite"):
        fit_linear_probe(encoder, embeddings)
    with pytest.raises(LinearProbeError, match="embeddings have 16 values, these have 8"):
        fit_linear_probe(encoder, made(width=8))


def run(*arguments) -> int:
    return main(["probe", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path):
    save_model_folder(ECGFMForPreTraining(ECGFMConfig.base(**MODEL)), ECGFMFeatureExtractor(), tmp_path / "pretrained")
    return tmp_path / "pretrained"


def test_the_command_writes_a_classifier_with_calibration_thresholds_and_a_note_of_what_it_saw(
    store, folder, tmp_path, capsys
):
    out = tmp_path / "probe"
    assert run(folder, store, "--output", out, "--min-cases", "1", "--cache", tmp_path / "kept") == 0
    printed = capsys.readouterr().out
    assert "macro AUROC" in printed
    assert "never: not in the model" in printed
    model = load_pipeline(out).model
    assert model.config.label_names == ["fast", "amount"]
    assert set(model.config.label_thresholds) == set(model.config.label_calibration) == {"fast", "amount"}
    for split, use in (("train", "training_recordings"), ("valid", "validation_recordings")):
        data = load_prepared(store, split)
        assert getattr(seen(out, data["recording_id"][:], data["patient_id"][:]), use) == len(data)
    *_, step = read_steps(out)
    assert step["step"] == "linear probe"
    assert step["strengths"].keys() == {"fast", "amount"}
    assert step["data"]["splits"]["train"]["labels"].keys() <= {"fast", "amount"}


def test_the_command_refuses_a_patient_in_both_splits_and_a_split_used_twice(
    store, folder, tmp_path, capsys, monkeypatch
):
    assert run(folder, store, "--output", tmp_path / "out", "--valid-split", "train") == 2
    assert "another one" in capsys.readouterr().err
    from ecgfm_hf.training import probing

    real = probing.load_prepared
    train = real(str(store), "train")
    monkeypatch.setattr(
        probing, "load_prepared", lambda path, split, **_: train.select(range(4)) if split == "valid" else train
    )
    assert run(folder, store, "--output", tmp_path / "out") == 2
    assert "4 recordings and 2 patients" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "fats"], "no label fats"),
        (["--split", "test"], "no split 'test'"),
        (["--thresholds", "half"], "thresholds must be"),
        (["--labels", "never"], "no label to fit"),
    ],
)
def test_the_command_names_what_is_wrong(store, folder, tmp_path, capsys, arguments, message):
    assert run(folder, store, "--output", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err


def test_the_output_is_no_input_and_replaces_a_model_only_when_asked_to(store, folder, tmp_path, capsys):
    other = tmp_path / "other"
    save_model_folder(ECGFMForPreTraining(ECGFMConfig.base(**MODEL)), ECGFMFeatureExtractor(), other)
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "mine.txt").write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(folder)
    weights = [(path / "model.safetensors").read_bytes() for path in (folder, other)]
    for output, flags in ((folder, ["--overwrite"]), (link, ["--overwrite"]), (store, ["--overwrite"])):
        assert run(folder, store, "--output", output, *flags) == 2
        assert "never overwritten" in capsys.readouterr().err
    assert run(folder, store, "--output", other) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(folder, store, "--output", notes, "--overwrite") == 2
    assert [(path / "model.safetensors").read_bytes() for path in (folder, other)] == weights
    assert [path.name for path in notes.iterdir()] == ["mine.txt"]


def test_the_command_writes_no_model_where_it_cannot_note_what_was_seen(store, folder, tmp_path, capsys):
    (folder / GUARD_FILE).write_text("{")
    assert run(folder, store, "--output", tmp_path / "probe") == 2
    assert f"{GUARD_FILE} is damaged" in capsys.readouterr().err
    assert not (tmp_path / "probe").exists()


def test_the_command_without_validation_decides_nothing(store, folder, tmp_path, capsys):
    assert run(folder, store, "--output", tmp_path / "out", "--valid-split", "none", "--labels", "fast") == 0
    whole = capsys.readouterr().out
    assert "no validation split" in whole
    half = [*("--output", tmp_path / "half", "--valid-split", "none", "--labels", "fast"), "--train-fraction", "0.5"]
    assert run(folder, store, *half) == 0
    count, of_half = (int(re.search(r"on (\d+) recordings", text)[1]) for text in (whole, capsys.readouterr().out))
    assert count / 2 <= of_half <= count / 2 + 1
    config = load_pipeline(tmp_path / "out").model.config
    assert config.label_thresholds is None
    assert config.label_calibration is None
