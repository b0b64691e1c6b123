"""An input on its way to a product: which kernel of `activations` makes it ready, and in what blocks.

A Linear's input is a picture of one line, its tokens being the pixels. Nothing here waits for the device.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mixdq.runtime.before import NOTHING, Before
from mixdq.runtime.kernels.gpu import activations
from mixdq.runtime.kernels.gpu.norms import affine_of
from mixdq.runtime.kernels.gpu.tensors import LayerTensors, Window

PREPARED_AT_ONCE = 4096
"""Numbers that one program prepares."""


@dataclass(frozen=True)
class Prepared:
    """An input made ready, [batch, height, width, groups * depth], and the scales of its rows or pictures."""

    x: Tensor
    row_scale: Tensor
    row_zero: Tensor
    of_pictures: bool


def prepare(x: Tensor, tensors: LayerTensors, window: Window | None, groups: int, before: Before = NOTHING) -> Prepared:
    """Return `x` [batch, in, height, width], or a Linear's as `as_picture` gives it, as the product wants it.

    A gate has twice the channels, and gates and layer norms stand before layers of one group alone.
    """
    order, is_linear = tensors.order, window is None
    window = window or Window()
    batch, _, height, width = x.shape
    shape = (batch, height + 2 * window.padding[0], width + 2 * window.padding[1], groups * order.depth)
    of_pictures = not window.is_pixel or groups > 1 or (tensors.dynamic and not is_linear)
    none = tensors.scale
    if not tensors.of_codes and before.is_nothing:
        last = x.permute(0, 2, 3, 1)
        if last.shape == shape and last.is_contiguous():
            return Prepared(last, none, none, of_pictures)
    prepared = torch.empty(shape, dtype=torch.int8 if tensors.of_codes else x.dtype, device=x.device)
    picture = shape[1] * shape[2]
    blocks = _blocks(picture, x, order.depth)
    row_scale, row_zero, ranges, chunks = none, none, none, 1
    before = by_channel(x, before)
    weight_row = before.weight.stride(0) if before.kind == "affine" and before.weight is not None else 0
    if tensors.of_codes:
        rows = batch if of_pictures else batch * picture
        if of_pictures and tensors.input_scale is not None:
            row_scale = tensors.input_scale.repeat(rows)
        else:
            row_scale = torch.empty(rows, dtype=torch.float32, device=x.device)
        row_zero = torch.empty(rows, dtype=torch.int32, device=x.device)
        if of_pictures and tensors.dynamic:
            ranges = _ranges(x, before, weight_row)
            chunks = ranges.shape[1]
    activations.prepare[(batch * -(-picture // blocks[0]), groups)](
        *(x, prepared, tensors.input_scale, tensors.input_zero_point, row_scale, row_zero, ranges),
        *(before.weight, before.bias),
        *(height, width, shape[2], picture, *window.padding),
        *(x.stride(0), x.stride(1), x.stride(2), x.stride(3)),
        *(order.channels, order.depth, chunks, groups * order.channels * x.stride(1), weight_row, before.eps),
        low=tensors.low,
        high=tensors.high,
        of_codes=tensors.of_codes,
        floats=tensors.floats,
        of_pictures=of_pictures,
        dynamic=tensors.dynamic,
        before=before.kind,
        silu=before.silu,
        block_rows=blocks[0],
        block_channels=blocks[1],
        block_chunks=activations.CHUNKS,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return Prepared(prepared, row_scale, row_zero, of_pictures)


def by_channel(x: Tensor, before: Before) -> Before:
    """Return what a group norm does to each channel of `x` [batch, channels, height, width]; else `before` itself."""
    if before.kind != "group_norm" or before.weight is None or before.bias is None:
        return before
    weight, bias = affine_of(x, before.groups, before.weight, before.bias, before.eps)
    return before._replace(kind="affine", weight=weight, bias=bias)


def as_picture(x: Tensor, *, apart: bool = False) -> Tensor:
    """Return `x` [..., in] as [batch, in, 1, tokens], where its memory allows without a copy.

    Where all tokens lie alike they are one batch, unless they are to stay `apart`.
    """
    if x.dim() < 3:
        x = x.reshape(1, -1, x.shape[-1])
    elif x.dim() > 3:
        x = x.flatten(0, -3)
    if not apart and x.stride(0) == x.shape[1] * x.stride(1):
        x = x.flatten(0, 1)[None]
    return x.transpose(1, 2).unsqueeze(2)


def power_of_2(number: int) -> int:
    """Return the least power of 2 that is not below a number."""
    return 1 << max(0, number - 1).bit_length()


def _blocks(picture: int, x: Tensor, depth: int) -> tuple[int, int]:
    """Return rows and channels of a block: along the axis that lies in memory without gaps, enough of both."""
    channels = min(power_of_2(depth), 2048 if x.stride(1) == 1 else 64)
    return min(power_of_2(picture), max(1, PREPARED_AT_ONCE // channels)), channels


def _ranges(x: Tensor, before: Before, weight_row: int) -> Tensor:
    batch, channels, height, width = x.shape
    picture = height * width
    rows, block_channels = _blocks(picture, x, channels)
    chunk = -(-picture // min(activations.CHUNKS, -(-picture // rows)))
    chunks = -(-picture // chunk)
    ranges = torch.empty(batch, chunks, 3, dtype=torch.float32, device=x.device)
    activations.find_ranges[(chunks * batch,)](
        *(x, ranges, before.weight, before.bias, width, picture),
        *(x.stride(0), x.stride(1), x.stride(2), x.stride(3), channels, chunk, weight_row),
        before=before.kind,
        silu=before.silu,
        block_rows=rows,
        block_channels=block_channels,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return ranges
