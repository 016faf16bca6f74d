"""Embeddings of a prepared split, computed once and kept on disk."""

import hashlib
import itertools
import json
import logging
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..configuration_ecgfm import LABEL_FIELDS
from ..data.segments import as_model_inputs
from ..data.store import label_columns
from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..inference.scoring import run_recordings
from ..modeling_ecgfm import ECGFMModel
from ..utils.errors import ECGFMError
from ..utils.precision import resolve_precision

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_CACHE_VERSION = 1


class LinearProbeError(ECGFMError, ValueError):
    """Embeddings or labels that no head can be fitted on. The message names what was found."""


@dataclass(frozen=True)
class Embeddings:
    """
    A split's segments as an encoder sees them.

    Args:
        values (`np.ndarray` (segments, hidden_size) float32): Embeddings, segments of a recording together.
        recordings (`np.ndarray` (segments,) int64): Whose each is, a number in `recording_ids`.
        recording_ids (`list[str]`, length n)
        patient_ids (`list[str | None]`, length n): None where unknown.
        label_names (`tuple[str, ...]`, length L)
        labels (`np.ndarray` (n, L) float64): NaN where unknown.
    """

    values: np.ndarray
    recordings: np.ndarray
    recording_ids: list[str]
    patient_ids: list[str | None]
    label_names: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.recording_ids)

    def segments_of_recordings(self) -> list[slice]:
        """Where in `values` the segments of each recording are."""
        bounds = np.searchsorted(self.recordings, np.arange(len(self) + 1))
        return [slice(first, end) for first, end in itertools.pairwise(bounds)]

    def recording_means(self) -> np.ndarray:
        """(n, hidden_size) float64: the mean of each recording's segments."""
        if not len(self):
            return np.zeros((0, self.values.shape[1]))
        return np.stack([self.values[own].mean(axis=0, dtype=np.float64) for own in self.segments_of_recordings()])

    def take(self, rows: Sequence[int] | np.ndarray) -> "Embeddings":
        """These recordings (numbers, or a boolean mask), in the order given."""
        rows = np.arange(len(self))[np.asarray(rows)]
        segments = self.segments_of_recordings()
        values = [self.values[segments[row]] for row in rows]
        return Embeddings(
            np.concatenate([self.values[:0], *values]),
            np.repeat(np.arange(len(rows)), [len(own) for own in values]),
            [self.recording_ids[row] for row in rows],
            [self.patient_ids[row] for row in rows],
            self.label_names,
            self.labels[rows],
        )


def embed_split(
    model: ECGFMModel,
    feature_extractor: ECGFMFeatureExtractor,
    dataset: "Dataset",
    labels: Sequence[str] | None = None,
    *,
    batch_size: int = 16,
    num_workers: int = 0,
    precision: str = "float32",
    cache_dir: str | os.PathLike | None = None,
    progress: bool = False,
) -> Embeddings:
    """
    Embeds the recordings of one split, once.

    Args:
        model ([`ECGFMModel`]): Where it is, it runs.
        feature_extractor ([`ECGFMFeatureExtractor`]): With the policies for missing leads, NaN and so on.
        dataset (`Dataset`): From `load_prepared(store, split)`.
        labels: Columns, in which order. Defaults to the dataset's label columns.
        batch_size, num_workers, precision, progress: As of `run_recordings`.
        cache_dir: Where embeddings are kept, in a file named after the encoder's weights and settings, the feature
            extractor, the precision and the dataset's fingerprint. What is found there is not computed again.

    Returns:
        [`Embeddings`] of the recordings that the extractor does not refuse, in order of rows.

    Raises:
        [`LinearProbeError`]: a label that the dataset lacks or that holds no numbers; no recording to embed.
    """
    names = tuple(label_columns(dataset.column_names, dataset.features) if labels is None else labels)
    if unknown := [name for name in names if name not in dataset.column_names]:
        raise LinearProbeError(f"the dataset has no label {', '.join(unknown)}")
    path = None
    if cache_dir is not None:
        key = _fingerprint(model, feature_extractor, dataset, resolve_precision(precision, model.device))
        path = Path(cache_dir) / f"embeddings-{key}.npz"
    found = None if path is None else _read_cache(path)
    if found is None:
        inputs = as_model_inputs(dataset, feature_extractor, labels=())
        outputs = run_recordings(
            model,
            inputs,
            batch_size=batch_size,
            num_workers=num_workers,
            precision=precision,
            embeddings=True,
            progress=progress,
        )
        rows, values = [], []
        for output in outputs:
            rows.append(output.row)
            values.append(output.embeddings)
        if not rows:
            raise LinearProbeError(f"none of the {len(dataset)} recordings can be embedded: {inputs.skipped}")
        found = np.concatenate(values), np.repeat(np.array(rows, dtype=np.int64), [len(own) for own in values])
        if path is not None:
            _write_cache(path, *found)
    values, segment_rows = found
    rows, recordings = np.unique(segment_rows, return_inverse=True)
    known = dataset.select_columns(list(dict.fromkeys(("recording_id", "patient_id", *names))))
    known = known.with_format("arrow")[:].take(rows)
    return Embeddings(
        values,
        recordings,
        known["recording_id"].to_pylist(),
        known["patient_id"].to_pylist(),
        names,
        np.stack([_numbers(known, name) for name in names], axis=1) if names else np.zeros((len(rows), 0)),
    )


def _fingerprint(
    model: ECGFMModel, feature_extractor: ECGFMFeatureExtractor, dataset: "Dataset", precision: str
) -> str:
    """Of everything that embeddings depend on. 🤗 datasets' fingerprint is of the files and all that was done since."""
    digest = hashlib.blake2b(digest_size=16)
    settings = {key: value for key, value in model.config.to_dict().items() if key not in LABEL_FIELDS}
    about = [_CACHE_VERSION, precision, dataset._fingerprint, len(dataset), feature_extractor.to_dict(), settings]
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _read_cache(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Values and rows of segments; None where there is no file, or a damaged one, which is told."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["values"], arrays["rows"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s is damaged (%s): embeddings are computed again", path, error)
        return None


def _write_cache(path: Path, values: np.ndarray, rows: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.stem}.{os.getpid()}.partial")
    try:
        with scratch.open("wb") as file:
            np.savez(file, values=values, rows=rows)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def _numbers(table: Any, name: str) -> np.ndarray:
    """A column (rows,) as float64, NaN where it is null."""
    try:
        return table[name].cast("float64").to_numpy()
    except (ValueError, NotImplementedError):
        raise LinearProbeError(f"label {name}: the column holds {table[name].type}, expected numbers") from None


__all__ = ["Embeddings", "LinearProbeError", "embed_split"]
