"""Configuration of ECG-FM models. Needs no torch."""

import math
import os
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from huggingface_hub.dataclasses import strict
from transformers.utils import logging
from transformers.utils.versions import require_version

# Older releases fail in the next line, or later, with an ImportError that does not name the version.
require_version("transformers>=5.6.2", "ECG-FM needs it. To install it: pip install 'transformers>=5.6.2'")

from transformers.configuration_utils import PreTrainedConfig  # noqa: E402

logger = logging.get_logger(__name__)

LABEL_AGGREGATIONS = ("mean", "max")
POOLINGS = ("mean", "attention")
PROBLEM_TYPES = ("multi_label_classification", "single_label_classification", "regression")
# Fields that depend on the label names. All but the notes also depend on the problem type.
LABEL_FIELDS = ("pos_weight", "label_aggregation", "label_thresholds", "label_calibration", "label_notes")
_SCORE_FIELDS = LABEL_FIELDS[:-1]
_FITTED_FIELDS = ("label_thresholds", "label_calibration")
_MAX_LABELS = 100_000
_DEFAULT_LABELS = ["LABEL_0", "LABEL_1"]
CountT = TypeVar("CountT", bound="_Count")


class _Count(Protocol):
    """An integer, or a tensor of integers, whose library this file does not import."""

    def __add__(self: CountT, other: int, /) -> CountT: ...
    def __sub__(self: CountT, other: int, /) -> CountT: ...
    def __floordiv__(self: CountT, other: int, /) -> CountT: ...


def _label_names(
    id2label: dict | None = None, label2id: dict | None = None, num_labels: int | None = None
) -> list[str] | None:
    """Return label names in output order, None if no argument is given; `ValueError` for contradictions."""
    names = None
    # Keys are strings in JSON.
    pairs = {"id2label": [(int(number), label) for number, label in (id2label or {}).items()]}
    pairs["label2id"] = [(int(number), label) for label, number in (label2id or {}).items()]
    for field, given in pairs.items():
        if not given:
            continue
        numbers, found = sorted(number for number, _ in given), [label for _, label in sorted(given)]
        if numbers != list(range(len(given))):
            raise ValueError(f"{field} must number its labels from 0 without gaps, found: {numbers}")
        if len(set(found)) < len(found):
            # Scores are returned by label name.
            raise ValueError(f"{field} must not name two labels alike, found: {found}")
        if names is not None and names != found:
            raise ValueError(f"id2label and label2id contradict each other: {names} and {found}")
        names = found
    if num_labels is not None:
        if not 1 <= num_labels <= _MAX_LABELS:
            raise ValueError(f"num_labels must be 1 to {_MAX_LABELS}, found: {num_labels}")
        names = [f"LABEL_{i}" for i in range(num_labels)] if names is None else names
        if len(names) != num_labels:
            raise ValueError(f"num_labels is {num_labels}, but there are {len(names)} label names: {names}")
    return names


class CustomPipelines(dict):
    """
    A config's `custom_pipelines`: the tasks for which its folder brings code.

    `transformers.pipeline` looks up its task here, and requires `trust_remote_code` for a task that it finds. So the
    lookup does not find a task whose class the installed package has `registered`. Tasks of transformers that would
    feed audio or text to an ECG-FM model get an error here, instead of a later message about a tokenizer.
    """

    registered: ClassVar[set[str]] = set()

    def __contains__(self, task: object) -> bool:
        if task in ("audio-classification", "feature-extraction", "text-classification"):
            raise ValueError(
                f"the pipeline {task!r} of transformers takes no recordings with named leads; for scores, use "
                "pipeline('ecg-classification', model=...); for embeddings, the pooler_output of "
                "AutoModel.from_pretrained(...)(**feature_extractor(...))"
            )
        return task not in self.registered and super().__contains__(task)


@strict
class ECGFMConfig(PreTrainedConfig):
    r"""
    Configuration of an ECG-FM model: architecture, pretraining objective and labels.

    The defaults are the published base model (90.9 million parameters with its pretraining modules); see
    [`ECGFMConfig.base`] and [`ECGFMConfig.large`]. Names follow `Wav2Vec2Config` where both have the setting. All other
    settings are those of `PreTrainedConfig`.

    Args:
        num_leads (`int`, *optional*, defaults to 12):
            Leads (input channels) of a recording, 1 to 12.
        hidden_size (`int`, *optional*, defaults to 768):
            Width of the transformer, a multiple of `num_attention_heads`.
        num_hidden_layers (`int`, *optional*, defaults to 12):
            Transformer layers.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Attention heads of each layer.
        intermediate_size (`int`, *optional*, defaults to 3072):
            Width of the feed-forward blocks.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the feed-forward blocks.
        hidden_dropout (`float`, *optional*, defaults to 0.1):
            Dropout on the outputs of attention and feed-forward blocks, and on the encoder's input.
        activation_dropout (`float`, *optional*, defaults to 0.0):
            Dropout after the activation of the feed-forward blocks.
        attention_dropout (`float`, *optional*, defaults to 0.1):
            Dropout on the attention weights.
        feat_proj_dropout (`float`, *optional*, defaults to 0.1):
            Dropout on the projected features (`dropout_input` in fairseq-signals).
        feat_quantizer_dropout (`float`, *optional*, defaults to 0.1):
            Dropout on the features that the quantizer sees (`dropout_features` in fairseq-signals).
        final_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on the pooled embedding before the classification head.
        pooling (`str`, *optional*, defaults to `"mean"`):
            How frames become what the classification head takes: `"mean"` is the published embedding; `"attention"` is
            their average by the attention of a learned query, with `num_attention_heads` heads.
        layerdrop (`float`, *optional*, defaults to 0.0):
            Probability of skipping a whole encoder layer in training.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights of the transformer's linear layers.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the layer norms.
        feat_extract_norm (`str`, *optional*, defaults to `"group"`):
            `"group"`: one group norm per channel, so over time, after the first convolution only (as published);
            `"layer"`: a layer norm over channels after every convolution.
        feat_extract_activation (`str`, *optional*, defaults to `"gelu"`):
            Activation after every convolution.
        conv_dim (sequence of `int`, *optional*, defaults to `(256, 256, 256, 256)`):
            Channels of each convolution. Its length is the number of convolutions.
        conv_kernel (sequence of `int`, *optional*, defaults to `(2, 2, 2, 2)`):
            Kernel size of each convolution.
        conv_stride (sequence of `int`, *optional*, defaults to `(2, 2, 2, 2)`):
            Stride of each convolution. A frame is as many samples as their product.
        conv_bias (`bool`, *optional*, defaults to `False`):
            Whether the convolutions have a bias.
        num_conv_pos_embeddings (`int`, *optional*, defaults to 128):
            Kernel size of the convolutional position embedding, in frames.
        num_conv_pos_embedding_groups (`int`, *optional*, defaults to 16):
            Groups of the convolutional position embedding.
        do_stable_layer_norm (`bool`, *optional*, defaults to `False`):
            Pre-norm transformer layers (`layer_norm_first` in fairseq-signals) instead of post-norm.
        padding_safe (`bool`, *optional*, defaults to `False`):
            With `True`, padding has no effect on the output: the first norm takes its statistics over valid positions,
            and padded frames are zeroed before the position embedding. `False` is fairseq-signals' behaviour.
        mask_time_prob (`float`, *optional*, defaults to 0.65):
            Share of frames that pretraining masks, before overlaps. The mask embedding exists only above 0.
        mask_time_length (`int`, *optional*, defaults to 10):
            Frames of a masked span.
        mask_time_min_masks (`int`, *optional*, defaults to 2):
            Least number of masked spans.
        feature_grad_multiplier (`float`, *optional*, defaults to 0.1):
            Factor on the gradient that reaches the convolutional feature encoder; 0 and below freeze it.
        num_codevectors_per_group (`int`, *optional*, defaults to 320):
            Codes of each group of the quantizer's codebook.
        num_codevector_groups (`int`, *optional*, defaults to 2):
            Groups of the codebook.
        codevector_dim (`int`, *optional*, defaults to 256):
            Width of the quantized vectors, of all groups together.
        proj_codevector_dim (`int`, *optional*, defaults to 256):
            Width in which predictions and quantized targets are compared.
        num_negatives (`int`, *optional*, defaults to 100):
            Negatives of a masked frame, drawn from the other masked frames of its segment.
        contrastive_logits_temperature (`float`, *optional*, defaults to 0.1):
            Temperature of the contrastive loss.
        max_gumbel_temperature (`float`, *optional*, defaults to 2.0):
            Temperature of the quantizer at the first update. After `n` updates it is `max(max * decay ** n, min)`.
        min_gumbel_temperature (`float`, *optional*, defaults to 0.5):
            Lowest temperature of the quantizer.
        gumbel_temperature_decay (`float`, *optional*, defaults to 0.999995):
            Decay of the temperature with each update.
        diversity_loss_weight (`float`, *optional*, defaults to 0.1):
            Weight of the codebook diversity in the objective.
        feature_penalty_weight (`float`, *optional*, defaults to 10.0):
            Weight of the penalty on large features.
        cmsc_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of contrastive multi-segment coding (CMSC).
        cmsc_temperature (`float`, *optional*, defaults to 0.1):
            Temperature of CMSC.
        pos_weight (list of `float`, *optional*):
            Weight of positive targets in the binary cross entropy, one per label.
        label_aggregation (`dict[str, str]`, *optional*):
            How segment scores become the recording's: `"mean"` or `"max"` by label name; `"mean"` where absent.
        label_thresholds (`dict[str, float]`, *optional*):
            Decision threshold on the recording's (calibrated) score, by label name. No threshold is assumed.
        label_calibration (`dict[str, dict[str, float]]`, *optional*):
            By label name, `{"slope": a, "intercept": b}`: the calibrated probability is
            `sigmoid(a * logit(score) + b)` of the recording's score. `{"slope": 1.0, "intercept": -ln w}` only undoes
            the shift of a `pos_weight` w.
        label_fingerprint (`str`, *optional*):
            Hashes of the weights that thresholds and calibration were fitted to. Saving a classifier writes them.
            If the weights differ at loading, thresholds and calibration are dropped. Assigning either clears them.
        label_notes (`dict[str, str]`, *optional*):
            Warnings for users of a label, by label name.

    `id2label`, `label2id` and `num_labels` always agree: each follows from any other, and numbers may be strings.
    Assigning other labels drops the fields from `pos_weight` on, with a warning. Assigning another `problem_type` drops
    all of these but `label_notes`.

    Raises:
        `ValueError` or huggingface_hub's strict dataclass errors for impossible values, naming field and value.

    Example:

        >>> from ecgfm_hf import ECGFMConfig, ECGFMModel
        >>> config = ECGFMConfig(num_hidden_layers=2)  # the base model with two layers
        >>> model = ECGFMModel(config)  # random weights
        >>> model.config.num_hidden_layers
        2
    """

    model_type = "ecgfm"

    num_leads: int = 12
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float | int = 0.1
    activation_dropout: float | int = 0.0
    attention_dropout: float | int = 0.1
    feat_proj_dropout: float | int = 0.1
    feat_quantizer_dropout: float | int = 0.1
    final_dropout: float | int = 0.0
    pooling: str = "mean"
    layerdrop: float | int = 0.0
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-5
    feat_extract_norm: str = "group"
    feat_extract_activation: str = "gelu"
    conv_dim: list[int] | tuple[int, ...] = (256, 256, 256, 256)
    conv_kernel: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    conv_stride: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    do_stable_layer_norm: bool = False
    padding_safe: bool = False

    mask_time_prob: float | int = 0.65
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    feature_grad_multiplier: float | int = 0.1
    num_codevectors_per_group: int = 320
    num_codevector_groups: int = 2
    codevector_dim: int = 256
    proj_codevector_dim: int = 256
    num_negatives: int = 100
    contrastive_logits_temperature: float | int = 0.1
    max_gumbel_temperature: float | int = 2.0
    min_gumbel_temperature: float | int = 0.5
    gumbel_temperature_decay: float | int = 0.999995
    diversity_loss_weight: float | int = 0.1
    feature_penalty_weight: float | int = 10.0
    cmsc_loss_weight: float | int = 1.0
    cmsc_temperature: float | int = 0.1

    pos_weight: list[float | int] | tuple[float | int, ...] | None = None
    label_aggregation: dict[str, str] | None = None
    label_thresholds: dict[str, float | int] | None = None
    label_calibration: dict[str, dict[str, float | int]] | None = None
    label_fingerprint: str | None = None
    label_notes: dict[str, str] | None = None

    @classmethod
    def base(cls, **overrides: Any) -> "ECGFMConfig":
        """The published base model: 12 layers of width 768. Unknown names in `overrides` raise `TypeError`."""
        return cls._preset({}, overrides)

    @classmethod
    def large(cls, **overrides: Any) -> "ECGFMConfig":
        """The published large model: 24 layers of width 1024. Unknown names in `overrides` raise `TypeError`."""
        sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
        return cls._preset(sizes, overrides)

    @classmethod
    def _preset(cls, sizes: dict[str, Any], overrides: dict[str, Any]) -> "ECGFMConfig":
        # PreTrainedConfig accepts any keyword; here a misspelt one is an error.
        known = cls().to_dict().keys() | cls.__dataclass_fields__.keys() | {"num_labels"}
        unknown = sorted(overrides.keys() - known)
        if unknown:
            raise TypeError(f"ECGFMConfig has no field named {', '.join(map(repr, unknown))}")
        return cls(**{**sizes, **overrides})

    def __post_init__(self, **kwargs: Any) -> None:
        names = _label_names(self.id2label, self.label2id, kwargs.pop("num_labels", None))
        self._store_names(names or _DEFAULT_LABELS)
        super().__post_init__(**kwargs)
        self.saved_as: str | None = None  # the class that a model of another class is saved as
        self._labels_settled = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "custom_pipelines":
            super().__setattr__(name, CustomPipelines(value))
        elif not vars(self).get("_labels_settled"):
            super().__setattr__(name, value)
        elif name in ("id2label", "label2id"):
            self._change_labels(_label_names(**{name: value}))
        elif name == "problem_type":
            before, default = self.problem_type, PROBLEM_TYPES[0]
            super().__setattr__(name, value)
            if (before or default) != (value or default):
                self._drop(_SCORE_FIELDS, f"problem_type {value!r}")
        elif name in LABEL_FIELDS:
            before = getattr(self, name)
            super().__setattr__(name, value)
            try:
                self.validate_labels()
            except ValueError:
                super().__setattr__(name, before)
                raise
            if name in _FITTED_FIELDS:
                super().__setattr__("label_fingerprint", None)
        else:
            super().__setattr__(name, value)

    def _store_names(self, names: list[str]) -> None:
        super().__setattr__("id2label", dict(enumerate(names)))
        super().__setattr__("label2id", {label: number for number, label in enumerate(names)})

    def _change_labels(self, names: list[str] | None) -> None:
        names = names or _DEFAULT_LABELS
        # label2id has the names that the other fields belong to, even if id2label was changed in place.
        before = [label for label, _ in sorted((self.label2id or {}).items(), key=lambda pair: pair[1])]
        self._store_names(names)
        if names != before:
            self._drop(LABEL_FIELDS, "the new labels")

    def _drop(self, fields: Sequence[str], reason: str) -> None:
        dropped = [name for name in fields if getattr(self, name) is not None]
        for name in dropped:
            super().__setattr__(name, None)
        if not any(getattr(self, name) for name in _FITTED_FIELDS):
            super().__setattr__("label_fingerprint", None)
        if dropped:
            logger.warning(f"{', '.join(dropped)} dropped from the config: not made for {reason}")

    def drop_fitted_to_weights(self) -> None:
        """Drop thresholds and calibration, with a warning: training changes the weights that they were fitted to."""
        self._drop(_FITTED_FIELDS, "weights that are trained further")

    def check_fitted_to_weights(self, fingerprint: str, check_matrices: bool = True) -> None:
        """
        Drop thresholds and calibration, with a warning, unless they belong to weights of this fingerprint.

        It has two hashes of the weights, and two as they are after rounding to float16. An empty one is unknown. With
        `check_matrices`, an unknown hash of the matrices is a warning.
        """
        if self.label_fingerprint is None:
            return
        own, found = self.label_fingerprint.split(" "), fingerprint.split(" ")[:2]
        if len(own) != 4 or not any(
            all(not one or not other or one == other for one, other in zip(pair, found, strict=True))
            for pair in (own[:2], own[2:])
        ):
            self._drop(_FITTED_FIELDS, "these weights: scores are neither calibrated nor judged")
        elif check_matrices and own[1] and not found[1]:
            logger.warning_once(
                "thresholds and calibration were compared with biases and norms only, since the matrices are quantised "
                "or sharded. If the model was trained or merged with an adapter before, evaluate or fit them again"
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "ECGFMConfig":
        """
        As in transformers. Labels or a problem type in `kwargs` that differ from the stored ones drop what the config
        states about those; other label fields in `kwargs` then count.
        """
        labels = {name: kwargs.pop(name, None) for name in ("id2label", "label2id", "num_labels")}
        about_labels = {name: kwargs.pop(name) for name in ("problem_type", *LABEL_FIELDS) if name in kwargs}
        names = _label_names(**labels)
        result = super().from_dict(config_dict, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        if names is not None and (labels["id2label"] or labels["label2id"]):
            config.id2label = dict(enumerate(names))
        elif names is not None:
            config.num_labels = len(names)
        for name, value in about_labels.items():
            setattr(config, name, value)
        return result

    def to_dict(self) -> dict[str, Any]:
        """As in transformers."""
        output = super().to_dict()
        for name in ("_labels_settled", "saved_as"):
            output.pop(name, None)
        return output

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As in transformers; names that were changed inside `id2label` count as new labels."""
        self.id2label = self.id2label
        if self.saved_as is not None:
            self.architectures = [self.saved_as]
        super().save_pretrained(save_directory, *args, **kwargs)

    def validate_architecture(self) -> None:
        """Check fields that depend on one another; called by the strict dataclass machinery."""
        if not 1 <= self.num_leads <= 12:
            raise ValueError(f"num_leads must be 1 to 12, found: {self.num_leads}")
        if not len(self.conv_dim) == len(self.conv_kernel) == len(self.conv_stride) > 0:
            raise ValueError(
                "conv_dim, conv_kernel and conv_stride must have the same length of at least 1, found lengths "
                f"{len(self.conv_dim)}, {len(self.conv_kernel)} and {len(self.conv_stride)}"
            )
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "num_conv_pos_embeddings",
            "num_conv_pos_embedding_groups",
            "num_codevectors_per_group",
            "num_codevector_groups",
            "proj_codevector_dim",
            "num_negatives",
            "mask_time_length",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found: {getattr(self, name)}")
        for name in (
            "layer_norm_eps",
            "contrastive_logits_temperature",
            "cmsc_temperature",
            "min_gumbel_temperature",
            "max_gumbel_temperature",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, found: {getattr(self, name)}")
        for name in ("conv_dim", "conv_kernel", "conv_stride"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must hold numbers of at least 1, found: {list(getattr(self, name))}")
        self._check_multiple("hidden_size", "num_attention_heads")
        self._check_multiple("hidden_size", "num_conv_pos_embedding_groups")
        self._check_multiple("codevector_dim", "num_codevector_groups")
        if self.feat_extract_norm not in ("group", "layer"):
            raise ValueError(f"feat_extract_norm must be 'group' or 'layer', found: {self.feat_extract_norm!r}")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, found: {self.pooling!r}")
        for name in (
            "hidden_dropout",
            "activation_dropout",
            "attention_dropout",
            "feat_proj_dropout",
            "feat_quantizer_dropout",
            "final_dropout",
            "layerdrop",
            "mask_time_prob",
        ):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, found: {getattr(self, name)}")

    def validate_labels(self) -> None:
        """Check the fields that hold a value for each label; called by the strict dataclass machinery."""
        if self.pos_weight is not None:
            if len(self.pos_weight) != self.num_labels:
                raise ValueError(
                    f"pos_weight must have one entry per label ({self.num_labels}), found {len(self.pos_weight)}"
                )
            if not all(math.isfinite(weight) and weight > 0 for weight in self.pos_weight):
                raise ValueError(f"pos_weight must be finite and positive, found: {list(self.pos_weight)}")
        labels = set(_label_names(self.id2label, self.label2id) or ())
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(f"problem_type must be one of {PROBLEM_TYPES}, found: {self.problem_type!r}")
        for name in ("label_aggregation", "label_thresholds", "label_calibration", "label_notes"):
            unknown = sorted((getattr(self, name) or {}).keys() - labels)
            if unknown:
                raise ValueError(f"{name} names labels that id2label does not have: {unknown}")
        for label, how in (self.label_aggregation or {}).items():
            if how not in LABEL_AGGREGATIONS:
                raise ValueError(f"label_aggregation of {label!r} must be one of {LABEL_AGGREGATIONS}, found: {how!r}")
        for label, threshold in (self.label_thresholds or {}).items():
            if not 0.0 <= threshold <= 1.0:
                raise ValueError(f"label_thresholds of {label!r} must be between 0 and 1, found: {threshold}")
        for label, fit in (self.label_calibration or {}).items():
            if set(fit) != {"slope", "intercept"} or not all(map(math.isfinite, fit.values())):
                raise ValueError(
                    f"label_calibration of {label!r} must be finite numbers 'slope' and 'intercept', found: {fit}"
                )

    def _check_multiple(self, name: str, divisor: str) -> None:
        if getattr(self, name) % getattr(self, divisor):
            raise ValueError(
                f"{name} must be a multiple of {divisor}, found: {getattr(self, name)} and {getattr(self, divisor)}"
            )

    @property
    def num_labels(self) -> int:
        """Number of the classifier's outputs."""
        return len(self.id2label or ())

    @num_labels.setter
    def num_labels(self, num_labels: int) -> None:
        if num_labels != self.num_labels:
            self._change_labels(_label_names(num_labels=num_labels))

    @property
    def label_names(self) -> list[str]:
        """Label names in the order of the classifier's outputs."""
        return _label_names(self.id2label) or []

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples from the start of one frame to the start of the next."""
        return math.prod(self.conv_stride)

    def num_frames(self, num_samples: CountT, num_conv_layers: int | None = None) -> CountT:
        """
        Return the number of frames for `num_samples` samples, an integer or a tensor of integers.

        With `num_conv_layers`, only that many convolutions are applied.
        """
        for kernel, stride in list(zip(self.conv_kernel, self.conv_stride, strict=True))[:num_conv_layers]:
            num_samples = (num_samples - kernel) // stride + 1
        return num_samples

    @property
    def min_samples(self) -> int:
        """Smallest number of samples that gives a frame."""
        samples = 1
        for kernel, stride in zip(reversed(self.conv_kernel), reversed(self.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def aggregations(self) -> Sequence[str]:
        """Return the aggregation of every label, in output order."""
        chosen = self.label_aggregation or {}
        return [chosen.get(label, "mean") for label in self.label_names]


__all__ = ["ECGFMConfig"]
