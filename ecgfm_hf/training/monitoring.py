"""What a run logs (progress bar, `metrics.jsonl`, trackers), and what stops it: signals and non-finite values."""

import json
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from ..utils.errors import ECGFMError
from ..utils.files import write_json, write_text
from .settings import RunSettings, SettingsError

METRICS_FILE = "metrics.jsonl"
_TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb"}
# By default Weights & Biases sends the command line, the output, the host's name and the code's repository, which all
# contain paths.
_WANDB_SETTINGS = {
    "host": "",  # With None it would send the machine's name.
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_save_requirements": False,
}
_SHORT = {
    "loss": "loss",
    "contrastive_loss": "nce",
    "diversity_loss": "div",
    "feature_penalty": "pen",
    "cmsc_loss": "cmsc",
    "contrastive_accuracy": "acc",
    "code_perplexity": "code_ppl",
    "prob_perplexity": "prob_ppl",
    "auroc_macro": "auroc",
    "r_squared_macro": "r2",
    "mean_absolute_error_macro": "mae",
    "segments_per_s": "seg/s",
}
# Settings that may name institutions, people or paths.
_PRIVATE = ("data", "output_dir", "init_from", "prepare", "targets", "training_args")


class NonFiniteError(ECGFMError, RuntimeError):
    """
    A loss, a gradient or outputs became NaN or infinite; no weight was changed by it. The message names the update.
    """


class Interruption:
    """
    A context manager that records SIGTERM and Ctrl-C, so that an update can be finished and saved first.

    A second Ctrl-C raises `KeyboardInterrupt`. Outside the main thread nothing is recorded, since Python delivers
    signals only there.

    Attributes:
        number (`int`): The signal that came, 0 while none did.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[signal.Signals, Any] = {}  # Any, as `signal.signal` returns

    def __enter__(self) -> "Interruption":
        self.number = 0
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._record) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.number == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = int(number)


def check_trackers(names: Sequence[str]) -> None:
    """Raise [`SettingsError`] for a tracker that accelerate does not have, or whose package is not installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise SettingsError(
                f"report_to: unknown tracker {name!r}, expected {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
            )
        if name not in available:
            raise SettingsError(f"report_to: {name} is not installed: pip install {_TRACKERS.get(name, name)}")


class Monitor:
    """
    The log of a run; only the main process writes. It is never given anything that names a recording.

    Args:
        accelerator (`Accelerator`)
        settings ([`RunSettings`])
        total_updates (`int`): Of the whole run.
        first_update (`int`): Updates done before; lines that an interrupted run logged after them are removed.
        quiet (`bool`): Write to the file and to trackers only.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        settings: RunSettings,
        total_updates: int,
        first_update: int,
        quiet: bool = False,
    ):
        self._accelerator, self._settings, self._total = accelerator, settings, total_updates
        self._main = accelerator.is_main_process
        self._shows = self._main and not quiet
        self._file = Path(settings.output_dir or ".") / METRICS_FILE
        self._bar = tqdm(
            total=total_updates,
            initial=first_update,
            unit="update",
            disable=not (self._shows and sys.stderr.isatty()),
            dynamic_ncols=True,
        )
        self._began, self._first = time.perf_counter(), first_update
        if self._main and self._file.is_file():
            lines = self._file.read_text(encoding="utf-8").splitlines(keepends=True)
            write_text(self._file, "".join(line for line in lines if _update_of(line) <= first_update))
        if settings.trackers:
            shown = {k: v for k, v in settings.to_dict().items() if k not in _PRIVATE}
            shown = {k: v if isinstance(v, (int, float, str, bool)) else json.dumps(v) for k, v in shown.items()}
            # Beside TensorBoard's files, and not in the working directory.
            of_wandb = {"dir": settings.output_dir, "settings": _WANDB_SETTINGS, "name": settings.run_name}
            accelerator.init_trackers(settings.project, config=shown, init_kwargs={"wandb": of_wandb})

    def advance(self) -> None:
        """Move the progress bar by one update."""
        self._bar.update(1)

    def log(self, kind: str, update: int, values: dict[str, float]) -> None:
        """
        Log values.

        Args:
            kind (`str`): `train` or `valid`.
            update (`int`): Updates done.
            values (`dict`): By name.
        """
        if self._settings.trackers:
            self._accelerator.log({f"{kind}/{name}": value for name, value in values.items()}, step=update)
        if not self._main:
            return
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"update": update, "kind": kind, **values}) + "\n")
        shown = {short: f"{values[name]:.4g}" for name, short in _SHORT.items() if name in values}
        if kind == "train" and not self._bar.disable:
            self._bar.set_postfix(shown, refresh=False)
            return
        left = (self._total - update) * (time.perf_counter() - self._began) / max(1, update - self._first)
        figures = "  ".join(f"{name} {value}" for name, value in shown.items())
        time_left = f"  {tqdm.format_interval(left)} left" if kind == "train" else ""
        self.write(f"{kind}  {update}/{self._total}  {figures}{time_left}")

    def write(self, text: str) -> None:
        """Write a line to stderr, above the progress bar."""
        if self._shows:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """End the progress bar and the trackers."""
        self._bar.close()
        for tracker in self._accelerator.trackers:
            tracker.finish()
        self._accelerator.trackers = []


def _update_of(line: str) -> float:
    try:
        return json.loads(line)["update"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # A kill cut the line off.


def write_nonfinite_batch(
    output_dir: str | Path, update: int, process: int, micro_batches: list[dict[str, Any]]
) -> Path:
    """Write which recordings were in an update that was not finite: to a file of this user only, never to a tracker."""
    path = Path(output_dir) / "nonfinite" / f"update-{update:08d}-process-{process}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"update": update, "micro_batches": micro_batches}, private=True)
    return path


__all__ = ["Interruption", "Monitor", "NonFiniteError", "check_trackers", "write_nonfinite_batch"]
