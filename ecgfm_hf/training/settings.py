"""The settings of a pretraining run, and how settings are checked. Recipes are files of them."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..configuration_ecgfm import ECGFMConfig
from ..utils.errors import SettingsError, suggestion

CHOICES = {
    "architecture": ("base", "large"),
    "cmsc_positives": ("recording", "patient"),
    "optimizer": ("fairseq_adam", "adamw"),
    "schedule": ("fixed", "linear", "cosine"),
    "precision": ("float32", "bfloat16", "float16"),
    "device": ("auto", "cpu"),
}
# Sizes of the published pretraining: 64 pairs x 2 segments x 4 GPUs x 2 accumulation steps.
PUBLISHED_EFFECTIVE_BATCH = 1024


@dataclass
class PretrainSettings:
    """
    Everything that a pretraining run can be told. `recipes/*.yaml` explain each key; the defaults are the published
    ones (McKeen et al. 2024) as far as one process can have them.

    Raises:
        [`SettingsError`]: a value of another type, outside its range, or contradicting another one.
    """

    # Data
    data: str | list[str] | None = None
    output_dir: str | None = None
    train_split: str = "train"
    valid_split: str | None = "valid"
    feature_extractor: dict[str, Any] = field(default_factory=dict)
    augmentations: dict[str, Any] = field(default_factory=dict)
    num_workers: int = 0
    # Model and objective
    init_from: str | None = None
    architecture: str = "base"
    model: dict[str, Any] = field(default_factory=dict)
    cmsc_positives: str = "recording"
    cmsc_across_processes: bool = False
    gumbel_updates_before: int = 0
    # Batches and duration
    pairs: int = 64
    accumulation: int = 2
    epochs: int | None = 200
    max_updates: int | None = None
    # Optimiser
    optimizer: str = "fairseq_adam"
    learning_rate: float = 5e-5
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float = 0.0
    schedule: str = "fixed"
    warmup: float = 0
    final_learning_rate: float = 0.0
    # Where and how to compute
    seed: int = 1
    device: str = "auto"
    processes: int | None = None
    precision: str = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    deterministic: bool = False
    # What to keep and to tell
    save_every_updates: int = 0
    save_every_epochs: int = 1
    keep_last: int = 2
    validate_every_updates: int = 0
    validate_every_epochs: int = 1
    log_every_updates: int = 10
    trackers: list[str] = field(default_factory=list)
    project: str = "ecgfm-pretraining"
    collapse_below: float = 0.03
    resume: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        check_choices(self, CHOICES)
        least = {"pairs": 1, "accumulation": 1, "keep_last": 1, "log_every_updates": 1}
        least |= {"num_workers": 0, "gumbel_updates_before": 0, "seed": 0, "learning_rate": 0, "eps": 0, "clip_norm": 0}
        least |= {"weight_decay": 0, "warmup": 0, "final_learning_rate": 0, "collapse_below": 0, "save_every_epochs": 0}
        least |= {"save_every_updates": 0, "validate_every_updates": 0, "validate_every_epochs": 0}
        least |= {"epochs": 1, "max_updates": 1, "processes": 1}
        check_bounds(self, least)
        check_duration(self)
        check_model_fields(self.model)

    def to_dict(self) -> dict[str, Any]:
        """Names and values, as a recipe has them."""
        return dataclasses.asdict(self)


def effective_batch(settings: PretrainSettings, processes: int) -> int:
    """Segments an update, as the original counts them: pairs x 2 x processes x accumulation."""
    return settings.pairs * 2 * processes * settings.accumulation


def check_types(settings: Any) -> None:
    """Each field as its annotation says; whole numbers turn into floats where those are meant."""
    for spec in dataclasses.fields(settings):
        setattr(settings, spec.name, _typed(spec.name, getattr(settings, spec.name), spec.type))


def check_choices(settings: Any, choices: Mapping[str, Sequence[str]]) -> None:
    """[`SettingsError`] where a field is none of its choices; None passes."""
    for name, known in choices.items():
        if getattr(settings, name) not in (None, *known):
            raise SettingsError(f"{name} must be one of {', '.join(known)}, found: {getattr(settings, name)!r}")


def check_bounds(settings: Any, least: Mapping[str, float]) -> None:
    """[`SettingsError`] where a field is below its bound, infinite or NaN; None passes."""
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is not None and not bound <= value < math.inf:
            raise SettingsError(f"{name} must be at least {bound}, found: {value}")


def check_duration(settings: Any) -> None:
    """`betas`, `epochs`, `max_updates` and `warmup`, which every kind of training has."""
    if len(settings.betas) != 2 or not all(0 <= beta < 1 for beta in settings.betas):
        raise SettingsError(f"betas must be two numbers of at least 0 and below 1, found: {settings.betas}")
    if settings.epochs is None and settings.max_updates is None:
        raise SettingsError("epochs and max_updates are both null: one must say when to stop")
    if settings.warmup >= 1 and settings.warmup != int(settings.warmup):
        raise SettingsError(f"warmup must be a share below 1 or a whole number of updates, found: {settings.warmup}")


def check_model_fields(model: Mapping[str, Any]) -> None:
    """[`SettingsError`] where `model` names what is no field of [`ECGFMConfig`]."""
    known = {spec.name for spec in dataclasses.fields(ECGFMConfig) if spec.name in ECGFMConfig.__annotations__}
    for name in model:
        if name not in known:
            raise SettingsError(f"unknown setting model.{name}{suggestion(name, known)}")


def _typed(name: str, value: Any, kind: Any) -> Any:
    """`value`, as a float where a whole number stands for one."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    for each in kinds:
        origin = typing.get_origin(each) or each
        if each is types.NoneType and value is None:
            return None
        if origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if origin is list and isinstance(value, (list, tuple)):
            (inner,) = typing.get_args(each)
            return [_typed(f"{name}[{number}]", item, inner) for number, item in enumerate(value)]
        if origin in (int, bool, str, dict) and type(value) is origin:
            return dict(value) if origin is dict else value
    called = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}
    names = ("null" if k is types.NoneType else called.get(typing.get_origin(k) or k, "a list") for k in kinds)
    raise SettingsError(f"{name} must be {' or '.join(names)}, found: {value!r}")


__all__ = ["PretrainSettings", "SettingsError", "effective_batch"]
