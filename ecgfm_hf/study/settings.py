"""The settings of a study, and how they are checked."""

from dataclasses import dataclass, field
from typing import Any

from ..training.settings import FinetuneSettings
from ..utils.errors import SettingsError
from ..utils.redaction import SMALLEST_CELL
from .arms import ARMS, learning_rates
from .folds import FEWEST_FOLDS

DEFAULT_ARMS = ("features", "linear", "attention", "finetune")
# What may change between a run and its continuation.
FREE = ("output_dir", "jobs", "budget", "device", "overwrite", "smallest_cell", "resamples")


@dataclass(kw_only=True)
class StudySettings:
    """
    Settings of a study.

    Args:
        data (`str`): A table of recordings (CSV, TSV, Excel, Parquet), a store, or a processed folder of
            fairseq-signals.
        model (`str`): Folder of the encoder: of any ECG-FM model, whose head is not used.
        output_dir (`str`): Folder for the study.
        root (`str`, *optional*): Folder of a table's recordings (default: the table's own), or of a processed folder's
            segments.
        labels (`list[str]`, *optional*): By default all labels.
        targets (`str`, *optional*): The labels of a processed folder: its `y.npy`.
        table (`dict`): Further arguments of [`RecordingTable`], such as `columns` and `binarise`.
        arms (`list[str]`, *optional*): Of `features`, `linear`, `attention`, `lora`, `finetune`, `scratch`. Default:
            `features`, `linear`, `attention`, `finetune`.
        sizes (`list[float]`): Training sizes: numbers of recordings, or shares (at most 1) of a fold's training
            recordings. 1.0 is all.
        folds (`int`), repeats (`int`): Of the cross-validation.
        test_split (`str`, *optional*): Test on this split of the store and train on its other splits, in place of a
            cross-validation. `repeats` then counts seeds.
        seed (`int`)
        finetuning (`dict`): Settings of fine-tuning ([`FinetuneSettings`]) in place of the arms' own. `learning_rate`
            may be a list to choose from.
        jobs (`int`): Units that run at a time.
        budget (`float`, *optional*): Seconds. Units that do not fit are left out, and named.
        device (`str`): For the encoder and for training.
        allow_seen (`bool`): Accept recordings or patients that the encoder has seen, with a warning.
        smallest_cell (`int`): Fewest patients that a count in the report may be of.
        resamples (`int`): Of the patients, for intervals.
        overwrite (`bool`): Discard a study in `output_dir`.

    Raises:
        [`SettingsError`]: an impossible value.
    """

    data: str
    model: str
    output_dir: str
    root: str | None = None
    labels: list[str] | None = None
    targets: str | None = None
    table: dict[str, Any] = field(default_factory=dict)
    arms: list[str] | None = None
    sizes: list[float] = field(default_factory=lambda: [1.0])
    folds: int = 5
    repeats: int = 1
    test_split: str | None = None
    seed: int = 0
    finetuning: dict[str, Any] = field(default_factory=dict)
    jobs: int = 1
    budget: float | None = None
    device: str = "cpu"
    allow_seen: bool = False
    smallest_cell: int = SMALLEST_CELL
    resamples: int = 1000
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in self.arms or ():
            if name not in ARMS:
                raise SettingsError(f"arms must be of {', '.join(ARMS)}, found: {name}")
        if self.arms is not None and (not self.arms or len(set(self.arms)) < len(self.arms)):
            raise SettingsError(f"arms must be different names, at least one, found: {self.arms}")
        for name, least in (("folds", FEWEST_FOLDS), ("repeats", 1), ("jobs", 1), ("smallest_cell", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} must be at least {least}, found: {getattr(self, name)}")
        if not self.sizes or len(set(self.sizes)) < len(self.sizes):
            raise SettingsError(f"sizes must be different numbers, at least one, found: {self.sizes}")
        if self.budget is not None and not self.budget > 0:
            raise SettingsError(f"budget must be above 0 seconds, found: {self.budget}")
        self.sizes = [float(size) for size in self.sizes]
        for rate in learning_rates("finetune", self.finetuning):
            FinetuneSettings(**{**self.finetuning, "learning_rate": rate, "output_dir": self.output_dir})


__all__ = ["DEFAULT_ARMS", "FREE", "StudySettings"]
