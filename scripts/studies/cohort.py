"""The study's data: cohort, store, pretrained encoder, segments in memory, draws."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ecgfm_hf import ECGFMFeatureExtractor
from ecgfm_hf.data import as_model_inputs, load_prepared

from .settings import Study

SPLITS = ("labelled", "tune", "valid", "test")


@dataclass(frozen=True)
class StudyFolder:
    """The folder of a study. A study that is started again finds its results there."""

    path: Path

    @property
    def store(self) -> Path:
        """What `ecgfm prepare` wrote."""
        return self.path / "store"

    @property
    def pretrained(self) -> Path:
        """The pretrained model."""
        return self.path / "pretrained"

    @property
    def random(self) -> Path:
        """The same before its first update."""
        return self.path / "random"

    @property
    def cells(self) -> Path:
        """Results of training runs."""
        return self.path / "cells"

    def segments(self, split: str) -> Path:
        """Preprocessed segments of a split."""
        return self.path / "segments" / f"{split}.npy"


def make_store(study: Study, folder: StudyFolder, num_proc: int) -> None:
    """Makes the synthetic cohort and prepares it, unless that was done before."""
    from ecgfm_hf.data import PrepareSettings, RecordingTable, SplitSettings, prepare
    from ecgfm_hf.synthetic import SyntheticCohort

    cohort = folder.path / "cohort"
    if not (cohort / "cohort.json").is_file():  # written last
        shutil.rmtree(cohort, ignore_errors=True)
        SyntheticCohort(study.patients, study.cohort_seed).write_wfdb(cohort, num_proc=num_proc)
    source = RecordingTable(cohort, cohort / "labels.csv")
    settings = PrepareSettings(split=SplitSettings("grouped", fractions=study.fractions))
    prepare(source, folder.store, settings, num_proc=num_proc, progress=False)


def pretrain_settings(study: Study, folder: StudyFolder) -> Any:
    """The package's own recipe for tiny models, on the split `pretrain`."""
    from ecgfm_hf.training import read_recipe

    where = [f"data={folder.store}", f"output_dir={folder.pretrained}", "train_split=pretrain", "valid_split=null"]
    return read_recipe("pretrain_tiny", [*where, "use_cpu=true", *study.pretrain])


def save_random(study: Study, folder: StudyFolder) -> None:
    """Keeps the model that pretraining begins with."""
    from ecgfm_hf import save_model_folder
    from ecgfm_hf.training.initial_model import build_pretraining_model

    if not (folder.random / "preprocessor_config.json").is_file():  # written last
        save_model_folder(*build_pretraining_model(pretrain_settings(study, folder)), folder.random)


def pretrain(study: Study, folder: StudyFolder) -> None:
    """Pretrain, or resume an interrupted pretraining."""
    from ecgfm_hf.training import Pretrainer

    result = Pretrainer(pretrain_settings(study, folder)).run()
    if not result.finished:
        raise RuntimeError(f"pretraining was interrupted after update {result.update}; the same command continues")


def write_segments(folder: StudyFolder, split: str) -> None:
    """Preprocesses a split once: (recordings, segments, leads, samples) float32, which processes share."""
    path = folder.segments(split)
    if path.is_file():
        return
    inputs = as_model_inputs(load_prepared(folder.store, split), ECGFMFeatureExtractor(), labels=())
    recordings = inputs.recordings[-1] + 1
    counts = np.bincount(inputs.recordings, minlength=recordings)
    if inputs.skipped or len(set(counts.tolist())) != 1:
        raise ValueError(f"{split}: all recordings must have as many segments, found {set(counts.tolist())}")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.partial")
    shape = (len(inputs), *inputs[0]["input_values"].shape)
    array = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, len(inputs), 64):
        items = inputs.__getitems__(range(start, min(start + 64, len(inputs))))
        array[start : start + len(items)] = [item["input_values"] for item in items]
    array.flush()
    del array
    os.replace(scratch, path)


class Split:
    """A split in memory: who, which labels, and (mapped from disk) segments."""

    def __init__(self, folder: StudyFolder, name: str):
        from ecgfm_hf.data.store import label_columns

        self._path = folder.segments(name)
        data = load_prepared(folder.store, name)
        self.label_names = tuple(label_columns(data.column_names, data.features))
        table = data.select_columns(["recording_id", "patient_id", *self.label_names]).with_format("arrow")[:]
        self.recording_ids = table["recording_id"].to_pylist()
        self.patient_ids = table["patient_id"].to_pylist()
        self.labels = np.stack([table[label].to_numpy() for label in self.label_names], axis=1).astype(np.float32)

    @cached_property
    def segments(self) -> np.ndarray:
        """(all segments, leads, samples) float32; the segments of a recording together."""
        return np.load(self._path, mmap_mode="r")

    @property
    def per_recording(self) -> int:
        """Segments a recording."""
        return len(self.segments) // len(self.recording_ids)


class SegmentsOfRows:
    """The segments of some recordings, as `LabelledSegments` reads them; rows are renumbered."""

    def __init__(self, split: Split, rows: Sequence[int] | np.ndarray):
        each = split.per_recording
        self._places = (np.asarray(rows)[:, None] * each + np.arange(each)).ravel()
        self._segments = split.segments
        self.recordings = np.repeat(np.arange(len(rows)), each)

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        return [{"input_values": np.array(self._segments[self._places[number]])} for number in numbers]


def draw_rows(split: Split, size: int, draws: int, seed: int, least_patients: int = 2) -> list[np.ndarray]:
    """
    Recordings to train on, several times.

    Patients come in random order, all of their recordings together but for the last one's; no two draws share a
    patient. A draw in which some label has fewer than `least_patients` patients with it, or without it, is drawn again:
    such a draw is unfit for training.

    Args:
        split ([`Split`])
        size (`int`): Recordings a draw.
        draws, seed, least_patients (`int`)

    Returns:
        Rows (size,) of each draw.

    Raises:
        `ValueError`: the split does not hold as many.
    """
    random = np.random.default_rng([seed, size])
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(split.patient_ids))}
    owner = np.array([numbers[patient] for patient in split.patient_ids])
    rows_of = [np.flatnonzero(owner == patient) for patient in range(len(numbers))]
    free, result = np.arange(len(numbers)), []
    for draw in range(draws):
        for _ in range(20_000):
            free = random.permutation(free)
            rows = np.concatenate([rows_of[patient] for patient in free[:size]] or [free])[:size]
            if len(rows) == size and _has_both(split.labels[rows], owner[rows], least_patients):
                break
        else:
            raise ValueError(f"draw {draw} of {size} recordings: {len(free)} patients do not hold one with every label")
        result.append(rows)
        free = np.setdiff1d(free, owner[rows])
    return result


def _has_both(labels: np.ndarray, owner: np.ndarray, least: int) -> bool:
    return all(len(np.unique(owner[column == value])) >= least for column in labels.T for value in (0, 1))


__all__ = [
    "SPLITS",
    "SegmentsOfRows",
    "Split",
    "StudyFolder",
    "draw_rows",
    "make_store",
    "pretrain",
    "save_random",
    "write_segments",
]
