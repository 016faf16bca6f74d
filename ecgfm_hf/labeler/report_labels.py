"""The labels of one report, and the report's status."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from .matching import Hit

# Of a report: phrases for findings were found; none was; it has no letter or digit; it is mostly in another script than
# Latin. Only the labels of the first are known.
STATUSES = ("labelled", "no match", "empty", "unreadable")
LABELLED, NO_MATCH, EMPTY, UNREADABLE = STATUSES

_NOT_SHOWN = re.compile(r"[^A-Za-z0-9 ]+")  # as in the original
_NO_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class ReportLabels:
    """
    The labels of a report, and the phrases that gave them.

    Args:
        text: the normalised report.
        hits: the phrases found in it, in its order.
        probabilities: by label; 1.0 where nothing expresses doubt. Also labels that are no columns of the labeler.
        status: `"labelled"`; `"no match"`, where no phrase for a finding was found; `"empty"`, without a letter or
            digit; or `"unreadable"`, mostly in another script than Latin. Except for the first, the labels are unknown,
            and `probabilities` must be ignored.
    """

    text: str
    hits: tuple[Hit, ...]
    probabilities: dict[str, float]
    status: str = LABELLED

    @property
    def unmatched(self) -> str:
        """Return the normalised text without the phrases that were found; spaces and punctuation stay."""
        parts, end = [], 0
        for hit in self.hits:
            parts.append(self.text[end : hit.start])
            end = hit.end
        return "".join([*parts, self.text[end:]])

    @property
    def stripped(self) -> str:
        """Return the ASCII letters, digits and spaces of `unmatched`, as the original does."""
        return _NOT_SHOWN.sub("", self.unmatched).strip()

    @property
    def unmatched_statements(self) -> list[str]:
        """Return the words that no phrase accounts for, by statement (one ends at a semicolon), in all scripts."""
        parts = (_NO_WORD.sub(" ", part).strip() for part in self.unmatched.split(";"))
        return [words for words in parts if words]

    def is_positive(self, label: str, keep: str | float = "any") -> bool:
        """Return whether the report has the label: with any probability, or with at least the threshold `keep`."""
        probability = self.probabilities.get(label)
        return probability is not None and (isinstance(keep, str) or probability >= keep)


def status_of(report: str | None, hits: Sequence[Hit]) -> str:
    """Return one of `STATUSES` for a report and the phrases that were found in it."""
    if not isinstance(report, str) or not any(map(str.isalnum, report)):
        return EMPTY
    if not report.isascii():
        letters = [character for character in report if character.isalpha()]
        latin = sum(letter.isascii() or unicodedata.name(letter, "").startswith("LATIN") for letter in letters)
        if 2 * latin < len(letters):
            return UNREADABLE
    return LABELLED if any(hit.pattern.mentions for hit in hits) else NO_MATCH
