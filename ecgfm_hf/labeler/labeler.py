"""The labeler: a report in, its labels out."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .definition import build, load_original_json, read_definition
from .explanation import Explanation, explain
from .knowledge import Knowledge, LabelerError
from .label_rules import Inference, Switches
from .matching import Hit, Matcher, is_word_character
from .normalization import Normalizer
from .presets import PRESETS
from .report_labels import ReportLabels, status_of


class Labeler:
    """
    Label free-text ECG reports by a table of phrases and a graph of which findings follow from which.

        >>> labeler = Labeler.from_definition("my_labels.json")
        >>> labeler("Sinus tachycardia with PVCs").probabilities["Premature ventricular contraction"]
        1.0

    Reports are independent of each other. A report that is no string (None, NaN, a number) has no labels and the status
    `"empty"`.

    Args:
        knowledge: the tables.
        labels: the columns, in order: entities, or "Entity - Descriptor"; by default all entities that are labels.
        rewrites: phrases to normalise in addition to the package's, as `{written: canonical}`.
        mistyped: words in which a typing error is corrected, in addition to the package's.
        switches: see `Switches`; by default as the original behaves.
        name: for messages and reports.

    Raises:
        LabelerError: a label is not defined.
    """

    def __init__(
        self,
        knowledge: Knowledge,
        labels: Sequence[str] | None = None,
        *,
        rewrites: Mapping[str, str] | None = None,
        mistyped: Sequence[str] = (),
        switches: Switches | None = None,
        name: str = "labeler",
    ) -> None:
        self.knowledge, self.name, self.switches = knowledge, name, switches or Switches()
        if labels is None:
            labels = [name for name, entity in knowledge.entities.items() if not entity.require_descriptors]
        for label in labels:
            _check_label(label, knowledge, name)
        self.labels = tuple(labels)
        if len(set(self.labels)) < len(self.labels):
            repeated = next(label for label, count in Counter(self.labels).items() if count > 1)
            raise LabelerError(f"{name}: label {repeated!r} occurs twice")
        self.rewrites = dict(rewrites or {})
        self.normalize = Normalizer(self.rewrites, mistyped)
        self._matcher = Matcher(knowledge.patterns)
        self._inference = Inference(knowledge, self.switches)

    @classmethod
    def from_preset(cls, name: str = "mimic17", **switches: bool) -> "Labeler":
        """
        Build a labeler of this package: `"mimic17"` or `"mimic17-clinical"`.

        Raises:
            LabelerError: there is no such preset, or no such switch.
        """
        if name not in PRESETS:
            raise LabelerError(f"preset {name!r} is unknown; known: {', '.join(PRESETS)}")
        return cls.from_definition(PRESETS[name](), **switches)

    @classmethod
    def from_definition(cls, source: str | Path | Mapping[str, Any], **switches: bool) -> "Labeler":
        """
        Build a labeler from a JSON file or a dictionary (for its form see `ecgfm_hf.labeler.definition`).

        Raises:
            LabelerError: the definition is wrong; the message names file and entry.
        """
        definition, where = read_definition(source)
        knowledge, defaults = build(definition, where)
        rewrites = definition.get("rewrites", {})
        for written, canonical in rewrites.items():
            if not written.strip() or not isinstance(canonical, str):
                raise LabelerError(
                    f"{where}: rewrites: {written!r}: must be a phrase and a string, found: {canonical!r}"
                )
        labeler = cls(
            knowledge,
            definition.get("labels"),
            rewrites=rewrites,
            mistyped=_words(definition.get("mistyped", []), where),
            switches=_switched(defaults, switches, where),
            name=definition.get("name", where),
        )
        labeler._check_phrases()
        return labeler

    @classmethod
    def from_original(cls, folder: str | Path, labels: Sequence[str] | None = None, **switches: bool) -> "Labeler":
        """
        Build a labeler from the original's JSON tables, in a clone of its repository, and this package's normalisation.

        Raises:
            LabelerError: a table is wrong; the message names file and entry.
        """
        switches_ = _switched(Switches(), switches, str(folder))
        return cls(load_original_json(folder), labels, switches=switches_, name=str(folder))

    def __call__(self, report: str | None) -> ReportLabels:
        """Return the labels of one report, and its status."""
        text = self.normalize(report)
        return self._labels(text, self._matcher.find(text), report)

    def _labels(self, text: str, hits: Sequence[Hit], report: str | None) -> ReportLabels:
        groups = [self._inference.rows(instance) for instance in self._inference.instances(text, hits)]
        compounds = self._inference.compounds(groups)
        labels = self._inference.labels(row for group in (*groups, compounds) for row in group)
        return ReportLabels(text, tuple(hits), labels, status_of(report, hits))

    def row(self, report: str | None, keep: str | float = "any", soft: bool = False) -> list[int] | list[float]:
        """
        Return one report's row of the table of `labels`: 0 and 1, or probabilities where `soft`.

        The labels are known only if the report's `status` is `"labelled"`; see [`Labeler.__call__`].

        Args:
            report: its text.
            keep: `"any"` (a label counts with any probability, as in the original's table) or a threshold in (0, 1].
            soft: probabilities in place of 0 and 1; one below the threshold is 0.0.

        Raises:
            ValueError: `keep` is neither.
        """
        check_keep(keep)
        return self.row_of(self(report), keep, soft)

    def row_of(self, found: ReportLabels, keep: str | float = "any", soft: bool = False) -> list[int] | list[float]:
        """Return the row of a report that was labelled before; `keep` and `soft` as for `row`, unchecked."""
        if keep == "any" and not soft:
            return [int(label in found.probabilities) for label in self.labels]
        if soft:
            return [found.probabilities[label] if found.is_positive(label, keep) else 0.0 for label in self.labels]
        return [int(found.is_positive(label, keep)) for label in self.labels]

    def explain(self, report: str | None) -> Explanation:
        """Return which words of a report gave which label, by which path."""
        text = self.normalize(report)
        hits = self._matcher.find(text)
        instances = self._inference.instances(text, hits)
        groups = [(instance, self._inference.rows(instance)) for instance in instances]
        compounds = self._inference.compounds([rows for _, rows in groups])
        found = self._labels(text, hits, report)
        return explain(report if isinstance(report, str) else "", found, groups, compounds, self.labels)

    def unmatched(self, reports: Iterable[str | None]) -> Counter[str]:
        """Count the statements that no phrase accounts for: the gaps of the tables."""
        counts: Counter[str] = Counter()
        for report in reports:
            counts.update(self(report).unmatched_statements)
        return counts

    def _check_phrases(self) -> None:
        """Refuse phrases that normalised reports cannot contain, unless a preset has them."""
        lost = {}
        for pattern in self.knowledge.patterns:
            if not self._can_be_found(pattern.text):
                lost[pattern.text] = pattern
        if not lost:
            return
        # A definition's rewrites may replace words of a preset's phrases on purpose.
        for make in PRESETS.values():
            for pattern in build(make(), "preset")[0].patterns:
                lost.pop(pattern.text, None)
        for text, pattern in lost.items():
            become = self.normalize(text)
            raise LabelerError(
                f"{pattern.source}: {text!r} is never found, because it is normalised to {become!r}; write that"
            )

    def _can_be_found(self, phrase: str) -> bool:
        """Return whether a report with the phrase, by itself or among other words, still has it when normalised."""
        bordered = re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)" if _is_worded(phrase) else re.escape(phrase))
        return any(bordered.search(self.normalize(text)) for text in (phrase, f"xx {phrase}", f"xx {phrase} xx"))


def check_keep(keep: str | float) -> None:
    """Raise `ValueError` unless `keep` is "any" or a threshold above 0 and at most 1."""
    valid = keep == "any" if isinstance(keep, str | bool) else 0 < keep <= 1
    if not valid:
        raise ValueError(f"keep must be 'any' or a threshold above 0 and at most 1, found: {keep!r}")


def _is_worded(phrase: str) -> bool:
    return is_word_character(phrase[0]) and is_word_character(phrase[-1])


def _check_label(label: str, knowledge: Knowledge, name: str) -> None:
    entity, _, descriptor = label.partition(" - ")
    if label in knowledge.entities or (entity in knowledge.entities and descriptor in knowledge.descriptors):
        return
    raise LabelerError(f"{name}: label {label!r} is no entity and no 'Entity - Descriptor' of the tables")


def _words(words: Sequence[object], where: str) -> list[str]:
    lowered = []
    for word in words:
        if not isinstance(word, str) or not word.isalpha():
            raise LabelerError(f"{where}: mistyped: must be words of letters, found: {word!r}")
        lowered.append(word.lower())
    return lowered


def _switched(defaults: Switches, switches: Mapping[str, bool], where: str) -> Switches:
    values = {name: getattr(defaults, name) for name in Switches.__dataclass_fields__}
    for name in switches:
        if name not in values:
            raise LabelerError(f"{where}: switch {name!r} is unknown; known: {', '.join(values)}")
    return Switches(**{**values, **switches})
