"""`ecgfm predict --plot`: its arguments, and a page a recording."""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configuration_ecgfm import ECGFMConfig
from ..interpretation.ecg_page import GAINS
from ..records.record import ECGRecord

if TYPE_CHECKING:
    from ..interpretation.saliency import Attribution


def add_plot_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `--plot` and what goes with it."""
    group = parser.add_argument_group("a page for each recording (needs ecgfm-hf[plots])")
    group.add_argument("--plot", metavar="DIR", type=Path, help="write a 12-lead page with scores for each recording")
    group.add_argument("--plot-format", choices=("pdf", "png"), default="pdf", help="default: pdf")
    group.add_argument("--plot-paper", choices=("a4", "letter"), default="a4", help="default: a4")
    group.add_argument("--plot-start", metavar="S", type=float, default=0.0, help="second to begin at (default: 0)")
    group.add_argument(
        "--plot-gain", type=float, choices=GAINS, default=10.0, metavar="MM", help="mm/mV: 5, 10 or 20 (default: 10)"
    )
    group.add_argument(
        "--plot-saliency",
        metavar="LABEL",
        help="colour the traces by what speaks for this label (integrated gradients; needs ecgfm-hf[saliency]), or "
        "'attention' for the published attention map",
    )


def saliency_for_plot(pipeline: Any, record: ECGRecord, asked: str | None) -> "Attribution | None":
    """What `--plot-saliency` asks for: nothing, the attention map, or a label's attribution."""
    from ..interpretation.saliency import attribute

    if asked is None:
        return None
    # A label of that name would be asked for by its own right.
    if asked == "attention" and asked not in pipeline.model.config.label_names:
        return attribute(pipeline, record, method="attention")
    return attribute(pipeline, record, asked)


def pages(args: argparse.Namespace, pipeline: Any) -> "Callable[[ECGRecord, dict[str, Any]], None] | None":
    """
    What writes the page of a recording, given it and its answer; None without `--plot`.

    Raises:
        `ValueError`: a label that the model does not have.
        `ImportError`: a library that is not installed; the message says which extra brings it.
        `OSError`: the folder cannot be made.
    """
    if args.plot is None:
        return None
    from ..interpretation.paper import new_sheet

    new_sheet(args.plot_paper)  # is there matplotlib?
    labels, asked = pipeline.model.config.label_names, args.plot_saliency
    if asked not in (None, "attention", *labels):
        raise ValueError(f"--plot-saliency: the model has no label {asked!r}, only {', '.join(labels)}, or attention")
    if asked in labels:
        from ..interpretation.saliency import captum_attributions

        captum_attributions()  # is there captum?
    args.plot.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    model_name = os.path.basename(os.path.normpath(args.model))

    def write(record: ECGRecord, answer: dict[str, Any]) -> None:
        path = plot_path(args.plot, record.recording_id, args.plot_format, taken)
        saliency = saliency_for_plot(pipeline, record, asked)
        plot_recording(
            record,
            answer["scores"],
            answer["positive"],
            pipeline.model.config,
            saliency,
            path,
            warnings=answer["warnings"],
            start_s=args.plot_start,
            facts=[f"model {model_name}"],
            mm_per_mv=args.plot_gain,
            paper=args.plot_paper,
        )

    return write


def plot_path(folder: str | os.PathLike, recording: str, suffix: str, taken: set[str]) -> Path:
    """
    A file in `folder` for the page of a recording, named after it; numbered where that name is `taken`, to which the
    new one is added. Characters that mean something to a file system become `_`.
    """
    name = re.sub(r"[^\w.+-]", "_", recording.replace("\\", "/").rsplit("/", 1)[-1]).strip(".")[:120] or "recording"
    unique, number = name, 2
    while unique.casefold() in taken:
        unique, number = f"{name}_{number}", number + 1
    taken.add(unique.casefold())
    return Path(folder) / f"{unique}.{suffix.lstrip('.')}"


def plot_recording(
    record: ECGRecord,
    scores: dict[str, float],
    positive: Sequence[str] | None,
    config: ECGFMConfig,
    saliency: "Attribution | None",
    path: str | os.PathLike,
    **settings: Any,
) -> None:
    """
    Writes the page of one recording to `path` (.png or .pdf), whose folder is created. `settings` are further ones of
    [`plot_prediction`].

    Raises:
        ImportError, ValueError, OSError: as [`plot_prediction`] and [`save_page`].
    """
    from ..interpretation.paper import save_page
    from ..interpretation.prediction_page import plot_prediction

    figure = plot_prediction(record, scores, positive, config, saliency=saliency, **settings)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_page(figure, path)


__all__ = ["add_plot_arguments", "pages", "plot_path", "plot_recording", "saliency_for_plot"]
