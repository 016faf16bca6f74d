"""Intervals: over patients, the same by the same seed, honest where there is little to tell from."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgfm_hf import evaluation as ev
from ecgfm_hf.evaluation import intervals
from ecgfm_hf.evaluation.intervals import RANKING

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def _recordings(seed=0, patients=150, labels=3):
    """Labels, scores and patients of two recordings each."""
    generator = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), 2)
    true = (generator.random((patients, labels)) < 0.3)[patient].astype(float)
    scores = 1 / (1 + np.exp(-(generator.standard_normal((patients, labels))[patient] + 1.5 * true)))
    return true, scores, [f"p{number}" for number in patient]


@given(st.integers(0, 10_000), st.integers(1, 30))
@settings(max_examples=80, deadline=None)
def test_a_weighting_equals_copies_of_the_recordings(seed, n):
    generator = np.random.default_rng(seed)
    labels = (generator.random((n, 2)) < 0.4).astype(float)
    labels[generator.random((n, 2)) < 0.15] = np.nan
    scores = generator.integers(0, 8, (n, 2)) / 7
    targets = np.where(np.isnan(labels), np.nan, scores + generator.standard_normal((n, 2)))
    decided = np.where([True, False], scores > 0.4, np.nan)
    classes = np.where(generator.random((n, 1)) < 0.1, np.nan, np.eye(2)[generator.integers(0, 2, n)])
    true, given_ = generator.random((n, 26)) < 0.1, generator.random((n, 26)) < 0.1
    weights = generator.integers(0, 4, (n, 3))
    copies = [np.repeat(np.arange(n), weights[:, column]) for column in range(3)]
    makers = (
        lambda rows: ev.ranking_statistics(labels[rows], scores[rows], RANKING, 0.8),
        lambda rows: ev.decision_statistics(labels[rows], decided[rows]),
        lambda rows: ev.probability_statistics(labels[rows], scores[rows]),
        lambda rows: ev.regression_statistics(targets[rows], scores[rows]),
        lambda rows: ev.accuracy_statistics(classes[rows], scores[rows]),
        lambda rows: ev.challenge_statistics(true[rows], given_[rows]),
    )
    for make in makers:
        weighted = make(np.arange(n)).compute(weights)
        for column, rows in enumerate(copies):
            copied = make(rows).compute(np.ones((len(rows), 1), dtype=np.int64))
            for metric, values in copied.items():
                np.testing.assert_allclose(weighted[metric][:, column], values[:, 0], rtol=1e-9, atol=1e-12)


def test_values_are_those_of_the_plain_functions():
    labels, scores, patients = _recordings()
    labels[:20, 0] = np.nan
    decided = ev.at_thresholds(scores, np.array([0.6, 0.7, np.nan]))
    statistics = [
        ev.ranking_statistics(labels, scores, RANKING, 0.9),
        ev.decision_statistics(labels, decided),
        ev.probability_statistics(labels, scores),
    ]
    found = ev.bootstrap_intervals(statistics, patients, resamples=100)
    expected = {
        "auroc": ev.auroc(labels, scores),
        "average_precision": ev.average_precision(labels, scores),
        "sensitivity_at_specificity": ev.sensitivity_at_specificity(labels, scores, 0.9),
        "brier": ev.brier(labels, scores),
        **{name: getattr(ev, name)(labels, decided) for name in ("sensitivity", "specificity", "ppv", "f1")},
    }
    assert found.metrics.keys() == expected.keys()
    for metric, values in expected.items():
        np.testing.assert_allclose(found[metric].values, values, err_msg=metric)
        assert (found[metric].macro.value, found[metric].macro.labels_left_out) == pytest.approx(ev.macro(values))
        known = ~np.isnan(values)
        assert (found[metric].low[known] < values[known]).all()
        assert (values[known] < found[metric].high[known]).all()


def test_intervals_follow_from_the_seed_alone(monkeypatch):
    labels, scores, patients = _recordings()
    made = [ev.bootstrap_intervals(ev.ranking_statistics(labels, scores), patients, resamples=200, seed=3)]
    monkeypatch.setattr(intervals, "_BLOCK", 8)
    made.append(ev.bootstrap_intervals(ev.ranking_statistics(labels, scores), patients, resamples=200, seed=3))
    np.testing.assert_array_equal(made[0]["auroc"].resampled, made[1]["auroc"].resampled)
    np.testing.assert_array_equal(made[0]["auroc"].low, made[1]["auroc"].low)
    other = ev.bootstrap_intervals(ev.ranking_statistics(labels, scores), patients, resamples=200, seed=4)
    assert (other["auroc"].low != made[0]["auroc"].low).all()


def test_patients_are_drawn_whole():
    # Each patient has one recording with the label and one without: a resample of patients has as many of both.
    labels, scores = np.tile([[1.0], [0.0]], (40, 1)), np.random.default_rng(0).random((80, 1))
    statistics = ev.decision_statistics(labels, labels)
    drawn = statistics.compute
    counts = []

    def watched(weights):
        counts.append(weights)
        return drawn(weights)

    object.__setattr__(statistics, "compute", watched)
    ev.bootstrap_intervals(statistics, np.repeat(np.arange(40), 2).tolist(), resamples=100)
    for weights in counts:
        assert (weights[::2] == weights[1::2]).all()
        assert (weights.sum(axis=0) == 80).all()
    assert len({tuple(column) for column in np.concatenate(counts[1:], axis=1).T}) > 90
    over = ev.bootstrap_intervals(ev.ranking_statistics(labels, scores), [None] * 80, resamples=100)
    assert over.unit == "recording"


def test_more_recordings_of_the_same_patients_do_not_narrow_the_interval():
    labels, scores, patients = _recordings()
    statistics = ev.ranking_statistics(np.repeat(labels, 4, axis=0), np.repeat(scores, 4, axis=0))
    once = ev.bootstrap_intervals(ev.ranking_statistics(labels, scores), patients)["auroc"]
    often = ev.bootstrap_intervals(statistics, np.repeat(patients, 4).tolist())["auroc"]
    np.testing.assert_allclose(often.low, once.low, atol=1e-12)
    over_recordings = ev.bootstrap_intervals(statistics, [None] * 1200)["auroc"]
    assert (over_recordings.high - over_recordings.low < 0.6 * (often.high - often.low)).all()


def test_what_the_intervals_are_over_is_reported():
    labels, scores, patients = _recordings(patients=20)
    statistics = ev.ranking_statistics(labels, scores)
    over = {
        "known": ev.bootstrap_intervals(statistics, patients, resamples=100),
        "some": ev.bootstrap_intervals(statistics, [None, None, *patients[2:]], resamples=100),
        "unknown": ev.bootstrap_intervals(statistics, [None] * 40, resamples=100),
    }
    assert [(found.unit, found.count) for found in over.values()] == [
        ("patient", 20),
        ("patient", 21),
        ("recording", 40),
    ]
    assert over["known"].note is None
    assert "2 of 40 recordings are unknown" in over["some"].note
    assert "too narrow" in over["unknown"].note


def test_resamples_of_one_class_are_left_out_and_counted():
    labels, scores, patients = _recordings(patients=60, labels=2)
    labels[:, 1] = 0
    labels[:4, 1] = 1  # two patients
    found = ev.bootstrap_intervals(ev.ranking_statistics(labels, scores), patients)["auroc"]
    # Without both in (1 - 2/60) ** 60 = 13% of the resamples.
    assert 80 < found.resamples_left_out[1] < 190
    assert found.resamples_left_out[1] == np.isnan(found.resampled[1]).sum() == found.macro.resamples_left_out
    assert found.resamples_left_out[0] == 0
    assert found.patients.tolist() == [min(int(labels[::2, 0].sum()), 60 - int(labels[::2, 0].sum())), 2]
    assert found.high[1] - found.low[1] > 0.5


def test_where_nothing_can_be_estimated_there_is_no_interval_but_a_reason():
    labels, scores, patients = _recordings(patients=60)
    labels[:, 0] = 0  # no positive
    labels[:, 1] = 0
    labels[:2, 1] = 1  # one patient's recordings
    found = ev.bootstrap_intervals(ev.ranking_statistics(labels, scores), patients)["auroc"]
    assert np.isnan(found.values[0])
    assert not np.isnan(found.values[1])
    assert np.isnan(found.low[:2]).all()
    assert found.reasons == ("the value is undefined", "it depends on a single patient", None)
    assert (found.macro.labels, found.macro.labels_left_out) == (2, 1)
    nothing = ev.bootstrap_intervals(ev.ranking_statistics(labels[:, :1], scores[:, :1]), patients)["auroc"].macro
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()
    assert nothing.reason == "no label has a value"


def test_the_interval_of_a_mean_is_students():
    # A mean's interval is known: t standard errors of the sample. Of 6 patients a bootstrap's own deviation is 9% less.
    errors = np.array([-3.0, -1.0, 0.5, 1.0, 2.0, 4.5])
    found = ev.bootstrap_intervals(
        ev.regression_statistics(np.zeros((6, 1)), errors[:, None]), list("abcdef"), resamples=20_000
    )["bias"]
    expected = scipy.stats.t.interval(0.95, 5, errors.mean(), errors.std(ddof=1) / np.sqrt(6))
    assert (found.low[0], found.high[0]) == pytest.approx(expected, rel=0.02)
    assert (found.macro.low, found.macro.high) == pytest.approx(expected, rel=0.02)


def test_the_interval_of_a_mean_over_labels_has_welchs_degrees_of_freedom():
    # Two labels of other patients, 4 and 12 of them: half the difference of two samples' means, by Welch's t-test.
    first, second = (
        np.array([-2.0, 0.0, 1.0, 5.0]),
        np.array([-1.0, 0.0, 0.0, 1.0, 2.0, -2.0, 1.5, 0.5, -0.5, 3.0, 1, -1]),
    )
    targets = np.full((16, 2), np.nan)
    targets[:4, 0], targets[4:, 1] = 0, 0
    predicted = np.stack([np.append(first, np.zeros(12)), np.append(np.zeros(4), -second)], axis=1)
    resampled = np.random.default_rng(0)
    draws = [
        values[resampled.integers(len(values), size=(20_000, len(values)))].mean(axis=1) for values in (first, second)
    ]
    one = ev.bootstrap_intervals(ev.regression_statistics(targets, predicted), list(range(16)), resamples=100)["bias"]
    # Patients of both labels are drawn together, so that their numbers vary; with them fixed the variance is known.
    fixed = dataclasses.replace(one, resampled=np.stack([draws[0], -draws[1]]))
    expected = scipy.stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    # The degrees of freedom are from the deviations of resamples, so a few more than Welch's own.
    assert (2 * fixed.macro.low, 2 * fixed.macro.high) == pytest.approx((expected.low, expected.high), rel=0.035)


def test_a_perfect_value_is_no_certainty():
    labels = np.repeat([1.0, 0.0], [10, 90])[:, None]
    found = ev.bootstrap_intervals(ev.ranking_statistics(labels, labels), list(range(100)))["auroc"]
    assert found.values[0] == found.high[0] == 1
    # Wilson's with Student's t of 9 degrees of freedom, 2.262.
    assert found.low[0] == pytest.approx(10 / (10 + 2.262**2), abs=1e-3)


def test_regression_accuracy_and_challenge_have_intervals():
    generator = np.random.default_rng(5)
    targets = 60 + 10 * generator.standard_normal((200, 1))
    found = ev.bootstrap_intervals(
        ev.regression_statistics(targets, targets + generator.standard_normal((200, 1)) + 0.5), [None] * 200
    )
    for metric, truth in (("mean_absolute_error", 0.896), ("r_squared", 1 - 1.25 / 100), ("bias", 0.5)):
        assert found[metric].low[0] < truth < found[metric].high[0]
    classes = np.eye(3)[generator.integers(0, 3, 300)]
    found = ev.bootstrap_intervals(
        ev.accuracy_statistics(classes, classes + generator.random((300, 3)) * 2), [None] * 300
    )
    assert found["accuracy"].low[0] < found["accuracy"].values[0] < found["accuracy"].high[0]
    true = generator.random((100, 26)) < 0.1
    given_ = true ^ (generator.random((100, 26)) < 0.05)
    found = ev.bootstrap_intervals(ev.challenge_statistics(true, given_), [None] * 100)["challenge_score"]
    assert found.values[0] == pytest.approx(ev.challenge_score(true, given_))
    assert found.low[0] < found.values[0] < found.high[0] < 1


def test_differences_are_paired():
    labels, scores, patients = _recordings()
    generator = np.random.default_rng(1)
    worse = scores + 0.05 * generator.standard_normal(scores.shape)
    first, second = (ev.ranking_statistics(labels, values) for values in (scores, worse))
    found = ev.bootstrap_difference(first, second, patients)["auroc"]
    np.testing.assert_allclose(found.values, ev.auroc(labels, worse) - ev.auroc(labels, scores))
    single = ev.bootstrap_intervals(first, patients)["auroc"]
    assert (found.high - found.low < 0.5 * (single.high - single.low)).all()
    swapped = ev.bootstrap_difference(second, first, patients)["auroc"]
    np.testing.assert_allclose([swapped.low, swapped.high], [-found.high, -found.low])
    same = ev.bootstrap_difference(first, first, patients)["auroc"]
    assert (same.values == 0).all()
    assert same.reasons == ("it is the same in all resamples",) * 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda one: ev.bootstrap_intervals(one, ["p"] * 3), "300 recordings, but 3 patient ids"),
        (lambda one: ev.bootstrap_intervals(one, ["p"] * 300, resamples=50), "at least 100, found: 50"),
        (lambda one: ev.bootstrap_intervals(one, ["p"] * 300, level=95), "between 0 and 1, found: 95"),
        (
            lambda one: ev.bootstrap_difference(one, ev.ranking_statistics([0.0], [0.1], ("auroc",)), ["p"] * 300),
            "statistics of the same metrics",
        ),
        (lambda one: ev.bootstrap_intervals(ev.ranking_statistics([], []), []), "no recordings"),
        (lambda one: ev.ranking_statistics([0.0], [0.1], ("f1",)), "ranking metrics are auroc.*f1"),
    ],
)
def test_senseless_bootstraps_are_refused_and_named(call, message):
    labels, scores, _ = _recordings()
    with pytest.raises(ev.MetricInputError, match=message):
        call(ev.ranking_statistics(labels, scores))


def _script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    # Few simulations, so a wide gate: 3 standard errors are 6 points. The script's default tells half a point.
    script = _script("interval_coverage")
    case = script.Case("small", 100, 3, 0.3, 0.85, 0.5)
    truth = script.truth(case)["auroc"]
    runs = [script.simulate(case, seed, resamples=100)["auroc"] for seed in range(120)]
    covered = {how: np.mean([run[how][0] <= truth <= run[how][1] for run in runs]) for how in runs[0]}
    assert covered["interval"] >= 0.89
    assert covered["over_recordings"] < covered["interval"] - 0.03


@pytest.mark.parametrize(
    ("scale", "of", "slope", "curvature"),
    [
        ("logit", scipy.special.logit, lambda p: p * (1 - p), lambda p: 2 * p - 1),
        ("log", np.log, lambda p: p, lambda p: -1.0),
        ("log_one_minus", lambda p: -np.log1p(-p), lambda p: 1 - p, lambda p: 1.0),
    ],
)
def test_a_standard_error_on_a_scale_is_half_the_middle_68_percent_or_by_the_slope(scale, of, slope, curvature):
    value = 0.8
    spread = np.random.default_rng(0).beta(40, 10, 2000)
    center, error = intervals._standard_error(value, spread, scale)
    low, high = np.quantile(spread, [scipy.stats.norm.cdf(-1), scipy.stats.norm.cdf(1)])
    assert error == pytest.approx((of(high) - of(low)) / 2)
    assert center == pytest.approx(of(value) - curvature(value) * error**2 / 2)
    # Most resamples are the same, so the middle has no width: the delta method, with the sample's deviation.
    few = np.array([0.8] * 9 + [0.7])
    center, error = intervals._standard_error(value, few, scale)
    assert error == pytest.approx(np.std(few, ddof=1) / slope(value))
    assert center == pytest.approx(of(value) - curvature(value) * error**2 / 2)
