"""The paper's range: a moving average of each batch's extremes (arXiv 2405.17873, section 5.1; momentum 0.95)."""

from torch import Tensor

from mixdq.quant.ranges.extremes import empty_range, finite_extremes
from mixdq.types.tensors import ActivationRange


class MovingAverage:
    """Estimates the range as m <- momentum * m + (1 - momentum) * extreme of the batch; the first batch starts it."""

    def __init__(self, name: str = "input", momentum: float = 0.95) -> None:
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum = {momentum}: expected at least 0 and less than 1")
        self._name = name
        self._momentum = momentum
        self._min = self._max = 0.0
        self._batches = 0

    def update(self, x: Tensor) -> None:
        """Move towards one more batch; raise NonFiniteError for NaN or infinity. An empty batch is no batch."""
        extremes = finite_extremes(x, self._name)
        if extremes is None:
            return
        kept = self._momentum if self._batches else 0.0
        self._min = kept * self._min + (1.0 - kept) * extremes[0]
        self._max = kept * self._max + (1.0 - kept) * extremes[1]
        self._batches += 1

    def result(self) -> ActivationRange:
        """Return the range so far; raise EmptyRangeError without data."""
        if self._batches == 0:
            raise empty_range(self._name)
        return ActivationRange(min=self._min, max=self._max, batches=self._batches)
