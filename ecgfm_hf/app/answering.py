"""A recording's answer, its page as a picture and a document, and the recordings that pages still ask about."""

import io
import tempfile
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cli.predict_output import write_answers
from ..interpretation.paper import save_page
from ..interpretation.prediction_page import plot_prediction
from ..interpretation.saliency import Attribution, attribute
from ..records.record import ECGRecord

ATTENTION = "attention"
_LABEL = "label:"  # before a label's name, which may be "attention" itself
_LONGEST_ATTRIBUTED = 60.0  # seconds, where every segment has a say: each takes some hundred passes of the model


@dataclass(frozen=True, eq=False)
class Answered:
    """
    A recording with a model's answer.

    Attributes:
        record: As read.
        title: What the sender calls it.
        answer: As the pipeline's.
        policies: The feature extractor's, that the answer was made with.
    """

    record: ECGRecord = field(repr=False)
    title: str
    answer: dict[str, Any]
    policies: dict[str, str]

    @property
    def nbytes(self) -> int:
        """Of the samples, which is about all that it takes."""
        return self.record.samples.nbytes


def answered(pipeline: Any, record: ECGRecord, title: str, policies: dict[str, str]) -> Answered:
    """
    Scores a recording.

    Raises:
        ValueError: the feature extractor refuses it.
    """
    given = {
        "signal": record.signal,
        "sampling_rate": record.sampling_rate,
        "lead_names": list(record.lead_names),
        "units": "mV",
        "recording": title,
    }
    return Answered(record, title, pipeline(given, **policies), policies)


def saliency_choices(label_names: list[str]) -> list[tuple[str, str]]:
    """What saliency may be asked for: texts to choose from, and values for [`saliency`]."""
    return [
        ("none", ""),
        *((name, _LABEL + name) for name in label_names),
        ("where the model looks, for all labels alike (attention)", ATTENTION),
    ]


def saliency(pipeline: Any, found: Answered, asked: str) -> Attribution | None:
    """
    What was chosen of [`saliency_choices`].

    Raises:
        ImportError: captum is not installed.
        ValueError: an unknown label; a recording that is too long for a label whose score is a mean over all of it.
    """
    if not asked:
        return None
    if asked == ATTENTION:
        return attribute(pipeline, found.record, method="attention", **found.policies)
    label, config = asked.removeprefix(_LABEL), pipeline.model.config
    seconds = found.record.samples.shape[1] / found.record.sampling_rate
    means = label in config.label_names and config.aggregations()[config.label_names.index(label)] != "max"
    if means and seconds > _LONGEST_ATTRIBUTED:
        raise ValueError(
            f"the score of {label} is a mean over the whole recording, and this page attributes that for up to "
            f"{_LONGEST_ATTRIBUTED:g} s, found {seconds:.4g} s; ecgfm_hf.interpretation.attribute takes any length"
        )
    return attribute(pipeline, found.record, label, **found.policies)


def drawn(
    pipeline: Any,
    found: Answered,
    shown: Attribution | None,
    scratch: Path,
    *,
    start_s: float = 0.0,
    mm_per_mv: float = 10.0,
    facts: Sequence[str] = (),
) -> dict[str, bytes]:
    """
    The clinical page from `start_s` on: `{"png": ..., "pdf": ...}`. Nothing of it stays in the folder `scratch`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `start_s` after the recording's end, or no gain that a page can have.
    """
    scores, positive = found.answer["scores"], found.answer["positive"]
    # matplotlib warns of characters that its font lacks, and so would put a file's name into the log.
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="drawing-", dir=scratch) as folder:
        warnings.simplefilter("ignore", UserWarning)
        figure = plot_prediction(
            found.record,
            scores,
            positive,
            pipeline.model.config,
            warnings=found.answer["warnings"],
            start_s=start_s,
            saliency=shown,
            title=found.title,
            facts=facts,
            mm_per_mv=mm_per_mv,
        )
        pages = {}
        for suffix in ("png", "pdf"):
            path = Path(folder) / f"page.{suffix}"
            save_page(figure, path)
            pages[suffix] = path.read_bytes()
    return pages


def as_json(pipeline: Any, found: Answered) -> str:
    """The answer as `ecgfm predict --format json` writes it."""
    stream = io.StringIO()
    precision = str(pipeline.model.dtype).removeprefix("torch.")
    write_answers([found.answer], pipeline.model.config, "json", stream, precision)
    return stream.getvalue()


class Held:
    """
    Recordings in memory, one a session, so that its page can ask for saliency when the file is long gone.

    Args:
        seconds: After which one is forgotten.
        most: Of which the oldest is forgotten when another comes.
        most_bytes: That their samples may take together; likewise.
    """

    def __init__(self, seconds: float = 1800.0, most: int = 16, most_bytes: int = 1 << 29):
        self._seconds, self._most, self._most_bytes = seconds, most, most_bytes
        self._found: OrderedDict[str, tuple[float, Answered]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, session: str, found: Answered) -> None:
        with self._lock:
            self._found.pop(session, None)
            self._found[session] = (time.monotonic(), found)
            while len(self._found) > self._most or (len(self._found) > 1 and self._bytes() > self._most_bytes):
                self._found.popitem(last=False)

    def get(self, session: str) -> Answered | None:
        self.forget_old()
        with self._lock:
            return self._found.get(session, (0.0, None))[1]

    def forget(self, session: str) -> None:
        with self._lock:
            self._found.pop(session, None)

    def forget_old(self) -> None:
        with self._lock:
            oldest = time.monotonic() - self._seconds
            for session in [session for session, (put, _) in self._found.items() if put < oldest]:
                del self._found[session]

    def _bytes(self) -> int:
        return sum(found.nbytes for _, found in self._found.values())

    def __len__(self) -> int:
        return len(self._found)


__all__ = ["ATTENTION", "Answered", "Held", "answered", "as_json", "drawn", "saliency", "saliency_choices"]
