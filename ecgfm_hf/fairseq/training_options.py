"""
Training options of fairseq-signals as settings of this package: one table, and the translation of a whole command.

An option is `group.key`, as in the YAML configurations of fairseq-signals and in the arguments of its commands. Its row
in [`OPTIONS`] has the settings that stand for it here, or the reason why there are none.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..utils.errors import SettingsError, suggestion
from .checkpoint import parse_conv_feature_layers
from .folder_reading import FairseqFolder, is_fairseq_folder
from .manifests import FairseqFolderError

# What a value becomes: settings by name.
Translate = Callable[[str, Any], dict[str, Any]]
_MISSING = "???"  # a value that a configuration leaves to the command line
_COMMANDS = {"ecg_pretraining": "pretrain", "ecg_classification": "finetune"}


class Option(NamedTuple):
    """
    A row of the table.

    Args:
        ours: The settings here, by name; none without a counterpart.
        translate: Makes settings of a value.
        reason: Without a counterpart: what this package does instead.
        accepted: Without a counterpart: the values with the same meaning as here; None for any.
    """

    ours: tuple[str, ...] = ()
    translate: Translate | None = None
    reason: str = ""
    accepted: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class TrainingCommand:
    """
    A command of this package that does what one of fairseq-signals does.

    Args:
        command: `pretrain` or `finetune`.
        recipe: The recipe that it starts from.
        settings: Changes to the recipe, by name.
        notes: Sentences on options without a counterpart.
        checkpoint: A `.pt` file of fairseq-signals to convert first, for `init_from`.
    """

    command: str
    recipe: str
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    checkpoint: Path | None = None

    @property
    def arguments(self) -> list[str]:
        """Return the command's arguments."""
        return [self.command, "--config", self.recipe, *(f"{k}={as_yaml(v)}" for k, v in self.settings.items())]


def _as(name: str) -> Option:
    return Option((name,), lambda key, value: {name: value})


def _number(name: str) -> Option:
    """A number, or a list of one number."""

    def translate(key: str, value: Any) -> dict[str, Any]:
        numbers = value if isinstance(value, list) else [value]
        if len(numbers) != 1 or isinstance(numbers[0], bool) or not isinstance(numbers[0], (int, float)):
            raise SettingsError(f"{key}={as_yaml(value)}: {name} takes one number")
        return {name: numbers[0]}

    return Option((name,), translate)


def _choice(name: str, values: Mapping[Any, Any]) -> Option:
    def translate(key: str, value: Any) -> dict[str, Any]:
        if value not in values:
            known = ", ".join(map(str, values))
            raise SettingsError(f"{key}={as_yaml(value)} has no counterpart here, only {known}")
        return {name: values[value]}

    return Option((name,), translate)


def _none(reason: str, *accepted: Any) -> Option:
    return Option(reason=reason, accepted=accepted or None)


def _numbers(*names: str) -> Option:
    """A list of numbers, also as text such as `(0.9, 0.98)`, of which each is a setting."""

    def translate(key: str, value: Any) -> dict[str, Any]:
        if isinstance(value, str):
            value = yaml.safe_load(f"[{value.strip().strip('()[]')}]")
        if not isinstance(value, list) or len(value) != len(names):
            raise SettingsError(f"{key}={as_yaml(value)}: expected {len(names)} numbers")
        return {name: float(number) for name, number in zip(names, value, strict=True)}

    return Option(names, translate)


def _layers(key: str, value: Any) -> dict[str, Any]:
    dims, kernels, strides = (list(part) for part in zip(*parse_conv_feature_layers(value), strict=True))
    return {"model.conv_dim": dims, "model.conv_kernel": kernels, "model.conv_stride": strides}


def _optional(name: str) -> Option:
    """A number of which 0 and -1 mean none."""
    return Option((name,), lambda key, value: {name: value if value > 0 else None})


_LATER = Option(("save_strategy", "save_steps"), lambda key, value: {})  # together with others: see _schedule
_SPLIT = Option(("valid_split",), lambda key, value: {})  # see _validation
_AUGMENTATIONS = Option(("augmentations",), lambda key, value: {})  # see _augmentations
_ALWAYS = "as published"

OPTIONS: dict[str, Option] = {
    "task.data": _as("data"),
    "task.label_file": _as("targets"),
    "task.perturbation_mode": _AUGMENTATIONS,
    "task.p": _AUGMENTATIONS,
    "task.mask_leads_prob": _AUGMENTATIONS,
    "task.mask_leads_selection": _none("leads are masked at random", "random"),
    "task.normalize": _none("segments are standardised already", False),
    "task.filter": _none("nothing is filtered", False),
    "task.enable_padding": _none("segments are equally long, so nothing is padded"),
    "task.enable_padding_leads": _none("the model gets all of its leads", False),
    "task.leads_to_load": _none("the model gets all of its leads", None),
    "dataset.batch_size": _number("per_device_train_batch_size"),
    "dataset.num_workers": _number("dataloader_num_workers"),
    "dataset.max_tokens": _none("batches are counted in segments", None),
    "dataset.train_subset": _as("train_split"),
    "dataset.valid_subset": _SPLIT,
    "dataset.disable_validation": _SPLIT,
    "dataset.validate_interval": _none("validation is after every epoch", 1),
    "distributed_training.distributed_world_size": _number("processes"),
    "distributed_training.find_unused_parameters": _none("set by itself where a run needs it"),
    "criterion.infonce": _none(_ALWAYS, True),
    "criterion.log_keys": _none("metrics.jsonl has all parts of the loss"),
    "criterion.loss_weights": _numbers("model.diversity_loss_weight", "model.feature_penalty_weight"),
    "criterion.cmsc_weights": _number("model.cmsc_loss_weight"),
    "criterion.temp": _number("model.cmsc_temperature"),
    "criterion.pos_weight": _as("pos_weight"),
    "criterion.report_auc": _none("AUROC is always reported"),
    "criterion.report_cinc_score": _none("ecgfm_hf.evaluation.challenge_score computes it", False),
    "criterion.weights_file": _none("ecgfm_hf has the challenge's weights"),
    "optimization.max_epoch": _number("num_train_epochs"),
    "optimization.max_update": Option(("max_steps",), lambda key, value: {}),  # see _duration
    "optimization.lr": _number("learning_rate"),
    "optimization.update_freq": _number("gradient_accumulation_steps"),
    "optimization.clip_norm": _number("max_grad_norm"),
    "optimizer.adam_betas": _numbers("adam_beta1", "adam_beta2"),
    "optimizer.adam_eps": _number("adam_epsilon"),
    "optimizer.weight_decay": _number("weight_decay"),
    "optimizer.lr": _number("learning_rate"),
    "lr_scheduler.warmup_updates": _number("warmup_steps"),
    "lr_scheduler.lr": _number("learning_rate"),
    "checkpoint.save_dir": _as("output_dir"),
    "checkpoint.save_interval": _LATER,
    "checkpoint.save_interval_updates": _LATER,
    "checkpoint.no_epoch_checkpoints": _LATER,
    "checkpoint.keep_last_epochs": _optional("save_total_limit"),
    "checkpoint.patience": Option(("early_stopping_patience",), lambda key, v: {"early_stopping_patience": max(v, 0)}),
    "checkpoint.finetune_from_model": _as("init_from"),
    "common.seed": _number("seed"),
    "common.fp16": _as("fp16"),
    "common.log_format": _none("progress is text and metrics.jsonl, always"),
    "common.log_interval": _number("logging_steps"),
    "common.all_gather_list_size": _none("buffers have no fixed size"),
    "common.wandb_project": Option(
        ("project", "report_to"), lambda key, value: {"project": value, "report_to": ["wandb"]} if value else {}
    ),
    "common.wandb_entity": _none("wandb reads WANDB_ENTITY"),
    "model.model_path": _as("init_from"),
    "model.no_pretrained_weights": _none("without a model_path, weights are random", False),
    "model.num_labels": Option(("labels",), lambda key, value: {}),  # checked with the data
    "model.freeze_finetune_updates": _number("freeze_encoder"),
    "model.encoder_layers": _number("model.num_hidden_layers"),
    "model.encoder_embed_dim": _number("model.hidden_size"),
    "model.encoder_ffn_embed_dim": _number("model.intermediate_size"),
    "model.encoder_attention_heads": _number("model.num_attention_heads"),
    "model.layer_norm_first": _as("model.do_stable_layer_norm"),
    "model.dropout": _number("model.hidden_dropout"),
    "model.attention_dropout": _number("model.attention_dropout"),
    "model.activation_dropout": _number("model.activation_dropout"),
    "model.encoder_layerdrop": _number("model.layerdrop"),
    "model.dropout_input": _number("model.feat_proj_dropout"),
    "model.dropout_features": _number("model.feat_quantizer_dropout"),
    "model.final_dropout": _number("model.final_dropout"),
    "model.feature_grad_mult": Option(
        ("model.feature_grad_multiplier",), lambda key, value: {"model.feature_grad_multiplier": max(float(value), 0.0)}
    ),
    "model.apply_mask": _none("pretraining masks, fine-tuning does not"),
    "model.mask_prob": _number("model.mask_time_prob"),
    "model.mask_length": _number("model.mask_time_length"),
    "model.extractor_mode": _choice("model.feat_extract_norm", {"default": "group", "layer_norm": "layer"}),
    "model.conv_feature_layers": Option(("model.conv_dim", "model.conv_kernel", "model.conv_stride"), _layers),
    "model.conv_bias": _as("model.conv_bias"),
    "model.conv_pos": _number("model.num_conv_pos_embeddings"),
    "model.conv_pos_groups": _number("model.num_conv_pos_embedding_groups"),
    "model.in_d": _number("model.num_leads"),
    "model.logit_temp": _number("model.contrastive_logits_temperature"),
    "model.quantize_targets": _none(_ALWAYS, True),
    "model.latent_vars": _number("model.num_codevectors_per_group"),
    "model.latent_groups": _number("model.num_codevector_groups"),
    "model.latent_dim": _number("model.codevector_dim"),
    "model.final_dim": _number("model.proj_codevector_dim"),
    "model.num_negatives": _number("model.num_negatives"),
    "model.latent_temp": _numbers(
        "model.max_gumbel_temperature", "model.min_gumbel_temperature", "model.gumbel_temperature_decay"
    ),
    "model.saliency": _none("`ecgfm predict --plot-saliency attention`", False),
}
# What decides which command it is, by the names that are known here.
_NAMES = {
    "task._name": tuple(_COMMANDS),
    "model._name": ("wav2vec2_cmsc", "ecg_transformer_classifier"),
    "criterion._name": ("wav2vec2_with_cmsc", "binary_cross_entropy_with_logits"),
    "optimizer._name": ("adam",),
    "lr_scheduler._name": ("fixed",),
}
# The defaults of fairseq-signals where a recipe here has another value.
_DEFAULTS = {
    "pretrain": {
        "optimization.update_freq": [1],
        "optimizer.weight_decay": 0.0,
        "criterion.loss_weights": [0.1, 10],
        "checkpoint.save_interval": 1,
    },
    "finetune": {
        "optimization.update_freq": [1],
        "optimizer.weight_decay": 0.0,
        "criterion.pos_weight": None,
        "checkpoint.save_interval": 1,
    },
}


def in_our_words(key: str, text: str) -> str | None:
    """
    Return what an option of fairseq-signals is here, for an error; None for another key.

    Args:
        key: Such as `optimization.update_freq` or `+task.label_file`, or without its group.
        text: Its value as typed.
    """
    name = key.lstrip("+~")
    if "." not in name:
        found = [option for option in OPTIONS if option.partition(".")[2] == name]
        if len(found) != 1:
            return None
        name = found[0]
    option = OPTIONS.get(name)
    if option is None:
        return None
    if not option.ours:
        return f"{key} is an option of fairseq-signals without a counterpart here: {option.reason}"
    try:
        value = yaml.safe_load(text)
        settings = option.translate(name, _scalar(value)) if option.translate else {}
    except (yaml.YAMLError, ValueError, TypeError):
        settings = {}
    if name == "dataset.batch_size":
        settings = {}  # pretraining counts pairs there
    written = " ".join(f"{ours}={as_yaml(value)}" for ours, value in settings.items())
    return f"{key} is an option of fairseq-signals: here {written or ', '.join(option.ours)}"


def read_configuration(folder: Path, name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """
    Read a YAML configuration of fairseq-signals with changes from the command line, as `group.key` by value.

    Raises:
        `SettingsError`: no such file, no YAML, an argument of another form.
    """
    path = folder / f"{name.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        raise SettingsError(f"{path}: no such configuration (--config-dir, --config-name)")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold groups of keys, found {type(content).__name__}")
    found: dict[str, Any] = {}
    for group, keys in content.items():
        if not isinstance(keys, dict):
            raise SettingsError(f"{path}: {group} must be a group of keys, found {as_yaml(keys)}")
        found |= {f"{group}.{key}": _scalar(value) for key, value in keys.items() if value != _MISSING}
    for argument in overrides:
        key, sign, text = argument.partition("=")
        key = key.lstrip("+")
        if not sign or not key or key.startswith("-"):
            raise SettingsError(f"changes look like group.key=value, found: {argument}")
        try:
            found[key] = _scalar(yaml.safe_load(text))
        except yaml.YAMLError:
            found[key] = text  # Python source, such as the layers of the convolutions
    return found


def translate(options: Mapping[str, Any]) -> TrainingCommand:
    """
    Return the command of this package for a configuration of fairseq-signals.

    Args:
        options: `group.key` by value, from [`read_configuration`].

    Raises:
        `SettingsError`: an option that is unknown, or has a value without a counterpart; the message names it.
    """
    kind = options.get("task._name")
    if kind not in _COMMANDS:
        raise SettingsError(f"task._name={kind} has no counterpart here, only {', '.join(_COMMANDS)}")
    command = _COMMANDS[kind]
    for key in ("task.data", "checkpoint.save_dir"):
        if not options.get(key):
            raise SettingsError(f"{key} is required")
    options = _DEFAULTS[command] | dict(options)
    settings: dict[str, Any] = {}
    notes: list[str] = []
    for key, value in options.items():
        if key in _NAMES:
            if value not in _NAMES[key]:
                raise SettingsError(f"{key}={value} has no counterpart here, only {', '.join(_NAMES[key])}")
            continue
        option = OPTIONS.get(key)
        if option is None:
            raise SettingsError(
                f"{key}={as_yaml(value)} has no counterpart here{suggestion(key, OPTIONS)}: remove it, or see "
                "docs/migration.md"
            )
        if option.translate is not None:
            settings |= option.translate(key, value)
        elif option.accepted is None:
            notes.append(f"{key}={as_yaml(value)} has no counterpart: {option.reason}")
        elif value not in option.accepted:
            raise SettingsError(f"{key}={as_yaml(value)} has no counterpart: {option.reason}")
    folder = _folder(options)
    _validation(options, settings, notes)
    _schedule(options, settings, command)
    if settings.get("warmup_steps"):
        settings["lr_scheduler_type"] = "constant_with_warmup"
    checkpoint = None
    if command == "pretrain":
        settings["augmentations"] = _augmentations(options)
        _fit_pairs(options, settings, notes, folder)
    else:
        settings.pop("model.num_leads", None)  # the pretrained model has it
        settings["label_aggregation"] = {}  # the recipe's are those of its own labels
        _check_labels(options, folder)
        _duration(options, settings, notes, folder)
        path = Path(str(settings.get("init_from") or ""))
        if path.is_file():
            checkpoint = path
    recipe = "pretrain_base" if command == "pretrain" else "finetune_mimic_iv_ecg"
    first = ("data", "output_dir", "init_from")
    ordered = {name: settings[name] for name in (*first, *sorted(settings.keys() - set(first))) if name in settings}
    return TrainingCommand(command, recipe, ordered, notes, checkpoint)


def _validation(options: Mapping[str, Any], settings: dict[str, Any], notes: list[str]) -> None:
    subsets = [name.strip() for name in str(options.get("dataset.valid_subset") or "").split(",") if name.strip()]
    if options.get("dataset.disable_validation") or not subsets:
        settings["valid_split"] = None
        return
    settings["valid_split"] = subsets[0]
    if subsets[1:]:
        notes.append(f"dataset.valid_subset: only {subsets[0]} is validated on, which chooses the best checkpoint")


def _schedule(options: Mapping[str, Any], settings: dict[str, Any], command: str) -> None:
    """Translate when checkpoints are saved; fine-tuning validates then, too."""
    every, epochs = options["checkpoint.save_interval"], settings.get("num_train_epochs", 0)
    if options.get("checkpoint.save_interval_updates"):
        chosen = {"strategy": "steps", "steps": options["checkpoint.save_interval_updates"]}
    elif options.get("checkpoint.no_epoch_checkpoints") or (every > 1 and every >= epochs > 0):
        chosen = {"strategy": "no"}
    elif every > 1 and epochs > 0:
        chosen = {"strategy": "steps", "steps": every / epochs}
    else:
        chosen = {"strategy": "epoch"}
    if command == "finetune" and settings["valid_split"] is not None:
        if chosen["strategy"] == "no":
            chosen = {"strategy": "epoch"}
        settings |= {f"eval_{name}": value for name, value in chosen.items()}
    settings |= {f"save_{name}": value for name, value in chosen.items()}


def _augmentations(options: Mapping[str, Any]) -> dict[str, Any]:
    modes = options.get("task.perturbation_mode") or []
    shares = options.get("task.p") or [1.0]
    shares = shares if isinstance(shares, list) else [shares]
    shares = shares * len(modes) if len(shares) == 1 else shares
    found = {}
    for mode, share in zip(modes, shares, strict=True):
        if mode != "random_leads_masking":
            raise SettingsError(
                f"task.perturbation_mode: {mode} acts on standardised segments in fairseq-signals; here noise is added "
                "in mV, which needs a store (`ecgfm prepare`) and the setting augmentations"
            )
        masking = {"p": options.get("task.mask_leads_prob", 0.5)}
        found["random_lead_masking"] = masking | ({} if share == 1 else {"apply_probability": share})
    return found


def _fit_pairs(
    options: Mapping[str, Any], settings: dict[str, Any], notes: list[str], folder: FairseqFolder | None
) -> None:
    """Count pairs in segments; fairseq-signals makes an update of fewer pairs than a batch, this package does not."""
    settings["per_device_train_batch_size"] = 2 * settings.get("per_device_train_batch_size", 64)
    if folder is None:
        return
    others = settings.get("gradient_accumulation_steps", 1) * settings.get("processes", 1)
    pairs = sum(len(numbers) // 2 for numbers in _segments(folder, settings, pairs=True))
    if pairs * 2 < settings["per_device_train_batch_size"] * others:
        settings["per_device_train_batch_size"] = max(2 * (pairs // others), 2)
        notes.append(
            f"{folder.path} has {pairs} pairs, fewer than an update takes as typed: per_device_train_batch_size is "
            f"{settings['per_device_train_batch_size']}"
        )


def _duration(
    options: Mapping[str, Any], settings: dict[str, Any], notes: list[str], folder: FairseqFolder | None
) -> None:
    """Translate max_update, which ends a run earlier than max_epoch or not, by the number of segments."""
    most = options.get("optimization.max_update") or 0
    if not most or not settings.get("num_train_epochs"):
        settings |= {"max_steps": most} if most else {}
        return
    if folder is None:
        notes.append(f"optimization.max_update={most} is not checked: max_epoch decides, as the data is no folder")
        return
    segments = sum(map(len, _segments(folder, settings, pairs=False)))
    batch = settings.get("per_device_train_batch_size", 1) * settings.get("processes", 1)
    updates = math.ceil(segments / (batch * settings["gradient_accumulation_steps"]))
    if updates * settings["num_train_epochs"] > most:
        settings["max_steps"] = most


def _folder(options: Mapping[str, Any]) -> FairseqFolder | None:
    data = str(options["task.data"])
    if not is_fairseq_folder(data):
        return None
    try:
        return FairseqFolder(data, labels=options.get("task.label_file"))
    except FairseqFolderError as error:
        raise SettingsError(f"task.data: {error}") from error


def _segments(folder: FairseqFolder, settings: Mapping[str, Any], pairs: bool) -> list[list[int]]:
    manifest = folder.manifest(settings.get("train_split", "train"), pairs)
    return [numbers for batch in manifest.batches() for numbers in batch["segments"].to_pylist()]


def _check_labels(options: Mapping[str, Any], folder: FairseqFolder | None) -> None:
    count = options.get("model.num_labels")
    if folder is not None and count is not None and folder.label_names and count != len(folder.label_names):
        raise SettingsError(f"model.num_labels={count}, but y.npy has {len(folder.label_names)} labels")


def _scalar(value: Any) -> Any:
    """Return a value with numbers that YAML 1.1 takes for text (`5e-5`, `1e-06`) as numbers."""
    if isinstance(value, list):
        return [_scalar(item) for item in value]
    if isinstance(value, str) and value[:1] in "+-.0123456789" and value[:1]:
        try:
            return float(value)
        except ValueError:
            return value
    return value


def as_yaml(value: Any) -> str:
    """Return a value as it is typed behind `key=`."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**9).strip()
    return text.removesuffix("...").strip()


__all__ = ["OPTIONS", "Option", "TrainingCommand", "as_yaml", "in_our_words", "read_configuration", "translate"]
