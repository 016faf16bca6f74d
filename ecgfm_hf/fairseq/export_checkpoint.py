"""
Export of a model folder to a checkpoint of fairseq-signals.

fairseq-signals needs more of a file than tensors. Its loader always opens the last item of `optimizer_history` and
`extra_state.train_iterator`. Fine-tuning replaces `cfg.criterion` and `cfg.lr_scheduler`, which must exist. Every field
of `cfg.model` and `cfg.task` is read. All of these are written; a field without a counterpart in this package gets the
value that has no effect.
"""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..configuration_ecgfm import ECGFMConfig
from ..feature_extraction_ecgfm import POLICIES, STANDARD_LEADS
from ..model_folder import OPTIMIZER_FILE, ModelNotFoundError, load_feature_extractor, load_model
from ..modeling_ecgfm import ECGFMForMultiLabelClassification, ECGFMForPreTraining, ECGFMPreTrainedModel
from ..provenance import ProvenanceError, num_updates, read_steps
from ..utils.errors import OutputExistsError
from ..utils.files import atomic_path, unfinished_folder
from .checkpoint import OWN_KEY, CheckpointError, load_fairseq_checkpoint
from .convert import ConvertedModel
from .published import INPUT_SETTINGS
from .reference import check_differences, verify_conversion
from .settings import config_from_checkpoint
from .state_dict import ModelKind, convert_state_dict, revert_state_dict
from .training_state import fairseq_training_state, load_training_state

_CRITERIA = {
    None: "binary_cross_entropy_with_logits",
    "multi_label_classification": "binary_cross_entropy_with_logits",
    "single_label_classification": "cross_entropy",
    "regression": "mse",
}
# Settings that decide what the model computes: an export that loses one is an error.
_DECIDE_OUTPUTS = (
    *("num_leads", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("layer_norm_eps", "feat_extract_norm", "feat_extract_activation", "conv_dim", "conv_kernel", "conv_stride"),
    *("conv_bias", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "do_stable_layer_norm"),
)
# Sections of a fairseq-signals run without a counterpart here; loading the file does not need them.
_OTHER_SECTIONS = ("common", "common_eval", "distributed_training", "dataset", "optimization", "checkpoint")


@dataclass(frozen=True)
class ExportReport:
    """
    The result of an export.

    Args:
        model_dir: The folder read.
        output: The file written; `None` after a dry run.
        model_class: `"ECGFMForPreTraining"` or `"ECGFMForMultiLabelClassification"`.
        lead_names: Leads of the input, in order.
        num_tensors, num_parameters: How many were written.
        num_updates: Training updates written; `None` if the folder has no count, and 0 was written.
        has_training_state: Whether Adam's moments and the counters were written.
        lost_settings: Settings of the folder that the format cannot hold, by name.
        warnings: For users of the file.
        differences: With `verify`, as in [`verify_conversion`].
    """

    model_dir: Path
    output: Path | None
    model_class: str
    lead_names: tuple[str, ...]
    num_tensors: int
    num_parameters: int
    num_updates: int | None = None
    has_training_state: bool = False
    lost_settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    differences: dict[str, float] | None = None

    @property
    def largest_difference(self) -> float | None:
        """The largest of `differences`; `None` without verification."""
        return None if self.differences is None else max(self.differences.values())


def export_fairseq_checkpoint(
    model_dir: str | Path,
    output: str | Path,
    *,
    old_weight_norm: bool = False,
    verify: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> ExportReport:
    """
    Write a model folder as a fairseq-signals checkpoint, the inverse of [`convert_checkpoint`].

    The file is read back before it replaces `output`: its tensors must be bit-equal, and its configuration equal in all
    that the format can hold. It opens with `torch.load(weights_only=True)`. A checkpoint of pretraining is written with
    its training state; other folders have none.

    Args:
        model_dir: Folder with `config.json`, safetensors weights of `ECGFMForPreTraining` or
            `ECGFMForMultiLabelClassification`, and `preprocessor_config.json`.
        output: The `.pt` file to write.
        old_weight_norm: Use the tensor names of fairseq-signals from before 2025-01-20.
        verify: Also compare the model's outputs with [`reference_forward`] of the file.
        overwrite: Replace `output` if it is a checkpoint.
        dry_run: Do everything, but do not keep the file.

    Raises:
        `ModelFolderError`: there is no such folder, or its files do not make a whole model.
        `OutputExistsError`: `output` holds something that must not be replaced.
        `CheckpointError`: fairseq-signals has no such model, or the file reads differently from what was written.
    """
    model_dir, output = Path(model_dir), Path(output).absolute()
    _check_output(output, overwrite)
    model = _load(model_dir)
    config, extractor = model.config, load_feature_extractor(model_dir, config=model.config)
    leads = tuple(extractor.lead_names)
    kind: ModelKind = "pretraining" if isinstance(model, ECGFMForPreTraining) else "classification"
    # Write the tensors as they are stored; the loaded model's are float32.
    stored: dict[str, torch.Tensor] = {}
    for file in sorted(model_dir.glob("model*.safetensors")):
        stored |= load_file(file)
    tensors = revert_state_dict(
        stored, layer_norm_extractor=config.feat_extract_norm == "layer", old_weight_norm=old_weight_norm
    )
    updates, warnings = _updates(model_dir), []
    state = load_training_state(model_dir, model) if isinstance(model, ECGFMForPreTraining) else None
    if state is not None:
        updates = state.counters.updates_before + state.counters.update
    if kind == "pretraining" and updates is None:
        warnings.append(
            "the folder has no number of updates: 0 is written, and pretraining that continues from the file starts at "
            "the highest Gumbel temperature"
        )
    if kind == "classification" and (model_dir / OPTIMIZER_FILE).is_file():
        warnings.append(
            f"Adam moments of fine-tuning ({OPTIMIZER_FILE}) are not carried over: training that continues from the "
            "file starts with new ones"
        )
    if dtypes := {tensor.dtype for tensor in tensors.values()} - {torch.float32}:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        warnings.append(f"tensors are written as they are stored, in {names}; converting back gives float32")
    if config.feat_extract_norm == "layer":
        warnings.append("fairseq-signals crashes on this model's feature encoder (extractor_mode=layer_norm)")
    content: dict[str, Any] = {
        "args": None,
        "cfg": fairseq_settings(config, kind, leads, masks=config.mask_time_prob > 0),
        "model": tensors,
        "criterion": None,
        # Without a training state, training continues with new moments.
        "optimizer_history": [{"lr_scheduler_state": {}, "num_updates": updates or 0}],
        "task_state": {},
        "extra_state": {
            "train_iterator": {"version": 2, "epoch": 1, "iterations_in_epoch": 0, "shuffle": True},
            "val_loss": None,
        },
        "last_optimizer_state": None,
        # fairseq-signals ignores it; it knows leads as `task.leads_to_load`.
        OWN_KEY: {"feature_extractor": {name: getattr(extractor, name) for name in (*INPUT_SETTINGS, *POLICIES)}},
    }
    if state is not None:
        ours = dict(zip(tensors, convert_state_dict(tensors), strict=True))
        entries, sections, notes = fairseq_training_state(state, ours)
        content |= entries
        content["cfg"] |= sections
        content[OWN_KEY]["trainer_state"] = asdict(state.counters)
        warnings += notes
    output.parent.mkdir(parents=True, exist_ok=True)
    differences = None
    with ExitStack() as stack:
        if dry_run:
            written = stack.enter_context(unfinished_folder(output.parent, output.name)) / output.name
        else:
            written = stack.enter_context(atomic_path(output))
        torch.save(content, written)
        lost, read_warnings = _read_back(written, output, config, leads, tensors)
        if verify:
            differences = verify_conversion(model, {name: tensor.float() for name, tensor in tensors.items()})
            if config.padding_safe:  # differs from fairseq-signals in padded recordings, on purpose
                differences = {name: value for name, value in differences.items() if not name.endswith("_padded")}
            check_differences(differences, f"{output}: its outputs differ from the model folder's")
        _check_output(output, overwrite)
    return ExportReport(
        model_dir=model_dir,
        output=None if dry_run else output,
        model_class=type(model).__name__,
        lead_names=leads,
        num_tensors=len(tensors),
        num_parameters=sum(tensor.numel() for tensor in tensors.values()),
        num_updates=updates,
        has_training_state=state is not None,
        lost_settings=lost,
        warnings=(*warnings, *read_warnings),
        differences=differences,
    )


def fairseq_settings(
    config: ECGFMConfig, kind: ModelKind, lead_names: Sequence[str] = STANDARD_LEADS, *, masks: bool
) -> dict[str, Any]:
    """
    Return `cfg` of a fairseq-signals checkpoint as plain nested dicts.

    Args:
        config: The model's configuration.
        kind: `"pretraining"` or `"classification"`.
        lead_names: Leads of the input, in order.
        masks: Whether the model has a mask embedding.
    """
    layers = zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
    runs = [(layer, len(list(run))) for layer, run in groupby(layers)]
    model = {
        "_name": "wav2vec2_cmsc" if kind == "pretraining" else "ecg_transformer_classifier",
        **{"all_gather": False, "normalize": False, "filter": False, "data": "", "args": None, "saliency": False},
        "encoder_layers": config.num_hidden_layers,
        "encoder_embed_dim": config.hidden_size,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "encoder_attention_heads": config.num_attention_heads,
        "layer_norm_first": config.do_stable_layer_norm,
        "dropout": config.hidden_dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "encoder_layerdrop": config.layerdrop,
        "dropout_input": config.feat_proj_dropout,
        "dropout_features": config.feat_quantizer_dropout,
        **{"apply_mask": masks, "mask_length": config.mask_time_length, "mask_prob": config.mask_time_prob},
        **{"mask_selection": "static", "mask_other": 0.0, "no_mask_overlap": False, "mask_min_space": 1},
        **{"mask_channel_length": 10, "mask_channel_prob": 0.0, "mask_channel_selection": "static"},
        **{"mask_channel_other": 0.0, "no_mask_channel_overlap": False, "mask_channel_min_space": 1},
        "extractor_mode": "layer_norm" if config.feat_extract_norm == "layer" else "default",
        "conv_feature_layers": " + ".join(f"[{layer}]" + (f" * {times}" if times > 1 else "") for layer, times in runs),
        "in_d": config.num_leads,
        "conv_bias": config.conv_bias,
        "feature_grad_mult": config.feature_grad_multiplier,
        "conv_pos": config.num_conv_pos_embeddings,
        "conv_pos_groups": config.num_conv_pos_embedding_groups,
    }
    if kind == "pretraining":
        model |= _pretraining_settings(config)
        criterion = {
            **{"_name": "wav2vec2_with_cmsc", "temp": config.cmsc_temperature, "eps": 1e-8, "all_gather": False},
            **{"infonce": True, "loss_weights": [config.diversity_loss_weight, config.feature_penalty_weight]},
            "log_keys": ["prob_perplexity", "code_perplexity", "temp"],
            "cmsc_weights": config.cmsc_loss_weight,
        }
    else:
        # The file has all weights: fairseq-signals must not look for a pretrained checkpoint.
        model |= {"model_path": None, "no_pretrained_weights": True, "freeze_finetune_updates": 0}
        model |= {"final_dropout": config.final_dropout, "num_labels": config.num_labels}
        criterion = {"_name": _CRITERIA[config.problem_type]}
        if criterion["_name"] == _CRITERIA[None]:
            weights = None if config.pos_weight is None else [float(weight) for weight in config.pos_weight]
            criterion |= {"weight": None, "threshold": 0.5, "report_auc": True, "auc_average": "macro"}
            criterion |= {"pos_weight": weights, "report_cinc_score": False, "weights_file": "???", "per_log_keys": []}
    task = _task_settings(kind, lead_names) | {"criterion_name": criterion["_name"]}
    sections = {"model": model, "task": task, "criterion": criterion, "lr_scheduler": None, "optimizer": None}
    return {"_name": None, **{name: {} for name in _OTHER_SECTIONS}, **sections}


def _pretraining_settings(config: ECGFMConfig) -> dict[str, Any]:
    temperatures = (config.max_gumbel_temperature, config.min_gumbel_temperature, config.gumbel_temperature_decay)
    return {
        "logit_temp": config.contrastive_logits_temperature,
        **{"quantize_targets": True, "quantize_input": False, "same_quantizer": False, "target_glu": False},
        "latent_vars": config.num_codevectors_per_group,
        "latent_groups": config.num_codevector_groups,
        "latent_dim": config.codevector_dim,
        "final_dim": config.proj_codevector_dim,
        "num_negatives": config.num_negatives,
        **{"negatives_from_everywhere": False, "cross_sample_negatives": 0, "codebook_negatives": 0},
        "latent_temp": list(temperatures),
    }


def _task_settings(kind: ModelKind, lead_names: Sequence[str]) -> dict[str, Any]:
    # fairseq-signals names leads by their index among the twelve; None takes all leads of a file.
    leads = None if tuple(lead_names) == STANDARD_LEADS else str([STANDARD_LEADS.index(name) for name in lead_names])
    task = {
        "_name": "ecg_pretraining" if kind == "pretraining" else "ecg_classification",
        **{"data": "", "leads_to_load": leads, "leads_bucket": None, "bucket_selection": "uniform"},
        **{"sample_rate": None, "filter": False, "normalize": False, "mean_path": None, "std_path": None},
        **{"enable_padding": True, "enable_padding_leads": False, "max_sample_size": None, "min_sample_size": None},
        **{"num_batch_buckets": 0, "precompute_mask_indices": False, "perturbation_mode": None, "p": [1.0]},
        **{"max_amplitude": 0.1, "min_amplitude": 0.0, "dependency": True, "shift_ratio": 0.2, "num_segment": 1},
        **{"max_freq": 0.2, "min_freq": 0.01, "k": 3, "mask_leads_selection": "random", "mask_leads_prob": 0.5},
        **{"mask_leads_condition": [4, 5], "inferred_w2v_config": None, "inferred_3kg_config": None},
    }
    labelled = {"path_dataset": False, "label_file": None, "load_specific_lead": False}
    return task if kind == "pretraining" else task | labelled


def _load(model_dir: Path) -> ConvertedModel:
    if not model_dir.is_dir():
        raise ModelNotFoundError(f"{model_dir}: no such folder; give a model folder of this package")
    model: ECGFMPreTrainedModel = load_model(model_dir)
    if not isinstance(model, ECGFMForPreTraining | ECGFMForMultiLabelClassification):
        raise CheckpointError(
            f"{model_dir} holds an encoder without quantizer or classifier, which fairseq-signals has no file for; "
            "expected ECGFMForPreTraining or ECGFMForMultiLabelClassification"
        )
    if isinstance(model, ECGFMForMultiLabelClassification) and model.config.pooling != "mean":
        raise CheckpointError(
            f"{model_dir} has pooling={model.config.pooling!r}, but fairseq-signals' classifier takes the mean over "
            "frames: fine-tune with pooling=mean to export it"
        )
    return model


def _updates(model_dir: Path) -> int | None:
    try:
        return num_updates(read_steps(model_dir))
    except ProvenanceError:
        return None


def _read_back(
    file: Path, output: Path, config: ECGFMConfig, leads: tuple[str, ...], tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, Any], list[str]]:
    """Return the settings that the written file does not hold, by name, and the warnings that reading it gives."""
    read = load_fairseq_checkpoint(file)
    different = [
        name
        for name in tensors.keys() | read.tensors.keys()
        if name not in tensors
        or name not in read.tensors
        or tensors[name].dtype != read.tensors[name].dtype
        or not torch.equal(tensors[name], read.tensors[name])
    ]
    if different:
        raise CheckpointError(f"{output}: {len(different)} tensors read back differently, such as {different[0]}")
    settings = config_from_checkpoint(read)
    if settings.lead_names != leads:
        raise CheckpointError(f"{output}: leads read back as {', '.join(settings.lead_names)}, expected {leads}")
    lost = _lost_settings(config, settings.config, settings.kind == "classification")
    if changed := [f"{name}={lost[name]!r}" for name in _DECIDE_OUTPUTS if name in lost]:
        raise CheckpointError(f"fairseq-signals has no such model: it cannot represent {', '.join(changed)}")
    return lost, [warning for warning in settings.warnings if not warning.startswith("no labels were given")]


def _lost_settings(config: ECGFMConfig, read: ECGFMConfig, labelled: bool) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    names = {*inspect.get_annotations(ECGFMConfig), "problem_type", *(["label_names"] if labelled else [])}
    names -= {"label_fingerprint"}  # no setting: a digest of the weights, which the checkpoint has
    settings = {name: plain(getattr(config, name)) for name in names if getattr(config, name) is not None}
    return {name: value for name, value in settings.items() if value != plain(getattr(read, name)) and value != {}}


def _check_output(output: Path, overwrite: bool) -> None:
    if output.is_dir():
        raise OutputExistsError(f"{output} is a folder; give the file to write (.pt)")
    if not output.exists():
        return
    if not overwrite:
        raise OutputExistsError(f"{output} exists; choose another name, or replace it with overwrite=True")
    with output.open("rb") as file:
        head = file.read(4)
    if head != b"PK\x03\x04" and head[:1] != b"\x80":
        raise OutputExistsError(f"{output} is not a checkpoint, so it is not overwritten")


__all__ = ["ExportReport", "export_fairseq_checkpoint", "fairseq_settings"]
