"""`ecgfm predict` and `ecgfm embed` over files, folders, tables and stores: every recording answered or named."""

import csv
import io
import json
import os
import shutil
import signal
from pathlib import Path

import device_files
import numpy as np
import pyarrow.parquet as pq
import pytest
from damaged_folders import DAMAGE, write_folder
from format_files import write_code_15
from inference_cases import LABELS, as_pipeline_input, recordings, write_model, write_store
from wfdb_files import write_record

from ecgfm_hf import load_pipeline
from ecgfm_hf.cli.main import main as ecgfm
from ecgfm_hf.feature_extraction_ecgfm import STANDARD_LEADS
from ecgfm_hf.inference import embed
from ecgfm_hf.inference.model_runner import UNCALIBRATED
from ecgfm_hf.pipeline_ecgfm import positive_labels
from ecgfm_hf.records import read_ecg

EQUAL = 1e-5


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tiny_config):
    return write_model(tmp_path_factory.mktemp("model"), tiny_config(label_thresholds={"A": 0.5, "B": 0.4}))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("made") / "store", recordings(), LABELS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six recordings in three folders, and files that are none."""
    root = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(5)
    for number in range(6):
        parent = root / ("", "deep", "deep/er")[number % 3]
        parent.mkdir(parents=True, exist_ok=True)
        samples = rng.integers(-2000, 2000, (12, 2500 * (1 + number % 2))).astype(np.int16)
        write_record(parent, samples, name=f"e{number}", suffix=".mat", offset=24)
    (root / "RECORDS").write_text("e0\n")
    (root / "notes.txt").write_text("nothing")
    (root / "labels.csv").write_text("path,recording_id,AF\ndeep/e1.hea,one,1\ne0,zero,0\nnowhere.hea,gone,\n")
    return root


def predict(*arguments):
    return ecgfm(["predict", *map(str, arguments)])


def rows_of(path):
    return pq.read_table(path).to_pylist()


def failures_of(path):
    with open(path, newline="") as file:
        return {row["recording_id"]: row["reason"] for row in csv.DictReader(file)}


def scores_of(row):
    return {name.removeprefix("score:"): value for name, value in row.items() if name.startswith("score:")}


def test_a_folders_recordings_are_found_and_answered_as_by_the_pipeline(model_dir, folder, tmp_path):
    out = tmp_path / "scores.parquet"
    assert predict(folder, "--model", model_dir, "--output", out) == 0
    pipe, rows = load_pipeline(model_dir), rows_of(out)
    assert {row["recording_id"] for row in rows} == {str(path) for path in folder.rglob("*.hea")}
    for row in rows:
        answer = pipe(row["recording_id"])
        assert scores_of(row) == pytest.approx(answer["scores"], abs=EQUAL)
        assert row["positive"] == positive_labels(answer["scores"], pipe.model.config)
        assert (row["segments"], row["warnings"]) == (answer["segments"], answer["warnings"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.parquet"]


def test_a_printed_folder_and_a_list_of_files_equal_the_pipelines_answers(model_dir, folder, tmp_path, capsys):
    assert predict(folder, "--model", model_dir, "--format", "json", "--batch-size", "3") == 0
    printed = json.loads(capsys.readouterr().out)
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(answer["recording"] for answer in reversed(printed)) + "\n\n")
    assert predict("--list", listed, "--model", model_dir, "--format", "json", "--workers", "1") == 0
    again = json.loads(capsys.readouterr().out)[::-1]
    pipe = load_pipeline(model_dir)
    for one, other in zip(printed, again, strict=True):
        expected = pipe(one["recording"])
        assert one["scores"] == pytest.approx(expected["scores"], abs=EQUAL)
        assert other["scores"] == pytest.approx(expected["scores"], abs=EQUAL)
        assert {**one, "scores": 0} == {**expected, "scores": 0, "precision": "float32", "note": UNCALIBRATED}


def test_segments_get_rows_of_their_own_that_agree_with_the_pipelines(model_dir, folder, tmp_path, capsys):
    pipe, path = load_pipeline(model_dir), str(folder / "deep" / "e1.hea")
    expected = pipe(path, per_segment=True)
    assert [(one["segment"], one["start_s"], one["end_s"]) for one in expected["by_segment"]] == [(0, 0, 5), (1, 5, 10)]
    for label in "ABC":
        scores = [one["scores"][label] for one in expected["by_segment"]]
        assert np.mean(scores) == pytest.approx(expected["scores"][label], abs=EQUAL)
    out = tmp_path / "scores.parquet"
    assert predict(path, "--model", model_dir, "--per-segment", "--logits", "--output", out) == 0
    assert predict(path, "--model", model_dir, "--per-segment", "--format", "json") == 0
    printed = json.loads(capsys.readouterr().out)
    for row, one, own in zip(rows_of(out), printed, expected["by_segment"], strict=True):
        assert scores_of(row) == pytest.approx(own["scores"], abs=EQUAL)
        logits = np.array([row[f"logit:{label}"] for label in "ABC"])
        assert 1 / (1 + np.exp(-logits)) == pytest.approx(list(own["scores"].values()), abs=EQUAL)
        assert one.keys() == {"recording", "warnings", "precision", "note", *own}
        for found in (row, one):
            assert {name: found[name] for name in ("segment", "start_s", "end_s", "positive")} == {
                name: own[name] for name in ("segment", "start_s", "end_s", "positive")
            }
    assert predict(path, "--model", model_dir, "--per-segment", "--logits", "--format", "csv") == 0
    header, *lines = csv.reader(capsys.readouterr().out.splitlines())
    assert header[:5] + header[-2:] == ["recording", "segment", "start_s", "end_s", "A", "logit:C", "warnings"]
    assert [line[1:4] for line in lines] == [["0", "0", "5"], ["1", "5", "10"]]
    assert predict(path, "--model", model_dir, "--per-segment") == 0
    table = capsys.readouterr().out
    assert "e1.hea 0-5 s" in table
    assert "e1.hea 5-10 s" in table
    assert predict(path, "--model", model_dir, "--logits") == 2


def test_segments_after_a_pulse_that_was_cut_off_have_the_files_times(model_dir, tmp_path, capsys):
    pulse = np.repeat([0, 200, 0], [50, 100, 50])
    samples = np.concatenate([np.tile(pulse, (12, 1)), device_files.samples(count=5000)], axis=1)
    path, _ = write_record(tmp_path, samples, calibration="200(0)/mV")
    times, out = [(0.4, 5.4), (5.4, 10.4)], tmp_path / "out.parquet"
    answer = load_pipeline(model_dir)(str(path), per_segment=True)
    assert [(one["start_s"], one["end_s"]) for one in answer["by_segment"]] == times
    assert ecgfm(["prepare", "table", str(tmp_path), str(tmp_path / "store")]) == 0
    for given in (path, tmp_path / "store"):
        for command in ("predict", "embed"):
            run = [command, str(given), "--model", str(model_dir), "--per-segment", "--output", str(out), "--overwrite"]
            assert ecgfm(run) == 0
            assert [(row["start_s"], row["end_s"]) for row in rows_of(out)] == times


def test_a_padded_recordings_segment_ends_where_it_does(model_dir, tmp_path):
    path, _ = write_record(tmp_path, np.random.default_rng(0).integers(-99, 99, (12, 1500)).astype(np.int16))
    (segment,) = load_pipeline(model_dir, short_recordings="pad")(str(path), per_segment=True)["by_segment"]
    assert (segment["start_s"], segment["end_s"]) == (0, 3)


def test_each_exam_of_a_stack_is_a_recording_with_its_own_id(model_dir, tmp_path, capsys):
    rng = np.random.default_rng(6)
    np.save(tmp_path / "a.npy", rng.standard_normal((3, 12, 2500)))
    write_code_15(tmp_path / "b.hdf5", lengths=(4096, 4096))
    described = ("--sampling-rate", "500", "--units", "mV", "--lead-names", ",".join(STANDARD_LEADS))
    ids = [f"{tmp_path}/a.npy#{exam}" for exam in (0, 1, 2)] + [f"{tmp_path}/b.hdf5#{exam}" for exam in (100, 101)]
    for given in ([tmp_path], [tmp_path / "a.npy", tmp_path / "b.hdf5"]):
        assert predict(*given, "--model", model_dir, *described, "--format", "json") == 0
        answers = json.loads(capsys.readouterr().out)
        assert [answer["recording"] for answer in answers] == ids
    pipe, arguments = load_pipeline(model_dir), {"sampling_rate": 500, "units": "mV", "lead_names": STANDARD_LEADS}
    own = pipe(read_ecg(tmp_path / "a.npy", exam_id=2, **arguments))
    assert answers[2]["scores"] == pytest.approx(own["scores"], abs=EQUAL)
    assert predict(tmp_path, "--model", model_dir, "--exam-id", "101", "--format", "csv") == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(f"{tmp_path}/b.hdf5#101,")
    assert predict(tmp_path / "a.npy", "--model", model_dir) == 1
    assert "--sampling-rate" in capsys.readouterr().err


def test_a_table_names_recordings_and_what_it_lacks(model_dir, folder, tmp_path):
    out = tmp_path / "scores.parquet"
    assert predict("--table", folder / "labels.csv", "--model", model_dir, "--output", out) == 1
    assert [row["recording_id"] for row in rows_of(out)] == ["one", "zero"]
    assert "no such header" in failures_of(tmp_path / "scores.failures.csv")["gone"]
    assert str(folder / "nowhere.hea") in (tmp_path / "scores.failures.csv").read_text()
    pipe = load_pipeline(model_dir)
    assert scores_of(rows_of(out)[0]) == pytest.approx(pipe(folder / "deep" / "e1.hea")["scores"], abs=EQUAL)
    moved = tmp_path / "table.csv"
    moved.write_text("file\ne0\n")
    options = ["--root", folder, "--columns", "path=file", "--model", model_dir, "--output", tmp_path / "b.parquet"]
    assert predict("--table", moved, *options) == 0


def test_a_store_is_answered_as_the_pipeline_would_and_its_short_recordings_are_named(model_dir, store, tmp_path):
    out = tmp_path / "scores.parquet"
    assert predict(store, "--model", model_dir, "--output", out, "--workers", "2") == 1
    failures = failures_of(tmp_path / "scores.failures.csv")
    assert set(failures) == {"r3", "r6"}
    assert "short_recordings='pad' would allow it" in failures["r3"]
    pipe = load_pipeline(model_dir)
    given = {one["recording_id"]: one for one in recordings()}
    rows = rows_of(out)
    assert [row["recording_id"] for row in rows] == [name for name in given if name not in failures]
    for row in rows:
        assert row["patient_id"] == given[row["recording_id"]]["patient_id"]
        expected = pipe(as_pipeline_input(given[row["recording_id"]]))["scores"]
        assert scores_of(row) == pytest.approx(expected, abs=EQUAL)
    padded = tmp_path / "padded.parquet"
    assert predict(store, "--model", model_dir, "--output", padded, "--short-recordings", "pad") == 0
    expected = pipe(as_pipeline_input(given["r3"]), short_recordings="pad")["scores"]
    assert scores_of(rows_of(padded)[3]) == pytest.approx(expected, abs=EQUAL)


def test_embeddings_are_those_of_the_python_call(model_dir, store, tmp_path):
    whole, cut, deep = (tmp_path / f"{name}.parquet" for name in ("whole", "cut", "deep"))
    options = [str(store), "--model", str(model_dir), "--short-recordings", "pad"]
    assert ecgfm(["embed", *options, "--output", str(whole)]) == 0
    assert ecgfm(["embed", *options, "--output", str(cut), "--per-segment"]) == 0
    assert ecgfm(["embed", *options, "--output", str(deep), "--layer", "1"]) == 0
    given = [as_pipeline_input(one) for one in recordings()]
    expected = embed(model_dir, given, per_segment=True, short_recordings="pad")
    rows = rows_of(whole)
    assert [row["segments"] for row in rows] == [len(one) for one in expected]
    for row, segments in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row["embedding"], segments.mean(axis=0), atol=EQUAL)
    rows = rows_of(cut)
    indices = [(f"r{n}", segment) for n, one in enumerate(expected) for segment in range(len(one))]
    assert [(row["recording_id"], row["segment"]) for row in rows] == indices
    assert [(row["start_s"], row["end_s"]) for row in rows[:4]] == [(0, 5), (5, 10), (0, 5), (0, 5)]
    np.testing.assert_allclose([row["embedding"] for row in rows], np.concatenate(expected), atol=EQUAL)
    layer = embed(model_dir, given, layer=1, short_recordings="pad")
    np.testing.assert_allclose([row["embedding"] for row in rows_of(deep)], layer, atol=EQUAL)


def test_damaged_files_are_named_and_all_others_answered(model_dir, tmp_path):
    # Half a second: padded, so that damage decides and not length. What damage makes of a file may be a valid one.
    made = write_folder(tmp_path, sound=60, damaged=len(DAMAGE))
    out, failed = tmp_path / "scores.parquet", tmp_path / "failed.csv"
    options = ["--model", model_dir, "--output", out, "--failures", failed, "--short-recordings", "pad"]
    assert predict(made.root, *options, "--workers", "1") == 1
    answered = [Path(row["recording_id"]).stem for row in rows_of(out)]
    failures = failures_of(failed)
    named = {Path(name).stem for name in failures}
    assert len(answered) == len(set(answered))
    assert set(made.sound) <= set(answered)
    assert set(answered) | named == set(made.samples)
    assert not named & set(answered)
    assert all(failures.values())
    assert named <= set(made.damage)
    # Those that leave a valid file may be answered; a link may be followed.
    harmless = {"bits flipped in the header", "header cut off", "link to a signal outside", "huge header"}
    assert {made.damage[name] for name in set(answered) - set(made.sound)} <= harmless


def test_printed_failures_can_be_written_too(model_dir, tmp_path, capsys):
    (tmp_path / "broken.dcm").write_bytes(b"no recording")
    options = ["--model", model_dir, "--failures", tmp_path / "failed.csv", "--format", "csv"]
    assert predict(tmp_path / "broken.dcm", *options) == 1
    assert "not a DICOM file" in failures_of(tmp_path / "failed.csv")[str(tmp_path / "broken.dcm")]
    assert str(tmp_path / "broken.dcm") in capsys.readouterr().err


def test_a_list_on_standard_input_may_name_files_that_are_not_utf8(model_dir, folder, tmp_path, monkeypatch, capsys):
    name = os.fsencode(tmp_path) + b"/\xff.hea"
    shutil.copy(folder / "e0.hea", name)
    shutil.copy(folder / "e0.mat", tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf" + name + b"\r\n\n"), "utf-8"))
    assert predict("--list", "-", "--model", model_dir, "--format", "json") == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["recording"] == f"{tmp_path}/\\xff.hea"


def test_a_file_given_twice_is_answered_once_and_an_id_taken_twice_is_named(model_dir, folder, tmp_path):
    first, second = folder / "e0.hea", folder / "deep" / "e1.hea"
    (folder / "same.csv").write_text(f"path,recording_id\n{second.relative_to(folder)},{first}\n")
    out = tmp_path / "scores.parquet"
    try:
        options = ["--table", folder / "same.csv", "--model", model_dir, "--output", out]
        assert predict(first, second, first, *options) == 1
    finally:
        (folder / "same.csv").unlink()
    assert [row["recording_id"] for row in rows_of(out)] == [str(first), str(second)]
    assert failures_of(tmp_path / "scores.failures.csv") == {str(first): "another recording has the same id"}


def test_an_answer_that_is_not_finite_is_a_failure(model_dir, folder, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    shutil.copytree(model_dir, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    next(iter(weights.values())).fill_(np.nan)
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    assert predict(folder / "e0.hea", "--model", tmp_path / "model", "--format", "csv") == 1
    assert "not finite" in capsys.readouterr().err


def test_a_printed_run_that_is_terminated_writes_what_has_been_answered(model_dir, folder, tmp_path, monkeypatch):
    from ecgfm_hf.inference.model_runner import ModelRunner

    def forward(self, batch, calls=[], original=ModelRunner._forward):  # noqa: B006
        calls.append(batch)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    monkeypatch.setattr(ModelRunner, "_forward", forward)
    out = tmp_path / "scores.json"
    assert predict(folder, "--model", model_dir, "--format", "json", "--output", out, "--batch-size", "1") == 130
    assert 1 <= len(json.loads(out.read_text())) < 6


def test_a_file_keeps_what_it_holds_until_there_are_answers(model_dir, folder, tmp_path):
    out = tmp_path / "scores.csv"
    out.write_text("precious")
    assert predict(folder, "--model", tmp_path / "nowhere", "--output", out, "--overwrite") == 2
    assert out.read_text() == "precious"
    assert predict(folder / "e0.hea", "--model", model_dir, "--output", out, "--overwrite") == 0
    assert out.read_text().startswith("recording,")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there are no recordings"),
        (["x.hea", "--output", "x.parquet", "--failures", "./x.parquet"], "are the same file"),
        (["x.hea", "--output", "x.parquet", "--failures", "nowhere/x.csv"], "no folder nowhere"),
        (["STORE", "STORE"], "the same id"),
        (["STORE", "x.hea"], "cannot be mixed"),
        (["x.hea", "--split", "train"], "only stores and processed folders have splits"),
        (["STORE", "--split", "nonsense"], "has no split 'nonsense'"),
        (["EMPTY"], "no recordings found"),
        (["x.hea", "--output", "nowhere/x.parquet"], "no folder nowhere"),
        (["x.hea", "--output", "x.parquet", "--format", "csv"], "--format csv contradicts"),
        (["--table", "missing.csv"], "missing.csv"),
    ],
)
def test_what_cannot_be_done_is_a_usage_error(model_dir, store, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    arguments = [{"STORE": store, "EMPTY": tmp_path / "empty"}.get(one, one) for one in arguments]
    assert predict(*arguments, "--model", model_dir) == 2
    assert message in capsys.readouterr().err


def test_embed_refuses_layers_and_outputs_that_there_are_not(model_dir, store, tmp_path, capsys):
    options = ["embed", str(store), "--model", str(model_dir)]
    assert ecgfm([*options, "--output", str(tmp_path / "x.parquet"), "--layer", "7"]) == 2
    assert "from -3 to 2, found: 7" in capsys.readouterr().err
    assert ecgfm([*options, "--output", str(tmp_path / "x.npy")]) == 2
    assert ".parquet" in capsys.readouterr().err
