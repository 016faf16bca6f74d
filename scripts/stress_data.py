"""
What preparing a store must survive, in full size: damaged files and kills.

    python scripts/stress_data.py [--damaged 1000] [--kills 10] [--seed 0]

Writes a folder with as many sound as damaged recordings, prepares it, and compares every row with what was written;
then kills `ecgfm prepare`, children and all, at random moments (reading and finishing, one process and two, split and
not), resumes it, and compares the store with the store of one undisturbed run. `tests/test_prepare_damaged.py` and
`tests/test_prepare_resume.py` do the same in small. Exit status 1 if anything is not as it must be.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from damaged_folders import CANARY_VALUE, DamagedFolder, same_facts, samples_of, write_folder
from killed_runs import content

from ecgfm_hf.data import PhysioNet2021, RecordingTable, prepare
from ecgfm_hf.data.store import store_files

# Damage that makes a gain, rate, unit or lead name into another valid one cannot be recognised in a file.
UNTELLABLE = ("bits flipped in the header", "header cut off")


def main() -> int:
    parser = argparse.ArgumentParser(description="What preparing a store must survive, in full size.")
    parser.add_argument("--damaged", type=int, default=1000, help="damaged recordings, among as many sound ones")
    parser.add_argument("--kills", type=int, default=10, help="kills of each way to run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="for scratch files, removed at the end (default: a temporary one)")
    options = parser.parse_args()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ecgfm-stress-", dir=options.folder) as scratch:
        wrong = []
        if options.damaged:
            wrong += stress_damaged(Path(scratch) / "damaged", options.damaged, options.seed)
        if options.kills:
            wrong += stress_kills(Path(scratch) / "killed", options.kills, options.seed)
    for sentence in wrong:
        print(f"WRONG: {sentence}")
    print("wrong" if wrong else "all as it must be")
    return int(bool(wrong))


def stress_damaged(base: Path, count: int, seed: int) -> list[str]:
    """Prepares damaged folders as `physionet2021` and as `table`; returns what is wrong."""
    folder = write_folder(base, count, count, seed=seed)
    opened: list[str] = []

    def note(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            opened.append(os.path.realpath(os.fsdecode(arguments[0])))

    sys.addaudithook(note)
    table = base / "table.csv"
    stems = [
        next(folder.root.rglob(f"{name}.*")).with_suffix(".hea").relative_to(folder.root) for name in folder.samples
    ]
    lines = [
        f"{path},{name},{number % 2}" for number, (name, path) in enumerate(zip(folder.samples, stems, strict=True))
    ]
    table.write_text("\n".join(["path,recording_id,AF", *lines]) + "\n")

    wrong = []
    for name, source in (("physionet2021", PhysioNet2021(folder.root)), ("table", RecordingTable(folder.root, table))):
        report = prepare(source, base / name)
        print(f"{name}: {report['recordings']}")
        for reason, number in report["excluded_by_reason"].items():
            print(f"  {number:5}  {reason}")
        wrong += [f"{name}: {sentence}" for sentence in compare(folder, base / name, report)]
    outside = {path for path in opened if path.startswith(f"{folder.outside}{os.sep}")}
    if outside - {str(folder.outside / "canary.hea")}:  # a header may be a link, as in the Hub's cache
        wrong.append(f"read outside of the folder: {sorted(outside)}")
    return wrong


def compare(folder: DamagedFolder, store: Path, report: dict) -> list[str]:
    """What of a store is not as it was before the damage."""
    wrong = []
    files = [file for files in store_files(store).values() for file in files]
    rows = {row["recording_id"]: row for file in files for row in pq.read_table(file).to_pylist()}
    wrong += [f"{name} is sound and missing" for name in folder.sound if name not in rows]
    other_facts = Counter()
    for name, row in rows.items():
        kind = folder.damage.get(name, "sound")
        if name not in folder.samples or not np.array_equal(samples_of(row), folder.samples[name]):
            wrong.append(f"{name} ({kind}) has other samples")
        if not same_facts(row):
            other_facts[kind] += 1
    wrong += [f"{count} of {kind} have other gains, rates or leads" for kind, count in other_facts.items()
              if kind not in UNTELLABLE]  # fmt: skip
    kept = Counter(kind for name, kind in folder.damage.items() if name in rows)
    print(f"  damaged and kept, samples as before: {dict(kept)}")
    print(f"  of these with another gain, rate, unit or lead name that cannot be recognised: {dict(other_facts)}")
    if any((samples_of(row) == CANARY_VALUE).any() for row in rows.values()):
        wrong.append("samples from outside of the folder")
    counts = report["recordings"]
    if not counts["found"] == counts["kept"] + counts["excluded"] == len(folder.samples) or counts["kept"] != len(rows):
        wrong.append(f"the account does not add up: {counts}, {len(folder.samples)} written, {len(rows)} rows")
    return wrong


def stress_kills(base: Path, kills: int, seed: int) -> list[str]:
    """Kills `ecgfm prepare` at random moments, for each way to run; returns what is wrong."""
    folder = write_folder(base, 1200, 100, num_samples=2500, seed=seed)
    rng = np.random.default_rng(seed)
    wrong = []
    for split in ((), ("--split", "random", "--assume-independent")):
        clean = base / "clean"
        start = time.monotonic()
        status = _command(folder.root, clean, *split).wait()
        seconds = time.monotonic() - start
        if status:
            return [f"ecgfm prepare ended with {status}"]
        wanted = content(clean)
        shutil.rmtree(clean)
        for processes in ("1", "2"):
            name = " ".join(("--num-proc", processes, *split))
            out, done = base / "store", Counter()
            while sum(done.values()) < kills:
                # Mostly while recordings are read, often while splits are written and moved into place, seldom before.
                began = time.monotonic()
                process = _command(folder.root, out, "--num-proc", processes, *split)
                moment = rng.random()
                if moment > 0.1:
                    _wait_for(out / ".ecgfm-work" / ("finished" if moment > 0.6 else "plan.json"), process)
                delay = float(rng.uniform(0, seconds * (0.05 if moment > 0.6 else 0.4)))
                try:
                    process.wait(delay)
                except subprocess.TimeoutExpired:
                    stage = "reading" if (out / ".ecgfm-work" / "plan.json").exists() else "starting"
                    stage = "finishing" if (out / ".ecgfm-work" / "finished").exists() else stage
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    done[stage] += 1
                    print(f"{name}: killed after {time.monotonic() - began:.2f} s, {stage}", flush=True)
                    continue
                if process.returncode:
                    wrong.append(f"{name}: ended with {process.returncode}")
                    return wrong
                if content(out) != wanted:
                    wrong.append(f"{name}: another store than one run writes, after {dict(done)}")
                shutil.rmtree(out)
            status = _command(folder.root, out, "--num-proc", processes, *split).wait()
            if status or content(out) != wanted:
                wrong.append(f"{name}: another store than one run writes, after {dict(done)} (exit {status})")
            print(f"{name}: {dict(done)} kills, then {len(wanted['rows'])} files as of one run")
            shutil.rmtree(out)
    return wrong


def _command(root: Path, out: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "ecgfm_hf.cli", "prepare", "physionet2021", str(root), str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def _wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.001)


if __name__ == "__main__":
    sys.exit(main())
