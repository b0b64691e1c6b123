"""What surrounds a kernel in some layers, as kernels made of kernels: joined inputs, BOS rows, unusual borders.

They are put together once, when a layer is bound, so that no `forward` asks what kind of layer it is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mixdq.quant.bos import BosRows, with_first_row
from mixdq.runtime.before import Before
from mixdq.runtime.kernel import AddingKernel, FoldingPart, Kernel
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
class FoldingJoinedInput(JoinedInput):
    """A joined input whose kernels fold: a group norm's moments are the whole's, each part is prepared by itself."""

    kernels: tuple[FoldingPart, ...]

    def folded(self, x: Tensor, before: Before, added: Tensor | None, /) -> Tensor:
        """Return the sum of the parts' products plus `added`; what no part can do by itself is computed by torch."""
        if before.kind in ("", "group_norm", "affine"):
            parts = torch.split(x, list(self.splits), dim=self.channel_axis)
            befores = self.kernels[0].by_channel(x, before).of_parts(self.splits)
            y: Tensor | None = None
            for kernel, part, own in zip(self.kernels, parts, befores, strict=True):
                y = kernel.folded(part, own, y, self.dtype if kernel is self.kernels[-1] else torch.float32)
            assert y is not None
        else:
            y = self(before(x, self.channel_axis))
        return y if added is None else y + added


def joined(kernels: tuple[Kernel, ...], splits: tuple[int, ...], channel_axis: int, dtype: torch.dtype) -> JoinedInput:
    """Return the kernels of the parts of an input as one; it folds where all of them do."""
    folding = tuple(kernel for kernel in kernels if isinstance(kernel, FoldingPart))
    if len(folding) == len(kernels):
        return FoldingJoinedInput(folding, splits, channel_axis, dtype)
    return JoinedInput(kernels, splits, channel_axis, dtype)


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
