/* The end of a product where the machine has no way of its own: sums [rows][NR] to y. */
#ifndef MIXDQ_EPILOGUE_H
#define MIXDQ_EPILOGUE_H

static void finish(const int rows, const Tile *tile, int32_t sums[][NR], void *y) {
    for (int i = 0; i < rows; i++) {
        const int32_t offset = offset_of(tile, i);
        for (int64_t j = 0; j < tile->columns; j++) {
            const float by = tile->row_scales ? tile->scale[j] * tile->row_scales[tile->own ? i : 0] : tile->scale[j];
            float value = (float)(sums[i][j] - offset * tile->sums[j]) * by;
            if (tile->bias) value += tile->bias[j];
            const int64_t at = i * tile->row_stride + j;
            switch (tile->dtype) {
            case FLOAT32: ((float *)y)[at] = value; break;
            case BFLOAT16: ((uint16_t *)y)[at] = to_bfloat16(value); break;
            default: ((_Float16 *)y)[at] = (_Float16)value;
            }
        }
    }
}

#endif
