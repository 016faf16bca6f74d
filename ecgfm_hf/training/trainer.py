"""The `Trainer` of fine-tuning: trains on segments, measures by recordings, and stops at signals and bad values."""

import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import Dataset, Sampler
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import EvalPrediction

from ..configuration_ecgfm import ECGFMConfig
from ..data.finetuning_targets import balanced_weights
from ..evaluation import auroc, macro, mean_absolute_error, r_squared
from ..fairseq.label_sets import LABEL_SETS
from ..model_folder import STATE_FILE
from ..modeling_ecgfm import ECGFMForMultiLabelClassification
from ..pipeline_ecgfm import recording_scores
from .finetuning_data import EpochOrder, FinetuneData, LabelledSegments, collate_segments, count_known
from .monitoring import Interruption, Monitor, NonFiniteError
from .optimizers import FairseqAdam, build_optimizer, learning_rate_at
from .run_folder import CHECKPOINTS, Checkpoints, writing_to
from .settings import FinetuneSettings, SettingsError, derived_seed
from .trainable_weights import FreezeEncoder, add_lora, encoder_parameters, parameter_groups

# The metric that chooses the best checkpoint (greater is better), by kind of problem.
_SELECTION = {
    "multi_label_classification": "auroc_macro",
    "single_label_classification": "auroc_macro",
    "regression": "r_squared_macro",
}
# Which of the Trainer's training values are logged, and under which name.
_LOGGED = {"loss": "loss", "grad_norm": "gradient_norm", "learning_rate": "learning_rate", "epoch": "epoch"}
_NOT_LOGGED = ("runtime", "per_second", "preparation_time", "epoch")


def build_trainer(
    model: ECGFMForMultiLabelClassification, data: FinetuneData, settings: FinetuneSettings, output_dir: str | Path
) -> "ECGTrainer":
    """
    Build the Trainer of a run: set the model's config by the data, and freeze or adapt its weights.

    Raises:
        [`SettingsError`]: the model's labels are not the data's; settings that contradict the data or the device.
    """
    config = model.config
    if list(data.names) != config.label_names:
        raise SettingsError(f"the model's labels are {config.label_names}, the data's labels are {list(data.names)}")
    if (config.problem_type or data.problem_type) != data.problem_type:
        raise SettingsError(f"the model's problem_type is {config.problem_type}, but the data's is {data.problem_type}")
    config.problem_type = data.problem_type  # type: ignore[assignment]  # transformers lists the names
    # They belong to the weights that the run begins with.
    config.label_calibration = config.label_thresholds = None
    config.pos_weight = _pos_weight(data, settings)
    if settings.freeze_encoder == "always":
        model.ecgfm.requires_grad_(False)
    trained = add_lora(model, settings.lora) if settings.lora else model
    callbacks: list[TrainerCallback] = []
    if settings.early_stopping_patience:
        if data.valid is None:
            raise SettingsError("early_stopping_patience needs a validation split, and there is none")
        if data.can_choose:
            callbacks.append(EarlyStoppingCallback(settings.early_stopping_patience))
    if isinstance(settings.freeze_encoder, int) and settings.freeze_encoder > 0:
        callbacks.append(FreezeEncoder(encoder_parameters(trained), settings.freeze_encoder))
    checkpoints = Path(output_dir) / CHECKPOINTS
    try:
        trainer = ECGTrainer(trained, settings, data.train, data.valid, checkpoints, data.scale, callbacks=callbacks)
    except (ValueError, ImportError, TypeError) as error:
        raise SettingsError(f"{settings.precision}, use_cpu={settings.use_cpu}: {error}") from None
    trainer.remove_callback(PrinterCallback)
    return trainer


class ECGTrainer(Trainer):
    """
    The differences from [`Trainer`]:

    - An update's loss is the mean over all its known targets, over processes and accumulation steps. So the gradient
      equals that of one big batch, also if unknown targets are distributed unevenly.
    - Every random draw (order, dropout) is seeded by the run's seed and its index in the run: a resumed run needs no
      random state.
    - Optimiser, learning rates and schedule are this package's, including those of fairseq-signals.
    - Losses, gradients and outputs that are not finite are errors, before a weight changes.
    - Metrics are of recordings, their segments aggregated as in the pipeline.
    - Checkpoints are written aside with their digests, and renamed.

    Args:
        model (`ECGFMForMultiLabelClassification`, also within peft)
        settings ([`FinetuneSettings`])
        train_dataset, eval_dataset ([`LabelledSegments`])
        checkpoints (`Path`): Folder for the Trainer's checkpoints.
        scale (`tuple` of two `np.ndarray` (L,), *optional*): Mean and deviation that regression targets were
            standardised with; metrics are in the targets' own units.
        kwargs: For `Trainer`.
    """

    # `compute_loss` has divided by the targets of the whole update.
    loss_is_scaled_for_ga = True
    optimizer: torch.optim.Optimizer | None
    lr_scheduler: torch.optim.lr_scheduler.LambdaLR | None

    def __init__(
        self,
        model: torch.nn.Module,
        settings: FinetuneSettings,
        train_dataset: LabelledSegments,
        eval_dataset: LabelledSegments | None,
        checkpoints: Path,
        scale: tuple[np.ndarray, np.ndarray] | None = None,
        **kwargs: Any,
    ):
        self.settings = settings
        self.trained_model, self._train_data = model, train_dataset
        self._scale = scale
        self._micro_batch = 0
        self.checkpoints, self._writing = Checkpoints(checkpoints, True, settings.save_total_limit), False
        super().__init__(
            model=model,
            args=_training_arguments(settings, checkpoints, eval_dataset is not None, settings.problem_type),
            data_collator=collate_segments,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_metrics=self._metrics,
            **kwargs,
        )
        if not hasattr(Trainer, "loss_is_scaled_for_ga"):
            # An older transformers, which would divide the loss by the number of micro-batches again.
            self.model_accepts_loss_kwargs = True
        self.add_callback(_StopAtNonFiniteGradients())
        self.add_callback(_FindBestCheckpoint(self.checkpoints))
        batches = -(-len(train_dataset) // (settings.per_device_train_batch_size * self.accelerator.num_processes))
        self.updates_per_epoch = max(1, -(-batches // settings.gradient_accumulation_steps))
        self.total_updates = settings.total_steps(self.updates_per_epoch)
        self.args.max_steps = self.total_updates

    @property
    def classifier(self) -> ECGFMForMultiLabelClassification:
        """The classifier, without the wrappers of distributed training and of peft."""
        bare = self.accelerator.unwrap_model(self.model)
        return bare.get_base_model() if hasattr(bare, "get_base_model") else bare

    # Order ------------------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        processes = self.accelerator.num_processes
        multiple = 1 if processes == 1 else self.settings.per_device_train_batch_size * processes
        return EpochOrder(self._train_data, self.settings.seed, multiple)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor]:
        """Return the micro-batches of an update, and its number of known targets over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._micro_batch = 0
        known = sum((count_known(batch["labels"]) for batch in batches), torch.zeros((), dtype=torch.long))
        return batches, self.accelerator.reduce(known.to(device), reduction="sum")

    # Loss -------------------------------------------------------------------------------------------------------------

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Run a micro-batch forward and backward. [`NonFiniteError`] where the loss is not finite."""
        index = self._micro_batch * self.accelerator.num_processes + self.accelerator.process_index
        torch.manual_seed(derived_seed(self.settings.seed, "train", self.state.global_step, index))
        self._micro_batch += 1
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not math.isfinite(loss.item()):
            raise NonFiniteError(_not_finite("the loss", self.state.global_step + 1))
        return loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """
        Compute the share of a micro-batch in an update's loss: the sum over its known targets, divided by the number of
        known targets in the update. In evaluation, the mean over the batch.
        """
        outputs = model(**inputs)
        loss = outputs["loss"]
        if num_items_in_batch is not None:
            # The model's loss is a mean over the batch's known targets; engines average over processes.
            share = count_known(inputs["labels"]) / torch.as_tensor(num_items_in_batch).clamp_min(1)
            loss = loss * (share * self.accelerator.num_processes)
        return (loss, outputs) if return_outputs else loss

    # Optimiser --------------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimiser of the settings, with a learning rate for each depth."""
        if self.optimizer is not None:
            return self.optimizer
        layers = self.classifier.config.num_hidden_layers
        groups = parameter_groups(self.trained_model if model is None else model, layers, self.settings)
        self.optimizer = optimizer = build_optimizer(groups, self.settings)
        if isinstance(optimizer, FairseqAdam) and model is None:
            optimizer.allocate_state()
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LambdaLR:
        """Build a schedule whose learning rate is a function of the update's number."""
        if self.lr_scheduler is not None:
            return self.lr_scheduler
        settings, rate = self.settings, self.settings.learning_rate

        def factor(update: int) -> float:
            return learning_rate_at(update, num_training_steps, settings) / rate if rate else 0.0

        optimizer = self.create_optimizer() if optimizer is None else optimizer
        self.lr_scheduler = scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        self._created_lr_scheduler = True
        return scheduler

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        if self._writing:
            return str(self.checkpoints.writing_path(self.state.global_step).parent)
        return super()._get_output_dir(trial)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write a checkpoint aside, then rename it. All processes call."""
        checkpoints, update = self.checkpoints, self.state.global_step
        if self.args.should_save:
            checkpoints.begin(update)
        self.accelerator.wait_for_everyone()
        self._writing = True
        try:
            with writing_to(checkpoints.path(update)):
                super()._save_checkpoint(model, trial)
        finally:
            self._writing = False
        best = self._best_checkpoint()
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            # Again, with the final path of the best one.
            self.state.save_to_json(str(checkpoints.writing_path(update) / STATE_FILE))
            checkpoints.finish(update)
            checkpoints.prune(best)
        self.accelerator.wait_for_everyone()

    def _best_checkpoint(self) -> Path | None:
        """Return the path of the best checkpoint, which the Trainer knows as it was while that was written."""
        if self.state.best_model_checkpoint is None:
            return None
        best = self.checkpoints.folder / Path(self.state.best_model_checkpoint).name
        self.state.best_model_checkpoint = str(best)
        return best

    def _load_best_model(self) -> None:
        """Load the best checkpoint's weights, whose digests are checked first."""
        best = self._best_checkpoint()
        if best is not None:
            self.checkpoints.check_weights(best)
        super()._load_best_model()

    # Evaluation -------------------------------------------------------------------------------------------------------

    def recordings_of(self, dataset: LabelledSegments) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Run the model over a dataset, on all processes together.

        Returns:
            The dataset's rows (recordings,), uncalibrated scores and targets (recordings, L) float64.
        """
        found = self.predict(dataset)
        return self._table(dataset, np.asarray(found.predictions), np.asarray(found.label_ids))

    def _table(
        self, dataset: LabelledSegments, logits: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not np.isfinite(logits).all():
            raise NonFiniteError(
                f"after update {self.state.global_step} the model's outputs are not finite: the weights have diverged. "
                "Lower learning_rate"
            )
        return recording_table(dataset.rows, logits, labels, self.classifier.config, self._scale)

    def _metrics(self, found: EvalPrediction) -> dict[str, float]:
        dataset: LabelledSegments = self.callback_handler.eval_dataloader.dataset  # type: ignore[union-attr]  # evaluating
        logits, labels, classifier = np.asarray(found.predictions), np.asarray(found.label_ids), self.classifier
        _, scores, targets = self._table(dataset, logits, labels)
        # Over all known targets; the Trainer's own value is a mean of the batches' means.
        loss = classifier._loss(torch.from_numpy(logits), torch.from_numpy(labels))
        return {"loss": loss.item(), **recording_metrics(scores, targets, classifier.config.problem_type)}


def _training_arguments(
    settings: FinetuneSettings, checkpoints: Path, validates: bool, problem_type: str
) -> TrainingArguments:
    """Translate the settings to what [`Trainer`] takes."""
    given: dict[str, Any] = {
        "per_device_eval_batch_size": settings.per_device_train_batch_size,
        "dataloader_persistent_workers": settings.dataloader_num_workers > 0,
        "dataloader_pin_memory": not settings.use_cpu and torch.accelerator.is_available(),
        # Weights that are frozen for a while get no gradient, which DistributedDataParallel has to expect.
        "ddp_find_unused_parameters": settings.freeze_encoder not in (0, "always")
        or float(settings.model.get("layerdrop", 0.0)) > 0,
        "metric_for_best_model": _SELECTION[problem_type] if validates else None,
        "greater_is_better": True if validates and "metric_for_best_model" not in settings.training_args else None,
    }
    return TrainingArguments(
        **given | settings.training_args,
        output_dir=str(checkpoints),
        per_device_train_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        max_grad_norm=settings.max_grad_norm,
        eval_strategy=settings.eval_strategy if validates else "no",
        eval_steps=settings.eval_steps,
        save_strategy=settings.save_strategy,
        save_steps=settings.save_steps,
        load_best_model_at_end=validates,
        # `Checkpoints` removes old ones.
        save_total_limit=None,
        restore_callback_states_from_checkpoint=True,
        logging_steps=settings.logging_steps,
        # A loss that is NaN is an error here, not a value to skip.
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        seed=settings.seed,
        use_cpu=settings.use_cpu or not torch.accelerator.is_available(),
        full_determinism=settings.full_determinism,
        bf16=settings.bf16,
        fp16=settings.fp16,
        dataloader_num_workers=settings.dataloader_num_workers,
        remove_unused_columns=False,
        label_names=["labels"],
    )


def _pos_weight(data: FinetuneData, settings: FinetuneSettings) -> list[float] | None:
    weights = settings.pos_weight
    if data.problem_type != "multi_label_classification" or weights is None:
        return None
    if weights == "balanced":
        return balanced_weights(data.train.recording_targets())
    if isinstance(weights, str):
        published = dict(zip(LABEL_SETS[weights].names, LABEL_SETS[weights].pos_weight, strict=True))
        if others := [name for name in data.names if name not in published]:
            raise SettingsError(
                f"pos_weight={weights} has no weight for {', '.join(map(repr, others))}, only for "
                f"{', '.join(published)}: set pos_weight=balanced, or a list of numbers"
            )
        return [published[name] for name in data.names]
    if len(weights) != len(data.names):
        raise SettingsError(
            f"pos_weight has {len(weights)} numbers, the model {len(data.names)} labels: {', '.join(data.names)}"
        )
    return list(weights)


class _StopAtNonFiniteGradients(TrainerCallback):
    """
    Raise [`NonFiniteError`] before a gradient that is not finite reaches the weights: on all processes, also where the
    loss of only one was not finite. (With fp16 the gradient scaler skips such updates.)
    """

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Check the gradient before the update."""
        if not args.fp16:
            gradients = [parameter.grad for parameter in given["model"].parameters() if parameter.grad is not None]
            if not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
                raise NonFiniteError(_not_finite("the gradient", state.global_step + 1))


class _FindBestCheckpoint(TrainerCallback):
    """Point a resumed run to its best checkpoint: the Trainer forgets it where the run's folder was moved."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Set the path."""
        if state.best_global_step and (best := self._checkpoints.path(state.best_global_step)).is_dir():
            state.best_model_checkpoint = str(best)


def _not_finite(what: str, update: int) -> str:
    return (
        f"{what} of update {update} is not finite; no weight was changed by it. Lower learning_rate, or look for "
        "recordings or targets with impossible values"
    )


class LogProgress(TrainerCallback):
    """
    Pass what the Trainer logs on to a [`Monitor`].

    Args:
        monitor ([`Monitor`])
        segments (`int`): In an update, over processes and accumulation, for the speed.
    """

    def __init__(self, monitor: Monitor, segments: int):
        self._monitor, self._segments = monitor, segments
        self._began, self._since = time.perf_counter(), 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count an update."""
        self._since += 1
        self._monitor.advance()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Log the values of training; `on_evaluate` logs validation."""
        logs: dict[str, float] = given["logs"]
        if "loss" in logs:
            values = {name: logs[key] for key, name in _LOGGED.items() if key in logs}
            seconds = time.perf_counter() - self._began
            values["segments_per_s"] = self._since * self._segments / max(seconds, 1e-9)
            self._monitor.log("train", state.global_step, values)
            self._began, self._since = time.perf_counter(), 0

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Log the metrics of the validation split."""
        values = {k.removeprefix("eval_"): v for k, v in given["metrics"].items() if not k.endswith(_NOT_LOGGED)}
        self._monitor.log("valid", state.global_step, values)
        self._began, self._since = time.perf_counter(), 0  # Validating does not count.


class StopOnSignal(TrainerCallback):
    """
    Save and stop after the update in which a signal came to any process.

    Args:
        interruption ([`Interruption`]): Entered.
        accelerator (`Accelerator`)

    Attributes:
        received (`int`): The signal, 0 without.
    """

    def __init__(self, interruption: Interruption, accelerator: Accelerator):
        self._interruption, self._accelerator = interruption, accelerator
        self.received = 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Check for a signal after an update."""
        number = self._interruption.number
        if self._accelerator.num_processes > 1:
            flag = torch.tensor(float(number > 0), device=self._accelerator.device)
            anywhere = self._accelerator.reduce(flag, reduction="sum").item() > 0
            number = (number or int(signal.SIGTERM)) if anywhere else 0
        if number:
            self.received = number
            control.should_save = control.should_training_stop = True


def recording_table(
    rows: np.ndarray,
    logits: np.ndarray,
    labels: np.ndarray,
    config: ECGFMConfig,
    scale: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Aggregate the logits of segments to scores of recordings.

    Args:
        rows (`np.ndarray` (segments,)): The recording of each segment; segments of one are adjacent.
        logits (`np.ndarray` (segments, L))
        labels (`np.ndarray`): Targets of segments, (segments, L), or (segments,) class numbers.
        config (`ECGFMConfig`): Defines how segments are aggregated.
        scale (two `np.ndarray` (L,), *optional*): Mean and deviation to undo, of standardised targets.

    Returns:
        Rows (recordings,), scores and targets (recordings, L) float64; targets of classes one-hot, NaN where unknown.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if scale is not None:
        mean, deviation = scale
        logits, labels = logits * deviation + mean, labels.astype(np.float64) * deviation + mean
    first = np.concatenate([[0], np.flatnonzero(np.diff(rows)) + 1]) if len(rows) else np.zeros(0, dtype=np.int64)
    scores = [list(recording_scores(segments, config).values()) for segments in np.split(logits, first[1:])]
    targets = labels[first]
    if targets.ndim == 1:
        classes = targets
        targets = (classes[:, None] == np.arange(len(config.label_names))).astype(np.float64)
        targets[classes < 0] = np.nan
    return rows[first], np.array(scores).reshape(len(first), -1), targets.astype(np.float64)


def recording_metrics(scores: np.ndarray, targets: np.ndarray, problem_type: str | None) -> dict[str, float]:
    """
    Compute `auroc_macro` and `auroc_undefined` (the number of labels with one class, excluded); for regression
    `r_squared_macro`, `r_squared_undefined` and `mean_absolute_error_macro`.
    """
    if problem_type == "regression":
        squared, undefined = macro(r_squared(targets, scores))
        error, _ = macro(mean_absolute_error(targets, scores))
        return {
            "r_squared_macro": float(squared),
            "r_squared_undefined": int(undefined),
            "mean_absolute_error_macro": float(error),
        }
    mean, undefined = macro(auroc(targets, scores))
    return {"auroc_macro": float(mean), "auroc_undefined": int(undefined)}


__all__ = ["ECGTrainer", "build_trainer", "recording_metrics", "recording_table"]
