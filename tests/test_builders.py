"""The builders of 🤗 datasets: the rows of a store, in its cache or streamed."""

import logging
import os

import pytest
from test_prepare import AF, challenge_folder, rows_of

from ecgfm_hf import ECGFMFeatureExtractor
from ecgfm_hf.data import PhysioNet2021, PhysioNet2021Builder, RecordingTableBuilder, as_model_inputs, prepare


@pytest.fixture
def root(tmp_path):
    root = challenge_folder(tmp_path / "root", {f"E{number:03d}": AF for number in range(5)})
    damaged = root / "training" / "georgia" / "g1" / "E002.mat"
    damaged.write_bytes(damaged.read_bytes()[:-2])
    return root


@pytest.mark.parametrize("num_proc", [None, 2])
def test_a_builder_has_the_rows_of_a_store_and_lists_what_it_left_out(root, tmp_path, num_proc, monkeypatch):
    monkeypatch.setattr("ecgfm_hf.data.loading._CHUNK", 2)
    prepare(PhysioNet2021(root), tmp_path / "store")
    builder = PhysioNet2021Builder(root, cache_dir=tmp_path / "cache")
    builder.download_and_prepare(num_proc=num_proc)
    data = builder.as_dataset()["train"]
    expected = rows_of(tmp_path / "store")
    assert {row["recording_id"]: row | {"split": "all"} for row in data} == expected
    assert [one.path for one in builder.excluded()] == ["training/georgia/g1/E002.hea"]


def test_a_streamed_builder_feeds_the_model_and_reports_damage(root, tmp_path, caplog):
    builder = PhysioNet2021Builder(root, cache_dir=tmp_path / "cache")
    stream = builder.as_streaming_dataset()["train"]
    with caplog.at_level(logging.WARNING):
        items = list(as_model_inputs(stream, ECGFMFeatureExtractor()))
    assert len(items) == 8
    assert "is skipped" in caplog.text


def test_the_cache_notices_that_the_folder_changed(root, tmp_path):
    first = RecordingTableBuilder(root, cache_dir=tmp_path / "cache")
    again = RecordingTableBuilder(root, cache_dir=tmp_path / "cache")
    challenge_folder(root, {"E900": AF})
    later = RecordingTableBuilder(root, cache_dir=tmp_path / "cache")
    assert first.cache_dir == again.cache_dir != later.cache_dir
    header = next(root.rglob("E900.hea"))
    times, content = header.stat(), header.read_text()
    header.write_text(content.replace("1000.0(0)/mV", "2000.0(0)/mV"))
    os.utime(header, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert header.read_text() != content
    assert RecordingTableBuilder(root, cache_dir=tmp_path / "cache").cache_dir != later.cache_dir
