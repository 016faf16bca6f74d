"""Fine-tuning: from datasets and a classifier to one that is trained, calibrated and saved."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate.tracking import filter_trackers
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from ..data.leakage import check_splits
from ..data.targets import balanced_weights
from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..modeling_ecgfm import ECGFMForMultiLabelClassification
from .ecg_trainer import ECGTrainer
from .finetune_callbacks import StopOnSignal, TellProgress
from .interruption import Interruption
from .lora import ADAPTERS_FOLDER, add_lora, merge_lora
from .monitoring import Monitor, check_trackers
from .operating_points import OperatingPoints, fit_operating_points
from .parameter_groups import FreezeEncoder, count_parameters, encoder_parameters
from .recording_metrics import recording_metrics
from .run_folder import CHECKPOINTS, last_checkpoint, update_of
from .settings import FinetuneSettings, SettingsError
from .start import checkpoint_activations
from .training_data import TrainingData, training_data

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class FinetuneResult:
    """
    How fine-tuning ended.

    Args:
        model (`ECGFMForMultiLabelClassification`): Of the best validation figure, or the last one without validation;
            in evaluation mode. None after an interruption.
        update (`int`): Updates done.
        best_update (`int`): Those that `model` has had.
        finished (`bool`): False after SIGTERM or Ctrl-C.
        signal (`int`): The signal that ended it, 0 without.
        metrics (`dict[str, float]`): Of `model` on the validation split, uncalibrated; undefined ones are not there.
            They chose it, and so flatter it: report figures of a test split.
        operating_points ([`OperatingPoints`]): What the config has got.
        notes (`list[str]`): What a user has to know, a sentence each.
        trainable_parameters, parameters (`int`): Trained weights, and all, while training (adapters included).
    """

    model: ECGFMForMultiLabelClassification | None
    update: int
    best_update: int
    finished: bool
    signal: int
    metrics: dict[str, float]
    operating_points: OperatingPoints = field(default_factory=OperatingPoints)
    notes: list[str] = field(default_factory=list)
    trainable_parameters: int = 0
    parameters: int = 0


def train_classifier(
    model: ECGFMForMultiLabelClassification,
    feature_extractor: ECGFMFeatureExtractor,
    train: "Dataset",
    valid: "Dataset | None",
    settings: FinetuneSettings,
    output_dir: str | Path,
) -> FinetuneResult:
    """
    Trains a classifier on datasets at hand. [`finetune`] does the same from settings alone, and saves the result.

        settings = FinetuneSettings(labels=["AFIB", "PVC"], epochs=20, learning_rate=1e-4, batch_size=32)
        model = build_classifier(settings, settings.labels)
        result = train_classifier(model, extractor, train, valid, settings, "run")
        save_model_folder(result.model, extractor, "classifier")

    Args:
        model ([`ECGFMForMultiLabelClassification`]): Trained in place; its labels are those that are learnt.
        feature_extractor ([`ECGFMFeatureExtractor`])
        train, valid (`Dataset`): Splits of a store, as [`load_prepared`] gives them, or selections of them. Without
            `valid` there is neither a choice of the best update nor calibration nor thresholds.
        settings ([`FinetuneSettings`]): What says where data and model come from is not looked at.
        output_dir (`str` or `Path`): For checkpoints and figures. A run that is found there is continued.

    Raises:
        [`SettingsError`]: labels that cannot be learnt, or are not the model's.
        [`LeakError`]: a patient or recording in both datasets.
        [`NonFiniteTrainingError`]: a loss, a gradient or the outputs became NaN or infinite.
    """
    check_splits({"train": train} | ({} if valid is None else {"valid": valid}))
    labels = settings.labels
    if labels is None and settings.problem_type != "single_label_classification":
        labels = model.config.label_names
    data = training_data(train, valid, feature_extractor, replace(settings, labels=labels))
    return run_training(model, data, settings, output_dir)


def run_training(
    model: ECGFMForMultiLabelClassification, data: TrainingData, settings: FinetuneSettings, output_dir: str | Path
) -> FinetuneResult:
    """[`train_classifier`] with segments at hand."""
    return train_to_end(build_trainer(model, data, settings, output_dir), data, settings, output_dir)


def train_to_end(
    trainer: ECGTrainer, data: TrainingData, settings: FinetuneSettings, output_dir: str | Path
) -> FinetuneResult:
    """What is left of a run once its Trainer is there; all processes together."""
    output_dir = Path(output_dir)
    counts = count_parameters(trainer.model)
    latest = last_checkpoint(output_dir) if settings.resume_from_checkpoint else None
    received = _train(trainer, settings, output_dir, latest)
    state = trainer.state
    if received:
        return FinetuneResult(None, state.global_step, state.global_step, False, received, {}, notes=data.notes)
    metrics, points = {}, OperatingPoints()
    if data.valid is not None:
        _, scores, found = trainer.recordings_of(data.valid)
        metrics = {k: v for k, v in recording_metrics(scores, found, data.problem_type).items() if np.isfinite(v)}
        if data.problem_type == "multi_label_classification":
            points = fit_operating_points(data.names, found, scores, trainer.classifier.config.pos_weight, settings)
    best = state.best_global_step if data.valid is not None and state.best_global_step else state.global_step
    final = _finished_model(trainer, settings, output_dir, data.scale)
    final.config.label_calibration = points.calibration or None
    final.config.label_thresholds = points.thresholds or None
    notes = [*data.notes, *points.notes]
    return FinetuneResult(final, state.global_step, best, True, 0, metrics, points, notes, *counts)


def build_trainer(
    model: ECGFMForMultiLabelClassification, data: TrainingData, settings: FinetuneSettings, output_dir: str | Path
) -> ECGTrainer:
    """
    The Trainer of a run: the model's config gets what the data says, and weights are frozen or adapted as asked for.

    Raises:
        [`SettingsError`]: the model's labels are not the data's, settings that contradict the data or the device.
    """
    config = model.config
    if list(data.names) != config.label_names:
        raise SettingsError(f"the model's labels are {config.label_names}, those to learn {list(data.names)}")
    if (config.problem_type or data.problem_type) != data.problem_type:
        raise SettingsError(f"the model's problem_type is {config.problem_type}, that of the data {data.problem_type}")
    config.problem_type = data.problem_type
    config.label_calibration = config.label_thresholds = None
    config.pos_weight = _pos_weight(data, settings)
    if settings.gradient_checkpointing:
        checkpoint_activations(model)
    if settings.freeze_encoder == "always":
        model.ecgfm.requires_grad_(False)
    trained = add_lora(model, settings.lora) if settings.lora else model
    callbacks: list[TrainerCallback] = []
    if settings.early_stopping_patience:
        if data.valid is None:
            raise SettingsError("early_stopping watches the validation split, and there is none")
        if data.chooses:
            callbacks.append(EarlyStoppingCallback(settings.early_stopping_patience))
    if settings.freeze_encoder not in (0, "always"):
        callbacks.append(FreezeEncoder(encoder_parameters(trained), settings.freeze_encoder))
    check_trackers(settings.trackers)
    checkpoints = Path(output_dir) / CHECKPOINTS
    try:
        trainer = ECGTrainer(trained, settings, data.train, data.valid, checkpoints, data.scale, callbacks=callbacks)
    except (ValueError, ImportError) as error:
        raise SettingsError(f"{settings.precision}, use_cpu={settings.use_cpu}: {error}") from None
    trainer.remove_callback(PrinterCallback)
    return trainer


def _train(trainer: ECGTrainer, settings: FinetuneSettings, output_dir: Path, latest: Path | None) -> int:
    """Trains to the end, or until a signal, which is returned; 0 without."""
    first = 0 if latest is None else update_of(latest)
    accelerator = trainer.accelerator
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
    if settings.trackers:
        # Not the Trainer's own reports: those tell paths.
        accelerator.project_configuration.set_directories(str(output_dir))
        accelerator.log_with = filter_trackers(list(settings.trackers), accelerator.logging_dir)
    monitor = Monitor(accelerator, replace(settings, output_dir=str(output_dir)), trainer.total_updates, first)
    with Interruption() as interruption:
        stop = StopOnSignal(interruption, accelerator)
        trainer.add_callback(stop)
        per_update = settings.effective_batch(accelerator.num_processes)
        trainer.add_callback(TellProgress(monitor, per_update))
        try:
            trainer.train(resume_from_checkpoint=None if latest is None else str(latest))
        finally:
            monitor.close()
    return stop.received


def _pos_weight(data: TrainingData, settings: FinetuneSettings) -> list[float] | None:
    if data.problem_type != "multi_label_classification" or settings.pos_weight is None:
        return None
    if settings.pos_weight == "balanced":
        return balanced_weights(data.train.recording_targets())
    if len(settings.pos_weight) != len(data.names):
        raise SettingsError(
            f"pos_weight has {len(settings.pos_weight)} numbers, the model {len(data.names)} labels: "
            f"{', '.join(data.names)}"
        )
    return list(settings.pos_weight)


@torch.no_grad()
def _finished_model(
    trainer: ECGTrainer, settings: FinetuneSettings, output_dir: Path, scale: tuple[np.ndarray, np.ndarray] | None
) -> ECGFMForMultiLabelClassification:
    """The trained classifier by itself, its adapters merged and its outputs in the targets' own units."""
    classifier = trainer.classifier
    if scale is not None:
        head = classifier.classifier
        head = head.modules_to_save[head.active_adapter] if hasattr(head, "modules_to_save") else head
        mean, deviation = (torch.as_tensor(values).to(head.weight) for values in scale)
        head.weight.mul_(deviation[:, None])
        head.bias.mul_(deviation).add_(mean)
    if settings.lora:
        adapters = output_dir / ADAPTERS_FOLDER if trainer.accelerator.is_main_process else None
        classifier = merge_lora(trainer.accelerator.unwrap_model(trainer.model), adapters)
    return classifier.eval()


__all__ = ["FinetuneResult", "build_trainer", "run_training", "train_classifier", "train_to_end"]
