"""What `ecgfm predict` prints or writes: a table for people; CSV, TSV, JSON and workbooks for programs."""

import csv
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..utils.errors import SettingsError
from ..utils.files import atomic_path, begins_with
from ..utils.text import printable, to_cells
from .options import exact, show_progress

if TYPE_CHECKING:
    import numpy as np

    from ..configuration_ecgfm import ECGFMConfig
    from ..inference.model_runner import ModelRunner
    from ..inference.read_ahead import ReadRecording
    from ..inference.recording_sources import FileSource, FolderSource, StoreSource
    from ..records import ECGRecord

_Answers = list[dict[str, Any]]
# The creator of a workbook, by which an earlier output is recognised.
_WORKBOOK_CREATOR = "ecgfm predict"
_FORMAT_OF_SUFFIX = {".csv": "csv", ".tsv": "tsv", ".json": "json", ".xlsx": "xlsx", ".parquet": "parquet"}
_TEXT_SUFFIXES = ("", ".txt", ".out", ".log")


def format_of(output: str, format: str | None = None) -> str:
    """
    Return the format to write: `--format`, or by the suffix of the output.

    Raises:
        [`SettingsError`]: they contradict each other, or the suffix is of no format and no `--format` is given.
    """
    suffix = Path(output).suffix.lower()
    found = _FORMAT_OF_SUFFIX.get(suffix)
    if None not in (format, found) and format != found:
        raise SettingsError(f"--format {format} contradicts --output {output}: remove --format, or change the suffix")
    if format is None and found is None and suffix not in _TEXT_SUFFIXES and not Path(output).is_char_device():
        raise SettingsError(
            f"--output {output}: the suffix {suffix} names no format. Expected {', '.join(_FORMAT_OF_SUFFIX)}, .txt "
            "for a table to read, or --format"
        )
    return format or found or "table"


def is_parquet_output(path: Path) -> bool:
    """Return whether a file was written by a run with Parquet output."""
    from ..inference.parquet_run import is_output

    return is_output(path)


def is_answers(path: Path) -> bool:
    """Return whether a file was written by `predict --output`, in any of its formats."""
    if not path.is_file():
        return False
    if begins_with("[]\n", '[\n {\n  "recording":')(path):
        return True
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as workbook:
            about = "docProps/core.xml"
            return about in workbook.namelist() and _WORKBOOK_CREATOR.encode() in workbook.read(about)
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        first = file.readline()
    cells = first.rstrip("\n").split("\t" if "\t" in first else ",")
    if cells[0] == "recording" and cells[-1] == "warnings" and (cells[-2] == "segments" or "start_s" in cells):
        return True
    if first.startswith("label "):  # a table, which ends with what the scores are
        last = path.read_text(encoding="utf-8", errors="replace").rstrip().rpartition("\n")[2]
        return "not for clinical use" in last
    return is_parquet_output(path)


def print_answers(
    runner: "ModelRunner",
    source: "FileSource | StoreSource | FolderSource",
    config: "ECGFMConfig",
    format: str,
    output: str | None,
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
        format: `"table"`, `"csv"`, `"tsv"`, `"json"` or `"xlsx"`.
        output: The file to write, whole or not at all; standard output if None.
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
    per_segment = by_segment is not None
    if output is None:
        write_answers(answers, config, format, sys.stdout, runner.precision, per_segment, logits)
    else:
        with atomic_path(output) as scratch:
            if format == "xlsx":
                _write_workbook(_rows(answers, config, per_segment, logits), config, runner.precision, scratch)
            else:
                with open(scratch, "w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
                    write_answers(answers, config, format, stream, runner.precision, per_segment, logits)
        report_written(count, output)
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
        answers: One per recording, or one per segment.
        config ([`ECGFMConfig`]): The config of the model that made them.
        format: `"table"`, `"csv"`, `"tsv"` or `"json"`.
        stream: Where to write.
        precision: What they were computed in.
        per_segment, logits: Whether answers are of segments, and whether to write their logits.
    """
    from ..inference.model_runner import score_note

    note = score_note(config)
    if not logits:
        answers = [{name: value for name, value in answer.items() if name != "logits"} for answer in answers]
    if format in ("csv", "tsv"):
        # The columns are for programs; the note goes where people look.
        print(f"ecgfm: {_computed(note, precision)}", file=sys.stderr)
        writer = csv.writer(exact(stream), delimiter="\t" if format == "tsv" else ",", lineterminator="\n")
        writer.writerows(to_cells(row) for row in _rows(answers, config, per_segment, logits))
    elif format == "json":
        about = {"precision": precision, "note": note}
        json.dump([answer | about for answer in answers], exact(stream), indent=1, ensure_ascii=False)
        exact(stream).write("\n")
    else:
        _write_table(answers, config, note, precision, stream)


def _rows(answers: _Answers, config: "ECGFMConfig", per_segment: bool, logits: bool) -> Iterator[list[str]]:
    """Yield the header, and one row per recording or segment: its name first, its warnings last, numbers between."""
    names = config.label_names
    extra = [f"logit:{name}" for name in names if logits]
    if per_segment:
        yield ["recording", "segment", "start_s", "end_s", *names, *extra, "warnings"]
    else:
        yield ["recording", *names, "segments", "warnings"]
    for answer in answers:
        scores = [f"{answer['scores'][label]:.6g}" for label in names]
        warnings = "; ".join(answer["warnings"])
        if per_segment:
            times = str(answer["segment"]), f"{answer['start_s']:g}", f"{answer['end_s']:g}"
            scores += [f"{answer['logits'][label]:.6g}" for label in names if logits]
            yield [answer["recording"], *times, *scores, warnings]
        else:
            yield [answer["recording"], *scores, str(answer["segments"]), warnings]


def _write_workbook(rows: Iterator[list[str]], config: "ECGFMConfig", precision: str, path: Path) -> None:
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    from ..inference.model_runner import score_note

    workbook = Workbook(write_only=True)
    workbook.properties.creator = _WORKBOOK_CREATOR
    sheet = workbook.create_sheet("scores")
    for number, row in enumerate(rows):
        cells = []
        for index, value in enumerate(row):
            is_number = number > 0 and 0 < index < len(row) - 1
            cell = WriteOnlyCell(sheet, float(value) if is_number else printable(value))
            if not is_number:
                cell.data_type = "s"  # text, not a formula
            cells.append(cell)
        sheet.append(cells)
    workbook.create_sheet("about").append([_computed(score_note(config), precision)])
    workbook.save(path)


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


__all__ = ["format_of", "is_answers", "is_parquet_output", "print_answers", "report_written", "write_answers"]
