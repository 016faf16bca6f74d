"""Runs on a Ray cluster of two nodes on this machine: the same rows as here, also where nodes or drivers are killed."""

import functools
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from inference_cases import LABELS, recordings, write_model, write_store
from killed_runs import content

from ecgfm_hf.cli.main import main as ecgfm
from ecgfm_hf.data import Source, SourceIndex, prepare
from ecgfm_hf.records import ECGRecord

ray = pytest.importorskip("ray", reason="needs ecgfm-hf[ray]")
pytestmark = pytest.mark.slow  # a cluster, whose processes each import torch and transformers

from ray.cluster_utils import Cluster  # noqa: E402  # after the module is skipped where there is no Ray

from ecgfm_hf.distributed import ClusterError, ECGFMEmbedder, RayExecutor  # noqa: E402

ROOM = 100 * 2**20  # bytes of each node's object store
FOLDERS = os.pathsep.join(path for path in sys.path if path)


def add_node(cluster, cpus=1, **environment):
    """Adds a node whose processes find this package and the tests' modules, or what PYTHONPATH says."""
    return cluster.add_node(
        num_cpus=cpus, object_store_memory=ROOM, env_vars={"PYTHONPATH": FOLDERS, "OMP_NUM_THREADS": "1"} | environment
    )


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU, and a head without, on which drivers run."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": ROOM})
    for _ in range(2):
        add_node(made)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tiny_config):
    return write_model(tmp_path_factory.mktemp("model"), tiny_config())


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    given = [{**one, "recording_id": f"{one['recording_id']}-{k}"} for k in range(4) for one in recordings(seed=k)]
    labels = {name: values * 4 for name, values in LABELS.items()}
    return write_store(tmp_path_factory.mktemp("made") / "store", given, labels)


class Made(Source):
    """Recordings that are made when they are read, each after a pause; some cannot be, and one may do worse."""

    name = "made"
    label_names = ()

    def __init__(self, count=1280, pause=0.0, worse=None):
        self.count, self.pause, self.worse = count, pause, worse

    def index(self):
        ids = [f"r{number:04d}" for number in range(self.count)]
        return SourceIndex(pa.table({"recording_id": ids, "path": ids, "patient_id": ids}))

    def read_one(self, entry):
        number = int(entry["path"][1:])
        time.sleep(self.pause)
        if number == self.worse:
            os._exit(11)
        if number % 7 == 0:
            raise ValueError(f"{entry['path']}: recording {number} cannot be read")
        samples = np.random.default_rng(number).integers(-900, 900, (12, 100)).astype(np.int16)
        leads = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
        units = {"gain": np.full(12, 1000.0), "baseline": np.zeros(12), "units": ("mV",) * 12}
        return ECGRecord(
            recording_id="", path=entry["path"], samples=samples, sampling_rate=500.0, lead_names=leads, **units
        )


class Counted:
    """`distribute`, which keeps its executors."""

    def __init__(self, cluster, **settings):
        self.settings, self.executors = {"address": cluster.address, **settings}, []

    def __call__(self, make, inputs):
        self.executors.append(RayExecutor(make, inputs, **self.settings))
        return self.executors[-1]


def test_a_store_is_the_one_that_this_machine_writes_and_both_nodes_do_their_share(cluster, tmp_path):
    source = Made(pause=0.01)
    prepare(source, tmp_path / "expected")
    counted = Counted(cluster)
    prepare(source, tmp_path / "store", distribute=counted)
    expected, found = content(tmp_path / "expected"), content(tmp_path / "store")
    assert found == expected
    shares = counted.executors[0].parts_by_node
    assert sum(shares.values()) == 20
    assert sorted(shares) == sorted(node["NodeID"] for node in nodes_with_cpus(cluster))
    assert min(shares.values()) >= 0.3 * 20


def nodes_with_cpus(cluster):
    ray.init(address=cluster.address, log_to_driver=False)
    found = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    ray.shutdown()
    return found


@pytest.mark.parametrize(("name", "options"), [("predict", []), ("embed", ["--workers", "0", "--per-segment"])])
def test_rows_are_those_that_this_machine_writes(name, options, cluster, store, model_dir, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker has: other numbers of threads add up in other orders
    given = [name, str(store), "--model", str(model_dir), "--part-size", "4", *options, "--output"]
    try:
        assert ecgfm([*given, str(tmp_path / "expected.parquet")]) == 1  # eight recordings are too short
    finally:
        torch.set_num_threads(threads)
    assert ecgfm([*given, str(tmp_path / "out.parquet"), "--ray", cluster.address, "--ray-workers", "2"]) == 1
    found, expected = (pq.read_table(tmp_path / file) for file in ("out.parquet", "expected.parquet"))
    assert found.equals(expected, check_metadata=True)
    assert (tmp_path / "out.failures.csv").read_text() == (tmp_path / "expected.failures.csv").read_text()
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith("out.")} == {
        "out.parquet",
        "out.failures.csv",
    }


def test_a_pipeline_of_ray_data_embeds_a_store(cluster, store, model_dir, tmp_path):
    assert ecgfm(["embed", str(store), "--model", str(model_dir), "--output", str(tmp_path / "expected.parquet")]) == 1
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        rows = ray.data.read_parquet(f"file://{store}/data")
        found = rows.map_batches(
            ECGFMEmbedder, fn_constructor_kwargs={"model": str(model_dir)}, batch_size=8, concurrency=1
        )
        found.write_parquet(f"file://{tmp_path}/embeddings")
    finally:
        ray.shutdown()
    table = pq.read_table(tmp_path / "embeddings")
    expected = {row["recording_id"]: row for row in pq.read_table(tmp_path / "expected.parquet").to_pylist()}
    kept = {row["recording_id"]: row for row in table.to_pylist() if row["failure"] is None}
    assert table.num_rows == 40
    assert kept.keys() == expected.keys()
    for name, row in kept.items():
        np.testing.assert_allclose(row["embedding"], expected[name]["embedding"], atol=1e-5)


def test_a_node_that_is_killed_costs_nothing(cluster, tmp_path):
    source = Made(pause=0.01)
    prepare(source, tmp_path / "expected")
    rng = random.Random(0)

    def kill():
        time.sleep(rng.uniform(3.0, 6.0))
        cluster.remove_node(rng.choice(sorted(cluster.worker_nodes, key=lambda node: node.unique_id)), False)

    killer = threading.Thread(target=kill)
    killer.start()
    prepare(source, tmp_path / "store", distribute=Counted(cluster))
    killer.join()
    assert len(cluster.worker_nodes) == 1
    add_node(cluster)  # only the main thread can
    assert content(tmp_path / "store") == content(tmp_path / "expected")


def test_a_recording_that_kills_its_process_costs_only_itself(cluster, tmp_path):
    prepare(Made(256), tmp_path / "expected")
    report = prepare(Made(256, worse=100), tmp_path / "store", distribute=Counted(cluster))
    assert report["excluded_by_reason"]["the process that read it died"] == 1
    kept = {row["recording_id"] for rows in content(tmp_path / "store")["rows"].values() for row in rows}
    expected = {row["recording_id"] for rows in content(tmp_path / "expected")["rows"].values() for row in rows}
    assert kept == expected - {"r0100"}


def test_a_run_whose_driver_is_killed_is_resumed_by_local_processes(cluster, tmp_path):
    source = Made(pause=0.02)
    prepare(source, tmp_path / "expected")
    out = tmp_path / "store"
    # Not a fork: this process has been part of the cluster.
    code = (
        "import functools, sys\nfrom test_distributed_ray import Made\nfrom ecgfm_hf.data import prepare\n"
        "from ecgfm_hf.distributed import RayExecutor\n"
        "prepare(Made(pause=0.02), sys.argv[1], distribute=functools.partial(RayExecutor, address=sys.argv[2]))"
    )
    arguments = [sys.executable, "-c", code, str(out), cluster.address]
    driver = subprocess.Popen(arguments, env={**os.environ, "PYTHONPATH": FOLDERS}, start_new_session=True)
    accounts = "parts-*/part-*.json"
    end = time.monotonic() + 120
    while len(list((out / ".ecgfm-work").glob(accounts))) < 4 and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    assert 4 <= len(list((out / ".ecgfm-work").glob(accounts))) < 20
    prepare(source, out, num_proc=2)
    assert content(out) == content(tmp_path / "expected")


def refusal(tmp_path, address, **settings):
    """The error of a run, and that it came in time."""
    began = time.monotonic()
    with pytest.raises(ClusterError) as caught:
        prepare(Made(64), tmp_path / "store", distribute=functools.partial(RayExecutor, address=address, **settings))
    assert time.monotonic() - began < 60
    return str(caught.value)


def test_an_address_at_which_nothing_answers_is_an_error(tmp_path):
    assert "nothing answers at 127.0.0.1:9: check the address" in refusal(tmp_path, "127.0.0.1:9")
    assert "Ray's client is not supported" in refusal(tmp_path, "ray://127.0.0.1:10001")


def test_more_than_any_node_has_is_an_error(cluster, tmp_path):
    assert "no node of the Ray cluster has 3 CPU" in refusal(tmp_path, cluster.address, cpus_per_worker=3)
    assert "no node of the Ray cluster has 1 CPU and 1 GPU" in refusal(tmp_path, cluster.address, gpus_per_worker=1)


@pytest.mark.parametrize("what", ["without the package", "another version", "another folder"])
def test_a_node_that_differs_is_an_error_with_the_remedy(what, cluster, tmp_path, monkeypatch):
    stub = tmp_path / "stub"
    stub.mkdir()
    monkeypatch.chdir(tmp_path)  # Ray has workers import from the driver's folder, too
    environment = {"PYTHONPATH": str(stub)}
    if what == "another version":
        (stub / "ecgfm_hf").mkdir()
        (stub / "ecgfm_hf" / "__init__.py").write_text('__version__ = "0.0.9"\n')
        expected = "has ecgfm-hf 0.0.9, this machine .*: install the same version on all nodes"
    elif what == "without the package":
        (stub / "ecgfm_hf.py").write_text("raise ImportError('No module named ecgfm_hf')\n")
        expected = "cannot import ecgfm_hf .*: pip install 'ecgfm-hf.ray.==.*' there"
    else:
        # All nodes are on this machine: on one of them, this folder's files cannot be opened.
        (stub / "sitecustomize.py").write_text(
            "import builtins, io\nopened = builtins.open\n"
            f"def open(file, *more, **options):\n    if {str(tmp_path / 'store')!r} in str(file):\n"
            "        raise FileNotFoundError(file)\n    return opened(file, *more, **options)\nbuiltins.open = open\n"
        )
        environment = {"PYTHONPATH": os.pathsep.join([str(stub), FOLDERS])}
        expected = "does not see the folder .* of this machine: write to a folder that all nodes share"
    node = add_node(cluster, **environment)
    try:
        assert re.search(f"node .* {expected}", refusal(tmp_path, cluster.address))
    finally:
        cluster.remove_node(node, False)
