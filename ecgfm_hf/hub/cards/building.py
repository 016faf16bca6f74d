"""Build the card of a model folder from its provenance, an evaluation, and the details that a person gives."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id

from ...configuration_ecgfm import ECGFMConfig
from ...evaluation import METRICS_FILE
from ...provenance import PROVENANCE_FILE, labels_with_withheld_counts, read_steps, splits_of, weights_digest
from ...utils.errors import ECGFMError
from .card import ECG_FM_CITATION, PUBLISHED, Card, card_metadata, pipeline_tag
from .details import CardDetails, placeholder
from .evaluation_sections import (
    METRIC_IDS,
    NOT_EVALUATED,
    evaluation_limits,
    evaluation_results,
    evaluation_section,
)
from .markdown import bullets, code, paragraphs, plain
from .model_sections import CLASSIFIER, OUT_OF_SCOPE, description, how_to_use, input_section, outputs_section
from .provenance_sections import chosen_on, data_section, history_limits, is_weighted, procedure_section

_ENCODER_NOT_EVALUATED = (
    "An encoder without a head has no scores to evaluate. Evaluate the models that are trained on it."
)


class CardError(ECGFMError, ValueError):
    """A card that cannot be built. The message names the folder or file, and what is wrong with it."""


@dataclass(frozen=True)
class ModelSummary:
    """
    The content of a model folder that its card needs.

    Args:
        config ([`ECGFMConfig`])
        extractor ([`ECGFMFeatureExtractor`])
        architecture (`str`): The model's class.
        parameters (`int`)
        steps (sequence of mappings): Of `provenance.json`.
        results (mapping, *optional*): From `metrics.json`.
        checked (`bool`): Whether the results are known to belong to these weights.
    """

    config: ECGFMConfig
    extractor: Any
    architecture: str
    parameters: int
    steps: Sequence[Mapping[str, Any]]
    results: Mapping[str, Any] | None
    checked: bool


def build_model_card(
    model_dir: str | Path,
    *,
    evaluation: str | Path | None = None,
    repo_id: str | None = None,
    **details: Any,
) -> str:
    """
    Return the text of a model folder's `README.md`.

    The card contains config, feature extractor, provenance and an evaluation; it states what is unknown. Mandatory
    details that are missing from `details` get a placeholder, which [`card_problems`] reports. The card has no paths,
    no host names, no ids, and no counts that the evaluation withholds.

    Args:
        model_dir (`str` or `Path`): As `ecgfm convert`, `pretrain`, `finetune` and `probe` write them.
        evaluation (`str` or `Path`, *optional*): The folder that `ecgfm evaluate` wrote, or its `metrics.json`.
        repo_id (`str`, *optional*): The repository on the Hub that the card is for; names the model in code.
        details: Fields of [`CardDetails`], such as `license="mit"`, `intended_use="..."`.

    Raises:
        [`CardDetailsError`]: an unknown detail, or of another kind.
        [`CardError`]: no model folder; an evaluation of other weights or labels; a file that is not of its form.
        [`ProvenanceError`]: a damaged `provenance.json`.
    """
    given = CardDetails.of(details)
    for what, name in (("repo_id", repo_id), ("base_model", given.base_model)):
        if name is not None:
            try:
                validate_repo_id(name)
            except HFValidationError as error:
                raise CardError(f"{what}: {error}") from None
    model = summarize_model(model_dir, evaluation)
    name = given.name or (repo_id or Path(model_dir).resolve().name).rpartition("/")[2]
    try:
        return _card(model, given, name, repo_id).render()
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        files = PROVENANCE_FILE if evaluation is None else f"{PROVENANCE_FILE} or {evaluation}"
        raise CardError(f"{model_dir}: {files} is damaged: {error!r}") from error


def _card(model: ModelSummary, given: CardDetails, name: str, repo_id: str | None) -> Card:
    config, results = model.config, model.results
    is_classifier = model.architecture == CLASSIFIER
    tag = pipeline_tag(is_classifier)
    base_model = given.base_model or _published_base(model.steps)
    scored = [] if results is None else evaluation_results(results, given, tag)
    evaluated = NOT_EVALUATED if is_classifier else _ENCODER_NOT_EVALUATED
    if results is not None:
        evaluated = evaluation_section(results, given, _decided_elsewhere(results, config), model.checked)
    limits = [*history_limits(model.steps), *(evaluation_limits(results) if is_classifier else [])]
    return Card(
        metadata=card_metadata(
            name=name,
            license=given.license,
            license_name=given.license_name,
            license_link=given.license_link,
            pipeline_tag=tag,
            tags=[*given.tags, *_synthetic(model.steps)],
            base_model=base_model,
            datasets=given.training_datasets,
            metrics=[METRIC_IDS[m] for m in (results or {}).get("macro", ()) if m in METRIC_IDS],
            results=scored,
        ),
        name=plain(name),
        summary=given.summary or "",
        description=description(
            config,
            model.architecture,
            model.parameters,
            (
                "Began from",
                None if base_model is None else f"[{plain(base_model)}](https://huggingface.co/{base_model})",
            ),
        ),
        intended_use=given.intended_use or placeholder("intended_use"),
        out_of_scope_use=paragraphs(given.out_of_scope_use, bullets(OUT_OF_SCOPE)),
        how_to_use=how_to_use(model.architecture, repo_id or "FOLDER_OR_REPOSITORY", model.extractor.lead_names),
        input=input_section(model.extractor),
        outputs=outputs_section(
            config,
            model.architecture,
            model.extractor.sampling_rate,
            labels_with_withheld_counts(model.steps, config.label_names),
            chosen_on(model.steps),
            is_weighted(model.steps),
        ),
        training_data=paragraphs(given.training_data or placeholder("training_data"), data_section(model.steps)),
        training_procedure=procedure_section(model.steps),
        evaluation=evaluated,
        limitations=paragraphs(given.limitations or placeholder("limitations"), bullets(limits) if limits else None),
        licence=licence_section(given),
        citation=paragraphs(
            None if given.citation is None else f"```bibtex\n{given.citation}\n```",
            f"ECG-FM, whose architecture and method this is:\n\n```bibtex\n{ECG_FM_CITATION}\n```",
        ),
    )


def summarize_model(model_dir: str | Path, evaluation: str | Path | None = None) -> ModelSummary:
    """Read what the card of a model folder needs. Raises the errors of [`build_model_card`]."""
    from ...feature_extraction_ecgfm import ECGFMFeatureExtractor

    folder = Path(model_dir)
    if not (folder / "config.json").is_file():
        raise CardError(f"{folder} is not a model folder: it has no config.json")
    try:
        config = ECGFMConfig.from_pretrained(folder)
        extractor = ECGFMFeatureExtractor.from_pretrained(folder)
    except (OSError, ValueError, TypeError, AttributeError, LookupError, StrictDataclassError) as error:
        raise CardError(f"{folder}: {error}") from None
    if config.model_type != ECGFMConfig.model_type or not config.architectures:
        raise CardError(f"{folder} is not an ECG-FM model: its config.json names no ECG-FM architecture")
    results, checked = None, False
    if evaluation is not None:
        results = _read_results(Path(evaluation))
        checked = _check_results(results, config, folder, Path(evaluation))
    return ModelSummary(
        config, extractor, config.architectures[0], count_weights(folder), read_steps(folder), results, checked
    )


def count_weights(folder: Path) -> int:
    """Count the parameters in a folder's safetensors files, from their headers."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CardError(f"{folder} has no weights: no *.safetensors")
    number = 0
    for path in files:
        try:
            with safe_open(path, framework="np") as weights:
                for name in weights.keys():  # noqa: SIM118 - not a mapping
                    size = 1
                    for side in weights.get_slice(name).get_shape():
                        size *= side
                    number += size
        except (OSError, SafetensorError) as error:
            raise CardError(f"{path} is damaged: {error}") from None
    return number


def _read_results(path: Path) -> dict[str, Any]:
    file = path / METRICS_FILE if path.is_dir() else path
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        if results["format"] != 1:
            raise CardError(f"{file} has format {results['format']!r}, expected 1")
        results["macro"], results["per_label"], results["subgroups"], results["labels"], results["problem_type"]
    except FileNotFoundError:
        raise CardError(f"{file} is missing: `ecgfm evaluate` writes it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CardError):
            raise
        raise CardError(f"{file} has no results of `ecgfm evaluate`: {type(error).__name__}: {error}") from None
    return results


def _check_results(results: Mapping[str, Any], config: ECGFMConfig, folder: Path, evaluation: Path) -> bool:
    """Return whether results belong to the weights in a folder; raise [`CardError`] if they belong to others."""
    problem = config.problem_type or "multi_label_classification"
    unknown = [name for name in results["labels"] if name not in config.label_names]
    if config.architectures != [CLASSIFIER] or unknown or results["problem_type"] != problem:
        what = f"its problem type is {results['problem_type']}"
        if unknown:
            what = f"it has the labels {', '.join(unknown[:5])}"
        raise CardError(f"{evaluation} is not an evaluation of the model in {folder}: {what}")
    weights = results.get("weights")
    if weights is None:
        return False
    if weights != weights_digest(folder):
        raise CardError(
            f"{evaluation} is an evaluation of other weights than those in {folder} (SHA-256 {weights[:12]}...): "
            "evaluate this model"
        )
    return True


def _decided_elsewhere(results: Mapping[str, Any], config: ECGFMConfig) -> bool:
    thresholds = config.label_thresholds or {}
    return any(
        "decisions" in found and found["decisions"]["threshold"] != thresholds.get(label)
        for label, found in results["per_label"].items()
    )


def _published_base(steps: Sequence[Mapping[str, Any]]) -> str | None:
    names = [step["published"] for step in steps if step.get("published")]
    return PUBLISHED.get(names[-1]) if names else None


def _synthetic(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    sources = {source for _, _, facts in splits_of(steps) for source in facts.get("sources") or {}}
    return ["synthetic"] if any("synthetic" in source.lower() for source in sources) else []


def licence_section(given: CardDetails) -> str:
    """Return the section with licence, developers and contact."""
    licence = placeholder("license")
    if given.license is not None:
        named = given.license if given.license_name is None else f"{given.license} ({given.license_name})"
        licence = f"Licence of the weights: {code(named)}."
        if given.license_link is not None:
            licence = f"{licence[:-1]}, {given.license_link}."
    return paragraphs(
        licence,
        placeholder("developers") if given.developers is None else f"Developed by: {given.developers}",
        None if given.contact is None else f"Questions: {given.contact}",
    )


__all__ = ["CardError", "ModelSummary", "build_model_card", "count_weights", "licence_section"]
