"""The settings that only training needs: regularisation, masking, the objectives."""

import ast
from collections.abc import Callable, Mapping
from typing import Any

from ..configuration_ecgfm import ECGFMConfig
from .tensor_facts import TensorFacts

_PROBLEM_TYPES = {
    "binary_cross_entropy_with_logits": "multi_label_classification",
    "cross_entropy": "single_label_classification",
    "mse": "regression",
}


class TrainingSettings:
    """
    Translates one checkpoint's training settings into fields of [`ECGFMConfig`].

    Args:
        model_cfg, criterion_cfg (`Mapping[str, Any]`): fairseq-signals settings as plain values.
        facts ([`TensorFacts`])
        warn (`Callable[[str], None]`): Told about every setting that cannot be carried over as it is.
    """

    def __init__(
        self,
        model_cfg: Mapping[str, Any],
        criterion_cfg: Mapping[str, Any],
        facts: TensorFacts,
        warn: Callable[[str], None],
    ):
        self.model_cfg = model_cfg
        self.criterion_cfg = criterion_cfg
        self.facts = facts
        self.warn = warn

    def regularisation(self) -> dict[str, Any]:
        """Dropouts and the gradient multiplier; where the file lacks one, the published run's, or 0 in fine-tuning."""
        pretraining = self.facts.kind == "pretraining"
        return {
            ours: self._number(self.model_cfg, theirs, default if pretraining else 0.0)
            for theirs, ours, default in (
                ("dropout", "hidden_dropout", 0.1),
                ("attention_dropout", "attention_dropout", 0.1),
                ("activation_dropout", "activation_dropout", 0.0),
                ("dropout_input", "feat_proj_dropout", 0.1),
                ("dropout_features", "feat_quantizer_dropout", 0.1),
                ("final_dropout", "final_dropout", 0.0),
                ("encoder_layerdrop", "layerdrop", 0.0),
                ("feature_grad_mult", "feature_grad_multiplier", 0.1),
            )
        }

    def masking(self) -> dict[str, Any]:
        """Span masking. The mask embedding decides: the model has one exactly where `mask_time_prob > 0`."""
        said = self._number(self.model_cfg, "mask_prob", 0.0)
        length = int(self._number(self.model_cfg, "mask_length", 10))
        if not self.facts.has_mask_embedding:
            if said > 0 and self.facts.kind == "pretraining":
                self.warn(f"mask_prob says {said}, the tensors have no mask embedding; the tensors win")
            return {"mask_time_prob": 0.0, "mask_time_length": length}
        if not said:
            said = ECGFMConfig.mask_time_prob
            self.warn(f"the tensors have a mask embedding, but no mask_prob is set; {said} is used")
        if self.facts.kind == "classification":
            self.warn("it was fine-tuned with masking (mask_prob); this package never masks in classification")
        return {"mask_time_prob": said, "mask_time_length": length}

    def pretraining_objective(self) -> dict[str, Any]:
        """Weights and temperatures of the objective's parts."""
        cfg, criterion = self.model_cfg, self.criterion_cfg
        fields: dict[str, Any] = {
            "contrastive_logits_temperature": self._number(cfg, "logit_temp", 0.1),
            "num_negatives": int(self._number(cfg, "num_negatives", 100)),
            "cmsc_temperature": self._number(criterion, "temp", 0.1),
            "cmsc_loss_weight": self._number(criterion, "cmsc_weights", 1.0),
        }
        if (criterion.get("_name") or cfg.get("_name")) == "wav2vec2":
            fields["cmsc_loss_weight"] = 0.0
            self.warn("it was pretrained without CMSC (wav2vec2); cmsc_loss_weight is 0")
        temperatures = self._numbers(cfg.get("latent_temp"))
        if temperatures is not None and len(temperatures) == 3:
            names = ("max_gumbel_temperature", "min_gumbel_temperature", "gumbel_temperature_decay")
            fields |= dict(zip(names, temperatures, strict=True))
        elif cfg.get("latent_temp") is not None:
            self.warn(f"latent_temp is {cfg['latent_temp']!r}, not three numbers; the published ones are used")
        if "loss_weights" in criterion:
            fields |= self._extra_loss_weights(criterion["loss_weights"])
        if criterion.get("all_gather") or cfg.get("all_gather"):
            self.warn("all_gather is set; it concerns pretraining on several devices and is not carried over")
        return fields

    def _extra_loss_weights(self, value: Any) -> dict[str, Any]:
        weights = [0.0] if value is None else self._numbers(value)
        if weights is None or len(weights) not in (1, 2):
            self.warn(f"criterion.loss_weights is {value!r}, not two numbers; the published ones are used")
            return {}
        # One weight stands for both terms: code diversity, then the penalty on large features.
        return {"diversity_loss_weight": weights[0], "feature_penalty_weight": weights[-1]}

    def classifier_loss(self) -> dict[str, Any]:
        """The kind of loss, and its `pos_weight`."""
        criterion = self.criterion_cfg.get("_name")
        if criterion is not None and str(criterion) not in _PROBLEM_TYPES:
            self.warn(f"criterion {criterion!r} is not implemented here; multi-label is assumed")
        problem_type = _PROBLEM_TYPES.get(str(criterion), "multi_label_classification")
        multi_label = problem_type == "multi_label_classification"
        return {"problem_type": problem_type, "pos_weight": self._pos_weight() if multi_label else None}

    def _pos_weight(self) -> list[float] | None:
        count = self.facts.num_labels
        value = self.criterion_cfg.get("pos_weight")
        if value is None:
            return None
        weights = self._numbers(value)
        if weights is not None and len(weights) == 1:
            weights = weights * count  # the loss broadcasts it
        if weights is None or len(weights) != count or not all(_is_finite(w) and w > 0 for w in weights):
            found = f"{len(weights)} of them" if weights is not None else "no list of numbers"
            self.warn(
                f"criterion.pos_weight is left out: it must be {count} finite positive numbers, found {found}: "
                f"{str(weights)[:80]}"
            )
            return None
        return [float(weight) for weight in weights]

    def _number(self, settings: Mapping[str, Any], name: str, default: float) -> float:
        value = settings.get(name)
        if value is None:
            return default
        if not _is_finite(value):
            self.warn(f"{name} is {value!r}, which is no finite number; {default} is used")
            return default
        return value

    def _numbers(self, value: Any) -> list[float] | None:
        """A list of numbers, which old files may hold as text."""
        if isinstance(value, str) and len(value) <= 10_000:
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                return None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = [value]
        if not isinstance(value, (list, tuple)):
            return None
        return list(value) if all(type(number) in (int, float) for number in value) else None


def _is_finite(value: Any) -> bool:
    # A whole number beyond the range of floats is finite to Python, but no setting.
    return type(value) in (int, float) and abs(value) < 1e300
