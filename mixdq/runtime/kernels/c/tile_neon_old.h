/* aarch64 without dot products: of x, 128 is taken off, as the epilogue knows; products of signed bytes fill 16 bits, and
 * neighbours add up in 32. */
#define ARITHMETIC "NEON products of 8 bits"
#define OFFSET_TAKEN 128
#define MR 4

#include <arm_neon.h>

#include "epilogue.h"

/* Adds up `vectors` vectors of four columns, from `panel` on; of each column there are two sums on the way. */
static inline __attribute__((always_inline)) void add_columns(const int rows, const int vectors, const Tile *tile,
                                                              const uint8_t *x, const int8_t *panel, int32_t (*to)[NR]) {
    int32x4_t sums[MR][NR / 4][2];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) sums[i][v][0] = sums[i][v][1] = vdupq_n_s32(0);
    for (int64_t t = 0; t < tile->taps; t++) {
        const uint8_t *at = x + tile->tap_offsets[t];
        for (int64_t k = 0; k < tile->depth; k += 4, panel += 4 * NR) {
            int8x8_t bytes[MR]; /* four, twice */
            for (int i = 0; i < rows; i++) {
                uint32_t word;
                memcpy(&word, at + i * tile->pitch + k, 4);
                bytes[i] = vreinterpret_s8_u32(vdup_n_u32(word ^ 0x80808080));
            }
            for (int v = 0; v < vectors; v++) {
                const int8x16_t w = vld1q_s8(panel + 16 * v);
                for (int i = 0; i < rows; i++) {
                    sums[i][v][0] = vpadalq_s16(sums[i][v][0], vmull_s8(vget_low_s8(w), bytes[i]));
                    sums[i][v][1] = vpadalq_s16(sums[i][v][1], vmull_s8(vget_high_s8(w), bytes[i]));
                }
            }
        }
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) vst1q_s32(&to[i][4 * v], vpaddq_s32(sums[i][v][0], sums[i][v][1]));
}

static inline __attribute__((always_inline)) void mixdq_tile(const int rows, const Tile *tile, const uint8_t *x,
                                                             const int8_t *panel, void *y) {
    const int vectors = rows > 2 ? 2 : 4;
    int32_t sums[MR][NR];
    for (int first = 0; first < tile->columns; first += 4 * vectors)
        add_columns(rows, vectors, tile, x, panel + 4 * first, (int32_t(*)[NR])&sums[0][first]);
    finish(rows, tile, sums, y);
}
