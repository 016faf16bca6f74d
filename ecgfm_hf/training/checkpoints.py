"""
Checkpoints of a run: written whole or not at all, found again, pruned.

    OUTPUT/checkpoints/step-00000100/   a model folder, which AutoModel loads, with
        trainer_state.json              where in the run it is, and the run's settings
        optimizer.pt                    or engine/, where DeepSpeed or FSDP hold the state
    OUTPUT/checkpoints/best.json        which one had the least validation loss
"""

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType

from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..saving import save_model_folder
from .settings import PretrainSettings, SettingsError

STATE_FILE, OPTIMIZER_FILE, ENGINE_FOLDER, BEST_FILE = "trainer_state.json", "optimizer.pt", "engine", "best.json"
_UNFINISHED = ".writing-"
# What may change between a run and its continuation without another outcome.
_FREE = {"data", "output_dir", "num_workers", "processes", "device", "trackers", "project", "resume", "collapse_below"}
_FREE |= {"log_every_updates", "keep_last", "save_every_updates", "save_every_epochs"}
_FREE |= {"validate_every_updates", "validate_every_epochs", "valid_split"}
# Checked together with the number of processes: their product must stay.
_FREE |= {"accumulation"}


@dataclass
class TrainerState:
    """
    Where a run is. Every draw is seeded by its place in the run, so there is no random state.

    Args:
        update (`int`): Updates done.
        epoch, update_in_epoch (`int`): Epochs done, and updates done in the one after.
        micro_batches (`int`): An update's, over processes and accumulation.
        num_pairs (`int`): Of the training data.
        best_loss (`float`, *optional*): Least validation loss so far.
        settings (`dict`): As [`PretrainSettings.to_dict`] gives them.
    """

    update: int = 0
    epoch: int = 0
    update_in_epoch: int = 0
    micro_batches: int = 1
    num_pairs: int = 0
    best_loss: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints under `output_dir`."""

    def __init__(self, output_dir: str | Path, keep_last: int):
        self.folder = Path(output_dir) / "checkpoints"
        self._keep_last = keep_last

    def all(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        found = [
            p for p in self.folder.glob("step-*") if re.fullmatch(r"step-\d+", p.name) and (p / STATE_FILE).is_file()
        ]
        return sorted(found, key=lambda path: int(path.name[5:]))

    def latest(self) -> Path | None:
        """The checkpoint to continue from, if there is one."""
        return (self.all() or [None])[-1]

    def best(self) -> Path | None:
        """The checkpoint of the least validation loss, if there was a validation."""
        file = self.folder / BEST_FILE
        path = self.folder / json.loads(file.read_text())["checkpoint"] if file.is_file() else None
        return path if path is not None and path.is_dir() else None

    def save(
        self,
        state: TrainerState,
        accelerator: Accelerator,
        model: torch.nn.Module,
        optimizer: Any,
        feature_extractor: ECGFMFeatureExtractor,
    ) -> Path:
        """
        Writes a checkpoint beside its place, then renames it: a kill leaves it whole or not there. All processes call.

        Raises:
            `OSError`: it cannot be written.
        """
        target = self.folder / f"step-{state.update:08d}"
        writing = self.folder / f"{_UNFINISHED}{target.name}"
        if accelerator.is_main_process:
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
        accelerator.wait_for_everyone()
        weights = accelerator.get_state_dict(model)
        if _engine_holds_state(accelerator):
            accelerator.save_state(str(writing / ENGINE_FOLDER))
        if accelerator.is_main_process:
            # What `model.config` says of the folder that it came from would lead nowhere elsewhere.
            save_model_folder(accelerator.unwrap_model(model), feature_extractor, writing, state_dict=weights)
            if not _engine_holds_state(accelerator):
                scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
                torch.save({"optimizer": optimizer.state_dict(), "scaler": scaler}, writing / OPTIMIZER_FILE)
            (writing / STATE_FILE).write_text(json.dumps(asdict(state), indent=1) + "\n", encoding="utf-8")
            for path in writing.rglob("*"):
                _flush(path)
            shutil.rmtree(target, ignore_errors=True)
            writing.rename(target)
            _flush(self.folder)
        accelerator.wait_for_everyone()
        return target

    def mark_best(self, checkpoint: Path, loss: float) -> None:
        """Remembers a checkpoint as the best, which keeps it."""
        writing = self.folder / f"{_UNFINISHED}{BEST_FILE}"
        writing.write_text(json.dumps({"checkpoint": checkpoint.name, "valid_loss": loss}) + "\n", encoding="utf-8")
        writing.replace(self.folder / BEST_FILE)

    def prune(self) -> None:
        """Removes all but the last ones and the best, and what a kill left half written."""
        kept = {*self.all()[-self._keep_last :], self.best()}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.is_dir() and path not in kept and (path.name.startswith(_UNFINISHED) or path in self.all()):
                shutil.rmtree(path, ignore_errors=True)


def read_state(checkpoint: Path) -> TrainerState:
    """`trainer_state.json` of a checkpoint. [`SettingsError`] where it is damaged."""
    try:
        return TrainerState(**json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{checkpoint / STATE_FILE} is damaged: {error}") from None


def load_optimizer(checkpoint: Path, accelerator: Accelerator, optimizer: Any) -> None:
    """The optimiser's state (and the gradient scaler's), after `accelerator.prepare`."""
    if _engine_holds_state(accelerator):
        accelerator.load_state(str(checkpoint / ENGINE_FOLDER))
        return
    found = torch.load(checkpoint / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(found["optimizer"])
    if accelerator.scaler is not None and found["scaler"] is not None:
        accelerator.scaler.load_state_dict(found["scaler"])


def check_same_run(state: TrainerState, settings: PretrainSettings, micro_batches: int, num_pairs: int) -> None:
    """
    Whether a run with these settings continues the checkpoint's.

    Raises:
        [`SettingsError`]: settings that would change the outcome differ; another effective batch; other data.
    """
    now = settings.to_dict()
    # With a fixed learning rate a run may be made longer; others depend on its length.
    free = _FREE | ({"epochs", "max_updates"} if settings.schedule == "fixed" and settings.warmup >= 1 else set())
    free |= {"epochs", "max_updates"} if settings.schedule == "fixed" and settings.warmup == 0 else set()
    changed = [
        f"{k} was {state.settings.get(k)!r}, now {now[k]!r}"
        for k in now
        if k not in free and state.settings.get(k) != now[k]
    ]
    if micro_batches != state.micro_batches:
        changed.append(f"processes x accumulation was {state.micro_batches}, now {micro_batches}")
    if num_pairs != state.num_pairs:
        changed.append(f"the training data had {state.num_pairs} pairs, now {num_pairs}")
    if changed:
        raise SettingsError(
            f"{settings.output_dir} holds another run: {'; '.join(changed)}. Continue it as it was; or begin anew from "
            "its weights with init_from=CHECKPOINT and another output_dir"
        )


def _engine_holds_state(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type in (
        DistributedType.DEEPSPEED,
        DistributedType.FSDP,
        DistributedType.MEGATRON_LM,
    )


def _flush(path: Path) -> None:
    """Has the system write a file, or a folder's list of names, to disk: a rename must not overtake the contents."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["Checkpoints", "TrainerState", "check_same_run", "load_optimizer", "read_state"]
