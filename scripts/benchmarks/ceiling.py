"""What every figure is a share of: float32 matrix products on this machine, at this moment."""

import resource
import statistics
import time
from collections.abc import Callable

CEILING_SHAPE = (1248, 768, 3072)


class Ceiling:
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
        """GFLOP/s now."""
        return _gflops(lambda: self.multiply(*self.factors, out=self.out), repeats)

    def measure_bfloat16(self, repeats: int = 12) -> float:
        """The same product in bfloat16: how far above the ceiling this processor can get at all, at this moment."""
        import torch

        rows, columns = self.factors[0].bfloat16(), self.factors[1].T.contiguous().bfloat16()
        torch.nn.functional.linear(rows, columns)
        return _gflops(lambda: torch.nn.functional.linear(rows, columns), repeats)


def _gflops(multiply: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        multiply()
        times.append(time.perf_counter() - start)
    rows, inner, columns = CEILING_SHAPE
    return 2e-9 * rows * inner * columns / statistics.median(times)


def timed_shares(step: Callable[[], object], segments: int, gflop_per_segment: float, runs: int) -> dict:
    """
    Figures of a step over `segments` segments: medians of `runs` counted runs after two that are not, the ceiling
    measured before and after each, what the same products reach in bfloat16 (before the first and after the last), and
    the peak memory of the process (in 2**30 bytes).
    """
    ceiling = Ceiling()
    for _ in range(2):
        step()
    speeds, shares, ceilings = [], [], []
    before, bfloat16 = ceiling.measure(), ceiling.measure_bfloat16()
    for _ in range(runs):
        start = time.perf_counter()
        step()
        speeds.append(segments / (time.perf_counter() - start))
        after = ceiling.measure()
        ceilings.append((before + after) / 2)
        shares.append(speeds[-1] * gflop_per_segment / ceilings[-1])
        before = after
    return {
        "segments_per_s": round(statistics.median(speeds), 3),
        "ceiling_share": round(statistics.median(shares), 4),
        "ceiling_share_range": [round(min(shares), 4), round(max(shares), 4)],
        "ceiling_gflops": round(statistics.median(ceilings), 1),
        "bfloat16_gflops": round((bfloat16 + ceiling.measure_bfloat16()) / 2, 1),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "runs": runs,
    }
