"""The 🤗 `Trainer` for recordings: trains on segments, judges by recordings."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_utils import PreTrainedModel
from transformers.trainer_utils import EvalPrediction

from ..utils.errors import ECGFMError
from .labelled_segments import EpochOrder, LabelledSegments, collate_segments, count_known
from .masking import derived_seed
from .optimizers import FairseqAdam, build_optimizer, learning_rate_at
from .parameter_groups import parameter_groups
from .recording_metrics import SELECTION, recording_metrics, recording_table
from .settings import FinetuneSettings


class NonFiniteTrainingError(ECGFMError, RuntimeError):
    """The loss, a gradient or the outputs became NaN or infinite. The message names the update."""


class RefuseNonFiniteGradients(TrainerCallback):
    """
    [`NonFiniteTrainingError`] before a gradient that is not finite reaches the weights. With several processes that is
    all of them, also where the loss of one alone was not finite. (float16 has its scaler, which leaves such out.)
    """

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **_: Any) -> None:
        """Called between gradient and update."""
        if not args.fp16:
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            if not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
                raise NonFiniteTrainingError(_not_finite("the gradient", state.global_step + 1))


def _not_finite(what: str, update: int) -> str:
    return (
        f"{what} of update {update} is not finite; no weight was changed by it. Lower learning_rate, or look for "
        "recordings or targets of impossible values"
    )


class ECGTrainer(Trainer):
    """
    Differs from [`Trainer`] in this:

    - The gradient of an update is that of the mean over all its known targets, over processes and accumulation
      together: that of one big batch, however unknown targets are spread over it.
    - Every random draw (order, dropout) is seeded by the run's seed and its place in the run: a continued run needs no
      random state.
    - Optimiser, learning rates and schedule are this package's, the original's among them.
    - Losses, gradients and outputs that are not finite are errors, before a weight changes.
    - Metrics are of recordings, their segments aggregated as the pipeline does.

    Args:
        model (`ECGFMForMultiLabelClassification`, also within peft)
        settings ([`FinetuneSettings`])
        train_dataset, eval_dataset ([`LabelledSegments`])
        checkpoints (`Path`): Folder of the Trainer's checkpoints.
        scale (`tuple` of two `np.ndarray` (L,), *optional*): Mean and deviation that regression targets were
            standardised with; metrics are in the targets' own units.
        kwargs: For `Trainer`.
    """

    # `compute_loss` has divided by the targets of the whole update.
    loss_is_scaled_for_ga = True

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
        self._scale = scale
        self._micro_batch = 0
        super().__init__(
            model=model,
            args=training_arguments(settings, checkpoints, eval_dataset is not None, model.config.problem_type),
            data_collator=collate_segments,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_metrics=self._metrics,
            **kwargs,
        )
        self.add_callback(RefuseNonFiniteGradients())
        batches = -(-len(train_dataset) // (settings.per_device_train_batch_size * self.accelerator.num_processes))
        self.updates_per_epoch = max(1, -(-batches // settings.gradient_accumulation_steps))
        self.total_updates = settings.total_steps(self.updates_per_epoch)
        self.args.max_steps = self.total_updates

    @property
    def classifier(self) -> PreTrainedModel:
        """The classifier itself, without wrappers of distributed training and of peft."""
        bare = self.accelerator.unwrap_model(self.model)
        return bare.get_base_model() if hasattr(bare, "get_base_model") else bare

    # Order ------------------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        processes = self.accelerator.num_processes
        multiple = 1 if processes == 1 else self.settings.per_device_train_batch_size * processes
        return EpochOrder(self.train_dataset, self.settings.seed, multiple)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor]:
        """The micro-batches of an update, and its number of known targets over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._micro_batch = 0
        known = sum((count_known(batch["labels"]) for batch in batches), torch.zeros((), dtype=torch.long))
        return batches, self.accelerator.reduce(known.to(device), reduction="sum")

    # Loss -------------------------------------------------------------------------------------------------------------

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Forward and backward of a micro-batch. [`NonFiniteTrainingError`] where the loss is not finite."""
        place = self._micro_batch * self.accelerator.num_processes + self.accelerator.process_index
        torch.manual_seed(derived_seed(self.settings.seed, "train", self.state.global_step, place))
        self._micro_batch += 1
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not math.isfinite(loss.item()):
            raise NonFiniteTrainingError(_not_finite("the loss", self.state.global_step + 1))
        return loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """
        The share of a micro-batch in an update's loss: the sum over its known targets, divided by the update's number
        of them. In evaluation the mean over the batch's.
        """
        outputs = model(**inputs)
        loss = outputs["loss"]
        if num_items_in_batch is not None:
            # The model's loss is a mean over the batch's known targets; engines average over processes.
            share = count_known(inputs["labels"]) / num_items_in_batch.clamp_min(1)
            loss = loss * (share * self.accelerator.num_processes)
        return (loss, outputs) if return_outputs else loss

    # Optimiser --------------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimiser of the settings, with a learning rate for each depth."""
        if self.optimizer is None:
            layers = self.model.config.num_hidden_layers
            groups = parameter_groups(self.model if model is None else model, layers, self.settings)
            self.optimizer = build_optimizer(groups, self.settings)
            if isinstance(self.optimizer, FairseqAdam) and model is None:
                self.optimizer.allocate_state()
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The learning rate as a function of the update's number."""
        if self.lr_scheduler is None:
            settings, rate = self.settings, self.settings.learning_rate

            def factor(update: int) -> float:
                return learning_rate_at(update, num_training_steps, settings) / rate if rate else 0.0

            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # Evaluation -------------------------------------------------------------------------------------------------------

    def recordings_of(self, dataset: LabelledSegments) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Runs a dataset; all processes together.

        Returns:
            The dataset's rows (recordings,), uncalibrated scores and targets (recordings, L) float64.
        """
        found = self.predict(dataset)
        return self._table(dataset, found.predictions, found.label_ids)

    def _table(
        self, dataset: LabelledSegments, logits: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not np.isfinite(logits).all():
            raise NonFiniteTrainingError(
                f"after update {self.state.global_step} the model's outputs are not finite: the weights have run away. "
                "Lower learning_rate"
            )
        return recording_table(dataset.rows, logits, labels, self.classifier.config, self._scale)

    def _metrics(self, found: EvalPrediction) -> dict[str, float]:
        dataset, classifier = self.callback_handler.eval_dataloader.dataset, self.classifier
        _, scores, targets = self._table(dataset, found.predictions, found.label_ids)
        # Over all known targets; the Trainer's own figure is a mean of batches' means.
        loss = classifier._loss(torch.from_numpy(found.predictions), torch.from_numpy(found.label_ids))
        return {"loss": loss.item(), **recording_metrics(scores, targets, classifier.config.problem_type)}


def training_arguments(
    settings: FinetuneSettings, checkpoints: Path, validates: bool, problem_type: str
) -> TrainingArguments:
    """What [`Trainer`] takes of the settings."""
    given: dict[str, Any] = {
        "per_device_eval_batch_size": settings.per_device_train_batch_size,
        "dataloader_persistent_workers": settings.dataloader_num_workers > 0,
        "dataloader_pin_memory": not settings.use_cpu and torch.accelerator.is_available(),
        # Weights that are frozen for a while get no gradient, which DistributedDataParallel must be told to expect.
        "ddp_find_unused_parameters": settings.freeze_encoder not in (0, "always")
        or float(settings.model.get("layerdrop", 0.0)) > 0,
        "metric_for_best_model": SELECTION[problem_type] if validates else None,
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
        save_total_limit=settings.save_total_limit,
        restore_callback_states_from_checkpoint=True,
        logging_steps=settings.logging_steps,
        # A loss that is NaN is an error here, and not a figure to leave out.
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


__all__ = ["ECGTrainer", "NonFiniteTrainingError", "training_arguments"]
