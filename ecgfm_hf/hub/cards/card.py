"""A model card: its parts, and the template that puts them together."""

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
    What a card says, each part Markdown without its heading. Every part is mandatory but the summary.

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
        """The text of `README.md`."""
        parts = {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self)}
        metadata = parts.pop("metadata")
        return _template().render(front_matter=metadata.to_yaml(), **parts)


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    # Not HTML: what has to be escaped is, where the parts are made.
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


@cache
def section_titles() -> tuple[str, ...]:
    """The headings of the template's sections, all of them mandatory."""
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
    """The front matter as the Hub reads it; what is not known is not there."""
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
        # Without results the Hub wants no model-index, and the name is for nothing else.
        model_name=name if results else None,
        eval_results=results or None,
    )


def pipeline_tag(is_classifier: bool) -> str:
    """The Hub's list of tasks has none for signals: `other` for what has a head, `feature-extraction` for encoders."""
    return "other" if is_classifier else "feature-extraction"


def published_link(name: str) -> str:
    """A published checkpoint, with a link to its repository on the Hub."""
    repository = PUBLISHED.get(name)
    where = "" if repository is None else f" of [{repository}](https://huggingface.co/{repository})"
    return f"`{name}.pt`{where}"
