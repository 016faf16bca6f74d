"""
Training state of a pretraining: Adam's moments and the counters, between fairseq-signals' files and our checkpoints.

fairseq-signals numbers the states by its parameters' order, which is the order of the file's tensors. Ours are numbered
by the order of the model's parameters. Both are mapped by the tensors' names.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from ..model_folder import OPTIMIZER_FILE, RUN_FILE, SETTINGS_FILE, STATE_FILE
from ..modeling_ecgfm import ECGFMPreTrainedModel
from ..utils.files import write_json
from ..utils.integrity import file_checksum, read_with_digest
from .checkpoint import CheckpointError, FairseqCheckpoint
from .state_dict import convert_state_dict

_MOMENTS = ("exp_avg", "exp_avg_sq")
# Adam's constants in a parameter group, and the settings of a run that they come from.
_GROUP_SETTINGS = {"lr": "learning_rate", "eps": "adam_epsilon", "weight_decay": "weight_decay"}


@dataclass
class RunCounters:
    """
    Where a run is; `trainer_state.json` of a checkpoint. Draws are seeded by their index in the run, so there is no
    random state.

    Args:
        update (`int`): Updates done.
        epoch, update_in_epoch (`int`): Epochs done, and updates done in the current one.
        updates_before (`int`): Of the weights before the run, which the Gumbel temperature counts too.
        best_loss (`float`, *optional*): Least validation loss so far.
    """

    update: int = 0
    epoch: int = 0
    update_in_epoch: int = 0
    updates_before: int = 0
    best_loss: float | None = None


@dataclass(frozen=True)
class TrainingState:
    """
    The training state of a checkpoint.

    Args:
        counters: Where the run is.
        moments: Adam's state by the tensor's name in this package: `exp_avg`, `exp_avg_sq`, `step`. Parameters that no
            gradient reached have none.
        settings: Of the run, by our names, as far as the file contains them.
        missing: What the file does not contain, in words.
    """

    counters: RunCounters
    moments: dict[str, dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


class _NoStateError(Exception):
    """A file without a usable training state; the message names what is missing."""


def read_training_state(source: FairseqCheckpoint) -> TrainingState | str:
    """
    Return the training state of a pretraining checkpoint of fairseq-signals, or why there is none, in words.

    Raises:
        `CheckpointError`: Adam's states do not fit the tensors, or are not finite.
    """
    try:
        group, states = _optimizer(source)
        missing: list[str] = []
        counters = _counters(source, missing)
    except _NoStateError as error:
        return str(error)
    return TrainingState(counters, _moments(source, states), _settings(source, group), tuple(missing))


def _optimizer(source: FairseqCheckpoint) -> tuple[Mapping[str, Any], Mapping[Any, Any]]:
    stored = source.training_state.get("last_optimizer_state")
    groups = stored.get("param_groups") if isinstance(stored, dict) else None
    states = stored.get("state") if isinstance(stored, dict) else None
    if not isinstance(groups, list) or not isinstance(states, dict) or not states:
        raise _NoStateError("the file has no Adam moments (last_optimizer_state)")
    if len(groups) != 1 or not isinstance(groups[0], dict):
        raise _NoStateError(f"its optimizer has {len(groups)} groups of parameters, expected one")
    if source.num_updates is None:
        raise _NoStateError("the file has no number of updates (optimizer_history)")
    return groups[0], states


def _counters(source: FairseqCheckpoint, missing: list[str]) -> RunCounters:
    if source.trainer_state:
        try:
            return RunCounters(**source.trainer_state)
        except TypeError as error:
            raise CheckpointError(f"{source.path}: {STATE_FILE}: {error}") from None
    extra = source.training_state.get("extra_state")
    iterator = extra.get("train_iterator") if isinstance(extra, dict) else None
    found = [iterator.get(name) if isinstance(iterator, dict) else None for name in ("epoch", "iterations_in_epoch")]
    epoch, iterations = (number if type(number) is int and number >= 0 else None for number in found)
    if epoch is None or iterations is None:
        missing.append("the epoch (extra_state.train_iterator): the run continues at the beginning of epoch 1")
        epoch = iterations = 0
    # Its epochs count from 1; iterations are micro-batches.
    steps, rest = divmod(iterations, _accumulation(source))
    if rest:
        missing.append(f"an update from the last {rest} micro-batches, which are trained on again")
    return RunCounters(source.num_updates or 0, max(0, epoch - 1), steps)


def _accumulation(source: FairseqCheckpoint) -> int:
    stated = source.training_cfg.get("optimization", {}).get("update_freq")
    stated = stated[-1] if isinstance(stated, list) and stated else stated
    return stated if type(stated) is int and stated > 0 else 1


def _moments(source: FairseqCheckpoint, states: Mapping[Any, Any]) -> dict[str, dict[str, Any]]:
    names, tensors = list(convert_state_dict(source.tensors)), list(source.tensors.values())
    if len(states) == 1 and len(tensors) > 1:
        states = _unflattened(states, tensors)
    moments: dict[str, dict[str, Any]] = {}
    for index, state in states.items():
        if type(index) is not int or not 0 <= index < len(names) or not isinstance(state, dict):
            raise CheckpointError(f"{source.path}: its optimizer has a state {index!r} without a parameter")
        name, tensor = names[index], tensors[index]
        step = state.get("step")
        step = int(step) if isinstance(step, int | float | torch.Tensor) else None
        if step is None or step < 0:
            raise CheckpointError(f"{source.path}: the optimizer's state of {name} has no number of steps")
        moments[name] = {"step": step}
        for key in _MOMENTS:
            value = state.get(key)
            if not isinstance(value, torch.Tensor) or value.shape != tensor.shape:
                found = tuple(value.shape) if isinstance(value, torch.Tensor) else value
                raise CheckpointError(
                    f"{source.path}: {key} of {name} has shape {found}, expected {tuple(tensor.shape)}: the "
                    "optimizer's states are not in the order of the tensors"
                )
            if not torch.isfinite(value).all():
                raise CheckpointError(f"{source.path}: {key} of {name} holds NaN or infinity")
            moments[name][key] = value.float().contiguous().clone()
    return moments


def _unflattened(states: Mapping[Any, Any], tensors: list[torch.Tensor]) -> Mapping[Any, Any]:
    """Split the state of all parameters in one vector, as fairseq-signals keeps it with fp16."""
    (state,) = states.values()
    total = sum(tensor.numel() for tensor in tensors)
    found = {key: state.get(key) for key in _MOMENTS} if isinstance(state, dict) else {}
    vectors = {key: v for key, v in found.items() if isinstance(v, torch.Tensor) and v.shape == (total,)}
    if len(vectors) < len(_MOMENTS):
        return states
    sizes = [tensor.numel() for tensor in tensors]
    parts = {key: vector.split(sizes) for key, vector in vectors.items()}
    return {
        i: {"step": state.get("step"), **{key: parts[key][i].view(tensor.shape) for key in _MOMENTS}}
        for i, tensor in enumerate(tensors)
    }


def _settings(source: FairseqCheckpoint, group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run's settings by our names, as far as the file has them."""
    scheduler = source.training_cfg.get("lr_scheduler", {})
    settings = {ours: group.get(theirs) for theirs, ours in _GROUP_SETTINGS.items()}
    history = source.training_state.get("optimizer_history")
    last = history[-1] if isinstance(history, list) and history and isinstance(history[-1], dict) else {}
    state = last.get("lr_scheduler_state")
    if isinstance(state, dict) and type(state.get("lr")) is float:
        settings["learning_rate"] = state["lr"]
    betas = group.get("betas")
    if isinstance(betas, tuple | list) and len(betas) == 2:
        settings |= {"adam_beta1": betas[0], "adam_beta2": betas[1]}
    warmup = scheduler.get("warmup_updates")
    if type(warmup) is int and warmup > 0:
        settings |= {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": warmup}
    settings["gradient_accumulation_steps"] = _accumulation(source)
    return {name: value for name, value in settings.items() if type(value) in (int, float, str)}


def save_training_state(state: TrainingState, model: ECGFMPreTrainedModel, folder: Path) -> None:
    """Write a training state beside a model, as pretraining's own checkpoints have it."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    numbered = {
        index: {"step": torch.tensor(float(moments["step"])), "updates": moments["step"]}
        | {key: moments[key] for key in _MOMENTS}
        for index, name in enumerate(names)
        if (moments := state.moments.get(name)) is not None
    }
    settings = state.settings
    group = {theirs: settings[ours] for theirs, ours in _GROUP_SETTINGS.items() if ours in settings}
    if "adam_beta1" in settings:
        group["betas"] = (settings["adam_beta1"], settings["adam_beta2"])
    optimizer = {"state": numbered, "param_groups": [{**group, "params": list(range(len(names)))}]}
    torch.save({"optimizer": optimizer, "scaler": None}, folder / OPTIMIZER_FILE)
    write_json(folder / STATE_FILE, asdict(state.counters))


def load_training_state(model_dir: Path, model: ECGFMPreTrainedModel) -> TrainingState | None:
    """
    Return the training state of a pretraining checkpoint of this package; None where the folder has none.

    Raises:
        `CheckpointError`: its files are damaged, or another engine's than accelerate's own.
    """
    if not (model_dir / STATE_FILE).is_file() or not (model_dir / OPTIMIZER_FILE).is_file():
        return None
    try:
        counters = RunCounters(**json.loads((model_dir / STATE_FILE).read_text(encoding="utf-8")))
        stored = torch.load(model_dir / OPTIMIZER_FILE, map_location="cpu", weights_only=True)["optimizer"]
        (group,), states = stored["param_groups"], stored["state"]
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if len(group["params"]) != len(names):
            raise ValueError(f"{OPTIMIZER_FILE} is of {len(group['params'])} parameters, the model has {len(names)}")
        moments = {
            names[index]: {"step": int(state["step"])} | {key: state[key] for key in _MOMENTS}
            for index, state in states.items()
            if int(state["step"]) > 0  # allocated, but never used
        }
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise CheckpointError(f"{model_dir}: its training state cannot be read: {error}") from error
    settings = {ours: group[theirs] for theirs, ours in _GROUP_SETTINGS.items()}
    settings |= {"adam_beta1": group["betas"][0], "adam_beta2": group["betas"][1]}
    return TrainingState(counters, moments, settings | _settings_of_run(model_dir.resolve().parent))


def _settings_of_run(checkpoints: Path) -> dict[str, Any]:
    """Return settings of the run that wrote these checkpoints; none where they were moved out of its folder."""
    file, run = checkpoints.parent / SETTINGS_FILE, checkpoints / RUN_FILE
    if not file.is_file():
        return {}
    names = ("learning_rate", "lr_scheduler_type", "warmup_steps", "gradient_accumulation_steps")
    try:
        if read_with_digest(run)["settings"] != file_checksum(file):
            raise ValueError("it has changed since the run wrote it")
        stated = yaml.safe_load(file.read_text(encoding="utf-8"))
        return {name: stated[name] for name in names}
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file} or {run} cannot be read ({error}): restore it from a copy") from None


def fairseq_training_state(
    state: TrainingState, names: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """
    Return a training state as fairseq-signals stores it.

    Args:
        state: The training state.
        names: Our tensor names by fairseq-signals' names, in the order of its parameters.

    Returns:
        The entries of the file, sections of `cfg`, and warnings.
    """
    settings, warnings = state.settings, []
    counters, accumulation = state.counters, settings.get("gradient_accumulation_steps")
    if accumulation is None and counters.update_in_epoch:
        warnings.append(
            "the checkpoint is not in its run's folder, so gradient_accumulation_steps is unknown: the position within "
            "the epoch is right for 1 only"
        )
    schedule, warmup = settings.get("lr_scheduler_type", "constant"), settings.get("warmup_steps", 0)
    if schedule not in ("constant", "constant_with_warmup") or 0 < warmup < 1:
        warnings.append(
            f"lr_scheduler_type={schedule} warmup_steps={warmup} has no counterpart; a fixed rate is written"
        )
        warmup = 0
    betas, rate = (settings["adam_beta1"], settings["adam_beta2"]), settings["learning_rate"]
    numbered = {
        index: {key: moments[key] for key in ("step", *_MOMENTS)}
        for index, name in enumerate(names.values())
        if (moments := state.moments.get(name)) is not None
    }
    group = {"lr": rate, "betas": betas, "eps": settings["adam_epsilon"], "weight_decay": settings["weight_decay"]}
    history = {
        "criterion_name": "Wav2Vec2WithCMSCCriterion",
        "optimizer_name": "Adam",
        "lr_scheduler_state": {"lr": rate},
        "num_updates": counters.updates_before + counters.update,
    }
    iterator = {
        "version": 2,
        "epoch": counters.epoch + 1,
        "iterations_in_epoch": counters.update_in_epoch * (accumulation or 1),
        "shuffle": True,
    }
    entries = {
        "optimizer_history": [history],
        "extra_state": {"train_iterator": iterator, "val_loss": None},
        "last_optimizer_state": {
            "state": numbered,
            "param_groups": [{**group, "amsgrad": False, "params": list(range(len(names)))}],
        },
    }
    adam = {"_name": "adam", "adam_betas": str(betas), "adam_eps": group["eps"], "weight_decay": group["weight_decay"]}
    fixed = {"_name": "fixed", "force_anneal": None, "lr_shrink": 0.1, "warmup_updates": int(warmup), "lr": [rate]}
    sections = {
        "optimizer": {**adam, "use_old_adam": False, "lr": [rate]},
        "lr_scheduler": fixed,
        "optimization": {"lr": [rate], "update_freq": [accumulation or 1]},
    }
    return entries, sections, warnings


__all__ = [
    "RunCounters",
    "TrainingState",
    "fairseq_training_state",
    "load_training_state",
    "read_training_state",
    "save_training_state",
]
