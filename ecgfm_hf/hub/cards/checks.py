"""Check a card: missing or empty sections, and a front matter that the Hub cannot read."""

import re
from collections.abc import Iterator
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id

from .details import ALL_MANDATORY, placeholders
from .model_card import section_titles

DISCLAIMER = "Not a medical device."
BYTE_ORDER_MARK = "\ufeff"
_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]*")
_LISTS = ("tags", "datasets", "metrics")


def card_problems(text: str) -> list[str]:
    """
    Return why a card must not be published; an empty list if it may be.

    Args:
        text (`str`): The content of a `README.md`.

    Returns:
        `list[str]`: one sentence per problem: a mandatory section that is missing, empty, or has a placeholder; a
        missing disclaimer; a front matter that cannot be read, has no licence, library or tags, or has results that
        the Hub would not show. [`find_private_details`] searches for paths and names.
    """
    front_matter, body = split_front_matter(text)
    problems = [*_metadata_problems(front_matter), *_section_problems(body)]
    if text.startswith(BYTE_ORDER_MARK):
        problems.append("front matter: a byte order mark hides it: save the file as UTF-8 without one")
    if DISCLAIMER.lower() not in body.lower():
        problems.append(f"the card does not contain: {DISCLAIMER}")
    return problems


def split_front_matter(text: str) -> tuple[str | None, str]:
    """Return the YAML between the first two lines of `---` (None if there is none), and the rest of the text."""
    text = text.removeprefix(BYTE_ORDER_MARK)
    found = _FRONT_MATTER.match(text)
    return (None, text) if found is None else (found[1], text[found.end() :])


def _section_problems(body: str) -> Iterator[str]:
    sections = _sections(body)
    for title in section_titles():
        content = sections.get(title)
        if content is None:
            yield f"section '{title}' is missing"
            continue
        for key in placeholders(content):
            yield f"section '{title}': fill in {key}: {ALL_MANDATORY.get(key, 'see the placeholder')}"
        if not re.sub(r"<!--.*?-->", "", content, flags=re.DOTALL).strip():
            yield f"section '{title}' is empty"


def _sections(body: str) -> dict[str, str]:
    """Return the content of each section by its heading; code blocks have no headings."""
    sections: dict[str, list[str]] = {}
    current, fence = None, None
    for line in body.splitlines():
        mark = re.match(r" {0,3}(```+|~~~+)", line)
        if mark and (fence is None or mark[1].startswith(fence)):
            fence = mark[1] if fence is None else None
        elif fence is None and (heading := re.match(r"##?\s+(.*?)\s*#*\s*$", line)):
            current = heading[1] if line.startswith("## ") else None
            if current is not None:
                sections.setdefault(current, [])
            continue
        if current is not None:
            sections[current].append(line)
    return {title: "\n".join(lines) for title, lines in sections.items()}


def _metadata_problems(front_matter: str | None) -> Iterator[str]:
    if front_matter is None:
        yield "front matter: missing (YAML between two lines of ---)"
        return
    try:
        metadata = yaml.safe_load(front_matter)
    except yaml.YAMLError as error:
        yield f"front matter: not YAML: {' '.join(str(error).split())}"
        return
    if not isinstance(metadata, dict):
        yield f"front matter: expected key: value lines, found {type(metadata).__name__}"
        return
    license = metadata.get("license")
    if not license:
        yield f"front matter: license is missing: {ALL_MANDATORY['license']}"
    elif not isinstance(license, str) or not _LICENSE.fullmatch(license):
        yield f"front matter: license must be one of the Hub's identifiers, such as mit, found: {license!r}"
    elif license == "other" and not metadata.get("license_name"):
        yield "front matter: license other needs license_name"
    if metadata.get("library_name") != "transformers":
        yield f"front matter: library_name must be transformers, found: {metadata.get('library_name')!r}"
    if not metadata.get("pipeline_tag"):
        yield "front matter: pipeline_tag is missing"
    for key in _LISTS:
        value = metadata.get(key)
        if value is not None and (not isinstance(value, list) or not all(isinstance(one, str) for one in value)):
            yield f"front matter: {key} must be a list of texts, found: {value!r}"
    if not metadata.get("tags"):
        yield "front matter: tags are missing"
    yield from _base_model_problems(metadata.get("base_model"))
    yield from _result_problems(metadata)


def _base_model_problems(base_model: Any) -> Iterator[str]:
    for name in base_model if isinstance(base_model, list) else [base_model]:
        if name is None:
            continue
        try:
            validate_repo_id(name)
        except (HFValidationError, TypeError):
            yield f"front matter: base_model must be a Hub repository (owner/name), found: {name!r}"


def _result_problems(metadata: dict[str, Any]) -> Iterator[str]:
    index = metadata.get("model-index")
    if index is None:
        return
    try:
        name, results = model_index_to_eval_results(index)
        ModelCardData(model_name=name, eval_results=results)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        yield (
            "front matter: model-index cannot be read, so the Hub shows no results (each needs task.type, "
            f"dataset.type, dataset.name, metrics with type and value): {type(error).__name__}: {error}"
        )
        return
    for result in results:
        for field, value in (
            ("task.type", result.task_type),
            ("dataset.type", result.dataset_type),
            ("dataset.name", result.dataset_name),
            ("metric type", result.metric_type),
        ):
            if not isinstance(value, str) or not value:
                yield f"front matter: model-index: a result has no {field}, so the Hub does not show it"
        if isinstance(result.metric_value, bool) or not isinstance(result.metric_value, int | float):
            yield f"front matter: model-index: a metric's value must be a number, found: {result.metric_value!r}"


__all__ = ["card_problems", "split_front_matter"]
