"""`ecgfm label`: tables in, tables out."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from ecgfm_hf.cli.main import main
from ecgfm_hf.data import DataError
from ecgfm_hf.data.labels import read_label_csv
from ecgfm_hf.data.sources.table import RecordingTable
from ecgfm_hf.labeler import MIMIC17_LABELS, Labeler

REPORTS = [
    ("001", "Sinus tachycardia with PVCs; unheard of", "train"),
    ("002", 'Possible inferior infarct, "old" with RBBB', "train"),
    ("003", "", "valid"),
    ("004", "Atrial fibrillation\nUnheard of", "valid"),
    ("001", "Sinus tachycardia with PVCs; unheard of", "train"),
]


@pytest.fixture
def reports(tmp_path):
    path = tmp_path / "reports.csv"
    with open(path, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("id", "text", "split"), *REPORTS])
    return path


def read(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def label(*arguments):
    return main(["label", *map(str, arguments)])


def test_columns_are_kept_and_a_column_a_label_is_added(reports, tmp_path, capsys):
    assert label(reports, tmp_path / "out.csv") == 0
    rows, labeler = read(tmp_path / "out.csv"), Labeler.from_preset("mimic17")
    assert list(rows[0]) == ["id", "text", "split", *MIMIC17_LABELS, "status"]
    assert [row["status"] for row in rows] == ["labelled", "labelled", "empty", "labelled", "labelled"]
    assert [(row["id"], row["text"], row["split"]) for row in rows] == REPORTS
    assert [[int(row[name]) for name in MIMIC17_LABELS] for row in rows] == [labeler.row(r[1]) for r in REPORTS]
    summary = capsys.readouterr().out.split("\n")
    assert any(line.split()[-2:] == ["2", "40.00%"] for line in summary if line.startswith("Sinus rhythm"))
    assert any(line.split()[-2:] == ["1", "20.00%"] for line in summary if line.startswith("no label"))
    assert any(line.split() == ["status:", "empty", "1", "20.00%"] for line in summary)
    assert "5 reports (mimic17)" in "".join(summary)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "reports.csv"]


def test_parquet_keeps_types_and_agrees_with_csv(reports, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"id": arrow.array([1, 2, 3, None], arrow.int32()), "text": ["RBBB", None, "PVCs", ""]})
    parquet.write_table(table, tmp_path / "in.parquet")
    assert label(tmp_path / "in.parquet", tmp_path / "out.parquet", "--num-proc", 2) == 0
    found = parquet.read_table(tmp_path / "out.parquet")
    assert found.schema.field("id").type == arrow.int32()
    assert found.schema.field("Infarction").type == arrow.int8()
    assert found.column("id").to_pylist() == [1, 2, 3, None]
    assert found.column("Right bundle branch block").to_pylist() == [1, 0, 0, 0]
    assert label(reports, tmp_path / "a.parquet", "--soft") == 0
    assert label(reports, tmp_path / "b.csv", "--soft") == 0
    soft = parquet.read_table(tmp_path / "a.parquet")
    assert soft.column("id").to_pylist() == ["001", "002", "003", "004", "001"]
    assert soft.column("Infarction").to_pylist() == [float(row["Infarction"]) for row in read(tmp_path / "b.csv")]
    assert soft.column("Infarction").to_pylist() == pytest.approx([0, 0.65, 0, 0, 0])


def test_several_processes_change_nothing(tmp_path):
    with open(tmp_path / "in.csv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["text"], *([f"{REPORTS[i % 5][1]}; line {i % 700}"] for i in range(5000))])
    for number in (1, 2):
        out, unmatched = tmp_path / f"{number}.csv", tmp_path / f"unmatched{number}.csv"
        assert label(tmp_path / "in.csv", out, "--num-proc", number, "--unmatched", unmatched) == 0
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()
    assert (tmp_path / "unmatched1.csv").read_bytes() == (tmp_path / "unmatched2.csv").read_bytes()


def test_lines_of_machine_reports_are_joined(tmp_path):
    (tmp_path / "in.csv").write_text(
        "report_0,report_1,report_2\nAtrial fibrillation,,aberrantly conducted complexes\n"
    )
    assert label(tmp_path / "in.csv", tmp_path / "out.csv", "--text-column", "report_*") == 0
    assert read(tmp_path / "out.csv")[0]["Atrial fibrillation"] == "1"


def test_only_numbered_lines_are_joined_and_in_the_order_of_their_numbers(tmp_path):
    (tmp_path / "in.csv").write_text("report_10,report_note,report_2,report_\nblock,LBBB,2nd degree A-V,infarct\n")
    own = {"labels": ["Order"], "entities": {"Order": []}, "phrases": {"Order": ["2nd degree atrioventricular; block"]}}
    own |= {"labels": ["Order", "LBBB"], "entities": {"Order": [], "LBBB": []}}
    own["phrases"]["LBBB"] = ["left bundle branch block", "infarct"]
    (tmp_path / "own.json").write_text(json.dumps(own))
    options = ["--text-column", "report_*", "--definition", tmp_path / "own.json"]
    assert label(tmp_path / "in.csv", tmp_path / "out.csv", *options) == 0
    row = read(tmp_path / "out.csv")[0]
    assert (row["Order"], row["LBBB"]) == ("1", "0")


def test_blank_lines_before_the_header_are_skipped(tmp_path):
    (tmp_path / "in.csv").write_text("\n  \n\nid,text\n\n1,RBBB\n")
    assert label(tmp_path / "in.csv", tmp_path / "out.csv") == 0
    assert [(row["id"], row["Right bundle branch block"]) for row in read(tmp_path / "out.csv")] == [("1", "1")]


def test_parquet_bytes_are_text_and_other_types_are_refused_unless_empty(tmp_path, capsys):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def run(columns, *extra, out="out.parquet"):
        parquet.write_table(arrow.table(columns), tmp_path / "in.parquet")
        return label(tmp_path / "in.parquet", tmp_path / out, *extra)

    for kind in (arrow.binary(), arrow.large_binary(), arrow.large_string()):
        column = arrow.array([b"RBBB", None, "Bréf RBBB".encode()]).cast(kind)
        assert run({"text": column}) == 0
        found = parquet.read_table(tmp_path / "out.parquet")
        assert found.column("text").equals(arrow.chunked_array([column]))
        assert found.column("Right bundle branch block").to_pylist() == [1, 0, 1]
    assert run({"text": [b"RBBB"]}, out="out.csv") == 0
    assert read(tmp_path / "out.csv")[0]["text"] == "RBBB"
    assert run({"text": arrow.array(["RBBB"]).dictionary_encode()}) == 0

    assert run({"text": [b"RBBB"] * 20_001 + [b"\xff"]}) == 2
    assert "in.parquet: row 20002: the column 'text' is no UTF-8" in capsys.readouterr().err
    for values, kind in (([1, 2], "int64"), ([None, 0.5], "double"), ([["RBBB"]], "list<")):
        assert run({"text": values}) == 2
        assert f"the column 'text' must be text, found: {kind}" in capsys.readouterr().err
    lines = {"report_0": ["RBBB", "PVCs"], "report_1": arrow.array([None, None], arrow.float64())}
    lines |= {"report_2": arrow.nulls(2), "report_3": arrow.array([float("nan")] * 2)}
    assert run(lines, "--text-column", "report_*") == 0
    assert run({**lines, "report_4": [None, 1.0]}, "--text-column", "report_*") == 2


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_output_that_cannot_be_written_is_named_as_it_was_given(reports, tmp_path, capsys, suffix):
    pytest.importorskip("pyarrow")
    assert label(reports, tmp_path / f"{'x' * (254 - len(suffix))}.{suffix}") == 0  # the longest name
    capsys.readouterr()
    out = Path(f"/proc/out.{suffix}")
    assert label(reports, out) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"ecgfm: {out}: cannot be written: ")
    assert "partial" not in message
    assert label(reports, tmp_path / "folder.csv" / "out.csv") == 2
    (tmp_path / "folder.csv").mkdir()
    assert label(reports, tmp_path / "folder.csv") == 2
    assert "folder.csv: is a folder" in capsys.readouterr().err


def test_threshold_and_presets_change_labels(reports, tmp_path):
    assert label(reports, tmp_path / "out.csv", "--threshold", 0.7) == 0
    assert [row["Infarction"] for row in read(tmp_path / "out.csv")] == ["0"] * 5
    assert label(reports, tmp_path / "out.csv", "--preset", "mimic17-clinical") == 0
    assert [row["Accessory pathway conduction"] for row in read(tmp_path / "out.csv")] == ["0"] * 5


def test_own_definitions_and_the_original_tables_are_used(reports, tmp_path):
    own = {"labels": ["Oddity"], "entities": {"Oddity": []}, "phrases": {"Oddity": ["unheard of"]}}
    (tmp_path / "own.json").write_text(json.dumps(own))
    assert label(reports, tmp_path / "out.csv", "--definition", tmp_path / "own.json") == 0
    assert [row["Oddity"] for row in read(tmp_path / "out.csv")] == ["1", "0", "0", "1", "1"]
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "entity_tem.json").write_text(json.dumps([{"name": name} for name in MIMIC17_LABELS]))
    (folder / "entity_pat.json").write_text(json.dumps([{"pattern": "infarct", "entities": ["Infarction"]}]))
    assert label(reports, tmp_path / "out.csv", "--original", folder) == 0
    assert [row["Infarction"] for row in read(tmp_path / "out.csv")] == ["0", "1", "0", "0", "0"]


def test_unmatched_explanations_and_counts_are_written(reports, tmp_path):
    unmatched, page, counts = tmp_path / "unmatched.csv", tmp_path / "page.html", tmp_path / "label_def.csv"
    extra = ["--unmatched", unmatched, "--explain-html", page, "--label-def", counts, "--split-column", "split"]
    assert label(reports, tmp_path / "out.csv", *extra) == 0
    assert read(unmatched)[0] == {"text": "unheard of", "count": "3"}
    assert page.read_text().count("Sinus tachycardia with PVCs") == 0  # In marked pieces,
    assert page.read_text().count('<mark class="label">Sinus tachycardia</mark>') == 1  # and repeated reports once.
    row = next(row for row in read(counts) if row["name"] == "Sinus rhythm")
    assert (row["pos_count_train"], row["pos_count_valid"], row["pos_weight_train"]) == ("2", "0", "0.5000000000000001")
    # The empty report is unknown, not a negative.
    assert next(row for row in read(counts) if row["name"] == "Atrial fibrillation")["pos_percent_valid"] == "1.0"


@pytest.mark.parametrize(
    ("content", "extra", "message"),
    [
        ("id,note\n1,x\n", [], "has no column 'text'; columns: id, note"),
        ("text,Infarction\nx,1\n", [], "has a column 'Infarction' already"),
        ("text,status\nx,1\n", [], "has a column 'status' already; rename it"),
        ("text,id\nx,1,2\n", [], "line 2: has 3 fields, the header has 2"),
        ("text,text\nx,y\n", [], "the column 'text' occurs twice"),
        ("", [], "is empty"),
        ("text\nx\n", ["--threshold", "2"], "keep must be"),
        ("text\nx\n", ["--num-proc", "0"], "Invalid value for '--num-proc'"),
        ("text\nx\n", ["--split-column", "fold", "--label-def", "def.csv"], "has no column 'fold'"),
        ("text\nx\n", ["--split-column", "text"], "--split-column is for --label-def, which is not given"),
        ("text\nx\n", ["--label-def", "/"], "/ contains an input"),
        ("text\nx\n", ["--unmatched", "/proc/sys/kernel/version"], "version: cannot be written there"),
        ("text\nx\n", ["--explain-html", "/"], "/ contains an input"),
        ("report_x,report\nx,y\n", ["--text-column", "report_*"], "has no column 'report_*'"),
        ("text\nx\n", ["--definition", "nowhere.json"], "nowhere.json: cannot be read"),
        ("text\nx\n", ["--original", "nowhere"], "entity_tem.json: the file is missing"),
    ],
)
def test_a_mistake_is_named_and_leaves_an_earlier_output_alone(tmp_path, capsys, content, extra, message):
    (tmp_path / "in.csv").write_text(content)
    (tmp_path / "out.csv").write_text("earlier")
    assert label(tmp_path / "in.csv", tmp_path / "out.csv", "--overwrite", *extra) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "out.csv").read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv"]


def test_outputs_never_overwrite_the_reports_or_one_another(reports, tmp_path, capsys):
    before = reports.read_bytes()
    assert label(reports, reports) == 2
    assert label(reports, tmp_path / "out.csv", "--unmatched", tmp_path / "out.csv") == 2
    assert label(reports, tmp_path / "missing" / "out.csv") == 2
    assert label(reports, tmp_path / "out.txt") == 2
    assert label(tmp_path / "none.csv", tmp_path / "out.csv") == 2
    errors = capsys.readouterr().err
    for message in ("is an input", "are the same file", "there is no folder", "must end with"):
        assert message in errors
    assert reports.read_bytes() == before


def test_damage_in_the_middle_of_a_table_leaves_no_half_output(tmp_path, capsys):
    (tmp_path / "in.csv").write_bytes(b"text,id\n" + b"RBBB,1\n" * 30000 + b"\xff\xfe,1\n")
    assert label(tmp_path / "in.csv", tmp_path / "out.csv") == 2
    assert "cannot be read as CSV in UTF-8" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_long_and_strange_reports_pass_through(tmp_path):
    strange = ["x" * 200_000 + " RBBB", "\ufeff心電図 RBBB", "a\x00RBBB\x00", "'\"RBBB"]
    with open(tmp_path / "in.csv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["text"], *([text] for text in strange), [""]])
    assert label(tmp_path / "in.csv", tmp_path / "out.csv") == 0
    rows = read(tmp_path / "out.csv")
    assert [row["Right bundle branch block"] for row in rows] == ["1", "1", "1", "1", "0"]


def test_what_could_not_be_labelled_is_unknown_to_those_who_read_the_labels(tmp_path):
    texts = {"a": "RBBB", "b": "flurble", "c": "", "d": "синусовый ритм", "e": "Normal ECG"}
    rows = [("recording_id", "text", "path"), *((name, text, f"{name}.hea") for name, text in texts.items())]
    with open(tmp_path / "in.csv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    assert label(tmp_path / "in.csv", tmp_path / "out.csv", "--unmatched", tmp_path / "gaps.csv") == 0
    found = [row["status"] for row in read(tmp_path / "out.csv")]
    assert found == ["labelled", "no match", "empty", "unreadable", "labelled"]
    assert {row["text"] for row in read(tmp_path / "gaps.csv")} == {"flurble", "синусовый ритм"}

    table = read_label_csv(tmp_path / "out.csv", "recording_id", MIMIC17_LABELS)
    column = MIMIC17_LABELS.index("Right bundle branch block")
    assert np.array_equal(table.values[:, column], [1, np.nan, np.nan, np.nan, 0], equal_nan=True)
    labels = {"labels": ["Right bundle branch block"]}
    for unlabelled, expected in (("unknown", [1, None, None, None, 0]), ("negative", [1, 0, 0, 0, 0])):
        source = RecordingTable(tmp_path, tmp_path / "out.csv", **labels, unlabelled=unlabelled)
        assert source.index().table["Right bundle branch block"].to_pylist() == expected
    default = RecordingTable(tmp_path, tmp_path / "out.csv", columns={"report": "text"})
    assert default.label_names == MIMIC17_LABELS

    (tmp_path / "other.csv").write_text("recording_id,path,status\na,a.hea,1\n")
    with pytest.raises(DataError, match=r"column status: found '1', expected labelled, no match.*labels="):
        RecordingTable(tmp_path, tmp_path / "other.csv").index()
    assert RecordingTable(tmp_path, tmp_path / "other.csv", labels=["status"]).index().table["status"].to_pylist() == [
        1
    ]
