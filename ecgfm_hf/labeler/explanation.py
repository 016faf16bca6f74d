"""Which words of a report gave which label, by which path: as text, and as a highlighted page."""

import html
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from .inference import Instance, Row
from .knowledge import ENTITY
from .matching import Hit

if TYPE_CHECKING:
    from .labeler import ReportLabels

# Tokens of the report times tokens of its normalised form: the alignment is quadratic, and only for show.
_LARGEST_ALIGNMENT = 4_000_000
_KINDS = ("label", "word", "other")
_TOKEN = re.compile(r"\w+|[^\w\s]")

_STYLE = (
    "body{font-family:sans-serif;max-width:60em;margin:2em auto;line-height:1.6}"
    "mark{background:#ffe08a;padding:0 .15em}mark.word{background:#cfe3ff}mark.other{background:#e6e6e6}"
    "table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left;vertical-align:top}"
)


@dataclass(frozen=True)
class Reason:
    """
    One reason for a label.

    Args:
        label: its name.
        probability: that this reason gives it.
        words: what the normalised report says; several for a compound.
        written: what the report itself says there.
        path: from what the words stand for up to the label.
        note: what else had a part: descriptors and where they came from, or the parts of a compound.
    """

    label: str
    probability: float
    words: tuple[str, ...]
    written: tuple[str, ...]
    path: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Explanation:
    """
    A report, the phrases found in it, and the reasons for each label of the labeler.

    `speaking` has where the phrases that gave a label start in `text`, the normalised report; `spans` has, by the same
    number, where the report itself says a phrase (from, to), as far as that can be told.
    """

    report: str
    text: str
    hits: tuple[Hit, ...]
    reasons: tuple[Reason, ...]
    unmatched: str
    speaking: frozenset[int]
    spans: dict[int, tuple[int, int]]

    def to_text(self) -> str:
        """A label a paragraph: words, path, probability."""
        lines = [f"report      {self.report}", f"normalised  {self.text}"]
        for reason in self.reasons:
            words = " + ".join(f'"{word}"' for word in reason.written)
            lines.append(f"{reason.label}  {reason.probability:.3g}")
            lines.append(f"    {words}: {' > '.join(reason.path)}{f' ({reason.note})' if reason.note else ''}")
        if not self.reasons:
            lines.append("no label")
        lines.append(f"unmatched   {self.unmatched or '-'}")
        return "\n".join(lines)

    def to_html(self) -> str:
        """A page of its own: words that gave a label in yellow, what qualifies in blue, other phrases in grey."""
        return html_page([self])

    def _section(self) -> str:
        own, normalised = [], []
        for hit in self.hits:
            kind = "label" if hit.start in self.speaking else "other" if hit.pattern.kind == ENTITY else "word"
            normalised.append((hit.start, hit.end, kind))
            if hit.start in self.spans:
                own.append((*self.spans[hit.start], kind))
        head = _cells("th", "label", "probability", "words", "path", "")
        rows = "".join(
            _cells(
                "td",
                reason.label,
                f"{reason.probability:.3g}",
                " + ".join(reason.written),
                " > ".join(reason.path),
                reason.note,
            )
            for reason in self.reasons
        )
        return (
            f"<p>{_marked(self.report, own)}</p><p><small>normalised: {_marked(self.text, normalised)}</small></p>"
            f"{f'<table>{head}{rows}</table>' if rows else '<p>no label</p>'}"
            f"<p><small>unmatched: {html.escape(self.unmatched or '-')}</small></p>"
        )


def html_page(explanations: Iterable[Explanation]) -> str:
    """One page with the highlighted reports of several explanations, in their order."""
    sections = "<hr>".join(explanation._section() for explanation in explanations)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Labels of reports</title>'
        f"<style>{_STYLE}</style></head><body>"
        '<p><mark class="label">gave a label</mark> <mark class="word">qualifies</mark> '
        '<mark class="other">recognised, gave none of these labels</mark></p><hr>'
        f"{sections}</body></html>\n"
    )


def explain(
    report: str,
    found: "ReportLabels",
    groups: Sequence[tuple[Instance, Sequence[Row]]],
    compounds: Sequence[Row],
    labels: Sequence[str],
) -> Explanation:
    """
    The explanation of a report.

    Args:
        report, found: the report and what the labeler found in it.
        groups: its instances, each with its rows.
        compounds: rows that follow from several together.
        labels: what to explain, in order.
    """
    spans = _spans(report, found.text, found.hits)
    reasons: dict[str, list[Reason]] = {label: [] for label in labels}
    speaking: set[int] = set()
    spoken: dict[str, Hit] = {}  # The first words that gave an entity, for the compounds.

    def add(row: Row, hits: Sequence[Hit], note: str) -> None:
        for label in _labels_of(row):
            if label in reasons:
                words = tuple(dict.fromkeys(hit.pattern.text for hit in hits))
                own = tuple(dict.fromkeys(_said(report, hit, spans) for hit in hits))
                reasons[label].append(Reason(label, _shown(label, row), words, own, row.path, note))
                speaking.update(hit.start for hit in hits)

    for instance, rows in groups:
        for row in rows:
            spoken.setdefault(row.entity, instance.hit)
            add(row, [instance.hit], _note(row, instance))
    for row in compounds:
        add(row, [spoken[entity] for entity in row.via], f"from {' and '.join(row.via)} together")
    ordered = [
        reason
        for label in labels
        for reason in dict.fromkeys(sorted(reasons[label], key=lambda reason: -reason.probability))
    ]
    return Explanation(report, found.text, found.hits, tuple(ordered), found.stripped, frozenset(speaking), spans)


def _said(report: str, hit: Hit, spans: Mapping[int, tuple[int, int]]) -> str:
    """The report's own words for a hit; the normalised ones where they cannot be told."""
    return report[slice(*spans[hit.start])] if hit.start in spans else hit.pattern.text


def _spans(report: str, text: str, hits: Sequence[Hit]) -> dict[int, tuple[int, int]]:
    """Where the report says each hit, from and to, by where the hit starts in its normalised text."""
    theirs, ours = list(_TOKEN.finditer(report)), list(_TOKEN.finditer(text))
    if len(theirs) * len(ours) > _LARGEST_ALIGNMENT:
        return {}
    plain = [match[0].lower() for match in theirs]
    blocks = SequenceMatcher(None, plain, [match[0] for match in ours], autojunk=False).get_opcodes()
    tokens: dict[int, tuple[int, int]] = {}  # For each token of the text: tokens of the report, from and to.
    for kind, begin, end, first, last in blocks:
        for index in range(first, last):
            at = begin + index - first
            tokens[index] = (at, at + 1) if kind == "equal" else (begin, end)
    starts = [match.start() for match in ours]
    spans = {}
    for hit in hits:
        covered = [tokens[index] for index in range(bisect_left(starts, hit.start), bisect_left(starts, hit.end))]
        begin, end = min(span[0] for span in covered), max(span[1] for span in covered)
        while begin < end and theirs[end - 1][0] in ",;/":  # A replaced stretch may take its separator along.
            end -= 1
        if begin < end:
            spans[hit.start] = (theirs[begin].start(), theirs[end - 1].end())
    return spans


def _marked(text: str, marks: Iterable[tuple[int, int, str]]) -> str:
    """Text with marks (from, to, class). Of marks on the same words the one that says most is kept."""
    best, taken = [], bytearray(len(text))
    for start, end, kind in sorted(marks, key=lambda mark: (_KINDS.index(mark[2]), mark[0])):
        if 1 not in taken[start:end]:
            taken[start:end] = b"\x01" * (end - start)
            best.append((start, end, kind))
    parts, at = [], 0
    for start, end, kind in sorted(best):
        parts.append(html.escape(text[at:start]))
        parts.append(f'<mark class="{kind}">{html.escape(text[start:end])}</mark>')
        at = end
    return "".join([*parts, html.escape(text[at:])])


def _cells(tag: str, *texts: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(text)}</{tag}>' for text in texts)}</tr>"


def _labels_of(row: Row) -> list[str]:
    return [row.entity, *(f"{row.entity} - {descriptor}" for descriptor in row.descriptors)]


def _shown(label: str, row: Row) -> float:
    return row.probability if label == row.entity else 1.0


def _note(row: Row, instance: Instance) -> str:
    notes = [f'by "{row.via[0]}"'] if row.via else []
    if instance.attached:
        notes.append("with " + ", ".join(f'"{hit.pattern.text}"' for hit in instance.attached))
    return "; ".join(notes)
