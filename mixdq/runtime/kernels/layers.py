"""A Linear or Conv2d layer of the compiled library, bound to its tensors: one call from input to output.

    linear  x [..., in]                      -> [..., out]
    conv2d  x [(batch,) in, height, width]   -> [(batch,) out, height, width], channels last

Where x has no scale, each row of a matrix, each picture, is scaled by its own numbers; where `low` and `high` are
equal, there are no codes, and x is multiplied as it is. What a layer costs besides its arithmetic is mostly Python, so
all that does not depend on x is said once, in a structure of `c/layers.c`.
"""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from mixdq.errors import NonFiniteError
from mixdq.runtime.kernels import native

PANEL = 32
"""Output channels of a panel: NR of c/weights.h."""
ALIGNMENT = 4
"""Bytes that a dot-product instruction reads of a row at once; channels are filled up to a multiple."""


def filled(channels: int) -> int:
    """Return the bytes that a row of so many channels takes."""
    return -(-channels // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, kw_only=True)
class LayerTensors:
    """What a layer is, all but its geometry; tensors are contiguous and on the CPU.

    Attributes:
        panels: the weight, [groups * panels of a group, bytes of a panel]; see `c/weights.h`.
        zero_points: int8 [groups * panels of a group * PANEL], the weight's; None where it has none.
        sums: int32 [out], of the weight's codes less zero points.
        scale, bias: float32 [out]; scale is the weight's times the input's where that has one for all.
        input_scale, input_zero_point: float32 [1] and int32 [1]; None where each row has its own.
        num_bits: of the weight's codes.
        low, high: least and greatest code of the input; equal where it stays as it is.
    """

    panels: Tensor
    zero_points: Tensor | None
    sums: Tensor
    scale: Tensor
    bias: Tensor | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None
    num_bits: int
    low: int
    high: int


@dataclass(frozen=True, kw_only=True)
class Window:
    """What of the input an output sees; a matrix's rows are pixels of one line, and see themselves."""

    kernel: tuple[int, ...] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


class _Layer(ctypes.Structure):
    """`Layer` of c/layers.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("channels", "columns", "groups")),
        *((name, ctypes.c_int64 * 2) for name in ("kernel", "stride", "padding", "dilation")),
        *((name, ctypes.c_void_p) for name in ("panels", "zero_points", "sums", "scale", "bias")),
        *((name, ctypes.c_void_p) for name in ("input_scale", "input_zero_point")),
        *((name, ctypes.c_int32) for name in ("bits", "low", "high", "pixels_alone", "dtype")),
    ]


class NativeLayer:
    """A layer ready to be called; it holds its tensors."""

    def __init__(
        self,
        tensors: LayerTensors,
        *,
        name: str,
        channels: int,
        dtype: torch.dtype,
        groups: int = 1,
        window: Window | None = None,
    ) -> None:
        """`channels` are the input's, `dtype` is the output's; without a window the layer is a Linear.

        Raises:
            CompilerError: there is no library.
        """
        self.tensors = tensors
        self._name, self._dtype = name, dtype
        self._channels, self._columns = channels, tensors.scale.shape[0]
        self._window = seen = window or Window()
        self._layer = _Layer(
            channels=channels,
            columns=self._columns,
            groups=groups,
            kernel=seen.kernel,
            stride=seen.stride,
            padding=seen.padding,
            dilation=seen.dilation,
            panels=tensors.panels.data_ptr(),
            zero_points=_address(tensors.zero_points),
            sums=tensors.sums.data_ptr(),
            scale=tensors.scale.data_ptr(),
            bias=_address(tensors.bias),
            input_scale=_address(tensors.input_scale),
            input_zero_point=_address(tensors.input_zero_point),
            bits=tensors.num_bits,
            low=tensors.low,
            high=tensors.high,
            pixels_alone=window is None,
            dtype=native.DTYPES[dtype],
        )
        self._function = native.library().mixdq_layer
        self._at = ctypes.addressof(self._layer)

    def linear(self, x: Tensor, /) -> Tensor:
        """Return the output [..., out] of `x` [..., in]; raises as `conv2d`."""
        y = torch.empty(*x.shape[:-1], self._columns, dtype=self._dtype, device="cpu")
        rows = y.numel() // self._columns
        if rows:
            x = x.contiguous()
            self._call(x, y, 1, 1, rows, 0, 1, 0, self._channels)
        return y

    def conv2d(self, x: Tensor, /) -> Tensor:
        """Return the output [(batch,) out, height, width] of `x` [(batch,) in, height, width].

        Raises:
            NonFiniteError: `x` holds NaN or infinity, and is to become codes.
            MemoryError: there is no room for the codes.
        """
        if x.dim() == 3:
            return self.conv2d(x[None])[0]
        batch, _, height, width = x.shape
        y = torch.empty(batch, *self._size(height, width), self._columns, dtype=self._dtype, device="cpu")
        if y.numel():
            x = x if x.stride(1) == 1 or x.stride(3) == 1 else x.contiguous()
            self._call(x, y, batch, height, width, *x.stride())
        return y.permute(0, 3, 1, 2)

    def _call(self, x: Tensor, y: Tensor, *facts: int) -> None:
        address, dtype, threads = x.data_ptr(), native.DTYPES[x.dtype], torch.get_num_threads()
        status = self._function(self._at, address, dtype, *facts, y.data_ptr(), threads)
        if status == native.NOT_FINITE:
            raise NonFiniteError(
                f"{self._name}: its input holds NaN or infinity, which no integer can stand for.", where=self._name
            )
        if status:
            raise MemoryError(f"{self._name}: no memory for its input {list(x.shape)} and a panel of its weight")

    def _size(self, height: int, width: int) -> tuple[int, int]:
        window = self._window
        covered = [window.dilation[i] * (window.kernel[i] - 1) + 1 - 2 * window.padding[i] for i in (0, 1)]
        return (height - covered[0]) // window.stride[0] + 1, (width - covered[1]) // window.stride[1] + 1


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
