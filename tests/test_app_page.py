"""What the page answers: the pipeline's scores, pictures, saliency, and text that stays text."""

import base64
import json
import re
import socket
from types import SimpleNamespace

import device_files
import numpy as np
import pytest
from inference_cases import write_model
from wfdb_files import random_samples, write_record

from ecgfm_hf import load_pipeline
from ecgfm_hf.app import html
from ecgfm_hf.app.page_scoring import ATTENTION, PageScorer, SessionRecordings, parse_file_options, saliency_choices
from ecgfm_hf.app.reader_process import _read
from ecgfm_hf.app.uploads import stored_bytes
from ecgfm_hf.cli.main import main

NOTHING = ("", "", "", "")  # options of a file
HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)} {{3}} `4` $$5$$ \u202eback"


class HereReader:
    """Reads in this process, as the confined one does in its own."""

    def read(self, session, path, **arguments):
        found = _read(str(path), arguments)
        if isinstance(found, Exception):
            raise found
        return found

    def end(self, session):
        pass


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, tiny_config):
    config = tiny_config(
        label_thresholds={"A": 0.0, "B": 1.0},
        label_calibration={"B": {"slope": 1.0, "intercept": 0.0}},
        label_notes={"A": HOSTILE},
        label_aggregation={"C": "max"},
    )
    return load_pipeline(write_model(tmp_path_factory.mktemp("model"), config))


@pytest.fixture
def scorer(pipeline, tmp_path):
    folder = tmp_path / "incoming"
    folder.mkdir()
    return PageScorer(pipeline, HereReader(), folder, 10**7, "tiny <b>model</b>")


def dropped(scorer, tmp_path, seconds=10, **settings):
    samples = settings.pop("samples", None)
    samples = random_samples(samples=500 * seconds) if samples is None else samples
    (tmp_path / "made").mkdir(exist_ok=True)
    header, _ = write_record(tmp_path / "made", samples, **settings)
    paths = []
    for path in (header, header.with_suffix(".dat")):
        moved = scorer._folder / path.name
        moved.write_bytes(path.read_bytes())
        paths.append(str(moved))
    return paths


def inside(piece, name):
    """The content of a download."""
    return base64.b64decode(re.search(rf'download="{name}" href="data:[\w/]+;base64,([^"]+)"', piece)[1])


def test_the_page_says_what_the_pipeline_says(scorer, pipeline, tmp_path):
    paths = dropped(scorer, tmp_path, name="Zweistein")
    found = scorer.read("s", paths, NOTHING, {})
    expected = pipeline(str(tmp_path / "made" / "Zweistein.hea"))
    (answer,) = json.loads(inside(found["downloads"], "Zweistein-scores.json"))
    assert answer["scores"] == expected["scores"]
    assert answer["positive"] == expected["positive"] == ["A"]
    assert answer["recording"] == "Zweistein"
    assert "not for clinical use" in answer["note"]
    assert inside(found["downloads"], "Zweistein-page.pdf").startswith(b"%PDF")
    assert base64.b64decode(re.search(r"image/png;base64,([^\"]+)", found["page"])[1]).startswith(b"\x89PNG")
    assert found["seconds"] == 10
    assert stored_bytes(scorer._folder) == 0, "neither the upload nor a drawing may stay"
    for label, score in expected["scores"].items():
        assert re.search(rf'<th scope="row">{label}.*?{score:.3f}', found["scores"])


def test_scores_of_segments_stand_below_those_of_the_recording(scorer, pipeline, tmp_path):
    paths = dropped(scorer, tmp_path, name="Zweistein")
    found = scorer.read("s", paths, NOTHING, {})
    segments = pipeline(str(tmp_path / "made" / "Zweistein.hea"), per_segment=True)["by_segment"]
    (answer,) = json.loads(inside(found["downloads"], "Zweistein-scores.json"))
    assert answer["by_segment"] == segments
    table = found["scores"].partition("Scores of each segment")[2]
    assert re.findall(r"[\d.]+ to [\d.]+ s", table) == ["0 to 5 s", "5 to 10 s"]
    for label in "ABC":
        cells = re.search(rf'<th scope="row">{label}</th>(.*?)</tr>', table)[1]
        assert re.findall(r"\d\.\d{3}", cells) == [f"{segment['scores'][label]:.3f}" for segment in segments]
    one = scorer.read("s", dropped(scorer, tmp_path, seconds=5, name="short"), NOTHING, {})
    assert "each segment" not in one["scores"]


def test_a_probability_is_only_what_was_calibrated(scorer, tmp_path):
    scores = scorer.read("s", dropped(scorer, tmp_path), NOTHING, {})["scores"]
    kinds = re.findall(r'<th scope="row">(\w).*?<small>(score|probability)</small>', scores)
    assert kinds == [("A", "score"), ("B", "probability"), ("C", "score")]
    assert "A value is a probability only where it is called one." in scores
    assert re.findall(r'<tr class="ecg-positive"><th scope="row">(\w)', scores) == ["A"]
    assert re.findall(r'style="left:([\d.]+)%', scores) == ["0.0", "100.0"]


def test_where_most_leads_are_empty_no_value_is_a_probability_and_nothing_positive(scorer, tmp_path):
    samples = random_samples(samples=5000)
    samples[:7] = 0
    found = scorer.read("s", dropped(scorer, tmp_path, samples=samples), NOTHING, {})
    assert "only 5 of 12 leads carry a signal" in found["notes"]
    assert "calibration and thresholds are not valid for this recording" in found["scores"]
    for call in ("probability</small>", "ecg-positive", "ecg-reached", "Threshold", "reached</small>"):
        assert call not in found["scores"]


def test_warnings_of_the_reader_are_on_the_page_and_times_are_those_of_the_file(scorer, tmp_path):
    pulse = np.repeat([0, 200, 0], [50, 100, 50])
    samples = np.concatenate([np.tile(pulse, (12, 1)), device_files.samples(count=5000)], axis=1)
    found = scorer.read("s", dropped(scorer, tmp_path, samples=samples, calibration="200(0)/mV"), NOTHING, {})
    assert "calibration pulse of 1 mV in all leads" in found["notes"]
    assert re.findall(r"[\d.]+ to [\d.]+ s", found["scores"]) == ["0.4 to 5.4 s", "5.4 to 10.4 s"]


def test_without_thresholds_nothing_is_positive(tiny_config):
    scores = {"A": 0.9, "B": 0.1, "C": 0.2}
    table = html.scores_table({"scores": scores, "positive": None, "segments": 1, "warnings": []}, tiny_config())
    assert "not a probability" in table
    assert "no thresholds" in table
    assert "ecg-positive" not in table
    assert "Threshold" not in table


def test_values_of_a_regression_are_no_scores(tiny_config):
    config = tiny_config(problem_type="regression")
    scores = {"A": 61.25, "B": -3.0, "C": 0.5}
    table = html.scores_table({"scores": scores, "positive": None, "segments": 1, "warnings": []}, config)
    assert "Predicted values" in table
    assert "61.25" in table
    assert "ecg-bar" not in table


def test_saliency_changes_the_picture_and_nothing_else(scorer, tmp_path):
    first = scorer.read("s", dropped(scorer, tmp_path), NOTHING, {})
    choices = dict(saliency_choices(["A", "B", "C"]))
    pictures = {first["page"]}
    for asked in (choices["C"], ATTENTION):
        found = scorer.draw_again("s", asked, 0.0)
        assert found["scores"] == first["scores"]
        pictures.add(found["page"])
    assert len(pictures) == 3
    assert scorer.draw_again("s", "", 0.0)["page"] == first["page"]
    assert stored_bytes(scorer._folder) == 0


def test_a_label_called_attention_is_a_label():
    assert len({value for _, value in saliency_choices(["attention", ""])}) == 4


def test_another_part_of_a_long_recording(scorer, tmp_path):
    first = scorer.read("s", dropped(scorer, tmp_path, seconds=25), NOTHING, {})
    assert scorer.draw_again("s", "", 15.0)["page"] != first["page"]
    assert "start_s" in scorer.draw_again("s", "", 25.0)["refused"]


def test_tall_complexes_can_be_seen_at_another_gain(scorer, tmp_path):
    first = scorer.read("s", dropped(scorer, tmp_path), NOTHING, {})
    assert scorer.draw_again("s", "", 0.0, 5.0)["page"] != first["page"]
    assert "mm_per_mv must be one of 5, 10, 20" in scorer.draw_again("s", "", 0.0, 7.0)["refused"]


def test_the_page_says_which_model_answered_and_what_it_warns_of(scorer, tmp_path, monkeypatch):
    from ecgfm_hf.app import page_scoring

    shown = {}

    def plot(*given, **settings):
        shown.update(settings)
        return plot_prediction(*given, **settings)

    plot_prediction = page_scoring.plot_prediction
    monkeypatch.setattr(page_scoring, "plot_prediction", plot)
    paths = dropped(scorer, tmp_path, samples=random_samples(leads=2, samples=5000))
    scorer.read("s", paths, NOTHING, {"missing_leads": "zero"})
    assert shown["facts"] == ["model tiny <b>model</b>"]
    assert any("set to 0" in warning for warning in shown["warnings"])


@pytest.mark.parametrize(
    ("title", "name"),
    [("Zweistein", "Zweistein"), ('../"><b>x', "b_x"), ("..", "recording"), ("心", "recording"), ("a b", "a_b")],
)
def test_downloads_are_called_after_the_recording_and_harmlessly(title, name):
    links = re.findall(r'download="([^"]*)"', html.downloads("{}", b"%PDF", title))
    assert links == [f"{name}-scores.json", f"{name}-page.pdf"]


def test_saliency_of_a_long_mean_is_refused_and_of_a_maximum_is_not(scorer, tmp_path):
    scorer.read("s", dropped(scorer, tmp_path, seconds=65), NOTHING, {})
    assert "up to 60 s, found 65 s" in scorer.draw_again("s", "label:A", 0.0)["refused"]
    assert "page" in scorer.draw_again("s", "label:C", 0.0)
    assert "no label 'D'" in scorer.draw_again("s", "label:D", 0.0)["refused"]


def test_sessions_do_not_see_one_another(scorer, tmp_path):
    scorer.read("one", dropped(scorer, tmp_path), NOTHING, {})
    assert "no longer in memory" in scorer.draw_again("two", "", 0.0)["refused"]
    scorer.read("one", [], NOTHING, {})
    assert "no longer in memory" in scorer.draw_again("one", "", 0.0)["refused"], "a new upload ends the old one's"


def test_recordings_are_forgotten():
    a, b, c = (SimpleNamespace(nbytes=400, name=name) for name in "abc")
    kept = SessionRecordings(seconds=0.0, most=2)
    kept.put("a", a)
    assert kept.get("a") is None
    for limits in ({"most": 2}, {"most_bytes": 1000}):
        kept = SessionRecordings(**limits)
        for one in (a, b, c):
            kept.put(one.name, one)
        assert [kept.get(name) for name in "abc"] == [None, b, c]
        kept.drop("b")
        assert len(kept) == 1
    kept = SessionRecordings(most_bytes=100)
    kept.put("a", a)
    assert kept.get("a") is a, "the one that is asked about, however large"


def test_refusals_name_the_file_and_no_folder(scorer, tmp_path):
    (scorer._folder / "my file.csv").write_text("I,II\n1,2\n")
    reason = scorer.read("s", [str(scorer._folder / "my file.csv")], NOTHING, {})["refused"]
    assert reason.startswith("my file: recording.csv: a .csv or .tsv file does not contain its sampling rate, units")
    paths = dropped(scorer, tmp_path, samples=random_samples(samples=100))
    reason = scorer.read("s", paths, NOTHING, {})["refused"]
    assert reason.startswith("rec: ")
    assert str(tmp_path) not in reason
    assert scorer.read("s", paths, NOTHING, {})["refused"] == "the upload is no longer there: drop the file again"


def test_policies_and_facts_reach_the_reader_and_the_model(scorer, tmp_path):
    paths = dropped(scorer, tmp_path, samples=random_samples(leads=2, samples=5000))
    assert "lead" in scorer.read("s", paths, NOTHING, {})["refused"]
    paths = dropped(scorer, tmp_path, samples=random_samples(leads=2, samples=5000))
    found = scorer.read("s", paths, ("", " ", "", ""), {"missing_leads": "zero"})
    assert "set to 0" in found["notes"]
    assert "page" in scorer.draw_again("s", "label:C", 0.0)
    assert parse_file_options(" 250 ", " uV ", 'I, "a, b"', "7") == {
        "sampling_rate": 250.0,
        "units": "uV",
        "lead_names": ["I", "a, b"],
        "exam_id": 7,
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("fast", "", "", ""), "the sampling rate must be a number, found: fast"),
        (("", "", "", "1.5"), "the exam must be a whole number, found: 1.5"),
        (("", "", '"I', ""), "lead names must look like I,II,III"),
    ],
)
def test_what_is_reported_of_a_file_and_makes_no_sense_is_refused(scorer, tmp_path, options, expected):
    assert expected in scorer.read("s", dropped(scorer, tmp_path), options, {})["refused"]
    assert stored_bytes(scorer._folder) == 0
    assert parse_file_options(*NOTHING) == {}
    assert parse_file_options("", "", "", "0") == {"exam_id": 0}


def test_what_is_not_foreseen_is_answered_and_logged_without_names(scorer, tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("Zweistein")

    monkeypatch.setattr("ecgfm_hf.app.page_scoring.plot_prediction", fail)
    found = scorer.read("s", dropped(scorer, tmp_path, name="Zweistein"), NOTHING, {})
    assert found == {"refused": "unexpected error (RuntimeError): the log names the line"}
    assert "RuntimeError" in caplog.text
    assert "Zweistein" not in caplog.text
    assert stored_bytes(scorer._folder) == 0


def test_nothing_from_outside_is_markup(tiny_config):
    config = tiny_config(id2label={0: HOSTILE}, label2id={HOSTILE: 0}, label_notes={HOSTILE: HOSTILE})
    pieces = [
        html.refusal(HOSTILE),
        html.notes("x", [HOSTILE]),
        html.picture(b"", HOSTILE + '"'),
        html.scores_table({"scores": {HOSTILE: 0.5}, "positive": None, "segments": 1, "warnings": []}, config),
    ]
    for piece in pieces:
        assert "<img src=x" not in piece
        assert not re.search(r"[`{}\u202e]|\$", piece)
        assert "&lt;img src=x onerror=alert(1)&gt;" in piece
        assert "\n" not in piece


@pytest.mark.parametrize("arguments", [["--port", "70000"], ["--max-mb", "0"], ["--max-mb", "nan"], ["--share"]])
def test_arguments_that_make_no_sense_are_refused(arguments):
    assert main(["app", "--model", "m", *arguments]) == 2


def test_a_port_that_is_taken_is_reported(capsys):
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["app", "--model", "m", "--port", str(port)]) == 2
    expected = f"port {port}: Address already in use (--port 0 takes any that is free)"
    assert expected in capsys.readouterr().err


def test_a_missing_library_is_named_with_the_extra_that_has_it(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gradio" else name)
    assert main(["app", "--model", "m"]) == 2
    assert capsys.readouterr().err == "ecgfm: the page needs gradio: pip install 'ecgfm-hf[app]'\n"
