"""The beginning of a fine-tuning run: a classifier and its feature extractor from the settings."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.modeling_utils import PreTrainedModel

from ..configuration_ecgfm import LABEL_FIELDS, ECGFMConfig
from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..modeling_ecgfm import ECGFMForMultiLabelClassification, ECGFMModel
from .masking import derived_seed
from .settings import FINETUNED_MODEL, FinetuneSettings, SettingsError
from .start import IMPOSSIBLE, reason_of

_MASK_EMBEDDING = "masked_spec_embed"


def build_extractor(settings: FinetuneSettings) -> ECGFMFeatureExtractor:
    """
    The feature extractor of `init_from`, or a new one, with the policies of `feature_extractor`.

    Raises:
        [`SettingsError`]: impossible policies, a folder without one.
    """
    try:
        if settings.init_from is None:
            return ECGFMFeatureExtractor(**settings.feature_extractor)
        return ECGFMFeatureExtractor.from_pretrained(_folder(settings), **settings.feature_extractor)
    except (*IMPOSSIBLE, OSError) as error:
        raise SettingsError(f"feature_extractor: {reason_of(error)}") from None


def build_classifier(
    settings: FinetuneSettings, label_names: Sequence[str], pos_weight: Sequence[float] | None = None
) -> ECGFMForMultiLabelClassification:
    """
    A classifier (float32, in training mode) for these labels: the encoder of `init_from` or a new one, and the head of
    `init_from` where that is a classifier of the same labels and kind (not of regression), otherwise a new one.

    What a folder says of calibration and thresholds is left out: it belongs to the weights that it came with.

    Raises:
        [`SettingsError`]: `init_from` is no model folder or lacks weights; impossible values in `model`.
    """
    labels = {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: number for number, name in enumerate(label_names)},
        "problem_type": settings.problem_type,
        "pos_weight": None if pos_weight is None else list(pos_weight),
        # Nothing is masked, so there is no mask embedding, as in the original's fine-tuned files.
        "mask_time_prob": 0.0,
    }
    torch.manual_seed(derived_seed(settings.seed, "initialisation"))
    if settings.init_from is None:
        try:
            config = getattr(ECGFMConfig, settings.architecture)(**settings.model, **labels)
        except IMPOSSIBLE as error:
            raise SettingsError(f"model: {reason_of(error)}") from None
        _aggregate(config, settings)
        return ECGFMForMultiLabelClassification(config).train()
    return _load(_folder(settings), settings, labels).train()


def _folder(settings: FinetuneSettings) -> Path:
    folder = Path(settings.init_from)
    if not (folder / "config.json").is_file():
        hint = ": `ecgfm convert` makes one of a fairseq-signals checkpoint" if folder.suffix == ".pt" else ""
        raise SettingsError(f"init_from: {folder} is no model folder{hint}")
    return folder


def _load(folder: Path, settings: FinetuneSettings, labels: dict) -> ECGFMForMultiLabelClassification:
    try:
        config = ECGFMConfig.from_pretrained(folder)
    except (*IMPOSSIBLE, OSError) as error:
        raise SettingsError(f"init_from: {folder}: {reason_of(error)}") from None
    for name, value in settings.model.items():
        stored = getattr(config, name)
        stored = list(stored) if isinstance(stored, (list, tuple)) else stored
        if name not in FINETUNED_MODEL and stored != value:
            raise SettingsError(f"init_from: {folder} has {name}={stored!r}, the settings say model.{name}={value!r}")
    kind = config.problem_type or "multi_label_classification"
    same_labels = config.label_names == list(labels["id2label"].values())
    # A head of regression gives its targets' own units, while training standardises them anew.
    same_task = same_labels and kind == settings.problem_type != "regression"
    about_labels = dict.fromkeys(LABEL_FIELDS)
    if same_task:
        about_labels |= {"label_aggregation": config.label_aggregation, "label_notes": config.label_notes}
    try:
        for changes in (dict.fromkeys(LABEL_FIELDS), settings.model, {**about_labels, **labels}):
            for name, value in changes.items():
                setattr(config, name, value)
        config.validate()
        _aggregate(config, settings)
        if same_task:
            return _checked(ECGFMForMultiLabelClassification, folder, config)
        model = ECGFMForMultiLabelClassification(config)
        model.ecgfm.load_state_dict(_checked(ECGFMModel, folder, config).state_dict())
        return model
    except SettingsError:
        raise
    except (*IMPOSSIBLE, OSError, RuntimeError) as error:
        raise SettingsError(f"init_from: {folder}: {reason_of(error)}") from None


def _checked(kind: type[PreTrainedModel], folder: Path, config: ECGFMConfig) -> PreTrainedModel:
    """The weights of a folder, all of them; a mask embedding is left."""
    model, loading = kind.from_pretrained(folder, config=config, dtype=torch.float32, output_loading_info=True)
    surplus = [key for key in loading["unexpected_keys"] if not key.endswith(_MASK_EMBEDDING)]
    for what, keys in (("lack", loading["missing_keys"]), ("hold besides", surplus)):
        if keys:
            raise SettingsError(f"init_from: {folder} does not fit its config: its weights {what} {sorted(keys)[0]}")
    return model


def _aggregate(config: ECGFMConfig, settings: FinetuneSettings) -> None:
    if not settings.label_aggregation:
        return
    try:
        config.label_aggregation = dict(settings.label_aggregation)
        config.validate()
    except IMPOSSIBLE as error:
        raise SettingsError(f"label_aggregation: {reason_of(error)}") from None


__all__ = ["build_classifier", "build_extractor"]
