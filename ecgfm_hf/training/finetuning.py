"""Fine-tuning: from settings to a classifier that is trained, calibrated and saved, on one process or many."""

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.tracking import filter_trackers

from ..data.leakage import check_training_ids, write_training_ids
from ..model_folder import ModelFolderError, load_model, save_model_folder
from ..modeling_ecgfm import ECGFMForMultiLabelClassification
from ..provenance import add_step, hardware, labels_with_withheld_counts, select_settings, versions
from ..utils.integrity import read_with_digest, write_with_digest
from .data_summary import summarize_data, summarize_split
from .finetuning_data import FinetuneData, load_finetune_data
from .initial_model import build_classifier, build_extractor, check_leads, prepare_for_training
from .monitoring import Interruption, Monitor, check_trackers
from .operating_points import OperatingPoints, fit_operating_points
from .run_folder import RESULT_FILE, RunFolder, update_of
from .settings import FinetuneSettings, SettingsError
from .trainable_weights import ADAPTERS_FOLDER, count_parameters, merge_lora
from .trainer import LogProgress, StopOnSignal, build_trainer, recording_metrics

if TYPE_CHECKING:
    from datasets import Dataset

# Settings that model cards report: none that contains a path, a person or an institution.
_REPORTED: tuple[str, ...] = ("augmentations", "problem_type", "untrainable_labels", "model", "freeze_encoder", "lora")
_REPORTED += ("pooling",)
_REPORTED += ("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps")
_REPORTED += ("early_stopping_patience", "optim", "learning_rate", "layer_decay", "adam_beta1", "adam_beta2")
_REPORTED += ("adam_epsilon", "weight_decay", "max_grad_norm", "lr_scheduler_type", "warmup_steps")
_REPORTED += ("final_learning_rate", "thresholds", "calibration", "min_cases", "seed", "bf16", "fp16")
_REPORTED += ("eval_strategy", "eval_steps", "training_args", "train_fraction")


@dataclass(frozen=True)
class FinetuneResult:
    """
    The end of a fine-tuning run.

    Args:
        model (`ECGFMForMultiLabelClassification`): With the best validation metric, or the last one without validation;
            in evaluation mode. None after an interruption.
        update (`int`): Updates done.
        best_update (`int`): The update that `model` is of.
        finished (`bool`): False after SIGTERM or Ctrl-C.
        signal (`int`): The signal that ended it, 0 without.
        metrics (`dict[str, float]`): Of `model` on the validation split, uncalibrated; undefined ones are missing. They
            chose the update, so they are too good: report metrics of a test split.
        operating_points ([`OperatingPoints`]): Calibration and thresholds in the config.
        notes (`list[str]`): Sentences for the user, such as labels without a threshold.
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


class Finetuner:
    """
    Fine-tune on a store, on one process or many, and write a model folder:

        OUTPUT/config.json, model.safetensors, ...          the classifier, with calibration and thresholds
        OUTPUT/finetuning.json                              metrics on the validation split, and notes
        OUTPUT/settings.yaml, metrics.jsonl, checkpoints/   the run
        OUTPUT/training_ids.do-not-share.json               what the model has seen, for `ecgfm evaluate`
        OUTPUT/adapters/                                    with lora: adapters and head by themselves
        OUTPUT/store/                                       with source: the prepared data

        result = Finetuner(read_recipe("finetune_small", ["data=store", "output_dir=out"], FinetuneSettings)).run()

    A run that was killed resumes from its last checkpoint. Its final weights are bit-equal to an uninterrupted run's,
    on the same hardware and versions.

    Datasets and models in memory can take the place of `data` and `init_from`:

        settings = FinetuneSettings(labels=["AFIB", "PVC"], output_dir="out", num_train_epochs=20, learning_rate=1e-4)
        data = FinetuneData.from_datasets(train, valid, feature_extractor, settings)
        result = Finetuner(settings, data=data, model=build_classifier(settings, data.names)).run()

    Args:
        settings ([`FinetuneSettings`]): With `output_dir` and, without `data` below, `data`.
        data ([`FinetuneData`], *optional*): In place of the store that settings name.
        model (`ECGFMForMultiLabelClassification`, *optional*): Trained in place; its labels must be the data's. In
            place of `init_from` and `model` in the settings.
        quiet (`bool`): Show no progress.

    Raises:
        [`SettingsError`]: impossible settings; `output_dir` holds another run.
        [`LeakError`]: a recording or patient in two of the splits.
    """

    def __init__(
        self,
        settings: FinetuneSettings,
        *,
        data: FinetuneData | None = None,
        model: ECGFMForMultiLabelClassification | None = None,
        quiet: bool = False,
    ):
        self.settings, self.folder, self._quiet = settings, RunFolder(settings), quiet
        self.processes = PartialState(cpu=settings.use_cpu)
        settings.check_processes(self.processes.num_processes, "scripts/finetune.py")
        check_trackers(settings.trackers)
        if self.is_finished:
            return
        if settings.init_from is not None:
            try:
                check_training_ids(settings.init_from)
            except ValueError as error:
                raise SettingsError(f"init_from: {error}") from None
        if data is None:
            # One process makes the store and the copy of the data that all read.
            with self.processes.main_process_first():
                data = load_finetune_data(settings, build_extractor(settings))
        elif not data.datasets:
            raise SettingsError("data.datasets is empty: the model folder records which recordings a model has seen")
        self.data, self.feature_extractor = data, data.feature_extractor
        self.folder.check_same_data(data.digest, len(data.train), self.processes.num_processes)
        model = prepare_for_training(build_classifier(settings, data.names) if model is None else model, settings)
        check_leads(model.config, self.feature_extractor)
        self.trainer = build_trainer(model, data, settings, self.folder.path)

    @property
    def is_finished(self) -> bool:
        """Whether the folder holds this run, finished."""
        return self.folder.is_finished

    @property
    def is_main_process(self) -> bool:
        """Whether this process prints and writes."""
        return self.processes.is_main_process

    def describe(self) -> str:
        """Describe the run that is about to begin, in lines."""
        if self.is_finished:
            return f"{self.folder.path} holds this run, finished"
        settings, data, processes = self.settings, self.data, self.processes.num_processes
        trainable, parameters = count_parameters(self.trainer.trained_model)
        valid = "none" if data.valid is None else f"{len(data.valid.recording_targets()):,} recordings"
        begin = "from update 0" if self.folder.latest is None else f"resuming at update {self._first_update:,}"
        lines = [
            f"model            {parameters:,} parameters, {trainable:,} trained ({trainable / parameters:.2%}), "
            f"from {settings.init_from or 'random weights'}",
            f"task             {data.problem_type.replace('_', ' ')}, {len(data.names)} "
            f"output{'s' if len(data.names) > 1 else ''}: "
            f"{', '.join(data.names[:6])}{', ...' if len(data.names) > 6 else ''}",
            f"data             {len(data.train.recording_targets()):,} recordings ({len(data.train):,} segments) to "
            f"train, validation: {valid}",
            f"effective batch  {settings.effective_batch(processes):,} segments: "
            f"{settings.per_device_train_batch_size} x {processes} process{'es' if processes > 1 else ''} x "
            f"{settings.gradient_accumulation_steps} accumulation",
            f"updates          {self.trainer.total_updates:,} ({self.trainer.updates_per_epoch:,} an epoch), {begin}",
            f"computing        {settings.precision} on {self.trainer.accelerator.device.type}",
            *(f"note             {note}" for note in data.notes),
        ]
        return "\n".join(lines)

    def run(self) -> FinetuneResult:
        """
        Train to the end, or until SIGTERM or Ctrl-C: then the update is finished and saved. A finished run is read.

        Raises:
            [`SettingsError`]: another run is writing to `output_dir`.
            [`NonFiniteError`]: a loss, a gradient or the outputs are NaN or infinite.
            `OSError`: a checkpoint or the model cannot be written.
        """
        if self.is_finished:
            return read_result(self.folder.path)
        with self.folder.claimed(self.processes):
            # How long an interrupted run took before is unknown.
            began = time.monotonic() if self.folder.latest is None else None
            counts = count_parameters(self.trainer.trained_model)
            received = self._train()
            update = self.trainer.state.global_step
            if received:
                return FinetuneResult(None, update, update, False, received, {}, notes=self.data.notes)
            result = self._measure_and_merge(*counts)
            self._end_readers()
            if self.is_main_process and result.model is not None:
                self._write(result, result.model, None if began is None else round(time.monotonic() - began))
            self.processes.wait_for_everyone()
        return result

    @property
    def _first_update(self) -> int:
        return 0 if self.folder.latest is None else update_of(self.folder.latest)

    def _train(self) -> int:
        """Train to the end, or until a signal, which is returned; 0 without."""
        trainer, settings = self.trainer, self.settings
        accelerator = trainer.accelerator
        if settings.trackers:
            # Not the Trainer's own reports, which contain paths.
            accelerator.project_configuration.set_directories(str(self.folder.path))
            accelerator.log_with = filter_trackers(settings.trackers, accelerator.logging_dir)
        monitor = Monitor(accelerator, settings, trainer.total_updates, self._first_update, self._quiet)
        with Interruption() as interruption:
            stop = StopOnSignal(interruption, accelerator)
            trainer.add_callback(stop)
            trainer.add_callback(LogProgress(monitor, settings.effective_batch(accelerator.num_processes)))
            latest = self.folder.latest
            try:
                trainer.train(resume_from_checkpoint=None if latest is None else str(latest))
            finally:
                monitor.close()
        return stop.received

    def _end_readers(self) -> None:
        """End the processes that read ahead. When they are collected with the trainer, torch waits 5 s for each."""
        for loader in self.trainer.accelerator._dataloaders:
            loader.base_dataloader._iterator = None

    def _measure_and_merge(self, trainable: int, parameters: int) -> FinetuneResult:
        """Validate the best model, fit its operating points, and merge its adapters; on all processes together."""
        trainer, data, state = self.trainer, self.data, self.trainer.state
        metrics: dict[str, float] = {}
        points, best = OperatingPoints(), state.global_step
        if data.valid is not None:
            _, scores, found = trainer.recordings_of(data.valid)
            metrics = {k: v for k, v in recording_metrics(scores, found, data.problem_type).items() if np.isfinite(v)}
            best = state.best_global_step or state.global_step
            if data.problem_type == "multi_label_classification":
                weights = trainer.classifier.config.pos_weight
                points = fit_operating_points(data.names, found, scores, weights, self.settings)
        model = self._merged_model()
        model.config.label_calibration = points.calibration or None
        model.config.label_thresholds = points.thresholds or None
        notes = [*data.notes, *points.notes]
        return FinetuneResult(model, state.global_step, best, True, 0, metrics, points, notes, trainable, parameters)

    @torch.no_grad()
    def _merged_model(self) -> ECGFMForMultiLabelClassification:
        """Return the trained classifier, with merged adapters and outputs in the targets' own units."""
        classifier = self.trainer.classifier
        if self.data.scale is not None:
            head: Any = classifier.classifier  # peft wraps it in a class without attributes
            head = head.modules_to_save[head.active_adapter] if hasattr(head, "modules_to_save") else head
            mean, deviation = (torch.as_tensor(values).to(head.weight) for values in self.data.scale)
            head.weight.mul_(deviation[:, None])
            head.bias.mul_(deviation).add_(mean)
        if self.settings.lora:
            adapters = self.folder.path / ADAPTERS_FOLDER if self.is_main_process else None
            classifier = merge_lora(self.trainer.accelerator.unwrap_model(self.trainer.model), adapters)
        return classifier.eval()

    def _write(self, result: FinetuneResult, model: ECGFMForMultiLabelClassification, seconds: int | None) -> None:
        """Write the model folder, its guard and provenance, and last the result."""
        path, init_from = self.folder.path, self.settings.init_from
        ids = {split: _ids(dataset) for split, dataset in self.data.datasets.items()}
        # Before the weights: no model may be without a record of what it has seen.
        write_training_ids(path, ids["train"], ids.get("valid", ((), ())), began_from=init_from)
        provenance = self._provenance(result, seconds)
        config = model.config
        if config.pos_weight is not None and (few := labels_with_withheld_counts([provenance], config.label_names)):
            # The folder is made to be shared, and only this training uses them.
            config.pos_weight = None
            result.notes.append(
                "pos_weight is withheld from config.json: it reveals how few training recordings have, or do not have, "
                f"{', '.join(few)}"
            )
        save_model_folder(model, self.feature_extractor, path)
        add_step(path, "fine-tuning", provenance, began_from=init_from)
        content = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name != "model"}
        content["operating_points"] = dataclasses.asdict(result.operating_points)
        content["metrics_are"] = "of the validation split, which chose the update; not of a test split"
        write_with_digest(path / RESULT_FILE, content)

    def _provenance(self, result: FinetuneResult, seconds: int | None) -> dict[str, Any]:
        settings, data = self.settings, self.data
        used = {"train": data.train} | ({} if data.valid is None else {"valid": data.valid})
        splits = {
            split: summarize_split(
                data.datasets[split], data.rows[split], data.names, segments.recording_targets(), data.problem_type
            )
            for split, segments in used.items()
        }
        weights = settings.pos_weight if data.problem_type == "multi_label_classification" else None
        return {
            "data": summarize_data(splits),
            "updates": result.update,
            "best_update": result.best_update,
            "trained_parameters": result.trainable_parameters,
            "effective_batch_segments": settings.effective_batch(self.processes.num_processes),
            # The weights themselves reveal how many recordings have a label, however few.
            "pos_weight": "given" if isinstance(weights, list) else weights,
            "settings": select_settings(settings.to_dict(), _REPORTED),
            "seconds": seconds,
            "hardware": hardware(self.trainer.accelerator.device, self.processes.num_processes),
            "versions": versions("torch", "transformers", "accelerate"),
        }


def read_result(output_dir: str | Path) -> FinetuneResult:
    """Read the result of a finished run, with its model. [`SettingsError`] where it is damaged."""
    path = Path(output_dir) / RESULT_FILE
    try:
        content = read_with_digest(path)
        points = OperatingPoints(**content.pop("operating_points"))
        del content["metrics_are"]
        model = load_model(output_dir, ECGFMForMultiLabelClassification)
        return FinetuneResult(model=model, operating_points=points, **content)
    except (ValueError, TypeError, KeyError, OSError, ModelFolderError) as error:
        raise SettingsError(f"{path} is damaged: {error}") from None


def _ids(dataset: "Dataset") -> tuple[list[str], list[str | None]]:
    return dataset["recording_id"][:], dataset["patient_id"][:]


__all__ = ["FinetuneResult", "Finetuner", "read_result"]
