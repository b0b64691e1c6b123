/* A tile of a product, and the machines' ways to compute one: this file picks the best that the compiler may use.
 *
 * Each way defines MR, the most rows of a tile, ARITHMETIC, its name, and mixdq_tile, which is called with a constant `rows`,
 * so that its loops unroll and the sums stay in registers. MIXDQ_PLAIN asks for the way that needs nothing.
 */
#ifndef MIXDQ_TILE_H
#define MIXDQ_TILE_H

#include "numbers.h"
#include "weights.h"

typedef struct {
    int64_t taps, depth;        /* sums run over taps * depth bytes, depth a multiple of 4 */
    const int64_t *tap_offsets; /* bytes from a row's address to each tap's */
    int64_t pitch;              /* bytes from a row's address to the next one's */
    int64_t columns;            /* of this panel that exist: 1 to NR */
    const int32_t *sums;        /* of the weight, one a column */
    const float *scale, *bias;  /* one a column; bias may be null */
    const int32_t *zero_points; /* of x: the first row's */
    const float *row_scales;    /* the first row's; null where `scale` is all */
    int own;                    /* nonzero where every row has a zero point and a scale of its own, not the first row's */
    int dtype;                  /* of y */
    int64_t row_stride;         /* of y, in elements */
    int bits;                   /* of the codes and zero points that w was unpacked from; 0 where nobody says */
} Tile;

/* What a byte of x exceeds the code's distance from zero by. */
static inline int32_t offset_of(const Tile *tile, int row) { return tile->zero_points[tile->own ? row : 0] + 128; }

#if defined(MIXDQ_PLAIN)
#include "tile_plain.h"
#elif defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "tile_avx512.h"
#elif defined(__SSE2__)
#include "tile_x86.h"
#elif defined(__aarch64__) && (defined(__ARM_FEATURE_MATMUL_INT8) || defined(__ARM_FEATURE_DOTPROD))
#include "tile_neon.h"
#elif defined(__aarch64__)
#include "tile_neon_old.h"
#else
#include "tile_plain.h"
#endif

#if defined(_OPENMP)
#define WAY ARITHMETIC
#else
#define WAY ARITHMETIC ", one thread: the compiler has no OpenMP"
#endif

#endif
