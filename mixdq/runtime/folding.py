"""A layer with what stands before it and an addition after it, in its kernel's own passes where that can."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mixdq.runtime.before import Before
from mixdq.runtime.kernel import FoldingKernel, Kernel


class Layer(Protocol):
    """A quantized layer."""

    @property
    def channel_axis(self) -> int:
        """Where an input has its channels: -1 or -3."""
        ...

    def check_shape(self, shape: Sequence[int], /) -> None:
        """Return if an input of this shape can be the layer's; raise ValueError otherwise."""
        ...

    def kernel_for(self, input: Tensor, /) -> Kernel:
        """Return the kernel, bound for such an input."""
        ...

    def traced(self, x: Tensor, before: Before, added: Tensor | None, /) -> Tensor:
        """Return what `run_folded` does as one operator."""
        ...


def fold(layer: Layer, x: Tensor, before: Before, added: Tensor | None = None) -> Tensor:
    """Return `layer(before(x)) + added`, without gradients; `added` broadcasts to the layer's output."""
    if torch.compiler.is_compiling():
        return layer.traced(x, before, added)
    return run_folded(layer, x, before, added)


def run_folded(layer: Layer, x: Tensor, before: Before, added: Tensor | None) -> Tensor:
    """Return the same by the layer's kernel; what it cannot fold (BOS rows, unusual borders) is computed by torch."""
    check_input(layer, x, before)
    kernel = layer.kernel_for(x)
    if isinstance(kernel, FoldingKernel) and (added is None or added.dtype == x.dtype):
        return kernel.folded(x, before, added)
    y = kernel(before(x, layer.channel_axis))
    return y if added is None else y + added


def check_input(layer: Layer, x: Tensor, before: Before) -> None:
    """Return if `before(x)` can be the layer's input; raise ValueError otherwise."""
    axis = layer.channel_axis
    shape = list(x.shape)
    if shape[axis:]:
        shape[axis] = before.narrowed(shape[axis])
    layer.check_shape(shape)
