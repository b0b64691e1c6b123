"""The range with the least expected squared error: clipping a few outliers buys a finer step for the rest."""

import torch
from torch import Tensor

from mixdq.quant.ranges.extremes import empty_range
from mixdq.quant.ranges.histogram import Histogram
from mixdq.types.tensors import ActivationRange

# Both bounds are tried at these shares of the extremes: 1 down to 2^-8, in eighths of an octave.
_SHARES = torch.exp2(-torch.arange(65, dtype=torch.float64) / 8.0)
_MOST_SWEEPS = 8


class MeanSquaredError:
    """Estimates the range that an asymmetric grid of `num_bits` represents best; `name` is for errors.

    From a histogram. Both bounds shrink together first, then each in turn until neither moves, so the expected error
    is never above that of the extremes. Zero is always inside, as `activation_qparams` widens every range to it.
    """

    def __init__(self, name: str = "input", num_bits: int = 8) -> None:
        if not 2 <= num_bits <= 8:
            raise ValueError(f"num_bits = {num_bits}: expected 2 to 8")
        self._name = name
        self._steps = 2**num_bits - 1
        self._histogram = Histogram(name)

    def update(self, x: Tensor) -> None:
        """Count one more batch; raise NonFiniteError for NaN or infinity. An empty batch is no batch."""
        self._histogram.update(x)

    def result(self) -> ActivationRange:
        """Return the range so far; raise EmptyRangeError without data."""
        seen = self._histogram
        if seen.batches == 0:
            raise empty_range(self._name)
        lower, upper = min(seen.min, 0.0) * _SHARES, max(seen.max, 0.0) * _SHARES
        if float(upper[0] - lower[0]) == 0.0:
            return ActivationRange(min=0.0, max=0.0, batches=seen.batches)
        i = j = int(_expected_errors(seen, lower, upper, self._steps).argmin())
        for _ in range(_MOST_SWEEPS):
            before = i, j
            j = int(_expected_errors(seen, lower[i].expand_as(upper), upper, self._steps).argmin())
            i = int(_expected_errors(seen, lower, upper[j].expand_as(lower), self._steps).argmin())
            if (i, j) == before:
                break
        least, greatest = torch.stack([lower[i], upper[j]]).clamp(seen.min, seen.max).tolist()
        return ActivationRange(min=least, max=greatest, batches=seen.batches)


def _expected_errors(seen: Histogram, lower: Tensor, upper: Tensor, steps: int) -> Tensor:
    """Return the summed squared error of each pair of bounds, values being spread evenly within their bins."""
    filled = seen.counts.nonzero().squeeze(1)
    counts, left, right = seen.counts[filled].to(torch.float64), seen.edges()[filled], seen.edges()[filled + 1]
    values = ((left + right) / 2.0).clamp(seen.min, seen.max)
    step = ((upper - lower) / steps).unsqueeze(1)
    # The codes stand for the multiples of the step from `bottom` to `top`.
    bottom = (lower.unsqueeze(1) / step).round()
    bottom, top = bottom * step, (bottom + steps) * step
    rounding = step.square() * (_integral(right / step) - _integral(left / step)) * (step / seen.width)
    beyond = values - values.clamp(bottom, top)
    return torch.where(beyond == 0.0, rounding, beyond.square()) @ counts


def _integral(u: Tensor) -> Tensor:
    """Return the integral of (t - round(t))^2 for t from 0 to u: 1/12 a unit, and the cube of what is left over."""
    whole = u.round()
    return whole / 12.0 + (u - whole).pow(3) / 3.0
