"""`ecgfm prepare` and `ecgfm split`."""

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..utils.errors import SettingsError
from .options import (
    ColumnsOption,
    CommandFailed,
    NumProcOption,
    SeedOption,
    SharingOptions,
    expand_options,
    parse_mapping,
    parse_names,
    show_progress,
)
from .outputs import Reads, Writes

if TYPE_CHECKING:
    from ..data import Source, SplitSettings

# Classes of ecgfm_hf.data by the source's name.
_SOURCES = {
    "mimic_iv_ecg": "MimicIVECG",
    "physionet2021": "PhysioNet2021",
    "code_15": "Code15",
    "ptb_xl": "PTBXL",
    "table": "RecordingTable",
    "fairseq": "FairseqFolderSource",
}
_KNOWN, _PRIVACY, _SPLIT = "What is known of the recordings", "Privacy", "Split"
_TABLE = "The table and its labels"

_Strategy = Literal["random", "grouped", "temporal", "grouped_temporal"]
_STRATEGY_HELP = "grouped: by patient (default: one split, all)."
_SPLIT_HELP = "grouped: by patient; published: as ptb_xl and fairseq have it (default: all; of fairseq, published)."


def _is_store(path: Path) -> bool:
    from ..inference.recording_inputs import is_store

    return is_store(str(path))


@dataclass(frozen=True)
class SplitOptions:
    """The options of `prepare` and `split` that decide the splits."""

    fractions: Annotated[
        str | None,
        typer.Option(
            "--fractions", metavar="A=X,B=Y", help="Default: train=0.8,valid=0.1,test=0.1.", rich_help_panel=_SPLIT
        ),
    ] = None
    seed: SeedOption = 0
    split_csv: Annotated[
        Path | None,
        typer.Option(
            "--split-csv",
            metavar="FILE",
            help="CSV of a published split, with columns idx, save_file and split.",
            rich_help_panel=_SPLIT,
        ),
        Reads(),
    ] = None
    assume_independent: Annotated[
        bool,
        typer.Option(
            "--assume-independent",
            help="Treat each recording of an unknown patient as another patient's.",
            rich_help_panel=_SPLIT,
        ),
    ] = False
    drop_nan_leads: Annotated[
        bool,
        typer.Option("--drop-nan-leads", help="Exclude recordings with NaN in any lead.", rich_help_panel=_SPLIT),
    ] = False
    drop_constant_leads: Annotated[
        bool,
        typer.Option("--drop-constant-leads", help="Exclude recordings with a constant lead.", rich_help_panel=_SPLIT),
    ] = False

    def settings(self, strategy: str | None, source: "Source | None" = None) -> "SplitSettings":
        """Return the settings of the split by `strategy` (`--split`, `--by`), which `source` may have published."""
        if self.split_csv is not None and strategy is not None:
            raise SettingsError("give a strategy or --split-csv, not both")
        shares = _parse_fractions(self.fractions)
        from ..data import SplitSettings, read_split_csv

        published = None if self.split_csv is None else read_split_csv(self.split_csv)
        if strategy == "published":
            published = None if source is None else source.published_split()
            if published is None:
                raise SettingsError("--split published: this source has no published split; give it with --split-csv")
        return SplitSettings(
            strategy if published is None else "imported",
            fractions=shares,
            seed=self.seed,
            assume_independent=self.assume_independent,
            published=published,
            drop_nan_leads=self.drop_nan_leads,
            drop_constant_leads=self.drop_constant_leads,
        )


@dataclass(frozen=True)
class TableOptions:
    """The options about a table of recordings: its cells, its labels, and what its files do not contain."""

    binarise: Annotated[
        str | None,
        typer.Option(
            "--binarise",
            metavar="LVEF<=40,...",
            help="table: labels of columns of numbers; NAME=COLUMN<=40 names the label.",
            rich_help_panel=_TABLE,
        ),
    ] = None
    positive: Annotated[
        str | None,
        typer.Option(
            "--positive",
            metavar="A,B",
            help="table: codes of a positive label (default: 1, true, yes, ...).",
            rich_help_panel=_TABLE,
        ),
    ] = None
    negative: Annotated[
        str | None,
        typer.Option(
            "--negative",
            metavar="A,B",
            help="table: codes of a negative label (default: 0, false, no, ...).",
            rich_help_panel=_TABLE,
        ),
    ] = None
    unknown: Annotated[
        str | None,
        typer.Option(
            "--unknown",
            metavar="A,B",
            help="table: further codes of an unknown label, beside empty cells and NA.",
            rich_help_panel=_TABLE,
        ),
    ] = None
    encoding: Annotated[
        str | None,
        typer.Option(
            "--encoding",
            metavar="NAME",
            help="table: such as cp1252 (default: by byte order mark, else UTF-8, else cp1252).",
            rich_help_panel=_TABLE,
        ),
    ] = None
    separator: Annotated[
        str | None,
        typer.Option(
            "--separator", metavar="SIGN", help="table: between cells (default: as found).", rich_help_panel=_TABLE
        ),
    ] = None
    sheet: Annotated[
        str | None,
        typer.Option(
            "--sheet",
            metavar="NAME",
            help="table: of a workbook (default: the only one with cells).",
            rich_help_panel=_TABLE,
        ),
    ] = None
    decimal: Annotated[
        Literal[",", "."] | None,
        typer.Option("--decimal", help="table: decimal sign (default: as found).", rich_help_panel=_TABLE),
    ] = None
    columns: ColumnsOption = None
    unlabelled: Annotated[
        Literal["unknown", "negative"] | None,
        typer.Option(
            "--unlabelled",
            help="table: rows whose column status is not `labelled`: unknown (default) ignores their labels, "
            "negative reads them as they are.",
            rich_help_panel=_TABLE,
        ),
    ] = None
    sampling_rate: Annotated[
        float | None,
        typer.Option(
            "--sampling-rate",
            metavar="HZ",
            help="table: sampling rate in Hz of files that do not contain it; ptb_xl: 500 (default) or 100.",
            rich_help_panel=_KNOWN,
        ),
    ] = None
    units: Annotated[
        str | None,
        typer.Option(
            "--units", metavar="UNIT", help="table: unit of files that do not contain it.", rich_help_panel=_KNOWN
        ),
    ] = None
    lead_names: Annotated[
        str | None,
        typer.Option(
            "--lead-names",
            metavar="I,II,...",
            help="table: leads of files that do not contain their names.",
            rich_help_panel=_KNOWN,
        ),
    ] = None
    rename_leads: Annotated[
        str | None,
        typer.Option(
            "--rename-leads",
            metavar="THEIRS=LEAD,...",
            help="table: leads by the names in the files, such as ECG=I,MLII=II.",
            rich_help_panel=_KNOWN,
        ),
    ] = None
    leads: Annotated[
        str | None,
        typer.Option("--leads", metavar="I,II,...", help="table: read only these leads.", rich_help_panel=_KNOWN),
    ] = None
    checksums: Annotated[
        Literal["verify", "ignore"] | None,
        typer.Option(
            "--checksums",
            help="table: verify (default) refuses samples whose checksum is wrong; ignore reads them, with a warning.",
            rich_help_panel=_KNOWN,
        ),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of a source that are given."""
        lists = ("binarise", "positive", "negative", "unknown", "lead_names", "leads")
        found = asdict(self) | {"columns": parse_mapping(self.columns)}
        found |= {name: parse_names(found[name], f"--{name.replace('_', '-')}") for name in lists}
        return {name: value for name, value in found.items() if value is not None}


@expand_options
def prepare(
    source: Annotated[
        Literal["mimic_iv_ecg", "physionet2021", "code_15", "ptb_xl", "table", "fairseq"],
        typer.Argument(
            metavar="SOURCE",
            help="mimic_iv_ecg, physionet2021, code_15, ptb_xl, table, or fairseq: a processed folder of "
            "fairseq-signals.",
        ),
    ],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The dataset's folder."), Reads()],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Folder to write: new, empty, or of the same preparation."),
        Writes(_is_store),
    ],
    split_options: SplitOptions,
    table_options: TableOptions,
    sharing: SharingOptions,
    num_proc: NumProcOption = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read everything and rehearse the split, but write nothing.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a store in OUT, complete or not.")] = False,
    table: Annotated[
        Path | None,
        typer.Option(
            "--table",
            metavar="FILE",
            help="table: CSV, TSV, Excel or Parquet with one row per recording.",
            rich_help_panel=_KNOWN,
        ),
        Reads(),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="LABELS",
            help="table: label columns A,B,...; mimic_iv_ecg: a CSV, or mimic17 to label the reports; fairseq: y.npy.",
            rich_help_panel=_KNOWN,
        ),
        Reads(),
    ] = None,
    patients: Annotated[
        Path | None,
        typer.Option(
            "--patients",
            metavar="FILE",
            help="mimic_iv_ecg: MIMIC-IV's patients.csv, for age and sex.",
            rich_help_panel=_KNOWN,
        ),
        Reads(),
    ] = None,
    statements: Annotated[
        Literal["superclass", "subclass", "diagnostic", "form", "rhythm", "all"] | None,
        typer.Option(
            "--statements", help="ptb_xl: which statements are labels (default: superclass).", rich_help_panel=_KNOWN
        ),
    ] = None,
    likelihood: Annotated[
        float | None,
        typer.Option(
            "--likelihood",
            metavar="PERCENT",
            help="ptb_xl: statements with less do not count (default: 0, all count).",
            rich_help_panel=_KNOWN,
        ),
    ] = None,
    segments: Annotated[
        Path | None,
        typer.Option(
            "--segments",
            metavar="DIR",
            help="fairseq: folder of the segments, where it is not beside the manifests or as they name it.",
            rich_help_panel=_KNOWN,
        ),
        Reads(),
    ] = None,
    keep_sources: Annotated[
        str | None,
        typer.Option(
            "--keep-sources",
            metavar="A,B",
            help="Only recordings of these sources, such as georgia,ptb-xl.",
            rich_help_panel=_KNOWN,
        ),
    ] = None,
    drop_sources: Annotated[
        str | None,
        typer.Option(
            "--drop-sources", metavar="A,B", help="All recordings but those of these sources.", rich_help_panel=_KNOWN
        ),
    ] = None,
    pseudonymise: Annotated[
        bool,
        typer.Option("--pseudonymise", help="Salted hashes in place of ids, and no paths.", rich_help_panel=_PRIVACY),
    ] = False,
    salt_file: Annotated[
        Path | None,
        typer.Option(
            "--salt-file",
            metavar="FILE",
            help="Use this salt, for the same hashes again; made if missing.",
            rich_help_panel=_PRIVACY,
        ),
        Reads(),
    ] = None,
    drop: Annotated[
        str | None,
        typer.Option(
            "--drop",
            metavar="A,B",
            help="Columns to leave empty, such as report,time.",
            rich_help_panel=_PRIVACY,
        ),
    ] = None,
    strategy: Annotated[
        Literal["random", "grouped", "temporal", "grouped_temporal", "published"] | None,
        typer.Option("--split", help=_SPLIT_HELP, rich_help_panel=_SPLIT),
    ] = None,
) -> int:
    """
    Turn a dataset's files into a store that training reads.

    A store has one row per recording, with unchanged samples, in Parquet files by split, and a report of what was
    excluded. Started again after an interruption, the same command resumes.

    Exit status: 0 done (the table shows what was excluded), 1 cannot be written, 2 usage.
    """
    start, began = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    found = _source(
        source,
        root,
        {
            "table": table,
            "labels": labels,
            "statements": statements,
            "likelihood": likelihood,
            "patients": patients,
            "segments": segments,
            **table_options.arguments(),
        },
    )
    if source == "fairseq" and split_options.split_csv is None:
        strategy = strategy or "published"
    split = split_options.settings(strategy, found)
    from ..data import PrepareSettings
    from ..data import prepare as prepare_store
    from ..data.preparation import rehearse

    settings = PrepareSettings(
        split=split,
        keep_sources=parse_names(keep_sources, "--keep-sources"),
        drop_sources=parse_names(drop_sources, "--drop-sources"),
        drop=parse_names(drop, "--drop") or [],
        pseudonymise=pseudonymise,
        salt_file=salt_file,
    )
    if dry_run:
        print(summary(rehearse(found, settings, show_progress())))
        print("nothing was written (dry run)")
        return 0
    try:
        report = prepare_store(
            found,
            out,
            settings,
            num_proc=num_proc,
            shard=sharing.share,
            distribute=sharing.distribute(),
            overwrite=overwrite,
            progress=show_progress(),
        )
    except KeyboardInterrupt:
        raise CommandFailed("interrupted; the same command resumes", 130) from None
    except OSError as error:
        raise CommandFailed(f"{error}; the same command resumes", 1) from error
    if report is None:
        sharing.report_share(out)
        return 0
    print(summary(report))
    if report["written"] < began:
        print(f"{out} was complete already ({report['written']}); nothing was done")
        return 0
    print(f"written to {out} in {time.perf_counter() - start:.1f} s; {out / 'report.json'} has every detail")
    return 0


@expand_options
def split(
    store: Annotated[
        Path,
        typer.Argument(metavar="STORE", help="Folder that `ecgfm prepare` wrote; it is split in place."),
        Reads(),
    ],
    split_options: SplitOptions,
    num_proc: NumProcOption = 1,
    strategy: Annotated[_Strategy | None, typer.Option("--by", help=_STRATEGY_HELP, rich_help_panel=_SPLIT)] = None,
) -> int:
    """
    Split a store again.

    Exit status: 0 done, 1 it cannot be written, 2 usage.
    """
    settings = split_options.settings(strategy)
    from ..data.store_assembly import split_store

    print(summary(split_store(store, settings, num_proc=num_proc, progress=show_progress())))
    return 0


def summary(report: Mapping[str, Any]) -> str:
    """Return a report as a table: recordings by split and label, and the excluded ones by reason."""
    from ..data.report import report_sentences

    counts, splits = report["recordings"], report["splits"]["recordings"]
    lines = [f"{counts['kept']:,} of {counts['found']:,} recordings, {report['hours']:,.1f} hours"]
    lines += _columns(
        [("split", "recordings", "patients")]
        + [(name, f"{count:,}", f"{report['splits']['patients'].get(name, 0):,}") for name, count in splits.items()]
    )
    if report["label_counts"]:
        shown = [*splits, "all"] if len(splits) > 1 else ["all"]
        rows = [("positive (of patients)", *shown, "unknown")]
        for label, by_split in report["label_counts"].items():
            positives = [f"{by_split[name]['positive']:,} ({by_split[name]['patients']:,})" for name in shown]
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
            which = "that the challenge does not score" if kind == "unscored" else "unknown to the challenge"
            lines.append(f"{len(codes)} diagnosis codes {which}, {sum(codes.values()):,} times")
    return "\n".join([*lines, *(f"note: {sentence}" for sentence in report_sentences(report))])


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(["", row[0].ljust(first), *map(str.rjust, row[1:], others)]).rstrip() for row in rows]


def _source(name: str, root: Path, options: Mapping[str, Any]) -> "Source":
    from .. import data

    source: Callable[..., Source] = getattr(data, _SOURCES[name])
    given = {option: value for option, value in options.items() if value is not None}
    if surplus := [option for option in given if option not in inspect.signature(source).parameters]:
        raise SettingsError(f"{name} does not take --{surplus[0].replace('_', '-')}")
    if name == "table" and "labels" in given:
        given["labels"] = parse_names(given["labels"], "--labels")
    return source(root, **given)


def _parse_fractions(text: str | None) -> dict[str, float] | None:
    if text is None:
        return None
    try:
        return {name: float(value) for name, value in (parse_mapping(text, "--fractions") or {}).items()}
    except ValueError:
        raise SettingsError(f"--fractions: must look like train=0.8,valid=0.1,test=0.1, found: {text}") from None
