"""Paths of a machine in text: the one definition, for notes that leave them out and for pushes that refuse them."""

import re
from collections.abc import Iterator

_PART = r"[^\s/\"'`<>|()\[\]{},;:*?\\]+"
_PLACE = re.compile(
    "|".join(
        (
            # A path begins a line or word; `and/or`, `mm/mV`, `</td>` and what follows `https:` do not.
            rf"(?:^|(?<=[\s\"'`=(\[{{,;:|>!]))/(?=[^/\s]*[A-Za-z]){_PART}/(?:{_PART}/?)*",
            r"\b[Ff][Ii][Ll][Ee]:/+[^\s\"'`<>]+",
            # Windows: a drive, a share.
            r"(?<![A-Za-z0-9])(?:[A-Za-z]:(?:\\{1,2}[\w .$-]+\\|/[\w.$-])|[A-Z]:\\{1,2}\w{2})[^\s\"'`<>|*?]*",
            r"(?<!\\)\\\\[A-Za-z0-9][\w.$-]+\\[\w$][^\s\"'`<>|*?]*",
            # Out of the folder that is pushed, or into the user's own.
            r"(?<![\w/.~])(?:\.\./|~/)(?=[A-Za-z0-9.]*[A-Za-z0-9])(?!\.cache\b)[^\s\"'`<>|]+",
            # Wherever it begins: an escaped line feed before it, for example, is a letter.
            r"(?P<home>/(?:home|Users)/[\w.-]+(?:/[^\s\"'`<>|]*)?)",
        )
    ),
    re.MULTILINE,
)
_LONGEST_ADDRESS = 300


def find_places(text: str) -> Iterator[re.Match[str]]:
    """
    Paths that name a place on some machine: absolute ones of any system, `file:` addresses, and those that lead out of
    a folder or into the user's own. Each once; web addresses and ordinary slashes are none.
    """
    place = 0
    while match := _PLACE.search(text, place):
        if match["home"] and _in_address(text, match.start()):
            place = match.start() + 1
        else:
            yield match
            place = match.end()


def _in_address(text: str, place: int) -> bool:
    """Whether what stands here is part of a web page's address."""
    return "://" in re.split(r"\s", text[max(0, place - _LONGEST_ADDRESS) : place])[-1]


__all__ = ["find_places"]
