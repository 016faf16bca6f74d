"""`ecgfm pretrain`: its arguments, and what it prints."""

import argparse
import importlib.util
import logging
import os
import sys
from typing import Any


def add_pretrain_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `ecgfm pretrain`."""
    from ..training.recipes import recipe_names

    parser.add_argument(
        "--config",
        metavar="NAME|PATH",
        required=True,
        help=f"a recipe: {', '.join(recipe_names('pretrain'))}, or a YAML file of the same keys",
    )
    parser.add_argument(
        "changes",
        metavar="KEY=VALUE",
        nargs="*",
        help="changes to the recipe, values in YAML: data=STORE output_dir=OUT learning_rate=1e-4 "
        "model.hidden_dropout=0.0. data and output_dir are always needed",
    )
    parser.add_argument("--show", action="store_true", help="print the settings, explained by the recipe, and stop")


def run_pretrain(args: argparse.Namespace) -> int:
    """
    Runs `ecgfm pretrain`.

    Returns:
        `int`: 0 trained, 1 stopped (the loss is not finite, a checkpoint cannot be written), 2 usage, 130 and 143
        interrupted by Ctrl-C and SIGTERM, saved: the same command continues.
    """
    from ..training.recipes import read_recipe
    from ..training.settings import SettingsError
    from ..utils.precision import keep_freed_memory

    process = int(os.environ.get("RANK", "0"))
    try:
        settings = read_recipe(args.config, args.changes)
        if args.show:
            show_recipe(args.config, args.changes, settings)
            return 0
        if importlib.util.find_spec("accelerate") is None:
            raise SettingsError("pretraining needs accelerate: pip install 'ecgfm-hf[training]'")
        keep_freed_memory()
        quiet(process)
        from ..training.monitoring import NonFiniteError
        from ..training.pretraining import Pretrainer

        trainer = Pretrainer(settings)
    except SettingsError as error:
        if process == 0:
            print(f"ecgfm pretrain: {error}", file=sys.stderr)
        return 2
    main = trainer.accelerator.is_main_process
    if main:
        print(trainer.describe(), flush=True)
    try:
        result = trainer.run()
    except SettingsError as error:
        if main:
            print(f"ecgfm pretrain: {error}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        print(f"ecgfm pretrain: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # no space, no permission
        print(f"ecgfm pretrain: {error}", file=sys.stderr)
        return 1
    finally:
        trainer.accelerator.end_training()
    if main:
        print(_summary(result, settings.output_dir))
    return 0 if result.finished else 128 + int(result.signal)


def show_recipe(name_or_path: str, changes: list[str], settings: Any) -> None:
    """Prints a recipe with its comments and, where there are changes, the settings that they lead to."""
    import yaml

    from ..training.recipes import find_recipe

    print(find_recipe(name_or_path).read_text(encoding="utf-8"), end="")
    if changes:
        print(f"\n# As changed:\n{yaml.safe_dump(settings.to_dict(), sort_keys=False)}", end="")


def _summary(result: "PretrainResult", output_dir: str) -> str:  # noqa: F821 - imported late, as torch is
    lines = []
    if result.finished:
        lines.append(
            f"model            {output_dir} (after update {result.update:,}), for AutoModel and AutoModelForPreTraining"
        )
    else:
        lines.append(f"interrupted      after update {result.update:,}; the same command continues")
    lines.append(f"last checkpoint  {result.checkpoint}")
    if result.best is not None:
        lines.append(f"best checkpoint  {result.best} (least validation loss)")
    return "\n".join(lines)


def quiet(process: int) -> None:
    """Keeps libraries' progress bars, and other processes' copies of the same warnings, out of what is printed."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if process > 0:
        logging.getLogger("ecgfm_hf").setLevel(logging.ERROR)
