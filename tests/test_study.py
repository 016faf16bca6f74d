"""`ecgfm study` from a table to a report: every arm, resuming, budgets, what is refused, what is withheld."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from study_cohort import RARE, make_recordings

from ecgfm_hf import ECGFMFeatureExtractor, ECGFMForPreTraining, save_model_folder
from ecgfm_hf.cli.main import main
from ecgfm_hf.data import load_arrays, load_prepared
from ecgfm_hf.data.leakage import LeakError, write_training_ids
from ecgfm_hf.study import Study, StudySettings, TooFewError
from ecgfm_hf.study.arms import ARMS, NEEDS, AttentionArm
from ecgfm_hf.study.costs import Costs
from ecgfm_hf.study.features import FEATURES, Imputation, measure
from ecgfm_hf.study.units import UnitWriter
from ecgfm_hf.utils.errors import ECGFMError, SettingsError


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, tiny_config):
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    model = ECGFMForPreTraining(tiny_config(num_hidden_layers=1))
    return str(save_model_folder(model, ECGFMFeatureExtractor(), folder) or folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """120 recordings of 100 patients, with labels that tall R waves, fast rates, and chance give."""
    folder = tmp_path_factory.mktemp("data") / "store"
    recordings, labels, _ = make_recordings(120, 100)
    load_arrays(recordings, folder, labels, progress=False)
    return str(folder)


@pytest.fixture(scope="module")
def finished(store, encoder, tmp_path_factory):
    """A study of the arms that take no time, and its settings."""
    settings = StudySettings(
        data=store,
        model=encoder,
        output_dir=str(tmp_path_factory.mktemp("study") / "out"),
        arms=["features", "linear"],
        sizes=[40, 1.0],
        folds=3,
        resamples=200,
    )
    return settings, Study(settings).run()


def linear_scores(folder):
    """Every score of the linear probe, which other arms of a study do not change."""
    found = pq.read_table(Path(folder) / "predictions.parquet").to_pandas()
    return found[found["arm"] == "linear"].reset_index(drop=True)


def test_a_study_finds_what_was_built_in_and_keeps_every_score(finished):
    settings, result = finished
    output = Path(settings.output_dir)
    values = {(arm["arm"], arm["size"]): arm["macro"]["auroc"] for arm in result.results["arms"]}
    assert set(values) == {(arm, size) for arm in ("features", "linear") for size in (40, 1.0)}
    assert values["features", 1.0]["low"] > 0.7
    found = pq.read_table(output / "predictions.parquet").to_pandas()
    one = found[(found["arm"] == "features") & (found["size"] == 1.0)]
    assert sorted(one["recording_id"]) == sorted(set(one["recording_id"]))
    assert len(one) == len(load_prepared(settings.data, "all"))
    # Of scikit-learn, from the file alone.
    from sklearn.metrics import roc_auc_score

    by_fold = [
        [roc_auc_score(fold[f"label:{name}"], fold[f"score:{name}"]) for name in result.results["labels"]]
        for _, fold in one.groupby("fold")
    ]
    assert np.mean(by_fold) == pytest.approx(values["features", 1.0]["value"], abs=1e-4)
    assert {"report.html", "report.pdf", "results.csv", "results.json", "study.json"} <= set(os.listdir(output))
    assert not list(output.glob("inputs-*"))


def test_the_report_has_no_ids_and_withholds_counts_of_few_patients(finished):
    settings, result = finished
    for name in ("report.html", "results.json", "results.csv"):
        text = (Path(settings.output_dir) / name).read_text(encoding="utf-8")
        assert "patient-" not in text
        assert "recording-" not in text
    assert result.results["smallest_cell"] == 10
    again = Study(replace(settings, smallest_cell=60)).run().results
    assert "<60" in json.dumps(again["labels"])
    assert any(of is None for arm in again["arms"] for of in arm["per_label"]["auroc"].values())
    # Finished units are not run again, but reported anew.
    assert again["seconds"] == result.results["seconds"]


def test_a_rare_label_is_left_out_by_name(finished):
    _, result = finished
    assert RARE not in result.results["labels"]
    assert any(note.startswith(f"{RARE} is left out: ") for note in result.results["notes"])


def test_a_study_resumes_with_the_same_bits_and_refuses_other_settings(finished, tmp_path, monkeypatch):
    settings, _ = finished
    own = replace(settings, output_dir=str(tmp_path / "out"), arms=["linear"])
    run, count = UnitWriter.__call__, 0

    def killed(self, task, path, watch):
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        return run(self, task, path, watch)

    monkeypatch.setattr(UnitWriter, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        Study(own).run()
    monkeypatch.setattr(UnitWriter, "__call__", run)
    with pytest.raises(ECGFMError, match="seed"):
        Study(replace(own, seed=5)).run()
    Study(own).run()
    assert linear_scores(own.output_dir).equals(linear_scores(settings.output_dir))


def test_jobs_do_not_change_a_score(finished, tmp_path):
    settings, _ = finished
    own = replace(settings, output_dir=str(tmp_path / "out"), arms=["linear"], jobs=2)
    Study(own).run()
    assert linear_scores(own.output_dir).equals(linear_scores(settings.output_dir))


def test_every_trained_arm_scores_the_test_recordings_of_a_published_split(encoder, tmp_path):
    recordings, labels, _ = make_recordings(110, 110, seed=2)
    folder = tmp_path / "split"
    load_arrays(recordings, folder, labels, split="grouped", progress=False, fractions={"train": 0.6, "test": 0.4})
    settings = StudySettings(
        data=str(folder),
        model=encoder,
        output_dir=str(tmp_path / "out"),
        labels=["tall"],
        arms=[arm for arm in ARMS if arm not in ("features", "linear")],  # `finished` has these
        test_split="test",
        resamples=200,
        finetuning={"num_train_epochs": 1, "learning_rate": [1e-4, 1e-3]},
    )
    result = Study(settings).run()
    assert [arm["arm"] for arm in result.results["arms"]] == ["attention", "lora", "finetune", "scratch"]
    assert result.left_out == []
    test = set(load_prepared(folder, "test")["recording_id"])
    found = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pandas()
    for arm in ("attention", "lora", "finetune", "scratch"):
        one = found[found["arm"] == arm]
        assert set(one["recording_id"]) == test
        assert one["score:tall"].between(0, 1).all()
        assert one["score:tall"].nunique() > 1
    assert not list((tmp_path / "out" / "units").rglob("training-*"))


def test_a_budget_leaves_out_what_does_not_fit_and_a_longer_one_adds_it(store, encoder, tmp_path, monkeypatch):
    from ecgfm_hf.study import units

    settings = StudySettings(
        data=store,
        model=encoder,
        output_dir=str(tmp_path / "out"),
        labels=["tall"],
        arms=["linear", "finetune"],
        folds=3,
        resamples=200,
        budget=1000.0,
        finetuning={"num_train_epochs": 1},
    )
    # A slow machine: fine-tuning one fold takes ten minutes.
    monkeypatch.setattr(units, "measure_costs", lambda *_: Costs(120, 240, 0.01, 0.01, 600 / 160))
    result = Study(settings).run()
    assert result.left_out == ["finetune at all training recordings, repeat 1: does not fit into the budget"]
    assert result.results["left_out"] == result.left_out
    assert [arm["arm"] for arm in result.results["arms"]] == ["linear"]
    longer = Study(replace(settings, budget=1e6)).run()
    assert longer.left_out == []
    assert [arm["arm"] for arm in longer.results["arms"]] == ["linear", "finetune"]
    with pytest.raises(SettingsError, match="larger budget"):
        Study(replace(settings, output_dir=str(tmp_path / "other"), budget=0.001)).run()


def test_costs_learn_from_finished_units():
    costs = Costs(100, 200, 0.01, 0.02, 0.1)
    first = costs.unit("finetune", 80, 20, 3)
    assert costs.unit("scratch", 80, 20, 3) > first > costs.unit("linear", 80, 20, 3)
    costs.learn("finetune", first, 3 * first)
    assert costs.unit("finetune", 80, 20, 3) == pytest.approx(3 * first)
    costs.learn("finetune", costs.unit("finetune", 40, 20, 3), 3 * costs.unit("finetune", 40, 20, 3) / 3)
    assert costs.unit("finetune", 80, 20, 3) == pytest.approx(3 * first)


def test_a_dry_run_prints_the_plan_and_writes_nothing(store, encoder, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["study", store, "--model", encoder, "--output", str(output), "--folds", "3", "--sizes", "40,all"]
    assert main([*arguments, "--dry-run", "--arms", "features,linear"]) == 0
    shown = capsys.readouterr().out
    assert "120 recordings of 100 patients, 2 labels" in shown
    assert "12 trainings and tests" in shown
    assert "positives (of patients)" in shown
    assert f"note: {RARE} is left out" in shown
    assert not output.exists()


def test_too_few_recordings_are_called_so(encoder, tmp_path, capsys):
    recordings, labels, _ = make_recordings(40, 40)
    load_arrays(recordings, tmp_path / "store", labels, progress=False)
    arguments = ["study", str(tmp_path / "store"), "--model", encoder, "--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert "too few for a study: 40 recordings of 40 patients; a study needs at least 100 patients" in shown
    with pytest.raises(TooFewError):
        Study(StudySettings(data=str(tmp_path / "store"), model=encoder, output_dir=str(tmp_path / "out"))).plan()


def test_an_encoder_that_has_seen_the_patients_is_refused(store, tmp_path, tiny_config):
    folder = tmp_path / "encoder"
    save_model_folder(ECGFMForPreTraining(tiny_config(num_hidden_layers=1)), ECGFMFeatureExtractor(), folder)
    rows = load_prepared(store, "all")
    write_training_ids(folder, (rows["recording_id"][:10], rows["patient_id"][:10]))
    settings = StudySettings(data=store, model=str(folder), output_dir=str(tmp_path / "out"), folds=3)
    with pytest.raises(LeakError, match="10 recordings"):
        Study(settings).plan()
    assert any("too good" in note for note in Study(replace(settings, allow_seen=True)).plan().notes)


def test_an_output_over_an_input_is_refused(store, encoder):
    with pytest.raises(ECGFMError, match="input"):
        Study(StudySettings(data=store, model=encoder, output_dir=store))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ["linear", "magic"]}, "arms must be of"),
        ({"sizes": [50, 50]}, "sizes must be different"),
        ({"folds": 2}, "folds must be at least 3"),
        ({"finetuning": {"epochs": 3}}, "num_train_epochs"),
        ({"budget": 0.0}, "budget must be above 0"),
    ],
)
def test_impossible_settings_are_refused_at_once(changes, message):
    with pytest.raises(SettingsError, match=message):
        StudySettings(**{"data": "store", "model": "encoder", "output_dir": "out", **changes})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--budget", "soon"], "--budget: must look like"), (["--sizes", "many"], "--sizes: must be numbers")],
)
def test_options_that_cannot_be_read_are_named(store, encoder, tmp_path, capsys, arguments, message):
    assert main(["study", store, "--model", encoder, "--output", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------------------
# Arms and their inputs
# ----------------------------------------------------------------------------------------------------------------------


def test_features_measure_a_recording_and_leave_missing_what_cannot_be():
    recordings, _, truths = make_recordings(4, 4)
    from ecgfm_hf.data import Arrays

    source = Arrays(recordings)
    entries = source.index().table.to_pylist()
    found = [measure(record) for _, record in source.read(entries)]
    assert all(tuple(of) == FEATURES for of in found)
    for of, (height, rate) in zip(found, truths, strict=True):
        assert of["rate"] == pytest.approx(rate, abs=2)
        assert of["r_II"] == pytest.approx(height, rel=0.25)
        assert np.isnan(of["age"])
    flat = dict(recordings[0], signal=np.zeros((12, 5000)))
    lost = next(record for _, record in Arrays([flat]).read(Arrays([flat]).index().table.to_pylist()))
    assert np.isnan(list(measure(lost).values())).all()


def test_missing_features_are_imputed_from_training_recordings_only():
    training = np.array([[1.0, np.nan], [3.0, 10.0], [2.0, 20.0]])
    impute = Imputation(training)
    assert impute(np.array([[np.nan, np.nan]])).tolist() == [[2.0, 15.0, 1.0]]
    # An outlier of a test recording is clipped to what training recordings had.
    assert impute(np.array([[1e9, 15.0]]))[0, 0] == pytest.approx(3.0, abs=0.05)


def test_frames_in_float16_score_as_frames_in_float32(store, encoder, tmp_path):
    settings = StudySettings(
        data=store, model=encoder, output_dir=str(tmp_path / "out"), arms=["attention"], folds=3, labels=["tall"]
    )
    study = Study(settings)
    plan = study._plan(tmp_path / "none")
    inputs = study._inputs(plan, tmp_path)
    inputs.compute("frames")
    writer = UnitWriter(plan, inputs, settings, tmp_path)
    from ecgfm_hf.study.guard import fit_and_score

    half = inputs.load("frames")
    whole = type(half)(exact_frames(encoder, inputs), half._segment_rows, half._rows)
    assert half._values.dtype == np.float16
    fold, table = plan.units[0].fold, plan.data.table
    arm = writer._arm("attention", tmp_path)
    assert isinstance(arm, AttentionArm)
    scores = [fit_and_score(arm, table, of, fold, 0)[:, 0] for of in (half, whole)]
    assert NEEDS["attention"] == ("frames",)
    assert np.abs(scores[0] - scores[1]).max() < 0.02


def exact_frames(encoder, inputs):
    from ecgfm_hf import ECGFMModel

    model = ECGFMModel.from_pretrained(encoder).eval()
    with torch.no_grad():
        segments = inputs.load("segments")
        return model(torch.from_numpy(np.array(segments._values))).last_hidden_state.numpy()


@pytest.mark.slow
def test_a_study_that_was_killed_resumes_with_the_same_bits(finished, tmp_path):
    settings, _ = finished
    output = tmp_path / "out"
    command = [sys.executable, "-m", "ecgfm_hf.cli", "study", settings.data, "--model", settings.model]
    command += ["--output", str(output), "--arms", "linear", "--sizes", "40,all", "--folds", "3"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(output.rglob("part-*.json"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "results.json").exists()
    assert subprocess.run(command, env=environment, timeout=300, capture_output=True).returncode == 0
    assert linear_scores(output).equals(linear_scores(settings.output_dir))


@pytest.mark.slow
def test_permuted_labels_make_no_arm_better(tmp_path):
    sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
    import study_permuted

    assert study_permuted.run(tmp_path, studies=3, patients=100, resamples=200) == {"studies": 3, "wrong": 0}
