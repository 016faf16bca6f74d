"""Label tables, their files and weights: the original's where that is sane."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from ecgfm_hf.data.labels import (
    LabelTable,
    LabelTableError,
    define_labels,
    label_table,
    pos_weight,
    read_label_csv,
    read_label_def,
    write_label_def,
)
from ecgfm_hf.data.sources.physionet2021 import UNSCORED_CODES, snomed_values
from ecgfm_hf.data.splits import read_split_csv
from ecgfm_hf.fairseq import FairseqFolderError
from ecgfm_hf.fairseq.folder_reading import read_pos_weight
from ecgfm_hf.fairseq.folder_writing import write_pos_weight
from ecgfm_hf.fairseq.label_sets import PHYSIONET26, PHYSIONET_CLASSES

GOLDEN = Path(__file__).parent / "fixtures" / "splits"
SHARED = Path(os.environ.get("ECGFM_SHARED", Path(__file__).parents[2] / "shared"))
NAN = float("nan")


def _shared(*parts: str) -> Path:
    file = SHARED.joinpath(*parts)
    if not file.is_file():
        pytest.skip(f"no reference data: {file} is missing (set ECGFM_SHARED)")
    return file


def _golden_labels(case: str):
    """The case's labels of the recordings of its split, and their splits."""
    published = read_split_csv(GOLDEN / "labels_meta_split.csv", key="idx")
    table = read_label_csv(GOLDEN / case / "labels.csv")
    values = dict(zip(table.ids, table.values, strict=True))
    unknown = np.full(len(table.names), np.nan)
    ids = tuple(map(str, published))
    return LabelTable(ids, table.names, np.stack([values.get(i, unknown) for i in ids])), list(published.values())


# Against the original


def test_label_definition_of_bool_labels_is_the_originals_file(tmp_path):
    write_label_def(tmp_path / "label_def.csv", define_labels(*_golden_labels("labels_bool_missing")))
    assert (tmp_path / "label_def.csv").read_bytes() == (GOLDEN / "labels_bool_missing/label_def.csv").read_bytes()


def test_label_definition_without_positives_is_the_originals_file(tmp_path):
    case = "labels_int_all_labelled_zero_positive"
    write_label_def(tmp_path / "label_def.csv", define_labels(*_golden_labels(case)))
    assert (tmp_path / "label_def.csv").read_bytes() == (GOLDEN / case / "label_def.csv").read_bytes()
    assert "inf" in (tmp_path / "label_def.csv").read_text()


def test_label_definition_of_float_labels_differs_only_in_how_counts_are_written(tmp_path):
    write_label_def(tmp_path / "label_def.csv", define_labels(*_golden_labels("labels_float_missing")))
    with open(tmp_path / "label_def.csv") as ours, open(GOLDEN / "labels_float_missing/label_def.csv") as theirs:
        for row, expected in zip(csv.DictReader(ours), csv.DictReader(theirs), strict=True):
            for column in expected:
                if column.startswith("pos_count_"):
                    assert f"{row[column]}.0" == expected[column]
                else:
                    assert row[column] == expected[column]


@pytest.mark.parametrize("case", ["labels_bool_missing", "labels_float_missing"])
def test_pos_weight_is_the_originals_file(tmp_path, case):
    write_pos_weight(tmp_path / "pos_weight.txt", pos_weight(*_golden_labels(case)))
    assert (tmp_path / "pos_weight.txt").read_bytes() == (GOLDEN / case / "pos_weight.txt").read_bytes()
    np.testing.assert_allclose(read_pos_weight(tmp_path / "pos_weight.txt"), pos_weight(*_golden_labels(case)), 1e-6)


@pytest.mark.parametrize("case", ["labels_int_all_labelled_zero_positive", "labels_bool_missing_zero_positive_crash"])
def test_where_the_original_writes_inf_or_crashes_the_label_is_named(case):
    table, splits = _golden_labels(case)
    with pytest.raises(LabelTableError, match="no positives in train for 'D'"):
        pos_weight(table, splits)
    kept = LabelTable(table.ids, ("A", "B", "C"), table.values[:, [table.names.index(name) for name in "ABC"]])
    assert np.isfinite(pos_weight(kept, splits)).all()


def test_the_published_label_definition_of_mimic_iv_ecg_comes_back_to_the_byte(tmp_path):
    file = _shared("data", "mimic_iv_ecg", "label_def.csv")
    definition = read_label_def(file)
    write_label_def(tmp_path / "label_def.csv", definition)
    assert (tmp_path / "label_def.csv").read_bytes() == file.read_bytes()
    # and its fractions and weights are what we make of its counts (630,178 training recordings)
    known = np.zeros(630178)
    for number in range(len(definition.names)):
        values = known.copy()
        values[: definition.positives["train"][number]] = 1
        table = LabelTable(tuple(map(str, range(len(values)))), ("label",), values[:, None])
        ours = define_labels(table, ["train"] * len(values))
        assert ours.fractions["train"][0] == definition.fractions["train"][number]
        assert ours.weights["train"][0] == definition.weights["train"][number]
        if number == 1:  # a common and a rare label are enough
            break


def test_label_files_of_code_15_are_read():
    definition = read_label_def(_shared("data", "code_15", "labels", "label_def.csv"))
    assert definition.positives["all"][0] == 138528
    assert definition.weights == {}
    table = read_label_csv(_shared("data", "code_15", "labels", "labels.csv"))
    assert table.names == definition.names


# Reading


def test_one_label_in_every_way_to_write_it():
    columns = {
        "yes": [True, 1, 1.0, "1", "1.0", "True", " true ", np.True_, np.float32(1)],
        "no": [False, 0, 0.0, "0", "0.0", "False", "false", np.False_, np.int8(0)],
        "unknown": [None, NAN, "", " ", "nan", "NaN", "None", "<NA>", np.float64(NAN)],
    }
    table = label_table(range(9), columns)
    np.testing.assert_array_equal(table.values, np.tile([1, 0, NAN], (9, 1)))
    assert np.isnan(table.values).sum(axis=0).tolist() == [0, 0, 9]


def test_columns_of_pandas_are_understood():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"AF": pandas.array([True, None, False], dtype="boolean"), "SB": [1, 0, 1]})
    np.testing.assert_array_equal(label_table(frame.index, frame).values, [[1, 1], [NAN, 0], [0, 1]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("idx,A\n0,2\n", "label 'A' of recording 0 is '2', expected 0, 1"),
        ("idx,A\n0,0.5\n", "is '0.5'"),
        ("id,A\n0,1\n", r"no column idx \(found: id, A\)"),
        ("idx,A,A\n0,1,0\n", "several columns called A"),
        ("idx,A\n0,1\n0.0,0\n", "recording given more than once: 0"),
        ("idx,A\n,1\n", "1 recordings have no id"),
        ("idx,A\n0,1,0\n", "row 1: 3 cells under 2 columns"),
        ("", "no column idx"),
    ],
)
def test_a_bad_label_file_is_refused(tmp_path, text, message):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(LabelTableError, match=message):
        read_label_csv(tmp_path / "labels.csv")


def test_chosen_columns_are_read_past_an_index_and_other_facts(tmp_path):
    (tmp_path / "t.csv").write_text(",recording,age,B,A\n0,r1,63,1,0\n1,r2,50,,1\n")
    table = read_label_csv(tmp_path / "t.csv", id_column="recording", columns=["A", "B"])
    assert (table.ids, table.names) == (("r1", "r2"), ("A", "B"))
    np.testing.assert_array_equal(table.values, [[0, 1], [1, NAN]])
    with pytest.raises(LabelTableError, match="label 'age' of recording r1 is '63'"):
        read_label_csv(tmp_path / "t.csv", id_column="recording")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,pos_count_all\nA,1\n", "must have a column 'name'"),
        ("name,pos_count_all,pos_percent_all\nA,1,.5\nA,1,.5\n", "each once"),
        ("name,pos_count_all\nA,1\n", "no column 'pos_percent_all'"),
        ("name,pos_count_all,pos_percent_all\nA,1,many\n", "column pos_percent_all: could not convert"),
    ],
)
def test_a_bad_label_definition_is_refused(tmp_path, text, message):
    (tmp_path / "label_def.csv").write_text(text)
    with pytest.raises(LabelTableError, match=message):
        read_label_def(tmp_path / "label_def.csv")


@pytest.mark.parametrize("text", ["", "1,2", "[1;2]", "[]", "[a]"])
def test_a_bad_weight_file_is_refused(tmp_path, text):
    (tmp_path / "pos_weight.txt").write_text(text)
    with pytest.raises(FairseqFolderError, match="not a list of weights"):
        read_pos_weight(tmp_path / "pos_weight.txt")


# SNOMED codes


def positives(codes):
    """The columns of the classes that codes give; None where all classes are unknown."""
    values = list(snomed_values(codes).values())
    assert set(values) <= {0, 1} or set(values) == {None}
    return None if None in values else [column for column, value in enumerate(values) if value == 1]


def test_codes_become_the_scored_classes():
    pac, tachycardia = 15, 23
    assert tuple(snomed_values("284470004")) == PHYSIONET26.names
    assert positives("284470004, 427084000,55930002") == [pac, tachycardia]
    assert positives([63593006, "284470004"]) == [pac]
    assert positives("55930002") == positives(999) == []
    assert positives(None) is positives("Unknown") is positives(NAN) is None


def test_every_scored_code_has_its_class():
    pairs = [(code, column) for column, (codes, _, _) in enumerate(PHYSIONET_CLASSES) for code in codes]
    assert len(pairs) == 30
    for code, column in pairs:
        assert positives(str(code)) == [column]


def test_the_codes_are_the_challenges():
    def column(name: str) -> list[str]:
        with open(_shared("data", "cinc2021", name)) as file:
            return [row["SNOMEDCTCode"] for row in csv.DictReader(file)]

    assert set(column("dx_mapping_unscored.csv")) == UNSCORED_CODES
    scored = column("dx_mapping_scored.csv")
    assert not set(scored) & UNSCORED_CODES
    assert len(scored) == 30
    assert all(len(positives(code)) == 1 for code in scored)
    header = _shared("data", "cinc2021", "weights.csv").read_text().splitlines()[0].split(",")[1:]
    assert [positives(codes.replace("|", ",")) for codes in header] == [[column] for column in range(26)]


def test_the_headers_of_physionet_2021_give_labels():
    _shared("data", "cinc2021", "weights.csv")
    headers = sorted((SHARED / "data" / "physionet2021").rglob("*.hea"))
    lines = [next(line for line in file.read_text().splitlines() if line.startswith("# Dx")) for file in headers]
    codes = [line.removeprefix("# Dx:").strip().split(",") for line in lines]
    assert len(headers) == 40
    assert sum(found.count("55930002") for found in codes) == 5
    # Every code is scored or known as unscored; no merged pair meets here.
    for found in codes:
        assert len(positives(found)) == sum(code not in UNSCORED_CODES for code in found)


# Tables


def test_an_id_that_is_given_twice_is_refused():
    with pytest.raises(LabelTableError, match="recording given more than once: a"):
        label_table(["a", "a"], {"AF": [1, 0]})


def test_unknown_values_are_out_of_counts_and_weights():
    table = label_table(range(6), {"A": [1, 0, 0, None, 1, 1], "B": [None, 1, 0, 0, 0, 1]})
    splits = ["train"] * 4 + ["test", None]
    definition = define_labels(table, splits)
    assert definition.positives["train"].tolist() == [1, 1]
    assert definition.unknown["train"].tolist() == [1, 1]
    assert definition.positives["all"].tolist() == [2, 1]
    assert definition.fractions["train"].tolist() == [1 / 3, 1 / 3]
    np.testing.assert_allclose(pos_weight(table, splits), [2, 2])


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([0, 0, None, 1], "no positives in train for 'A'"),
        ([1, 1, None, 0], "no negatives in train for 'A'"),
        ([None, None, None, 1], "no known value in train for 'A'"),
    ],
)
def test_a_label_that_cannot_be_weighted_is_named(column, message):
    table = label_table(range(4), {"A": column, "B": [0, 1, 0, 1]})
    with pytest.raises(LabelTableError, match=message):
        pos_weight(table, ["train"] * 3 + ["test"])


def test_weights_of_a_split_that_does_not_exist_are_refused():
    table = label_table(range(2), {"A": [0, 1]})
    with pytest.raises(LabelTableError, match="no recording is in split 'train', only in dev"):
        pos_weight(table, ["dev", "dev"])
    with pytest.raises(LabelTableError, match="2 recordings, but splits for 1"):
        pos_weight(table, ["train"])
    with pytest.raises(LabelTableError, match="must not be called 'all'"):
        define_labels(table, ["all", "all"])


def test_an_undefined_fraction_is_an_empty_cell(tmp_path):
    definition = define_labels(label_table(range(2), {"A": [None, None]}), ["train", "train"])
    write_label_def(tmp_path / "label_def.csv", definition)
    assert (tmp_path / "label_def.csv").read_text().splitlines()[1] == "A,0,,,0,"
    assert np.isnan(read_label_def(tmp_path / "label_def.csv").weights["train"]).all()


def test_a_table_refuses_values_that_are_no_labels():
    with pytest.raises(LabelTableError, match="0, 1 or NaN"):
        LabelTable(("a",), ("A",), np.array([[0.5]]))
    with pytest.raises(LabelTableError, match=r"shape \(1, 1\), found: \(2, 1\)"):
        LabelTable(("a",), ("A",), np.zeros((2, 1)))


# Properties

VALUES = st_numpy.arrays(np.float64, (12, 3), elements=st.sampled_from([0.0, 1.0, NAN]))
PROPERTY = settings(max_examples=40, deadline=None)


@PROPERTY
@given(values=VALUES, shuffler=st.randoms(use_true_random=False))
def test_counts_do_not_depend_on_the_order_of_rows_and_add_up(values, shuffler):
    table = LabelTable(tuple(map(str, range(12))), ("A", "B", "C"), values)
    splits = ["train"] * 7 + ["valid"] * 3 + ["test"] * 2
    definition = define_labels(table, splits)
    order = list(range(12))
    shuffler.shuffle(order)
    moved = LabelTable(tuple(map(str, order)), table.names, values[order])
    shuffled = define_labels(moved, [splits[row] for row in order])
    for ours, other in ((definition.positives, shuffled.positives), (definition.weights, shuffled.weights)):
        for split in ours:
            np.testing.assert_array_equal(ours[split], other[split])
    by_split = [definition.positives[split] for split in ("train", "valid", "test")]
    np.testing.assert_array_equal(sum(by_split), definition.positives["all"])
    np.testing.assert_array_equal(definition.unknown["all"], np.isnan(values).sum(axis=0))


@PROPERTY
@given(values=VALUES)
def test_a_label_definition_survives_its_file(values, tmp_path_factory):
    file = tmp_path_factory.mktemp("labels") / "label_def.csv"
    table = LabelTable(tuple(map(str, range(12))), ("A, or so", 'B "q"', "C"), values)
    definition = define_labels(table, ["train"] * 8 + ["test"] * 4)
    write_label_def(file, definition)
    read = read_label_def(file)
    assert read.names == definition.names
    for kind in ("positives", "fractions", "weights"):
        ours, other = getattr(definition, kind), getattr(read, kind)
        assert ours.keys() == other.keys()
        for split in ours:
            np.testing.assert_array_equal(ours[split], other[split])


def test_the_modules_import_nothing_heavy_themselves():
    # Alone, without the package around them, which has torch.
    code = (
        "import sys, types, importlib\n"
        "for name, path in (('ecgfm_hf', sys.argv[1]), ('ecgfm_hf.data', sys.argv[1] + '/data')):\n"
        "    sys.modules[name] = types.ModuleType(name); sys.modules[name].__path__ = [path]\n"
        "importlib.import_module('ecgfm_hf.data.labels')\n"
        "assert not {'torch', 'pandas', 'transformers'} & set(sys.modules)\n"
    )
    package = Path(__file__).parents[1] / "ecgfm_hf"
    subprocess.run([sys.executable, "-c", code, str(package)], check=True, timeout=60)
