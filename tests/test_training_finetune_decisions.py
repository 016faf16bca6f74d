"""From segments to recordings, and from a validation split to calibration and thresholds."""

import numpy as np
import pytest

from ecgfm_hf import ECGFMConfig
from ecgfm_hf.evaluation import apply_calibration, fit_calibration, fit_thresholds
from ecgfm_hf.training import FinetuneSettings
from ecgfm_hf.training.operating_points import fit_operating_points
from ecgfm_hf.training.trainer import recording_metrics, recording_table

ROWS = np.array([3, 3, 5, 8, 8, 8])


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def test_scores_of_recordings_are_aggregated_as_the_config_says():
    config = ECGFMConfig(id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1}, label_aggregation={"b": "max"})
    logits = np.arange(12.0).reshape(6, 2) / 4 - 1
    labels = np.array([[0, 1], [0, 1], [1, np.nan], [1, 0], [1, 0], [1, 0]])
    rows, scores, targets = recording_table(ROWS, logits, labels, config)
    assert rows.tolist() == [3, 5, 8]
    probabilities = sigmoid(logits)
    np.testing.assert_allclose(
        scores[:, 0], [probabilities[:2, 0].mean(), probabilities[2, 0], probabilities[3:, 0].mean()]
    )
    np.testing.assert_allclose(scores[:, 1], [probabilities[1, 1], probabilities[2, 1], probabilities[5, 1]])
    np.testing.assert_array_equal(targets, [[0, 1], [1, np.nan], [1, 0]])


def test_classes_are_one_hot_and_unknown_ones_are_no_class():
    config = ECGFMConfig(num_labels=3, problem_type="single_label_classification")
    _, scores, targets = recording_table(ROWS, np.eye(6, 3), np.array([2, 2, -100, 0, 0, 0]), config)
    np.testing.assert_array_equal(targets, [[0, 0, 1], [np.nan] * 3, [1, 0, 0]])
    np.testing.assert_allclose(scores.sum(axis=1), 1.0)


def test_regression_is_judged_in_the_targets_own_units():
    config = ECGFMConfig(num_labels=1, problem_type="regression")
    truth = np.array([50.0, 50.0, 60.0, 70.0, 70.0, 70.0])[:, None]
    mean, deviation = np.array([60.0]), np.array([10.0])
    logits = (truth + np.array([1.0, 3.0, -2.0, 2.0, 2.0, 2.0])[:, None] - mean) / deviation
    _, scores, targets = recording_table(ROWS, logits, (truth - mean) / deviation, config, (mean, deviation))
    np.testing.assert_allclose(scores[:, 0], [52.0, 58.0, 72.0])
    metrics = recording_metrics(scores, targets, "regression")
    assert metrics["mean_absolute_error_macro"] == pytest.approx(2.0)
    assert metrics["r_squared_macro"] == pytest.approx(1 - 12 / 200)


@pytest.fixture
def validation():
    """Targets and scores of a label that can be fitted, one of few positives, one of chance, and another good one."""
    random = np.random.default_rng(0)
    targets = (random.uniform(size=(400, 4)) < [0.2, 0.005, 0.3, 0.4]).astype(float)
    targets[random.uniform(size=targets.shape) < 0.1] = np.nan
    logits = 2.0 * np.nan_to_num(targets) + random.standard_normal(targets.shape)
    logits[:, 2] = -3.0 * np.nan_to_num(targets[:, 2]) + random.standard_normal(400)
    return targets, sigmoid(logits)


@pytest.mark.parametrize("how", ["platt", "temperature"])
def test_calibration_undoes_the_weights_and_thresholds_are_of_what_it_gives(validation, how):
    targets, scores = validation
    settings = FinetuneSettings(calibration=how, thresholds="sensitivity:0.9")
    weights = [4.0, 200.0, 2.0, 1.5]
    points = fit_operating_points(["good", "few", "chance", "fine"], targets, scores, weights, settings)
    assert points.calibration.keys() == points.thresholds.keys() == {"good", "fine"}
    for index, name in ((0, "good"), (3, "fine")):
        label, score = targets[:, [index]], scores[:, [index]]
        fits = fit_calibration(label, score, [weights[index]], how=how)
        assert points.calibration[name] == pytest.approx(fits[0])
        expected = fit_thresholds(label, apply_calibration(score, fits), "sensitivity", 0.9)
        assert points.thresholds[name] == pytest.approx(expected[0])
    assert points.cases["few"] == (int(np.nansum(targets[:, 1])), int((targets[:, 1] == 0).sum()))
    few, chance = points.notes
    assert "min_cases=5" in few
    assert "few (" in few
    assert "chance" in chance


def test_thresholds_without_calibration_are_of_the_scores(validation):
    targets, scores = validation
    settings = FinetuneSettings(calibration="none", thresholds="f1")
    points = fit_operating_points(["good", "few", "chance", "fine"], targets, scores, None, settings)
    assert points.calibration == {}
    assert points.thresholds["good"] == pytest.approx(fit_thresholds(targets, scores, "f1")[0])


def test_nothing_is_fitted_where_nothing_was_asked_for(validation):
    points = fit_operating_points(
        list("abcd"), *validation, None, FinetuneSettings(calibration="none", thresholds="none")
    )
    assert (points.calibration, points.thresholds, points.notes) == ({}, {}, [])
