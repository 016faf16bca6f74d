"""
LoRA beside the fine-tuning of all weights, on the labelled recordings of the study of label efficiency.

    python scripts/lora_study.py WORK_DIR [--labels 1000] [--processes 2]

WORK_DIR is one in which `scripts/label_efficiency.py` has finished: cohort, splits, pretrained encoder, draws and the
result of fine-tuning all weights are its. LoRA's learning rate and then its number of steps are chosen as there, on a
draw apart (`tune`, judged by `valid`), and the choice is trained on the first draw of `labelled` and judged once by
`test`. The report has the share of weights that are trained, how much of the macro AUROC is reached with the interval
of the difference over test patients, and how far the merged model's logits are from the adapters'. Written to
WORK_DIR/lora.json; what was trained before is not trained again.
"""

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from label_efficiency import SETTINGS, _begin_process, _cells, _tell, tune
from studies.settings import ADAPTERS, LORA, PRETRAINED, Cell, Study, adapters_text

# Adapters are few, begin at nothing and take a higher rate than all weights do.
LEARNING_RATES = (5e-3, 1e-2, 2e-2)


def main() -> int:
    """Runs the study. 0 done, 2 the folder holds no finished one of label efficiency."""
    parser = argparse.ArgumentParser(description="LoRA beside fine-tuning of all weights, on synthetic recordings.")
    parser.add_argument("work_dir", metavar="WORK_DIR", type=Path, help="of label_efficiency.py, finished")
    parser.add_argument("--labels", metavar="N", type=int, default=1000, help="labelled recordings (default: 1000)")
    parser.add_argument("--processes", metavar="N", type=int, default=2, help="one core each (default: 2)")
    options = parser.parse_args()
    try:
        study = Study.from_dict(json.loads((options.work_dir / SETTINGS).read_text(encoding="utf-8")))
        whole = chosen_cell(json.loads((options.work_dir / "results.json").read_text(encoding="utf-8")), options.labels)
    except (FileNotFoundError, LookupError) as error:
        print(f"{options.work_dir} holds no finished study of label efficiency: {error}", file=sys.stderr)
        return 2
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context, initializer=_begin_process) as pool:
        found = run(study, options.work_dir, whole, pool)
    scratch = options.work_dir / f"lora.json.{os.getpid()}.partial"
    scratch.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, options.work_dir / "lora.json")
    low, high = found["difference_interval"]
    print(
        f"LoRA trains {found['trained_weights']:,} of {found['weights']:,} weights ({found['trained_share']:.2%}): "
        f"macro AUROC {found['macro_auroc']:.4f}, {found['reached']:.1%} of {found['macro_auroc_of_all_weights']:.4f} "
        f"(difference {found['difference']:+.4f}, {low:+.4f} to {high:+.4f} over test patients)\n"
        f"logits of the merged model, and of the one loaded again, differ from the adapters' by at most "
        f"{max(found['logits_differ_by']):.1e}"
    )
    return 0


def chosen_cell(results: dict, labels: int) -> Cell:
    """The cell of all weights that the study judged. `LookupError` where there is none of as many labels."""
    for one in results["chosen"]:
        if (one["arm"], one["labels"]) == (PRETRAINED, labels):
            return Cell(PRETRAINED, labels, "labelled", 0, "test", one["learning_rate"], one["steps"])
    raise LookupError(f"it has nothing of {labels} labelled recordings")


def run(study: Study, work_dir: Path, whole: Cell, pool: ProcessPoolExecutor) -> dict:
    """Tunes, trains and judges; `lora.json`'s content."""
    import numpy as np
    from studies import arms, cohort, paired

    folder, labels = cohort.StudyFolder(work_dir.resolve()), whole.labels
    own = replace(study, learning_rates=LEARNING_RATES, draws={labels: 1}, tuned_as={})
    chosen, tried = tune(own, LORA, lambda cells: _cells(study, folder, pool, cells), adapters_text(ADAPTERS))
    _tell(f"chosen: learning rate {chosen[LORA, labels].learning_rate:g}, {chosen[LORA, labels].steps} steps")
    of_all, of_lora = _cells(study, folder, pool, [whole, chosen[LORA, labels]])
    test = arms.load_split(folder, "test")
    weights = paired.patient_weights(test.patient_ids, study.resamples, study.seed)
    scores = [arms.read_scores(folder, cell) for cell in (chosen[LORA, labels], whole)]
    one, other = (paired.judge(test.labels, [values], weights) for values in scores)
    resampled = (one - other).resampled[0]
    return {
        "labels": labels,
        "adapters": ADAPTERS,
        "chosen": of_lora["cell"],
        "tried": [{**found["cell"], "macro_auroc": found["macro_auroc"]} for found in tried],
        "trained_weights": of_lora["trained_weights"],
        "weights": of_lora["weights"],
        "trained_share": of_lora["trained_weights"] / of_lora["weights"],
        "macro_auroc": of_lora["macro_auroc"],
        "macro_auroc_of_all_weights": of_all["macro_auroc"],
        "reached": of_lora["macro_auroc"] / of_all["macro_auroc"],
        "difference": of_lora["macro_auroc"] - of_all["macro_auroc"],
        "difference_interval": np.quantile(resampled, [0.025, 0.975]).tolist(),
        "logits_differ_by": of_lora["logits_differ_by"],
        "test_recordings": len(test.recording_ids),
    }


if __name__ == "__main__":
    sys.exit(main())
