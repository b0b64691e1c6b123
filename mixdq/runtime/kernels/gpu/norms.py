"""A group norm as what it does to each channel of a picture: a factor and something added, found in one or two passes.

    weight  float32 [batch, channels]   rstd[batch, group] * its own weight
    bias    float32 [batch, channels]   its own bias - mean[batch, group] * weight

A program reads some pixels once, 16 bytes at a time where channels lie side by side, and holds them: it finds means,
then squares of distances from them. Those of several programs are put together in order: the same input gives the same
bytes, and a mean far from 0 costs no digits.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

WHOLE = 32768
"""The most numbers of whole groups that one program holds."""
CHUNK = 8192
"""What it holds where several share groups."""
THREAD_NUMBERS = 64
"""What each of its threads holds, at most."""
BLOCK_CHANNELS = 128
"""The most channels of several groups in a block."""
LEAST_CHUNKS = 64
"""So many are put together by one compiled kernel, few or many; more, by another for every power of 2."""


@triton.jit(do_not_specialize=["width", "picture", "groups", "epsilon"])
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
    groups,
    epsilon,
    channels: tl.constexpr,
    in_block: tl.constexpr,
    whole: tl.constexpr,
    block_channels: tl.constexpr,
    block_pixels: tl.constexpr,
):
    """Write means and sums of squares of a chunk of some groups, or, of `whole` ones, the results.

    `x` is [batch, groups * channels, height, width] of any strides, with `picture` pixels; `partial` is
    [batch, groups, chunks, 2]. Program axes: chunks of `block_pixels` of all pictures, blocks of `in_block` groups.
    """
    chunks = tl.cdiv(picture, block_pixels)
    batch, chunk = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    channel = tl.arange(0, block_channels)
    known = channel < in_block * channels
    first = tl.program_id(1) * (in_block * channels)
    pixel = chunk * block_pixels + tl.arange(0, block_pixels)
    at = x + batch * x_batch + (first + channel).to(tl.int64)[:, None] * x_channel
    at += ((pixel // width).to(tl.int64) * x_line + (pixel % width).to(tl.int64) * x_pixel)[None, :]
    mask = known[:, None] & (pixel < picture)[None, :]
    read = tl.load(at, mask=mask, other=0.0)
    count = tl.minimum(picture - chunk * block_pixels, block_pixels) * channels
    mean = _of_group(read.to(tl.float32), channels, in_block) / count
    away = tl.where(mask, read.to(tl.float32) - mean[:, None], 0.0)
    squares = _of_group(away * away, channels, in_block)
    if whole:
        row = batch * groups * channels + first
        _write(mean, squares / count, own_weight + first, own_bias + first, weight + row, bias + row, known, epsilon)
    else:
        row = batch * groups + tl.program_id(1) * in_block + channel // channels
        target = partial + (row * chunks + chunk) * 2
        tl.store(target, mean, mask=known & (channel % channels == 0))
        tl.store(target + 1, squares, mask=known & (channel % channels == 0))


@triton.jit
def _of_group(real, channels: tl.constexpr, in_block: tl.constexpr):
    """Return the sum of each channel's group, [channels], of numbers [channels, pixels]."""
    out = tl.zeros((real.shape[0],), dtype=tl.float32)
    if in_block == 1:
        return out + tl.sum(tl.sum(real, axis=0), axis=0)
    group = tl.arange(0, real.shape[0]) // channels
    sums = tl.sum(real, axis=1)
    for i in tl.static_range(in_block):
        out = tl.where(group == i, tl.sum(tl.where(group == i, sums, 0.0), axis=0), out)
    return out


@triton.jit(do_not_specialize=["picture", "groups", "channels", "chunk", "chunks", "epsilon"])
def join_moments(
    partial,
    own_weight,
    own_bias,
    weight,
    bias,
    picture,
    groups,
    channels,
    chunk,
    chunks,
    epsilon,
    block_chunks: tl.constexpr,
    block_channels: tl.constexpr,
):
    """Write the results of a group from its chunks; program axis: groups of all pictures."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block_chunks)
    means = tl.load(partial + (row * chunks + at) * 2, mask=at < chunks, other=0.0)
    squares = tl.load(partial + (row * chunks + at) * 2 + 1, mask=at < chunks, other=0.0)
    counts = tl.where(at < chunks, tl.minimum(chunk, picture - at * chunk), 0).to(tl.float32)
    # Of numbers near each other, so that a mean far from 0 costs no digits here either.
    base = tl.sum(tl.where(at == 0, means, 0.0), axis=0)
    mean = base + tl.sum(counts * (means - base), axis=0) / picture
    away = means - mean
    variance = tl.sum(squares / channels + counts * away * away, axis=0) / picture
    own = tl.program_id(0) % groups * channels
    at = row * channels
    known = tl.arange(0, block_channels) < channels
    _write(mean, variance, own_weight + own, own_bias + own, weight + at, bias + at, known, epsilon)


@triton.jit
def _write(mean, variance, own_weight, own_bias, weight, bias, known, epsilon):
    """Write the results of the channels that are `known`; mean and variance are theirs, or one for all."""
    channel = tl.arange(0, known.shape[0])
    rstd = tl.div_rn(1.0, tl.sqrt_rn(variance + epsilon))
    factor = rstd * tl.load(own_weight + channel, mask=known, other=0.0).to(tl.float32)
    more = tl.load(own_bias + channel, mask=known, other=0.0).to(tl.float32) - mean * factor
    tl.store(weight + channel, factor, mask=known)
    tl.store(bias + channel, more, mask=known)


def affine_of(x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return what a group norm of `weight` and `bias` [channels] does to `x` [batch, channels, height, width]."""
    batch, channels, height, width = x.shape
    found = torch.empty(2, batch, channels, dtype=torch.float32, device=x.device)
    channels //= groups
    picture = height * width
    # So many groups take a multiple of 16 bytes.
    in_block = 8 // math.gcd(8, channels) if x.stride(1) == 1 else 1
    if groups % in_block or in_block * channels > BLOCK_CHANNELS:
        in_block = 1
    block_channels = triton.next_power_of_2(in_block * channels)
    block_pixels = triton.next_power_of_2(max(1, picture))
    whole = block_pixels * block_channels <= WHOLE
    if not whole:
        block_pixels = min(block_pixels, max(1, CHUNK // block_channels))
    chunks = -(-picture // block_pixels)
    partial = found if whole else torch.empty(batch, groups, chunks, 2, dtype=torch.float32, device=x.device)
    find_moments[(chunks * batch, groups // in_block)](
        *(x, partial, weight, bias, found[0], found[1], width, picture),
        *(x.stride(0), x.stride(1), x.stride(2), x.stride(3)),
        *(groups, epsilon),
        channels=channels,
        in_block=in_block,
        whole=whole,
        block_channels=block_channels,
        block_pixels=block_pixels,
        num_warps=max(4, block_pixels * block_channels // (32 * THREAD_NUMBERS)),
        enable_fp_fusion=False,
    )
    if not whole:
        join_moments[(groups * batch,)](
            *(partial, weight, bias, found[0], found[1], picture, groups, channels, block_pixels, chunks, epsilon),
            block_chunks=max(LEAST_CHUNKS, triton.next_power_of_2(chunks)),
            block_channels=triton.next_power_of_2(channels),
            num_warps=1,
            enable_fp_fusion=False,
        )
    return found[0], found[1]
