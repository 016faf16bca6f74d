"""The benchmark command: what it prints, on a tiny model and store."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_cost_of_checks_is_printed_as_ratios_of_one_run(tmp_path):
    command = [
        sys.executable,
        "scripts/benchmark.py",
        "integrity",
        "--tiny",
        "--recordings",
        "8",
        "--runs",
        "1",
        "--json",
    ]
    output = subprocess.run(
        [*command, "--folder", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    results = [json.loads(line) for line in output.splitlines()]
    assert [result["name"] for result in results] == [
        "integrity/load/base",
        "integrity/load/classifier with thresholds",
        "integrity/open store",
        "integrity/stream store",
    ]
    assert all(result["ratio"] > 0 for result in results)
    assert not any(tmp_path.iterdir())
