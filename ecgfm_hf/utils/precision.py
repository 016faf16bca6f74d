"""How a model computes: in which number type, and compiled or not. One choice for predictions, embeddings and page."""

import copy
import importlib.util
import os
import shutil

import torch
from transformers.modeling_utils import PreTrainedModel

PRECISIONS = ("auto", "float32", "bfloat16", "int8")
# What torch calls the instructions that multiply matrices in bfloat16: x86's AVX-512 and AMX, Arm's.
_BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")

# What torch.compile looks for by itself.
_COMPILERS = ("g++", "clang++", "cl")


def computes_bfloat16_well(device: str | torch.device = "cpu") -> bool:
    """
    Whether a device has instructions for bfloat16 products. One without them computes bfloat16 too, but no faster than
    float32 or far slower. False where torch cannot tell: devices but CPU and CUDA, and a CPU before torch 2.10.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in _BFLOAT16_INSTRUCTIONS)


def resolve_precision(precision: str, device: str | torch.device = "cpu") -> str:
    """
    `"float32"`, `"bfloat16"` or `"int8"`: `precision`, or what `"auto"` comes to, which is bfloat16 where the device
    computes it well and float32 elsewhere.

    Raises:
        `ValueError`: a precision that there is not; int8 on another device than a CPU.
        `ImportError`: int8 without torchao.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, found: {precision!r}")
    if precision == "auto":
        return "bfloat16" if computes_bfloat16_well(device) else "float32"
    if precision == "int8":
        if torch.device(device).type != "cpu":
            raise ValueError(f"precision int8 is for a CPU, found the device {device}")
        if importlib.util.find_spec("torchao") is None:
            raise ImportError("precision int8 needs torchao: pip install 'ecgfm-hf[int8]'")
    return precision


def weights_dtype(precision: str, device: str | torch.device = "cpu") -> torch.dtype:
    """The number type of the weights of a resolved precision; of int8, of all that is not quantised."""
    if precision == "int8":
        precision = resolve_precision("auto", device)
    return getattr(torch, precision)


def with_precision(model: PreTrainedModel, precision: str) -> PreTrainedModel:
    """
    The model in a resolved precision: itself if it is that already, else a copy.

    int8 is torchao's: the weights of the encoder layers' linear maps by output channel, their inputs by frame as they
    come ("dynamic activations"), so that no frame's result depends on the batch. All else keeps `weights_dtype`.

    Raises:
        `ValueError`: another precision of a model that is quantised.
    """
    if precision == "int8" and is_int8(model):
        return model
    if is_int8(model):
        raise ValueError(f"the model is quantised to int8 and cannot be run in {precision}: load it anew")
    dtype = weights_dtype(precision, model.device)
    if precision != "int8" and model.dtype == dtype:
        return model
    model = copy.deepcopy(model).to(dtype)
    if precision == "int8":
        _quantize(model)
    return model


def is_int8(model: PreTrainedModel) -> bool:
    """Whether `with_precision` or torchao quantised the model's layers."""
    return any(type(layer.weight.data) is not torch.Tensor for layer in _linear_maps(model).values())


def with_compiled_layers(model: PreTrainedModel) -> PreTrainedModel:
    """
    A copy whose encoder layers are compiled by `torch.compile` when they first run; it shares the weights.

    Layers and not the whole: they are nearly all of the time, and convolutions and position embedding have fast ways of
    their own. What is compiled has the weights in it, and does not follow later changes of them. Another number of
    segments compiles anew; [`ModelRunner`] fills its last batch up.

    Raises:
        `ValueError`: a model on a CPU, and no C++ compiler.
    """
    if model.device.type == "cpu" and "CXX" not in os.environ and not any(map(shutil.which, _COMPILERS)):
        raise ValueError(f"compiling needs a C++ compiler ({', '.join(_COMPILERS)}), found none")
    weights = {id(weight): weight for weight in (*model.parameters(), *model.buffers())}
    model = copy.deepcopy(model, weights)
    for layer in model.base_model.encoder.layers:
        layer.compile(options={"freezing": True})
    return model


def _linear_maps(model: PreTrainedModel) -> dict[str, torch.nn.Linear]:
    modules = model.base_model.encoder.layers.named_modules()
    return {name: module for name, module in modules if isinstance(module, torch.nn.Linear)}


def _quantize(model: PreTrainedModel) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    from torchao.utils import should_reduce_range

    config = Int8DynamicActivationInt8WeightConfig(
        version=2,
        # It would change torch's settings of the whole process.
        set_inductor_config=False,
        # Sums of products overflow on processors without VNNI.
        reduce_range=should_reduce_range(torch.device("cpu")),
    )
    quantize_(model.base_model.encoder.layers, config)


__all__ = [
    "PRECISIONS",
    "computes_bfloat16_well",
    "is_int8",
    "resolve_precision",
    "weights_dtype",
    "with_compiled_layers",
    "with_precision",
]
