"""Finds the phrases of a labeler in normalised text: the longest of the whole text first."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .knowledge import CONNECTIVE, ENTITY, Pattern
from .literals import bordered_literals, is_word_character

# Entities take their text before descriptors do, and descriptors before connectives, however long.
_RANK = {ENTITY: 0, CONNECTIVE: 2}


@dataclass(frozen=True, slots=True)
class Hit:
    """A phrase found at `text[start:end]` of the normalised text."""

    start: int
    end: int
    pattern: Pattern


class Matcher:
    """
    Finds phrases as a labeler needs them.

    The longest phrase of the whole text is taken first, wherever it is, then the next among the characters that are
    left; entities before descriptors before connectives. Equally long phrases are taken in the order of the tables.
    (Source: observed on the original.)
    """

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        words, others = bordered_literals(pattern.text for pattern in patterns)
        # The look-ahead gives the longest phrase of each position; the words behind it are looked at again.
        self._regex = re.compile(rf"(?=({words}))\w+|(?=({others}))\W")
        ranked = {
            pattern.text: ((_RANK.get(pattern.kind, 1), -len(pattern.text), index), pattern)
            for index, pattern in enumerate(patterns)
        }
        # Shorter phrases that begin where a longer one does: the longer one's text decides that they are there.
        self._at: dict[str, list[tuple[tuple[int, int, int], Pattern]]] = {}
        for text in ranked:
            beginnings = [text[:end] for end in range(1, len(text) + 1) if text[:end] in ranked]
            self._at[text] = [ranked[short] for short in beginnings if _ends_at_border(short, text)]

    def find(self, text: str) -> list[Hit]:
        """The phrases of a normalised text, in the order of the text."""
        candidates = []
        for match in self._regex.finditer(text):
            start = match.start()
            for rank, pattern in self._at[match[1] or match[2]]:
                candidates.append((rank, start, pattern))
        candidates.sort(key=_rank_and_start)
        taken = bytearray(len(text))
        hits = []
        for _, start, pattern in candidates:
            end = start + len(pattern.text)
            if taken.find(1, start, end) < 0:
                taken[start:end] = b"\x01" * (end - start)
                hits.append(Hit(start, end, pattern))
        hits.sort(key=_start)
        return hits


def _rank_and_start(candidate: tuple) -> tuple:
    return candidate[:2]


def _start(hit: Hit) -> int:
    return hit.start


def _ends_at_border(short: str, text: str) -> bool:
    """Whether the phrase `short`, the beginning of `text`, also ends at a border there."""
    return len(short) == len(text) or not (is_word_character(short[-1]) and is_word_character(text[len(short)]))
