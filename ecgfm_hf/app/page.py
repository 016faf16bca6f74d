"""The page's layout, and what happens when a file is dropped or saliency is chosen."""

from typing import TYPE_CHECKING, Any

from ..feature_extraction_ecgfm import POLICIES
from ..interpretation.ecg_page import GAINS
from . import html
from .page_scoring import PageScorer, saliency_choices
from .reader_process import LONGEST_SECONDS
from .request_guard import MOST_QUEUED
from .uploads import MEGABYTE

if TYPE_CHECKING:
    import gradio

# Fonts that every system has.
_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
_POLICY_LABELS = {name: name.replace("_", " ").capitalize().replace("Nan", "NaN") for name in POLICIES}
_MODEL_DEFAULT = "model default"
_GAIN = "10 mm/mV"
_PAGE_SECONDS = 10.0
_FORMATS = "WFDB (.hea together with its .dat or .mat), DICOM, EDF, MUSE, Sierra and aECG XML, SCP-ECG, CSV, .npy"
_STORAGE = (
    "Files are deleted as soon as they are read. The recording stays in this program's memory until you close the page "
    "or drop another file, for at most half an hour."
)


def build_page(scorer: PageScorer, model_name: str, label_names: list[str], max_bytes: int) -> "gradio.Blocks":
    """Return the page as `gradio.Blocks`."""
    import gradio as gr

    def piece(content: str = "", **settings: Any) -> Any:
        # gradio.HTML would evaluate its content as a template. Values are escaped in html.py, and Markdown does not
        # change a block of HTML without empty lines.
        return gr.Markdown(content, sanitize_html=False, latex_delimiters=[], **settings)

    private: dict[str, Any] = {
        "api_visibility": "private",
        "concurrency_limit": 1,
        "concurrency_id": "model",
        "queue": True,
    }

    with gr.Blocks(title="ECG-FM", analytics_enabled=False, delete_cache=(60, 300), fill_width=True) as blocks:
        piece(html.header(model_name, len(label_names)))
        file = gr.File(
            label=f"One recording, up to {max_bytes / MEGABYTE:g} MB",
            file_count="multiple",
            height=150,
        )
        piece(f'<p class="ecg-foot">{_FORMATS}; up to {LONGEST_SECONDS // 60} minutes. {_STORAGE}</p>')
        with gr.Accordion("Options for files without sampling rate, units or lead names", open=False):
            piece('<p class="ecg-foot">Set these first, then drop the file.</p>')
            with gr.Row():
                # gradio.Number shows 0 where nothing was entered.
                rate = gr.Textbox(label="Sampling rate (Hz)", info="for CSV, TSV and .npy", max_lines=1)
                units = gr.Textbox(label="Units", info="for CSV, TSV, .npy and .mat, such as mV", max_lines=1)
                exam = gr.Textbox(label="Exam", info="for CODE-15 HDF5: the exam's id", max_lines=1)
            leads = gr.Textbox(label="Lead names", info="for .npy: one per row; for CSV: which columns. I,II,III,…")
            with gr.Row():
                policies = [
                    gr.Dropdown([_MODEL_DEFAULT, *choices], value=_MODEL_DEFAULT, label=_POLICY_LABELS[name])
                    for name, choices in POLICIES.items()
                ]
        message = piece(visible=False)
        with gr.Column(visible=False) as results:
            notes = piece(visible=False)
            page = piece()
            with gr.Row(equal_height=True):
                choices = saliency_choices(label_names)
                saliency = gr.Dropdown(
                    choices, value="", label="Saliency", info="colours the traces by their contribution to a label"
                )
                gain = gr.Dropdown([f"{one:g} mm/mV" for one in GAINS], value=_GAIN, label="Gain", info="of the page")
                start = gr.Slider(0, 1, value=0, step=1, label="Start of the page (s)", visible=False)
            downloads = piece()
            scores = piece()

        def shown_if_any(content: str) -> Any:
            return gr.Markdown(content, visible=bool(content))

        def on_upload(
            paths: list[str] | None,
            rate: str,
            units: str,
            leads: str,
            exam: str,
            missing: str,
            nan: str,
            constant: str,
            short: str,
            request: gr.Request,
        ) -> dict[Any, Any]:
            entered = dict(zip(POLICIES, (missing, nan, constant, short), strict=True))
            chosen = {name: policy for name, policy in entered.items() if policy != _MODEL_DEFAULT}
            options = (rate, units, leads, exam)
            found = scorer.read(request.session_hash or "", list(paths or []), options, chosen)
            if "refused" in found:
                return {
                    file: None,
                    message: shown_if_any(html.refusal(found["refused"])),
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
                saliency: gr.Dropdown(value=""),
                gain: gr.Dropdown(value=_GAIN),
                start: gr.Slider(value=0, maximum=max(1, int(last)), visible=last >= 1),
            }

        def on_choice(
            choice: str | None, mm_per_mv: str | None, start_s: float | None, request: gr.Request
        ) -> dict[Any, Any]:
            view = float(start_s or 0), float((mm_per_mv or _GAIN).split()[0])
            found = scorer.draw_again(request.session_hash or "", choice or "", *view)
            if "refused" in found:
                return {message: shown_if_any(html.refusal(found["refused"]))}
            return {
                message: shown_if_any(""),
                notes: shown_if_any(found["notes"]),
                page: found["page"],
                downloads: found["downloads"],
            }

        def on_leaving(request: gr.Request) -> None:
            scorer.leave(request.session_hash or "")

        outputs = [file, message, results, notes, page, scores, downloads, saliency, gain, start]
        inputs = [file, rate, units, leads, exam, *policies]
        # The former recording fades until the answer for this one arrives.
        faded = [file, notes, page, downloads, scores]
        file.upload(on_upload, inputs, outputs, show_progress_on=faded, **private)
        again, view = [message, notes, page, downloads], [saliency, gain, start]
        for changed in (saliency.input, gain.input, start.release):
            changed(on_choice, view, again, show_progress_on=page, **private)
        blocks.unload(on_leaving)
    blocks.queue(max_size=MOST_QUEUED, api_open=False, default_concurrency_limit=1)
    return blocks


def theme() -> "gradio.themes.Base":
    """Return Gradio's plainest theme with system fonts; its own fonts would be fetched from another server."""
    import gradio as gr

    base = gr.themes.Base(
        primary_hue=gr.themes.colors.blue, neutral_hue=gr.themes.colors.slate, font=list(_SANS), font_mono=list(_MONO)
    )
    # Small print must be readable too.
    return base.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
    )


__all__ = ["build_page", "theme"]
