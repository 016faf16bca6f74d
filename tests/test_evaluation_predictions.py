"""The table of predictions: what it takes, and that Parquet gives it back."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ecgfm_hf.inference import Predictions, PredictionsError


def _predictions(**changes):
    content = {
        "recording_ids": ["r1", "r2", "r3"],
        "patient_ids": ["p1", None, "p1"],
        "label_names": ("AF", "score: odd, name"),
        "scores": np.array([[0.1, 1 / 3], [0.9, 0.0], [0.5, 1.0]]),
        "labels": np.array([[0.0, np.nan], [1.0, 1.0], [np.nan, 0.0]]),
        "facts": {"age": [50.5, np.nan, 7.0], "sex": ["female", None, "male"], "source": ["a", "a", None]},
        "calibrated": (True, False),
    }
    return Predictions(**content | changes)


def _assert_equal(found, expected):
    for name in ("recording_ids", "patient_ids", "label_names", "problem_type", "calibrated"):
        assert getattr(found, name) == getattr(expected, name)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.facts.keys() == expected.facts.keys()
    for name, values in expected.facts.items():
        np.testing.assert_array_equal(found.facts[name], values)
        assert found.facts[name].dtype == values.dtype


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"facts": {}, "calibrated": ()},
        {"patient_ids": [None] * 3, "problem_type": "regression", "labels": np.full((3, 2), 71.5)},
        {
            "problem_type": "single_label_classification",
            "scores": np.array([[0.25, 0.75]] * 3),
            "labels": np.array([[0.0, 1.0], [1.0, 0.0], [np.nan, np.nan]]),
        },
        {
            "recording_ids": [],
            "patient_ids": [],
            "scores": np.zeros((0, 2)),
            "labels": np.zeros((0, 2)),
            "facts": {"age": [], "sex": []},
        },
    ],
)
def test_parquet_gives_back_what_was_written(tmp_path, changes):
    predictions = _predictions(**changes)
    predictions.to_parquet(tmp_path / "predictions.parquet")
    _assert_equal(Predictions.from_parquet(tmp_path / "predictions.parquet"), predictions)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.parquet"]


def test_the_file_is_an_ordinary_table(tmp_path):
    _predictions().to_parquet(tmp_path / "predictions.parquet")
    table = pq.read_table(tmp_path / "predictions.parquet")
    assert table.column_names[:5] == ["recording_id", "patient_id", "age", "sex", "source"]
    assert table["score:AF"].to_pylist() == [0.1, 0.9, 0.5]
    assert table["label:AF"].to_pylist() == [0, 1, None]
    assert table["age"].to_pylist() == [50.5, None, 7.0]


def test_a_file_that_stands_is_kept_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "predictions.parquet"
    _predictions().to_parquet(path)
    before = path.read_bytes()

    def fail(_table, scratch):
        scratch.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        _predictions().to_parquet(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_rows_can_be_taken_by_number_or_mask():
    taken = _predictions().take(np.array([False, True, True]))
    _assert_equal(taken, _predictions().take([1, 2]))
    assert taken.recording_ids == ["r2", "r3"]
    assert taken.facts["sex"].tolist() == [None, "male"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.zeros((3, 1))}, r"scores.*3 recordings.*2 labels.*\(3, 1\)"),
        ({"labels": np.zeros((2, 2))}, r"labels.*\(2, 2\)"),
        ({"patient_ids": ["p1"]}, "patient_ids must have length 3, found: 1"),
        ({"calibrated": (True,)}, "calibrated must have length 2, found: 1"),
        ({"recording_ids": ["r1", "r2", "r1"]}, "recording given more than once: r1"),
        ({"label_names": ("AF", "AF")}, "label given more than once: AF"),
        ({"scores": np.array([[0.1, 0.2], [np.nan, 0], [0, 0]])}, "r2, label AF: the score must be finite"),
        ({"scores": np.array([[0.1, 0.2], [0, 1.5], [0, 0]])}, "r2, label score: odd, name.*within 0 and 1.*1.5"),
        ({"labels": np.array([[0.1, 0], [0, 0], [0, 0]])}, "r1, label AF.*0, 1 or NaN.*0.1"),
        ({"facts": {"age": [1.0]}}, r"facts.*3 recordings.*age of shape \(1,\)"),
        ({"facts": {"height": [1.0, 2.0, 3.0]}}, "facts must be among age, sex, source.*height"),
        ({"problem_type": "binary"}, "problem_type.*binary"),
        (
            {"problem_type": "single_label_classification", "labels": np.array([[1.0, 1.0], [1, 0], [0, 1]])},
            "r1: for a single label one class must be 1",
        ),
        ({"problem_type": "regression", "labels": np.full((3, 2), np.inf)}, "finite or NaN"),
    ],
)
def test_predictions_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(PredictionsError, match=message):
        _predictions(**changes)


def test_files_that_hold_no_predictions_are_refused_by_name(tmp_path):
    pq.write_table(pa.table({"recording_id": ["r1"]}), tmp_path / "other.parquet")
    with pytest.raises(PredictionsError, match=r"other\.parquet is not a file that Predictions"):
        Predictions.from_parquet(tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(PredictionsError, match=r"text\.parquet: not a Parquet file"):
        Predictions.from_parquet(tmp_path / "text.parquet")
    _predictions().to_parquet(tmp_path / "cut.parquet")
    table = pq.read_table(tmp_path / "cut.parquet").drop_columns(["label:AF"])
    pq.write_table(table, tmp_path / "cut.parquet")
    with pytest.raises(PredictionsError, match="label:AF"):
        Predictions.from_parquet(tmp_path / "cut.parquet")
