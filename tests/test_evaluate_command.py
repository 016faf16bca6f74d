"""`ecgfm evaluate`: a model and a dataset in, three files and a table out."""

import json
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from inference_cases import recordings, write_model
from sklearn.metrics import average_precision_score, roc_auc_score

from ecgfm_hf.cli.evaluate import (
    METRICS_FILE,
    PREDICTIONS_FILE,
    REPORT_FILE,
    summary,
)
from ecgfm_hf.cli.main import main
from ecgfm_hf.data import load_arrays, load_prepared
from ecgfm_hf.data.leakage import write_training_ids
from ecgfm_hf.evaluation import evaluate_predictions
from ecgfm_hf.evaluation.prediction_sources import load_predictions
from ecgfm_hf.inference import Predictions
from ecgfm_hf.provenance import weights_digest

FILES = {METRICS_FILE, PREDICTIONS_FILE, REPORT_FILE}
COUNT = 60


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """60 recordings of 40 patients, 52 of them long enough; labels A and B, C unknown throughout."""
    rng = np.random.default_rng(8)
    rows = recordings([3 if n % 8 == 0 else 5 for n in range(COUNT)])
    for number, row in enumerate(rows):
        row |= {"recording_id": f"secret-recording-{number}", "patient_id": f"secret-patient-{number % 40}"}
    labels = {name: rng.integers(0, 2, COUNT).tolist() for name in ("A", "B")}
    folder = tmp_path_factory.mktemp("someones-home") / "store"
    load_arrays(rows, folder, labels, progress=False)
    return folder


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tiny_config):
    config = tiny_config(id2label={0: "A", 1: "B"}, label2id={"A": 0, "B": 1}, label_thresholds={"A": 0.5})
    return write_model(tmp_path_factory.mktemp("someones-home") / "tiny-classifier", config)


@pytest.fixture(scope="module")
def evaluated(store, model_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "deep" / "evaluation"
    assert evaluate(model_dir, store, "--output", out, "--smallest-cell", 1, "--compare", model_dir) == 0
    return out


def evaluate(*arguments, split="all"):
    given = list(map(str, arguments))
    stored = given[0].endswith(".parquet")
    return main(["evaluate", *given, "--resamples", "100", *([] if stored else ["--split", split])])


def results_of(folder):
    return json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))


def contents_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_three_files_are_written_and_their_figures_are_those_of_the_predictions(evaluated):
    assert set(contents_of(evaluated)) == FILES
    found = results_of(evaluated)
    predictions = Predictions.from_parquet(evaluated / PREDICTIONS_FILE)
    assert len(predictions) == found["recordings"] == 52
    assert found["patients"] == len(set(predictions.patient_ids))
    assert sum(found["left_out"].values()) == 8
    for index, name in enumerate("AB"):
        truth, scores = predictions.labels[:, index], predictions.scores[:, index]
        metrics = found["per_label"][name]["metrics"]
        assert metrics["auroc"]["value"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
        assert metrics["average_precision"]["value"] == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
        assert metrics["auroc"]["low"] < metrics["auroc"]["value"] < metrics["auroc"]["high"]
        assert found["per_label"][name]["counts"] == {
            "positive": int(truth.sum()),
            "negative": int((1 - truth).sum()),
            "unknown": 0,
        }
    both = [found["per_label"][name]["metrics"]["auroc"]["value"] for name in "AB"]
    assert found["macro"]["auroc"]["value"] == pytest.approx(np.mean(both), abs=1e-12)


def test_recordings_of_which_most_leads_are_empty_are_counted_as_excluded(model_dir, tmp_path):
    made = recordings((5, 5, 3))
    made[1]["signal"][5:] = 0
    load_arrays(made, tmp_path / "store", {"A": [0, 1, 1], "B": [0, 1, 1]}, progress=False)
    loaded = load_predictions(str(model_dir), str(tmp_path / "store"), split="all")
    assert loaded.left_out == {"shorter than 5 s": 1, "more than half of the leads carry no signal": 1}
    assert len(loaded.predictions) == 1


def test_decisions_are_counted_only_where_a_threshold_is_stored(evaluated):
    found, predictions = results_of(evaluated), Predictions.from_parquet(evaluated / PREDICTIONS_FILE)
    assert "decisions" not in found["per_label"]["B"]
    decisions = found["per_label"]["A"]["decisions"]
    positive, truth = predictions.scores[:, 0] >= 0.5, predictions.labels[:, 0]
    assert decisions["threshold"] == 0.5
    assert decisions["counts"]["true_positive"] == int((positive & (truth == 1)).sum())
    assert decisions["counts"]["true_negative"] == int((~positive & (truth == 0)).sum())


def test_ids_and_paths_are_in_the_predictions_alone(evaluated, store, model_dir, capsys):
    assert "secret-recording-1" in pq.read_table(evaluated / PREDICTIONS_FILE)["recording_id"].to_pylist()
    for name in (METRICS_FILE, REPORT_FILE):
        text = (evaluated / name).read_text(encoding="utf-8")
        for hidden in ("secret", "someones-home", str(store.parent), str(model_dir.parent), str(evaluated.parent)):
            assert hidden not in text
        assert "tiny-classifier" in text


def test_results_say_which_weights_they_are_of(evaluated, model_dir):
    assert results_of(evaluated)["weights"] == weights_digest(model_dir)


def test_a_model_differs_from_itself_by_nothing(evaluated):
    comparison = results_of(evaluated)["comparison"]
    for figures in (comparison["macro"], comparison["per_label"]["A"]):
        assert figures["auroc"]["difference"]["value"] == 0
        assert figures["auroc"]["first"] == figures["auroc"]["second"]


def test_what_is_printed_says_what_it_is(store, model_dir, tmp_path, capsys):
    assert evaluate(model_dir, store, "--output", tmp_path / "o") == 0
    printed = capsys.readouterr().out
    assert "AUROC" in printed
    assert "AUPRC" in printed
    assert "macro" in printed
    assert "not for clinical use" in printed
    assert "a score, not a probability" in printed
    assert "ids of recordings and patients" in printed


def test_names_cannot_reach_the_terminal_and_long_ones_are_cut():
    rng = np.random.default_rng(0)
    labels = (rng.random((100, 3)) < 0.5).astype(float)
    names = ("\x1b[31mred", "x" * 300, "other")
    ids = [f"r{number}" for number in range(100)]
    predictions = Predictions(ids, ids, names, rng.random((100, 3)), labels)
    shown = summary(evaluate_predictions(predictions, thresholds={"other": 0.5}, resamples=100))
    assert "\x1b" not in shown
    assert "\ufffd[31mred" in shown
    assert "x" * 59 + "…" in shown
    assert "x" * 60 not in shown
    assert re.search(r"^macro Sensitivity .*over 1 of 3 labels$", shown, re.MULTILINE)


def test_results_that_exist_are_replaced_only_on_request(store, model_dir, tmp_path, capsys):
    (tmp_path / METRICS_FILE).write_text("precious")
    assert evaluate(model_dir, store, "--output", tmp_path) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert contents_of(tmp_path) == {METRICS_FILE: b"precious"}
    assert evaluate(model_dir, store, "--output", tmp_path, "--overwrite") == 0
    assert set(contents_of(tmp_path)) == FILES


def test_a_run_that_cannot_write_leaves_what_was_there(store, model_dir, tmp_path, monkeypatch, capsys):
    for name in FILES:
        (tmp_path / name).write_text("precious")

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("ecgfm_hf.evaluation.report.write_html_report", full)
    assert evaluate(model_dir, store, "--output", tmp_path, "--overwrite") == 1
    assert "no space left" in capsys.readouterr().err
    assert contents_of(tmp_path) == dict.fromkeys(FILES, b"precious")


def test_labels_that_the_data_lacks_are_named(store, tmp_path, tiny_config, capsys):
    three = write_model(tmp_path / "three", tiny_config())
    assert evaluate(three, store, "--output", tmp_path / "o") == 2
    printed = capsys.readouterr().err
    assert "no label C (found: A, B)" in printed
    assert "--labels A,B" in printed
    assert evaluate(three, store, "--output", tmp_path / "o", "--labels", "B,A", "--smallest-cell", 1) == 0
    found = results_of(tmp_path / "o")
    assert found["labels"] == ["B", "A"]
    assert found["per_label"]["B"]["metrics"]["auroc"]["value"] is not None
    assert evaluate(three, store, "--output", tmp_path / "p", "--labels", "A,Z") == 2
    assert "no label Z" in capsys.readouterr().err


def test_labels_are_matched_by_name_regardless_of_their_order(store, evaluated, model_dir, tmp_path):
    assert evaluate(model_dir, store, "--output", tmp_path, "--labels", "B,A", "--smallest-cell", 1) == 0
    swapped, as_is = results_of(tmp_path), results_of(evaluated)
    for name in "AB":
        assert swapped["per_label"][name]["metrics"]["auroc"] == as_is["per_label"][name]["metrics"]["auroc"]
        assert swapped["per_label"][name]["counts"] == as_is["per_label"][name]["counts"]


@pytest.mark.parametrize("use", ["training", "validation"])
def test_recordings_that_the_model_has_seen_are_refused_or_stand_out(store, tmp_path, tiny_config, capsys, use):
    config = tiny_config(id2label={0: "A", 1: "B"}, label2id={"A": 0, "B": 1})
    folder = write_model(tmp_path / "model", config)
    planted, elsewhere = (["x"], ["secret-patient-7"]), (["y"], ["z"])
    write_training_ids(folder, *((planted, elsewhere) if use == "training" else (elsewhere, planted)))
    assert evaluate(folder, store, "--output", tmp_path / "o") == 2
    assert f"1 patients in {use}" in capsys.readouterr().err
    assert not (tmp_path / "o" / REPORT_FILE).exists()
    assert evaluate(folder, store, "--output", tmp_path / "o", "--allow-seen") == 0
    assert "WARNING: The model was" in capsys.readouterr().out
    report = (tmp_path / "o" / REPORT_FILE).read_text(encoding="utf-8")
    assert 'class="banner alarm"' in report
    assert "not of new patients" in report


def test_thresholds_that_were_fitted_on_what_they_decide_are_refused_or_stand_out(
    store, model_dir, evaluated, tmp_path, tiny_config, capsys
):
    config = tiny_config(id2label={0: "A", 1: "B"}, label2id={"A": 0, "B": 1}, label_thresholds={"A": 0.4})
    folder = write_model(tmp_path / "other", config)
    write_training_ids(folder, (["x"], ["y"]), (["z"], ["secret-patient-7"]))
    for model in ((model_dir, store), (evaluated / PREDICTIONS_FILE,)):
        arguments = (*model, "--thresholds", folder, "--output", tmp_path / "o", "--overwrite")
        assert evaluate(*arguments) == 2
        assert "thresholds of other were fitted on what they should decide" in capsys.readouterr().err
        assert evaluate(*arguments, "--allow-seen") == 0
        assert any("thresholds were fitted on some" in line for line in results_of(tmp_path / "o")["warnings"])


def test_thresholds_of_other_weights_are_not_used(evaluated, tmp_path, tiny_config):
    config = {"id2label": {0: "A", 1: "B"}, "label2id": {"A": 0, "B": 1}}
    fitted = write_model(tmp_path / "fitted", tiny_config(**config, label_thresholds={"A": 0.4}))
    other = write_model(tmp_path / "other", tiny_config(**config), seed=4)
    shutil.copy(fitted / "config.json", other / "config.json")
    for folder, has_thresholds in ((fitted, True), (other, False)):
        out = tmp_path / f"of-{folder.name}"
        assert evaluate(evaluated / PREDICTIONS_FILE, "--thresholds", folder, "--output", out) == 0
        warnings = " ".join(results_of(out)["warnings"])
        assert ("The thresholds of other belong to other weights" in warnings) == (not has_thresholds)


def test_new_recordings_are_reported_as_new_only_where_that_is_known(store, evaluated, tmp_path, tiny_config):
    assert any("was not checked" in note for note in results_of(evaluated)["notes"])
    config = tiny_config(id2label={0: "A", 1: "B"}, label2id={"A": 0, "B": 1})
    folder = write_model(tmp_path / "model", config)
    write_training_ids(folder, (["x"], ["y"]))
    assert evaluate(folder, store, "--output", tmp_path / "o") == 0
    assert any("None of these recordings" in note for note in results_of(tmp_path / "o")["notes"])


def test_a_training_split_is_warned_of(tmp_path, tiny_config):
    rows = [row | {"patient_id": f"p{number}"} for number, row in enumerate(recordings([5] * 40))]
    load_arrays(rows, tmp_path / "store", {n: [0, 1] * 20 for n in "ABC"}, split="grouped", progress=False)
    model = write_model(tmp_path / "model", tiny_config())
    assert evaluate(model, tmp_path / "store", "--output", tmp_path / "o", split="train") == 0
    assert "training split" in results_of(tmp_path / "o")["warnings"][0]
    assert "training split" in (tmp_path / "o" / REPORT_FILE).read_text(encoding="utf-8")


def test_stored_predictions_give_the_same_figures_again(evaluated, model_dir, store, tmp_path, capsys):
    stored = evaluated / PREDICTIONS_FILE
    assert evaluate(stored, "--output", tmp_path, "--smallest-cell", 1, "--thresholds", model_dir) == 0
    first, again = results_of(evaluated), results_of(tmp_path)
    for name in ("macro", "per_label", "subgroups", "recordings", "patients"):
        assert first[name] == again[name]
    assert "of the model tiny-classifier" in again["thresholds_from"]
    assert evaluate(stored, store, "--output", tmp_path / "p") == 2
    assert "give no DATASET" in capsys.readouterr().err


def test_models_on_different_recordings_are_not_compared(evaluated, tmp_path, capsys):
    stored = Predictions.from_parquet(evaluated / PREDICTIONS_FILE)
    stored.take(range(40)).to_parquet(tmp_path / "fewer.parquet")
    arguments = (evaluated / PREDICTIONS_FILE, "--output", tmp_path / "o", "--compare", tmp_path / "fewer.parquet")
    assert evaluate(*arguments) == 2
    assert "12 (" in capsys.readouterr().err


def test_a_single_label_is_judged_by_the_column_of_its_class(store, tmp_path, tiny_config, capsys):
    names = {0: "M", 1: "F"}
    settings = {"problem_type": "single_label_classification", "id2label": names}
    config = tiny_config(**settings, label2id={name: index for index, name in names.items()})
    model = write_model(tmp_path / "model", config)
    rows = load_prepared(store, "all")
    classes = {one: "MF"[int(one.rpartition("-")[2]) % 2] for one in rows["recording_id"]}
    table = "\n".join(",".join(pair) for pair in classes.items())
    (tmp_path / "truth.csv").write_text(f"recording_id,gender\n{table}\n")
    assert evaluate(model, store, "--output", tmp_path / "o") == 2
    assert "--class-column" in capsys.readouterr().err
    truth = ("--targets", tmp_path / "truth.csv", "--class-column", "gender")
    assert evaluate(model, store, "--output", tmp_path / "o", *truth, "--smallest-cell", 1) == 0
    found = results_of(tmp_path / "o")
    stored = Predictions.from_parquet(tmp_path / "o" / PREDICTIONS_FILE)
    expected = [classes[one] for one in stored.recording_ids]
    assert [stored.label_names[index] for index in stored.labels.argmax(axis=1)] == expected
    right = stored.scores.argmax(axis=1) == stored.labels.argmax(axis=1)
    assert found["macro"]["accuracy"]["value"] == pytest.approx(right.mean())


def test_a_regression_is_judged_by_its_values(store, tmp_path, tiny_config):
    settings = {"problem_type": "regression", "id2label": {0: "age"}, "label2id": {"age": 0}}
    model = write_model(tmp_path / "model", tiny_config(**settings))
    assert evaluate(model, store, "--output", tmp_path / "o") == 0
    found, stored = results_of(tmp_path / "o"), Predictions.from_parquet(tmp_path / "o" / PREDICTIONS_FILE)
    errors = np.abs(stored.scores - stored.labels)
    assert found["per_label"]["age"]["metrics"]["mean_absolute_error"]["value"] == pytest.approx(np.nanmean(errors))
    assert "Predicted and true values" in (tmp_path / "o" / REPORT_FILE).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-folder", "STORE"], "no-such-folder"),
        (["MODEL", "no-such-store"], "no-such-store"),
        (["MODEL"], "DATASET is needed"),
        (["MODEL", "STORE", "--compare", "STORE/report.json"], "report.json"),
    ],
)
def test_what_cannot_be_evaluated_is_named(store, model_dir, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    paths = {"MODEL": str(model_dir), "STORE": str(store)}
    given = [paths.get(a, a.replace("STORE/", f"{store}/")) for a in arguments]
    assert evaluate(*given) == 2
    assert message in capsys.readouterr().err
