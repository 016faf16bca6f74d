"""Preparing folders in which much is damaged: the sound recordings are all there, and the others are accounted for."""

import os
import pickle
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from damaged_folders import CANARY_VALUE, DAMAGE, same_facts, samples_of, write_folder
from wfdb_files import LEADS, write_record

from ecgfm_hf.data import PhysioNet2021, RecordingTable, prepare
from ecgfm_hf.data.exclusion import exclude
from ecgfm_hf.data.store import store_files
from ecgfm_hf.records import ECGReadError, read_ecg

# Nothing in a file tells a gain, rate, unit, lead's name or comment that a flipped bit has made another valid one.
UNTELLABLE = ("bits flipped in the header", "header cut off")


def rows_of(store):
    return [row for files in store_files(store).values() for file in files for row in pq.read_table(file).to_pylist()]


@pytest.fixture
def opened():
    """Paths that Python opens while the test runs."""
    paths = []
    watching = [True]

    def note(event, arguments):
        if watching[0] and event == "open" and isinstance(arguments[0], str | bytes):
            paths.append(os.path.realpath(os.fsdecode(arguments[0])))

    sys.addaudithook(note)
    yield paths
    watching[0] = False


def only_linked_headers(folder, opened):
    """A header may be a link, as everything is in the Hub's cache; what it names is then looked for in the folder."""
    outside = {path for path in opened if path.startswith(f"{folder.outside}{os.sep}")}
    assert outside <= {str(folder.outside / "canary.hea")}


def check(folder, out, report):
    """Every sound recording bit by bit, none of the damaged with other samples, all accounted for."""
    rows = {row["recording_id"]: row for row in rows_of(out)}
    for name in folder.sound:
        assert np.array_equal(samples_of(rows[name]), folder.samples[name]), name
        assert same_facts(rows[name])
        assert rows[name]["age"] == 61.0
    for name, kind in folder.damage.items():
        if name in rows:
            assert np.array_equal(samples_of(rows[name]), folder.samples[name]), f"{name}: {kind}"
            assert same_facts(rows[name]) or kind in UNTELLABLE, f"{name}: {kind}"
    assert not any((samples_of(row) == CANARY_VALUE).any() for row in rows.values())

    counts = report["recordings"]
    assert counts["found"] == counts["kept"] + counts["excluded"] == len(folder.samples)
    assert counts["kept"] == len(rows)
    assert counts["excluded"] == len(report["excluded"]) == sum(report["excluded_by_reason"].values())
    excluded = {os.path.basename(one["path"]).partition(".")[0] for one in report["excluded"]}
    assert excluded == set(folder.damage) - set(rows)


def test_a_folder_with_damage_of_every_kind_is_prepared_without_it(tmp_path, opened):
    folder = write_folder(tmp_path, sound=60, damaged=2 * len(DAMAGE))
    out = tmp_path / "store"
    opened.clear()
    report = prepare(PhysioNet2021(folder.root), out)
    check(folder, out, report)
    only_linked_headers(folder, opened)
    # A thousand of a kind must become one line.
    assert len(report["excluded_by_reason"]) < 1.1 * len(DAMAGE)
    assert not any("E0" in reason or "/" in reason for reason in report["excluded_by_reason"])


def test_two_processes_find_what_one_finds(tmp_path):
    folder = write_folder(tmp_path, sound=100, damaged=len(DAMAGE), seed=1)
    single = prepare(PhysioNet2021(folder.root), tmp_path / "single")
    together = prepare(PhysioNet2021(folder.root), tmp_path / "together", num_proc=2)
    assert single | {"written": None} == together | {"written": None}
    assert rows_of(tmp_path / "single") == rows_of(tmp_path / "together")


def test_a_table_that_names_damaged_files_and_files_elsewhere(tmp_path, opened):
    folder = write_folder(tmp_path, sound=30, damaged=len(DAMAGE), seed=2)
    paths = [
        next(folder.root.rglob(f"{name}.*")).with_suffix(".hea").relative_to(folder.root) for name in folder.samples
    ]
    strange = [
        "../outside/canary.hea",
        str(folder.outside / "canary.hea"),
        "training/../../outside/canary",
        "",
        ".",
        "/",
    ]
    strange += [
        "training",
        "nothing.hea",
        "a\\..\\b.hea",
        "x" * 300,
        "~/canary.hea",
        "/dev/zero",
        "http://example.org/a.hea",
    ]
    table = tmp_path / "table.csv"
    lines = ["path,recording_id,AF"]
    lines += [f"{path},{name},{len(name) % 2}" for path, name in zip(paths, folder.samples, strict=True)]
    lines += [f"{path},strange{number}," for number, path in enumerate(strange)]
    table.write_text("\n".join(lines) + "\n")
    out = tmp_path / "store"
    opened.clear()
    report = prepare(RecordingTable(folder.root, table), out)

    rows = {row["recording_id"]: row for row in rows_of(out)}
    for name in folder.sound:
        assert np.array_equal(samples_of(rows[name]), folder.samples[name])
    for name in set(rows) - set(folder.sound):
        assert np.array_equal(samples_of(rows[name]), folder.samples[name]), folder.damage[name]
    assert report["recordings"]["found"] == len(lines) - 1 == len(rows) + len(report["excluded"])
    only_linked_headers(folder, opened)


def _text(samples, last="\n"):
    lines = [",".join(LEADS), *(",".join(f"{value / 1000:.3f}" for value in row) for row in samples.T)]
    return ("\n".join(lines) + last).encode()


FILES = {
    "sound.npy": lambda whole, _: whole,
    "cut.npy": lambda whole, _: whole[: len(whole) // 2],
    "long.npy": lambda whole, _: whole + b"\0\0",
    "noise.npy": lambda whole, _: b"\x93NUMPY" + bytes(range(100)),
    "enormous.npy": lambda whole, _: whole.replace(b"(12, 250)", b"(12, 9**9)").replace(b"9**9", b"99999999"),
    "objects.npy": lambda whole, _: whole.replace(b"<i2", b"|O8"),
    "empty.npy": lambda whole, _: b"",
    "sound.csv": lambda _, text: text,
    "cut.csv": lambda _, text: text[: text.rindex(b",")],
    "word.csv": lambda _, text: text.replace(b"\n0", b"\nabc", 1) if b"\n0" in text else text + b"abc\n",
    "infinite.csv": lambda _, text: text + b"inf," * 11 + b"1e999\n",
    "binary.csv": lambda _, text: text[:100] + b"\xff\x00\x01" + text[100:],
    "headless.csv": lambda _, text: text.split(b"\n", 1)[1],
    "device.xml": lambda *_: b"<?xml version='1.0'?><RestingECG><!DOCTYPE a></RestingECG>",
    "device.edf": lambda *_: b"0       " + b" " * 400,
    "device.dcm": lambda *_: bytes(128) + b"DICM" + bytes(range(256)),
    "device.scp": lambda *_: bytes(range(40)),
}


def test_files_of_other_formats_never_stop_a_run(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    samples = np.random.default_rng(0).integers(-2000, 2000, (12, 250)).astype(np.int16)
    np.save(root / "whole.npy", samples)
    whole = (root / "whole.npy").read_bytes()
    for name, make in FILES.items():
        (root / name).write_bytes(make(whole, _text(samples)))
    table = tmp_path / "table.csv"
    leads = " ".join(LEADS)
    lines = ["path,recording_id,sampling_rate,units,lead_names"]
    for name in FILES:
        cells = (
            ("500", "mV", leads if name.endswith(".npy") else "") if name.endswith((".npy", ".csv")) else ("", "", "")
        )
        lines.append(",".join((name, name, *cells)))
    table.write_text("\n".join(lines) + "\n")
    report = prepare(RecordingTable(root, table), tmp_path / "store")
    rows = {row["recording_id"]: row for row in rows_of(tmp_path / "store")}
    assert set(rows) == {"sound.npy", "sound.csv"}
    assert np.array_equal(samples_of(rows["sound.npy"]), samples)
    assert np.allclose(samples_of(rows["sound.csv"]), samples / 1000)
    assert report["recordings"]["found"] == len(FILES) == 2 + len(report["excluded"])


@pytest.mark.parametrize("kept", [".hea", ".mat"])
def test_a_file_name_that_is_not_utf8_leaves_out_that_file_alone(tmp_path, kept):
    root = tmp_path / "data" / "georgia"
    root.mkdir(parents=True)
    _, samples = write_record(root, name="sound", suffix=".mat", offset=24)
    write_record(root, name="E1", suffix=".mat", offset=24)
    (root / "E1.hea").rename(os.fsdecode(bytes(root) + b"/E\xe91.hea"))
    (root / "E1.mat").rename(os.fsdecode(bytes(root) + b"/E\xe91.mat"))
    for path in root.iterdir():
        if not path.name.startswith("sound") and path.suffix != kept:
            path.unlink()
    report = prepare(PhysioNet2021(tmp_path / "data"), tmp_path / "store")
    (row,) = rows_of(tmp_path / "store")
    assert np.array_equal(samples_of(row), samples)
    assert report["recordings"] == {"found": 2, "kept": 1, "excluded": 1}


@pytest.mark.parametrize("pseudonyms", [False, True])
def test_a_reason_is_the_same_for_all_recordings_of_a_kind(tmp_path, pseudonyms):
    """And names the remedy, but no file, so that a reason can stand beside pseudonyms."""
    found = []
    for name in ("O'Neill Jane", "7", "no such header"):
        path = tmp_path / f"{name}.csv"
        path.write_text("I,II\n1,2\n")
        with pytest.raises(ECGReadError) as error:
            read_ecg(path)
        assert pickle.loads(pickle.dumps(error.value)).code == error.value.code
        found.append(exclude({"path": path.name, "recording_id": name}, error.value, tmp_path, pseudonyms))
    assert {one.reason for one in found} == {"no sampling rate, units: pass sampling_rate=, units="}
    assert [one.detail.partition(":")[0] for one in found] == ([""] * 3 if pseudonyms else [one.path for one in found])
