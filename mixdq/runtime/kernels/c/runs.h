/* Runs of a tensor's numbers, to float32 and back: one way in and out for all that computes in float32. */
#ifndef MIXDQ_RUNS_H
#define MIXDQ_RUNS_H

#include "float16.h"
#include "numbers.h"

static inline void widen_halves(const uint16_t *restrict from, int64_t count, float *restrict to) {
    int64_t i = 0;
    /* Compilers make no vectors of these conversions by themselves. */
#if defined(__AVX512F__)
    for (; i + 16 <= count; i += 16)
        _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(from + i))));
#elif defined(__F16C__) && defined(__AVX__)
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i))));
#endif
    for (; i < count; i++) to[i] = from_float16(from[i]);
}

static inline void narrow_halves(const float *restrict from, int64_t count, uint16_t *restrict to) {
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= count; i += 16)
        _mm256_storeu_si256((__m256i *)(to + i), _mm512_cvtps_ph(_mm512_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__) && defined(__AVX__)
    for (; i + 8 <= count; i += 8)
        _mm_storeu_si128((__m128i *)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < count; i++) to[i] = to_float16(from[i]);
}

/* `count` numbers from element `at` of a tensor on, as float32. */
static inline void widen(const void *from, int dtype, int64_t at, int64_t count, float *restrict to) {
    const uint16_t *restrict narrow = (const uint16_t *)from + at;
    switch (dtype) {
    case FLOAT32: memcpy(to, (const float *)from + at, 4 * count); break;
    case BFLOAT16:
        for (int64_t i = 0; i < count; i++) to[i] = from_bfloat16(narrow[i]);
        break;
    default: widen_halves(narrow, count, to);
    }
}

/* `count` numbers of float32 to a tensor from its element `at` on. */
static inline void narrow(const float *restrict from, int64_t count, void *to, int dtype, int64_t at) {
    uint16_t *restrict out = (uint16_t *)to + at;
    switch (dtype) {
    case FLOAT32: memcpy((float *)to + at, from, 4 * count); break;
    case BFLOAT16:
        for (int64_t i = 0; i < count; i++) out[i] = to_bfloat16(from[i]);
        break;
    default: narrow_halves(from, count, out);
    }
}

#endif
