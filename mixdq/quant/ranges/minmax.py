"""The widest range: least and greatest element over all batches."""

from torch import Tensor

from mixdq.quant.ranges.extremes import empty_range, finite_extremes
from mixdq.types.tensors import ActivationRange


class MinMax:
    """Estimates the range from the extremes of everything it saw; `name` is the layer that errors speak of."""

    def __init__(self, name: str = "input") -> None:
        self._name = name
        self._min, self._max = float("inf"), float("-inf")
        self._batches = 0

    def update(self, x: Tensor) -> None:
        """Widen the range to one more batch; raise NonFiniteError for NaN or infinity. An empty batch is no batch."""
        extremes = finite_extremes(x, self._name)
        if extremes is not None:
            self._min, self._max = min(self._min, extremes[0]), max(self._max, extremes[1])
            self._batches += 1

    def result(self) -> ActivationRange:
        """Return the range so far; raise EmptyRangeError without data."""
        if self._batches == 0:
            raise empty_range(self._name)
        return ActivationRange(min=self._min, max=self._max, batches=self._batches)
