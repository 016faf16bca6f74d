"""`ecgfm finetune`: its arguments, and what it prints."""

import argparse
import importlib.util
import os
import shlex
import sys


def add_finetune_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `ecgfm finetune`."""
    from ..training.recipes import recipe_names

    parser.add_argument(
        "--config",
        metavar="NAME|PATH",
        required=True,
        help=f"a recipe: {', '.join(recipe_names('finetune'))}, or a YAML file of the same keys",
    )
    parser.add_argument(
        "changes",
        metavar="KEY=VALUE",
        nargs="*",
        help="changes to the recipe, values in YAML: data=STORE output_dir=OUT init_from=MODEL labels=[AFIB,PVC] "
        "learning_rate=1e-4. data and output_dir are always needed",
    )
    parser.add_argument("--show", action="store_true", help="print the settings, explained by the recipe, and stop")


def run_finetune(args: argparse.Namespace) -> int:
    """
    Runs `ecgfm finetune`.

    Returns:
        `int`: 0 trained, 1 stopped (the loss is not finite, something cannot be written), 2 usage and leaks, 130 and
        143 interrupted by Ctrl-C and SIGTERM, saved: the same command continues.
    """
    from ..training.recipes import read_recipe
    from ..training.settings import FinetuneSettings, SettingsError
    from ..utils.precision import keep_freed_memory
    from .pretrain import quiet, show_recipe

    process = int(os.environ.get("RANK", "0"))
    try:
        settings = read_recipe(args.config, args.changes, FinetuneSettings)
        if args.show:
            show_recipe(args.config, args.changes, settings)
            return 0
        if importlib.util.find_spec("accelerate") is None:
            raise SettingsError("fine-tuning needs accelerate: pip install 'ecgfm-hf[training]'")
        keep_freed_memory()
        quiet(process)
        from ..data.leakage import LeakError
        from ..training.finetuning import Finetuner
        from ..training.monitoring import NonFiniteError

        try:
            finetuner = Finetuner(settings)
        except LeakError as error:
            raise SettingsError(f"leak: {error}") from None
    except SettingsError as error:
        if process == 0:
            print(f"ecgfm finetune: {error}", file=sys.stderr)
        return 2
    if finetuner.is_main_process:
        print(finetuner.describe(), flush=True)
    try:
        result = finetuner.run()
    except SettingsError as error:
        if process == 0:
            print(f"ecgfm finetune: {error}", file=sys.stderr)
        return 2
    except (NonFiniteError, OSError) as error:  # OSError: no space, no permission
        print(f"ecgfm finetune: {error}", file=sys.stderr)
        return 1
    if finetuner.is_main_process:
        print(_summary(result, settings))
    return 0 if result.finished else 128 + int(result.signal)


def _summary(result: "FinetuneResult", settings: "FinetuneSettings") -> str:  # noqa: F821 - imported late, as torch is
    if not result.finished:
        return f"interrupted      after update {result.update:,}; the same command continues"
    lines = [f"model            {settings.output_dir} (after update {result.best_update:,} of {result.update:,})"]
    if result.metrics:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
        lines.append(
            f"validation       {figures}: it chose the update, so the figure flatters; for an honest one "
            f"`{_evaluation(settings)}`"
        )
    points = result.operating_points
    for name, (positive, negative) in points.cases.items():
        fit, threshold = points.calibration.get(name), points.thresholds.get(name)
        if fit is None and threshold is None:
            continue  # The notes say why.
        told = "score, not calibrated" if fit is None else "calibrated"
        told += ", no threshold" if threshold is None else f", threshold {threshold:.3g}"
        lines.append(f"{name}: {told} ({positive:,} positive and {negative:,} negative validation recordings)")
    lines += [f"note             {note}" for note in result.notes]
    return "\n".join(lines)


def _evaluation(settings: "FinetuneSettings") -> str:  # noqa: F821 - imported late, as torch is
    """The command that judges the model by the split that it has not seen."""
    from ..training.finetuning_data import store_folder

    command = ["ecgfm", "evaluate", settings.output_dir, str(store_folder(settings))]
    command += ["--split", settings.test_split or "SPLIT"]
    if settings.targets is not None:
        command += ["--targets", settings.targets]
    if settings.problem_type == "single_label_classification" and len(settings.labels or ()) == 1:
        command += ["--class-column", settings.labels[0]]
    return shlex.join(command)


__all__ = ["add_finetune_arguments", "run_finetune"]
