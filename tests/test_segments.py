"""What a model takes from a store: the same segments as inference has, in any order, and streamed."""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Value

from ecgfm_hf import ECGFMFeatureExtractor
from ecgfm_hf.data import (
    DataError,
    SplitSettings,
    as_model_inputs,
    collate_items,
    load_arrays,
    load_prepared,
    model_inputs,
)
from ecgfm_hf.data import store as store_module
from ecgfm_hf.data.model_inputs import _as_rows
from ecgfm_hf.data.store_assembly import split_store
from ecgfm_hf.feature_extraction_ecgfm import STANDARD_LEADS
from ecgfm_hf.records.store_rows import COLUMNS

LABELS = ("AF", "LBBB")
SECONDS = {"a": 10, "b": 5, "c": 3, "d": 27, "e": 10}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def recordings():
    rng = np.random.default_rng(0)
    found = {}
    for number, (name, seconds) in enumerate(SECONDS.items()):
        rate = (500, 400, 500, 257, 1000)[number]
        found[name] = {
            "recording_id": name,
            "patient_id": None if name == "a" else f"p{number}",
            "signal": rng.integers(-2000, 2000, (12, seconds * rate)).astype(np.int16),
            "sampling_rate": rate,
            "lead_names": STANDARD_LEADS[::-1] if name == "d" else STANDARD_LEADS,
            "units": "uV",
        }
    return found


@pytest.fixture
def store(recordings, tmp_path):
    labels = {"AF": [1, 0, 1, None, 0], "LBBB": [0, None, 0, 1, 1]}
    load_arrays(recordings.values(), tmp_path / "store", labels, progress=False)
    return tmp_path / "store"


def expected(recordings, name):
    record = recordings[name]
    return ECGFMFeatureExtractor()(
        record["signal"], sampling_rate=record["sampling_rate"], lead_names=record["lead_names"], units="uV"
    )["input_values"]


def test_segments_equal_those_of_inference(recordings, store):
    inputs = as_model_inputs(load_prepared(store, "all"), ECGFMFeatureExtractor())
    found = [inputs[number] for number in range(len(inputs))]
    assert [(item["recording_id"], item["segment"]) for item in found] == [
        *(("a", n) for n in range(2)),
        ("b", 0),
        *(("d", n) for n in range(5)),
        *(("e", n) for n in range(2)),
    ]
    for item in found:
        reference = expected(recordings, item["recording_id"])[item["segment"]]
        assert item["input_values"].dtype == np.float32
        np.testing.assert_allclose(item["input_values"], reference, atol=1e-6)
    assert inputs.label_names == ("AF", "LBBB")
    np.testing.assert_array_equal(found[0]["labels"], [1, 0])
    np.testing.assert_array_equal(found[2]["labels"], [0, np.nan])
    assert (found[0]["patient_id"], found[2]["patient_id"]) == (None, "p1")


def test_pairs_are_neighbouring_segments_of_one_recording(recordings, store):
    inputs = as_model_inputs(load_prepared(store, "all"), ECGFMFeatureExtractor(), pairs=True)
    found = [inputs[number] for number in range(len(inputs))]
    assert [(item["recording_id"], item["segment"]) for item in found] == [("a", 0), ("d", 0), ("d", 2), ("e", 0)]
    for item in found:
        reference = expected(recordings, item["recording_id"])[item["segment"] : item["segment"] + 2]
        np.testing.assert_allclose(item["input_values"], reference, atol=1e-6)
        assert "labels" not in item
    assert inputs.skipped == {"only one segment long": 1, "shorter than 5 s": 1}


def test_a_batch_in_any_order_has_the_items_of_single_access(store):
    inputs = as_model_inputs(load_prepared(store, "all"), ECGFMFeatureExtractor())
    order = np.random.default_rng(0).permutation(len(inputs))
    batch = inputs.__getitems__(order)
    for number, item in zip(order, batch, strict=True):
        single = inputs[number]
        assert (item["recording_id"], item["segment"]) == (single["recording_id"], single["segment"])
        np.testing.assert_array_equal(item["input_values"], single["input_values"])
    assert inputs.__getitems__([]) == []
    with pytest.raises(IndexError):
        inputs[len(inputs)]


def test_shuffled_recordings_keep_their_items_together(store):
    inputs = as_model_inputs(load_prepared(store, "all"), ECGFMFeatureExtractor())
    order = inputs.shuffle_recordings(np.random.default_rng(0))
    assert sorted(order) == list(range(len(inputs)))
    recordings = inputs.recordings[order]
    assert (np.diff(recordings) != 0).sum() == len(set(recordings)) - 1
    assert order.tolist() != sorted(order)


@pytest.mark.parametrize("pairs", [False, True])
def test_streaming_gives_the_same_items(store, pairs):
    whole = as_model_inputs(load_prepared(store, "all"), ECGFMFeatureExtractor(), pairs=pairs)
    stream = as_model_inputs(load_prepared(store, "all", streaming=True), ECGFMFeatureExtractor(), pairs=pairs)
    items = list(stream)
    assert len(items) == len(whole)
    for number, item in enumerate(items):
        assert item.keys() == whole[number].keys()
        np.testing.assert_array_equal(item["input_values"], whole[number]["input_values"])
        np.testing.assert_array_equal(item.get("labels", 0), whole[number].get("labels", 0))


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("streaming", [False, True])
def test_both_kinds_feed_a_data_loader_with_workers(store, streaming, start):
    from torch.utils.data import DataLoader

    inputs = as_model_inputs(load_prepared(store, "all", streaming=streaming), ECGFMFeatureExtractor())
    loader = DataLoader(inputs, 4, num_workers=1, collate_fn=collate_items, multiprocessing_context=start)
    assert sum(len(batch["input_values"]) for batch in loader) == 10


@pytest.mark.parametrize("shuffled", ["recordings", "segments"])
def test_a_shuffled_stream_has_all_items_and_waits_for_nothing(recordings, store, monkeypatch, shuffled):
    def wait(seconds):
        raise AssertionError(f"waited for {seconds} s")

    monkeypatch.setattr("datasets.iterable_dataset.time.sleep", wait)
    stream = load_prepared(store, "all", streaming=True).reshard()
    if shuffled == "recordings":
        items = list(as_model_inputs(stream.shuffle(seed=1), ECGFMFeatureExtractor()))
    else:
        items = list(as_model_inputs(stream, ECGFMFeatureExtractor()).shuffle(seed=1))
    names = [(item["recording_id"], item["segment"]) for item in items]
    assert names != sorted(names)
    assert sorted(names) == [
        (name, n) for name, count in (("a", 2), ("b", 1), ("d", 5), ("e", 2)) for n in range(count)
    ]
    for item in items:
        reference = expected(recordings, item["recording_id"])[item["segment"]]
        np.testing.assert_allclose(item["input_values"], reference, atol=1e-6)


def test_what_cannot_be_used_is_reported_before_training_not_during_it(recordings, tmp_path, caplog):
    recordings["a"]["signal"] = recordings["a"]["signal"].astype(float)
    recordings["a"]["signal"][3, 5] = np.nan
    recordings["b"]["lead_names"] = [*STANDARD_LEADS[:11], "V7"]
    load_arrays(recordings.values(), tmp_path / "store", progress=False)
    data = load_prepared(tmp_path / "store", "all")
    with caplog.at_level(logging.WARNING):
        inputs = as_model_inputs(data, ECGFMFeatureExtractor())
    assert inputs.skipped["a lead has NaN"] == 1
    assert inputs.skipped["shorter than 5 s"] == 1
    assert any("missing lead V6" in reason for reason in inputs.skipped)
    assert "3 of 5 recordings are skipped" in caplog.text
    assert {inputs[number]["recording_id"] for number in range(len(inputs))} == {"d", "e"}
    tolerant = ECGFMFeatureExtractor(missing_leads="zero", nan_samples="interpolate", short_recordings="pad")
    assert as_model_inputs(data, tolerant).skipped == {}
    streamed = as_model_inputs(load_prepared(tmp_path / "store", "all", streaming=True), ECGFMFeatureExtractor())
    assert {item["recording_id"] for item in streamed} == {"d", "e"}


def test_transforms_see_millivolts_before_and_segments_after(store):
    seen = []

    def louder(signal, record):
        seen.append((record.recording_id, float(np.abs(signal).max()), signal.shape))
        return signal[::-1]

    def numbered(values, item):
        return values * 0 + 10 * ord(item["recording_id"]) + item["segment"]

    inputs = as_model_inputs(
        load_prepared(store, "all"), ECGFMFeatureExtractor(), signal_transform=louder, transform=numbered
    )
    assert (inputs[0]["input_values"] == 10 * ord("a")).all()
    assert (inputs[1]["input_values"] == 10 * ord("a") + 1).all()
    assert seen[0][0] == "a"
    assert seen[0][1] == pytest.approx(2, abs=0.01)
    assert seen[0][2] == (12, 5000)


def test_labels_are_chosen_and_ordered(store):
    data = load_prepared(store, "all")
    inputs = as_model_inputs(data, ECGFMFeatureExtractor(), labels=["LBBB", "AF"])
    np.testing.assert_array_equal(inputs[0]["labels"], [0, 1])
    assert "labels" not in as_model_inputs(data, ECGFMFeatureExtractor(), labels=[])[0]
    with pytest.raises(DataError, match="no label AFIB"):
        as_model_inputs(data, ECGFMFeatureExtractor(), labels=["AFIB"])
    with pytest.raises(DataError, match="no label age"):
        as_model_inputs(data, ECGFMFeatureExtractor(), labels=["age"])
    with pytest.raises(DataError, match="no column"):
        as_model_inputs(data.remove_columns("signal"), ECGFMFeatureExtractor())


def test_selected_and_shuffled_datasets_are_read_as_they_are(recordings, store):
    data = load_prepared(store, "all").shuffle(seed=2).select([0, 2, 3])
    inputs = as_model_inputs(data, ECGFMFeatureExtractor())
    named = [inputs[number] for number in range(len(inputs))]
    assert list(dict.fromkeys(item["recording_id"] for item in named)) == [
        name for name in data["recording_id"] if SECONDS[name] >= 5
    ]
    labels = {row["recording_id"]: [np.nan if row[name] is None else row[name] for name in LABELS] for row in data}
    for item in named:
        np.testing.assert_allclose(
            item["input_values"], expected(recordings, item["recording_id"])[item["segment"]], atol=1e-6
        )
        np.testing.assert_array_equal(item["labels"], labels[item["recording_id"]])


@pytest.mark.parametrize("kind", ["bool", "float32", "int8"])
def test_labels_of_any_kind_of_number_keep_their_unknown_ones(store, kind):
    data = load_prepared(store, "all").cast_column("AF", Value(kind))
    stream = load_prepared(store, "all", streaming=True).cast_column("AF", Value(kind))
    for items in (as_model_inputs(source, ECGFMFeatureExtractor(), labels=["AF"]) for source in (data, stream)):
        found = {item["recording_id"]: item["labels"] for item in items}
        np.testing.assert_array_equal([found[name] for name in "abde"], [[1], [0], [np.nan], [0]])


def test_changing_an_item_changes_no_label_of_the_next_epoch(store):
    inputs = as_model_inputs(load_prepared(store, "all"), ECGFMFeatureExtractor())
    inputs[0]["labels"][:] = 7
    np.testing.assert_array_equal(inputs[0]["labels"], [1, 0])


def test_reading_without_inspection_changes_warnings_only(recordings):
    extractor = ECGFMFeatureExtractor()
    record = recordings["a"]
    arguments = (record["signal"] * 1000.0, record["sampling_rate"], record["lead_names"], "mV")
    with_checks = extractor.prepare_recording(*arguments)
    without = extractor.prepare_recording(*arguments, inspect=False)
    np.testing.assert_array_equal(with_checks.segments, without.segments)
    assert with_checks.warnings
    assert not without.warnings


@pytest.mark.parametrize("streaming", [False, True])
def test_stores_with_different_labels_are_read_together_and_lack_stays_unknown(recordings, tmp_path, streaming):
    for name, ids, labels in (("one", "ab", {"AF": [1, 0]}), ("two", "de", {"LBBB": [1, 0], "AF": [None, 1]})):
        load_arrays([recordings[n] for n in ids], tmp_path / name, labels, progress=False)
    both = load_prepared([tmp_path / "one", tmp_path / "two"], "all", streaming=streaming)
    inputs = as_model_inputs(both, ECGFMFeatureExtractor(), labels=["AF", "LBBB"])
    items = list(inputs) if streaming else inputs.__getitems__(range(len(inputs)))
    found = {item["recording_id"]: item["labels"].tolist() for item in items}
    expected = {"a": [1, np.nan], "b": [0, np.nan], "d": [np.nan, 1], "e": [1, 0]}
    assert found.keys() == expected.keys()
    for name, labels in expected.items():
        np.testing.assert_array_equal(found[name], labels)
    assert set(load_prepared([tmp_path / "one", tmp_path / "two"], streaming=streaming)) == {"all"}


def test_a_stream_s_format_does_not_matter(store):
    stream = load_prepared(store, "all", streaming=True).with_format("torch")
    assert len(list(as_model_inputs(stream, ECGFMFeatureExtractor()))) == 10


def test_columns_that_somebody_added_are_no_labels(store):
    data = load_prepared(store, "all").add_column("note", ["x"] * 5)
    assert as_model_inputs(data, ECGFMFeatureExtractor()).label_names == ("AF", "LBBB")
    # A number might be a label that was cast: nothing is guessed.
    data = data.add_column("weight", [0.5] * 5)
    with pytest.raises(DataError, match="not marked as labels: weight"):
        as_model_inputs(data, ECGFMFeatureExtractor())
    assert as_model_inputs(data, ECGFMFeatureExtractor(), labels=["AF"]).label_names == ("AF",)


def test_batches_hold_tensors_and_unknown_patients(store):
    from torch.utils.data import DataLoader

    inputs = as_model_inputs(load_prepared(store, "all"), ECGFMFeatureExtractor())
    batch = next(iter(DataLoader(inputs, batch_size=3, collate_fn=collate_items)))
    assert batch["input_values"].shape == (3, 12, 2500)
    assert batch["labels"].shape == (3, 2)
    assert batch["patient_id"] == [None, None, "p1"]
    assert batch["segment"].tolist() == [0, 1, 0]


def varied(seconds=(12, 17, 4, 5)):
    """Recordings at the model's rate: other orders of leads, other units and types, a dead lead, too few samples."""
    rng = np.random.default_rng(1)
    found = [
        {
            "recording_id": f"r{number}",
            "signal": rng.integers(-2000, 2000, (12, length * 500)).astype(kind),
            "sampling_rate": 500,
            "lead_names": STANDARD_LEADS[::-1] if number == 1 else STANDARD_LEADS,
            "units": ["uV", "mV", "uV", "V"][number],
        }
        for number, (length, kind) in enumerate(zip(seconds, ("int16", "float32", "int16", "float64"), strict=True))
    ]
    dead, few = dict(found[0], recording_id="dead"), dict(found[0], recording_id="few")
    dead["signal"] = np.where(np.arange(12)[:, None] == 3, 7, found[0]["signal"])
    few |= {"signal": found[0]["signal"][:8], "lead_names": STANDARD_LEADS[:2] + STANDARD_LEADS[6:]}
    return [*found, dead, few]


STATISTICS = ["mean_mv", "std_mv"]


@pytest.mark.parametrize("pairs", [False, True])
def test_statistics_in_the_store_give_the_bits_that_whole_recordings_give(tmp_path, pairs):
    load_arrays(varied(), tmp_path / "store", progress=False)
    data = load_prepared(tmp_path / "store", "all")
    stream = load_prepared(tmp_path / "store", "all", streaming=True)
    for settings in (
        {},
        {"lead_names": ["V2", "I"]},
        {"short_recordings": "pad"},
        {"sampling_rate": 250},
        {"standardize": "none"},
        {"standardize": "all_leads", "segment_seconds": 2},
    ):
        extractor = ECGFMFeatureExtractor(**settings)
        inputs = as_model_inputs(data, extractor, pairs=pairs)
        whole = as_model_inputs(data.remove_columns(STATISTICS), extractor, pairs=pairs)
        order = np.random.default_rng(0).integers(len(whole), size=3 * len(whole))
        one_by_one = [inputs[number] for number in order]
        for items in (inputs.__getitems__(order), one_by_one):
            for item, same in zip(items, whole.__getitems__(order), strict=True):
                np.testing.assert_array_equal(item["input_values"], same["input_values"], strict=True)
                assert (item["recording_id"], item["segment"]) == (same["recording_id"], same["segment"])
        streamed = as_model_inputs(stream, extractor, pairs=pairs)
        for item, same in zip(streamed, whole, strict=True):
            np.testing.assert_array_equal(item["input_values"], same["input_values"], strict=True)


def test_a_segment_is_made_of_its_own_samples_only(tmp_path, monkeypatch):
    load_arrays(varied()[:2], tmp_path / "store", progress=False)
    inputs = as_model_inputs(load_prepared(tmp_path / "store", "all"), ECGFMFeatureExtractor())
    read = []
    in_millivolts = model_inputs.in_millivolts
    monkeypatch.setattr(
        model_inputs, "in_millivolts", lambda samples, *of: read.append(samples.shape[1]) or in_millivolts(samples, *of)
    )
    inputs.__getitems__([4, 0, 2])
    assert read == [2500] * 3


@pytest.mark.parametrize("streaming", [False, True])
def test_stores_without_statistics_are_read_split_and_joined(tmp_path, monkeypatch, streaming):
    with monkeypatch.context() as older:
        for name in STATISTICS:
            older.delitem(COLUMNS, name)
        older.setattr(store_module, "_schema_of", store_module._schema_of.__wrapped__)
        load_arrays(varied()[:3], tmp_path / "older", progress=False)
    load_arrays(varied()[3:], tmp_path / "newer", progress=False)
    assert not set(STATISTICS) & set(load_prepared(tmp_path / "older", "all").column_names)
    stores = [tmp_path / "older", tmp_path / "newer"]
    for chosen in (stores, stores[::-1], stores[:1]):
        inputs = as_model_inputs(load_prepared(chosen, "all", streaming=streaming), ECGFMFeatureExtractor())
        found = {(item["recording_id"], item["segment"]): item["input_values"] for item in inputs}
        assert len(found) == (2 + 3 if chosen == stores[:1] else 2 + 3 + 1 + 2 + 2)
        for (name, number), values in found.items():
            record = next(one for one in varied() if one["recording_id"] == name)
            reference = ECGFMFeatureExtractor()(
                record["signal"], **{key: record[key] for key in ("sampling_rate", "lead_names", "units")}
            )["input_values"][number]
            np.testing.assert_allclose(values, reference, atol=1e-6)
    split_store(tmp_path / "older", SplitSettings("random", {"train": 0.5, "valid": 0.5}, assume_independent=True))
    rows = load_prepared(tmp_path / "older")
    assert sum(map(len, rows.values())) == 3
    assert rows["train"][0]["std_mv"] is None


def test_a_recording_beside_one_without_samples_keeps_its_own():
    table = pa.table({"recording_id": ["a", "b"], "signal": pa.array([b"\x01\x02", None], pa.binary())})
    assert [row["signal"] for row in _as_rows(table)] == [b"\x01\x02", None]


@pytest.mark.slow
def test_the_script_on_orders_of_streams_trains_in_each(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "scripts"))
    import stream_order

    train, test = stream_order.cohort(tmp_path, patients=60)
    for order in stream_order.ORDERS:
        assert 0 < stream_order.trained(train, test, order, seed=0, epochs=1, least_cases=1) < 1
