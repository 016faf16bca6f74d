"""
Checkpoints of fairseq-signals, opened without running anything in them.

A `.pt` file is a pickle, that is, a program. torch's restricted unpickler (`weights_only=True`) refuses every import
that is not on its list. Checkpoints need a few more names: fine-tuned files hold numpy arrays in their validation
metrics, and old files keep their settings in an `argparse.Namespace`. With the real numpy functions, a file could write
any dtype state and any memory into numpy objects. These names are therefore bound to inert stand-ins, which only store
their arguments. Plain numbers are decoded from the stand-ins, and only where a setting needs them.

`conv_feature_layers` is Python source text in the file: it is parsed, never evaluated.
"""

import _compat_pickle
import ast
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ..utils.errors import ECGFMError, InputNotFoundError

# Key of an exported file for what fairseq-signals' own files do not contain.
OWN_KEY = "ecgfm_hf"
_TRAINING_SECTIONS = ("optimization", "lr_scheduler")
TRAINING_KEYS = ("last_optimizer_state", "optimizer_history", "extra_state")
_MAX_CONV_LAYERS = 64
_WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MAX_NESTING = 20
_MAX_SETTINGS = 100_000
_MAX_SCANNED_BYTES = 64 * 2**20
_UNPICKLER_VERDICT = re.compile(r"GLOBAL (\S+?) (?:was not an allowed|whose module)")
_PLAIN_NUMBERS = re.compile(r"[biuf][1248]")


class CheckpointError(ECGFMError, ValueError):
    """
    A checkpoint or model folder that cannot be read, or cannot be converted without changing what the model computes.

    The message names the file and the reason.
    """


@dataclass(frozen=True)
class FairseqCheckpoint:
    """
    The content of a fairseq-signals checkpoint that conversion uses.

    Args:
        path: The file.
        tensors: Its state dict, on the CPU, names and dtypes as stored.
        model_cfg, criterion_cfg, task_cfg:
            Settings as plain Python values (numbers, strings, lists, dicts, `None`); empty if the file has none.
        settings_name: Where the settings were found, `"cfg.model"` or `"args"`; empty if the file has none.
        num_updates: Training updates so far (`optimizer_history[-1]["num_updates"]`); `None` if the file has no count.
        feature_extractor, trainer_state: Settings of the feature extractor, and counters of the run, in files that this
            package exported.
        training_cfg: Settings of the training, by section.
        training_state: What the file has of `TRAINING_KEYS`, unchecked; its tensors are read from the file when used.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    model_cfg: dict[str, Any] = field(default_factory=dict)
    criterion_cfg: dict[str, Any] = field(default_factory=dict)
    task_cfg: dict[str, Any] = field(default_factory=dict)
    settings_name: str = ""
    num_updates: int | None = None
    feature_extractor: dict[str, Any] = field(default_factory=dict)
    trainer_state: dict[str, Any] = field(default_factory=dict)
    training_cfg: dict[str, dict[str, Any]] = field(default_factory=dict)
    training_state: dict[str, Any] = field(default_factory=dict, repr=False)


def load_fairseq_checkpoint(path: str | Path) -> FairseqCheckpoint:
    """
    Read a checkpoint of fairseq-signals, pretrained or fine-tuned, in torch's zip format or in its older one.

    Nothing in the file is run.

    Args:
        path: The `.pt` file.

    Raises:
        `InputNotFoundError`: there is no such file.
        `CheckpointError`: the file is not a checkpoint, is damaged, has no `model`, has weights that are not finite
            numbers, or would import something that weights do not need.
    """
    path = Path(path)
    is_zip = _check_container(path)
    content = _unpickle(path, is_zip)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} is not a fairseq-signals checkpoint: it holds a {type(content).__name__}, expected a dict"
        )
    if "model" not in content:
        keys = ", ".join(_show(str(key)) for key in list(content)[:8])
        bare = content and all(isinstance(value, torch.Tensor) for value in content.values())
        hint = "; it looks like a bare state dict without settings, which conversion needs" if bare else ""
        raise CheckpointError(f"{path} is not a fairseq-signals checkpoint: it has no 'model' (found: {keys}){hint}")
    tensors = _state_dict(path, content["model"])
    return FairseqCheckpoint(
        path,
        tensors,
        **_settings(path, content),
        num_updates=_num_updates(content),
        training_state={key: content[key] for key in TRAINING_KEYS if content.get(key) is not None},
    )


def _check_container(path: Path) -> bool:
    """Return whether the file is a zip archive. Raise [`CheckpointError`] for a file that cannot be a checkpoint."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; give the checkpoint file (.pt)")
    if not path.is_file():
        raise InputNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(f"{path} is empty")
    if head.startswith(b"PK\x03\x04"):
        _check_archive(path)
        return True
    if head.startswith(b"\x80"):
        return False
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < path.stat().st_size:
        raise CheckpointError(f"{path} is a safetensors file; expected the .pt file that fairseq-signals wrote")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file it points to; run `git lfs pull`")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise CheckpointError(f"{path} is a web page, not a checkpoint; download the file again")
    raise CheckpointError(f"{path} is not a PyTorch checkpoint: it starts with {head[:12]!r}")


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename.rpartition("/")[2] for entry in entries]
            if "constants.pkl" in names:
                raise CheckpointError(f"{path} is a TorchScript archive (a program), not a checkpoint of weights")
            if "data.pkl" not in names:
                raise CheckpointError(f"{path} is a zip archive, but not one that torch.save wrote")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise CheckpointError(
                    f"{path} was compressed again after torch.save wrote it; unpack it and zip it without compression"
                )
            # torch does not compare checksums: a flipped bit would silently change a weight.
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged or cut short: {error}") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of {_show(damaged)} does not match its content")


class _StoredArray:
    """Stands in for `numpy.ndarray` and numpy scalars while a file is read: stores the state, interprets nothing."""

    state: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def numbers(self) -> Any:
        """Return the values as (nested) Python numbers; `None` unless it is a consistent array of plain numbers."""
        if not (isinstance(self.state, tuple) and len(self.state) == 5):
            return None
        _, shape, dtype, fortran, data = self.state
        dtype = dtype.name() if isinstance(dtype, _StoredDtype) else None
        if dtype is None or not isinstance(data, bytes) or not isinstance(shape, tuple):
            return None
        if not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 8:
            return None
        values = np.frombuffer(data, dtype=dtype) if len(data) % np.dtype(dtype).itemsize == 0 else np.empty(0)
        if values.size != int(np.prod(shape, dtype=object)) or values.size > _MAX_SETTINGS:
            return None
        return values.reshape(shape, order="F" if fortran else "C").tolist()


class _StoredDtype:
    """Stands in for `numpy.dtype`."""

    kind: Any = None
    state: Any = None

    def __init__(self, kind: Any = None, *_: Any) -> None:
        self.kind = kind

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def name(self) -> str | None:
        """Return the numpy dtype name with its byte order; `None` unless it is a type of plain numbers."""
        if not isinstance(self.kind, str) or not _PLAIN_NUMBERS.fullmatch(self.kind) or self.kind in ("b2", "b4", "b8"):
            return None
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "="
        name = "?" if self.kind == "b1" else self.kind
        try:
            return np.dtype(f"{order}{name}" if order in ("<", ">") else name).str
        except TypeError:
            return None


class _StoredNamespace:
    """Stands in for `argparse.Namespace`."""

    state: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _stored_array(*_: Any) -> _StoredArray:
    return _StoredArray()


def _stored_scalar(dtype: Any = None, data: Any = b"", *_: Any) -> _StoredArray:
    scalar = _StoredArray()
    scalar.state = (1, (), dtype, False, data)
    return scalar


# `_codecs.encode`, which writes bytes in pickle protocol 2, is on torch's own list.
_STAND_INS: dict[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": _stored_array,
    "numpy._core.multiarray._reconstruct": _stored_array,
    "numpy.core.multiarray.scalar": _stored_scalar,
    "numpy._core.multiarray.scalar": _stored_scalar,
    "numpy.ndarray": _StoredArray,
    "numpy.dtype": _StoredDtype,
    "argparse.Namespace": _StoredNamespace,
}


def _unpickle(path: Path, is_zip: bool) -> Any:
    # What the process allows for its own files is not allowed here.
    allowed_elsewhere = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        torch.serialization.add_safe_globals([(stand_in, name) for name, stand_in in _STAND_INS.items()])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # With memory mapping, the optimizer's state (two thirds of a training file) is never read.
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a hostile or damaged pickle can make the unpickler raise anything
        raise _load_error(path, is_zip, error) from error
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed_elsewhere)


def _load_error(path: Path, is_zip: bool, error: Exception) -> CheckpointError:
    verdict = _UNPICKLER_VERDICT.search(str(error))
    imports = {name for name in _imports(path, is_zip) if not _is_harmless(name)}
    if verdict is not None:
        imports.add(_qualified(verdict.group(1)))
    if imports:
        shown = ", ".join(_show(name) for name in sorted(imports)[:6]) + (", ..." if len(imports) > 6 else "")
        return CheckpointError(
            f"{path} was refused: opening it would import {shown}. Weights and settings do not need this, and the "
            "import could run code of the file's author. Reading stopped there; nothing in the file was run. If you "
            "trust its source, open it where it was written, and save it again with only 'model' and a plain dict "
            "'cfg'."
        )
    reason = _show(str(error).strip().partition("\n")[0][:200])
    if is_zip:
        return CheckpointError(f"{path} cannot be read as a checkpoint: {type(error).__name__}: {reason}")
    return CheckpointError(
        f"{path} cannot be read as a checkpoint: it is a bare pickle, or a damaged file in torch's older format "
        f"({type(error).__name__}: {reason})"
    )


def _qualified(name: str) -> str:
    # torch prints built-in names without `builtins.`.
    return name if "." in name else f"builtins.{name}"


def _is_harmless(name: str) -> bool:
    return name in _STAND_INS or name == "_codecs.encode" or name.startswith(("torch.", "collections."))


def _imports(path: Path, is_zip: bool) -> Iterator[str]:
    """Yield each name that the file's pickles import, read off the opcodes without executing them."""
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(".pkl"):
                    with archive.open(entry) as file:
                        yield from _imports_of_pickle(file)
        return
    with path.open("rb") as file:
        # Magic number, protocol, system, the object, the storages' keys: five pickles, then raw data.
        for _ in range(5):
            yield from _imports_of_pickle(file)


def _imports_of_pickle(file: IO[bytes]) -> Iterator[str]:
    strings: list[str] = []
    try:
        for opcode, argument, position in pickletools.genops(file):
            if position is not None and position > _MAX_SCANNED_BYTES:
                return
            if opcode.name in ("GLOBAL", "INST"):
                module, _, name = str(argument).partition(" ")
                # Protocol 2 writes Python 2's names; this is what they are called now.
                module, name = _compat_pickle.NAME_MAPPING.get(
                    (module, name), (_compat_pickle.IMPORT_MAPPING.get(module, module), name)
                )
                yield f"{module}.{name}"
            elif opcode.name == "STACK_GLOBAL" and len(strings) == 2:
                yield ".".join(strings)
            elif isinstance(argument, str) and "UNICODE" in opcode.name:
                strings = [*strings[-1:], argument]
    except Exception:
        # The opcodes only explain a refusal that has already happened.
        return


def _show(text: str) -> str:
    """Return text of an untrusted file without control characters, which could drive a terminal."""
    shown = "".join(char if char.isprintable() else "?" for char in text)
    return shown if len(shown) <= 200 else shown[:200] + "..."


def _state_dict(path: Path, model: Any) -> dict[str, torch.Tensor]:
    if not isinstance(model, (dict, OrderedDict)) or not model:
        found = "an empty dict" if isinstance(model, dict) else type(model).__name__
        raise CheckpointError(f"{path}: 'model' is {found}, expected a state dict")
    tensors = {}
    for name, tensor in model.items():
        if not isinstance(name, str) or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise CheckpointError(
                f"{path}: {_show(repr(name))} in 'model' is of type {type(tensor).__name__}, expected a tensor"
            )
        tensor = tensor.detach()
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(f"{path}: tensor {_show(name)} is not an ordinary dense tensor")
        # A view with strides of 0 can claim any size; copying it would fill the memory.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: tensor {_show(name)} claims {tensor.numel()} values, but stores fewer")
        if tensor.dtype not in _WEIGHT_TYPES:
            raise CheckpointError(
                f"{path}: tensor {_show(name)} is of type {tensor.dtype}, expected floating point of 16, 32 or 64 bits"
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: tensor {_show(name)} holds NaN or infinity, as after a diverged training")
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
    return tensors


def _settings(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    cfg, args = content.get("cfg"), content.get("args")
    settings: dict[str, Any] = {}
    try:
        own = _plain(_section(content.get(OWN_KEY)))
        settings |= {name: _section(own.get(name)) for name in ("feature_extractor", "trainer_state")}
        if cfg is not None:
            sections = _plain({"cfg": _section(cfg)})["cfg"]
            if isinstance(sections.get("model"), dict):
                named = {f"{name}_cfg": _section(sections.get(name)) for name in ("model", "criterion", "task")}
                settings["training_cfg"] = {name: _section(sections.get(name)) for name in _TRAINING_SECTIONS}
                return {**settings, **named, "settings_name": "cfg.model"}
        if args is not None:
            flat = _plain({"args": _section(args)})["args"]
            if flat:
                # Old files have one namespace for all sections, where the model is called `arch`.
                name = flat.get("_name") or flat.get("arch")
                criterion = {**flat, "_name": flat.get("criterion")}
                return {
                    **settings,
                    "training_cfg": dict.fromkeys(_TRAINING_SECTIONS, flat),
                    "model_cfg": {**flat, "_name": name},
                    "criterion_cfg": criterion,
                    "task_cfg": {**flat, "_name": flat.get("task")},
                    "settings_name": "args",
                }
    except _NoSettings as error:
        raise CheckpointError(f"{path}: its settings {error}") from None
    return settings


def _num_updates(content: Mapping[str, Any]) -> int | None:
    history = content.get("optimizer_history")
    last = history[-1] if isinstance(history, list) and history else None
    count = last.get("num_updates") if isinstance(last, dict) else None
    return count if type(count) is int and 0 <= count < 2**53 else None


def _section(value: Any) -> Any:
    if isinstance(value, _StoredNamespace):
        value = value.state
    return value if isinstance(value, dict) else {}


class _NoSettings(Exception):
    """Settings that cannot be those of a training; the message follows "its settings"."""


def _plain(value: Any) -> Any:
    """
    Return a value as numbers, strings, lists and dicts; anything else becomes `None`.

    Depth and size are limited, since a pickle can hold cycles.
    """
    budget = _MAX_SETTINGS

    def walk(value: Any, depth: int) -> Any:
        nonlocal budget
        budget -= 1
        if depth > _MAX_NESTING or budget < 0:
            raise _NoSettings("are nested too deeply, or too many, for a configuration")
        if isinstance(value, _StoredNamespace):
            value = _section(value)
        if isinstance(value, (dict, OrderedDict)):
            return {key: walk(item, depth + 1) for key, item in value.items() if isinstance(key, str)}
        if isinstance(value, (list, tuple)):
            return [walk(item, depth + 1) for item in value]
        if isinstance(value, _StoredArray):
            return value.numbers()
        if isinstance(value, torch.Tensor):
            if value.is_meta or value.is_quantized:
                raise _NoSettings("hold a tensor without readable values, expected numbers")
            return value.tolist() if value.numel() <= 4096 and value.layout == torch.strided else None
        return value if value is None or type(value) in (bool, int, float, str) else None

    return walk(value, 0)


def parse_conv_feature_layers(value: Any) -> list[tuple[int, int, int]]:
    """
    Parse `conv_feature_layers`, Python source text such as `"[(256, 2, 2)] * 3 + [(512, 2, 2)]"`.

    Only this grammar is read (lists of three-integer tuples, `+`, and `*` by an integer); nothing is evaluated.

    Args:
        value: The text, or the layers as a list.

    Returns:
        `(channels, kernel, stride)` of each layer.

    Raises:
        `CheckpointError`: anything else, or more than 64 layers.
    """
    if isinstance(value, str):
        try:
            if len(value) > 2000:
                raise ValueError("too long")
            layers = _layers(ast.parse(value.strip(), mode="eval").body)
        except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
            raise CheckpointError(f"conv_feature_layers cannot be read: {value[:80]!r} ({error})") from error
    else:
        layers = list(value) if isinstance(value, (list, tuple)) else []
    if not 0 < len(layers) <= _MAX_CONV_LAYERS or not all(_is_layer(layer) for layer in layers):
        raise CheckpointError(
            f"conv_feature_layers must be 1 to {_MAX_CONV_LAYERS} triples (channels, kernel, stride), found: "
            f"{str(value)[:80]!r}"
        )
    return [(channels, kernel, stride) for channels, kernel, stride in layers]


def _layers(node: ast.expr) -> list[Any]:
    if isinstance(node, ast.List):
        return [_triple(item) for item in node.elts]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        layers = _layers(node.left) + _layers(node.right)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left, right = node.left, node.right
        if isinstance(left, ast.Constant):
            left, right = right, left
        times = _integer(right)
        if times > _MAX_CONV_LAYERS:
            raise ValueError(f"{times} repetitions")
        layers = _layers(left) * times
    else:
        raise ValueError("expected a list of tuples, or sums and multiples of such lists")
    if len(layers) > _MAX_CONV_LAYERS:
        raise ValueError("too many layers")
    return layers


def _triple(node: ast.expr) -> tuple[int, ...]:
    if not isinstance(node, (ast.Tuple, ast.List)):
        raise ValueError("a layer must be a tuple")
    return tuple(_integer(item) for item in node.elts)


def _integer(node: ast.expr) -> int:
    if not isinstance(node, ast.Constant) or type(node.value) is not int:
        raise ValueError("only integers are allowed")
    return node.value


def _is_layer(layer: Any) -> bool:
    return isinstance(layer, (list, tuple)) and len(layer) == 3 and all(type(n) is int and 0 < n < 10**6 for n in layer)


__all__ = [
    "OWN_KEY",
    "TRAINING_KEYS",
    "CheckpointError",
    "FairseqCheckpoint",
    "load_fairseq_checkpoint",
    "parse_conv_feature_layers",
]
