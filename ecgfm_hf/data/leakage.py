"""
Leaks: whether data that evaluates a model is data that the model has seen.

    MODEL/training_ids.do-not-share.json    digests of the recordings and patients of training and validation

**Never share this file.** Its digests are keyed with a salt, which is in the file because evaluation computes digests
again. Anyone with the file can test whether an id is in it; ids come from small sets (numbers of eight digits), and a
computer tries all of them in minutes. Therefore only its owner can read the file, and `.gitignore` beside it keeps it
(and the run's checkpoints and logs) out of repositories; `huggingface_hub.upload_folder` obeys `.gitignore` too. When
you push in another way, exclude [`NOT_TO_SHARE`].
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.errors import ECGFMError
from ..utils.files import atomic_path, write_text
from ..utils.ids import canonical_id

GUARD_FILE = "training_ids.do-not-share.json"
# May be in a model folder, and must not be shared.
NOT_TO_SHARE = (GUARD_FILE, "checkpoints/", "store/", "metrics.jsonl", "settings.yaml", "finetuning.json")
_FORMAT = 1
_BYTES = 12  # of a million ids, two share a digest with a chance of 1e-17


class LeakError(ECGFMError, ValueError):
    """Evaluation data was used in training or validation. The message counts recordings and patients."""


@dataclass(frozen=True)
class Seen:
    """
    How much of a dataset a model has seen before.

    Args:
        training_recordings, training_patients (`int`): In the data it was trained on.
        validation_recordings, validation_patients (`int`): In the data that
            selected its best update, thresholds or calibration.
    """

    training_recordings: int = 0
    training_patients: int = 0
    validation_recordings: int = 0
    validation_patients: int = 0

    def __bool__(self) -> bool:
        return any(
            (self.training_recordings, self.training_patients, self.validation_recordings, self.validation_patients)
        )

    def __str__(self) -> str:
        return (
            f"{self.training_recordings} recordings and {self.training_patients} patients in training, "
            f"{self.validation_recordings} recordings and {self.validation_patients} patients in validation"
        )


def check_splits(splits: Mapping[str, Any]) -> None:
    """
    Check that no recording and no patient is in two splits. Recordings of unknown patients are compared by id only.

    Args:
        splits (mapping of `str` to `Dataset`): By name; with columns `recording_id` and `patient_id`.

    Raises:
        [`LeakError`]: with counts, for the first two splits that overlap.
    """
    ids = {name: (_known(data["recording_id"]), _known(data["patient_id"])) for name, data in splits.items()}
    names = list(ids)
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            recordings, patients = (len(a & b) for a, b in zip(ids[one], ids[other], strict=True))
            if recordings or patients:
                raise LeakError(
                    f"the splits {one} and {other} share {recordings} recordings and {patients} patients, so figures "
                    "on one would be too good. Split by patient: ecgfm split STORE --by grouped"
                )


def write_training_ids(
    model_dir: str | Path,
    training: tuple[Iterable[str], Iterable[str | None]],
    validation: tuple[Iterable[str], Iterable[str | None]] = ((), ()),
    *,
    began_from: str | Path | None = None,
) -> Path:
    """
    Write what a model has seen to its folder, and a `.gitignore` that keeps the file out of repositories.

    Args:
        model_dir (`str` or `Path`)
        training, validation (pairs of iterables): Recording ids, and patient ids (None where unknown).
        began_from (`str` or `Path`, *optional*): The folder of the model that training started from: what that model
            has seen, this one has too.

    Returns:
        `Path`: the file.
    """
    folder = Path(model_dir)
    folder.mkdir(parents=True, exist_ok=True)
    salt = secrets.token_hex(32)
    parts = [] if began_from is None else list(_read(Path(began_from)) or [])
    part: dict[str, Any] = {"salt": salt}
    for use, (recordings, patients) in (("training", training), ("validation", validation)):
        part[use] = {
            "recordings": sorted(_digest(i, salt, "recording") for i in _known(recordings)),
            "patients": sorted(_digest(i, salt, "patient") for i in _known(patients)),
        }
    every = set().union(*(_known(ids) for use in (training, validation) for ids in use))
    part["any_case"] = sorted({_digest(i.lower(), salt, "any case") for i in every})
    content = {"format": _FORMAT, "warning": "identifies people: never share this file", "parts": [*parts, part]}
    path = folder / GUARD_FILE
    with atomic_path(path, private=True) as scratch:
        scratch.write_text(json.dumps(content), encoding="ascii")
    _ignore(folder)
    return path


def seen(model_dir: str | Path, recording_ids: Sequence[str], patient_ids: Sequence[str | None]) -> Seen | None:
    """
    Return how much of a dataset the model in a folder has seen.

    Returns:
        [`Seen`], which is false where nothing was seen; None where the folder has no such file, as after a download.

    Raises:
        `ValueError`: the file is damaged.
    """
    parts = _read(Path(model_dir))
    if parts is None:
        return None
    found: dict[str, set[str]] = {}
    for part in parts:
        for kind, ids in (("recording", recording_ids), ("patient", patient_ids)):
            digests = {_digest(i, part["salt"], kind): i for i in _known(ids)}
            for use in ("training", "validation"):
                hits = {digests[d] for d in part[use][f"{kind}s"] if d in digests}
                found.setdefault(f"{use}_{kind}s", set()).update(hits)
    return Seen(**{name: len(hits) for name, hits in found.items()})


def seen_ids(model_dir: str | Path, words: Iterable[str]) -> set[str]:
    """
    Return the words that are ids of recordings or patients which the model has seen, in any letter case.

    Raises:
        `ValueError`: the file is damaged.
    """
    parts = [(part["salt"], set(part["any_case"])) for part in _read(Path(model_dir)) or ()]
    return {word for word in words for salt, ids in parts if _digest(word.lower(), salt, "any case") in ids}


def check_training_ids(model_dir: str | Path) -> None:
    """Raise `ValueError` before training where the file of the model to start from is damaged."""
    _read(Path(model_dir))


def _known(ids: Iterable[str | None]) -> set[str]:
    """Return ids as preparation compares them, without unknown ones."""
    return {known for i in ids if (known := canonical_id(i)) is not None}


def _digest(value: str, salt: str, kind: str) -> str:
    return hmac.new(salt.encode(), f"{kind}\0{value}".encode(), hashlib.sha256).digest()[:_BYTES].hex()


def _read(folder: Path) -> list[dict] | None:
    path = folder / GUARD_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="ascii"))
        parts = content["parts"]
        for part in parts:
            part["any_case"]
            for use in ("training", "validation"):
                part["salt"], part[use]["recordings"], part[use]["patients"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    return parts


def _ignore(folder: Path) -> None:
    path = folder / ".gitignore"
    there = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    missing = [line for line in NOT_TO_SHARE if line not in there]
    if missing:
        write_text(path, "\n".join([*there, *missing]) + "\n")


__all__ = [
    "GUARD_FILE",
    "NOT_TO_SHARE",
    "LeakError",
    "Seen",
    "check_splits",
    "check_training_ids",
    "seen",
    "seen_ids",
    "write_training_ids",
]
