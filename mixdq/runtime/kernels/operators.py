"""The CPU's integer products as operators of torch, so that `torch.compile` and exporters see whole calls.

    mixdq::cpu_linear  x [..., in]                          -> [..., out]
    mixdq::cpu_conv2d  x [(batch,) in, height, width]       -> [(batch,) out, height, width], channels last

Both quantize x and multiply. Where x has no scale, each row of a matrix, each picture, is scaled by its own numbers;
where `low` and `high` are equal, there are no codes, and x is multiplied as it is. The weight comes as panels (see
`c/weights.h`), its facts as `[groups * columns]` tensors.
Importing this module registers them.
"""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixdq.errors import NonFiniteError
from mixdq.runtime.kernels import native

PANEL = 32
"""Output channels of a panel: NR of c/weights.h."""
ALIGNMENT = 4
"""Bytes that a dot-product instruction reads of a row at once; channels are filled up to a multiple."""

_WEIGHT = "Tensor panels, Tensor? zero_points, Tensor sums, Tensor scale, Tensor? bias, int num_bits"
_INPUT = "Tensor? input_scale, Tensor? input_zero_point, int low, int high, ScalarType dtype, str layer"
_LIBRARY: Any = torch.library.Library("mixdq", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(f"cpu_linear(Tensor x, {_WEIGHT}, {_INPUT}) -> Tensor")
_LIBRARY.define(
    f"cpu_conv2d(Tensor x, {_WEIGHT}, int[] kernel, int[] stride, int[] padding, int[] dilation, int groups, {_INPUT}) "
    "-> Tensor"
)


def filled(channels: int) -> int:
    """Return the bytes that a row of so many channels takes."""
    return -(-channels // ALIGNMENT) * ALIGNMENT


def _linear(x: Tensor, *arguments: Any) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.new_empty(x.shape[:-1].numel(), x.shape[-1])
    # A matrix is a picture of one line, seen through windows of one pixel.
    picture, line = rows.t()[None, :, None, :], ((1, 1), (1, 1), (0, 0), (1, 1), 1)
    y = _product(picture, True, *(*arguments[:6], *line, *arguments[6:]))
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _conv2d(x: Tensor, *arguments: Any) -> Tensor:
    y = _product(x if x.dim() == 4 else x[None], False, *arguments).permute(0, 3, 1, 2)
    return y if x.dim() == 4 else y[0]


def _product(
    x: Tensor,
    pixels_alone: bool,
    panels: Tensor,
    zero_points: Tensor | None,
    sums: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    num_bits: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    input_scale: Tensor | None,
    input_zero_point: Tensor | None,
    low: int,
    high: int,
    dtype: torch.dtype,
    layer: str,
) -> Tensor:
    """Return [batch, height, width, out] of `x` [batch, in, height, width] of any strides.

    Where scales are found here, each pixel has its own if `pixels_alone` (batch and height are 1), else each picture.
    """
    batch, channels, *size = x.shape
    height, width = _output_size(size, kernel, stride, padding, dilation)
    y = x.new_empty(batch, height, width, scale.shape[0], dtype=dtype)
    if y.numel() == 0:
        return y
    library = native.library()
    pitch, padded = filled(channels), (size[0] + 2 * padding[0], size[1] + 2 * padding[1])
    row_scales: Tensor | None = None
    if low == high:
        ready, item = _floats(x, padding, pitch), 4
    else:
        if input_scale is None or input_zero_point is None:
            x = _in_runs(x.permute(3, 1, 2, 0) if pixels_alone else x)
            row_scales, input_zero_point = _own_scales(x, low, high)
            input_scale = row_scales
        ready, item = _codes(x, padding, pitch, input_scale, input_zero_point, low, high, layer), 1
    rows_each = 0 if row_scales is None else 1 if pixels_alone else height * width
    pitch *= item
    line = padded[1] * pitch
    taps = _taps(tuple(kernel), tuple(dilation), line, pitch)
    out, in_group, own = scale.shape[0] // groups, channels // groups, panels.shape[0] // groups
    for group in range(groups):
        failed = library.mixdq_product(
            ready.data_ptr() + group * in_group * item,
            *(batch, height, width),
            *(padded[0] * line, stride[0] * line, stride[1] * pitch),
            *(taps, len(taps), filled(in_group)),
            *(_at(panels, group * own), num_bits, _at(zero_points, group * own * PANEL)),
            *(out, _at(sums, group * out), _at(scale, group * out), _at(bias, group * out)),
            *(_at(input_zero_point, 0), _at(row_scales, 0), rows_each),
            *(y.data_ptr() + group * out * y.element_size(), native.DTYPES[dtype], scale.shape[0]),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError(f"{layer}: no memory for a panel of its weight")
    return y


def _own_scales(x: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Return scales and zero points [batch] of the pictures `x`, as `mixdq.quant.qparams.row_qparams` has them."""
    batch, channels, height, width = x.shape
    extremes = torch.empty(batch, height, 2)
    scales, zero_points = torch.empty(batch), torch.empty(batch, dtype=torch.int32)
    native.library().mixdq_own_scales(
        *(x.data_ptr(), native.DTYPES[x.dtype], batch, channels, height, width),
        *x.stride(),
        *(low, high, extremes.data_ptr(), scales.data_ptr(), zero_points.data_ptr()),
    )
    return scales, zero_points


def _in_runs(x: Tensor) -> Tensor:
    """Return `x` [batch, channels, height, width] with its channels or its pixels side by side."""
    return x if x.stride(1) == 1 or x.stride(3) == 1 else x.contiguous()


def _codes(
    x: Tensor,
    padding: tuple[int, int],
    pitch: int,
    scale: Tensor,
    zero_point: Tensor,
    low: int,
    high: int,
    layer: str,
) -> Tensor:
    """Return bytes [batch, padded height, padded width, pitch] of `x`, and some more."""
    x = _in_runs(x)
    batch, channels, height, width = x.shape
    # The last channels of the last group may be read past their end, against weights of zero.
    count = batch * (height + 2 * padding[0]) * (width + 2 * padding[1]) * pitch
    codes = torch.empty(count + ALIGNMENT, dtype=torch.uint8)
    bad = native.library().mixdq_quantize(
        *(x.data_ptr(), native.DTYPES[x.dtype], batch, channels, height, width),
        *x.stride(),
        *(*padding, pitch, scale.data_ptr(), zero_point.data_ptr(), scale.shape[0] > 1, low, high, codes.data_ptr()),
    )
    if bad:
        raise NonFiniteError(f"{layer}: its input holds NaN or infinity, which no integer can stand for.", where=layer)
    return codes


def _floats(x: Tensor, padding: tuple[int, int], pitch: int) -> Tensor:
    """Return float32 [batch, padded height, padded width, pitch] of `x`, and some zeros more."""
    batch, channels, height, width = x.shape
    padded = (batch, height + 2 * padding[0], width + 2 * padding[1], pitch)
    room = torch.zeros(torch.Size(padded).numel() + ALIGNMENT)
    inner = room[:-ALIGNMENT].view(padded)[:, padding[0] : padding[0] + height, padding[1] : padding[1] + width]
    inner[..., :channels] = x.permute(0, 2, 3, 1)
    return room


@functools.cache
def _taps(kernel: tuple[int, int], dilation: tuple[int, int], line: int, pitch: int) -> "ctypes.Array[ctypes.c_int64]":
    """Return the bytes from a window's first position to each of its positions."""
    offsets = [
        row * dilation[0] * line + column * dilation[1] * pitch
        for row in range(kernel[0])
        for column in range(kernel[1])
    ]
    return (ctypes.c_int64 * len(offsets))(*offsets)


def _output_size(
    size: Sequence[int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int]:
    height, width = ((size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1))
    return height, width


def _at(tensor: Tensor | None, index: int) -> int | None:
    """Return the address of a tensor's row, or null."""
    return None if tensor is None else tensor.data_ptr() + index * tensor.stride(0) * tensor.element_size()


def _fake_linear(x: Tensor, *arguments: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(arguments[3]), dtype=arguments[-2])


def _fake_conv2d(x: Tensor, *arguments: Any) -> Tensor:
    size = _output_size(x.shape[-2:], *arguments[6:10])
    return x.new_empty(*x.shape[:-3], *size, len(arguments[3]), dtype=arguments[-2]).movedim(-1, -3)


_LIBRARY.impl("cpu_linear", _linear, "CPU")
_LIBRARY.impl("cpu_conv2d", _conv2d, "CPU")
torch.library.register_fake("mixdq::cpu_linear", _fake_linear, lib=_LIBRARY)
torch.library.register_fake("mixdq::cpu_conv2d", _fake_conv2d, lib=_LIBRARY)
