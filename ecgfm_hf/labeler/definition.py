"""
Labelers from a dictionary or a JSON file.

    {
      "name": "my-labels",
      "labels": ["Long QT", "Sinus rhythm"],
      "entities": {"Sinus rhythm": [], "Sinus tachycardia": ["Sinus rhythm"], "Long QT": []},
      "phrases": {"Sinus tachycardia": ["sinus tachycardia"], "Long QT": ["prolonged qt"]},
      "descriptors": {"Possible": {"before": ["possible"], "after": ["is possible"], "probability": 0.5}},
      "connectives": {"or": {"left": ["Possible"], "right": ["Possible"], "passes": ["Absence"]}, "with": {}},
      "compounds": [{"entity": "...", "including": ["..."], "excluding": ["..."]}],
      "attached": [{"entity": "...", "descriptor": "...", "gives": "..."}],
      "traveling": {"Infarction": ["Old"]},
      "ignored": ["no previous ecg"],
      "slots": {"lead": ["v1", "v2"]},
      "rewrites": {"sb": "sinus bradycardia"},
      "mistyped": ["tachycardia"],
      "switches": {"connective_gate": false, "honour_absence": true, "within_statement": true},
      "extends": "general.json"
    }

Phrases are in normalised words (`Labeler.normalize` shows them); another one could never be found, and is an error.
They may be templates: `{lead}` stands for each value of a slot, `{early|late}` for each of its choices, `[left|right]`
for each of its choices or nothing, and these may stand in one another. A phrase under several entities (or descriptors
of one side) gives all of them.

`extends` names a preset or another file (its path from this file's folder) to start from: an entity, descriptor or
connective of it that is defined again is replaced, phrases and lists are added to, and `"removed": [...]` removes
phrases of it (as they are written there).
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .knowledge import (
    AFTER,
    BEFORE,
    CONNECTIVE,
    ENTITY,
    Compound,
    Descriptor,
    Entity,
    Knowledge,
    LabelerError,
    Mention,
    Pattern,
)
from .label_rules import Switches
from .original_json import read_json
from .presets import PRESETS

_SECTIONS = {
    **{"name": str, "description": str, "extends": str, "labels": list, "entities": dict, "phrases": dict},
    **{"descriptors": dict, "connectives": dict, "compounds": list, "attached": list, "traveling": dict},
    **{"ignored": list, "removed": list, "slots": dict, "rewrites": dict, "switches": dict, "mistyped": list},
}
# A part of a template that has no other part in it.
_INNERMOST = re.compile(r"\{[^{}\[\]]*\}|\[[^{}\[\]]*\]")
_BRACKETS = frozenset("{}[]")
_SWITCHES = tuple(Switches.__dataclass_fields__)


def read_definition(
    source: str | Path | Mapping[str, Any], extended_by: tuple[Path, ...] = ()
) -> tuple[dict[str, Any], str]:
    """
    Return a definition, merged with what it extends, and its name for messages.

    Args:
        source: a JSON file, or a dictionary.
        extended_by: the files whose `extends` led here.

    Raises:
        LabelerError: it cannot be read, or has a section that is unknown or of the wrong kind.
    """
    if isinstance(source, Mapping):
        definition, where = dict(source), str(source.get("name", "definition"))
    else:
        path = Path(source)
        if path.resolve() in extended_by:
            raise LabelerError(f"{path}: 'extends' leads back to this file")
        extended_by = (*extended_by, path.resolve())
        definition, where = read_json(path, dict, "an object"), str(path)
    for section, value in definition.items():
        if section not in _SECTIONS:
            raise LabelerError(f"{where}: section {section!r} is unknown; known: {', '.join(sorted(_SECTIONS))}")
        if not isinstance(value, _SECTIONS[section]):
            kind = {str: "a string", list: "a list", dict: "an object"}[_SECTIONS[section]]
            raise LabelerError(f"{where}: {section!r} must be {kind}, found: {value!r}")
    if "extends" in definition:
        folder = extended_by[-1].parent if extended_by else Path()
        base = PRESETS[definition["extends"]]() if definition["extends"] in PRESETS else None
        if base is None:
            base = read_definition(folder / definition["extends"], extended_by)[0]
        definition = _merged(base, definition, where)
    return definition, where


def build(definition: Mapping[str, Any], where: str) -> tuple[Knowledge, Switches]:
    """
    Return the tables and switches of a definition.

    Raises:
        LabelerError: an entry is wrong; the message begins with `where` and names section and entry.
    """
    reader = _Reader(where, definition.get("slots", {}))
    entities = {
        name: Entity(name, reader.names(parents, f"entities: {name!r}"))
        for name, parents in definition.get("entities", {}).items()
    }
    mentions: dict[str, list[Mention]] = {text: [] for text in reader.phrases(definition.get("ignored", []), "ignored")}
    for entity, phrases in definition.get("phrases", {}).items():
        entry = f"phrases: {entity!r}"
        if entity not in entities:
            raise reader.error(entry, f"entity {entity!r} is not defined")
        for item in reader.listed(phrases, entry):
            text, own = item, tuple[str, ...]()
            if isinstance(item, Mapping):
                reader.keys(item, entry, {"text", "descriptors"})
                text, own = item.get("text"), reader.names(item.get("descriptors", []), entry)
            for phrase in reader.phrases([text], entry):
                mentions.setdefault(phrase, []).append(Mention(entity, own))
    if "removed" in definition:
        raise reader.error("removed", "needs 'extends', from which to remove phrases")
    patterns = [
        Pattern(text, ENTITY, mentions=tuple(found), source=f"{where}: phrases") for text, found in mentions.items()
    ]
    descriptors: dict[str, Descriptor] = {}
    described: dict[tuple[str, str], list[str]] = {}
    for name, entry in definition.get("descriptors", {}).items():
        spot = f"descriptors: {name!r}"
        reader.keys(entry, spot, {"before", "after", "probability", "creates"})
        probability = entry.get("probability")
        if probability is not None and (isinstance(probability, bool) or not isinstance(probability, int | float)):
            raise reader.error(spot, f"'probability' must be a number, found: {probability!r}")
        descriptors[name] = Descriptor(name, reader.names(entry.get("creates", []), spot), probability)
        for side, kind in (("before", BEFORE), ("after", AFTER)):
            for text in reader.phrases(entry.get(side, []), spot):
                described.setdefault((text, kind), []).append(name)
    patterns += [
        Pattern(text, kind, descriptors=tuple(names), source=f"{where}: descriptors: {names[0]!r}")
        for (text, kind), names in described.items()
    ]
    for text, entry in definition.get("connectives", {}).items():
        spot = f"connectives: {text!r}"
        reader.keys(entry, spot, {"left", "right", "passes"})
        left, right, passes = (reader.names(entry.get(key, []), spot) for key in ("left", "right", "passes"))
        source = f"{where}: connectives"
        patterns.append(
            Pattern(text, CONNECTIVE, descriptors=left, right_descriptors=right, passes=passes, source=source)
        )
    compounds = []
    for number, entry in enumerate(definition.get("compounds", [])):
        spot = f"compounds: entry {number}"
        reader.keys(entry, spot, {"entity", "including", "excluding"}, needed={"entity", "including"})
        sides = (reader.mentions(entry.get(side, []), spot) for side in ("including", "excluding"))
        compounds.append(Compound(entry["entity"], *sides))
    attached = []
    for number, entry in enumerate(definition.get("attached", [])):
        keys = {"entity", "descriptor", "gives"}
        reader.keys(entry, f"attached: entry {number}", keys, needed=keys)
        attached.append((entry["entity"], entry["descriptor"], entry["gives"]))
    traveling = tuple(
        (entity, frozenset(reader.names(names, f"traveling: {entity!r}")))
        for entity, names in definition.get("traveling", {}).items()
    )
    switches = definition.get("switches", {})
    reader.keys(switches, "switches", set(_SWITCHES))
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise reader.error(f"switches: {name!r}", f"must be true or false, found: {value!r}")
    try:
        knowledge = Knowledge(entities, descriptors, tuple(patterns), tuple(compounds), tuple(attached), traveling)
    except LabelerError as error:
        raise error if str(error).startswith(where) else LabelerError(f"{where}: {error}") from error
    return knowledge, Switches(**switches)


class _Reader:
    """Check the parts of a definition; errors name the entry."""

    def __init__(self, where: str, slots: Mapping[str, Any]) -> None:
        self.where = where
        self.slots = {name: self.names(values, f"slots: {name!r}") for name, values in slots.items()}

    def error(self, entry: str, message: str) -> LabelerError:
        return LabelerError(f"{self.where}: {entry}: {message}")

    def listed(self, value: Any, entry: str) -> list:
        if not isinstance(value, list | tuple):
            raise self.error(entry, f"must be a list, found: {value!r}")
        return list(value)

    def names(self, value: Any, entry: str) -> tuple[str, ...]:
        value = self.listed(value, entry)
        if not all(isinstance(name, str) and name.strip() for name in value):
            raise self.error(entry, f"must be a list of non-empty strings, found: {value!r}")
        return tuple(value)

    def keys(self, value: Any, entry: str, known: set[str], needed: Iterable[str] = ()) -> None:
        if not isinstance(value, Mapping):
            raise self.error(entry, f"must be an object, found: {value!r}")
        for key in value:
            if key not in known:
                raise self.error(entry, f"{key!r} is unknown; known: {', '.join(sorted(known))}")
        for key in sorted(needed):
            if key not in value:
                raise self.error(entry, f"{key!r} is missing")

    def mentions(self, items: Any, entry: str) -> tuple[Mention, ...]:
        found = []
        for item in self.listed(items, entry):
            if isinstance(item, Mapping):
                self.keys(item, entry, {"entity", "descriptors"}, needed={"entity"})
                found.append(Mention(item["entity"], self.names(item.get("descriptors", []), entry)))
            else:
                found.append(Mention(self.names([item], entry)[0]))
        return tuple(found)

    def phrases(self, items: Any, entry: str) -> list[str]:
        """Return all phrases of templates, each once: slots filled, choices made, optional parts with and without."""
        filled: dict[str, None] = {}
        for text in self.names(items, entry):
            waiting = [text.lower()]
            while waiting:
                template = waiting.pop()
                part = _INNERMOST.search(template)
                if part is None and not _BRACKETS.isdisjoint(template):
                    raise self.error(entry, f"{text!r}: a brace or bracket is not closed, or was not opened")
                if part is None:
                    filled[" ".join(template.split())] = None
                    continue
                for choice in self._choices(part[0], text, entry):
                    waiting.append(template[: part.start()] + choice + template[part.end() :])
        return list(filled)

    def _choices(self, part: str, text: str, entry: str) -> list[str]:
        inner = part[1:-1]
        if part[0] == "[":
            return [*inner.split("|"), ""]
        if "|" in inner:
            return inner.split("|")
        if inner not in self.slots:
            raise self.error(entry, f"{text!r}: slot {inner!r} is not defined")
        return list(self.slots[inner])


def _merged(base: Mapping[str, Any], change: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Merge a definition and its changes: replace names of both, add phrases and lists, remove `removed` phrases."""
    merged = {**base, **change}
    for section in base.keys() & change.keys():
        if isinstance(base[section], dict):
            merged[section] = {**base[section], **change[section]}
        elif isinstance(base[section], list) and section != "labels":
            merged[section] = [*base[section], *change[section]]
    phrases = {entity: list(texts) for entity, texts in base.get("phrases", {}).items()}
    for text in change.get("removed", []):
        holders = [texts for texts in phrases.values() if text in texts]
        if not holders:
            raise LabelerError(f"{where}: removed: {text!r} is no phrase of {base.get('name')!r}")
        for texts in holders:
            texts.remove(text)
    for entity, texts in change.get("phrases", {}).items():
        if not isinstance(texts, list):
            raise LabelerError(f"{where}: phrases: {entity!r}: must be a list, found: {texts!r}")
        phrases[entity] = [*phrases.get(entity, []), *texts]
    merged["phrases"] = phrases
    merged.pop("extends", None)
    merged.pop("removed", None)
    return merged
