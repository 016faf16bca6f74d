"""Preparations that are killed and gone on with, shared among processes and machines: each ends in the same store."""

import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from killed_runs import content, kill_after, start, wait
from wfdb_files import LEADS

from ecgfm_hf.data import PrepareSettings, Source, SourceIndex, SplitSettings, load_prepared, prepare, read_report
from ecgfm_hf.data.preparation import pseudonym
from ecgfm_hf.data.store_assembly import remove_leftovers, split_store
from ecgfm_hf.records import ECGReadError, ECGRecord
from ecgfm_hf.utils.resumable_parts import ResumeError

RECORDINGS = 200  # four parts
RANDOM = SplitSettings("random", assume_independent=True)


class Made(Source):
    """Recordings that are made when they are read; every seventh cannot be, and one may do worse."""

    name = "made"
    label_names = ("A", "B")

    def __init__(self, pause=0.0, worse=None, at=None):
        self.pause, self.worse, self.at = pause, worse, at

    def index(self):
        ids = [f"r{number:04d}" for number in range(RECORDINGS)]
        shares = {"A": 2, "B": 3}
        labels = {
            name: pa.array([int(number % k == 0) for number in range(RECORDINGS)], pa.int8())
            for name, k in shares.items()
        }
        return SourceIndex(pa.table({"recording_id": ids, "path": ids, "patient_id": ids, **labels}))

    def read_one(self, entry):
        number = int(entry["path"][1:])
        if entry["path"] == self.at:
            self.worse()
        time.sleep(self.pause)
        if number % 7 == 0:
            raise ECGReadError(f"{entry['path']}: recording {number} cannot be read")
        samples = np.random.default_rng(number).integers(-900, 900, (12, 100)).astype(np.int16)
        return ECGRecord(
            recording_id="",
            path=entry["path"],
            samples=samples,
            gain=np.full(12, 1000.0),
            baseline=np.zeros(12),
            units=("mV",) * 12,
            sampling_rate=500.0,
            lead_names=LEADS,
        )


def die():
    os._exit(11)


@dataclass
class DieThenFail:
    marker: Path

    def __call__(self):
        if not self.marker.exists():
            self.marker.touch()
            die()
        raise MemoryError("no room")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """What one undisturbed run writes, by the way of splitting."""
    stores = {}
    for name, split in (("none", SplitSettings()), ("random", RANDOM)):
        out = tmp_path_factory.mktemp("clean") / name
        prepare(Made(), out, PrepareSettings(split=split))
        stores[name] = content(out)
    return stores


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def alive(group):
    try:
        os.killpg(group, 0)  # nothing is sent; an error says that nobody is left
    except ProcessLookupError:
        return False
    return True


def finished_parts(out):
    """The parts that have an account, in order."""
    return sorted(path.with_suffix(".parquet") for path in out.glob(".ecgfm-work/parts-*/part-*.json"))


def run(out, split=None, num_proc=1, **settings):
    return lambda: prepare(
        Made(0.0005), out, PrepareSettings(split=split or SplitSettings()), num_proc=num_proc, **settings
    )


@pytest.mark.parametrize("num_proc", [1, 2])
@pytest.mark.parametrize("how", ["none", "random"])
def test_killed_at_random_moments_and_resumed_the_rows_are_those_of_one_run(tmp_path, clean, how, num_proc):
    rng = np.random.default_rng(num_proc)
    work = run(tmp_path / "store", RANDOM if how == "random" else None, num_proc)
    killed = sum(kill_after(float(rng.uniform(0.01, 0.2)), start(work, tmp_path)) for _ in range(3))
    assert killed
    work()
    assert content(tmp_path / "store") == clean[how]


def test_killed_before_any_change_to_its_files_a_run_can_be_resumed(tmp_path, clean):
    number, step = 0, 5
    while True:
        out = tmp_path / str(number)
        status = wait(start(run(out, RANDOM), tmp_path, kill_at=number))
        prepare(Made(), out, PrepareSettings(split=RANDOM))
        assert content(out) == clean["random"], number
        if status == 0:
            break
        assert status == -signal.SIGKILL
        number += step
    assert number > 30


def test_killed_before_any_change_to_its_files_a_new_split_loses_nothing(tmp_path, clean):
    prepare(Made(), tmp_path / "whole")
    split_store(shutil.copytree(tmp_path / "whole", tmp_path / "split"), RANDOM)
    wanted = content(tmp_path / "split")
    for number in range(0, 60, 3):
        out = shutil.copytree(tmp_path / "whole", tmp_path / str(number))
        status = wait(start(lambda out=out: split_store(out, RANDOM), tmp_path, kill_at=number))
        split_store(out, RANDOM)
        assert content(out)["rows"] == wanted["rows"]
        if status == 0:
            break
    assert number > 12


def test_two_runs_at_once_write_one_store(tmp_path, clean):
    for attempt in range(4):
        out = tmp_path / str(attempt)
        split = RANDOM if attempt % 2 else None
        runs = [start(run(out, split, num_proc), tmp_path) for num_proc in (1, 2)]
        assert [wait(pid) for pid in runs] == [0, 0]
        assert content(out) == clean["random" if split else "none"]


def test_shares_of_several_machines_and_a_last_run_are_one_store(tmp_path, clean):
    out = tmp_path / "store"
    for share in (2, 0, 1):
        assert run(out, RANDOM, shard=(share, 3))() is None
    assert len(finished_parts(out)) == 4
    with pytest.raises(ValueError, match="unfinished"):
        load_prepared(out)
    prepare(Made(worse=lambda: 1 / 0, at="r0001"), out, PrepareSettings(split=RANDOM))  # reads nothing any more
    assert content(out) == clean["random"]


def test_pseudonyms_are_the_same_after_a_kill(tmp_path):
    out = tmp_path / "store"
    settings = PrepareSettings(pseudonymise=True)
    pid = start(lambda: prepare(Made(0.002), out, settings), tmp_path)
    until(lambda: finished_parts(out))
    os.killpg(pid, signal.SIGKILL)
    wait(pid)
    salt = (out / ".ecgfm-work" / "salt").read_bytes().strip()
    prepare(Made(), out, settings)
    found = {row["recording_id"] for row in content(out)["rows"]["data/all-00000-of-00004.parquet"]}
    assert found <= {pseudonym(f"r{number:04d}", salt, "recording") for number in range(RECORDINGS)}
    assert not list(out.rglob("*salt*"))


def test_what_a_kill_leaves_beside_a_finished_store_goes_with_the_next_run(tmp_path, clean):
    out = tmp_path / "store"
    run(out)()
    (out / ".ecgfm-work" / "parts-0").mkdir(parents=True)
    (out / ".ecgfm-work" / "parts-0" / "part-00000.parquet").write_bytes(bytes(1000))
    run(out)()
    assert content(out) == clean["none"]
    remove_leftovers(out)  # with nothing to do


def test_a_part_whose_rows_are_gone_cut_short_or_changed_is_written_again(tmp_path, clean, caplog):
    out = tmp_path / "store"
    for share in (0, 1):
        run(out, shard=(share, 2))()
    gone, changed, cut, counted = finished_parts(out)
    account = counted.with_suffix(".json")
    account.write_text(account.read_text().replace('"rows": ', '"rows": 1'))
    gone.unlink()
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    content_of_it = bytearray(changed.read_bytes())
    content_of_it[len(content_of_it) // 2] ^= 1
    changed.write_bytes(content_of_it)
    plan = out / ".ecgfm-work" / "plan.json"
    text = plan.read_text()
    plan.write_text(text[:-3])
    with pytest.raises(ResumeError, match=r"plan\.json is damaged"):
        run(out)()
    plan.write_text(text)
    run(out)()
    assert content(out) == clean["none"]
    for path in (changed, cut, counted):
        assert f"{path} or its account is damaged: the part is computed again" in caplog.text


@pytest.mark.parametrize("num_proc", [2, 4])
def test_a_recording_that_kills_its_reader_is_left_out_alone(tmp_path, clean, num_proc):
    out = tmp_path / "store"
    report = prepare(Made(worse=die, at="r0100"), out, num_proc=num_proc)
    found = [one for one in report["excluded"] if one["recording_id"] == "r0100"]
    assert [one["reason"] for one in found] == ["the process that read it died"]
    wanted = {row["recording_id"]: row for rows in clean["none"]["rows"].values() for row in rows}
    del wanted["r0100"]
    rows = {row["recording_id"]: row for rows in content(out)["rows"].values() for row in rows}
    assert rows == wanted
    assert report["recordings"] == {"found": 200, "kept": 170, "excluded": 30}


def test_an_error_of_the_machine_is_not_blamed_on_a_recording(tmp_path):
    with pytest.raises(OSError, match="no room"):
        prepare(Made(worse=DieThenFail(tmp_path / "died"), at="r0100"), tmp_path / "store", num_proc=2)
    prepare(Made(), tmp_path / "store")
    assert read_report(tmp_path / "store")["recordings"]["kept"] == 171


def test_processes_end_when_the_one_that_started_them_is_killed(tmp_path):
    pid = start(lambda: prepare(Made(0.05), tmp_path / "store", num_proc=2), tmp_path)
    until(lambda: len(list(tmp_path.glob("store/.ecgfm-work/parts-*/.part-*.partial"))) >= 2)
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    until(lambda: not alive(pid))
