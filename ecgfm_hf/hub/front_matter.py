"""The YAML at the head of a card, apart from its body."""

import re

BYTE_ORDER_MARK = "\ufeff"
_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def split_front_matter(text: str) -> tuple[str | None, str]:
    """The YAML between the first two lines of `---`, None without, and what follows."""
    text = text.removeprefix(BYTE_ORDER_MARK)
    found = _FRONT_MATTER.match(text)
    return (None, text) if found is None else (found[1], text[found.end() :])


__all__ = ["BYTE_ORDER_MARK", "split_front_matter"]
