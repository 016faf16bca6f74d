"""What a run tells: a progress bar or lines, a local log, trackers, and a warning when it collapses."""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from .settings import RunSettings, SettingsError

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
_TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb"}
# By itself Weights & Biases sends the command line, what is printed, the host's name and the code's repository: paths,
# all of them.
_WANDB_SETTINGS = {
    "host": "",  # The machine's name stands in for None.
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
# Settings that may name institutions or people.
_PRIVATE = ("data", "output_dir", "init_from", "prepare", "targets")


def check_trackers(names: list[str]) -> None:
    """[`SettingsError`] for a tracker that accelerate does not know, or whose package is absent."""
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
    Tells how a run goes; only the main process speaks.

    Nothing that names a recording is ever given to it.

    Args:
        accelerator, settings
        total_updates (`int`): Of the whole run.
        first_update (`int`): Updates done before; what an interrupted run logged after them is forgotten.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        settings: RunSettings,
        total_updates: int,
        first_update: int,
    ):
        self._accelerator, self._settings, self._total = accelerator, settings, total_updates
        self._main = accelerator.is_main_process
        self._file = Path(settings.output_dir) / METRICS_FILE
        self._collapsed = False
        self._bar = tqdm(
            total=total_updates,
            initial=first_update,
            unit="update",
            disable=not (self._main and sys.stderr.isatty()),
            dynamic_ncols=True,
        )
        self._began, self._first = time.perf_counter(), first_update
        if self._main and self._file.is_file():
            lines = self._file.read_text(encoding="utf-8").splitlines(keepends=True)
            self._file.write_text("".join(x for x in lines if _update_of(x) <= first_update), encoding="utf-8")
        if settings.trackers:
            shown = {k: v for k, v in settings.to_dict().items() if k not in _PRIVATE}
            shown = {k: v if isinstance(v, (int, float, str, bool)) else json.dumps(v) for k, v in shown.items()}
            # Beside TensorBoard's files, and not in whatever folder the command was given.
            of_wandb = {"dir": settings.output_dir, "settings": _WANDB_SETTINGS, "name": settings.run_name}
            accelerator.init_trackers(settings.project, config=shown, init_kwargs={"wandb": of_wandb})

    def advance(self) -> None:
        """An update is done."""
        self._bar.update(1)

    def log(self, kind: str, update: int, values: dict[str, float]) -> None:
        """
        Tells figures.

        Args:
            kind (`str`): `train` or `valid`.
            update (`int`): Updates done.
            values (`dict`): Figures by name.
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
        self.say(f"{kind}  {update}/{self._total}  {figures}{time_left}")

    def watch_collapse(self, update: int, values: dict[str, float]) -> None:
        """Warns once when the codebook has collapsed, and again only if it recovers in between."""
        collapsed = values["codebook_usage"] < self._settings.collapse_below
        if collapsed and not self._collapsed:
            self.say(
                f"WARNING: update {update}: the codebook has collapsed: code perplexity "
                f"{values['code_perplexity']:.1f}, usage {values['codebook_usage']:.3f}, below "
                f"collapse_below={self._settings.collapse_below:g}. "
                "The contrastive task is then easy and teaches little: raise model.diversity_loss_weight, lower "
                "learning_rate, or let the Gumbel temperature fall more slowly."
            )
        self._collapsed = collapsed

    def say(self, text: str) -> None:
        """A line, above the progress bar."""
        if self._main:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Ends bar and trackers."""
        self._bar.close()
        for tracker in self._accelerator.trackers:
            tracker.finish()
        self._accelerator.trackers = []


def _update_of(line: str) -> float:
    try:
        return json.loads(line)["update"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # The end of a file that a kill cut off.


def write_bad_batch(output_dir: str, update: int, process: int, facts: list[dict[str, Any]]) -> Path:
    """Which recordings were in an update whose loss was NaN or infinite: a local file, never a tracker."""
    path = Path(output_dir) / "nonfinite" / f"update-{update:08d}-process-{process}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"update": update, "micro_batches": facts}, indent=1) + "\n", encoding="utf-8")
    return path


__all__ = ["Monitor", "check_trackers", "write_bad_batch"]
