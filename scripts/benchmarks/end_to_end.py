"""`ecgfm predict` of WFDB files beside the model alone, and from its start to the first answer beside an import."""

import argparse
import contextlib
import csv
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

BATCH = 8  # as `ecgfm predict` has it
IMPORT = "from transformers import PreTrainedModel"
GOALS = "share of the model's own segments/s: tiny 0.8, base 0.95; start: at most 1.2 times import and forward pass"
# Those of the recipe pretrain_tiny.
TINY = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "conv_dim": [64] * 5,
    "conv_kernel": [2] * 5,
    "conv_stride": [2] * 5,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 8,
}


def run(options: argparse.Namespace) -> int:
    """Prints the figures of each model, in processor time and by the clock."""
    from ecgfm_hf import ECGFMConfig, ECGFMFeatureExtractor, ECGFMForMultiLabelClassification
    from ecgfm_hf.model_folder import save_model_folder
    from ecgfm_hf.synthetic import SyntheticCohort

    with tempfile.TemporaryDirectory(prefix="ecgfm-benchmark-", dir=options.folder) as scratch:
        SyntheticCohort(max(20, options.recordings), seed=1).write_wfdb(Path(scratch, "wfdb"))
        files = sorted(map(str, Path(scratch, "wfdb").rglob("*.hea")))
        for size in options.models:
            config = ECGFMConfig.base(num_labels=17, **(TINY if size == "tiny" else {}))
            folder = Path(scratch, size)
            save_model_folder(ECGFMForMultiLabelClassification(config), ECGFMFeatureExtractor(), folder)
            own = files[: options.recordings if size == "tiny" else options.base_recordings]
            for name, measured in (("files", _measure_files), ("start", _measure_start)):
                result = {"name": f"end-to-end/{name}/{size}", **measured(folder, own, options.runs)}
                print(json.dumps(result) if options.json else result, flush=True)
    if not options.json:
        print(f"goals: {GOALS}")
    return 0


def _measure_files(model: Path, files: list[str], runs: int) -> dict:
    """The model's time for all segments as a share of what all files cost more than the first one, in turns."""
    import torch

    from ecgfm_hf.model_folder import load_model

    listed = model.with_suffix(".txt")
    listed.write_text("\n".join(files))
    first, network = model.with_suffix(".first.txt"), load_model(model)
    first.write_text(files[0])
    segments = _predict(model, listed)  # also fills caches
    batch = torch.randn(BATCH, network.config.num_leads, 2500)

    def forward() -> None:
        with torch.no_grad():
            for _ in range(segments // BATCH):
                network(batch)

    forward()
    shares: dict[str, list[float]] = {"cpu": [], "wall": []}
    speeds = []
    for _ in range(runs):
        alone, start, whole = (
            _seconds(work) for work in (forward, lambda: _predict(model, first), lambda: _predict(model, listed))
        )
        for clock, found in shares.items():
            found.append(alone[clock] / (whole[clock] - start[clock]))
        speeds.append(segments / (whole["wall"] - start["wall"]))
    return {
        "share": round(statistics.median(shares["cpu"]), 3),
        "share_range": [round(min(shares["cpu"]), 3), round(max(shares["cpu"]), 3)],
        "share_by_the_clock": round(statistics.median(shares["wall"]), 3),
        "segments_per_s": round(statistics.median(speeds), 1),
        "recordings": len(files),
        "runs": runs,
    }


def _predict(model: Path, files: Path) -> int:
    """Runs the command in this process; returns the number of segments."""
    from ecgfm_hf.cli.main import main

    answers = io.StringIO()
    with contextlib.redirect_stdout(answers), contextlib.redirect_stderr(io.StringIO()):
        assert main(["predict", "--model", str(model), "--list", str(files), "--format", "csv"]) == 0
    return sum(int(row["segments"]) for row in csv.DictReader(answers.getvalue().splitlines()))


def _measure_start(model: Path, files: list[str], runs: int) -> dict:
    """Processor time of whole processes, in turns."""
    import torch

    from ecgfm_hf.model_folder import load_model

    network, batch = load_model(model), torch.randn(2, 12, 2500)

    def forward() -> None:
        with torch.no_grad():
            network(batch)

    forward()
    command = [sys.executable, "-m", "ecgfm_hf.cli", "predict", "--model", str(model), files[0]]
    ratios, starts = [], []
    _child([sys.executable, "-c", IMPORT]), _child(command)
    for _ in range(runs):
        reference = _child([sys.executable, "-c", IMPORT]) + _seconds(forward)["cpu"]
        starts.append(_child(command))
        ratios.append(starts[-1] / reference)
    return {
        "times_import_and_forward": round(statistics.median(ratios), 3),
        "range": [round(min(ratios), 3), round(max(ratios), 3)],
        "cpu_s": round(statistics.median(starts), 3),
        "runs": runs,
    }


def _seconds(work: Callable[[], object]) -> dict[str, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def _child(command: list[str]) -> float:
    """Returns the processor time of a process."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return used() - before
