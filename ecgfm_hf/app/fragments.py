"""Pieces of the page in HTML. Whatever comes from a file, a model or a stranger is text in them, and never markup."""

import base64
import html
import re
from collections.abc import Sequence
from typing import Any

BANNER = (
    '<p class="ecg-banner" role="note"><strong>Not for clinical use.</strong> For research only<span>: nothing here is '
    "a diagnosis, and no decision about a patient may rest on it</span>.</p>"
)

# Markdown and Gradio's templates may take these for their own.
_TEMPLATE = str.maketrans({character: f"&#{ord(character)};" for character in "{}$`*_[]\\"})


def text(value: object) -> str:
    """`value` as text in HTML: no markup, no template, and no character that is invisible or turns the others round."""
    shown = "".join(character if character.isprintable() else "\ufffd" for character in " ".join(str(value).split()))
    return html.escape(shown, quote=True).translate(_TEMPLATE)


def refusal(reason: str) -> str:
    """Why there is no answer."""
    return f'<div class="ecg-note ecg-refused" role="alert"><strong>Not read.</strong> {text(reason)}</div>'


def notes(title: str, found: Sequence[str]) -> str:
    """Warnings, or nothing where there are none."""
    if not found:
        return ""
    items = "".join(f"<li>{text(one)}</li>" for one in found)
    return f'<div class="ecg-note" role="status"><strong>{text(title)}</strong><ul>{items}</ul></div>'


def picture(png: bytes, title: str) -> str:
    """The clinical page; on a narrow screen it can be moved under the finger instead of shrinking to nothing."""
    source = base64.b64encode(png).decode()
    return (
        '<div class="ecg-sheet" tabindex="0"><img alt="12-lead ECG page with scores: '
        f'{text(title)}" src="data:image/png;base64,{source}"></div>'
    )


def downloads(json_text: str, pdf: bytes, title: str) -> str:
    """Links that hold their files themselves, so that none lies on the server. Named after the recording."""
    name = re.sub(r"[^A-Za-z0-9.+-]+", "_", title).strip("._")[:80] or "recording"
    links = [
        (f"{name}-scores.json", "application/json", json_text.encode(), "Scores (JSON)"),
        (f"{name}-page.pdf", "application/pdf", pdf, "Page (PDF)"),
    ]
    anchors = (
        f'<a class="ecg-download" download="{name}" href="data:{kind};base64,{base64.b64encode(content).decode()}">'
        f"{label}</a>"
        for name, kind, content, label in links
    )
    return f'<div class="ecg-downloads">{"".join(anchors)}</div>'


def scores_table(answer: dict[str, Any], config: Any) -> str:
    """A row a label, in the model's order: name, bar with the threshold as a tick, value, threshold, notes."""
    regression = config.problem_type == "regression"
    calibration = {} if regression else config.label_calibration or {}
    thresholds = {} if regression else config.label_thresholds or {}
    scores, positive = answer["scores"], answer["positive"] or ()
    title, explanation = _heading(scores, calibration, thresholds, regression)
    rows = []
    for label, score in scores.items():
        is_positive, threshold = label in positive, thresholds.get(label)
        note = (config.label_notes or {}).get(label)
        remark = f"<small>{text(note)}</small>" if note else ""
        cells = [f'<th scope="row">{text(label)}{remark}</th>']
        if not regression:
            kind = "probability" if label in calibration else "score"
            cells.append(f'<td class="ecg-with-bar">{_bar(score, threshold)}</td>')
            cells.append(f'<td class="ecg-number">{score:.3f}<small>{kind}</small></td>')
        else:
            cells.append(f'<td class="ecg-number">{score:.4g}</td>')
        if thresholds:
            reached = "<small>reached</small>" if is_positive else '<small class="ecg-narrow">threshold</small>'
            at = "none" if threshold is None else f"{threshold:.3f}{reached}"
            cells.append(f'<td class="ecg-number ecg-faint">{at}</td>')
        kind = ' class="ecg-positive"' if is_positive else ""
        rows.append(f"<tr{kind}>{''.join(cells)}</tr>")
    head = ["Label", "Value"] if regression else ["Label", "", "Probability" if title == "Probabilities" else "Score"]
    head += ["Threshold"] * bool(thresholds)
    columns = "".join(f'<th scope="col">{name}</th>' for name in head)
    segments = answer["segments"]
    return (
        f'<section class="ecg-scores"><h2>{title}</h2><p class="ecg-faint">{explanation} From {segments} '
        f"segment{'s' * (segments != 1)} of 5 s.</p><table><thead><tr>{columns}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></section>"
    )


def _heading(scores: dict, calibration: dict, thresholds: dict, regression: bool) -> tuple[str, str]:
    if regression:
        return "Predicted values", ""
    calibrated = sum(label in calibration for label in scores)
    if calibrated == len(scores):
        title, explanation = "Probabilities", "Calibrated on data like those of the model's calibration."
    elif calibrated:
        title, explanation = "Scores", "A value is a probability only where it says so."
    else:
        title, explanation = "Scores", "Uncalibrated: a score is not a probability."
    if not thresholds:
        explanation += " The model has no thresholds, so nothing is called positive."
    else:
        explanation += " The tick is the label's threshold."
    return title, explanation


def _bar(score: float, threshold: float | None) -> str:
    width = 100 * min(max(score, 0.0), 1.0)
    tick = "" if threshold is None else f'<b style="left:{100 * min(max(threshold, 0.0), 1.0):.1f}%"></b>'
    return f'<span class="ecg-bar" aria-hidden="true"><i style="width:{width:.1f}%"></i>{tick}</span>'


__all__ = ["BANNER", "downloads", "notes", "picture", "refusal", "scores_table", "text"]
