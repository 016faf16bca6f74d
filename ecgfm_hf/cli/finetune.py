"""`ecgfm finetune`."""

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from ..recipes import recipe_names
from .options import CommandFailed
from .outputs import Reads
from .pretrain import ShowOption, prepare_to_train, show_recipe

if TYPE_CHECKING:
    from ..training import FinetuneResult, FinetuneSettings


def finetune(
    config: Annotated[
        str,
        typer.Option(
            "--config",
            metavar="NAME|PATH",
            help=f"A recipe: {', '.join(recipe_names('finetune'))}, or a YAML file of the same keys.",
        ),
        Reads(),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Changes to the recipe, values in YAML: data=STORE output_dir=OUT init_from=MODEL "
            "labels=\\[AFIB,PVC] learning_rate=1e-4. data and output_dir are always needed.",
        ),
    ] = None,
    show: ShowOption = False,
) -> int:
    """
    Train a classifier on a labelled store.

    Exit status: 0 trained, 1 stopped (the loss is not finite, something cannot be written), 2 usage and leaks, 130 and
    143 interrupted by Ctrl-C and SIGTERM, saved: the same command resumes.
    """
    from ..training import FinetuneSettings, read_recipe

    settings = read_recipe(config, list(changes or ()), FinetuneSettings)
    if show:
        show_recipe(config, list(changes or ()), settings)
        return 0
    prepare_to_train("fine-tuning")
    from ..data.leakage import LeakError
    from ..training import Finetuner

    try:
        finetuner = Finetuner(settings)
    except LeakError as error:
        raise CommandFailed(f"leak: {error}") from error
    if finetuner.is_main_process:
        print(finetuner.describe(), flush=True)
    result = finetuner.run()
    if finetuner.is_main_process:
        print(_summary(result, settings))
    return 0 if result.finished else 128 + int(result.signal)


def _summary(result: "FinetuneResult", settings: "FinetuneSettings") -> str:
    if not result.finished:
        return f"interrupted      after update {result.update:,}; the same command resumes"
    lines = [f"model            {settings.output_dir} (after update {result.best_update:,} of {result.update:,})"]
    if result.metrics:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
        lines.append(
            f"validation       {figures}: it chose the update, so the figure is too good; for an unbiased one "
            f"`{_evaluation(settings)}`"
        )
    points = result.operating_points
    for name, (positive, negative) in points.cases.items():
        fit, threshold = points.calibration.get(name), points.thresholds.get(name)
        if fit is None and threshold is None:
            continue  # the notes give the reason
        state = "score, not calibrated" if fit is None else "calibrated"
        state += ", no threshold" if threshold is None else f", threshold {threshold:.3g}"
        lines.append(f"{name}: {state} ({positive:,} positive and {negative:,} negative validation recordings)")
    lines += [f"note             {note}" for note in result.notes]
    return "\n".join(lines)


def _evaluation(settings: "FinetuneSettings") -> str:
    """Return the command that evaluates the model on the split that it has not seen."""
    from ..training.finetuning_data import store_folder

    command = ["ecgfm", "evaluate", str(settings.output_dir), str(store_folder(settings))]
    command += ["--split", settings.test_split or "SPLIT"]
    if settings.targets is not None:
        command += ["--targets", settings.targets]
    if settings.problem_type == "single_label_classification" and settings.labels and len(settings.labels) == 1:
        command += ["--class-column", *settings.labels]
    return shlex.join(command)
