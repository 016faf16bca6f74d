"""From files and a table to a store: rows, account, splits, labels, pseudonyms, and warnings."""

import csv
import json
import os
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from wfdb_files import random_samples, write_record

from ecgfm_hf import read_ecg
from ecgfm_hf.cli.main import main
from ecgfm_hf.data import (
    Arrays,
    DataError,
    PhysioNet2021,
    PrepareSettings,
    RecordingTable,
    SplitError,
    SplitSettings,
    load_arrays,
    load_physionet2021,
    load_prepared,
    load_table,
    prepare,
    read_label_def,
    read_report,
    record_from_row,
)
from ecgfm_hf.data.store_assembly import split_store
from ecgfm_hf.feature_extraction_ecgfm import STANDARD_LEADS
from ecgfm_hf.synthetic.cohort import SyntheticCohort
from ecgfm_hf.utils.files import private_folder
from ecgfm_hf.utils.resumable_parts import ResumeError

AF, SINUS = "164889003", "426783006"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "cohort"
    SyntheticCohort(30, 5).write_wfdb(folder)
    return folder


def rows_of(store: Path) -> dict[str, dict]:
    """All rows, with their split, by recording."""
    found = {}
    for path in sorted((store / "data").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            found[row["recording_id"]] = row | {"split": path.name.split("-")[0]}
    return found


def table_of(cohort: Path) -> list[dict]:
    with open(cohort / "labels.csv", newline="") as file:
        return list(csv.DictReader(file))


def challenge_folder(root: Path, codes: dict[str, str], source: str = "georgia") -> Path:
    folder = root / "training" / source / "g1"
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, text) in enumerate(codes.items()):
        samples = np.random.default_rng(number).integers(-900, 900, (12, 5000), dtype=np.int16)
        write_record(
            folder, samples, name=name, offset=24, suffix=".mat", comments=("#Age: 61", "#Sex: Female", f"#Dx: {text}")
        )
    return root


def test_every_row_gives_the_recording_that_was_read(cohort, tmp_path):
    prepare(RecordingTable(cohort, cohort / "labels.csv"), tmp_path / "store")
    truth = {row["recording_id"]: row for row in table_of(cohort)}
    rows = rows_of(tmp_path / "store")
    assert rows.keys() == truth.keys()
    for recording, row in rows.items():
        record, read = record_from_row(row), read_ecg(cohort / truth[recording]["path"])
        np.testing.assert_array_equal(record.samples, read.samples)
        np.testing.assert_array_equal(record.signal, read.signal)
        assert record.samples.dtype == np.int16
        assert (record.lead_names, record.units, record.sampling_rate, record.age, record.sex, record.diagnoses) == (
            read.lead_names,
            read.units,
            read.sampling_rate,
            read.age,
            read.sex,
            read.diagnoses,
        )
        assert record.patient_id == truth[recording]["patient_id"]
        assert row["source"] == "synthetic"
        assert all(row[name] == int(truth[recording][name]) for name in ("atrial fibrillation", "t wave inversion"))


def test_floats_and_odd_types_come_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    signals = {
        "float32": rng.normal(size=(12, 3000)).astype(np.float32),
        "float64": rng.normal(size=(12, 2000)),
        "int32": rng.integers(-70_000, 70_000, (3, 2500)).astype(np.int32),
        "gap": np.where(rng.random((12, 2600)) < 0.01, np.nan, 1.5),
    }
    leads = {name: STANDARD_LEADS[: len(signal)] for name, signal in signals.items()}
    data = load_arrays(
        [
            {"recording_id": n, "signal": s, "sampling_rate": 500, "lead_names": leads[n], "units": "mV"}
            for n, s in signals.items()
        ],
        tmp_path / "store",
        labels={"big": [1, 0, None, 1]},
    )["all"]
    assert len(data) == 4
    for row in data:
        signal = signals[row["recording_id"]]
        np.testing.assert_array_equal(record_from_row(row).samples, signal)
        assert row["dtype"] == signal.dtype.name
    by_name = {row["recording_id"]: row for row in data}
    assert [by_name[name]["big"] for name in signals] == [1, 0, None, 1]
    assert by_name["gap"]["nan_samples"] == np.isnan(signals["gap"]).sum(axis=1).tolist()
    assert by_name["gap"]["constant"] == [True] * 12


def test_facts_of_recordings_in_memory_are_read_like_those_of_a_table(tmp_path):
    record = {"signal": np.ones((12, 2500)), "sampling_rate": 500, "lead_names": STANDARD_LEADS, "units": "mV"}
    times = ["2020-01-31 08:30:00", datetime(2020, 1, 31, 8, 30), "2020-01-31T08:30", None]
    recordings = [{**record, "recording_id": str(i), "time": time} for i, time in enumerate(times)]
    recordings[0] |= {"age": "63", "sex": "female"}
    rows = list(load_arrays(recordings, tmp_path / "store")["all"])
    assert [record_from_row(row).time for row in rows] == [datetime(2020, 1, 31, 8, 30)] * 3 + [None]
    assert [(row["age"], row["sex"]) for row in rows] == [(63, "F")] + [(None, None)] * 3
    recordings[1]["time"] = "last Friday"
    with pytest.raises(DataError, match=r"recordings, row 2: time is 'last Friday' .* ISO 8601"):
        load_arrays(recordings, tmp_path / "other")


def test_quality_facts_name_dead_clipped_and_missing_leads(tmp_path):
    t = np.arange(5000) / 500
    signal = np.tile(np.sin(2 * np.pi * 1.3 * t), (12, 1))
    signal[2:6] = (signal[1] - signal[0], -signal[0], signal[0] / 2, signal[0] / 2)
    signal[2] += 0.5 * signal[0] ** 3  # III is not II - I
    signal[3] = 0.7
    signal[4, 100:130] = np.nan
    signal[6] = np.clip(3 * signal[6] ** 15, -2.9, 2.0)
    record = {"recording_id": "a", "signal": signal, "sampling_rate": 500, "lead_names": STANDARD_LEADS, "units": "mV"}
    row = load_arrays([record], tmp_path / "store")["all"][0]
    assert [number for number, dead in enumerate(row["constant"]) if dead] == [3]
    assert row["nan_samples"] == [0, 0, 0, 0, 30, *[0] * 7]
    assert row["clipped"][6]
    assert not any(row["clipped"][:6])
    assert [number for number, wrong in enumerate(row["contradicting"]) if wrong] == [2]
    assert row["max_mv"][0] == pytest.approx(1, abs=1e-3)
    assert row["max_mv"][6] == pytest.approx(2)
    unusable = [number for number, std in enumerate(row["std_mv"]) if std is None]
    assert unusable == [number for number, mean in enumerate(row["mean_mv"]) if mean is None] == [3, 4]
    assert (row["mean_mv"][1], row["std_mv"][1]) == (signal[1].mean(), pytest.approx(signal[1].std(), rel=1e-12))


def test_headers_of_the_challenge_become_the_26_scored_classes(tmp_path):
    root = challenge_folder(tmp_path / "root", {"E1": AF, "E2": f"{SINUS},55827005,999999999", "E3": ""})
    report = prepare(PhysioNet2021(root), tmp_path / "store")
    rows = rows_of(tmp_path / "store")
    assert len(report["label_counts"]) == 26
    assert (rows["E1"]["atrial fibrillation"], rows["E1"]["sinus rhythm"]) == (1, 0)
    assert rows["E2"]["diagnoses"] == [SINUS, "55827005", "999999999"]
    # Without any code nobody diagnosed the recording: unknown, not 0.
    assert rows["E3"]["atrial fibrillation"] is None
    assert report["label_counts"]["atrial fibrillation"]["all"] == {"positive": 1, "patients": 0, "unknown": 1}
    assert report["diagnosis_codes"] == {"unscored": {"55827005": 1}, "unknown": {"999999999": 1}}
    assert rows["E1"]["source"] == "georgia"
    assert (rows["E1"]["age"], rows["E1"]["sex"]) == (61, "F")


@pytest.mark.parametrize("below", ["", "training", "training/georgia", "training/georgia/g1"])
def test_the_source_is_known_from_whichever_folder_one_points_at(tmp_path, below):
    root = challenge_folder(tmp_path / "root", {"E1": AF})
    prepare(PhysioNet2021(root / below), tmp_path / "store")
    assert rows_of(tmp_path / "store")["E1"]["source"] == "georgia"


def test_every_recording_that_is_left_out_is_in_the_report(tmp_path):
    root = challenge_folder(tmp_path / "root", {"E1": AF, "E2": AF, "E3": AF, "E4": AF})
    challenge_folder(root, {"E1": AF}, source="other")
    folder = root / "training" / "georgia" / "g1"
    (folder / "E2.mat").write_bytes((folder / "E2.mat").read_bytes()[:-100])
    (folder / "E3.hea").unlink()
    (folder / "E4.hea").write_text((folder / "E4.hea").read_text().replace("/mV", "/parsec"))
    report = prepare(PhysioNet2021(root), tmp_path / "store")
    assert report["recordings"] == {"found": 5, "kept": 1, "excluded": 4}
    reasons = {one["path"]: one["reason"] for one in report["excluded"]}
    assert "truncated" in reasons["training/georgia/g1/E2.hea"]
    assert reasons["training/georgia/g1/E3.mat"] == "signal file without a header"
    assert "unit" in reasons["training/georgia/g1/E4.hea"]
    assert reasons["training/other/g1/E1.hea"] == "another recording has the same id"
    assert str(tmp_path) not in json.dumps(report)


def test_splits_by_patient_keep_a_patient_in_one_split(cohort, tmp_path):
    report = prepare(
        RecordingTable(cohort, cohort / "labels.csv"), tmp_path / "store", PrepareSettings(SplitSettings("grouped"))
    )
    homes: dict[str, set] = {}
    for row in rows_of(tmp_path / "store").values():
        homes.setdefault(row["patient_id"], set()).add(row["split"])
    assert all(len(home) == 1 for home in homes.values())
    assert sum(report["splits"]["recordings"].values()) == report["recordings"]["kept"]
    definition = read_label_def(tmp_path / "store" / "label_def.csv")
    assert set(definition.weights) == {"train", "valid", "test"}
    positives = report["label_counts"]["atrial fibrillation"]["train"]["positive"]
    assert definition.positives["train"][definition.names.index("atrial fibrillation")] == positives


def test_unknown_patients_need_an_assumption_which_report_and_card_repeat(tmp_path):
    root = challenge_folder(tmp_path / "root", {f"E{number}": AF for number in range(10)})
    with pytest.raises(SplitError, match="assume_independent"):
        prepare(PhysioNet2021(root), tmp_path / "store", PrepareSettings(SplitSettings("grouped")))
    assert not (tmp_path / "store" / "data").exists()
    report = prepare(
        PhysioNet2021(root), tmp_path / "store", PrepareSettings(SplitSettings("grouped", assume_independent=True))
    )
    stated = [sentence for sentence in report["splits"]["assumptions"] if "different patients" in sentence]
    assert stated
    assert stated[0] in (tmp_path / "store" / "README.md").read_text()


def test_a_published_split_is_found_by_the_names_it_uses(cohort, tmp_path):
    rows = table_of(cohort)
    lines = [
        f"{n},table_{row['recording_id']}.mat,{'test' if row['patient_id'] < 'synthetic_s5_p000010' else 'train'}"
        for n, row in enumerate(rows[1:])
    ]
    (tmp_path / "split.csv").write_text("\n".join(["idx,save_file,split", *lines]) + "\n")
    data = load_table(cohort, tmp_path / "store", cohort / "labels.csv", split_csv=tmp_path / "split.csv")
    assert {name: len(split) for name, split in data.items()}.keys() == {"train", "test"}
    assert sum(len(split) for split in data.values()) == len(rows) - 1
    report = read_report(tmp_path / "store")
    assert report["excluded"][0]["recording_id"] == rows[0]["recording_id"]


def test_a_patient_in_two_published_splits_is_an_error(cohort, tmp_path):
    rows = table_of(cohort)
    lines = [f"{n},{row['recording_id']},{'test' if n % 2 else 'train'}" for n, row in enumerate(rows)]
    (tmp_path / "split.csv").write_text("\n".join(["idx,save_file,split", *lines]) + "\n")
    with pytest.raises(SplitError, match="patients in two splits"):
        load_table(cohort, tmp_path / "store", cohort / "labels.csv", split_csv=tmp_path / "split.csv")


def test_filters_take_recordings_out_before_splitting(tmp_path):
    rng = np.random.default_rng(0)
    signals = rng.normal(size=(4, 12, 2500))
    signals[1, 3] = 0
    signals[2, 5, 7] = np.nan
    recordings = [
        {"recording_id": f"r{n}", "signal": s, "sampling_rate": 500, "lead_names": STANDARD_LEADS, "units": "mV"}
        for n, s in enumerate(signals)
    ]
    data = load_arrays(recordings, tmp_path / "store", drop_nan_leads=True, drop_constant_leads=True)
    assert data["all"]["recording_id"] == ["r0", "r3"]
    excluded = {one["recording_id"]: one["reason"] for one in read_report(tmp_path / "store")["excluded"]}
    assert excluded == {"r1": "a lead is constant", "r2": "a lead has NaN"}


def test_sources_can_be_kept_and_left_out(tmp_path):
    root = challenge_folder(tmp_path / "root", {"E1": AF})
    challenge_folder(root, {"P1": AF, "P2": AF}, source="ptb-xl")
    report = prepare(PhysioNet2021(root), tmp_path / "a", PrepareSettings(keep_sources=["ptb-xl"]))
    assert report["sources"] == {"ptb-xl": 2}
    report = prepare(PhysioNet2021(root), tmp_path / "b", PrepareSettings(drop_sources=["ptb-xl"]))
    assert report["sources"] == {"georgia": 1}
    assert report["recordings"]["excluded"] == 2
    with pytest.raises(SplitError, match="nowhere"):
        prepare(PhysioNet2021(root), tmp_path / "c", PrepareSettings(keep_sources=["nowhere"]))


def test_pseudonyms_leave_no_trace_of_ids_and_paths(cohort, tmp_path):
    source = RecordingTable(cohort, cohort / "labels.csv")
    damaged = next(iter(sorted(cohort.rglob("*.mat"))))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-10])
    try:
        settings = PrepareSettings(
            SplitSettings("grouped"), pseudonymise=True, salt_file=tmp_path / "salt", drop=["time"]
        )
        report = prepare(source, tmp_path / "store", settings)
    finally:
        damaged.write_bytes(whole)
    assert report["recordings"]["excluded"] == 1
    ids = {row["recording_id"] for row in table_of(cohort)}
    patients = {row["patient_id"] for row in table_of(cohort)}
    rows = rows_of(tmp_path / "store")
    assert not ids & rows.keys()
    assert not any(row["path"] for row in rows.values())
    assert len(patients) - 1 <= len({row["patient_id"] for row in rows.values()}) <= len(patients)
    text = json.dumps(report) + (tmp_path / "store" / "README.md").read_text()
    assert not any(name in text for name in ids | patients)
    assert (tmp_path / "salt").stat().st_mode & 0o077 == 0
    assert not (tmp_path / "store" / ".ecgfm-work").exists()
    # The same salt gives the same pseudonyms, another one others.
    prepare(source, tmp_path / "again", PrepareSettings(pseudonymise=True, salt_file=tmp_path / "salt"))
    prepare(source, tmp_path / "other", PrepareSettings(pseudonymise=True))
    assert rows.keys() < rows_of(tmp_path / "again").keys()
    assert not rows.keys() & rows_of(tmp_path / "other").keys()


def test_a_finished_store_is_only_opened_and_another_is_never_overwritten(cohort, tmp_path):
    source = RecordingTable(cohort, cohort / "labels.csv")
    first = prepare(source, tmp_path / "store")
    assert prepare(source, tmp_path / "store") == first
    with pytest.raises(DataError, match="another preparation"):
        prepare(source, tmp_path / "store", PrepareSettings(SplitSettings("grouped")))
    prepare(source, tmp_path / "store", PrepareSettings(SplitSettings("grouped")), overwrite=True)
    assert set(load_prepared(tmp_path / "store")) == {"train", "valid", "test"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="contains other files"):
        prepare(source, tmp_path / "mine", overwrite=True)
    (tmp_path / "store" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"thesis\.tex"):
        prepare(source, tmp_path / "store", overwrite=True)


def test_a_store_can_be_split_anew_without_the_files(cohort, tmp_path):
    source = RecordingTable(cohort, cohort / "labels.csv")
    prepare(source, tmp_path / "store")
    before = rows_of(tmp_path / "store")
    report = split_store(tmp_path / "store", SplitSettings("grouped", seed=3))
    after = rows_of(tmp_path / "store")
    assert {name: row | {"split": ""} for name, row in after.items()} == {
        name: row | {"split": ""} for name, row in before.items()
    }
    prepare(source, tmp_path / "direct", PrepareSettings(SplitSettings("grouped", seed=3)))
    assert after == rows_of(tmp_path / "direct")
    assert report["splits"] == read_report(tmp_path / "direct")["splits"]
    with pytest.raises(SplitError, match="two splits"):
        split_store(tmp_path / "store", SplitSettings("random"))
    assert rows_of(tmp_path / "store") == after
    assert not (tmp_path / "store" / ".ecgfm-work").exists()


def test_the_number_of_processes_does_not_change_the_store(tmp_path):
    root = challenge_folder(tmp_path / "root", {f"E{number:03d}": AF for number in range(150)})
    split = PrepareSettings(SplitSettings("random"))
    prepare(PhysioNet2021(root), tmp_path / "one", split)
    prepare(PhysioNet2021(root), tmp_path / "two", split, num_proc=3)
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two")


def test_shards_and_a_last_run_make_the_same_store_as_one_run(tmp_path):
    root = challenge_folder(tmp_path / "root", {f"E{number:03d}": AF for number in range(150)})
    prepare(PhysioNet2021(root), tmp_path / "one")
    for number in range(3):
        assert prepare(PhysioNet2021(root), tmp_path / "many", shard=(number, 3)) is None
    with pytest.raises(DataError, match="unfinished"):
        load_prepared(tmp_path / "many")
    prepare(PhysioNet2021(root), tmp_path / "many")
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "many")


def test_ids_alone_find_their_files_and_extra_files_are_reported(cohort, tmp_path):
    rows = table_of(cohort)[:4]
    lines = [f"{row['recording_id']},{row['atrial fibrillation']}" for row in rows] + ["nobody,1"]
    (tmp_path / "mine.csv").write_text("\n".join(["recording_id,AF", *lines]) + "\n")
    report = prepare(RecordingTable(cohort, tmp_path / "mine.csv"), tmp_path / "store")
    assert report["recordings"] == {"found": 5, "kept": 4, "excluded": 1}
    assert report["excluded"][0]["reason"] == "no file has the recording's name"
    assert any("are not in the table" in note for note in report["notes"])


def test_a_folder_without_a_table_is_enough(cohort, tmp_path):
    data = load_table(cohort, tmp_path / "store")["all"]
    assert len(data) == len(list(cohort.rglob("*.hea")))


def test_the_exams_of_a_stack_are_recordings_of_their_own(tmp_path):
    stack = np.random.default_rng(0).standard_normal((3, 2, 500)).astype(np.float32)
    (tmp_path / "files").mkdir()
    np.save(tmp_path / "files" / "a.npy", stack)
    described = {"sampling_rate": 500, "units": "mV", "lead_names": ["I", "II"]}
    table = RecordingTable(tmp_path / "files", **described)
    rows = table.index().table.to_pylist()
    assert [row["recording_id"] for row in rows] == ["a#0", "a#1", "a#2"]
    for row, samples in zip(rows, stack, strict=True):
        assert np.array_equal(table.read_one(row).samples, samples)


def test_two_processes_hash_a_large_file_of_many_recordings_once(tmp_path, monkeypatch):
    from ecgfm_hf.data.sources import base
    from ecgfm_hf.utils import integrity

    stack = np.random.default_rng(0).standard_normal((130, 2, 500)).astype(np.float32)
    (tmp_path / "files").mkdir()
    np.save(tmp_path / "files" / "a.npy", stack)

    def hash_slowly(path, *arguments):
        with open(tmp_path / "hashed", "a") as file:
            file.write(f"{os.path.basename(path)}\n")
        time.sleep(0.2)
        return checksum(path, *arguments)

    checksum = integrity.file_checksum
    monkeypatch.setattr(integrity, "file_checksum", hash_slowly)
    monkeypatch.setattr(base, "_LARGE_BYTES", 1000)
    monkeypatch.setattr(integrity, "_shared", None)
    table = RecordingTable(tmp_path / "files", sampling_rate=500, units="mV", lead_names=["I", "II"])
    prepare(table, tmp_path / "store", num_proc=2)  # three parts
    assert (tmp_path / "hashed").read_text().splitlines().count("a.npy") == 1


def test_own_names_of_columns_and_chosen_labels(cohort, tmp_path):
    rows = table_of(cohort)
    lines = [f"{row['path']},{row['patient_id']},{n},x{n},77,male,2020-01-0{n % 9 + 1}" for n, row in enumerate(rows)]
    (tmp_path / "mine.csv").write_text("\n".join(["file,MRN,note,AF,age,sex,time", *lines]) + "\n")
    columns = {"path": "file", "patient_id": "MRN"}
    with pytest.raises(DataError, match=r"no column can be a label: 'note' \(0 to \d+\), 'AF' \(text\)"):
        prepare(RecordingTable(cohort, tmp_path / "mine.csv", columns=columns), tmp_path / "a")
    data = load_table(
        cohort, tmp_path / "b", tmp_path / "mine.csv", columns=columns, labels=[], split="grouped_temporal"
    )
    row = data["train"][0]
    assert (row["age"], row["sex"], row["time"][:4]) == (77, "M", "2020")
    assert "AF" not in row


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,sex\n{path},unknown gender\n", "row 1: sex is 'unknown gender'"),
        ("path,age\n{path},-3\n", "row 1: age"),
        ("path,time\n{path},yesterday\n", "row 1: time"),
        ("path,AF\n{path},maybe\n", "AF"),
        ("path,AF\n{path}\n", "row 1: 1 cells under 2 columns"),
        ("path,AF,AF\n{path},1,1\n", "several columns called AF"),
        ("name,AF\nx,1\n", "needs a column path or recording_id"),
        ("path,signal\n{path},1\n", "cannot be called signal"),
        ("path,AF\n", "has no rows"),
        ("", "is empty"),
    ],
)
def test_what_is_wrong_with_a_table_is_reported_with_its_row(cohort, tmp_path, text, expected):
    path = next(iter(sorted(cohort.rglob("*.hea")))).relative_to(cohort).as_posix()
    (tmp_path / "mine.csv").write_text(text.format(path=path))
    with pytest.raises(DataError, match=expected):
        prepare(RecordingTable(cohort, tmp_path / "mine.csv"), tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("path", ["../secret.hea", "/etc/passwd", "a/../../secret", ".."])
def test_paths_that_lead_out_of_the_folder_are_left_out(cohort, tmp_path, path):
    good = next(iter(sorted(cohort.rglob("*.hea")))).relative_to(cohort).as_posix()
    (tmp_path / "mine.csv").write_text(f"recording_id,path\nbad,{path}\ngood,{good}\n")
    report = prepare(RecordingTable(cohort, tmp_path / "mine.csv"), tmp_path / "store")
    assert report["excluded_by_reason"] == {"the path leads out of the dataset's folder": 1}
    assert report["recordings"]["kept"] == 1


def test_nothing_readable_is_an_error_that_says_why(tmp_path):
    root = challenge_folder(tmp_path / "root", {"E1": AF})
    next(root.rglob("*.mat")).unlink()
    with pytest.raises(SplitError, match="1 x no such signal file"):
        prepare(PhysioNet2021(root), tmp_path / "store")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no WFDB header"):
        prepare(PhysioNet2021(tmp_path / "empty"), tmp_path / "store2")
    with pytest.raises(DataError, match="no such folder"):
        PhysioNet2021(tmp_path / "nowhere")


def test_one_function_call_prepares_and_opens(tmp_path):
    root = challenge_folder(tmp_path / "root", {"E1": AF, "E2": SINUS})
    data = load_physionet2021(root, tmp_path / "store", progress=False)
    assert data["all"]["recording_id"] == ["E1", "E2"]
    assert len(list(load_prepared(tmp_path / "store", "all", streaming=True))) == 2
    with pytest.raises(DataError, match="no split 'train', only all"):
        load_prepared(tmp_path / "store", "train")
    with pytest.raises(DataError, match="not a store"):
        load_prepared(tmp_path)


@pytest.mark.parametrize("where", ["signal", "page header", "footer", "report.json", "checksums.json"])
def test_a_flipped_bit_of_a_store_is_refused_before_it_is_read(tmp_path, where):
    root = challenge_folder(tmp_path / "root", {"E1": AF, "E2": SINUS})
    load_physionet2021(root, tmp_path / "store", progress=False)
    (file,) = (tmp_path / "store" / "data").iterdir()
    column = pq.read_metadata(file).row_group(0).column(0)
    file = file if "." not in where else tmp_path / "store" / where
    content = bytearray(file.read_bytes())
    index = {"page header": column.data_page_offset + 3, "footer": len(content) - 60, "signal": len(content) // 2}
    content[index.get(where, content.find(b'": "') + 6)] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"store is damaged: .*{file.name}.*Copy it again"):
        load_prepared(tmp_path / "store", "all")
    with pytest.raises(DataError, match="is damaged"):
        split_store(tmp_path / "store", SplitSettings("random"))
    with pytest.raises(DataError, match=rf"store is damaged: .*{file.name}"):
        next(iter(load_prepared(tmp_path / "store", "all", streaming=True)))


def test_a_full_disk_while_a_store_is_copied_is_an_error_that_names_the_store(tmp_path, monkeypatch):
    from datasets.exceptions import DatasetGenerationError

    from ecgfm_hf.data.store_builder import StoreBuilder

    load_physionet2021(challenge_folder(tmp_path / "root", {"E1": AF}), tmp_path / "store", progress=False)

    def fail(_):
        raise DatasetGenerationError("...") from OSError(27, "File too large")

    monkeypatch.setattr(StoreBuilder, "download_and_prepare", fail)
    with pytest.raises(DataError, match=r"store cannot be copied .*is the disk full\?.*File too large"):
        load_prepared(tmp_path / "store", "all", cache_dir=tmp_path / "cache")


def test_a_store_without_checksums_is_refused(tmp_path):
    load_physionet2021(challenge_folder(tmp_path / "root", {"E1": AF}), tmp_path / "store", progress=False)
    (tmp_path / "store" / "checksums.json").unlink()
    with pytest.raises(DataError, match=r"has no checksums.json, so damage cannot be noticed: prepare it again"):
        load_prepared(tmp_path / "store", "all")


def test_opening_a_store_leaves_no_copy_in_a_shared_cache(tmp_path, monkeypatch):
    load_physionet2021(challenge_folder(tmp_path / "root", {"E1": AF}), tmp_path / "store", progress=False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "shared")
    (copy, *_) = load_prepared(tmp_path / "store", "all").cache_files
    assert not list(tmp_path.glob("shared/**/*.arrow"))
    folder = private_folder()
    assert folder in Path(copy["filename"]).parents
    assert folder.stat().st_mode & 0o777 == 0o700
    kept = load_prepared(tmp_path / "store", "all", cache_dir=tmp_path / "kept").cache_files
    assert tmp_path / "kept" in Path(kept[0]["filename"]).parents


def test_other_arrays_under_the_same_ids_are_another_preparation(tmp_path):
    record = {"recording_id": "a", "sampling_rate": 500, "lead_names": STANDARD_LEADS, "units": "mV"}
    signal = np.random.default_rng(0).normal(size=(12, 2500))
    load_arrays([record | {"signal": signal}], tmp_path / "store")
    load_arrays([record | {"signal": signal.copy()}], tmp_path / "store")
    with pytest.raises(ResumeError, match="the content of a has changed since"):
        load_arrays([record | {"signal": signal + 1e-9}], tmp_path / "store")


def test_arrays_say_what_is_wrong_with_them():
    whole = {"recording_id": 1, "signal": np.zeros((12, 9)), "sampling_rate": 1, "lead_names": [], "units": "mV"}
    with pytest.raises(DataError, match="recording 0: missing units"):
        Arrays([{key: value for key, value in whole.items() if key != "units"}])
    with pytest.raises(DataError, match="unknown key fs"):
        Arrays([whole | {"fs": 500}])
    with pytest.raises(DataError, match="several times"):
        Arrays([whole, whole]).index()


def test_the_command_prepares_splits_and_accounts(cohort, tmp_path, capsys):
    store = tmp_path / "store"
    arguments = ["prepare", "table", str(cohort), str(store), "--table", str(cohort / "labels.csv")]
    assert main([*arguments, "--split", "grouped", "--dry-run"]) == 0
    assert not store.exists()
    assert "nothing was written" in capsys.readouterr().out
    assert main([*arguments, "--split", "grouped", "--fractions", "train=0.5,test=0.5"]) == 0
    out = capsys.readouterr().out
    assert "atrial fibrillation" in out
    assert set(load_prepared(store)) == {"train", "test"}
    assert main([*arguments, "--split", "random"]) == 2
    assert "patients in two splits" in capsys.readouterr().err
    assert main(["split", str(store), "--by", "grouped", "--seed", "4"]) == 0
    assert set(load_prepared(store)) == {"train", "valid", "test"}
    assert main(["split", str(tmp_path)]) == 2
    assert main(["prepare", "physionet2021", str(cohort), str(store), "--units", "mV"]) == 2
    assert "does not take --units" in capsys.readouterr().err


def test_recordings_that_the_extractor_would_refuse_are_counted_before_training(tmp_path, capsys):
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(20):
        write_record(folder, random_samples(samples=2500), name=f"g{number}")
    write_record(folder, np.zeros((12, 2500), np.int16), name="flat")
    write_record(folder, random_samples(samples=100), name="short")
    write_record(folder, random_samples(leads=1, samples=2500), name="other", leads=["ECG"])
    (folder / "broken.hea").write_text("broken 12 500 2500\n")
    command = ["prepare", "table", str(folder), str(tmp_path / "store"), "--split", "random"]
    assert main([*command, "--dry-run"]) == 0
    reasons = ("no lead carries a signal: 1", "shorter than 5 s: 1", "missing lead I, II, III, aVR")
    out = capsys.readouterr().out
    assert "excluded because" in out
    assert "3 recordings would be refused" in out
    assert all(reason in out for reason in reasons)
    assert main(command) == 0
    assert all(reason in capsys.readouterr().out for reason in reasons[:1])
    refused = json.loads((tmp_path / "store" / "report.json").read_text())["refused_by_reason"]
    assert sum(refused.values()) == 3
    assert "3 recordings would be refused" in (tmp_path / "store" / "README.md").read_text()


def test_stores_open_without_this_package(cohort, tmp_path):
    from datasets import load_dataset

    prepare(
        RecordingTable(cohort, cohort / "labels.csv"), tmp_path / "store", PrepareSettings(SplitSettings("grouped"))
    )
    data = load_dataset(str(tmp_path / "store"), cache_dir=str(tmp_path / "cache2"))
    assert set(data) == {"train", "valid", "test"}
    assert pq.read_schema(next((tmp_path / "store" / "data").iterdir())).field("signal").type == pa.binary()


@pytest.mark.parametrize("report", [None, '{"a": 1}', "no json"])
def test_a_folder_that_is_not_ours_is_never_touched(cohort, tmp_path, report):
    mine = tmp_path / "mine"
    for name in ("work", "data"):
        (mine / name).mkdir(parents=True)
        (mine / name / "thesis.txt").write_text("years of work")
    (mine / "README.md").write_text("mine")
    if report is not None:
        (mine / "report.json").write_text(report)
    before = {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    source = RecordingTable(cohort, cohort / "labels.csv")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="contains other files"):
            prepare(source, mine, overwrite=overwrite)
    with pytest.raises(DataError):
        split_store(mine, SplitSettings("random"))
    assert {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["../pwn", "a/b", "", ".", "all", "x y", "a-b", "é"])
def test_a_split_cannot_have_a_name_that_leads_elsewhere(cohort, tmp_path, name):
    (tmp_path / "evil.csv").write_text(f'idx,save_file,split\n0,000.mat,train\n1,001.mat,"{name}"\n')
    with pytest.raises(SplitError):
        load_table(cohort, tmp_path / "store", cohort / "labels.csv", split_csv=tmp_path / "evil.csv")
    with pytest.raises(SplitError):
        SplitSettings("random", fractions={"train": 0.5, name: 0.5})
    assert {path.name for path in tmp_path.iterdir()} == {"evil.csv"}


def test_pseudonyms_keep_names_of_files_and_folders_out_of_reasons(tmp_path):
    root = challenge_folder(tmp_path / "root", {"E1": AF, "NA": AF})
    for name in ("Mustermann Max", "Schmidt: Eva"):
        challenge_folder(root, {f"{name[:3]}1": AF}, source=name)
        next((root / "training" / name).rglob("*.mat")).unlink()
    report = prepare(PhysioNet2021(root), tmp_path / "store", PrepareSettings(pseudonymise=True))
    assert report["recordings"] == {"found": 4, "kept": 2, "excluded": 2}
    assert report["excluded_by_reason"] == {"no such signal file": 2}
    everything = json.dumps(report) + (tmp_path / "store" / "README.md").read_text() + str(rows_of(tmp_path / "store"))
    assert not any(word in everything for word in ("Mustermann", "Schmidt", "Eva", "'NA'", str(tmp_path)))


def test_columns_that_are_left_empty_still_serve_the_split(cohort, tmp_path):
    settings = PrepareSettings(SplitSettings("grouped"), drop=["patient_id", "age"])
    prepare(RecordingTable(cohort, cohort / "labels.csv"), tmp_path / "store", settings)
    rows = rows_of(tmp_path / "store")
    assert {row["patient_id"] for row in rows.values()} == {row["age"] for row in rows.values()} == {None}
    patient_of = {row["recording_id"]: row["patient_id"] for row in table_of(cohort)}
    homes: dict[str, set] = {}
    for recording, row in rows.items():
        homes.setdefault(patient_of[recording], set()).add(row["split"])
    assert all(len(home) == 1 for home in homes.values())
    prepare(RecordingTable(cohort, cohort / "labels.csv"), tmp_path / "unsplit", PrepareSettings(drop=["patient_id"]))
    assert {row["patient_id"] for row in rows_of(tmp_path / "unsplit").values()} == {None}


def test_changed_files_and_another_folder_are_another_preparation(tmp_path):
    root = challenge_folder(tmp_path / "root", {"E1": AF, "E2": AF})
    copy = challenge_folder(tmp_path / "copy", {"E1": AF, "E2": AF})
    other = challenge_folder(tmp_path / "other", {"E2": AF, "E1": AF})  # the same names, each with the other's samples
    report = prepare(PhysioNet2021(root), tmp_path / "store")
    assert prepare(PhysioNet2021(copy), tmp_path / "store") == report
    changed = "the content of one of the 2 recordings from E1 to E2 has changed since"
    with pytest.raises(ResumeError, match=changed):
        prepare(PhysioNet2021(other), tmp_path / "store")
    signals = next(root.rglob("E1.mat"))
    content = signals.read_bytes()
    signals.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ResumeError, match=changed):
        prepare(PhysioNet2021(root), tmp_path / "store")
    header = next(root.rglob("E1.hea"))
    header.write_text(header.read_text().replace("1000.0(0)/mV", "500.0(0)/mV"))
    with pytest.raises(ResumeError, match=changed):
        prepare(PhysioNet2021(root), tmp_path / "store")
    prepare(PhysioNet2021(root), tmp_path / "begun", shard=(1, 2))  # nothing was read
    header.write_text(header.read_text().replace("500.0(0)/mV", "250.0(0)/mV"))
    prepare(PhysioNet2021(root), tmp_path / "begun", shard=(0, 1))
    header.write_text(header.read_text().replace("250.0(0)/mV", "200.0(0)/mV"))
    with pytest.raises(ResumeError, match=changed):
        prepare(PhysioNet2021(root), tmp_path / "begun")


def test_the_same_seed_gives_the_same_split_under_any_pseudonym(cohort, tmp_path):
    source = RecordingTable(cohort, cohort / "labels.csv")
    split = SplitSettings("grouped", seed=4)
    plain = prepare(source, tmp_path / "plain", PrepareSettings(split))
    hashed = [prepare(source, tmp_path / n, PrepareSettings(split, pseudonymise=True)) for n in ("a", "b")]
    for report in hashed:
        assert report["splits"]["recordings"] == plain["splits"]["recordings"]
        assert report["label_counts"] == plain["label_counts"]


def test_a_folder_that_is_a_link_is_reported(tmp_path):
    root = challenge_folder(tmp_path / "root", {"E1": AF})
    challenge_folder(tmp_path / "elsewhere", {"E2": AF})
    (root / "training" / "linked").symlink_to(tmp_path / "elsewhere")
    report = prepare(PhysioNet2021(root), tmp_path / "store")
    assert report["excluded_by_reason"] == {"folder is a link, which is not followed": 1}


def test_files_whose_names_look_like_numbers_or_like_nothing_are_split_by_their_names(tmp_path):
    root = challenge_folder(tmp_path / "root", {name: AF for name in ("1", "1.0", "NA", "nan", "007", "7")})
    report = prepare(
        PhysioNet2021(root),
        tmp_path / "store",
        PrepareSettings(SplitSettings("random", fractions={"a": 0.5, "b": 0.5})),
    )
    assert report["splits"]["recordings"] == {"a": 3, "b": 3}
    assert rows_of(tmp_path / "store").keys() == {"1", "1.0", "NA", "nan", "007", "7"}
