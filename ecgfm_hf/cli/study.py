"""`ecgfm study`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..utils.errors import SettingsError
from .options import (
    DeviceOption,
    SeedOption,
    SmallestCellOption,
    expand_options,
    parse_names,
    quiet_libraries,
    show_progress,
)
from .outputs import Reads, Writes
from .prepare import TableOptions

if TYPE_CHECKING:
    from ..study import StudyPlan, StudyResult

_SECONDS = {"s": 1, "m": 60, "h": 3600}
_DESIGN, _KNOWN = "Design", "What is known of the recordings"


def _is_study(folder: Path) -> bool:
    from ..study.study import is_study

    return is_study(folder)


@expand_options
def study(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Table of recordings (CSV, TSV, Excel, Parquet), store that `ecgfm prepare` wrote, or processed "
            "folder of fairseq-signals.",
        ),
        Reads(),
    ],
    model: Annotated[
        Path, typer.Option("--model", metavar="DIR", help="Model folder; its encoder is used, not its head."), Reads()
    ],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder for the study."), Writes(_is_study)],
    table_options: TableOptions,
    arms: Annotated[
        str | None,
        typer.Option(
            "--arms",
            metavar="A,B",
            help="Of features, linear, attention, lora, finetune, scratch (default: features,linear,attention,"
            "finetune).",
            rich_help_panel=_DESIGN,
        ),
    ] = None,
    sizes: Annotated[
        str,
        typer.Option(
            "--sizes",
            metavar="N,...",
            help="Labelled recordings to train on: numbers such as 50,100,300, shares such as 0.1, or all.",
            rich_help_panel=_DESIGN,
        ),
    ] = "all",
    folds: Annotated[
        int, typer.Option("--folds", min=3, metavar="N", help="Folds, by patient.", rich_help_panel=_DESIGN)
    ] = 5,
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats",
            min=1,
            metavar="N",
            help="Cross-validations; with --test-split, seeds.",
            rich_help_panel=_DESIGN,
        ),
    ] = 1,
    test_split: Annotated[
        str | None,
        typer.Option(
            "--test-split",
            metavar="NAME",
            help="Test on this split of the data and train on its others, in place of a cross-validation.",
            rich_help_panel=_DESIGN,
        ),
    ] = None,
    finetuning: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change a setting of fine-tuning, as in recipes, such as num_train_epochs=20 or "
            "learning_rate=[1e-4,3e-4] to choose from; may be repeated.",
            rich_help_panel=_DESIGN,
        ),
    ] = None,
    seed: SeedOption = 0,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what the study would do and how long it would take; write nothing."),
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, metavar="N", help="Trainings at a time, on a CPU.")] = 1,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="TIME",
            help="Such as 30m, 2h or 90s: what does not fit is left out, and named. A longer run adds it.",
        ),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(
            "--root",
            metavar="DIR",
            help="Folder of a table's recordings (default: the table's), or of a processed folder's segments.",
            rich_help_panel=_KNOWN,
        ),
        Reads(),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="A,B", help="Default: all labels.", rich_help_panel=_KNOWN),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            "--targets",
            metavar="FILE",
            help="The labels of a processed folder: its y.npy.",
            rich_help_panel=_KNOWN,
        ),
        Reads(),
    ] = None,
    allow_seen: Annotated[
        bool,
        typer.Option(
            "--allow-seen",
            help="Include recordings and patients that the encoder has seen; the report has a warning.",
        ),
    ] = False,
    smallest_cell: SmallestCellOption = 10,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Discard a study in the folder.")] = False,
    device: DeviceOption = "cpu",
) -> int:
    """
    Compare ways to use an encoder on your recordings: which finds the labels best, by how much, with how many labels.

    Each way ("arm") is trained and tested by cross-validation that keeps a patient's recordings together. Writes a
    report, its figures, and all predictions. Started again after an interruption, the same command resumes.

    Exit status: 0 done, 1 the output cannot be written, 2 usage, or too few recordings for a study.
    """
    given_sizes = _sizes(sizes)
    seconds = None if budget is None else _seconds(budget)
    from ..study import Study, StudySettings
    from ..training.recipes import read_changes
    from ..training.settings import FinetuneSettings

    settings = StudySettings(
        data=str(data),
        model=str(model),
        output_dir=str(output),
        root=root,
        labels=parse_names(labels, "--labels"),
        targets=targets,
        table=table_options.arguments(),
        arms=parse_names(arms, "--arms"),
        sizes=given_sizes,
        folds=folds,
        repeats=repeats,
        test_split=test_split,
        seed=seed,
        finetuning=read_changes(finetuning or [], FinetuneSettings),
        jobs=jobs,
        budget=seconds,
        device=device,
        allow_seen=allow_seen,
        smallest_cell=smallest_cell,
        overwrite=overwrite,
    )
    with quiet_libraries(datasets_too=True):
        if dry_run:
            _print_plan(Study(settings, progress=show_progress()).plan(), jobs)
            return 0
        result = Study(settings, progress=show_progress()).run()
    _print_result(result)
    return 0


def _sizes(text: str) -> list[float]:
    try:
        return [1.0 if part.strip() == "all" else float(part) for part in text.split(",")]
    except ValueError:
        raise SettingsError(
            f"--sizes: must be numbers of recordings, shares or all, such as 50,100,all, found: {text}"
        ) from None


def _seconds(text: str) -> float:
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise SettingsError(f"--budget: must look like 30m, 2h or 1h30m, found: {text}")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _print_plan(plan: "StudyPlan", jobs: int) -> None:
    from ..evaluation.formatting import plural
    from ..study.report import size_text

    table, folds = plan.data.table, plan.folds
    groups = table.groups
    print(f"{len(table):,} recordings of {groups.count:,} {groups.unit}s, {plural(len(table.label_names), 'label')}")
    for reason, number in plan.data.excluded.items():
        print(f"excluded    {number:,} {reason}")
    first = [fold for fold in folds if fold.repeat == 0]
    print("positives (of patients) in the test part of each fold of the first repeat")
    width = max(map(len, table.label_names))
    positives = [(table.targets[fold.test] == 1).sum(axis=0) for fold in first]
    patients = [table.patients_with(1, fold.test) for fold in first]
    for column, name in enumerate(table.label_names):
        cells = (f"{n[column]} ({p[column]})" for n, p in zip(positives, patients, strict=True))
        print(f"  {name:<{width}}  " + "  ".join(f"{cell:>9}" for cell in cells))
    print(f"{len(plan.units):,} trainings and tests, by arm with the estimated time on this machine, one at a time:")
    for arm, seconds in plan.seconds.items():
        own = [unit for unit in plan.units if unit.arm == arm]
        sizes = ", ".join(dict.fromkeys(size_text(unit.size) for unit in own))
        print(f"  {arm:<10} {len(own):>5}  {_duration(seconds):>9}  at training sizes {sizes}")
    fewer = f", with --jobs {jobs} less" if jobs > 1 else ""
    print(f"  {'all':<10} {len(plan.units):>5}  {_duration(sum(plan.seconds.values())):>9}{fewer}")
    for note in (*plan.data.notes, *([groups.note] if groups.note else []), *plan.notes):
        print(f"note: {note}")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _print_result(result: "StudyResult") -> None:
    from ..study.report import PAGE_FILE, PDF_FILE, RESULTS_FILE, TABLE_FILE, further_sentences, main_table
    from ..study.study import PREDICTIONS_FILE

    headings, rows = main_table(result.results)
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()
    found = result.results["verdict"]
    print(found["headline"])
    for line in further_sentences(result.results):
        print(line)
    for line in result.left_out:
        print(f"left out: {line}")
    for line in (*result.results["warnings"], *found["caveats"], *result.results["notes"]):
        print(f"note: {line}")
    output = result.output_dir
    print(f"\n{output / PAGE_FILE}, {output / PDF_FILE}, {output / RESULTS_FILE}, {output / TABLE_FILE}")
    print(f"{output / PREDICTIONS_FILE}: every test score; the only file with ids of recordings and patients")
