"""
From a fairseq-signals checkpoint to an [`ECGFMConfig`].

Sizes are read off the tensors and the file's settings are checked against them: a fine-tuned file repeats the
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
from .checkpoint import CheckpointError, FairseqCheckpoint, load_fairseq_checkpoint
from .grammar import parse_conv_feature_layers
from .label_sets import LabelError, LabelSet, resolve_labels
from .state_dict import FAIRSEQ_PREFIX, ModelKind, model_kind
from .tensor_facts import read_tensor_facts
from .training_settings import TrainingSettings

STANDARD_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

# fairseq-signals' defaults. Where the settings contradict the tensors with just these values, nobody typed them, and
# whatever else equals its default is no knowledge either.
_DEFAULT_ARCHITECTURE = {
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "in_d": 12,
    "conv_feature_layers": [(256, 2, 2)] * 4,
    "conv_bias": False,
    "extractor_mode": "default",
    "conv_pos": 128,
    "conv_pos_groups": 16,
}
_DEFAULT_HEADS = 12

_KNOWN_MODELS: dict[str, ModelKind] = {
    "wav2vec2": "pretraining",
    "wav2vec2_cmsc": "pretraining",
    "ecg_transformer_classifier": "classification",
}
_EXTRACTOR_MODES = {"default": "group", "layer_norm": "layer"}


@dataclass(frozen=True)
class ConvertedSettings:
    """
    Args:
        config (`ECGFMConfig`): Complete, labels included.
        kind (`str`): `"pretraining"` or `"classification"`.
        lead_names (`tuple[str, ...]`): Leads of the input, in order.
        warnings (`tuple[str, ...]`): What was decided against, or without, the file's settings.
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
    The configuration of the model in a fairseq-signals checkpoint.

    Args:
        checkpoint ([`FairseqCheckpoint`] or path)
        labels (*optional*): A classifier's labels, as in [`resolve_labels`]. Without it they are called `LABEL_i`.
        heads (`int`, *optional*): Attention heads, where the file's settings do not describe its weights.
        like ([`FairseqCheckpoint`] or path, *optional*):
            The pretrained checkpoint that a fine-tuned one began from. What tensors cannot tell is taken from it.
        lead_names (sequence of `str`, *optional*):
            Leads of the input in order; by default the standard twelve, or the file's own `leads_to_load`.

    Returns:
        [`ConvertedSettings`]

    Raises:
        `CheckpointError`: settings that this package does not implement (all are named), that contradict the tensors
            beyond repair, or that leave the attention heads or strides open.
        [`LabelError`], `ValueError`: `labels`, `heads` or `lead_names` do not fit the tensors.
    """
    if not isinstance(checkpoint, FairseqCheckpoint):
        checkpoint = load_fairseq_checkpoint(checkpoint)
    if like is not None and not isinstance(like, FairseqCheckpoint):
        like = load_fairseq_checkpoint(like)
    try:
        return _Resolver(checkpoint, heads, like).resolve(labels, lead_names)
    except CheckpointError as error:
        if str(checkpoint.path) in str(error):
            raise
        raise CheckpointError(f"{checkpoint.path}: {error}") from error


class _Resolver:
    """Brings one checkpoint's tensors, settings and the user's own words together; collects warnings on the way."""

    def __init__(self, checkpoint: FairseqCheckpoint, heads: int | None, like: FairseqCheckpoint | None):
        self.model_cfg = checkpoint.model_cfg
        self.criterion_cfg = checkpoint.criterion_cfg
        self.task_cfg = checkpoint.task_cfg
        self.where = checkpoint.settings_name
        name = self.model_cfg.get("_name")
        # Before the tensors are looked at: those of another model would only be called strange.
        if name is not None and (not isinstance(name, str) or name not in _KNOWN_MODELS):
            raise CheckpointError(
                f"model type {name!r} is not implemented here; implemented are: {', '.join(_KNOWN_MODELS)}"
            )
        self.facts = read_tensor_facts(checkpoint.tensors)
        self.warnings: list[str] = []
        if not self.where and like is None:
            raise CheckpointError(
                "the file holds no settings (neither 'cfg' with 'model' nor 'args'); name the pretrained checkpoint "
                "that it began from (--like)"
            )
        self.heads = heads
        self.like: dict[str, Any] | None = None if like is None else self._resolve_like(checkpoint, like)

    def resolve(self, labels: Any, lead_names: Sequence[str] | None) -> ConvertedSettings:
        self._refuse_what_is_not_implemented()
        facts = self.facts
        invisible = self.invisible_settings()
        training = TrainingSettings(self.model_cfg, self.criterion_cfg, facts, self.warnings.append)
        fields: dict[str, Any] = {
            "num_leads": facts.num_leads,
            "conv_dim": facts.conv_dim,
            "conv_kernel": facts.conv_kernel,
            "conv_bias": facts.conv_bias,
            "feat_extract_norm": facts.feat_extract_norm,
            "hidden_size": facts.hidden_size,
            "num_hidden_layers": facts.num_hidden_layers,
            "intermediate_size": facts.intermediate_size,
            "num_conv_pos_embeddings": facts.num_conv_pos_embeddings,
            "num_conv_pos_embedding_groups": facts.num_conv_pos_embedding_groups,
            **invisible,
            **facts.quantizer,
            **training.regularisation(),
            **training.masking(),
        }
        if facts.kind == "classification":
            fields |= training.classifier_loss() | self._labels(labels)
        elif labels is not None:
            raise LabelError("labels were given, but this is a pretrained encoder without a classifier")
        else:
            fields |= training.pretraining_objective()
        leads = self._lead_names(lead_names)
        self._mention_preprocessing()
        try:
            config = ECGFMConfig(**fields)
        except (StrictDataclassError, ValueError, TypeError) as error:
            raise CheckpointError(f"its settings make no valid configuration: {error}") from error
        return ConvertedSettings(config, facts.kind, leads, tuple(self.warnings))

    def invisible_settings(self) -> dict[str, Any]:
        """Attention heads, pre-norm and strides, as fields of the configuration."""
        # First the visible settings: how they compare with the tensors tells whether to believe the invisible ones.
        contradiction = self._compare_with_tensors()
        return {
            "conv_stride": self._strides(),
            "num_attention_heads": self._attention_heads(contradiction),
            "do_stable_layer_norm": self._pre_norm(contradiction),
        }

    # What cannot be converted

    def _refuse_what_is_not_implemented(self) -> None:
        cfg, refused = self.model_cfg, []
        name = cfg.get("_name")
        if name is not None and _KNOWN_MODELS[name] != self.facts.kind:
            self.warnings.append(
                f"{self.where}._name says {name!r}, the tensors are those of a {self.facts.kind} model; the tensors win"
            )
        if cfg.get("activation_fn", "gelu") not in (None, "gelu"):
            refused.append(f"activation_fn={cfg['activation_fn']!r}")
        if cfg.get("extractor_mode", "default") not in (None, *_EXTRACTOR_MODES):
            refused.append(f"extractor_mode={cfg['extractor_mode']!r}")
        # These shape the objective alone: what a fine-tuned file says about them has no effect any more.
        if self.facts.kind == "pretraining":
            for setting in (
                "target_glu",
                "quantize_input",
                "same_quantizer",
                "negatives_from_everywhere",
                "no_mask_overlap",
                "codebook_negatives",
                "cross_sample_negatives",
                "mask_channel_prob",
            ):
                if cfg.get(setting):
                    refused.append(f"{setting}={cfg[setting]!r}")
            if not self.facts.quantizer or cfg.get("quantize_targets") is False:
                refused.append("quantize_targets=False")
            if cfg.get("mask_selection", "static") not in (None, "static"):
                refused.append(f"mask_selection={cfg['mask_selection']!r}")
            if self.criterion_cfg.get("infonce") is False:
                refused.append("criterion.infonce=False")
            if cfg.get("num_negatives", 100) == 0:
                refused.append("num_negatives=0")
        if refused:
            raise CheckpointError(f"it was made with settings that are not implemented here: {', '.join(refused)}")

    # What tensors tell

    def _compare_with_tensors(self) -> str | None:
        """Warns of every contradiction; returns one that shows that defaults were never replaced, if there is one."""
        cfg, facts = self.model_cfg, self.facts
        visible = {
            "encoder_layers": facts.num_hidden_layers,
            "encoder_embed_dim": facts.hidden_size,
            "encoder_ffn_embed_dim": facts.intermediate_size,
            "in_d": facts.num_leads,
            "conv_bias": facts.conv_bias,
            "extractor_mode": {norm: mode for mode, norm in _EXTRACTOR_MODES.items()}[facts.feat_extract_norm],
            "conv_pos": facts.num_conv_pos_embeddings,
            "conv_pos_groups": facts.num_conv_pos_embedding_groups,
        }
        untouched_default = None
        for setting, seen in visible.items():
            said = cfg.get(setting)
            if said is not None and said != seen:
                self._warn_tensors_win(setting, said, seen)
                if said == _DEFAULT_ARCHITECTURE[setting]:
                    untouched_default = untouched_default or self.warnings[-1]
        layers = self._conv_layers()
        if layers is not None:
            said_sizes = [(channels, kernel) for channels, kernel, _ in layers]
            seen_sizes = list(zip(facts.conv_dim, facts.conv_kernel, strict=True))
            if said_sizes != seen_sizes:
                self._warn_tensors_win("conv_feature_layers", cfg["conv_feature_layers"], seen_sizes)
                if layers == _DEFAULT_ARCHITECTURE["conv_feature_layers"]:
                    untouched_default = untouched_default or self.warnings[-1]
        if facts.kind == "classification":
            if cfg.get("num_labels") not in (None, facts.num_labels):
                self._warn_tensors_win("num_labels", cfg["num_labels"], facts.num_labels)
        elif facts.quantizer:
            self._compare_quantizer()
        return untouched_default

    def _compare_quantizer(self) -> None:
        cfg, seen = self.model_cfg, self.facts.quantizer
        # 0 stands for another setting's value: latent_dim for final_dim, final_dim for the encoder's width.
        final_dim = cfg.get("final_dim") or (None if cfg.get("final_dim") is None else self.facts.hidden_size)
        latent_dim = cfg.get("latent_dim") or (None if cfg.get("latent_dim") is None else final_dim)
        for setting, said, name in (
            ("latent_vars", cfg.get("latent_vars"), "num_codevectors_per_group"),
            ("latent_groups", cfg.get("latent_groups"), "num_codevector_groups"),
            ("latent_dim", latent_dim, "codevector_dim"),
            ("final_dim", final_dim, "proj_codevector_dim"),
        ):
            if said is not None and said != seen[name]:
                self._warn_tensors_win(setting, said, seen[name])

    def _warn_tensors_win(self, setting: str, said: Any, seen: Any) -> None:
        self.warnings.append(f"{self.where}.{setting} says {said!r}, the tensors have {seen!r}; the tensors win")

    def _conv_layers(self) -> list[tuple[int, int, int]] | None:
        value = self.model_cfg.get("conv_feature_layers")
        if value is None:
            return None
        try:
            return parse_conv_feature_layers(value)
        except ValueError as error:
            raise CheckpointError(f"{self.where}.{error}") from error

    # What tensors do not tell

    def _resolve_like(self, checkpoint: FairseqCheckpoint, like: FairseqCheckpoint) -> dict[str, Any]:
        prefix, like_prefix = FAIRSEQ_PREFIX[self.facts.kind], FAIRSEQ_PREFIX[model_kind(like.tensors)]

        def encoder(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, tuple[int, ...]]:
            parts = ("feature_extractor.", "post_extract_proj.", "layer_norm.", "encoder.")
            names = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
            return {name: tuple(tensors[full].shape) for name, full in names.items() if name.startswith(parts)}

        ours, theirs = encoder(checkpoint.tensors, prefix), encoder(like.tensors, like_prefix)
        different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        facts, like_facts = self.facts, read_tensor_facts(like.tensors)
        position = ("num_conv_pos_embeddings", "num_conv_pos_embedding_groups")
        different += [name for name in position if getattr(facts, name) != getattr(like_facts, name)]
        if different:
            raise CheckpointError(
                f"{like.path} is not the model it began from: {len(different)} encoder tensors differ in shape or are "
                f"missing, such as {different[0]}"
            )
        try:
            return _Resolver(like, None, None).invisible_settings()
        except CheckpointError as error:
            raise CheckpointError(f"{like.path}: {error}") from error

    def _attention_heads(self, contradiction: str | None) -> int:
        width, said = self.facts.hidden_size, self.model_cfg.get("encoder_attention_heads")
        if self.heads is not None and (self.heads < 1 or width % self.heads):
            raise ValueError(f"heads must divide the encoder's width of {width}, found: {self.heads}")
        alike = None if self.like is None else self.like["num_attention_heads"]
        if None not in (self.heads, alike) and alike != self.heads:
            raise ValueError(f"heads is {self.heads}, but the checkpoint given by like has {alike}")
        given = alike if self.heads is None else self.heads
        if given:
            if said not in (None, given):
                self.warnings.append(f"{self.where}.encoder_attention_heads says {said!r}; {given} was taken as given")
            return given
        ask = (
            "; tensors cannot tell the number of heads. Give it (--heads N), or the pretrained checkpoint that this "
            "one began from (--like PRETRAINED.pt)"
        )
        if said is None:
            raise CheckpointError(f"{self.where} does not say encoder_attention_heads{ask}")
        if type(said) is not int or said < 1 or width % said:
            raise CheckpointError(
                f"{self.where}.encoder_attention_heads says {said!r}, which does not divide the tensors' width "
                f"{width}{ask}"
            )
        if self.model_cfg.get("encoder_embed_dim") not in (None, width):
            raise CheckpointError(
                f"{self.where}.encoder_attention_heads says {said!r}, but for a width of "
                f"{self.model_cfg['encoder_embed_dim']!r}, not the tensors' {width}{ask}"
            )
        if contradiction and said == _DEFAULT_HEADS:
            raise CheckpointError(
                f"{self.where} holds the original's defaults and not this model's architecture "
                f"({contradiction}), so its encoder_attention_heads of {said} says nothing either{ask}"
            )
        return said

    def _pre_norm(self, contradiction: str | None) -> bool:
        said = self.model_cfg.get("layer_norm_first")
        if self.like is not None:
            given = self.like["do_stable_layer_norm"]
            if said not in (None, given):
                self.warnings.append(
                    f"{self.where}.layer_norm_first says {said!r}; {given} was taken from the one given"
                )
            return given
        if said is None or (contradiction and not said):
            self.warnings.append(
                "post-norm layers are assumed (layer_norm_first=False, the original's default): tensors cannot tell, "
                f"and {self.where} does not describe this model; give the pretrained checkpoint (--like) to be sure"
            )
        return bool(said)

    def _strides(self) -> list[int]:
        layers = self._conv_layers()
        fits = layers is not None and [kernel for _, kernel, _ in layers] == self.facts.conv_kernel
        said = [stride for *_, stride in layers] if fits else None
        if self.like is not None:
            given = self.like["conv_stride"]
            if said is not None and said != given:
                self.warnings.append(
                    f"{self.where}.conv_feature_layers says strides {said}; {given} were taken from the one given"
                )
            return given
        if said is None:
            stated = "is not given" if layers is None else f"says {self.model_cfg['conv_feature_layers']!r}"
            raise CheckpointError(
                f"{self.where}.conv_feature_layers {stated}, which does not fit convolutions of kernels "
                f"{self.facts.conv_kernel}; tensors cannot tell their strides. Give the pretrained checkpoint that "
                "this one began from (--like PRETRAINED.pt)"
            )
        return said

    # Labels and leads

    def _labels(self, labels: Any) -> dict[str, Any]:
        count = self.facts.num_labels
        fields: dict[str, Any] = {}
        if labels is None:
            names = [f"LABEL_{i}" for i in range(count)]
            self.warnings.append(
                f"no labels were given: the {count} outputs are called LABEL_0 to LABEL_{count - 1}. Their meaning is "
                "not in the file; name them with --labels"
            )
        else:
            label_set = resolve_labels(labels, count)
            names = list(label_set.names)
            fields["label_aggregation"] = dict(label_set.aggregation) or None
            fields["label_notes"] = dict(label_set.notes) or None
        return fields | {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}

    def _lead_names(self, lead_names: Sequence[str] | None) -> tuple[str, ...]:
        count = self.facts.num_leads
        if not 1 <= count <= len(STANDARD_LEADS):
            raise CheckpointError(f"the first convolution takes {count} channels; 1 to 12 leads are implemented")
        if lead_names is not None:
            names = tuple(lead_names)
            if len(names) != count or len(set(names)) != count:
                raise ValueError(f"lead_names must be {count} different leads, found: {', '.join(names)}")
            return names
        names = self._leads_to_load()
        if names is not None:
            return names
        if count != len(STANDARD_LEADS):
            raise CheckpointError(
                f"the model takes {count} leads, and the file does not say which; give their names in order (--leads)"
            )
        return STANDARD_LEADS

    def _leads_to_load(self) -> tuple[str, ...] | None:
        value = self.task_cfg.get("leads_to_load")
        if isinstance(value, str):
            try:
                value = ast.literal_eval(value[:500])
            except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                value = None
        if not isinstance(value, (list, tuple)) or len(value) != self.facts.num_leads:
            return None
        by_name = {name.lower(): name for name in STANDARD_LEADS}
        names = []
        for lead in value:
            if type(lead) is int and 0 <= lead < len(STANDARD_LEADS):
                names.append(STANDARD_LEADS[lead])
            elif isinstance(lead, str) and lead.lower() in by_name:
                names.append(by_name[lead.lower()])
        return tuple(names) if len(set(names)) == self.facts.num_leads else None

    def _mention_preprocessing(self) -> None:
        for settings, where in ((self.task_cfg, "task"), (self.model_cfg, self.where)):
            for name in ("filter", "normalize"):
                if settings.get(name) is True:
                    message = (
                        f"{where}.{name} is set: the original changed its inputs while loading them, which the feature "
                        "extractor does not do"
                    )
                    if not any(f".{name} is set" in warning for warning in self.warnings):
                        self.warnings.append(message)
        rate = self.task_cfg.get("sample_rate")
        if rate not in (None, 500):
            self.warnings.append(f"task.sample_rate says {rate!r} Hz; the feature extractor delivers 500 Hz")
