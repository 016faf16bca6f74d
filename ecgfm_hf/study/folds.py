"""
Folds of a study: which recordings an arm is trained on and which it is tested on.

Patients are drawn, never recordings, so that no patient is in two folds. Folds are balanced in all labels at once:
patients are placed one by one, those who weigh most in any label first, into the fold that has the least of what they
bring (iterative stratification); then patients move as long as that improves the balance. A fold depends on ids,
patients, targets and the seed, never on the order of rows.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..data.leakage import LeakError
from ..data.splits import patient_keys, rank_patients
from ..evaluation.intervals import Groups
from ..utils.errors import ECGFMError

# Patients with the label, and without it, that a fold's test part needs. See docs/study.md.
FEWEST_PER_FOLD = 4
FEWEST_PATIENTS = 100
# The spread of two folds shows too little of what another training set changes.
FEWEST_FOLDS = 3
# Positives to be expected among the recordings of the smallest training set.
FEWEST_IN_TRAINING = 2
# Among how many patients the next of a nested training set is chosen.
_WINDOW = 32
_MOST_MOVES = 2000


class StudyError(ECGFMError, ValueError):
    """A table or setting that no study can be made of. The message has what was found and what is expected."""


class TooFewError(StudyError):
    """Too few patients or labels for a study. The message says how many are needed."""


@dataclass(frozen=True)
class StudyTable:
    """
    The recordings of a study.

    Args:
        ids (`tuple[str, ...]` (n,)): Unique.
        patients (`tuple[str | None, ...]` (n,)): None where unknown: such a recording counts as a patient of its own.
        targets (`np.ndarray` (n, L) float64): 1, 0, or NaN where unknown.
        label_names (`tuple[str, ...]` (L,))
    """

    ids: tuple[str, ...]
    patients: tuple[str | None, ...]
    targets: np.ndarray
    label_names: tuple[str, ...]

    def __post_init__(self) -> None:
        expected = (len(self.ids), len(self.label_names))
        if self.targets.shape != expected or len(self.patients) != len(self.ids):
            raise StudyError(
                f"targets must be {expected} for {len(self.ids)} recordings and {len(self.label_names)} labels, with a "
                f"patient for each recording; found: {self.targets.shape} and {len(self.patients)} patients"
            )
        if len(set(self.ids)) < len(self.ids):
            raise StudyError("recording ids must be unique")
        wrong = (self.targets != 0) & (self.targets != 1) & ~np.isnan(self.targets)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise StudyError(
                f"recording {self.ids[row]}, label {self.label_names[column]}: must be 0, 1 or unknown (NaN), "
                f"found: {self.targets[row, column]:g}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def groups(self) -> Groups:
        """The patients, numbered in the order of their ids."""
        keys = patient_keys(self.ids, self.patients)
        numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
        unknown = sum(kind == "recording" for kind, _ in keys)
        note = None
        if unknown:
            note = (
                f"The patients of {unknown} of {len(keys)} recordings are unknown. Each is assumed to be a patient of "
                "its own: one patient may be in two folds, and figures may be too good."
            )
        unit = "recording" if unknown == len(keys) else "patient"
        return Groups(np.array([numbers[key] for key in keys], dtype=np.int64), len(numbers), unit, note)

    def with_labels(self, labels: Sequence[int]) -> "StudyTable":
        """Return the table with these labels only."""
        return replace(
            self, targets=self.targets[:, list(labels)], label_names=tuple(self.label_names[i] for i in labels)
        )

    def patients_with(self, value: int, rows: np.ndarray) -> np.ndarray:
        """Return (L,): how many patients have one of these rows whose label has this value."""
        targets, numbers = self.targets[rows], self.groups.numbers[rows]
        return np.array([len(np.unique(numbers[label == value])) for label in targets.T], dtype=np.int64)


@dataclass(frozen=True)
class Fold:
    """
    What one training of an arm is trained and tested on.

    Args:
        repeat, fold (`int`): From 0.
        train, test (`np.ndarray` int64): Rows of the table, rising.
    """

    repeat: int
    fold: int
    train: np.ndarray
    test: np.ndarray


def make_folds(table: StudyTable, *, folds: int = 5, repeats: int = 1, seed: int = 0) -> list[Fold]:
    """
    Return the folds of repeated cross-validation, grouped by patient and balanced in all labels.

    Each row is tested once a repeat. Repeats are drawn independently.

    Raises:
        [`TooFewError`]: fewer patients than folds.
    """
    if folds < FEWEST_FOLDS or repeats < 1:
        raise StudyError(f"folds must be at least {FEWEST_FOLDS} and repeats at least 1, found: {folds} and {repeats}")
    return _folds_of(table, np.arange(len(table)), folds, repeats, str(seed))


def inner_folds(table: StudyTable, rows: np.ndarray, *, folds: int = 3, seed: int | str = 0) -> list[Fold]:
    """Return folds within these rows, such as those of a training set, to choose hyper-parameters with."""
    return _folds_of(table, np.sort(rows), folds, 1, f"inner/{seed}")


def fixed_fold(
    table: StudyTable, splits: Sequence[str | None], *, train: Sequence[str] = ("train", "valid"), test: str = "test"
) -> list[Fold]:
    """
    Return the only fold of a published split.

    Args:
        splits (sequence (n,)): The split of each recording; None where it has none.
        train: The splits to train on. Hyper-parameters are chosen by [`inner_folds`] of these.

    Raises:
        `LeakError`: a patient in both. [`StudyError`]: a split without recordings.
    """
    names = np.array([split or "" for split in splits])
    rows = {"train": np.flatnonzero(np.isin(names, list(train))), "test": np.flatnonzero(names == test)}
    if empty := [use for use, found in rows.items() if not len(found)]:
        present = ", ".join(sorted(set(names) - {""})) or "none"
        raise StudyError(f"the split has no recordings to {empty[0]} on; splits found: {present}")
    fold = Fold(0, 0, rows["train"], rows["test"])
    check_fold(table, fold)
    return [fold]


def check_fold(table: StudyTable, fold: Fold) -> None:
    """Raise `LeakError` where a recording or a patient is trained on and tested on."""
    numbers = table.groups.numbers
    recordings = np.intersect1d(fold.train, fold.test)
    patients = np.intersect1d(numbers[fold.train], numbers[fold.test])
    if len(recordings) or len(patients):
        row = fold.test[np.isin(numbers[fold.test], patients)][0]
        raise LeakError(
            f"repeat {fold.repeat}, fold {fold.fold}: {len(recordings)} recordings and {len(patients)} patients are "
            f"in training and in test, such as recording {table.ids[row]}. Draw folds by patient: make_folds"
        )


def nested_training(table: StudyTable, fold: Fold, sizes: Sequence[float], *, seed: int = 0) -> dict[float, Fold]:
    """
    Return the fold with smaller training sets, for a learning curve.

    The sets are nested, hold the recordings of a patient together (but for the last patient of a count), and each keeps
    the balance of labels. Folds and repeats draw independently: sets that share most of their recordings would hide
    what another draw changes.

    Args:
        sizes: Numbers of recordings, or shares of the fold's training recordings (above 0, at most 1).

    Returns:
        By size, in the order given.

    Raises:
        [`StudyError`]: a size that is larger than a training set.
    """
    available = len(fold.train)
    counts = {size: training_count(available, size) for size in sizes}
    most = max((count for count in counts.values() if count < available), default=0)
    ordered = _balanced_order(table, fold.train, f"{seed}/{fold.repeat}/{fold.fold}", most)
    return {
        size: fold if count == available else replace(fold, train=np.sort(ordered[:count]))
        for size, count in counts.items()
    }


def training_count(available: int, size: float) -> int:
    """Return how many of the available recordings a size means."""
    whole = 0 < size <= 1 or (size == int(size) and 1 < size <= available)
    if not whole:
        raise StudyError(
            f"training sizes must be shares above 0 and at most 1, or numbers of recordings from 2 to {available}, "
            f"those of the smallest training set; found: {size:g}"
        )
    return int(np.ceil(size * available - 1e-9)) if size <= 1 else int(size)


@dataclass(frozen=True)
class Feasibility:
    """
    What can be studied.

    Args:
        labels (`tuple[int, ...]`): Labels with enough patients, as columns of the table.
        problems (`tuple[str, ...]`): Why others are left out: a sentence each.
    """

    labels: tuple[int, ...]
    problems: tuple[str, ...]


def check_feasible(table: StudyTable, folds: Sequence[Fold], sizes: Sequence[float] = (1.0,)) -> Feasibility:
    """
    Find the labels that a study of these folds can be made of, before it begins.

    A label needs `FEWEST_PER_FOLD` patients with it, and as many without it, in the test part of each fold, and
    `FEWEST_IN_TRAINING` recordings of each kind to be expected in the smallest training set.

    Raises:
        [`TooFewError`]: fewer than `FEWEST_PATIENTS` patients, or no label left.
    """
    groups = table.groups
    parts = len({fold.fold for fold in folds})
    needed = FEWEST_PER_FOLD * parts
    if groups.count < FEWEST_PATIENTS:
        of_patients = f" of {groups.count} patients" if groups.unit == "patient" else ", whose patients are unknown"
        raise TooFewError(
            f"too few for a study: {len(table)} recordings{of_patients}; a study needs at least "
            f"{FEWEST_PATIENTS} {groups.unit}s, with at least {needed} that have a label and {needed} that do not"
        )
    smallest = min(training_count(min(len(fold.train) for fold in folds), size) for size in sizes)
    kinds = {"with": 1, "without": 0}
    patients = {
        how: np.min([table.patients_with(value, fold.test) for fold in folds], axis=0) for how, value in kinds.items()
    }
    expected = {how: np.mean(table.targets == value, axis=0) * smallest for how, value in kinds.items()}
    kept, problems = [], []
    for column, name in enumerate(table.label_names):
        reasons = [
            f"a fold has {patients[how][column]} {groups.unit}s {how} it (at least {FEWEST_PER_FOLD} are needed)"
            for how in kinds
            if patients[how][column] < FEWEST_PER_FOLD
        ] or [
            f"{smallest} training recordings have {expected[how][column]:.1f} {how} it on average (at least "
            f"{FEWEST_IN_TRAINING} are needed; give a larger smallest size)"
            for how in kinds
            if expected[how][column] < FEWEST_IN_TRAINING
        ]
        if reasons:
            problems.append(f"{name} is left out: {' and '.join(reasons)}")
        else:
            kept.append(column)
    if not kept:
        raise TooFewError(
            f"too few for a study: no label has {FEWEST_PER_FOLD} {groups.unit}s with it and {FEWEST_PER_FOLD} without "
            f"it in each of {parts} folds ({needed} of each in all). {'. '.join(problems)}"
        )
    return Feasibility(tuple(kept), tuple(problems))


# ----------------------------------------------------------------------------------------------------------------------
# Balance
# ----------------------------------------------------------------------------------------------------------------------


def _folds_of(table: StudyTable, rows: np.ndarray, folds: int, repeats: int, seed: str) -> list[Fold]:
    shares, members = _patient_shares(table, rows)
    if len(shares) < folds:
        raise TooFewError(
            f"too few for {folds} folds: {len(rows)} recordings of {len(shares)} {table.groups.unit}s; "
            f"at least {folds} are needed"
        )
    numbers = np.unique(table.groups.numbers[rows], return_inverse=True)[1]
    found = []
    for repeat in range(repeats):
        order = _rank(table, members, f"{seed}/{repeat}")
        home = np.empty(len(shares), dtype=np.int64)
        home[order] = _balanced_homes(shares[order], folds)
        of_row = home[numbers]
        found += [Fold(repeat, fold, rows[of_row != fold], rows[of_row == fold]) for fold in range(folds)]
    return found


def _patient_shares(table: StudyTable, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Return what each patient of these rows brings, and the patients' numbers.

    It is the share (patients, 2 L + 1) of all positives and all negatives of each label, and of all recordings.
    """
    targets = table.targets[rows]
    columns = np.concatenate([targets == 1, targets == 0, np.ones((len(rows), 1), dtype=bool)], axis=1)
    members, numbers = np.unique(table.groups.numbers[rows], return_inverse=True)
    counts = np.zeros((len(members), columns.shape[1]))
    np.add.at(counts, numbers, columns)
    return counts / np.maximum(counts.sum(axis=0), 1), members


def _rank(table: StudyTable, members: np.ndarray, seed: str) -> np.ndarray:
    """Return the order of these patients that depends on their ids and the seed alone."""
    keys = sorted(set(patient_keys(table.ids, table.patients)))
    named = {keys[number]: index for index, number in enumerate(members.tolist())}
    return np.array([named[key] for key in rank_patients(named, seed)], dtype=np.int64)


def _balanced_homes(shares: np.ndarray, folds: int) -> np.ndarray:
    """Return the fold of each patient; the sum of the squared shares of the folds is made small."""
    home = np.empty(len(shares), dtype=np.int64)
    filled = np.zeros((folds, shares.shape[1]))
    for patient in np.argsort(-(shares**2).sum(axis=1), kind="stable"):
        # Squares grow least where the fold holds the least of what the patient brings.
        home[patient] = np.argmin(filled @ shares[patient])
        filled[home[patient]] += shares[patient]
    squares = (shares**2).sum(axis=1)
    rows = np.arange(len(shares))
    sizes = np.bincount(home, minlength=folds)
    for _ in range(min(_MOST_MOVES, 4 * len(shares))):
        held = shares @ filled.T
        change = 2 * (held - held[rows, home][:, None]) + 2 * squares[:, None]
        change[rows, home] = 0
        change[sizes[home] == 1] = 0
        patient, fold = np.unravel_index(np.argmin(change), change.shape)
        if change[patient, fold] >= -1e-12:
            break
        filled[home[patient]] -= shares[patient]
        filled[fold] += shares[patient]
        sizes[home[patient]] -= 1
        sizes[fold] += 1
        home[patient] = fold
    return home


def _balanced_order(table: StudyTable, rows: np.ndarray, seed: str, count: int) -> np.ndarray:
    """Return at least `count` of these rows, patient by patient, so that every beginning is balanced in labels."""
    shares, members = _patient_shares(table, rows)
    waiting = _rank(table, members, seed).tolist()
    of_patient: dict[int, list[int]] = {}
    by_id = sorted(rows.tolist(), key=lambda row: table.ids[row])
    for row in by_id:
        of_patient.setdefault(int(table.groups.numbers[row]), []).append(row)
    drawn: list[int] = []
    taken = np.zeros(shares.shape[1])
    while len(drawn) < count:
        window = np.array(waiting[:_WINDOW])
        # Each label's share should grow as the share of recordings, the last column.
        ahead = taken + shares[window]
        chosen = int(np.argmin(((ahead[:, :-1] - ahead[:, -1:]) ** 2).sum(axis=1)))
        taken = ahead[chosen]
        drawn += of_patient[int(members[waiting.pop(chosen)])]
    return np.array(drawn, dtype=np.int64)
