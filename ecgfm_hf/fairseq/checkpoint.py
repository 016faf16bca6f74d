"""
Opening fairseq-signals checkpoints without running anything that is in them.

A `.pt` file is a pickle, that is, a program. torch's restricted unpickler (`weights_only=True`) refuses every import
that is not on its list. Checkpoints need a few more names: numpy arrays sit among the validation meters of fine-tuned
files, and old files keep their settings in an `argparse.Namespace`. Handing torch the real numpy functions would let a
file write dtype states and raw memory of its choosing into numpy objects. So those names are bound to inert
stand-ins, which only keep what they are given; plain numbers are decoded from there, and only where they are wanted.
"""

import _compat_pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ..utils.errors import ECGFMError

_MAX_NESTING = 20
_MAX_SETTINGS = 100_000
_MAX_SCANNED_BYTES = 64 * 2**20
_UNPICKLER_VERDICT = re.compile(r"GLOBAL (\S+?) (?:was not an allowed|whose module)")
_PLAIN_NUMBERS = re.compile(r"[biuf][1248]")


class CheckpointError(ECGFMError, ValueError):
    """A checkpoint that cannot be read, or not be converted faithfully. The message names the file and the reason."""


@dataclass(frozen=True)
class FairseqCheckpoint:
    """
    What conversion needs of a fairseq-signals checkpoint; nothing else of the file is kept.

    Args:
        path (`Path`): The file.
        tensors (`dict[str, torch.Tensor]`): Its state dict, on the CPU, names and dtypes as stored.
        model_cfg, criterion_cfg, task_cfg (`dict[str, Any]`):
            Settings as plain Python values (numbers, strings, lists, dicts, `None`); empty where the file has none.
        settings_name (`str`): Where they were found, `"cfg.model"` or `"args"`; empty where the file has none.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    model_cfg: dict[str, Any] = field(default_factory=dict)
    criterion_cfg: dict[str, Any] = field(default_factory=dict)
    task_cfg: dict[str, Any] = field(default_factory=dict)
    settings_name: str = ""


def load_fairseq_checkpoint(path: str | Path) -> FairseqCheckpoint:
    """
    Opens a checkpoint that fairseq-signals wrote, pretrained or fine-tuned, in torch's zip or in its older format.

    Args:
        path (`str` or `Path`): The `.pt` file.

    Returns:
        [`FairseqCheckpoint`]

    Raises:
        `FileNotFoundError`: there is no such file.
        `CheckpointError`: the file is not a checkpoint, is damaged, lacks `model`, has weights that are not finite
            numbers, or wants to import something that weights do not need. Nothing in it is run in any case.
    """
    path = Path(path)
    is_zip = _check_container(path)
    content = _unpickle(path, is_zip)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} is not a fairseq-signals checkpoint: it holds a {type(content).__name__}, no dict"
        )
    if "model" not in content:
        keys = ", ".join(_show(str(key)) for key in list(content)[:8])
        bare = content and all(isinstance(value, torch.Tensor) for value in content.values())
        hint = "; it looks like a bare state dict, without the settings that conversion needs" if bare else ""
        raise CheckpointError(f"{path} is not a fairseq-signals checkpoint: it has no 'model' (found: {keys}){hint}")
    tensors = _state_dict(path, content["model"])
    return FairseqCheckpoint(path, tensors, **_settings(path, content))


def _check_container(path: Path) -> bool:
    """Whether the file is a zip archive; raises [`CheckpointError`] for what is certainly no checkpoint."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; give the checkpoint file (.pt) itself")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
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
        raise CheckpointError(f"{path} is a safetensors file; conversion starts from fairseq-signals' own .pt file")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file it points to; run `git lfs pull`")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise CheckpointError(f"{path} is a web page, not a checkpoint; the download went wrong")
    raise CheckpointError(f"{path} is not a PyTorch checkpoint: it begins with {head[:12]!r}")


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
                    f"{path} was compressed again after torch.save wrote it; unpack it and zip it stored"
                )
            # torch does not compare checksums when it reads, so a flipped bit would silently become another weight.
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged or cut short: {error}") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of {_show(damaged)} does not match its content")


class _StoredArray:
    """Stands in for `numpy.ndarray` and numpy scalars while a file is read: keeps the state, interprets nothing."""

    state: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def numbers(self) -> Any:
        """Its values as (nested) Python numbers; `None` for anything but a consistent array of plain numbers."""
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
        """A numpy dtype name with its byte order, `None` for anything but plain numbers."""
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
_STAND_INS = {
    "numpy.core.multiarray._reconstruct": _stored_array,
    "numpy._core.multiarray._reconstruct": _stored_array,
    "numpy.core.multiarray.scalar": _stored_scalar,
    "numpy._core.multiarray.scalar": _stored_scalar,
    "numpy.ndarray": _StoredArray,
    "numpy.dtype": _StoredDtype,
    "argparse.Namespace": _StoredNamespace,
}


def _unpickle(path: Path, is_zip: bool) -> Any:
    # Whatever else the process has allowed for its own files is not allowed here.
    allowed_elsewhere = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        torch.serialization.add_safe_globals([(stand_in, name) for name, stand_in in _STAND_INS.items()])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Mapped into memory, the optimizer's state (two thirds of a training file) is never read.
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a hostile or damaged pickle can make the unpickler raise anything
        raise _explained(path, is_zip, error) from error
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed_elsewhere)


def _explained(path: Path, is_zip: bool, error: Exception) -> CheckpointError:
    verdict = _UNPICKLER_VERDICT.search(str(error))
    imports = {name for name in _imports(path, is_zip) if not _is_harmless(name)}
    if verdict is not None:
        imports.add(_qualified(verdict.group(1)))
    if imports:
        shown = ", ".join(_show(name) for name in sorted(imports)[:6]) + (", ..." if len(imports) > 6 else "")
        return CheckpointError(
            f"{path} was refused: opening it would import {shown}. Weights and settings need no such thing, and "
            "importing it could run code of the file's author. Reading stopped there; nothing in the file was run. If "
            "you trust where it comes from, open it where it was written, and save it again with only 'model' and a "
            "plain dict 'cfg'."
        )
    reason = _show(str(error).strip().partition("\n")[0][:200])
    if is_zip:
        return CheckpointError(f"{path} cannot be read as a checkpoint: {type(error).__name__}: {reason}")
    return CheckpointError(
        f"{path} cannot be read as a checkpoint: it is a bare pickle, or torch's older format, damaged "
        f"({type(error).__name__}: {reason})"
    )


def _qualified(name: str) -> str:
    # torch leaves `builtins.` out of what it prints.
    return name if "." in name else f"builtins.{name}"


def _is_harmless(name: str) -> bool:
    return name in _STAND_INS or name == "_codecs.encode" or name.startswith(("torch.", "collections."))


def _imports(path: Path, is_zip: bool) -> Iterator[str]:
    """Everything that the file's pickles name for import, read off the opcodes without executing them."""
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
        # The opcodes only explain a refusal that has already happened; after damage there is no more to say.
        return


def _show(text: str) -> str:
    """Text from an untrusted file, without control characters that could drive a terminal."""
    shown = "".join(char if char.isprintable() else "?" for char in text)
    return shown if len(shown) <= 200 else shown[:200] + "..."


def _state_dict(path: Path, model: Any) -> dict[str, torch.Tensor]:
    if not isinstance(model, (dict, OrderedDict)) or not model:
        raise CheckpointError(f"{path}: 'model' is no state dict, found: {type(model).__name__} of length 0 or no dict")
    tensors = {}
    for name, tensor in model.items():
        if not isinstance(name, str) or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise CheckpointError(
                f"{path}: 'model' holds {_show(repr(name))} of type {type(tensor).__name__}, no tensor"
            )
        tensor = tensor.detach()
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(f"{path}: tensor {_show(name)} is not an ordinary dense tensor")
        # A view with strides of 0 can claim any size; copying it would fill the memory.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: tensor {_show(name)} claims {tensor.numel()} values, but stores fewer")
        if not tensor.is_floating_point():
            raise CheckpointError(f"{path}: tensor {_show(name)} is of type {tensor.dtype}; weights are floating point")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: tensor {_show(name)} holds NaN or infinity; the training had diverged")
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
    return tensors


def _settings(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    cfg, args = content.get("cfg"), content.get("args")
    try:
        if cfg is not None:
            sections = _plain({"cfg": _section(cfg)})["cfg"]
            if isinstance(sections.get("model"), dict):
                named = {f"{name}_cfg": _section(sections.get(name)) for name in ("model", "criterion", "task")}
                return {**named, "settings_name": "cfg.model"}
        if args is not None:
            flat = _plain({"args": _section(args)})["args"]
            if flat:
                # The old command line had one namespace for all sections, and called the model `arch`.
                name = flat.get("_name") or flat.get("arch")
                criterion = {**flat, "_name": flat.get("criterion")}
                return {
                    "model_cfg": {**flat, "_name": name},
                    "criterion_cfg": criterion,
                    "task_cfg": {**flat, "_name": flat.get("task")},
                    "settings_name": "args",
                }
    except _TooDeep:
        raise CheckpointError(f"{path}: its settings are nested too deeply or too many to be a configuration") from None
    return {}


def _section(value: Any) -> Any:
    if isinstance(value, _StoredNamespace):
        value = value.state
    return value if isinstance(value, dict) else {}


class _TooDeep(Exception):
    pass


def _plain(value: Any) -> Any:
    """Numbers, strings, lists and dicts; anything else becomes `None`. Bounded, since a pickle can hold cycles."""
    budget = _MAX_SETTINGS

    def walk(value: Any, depth: int) -> Any:
        nonlocal budget
        budget -= 1
        if depth > _MAX_NESTING or budget < 0:
            raise _TooDeep
        if isinstance(value, _StoredNamespace):
            value = _section(value)
        if isinstance(value, (dict, OrderedDict)):
            return {key: walk(item, depth + 1) for key, item in value.items() if isinstance(key, str)}
        if isinstance(value, (list, tuple)):
            return [walk(item, depth + 1) for item in value]
        if isinstance(value, _StoredArray):
            return value.numbers()
        if isinstance(value, torch.Tensor):
            return value.tolist() if value.numel() <= 4096 and value.layout == torch.strided else None
        return value if value is None or type(value) in (bool, int, float, str) else None

    return walk(value, 0)
