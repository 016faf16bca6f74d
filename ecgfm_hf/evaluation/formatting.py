"""What the report's page is made of: its style, and text, numbers and tables as HTML. Everything given is escaped."""

import html
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "–"
_TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")

STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b2430; --muted: #5c6876; --rule: #d9dfe6; --card: #f6f8fa;
  --accent: #1f6fb2; --second: #b35c00; --alarm: #a4161a; --alarm-page: #fdecec; }
@media (prefers-color-scheme: dark) { :root { --page: #12171d; --ink: #e4e9ee; --muted: #9aa7b4; --rule: #303a45;
  --card: #1a2129; --accent: #6cb2ee; --second: #f0a75a; --alarm: #ff9c9c; --alarm-page: #3a1a1c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; overflow-wrap: anywhere; } .card h3 { margin-top: 0; }
p, ul { margin: .5rem 0; max-width: 46rem; } p.lead, .note { color: var(--muted); }
.note { font-size: .87rem; } .scroll + .note { margin-top: .4rem; }
nav { font-size: .9rem; margin: .8rem 0 1.2rem; } nav a { margin-right: 1rem; white-space: nowrap; }
a { color: var(--accent); }
.banner { border-left: 4px solid var(--muted); background: var(--card); padding: .5rem .9rem; margin: .8rem 0; }
.banner p { margin: .2rem 0; }
.alarm { border-color: var(--alarm); background: var(--alarm-page); color: var(--alarm); font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: .4rem; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.55rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span { display: block; color: var(--muted); font-size: .87rem; }
.scroll { overflow-x: auto; margin: .8rem 0 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; min-width: 40%; }
th, td { text-align: right; padding: .3rem .55rem; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { font-weight: 600; color: var(--muted); }
thead th { white-space: normal; vertical-align: bottom; } tbody th { color: var(--ink); font-weight: 500; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal; overflow-wrap: anywhere;
  min-width: 7.5rem; max-width: 22rem; }
td small { display: block; color: var(--muted); font-size: .82em; line-height: 1.2; }
td { vertical-align: top; } tbody th { vertical-align: top; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .3rem 1.5rem; margin: .6rem 0;
  font-size: .93rem; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
.cards { display: grid; gap: 1rem; } .card { border: 1px solid var(--rule); border-radius: .4rem; padding: .9rem; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)); gap: .8rem; }
figure { margin: 0; max-width: 24rem; } figure.wide { max-width: 44rem; margin: .8rem 0; }
figcaption { font-size: .87rem; color: var(--muted); }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--ink); font: 11px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
svg text.tick { fill: var(--muted); font-size: 10px; }
svg .frame { fill: none; stroke: var(--rule); } svg .grid { stroke: var(--rule); stroke-width: .6; }
svg .guide { fill: none; stroke: var(--muted); stroke-dasharray: 4 3; }
svg .line { fill: none; stroke: var(--accent); stroke-width: 1.8; stroke-linejoin: round; }
svg .dot, svg .bar, svg .cell { fill: var(--accent); } svg .bar { opacity: .45; }
svg .whisker { stroke: var(--accent); stroke-width: 1.8; } svg .band { fill: var(--card); }
svg .withheld { fill: none; stroke: var(--muted); stroke-dasharray: 2 2; }
@media print { :root { color-scheme: light; --page: #fff; --ink: #000; --muted: #444; --rule: #bbb; --card: #fff;
  --accent: #1f6fb2; --second: #b35c00; --alarm: #a4161a; --alarm-page: #fff; }
  body { font-size: 10pt; } table { font-size: 7.5pt; } th, td { padding: .15rem .35rem; }
  main { max-width: none; padding: 0; } nav { display: none; }
  .scroll { overflow: visible; } figure, tr, .card, .banner { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""


def text(value: Any) -> str:
    """Any value as text that HTML takes literally; see [`literal`]."""
    return html.escape(literal(value), quote=True)


def literal(value: Any) -> str:
    """Any value as text. Controls, lone surrogates, and marks that turn the direction of what follows become `�`."""
    return "".join("\ufffd" if _unshowable(c) else c for c in str(value))


def _unshowable(character: str) -> bool:
    if unicodedata.category(character) in ("Cc", "Cs"):
        return character not in "\t\n"
    return unicodedata.bidirectional(character) in _TURNING


def number(value: float | None) -> str:
    """A figure: three decimals below 10, fewer above, four digits in all; a dash for none."""
    if value is None:
        return ABSENT
    decimals = next((places for places, limit in ((3, 10), (2, 100), (1, 1000)) if abs(value) < limit), 0)
    return f"{value:,.{decimals}f}".replace("-", "−")


def figure_text(figure: Mapping[str, Any] | None, signed: bool = False) -> str:
    """`0.912 (0.880 to 0.940)`; bounds where the value itself is withheld; a dash where there is none."""
    if figure is None:
        return ABSENT
    if "bounds" in figure:
        low, high = figure["bounds"]
        return f"{number(low)} … {number(high)}"
    if figure.get("value") is None:
        return ABSENT
    sign = "+" if signed and figure["value"] > 0 else ""
    if figure.get("low") is None or figure.get("high") is None:
        return f"{sign}{number(figure['value'])}"
    return f"{sign}{number(figure['value'])} ({number(figure['low'])} to {number(figure['high'])})"


def figure_cell(figure: Mapping[str, Any] | None, signed: bool = False) -> str:
    """[`figure_text`] as HTML, its interval small and below."""
    value, bracket, interval = figure_text(figure, signed).partition(" (")
    return text(value) + (f" <small>{text(interval.rstrip(')'))}</small>" if bracket else "")


def count(value: int | str | None) -> str:
    """A count; `<10` and `withheld` are such already."""
    if value is None:
        return ABSENT
    return f"{value:,}" if isinstance(value, int) else str(value)


def plural(number_of: int | str, noun: str) -> str:
    """`1 label`, `2 labels`, `<10 labels`."""
    return f"{count(number_of)} {noun}{'' if number_of == 1 else 's'}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """
    A table that scrolls by itself where it is too wide.

    Args:
        headings: Plain text.
        rows: Of each row the first cell is plain text and heads it; the others are HTML.
        note: Plain text below.
    """
    head = "".join(f'<th scope="col">{text(heading)}</th>' for heading in headings)
    body = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>\n'
        for row in rows
    )
    below = f'<p class="note">{text(note)}</p>' if note else ""
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
        f"{below}\n"
    )


def definitions(pairs: Sequence[tuple[str, str]]) -> str:
    """Terms and what they are, plain text."""
    return "<dl>" + "".join(f"<dt>{text(term)}</dt><dd>{text(what)}</dd>" for term, what in pairs) + "</dl>\n"


def tile(value: str, caption: str, below: str = "") -> str:
    """A figure set large, plain text."""
    more = f"<span>{text(below)}</span>" if below else ""
    return f'<div class="tile"><span>{text(caption)}</span><b>{text(value)}</b>{more}</div>'


def banner(lines: Sequence[str], alarm: bool = False) -> str:
    """Lines of plain text set apart; in red if `alarm`. Nothing for no lines."""
    if not lines:
        return ""
    kind = "banner alarm" if alarm else "banner"
    role = ' role="alert"' if alarm else ""
    return f'<div class="{kind}"{role}>' + "".join(f"<p>{text(line)}</p>" for line in lines) + "</div>\n"


def page(title: str, body: str) -> str:
    """A whole page. It asks for nothing from anywhere, and forbids the browser to."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
