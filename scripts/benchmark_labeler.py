"""
Measures the report labeler: reports a second on one core without caching, and time by length of a report.

    python scripts/benchmark_labeler.py [REPORTS.csv] [--text-column text] [--preset mimic17] [--json]

Without a table it makes up reports from machine statements, about as long as those of MIMIC-IV-ECG.
"""

import argparse
import csv
import json
import random
import statistics
import sys
import time

from ecgfm_hf.labeler import PRESETS, Labeler

RHYTHMS = (
    *("Sinus rhythm", "Sinus tachycardia", "Sinus bradycardia", "Atrial fibrillation", "Atrial flutter"),
    *("Ventricular pacing", "Junctional rhythm", "Probable supraventricular tachycardia", "Ectopic atrial rhythm"),
)
WITH = (
    *("PVCs", "PAC(s)", "1st degree A-V block", "rapid ventricular response", "2:1 A-V block"),
    *("aberrantly conducted complexes", "sinus arrhythmia", "fusion complexes"),
)
STATEMENTS = (
    *("Left axis deviation", "RBBB with left anterior fascicular block", "Incomplete LBBB", "Prolonged QT interval"),
    *("Possible inferior infarct - age undetermined", "Cannot rule out anteroseptal MI, old", "Low QRS voltages"),
    *("Lateral ST-T changes may be due to myocardial ischemia", "Poor R wave progression", "Early repolarization"),
    *("Baseline wander in lead(s) V1 V2", "Missing lead(s): I, aVL", "IV conduction defect", "Rightward axis"),
    *("Voltage criteria for left ventricular hypertrophy", "Nonspecific T wave changes", "Borderline ECG"),
)
LENGTH = 309  # Characters, about.
SIZES = (10_000, 100_000, 1_000_000)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("reports", nargs="?", metavar="REPORTS.csv", help="measure these instead of made-up ones")
    parser.add_argument("--text-column", default="text", metavar="NAME", help="default: text")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="mimic17", help="default: mimic17")
    parser.add_argument("--length", type=int, metavar="N", help="join reports of the table to N characters or more")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="default: 7")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()

    labeler = Labeler.from_preset(options.preset)
    if options.reports is None:
        reports = made_up_reports(2000)
    else:
        reports = read_reports(options.reports, options.text_column)
        if options.length is not None:
            reports = joined(reports, options.length)
    rates = [reports_per_second(labeler, reports) for _ in range(options.repeats)]
    result = {
        "preset": options.preset,
        "reports": len(reports),
        "mean_characters": round(statistics.mean(map(len, reports)), 1),
        "reports_per_second": {"median": round(statistics.median(rates)), "best": round(max(rates))},
        "seconds_by_characters": {str(size): round(seconds_for(labeler, size), 4) for size in SIZES},
    }
    print(json.dumps(result) if options.json else as_text(result))
    return 0


def made_up_reports(number: int) -> list[str]:
    draw, reports = random.Random(0), []
    while len(reports) < number:
        statements = [f"{draw.choice(RHYTHMS)} with {draw.choice(WITH)}", *draw.sample(STATEMENTS, len(STATEMENTS))]
        report = statements.pop(0)
        while len(report) < LENGTH - 15:
            report += f"; {statements.pop(0)}"
        reports.append(report)
    return reports


def read_reports(path: str, column: str) -> list[str]:
    with open(path, encoding="utf-8-sig", newline="") as stream:
        reports = [row[column] for row in csv.DictReader(stream)]
    if not reports:
        sys.exit(f"{path}: has no reports")
    return reports


def joined(reports: list[str], length: int) -> list[str]:
    """As many reports of at least `length` characters, each of several of the table drawn at random."""
    draw, longer = random.Random(0), []
    for _ in reports:
        report = draw.choice(reports)
        while len(report) < length:
            report += f"; {draw.choice(reports)}"
        longer.append(report)
    return longer


def reports_per_second(labeler: Labeler, reports: list[str]) -> float:
    """Processor time, which a busy machine changes less than the clock's."""
    start = time.process_time()
    for report in reports:
        labeler.row(report)
    return len(reports) / (time.process_time() - start)


def seconds_for(labeler: Labeler, size: int) -> float:
    """The least of three runs on one report of `size` characters, all of them machine statements."""
    report = "; ".join(made_up_reports(2000))
    report = (report * (size // len(report) + 1))[:size]
    times = []
    for _ in range(3):
        start = time.process_time()
        labeler.row(report)
        times.append(time.process_time() - start)
    return min(times)


def as_text(result: dict) -> str:
    rate = result["reports_per_second"]
    return "\n".join(
        [
            f"{result['preset']}, {result['reports']:,} reports of {result['mean_characters']} characters, no cache",
            f"{rate['median']:,} reports/s (median; best {rate['best']:,})",
            *(f"{int(size):>9,} characters: {s * 1000:8.1f} ms" for size, s in result["seconds_by_characters"].items()),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
