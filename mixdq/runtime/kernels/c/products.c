/* Integer products on CPUs.
 *
 *     y[row, n] = scale[n] * row_scale[row] * (sum_k x[row, k] * w[k, n] - (zero_point[row] + 128) * sum_k w[k, n]) + bias[n]
 *
 * x are unsigned bytes (a code plus 128), w signed ones; the sums are exact int32. A convolution is the same product with
 * k running over taps and channels: row and tap give an address in the padded, channels-last input, so no patches are
 * copied. Packed weights are unpacked into a thread's own buffer when their turn comes. Where x are floats, so are the sums,
 * and the weight's codes become floats in that buffer.
 */
#include <stdlib.h>

#include "passes.h"
#include "sharing.h"
#include "tile.h"
#include "tile_float.h"

#define NEAR_BYTES (384 * 1024) /* of unpacked weights that a thread goes on with at a time: a share of its second-level cache */

/* In a few words, what the products run on. */
const char *mixdq_way(void) { return WAY; }

static void tile_of(int64_t rows, const Tile *tile, const uint8_t *x, const int8_t *panel, void *y) {
    switch (rows) {
#define CASE(ROWS) \
    case ROWS: mixdq_tile(ROWS, tile, x, panel, y); break;
        CASE(1) CASE(2) CASE(3) CASE(4)
#if MR > 4
        CASE(5) CASE(6)
#endif
#if MR > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
#undef CASE
    }
}

static void float_tile_of(int64_t rows, const Tile *tile, const float *x, const float *panel, void *y) {
#define TILE(ROWS) float_tile(ROWS, tile, x, panel, y);
    WITH_ROWS(rows, TILE)
#undef TILE
}

typedef struct {
    const uint8_t *panels;
    int bits, floats;          /* floats: whether they are wanted as such */
    int64_t codes, bytes;      /* of a panel: its numbers, and what they take as they are stored */
    const int8_t *zero_points; /* [panels * NR] or null */
} Weight;

/* Bytes that a panel takes when it is ready for the product. */
static int64_t ready_bytes(const Weight *weight) { return weight->codes * (weight->floats ? 4 : 1); }

/* Makes `count` panels from the `first` on ready in `to`; `codes` has room for those of one panel. */
static void make_ready(const Weight *weight, int64_t first, int64_t count, int8_t *codes, int8_t *to) {
    for (int64_t p = first; p < first + count; p++, to += ready_bytes(weight)) {
        const uint8_t *panel = weight->panels + p * weight->bytes;
        const int8_t *zero_points = weight->zero_points ? weight->zero_points + p * NR : NULL;
        if (!weight->floats) {
            mixdq_unpack_panel(panel, weight->bits, weight->codes, zero_points, to);
        } else {
            if (weight->bits != 8) mixdq_unpack_panel(panel, weight->bits, weight->codes, NULL, codes);
            float_panel(weight->bits == 8 ? (const int8_t *)panel : codes, weight->codes, zero_points, (float *)to);
        }
    }
}

/* Brings a part of a panel nearer, while another one is multiplied. */
static void bring_nearer(const Weight *weight, int64_t panel, int64_t part, int64_t parts) {
    const uint8_t *at = weight->panels + panel * weight->bytes, *end = at + weight->bytes * (part + 1) / parts;
    for (at += weight->bytes * part / parts / 64 * 64; at < end; at += 64) __builtin_prefetch(at, 0, 2);
}

/* y [batch, height, width, columns] of bytes x whose rows lie `pitch` apart along the width, `line` along the height and
 * `picture` along the batch (in bytes, all of them the output's steps). `panels` has ceil(columns / NR) panels, each of
 * taps * depth * NR codes of `bits` bits. `zero_points` [ceil(columns / NR) * NR] belong to the weight and may be null.
 * `x_zero_points` and `row_scales` have one element for every `rows_each` rows of y; where that is 0, `x_zero_points` has
 * one for all and `row_scales` is null. Where `x_zero_points` is null, x are floats, whose distances are in bytes all the
 * same. Returns nonzero where memory ran out. */
int mixdq_product(const void *x, int64_t batch, int64_t height, int64_t width, int64_t picture, int64_t line,
                  int64_t pitch, const int64_t *tap_offsets, int64_t taps, int64_t depth, const uint8_t *panels,
                  int bits, const int8_t *zero_points, int64_t columns, const int32_t *sums, const float *scale,
                  const float *bias, const int32_t *x_zero_points, const float *row_scales, int64_t rows_each, void *y,
                  int dtype, int64_t row_stride, int threads) {
    const int floats = x_zero_points == NULL, as_stored = bits == 8 && !floats;
    const int64_t codes = taps * depth * NR, size = dtype == FLOAT32 ? 4 : 2;
    const Weight weight = {panels, bits, floats, codes, codes * bits / 8, zero_points};
    const int64_t ready = ready_bytes(&weight), num_panels = (columns + NR - 1) / NR;
    /* Tiles of one line, as even as they come. */
    const int64_t most = floats ? FLOAT_ROWS : MR, per_line = (width + most - 1) / most, tiles = batch * height * per_line;
    if (tiles == 0) return 0;
    /* A tile meets the panels of a bundle while it is in the nearest cache; they stay in the next one. */
    const int64_t together = NEAR_BYTES / ready > 1 ? NEAR_BYTES / ready : 1;
    const int64_t bundles = (num_panels + together - 1) / together, work = bundles * tiles;
    /* Another bundle is unpacked first, which must pay. */
    Sharing sharing = shared_out(work, threads, as_stored ? 1 : tiles / 8);
    int failed = 0;
#pragma omp parallel num_threads(sharing.threads) reduction(| : failed)
    {
        /* A panel's size is a multiple of 64. */
        int8_t *buffer = as_stored ? NULL : aligned_alloc(64, codes + together * ready);
        failed = !as_stored && buffer == NULL;
        int64_t held = -1;
        Range range;
        while (!failed && take(&sharing, &range))
            for (int64_t at = range.first; at < range.last; at++) {
                const int64_t bundle = at / tiles, row = at % tiles / per_line, part = at % per_line;
                const int64_t first = num_panels * bundle / bundles, last = num_panels * (bundle + 1) / bundles;
                if (!as_stored && held != bundle) make_ready(&weight, first, last - first, buffer, buffer + codes);
                held = bundle;
                const int8_t *panel = as_stored ? (const int8_t *)panels + first * codes : buffer + codes;
                const int64_t from = width * part / per_line, to = width * (part + 1) / per_line;
                const char *in = (const char *)x + row / height * picture + row % height * line + from * pitch;
                const int64_t flat = row * width + from, group = rows_each ? flat / rows_each : 0;
                for (int64_t p = first; p < last; p++, panel += ready) {
                    if (p + last - first < num_panels) bring_nearer(&weight, p + last - first, at % tiles, tiles);
                    const int64_t column = p * NR;
                    const Tile tile = {
                        .taps = taps, .depth = depth, .tap_offsets = tap_offsets, .pitch = pitch,
                        .columns = columns - column < NR ? columns - column : NR, .sums = sums + column,
                        .scale = scale + column, .bias = bias ? bias + column : NULL,
                        .zero_points = floats ? NULL : x_zero_points + group,
                        .row_scales = row_scales ? row_scales + group : NULL, .own = rows_each == 1, .dtype = dtype,
                        .row_stride = row_stride, .bits = bits,
                    };
                    char *out = (char *)y + size * (flat * row_stride + column);
                    if (floats) float_tile_of(to - from, &tile, (const float *)in, (const float *)panel, out);
                    else tile_of(to - from, &tile, (const uint8_t *)in, panel, out);
                }
            }
        free(buffer);
    }
    return failed;
}
