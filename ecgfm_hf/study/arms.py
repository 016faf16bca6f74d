"""
The arms of a study: ways to turn labelled recordings into scores of others.

An arm is fitted on a [`TrainingData`], which has the training recordings of a fold and their labels only. What it
chooses, it chooses by inner folds of these, which keep a patient's recordings together.
"""

import copy
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..configuration_ecgfm import ECGFMConfig
from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..modeling_ecgfm import ECGFMAttentionPooler, ECGFMForMultiLabelClassification
from ..training.finetuning import Finetuner
from ..training.finetuning_data import FinetuneData, LabelledSegments
from ..training.initial_model import build_classifier
from ..training.linear_probe import fit_heads
from ..training.settings import FINETUNED_MODEL, FinetuneSettings, derived_seed
from .data import Segments
from .features import Imputation
from .guard import TrainingData

if TYPE_CHECKING:
    from datasets import Dataset

# In the order of their costs: cheap ones are run first.
ARMS = ("features", "linear", "attention", "lora", "finetune", "scratch")
TRAINED_ARMS = ("lora", "finetune", "scratch")
# They use the encoder's pretrained weights.
WITH_ENCODER = ("linear", "attention", "lora", "finetune")
# What each reads, of `StudyInputs`.
NEEDS = {
    "features": ("features",),
    "linear": ("embeddings",),
    "attention": ("frames",),
    **dict.fromkeys(TRAINED_ARMS, ("segments",)),
}
# Of training, where `StudySettings.finetuning` has nothing else: epochs, but no fewer updates than these.
EPOCHS, FEWEST_UPDATES, _BATCH, VALIDATIONS = 12, 500, 16, 12
LEARNING_RATES = {"finetune": 1e-4, "lora": 1e-3, "scratch": 5e-4}
LORA = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
# Of attention pooling.
_POOLER_RATES, _POOLER_EPOCHS, _POOLER_BATCH, _POOLER_PATIENCE = (3e-4, 2e-3), 60, 32, 8


class LogisticArm:
    """
    Logistic regressions on features or embeddings (recordings, values).

    Values are standardised on the training recordings, and the penalty of each label is chosen among them. Missing
    values are imputed.
    """

    def fit(self, data: TrainingData, seed: int) -> Callable[[np.ndarray], np.ndarray]:
        """Return a function from values to scores from 0 to 1; a label of one class only gets its training share."""
        values = data.inputs[data.rows]
        targets, share, learnable = _targets(data, data.rows)
        if not learnable.any():
            return lambda found: np.tile(share, (len(found), 1))
        impute = Imputation(values)
        names = [data.table.label_names[label] for label in np.flatnonzero(learnable)]
        ids = [data.table.ids[row] for row in data.rows]
        patients = [data.table.patients[row] for row in data.rows]
        heads = fit_heads(impute(values), targets[:, learnable], names, ids, patients, seed=seed)

        def score(found: np.ndarray) -> np.ndarray:
            scores = np.tile(share, (len(found), 1))
            scores[:, learnable] = _sigmoid(impute(found) @ heads.weight.T + heads.bias)
            return scores

        return score


def _targets(data: TrainingData, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the labels of rows, the share of positives of each label, and which labels have both classes."""
    targets = data.targets[rows]
    positive, negative = ((targets == value).sum(axis=0) for value in (1, 0))
    return targets, positive / np.maximum(positive + negative, 1), (positive > 0) & (negative > 0)


def _inner_split(data: TrainingData, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows to fit on, and rows to choose by: those of about a fifth of the training patients."""
    folds = min(5, len(np.unique(data.table.groups.numbers[data.rows])))
    inner = data.inner_folds(folds, seed)[0]
    return inner.train, inner.test


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits, -60, 60)))


# ----------------------------------------------------------------------------------------------------------------------
# Attention pooling
# ----------------------------------------------------------------------------------------------------------------------


class _PooledClassifier(nn.Module):
    """Attention pooling of segments' frames, and a linear head; a recording's logits are the mean of its segments'."""

    def __init__(self, config: ECGFMConfig, mean: torch.Tensor, deviation: torch.Tensor, labels: int):
        super().__init__()
        self.mean, self.deviation = mean, deviation
        self.pooler = ECGFMAttentionPooler(config)
        self.head = nn.Linear(config.hidden_size, labels)
        nn.init.zeros_(self.head.bias)

    def forward(self, frames: torch.Tensor, recordings: torch.Tensor, count: int) -> torch.Tensor:
        logits = self.head(self.pooler((frames.float() - self.mean) / self.deviation)[0])
        total = logits.new_zeros(count, logits.shape[1]).index_add(0, recordings, logits)
        return total / torch.bincount(recordings, minlength=count)[:, None]


class AttentionArm:
    """
    Attention pooling of a frozen encoder's frames ([`Segments`]), with a linear head.

    An inner fold chooses the learning rate and the number of epochs; then all training recordings are learnt from.

    Args:
        config ([`ECGFMConfig`]): The encoder's.
        device (`torch.device`)
    """

    def __init__(self, config: ECGFMConfig, device: torch.device):
        self._config, self._device = config, device

    def fit(self, data: TrainingData, seed: int) -> Callable[[Segments], np.ndarray]:
        """Return a function from frames to scores; see [`LogisticArm.fit`]."""
        targets, share, learnable = _targets(data, data.rows)
        if not learnable.any():
            return lambda found: np.tile(share, (found.num_recordings, 1))
        fit, choose = _inner_split(data, seed)
        judged = data.inputs[choose], data.targets[choose][:, learnable]
        tried = []
        for rate in _POOLER_RATES:
            _, losses = self._train(
                data.inputs[fit], data.targets[fit][:, learnable], rate, _POOLER_EPOCHS, seed, judged
            )
            tried.append((min(losses), rate, int(np.argmin(losses)) + 1))
        _, rate, epochs = min(tried)
        model, _ = self._train(data.inputs[data.rows], targets[:, learnable], rate, epochs, seed)

        def score(found: Segments) -> np.ndarray:
            scores = np.tile(share, (found.num_recordings, 1))
            scores[:, learnable] = _sigmoid(self._logits(model, found))
            return scores

        return score

    def _train(
        self,
        frames: Segments,
        targets: np.ndarray,
        rate: float,
        epochs: int,
        seed: int,
        judged: tuple[Segments, np.ndarray] | None = None,
    ) -> tuple[_PooledClassifier, list[float]]:
        """Return the classifier, and its loss on what `judged` has after each epoch."""
        torch.manual_seed(derived_seed(seed, "attention"))
        model = _PooledClassifier(self._config, *self._moments(frames), targets.shape[1]).to(self._device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
        random = np.random.default_rng(seed)
        losses: list[float] = []
        for _ in range(epochs):
            order = random.permutation(frames.num_recordings)
            for start in range(0, len(order), _POOLER_BATCH):
                own = order[start : start + _POOLER_BATCH]
                optimizer.zero_grad()
                _loss(model(*self._batch(frames, own)), targets[own]).backward()
                optimizer.step()
            if judged is not None:
                losses.append(_log_loss(self._logits(model, judged[0]), judged[1]))
                if len(losses) - int(np.argmin(losses)) > _POOLER_PATIENCE:
                    break
        return model, losses

    def _batch(self, frames: Segments, numbers: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, int]:
        values, recordings = (torch.from_numpy(of).to(self._device) for of in frames.of_recordings(numbers))
        return values, recordings, len(numbers)

    def _moments(self, frames: Segments) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and deviation of the frames' values."""
        total = square = torch.zeros(1, dtype=torch.float64, device=self._device)
        count = 0
        for numbers in _batches(frames):
            values = self._batch(frames, numbers)[0].double()
            total, square = total + values.sum(dim=(0, 1)), square + values.square().sum(dim=(0, 1))
            count += values.shape[0] * values.shape[1]
        mean = total / count
        deviation = (square / count - mean.square()).clamp(min=1e-8).sqrt()
        return mean.float(), deviation.float()

    def _logits(self, model: _PooledClassifier, frames: Segments) -> np.ndarray:
        with torch.no_grad():
            parts = [model(*self._batch(frames, numbers)) for numbers in _batches(frames)]
        return torch.cat(parts).double().cpu().numpy()


def _batches(frames: Segments) -> list[np.ndarray]:
    numbers = np.arange(frames.num_recordings)
    return [numbers[start : start + _POOLER_BATCH] for start in range(0, len(numbers), _POOLER_BATCH)]


def _loss(logits: torch.Tensor, targets: np.ndarray) -> torch.Tensor:
    """Mean log loss over the known labels."""
    wanted = torch.from_numpy(targets).to(logits)
    known = ~wanted.isnan()
    if not known.any():
        return logits.sum() * 0
    return F.binary_cross_entropy_with_logits(logits[known], wanted[known])


def _log_loss(logits: np.ndarray, targets: np.ndarray) -> float:
    known = ~np.isnan(targets)
    if not known.any():
        return 0.0
    return float(np.logaddexp(0, np.where(targets[known] == 1, -1, 1) * logits[known]).mean())


# ----------------------------------------------------------------------------------------------------------------------
# Fine-tuning
# ----------------------------------------------------------------------------------------------------------------------


def learning_rates(arm: str, changes: Mapping[str, Any]) -> list[float]:
    """Return the learning rates that an arm of `TRAINED_ARMS` tries."""
    found = changes.get("learning_rate", LEARNING_RATES[arm])
    return list(found) if isinstance(found, list | tuple) else [found]


def training_steps(segments: int, changes: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many updates a training of `TRAINED_ARMS` on so many segments has, and the segments of an update."""
    batch = changes.get("per_device_train_batch_size", _BATCH) * changes.get("gradient_accumulation_steps", 1)
    an_epoch = math.ceil(segments / batch)
    if (updates := changes.get("max_steps", -1)) > 0:
        return updates, batch
    if (epochs := changes.get("num_train_epochs")) is not None:
        return math.ceil(epochs * an_epoch), batch
    return max(FEWEST_UPDATES, EPOCHS * an_epoch), batch


class FinetunedArm:
    """
    Fine-tuning, LoRA, or training from random weights, on preprocessed segments ([`Segments`]).

    Fine-tuning and training from random weights change all weights, and differ in their learning rate only. A fifth of
    the training patients chooses the update (and, of several, the learning rate). The model is not trained again with
    them.

    Args:
        kind (`str`): One of `TRAINED_ARMS`.
        model_dir (`str`): The encoder's folder.
        extractor ([`ECGFMFeatureExtractor`]): What segments were made with.
        dataset (`Dataset`): The recordings, for their ids.
        folder (`Path`): For checkpoints; the caller removes it.
        use_cpu (`bool`)
        changes (mapping): Settings of [`FinetuneSettings`] in place of the arm's own. `learning_rate` may be a list to
            choose from.
    """

    def __init__(
        self,
        kind: str,
        model_dir: str,
        extractor: ECGFMFeatureExtractor,
        dataset: "Dataset",
        folder: Path,
        *,
        use_cpu: bool = True,
        changes: Mapping[str, Any] | None = None,
    ):
        self._kind, self._model_dir, self._extractor, self._dataset = kind, model_dir, extractor, dataset
        self._folder, self._use_cpu, self._changes = folder, use_cpu, dict(changes or {})
        self._rates = learning_rates(kind, self._changes)

    def fit(self, data: TrainingData, seed: int) -> Callable[[Segments], np.ndarray]:
        """Return a function from segments to scores; see [`LogisticArm.fit`]."""
        _, share, _ = _targets(data, data.rows)
        fit, choose = _inner_split(data, seed)
        _, _, learnable = _targets(data, fit)
        if not learnable.any():
            return lambda found: np.tile(share, (found.num_recordings, 1))
        own = self._data(data, fit, choose, learnable)
        best: tuple[float, Finetuner] | None = None
        for number, rate in enumerate(self._rates):
            settings = self._settings(rate, seed, self._folder / str(number), len(own.train))
            shutil.rmtree(settings.output_dir or "", ignore_errors=True)
            tuner = Finetuner(settings, data=own, model=self._initial_model(settings, own.names), quiet=True)
            result = tuner.run()
            if not result.finished:
                raise KeyboardInterrupt
            judged = result.metrics.get("auroc_macro", 0.0)
            if best is None or judged > best[0]:
                best = judged, tuner
        assert best is not None, "there is a learning rate"
        trainer = best[1].trainer

        def score(found: Segments) -> np.ndarray:
            scores = np.tile(share, (found.num_recordings, 1))
            unknown = np.full((found.num_recordings, int(learnable.sum())), np.nan, dtype=np.float32)
            _, scores[:, learnable], _ = trainer.recordings_of(_labelled(found, unknown))
            return scores

        return score

    def _settings(self, rate: float, seed: int, folder: Path, segments: int) -> FinetuneSettings:
        updates, _ = training_steps(segments, self._changes)
        model = {**FINETUNED_MODEL, "feature_grad_multiplier": 1.0, **self._changes.get("model", {})}
        if self._kind == "scratch":
            # Convolutions with random weights must be learnt.
            model["feature_grad_multiplier"] = 1.0
        values: dict[str, Any] = {
            "output_dir": str(folder),
            "init_from": self._model_dir,
            "lora": LORA if self._kind == "lora" else {},
            "per_device_train_batch_size": _BATCH,
            "gradient_accumulation_steps": 1,
            **dict.fromkeys(("eval_strategy", "save_strategy"), "steps"),
            **dict.fromkeys(("eval_steps", "save_steps"), 1 / VALIDATIONS),
            "optim": "adamw_torch_fused",
            "weight_decay": 0.01,
            "max_grad_norm": 1.0,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "pos_weight": None,
            "thresholds": "none",
            "calibration": "none",
            "use_cpu": self._use_cpu,
            "seed": derived_seed(seed, "training") % 2**31,
            **self._changes,
            "model": model,
            "max_steps": updates,
            "learning_rate": rate,
        }
        return FinetuneSettings(**values)

    def _initial_model(self, settings: FinetuneSettings, names: Sequence[str]) -> ECGFMForMultiLabelClassification:
        model = build_classifier(settings, names)
        if self._kind != "scratch":
            return model
        torch.manual_seed(derived_seed(settings.seed, "scratch"))
        return ECGFMForMultiLabelClassification(copy.deepcopy(model.config)).train()

    def _data(
        self,
        data: TrainingData,
        fit: np.ndarray,
        choose: np.ndarray,
        learnable: np.ndarray,
    ) -> FinetuneData:
        segments: list[LabelledSegments] = []
        datasets: dict[str, Dataset] = {}
        rows: dict[str, np.ndarray] = {}
        for split, own in (("train", fit), ("valid", choose)):
            targets = data.targets[own][:, learnable].astype(np.float32)
            known = ~np.isnan(targets).all(axis=1)
            segments.append(_labelled(data.inputs[own[known]], targets[known]))
            datasets[split] = self._dataset.select(own[known])
            rows[split] = np.arange(int(known.sum()))
        valid = segments[1].targets
        return FinetuneData(
            tuple(name for name, is_learnable in zip(data.table.label_names, learnable, strict=True) if is_learnable),
            "multi_label_classification",
            segments[0],
            segments[1],
            datasets=datasets,
            rows=rows,
            can_choose=bool(((valid == 1).any(axis=0) & (valid == 0).any(axis=0)).any()),
            feature_extractor=self._extractor,
        )


def _labelled(segments: Segments, targets: np.ndarray) -> LabelledSegments:
    return LabelledSegments(segments, targets)  # type: ignore[arg-type]  # they have what it uses of ModelInputs


__all__ = [
    "ARMS",
    "EPOCHS",
    "FEWEST_UPDATES",
    "LORA",
    "NEEDS",
    "TRAINED_ARMS",
    "VALIDATIONS",
    "WITH_ENCODER",
    "AttentionArm",
    "FinetunedArm",
    "LogisticArm",
    "learning_rates",
    "training_steps",
]
