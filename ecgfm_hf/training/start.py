"""The beginning of a pretraining run: model, feature extractor and accelerator from the settings."""

import os
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
from accelerate.utils import GradientAccumulationPlugin
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers.modeling_utils import PreTrainedModel

from ..configuration_ecgfm import ECGFMConfig
from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..modeling_ecgfm import ECGFMForPreTraining
from .masking import derived_seed
from .monitoring import check_trackers
from .settings import PretrainSettings, SettingsError

# Errors for impossible values, of transformers and huggingface_hub.
IMPOSSIBLE = (TypeError, ValueError, StrictDataclassError)
# How accelerate's launcher tells of the engine that its configuration names.
_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": DistributedType.DEEPSPEED,
    "ACCELERATE_USE_FSDP": DistributedType.FSDP,
    "ACCELERATE_USE_MEGATRON_LM": DistributedType.MEGATRON_LM,
}
# What weights do not depend on: may differ from the folder that a run begins from.
_OBJECTIVE = {
    "hidden_dropout",
    "activation_dropout",
    "attention_dropout",
    "feat_proj_dropout",
    "feat_quantizer_dropout",
    "layerdrop",
    "mask_time_prob",
    "mask_time_length",
    "mask_time_min_masks",
    "feature_grad_multiplier",
    "num_negatives",
    "contrastive_logits_temperature",
    "max_gumbel_temperature",
    "min_gumbel_temperature",
    "gumbel_temperature_decay",
    "diversity_loss_weight",
    "feature_penalty_weight",
    "cmsc_loss_weight",
    "cmsc_temperature",
}


def reason_of(error: Exception) -> str:
    """An error's message, without the name of the function that huggingface_hub puts in front of a config's."""
    return str(error.__cause__ if isinstance(error, StrictDataclassClassValidationError) else error)


def build_accelerator(settings: PretrainSettings) -> Accelerator:
    """
    accelerate's object; whatever engine its configuration names.

    Raises:
        [`SettingsError`]: fewer or more processes than `processes` says or the launcher promised, an engine that
            accelerate leaves out, a precision that the device lacks, an unknown tracker.
    """
    check_trackers(settings.trackers)
    # Layers that are skipped at random get no gradient, which DistributedDataParallel must be told to expect.
    skips_layers = float(settings.model.get("layerdrop", 0.0)) > 0
    try:
        accelerator = Accelerator(
            cpu=settings.use_cpu,
            mixed_precision={"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[settings.precision],
            # Batches are cut by us, so accelerate sees no end of a data loader.
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=settings.gradient_accumulation_steps, sync_with_dataloader=False
            ),
            log_with=list(settings.trackers) or None,
            project_dir=settings.output_dir,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=skips_layers)],
        )
    except (ValueError, ImportError) as error:
        raise SettingsError(f"{settings.precision}, use_cpu={settings.use_cpu}: {error}") from None
    if settings.fp16 and accelerator.device.type == "cpu":
        raise SettingsError("fp16=true needs a GPU, found a CPU: use bf16=true, or neither")
    check_processes(accelerator.num_processes, settings.processes, "scripts/pretrain.py")
    _check_engine(accelerator)
    if settings.full_determinism:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return accelerator


def check_processes(found: int, processes: int | None, script: str) -> None:
    """[`SettingsError`] where there are not as many processes as `processes` says or the launcher promised."""
    expected = int(os.environ.get("WORLD_SIZE", "1")) if processes is None else processes
    if found != expected:
        # `accelerate launch --cpu --num_processes 2`, with a configuration that says MULTI_CPU too, runs one process.
        raise SettingsError(
            f"expected {expected} processes, found {found}. `accelerate launch` runs one process on CPUs; several: "
            f"torchrun --standalone --nproc_per_node N {script} ... use_cpu=true"
        )


def _check_engine(accelerator: Accelerator) -> None:
    """[`SettingsError`] where accelerate does without the engine that its configuration names: on CPUs, silently."""
    for variable, engine in _ENGINES.items():
        named = os.environ.get(variable, "false").lower() in ("true", "1")
        if named and accelerator.distributed_type != engine:
            found = f"{accelerator.device.type}, {accelerator.distributed_type.value}"
            raise SettingsError(
                f"accelerate's configuration names {engine.value}, which it does not use here ({found}): take "
                "it out of the configuration, or run on GPUs, without use_cpu=true"
            )


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Has each layer recomputed in the backward pass: less memory, a third more time."""
    # Its newer name; transformers before 5.23 has only the other.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def build_model(
    settings: PretrainSettings, checkpoint: Path | None
) -> tuple[ECGFMForPreTraining, ECGFMFeatureExtractor]:
    """
    Model (float32, in training mode) and feature extractor: from a checkpoint of this run, from `init_from`, or new.

    Raises:
        [`SettingsError`]: `init_from` is no pretraining folder, contradicts `model`; impossible values in `model` or
            `feature_extractor`.
    """
    source = checkpoint if checkpoint is not None else settings.init_from
    if source is None:
        torch.manual_seed(derived_seed(settings.seed, "initialisation"))
        try:
            config = getattr(ECGFMConfig, settings.architecture)(**settings.model)
        except IMPOSSIBLE as error:
            raise SettingsError(f"model: {reason_of(error)}") from None
        model = ECGFMForPreTraining(config)
    else:
        model = _load(Path(source), settings, "init_from: " if checkpoint is None else "")
    try:
        if source is None:
            extractor = ECGFMFeatureExtractor(**settings.feature_extractor)
        else:
            extractor = ECGFMFeatureExtractor.from_pretrained(source, **settings.feature_extractor)
    except (*IMPOSSIBLE, OSError) as error:
        raise SettingsError(f"feature_extractor: {reason_of(error)}") from None
    if len(extractor.lead_names) != model.config.num_leads:
        raise SettingsError(
            f"model.num_leads is {model.config.num_leads}, the feature extractor gives {len(extractor.lead_names)}: "
            "set feature_extractor.lead_names"
        )
    if model.config.mask_time_prob <= 0:
        raise SettingsError("model.mask_time_prob is 0: pretraining masks")
    if settings.gradient_checkpointing:
        checkpoint_activations(model)
    if settings.torch_compile:
        # Most of the work; its shapes never change, while the number of masked frames does.
        model.ecgfm.encoder.compile()
    return model.train(), extractor


def _load(folder: Path, settings: PretrainSettings, where: str) -> ECGFMForPreTraining:
    if not (folder / "config.json").is_file():
        hint = ": `ecgfm convert` makes one of a fairseq-signals checkpoint" if folder.suffix == ".pt" else ""
        raise SettingsError(f"{where}{folder} is no model folder{hint}")
    try:
        config = ECGFMConfig.from_pretrained(folder)
    except (*IMPOSSIBLE, OSError) as error:
        raise SettingsError(f"{where}{folder}: {reason_of(error)}") from None
    for name, value in settings.model.items():
        stored = getattr(config, name)
        stored = list(stored) if isinstance(stored, (list, tuple)) else stored
        if name not in _OBJECTIVE and stored != value:
            raise SettingsError(f"{where}{folder} has {name}={stored!r}, the settings say model.{name}={value!r}")
    try:
        for name in _OBJECTIVE & settings.model.keys():
            setattr(config, name, settings.model[name])
        config.validate()
        model, loading = ECGFMForPreTraining.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (*IMPOSSIBLE, OSError, RuntimeError, SafetensorError) as error:
        raise SettingsError(f"{where}{folder}: {reason_of(error)}") from None
    if absent := sorted(loading["missing_keys"]):
        raise SettingsError(
            f"{where}{folder} is no pretraining model (fine-tuned?): its weights lack {', '.join(absent[:4])}"
        )
    return model


__all__ = ["build_accelerator", "build_model", "check_processes", "checkpoint_activations", "reason_of"]
