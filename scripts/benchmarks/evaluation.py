"""Bootstrap intervals of AUROC and average precision, beside a loop over scikit-learn's."""

import argparse
import json
import resource
import statistics
import time

# Of the loop, which is scaled to all resamples: it takes the same time for each.
LOOP_RESAMPLES = 3
GOAL = "1,000 resamples of 10,000 recordings x 26 labels in under 20 s"


def run(options: argparse.Namespace) -> int:
    """
    Prints seconds for all resamples, and how many times as long the loop takes.

    Options: `recordings`, `labels`, `resamples`, `runs` and `json`.
    """
    import numpy as np

    from .ceiling import Ceiling

    labels, scores, patients = _made(options.recordings, options.labels)
    ceiling = Ceiling()
    seconds, cpu_seconds, loops, ceilings = [], [], [], []
    for number in range(options.runs + 1):
        before = ceiling.measure()
        start, cpu = time.perf_counter(), time.process_time()
        found = _ours(labels, scores, patients, options.resamples)
        middle, cpu = time.perf_counter(), time.process_time() - cpu
        looped = _loop(labels, scores, patients)
        end = time.perf_counter()
        if number:  # the first fills caches
            seconds.append(middle - start)
            cpu_seconds.append(cpu)
            loops.append((end - middle) / LOOP_RESAMPLES * options.resamples)
            ceilings.append((before + ceiling.measure()) / 2)
    # The loop's last resample lies where ours lie.
    drawn = ~np.isnan(looped)
    spread = np.nanstd(found["auroc"].resampled, axis=1)[drawn]
    assert (np.abs(looped - found["auroc"].values)[drawn] < 8 * spread).all()
    result = {
        "name": "evaluation/intervals",
        "recordings": options.recordings,
        "labels": options.labels,
        "resamples": options.resamples,
        "seconds": round(statistics.median(seconds), 2),
        "seconds_range": [round(min(seconds), 2), round(max(seconds), 2)],
        "cpu_seconds": round(statistics.median(cpu_seconds), 2),
        "loop_seconds": round(statistics.median(loops), 1),
        "times_loop": round(statistics.median(loop / own for loop, own in zip(loops, seconds, strict=True)), 1),
        "runs": options.runs,
        "ceiling_gflops": round(statistics.median(ceilings), 1),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
    }
    if options.json:
        print(json.dumps(result))
        return 0
    low, high = result["seconds_range"]
    print(
        f"{result['name']}: {result['seconds']:.1f} s (of {options.runs}: {low:.1f} to {high:.1f}; CPU "
        f"{result['cpu_seconds']:.1f} s) for {options.resamples:,} resamples of {options.recordings:,} recordings x "
        f"{options.labels} labels; a scikit-learn loop {result['loop_seconds']:,.0f} s ({result['times_loop']:.0f} x), "
        f"from {LOOP_RESAMPLES} resamples; peak memory {result['peak_memory_gb']:.2f} GB"
    )
    print(f"goal: {GOAL}")
    return 0


def _made(recordings: int, labels: int):
    """Two recordings of each patient; labels from one in a thousand to one in two."""
    import numpy as np

    generator = np.random.default_rng(0)
    true = (generator.random((recordings, labels)) < np.geomspace(0.001, 0.5, labels)).astype(float)
    true[:1], true[1:2] = 1.0, 0.0
    scores = 1 / (1 + np.exp(-(generator.standard_normal(true.shape) + 1.5 * true)))
    return true, scores, (np.arange(recordings) // 2).tolist()


def _ours(labels, scores, patients, resamples: int):
    from ecgfm_hf.evaluation import bootstrap_intervals, ranking_statistics

    return bootstrap_intervals(ranking_statistics(labels, scores), patients, resamples=resamples)


def _loop(labels, scores, patients):
    """AUROC (labels,) of a few resamples, the last of each label, copied recording by recording as is usual."""
    import numpy as np
    from sklearn.metrics import average_precision_score, roc_auc_score

    generator = np.random.default_rng(1)
    patients = np.array(patients)
    rows_of = np.split(np.argsort(patients, kind="stable"), np.flatnonzero(np.diff(np.sort(patients))) + 1)
    values = np.full(labels.shape[1], np.nan)
    for _ in range(LOOP_RESAMPLES):
        rows = np.concatenate([rows_of[index] for index in generator.integers(len(rows_of), size=len(rows_of))])
        for index in range(labels.shape[1]):
            true, score = labels[rows, index], scores[rows, index]
            if 0 < true.sum() < len(true):
                values[index] = roc_auc_score(true, score)
                average_precision_score(true, score)
    return values
