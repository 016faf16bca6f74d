"""Pretraining with W2V + CMSC + RLM: from settings to a model folder, on one process or many, with accelerate."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
from accelerate.utils import GradientAccumulationPlugin

from ..fairseq.training_state import RunCounters
from ..model_folder import OPTIMIZER_FILE, STATE_FILE, save_model_folder
from ..provenance import (
    PROVENANCE_FILE,
    ProvenanceError,
    add_step,
    hardware,
    num_updates,
    read_steps,
    select_settings,
    versions,
)
from ..utils.files import write_json
from .data_summary import summarize_data
from .initial_model import build_pretraining_model
from .monitoring import Interruption, Monitor, NonFiniteError, check_trackers, write_nonfinite_batch
from .objective import METRICS, NonFiniteBatchError, Updater, batch_metrics
from .optimizers import FairseqAdam, build_optimizer
from .pretraining_data import open_pairs, train_batches, valid_batches
from .run_folder import ENGINE_FOLDER, RunFolder, reading_checkpoint, writing_to
from .settings import PUBLISHED_EFFECTIVE_BATCH, PretrainSettings, SettingsError, steps_of

# Settings that model cards report: none that contains a path, a person or an institution.
_REPORTED: tuple[str, ...] = (
    "augmentations",
    "model",
    "cmsc_positives",
    "cmsc_across_processes",
    "per_device_train_batch_size",
)
_REPORTED += ("gradient_accumulation_steps", "num_train_epochs", "max_steps", "optim", "learning_rate")
_REPORTED += ("adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "lr_scheduler_type")
_REPORTED += ("warmup_steps", "final_learning_rate", "seed", "bf16", "fp16")
# The variables by which accelerate's launcher passes on the engine that its configuration names.
_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": DistributedType.DEEPSPEED,
    "ACCELERATE_USE_FSDP": DistributedType.FSDP,
    "ACCELERATE_USE_MEGATRON_LM": DistributedType.MEGATRON_LM,
}


@dataclass
class PretrainResult:
    """
    The end of a pretraining run.

    Args:
        update (`int`): Updates done.
        finished (`bool`): Whether all updates are done; False after SIGTERM or Ctrl-C.
        signal (`int`): The signal that ended it, 0 without.
        checkpoint (`Path`, *optional*): The last one written.
        best (`Path`, *optional*): The checkpoint with the least validation loss.
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
    Pretrain with W2V + CMSC + RLM, on one process or many.

        result = Pretrainer(read_recipe("pretrain_tiny", ["data=store", "output_dir=run"])).run()

    Every random draw (initialisation, order, masks, negatives, Gumbel noise, dropout, augmentations) is seeded by the
    run's seed and the draw's index in the run. So a killed run resumes from its last checkpoint to weights that are
    bit-equal to an uninterrupted run's, on the same hardware and versions. Draws are numbered over processes and
    accumulation together: 2 processes x 2 accumulation steps draw what one process with 4 steps draws.

    The gradient of an update is sum_i(n_i dL_i) / sum_i(n_i) over all its micro-batches, with n_i the masked frames of
    micro-batch i and L_i its loss per masked frame, as in fairseq-signals; diversity and CMSC are per micro-batch.

    Args:
        settings ([`PretrainSettings`]): With `data` and `output_dir`.

    Raises:
        [`SettingsError`]: impossible settings; `output_dir` holds another run.
    """

    def __init__(self, settings: PretrainSettings):
        self.settings, self.folder = settings, RunFolder(settings)
        self.accelerator: Accelerator = build_accelerator(settings)
        # The run's own last checkpoint; without one, the checkpoint that resume_from_checkpoint names.
        origin = None if settings.resume_folder is None else Path(settings.resume_folder)
        latest = self.folder.latest or origin
        if latest is not None and latest == origin:
            _check_state_files(latest)
        with reading_checkpoint(latest):
            model, self.feature_extractor = build_pretraining_model(settings, latest)
        if latest is None:
            self.state = RunCounters(updates_before=_updates_before(settings))
        else:
            self.state = _read_state(latest)
        # One process makes the copy of the data that all read. Its error is raised after the others have waited.
        refused = None
        with self.accelerator.main_process_first():
            try:
                self.train_data, self.valid_data = open_pairs(settings, self.feature_extractor)
            except SettingsError as error:
                refused = error
        if refused is not None:
            raise refused
        processes = self.accelerator.num_processes
        self.updates_per_epoch = 2 * len(self.train_data) // settings.effective_batch(processes)
        if self.updates_per_epoch == 0:
            raise SettingsError(
                f"an update takes {settings.effective_batch(processes)} segments (per_device_train_batch_size "
                f"{settings.per_device_train_batch_size} x processes {processes} x gradient_accumulation_steps "
                f"{settings.gradient_accumulation_steps}), but the data has {2 * len(self.train_data)} in pairs: lower "
                "per_device_train_batch_size or gradient_accumulation_steps"
            )
        self.total_updates = self._total_updates()
        self.folder.check_same_data(self.train_data.fingerprint, len(self.train_data), processes)
        optimizer = build_optimizer(model.parameters(), settings)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        if isinstance(optimizer, FairseqAdam):
            optimizer.allocate_state()
        self.updater = Updater(
            self.accelerator, settings, self.model, self.optimizer, self.total_updates, self.state.updates_before
        )
        if latest is not None:
            self._load_optimizer(latest)
        self._last_checkpoint = latest
        self._began: float | None = None
        self._first_update = self.state.update
        self._has_collapsed = False

    def _total_updates(self) -> int:
        """Return the updates of the whole run, those of a checkpoint that another program trained included."""
        state, per_epoch = self.state, self.updates_per_epoch
        if state.update_in_epoch >= per_epoch:  # its epochs are longer
            state.epoch, state.update_in_epoch = state.epoch + 1, 0
        # fairseq-signals makes an update of the few segments at an epoch's end, which are left out here.
        beyond = state.update - state.epoch * per_epoch - state.update_in_epoch
        return self.settings.total_steps(per_epoch) + (0 if self.settings.max_steps > 0 else beyond)

    def describe(self) -> str:
        """Describe the run that is about to begin, in lines; the effective batch is counted as in fairseq-signals."""
        settings, processes = self.settings, self.accelerator.num_processes
        batch = settings.effective_batch(processes)
        published = (
            "as published" if batch == PUBLISHED_EFFECTIVE_BATCH else f"published: {PUBLISHED_EFFECTIVE_BATCH:,}"
        )
        parameters = sum(parameter.numel() for parameter in self.updater.bare.parameters())
        begin = f"resuming at update {self.state.update}" if self._last_checkpoint else "from update 0"
        before = self.state.updates_before
        begin += f", after {before:,} of init_from" if before else ""
        source = settings.resume_folder or settings.init_from or "random weights"
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
        Train to the end, or until SIGTERM or Ctrl-C: then the update is finished and saved.

        Raises:
            [`NonFiniteError`]: the loss or gradient is NaN or infinite; the weights stay as they were.
            [`SettingsError`]: another run is writing to `output_dir`.
            `OSError`: a checkpoint cannot be written.
        """
        state = self.state
        with self.folder.claimed(self.accelerator):
            # How long an interrupted run took before is unknown.
            self._began = time.monotonic() if state.update == 0 else None
            monitor = Monitor(self.accelerator, self.settings, self.total_updates, state.update)
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
                    if received and self._last_checkpoint != self.folder.checkpoints.path(state.update):
                        self._save()
                finished = state.update >= self.total_updates
                if finished:
                    self._write_model()
            finally:
                monitor.close()
        best = self.folder.checkpoints.best()
        return PretrainResult(state.update, finished, received, self._last_checkpoint, best, metrics)

    def _epoch(self, monitor: Monitor, interruption: Interruption) -> Iterator[tuple[dict[str, float], int]]:
        """Train the rest of an epoch, and yield the metrics of each update and the signal that any process received."""
        state, settings = self.state, self.settings
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        batches = train_batches(self.train_data, settings, state.epoch, state.update_in_epoch, process, processes)
        began, since = time.perf_counter(), 0
        for in_epoch in range(state.update_in_epoch, self.updates_per_epoch):
            micro_batches = list(islice(batches, settings.gradient_accumulation_steps))
            try:
                metrics, received = self.updater.update(state.update, micro_batches, interruption.number)
            except NonFiniteBatchError as error:
                raise self._explained(error) from None
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
                self._watch_collapse(monitor, metrics)
                since = 0
            monitor.advance()
            self._validate_and_save(monitor, ends_epoch, last)
            if since == 0:
                began = time.perf_counter()  # Saving and validating do not count.
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
            self._save()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Compute `METRICS` on the validation split in evaluation mode, with the same masks and negatives each time."""
        if self.valid_data is None:
            raise SettingsError("there is no validation split: set valid_split")
        accelerator, updater = self.accelerator, self.updater
        self.model.eval()
        sums, total = torch.zeros(len(METRICS), dtype=torch.float64), 0
        rounds = valid_batches(self.valid_data, self.settings, accelerator.process_index, accelerator.num_processes)
        for index, counts, batch in rounds:
            mask = updater.mask("valid", 0, index, batch)
            output, batch = updater.forward("valid", 0, index, batch, mask)
            if counts:
                sums += batch_metrics(output, batch, updater.bare).cpu().double() * int(mask.sum())
                total += int(mask.sum())
        self.model.train()
        sums = updater.sum(torch.cat([sums, torch.tensor([float(total)], dtype=torch.float64)]))
        return dict(zip(METRICS, (sums[:-1] / sums[-1]).tolist(), strict=True))

    def _watch_collapse(self, monitor: Monitor, metrics: dict[str, float]) -> None:
        """Warn once when the codebook has collapsed, and again only if it recovers in between."""
        collapsed = metrics["codebook_usage"] < self.settings.collapse_below
        if collapsed and not self._has_collapsed:
            monitor.write(
                f"WARNING: update {self.state.update}: the codebook has collapsed: code perplexity "
                f"{metrics['code_perplexity']:.1f}, usage {metrics['codebook_usage']:.3f}, below "
                f"collapse_below={self.settings.collapse_below:g}. "
                "The contrastive task is then easy and teaches little: raise model.diversity_loss_weight, lower "
                "learning_rate, or let the Gumbel temperature fall more slowly."
            )
        self._has_collapsed = collapsed

    def _explained(self, error: NonFiniteBatchError) -> NonFiniteError:
        update, where = self.state.update + 1, ""
        if error.micro_batches:
            path = write_nonfinite_batch(self.folder.path, update, self.accelerator.process_index, error.micro_batches)
            where = f" The recordings of the batch are listed in {path}."
        return NonFiniteError(
            f"the {error.what} of update {update} is not finite; no weight was changed by it.{where} "
            f"Last good checkpoint: {self._last_checkpoint or 'none yet'}."
        )

    def _save(self) -> None:
        """Write a checkpoint aside, then rename it. All processes call."""
        accelerator, checkpoints, update = self.accelerator, self.folder.checkpoints, self.state.update
        target = checkpoints.path(update)
        writing = checkpoints.begin(update) if accelerator.is_main_process else checkpoints.writing_path(update)
        accelerator.wait_for_everyone()
        weights = accelerator.get_state_dict(self.model)
        with writing_to(target):
            if _engine_holds_state(accelerator):
                accelerator.save_state(str(writing / ENGINE_FOLDER))
            if accelerator.is_main_process:
                save_model_folder(self.updater.bare, self.feature_extractor, writing, state_dict=weights)
                if not _engine_holds_state(accelerator):
                    scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
                    torch.save({"optimizer": self.optimizer.state_dict(), "scaler": scaler}, writing / OPTIMIZER_FILE)
        if accelerator.is_main_process:
            write_json(writing / STATE_FILE, asdict(self.state))
            checkpoints.finish(update)
            checkpoints.prune(checkpoints.best())
        accelerator.wait_for_everyone()
        self._last_checkpoint = target

    def _load_optimizer(self, checkpoint: Path) -> None:
        """Load the states of the optimiser and of the gradient scaler, after `accelerator.prepare`."""
        if _engine_holds_state(self.accelerator):
            self.accelerator.load_state(str(checkpoint / ENGINE_FOLDER))
            return
        with reading_checkpoint(checkpoint):
            found = torch.load(checkpoint / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
            groups = self.optimizer.state_dict()["param_groups"]
            _check_optimizer(checkpoint, found["optimizer"]["param_groups"], self.settings)
            self.optimizer.load_state_dict({"state": found["optimizer"]["state"], "param_groups": groups})
        if self.accelerator.scaler is not None and found["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(found["scaler"])

    def _write_model(self) -> None:
        weights = self.accelerator.get_state_dict(self.model)
        if self.accelerator.is_main_process:
            folder = self.folder.path
            with writing_to(folder):
                save_model_folder(self.updater.bare, self.feature_extractor, folder, state_dict=weights)
                # A run that was finished before adds nothing.
                if self.state.update > self._first_update or not (folder / PROVENANCE_FILE).is_file():
                    began_from = self.settings.resume_folder or self.settings.init_from
                    add_step(folder, "pretraining", self._provenance(), began_from=began_from)
        self.accelerator.wait_for_everyone()

    def _provenance(self) -> dict[str, Any]:
        settings, processes = self.settings, self.accelerator.num_processes
        splits = {"train": self.train_data, "valid": self.valid_data}
        return {
            "objective": "W2V + CMSC",
            "data": summarize_data(
                {n: d.summary for n, d in splits.items() if d is not None and d.summary is not None}
            ),
            "pairs": len(self.train_data),
            "updates": self.state.update,
            "updates_before": self.state.updates_before,
            "effective_batch_segments": settings.effective_batch(processes),
            "settings": select_settings(settings.to_dict(), _REPORTED),
            "seconds": None if self._began is None else round(time.monotonic() - self._began),
            "hardware": hardware(self.accelerator.device, processes),
            "versions": versions("torch", "transformers", "accelerate"),
        }


def build_accelerator(settings: PretrainSettings) -> Accelerator:
    """
    Build accelerate's object, with the engine that its configuration names.

    Raises:
        [`SettingsError`]: another number of processes than `processes` or the launcher asks for, an engine that
            accelerate does not use here, a precision that the device does not have, an unknown tracker.
    """
    check_trackers(settings.trackers)
    # Layers that are skipped at random get no gradient, which DistributedDataParallel has to expect.
    skips_layers = float(settings.model.get("layerdrop", 0.0)) > 0
    try:
        accelerator = Accelerator(
            cpu=settings.use_cpu,
            mixed_precision="bf16" if settings.bf16 else "fp16" if settings.fp16 else "no",
            # Batches are cut here, so accelerate sees no end of a data loader.
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=settings.gradient_accumulation_steps, sync_with_dataloader=False
            ),
            log_with=list(settings.trackers) or None,
            project_dir=settings.output_dir,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=skips_layers)],
        )
    except (ValueError, ImportError) as error:
        raise SettingsError(f"{settings.precision}, use_cpu={settings.use_cpu}: {error}") from None
    if settings.fp16 and accelerator.device.type == "cpu":
        raise SettingsError("fp16=true needs a GPU, found a CPU: use bf16=true, or neither")
    settings.check_processes(accelerator.num_processes, "scripts/pretrain.py")
    for variable, engine in _ENGINES.items():
        named = os.environ.get(variable, "false").lower() in ("true", "1")
        # On CPUs accelerate does without an engine, and logs nothing.
        if named and accelerator.distributed_type != engine:
            found = f"{accelerator.device.type}, {accelerator.distributed_type.value}"
            raise SettingsError(
                f"accelerate's configuration names {engine.value}, which it does not use here ({found}): remove it "
                "from the configuration, or run on GPUs, without use_cpu=true"
            )
    if settings.full_determinism:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return accelerator


def _check_state_files(checkpoint: Path) -> None:
    missing = [name for name in (STATE_FILE, OPTIMIZER_FILE) if not (checkpoint / name).is_file()]
    if missing:
        raise SettingsError(
            f"resume_from_checkpoint: {checkpoint} has no {' and no '.join(missing)}: give a checkpoint of "
            "pretraining, or a folder that `ecgfm convert` made of a checkpoint with training state; for the weights "
            "only, use init_from"
        )


def _check_optimizer(checkpoint: Path, groups: list[dict[str, Any]], settings: PretrainSettings) -> None:
    """Check that the moments were computed with the constants of the settings."""
    betas = (settings.adam_beta1, settings.adam_beta2)
    expected = {"betas": betas, "eps": settings.adam_epsilon, "weight_decay": settings.weight_decay}
    for name, value in expected.items():
        found = groups[0].get(name, value)
        if (tuple(found) if name == "betas" else found) != value:
            setting = {"betas": "adam_beta1 and adam_beta2", "eps": "adam_epsilon"}.get(name, name)
            raise SettingsError(f"{checkpoint}: its optimizer has {setting} {found}, the settings have {value}")


def _read_state(checkpoint: Path) -> RunCounters:
    with reading_checkpoint(checkpoint):
        try:
            return RunCounters(**json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{STATE_FILE}: {error}") from None


def _updates_before(settings: PretrainSettings) -> int:
    """Return the updates of `init_from` so far: as the settings give them, or as its files count them."""
    if settings.gumbel_updates_before is not None or settings.init_from is None:
        return settings.gumbel_updates_before or 0
    folder = Path(settings.init_from)
    if (folder / STATE_FILE).is_file():  # a checkpoint of another run
        state = _read_state(folder)
        return state.updates_before + state.update
    try:
        updates = num_updates(read_steps(folder))
    except ProvenanceError as error:
        raise SettingsError(f"init_from: {error}") from None
    if updates is None and (folder / "config.json").is_file():
        raise SettingsError(
            f"init_from: {folder} has no count of updates in {PROVENANCE_FILE}, so the Gumbel temperature to continue "
            "at is unknown: set gumbel_updates_before to the updates so far, or to 0 for the highest temperature"
        )
    return updates or 0


def _engine_holds_state(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type in _ENGINES.values()


__all__ = ["PretrainResult", "Pretrainer"]
