"""The pretraining loop."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType

from ..model_folder import save_model_folder
from ..provenance import FACTS_FILE, add_step, hardware, told_settings, versions
from ..utils.errors import ECGFMError
from .checkpoints import (
    Checkpoints,
    TrainerState,
    check_same_data,
    check_same_settings,
    damage_told,
    full_disk_told,
    load_optimizer,
    read_state,
)
from .data_facts import data_facts
from .interruption import Interruption
from .monitoring import Monitor, write_bad_batch
from .objective import METRICS, batch_metrics
from .optimizers import FairseqAdam, build_optimizer
from .pair_batches import open_pairs, train_batches, valid_batches
from .recipes import write_recipe
from .settings import PUBLISHED_EFFECTIVE_BATCH, PretrainSettings, SettingsError, steps_of
from .start import build_accelerator, build_model
from .update import NotFiniteError, Updater

SETTINGS_FILE = "settings.yaml"
# Settings that model cards tell: nothing that names a place, a person or an institution.
_TOLD = ("augmentations", "model", "cmsc_positives", "cmsc_across_processes", "per_device_train_batch_size")
_TOLD += ("gradient_accumulation_steps", "num_train_epochs", "max_steps", "optim", "learning_rate", "adam_beta1")
_TOLD += ("adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "lr_scheduler_type", "warmup_steps")
_TOLD += ("final_learning_rate", "seed", "bf16", "fp16")


class NonFiniteLossError(ECGFMError, RuntimeError):
    """The loss or gradient became NaN or infinite. The message names the update and the last good checkpoint."""


@dataclass
class PretrainResult:
    """
    How a run ended.

    Args:
        update (`int`): Updates done.
        finished (`bool`): Whether all of them are; False after SIGTERM or Ctrl-C.
        signal (`int`): The signal that ended it, 0 without.
        checkpoint (`Path`, *optional*): The last one written.
        best (`Path`, *optional*): That of the least validation loss.
        metrics (`dict[str, float]`): Of the last update of this call.
    """

    update: int
    finished: bool
    signal: int
    checkpoint: Path | None
    best: Path | None
    metrics: dict[str, float]


class Pretrainer:
    """
    Pretrains with W2V + CMSC + RLM, one process or many.

    Every random draw (initialisation, order, masks, negatives, Gumbel noise, dropout, augmentations) is seeded by the
    run's seed and its place in the run. A run that was killed therefore continues from its last checkpoint to weights
    that are bit-equal to an uninterrupted run's, on the same hardware and versions. And draws are numbered over
    processes and accumulation together: 2 processes x 2 accumulation steps draw what one process with 4 steps draws.

    The gradient of an update is sum_i(n_i dL_i) / sum_i(n_i) over all its micro-batches, with n_i the masked frames of
    micro-batch i and L_i its loss a masked frame, as in the original; diversity and CMSC are per micro-batch.

    Args:
        settings ([`PretrainSettings`]): With `data` and `output_dir`.

    Raises:
        [`SettingsError`]: impossible settings; `output_dir` holds another run.
    """

    def __init__(self, settings: PretrainSettings):
        if settings.output_dir is None:
            raise SettingsError("output_dir is required: the folder that checkpoints, logs and the model go to")
        self.settings = settings
        self.accelerator: Accelerator = build_accelerator(settings)
        self.checkpoints = Checkpoints(settings.output_dir, settings.save_total_limit)
        latest = self.checkpoints.latest()
        if latest is not None and not settings.resume_from_checkpoint:
            raise SettingsError(
                f"{settings.output_dir} holds a run and resume_from_checkpoint is false: give another output_dir"
            )
        if latest is not None:
            self.state = read_state(latest)
            check_same_settings(self.state, settings)
        with damage_told(latest):
            model, self.feature_extractor = build_model(settings, latest)
        # One process makes the copy of the data that all read. An error has to wait, as the others do.
        refused = None
        with self.accelerator.main_process_first():
            try:
                self.train_data, self.valid_data = open_pairs(settings, self.feature_extractor)
            except SettingsError as error:
                refused = error
        if refused is not None:
            raise refused
        processes = self.accelerator.num_processes
        self.micro_batches = processes * settings.gradient_accumulation_steps
        self.updates_per_epoch = len(self.train_data) // (settings.pairs * self.micro_batches)
        if self.updates_per_epoch == 0:
            raise SettingsError(
                f"an update takes {settings.effective_batch(processes)} segments (per_device_train_batch_size "
                f"{settings.per_device_train_batch_size} x processes {processes} x gradient_accumulation_steps "
                f"{settings.gradient_accumulation_steps}), but the data has {2 * len(self.train_data)} in pairs: lower "
                "per_device_train_batch_size or gradient_accumulation_steps"
            )
        self.total_updates = settings.total_steps(self.updates_per_epoch)

        begun = TrainerState(
            micro_batches=self.micro_batches,
            num_pairs=len(self.train_data),
            data=self.train_data.fingerprint,
            settings=settings.to_dict(),
        )
        if latest is None:
            self.state = begun
        else:
            check_same_data(self.state, begun)
            self.state.settings, self.state.data = begun.settings, begun.data
        optimizer = build_optimizer(model.parameters(), settings)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        if isinstance(optimizer, FairseqAdam):
            optimizer.allocate_state()
        self.updater = Updater(self.accelerator, settings, self.model, self.optimizer, self.total_updates)
        if latest is not None:
            load_optimizer(latest, self.accelerator, self.optimizer)
        self._last_checkpoint = latest
        self._began: float | None = None
        self._first_update = self.state.update

    def describe(self) -> str:
        """What is about to happen, in lines; the effective batch as the original counts it."""
        settings, processes = self.settings, self.accelerator.num_processes
        batch = settings.effective_batch(processes)
        published = (
            "as published" if batch == PUBLISHED_EFFECTIVE_BATCH else f"published: {PUBLISHED_EFFECTIVE_BATCH:,}"
        )
        parameters = sum(parameter.numel() for parameter in self.updater.bare.parameters())
        begin = f"continuing at update {self.state.update}" if self._last_checkpoint else "from update 0"
        source = settings.init_from or "random weights"
        kind = self.accelerator.distributed_type
        engine = "" if kind == DistributedType.NO else f", {kind.value}"
        lines = [
            f"model            {parameters:,} parameters, from {source}",
            f"data             {len(self.train_data):,} pairs to train, "
            f"{0 if self.valid_data is None else len(self.valid_data):,} to validate",
            f"effective batch  {batch:,} segments: {settings.per_device_train_batch_size} x {processes} "
            f"process{'es' if processes > 1 else ''} x {settings.gradient_accumulation_steps} "
            f"accumulation ({published})",
            f"updates          {self.total_updates:,} ({self.updates_per_epoch:,} an epoch), {begin}",
            f"computing        {settings.precision} on {self.accelerator.device.type}{engine}",
        ]
        return "\n".join(lines)

    def run(self) -> PretrainResult:
        """
        Trains to the end, or until SIGTERM or Ctrl-C: then the update is finished and saved.

        Raises:
            [`NonFiniteLossError`]: the loss or gradient is NaN or infinite; the weights stay as they were.
            [`SettingsError`]: another process is at work in `output_dir`.
            `OSError`: a checkpoint cannot be written.
        """
        # All processes must learn that the main one has found the folder in use.
        taken = self.accelerator.is_main_process and not self.checkpoints.claim()
        if float(self.updater.sum(torch.tensor([float(taken)]))[0]):
            raise SettingsError(f"{self.settings.output_dir} is in use: another run is writing there. Wait, or end it")
        try:
            return self._run()
        finally:
            self.checkpoints.release()

    def _run(self) -> PretrainResult:
        state, settings = self.state, self.settings
        # How long an interrupted run took before nobody has noted.
        self._began = time.monotonic() if state.update == 0 else None
        if self.accelerator.is_main_process:
            Path(settings.output_dir).mkdir(parents=True, exist_ok=True)
            write_recipe(settings, Path(settings.output_dir) / SETTINGS_FILE)
        monitor = Monitor(self.accelerator, settings, self.total_updates, state.update)
        metrics: dict[str, float] = {}
        received = 0
        try:
            if state.update < self.total_updates:
                self.updater.settle(self.feature_extractor.segment_samples)
            with Interruption() as interruption:
                while state.update < self.total_updates and not received:
                    for metrics, received in self._epoch(monitor, interruption):  # noqa: B007 - the last ones count
                        if received:
                            break
                if received and not self._is_saved():
                    self._save()
            finished = state.update >= self.total_updates
            if finished:
                self._write_model()
        finally:
            monitor.close()
        return PretrainResult(state.update, finished, received, self._last_checkpoint, self.checkpoints.best(), metrics)

    def _epoch(self, monitor: Monitor, interruption: Interruption) -> Iterator[tuple[dict[str, float], int]]:
        """The rest of an epoch, update by update: metrics, and the signal that some process received."""
        state, settings = self.state, self.settings
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        batches = train_batches(self.train_data, settings, state.epoch, state.update_in_epoch, process, processes)
        began, since = time.perf_counter(), 0
        for in_epoch in range(state.update_in_epoch, self.updates_per_epoch):
            micro_batches = list(islice(batches, settings.gradient_accumulation_steps))
            try:
                metrics, received = self.updater.update(state.update, micro_batches, interruption.number)
            except NotFiniteError as error:
                raise self._stopped(error) from None
            state.update += 1
            since += 1
            ends_epoch = in_epoch + 1 == self.updates_per_epoch
            state.epoch, state.update_in_epoch = (state.epoch + 1, 0) if ends_epoch else (state.epoch, in_epoch + 1)
            last = state.update >= self.total_updates
            if state.update % steps_of(settings.logging_steps, self.total_updates) == 0 or last:
                seconds = time.perf_counter() - began
                metrics["segments_per_s"] = since * settings.effective_batch(processes) / seconds
                metrics["epoch"] = state.epoch + state.update_in_epoch / self.updates_per_epoch
                monitor.log("train", state.update, metrics)
                monitor.watch_collapse(state.update, metrics)
                since = 0
            monitor.advance()
            self._validate_and_save(monitor, ends_epoch, last)
            if since == 0:
                began = time.perf_counter()  # What saving and validating took does not count.
            yield metrics, received
            if last:
                return

    def _validate_and_save(self, monitor: Monitor, ends_epoch: bool, last: bool) -> None:
        state, settings = self.state, self.settings

        def due(strategy: str, steps: float) -> bool:
            by_step = strategy == "steps" and state.update % steps_of(steps, self.total_updates) == 0
            return last or by_step or (strategy == "epoch" and ends_epoch)

        validates = due(settings.eval_strategy, settings.eval_steps) and self.valid_data is not None
        better = False
        if validates:
            metrics = self.validate()
            monitor.log("valid", state.update, metrics)
            better = state.best_loss is None or metrics["loss"] < state.best_loss
            state.best_loss = metrics["loss"] if better else state.best_loss
        if better or due(settings.save_strategy, settings.save_steps):
            self._save(state.best_loss if better else None)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """`METRICS` on the validation split, in eval mode, with masks and negatives that are the same every time."""
        accelerator, updater = self.accelerator, self.updater
        self.model.eval()
        sums, total = torch.zeros(len(METRICS), dtype=torch.float64), 0
        rounds = valid_batches(self.valid_data, self.settings, accelerator.process_index, accelerator.num_processes)
        for place, counts, batch in rounds:
            mask = updater.mask("valid", 0, place, batch)
            output, batch = updater.forward("valid", 0, place, batch, mask)
            if counts:
                sums += batch_metrics(output, batch, updater.bare).cpu() * int(mask.sum())
                total += int(mask.sum())
        self.model.train()
        sums = updater.sum(torch.cat([sums, torch.tensor([float(total)], dtype=torch.float64)]))
        return dict(zip(METRICS, (sums[:-1] / sums[-1]).tolist(), strict=True))

    def _stopped(self, error: NotFiniteError) -> NonFiniteLossError:
        update, where = self.state.update + 1, ""
        if error.facts:
            path = write_bad_batch(self.settings.output_dir, update, self.accelerator.process_index, error.facts)
            where = f" The recordings of the batch are in {path}."
        return NonFiniteLossError(
            f"the {error.what} of update {update} is not finite; no weight was changed by it.{where} "
            f"Last good checkpoint: {self._last_checkpoint or 'none yet'}."
        )

    def _is_saved(self) -> bool:
        return self._last_checkpoint is not None and self._last_checkpoint.name == f"step-{self.state.update:08d}"

    def _save(self, best_loss: float | None = None) -> None:
        path = self.checkpoints.save(self.state, self.accelerator, self.model, self.optimizer, self.feature_extractor)
        self._last_checkpoint = path
        if self.accelerator.is_main_process:
            if best_loss is not None:
                self.checkpoints.mark_best(path, best_loss)
            self.checkpoints.prune()
        self.accelerator.wait_for_everyone()

    def _write_model(self) -> None:
        weights = self.accelerator.get_state_dict(self.model)
        if self.accelerator.is_main_process:
            folder = Path(self.settings.output_dir)
            with full_disk_told(folder):
                save_model_folder(self.updater.bare, self.feature_extractor, folder, state_dict=weights)
                # A run that was finished before has nothing to add.
                if self.state.update > self._first_update or not (folder / FACTS_FILE).is_file():
                    add_step(folder, "pretraining", self._facts(), began_from=self.settings.init_from)
        self.accelerator.wait_for_everyone()

    def _facts(self) -> dict[str, Any]:
        settings, processes = self.settings, self.accelerator.num_processes
        splits = {"train": self.train_data, "valid": self.valid_data}
        return {
            "objective": "W2V + CMSC",
            "data": data_facts({n: d.facts for n, d in splits.items() if d is not None and d.facts is not None}),
            "pairs": len(self.train_data),
            "updates": self.state.update,
            "effective_batch_segments": settings.effective_batch(processes),
            "settings": told_settings(settings.to_dict(), _TOLD),
            "seconds": None if self._began is None else round(time.monotonic() - self._began),
            "hardware": hardware(self.accelerator.device, processes),
            "versions": versions("torch", "transformers", "accelerate"),
        }


__all__ = ["NonFiniteLossError", "PretrainResult", "Pretrainer"]
