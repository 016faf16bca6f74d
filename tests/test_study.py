"""`ecgfm study` from a table to a report: every arm, resuming, budgets, what is refused, what is withheld."""

import os
import shutil
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
from filelock import FileLock
from killed_runs import damage_file
from study_cohort import RARE, make_recordings
from wfdb_files import write_record

from ecgfm_hf import ECGFMFeatureExtractor, ECGFMForPreTraining, save_model_folder
from ecgfm_hf.cli.main import main
from ecgfm_hf.data import load_arrays, load_prepared
from ecgfm_hf.data.leakage import LeakError, write_training_ids
from ecgfm_hf.fairseq import export_fairseq_folder
from ecgfm_hf.study import Study, StudyError, StudySettings, TooFewError, arms, features, report, units
from ecgfm_hf.study.arms import ARMS, NEEDS, AttentionArm, FinetunedArm
from ecgfm_hf.study.costs import Costs
from ecgfm_hf.study.features import FEATURES, Imputation, measure
from ecgfm_hf.study.units import UnitWriter, few_threads
from ecgfm_hf.utils.errors import ECGFMError, OutputExistsError, SettingsError
from ecgfm_hf.utils.resumable_parts import ResumeError, map_in_processes


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
    """120 short recordings of 100 patients, with labels that tall R waves, fast rates, and chance give."""
    folder = tmp_path_factory.mktemp("data") / "store"
    recordings, labels, _ = make_recordings(120, 100, seconds=6)
    load_arrays(recordings, folder, labels, progress=False)
    return str(folder)


@pytest.fixture(scope="module")
def split_store(tmp_path_factory):
    """110 recordings of 110 patients, in the splits train and test."""
    folder = tmp_path_factory.mktemp("split") / "store"
    recordings, labels, _ = make_recordings(110, 110, seed=2)
    del labels[RARE]
    load_arrays(recordings, folder, labels, split="grouped", progress=False, fractions={"train": 0.6, "test": 0.4})
    return str(folder)


@pytest.fixture
def no_pdf(monkeypatch):
    """Pages are drawn where a test looks at them."""
    monkeypatch.setattr(report, "_write_pdf", lambda *_: None)


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
    with pytest.MonkeyPatch.context() as patch:
        # Lead II holds what the labels follow from; twelve leads take ten times as long.
        for name in ("LEADS", "_MEASURED_LEADS"):
            patch.setattr(features, name, ("II",))
        return settings, Study(settings).run()


def linear_scores(folder, size=40):
    """Every score of the linear probe at a size, which other arms and sizes of a study do not change."""
    found = pq.read_table(Path(folder) / "predictions.parquet").to_pandas()
    return found[(found["arm"] == "linear") & (found["size"] == size)].reset_index(drop=True)


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
    assert not isinstance(again["labels"]["tall"]["positive"], int)
    assert any(of is None for arm in again["arms"] for of in arm["per_label"]["auroc"].values())
    # Finished units are not run again, but reported anew.
    assert again["seconds"] == result.results["seconds"]


def test_a_rare_label_is_left_out_by_name(finished):
    _, result = finished
    assert RARE not in result.results["labels"]
    assert any(note.startswith(f"{RARE} is left out: ") for note in result.results["notes"])


def test_a_study_resumes_with_the_same_bits_and_refuses_other_settings(finished, tmp_path, monkeypatch, no_pdf, caplog):
    settings, _ = finished
    own = replace(settings, output_dir=str(tmp_path / "out"), arms=["linear"], sizes=[40])
    run, count = UnitWriter.__call__, 0

    def killed(self, task, path, watch):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return run(self, task, path, watch)

    monkeypatch.setattr(UnitWriter, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        Study(own).run()
    (inputs,) = (tmp_path / "out").glob("inputs-*")
    assert inputs.stat().st_mode & 0o777 == 0o700
    damage_file(inputs / "embeddings.npy")
    monkeypatch.setattr(UnitWriter, "__call__", run)
    with pytest.raises(ECGFMError, match="has another study: seed was 0, now 5"):
        Study(replace(own, seed=5)).run()
    Study(own).run()
    assert "embeddings.npy has changed" in caplog.text
    assert linear_scores(own.output_dir).equals(linear_scores(settings.output_dir))


def test_jobs_do_not_change_a_score(finished, tmp_path, no_pdf):
    settings, _ = finished
    own = replace(settings, output_dir=str(tmp_path / "out"), arms=["linear"], sizes=[40], jobs=2)
    Study(own).run()
    assert linear_scores(own.output_dir).equals(linear_scores(settings.output_dir))


def test_trainings_that_run_at_a_time_have_a_thread_each():
    def threads(_: int) -> int:
        with few_threads("finetune"):
            return torch.get_num_threads()

    torch.set_num_threads(2)
    try:
        assert [found for _, found in map_in_processes(threads, [0, 1], 2)] == [1, 1]
        assert threads(0) == 2
    finally:
        torch.set_num_threads(1)


def test_every_trained_arm_scores_the_test_recordings_of_a_published_split(
    encoder, split_store, tmp_path, monkeypatch, no_pdf
):
    settings = StudySettings(
        data=split_store,
        model=encoder,
        output_dir=str(tmp_path / "out"),
        labels=["tall"],
        arms=[arm for arm in ARMS if arm not in ("features", "linear")],  # `finished` has these
        test_split="test",
        resamples=200,
        finetuning={
            **{"max_steps": 3, "learning_rate": [1e-4, 1e-3]},
            **dict.fromkeys(("eval_strategy", "save_strategy"), "epoch"),
        },
    )
    monkeypatch.setattr(arms, "_POOLER_EPOCHS", 10)
    result = Study(settings).run()
    assert [arm["arm"] for arm in result.results["arms"]] == ["attention", "lora", "finetune", "scratch"]
    assert result.left_out == []
    test = set(load_prepared(split_store, "test")["recording_id"])
    found = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pandas()
    for arm in ("attention", "lora", "finetune", "scratch"):
        one = found[found["arm"] == arm]
        assert set(one["recording_id"]) == test
        assert one["score:tall"].between(0, 1).all()
        assert one["score:tall"].nunique() > 1
    assert not list((tmp_path / "out" / "units").rglob("training-*"))


def test_fine_tuning_and_training_from_scratch_differ_in_weights_and_learning_rate_only(encoder, tmp_path):
    changes = {"model": {"final_dropout": 0.1}, "num_train_epochs": 2}
    extractor = ECGFMFeatureExtractor()
    made = [FinetunedArm(kind, encoder, extractor, None, tmp_path, changes=changes) for kind in ("finetune", "scratch")]
    settings = [arm._settings(1e-4, 0, tmp_path, segments=100) for arm in made]
    assert settings[0] == settings[1]
    assert (settings[0].max_steps, settings[0].model["final_dropout"]) == (14, 0.1)
    first, second = (arm._initial_model(own, ["tall"]) for arm, own in zip(made, settings, strict=True))
    assert {name: value.requires_grad for name, value in first.named_parameters()} == {
        name: value.requires_grad for name, value in second.named_parameters()
    }
    assert first.config.feature_grad_multiplier == second.config.feature_grad_multiplier == 1
    assert not torch.equal(*(model.ecgfm.encoder.layers[0].attention.q_proj.weight for model in (first, second)))


def test_a_training_on_few_recordings_has_500_updates_at_least():
    assert arms.training_steps(80, {}) == (500, 16)
    assert arms.training_steps(16_000, {}) == (12_000, 16)
    assert arms.training_steps(80, {"num_train_epochs": 3, "per_device_train_batch_size": 8}) == (30, 8)
    assert arms.training_steps(80, {"num_train_epochs": 3, "max_steps": 7}) == (7, 16)


def test_a_processed_folder_gives_the_scores_of_its_store(encoder, split_store, tmp_path, no_pdf):
    folder = tmp_path / "folder"
    export_fairseq_folder(load_prepared(split_store), folder)
    found = []
    for data in (split_store, str(folder)):
        output = tmp_path / f"study-{len(found)}"
        settings = StudySettings(data=data, model=encoder, output_dir=str(output), arms=["linear"], test_split="test")
        Study(settings).run()
        found.append(linear_scores(output, 1.0).sort_values("recording_id").filter(like="score:").to_numpy())
    assert np.abs(found[0] - found[1]).max() < 1e-4
    measured = StudySettings(data=str(folder), model=encoder, output_dir=str(tmp_path / "out"), test_split="test")
    assert any("features is left out" in note for note in Study(measured).plan().notes)
    with pytest.raises(SettingsError, match="give a store that `ecgfm prepare` wrote"):
        Study(replace(measured, arms=["features"])).plan()


def test_a_budget_leaves_out_what_does_not_fit_and_a_longer_one_adds_it(
    split_store, encoder, tmp_path, monkeypatch, no_pdf
):
    settings = StudySettings(
        data=split_store,
        model=encoder,
        output_dir=str(tmp_path / "out"),
        labels=["tall"],
        arms=["linear", "finetune"],
        test_split="test",
        resamples=200,
        budget=1000.0,
        finetuning={"max_steps": 4},
    )
    # A slow machine: fine-tuning takes half an hour.
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
    assert first > costs.unit("lora", 80, 20, 3) > costs.unit("linear", 80, 20, 3)
    assert costs.unit("finetune", 80, 20, 3, {"num_train_epochs": 1}) < first < costs.unit("finetune", 8000, 20, 3)
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


def test_a_hospitals_table_comes_to_a_verdict(encoder, tmp_path, capsys, no_pdf):
    recordings, labels, _ = make_recordings(104, 100, seed=4, seconds=5)
    lines = ["Datei;Nummer;Geschlecht;Größe;hohe R-Zacken;Bemerkung"]
    for number, (recording, tall) in enumerate(zip(recordings, labels["tall"], strict=True)):
        write_record(tmp_path, np.round(1000 * recording["signal"]).astype(int), name=f"Ä{number}")
        patient, yes = f"{int(recording['patient_id'][8:]):06d}", ("nein", "ja")[tall]
        lines.append(f"Ä{number}.hea;{patient};w;1,{60 + number % 30};{yes};früher")
    (tmp_path / "tabelle.csv").write_text("\n".join(lines), encoding="cp1252")
    arguments = ["study", str(tmp_path / "tabelle.csv"), "--model", encoder, "--output", str(tmp_path / "out")]
    arguments += ["--arms", "linear", "--folds", "3", "--columns"]
    assert main([*arguments, "path=Datei", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "note: The patients of 104 of 104 recordings are unknown." in shown
    assert "note: Columns that are no labels were left out: 'Nummer' (0 to 99)" in shown
    assert main([*arguments, "path=Datei,patient_id=Nummer,sex=Geschlecht"]) == 0
    assert "The study does not compare an arm with ECG-FM and one without" in capsys.readouterr().out
    found = pq.read_table(tmp_path / "out" / "predictions.parquet")
    assert "score:hohe R-Zacken" in found.column_names
    assert {f"{number:06d}" for number in range(100)} == set(found["patient_id"].to_pylist())


def test_too_few_recordings_are_called_so(encoder, tmp_path, capsys):
    recordings, labels, _ = make_recordings(40, 40)
    load_arrays(recordings, tmp_path / "store", labels, progress=False)
    arguments = ["study", str(tmp_path / "store"), "--model", encoder, "--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert "too few for a study: 40 recordings of 40 patients; a study needs at least 100 patients" in shown
    with pytest.raises(TooFewError):
        Study(StudySettings(data=str(tmp_path / "store"), model=encoder, output_dir=str(tmp_path / "out"))).plan()


def test_a_study_that_was_refused_before_it_began_can_be_changed(split_store, encoder, tmp_path, no_pdf):
    settings = StudySettings(data=split_store, model=encoder, output_dir=str(tmp_path / "out"), arms=["linear"])
    with pytest.raises(StudyError, match="the data have no label mistyped"):
        Study(replace(settings, labels=["mistyped"])).run()
    assert os.listdir(tmp_path / "out") == [".lock"]
    assert Study(replace(settings, labels=["tall"], test_split="test")).run().left_out == []


def test_an_encoder_that_has_seen_the_patients_is_refused(store, tmp_path, tiny_config):
    folder = tmp_path / "encoder"
    save_model_folder(ECGFMForPreTraining(tiny_config(num_hidden_layers=1)), ECGFMFeatureExtractor(), folder)
    rows = load_prepared(store, "all")
    write_training_ids(folder, (rows["recording_id"][:10], rows["patient_id"][:10]))
    settings = StudySettings(data=store, model=str(folder), output_dir=str(tmp_path / "out"), folds=3)
    with pytest.raises(LeakError, match="10 recordings"):
        Study(settings).plan()
    assert any("too good" in note for note in Study(replace(settings, allow_seen=True)).plan().notes)


def test_overwriting_removes_nothing_but_a_study_that_has_ended(store, encoder, tmp_path):
    settings = StudySettings(data=store, model=encoder, output_dir=str(tmp_path / "out"), overwrite=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "study.json").write_text('{"my own": "study"}')
    with pytest.raises(OutputExistsError, match="did not write it"):
        Study(replace(settings, overwrite=False))
    (tmp_path / "out" / "study.json").write_text('{"settings": {}}')
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"other files than a study's \(notes.txt\)"):
        Study(settings)
    (tmp_path / "out" / "notes.txt").unlink()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(SettingsError, match="is in use"):
        Study(settings).run()
    assert (tmp_path / "out" / "study.json").exists()
    (tmp_path / "out" / "study.json").unlink()
    Study(replace(settings, overwrite=False))  # killed before its first file


def test_settings_with_a_changed_name_are_called_damaged(finished, tmp_path):
    settings, _ = finished
    shutil.copytree(settings.output_dir, tmp_path / "out")
    file = tmp_path / "out" / "study.json"
    file.write_text(file.read_text().replace('"root": null', '"rooT": null'))
    with pytest.raises(ResumeError, match=r"study\.json is damaged"):
        Study(replace(settings, output_dir=str(tmp_path / "out"))).run()


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


def test_frames_in_float16_score_as_frames_in_float32(store, encoder, tmp_path, monkeypatch):
    settings = StudySettings(
        data=store, model=encoder, output_dir=str(tmp_path / "out"), arms=["attention"], folds=3, labels=["tall"]
    )
    monkeypatch.setattr(arms, "_POOLER_EPOCHS", 10)
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
    # Both come from one pass: a kill leaves no frames without embeddings.
    inputs.remove()
    store = type(inputs)._store

    def killed(self, name, values):
        if name == "embeddings":
            raise KeyboardInterrupt
        store(self, name, values)

    monkeypatch.setattr(type(inputs), "_store", killed)
    with pytest.raises(KeyboardInterrupt):
        inputs.compute("frames")
    assert not inputs.has("frames")


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

    found = study_permuted.run(tmp_path, studies=3, patients=100, folds=3, resamples=200)
    assert found == [{"seed": seed, "wrong_2": 0, "wrong_3": 0} for seed in range(3)]
