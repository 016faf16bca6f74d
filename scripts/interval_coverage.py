"""
How often the 95% intervals hold the truth, by simulation.

    python scripts/interval_coverage.py [--simulations 2000] [--cases PART ...] [--workers 2] [--json]

Each simulation draws patients with one or several recordings, of which the label is the patient's and the scores are
normal and correlated within the patient, so that the truth is known; then it makes intervals as `ecgfm evaluate` does,
and beside them percentiles, BCa, and the same intervals with recordings drawn in place of patients. A nominal 95%
interval should contain the truth in 94 to 96 of 100 simulations. 2,000 simulations measure this with a standard error
of half a point.
"""

import argparse
import json
import math
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

# Before numpy: each worker has one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.special import ndtr, ndtri

from ecgfm_hf.evaluation import (
    bootstrap_difference,
    bootstrap_intervals,
    decision_statistics,
    patient_groups,
    probability_statistics,
    ranking_statistics,
)

METRICS = ("auroc", "average_precision", "sensitivity", "specificity", "brier", "auroc_difference")
METHODS = ("interval", "percentile", "bca", "over_recordings")
_LEVEL, _BLOCKS = 0.95, 200


@dataclass(frozen=True)
class Case:
    """Patients, recordings of each on average, share of patients with the label, AUROC, correlation of scores."""

    name: str
    patients: int
    recordings: float
    prevalence: float
    auroc: float
    correlation: float = 0.0

    @property
    def shift(self) -> float:
        """Of the scores of positives, in standard deviations; the negatives' mean is 0."""
        return math.sqrt(2) * ndtri(self.auroc)


CASES = (
    Case("100-positives", 1000, 1, 0.10, 0.90),
    Case("500-positives", 1000, 1, 0.50, 0.80),
    Case("clustered-50-positives", 500, 3, 0.10, 0.90, 0.5),
    Case("clustered-150-positives", 500, 3, 0.30, 0.85, 0.8),
    Case("50-positives", 1000, 1, 0.05, 0.95),
    Case("30-positives", 300, 1, 0.10, 0.85),
    Case("20-positives-high", 1000, 1, 0.02, 0.97),
    Case("10-positives", 300, 1, 1 / 30, 0.90),
)
# The second model of the difference: its scores share this much with the first one's.
_SECOND_SHIFT, _SHARED = 0.8, 0.7


def draw(case: Case, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores of two models and patients, each (recordings,)."""
    each = 1 + generator.poisson(case.recordings - 1, case.patients)
    patients = np.repeat(np.arange(case.patients), each)
    labels = (generator.random(case.patients) < case.prevalence)[patients].astype(float)
    own, shared = math.sqrt(1 - case.correlation), math.sqrt(case.correlation)

    def noise() -> np.ndarray:
        return shared * generator.standard_normal(case.patients)[patients] + own * generator.standard_normal(
            len(patients)
        )

    first = noise()
    second = _SHARED * first + math.sqrt(1 - _SHARED**2) * noise()
    return labels, first + case.shift * labels, second + _SECOND_SHIFT * case.shift * labels, patients


def truth(case: Case) -> dict[str, float]:
    """The metrics in endless recordings."""
    grid, step = np.linspace(-9, 9 + case.shift, 400_001, retstep=True)
    density = np.exp(-0.5 * grid**2) / math.sqrt(2 * math.pi)
    of_positives = np.exp(-0.5 * (grid - case.shift) ** 2) / math.sqrt(2 * math.pi)
    found, flagged = case.prevalence * ndtr(case.shift - grid), (1 - case.prevalence) * ndtr(-grid)
    probability = _probability(grid, case)
    squared = case.prevalence * of_positives * (1 - probability) ** 2 + (1 - case.prevalence) * density * probability**2
    return {
        "auroc": case.auroc,
        "average_precision": float((found / (found + flagged) * of_positives).sum() * step),
        "sensitivity": float(ndtr(case.shift / 2)),
        "specificity": float(ndtr(case.shift / 2)),
        "brier": float(squared.sum() * step),
        "auroc_difference": float(ndtr(_SECOND_SHIFT * case.shift / math.sqrt(2))) - case.auroc,
    }


def _probability(scores: np.ndarray, case: Case) -> np.ndarray:
    """As a calibrated model of these recordings gives it."""
    odds = np.log(case.prevalence / (1 - case.prevalence)) + case.shift * scores - case.shift**2 / 2
    return 0.5 * (1 + np.tanh(0.5 * odds))


def simulate(case: Case, seed: int, resamples: int) -> dict[str, dict[str, tuple[float, float] | None]]:
    """Intervals of one drawing, by metric and method; None where there is none."""
    generator = np.random.default_rng([seed, 7])
    labels, scores, second, patients = draw(case, generator)
    statistics = [
        ranking_statistics(labels, scores),
        decision_statistics(labels, scores >= case.shift / 2),
        probability_statistics(labels, _probability(scores, case)),
    ]
    settings = {"resamples": resamples, "seed": seed, "level": _LEVEL}
    found = bootstrap_intervals(statistics, patients.tolist(), **settings)
    auroc = [ranking_statistics(labels, values, ("auroc",)) for values in (scores, second)]
    difference = bootstrap_difference(*auroc, patients.tolist(), **settings)
    answers = {}
    weights = _blocks_left_out(patients, generator)
    for part in statistics:
        left_out = part.compute(weights)
        for metric in part.scales:
            answers[metric] = _methods(found[metric], left_out[metric][0])
    left_out = auroc[1].compute(weights)["auroc"][0] - auroc[0].compute(weights)["auroc"][0]
    answers["auroc_difference"] = _methods(difference["auroc"], left_out)
    if case.recordings > 1:
        over = bootstrap_intervals(auroc[0], [None] * len(labels), **settings)["auroc"]
        answers["auroc"]["over_recordings"] = (over.low[0], over.high[0])
    return {
        metric: {how: None if np.isnan(ends).any() else ends for how, ends in methods.items()}
        for metric, methods in answers.items()
    }


def _blocks_left_out(patients: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(n, blocks): all recordings, each time without the recordings of a 200th of the patients."""
    groups = patient_groups(patients.tolist())
    blocks = min(groups.count, _BLOCKS)
    block = generator.permutation(groups.count) % blocks
    return (block[groups.numbers][:, None] != np.arange(blocks)).astype(np.int64)


def _methods(found, left_out: np.ndarray) -> dict[str, tuple[float, float]]:
    value, resampled = found.values[0], found.resampled[0]
    resampled = resampled[~np.isnan(resampled)]
    nothing = (math.nan, math.nan)
    if np.isnan(value) or not len(resampled):
        return {"interval": nothing, "percentile": nothing, "bca": nothing}
    ends = np.array([(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    # Efron's BCa: its acceleration from the jackknife over blocks of patients.
    below = np.mean(resampled < value) + 0.5 * np.mean(resampled == value)
    bias = ndtri(np.clip(below, 0.5 / len(resampled), 1 - 0.5 / len(resampled)))
    away = np.nanmean(left_out) - left_out[~np.isnan(left_out)]
    spread = (away**2).sum() ** 1.5
    acceleration = (away**3).sum() / (6 * spread) if spread else 0.0
    shifted = bias + ndtri(ends)
    adjusted = ndtr(bias + shifted / (1 - acceleration * shifted))
    return {
        "interval": (found.low[0], found.high[0]),
        "percentile": tuple(np.quantile(resampled, ends)),
        "bca": tuple(np.quantile(resampled, adjusted)),
    }


def coverage(case: Case, simulations: int, resamples: int, workers: int) -> list[dict]:
    """An object for each metric and method: coverage in percent, its standard error, misses on either side, width."""
    true = truth(case)
    with ProcessPoolExecutor(workers) as pool:
        runs = list(
            pool.map(simulate, [case] * simulations, range(simulations), [resamples] * simulations, chunksize=20)
        )
    rows = []
    for metric in METRICS:
        for how in METHODS:
            ends = [run[metric][how] for run in runs if run[metric].get(how) is not None]
            if not ends:
                continue
            low, high = np.array(ends).T
            share = float(np.mean((low <= true[metric]) & (true[metric] <= high)))
            rows.append(
                {
                    "case": case.name,
                    "metric": metric,
                    "method": how,
                    "coverage": round(100 * share, 2),
                    "standard_error": round(100 * math.sqrt(share * (1 - share) / len(ends)), 2),
                    "truth_below": round(100 * float(np.mean(true[metric] < low)), 2),
                    "truth_above": round(100 * float(np.mean(true[metric] > high)), 2),
                    "width": round(float(np.mean(high - low)), 4),
                    "simulations": len(ends),
                    "without_interval": len(runs) - len(ends),
                }
            )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="How often the 95% intervals hold the truth, by simulation.")
    parser.add_argument("--simulations", type=int, default=2000, help="of each case (default: 2000)")
    parser.add_argument("--resamples", type=int, default=1000, help="of each simulation (default: 1000)")
    parser.add_argument("--cases", nargs="+", metavar="PART", default=[""], help="only those with PART in their names")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    parser.add_argument("--json", action="store_true", help="an object a line")
    options = parser.parse_args()
    for case in CASES:
        if not any(part in case.name for part in options.cases):
            continue
        rows = coverage(case, options.simulations, options.resamples, options.workers)
        if options.json:
            print("\n".join(map(json.dumps, rows)), flush=True)
            continue
        print(f"{case}, true values { ({name: round(value, 3) for name, value in truth(case).items()}) }")
        for metric in METRICS:
            of_metric = [row for row in rows if row["metric"] == metric]
            figures = "  ".join(f"{row['method']} {row['coverage']:5.1f}" for row in of_metric)
            print(f"  {metric:20}{figures}   (standard error {of_metric[0]['standard_error']})", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
