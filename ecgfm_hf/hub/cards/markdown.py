"""What a card's body is made of. Names that are not ours (labels, groups) are text in it, whatever they hold."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...evaluation.formatting import text

ABSENT = "–"
# What Markdown, GitHub's flavour of it, or the Hub's pages would take for more than a character.
_MARKED = re.compile(r"([\\`*_\[\]|~$#])")
_TURNED = (("://", "&#58;//"), ("www.", "www&#46;"), ("@", "&#64;"))


def plain(value: Any) -> str:
    """Any value as one line of text that Markdown takes literally."""
    escaped = text(" ".join(str(value).split())).replace("&quot;", '"').replace("&#x27;", "'")
    # Entities hold a number sign, which is to stay.
    escaped = "".join(
        part if part.startswith("&") else _MARKED.sub(r"\\\1", part) for part in re.split(r"(&\w+;|&#x?\w+;)", escaped)
    )
    for found, instead in _TURNED:
        escaped = escaped.replace(found, instead)
    # At the beginning of a line these would begin a list.
    return re.sub(r"^([-+]|\d+(?=[.)]))(?=[.)]?(?: |$))", lambda start: f"&#{ord(start[0][0])};{start[0][1:]}", escaped)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already. Columns but the first are set to the right if they hold numbers."""
    numeric = [
        bool(rows) and all(re.match(r"[<−+]?\d|–|withheld|$", row[n]) for row in rows) for n in range(len(headings))
    ]
    rule = ["---:" if place and is_number else "---" for place, is_number in enumerate(numeric)]
    lines = [headings, rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def facts_table(pairs: Sequence[tuple[str, str | None]]) -> str:
    """Terms and what they are, Markdown already; those that are None are left out."""
    return table(("", ""), [(term, what) for term, what in pairs if what is not None])


def bullets(lines: Sequence[str]) -> str:
    """A list of lines that are Markdown already."""
    return "\n".join(f"- {line}" for line in lines)


def paragraphs(*parts: str | None) -> str:
    """Blocks with an empty line between; what is empty is left out."""
    return "\n\n".join(part.strip("\n") for part in parts if part)


def code(value: Any) -> str:
    """A value in a code span, where backticks would end it early."""
    return f"`{' '.join(str(value).replace('`', chr(39)).split())}`"


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings and their values in one line, nested ones by dotted names; those that are empty or null left out."""
    flat: list[str] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            inner = settings_text({f"{name}.{key}": one for key, one in value.items()})
            flat += [inner] if inner else []
        elif value is not None and value != []:
            flat.append(code(f"{name}={value}"))
    return ", ".join(flat)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h` or `9.5 days`."""
    for unit, size, limit in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < limit:
            shown = seconds / size
            return f"{shown:.0f} {unit}" if unit != "h" else f"{shown:.1f} {unit}"
    return f"{seconds / 86_400:.1f} days"
