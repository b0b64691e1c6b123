/* Vectors of float32, as wide as the machine has them, and the tile of a float product that is made of them. */
#ifndef MIXDQ_FLOATS_H
#define MIXDQ_FLOATS_H

#include "numbers.h"

#if defined(__AVX512F__)
#define WIDTH 16
#define FLOAT_ROWS 14 /* of a tile: FLOAT_ROWS * 2 sums fill most of the registers */
#elif defined(__AVX__)
#define WIDTH 8
#define FLOAT_ROWS 6
#elif defined(__aarch64__)
#define WIDTH 4
#define FLOAT_ROWS 14
#else
#define WIDTH 4
#define FLOAT_ROWS 6
#endif
#define FLOAT_COLUMNS (2 * WIDTH) /* of a tile */

typedef float Vector __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Whole __attribute__((vector_size(4 * WIDTH)));

static inline Vector splat(float value) { return value - (Vector){0}; }

static inline Vector load(const float *from) {
    Vector value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline void store(float *to, Vector value) { memcpy(to, &value, sizeof value); }

/* a * b + c, rounded once where the machine can. */
static inline Vector fused(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
    return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX__) && defined(__FMA__)
    return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (Vector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* 2^x to about one unit in the last place, 0 far below -126; NaN stays NaN. x is at most 0. */
static inline Vector power_of_two(Vector x) {
#if defined(__AVX512DQ__)
    const Vector rest = (Vector)_mm512_reduce_ps((__m512)x, 0); /* x less its nearest whole number; 0 of infinity */
#else
    const Vector lowest = splat(-126.0f), to_whole = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to whole numbers */
    const Whole under = x < lowest;
    x = (Vector)(((Whole)lowest & under) | ((Whole)x & ~under));
    const Vector shifted = x + to_whole;
    const Vector rest = x - (shifted - to_whole); /* -0.5 to 0.5 */
#endif
    Vector y = splat(1.5403530e-4f); /* ln(2)^n / n! */
    y = fused(y, rest, splat(1.3333558e-3f));
    y = fused(y, rest, splat(9.6181291e-3f));
    y = fused(y, rest, splat(5.5504109e-2f));
    y = fused(y, rest, splat(2.4022651e-1f));
    y = fused(y, rest, splat(6.9314718e-1f));
    y = fused(y, rest, splat(1.0f));
#if defined(__AVX512DQ__)
    return (Vector)_mm512_scalef_ps((__m512)y, _mm512_roundscale_ps((__m512)x, 0));
#else
    const Whole exponent = ((Whole)shifted - (Whole)to_whole + 127) << 23;
    return (Vector)((Whole)(y * (Vector)exponent) & ~under);
#endif
}

static inline float sum_of(Vector value) {
    float total = 0.0f;
    for (int i = 0; i < WIDTH; i++) total += value[i];
    return total;
}

static inline Vector greater(Vector a, Vector b) {
#if defined(__AVX512F__)
    return (Vector)_mm512_max_ps((__m512)a, (__m512)b);
#else
    const Whole first = a > b;
    return (Vector)(((Whole)a & first) | ((Whole)b & ~first));
#endif
}

/* sums [rows][2] += x [rows, depth] * w [depth, 2 vectors]. `pitch` and `step` are the distances of x's and w's rows, in
 * floats. `rows` is a constant wherever this is called, so that the loops unroll and the sums stay in registers. */
static inline __attribute__((always_inline)) void add_product(const int rows, int64_t depth, const float *x, int64_t pitch,
                                                              const float *w, int64_t step, Vector sums[FLOAT_ROWS][2]) {
    const float *x3 = x + 3 * pitch, *x5 = x + 5 * pitch;
#if FLOAT_ROWS > 6
    const float *x10 = x + 10 * pitch;
#endif
    for (int64_t k = 0; k < depth; k++, w += step) {
        const Vector left = load(w), right = load(w + WIDTH);
#define ROW(I, ADDRESS)                                        \
    if (rows > I) {                                            \
        const Vector value = splat((ADDRESS)[k]);              \
        sums[I][0] = fused(value, left, sums[I][0]);           \
        sums[I][1] = fused(value, right, sums[I][1]);          \
    }
        ROW(0, x)
        ROW(1, x + pitch)
        ROW(2, x + 2 * pitch)
        ROW(3, x3)
        ROW(4, x3 + pitch)
        ROW(5, x5)
#if FLOAT_ROWS > 6
        ROW(6, x5 + pitch)
        ROW(7, x5 + 2 * pitch)
        ROW(8, x + 8 * pitch)
        ROW(9, x5 + 4 * pitch)
        ROW(10, x10)
        ROW(11, x10 + pitch)
        ROW(12, x10 + 2 * pitch)
        ROW(13, x5 + 8 * pitch)
#endif
#undef ROW
    }
}

/* Calls MACRO(rows) with the constant that `rows` is. */
#if FLOAT_ROWS > 6
#define WITH_ROWS(ROWS, MACRO)                                                                                       \
    switch (ROWS) {                                                                                                  \
    case 1: MACRO(1) break; case 2: MACRO(2) break; case 3: MACRO(3) break; case 4: MACRO(4) break;                  \
    case 5: MACRO(5) break; case 6: MACRO(6) break; case 7: MACRO(7) break; case 8: MACRO(8) break;                  \
    case 9: MACRO(9) break; case 10: MACRO(10) break; case 11: MACRO(11) break; case 12: MACRO(12) break;            \
    case 13: MACRO(13) break; default: MACRO(14) break;                                                              \
    }
#else
#define WITH_ROWS(ROWS, MACRO)                                                                                       \
    switch (ROWS) {                                                                                                  \
    case 1: MACRO(1) break; case 2: MACRO(2) break; case 3: MACRO(3) break; case 4: MACRO(4) break;                  \
    case 5: MACRO(5) break; default: MACRO(6) break;                                                                 \
    }
#endif

#endif
