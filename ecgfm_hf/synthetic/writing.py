"""
The synthetic cohort on disk: WFDB records in the layout of PhysioNet's 2021 challenge, with tables beside them.

    FOLDER/training/synthetic/g1/synthetic_s0_p000000_r1.hea and .mat    500 patients a folder g1, g2, ...
    FOLDER/labels.csv            recording_id, patient_id, path (of the header, in FOLDER), source (synthetic), one
                                 column a label: 0 or 1
    FOLDER/segment_labels.csv    recording_id, segment, start_seconds, one column a label
    FOLDER/truth.jsonl           one line a recording: recording_id, patient_id, age, sex, SyntheticTruth
    FOLDER/cohort.json           what made it; written last, so that a folder without it is unfinished
"""

import csv
import io
import json
import multiprocessing
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from .cohort import SyntheticCohort
from .recording import GAIN, SyntheticRecording
from .settings import COHORT_VERSION, LABEL_NAMES, LABELS, SEGMENT_SECONDS, SINUS_RHYTHM_CODE

NOTE = "synthetic: computed by ecgfm-hf, recorded from nobody"
_PATIENTS_A_FOLDER = 500
_PATIENTS_A_TASK = 50


@dataclass(frozen=True)
class WrittenCohort:
    """
    What was written.

    Attributes:
        folder: where.
        num_patients, num_recordings, num_segments: how many.
        label_counts: recordings by label, in the order of `LABEL_NAMES`.
    """

    folder: Path
    num_patients: int
    num_recordings: int
    num_segments: int
    label_counts: dict[str, int]


def write_cohort(
    cohort: SyntheticCohort, folder: str | os.PathLike, *, num_proc: int = 1, progress: bool = False
) -> WrittenCohort:
    """
    Write a cohort, patient by patient, in memory that does not grow with it. The files do not depend on `num_proc`.

    Args:
        cohort: what to write.
        folder: must be new or empty.
        num_proc: processes to share the work.
        progress: show a progress bar on standard error.

    Raises:
        FileExistsError: `folder` has something in it.
        ValueError: `num_proc` below 1.
    """
    if num_proc < 1:
        raise ValueError(f"num_proc must be at least 1, got {num_proc}")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder")
    groups = sorted({_group(number) for number in (cohort.patients[0], cohort.patients[-1])})
    for number in range(groups[0], groups[-1] + 1):
        (folder / _records_folder(number)).mkdir(parents=True)

    counts = dict.fromkeys(LABEL_NAMES, 0)
    num_recordings = num_segments = 0
    with (
        open(folder / "labels.csv", "w", encoding="utf-8", newline="") as labels_file,
        open(folder / "segment_labels.csv", "w", encoding="utf-8", newline="") as segments_file,
        open(folder / "truth.jsonl", "w", encoding="utf-8") as truth_file,
    ):
        csv.writer(labels_file, lineterminator="\n").writerow(
            ["recording_id", "patient_id", "path", "source", *LABEL_NAMES]
        )
        csv.writer(segments_file, lineterminator="\n").writerow(
            ["recording_id", "segment", "start_seconds", *LABEL_NAMES]
        )
        for patient in _written_patients(cohort, folder, num_proc, progress):
            labels_file.write(patient.labels)
            segments_file.write(patient.segments)
            truth_file.write(patient.truth)
            num_recordings += patient.num_recordings
            num_segments += patient.num_segments
            for name, count in zip(LABEL_NAMES, patient.counts, strict=True):
                counts[name] += count
    written = WrittenCohort(folder, cohort.num_patients, num_recordings, num_segments, counts)
    _write_description(cohort, written)
    return written


def write_record(recording: SyntheticRecording, folder: str | os.PathLike) -> Path:
    """Write one recording as `.hea` and `.mat` into an existing folder; returns the header's path."""
    stem = os.path.join(folder, recording.recording_id)
    with open(f"{stem}.mat", "wb") as file:
        # MATLAB's version 4 header of an int16 matrix (12, n) named "val": 24 bytes. Its columns are WFDB's frames.
        file.write(struct.pack("<5i4s", 30, *recording.samples.shape, 0, 4, b"val\0"))
        file.write(recording.samples.T.astype("<i2", order="C").tobytes())
    with open(f"{stem}.hea", "w", encoding="ascii", newline="\n") as file:
        file.write(_header(recording))
    return Path(f"{stem}.hea")


def _header(recording: SyntheticRecording) -> str:
    name, samples = recording.recording_id, recording.samples
    sums = (samples.sum(axis=1, dtype=np.int64) + 0x8000 & 0xFFFF) - 0x8000  # as signed 16 bits, like the real ones
    lines = [f"{name} {len(samples)} {recording.sampling_rate} {samples.shape[1]}"]
    lines += [
        f"{name}.mat 16x1+24 {GAIN}.0(0)/mV 16 0 {first} {checksum} 0 {lead}"
        for first, checksum, lead in zip(samples[:, 0].tolist(), sums.tolist(), recording.lead_names, strict=True)
    ]
    lines += [f"#Age: {recording.age}", f"#Sex: {recording.sex}", f"#Dx: {','.join(_codes(recording))}"]
    lines += ["#Rx: Unknown", "#Hx: Unknown", "#Sx: Unknown", f"# {NOTE}"]
    return "\n".join(lines) + "\n"


def _codes(recording: SyntheticRecording) -> list[str]:
    labels = recording.labels
    codes = [code for name, code in LABELS.items() if labels[name]]
    usual_rate = not (labels["sinus tachycardia"] or labels["sinus bradycardia"])
    if recording.truth.rhythm == "sinus" and usual_rate:
        codes.insert(0, SINUS_RHYTHM_CODE)
    return codes


def _group(patient_number: int) -> int:
    return patient_number // _PATIENTS_A_FOLDER + 1


def _records_folder(group: int) -> str:
    return f"training/synthetic/g{group}"


@dataclass(frozen=True)
class _WrittenPatient:
    """One patient's lines of the tables, as text: little to send from one process to another."""

    labels: str
    segments: str
    truth: str
    counts: tuple[int, ...]
    num_recordings: int
    num_segments: int


def _written_patients(cohort, folder: Path, num_proc: int, progress: bool) -> Iterator[_WrittenPatient]:
    from tqdm import tqdm

    # Small enough that every process has several: the last one to finish is not far behind.
    size = max(1, min(_PATIENTS_A_TASK, cohort.num_patients // (4 * num_proc)))
    tasks = ((cohort, str(folder), numbers) for numbers in _chunks(cohort.patients, size))
    bar = tqdm(total=cohort.num_patients, unit="patient", disable=not progress)
    with bar:
        if num_proc == 1:
            for patient in chain.from_iterable(map(_write_patients, tasks)):
                bar.update()
                yield patient
        else:
            # Forking a process in which torch runs threads may hang; a spawned one starts clean.
            with multiprocessing.get_context("spawn").Pool(num_proc) as pool:
                for patient in chain.from_iterable(pool.imap(_write_patients, tasks)):
                    bar.update()
                    yield patient


def _chunks(numbers: range, size: int) -> Iterator[range]:
    return (numbers[start : start + size] for start in range(0, len(numbers), size))


def _write_patients(task: tuple[SyntheticCohort, str, range]) -> list[_WrittenPatient]:
    cohort, folder, numbers = task
    return [_write_patient(cohort, folder, number) for number in numbers]


def _write_patient(cohort: SyntheticCohort, folder: str, number: int) -> _WrittenPatient:
    inside = _records_folder(_group(number))
    recordings = cohort.patient(number)
    labels, segments, truth = io.StringIO(), io.StringIO(), io.StringIO()
    label_rows, segment_rows = (csv.writer(text, lineterminator="\n") for text in (labels, segments))
    for recording in recordings:
        header = write_record(recording, os.path.join(folder, inside))
        identity = {"recording_id": recording.recording_id, "patient_id": recording.patient_id}
        label_rows.writerow([*identity.values(), f"{inside}/{header.name}", "synthetic", *recording.labels.values()])
        for index, values in enumerate(recording.segment_labels):
            segment_rows.writerow([recording.recording_id, index, index * SEGMENT_SECONDS, *values.values()])
        facts = {"synthetic": True, **identity, "age": recording.age, "sex": recording.sex}
        truth.write(json.dumps(facts | recording.truth.to_dict()) + "\n")
    return _WrittenPatient(
        labels.getvalue(),
        segments.getvalue(),
        truth.getvalue(),
        tuple(sum(recording.labels[name] for recording in recordings) for name in LABEL_NAMES),
        len(recordings),
        sum(len(recording.segment_labels) for recording in recordings),
    )


def _write_description(cohort: SyntheticCohort, written: WrittenCohort) -> None:
    description = {
        "synthetic": True,
        "note": NOTE,
        "cohort_version": COHORT_VERSION,
        "numpy": np.__version__,
        "seed": cohort.seed,
        "first_patient": cohort.first_patient,
        "num_patients": written.num_patients,
        "num_recordings": written.num_recordings,
        "num_segments": written.num_segments,
        "sampling_rate": cohort.sampling_rate,
        "seconds": cohort.seconds,
        "labels": {
            name: {"snomed_ct": LABELS[name], "recordings": count} for name, count in written.label_counts.items()
        },
        "settings": asdict(cohort.settings),
    }
    (written.folder / "cohort.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
