"""What `ecgfm predict` prints: a table for people, CSV and JSON for programs."""

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .options import show_progress

if TYPE_CHECKING:
    import numpy as np

    from ..configuration_ecgfm import ECGFMConfig
    from ..inference.model_runner import ModelRunner
    from ..inference.read_ahead import ReadRecording
    from ..inference.recording_sources import FileSource, StoreSource
    from ..records import ECGRecord

_Answers = list[dict[str, Any]]


def print_answers(
    runner: "ModelRunner",
    source: "FileSource | StoreSource",
    config: "ECGFMConfig",
    format: str,
    stream: TextIO,
    *,
    failures: str | None = None,
    workers: int = 0,
    page: "Callable[[ECGRecord, dict[str, Any]], None] | None" = None,
    by_segment: "Callable[[ReadRecording, np.ndarray], _Answers] | None" = None,
    logits: bool = False,
) -> int:
    """
    Score all recordings and write the answers once all are there; failures go to standard error as they come.

    Args:
        runner ([`ModelRunner`]), source, config ([`ECGFMConfig`]): The model, the recordings, the model's config.
        format: `"table"`, `"csv"` or `"json"`.
        stream: Where to write. A file is truncated first.
        failures: A CSV file that lists the recordings that failed.
        workers: Processes that read ahead.
        page: Writes a recording's page, given the recording and its answer.
        by_segment: Makes answers per segment, to write instead of the recording's.
        logits: Whether to write logits of segments, too.

    Returns:
        `int`: 0 all answered, 1 some failed, 130 interrupted: what has been answered is written.
    """
    from tqdm import tqdm

    from ..inference.model_runner import answer_of
    from ..inference.parquet_run import write_failures
    from ..inference.read_ahead import read_in_order
    from .main import in_options, load_command

    answers: _Answers = []
    failed: list[tuple[str, str | None, str]] = []
    count = 0
    interrupted = False
    try:
        found = runner.run(read_in_order(source, num_workers=workers))
        for read, found_logits, _ in tqdm(
            found, total=len(source), unit="recording", disable=len(source) < 2 or not show_progress()
        ):
            if read.failure is not None:
                failed.append((read.recording_id, read.path, read.failure))
                # A message may begin with the file itself: the header of the record that was named.
                named = read.failure.startswith(read.recording_id)
                message = read.failure if named else f"{read.recording_id}: {read.failure}"
                tqdm.write(f"ecgfm: {in_options(message, load_command('predict'))}", file=sys.stderr)
            elif found_logits is not None:
                count += 1
                answer = answer_of(read, found_logits, config)
                answers += [answer] if by_segment is None else by_segment(read, found_logits)
                if page is not None:
                    try:
                        page(source.record(read.row), answer)
                    except (OSError, ValueError, RuntimeError) as error:
                        failed.append((read.recording_id, read.path, f"no page: {error}"))
                        tqdm.write(f"ecgfm: {read.recording_id}: no page: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        interrupted = True
    if stream is not sys.stdout and os.path.isfile(stream.name):
        stream.truncate(0)
    write_answers(answers, config, format, stream, runner.precision, by_segment is not None, logits)
    if stream is not sys.stdout:
        report_written(count, stream.name)
    if failures is not None:
        write_failures(Path(failures), iter(failed))
    if failed:
        print(f"ecgfm: {len(failed)} of {len(source)} recordings failed", file=sys.stderr)
    if interrupted:
        done = count + len(failed)
        print(f"ecgfm: interrupted after {done} of {len(source)} recordings", file=sys.stderr)
        return 130
    return 1 if failed else 0


def report_written(recordings: int, path: str) -> None:
    """Print how many recordings were written, on standard error."""
    print(f"ecgfm: {recordings} recording{'s' * (recordings != 1)} written to {path}", file=sys.stderr)


def write_answers(
    answers: _Answers,
    config: "ECGFMConfig",
    format: str,
    stream: TextIO,
    precision: str = "float32",
    per_segment: bool = False,
    logits: bool = False,
) -> None:
    """
    Write answers as the pipeline returns them.

    Args:
        answers: One a recording, or one a segment.
        config ([`ECGFMConfig`]): The config of the model that made them.
        format: `"table"`, `"csv"` or `"json"`.
        stream: Where to write.
        precision: What they were computed in.
        per_segment, logits: Whether answers are of segments, and whether to write their logits.
    """
    from ..inference.model_runner import score_note

    note = score_note(config)
    if not logits:
        answers = [{name: value for name, value in answer.items() if name != "logits"} for answer in answers]
    if format == "json":
        about = {"precision": precision, "note": note}
        json.dump([answer | about for answer in answers], stream, indent=1, ensure_ascii=False)
        stream.write("\n")
    elif format == "csv":
        _write_csv(answers, config, note, precision, stream, per_segment, logits)
    else:
        _write_table(answers, config, note, precision, stream)


def _write_csv(
    answers: _Answers,
    config: "ECGFMConfig",
    note: str,
    precision: str,
    stream: TextIO,
    per_segment: bool,
    logits: bool,
) -> None:
    # The columns are for programs; the note goes where people look.
    print(f"ecgfm: {_computed(note, precision)}", file=sys.stderr)
    writer = csv.writer(stream, lineterminator="\n")
    names = config.label_names
    extra = [f"logit:{name}" for name in names if logits]
    if per_segment:
        writer.writerow(["recording", "segment", "start_s", "end_s", *names, *extra, "warnings"])
    else:
        writer.writerow(["recording", *names, "segments", "warnings"])
    for answer in answers:
        scores = [f"{answer['scores'][label]:.6g}" for label in names]
        warnings = "; ".join(answer["warnings"])
        if per_segment:
            times = answer["segment"], f"{answer['start_s']:g}", f"{answer['end_s']:g}"
            scores += [f"{answer['logits'][label]:.6g}" for label in names if logits]
            writer.writerow([answer["recording"], *times, *scores, warnings])
        else:
            writer.writerow([answer["recording"], *scores, answer["segments"], warnings])


def _write_table(answers: _Answers, config: "ECGFMConfig", note: str, precision: str, stream: TextIO) -> None:
    """Labels down, a column a recording, as many columns as the terminal is wide."""
    if not answers:
        return
    thresholds, labels = config.label_thresholds or {}, config.label_names
    names = _headings(answers)
    label_width = max(len("label"), *map(len, labels))
    width = shutil.get_terminal_size((120, 24)).columns if stream.isatty() else 120
    cell = max(10, *(min(len(name), 24) for name in names)) + 2
    per_block = max(1, (width - label_width) // cell)
    for start in range(0, len(answers), per_block):
        block = answers[start : start + per_block]
        headings = (name[-cell + 2 :].rjust(cell) for name in names[start : start + per_block])
        stream.write("label".ljust(label_width) + "".join(headings) + "\n")
        for label in labels:
            marks = ("*" if label in (answer["positive"] or []) else " " for answer in block)
            cells = (f"{a['scores'][label]:.3f}{mark}".rjust(cell) for a, mark in zip(block, marks, strict=True))
            stream.write(label.ljust(label_width) + "".join(cells).rstrip() + "\n")
        if "segments" in block[0]:
            counts = (f"{answer['segments']} ".rjust(cell) for answer in block)
            stream.write("segments".ljust(label_width) + "".join(counts) + "\n")
        stream.write("\n")
    warnings = (f"{answer['recording']}: {warning}\n" for answer in answers for warning in answer["warnings"])
    stream.write("".join(dict.fromkeys(warnings)))  # segments share the warnings of their recording
    for label, text in (config.label_notes or {}).items():
        stream.write(f"{label}: {text}\n")
    if thresholds:
        stream.write("* at or above the label's threshold\n")
    stream.write(f"{_computed(note, precision)}\n")


def _computed(note: str, precision: str) -> str:
    # Rounding can change a score's third decimal.
    return note if precision == "float32" else f"{note}; computed in {precision} (--precision float32 is exact)"


def _headings(answers: _Answers) -> list[str]:
    """File names; whole paths where two files have the same name. Those of segments have their times, too."""
    recordings = dict.fromkeys(answer["recording"] for answer in answers)
    names = {recording: os.path.basename(recording) for recording in recordings}
    if len(set(names.values())) < len(names):
        names = {recording: recording for recording in recordings}
    times = (f" {a['start_s']:g}-{a['end_s']:g} s" if "start_s" in a else "" for a in answers)
    return [names[answer["recording"]] + time for answer, time in zip(answers, times, strict=True)]


__all__ = ["print_answers", "report_written", "write_answers"]
