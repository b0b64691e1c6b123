/* The end of a product where the machine has no way of its own: sums [rows][NR] to y. */
#ifndef MIXDQ_EPILOGUE_H
#define MIXDQ_EPILOGUE_H

#include "runs.h"

#ifndef OFFSET_TAKEN
#define OFFSET_TAKEN 0 /* of a byte of x, before its product was added to the sums */
#endif

/* Loops run over columns and hold no branch, so that any compiler makes vectors of them. */
static inline __attribute__((always_inline)) void finish_row(const int64_t columns, const Tile *tile, const int row,
                                                             const int32_t *restrict sums, void *restrict y) {
    const int32_t *restrict of_weight = tile->sums, offset = offset_of(tile, row) - OFFSET_TAKEN;
    const float *restrict scale = tile->scale, *restrict bias = tile->bias;
    /* Times one changes nothing. */
    const float row_scale = tile->row_scales ? tile->row_scales[tile->own ? row : 0] : 1.0f;
    float values[NR];
    for (int64_t j = 0; j < columns; j++)
        values[j] = (float)(sums[j] - offset * of_weight[j]) * (scale[j] * row_scale);
    if (bias)
        for (int64_t j = 0; j < columns; j++) values[j] += bias[j];
    narrow(values, columns, y, tile->dtype, row * tile->row_stride);
}

static void finish(const int rows, const Tile *tile, int32_t sums[][NR], void *y) {
    for (int i = 0; i < rows; i++)
        if (tile->columns == NR) finish_row(NR, tile, i, sums[i], y);
        else finish_row(tile->columns, tile, i, sums[i], y);
}

#endif
