"""What a card needs and only a person knows."""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ...utils.errors import ECGFMError

# What to write where something mandatory is missing. The keys are fields of `CardDetails`.
MANDATORY = {
    "license": "the licence of the weights, as the Hub abbreviates it (such as mit or cc-by-4.0); it follows from the "
    "licences of the weights that training began from and of the data",
    "developers": "who made the model and answers for it",
    "intended_use": "what the model is for: users, patients, setting, question",
    "training_data": "where the recordings come from, how they were labelled, and what permits their use (licence, "
    "ethics approval)",
    "limitations": "where the model must be expected to fail: patients, devices and settings that the data lack, how "
    "labels can be wrong",
}
# Mandatory only where there are figures to report.
MANDATORY_EVALUATION = {
    "dataset_name": "the name of the data that the figures are of, as others would cite it",
}
ALL_MANDATORY = MANDATORY | MANDATORY_EVALUATION


class CardDetailsError(ECGFMError, ValueError):
    """Details that cannot be used. The message names the key."""


@dataclass
class CardDetails:
    """
    What a person says of a model. Texts are Markdown; headings in them begin with `###`.

    Args:
        name (`str`, *optional*): The card's title; the repository's name, else the folder's, if absent.
        license (`str`, *optional*): Mandatory, as the Hub abbreviates it; `other` needs `license_name`.
        license_name, license_link (`str`, *optional*): Of `other`.
        developers, intended_use, training_data, limitations (`str`, *optional*): Mandatory; see `MANDATORY`.
        out_of_scope_use (`str`, *optional*): More than what every card says.
        contact (`str`, *optional*): Where questions go.
        summary (`str`, *optional*): A sentence or two to begin with.
        dataset_name (`str`, *optional*): Mandatory with an evaluation.
        dataset_id (`str`, *optional*): The evaluated data's Hub repository, or a name in its form.
        evaluation_data (`str`, *optional*): What else to know of the evaluated data.
        training_datasets (list of `str`): Hub repositories of training data, or names in their form.
        base_model (`str`, *optional*): The Hub repository of the weights that training began from.
        tags (list of `str`): More than those that every card has.
        citation (`str`, *optional*): BibTeX of a publication of this model.

    Raises:
        [`CardDetailsError`]: a value of another kind, a heading that would end its section.
    """

    name: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    developers: str | None = None
    contact: str | None = None
    summary: str | None = None
    intended_use: str | None = None
    out_of_scope_use: str | None = None
    training_data: str | None = None
    limitations: str | None = None
    dataset_name: str | None = None
    dataset_id: str | None = None
    evaluation_data: str | None = None
    training_datasets: list[str] = field(default_factory=list)
    base_model: str | None = None
    tags: list[str] = field(default_factory=list)
    citation: str | None = None

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if "list" in str(spec.type):
                if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
                    raise CardDetailsError(f"{spec.name} must be a list of texts, found: {value!r}")
            elif value is not None and not isinstance(value, str):
                raise CardDetailsError(f"{spec.name} must be a text, found: {value!r}")
            elif value is not None:
                if heading := re.search(r"^##?\s.*$", value, re.MULTILINE):
                    raise CardDetailsError(
                        f"{spec.name}: the heading {heading[0]!r} would begin a section of the card; use ### or lower"
                    )
                setattr(self, spec.name, value.strip() or None)

    @classmethod
    def of(cls, details: Mapping[str, Any]) -> "CardDetails":
        """Details by name. [`CardDetailsError`] for one that there is not."""
        known = [spec.name for spec in dataclasses.fields(cls)]
        for name in details:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {close[0]}?" if close else f" (known: {', '.join(known)})"
                raise CardDetailsError(f"a card has no detail {name!r}{hint}")
        return cls(**details)


def read_details(path: str | Path) -> dict[str, Any]:
    """
    The details in a YAML file.

    Raises:
        [`CardDetailsError`]: no YAML, no mapping, an unknown detail, or one of another kind.
        `OSError`: the file cannot be read.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CardDetailsError(f"{path} is no YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise CardDetailsError(f"{path} must hold key: value lines, found {type(content).__name__}")
    try:
        CardDetails.of(content)
    except CardDetailsError as error:
        raise CardDetailsError(f"{path}: {error}") from None
    return content


def placeholder(key: str) -> str:
    """What stands where something mandatory is missing; [`card_problems`] finds it."""
    return f"<!-- to fill in: {key} -->\n**To be filled in** (`{key}`): {ALL_MANDATORY[key]}."


def placeholders(text: str) -> list[str]:
    """The keys of all placeholders in a text."""
    return re.findall(r"<!-- to fill in: (\w+) -->", text)


__all__ = [
    "ALL_MANDATORY",
    "MANDATORY",
    "MANDATORY_EVALUATION",
    "CardDetails",
    "CardDetailsError",
    "placeholder",
    "placeholders",
    "read_details",
]
