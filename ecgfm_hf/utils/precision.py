"""How a model computes: device, number type, compiled or not, evaluation mode, memory. Importing it needs no torch."""

import contextlib
import copy
import ctypes
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from .errors import DeviceNotFoundError

if TYPE_CHECKING:
    import torch
    from transformers.modeling_utils import PreTrainedModel

    ModelT = TypeVar("ModelT", bound=PreTrainedModel)

Precision = Literal["auto", "float32", "bfloat16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
# What torch calls the instructions that multiply matrices in bfloat16: x86's AVX-512 and AMX, Arm's.
_BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
# What torch.compile looks for by itself.
_COMPILERS = ("g++", "clang++", "cl")
# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# Far above any tensor of ours; older versions of glibc take at most 32 MiB for M_MMAP_THRESHOLD.
_LARGE, _LARGEST_IN_OLD_GLIBC = 2**30, 32 * 2**20


def resolve_device(device: "int | str | torch.device | None") -> "torch.device":
    """
    Return a device of this machine. None and -1 are the CPU, another number is a GPU.

    Raises:
        [`DeviceNotFoundError`]: this machine does not have the device, or torch does not have its kind.
    """
    import torch

    if device is None or device == -1:
        return torch.device("cpu")
    try:
        found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except RuntimeError as error:
        raise DeviceNotFoundError(f"device {device!r} is unknown; expected such as cpu, cuda or cuda:1") from error
    if found.type in ("cpu", "meta"):
        return found
    kind = torch.get_device_module(found.type)
    count = kind.device_count() if kind.is_available() else 0
    if (found.index or 0) < count:
        return found
    have = f"has {found.type} devices 0 to {count - 1}" if count else f"has no {found.type} device that torch can use"
    raise DeviceNotFoundError(f"device {device!r}: this machine {have}; device='cpu' is always available")


def computes_bfloat16_well(device: "str | torch.device" = "cpu") -> bool:
    """
    Return whether a device has instructions for bfloat16 products.

    One without them computes bfloat16 too, but no faster than float32 or far slower. False if torch cannot detect them:
    devices other than CPU and CUDA, and a CPU before torch 2.10.
    """
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in _BFLOAT16_INSTRUCTIONS)


def resolve_precision(precision: str, device: "str | torch.device" = "cpu") -> str:
    """
    Return `"float32"`, `"bfloat16"` or `"int8"`: `precision` itself, or what `"auto"` means on this device.

    `"auto"` is bfloat16 where the device computes it well, and float32 elsewhere.

    Raises:
        `ValueError`: an unknown precision; int8 on another device than a CPU.
        `ImportError`: int8 without torchao.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, found: {precision!r}")
    if precision == "auto":
        return "bfloat16" if computes_bfloat16_well(device) else "float32"
    if precision == "int8":
        if str(device).partition(":")[0] != "cpu":
            raise ValueError(f"precision int8 is for a CPU, found the device {device}")
        if importlib.util.find_spec("torchao") is None:
            raise ImportError("precision int8 needs torchao: pip install 'ecgfm-hf[int8]'")
    return precision


def weights_dtype(precision: str, device: "str | torch.device" = "cpu") -> "torch.dtype":
    """Return the number type of the weights of a resolved precision; for int8, of all that is not quantised."""
    import torch

    if precision == "int8":
        precision = resolve_precision("auto", device)
    return getattr(torch, precision)


def with_precision(model: "ModelT", precision: str) -> "ModelT":
    """
    Return the model in a resolved precision: itself if it is in that precision already, else a copy.

    int8 is torchao's: the weights of the encoder layers' linear maps are quantised by output channel, their inputs by
    frame as they come ("dynamic activations"), so that no frame's result depends on the batch. All else keeps
    [`weights_dtype`].

    Raises:
        `ValueError`: a quantised model and another precision.
    """
    if precision == "int8" and is_int8(model):
        return model
    if is_int8(model):
        raise ValueError(f"the model is quantised to int8 and cannot run in {precision}: load it again")
    dtype = weights_dtype(precision, model.device)
    if precision != "int8" and model.dtype == dtype:
        return model
    model = copy.deepcopy(model).to(dtype)  # type: ignore[arg-type]  # transformers' wrapper loses `self`
    if precision == "int8":
        check_fitted = getattr(model, "check_fitted", None)
        if callable(check_fitted):
            check_fitted(before_quantising=True)
        _quantize(model)
    return model


def is_int8(model: "PreTrainedModel") -> bool:
    """Return whether [`with_precision`] or torchao quantised the model's layers."""
    import torch

    return any(type(layer.weight.data) is not torch.Tensor for layer in _linear_maps(model).values())


def with_compiled_layers(model: "ModelT") -> "ModelT":
    """
    Return a copy whose encoder layers are compiled by `torch.compile` at their first run; it shares the weights.

    Only the layers, which take nearly all of the time: convolutions and position embedding have fast ways of their own.
    Compiled code holds the weights and does not follow later changes. Another number of segments compiles again, so
    [`ModelRunner`] fills its last batch up.

    Raises:
        `ValueError`: a model on a CPU, and no C++ compiler.
    """
    if model.device.type == "cpu" and "CXX" not in os.environ and not any(map(shutil.which, _COMPILERS)):
        raise ValueError(f"compiling needs a C++ compiler ({', '.join(_COMPILERS)}), found none")
    weights = {id(weight): weight for weight in (*model.parameters(), *model.buffers())}
    model = copy.deepcopy(model, weights)
    for layer in _encoder_layers(model).children():
        layer.compile(options={"freezing": True})
    return model


@contextlib.contextmanager
def evaluation_mode(model: "torch.nn.Module") -> Iterator[None]:
    """Put the model into `eval()`; afterwards, also after an error, restore the mode of each of its modules."""
    training = [module for module in model.modules() if module.training]
    if training:  # setting the mode of each module takes as long as reading a recording
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def keep_freed_memory() -> bool:
    """
    Ask glibc to keep freed memory instead of returning it to the kernel; for long work on a CPU.

    Otherwise every forward pass returns its large tensors and takes them again, page by page, which costs inference and
    training on a CPU about a fifth of their speed. The process then stays as large as its largest step. The environment
    variables `MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` do the same from outside. `ecgfm predict` calls
    this; importing the package does not.

    Returns:
        Whether it took effect (Linux with glibc only).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    set_mmap = mallopt(_M_MMAP_THRESHOLD, _LARGE) or mallopt(_M_MMAP_THRESHOLD, _LARGEST_IN_OLD_GLIBC)
    return bool(set_mmap) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGE))


def _encoder_layers(model: "PreTrainedModel") -> "torch.nn.Module":
    return model.base_model.get_submodule("encoder.layers")


def _linear_maps(model: "PreTrainedModel") -> "dict[str, torch.nn.Linear]":
    import torch

    modules = _encoder_layers(model).named_modules()
    return {name: module for name, module in modules if isinstance(module, torch.nn.Linear)}


def _quantize(model: "PreTrainedModel") -> None:
    import torch
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    from torchao.utils import should_reduce_range

    config = Int8DynamicActivationInt8WeightConfig(
        version=2,
        # It would change torch's settings of the whole process.
        set_inductor_config=False,
        # Sums of products overflow on processors without VNNI.
        reduce_range=should_reduce_range(torch.device("cpu")),
    )
    quantize_(_encoder_layers(model), config)


__all__ = [
    "PRECISIONS",
    "computes_bfloat16_well",
    "evaluation_mode",
    "is_int8",
    "keep_freed_memory",
    "resolve_device",
    "resolve_precision",
    "weights_dtype",
    "with_compiled_layers",
    "with_precision",
]
