/* Plain C, for machines without dot products. */
#include "epilogue.h"

#define MR 4
#define WAY "plain C"

static void mixdq_tile(const int rows, const Tile *tile, const uint8_t *x, const int8_t *panel, void *y) {
    int32_t sums[MR][NR] = {{0}};
    for (int i = 0; i < rows; i++, x += tile->pitch) {
        const int8_t *w = panel;
        for (int64_t t = 0; t < tile->taps; t++)
            for (int64_t k = 0; k < tile->depth; k += 4, w += 4 * NR) {
                const uint8_t *bytes = x + tile->tap_offsets[t] + k;
                const int32_t a = bytes[0], b = bytes[1], c = bytes[2], d = bytes[3];
                for (int j = 0; j < NR; j++)
                    sums[i][j] += a * w[4 * j] + b * w[4 * j + 1] + c * w[4 * j + 2] + d * w[4 * j + 3];
            }
    }
    finish(rows, tile, sums, y);
}
