"""The encoder and classifier, forward."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable

from .ceiling import timed_shares

# Multiply-adds count twice. Base size, 12 x 2500 samples, forward: linear layers 26.5, position convolution 1.5,
# attention 0.9, convolutions and projection 0.4.
GFLOP_PER_SEGMENT = {"base": 29.3}


def _cases(options: argparse.Namespace) -> list[dict]:
    """A case for each number type, attention and batch size."""
    return [
        {
            "name": "/".join(["model", dtype, *([attention] if attention else []), f"batch{batch}"]),
            "dtype": dtype,
            "batch": batch,
            "attention": attention,
            "runs": options.runs,
            "device": options.device,
            "keep_freed_memory": not options.give_memory_back,
        }
        for dtype in options.dtypes
        for attention in options.attention
        for batch in options.batch_sizes
    ]


def run(options: argparse.Namespace) -> int:
    """Prints the figures of every case."""
    return run_cases("model", _cases(options), options.json)


def run_cases(
    subject: str,
    cases: list[dict],
    as_json: bool,
    finish: Callable[[dict], None] | None = None,
    show: bool = True,
) -> int:
    """
    Each case of a subject in a process of its own: peak memory is a process's. `finish` may change what a case came to;
    without `show` nothing is printed.
    """
    if show and not as_json:
        ceilings = "ceiling (bfloat16)"
        print(f"{'':32}{'segments/s':>12}{'share':>8}{'range':>14}{ceilings:>26}{'peak memory':>14}")
    for case in cases:
        # The child prints one object.
        command = [sys.executable, sys.argv[0], subject, "--case", json.dumps(case)]
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if child.returncode:
            print(f"{case['name']} failed", file=sys.stderr)
            return 1
        result = json.loads(child.stdout)
        if finish is not None:
            finish(result)
        if not show:
            continue
        if as_json:
            print(json.dumps(result), flush=True)
            continue
        between = "{:.2f} - {:.2f}".format(*result["ceiling_share_range"])
        change = f"   scores change by {result['largest_score_change']:.1e}" if "largest_score_change" in result else ""
        ceiling = f"{result['ceiling_gflops']:.0f} ({result['bfloat16_gflops']:.0f}) GFLOP/s"
        memory = f"{result['peak_memory_gb']:.2f} GB"
        print(
            f"{result['name']:32}{result['segments_per_s']:12.2f}{result['ceiling_share']:8.2f}{between:>14}"
            f"{ceiling:>26}{memory:>14}{change}",
            flush=True,
        )
    return 0


def measure(case: dict) -> int:
    """Prints one object: a case's figures."""
    import torch

    from ecgfm_hf import ECGFMConfig, ECGFMForMultiLabelClassification
    from ecgfm_hf.utils.precision import keep_freed_memory

    kept = case["keep_freed_memory"] and keep_freed_memory()
    torch.manual_seed(0)
    model = ECGFMForMultiLabelClassification(ECGFMConfig.base(num_labels=17)).eval()
    model.to(case["device"], getattr(torch, case["dtype"]))
    if case["attention"]:
        model.set_attn_implementation(case["attention"])
    segments = torch.randn(case["batch"], 12, 2500, device=case["device"])
    with torch.inference_mode():
        figures = timed_shares(
            lambda: model(segments), case["batch"], GFLOP_PER_SEGMENT["base"], case["runs"], case["device"]
        )
    print(
        json.dumps(
            {
                "name": case["name"],
                **figures,
                "attention": model.config._attn_implementation,
                "threads": torch.get_num_threads(),
                "keeps_freed_memory": bool(kept),
                "torch": torch.__version__,
            }
        )
    )
    return 0
