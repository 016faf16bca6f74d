"""Scoring of dropped recordings: reading, scores, saliency, page and downloads, and recordings kept by session."""

import csv
import dataclasses
import json
import logging
import os
import re
import tempfile
import threading
import time
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict

from ..configuration_ecgfm import ECGFMConfig
from ..inference.model_runner import score_note
from ..interpretation.paper import save_page
from ..interpretation.prediction_page import plot_prediction
from ..interpretation.saliency import Attribution, attribute
from ..pipeline_ecgfm import ECGClassificationPipeline
from ..records.record import ECGReadError, ECGRecord
from . import html
from .uploads import READING, UploadError, take_upload

logger = logging.getLogger(__name__)

ATTENTION = "attention"
_LABEL = "label:"  # prefix of a label's name, which may be "attention" itself
_LONGEST_ATTRIBUTED = 60.0  # seconds, where all segments count: each takes some hundred passes of the model


class RecordReader(Protocol):
    """What reads the files of sessions, such as [`SessionReaders`]."""

    def read(self, session: str, path: str | os.PathLike, **arguments: Any) -> ECGRecord: ...

    def end(self, session: str) -> None: ...


@dataclass(frozen=True, eq=False)
class ScoredRecording:
    """
    A recording with the model's answer.

    Attributes:
        record: The recording.
        title: Its name as the visitor uploaded it.
        answer: The pipeline's answer.
        policies: The feature extractor's policies behind that answer.
    """

    record: ECGRecord = field(repr=False)
    title: str
    answer: dict[str, Any]
    policies: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Size of the samples, which take nearly all of the memory."""
        return self.record.samples.nbytes


class SessionRecordings:
    """
    Recordings in memory, one per session, for further questions after the file has been deleted.

    Args:
        seconds: Time after which a recording is dropped.
        most: Number of recordings; the oldest is dropped when another comes.
        most_bytes: Size of their samples together; likewise.
    """

    def __init__(self, seconds: float = 1800.0, most: int = 16, most_bytes: int = 1 << 29):
        self._seconds, self._most, self._most_bytes = seconds, most, most_bytes
        self._recordings: OrderedDict[str, tuple[float, ScoredRecording]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, session: str, recording: ScoredRecording) -> None:
        """Keep a recording in place of the session's former one."""
        with self._lock:
            self._recordings.pop(session, None)
            self._recordings[session] = (time.monotonic(), recording)
            while len(self._recordings) > self._most or (
                len(self._recordings) > 1 and self._bytes() > self._most_bytes
            ):
                self._recordings.popitem(last=False)

    def get(self, session: str) -> ScoredRecording | None:
        """Return the session's recording, None if it was dropped."""
        self.drop_old()
        with self._lock:
            entry = self._recordings.get(session)
            return None if entry is None else entry[1]

    def drop(self, session: str) -> None:
        """Drop the session's recording, if there is one."""
        with self._lock:
            self._recordings.pop(session, None)

    def drop_old(self) -> None:
        """Drop recordings whose time has passed."""
        with self._lock:
            oldest = time.monotonic() - self._seconds
            for session in [session for session, (put, _) in self._recordings.items() if put < oldest]:
                del self._recordings[session]

    def _bytes(self) -> int:
        return sum(recording.nbytes for _, recording in self._recordings.values())

    def __len__(self) -> int:
        return len(self._recordings)


class PageResult(TypedDict, total=False):
    """The page's pieces in HTML and the recording's length, or only the reason for a refusal."""

    refused: str
    notes: str
    page: str
    scores: str
    downloads: str
    seconds: float


class PageScorer:
    """
    Answers what visitors ask, as pieces of HTML.

    Args:
        pipeline: From `load_pipeline`.
        reader: Reads files.
        folder: Private folder with the uploads; drawings are in it for a moment.
        max_bytes: Largest upload.
        model_name: Printed on pages.
    """

    def __init__(
        self, pipeline: ECGClassificationPipeline, reader: RecordReader, folder: Path, max_bytes: int, model_name: str
    ):
        self._pipeline, self._reader, self._folder, self._max_bytes = pipeline, reader, folder, max_bytes
        self._facts = [f"model {model_name}"]
        self.recordings = SessionRecordings()

    def read(
        self, session: str, paths: list[str], options: tuple[str, str, str, str], policies: dict[str, Any]
    ) -> PageResult:
        """
        Read and score an upload. Never raises.

        Args:
            session: The visitor's session; its former recording is dropped.
            paths: The uploaded files.
            options: As entered on the page: the arguments of [`parse_file_options`].
            policies: The feature extractor's.
        """
        self.recordings.drop(session)
        title = None
        try:
            with take_upload(paths, self._folder, self._max_bytes) as upload:
                title, folder = upload.title, upload.path.parent
                record = self._reader.read(session, upload.path, **parse_file_options(*options))
            # From here on it has the name that the visitor gave it.
            record = dataclasses.replace(record, path=title, recording_id=title)
            recording = score_recording(self._pipeline, record, title, policies)
            result = self._result(recording)
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
        self.recordings.put(session, recording)
        result["seconds"] = record.samples.shape[1] / record.sampling_rate
        return result

    def leave(self, session: str) -> None:
        """Drop the session's recording and end its reader."""
        self.recordings.drop(session)
        self._reader.end(session)

    def draw_again(self, session: str, saliency: str, start_s: float, mm_per_mv: float = 10.0) -> PageResult:
        """Return the session's page with other saliency or gain, or from another second. Never raises."""
        recording = self.recordings.get(session)
        if recording is None:
            return {"refused": "the recording is no longer in memory: drop the file again"}
        try:
            return self._result(recording, saliency, start_s, mm_per_mv)
        except (ValueError, ImportError) as error:
            return {"refused": str(error)}
        except Exception as error:
            return {"refused": _unexpected(error)}

    def _result(
        self, recording: ScoredRecording, saliency: str = "", start_s: float = 0.0, mm_per_mv: float = 10.0
    ) -> PageResult:
        attribution = compute_saliency(self._pipeline, recording, saliency)
        files = draw_page(
            self._pipeline,
            recording,
            attribution,
            self._folder,
            start_s=start_s,
            mm_per_mv=mm_per_mv,
            facts=self._facts,
        )
        found = list(dict.fromkeys([*recording.answer["warnings"], *(attribution.warnings if attribution else ())]))
        return {
            "notes": html.notes("Please note", found),
            "page": html.picture(files["png"], recording.title),
            "scores": html.scores_table(recording.answer, _config(self._pipeline))
            + html.segments_table(recording.answer, _config(self._pipeline)),
            "downloads": html.downloads(as_json(self._pipeline, recording), files["pdf"], recording.title),
        }

    def _without_folders(self, reason: str) -> str:
        folders = "|".join(re.escape(f"{folder}{os.sep}") for folder in (os.path.realpath(self._folder), self._folder))
        return re.sub(rf"({folders})({READING}\w+{re.escape(os.sep)})?", "", reason)


def _config(pipeline: ECGClassificationPipeline) -> ECGFMConfig:
    config = pipeline.model.config
    assert isinstance(config, ECGFMConfig)  # load_pipeline loads no other model
    return config


def score_recording(
    pipeline: ECGClassificationPipeline, record: ECGRecord, title: str, policies: dict[str, Any]
) -> ScoredRecording:
    """Score a recording. `ValueError` if the feature extractor refuses it."""
    # The title is the record's path: see `PageScorer.read`.
    return ScoredRecording(record, title, pipeline(record, per_segment=True, **policies), policies)


def saliency_choices(label_names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the choices of saliency: texts to show, and values for [`compute_saliency`]."""
    return [
        ("none", ""),
        *((name, _LABEL + name) for name in label_names),
        ("attention of the model, the same for all labels", ATTENTION),
    ]


def compute_saliency(
    pipeline: ECGClassificationPipeline, recording: ScoredRecording, choice: str
) -> Attribution | None:
    """
    Compute the saliency chosen from [`saliency_choices`]; None for "none".

    Raises:
        ImportError: captum is not installed.
        ValueError: an unknown label; a recording that is too long for a label whose score is a mean over segments.
    """
    if not choice:
        return None
    if choice == ATTENTION:
        return attribute(pipeline, recording.record, method="attention", **recording.policies)
    label, config = choice.removeprefix(_LABEL), _config(pipeline)
    seconds = recording.record.samples.shape[1] / recording.record.sampling_rate
    is_mean = label in config.label_names and config.aggregations()[config.label_names.index(label)] != "max"
    if is_mean and seconds > _LONGEST_ATTRIBUTED:
        raise ValueError(
            f"the score of {label} is a mean over the whole recording. This page computes its saliency for up to "
            f"{_LONGEST_ATTRIBUTED:g} s, found {seconds:.4g} s; ecgfm_hf.interpretation.attribute takes any length"
        )
    return attribute(pipeline, recording.record, label, **recording.policies)


def draw_page(
    pipeline: ECGClassificationPipeline,
    recording: ScoredRecording,
    attribution: Attribution | None,
    scratch: Path,
    *,
    start_s: float = 0.0,
    mm_per_mv: float = 10.0,
    facts: Sequence[str] = (),
) -> dict[str, bytes]:
    """
    Draw the 12-lead page from `start_s` on: `{"png": ..., "pdf": ...}`. No file remains in the folder `scratch`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `start_s` after the recording's end, or a gain that a page cannot have.
    """
    scores, positive = recording.answer["scores"], recording.answer["positive"]
    # matplotlib warns of characters that its font does not have, which would put a file's name into the log.
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="drawing-", dir=scratch) as folder:
        warnings.simplefilter("ignore", UserWarning)
        figure = plot_prediction(
            recording.record,
            scores,
            positive,
            _config(pipeline),
            warnings=recording.answer["warnings"],
            start_s=start_s,
            saliency=attribution,
            title=recording.title,
            facts=facts,
            mm_per_mv=mm_per_mv,
        )
        files = {}
        for suffix in ("png", "pdf"):
            path = Path(folder) / f"page.{suffix}"
            save_page(figure, path)
            files[suffix] = path.read_bytes()
    return files


def as_json(pipeline: ECGClassificationPipeline, recording: ScoredRecording) -> str:
    """Return the answer as `ecgfm predict --format json` writes it, with the answers of segments in `by_segment`."""
    about = {
        "precision": str(pipeline.model.dtype).removeprefix("torch."),
        "note": score_note(_config(pipeline)),
    }
    return json.dumps([recording.answer | about], indent=1, ensure_ascii=False) + "\n"


def parse_file_options(rate: str, units: str, leads: str, exam: str) -> dict[str, Any]:
    """
    Return what was entered for a file as arguments of `read_ecg`, without empty fields.

    Raises:
        UploadError: an entry that cannot be understood.
    """
    try:
        row = next(csv.reader([(leads or "")[:1000]], skipinitialspace=True, strict=True), [])
    except csv.Error:
        raise UploadError('lead names must look like I,II,III or "a, b",c') from None
    options = {
        "sampling_rate": _number("sampling rate", rate, float),
        "units": (units or "").strip()[:40],
        "lead_names": [name.strip() for name in row if name.strip()],
        "exam_id": _number("exam", exam, int),
    }
    return {name: value for name, value in options.items() if value not in (None, "", [])}


def _number(name: str, entered: str, kind: type[int] | type[float]) -> float | int | None:
    entered = (entered or "").strip()[:40]
    try:
        return kind(entered) if entered else None
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise UploadError(f"the {name} must be {expected}, found: {entered}") from None


def _unexpected(error: Exception) -> str:
    """Log an error without its message and data, which may contain names; return a message for the page."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    logger.error(
        "the page failed to answer: %s in %s, line %s", type(error).__name__, Path(where.filename).name, where.lineno
    )
    return f"unexpected error ({type(error).__name__}): the log names the line"


__all__ = ["PageScorer", "ScoredRecording", "SessionRecordings", "parse_file_options", "saliency_choices"]
