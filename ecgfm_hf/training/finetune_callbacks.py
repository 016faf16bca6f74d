"""What happens beside fine-tuning: figures are told, and signals are heard."""

import signal
import time
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback

from .interruption import Interruption
from .monitoring import Monitor

# Of the Trainer's figures, what is worth telling, and under which name.
_TRAIN = {"loss": "loss", "grad_norm": "gradient_norm", "learning_rate": "learning_rate", "epoch": "epoch"}


class TellProgress(TrainerCallback):
    """
    Passes the Trainer's figures on to a [`Monitor`].

    Args:
        monitor ([`Monitor`])
        segments (`int`): Of an update, over processes and accumulation, for the speed.
    """

    def __init__(self, monitor: Monitor, segments: int):
        self._monitor, self._segments = monitor, segments
        self._began, self._since = time.perf_counter(), 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After an update."""
        self._since += 1
        self._monitor.advance()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Figures of training; those of validation come by `on_evaluate`."""
        if "loss" in logs:
            values = {name: logs[key] for key, name in _TRAIN.items() if key in logs}
            seconds = time.perf_counter() - self._began
            values["segments_per_s"] = self._since * self._segments / max(seconds, 1e-9)
            self._monitor.log("train", state.global_step, values)
            self._began, self._since = time.perf_counter(), 0

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Figures of the validation split."""
        untold = ("runtime", "per_second", "preparation_time", "epoch")
        values = {k.removeprefix("eval_"): v for k, v in metrics.items() if not k.endswith(untold)}
        self._monitor.log("valid", state.global_step, values)
        self._began, self._since = time.perf_counter(), 0  # What validating took does not count.


class StopOnSignal(TrainerCallback):
    """
    Saves after the update in which a signal came to any process, and stops.

    Args:
        interruption ([`Interruption`]): Listening.
        accelerator (`Accelerator`)

    Attributes:
        received (`int`): The signal, 0 without.
    """

    def __init__(self, interruption: Interruption, accelerator: Accelerator):
        self._interruption, self._accelerator = interruption, accelerator
        self.received = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After an update."""
        number = self._interruption.number
        if self._accelerator.num_processes > 1:
            flag = torch.tensor(float(number > 0), device=self._accelerator.device)
            anywhere = self._accelerator.reduce(flag, reduction="sum").item() > 0
            number = (number or int(signal.SIGTERM)) if anywhere else 0
        if number:
            self.received = number
            control.should_save = control.should_training_stop = True


__all__ = ["StopOnSignal", "TellProgress"]
