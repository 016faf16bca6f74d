"""The settings of a fine-tuning run: names, types, defaults and checks. Recipes are files of them."""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from ..configuration_ecgfm import LABEL_AGGREGATIONS, LABEL_FIELDS, PROBLEM_TYPES
from .settings import SettingsError, check_bounds, check_choices, check_duration, check_model_fields, check_types

CHOICES = {
    "architecture": ("base", "large"),
    "problem_type": PROBLEM_TYPES,
    "source": ("mimic_iv_ecg", "physionet2021", "code_15", "table"),
    "untrainable_labels": ("error", "drop"),
    "optimizer": ("fairseq_adam", "adamw"),
    "schedule": ("fixed", "linear", "cosine"),
    "calibration": ("none", "platt", "temperature"),
    "precision": ("float32", "bfloat16", "float16"),
    "device": ("auto", "cpu"),
}
# Fields of `model` that other settings decide.
_DECIDED_ELSEWHERE = {
    "num_labels",
    "id2label",
    "label2id",
    "problem_type",
    "mask_time_prob",
    "pos_weight",
    *LABEL_FIELDS,
}
# The original's dropouts of fine-tuning, and its frozen convolutions.
FINETUNED_MODEL = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.1,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "feature_grad_multiplier": 0.0,
}


@dataclass
class FinetuneSettings:
    """
    Everything that a fine-tuning run can be told. `recipes/finetune_*.yaml` explain each key; where the original's
    fine-tuning has a value, it is the default.

    Raises:
        [`SettingsError`]: a value of another type, outside its range, or contradicting another one.
    """

    # Data
    data: str | None = None
    source: str | None = None
    prepare: dict[str, Any] = field(default_factory=dict)
    output_dir: str | None = None
    train_split: str = "train"
    valid_split: str | None = "valid"
    test_split: str | None = "test"
    feature_extractor: dict[str, Any] = field(default_factory=dict)
    augmentations: dict[str, Any] = field(default_factory=dict)
    num_workers: int = 0
    # Task
    problem_type: str = "multi_label_classification"
    labels: list[str] | None = None
    classes: list[str] | None = None
    targets: str | None = None
    untrainable_labels: str = "error"
    pos_weight: str | list[float] | None = "balanced"
    label_aggregation: dict[str, Any] = field(default_factory=dict)
    # Model
    init_from: str | None = None
    architecture: str = "base"
    model: dict[str, Any] = field(default_factory=lambda: dict(FINETUNED_MODEL))
    freeze_encoder: int | str = 0
    lora: dict[str, Any] = field(default_factory=dict)
    # Batches and duration
    batch_size: int = 64
    accumulation: int = 4
    epochs: int | None = 140
    max_updates: int | None = None
    early_stopping: int = 0
    # Optimiser
    optimizer: str = "fairseq_adam"
    learning_rate: float = 1e-6
    layer_decay: float = 1.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    schedule: str = "fixed"
    warmup: float = 0
    final_learning_rate: float = 0.0
    # After training
    thresholds: str = "youden"
    calibration: str = "platt"
    min_cases: int = 5
    # Where and how to compute
    seed: int = 1
    device: str = "auto"
    processes: int | None = None
    precision: str = "float32"
    gradient_checkpointing: bool = False
    # What to keep and to tell
    evaluate_every_updates: int = 0
    keep_last: int = 1
    log_every_updates: int = 10
    trackers: list[str] = field(default_factory=list)
    project: str = "ecgfm-finetuning"
    resume: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        check_choices(self, CHOICES)
        least = {"batch_size": 1, "accumulation": 1, "keep_last": 1, "log_every_updates": 1, "min_cases": 1}
        least |= {"num_workers": 0, "seed": 0, "learning_rate": 0, "eps": 0, "clip_norm": 0, "weight_decay": 0}
        least |= {"warmup": 0, "final_learning_rate": 0, "early_stopping": 0, "evaluate_every_updates": 0}
        least |= {"epochs": 1, "max_updates": 1, "processes": 1, "layer_decay": 0}
        check_bounds(self, least)
        check_duration(self)
        self._check_task()
        check_model_fields({k: v for k, v in self.model.items() if k not in _DECIDED_ELSEWHERE})
        if decided := sorted(_DECIDED_ELSEWHERE & self.model.keys()):
            raise SettingsError(f"model.{decided[0]} is decided by other settings, such as labels and pos_weight")
        if not 0 < self.layer_decay <= 1:
            raise SettingsError(f"layer_decay must be above 0 and at most 1, found: {self.layer_decay}")
        if isinstance(self.freeze_encoder, str) and self.freeze_encoder != "always":
            raise SettingsError(f"freeze_encoder must be a number of updates or always, found: {self.freeze_encoder!r}")
        if isinstance(self.freeze_encoder, int) and self.freeze_encoder < 0:
            raise SettingsError(f"freeze_encoder must be at least 0, found: {self.freeze_encoder}")
        if self.lora and self.freeze_encoder != 0:
            raise SettingsError(
                "lora and freeze_encoder do not go together: with lora the encoder's weights are frozen"
            )
        if self.early_stopping and self.valid_split is None:
            raise SettingsError(
                "early_stopping watches the validation split, but valid_split is null: set early_stopping=0"
            )
        splits = [split for split in (self.train_split, self.valid_split, self.test_split) if split is not None]
        if len(set(splits)) < len(splits):
            raise SettingsError(
                f"train_split, valid_split and test_split must differ, found: {', '.join(splits)}. What chooses "
                "updates, thresholds or calibration cannot test them"
            )
        threshold_rule(self.thresholds)

    def _check_task(self) -> None:
        if self.labels is not None and (not self.labels or len(set(self.labels)) < len(self.labels)):
            raise SettingsError(f"labels must be different names, at least one, found: {self.labels}")
        if self.classes is not None:
            if self.problem_type != "single_label_classification" or len(self.labels or ()) != 1:
                raise SettingsError(
                    "classes names those of one column: problem_type single_label_classification, labels: [it]"
                )
            if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
                raise SettingsError(f"classes must be different names, at least two, found: {self.classes}")
        for label, how in self.label_aggregation.items():
            if how not in LABEL_AGGREGATIONS:
                raise SettingsError(
                    f"label_aggregation of {label!r} must be one of {', '.join(LABEL_AGGREGATIONS)}, found: {how!r}"
                )
        if isinstance(self.pos_weight, str) and self.pos_weight != "balanced":
            raise SettingsError(f"pos_weight must be balanced, null or a list of numbers, found: {self.pos_weight!r}")
        if isinstance(self.pos_weight, list) and self.problem_type != "multi_label_classification":
            raise SettingsError(f"pos_weight is for multi-label classification, found problem_type {self.problem_type}")

    def to_dict(self) -> dict[str, Any]:
        """Names and values, as a recipe has them."""
        return dataclasses.asdict(self)


def threshold_rule(text: str) -> tuple[str, float | None] | None:
    """
    What `thresholds` asks for: `none` (None), `youden`, `f1`, or `sensitivity:0.9` as `("sensitivity", 0.9)`.

    Raises:
        [`SettingsError`]: anything else.
    """
    if text == "none":
        return None
    if text in ("youden", "f1"):
        return text, None
    found = re.fullmatch(r"sensitivity:(0?\.\d+|1(?:\.0+)?)", text)
    if found is None or float(found[1]) == 0:
        raise SettingsError(f"thresholds must be youden, f1, sensitivity:0.9 (for example) or none, found: {text!r}")
    return "sensitivity", float(found[1])


__all__ = ["FINETUNED_MODEL", "FinetuneSettings", "threshold_rule"]
