"""The product of a prepared input and a weight in planes, linear or convolution, with its end in the same pass.

    y[m, n] = scale[n] * row_scale[m] * sum_k x[m, k] (w[n, k] - zero[n])                           of floats
    y[m, n] = scale[n] * row_scale[m] * (sum_k x[m, k] (w[n, k] - zero[n]) - row_zero[m] * sums[n]) of codes
              + bias[n] + added[m, n]

What is before `added` is rounded to its dtype, as torch does where that is a pass of its own.

The tile is computed lying, [columns of y, rows of y]: weights, which are unpacked in registers, are the matrix units'
left operand, which alone may come from there; and their other side, the rows, may be as narrow as 16, so that one token
is not computed as if it were 64. Nothing in the loop is masked: inputs and weights are filled up, rows and columns
beyond the end are computed twice and not stored. Sums of codes are int32, whose order does not matter. Where few tiles
would leave a GPU idle, parts of one sum are computed apart (`split`) and added in order by `finish`.
"""

import triton
import triton.language as tl

from mixdq.runtime.kernels.gpu import available
from mixdq.runtime.kernels.gpu.activations import rounded

INTERPRETED = tl.constexpr(available.interpreted())


# No kernel of its own for every number of them.
@triton.jit(
    do_not_specialize=["rows", "steps", "tap_steps", "line_rows", "picture_rows", "y_rows", "added_rows"],
)
def product(
    x,
    plane_0,
    plane_1,
    plane_2,
    zero_points,
    sums,
    scale,
    bias,
    row_scale,
    row_zero,
    added,
    y,
    partial,
    rows,
    columns,
    steps,
    tap_steps,
    line_rows,
    picture_rows,
    scale_rows,
    x_batch,
    x_line,
    x_pixel,
    dilated_line,
    dilated_pixel,
    strided_line,
    strided_pixel,
    y_rows,
    y_batch,
    y_row,
    added_rows,
    added_batch,
    added_row,
    bits: tl.constexpr,
    field_0: tl.constexpr,
    field_1: tl.constexpr,
    field_2: tl.constexpr,
    tile: tl.constexpr,
    tiles: tl.constexpr,
    kernel_width: tl.constexpr,
    is_window: tl.constexpr,
    of_codes: tl.constexpr,
    operand: tl.constexpr,
    symmetric: tl.constexpr,
    through_registers: tl.constexpr,
    has_bias: tl.constexpr,
    has_added: tl.constexpr,
    split: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
):
    """Compute one tile of `y`, or of one part of its sums; program axes: tiles, groups, parts.

    What is multiplied has the type `operand`, the input's (Triton's interpreter takes bfloat16 for integers);
    `through_registers` on cards whose matrix units read registers only.
    Lengths are counted in elements. `line_rows` and `picture_rows` are the rows of `y` that belong to a line and to a
    picture of it, `scale_rows` those that share a scale. `y_rows` rows of `y`, `y_row` apart, lie `y_batch` before the
    next so many; `added_rows` rows of `added`, `added_row` apart, `added_batch` before the next so many.
    """
    group = tl.program_id(1)
    row_tiles = tl.cdiv(rows, block_rows)
    column_tiles = tl.cdiv(columns, block_columns)
    tile_row, tile_column = _place(tl.program_id(0), row_tiles, column_tiles)
    m = tile_row * block_rows + tl.arange(0, block_rows)
    n = tile_column * block_columns + tl.arange(0, block_columns)
    row = tl.minimum(m, rows - 1)
    column = group * columns + tl.minimum(n, columns - 1)

    k = tl.arange(0, tile)
    if is_window:
        in_picture = row % picture_rows
        first = (row // picture_rows).to(tl.int64) * x_batch
        first += (in_picture // line_rows).to(tl.int64) * strided_line + (in_picture % line_rows) * strided_pixel
    else:
        first = row.to(tl.int64) * x_pixel
    x_at = x + first[None, :] + (group * tap_steps * (tiles * tile) + k)[:, None]
    column_64 = column.to(tl.int64)
    at_0 = plane_0 + (column_64 * steps * (tiles * field_0 // 8 * tile))[:, None] + k[None, :]
    at_1 = plane_1 + (column_64 * steps * (tiles * field_1 // 8 * tile))[:, None] + k[None, :]
    at_2 = plane_2 + (column_64 * steps * (tiles * field_2 // 8 * tile))[:, None] + k[None, :]
    if not symmetric:
        zero = tl.load(zero_points + column)[:, None]
    # Codes of one field stay high in their bytes, where one mask is for 4 of them; their sums are as much too great.
    # They fit, as those of 8 bits do.
    raised: tl.constexpr = of_codes and symmetric and bits < 8 and field_1 == 0

    acc = tl.zeros((block_columns, block_rows), dtype=tl.int32 if of_codes else tl.float32)
    part = tl.program_id(2)
    start = steps * part // split
    tap = start // tap_steps
    in_tap, tap_line, tap_pixel = start % tap_steps, tap // kernel_width, tap % kernel_width
    for step in range(start, steps * (part + 1) // split):
        if is_window:
            at = tap_line * dilated_line + tap_pixel * dilated_pixel + in_tap * (tiles * tile)
            # The next step's place; divisions would take longer.
            in_tap += 1
            tap_pixel += (in_tap == tap_steps).to(tl.int32)
            in_tap = tl.where(in_tap == tap_steps, 0, in_tap)
            tap_line += (tap_pixel == kernel_width).to(tl.int32)
            tap_pixel = tl.where(tap_pixel == kernel_width, 0, tap_pixel)
        else:
            at = step * (tiles * tile)
        for s in tl.static_range(tiles):
            if bits == 8:
                w = tl.load(at_0 + step * tile)
                if of_codes and through_registers:
                    # The codes themselves, as LLVM sees. Triton does not, or for compute capability 8 it would read
                    # the next ones a turn ahead, and hold each byte in a register of its own.
                    w = (w & -16) | (w & 15)
            else:
                if s % (8 // field_0) == 0:
                    byte_0 = tl.load(at_0 + (step * (tiles * field_0 // 8) + s // (8 // field_0)) * tile)
                if raised:
                    w = raised_field(byte_0, s % (8 // field_0), field_0)
                else:
                    w = field_of(byte_0, s % (8 // field_0), field_0, field_1 == 0)
                if field_1 > 0:
                    if s % (8 // field_1) == 0:
                        byte_1 = tl.load(at_1 + (step * (tiles * field_1 // 8) + s // (8 // field_1)) * tile)
                    w |= field_of(byte_1, s % (8 // field_1), field_1, field_2 == 0) << field_0
                if field_2 > 0:
                    if s % (8 // field_2) == 0:
                        byte_2 = tl.load(at_2 + (step * (tiles * field_2 // 8) + s // (8 // field_2)) * tile)
                    w |= field_of(byte_2, s % (8 // field_2), field_2, True) << (field_0 + field_1)
            # Of codes below 8 bits the difference is an int8; of floats it is exact.
            w = w.to(operand)
            if not symmetric:
                w -= zero.to(operand)
            xs = tl.load(x_at + at + s * tile).to(operand)
            acc = tl.dot(w, xs, acc, input_precision="ieee", out_dtype=acc.dtype)

    if raised:
        acc >>= 8 - bits

    # Not clamped: of a minimum Triton does not know that columns lie side by side, 16 bytes for one thread.
    column = group * columns + n
    total_columns = tl.num_programs(1) * columns
    known = n < columns
    stored = (m < rows)[None, :] & known[:, None]
    if split == 1:
        y_at = (m // y_rows).to(tl.int64) * y_batch + (m % y_rows).to(tl.int64) * y_row
        y_at = y_at[None, :] + column[:, None]
        _end(
            *(acc, sums, scale, bias, row_scale, row_zero, added, y, row, column, y_at, known, stored),
            *(scale_rows, added_rows, added_batch, added_row, of_codes, has_bias, has_added),
        )
    else:
        at = (part.to(tl.int64) * rows + row)[None, :] * total_columns + column[:, None]
        tl.store(partial + at, acc, mask=stored)


@triton.jit(do_not_specialize=["rows", "part_sums", "y_rows", "added_rows"])
def finish(
    sums,
    scale,
    bias,
    row_scale,
    row_zero,
    added,
    y,
    partial,
    rows,
    columns,
    part_sums,
    scale_rows,
    y_rows,
    y_batch,
    y_row,
    added_rows,
    added_batch,
    added_row,
    of_codes: tl.constexpr,
    has_bias: tl.constexpr,
    has_added: tl.constexpr,
    split: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
):
    """Add the parts of one tile of sums, in order, `part_sums` apart, and end as `product` does."""
    m = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    n = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
    row, known = tl.minimum(m, rows - 1), n < columns
    stored = (m < rows)[None, :] & known[:, None]
    at = partial + row.to(tl.int64)[None, :] * columns + n[:, None]
    acc = tl.load(at, mask=stored, other=0)
    for _ in range(1, split):
        at += part_sums
        acc += tl.load(at, mask=stored, other=0)
    y_at = (m // y_rows).to(tl.int64) * y_batch + (m % y_rows).to(tl.int64) * y_row
    y_at = y_at[None, :] + n[:, None]
    _end(
        *(acc, sums, scale, bias, row_scale, row_zero, added, y, row, n, y_at, known, stored),
        *(scale_rows, added_rows, added_batch, added_row, of_codes, has_bias, has_added),
    )


@triton.jit
def _end(
    acc,
    sums,
    scale,
    bias,
    row_scale,
    row_zero,
    added,
    y,
    row,
    column,
    y_at,
    known,
    stored,
    scale_rows,
    added_rows,
    added_batch,
    added_row,
    of_codes: tl.constexpr,
    has_bias: tl.constexpr,
    has_added: tl.constexpr,
):
    product_scale = tl.load(scale + column, mask=known, other=0.0)[:, None]
    if of_codes:
        zero = tl.load(row_zero + row // scale_rows)[None, :]
        acc -= zero * tl.load(sums + column, mask=known, other=0)[:, None]
        product_scale = product_scale * tl.load(row_scale + row // scale_rows)[None, :]
    out = acc.to(tl.float32) * product_scale
    if has_bias:
        out += tl.load(bias + column, mask=known, other=0.0)[:, None]
    if has_added:
        at = (row // added_rows).to(tl.int64) * added_batch + (row % added_rows).to(tl.int64) * added_row
        more = tl.load(added + at[None, :] + column[:, None], mask=stored, other=0.0).to(tl.float32)
        out = more + rounded(out, added.dtype.element_ty)
    tl.store(y + y_at, out.to(y.dtype.element_ty), mask=stored)


@triton.jit
def field_of(byte, j: tl.constexpr, field: tl.constexpr, is_top: tl.constexpr):
    """Return the j-th field of int8 bytes: with its sign where it is a code's top one, as it is otherwise."""
    # After an `if` Triton would compile the mask of 8 bits too, which no int8 has.
    return (byte << (8 - field * (j + 1))) >> (8 - field) if is_top else (byte >> (field * j)) & ((1 << field) - 1)


@triton.jit
def raised_field(byte, j: tl.constexpr, field: tl.constexpr):
    """Return the j-th field of int8 bytes in their top bits, nothing below it."""
    up: tl.constexpr = 8 - field * (j + 1)
    if INTERPRETED:
        return (byte << up) & -(1 << (8 - field))
    # Four bytes of a register at once: what is shifted into the next one is masked away.
    mask: tl.constexpr = 0x01010101 * (256 - (1 << (8 - field)))
    return tl.inline_asm_elementwise(
        f"shl.b32 $0, $1, {up}; and.b32 $0, $0, {mask};", "=r,r", [byte], dtype=tl.int8, is_pure=True, pack=4
    )


@triton.jit
def _place(program, row_tiles, column_tiles):
    """Return the tile (row, column) of a program: neighbours share rows and columns, which then stay in the cache."""
    height: tl.constexpr = 8
    band = program // (height * column_tiles)
    first = band * height
    high = tl.minimum(row_tiles - first, height)
    inside = program % (height * column_tiles)
    return first + inside % high, inside // high
