"""
How often a study's intervals and verdict are right, by simulation.

    python scripts/study_calibration.py [--studies 1000] [--scenarios PART ...] [--workers 2] [--json]

Each simulated study draws patients with one or several recordings, labels of several prevalences, of which some are
unknown, and six arms: linear classifiers on views of the same recordings that differ in noise. It is made as
`ecgfm study` makes it: folds, nested training sets, comparison. The truth is each arm's expected macro AUROC at each
training size, over training sets drawn and balanced likewise, in endless patients.

A nominal 95% interval should contain the truth in 93 to 99 of 100 studies, arms that are equal should be called
different in at most 5 of 100 (over all pairs and sizes), and the planted advantage should be found in at least 80.
1,000 studies measure this with a standard error of 0.7 points (near 95%).
"""

import argparse
import functools
import json
import math
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

# Before numpy: each worker has one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.special import ndtri

from ecgfm_hf.evaluation import auroc
from ecgfm_hf.study import FoldScores, StudyTable, compare, fixed_fold, make_folds, nested_training

_SIGNAL = 8
_TRAININGS, _ENDLESS = 200, 10_000


@dataclass(frozen=True)
class Scenario:
    """
    A population, and how it is studied.

    Args:
        noise (`tuple[float, ...]`): Of each arm's view; arms of the same noise are equal in truth, not in scores.
        nuisance (`int`), penalty (`float`): Useless features of each view, and of the ridge regression: many and a
            small one make training unstable.
        permuted (`bool`): Labels are permuted over recordings, so every arm's AUROC is 0.5.
        fixed (`bool`): One split, of which intervals cover the patients: the truth is then of the trained classifiers.
    """

    name: str
    patients: int
    recordings: float
    noise: tuple[float, ...]
    sizes: tuple[float, ...] = (100, 300, 1.0)
    folds: int = 5
    repeats: int = 1
    prevalences: tuple[float, ...] = (0.5, 0.3, 0.15, 0.08)
    unknown: float = 0.1
    correlation: float = 0.5
    nuisance: int = 16
    penalty: float = 10.0
    permuted: bool = False
    fixed: bool = False


_DIFFERENT, _EQUAL, _PLANTED = (0.8, 0.9, 1.0, 1.2, 1.5, 2.0), (1.2,) * 6, (0.65, 1.2, 1.2, 1.2, 1.2, 1.2)
_FEW = {"patients": 120, "recordings": 2.0, "sizes": (60, 1.0), "prevalences": (0.5, 0.3, 0.2)}
_TWO = (100, 1.0)
SCENARIOS = (
    Scenario("different", 300, 2.5, _DIFFERENT, _TWO),
    Scenario("different-repeats", 300, 2.5, _DIFFERENT, _TWO, repeats=3),
    Scenario("different-few", noise=_DIFFERENT, **_FEW),
    Scenario("different-unstable", 300, 2.5, _DIFFERENT, _TWO, nuisance=60, penalty=0.1),
    Scenario("different-10-folds", 300, 2.5, _DIFFERENT, _TWO, folds=10),
    Scenario("equal-3-folds", 300, 2.5, _EQUAL, _TWO, folds=3),
    Scenario("equal", 300, 2.5, _EQUAL),
    Scenario("equal-repeats", 300, 2.5, _EQUAL, _TWO, repeats=3),
    Scenario("equal-few", noise=_EQUAL, **_FEW),
    Scenario("equal-unstable", 300, 2.5, _EQUAL, _TWO, nuisance=60, penalty=0.1),
    Scenario("permuted", 300, 2.5, _EQUAL, _TWO, permuted=True),
    Scenario("planted", 500, 3.0, _PLANTED),
    Scenario("fixed", 500, 3.0, _DIFFERENT, (300, 1.0), fixed=True),
)


def draw(case: Scenario, patients: int, each: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Patients (n,), labels (n, L) with unknown ones, and the arms' views (arms, n, features)."""
    of = np.repeat(np.arange(patients), each)
    own, shared = math.sqrt(1 - case.correlation), math.sqrt(case.correlation)

    def noise(width: int) -> np.ndarray:
        return shared * generator.standard_normal((patients, width))[of] + own * generator.standard_normal(
            (len(of), width)
        )

    signal = noise(_SIGNAL)
    directions = np.random.default_rng(1).standard_normal((_SIGNAL, len(case.prevalences)))
    latent = signal @ (directions / np.linalg.norm(directions, axis=0))
    latent = 0.85 * latent + math.sqrt(1 - 0.85**2) * generator.standard_normal(latent.shape)
    labels = (latent > ndtri(1 - np.array(case.prevalences))).astype(float)
    if case.permuted:
        labels = generator.permutation(labels)
    labels[generator.random(labels.shape) < case.unknown] = np.nan
    views = [
        np.concatenate([signal + deviation * noise(_SIGNAL), noise(case.nuisance)], axis=1) for deviation in case.noise
    ]
    return of, labels, np.stack(views)


def draw_study(case: Scenario, generator: np.random.Generator) -> tuple[StudyTable, np.ndarray]:
    """A table of patients, and the arms' views."""
    each = 1 + generator.poisson(case.recordings - 1, case.patients)
    of, labels, views = draw(case, case.patients, each, generator)
    names = tuple(f"label {number}" for number in range(labels.shape[1]))
    ids, patients = (tuple(f"{kind}{n}" for n in numbers) for kind, numbers in (("r", range(len(of))), ("p", of)))
    return StudyTable(ids, patients, labels, names), views


def fit(values: np.ndarray, labels: np.ndarray, penalty: float) -> np.ndarray:
    """Weights (features + 1, L) of a ridge regression on standardised values; unknown labels count as their mean."""
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    scaled = (values - mean) / deviation
    centered = np.nan_to_num(labels - np.nanmean(labels, axis=0))
    weights = np.linalg.solve(scaled.T @ scaled + penalty * np.eye(values.shape[1]), scaled.T @ centered)
    weights /= deviation[:, None]
    return np.concatenate([weights, -(mean @ weights)[None]])


def score(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return values @ weights[:-1] + weights[-1]


def folds_of(case: Scenario, table: StudyTable, seed: int) -> list:
    if not case.fixed:
        return make_folds(table, folds=case.folds, repeats=case.repeats, seed=seed)
    tested = make_folds(table, folds=case.folds, seed=seed)[0].test
    return fixed_fold(table, ["test" if row in set(tested.tolist()) else "train" for row in range(len(table))])


@functools.cache
def truth(case: Scenario) -> np.ndarray:
    """(arms, sizes): the expected macro AUROC, with `_TRAININGS` training sets and endless patients."""
    found = np.zeros((_TRAININGS, len(case.noise), len(case.sizes)))
    for number in range(_TRAININGS):
        generator = np.random.default_rng([number, 11])
        table, views = draw_study(case, generator)
        _, labels, unseen = draw(case, _ENDLESS, np.ones(_ENDLESS, dtype=np.int64), generator)
        fold = folds_of(case, table, number)[0]
        for size, small in enumerate(nested_training(table, fold, case.sizes, seed=number).values()):
            for arm, view in enumerate(views):
                weights = fit(view[small.train], table.targets[small.train], case.penalty)
                found[number, arm, size] = auroc(labels, score(unseen[arm], weights)).mean()
    means = found.mean(axis=0)
    for deviation in set(case.noise):  # equal arms: one truth
        same = [arm for arm, other in enumerate(case.noise) if other == deviation]
        means[same] = means[same].mean(axis=0)
    return np.full_like(means, 0.5) if case.permuted else means


def simulate(case: Scenario, seed: int, resamples: int) -> dict:
    """One study: its estimates by (arm, size) and (first, second, size), and what it was called."""
    generator = np.random.default_rng([seed, 7])
    table, views = draw_study(case, generator)
    results, known = [], np.full((len(views), len(case.sizes)), np.nan)
    unseen = draw(case, _ENDLESS, np.ones(_ENDLESS, dtype=np.int64), generator) if case.fixed else None
    for fold in folds_of(case, table, seed):
        for index, (size, small) in enumerate(nested_training(table, fold, case.sizes, seed=seed).items()):
            for arm, view in enumerate(views):
                weights = fit(view[small.train], table.targets[small.train], case.penalty)
                results.append(FoldScores(str(arm), size, small, score(view[small.test], weights)))
                if unseen is not None:  # a fixed split is about these very classifiers
                    known[arm, index] = auroc(unseen[1], score(unseen[2][arm], weights)).mean()
    found = compare(table, results, resamples=resamples, seed=seed)
    sizes = {size: index for index, size in enumerate(case.sizes)}
    return {
        "arms": {(int(one.arm), sizes[one.size]): one.macro["auroc"] for one in found.arms},
        "pairs": {(int(one.first), int(one.second), sizes[one.size]): one for one in found.differences},
        "joint_level": found.joint_level,
        "known": known if case.fixed else None,
    }


def summary(case: Scenario, true: np.ndarray, runs: list[dict]) -> dict:
    """Coverage of the intervals, wrong and right verdicts, and how large a difference would have been shown."""
    arms = np.zeros((len(runs), len(case.noise), len(case.sizes)))
    own, joint, wrong, found, joint_levels, detectable, width = [], [], [], [], [], [], []
    for number, run in enumerate(runs):
        truths = true if run["known"] is None else run["known"]
        for (arm, size), one in run["arms"].items():
            arms[number, arm, size] = one.low <= truths[arm, size] <= one.high
        holds, mistakes, hits = [], False, {}
        for (first, second, size), one in run["pairs"].items():
            difference = truths[first, size] - truths[second, size]
            own.append(one.own.low <= difference <= one.own.high)
            holds.append(one.joint_low <= difference <= one.joint_high)
            mistakes |= one.better is not None and (one.better == one.first) != (difference > 0)
            mistakes |= one.better is not None and difference == 0
            if first == 0:
                hits.setdefault(size, []).append(one.better == one.first)
                detectable.append((size, one.detectable))
            width.append(one.own.high - one.own.low)
        joint.append(all(holds))
        wrong.append(mistakes)
        found.append([np.mean(hits[size]) for size in sorted(hits)])
        joint_levels.append(run["joint_level"])
    pairs = np.array(own).reshape(len(runs), -1)
    sizes = range(len(case.sizes))
    return {
        "scenario": case.name,
        "studies": len(runs),
        "patients": case.patients,
        "folds": case.folds,
        "repeats": case.repeats,
        "sizes": case.sizes,
        "truth": np.round(true, 4).tolist(),
        "arm_coverage": np.round(100 * arms.mean(axis=0), 1).tolist(),
        "pair_coverage": round(100 * float(pairs.mean()), 1),
        "pair_coverage_lowest": round(100 * float(pairs.mean(axis=0).min()), 1),
        "pair_coverage_highest": round(100 * float(pairs.mean(axis=0).max()), 1),
        "joint_coverage": round(100 * float(np.mean(joint)), 1),
        "wrong_better": round(100 * float(np.mean(wrong)), 2),
        "first_better_by_size": np.round(100 * np.mean(found, axis=0), 1).tolist(),
        "first_advantage_by_size": np.round(true[0] - true[1], 4).tolist(),
        "detectable_by_size": [round(float(np.mean([d for s, d in detectable if s == size])), 4) for size in sizes],
        "pair_width": round(float(np.mean(width)), 4),
        "joint_level": round(float(np.mean(joint_levels)), 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="How often a study's intervals and verdict are right, by simulation.")
    parser.add_argument("--studies", type=int, default=1000, help="of each scenario (default: 1000)")
    parser.add_argument("--resamples", type=int, default=200, help="of each study (default: 200)")
    parser.add_argument("--scenarios", nargs="+", metavar="PART", default=[""], help="only those with PART in the name")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    parser.add_argument("--json", action="store_true", help="an object a line")
    options = parser.parse_args()
    for case in SCENARIOS:
        if not any(part in case.name for part in options.scenarios):
            continue
        every = range(options.studies)
        with ProcessPoolExecutor(options.workers) as pool:
            runs = list(pool.map(simulate, [case] * len(every), every, [options.resamples] * len(every), chunksize=10))
        row = summary(case, truth(case), runs)
        if options.json:
            print(json.dumps(row), flush=True)
            continue
        print(case.name)
        for name, value in list(row.items())[1:]:
            print(f"  {name:26}{value}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
