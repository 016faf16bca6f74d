"""
Checkpoints of a run: written whole or not at all, found again, pruned.

    OUTPUT/checkpoints/step-00000100/   a model folder, which AutoModel loads, with
        trainer_state.json              where in the run it is, and the run's settings
        optimizer.pt                    or engine/, where DeepSpeed or FSDP hold the state
    OUTPUT/checkpoints/best.json        which one had the least validation loss
"""

import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from accelerate import Accelerator, DistributedType
from safetensors import SafetensorError

from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..model_folder import save_model_folder
from .settings import PretrainSettings, SettingsError, check_names

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STATE_FILE, OPTIMIZER_FILE, ENGINE_FOLDER, BEST_FILE = "trainer_state.json", "optimizer.pt", "engine", "best.json"
_UNFINISHED, _LOCK_FILE = ".writing-", ".lock"
# What may change between a run and its continuation without another outcome.
_FREE = {"data", "output_dir", "dataloader_num_workers", "processes", "use_cpu", "report_to", "project", "run_name"}
_FREE |= {"resume_from_checkpoint", "collapse_below", "logging_steps", "save_total_limit", "valid_split"}
_FREE |= {"save_strategy", "save_steps", "eval_strategy", "eval_steps"}
# Checked together with the number of processes: their product must stay.
_FREE |= {"gradient_accumulation_steps"}


@dataclass
class TrainerState:
    """
    Where a run is. Every draw is seeded by its place in the run, so there is no random state.

    Args:
        update (`int`): Updates done.
        epoch, update_in_epoch (`int`): Epochs done, and updates done in the one after.
        micro_batches (`int`): An update's, over processes and accumulation.
        num_pairs (`int`): Of the training data.
        data (`str`): [`PairDataset.fingerprint`] of the training data.
        best_loss (`float`, *optional*): Least validation loss so far.
        settings (`dict`): As [`PretrainSettings.to_dict`] gives them.
    """

    update: int = 0
    epoch: int = 0
    update_in_epoch: int = 0
    micro_batches: int = 1
    num_pairs: int = 0
    data: str = ""
    best_loss: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints under `output_dir`."""

    def __init__(self, output_dir: str | Path, save_total_limit: int | None):
        self.folder = Path(output_dir) / "checkpoints"
        self._save_total_limit = save_total_limit
        self._lock: IO | None = None

    def claim(self) -> bool:
        """
        Takes the folder for this process, until [`release`] or its end. False where another process has it: two runs
        would remove each other's half-written checkpoints.

        Raises:
            `OSError`: the folder cannot be made.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / _LOCK_FILE, "ab")  # noqa: SIM115 - closed by release
        if fcntl is None:
            return True
        try:
            # Not `flock`, whose locks data loader workers inherit: they outlive a killed run by seconds.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self.release()
            return False
        except OSError:  # a network file system without locks
            pass
        return True

    def release(self) -> None:
        """Lets others have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

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
        try:
            path = self.folder / json.loads((self.folder / BEST_FILE).read_text(encoding="utf-8"))["checkpoint"]
        except (FileNotFoundError, ValueError):  # no validation yet, or a file that is damaged
            return None
        return path if path.is_dir() else None

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
            with full_disk_told(writing):
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
        _flush(writing)
        writing.replace(self.folder / BEST_FILE)

    def prune(self) -> None:
        """Removes what `save_total_limit` leaves no room for, and what a kill left half written."""
        checkpoints, best = self.all(), self.best()
        # As transformers counts: the best one is among the kept, and so is the last, however few may be.
        others = [path for path in checkpoints if path != best]
        limit = len(others) if self._save_total_limit is None else self._save_total_limit - (best is not None)
        kept = {*others[max(0, len(others) - max(0, limit)) :], best, *checkpoints[-1:]}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.is_dir() and path not in kept and (path.name.startswith(_UNFINISHED) or path in self.all()):
                shutil.rmtree(path, ignore_errors=True)


def read_state(checkpoint: Path) -> TrainerState:
    """`trainer_state.json` of a checkpoint. [`SettingsError`] where it is damaged."""
    with damage_told(checkpoint):
        try:
            return TrainerState(**json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise SettingsError(f"{STATE_FILE}: {error}") from None


def load_optimizer(checkpoint: Path, accelerator: Accelerator, optimizer: Any) -> None:
    """The optimiser's state (and the gradient scaler's), after `accelerator.prepare`."""
    if _engine_holds_state(accelerator):
        accelerator.load_state(str(checkpoint / ENGINE_FOLDER))
        return
    with damage_told(checkpoint):
        found = torch.load(checkpoint / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(found["optimizer"])
    if accelerator.scaler is not None and found["scaler"] is not None:
        accelerator.scaler.load_state_dict(found["scaler"])


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """An `OSError` in place of what safetensors and torch raise where a file cannot be written."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        raise OSError(f"{folder} cannot be written (is the disk full?): {error}") from error


@contextmanager
def damage_told(checkpoint: Path | None) -> Iterator[None]:
    """What goes wrong in reading a checkpoint's files, as a [`SettingsError`] that says what to do about it."""
    try:
        yield
    except (SafetensorError, ValueError, OSError, EOFError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
        if checkpoint is None:
            raise
        raise SettingsError(
            f"{checkpoint} cannot be read: {str(error) or type(error).__name__}. If its files are damaged, remove it "
            "to continue from the checkpoint before it"
        ) from None


def check_same_settings(state: TrainerState, settings: PretrainSettings) -> None:
    """
    Whether a run with these settings continues the checkpoint's.

    Raises:
        [`SettingsError`]: settings that would change the outcome differ.
    """
    now = settings.to_dict()
    check_names(state.settings, PretrainSettings, f"{settings.output_dir} holds a run that cannot be resumed: ")
    # With a fixed learning rate a run may be made longer; others, and a warm-up in shares, depend on its length.
    lengthens = settings.lr_scheduler_type.startswith("constant") and not 0 < settings.warmup_steps < 1
    free = _FREE | {"num_train_epochs", "max_steps"} if lengthens else _FREE
    changed = [text for k in now if k not in free for text in _differences(k, state.settings.get(k), now[k])]
    _refuse(settings.to_dict(), changed)


def check_same_data(state: TrainerState, begun: TrainerState) -> None:
    """
    Whether a run that would begin as `begun` sees the checkpoint's data in updates of the same size.

    Raises:
        [`SettingsError`]: another effective batch; other data, or the same in another order.
    """
    changed = []
    if begun.micro_batches != state.micro_batches:
        changed.append(f"processes x gradient_accumulation_steps was {state.micro_batches}, now {begun.micro_batches}")
    if begun.num_pairs != state.num_pairs:
        changed.append(f"the training data had {state.num_pairs} pairs, now {begun.num_pairs}")
    elif state.data and begun.data != state.data:
        changed.append("the training data had other recordings, or these in another order")
    _refuse(begun.settings, changed)


def _refuse(settings: dict[str, Any], changed: list[str]) -> None:
    if changed:
        raise SettingsError(
            f"{settings['output_dir']} holds another run: {'; '.join(changed)}. Continue it as it was; or begin anew "
            "from its weights with init_from=CHECKPOINT and another output_dir"
        )


def _differences(name: str, before: Any, now: Any) -> list[str]:
    """What is not the same, key by key in mappings."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        return [text for key in keys for text in _differences(f"{name}.{key}", before.get(key), now.get(key))]
    return [] if before == now else [f"{name} was {before!r}, now {now!r}"]


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


__all__ = [
    "Checkpoints",
    "TrainerState",
    "check_same_data",
    "check_same_settings",
    "damage_told",
    "full_disk_told",
    "load_optimizer",
    "read_state",
]
