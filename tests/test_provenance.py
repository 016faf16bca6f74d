"""What is recorded beside weights: the history of steps, without paths or small counts."""

import json
from pathlib import PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgfm_hf.provenance import (
    PROVENANCE_FILE,
    ProvenanceError,
    add_step,
    labels_with_withheld_counts,
    read_steps,
    weights_digest,
)
from ecgfm_hf.utils.redaction import find_paths


def test_steps_of_the_weights_that_training_began_from_come_first(tmp_path):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for folder in (first, second, third):
        folder.mkdir()
    add_step(first, "conversion", {"tensors": 3})
    add_step(second, "fine-tuning", {"updates": 5}, began_from=first)
    assert [step["step"] for step in read_steps(second)] == ["conversion", "fine-tuning"]
    add_step(second, "fine-tuning", {"updates": 6}, began_from=first)
    assert [step.get("updates") for step in read_steps(second)] == [None, 6]
    add_step(third, "linear probe", {}, began_from=second)
    assert [step["step"] for step in read_steps(third)] == ["conversion", "fine-tuning", "linear probe"]
    assert sorted(path.name for path in third.iterdir()) == [PROVENANCE_FILE]


def test_weights_without_a_note_have_an_unknown_history(tmp_path):
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    folder.mkdir()
    assert read_steps(source) == []
    add_step(folder, "fine-tuning", {}, began_from=source)
    assert [step["step"] for step in read_steps(folder)] == ["unknown", "fine-tuning"]
    # Training that has ended is not lost to a damaged note.
    (source / PROVENANCE_FILE).write_text("{")
    add_step(folder, "fine-tuning", {}, began_from=source)
    assert [step["step"] for step in read_steps(folder)] == ["unknown", "fine-tuning"]


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"format": 2, "steps": []}', '{"format": 1, "steps": {}}', '{"format": 1, "steps": [1]}'],
)
def test_a_damaged_note_is_named(content, tmp_path):
    (tmp_path / PROVENANCE_FILE).write_text(content)
    with pytest.raises(ProvenanceError, match=PROVENANCE_FILE):
        read_steps(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "/home/somebody/x",
        "found in /data/study-4711/y.npy",
        "C:\\Users\\somebody",
        "~/x",
        "(/mnt/a/b)",
        "\\\\host\\share",
        "file:///x",
        "path=/srv/a",
    ],
)
def test_absolute_paths_are_left_out_of_a_note(text, tmp_path):
    assert list(find_paths(text))
    add_step(
        tmp_path, "conversion", {"a": text, "b": ["kept", text], "c": {"d": text, "e": 1}, "f": PurePosixPath("/x")}
    )
    (step,) = read_steps(tmp_path)
    assert step == {"step": "conversion", "b": ["kept"], "c": {"e": 1}}


@pytest.mark.parametrize(
    "text",
    ["https://physionet.org/content/x/1.0/", "2nd/3rd degree", "and / or", "W2V + CMSC", "1/2", "a b/c d", "</p>"],
)
def test_what_only_looks_like_a_path_is_none(text):
    assert not list(find_paths(text))


def test_digest_distinguishes_weights(tmp_path):
    assert weights_digest(tmp_path) is None
    assert weights_digest("owner/name") is None
    (tmp_path / "model-1.safetensors").write_bytes(b"a")
    one = weights_digest(tmp_path)
    (tmp_path / "model-2.safetensors").write_bytes(b"b")
    two = weights_digest(tmp_path)
    (tmp_path / "model-2.safetensors").write_bytes(b"c")
    assert len({one, two, weights_digest(tmp_path)}) == 3


# ----------------------------------------------------------------------------------------------------------------------
# Recordings
# ----------------------------------------------------------------------------------------------------------------------


def facts(patients, labels, **columns):
    from datasets import Dataset

    from ecgfm_hf.training.data_summary import summarize_split

    dataset = Dataset.from_dict(
        {"recording_id": [f"r{n}" for n in range(len(patients))], "patient_id": patients, **columns}
    )
    return summarize_split(
        dataset, np.arange(len(patients)), ["a"], np.asarray(labels, dtype=np.float64).reshape(-1, 1)
    )


def test_counts_of_few_patients_are_not_told():
    # 12 recordings have the label, but of 6 patients.
    patients = [f"p{n // 2}" for n in range(100)]
    found = facts(patients, [n < 12 for n in range(100)], sex=["M"] * 8 + ["F"] * 92, age=[50.0] * 100)
    assert found["recordings"] == 100
    assert found["patients"] == 50
    assert found["labels"]["a"] == {"positive": "<10", "negative": "withheld", "unknown": 0}
    assert found["sexes"] == {"F": "withheld", "M": "<10"}
    assert found["age"] == [50, 50, 50]
    exact = facts(patients, [n < 40 for n in range(100)])
    assert exact["labels"]["a"] == {"positive": 40, "negative": 60, "unknown": 0}


def test_of_fewer_than_ten_patients_nothing_is_reported():
    assert facts([f"p{n % 9}" for n in range(90)], [n < 40 for n in range(90)]) == {
        "recordings": "<10",
        "patients": "<10",
    }


def test_unknown_patients_and_ages_are_not_made_up():
    found = facts([None] * 40, [n < 20 for n in range(40)], sex=[None] * 40, age=[None] * 40, source=["x"] * 40)
    assert found["patients"] is None
    assert found["sources"] == {"x": 40}
    assert not {"sexes", "age"} & found.keys()
    # The quartiles of few are the ages of some.
    assert "age" not in facts([f"p{n}" for n in range(39)], [0] * 39, age=[float(n) for n in range(39)])


def test_classes_are_counted_each():
    from datasets import Dataset

    from ecgfm_hf.training.data_summary import summarize_split

    dataset = Dataset.from_dict(
        {"recording_id": [f"r{n}" for n in range(60)], "patient_id": [f"p{n}" for n in range(60)]}
    )
    targets = np.array([0] * 30 + [1] * 20 + [-100] * 10)
    found = summarize_split(dataset, np.arange(60), ["x", "y"], targets, "single_label_classification")
    assert found["labels"]["x"] == {"positive": 30, "negative": 20, "unknown": 10}


def test_labels_with_withheld_counts_are_listed():
    def step(**facts):
        return {"step": "fine-tuning", "data": {"splits": facts}}

    known = {"positive": 20, "negative": 80, "unknown": 3}
    few = {"positive": "<10", "negative": "withheld", "unknown": 3}
    names, withheld = ["a", "b"], labels_with_withheld_counts
    assert withheld([step(train={"recordings": 100, "labels": {"a": known, "b": few}})], names) == ["b"]
    # Of validation recordings nothing is weighted; of fewer than ten patients no count by label is reported.
    assert (
        labels_with_withheld_counts(
            [step(train={"labels": {"a": known, "b": known}}, valid={"labels": {"a": few}})], names
        )
        == []
    )
    assert withheld([step(train={"recordings": "<10", "patients": "<10"})], names) == names
    # Weights are those of the last step; pretraining has none.
    assert withheld([step(train={"labels": {"a": few}}), step(train={"labels": {"a": known}})], names) == []
    assert withheld([{"step": "pretraining", "data": {"splits": {"train": {"recordings": 50}}}}], names) == []
    assert withheld([{"step": "conversion"}], names) == withheld([], names) == []


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, float("nan")]), min_size=10, max_size=60))
def test_no_reported_count_is_of_one_to_nine_patients(labels):
    from ecgfm_hf.training.data_summary import summarize_recordings

    found = summarize_recordings([f"p{n}" for n in range(len(labels))], ["a"], np.array(labels).reshape(-1, 1))
    counts = found["labels"]["a"]
    for kind in ("positive", "negative"):
        assert isinstance(counts[kind], str) or counts[kind] == 0 or counts[kind] >= 10
    assert json.dumps(found)
