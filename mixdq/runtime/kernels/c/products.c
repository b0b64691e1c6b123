/* Integer products on CPUs.
 *
 *     y[row, n] = scale[n] * row_scale[row] * (sum_k x[row, k] * w[k, n] - (zero_point[row] + 128) * sum_k w[k, n]) + bias[n]
 *
 * x are unsigned bytes (a code plus 128), w signed ones; the sums are exact int32. A convolution is the same product with
 * k running over taps and channels: row and tap give an address in the padded, channels-last input, so no patches are
 * copied. Packed weights are unpacked into a thread's own buffer when their turn comes.
 */
#include <stdlib.h>
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "tile.h"

#define NEAR_BYTES (512 * 1024) /* of unpacked weights that a thread goes on with at a time: a share of its second-level cache */
#define MAX_THREADS 256
#define CHUNKS 8 /* of work for each thread: those who are done take over what others have left */

/* In a few words, what the products run on. */
const char *mixdq_way(void) { return WAY; }

typedef struct {
    _Alignas(64) int64_t next;
    int64_t end;
} Share;

/* The next chunk of a thread's own share, then of the others'; -1 where nothing is left. */
static int64_t take(Share *shares, int threads, int self) {
    for (int i = 0; i < threads; i++) {
        Share *share = &shares[(self + i) % threads];
        if (__atomic_load_n(&share->next, __ATOMIC_RELAXED) >= share->end) continue;
        const int64_t chunk = __atomic_fetch_add(&share->next, 1, __ATOMIC_RELAXED);
        if (chunk < share->end) return chunk;
    }
    return -1;
}

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

/* y [batch, height, width, columns] of bytes x whose rows lie `pitch` apart along the width, `line` along the height and
 * `picture` along the batch (in bytes, all of them the output's steps). `panels` has ceil(columns / NR) panels, each of
 * taps * depth * NR codes of `bits` bits. `zero_points` [ceil(columns / NR) * NR] belong to the weight and are null at 8
 * bits. `x_zero_points` and `row_scales` have one element for every `rows_each` rows of y; where that is 0, `x_zero_points` has
 * one for all and `row_scales` is null. Returns nonzero where memory ran out. */
int mixdq_product(const uint8_t *x, int64_t batch, int64_t height, int64_t width, int64_t picture, int64_t line,
                  int64_t pitch, const int64_t *tap_offsets, int64_t taps, int64_t depth, const uint8_t *panels,
                  int bits, const int8_t *zero_points, int64_t columns, const int32_t *sums, const float *scale,
                  const float *bias, const int32_t *x_zero_points, const float *row_scales, int64_t rows_each, void *y,
                  int dtype, int64_t row_stride, int threads) {
    const int64_t codes = taps * depth * NR, bytes = codes * bits / 8, size = dtype == FLOAT32 ? 4 : 2;
    const int64_t num_panels = (columns + NR - 1) / NR;
    /* Tiles of one line, as even as they come. */
    const int64_t per_line = (width + MR - 1) / MR, tiles = batch * height * per_line;
    if (tiles == 0) return 0;
    /* A tile meets the panels of a bundle while it is in the nearest cache; they stay in the next one. */
    const int64_t together = NEAR_BYTES / codes > 1 ? NEAR_BYTES / codes : 1;
    const int64_t bundles = (num_panels + together - 1) / together, work = bundles * tiles;
    threads = threads > MAX_THREADS ? MAX_THREADS : threads;
    const int64_t chunks = threads * CHUNKS < work ? threads * CHUNKS : work;
    Share shares[MAX_THREADS];
    for (int i = 0; i < threads; i++) shares[i] = (Share){chunks * i / threads, chunks * (i + 1) / threads};
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        int self = 0;
#if defined(_OPENMP)
        self = omp_get_thread_num();
#endif
        int8_t *buffer = bits == 8 ? NULL : aligned_alloc(64, together * codes);
        failed = bits != 8 && buffer == NULL;
        int64_t held = -1, chunk;
        while (!failed && (chunk = take(shares, threads, self)) >= 0)
            for (int64_t at = work * chunk / chunks; at < work * (chunk + 1) / chunks; at++) {
                const int64_t bundle = at / tiles, row = at % tiles / per_line, part = at % per_line;
                const int64_t first = num_panels * bundle / bundles, last = num_panels * (bundle + 1) / bundles;
                const int8_t *ready = (const int8_t *)panels + first * bytes;
                if (bits != 8) {
                    for (int64_t p = first; p < last && held != bundle; p++)
                        mixdq_unpack_panel(panels + p * bytes, bits, codes, zero_points ? zero_points + p * NR : NULL,
                                           buffer + (p - first) * codes);
                    held = bundle;
                    ready = buffer;
                }
                const int64_t from = width * part / per_line, to = width * (part + 1) / per_line;
                const uint8_t *in = x + row / height * picture + row % height * line + from * pitch;
                const int64_t flat = row * width + from, group = rows_each ? flat / rows_each : 0;
                for (int64_t p = first; p < last; p++) {
                    const int64_t column = p * NR;
                    const Tile tile = {
                        .taps = taps, .depth = depth, .tap_offsets = tap_offsets, .pitch = pitch,
                        .columns = columns - column < NR ? columns - column : NR, .sums = sums + column,
                        .scale = scale + column, .bias = bias ? bias + column : NULL,
                        .zero_points = x_zero_points + group,
                        .row_scales = row_scales ? row_scales + group : NULL, .own = rows_each == 1, .dtype = dtype,
                        .row_stride = row_stride,
                    };
                    tile_of(to - from, &tile, in, ready + (p - first) * codes, (char *)y + size * (flat * row_stride + column));
                }
            }
        free(buffer);
    }
    return failed;
}
