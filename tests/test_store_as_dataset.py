"""A store is an ordinary dataset of 🤗 datasets: what users do with one works, and labels stay labels."""

import json
import os
import shutil
import signal
import time
from datetime import datetime

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Value
from hub_cases import make_classifier, mock_hub

from ecgfm_hf import ECGClassificationPipeline, ECGFMFeatureExtractor
from ecgfm_hf.data import DataError, as_model_inputs, load_arrays, load_prepared, record_from_row
from ecgfm_hf.data.store import default_labels
from ecgfm_hf.data.store_builder import _row_groups
from ecgfm_hf.inference import embed
from ecgfm_hf.utils import integrity

LABELS = ("AF", "PVC")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)
    recordings = [
        {
            "signal": rng.standard_normal((12, 2600)),
            "sampling_rate": 500,
            "lead_names": ECGFMFeatureExtractor().lead_names,
            "units": "mV",
            "recording_id": f"r{number}",
            "patient_id": f"p{number}",
            "time": datetime(2020, 1, number + 1, 8, 30),
        }
        for number in range(10)
    ]
    labels = {"AF": [0, 1] * 5, "PVC": [1, 0, None, 0, 1, 1, 0, 0, 1, 0]}
    folder = tmp_path_factory.mktemp("store") / "store"
    fractions = {"train": 0.8, "valid": 0.2}
    load_arrays(recordings, folder, labels, split="grouped", fractions=fractions, progress=False)
    return folder


@pytest.fixture(scope="module")
def rows(store):
    return load_prepared(store, "train")


def test_features_of_a_store_mark_its_labels(store, rows):
    assert rows.features["AF"] == ClassLabel(names=["absent", "present"])
    by_path = datasets.load_dataset("parquet", data_files=str(store / "data" / "train-*.parquet"))["train"]
    by_folder = datasets.load_dataset(str(store), split="train")
    streamed = datasets.load_dataset(str(store), split="train", streaming=True)
    for loaded in (rows, by_path, by_folder, streamed, load_prepared(store, "train", streaming=True)):
        assert default_labels(loaded) == LABELS


@pytest.mark.parametrize(
    "change",
    {
        "map": lambda rows, _: rows.map(lambda row: {"AF": 1, "note": "x"}),
        "filter": lambda rows, _: rows.filter(lambda row: row["AF"] == 1),
        "shuffle, shard": lambda rows, _: rows.shuffle(seed=0).shard(2, 0),
        "interleave": lambda rows, other: datasets.interleave_datasets([rows, other]),
        "concatenate": lambda rows, other: datasets.concatenate_datasets([rows, other]),
        "split by label": lambda rows, _: rows.train_test_split(0.5, stratify_by_column="AF")["test"],
        "as a stream": lambda rows, _: rows.to_iterable_dataset(),
        "another class label": lambda rows, _: rows.cast_column("AF", ClassLabel(names=["no", "yes"])),
        "torch": lambda rows, _: rows.with_format("torch"),
        "text column": lambda rows, _: rows.add_column("note", ["x"] * len(rows)),
    }.items(),
    ids=lambda case: case[0],
)
def test_labels_stay_labels(store, rows, change):
    changed = change[1](rows, load_prepared(store, "valid"))
    assert default_labels(changed) == LABELS
    item = next(iter(as_model_inputs(changed, ECGFMFeatureExtractor())))
    assert (item["input_values"].shape, item["labels"].shape) == ((12, 2500), (2,))


def test_a_renamed_label_stays_one_and_a_saved_dataset_keeps_its_labels(rows, tmp_path):
    assert default_labels(rows.rename_column("AF", "atrial fibrillation")) == ("atrial fibrillation", "PVC")
    rows.save_to_disk(tmp_path / "saved")
    assert default_labels(datasets.load_from_disk(tmp_path / "saved")) == LABELS


@pytest.mark.parametrize("kind", ["int64", "float32", "bool"])
def test_a_label_cast_to_a_number_is_refused_and_not_lost(rows, kind):
    cast = rows.cast_column("AF", Value(kind))
    with pytest.raises(DataError, match=r"not marked as labels: AF\. Name the labels"):
        as_model_inputs(cast, ECGFMFeatureExtractor())
    assert as_model_inputs(cast, ECGFMFeatureExtractor(), labels=LABELS).label_names == LABELS


def test_rows_come_in_torch_and_numpy_format(rows):
    row = rows.with_format("torch")[0]
    assert isinstance(row["AF"], torch.Tensor)
    assert row["time"].startswith("2020-01-")
    assert rows.with_format("numpy")[0]["sampling_rate"] == 500
    assert record_from_row(rows[0]).time.year == 2020


def test_the_pipeline_takes_a_store(rows, tiny_config):
    pipe = ECGClassificationPipeline(
        model=make_classifier(tiny_config()), feature_extractor=ECGFMFeatureExtractor(), task="ecg-classification"
    )
    answers = list(pipe(rows))
    record = record_from_row(rows[0])
    assert len(answers) == len(rows)
    assert answers[0]["scores"] == pytest.approx(pipe(record)["scores"], abs=1e-6)


def test_embed_takes_a_store_and_its_rows(rows, tiny_config):
    model = make_classifier(tiny_config())
    found = embed(model, rows)
    np.testing.assert_allclose(found[:2], embed(model, [rows[0], record_from_row(rows[1])]), atol=1e-5)
    assert found.shape == (len(rows), 32)


def test_a_store_is_pushed_to_the_hub_and_loaded_with_its_labels(store, rows, tmp_path):
    with mock_hub() as hub:
        load_prepared(store).push_to_hub("me/store", private=True)
        loaded = datasets.load_dataset("me/store", cache_dir=tmp_path)
        stream = datasets.load_dataset("me/store", split="train", streaming=True)
        item = next(iter(as_model_inputs(stream, ECGFMFeatureExtractor())))
    assert (item["recording_id"], item["labels"].shape) == (rows[0]["recording_id"], (2,))
    assert {name.split("/")[0] for name in hub.files("datasets/me/store")} >= {"README.md", "data"}
    assert loaded["train"].features == rows.features
    assert default_labels(loaded["train"]) == LABELS
    assert loaded["train"]["AF"] == rows["AF"]
    assert json.dumps(loaded["valid"][0]["lead_names"]) == json.dumps(rows[0]["lead_names"])


class _File:
    """Stands for a Parquet file."""

    def __init__(self):
        self.read = []

    def read_row_group(self, index, use_threads):
        self.read.append(index)
        if index == 3:
            raise OSError("the disk failed")
        return f"rows {index}"


def test_a_stream_reads_one_row_group_ahead_and_no_further():
    file = _File()
    groups = _row_groups(file, range(5))
    for index in range(3):
        assert next(groups) == (index, f"rows {index}")
        assert len(file.read) <= index + 2
    with pytest.raises(OSError, match="the disk failed"):
        next(groups)


def test_a_process_forked_while_a_row_group_is_read_ahead_reads_it_itself():
    class SlowFile(_File):
        def read_row_group(self, index, use_threads):
            time.sleep(0.3)
            return super().read_row_group(index, use_threads)

    groups = _row_groups(SlowFile(), range(3))
    assert next(groups) == (0, "rows 0")  # a thread reads the second now
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if list(groups) == [(1, "rows 1"), (2, "rows 2")] else 1)
    assert list(groups) == [(1, "rows 1"), (2, "rows 2")]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("advice", [integrity._POPULATE_READ, 9999])
@pytest.mark.parametrize("damage", ["a flipped bit", "an empty file", "a folder", "no file", "cut while it is hashed"])
def test_a_damaged_file_ends_a_stream_before_its_first_row(store, tmp_path, monkeypatch, damage, advice):
    monkeypatch.setattr(integrity, "_POPULATE_READ", advice)  # the second is none that a system knows
    copy = shutil.copytree(store, tmp_path / "store")
    (file,) = (copy / "data").glob("train-*")
    stream = load_prepared(copy, "train", streaming=True)
    content = bytearray(file.read_bytes())
    if damage == "a flipped bit":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "an empty file":
        file.write_bytes(b"")
    elif damage == "cut while it is hashed":
        hashed = integrity.mapped_checksum
        monkeypatch.setattr(
            "ecgfm_hf.data.store.mapped_checksum", lambda *given: os.truncate(file, 1000) or hashed(*given)
        )
    else:
        file.unlink()
        if damage == "a folder":
            file.mkdir()
    with pytest.raises(DataError, match=rf"{file.name} (has changed|cannot be read)"):
        next(iter(stream))
