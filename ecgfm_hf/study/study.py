"""
A study: which way of using an encoder finds the labels of a table best, with how many labelled recordings.

    OUTPUT/report.html, report.pdf      one page: the verdict, the table, the learning curves
    OUTPUT/results.json, results.csv    the same figures
    OUTPUT/predictions.parquet          every score of every test recording; the only file with ids
    OUTPUT/study.json                   settings
    OUTPUT/units/                       finished trainings: what a resumed run does not repeat
    OUTPUT/store/                       the recordings, where a table was given
    OUTPUT/inputs-DIGEST/               embeddings and the like; removed at the end

A unit is one arm, trained on one training set and tested on one fold.
"""

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..configuration_ecgfm import ECGFMConfig
from ..model_folder import load_feature_extractor
from ..provenance import hardware, versions, weights_digest
from ..training.run_folder import changed_settings
from ..utils.errors import ECGFMError, OutputExistsError, SettingsError
from ..utils.files import atomic_path, check_output, private_folder
from ..utils.integrity import read_with_digest, write_with_digest
from ..utils.precision import resolve_device
from ..utils.resumable_parts import PartAccount, ResumableParts, ResumeError, content_digest, try_lock
from .arms import ARMS, NEEDS
from .comparison import FoldScores, compare
from .costs import measure_costs
from .data import STORE_FOLDER, StudyData, StudyInputs, check_unseen, open_data
from .folds import Fold, check_feasible, fixed_fold, make_folds, nested_training
from .report import PAGE_FILE, PDF_FILE, RESULTS_FILE, TABLE_FILE, summarise, write_report
from .settings import DEFAULT_ARMS, FREE, StudySettings
from .units import Group, StudyPlan, Unit, UnitRunner, read_scores, unit_cost

logger = logging.getLogger(__name__)

STUDY_FILE, PREDICTIONS_FILE, UNITS_FOLDER = "study.json", "predictions.parquet", "units"
_LOCK_FILE, _INPUTS = ".lock", "inputs-"
_OURS = {
    STUDY_FILE,
    PREDICTIONS_FILE,
    UNITS_FOLDER,
    STORE_FOLDER,
    PAGE_FILE,
    PDF_FILE,
    RESULTS_FILE,
    TABLE_FILE,
    _LOCK_FILE,
}


@dataclass(frozen=True)
class StudyResult:
    """
    The end of a study.

    Args:
        results (`dict`): The content of `results.json`.
        left_out (`list[str]`): What did not fit into the budget, or failed.
        output_dir (`Path`)
    """

    results: dict[str, Any]
    left_out: list[str]
    output_dir: Path


class Study:
    """
    Compare arms on a table, store or processed folder, by patient-grouped cross-validation.

        settings = StudySettings(data="table.xlsx", model="encoder", output_dir="study", sizes=[50, 100, 300])
        result = Study(settings).run()
        print(result.results["verdict"])

    A study that was killed is resumed by the same call; finished units are not run again.

    Args:
        settings ([`StudySettings`])
        progress (`bool`): Show progress bars on standard error.

    Raises:
        [`OutputExistsError`]: `output_dir` is an input, or has something else than this study.
    """

    def __init__(self, settings: StudySettings, *, progress: bool = False):
        self.settings, self._progress = settings, progress
        self.path = Path(settings.output_dir)
        self._check_output()

    def _check_output(self) -> None:
        settings = self.settings
        inputs = [settings.data, settings.model, settings.root, settings.targets]
        check_output(self.path, inputs, overwrite=settings.overwrite, is_own=is_study)
        others = [name for name in self._names() if not (name in _OURS or name.startswith(_INPUTS))]
        if settings.overwrite and others:
            raise OutputExistsError(
                f"{self.path} contains other files than a study's ({', '.join(sorted(others)[:3])}), so it is not "
                "replaced: give another path"
            )

    def _names(self) -> list[str]:
        return [path.name for path in self.path.iterdir()] if self.path.is_dir() else []

    def _discard(self) -> None:
        for name in self._names():
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif name != _LOCK_FILE:  # which this process has
                path.unlink()

    def plan(self) -> StudyPlan:
        """
        Return what the study would do, and how long that takes. Nothing is written to `output_dir`.

        Raises:
            [`TooFewError`]: too few recordings or labels. Other errors as of [`run`].
        """
        store = self.path / STORE_FOLDER
        plan = self._plan(store if store.is_dir() else private_folder() / "study-store")
        arms = {unit.arm for unit in plan.units}
        costs = measure_costs(self._inputs(plan, private_folder()), arms, self.settings.jobs)
        seconds: dict[str, float] = {}
        for group in plan.groups:
            first = costs.inputs(NEEDS[group.arm][0]) if group.arm not in seconds else 0.0
            units = sum(unit_cost(costs, plan, unit, self.settings) for unit in group.units)
            seconds[group.arm] = seconds.get(group.arm, 0.0) + first + units
        return dataclasses.replace(plan, seconds=seconds)

    def run(self) -> StudyResult:
        """
        Run the study, or resume it, and write its report.

        Raises:
            [`TooFewError`]: too few recordings or labels for a study.
            [`StudyError`]: data or settings that no study can be made of.
            [`LeakError`]: the encoder has seen recordings or patients of the study, or an arm reads what it must not.
            [`ResumeError`]: `output_dir` has another study.
            `OSError`: the folder cannot be written.
        """
        began = time.monotonic()
        self._check_output()
        self.path.mkdir(parents=True, exist_ok=True)
        with self._claimed():
            if self.settings.overwrite:
                self._check_output()  # again: another study may have begun there
                self._discard()
            has_begun = self._check_same_settings()
            try:
                plan = self._plan(self.path / STORE_FOLDER)
            except (ECGFMError, OSError):
                if not has_begun:
                    self._clean_up_refused()
                raise
            self._write_settings(begun=True)
            inputs = self._inputs(plan, self.path)
            inputs.check()
            parts = self._parts(plan)
            parts.claim()
            runner = UnitRunner(plan, inputs, self.settings, parts, progress=self._progress)
            left_out = runner.run(began)
            result = self._finish(plan, inputs, parts, runner.accounts, left_out)
            inputs.remove()
        return result

    # Before the first unit --------------------------------------------------------------------------------------------

    def _check_same_settings(self) -> bool:
        """Return whether this study has begun. Refuse another that has; one that was refused gives way to this one."""
        file = self.path / STUDY_FILE
        if file.is_file():
            try:
                found = read_with_digest(file)
                before, begun = found["settings"], found["begun"]
            except (OSError, ValueError, KeyError) as error:
                raise ResumeError(
                    f"{file} is damaged ({error}): give another output, or discard the study with overwrite=True"
                ) from None
            now = self._compared_settings()
            if begun:
                if changed := changed_settings(before, now, FREE):
                    raise ResumeError(
                        f"{self.path} has another study: {'; '.join(changed)}. Give another output, or discard it with "
                        "overwrite=True"
                    )
                return True
            if any(before.get(name) != now[name] for name in ("data", "root", "labels", "table")):
                shutil.rmtree(self.path / STORE_FOLDER, ignore_errors=True)
        self._write_settings(begun=False)
        return False

    def _clean_up_refused(self) -> None:
        """Leave nothing but recordings that were prepared of a table, which may have taken long."""
        if (store := self.path / STORE_FOLDER).is_dir():
            logger.warning("%s keeps the table's recordings for the next attempt: remove it if there is none", store)
        else:
            (self.path / STUDY_FILE).unlink()

    def _write_settings(self, begun: bool) -> None:
        write_with_digest(self.path / STUDY_FILE, {"settings": self._compared_settings(), "begun": begun})

    def _compared_settings(self) -> dict[str, Any]:
        settings = dataclasses.asdict(self.settings)
        return dict(json.loads(json.dumps({name: value for name, value in settings.items() if name not in FREE})))

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        if (lock := try_lock(self.path / _LOCK_FILE)) is None:
            raise SettingsError(f"{self.path} is in use: another study is writing there. Wait for it, or end it")
        try:
            yield
        finally:
            lock.release()

    def _plan(self, store: Path) -> StudyPlan:
        settings = self.settings
        config = ECGFMConfig.from_pretrained(settings.model)
        extractor = load_feature_extractor(settings.model, config=config)
        data = open_data(
            settings.data,
            store,
            extractor,
            root=settings.root,
            labels=settings.labels,
            targets=settings.targets,
            table=settings.table,
            num_proc=settings.jobs,
            progress=self._progress,
        )
        notes = check_unseen(settings.model, data.table, settings.allow_seen)
        arms = [arm for arm in ARMS if arm in (settings.arms or DEFAULT_ARMS)]
        if "features" in arms and not data.has_signals:
            if settings.arms is not None:
                raise SettingsError(
                    "arms: features cannot be measured on the standardised segments of a processed folder: leave "
                    "features out, or give a store that `ecgfm prepare` wrote"
                )
            arms.remove("features")
            notes.append("The arm features is left out: standardised segments have no amplitudes to measure.")
        while True:
            folds = self._folds(data)
            feasible = check_feasible(data.table, folds, settings.sizes)
            notes += [f"{problem}." for problem in feasible.problems]
            if len(feasible.labels) == len(data.table.label_names):
                break
            # Recordings whose only known labels are left out go, so folds are drawn again.
            data = data.with_labels(feasible.labels)
        groups: list[Group] = []
        units: list[Unit] = []
        by_size = [nested_training(data.table, fold, settings.sizes, seed=settings.seed) for fold in folds]
        for repeat in dict.fromkeys(fold.repeat for fold in folds):
            for arm in arms:
                for size in sorted(settings.sizes, key=lambda size: (size <= 1, size)):
                    own = [of[size] for of in by_size if of[size].repeat == repeat]
                    groups.append(Group(arm, size, repeat, tuple(range(len(units), len(units) + len(own)))))
                    units += [Unit(arm, size, fold) for fold in own]
        return StudyPlan(data, units, groups, folds, notes)

    def _folds(self, data: StudyData) -> list[Fold]:
        settings, table = self.settings, data.table
        if settings.test_split is None:
            return make_folds(table, folds=settings.folds, repeats=settings.repeats, seed=settings.seed)
        others = sorted({split for split in data.splits if split is not None} - {settings.test_split})
        (fold,) = fixed_fold(table, data.splits, train=others, test=settings.test_split)
        return [dataclasses.replace(fold, repeat=repeat) for repeat in range(settings.repeats)]

    def _inputs(self, plan: StudyPlan, folder: Path) -> StudyInputs:
        settings = self.settings
        digest = content_digest([plan.data.digest, weights_digest(settings.model) or settings.model])
        own = folder / f"{_INPUTS}{digest[:16]}"
        for other in folder.glob(f"{_INPUTS}*"):
            if other != own:
                shutil.rmtree(other, ignore_errors=True)
        extractor = load_feature_extractor(settings.model)
        device = resolve_device(settings.device)
        return StudyInputs(plan.data, settings.model, extractor, own, device=device, num_proc=settings.jobs)

    def _parts(self, plan: StudyPlan) -> ResumableParts:
        settings = self.settings
        about = {
            "data": plan.data.digest,
            "model": weights_digest(settings.model),
            "seed": settings.seed,
            "units": content_digest(
                repr((unit.arm, unit.size, unit.fold.repeat, unit.fold.fold, unit.fold.train.tolist()))
                for unit in plan.units
            ),
            "finetuning": settings.finetuning,
        }
        # A unit's inputs are in the plan: there is no file of its own that could change.
        return ResumableParts(self.path / UNITS_FOLDER, about, len(plan.units), 1, lambda _: [("unit", "")])

    # After the last unit ----------------------------------------------------------------------------------------------

    def _finish(
        self,
        plan: StudyPlan,
        inputs: StudyInputs,
        parts: ResumableParts,
        accounts: dict[int, PartAccount],
        left_out: list[str],
    ) -> StudyResult:
        settings, table = self.settings, plan.data.table
        complete = {
            number
            for group in plan.groups
            if all(number in accounts and accounts[number].rows for number in group.units)
            for number in group.units
        }
        if not complete:
            raise SettingsError(
                f"no arm has been run in all its folds: {'; '.join(left_out)}. Give a larger budget, and run the same "
                "command again"
            )
        found = {number: read_scores(parts.tasks[number], table) for number in sorted(complete)}
        scores = [
            FoldScores(plan.units[n].arm, plan.units[n].size, plan.units[n].fold, own) for n, own in found.items()
        ]
        with atomic_path(self.path / PREDICTIONS_FILE, private=True) as scratch:
            pq.write_table(_predictions(plan, found), scratch, compression="zstd")
        seconds: dict[str, float] = {}
        for number, account in accounts.items():
            arm = plan.units[number].arm
            seconds[arm] = seconds.get(arm, 0.0) + account.counts.get("milliseconds", 0) / 1000
        results = summarise(
            table,
            compare(table, scores, resamples=settings.resamples, seed=settings.seed),
            about={
                "data": Path(settings.data).name,
                "model": Path(settings.model).name,
                "folds": 1 if settings.test_split is not None else settings.folds,
                "repeats": settings.repeats,
                "test_split": settings.test_split,
                "excluded": plan.data.excluded,
                "seconds": {arm: round(of, 1) for arm, of in seconds.items()},
                "synthetic": plan.data.synthetic,
                "provenance": {
                    "data": plan.data.digest,
                    "weights": weights_digest(settings.model),
                    "seed": settings.seed,
                    "finetuning": settings.finetuning,
                    "hardware": hardware(inputs.device, settings.jobs),
                    "versions": versions("torch", "transformers", "scikit-learn", "neurokit2"),
                },
            },
            notes=plan.notes,
            left_out=left_out,
            smallest_cell=settings.smallest_cell,
        )
        write_report(results, self.path)
        return StudyResult(results, left_out, self.path)


def is_study(folder: Path) -> bool:
    """Return whether a folder has a study, also one that has only begun, or is damaged."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} == {_LOCK_FILE}:
        return True
    try:
        content = json.loads((folder / STUDY_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        content = None
    return (folder / UNITS_FOLDER).is_dir() or (isinstance(content, dict) and "settings" in content)


def _predictions(plan: StudyPlan, scores: dict[int, np.ndarray]) -> pa.Table:
    """Return a row for each test recording of each unit: ids, labels and scores."""
    table = plan.data.table
    ids, patients = pa.array(table.ids), pa.array(table.patients, pa.string())
    parts = []
    for number, own in scores.items():
        unit, rows = plan.units[number], plan.units[number].fold.test
        count, labels = len(rows), table.targets[rows]
        parts.append(
            pa.table(
                {
                    "arm": pa.array([unit.arm] * count),
                    "size": pa.array([unit.size] * count),
                    "training_recordings": pa.array([len(unit.fold.train)] * count, pa.int32()),
                    "repeat": pa.array([unit.fold.repeat] * count, pa.int32()),
                    "fold": pa.array([unit.fold.fold] * count, pa.int32()),
                    "recording_id": ids.take(pa.array(rows)),
                    "patient_id": patients.take(pa.array(rows)),
                    **{
                        f"label:{name}": pa.array(labels[:, column], from_pandas=True)
                        for column, name in enumerate(table.label_names)
                    },
                    **{f"score:{name}": own[:, column] for column, name in enumerate(table.label_names)},
                }
            )
        )
    return pa.concat_tables(parts)


__all__ = [
    "PREDICTIONS_FILE",
    "STUDY_FILE",
    "Study",
    "StudyResult",
    "is_study",
]
