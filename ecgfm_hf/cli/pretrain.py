"""`ecgfm pretrain`, and what it shares with `ecgfm finetune`."""

import importlib.util
import logging
import os
from typing import TYPE_CHECKING, Annotated

import typer

from ..recipes import recipe_names
from ..utils.errors import SettingsError
from .outputs import Reads

if TYPE_CHECKING:
    from ..training import FinetuneSettings, PretrainResult, PretrainSettings

ShowOption = Annotated[bool, typer.Option("--show", help="Print the settings, explained by the recipe, and stop.")]


def pretrain(
    config: Annotated[
        str,
        typer.Option(
            "--config",
            metavar="NAME|PATH",
            help=f"A recipe: {', '.join(recipe_names('pretrain'))}, or a YAML file of the same keys.",
        ),
        Reads(),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Changes to the recipe, values in YAML: data=STORE output_dir=OUT learning_rate=1e-4 "
            "model.hidden_dropout=0.0. data and output_dir are always needed.",
        ),
    ] = None,
    show: ShowOption = False,
) -> int:
    """
    Pretrain with W2V + CMSC + RLM on a store.

    Exit status: 0 trained, 1 stopped (the loss is not finite, a checkpoint cannot be written), 2 usage, 130 and 143
    interrupted by Ctrl-C and SIGTERM, saved: the same command resumes.
    """
    from ..training import read_recipe

    settings = read_recipe(config, list(changes or ()))
    if show:
        show_recipe(config, list(changes or ()), settings)
        return 0
    prepare_to_train("pretraining")
    from ..training import Pretrainer

    trainer = Pretrainer(settings)
    main = trainer.accelerator.is_main_process
    if main:
        print(trainer.describe(), flush=True)
    try:
        result = trainer.run()
    finally:
        trainer.accelerator.end_training()
    if main:
        print(_summary(result, str(settings.output_dir)))
    return 0 if result.finished else 128 + int(result.signal)


def show_recipe(name_or_path: str, changes: list[str], settings: "PretrainSettings | FinetuneSettings") -> None:
    """Print a recipe with its comments and, where there are changes, the settings that they lead to."""
    import yaml

    from ..training import find_recipe

    print(find_recipe(name_or_path).read_text(encoding="utf-8"), end="")
    if changes:
        print(f"\n# As changed:\n{yaml.safe_dump(settings.to_dict(), sort_keys=False)}", end="")


def prepare_to_train(what: str) -> None:
    """
    Check that accelerate is installed, and keep libraries' progress bars and other processes' warnings out of the log.

    Raises:
        [`SettingsError`]: accelerate is missing.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise SettingsError(f"{what} needs accelerate: pip install 'ecgfm-hf[training]'")
    import datasets
    import transformers

    from ..utils.precision import keep_freed_memory

    keep_freed_memory()
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if os.environ.get("RANK", "0") != "0":
        logging.getLogger("ecgfm_hf").setLevel(logging.ERROR)


def _summary(result: "PretrainResult", output_dir: str) -> str:
    if result.finished:
        after = f"(after update {result.update:,}), for AutoModel and AutoModelForPreTraining"
        lines = [f"model            {output_dir} {after}"]
    else:
        lines = [f"interrupted      after update {result.update:,}; the same command resumes"]
    lines.append(f"last checkpoint  {result.checkpoint}")
    if result.best is not None:
        lines.append(f"best checkpoint  {result.best} (least validation loss)")
    return "\n".join(lines)
