"""The benchmark command: what it prints, on a tiny model and store."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _results(tmp_path, *arguments):
    command = [sys.executable, "scripts/benchmark.py", *arguments, "--json", "--folder", str(tmp_path)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not any(tmp_path.iterdir())
    return [json.loads(line) for line in output.splitlines()]


def test_the_cost_of_checks_is_printed_as_ratios_of_one_run(tmp_path):
    results = _results(tmp_path, "integrity", "--tiny", "--recordings", "8", "--runs", "1")
    assert [result["name"] for result in results] == [
        "integrity/load/base",
        "integrity/load/classifier with thresholds",
        "integrity/open store",
        "integrity/stream store",
    ]
    assert all(result["ratio"] > 0 for result in results)


def test_the_memory_of_reading_is_printed_for_two_sizes(tmp_path):
    results = _results(tmp_path, "data", "--recordings", "300", "--cases", "memory/read")
    assert [(result["name"], result["recordings"]) for result in results] == [
        ("data/memory/read", 30),
        ("data/memory/read", 300),
    ]
    assert all(result["peak_private_gb"] >= result["before_gb"] > 0 for result in results)
