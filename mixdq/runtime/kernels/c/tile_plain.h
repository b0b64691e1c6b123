/* Plain C, in loops over columns that compilers make vectors of. */
#include "epilogue.h"

#define MR 4
#define ARITHMETIC "plain C"

static void mixdq_tile(const int rows, const Tile *tile, const uint8_t *x, const int8_t *panel, void *y) {
    int32_t sums[MR][NR] = {{0}};
    for (int64_t t = 0; t < tile->taps; t++)
        for (int64_t k = 0; k < tile->depth; k += 4, panel += 4 * NR) {
            int16_t w[4][NR];
            for (int j = 0; j < NR; j++)
                for (int byte = 0; byte < 4; byte++) w[byte][j] = panel[4 * j + byte];
            for (int i = 0; i < rows; i++) {
                const uint8_t *bytes = x + i * tile->pitch + tile->tap_offsets[t] + k;
                const int16_t a = bytes[0], b = bytes[1], c = bytes[2], d = bytes[3];
                for (int j = 0; j < NR; j++)
                    sums[i][j] += (int32_t)a * w[0][j] + (int32_t)b * w[1][j] + (int32_t)c * w[2][j] + (int32_t)d * w[3][j];
            }
        }
    finish(rows, tile, sums, y);
}
