"""Estimators of an activation's range over calibration, by name.

Each is made for one layer input (`name` is for its errors), fed batch by batch, and asked once.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from torch import Tensor

from mixdq.quant.ranges.minmax import MinMax
from mixdq.quant.ranges.moving_average import MovingAverage
from mixdq.quant.ranges.mse import MeanSquaredError
from mixdq.quant.ranges.percentile import Percentile
from mixdq.types.tensors import ActivationRange


class RangeEstimator(Protocol):
    """Learns the range of one layer input."""

    def update(self, x: Tensor) -> None:
        """Take one more batch, of any shape and float dtype; raise NonFiniteError for NaN or infinity."""

    def result(self) -> ActivationRange:
        """Return the range so far; raise EmptyRangeError without data."""
        ...


class EstimatorFactory(Protocol):
    """Makes an estimator for the layer input called `name`."""

    def __call__(self, name: str = ...) -> RangeEstimator:
        """Return a fresh estimator."""
        ...


ESTIMATORS: Mapping[str, EstimatorFactory] = MappingProxyType(
    {"minmax": MinMax, "moving_average": MovingAverage, "percentile": Percentile, "mse": MeanSquaredError}
)
