"""How long the units of a study take: from a few measurements first, from finished units later."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..data.model_inputs import as_model_inputs
from ..model_folder import load_model
from ..modeling_ecgfm import ECGFMModel
from ..utils.precision import evaluation_mode
from .arms import VALIDATIONS, learning_rates, training_steps
from .data import StudyInputs
from .features import feature_table

_SEGMENTS, _RECORDINGS = 4, 2
# Seconds of a unit beside its computation: models are built, loaded and saved.
_OVERHEAD = {"features": 0.1, "linear": 0.1, "attention": 0.5, "lora": 4.0, "finetune": 4.0, "scratch": 4.0}
# Forward passes that a training step takes.
_STEP = {"lora": 2.5, "finetune": 3.5, "scratch": 3.5}
# Trainings times epochs of attention pooling, and what an epoch takes compared with the encoder's pass.
_POOLER_EPOCHS, _POOLER_SHARE = 90, 0.03


@dataclass
class Costs:
    """
    Estimated seconds.

    Args:
        recordings, segments (`int`): Of the study.
        read (`float`), measure (`float`), forward (`float`): Seconds to preprocess a segment, to measure the features
            of a recording, and to run the encoder on a segment.
        jobs (`int`): Processes that measure features.
        ratios: By arm, what its finished units took compared with the estimate.
    """

    recordings: int
    segments: int
    read: float
    measure: float
    forward: float
    jobs: int = 1
    ratios: dict[str, list[float]] = field(default_factory=dict)

    def inputs(self, name: str) -> float:
        """Estimate how long `features`, `embeddings`, `frames` or `segments` take."""
        if name == "features":
            return self.recordings * self.measure / self.jobs
        return self.segments * (self.read + (0.0 if name == "segments" else self.forward))

    def unit(self, arm: str, train: int, test: int, labels: int, changes: Mapping[str, Any] | None = None) -> float:
        """Estimate a unit with `train` and `test` recordings; `changes` are the study's settings of fine-tuning."""
        per_recording = self.segments / max(self.recordings, 1)
        seconds = _OVERHEAD[arm]
        if arm in ("features", "linear"):
            seconds += labels * (0.05 + 2e-4 * train)
        elif arm == "attention":
            seconds += _POOLER_EPOCHS * _POOLER_SHARE * train * per_recording * self.forward
        else:
            changes = changes or {}
            updates, batch = training_steps(round(0.8 * train * per_recording), changes)
            judged = VALIDATIONS * 0.2 * train * per_recording
            passes = len(learning_rates(arm, changes)) * (updates * batch * _STEP[arm] + judged)
            seconds += (passes + test * per_recording) * self.forward
        return seconds * (float(np.median(self.ratios[arm])) if self.is_measured(arm) else 1.0)

    def learn(self, arm: str, estimate: float, seconds: float) -> None:
        """Take account of a finished unit of which `estimate` was expected."""
        if seconds > 0:
            now = float(np.median(self.ratios[arm])) if self.is_measured(arm) else 1.0
            self.ratios.setdefault(arm, []).append(seconds / (estimate / now))

    def is_measured(self, arm: str) -> bool:
        """Return whether a unit of the arm has finished."""
        return bool(self.ratios.get(arm))


def measure_costs(inputs: StudyInputs, arms: Collection[str], jobs: int) -> Costs:
    """Measure what reading, features and the encoder take on a few recordings."""
    data = inputs.data
    segments = as_model_inputs(data.dataset, inputs.extractor, labels=())
    few = range(min(_SEGMENTS, len(segments)))
    items: list[dict[str, np.ndarray]] = []
    read = _seconds(lambda: items.extend(segments.__getitems__(few))) / len(few)
    features = forward = 0.0
    if "features" in arms:
        some = data.dataset.select(range(min(_RECORDINGS, len(data))))
        feature_table(some)  # the first call imports
        features = _seconds(lambda: feature_table(some)) / len(some)
    if set(arms) - {"features"}:
        model = load_model(inputs.model_dir, ECGFMModel)
        torch.nn.Module.to(model, inputs.device)
        batch = torch.from_numpy(np.stack([item["input_values"] for item in items])).to(inputs.device)
        with evaluation_mode(model), torch.no_grad():
            model(batch[:1])
            forward = _seconds(lambda: model(batch).last_hidden_state.cpu()) / len(batch)
    return Costs(len(data), len(segments), read, features, forward, jobs)


def _seconds(function: Callable[[], object]) -> float:
    began = time.monotonic()
    function()
    return time.monotonic() - began


__all__ = ["Costs", "measure_costs"]
