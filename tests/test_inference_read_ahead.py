"""Reading ahead of the model: in order, by processes that may die."""

import os
import shutil
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from inference_cases import recordings, write_store
from wfdb_files import write_record

from ecgfm_hf import ECGFMFeatureExtractor
from ecgfm_hf.data import as_model_inputs, load_prepared
from ecgfm_hf.data.store import DataError, write_store_checksums
from ecgfm_hf.inference import find_recordings
from ecgfm_hf.inference.read_ahead import read_in_order
from ecgfm_hf.inference.recording_sources import DatasetSource
from ecgfm_hf.utils import integrity


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("made") / "store", recordings())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(5)
    for number in range(14):
        write_record(root, rng.integers(-2000, 2000, (12, 2500)).astype(np.int16), name=f"e{number:02d}")
    return root


@pytest.fixture(params=["files", "store", "inputs"])
def source(request, store, folder, tmp_path):
    extractor = ECGFMFeatureExtractor(short_recordings="pad")
    if request.param == "inputs":
        return DatasetSource(as_model_inputs(load_prepared(store, "all", cache_dir=tmp_path), extractor))
    return find_recordings([str(folder if request.param == "files" else store)], extractor)


def assert_same(found, expected):
    assert [one.row for one in found] == [one.row for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one.recording_id, one.patient_id, one.failure) == (other.recording_id, other.patient_id, None)
        assert one.warnings == other.warnings
        np.testing.assert_array_equal(one.segments, other.segments)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_read_the_same_in_the_same_order(source, num_workers):
    expected = list(read_in_order(source))
    assert [one.row for one in expected] == list(range(len(source)))
    assert_same(list(read_in_order(source, num_workers=num_workers)), expected)


def test_places_are_read_and_no_others(source):
    expected = list(read_in_order(source))
    assert_same(list(read_in_order(source, [1, 2, 7, 8, 9], num_workers=1)), [expected[n] for n in (1, 2, 7, 8, 9)])
    assert list(read_in_order(source, [])) == []


def test_workers_may_start_from_scratch(folder):
    source = find_recordings([str(folder)], ECGFMFeatureExtractor())
    found = list(read_in_order(source, num_workers=1, start_method="spawn"))
    assert_same(found, list(read_in_order(source)))


@pytest.mark.parametrize("end", ["exit", "signal"])
def test_a_recording_that_kills_its_reader_is_named_and_all_others_are_read(folder, monkeypatch, end):
    from ecgfm_hf.inference import recording_sources

    def deadly(path, original=recording_sources.read_with_defaults, **arguments):
        if "e06" in path or "e13" in path:
            if end == "exit":
                os._exit(3)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(path, **arguments)

    monkeypatch.setattr(recording_sources, "read_with_defaults", deadly)
    source = find_recordings([str(folder)], ECGFMFeatureExtractor())
    found = list(read_in_order(source, num_workers=2))
    assert [one.row for one in found] == list(range(14))
    failed = {os.path.basename(one.path): one.failure for one in found if one.failure is not None}
    assert failed == dict.fromkeys(["e06.hea", "e13.hea"], "the process that read it died")


@pytest.mark.parametrize("given", ["store", "inputs"])
def test_what_cannot_be_read_of_a_store_is_named(store, given, tmp_path):
    extractor = ECGFMFeatureExtractor()
    source = find_recordings([str(store)], extractor)
    position = 4
    if given == "inputs":
        source = DatasetSource(as_model_inputs(load_prepared(store, "all", cache_dir=tmp_path), extractor))
        position = 3  # the fourth that is not too short
    found = source.failed(position, "why")
    assert (found.row, found.recording_id, found.patient_id, found.failure) == (4, "r4", "p4", "why")


def test_any_error_of_a_library_is_a_failure_of_one_recording(folder, monkeypatch):
    from ecgfm_hf.inference import recording_sources

    def broken(path, original=recording_sources.read_with_defaults, **arguments):
        if "e06" in path:
            raise RecursionError
        return original(path, **arguments)

    monkeypatch.setattr(recording_sources, "read_with_defaults", broken)
    found = list(read_in_order(find_recordings([str(folder)], ECGFMFeatureExtractor())))
    assert [one.failure for one in found if one.failure is not None] == ["RecursionError"]


def test_a_damaged_row_of_a_store_is_a_failure_of_one_recording(store, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    (file,) = (tmp_path / "store" / "data").iterdir()
    table = pq.read_table(file)
    signals = table["signal"].to_pylist()
    signals[1] = signals[1][:-7]
    pq.write_table(table.set_column(table.column_names.index("signal"), "signal", [signals]), file)
    write_store_checksums(tmp_path / "store")
    source = find_recordings([str(tmp_path / "store")], ECGFMFeatureExtractor(short_recordings="pad"))
    found = list(read_in_order(source))
    assert len(found) == 10
    assert [(one.recording_id, one.failure is not None) for one in found][:3] == [
        ("r0", False),
        ("r1", True),
        ("r2", False),
    ]


def test_a_flipped_bit_anywhere_in_a_store_is_refused_by_name(store, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    (file,) = (tmp_path / "store" / "data").iterdir()
    whole, group = file.read_bytes(), pq.read_metadata(file).row_group(0)
    signal, unread = (group.column(pq.read_schema(file).names.index(name)) for name in ("signal", "source"))
    # Checksums of pages cover neither the file's first bytes, nor pages' headers, nor columns that are not read.
    middle = signal.data_page_offset + signal.total_compressed_size // 2
    for place in (0, signal.data_page_offset + 2, middle, unread.data_page_offset, len(whole) - 1):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DataError, match=r"store is damaged: .*all-00000-of-00001.parquet has changed"):
            list(read_in_order(find_recordings([str(tmp_path / "store")], ECGFMFeatureExtractor())))


def test_a_store_whose_file_has_gone_stops_the_run(store, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    source = find_recordings([str(tmp_path / "store")], ECGFMFeatureExtractor())
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(FileNotFoundError, match="all-00000-of-00001"):
        list(read_in_order(source))


def test_workers_hash_a_file_of_a_store_once(store, tmp_path, monkeypatch):
    def hash_slowly(path, *arguments):
        with open(tmp_path / "hashed", "a") as file:
            file.write(f"{os.path.basename(path)}\n")
        time.sleep(0.2)
        return checksum(path, *arguments)

    for path in (store / "data").iterdir():
        os.utime(path)  # other tests have read it
    source = find_recordings([str(store)], ECGFMFeatureExtractor(short_recordings="pad"))
    monkeypatch.setattr(source, "groups", lambda indices: [[index] for index in indices])
    checksum = integrity.file_checksum
    monkeypatch.setattr(integrity, "file_checksum", hash_slowly)
    assert len(list(read_in_order(source, num_workers=3, start_method="fork"))) == len(source)
    assert (tmp_path / "hashed").read_text().splitlines() == [path.name for path in source.files]
