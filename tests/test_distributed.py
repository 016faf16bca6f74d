"""Runs shared among processes, and classes for pipelines; what needs no cluster. See test_distributed_ray.py."""

import importlib.util

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from inference_cases import LABELS, as_pipeline_input, recordings, write_model, write_store

from ecgfm_hf import distributed
from ecgfm_hf.cli.main import main as ecgfm
from ecgfm_hf.cli.options import DEFAULT_CLUSTER, with_default_cluster
from ecgfm_hf.data.store import store_files
from ecgfm_hf.distributed import ECGFMEmbedder, ECGFMPredictor, RayExecutor
from ecgfm_hf.inference import embed


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tiny_config):
    return write_model(tmp_path_factory.mktemp("model"), tiny_config())


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("made") / "store", recordings(), LABELS)


def command(name, store, model_dir, output, *options):
    return ecgfm([name, str(store), "--model", str(model_dir), "--output", str(output), "--part-size", "3", *options])


@pytest.mark.parametrize("name", ["predict", "embed"])
def test_shares_of_several_processes_are_completed_by_a_run_without_shard(name, store, model_dir, tmp_path, capsys):
    expected, output = tmp_path / "expected.parquet", tmp_path / "out.parquet"
    assert command(name, store, model_dir, expected) == 1  # recordings 3 and 6 are too short
    for share in ("2/2", "1/2"):
        assert command(name, store, model_dir, output, "--shard", share) == 0
        assert f"share {share[0]} of 2 is written" in capsys.readouterr().out
        assert not output.exists()
    assert len(list((tmp_path / "out.parquet.parts").glob("parts-*/*.json"))) == 4
    assert command(name, store, model_dir, output) == 1
    assert pq.read_table(output).equals(pq.read_table(expected))
    assert (tmp_path / "out.failures.csv").read_text() == (tmp_path / "expected.failures.csv").read_text()
    assert command(name, store, model_dir, output, "--shard", "1/2") == 1
    assert "complete already" in capsys.readouterr().err


def test_a_launcher_of_training_is_refused(store, model_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command("predict", store, model_dir, tmp_path / "out.parquet") == 2
    assert "torchrun and accelerate launch would have each process do all" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "3/2"], "--shard: must be I/N with I from 1 to N, found: 3/2"),
        (["--shard", "1/2", "--overwrite"], "overwrite and shard exclude each other"),
        (["--ray-workers", "2"], "--ray-workers and --gpus-per-worker need --ray"),
        (["--gpus-per-worker", "1"], "--ray-workers and --gpus-per-worker need --ray"),
        (["--ray", "--shard", "1/2"], "--ray and --shard exclude each other"),
    ],
)
def test_options_that_contradict_each_other_are_named(options, message, store, model_dir, tmp_path, capsys):
    assert command("embed", store, model_dir, tmp_path / "out.parquet", *options) == 2
    assert message in capsys.readouterr().err


def test_scores_that_are_printed_are_not_shared(store, model_dir, capsys):
    assert ecgfm(["predict", str(store), "--model", str(model_dir), "--shard", "1/2"]) == 2
    assert "--ray and --shard need --output FILE.parquet" in capsys.readouterr().err


def test_without_ray_the_error_says_what_to_install(store, model_dir, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else find(name, *more))
    assert command("embed", store, model_dir, tmp_path / "out.parquet", "--ray") == 2
    assert "pip install 'ecgfm-hf[ray]'" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'ecgfm-hf\[ray\]'"):
        RayExecutor(lambda watched: None)


def test_a_run_that_is_refused_before_its_first_part_does_not_stand_in_the_way(
    store, model_dir, tmp_path, capsys, monkeypatch
):
    class Refusing:
        def __init__(self, make, inputs, **settings):
            pass

        def run(self, tasks, advance):
            raise distributed.ClusterError("no such cluster")
            yield

    monkeypatch.setattr(distributed, "RayExecutor", Refusing)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    output = tmp_path / "out.parquet"
    assert command("embed", store, model_dir, output, "--ray") == 1
    assert "no such cluster" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert command("embed", store, model_dir, output, "--layer", "1") == 1  # recordings 3 and 6 are too short
    assert output.exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["embed", "store", "--ray"], ["embed", "store", "--ray", DEFAULT_CLUSTER]),
        (["--ray", "--output", "x"], ["--ray", DEFAULT_CLUSTER, "--output", "x"]),
        (["--ray", "store"], ["--ray", DEFAULT_CLUSTER, "store"]),
        (["--ray", "auto", "store"], ["--ray", "auto", "store"]),
        (["--ray", "head:6379"], ["--ray", "head:6379"]),
        (["--ray", "10.0.0.1"], ["--ray", "10.0.0.1"]),
    ],
)
def test_an_address_of_a_cluster_is_optional(given, expected):
    assert with_default_cluster(given) == expected


def rows_of(store):
    return pa.concat_tables(pq.read_table(path) for paths in store_files(store).values() for path in paths)


@pytest.mark.parametrize("form", ["numpy", "pyarrow"])
@pytest.mark.parametrize("name", ["predict", "embed"])
def test_rows_of_a_store_in_a_pipeline_give_what_the_command_writes(name, form, store, model_dir, tmp_path):
    output = tmp_path / "out.parquet"
    assert command(name, store, model_dir, output) == 1
    table = rows_of(store)
    batch = table if form == "pyarrow" else {column: table[column].to_numpy() for column in table.column_names}
    found = {"predict": ECGFMPredictor, "embed": ECGFMEmbedder}[name](model_dir)(batch)
    assert found["recording_id"].to_pylist() == table["recording_id"].to_pylist()
    failed = [reason is not None for reason in found["failure"].to_pylist()]
    assert failed == [length < 5 for length in (10, 5, 23, 3, 10, 15, 4, 10, 5, 10)]
    expected = pq.read_table(output)
    usable = found.filter(pa.array([not one for one in failed])).drop_columns(["failure"])
    assert usable.schema.equals(expected.schema.remove_metadata())
    for one, other in zip(usable.to_pylist(), expected.to_pylist(), strict=True):
        for column, value in other.items():
            is_number = isinstance(value, float) or column == "embedding"
            assert one[column] == (pytest.approx(value, abs=1e-5) if is_number else value), column


def test_arrays_in_a_pipeline_give_what_embed_returns(model_dir):
    given = [one for one in recordings() if one["signal"].shape[1] == 5000]  # 10 s of 500 Hz
    batch = {
        "signal": np.stack([one["signal"] for one in given]),
        "sampling_rate": np.array([one["sampling_rate"] for one in given]),
        "lead_names": np.array([one["lead_names"] for one in given]),
        "units": np.array(["uV"] * len(given)),
        "note": np.array(["ignored"] * len(given)),
    }
    found = ECGFMEmbedder(model_dir, layer=1)(batch)
    expected = embed(model_dir, [as_pipeline_input(one) for one in given], layer=1)
    np.testing.assert_allclose(np.array(found["embedding"].to_pylist()), expected, atol=1e-5)
    assert found["recording_id"].null_count == len(given)


def test_a_row_that_cannot_be_used_stops_no_other(model_dir):
    whole = recordings()[0]
    batch = {
        "recording_id": np.array(["whole", "ragged", "one lead"]),
        "sampling_rate": np.array([500, 500, 500]),
        "units": np.array(["uV"] * 3),
    }
    ragged = np.empty(2, dtype=object)
    ragged[:] = [np.zeros(2500), np.zeros(2400)]
    for name, values in (
        ("signal", [whole["signal"], ragged, whole["signal"][:1]]),
        ("lead_names", [whole["lead_names"], ["I", "II"], ["I"]]),
    ):
        batch[name] = np.empty(3, dtype=object)
        batch[name][:] = values
    found = ECGFMPredictor(model_dir, missing_leads="error")(batch).to_pylist()
    assert found[0]["failure"] is None
    assert found[0]["score:A"] is not None
    for row in found[1:]:
        assert row["failure"]
        assert row["score:A"] is None
