"""A Conv2d layer that computes on integers. Its tensors: `mixdq.runtime.layout`. Its kernel: `mixdq.runtime.layer`."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from mixdq.runtime.before import NOTHING, Before
from mixdq.runtime.compose import PaddedInput
from mixdq.runtime.kernel import Kernel
from mixdq.runtime.layer import QuantizedLayer
from mixdq.runtime.layout import LayerLayout
from mixdq.runtime.opaque import conv2d
from mixdq.runtime.requests import borders
from mixdq.types.tensors import QParams, QTensor


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """`nn.Conv2d` with a quantized weight and, unless weight-only, a quantized input; made by the two class methods."""

    channel_axis = -3

    @classmethod
    def from_float(
        cls,
        module: nn.Conv2d,
        layout: LayerLayout,
        parts: Sequence[QTensor],
        activation: Sequence[QParams] | None,
        *,
        backend: str,
    ) -> Self:
        """Return the quantized successor of a float layer, which is left as it was; the bias is shared."""
        self = cls._like(module)
        self._hold_parts(layout, backend, parts, activation, None, module.bias)
        return self

    @classmethod
    def empty(cls, module: nn.Conv2d, layout: LayerLayout, *, backend: str) -> Self:
        """Return a layer with tensors of the right shapes and no content, on the device of `module` (meta, usually)."""
        self = cls._like(module)
        self._hold_empty(layout, backend, module)
        return self

    @classmethod
    def _like(cls, module: nn.Conv2d) -> Self:
        self = cls(**_geometry_of(module), device="meta")
        return self.train(module.training)

    def to_float(self, dtype: torch.dtype) -> nn.Conv2d:
        """Return a float layer of the weight that the codes stand for."""
        module = nn.Conv2d(**_geometry_of(self), device="meta")
        self._fill(module, dtype)
        return module

    def check_shape(self, shape: Sequence[int]) -> None:
        """Return if an input of this shape can be the layer's; raise ValueError otherwise."""
        if len(shape) not in (3, 4) or shape[-3] != self.in_channels:
            expected = f"[(batch,) {self.in_channels}, height, width]"
            raise ValueError(f"{self.layout.name}: expected an input {expected}, found {list(shape)}")

    def _geometry(self) -> object:
        # Seamless-tiling code sets these on a finished model.
        return self.padding_mode, self.padding, self.stride, self.dilation

    def traced(self, x: Tensor, before: Before = NOTHING, added: Tensor | None = None) -> Tensor:
        """Return `run(x)`, or `run_folded`, as an operator that says the output's shape before it runs."""
        around = borders(self)
        left, right, top, bottom = around.explicit
        return conv2d(
            x,
            self.handle,
            self.out_channels,
            before,
            added,
            kernel=self.kernel_size,
            stride=self.stride,
            borders=(2 * around.kernel[0] + top + bottom, 2 * around.kernel[1] + left + right),
            dilation=self.dilation,
        )

    def _compose(self, parts: tuple[Kernel, ...], dtype: torch.dtype) -> Kernel:
        kernel, around = super()._compose(parts, dtype), borders(self)
        return PaddedInput(kernel, around) if any(around.explicit) else kernel


def _geometry_of(module: nn.Conv2d) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {**{name: getattr(module, name) for name in names}, "bias": module.bias is not None}
