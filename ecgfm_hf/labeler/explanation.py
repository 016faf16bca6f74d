"""Explain labels: which words of a report gave which label, by which path, as text and as a highlighted page."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from .knowledge import ENTITY
from .label_rules import Instance, Row
from .matching import Hit
from .report_labels import ReportLabels

# Tokens of the report times tokens of its normalised form: the alignment is quadratic, and only for display.
_LARGEST_ALIGNMENT = 4_000_000
_MARKS = ("label", "word", "other")
_TOKEN = re.compile(r"\w+|[^\w\s]")

_PAGE = """\
{%- macro marked(pieces) -%}
{%- for kind, text in pieces %}{% if kind %}<mark class="{{ kind }}">{{ text }}</mark>{% else %}{{ text }}{% endif %}
{%- endfor -%}
{%- endmacro -%}
<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Labels of reports</title><style>
body{font-family:sans-serif;max-width:60em;margin:2em auto;line-height:1.6}
mark{background:#ffe08a;padding:0 .15em}mark.word{background:#cfe3ff}mark.other{background:#e6e6e6}
table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left;vertical-align:top}
</style></head><body>
<p><mark class="label">gave a label</mark> <mark class="word">qualifies</mark>
<mark class="other">recognised, gave none of these labels</mark></p>
{% for one in explanations %}<hr>
<p>{{ marked(one.marked_report) }}</p>
<p><small>normalised: {{ marked(one.marked_text) }}</small></p>
{% if one.reasons %}<table>
<tr><th>label</th><th>probability</th><th>words</th><th>path</th><th></th></tr>
{% for reason in one.reasons %}<tr><td>{{ reason.label }}</td><td>{{ "%.3g" % reason.probability }}</td>
<td>{{ reason.written | join(" + ") }}</td><td>{{ reason.path | join(" > ") }}</td><td>{{ reason.note }}</td></tr>
{% endfor %}</table>{% else %}<p>no label</p>{% endif %}
<p><small>unmatched: {{ one.unmatched or "-" }}</small></p>
{% endfor %}</body></html>
"""


@dataclass(frozen=True)
class Reason:
    """
    One reason for a label.

    Args:
        label: its name.
        probability: of the label by this reason.
        words: of the normalised report; several for a compound.
        written: the words of the report itself.
        path: from the meaning of the words to the label.
        note: descriptors and their words, or the parts of a compound.
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

    `speaking` has the starts of the phrases that gave a label, in `text`, the normalised report; `spans` has, by start,
    the position (from, to) of a phrase in the report itself, where it is known.
    """

    report: str
    text: str
    hits: tuple[Hit, ...]
    reasons: tuple[Reason, ...]
    unmatched: str
    speaking: frozenset[int]
    spans: dict[int, tuple[int, int]]

    def to_text(self) -> str:
        """Return the reasons as text: words, path and probability, a label a paragraph."""
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
        """Return a page: words that gave a label in yellow, words that qualify in blue, other phrases in grey."""
        return html_page([self])

    @property
    def marked_report(self) -> list[tuple[str, str]]:
        """Return the report in pieces (mark, text); the mark is `"label"`, `"word"`, `"other"` or empty."""
        marks = [(*self.spans[hit.start], self._mark(hit)) for hit in self.hits if hit.start in self.spans]
        return _pieces(self.report, marks)

    @property
    def marked_text(self) -> list[tuple[str, str]]:
        """Return the normalised report in pieces, as `marked_report`."""
        return _pieces(self.text, [(hit.start, hit.end, self._mark(hit)) for hit in self.hits])

    def _mark(self, hit: Hit) -> str:
        return "label" if hit.start in self.speaking else "other" if hit.pattern.kind == ENTITY else "word"


def html_page(explanations: Iterable[Explanation]) -> str:
    """Return a page with the highlighted reports of several explanations, in their order."""
    import jinja2

    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    return page.render(explanations=list(explanations)) + "\n"


def explain(
    report: str,
    found: ReportLabels,
    groups: Sequence[tuple[Instance, Sequence[Row]]],
    compounds: Sequence[Row],
    labels: Sequence[str],
) -> Explanation:
    """
    Build the explanation of a report.

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
                own = tuple(dict.fromkeys(_words_of(report, hit, spans) for hit in hits))
                reasons[label].append(Reason(label, _probability(label, row), words, own, row.path, note))
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


def _words_of(report: str, hit: Hit, spans: Mapping[int, tuple[int, int]]) -> str:
    """Return the report's own words for a hit, or the normalised ones where they are unknown."""
    return report[slice(*spans[hit.start])] if hit.start in spans else hit.pattern.text


def _spans(report: str, text: str, hits: Sequence[Hit]) -> dict[int, tuple[int, int]]:
    """Return where each hit is in the report, (from, to), by its start in the normalised text."""
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


def _pieces(text: str, marks: Iterable[tuple[int, int, str]]) -> list[tuple[str, str]]:
    """Cut a text at its marks (from, to, mark). Of marks on the same words the first of `_MARKS` is kept."""
    best, taken = [], bytearray(len(text))
    for start, end, mark in sorted(marks, key=lambda item: (_MARKS.index(item[2]), item[0])):
        if 1 not in taken[start:end]:
            taken[start:end] = b"\x01" * (end - start)
            best.append((start, end, mark))
    pieces, at = [], 0
    for start, end, mark in sorted(best):
        pieces += [("", text[at:start]), (mark, text[start:end])]
        at = end
    return [*pieces, ("", text[at:])]


def _labels_of(row: Row) -> list[str]:
    return [row.entity, *(f"{row.entity} - {descriptor}" for descriptor in row.descriptors)]


def _probability(label: str, row: Row) -> float:
    return row.probability if label == row.entity else 1.0


def _note(row: Row, instance: Instance) -> str:
    notes = [f'by "{row.via[0]}"'] if row.via else []
    if instance.attached:
        notes.append("with " + ", ".join(f'"{hit.pattern.text}"' for hit in instance.attached))
    return "; ".join(notes)
