"""The first text token's output on a GPU: what `mixdq.quant.bos.bos_rows` gives, without waiting for the device.

Every state is projected on the stored one. Where it is no multiple of it, the rest goes through the weight, program by
program, as the device finds out; nobody is warned then.
"""

import triton
import triton.language as tl

from mixdq.runtime.kernels.gpu.e4m3 import numbers_of
from mixdq.runtime.kernels.gpu.product import field_of


@triton.jit
def bos_rows(
    x,
    bos_input,
    bos_output,
    bias,
    scale,
    zero_points,
    plane_0,
    plane_1,
    plane_2,
    y,
    channels,
    columns,
    steps,
    x_batch,
    x_channel,
    y_batch,
    misfit_limit: tl.constexpr,
    field_0: tl.constexpr,
    field_1: tl.constexpr,
    field_2: tl.constexpr,
    tile: tl.constexpr,
    tiles: tl.constexpr,
    symmetric: tl.constexpr,
    floats: tl.constexpr,
    has_bias: tl.constexpr,
    block_columns: tl.constexpr,
    block_channels: tl.constexpr,
):
    """Write some columns of the first row of a text's output; program axis: columns of all texts.

    `x` and `y` are at the first token of the first text, `x_batch` and `y_batch` elements before that of the next.
    """
    blocks = tl.cdiv(columns, block_columns)
    n = tl.program_id(0) % blocks * block_columns + tl.arange(0, block_columns)
    column = tl.minimum(n, columns - 1)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    x += batch * x_batch

    along = tl.zeros((block_channels,), dtype=tl.float64)
    square = tl.zeros((block_channels,), dtype=tl.float64)
    length = tl.zeros((block_channels,), dtype=tl.float64)
    for start in range(0, channels, block_channels):
        k = start + tl.arange(0, block_channels)
        state = tl.load(x + k.to(tl.int64) * x_channel, mask=k < channels, other=0.0).to(tl.float64)
        stored = tl.load(bos_input + k, mask=k < channels, other=0.0).to(tl.float64)
        along += state * stored
        square += stored * stored
        length += tl.abs(state)
    total = tl.sum(length, axis=0)
    share_64 = tl.where(total == 0.0, 0.0, tl.sum(along, axis=0) / tl.sum(square, axis=0))
    rest = tl.zeros((block_channels,), dtype=tl.float64)
    for start in range(0, channels, block_channels):
        k = start + tl.arange(0, block_channels)
        state = tl.load(x + k.to(tl.int64) * x_channel, mask=k < channels, other=0.0).to(tl.float64)
        stored = tl.load(bos_input + k, mask=k < channels, other=0.0).to(tl.float64)
        rest += tl.abs(state - share_64 * stored)
    misfit = tl.where(total == 0.0, 0.0, tl.sum(rest, axis=0) / total).to(tl.float32)
    share = share_64.to(tl.float32)

    row = tl.load(bos_output + column)
    if has_bias:
        first = tl.load(bias + column)
        # As torch.lerp: both ends are exact.
        row = tl.where(share < 0.5, first + share * (row - first), row - (row - first) * (1.0 - share))
    else:
        row = share * row
    fits = misfit <= misfit_limit
    if fits == 0:
        acc = tl.zeros((block_columns,), dtype=tl.float32)
        for step in range(steps):
            for s in tl.static_range(tiles):
                k = (step * tiles + s) * tile + tl.arange(0, tile)
                state = tl.load(x + k.to(tl.int64) * x_channel, mask=k < channels, other=0.0).to(tl.float32)
                state -= share * tl.load(bos_input + k, mask=k < channels, other=0.0)
                w = _codes(plane_0, column, steps, step, s, field_0, field_1 == 0, tile, tiles)
                if field_1 > 0:
                    w |= _codes(plane_1, column, steps, step, s, field_1, field_2 == 0, tile, tiles) << field_0
                if field_2 > 0:
                    w |= _codes(plane_2, column, steps, step, s, field_2, True, tile, tiles) << (field_0 + field_1)
                w = numbers_of(w) if floats else w.to(tl.float32)
                if not symmetric:
                    w -= tl.load(zero_points + column).to(tl.float32)[:, None]
                acc += tl.sum(w * state[None, :], axis=1)
        row += acc * tl.load(scale + column)
    tl.store(y + batch * y_batch + n, row.to(y.dtype.element_ty), mask=n < columns)


@triton.jit
def _codes(
    plane, column, steps, step, s: tl.constexpr, field: tl.constexpr, is_top: tl.constexpr, tile: tl.constexpr,
    tiles: tl.constexpr,
):  # fmt: skip
    """Return the fields [columns, tile] of one tile of codes."""
    shared: tl.constexpr = 8 // field
    at = (column.to(tl.int64) * steps + step) * (tiles // shared * tile) + s // shared * tile
    byte = tl.load(plane + at[:, None] + tl.arange(0, tile)[None, :])
    return field_of(byte, s % shared, field, is_top)
