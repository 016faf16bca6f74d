"""Recipes: YAML files of settings, found by name or path, with changes from the command line."""

import copy
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import yaml

from ..configuration_ecgfm import ECGFMConfig
from ..fairseq.training_options import in_our_words
from ..recipes import RECIPES, recipe_names
from ..utils.errors import suggestion
from .settings import RENAMED, PretrainSettings, RunSettings, SettingsError, check_names

Settings = TypeVar("Settings", bound=RunSettings)


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: `5e-5` is a number, `no` is text, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        if repeated := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(
                None, None, f"found {', '.join(map(str, sorted(repeated)))} twice", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 takes `no`, which is a value of save_strategy, for false; here only true and false are.
_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
# YAML 1.1 takes `5e-5` for text, as it has no decimal point.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def find_recipe(name_or_path: str | Path) -> Path:
    """
    Return a recipe's file.

    Raises:
        [`SettingsError`]: there is neither a file with this path nor a recipe with this name.
    """
    text = str(name_or_path)
    own = RECIPES / f"{text.removesuffix('.yaml')}.yaml"
    if Path(text).is_file():
        return Path(text)
    if own.parent == RECIPES and own.is_file():
        return own
    raise SettingsError(
        f"there is no recipe {text!r}{suggestion(text, recipe_names())} "
        f"(expected a file, or one of {', '.join(recipe_names())})"
    )


@overload
def read_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> PretrainSettings: ...


@overload
def read_recipe(
    name_or_path: str | Path, overrides: Sequence[str] = (), settings_class: type[Settings] = ...
) -> Settings: ...


def read_recipe(
    name_or_path: str | Path, overrides: Sequence[str] = (), settings_class: type[RunSettings] = PretrainSettings
) -> RunSettings:
    """
    Read the settings of a recipe.

    Args:
        name_or_path (`str` or `Path`): Such as `pretrain_base` or `my/recipe.yaml`.
        overrides (sequence of `str`): `key=value`, the value in YAML. `model.hidden_dropout=0.0` changes one key of a
            mapping; `model={}` replaces it.
        settings_class (type): [`PretrainSettings`] or [`FinetuneSettings`].

    Raises:
        [`SettingsError`]: no such recipe, no YAML, unknown keys (the message suggests a close one), impossible values.
    """
    path = find_recipe(name_or_path)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{path} must hold key: value lines, found {type(values).__name__}")
    check_names(values, settings_class, f"{path}: ")
    values = copy.deepcopy(values)
    for override in overrides:
        _override(values, override, settings_class)
    try:
        return settings_class(**values)
    except SettingsError as error:
        raise SettingsError(f"{path.name}{' as changed' if overrides else ''}: {error}") from None


def read_changes(changes: Sequence[str], settings_class: type[RunSettings]) -> dict[str, Any]:
    """Return the changes that `overrides` of [`read_recipe`] make, by name, without a recipe."""
    values: dict[str, Any] = {}
    for change in changes:
        _override(values, change, settings_class)
    return values


def _override(values: dict[str, Any], override: str, settings_class: type) -> None:
    key, sign, text = override.partition("=")
    key = key.strip()
    if not sign or not key:
        raise SettingsError(f"changes look like key=value, found: {override}")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise SettingsError(f"{key}: {text!r} is not YAML: {error}") from None
    first, *rest = key.split(".")
    known = {spec.name for spec in dataclasses.fields(settings_class)}
    is_ours = first in known and (first != "model" or ".".join(rest) in ECGFMConfig.__annotations__)
    if not is_ours and key not in RENAMED and (hint := in_our_words(key, text)):
        raise SettingsError(hint)
    check_names([first], settings_class)
    # The keys of mappings are checked where they are used.
    nested = [spec.name for spec in dataclasses.fields(settings_class) if "dict" in str(spec.type)]
    if rest and first not in nested:
        raise SettingsError(f"{key}: {first} is not a mapping (mappings: {', '.join(nested)})")
    target, name = values, first
    for part in rest:
        inner = target.get(name)
        target[name] = inner = dict(inner) if isinstance(inner, dict) else {}
        target, name = inner, part
    target[name] = value


__all__ = ["find_recipe", "read_changes", "read_recipe", "recipe_names"]
