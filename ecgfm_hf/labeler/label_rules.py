"""From the phrases of a report to its labels: attachment, probability, propagation through the graph, compounds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .knowledge import AFTER, BEFORE, CONNECTIVE, ENTITY, Compound, Knowledge, Mention
from .matching import Hit

# The share of the remaining doubt that a parent loses: a possible infarct (0.5) is an injury with 0.65.
PARENT_GAIN = 0.3


@dataclass(frozen=True)
class Switches:
    """
    How descriptors act.

    Args:
        connective_gate: attach descriptors only in reports that contain a connective ("with", "and"), as the original
            does (a side effect of its tables; it decides the probabilities of most reports).
        honour_absence: drop an entity that "no" or "without" describes. The original keeps it.
        within_statement: keep a descriptor from reaching over ";" into another statement, as it does in the original.
            One that begins with a colon or comma, without an entity to its right (", unlikely"), describes its left.
        doubtful_compounds: give a compound the least probability of what it includes. In the original it is certain.
    """

    connective_gate: bool = True
    honour_absence: bool = False
    within_statement: bool = False
    doubtful_compounds: bool = False


@dataclass(slots=True)
class Instance:
    """A mention in a report: the hit that it comes from, and the descriptors that reached it."""

    hit: Hit
    entity: str
    descriptors: list[str]
    attached: list[Hit]


class Row(NamedTuple):
    """
    An entity of a report and why it is there.

    `source` is `"text"`, `"parent"`, `"descriptor"`, `"attached"` or `"compound"`; `path` leads from what was found to
    the entity; `via` is the descriptor, or the entities of the compound, that it began with.
    """

    entity: str
    probability: float
    descriptors: tuple[str, ...] = ()
    source: str = "text"
    path: tuple[str, ...] = ()
    via: tuple[str, ...] = ()


# An entity's hit (None for the end of a statement), its descriptors and the hits that they come from; and a hit with
# descriptors that look for an entity.
_Reached = tuple[Hit | None, list[str], list[Hit]]
_Waiting = tuple[Hit, tuple[str, ...]]


class Inference:
    """
    Turn hits into rows and labels, as the original does.
    """

    def __init__(self, knowledge: Knowledge, switches: Switches) -> None:
        self.knowledge, self.switches = knowledge, switches
        self._ancestors = {name: _ancestors(knowledge, name) for name in knowledge.entities}
        self._attached = {(entity, descriptor): result for entity, descriptor, result in knowledge.attached}
        self._probabilities = {
            name: descriptor.probability
            for name, descriptor in knowledge.descriptors.items()
            if descriptor.probability is not None
        }
        self._active = frozenset(  # Descriptors that do more than name a label of their own.
            {name for name, descriptor in knowledge.descriptors.items() if descriptor.creates}
            | {descriptor for _, descriptor, _ in knowledge.attached}
            | {descriptor for _, descriptors in knowledge.traveling for descriptor in descriptors}
        )
        # Without descriptors that act, an entity always gives the same rows, so they are made once.
        self._certain = {
            name: (Row(name, 1.0, path=(name,)), *self._parents(name, 1.0, (name,))) for name in self._ancestors
        }

    # ------------------------------------------------------------------------------------------------------------------
    # Attachment
    # ------------------------------------------------------------------------------------------------------------------

    def instances(self, text: str, hits: Sequence[Hit]) -> list[Instance]:
        """Return the mentions of a report with the descriptors that reach them."""
        gate_open = not self.switches.connective_gate or any(hit.pattern.kind == CONNECTIVE for hit in hits)
        reached: list[_Reached] = []
        waiting: list[_Waiting] = []  # Descriptors that look for an entity on their right.
        last_end = 0
        for hit in hits:
            pattern, kind = hit.pattern, hit.pattern.kind
            if self.switches.within_statement and ";" in text[last_end : hit.start]:
                self._describe_left(text, reached, waiting)
                if reached:
                    reached.append((None, [], []))  # A wall: what comes now reaches nothing to the left of it.
            last_end = hit.end
            if kind == ENTITY:
                entry = (hit, list(_all(descriptors for _, descriptors in waiting)), [by for by, _ in waiting])
                reached.append(entry)
                waiting.clear()
            elif kind == BEFORE and gate_open:
                waiting.append((hit, pattern.descriptors))
            elif kind == AFTER and gate_open and reached:
                reached[-1][1].extend(pattern.descriptors)
                reached[-1][2].append(hit)
            elif kind == CONNECTIVE:
                if reached and pattern.passes:
                    passed = tuple(name for name in pattern.passes if name in reached[-1][1])
                    waiting += [(hit, passed)] if passed else []
                if reached and pattern.descriptors:
                    reached[-1][1].extend(pattern.descriptors)
                    reached[-1][2].append(hit)
                if pattern.right_descriptors:
                    waiting.append((hit, pattern.right_descriptors))
        if self.switches.within_statement:
            self._describe_left(text, reached, waiting)
        return [
            Instance(hit, mention.entity, [*mention.descriptors, *descriptors], attached)
            for hit, descriptors, attached in reached
            if hit is not None
            for mention in hit.pattern.mentions
        ]

    @staticmethod
    def _describe_left(text: str, reached: list[_Reached], waiting: list[_Waiting]) -> None:
        """Attach what waits at the end of a statement to its left: "infarct: no", with nothing after it."""
        for hit, descriptors in waiting:
            if reached and text[hit.start] in ":,":
                reached[-1][1].extend(descriptors)
                reached[-1][2].append(hit)
        waiting.clear()

    # ------------------------------------------------------------------------------------------------------------------
    # The rows of one instance, then of the report
    # ------------------------------------------------------------------------------------------------------------------

    def rows(self, instance: Instance) -> Sequence[Row]:
        """
        Return the entities that an instance gives: itself, its ancestors, and those that its descriptors add.

        An ancestor that is reached on several paths comes once, with the largest probability.
        """
        found = list(dict.fromkeys(instance.descriptors))
        if not found:
            return self._certain[instance.entity]
        probability = min((self._probabilities[name] for name in found if name in self._probabilities), default=1.0)
        carried = tuple(name for name in found if name not in self.knowledge.absence)
        if len(carried) < len(found) and self.switches.honour_absence:
            return ()
        own = Row(instance.entity, probability, carried, path=(instance.entity,))
        rows = [own, *self._parents(own.entity, probability, own.path)]
        if self._active.isdisjoint(found):
            return rows
        rows += self._created(found, probability)
        rows = self._travel(rows)
        return rows + self._attach(rows)

    def _parents(self, entity: str, probability: float, path: tuple[str, ...]) -> list[Row]:
        gained = _Gains(probability)
        return [
            Row(name, gained[len(way)], source="parent", path=path + way)
            for name, way in self._ancestors[entity].items()
        ]

    def _created(self, descriptors: Iterable[str], probability: float) -> list[Row]:
        rows = []
        for descriptor in descriptors:
            for entity in self.knowledge.descriptors[descriptor].creates:
                own = 1.0 if entity in self.knowledge.certain else probability
                rows.append(Row(entity, own, source="descriptor", path=(entity,), via=(descriptor,)))
                rows += self._parents(entity, own, (entity,))
        return rows

    def _travel(self, rows: list[Row]) -> list[Row]:
        for root, traveling in self.knowledge.traveling:
            for source in list(rows):
                passed = traveling.intersection(source.descriptors)
                if not passed or not self._is_a(source.entity, root):
                    continue
                for index, row in enumerate(rows):
                    if row.entity in self._ancestors[source.entity] and self._is_a(row.entity, root):
                        carried = row.descriptors + tuple(sorted(passed.difference(row.descriptors)))
                        rows[index] = row._replace(descriptors=carried)
        return rows

    def _attach(self, rows: list[Row]) -> list[Row]:
        added = []
        for row in rows:
            for descriptor in row.descriptors:
                result = self._attached.get((row.entity, descriptor))
                if result is not None:
                    path = (*row.path, result)
                    added.append(Row(result, row.probability, source="attached", path=path, via=(descriptor,)))
                    added += self._parents(result, row.probability, path)
        return added

    def _is_a(self, entity: str, root: str) -> bool:
        return entity == root or root in self._ancestors[entity]

    def compounds(self, groups: Sequence[Sequence[Row]]) -> list[Row]:
        """Return the entities that follow from combinations in a report."""
        present = {row.entity for group in groups for row in group}
        rows = []
        for compound in self.knowledge.compounds:
            if _fires(compound, present, groups):
                via = tuple(mention.entity for mention in compound.including)
                probability = _least(compound, groups) if self.switches.doubtful_compounds else 1.0
                rows.append(Row(compound.entity, probability, source="compound", path=(compound.entity,), via=via))
                parents = self._parents(compound.entity, probability, (compound.entity,))
                rows += [row._replace(via=via) for row in parents]
        return rows

    def labels(self, rows: Iterable[Row]) -> dict[str, float]:
        """Return the labels of rows: entities with their largest probability, `"Entity - Descriptor"` with 1."""
        labels: dict[str, float] = {}
        entities = self.knowledge.entities
        for row in rows:
            if labels.get(row.entity, 0.0) < row.probability and not entities[row.entity].require_descriptors:
                labels[row.entity] = row.probability
            for descriptor in row.descriptors:
                labels[f"{row.entity} - {descriptor}"] = 1.0
        return labels


class _Gains(dict):
    """The probability of an ancestor by the number of steps to it."""

    def __init__(self, probability: float) -> None:
        super().__init__({0: probability})

    def __missing__(self, steps: int) -> float:
        before = self[steps - 1]
        self[steps] = before + PARENT_GAIN * (1.0 - before)
        return self[steps]


def _all(lists: Iterable[Iterable[str]]) -> Iterable[str]:
    for items in lists:
        yield from items


def _fires(compound: Compound, present: set[str], groups: Sequence[Sequence[Row]]) -> bool:
    """Return whether a report has all items that a compound includes, and none that it excludes."""

    def has(item: Mention) -> bool:
        if item.entity not in present or not item.descriptors:
            return item.entity in present
        needed = set(item.descriptors)
        return any(
            needed.issubset(_all(row.descriptors for row in group if row.entity == item.entity)) for group in groups
        )

    return all(map(has, compound.including)) and not any(map(has, compound.excluding))


def _least(compound: Compound, groups: Sequence[Sequence[Row]]) -> float:
    """Return the probability of the most doubtful entity that a compound includes."""
    rows = [row for group in groups for row in group]
    return min(max(row.probability for row in rows if row.entity == item.entity) for item in compound.including)


def _ancestors(knowledge: Knowledge, entity: str) -> dict[str, tuple[str, ...]]:
    """Return the ancestors of an entity, each with its longest way up, which gives the largest probability."""
    ways: dict[str, tuple[str, ...]] = {}
    stack: list[tuple[str, ...]] = [(parent,) for parent in knowledge.entities[entity].parents]
    while stack:
        way = stack.pop()
        if len(way) > len(ways.get(way[-1], ())):
            ways[way[-1]] = way
            stack.extend((*way, parent) for parent in knowledge.entities[way[-1]].parents)
    return ways
