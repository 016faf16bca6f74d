"""Load the predictions that are evaluated: a model's on a store, or stored ones from a file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from ..configuration_ecgfm import ECGFMConfig
from ..inference.predictions import Predictions, select_labels
from ..utils.errors import ECGFMError
from ..utils.logs import only_errors
from ..utils.text import without_secrets

if TYPE_CHECKING:
    from datasets import Dataset

_FACTS = ("age", "sex", "source")


class EvaluateError(ECGFMError, ValueError):
    """A model, store or file that cannot be evaluated. The message has the reason."""


@dataclass
class LoadedPredictions:
    """
    Predictions, and further data for a report.

    Args:
        name (`str`): Of the model's folder, Hub repository or file, without its path.
        predictions ([`Predictions`])
        stored (`bool`): Whether they come from a file.
        thresholds (`dict[str, float]`): By label, on the (calibrated) score.
        thresholds_from (`str`, *optional*): Where the thresholds come from, for readers.
        left_out (`dict[str, int]`): How many recordings have no predictions, by reason.
        warnings, notes (`list[str]`): For the reader of the report; warnings stand out.
        versions (`dict[str, str]`): Of the software that predicted.
        weights (`str`, *optional*): Digest of the model's weights.
    """

    name: str
    predictions: Predictions
    stored: bool
    thresholds: dict[str, float] = field(default_factory=dict)
    thresholds_from: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    weights: str | None = None


def load_predictions(
    source: str,
    dataset: str | None = None,
    *,
    split: str = "test",
    labels: Sequence[str] | None = None,
    targets: str | None = None,
    class_column: str | None = None,
    root: str | None = None,
    thresholds: str | None = None,
    allow_seen: bool = False,
    batch_size: int = 16,
    num_workers: int = 0,
    precision: str = "float32",
    device: str = "cpu",
    progress: bool = False,
) -> LoadedPredictions:
    """
    Return a model's predictions of a store, or the predictions in a file.

    Args:
        source (`str`): Folder or Hub repository of a classifier, or a file that [`Predictions.to_parquet`] wrote.
        dataset (`str`, *optional*): The store or processed folder that a model is run on. A file needs none.
        split (`str`): Split of the store.
        labels (sequence of `str`, *optional*): Labels to evaluate, in this order. Defaults to all of the model's.
        targets (`str`, *optional*): A CSV table of true values by `recording_id`, instead of the store's labels; or
            the labels of a processed folder (`y.npy`).
        class_column (`str`, *optional*): For a single label: the column that has the class.
        root (`str`, *optional*): The folder of a processed folder's segments, where it is not beside its manifests.
        thresholds (`str`, *optional*): The model whose thresholds are used. Defaults to the model's own; a file has
            none.
        allow_seen (`bool`): Whether to accept recordings or patients that the model has seen, with a warning.
        batch_size, num_workers, precision, progress: As of [`predict_recordings`].
        device (`str`): Device of the model.

    Raises:
        `EvaluateError`: a model that cannot be loaded, arguments that do not fit the source, a label that the data do
            not have, recordings or patients that the model has seen.
        `PredictionsError`: a file without predictions.
    """
    if os.path.isfile(source):
        if dataset is not None:
            raise EvaluateError(f"{source} is a file of predictions, which has their labels: give no DATASET with it")
        if targets is not None or class_column is not None:
            raise EvaluateError(
                f"{source} is a file of predictions, which has their labels: give no targets= or class_column="
            )
        predictions = Predictions.from_parquet(source)
        if labels is not None:
            predictions = select_labels(predictions, labels)
        notes = ["From stored predictions: whether the model has seen these patients was not checked."]
        loaded = LoadedPredictions(_name(source), predictions, stored=True, notes=notes)
    elif dataset is None:
        raise EvaluateError(
            f"a DATASET is needed to run the model {source} on: a store that `ecgfm prepare` wrote, or a "
            "processed folder of fairseq-signals"
        )
    else:
        running = _Running(batch_size=batch_size, num_workers=num_workers, precision=precision, progress=progress)
        truth = _Truth(dataset, split, targets, class_column, root)
        loaded = _predict(source, truth, labels, allow_seen, device, running)
    if thresholds is not None:
        given, loaded.thresholds = _thresholds_of(thresholds)
        if given and not loaded.thresholds:
            loaded.warnings.append(f"The thresholds of {_name(thresholds)} belong to other weights: none is used.")
        loaded.thresholds_from = f"of the model {_name(thresholds)}"
        loaded.warnings += _thresholds_seen(loaded.predictions, thresholds, allow_seen)
    return loaded


def _thresholds_of(model_path: str) -> tuple[dict[str, float], dict[str, float]]:
    """Return the thresholds in a model's configuration, and those of them that belong to its weights."""
    from ..model_folder import load_pipeline

    config = ECGFMConfig.from_pretrained(model_path)
    given = dict(config.label_thresholds or {})
    if config.label_fingerprint is None:
        return given, given
    return given, dict(load_pipeline(model_path).model.config.label_thresholds or {})


def distinct_names(first: str, second: str) -> tuple[str, str]:
    """Return the names of two models for a report, marked where they are the same."""
    return (f"{first} (first)", f"{second} (second)") if first == second else (first, second)


def _predict(
    model_path: str,
    truth: "_Truth",
    labels: Sequence[str] | None,
    allow_seen: bool,
    device: str,
    running: "_Running",
) -> LoadedPredictions:
    # A file of predictions needs none of these.
    from safetensors import SafetensorError

    from ..data import as_model_inputs, load_prepared
    from ..data.opening import label_file
    from ..inference import predict_recordings
    from ..model_folder import load_pipeline
    from ..provenance import weights_digest
    from ..utils.precision import keep_freed_memory

    keep_freed_memory()
    dataset = load_prepared(truth.store, truth.split, root=truth.root, labels=label_file(truth.targets))
    try:
        pipeline = load_pipeline(model_path, device=device)
    # AssertionError: a torch without CUDA.
    except (OSError, ValueError, RuntimeError, KeyError, AssertionError, SafetensorError) as error:
        raise EvaluateError(f"cannot load the model {model_path}: {error}") from error
    extractor, config = pipeline.feature_extractor, pipeline.model.config
    names = _chosen(config, labels)
    values = truth.read(config, names, dataset)
    warnings, notes = _seen(model_path, dataset, allow_seen)
    # The results count skipped recordings.
    with only_errors("ecgfm_hf.data.model_inputs"):
        inputs = as_model_inputs(dataset, extractor, labels=())
        predictions = predict_recordings(
            pipeline.model,
            extractor,
            # True values are joined below; a class may have the name of a column that holds something else.
            dataset.remove_columns([name for name in names if name in dataset.column_names and name not in _FACTS]),
            labels=names,
            **running,
        )
    left_out = dict(inputs.skipped)
    if empty := len(set(inputs.recordings.tolist())) - len(predictions):
        left_out["more than half of the leads carry no signal"] = empty
    rows = {recording: row for row, recording in enumerate(dataset["recording_id"][:])}
    predictions = replace(predictions, labels=values[[rows[recording] for recording in predictions.recording_ids]])
    return LoadedPredictions(
        _name(model_path),
        predictions,
        stored=False,
        thresholds=dict(config.label_thresholds or {}),
        thresholds_from="stored with the model" if config.label_thresholds else None,
        left_out=left_out,
        warnings=warnings,
        notes=notes,
        versions={name: version(name) for name in ("torch", "transformers", "datasets")},
        weights=weights_digest(model_path),
    )


def _chosen(config: ECGFMConfig, labels: Sequence[str] | None) -> list[str]:
    """Return the labels to evaluate."""
    if labels is None:
        return list(config.label_names)
    if unknown := [name for name in labels if name not in config.label_names]:
        raise EvaluateError(f"the model has no label {', '.join(unknown)} (found: {', '.join(config.label_names)})")
    if config.problem_type == "single_label_classification":
        raise EvaluateError("the model's classes exclude one another and are evaluated together: give no labels=")
    return list(labels)


class _Running(TypedDict):
    """Arguments of [`predict_recordings`]."""

    batch_size: int
    num_workers: int
    precision: str
    progress: bool


@dataclass(frozen=True)
class _Truth:
    """Where the true values are: in a split of a store, or in a table."""

    store: str
    split: str
    targets: str | None
    class_column: str | None
    root: str | None = None

    def read(self, config: ECGFMConfig, names: list[str], dataset: "Dataset") -> np.ndarray:
        """Return the true values of each row of the dataset, (rows, L), NaN where unknown."""
        from ..data import label_columns
        from ..data.finetuning_targets import TargetColumns, read_targets
        from ..data.opening import label_file

        problem_type = config.problem_type or "multi_label_classification"
        columns = names if self.class_column is None else [self.class_column]
        if self.class_column is not None and problem_type != "single_label_classification":
            raise EvaluateError(f"class_column= is for models of a single label; this model's is {problem_type}")
        table = None if label_file(self.targets) else self.targets
        if table is None and (missing := [name for name in columns if name not in dataset.column_names]):
            shared = [name for name in columns if name in dataset.column_names]
            hint = f"; labels={shared} evaluates the others" if shared else ""
            if problem_type == "single_label_classification":
                hint = "; class_column=NAME is the column that has the class"
            found = ", ".join(label_columns(dataset.column_names, dataset.features)) or "none"
            raise EvaluateError(
                f"{without_secrets(self.store)} has no label {', '.join(missing)} (found: {found}); labels of "
                f"model and data are matched by name{hint}"
            )
        classes = None if self.class_column is None else names
        wanted = TargetColumns(problem_type, columns, classes, table)
        values = read_targets({self.split: dataset}, wanted).values[self.split]
        if values.ndim == 1:  # class numbers, negative where unknown
            return np.where(values[:, None] < 0, np.nan, values[:, None] == np.arange(len(names)))
        return values


def _seen(model_path: str, dataset: "Dataset", allow_seen: bool) -> tuple[list[str], list[str]]:
    """Return warnings and notes about what the model has seen; `EvaluateError` unless that is allowed."""
    from ..data.leakage import seen

    found = seen(model_path, dataset["recording_id"][:], dataset["patient_id"][:])
    if found is None:
        unknown = "The model's folder has no record of its training data: whether it has seen these patients was not"
        return [], [f"{unknown} checked."]
    if not found:
        return [], ["None of these recordings and patients are among those that the model's folder records as seen."]
    if not allow_seen:
        raise EvaluateError(
            f"the model has seen what it should be evaluated on: {found}. Choose another split=; allow_seen=True "
            "evaluates anyway, and the report has a warning"
        )
    # Without numbers, which may be of few patients.
    uses = {
        "trained on": found.training_recordings or found.training_patients,
        "chosen, calibrated or given thresholds on": found.validation_recordings or found.validation_patients,
    }
    used = " and was ".join(use for use, count in uses.items() if count)
    return [f"The model was {used} some of these recordings or patients: the figures are not of new patients."], []


def _thresholds_seen(predictions: Predictions, model_path: str, allow_seen: bool) -> list[str]:
    """Return warnings where thresholds were fitted on what they decide; `EvaluateError` unless that is allowed."""
    from ..data.leakage import seen

    found = seen(model_path, predictions.recording_ids, predictions.patient_ids)
    if not found or not (found.validation_recordings or found.validation_patients):
        return []
    if not allow_seen:
        raise EvaluateError(
            f"the thresholds of {_name(model_path)} were fitted on what they should decide: {found}. allow_seen=True "
            "evaluates anyway, and the report has a warning"
        )
    return ["The thresholds were fitted on some of these recordings or patients: the decisions are not of new ones."]


def _name(path: str) -> str:
    """Return a name for the report: of a path the last part, of a Hub repository all of it."""
    return Path(path).resolve().name if os.path.exists(path) else path
