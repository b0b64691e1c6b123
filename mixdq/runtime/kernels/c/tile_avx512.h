/* AVX512-VNNI: 14 rows and 32 columns of sums fill 28 of the 32 registers. */
#define MR 14
#define ARITHMETIC "AVX512-VNNI dot products"

static inline __attribute__((always_inline)) __m512i four(const uint8_t *x) {
    int32_t word;
    memcpy(&word, x, 4);
    return _mm512_set1_epi32(word);
}

/* Rounds to nearest, ties to even; values are finite or infinite, for NaN cannot come of integers. */
static inline __m256i bfloat16_of(__m512 value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

/* Writes the columns 16 * half to 16 * half + 15 of all rows. */
static inline __attribute__((always_inline)) void finish(const int rows, const Tile *tile, __m512i sums[MR][2],
                                                         const int half, void *y) {
    const int64_t first = 16 * half, left = tile->columns - first;
    if (left <= 0) return;
    const __mmask16 mask = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
    const __m512i of_weight = _mm512_maskz_loadu_epi32(mask, tile->sums + first);
    const __m512 scale = _mm512_maskz_loadu_ps(mask, tile->scale + first);
    const __m512 bias = tile->bias ? _mm512_maskz_loadu_ps(mask, tile->bias + first) : _mm512_setzero_ps();
    __m512i correction = _mm512_mullo_epi32(of_weight, _mm512_set1_epi32(offset_of(tile, 0)));
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
        __m512 by = scale;
        if (tile->own) correction = _mm512_mullo_epi32(of_weight, _mm512_set1_epi32(offset_of(tile, i)));
        if (tile->row_scales) by = _mm512_mul_ps(scale, _mm512_set1_ps(tile->row_scales[tile->own ? i : 0]));
        __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sums[i][half], correction)), by);
        if (tile->bias) value = _mm512_add_ps(value, bias);
        const int64_t at = i * tile->row_stride + first;
        if (tile->dtype == FLOAT32) {
            _mm512_mask_storeu_ps((float *)y + at, mask, value);
        } else {
            const __m256i narrow = tile->dtype == FLOAT16 ? _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT) : bfloat16_of(value);
            _mm256_mask_storeu_epi16((uint16_t *)y + at, mask, narrow);
        }
    }
}

/* Rows are reached from four addresses and a scaled pitch, for sixteen pointers would not fit. */
static inline __attribute__((always_inline)) void mixdq_tile(const int rows, const Tile *tile, const uint8_t *x,
                                                             const int8_t *panel, void *y) {
    __m512i sums[MR][2];
    const int64_t pitch = tile->pitch;
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = _mm512_setzero_si512();
    for (int64_t t = 0; t < tile->taps; t++) {
        const uint8_t *at0 = x + tile->tap_offsets[t], *at3 = at0 + 3 * pitch;
        const uint8_t *at5 = at0 + 5 * pitch, *at10 = at0 + 10 * pitch;
        for (int64_t k = 0; k < tile->depth; k += 4, panel += 4 * NR) {
            const __m512i left = _mm512_loadu_si512(panel), right = _mm512_loadu_si512(panel + 64);
#define ROW(I, ADDRESS)                                                     \
    if (rows > I) {                                                         \
        const __m512i bytes = four((ADDRESS) + k);                          \
        sums[I][0] = _mm512_dpbusd_epi32(sums[I][0], bytes, left);          \
        sums[I][1] = _mm512_dpbusd_epi32(sums[I][1], bytes, right);         \
    }
            ROW(0, at0)
            ROW(1, at0 + pitch)
            ROW(2, at0 + 2 * pitch)
            ROW(3, at3)
            ROW(4, at3 + pitch)
            ROW(5, at5)
            ROW(6, at5 + pitch)
            ROW(7, at5 + 2 * pitch)
            ROW(8, at0 + 8 * pitch)
            ROW(9, at5 + 4 * pitch)
            ROW(10, at10)
            ROW(11, at10 + pitch)
            ROW(12, at10 + 2 * pitch)
            ROW(13, at5 + 8 * pitch)
#undef ROW
        }
    }
    finish(rows, tile, sums, 0, y);
    finish(rows, tile, sums, 1, y);
}
