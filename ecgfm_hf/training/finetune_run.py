"""A fine-tuning run from its settings to a model folder."""

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from accelerate.utils import gather_object

from ..data import loading
from ..data.leakage import LeakError, check_guard, check_splits, write_guard
from ..data.store import StoreError, load_prepared, read_report
from ..model_folder import save_model_folder
from ..modeling_ecgfm import ECGFMForMultiLabelClassification
from ..provenance import add_step, hardware, labels_of_few, told_settings, versions
from .checkpoints import Checkpoints
from .classifier_start import build_classifier, build_extractor
from .data_facts import data_facts, split_facts
from .finetuning import FinetuneResult, build_trainer, train_to_end
from .operating_points import OperatingPoints
from .parameter_groups import count_parameters
from .recipes import write_recipe
from .run_folder import SETTINGS_FILE, check_same_data, check_same_run, last_checkpoint, note_data, update_of
from .settings import FinetuneSettings, SettingsError
from .start import check_processes
from .training_data import training_data

if TYPE_CHECKING:
    from datasets import Dataset

STORE_FOLDER = "store"
# Written last: the run is finished.
RESULT_FILE = "finetuning.json"
# Settings that model cards tell: nothing that names a place, a person or an institution.
_TOLD = ("augmentations", "problem_type", "untrainable_labels", "model", "freeze_encoder", "lora")
_TOLD += ("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps")
_TOLD += ("early_stopping_patience", "optim", "learning_rate", "layer_decay", "adam_beta1", "adam_beta2")
_TOLD += ("adam_epsilon", "weight_decay", "max_grad_norm", "lr_scheduler_type", "warmup_steps", "final_learning_rate")
_TOLD += ("thresholds", "calibration", "min_cases", "seed", "bf16", "fp16", "eval_strategy", "eval_steps")
_TOLD += ("training_args",)


class Finetuner:
    """
    Fine-tunes on a store, one process or many, and writes a model folder:

        OUTPUT/config.json, model.safetensors, ...          the classifier, with calibration and thresholds
        OUTPUT/finetuning.json                              figures on the validation split, and notes
        OUTPUT/settings.yaml, metrics.jsonl, checkpoints/   the run
        OUTPUT/training_ids.do-not-share.json               what the model has seen, for `ecgfm evaluate`
        OUTPUT/adapters/                                    with lora: adapters and head by themselves
        OUTPUT/store/                                       with source: the prepared data

    A run that was killed continues from its last checkpoint to weights that are bit-equal to an uninterrupted run's,
    on the same hardware and versions.

    Args:
        settings ([`FinetuneSettings`]): With `data` and `output_dir`.

    Raises:
        [`SettingsError`]: impossible settings; `output_dir` holds another run.
        [`LeakError`]: a recording or patient in two of the splits.
    """

    def __init__(self, settings: FinetuneSettings):
        if settings.output_dir is None:
            raise SettingsError("output_dir is required: the folder that checkpoints, logs and the model go to")
        self.settings, self.output_dir = settings, Path(settings.output_dir)
        self.processes = PartialState(cpu=settings.use_cpu)
        check_processes(self.processes.num_processes, settings.processes, "scripts/finetune.py")
        latest = last_checkpoint(self.output_dir)
        self.is_finished = (self.output_dir / RESULT_FILE).is_file()
        if not settings.resume_from_checkpoint and (self.is_finished or latest is not None):
            raise SettingsError(
                f"{self.output_dir} holds a run and resume_from_checkpoint is false: give another output_dir"
            )
        check_same_run(self.output_dir, settings, self.is_finished)
        if self.is_finished:
            return
        try:
            if settings.init_from is not None:
                check_guard(settings.init_from)
        except ValueError as error:
            raise SettingsError(f"init_from: {error}") from None
        self.first_update = 0 if latest is None else update_of(latest)
        # One process makes the store and the copy of the data that all read.
        with self.processes.main_process_first():
            self.splits = open_splits(settings)
            self.feature_extractor = build_extractor(settings)
            self.data = training_data(self.splits["train"], self.splits.get("valid"), self.feature_extractor, settings)
        if latest is not None:
            check_same_data(self.output_dir, self.data)
        model = build_classifier(settings, self.data.names)
        if len(self.feature_extractor.lead_names) != model.config.num_leads:
            raise SettingsError(
                f"the model takes {model.config.num_leads} leads, the feature extractor gives "
                f"{len(self.feature_extractor.lead_names)}: set model.num_leads or feature_extractor.lead_names"
            )
        self.trainer = build_trainer(model, self.data, settings, self.output_dir)

    @property
    def is_main_process(self) -> bool:
        """Whether this process prints and writes."""
        return self.processes.is_main_process

    def describe(self) -> str:
        """What is about to happen, in lines."""
        if self.is_finished:
            return f"{self.output_dir} holds this run, finished"
        settings, data, processes = self.settings, self.data, self.processes.num_processes
        trainable, parameters = count_parameters(self.trainer.model)
        kind = data.problem_type.replace("_", " ")
        batch = settings.effective_batch(processes)
        valid = "none" if data.valid is None else f"{len(data.valid.recording_targets()):,} recordings"
        begin = f"continuing at update {self.first_update:,}" if self.first_update else "from update 0"
        lines = [
            f"model            {parameters:,} parameters, {trainable:,} trained ({trainable / parameters:.2%}), "
            f"from {settings.init_from or 'random weights'}",
            f"task             {kind}, {len(data.names)} output{'s' if len(data.names) > 1 else ''}: "
            f"{', '.join(data.names[:6])}{', ...' if len(data.names) > 6 else ''}",
            f"data             {len(data.train.recording_targets()):,} recordings ({len(data.train):,} segments) to "
            f"train, validation: {valid}",
            f"effective batch  {batch:,} segments: {settings.per_device_train_batch_size} x {processes} "
            f"process{'es' if processes > 1 else ''} x {settings.gradient_accumulation_steps} accumulation",
            f"updates          {self.trainer.total_updates:,} ({self.trainer.updates_per_epoch:,} an epoch), {begin}",
            f"computing        {settings.precision} on {self.trainer.accelerator.device.type}",
            *(f"note             {note}" for note in data.notes),
        ]
        return "\n".join(lines)

    def run(self) -> FinetuneResult:
        """
        Trains to the end, or until SIGTERM or Ctrl-C: then the update is finished and saved.

        Raises:
            [`SettingsError`]: another process is at work in `output_dir`.
            [`NonFiniteTrainingError`]: a loss, a gradient or the outputs are NaN or infinite.
            `OSError`: a checkpoint or the model cannot be written.
        """
        if self.is_finished:
            return read_result(self.output_dir)
        claim = Checkpoints(self.output_dir, self.settings.save_total_limit)
        free = claim.claim() if self.is_main_process else True
        if not all(gather_object([free])):
            raise SettingsError(f"another process is at work in {self.output_dir}: wait for it, or give another folder")
        try:
            return self._run()
        finally:
            claim.release()

    def _run(self) -> FinetuneResult:
        # How long an interrupted run took before nobody has noted.
        began = time.monotonic() if self.first_update == 0 else None
        if self.is_main_process:
            write_recipe(self.settings, self.output_dir / SETTINGS_FILE)
            note_data(self.output_dir, self.data)
        result = train_to_end(self.trainer, self.data, self.settings, self.output_dir)
        if result.finished and self.is_main_process:
            self._write(result, None if began is None else round(time.monotonic() - began))
        self.processes.wait_for_everyone()
        return result

    def _write(self, result: FinetuneResult, seconds: int | None) -> None:
        # Before the weights: there must be no model without a note of what it has seen.
        valid = self.splits.get("valid")
        write_guard(
            self.output_dir,
            _ids(self.splits["train"]),
            ((), ()) if valid is None else _ids(valid),
            began_from=self.settings.init_from,
        )
        facts = self._facts(result, seconds)
        config = result.model.config
        if config.pos_weight is not None and (few := labels_of_few([facts], config.label_names)):
            # The folder is made to be shared, and nothing but this training reads them.
            config.pos_weight = None
            result.notes.append(
                f"pos_weight is left out of config.json: it would tell how few training recordings have, or lack, "
                f"{', '.join(few)}"
            )
        save_model_folder(result.model, self.feature_extractor, self.output_dir)
        add_step(self.output_dir, "fine-tuning", facts, began_from=self.settings.init_from)
        content = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name != "model"}
        content["operating_points"] = dataclasses.asdict(result.operating_points)
        content["figures_are"] = "of the validation split, which chose the update; not of a test"
        scratch = self.output_dir / f".{RESULT_FILE}.partial"
        scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        scratch.replace(self.output_dir / RESULT_FILE)

    def _facts(self, result: FinetuneResult, seconds: int | None) -> dict[str, Any]:
        settings, data = self.settings, self.data
        used = {"train": data.train} | ({} if data.valid is None else {"valid": data.valid})
        splits = {
            split: split_facts(
                self.splits[split], data.rows[split], data.names, segments.recording_targets(), data.problem_type
            )
            for split, segments in used.items()
        }
        weights = settings.pos_weight if data.problem_type == "multi_label_classification" else None
        return {
            "data": data_facts(splits),
            "updates": result.update,
            "best_update": result.best_update,
            "trained_parameters": result.trainable_parameters,
            "effective_batch_segments": settings.effective_batch(self.processes.num_processes),
            # Weights themselves tell how many recordings have a label, however few they are.
            "pos_weight": "given" if isinstance(weights, list) else weights,
            "settings": told_settings(settings.to_dict(), _TOLD),
            "seconds": seconds,
            "hardware": hardware(self.trainer.accelerator.device, self.processes.num_processes),
            "versions": versions("torch", "transformers", "accelerate"),
        }


def finetune(settings: FinetuneSettings) -> FinetuneResult:
    """Fine-tunes by settings; see [`Finetuner`]."""
    return Finetuner(settings).run()


def read_result(output_dir: str | Path) -> FinetuneResult:
    """The result of a finished run, with its model. [`SettingsError`] where it is damaged."""
    path = Path(output_dir) / RESULT_FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        points = OperatingPoints(**content.pop("operating_points"))
        del content["figures_are"]
        model = ECGFMForMultiLabelClassification.from_pretrained(output_dir).eval()
        return FinetuneResult(model=model, operating_points=points, **content)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise SettingsError(f"{path} is damaged: {error}") from None


def open_splits(settings: FinetuneSettings) -> dict[str, "Dataset"]:
    """
    The splits `train` and `valid` (where there is one) of the store that `data` names, or that is made of `source`.

    Raises:
        [`SettingsError`]: there is no store, or it lacks a split.
        [`LeakError`]: a recording or patient in two splits, that to test on included.
    """
    store = _store(settings)
    try:
        there = list(read_report(store)["splits"]["recordings"])
        wanted = {"train": settings.train_split} | ({"valid": settings.valid_split} if settings.valid_split else {})
        if absent := [name for name in wanted.values() if name not in there]:
            raise SettingsError(
                f"data: {store} has no split {', '.join(absent)}, only {', '.join(there)}: `ecgfm split` makes splits; "
                "without validation, train_split=NAME valid_split=null"
            )
        found = {name: load_prepared(store, split) for name, split in wanted.items()}
        tested = {} if settings.test_split not in there else {"test": load_prepared(store, settings.test_split)}
    except (StoreError, FileNotFoundError) as error:
        raise SettingsError(f"data: {error}") from None
    check_splits({**found, **tested})
    return found


def store_folder(settings: FinetuneSettings) -> Path:
    """The store of a run: what `data` names, or what is made of a source."""
    return Path(settings.data) if settings.source is None else Path(settings.output_dir) / STORE_FOLDER


def _store(settings: FinetuneSettings) -> Path:
    if settings.data is None:
        raise SettingsError(
            "data is required: a store (`ecgfm prepare`), or with source=physionet2021 (for example) a dataset's folder"
        )
    store = store_folder(settings)
    if settings.source is None:
        return store
    how = dict(settings.prepare)
    if "split_csv" not in how:
        how.setdefault("split", "grouped")
    try:
        getattr(loading, f"load_{settings.source}")(settings.data, store, progress=False, **how)
    except TypeError as error:
        raise SettingsError(f"prepare: {error}") from None
    except ValueError as error:  # of sources, splits, labels, preparation: all say what to do
        raise SettingsError(f"data: {error}") from None
    return store


def _ids(dataset: "Dataset") -> tuple[list[str], list[str | None]]:
    return dataset["recording_id"][:], dataset["patient_id"][:]


__all__ = ["Finetuner", "LeakError", "finetune", "open_splits", "read_result"]
