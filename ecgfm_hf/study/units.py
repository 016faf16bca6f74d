"""The units of a study: one training of an arm and its test each, run in parallel, within a budget, and only once."""

import multiprocessing
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..configuration_ecgfm import ECGFMConfig
from ..training.settings import derived_seed
from ..utils.errors import ECGFMError
from ..utils.resumable_parts import ItemWatch, LocalExecutor, PartAccount, ResumableParts, Task, content_digest
from .arms import NEEDS, TRAINED_ARMS, AttentionArm, FinetunedArm, LogisticArm
from .costs import Costs, measure_costs
from .data import StudyData, StudyInputs
from .folds import Fold, StudyTable
from .guard import Arm, fit_and_score
from .settings import StudySettings

if TYPE_CHECKING:
    from tqdm import tqdm


@dataclass(frozen=True)
class Unit:
    """
    One training of an arm and its test.

    Args:
        arm (`str`)
        size (`float`): As in the settings.
        fold ([`Fold`]): With the training rows of this size.
    """

    arm: str
    size: float
    fold: Fold


@dataclass(frozen=True)
class Group:
    """The units of an arm at a size in one repeat: run together or left out together."""

    arm: str
    size: float
    repeat: int
    units: tuple[int, ...]

    def __str__(self) -> str:
        size = "all" if self.size == 1 else f"{self.size:g}" if self.size > 1 else f"{self.size:.0%} of the"
        return f"{self.arm} at {size} training recordings, repeat {self.repeat + 1}"


@dataclass(frozen=True)
class StudyPlan:
    """
    What a study will do.

    Args:
        data ([`StudyData`]): The recordings, with the labels that can be studied.
        units (`list[Unit]`), groups (`list[Group]`): In the order in which they are run.
        folds (`list[Fold]`): With all training rows.
        notes (`list[str]`): For the reader, such as labels that are left out.
        seconds (`dict[str, float]`): Estimated time of each arm, in one process, with what it has to compute first.
    """

    data: StudyData
    units: list[Unit]
    groups: list[Group]
    folds: list[Fold]
    notes: list[str]
    seconds: dict[str, float] = field(default_factory=dict)


class UnitRunner:
    """
    Runs the units of a plan that have not been run, those of cheap arms first.

    Args:
        plan ([`StudyPlan`]), inputs ([`StudyInputs`]), settings ([`StudySettings`])
        parts ([`ResumableParts`]): One for each unit.
        progress (`bool`): Show progress bars.
    """

    def __init__(
        self,
        plan: StudyPlan,
        inputs: StudyInputs,
        settings: StudySettings,
        parts: ResumableParts,
        *,
        progress: bool = False,
    ):
        self._plan, self._inputs, self._settings, self._parts = plan, inputs, settings, parts
        self._progress = progress
        self.accounts = {task.number: found for task in parts.tasks if (found := parts.account(task)) is not None}

    def run(self, began: float) -> list[str]:
        """
        Run units until all are done or the budget is spent.

        Args:
            began (`float`): When the budget began, by `time.monotonic`.

        Returns:
            What was left out or failed, and why: a sentence for each group.
        """
        from tqdm import tqdm

        plan = self._plan
        missing = [number for number in range(len(plan.units)) if number not in self.accounts]
        total = len(plan.units)
        with tqdm(total=total, initial=total - len(missing), unit="unit", disable=not self._progress) as bar:
            if self._settings.budget is None:
                for arm in dict.fromkeys(unit.arm for unit in plan.units):
                    self._run([number for number in missing if plan.units[number].arm == arm], bar)
                left_out = []
            else:
                left_out = self._run_in_budget(began, self._settings.budget, bar)
        for group in plan.groups:
            failures = [failure for n in group.units if n in self.accounts for failure in self.accounts[n].failures]
            if failures:
                left_out.append(f"{group}: failed ({'; '.join(sorted({str(of['reason']) for of in failures}))})")
        return left_out

    def _run(self, numbers: Sequence[int], bar: "tqdm[NoReturn]") -> None:
        """Run some units of one arm."""
        if not numbers:
            return
        arm, inputs = self._plan.units[numbers[0]].arm, self._inputs
        bar.set_description(arm)
        for name in NEEDS[arm]:
            self._compute(name)
        writer = UnitWriter(self._plan, inputs, self._settings, self._parts.folder)
        on_device = inputs.device.type != "cpu" and arm in ("attention", *TRAINED_ARMS)
        tasks = [self._parts.tasks[number] for number in numbers]
        for _ in LocalExecutor(writer, 1 if on_device else self._settings.jobs).run(tasks, bar.update):
            pass
        self.accounts |= {task.number: found for task in tasks if (found := self._parts.account(task)) is not None}

    def _run_in_budget(self, began: float, budget: float, bar: "tqdm[NoReturn]") -> list[str]:
        costs = measure_costs(self._inputs, {unit.arm for unit in self._plan.units}, self._settings.jobs)
        for number, account in self.accounts.items():
            self._learn(costs, number, account)
        left_out = []
        for group in self._plan.groups:
            while missing := [number for number in group.units if number not in self.accounts]:
                first = sum(costs.inputs(name) for name in NEEDS[group.arm] if not self._inputs.has(name))
                rounds = -(-len(missing) // self._settings.jobs)
                each = max(unit_cost(costs, self._plan, number, self._settings) for number in missing)
                if time.monotonic() - began + first + rounds * each > budget:
                    left_out.append(f"{group}: does not fit into the budget")
                    break
                # A first unit shows how long the others take.
                now = missing if costs.is_measured(group.arm) else missing[: self._settings.jobs]
                self._run(now, bar)
                for number in now:
                    self._learn(costs, number, self.accounts[number])
        return left_out

    def _learn(self, costs: Costs, number: int, account: PartAccount) -> None:
        seconds = account.counts.get("milliseconds", 0) / 1000
        costs.learn(self._plan.units[number].arm, unit_cost(costs, self._plan, number, self._settings), seconds)

    def _compute(self, name: str) -> None:
        from tqdm import tqdm

        if self._inputs.has(name):
            return
        # Frames and embeddings come from the same pass.
        needs_frames = any(unit.arm == "attention" for unit in self._plan.units)
        wanted = "frames" if name == "embeddings" and needs_frames else name
        recordings = len(self._plan.data)
        with tqdm(total=recordings, unit="recording", desc=wanted, disable=not self._progress, leave=False) as bar:
            self._inputs.compute(wanted, bar.update)


def unit_cost(costs: Costs, plan: StudyPlan, number: int, settings: StudySettings) -> float:
    """Estimate the seconds of a unit."""
    unit, labels = plan.units[number], len(plan.data.table.label_names)
    return costs.unit(unit.arm, len(unit.fold.train), len(unit.fold.test), labels, settings.finetuning)


class UnitWriter:
    """
    Runs units and writes their scores: a `PartWriter`.

    Args:
        plan ([`StudyPlan`])
        inputs ([`StudyInputs`]): With what the arms need, computed.
        settings ([`StudySettings`])
        folder (`Path`): For what fine-tuning writes meanwhile.
    """

    def __init__(self, plan: StudyPlan, inputs: StudyInputs, settings: StudySettings, folder: Path):
        self._plan, self._inputs, self._settings, self._folder = plan, inputs, settings, folder

    def __call__(self, task: Task, path: Path, watch: ItemWatch) -> PartAccount:
        unit, table = self._plan.units[task.number], self._plan.data.table
        account = PartAccount(content=content_digest([""]))
        began = time.monotonic()
        seed = derived_seed(self._settings.seed, "unit", unit.fold.repeat, unit.fold.fold) % 2**31
        folder = self._folder / f"training-{task.number:05d}"
        try:
            with few_threads(unit.arm):
                inputs = self._inputs.load(NEEDS[unit.arm][0])
                scores = fit_and_score(self._arm(unit.arm, folder), table, inputs, unit.fold, seed)
        except ECGFMError as error:
            account.failures.append({"reason": str(error)})
            scores = np.zeros((0, len(table.label_names)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        rows = unit.fold.test if len(scores) else unit.fold.test[:0]
        columns = {"row": rows, **{f"score:{name}": of for name, of in zip(table.label_names, scores.T, strict=True)}}
        pq.write_table(pa.table(columns), path, compression="zstd")
        account.rows = len(rows)
        account.counts = {"milliseconds": round((time.monotonic() - began) * 1000)}
        return account

    def _arm(self, name: str, folder: Path) -> Arm:
        inputs = self._inputs
        if name in ("features", "linear"):
            return LogisticArm()
        if name == "attention":
            return AttentionArm(ECGFMConfig.from_pretrained(inputs.model_dir), inputs.device)
        return FinetunedArm(
            name,
            str(inputs.model_dir),
            inputs.extractor,
            inputs.data.dataset,
            folder,
            use_cpu=inputs.device.type == "cpu",
            changes=self._settings.finetuning,
        )


@contextmanager
def few_threads(arm: str) -> Iterator[None]:
    """
    Compute on one thread in a worker process, as there is one for each core, and in small regressions anywhere.

    Their arrays are so small that threads only wait for each other.
    """
    import torch
    from threadpoolctl import threadpool_limits

    is_worker = multiprocessing.parent_process() is not None
    if is_worker:
        torch.set_num_threads(1)
    with threadpool_limits(1) if is_worker or arm in ("features", "linear") else nullcontext():
        yield


def read_scores(task: Task, table: StudyTable) -> np.ndarray:
    """Return the scores (test rows, L) of a unit that has run."""
    found = pq.read_table(task.path)
    return np.stack([found[f"score:{name}"].to_numpy() for name in table.label_names], axis=1)


__all__ = ["Group", "StudyPlan", "Unit", "UnitRunner", "UnitWriter", "few_threads", "read_scores", "unit_cost"]
