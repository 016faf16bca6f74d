"""The original's JSON tables, read from the user's own clone of the ECG-FM repository."""

import json
from collections.abc import Iterable
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

_SIDES = {"b": BEFORE, "a": AFTER, "ab": UNATTACHED}


def load_original_json(folder: str | Path) -> Knowledge:
    """
    Read the tables of an original JSON directory.

    Args:
        folder (`str` or `Path`): with `entity_tem.json` and `entity_pat.json`, and those of `desc_tem`, `desc_pat`,
            `split_desc_tem`, `connective`, `compound_tem`, `attached_desc_tem`, `traveling_desc_tem` and
            `uncertainty_map` that exist.

    Returns:
        `Knowledge`: ready for a `Labeler`.

    Raises:
        LabelerError: a file is missing, is no JSON, or has an entry that is wrong; the message names file and entry.
            (The format is the original's.)
    """
    folder = Path(folder)
    for name in ("entity_tem", "entity_pat"):
        if not (folder / f"{name}.json").is_file():
            raise LabelerError(f"{folder / name}.json: the file is missing, and a labeler needs it")

    entities: dict[str, Entity] = {}
    for entry in _entries(folder, "entity_tem"):
        name = entry.unique_name(entities)
        known = ("name", "sup", "require_descriptors")
        notes = {key: value for key, value in entry.data.items() if key not in known}
        entities[name] = Entity(name, entry.names("sup"), entry.flag("require_descriptors"), notes)
    for entry in _entries(folder, "entity_tem"):
        entry.check_known(entry.names("sup"), entities, "entity")

    probabilities = _uncertainty(folder)
    descriptors: dict[str, Descriptor] = {}
    patterns: list[Pattern] = []
    for entry in _entries(folder, "desc_tem"):
        name = entry.unique_name(descriptors)
        creates = entry.names("create_entities")
        entry.check_known(creates, entities, "entity")
        descriptors[name] = Descriptor(name, creates, probabilities.get(name))
        patterns += [entry.pattern(BEFORE, text=text, descriptors=(name,)) for text in entry.names("patterns")]
    splits: dict[str, tuple[str, ...]] = {}
    for entry in _entries(folder, "split_desc_tem"):
        name = entry.unique_name({**descriptors, **splits})
        splits[name] = entry.names("split")
        entry.check_known(splits[name], descriptors, "descriptor")
        patterns += [entry.pattern(BEFORE, text=text, descriptors=splits[name]) for text in entry.names("patterns")]
    for name in probabilities:
        if name not in descriptors:
            raise LabelerError(f"{folder / 'uncertainty_map.json'}: {name!r}: descriptor {name!r} is not defined")

    def described(entry: "_Entry", names: Iterable[str]) -> tuple[str, ...]:
        names = tuple(part for name in names for part in splits.get(name, (name,)))
        return entry.check_known(names, descriptors, "descriptor")

    def mentions(entry: "_Entry", key: str) -> tuple[Mention, ...]:
        found = [entry.template(item, key) for item in entry.listed(key)]
        entry.check_known([name for name, _ in found], entities, "entity")
        return tuple(Mention(name, described(entry, names)) for name, names in found)

    for entry in _entries(folder, "entity_pat"):
        patterns.append(entry.pattern(ENTITY, mentions=mentions(entry, "entities")))
    for entry in _entries(folder, "desc_pat"):
        side = entry.data.get("before_after", "b")
        if side not in _SIDES:
            raise entry.error(f"'before_after' must be 'b', 'a' or 'ab', found: {side!r}")
        if entry.flag("parse_before_entities"):
            raise entry.error("'parse_before_entities' is not supported (the original's writer never emits it)")
        names = [entry.template(item, "descriptors")[0] for item in entry.listed("descriptors")]
        patterns.append(entry.pattern(_SIDES[side], descriptors=described(entry, names)))
    for entry in _entries(folder, "connective"):
        sides = entry.data.get("descriptors", [[], []])
        if not (isinstance(sides, list) and len(sides) == 2 and all(isinstance(side, list) for side in sides)):
            raise entry.error(f"'descriptors' must be two lists, [left, right], found: {sides!r}")
        left, right = (described(entry, [entry.template(item, "descriptors")[0] for item in side]) for side in sides)
        patterns.append(entry.pattern(CONNECTIVE, descriptors=left, right_descriptors=right))

    compounds = []
    for entry in _entries(folder, "compound_tem"):
        name = entry.text("entity")
        entry.check_known([name], entities, "entity")
        compounds.append(Compound(name, mentions(entry, "including"), mentions(entry, "excluding")))
    attached = []
    for entry in _entries(folder, "attached_desc_tem"):
        entity, descriptor, result = (entry.text(key) for key in ("entity", "descriptor", "resulting_entity"))
        entry.check_known([entity, result], entities, "entity")
        entry.check_known([descriptor], descriptors, "descriptor")
        attached.append((entity, descriptor, result))
    traveling = []
    for entry in _entries(folder, "traveling_desc_tem"):
        entity = entry.text("entity")
        entry.check_known([entity], entities, "entity")
        traveling.append((entity, frozenset(described(entry, entry.names("descriptors")))))

    return Knowledge(entities, descriptors, tuple(patterns), tuple(compounds), tuple(attached), tuple(traveling))


class _Entry:
    """One object of an array, with errors that name its file and number."""

    def __init__(self, path: Path, number: int, data: Any) -> None:
        self.path, self.number, self.data = path, number, data
        if not isinstance(data, dict):
            raise self.error(f"must be an object, found: {data!r}")

    def error(self, message: str) -> LabelerError:
        what = (
            next((self.data[key] for key in ("name", "pattern", "entity") if key in self.data), None)
            if isinstance(self.data, dict)
            else None
        )
        entry = f"entry {self.number}" if what is None else f"entry {self.number} ({what!r})"
        return LabelerError(f"{self.path}: {entry}: {message}")

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

    def listed(self, key: str) -> list:
        value = self.data.get(key, [])
        return value if isinstance(value, list) else [value]

    def names(self, key: str) -> tuple[str, ...]:
        value = self.listed(key)
        if not all(isinstance(name, str) and name for name in value):
            raise self.error(f"{key!r} must be a list of names, found: {value!r}")
        return tuple(value)

    def unique_name(self, taken: dict) -> str:
        name = self.text("name")
        if name in taken:
            raise self.error(f"the name {name!r} occurs already")
        return name

    def template(self, item: Any, key: str) -> tuple[str, tuple[str, ...]]:
        """Return name and descriptors of a plain name, or of an object `{"tem": name, "descriptors": [...]}`."""
        if isinstance(item, str):
            return item, ()
        if not isinstance(item, dict) or not isinstance(item.get("tem"), str):
            raise self.error(f"{key!r}: must be a name or an object with 'tem', found: {item!r}")
        return item["tem"], _Entry(self.path, self.number, item).names("descriptors")

    def check_known(self, names: Iterable[str], table: dict, what: str) -> tuple[str, ...]:
        for name in names:
            if name not in table:
                raise self.error(f"{what} {name!r} is not defined")
        return tuple(names)

    def pattern(self, kind: str, text: str | None = None, **given: tuple) -> Pattern:
        text = self.text("pattern") if text is None else text
        return Pattern(text, kind, source=f"{self.path}: entry {self.number}", **given)


def _entries(folder: Path, name: str) -> list[_Entry]:
    path = folder / f"{name}.json"
    data = read_json(path, list, "an array") if path.is_file() else []
    return [_Entry(path, number, entry) for number, entry in enumerate(data)]


def _uncertainty(folder: Path) -> dict[str, float]:
    path = folder / "uncertainty_map.json"
    if not path.is_file():
        return {}
    data = read_json(path, dict, "an object")
    for name, value in data.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise LabelerError(f"{path}: {name!r}: must be a number above 0 and at most 1, found: {value!r}")
    return data


def read_json(path: Path, kind: type, what: str) -> Any:
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
