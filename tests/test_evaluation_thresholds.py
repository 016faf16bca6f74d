"""Thresholds and calibration: fitted where that can be done, and used as the pipeline uses them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from ecgfm_hf import evaluation as ev
from ecgfm_hf.pipeline_ecgfm import recording_scores


def _logit(scores):
    return np.log(scores / (1 - scores))


def _sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def _all_thresholds(scores):
    return [*np.unique(scores), np.inf]


def _rates(labels, scores, threshold):
    flagged = scores >= threshold
    sensitivity, specificity = np.mean(flagged[labels == 1]), np.mean(~flagged[labels == 0])
    true_positive = (flagged & (labels == 1)).sum()
    return sensitivity, specificity, 2 * true_positive / ((labels == 1).sum() + flagged.sum())


@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 15))
@settings(max_examples=150, deadline=None)
def test_fitted_thresholds_are_the_best_of_all(seed, n, steps):
    generator = np.random.default_rng(seed)
    labels, scores = (generator.random(n) < 0.4).astype(float), generator.integers(0, steps + 1, n) / steps
    found = {how: ev.fit_thresholds(labels, scores, how)[0] for how in ("youden", "f1")}
    found["sensitivity"] = ev.fit_thresholds(labels, scores, "sensitivity", 0.8)[0]
    if not ev.auroc(labels, scores)[0] > 0.5:
        assert np.isnan(list(found.values())).all()
        return
    rates = [_rates(labels, scores, threshold) for threshold in _all_thresholds(scores)]
    assert sum(_rates(labels, scores, found["youden"])[:2]) == pytest.approx(max(a + b for a, b, _ in rates))
    assert _rates(labels, scores, found["f1"])[2] == pytest.approx(max(f1 for *_, f1 in rates))
    sensitivity, specificity, _ = _rates(labels, scores, found["sensitivity"])
    assert sensitivity >= 0.8
    assert specificity == pytest.approx(max(b for a, b, _ in rates if a >= 0.8))


def test_a_threshold_lies_between_scores_and_unknown_labels_do_not_move_it():
    labels = np.array([0.0, 0.0, 1.0, 1.0, np.nan, np.nan])
    scores = np.array([0.1, 0.2, 0.4, 0.9, 0.3, 0.0])
    for how in ("youden", "f1"):
        assert ev.fit_thresholds(labels, scores, how)[0] == pytest.approx(0.3)
    assert ev.fit_thresholds(labels, scores, "sensitivity", 0.5)[0] == pytest.approx(0.65)


def test_labels_without_both_classes_have_no_threshold(caplog):
    labels = np.array([[1.0, 0.0, np.nan], [1.0, 0.0, 0.0]])
    scores = np.array([[0.1, 0.2, 0.4], [0.7, 0.8, 0.6]])
    assert np.isnan(ev.fit_thresholds(labels, scores)).all()
    assert not caplog.records


def test_labels_that_are_not_above_chance_get_no_threshold_and_a_warning(caplog):
    labels = np.array([[1.0] * 4, [0.0] * 4, [1.0] * 4, [0.0] * 4])
    # Above chance (0.75), at chance with all scores equal, at chance (0.5), below (0.25).
    scores = np.array([[0.9, 0.4, 0.9, 0.1], [0.2, 0.4, 0.7, 0.2], [0.4, 0.4, 0.1, 0.3], [0.5, 0.4, 0.7, 0.9]])
    found = ev.fit_thresholds(labels, scores, label_names=["above", "equal", "at", "below"])
    assert np.isnan(found).tolist() == [False, True, True, True]
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "equal gets no threshold: its AUROC is 0.500, not above chance (0.5)",
        "at gets no threshold: its AUROC is 0.500, not above chance (0.5)",
        "below gets no threshold: its AUROC is 0.250, not above chance (0.5)",
    ]


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"how": "best"}, "youden, f1, sensitivity, found: 'best'"),
        ({"how": "sensitivity"}, "needs a target.*None"),
        ({"how": "sensitivity", "target": 90}, "at most 1.*90"),
        ({"how": "youden", "target": 0.9}, "the others take none.*0.9"),
    ],
)
def test_senseless_ways_to_fit_thresholds_are_refused(settings_, message):
    with pytest.raises(ev.MetricInputError, match=message):
        ev.fit_thresholds([0.0, 1.0], [0.1, 0.9], **settings_)


def _weighted_model(n, weight, seed=0):
    """Labels, their true probabilities, and scores of a model that was trained with a pos_weight."""
    generator = np.random.default_rng(seed)
    logits = 1.5 * generator.standard_normal(n) - 3
    labels = (generator.random(n) < _sigmoid(logits)).astype(float)
    return labels, _sigmoid(logits), _sigmoid(logits + np.log(weight))


@pytest.mark.parametrize("how", ["platt", "temperature"])
def test_calibration_undoes_the_shift_of_pos_weight(how):
    labels, probabilities, scores = _weighted_model(40_000, weight=20)
    (fit,) = ev.fit_calibration(labels, scores, pos_weight=[20], how=how)
    assert fit["slope"] == pytest.approx(1, abs=0.05)
    assert fit["intercept"] == pytest.approx(-np.log(20), abs=0.1)
    calibrated = ev.apply_calibration(scores[:, None], [fit])[:, 0]
    assert np.abs(calibrated - probabilities).max() < 0.03
    assert ev.brier(labels, calibrated)[0] < 0.5 * ev.brier(labels, scores)[0]
    assert ev.calibration_error(labels, calibrated)[0] < 0.01 < ev.calibration_error(labels, scores)[0]


def test_a_temperature_keeps_the_even_score_after_pos_weight():
    labels, _, scores = _weighted_model(2_000, weight=9)
    overconfident = _sigmoid(3 * (_logit(scores) - np.log(9)) + np.log(9))
    (fit,) = ev.fit_calibration(labels, overconfident, pos_weight=[9], how="temperature")
    assert fit["slope"] == pytest.approx(1 / 3, abs=0.04)
    np.testing.assert_allclose(ev.apply_calibration(np.array([[0.9]]), [fit]), 0.5, atol=1e-12)


def test_platt_is_the_logistic_regression_of_platts_targets():
    generator = np.random.default_rng(3)
    logits = 2 * generator.standard_normal(300)
    labels = (generator.random(300) < _sigmoid(0.7 * logits - 1)).astype(float)
    (fit,) = ev.fit_calibration(labels, _sigmoid(logits))
    positives, negatives = int(labels.sum()), int((labels == 0).sum())
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    # A target t is t recordings with the label and 1 - t without.
    expected = LogisticRegression(C=np.inf, tol=1e-10).fit(
        np.tile(logits, 2)[:, None], np.repeat([1, 0], 300), sample_weight=np.concatenate([target, 1 - target])
    )
    assert fit["slope"] == pytest.approx(expected.coef_[0, 0], rel=1e-4)
    assert fit["intercept"] == pytest.approx(expected.intercept_[0], rel=1e-4)


def test_separable_scores_and_few_positives_give_finite_rising_fits():
    labels = np.array([0.0] * 50 + [1.0])
    for scores in (np.linspace(0.01, 0.99, 51), np.append(np.full(50, 1e-9), 1.0), np.append(np.zeros(50), 1.0)):
        (fit,) = ev.fit_calibration(labels, scores)
        assert np.isfinite(list(fit.values())).all()
        assert fit["slope"] > 0
        calibrated = ev.apply_calibration(scores[:, None], [fit])[:, 0]
        # One positive is no certainty: Platt's target for it is 2/3.
        assert calibrated[-1] == calibrated.max() < 0.7


def test_labels_that_cannot_be_calibrated_are_named(caplog):
    labels = np.array([[0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0], [0.0, np.nan, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]])
    scores = np.array([[0.1, 0.2, 0.5, 0.9], [0.3, 0.2, 0.5, 0.2], [0.7, 0.3, 0.5, 0.1], [0.8, 0.9, 0.5, 0.8]])
    names = ["no positives", "no negatives", "one score", "falling"]
    assert ev.fit_calibration(labels, scores, label_names=names) == [None] * 4
    assert ev.fit_calibration(labels, scores, how="temperature")[2:] == [None, None]
    messages = [record.getMessage() for record in caplog.records[:4]]
    for name, reason, message in zip(
        names, ("0 positives", "0 negatives", "the same", "do not score higher"), messages, strict=False
    ):
        assert message.startswith(f"{name} is not calibrated")
        assert reason in message


def test_calibration_is_applied_as_the_pipeline_does(tiny_config):
    fits = [{"slope": 1.3, "intercept": -2.5}, None, {"slope": 0.4, "intercept": 0.1}]
    calibration = {label: fit for label, fit in zip("ABC", fits, strict=True) if fit is not None}
    plain, config = tiny_config(), tiny_config(label_calibration=calibration)
    logits = np.array([[-40.0, 0.3, 2.0], [0.0, -1.0, 800.0], [5.0, 3.0, -900.0]])
    for segments in (logits, logits[:1], logits[2:]):
        scores = np.array([list(recording_scores(segments, plain).values())])
        expected = list(recording_scores(segments, config).values())
        np.testing.assert_allclose(ev.apply_calibration(scores, fits)[0], expected, rtol=1e-12, atol=0)


def test_what_cannot_be_calibrated_is_refused_and_named():
    for call, message in (
        (lambda: ev.fit_calibration([0.0, 1.0], [-2.0, 3.0]), "sigmoids, not logits"),
        (lambda: ev.fit_calibration([0.0, 1.0], [0.2, 0.3], how="isotonic"), "platt, temperature.*isotonic"),
        (lambda: ev.fit_calibration([0.0, 1.0], [0.2, 0.3], pos_weight=[1, 2]), "1 positive numbers"),
        (lambda: ev.fit_calibration([0.0, 1.0], [0.2, 0.3], pos_weight=[0]), "positive numbers"),
        (lambda: ev.apply_calibration(np.zeros((2, 3)), [None]), r"\(2, 3\) and 1 fits"),
    ):
        with pytest.raises(ev.MetricInputError, match=message):
            call()
