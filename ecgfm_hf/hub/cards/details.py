"""The details of a card that only a person can give."""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ...utils.errors import ECGFMError

# Mandatory fields of `CardDetails`, and what to write there.
MANDATORY = {
    "license": "the licence of the weights, as the Hub abbreviates it (such as mit or cc-by-4.0); it follows from the "
    "licences of the weights that training began from and of the data",
    "developers": "who made the model and is responsible for it",
    "intended_use": "what the model is for: users, patients, setting, question",
    "training_data": "where the recordings come from, how they were labelled, and what permits their use (licence, "
    "ethics approval)",
    "limitations": "where the model is expected to fail: patients, devices and settings that the data do not contain, "
    "errors in the labels",
}
# Mandatory only with an evaluation.
MANDATORY_EVALUATION = {
    "dataset_name": "the name of the evaluated data, as others would cite it",
}
ALL_MANDATORY = MANDATORY | MANDATORY_EVALUATION


class CardDetailsError(ECGFMError, ValueError):
    """Details that cannot be used. The message names the key."""


@dataclass
class CardDetails:
    """
    What a person states about a model. Texts are Markdown; headings in them start with `###`.

    Args:
        name (`str`, *optional*): The card's title. Default: the name of the repository, or of the folder.
        license (`str`, *optional*): Mandatory, as the Hub abbreviates it; `other` needs `license_name`.
        license_name, license_link (`str`, *optional*): Of `other`.
        developers, intended_use, training_data, limitations (`str`, *optional*): Mandatory; see `MANDATORY`.
        out_of_scope_use (`str`, *optional*): In addition to the text of every card.
        contact (`str`, *optional*): Contact for questions.
        summary (`str`, *optional*): One or two sentences at the top.
        dataset_name (`str`, *optional*): Mandatory with an evaluation.
        dataset_id (`str`, *optional*): The evaluated data's Hub repository, or a name in its form.
        evaluation_data (`str`, *optional*): More about the evaluated data.
        training_datasets (list of `str`): Hub repositories of training data, or names in their form.
        base_model (`str`, *optional*): The Hub repository of the weights that training began from.
        tags (list of `str`): In addition to the tags of every card.
        citation (`str`, *optional*): BibTeX of a publication of this model.

    Raises:
        [`CardDetailsError`]: a value of the wrong type, or a heading that would end its section.
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
                        f"{spec.name}: the heading {heading[0]!r} would start a new section of the card: use ### or "
                        "lower"
                    )
                setattr(self, spec.name, value.strip() or None)

    @classmethod
    def of(cls, details: Mapping[str, Any]) -> "CardDetails":
        """Return the details in a mapping. Raises [`CardDetailsError`] for an unknown name."""
        known = [spec.name for spec in dataclasses.fields(cls)]
        for name in details:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {close[0]}?" if close else f" (known: {', '.join(known)})"
                raise CardDetailsError(f"unknown detail {name!r}{hint}")
        return cls(**details)


def read_details(path: str | Path) -> dict[str, Any]:
    """
    Read details from a YAML file.

    Raises:
        [`CardDetailsError`]: not YAML, not a mapping, an unknown detail, or a value of the wrong type.
        `OSError`: the file cannot be read.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CardDetailsError(f"{path} is not YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise CardDetailsError(f"{path}: expected key: value lines, found {type(content).__name__}")
    try:
        CardDetails.of(content)
    except CardDetailsError as error:
        raise CardDetailsError(f"{path}: {error}") from None
    return content


def placeholder(key: str) -> str:
    """Return the text that stands for a missing mandatory detail; [`card_problems`] finds it."""
    return f"<!-- to fill in: {key} -->\n**To be filled in** (`{key}`): {ALL_MANDATORY[key]}."


def placeholders(text: str) -> list[str]:
    """Return the keys of all placeholders in a text."""
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
