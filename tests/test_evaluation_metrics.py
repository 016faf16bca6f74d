"""Metrics of each label: as scikit-learn and the challenge compute them, and undefined where they mean nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from ecgfm_hf import evaluation as ev
from ecgfm_hf.fairseq import PHYSIONET26, PHYSIONET_CLASSES

FIXTURES = Path(__file__).parent / "fixtures"


@st.composite
def _labelled(draw):
    """One label with ties and unknowns."""
    n = draw(st.integers(1, 40))
    labels = draw(st.lists(st.sampled_from([0.0, 1.0, 1.0, 0.0, np.nan]), min_size=n, max_size=n))
    steps = draw(st.integers(1, 30))
    scores = draw(st.lists(st.integers(0, steps).map(lambda step: step / steps), min_size=n, max_size=n))
    return np.array(labels), np.array(scores)


@given(_labelled())
@settings(max_examples=200, deadline=None)
def test_ranking_metrics_equal_scikit_learn_with_ties_and_unknowns(labelled):
    labels, scores = labelled
    known = ~np.isnan(labels)
    found = ev.auroc(labels, scores)[0], ev.average_precision(labels, scores)[0]
    if len(set(labels[known])) < 2:
        assert np.isnan(found).all()
    else:
        expected = [
            function(labels[known], scores[known]) for function in (sk.roc_auc_score, sk.average_precision_score)
        ]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@given(_labelled(), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_sensitivity_at_a_specificity_is_the_best_of_all_thresholds(labelled, specificity):
    labels, scores = labelled
    found = ev.sensitivity_at_specificity(labels, scores, specificity)[0]
    positives, negatives = scores[labels == 1], scores[labels == 0]
    if not len(positives) or not len(negatives):
        assert np.isnan(found)
        return
    admitted = [
        np.mean(positives >= threshold)
        for threshold in [*scores, np.inf]
        if np.mean(negatives < threshold) >= specificity - 1e-12
    ]
    assert found == pytest.approx(max(admitted))


def test_sensitivity_at_a_specificity_counts_whole_recordings():
    # Of 20 negatives one may be flagged at 95%, though 20 * (1 - 0.95) is a little less than 1.
    labels, scores = np.array([1.0] + [0.0] * 20), np.array([0.5, 0.9] + [0.1] * 19)
    assert ev.sensitivity_at_specificity(labels, scores, 0.95)[0] == 1
    assert ev.sensitivity_at_specificity(labels, scores, 0.951)[0] == 0


@given(_labelled())
@settings(max_examples=100, deadline=None)
def test_curves_are_scikit_learns(labelled):
    labels, scores = labelled
    known = ~np.isnan(labels)
    if len(set(labels[known])) < 2:
        return
    rates, sensitivities, thresholds = ev.roc_points(labels, scores)
    expected = sk.roc_curve(labels[known], scores[known], drop_intermediate=False)
    for found, wanted in zip((rates, sensitivities, thresholds), expected, strict=True):
        np.testing.assert_allclose(found, wanted)
    recall, precision, thresholds = ev.precision_recall_points(labels, scores)
    expected = sk.precision_recall_curve(labels[known], scores[known])
    np.testing.assert_allclose(precision, expected[0][:-1][::-1])
    np.testing.assert_allclose(recall, expected[1][:-1][::-1])
    np.testing.assert_allclose(thresholds, expected[2][::-1])


def test_decisions_equal_scikit_learn():
    generator = np.random.default_rng(0)
    labels = (generator.random((80, 4)) < 0.3).astype(float)
    positive = generator.random((80, 4)) < 0.4
    labels[generator.random(labels.shape) < 0.1] = np.nan
    for index in range(4):
        known = ~np.isnan(labels[:, index])
        true, given = labels[known, index], positive[known, index]
        for function, expected in (
            (ev.sensitivity, sk.recall_score(true, given)),
            (ev.specificity, sk.recall_score(true, given, pos_label=0)),
            (ev.ppv, sk.precision_score(true, given)),
            (ev.f1, sk.f1_score(true, given)),
        ):
            assert function(labels, positive)[index] == pytest.approx(expected)


def test_decisions_about_nothing_are_undefined():
    labels = np.array([[1.0, 0.0, np.nan, 0.0], [1.0, 0.0, 0.0, 0.0]])
    positive = np.array([[False, False, True, True], [True, False, True, True]])
    np.testing.assert_array_equal(ev.sensitivity(labels, positive), [0.5, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(ev.specificity(labels, positive), [np.nan, 1, 0, 0])
    np.testing.assert_array_equal(ev.ppv(labels, positive), [1, np.nan, 0, 0])
    np.testing.assert_allclose(ev.f1(labels, positive), [2 / 3, np.nan, 0, 0])


def test_a_label_without_a_threshold_has_no_decisions():
    scores, labels = np.array([[0.2, 0.9], [0.6, 0.1]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    decided = ev.at_thresholds(scores, np.array([0.6, np.nan]))
    np.testing.assert_array_equal(decided, [[0, np.nan], [1, np.nan]])
    np.testing.assert_array_equal(ev.f1(labels, decided), [1, np.nan])
    assert ev.confusion_counts(labels, decided)["true_negative"].tolist() == [1, 0]


def test_brier_and_regression_equal_scikit_learn():
    generator = np.random.default_rng(1)
    labels, scores = (generator.random((90, 2)) < 0.3).astype(float), generator.random((90, 2))
    labels[:5, 0] = np.nan
    expected = [sk.brier_score_loss(labels[5:, 0], scores[5:, 0]), sk.brier_score_loss(labels[:, 1], scores[:, 1])]
    np.testing.assert_allclose(ev.brier(labels, scores), expected)
    # Far from 0, as years and milliseconds are: squares must not swallow the digits.
    targets = 1e6 + generator.standard_normal((90, 2))
    predicted = targets + generator.standard_normal((90, 2))
    targets[:5, 0] = np.nan
    for function, reference in ((ev.mean_absolute_error, sk.mean_absolute_error), (ev.r_squared, sk.r2_score)):
        expected = [reference(targets[5:, 0], predicted[5:, 0]), reference(targets[:, 1], predicted[:, 1])]
        np.testing.assert_allclose(function(targets, predicted), expected, rtol=1e-6)
    assert np.isnan(ev.r_squared(np.full(9, 0.1), np.arange(9.0))).all()
    assert np.isnan(ev.r_squared([1.0, np.nan], [1.0, 2.0])).all()


def test_calibration_error_is_that_of_bins_of_equally_many_recordings():
    scores = np.array([0.1, 0.1, 0.2, 0.3, 0.8, 0.9])
    labels = np.array([0.0, 1.0, 0.0, 0.0, 1.0, 1.0])
    counts, means, positives = ev.reliability(labels, scores, bins=3)
    assert counts.tolist() == [2, 2, 2]
    np.testing.assert_allclose(means, [0.1, 0.25, 0.85])
    np.testing.assert_allclose(positives, [0.5, 0, 1])
    assert ev.calibration_error(labels, scores, bins=3)[0] == pytest.approx((0.4 + 0.25 + 0.15) / 3)


@given(_labelled(), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_bins_hold_every_known_recording_and_never_part_equal_scores(labelled, bins):
    labels, scores = labelled
    counts, means, positives = ev.reliability(labels, scores, bins)
    known = ~np.isnan(labels)
    assert len(counts) <= bins
    assert counts.sum() == known.sum()
    assert (counts * positives).sum() == pytest.approx(np.nansum(labels))
    assert (counts * means).sum() == pytest.approx(scores[known].sum())
    assert (np.diff(means) > 0).all()


def test_macro_leaves_out_and_counts_what_is_undefined():
    assert ev.macro(np.array([0.9, np.nan, 0.7])) == (pytest.approx(0.8), 1)
    value, left_out = ev.macro(np.array([np.nan]))
    assert np.isnan(value)
    assert left_out == 1


def _unpacked(rows):
    return np.array([[character == "1" for character in f"{int(row, 16):026b}"] for row in rows.split()])


def test_the_challenge_score_is_the_official_evaluations():
    cases = json.loads((FIXTURES / "challenge_score.json").read_text())
    assert len(cases) == 200
    for case in cases:
        found = ev.challenge_score(_unpacked(case["y_true"]), _unpacked(case["y_pred"]))
        assert found == pytest.approx(case["score"], abs=1e-12)


def test_the_challenge_score_is_one_for_the_right_answers_and_zero_for_sinus_rhythm():
    true = np.zeros((3, 26), dtype=bool)
    true[0, 0] = true[1, [4, 5]] = True
    sinus = np.zeros_like(true)
    sinus[:, ev.challenge_classes().index("426783006")] = True
    assert ev.challenge_score(true, true) == 1
    assert ev.challenge_score(true, sinus) == 0
    # The third recording has no scored class: whatever it is given counts for nothing.
    anything = true.copy()
    anything[2] = True
    assert ev.challenge_score(true, anything) == 1


def test_the_classes_of_the_challenge_are_found_by_name_abbreviation_or_code():
    assert ev.challenge_classes() == tuple("|".join(map(str, codes)) for codes, _, _ in PHYSIONET_CLASSES)
    backwards = PHYSIONET26.names[::-1]
    assert ev.challenge_columns(backwards).tolist() == list(range(25, -1, -1))
    mixed = [("|".join(map(str, c)), a, n)[i % 3] for i, (c, a, n) in enumerate(PHYSIONET_CLASSES)]
    assert ev.challenge_columns([*mixed, "other"]).tolist() == list(range(26))
    assert ev.challenge_columns(mixed[1:]) is None
    weights = ev.challenge_weights()
    assert (weights == weights.T).all()
    assert (np.diag(weights) == 1).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ev.auroc(np.zeros((3, 2)), np.zeros((3, 3))), r"same shape.*\(3, 2\) and \(3, 3\)"),
        (lambda: ev.auroc(np.zeros((3, 2, 1)), np.zeros((3, 2, 1))), "same shape"),
        (lambda: ev.auroc([0.5, 1.0], [0.5, 1.0]), "labels must be 0, 1 or NaN.*0.5"),
        (lambda: ev.average_precision([0.0, 1.0], [np.nan, 1.0]), "scores must be finite.*nan"),
        (lambda: ev.sensitivity_at_specificity([0.0, 1.0], [0.1, 1.0], 95), "specificity.*95"),
        (lambda: ev.f1([0.0, 1.0], [0.2, 0.7]), "decisions.*0.2.*thresholds first"),
        (lambda: ev.brier([0.0, 1.0], [-3.0, 2.0]), "within 0 and 1.*-3"),
        (lambda: ev.reliability([0.0, 1.0], [0.0, 1.0], bins=0), "bins.*0"),
        (lambda: ev.r_squared([np.inf], [1.0]), "targets must be finite"),
        (lambda: ev.challenge_score(np.zeros((3, 17)), np.zeros((3, 17))), r"\(recordings, 26\).*\(3, 17\)"),
        (lambda: ev.challenge_score(np.zeros((3, 26)), np.zeros((2, 26))), "3 recordings, y_pred 2"),
        (lambda: ev.challenge_score(np.zeros((3, 26)), np.full((3, 26), 0.4)), "y_pred must be True or False"),
        (lambda: ev.challenge_score(np.full((3, 26), np.nan), np.zeros((3, 26))), "y_true must be True or False"),
        (lambda: ev.at_thresholds(np.zeros((3, 2)), np.zeros(3)), r"thresholds.*\(3, 2\) and \(3,\)"),
    ],
)
def test_what_no_metric_can_be_computed_of_is_refused_and_named(call, message):
    with pytest.raises(ev.MetricInputError, match=message):
        call()


def test_metrics_of_evaluate_work_offline_and_equal_the_functions(tmp_path):
    generator = np.random.default_rng(2)
    labels, scores = (generator.random((60, 3)) < 0.4).astype(float), generator.random((60, 3))
    labels[:, 2], labels[:9, 0] = 0, np.nan

    def computed(metric, predictions, references, **more):
        return metric(cache_dir=str(tmp_path)).compute(predictions=predictions, references=references, **more)

    found = computed(ev.ECGFMAuroc, scores, labels)
    np.testing.assert_array_equal(found["auroc"], ev.auroc(labels, scores))
    assert found["macro_auroc"] == ev.macro(ev.auroc(labels, scores))[0]
    assert found["labels_left_out"] == 1
    found = computed(ev.ECGFMDecisions, scores > 0.5, labels)
    np.testing.assert_array_equal(found["sensitivity"], ev.sensitivity(labels, scores > 0.5))
    assert found["sensitivity_labels_left_out"] == 1
    found = computed(ev.ECGFMCalibrationError, scores, labels, bins=4)
    np.testing.assert_array_equal(found["calibration_error"], ev.calibration_error(labels, scores, 4))
    found = computed(ev.ECGFMRegression, scores, labels + 5)
    np.testing.assert_allclose(found["r_squared"], ev.r_squared(labels + 5, scores))
    for metric, name in ((ev.ECGFMBrier, "brier"), (ev.ECGFMAveragePrecision, "average_precision")):
        np.testing.assert_array_equal(computed(metric, scores, labels)[name], getattr(ev, name)(labels, scores))
    true, given = generator.random((9, 26)) < 0.1, generator.random((9, 26)) < 0.1
    assert computed(ev.ECGFMChallengeScore, given, true) == {"challenge_score": ev.challenge_score(true, given)}


@pytest.mark.parametrize("name", [None, "brier"])
def test_metrics_load_from_the_path_of_their_file(name):
    evaluate = pytest.importorskip("evaluate")
    from ecgfm_hf.evaluation import hf_metrics

    scores, labels = [[0.1], [0.8]], [[0.0], [1.0]]
    found = evaluate.load(hf_metrics.__file__, name).compute(predictions=scores, references=labels)
    expected = (ev.ECGFMBrier if name else ev.ECGFMAuroc)().compute(predictions=scores, references=labels)
    assert found == expected
