"""One recording in, one answer out: the pipeline and `ecgfm predict`."""

import csv
import io
import json
import logging
import math
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from openpyxl import load_workbook
from pydicom.data import get_testdata_file
from transformers import AutoProcessor
from transformers import pipeline as transformers_pipeline
from wfdb_files import write_record

from ecgfm_hf import (
    ECGClassificationPipeline,
    ECGFMConfig,
    ECGFMError,
    ECGFMFeatureExtractor,
    ECGFMForMultiLabelClassification,
    ECGFMForPreTraining,
    ECGReadError,
    load_pipeline,
    read_ecg,
    save_model_folder,
)
from ecgfm_hf.cli.main import main as ecgfm
from ecgfm_hf.inference import load_encoder
from ecgfm_hf.pipeline_ecgfm import positive_labels, recording_scores

LEADS = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
DICOM = get_testdata_file("waveform_ecg.dcm", download=False)
UNCALIBRATED = "score, uncalibrated; not for clinical use"


def recording(seconds=10.0, sampling_rate=500, seed=0):
    """A made-up recording whose limb leads obey Einthoven and Goldberger."""
    rng = np.random.default_rng(seed)
    samples = round(seconds * sampling_rate)
    one, two, *chest = rng.standard_normal((8, samples)).cumsum(axis=1) * 0.01
    limbs = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    return {
        "signal": np.stack([*limbs, *chest]),
        "sampling_rate": sampling_rate,
        "lead_names": LEADS,
        "units": "mV",
    }


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tiny_config):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(3)
    save_model_folder(ECGFMForMultiLabelClassification(tiny_config()).eval(), ECGFMFeatureExtractor(), folder)
    return folder


@pytest.fixture
def with_config(model_dir, tmp_path):
    """A copy of the model folder with other settings."""

    def change(**settings):
        model = ECGFMForMultiLabelClassification.from_pretrained(model_dir)
        for name, value in settings.items():
            setattr(model.config, name, value)
        save_model_folder(model, ECGFMFeatureExtractor(), tmp_path / "changed")
        return tmp_path / "changed"

    return change


def test_answer_is_the_mean_of_the_segments_sigmoids(model_dir):
    pipe = load_pipeline(model_dir)
    given = recording(seconds=16.0)
    answer = pipe(given)
    segments = torch.from_numpy(ECGFMFeatureExtractor()(**_as_call(given))["input_values"])
    with torch.no_grad():
        expected = pipe.model(segments).logits.sigmoid().mean(dim=0)
    assert answer["segments"] == 3
    assert answer["positive"] is None
    assert list(answer["scores"]) == ["A", "B", "C"]
    assert list(answer["scores"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert any("last 1 s are dropped" in warning for warning in answer["warnings"])


def _as_call(given):
    given = dict(given)
    return {"recordings": given.pop("signal"), **given}


def test_aggregation_is_per_label(model_dir, with_config):
    given = recording(seconds=15.0)
    mean = load_pipeline(model_dir)(given)["scores"]
    mixed = load_pipeline(with_config(label_aggregation={"B": "max"}))(given)["scores"]
    assert mixed["A"] == mean["A"]
    assert mixed["B"] > mean["B"]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_answers_do_not_depend_on_the_batch(model_dir, batch_size):
    given = [recording(seconds=s, seed=i) for i, s in enumerate((10.0, 5.0, 23.0))]
    single = [load_pipeline(model_dir, batch_size=1)(one) for one in given]
    together = load_pipeline(model_dir, batch_size=batch_size)(given)
    assert [answer["segments"] for answer in together] == [2, 1, 4]
    for found, expected in zip(together, single, strict=True):
        assert list(found["scores"].values()) == pytest.approx(list(expected["scores"].values()), abs=1e-5)


def test_short_recording_is_an_error_unless_admitted_and_then_padding_has_no_influence(model_dir):
    given = recording(seconds=3.0)
    pipe = load_pipeline(model_dir)
    with pytest.raises(ValueError, match=r"3|1500"):
        pipe(given)
    answer = pipe(given, short_recordings="pad")
    signal = given["signal"]
    single = (signal - signal.mean(1, keepdims=True)) / signal.std(1, keepdims=True)
    with torch.no_grad():
        expected = pipe.model(torch.from_numpy(single[None]).float()).logits.sigmoid()[0]
    assert list(answer["scores"].values()) == pytest.approx(expected.tolist(), abs=1e-6)


def test_short_and_long_recordings_share_a_batch(model_dir):
    given = [recording(seconds=s, seed=i) for i, s in enumerate((3.0, 10.0, 4.0))]
    pipe = load_pipeline(model_dir, short_recordings="pad")
    together, single = pipe(given, batch_size=4), [pipe(one, batch_size=1) for one in given]
    for found, expected in zip(together, single, strict=True):
        assert list(found["scores"].values()) == pytest.approx(list(expected["scores"].values()), abs=1e-6)


def test_calibration_acts_on_the_recordings_score_and_thresholds_on_the_calibrated(with_config):
    weight = 50.0
    folder = with_config(
        label_calibration={"A": {"slope": 1.0, "intercept": -math.log(weight)}},
        label_thresholds={"A": 0.001, "B": 1.0},
    )
    pipe = load_pipeline(folder)
    answer = pipe(recording())
    raw = recording_scores(np.log([[0.25 / 0.75, 0.0 + 1, 1.0]]), ECGFMConfig(num_labels=3))
    assert raw["LABEL_0"] == pytest.approx(0.25)
    odds = answer["scores"]["A"] / (1 - answer["scores"]["A"])
    pipe.model.config.label_calibration = None
    score = pipe(recording())["scores"]["A"]
    assert odds * weight == pytest.approx(score / (1 - score), rel=1e-6)
    assert answer["positive"] == ["A"]


def test_where_most_leads_are_empty_nothing_is_positive_and_every_output_has_the_reason(with_config, tmp_path, capsys):
    folder = with_config(
        label_thresholds={"A": 0.0, "B": 0.0, "C": 0.0},
        label_calibration={label: {"slope": 1.0, "intercept": 0.0} for label in "ABC"},
    )
    pipe, reason = load_pipeline(folder), "only 5 of 12 leads carry a signal: calibration and thresholds are not valid"
    samples = np.random.default_rng(2).integers(-900, 900, (12, 5000)).astype(np.int16)
    samples[5:11] = 0
    half, _ = write_record(tmp_path, samples, name="half")
    assert pipe(str(half))["positive"] == ["A", "B", "C"]
    samples[4] = 0
    path, _ = write_record(tmp_path, samples, name="most")
    answer = pipe(str(path), per_segment=True)
    assert answer["warnings"][0].startswith(reason)
    assert [one["positive"] for one in (answer, *answer["by_segment"])] == [None] * 3
    given = recording() | {"lead_names": ["I", "II", "V1", "V2", "V3"], "signal": recording()["signal"][:5]}
    assert pipe(given, missing_leads="zero")["positive"] is None
    for format_ in ("table", "csv", "tsv", "json", "xlsx", "parquet"):
        out = tmp_path / f"scores.{'txt' if format_ == 'table' else format_}"
        for options in ([], ["--per-segment"]):
            assert (
                ecgfm(["predict", str(path), "--model", str(folder), "--output", str(out), *options, "--overwrite"])
                == 0
            )
            if format_ == "parquet":
                rows = pq.read_table(out).to_pylist()
                assert all(row["positive"] is None and row["warnings"][0].startswith(reason) for row in rows)
            elif format_ == "xlsx":
                rows = list(load_workbook(out)["scores"].values)[1:]
                assert all(row[-1].startswith(reason) for row in rows)
            else:
                written = out.read_text()
                assert written.count(reason) == (1 if format_ == "table" else len(options) + 1)
                assert "0*" not in written


def test_threshold_is_reached_at_equality():
    config = ECGFMConfig(num_labels=2, label_thresholds={"LABEL_0": 0.5})
    assert positive_labels({"LABEL_0": 0.5, "LABEL_1": 0.9}, config) == ["LABEL_0"]
    assert positive_labels({"LABEL_0": 0.49, "LABEL_1": 0.9}, config) == []


def test_single_label_and_regression_models_answer_too():
    logits = np.array([[0.0, 0.0], [1.0, 1.0]])
    assert sum(
        recording_scores(logits, ECGFMConfig(num_labels=2, problem_type="single_label_classification")).values()
    ) == pytest.approx(1.0)
    assert recording_scores(logits, ECGFMConfig(num_labels=2, problem_type="regression"))["LABEL_0"] == 0.5


def test_transformers_pipeline_function_builds_it_too(model_dir):
    model = ECGFMForMultiLabelClassification.from_pretrained(model_dir)
    pipe = transformers_pipeline(
        "ecg-classification", model=model, feature_extractor=ECGFMFeatureExtractor(), device="cpu"
    )
    given = recording()
    assert pipe(given)["scores"] == pytest.approx(load_pipeline(model_dir)(given)["scores"], abs=1e-6)


def test_a_model_in_training_mode_is_put_into_evaluation_mode(model_dir):
    model = ECGFMForMultiLabelClassification.from_pretrained(model_dir, hidden_dropout=0.5).train()
    pipe = ECGClassificationPipeline(model=model, feature_extractor=ECGFMFeatureExtractor())
    expected = load_pipeline(model_dir)(recording())["scores"]
    assert pipe(recording())["scores"] == pytest.approx(expected, abs=1e-6)


def test_training_between_two_calls_does_not_leave_dropout_on(model_dir):
    pipe = load_pipeline(model_dir)
    expected = pipe(recording())
    pipe.model.train()
    assert pipe(recording()) == expected


def test_transformers_pipeline_function_takes_the_installed_class_without_a_prompt(model_dir):
    for arguments in ({"task": "ecg-classification"}, {}):
        pipe = transformers_pipeline(model=str(model_dir), device="cpu", **arguments)
        assert type(pipe) is ECGClassificationPipeline
        expected = load_pipeline(model_dir)(recording())["scores"]
        assert pipe(recording())["scores"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("task", ["audio-classification", "feature-extraction", "text-classification"])
def test_pipelines_of_transformers_are_refused_with_the_right_task(model_dir, task):
    with pytest.raises(ValueError, match=rf"{task}.*pipeline\('ecg-classification'"):
        transformers_pipeline(task, model=str(model_dir))


def test_an_array_without_lead_names_is_refused_with_the_form_that_is_expected(model_dir):
    for given in (np.zeros((12, 5000)), torch.zeros(12, 5000)):
        with pytest.raises(ValueError, match=r"dictionary with 'signal' .*found: (ndarray|Tensor)"):
            load_pipeline(model_dir)(given)


def test_classes_without_a_problem_type_are_warned_of(model_dir, with_config, caplog, monkeypatch):
    logger = logging.getLogger("ecgfm_hf.pipeline_ecgfm")
    monkeypatch.setattr(logger, "warning_once", logger.warning)
    load_pipeline(with_config(problem_type="multi_label_classification"))
    assert "problem_type" not in caplog.text
    load_pipeline(with_config(problem_type=None))
    assert "problem_type='single_label_classification'" in caplog.text


def test_several_recordings_come_in_any_collection(model_dir):
    pipe = load_pipeline(model_dir)
    given = [recording(seconds=s, seed=i) for i, s in enumerate((10.0, 5.0, 16.0))]
    expected = pipe(given)
    rows = Dataset.from_list([{**one, "signal": one["signal"].tolist()} for one in given])
    for several in (tuple(given), iter(given), rows, rows.with_format("torch"), rows.to_iterable_dataset()):
        found = list(pipe(several, batch_size=2, num_workers=0))
        for answer, wanted in zip(found, expected, strict=True):
            assert answer["scores"] == pytest.approx(wanted["scores"], abs=1e-5)
    assert pipe([]) == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"lead_names": LEADS[:11]}, r"^recording 1: a recording must have shape"),
        ({"lead_names": LEADS[:11], "recording": "E7"}, r"^recording 1: E7: a recording must have shape"),
        ({"sampling_frequency": 500}, r"^recording 1: .*sampling_frequency"),
    ],
)
def test_bad_recording_of_several_is_named_by_its_index(model_dir, bad, message):
    given = [recording(), {**recording(), **bad}]
    for several in (given, iter(given)):
        with pytest.raises(ValueError, match=message):
            list(load_pipeline(model_dir)(several))
    with pytest.raises(ECGReadError, match=r"^recording 0: missing\.hea"):
        load_pipeline(model_dir)(["missing.hea"])


def test_auto_processor_is_the_feature_extractor(model_dir):
    assert type(AutoProcessor.from_pretrained(model_dir)) is ECGFMFeatureExtractor


def test_path_and_arrays_give_the_same_answer(model_dir):
    pipe = load_pipeline(model_dir)
    record = read_ecg(DICOM)
    arrays = {"signal": record.signal, "sampling_rate": record.sampling_rate, "lead_names": record.lead_names}
    assert pipe(DICOM)["scores"] == pytest.approx(pipe(arrays)["scores"], abs=1e-6)
    assert pipe(DICOM)["recording"] == DICOM


def test_two_recordings_in_one_signal_are_refused(model_dir):
    one = recording()
    with pytest.raises(ValueError, match=r"E7: .*\(leads, samples\)"):
        load_pipeline(model_dir)({**one, "signal": np.stack([one["signal"]] * 2), "recording": "E7"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling_rate": None}, "sampling_rate"),
        ({"signal": None}, "must hold integers or floats"),
        ({"lead_names": LEADS[:-1]}, "11"),
        ({"sampling_frequency": 500}, "sampling_frequency"),
    ],
)
def test_incomplete_input_is_named(model_dir, change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        load_pipeline(model_dir)({**recording(), **change})


def test_misspelt_policy_is_an_error(model_dir):
    with pytest.raises(TypeError, match="missing_lead"):
        load_pipeline(model_dir, missing_lead="zero")
    with pytest.raises(TypeError, match="unknown argument missing_lead; the pipeline takes missing_leads"):
        load_pipeline(model_dir)(recording(), missing_lead="zero")


def test_folder_without_trained_head_is_refused(tmp_path, tiny_config):
    save_model_folder(ECGFMForPreTraining(tiny_config()), ECGFMFeatureExtractor(), tmp_path)
    with pytest.raises(ValueError, match=r"classifier\.weight"):
        load_pipeline(tmp_path)


def test_model_and_feature_extractor_must_agree_on_leads(tmp_path, tiny_config):
    model = ECGFMForMultiLabelClassification(tiny_config(num_leads=2))
    with pytest.raises(ValueError, match=r"2 leads.*12"):
        save_model_folder(model, ECGFMFeatureExtractor(), tmp_path)
    save_model_folder(model, ECGFMFeatureExtractor(lead_names=["I", "II"]), tmp_path)
    assert load_pipeline(tmp_path)(recording())["segments"] == 2


# ----------------------------------------------------------------------------------------------------------------------
# ecgfm predict
# ----------------------------------------------------------------------------------------------------------------------


def test_table_names_every_label_and_says_that_scores_are_not_probabilities(model_dir, capsys):
    assert ecgfm(["predict", DICOM, "--model", str(model_dir)]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[:5]] == ["label", "A", "B", "C", "segments"]
    assert UNCALIBRATED in out


def test_csv_has_the_documented_columns(model_dir, tmp_path, capsys):
    copy = shutil.copy(DICOM, tmp_path)
    command = ["predict", DICOM, copy, "--model", str(model_dir), "--format", "csv", "--precision", "float32"]
    assert ecgfm(command) == 0
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert list(rows[0]) == ["recording", "A", "B", "C", "segments", "warnings"]
    assert [row["recording"] for row in rows] == [DICOM, copy]
    expected = load_pipeline(model_dir)(DICOM)["scores"]
    assert float(rows[1]["B"]) == pytest.approx(expected["B"], rel=1e-5)
    assert UNCALIBRATED in captured.err


def test_json_is_the_pipelines_answer(model_dir, capsys):
    exact = ["--precision", "float32"]
    assert ecgfm(["predict", DICOM, "--model", str(model_dir), "--format", "json", *exact]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer.pop("note") == UNCALIBRATED
    assert answer.pop("precision") == "float32"
    expected = load_pipeline(model_dir)(DICOM)
    assert answer.pop("scores") == pytest.approx(expected.pop("scores"))
    assert answer == expected


def test_calibrated_model_drops_the_note(with_config, capsys):
    fit = {"slope": 1, "intercept": 0}
    folder = with_config(label_calibration={"A": fit}, label_thresholds={"A": 0.0})
    assert ecgfm(["predict", DICOM, "--model", str(folder)]) == 0
    assert UNCALIBRATED in capsys.readouterr().out, "two of three labels are not calibrated"
    folder = with_config(label_calibration=dict.fromkeys("ABC", fit), label_thresholds=dict.fromkeys("ABC", 0.0))
    assert ecgfm(["predict", DICOM, "--model", str(folder)]) == 0
    out = capsys.readouterr().out
    assert UNCALIBRATED not in out
    assert "not for clinical use" in out
    assert "*" in next(line for line in out.splitlines() if line.startswith("A"))


def test_failed_recording_is_named_and_the_others_are_answered(model_dir, tmp_path, capsys):
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"no recording")
    status = ecgfm(["predict", str(broken), DICOM, "missing.hea", "--model", str(model_dir), "--format", "csv"])
    captured = capsys.readouterr()
    assert status == 1
    assert "broken.dcm" in captured.err
    assert "missing.hea" in captured.err
    assert "2 of 3" in captured.err
    assert [row["recording"] for row in csv.DictReader(io.StringIO(captured.out))] == [DICOM]


def test_output_goes_to_a_file(model_dir, tmp_path, capsys):
    path = tmp_path / "scores.csv"
    assert ecgfm(["predict", DICOM, "--model", str(model_dir), "--format", "csv", "--output", str(path)]) == 0
    assert capsys.readouterr().out == ""
    assert path.read_text().startswith("recording,A,B,C,segments,warnings\n")


@pytest.mark.parametrize(
    "arguments",
    [["predict"], ["predict", "x.hea"], ["predict", "x.hea", "--model", "m", "--batch-size", "0"], ["nonsense"]],
)
def test_wrong_usage_exits_with_2(arguments):
    assert ecgfm(arguments) == 2


def test_predict_takes_what_files_do_not_say_themselves(model_dir, tmp_path, capsys):
    record = read_ecg(DICOM)
    samples = (record.signal * 1000).astype(np.float64)
    np.save(tmp_path / "a.npy", samples)
    rows = [",".join(map(repr, column)) for column in samples.T.tolist()]
    (tmp_path / "a.csv").write_text("\n".join([",".join(record.lead_names), *rows]) + "\n")
    files = [DICOM, str(tmp_path / "a.npy"), str(tmp_path / "a.csv")]
    options = [
        "--precision",
        "float32",
        "--sampling-rate",
        "1000",
        "--units",
        "uV",
        "--lead-names",
        ",".join(record.lead_names),
    ]
    assert ecgfm(["predict", *files, "--model", str(model_dir), "--format", "json", *options]) == 0
    answers = [list(answer["scores"].values()) for answer in json.loads(capsys.readouterr().out)]
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-5)
    np.testing.assert_allclose(answers[2], answers[0], atol=1e-5)
    assert ecgfm(["predict", files[1], "--model", str(model_dir)]) == 1
    assert "does not contain its" in capsys.readouterr().err


def test_no_command_and_no_model_are_usage_errors(tmp_path, capsys):
    assert ecgfm([]) == 2
    assert ecgfm(["predict", DICOM, "--model", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_policies_and_dtype_reach_the_model(model_dir, tmp_path, capsys):
    record = read_ecg(DICOM)
    rows = [name for name in record.lead_names if name != "aVF"]
    signal = record.signal[[record.lead_names.index(name) for name in rows], :3000]
    path = tmp_path / "short.json"
    pipe = load_pipeline(model_dir, missing_leads="derive", short_recordings="pad")
    answer = pipe({"signal": signal, "sampling_rate": record.sampling_rate, "lead_names": rows})
    assert any("derived" in warning for warning in answer["warnings"])
    assert any("padded" in warning for warning in answer["warnings"])
    with pytest.raises(ValueError, match=r"missing lead aVF.*missing_leads='derive' computes them exactly"):
        load_pipeline(model_dir, missing_leads="error")({"signal": signal, "sampling_rate": 1000, "lead_names": rows})
    arguments = ["predict", DICOM, "--model", str(model_dir), "--format", "json", "--output", str(path)]
    scores = []
    for dtype in ("float32", "bfloat16"):
        assert ecgfm([*arguments, "--dtype", dtype]) == 0
        scores.append(json.loads(path.read_text())[0]["scores"]["A"])
    assert 0 < abs(scores[0] - scores[1]) < 0.02


def test_command_passes_its_policies_on(model_dir, tmp_path, capsys):
    import wfdb

    record = read_ecg(DICOM)
    flat = record.signal[:, :4000].T.copy()
    flat[:, 7] = 0.25
    wfdb.wrsamp(
        "short",
        fs=1000,
        units=["mV"] * 11,
        sig_name=list(record.lead_names[:11]),
        p_signal=flat[:, :11],
        fmt=["16"] * 11,
        write_dir=str(tmp_path),
    )
    arguments = ["predict", str(tmp_path / "short.hea"), "--model", str(model_dir)]
    assert ecgfm(arguments) == 1
    allowed = [*arguments, "--missing-leads", "zero", "--short-recordings", "pad"]
    assert ecgfm(allowed) == 0
    out = capsys.readouterr().out
    for warning in ("constant", "missing lead", "padded"):
        assert any(line.startswith(str(tmp_path)) and warning in line for line in out.splitlines()), warning
    assert ecgfm([*allowed, "--constant-leads", "error"]) == 1


def test_label_notes_are_shown(with_config, capsys):
    assert ecgfm(["predict", DICOM, "--model", str(with_config(label_notes={"B": "follows from A"}))]) == 0
    assert "B: follows from A" in capsys.readouterr().out


def test_command_leaves_the_callers_logging_as_it_was(model_dir, capsys):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    assert ecgfm(["predict", DICOM, "--model", str(model_dir)]) == 0
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("damage", ["weights", "config", "device"])
def test_a_model_that_cannot_be_loaded_is_a_usage_error(model_dir, tmp_path, capsys, damage):
    import shutil

    folder, options = tmp_path / "damaged", []
    shutil.copytree(model_dir, folder)
    if damage == "weights":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    elif damage == "config":
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace('"hidden_size": 32', '"hidden_size": "32"'))
    else:
        options = ["--device", "nonsense"]
    assert ecgfm(["predict", DICOM, "--model", str(folder), *options]) == 2
    assert "cannot load the model" in capsys.readouterr().err


@pytest.mark.parametrize("device", [99, "cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_an_error_and_never_the_cpu(model_dir, device):
    for load in (load_pipeline, load_encoder):
        with pytest.raises(ECGFMError, match=rf"device {device!r}.*(has|expected) "):
            load(model_dir, device=device)
    assert load_pipeline(model_dir, device=-1).device.type == "cpu"


def test_a_subfolder_is_loaded_like_a_folder(model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "inside")
    found = load_pipeline(tmp_path, subfolder="inside")(recording())
    assert found == load_pipeline(model_dir)(recording())
    with pytest.raises(ECGFMError, match=r"elsewhere is no model folder: it has no config\.json"):
        load_pipeline(tmp_path, subfolder="elsewhere")


def test_output_that_cannot_be_written_is_reported_before_the_work(model_dir, tmp_path, capsys):
    target = tmp_path / "nowhere" / "scores.csv"
    assert ecgfm(["predict", DICOM, "--model", str(model_dir), "--output", str(target)]) == 2
    assert "nowhere" in capsys.readouterr().err
