/* A tile of a product whose x is in floating point: what a layer computes whose weight alone is quantized. */
#ifndef MIXDQ_TILE_FLOAT_H
#define MIXDQ_TILE_FLOAT_H

#include "floats.h"
#include "runs.h"
#include "tile.h"

/* Codes [k / 4][NR][4] of a panel as floats [k][NR], less the zero points of its columns. */
static void float_panel(const int8_t *restrict codes, int64_t count, const int8_t *zero_points, float *restrict to) {
    float shift[NR];
    for (int j = 0; j < NR; j++) shift[j] = zero_points ? zero_points[j] : 0.0f;
    for (int64_t first = 0; first < count; first += 4 * NR)
        for (int r = 0; r < 4; r++)
            for (int j = 0; j < NR; j++) to[first + r * NR + j] = (float)codes[first + 4 * j + r] - shift[j];
}

/* As mixdq_tile of other ways; the tile's bytes are those of floats, and it has no zero points. */
static inline __attribute__((always_inline)) void float_tile(const int rows, const Tile *tile, const float *x,
                                                             const float *panel, void *y) {
    float values[FLOAT_ROWS][NR];
    for (int column = 0; column < NR; column += FLOAT_COLUMNS) {
        Vector sums[FLOAT_ROWS][2];
#pragma GCC unroll 14
        for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = splat(0.0f);
        for (int64_t t = 0; t < tile->taps; t++)
            add_product(rows, tile->depth, x + tile->tap_offsets[t] / 4, tile->pitch / 4,
                        panel + t * tile->depth * NR + column, NR, sums);
#pragma GCC unroll 14
        for (int i = 0; i < rows; i++) {
            store(values[i] + column, sums[i][0]);
            store(values[i] + column + WIDTH, sums[i][1]);
        }
    }
    for (int i = 0; i < rows; i++) {
        for (int64_t j = 0; j < tile->columns; j++) values[i][j] *= tile->scale[j];
        if (tile->bias)
            for (int64_t j = 0; j < tile->columns; j++) values[i][j] += tile->bias[j];
        narrow(values[i], tile->columns, y, tile->dtype, i * tile->row_stride);
    }
}

#endif
