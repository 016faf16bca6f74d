"""Leaks: between splits, and from what a model has seen into what judges it."""

import json
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgfm_hf.data.leakage import GUARD_FILE, LeakError, Seen, check_splits, seen, write_training_ids
from ecgfm_hf.utils.ids import canonical_id

IDS = st.lists(st.text(max_size=8), unique=True, max_size=12)


def split(recordings, patients):
    return {"recording_id": recordings, "patient_id": patients}


def test_a_patient_in_two_splits_is_refused_with_counts():
    train = split(["a", "b", "c"], ["1", "1", "2"])
    with pytest.raises(LeakError, match="the splits train and test share 0 recordings and 2 patients"):
        check_splits({"train": train, "valid": split(["x"], ["9"]), "test": split(["d", "e"], ["1", "2"])})
    with pytest.raises(LeakError, match="share 1 recordings and 0 patients"):
        check_splits({"train": split(["a"], [None]), "valid": split(["a"], [None])})
    check_splits({"train": train, "valid": split(["d", "e"], ["3", None]), "test": split(["f"], [None])})


def test_what_was_seen_is_counted_by_use(tmp_path):
    write_training_ids(tmp_path, (["a", "b"], ["1", None]), (["c"], ["2"]))
    assert seen(tmp_path, ["b", "c", "z"], ["1", "2", None]) == Seen(1, 1, 1, 1)
    untouched = seen(tmp_path, ["z"], ["1x"])
    assert not untouched
    assert untouched is not None
    assert seen(tmp_path / "elsewhere", ["a"], ["1"]) is None


def test_a_recording_and_a_patient_of_one_name_are_not_the_same(tmp_path):
    write_training_ids(tmp_path, (["1"], ["2"]))
    assert not seen(tmp_path, ["2"], ["1"])


def test_what_the_model_began_from_had_seen_is_kept(tmp_path):
    write_training_ids(tmp_path / "first", (["a"], ["1"]))
    write_training_ids(tmp_path / "second", (["b"], ["2"]), began_from=tmp_path / "first")
    assert seen(tmp_path / "second", ["a", "b"], ["1", "2"]) == Seen(2, 2, 0, 0)


def test_the_note_stays_at_home(tmp_path):
    (tmp_path / ".gitignore").write_text("mine\n")
    path = write_training_ids(tmp_path, (["patient-of-mine"], ["17"]))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "patient-of-mine" not in path.read_text()
    write_training_ids(tmp_path, ([], []))
    ignored = (tmp_path / ".gitignore").read_text().splitlines()
    assert ignored[:2] == ["mine", GUARD_FILE]
    assert len(ignored) == len(set(ignored))


def test_two_models_digests_of_one_id_differ(tmp_path):
    paths = [write_training_ids(tmp_path / name, (["a"], [])) for name in "xy"]
    first, second = (json.loads(path.read_text())["parts"][0]["training"]["recordings"] for path in paths)
    assert first != second


def test_a_damaged_note_is_named(tmp_path):
    path = write_training_ids(tmp_path, (["a"], []))
    path.write_text("{}")
    with pytest.raises(ValueError, match=f"{GUARD_FILE} is damaged"):
        seen(tmp_path, ["a"], [])


@given(training=IDS, asked=IDS)
def test_exactly_the_shared_ids_are_seen(tmp_path_factory, training, asked):
    folder = tmp_path_factory.mktemp("guard")
    write_training_ids(folder, (training, []))
    known, wanted = ({canonical_id(i) for i in ids} - {None} for ids in (training, asked))
    assert seen(folder, asked, []).training_recordings == len(known & wanted)


def test_ids_are_compared_as_preparing_does(tmp_path):
    write_training_ids(tmp_path, (["13"], ["7"]))
    assert seen(tmp_path, ["13.0"], ["7.0"]) == Seen(1, 1, 0, 0)
    with pytest.raises(LeakError):
        check_splits({"train": split(["13"], [None]), "test": split(["13.0"], [None])})
