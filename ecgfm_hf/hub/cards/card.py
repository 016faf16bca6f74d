"""The parts of a model card, and the template that combines them."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

PUBLISHED = {
    "mimic_iv_ecg_physionet_pretrained": "wanglab/ecg-fm",
    "mimic_iv_ecg_finetuned": "wanglab/ecg-fm",
    "physionet_finetuned": "wanglab/ecg-fm-preprint",
}
ECG_FM_CITATION = """\
@article{mckeen2025ecgfm,
  title   = {{ECG-FM}: an open electrocardiogram foundation model},
  author  = {McKeen, Kaden and Masood, Sameer and Toma, Augustin and Rubin, Barry and Wang, Bo},
  journal = {JAMIA Open},
  volume  = {8},
  number  = {5},
  pages   = {ooaf122},
  year    = {2025},
  doi     = {10.1093/jamiaopen/ooaf122},
  note    = {arXiv:2408.05178}
}"""
TEMPLATE = Path(__file__).with_name("template.md")
DISCLAIMER = "Not a medical device."
TAGS = ("ecg", "electrocardiogram", "12-lead-ecg", "ecg-fm", "cardiology", "medical")


@dataclass(frozen=True)
class Card:
    """
    The parts of a card in Markdown, without headings. All are mandatory except the summary.

    Args:
        metadata (`ModelCardData`): The front matter.
        name, summary (`str`)
        description, intended_use, out_of_scope_use, how_to_use, input, outputs, training_data, training_procedure,
        evaluation, limitations, licence, citation (`str`): The sections, in the template's order.
    """

    metadata: ModelCardData
    name: str
    summary: str
    description: str
    intended_use: str
    out_of_scope_use: str
    how_to_use: str
    input: str
    outputs: str
    training_data: str
    training_procedure: str
    evaluation: str
    limitations: str
    licence: str
    citation: str

    def render(self) -> str:
        """Return the text of `README.md`."""
        parts = {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self)}
        metadata = parts.pop("metadata")
        return _template().render(front_matter=metadata.to_yaml(), **parts)


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    # The result is Markdown, not HTML; the parts are escaped where they are made.
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


@cache
def section_titles() -> tuple[str, ...]:
    """Return the headings of the template's sections; all are mandatory."""
    lines = TEMPLATE.read_text(encoding="utf-8").splitlines()
    return tuple(line.removeprefix("## ") for line in lines if line.startswith("## "))


def card_metadata(
    *,
    name: str,
    license: str | None,
    pipeline_tag: str,
    license_name: str | None = None,
    license_link: str | None = None,
    tags: Iterable[str] = (),
    base_model: str | None = None,
    datasets: Iterable[str] = (),
    metrics: Iterable[str] = (),
    results: Iterable[EvalResult] = (),
) -> ModelCardData:
    """Return the front matter as the Hub reads it; unknown fields are left out."""
    results = list(results)
    return ModelCardData(
        library_name="transformers",
        license=license,
        license_name=license_name,
        license_link=license_link,
        pipeline_tag=pipeline_tag,
        base_model=base_model,
        datasets=list(datasets) or None,
        metrics=list(metrics) or None,
        tags=list(dict.fromkeys([*TAGS, *tags])),
        # Only a model-index needs the name, and a model-index needs results.
        model_name=name if results else None,
        eval_results=results or None,
    )


def pipeline_tag(is_classifier: bool) -> str:
    """Return the task for the Hub, which has none for signals: `other` with a head, else `feature-extraction`."""
    return "other" if is_classifier else "feature-extraction"


def published_link(name: str) -> str:
    """Return the name of a published checkpoint with a link to its repository on the Hub."""
    repository = PUBLISHED.get(name)
    where = "" if repository is None else f" of [{repository}](https://huggingface.co/{repository})"
    return f"`{name}.pt`{where}"
