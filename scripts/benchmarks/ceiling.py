"""What every figure is a share of: float32 matrix products on this machine, at this moment."""

import statistics
import time

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
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.multiply(*self.factors, out=self.out)
            times.append(time.perf_counter() - start)
        rows, inner, columns = CEILING_SHAPE
        return 2e-9 * rows * inner * columns / statistics.median(times)
