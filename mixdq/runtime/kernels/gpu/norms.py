"""A group norm as what it does to each channel of a picture: a factor and something added, found in one or two passes.

    weight  float32 [batch, channels]   rstd[batch, group] * its own weight
    bias    float32 [batch, channels]   its own bias - mean[batch, group] * weight

Means and squares of distances from them are found chunk by chunk, in two readings of the chunk, and put together in
order: the same input gives the same bytes, and a mean far from 0 costs no digits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNKS = 64
"""The most parts of a picture whose moments are found apart."""
CHUNK_NUMBERS = 16384
"""What one program reads where a picture need not be cut in more than `CHUNKS`."""
AT_ONCE = 4096


@triton.jit(do_not_specialize=["width", "picture", "channels", "chunk", "epsilon"])
def find_moments(
    x,
    partial,
    own_weight,
    own_bias,
    weight,
    bias,
    width,
    picture,
    x_batch,
    x_channel,
    x_line,
    x_pixel,
    channels,
    chunk,
    epsilon,
    whole: tl.constexpr,
    block_rows: tl.constexpr,
    block_channels: tl.constexpr,
):
    """Write mean and sum of squares of a chunk of a group, or, of a `whole` one, the results; axes: chunks, groups, x.

    `x` is [batch, groups * channels, height, width] of any strides, with `picture` pixels, `chunk` of them in a chunk;
    `partial` is [batch, groups, chunks, 2].
    """
    group, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, block_channels)
    source = x + batch * x_batch + (group * channels + channel).to(tl.int64)[None, :] * x_channel
    first = tl.program_id(0) * chunk
    last = tl.minimum(first + chunk, picture)
    total = tl.zeros((block_rows, block_channels), dtype=tl.float32)
    for start in range(first, last, block_rows):
        pixel = start + tl.arange(0, block_rows)
        at = source + ((pixel // width).to(tl.int64) * x_line + (pixel % width).to(tl.int64) * x_pixel)[:, None]
        mask = (pixel < last)[:, None] & (channel < channels)[None, :]
        total += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    count = (last - first) * channels
    mean = tl.sum(tl.sum(total, axis=1), axis=0) / count
    total = tl.zeros((block_rows, block_channels), dtype=tl.float32)
    for start in range(first, last, block_rows):
        pixel = start + tl.arange(0, block_rows)
        at = source + ((pixel // width).to(tl.int64) * x_line + (pixel % width).to(tl.int64) * x_pixel)[:, None]
        mask = (pixel < last)[:, None] & (channel < channels)[None, :]
        away = tl.where(mask, tl.load(at, mask=mask, other=0.0).to(tl.float32) - mean, 0.0)
        total += away * away
    squares = tl.sum(tl.sum(total, axis=1), axis=0)
    row = batch * tl.num_programs(1) + group
    if whole:
        _write(mean, squares / count, own_weight, own_bias, weight, bias, row, group, channels, epsilon, block_channels)
    else:
        target = partial + (row * tl.num_programs(0) + tl.program_id(0)) * 2
        tl.store(target, mean)
        tl.store(target + 1, squares)


@triton.jit(do_not_specialize=["picture", "channels", "chunk", "chunks", "epsilon"])
def join_moments(
    partial,
    own_weight,
    own_bias,
    weight,
    bias,
    picture,
    channels,
    chunk,
    chunks,
    epsilon,
    block_chunks: tl.constexpr,
    block_channels: tl.constexpr,
):
    """Write the results of a group from its chunks; program axes: groups, pictures."""
    row = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    at = tl.arange(0, block_chunks)
    means = tl.load(partial + (row * chunks + at) * 2, mask=at < chunks, other=0.0)
    squares = tl.load(partial + (row * chunks + at) * 2 + 1, mask=at < chunks, other=0.0)
    counts = tl.where(at < chunks, tl.minimum(chunk, picture - at * chunk), 0).to(tl.float32)
    # Of numbers near each other, so that a mean far from 0 costs no digits here either.
    base = tl.sum(tl.where(at == 0, means, 0.0), axis=0)
    mean = base + tl.sum(counts * (means - base), axis=0) / picture
    away = means - mean
    variance = tl.sum(squares / channels + counts * away * away, axis=0) / picture
    _write(
        *(mean, variance, own_weight, own_bias, weight, bias, row, tl.program_id(0), channels, epsilon),
        block_channels,
    )


@triton.jit
def _write(
    mean, variance, own_weight, own_bias, weight, bias, row, group, channels, epsilon, block_channels: tl.constexpr
):
    channel = tl.arange(0, block_channels)
    own = group * channels + channel
    rstd = tl.div_rn(1.0, tl.sqrt_rn(variance + epsilon))
    factor = rstd * tl.load(own_weight + own, mask=channel < channels, other=0.0).to(tl.float32)
    more = tl.load(own_bias + own, mask=channel < channels, other=0.0).to(tl.float32) - mean * factor
    tl.store(weight + row * channels + channel, factor, mask=channel < channels)
    tl.store(bias + row * channels + channel, more, mask=channel < channels)


def affine_of(x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return what a group norm of `weight` and `bias` [channels] does to `x` [batch, channels, height, width]."""
    batch, channels, height, width = x.shape
    found = torch.empty(2, batch, channels, dtype=torch.float32, device=x.device)
    channels //= groups
    picture = height * width
    block_channels = triton.next_power_of_2(channels)
    rows = max(1, AT_ONCE // block_channels)
    chunks = min(CHUNKS, -(-picture * channels // CHUNK_NUMBERS))
    chunk = -(-picture // chunks)
    chunks = -(-picture // chunk)
    partial = found if chunks == 1 else torch.empty(batch, groups, chunks, 2, dtype=torch.float32, device=x.device)
    find_moments[(chunks, groups, batch)](
        *(x, partial, weight, bias, found[0], found[1], width, picture),
        *(x.stride(0), x.stride(1), x.stride(2), x.stride(3)),
        *(channels, chunk, epsilon),
        whole=chunks == 1,
        block_rows=min(rows, triton.next_power_of_2(chunk)),
        block_channels=block_channels,
        num_warps=4,
        enable_fp_fusion=False,
    )
    if chunks > 1:
        join_moments[(groups, batch)](
            *(partial, weight, bias, found[0], found[1], picture, channels, chunk, chunks, epsilon),
            block_chunks=CHUNKS,
            block_channels=block_channels,
            num_warps=1,
            enable_fp_fusion=False,
        )
    return found[0], found[1]
