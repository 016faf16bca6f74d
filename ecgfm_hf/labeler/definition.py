"""
A labeler's tables from JSON: an own definition, or the tables of ECG-FM's labeler (`load_original_json`).

An own definition is a dictionary or a JSON file:

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
      "switches": {"connective_gate": false, "honour_absence": true, "within_statement": true,
                   "doubtful_compounds": true},
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

import json
import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from .knowledge import (
    AFTER,
    BEFORE,
    CONNECTIVE,
    ENTITY,
    UNATTACHED,
    Compound,
    Descriptor,
    Entity,
    Knowledge,
    LabelerError,
    Mention,
    Pattern,
)
from .label_rules import Switches
from .presets import PRESETS

_SECTIONS = {
    **{"name": str, "description": str, "extends": str, "labels": list, "entities": dict, "phrases": dict},
    **{"descriptors": dict, "connectives": dict, "compounds": list, "attached": list, "traveling": dict},
    **{"ignored": list, "removed": list, "slots": dict, "rewrites": dict, "switches": dict, "mistyped": list},
}
# A part of a template that has no other part in it.
_INNERMOST = re.compile(r"\{[^{}\[\]]*\}|\[[^{}\[\]]*\]")
_BRACKETS = frozenset("{}[]")
_SIDES = {"b": BEFORE, "a": AFTER, "ab": UNATTACHED}  # of a descriptor in ECG-FM's tables


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
        definition, where = _read_json(path, dict, "an object"), str(path)
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

    def section(name: str, keys: Iterable[str] | None = None) -> _Entry:
        return _Entry(f"{where}: {name}", definition.get(name, {}), keys)

    def named(name: str, *keys: str) -> list[tuple[str, _Entry]]:
        entries = section(name).data.items()
        return [(key, _Entry(f"{where}: {name}: {key!r}", entry, keys)) for key, entry in entries]

    def numbered(name: str, *keys: str) -> list[_Entry]:
        entries = enumerate(definition.get(name, []))
        return [_Entry(f"{where}: {name}: entry {number}", entry, keys) for number, entry in entries]

    if "removed" in definition:
        raise LabelerError(f"{where}: removed: needs 'extends', from which to remove phrases")
    slots, entities, phrases, traveling = map(section, ("slots", "entities", "phrases", "traveling"))
    choices = {name: slots.names(name) for name in slots.data}
    ignored = _filled(_Entry(where, definition).names("ignored"), choices, f"{where}: ignored")
    mentions: dict[str, list[Mention]] = {text: [] for text in ignored}
    for entity in phrases.data:
        if entity not in entities.data:
            raise phrases.error(f"{entity!r}: entity {entity!r} is not defined")
        for item in phrases.mentions(entity, "text"):
            for text in _filled([item.entity], choices, f"{phrases.where}: {entity!r}"):
                mentions.setdefault(text, []).append(Mention(entity, item.descriptors))
    patterns = [Pattern(text, ENTITY, mentions=tuple(found), source=phrases.where) for text, found in mentions.items()]
    descriptors: dict[str, Descriptor] = {}
    described: dict[tuple[str, str], list[str]] = {}
    for name, entry in named("descriptors", "before", "after", "probability", "creates"):
        descriptors[name] = Descriptor(name, entry.names("creates"), entry.probability("probability"))
        for side, kind in (("before", BEFORE), ("after", AFTER)):
            for text in _filled(entry.names(side), choices, entry.where):
                described.setdefault((text, kind), []).append(name)
    patterns += [
        Pattern(text, kind, descriptors=tuple(names), source=f"{where}: descriptors: {names[0]!r}")
        for (text, kind), names in described.items()
    ]
    for text, entry in named("connectives", "left", "right", "passes"):
        left, right, passes = (entry.names(key) for key in ("left", "right", "passes"))
        source = f"{where}: connectives"
        patterns.append(
            Pattern(text, CONNECTIVE, descriptors=left, right_descriptors=right, passes=passes, source=source)
        )
    compounds = tuple(
        Compound(entry.text("entity"), entry.mentions("including"), entry.mentions("excluding"))
        for entry in numbered("compounds", "entity", "including", "excluding")
    )
    attached = tuple(
        (entry.text("entity"), entry.text("descriptor"), entry.text("gives"))
        for entry in numbered("attached", "entity", "descriptor", "gives")
    )
    travels = tuple((entity, frozenset(traveling.names(entity))) for entity in traveling.data)
    switches = section("switches", Switches.__dataclass_fields__)
    graph = {name: Entity(name, entities.names(name)) for name in entities.data}
    try:
        knowledge = Knowledge(graph, descriptors, tuple(patterns), compounds, attached, travels)
    except LabelerError as error:
        raise error if str(error).startswith(where) else LabelerError(f"{where}: {error}") from error
    return knowledge, Switches(**{name: switches.flag(name) for name in switches.data})


def load_original_json(folder: str | Path) -> Knowledge:
    """
    Read the JSON tables of ECG-FM's labeler, from a clone of the ECG-FM repository.

    Args:
        folder (`str` or `Path`): with `entity_tem.json` and `entity_pat.json`, and those of `desc_tem`, `desc_pat`,
            `split_desc_tem`, `connective`, `compound_tem`, `attached_desc_tem`, `traveling_desc_tem` and
            `uncertainty_map` that exist.

    Returns:
        `Knowledge`: ready for a `Labeler`.

    Raises:
        LabelerError: a file is missing, is no JSON, or has an entry that is wrong; the message names file and entry.
    """
    folder = Path(folder)
    for name in ("entity_tem", "entity_pat"):
        if not (folder / f"{name}.json").is_file():
            raise LabelerError(f"{folder / name}.json: the file is missing, and a labeler needs it")

    entities: dict[str, Entity] = {}
    for entry in _original_entries(folder, "entity_tem"):
        name = entry.new_name(entities)
        entities[name] = Entity(name, entry.names("sup"), entry.flag("require_descriptors"))
    for entry in _original_entries(folder, "entity_tem"):
        entry.check_defined(entry.names("sup"), entities, "entity")

    path = folder / "uncertainty_map.json"
    uncertainty = _Entry(str(path), _read_json(path, dict, "an object") if path.is_file() else {})
    descriptors: dict[str, Descriptor] = {}
    patterns: list[Pattern] = []
    for entry in _original_entries(folder, "desc_tem"):
        name, creates = entry.new_name(descriptors), entry.names("create_entities")
        entry.check_defined(creates, entities, "entity")
        descriptors[name] = Descriptor(name, creates, uncertainty.probability(name))
        patterns += [entry.pattern(BEFORE, text, descriptors=(name,)) for text in entry.names("patterns")]
    for name in uncertainty.data:
        uncertainty.check_defined([name], descriptors, "descriptor")
    splits: dict[str, tuple[str, ...]] = {}
    for entry in _original_entries(folder, "split_desc_tem"):
        name = entry.new_name({**descriptors, **splits})
        splits[name] = entry.names("split")
        entry.check_defined(splits[name], descriptors, "descriptor")
        patterns += [entry.pattern(BEFORE, text, descriptors=splits[name]) for text in entry.names("patterns")]

    def described(entry: _Entry, names: Iterable[str]) -> tuple[str, ...]:
        names = tuple(part for name in names for part in splits.get(name, (name,)))
        entry.check_defined(names, descriptors, "descriptor")
        return names

    def described_by(entry: _Entry, key: str) -> tuple[str, ...]:
        return described(entry, [item.entity for item in entry.mentions(key, "tem")])

    def mentions(entry: _Entry, key: str) -> tuple[Mention, ...]:
        found = entry.mentions(key, "tem")
        entry.check_defined([item.entity for item in found], entities, "entity")
        return tuple(Mention(item.entity, described(entry, item.descriptors)) for item in found)

    for entry in _original_entries(folder, "entity_pat"):
        patterns.append(entry.pattern(ENTITY, mentions=mentions(entry, "entities")))
    for entry in _original_entries(folder, "desc_pat"):
        side = entry.data.get("before_after", "b")
        if side not in _SIDES:
            raise entry.error(f"'before_after' must be 'b', 'a' or 'ab', found: {side!r}")
        if entry.flag("parse_before_entities"):
            raise entry.error("'parse_before_entities' is not supported (ECG-FM's labeler never writes it)")
        patterns.append(entry.pattern(_SIDES[side], descriptors=described_by(entry, "descriptors")))
    for entry in _original_entries(folder, "connective"):
        sides = entry.data.get("descriptors", [[], []])
        if not (isinstance(sides, list) and len(sides) == 2 and all(isinstance(side, list) for side in sides)):
            raise entry.error(f"'descriptors' must be two lists, [left, right], found: {sides!r}")
        sides = _Entry(entry.where, dict(zip(("left", "right"), sides, strict=True)))
        left, right = described_by(sides, "left"), described_by(sides, "right")
        patterns.append(entry.pattern(CONNECTIVE, descriptors=left, right_descriptors=right))

    compounds = []
    for entry in _original_entries(folder, "compound_tem"):
        entry.check_defined([entry.text("entity")], entities, "entity")
        compounds.append(Compound(entry.text("entity"), mentions(entry, "including"), mentions(entry, "excluding")))
    attached = []
    for entry in _original_entries(folder, "attached_desc_tem"):
        entity, descriptor, result = (entry.text(key) for key in ("entity", "descriptor", "resulting_entity"))
        entry.check_defined([entity, result], entities, "entity")
        entry.check_defined([descriptor], descriptors, "descriptor")
        attached.append((entity, descriptor, result))
    traveling = []
    for entry in _original_entries(folder, "traveling_desc_tem"):
        entry.check_defined([entry.text("entity")], entities, "entity")
        traveling.append((entry.text("entity"), frozenset(described(entry, entry.names("descriptors")))))
    return Knowledge(entities, descriptors, tuple(patterns), tuple(compounds), tuple(attached), tuple(traveling))


class _Entry:
    """An object of a labeler's JSON. Its values are checked when they are read; errors name the entry."""

    def __init__(self, where: str, data: Any, keys: Iterable[str] | None = None) -> None:
        self.where, self.data = where, data
        if not isinstance(data, Mapping):
            raise self.error(f"must be an object, found: {data!r}")
        for key in data:
            if keys is not None and key not in keys:
                raise self.error(f"{key!r} is unknown; known: {', '.join(sorted(keys))}")

    def error(self, message: str) -> LabelerError:
        return LabelerError(f"{self.where}: {message}")

    def text(self, key: str) -> str:
        value = self.data.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"{key!r} must be a non-empty string, found: {value!r}")
        return value

    def flag(self, key: str) -> bool:
        value = self.data.get(key, False)
        if not isinstance(value, bool):
            raise self.error(f"{key!r} must be true or false, found: {value!r}")
        return value

    def probability(self, key: str) -> float | None:
        value = self.data.get(key)
        if value is None and key not in self.data:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise self.error(f"{key!r}: a probability must be above 0 and at most 1, found: {value!r}")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        value = _listed(self.data.get(key, ()))
        if not all(isinstance(name, str) and name.strip() for name in value):
            raise self.error(f"{key!r} must be a list of non-empty strings, found: {value!r}")
        return tuple(value)

    def mentions(self, key: str, name: str = "entity") -> tuple[Mention, ...]:
        """Return names with their descriptors: each a plain name, or `{name: "...", "descriptors": [...]}`."""
        found = []
        for item in _listed(self.data.get(key, ())):
            item = {name: item} if isinstance(item, str) else item
            part = _Entry(f"{self.where}: {key!r}", item, (name, "descriptors"))
            found.append(Mention(part.text(name), part.names("descriptors")))
        return tuple(found)

    def new_name(self, taken: Container[str]) -> str:
        name = self.text("name")
        if name in taken:
            raise self.error(f"the name {name!r} occurs already")
        return name

    def check_defined(self, names: Iterable[str], table: Container[str], what: str) -> None:
        for name in names:
            if name not in table:
                raise self.error(f"{what} {name!r} is not defined")

    def pattern(self, kind: str, text: str | None = None, **meaning: Any) -> Pattern:
        text = self.text("pattern") if text is None else text
        return Pattern(text, kind, source=self.where.removesuffix(f" ({text!r})"), **meaning)


def _listed(value: Any) -> list:
    """Return a list; a single value stands for a list of one."""
    return list(value) if isinstance(value, list | tuple) else [value]


def _original_entries(folder: Path, name: str) -> list[_Entry]:
    path = folder / f"{name}.json"
    entries = []
    for number, data in enumerate(_read_json(path, list, "an array") if path.is_file() else []):
        named = [data[key] for key in ("name", "pattern", "entity") if isinstance(data, dict) and key in data]
        entries.append(_Entry(f"{path}: entry {number}{f' ({named[0]!r})' if named else ''}", data))
    return entries


def _filled(templates: Iterable[str], slots: Mapping[str, Iterable[str]], where: str) -> list[str]:
    """Return all phrases of templates, each once: slots filled, choices made, optional parts with and without."""
    filled: dict[str, None] = {}
    for text in templates:
        waiting = [text.lower()]
        while waiting:
            template = waiting.pop()
            part = _INNERMOST.search(template)
            if part is None and not _BRACKETS.isdisjoint(template):
                raise LabelerError(f"{where}: {text!r}: a brace or bracket is not closed, or was not opened")
            if part is None:
                filled[" ".join(template.split())] = None
                continue
            inner = part[0][1:-1]
            if part[0][0] == "[":
                choices: Iterable[str] = [*inner.split("|"), ""]
            elif "|" in inner:
                choices = inner.split("|")
            elif inner in slots:
                choices = slots[inner]
            else:
                raise LabelerError(f"{where}: {text!r}: slot {inner!r} is not defined")
            waiting += [template[: part.start()] + choice + template[part.end() :] for choice in choices]
    return list(filled)


def _merged(base: Mapping[str, Any], change: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Merge a definition and its changes: replace names of both, add phrases and lists, remove `removed` phrases."""
    merged = {**base, **change}
    for section in base.keys() & change.keys():
        if isinstance(base[section], dict):
            merged[section] = {**base[section], **change[section]}
        elif isinstance(base[section], list) and section != "labels":
            merged[section] = [*base[section], *change[section]]
    phrases = {entity: _listed(texts) for entity, texts in base.get("phrases", {}).items()}
    for text in change.get("removed", []):
        holders = [texts for texts in phrases.values() if text in texts]
        if not holders:
            raise LabelerError(f"{where}: removed: {text!r} is no phrase of {base.get('name')!r}")
        for texts in holders:
            texts.remove(text)
    for entity, texts in change.get("phrases", {}).items():
        phrases[entity] = [*phrases.get(entity, []), *_listed(texts)]
    merged["phrases"] = phrases
    merged.pop("extends", None)
    merged.pop("removed", None)
    return merged


def _read_json(path: Path, kind: type, what: str) -> Any:
    """
    Return the content of a JSON file.

    Raises:
        LabelerError: it cannot be read, is no JSON, or is no `kind`.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise LabelerError(f"{path}: cannot be read: {error}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise LabelerError(f"{path}: is no JSON: {error}") from error
    if not isinstance(data, kind):
        raise LabelerError(f"{path}: must be {what}, found: {type(data).__name__}")
    return data
