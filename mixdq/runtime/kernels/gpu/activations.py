"""The input of a product, made ready in one pass: codes (or the numbers themselves), channels last, borders around.

    prepared  int8, or the input's dtype  [batch, height, width, groups * depth], borders included

What stands before the layer may be folded in (`before`, then `silu`); weights are float32 or in the input's dtype:

    ""            x
    "affine"      x * weight[picture, channel] + bias[picture, channel]; a group norm, see `norms`
    "layer_norm"  (x - mean) * rstd * weight[channel] + bias[channel], mean and rstd of each pixel's channels
    "geglu"       x * gelu(gate), the gates being the second half of twice as many channels
    silu          y / (1 + exp(-y))

Each step is computed in float32 and rounded to the input's dtype, as torch does where these are passes of their own.

Codes, of integers or E4M3 floats, are bit for bit those of `mixdq.quant.affine.quantize`: true division, halves to
even, in float32; scales found at run time are those of `mixdq.quant.qparams.row_qparams`, in float64. Borders and
channels that are filled up are zero, whose code is the zero point, whatever stands before. Who holds NaN or infinity, a
row or a picture, gets the scale NaN, which makes every output of it NaN: nothing waits for the device to say so.
"""

import triton
import triton.language as tl

from mixdq.runtime.kernels.gpu.e4m3 import nearest_codes

CHUNKS = 64
"""The most parts of a picture whose ranges are found apart."""


# No kernel of its own for every number of them.
@triton.jit(
    do_not_specialize=[
        *("height", "width", "line", "picture", "border_height", "border_width", "chunks", "epsilon"),
    ],
)
def prepare(
    x,
    prepared,
    scale,
    zero,
    row_scale,
    row_zero,
    ranges,
    weight,
    bias,
    height,
    width,
    line,
    picture,
    border_height,
    border_width,
    x_batch,
    x_channel,
    x_line,
    x_pixel,
    channels,
    depth,
    chunks,
    gate,
    weight_row,
    epsilon,
    low: tl.constexpr,
    high: tl.constexpr,
    of_codes: tl.constexpr,
    floats: tl.constexpr,
    of_pictures: tl.constexpr,
    dynamic: tl.constexpr,
    before: tl.constexpr,
    silu: tl.constexpr,
    block_rows: tl.constexpr,
    block_channels: tl.constexpr,
    block_chunks: tl.constexpr,
):
    """Prepare some pixels of a picture, all channels of a group; program axes: pixels of all pictures, groups.

    `x` is [batch, groups * channels, height, width] of any strides; a prepared picture has `picture` pixels, `line` in
    a line. The scale is the one at `scale`, or, where `dynamic`, each pixel's own, or the picture's own, by `ranges`.
    It goes to `row_scale` and `row_zero`, [pixels], or [pictures] where `of_pictures`; the static scales of
    pictures are there already. `weight` and `bias` belong to `before`, those of pictures lie
    `weight_row` apart; gates lie `gate` elements after their values.
    """
    blocks = tl.cdiv(picture, block_rows)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    group = tl.program_id(1)
    pixel = tl.program_id(0) % blocks * block_rows + tl.arange(0, block_rows)
    there = pixel < picture
    at_line, at_pixel = pixel // line - border_height, pixel % line - border_width
    inside = there & (at_line >= 0) & (at_line < height) & (at_pixel >= 0) & (at_pixel < width)
    source = x + batch * x_batch + group.to(tl.int64) * channels * x_channel
    source = source + (at_line.to(tl.int64) * x_line + at_pixel.to(tl.int64) * x_pixel)[:, None]
    row = batch * picture + pixel
    target = prepared + (row * tl.num_programs(1) + group)[:, None] * depth
    channel = tl.arange(0, block_channels)
    own = group * channels + (batch * weight_row if before == "affine" else 0)
    mean = tl.zeros((block_rows,), dtype=tl.float32)
    rstd = mean
    if before == "layer_norm":
        total = tl.zeros((block_rows, block_channels), dtype=tl.float32)
        for start in range(0, channels, block_channels):
            mask = inside[:, None] & (start + channel < channels)[None, :]
            at = source + (start + channel).to(tl.int64)[None, :] * x_channel
            total += tl.load(at, mask=mask, other=0.0).to(tl.float32)
        mean = tl.sum(total, axis=1) / channels
        total = tl.zeros((block_rows, block_channels), dtype=tl.float32)
        for start in range(0, channels, block_channels):
            mask = inside[:, None] & (start + channel < channels)[None, :]
            at = source + (start + channel).to(tl.int64)[None, :] * x_channel
            away = tl.where(mask, tl.load(at, mask=mask, other=0.0).to(tl.float32) - mean[:, None], 0.0)
            total += away * away
        rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(total, axis=1) / channels + epsilon))

    wrong = tl.zeros((block_rows, block_channels), dtype=tl.int32)
    if of_codes:
        if not dynamic:
            nothing = tl.zeros((block_rows,), dtype=tl.int32)
            own_scale, own_zero = tl.load(scale + nothing), tl.load(zero + nothing)
        elif of_pictures:
            at = ranges + (batch * chunks + tl.arange(0, block_chunks)) * 3
            known = tl.arange(0, block_chunks) < chunks
            least = tl.min(tl.load(at, mask=known, other=0.0), axis=0)
            greatest = tl.max(tl.load(at + 1, mask=known, other=0.0), axis=0)
            wrong += (tl.max(tl.load(at + 2, mask=known, other=0.0), axis=0) > 0.0).to(tl.int32)
            nothing = tl.zeros((block_rows,), dtype=tl.float32)
            own_scale, own_zero = _grid(nothing + least, nothing + greatest, low, high, floats)
        else:
            least = tl.zeros((block_rows, block_channels), dtype=tl.float32)
            greatest = tl.zeros((block_rows, block_channels), dtype=tl.float32)
            for start in range(0, channels, block_channels):
                real = _real(
                    *(source, start + channel, x_channel, inside, channels, weight, bias, own, gate, mean, rstd),
                    *(before, silu),
                )
                real = _finite(real)
                least, greatest = tl.minimum(least, real), tl.maximum(greatest, real)
            own_scale, own_zero = _grid(tl.min(least, axis=1), tl.max(greatest, axis=1), low, high, floats)

    for start in range(0, depth, block_channels):
        real = _real(
            *(source, start + channel, x_channel, inside, channels, weight, bias, own, gate, mean, rstd),
            *(before, silu),
        )
        if of_codes:
            finite = _finite(real)
            wrong |= (real != finite).to(tl.int32)
            real = _codes(finite, own_scale[:, None], own_zero[:, None], low, high, floats)
        filled = there[:, None] & (start + channel < depth)[None, :]
        tl.store(target + (start + channel)[None, :], real.to(prepared.dtype.element_ty), mask=filled)

    if of_codes:
        spoilt = tl.max(wrong, axis=1) > 0
        stored = tl.where(spoilt, float("nan"), own_scale)
        if not of_pictures:
            tl.store(row_scale + row, stored, mask=there)
            tl.store(row_zero + row, own_zero, mask=there)
        else:
            # All that write, write the same.
            nothing = tl.zeros((block_rows,), dtype=tl.int32)
            tl.store(row_scale + batch + nothing, stored, mask=spoilt | dynamic)
            tl.store(row_zero + batch + nothing, own_zero)


@triton.jit(do_not_specialize=["width", "picture", "chunk"])
def find_ranges(
    x,
    ranges,
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
    weight_row,
    before: tl.constexpr,
    silu: tl.constexpr,
    block_rows: tl.constexpr,
    block_channels: tl.constexpr,
):
    """Write least, greatest and 1 where there is NaN or infinity, of `chunk` pixels; program axis: all chunks.

    `x` is [batch, channels, height, width] of any strides, with `picture` pixels; `ranges` is [batch, chunks, 3].
    Before it stands nothing, or "affine", of `weight_row` as in `prepare`.
    """
    least = tl.zeros((block_rows, block_channels), dtype=tl.float32)
    greatest = tl.zeros((block_rows, block_channels), dtype=tl.float32)
    wrong = tl.zeros((block_rows, block_channels), dtype=tl.int32)
    chunks = tl.cdiv(picture, chunk)
    batch = (tl.program_id(0) // chunks).to(tl.int64)
    source = x + batch * x_batch
    for start in range(0, chunk, block_rows):
        inside = start + tl.arange(0, block_rows)
        pixel = tl.program_id(0) % chunks * chunk + inside
        at = source + ((pixel // width).to(tl.int64) * x_line + (pixel % width).to(tl.int64) * x_pixel)[:, None]
        there = (inside < chunk) & (pixel < picture)
        for first in range(0, channels, block_channels):
            channel = first + tl.arange(0, block_channels)
            real = _real(
                *(at, channel, x_channel, there, channels, weight, bias, batch * weight_row, 0, None, None),
                *(before, silu),
            )
            finite = _finite(real)
            wrong |= (real != finite).to(tl.int32)
            least, greatest = tl.minimum(least, finite), tl.maximum(greatest, finite)
    target = ranges + tl.program_id(0).to(tl.int64) * 3
    tl.store(target, tl.min(tl.min(least, axis=1), axis=0))
    tl.store(target + 1, tl.max(tl.max(greatest, axis=1), axis=0))
    tl.store(target + 2, tl.max(tl.max(wrong, axis=1), axis=0).to(tl.float32))


@triton.jit
def _real(
    source,
    channel,
    x_channel,
    there,
    channels,
    weight,
    bias,
    own,
    gate,
    mean,
    rstd,
    before: tl.constexpr,
    silu: tl.constexpr,
):
    """Return the numbers of some channels of the pixels at `source` after what stands before, float32, 0 elsewhere."""
    known = channel < channels
    mask = there[:, None] & known[None, :]
    at = source + channel.to(tl.int64)[None, :] * x_channel
    dtype: tl.constexpr = source.dtype.element_ty
    real = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if before == "affine" or before == "layer_norm":
        own_weight = tl.load(weight + own + channel, mask=known, other=0.0).to(tl.float32)[None, :]
        own_bias = tl.load(bias + own + channel, mask=known, other=0.0).to(tl.float32)[None, :]
        if before == "layer_norm":
            real = (real - mean[:, None]) * rstd[:, None]
        real = rounded(real * own_weight + own_bias, dtype)
    if before == "geglu":
        gates = tl.load(at + gate, mask=mask, other=0.0).to(tl.float32)
        real = rounded(real * rounded(gates * 0.5 * (1.0 + tl.erf(gates * 0.7071067811865476)), dtype), dtype)
    if silu:
        real = rounded(tl.div_rn(real, 1.0 + tl.exp(-real)), dtype)
    return tl.where(mask, real, 0.0)


@triton.jit
def rounded(real, dtype: tl.constexpr):
    """Return the nearest number of a dtype, halves to even, in float32."""
    if dtype == tl.bfloat16:
        # Triton's interpreter would cut it off.
        bits = tl.where(real != real, 0.0, real).to(tl.int32, bitcast=True)
        near = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
        return tl.where(real != real, real, near)
    return real.to(dtype).to(tl.float32)


@triton.jit
def _finite(real):
    """Return 0 for NaN and infinity."""
    return tl.where(tl.abs(real) <= 3.4028234663852886e38, real, 0.0)


@triton.jit
def _codes(real, scale, zero, low: tl.constexpr, high: tl.constexpr, floats: tl.constexpr):
    """Return round(real / scale) + zero within [low, high]; ends are codes, so that clipping may come first."""
    steps = tl.div_rn(real, scale)
    steps = tl.minimum(tl.maximum(steps, (low - zero).to(tl.float32)), (high - zero).to(tl.float32))
    # Above 2^23 float32 has no fractions: adding so much rounds, halves to even.
    return nearest_codes(steps) if floats else ((steps + 12582912.0) - 12582912.0).to(tl.int32) + zero


@triton.jit
def _grid(least, greatest, low: tl.constexpr, high: tl.constexpr, floats: tl.constexpr):
    """Return scale and zero point of ranges that contain 0, as `mixdq.quant.qparams.row_qparams` does."""
    least, greatest = least.to(tl.float64), greatest.to(tl.float64)
    wanted = tl.maximum(-least, greatest) / high if floats else (greatest - least) / (high - low)
    scale = tl.minimum(tl.maximum(wanted, 1.1754943508222875e-38), 3.4028234663852886e38)
    scale = tl.where(wanted == 0.0, 1.0, scale).to(tl.float32)
    zero = tl.zeros(scale.shape, dtype=tl.int32)
    if not floats:
        steps = least / scale.to(tl.float64)
        # As in `_codes`, with float64's 2^52.
        near = low - ((steps + 6755399441055744.0) - 6755399441055744.0)
        zero = tl.minimum(tl.maximum(near, low), high).to(tl.int32)
    return scale, zero
