"""The source MIMIC-IV-ECG on tiny tables in its layout: joined by study, accounted for, refused where damaged."""

import csv
import gzip
import io
import json
import pickle
import random
from datetime import datetime

import numpy as np
import pyarrow as pa
import pytest
from wfdb_files import write_record

from ecgfm_hf.data import DataError
from ecgfm_hf.data.sources.csv_columns import first_rows
from ecgfm_hf.data.sources.mimic_iv_ecg import MimicIVECG, joined_lines
from ecgfm_hf.labeler import Labeler, join_lines
from ecgfm_hf.records import ECGReadError, ECGRecord

# study, subject, time, lines of the report
STUDIES = [
    ("40689238", "10000032", "2180-07-23 08:44:00", ["Sinus rhythm", "Possible right atrial abnormality"]),
    ("44458630", "10000032", "2180-07-23 09:54:00", ["Sinus rhythm", "", "Abnormal ECG"]),
    ("49036311", "10000117", "2181-03-04 17:14:00", ["Atrial fibrillation; rapid ", "Abnormal ECG "]),
    ("45090959", "10000980", "2184-01-01 00:00:00", []),
]


def path_of(study, subject):
    return f"files/p{subject[:4]}/p{subject}/s{study}/{study}"


def write_table(path, header, rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_records(root, studies=STUDIES, name="record_list.csv"):
    rows = [(subject, study, study, time, path_of(study, subject)) for study, subject, time, _ in studies]
    return write_table(root / name, ["subject_id", "study_id", "file_name", "ecg_time", "path"], rows)


def write_reports(root, studies=STUDIES, name="machine_measurements.csv"):
    header = ["subject_id", "study_id", "cart_id", "ecg_time", *(f"report_{i}" for i in range(18)), "bandwidth"]
    rows = [
        (subject, study, 6848296, time, *lines, *[""] * (18 - len(lines)), "0.005-150 Hz")
        for study, subject, time, lines in studies
    ]
    return write_table(root / name, header, rows)


def write_patients(path, rows):
    return write_table(path, ["subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod"], rows)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "mimic"
    folder.mkdir()
    write_records(folder)
    write_reports(folder)
    return folder


def rows_by_study(index):
    return {row["recording_id"]: row for row in index.table.to_pylist()}


def test_a_row_has_what_the_tables_know_of_the_recording(root):
    index = MimicIVECG(root).index()
    assert index.table.column_names == ["recording_id", "patient_id", "path", "time", "report"]
    assert index.table.to_pylist()[0] == {
        "recording_id": "40689238",
        "patient_id": "10000032",
        "path": "files/p1000/p10000032/s40689238/40689238",
        "time": datetime(2180, 7, 23, 8, 44),
        "report": "Sinus rhythm; Possible right atrial abnormality",
    }
    reports = index.table["report"].to_pylist()
    assert reports[1:] == ["Sinus rhythm; Abnormal ECG", "Atrial fibrillation; rapid; Abnormal ECG", None]
    assert index.excluded == []
    assert any("differs from patient to patient" in note for note in index.notes)
    assert "1 recordings have an empty report: report unknown." in index.notes


def test_reports_are_joined_by_study_regardless_of_the_order_of_rows(root):
    expected = MimicIVECG(root).index()
    shuffled = random.Random(1).sample(STUDIES, len(STUDIES))
    assert [study for study, *_ in shuffled] != [study for study, *_ in STUDIES]
    write_reports(root, shuffled)
    assert MimicIVECG(root).index().table.equals(expected.table)


def test_gzipped_tables_are_read_alike(root):
    expected = MimicIVECG(root).index().table
    for name in ("record_list.csv", "machine_measurements.csv"):
        (root / f"{name}.gz").write_bytes(gzip.compress((root / name).read_bytes()))
        (root / name).unlink()
    assert MimicIVECG(root).index().table.equals(expected)


def test_reports_that_cannot_be_read_are_unknown_and_counted(root):
    extra = ("40000001", "10000099", "2180-01-01 00:00:00", ["Sinus rhythm"])
    doubled = ("40689238", "10000032", "2180-07-23 08:44:00", ["Atrial flutter"])
    stranger = ("44458630", "10000999", "2180-07-23 09:54:00", ["Sinus rhythm"])
    write_reports(root, [STUDIES[0], doubled, stranger, extra, ("", "", "", ["Sinus rhythm"]), STUDIES[2], STUDIES[2]])
    index = MimicIVECG(root).index()
    reports = {study: row["report"] for study, row in rows_by_study(index).items()}
    assert reports == {
        "40689238": None,
        "44458630": None,
        "49036311": "Atrial fibrillation; rapid; Abnormal ECG",  # two rows that say the same
        "45090959": None,
    }
    assert index.notes[1:] == [
        "1 recordings have no row in machine_measurements.csv: report unknown.",
        "1 recordings have rows in machine_measurements.csv that differ: report unknown.",
        "1 recordings have another subject_id in machine_measurements.csv: report unknown.",
        "1 studies of machine_measurements.csv are not in record_list.csv.",
        "1 rows of machine_measurements.csv have no study_id.",
    ]


def test_without_measurements_reports_are_unknown_and_counted(root):
    (root / "machine_measurements.csv").unlink()
    index = MimicIVECG(root).index()
    assert "report" not in index.table.column_names
    assert "There is no machine_measurements.csv: reports are unknown." in index.notes
    with pytest.raises(DataError, match=r"has no machine_measurements\.csv, whose reports labels='mimic17' needs"):
        MimicIVECG(root, labels="mimic17")


def test_recordings_listed_twice_or_not_findable_are_left_out_with_the_reason(root):
    (root / "record_list.csv").write_text(
        "subject_id,study_id,file_name,ecg_time,path\n"
        "1,11,11,2180-01-01 00:00:00,files/11\n"
        "1,11,11,2180-01-01 00:00:00,files/11b\n"
        "1,,11,2180-01-01 00:00:00,files/12\n"
        "1,13,13,2180-01-01 00:00:00,\n"
        "1,14,14,,files/14\n"
    )
    index = MimicIVECG(root).index()
    assert index.table["recording_id"].to_pylist() == ["11", "14"]
    assert [(one.recording_id, one.path, one.reason) for one in index.excluded] == [
        (None, "files/12", "record_list.csv gives no study_id"),
        ("13", None, "record_list.csv gives no path"),
        ("11", "files/11b", "another recording has the same id"),
    ]
    assert [one.detail for one in index.excluded[:2]] == ["record_list.csv, row 3", "record_list.csv, row 4"]
    assert "1 recordings have no ecg_time." in index.notes


def test_ids_are_the_same_however_a_table_library_wrote_them(root):
    expected = MimicIVECG(root).index().table
    text = (root / "machine_measurements.csv").read_text()
    for study, subject, *_ in STUDIES:
        text = text.replace(f"\n{subject},{study},", f"\n{subject}.0, {study}.0,")
    (root / "machine_measurements.csv").write_text(text)
    assert MimicIVECG(root).index().table.equals(expected)


def test_age_and_sex_come_from_the_patients_table(root, tmp_path):
    patients = [
        ("10000117", "F", 48, 2174, "2008 - 2010", ""),
        ("10000032", "M", 52, 2180, "2014 - 2016", "2180-09-09"),
    ]
    index = MimicIVECG(root, patients=write_patients(tmp_path / "patients.csv.gz", patients)).index()
    rows = rows_by_study(index)
    assert [(rows[study]["age"], rows[study]["sex"]) for study, *_ in STUDIES] == [
        (52.0, "M"),
        (52.0, "M"),
        (55.0, "F"),  # 48 in 2174, recorded in 2181
        (None, None),
    ]
    assert index.table.schema.field("age").type == pa.float32()
    assert "1 recordings are of patients that are not in patients.csv.gz: age and sex unknown." in index.notes


def test_an_age_over_89_is_91_from_the_anchor_year_on_and_unknown_before(root, tmp_path):
    patients = [
        ("10000032", "F", 91, 2178, "", ""),
        ("10000117", "", 91, 2182, "", ""),
        ("10000980", "M", 1, 2190, "", ""),
    ]
    index = MimicIVECG(root, patients=write_patients(tmp_path / "patients.csv", patients)).index()
    rows = rows_by_study(index)
    assert [rows[study]["age"] for study, *_ in STUDIES] == [91.0, 91.0, None, None]
    assert rows["49036311"]["sex"] is None
    assert index.notes[1:3] == [
        "1 recordings are older than their patient, by patients.csv: age unknown.",
        "An age of 91 may mean any age over 89, as in MIMIC-IV.",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("10000032", "M", "old", 2180), r"row 2: anchor_age is 'old', expected a number from 0 to 150"),
        (("10000032", "M", 151, 2180), r"row 2: anchor_age is '151', expected"),
        (("10000032", "X", 51, 2180), r"row 2: gender is 'X', expected M, F or nothing"),
        (("10000117", "M", 51, 2180), r"row 2: subject_id is '10000117', expected each subject once"),
    ],
)
def test_patients_that_cannot_be_right_are_refused(root, tmp_path, row, message):
    patients = [("10000117", "F", 48, 2174, "", ""), (*row, "", "")]
    source = MimicIVECG(root, patients=write_patients(tmp_path / "patients.csv", patients))
    with pytest.raises(DataError, match=r"patients\.csv, " + message):
        source.index()


def test_labels_of_a_csv_are_joined_by_study(root, tmp_path):
    rows = [("45090959", "1", "False", "1.0", ""), ("40689238", "2", "True", "0", "1"), ("1", "3", "True", "", "")]
    labels = write_table(tmp_path / "labels.csv", ["study_id", "subject_id", "AF", "PVC", "Paced"], rows)
    source = MimicIVECG(root, labels=labels)
    assert source.label_names == ("AF", "PVC", "Paced")
    index = source.index()
    found = {study: (row["AF"], row["PVC"], row["Paced"]) for study, row in rows_by_study(index).items()}
    assert found == {
        "40689238": (1, 0, 1),
        "44458630": (None, None, None),
        "49036311": (None, None, None),
        "45090959": (0, 1, None),
    }
    assert index.table.schema.field("AF").type == pa.int8()
    assert source.labels(None, index.table.to_pylist()[0]) == {"AF": 1, "PVC": 0, "Paced": 1}
    assert "2 recordings are not in labels.csv: labels unknown." in index.notes
    assert "1 studies of labels.csv are not among the recordings." in index.notes


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("40689238", "1"), ("44458630", "maybe")], "row 2: AF is 'maybe', expected 0, 1, True, False or nothing"),
        ([("40689238", "1"), ("40689238.0", "1")], r"row 2: study_id is '40689238\.0', expected each study once"),
        ([("40689238", "1"), ("", "1")], "row 2: study_id is nothing, expected a study"),
    ],
)
def test_labels_that_contradict_themselves_are_refused(root, tmp_path, rows, message):
    source = MimicIVECG(root, labels=write_table(tmp_path / "labels.csv", ["study_id", "AF"], rows))
    with pytest.raises(DataError, match=message):
        source.index()


def test_label_files_without_labels_and_unknown_presets_are_refused_at_once(root, tmp_path):
    with pytest.raises(DataError, match="has no label, only study_id"):
        MimicIVECG(root, labels=write_table(tmp_path / "labels.csv", ["study_id"], [("1",)]))
    with pytest.raises(DataError, match=r"none\.csv: no such table"):
        MimicIVECG(root, labels="none.csv")
    with pytest.raises(DataError, match="labels='mimic71': expected the path of a CSV or a preset"):
        MimicIVECG(root, labels="mimic71")


def test_a_preset_labels_the_reports_and_leaves_recordings_without_one_unknown(root):
    source = MimicIVECG(root, labels="mimic17")
    assert source.label_names == Labeler.from_preset("mimic17").labels
    index = source.index()
    assert not set(source.label_names) & set(index.table.column_names)  # they are made as recordings are read
    found = {row["recording_id"]: source.labels(None, row) for row in index.table.to_pylist()}
    assert all(list(labels) == list(source.label_names) for labels in found.values())
    two = [(labels["Sinus rhythm"], labels["Atrial fibrillation"]) for labels in found.values()]
    assert two == [(1, 0), (1, 0), (0, 1), (None, None)]
    again = pickle.loads(pickle.dumps(source)).labels(None, index.table.to_pylist()[0])
    assert again == found["40689238"]


def test_reports_are_joined_as_the_labeler_joins_them():
    rng = random.Random(0)
    pieces = [
        "Sinus rhythm",
        "a  b",
        " ",
        "",
        ";",
        "; ;",
        "\t",
        "\x0b",
        "\x1c",
        "\x85",
        "\xa0",
        "\u3000",
        "\u2028",
        "é;",
        None,
    ]
    rows = [
        [rng.choice([None, "".join(filter(None, rng.choices(pieces, k=3)))]) for _ in range(4)] for _ in range(3000)
    ]
    columns = [
        pa.chunked_array([column[:1000], column[1000:]], pa.string()) for column in map(list, zip(*rows, strict=True))
    ]
    assert joined_lines(columns).to_pylist() == [join_lines(row) or None for row in rows]


def test_settings_name_no_folder_and_a_source_is_picklable(root, tmp_path):
    labels = write_table(tmp_path / "labels.csv", ["study_id", "AF"], [("40689238", 1)])
    patients = write_patients(tmp_path / "patients.csv", [("10000032", "F", 50, 2178, "", "")])
    source = pickle.loads(pickle.dumps(MimicIVECG(root, labels=labels, patients=patients)))
    assert json.loads(json.dumps(source.settings)) == {"labels": "labels.csv", "patients": "patients.csv"}
    assert source.index().table.num_rows == 4
    assert MimicIVECG(root).settings == {"labels": None, "patients": None}


def test_recordings_are_read_and_missing_files_come_back_as_errors(root):
    study, subject, *_ = STUDIES[0]
    folder = (root / path_of(study, subject)).parent
    folder.mkdir(parents=True)
    leads = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")  # as its files have them
    _, samples = write_record(folder, name=study, calibration="200.0(0)/mV", leads=leads)
    source = MimicIVECG(root)
    entries = source.index().table.to_pylist()
    entries.append({"recording_id": "1", "path": "../mimic/" + entries[0]["path"]})
    found = [record for _, record in source.read(entries)]
    assert isinstance(found[0], ECGRecord)
    assert found[0].lead_names == leads
    np.testing.assert_array_equal(found[0].samples, samples)
    assert all(isinstance(error, ECGReadError) and "no such" in str(error) for error in found[1:-1])
    assert "leads out of the dataset's folder" in str(found[-1])


HEADER = "subject_id,study_id,file_name,ecg_time,path\n"
ROW = "1,11,11,2180-01-01 00:00:00,files/11\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty, expected a header"),
        (HEADER.encode(), r"has no rows"),
        (b"subject_id,study_id,ecg_time\n1,2,3\n", r"has no column path \(found: subject_id, study_id, ecg_time\)"),
        (b"path," + HEADER.encode() + ROW.encode(), r"has several columns called path"),
        ((HEADER + ROW * 3 + "1,12\n").encode(), r", row 4: found 2 cells under 5 columns"),
        (
            (HEADER + ROW + "1,12,12,yesterday,files/12\n").encode(),
            r", row 2: ecg_time is 'yesterday', expected a time",
        ),
        ((HEADER + ROW + "1,12,12,2180-01-01 00:00:00Z,x\n").encode(), r", row 2: ecg_time is '2180-01-01 00:00:00Z'"),
        ((HEADER + ROW + '1,12,12,2180-01-01 00:00:00,"files/12\n' + ROW).encode(), r", row 2: path has a line break"),
        ((HEADER + ROW).encode() + b"1,12,12,2180-01-01 00:00:00,\xff\n", r"row 2: column path is not UTF-8"),
        (
            (HEADER + "1,12,12,2180-01-01 00:00:00," + "x" * 3_000_000 + "\n").encode(),
            r"a row is longer than a megabyte",
        ),
    ],
)
def test_damaged_tables_are_refused_with_file_row_and_column(root, content, message):
    (root / "record_list.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"record_list\.csv(: )?" + message):
        MimicIVECG(root).index()


def test_errors_of_the_measurements_quote_no_report(root):
    path = root / "machine_measurements.csv"
    content = path.read_text()
    for damaged in (content + "1,2,secret words\n", content.replace("Sinus rhythm", '"secret\nwords"', 1)):
        path.write_text(damaged)
        with pytest.raises(DataError, match=r"machine_measurements\.csv, row \d") as error:
            MimicIVECG(root).index()
        assert "secret" not in str(error.value)
    path.write_text("subject_id,study_id\n1,2\n")
    with pytest.raises(DataError, match="has no column report_0"):
        MimicIVECG(root).index()


def test_truncated_gzip_is_refused(root):
    (root / "record_list.csv").unlink()
    rows = [(str(i), "1", "2180-01-01 00:00:00", []) for i in range(5000)]
    content = write_records(root, rows, "record_list.csv.gz").read_bytes()
    for kept in (10, len(content) // 2):
        (root / "record_list.csv.gz").write_bytes(content[:kept])
        with pytest.raises(DataError, match=r"record_list\.csv\.gz: cannot (read|be read)"):
            MimicIVECG(root).index()


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no record_list\.csv or record_list\.csv\.gz"):
        MimicIVECG(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        MimicIVECG(tmp_path / "none")


def test_first_rows_of_ids():
    ids, first, repeated = first_rows(pa.array(["b", None, "a", "b", None, "a", "c", "b"]))
    assert ids.to_pylist() == ["b", "a", "c"]
    assert first.tolist() == [0, 2, 6]
    assert repeated.tolist() == [3, 5, 7]
