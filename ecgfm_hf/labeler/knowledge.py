"""The tables of a labeler: entities and their parents, descriptors, phrases, and which findings follow from others."""

from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from ..utils.errors import ECGFMError

ENTITY, BEFORE, AFTER, UNATTACHED, CONNECTIVE = "entity", "before", "after", "unattached", "connective"


class LabelerError(ECGFMError, ValueError):
    """The tables of a labeler are wrong. The message names the file and the entry."""


@dataclass(frozen=True)
class Entity:
    """A finding. `parents` follow from it; with `require_descriptors` it is no label of its own."""

    name: str
    parents: tuple[str, ...] = ()
    require_descriptors: bool = False
    notes: dict = field(default_factory=dict, compare=False, hash=False)


@dataclass(frozen=True)
class Descriptor:
    """A property of a finding. `creates` names entities that appear beside what it describes."""

    name: str
    creates: tuple[str, ...] = ()
    probability: float | None = None


@dataclass(frozen=True)
class Mention:
    """An entity, with the descriptors that come with it."""

    entity: str
    descriptors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pattern:
    """
    A phrase of normalised text, and its meaning.

    `kind` is `"entity"` (stands for `mentions`; none means: recognised, and ignored), `"before"` or `"after"` (gives
    `descriptors` to the next entity on its right or left), `"unattached"` (recognised only) or `"connective"` (gives
    `descriptors` to its left and `right_descriptors` to its right, and copies descriptors in `passes` from its left to
    its right). `source` names the table and entry, for messages.
    """

    text: str
    kind: str
    mentions: tuple[Mention, ...] = ()
    descriptors: tuple[str, ...] = ()
    right_descriptors: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    source: str = field(default="", compare=False)


@dataclass(frozen=True)
class Compound:
    """An entity that a report has where all of `including` are present and none of `excluding` is."""

    entity: str
    including: tuple[Mention, ...]
    excluding: tuple[Mention, ...] = ()


@dataclass(frozen=True)
class Knowledge:
    """
    All tables of a labeler.

    Args:
        entities, descriptors: by name.
        patterns: the phrases, each text once.
        compounds: entities from combinations in a report.
        attached: `(entity, descriptor, result)`: an entity that carries the descriptor gives the result.
        traveling: `(entity, descriptors)`: descriptors that pass on to the ancestors of what carries them, up to the
            entity.
        absence: descriptors of a finding that the recording does not have.
        certain: entities that descriptors create with probability 1, however doubtful the finding is.

    Raises:
        LabelerError: a name is not defined, a phrase occurs twice or is empty, or an entity is its own ancestor.
    """

    entities: dict[str, Entity]
    descriptors: dict[str, Descriptor]
    patterns: tuple[Pattern, ...]
    compounds: tuple[Compound, ...] = ()
    attached: tuple[tuple[str, str, str], ...] = ()
    traveling: tuple[tuple[str, frozenset[str]], ...] = ()
    absence: frozenset[str] = frozenset({"Absence"})
    certain: frozenset[str] = frozenset({"Needs clinical correlation"})

    def __post_init__(self) -> None:
        for entity in self.entities.values():
            self._defined(entity.parents, self.entities, f"entity {entity.name!r}: parent")
        self._refuse_cycles()
        for descriptor in self.descriptors.values():
            self._defined(descriptor.creates, self.entities, f"descriptor {descriptor.name!r}: entity")
            _refuse_improbable(descriptor)
        self._check_patterns()
        for compound in self.compounds:
            where = f"compound {compound.entity!r}: "
            self._defined([compound.entity], self.entities, where + "entity")
            self._mentions(compound.including + compound.excluding, where)
            if not compound.including:
                raise LabelerError(f"{where}'including' must name at least one entity")
        for carrier, word, result in self.attached:
            where = f"attached descriptor {word!r} of {carrier!r}: "
            self._defined([carrier, result], self.entities, where + "entity")
            self._defined([word], self.descriptors, where + "descriptor")
        for root, descriptors in self.traveling:
            where = f"traveling descriptors of {root!r}: "
            self._defined([root], self.entities, where + "entity")
            self._defined(sorted(descriptors), self.descriptors, where + "descriptor")

    def _defined(self, names: Iterable[str], table: Container[str], what: str) -> None:
        for name in names:
            if not isinstance(name, str) or name not in table:
                raise LabelerError(f"{what} {name!r} is not defined")

    def _mentions(self, mentions: Iterable[Mention], where: str) -> None:
        for mention in mentions:
            self._defined([mention.entity], self.entities, where + "entity")
            self._defined(mention.descriptors, self.descriptors, where + "descriptor")

    def _check_patterns(self) -> None:
        first: dict[str, Pattern] = {}
        for pattern in self.patterns:
            where = f"{pattern.source or 'pattern'} {pattern.text!r}: "
            if not pattern.text.strip():
                raise LabelerError(f"{where}a phrase must not be empty")
            if pattern.text in first:
                raise LabelerError(f"{where}the phrase occurs already ({first[pattern.text].source or 'pattern'})")
            first[pattern.text] = pattern
            self._mentions(pattern.mentions, where)
            named = pattern.descriptors + pattern.right_descriptors + pattern.passes
            self._defined(named, self.descriptors, where + "descriptor")

    def _refuse_cycles(self) -> None:
        finished: set[str] = set()
        for start in self.entities:
            path: list[str] = []
            stack = [(start, False)]
            while stack:
                name, leaving = stack.pop()
                if leaving:
                    finished.add(path.pop())
                elif name in path:
                    cycle = " > ".join([*path[path.index(name) :], name])
                    raise LabelerError(f"entity {name!r}: it is its own ancestor: {cycle}")
                elif name not in finished:
                    path.append(name)
                    stack.append((name, True))
                    stack.extend((parent, False) for parent in self.entities[name].parents)


def _refuse_improbable(descriptor: Descriptor) -> None:
    value = descriptor.probability
    if value is not None and not 0 < value <= 1:
        raise LabelerError(
            f"descriptor {descriptor.name!r}: probability must be above 0 and at most 1, found: {value!r}"
        )
