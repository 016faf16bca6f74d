"""The source CODE-15% on made-up HDF5 files, and on the original's recordings where they are at hand."""

import csv
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from ecgfm_hf.data import DataError
from ecgfm_hf.data.sources import code_15
from ecgfm_hf.data.sources.code_15 import Code15
from ecgfm_hf.feature_extraction_ecgfm import ECGFMFeatureExtractor
from ecgfm_hf.records import ECGReadError, ECGRecord

h5py = pytest.importorskip("h5py")

FIXTURES = Path(__file__).parent / "fixtures"
SHARED = Path(os.environ.get("ECGFM_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "code_15"
LABELS = ("1dAVb", "RBBB", "LBBB", "SB", "ST", "AF", "normal_ecg")
HEADER = [
    *("exam_id", "age", "is_male", "nn_predicted_age", *LABELS[:6]),
    *("patient_id", "death", "timey", "normal_ecg", "trace_file"),
]


def exam_row(exam, patient="7", file="exams_part0.hdf5", **values):
    row = dict.fromkeys(HEADER, "") | dict.fromkeys(LABELS, "False")
    row |= {"exam_id": exam, "patient_id": patient, "trace_file": file, "age": "46", "is_male": "True"}
    return row | values


def write_exams(root, rows):
    with open(root / "exams.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, HEADER, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_traces(path, exams, dummy=True):
    """A file of exams, (12, samples) by id, padded as the dataset's are."""
    tracings = np.zeros((len(exams) + dummy, 4096, 12), np.float32)
    for row, signal in enumerate(exams.values()):
        start = (4096 - signal.shape[1]) // 2
        tracings[row, start : start + signal.shape[1]] = signal.T
    with h5py.File(path, "w") as file:
        file["exam_id"] = np.array([*exams, *[0] * dummy])
        file["tracings"] = tracings


def signal(seed, samples=300):
    return np.random.default_rng(seed).normal(size=(12, samples)).astype(np.float32)


@pytest.fixture
def root(tmp_path):
    """Two files, whose exams the table names in another order."""
    write_traces(tmp_path / "exams_part0.hdf5", {30: signal(30), 10: signal(10), 20: signal(20)})
    write_traces(tmp_path / "exams_part1.hdf5", {50: signal(50), 40: signal(40)})
    part1 = {"file": "exams_part1.hdf5"}
    write_exams(
        tmp_path, [exam_row(40, **part1), exam_row(10), exam_row(20), exam_row(50, **part1), exam_row(30, patient="8")]
    )
    return tmp_path


def ids(index):
    return index.table["recording_id"].to_pylist()


def test_exams_come_file_by_file_in_the_order_of_rows(root):
    index = Code15(root).index()
    assert ids(index) == ["30", "10", "20", "50", "40"]
    assert index.table["path"].to_pylist() == ["exams_part0.hdf5"] * 3 + ["exams_part1.hdf5"] * 2
    assert (index.excluded, index.notes) == ([], [])


def test_the_order_of_the_table_does_not_matter(root):
    expected = Code15(root).index().table
    header, *lines = (root / "exams.csv").read_text().splitlines()
    (root / "exams.csv").write_text("\n".join([header, *lines[::-1]]))
    assert Code15(root).index().table.equals(expected)


def test_a_row_has_what_the_table_knows_of_the_exam(root):
    write_exams(
        root,
        [
            exam_row(30, patient="123", age="46.0", is_male="False", AF="True", normal_ecg="1"),
            exam_row(10, patient="", age="", is_male="", AF="", RBBB="0.0"),
        ],
    )
    source = Code15(root)
    first, second = source.index().table.to_pylist()
    known = {"recording_id": "30", "patient_id": "123", "path": "exams_part0.hdf5", "age": 46.0, "sex": "F"}
    assert first == known | {"_exam_id": 30} | dict.fromkeys(LABELS, 0) | {"AF": 1, "normal_ecg": 1}
    assert [second[name] for name in ("patient_id", "age", "sex", "AF", "RBBB")] == [None, None, None, None, 0]
    assert source.label_names == LABELS
    assert source.labels(None, first) == {name: int(name in ("AF", "normal_ecg")) for name in LABELS}


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 0, 3, 1, 2], [2, 2]])
def test_exams_are_read_in_any_order_with_each_file_opened_once(root, order, monkeypatch):
    source = Code15(root)
    entries = source.index().table.to_pylist()
    opened = []
    opener = code_15.opened_code_15
    monkeypatch.setattr(code_15, "opened_code_15", lambda path, units: opened.append(path) or opener(path, units))
    found = list(source.read([entries[i] for i in order]))
    for i, (entry, record) in zip(order, found, strict=True):
        assert entry is entries[i]
        assert isinstance(record, ECGRecord)
        np.testing.assert_array_equal(record.samples, signal(entry["_exam_id"]))
    assert len(opened) == len({entries[i]["path"] for i in order})


def test_more_files_than_may_be_open_are_read_all_the_same(root, monkeypatch):
    monkeypatch.setattr(code_15, "_MOST_OPEN", 1)
    source = Code15(root)
    entries = source.index().table.to_pylist()
    for entry, record in source.read(entries[::2] + entries[1::2]):
        np.testing.assert_array_equal(record.samples, signal(entry["_exam_id"]))


def test_ids_that_were_replaced_do_not_keep_an_exam_from_being_read(root):
    source = Code15(root, units="uV")
    entry = source.index().table.to_pylist()[1] | {"recording_id": "a1b2c3"}
    record = source.read_one(entry)
    np.testing.assert_array_equal(record.samples, signal(10))
    assert set(record.units) == {"uV"}


def test_files_are_closed_when_reading_ends_early(root):
    source = Code15(root)
    reading = source.read(source.index().table.to_pylist())
    next(reading)
    reading.close()
    with h5py.File(root / "exams_part0.hdf5", "r+"):  # would be refused if it were still open
        pass


def test_exams_that_promise_what_is_not_there_are_left_out_with_the_reason(root):
    (root / "broken.hdf5").write_bytes((root / "exams_part1.hdf5").read_bytes()[:3000])
    write_traces(root / "twice.hdf5", {70: signal(70), 71: signal(71)})
    with h5py.File(root / "twice.hdf5", "r+") as file:
        file["exam_id"][1] = 70
    write_exams(
        root,
        [
            exam_row(10),
            exam_row(11),
            exam_row(10, file="exams_part1.hdf5"),
            exam_row(60, file="exams_part17.hdf5"),
            exam_row(61, file="broken.hdf5"),
            exam_row(70, file="twice.hdf5"),
            exam_row(80, file="../exams_part0.hdf5"),
            exam_row(90, file=""),
            exam_row(""),
        ],
    )
    index = Code15(root).index()
    assert ids(index) == ["10"]
    assert {(one.recording_id, one.path): one.reason for one in index.excluded} == {
        ("11", "exams_part0.hdf5"): "the exam is not in its HDF5 file",
        ("10", "exams_part1.hdf5"): "another recording has the same id",
        ("60", "exams_part17.hdf5"): "its HDF5 file is not there",
        ("61", "broken.hdf5"): "its HDF5 file cannot be read",
        ("70", "twice.hdf5"): "the exam is in its HDF5 file more than once",
        ("80", "../exams_part0.hdf5"): "the path leads out of the dataset's folder",
        ("90", None): "exams.csv gives no trace_file",
        (None, "exams_part0.hdf5"): "exams.csv gives no exam_id",
    }
    assert not any(str(root) in one.detail for one in index.excluded)


def test_exams_that_the_table_lacks_are_counted_without_the_dummy(root):
    write_exams(root, [exam_row(10), exam_row(20)])
    write_traces(
        root / "exams_part0.hdf5", {30: signal(30), 10: signal(10), 20: signal(20), 31: signal(31)}, dummy=False
    )
    assert Code15(root).index().notes == [
        "2 exams of exams_part0.hdf5 are not in exams.csv.",
        "1 HDF5 files in the folder are not named by exams.csv.",
    ]


def test_exams_that_cannot_be_read_come_back_as_errors_and_the_others_as_recordings(root):
    source = Code15(root)
    entries = source.index().table.to_pylist()
    with h5py.File(root / "exams_part0.hdf5", "r+") as file:
        file["tracings"][1] = 0
    (root / "exams_part1.hdf5").unlink()
    found = [record for _, record in source.read(entries)]
    assert [type(one) for one in found] == [ECGRecord, ECGReadError, ECGRecord, ECGReadError, ECGReadError]
    assert "exam 10 is all zeros" in str(found[1])
    with pytest.raises(ECGReadError, match="no such file"):
        source.read_one(entries[3])


def test_a_dataset_that_cannot_be_used_at_all_is_refused(root, monkeypatch, tmp_path):
    for rows, message in (
        ([exam_row(10, RBBB="perhaps")], r"exams\.csv, row 1: RBBB is 'perhaps', expected 0, 1"),
        ([exam_row(10, is_male="m")], r"exams\.csv, row 1: is_male is 'm', expected True, False or nothing"),
        ([exam_row(10), exam_row(20, age="-1")], r"exams\.csv, row 2: age is '-1', expected a number from 0 to 150"),
        ([exam_row("1.5")], r"exams\.csv, row 1: exam_id is '1\.5', expected a whole number"),
        ([exam_row(10, file="no.hdf5")], r"none of the 1 HDF5 files can be read: .*no\.hdf5: no such file"),
    ):
        write_exams(root, rows)
        with pytest.raises(DataError, match=message):
            Code15(root).index()
    write_exams(root, [exam_row(10)])
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"needs h5py: pip install 'ecgfm-hf\[formats\]'"):
        Code15(root).index()
    (root / "exams.csv").unlink()
    with pytest.raises(DataError, match=r"has no exams\.csv or exams\.csv\.gz"):
        Code15(root)


def test_settings_are_json_and_a_source_is_picklable(root):
    source = pickle.loads(pickle.dumps(Code15(root)))
    assert json.loads(json.dumps(source.settings)) == {"units": "mV"}
    assert source.index().table.num_rows == 5


def standardised_segments(record):
    output = ECGFMFeatureExtractor()(
        record.signal, sampling_rate=record.sampling_rate, lead_names=list(record.lead_names), units=list(record.units)
    )
    return output.input_values


def test_a_padded_recording_is_preprocessed_as_the_original_does(tmp_path):
    data = np.load(FIXTURES / "preprocessing_recording.npz")
    write_traces(tmp_path / "exams_part12.hdf5", {358121: data["recording"]})
    write_exams(tmp_path, [exam_row(358121, file="exams_part12.hdf5")])
    source = Code15(tmp_path)
    record = source.read_one(source.index().table.to_pylist()[0])
    expected = data["standardised_every_8th"][:, : 2500 // 8 + 1]
    np.testing.assert_allclose(standardised_segments(record)[0][:, ::8], expected, atol=1e-6, rtol=0)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no CODE-15 recordings in {SHARED} (set ECGFM_SHARED)")
def test_all_published_recordings_are_preprocessed_as_the_original_does(tmp_path):
    stems = {int(path.stem.rpartition("_")[2]): path.stem for path in (SHARED / "org").glob("*.mat")}
    assert len(stems) == 10
    with open(SHARED / "meta.csv", newline="") as file:
        rows = {int(row["exam_id"]): row for row in csv.DictReader(file)}
    originals = {exam: scipy.io.loadmat(SHARED / "org" / f"{stem}.mat")["feats"] for exam, stem in stems.items()}
    for file in {row["trace_file"] for row in rows.values()}:
        write_traces(tmp_path / file, {exam: originals[exam] for exam in stems if rows[exam]["trace_file"] == file})
    write_exams(tmp_path, [{name: row[name] for name in HEADER} for row in rows.values()])
    with open(SHARED / "labels" / "labels.csv", newline="") as file:
        labels = {row["idx"]: row for row in csv.DictReader(file)}

    source = Code15(tmp_path)
    index = source.index()
    assert index.table.num_rows == 10
    for entry, record in source.read(index.table.to_pylist()):
        segments = standardised_segments(record)
        stem, row = stems[entry["_exam_id"]], rows[entry["_exam_id"]]
        assert len(segments) == len(list((SHARED / "segmented").glob(f"{stem}_*.mat")))
        for number, segment in enumerate(segments):
            expected = scipy.io.loadmat(SHARED / "segmented" / f"{stem}_{number}.mat")["feats"]
            np.testing.assert_allclose(segment, expected, atol=1e-6, rtol=0)
        assert source.labels(record, entry) == {name: int(labels[row["idx"]][name] == "True") for name in LABELS}
        assert (entry["patient_id"], entry["age"]) == (row["patient_id"], float(row["age"]))
        assert entry["sex"] == {"True": "M", "False": "F"}[row["is_male"]]
