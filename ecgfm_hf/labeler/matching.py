"""Find the phrases of a labeler in normalised text, and many phrases by one regular expression."""

import re
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from .knowledge import CONNECTIVE, ENTITY, Pattern

# Entities take their text before descriptors do, and descriptors before connectives, however long.
_RANK = {ENTITY: 0, CONNECTIVE: 2}


class Hit(NamedTuple):
    """A phrase found at `text[start:end]` of the normalised text."""

    start: int
    end: int
    pattern: Pattern


class Matcher:
    """
    Find phrases in the order of the original: the longest phrase of the whole text first, wherever it is, then the next
    among the remaining characters; entities before descriptors before connectives. Of equally long phrases, the
    first of the tables comes first.
    """

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        words, others = bordered_literals(pattern.text for pattern in patterns)
        # The look-ahead gives the longest phrase of each position; the words in it are searched again.
        self._regex = re.compile(rf"(?=({words}))\w+|(?=({others}))\W")
        order = sorted(patterns, key=lambda pattern: (_RANK.get(pattern.kind, 1), -len(pattern.text)))
        self._ranked = [(len(pattern.text), pattern) for pattern in order]
        rank_of = {pattern.text: rank for rank, pattern in enumerate(order)}
        # Shorter phrases that begin where a longer one does: they occur wherever the longer one does.
        self._at: dict[str, list[int]] = {}
        for text in rank_of:
            beginnings = [text[:end] for end in range(1, len(text) + 1) if text[:end] in rank_of]
            self._at[text] = [rank_of[short] for short in beginnings if _ends_at_border(short, text)]

    def find(self, text: str) -> list[Hit]:
        """Return the phrases of a normalised text, in the order of the text."""
        # One number for rank and start: numbers sort fast, and a long report burdens the garbage collector with none.
        size = len(text) + 1
        candidates = []
        for match in self._regex.finditer(text):
            start = match.start()
            for rank in self._at[match[1] or match[2]]:
                candidates.append(rank * size + start)
        candidates.sort()
        taken = bytearray(size)
        hits = []
        for candidate in candidates:
            rank, start = divmod(candidate, size)
            length, pattern = self._ranked[rank]
            end = start + length
            if 1 not in taken[start:end]:
                taken[start:end] = b"\x01" * length
                hits.append(Hit(start, end, pattern))
        hits.sort(key=_START)
        return hits


_START = itemgetter(0)


def _ends_at_border(short: str, text: str) -> bool:
    """Return whether the phrase `short`, the beginning of `text`, also ends at a border there."""
    return len(short) == len(text) or not (is_word_character(short[-1]) and is_word_character(text[len(short)]))


# Many phrases as one regular expression

# The border of a phrase: no letter, digit or underscore beside it. A side that is punctuation has no border. (Beside a
# word character this equals a look-around, and is several times as fast.)
LEFT_BORDER = RIGHT_BORDER = r"\b"


def is_word_character(character: str) -> bool:
    """Return whether a character is a letter, a digit or an underscore."""
    return re.match(r"\w", character) is not None


def bordered_literals(literals: Iterable[str]) -> tuple[str, str]:
    """
    Return two regular expressions of bordered phrases: those that begin with a word character, and the others.

    Each matches the longest phrase at a position. Phrases are merged into a tree of shared beginnings, so that the time
    at a position does not grow with the number of phrases.

    Args:
        literals (`Iterable[str]`): phrases, none of them empty.

    Returns:
        `tuple[str, str]`: two expressions without groups; an expression that matches nothing where there is no phrase.
    """
    words: dict[str, Any] = {}  # a tree: a character, and what follows it
    others: dict[str, Any] = {}
    for literal in literals:
        node = words if is_word_character(literal[0]) else others
        for character in literal:
            node = node.setdefault(character, {})
        node[""] = RIGHT_BORDER if is_word_character(literal[-1]) else ""
    nothing = r"(?!)"
    return (LEFT_BORDER + _expression(words) if words else nothing, _expression(others) if others else nothing)


def _expression(tree: dict[str, Any]) -> str:
    """Build a tree's expression from its leaves, without recursion: phrases may be longer than Python's stack."""
    order: list[dict[str, Any]] = []
    stack = [tree]
    while stack:
        node = stack.pop()
        order.append(node)
        stack.extend(child for key, child in node.items() if key)
    built: dict[int, str] = {}
    for node in reversed(order):
        branches = [re.escape(key) + built[id(child)] for key, child in node.items() if key]
        if "" in node:
            branches.append(node[""])  # Last, so that a longer phrase is tried first.
        built[id(node)] = branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
    return built[id(tree)]
