"""
Settings of a fairseq-signals checkpoint as an [`ECGFMConfig`].

Sizes are read off the tensors, and the file's settings are checked against them: a fine-tuned file repeats the
architecture only if its user typed it again, and otherwise holds fairseq-signals' defaults. Three things leave no trace
in any tensor: the number of attention heads, pre-norm or post-norm layers, and the strides of the convolutions.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from ..configuration_ecgfm import ECGFMConfig
from ..feature_extraction_ecgfm import STANDARD_LEADS
from ..utils.errors import SettingsError
from .checkpoint import CheckpointError, FairseqCheckpoint, load_fairseq_checkpoint, parse_conv_feature_layers
from .label_sets import LabelSet, resolve_labels
from .state_dict import FAIRSEQ_PREFIX, ModelKind, model_kind, read_architecture

# fairseq-signals' defaults. If the settings contradict the tensors with exactly these values, its user left them
# untouched, and other settings that equal their defaults mean nothing either.
_PUBLISHED_CONVOLUTIONS = [(256, 2, 2)] * 4
_DEFAULT_ARCHITECTURE = {
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "in_d": 12,
    "conv_feature_layers": _PUBLISHED_CONVOLUTIONS,
    "conv_bias": False,
    "extractor_mode": "default",
    "conv_pos": 128,
    "conv_pos_groups": 16,
}
_DEFAULT_HEADS = 12

_MODEL_TYPES: dict[str, ModelKind] = {
    "wav2vec2": "pretraining",
    "wav2vec2_cmsc": "pretraining",
    "ecg_transformer_classifier": "classification",
}
_EXTRACTOR_MODES = {"default": "group", "layer_norm": "layer"}
_PROBLEM_TYPES = {
    "binary_cross_entropy_with_logits": "multi_label_classification",
    "cross_entropy": "single_label_classification",
    "mse": "regression",
}
# Pretraining settings that this package does not implement. In a fine-tuned file they have no effect any more.
_NOT_IMPLEMENTED = (
    "target_glu",
    "quantize_input",
    "same_quantizer",
    "negatives_from_everywhere",
    "no_mask_overlap",
    "codebook_negatives",
    "cross_sample_negatives",
    "mask_channel_prob",
)
# fairseq-signals' name, ours, the published pretraining run's value (fine-tuning: 0).
_REGULARISATION = (
    ("dropout", "hidden_dropout", 0.1),
    ("attention_dropout", "attention_dropout", 0.1),
    ("activation_dropout", "activation_dropout", 0.0),
    ("dropout_input", "feat_proj_dropout", 0.1),
    ("dropout_features", "feat_quantizer_dropout", 0.1),
    ("final_dropout", "final_dropout", 0.0),
    ("encoder_layerdrop", "layerdrop", 0.0),
    ("feature_grad_mult", "feature_grad_multiplier", 0.1),
)


@dataclass(frozen=True)
class ConvertedSettings:
    """
    The settings of a checkpoint in this package's terms.

    Args:
        config: Complete, labels included.
        kind: `"pretraining"` or `"classification"`.
        lead_names: Leads of the input, in order.
        warnings: Each setting that was replaced, assumed or not carried over.
    """

    config: ECGFMConfig
    kind: ModelKind
    lead_names: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def config_from_checkpoint(
    checkpoint: FairseqCheckpoint | str | Path,
    *,
    labels: str | Path | Sequence[str] | LabelSet | None = None,
    heads: int | None = None,
    like: FairseqCheckpoint | str | Path | None = None,
    lead_names: Sequence[str] | None = None,
) -> ConvertedSettings:
    """
    Return the configuration of the model in a fairseq-signals checkpoint.

    Args:
        checkpoint: The checkpoint or its path.
        labels: A classifier's labels, as in [`resolve_labels`]. The labels are `LABEL_0`, `LABEL_1`, ... by default.
        heads: Attention heads, for files whose settings do not describe their weights.
        like: The pretrained checkpoint that a fine-tuned one started from. It supplies what tensors do not show.
        lead_names: Leads of the input in order. Defaults to the file's `leads_to_load`, or to the standard twelve.

    Raises:
        `CheckpointError`: settings that this package does not implement (all are named), that contradict the tensors,
            or that leave the attention heads, strides or leads open.
        `SettingsError`: `labels`, `heads` or `lead_names` do not fit the tensors.
    """
    if not isinstance(checkpoint, FairseqCheckpoint):
        checkpoint = load_fairseq_checkpoint(checkpoint)
    if like is not None and not isinstance(like, FairseqCheckpoint):
        like = load_fairseq_checkpoint(like)
    try:
        return _SettingsReader(checkpoint, heads, like).read(labels, lead_names)
    except CheckpointError as error:
        if str(checkpoint.path) in str(error):
            raise
        raise CheckpointError(f"{checkpoint.path}: {error}") from error


class _SettingsReader:
    """Combines one checkpoint's tensors, its settings and the caller's arguments; collects warnings."""

    def __init__(self, checkpoint: FairseqCheckpoint, heads: int | None, like: FairseqCheckpoint | None):
        self.model_cfg = checkpoint.model_cfg
        self.criterion_cfg = checkpoint.criterion_cfg
        self.task_cfg = checkpoint.task_cfg
        self.section = checkpoint.settings_name
        name = self.model_cfg.get("_name")
        # Checked before the tensors: the tensors of another model would only be called unknown.
        if name is not None and (not isinstance(name, str) or name not in _MODEL_TYPES):
            raise CheckpointError(
                f"model type {name!r} is not implemented here; implemented are: {', '.join(_MODEL_TYPES)}"
            )
        self.architecture = read_architecture(checkpoint.tensors)
        self.pretraining = self.architecture.kind == "pretraining"
        self.warnings: list[str] = []
        if not self.section and like is None and heads is None:
            raise CheckpointError(
                "the file holds no settings (neither 'cfg' with 'model' nor 'args'); pass the pretrained checkpoint "
                "that it started from (like='PRETRAINED.pt'), or the number of attention heads (heads=N)"
            )
        self.section = self.section or "cfg.model"
        self.heads = heads
        self.like: dict[str, Any] | None = None if like is None else self._settings_of_like(checkpoint, like)

    def read(
        self, labels: str | Path | Sequence[str] | LabelSet | None, lead_names: Sequence[str] | None
    ) -> ConvertedSettings:
        self._refuse_what_is_not_implemented()
        architecture = self.architecture
        fields: dict[str, Any] = {
            "num_leads": architecture.num_leads,
            "conv_dim": architecture.conv_dim,
            "conv_kernel": architecture.conv_kernel,
            "conv_bias": architecture.conv_bias,
            "feat_extract_norm": architecture.feat_extract_norm,
            "hidden_size": architecture.hidden_size,
            "num_hidden_layers": architecture.num_hidden_layers,
            "intermediate_size": architecture.intermediate_size,
            "num_conv_pos_embeddings": architecture.num_conv_pos_embeddings,
            "num_conv_pos_embedding_groups": architecture.num_conv_pos_embedding_groups,
            **self.settings_without_tensors(),
            **architecture.quantizer,
            **self._regularisation(),
            **self._masking(),
        }
        if not self.pretraining:
            fields |= self._classifier_loss() | self._labels(labels)
        elif labels is not None:
            raise SettingsError("labels were given, but the checkpoint is a pretrained encoder without a classifier")
        else:
            fields |= self._pretraining_objective()
        leads = self._lead_names(lead_names)
        self._warn_of_preprocessing()
        try:
            config = ECGFMConfig(**fields)
        except (StrictDataclassError, ValueError, TypeError) as error:
            raise CheckpointError(f"its settings make no valid configuration: {error}") from error
        return ConvertedSettings(config, architecture.kind, leads, tuple(self.warnings))

    def settings_without_tensors(self) -> dict[str, Any]:
        """Return attention heads, pre-norm and strides, as fields of the configuration."""
        # Whether the settings describe these tensors shows in the settings that tensors do show.
        contradiction = self._compare_with_tensors()
        return {
            "conv_stride": self._strides(),
            "num_attention_heads": self._attention_heads(contradiction),
            "do_stable_layer_norm": self._pre_norm(contradiction),
        }

    def _refuse_what_is_not_implemented(self) -> None:
        cfg, refused = self.model_cfg, []
        name, kind = cfg.get("_name"), self.architecture.kind
        if name is not None and _MODEL_TYPES[name] != kind:
            self.warnings.append(f"{self.section}._name is {name!r}, but the tensors are those of a {kind} model")
        if cfg.get("activation_fn", "gelu") not in (None, "gelu"):
            refused.append(f"activation_fn={cfg['activation_fn']!r}")
        if cfg.get("extractor_mode", "default") not in (None, *_EXTRACTOR_MODES):
            refused.append(f"extractor_mode={cfg['extractor_mode']!r}")
        if self.pretraining:
            refused += [f"{setting}={cfg[setting]!r}" for setting in _NOT_IMPLEMENTED if cfg.get(setting)]
            if not self.architecture.quantizer or cfg.get("quantize_targets") is False:
                refused.append("quantize_targets=False")
            if cfg.get("mask_selection", "static") not in (None, "static"):
                refused.append(f"mask_selection={cfg['mask_selection']!r}")
            if self.criterion_cfg.get("infonce") is False:
                refused.append("criterion.infonce=False")
            if cfg.get("num_negatives", 100) == 0:
                refused.append("num_negatives=0")
        if refused:
            raise CheckpointError(f"it was made with settings that are not implemented here: {', '.join(refused)}")

    # Settings that the tensors show

    def _compare_with_tensors(self) -> str | None:
        """Warn of every contradiction; return one that shows that defaults were never replaced, if there is one."""
        cfg, architecture = self.model_cfg, self.architecture
        visible = {
            "encoder_layers": architecture.num_hidden_layers,
            "encoder_embed_dim": architecture.hidden_size,
            "encoder_ffn_embed_dim": architecture.intermediate_size,
            "in_d": architecture.num_leads,
            "conv_bias": architecture.conv_bias,
            "extractor_mode": {norm: mode for mode, norm in _EXTRACTOR_MODES.items()}[architecture.feat_extract_norm],
            "conv_pos": architecture.num_conv_pos_embeddings,
            "conv_pos_groups": architecture.num_conv_pos_embedding_groups,
        }
        untouched_default = None
        for setting, found in visible.items():
            stated = cfg.get(setting)
            if stated is not None and stated != found:
                self._warn_of_tensors(setting, stated, found)
                if stated == _DEFAULT_ARCHITECTURE[setting]:
                    untouched_default = untouched_default or self.warnings[-1]
        layers = self._conv_layers()
        if layers is not None:
            stated_sizes = [(channels, kernel) for channels, kernel, _ in layers]
            found_sizes = list(zip(architecture.conv_dim, architecture.conv_kernel, strict=True))
            if stated_sizes != found_sizes:
                self._warn_of_tensors("conv_feature_layers", cfg["conv_feature_layers"], found_sizes)
                if layers == _DEFAULT_ARCHITECTURE["conv_feature_layers"]:
                    untouched_default = untouched_default or self.warnings[-1]
        if not self.pretraining:
            if cfg.get("num_labels") not in (None, architecture.num_labels):
                self._warn_of_tensors("num_labels", cfg["num_labels"], architecture.num_labels)
        elif architecture.quantizer:
            self._compare_quantizer()
        return untouched_default

    def _compare_quantizer(self) -> None:
        cfg, found = self.model_cfg, self.architecture.quantizer
        # 0 stands for another setting's value: latent_dim for final_dim, final_dim for the encoder's width.
        final_dim = cfg.get("final_dim") or (None if cfg.get("final_dim") is None else self.architecture.hidden_size)
        latent_dim = cfg.get("latent_dim") or (None if cfg.get("latent_dim") is None else final_dim)
        for setting, stated, name in (
            ("latent_vars", cfg.get("latent_vars"), "num_codevectors_per_group"),
            ("latent_groups", cfg.get("latent_groups"), "num_codevector_groups"),
            ("latent_dim", latent_dim, "codevector_dim"),
            ("final_dim", final_dim, "proj_codevector_dim"),
        ):
            if stated is not None and stated != found[name]:
                self._warn_of_tensors(setting, stated, found[name])

    def _warn_of_tensors(self, setting: str, stated: Any, found: Any) -> None:
        self.warnings.append(f"{self.section}.{setting} is {stated!r}, but the tensors have {found!r}, which is used")

    def _conv_layers(self) -> list[tuple[int, int, int]] | None:
        value = self.model_cfg.get("conv_feature_layers")
        if value is None:
            return None
        try:
            return parse_conv_feature_layers(value)
        except CheckpointError as error:
            raise CheckpointError(f"{self.section}.{error}") from error

    # Settings that the tensors do not show

    def _settings_of_like(self, checkpoint: FairseqCheckpoint, like: FairseqCheckpoint) -> dict[str, Any]:
        prefix, like_prefix = FAIRSEQ_PREFIX[self.architecture.kind], FAIRSEQ_PREFIX[model_kind(like.tensors)]

        def encoder(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, tuple[int, ...]]:
            modules = ("feature_extractor.", "post_extract_proj.", "layer_norm.", "encoder.")
            names = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
            return {name: tuple(tensors[full].shape) for name, full in names.items() if name.startswith(modules)}

        shapes, like_shapes = encoder(checkpoint.tensors, prefix), encoder(like.tensors, like_prefix)
        different = sorted(
            name for name in shapes.keys() | like_shapes.keys() if shapes.get(name) != like_shapes.get(name)
        )
        like_architecture = read_architecture(like.tensors)
        position = ("num_conv_pos_embeddings", "num_conv_pos_embedding_groups")
        different += [name for name in position if getattr(self.architecture, name) != getattr(like_architecture, name)]
        if different:
            raise CheckpointError(
                f"{like.path} is not the model that it started from: {len(different)} encoder tensors differ in shape "
                f"or are missing, such as {different[0]}"
            )
        try:
            return _SettingsReader(like, None, None).settings_without_tensors()
        except CheckpointError as error:
            raise CheckpointError(f"{like.path}: {error}") from error

    def _attention_heads(self, contradiction: str | None) -> int:
        width, stated = self.architecture.hidden_size, self.model_cfg.get("encoder_attention_heads")
        if self.heads is not None and (self.heads < 1 or width % self.heads):
            raise SettingsError(f"heads is {self.heads}, expected a divisor of the encoder's width of {width}")
        alike = None if self.like is None else self.like["num_attention_heads"]
        if None not in (self.heads, alike) and alike != self.heads:
            raise SettingsError(f"heads is {self.heads}, but the checkpoint given as like has {alike}")
        given = alike if self.heads is None else self.heads
        if given:
            if stated not in (None, given):
                self.warnings.append(
                    f"{self.section}.encoder_attention_heads is {stated!r}, but {given} was given and is used"
                )
            return given
        name = f"{self.section}.encoder_attention_heads"
        remedy = (
            "; the tensors do not show the number of heads. Pass it (heads=N), or pass the pretrained checkpoint "
            "that this one started from (like='PRETRAINED.pt')"
        )
        if stated is None:
            raise CheckpointError(f"{name} is missing{remedy}")
        if type(stated) is not int or stated < 1 or width % stated:
            raise CheckpointError(f"{name} is {stated!r}, which does not divide the tensors' width {width}{remedy}")
        if self.model_cfg.get("encoder_embed_dim") not in (None, width):
            raise CheckpointError(
                f"{name} is {stated!r} for a width of {self.model_cfg['encoder_embed_dim']!r}, but the tensors have "
                f"width {width}{remedy}"
            )
        if contradiction and stated == _DEFAULT_HEADS:
            raise CheckpointError(
                f"{self.section} holds the defaults of fairseq-signals and not this model's architecture "
                f"({contradiction}), so its encoder_attention_heads of {stated} is not reliable{remedy}"
            )
        return stated

    def _pre_norm(self, contradiction: str | None) -> bool:
        stated = self.model_cfg.get("layer_norm_first")
        if self.like is not None:
            given = self.like["do_stable_layer_norm"]
            if stated not in (None, given):
                self.warnings.append(
                    f"{self.section}.layer_norm_first is {stated!r}, but {given} of the pretrained checkpoint is used"
                )
            return given
        if stated is None or (contradiction and not stated):
            self.warnings.append(
                "post-norm layers are assumed (layer_norm_first=False, the default of fairseq-signals): the tensors do "
                f"not show it, and {self.section} does not describe this model; pass the pretrained checkpoint "
                "(like='PRETRAINED.pt') to be sure"
            )
        return bool(stated)

    def _strides(self) -> list[int]:
        layers, kernels = self._conv_layers(), self.architecture.conv_kernel
        stated = None
        if layers is not None and [kernel for _, kernel, _ in layers] == kernels:
            stated = [stride for *_, stride in layers]
        if self.like is not None:
            given = self.like["conv_stride"]
            if stated is not None and stated != given:
                self.warnings.append(
                    f"{self.section}.conv_feature_layers has strides {stated}, but {given} of the pretrained "
                    "checkpoint are used"
                )
            return given
        if layers is None and self.heads is not None and kernels == [k for _, k, _ in _PUBLISHED_CONVOLUTIONS]:
            self.warnings.append("the strides of the convolutions are assumed to be those of the published models, 2")
            return [stride for *_, stride in _PUBLISHED_CONVOLUTIONS]
        if stated is None:
            found = "is missing" if layers is None else f"is {self.model_cfg['conv_feature_layers']!r}"
            raise CheckpointError(
                f"{self.section}.conv_feature_layers {found}, which does not fit convolutions of kernels {kernels}; "
                "the tensors do not show their strides. Pass the pretrained checkpoint that this one started from "
                "(like='PRETRAINED.pt')"
            )
        return stated

    # Labels and leads

    def _labels(self, labels: str | Path | Sequence[str] | LabelSet | None) -> dict[str, Any]:
        count = self.architecture.num_labels or 0
        fields: dict[str, Any] = {}
        if labels is None:
            names = [f"LABEL_{i}" for i in range(count)]
            self.warnings.append(
                f"no labels were given: the {count} outputs are called LABEL_0 to LABEL_{count - 1}. The file does not "
                "name them; pass their names (labels=)"
            )
        else:
            label_set = resolve_labels(labels, count)
            names = list(label_set.names)
            fields["label_aggregation"] = dict(label_set.aggregation) or None
            fields["label_notes"] = dict(label_set.notes) or None
            fields["label_thresholds"] = dict(label_set.thresholds) or None
        return fields | {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}

    def _lead_names(self, lead_names: Sequence[str] | None) -> tuple[str, ...]:
        count = self.architecture.num_leads
        if not 1 <= count <= len(STANDARD_LEADS):
            raise CheckpointError(f"the first convolution takes {count} channels, expected 1 to 12 leads")
        if lead_names is not None:
            names = tuple(lead_names)
            if len(names) != count or len(set(names)) != count:
                raise SettingsError(f"lead_names is {', '.join(names)}, expected {count} different leads")
            return names
        loaded = self._leads_to_load()
        if loaded is not None:
            return loaded
        if count != len(STANDARD_LEADS):
            raise CheckpointError(
                f"the model takes {count} leads, and the file does not name them; pass their names in order "
                "(lead_names=)"
            )
        return STANDARD_LEADS

    def _leads_to_load(self) -> tuple[str, ...] | None:
        value = _literal(self.task_cfg.get("leads_to_load"))
        if not isinstance(value, (list, tuple)) or len(value) != self.architecture.num_leads:
            return None
        by_name = {name.lower(): name for name in STANDARD_LEADS}
        names = []
        for lead in value:
            if type(lead) is int and 0 <= lead < len(STANDARD_LEADS):
                names.append(STANDARD_LEADS[lead])
            elif isinstance(lead, str) and lead.lower() in by_name:
                names.append(by_name[lead.lower()])
        return tuple(names) if len(set(names)) == self.architecture.num_leads else None

    def _warn_of_preprocessing(self) -> None:
        sections = ((self.task_cfg, "task"), (self.model_cfg, self.section))
        for name in ("filter", "normalize"):
            section = next((section for settings, section in sections if settings.get(name) is True), None)
            if section is not None:
                self.warnings.append(
                    f"{section}.{name} is set: fairseq-signals changed the inputs while loading them, the feature "
                    "extractor does not"
                )

    # Settings of training: regularisation, masking, objectives

    def _regularisation(self) -> dict[str, Any]:
        fields = {
            ours: self._number(self.model_cfg, theirs, published if self.pretraining else 0.0)
            for theirs, ours, published in _REGULARISATION
        }
        return fields

    def _masking(self) -> dict[str, Any]:
        """Span masking. The mask embedding decides: the model has one exactly where `mask_time_prob > 0`."""
        stated = self._number(self.model_cfg, "mask_prob", 0.0)
        length = int(self._number(self.model_cfg, "mask_length", 10))
        if not self.architecture.has_mask_embedding:
            if stated > 0 and self.pretraining:
                self.warnings.append(f"mask_prob is {stated}, but the tensors have no mask embedding; 0 is used")
            return {"mask_time_prob": 0.0, "mask_time_length": length}
        if not stated:
            stated = ECGFMConfig.mask_time_prob
            self.warnings.append(f"the tensors have a mask embedding, but mask_prob is missing; {stated} is used")
        if not self.pretraining:
            self.warnings.append("it was fine-tuned with masking (mask_prob); this package never masks in fine-tuning")
        return {"mask_time_prob": stated, "mask_time_length": length}

    def _pretraining_objective(self) -> dict[str, Any]:
        cfg, criterion = self.model_cfg, self.criterion_cfg
        fields: dict[str, Any] = {
            "contrastive_logits_temperature": self._number(cfg, "logit_temp", 0.1),
            "num_negatives": int(self._number(cfg, "num_negatives", 100)),
            "cmsc_temperature": self._number(criterion, "temp", 0.1),
            "cmsc_loss_weight": self._number(criterion, "cmsc_weights", 1.0),
        }
        if (criterion.get("_name") or cfg.get("_name")) == "wav2vec2":
            fields["cmsc_loss_weight"] = 0.0
            self.warnings.append("it was pretrained without CMSC (wav2vec2); cmsc_loss_weight is 0")
        temperatures = _numbers(cfg.get("latent_temp"))
        if temperatures is not None and len(temperatures) == 3:
            names = ("max_gumbel_temperature", "min_gumbel_temperature", "gumbel_temperature_decay")
            fields |= dict(zip(names, temperatures, strict=True))
        elif cfg.get("latent_temp") is not None:
            self.warnings.append(
                f"latent_temp is {cfg['latent_temp']!r}, expected three numbers; the published ones are used"
            )
        if "loss_weights" in criterion:
            stated = criterion["loss_weights"]
            weights = [0.0] if stated is None else _numbers(stated)
            if weights is not None and len(weights) in (1, 2):
                # One weight stands for both terms: code diversity, then the penalty on large features.
                fields |= {"diversity_loss_weight": weights[0], "feature_penalty_weight": weights[-1]}
            else:
                self.warnings.append(
                    f"criterion.loss_weights is {stated!r}, expected two numbers; the published ones are used"
                )
        if criterion.get("all_gather") or cfg.get("all_gather"):
            self.warnings.append("all_gather is set, for pretraining on several devices; it is not carried over")
        return fields

    def _classifier_loss(self) -> dict[str, Any]:
        criterion = self.criterion_cfg.get("_name")
        if criterion is not None and str(criterion) not in _PROBLEM_TYPES:
            self.warnings.append(f"criterion {criterion!r} is not implemented here; multi-label is assumed")
        problem_type = _PROBLEM_TYPES.get(str(criterion), "multi_label_classification")
        multi_label = problem_type == "multi_label_classification"
        return {"problem_type": problem_type, "pos_weight": self._pos_weight() if multi_label else None}

    def _pos_weight(self) -> list[float] | None:
        count = self.architecture.num_labels or 0
        stated = self.criterion_cfg.get("pos_weight")
        if stated is None:
            return None
        weights = _numbers(stated)
        if weights is not None and len(weights) == 1:
            weights = weights * count  # the loss broadcasts it
        if weights is None or len(weights) != count or not all(_is_finite(w) and w > 0 for w in weights):
            found = str(stated if weights is None else weights)[:80]
            self.warnings.append(
                f"criterion.pos_weight is {found}, expected {count} finite positive numbers; it is not carried over"
            )
            return None
        return [float(weight) for weight in weights]

    def _number(self, settings: Mapping[str, Any], name: str, default: float) -> float:
        value = settings.get(name)
        if value is None:
            return default
        if not _is_finite(value):
            self.warnings.append(f"{name} is {value!r}, expected a finite number; {default} is used")
            return default
        return value


def _literal(value: Any) -> Any:
    """Return a value that an old file may hold as text, parsed; `None` if the text is no Python literal."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value) if len(value) <= 10_000 else None
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def _numbers(value: Any) -> list[float] | None:
    value = _literal(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, (list, tuple)) or not all(type(number) in (int, float) for number in value):
        return None
    return list(value)


def _is_finite(value: Any) -> bool:
    # A whole number beyond the range of floats is finite to Python, but cannot be a setting.
    return type(value) in (int, float) and abs(value) < 1e300


__all__ = ["ConvertedSettings", "config_from_checkpoint"]
