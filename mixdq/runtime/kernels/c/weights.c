/* Weights: codes packed and unpacked, in the portable layout and in panels. */
#include "weights.h"

#include "numbers.h"

/* The low `bits` bits of every byte. */
static inline uint64_t low_bits(int bits) { return 0x0101010101010101ull * ((1u << bits) - 1); }

/* Eight codes, the low bits of eight bytes, as one stream of 8 * bits bits; and back, with zeros above each code. */
static inline uint64_t joined(uint64_t codes, int bits) {
#ifdef __BMI2__
    return _pext_u64(codes, low_bits(bits));
#else
    uint64_t stream = 0;
    for (int j = 0; j < 8; j++) stream |= (codes >> (8 * j) & ((1u << bits) - 1)) << (bits * j);
    return stream;
#endif
}

static inline uint64_t apart(uint64_t stream, int bits) {
#ifdef __BMI2__
    return _pdep_u64(stream, low_bits(bits));
#else
    uint64_t codes = 0;
    for (int j = 0; j < 8; j++) codes |= (stream >> (bits * j) & ((1u << bits) - 1)) << (8 * j);
    return codes;
#endif
}

/* Loads and stores 1 to 8 bytes; all 8 at once where they are there. */
static inline uint64_t load_some(const uint8_t *from, int64_t there, int wanted) {
    uint64_t word = 0;
    if (there >= 8) memcpy(&word, from, 8);
    else memcpy(&word, from, wanted);
    return word;
}

static inline void store_some(uint64_t word, uint8_t *to, int64_t there, int wanted) {
    if (there >= 8) memcpy(to, &word, 8);
    else memcpy(to, &word, wanted);
}

/* Packs codes [rows, columns] into rows of ceil(columns * bits / 8) bytes: the portable layout, as quant/packing.py says. */
void mixdq_pack(const int8_t *codes, int64_t rows, int64_t columns, int bits, uint8_t *packed) {
    const int64_t bytes = (columns * bits + 7) / 8;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const uint8_t *from = (const uint8_t *)codes + row * columns;
        uint8_t *to = packed + row * bytes;
        for (int64_t i = 0; i < columns; i += 8) {
            const int64_t count = columns - i < 8 ? columns - i : 8, at = i / 8 * bits;
            /* What is stored beyond these codes' own bytes is overwritten by the next ones. */
            store_some(joined(load_some(from + i, columns - i, count), bits), to + at, bytes - at, (count * bits + 7) / 8);
        }
    }
}

/* The inverse of mixdq_pack. */
void mixdq_unpack(const uint8_t *packed, int64_t rows, int64_t columns, int bits, int8_t *codes) {
    const int64_t bytes = (columns * bits + 7) / 8;
    const uint64_t sign = 0x0101010101010101ull << (bits - 1), above = ~low_bits(bits);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const uint8_t *from = packed + row * bytes;
        uint8_t *to = (uint8_t *)codes + row * columns;
        for (int64_t i = 0; i < columns; i += 8) {
            const int64_t count = columns - i < 8 ? columns - i : 8, at = i / 8 * bits;
            uint64_t word = apart(load_some(from + at, bytes - at, (count * bits + 7) / 8), bits);
            /* A sign bit of 1 fills all bits above it: 0xff times the bit, kept where codes have none. */
            word |= ((word & sign) >> (bits - 1)) * 0xff & above;
            store_some(word, to + i, columns - i, count);
        }
    }
}

/* The sum of each row of codes [rows, columns]. */
void mixdq_row_sums(const int8_t *codes, int64_t rows, int64_t columns, int32_t *sums) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        int32_t sum = 0;
        for (int64_t i = 0; i < columns; i++) sum += codes[row * columns + i];
        sums[row] = sum;
    }
}

void mixdq_unpack_panel(const uint8_t *restrict packed, int bits, int64_t count, const int8_t *zero_points,
                        int8_t *restrict to) {
    const int64_t bytes = count * bits / 8;
    int8_t shift[NR * 4];
    const int8_t sign = (int8_t)(1 << (bits - 1));
    for (int j = 0; j < NR * 4; j++) shift[j] = (int8_t)(sign + (zero_points ? zero_points[j / 4] : 0));
    for (int64_t i = 0; i < count; i += NR * 4)
        for (int half = 0; half < 2; half++) {
            const int64_t first = i + half * 64, at = first * bits / 8;
            int8_t codes[64];
#ifdef __AVX512BW__
            if (bits == 4) {
                __m512i wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(packed + at)));
                wide = _mm512_or_si512(wide, _mm512_slli_epi16(wide, 4));
                _mm512_storeu_si512(codes, _mm512_and_si512(wide, _mm512_set1_epi8(0x0f)));
            } else if (bits == 2) {
                __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(packed + at)));
                wide = _mm512_or_si512(wide, _mm512_slli_epi32(wide, 12));
                wide = _mm512_or_si512(wide, _mm512_slli_epi32(wide, 6));
                _mm512_storeu_si512(codes, _mm512_and_si512(wide, _mm512_set1_epi8(0x03)));
            } else
#endif
                for (int j = 0; j < 8; j++) {
                    const int64_t here = at + j * bits;
                    const uint64_t word = apart(load_some(packed + here, bytes - here, bits), bits);
                    memcpy(codes + 8 * j, &word, 8);
                }
            /* (code ^ sign) - sign extends the sign. */
            for (int j = 0; j < 64; j++) to[first + j] = (int8_t)((codes[j] ^ sign) - shift[half * 64 + j]);
        }
}
