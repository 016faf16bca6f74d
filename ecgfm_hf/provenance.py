"""
Provenance of a model's weights: `provenance.json` beside them lists what was done to them.

    {"format": 1, "steps": [{"step": "conversion", ...}, {"step": "fine-tuning", ...}]}

Steps are in order, beginning with the steps of the weights that training started from. The file may be shared: it has
no paths, no names of hosts or users, no ids, and no counts of few patients. Model cards are made from it.
"""

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .utils.errors import ECGFMError
from .utils.files import write_json
from .utils.integrity import add_checksum
from .utils.redaction import find_paths

if TYPE_CHECKING:
    import torch

PROVENANCE_FILE = "provenance.json"
# The step of weights without a `provenance.json`.
UNKNOWN = "unknown"
_FORMAT = 1


class ProvenanceError(ECGFMError, ValueError):
    """A `provenance.json` that is damaged or has another format. The message names the file."""


def add_step(
    model_dir: str | Path, step: str, details: Mapping[str, Any], *, began_from: str | Path | None = None
) -> Path:
    """
    Write what was last done to the weights in a folder into its `provenance.json`.

    Args:
        model_dir: An existing folder. A `provenance.json` in it is replaced.
        step: Such as `"fine-tuning"`.
        details: Plain values that may be shared. Texts with an absolute path are left out.
        began_from: The folder of the weights that this step started from, whose steps come first; one without
            provenance gives a step `"unknown"`. None for random weights, and for conversions.

    Returns:
        The file's path.
    """
    before: list[dict[str, Any]] = []
    if began_from is not None:
        # Hours of training must not be lost to a damaged file of another folder.
        with contextlib.suppress(ProvenanceError):
            before = read_steps(began_from)
        before = before or [{"step": UNKNOWN}]
    path = Path(model_dir) / PROVENANCE_FILE
    write_json(path, {"format": _FORMAT, "steps": [*before, {"step": step, **_without_paths(details)}]})
    add_checksum(model_dir, PROVENANCE_FILE)
    return path


def read_steps(model_dir: str | Path) -> list[dict[str, Any]]:
    """
    Return the steps of a folder's `provenance.json`, oldest first; an empty list where there is none.

    Raises:
        [`ProvenanceError`]: the file is damaged, or has another format.
    """
    path = Path(model_dir) / PROVENANCE_FILE
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        steps = content["steps"]
        if content["format"] != _FORMAT:
            raise ProvenanceError(f"{path} has format {content['format']!r}, expected {_FORMAT}")
        if not isinstance(steps, list) or not all(isinstance(step, dict) and "step" in step for step in steps):
            raise ProvenanceError(f"{path} is damaged: its steps are no list of mappings with a key 'step'")
    except ProvenanceError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProvenanceError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    return steps


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_paths(one) for key, one in value.items() if not _is_path(one)}
    if isinstance(value, list | tuple):
        return [_without_paths(one) for one in value if not _is_path(one)]
    return value


def _is_path(value: Any) -> bool:
    return isinstance(value, os.PathLike) or (isinstance(value, str) and any(find_paths(value)))


def splits_of(steps: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str, Mapping[str, Any]]]:
    """Yield each step, use (`"train"`, `"valid"`) and the summary of the recordings that were used."""
    for step in steps:
        for use, summary in ((step.get("data") or {}).get("splits") or {}).items():
            yield step, use, summary


def labels_with_withheld_counts(steps: Sequence[Mapping[str, Any]], label_names: Sequence[str]) -> list[str]:
    """
    Return the labels for which the last step withholds a count of training recordings.

    Their `pos_weight` must be withheld too: a quotient of counts, with all its digits, reveals them.
    """
    few = set()
    for _, use, summary in splits_of(steps[-1:]):
        counts = summary.get("labels")
        if use != "train":
            continue
        if counts is None:
            # With so few patients every count by label is withheld.
            few |= set(label_names) if isinstance(summary.get("recordings"), str) else set()
        else:
            few |= {name for name, of in counts.items() if any(isinstance(number, str) for number in of.values())}
    return [name for name in label_names if name in few]


def num_updates(steps: Sequence[Mapping[str, Any]]) -> int | None:
    """
    Return the training updates of a model's weights so far, as fairseq-signals counts them.

    Continued pretraining counts on; fine-tuning counts from 0. The Gumbel temperature depends on the count.

    Args:
        steps: Of the provenance file, in order.

    Returns:
        None where a step has no count.
    """
    total = 0
    for step in reversed(steps):
        updates = step.get("updates")
        if type(updates) is not int:
            return None
        total += updates
        # Pretraining counts what came before, as its Gumbel temperature does.
        total += step.get("updates_before", 0)
        if step["step"] != "pretraining" or "updates_before" in step:
            return total
    return total if steps and steps[0]["step"] == "pretraining" else None


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of this package, of other packages, and of Python."""
    return {name: version(name) for name in ("ecgfm-hf", *packages)} | {"python": platform.python_version()}


def hardware(device: "torch.device", processes: int = 1) -> dict[str, Any]:
    """Return the kind of processor and the number of processes, never the machine's name."""
    import torch

    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "processes": processes}
    return {"device": f"CPU, {_cpu()}" if device.type == "cpu" else device.type, "processes": processes}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(model_dir: str | Path) -> str | None:
    """
    Return a SHA-256 that identifies a folder's weights, or None where it has none.

    It is the digest of the only safetensors file, or of the digests and names of several files.
    """
    files = sorted(Path(model_dir).glob("*.safetensors")) if Path(model_dir).is_dir() else []
    if len(files) < 2:
        return file_digest(files[0]) if files else None
    lines = "".join(f"{file_digest(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def select_settings(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the settings with these names, which may be shared; others, also later ones, are left out."""
    return {name: settings[name] for name in names}


__all__ = [
    "PROVENANCE_FILE",
    "UNKNOWN",
    "ProvenanceError",
    "add_step",
    "file_digest",
    "hardware",
    "labels_with_withheld_counts",
    "num_updates",
    "read_steps",
    "select_settings",
    "splits_of",
    "versions",
    "weights_digest",
]
