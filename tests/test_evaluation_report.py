"""What is reported of predictions, and what is withheld: figures, small counts, the page."""

import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, precision_score, recall_score, roc_auc_score

from ecgfm_hf.evaluation import (
    challenge_classes,
    challenge_score,
    compare_predictions,
    evaluate_predictions,
    sensitivity_at_specificity,
    write_html_report,
)
from ecgfm_hf.evaluation.charts import nice_scale, precision_recall_curve, roc_curve
from ecgfm_hf.evaluation.formatting import number, text
from ecgfm_hf.evaluation.report import html_report
from ecgfm_hf.inference import Predictions, PredictionsError
from ecgfm_hf.utils.redaction import Cell, ReliabilityBin, redact

QUICK = {"resamples": 100}
HOSTILE = ("</title><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b\u202e<svg/onload=x>")


def made(n=400, prevalence=(0.3, 0.2), seed=0, patients=None, **changes) -> Predictions:
    """Predictions that rank well, of recordings with every fact."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, len(prevalence))) < prevalence).astype(float)
    people = rng.integers(0, patients or n, n)
    given = {
        "recording_ids": [f"r{number}" for number in range(n)],
        "patient_ids": [f"p{person}" for person in people],
        "label_names": tuple(f"label {index}" for index in range(len(prevalence))),
        "scores": 1 / (1 + np.exp(1 - 2 * labels - rng.standard_normal(labels.shape))),
        "labels": labels,
        "facts": {
            "age": rng.uniform(1, 95, n),
            "sex": rng.choice(np.array(["F", "M"], dtype=object), n),
            "source": rng.choice(np.array(["one", "two"], dtype=object), n),
        },
    }
    return Predictions(**(given | changes))


def regression(n=400, seed=0) -> Predictions:
    rng = np.random.default_rng(seed)
    values = rng.normal(60, 15, (n, 1))
    predicted = values + rng.normal(2, 5, (n, 1))
    return made(n, (0.5,), seed, label_names=("age",), labels=values, scores=predicted, problem_type="regression")


class Elements(HTMLParser):
    """The elements of a page, their attributes and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text += data


# ----------------------------------------------------------------------------------------------------------------------
# Figures
# ----------------------------------------------------------------------------------------------------------------------


def test_subgroups_have_the_figures_of_their_own_recordings():
    predictions = made(600)
    found = evaluate_predictions(predictions, smallest_cell=1, **QUICK)["subgroups"]
    assert [group["group"] for group in found["sex"]] == ["female", "male"]
    names = ["under 18", "18 to 39", "40 to 59", "60 to 79", "80 and over"]
    assert [group["group"] for group in found["age"]] == names
    women = predictions.facts["sex"] == "F"
    expected = roc_auc_score(predictions.labels[women, 1], predictions.scores[women, 1])
    assert found["sex"][0]["per_label"]["label 1"]["auroc"]["value"] == pytest.approx(expected)
    assert found["sex"][0]["recordings"] == int(women.sum())
    elderly = predictions.facts["age"] >= 80
    assert found["age"][-1]["recordings"] == int(elderly.sum())


def test_unknown_facts_are_a_group_and_a_single_group_is_none():
    age = np.where(np.arange(400) < 100, np.nan, 50.0)
    found = evaluate_predictions(made(facts={"age": age, "sex": np.full(400, "F", dtype=object)}), **QUICK)["subgroups"]
    assert [(group["group"], group["recordings"]) for group in found["age"]] == [("40 to 59", 300), ("unknown", 100)]
    assert "sex" not in found
    at_the_bounds = np.repeat([0.0, 17.9, 18.0, 39.9, 40.0, 59.9, 60.0, 79.9, 80.0], [25, 25, *[50] * 7])
    found = evaluate_predictions(made(facts={"age": at_the_bounds}), **QUICK)["subgroups"]
    assert [group["recordings"] for group in found["age"]] == [50, 100, 100, 100, 50]


def test_a_label_of_one_class_is_excluded_from_means_and_counted():
    predictions = made(prevalence=(0.3, 0.0, 0.2))
    found = evaluate_predictions(predictions, smallest_cell=1, **QUICK)
    assert found["macro"]["auroc"]["labels"] == 2
    assert found["macro"]["auroc"]["left_out"] == 1
    assert found["per_label"]["label 1"]["metrics"] == {}
    both = [found["per_label"][f"label {index}"]["metrics"]["auroc"]["value"] for index in (0, 2)]
    assert found["macro"]["auroc"]["value"] == pytest.approx(np.mean(both), abs=6e-4)
    assert any("undefined metric" in note for note in found["notes"])


def test_the_same_seed_gives_the_same_results_and_json_can_hold_them():
    first, again = (evaluate_predictions(made(), thresholds={"label 0": 0.4}, seed=3, **QUICK) for _ in range(2))
    assert json.dumps(first, allow_nan=False) == json.dumps(again, allow_nan=False)


def test_unknown_patients_are_said_to_make_intervals_too_narrow():
    predictions = made(patient_ids=[None] * 400)
    found = evaluate_predictions(predictions, **QUICK)
    assert found["intervals"]["unit"] == "recordings"
    assert found["patients"] is None
    assert any("too narrow" in note for note in found["notes"])
    known = evaluate_predictions(made(), **QUICK)
    assert known["intervals"]["unit"] == "patients"
    assert not any("too narrow" in note for note in known["notes"])


def test_an_output_is_a_score_until_it_is_calibrated():
    uncalibrated, calibrated = (
        html_report(evaluate_predictions(made(calibrated=c), **QUICK)) for c in ((), (True,) * 2)
    )
    assert "score (uncalibrated)" in uncalibrated
    assert ">probability<" not in uncalibrated
    assert ">probability<" in calibrated
    assert "score (uncalibrated)" not in calibrated
    assert "is a score, not a probability" not in calibrated


def test_without_thresholds_there_are_no_decisions():
    found = evaluate_predictions(made(), **QUICK)
    assert not any("decisions" in label for label in found["per_label"].values())
    assert "none is assumed" in html_report(found)


@given(seed=st.integers(0, 10**6), n=st.integers(20, 200))
@settings(max_examples=30, deadline=None)
def test_the_roc_curve_runs_from_corner_to_corner_around_the_auroc(seed, n):
    rng = np.random.default_rng(seed)
    labels = np.append([0.0, 1.0], rng.integers(0, 2, n - 2))
    scores = np.round(rng.random(n), 1)
    curve = np.array(roc_curve(labels, scores, np.arange(n)).points)
    assert curve[0].tolist() == [0, 0]
    assert curve[-1].tolist() == [1, 1]
    assert (np.diff(curve, axis=0) >= 0).all()
    # At steps of 0.01, a jump between two of them is met a step late at most.
    assert np.trapezoid(curve[:, 1], curve[:, 0]) == pytest.approx(roc_auc_score(labels, scores), abs=0.012)


def test_the_precision_recall_curve_ends_at_the_prevalence_of_a_constant_score():
    labels = np.array([1.0, 0, 0, 0])
    curve = precision_recall_curve(labels, np.full(4, 0.3), np.arange(4))
    assert curve.points == [[round(step / 100, 2), 0.25] for step in range(1, 101)]


@pytest.mark.parametrize(("low", "high"), [(0.713, 0.94), (0.5, 0.5), (0, 0), (-3.2, 1850), (0.9991, 0.9998)])
def test_an_axis_holds_its_values_between_few_round_ticks(low, high):
    first, last, ticks = nice_scale(low, high)
    assert first <= low
    assert high <= last
    assert 2 <= len(ticks) <= 8


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.98765, "0.988"), (1.0, "1.000"), (-0.25, "−0.250"), (61.234, "61.23"), (12345.6, "12,346"), (None, "–")],
)
def test_figures_are_written_with_as_many_digits_as_they_bear(value, shown):
    assert number(value) == shown


# ----------------------------------------------------------------------------------------------------------------------
# Small counts
# ----------------------------------------------------------------------------------------------------------------------


def possible_counts(reported, total, smallest):
    """What each cell could be, to a reader of the report with the rule and the total."""
    few, unlimited = f"<{smallest}", range(1, total + 1)
    known_few = few in reported
    options = []
    for one in reported:
        if isinstance(one, int):
            options.append([one])
        elif one == few:
            options.append(range(1, smallest))
        else:
            options.append(range(smallest, total + 1) if known_few else unlimited)
    fits = [counts for counts in itertools.product(*options[:-1]) if total - sum(counts) in options[-1]]
    return [{counts[index] for counts in fits} for index in range(len(reported) - 1)] + [{total - sum(c) for c in fits}]


def group_counts(patients, masks, smallest):
    """What is shown of groups that make up all recordings."""
    groups = {str(index): Cell(patients[rows]) for index, rows in enumerate(masks)}
    return list(redact({"recordings": Cell(patients), "sources": groups}, smallest)["sources"].values())


@given(sizes=st.lists(st.integers(0, 14), min_size=2, max_size=4), smallest=st.integers(2, 6))
@settings(max_examples=600, deadline=None)
def test_no_small_count_follows_from_the_total_and_what_is_reported(sizes, smallest):
    assume(sum(sizes) >= smallest)  # a total that may be reported
    number_of = np.repeat(np.arange(len(sizes)), sizes)
    reported = group_counts(np.arange(len(number_of)), [number_of == index for index in range(len(sizes))], smallest)
    for size, one in zip(sizes, reported, strict=True):
        assert one in (size, f"<{smallest}", "withheld")
        assert not (isinstance(one, int) and 0 < one < smallest)
        assert (one == 0) == (size == 0)
    if not any(0 < size < smallest for size in sizes):
        assert reported == sizes
    else:
        for size, could_be in zip(sizes, possible_counts(reported, sum(sizes), smallest), strict=True):
            if 0 < size < smallest:
                # Every small number is left open, unless the total itself is hardly more than one.
                assert could_be >= set(range(1, min(smallest, sum(sizes) - len([s for s in sizes if s]) + 2)))


def test_one_patient_of_many_recordings_is_a_small_count():
    patients = np.array([0] * 30 + list(range(1, 31)))
    mine = patients == 0
    assert group_counts(patients, [mine, ~mine], 10) == ["<10", "withheld"]
    assert group_counts(patients, [mine, ~mine], 1) == [30, 30]


def test_labels_with_few_patients_on_a_side_have_no_figures():
    predictions = made(n=500)
    rare = np.zeros(500)
    rare[:9] = 1
    predictions = replace(predictions, labels=np.stack([predictions.labels[:, 0], rare], axis=1))
    found = evaluate_predictions(predictions, thresholds={"label 1": 0.3}, **QUICK)
    label = found["per_label"]["label 1"]
    assert label == {"counts": {"positive": "<10", "negative": "withheld", "unknown": 0}, "metrics": {}}
    assert all("label 1" not in group["per_label"] for groups in found["subgroups"].values() for group in groups)
    page = html_report(found)
    assert "&lt;10" in page
    assert "491" not in page
    assert found["format"] == 1
    assert not any("there are no figures" in note for note in found["notes"])
    only_rare = made(n=500, prevalence=(0.3,), labels=rare[:, None])
    assert any("there are no figures" in note for note in evaluate_predictions(only_rare, **QUICK)["notes"])
    reported = evaluate_predictions(predictions, smallest_cell=1, **QUICK)["per_label"]["label 1"]
    assert reported["counts"]["positive"] == 9
    assert reported["metrics"]["auroc"]["value"] is not None


def test_rates_that_would_give_a_small_count_away_are_bounds_that_hold_them():
    predictions = made(n=500, prevalence=(0.3,))
    truth, scores = predictions.labels[:, 0], predictions.scores[:, 0]
    threshold = float(np.sort(scores[truth == 1])[4])  # four positives are missed
    hidden = evaluate_predictions(predictions, thresholds={"label 0": threshold}, **QUICK)
    reported = evaluate_predictions(predictions, thresholds={"label 0": threshold}, smallest_cell=1, **QUICK)
    hidden, reported = (one["per_label"]["label 0"]["decisions"] for one in (hidden, reported))
    assert reported["counts"]["false_negative"] == 4
    assert hidden["counts"]["false_negative"] == "<10"
    assert hidden["counts"]["true_positive"] == "withheld"
    positives = int(truth.sum())
    low, high = hidden["metrics"]["sensitivity"]["bounds"]
    assert (low, high) == pytest.approx((1 - 9 / positives, 1 - 1 / positives), abs=1e-4)
    for rate in ("sensitivity", "ppv", "f1"):
        low, high = hidden["metrics"][rate]["bounds"]
        assert low < reported["metrics"][rate]["value"] < high
        assert set(hidden["metrics"][rate]) == {"bounds"}
    assert hidden["metrics"]["specificity"] == reported["metrics"]["specificity"]


def test_a_rare_class_does_not_follow_from_the_others():
    n = 300
    classes = np.array([0] * 200 + [1] * 95 + [2] * 5)
    labels = (classes[:, None] == np.arange(3)).astype(float)
    scores = np.full((n, 3), 0.2) + 0.4 * labels[np.random.default_rng(0).permutation(n)]
    predictions = made(n, (0.3,) * 3, labels=labels, scores=scores, problem_type="single_label_classification")
    counts = [label["counts"] for label in evaluate_predictions(predictions, **QUICK)["per_label"].values()]
    assert [one["positive"] for one in counts] == [200, "withheld", "<10"]
    assert counts[2]["negative"] == "withheld"


def test_a_class_whose_count_is_withheld_has_nothing_that_it_follows_from():
    n = 300
    classes = np.array([0] * 200 + [1] * 95 + [2] * 5)
    labels = (classes[:, None] == np.arange(3)).astype(float)
    scores = np.full((n, 3), 0.2) + 0.4 * labels[np.random.default_rng(0).permutation(n)]
    predictions = made(n, (0.3,) * 3, labels=labels, scores=scores, problem_type="single_label_classification")
    found = evaluate_predictions(predictions, thresholds={"label 0": 0.5, "label 1": 0.5}, **QUICK)["per_label"]
    assert {"curves", "decisions"} <= found["label 0"].keys()
    # Its share, a curve, or true positives and false negatives would tell how many the 95 are, and so that 5 are left.
    assert found["label 1"].keys() == {"counts", "metrics"}
    value = found["label 1"]["metrics"]["auroc"]["value"]
    assert value == round(value, 3)
    assert sum(fits_counts(value, 3, positives, n) for positives in range(86, 95)) >= 8


def fits_counts(reported, decimals, positives, n):
    """Whether an AUROC of so many positives can be the reported one."""
    steps = 2 * positives * (n - positives)
    return abs(round(reported * steps) / steps - reported) <= 0.5 * 10**-decimals


@given(seed=st.integers(0, 10**6), group=st.integers(40, 300), share=st.floats(0.1, 0.9), others=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_the_positives_of_a_group_do_not_follow_from_its_figures(seed, group, share, others):
    """Of the group with too few positives the number would be what is left of the label's."""
    rng = np.random.default_rng(seed)
    positives = int(np.clip(round(share * group), 10, group - 10))
    labels = np.concatenate([np.arange(group) < positives, np.arange(60) < others]).astype(float)[:, None]
    n = len(labels)
    predictions = made(
        n,
        (0.5,),
        labels=labels,
        scores=1 / (1 + np.exp(1 - 2 * labels - rng.standard_normal(labels.shape))),
        patient_ids=[f"p{number}" for number in range(n)],
        facts={"sex": np.array(["F"] * group + ["M"] * 60, dtype=object)},
    )
    women, men = evaluate_predictions(predictions, **QUICK)["subgroups"]["sex"]
    assert men["per_label"] == {}
    figure = women["per_label"]["label 0"]["auroc"]
    decimals = next(places for places in range(9) if figure["value"] == round(figure["value"], places))
    assert women["macro"]["auroc"]["value"] == figure["value"]
    assert decimals <= 3
    digits = min(3, int(np.log10(positives * (group - positives))))
    total = positives + others
    could_be = range(max(10, total - 9), min(group - 10, total) + 1)
    assert all(fits_counts(figure["value"], digits, count, group) for count in could_be)


def test_how_many_lack_a_label_is_reported_unless_few_have_it():
    predictions = made(n=300, prevalence=(0.3, 0.3))
    labels = predictions.labels.copy()
    labels[:4, 0] = np.nan
    labels[5:, 1] = np.nan
    found = evaluate_predictions(replace(predictions, labels=labels), **QUICK)["per_label"]
    known = labels[4:, 0]
    assert found["label 0"]["counts"] == {
        "positive": int(known.sum()),
        "negative": int((known == 0).sum()),
        "unknown": 4,
    }
    assert set(found["label 1"]["counts"].values()) == {"withheld"}


def test_the_accuracy_of_few_errors_is_bounded():
    n = 300
    labels = np.stack([np.arange(n) % 2, 1 - np.arange(n) % 2], axis=1).astype(float)
    scores = 0.1 + 0.8 * labels
    scores[:3] = scores[:3, ::-1]
    predictions = made(n, (0.5, 0.5), labels=labels, scores=scores, problem_type="single_label_classification")
    found = evaluate_predictions(predictions, **QUICK)["macro"]["accuracy"]
    assert found == {"bounds": [pytest.approx(1 - 9 / n, abs=1e-4), pytest.approx(1 - 1 / n, abs=1e-4)]}
    assert evaluate_predictions(predictions, smallest_cell=1, **QUICK)["macro"]["accuracy"]["value"] == 1 - 3 / n


def single_label(n=600, classes=3, errors=0.3, seed=0):
    """Predictions of a class each, of which a share is wrong."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, n)
    given = np.where(rng.random(n) < errors, rng.integers(0, classes, n), true)
    scores = 0.1 + 0.5 * (given[:, None] == np.arange(classes)) + 0.1 * rng.random((n, classes))
    labels = (true[:, None] == np.arange(classes)).astype(float)
    labels[:12] = np.nan
    kind = "single_label_classification"
    people = [f"p{number}" for number in range(n)]
    return made(n, (0.3,) * classes, labels=labels, scores=scores, problem_type=kind, patient_ids=people)


def test_classes_have_a_confusion_and_the_rates_that_follow_from_it():
    predictions = single_label()
    found = evaluate_predictions(predictions, **QUICK)
    true, given = predictions.labels[12:].argmax(axis=1), predictions.scores[12:].argmax(axis=1)
    counts = np.array(found["classes"]["counts"])
    assert (counts == confusion_matrix(true, given)).all()
    assert found["macro"]["accuracy"]["value"] == pytest.approx(np.mean(true == given))
    for rate, theirs in (("ppv", precision_score), ("sensitivity", recall_score), ("f1", f1_score)):
        values = [figure["value"] for figure in found["classes"]["metrics"][rate]]
        assert values == pytest.approx(theirs(true, given, average=None))
        assert found["classes"]["macro"][rate]["value"] == pytest.approx(theirs(true, given, average="macro"))
    shown = Elements(html_report(found)).text
    assert "Given and true classes" in shown
    assert "given label 2" in shown


def test_a_confusion_of_classes_with_a_small_cell_is_withheld_as_a_whole():
    predictions = single_label(errors=0.03)
    found = evaluate_predictions(predictions, **QUICK)
    assert found["classes"] is None
    assert "Withheld: some pair" in Elements(html_report(found)).text
    assert np.sum(evaluate_predictions(predictions, smallest_cell=1, **QUICK)["classes"]["counts"]) == 588


@given(seed=st.integers(0, 10**6), n=st.integers(60, 400), patients=st.integers(40, 400))
@settings(max_examples=30, deadline=None)
def test_curves_have_no_point_at_which_a_count_of_decisions_is_small(seed, n, patients):
    predictions = made(n, (0.4,), seed, patients)
    truth, scores, people = predictions.labels[:, 0], predictions.scores[:, 0], np.array(predictions.patient_ids)
    found = evaluate_predictions(predictions, **QUICK)["per_label"]["label 0"].get("curves")
    assume(found is not None)
    small, precisions = set(), set()
    for limit in [np.inf, *scores]:
        flagged, positive = scores >= limit, truth == 1
        counts = [len(set(people[a & b])) for a in (flagged, ~flagged) for b in (positive, ~positive)]
        if any(0 < count < 10 for count in counts):
            small.add((round(np.mean(flagged[~positive]), 3), round(np.mean(flagged[positive]), 3)))
        elif flagged.any():
            precisions.add(np.mean(positive[flagged]))
    assert not small & {tuple(point) for point in found["roc"]}
    shown = {precision for _, precision in found["precision_recall"]} - {None}
    assert all(min(abs(precision - other) for other in precisions) < 6e-4 for precision in shown)


def test_a_curve_is_drawn_with_gaps_unless_everything_is_shown():
    predictions = made(n=500, prevalence=(0.3, 0.4))
    curves = evaluate_predictions(predictions, **QUICK)["per_label"]["label 0"]["curves"]
    heights = [height for _, height in curves["roc"]]
    assert None in heights
    assert heights[-1] == 1  # nobody is missed there, and 0 is no small count
    exact = evaluate_predictions(predictions, smallest_cell=1, **QUICK)["per_label"]["label 0"]["curves"]
    assert None not in [height for _, height in [*exact["roc"], *exact["precision_recall"]]]
    assert "Curves have gaps" in Elements(html_report(evaluate_predictions(predictions, **QUICK))).text


def test_a_mean_with_a_hidden_label_has_so_few_decimals_that_its_count_stays_open():
    n, positives = 300, 4
    labels = np.stack([np.arange(n) < 150, np.arange(n) < positives], axis=1).astype(float)
    scores = np.random.default_rng(3).random((n, 2))
    predictions = made(n, (0.5, 0.5), labels=labels, scores=scores, patient_ids=[f"p{number}" for number in range(n)])
    figure = evaluate_predictions(predictions, **QUICK)["macro"]["auroc"]["value"]
    # One positive more or less moves the hidden AUROC by 1 / 299 or more, and the mean of two by half of that: 0.0017.
    assert figure == round(np.mean([roc_auc_score(*pair) for pair in zip(labels.T, scores.T, strict=True)]), 2)


def test_rates_have_a_mean_over_the_labels_that_are_decided():
    predictions = made(n=600, prevalence=(0.3, 0.4, 0.5))
    limits = {"label 0": 0.5, "label 1": 0.4}
    found = evaluate_predictions(predictions, thresholds=limits, **QUICK)
    for rate in ("sensitivity", "specificity", "ppv", "f1"):
        own = [found["per_label"][name]["decisions"]["metrics"][rate] for name in limits]
        mean = found["macro"][rate]
        assert mean["value"] == pytest.approx(np.mean([figure["value"] for figure in own]))
        assert (mean["labels"], mean["left_out"]) == (2, 0)
        assert mean["low"] < mean["value"] < mean["high"]
    assert "sensitivity" not in evaluate_predictions(predictions, **QUICK)["macro"]


def test_a_mean_of_rates_of_which_one_is_bounded_is_bounded_too():
    predictions = made(n=500, prevalence=(0.3, 0.4))
    truth, scores = predictions.labels[:, 0], predictions.scores[:, 0]
    limits = {"label 0": float(np.sort(scores[truth == 1])[4]), "label 1": 0.5}  # four positives are missed
    hidden = evaluate_predictions(predictions, thresholds=limits, **QUICK)["macro"]["sensitivity"]
    reported = evaluate_predictions(predictions, thresholds=limits, smallest_cell=1, **QUICK)["macro"]["sensitivity"]
    assert "value" not in hidden
    low, high = hidden["bounds"]
    assert low < reported["value"] < high


def test_the_sensitivity_at_a_fixed_specificity_is_reported_as_chosen_here():
    predictions = made()
    found = evaluate_predictions(predictions, **QUICK)
    values = sensitivity_at_specificity(predictions.labels, predictions.scores, 0.95)
    per_label = found["per_label"].values()
    reported = [label["metrics"]["sensitivity_at_specificity"]["value"] for label in per_label]
    assert reported == pytest.approx(values.tolist())
    assert found["macro"]["sensitivity_at_specificity"]["value"] == pytest.approx(values.mean())
    assert any("chosen on these very recordings" in note for note in found["notes"])


def test_the_challenge_score_is_reported_where_its_classes_have_thresholds():
    rng = np.random.default_rng(4)
    labels = (rng.random((300, 26)) < 0.15).astype(float)
    scores = np.clip(0.4 * labels + 0.6 * rng.random((300, 26)), 0, 1)
    labels[:13, 5] = np.nan
    names = challenge_classes()
    predictions = made(300, (0.15,) * 26, label_names=names, labels=labels, scores=scores)
    limits = dict.fromkeys(names, 0.55)
    expected = challenge_score(labels[13:] == 1, scores[13:] >= 0.55)
    found = evaluate_predictions(predictions, thresholds=limits, smallest_cell=1, **QUICK)
    figure = found["macro"]["challenge_score"]
    assert figure["value"] == pytest.approx(expected)
    assert figure["low"] < figure["value"] < figure["high"]
    assert any(note.startswith("13 recordings are not in the challenge score") for note in found["notes"])
    assert "Challenge score" in Elements(html_report(found)).text
    rounded = evaluate_predictions(predictions, thresholds=limits, **QUICK)["macro"]["challenge_score"]["value"]
    assert rounded == round(expected, 3)
    del limits[names[3]]
    found = evaluate_predictions(predictions, thresholds=limits, **QUICK)
    assert "challenge_score" not in found["macro"]
    assert any("its 26 classes, and 1 have no threshold" in note for note in found["notes"])


def test_of_few_patients_nothing_is_reported():
    found = evaluate_predictions(made(n=40, patients=6), left_out={"too short": 3}, **QUICK)
    assert (found["recordings"], found["patients"]) == ("<10", "<10")
    assert found["left_out"] == {"too short": "<10"}
    assert found["macro"] == {}
    assert found["subgroups"] == {}
    assert all(set(label["counts"].values()) == {"withheld"} for label in found["per_label"].values())
    page = html_report(found)
    assert "fewer than 10 patients" in page
    assert not re.search(r">40<|>3 too", page)


def test_few_patients_are_said_to_prove_nothing():
    assert any("not how good the model is" in note for note in evaluate_predictions(made(n=60), **QUICK)["notes"])
    for patients, is_noted in ((99, True), (100, False)):
        people = [f"p{number}" for number in range(patients)]
        notes = evaluate_predictions(made(n=patients, patient_ids=people), **QUICK)["notes"]
        assert any("not how good" in note for note in notes) == is_noted


def test_a_few_right_decisions_without_a_wrong_one_are_right_regardless_of_their_count():
    labels, scores = np.zeros((400, 1)), np.linspace(0, 0.5, 400)[:, None]
    labels[280:], scores[395:] = 1, 0.9
    people = [f"p{number}" for number in range(400)]
    predictions = made(400, (0.5,), labels=labels, scores=scores, patient_ids=people)
    found = evaluate_predictions(predictions, thresholds={"label 0": 0.8}, **QUICK)["per_label"]["label 0"]["decisions"]
    assert found["counts"]["true_positive"] == "<10"
    assert found["metrics"]["ppv"] == {"bounds": [1.0, 1.0]}
    assert found["metrics"]["sensitivity"] == {"bounds": [round(1 / 120, 4), round(9 / 120, 4)]}


def test_figures_on_synthetic_recordings_are_marked_at_the_top_of_the_page():
    predictions = made()
    assert "SYNTHETIC" not in html_report(evaluate_predictions(predictions, **QUICK))
    predictions.facts["source"][:] = "synthetic"
    page = html_report(evaluate_predictions(predictions, **QUICK))
    assert "recordings are SYNTHETIC" in page[: page.index("<nav>")]


def test_a_mean_over_labels_does_not_give_the_withheld_one_in_all_digits():
    predictions = made(n=500, prevalence=(0.3, 0.01))
    found = evaluate_predictions(predictions, **QUICK)["macro"]["auroc"]
    assert found["value"] == round(found["value"], 3)


@given(seed=st.integers(0, 10**6), n=st.integers(30, 300), prevalence=st.floats(0.02, 0.9))
@settings(max_examples=40, deadline=None)
def test_bins_of_the_reliability_hold_enough_patients_on_each_side(seed, n, prevalence):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < prevalence).astype(float)
    scores = np.round(np.clip(labels * 0.3 + rng.random(n) * 0.7, 0, 1), 2)
    people = [f"p{number}" for number in range(n)]
    predictions = made(n, (0.5,), labels=labels[:, None], scores=scores[:, None], patient_ids=people, facts={})
    curves = evaluate_predictions(predictions, **QUICK)["per_label"]["label 0"].get("curves")
    if curves is None:
        assert not 10 <= labels.sum() <= n - 10
        return
    bins = curves["reliability"]
    for _, positive, share in bins:
        size = share * n
        # Shares are rounded to three decimals.
        assert not 0.5 < positive * size < 9.5
        assert not 0.5 < (1 - positive) * size < 9.5
    assert sum(share for *_, share in bins) == pytest.approx(1 if bins else 0, abs=0.006)
    if bins:
        assert sum(positive * share for _, positive, share in bins) == pytest.approx(labels.mean(), abs=0.01)
        assert sum(score * share for score, _, share in bins) == pytest.approx(scores.mean(), abs=0.01)
    assert all(share is None or share == 0 or share * n > 9.9 for share in curves["histogram"])


# ----------------------------------------------------------------------------------------------------------------------
# The page
# ----------------------------------------------------------------------------------------------------------------------


def everything(names=HOSTILE) -> dict:
    sources = np.random.default_rng(1).choice(np.array([HOSTILE[0], "two"], dtype=object), 400)
    first = made(prevalence=(0.3, 0.2, 0.4), label_names=names)
    first = replace(first, facts={**first.facts, "source": sources})
    second = replace(made(prevalence=(0.3, 0.2, 0.4), label_names=names, seed=0), scores=first.scores**2)
    found = evaluate_predictions(
        first,
        model=HOSTILE[1],
        dataset=HOSTILE[0],
        split=HOSTILE[2],
        thresholds=dict.fromkeys(names, 0.4),
        thresholds_from=HOSTILE[0],
        left_out={HOSTILE[0]: 30},
        warnings=[HOSTILE[0]],
        notes=[HOSTILE[1]],
        **QUICK,
    )
    found["comparison"] = compare_predictions(first, second, names=(HOSTILE[0], HOSTILE[1]), **QUICK)
    return found


def test_hostile_names_are_text(tmp_path):
    path = tmp_path / "report.html"
    write_html_report(everything(), path)
    page = path.read_text(encoding="utf-8")
    elements = Elements(page)
    assert not {"script", "img", "iframe", "object", "link", "base", "form"} & set(elements.tags)
    assert not [name for _, name, _ in elements.attributes if name.startswith("on") or name in ("src", "srcset")]
    assert elements.tags.count("title") == 1 + elements.tags.count("svg")
    assert HOSTILE[0] in elements.text
    assert "\u202e" not in page


def test_the_page_needs_nothing_besides_itself(tmp_path):
    elements = Elements(html_report(everything(("A", "B", "C"))))
    links = [value for _, name, value in elements.attributes if name in ("href", "xlink:href")]
    assert links
    assert all(link.startswith("#") for link in links)
    page = html_report(everything(("A", "B", "C")))
    assert not re.search(r"https?://|url\(|@import|<script", page)
    policy = [value for tag, name, value in elements.attributes if tag == "meta" and name == "content"]
    assert any("default-src 'none'" in value for value in policy)
    anchors = {value for _, name, value in elements.attributes if name == "id"}
    assert {link[1:] for link in links} == anchors


def test_the_page_has_every_part():
    page = Elements(html_report(everything(("A", "B", "C"))))
    for part in ("By label", "Decisions at thresholds", "Comparison of two models", "Subgroups", "Curves", "Limits"):
        assert part in page.text
    assert page.text.count("ROC curve of") == 3
    assert page.text.count("Reliability of") == 3
    assert "not for clinical use" in page.text


def test_a_regression_has_errors_and_no_decisions():
    predictions = regression()
    found = evaluate_predictions(predictions, **QUICK)
    error = predictions.scores - predictions.labels
    metrics = found["per_label"]["age"]["metrics"]
    assert metrics["mean_absolute_error"]["value"] == pytest.approx(np.abs(error).mean())
    assert metrics["bias"]["value"] == pytest.approx(error.mean())
    group = found["subgroups"]["sex"][0]
    assert group["per_label"]["age"]["bias"]["value"] == group["macro"]["bias"]["value"] is not None
    # Errors of quantities in different units have no mean.
    two = {name: np.tile(getattr(predictions, name), 2) for name in ("labels", "scores")}
    several = evaluate_predictions(
        replace(predictions, label_names=("age", "axis"), calibrated=(False, False), **two), **QUICK
    )["subgroups"]
    assert several["sex"][0]["macro"] == {}
    assert several["sex"][0]["per_label"].keys() == {"age", "axis"}
    shares = [share for row in found["per_label"]["age"]["curves"]["density"]["shares"] for share in row]
    assert all(share is None or share == 0 or share * 400 > 9.9 for share in shares)
    page = html_report(found)
    assert "Mean absolute error" in page
    assert "threshold" not in page.lower()
    assert "score" not in Elements(page).text


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\ud800", "\u202e", "\u2066"])
def test_characters_that_no_page_may_hold_are_replaced(character):
    assert text(f"a{character}b") == "a�b"
    assert text("Æ é 心房細動 \u200d") == "Æ é 心房細動 \u200d"


# ----------------------------------------------------------------------------------------------------------------------
# Two models
# ----------------------------------------------------------------------------------------------------------------------


def test_a_difference_is_the_first_less_the_second_of_the_same_recordings_in_any_order():
    first = made(500)
    noisy = np.clip(first.scores + np.random.default_rng(3).normal(0, 0.3, first.scores.shape), 0, 1)
    second = replace(first, scores=noisy)
    shuffled = second.take(np.random.default_rng(0).permutation(500))
    found = compare_predictions(first, shuffled, names=("good", "worse"), **QUICK)
    assert found == compare_predictions(first, second, names=("good", "worse"), **QUICK)
    figures = found["per_label"]["label 0"]["auroc"]
    expected = [roc_auc_score(first.labels[:, 0], one.scores[:, 0]) for one in (first, second)]
    assert (figures["first"], figures["second"]) == pytest.approx(tuple(expected))
    assert figures["difference"]["value"] == pytest.approx(expected[0] - expected[1])
    assert 0 < figures["difference"]["low"] < figures["difference"]["high"]
    other_way = compare_predictions(second, first, **QUICK)["macro"]["auroc"]["difference"]
    assert other_way["value"] == pytest.approx(-found["macro"]["auroc"]["difference"]["value"])


def test_what_cannot_be_compared_is_refused():
    first = made(50)
    with pytest.raises(
        PredictionsError, match=r"10 \(r40, r41, r42, \.\.\.\) only in the first, none only in the second"
    ):
        compare_predictions(first, first.take(range(40)), **QUICK)
    wrong = first.labels.copy()
    wrong[7, 1] = 1 - wrong[7, 1]
    with pytest.raises(PredictionsError, match="recording r7, label label 1"):
        compare_predictions(first, replace(first, labels=wrong), **QUICK)
    with pytest.raises(PredictionsError, match="different patients"):
        compare_predictions(first, replace(first, patient_ids=["x"] * 50), **QUICK)
    with pytest.raises(PredictionsError, match="no label label 1"):
        compare_predictions(first, replace(first, label_names=("label 0", "other")), **QUICK)
    with pytest.raises(PredictionsError, match="different problems"):
        compare_predictions(first, replace(first, problem_type="regression"), **QUICK)


def test_a_comparison_shows_no_more_digits_than_the_figures_themselves():
    n = 300
    classes = np.array([0] * 200 + [1] * 95 + [2] * 5)
    labels = (classes[:, None] == np.arange(3)).astype(float)
    scores = np.full((n, 3), 0.2) + 0.4 * labels[np.random.default_rng(0).permutation(n)]
    predictions = made(n, (0.3,) * 3, labels=labels, scores=scores, problem_type="single_label_classification")
    hidden = compare_predictions(predictions, predictions, **QUICK)["per_label"]["label 1"]["auroc"]["first"]
    single = evaluate_predictions(predictions, **QUICK)["per_label"]["label 1"]["metrics"]["auroc"]["value"]
    assert hidden == single == round(hidden, 3)


def test_a_comparison_keeps_small_counts_too():
    predictions = made(n=500, prevalence=(0.3, 0.01))
    found = compare_predictions(predictions, predictions, **QUICK)
    assert set(found["per_label"]) == {"label 0"}
    assert found["macro"]["auroc"]["first"] == round(found["macro"]["auroc"]["first"], 3)


def test_joined_reliability_bins_have_the_mean_score_of_all_their_recordings():
    first = ReliabilityBin(0.2, Cell(np.array([1, 2])), Cell(np.array([3])))
    both = first | ReliabilityBin(0.6, Cell(np.array([], int)), Cell(np.array([4])))
    assert both.score == pytest.approx(0.3)
    assert (len(both.positive), len(both.negative)) == (2, 2)
