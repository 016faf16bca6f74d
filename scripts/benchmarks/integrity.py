"""What checks cost: loading models and reading a store, with checks and without, in turns in one process."""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from unittest.mock import patch

GOAL = "a ratio of at most 1.05"


def run(options: argparse.Namespace) -> int:
    """Prints the processor time of each case with and without checks, and the median of the ratios of pairs."""
    import datasets
    from transformers.utils import logging

    from ecgfm_hf import ECGFMConfig

    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    sizes = {"num_hidden_layers": 1, "hidden_size": 96, "intermediate_size": 96} if options.tiny else {}
    with tempfile.TemporaryDirectory(prefix="ecgfm-benchmark-", dir=options.folder) as scratch:
        for name, work, unchecked in _cases(Path(scratch), ECGFMConfig.base(**sizes), options.recordings):
            result = {"name": f"integrity/{name}", **_compare(work, unchecked, options.runs)}
            if options.json:
                print(json.dumps(result), flush=True)
            else:
                low, high = result["ratio_range"]
                print(
                    f"{result['name']:36}{result['unchecked_ms']:10.1f} ms without checks,"
                    f"{result['checked_ms']:10.1f} ms with, ratio {result['ratio']:.3f} ({low:.3f} to {high:.3f})"
                )
    if not options.json:
        print(f"goal: {GOAL}")
    return 0


def _cases(
    folder: Path, config, recordings: int
) -> list[tuple[str, Callable[[], object], Callable[[], AbstractContextManager]]]:
    """Of each case: its name, the work, and how to leave its checks out."""
    import pyarrow as pa

    from ecgfm_hf import ECGFMFeatureExtractor, ECGFMForMultiLabelClassification, ECGFMModel, model_folder
    from ecgfm_hf.data import PrepareSettings, load_prepared, prepare, remote_stores
    from ecgfm_hf.data import store as stores
    from ecgfm_hf.utils import integrity

    from .made import MadeRecordings

    base, classifier, extractor = folder / "base", folder / "classifier", ECGFMFeatureExtractor()
    model_folder.save_model_folder(ECGFMModel(config), extractor, base)
    config.label_thresholds = {config.id2label[0]: 0.5}
    model_folder.save_model_folder(ECGFMForMultiLabelClassification(config), extractor, classifier)
    prepare(MadeRecordings(recordings), folder / "store", PrepareSettings())

    def forget() -> None:  # a process checks each file once
        integrity._checksum_of.cache_clear()
        stores._checked.clear()

    def open_store() -> None:
        forget()
        load_prepared(folder / "store", "all", cache_dir=tempfile.mkdtemp(dir=folder))

    def stream() -> int:
        forget()
        return sum(len(row["signal"]) for row in load_prepared(folder / "store", "all", streaming=True))

    def unchecked_store() -> AbstractContextManager:
        stack = ExitStack()
        stack.enter_context(patch.object(stores, "changed_files", lambda *_: []))
        stack.enter_context(patch.object(remote_stores, "map_checked", lambda path: pa.memory_map(str(path))))
        return stack

    def unchecked_model() -> AbstractContextManager:
        return patch.object(model_folder, "_checked", lambda _, model_class, *__: (model_class,))

    def unchecked_classifier() -> AbstractContextManager:
        stack = ExitStack()
        stack.enter_context(unchecked_model())
        stack.enter_context(patch.object(ECGFMForMultiLabelClassification, "check_fitted", lambda _: None))
        return stack

    return [
        ("load/base", lambda: model_folder.load_model(base), unchecked_model),
        (
            "load/classifier with thresholds",
            lambda: model_folder.load_model(classifier),
            unchecked_classifier,
        ),
        ("open store", open_store, unchecked_store),
        ("stream store", stream, unchecked_store),
    ]


def _compare(work: Callable[[], object], unchecked: Callable[[], AbstractContextManager], runs: int) -> dict:
    """Medians of processor time, which other work on the machine disturbs less than the clock's."""

    def seconds() -> float:
        gc.collect()  # it takes longer than loading a model, and would come at any time
        gc.disable()
        start = time.process_time()
        made = work()
        taken = time.process_time() - start
        del made
        gc.enable()
        return taken

    def unchecked_seconds() -> float:
        with unchecked():
            return seconds()

    seconds(), unchecked_seconds()  # fill caches
    pairs = []
    for number in range(runs):
        if number % 2:
            checked, bare = seconds(), unchecked_seconds()
        else:
            bare, checked = unchecked_seconds(), seconds()
        pairs.append((checked, bare))
    ratios = sorted(checked / bare for checked, bare in pairs)
    return {
        "checked_ms": round(1e3 * statistics.median(checked for checked, _ in pairs), 2),
        "unchecked_ms": round(1e3 * statistics.median(bare for _, bare in pairs), 2),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_range": [round(ratios[0], 4), round(ratios[-1], 4)],
        "runs": runs,
    }
