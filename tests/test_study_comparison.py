"""The comparison of a study's arms, what arms may see, and the verdict in words."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_study_folds import draw_table

from ecgfm_hf.data.leakage import LeakError
from ecgfm_hf.study import FoldScores, StudyError, compare, fit_and_score, fixed_fold, make_folds, nested_training
from ecgfm_hf.study.folds import Fold
from ecgfm_hf.study.verdict import describe, verdict

TABLE = draw_table(patients=200)
FOLDS = make_folds(TABLE, folds=5, seed=1)
KNOWN = np.nan_to_num(TABLE.targets, nan=0.5)


def arm_scores(noise: float, seed: int) -> np.ndarray:
    return KNOWN + noise * np.random.default_rng(seed).standard_normal(KNOWN.shape)


def results(arms: dict[str, np.ndarray], folds=FOLDS, sizes=(1.0,)) -> list[FoldScores]:
    return [
        FoldScores(arm, size, small, scores[small.test])
        for fold in folds
        for size, small in nested_training(TABLE, fold, sizes).items()
        for arm, scores in arms.items()
    ]


ARMS = {"features": arm_scores(1.5, 0), "linear": arm_scores(1.5, 1), "finetune": arm_scores(0.7, 2)}
COMPARED = compare(TABLE, results(ARMS, sizes=(60, 1.0)), resamples=200)


# ----------------------------------------------------------------------------------------------------------------------
# Figures and intervals
# ----------------------------------------------------------------------------------------------------------------------


def test_figures_equal_those_of_scikit_learn():
    from sklearn.metrics import average_precision_score, roc_auc_score

    for name, metric in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
        found = next(arm for arm in COMPARED.arms if arm.arm == "linear" and arm.size == 1.0)
        expected = np.empty((len(FOLDS), TABLE.targets.shape[1]))
        for number, fold in enumerate(FOLDS):
            for label in range(expected.shape[1]):
                rows = fold.test[~np.isnan(TABLE.targets[fold.test, label])]
                expected[number, label] = metric(TABLE.targets[rows, label], ARMS["linear"][rows, label])
        assert [one.value for one in found.labels[name]] == pytest.approx(expected.mean(axis=0), abs=1e-12)
        assert found.macro[name].value == pytest.approx(expected.mean(), abs=1e-12)
        assert found.macro[name].low < found.macro[name].value < found.macro[name].high


def test_all_pairs_of_arms_are_compared_at_each_size():
    assert [(one.first, one.second, one.size) for one in COMPARED.differences] == [
        (first, second, size)
        for size in (60, 1.0)
        for first, second in (("features", "linear"), ("features", "finetune"), ("linear", "finetune"))
    ]
    assert [arm.recordings for arm in COMPARED.arms[:3]] == [60] * 3
    assert COMPARED.covers == "patients and training sets"


def test_joint_intervals_are_wider_than_each_by_itself():
    assert 0.95 < COMPARED.joint_level < 1 - 0.05 / len(COMPARED.differences) + 1e-3
    for one in COMPARED.differences:
        assert one.joint_low < one.own.low < one.own.value < one.own.high < one.joint_high
        assert one.detectable > one.own.value - one.joint_low


def test_the_variance_is_the_sum_of_that_over_patients_and_the_spread_between_folds():
    ratio = len(TABLE) / sum(len(fold.train) for fold in FOLDS)
    compared = [one for one in COMPARED.differences if one.size == 1.0]
    per_fold = np.array(
        [[_macro(ARMS[one.first], fold) - _macro(ARMS[one.second], fold) for fold in FOLDS] for one in compared]
    )
    spread = per_fold.var(axis=1, ddof=1)
    expected = np.sqrt((spread + spread.mean()) / 2 * ratio)
    assert [one.own.over_training for one in compared] == pytest.approx(expected, rel=1e-9)
    (alone,) = compare(TABLE, results({name: ARMS[name] for name in ("linear", "finetune")}), resamples=200).differences
    assert alone.own.over_training == pytest.approx(np.sqrt(spread[-1] * ratio), rel=1e-9)
    found = compared[-1]
    assert found.own.over_patients > 0


def _macro(scores: np.ndarray, fold: Fold) -> float:
    from ecgfm_hf.evaluation import auroc

    return float(auroc(TABLE.targets[fold.test], scores[fold.test]).mean())


def test_the_comparison_does_not_depend_on_the_order_of_results():
    backwards = compare(TABLE, results(ARMS, sizes=(1.0, 60))[::-1], resamples=200)
    found, expected = (
        {frozenset((one.first, one.second, one.size)): abs(one.own.value) for one in compared.differences}
        for compared in (backwards, COMPARED)
    )
    assert found == pytest.approx(expected)


def test_arms_of_equal_scores_are_not_different():
    same = compare(TABLE, results({"one": ARMS["linear"], "other": 2 * ARMS["linear"] + 1}), resamples=200)
    (found,) = same.differences
    assert (found.own.low, found.own.value, found.own.high, found.better) == (0, 0, 0, None)
    assert describe(found) == "one and other rank the recordings alike."
    assert verdict(same, {"one"}).caveats[0].startswith("The intervals have a level of 95%. They cover patients")


def test_arms_are_compared_on_the_folds_that_both_have():
    some = [one for one in results(ARMS) if one.arm != "finetune" or one.fold.fold < 3]
    found = compare(TABLE, some, resamples=200)
    assert [(one.second, one.folds) for one in found.differences] == [("linear", 5), ("finetune", 3), ("finetune", 3)]
    assert "finetune at size 1 has 3 of 5 folds." in found.notes


def test_a_fixed_split_covers_patients_and_says_what_it_does_not_cover():
    splits = np.where(TABLE.groups.numbers % 4 == 0, "test", "train").tolist()
    (fold,) = fixed_fold(TABLE, splits)
    once = compare(TABLE, results(ARMS, [fold]), resamples=200)
    assert once.covers == "patients"
    assert once.differences[0].own.over_training == 0
    assert "not what another training set or seed would change" in " ".join(once.notes)
    seeds = [replace(fold, repeat=seed) for seed in range(3)]
    several = compare(
        TABLE,
        [FoldScores("a", 1.0, one, ARMS["linear"][one.test] + 0.1 * one.repeat * KNOWN[one.test]) for one in seeds]
        + [FoldScores("b", 1.0, one, ARMS["features"][one.test]) for one in seeds],
        resamples=200,
    )
    assert several.covers == "patients and seeds"
    assert several.differences[0].own.over_training > 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda given: given + given[:1], LeakError, "recordings are tested twice"),
        (lambda given: [], StudyError, "no scores"),
        (lambda given: [replace(given[0], scores=given[0].scores[:-1]), *given[1:]], StudyError, "scores must be"),
        (lambda given: [replace(given[0], scores=given[0].scores * np.nan), *given[1:]], StudyError, "not finite"),
        (
            lambda given: [replace(given[0], fold=replace(given[0].fold, train=np.arange(len(TABLE))))],
            LeakError,
            "patients are in training and in test",
        ),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        compare(TABLE, change(results(ARMS)), resamples=200)


# ----------------------------------------------------------------------------------------------------------------------
# What arms may see
# ----------------------------------------------------------------------------------------------------------------------


class CentroidArm:
    """The difference of a label's two mean inputs is its weight. It does what it is given, honestly or not."""

    def __init__(self, look=lambda data: None, batch=lambda values: values):
        self._look, self._batch = look, batch

    def fit(self, data, seed):
        self._look(data)
        values, targets = data.inputs[data.rows], data.targets[data.rows]
        weights = np.stack([values[one == 1].mean(axis=0) - values[one == 0].mean(axis=0) for one in targets.T], axis=1)
        return lambda found: self._batch(found) @ weights


def test_an_arm_that_keeps_to_its_training_fold_is_scored():
    scores = fit_and_score(CentroidArm(), TABLE, ARMS["linear"], FOLDS[0], 0)
    assert scores.shape == (len(FOLDS[0].test), 4)
    compare(TABLE, [FoldScores("a", 1.0, FOLDS[0], scores)], resamples=200)


@pytest.mark.parametrize(
    ("what", "look"),
    [
        ("standardising over the whole table", lambda data: np.asarray(data.inputs).mean(axis=0)),
        ("standardising over all rows", lambda data: data.inputs[np.arange(len(TABLE))].mean(axis=0)),
        ("all inputs one by one", lambda data: np.mean([value for value in data.inputs], axis=0)),
        ("tuning on test rows", lambda data: data.inputs[FOLDS[0].test]),
        ("calibrating on test labels", lambda data: data.targets[FOLDS[0].test]),
        ("all labels", lambda data: np.nanmean(data.targets, axis=0)),
    ],
)
def test_what_an_arm_may_not_see_is_refused(what, look):
    with pytest.raises(LeakError, match=r"outside the training fold|of the whole table"):
        fit_and_score(CentroidArm(look), TABLE, ARMS["linear"], FOLDS[0], 0)


def test_an_arm_gets_no_label_of_the_test_fold_with_its_table():
    seen = []
    fit_and_score(CentroidArm(lambda data: seen.append(data.table.targets)), TABLE, ARMS["linear"], FOLDS[0], 0)
    assert np.isnan(seen[0][FOLDS[0].test]).all()
    assert np.array_equal(seen[0][FOLDS[0].train], TABLE.targets[FOLDS[0].train], equal_nan=True)


def test_inner_folds_of_an_arm_are_within_its_training_rows():
    seen = []
    fit_and_score(CentroidArm(lambda data: seen.extend(data.inner_folds(3))), TABLE, ARMS["linear"], FOLDS[0], 0)
    for inner in seen:
        assert set(inner.train) | set(inner.test) == set(FOLDS[0].train)


def test_scores_that_depend_on_the_other_test_recordings_are_refused():
    arm = CentroidArm(batch=lambda values: (values - values.mean(axis=0)) / values.std(axis=0))
    with pytest.raises(LeakError, match="scores of 8 test recordings change where the others are absent"):
        fit_and_score(arm, TABLE, ARMS["linear"], FOLDS[0], 0)


def test_a_patient_in_two_folds_is_refused_before_an_arm_is_fitted():
    fold = FOLDS[0]
    twice = next(row for row in fold.test if (TABLE.groups.numbers == TABLE.groups.numbers[row]).sum() > 1)
    torn = replace(fold, train=np.sort(np.append(fold.train, twice)), test=fold.test[fold.test != twice])
    with pytest.raises(LeakError, match="0 recordings and 1 patients are in training and in test"):
        fit_and_score(CentroidArm(pytest.fail), TABLE, ARMS["linear"], torn, 0)


# ----------------------------------------------------------------------------------------------------------------------
# Verdict
# ----------------------------------------------------------------------------------------------------------------------


def test_better_is_said_only_where_the_joint_interval_excludes_zero():
    for one in COMPARED.differences:
        sentence = describe(one)
        assert ("is better than" in sentence) == (one.joint_low > 0 or one.joint_high < 0)
        if one.better is None:
            assert sentence.startswith(f"no difference shown between {one.first} and {one.second}")
            assert f"a difference of {one.detectable:.3f} would have been shown" in sentence
    assert {one.better for one in COMPARED.differences} == {None, "finetune"}


def test_the_verdict_answers_whether_ecgfm_helps_by_how_much_and_with_how_many_labels():
    found = verdict(COMPARED, {"linear", "finetune"})
    assert found.answer == "yes"
    assert found.headline.startswith("Yes, ECG-FM helps on these recordings from 60 labelled recordings on.")
    assert re.search(r"finetune is better than features by 0\.\d+ to 0\.\d+ in macro AUROC", found.headline)
    assert (len(found.by_size), len(found.pairs)) == (2, 6)


def test_the_verdict_is_no_where_an_arm_without_ecgfm_is_better_than_all_with_it():
    found = verdict(COMPARED, {"linear", "features"})
    assert found.answer == "no"
    assert "finetune is better than" in found.headline


def test_the_verdict_is_not_shown_where_no_interval_excludes_zero():
    equal = compare(TABLE, results({name: ARMS[name] for name in ("features", "linear")}), resamples=200)
    found = verdict(equal, {"linear"})
    assert found.answer == "not shown"
    assert found.headline.startswith("It is not shown that ECG-FM helps on these recordings.")
    assert "would have been shown with a probability of 80%" in found.headline
    assert verdict(equal, {"linear", "features"}).headline.startswith("The study does not compare")


# ----------------------------------------------------------------------------------------------------------------------
# Calibration, small: scripts/study_calibration.py does it in full
# ----------------------------------------------------------------------------------------------------------------------


def test_equal_arms_are_seldom_called_different_and_an_advantage_is_found():
    script = _script("study_calibration")
    small = {"patients": 100, "recordings": 2.0, "sizes": (1.0,), "prevalences": (0.5, 0.3)}
    equal = script.Scenario("equal", noise=(1.0, 1.0, 1.0), **small)
    runs = [script.simulate(equal, seed, 100) for seed in range(40)]
    found = script.summary(equal, np.full((3, 1), 0.75), runs)
    # 3% of 500 studies; of 40, with three standard errors.
    assert found["wrong_better"] <= 12.5
    assert found["pair_coverage"] >= 90
    planted = script.Scenario("planted", noise=(0.2, 2.0, 2.0), **small)
    runs = [script.simulate(planted, seed, 100) for seed in range(5)]
    assert script.summary(planted, np.array([[0.9], [0.65], [0.65]]), runs)["first_better_by_size"][0] >= 80


def _script(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
