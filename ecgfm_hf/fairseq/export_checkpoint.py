"""
From one of this package's model folders back to a checkpoint of fairseq-signals.

What that code asks of a file beside the tensors: its loader opens the last item of `optimizer_history` and
`extra_state.train_iterator`, whatever it is for; fine-tuning from the file replaces `cfg.criterion` and
`cfg.lr_scheduler`, which must be there; and it reads every field of `cfg.model` and `cfg.task`. So all are written,
those that this package has no setting for with the value that does nothing.
"""

import inspect
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..configuration_ecgfm import ECGFMConfig
from ..feature_extraction_ecgfm import STANDARD_LEADS, ECGFMFeatureExtractor
from .checkpoint import CheckpointError, load_fairseq_checkpoint
from .convert import _MODEL_CLASSES, VERIFICATION_TOLERANCE
from .reference import VerificationError, verify_conversion
from .settings import config_from_checkpoint
from .state_dict import ModelKind, revert_state_dict

_CRITERIA = {
    None: "binary_cross_entropy_with_logits",
    "multi_label_classification": "binary_cross_entropy_with_logits",
    "single_label_classification": "cross_entropy",
    "regression": "mse",
}
# Without these the exported model would compute something else, so a loss here is no matter of telling.
_DECIDE_OUTPUTS = (
    *("num_leads", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("layer_norm_eps", "feat_extract_norm", "feat_extract_activation", "conv_dim", "conv_kernel", "conv_stride"),
    *("conv_bias", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "do_stable_layer_norm"),
)
_EXTRACTOR_SETTINGS = ("segment_seconds", "missing_leads", "nan_samples", "constant_leads", "short_recordings")
# What a fairseq-signals run fixes beside the model: nothing of it is known here, or needed to load the file.
_OTHER_SECTIONS = ("common", "common_eval", "distributed_training", "dataset", "optimization", "checkpoint")


@dataclass(frozen=True)
class ExportReport:
    """
    What an export did.

    Args:
        model_dir (`Path`): The folder read.
        output (`Path`, *optional*): The file written; `None` for a dry run.
        model_class (`str`): `"ECGFMForPreTraining"` or `"ECGFMForMultiLabelClassification"`.
        lead_names (`tuple[str, ...]`): Leads of the input, in order.
        num_tensors, num_parameters (`int`)
        not_held (`dict[str, Any]`): What of the folder the format has no place for, by setting: it is lost.
        notes (`tuple[str, ...]`): What else to know about the file.
        differences (`dict[str, float]`, *optional*): With `verify`, as in [`verify_conversion`].
    """

    model_dir: Path
    output: Path | None
    model_class: str
    lead_names: tuple[str, ...]
    num_tensors: int
    num_parameters: int
    not_held: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
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
    Writes a model folder as a fairseq-signals checkpoint, the inverse of [`convert_checkpoint`].

    The file is read back before it takes its place: tensors must come back bit-equal, and the configuration equal in
    all that the format holds. It opens with `torch.load(weights_only=True)` and holds no optimizer state.

    Args:
        model_dir (`str` or `Path`):
            Folder with `config.json`, safetensors weights of `ECGFMForPreTraining` or
            `ECGFMForMultiLabelClassification`, and `preprocessor_config.json`.
        output (`str` or `Path`): The `.pt` file to write.
        old_weight_norm (`bool`, defaults to `False`): For fairseq-signals from before 2025-01-20.
        verify (`bool`, defaults to `False`): Also compare the model's outputs with [`reference_forward`] of the file.
        overwrite (`bool`, defaults to `False`): Replace `output` if it is a checkpoint.
        dry_run (`bool`, defaults to `False`): Do everything but keep the file.

    Returns:
        [`ExportReport`]

    Raises:
        `FileNotFoundError`: no such folder, or it lacks a file.
        `FileExistsError`: `output` is in use.
        `CheckpointError`: the folder holds no such model, or one that fairseq-signals cannot describe.
        `VerificationError`: what was written reads differently. No file is left behind.
    """
    model_dir, output = Path(model_dir), Path(output).absolute()
    _check_output(output, model_dir, overwrite)
    config, leads, ours = _read_folder(model_dir)
    kind: ModelKind = "classification" if "classifier.weight" in ours else "pretraining"
    model = _check_tensors(model_dir, kind, config, ours)
    tensors = revert_state_dict(
        ours, layer_norm_extractor=config.feat_extract_norm == "layer", old_weight_norm=old_weight_norm
    )
    notes = []
    if dtypes := {tensor.dtype for tensor in tensors.values()} - {torch.float32}:
        stored = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        notes.append(f"tensors are written as they are stored, in {stored}; converting back gives float32")
    if config.feat_extract_norm == "layer":
        notes.append("the original crashes on a feature encoder with extractor_mode=layer_norm, which this one has")
    content = {
        "args": None,
        "cfg": fairseq_settings(config, kind, leads, masks=config.mask_time_prob > 0),
        "model": tensors,
        "criterion": None,
        # Whoever trains on starts anew: the optimizer's moments are not in a model folder.
        "optimizer_history": [{"lr_scheduler_state": {}, "num_updates": 0}],
        "task_state": {},
        "extra_state": {
            "train_iterator": {"version": 2, "epoch": 1, "iterations_in_epoch": 0, "shuffle": True},
            "val_loss": None,
        },
        "last_optimizer_state": None,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    try:
        written = work / output.name
        torch.save(content, written)
        lost, more = _read_back(written, output, config, leads, tensors)
        differences = _compare_outputs(output, model.float(), tensors) if verify else None
        if not dry_run:
            _check_output(output, model_dir, overwrite)
            os.replace(written, output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return ExportReport(
        model_dir=model_dir,
        output=None if dry_run else output,
        model_class=type(model).__name__,
        lead_names=leads,
        num_tensors=len(tensors),
        num_parameters=sum(tensor.numel() for tensor in tensors.values()),
        not_held=lost | _extractor_settings(model_dir),
        notes=(*notes, *more),
        differences=differences,
    )


def fairseq_settings(
    config: ECGFMConfig, kind: ModelKind, lead_names: Sequence[str] = STANDARD_LEADS, *, masks: bool
) -> dict[str, Any]:
    """
    `cfg` of a fairseq-signals checkpoint: plain nested dicts.

    Args:
        config ([`ECGFMConfig`])
        kind (`str`): `"pretraining"` or `"classification"`.
        lead_names (sequence of `str`): Leads of the input, in order.
        masks (`bool`): Whether the model has a mask embedding.
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
        # With its own weights in the file, no pretrained checkpoint has to be found first.
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
    # fairseq-signals names leads by their place among the twelve; None takes a file's leads as they are.
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


def _read_folder(folder: Path) -> tuple[ECGFMConfig, tuple[str, ...], dict[str, torch.Tensor]]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give a model folder of this package")
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; give a model folder of this package")
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no weights in safetensors (model.safetensors)")
    try:
        config = ECGFMConfig.from_pretrained(folder)
        leads = tuple(ECGFMFeatureExtractor.from_pretrained(folder).lead_names)
        tensors: dict[str, torch.Tensor] = {}
        for file in files:
            tensors |= load_file(file)
    except (SafetensorError, StrictDataclassError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder} cannot be read as a model folder: {error}") from error
    if len(leads) != config.num_leads:
        raise CheckpointError(f"{folder}: the model takes {config.num_leads} leads, its feature extractor {len(leads)}")
    return config, leads, tensors


def _check_tensors(folder: Path, kind: ModelKind, config: ECGFMConfig, tensors: Mapping[str, torch.Tensor]):
    """The model in eval mode, holding these very tensors."""
    if kind == "pretraining" and "quantizer.codevectors" not in tensors:
        raise CheckpointError(
            f"{folder} holds neither ECGFMForPreTraining nor ECGFMForMultiLabelClassification: its weights have no "
            "quantizer and no classifier, and fairseq-signals has no file for an encoder alone"
        )
    with torch.device("meta"):
        model = _MODEL_CLASSES[kind](config)
    try:
        model.load_state_dict(dict(tensors), strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: its weights do not fit its config.json: {error}") from error
    return model.eval()


def _extractor_settings(folder: Path) -> dict[str, Any]:
    """Settings of the feature extractor that differ from its defaults; the format has none of them."""
    found, usual = ECGFMFeatureExtractor.from_pretrained(folder), ECGFMFeatureExtractor()
    names = ("sampling_rate", *_EXTRACTOR_SETTINGS)
    changed = {name: getattr(found, name) for name in names if getattr(found, name) != getattr(usual, name)}
    return {f"feature extractor's {name}": value for name, value in changed.items()}


def _read_back(
    file: Path, output: Path, config: ECGFMConfig, leads: tuple[str, ...], tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, Any], list[str]]:
    """What the written file does not hold, by setting, and what reading it warns of."""
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
        raise VerificationError(f"{output}: {len(different)} tensors read back differently, such as {different[0]}")
    settings = config_from_checkpoint(read)
    if settings.lead_names != leads:
        raise VerificationError(f"{output}: leads read back as {', '.join(settings.lead_names)}, expected {leads}")
    lost = _lost_settings(config, settings.config, settings.kind == "classification")
    if changed := [f"{name}={lost[name]!r}" for name in _DECIDE_OUTPUTS if name in lost]:
        raise CheckpointError(f"fairseq-signals has no such model: it has no place for {', '.join(changed)}")
    return lost, [warning for warning in settings.warnings if not warning.startswith("no labels were given")]


def _lost_settings(config: ECGFMConfig, back: ECGFMConfig, labelled: bool) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    names = [*inspect.get_annotations(ECGFMConfig), "problem_type", *(["label_names"] if labelled else [])]
    lost = {name: plain(getattr(config, name)) for name in names if getattr(config, name) is not None}
    return {name: value for name, value in lost.items() if value != plain(getattr(back, name)) and value != {}}


def _compare_outputs(output: Path, model: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, float]:
    differences = verify_conversion(model, {name: tensor.float() for name, tensor in tensors.items()})
    if model.config.padding_safe:  # where the two differ by intent
        differences = {name: value for name, value in differences.items() if not name.endswith("_padded")}
    wrong = {name: value for name, value in differences.items() if not value <= VERIFICATION_TOLERANCE}
    if wrong:
        raise VerificationError(f"{output}: its weights compute something else than the model folder: {wrong}")
    return differences


def _check_output(output: Path, model_dir: Path, overwrite: bool) -> None:
    if output.is_dir():
        raise FileExistsError(f"{output} is a folder; give the file to write (.pt)")
    if not output.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{output} exists; choose another name, or allow overwriting (--overwrite)")
    with output.open("rb") as file:
        head = file.read(4)
    if head != b"PK\x03\x04" and head[:1] != b"\x80":
        raise FileExistsError(f"{output} holds something other than a checkpoint; it is not overwritten")
