"""The synthetic cohort: patients by number, each with one recording or more."""

import operator
from collections.abc import Iterator

from .patients import draw_patient, generator
from .recording import SyntheticRecording, make_recording
from .settings import SEGMENT_SECONDS, CohortSettings


class SyntheticCohort:
    """
    Patients with labelled synthetic recordings. Iterating over it yields their recordings one after another, made when
    they are asked for.

    A patient is defined by `seed`, their number, and the settings: neither the cohort's size nor the order nor the
    number of processes changes a sample. (numpy promises the same random numbers within, not between, its feature
    releases; the arithmetic after them is rounded to 1 µV, so processors agree.)

    Args:
        num_patients (`int`): at least 1.
        seed (`int`, defaults to 0): not negative.
        first_patient (`int`, defaults to 0): number of the first one, for cohorts that share no patient.
        sampling_rate (`int`, defaults to 500): 100 to 5,000 Hz.
        seconds (`int`, defaults to 10): a multiple of the 5 s of a segment, at most 600.
        settings ([`CohortSettings`], *optional*): the population; the frozen defaults otherwise.

    Raises:
        ValueError, TypeError: an argument outside these.

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
            raise ValueError(f"seconds must be a multiple of {SEGMENT_SECONDS}, the length of a segment, got {seconds}")
        if settings is not None and not isinstance(settings, CohortSettings):
            raise TypeError(f"settings must be CohortSettings, got {type(settings).__name__}")
        self.settings = settings if settings is not None else CohortSettings()

    @property
    def patients(self) -> range:
        """Numbers of the patients."""
        return range(self.first_patient, self.first_patient + self.num_patients)

    def patient(self, number: int) -> tuple[SyntheticRecording, ...]:
        """All recordings of one of the `patients`, in the order of their visits."""
        if number not in self.patients:
            raise ValueError(f"patient must be in {self.patients}, got {number!r}")
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

    def write_wfdb(self, folder, *, num_proc: int = 1, progress: bool = False):
        """
        Write every recording, the tables of labels and the truth; see [`writing.write_cohort`].

        Returns:
            [`WrittenCohort`].
        """
        from .writing import write_cohort

        return write_cohort(self, folder, num_proc=num_proc, progress=progress)


def _whole(name: str, value, low: int, high: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if isinstance(value, bool) or not low <= number <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {value!r}")
    return number
