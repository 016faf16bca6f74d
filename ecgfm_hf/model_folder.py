"""Model folders: writing one whole, and loading one as a pipeline."""

import os
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from .configuration_ecgfm import ECGFMConfig
from .feature_extraction_ecgfm import ECGFMFeatureExtractor
from .modeling_ecgfm import ECGFMForMultiLabelClassification
from .pipeline_ecgfm import ECGClassificationPipeline
from .utils.precision import resolve_precision, weights_dtype, with_compiled_layers, with_precision


def save_model_folder(
    model: PreTrainedModel, feature_extractor: ECGFMFeatureExtractor, output_dir: str | os.PathLike, **kwargs: Any
) -> None:
    """
    Writes weights (safetensors), config, feature extractor and the code that loads them without this package.

    Args:
        model: Any ECG-FM model.
        feature_extractor: What its inputs are made with; must give as many leads as the model takes.
        output_dir: Created if absent.
        kwargs: For `PreTrainedModel.save_pretrained`.

    Raises:
        `ValueError`: the two disagree about the number of leads.
    """
    _check_leads(model.config, feature_extractor)
    model.save_pretrained(output_dir, **kwargs)
    feature_extractor.save_pretrained(output_dir)


def load_pipeline(
    model_dir: str | os.PathLike,
    *,
    device: int | str | torch.device | None = "cpu",
    precision: str = "float32",
    compile: bool = False,
    dtype: str | torch.dtype | None = None,
    batch_size: int = 8,
    attn_implementation: str | None = None,
    **policies: str,
) -> ECGClassificationPipeline:
    """
    The `ecg-classification` pipeline of a folder or Hub repository, with this package's classes: no remote code runs.

    `transformers.pipeline("ecg-classification", model=...)` would ask for `trust_remote_code=True` as soon as the
    folder says that it brings a pipeline of its own, whether or not this package is installed.

    Args:
        model_dir: Folder or repository with a classifier, its weights and feature extractor.
        device: Where to run; `"cpu"` unless told.
        precision: `"float32"`, as transformers would; `"bfloat16"`, `"int8"` (CPU, needs torchao), or `"auto"`:
            bfloat16 where the device computes it well, else float32, as `ecgfm predict` does.
        compile: Whether to compile the encoder layers; the first recording then takes a minute or so, and again
            wherever another number of segments comes.
        dtype: As in `from_pretrained`, in place of `precision`.
        batch_size: Segments run together.
        attn_implementation: As in `from_pretrained`.
        policies: The feature extractor's `missing_leads`, `nan_samples`, `constant_leads`, `short_recordings`.

    Raises:
        `ValueError`: the folder has no trained classification head, its parts disagree about the number of leads, or
            there is no such precision.
        `ImportError`: int8 without torchao.
        `OSError`: there is no such folder, or it lacks a file.
    """
    if os.fspath(model_dir).startswith((".", os.sep)) and not os.path.isdir(model_dir):
        # transformers would take it for the name of a Hub repository, and complain of its spelling.
        raise FileNotFoundError(f"there is no folder {os.fspath(model_dir)}")
    if dtype is not None and precision != "float32":
        raise ValueError(f"give precision or dtype, not both; found: {precision} and {dtype}")
    place = _as_device(device)
    precision = resolve_precision(precision, place)
    model, loading = ECGFMForMultiLabelClassification.from_pretrained(
        model_dir,
        dtype=weights_dtype(precision, place) if dtype is None else dtype,
        attn_implementation=attn_implementation,
        output_loading_info=True,
    )
    absent = sorted(loading["missing_keys"])
    if absent:
        # transformers would fill them at random and warn.
        raise ValueError(f"{os.fspath(model_dir)} is no trained classifier: its weights lack {', '.join(absent)}")
    feature_extractor = ECGFMFeatureExtractor.from_pretrained(model_dir, **policies)
    _check_leads(model.config, feature_extractor)
    if dtype is None:
        model = with_precision(model, precision)
    if compile:
        model = with_compiled_layers(model)
    return ECGClassificationPipeline(
        model=model.eval(),
        feature_extractor=feature_extractor,
        task="ecg-classification",
        device=device,
        batch_size=batch_size,
    )


def _as_device(device: int | str | torch.device | None) -> torch.device:
    """A device as pipelines take it: -1 is the CPU, another number a GPU."""
    if device is None or device == -1:
        return torch.device("cpu")
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


def _check_leads(config: ECGFMConfig, feature_extractor: ECGFMFeatureExtractor) -> None:
    leads = len(feature_extractor.lead_names)
    if leads != config.num_leads:
        raise ValueError(f"the model takes {config.num_leads} leads, its feature extractor gives {leads}")


__all__ = ["load_pipeline", "save_model_folder"]
