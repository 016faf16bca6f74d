"""`ecgfm synthesize`: its arguments, and what it prints."""

import argparse
import sys
import time
from pathlib import Path

from ..synthetic.cohort import SyntheticCohort, WrittenCohort


def add_synthesize_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `ecgfm synthesize`."""
    parser.add_argument("output_dir", metavar="OUT", type=Path, help="folder to write; must be new or empty")
    parser.add_argument(
        "--patients", metavar="N", type=int, required=True, help="how many; each has 1 to 4 recordings, 1.9 on average"
    )
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of the random numbers (default: 0)")
    parser.add_argument(
        "--first-patient",
        metavar="K",
        type=int,
        default=0,
        help="number of the first patient: cohorts of one seed with other numbers share no patient (default: 0)",
    )
    parser.add_argument("--sampling-rate", metavar="HZ", type=int, default=500, help="default: 500")
    parser.add_argument("--seconds", metavar="T", type=int, default=10, help="a multiple of 5 (default: 10)")
    parser.add_argument("--num-proc", metavar="N", type=int, default=1, help="processes (default: 1)")


def run_synthesize(args: argparse.Namespace) -> int:
    """
    Runs `ecgfm synthesize`.

    Returns:
        `int`: 0 written, 1 the folder cannot be written, 2 usage.
    """
    start = time.perf_counter()
    try:
        cohort = SyntheticCohort(
            args.patients,
            args.seed,
            first_patient=args.first_patient,
            sampling_rate=args.sampling_rate,
            seconds=args.seconds,
        )
        written = cohort.write_wfdb(args.output_dir, num_proc=args.num_proc, progress=sys.stderr.isatty())
    except (ValueError, FileExistsError) as error:
        print(f"ecgfm synthesize: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # no space, no permission
        print(f"ecgfm synthesize: {error}", file=sys.stderr)
        return 1
    print(_summary(written, time.perf_counter() - start))
    return 0


def _summary(written: WrittenCohort, seconds: float) -> str:
    total = written.num_recordings
    width = max(map(len, written.label_counts))
    lines = ["synthetic recordings with"]
    lines += [f"  {name:<{width}}  {count:>7,}  {count / total:5.1%}" for name, count in written.label_counts.items()]
    lines.append(
        f"{total:,} synthetic recordings of {written.num_patients:,} synthetic patients in {seconds:.1f} s "
        f"({total / seconds:.0f}/s), written to {written.folder}"
    )
    return "\n".join(lines)
