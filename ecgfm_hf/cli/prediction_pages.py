"""`ecgfm predict --plot`: a 12-lead page for each recording, with its scores."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..utils.errors import SettingsError
from ..utils.files import check_output

if TYPE_CHECKING:
    from ..configuration_ecgfm import ECGFMConfig
    from ..interpretation import Attribution
    from ..pipeline_ecgfm import ECGClassificationPipeline
    from ..records import ECGRecord


def is_page(path: Path) -> bool:
    """Return whether a file is a page of this package."""
    from ..interpretation.paper import PAGE_MARK

    return path.is_file() and PAGE_MARK.encode() in path.read_bytes()


@dataclass(frozen=True)
class PageOptions:
    """Where and how pages are drawn: `--plot` and the options beside it."""

    folder: Path
    format: Literal["pdf", "png"]
    paper: Literal["a4", "letter"]
    start: float
    gain: float
    saliency: str | None

    def writer(
        self, pipeline: "ECGClassificationPipeline", model: str, inputs: Sequence[str], overwrite: bool
    ) -> "Callable[[ECGRecord, Mapping[str, Any]], None]":
        """
        Return the function that writes the page of a recording, given it and its answer. It raises an
        [`OutputExistsError`] where the page would replace a file that is no page, or is among `inputs`.

        Raises:
            `ValueError`: a label that the model does not have.
            `ImportError`: a library that is not installed; the message names the extra that brings it.
            `OSError`: the folder cannot be made.
        """
        from ..interpretation.ecg_page import GAINS
        from ..interpretation.paper import new_sheet

        if self.gain not in GAINS:
            gains = ", ".join(f"{gain:g}" for gain in GAINS)
            raise SettingsError(f"--plot-gain must be one of {gains} mm/mV, found: {self.gain:g}")
        new_sheet(self.paper)  # is there matplotlib?
        from ..configuration_ecgfm import ECGFMConfig

        config = pipeline.model.config
        assert isinstance(config, ECGFMConfig)  # the package's own, by load_pipeline
        labels = config.label_names
        if self.saliency not in (None, "attention", *labels):
            raise ValueError(
                f"--plot-saliency: the model has no label {self.saliency!r}, only {', '.join(labels)}, or attention"
            )
        if self.saliency in labels:
            from ..interpretation.saliency import captum_attributions

            captum_attributions()  # is there captum?
        self.folder.mkdir(parents=True, exist_ok=True)
        taken: set[str] = set()
        model_name = os.path.basename(os.path.normpath(model))

        def write(record: "ECGRecord", answer: Mapping[str, Any]) -> None:
            path = plot_path(self.folder, record.recording_id, self.format, taken)
            check_output(path, inputs, overwrite=overwrite, is_own=is_page)
            plot_recording(
                record,
                answer["scores"],
                answer["positive"],
                config,
                _saliency(pipeline, record, self.saliency),
                path,
                warnings=answer["warnings"],
                start_s=self.start,
                facts=[f"model {model_name}"],
                mm_per_mv=self.gain,
                paper=self.paper,
            )

        return write


def _saliency(pipeline: "ECGClassificationPipeline", record: "ECGRecord", wanted: str | None) -> "Attribution | None":
    """Return what `--plot-saliency` names: nothing, the attention map, or a label's attribution."""
    from ..interpretation import attribute

    if wanted is None:
        return None
    # A label of that name comes first.
    if wanted == "attention" and wanted not in pipeline.model.config.label_names:
        return attribute(pipeline, record, method="attention")
    return attribute(pipeline, record, wanted)


def plot_path(folder: str | os.PathLike[str], recording: str, suffix: str, taken: set[str]) -> Path:
    """
    Return a file in `folder` for the page of a recording, named after it.

    It is numbered where the name is in `taken`, to which the new name is added. Characters that mean something to a
    file system become `_`.
    """
    name = re.sub(r"[^\w.+-]", "_", recording.replace("\\", "/").rsplit("/", 1)[-1]).strip(".")[:120] or "recording"
    unique, number = name, 2
    while unique.casefold() in taken:
        unique, number = f"{name}_{number}", number + 1
    taken.add(unique.casefold())
    return Path(folder) / f"{unique}.{suffix.lstrip('.')}"


def plot_recording(
    record: "ECGRecord",
    scores: dict[str, float],
    positive: Sequence[str] | None,
    config: "ECGFMConfig",
    saliency: "Attribution | None",
    path: str | os.PathLike[str],
    **settings: Any,
) -> None:
    """
    Write the page of one recording to `path` (.png or .pdf), whose folder is created.

    Args:
        settings: Further ones of [`plot_prediction`].

    Raises:
        ImportError, ValueError, OSError: as [`plot_prediction`] and [`save_page`].
    """
    from ..interpretation import plot_prediction, save_page

    figure = plot_prediction(record, scores, positive, config, saliency=saliency, **settings)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_page(figure, path)
