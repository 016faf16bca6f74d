"""`ecgfm label`."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..labeler.presets import Preset
from ..utils.errors import SettingsError
from ..utils.files import atomic_path, begins_with, write_text
from .options import NumProcOption, failing_with, show_progress
from .outputs import Reads, Writes

if TYPE_CHECKING:
    from ..labeler import LabelCounts, Labeler
    from ..labeler.tables import Block

# The beginning of the page of --explain-html.
_PAGE_START = '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Labels of reports</title>'
_EXPLAINED = 20  # reports on the page of --explain-html


def _is_labelled(path: Path) -> bool:
    from ..labeler.tables import is_labelled

    return is_labelled(path)


@dataclass(frozen=True)
class _Job:
    """What to label and what to write, named like the options."""

    reports: Path
    output: Path
    text_column: str
    soft: bool
    keep: str | float
    num_proc: int
    unmatched: Path | None
    explain_html: Path | None
    label_def: Path | None
    split_column: str | None


def label(
    reports: Annotated[
        Path, typer.Argument(metavar="REPORTS", help="Table with one report per row: .csv or .parquet."), Reads()
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Table to write: .parquet or .csv."), Writes(_is_labelled)
    ],
    text_column: Annotated[
        str,
        typer.Option(
            "--text-column",
            metavar="NAME",
            help="Column of the report; 'report_*' joins report_0, report_1, ... of MIMIC-IV-ECG.",
        ),
    ] = "text",
    preset: Annotated[
        Preset | None,
        typer.Option("--preset", help="A labeler of this package (default: mimic17)."),
    ] = None,
    definition: Annotated[
        Path | None,
        typer.Option("--definition", metavar="JSON", help="A labeler of your own (see docs/labeler.md)."),
        Reads(),
    ] = None,
    original: Annotated[
        Path | None,
        typer.Option(
            "--original",
            metavar="DIR",
            help="Folder of the JSON tables of ECG-FM's labeler, from a clone of the ECG-FM repository.",
        ),
        Reads(),
    ] = None,
    soft: Annotated[bool, typer.Option("--soft", help="Write probabilities instead of 0 and 1.")] = False,
    keep: Annotated[
        Literal["any"] | None, typer.Option("--keep", help="A label is positive with any probability (default).")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", metavar="P", help="A label is positive from this probability."),
    ] = None,
    num_proc: NumProcOption = 1,
    unmatched: Annotated[
        Path | None,
        typer.Option("--unmatched", metavar="CSV", help="Write the text that no phrase matched, with counts."),
        Writes(begins_with("text,count\n")),
    ] = None,
    explain_html: Annotated[
        Path | None,
        typer.Option(
            "--explain-html",
            metavar="HTML",
            help=f"Write which words gave which label, for the first {_EXPLAINED} different reports.",
        ),
        Writes(begins_with(_PAGE_START)),
    ] = None,
    label_def: Annotated[
        Path | None,
        typer.Option(
            "--label-def", metavar="CSV", help="Write the counts and pos_weight of each label, as in label_def.csv."
        ),
        Writes(begins_with("name,pos_count_")),
    ] = None,
    split_column: Annotated[
        str | None,
        typer.Option("--split-column", metavar="NAME", help="Column of the split, for --label-def (default: train)."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that this command did not write; never the reports.")
    ] = False,
) -> int:
    """
    Turn free-text reports into labels.

    Exit status: 0 written, 1 reading or writing failed, 2 usage.
    """
    _one_of(**{"--preset": preset, "--definition": definition, "--original": original})
    _one_of(**{"--keep": keep, "--threshold": threshold})
    if split_column is not None and label_def is None:
        raise SettingsError("--split-column is for --label-def, which is not given")
    from ..labeler import MIMIC17_LABELS, Labeler

    if original is not None:
        # ECG-FM's tables define hundreds of entities; its published classifier has these labels.
        labeler = Labeler.from_original(original, MIMIC17_LABELS)
    elif definition is not None:
        labeler = Labeler.from_definition(definition)
    else:
        labeler = Labeler.from_preset(preset or "mimic17")
    job = _Job(
        reports,
        output,
        text_column,
        soft,
        "any" if threshold is None else threshold,
        num_proc,
        unmatched,
        explain_html,
        label_def,
        split_column,
    )
    with failing_with(1, BrokenExecutor):
        print(_label(job, labeler))
    return 0


def _one_of(**options: object) -> None:
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise typer.BadParameter(f"{given[1]}: not allowed with {given[0]}")


def _label(job: _Job, labeler: "Labeler") -> str:
    """Label the table block by block; the output appears under its name only when it is complete."""
    from tqdm import tqdm

    from ..labeler import LabelCounts, html_page, label_reports
    from ..labeler.report_labels import LABELLED
    from ..labeler.tables import STATUS_COLUMN, TableError, open_reader, open_writer, write_counts

    _check_outputs(job)
    counts, known = LabelCounts(labeler.labels), LabelCounts(labeler.labels)
    unmatched, statuses = Counter[str](), Counter[str]()
    explained: dict[str, None] = {}
    unlabelled = 0
    reader = open_reader(job.reports)
    columns = _text_columns(reader.header, job.text_column, job.reports)
    split = None if job.split_column is None else reader.index(job.split_column)
    for index in columns:
        reader.read_as_text(index)
    report_of = _report_of(columns, joined=job.text_column.endswith("*"))
    for label in (*labeler.labels, STATUS_COLUMN):
        if label in reader.header:
            raise TableError(f"{job.reports}: has a column {label!r} already; rename it")
    pending: list[Block] = []  # Blocks whose reports are being labelled, the oldest first.

    def reports() -> Iterator[str | None]:
        for block in reader.blocks():
            pending.append(block)
            texts = report_of(block)
            if len(explained) < _EXPLAINED:
                explained.update(dict.fromkeys(text for text in texts if isinstance(text, str)))
            yield from texts

    rows = label_reports(labeler, reports(), keep=job.keep, soft=job.soft, processes=job.num_proc)
    with (
        _named(job),
        atomic_path(job.output) as partial,
        open_writer(job.output.suffix, partial, reader, labeler.labels, job.soft) as writer,
        tqdm(total=reader.number, unit="report", disable=not show_progress()) as progress,
    ):
        for first in rows:
            block = pending.pop(0)
            labelled = [first, *islice(rows, block.number - 1)]
            writer.write(block, labelled)
            splits = ["train"] * block.number if split is None else map(str, block.texts(split))
            for row, name in zip(labelled, splits, strict=True):
                counts.add(row.values, name)
                if row.status == LABELLED:  # the labels of others are unknown
                    known.add(row.values, name)
                unlabelled += not any(row.values)
                statuses[row.status] += 1
                unmatched.update(row.unmatched)
            progress.update(block.number)
    if job.label_def is not None:
        known.write(job.label_def)
    if job.unmatched is not None:
        write_counts(job.unmatched, unmatched)
    if job.explain_html is not None:
        page = html_page(map(labeler.explain, islice(explained, _EXPLAINED)))
        write_text(job.explain_html, page)
    return _summary(labeler, counts, unlabelled, statuses, unmatched, job)


@contextmanager
def _named(job: _Job) -> Iterator[None]:
    """Name the output in errors of writing, not the temporary file beside it."""
    try:
        yield
    except OSError as error:
        if error.filename == str(job.reports):
            raise
        what = os.strerror(error.errno) if error.errno else error
        raise OSError(f"{job.output}: cannot be written: {what}") from error


def _check_outputs(job: _Job) -> None:
    """Check before the work that the outputs can be written."""
    from ..labeler.tables import TableError

    for path in (job.output, job.unmatched, job.explain_html, job.label_def):
        if path is None:
            continue
        if not path.resolve().parent.is_dir():
            raise TableError(f"{path}: there is no folder {path.parent}")
        if path.is_dir():
            raise TableError(f"{path}: is a folder")
        if not os.access(path.resolve().parent, os.W_OK):
            raise TableError(f"{path}: cannot be written there")


def _text_columns(header: list[str], name: str, path: Path) -> list[int]:
    from ..labeler.tables import TableError

    if name.endswith("*"):
        is_line = re.compile(re.escape(name[:-1]) + r"\d+").fullmatch
        lines = sorted(filter(is_line, header), key=lambda column: int(column[len(name) - 1 :]))
        found = [header.index(column) for column in lines]
    else:
        found = [index for index, column in enumerate(header) if column == name]
    if not found:
        raise TableError(f"{path}: has no column {name!r}; columns: {', '.join(header)}")
    return found


def _report_of(columns: list[int], joined: bool) -> "Callable[[Block], list[str | None]]":
    from ..labeler import join_lines

    if joined:
        return lambda block: [join_lines(lines) for lines in zip(*map(block.texts, columns), strict=True)]
    return lambda block: block.texts(columns[0])


def _summary(
    labeler: "Labeler",
    counts: "LabelCounts",
    unlabelled: int,
    statuses: Counter[str],
    unmatched: Counter[str],
    job: _Job,
) -> str:
    from ..labeler.report_labels import STATUSES

    positives, number = counts.totals()
    rows = [(label, count) for label, count in zip(labeler.labels, positives, strict=True)]
    rows.append(("no label", unlabelled))
    rows += [(f"status: {status}", statuses[status]) for status in STATUSES]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {count:>9,}  {count / max(number, 1):7.2%}" for name, count in rows]
    text = f"{len(unmatched):,} statements unmatched, {sum(unmatched.values()):,} times"
    return "\n".join(chain(lines, (f"{number:,} reports ({labeler.name}), {text}", f"written to {job.output}")))
