"""
Speed and memory, as shares of what this machine can do.

    python scripts/benchmark.py model [--json]

States every figure against the ceiling: float32 matrix products (1248 x 768 x 3072, `torch.mm(out=...)`, precision
'highest') measured in the same process, before and after every counted run, so that a machine that slows down slows
both. A share above 1 is possible: the ceiling is torch's float32 product, not the chip.

`--json` prints an object a line: `name` such as `model/float32/batch8`, `segments_per_s`, `ceiling_share`,
`peak_memory_gb` (of the process, weights and libraries included), and how it was measured.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
# Multiply-adds count twice. Base size, 12 x 2500 samples, forward: linear layers 26.5, position convolution 1.5,
# attention 0.9, convolutions and projection 0.4.
GFLOP_PER_SEGMENT = {"base": 29.3}
CEILING_SHAPE = (1248, 768, 3072)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Speed and memory, as shares of what this machine can do.",
        epilog="Quote medians and shares; a machine shared with others is noisy.",
    )
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    model = benchmarks.add_parser("model", help="the encoder and classifier, forward")
    model.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    model.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    model.add_argument("--attention", nargs="+", choices=("eager", "sdpa"), default=[None], help="default: the model's")
    model.add_argument("--runs", type=int, default=9, help="counted runs of each (default: 9)")
    model.add_argument("--json", action="store_true", help="an object a line")
    model.add_argument(
        "--give-memory-back",
        action="store_true",
        help="leave the C library's default, which returns freed memory to the kernel after each step",
    )
    model.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        return _measure_model(json.loads(options.case))
    return _run_cases(_model_cases(options), options.json)


def _model_cases(options: argparse.Namespace) -> list[dict]:
    return [
        {
            "name": "/".join(["model", dtype, *([attention] if attention else []), f"batch{batch}"]),
            "dtype": dtype,
            "batch": batch,
            "attention": attention,
            "runs": options.runs,
            "keep_freed_memory": not options.give_memory_back,
        }
        for dtype in options.dtypes
        for attention in options.attention
        for batch in options.batch_sizes
    ]


def _run_cases(cases: list[dict], as_json: bool) -> int:
    """Each case in a process of its own: peak memory is a process's."""
    if not as_json:
        print(f"{'':32}{'segments/s':>12}{'share':>8}{'range':>14}{'ceiling':>16}{'peak memory':>14}")
    for case in cases:
        # The child prints one object.
        command = [sys.executable, __file__, "model", "--case", json.dumps(case)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if run.returncode:
            print(f"{case['name']} failed", file=sys.stderr)
            return 1
        if as_json:
            print(run.stdout.strip(), flush=True)
            continue
        result = json.loads(run.stdout)
        between = "{:.2f} - {:.2f}".format(*result["ceiling_share_range"])
        ceiling, memory = f"{result['ceiling_gflops']:.0f} GFLOP/s", f"{result['peak_memory_gb']:.2f} GB"
        print(
            f"{result['name']:32}{result['segments_per_s']:12.2f}{result['ceiling_share']:8.2f}{between:>14}"
            f"{ceiling:>16}{memory:>14}",
            flush=True,
        )
    return 0


def _measure_model(case: dict) -> int:
    import torch

    from ecgfm_hf import ECGFMConfig, ECGFMForMultiLabelClassification
    from ecgfm_hf.memory import keep_freed_memory

    kept = case["keep_freed_memory"] and keep_freed_memory()
    torch.manual_seed(0)
    model = ECGFMForMultiLabelClassification(ECGFMConfig.base(num_labels=17)).eval()
    model.to(getattr(torch, case["dtype"]))
    if case["attention"]:
        model.set_attn_implementation(case["attention"])
    segments = torch.randn(case["batch"], 12, 2500)
    ceiling = _Ceiling()

    speeds, shares, ceilings = [], [], []
    with torch.inference_mode():
        for _ in range(2):
            model(segments)
        before = ceiling.measure()
        for _ in range(case["runs"]):
            start = time.perf_counter()
            model(segments)
            speed = case["batch"] / (time.perf_counter() - start)
            after = ceiling.measure()
            speeds.append(speed)
            ceilings.append((before + after) / 2)
            shares.append(speed * GFLOP_PER_SEGMENT["base"] / ceilings[-1])
            before = after
    print(
        json.dumps(
            {
                "name": case["name"],
                "segments_per_s": round(statistics.median(speeds), 3),
                "ceiling_share": round(statistics.median(shares), 4),
                "ceiling_share_range": [round(min(shares), 4), round(max(shares), 4)],
                "ceiling_gflops": round(statistics.median(ceilings), 1),
                "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
                "runs": case["runs"],
                "attention": model.config._attn_implementation,
                "threads": torch.get_num_threads(),
                "keeps_freed_memory": bool(kept),
                "torch": torch.__version__,
            }
        )
    )
    return 0


class _Ceiling:
    """GFLOP/s of float32 matrix products of the size of a feed-forward layer at batch 8."""

    def __init__(self) -> None:
        import torch

        torch.set_float32_matmul_precision("highest")
        rows, inner, columns = CEILING_SHAPE
        self.factors = torch.randn(rows, inner), torch.randn(inner, columns)
        self.out = torch.empty(rows, columns)
        self.multiply = torch.mm
        for _ in range(5):
            self.multiply(*self.factors, out=self.out)

    def measure(self, repeats: int = 12) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.multiply(*self.factors, out=self.out)
            times.append(time.perf_counter() - start)
        rows, inner, columns = CEILING_SHAPE
        return 2e-9 * rows * inner * columns / statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
