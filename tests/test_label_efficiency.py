"""The study of label efficiency: fair draws, tuning that never sees the test set, intervals that mean what they say."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ecgfm_hf.synthetic import SyntheticCohort
from ecgfm_hf.training import FinetuneSettings
from ecgfm_hf.training.recipes import read_recipe

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from studies.cohort import SegmentsOfRows, draw_rows
from studies.handmade_features import feature_table, handmade_features
from studies.paired import Judged, estimate, judge, patient_weights
from studies.results import markdown
from studies.settings import (
    ADAPTERS,
    ARMS,
    COMPARISONS,
    LORA,
    SCRATCH,
    Cell,
    Study,
    adapters_text,
    small_study,
)


class MadeSplit:
    """A split as `draw_rows` and `SegmentsOfRows` look at one."""

    def __init__(self, patients=60, labels=3, seed=0):
        random = np.random.default_rng(seed)
        counts = random.integers(1, 4, patients)
        self.patient_ids = [f"p{patient}" for patient, count in enumerate(counts) for _ in range(count)]
        self.labels = (random.random((len(self.patient_ids), labels)) < 0.2).astype(np.float32)
        self.per_recording = 2
        self.segments = np.arange(2 * len(self.patient_ids), dtype=np.float32)[:, None, None] * np.ones((1, 2, 3))


def test_draws_have_the_size_asked_for_every_label_and_no_patient_in_common():
    split = MadeSplit()
    draws = draw_rows(split, 20, 4, seed=3, least_patients=2)
    patients = [{split.patient_ids[row] for row in rows} for rows in draws]
    assert [len(set(rows.tolist())) for rows in draws] == [20] * 4
    assert sum(map(len, patients)) == len(set().union(*patients))
    for rows in draws:
        for column in split.labels[rows].T:
            for value in (0, 1):
                assert len({split.patient_ids[row] for row in rows[column == value]}) >= 2
    again = draw_rows(split, 20, 4, seed=3, least_patients=2)
    assert all(np.array_equal(one, other) for one, other in zip(draws, again, strict=True))
    assert not np.array_equal(draws[0], draw_rows(split, 20, 1, seed=4)[0])


def test_a_draw_that_the_split_does_not_hold_is_refused(monkeypatch):
    split = MadeSplit(patients=5)
    with pytest.raises(ValueError, match="patients do not hold one"):
        draw_rows(split, 20, 1, seed=0)


def test_segments_of_rows_are_those_of_the_recordings_numbered_anew():
    inputs = SegmentsOfRows(MadeSplit(), np.array([7, 2]))
    assert inputs.recordings.tolist() == [0, 0, 1, 1]
    assert [item["input_values"][0, 0] for item in inputs.__getitems__([0, 1, 3])] == [14, 15, 5]


def test_tuning_takes_the_best_rate_then_the_best_steps_on_validation_patients_only():
    import label_efficiency

    study = Study(draws={50: 2, 300: 1}, learning_rates=(1e-4, 1e-3), first_steps=600, tuned_as={300: 50})
    study = replace(study, steps={50: (1200,), 300: (300, 1200)})
    asked: list[Cell] = []

    def run_all(cells):
        asked.extend(cells)
        return [
            {"cell": vars(cell) | {}, "macro_auroc": (cell.learning_rate == 1e-3) + cell.steps / 1e4} for cell in cells
        ]

    chosen, tried = label_efficiency.tune(study, SCRATCH, run_all)
    assert {(cell.split, cell.judge) for cell in asked} == {("tune", "valid")}
    assert len(tried) == len(asked) == 2 + 1 + 2
    for labels in (50, 300):
        cell = chosen[SCRATCH, labels]
        assert (cell.learning_rate, cell.steps, cell.split, cell.judge) == (1e-3, 1200, "labelled", "test")


def test_scratch_may_train_for_1200_steps_and_the_arms_are_tuned_alike():
    study = Study()
    assert all(max(steps) >= 1200 for steps in study.steps.values())
    assert all(study.draws[labels] >= 5 for labels in (50, 100, 300))
    assert json.loads(json.dumps(small_study().to_dict()))["patients"] < 500


def test_the_interval_covers_the_truth_about_95_times_in_100():
    random = np.random.default_rng(0)
    hits, total, truth, between, patients = 0, 600, 0.03, 0.02, 0.008
    for _ in range(total):
        shift = random.normal(0, patients)
        whole = truth + shift + random.normal(0, between, 5)
        found = estimate(Judged(whole, whole[:, None] + random.normal(0, patients, 300)))
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / total <= 0.98


def test_a_difference_is_taken_draw_by_draw_and_patient_by_patient():
    random = np.random.default_rng(0)
    # Draws differ much, arms always by the same.
    base = Judged(random.random(6), random.random((6, 200)))
    other = Judged(base.whole - 0.05, base.resampled - 0.05)
    found = estimate(base - other)
    assert (found.low, found.mean, found.high) == pytest.approx((0.05, 0.05, 0.05))
    assert estimate(base).high - estimate(base).low > 0.2


def test_resamples_draw_whole_patients_and_judge_as_evaluation_does():
    from ecgfm_hf.evaluation import auroc

    random = np.random.default_rng(0)
    patients = [f"p{i // 3}" for i in range(90)]
    weights = patient_weights(patients, 50, seed=1)
    assert weights.shape == (90, 51)
    assert (weights[:, 0] == 1).all()
    assert (weights.sum(axis=0) == 90).all()
    assert (weights[::3] == weights[1::3]).all()
    labels = (random.random((90, 2)) < 0.4).astype(float)
    scores = random.random((90, 2))
    found = judge(labels, [scores], weights)
    assert found.whole[0] == pytest.approx(auroc(labels, scores).mean())
    repeated = np.repeat(np.arange(90), weights[:, 7])
    assert found.resampled[0, 6] == pytest.approx(auroc(labels[repeated], scores[repeated]).mean())


def test_one_draw_has_no_interval():
    found = estimate(Judged(np.array([0.9]), np.full((1, 10), 0.9)))
    assert np.isnan([found.low, found.high]).all()


def test_the_table_has_every_arm_and_difference_with_its_interval():
    one = {"mean": 0.9, "low": 0.85, "high": 0.95, "error_draws": 0.01, "error_patients": 0.01, "draws": 5}
    of = {
        "draws": 5,
        "macro_auroc": dict.fromkeys(ARMS, one),
        "differences": {f"{a} - {b}": one for a, b in COMPARISONS},
    }
    table = markdown({"sizes": {"1000": of}})
    assert table.count("| 1,000 |") == 2
    assert table.count("0.900 |") == len(ARMS)
    assert table.count("+0.900 (+0.850 to +0.950)") == len(COMPARISONS)


@pytest.fixture(scope="module")
def recordings():
    return [recording for recording in SyntheticCohort(45, seed=7)]


def test_handmade_features_measure_what_they_are_named_after(recordings):
    values, names = feature_table([recording.signal for recording in recordings])
    assert values.shape == (len(recordings), len(names))
    assert np.isfinite(values).all()
    truths = [recording.truth for recording in recordings]

    def errors(name, key, rhythms):
        pairs = [
            (row[names.index(name)], getattr(truth, key))
            for row, truth in zip(values, truths, strict=True)
            if truth.rhythm in rhythms and getattr(truth, key) is not None
        ]
        differences = np.array([found - true for found, true in pairs])
        return abs(np.median(differences)), np.median(np.abs(differences - np.median(differences)))

    for name, key, rhythms, bias, spread in (
        ("rate", "rate", ("sinus",), 1, 1),
        ("pr", "pr_ms", ("sinus",), 25, 6),
        ("qrs", "qrs_ms", ("sinus", "fibrillation"), 10, 6),
        ("qt", "qt_ms", ("sinus", "fibrillation"), 25, 6),
        ("axis", "axis_degrees", ("sinus", "fibrillation"), 4, 4),
        ("st_shared", "st_mv", ("sinus", "fibrillation"), 0.02, 0.03),
    ):
        found = errors(name, key, rhythms)
        assert found[0] <= bias, (name, found)
        assert found[1] <= spread, (name, found)


@pytest.mark.parametrize("kind", ["flat", "noise", "nan", "one spike"])
def test_handmade_features_are_finite_regardless_of_the_recording(kind):
    recording = np.zeros((12, 5000))
    if kind == "noise":
        recording = np.random.default_rng(0).standard_normal((12, 5000))
    elif kind == "nan":
        recording[:] = np.nan
    elif kind == "one spike":
        recording[:, 2500] = 3
    assert np.isfinite(list(handmade_features(recording).values())).all()


def test_handmade_features_refuse_another_shape():
    with pytest.raises(ValueError, match="12, 2500 or more"):
        handmade_features(np.zeros((8, 5000)))


@pytest.mark.slow
def test_the_small_study_runs_to_its_end_and_lora_is_judged_beside_it(tmp_path):
    scripts, work = Path(__file__).parent.parent / "scripts", tmp_path / "work"
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(scripts.parent)}

    def run(script, *arguments):
        command = [sys.executable, str(scripts / script), str(work), "--processes", "1", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)

    assert run("lora_study.py").returncode == 2, "there is no study yet"
    done = run("label_efficiency.py", "--small")
    assert done.returncode == 0, done.stderr
    found = json.loads((work / "results.json").read_text())
    assert found["finished"]
    for of in found["sizes"].values():
        assert set(of["macro_auroc"]) == set(ARMS)
        assert all(0 < one["mean"] < 1 for one in of["macro_auroc"].values())
    assert {cell["split"] for cell in found["tried"]} == {"tune"}
    assert {cell["judge"] for cell in found["tried"]} == {"valid"}
    other = run("label_efficiency.py")
    assert other.returncode == 2
    assert "other settings" in other.stdout

    done = run("lora_study.py", "--labels", "40")
    assert done.returncode == 0, done.stderr
    lora = json.loads((work / "lora.json").read_text())
    assert 0 < lora["trained_share"] < 0.02
    assert lora["macro_auroc_of_all_weights"] == pytest.approx(
        found["sizes"]["40"]["macro_auroc_of_draws"]["pretrained"][0]
    )
    assert lora["reached"] == lora["macro_auroc"] / lora["macro_auroc_of_all_weights"]
    assert max(lora["logits_differ_by"]) < 1e-4
    assert {(cell["split"], cell["judge"]) for cell in lora["tried"]} == {("tune", "valid")}


def test_results_of_other_adapters_are_never_read_as_ones_own():
    cells = [
        Cell(LORA, 1000, "tune", 0, "valid", 1e-2, 600, adapters_text(adapters))
        for adapters in (ADAPTERS, {**ADAPTERS, "r": 2}, dict(reversed(ADAPTERS.items())))
    ]
    assert cells[0].name != cells[1].name
    assert cells[0] == cells[2]
    assert cells[0].name == cells[2].name


def test_the_adapters_judged_are_those_of_the_docs():
    page = (Path(__file__).parent.parent / "docs" / "own-data.md").read_text(encoding="utf-8")
    assert read_recipe("finetune_small", re.findall(r"\blora\.\S+", page), FinetuneSettings).lora == ADAPTERS


def test_a_study_is_read_back_from_its_json():
    for study in (Study(), small_study()):
        assert Study.from_dict(json.loads(json.dumps(study.to_dict()))) == study
