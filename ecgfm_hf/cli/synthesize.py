"""`ecgfm synthesize`: write a synthetic cohort."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import NumProcOption, SeedOption, show_progress
from .outputs import Writes

if TYPE_CHECKING:
    from ..synthetic import WrittenCohort


def synthesize(
    output_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must be new or empty."), Writes()],
    patients: Annotated[
        int,
        typer.Option("--patients", metavar="N", help="Number of patients; each has 1 to 4 recordings, 1.9 on average."),
    ],
    seed: SeedOption = 0,
    first_patient: Annotated[
        int,
        typer.Option(
            "--first-patient",
            metavar="K",
            help="Number of the first patient. Cohorts with the same seed share only patients with the same number.",
        ),
    ] = 0,
    sampling_rate: Annotated[int, typer.Option("--sampling-rate", metavar="HZ", help="Sampling rate in Hz.")] = 500,
    seconds: Annotated[int, typer.Option("--seconds", metavar="T", help="Duration in seconds; a multiple of 5.")] = 10,
    num_proc: NumProcOption = 1,
) -> int:
    """
    Write a synthetic, labelled cohort as WFDB files.

    Exit status: 0 written, 1 the folder cannot be written, 2 usage.
    """
    from ..synthetic import SyntheticCohort

    start = time.perf_counter()
    cohort = SyntheticCohort(patients, seed, first_patient=first_patient, sampling_rate=sampling_rate, seconds=seconds)
    written = cohort.write_wfdb(output_dir, num_proc=num_proc, progress=show_progress())
    print(_summary(written, time.perf_counter() - start))
    return 0


def _summary(written: "WrittenCohort", seconds: float) -> str:
    total = written.num_recordings
    width = max(map(len, written.label_counts))
    lines = ["synthetic recordings with"]
    lines += [f"  {name:<{width}}  {count:>7,}  {count / total:5.1%}" for name, count in written.label_counts.items()]
    lines.append(
        f"{total:,} synthetic recordings of {written.num_patients:,} synthetic patients in {seconds:.1f} s "
        f"({total / seconds:.0f}/s), written to {written.folder}"
    )
    return "\n".join(lines)
