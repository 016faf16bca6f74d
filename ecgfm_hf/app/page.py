"""The page itself: what is on it, and what happens when a file is dropped or saliency is chosen."""

import argparse
import dataclasses
import logging
import os
import re
import traceback
from pathlib import Path
from typing import Any

from ..interpretation.ecg_page import GAINS
from ..records import ECGReadError
from ..utils.name_lists import names as as_names
from . import answering, fragments
from .reader import LONGEST_SECONDS, ConfinedReader
from .style import MONO, SANS
from .uploads import MEGABYTE, READING, UploadError, taken_upload

logger = logging.getLogger(__name__)

POLICIES = {
    "missing_leads": ("error", "zero", "derive"),
    "nan_samples": ("error", "zero", "interpolate"),
    "constant_leads": ("error", "zero"),
    "short_recordings": ("error", "pad"),
}
_POLICY_LABELS = {name: name.replace("_", " ").capitalize().replace("Nan", "NaN") for name in POLICIES}
_AS_MODEL = "as the model says"
_GAIN = "10 mm/mV"
_PAGE_SECONDS = 10.0
_FORMATS = "WFDB (.hea together with its .dat or .mat), DICOM, EDF, MUSE, Sierra and aECG XML, SCP-ECG, CSV, .npy"
_HOLDS = (
    "Files are deleted as soon as they are read. The recording stays in this program's memory for further questions "
    "until the page is closed, another file comes, or half an hour has passed."
)


class Asking:
    """
    What the page asks for, and the answers as pieces of HTML.

    Args:
        pipeline: From `load_pipeline`.
        reader: Of files.
        folder: Private; uploads lie in it, and drawings for a moment.
        max_bytes: Of an upload.
        model_name: To be printed on pages.
    """

    def __init__(self, pipeline: Any, reader: ConfinedReader, folder: Path, max_bytes: int, model_name: str):
        self._pipeline, self._reader, self._folder, self._max_bytes = pipeline, reader, folder, max_bytes
        self._facts = [f"model {model_name}"]
        self.held = answering.Held()

    def read(
        self, session: str, paths: list[str], told: tuple[str, str, str, str], policies: dict[str, str]
    ) -> dict[str, Any]:
        """
        Reads and scores what was dropped. `told` is what [`facts_of`] takes.

        Returns:
            `{"refused": why}`, or pieces of the page: `notes`, `page`, `scores`, `downloads`, and the recording's
            `seconds`. Never raises.
        """
        self.held.forget(session)
        title = None
        try:
            with taken_upload(paths, self._folder, self._max_bytes) as upload:
                title, folder = upload.title, upload.path.parent
                record = self._reader.read(upload.path, **facts_of(*told))
            # From here on it goes by the name that the sender knows.
            record = dataclasses.replace(record, path=title, recording_id=title)
            found = answering.answered(self._pipeline, record, title, policies)
            pieces = self._pieces(found)
        except UploadError as error:
            return {"refused": str(error)}
        except (ECGReadError, ValueError, ImportError) as error:
            reason = str(error)
            if title is not None:
                reason = reason.replace(f"{folder}{os.sep}", "").removeprefix(f"{title}: ")
                reason = f"{title}: {reason}"
            return {"refused": self._without_folders(reason)}
        except Exception as error:
            return {"refused": _unexpected(error)}
        self.held.put(session, found)
        return pieces | {"seconds": record.samples.shape[1] / record.sampling_rate}

    def draw_again(self, session: str, asked: str, start_s: float, mm_per_mv: float = 10.0) -> dict[str, Any]:
        """The page of the session's recording with other saliency or gain, or from another second; as [`read`]."""
        found = self.held.get(session)
        if found is None:
            return {"refused": "the recording is no longer held: drop the file again"}
        try:
            return self._pieces(found, asked, start_s, mm_per_mv)
        except (ValueError, ImportError) as error:
            return {"refused": str(error)}
        except Exception as error:
            return {"refused": _unexpected(error)}

    def _pieces(
        self, found: answering.Answered, asked: str = "", start_s: float = 0.0, mm_per_mv: float = 10.0
    ) -> dict[str, Any]:
        shown = answering.saliency(self._pipeline, found, asked)
        view = {"start_s": start_s, "mm_per_mv": mm_per_mv, "facts": self._facts}
        pages = answering.drawn(self._pipeline, found, shown, self._folder, **view)
        warnings = list(dict.fromkeys([*found.answer["warnings"], *(shown.warnings if shown else ())]))
        return {
            "notes": fragments.notes("Please note", warnings),
            "page": fragments.picture(pages["png"], found.title),
            "scores": fragments.scores_table(found.answer, self._pipeline.model.config),
            "downloads": fragments.downloads(answering.as_json(self._pipeline, found), pages["pdf"], found.title),
        }

    def _without_folders(self, reason: str) -> str:
        folders = "|".join(re.escape(f"{folder}{os.sep}") for folder in (os.path.realpath(self._folder), self._folder))
        return re.sub(rf"({folders})({READING}\w+{re.escape(os.sep)})?", "", reason)


def _unexpected(error: Exception) -> str:
    """Logged without its message and its data: both may hold names."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    logger.error("an answer failed: %s in %s, line %s", type(error).__name__, Path(where.filename).name, where.lineno)
    return f"this failed unexpectedly ({type(error).__name__})"


def facts_of(rate: str, units: str, leads: str, exam: str) -> dict[str, Any]:
    """
    What the sender says of a file, as `read_ecg` takes it; nothing for what was left empty.

    Raises:
        UploadError: what was said makes no sense.
    """
    try:
        lead_names = as_names((leads or "")[:1000])
    except argparse.ArgumentTypeError:
        raise UploadError('lead names must look like I,II,III or "a, b",c') from None
    said = {
        "sampling_rate": _number("sampling rate", rate, float),
        "units": (units or "").strip()[:40],
        "lead_names": lead_names,
        "exam_id": _number("exam", exam, int),
    }
    return {name: value for name, value in said.items() if value not in (None, "", [])}


def _number(name: str, said: str, kind: type) -> float | int | None:
    said = (said or "").strip()[:40]
    try:
        return kind(said) if said else None
    except ValueError:
        whole = "a whole number" if kind is int else "a number"
        raise UploadError(f"the {name} must be {whole}, found: {said}") from None


def build_page(asking: Asking, model_name: str, label_names: list[str], max_bytes: int) -> Any:
    """The page as `gradio.Blocks`."""
    import gradio as gr

    def piece(content: str = "", **settings: Any) -> Any:
        # Not gradio.HTML, which takes what it shows for a template and evaluates it. What comes from outside is escaped
        # in fragments.py; a block of HTML without empty lines is left alone by Markdown.
        return gr.Markdown(content, sanitize_html=False, latex_delimiters=[], **settings)

    private = {"api_visibility": "private", "concurrency_limit": 1, "concurrency_id": "model", "queue": True}

    with gr.Blocks(title="ECG-FM", analytics_enabled=False, delete_cache=(60, 300), fill_width=True) as blocks:
        piece(
            f'<header><div class="ecg-title"><h1>ECG-FM</h1><span>{fragments.text(model_name)} · '
            f"{len(label_names)} label{'s' * (len(label_names) != 1)}</span></div>{fragments.BANNER}</header>"
        )
        file = gr.File(
            label=f"One recording, up to {max_bytes / MEGABYTE:g} MB",
            file_count="multiple",
            height=150,
        )
        piece(f'<p class="ecg-foot">{_FORMATS}; up to {LONGEST_SECONDS // 60} minutes. {_HOLDS}</p>')
        with gr.Accordion("Options for files that do not say everything", open=False):
            piece('<p class="ecg-foot">Set these first, then drop the file.</p>')
            with gr.Row():
                # Not gradio.Number, which shows 0 where nothing was entered.
                rate = gr.Textbox(label="Sampling rate (Hz)", info="of CSV, TSV and .npy", max_lines=1)
                units = gr.Textbox(label="Units", info="of CSV, TSV, .npy, .mat; such as mV", max_lines=1)
                exam = gr.Textbox(label="Exam", info="of CODE-15's HDF5", max_lines=1)
            leads = gr.Textbox(label="Lead names", info="of .npy: one a row; of CSV: which columns. I,II,III,…")
            with gr.Row():
                policies = [
                    gr.Dropdown([_AS_MODEL, *choices], value=_AS_MODEL, label=_POLICY_LABELS[name])
                    for name, choices in POLICIES.items()
                ]
        message = piece(visible=False)
        with gr.Column(visible=False) as results:
            notes = piece(visible=False)
            page = piece()
            with gr.Row(equal_height=True):
                choices = answering.saliency_choices(label_names)
                asked = gr.Dropdown(
                    choices, value="", label="Saliency", info="what speaks for a label, as colour along the traces"
                )
                gain = gr.Dropdown([f"{one:g} mm/mV" for one in GAINS], value=_GAIN, label="Gain", info="of the page")
                start = gr.Slider(0, 1, value=0, step=1, label="Page begins at (s)", visible=False)
            downloads = piece()
            scores = piece()

        def shown_if_any(content: str) -> Any:
            return gr.Markdown(content, visible=bool(content))

        def on_upload(paths, rate, units, leads, exam, missing, nan, constant, short, request: gr.Request):
            said = dict(zip(POLICIES, (missing, nan, constant, short), strict=True))
            wanted = {name: policy for name, policy in said.items() if policy != _AS_MODEL}
            told = (rate, units, leads, exam)
            found = asking.read(request.session_hash or "", list(paths or []), told, wanted)
            if "refused" in found:
                return {
                    file: None,
                    message: shown_if_any(fragments.refusal(found["refused"])),
                    results: gr.Column(visible=False),
                }
            last = max(0.0, found["seconds"] - _PAGE_SECONDS)
            return {
                file: None,
                message: shown_if_any(""),
                results: gr.Column(visible=True),
                notes: shown_if_any(found["notes"]),
                page: found["page"],
                scores: found["scores"],
                downloads: found["downloads"],
                asked: gr.Dropdown(value=""),
                gain: gr.Dropdown(value=_GAIN),
                start: gr.Slider(value=0, maximum=max(1, int(last)), visible=last >= 1),
            }

        def on_choice(asked_for, mm_per_mv, start_s, request: gr.Request):
            view = float(start_s or 0), float((mm_per_mv or _GAIN).split()[0])
            found = asking.draw_again(request.session_hash or "", asked_for or "", *view)
            if "refused" in found:
                return {message: shown_if_any(fragments.refusal(found["refused"]))}
            return {
                message: shown_if_any(""),
                notes: shown_if_any(found["notes"]),
                page: found["page"],
                downloads: found["downloads"],
            }

        def on_leaving(request: gr.Request):
            asking.held.forget(request.session_hash or "")

        shown = [file, message, results, notes, page, scores, downloads, asked, gain, start]
        given = [file, rate, units, leads, exam, *policies]
        # What still stands there of another recording fades until this one's answer is there.
        faded = [file, notes, page, downloads, scores]
        file.upload(on_upload, given, shown, show_progress_on=faded, **private)
        again, view = [message, notes, page, downloads], [asked, gain, start]
        for changed in (asked.input, gain.input, start.release):
            changed(on_choice, view, again, show_progress_on=page, **private)
        blocks.unload(on_leaving)
    blocks.queue(max_size=16, api_open=False, default_concurrency_limit=1)
    return blocks


def theme() -> Any:
    """Gradio's plainest, in fonts of the system: its own would be fetched from elsewhere."""
    import gradio as gr

    base = gr.themes.Base(
        primary_hue=gr.themes.colors.blue, neutral_hue=gr.themes.colors.slate, font=list(SANS), font_mono=list(MONO)
    )
    # Small print must be readable too.
    return base.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
    )


__all__ = ["POLICIES", "Asking", "build_page", "facts_of", "theme"]
