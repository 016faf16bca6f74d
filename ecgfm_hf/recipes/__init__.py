"""Recipes of training, as YAML. The command line lists them in its help, so this module imports nothing heavy."""

from pathlib import Path

RECIPES = Path(__file__).resolve().parent


def recipe_names(kind: str = "") -> list[str]:
    """Return the names of all recipes, or of those of a kind, `pretrain` or `finetune`."""
    return sorted(path.stem for path in RECIPES.glob(f"{kind}*.yaml"))
