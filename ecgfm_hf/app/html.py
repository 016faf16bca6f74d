"""The page's pieces in HTML, from the templates beside this module. Values are always text in them, never markup."""

import base64
import re
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ..configuration_ecgfm import ECGFMConfig
from ..pipeline_ecgfm import is_calibration_valid

# Characters that Markdown and Gradio would interpret.
_TEMPLATE_CHARACTERS = str.maketrans({character: f"&#{ord(character)};" for character in "{}$`*_[]\\"})


def text(value: object) -> Markup:
    """Return `value` as text in HTML: no markup, no template, no invisible or direction-changing characters."""
    shown = "".join(character if character.isprintable() else "\ufffd" for character in " ".join(str(value).split()))
    return Markup(str(escape(shown)).translate(_TEMPLATE_CHARACTERS))


def _as_text(value: object) -> object:
    return value if isinstance(value, Markup) else text(value)


_loader = PackageLoader("ecgfm_hf.app")
_environment = Environment(
    loader=_loader,
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_as_text,
)


def _rendered(template: str, **values: Any) -> str:
    """Render a template without line breaks: Markdown leaves a block of HTML as it is only up to an empty line."""
    lines = _environment.get_template(template).render(values).splitlines()
    return "".join(line.strip() for line in lines).replace(_SPACE, " ").strip()


_SPACE = "\x00"  # stands for a space that must remain at the beginning of a line
_environment.filters["space"] = lambda _: Markup(_SPACE)


def stylesheet() -> str:
    """Return the page's CSS."""
    return _loader.get_source(_environment, "style.css")[0]


def header(model_name: str, labels: int) -> str:
    """Return the page's head: name, model, number of labels, and the banner that this is not for clinical use."""
    return _rendered("header.html", model_name=model_name, labels=labels)


def refusal(reason: str) -> str:
    """Return the message why there is no answer."""
    return _rendered("refusal.html", reason=reason)


def notes(title: str, found: Sequence[str]) -> str:
    """Return a list of warnings; an empty string without any."""
    return _rendered("notes.html", title=title, notes=found)


def picture(png: bytes, title: str) -> str:
    """Return the 12-lead page as an image."""
    return _rendered("picture.html", title=title, png=_base64(png))


def downloads(json_text: str, pdf: bytes, title: str) -> str:
    """Return links that contain their files, so that the server keeps none. Files are named after the recording."""
    name = re.sub(r"[^A-Za-z0-9.+-]+", "_", title).strip("._")[:80] or "recording"
    files = [
        (f"{name}-scores.json", "application/json", json_text.encode(), "Scores (JSON)"),
        (f"{name}-page.pdf", "application/pdf", pdf, "Page (PDF)"),
    ]
    links = [
        {"name": Markup(name), "type": kind, "content": _base64(content), "label": label}
        for name, kind, content, label in files
    ]
    return _rendered("downloads.html", files=links)


def scores_table(answer: dict[str, Any], config: ECGFMConfig) -> str:
    """Return a table of the scores: a row per label, in the model's order, with bar, value, threshold and note."""
    regression = config.problem_type == "regression"
    valid = is_calibration_valid(answer["warnings"])
    calibration = {} if regression or not valid else config.label_calibration or {}
    thresholds = {} if regression or not valid else config.label_thresholds or {}
    positive, label_notes = answer["positive"] or (), config.label_notes or {}
    rows = [
        {
            "label": label,
            "note": label_notes.get(label),
            "score": score,
            "width": _percent(score),
            "threshold": thresholds.get(label),
            "tick": _percent(thresholds.get(label, 0.0)),
            "calibrated": label in calibration,
            "positive": label in positive,
        }
        for label, score in answer["scores"].items()
    ]
    return _rendered(
        "scores.html",
        rows=rows,
        regression=regression,
        valid=valid,
        calibrated=sum(bool(row["calibrated"]) for row in rows),
        has_thresholds=bool(thresholds),
        segments=answer["segments"],
    )


def segments_table(answer: dict[str, Any], config: ECGFMConfig) -> str:
    """Return a table of the scores of each segment, folded up: a row per label. Empty for a single segment."""
    return _rendered(
        "segments.html",
        segments=answer["by_segment"],
        labels=config.label_names,
        has_thresholds=bool(config.label_thresholds) and is_calibration_valid(answer["warnings"]),
    )


def _percent(share: float) -> float:
    return 100 * min(max(share, 0.0), 1.0)


def _base64(content: bytes) -> Markup:
    return Markup(base64.b64encode(content).decode())


__all__ = ["downloads", "header", "notes", "picture", "refusal", "scores_table", "segments_table", "stylesheet", "text"]
