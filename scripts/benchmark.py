"""
Speed, memory and disk, as shares of what this machine can do.

    python scripts/benchmark.py model [--json]
    python scripts/benchmark.py inference [--json] [--batch-size 8] [--paths int8-compiled ...]
    python scripts/benchmark.py pretrain [--json] [--pairs 4 8 16 32]
    python scripts/benchmark.py finetune [--json] [--batch-sizes 8]
    python scripts/benchmark.py evaluation [--json]
    python scripts/benchmark.py data [--json] [--recordings N] [--folder DIR]
    python scripts/benchmark.py integrity [--json] [--recordings N] [--folder DIR]
    python scripts/benchmark.py end-to-end [--json] [--models tiny base] [--recordings N] [--folder DIR]

On a GPU (`--device cuda`: model, pretrain, finetune; not run by the authors), the ceiling is the GPU's own product of
8192 x 8192 x 8192 in bfloat16, and memory is what torch allocated there.

States every figure beside the ceiling: float32 matrix products (1248 x 768 x 3072, `torch.mm(out=...)`, precision
'highest') measured in the same process, before and after every counted run, so that a machine that slows down slows
both. A share above 1 is possible: the ceiling is torch's float32 product, not the chip. How far above depends on the
processor, and on who else uses it: `bfloat16_gflops` is the same product in bfloat16, which no bfloat16 model can pass.

`--json` prints an object a line: `name` such as `model/float32/batch8`, `segments_per_s`, `ceiling_share`,
`peak_memory_gb` (of the process, weights and libraries included), and how it was measured. `data` compares with the
way of fairseq-signals, done here in the same process. `integrity` prints the ratio of times with and without checks.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

from benchmarks.paths import INFERENCE_PATHS


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Speed, memory and disk, as shares of what this machine can do.",
        epilog="Quote medians and shares; a machine shared with others is noisy.",
    )
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    of_model = benchmarks.add_parser("model", help="the encoder and classifier, forward")
    of_model.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    of_model.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    of_model.add_argument(
        "--attention", nargs="+", choices=("eager", "sdpa"), default=[None], help="default: the model's"
    )
    of_model.add_argument("--runs", type=int, default=9, help="counted runs of each (default: 9)")
    of_model.add_argument("--json", action="store_true", help="an object a line")
    of_model.add_argument(
        "--give-memory-back",
        action="store_true",
        help="leave the C library's default, which returns freed memory to the kernel after each step",
    )
    of_model.add_argument("--case", help=argparse.SUPPRESS)

    of_inference = benchmarks.add_parser("inference", help="the fast paths beside float32: speed, memory, scores")
    of_inference.add_argument("--batch-size", type=int, default=8, help="segments (default: 8)")
    of_inference.add_argument(
        "--paths", nargs="+", choices=INFERENCE_PATHS, default=INFERENCE_PATHS, help="beside float32 (default: all)"
    )
    of_inference.add_argument("--runs", type=int, default=9, help="counted runs of each (default: 9)")
    of_inference.add_argument("--json", action="store_true", help="an object a line")
    of_inference.add_argument("--case", help=argparse.SUPPRESS)

    of_pretrain = benchmarks.add_parser("pretrain", help="a pretraining step: forward, backward and optimiser")
    of_pretrain.add_argument("--pairs", type=int, nargs="+", default=[4, 8, 16, 32])
    of_pretrain.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    of_pretrain.add_argument(
        "--negatives", type=int, default=100, help="of a masked frame (default: 100, as published)"
    )
    of_pretrain.add_argument("--runs", type=int, default=7, help="counted steps of each (default: 7)")
    of_pretrain.add_argument("--json", action="store_true", help="an object a line")
    of_pretrain.add_argument("--case", help=argparse.SUPPRESS)

    of_finetune = benchmarks.add_parser("finetune", help="a fine-tuning step: forward, backward and optimiser")
    of_finetune.add_argument("--batch-sizes", type=int, nargs="+", default=[8])
    of_finetune.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    of_finetune.add_argument("--runs", type=int, default=9, help="counted steps of each (default: 9)")
    of_finetune.add_argument("--json", action="store_true", help="an object a line")
    of_finetune.add_argument("--case", help=argparse.SUPPRESS)

    of_data = benchmarks.add_parser("data", help="preparing a store and reading it: speed, disk and memory")
    of_data.add_argument("--recordings", type=int, default=1000, help="of 10 s at 500 Hz, about (default: 1000)")
    of_data.add_argument("--folder", type=Path, help="for scratch files, removed at the end (default: a temporary one)")
    of_data.add_argument("--cases", nargs="+", metavar="PART", default=[], help="only those with PART in their names")
    of_data.add_argument("--runs", type=int, default=5, help="counted runs of each (default: 5)")
    of_data.add_argument("--json", action="store_true", help="an object a line")
    of_data.add_argument("--case", help=argparse.SUPPRESS)

    of_evaluation = benchmarks.add_parser("evaluation", help="bootstrap intervals of ranking metrics")
    of_evaluation.add_argument("--recordings", type=int, default=10_000, help="default: 10,000")
    of_evaluation.add_argument("--labels", type=int, default=26, help="default: 26")
    of_evaluation.add_argument("--resamples", type=int, default=1000, help="default: 1,000")
    of_evaluation.add_argument("--runs", type=int, default=5, help="counted runs (default: 5)")
    of_evaluation.add_argument("--json", action="store_true", help="an object a line")
    of_integrity = benchmarks.add_parser("integrity", help="loading models and reading a store, beside no checks")
    of_integrity.add_argument("--recordings", type=int, default=1000, help="of the store (default: 1000)")
    of_integrity.add_argument("--tiny", action="store_true", help="a tiny model in place of the base model")
    of_integrity.add_argument("--folder", type=Path, help="for scratch files (default: a temporary one)")
    of_integrity.add_argument("--runs", type=int, default=15, help="counted pairs of runs of each (default: 15)")
    of_integrity.add_argument("--json", action="store_true", help="an object a line")
    of_end_to_end = benchmarks.add_parser("end-to-end", help="`ecgfm predict` of files, beside the model alone")
    of_end_to_end.add_argument("--models", nargs="+", choices=("tiny", "base"), default=["tiny", "base"])
    of_end_to_end.add_argument("--recordings", type=int, default=2000, help="for the tiny model (default: 2000)")
    of_end_to_end.add_argument("--base-recordings", type=int, default=64, help="for the base model (default: 64)")
    of_end_to_end.add_argument("--folder", type=Path, help="for scratch files (default: a temporary one)")
    of_end_to_end.add_argument("--runs", type=int, default=5, help="counted runs of each (default: 5)")
    of_end_to_end.add_argument("--json", action="store_true", help="an object a line")
    for subject in (of_model, of_pretrain, of_finetune):
        subject.add_argument("--device", default="cpu", help="such as cuda; shares are then of its bfloat16 products")
    options = parser.parse_args()
    # No other, whose libraries would count as this one's memory.
    measured = importlib.import_module(f"benchmarks.{options.benchmark.replace('-', '_')}")
    if getattr(options, "case", None):
        return measured.measure(json.loads(options.case))
    return measured.run(options)


if __name__ == "__main__":
    sys.exit(main())
