"""Folds of a study: patients, balance, nested training sets, and what is too few."""

from dataclasses import replace

import numpy as np
import pytest

from ecgfm_hf.data.leakage import LeakError
from ecgfm_hf.study import (
    StudyError,
    StudyTable,
    TooFewError,
    check_feasible,
    fixed_fold,
    inner_folds,
    make_folds,
    nested_training,
)

PREVALENCES = (0.5, 0.3, 0.2, 0.1)


def draw_table(seed: int = 0, patients: int = 200, prevalences=PREVALENCES, unknown: float = 0.1) -> StudyTable:
    generator = np.random.default_rng(seed)
    of = np.repeat(np.arange(patients), 1 + generator.poisson(1.5, patients))
    latent = generator.standard_normal((patients, len(prevalences)))[of] + 0.7 * generator.standard_normal(
        (len(of), len(prevalences))
    )
    targets = (latent > np.quantile(latent, 1 - np.array(prevalences), axis=0).diagonal()).astype(float)
    targets[generator.random(targets.shape) < unknown] = np.nan
    names = tuple(f"label {number}" for number in range(len(prevalences)))
    return StudyTable(tuple(f"r{n}" for n in range(len(of))), tuple(f"p{n}" for n in of), targets, names)


def reordered(table: StudyTable, rows: np.ndarray) -> StudyTable:
    ids, patients = (tuple(values[row] for row in rows) for values in (table.ids, table.patients))
    return StudyTable(ids, patients, table.targets[rows], table.label_names)


def homes(table: StudyTable, folds) -> dict[tuple[int, str], int]:
    return {(fold.repeat, table.ids[row]): fold.fold for fold in folds for row in fold.test}


def imbalance(targets: np.ndarray, home: np.ndarray, folds: int) -> float:
    """The mean over labels and kinds of how far the share of the worst fold is from an even one."""
    kinds = [targets == 1, targets == 0]
    counts = np.stack([[kind[home == fold].sum(axis=0) for fold in range(folds)] for kind in kinds])
    return float(np.abs(counts / counts.sum(axis=1, keepdims=True) - 1 / folds).max(axis=1).mean())


def test_no_patient_is_in_two_folds_and_every_row_is_tested_once_a_repeat():
    table = draw_table()
    folds = make_folds(table, folds=5, repeats=3, seed=1)
    assert len(folds) == 15
    for fold in folds:
        assert not set(table.groups.numbers[fold.train]) & set(table.groups.numbers[fold.test])
        assert np.array_equal(np.sort(np.concatenate([fold.train, fold.test])), np.arange(len(table)))
    for repeat in range(3):
        tested = np.concatenate([fold.test for fold in folds if fold.repeat == repeat])
        assert np.array_equal(np.sort(tested), np.arange(len(table)))


def test_folds_are_balanced_as_well_as_scikit_learns_stratified_group_k_fold():
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    ours, stratified, all_labels, grouped = [], [], [], []
    for seed in range(6):
        table = draw_table(seed, patients=60 + 20 * seed, unknown=0)
        home = np.empty(len(table), dtype=int)
        numbers = table.groups.numbers
        for label in range(len(PREVALENCES)):
            one = table.with_labels([label])
            for fold in make_folds(one, seed=seed):
                home[fold.test] = fold.fold
            ours.append(imbalance(one.targets, home, 5))
            splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
            for number, (_, test) in enumerate(splitter.split(numbers, one.targets[:, 0], numbers)):
                home[test] = number
            stratified.append(imbalance(one.targets, home, 5))
        for fold in make_folds(table, seed=seed):
            home[fold.test] = fold.fold
        all_labels.append(imbalance(table.targets, home, 5))
        for number, (_, test) in enumerate(
            GroupKFold(5, shuffle=True, random_state=seed).split(numbers, None, numbers)
        ):
            home[test] = number
        grouped.append(imbalance(table.targets, home, 5))
    assert np.mean(ours) <= np.mean(stratified)
    assert np.max(ours) <= np.max(stratified)
    assert np.mean(all_labels) < 0.4 * np.mean(grouped)


def test_folds_and_training_sets_do_not_depend_on_the_order_of_rows():
    table = draw_table()
    table = replace(table, patients=(None,) * 5 + table.patients[5:])
    other = reordered(table, np.random.default_rng(3).permutation(len(table)))
    found = [make_folds(one, folds=4, repeats=2, seed=5) for one in (table, other)]
    assert homes(table, found[0]) == homes(other, found[1])
    small = [
        nested_training(one, folds[3], (40, 0.5), seed=2) for one, folds in zip((table, other), found, strict=True)
    ]
    for size in (40, 0.5):
        assert {table.ids[row] for row in small[0][size].train} == {other.ids[row] for row in small[1][size].train}


def test_the_seed_and_the_repeat_change_the_folds():
    table = draw_table()
    first, again, other = (homes(table, make_folds(table, repeats=2, seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert {row: fold for (repeat, row), fold in first.items() if repeat == 0} != {
        row: fold for (repeat, row), fold in first.items() if repeat == 1
    }


def test_training_sets_of_a_learning_curve_are_nested_balanced_and_within_the_fold():
    table = draw_table(patients=300)
    folds = make_folds(table)
    curves = [nested_training(table, fold, (50, 100, 0.5, 1.0)) for fold in folds]
    for fold, curve in zip(folds, curves, strict=True):
        assert [len(small.train) for small in curve.values()][:2] == [50, 100]
        assert np.array_equal(curve[1.0].train, fold.train)
        for smaller, larger in zip((50, 100, 0.5), (100, 0.5, 1.0), strict=True):
            assert set(curve[smaller].train) < set(curve[larger].train)
        shares = [np.nanmean(table.targets[rows], axis=0) for rows in (curve[100].train, fold.train)]
        assert np.abs(shares[0] - shares[1]).max() < 0.05
    # Drawn again in each fold: two sets of 50 of 600 share few recordings.
    assert len(np.intersect1d(curves[0][50].train, curves[1][50].train)) < 20


@pytest.mark.parametrize("about", [{"folds": 2}, {"repeats": 0}])
def test_folds_that_show_nothing_are_refused(about):
    with pytest.raises(StudyError, match="folds must be at least 3 and repeats at least 1"):
        make_folds(draw_table(), **about)


@pytest.mark.parametrize("size", [0, -1, 1.5, 10_000])
def test_a_training_size_that_cannot_be_is_refused(size):
    table = draw_table()
    with pytest.raises(StudyError, match=f"numbers of recordings from 2 to .*found: {size:g}"):
        nested_training(table, make_folds(table)[0], (size,))


def test_inner_folds_are_within_the_rows_and_by_patient():
    table = draw_table()
    fold = make_folds(table)[0]
    for inner in inner_folds(table, fold.train, folds=3):
        assert np.array_equal(np.sort(np.concatenate([inner.train, inner.test])), fold.train)
        assert not set(table.groups.numbers[inner.train]) & set(table.groups.numbers[inner.test])


def test_a_published_split_with_a_patient_in_both_parts_is_refused():
    table = draw_table()
    splits = np.where(table.groups.numbers % 5 == 0, "test", "train").tolist()
    splits[next(row for row, split in enumerate(splits) if split == "train")] = None
    (fold,) = fixed_fold(table, splits)
    assert [splits[row] for row in fold.test] == ["test"] * len(fold.test)
    twice = next(row for row in fold.test if (table.groups.numbers == table.groups.numbers[row]).sum() > 1)
    splits[twice] = "train"
    with pytest.raises(LeakError, match="0 recordings and 1 patients are in training and in test"):
        fixed_fold(table, splits)
    with pytest.raises(StudyError, match="no recordings to test on; splits found: train"):
        fixed_fold(table, ["train"] * len(table))


def test_labels_that_are_too_rare_are_named_and_left_out():
    table = draw_table(patients=150, prevalences=(0.4, 0.02, 0.06))
    found = check_feasible(table, make_folds(table), sizes=(100, 1.0))
    assert found.labels == (0,)
    assert found.problems[0].startswith("label 1 is left out: a fold has ")
    assert "patients with it (at least 4 are needed)" in found.problems[0]
    kept = table.with_labels(found.labels)
    assert kept.label_names == ("label 0",)
    with pytest.raises(TooFewError, match=r"label 1 is left out.*label 2 is left out"):
        check_feasible(table.with_labels([1, 2]), make_folds(table))


def test_a_label_that_is_too_rare_for_the_smallest_training_set_is_left_out():
    table = draw_table(patients=500, prevalences=(0.4, 0.08))
    found = check_feasible(table, make_folds(table), sizes=(20, 1.0))
    assert found.labels == (0,)
    assert "20 training recordings have 1.4 with it on average" in found.problems[0]
    assert check_feasible(table, make_folds(table)).labels == (0, 1)


def test_forty_recordings_are_too_few_for_a_study():
    table = draw_table(patients=200)
    few = reordered(table, np.arange(40))
    with pytest.raises(TooFewError, match=r"too few for a study: 40 recordings of \d+ patients; a study needs"):
        check_feasible(few, make_folds(few))
    with pytest.raises(TooFewError, match="too few for 5 folds: 3 recordings of"):
        make_folds(reordered(table, np.arange(3)))


def test_recordings_of_unknown_patients_count_as_patients_of_their_own_and_are_noted():
    table = draw_table()
    some = replace(table, patients=(None,) * 7 + table.patients[7:])
    assert some.groups.note.startswith(f"The patients of 7 of {len(table)} recordings are unknown. Each is assumed")
    unknown = replace(table, patients=(None,) * len(table))
    assert (unknown.groups.count, unknown.groups.unit) == (len(table), "recording")
    assert table.groups.note is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ("r0",) * 3}, "unique"),
        ({"targets": np.array([[0.0], [2.0], [1.0]])}, "recording r1, label a: must be 0, 1 or unknown"),
        ({"patients": ("p0",)}, "a patient for each recording"),
    ],
)
def test_a_table_that_cannot_be_is_refused(change, message):
    about = {"ids": ("r0", "r1", "r2"), "patients": (None,) * 3, "targets": np.zeros((3, 1)), "label_names": ("a",)}
    with pytest.raises(StudyError, match=message):
        StudyTable(**{**about, **change})
