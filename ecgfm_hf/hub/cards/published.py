"""
Cards of the published checkpoints. `published/NAME.yaml` has their sources, labels' counts and limits in words; label
tables, sizes and code come from this package's own definitions.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ...configuration_ecgfm import ECGFMConfig
from ...fairseq.label_sets import PUBLISHED
from ...utils.errors import ECGFMError
from .details import CardDetails
from .model_card import ModelSummary, fill_template

if TYPE_CHECKING:
    from ...modeling_ecgfm import ECGFMPreTrainedModel

_FOLDER = Path(__file__).with_name("published")


class PublishedCardError(ECGFMError, ValueError):
    """A model that is not the published checkpoint of the card. The message names the difference."""


@dataclass
class PublishedCheckpoint:
    """
    Facts about a published checkpoint.

    Args:
        name (`str`): The file's, without its ending.
        architecture (`str`): The class of the converted model.
        folder (`str`): Name of the converted folder in the card's code.
        details ([`CardDetails`])
        training_procedure, evaluation, conversion (`str`): Sections, Markdown.
        label_set (`str`, *optional*): A name of `LABEL_SETS`.
        recordings (`dict[str, int]`): By split.
        positives (`dict[str, list[int]]`): By label, in the order of `recordings`.
        balanced_pos_weight (`bool`): Whether it was trained with negatives / positives of `recordings["train"]`.
    """

    name: str
    architecture: str
    folder: str
    details: CardDetails
    training_procedure: str
    evaluation: str
    conversion: str
    label_set: str | None = None
    recordings: dict[str, int] = field(default_factory=dict)
    positives: dict[str, list[int]] = field(default_factory=dict)
    balanced_pos_weight: bool = False

    def config(self) -> ECGFMConfig:
        """Return the config of the converted model, with the values that the card shows."""
        if self.label_set is None:
            return ECGFMConfig.base()
        from ...fairseq.label_sets import LABEL_SETS

        labels = LABEL_SETS[self.label_set]
        if self.positives.keys() != set(labels.names):
            raise ValueError(f"positives and label set {self.label_set} name different labels")
        weights = None
        if self.balanced_pos_weight:
            weights = [self.recordings["train"] / self.positives[name][0] - 1 for name in labels.names]
        return ECGFMConfig.base(
            id2label=dict(enumerate(labels.names)),
            label2id={name: index for index, name in enumerate(labels.names)},
            problem_type="multi_label_classification",
            mask_time_prob=0.0,
            label_aggregation=labels.aggregation,
            label_notes=labels.notes,
            pos_weight=weights,
        )


def published_names() -> list[str]:
    """Return the names of the published checkpoints that have a card."""
    return sorted(PUBLISHED)


def read_published(name: str) -> PublishedCheckpoint:
    """
    Return the facts about a published checkpoint.

    Raises:
        [`PublishedCardError`]: an unknown name.
    """
    if name not in PUBLISHED:
        raise PublishedCardError(f"there is no published checkpoint {name!r} (known: {', '.join(published_names())})")
    content = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    own = {key: content.pop(key) for key in list(content) if key in PublishedCheckpoint.__dataclass_fields__}
    return PublishedCheckpoint(name=name, details=CardDetails.of(content), **own)


def published_card(name: str, repo_id: str | None = None) -> str:
    """
    Return the card of a published checkpoint without a conversion, as in `model_cards/NAME.md`.

    Args:
        name (`str`): Such as `"mimic_iv_ecg_finetuned"`.
        repo_id (`str`, *optional*): The repository that the card is for; names the model in code.

    Raises:
        [`PublishedCardError`]: an unknown name.
    """
    published = read_published(name)
    config = published.config()
    return _card(published, config, count_parameters(config, published.architecture), repo_id)


def converted_card(name: str, facts: Mapping[str, Any], model: "ECGFMPreTrainedModel") -> str:
    """
    Return the card of a published checkpoint that was converted, with the provenance of the conversion.

    Args:
        name (`str`)
        facts (mapping): The step of the conversion, as in `provenance.json`.
        model ([`ECGFMPreTrainedModel`]): The converted model.

    Raises:
        [`PublishedCardError`]: the model has another class, another size or other labels.
    """
    published = read_published(name)
    expected, config = published.config(), model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    expected_parameters = count_parameters(expected, published.architecture)
    for what, found, wanted in (
        ("a model of the class", type(model).__name__, published.architecture),
        ("parameters", f"{parameters:,}", f"{expected_parameters:,}"),
    ):
        if found != wanted:
            raise PublishedCardError(f"this is not {name}: expected {what} {wanted}, found {found}")
    if published.label_set is not None and config.label_names != expected.label_names:
        raise PublishedCardError(
            f"the card of {name} is for its own labels: convert with --labels {published.label_set}"
        )
    return _card(published, config, parameters, None, [{"step": "conversion", **facts}])


def count_parameters(config: ECGFMConfig, architecture: str) -> int:
    """Count the parameters of a model without allocating them."""
    import torch

    from ... import modeling_ecgfm

    with torch.device("meta"):
        model = getattr(modeling_ecgfm, architecture)(config)
    return sum(parameter.numel() for parameter in model.parameters())


def _card(
    published: PublishedCheckpoint,
    config: ECGFMConfig,
    parameters: int,
    repo_id: str | None,
    steps: Sequence[Mapping[str, Any]] = (),
) -> str:
    from ...feature_extraction_ecgfm import ECGFMFeatureExtractor

    model = ModelSummary(config, ECGFMFeatureExtractor(), published.architecture, parameters, steps)
    details = dataclasses.replace(published.details, base_model=PUBLISHED[published.name])
    return fill_template(model, details, f"ECG-FM: {published.name}", repo_id or published.folder, published)


__all__ = [
    "PublishedCardError",
    "PublishedCheckpoint",
    "converted_card",
    "count_parameters",
    "published_card",
    "published_names",
    "read_published",
]
