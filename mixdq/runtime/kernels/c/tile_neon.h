/* aarch64 with dot products; without I8MM they take signed bytes only: 128 is taken off x, as the epilogue knows.
 *
 * Sixteen bytes of a row are loaded at a time: an instruction picks its four among them.
 */
#if defined(__ARM_FEATURE_MATMUL_INT8)
#define ARITHMETIC "NEON I8MM dot products"
#else
#define ARITHMETIC "NEON dot products"
#define OFFSET_TAKEN 128
#endif
#define MR 6

#include <arm_neon.h>

#include "epilogue.h"

#if defined(__ARM_FEATURE_MATMUL_INT8)
typedef uint8x16_t Bytes;
#define BYTES(LOADED) (LOADED)
#define ADD_DOT(SUMS, W, X, LANE) vsudotq_laneq_s32(SUMS, W, X, LANE)
#else
typedef int8x16_t Bytes;
#define BYTES(LOADED) vreinterpretq_s8_u8(veorq_u8(LOADED, vdupq_n_u8(128)))
#define ADD_DOT(SUMS, W, X, LANE) vdotq_laneq_s32(SUMS, W, X, LANE)
#endif

/* Adds up `vectors` vectors of four columns, from `panel` on: so many that the sums stay in registers. */
static inline __attribute__((always_inline)) void add_columns(const int rows, const int vectors, const Tile *tile,
                                                              const uint8_t *x, const int8_t *panel, int32_t (*to)[NR]) {
    int32x4_t sums[MR][NR / 4];
    Bytes bytes[MR];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) sums[i][v] = vdupq_n_s32(0);
#define FOUR(LANE)                                                                                \
    for (int v = 0; v < vectors; v++) {                                                           \
        const int8x16_t w = vld1q_s8(panel + 16 * v);                                             \
        for (int i = 0; i < rows; i++) sums[i][v] = ADD_DOT(sums[i][v], w, bytes[i], LANE);       \
    }                                                                                             \
    panel += 4 * NR;
    for (int64_t t = 0; t < tile->taps; t++) {
        const uint8_t *at = x + tile->tap_offsets[t];
        int64_t k = 0;
        for (; k + 16 <= tile->depth; k += 16) {
            for (int i = 0; i < rows; i++) bytes[i] = BYTES(vld1q_u8(at + i * tile->pitch + k));
            FOUR(0) FOUR(1) FOUR(2) FOUR(3)
        }
        for (; k < tile->depth; k += 4) {
            for (int i = 0; i < rows; i++) {
                uint32_t word;
                memcpy(&word, at + i * tile->pitch + k, 4);
                bytes[i] = BYTES(vreinterpretq_u8_u32(vdupq_n_u32(word)));
            }
            FOUR(0)
        }
    }
#undef FOUR
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) vst1q_s32(&to[i][4 * v], sums[i][v]);
}

static inline __attribute__((always_inline)) void mixdq_tile(const int rows, const Tile *tile, const uint8_t *x,
                                                             const int8_t *panel, void *y) {
    const int vectors = rows > 3 ? 4 : 8;
    int32_t sums[MR][NR];
    for (int first = 0; first < tile->columns; first += 4 * vectors)
        add_columns(rows, vectors, tile, x, panel + 4 * first, (int32_t(*)[NR])&sums[0][first]);
    finish(rows, tile, sums, y);
}
