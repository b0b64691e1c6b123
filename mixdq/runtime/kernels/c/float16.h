/* float16 as it lies in tensors, for compilers with and without a type of that name. Rounds to nearest, ties to even. */
#ifndef MIXDQ_FLOAT16_H
#define MIXDQ_FLOAT16_H

#include <stdint.h>
#include <string.h>

#if !defined(MIXDQ_PLAIN) && defined(__F16C__)
#include <immintrin.h>

static inline float from_float16(uint16_t bits) { return _cvtsh_ss(bits); }

static inline uint16_t to_float16(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }

#elif !defined(MIXDQ_PLAIN) && defined(__aarch64__)

static inline float from_float16(uint16_t bits) {
    __fp16 value;
    memcpy(&value, &bits, 2);
    return value;
}

static inline uint16_t to_float16(float value) {
    const __fp16 half = (__fp16)value;
    uint16_t bits;
    memcpy(&bits, &half, 2);
    return bits;
}

#else

static inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float from_float16(uint16_t bits) {
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = bits & 0x7fff;
    /* 1.rest * 2^-14 less 2^-14: what is below the least normal number, without a subnormal on the way. */
    const uint32_t small = as_bits(as_float(0x38800000 | rest << 13) - as_float(0x38800000));
    const uint32_t normal = (rest << 13) + (112u << 23), endless = rest << 13 | 0x7f800000;
    return as_float(sign | (rest < 0x0400 ? small : rest < 0x7c00 ? normal : endless));
}

static inline uint16_t to_float16(float value) {
    const uint32_t bits = as_bits(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    /* Beside 0.5 a float has steps of 2^-24, as float16 below its least normal number. */
    const uint32_t small = as_bits(as_float(rest < 0x38800000 ? rest : 0) + 0.5f) - as_bits(0.5f);
    const uint32_t normal = (rest + 0xfff + (rest >> 13 & 1) - (112u << 23)) >> 13;
    const uint32_t endless = rest > 0x7f800000 ? 0x7e00 : 0x7c00;
    return (uint16_t)(sign | (rest < 0x38800000 ? small : rest < 0x477ff000 ? normal : endless));
}

#endif

#endif
