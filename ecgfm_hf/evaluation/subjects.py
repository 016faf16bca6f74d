"""What `ecgfm evaluate` is given: a model's folder with a store to run it on, or stored predictions."""

import argparse
import logging
import os
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.errors import ECGFMError
from ..utils.logs import only_errors
from ..utils.name_lists import as_names

_FACTS = ("age", "sex", "source")


class EvaluateError(ECGFMError, ValueError):
    """What was asked for cannot be evaluated. The message says why."""


@dataclass
class Subject:
    """A model's predictions, and what the report says of it."""

    name: str
    predictions: Any
    stored: bool
    thresholds: dict[str, float] = field(default_factory=dict)
    thresholds_from: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    weights: str | None = None


def read_subject(path: str, args: argparse.Namespace) -> Subject:
    """The predictions of a model's folder, or stored ones."""
    subject = _stored(path, args) if os.path.isfile(path) else _predicted(path, args)
    if args.thresholds is not None:
        from ..configuration_ecgfm import ECGFMConfig

        subject.thresholds = dict(ECGFMConfig.from_pretrained(args.thresholds).label_thresholds or {})
        subject.thresholds_from = f"of the model {_name(args.thresholds)}"
        subject.warnings += _thresholds_seen(subject.predictions, args)
    return subject


def _stored(path: str, args: argparse.Namespace) -> Subject:
    from ..inference.predictions import Predictions, select_labels

    if args.dataset is not None and path == args.model:
        raise EvaluateError(f"{path} is a file of predictions, which hold their labels: give no DATASET with it")
    if args.targets is not None or args.class_column is not None:
        raise EvaluateError(f"{path} is a file of predictions, which hold their labels: give no others")
    predictions = Predictions.from_parquet(path)
    if args.labels is not None:
        predictions = select_labels(predictions, args.labels)
    notes = ["From stored predictions: whether the model has seen these patients was not checked."]
    return Subject(_name(path), predictions, stored=True, notes=notes)


def _predicted(path: str, args: argparse.Namespace) -> Subject:
    # The rooms below this one are entered only here, and only when a model has to run.
    from safetensors import SafetensorError

    from ..data import as_model_inputs, load_prepared
    from ..inference import predict_recordings
    from ..model_folder import load_pipeline
    from ..provenance import weights_digest
    from ..utils.precision import keep_freed_memory

    if args.dataset is None:
        raise EvaluateError(f"a DATASET is needed to run the model {path} on: a store that `ecgfm prepare` wrote")
    keep_freed_memory()
    _quiet()
    dataset = load_prepared(args.dataset, args.split)
    try:
        pipeline = load_pipeline(path, device=args.device)
    # AssertionError: a torch without CUDA.
    except (OSError, ValueError, RuntimeError, KeyError, AssertionError, SafetensorError) as error:
        raise EvaluateError(f"cannot load the model {path}: {error}") from error
    model, extractor, config = pipeline.model, pipeline.feature_extractor, pipeline.model.config
    names = _chosen(config, args.labels)
    truth = _truth(config, names, dataset, args)
    warnings, notes = _seen(path, dataset, args)
    # The results count recordings that are left out.
    with only_errors("ecgfm_hf.data.segments"):
        left_out = as_model_inputs(dataset, extractor, labels=()).skipped
        predictions = predict_recordings(
            model,
            extractor,
            # The truth is joined below; a class may have the name of a column that holds something else.
            dataset.remove_columns([name for name in names if name in dataset.column_names and name not in _FACTS]),
            labels=names,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            precision=args.precision,
            progress=sys.stderr.isatty(),
        )
    rows = {recording: row for row, recording in enumerate(dataset["recording_id"][:])}
    predictions = replace(predictions, labels=truth[[rows[recording] for recording in predictions.recording_ids]])
    return Subject(
        _name(path),
        predictions,
        stored=False,
        thresholds=dict(config.label_thresholds or {}),
        thresholds_from="stored with the model" if config.label_thresholds else None,
        left_out=left_out,
        warnings=warnings,
        notes=notes,
        versions=_versions("torch", "transformers", "datasets"),
        weights=weights_digest(path),
    )


def _chosen(config: Any, labels: list[str] | None) -> list[str]:
    """The model's labels that are evaluated."""
    if labels is None:
        return list(config.label_names)
    if unknown := [name for name in labels if name not in config.label_names]:
        raise EvaluateError(f"the model has no label {', '.join(unknown)} (found: {', '.join(config.label_names)})")
    if config.problem_type == "single_label_classification":
        raise EvaluateError("the model's classes exclude one another and are evaluated all together: without --labels")
    return labels


def _truth(config: Any, names: list[str], dataset: Any, args: argparse.Namespace) -> np.ndarray:
    """What the model should have said of each row of the dataset, (rows, L), NaN where nobody knows."""
    from ..data import label_columns
    from ..data.targets import TargetColumns, read_targets

    problem_type = config.problem_type or "multi_label_classification"
    columns = names if args.class_column is None else [args.class_column]
    if args.class_column is not None and problem_type != "single_label_classification":
        raise EvaluateError(f"--class-column is for models of a single label; this one's problem is {problem_type}")
    if args.targets is None and (missing := [name for name in columns if name not in dataset.column_names]):
        shared = [name for name in columns if name in dataset.column_names]
        hint = f"; --labels {shlex.quote(as_names(shared))} evaluates the others" if shared else ""
        if problem_type == "single_label_classification":
            hint = "; --class-column NAME says in which column the class is"
        found = ", ".join(label_columns(dataset.column_names, dataset.features)) or "none"
        raise EvaluateError(
            f"{args.dataset} has no label {', '.join(missing)} (found: {found}); labels of model and data are matched "
            f"by name{hint}"
        )
    wanted = TargetColumns(problem_type, columns, None if args.class_column is None else names, args.targets)
    values = read_targets({args.split: dataset}, wanted).values[args.split]
    if values.ndim == 1:  # class numbers, negative where unknown
        return np.where(values[:, None] < 0, np.nan, values[:, None] == np.arange(len(names)))
    return values


def _seen(path: str, dataset: Any, args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Warnings and notes about what the model has seen before; `EvaluateError` unless that is allowed."""
    from ..data.leakage import seen

    found = seen(path, dataset["recording_id"][:], dataset["patient_id"][:])
    if found is None:
        unknown = "The model's folder does not tell what it was trained on: whether it has seen these patients was not"
        return [], [f"{unknown} checked."]
    if not found:
        return [], ["None of these recordings and patients are among those that the model's folder notes as seen."]
    if not args.allow_seen:
        raise EvaluateError(
            f"the model has seen what should judge it: {found}. Choose another --split; --allow-seen evaluates all the "
            "same, and the report says so"
        )
    # In the report without numbers, which may be of few patients.
    uses = {
        "trained on": found.training_recordings or found.training_patients,
        "chosen, calibrated or given thresholds on": found.validation_recordings or found.validation_patients,
    }
    said = " and was ".join(use for use, count in uses.items() if count)
    return [f"The model was {said} some of these recordings or patients: the figures are not of new patients."], []


def _thresholds_seen(predictions: Any, args: argparse.Namespace) -> list[str]:
    """Warnings where another model's thresholds were fitted on what they decide; `EvaluateError` unless allowed."""
    from ..data.leakage import seen

    found = seen(args.thresholds, predictions.recording_ids, predictions.patient_ids)
    if not found or not (found.validation_recordings or found.validation_patients):
        return []
    if not args.allow_seen:
        raise EvaluateError(
            f"the thresholds of {_name(args.thresholds)} were fitted on what they should decide: {found}. --allow-seen "
            "evaluates all the same, and the report says so"
        )
    return ["The thresholds were fitted on some of these recordings or patients: the decisions are not of new ones."]


def _name(path: str) -> str:
    """What the report calls it: the folder's name without the way to it; a Hub repository's name as it is."""
    return Path(path).resolve().name if os.path.exists(path) else path


def told_apart(first: str, second: str) -> tuple[str, str]:
    return (f"{first} (first)", f"{second} (second)") if first == second else (first, second)


def _versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in packages}


def _quiet() -> None:
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
