"""
What inference must survive, in full size: 100,000 recordings in flat memory, kills, damaged files.

    python scripts/stress_inference.py [--recordings 100000] [--kills 5] [--files 1000] [--seed 0]

Writes a store of synthetic recordings, embeds it with a tiny model by `ecgfm embed`, kills that with SIGKILL, children
and all, and starts it again, while the memory that it holds is noted; then compares the rows with what was written:
none lost, none doubled, and some of them with the Python call. Then scores a folder in which a fifth of the files is
damaged. `tests/test_inference_resume.py` and `tests/test_inference_command.py` do the same in small. Exit status 1 if
anything is not as it must be.
"""

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from damaged_folders import DAMAGE, write_folder

from ecgfm_hf import ECGFMConfig, ECGFMFeatureExtractor, ECGFMForMultiLabelClassification, save_model_folder
from ecgfm_hf.data import record_from_row
from ecgfm_hf.data.store import StoreWriter, row_from_record, store_schema
from ecgfm_hf.inference import embed
from ecgfm_hf.records import ECGRecord
from ecgfm_hf.synthetic import SyntheticCohort
from ecgfm_hf.synthetic.recording import GAIN
from ecgfm_hf.utils.files import write_json

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16] * 4,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,
    "id2label": {0: "A", 1: "B"},
    "label2id": {"A": 0, "B": 1},
}
# What damage of these kinds makes of a file may be another valid one.
MAY_SURVIVE = ("bits flipped in the header", "header cut off", "huge header", "link to a signal outside")
EVERY_SHORT = 1000  # one recording of so many is too short, and has to be named


def main() -> int:
    parser = argparse.ArgumentParser(description="What inference must survive, in full size.")
    parser.add_argument("--recordings", type=int, default=100_000)
    parser.add_argument("--sampling-rate", type=int, default=100, help="Hz of the recordings in the store")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--workers", default="0", help="processes that read")
    parser.add_argument("--files", type=int, default=1000, help="files of which a fifth is damaged")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="for scratch files, removed at the end (default: a temporary one)")
    options = parser.parse_args()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ecgfm-stress-", dir=options.folder) as scratch:
        model_dir = Path(scratch) / "model"
        torch.manual_seed(options.seed)
        model = ECGFMForMultiLabelClassification(ECGFMConfig(**TINY))
        save_model_folder(model.eval(), ECGFMFeatureExtractor(), model_dir)
        wrong = []
        if options.recordings:
            wrong += stress_store(Path(scratch), model_dir, options)
        if options.files:
            wrong += stress_damaged(Path(scratch) / "files", model_dir, options.files, options.seed)
    for sentence in wrong:
        print(f"WRONG: {sentence}")
    print("wrong" if wrong else "all as it must be")
    return int(bool(wrong))


def stress_store(base: Path, model_dir: Path, options: argparse.Namespace) -> list[str]:
    """Embeds a large store with kills in between; returns what is wrong."""
    count, store, output = options.recordings, base / "store", base / "embeddings.parquet"
    began = time.monotonic()
    write_store(store, count, options.sampling_rate, options.seed)
    size = sum(path.stat().st_size for path in (store / "data").iterdir()) / 2**30
    print(f"a store of {count:,} recordings, {size:.2f} GB, in {time.monotonic() - began:.0f} s", flush=True)

    command = ["embed", str(store), "--model", str(model_dir), "--output", str(output), "--workers", options.workers]
    command += ["--precision", "float32"]  # as the Python call
    rng = np.random.default_rng(options.seed)
    num_parts = -(-count // 256)
    # Kills within the first half, somewhere in a part; then a run to the end.
    first_half = np.arange(-(-num_parts // 2))
    targets = np.sort(rng.choice(first_half, min(options.kills, len(first_half)), replace=False)).tolist()
    wrong, memory, began = [], [], time.monotonic()
    for target in [*targets, None]:
        process = subprocess.Popen(
            [sys.executable, "-m", "ecgfm_hf.cli", *command], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        own: list[tuple[float, float, int]] = []  # share done, GB, parts
        while process.poll() is None:
            # At the end the parts are joined and removed.
            finished = max(count_parts(output), own[-1][2] if own else 0)
            if (memory := resident_gb(process.pid)) is not None:
                own.append((finished / num_parts, memory, finished))
            if target is not None and finished > target:
                time.sleep(float(rng.uniform(0, 1)))
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                print(f"  killed with {finished} of {num_parts} parts finished", flush=True)
                break
            time.sleep(0.5)
        memory.append(own)
        if target is not None and process.returncode not in (-signal.SIGKILL, 1):
            wrong.append(f"a run ended with {process.returncode}: {process.stderr.read()}")
    seconds = time.monotonic() - began
    print(f"embedded in {seconds:.0f} s, {count / seconds:.0f} recordings/s, {len(targets)} kills among them")
    wrong += check_memory(memory)
    wrong += check_rows(store, model_dir, output, count, rng)
    if process.returncode != 1:
        wrong.append(f"the last run ended with {process.returncode}, expected 1 for the short recordings")
    return wrong


def check_memory(memory: list[list[tuple[float, float, int]]]) -> list[str]:
    """Whether the memory of the longest run grew from its beginning to its end."""
    own = max(memory, key=lambda run: run[-1][0] - run[0][0] if run else 0)
    # Loading the model and the first parts are no part of it.
    beginning = own[0][0]
    several = sorted({share for share, *_ in own if share > beginning})[1:]
    if not several:
        return ["too few recordings to see whether memory grows"]
    done, memory, _ = np.array([one for one in own if one[0] >= several[0]]).T
    print(f"memory of the run that did most ({done[0]:.0%} to {done[-1]:.0%} of the recordings), GB at:")
    for share in np.linspace(0, 1, 11):
        index = min(int(share * len(memory)), len(memory) - 1)
        print(f"  {done[index]:6.1%}  {memory[index]:.3f}")
    fifth = max(len(memory) // 5, 1)
    early, late = float(np.median(memory[:fifth])), float(np.median(memory[-fifth:]))
    print(f"  median of the first fifth {early:.3f}, of the last {late:.3f}, largest {memory.max():.3f}")
    return [f"memory grew from {early:.3f} to {late:.3f} GB"] if late > 1.1 * early + 0.02 else []


def check_rows(store: Path, model_dir: Path, output: Path, count: int, rng: np.random.Generator) -> list[str]:
    """Whether every recording has one row, in order, and some rows are as the Python call has them."""
    wrong = []
    expected = [name_of(number) for number in range(count) if not is_short(number)]
    table = pq.read_table(output)
    found = table["recording_id"].to_pylist()
    doubled = len(found) - len(set(found))
    lost = len(set(expected) - set(found))
    print(f"{len(found):,} rows of {len(expected):,} expected: {lost} lost, {doubled} doubled")
    if found != expected:
        wrong.append("rows are not those of the store, in order")
    with open(output.with_name("embeddings.failures.csv"), newline="") as file:
        named = [row["recording_id"] for row in csv.DictReader(file)]
    print(f"{len(named):,} failures named")
    if named != [name_of(number) for number in range(count) if is_short(number)]:
        wrong.append("the failures named are not the short recordings")
    chosen = np.sort(rng.choice(len(found), min(50, len(found)), replace=False))
    wanted = {found[index]: table["embedding"][int(index)].as_py() for index in chosen}
    given = [record_from_row(row) for row in rows_of(store, set(wanted))]
    again = embed(model_dir, given)
    difference = max(
        float(np.abs(np.array(wanted[record.recording_id]) - one).max())
        for record, one in zip(given, again, strict=True)
    )
    print(f"{len(given)} rows against the Python call: largest difference {difference:.1e}")
    if not difference < 1e-5:
        wrong.append(f"rows differ from the Python call by {difference:.1e}")
    if output.with_name(f"{output.name}.parts").exists():
        wrong.append("unfinished parts were left behind")
    return wrong


def write_store(store: Path, count: int, sampling_rate: int, seed: int) -> None:
    """A store of 64 synthetic recordings, each over and over: shifted in time, with other noise and another name."""
    cohort = SyntheticCohort(64, seed=seed, sampling_rate=sampling_rate)
    made = [next(iter(cohort.patient(number))) for number in cohort.patients]
    rows = [row_from_record(as_record(one)) for one in made]
    rng = np.random.default_rng(seed)
    (store / "data").mkdir(parents=True)
    per_file = 8192
    num_files = -(-count // per_file)
    for file in range(num_files):
        path = store / "data" / f"all-{file:05d}-of-{num_files:05d}.parquet"
        with StoreWriter(path, store_schema(())) as writer:
            for number in range(file * per_file, min((file + 1) * per_file, count)):
                which = number % len(made)
                samples = np.roll(made[which].samples, rng.integers(sampling_rate), axis=1)
                samples = samples + rng.integers(-20, 21, samples.shape, dtype=np.int16)
                if is_short(number):
                    samples = np.ascontiguousarray(samples[:, : 2 * sampling_rate])
                own = {"recording_id": name_of(number), "signal": samples.tobytes(), "num_samples": samples.shape[1]}
                writer.write(rows[which] | own)
    report = {"format": 1, "plan": {}, "splits": {"recordings": {"all": count}}, "recordings": {}, "excluded": []}
    write_json(store / "report.json", report)


def as_record(one) -> ECGRecord:
    leads = len(one.lead_names)
    return ECGRecord(
        recording_id=one.recording_id,
        path=one.recording_id,
        samples=one.samples,
        gain=[float(GAIN)] * leads,
        baseline=[0.0] * leads,
        units=("mV",) * leads,
        sampling_rate=one.sampling_rate,
        lead_names=one.lead_names,
        patient_id=one.patient_id,
    )


def rows_of(store: Path, names: set[str]) -> Iterator[dict]:
    for path in sorted((store / "data").iterdir()):
        for batch in pq.ParquetFile(path).iter_batches(64):
            for index, name in enumerate(batch["recording_id"].to_pylist()):
                if name in names:
                    yield batch.slice(index, 1).to_pylist()[0]


def name_of(number: int) -> str:
    return f"synthetic{number:07d}"


def is_short(number: int) -> bool:
    return number % EVERY_SHORT == EVERY_SHORT // 2


def count_parts(output: Path) -> int:
    return sum(1 for _ in output.with_name(f"{output.name}.parts").glob("parts-*/part-*.json"))


def resident_gb(pid: int) -> float | None:
    """Memory of a process and its children; what they share is divided among them. None when it has gone."""
    total = 0
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (pid, *children):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None
    return total / 2**20


def stress_damaged(base: Path, model_dir: Path, count: int, seed: int) -> list[str]:
    """Scores a folder of which a fifth is damaged; returns what is wrong."""
    sure = {kind: damage for kind, damage in DAMAGE.items() if kind not in MAY_SURVIVE}
    with mock.patch.dict(DAMAGE, sure, clear=True):
        folder = write_folder(base, count - count // 5, count // 5, num_samples=2500, seed=seed)
    output = base / "scores.parquet"
    command = ["predict", str(folder.root), "--model", str(model_dir), "--output", str(output)]
    run = subprocess.run([sys.executable, "-m", "ecgfm_hf.cli", *command], capture_output=True, text=True)
    answered = [Path(name).stem for name in pq.read_table(output)["recording_id"].to_pylist()]
    with open(base / "scores.failures.csv", newline="") as file:
        failures = {Path(row["path"]).stem: row["reason"] for row in csv.DictReader(file)}
    print(f"{count:,} files, {len(folder.damage)} of them damaged: {len(answered)} answers, {len(failures)} named "
          f"failures, exit status {run.returncode}")  # fmt: skip
    wrong = []
    if sorted(answered) != sorted(folder.sound):
        odd = sorted(set(answered) ^ set(folder.sound))
        wrong.append(f"the answers are not those of the sound files: {[(n, folder.damage.get(n)) for n in odd]}")
    if set(failures) != set(folder.damage) or not all(failures.values()):
        wrong.append(f"the failures are not the damaged files: {sorted(set(failures) ^ set(folder.damage))}")
    if run.returncode != 1:
        wrong.append(f"exit status {run.returncode}, expected 1: {run.stderr}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
