"""What every figure is a share of: matrix products on this machine, now: float32 on a CPU, bfloat16 on a GPU."""

import resource
import statistics
import time
from collections.abc import Callable

CEILING_SHAPE = (1248, 768, 3072)
# A GPU needs larger ones to reach its rate.
GPU_CEILING_SHAPE = (8192, 8192, 8192)


class Ceiling:
    """GFLOP/s of matrix products: on a CPU, float32 ones of the size of a feed-forward layer at batch 8."""

    def __init__(self, device: str = "cpu") -> None:
        import torch

        torch.set_float32_matmul_precision("highest")
        self.device = device
        self.shape = CEILING_SHAPE if device == "cpu" else GPU_CEILING_SHAPE
        rows, inner, columns = self.shape
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.factors = [torch.randn(size, device=device, dtype=dtype) for size in ((rows, inner), (inner, columns))]
        self.out = torch.empty(rows, columns, device=device, dtype=dtype)
        self.multiply = torch.mm
        for _ in range(5):
            self.multiply(*self.factors, out=self.out)

    def measure(self, repeats: int = 12) -> float:
        """GFLOP/s now."""
        return self._gflops(lambda: self.multiply(*self.factors, out=self.out), repeats)

    def measure_bfloat16(self, repeats: int = 12) -> float:
        """The same product in bfloat16: how far above the ceiling this processor can get at all, at this moment."""
        import torch

        rows, columns = self.factors[0].bfloat16(), self.factors[1].T.contiguous().bfloat16()
        torch.nn.functional.linear(rows, columns)
        return self._gflops(lambda: torch.nn.functional.linear(rows, columns), repeats)

    def _gflops(self, multiply: Callable[[], object], repeats: int) -> float:
        times = [seconds_of(multiply, self.device) for _ in range(repeats)]
        rows, inner, columns = self.shape
        return 2e-9 * rows * inner * columns / statistics.median(times)


def seconds_of(work: Callable[[], object], device: str) -> float:
    """How long work takes until its device has done it."""
    import torch

    wait = (lambda: None) if device == "cpu" else torch.accelerator.synchronize
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def timed_shares(
    step: Callable[[], object], segments: int, gflop_per_segment: float, runs: int, device: str = "cpu"
) -> dict:
    """
    Figures of a step over `segments` segments: medians of `runs` counted runs after two that are not, the ceiling
    measured before and after each, what the same products reach in bfloat16 (before the first and after the last), and
    the peak memory of the process, or of its tensors on the GPU (in 2**30 bytes).
    """
    ceiling = Ceiling(device)
    for _ in range(2):
        step()
    speeds, shares, ceilings = [], [], []
    before, bfloat16 = ceiling.measure(), ceiling.measure_bfloat16()
    for _ in range(runs):
        speeds.append(segments / seconds_of(step, device))
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
        "peak_memory_gb": round(_peak_memory(device), 3),
        "device": device,
        "runs": runs,
    }


def _peak_memory(device: str) -> float:
    import torch

    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return torch.accelerator.max_memory_allocated() / 2**30
