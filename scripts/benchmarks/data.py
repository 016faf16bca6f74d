"""Preparing a store and reading it, beside the way of fairseq-signals."""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .ceiling import Ceiling
from .made import MadeRecordings

# fairseq-signals keeps a 10 s recording of 12 leads at 500 Hz three times, as float64.
ORIGINAL_BYTES = 3 * 12 * 5000 * 8
MOST_WRITTEN, MOST_ORIGINAL = 2000, 250  # recordings as WFDB files, and as fairseq-signals' segments
BATCH = 64
READS = ("pairs", "recordings", "segments", "first-epoch", "stream", "shuffled-stream")
BUFFER = 500  # recordings that a shuffled stream holds
GOALS = {
    "data/prepare": "465 recordings/s a core",
    "data/disk": "0.1 of the original's",
    "data/read": "8,000 segments/s a process",
    "data/memory": "flat",
}


def run(options: argparse.Namespace) -> int:
    """Writes what is read, and measures each case in a process of its own: peak memory is a process's."""
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ecgfm-benchmark-", dir=options.folder) as scratch:
        cases = [case for case in _cases(options, scratch) if not options.cases or _is_wanted(case, options.cases)]
        if any(not case["name"].startswith("data/memory") for case in cases):
            status = _child({"name": "write", "folder": scratch, "recordings": min(options.recordings, MOST_WRITTEN)})
            if status is None:
                return 1
        if not options.json:
            print(f"{'':44}{'':>44}{'ceiling':>14}{'peak memory':>13}")
        for case in cases:
            result = _child(case)
            if result is None:
                return 1
            print(json.dumps(result) if options.json else _line(result), flush=True)
        if not options.json:
            print("goals: " + "; ".join(f"{name} {goal}" for name, goal in GOALS.items()))
    return 0


def _cases(options: argparse.Namespace, scratch: str) -> list[dict]:
    sizes = (1000, 10_000) if options.recordings >= 1000 else (options.recordings // 10, options.recordings)
    sizes += (options.recordings,) if options.recordings > 10_000 else ()
    cases = [{"name": "data/prepare/wfdb"}, {"name": "data/prepare/wfdb/split"}, {"name": "data/disk"}]
    for how in READS:
        cases += [{"name": f"data/read/{how}", "keep_freed_memory": keep} for keep in (False, True)]
    cases += [{"name": f"data/memory/{what}", "recordings": n} for n in sizes for what in ("prepare", "stream", "read")]
    return [{"folder": scratch, "runs": options.runs, **case} for case in cases]


def _is_wanted(case: dict, parts: list[str]) -> bool:
    return any(part in case["name"] for part in parts)


def _child(case: dict) -> dict | None:
    command = [sys.executable, sys.argv[0], "data", "--case", json.dumps(case)]
    # The copies of stores go where the other scratch files are.
    environment = os.environ | {"TMPDIR": case["folder"], "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if child.returncode:
        print(f"{case['name']} failed", file=sys.stderr)
        return None
    return json.loads(child.stdout)


def _line(result: dict) -> str:
    name = result["name"] + "/kept" * result.get("keeps_freed_memory", False)
    if "segments_per_s" in result:
        figure = f"{result['segments_per_s']:,.0f} segments/s, {result['times_original']:.2f} x the original's"
    elif "recordings_per_cpu_s" in result:
        figure = f"{result['recordings_per_s']:,.0f} recordings/s, {result['recordings_per_cpu_s']:,.0f} a CPU second"
    elif "store_bytes" in result:
        figure = f"store {result['store_share']:.3f}, with cache {result['store_and_cache_share']:.3f} of the original"
    else:
        name += f"/{result['recordings']}"
        figure = f"{result['peak_private_gb']:.3f} GB of its own, {result['recordings_per_s']:,.0f} recordings/s"
    return f"{name:40}{figure:>48}{result['ceiling_gflops']:6.0f} GFLOP/s{result['peak_memory_gb']:10.2f} GB"


def measure(case: dict) -> int:
    """Prints one object: a case's figures."""
    folder, kind = Path(case["folder"]), case["name"].split("/")
    if kind == ["write"]:
        figures = _write(folder, case["recordings"])
    elif kind[1] == "prepare":
        figures = _measure_preparing(folder, "split" in kind, case["runs"])
    elif kind[1] == "disk":
        figures = _measure_disk(folder)
    elif kind[1] == "read":
        figures = _measure_reading(folder, kind[2], case["keep_freed_memory"], case["runs"])
    else:
        figures = _measure_memory(folder, kind[2], case["recordings"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"name": case["name"], **figures, "peak_memory_gb": round(peak, 3)}))
    return 0


def _write(folder: Path, recordings: int) -> dict:
    """A cohort as WFDB files, its store, and some of its segments as fairseq-signals keeps them."""
    from scipy.io import savemat

    from ecgfm_hf.synthetic import SyntheticCohort

    written = SyntheticCohort(max(20, recordings // 2), seed=1).write_wfdb(folder / "wfdb")
    _prepare(folder, "store", split=True)  # as training reads it: files of up to 4,096 recordings
    (folder / "original").mkdir()
    inputs = _model_inputs(folder / "store", streaming=False)
    for item in range(min(len(inputs), 2 * MOST_ORIGINAL)):
        feats = inputs[item]["input_values"].astype("float64")
        facts = {"feats": feats, "curr_sample_rate": 500, "org_sample_rate": 500, "curr_sample_size": 2500}
        savemat(folder / "original" / f"{item}.mat", facts)
    return {"recordings": written.num_recordings}


def _prepare(folder: Path, name: str, split: bool) -> dict:
    from ecgfm_hf.data import PhysioNet2021, PrepareSettings, SplitSettings, prepare

    settings = SplitSettings("random", assume_independent=True) if split else SplitSettings()
    return prepare(PhysioNet2021(folder / "wfdb"), folder / name, PrepareSettings(split=settings))


def _model_inputs(
    store: Path,
    streaming: bool,
    *,
    shuffled: bool = False,
    transform: Callable | None = None,
    pairs: bool = False,
    cache_dir: str | None = None,
):
    from ecgfm_hf import ECGFMFeatureExtractor
    from ecgfm_hf.data import as_model_inputs, load_prepared

    dataset = load_prepared(store, "train", streaming=streaming, cache_dir=cache_dir)
    if shuffled:
        dataset = dataset.reshard().shuffle(seed=0, buffer_size=BUFFER)
    return as_model_inputs(dataset, ECGFMFeatureExtractor(), pairs=pairs, transform=transform)


def _measure_preparing(folder: Path, split: bool, runs: int) -> dict:
    ceiling = Ceiling()
    speeds, cpu_speeds, ceilings = [], [], []
    for number in range(runs + 1):
        before = ceiling.measure()
        start, cpu = time.perf_counter(), time.process_time()
        kept = _prepare(folder, "prepared", split)["recordings"]["kept"]
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        shutil.rmtree(folder / "prepared")
        if number:  # the first fills caches
            speeds.append(kept / seconds)
            cpu_speeds.append(kept / cpu_seconds)
            ceilings.append((before + ceiling.measure()) / 2)
    return {
        "recordings_per_s": round(statistics.median(speeds), 1),
        "recordings_per_s_range": [round(min(speeds), 1), round(max(speeds), 1)],
        "recordings_per_cpu_s": round(statistics.median(cpu_speeds), 1),
        "recordings": kept,
        "runs": runs,
        "ceiling_gflops": round(statistics.median(ceilings), 1),
    }


def _measure_disk(folder: Path) -> dict:
    from ecgfm_hf.data import load_prepared, read_report

    recordings = read_report(folder / "store")["recordings"]["kept"]
    load_prepared(folder / "store", cache_dir=folder / "cache")
    store, cache = (_bytes_in(folder / name) / recordings for name in ("store", "cache"))
    return {
        "store_bytes": round(store),
        "cache_bytes": round(cache),
        "store_share": round(store / ORIGINAL_BYTES, 4),
        "store_and_cache_share": round((store + cache) / ORIGINAL_BYTES, 4),
        "ceiling_gflops": round(Ceiling().measure(), 1),
    }


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _measure_reading(folder: Path, how: str, keep: bool, runs: int) -> dict:
    """
    Our way and the original's in turns, each to batches of float32 tensors of which half of the leads are zero.

    A second thread decompresses what is streamed or copied; all else is done by one. A shuffled stream takes ten row
    groups at a time in random order, each read by a thread, and holds `BUFFER` recordings.

    `first-epoch`: single segments in random order, from opening the store, with the check of its files and its copy.
    """
    import numpy as np

    from ecgfm_hf.utils.precision import keep_freed_memory

    kept = keep and keep_freed_memory()
    rng = np.random.default_rng(0)

    def mask(values: np.ndarray, item: dict) -> np.ndarray:
        values[rng.random(values.shape[:-1]) < 0.5] = 0
        return values

    def opened(cache_dir: str | None = None):
        return _model_inputs(
            folder / "store",
            "stream" in how,
            shuffled=how == "shuffled-stream",
            transform=mask,
            pairs=how == "pairs",
            cache_dir=cache_dir,
        )

    def items(inputs) -> Iterator[list[np.ndarray]]:
        if "stream" in how:
            values = []
            for item in inputs:
                values.append(item["input_values"])
                if len(values) == BATCH:
                    yield values
                    values = []
            return
        order = rng.permutation(len(inputs)) if how in ("segments", "first-epoch") else inputs.shuffle_recordings(rng)
        a_batch = BATCH // 2 if how == "pairs" else BATCH
        for first in range(0, len(order) - a_batch + 1, a_batch):
            yield [item["input_values"] for item in inputs.__getitems__(order[first : first + a_batch])]

    def first_epoch() -> Iterator[list[np.ndarray]]:
        for path in (folder / "store" / "data").iterdir():
            os.utime(path)  # so that each run checks the files again
        with tempfile.TemporaryDirectory(dir=folder) as cache_dir:
            yield from items(opened(cache_dir))

    inputs = None if how == "first-epoch" else opened()
    ceiling = Ceiling()
    speeds, ratios, originals, ceilings = [], [], [], []
    for number in range(runs + 1):
        before = ceiling.measure()
        original = _segments_per_s(_original_batches(folder / "original", mask, rng))
        speed = _segments_per_s(first_epoch() if inputs is None else items(inputs))
        if number:
            originals.append(original)
            speeds.append(speed)
            ratios.append(speed / original)
            ceilings.append((before + ceiling.measure()) / 2)
    return {
        "segments_per_s": round(statistics.median(speeds), 1),
        "segments_per_s_range": [round(min(speeds), 1), round(max(speeds), 1)],
        "original_segments_per_s": round(statistics.median(originals), 1),
        "times_original": round(statistics.median(ratios), 3),
        "times_original_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "keeps_freed_memory": bool(kept),
        "runs": runs,
        "ceiling_gflops": round(statistics.median(ceilings), 1),
    }


def _original_batches(folder: Path, mask: Callable, rng) -> Iterator[list]:
    """fairseq-signals' way: a file of float64 a segment, in random order."""
    from scipy.io import loadmat

    paths = sorted(folder.glob("*.mat"))
    order = rng.permutation(len(paths)).tolist()
    for first in range(0, len(order) - BATCH + 1, BATCH):
        yield [mask(loadmat(paths[index])["feats"].astype("float32"), {}) for index in order[first : first + BATCH]]


def _segments_per_s(batches: Iterator[list]) -> float:
    import numpy as np
    import torch

    segments, start = 0, time.perf_counter()
    for values in batches:
        batch = torch.from_numpy(np.stack(values)).reshape(-1, 12, 2500)
        assert batch.dtype == torch.float32
        segments += len(batch)
    return segments / (time.perf_counter() - start)


def _measure_memory(folder: Path, what: str, recordings: int) -> dict:
    """
    Preparing makes the store that the other two then read. Pages of files that are mapped count as the process's in its
    peak memory, though they are the system's to take back; `peak_private_gb` is without them.
    """
    from ecgfm_hf.data import PrepareSettings, SplitSettings, prepare

    ceiling = Ceiling().measure()
    store = folder / f"store-{recordings}"
    settings = PrepareSettings(split=SplitSettings("grouped"))
    if what == "prepare":
        source = MadeRecordings(recordings)
    else:
        if not store.is_dir():  # with --cases
            prepare(MadeRecordings(recordings), store, settings)
        inputs = _model_inputs_of_train(store, streaming=what == "stream")
    start = time.perf_counter()
    with _PrivateMemory() as memory:
        if what == "prepare":
            count = prepare(source, store, settings)["recordings"]["kept"]
        elif what == "stream":
            count = len({item["recording_id"] for item in inputs})
        else:
            import numpy as np

            order = inputs.shuffle_recordings(np.random.default_rng(0))
            count = len(np.unique(inputs.recordings))
            for first in range(0, len(order), BATCH):
                inputs.__getitems__(order[first : first + BATCH])
    seconds = time.perf_counter() - start
    if what == "read":  # the last of the three
        shutil.rmtree(store)
    return {
        "recordings": recordings,
        "recordings_per_s": round(count / seconds, 1),
        "peak_private_gb": round(memory.peak, 3),
        "before_gb": round(memory.before, 3),
        "ceiling_gflops": round(ceiling, 1),
    }


def _model_inputs_of_train(store: Path, *, streaming: bool):
    from ecgfm_hf import ECGFMFeatureExtractor
    from ecgfm_hf.data import as_model_inputs, load_prepared

    return as_model_inputs(load_prepared(store, "train", streaming=streaming), ECGFMFeatureExtractor())


class _PrivateMemory:
    """Watches the memory of this process that no file stands behind, in GB."""

    def __init__(self) -> None:
        self.before = self.peak = self._now()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    @staticmethod
    def _now() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 2**20

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, self._now())

    def __enter__(self) -> "_PrivateMemory":
        self._watcher.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._watcher.join()
