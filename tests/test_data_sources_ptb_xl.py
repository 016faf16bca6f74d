"""PTB-XL: statements become labels, folds become a split."""

import pytest
from wfdb_files import random_samples, write_record

from ecgfm_hf.cli.main import main
from ecgfm_hf.data import PTBXL, DataError, load_prepared, load_ptb_xl

STATEMENTS = """\
,description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass
NDT,non-diagnostic T,1.0,1.0,,STTC,STTC
IMI,"infarction, inferior",1.0,,,MI,IMI
NORM,normal,1.0,,,NORM,NORM
LVOLT,low voltage,,1.0,,,
SR,sinus rhythm,,,1.0,,
"""
ROWS = [
    # statements, sex, age, fold
    ("{'NORM': 100.0, 'SR': 0.0}", "0", "56.0", "1"),
    ("{'IMI': 15.0, 'NDT': 0.0, 'SR': 0.0}", "1", "300.0", "8"),
    ("{'LVOLT': 0.0}", "", "", "9"),
    ("{'NORM': 80.0}", "1.0", "89.0", "10"),
]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "ptb-xl"
    lines = ["ecg_id,patient_id,age,sex,recording_date,report,scp_codes,strat_fold,filename_lr,filename_hr"]
    for number, (codes, sex, age, fold) in enumerate(ROWS, start=1):
        for kind, hertz in (("lr", 100), ("hr", 500)):
            (folder / f"records{hertz}").mkdir(parents=True, exist_ok=True)
            samples = random_samples(samples=5 * hertz)
            write_record(folder / f"records{hertz}", samples, name=f"{number}_{kind}", rate=str(hertz))
        paths = f"records100/{number}_lr,records500/{number}_hr"
        date = f"2000-01-0{number} 10:00:00"
        lines.append(f'{number},{number}.0,{age},{sex},{date},"sinus, fast","{codes}",{fold},{paths}')
    (folder / "ptbxl_database.csv").write_text("\n".join(lines) + "\n")
    (folder / "scp_statements.csv").write_text(STATEMENTS)
    return folder


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        # Recording 3 has no diagnostic statement, and 3 and 4 have no rhythm.
        ("superclass", {"NORM": [1, 0, None, 1], "MI": [0, 1, None, 0], "STTC": [0, 1, None, 0]}),
        ("subclass", {"STTC": [0, 1, None, 0], "IMI": [0, 1, None, 0], "NORM": [1, 0, None, 1]}),
        ("diagnostic", {"NDT": [0, 1, None, 0], "IMI": [0, 1, None, 0], "NORM": [1, 0, None, 1]}),
        ("form", {"NDT": [None, 1, 0, None], "LVOLT": [None, 0, 1, None]}),
        ("rhythm", {"SR": [1, 1, None, None]}),
        (
            "all",
            {"IMI": [0, 1, 0, 0], "LVOLT": [0, 0, 1, 0], "NDT": [0, 1, 0, 0], "NORM": [1, 0, 0, 1], "SR": [1, 1, 0, 0]},
        ),
    ],
)
def test_statements_become_labels(root, statements, expected):
    source = PTBXL(root, statements=statements)
    index = source.index()
    assert source.label_names == tuple(expected)
    assert {name: index.table[name].to_pylist() for name in expected} == expected


def test_columns_of_the_table_have_their_meaning(root):
    index = PTBXL(root).index()
    assert index.table["recording_id"].to_pylist() == ["1", "2", "3", "4"]
    assert index.table["patient_id"].to_pylist() == ["1", "2", "3", "4"]
    assert index.table["sex"].to_pylist() == ["M", "F", None, "F"]
    assert index.table["age"].to_pylist() == [56, 90, None, 89]
    assert index.table["report"][0].as_py() == "sinus, fast"
    assert index.notes == ["1 ages given as over 89 are stored as 90."]


def test_a_likelihood_leaves_out_less_likely_statements(root):
    table = PTBXL(root, likelihood=50).index().table
    assert table["NORM"].to_pylist() == [1, 0, None, 1]
    assert table["MI"].to_pylist() == [0, 0, None, 0]


def test_the_published_folds_are_a_split(root, tmp_path, capsys):
    store = tmp_path / "store"
    assert main(["prepare", "ptb_xl", str(root), str(store), "--split", "published", "--sampling-rate", "100"]) == 0
    found = load_prepared(store)
    ids = {name: found[name]["recording_id"][:] for name in found}
    assert ids == {"train": ["1", "2"], "valid": ["3"], "test": ["4"]}
    assert found["train"][0]["sampling_rate"] == 100
    loaded = load_ptb_xl(root, tmp_path / "other", statements="rhythm", progress=False)
    assert loaded["train"]["SR"][:] == [1, 1]
    assert loaded["train"][0]["sampling_rate"] == 500
    assert main(["prepare", "table", str(root), str(tmp_path / "x"), "--split", "published"]) == 2
    assert "has no published split" in capsys.readouterr().err


def test_what_is_missing_or_wrong_is_named(root):
    (root / "records500" / "2_hr.hea").unlink()
    index = PTBXL(root).index()
    assert [(one.recording_id, one.reason) for one in index.excluded] == [("2", "the recording is not in the folder")]
    (root / "scp_statements.csv").unlink()
    assert PTBXL(root, statements="all").label_names == ("IMI", "LVOLT", "NDT", "NORM", "SR")
    with pytest.raises(DataError, match=r"has no scp_statements\.csv, which says which statements are diagnostic"):
        PTBXL(root)
    with pytest.raises(DataError, match="100 and 500 Hz, found: sampling_rate=250"):
        PTBXL(root, sampling_rate=250)
    table = root / "ptbxl_database.csv"
    table.write_text(table.read_text().replace("{'LVOLT': 0.0}", "LVOLT"))
    with pytest.raises(DataError, match=r"row 3: scp_codes is 'LVOLT', expected statements such as"):
        PTBXL(root, statements="all").index()
