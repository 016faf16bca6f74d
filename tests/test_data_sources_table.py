"""A user's own table: what it may contain, how its ids and files are matched, and what is reported."""

import os
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from killed_runs import damage_file
from wfdb_files import random_samples, write_record

from ecgfm_hf import SettingsError
from ecgfm_hf.cli.main import main
from ecgfm_hf.cli.options import parse_mapping, parse_names
from ecgfm_hf.cli.prepare import _parse_fractions
from ecgfm_hf.data import Arrays, DataError, PhysioNet2021, RecordingTable, prepare, record_from_row

SAMPLES = random_samples(samples=50)
SAME_FILE = "another row has the same file"


def folder_of(root: Path, *paths: str) -> Path:
    """WFDB records with these names, as `a1/000`."""
    for path in paths:
        folder, name = (root / path).parent, (root / path).name
        folder.mkdir(parents=True, exist_ok=True)
        write_record(folder, SAMPLES, name=name, suffix=".mat", offset=24)
    return root


def table_of(tmp_path: Path, text: str, name: str = "mine.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def indexed(tmp_path: Path, text: str, **options):
    """Rows of the index by id, and the index, of a table over the records 1 to 5."""
    root = tmp_path / "root"
    if not root.exists():
        folder_of(root, *"12345")
    index = RecordingTable(root, table_of(tmp_path, text), **options).index()
    return {row["recording_id"]: row for row in index.table.to_pylist()}, index


def column(name: str, *cells: str) -> str:
    """A table with a path and one column."""
    return "\n".join([f"path,{name}", *(f"{row},{cell}" for row, cell in enumerate(cells, start=1))]) + "\n"


# Ids


def test_ids_made_of_file_names_are_the_names_as_they_are(tmp_path):
    root = folder_of(tmp_path / "root", "1", "1.0", "NA", "none")
    report = prepare(RecordingTable(root), tmp_path / "store")
    assert report["recordings"] == {"found": 4, "kept": 4, "excluded": 0}
    table = table_of(tmp_path, "path,AF\n1.hea,1\n1.0.hea,0\nNA.hea,1\nnone,0\n")
    prepare(RecordingTable(root, table), tmp_path / "labelled")
    (part,) = (tmp_path / "labelled" / "data").glob("*.parquet")
    found = {row["recording_id"]: row for row in pq.read_table(part).to_pylist()}
    assert {name: row["AF"] for name, row in found.items()} == {"1": 1, "1.0": 0, "NA": 1, "none": 0}
    assert found["1.0"]["path"] == "1.0.hea"
    np.testing.assert_array_equal(record_from_row(found["NA"]).samples, SAMPLES)


def test_ids_in_cells_are_the_same_however_they_were_written(tmp_path):
    rows, index = indexed(tmp_path, "recording_id,path\n1.0,1\nNA,2\n,3\n 4 ,4\n")
    assert {name: row["path"] for name, row in rows.items()} == {"1": "1", "4": "4"}
    assert [(one.recording_id, one.path, one.reason, one.detail) for one in index.excluded] == [
        (None, "2", "the table gives no recording_id", "row 2"),
        (None, "3", "the table gives no recording_id", "row 3"),
    ]


def test_an_id_finds_the_file_of_its_text_where_no_other_has_its_name(tmp_path):
    root = folder_of(tmp_path / "root", "1.0", "2.0", "2")
    index = RecordingTable(root, table_of(tmp_path, "recording_id\n1.0\n2.0\n")).index()
    assert index.table["path"].to_pylist() == ["1.0.hea", "2.hea"]


def test_an_id_that_no_text_can_hold_is_reported_with_its_row(tmp_path):
    pq.write_table(pa.table({"recording_id": [1.0, 2.5, 2.5]}), tmp_path / "mine.parquet")
    root = folder_of(tmp_path / "root", "1")
    with pytest.raises(DataError, match=r"row 2: recording_id is '2\.5' \(2 rows\); expected text or a whole number"):
        RecordingTable(root, tmp_path / "mine.parquet").index()


# One file, one row


@pytest.mark.parametrize(
    "again", ["./a1/000.hea", "a1//000.hea", "b/../a1/000.hea", "a1/000", "a1/000.mat", "{root}/a1/000.hea"]
)
def test_a_file_that_another_row_has_is_left_out(tmp_path, again):
    root = folder_of(tmp_path / "root", "a1/000", "a1/001")
    again = again.format(root=root)
    index = RecordingTable(
        root, table_of(tmp_path, f"recording_id,path\na1,a1/000.hea\nb,a1/001\na2,{again}\n")
    ).index()
    assert index.table["recording_id"].to_pylist() == ["a1", "b"]
    (one,) = index.excluded
    assert (one.recording_id, one.reason) == ("a2", SAME_FILE)
    assert "row 3 (a2, a1/000" in one.detail
    assert "row 1 (a1)" in one.detail


def test_a_row_that_is_left_out_takes_no_file_and_no_id(tmp_path):
    rows, index = indexed(tmp_path, "recording_id,path\nA,1\nA,2\nB,2\nC,1\nC,3\n")
    assert {name: row["path"] for name, row in rows.items()} == {"A": "1", "B": "2", "C": "3"}
    assert sorted(one.reason for one in index.excluded) == ["another recording has the same id", SAME_FILE]


def test_names_and_folders_that_find_one_file_twice_count_once(tmp_path):
    root = folder_of(tmp_path / "root", "a1/000")
    index = RecordingTable(root, table_of(tmp_path, "recording_id\n000\na1/000\n")).index()
    assert index.table["recording_id"].to_pylist() == ["000"]
    assert [one.reason for one in index.excluded] == [SAME_FILE]


def test_exams_of_one_file_are_recordings_of_their_own(tmp_path):
    (tmp_path / "root").mkdir()
    text = "recording_id,path,exam_id\na,part.hdf5,11\nb,part.hdf5,12.0\nc,part.hdf5,11\n"
    rows, index = indexed(tmp_path, text)
    assert {name: row["_exam_id"] for name, row in rows.items()} == {"a": 11, "b": 12}
    assert [(one.recording_id, one.reason) for one in index.excluded] == [("c", SAME_FILE)]


def test_rows_of_one_recording_with_different_labels_are_an_error_that_shows_both(tmp_path):
    text = "recording_id,path,AF,SB,LBBB\nA,1,0,1,1\nB,2,0,0,0\nA,1,1,1,\n"
    with pytest.raises(DataError, match=r"rows 1 and 3 .* recording_id A .*: AF is 0 and 1, LBBB is 1 and unknown"):
        indexed(tmp_path, text)
    with pytest.raises(DataError, match=r"rows 1 and 2 .* 1 .*: AF is 1 and 0"):
        indexed(tmp_path, "path,AF\n1.hea,1\n./1,0\n")
    rows, index = indexed(tmp_path, "recording_id,path,AF\nA,1,0\nA,1,0.0\n")
    assert (len(rows), len(index.excluded)) == (1, 1)


def test_numeric_columns_among_labels_are_named_with_the_way_out(tmp_path):
    text = 'path,AF,heart_rate,QRS duration,"B, C"\n1,1,61,90.5,0\n2,0,72,,1\n3,,180,110,0\n'
    rows, index = indexed(tmp_path, text)
    assert [row["B, C"] for row in rows.values()] == [0, 1, 0]
    assert not {"heart_rate", "QRS duration"} & set(rows["1"])
    assert "no labels were left out: 'heart_rate' (61 to 180), 'QRS duration' (90.5 to 110)." in index.notes[0]
    with pytest.raises(DataError) as error:
        indexed(tmp_path, text, labels=["AF", "heart_rate"])
    assert "'heart_rate' (61 to 180)" in str(error.value)
    assert "labels=['AF']" in str(error.value)
    assert "binarise=['heart_rate<=40']" in str(error.value)
    with pytest.raises(DataError, match=r"row 2: label 'AF' is '2' \(1 row\)"):
        indexed(tmp_path, column("AF", "1", "2", "0", "0"))


@pytest.mark.parametrize("changed", ["1.hea", "1.mat", "other.dat"])
def test_all_files_of_a_recording_are_in_its_stamp(tmp_path, changed):
    root = folder_of(tmp_path / "root", "1")
    (root / "other.dat").write_bytes(bytes(9))
    header = root / "1.hea"
    header.write_text(header.read_text() + "other.dat 16 1000/mV 16 0 0 0 0 X\n")
    source = RecordingTable(root)
    table = pa.table({"path": ["1", "1.hea", "1.mat"]})
    before = source.stamps(table)
    assert before == source.stamps(table)
    times = (root / changed).stat()
    if changed.endswith(".hea"):  # an edit that changes neither length nor time
        (root / changed).write_text(header.read_text().replace("1000/mV", "2000/mV"))
        os.utime(root / changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    else:
        damage_file(root / changed)
        os.utime(root / changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert all(one != other for one, other in zip(before, source.stamps(table), strict=True))


# How a table is written

HOSPITAL = "path;MRN;Größe;EF;AF;LBBB, any\n1;0007;1,80;35,5;ja;1\n2;0008;1,75;;nein;NA\n3;0008;1,60;55,0;NA;0\n"
TEXTS = {"path": list("123"), "AF": [1, 0, None], "LBBB, any": [1, None, 0], "EF<=40": [1, None, 0]}


@pytest.mark.parametrize(
    ("encoding", "separator"),
    [("cp1252", ";"), ("utf-8-sig", ";"), ("utf-16", "\t"), ("utf-16-le", "|"), ("utf-8", ";")],
)
def test_a_table_is_read_in_the_encoding_and_with_the_separator_that_it_has(tmp_path, encoding, separator):
    path = tmp_path / "mine.csv"
    path.write_text(HOSPITAL.replace(";", separator), encoding=encoding)
    source = RecordingTable(
        folder_of(tmp_path / "root", *"123"), path, columns={"patient_id": "MRN"}, binarise=["EF<=40"]
    )
    index = source.index()
    assert source.label_names == ("AF", "LBBB, any", "EF<=40")
    assert {name: index.table[name].to_pylist() for name in TEXTS} == TEXTS
    assert index.table["patient_id"].to_pylist() == ["0007", "0008", "0008"]
    assert ("read as cp1252" in " ".join(index.notes)) == (encoding == "cp1252")
    assert "'Größe' (1.6 to 1.8)" in " ".join(index.notes)


def test_a_table_is_decoded_once_and_then_forgotten(tmp_path, monkeypatch):
    import openpyxl

    root, opened = folder_of(tmp_path / "root", "1"), []
    text, book = table_of(tmp_path, "path,AF\n1,1\n"), workbook(tmp_path / "a.xlsx", A=[["path", "AF"], ["1", 1]])
    for owner, name in ((Path, "read_bytes"), (openpyxl, "load_workbook")):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, _real=real, **k: opened.append(str(a[0])) or _real(*a, **k))
    for table, times in ((text, 1), (book, 2)):  # a workbook for its values, and for its formulas
        source = RecordingTable(root, table)
        assert source.index().table["AF"].to_pylist() == [1]
        assert opened.count(str(table)) == times
        assert "_read" not in vars(source._file)


def test_encoding_and_separator_can_be_given(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("path!Größe!AF\n1!groß!1\n", encoding="mac_roman")
    root = folder_of(tmp_path / "root", "1")
    source = RecordingTable(root, path, encoding="mac_roman", separator="!")
    assert source.index().notes == ["Columns that are no labels were left out: 'Größe' (text)."]
    with pytest.raises(DataError, match="encoding must be one that Python knows"):
        RecordingTable(root, path, encoding="klingon")
    path.write_text("path;AF, any\n1;0,5\n")
    with pytest.raises(DataError, match="give separator="):
        RecordingTable(root, path)
    path.write_bytes(b"path,AF\n1,\x81\n")
    with pytest.raises(DataError, match="byte 10 is not utf-8 or cp1252; save the table as UTF-8, or give encoding"):
        RecordingTable(root, path)


def test_a_comma_before_three_digits_is_asked_about(tmp_path):
    text = 'path;AF;platelets\n1;1;"1,250"\n2;0;"2,000"\n'
    with pytest.raises(DataError, match=r"platelets has numbers such as 1,250: give decimal=','"):
        indexed(tmp_path, text)
    rows, _ = indexed(tmp_path, text, binarise=["low=platelets<2"], decimal=",")
    assert [row["low"] for row in rows.values()] == [1, 0]


def test_own_codes_of_labels_replace_the_usual_ones(tmp_path):
    codes = {"positive": ["2"], "negative": ["1"], "unknown": ["9"]}
    rows, _ = indexed(tmp_path, column("AF", "1", "2", "9", "", "NA"), **codes)
    assert [row["AF"] for row in rows.values()] == [0, 1, None, None, None]
    with pytest.raises(DataError, match=r"row 1: label 'AF' is '0' \(1 row\); expected 2, 1, 9 or nothing"):
        indexed(tmp_path, column("AF", "0", "2"), **codes)
    with pytest.raises(DataError, match="positive, negative and unknown must have different codes, found twice: '2'"):
        indexed(tmp_path, column("AF", "1"), positive=["2"], negative=["2"])


@pytest.mark.parametrize("wrong", ["LVEF", "LVEF=40", "<=40", "LVEF<=low", "LVEF<=40<=50x"])
def test_a_binarised_label_must_look_like_one(tmp_path, wrong):
    with pytest.raises(DataError, match=r"binarise must look like LVEF<=40|has no column"):
        indexed(tmp_path, column("LVEF", "40"), binarise=[wrong])


def workbook(path: Path, **sheets: list) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_a_workbook_is_a_table(tmp_path):
    root = folder_of(tmp_path / "root", "1", "2")
    rows = [["path", "MRN", "time", "AF", None], ["1", "0007", datetime(2020, 1, 2), "yes"], ["2", 8, None, False]]
    index = RecordingTable(root, workbook(tmp_path / "a.xlsx", A=rows, B=[]), columns={"patient_id": "MRN"}).index()
    assert index.table["patient_id"].to_pylist() == ["0007", "8"]
    assert index.table["time"].to_pylist() == [datetime(2020, 1, 2), None]
    assert index.table["AF"].to_pylist() == [1, 0]
    several = workbook(tmp_path / "b.xlsx", A=rows, B=rows[:2])
    with pytest.raises(DataError, match=r"several sheets with cells \(A, B\); give sheet="):
        RecordingTable(root, several)
    assert RecordingTable(root, several, sheet="B", columns={"patient_id": "MRN"}).index().table.num_rows == 1
    formula = workbook(tmp_path / "c.xlsx", A=[["path", "AF"], ["1", "=1+0"]])
    with pytest.raises(DataError, match="row 2 of the sheet: the workbook does not hold the result of '=1"):
        RecordingTable(root, formula)
    (tmp_path / "d.xlsx").write_bytes(b"no workbook")
    with pytest.raises(DataError, match="cannot read this table"):
        RecordingTable(root, tmp_path / "d.xlsx")
    (tmp_path / "e.xls").write_bytes(b"old")
    with pytest.raises(DataError, match=r"save it as \.xlsx or \.csv"):
        RecordingTable(root, tmp_path / "e.xls")


def test_a_table_of_which_no_row_remains_is_refused_with_the_first_reason(tmp_path):
    root = folder_of(tmp_path / "root", "1")
    source = RecordingTable(root, table_of(tmp_path, "path,AF\n/elsewhere/1.hea,1\n/elsewhere/2.hea,0\n"))
    with pytest.raises(DataError, match=r"2 x the path leads out of .*; the first: row 1: .*; give a folder"):
        prepare(source, tmp_path / "store")


def test_a_dry_run_shows_what_the_store_would_contain(tmp_path, capsys):
    root = folder_of(tmp_path / "root", *map(str, range(10)))
    text = "path,patient_id,AF\n" + "".join(f"{n},p{n // 2},{n % 2}\n" for n in range(10))
    arguments = ["prepare", "table", str(root), str(tmp_path / "store"), "--table", str(table_of(tmp_path, text))]
    arguments += ["--split", "grouped", "--fractions", "train=0.6,test=0.4"]
    assert main([*arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "  train           6         3" in shown
    assert "  AF                      3 (3)  2 (2)  5 (5)        0" in shown
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(shown.partition("nothing was written")[0])


# Times


def test_times_with_a_zone_become_utc(tmp_path):
    cells = ("2020-01-31T08:30:00+02:00", "", "2020-01-31 08:30Z", "2020-01-31 23:30-01:00", "NaT")
    rows, _ = indexed(tmp_path, column("time", *cells))
    assert [row["time"] for row in rows.values()] == [
        datetime(2020, 1, 31, 6, 30), None, datetime(2020, 1, 31, 8, 30), datetime(2020, 2, 1, 0, 30), None,
    ]  # fmt: skip


def test_times_with_and_without_a_zone_are_refused_with_both_rows(tmp_path):
    expected = r"time zone \(row 3: '2020-01-01T00:00:00Z'\) and others do not \(row 2: '2020-01-01'\)"
    with pytest.raises(DataError, match=expected):
        indexed(tmp_path, column("time", "", "2020-01-01", "2020-01-01T00:00:00Z"))


def test_times_of_parquet_keep_their_zone(tmp_path):
    eight = datetime(2020, 1, 31, 8)
    times = pa.array([eight], pa.timestamp("ns", "Europe/Berlin"))
    pq.write_table(pa.table({"path": ["1"], "time": times}), tmp_path / "mine.parquet")
    root = folder_of(tmp_path / "root", "1")
    assert RecordingTable(root, tmp_path / "mine.parquet").index().table["time"].to_pylist() == [eight]  # stored as UTC


@pytest.mark.parametrize("cell", ["yesterday", "20", "0001-01-01T00:00+14:00"])
def test_what_is_no_time_is_reported(tmp_path, cell):
    with pytest.raises(DataError, match=r"row 2: time is '.*' \(1 row\); expected a time in ISO 8601.*columns="):
        indexed(tmp_path, column("time", "2020-01-01T00:00:00Z", cell))


# Age and sex


def test_ages_over_89_are_90_and_counted(tmp_path):
    rows, index = indexed(tmp_path, column("age", ">89", "> 89", "90+", "300", "89.5"))
    assert [row["age"] for row in rows.values()] == [90, 90, 90, 90, 89.5]
    assert "4 ages given as over 89 are stored as 90." in index.notes


def test_unknown_ages_are_empty_without_a_note(tmp_path):
    rows, index = indexed(tmp_path, column("age", "", "nan", "NA", "unknown", "0"))
    assert [row["age"] for row in rows.values()] == [None, None, None, None, 0]
    assert not index.notes


def test_all_odd_ages_are_reported_at_once(tmp_path):
    expected = r"row 2: age is 'old' \(2 rows\); row 4: age is '-1' \(1 row\); row 5: age is '150' \(1 row\); expected"
    with pytest.raises(DataError, match=expected):
        indexed(tmp_path, column("age", "61", "old", "old", "-1", "150"))


def test_sexes_that_are_unknown_are_counted(tmp_path):
    rows, index = indexed(tmp_path, column("sex", "U", "Other", "unknown", "", "W"))
    assert [row["sex"] for row in rows.values()] == [None, None, None, None, "F"]
    assert any(
        "4 rows give no sex" in note and "nothing: 1, other: 1, u: 1, unknown: 1" in note for note in index.notes
    )


def test_sexes_in_code_are_refused_with_what_is_accepted(tmp_path):
    text = column("sex", "0", "1", "M", "1", "x")
    expected = (
        r"row 1: sex is '0' \(1 row\); row 2: sex is '1' \(2 rows\); row 5: sex is 'x' \(1 row\); "
        r"expected M, F, .*columns=\{'sex': ''\}"
    )
    with pytest.raises(DataError, match=expected):
        indexed(tmp_path, text)
    rows, _ = indexed(tmp_path, text, columns={"sex": ""})
    assert set(rows["1"]) == {"recording_id", "path"}


def test_a_column_of_many_odd_values_is_reported_in_part(tmp_path):
    root = folder_of(tmp_path / "root", "1")
    lines = [f"1,{'x' * 90}{number}" for number in range(30)]
    with pytest.raises(DataError, match="and 10 other values; expected") as error:
        RecordingTable(root, table_of(tmp_path, "\n".join(["path,age", *lines]))).index()
    assert "x" * 41 not in str(error.value)


# Names of columns


def test_names_that_begin_with_an_underscore_are_no_labels(tmp_path):
    text = "path,_row,AF\n1,1,0\n"
    with pytest.raises(DataError, match=r"cannot be called '_row'.*rename it"):
        indexed(tmp_path, text)
    rows, _ = indexed(tmp_path, text, labels=["AF"])
    assert rows["1"] == {"recording_id": "1", "path": "1", "AF": 0}
    with pytest.raises(DataError, match="cannot be called '_row'"):
        Arrays([], labels={"_row": []})


def test_labels_that_are_columns_of_a_store_say_how_to_continue(tmp_path):
    with pytest.raises(DataError, match=r"cannot be called diagnoses.*labels=.*rename"):
        indexed(tmp_path, "path,diagnoses\n1,1\n")


def test_blanks_and_line_breaks_in_names_are_mended(tmp_path):
    text = ' path ,LBBB ,"first\ndegree ",\n1,1,0,note\n'
    source = RecordingTable(folder_of(tmp_path / "root", "1"), table_of(tmp_path, text))
    assert source.label_names == ("LBBB", "first degree")
    assert indexed(tmp_path, text, labels=["first\ndegree", " LBBB"])[0]["1"]["first degree"] == 0
    with pytest.raises(DataError, match="several columns called AF"):
        indexed(tmp_path, "path,AF,AF \n1,1,1\n")
    with pytest.raises(DataError, match="given more than once: AF"):
        indexed(tmp_path, "path,AF\n1,1\n", labels=["AF", "AF "])


def test_the_nameless_index_of_pandas_is_passed_over(tmp_path):
    table = pa.table({"path": ["1"], "AF ": [True], "__index_level_0__": [7]})
    pq.write_table(table, tmp_path / "mine.parquet")
    source = RecordingTable(folder_of(tmp_path / "root", "1"), tmp_path / "mine.parquet")
    assert source.label_names == ("AF",)
    assert source.index().table["AF"].to_pylist() == [1]


@pytest.mark.parametrize("sign", [";", "\t", ","])
def test_other_delimiters_than_commas_are_seen(tmp_path, sign):
    text = sign.join(["path", '"AF, any; kind"', "report"]) + "\n" + sign.join(["1", "1", '"a, b; c"']) + "\n"
    rows, _ = indexed(tmp_path, text)
    assert rows["1"] == {"recording_id": "1", "path": "1", "AF, any; kind": 1, "report": "a, b; c"}


def test_a_table_without_path_and_id_shows_its_header(tmp_path):
    expected = r"needs a column path or recording_id \(found: file name, AF\); give its name with columns="
    with pytest.raises(DataError, match=expected):
        indexed(tmp_path, "file name,AF\n1,1\n")


def test_labels_that_are_none_are_reported_with_rows_from_1(tmp_path):
    expected = r"row 2: label 'AF' is 'maybe' \(2 rows\); row 5: label 'AF' is '2' .*labels="
    with pytest.raises(DataError, match=expected):
        indexed(tmp_path, column("AF", "1", "maybe", "", "maybe", "2"))


# The command line


def test_lists_and_mappings_of_the_command_line():
    assert parse_names('"a, b",c', "--drop") == ["a, b", "c"]
    assert parse_names(' I , "II",,V1', "--drop") == ["I", "II", "V1"]
    assert parse_names("", "--drop") == []
    with pytest.raises(SettingsError, match="--drop: must look like"):
        parse_names('"a, b', "--drop")
    assert parse_mapping('age=,"path=file, name"') == {"age": "", "path": "file, name"}
    assert parse_mapping('"path=a,b",patient_id=MRN') == {"path": "a,b", "patient_id": "MRN"}
    for wrong in ("age", "=x", ""):
        with pytest.raises(SettingsError, match="--columns: must look like"):
            parse_mapping(wrong)
    with pytest.raises(SettingsError, match="must look like train="):
        _parse_fractions("train=0.5,test=")


def test_the_command_leaves_a_column_out(tmp_path, capsys):
    root = folder_of(tmp_path / "root", "1")
    table = table_of(tmp_path, 'path,"AF, any",sex\n1,1,0\n')
    arguments = ["prepare", "table", str(root), str(tmp_path / "store"), "--table", str(table), "--dry-run"]
    assert main(arguments) == 2
    assert "--columns sex=" in capsys.readouterr().err
    assert main([*arguments, "--columns", "sex=", "--labels", '"AF, any"']) == 0
    assert "  AF, any " in capsys.readouterr().out


# Signal files without header


@pytest.mark.parametrize("source", [RecordingTable, PhysioNet2021])
def test_signal_files_without_header_are_accounted_for(tmp_path, source):
    root = folder_of(tmp_path / "root", "a/1", "a/2", "3")
    (root / "a" / "2.hea").unlink()
    (root / "lost.dat").write_bytes(bytes(24))
    index = source(root).index()
    assert sorted(index.table["path"].to_pylist()) == ["3.hea", "a/1.hea"]
    assert {(one.path, one.reason) for one in index.excluded} == {
        ("a/2.mat", "signal file without a header"),
        ("lost.dat", "signal file without a header"),
    }


def test_signals_that_a_header_names_are_not_lost(tmp_path):
    root = folder_of(tmp_path / "root", "1")
    (root / "1.mat").rename(root / "signals.mat")
    (root / "1.hea").write_text((root / "1.hea").read_text().replace("1.mat", "signals.mat"))
    index = RecordingTable(root).index()
    assert index.excluded == []
    assert prepare(RecordingTable(root), tmp_path / "store")["recordings"]["kept"] == 1


def test_signal_files_that_are_recordings_themselves_are_taken(tmp_path):
    root = folder_of(tmp_path / "root", "1", "2")
    (root / "2.hea").unlink()
    index = RecordingTable(root, units="mV").index()
    assert index.table["path"].to_pylist() == ["1.hea", "2.mat"]
    assert index.excluded == []
