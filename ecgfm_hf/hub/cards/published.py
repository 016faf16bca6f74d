"""
The cards of the published checkpoints: `published/NAME.yaml` has what people have found out, and the label tables, the
sizes and the code come from this package's own definitions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ...configuration_ecgfm import ECGFMConfig
from ...utils.errors import ECGFMError
from .building import licence_section
from .card import ECG_FM_CITATION, PUBLISHED, Card, card_metadata, pipeline_tag
from .details import CardDetails
from .markdown import bullets, paragraphs, plain, table
from .model_sections import CLASSIFIER, OUT_OF_SCOPE, description, how_to_use, input_section, outputs_section
from .provenance_sections import procedure_section

_FOLDER = Path(__file__).with_name("published")


class PublishedCardError(ECGFMError, ValueError):
    """A model that is not the published checkpoint whose card was asked for. The message says what differs."""


@dataclass
class PublishedCheckpoint:
    """
    What is known of a published checkpoint.

    Args:
        architecture (`str`): The class that it becomes.
        folder (`str`): What to call the converted folder in code.
        details ([`CardDetails`])
        training_procedure, evaluation, conversion (`str`): Sections, Markdown.
        label_set (`str`, *optional*): A name of `LABEL_SETS`.
        recordings (`dict[str, int]`): By split.
        positives (`dict[str, list[int]]`): By label, in the order of `recordings`.
        balanced_pos_weight (`bool`): Whether it was trained with negatives / positives of `recordings["train"]`.
    """

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
        """That of the converted model, as far as the card tells it."""
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
            label2id={name: place for place, name in enumerate(labels.names)},
            problem_type="multi_label_classification",
            mask_time_prob=0.0,
            label_aggregation=labels.aggregation,
            label_notes=labels.notes,
            pos_weight=weights,
        )


def published_names() -> list[str]:
    """The published checkpoints that there is a card of."""
    return sorted(PUBLISHED)


def read_published(name: str) -> PublishedCheckpoint:
    """
    What is known of a published checkpoint.

    Raises:
        [`PublishedCardError`]: there is none of this name.
    """
    if name not in PUBLISHED:
        raise PublishedCardError(f"there is no published checkpoint {name!r} (known: {', '.join(published_names())})")
    content = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    own = {key: content.pop(key) for key in list(content) if key in PublishedCheckpoint.__dataclass_fields__}
    return PublishedCheckpoint(details=CardDetails.of(content), **own)


def published_card(name: str, repo_id: str | None = None) -> str:
    """
    The card of a published checkpoint, before anything was converted: what `model_cards/NAME.md` holds.

    Args:
        name (`str`): Such as `"mimic_iv_ecg_finetuned"`.
        repo_id (`str`, *optional*): The repository that the card is for; names the model in code.

    Raises:
        [`PublishedCardError`]: there is none of this name.
    """
    published = read_published(name)
    config = published.config()
    return _card(name, published, config, count_parameters(config, published.architecture), repo_id, None)


def converted_card(name: str, facts: Mapping[str, Any], model: Any) -> str:
    """
    The card of a published checkpoint that was converted, with what conversion noted.

    Args:
        name (`str`)
        facts (mapping): Of the conversion, as in `provenance.json`.
        model: That it gave.

    Raises:
        [`PublishedCardError`]: the model has another class, size or labels: another one, or with names of its own.
    """
    published = read_published(name)
    expected, config = published.config(), model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    should = count_parameters(expected, published.architecture)
    for what, found, wanted in (
        ("a model of the class", type(model).__name__, published.architecture),
        ("parameters", f"{parameters:,}", f"{should:,}"),
    ):
        if found != wanted:
            raise PublishedCardError(f"this is not {name}: expected {what} {wanted}, found {found}")
    if published.label_set is not None and config.label_names != expected.label_names:
        raise PublishedCardError(
            f"the card of {name} is for its own labels: convert with --labels {published.label_set}"
        )
    return _card(name, published, config, parameters, None, facts)


def count_parameters(config: ECGFMConfig, architecture: str) -> int:
    """Of a model that is not built."""
    import torch

    from ... import modeling_ecgfm

    with torch.device("meta"):
        model = getattr(modeling_ecgfm, architecture)(config)
    return sum(parameter.numel() for parameter in model.parameters())


def _card(
    name: str,
    published: PublishedCheckpoint,
    config: ECGFMConfig,
    parameters: int,
    repo_id: str | None,
    facts: Mapping[str, Any] | None,
) -> str:
    from ...feature_extraction_ecgfm import ECGFMFeatureExtractor

    details, architecture = published.details, published.architecture
    extractor = ECGFMFeatureExtractor()
    repository = PUBLISHED[name]
    converted = _command(name, published) if facts is None else procedure_section([{"step": "conversion", **facts}])
    return Card(
        metadata=card_metadata(
            name=name,
            license=details.license,
            pipeline_tag=pipeline_tag(architecture == CLASSIFIER),
            tags=details.tags,
            base_model=repository,
            datasets=details.training_datasets,
        ),
        name=f"ECG-FM: {plain(name)}",
        summary=details.summary or "",
        description=description(
            config,
            architecture,
            parameters,
            ("Converted from", f"`{name}.pt` of [{repository}](https://huggingface.co/{repository})"),
        ),
        intended_use=details.intended_use or "",
        out_of_scope_use=paragraphs(details.out_of_scope_use, bullets(OUT_OF_SCOPE)),
        how_to_use=how_to_use(architecture, repo_id or published.folder, extractor.lead_names),
        input=input_section(extractor),
        outputs=outputs_section(config, architecture, extractor.sampling_rate),
        training_data=paragraphs(details.training_data, _counts(published)),
        training_procedure=paragraphs(published.training_procedure, converted, published.conversion),
        evaluation=published.evaluation,
        limitations=details.limitations or "",
        licence=licence_section(details),
        citation=f"Cite the authors of the model:\n\n```bibtex\n{ECG_FM_CITATION}\n```",
    ).render()


def _command(name: str, published: PublishedCheckpoint) -> str:
    labels = "" if published.label_set is None else f" --labels {published.label_set}"
    return (
        f"### Conversion\n\n```bash\nhf download {PUBLISHED[name]} {name}.pt --local-dir .\n"
        f"ecgfm convert {name}.pt {published.folder}{labels} --verify --card {name}\n```"
    )


def _counts(published: PublishedCheckpoint) -> str | None:
    if not published.positives:
        return None
    splits = list(published.recordings)
    columns = ["label", *(["positive"] if splits == ["all"] else [f"positive in {split}" for split in splits])]
    total = ["**recordings**", *(f"{number:,}" for number in published.recordings.values())]
    rows = [[plain(name), *(f"{number:,}" for number in counts)] for name, counts in published.positives.items()]
    return table(columns, [total, *rows])


__all__ = [
    "PublishedCardError",
    "PublishedCheckpoint",
    "converted_card",
    "count_parameters",
    "published_card",
    "published_names",
    "read_published",
]
