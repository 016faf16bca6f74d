"""
The folder of a run: whose it is, whether it is the same run as before, and its checkpoints.

    OUTPUT/settings.yaml             the run's settings
    OUTPUT/checkpoints/run.json      the data and the batches that its checkpoints were trained on, and digests
    OUTPUT/checkpoints/step-00000100/   (pretraining) or checkpoint-100/ (fine-tuning)
        checksums.json               the SHA-256 of all its files, compared before the run is resumed
"""

import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from filelock import FileLock
from safetensors import SafetensorError

from ..model_folder import RUN_FILE, SETTINGS_FILE, STATE_FILE
from ..utils.files import check_output, sync, write_text
from ..utils.integrity import (
    CHECKSUMS_FILE,
    changed_files,
    file_checksum,
    read_checksums,
    read_with_digest,
    write_checksums,
    write_with_digest,
)
from ..utils.resumable_parts import try_lock
from .settings import FinetuneSettings, RunSettings, SettingsError, check_names

CHECKPOINTS = "checkpoints"
# Written last: fine-tuning is finished.
RESULT_FILE = "finetuning.json"
_LOCK_FILE, _UNFINISHED = ".lock", ".writing-"
# Settings that may change between a run and its continuation, as they do not change the result.
_FREE = {"output_dir", "dataloader_num_workers", "processes", "use_cpu", "report_to", "project", "run_name"}
_FREE |= {"resume_from_checkpoint", "logging_steps", "save_total_limit"}
_FREE_IN_PRETRAINING = {"data", "collapse_below", "valid_split"}
_FREE_IN_PRETRAINING |= {"save_strategy", "save_steps", "eval_strategy", "eval_steps"}
# Checked together with the number of processes: their product must stay.
_FREE_IN_PRETRAINING |= {"gradient_accumulation_steps"}
_FREE_IN_FINETUNING = {"test_split"}
# What is done after training, and may change until then.
_AFTER_TRAINING = {"thresholds", "calibration", "min_cases"}
# Files of a scheduler or a shell, which may lie in the folder before the run begins.
_LOGS = (".log", ".out", ".err", ".txt")
# Pretraining's states where DeepSpeed or FSDP writes them.
ENGINE_FOLDER = "engine"

logger = logging.getLogger(__name__)


class Checkpoints:
    """
    The checkpoints of a run: each is written aside with the SHA-256 of its files, then renamed, and checked when read.

    Args:
        folder (`Path`): Theirs.
        finetunes (`bool`): Whether the Trainer writes them, or pretraining.
        limit (`int`, *optional*): How many to keep, the best one included; all by default.
    """

    def __init__(self, folder: Path, finetunes: bool, limit: int | None):
        self.folder, self._finetunes, self._limit = folder, finetunes, limit

    def path(self, update: int) -> Path:
        """Return the path of a checkpoint."""
        return self.folder / (f"checkpoint-{update}" if self._finetunes else f"step-{update:08d}")

    def writing_path(self, update: int) -> Path:
        """Return the path that a checkpoint has until it is whole; its last part is the final name."""
        name = self.path(update).name
        return self.folder / f"{_UNFINISHED}{name}" / name

    def begin(self, update: int) -> Path:
        """Make the folder that a checkpoint is written to."""
        writing = self.writing_path(update)
        shutil.rmtree(writing.parent, ignore_errors=True)
        writing.mkdir(parents=True)
        return writing

    def finish(self, update: int) -> None:
        """Add the digests and rename the folder of [`begin`] to its final name: a kill leaves it whole or not there."""
        writing, target = self.writing_path(update), self.path(update)
        found = list(writing.rglob("*"))
        files = [path.relative_to(writing).as_posix() for path in found if path.is_file()]
        write_checksums(writing, [name for name in files if name != CHECKSUMS_FILE], is_checkpoint=True)
        for path in (*found, writing):
            sync(path)
        shutil.rmtree(target, ignore_errors=True)
        writing.rename(target)
        sync(self.folder)
        writing.parent.rmdir()

    def all(self) -> list[Path]:
        """Return the checkpoints, damaged ones included, oldest first."""
        found = [
            path
            for path in self.folder.glob("checkpoint-*" if self._finetunes else "step-*")
            if re.fullmatch(r"[a-z]+-\d+", path.name) and path.is_dir()
        ]
        return sorted(found, key=update_of)

    def latest(self) -> Path | None:
        """
        Return the last checkpoint without damage, None where there are no checkpoints. Newer, damaged ones are named in
        a warning.

        Raises:
            [`SettingsError`]: all are damaged; one misses a file without which the run cannot be resumed exactly.
        """
        problems: list[str] = []
        for checkpoint in reversed(self.all()):
            self._check_state_files(checkpoint)
            if (problem := self._problem(checkpoint)) is None:
                if problems and os.environ.get("RANK", "0") == "0":
                    logger.warning("%s. The run is resumed from %s", "; ".join(problems), checkpoint)
                return checkpoint
            problems.append(f"{checkpoint} is damaged ({problem})")
        if problems:
            raise SettingsError(
                f"{'; '.join(problems)}: no checkpoint is left to resume from. Restore the files from a copy, or "
                f"remove {self.folder} to start again"
            )
        return None

    def best(self) -> Path | None:
        """
        Return the pretraining checkpoint with the least validation loss. None without validation, or, with a warning,
        where a damaged file leaves it unknown.
        """
        best, least = None, float("inf")
        for checkpoint in self.all():
            if _changes(checkpoint, [STATE_FILE]):
                if os.environ.get("RANK", "0") == "0":
                    logger.warning(
                        "%s is damaged, so the best checkpoint is unknown, and none is removed: restore the file from "
                        "a copy, or remove that checkpoint",
                        checkpoint / STATE_FILE,
                    )
                return None
            state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
            loss = float("inf") if state["best_loss"] is None else float(state["best_loss"])
            if loss < least:
                best, least = checkpoint, loss
        return best

    def prune(self, best: Path | None) -> None:
        """
        Remove the oldest checkpoints beyond the limit, but not the best one, and what a kill left half written. No
        checkpoint is removed where a damaged one may be the best.
        """
        found = self.all()
        is_unknown = not self._finetunes and any(_changes(checkpoint, [STATE_FILE]) for checkpoint in found)
        # As transformers counts: the best one is among those kept, and the last is always kept.
        others = [path for path in found if path != best]
        room = len(others) if self._limit is None else max(0, self._limit - (best is not None))
        kept = set(found) if is_unknown else {*others[max(0, len(others) - room) :], best, *found[-1:]}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.is_dir() and path not in kept and (path.name.startswith(_UNFINISHED) or path in found):
                shutil.rmtree(path, ignore_errors=True)

    def check_weights(self, checkpoint: Path) -> None:
        """Check the weights of a checkpoint before they are loaded. [`SettingsError`] where they have changed."""
        if problem := _changes(checkpoint, _weights_of(checkpoint)):
            raise SettingsError(
                f"{checkpoint}, the best checkpoint of the run, is damaged ({problem}). Restore it from a copy, or run "
                "the same command again: it is resumed from a checkpoint before it, if there is one"
            )

    def _problem(self, checkpoint: Path) -> str | None:
        """Return what is wrong with a checkpoint, or with the best one that the run would end with; None if nothing."""
        problem = _changes(checkpoint)
        if problem is not None or not self._finetunes:
            return problem
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        best = self.folder / Path(state.get("best_model_checkpoint") or checkpoint).name
        if best == checkpoint or (problem := _changes(best, _weights_of(best))) is None:
            return None
        return f"its best checkpoint {best.name}: {problem}"

    def _check_state_files(self, checkpoint: Path) -> None:
        """Refuse a checkpoint without a file that exact resuming needs: somebody has removed it."""
        missing = []
        if self._finetunes or not (checkpoint / ENGINE_FOLDER).is_dir():
            states = ["optimizer.pt", *(["scheduler.pt"] if self._finetunes else [])]
            missing = [name for name in states if not (checkpoint / name).is_file()]
        if self._finetunes:
            # rng_state.pth of one process, rng_state_0.pth, ... of several.
            states = [name for name in _named_files(checkpoint) if name.startswith("rng_state")] or ["rng_state.pth"]
            missing += [name for name in states if not (checkpoint / name).is_file()]
        if missing:
            raise SettingsError(
                f"{checkpoint} has no {', '.join(missing)}, so the run cannot be resumed exactly: remove it to "
                "continue from the checkpoint before it, or begin from its weights with init_from and another "
                "output_dir"
            )


def _named_files(checkpoint: Path) -> list[str]:
    """Return the files that a checkpoint has digests of, none where these cannot be read."""
    try:
        return list(read_checksums(checkpoint)["files"])
    except (OSError, ValueError):
        return []


def _weights_of(checkpoint: Path) -> list[str]:
    return [path.name for path in checkpoint.glob("*.safetensors")] or ["model.safetensors"]


def _changes(checkpoint: Path, names: list[str] | None = None) -> str | None:
    """Return which files of a checkpoint, or of these, have changed since it was written, None if none has."""
    try:
        return "; ".join(changed_files(checkpoint, names)) or None
    except FileNotFoundError:
        return f"it has no {CHECKSUMS_FILE}"
    except ValueError as error:
        return f"{CHECKSUMS_FILE}: {error}"
    except OSError as error:
        return f"{CHECKSUMS_FILE} cannot be read: {error.strerror}"


class RunFolder:
    """
    The folder of one run.

    Args:
        settings ([`RunSettings`]): `output_dir` is the folder.

    Raises:
        [`SettingsError`]: there is no `output_dir`; the folder holds a run with other settings, or any where
            `resume_from_checkpoint` is false.
        [`OutputExistsError`]: the folder is an input, or holds other files than a run's and logs.
    """

    def __init__(self, settings: RunSettings):
        if settings.output_dir is None:
            raise SettingsError("output_dir is required: the folder for checkpoints, logs and the model")
        self.path, self._settings = Path(settings.output_dir), settings
        self._finetunes = isinstance(settings, FinetuneSettings)
        self.checkpoints = Checkpoints(self.path / CHECKPOINTS, self._finetunes, settings.save_total_limit)
        self._lock: FileLock | None = None
        self._run: dict[str, Any] = {}
        data = getattr(settings, "data", None)
        inputs = [
            settings.init_from,
            settings.resume_folder,
            getattr(settings, "targets", None),
            settings.root,
            *([data] if isinstance(data, str) else data or ()),
        ]
        check_output(self.path, inputs, is_own=self._is_own)
        self.is_finished = self._finetunes and (self.path / RESULT_FILE).is_file()
        self._found = self.checkpoints.all()
        # The checkpoint to resume from, None for a new run.
        self.latest: Path | None = None
        if not self._found and not self.is_finished:
            return
        if not settings.resume_from_checkpoint:
            raise SettingsError(f"{self.path} holds a run and resume_from_checkpoint is false: give another output_dir")
        self._check_same_settings()
        if not self.is_finished:
            self.latest = self.checkpoints.latest()

    @contextmanager
    def claimed(self, processes: Accelerator | PartialState) -> Iterator[None]:
        """
        Keep the folder to this run while the context lasts: two runs would remove each other's checkpoints.

        Args:
            processes (`Accelerator` or `PartialState`): All call; only the main one takes the lock.

        Raises:
            [`SettingsError`]: another run has the folder, or has written checkpoints since this one read it.
            `OSError`: the folder cannot be made.
        """
        free, unchanged = True, True
        if processes.is_main_process:
            free = self.claim()
            unchanged = not free or self.checkpoints.all() == self._found
        answers = gather_object([(free, unchanged)])
        try:
            if not all(answer[0] for answer in answers):
                raise SettingsError(f"{self.path} is in use: another run is writing there. Wait for it, or end it")
            if not all(answer[1] for answer in answers):
                raise SettingsError(f"another run has written checkpoints to {self.path} meanwhile: start again")
            if processes.is_main_process:
                settings = self.path / SETTINGS_FILE
                write_text(settings, yaml.safe_dump(self._settings.to_dict(), sort_keys=False))
                self._run["settings"] = file_checksum(settings)
                write_with_digest(self.checkpoints.folder / RUN_FILE, self._run)
            yield
        finally:
            self.release()

    def claim(self) -> bool:
        """Take the folder for this process, until [`release`] or its end. False where another process has it."""
        self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        self._lock = try_lock(self.checkpoints.folder / _LOCK_FILE)
        return self._lock is not None

    def release(self) -> None:
        """Let others have the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # Same run ---------------------------------------------------------------------------------------------------------

    def _is_own(self, folder: Path) -> bool:
        """Return whether a folder holds a run of the same kind, or nothing but logs."""
        if all(path.name.startswith(".") or path.suffix in _LOGS for path in folder.iterdir()):
            return True
        try:
            before = yaml.safe_load((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return (folder / CHECKPOINTS).is_dir() or (self._finetunes and (folder / RESULT_FILE).is_file())
        except (ValueError, yaml.YAMLError):
            return (folder / CHECKPOINTS).is_dir()  # a damaged run, which is reported as such
        return isinstance(before, dict) and ("problem_type" in before) == self._finetunes

    def _check_same_settings(self) -> None:
        file = self.path / SETTINGS_FILE
        try:
            before: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise SettingsError(
                f"{self.path} holds checkpoints but no {SETTINGS_FILE}, so their settings are unknown: give another "
                "output_dir, and init_from=CHECKPOINT to begin from their weights"
            ) from None
        except (ValueError, yaml.YAMLError) as error:
            raise SettingsError(f"{file} is damaged: {error}") from None
        settings, now = self._settings, self._settings.to_dict()
        check_names(
            before,
            type(settings),
            f"{self.path} holds a run that cannot be resumed (init_from begins from its weights). {file} has ",
        )
        free = _FREE | (_FREE_IN_FINETUNING if self._finetunes else _FREE_IN_PRETRAINING)
        if not self.is_finished:
            free |= _AFTER_TRAINING
        # With a constant learning rate a pretraining may be made longer; other schedules depend on its length.
        if not self._finetunes and settings.lr_scheduler_type.startswith("constant"):
            free |= set() if 0 < settings.warmup_steps < 1 else {"num_train_epochs", "max_steps"}
        self._refuse(changed_settings(before, now, free))
        if self.is_finished and "***" in str(now.get("data")):
            logger.warning(
                "data=%s has a user, password or query that %s does not record. If they name other data than before, "
                "give another output_dir",
                now["data"],
                SETTINGS_FILE,
            )

    def check_same_data(self, digest: str, items: int, processes: int) -> None:
        """
        Check that the data and the updates are those that the checkpoints were trained on; [`claimed`] records them.

        If the splits had been drawn again, the model would have seen patients that are supposed to be new.

        Args:
            digest (`str`): Of the recordings in their order, and their targets; empty where that is unknown.
            items (`int`): Segments or pairs to train on.
            processes (`int`)

        Raises:
            [`SettingsError`]: other data, the same in another order, or updates of another size.
        """
        now = {"data": digest, "items": items, "micro_batches": processes * self._settings.gradient_accumulation_steps}
        file = self.checkpoints.folder / RUN_FILE
        if self.latest is None:
            self._run = now
            return
        try:
            before = read_with_digest(file)
            changed = []
            if before["micro_batches"] != now["micro_batches"]:
                changed.append(
                    f"processes x gradient_accumulation_steps was {before['micro_batches']}, now {now['micro_batches']}"
                )
            if before["items"] != items:
                kind = "segments" if self._finetunes else "pairs"
                changed.append(f"the training data had {before['items']} {kind}, now {items}")
            elif before["data"] and before["data"] != digest:
                changed.append("the data had other recordings, splits or targets, or these in another order")
        except (OSError, ValueError, KeyError) as error:
            raise SettingsError(
                f"{file} cannot be read, so the data of the run's checkpoints is unknown: {error}. Give another "
                "output_dir, and init_from=CHECKPOINT to begin from their weights"
            ) from None
        self._refuse(changed)
        self._run = now

    def _refuse(self, changed: list[str]) -> None:
        if changed:
            raise SettingsError(
                f"{self.path} holds another run: {'; '.join(changed)}. Resume it as it was; or begin a new run from "
                "its weights with init_from=CHECKPOINT and another output_dir"
            )


def update_of(checkpoint: Path) -> int:
    """Return the number of updates before a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


@contextmanager
def reading_checkpoint(checkpoint: Path | None) -> Iterator[None]:
    """Turn errors in reading a checkpoint's files into a [`SettingsError`] with a remedy."""
    try:
        yield
    except (SafetensorError, ValueError, OSError, EOFError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
        if checkpoint is None:
            raise
        raise SettingsError(
            f"{checkpoint} cannot be read: {str(error) or type(error).__name__}. If its files are damaged, remove it "
            "to continue from the checkpoint before it"
        ) from None


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn what safetensors and torch raise where a file cannot be written into an `OSError`."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        raise OSError(f"{folder} cannot be written (is the disk full?): {error}") from error


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str]) -> list[str]:
    """List the settings that differ, key by key in mappings, with both values. Those of `free` may differ."""
    return [text for name in now if name not in free for text in _differences(name, before.get(name), now[name])]


def _differences(name: str, before: Any, now: Any) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        return [text for key in keys for text in _differences(f"{name}.{key}", before.get(key), now.get(key))]
    return [] if before == now else [f"{name} was {before!r}, now {now!r}"]


__all__ = [
    "RESULT_FILE",
    "SETTINGS_FILE",
    "Checkpoints",
    "RunFolder",
    "changed_settings",
    "reading_checkpoint",
    "update_of",
    "writing_to",
]
