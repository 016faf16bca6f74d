"""`ecgfm label`: its arguments, and what it prints."""

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

from ..labeler.batch import join_lines, label_reports
from ..labeler.explanation import html_page
from ..labeler.knowledge import LabelerError
from ..labeler.label_def import LabelCounts
from ..labeler.labeler import LABELLED, STATUSES, Labeler
from ..labeler.presets import MIMIC17_LABELS, PRESETS
from ..labeler.tables import STATUS_COLUMN, Block, TableError, open_reader, open_writer, write_counts

_EXPLAINED = 20  # Reports on the page of --explain-html.


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `ecgfm label`."""
    parser.add_argument("reports", metavar="REPORTS", type=Path, help="table with a report a row: .csv or .parquet")
    parser.add_argument("output", metavar="OUT", type=Path, help="table to write: .parquet or .csv; replaces a file")
    parser.add_argument(
        "--text-column",
        default="text",
        metavar="NAME",
        help="column of the report (default: text); 'report_*' joins report_0, report_1, ... of MIMIC-IV-ECG",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--preset", choices=tuple(PRESETS), default="mimic17", help="default: mimic17")
    which.add_argument("--definition", type=Path, metavar="JSON", help="a labeler of your own")
    which.add_argument("--original", type=Path, metavar="DIR", help="the original's JSON tables, from your clone of it")
    parser.add_argument("--soft", action="store_true", help="probabilities in place of 0 and 1")
    least = parser.add_mutually_exclusive_group()
    least.add_argument("--keep", choices=("any",), default="any", help="count a label with any probability (default)")
    least.add_argument("--threshold", type=float, metavar="P", help="count a label from this probability on")
    parser.add_argument("--num-proc", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--unmatched", type=Path, metavar="CSV", help="write what no phrase accounts for, with counts")
    parser.add_argument(
        "--explain-html",
        type=Path,
        metavar="HTML",
        help=f"write which words gave which label, for the first {_EXPLAINED} reports that differ",
    )
    parser.add_argument("--label-def", type=Path, metavar="CSV", help="write counts and pos_weight, as label_def.csv")
    parser.add_argument("--split-column", metavar="NAME", help="column of the split, for --label-def (default: train)")


def run_label(args: argparse.Namespace) -> int:
    """
    Runs `ecgfm label`.

    Returns:
        `int`: 0 written, 1 reading or writing failed, 2 usage.
    """
    try:
        labeler = _labeler(args)
        print(_label(args, labeler))
    except (LabelerError, TableError, FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        print(f"ecgfm label: {error}", file=sys.stderr)
        return 2
    except (OSError, BrokenExecutor) as error:
        print(f"ecgfm label: {error}", file=sys.stderr)
        return 1
    return 0


def _labeler(args: argparse.Namespace) -> Labeler:
    if args.original is not None:
        # The original's tables know hundreds of entities; its published classifier has these.
        return Labeler.from_original(args.original, MIMIC17_LABELS)
    if args.definition is not None:
        return Labeler.from_definition(args.definition)
    return Labeler.from_preset(args.preset)


def _label(args: argparse.Namespace, labeler: Labeler) -> str:
    """Goes through the table block by block; the output appears under its name only when it is whole."""
    from tqdm import tqdm

    if args.split_column is not None and args.label_def is None:
        raise ValueError("--split-column is for --label-def, which is not given")
    _check_outputs(args)
    counts, known, explained = LabelCounts(labeler.labels), LabelCounts(labeler.labels), {}
    unmatched: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    unlabelled = 0
    partial = args.output.with_name(f".{args.output.name}.partial")
    reader = open_reader(args.reports)
    columns = _text_columns(reader.header, args.text_column, args.reports)
    split = None if args.split_column is None else reader.index(args.split_column)
    for index in columns:
        reader.read_as_text(index)
    report_of = _report_of(columns, joined=args.text_column.endswith("*"))
    for label in (*labeler.labels, STATUS_COLUMN):
        if label in reader.header:
            raise TableError(f"{args.reports}: has a column {label!r} already; rename it")
    keep = args.keep if args.threshold is None else args.threshold
    pending: list[Block] = []  # Blocks whose reports are being labelled, the oldest first.

    def reports() -> Iterator[object]:
        for block in reader.blocks():
            pending.append(block)
            texts = report_of(block)
            if len(explained) < _EXPLAINED:
                explained.update(dict.fromkeys(text for text in texts if isinstance(text, str)))
            yield from texts

    rows = label_reports(labeler, reports(), keep=keep, soft=args.soft, processes=args.num_proc)
    try:
        with _named(args.output):
            opened = open_writer(args.output.suffix, partial, reader, labeler.labels, args.soft)
        with (
            opened as writer,
            tqdm(total=reader.number, unit="report", disable=not sys.stderr.isatty()) as progress,
        ):
            for first in rows:
                block = pending.pop(0)
                labelled = [first, *islice(rows, block.number - 1)]
                with _named(args.output):
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
        with _named(args.output):
            os.replace(partial, args.output)
    finally:
        with _named(args.output):
            partial.unlink(missing_ok=True)
    if args.label_def is not None:
        known.write(args.label_def)
    if args.unmatched is not None:
        write_counts(args.unmatched, unmatched)
    if args.explain_html is not None:
        page = html_page(map(labeler.explain, islice(explained, _EXPLAINED)))
        args.explain_html.write_text(page, encoding="utf-8")
    return _summary(labeler, counts, unlabelled, statuses, unmatched, args)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors name the file that was asked for, and not the one that it is until it is whole."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: cannot be written: {os.strerror(error.errno) if error.errno else error}") from error


def _check_outputs(args: argparse.Namespace) -> None:
    """What would only show after the work: outputs that cannot be written, or would overwrite something of this run."""
    used: dict[Path, str] = {args.reports.resolve(): "the reports"}
    outputs = {"the labels": args.output, "--unmatched": args.unmatched}
    outputs |= {"--explain-html": args.explain_html, "--label-def": args.label_def}
    for what, path in outputs.items():
        if path is None:
            continue
        if path.resolve() in used:
            raise TableError(f"{path}: {what} would overwrite {used[path.resolve()]}")
        if not path.resolve().parent.is_dir():
            raise TableError(f"{path}: there is no folder {path.parent}")
        if path.is_dir():
            raise TableError(f"{path}: is a folder")
        # The labels replace a file; the others are written into it.
        if not os.access(path if path.exists() and path != args.output else path.resolve().parent, os.W_OK):
            raise TableError(f"{path}: {what} cannot be written there")
        used[path.resolve()] = what


def _text_columns(header: list[str], name: str, path: Path) -> list[int]:
    if name.endswith("*"):
        is_line = re.compile(re.escape(name[:-1]) + r"\d+").fullmatch
        lines = sorted(filter(is_line, header), key=lambda column: int(column[len(name) - 1 :]))
        found = [header.index(column) for column in lines]
    else:
        found = [index for index, column in enumerate(header) if column == name]
    if not found:
        raise TableError(f"{path}: has no column {name!r}; columns: {', '.join(header)}")
    return found


def _report_of(columns: list[int], joined: bool) -> Callable[[Block], list]:
    if joined:
        return lambda block: [join_lines(lines) for lines in zip(*map(block.texts, columns), strict=True)]
    return lambda block: block.texts(columns[0])


def _summary(
    labeler: Labeler,
    counts: LabelCounts,
    unlabelled: int,
    statuses: Counter[str],
    unmatched: Counter[str],
    args: argparse.Namespace,
) -> str:
    positives, number = counts.totals()
    rows = [(label, count) for label, count in zip(labeler.labels, positives, strict=True)]
    rows.append(("no label", unlabelled))
    rows += [(f"status: {status}", statuses[status]) for status in STATUSES]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {count:>9,}  {count / max(number, 1):7.2%}" for name, count in rows]
    text = f"{len(unmatched):,} statements unmatched, {sum(unmatched.values()):,} times"
    return "\n".join(chain(lines, (f"{number:,} reports ({labeler.name}), {text}", f"written to {args.output}")))
