"""The range that leaves out the same small share of elements at either end."""

import math

import torch
from torch import Tensor

from mixdq.quant.ranges.extremes import empty_range
from mixdq.quant.ranges.histogram import NUM_BINS, Histogram
from mixdq.types.tensors import ActivationRange


class Percentile:
    """Estimates the range from percentiles 100 - p and p of all elements; `name` is the layer that errors speak of.

    From a histogram: each bound lies beyond the exact order statistic by less than a bin's width (1/2048 of the
    largest magnitude at most), never beyond the extremes.
    """

    def __init__(self, name: str = "input", percentile: float = 99.99) -> None:
        if not 50.0 < percentile <= 100.0:
            raise ValueError(f"percentile = {percentile}: expected more than 50 and at most 100")
        self._name = name
        self._percentile = percentile
        self._histogram = Histogram(name)

    def update(self, x: Tensor) -> None:
        """Count one more batch; raise NonFiniteError for NaN or infinity. An empty batch is no batch."""
        self._histogram.update(x)

    def result(self) -> ActivationRange:
        """Return the range so far; raise EmptyRangeError without data."""
        seen = self._histogram
        if seen.batches == 0:
            raise empty_range(self._name)
        cumulative = seen.counts.cumsum(0)
        last = int(cumulative[-1]) - 1
        # Ranks among the sorted elements, from 0; outward where they fall between two.
        upper_rank = math.ceil(self._percentile / 100.0 * last)
        lower_rank = math.floor((100.0 - self._percentile) / 100.0 * last)
        ranks = torch.tensor([lower_rank, upper_rank])
        lower_bin, upper_bin = (int(i) for i in torch.searchsorted(cumulative, ranks, right=True))
        lower = max(seen.min, (lower_bin - NUM_BINS // 2) * seen.width)
        upper = min(seen.max, (upper_bin + 1 - NUM_BINS // 2) * seen.width)
        return ActivationRange(min=lower, max=upper, batches=seen.batches)
