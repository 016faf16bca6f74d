"""Stores at addresses of fsspec: the same rows, the same training, and damage that is noticed."""

import fsspec
import pyarrow.parquet as pq
import pytest
from finetune_cases import TINY_MODEL, make_store
from killed_runs import damage_file
from tiny_pretraining import MODEL

from ecgfm_hf.data import DataError, load_prepared
from ecgfm_hf.data.opening import _copied, data_digest, split_names
from ecgfm_hf.training import Finetuner, FinetuneSettings, Pretrainer, PretrainSettings


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("made") / "store", patients=12)


@pytest.fixture
def memory(store):
    """The store in fsspec's memory."""
    system = fsspec.filesystem("memory")
    system.put(f"{store}/", "/bucket/store/", recursive=True)
    yield "memory://bucket/store"
    system.rm("/bucket", recursive=True)
    _copied.cache_clear()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_store_at_an_address_has_the_rows_of_the_folder(streaming, store, memory):
    expected = load_prepared(store, streaming=streaming)
    found = load_prepared(memory, streaming=streaming)
    assert found.keys() == expected.keys()
    for name in expected:
        assert list(found[name]) == list(expected[name])
    assert split_names(memory) == split_names(store)
    assert data_digest([memory], ["train"]) == data_digest([store], ["train"])
    several = load_prepared([memory, f"file://{store}"], "test")
    assert len(several) == 2 * len(expected["test"]) if not streaming else True


def test_training_on_an_address_is_training_on_the_folder(store, tmp_path):
    results = {}
    for name, data in (("folder", str(store)), ("address", f"file://{store}")):
        pretraining = PretrainSettings(
            data=data,
            output_dir=str(tmp_path / f"pretrained-{name}"),
            model=MODEL,
            per_device_train_batch_size=4,
            max_steps=2,
            use_cpu=True,
        )
        finetuning = FinetuneSettings(
            data=data,
            output_dir=str(tmp_path / f"finetuned-{name}"),
            model=TINY_MODEL,
            max_steps=2,
            use_cpu=True,
        )
        Pretrainer(pretraining).run()
        Finetuner(finetuning).run()
        results[name] = [
            (tmp_path / f"{kind}-{name}" / "model.safetensors").read_bytes() for kind in ("pretrained", "finetuned")
        ]
    assert results["address"] == results["folder"]


@pytest.mark.parametrize("kind", ["flipped", "cut short", "gone"])
def test_damage_at_an_address_is_an_error_that_names_it(kind, store, tmp_path):
    import shutil

    shutil.copytree(store, tmp_path / "store")
    damage_file(next((tmp_path / "store" / "data").glob("train-*")), kind)
    with pytest.raises(DataError, match=f"file://{tmp_path}/store is .*(damaged: data/train|missing)"):
        load_prepared(f"file://{tmp_path}/store", "test")


def test_what_is_no_store_at_an_address_is_an_error(store, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="memory://nowhere is no store, or not a whole one"):
        load_prepared("memory://nowhere")
    with pytest.raises(DataError, match="carrier-pigeon://store cannot be copied"):
        load_prepared("carrier-pigeon://store")
    folder = tmp_path / "other"
    folder.mkdir()
    from ecgfm_hf.utils.integrity import write_checksums

    (tmp_path / "precious").write_text("x")
    write_checksums(folder, ["../precious"])
    with pytest.raises(DataError, match=r"names \.\./precious, which is no file of a store"):
        load_prepared(f"file://{folder}")
    assert pq.read_table(next((store / "data").glob("train-*"))).num_rows
