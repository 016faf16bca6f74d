"""Many literal phrases as one regular expression that takes the longest of them, in time linear in the text."""

import re
from collections.abc import Iterable

# The border of a phrase: no letter, digit or underscore beside it. A side that is punctuation has no border. (Beside a
# word character this is what a look-around says, and several times as fast.)
LEFT_BORDER = RIGHT_BORDER = r"\b"


def is_word_character(character: str) -> bool:
    """Whether a character is a letter, a digit or an underscore."""
    return re.match(r"\w", character) is not None


def bordered_literals(literals: Iterable[str]) -> tuple[str, str]:
    """
    The bordered phrases as two regular expressions: those that begin with a word character, and the others.

    Each matches the longest phrase at a position. Phrases are merged into a tree of shared beginnings, so that the time
    at a position does not grow with the number of phrases.

    Args:
        literals (`Iterable[str]`): phrases, none of them empty.

    Returns:
        `tuple[str, str]`: two expressions without groups; an expression that matches nothing where there is no phrase.
    """
    words, others = {}, {}
    for literal in literals:
        node = words if is_word_character(literal[0]) else others
        for character in literal:
            node = node.setdefault(character, {})
        node[""] = RIGHT_BORDER if is_word_character(literal[-1]) else ""
    nothing = r"(?!)"
    return (LEFT_BORDER + _expression(words) if words else nothing, _expression(others) if others else nothing)


def _expression(tree: dict) -> str:
    """The expression of a tree, built from its leaves without recursion: phrases may be longer than Python's stack."""
    order, stack = [], [tree]
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
