"""The model that a run begins with, and its feature extractor: from a folder, or with random weights."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassError

from ..configuration_ecgfm import LABEL_FIELDS, ECGFMConfig
from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..model_folder import ModelFolderError, load_feature_extractor, load_model
from ..modeling_ecgfm import (
    ECGFMForMultiLabelClassification,
    ECGFMForPreTraining,
    ECGFMModel,
    ECGFMPreTrainedModel,
)
from .settings import FINETUNED_MODEL, FinetuneSettings, PretrainSettings, RunSettings, SettingsError, derived_seed

ModelT = TypeVar("ModelT", bound=ECGFMPreTrainedModel)
logger = logging.getLogger(__name__)

# Errors for impossible values, of transformers and huggingface_hub.
_IMPOSSIBLE = (TypeError, ValueError, StrictDataclassError)
# Fields of the config that weights do not depend on: they may differ from the folder that a run begins from.
_FREE_IN_PRETRAINING = {
    "hidden_dropout",
    "activation_dropout",
    "attention_dropout",
    "feat_proj_dropout",
    "feat_quantizer_dropout",
    "layerdrop",
    "mask_time_prob",
    "mask_time_length",
    "mask_time_min_masks",
    "feature_grad_multiplier",
    "num_negatives",
    "contrastive_logits_temperature",
    "max_gumbel_temperature",
    "min_gumbel_temperature",
    "gumbel_temperature_decay",
    "diversity_loss_weight",
    "feature_penalty_weight",
    "cmsc_loss_weight",
    "cmsc_temperature",
}


def build_pretraining_model(
    settings: PretrainSettings, checkpoint: Path | None = None
) -> tuple[ECGFMForPreTraining, ECGFMFeatureExtractor]:
    """
    Build the model (float32, in training mode) and the feature extractor of a pretraining run.

    Args:
        settings ([`PretrainSettings`])
        checkpoint (`Path`, *optional*): Of this run, to resume from; otherwise `init_from`, or random weights.

    Raises:
        [`SettingsError`]: `init_from` is no pretraining folder, or contradicts `model`; impossible values in `model` or
            `feature_extractor`.
    """
    if checkpoint is None and settings.init_from is None:
        torch.manual_seed(derived_seed(settings.seed, "initialisation"))
        model = ECGFMForPreTraining(_new_config(settings))
        extractor = build_extractor(settings)
    else:
        folder = _model_folder(settings) if checkpoint is None else checkpoint
        prefix = "init_from: " if checkpoint is None else ""
        config = _stored_config(folder, settings.model, _FREE_IN_PRETRAINING, prefix)
        try:
            for name in _FREE_IN_PRETRAINING & settings.model.keys():
                setattr(config, name, settings.model[name])
            config.validate()
            model = load_model(folder, ECGFMForPreTraining, config=config)
        except ModelFolderError as error:
            raise SettingsError(f"{prefix}no pretraining model (a fine-tuned one has no quantizer): {error}") from None
        except _IMPOSSIBLE as error:
            raise SettingsError(f"{prefix}{folder}: {reason_of(error)}") from None
        extractor = build_extractor(settings, folder)
    check_leads(model.config, extractor)
    if model.config.mask_time_prob <= 0:
        raise SettingsError("model.mask_time_prob is 0, but pretraining predicts masked frames")
    return prepare_for_training(model, settings), extractor


def build_classifier(
    settings: FinetuneSettings, label_names: Sequence[str], pos_weight: Sequence[float] | None = None
) -> ECGFMForMultiLabelClassification:
    """
    Build a classifier (float32, in training mode) for these labels.

    The encoder comes from `init_from`, or has random weights. The head comes from `init_from` if that is a classifier
    of the same labels, kind (not of regression) and pooling; otherwise it is new. Calibration and thresholds of a
    folder are dropped: they belong to the weights that they came with.

    Raises:
        [`SettingsError`]: `init_from` is no model folder or misses weights; impossible values in `model`.
    """
    labels = {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: number for number, name in enumerate(label_names)},
        "problem_type": settings.problem_type,
        "pos_weight": None if pos_weight is None else list(pos_weight),
        # Nothing is masked, so there is no mask embedding, as in fine-tuned models of fairseq-signals.
        "mask_time_prob": 0.0,
    }
    torch.manual_seed(derived_seed(settings.seed, "initialisation"))
    if settings.init_from is None:
        config = _new_config(settings, **labels, pooling=settings.pooling or "mean")
        _set_aggregation(config, settings)
        return ECGFMForMultiLabelClassification(config).train()
    folder = _model_folder(settings)
    config = _stored_config(folder, settings.model, set(FINETUNED_MODEL), "init_from: ")
    kind = config.problem_type or "multi_label_classification"
    # A head of regression gives its targets' own units, while training standardises them again.
    stored_head = f"{len(config.label_names)} labels, {kind}, pooling={config.pooling}"
    labels["pooling"] = settings.pooling or config.pooling
    same_head = config.label_names == list(label_names) and kind == settings.problem_type != "regression"
    same_head = same_head and labels["pooling"] == config.pooling
    about_labels: dict[str, Any] = dict.fromkeys(LABEL_FIELDS)
    if same_head:
        about_labels |= {"label_aggregation": config.label_aggregation, "label_notes": config.label_notes}
    try:
        for changes in (dict.fromkeys(LABEL_FIELDS), settings.model, {**about_labels, **labels}):
            for name, value in changes.items():
                setattr(config, name, value)
        config.validate()
        _set_aggregation(config, settings)
        if same_head:
            return load_model(folder, ECGFMForMultiLabelClassification, config=config).train()
        if ECGFMForMultiLabelClassification.__name__ in (config.architectures or ()):
            logger.warning("init_from: the head of %s (%s) does not fit this run: its head is new", folder, stored_head)
        model = ECGFMForMultiLabelClassification(config)
        model.ecgfm.load_state_dict(load_model(folder, ECGFMModel, config=config).state_dict())
        return model.train()
    except SettingsError:
        raise
    except _IMPOSSIBLE as error:
        raise SettingsError(f"init_from: {folder}: {reason_of(error)}") from None


def build_extractor(settings: RunSettings, folder: Path | None = None) -> ECGFMFeatureExtractor:
    """
    Build the feature extractor of `folder`, of `init_from`, or a new one, with the policies of `feature_extractor`.

    Raises:
        [`SettingsError`]: impossible policies, or a folder without a feature extractor.
    """
    if folder is None and settings.init_from is not None:
        folder = _model_folder(settings)
    try:
        if folder is None:
            return ECGFMFeatureExtractor(**settings.feature_extractor)
        return load_feature_extractor(folder, **settings.feature_extractor)
    except (*_IMPOSSIBLE, OSError) as error:
        raise SettingsError(f"feature_extractor: {reason_of(error)}") from None


def check_leads(config: ECGFMConfig, extractor: ECGFMFeatureExtractor) -> None:
    """Raise [`SettingsError`] where the model takes another number of leads than the feature extractor gives."""
    if len(extractor.lead_names) != config.num_leads:
        raise SettingsError(
            f"the model takes {config.num_leads} leads, the feature extractor gives {len(extractor.lead_names)}: set "
            "model.num_leads or feature_extractor.lead_names"
        )


def prepare_for_training(model: ModelT, settings: RunSettings) -> ModelT:
    """Apply `gradient_checkpointing` and `torch_compile` to a model, and put it in training mode."""
    if settings.gradient_checkpointing:
        # Its newer name; transformers before 5.23 has only the other.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    if settings.torch_compile:
        # It is most of the work, and its shapes never change, while the number of masked frames does.
        encoder = model.get_submodule("ecgfm.encoder")
        encoder.compile()
    return model.train()


def reason_of(error: Exception) -> str:
    """Return an error's message, without the function's name that huggingface_hub prepends to a config's."""
    return str(error.__cause__ if isinstance(error, StrictDataclassClassValidationError) else error)


def _new_config(settings: RunSettings, **labels: Any) -> ECGFMConfig:
    try:
        return getattr(ECGFMConfig, settings.architecture)(**settings.model, **labels)
    except _IMPOSSIBLE as error:
        raise SettingsError(f"model: {reason_of(error)}") from None


def _model_folder(settings: RunSettings) -> Path:
    folder = Path(settings.init_from or "")
    if not (folder / "config.json").is_file():
        hint = ": `ecgfm convert` makes one of a fairseq-signals checkpoint" if folder.suffix == ".pt" else ""
        raise SettingsError(f"init_from: {folder} is no model folder{hint}")
    return folder


def _stored_config(folder: Path, model: Mapping[str, Any], free: set[str], prefix: str) -> ECGFMConfig:
    """Read the config of a folder. [`SettingsError`] where `model` contradicts what its weights depend on."""
    try:
        config = ECGFMConfig.from_pretrained(folder)
    except (*_IMPOSSIBLE, OSError) as error:
        raise SettingsError(f"{prefix}{folder}: {reason_of(error)}") from None
    for name, value in model.items():
        stored = getattr(config, name)
        stored = list(stored) if isinstance(stored, (list, tuple)) else stored
        if name not in free and stored != value:
            raise SettingsError(f"{prefix}{folder} has {name}={stored!r}, the settings have model.{name}={value!r}")
    return config


def _set_aggregation(config: ECGFMConfig, settings: FinetuneSettings) -> None:
    if not settings.label_aggregation:
        return
    try:
        config.label_aggregation = dict(settings.label_aggregation)
        config.validate()
    except _IMPOSSIBLE as error:
        raise SettingsError(f"label_aggregation: {reason_of(error)}") from None


__all__ = ["build_classifier", "build_extractor", "build_pretraining_model", "check_leads", "prepare_for_training"]
