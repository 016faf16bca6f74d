"""`ecgfm prepare` and `ecgfm split`: their arguments, and what they print."""

import argparse
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..utils.name_lists import names

SOURCES = ("mimic_iv_ecg", "physionet2021", "code_15", "table")


def add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `ecgfm prepare`."""
    parser.add_argument("source", metavar="SOURCE", choices=SOURCES, help=", ".join(SOURCES))
    parser.add_argument("root", metavar="ROOT", type=Path, help="the dataset's folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; new, empty, or of the same preparation")
    parser.add_argument("--num-proc", metavar="N", type=int, default=1, help="processes (default: 1)")
    parser.add_argument(
        "--shard",
        metavar="I/N",
        type=_shard,
        help="write the I-th of N shares (I from 1), for several machines; a run without --shard finishes",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="index and rehearse the split, but read and write nothing"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a store in OUT, finished or not")

    own = parser.add_argument_group("what is known of the recordings")
    own.add_argument("--table", metavar="FILE", type=Path, help="table: CSV or Parquet with a row a recording")
    own.add_argument("--columns", metavar="OURS=THEIRS,...", type=_mapping, help="table: its names for our columns")
    own.add_argument("--labels", metavar="LABELS", help="table: label columns A,B,...; mimic_iv_ecg: a CSV, or mimic17")
    own.add_argument(
        "--patients", metavar="FILE", type=Path, help="mimic_iv_ecg: MIMIC-IV's patients.csv, for age, sex"
    )
    own.add_argument("--sampling-rate", metavar="HZ", type=float, help="table: of files that do not say it")
    own.add_argument("--units", metavar="UNIT", help="table: of files that do not say it")
    own.add_argument("--lead-names", metavar="I,II,...", type=_list, help="table: of files that do not say them")
    own.add_argument("--keep-sources", metavar="A,B", type=_list, help="only these, such as georgia,ptb-xl")
    own.add_argument("--drop-sources", metavar="A,B", type=_list, help="all but these")

    private = parser.add_argument_group("privacy")
    private.add_argument("--pseudonymise", action="store_true", help="salted hashes in place of ids, and no paths")
    private.add_argument("--salt-file", metavar="FILE", type=Path, help="for the same hashes again; made if missing")
    private.add_argument(
        "--drop", metavar="A,B", type=_list, default=[], help="columns to leave empty, such as report,time"
    )
    _add_split_arguments(parser, "--split")


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `ecgfm split`."""
    parser.add_argument("store", metavar="STORE", type=Path, help="folder that `ecgfm prepare` wrote; split in place")
    parser.add_argument("--num-proc", metavar="N", type=int, default=1, help="processes (default: 1)")
    _add_split_arguments(parser, "--by")


def _add_split_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    group = parser.add_argument_group("split")
    group.add_argument(
        name,
        dest="strategy",
        choices=("random", "grouped", "temporal", "grouped_temporal"),
        help="grouped: by patient (default: one split, all)",
    )
    group.add_argument("--fractions", metavar="A=X,B=Y", type=_fractions, help="default: train=0.8,valid=0.1,test=0.1")
    group.add_argument("--seed", metavar="S", type=int, default=0, help="default: 0")
    group.add_argument("--split-csv", metavar="FILE", type=Path, help="a published split: idx, save_file, split")
    group.add_argument(
        "--assume-independent", action="store_true", help="each recording of an unknown patient is another patient's"
    )
    group.add_argument("--drop-nan-leads", action="store_true", help="leave out recordings with NaN in any lead")
    group.add_argument("--drop-constant-leads", action="store_true", help="leave out recordings with a dead lead")


def run_prepare(args: argparse.Namespace) -> int:
    """
    Runs `ecgfm prepare`.

    Returns:
        `int`: 0 done (recordings may have been left out: the table says so), 1 it cannot be written, 2 usage.
    """
    from ..data.preparation import PrepareSettings, prepare

    start, began = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    try:
        source = _source(args)
        settings = PrepareSettings(
            split=_split_settings(args),
            keep_sources=args.keep_sources,
            drop_sources=args.drop_sources,
            drop=args.drop,
            pseudonymise=args.pseudonymise,
            salt_file=args.salt_file,
        )
        if args.dry_run:
            return _dry_run(source, settings)
        report = prepare(
            source,
            args.out,
            settings,
            num_proc=args.num_proc,
            shard=args.shard,
            overwrite=args.overwrite,
            progress=sys.stderr.isatty(),
        )
    except ValueError as error:  # of sources, splits, labels, preparation: all say what to do
        print(f"ecgfm prepare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ecgfm prepare: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"ecgfm prepare: {error}; the same command goes on where it was", file=sys.stderr)
        return 1
    if report is None:
        print(
            f"share {args.shard[0] + 1} of {args.shard[1]} is written; the command without --shard finishes {args.out}"
        )
        return 0
    print(summary(report))
    if report["written"] < began:
        print(f"{args.out} was finished already ({report['written']}); nothing was done")
        return 0
    print(f"written to {args.out} in {time.perf_counter() - start:.1f} s; {args.out / 'report.json'} has every detail")
    return 0


def run_split(args: argparse.Namespace) -> int:
    """
    Runs `ecgfm split`.

    Returns:
        `int`: 0 done, 1 it cannot be written, 2 usage.
    """
    from ..data.store_assembly import split_store

    try:
        report = split_store(args.store, _split_settings(args), num_proc=args.num_proc, progress=sys.stderr.isatty())
    except ValueError as error:
        print(f"ecgfm split: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"ecgfm split: {error}", file=sys.stderr)
        return 1
    print(summary(report))
    return 0


def summary(report: Mapping[str, Any]) -> str:
    """A report as a table: recordings by split and label, and by reason those left out."""
    from ..data.report import report_sentences

    counts, splits = report["recordings"], report["splits"]["recordings"]
    lines = [f"{counts['kept']:,} of {counts['found']:,} recordings, {report['hours']:,.1f} hours"]
    lines += _columns(
        [("split", "recordings", "patients")]
        + [(name, f"{count:,}", f"{report['splits']['patients'].get(name, 0):,}") for name, count in splits.items()]
    )
    if report["label_counts"]:
        shown = [*splits, "all"] if len(splits) > 1 else ["all"]
        rows = [("positive", *shown, "unknown")]
        for label, by_split in report["label_counts"].items():
            positives = [f"{by_split[name]['positive']:,}" for name in shown]
            rows.append((label, *positives, f"{by_split['all']['unknown']:,}"))
        lines += _columns(rows)
        weightless = [
            label for label, by in report["label_counts"].items() if "train" in by and by["train"]["pos_weight"] is None
        ]
        if weightless:
            lines.append(f"no positives in train, so no weight: {', '.join(weightless)}")
    if counts["excluded"]:
        lines += _columns(
            [("excluded because", "recordings")]
            + [(reason, f"{count:,}") for reason, count in report["excluded_by_reason"].items()]
        )
    for kind, codes in report["diagnosis_codes"].items():
        if codes:
            told = (
                "that the challenge knows and does not score"
                if kind == "unscored"
                else "that the challenge does not know"
            )
            lines.append(f"{len(codes)} diagnosis codes {told}, {sum(codes.values()):,} times")
    return "\n".join([*lines, *(f"note: {sentence}" for sentence in report_sentences(report))])


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _dry_run(source: Any, settings: Any) -> int:
    from ..data.preparation import build_index, published_splits_of

    index = build_index(source, settings, b"of a dry run" if settings.pseudonymise else None)
    settings.split.check(index.table, published_splits_of(index, settings))
    print(f"{index.table.num_rows:,} recordings to read, {len(index.excluded):,} excluded already")
    for name in ("source", "patient_id"):
        if name in index.table.column_names:
            print(f"  different {name}: {len(index.table[name].unique().drop_null()):,}")
    print(f"  labels: {', '.join(source.label_names) or 'none'}")
    for note in index.notes:
        print(f"note: {note}")
    print("nothing was written (dry run)")
    return 0


def _source(args: argparse.Namespace) -> Any:
    takes = {
        "mimic_iv_ecg": ("labels", "patients"),
        "table": ("table", "columns", "labels", "sampling_rate", "units", "lead_names"),
    }.get(args.source, ())
    given = ("table", "columns", "labels", "patients", "sampling_rate", "units", "lead_names")
    if surplus := [name for name in given if getattr(args, name) is not None and name not in takes]:
        raise ValueError(f"{args.source} does not take --{surplus[0].replace('_', '-')}")
    options = {name: getattr(args, name) for name in takes if getattr(args, name) is not None}
    if args.source == "mimic_iv_ecg":
        from ..data.sources.mimic_iv_ecg import MimicIVECG

        return MimicIVECG(args.root, **options)
    if args.source == "physionet2021":
        from ..data.sources.physionet2021 import PhysioNet2021

        return PhysioNet2021(args.root)
    if args.source == "code_15":
        from ..data.sources.code_15 import Code15

        return Code15(args.root)
    from ..data.sources.table import RecordingTable

    if "labels" in options:
        options["labels"] = _list(options["labels"])
    return RecordingTable(args.root, **options)


def _split_settings(args: argparse.Namespace) -> Any:
    from ..data.splits import SplitSettings, read_split_csv

    if args.split_csv is not None and args.strategy is not None:
        raise ValueError("give a strategy or --split-csv, not both")
    return SplitSettings(
        "imported" if args.split_csv is not None else args.strategy,
        fractions=args.fractions,
        seed=args.seed,
        assume_independent=args.assume_independent,
        published=None if args.split_csv is None else read_split_csv(args.split_csv),
        drop_nan_leads=args.drop_nan_leads,
        drop_constant_leads=args.drop_constant_leads,
    )


def _list(text: str) -> list[str]:
    try:
        return names(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from None


def _mapping(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in _list(text)]
    if not pairs or not all(name and sign for name, sign, _ in pairs):
        raise argparse.ArgumentTypeError(f"must look like patient_id=MRN,path=file,age= (left out), found: {text}")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _fractions(text: str) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in _mapping(text).items()}
    except ValueError:
        raise argparse.ArgumentTypeError(f"must look like train=0.8,valid=0.1,test=0.1, found: {text}") from None


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"must be I/N with I from 1 to N, found: {text}")
    return int(number) - 1, int(count)
