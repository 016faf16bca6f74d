"""
Does pretraining help where labels are few? On synthetic recordings, with a tiny model.

    python scripts/label_efficiency.py WORK_DIR [--small] [--processes 2]

Makes a synthetic cohort, pretrains on recordings without labels, and then compares, on held-out patients, over several
draws of 50, 100, 300 and 1,000 labelled recordings:

- `pretrained`: fine-tuning of the pretrained encoder, all weights;
- `scratch`: the same model trained from random weights;
- `probe of pretrained`, `probe of random`: logistic regressions on the embeddings of the pretrained encoder, and of the
  one that pretraining began with;
- `hand-made features`: logistic regressions on rates, intervals and amplitudes.

Learning rate and number of steps are chosen for `pretrained` and for `scratch` apart, at every number of labels, on
another draw of other patients (`tune`, judged by `valid`). For the intervals see `studies/paired.py`.

Everything that was done is kept in WORK_DIR: the same command resumes after an interruption. Figures are in
WORK_DIR/results.json and WORK_DIR/table.md from the first draw on; `finished` in the former shows whether all draws are
in. `--small` is the same in a minute, to see that it runs (the test suite does): its figures mean nothing.
`scripts/lora_study.py` continues from a finished WORK_DIR.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from studies.settings import FINETUNED_ARMS, FITTED_ARMS, PRETRAINED, SCRATCH, Cell, Study, small_study

SETTINGS = "study.json"


def main() -> int:
    """Runs the study. 0 done, 2 the folder holds another study, 130 interrupted."""
    parser = argparse.ArgumentParser(description="Does pretraining help where labels are few? On synthetic recordings.")
    parser.add_argument("work_dir", metavar="WORK_DIR", type=Path, help="for everything that is made; found again")
    parser.add_argument("--small", action="store_true", help="the same in a minute: figures that mean nothing")
    parser.add_argument("--processes", metavar="N", type=int, default=2, help="one core each (default: 2)")
    options = parser.parse_args()
    study = small_study() if options.small else Study()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    note = options.work_dir / SETTINGS
    content = json.dumps(study.to_dict(), indent=1) + "\n"
    if note.is_file() and note.read_text(encoding="utf-8") != content:
        print(f"{note} shows that {options.work_dir} has a study of other settings: give another folder")
        return 2
    note.write_text(content, encoding="utf-8")
    started = time.perf_counter()
    # Each process has a core of its own; what they inherit is set before torch is there.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(
        options.processes, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_process
    ) as pool:
        try:
            found = run(study, options.work_dir, pool, options.processes)
        except KeyboardInterrupt:
            print("interrupted; the same command resumes", file=sys.stderr)
            return 130
        finally:
            pool.shutdown(cancel_futures=True)
    from studies.results import markdown

    print(f"\n{markdown(found)}\nwritten to {options.work_dir}; this run took {time.perf_counter() - started:.0f} s")
    return 0


def run(study: Study, work_dir: Path, pool: ProcessPoolExecutor, processes: int) -> dict:
    """All of it; what is in the folder already is not done again."""
    from studies import arms, cohort, results

    folder = cohort.StudyFolder(work_dir.resolve())
    _wait("cohort and store", [pool.submit(cohort.make_store, study, folder, processes)])
    _wait("random encoder", [pool.submit(cohort.save_random, study, folder)])
    pretraining = pool.submit(cohort.pretrain, study, folder)
    _wait("segments", [pool.submit(cohort.write_segments, folder, split) for split in cohort.SPLITS])
    _wait("hand-made features", [pool.submit(arms.features_of, folder, split) for split in ("labelled", "test")])
    # Pretraining has one process to itself meanwhile.
    trained, chosen = [], {}
    for arm in (SCRATCH, PRETRAINED):
        if arm == PRETRAINED:
            _wait("pretraining", [pretraining])
        tried = tune(study, arm, lambda cells: _cells(study, folder, pool, cells))
        trained += tried[1]
        chosen |= tried[0]
    for model_dir in (folder.pretrained, folder.random):
        parts = [pool.submit(arms.write_embeddings, folder, model_dir, split) for split in ("labelled", "test")]
        _wait(f"embeddings of {model_dir.name}", parts)
    heads = [pool.submit(arms.run_heads, study, folder, arm, size) for size in study.draws for arm in FITTED_ARMS]
    _wait("heads", heads)
    # Draw by draw, so that there is a table of those that are finished, with shorter and shorter intervals.
    found: dict = {}
    for draw in range(max(study.draws.values())):
        cells = [
            replace(chosen[arm, labels], draw=draw)
            for labels, draws in study.draws.items()
            for arm in FINETUNED_ARMS
            if draw < draws
        ]
        _cells(study, folder, pool, cells)
        found = results.summarise(study, folder, chosen, trained)
        results.write_results(folder, found)
    return found


def tune(
    study: Study, arm: str, run_all: Callable[[list[Cell]], list[dict]], adapters: str = ""
) -> tuple[dict[tuple[str, int], Cell], list[dict]]:
    """
    Chooses learning rate and then the number of steps of an arm, by the macro AUROC on `valid` of one draw from `tune`.

    Returns:
        By arm and number of labels the cell of draw 0 to be tested; and all results of what was tried.
    """
    sizes = [labels for labels in study.draws if labels not in study.tuned_as]
    first = [
        Cell(arm, labels, "tune", 0, "valid", rate, study.first_steps, adapters)
        for labels in sizes
        for rate in study.learning_rates
    ]
    tried = run_all(first)
    rates = {labels: _best(tried, labels)["learning_rate"] for labels in sizes}
    rates |= {labels: rates[other] for labels, other in study.tuned_as.items()}
    tried += run_all(
        [
            Cell(arm, labels, "tune", 0, "valid", rates[labels], steps, adapters)
            for labels in study.draws
            for steps in study.steps[labels]
        ]
    )
    chosen = {}
    for labels in study.draws:
        best = _best(tried, labels)
        chosen[arm, labels] = Cell(arm, labels, "labelled", 0, "test", best["learning_rate"], best["steps"], adapters)
    return chosen, tried


def _best(tried: list[dict], labels: int) -> dict:
    own = [found for found in tried if found["cell"]["labels"] == labels]
    return max(own, key=lambda found: found["macro_auroc"])["cell"]


def _cells(study: Study, folder, pool: ProcessPoolExecutor, cells: list[Cell]) -> list[dict]:
    """Results of cells, in order; the longest begin first."""
    from studies import arms

    waiting = {pool.submit(arms.run_cell, study, folder, c): c for c in sorted(cells, key=lambda c: -c.steps)}
    found = {}
    for number, future in enumerate(as_completed(waiting), start=1):
        cell = waiting[future]
        found[cell] = future.result()
        _tell(
            f"{number:>3} of {len(cells)}  {cell.judge} {cell.arm}, {cell.labels} labels, draw {cell.draw}, learning "
            f"rate {cell.learning_rate:g}, {cell.steps} steps: macro AUROC {found[cell]['macro_auroc']:.4f} "
            f"({found[cell]['seconds']:.0f} s)"
        )
    return [found[cell] for cell in cells]


def _wait(what: str, futures: Iterable[Future]) -> None:
    started = time.perf_counter()
    for future in futures:
        future.result()
    _tell(f"{what}: {time.perf_counter() - started:.0f} s")


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def _begin_process() -> None:
    import warnings

    import datasets
    import torch
    import transformers

    from ecgfm_hf.utils.precision import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=UserWarning)


if __name__ == "__main__":
    sys.exit(main())
