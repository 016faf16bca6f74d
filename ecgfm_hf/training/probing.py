"""A linear probe as a run: from settings to a classifier on a frozen encoder, calibrated and saved."""

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.leakage import check_splits, check_training_ids, write_training_ids
from ..data.opening import load_prepared
from ..data.splits import draw_patients
from ..inference.predictions import Predictions
from ..model_folder import load_feature_extractor, load_model, save_model_folder
from ..modeling_ecgfm import ECGFMModel
from ..provenance import add_step, hardware, select_settings, versions
from ..utils.errors import OutputExistsError, SettingsError
from ..utils.files import check_output, files_in
from .data_summary import summarize_data, summarize_recordings
from .linear_probe import FOLDS, Embeddings, LinearProbe, embed_split, fit_linear_probe
from .operating_points import fit_operating_points
from .settings import FinetuneSettings

# Settings that model cards report.
_REPORTED = ("thresholds", "calibration", "min_cases", "folds", "seed", "precision", "train_fraction")


@dataclass(kw_only=True)
class ProbeSettings:
    """
    Settings of a linear probe; those that fine-tuning has, too, have its names.

    Args:
        data (`str`): The store, or a processed folder of fairseq-signals.
        output_dir (`str`): Folder for the classifier: new or empty, or, with `overwrite`, of another classifier.
        init_from (`str`): Model folder; its encoder is used, a head is not.
        labels (`list[str]`, *optional*): By default all label columns of the store.
        targets (`str`, *optional*): The labels of a processed folder: its `y.npy`.
        root (`str`, *optional*): The folder of its segments, where it is not beside its manifests.
        train_split, valid_split (`str`): Splits to fit heads on, and to fit calibration and thresholds on. Without
            `valid_split` (None) there are none.
        train_fraction (`float`): Share of the training patients to use, drawn by `seed`; a larger share contains a
            smaller one.
        problem_type (`str`): `"multi_label_classification"` or `"regression"`.
        thresholds, calibration, min_cases: As of [`FinetuneSettings`].
        folds (`int`), seed (`int`): Of the cross-validation.
        cache_dir (`str`, *optional*): Folder to keep embeddings in.
        per_device_eval_batch_size, dataloader_num_workers, precision: How embeddings are computed.
        overwrite (`bool`): Replace a classifier in `output_dir`.

    Raises:
        [`SettingsError`]: an impossible value.
    """

    data: str
    output_dir: str
    init_from: str
    labels: list[str] | None = None
    targets: str | None = None
    root: str | None = None
    train_split: str = "train"
    valid_split: str | None = "valid"
    train_fraction: float = 1.0
    problem_type: str = "multi_label_classification"
    thresholds: str = "youden"
    calibration: str = "platt"
    min_cases: int = 5
    folds: int = FOLDS
    seed: int = 0
    cache_dir: str | None = None
    per_device_eval_batch_size: int = 16
    dataloader_num_workers: int = 0
    precision: str = "float32"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.valid_split == self.train_split:
            raise SettingsError(
                f"valid_split (--valid-split) must be another one than train_split (--split), found: {self.train_split}"
            )
        if not 0 < self.train_fraction <= 1:
            raise SettingsError(f"train_fraction must be above 0 and at most 1, found: {self.train_fraction}")
        self.rules()

    def rules(self) -> FinetuneSettings:
        """Return the rules for thresholds and calibration, as in fine-tuning."""
        return FinetuneSettings(thresholds=self.thresholds, calibration=self.calibration, min_cases=self.min_cases)


@dataclass(frozen=True)
class ProbeResult:
    """
    The end of a linear probe.

    Args:
        probe ([`LinearProbe`]): The model, and the strength chosen for each label.
        valid ([`Predictions`], *optional*): Of the validation split, calibrated; None without one.
        recordings (`int`), segments (`int`): Recordings that heads were fitted on; segments embedded, of all splits.
        embed_seconds, fit_seconds (`float`)
        notes (`list[str]`): Sentences for the user, such as labels without a threshold.
    """

    probe: LinearProbe
    valid: Predictions | None
    recordings: int
    segments: int
    embed_seconds: float
    fit_seconds: float
    notes: list[str] = field(default_factory=list)


class Prober:
    """
    Fit a linear classifier on a frozen encoder's embeddings and write a model folder.

        result = Prober(ProbeSettings(data="store", init_from="pretrained", output_dir="classifier")).run()

    Args:
        settings ([`ProbeSettings`])
        progress (`bool`): Show a progress bar on standard error.

    Raises:
        [`OutputExistsError`]: `output_dir` is the model or the store, or it is not empty and is no model to overwrite.
    """

    def __init__(self, settings: ProbeSettings, *, progress: bool = False):
        self.settings, self._progress = settings, progress
        self._check_output()

    def _check_output(self) -> None:
        settings, output = self.settings, Path(self.settings.output_dir)
        check_output(
            output, [settings.init_from, settings.data, settings.root, settings.targets], overwrite=settings.overwrite
        )
        if output.is_dir() and any(output.iterdir()) and not (output / "config.json").is_file():
            raise OutputExistsError(f"{output} is not a model folder: give another folder")

    def run(self) -> ProbeResult:
        """
        Embed the splits, fit the heads, and write the classifier with its provenance.

        Raises:
            [`LinearProbeError`]: labels or embeddings that no head can be fitted on.
            [`LeakError`]: a recording or patient in both splits.
            [`DataError`]: no store, or no such split.
            `OSError`: the folder cannot be written.
        """
        settings, started = self.settings, time.monotonic()
        encoder = load_model(settings.init_from, ECGFMModel)
        extractor = load_feature_extractor(settings.init_from, config=encoder.config)
        check_training_ids(settings.init_from)
        began = time.monotonic()
        names = [name for name in (settings.train_split, settings.valid_split) if name is not None]
        splits = {
            name: load_prepared(settings.data, name, root=settings.root, labels=settings.targets) for name in names
        }
        check_splits(splits)
        if settings.train_fraction < 1:
            rows = splits[settings.train_split]
            chosen = draw_patients(rows["recording_id"], rows["patient_id"], settings.train_fraction, settings.seed)
            splits[settings.train_split] = rows.select(chosen)
        train, *others = [
            embed_split(
                encoder,
                extractor,
                rows,
                settings.labels,
                batch_size=settings.per_device_eval_batch_size,
                num_workers=settings.dataloader_num_workers,
                precision=settings.precision,
                cache_dir=settings.cache_dir,
                progress=self._progress,
            )
            for rows in splits.values()
        ]
        valid = others[0] if others else None
        embedded = time.monotonic()
        probe = fit_linear_probe(
            encoder, train, problem_type=settings.problem_type, folds=settings.folds, seed=settings.seed
        )
        fitted = time.monotonic()
        notes = [f"{name}: {text}" for name, text in probe.notes.items()]
        if valid is not None and settings.problem_type != "regression":
            found = probe.predict(valid)
            points = fit_operating_points(found.label_names, found.labels, found.scores, None, settings.rules())
            probe.model.config.label_calibration = points.calibration or None
            probe.model.config.label_thresholds = points.thresholds or None
            notes += points.notes
        # Before the weights: no model may be without a record of what it has seen.
        used = ((), ()) if valid is None else (valid.recording_ids, valid.patient_ids)
        output, init_from = settings.output_dir, settings.init_from
        self._check_output()  # again: embedding takes a while
        with files_in(output) as scratch:
            write_training_ids(scratch, (train.recording_ids, train.patient_ids), used, began_from=init_from)
            save_model_folder(probe.model, extractor, scratch)
            record = self._provenance(probe, train, valid, round(time.monotonic() - started))
            add_step(scratch, "linear probe", record, began_from=init_from)
        segments = len(train.values) + (0 if valid is None else len(valid.values))
        scored = None if valid is None else probe.predict(valid)
        return ProbeResult(probe, scored, len(train), segments, embedded - began, fitted - embedded, notes)

    def _provenance(
        self, probe: LinearProbe, train: Embeddings, valid: Embeddings | None, seconds: int
    ) -> dict[str, Any]:
        config, splits = probe.model.config, {}
        for name, found in (("train", train), ("valid", valid)):
            if found is not None:
                targets = found.labels[:, [found.label_names.index(label) for label in config.label_names]]
                splits[name] = summarize_recordings(
                    found.patient_ids, config.label_names, targets, config.problem_type or ""
                )
        return {
            "data": summarize_data(splits),
            "strengths": probe.strengths,
            "settings": select_settings(dataclasses.asdict(self.settings), _REPORTED),
            "seconds": seconds,
            "hardware": hardware(probe.model.device),
            "versions": versions("torch", "transformers", "scikit-learn"),
        }


__all__ = ["ProbeResult", "ProbeSettings", "Prober"]
