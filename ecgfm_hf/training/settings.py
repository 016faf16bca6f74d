"""
The settings of pretraining and fine-tuning runs, and how they are checked. Recipes are files of them.

What `transformers.TrainingArguments` has, too, has its name and its meaning here.
"""

import dataclasses
import hashlib
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..configuration_ecgfm import LABEL_AGGREGATIONS, LABEL_FIELDS, POOLINGS, PROBLEM_TYPES, ECGFMConfig
from ..fairseq.label_sets import LABEL_SETS
from ..utils.errors import SettingsError, suggestion
from ..utils.text import without_secrets

# The published pretraining: 64 pairs x 2 segments x 4 GPUs x 2 accumulation steps.
PUBLISHED_EFFECTIVE_BATCH = 1024
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
# Names of 0.1.0: the new one, and what else has changed. docs/migration.md has the same table.
RENAMED = {
    "epochs": ("num_train_epochs", ""),
    "max_updates": ("max_steps", "null is -1; where it is set, num_train_epochs is ignored"),
    "pairs": ("per_device_train_batch_size", "counts segments: twice the number of pairs"),
    "batch_size": ("per_device_train_batch_size", ""),
    "accumulation": ("gradient_accumulation_steps", ""),
    "early_stopping": ("early_stopping_patience", ""),
    "optimizer": ("optim", "adamw is adamw_torch_fused"),
    "betas": ("adam_beta1, adam_beta2", ""),
    "eps": ("adam_epsilon", ""),
    "clip_norm": ("max_grad_norm", ""),
    "schedule": ("lr_scheduler_type", "fixed is constant, with a warm-up constant_with_warmup"),
    "warmup": ("warmup_steps", ""),
    "num_workers": ("dataloader_num_workers", ""),
    "device": ("use_cpu", "device=cpu is use_cpu=true"),
    "precision": ("bf16, fp16", "bfloat16 is bf16=true, float16 is fp16=true, float32 is neither"),
    "compile": ("torch_compile", ""),
    "deterministic": ("full_determinism", ""),
    "evaluate_every_updates": ("eval_strategy, eval_steps", "eval_strategy=steps; save_strategy and save_steps alike"),
    "validate_every_updates": ("eval_strategy, eval_steps", "eval_strategy=steps"),
    "validate_every_epochs": (
        "eval_strategy",
        "epoch is every epoch; eval_steps may be a share of the run",
    ),
    "save_every_updates": ("save_strategy, save_steps", "save_strategy=steps"),
    "save_every_epochs": ("save_strategy", "epoch is every epoch; save_steps may be a share of the run"),
    "keep_last": ("save_total_limit", "counts the best checkpoint; null keeps all"),
    "log_every_updates": ("logging_steps", ""),
    "trackers": ("report_to", ""),
    "resume": ("resume_from_checkpoint", ""),
}
# Fields of TrainingArguments that fine-tuning does not pass on, with the reason.
_EVALUATION = "recordings are scored from the outputs of all their segments at once, as arrays"
_ORDER = "the order of segments depends only on seed and epoch, so that a run can be resumed exactly"
_OPTIMIZER = "optim has only fairseq_adam and adamw_torch_fused, which take no other arguments"
_HUB = "it would upload absolute paths and an unguarded folder; use `ecgfm push`"
_TRACKIO = "the Trainer's own reports, which contain paths, are off; report_to starts trackers"
_ENGINE = "fine-tuning was only tried with DistributedDataParallel"
_COMPILE = "torch_compile=true compiles the transformer encoder with torch's defaults"
_NO_EFFECT = "Finetuner decides what is run"
_FULL_EVAL = "it would round the trained weights before they are saved"
REFUSED_TRAINING_ARGS = {
    "lr_scheduler_kwargs": "final_learning_rate is the only argument of the schedules",
    **dict.fromkeys(("optim_args", "optim_target_modules"), _OPTIMIZER),
    "average_tokens_across_devices": "the loss is always the mean over the known targets of all processes",
    "label_smoothing_factor": "the model computes its own loss, which has no smoothing",
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), _FULL_EVAL),
    **dict.fromkeys(
        ("activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
        "gradient_checkpointing=true recomputes layers in the one way that works with frozen convolutions",
    ),
    **dict.fromkeys(("torch_compile_backend", "torch_compile_mode"), _COMPILE),
    "neftune_noise_alpha": "it is noise on token embeddings, which ECG-FM does not have",
    "auto_find_batch_size": "it would change the batch, and so the gradient, without a setting that records it",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    **dict.fromkeys(("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), _TRACKIO),
    **dict.fromkeys(
        ("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object", "batch_eval_metrics"), _EVALUATION
    ),
    "eval_on_start": "the best update is chosen among checkpoints, and there is none before the first update",
    "save_only_model": "a run could not be resumed without its optimiser",
    "enable_jit_checkpoint": "SIGTERM and Ctrl-C save a checkpoint already",
    **dict.fromkeys(
        (
            "push_to_hub",
            "hub_token",
            "hub_private_repo",
            "hub_model_id",
            "hub_strategy",
            "hub_always_push",
            "hub_revision",
        ),
        _HUB,
    ),
    "load_best_model_at_end": "valid_split decides: with one the best update is kept, without one the last",
    **dict.fromkeys(
        ("ignore_data_skip", "restore_callback_states_from_checkpoint"), "a resumed run would not equal the whole one"
    ),
    **dict.fromkeys(
        ("data_seed", "train_sampling_strategy", "length_column_name", "dataloader_in_order", "accelerator_config"),
        _ORDER,
    ),
    "dataloader_drop_last": "every segment counts once an epoch",
    **dict.fromkeys(("remove_unused_columns", "label_names"), "segments have no columns"),
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed", "parallelism_config"), _ENGINE),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), _NO_EFFECT),
    "local_rank": "the launcher sets it",
}

_CHOICES = {
    "architecture": ("base", "large"),
    "cmsc_positives": ("recording", "patient"),
    "problem_type": PROBLEM_TYPES,
    "pooling": POOLINGS,
    "source": ("mimic_iv_ecg", "physionet2021", "code_15", "table"),
    "untrainable_labels": ("error", "drop"),
    "optim": ("fairseq_adam", "adamw_torch_fused"),
    "lr_scheduler_type": ("constant", "constant_with_warmup", "linear", "cosine"),
    "calibration": ("none", "platt", "temperature"),
    "eval_strategy": ("no", "steps", "epoch"),
    "save_strategy": ("no", "steps", "epoch"),
}
_RENAMED_VALUES = {"fixed": "constant", "adamw": "adamw_torch_fused"}
# Least values; of those that may be None, None passes.
_LEAST = {
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps", "save_total_limit", "processes"), 1),
    **dict.fromkeys(("dataloader_num_workers", "seed", "learning_rate", "adam_epsilon", "max_grad_norm"), 0),
    **dict.fromkeys(("weight_decay", "warmup_steps", "final_learning_rate", "collapse_below"), 0),
    **dict.fromkeys(("gumbel_updates_before", "early_stopping_patience", "num_train_epochs"), 0),
    "min_cases": 1,
}
# Fields of `model` that other settings of fine-tuning decide.
_DECIDED_ELSEWHERE = {
    "num_labels",
    "id2label",
    "label2id",
    "problem_type",
    "mask_time_prob",
    "pooling",
    "pos_weight",
    *LABEL_FIELDS,
}


@dataclass(kw_only=True)
class RunSettings:
    """
    What pretraining and fine-tuning have in common. Recipes explain each key.

    Raises:
        [`SettingsError`]: an unknown name, a value of another type or outside its range, or one that contradicts
            another.
    """

    # Data
    root: str | None = None
    output_dir: str | None = None
    train_split: str = "train"
    valid_split: str | None = "valid"
    feature_extractor: dict[str, Any] = field(default_factory=dict)
    augmentations: dict[str, Any] = field(default_factory=dict)
    dataloader_num_workers: int = 0
    # Model
    init_from: str | None = None
    architecture: str = "base"
    model: dict[str, Any] = field(default_factory=dict)
    # Batches and duration
    per_device_train_batch_size: int = 64
    gradient_accumulation_steps: int = 1
    num_train_epochs: int | float = 1
    max_steps: int = -1
    # Optimiser
    optim: str = "fairseq_adam"
    learning_rate: float = 5e-5
    adam_beta1: float = 0.9
    adam_beta2: float = 0.98
    adam_epsilon: float = 1e-6
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0
    lr_scheduler_type: str = "constant"
    warmup_steps: int | float = 0
    final_learning_rate: float = 0.0
    # Computing
    seed: int = 1
    use_cpu: bool = False
    processes: int | None = None
    bf16: bool = False
    fp16: bool = False
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    full_determinism: bool = False
    # Validation, checkpoints and logs
    eval_strategy: str = "epoch"
    eval_steps: int | float = 500
    save_strategy: str = "epoch"
    save_steps: int | float = 500
    save_total_limit: int | None = 1
    logging_steps: int | float = 10
    report_to: str | list[str] = field(default_factory=list)
    project: str = "ecgfm"
    run_name: str | None = None
    resume_from_checkpoint: bool | str = True

    def __new__(cls, *args: Any, **values: Any) -> "RunSettings":
        """Refuse unknown names before the generated `__init__` does so without a suggestion."""
        check_names(values, cls)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            setattr(self, spec.name, _typed(spec.name, getattr(self, spec.name), spec.type))
        for name, choices in _CHOICES.items():
            value = getattr(self, name, None)
            if value is not None and value not in choices:
                renamed = f"; {value} is now {_RENAMED_VALUES[value]}" if value in _RENAMED_VALUES else ""
                raise SettingsError(f"{name} must be one of {', '.join(choices)}, found: {value!r}{renamed}")
        for name, bound in _LEAST.items():
            value = getattr(self, name, None)
            if value is not None and not bound <= value < math.inf:
                raise SettingsError(f"{name} must be at least {bound}, found: {value}")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 0 and below 1, found: {getattr(self, name)}")
        self._check_duration()
        if self.bf16 and self.fp16:
            raise SettingsError("bf16 and fp16 are both true: choose one of them")
        if self.resume_folder is not None and self.init_from is not None:
            raise SettingsError("init_from and resume_from_checkpoint=FOLDER are both set: choose one of them")
        if isinstance(self.report_to, str):
            self.report_to = [] if self.report_to == "none" else [self.report_to]

    def _check_duration(self) -> None:
        if self.max_steps < 1 and self.max_steps != -1:
            raise SettingsError(f"max_steps must be at least 1, or -1 for num_train_epochs, found: {self.max_steps}")
        if self.max_steps == -1 and self.num_train_epochs == 0:
            raise SettingsError("num_train_epochs is 0 and max_steps is -1: set one of them")
        for name in ("warmup_steps", "eval_steps", "save_steps", "logging_steps"):
            value = getattr(self, name)
            whole = value >= 1 and value == int(value)
            if not (whole or 0 < value < 1 or (name == "warmup_steps" and value == 0)):
                raise SettingsError(f"{name} must be a whole number of steps or a share below 1, found: {value}")
            if whole:
                setattr(self, name, int(value))
        if self.lr_scheduler_type == "constant" and self.warmup_steps:
            raise SettingsError(
                f"lr_scheduler_type=constant has no warm-up, found warmup_steps={self.warmup_steps}: set "
                "lr_scheduler_type=constant_with_warmup or warmup_steps=0"
            )

    @property
    def resume_folder(self) -> str | None:
        """The checkpoint that `resume_from_checkpoint` names; None where it is true or false."""
        return self.resume_from_checkpoint if isinstance(self.resume_from_checkpoint, str) else None

    @property
    def trackers(self) -> list[str]:
        """The names in `report_to`."""
        return list(self.report_to)

    @property
    def precision(self) -> str:
        """The number type of activations: `float32`, `bfloat16` or `float16`."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"

    def to_dict(self) -> dict[str, Any]:
        """Return names and values, as a recipe has them; addresses of data without passwords."""
        values = dataclasses.asdict(self)
        if isinstance(data := values.get("data"), str):
            values["data"] = without_secrets(data)
        elif data is not None:
            values["data"] = [without_secrets(str(one)) for one in data]
        return values

    def check_processes(self, found: int, script: str) -> None:
        """Raise [`SettingsError`] where there are not as many processes as `processes` or the launcher asks for."""
        expected = int(os.environ.get("WORLD_SIZE", "1")) if self.processes is None else self.processes
        if found != expected:
            # `accelerate launch --cpu --num_processes 2`, also with a configuration for MULTI_CPU, runs one process.
            raise SettingsError(
                f"expected {expected} processes, found {found}. `accelerate launch` runs one process on CPUs; for "
                f"several: torchrun --standalone --nproc_per_node N {script} ... use_cpu=true"
            )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the number of updates of the whole run."""
        return self.max_steps if self.max_steps > 0 else math.ceil(self.num_train_epochs * steps_per_epoch)

    def effective_batch(self, processes: int) -> int:
        """Return the number of segments in an update."""
        return self.per_device_train_batch_size * processes * self.gradient_accumulation_steps


@dataclass(kw_only=True)
class PretrainSettings(RunSettings):
    """
    Settings of a pretraining run. `recipes/pretrain_*.yaml` explain each key; defaults are the published ones (McKeen
    et al. 2024) as far as one process can have them.

    Raises:
        [`SettingsError`]: an unknown name, a value of another type or outside its range, or one that contradicts
            another.
    """

    data: str | list[str] | None = None
    cmsc_positives: str = "recording"
    cmsc_across_processes: bool = False
    gumbel_updates_before: int | None = None
    per_device_train_batch_size: int = 128
    gradient_accumulation_steps: int = 2
    num_train_epochs: int | float = 200
    weight_decay: float = 0.01
    save_total_limit: int | None = 3
    project: str = "ecgfm-pretraining"
    collapse_below: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_device_train_batch_size % 2:
            raise SettingsError(
                "per_device_train_batch_size must be even, as segments come in pairs, found: "
                f"{self.per_device_train_batch_size}"
            )
        check_model_fields(self.model)

    @property
    def pairs(self) -> int:
        """Pairs of adjacent segments in a micro-batch of one process."""
        return self.per_device_train_batch_size // 2


@dataclass(kw_only=True)
class FinetuneSettings(RunSettings):
    """
    Settings of a fine-tuning run. `recipes/finetune_*.yaml` explain each key; where fine-tuning in fairseq-signals has
    a value, it is the default.

    Raises:
        [`SettingsError`]: an unknown name, a value of another type or outside its range, or one that contradicts
            another.
    """

    # Data
    data: str | None = None
    source: str | None = None
    prepare: dict[str, Any] = field(default_factory=dict)
    test_split: str | None = "test"
    train_fraction: float = 1.0
    # Task
    problem_type: str = "multi_label_classification"
    labels: list[str] | None = None
    classes: list[str] | None = None
    targets: str | None = None
    untrainable_labels: str = "error"
    pos_weight: str | list[float] | None = "balanced"
    label_aggregation: dict[str, Any] = field(default_factory=dict)
    # Model
    model: dict[str, Any] = field(default_factory=lambda: dict(FINETUNED_MODEL))
    pooling: str | None = None
    freeze_encoder: int | str = 0
    lora: dict[str, Any] = field(default_factory=dict)
    # Batches, duration and optimiser
    gradient_accumulation_steps: int = 4
    num_train_epochs: int | float = 50
    early_stopping_patience: int = 0
    learning_rate: float = 1e-6
    layer_decay: float = 1.0
    adam_epsilon: float = 1e-8
    training_args: dict[str, Any] = field(default_factory=dict)
    # After training
    thresholds: str = "youden"
    calibration: str = "platt"
    min_cases: int = 5
    # Logs
    project: str = "ecgfm-finetuning"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume_folder is not None:
            raise SettingsError(
                "resume_from_checkpoint must be true or false in fine-tuning, which is resumed in its own output_dir"
            )
        if not 0 < self.train_fraction <= 1:
            raise SettingsError(f"train_fraction must be above 0 and at most 1, found: {self.train_fraction}")
        self._check_task()
        check_model_fields({k: v for k, v in self.model.items() if k not in _DECIDED_ELSEWHERE})
        if decided := sorted(_DECIDED_ELSEWHERE & self.model.keys()):
            raise SettingsError(f"model.{decided[0]} is decided by other settings, such as labels and pooling")
        self._check_trained_weights()
        self._check_validation()
        parse_threshold_rule(self.thresholds)
        if self.training_args:
            _check_training_args(self.training_args, type(self))

    def _check_task(self) -> None:
        if self.labels is not None and (not self.labels or len(set(self.labels)) < len(self.labels)):
            raise SettingsError(f"labels must be different names, at least one, found: {self.labels}")
        if self.classes is not None:
            if self.problem_type != "single_label_classification" or len(self.labels or ()) != 1:
                raise SettingsError(
                    "classes names the classes of one column: problem_type single_label_classification, labels: [it]"
                )
            if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
                raise SettingsError(f"classes must be different names, at least two, found: {self.classes}")
        for label, how in self.label_aggregation.items():
            if how not in LABEL_AGGREGATIONS:
                raise SettingsError(
                    f"label_aggregation of {label!r} must be one of {', '.join(LABEL_AGGREGATIONS)}, found: {how!r}"
                )
        if isinstance(self.pos_weight, str) and self.pos_weight not in ("balanced", *LABEL_SETS):
            raise SettingsError(
                f"pos_weight must be balanced, {', '.join(LABEL_SETS)}, null or a list of numbers, found: "
                f"{self.pos_weight!r}"
            )
        if self.pos_weight not in (None, "balanced") and self.problem_type != "multi_label_classification":
            raise SettingsError(f"pos_weight is for multi-label classification, found problem_type {self.problem_type}")

    def _check_trained_weights(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise SettingsError(f"layer_decay must be above 0 and at most 1, found: {self.layer_decay}")
        if isinstance(self.freeze_encoder, str) and self.freeze_encoder != "always":
            raise SettingsError(f"freeze_encoder must be a number of updates or always, found: {self.freeze_encoder!r}")
        if isinstance(self.freeze_encoder, int) and self.freeze_encoder < 0:
            raise SettingsError(f"freeze_encoder must be at least 0, found: {self.freeze_encoder}")
        if self.lora and self.freeze_encoder != 0:
            raise SettingsError(
                "lora and freeze_encoder exclude each other: lora freezes the encoder's own weights already"
            )

    def _check_validation(self) -> None:
        if self.early_stopping_patience and self.valid_split is None:
            raise SettingsError(
                "early_stopping_patience needs a validation split, but valid_split is null: set "
                "early_stopping_patience=0"
            )
        if self.valid_split is not None:
            if self.eval_strategy == "no":
                raise SettingsError("eval_strategy is no: to train without validation, set valid_split=null")
            differs = self.eval_strategy != self.save_strategy
            if differs or (self.eval_strategy == "steps" and self.eval_steps != self.save_steps):
                alike = f"save_strategy={self.eval_strategy}"
                alike += f" save_steps={self.eval_steps}" if self.eval_strategy == "steps" else ""
                raise SettingsError(
                    f"the best update is chosen among checkpoints, so they must come with each validation: set {alike}"
                )
        splits = [split for split in (self.train_split, self.valid_split, self.test_split) if split is not None]
        if len(set(splits)) < len(splits):
            raise SettingsError(
                f"train_split, valid_split and test_split must differ, found: {', '.join(splits)}. What chooses "
                "updates, thresholds or calibration cannot test them"
            )


def check_names(names: Iterable[Any], settings_class: type[RunSettings], where: str = "") -> None:
    """
    Check that all names are settings.

    Args:
        names (iterable)
        settings_class (type)
        where (`str`): What the message begins with, such as `"my.yaml: "`.

    Raises:
        [`SettingsError`]: lists names of 0.1.0 with the new ones, or suggests a name that is close.
    """
    known = [spec.name for spec in dataclasses.fields(settings_class)]
    unknown = [name for name in names if name not in known]
    old = [name for name in unknown if name in RENAMED and RENAMED[name][0].split(", ")[0] in known]
    if old:
        renamed = [(name, *RENAMED[name]) for name in old]
        now = "; ".join(f"{name} is now {new}{f' ({remark})' if remark else ''}" for name, new, remark in renamed)
        raise SettingsError(f"{where}settings of ecgfm-hf 0.1.0: {now}")
    if unknown:
        raise SettingsError(f"{where}unknown setting {unknown[0]}{suggestion(unknown[0], known)}")


def check_model_fields(model: Mapping[str, Any]) -> None:
    """Raise [`SettingsError`] where `model` names what is no field of [`ECGFMConfig`]."""
    known = {spec.name for spec in dataclasses.fields(ECGFMConfig) if spec.name in ECGFMConfig.__annotations__}
    for name in model:
        if name not in known:
            raise SettingsError(f"unknown setting model.{name}{suggestion(name, known)}")


def parse_threshold_rule(text: str) -> tuple[str, float | None] | None:
    """
    Parse `thresholds`: `none` (None), `youden`, `f1`, or `sensitivity:0.9` as `("sensitivity", 0.9)`.

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


def derived_seed(*parts: int | str) -> int:
    """
    Derive a seed of 63 bits from what names a draw, such as `(seed, "train", update, micro-batch)`.

    Every draw of a run has its own, so checkpoints hold no random state, and draws depend neither on the number of
    processes nor on where the run was interrupted.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def steps_of(steps: int | float, total_steps: int) -> int:
    """Return a number of steps: `steps`, or that share of the run if it is below 1, rounded up."""
    return math.ceil(steps * total_steps) if steps < 1 else int(steps)


def _check_training_args(values: Mapping[str, Any], settings_class: type[RunSettings]) -> None:
    # Slow to import, and only needed here.
    from transformers import TrainingArguments

    own = {spec.name for spec in dataclasses.fields(settings_class)}
    known = [spec.name for spec in dataclasses.fields(TrainingArguments) if spec.init]
    for name in values:
        if name in own:
            raise SettingsError(f"training_args.{name} is a setting of its own: set {name}")
        if name in REFUSED_TRAINING_ARGS:
            raise SettingsError(f"training_args.{name} cannot be set: {REFUSED_TRAINING_ARGS[name]}")
        if name not in known:
            raise SettingsError(f"unknown setting training_args.{name}{suggestion(name, known)}")


def _typed(name: str, value: Any, kind: Any) -> Any:
    """Return `value`, as a float where a whole number stands for one."""
    kinds: Sequence[Any] = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
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
    wanted = ["null" if k is types.NoneType else called.get(typing.get_origin(k) or k, "a list") for k in kinds]
    wanted = ["a number"] if wanted == ["a whole number", "a number"] else wanted
    bare = f": write {name}={value[0]}" if isinstance(value, list) and len(value) == 1 else ""
    raise SettingsError(f"{name} must be {' or '.join(wanted)}, found: {value!r}{bare}")


__all__ = [
    "FINETUNED_MODEL",
    "PUBLISHED_EFFECTIVE_BATCH",
    "REFUSED_TRAINING_ARGS",
    "RENAMED",
    "FinetuneSettings",
    "PretrainSettings",
    "RunSettings",
    "SettingsError",
    "check_names",
    "derived_seed",
    "parse_threshold_rule",
    "steps_of",
]
