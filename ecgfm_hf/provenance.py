"""
What is known of a model's weights, noted beside them at the time: `model_facts.json`.

    {"format": 1, "steps": [{"step": "conversion", ...}, {"step": "fine-tuning", ...}]}

A step is what was done to the weights, in order; what they began from comes first. The file may be shared: it holds no
paths, no names of hosts or users, no ids, and no counts of few patients. Model cards are made from it.
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .utils.errors import ECGFMError
from .utils.redaction import find_paths

if TYPE_CHECKING:
    import torch

FACTS_FILE = "model_facts.json"
# Of weights that nothing is known of.
UNKNOWN = "unknown"
_FORMAT = 1


class ModelFactsError(ECGFMError, ValueError):
    """A `model_facts.json` that cannot be read. The message names it."""


def add_step(
    model_dir: str | Path, step: str, facts: Mapping[str, Any], *, began_from: str | Path | None = None
) -> Path:
    """
    Notes the last thing that was done to the weights in a folder.

    Args:
        model_dir (`str` or `Path`): Exists. A note that is there already is replaced.
        step (`str`): Such as `"fine-tuning"`.
        facts (mapping): Plain values. Who writes them sees to it that they may be shared; texts with an absolute path
            are left out all the same.
        began_from (`str` or `Path`, *optional*): The folder of the weights that this began from, whose steps come
            first; one without a note gives a step `"unknown"`. None for random weights, and for conversions.

    Returns:
        `Path`: the file.
    """
    before: list[dict[str, Any]] = []
    if began_from is not None:
        try:
            before = read_steps(began_from)
        except ModelFactsError:
            before = []
        # Hours of training must not be lost to a damaged note of another folder.
        before = before or [{"step": UNKNOWN}]
    content = {"format": _FORMAT, "steps": [*before, {"step": step, **_without_places(facts)}]}
    path = Path(model_dir) / FACTS_FILE
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    scratch.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(scratch, path)
    return path


def read_steps(model_dir: str | Path) -> list[dict[str, Any]]:
    """
    What was done to the weights in a folder, in order; an empty list where there is no note.

    Raises:
        [`ModelFactsError`]: the note is damaged, or of another format.
    """
    path = Path(model_dir) / FACTS_FILE
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        steps = content["steps"]
        if content["format"] != _FORMAT:
            raise ModelFactsError(f"{path} has format {content['format']!r}, expected {_FORMAT}")
        if not isinstance(steps, list) or not all(isinstance(step, dict) and "step" in step for step in steps):
            raise ModelFactsError(f"{path} is damaged: its steps are no list of mappings with a key 'step'")
    except ModelFactsError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFactsError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    return steps


def _without_places(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_places(one) for key, one in value.items() if not _is_place(one)}
    if isinstance(value, list | tuple):
        return [_without_places(one) for one in value if not _is_place(one)]
    return value


def _is_place(value: Any) -> bool:
    return isinstance(value, os.PathLike) or (isinstance(value, str) and any(find_paths(value)))


def splits_of(steps: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str, Mapping[str, Any]]]:
    """Each step, use (`"train"`, `"valid"`) and facts of the recordings that were used."""
    for step in steps:
        for use, facts in ((step.get("data") or {}).get("splits") or {}).items():
            yield step, use, facts


def labels_of_few(steps: Sequence[Mapping[str, Any]], label_names: Sequence[str]) -> list[str]:
    """
    Labels of whose training recordings, in the last step, some count is withheld. Nor may their `pos_weight` be told: a
    quotient of counts, with all its digits, gives them away.
    """
    few = set()
    for _, use, facts in splits_of(steps[-1:]):
        counts = facts.get("labels")
        if use != "train":
            continue
        if counts is None:
            # Of so few patients nothing is told by label.
            few |= set(label_names) if isinstance(facts.get("recordings"), str) else set()
        else:
            few |= {name for name, of in counts.items() if any(isinstance(number, str) for number in of.values())}
    return [name for name in label_names if name in few]


def num_updates(steps: Sequence[Mapping[str, Any]]) -> int | None:
    """
    Return the training updates of a model's weights so far, as fairseq-signals counts them.

    Continued pretraining counts on; fine-tuning counts anew. The Gumbel temperature depends on the count.

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
        if step["step"] != "pretraining":
            return total
    return total if steps and steps[0]["step"] == "pretraining" else None


def versions(*packages: str) -> dict[str, str]:
    """Python's version, this package's, and those of others."""
    return {name: version(name) for name in ("ecgfm-hf", *packages)} | {"python": platform.python_version()}


def hardware(device: "torch.device", processes: int = 1) -> dict[str, Any]:
    """What is computed on: the kind of processor, never the machine's name."""
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
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(model_dir: str | Path) -> str | None:
    """
    SHA-256 that tells a folder's weights from others: of its one safetensors file, or of the digests of several, by
    name. None where there is none, as of a Hub repository's name.
    """
    files = sorted(Path(model_dir).glob("*.safetensors")) if Path(model_dir).is_dir() else []
    if len(files) < 2:
        return file_digest(files[0]) if files else None
    lines = "".join(f"{file_digest(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def told_settings(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Those of a run's settings that may be told, by name: which others there are or come to be does not matter."""
    return {name: settings[name] for name in names}


__all__ = [
    "FACTS_FILE",
    "UNKNOWN",
    "ModelFactsError",
    "add_step",
    "file_digest",
    "hardware",
    "labels_of_few",
    "num_updates",
    "read_steps",
    "splits_of",
    "told_settings",
    "versions",
    "weights_digest",
]
