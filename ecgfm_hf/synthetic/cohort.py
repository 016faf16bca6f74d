"""
The synthetic cohort: patients by number, each with one recording or more, and their files.

`SyntheticCohort.write_wfdb` writes WFDB records in the layout of PhysioNet's 2021 challenge, with tables beside them:

    FOLDER/training/synthetic/g1/synthetic_s0_p000000_r1.hea and .mat    500 patients in each folder g1, g2, ...
    FOLDER/labels.csv            recording_id, patient_id, path (of the header, in FOLDER), source (synthetic), and a
                                 column of 0 and 1 for each label
    FOLDER/segment_labels.csv    recording_id, segment, start_seconds, and a column for each label
    FOLDER/truth.jsonl           a line for each recording: recording_id, patient_id, age, sex, SyntheticTruth
    FOLDER/cohort.json           the settings
"""

import csv
import io
import json
import multiprocessing
import operator
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from ..utils.errors import OutputExistsError, SettingsError
from ..utils.files import atomic_folder, write_json
from .patients import draw_patient, generator
from .recording import GAIN, SyntheticRecording, make_recording
from .settings import COHORT_VERSION, LABEL_NAMES, LABELS, SEGMENT_SECONDS, SINUS_RHYTHM_CODE, CohortSettings

NOTE = "synthetic: computed by ecgfm-hf, not recorded from a patient"
_PATIENTS_PER_FOLDER = 500
_PATIENTS_PER_TASK = 50


class SyntheticCohort:
    """
    Patients with labelled synthetic recordings. Iteration computes and yields one recording after another.

    The seed, a patient's number and the settings define the patient. The size of the cohort, the order and the number
    of processes change no sample. (numpy promises the same random numbers within a feature release, not between them.
    Samples are rounded to 1 µV, so processors agree.)

    Args:
        num_patients: At least 1.
        seed: Not negative.
        first_patient: Number of the first patient, for cohorts that share no patient.
        sampling_rate: 100 to 5,000 Hz.
        seconds: Length of a recording, a multiple of the 5 s of a segment, at most 600.
        settings: The population. Defaults to the frozen one.

    Raises:
        `SettingsError`: an argument outside these ranges, or of another type.

    Example:

    ```python
    >>> from ecgfm_hf.synthetic import SyntheticCohort
    >>> cohort = SyntheticCohort(num_patients=100, seed=1)
    >>> recording = next(iter(cohort))
    >>> recording.signal.shape, recording.labels["atrial fibrillation"]
    ((12, 5000), 0)
    >>> cohort.write_wfdb("cohort")  # doctest: +SKIP
    ```
    """

    def __init__(
        self,
        num_patients: int,
        seed: int = 0,
        *,
        first_patient: int = 0,
        sampling_rate: int = 500,
        seconds: int = 10,
        settings: CohortSettings | None = None,
    ):
        self.num_patients = _whole("num_patients", num_patients, 1, 10_000_000)
        self.seed = _whole("seed", seed, 0, 2**63 - 1)
        self.first_patient = _whole("first_patient", first_patient, 0, 2**31 - 1)
        self.sampling_rate = _whole("sampling_rate (Hz)", sampling_rate, 100, 5_000)
        self.seconds = _whole("seconds", seconds, SEGMENT_SECONDS, 600)
        if self.seconds % SEGMENT_SECONDS:
            raise SettingsError(
                f"seconds is {seconds}, expected a multiple of {SEGMENT_SECONDS}, the length of a segment"
            )
        if settings is not None and not isinstance(settings, CohortSettings):
            raise SettingsError(f"settings is a {type(settings).__name__}, expected CohortSettings")
        self.settings = settings if settings is not None else CohortSettings()

    @property
    def patients(self) -> range:
        """The numbers of the patients."""
        return range(self.first_patient, self.first_patient + self.num_patients)

    def patient(self, number: int) -> tuple[SyntheticRecording, ...]:
        """Return all recordings of one of the `patients`, in the order of their visits."""
        if number not in self.patients:
            raise SettingsError(f"patient is {number!r}, expected a number in {self.patients}")
        patient = draw_patient(generator(self.seed, number), self.settings)
        patient_id = f"synthetic_s{self.seed}_p{number:06d}"
        return tuple(
            make_recording(
                generator(self.seed, number, visit),
                patient,
                self.settings,
                self.sampling_rate,
                self.seconds,
                f"{patient_id}_r{visit + 1}",
                patient_id,
            )
            for visit in range(patient.num_recordings)
        )

    def __iter__(self) -> Iterator[SyntheticRecording]:
        for number in self.patients:
            yield from self.patient(number)

    def __repr__(self) -> str:
        return (
            f"SyntheticCohort(num_patients={self.num_patients}, seed={self.seed}, first_patient={self.first_patient}, "
            f"sampling_rate={self.sampling_rate}, seconds={self.seconds})"
        )

    def write_wfdb(
        self, folder: str | os.PathLike[str], *, num_proc: int = 1, progress: bool = False
    ) -> "WrittenCohort":
        """
        Write every recording, the tables of labels and the truth, in memory that does not grow with the cohort.

        The folder is written whole or not at all.

        Args:
            folder: New or empty folder.
            num_proc: Processes that share the work. The files do not depend on it.
            progress: Show a progress bar on standard error.

        Raises:
            `OutputExistsError`: `folder` is not empty.
            `SettingsError`: `num_proc` is below 1.
        """
        if num_proc < 1:
            raise SettingsError(f"num_proc is {num_proc}, expected at least 1")
        target = Path(folder)

        def check_empty() -> None:
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                raise OutputExistsError(f"{target} is not an empty folder; choose a new or empty one")

        with atomic_folder(target, check_empty) as new:
            written = _write_cohort(self, new, num_proc, progress)
        return replace(written, folder=target)


def _whole(name: str, value: int, low: int, high: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise SettingsError(f"{name} is {value!r}, expected a whole number") from None
    if isinstance(value, bool) or not low <= number <= high:
        raise SettingsError(f"{name} is {value!r}, expected a number from {low} to {high}")
    return number


@dataclass(frozen=True)
class WrittenCohort:
    """
    The result of [`SyntheticCohort.write_wfdb`].

    Attributes:
        folder: The folder.
        num_patients, num_recordings, num_segments: How many were written.
        label_counts: Recordings with each label, in the order of `LABEL_NAMES`.
    """

    folder: Path
    num_patients: int
    num_recordings: int
    num_segments: int
    label_counts: dict[str, int]


def _write_cohort(cohort: SyntheticCohort, folder: Path, num_proc: int, progress: bool) -> WrittenCohort:
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


def write_record(recording: SyntheticRecording, folder: str | os.PathLike[str]) -> Path:
    """Write one recording as `.hea` and `.mat` to an existing folder; return the header's path."""
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
    return patient_number // _PATIENTS_PER_FOLDER + 1


def _records_folder(group: int) -> str:
    return f"training/synthetic/g{group}"


@dataclass(frozen=True)
class _WrittenPatient:
    """One patient's lines of the tables as text, which is little to send between processes."""

    labels: str
    segments: str
    truth: str
    counts: tuple[int, ...]
    num_recordings: int
    num_segments: int


def _written_patients(
    cohort: SyntheticCohort, folder: Path, num_proc: int, progress: bool
) -> Iterator[_WrittenPatient]:
    from tqdm import tqdm

    # Several tasks for each process, so that they finish at about the same time.
    size = max(1, min(_PATIENTS_PER_TASK, cohort.num_patients // (4 * num_proc)))
    tasks = ((cohort, str(folder), numbers) for numbers in _chunks(cohort.patients, size))
    bar = tqdm(total=cohort.num_patients, unit="patient", disable=not progress)
    with bar:
        if num_proc == 1:
            for patient in chain.from_iterable(map(_write_patients, tasks)):
                bar.update()
                yield patient
        else:
            # A fork of a process in which torch runs threads can hang; a spawned process cannot.
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
        line = {"synthetic": True, **identity, "age": recording.age, "sex": recording.sex}
        truth.write(json.dumps(line | recording.truth.to_dict()) + "\n")
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
    write_json(written.folder / "cohort.json", description)


__all__ = ["SyntheticCohort", "WrittenCohort", "write_record"]
