"""What a backend is asked, and what it answers. Which backend wins is decided in `mixdq.runtime.select`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from mixdq.quant.bos import BosRow
from mixdq.runtime.before import Before
from mixdq.types.layers import Op
from mixdq.types.plan import FLOAT_BITS, LayerBits
from mixdq.types.tensors import QParams, QTensor

MAX_DEPTH = (2**31 - 1) // (255 * 128)
"""The longest sum of products of codes that no int32 can overflow."""


@dataclass(frozen=True, kw_only=True)
class KernelRequest:
    """One product to be computed: a layer, or one part of a layer whose input is joined.

    Attributes:
        layer: the layer's dotted path; for messages.
        op: "linear" or "conv2d".
        bits: its widths; an activation of 16 means weight-only. Floats are asked of "linear" alone, and symmetric.
        weight_shape: [out, in] or [out, in / groups, height, width] of this part.
        stride, padding, dilation, groups: the convolution's; borders are real zeros. Unused by "linear".
        symmetric: False where the weight has zero points.
        dynamic: True where the kernel scales each row ("linear") or picture ("conv2d") of its input by the numbers in
            it, as `mixdq.quant.qparams.row_qparams` does; never where weight-only.
        device: a torch device type, such as "cpu" or "cuda".
        dtype: of the input.
        output_dtype: of the output; float32 for a part whose sum with others is still to come.
    """

    layer: str
    op: Op
    bits: LayerBits
    weight_shape: tuple[int, ...]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    symmetric: bool = True
    dynamic: bool = False
    device: str
    dtype: torch.dtype
    output_dtype: torch.dtype


class Kernel(Protocol):
    """A bound product: input of any strides and batch in, output of the request's `output_dtype` out."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """Return the product of `x`, [..., in] or [batch, in, height, width]."""
        ...


@runtime_checkable
class HoldingKernel(Kernel, Protocol):
    """A kernel that holds the weight by itself, in an order of its own, so that the layer need not keep it too."""

    def portable_codes(self) -> Tensor:
        """Return the codes it was bound to, in the portable layout of `QTensor.codes`."""
        ...


@runtime_checkable
class AddingKernel(Kernel, Protocol):
    """A kernel that adds to what other parts of a layer gave, in the same pass."""

    def add(self, x: Tensor, total: Tensor, dtype: torch.dtype, /) -> Tensor:
        """Return `total`, float32 and in memory as the output is, plus the product of `x`, in `dtype`."""
        ...


@runtime_checkable
class BosKernel(Kernel, Protocol):
    """A kernel that can set first text tokens aside by itself."""

    def beside_bos(self, bos: BosRow, general: Kernel, /) -> Kernel:
        """Return the kernel that does what `general` does, and may call it."""
        ...


@runtime_checkable
class FoldingKernel(Kernel, Protocol):
    """A kernel that does in its own passes what stands before a layer, and an addition after it."""

    def folded(self, x: Tensor, before: Before, added: Tensor | None, /) -> Tensor:
        """Return the product of `before(x)` plus `added`, which broadcasts; steps are rounded to the dtype of all."""
        ...


@runtime_checkable
class FoldingPart(FoldingKernel, Protocol):
    """A folding kernel that may be one of several whose inputs are parts of a whole."""

    def by_channel(self, whole: Tensor, before: Before, /) -> Before:
        """Return what a group norm of the whole input does to each of its channels; anything else as it is."""
        ...

    def folded(self, x: Tensor, before: Before, added: Tensor | None, /, dtype: torch.dtype | None = None) -> Tensor:
        """Return the same in `dtype`, or the request's; `added` may be float32, what other parts gave (`add`)."""
        ...


class JointKernel(Protocol):
    """Products of one input, as one."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def takes(self, x: Tensor, /) -> bool:
        """Return whether such an input may be given; each product by itself takes any."""
        ...

    def __call__(self, x: Tensor, before: Before, /) -> Tensor:
        """Return the products of `before(x)`, [..., in], side by side: [..., sum of out]."""
        ...


@runtime_checkable
class JoiningKernel(Kernel, Protocol):
    """A kernel that can be called as one with others that read the same input.

    `joint` is what it is called with, if anything, and `place` which of them it is.
    """

    joint: JointKernel | None
    place: int

    def join(self, others: Sequence[Kernel], bos: Sequence[BosRow | None], /) -> Sequence[Self] | None:
        """Return kernels of the same products as this one and `others`, joined; None where they cannot be.

        `bos` has the row of each whose first text tokens are set aside. May wait for the device, and copies weights:
        those that are given are to be let go.
        """
        ...


class Backend(Protocol):
    """A way to compute quantized products.

    Integer accumulators equal the reference backend's bit for bit. `tolerance` bounds the float epilogue:
    |y - exact| <= tolerance * (|scale * accumulator| + |bias|) before the cast to the output's type. Where codes are
    floats, sums are not exact, and the accumulator there is that of the products' magnitudes.
    """

    @property
    def name(self) -> str:
        """What users type."""
        ...

    @property
    def tolerance(self) -> float:
        """The greatest relative error of the float epilogue."""
        ...

    def refusals(self, request: KernelRequest) -> list[str]:
        """Return why this backend cannot run the request, in words; empty where it can."""
        ...

    def bind(self, request: KernelRequest, weight: QTensor, bias: Tensor | None, activation: QParams | None) -> Kernel:
        """Return the kernel for a request without refusals; `activation` is None where it is weight-only or dynamic."""
        ...


def dtype_refusals(request: KernelRequest, dtypes: Collection[torch.dtype]) -> list[str]:
    """Return why a request cannot be met by kernels that read and write these `dtypes` alone, in words."""
    asked = (("input", request.dtype), ("output", request.output_dtype))
    return [f"{what}s of {dtype}" for what, dtype in asked if dtype not in dtypes]


def int32_refusals(request: KernelRequest) -> list[str]:
    """Return why a request cannot be met by products of signed bytes that are summed in int32, in words."""
    if request.bits.is_float:
        return [f"it multiplies integers, and {request.bits} has none"]
    if request.bits.activation == FLOAT_BITS:
        return []
    reasons = []
    if request.bits.weight == 8 and not request.symmetric:
        reasons.append("8-bit weights with zero points, which would not fit signed bytes")
    depth = torch.Size(request.weight_shape[1:]).numel()
    if depth > MAX_DEPTH:
        reasons.append(f"sums of {depth} products, which could overflow (at most {MAX_DEPTH})")
    return reasons
