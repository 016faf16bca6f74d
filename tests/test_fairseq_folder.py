"""Processed folders of fairseq-signals: read as model inputs, written from a store, and the one from the other."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from killed_runs import damage_file

from ecgfm_hf import ECGFMFeatureExtractor
from ecgfm_hf.cli.main import main
from ecgfm_hf.data.labels import read_label_csv
from ecgfm_hf.data.model_inputs import as_model_inputs
from ecgfm_hf.data.opening import load_prepared
from ecgfm_hf.data.store import DataError, row_from_record
from ecgfm_hf.fairseq import FairseqFolder, FairseqFolderError, export_fairseq_folder
from ecgfm_hf.fairseq.manifests import (
    Manifest,
    read_segment,
    write_cmsc_manifest,
    write_manifest,
    write_mat,
)
from ecgfm_hf.feature_extraction_ecgfm import STANDARD_LEADS
from ecgfm_hf.inference import FolderSource
from ecgfm_hf.records import ECGReadError, ECGRecord, read_ecg

GOLDEN = Path(__file__).parent / "fixtures" / "splits"
SHARED = Path(os.environ.get("ECGFM_SHARED", Path(__file__).parents[2] / "shared"))
KEYS = ("org_sample_rate", "curr_sample_rate", "org_sample_size", "curr_sample_size", "feats", "idx", "mean", "std")


def _shared(*parts: str) -> Path:
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no reference data: {path} is missing (set ECGFM_SHARED)")
    return path


def items_of(folder, split="train", pairs=False, **places):
    """The items of a split of a processed folder."""
    return as_model_inputs(load_prepared(folder, split, pairs=pairs, **places), ECGFMFeatureExtractor(), pairs=pairs)


def recording(name, seconds=10, rate=500, seed=0, leads=STANDARD_LEADS, **facts):
    """A row of a store: noise of known offset and width, in 16 bits at 200 to the mV."""
    generator = np.random.default_rng(seed)
    walk = generator.normal(size=(len(leads), int(seconds * rate))).cumsum(axis=1) / 20
    record = ECGRecord(
        recording_id=name,
        path=f"{name}.hea",
        samples=np.round(200 * walk + 50).astype(np.int16),
        gain=np.full(len(leads), 200.0),
        baseline=np.full(len(leads), 10.0),
        units=("mV",) * len(leads),
        sampling_rate=rate,
        lead_names=leads,
        age=61.0,
        sex="F",
    )
    return row_from_record(record, **{"source": "made", "path": f"{name}.hea", **facts})


@pytest.fixture
def rows():
    """Five recordings by split, two labels; one recording with an unknown label, one of a single segment."""
    return {
        "train": [
            recording("a", seed=1, patient_id="p1", A=1, B=0),
            recording("b", seed=2, patient_id="p1", A=0, B=1, rate=400),
            recording("c", seed=3, patient_id="p2", A=1, B=None),
        ],
        "valid": [recording("d/d", seed=4, patient_id=None, A=0, B=0), recording("e", seed=5, seconds=7, A=1, B=1)],
    }


@pytest.fixture
def folder(tmp_path, rows):
    export_fairseq_folder(rows, tmp_path / "out")
    return tmp_path / "out"


def prepared(row):
    """What the extractor makes of a row."""
    samples = np.frombuffer(row["signal"], row["dtype"]).reshape(len(row["lead_names"]), -1)
    signal = (samples - np.array(row["baseline"])[:, None]) / np.array(row["gain"])[:, None]
    extractor = ECGFMFeatureExtractor()
    return extractor(signal, sampling_rate=row["sampling_rate"], lead_names=row["lead_names"])["input_values"]


def table_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# There and back


def test_segments_come_back_as_the_extractor_made_them_with_their_labels(folder, rows):
    expected = [
        (row, number, values)
        for row in (rows["train"][0], rows["train"][1])
        for number, values in enumerate(prepared(row))
    ]
    found = items_of(folder, "train")
    assert len(found) == len(expected) == 4
    for item, (row, number, values) in zip(found, expected, strict=True):
        assert list(item) == ["input_values", "segment", "recording_id", "patient_id", "labels"]
        assert (item["recording_id"], item["segment"]) == (row["recording_id"], number)
        assert item["input_values"].dtype == item["labels"].dtype == np.float32
        np.testing.assert_array_equal(item["input_values"], values)
        assert item["labels"].tolist() == [row["A"], row["B"]]


def test_pairs_come_back_with_their_patients_and_also_where_a_label_is_unknown(folder, rows):
    found = list(items_of(folder, "train", pairs=True))
    assert [item["recording_id"] for item in found] == ["a", "b", "c"]
    assert [item["patient_id"] for item in found] == ["p1", "p1", "p2"]
    for item, row in zip(found, rows["train"], strict=True):
        assert list(item) == ["input_values", "segment", "recording_id", "patient_id"]
        assert item["segment"] == 0
        np.testing.assert_array_equal(item["input_values"], prepared(row))
    (only,) = items_of(folder, "valid", pairs=True)
    assert (only["recording_id"], only["patient_id"]) == ("d/d", None)


@pytest.mark.parametrize("pairs", [False, True])
def test_items_are_those_of_the_store_s_own_model_inputs(folder, rows, pairs):
    datasets = pytest.importorskip("datasets")
    from ecgfm_hf.data.model_inputs import as_model_inputs

    labelled = [row for row in rows["train"] if pairs or row["B"] is not None]
    store = datasets.Dataset.from_list(labelled)
    for name in ("A", "B"):  # the type of a store's labels
        store = store.cast_column(name, datasets.ClassLabel(names=["absent", "present"]))
    expected = as_model_inputs(store, ECGFMFeatureExtractor(), pairs=pairs)
    found = items_of(folder, "train", pairs=pairs)
    assert len(found) == len(expected) > 0
    for item, other in zip(found, (expected[number] for number in range(len(expected))), strict=True):
        assert item.keys() == other.keys()
        np.testing.assert_allclose(item.pop("input_values"), other.pop("input_values"), atol=1e-6, rtol=0)
        for key in item:
            np.testing.assert_array_equal(item[key], other[key])


def test_the_report_counts_what_is_in_no_manifest(tmp_path, rows):
    report = export_fairseq_folder(rows, tmp_path / "out")
    assert report.recordings == {"train": 3, "valid": 2}
    assert report.segments == {"train": 6, "valid": 3}
    assert report.unlabelled == {"train": 1, "valid": 0}
    assert report.unpaired == {"train": 0, "valid": 1}
    assert report.label_names == ("A", "B")
    assert (report.skipped, report.warnings) == ([], ())


def test_a_folder_read_and_a_torch_loader_agree(folder):
    torch_data = pytest.importorskip("torch.utils.data")
    loader = torch_data.DataLoader(items_of(folder, "train"), batch_size=4)
    (batch,) = loader
    assert batch["input_values"].shape == (4, 12, 2500)
    assert batch["labels"].shape == (4, 2)
    assert batch["recording_id"] == ["a", "a", "b", "b"]


def test_items_are_indexed_as_in_a_list(folder):
    found = items_of(folder, "train")
    assert found[-1]["recording_id"] == "b"
    with pytest.raises(IndexError):
        found[len(found)]


# What is written


def test_segment_files_have_the_original_s_variables_and_give_the_voltages_back(folder, rows):
    for idx, row in enumerate(rows["train"]):
        content = scipy.io.loadmat(folder / "segmented" / f"{row['recording_id']}_1.mat")
        assert [key for key in content if not key.startswith("__")] == [*KEYS, "segment_i"]
        numbers = {
            key: content[key].item()
            for key in content
            if content[key].__class__ is np.ndarray and content[key].size == 1
        }
        size = row["num_samples"]
        expected = {"org_sample_rate": row["sampling_rate"], "org_sample_size": size, "curr_sample_size": 2500}
        assert numbers == expected | {"curr_sample_rate": 500, "idx": idx, "segment_i": 1}
        assert all(content[key].dtype == np.int64 for key in numbers)
        assert content["feats"].dtype == content["mean"].dtype == content["std"].dtype == np.float64
        assert content["feats"].shape == (12, 2500)
        assert content["mean"].shape == content["std"].shape == (12, 1)
        signal = np.frombuffer(row["signal"], np.int16).reshape(12, -1)
        if row["sampling_rate"] == 500:
            volts = (signal - 10.0) / 200
            np.testing.assert_allclose(content["mean"][:, 0], volts.mean(axis=1), atol=1e-6)
            np.testing.assert_allclose(content["std"][:, 0], volts.std(axis=1), rtol=1e-6)
            again = read_ecg(str(folder / "segmented" / f"{row['recording_id']}_1.mat"), units="mV")
            np.testing.assert_allclose(again.signal, volts[:, 2500:5000], atol=1e-5)


def test_tables_and_manifests_are_in_the_original_s_form(folder):
    root = f"{folder}/segmented/"
    assert (folder / "manifests" / "train.tsv").read_text() == (
        f"\t{root}\na_0.mat\t2500\na_1.mat\t2500\nb_0.mat\t2500\nb_1.mat\t2500\n"
    )
    assert (folder / "manifests" / "cmsc" / "train.tsv").read_text() == (
        f"{root}\nmat\na\t2500\t0\t0,1\nb\t2500\t0\t0,1\nc\t2500\t0\t0,1\n"
    )
    assert (folder / "meta_split.csv").read_text().splitlines()[:2] == ["idx,save_file,split", "0,a.mat,train"]
    segmented = (folder / "segmented_split.csv").read_text().splitlines()
    assert segmented[:2] == ["idx,save_file,split,path,sample_size", f"0,a.mat,train,{root}a_0.mat,2500"]
    assert len(segmented) == 1 + 9
    assert [row["idx"] for row in table_of(folder / "labels" / "meta_split_labeled.csv")] == ["0", "1", "3", "4"]
    meta = table_of(folder / "meta.csv")
    assert [row["patient_id"] for row in meta] == ["p1", "p1", "p2", "", ""]
    shown = {"save_file": "b.mat", "sample_rate": "400", "sample_size": "4000", "age": "61.0", "nan_any": "False"}
    assert {key: meta[1][key] for key in shown} == shown


def test_labels_are_counted_over_the_recordings_in_the_manifests(folder):
    labels = np.load(folder / "labels" / "y.npy")
    assert labels.dtype == np.float64
    assert labels.tolist() == [[1, 0], [0, 1], [0, 0], [0, 0], [1, 1]]
    assert table_of(folder / "labels" / "label_def.csv")[0] == {
        **{"name": "A", "pos_count_train": "1", "pos_count_valid": "1", "pos_percent_train": "0.5"},
        **{"pos_percent_valid": "0.5", "pos_weight_train": "1.0", "pos_weight_valid": "1.0"},
        **{"pos_count_all": "2", "pos_percent_all": "0.5"},
    }
    assert (folder / "labels" / "pos_weight.txt").read_text() == "[1.0,1.0]"


@pytest.mark.parametrize(
    "case", ["labels_bool_missing", "labels_float_missing", "labels_int_all_labelled_zero_positive"]
)
def test_the_label_array_is_the_original_s(tmp_path, case):
    table = read_label_csv(GOLDEN / case / "labels.csv")
    labels = dict(zip(table.ids, table.values.tolist(), strict=True))
    expected, rows = np.load(GOLDEN / case / "y.npy"), []
    for idx in range(len(expected)):
        values = [None if value != value else int(value) for value in labels.get(str(idx), [float("nan")] * 4)]
        rows.append(recording(f"r{idx}", seconds=5, seed=idx, **dict(zip(table.names, values, strict=True))))
    export_fairseq_folder({"train": rows}, tmp_path / "out")
    found = np.load(tmp_path / "out" / "labels" / "y.npy")
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype
    labelled = [int(row["idx"]) for row in table_of(tmp_path / "out" / "labels" / "meta_split_labeled.csv")]
    assert labelled == sorted(int(recording) for recording in table.ids)


def test_a_label_without_positives_gives_no_weights_and_a_note_that_names_it(tmp_path, rows):
    for row in rows["train"]:
        row["B"] = 0
    report = export_fairseq_folder(rows, tmp_path / "out")
    assert not (tmp_path / "out" / "labels" / "pos_weight.txt").exists()
    (note,) = report.warnings
    assert "no positives in train for 'B'" in note
    assert items_of(tmp_path / "out")[0]["labels"].tolist() == [1, 0]


def test_without_labels_every_recording_is_in_the_manifests(tmp_path, rows):
    for row in rows["train"]:
        del row["A"], row["B"]
    export_fairseq_folder({"train": rows["train"]}, tmp_path / "out")
    found = items_of(tmp_path / "out")
    assert len(found) == 6
    assert "labels" not in found[0]
    assert not (tmp_path / "out" / "labels").exists()


def test_rows_without_splits_are_one_split_called_all(tmp_path, rows):
    report = export_fairseq_folder(rows["train"], tmp_path / "out")
    assert report.recordings == {"all": 3}
    (definition, _) = table_of(tmp_path / "out" / "labels" / "label_def.csv")
    assert list(definition) == [
        "name",
        "pos_count_all",
        "pos_percent_all",
    ]
    assert len(items_of(tmp_path / "out", "all", pairs=True)) == 3
    assert FairseqFolder(tmp_path / "out").label_names == ("A", "B")


def test_null_labels_of_other_libraries_are_unknown_too(tmp_path, rows):
    rows["train"][2]["B"] = float("nan")
    assert export_fairseq_folder(rows, tmp_path / "out").unlabelled["train"] == 1


def test_manifests_can_point_to_where_the_folder_will_be(tmp_path, rows):
    export_fairseq_folder(rows, tmp_path / "out", root="/scratch/ecg/segmented")
    assert (tmp_path / "out" / "manifests" / "train.tsv").read_text().startswith("\t/scratch/ecg/segmented/\n")
    assert len(items_of(tmp_path / "out")) == 4  # all the same


def test_the_same_rows_give_the_same_bytes(tmp_path, rows):
    for name in ("one", "two"):
        export_fairseq_folder(rows, tmp_path / name, root="/d")
    for path in sorted((tmp_path / "one").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_ids_that_are_no_file_names_or_differ_in_case_only_keep_apart(tmp_path):
    names = ["x", "X", "../x", "x y", "", "x" * 150]
    rows = [recording(name, seconds=5, seed=number) for number, name in enumerate(names)]
    export_fairseq_folder({"train": rows}, tmp_path / "out")
    files = sorted(path.name for path in (tmp_path / "out" / "segmented").iterdir())
    assert len({name.lower() for name in files}) == len(names)
    assert [item["recording_id"] for item in items_of(tmp_path / "out")][:4] == names[:4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_dead_lead_and_a_missing_one_are_written_as_zeros(tmp_path):
    row = recording("a", leads=STANDARD_LEADS[:11])
    samples = np.frombuffer(row["signal"], np.int16).reshape(11, -1).copy()
    samples[3] = 110
    row["signal"] = samples.tobytes()
    export_fairseq_folder({"train": [row]}, tmp_path / "out", ECGFMFeatureExtractor(missing_leads="zero"))
    content = scipy.io.loadmat(tmp_path / "out" / "segmented" / "a_0.mat")
    assert not content["feats"][[3, 11]].any()
    assert content["std"][[3, 11], 0].tolist() == [0, 0]
    assert content["mean"][[3, 11], 0] == pytest.approx([0.5, 0])


def test_recordings_that_the_extractor_refuses_are_errors_or_skipped(tmp_path, rows):
    short = recording("short", seconds=3, A=0, B=0)
    lacking = recording("lacking", leads=STANDARD_LEADS[:11], A=0, B=0)
    broken = {**recording("broken", A=0, B=0), "num_samples": 7}
    rows["train"] += [short, lacking, broken]
    with pytest.raises(FairseqFolderError, match=r"recording short: .*1500 samples at 500 Hz are shorter than 5 s"):
        export_fairseq_folder(rows, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    report = export_fairseq_folder(rows, tmp_path / "out", errors="skip")
    assert [name for name, _ in report.skipped] == ["short", "lacking", "broken"]
    assert "missing lead V6" in report.skipped[1][1]
    assert len(items_of(tmp_path / "out")) == 4


def test_padding_which_a_segment_s_file_cannot_say_is_skipped(tmp_path):
    with pytest.raises(FairseqFolderError, match="cannot hold padding"):
        export_fairseq_folder(
            [recording("a", seconds=3)], tmp_path / "out", ECGFMFeatureExtractor(short_recordings="pad")
        )


def test_derived_leads_come_with_the_voltages_they_were_derived_to(tmp_path):
    row = recording("b", leads=("I", "II", *STANDARD_LEADS[6:]))
    export_fairseq_folder([row], tmp_path / "out", ECGFMFeatureExtractor(missing_leads="derive"))
    content = scipy.io.loadmat(tmp_path / "out" / "segmented" / "b_0.mat")
    volts = content["feats"] * content["std"] + content["mean"]
    np.testing.assert_allclose(volts[2], volts[1] - volts[0], atol=1e-5)


def test_another_order_of_leads_is_refused(tmp_path, rows):
    extractor = ECGFMFeatureExtractor(lead_names=["I", "II"])
    with pytest.raises(FairseqFolderError, match="delivers I, II at 500 Hz"):
        export_fairseq_folder(rows, tmp_path / "out", extractor)


def test_a_folder_in_use_is_left_alone(tmp_path, rows):
    (tmp_path / "out").mkdir()
    export_fairseq_folder(rows, tmp_path / "out")
    with pytest.raises(FileExistsError, match="is not empty"):
        export_fairseq_folder(rows, tmp_path / "out")


def test_nothing_to_export_is_an_error(tmp_path):
    with pytest.raises(FairseqFolderError, match="no recording to export"):
        export_fairseq_folder({"train": []}, tmp_path / "out")


# Manifests


@pytest.mark.parametrize(
    "name",
    [
        "../a_0.mat",
        "/etc/a_0.mat",
        "x/../../a_0.mat",
        "C:/a_0.mat",
        "..\\a_0.mat",
        "~root/a_0.mat",
        "x//a_0.mat",
        "a\0_0.mat",
    ],
)
def test_names_that_lead_out_of_the_folder_are_refused_with_their_line(tmp_path, folder, name):
    (folder / "manifests" / "train.tsv").write_text(f"\t/d/\na_0.mat\t2500\n{name}\t2500\n")
    with pytest.raises(DataError, match=r"train\.tsv, line 3: .*expected a file below"):
        items_of(folder)
    (folder / "manifests" / "cmsc" / "train.tsv").write_text(f"/d/\nmat\n{name.removesuffix('_0.mat')}\t2500\t0\t0,1\n")
    with pytest.raises(DataError, match=r"train\.tsv, line 3: .*expected a file below"):
        items_of(folder, pairs=True)


def test_links_that_lead_out_of_the_folder_are_not_followed(tmp_path, folder):
    inside = folder / "segmented" / "a_0.mat"
    shutil.move(inside, tmp_path / "elsewhere.mat")
    inside.symlink_to(tmp_path / "elsewhere.mat")
    with pytest.raises(ValueError, match=r"a_0\.mat leads out of"):
        items_of(folder)[0]


def test_a_moved_folder_s_own_segments_come_before_the_root_of_its_manifest(tmp_path, folder):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    (moved / "segmented" / "a_0.mat").unlink()
    with pytest.raises(DataError, match=r"line 2: .*moved/segmented/a_0\.mat: no such file"):
        items_of(moved)


def test_segments_that_are_elsewhere_are_found_by_the_root_in_the_manifest(tmp_path, folder):
    shutil.copytree(folder / "manifests", tmp_path / "lists")
    for place, pairs in ((tmp_path / "lists", False), (tmp_path / "lists", True), (tmp_path / "lists" / "cmsc", True)):
        found = items_of(place, pairs=pairs)
        np.testing.assert_array_equal(found[1]["input_values"], items_of(folder, pairs=pairs)[1]["input_values"])


@pytest.mark.parametrize("subfolder", [".", "segmented", "segs", "manifests/segs"])
def test_segments_are_found_where_folders_have_them(tmp_path, folder, subfolder):
    moved = tmp_path / "moved"
    shutil.copytree(folder / "manifests", moved / "manifests")
    shutil.copytree(folder / "segmented", moved / subfolder, dirs_exist_ok=True)
    manifest = moved / "manifests" / "train.tsv"
    manifest.write_text(manifest.read_text().replace("/segmented/", "/segs/"))
    assert len(items_of(moved)) == 4


def test_segments_are_found_below_a_root_that_is_given(tmp_path, folder):
    shutil.move(folder / "segmented", tmp_path / "far")
    with pytest.raises(DataError, match=r"a_0\.mat is in none of .*segmented.*root=FOLDER"):
        items_of(folder)
    assert len(items_of(folder, root=tmp_path / "far")) == 4


def test_a_manifest_of_several_sources_is_read_below_their_common_root(tmp_path, folder):
    (folder / "one").mkdir()
    shutil.move(folder / "segmented", folder / "one" / "segmented")
    text = "\t/d/\none/segmented/a_0.mat\t2500\none/segmented/b_1.mat\t2500\n"
    (folder / "manifests" / "train.tsv").write_text(text)
    found = items_of(folder)
    assert [(item["recording_id"], item["segment"]) for item in found] == [("a", 0), ("b", 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: found '', expected the segments' root"),
        ("\t/d/\na_0.mat\n", "line 2: found 'a_0.mat', expected 2 cells"),
        ("\t/d/\na_0.mat\t2500\t1\n", "expected 2 cells"),
        ("\t/d/\na_0.mat\t-5\n", "line 2: found '-5', expected a whole number"),
        ("\t/d/\na.mat\t2500\n", "expected a segment's file"),
        ("\t/d/\n" + "x" * 5000 + "_0.mat\t2500\n", "expected 2 cells"),
    ],
)
def test_damaged_manifests_are_refused_by_their_line(folder, text, message):
    (folder / "manifests" / "train.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        items_of(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/d/\n", "line 2: found ''"),
        ("/d/\nhdf5\na\t2500\t0\t0,1\n", "line 2: found 'hdf5', expected the extension mat"),
        ("/d/\nmat\na\t2500\t0,1\n", "line 3: .*expected 4 cells"),
        ("/d/\nmat\na\t2500\t0\t0,x\n", "line 3: found 'x', expected a whole number"),
    ],
)
def test_damaged_cmsc_manifests_are_refused_by_their_line(folder, text, message):
    (folder / "manifests" / "cmsc" / "train.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        items_of(folder, pairs=True)


def test_recordings_of_many_segments_give_pairs_two_by_two(tmp_path):
    export_fairseq_folder({"train": [recording("long", seconds=25, seed=1)]}, tmp_path / "out")
    found = items_of(tmp_path / "out", pairs=True)
    assert [item["segment"] for item in found] == [0, 2]


# Damaged files


def test_a_missing_segment_is_an_error_at_once_and_names_the_line(folder):
    (folder / "segmented" / "a_1.mat").unlink()
    with pytest.raises(DataError, match=r"train\.tsv, line 3: .*a_1\.mat: no such file"):
        items_of(folder)


def test_a_damaged_segment_is_an_error_when_it_is_read_and_is_named(folder):
    (folder / "segmented" / "b_0.mat").write_bytes(b"MATLAB 5.0" + bytes(200))
    found = items_of(folder)
    assert found[0]["recording_id"] == "a"
    with pytest.raises(ECGReadError, match=r"segmented/b_0\.mat: damaged MATLAB header"):
        found[2]


def test_a_damaged_segment_changes_its_recording_s_stamp_and_is_reported(folder):
    before = FolderSource([folder], ECGFMFeatureExtractor())
    stamps = before.stamps(0, len(before))
    assert [one.stamp for one in before.read(range(len(before)))] == [stamp for _, stamp in stamps]
    assert before.failed(0, "a reason").stamp == stamps[0][1]
    whole = before.read([1])[0]
    damage_file(Path(next(before.paths())), "cut short")
    after = FolderSource([folder], ECGFMFeatureExtractor())
    changed = [one != other for one, other in zip(stamps, after.stamps(0, len(after)), strict=True)]
    assert changed == [True] + [False] * (len(after) - 1)
    assert after.fingerprint() == before.fingerprint()
    first, second = after.read([0, 1])
    assert (first.segments, second.failure) == (None, None)
    assert "a_0.mat: " in first.failure
    np.testing.assert_array_equal(second.segments, whole.segments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"curr_sample_rate": np.array([[250]])}, "has 250 Hz, expected 500 Hz"),
        ({"segment_i": np.array([[1]])}, "has segment_i 1, expected 0"),
        ({"feats": np.zeros((12, 100))}, "has 100 samples, expected 2500"),
        ({"feats": np.zeros((8, 2500))}, r"found feats of shape \(8, 2500\)"),
        ({"idx": np.array([[99]])}, "has idx 99, expected 0"),
        ({"idx": np.array([[0.5]])}, "found idx 0.5, expected a whole number"),
        ({"std": None}, "no std, so it was not standardised"),
    ],
)
def test_a_segment_that_contradicts_its_folder_is_refused(folder, change, message):
    path = folder / "segmented" / "a_0.mat"
    content = {key: value for key, value in scipy.io.loadmat(path).items() if not key.startswith("__")}
    write_mat(path, {key: value for key, value in (content | change).items() if value is not None})
    with pytest.raises(ECGReadError, match=rf"a_0\.mat.*{message}"):
        items_of(folder)[0]


def test_files_as_scipy_writes_them_are_read_compressed_or_not(tmp_path):
    feats = np.random.default_rng(0).normal(size=(12, 50))
    content = {"feats": feats, "curr_sample_rate": 500, "mean": np.zeros((12, 1)), "std": np.ones((12, 1)), "idx": 7}
    for compressed in (False, True):
        scipy.io.savemat(tmp_path / "a_0.mat", content | {"segment_i": 3, "patient_id": 41}, do_compression=compressed)
        segment = read_segment(str(tmp_path / "a_0.mat"))
        assert (segment.idx, segment.number, segment.patient_id, segment.sampling_rate) == (7, 3, "41", 500)
        np.testing.assert_array_equal(segment.values, feats.astype(np.float32))


def test_every_truncation_of_a_segment_is_refused(tmp_path):
    variables = {name: np.zeros((12, 1)) for name in ("mean", "std")} | {
        "feats": np.ones((12, 3)),
        "idx": np.array([[1]]),
    }
    write_mat(tmp_path / "a_0.mat", variables | {"curr_sample_rate": np.array([[500]])})
    whole = (tmp_path / "a_0.mat").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "a_0.mat").write_bytes(whole[:size])
        with pytest.raises(ECGReadError, match=r"a_0\.mat"):
            read_segment(str(tmp_path / "a_0.mat"))


# Labels


def test_labels_are_found_by_the_numbers_in_the_files_where_no_table_has_them(tmp_path, folder):
    for table in (*folder.glob("*.csv"), *(folder / "labels").glob("meta*.csv")):
        table.unlink()
    found = items_of(folder / "manifests", labels=folder / "labels" / "y.npy")
    assert [item["labels"].tolist() for item in found] == [[1, 0], [1, 0], [0, 1], [0, 1]]
    write_mat(folder / "segmented" / "b_0.mat", _content(folder / "segmented" / "b_0.mat") | {"idx": np.array([[99]])})
    with pytest.raises(DataError, match=r"train\.tsv, line 4: idx is 99, but y.npy has rows 0 to 4"):
        items_of(folder)


def test_patients_are_read_from_the_files_where_no_table_has_them(folder):
    (folder / "meta.csv").unlink()
    for name in ("a_0", "b_0"):
        path = folder / "segmented" / f"{name}.mat"
        write_mat(path, _content(path) | {"patient_id": np.array([[41]])})
    assert [item["patient_id"] for item in items_of(folder)] == ["41"] * 4


def test_unknown_patients_are_reported_since_no_check_finds_them_in_two_splits(folder, caplog):
    load_prepared(folder, "train")
    assert not caplog.messages
    load_prepared(folder)
    assert "valid: no patient is known" in caplog.text


def test_lines_of_one_recording_that_are_apart_are_one_recording(folder):
    (folder / "manifests" / "train.tsv").write_text("\t/d/\na_1.mat\t2500\nb_0.mat\t2500\na_0.mat\t2500\n")
    assert [(item["recording_id"], item["segment"]) for item in items_of(folder)] == [("a", 1), ("a", 0), ("b", 0)]


def test_one_number_for_two_recordings_of_a_name_is_refused(folder):
    with open(folder / "meta.csv", "a") as file:
        file.write("9,a.mat,other" + "," * 20 + "\n")
    with pytest.raises(DataError, match=r"meta.csv"):
        items_of(folder)


def _content(path):
    return {key: value for key, value in scipy.io.loadmat(path).items() if not key.startswith("__")}


def test_recordings_that_were_not_labelled_have_unknown_labels_not_zeros(folder):
    text = (folder / "manifests" / "train.tsv").read_text()
    (folder / "manifests" / "train.tsv").write_text(text + "c_0.mat\t2500\n")
    labels = items_of(folder)[4]["labels"]
    assert np.isnan(labels).all()
    assert labels.shape == (2,)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("y.npy", b"nonsense", "is not an array of labels"),
        ("label_def.csv", b"name,pos_count_all,pos_percent_all\nA,1,0.5\n", "y.npy has 2 labels, label_def.csv 1"),
        ("pos_weight.txt", b"[1.0]", "pos_weight.txt 1"),
        ("pos_weight.txt", b"nonsense", "is not a list of weights"),
    ],
)
def test_labels_that_contradict_one_another_are_refused(folder, file, content, message):
    (folder / "labels" / file).write_bytes(content)
    with pytest.raises(FairseqFolderError, match=message):
        FairseqFolder(folder)


def test_a_pickle_in_place_of_labels_is_not_opened(folder):
    np.save(folder / "labels" / "y.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(FairseqFolderError, match="is not an array of labels"):
        FairseqFolder(folder)


def test_the_folder_states_splits_labels_and_weights(folder):
    found = FairseqFolder(folder)
    assert (found.splits, found.label_names, found.pos_weight.tolist()) == (("train", "valid"), ("A", "B"), [1, 1])
    with pytest.raises(FairseqFolderError, match=r"test\.tsv: no such manifest"):
        found.manifest("test")
    with pytest.raises(FairseqFolderError, match="cannot be the name of a split"):
        found.manifest("../train")
    with pytest.raises(FairseqFolderError, match="no such folder"):
        FairseqFolder(folder / "gone")


# The command


def run(*arguments):
    return main(["export-fairseq", *map(str, arguments)])


@pytest.fixture
def opened(monkeypatch, rows):
    """Has the command find these rows in place of a store."""
    from ecgfm_hf.data import opening

    monkeypatch.setattr(opening, "load_prepared", lambda path, streaming: rows)


def test_the_command_exports_and_accounts(tmp_path, capsys, opened, rows):
    assert run("store", tmp_path / "out") == 0
    printed = capsys.readouterr()
    for text in ("train                3           6           1           0", "labels: A, B", str(tmp_path / "out")):
        assert text in printed.out
    rows["train"].append(recording("lacking", leads=STANDARD_LEADS[:11], A=0, B=0))
    assert run("store", tmp_path / "two") == 1
    printed = capsys.readouterr()
    assert "skipped 1: missing lead V6" in printed.out
    assert "skipped lacking: lacking: missing lead V6" in printed.err
    assert run("store", tmp_path / "three", "--missing-leads", "zero") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["gone", "out"], "gone has no report.json"), (["gone", "out", "--model", "here"], "has no preprocessor_config")],
)
def test_the_command_s_usage_errors(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# The original's own files


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_the_original_s_manifests_are_written_as_they_were_read(tmp_path, split):
    folder = _shared("golden", "splits", "labels_bool_missing", "manifests")
    plain, cmsc = (
        [row for batch in Manifest(file).batches() for row in batch.to_pylist()]
        for file in (folder / f"{split}.tsv", folder / "cmsc" / f"{split}.tsv")
    )
    segments = [(f"{row['name']}_{number}.mat", row["samples"]) for row in plain for number in row["segments"]]
    write_manifest(tmp_path / "plain", "/d/seg", segments)
    write_cmsc_manifest(tmp_path / "cmsc", "/d/seg", [(row["name"], row["samples"], row["segments"]) for row in cmsc])
    assert (tmp_path / "plain").read_bytes() == (folder / f"{split}.tsv").read_bytes()
    assert (tmp_path / "cmsc").read_bytes() == (folder / "cmsc" / f"{split}.tsv").read_bytes()


def test_code_15_is_exported_as_the_original_exported_it(tmp_path):
    code_15 = _shared("data", "code_15")
    meta = {row["save_file"]: row for row in table_of(code_15 / "meta.csv")}
    labels = read_label_csv(code_15 / "labels" / "labels.csv")
    rows = []
    for file, facts in sorted(meta.items(), key=lambda item: int(item[1]["idx"])):
        known = dict(zip(labels.names, labels.values[labels.ids.index(facts["idx"])].astype(int).tolist(), strict=True))
        record = read_ecg(str(code_15 / "org" / file), units="mV")
        rows.append(row_from_record(record, path=file, patient_id=facts["patient_id"], **known))
    export_fairseq_folder(rows, tmp_path / "out")
    originals = sorted((code_15 / "segmented").iterdir())
    assert [path.name for path in originals] == sorted(path.name for path in (tmp_path / "out" / "segmented").iterdir())
    for path in originals:
        expected, found = scipy.io.loadmat(path), scipy.io.loadmat(tmp_path / "out" / "segmented" / path.name)
        assert list(found) == list(expected)
        for key in (key for key in expected if not key.startswith("__")):
            assert (found[key].dtype, found[key].shape) == (expected[key].dtype, expected[key].shape)
            np.testing.assert_allclose(found[key], expected[key], atol=1e-6, rtol=0)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "labels" / "y.npy"), np.load(code_15 / "labels" / "y.npy"))


def test_the_original_s_segments_are_read_as_they_are(tmp_path):
    code_15 = _shared("data", "code_15")
    segments = table_of(code_15 / "segmented.csv")
    (tmp_path / "manifests").mkdir()
    write_manifest(
        tmp_path / "manifests" / "train.tsv", "/x", [(row["path"], int(row["sample_size"])) for row in segments]
    )
    found = items_of(tmp_path, root=code_15 / "segmented", labels=code_15 / "labels")
    assert len(found) == len(segments) == 14
    for item, row in zip(found, segments, strict=True):
        expected = scipy.io.loadmat(code_15 / "segmented" / row["path"])
        np.testing.assert_array_equal(item["input_values"], expected["feats"].astype(np.float32))
        np.testing.assert_array_equal(item["labels"], np.load(code_15 / "labels" / "y.npy")[expected["idx"].item()])
