"""What a layer on a GPU is made of."""

from dataclasses import dataclass

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

    @property
    def of_codes(self) -> bool:
        """Whether the input becomes codes."""
        return self.low < self.high

    @property
    def dynamic(self) -> bool:
        """Whether each row or picture of the input is scaled by its own numbers."""
        return self.of_codes and self.input_scale is None


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
