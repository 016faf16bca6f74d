"""The folder of a fine-tuning run: its checkpoints, and whether it is the same run."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from .settings import FinetuneSettings, SettingsError, check_names
from .training_data import TrainingData

CHECKPOINTS = "checkpoints"
SETTINGS_FILE = "settings.yaml"
# The Trainer writes it last: a checkpoint that a kill cut off lacks it, or has it cut off.
_STATE_FILE = "trainer_state.json"
# What may change between a run and its continuation without another outcome.
_FREE = {"output_dir", "dataloader_num_workers", "processes", "use_cpu", "report_to", "project", "run_name"}
_FREE |= {"resume_from_checkpoint", "logging_steps", "save_total_limit", "test_split"}
# What is done after training, and may change until then.
_AFTER = {"thresholds", "calibration", "min_cases"}
# A digest of the data, among the checkpoints that were trained on it.
_DATA_FILE = "data.sha256"


def update_of(checkpoint: Path) -> int:
    """The update that a checkpoint was written after."""
    return int(checkpoint.name.rpartition("-")[2])


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """The last checkpoint that was written to its end, None without one."""
    found = [p for p in (Path(output_dir) / CHECKPOINTS).glob("checkpoint-*") if re.fullmatch(r"\D+-\d+", p.name)]
    return next((path for path in sorted(found, key=update_of, reverse=True) if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        return "global_step" in json.loads((checkpoint / _STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def check_same_run(output_dir: Path, settings: FinetuneSettings, finished: bool = False) -> None:
    """
    Whether settings continue the run in a folder, or are those of one that is finished.

    Raises:
        [`SettingsError`]: settings that would change the outcome differ.
    """
    file = output_dir / SETTINGS_FILE
    if not file.is_file():
        return
    before: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    now = settings.to_dict()
    check_names(before, FinetuneSettings, f"{output_dir} holds a run that cannot be resumed: ")
    free = _FREE if finished else _FREE | _AFTER
    changed = [f"{k} was {before.get(k)!r}, now {now[k]!r}" for k in now if k not in free and before.get(k) != now[k]]
    if changed:
        raise SettingsError(
            f"{output_dir} holds another run: {'; '.join(changed)}. Continue it as it was, or give another output_dir"
        )


def note_data(output_dir: Path, data: TrainingData) -> None:
    """Notes in a run's folder which data it is trained on."""
    folder = output_dir / CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _DATA_FILE).write_text(data.digest + "\n", encoding="ascii")


def check_same_data(output_dir: Path, data: TrainingData) -> None:
    """
    Whether a run's data are those that its checkpoints were trained on: were the splits drawn anew, the model would
    have seen patients that are said to be new.

    Raises:
        [`SettingsError`]: other recordings, splits or targets.
    """
    file = output_dir / CHECKPOINTS / _DATA_FILE
    if file.is_file() and file.read_text(encoding="ascii").strip() != data.digest:
        raise SettingsError(
            f"{output_dir} holds a run on other data: the recordings of the splits, or their targets, have changed "
            "since. Give another output_dir"
        )


__all__ = [
    "CHECKPOINTS",
    "SETTINGS_FILE",
    "check_same_data",
    "check_same_run",
    "last_checkpoint",
    "note_data",
    "update_of",
]
