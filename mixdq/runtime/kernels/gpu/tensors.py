"""What a layer on a GPU is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from mixdq.runtime.kernels.gpu.weights import WeightOrder


@dataclass(frozen=True, kw_only=True)
class LayerTensors:
    """What a layer is, all but its geometry; tensors are contiguous and on one device.

    Attributes:
        planes: the weight, in the order of `order`.
        order: how it lies.
        zero_points: int8 [out], the weight's; None where it has none.
        sums: int32 [out], of the weight's codes less zero points.
        scale, bias: float32 [out]; scale is the weight's.
        input_scale, input_zero_point: float32 [1] and int32 [1]; None where each row has its own, or there are none.
        low, high: least and greatest code of the input; equal where it stays as it is.
        floats: whether codes are E4M3 floats, of which `low` and `high` are numbers; zero points are 0 then.
    """

    planes: tuple[Tensor, ...]
    order: WeightOrder
    zero_points: Tensor | None
    sums: Tensor
    scale: Tensor
    bias: Tensor | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None
    low: int
    high: int
    floats: bool = False

    @property
    def of_codes(self) -> bool:
        """Whether the input becomes codes."""
        return self.low < self.high

    @property
    def dynamic(self) -> bool:
        """Whether each row or picture of the input is scaled by its own numbers."""
        return self.of_codes and self.input_scale is None

    def rows(self, first: int, last: int) -> Self:
        """Return some outputs alone, in the same memory."""
        zero_points, bias = self.zero_points, self.bias
        return replace(
            self,
            planes=tuple(plane[first:last] for plane in self.planes),
            zero_points=None if zero_points is None else zero_points[first:last],
            sums=self.sums[first:last],
            scale=self.scale[first:last],
            bias=None if bias is None else bias[first:last],
        )


def stacked(layers: Sequence[LayerTensors]) -> LayerTensors:
    """Return the outputs of layers of like weights and the same input, one after another, as one layer's."""
    first = layers[0]
    return replace(
        first,
        planes=tuple(torch.cat(planes) for planes in zip(*(layer.planes for layer in layers), strict=True)),
        zero_points=_stacked([layer.zero_points for layer in layers]),
        sums=torch.cat([layer.sums for layer in layers]),
        scale=torch.cat([layer.scale for layer in layers]),
        bias=_stacked([layer.bias for layer in layers]),
    )


def _stacked(vectors: Sequence[Tensor | None]) -> Tensor | None:
    known = [vector for vector in vectors if vector is not None]
    if len(known) not in (0, len(vectors)):
        raise ValueError("layers that have zero points, or a bias, cannot stand with others that have none")
    return torch.cat(known) if known else None


@dataclass(frozen=True, kw_only=True)
class Window:
    """What of the input an output sees."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def is_pixel(self) -> bool:
        """Whether each output sees the pixel at its own place alone."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)
