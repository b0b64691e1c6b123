"""How often each value occurred, in bounded memory and however far later batches reach.

8192 bins of one width lie around zero, the middle edge exactly at 0. Widths are powers of two: when a value falls
outside, the width doubles and bins merge in pairs, so counts stay exact and the order of batches does not matter (but
for negative values so small beside the largest that their share of a bin is no float32: those may count as zero).
"""

import math

import torch
from torch import Tensor

from mixdq.quant.ranges.extremes import finite_extremes

NUM_BINS = 8192

# No bin is narrower than 2^-113, so 1 / width stays finite in float32.
_LEAST_EXPONENT = -100
_CHUNK = 1 << 22


class Histogram:
    """Counts of values in [-2^e, 2^e); `name` is the layer that errors speak of.

    Attributes:
        counts: int64 [NUM_BINS], on the CPU.
        width: the width of a bin.
        min, max: the exact extremes so far.
        batches: how many batches with elements it saw.
    """

    def __init__(self, name: str = "input") -> None:
        self._name = name
        self._exponent = _LEAST_EXPONENT
        self.counts = torch.zeros(NUM_BINS, dtype=torch.int64)
        self.min, self.max = float("inf"), float("-inf")
        self.batches = 0

    @property
    def width(self) -> float:
        """The width of a bin: 2^(e + 1) / NUM_BINS."""
        return 2.0 ** (self._exponent + 1) / NUM_BINS

    def edges(self) -> Tensor:
        """Return the NUM_BINS + 1 edges in float64."""
        return torch.arange(-NUM_BINS // 2, NUM_BINS // 2 + 1, dtype=torch.float64) * self.width

    def update(self, x: Tensor) -> None:
        """Count one more batch; raise NonFiniteError for NaN or infinity. An empty batch is no batch."""
        extremes = finite_extremes(x, self._name)
        if extremes is None:
            return
        self.min, self.max = min(self.min, extremes[0]), max(self.max, extremes[1])
        self.batches += 1
        self._reach(max(abs(extremes[0]), abs(extremes[1])))
        # Both the product and the floor are exact, for 1 / width is a power of two.
        for chunk in torch.split(x.detach().flatten(), _CHUNK):
            bins = chunk.to(torch.float32).mul(1.0 / self.width).floor_().to(torch.int64).add_(NUM_BINS // 2)
            self.counts += torch.bincount(bins, minlength=NUM_BINS).cpu()

    def _reach(self, largest: float) -> None:
        # largest = m * 2^e with 0.5 <= m < 1, so largest < 2^e.
        needed = math.frexp(largest)[1]
        while self._exponent < needed:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.nn.functional.pad(merged, (NUM_BINS // 4, NUM_BINS // 4))
            self._exponent += 1
