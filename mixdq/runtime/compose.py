"""What surrounds a kernel in some layers, as kernels made of kernels: joined inputs, BOS rows, unusual borders.

They are put together once, when a layer is bound, so that no `forward` asks what kind of layer it is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mixdq.quant.bos import BosRows, with_first_row
from mixdq.runtime.kernel import AddingKernel, Kernel
from mixdq.runtime.requests import Borders


@dataclass(frozen=True)
class JoinedInput:
    """Splits the input along its channels, runs a kernel on each part, and adds their float32 outputs in order."""

    kernels: tuple[Kernel, ...]
    splits: tuple[int, ...]
    channel_axis: int
    dtype: torch.dtype

    def __call__(self, x: Tensor, /) -> Tensor:
        """Return the sum of the parts' products, in `dtype`."""
        total: Tensor | None = None
        for kernel, part in zip(self.kernels, torch.split(x, list(self.splits), dim=self.channel_axis), strict=True):
            if total is None:
                total = kernel(part)
            elif isinstance(kernel, AddingKernel):
                total = kernel.add(part, total, self.dtype if kernel is self.kernels[-1] else torch.float32)
            else:
                total = total + kernel(part)
        assert total is not None
        return total.to(self.dtype)


@dataclass(frozen=True)
class BesideBosRow:
    """Sets the first text token aside: its output is the stored row, the kernel sees the others alone."""

    kernel: Kernel
    rows: BosRows

    def __call__(self, x: Tensor, /) -> Tensor:
        """Return outputs [..., tokens, out] of `x` [..., tokens, in]; raises as `mixdq.quant.bos.bos_rows`."""
        return with_first_row(x, self.rows, self.kernel)


@dataclass(frozen=True)
class PaddedInput:
    """Adds borders that kernels do not know (circular, reflected, unequal) before the kernel."""

    kernel: Kernel
    borders: Borders

    def __call__(self, x: Tensor, /) -> Tensor:
        """Return the kernel's output for the padded input."""
        return self.kernel(functional.pad(x, self.borders.explicit, mode=self.borders.mode))
