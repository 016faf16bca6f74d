"""Build the card of a model folder: gather what its files record, and fill `template.md`."""

import functools
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id

from ...configuration_ecgfm import ECGFMConfig
from ...evaluation import METRICS_FILE
from ...evaluation.formatting import METRIC_NAMES, count, figure_text, number, text
from ...evaluation.intervals import RANKING
from ...evaluation.results import PROBABILITY, RATES, REGRESSION
from ...fairseq.label_sets import PUBLISHED
from ...provenance import PROVENANCE_FILE, UNKNOWN, labels_with_withheld_counts, read_steps, splits_of, weights_digest
from ...utils.errors import ECGFMError
from .details import CardDetails, placeholder

if TYPE_CHECKING:
    from jinja2 import Template

    from ...feature_extraction_ecgfm import ECGFMFeatureExtractor
    from .published import PublishedCheckpoint

CLASSIFIER = "ECGFMForMultiLabelClassification"
_MULTI_LABEL = "multi_label_classification"
_TAGS = ("ecg", "electrocardiogram", "12-lead-ecg", "ecg-fm", "cardiology", "medical")
# The Hub's names of metrics.
_METRIC_IDS = {
    "auroc": "roc_auc",
    "average_precision": "average_precision",
    "brier": "brier_score",
    "accuracy": "accuracy",
    "mean_absolute_error": "mae",
    "r_squared": "r_squared",
}
_TASKS = {
    _MULTI_LABEL: "12-lead ECG, multi-label classification",
    "single_label_classification": "12-lead ECG, classification",
    "regression": "12-lead ECG, regression",
}
# What validation recordings decided, so that figures on them are too good: with thresholds, and without.
_DECIDED = {
    "fine-tuning": ("the update, calibration and thresholds", "the update"),
    "linear probe": ("calibration and thresholds", ""),
}
# The template's words for values of config, feature extractor and provenance.
_WORDS = {
    "kinds": {
        "ECGFMForPreTraining": "encoder with its pretraining modules, without labels",
        CLASSIFIER: "encoder with a linear head",
        "ECGFMModel": "encoder without a head, without labels",
    },
    "problems": {
        _MULTI_LABEL: "multi-label: labels do not exclude one another",
        "single_label_classification": "single-label: classes exclude one another",
        "regression": "regression",
    },
    "standardizations": {
        "recording": "Each lead is standardised over the whole recording (mean 0, standard deviation 1), so gain and "
        "offset do not matter.",
        "all_leads": "All leads are standardised together over the whole recording (mean 0, standard deviation 1), so "
        "a common gain does not matter.",
        "none": "The signal is in mV and is not standardised, so units and gains must be right.",
    },
    "policies": {
        "error": "refused",
        "zero": "that lead is zero",
        "derive": "limb leads are derived from two others, and chest leads are refused",
        "interpolate": "interpolated",
        "pad": "padded",
    },
    "headings": {
        "conversion": "Conversion",
        "pretraining": "Pretraining",
        "fine-tuning": "Fine-tuning",
        "linear probe": "Linear probe",
        UNKNOWN: "Earlier steps",
    },
    "pos_weights": {
        "balanced": "negatives / positives of the training recordings",
        "given": "given by hand",
        None: "none",
    },
    "repositories": PUBLISHED,
    "metric_names": METRIC_NAMES,
    "rates": RATES,
    "placeholder": placeholder,
}


class CardError(ECGFMError, ValueError):
    """A card that cannot be built. The message names the folder or file, and what is wrong with it."""


@dataclass(frozen=True)
class ModelSummary:
    """
    What a card needs from a model.

    Args:
        config ([`ECGFMConfig`])
        extractor ([`ECGFMFeatureExtractor`])
        architecture (`str`): The model's class.
        parameters (`int`)
        steps (sequence of mappings): Of `provenance.json`.
        results (mapping, *optional*): From `metrics.json`.
        is_checked (`bool`): Whether the results are known to belong to these weights.
    """

    config: ECGFMConfig
    extractor: "ECGFMFeatureExtractor"
    architecture: str
    parameters: int
    steps: Sequence[Mapping[str, Any]] = ()
    results: Mapping[str, Any] | None = None
    is_checked: bool = False


def build_model_card(
    model_dir: str | Path,
    *,
    evaluation: str | Path | None = None,
    repo_id: str | None = None,
    **details: Any,
) -> str:
    """
    Return the text of a model folder's `README.md`.

    The card is filled from config, feature extractor, provenance and an evaluation; it states what is unknown.
    Mandatory details that are missing from `details` get a placeholder, which [`card_problems`] reports. The card has
    no paths, no host names, no ids, and no counts that the evaluation withholds.

    Args:
        model_dir (`str` or `Path`): As `ecgfm convert`, `pretrain`, `finetune` and `probe` write them.
        evaluation (`str` or `Path`, *optional*): The folder that `ecgfm evaluate` wrote, or its `metrics.json`.
        repo_id (`str`, *optional*): The repository on the Hub that the card is for; names the model in code.
        details: Fields of [`CardDetails`], such as `license="mit"`, `intended_use="..."`.

    Raises:
        [`CardDetailsError`]: an unknown detail, or a value of the wrong type.
        [`CardError`]: no model folder; an evaluation of other weights or labels; a damaged file.
        [`ProvenanceError`]: a damaged `provenance.json`.
    """
    given = CardDetails.of(details)
    for what, name in (("repo_id", repo_id), ("base_model", given.base_model)):
        if name is not None:
            try:
                validate_repo_id(name)
            except HFValidationError as error:
                raise CardError(f"{what}: {error}") from None
    from jinja2 import UndefinedError

    model = _summarize_model(Path(model_dir), evaluation)
    title = given.name or (repo_id or Path(model_dir).resolve().name).rpartition("/")[2]
    try:
        return fill_template(model, given, title, repo_id or "FOLDER_OR_REPOSITORY")
    except (KeyError, IndexError, TypeError, AttributeError, UndefinedError) as error:
        files = PROVENANCE_FILE if evaluation is None else f"{PROVENANCE_FILE} or {evaluation}"
        raise CardError(f"{model_dir}: {files} is damaged: {type(error).__name__}: {error}") from error


def fill_template(
    model: ModelSummary, details: CardDetails, title: str, name: str, published: "PublishedCheckpoint | None" = None
) -> str:
    """
    Return the text of a card.

    Args:
        model ([`ModelSummary`])
        details ([`CardDetails`])
        title (`str`): The card's heading.
        name (`str`): The model's folder or repository, as the card's code loads it.
        published ([`PublishedCheckpoint`], *optional*): Its texts replace what provenance and evaluation give.
    """
    config, steps, results = model.config, model.steps, model.results
    label_names = list(config.label_names)
    thresholds, calibration = config.label_thresholds or {}, config.label_calibration or {}
    regression = config.problem_type == "regression"
    names = [step["published"] for step in steps if step.get("published")]
    base_model = details.base_model or (PUBLISHED.get(names[-1]) if names else None)
    sources = {
        use: {name for _, one, data in splits_of(steps) if one == use for name in data.get("sources") or {}}
        for use in ("train", "valid")
    }
    is_synthetic = {use: any("synthetic" in source.lower() for source in found) for use, found in sources.items()}
    used_data = [(step, step["data"]["splits"]) for step in steps if (step.get("data") or {}).get("splits")]
    return template().render(
        _WORDS,
        front_matter=_metadata(model, details, title, base_model, any(is_synthetic.values())).to_yaml(),
        title=title,
        model=name,
        details=details,
        published=published,
        config=config,
        extractor=model.extractor,
        architecture=model.architecture,
        is_classifier=model.architecture == CLASSIFIER,
        problem=config.problem_type or _MULTI_LABEL,
        parameters=model.parameters,
        base_model=base_model,
        label_names=label_names,
        aggregation=config.label_aggregation or {},
        thresholds=thresholds,
        calibration=calibration,
        notes=config.label_notes or {},
        log_weights=_log_weights(config, labels_with_withheld_counts(steps, label_names)),
        is_weighted=bool(steps) and steps[-1].get("pos_weight") is not None,
        is_chosen=_chose_thresholds(steps[-1] if steps else {}),
        frame_ms=1000 * math.prod(config.conv_stride) / model.extractor.sampling_rate,
        steps=steps,
        used_data=used_data,
        smallest_cell=next(
            (step["data"]["smallest_cell"] for step, _ in reversed(used_data) if "smallest_cell" in step["data"]), None
        ),
        train_sources=sources["train"],
        is_synthetic=is_synthetic["train"],
        was_published=bool(names),
        results=results,
        is_checked=model.is_checked,
        decided_elsewhere=any(
            "decisions" in found and found["decisions"]["threshold"] != thresholds.get(label)
            for label, found in (results or {"per_label": {}})["per_label"].items()
        ),
        ungrouped=[
            name
            for name in ("age", "sex", "source")
            if not any(group["per_label"] for group in (results or {"subgroups": {}})["subgroups"].get(name, ()))
        ],
        label_metrics=REGRESSION if regression else (*RANKING, *PROBABILITY),
        group_metrics=REGRESSION if regression else RANKING,
    )


@functools.cache
def template() -> "Template":
    """Return the card's template, which is Markdown: `plain` and `code` escape what is not ours."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ecgfm_hf", "hub/cards"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "code": code,
        "count": count,
        "duration": duration,
        "figure": figure_text,
        "groups": _groups,
        "number": number,
        "plain": plain,
        "present": _present,
        "settings": settings_text,
    }
    environment.globals |= {"label_counts": _label_counts, "used_for": _used_for}
    return environment.get_template("template.md")


@functools.cache
def section_titles() -> tuple[str, ...]:
    """Return the headings of the template's sections; all are mandatory."""
    lines = Path(__file__).with_name("template.md").read_text(encoding="utf-8").splitlines()
    return tuple(line.removeprefix("## ") for line in lines if line.startswith("## "))


# ----------------------------------------------------------------------------------------------------------------------
# Markdown
# ----------------------------------------------------------------------------------------------------------------------

# What Markdown, GitHub's flavour of it, or the Hub's pages would take for more than a character.
_MARKED = re.compile(r"([\\`*_\[\]|~$#])")
_ESCAPED = (("://", "&#58;//"), ("www.", "www&#46;"), ("@", "&#64;"))


def plain(value: Any) -> str:
    """Return any value as one line of text that Markdown takes literally."""
    escaped = text(" ".join(str(value).split())).replace("&quot;", '"').replace("&#x27;", "'")
    # The number sign of an entity is not escaped.
    escaped = "".join(
        part if part.startswith("&") else _MARKED.sub(r"\\\1", part) for part in re.split(r"(&\w+;|&#x?\w+;)", escaped)
    )
    for found, entity in _ESCAPED:
        escaped = escaped.replace(found, entity)
    # At the beginning of a line these would begin a list.
    return re.sub(r"^([-+]|\d+(?=[.)]))(?=[.)]?(?: |$))", lambda start: f"&#{ord(start[0][0])};{start[0][1:]}", escaped)


def code(value: Any) -> str:
    """Return a value in a code span, with apostrophes for the backticks that would end it."""
    return f"`{' '.join(str(value).replace('`', chr(39)).split())}`"


def settings_text(settings: Mapping[str, Any]) -> str:
    """Return settings and their values in one line, nested ones by dotted names, without those that are empty."""
    flat: list[str] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            inner = settings_text({f"{name}.{key}": one for key, one in value.items()})
            flat += [inner] if inner else []
        elif value is not None and value != []:
            flat.append(code(f"{name}={value}"))
    return ", ".join(flat)


def duration(seconds: float) -> str:
    """Return `45 s`, `12 min`, `3.5 h` or `9.5 days`."""
    for unit, size, limit, digits in (("s", 1, 120, 0), ("min", 60, 7200, 0), ("h", 3600, 172_800, 1)):
        if seconds < limit:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds / 86_400:.1f} days"


def _groups(groups: Mapping[str, Any] | None) -> str:
    """Return recordings by sex or source in one line."""
    if not groups:
        return "not recorded"
    names = {"F": "female", "M": "male"}
    return ", ".join(f"{plain(names.get(name, name))} {count(size)}" for name, size in groups.items())


def _present(metrics: Sequence[str], figures: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the metrics that at least one of the figures has."""
    found = {metric for one in figures for metric in one}
    return [metric for metric in metrics if metric in found]


# ----------------------------------------------------------------------------------------------------------------------
# Values of the template
# ----------------------------------------------------------------------------------------------------------------------


def _metadata(
    model: ModelSummary, details: CardDetails, title: str, base_model: str | None, is_synthetic: bool
) -> ModelCardData:
    """Return the front matter as the Hub reads it; unknown fields are left out."""
    # The Hub has no task for signals.
    task = "other" if model.architecture == CLASSIFIER else "feature-extraction"
    macro = (model.results or {"macro": {}})["macro"]
    results = [] if model.results is None else _hub_results(model.results, details, task)
    return ModelCardData(
        library_name="transformers",
        license=details.license,
        license_name=details.license_name,
        license_link=details.license_link,
        pipeline_tag=task,
        base_model=base_model,
        datasets=details.training_datasets or None,
        metrics=[_METRIC_IDS[metric] for metric in macro if metric in _METRIC_IDS] or None,
        tags=list(dict.fromkeys([*_TAGS, *details.tags, *(["synthetic"] if is_synthetic else [])])),
        # Only a model-index needs the name, and a model-index needs results.
        model_name=title if results else None,
        eval_results=results or None,
    )


def _hub_results(results: Mapping[str, Any], details: CardDetails, task: str) -> list[EvalResult]:
    """Return macro figures and each label's AUROC or error; none if the dataset has no name."""
    if details.dataset_name is None:
        return []
    single = len(results["labels"]) == 1
    figures = []
    for metric, figure in results["macro"].items():
        if metric in _METRIC_IDS:
            mean = "" if single or metric == "accuracy" else ", mean over labels"
            figures.append((metric, f"{METRIC_NAMES[metric]}{mean}", figure))
    metric = "mean_absolute_error" if results["problem_type"] == "regression" else "auroc"
    if not (single and metric in results["macro"]):
        for label, found in results["per_label"].items():
            figures.append((metric, f"{METRIC_NAMES[metric]}, {label}", found["metrics"].get(metric) or {}))
    slug = "-".join(re.findall(r"[a-z0-9]+", details.dataset_name.lower())) or "dataset"
    return [
        EvalResult(
            task_type=task,
            task_name=_TASKS[results["problem_type"]],
            dataset_type=details.dataset_id or slug,
            dataset_name=details.dataset_name,
            dataset_split=results["split"],
            metric_type=_METRIC_IDS[metric],
            metric_name=name,
            metric_value=round(figure["value"], 4),
        )
        for metric, name, figure in figures
        if figure.get("value") is not None
    ]


def _log_weights(config: ECGFMConfig, withheld: Collection[str]) -> dict[str, float]:
    """
    Return ln(pos_weight) of the labels that have one and are not calibrated.

    A `pos_weight` is a quotient of counts: it is withheld for labels of which a count is.
    """
    if not config.pos_weight:
        return {}
    hidden = {*withheld, *(config.label_calibration or {})}
    pairs = zip(config.label_names, config.pos_weight, strict=True)
    return {name: math.log(weight) for name, weight in pairs if name not in hidden}


def _chose_thresholds(step: Mapping[str, Any]) -> bool:
    """Return whether a step is recorded to have chosen the config's thresholds on its validation recordings."""
    return step.get("step") in _DECIDED and (step.get("settings") or {}).get("thresholds") not in (None, "none")


def _used_for(step: Mapping[str, Any], use: str) -> str:
    """Return what a step used the recordings of a split for."""
    if use != "valid":
        return "training" if use == "train" else plain(use)
    splits = step["data"]["splits"].values()
    kinds = {kind for data in splits for counts in (data.get("labels") or {}).values() for kind in counts}
    problem = (step.get("settings") or {}).get("problem_type", _MULTI_LABEL)
    with_thresholds, without = _DECIDED.get(step["step"], ("", ""))
    chosen = with_thresholds if problem == _MULTI_LABEL and "known" not in kinds else without
    return f"validation (chose {chosen})" if chosen else "validation"


def _label_counts(splits: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the columns (split and kind) and rows of a table of counts by label; no rows where there are none."""
    counted = {use: data["labels"] for use, data in splits.items() if data.get("labels")}
    if not counted:
        return {"columns": [], "rows": []}
    kinds = list(next(iter(next(iter(counted.values())).values())))
    return {
        "columns": [f"{use}: {kind}" for use in counted for kind in kinds],
        "rows": [
            (label, [counts.get(label, {}).get(kind) for counts in counted.values() for kind in kinds])
            for label in dict.fromkeys(label for counts in counted.values() for label in counts)
        ],
    }


# ----------------------------------------------------------------------------------------------------------------------
# Files of the model folder and the evaluation
# ----------------------------------------------------------------------------------------------------------------------


def _summarize_model(folder: Path, evaluation: str | Path | None) -> ModelSummary:
    from ...feature_extraction_ecgfm import ECGFMFeatureExtractor

    if not (folder / "config.json").is_file():
        raise CardError(f"{folder} is not a model folder: it has no config.json")
    try:
        config = ECGFMConfig.from_pretrained(folder)
        extractor = ECGFMFeatureExtractor.from_pretrained(folder)
    except (OSError, ValueError, TypeError, AttributeError, LookupError, StrictDataclassError) as error:
        raise CardError(f"{folder}: {error}") from None
    if config.model_type != ECGFMConfig.model_type or not config.architectures:
        raise CardError(f"{folder} is not an ECG-FM model: its config.json names no ECG-FM architecture")
    results, is_checked = None, False
    if evaluation is not None:
        results = _read_results(Path(evaluation))
        is_checked = _check_results(results, config, folder, Path(evaluation))
    return ModelSummary(
        config, extractor, config.architectures[0], _count_weights(folder), read_steps(folder), results, is_checked
    )


def _count_weights(folder: Path) -> int:
    """Count the parameters in a folder's safetensors files, from their headers."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CardError(f"{folder} has no weights: no *.safetensors")
    total = 0
    for path in files:
        try:
            with safe_open(path, framework="np") as weights:
                total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CardError(f"{path} is damaged: {error}") from None
    return total


def _read_results(path: Path) -> dict[str, Any]:
    file = path / METRICS_FILE if path.is_dir() else path
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        if results["format"] != 1:
            raise CardError(f"{file} has format {results['format']!r}, expected 1")
        results["macro"], results["per_label"], results["subgroups"], results["labels"], results["problem_type"]
    except FileNotFoundError:
        raise CardError(f"{file} is missing: `ecgfm evaluate` writes it") from None
    except CardError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CardError(f"{file} has no results of `ecgfm evaluate`: {type(error).__name__}: {error}") from None
    return results


def _check_results(results: Mapping[str, Any], config: ECGFMConfig, folder: Path, evaluation: Path) -> bool:
    """Return whether results belong to the weights in a folder; raise [`CardError`] if they belong to others."""
    problem = config.problem_type or _MULTI_LABEL
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


__all__ = [
    "CardError",
    "ModelSummary",
    "build_model_card",
    "fill_template",
    "section_titles",
]
