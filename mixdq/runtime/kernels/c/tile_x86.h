/* x86 without AVX512-VNNI: dot products of AVX-VNNI, else products of 16 bits in the widest vectors there are.
 *
 * Products of unsigned and signed bytes that add up in 16 bits saturate, so each byte is widened, and a pair of products
 * adds up in 32 bits. Only codes of at most 4 bits leave room: |w| <= 15, so that FEW pairs are at most 4 * 2 * 255 * 15.
 */
#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
#define MR 6
#define LANES 8
#elif defined(__AVX512BW__)
#define ARITHMETIC "AVX512 products of 16 bits"
#define MR 6
#define LANES 16
#define NAMED(OPERATION) _mm512_##OPERATION
#define AND _mm512_and_si512
#elif defined(__AVX2__)
#define ARITHMETIC "AVX2 products of 16 bits"
#define MR 4
#define LANES 8
#define NAMED(OPERATION) _mm256_##OPERATION
#define AND _mm256_and_si256
#else
#define ARITHMETIC "SSE2 products of 16 bits"
#define MR 4
#define LANES 4
#define NAMED(OPERATION) _mm_##OPERATION
#define AND _mm_and_si128
#endif

#include "epilogue.h"

/* Sums of a vector's columns. */
#if LANES == 16
typedef __m512i Sums;
#elif LANES == 8
typedef __m256i Sums;
#else
typedef __m128i Sums;
#endif

#ifndef NAMED
#define ARITHMETIC "AVX-VNNI dot products"
typedef Sums Fours; /* four bytes a column */

static inline __attribute__((always_inline)) Fours fours_of_x(int32_t word) { return _mm256_set1_epi32(word); }

static inline __attribute__((always_inline)) Fours fours_of_w(Sums codes) { return codes; }

static inline __attribute__((always_inline)) Sums add_dot(Sums sums, Fours x, Fours w) {
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sums, x, w);
#else
    return _mm256_dpbusd_epi32(sums, x, w);
#endif
}

#else
typedef struct {
    Sums even, odd; /* the first and third byte of each column in 16 bits, the second and fourth */
} Fours;

static inline __attribute__((always_inline)) Fours fours_of_x(int32_t word) {
    const Sums bytes = NAMED(set1_epi32)(word);
    return (Fours){AND(bytes, NAMED(set1_epi32)(0x00ff00ff)), NAMED(srli_epi16)(bytes, 8)};
}

static inline __attribute__((always_inline)) Fours fours_of_w(Sums codes) {
    return (Fours){NAMED(srai_epi16)(NAMED(slli_epi16)(codes, 8), 8), NAMED(srai_epi16)(codes, 8)};
}

static inline __attribute__((always_inline)) Sums add_dot(Sums sums, Fours x, Fours w) {
    const Sums both = NAMED(add_epi32)(NAMED(madd_epi16)(x.even, w.even), NAMED(madd_epi16)(x.odd, w.odd));
    return NAMED(add_epi32)(sums, both);
}
#endif

static inline __attribute__((always_inline)) Fours four_bytes(const uint8_t *x) {
    int32_t word;
    memcpy(&word, x, 4);
    return fours_of_x(word);
}

static inline __attribute__((always_inline)) Fours four_codes(const int8_t *panel) {
    Sums codes;
    memcpy(&codes, panel, sizeof codes);
    return fours_of_w(codes);
}

/* Adds up `vectors` vectors of columns, from `first` on: so many that the sums stay in registers. */
static inline __attribute__((always_inline)) void add_columns(const int rows, const int vectors, const Tile *tile,
                                                              const uint8_t *x, const int8_t *panel, int32_t (*to)[NR]) {
    Sums sums[MR][NR / LANES];
    const int64_t pitch = tile->pitch;
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) sums[i][v] = (Sums){0};
    for (int64_t t = 0; t < tile->taps; t++) {
        const uint8_t *at0 = x + tile->tap_offsets[t], *at3 = at0 + 3 * pitch;
        for (int64_t k = 0; k < tile->depth; k += 4, panel += 4 * NR) {
            Fours w[NR / LANES];
            for (int v = 0; v < vectors; v++) w[v] = four_codes(panel + 4 * LANES * v);
#define ROW(I, ADDRESS)                                                                     \
    if (rows > I) {                                                                         \
        const Fours bytes = four_bytes((ADDRESS) + k);                                      \
        for (int v = 0; v < vectors; v++) sums[I][v] = add_dot(sums[I][v], bytes, w[v]);    \
    }
            ROW(0, at0)
            ROW(1, at0 + pitch)
            ROW(2, at0 + 2 * pitch)
            ROW(3, at3)
#if MR > 4
            ROW(4, at3 + pitch)
            ROW(5, at3 + 2 * pitch)
#endif
#undef ROW
        }
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) memcpy(&to[i][LANES * v], &sums[i][v], sizeof(Sums));
}

#if defined(NAMED) && defined(__AVX2__)
#define FEW 4

/* As add_columns, for codes of at most 4 bits. */
static inline __attribute__((always_inline)) void add_few(const int rows, const int vectors, const Tile *tile,
                                                          const uint8_t *x, const int8_t *panel, int32_t (*to)[NR]) {
    Sums sums[MR][NR / LANES];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) sums[i][v] = (Sums){0};
    for (int64_t t = 0; t < tile->taps; t++)
        for (int64_t k = 0; k < tile->depth;) {
            const int64_t end = tile->depth - k < 4 * FEW ? tile->depth : k + 4 * FEW;
            Sums pairs[MR][NR / LANES];
            for (int i = 0; i < rows; i++)
                for (int v = 0; v < vectors; v++) pairs[i][v] = (Sums){0};
            for (; k < end; k += 4, panel += 4 * NR)
                for (int i = 0; i < rows; i++) {
                    int32_t word;
                    memcpy(&word, x + tile->tap_offsets[t] + i * tile->pitch + k, 4);
                    const Sums bytes = NAMED(set1_epi32)(word);
                    for (int v = 0; v < vectors; v++) {
                        Sums w;
                        memcpy(&w, panel + 4 * LANES * v, sizeof w);
                        pairs[i][v] = NAMED(add_epi16)(pairs[i][v], NAMED(maddubs_epi16)(bytes, w));
                    }
                }
            for (int i = 0; i < rows; i++)
                for (int v = 0; v < vectors; v++)
                    sums[i][v] = NAMED(add_epi32)(sums[i][v], NAMED(madd_epi16)(pairs[i][v], NAMED(set1_epi16)(1)));
        }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) memcpy(&to[i][LANES * v], &sums[i][v], sizeof(Sums));
}
#endif

static inline __attribute__((always_inline)) void mixdq_tile(const int rows, const Tile *tile, const uint8_t *x,
                                                             const int8_t *panel, void *y) {
    const int most = 2 * rows <= MR ? 4 : 2, vectors = most * LANES < NR ? most : NR / LANES;
    int32_t sums[MR][NR];
    for (int first = 0; first < tile->columns; first += vectors * LANES)
#if defined(FEW)
        if (tile->bits && tile->bits <= 4)
            add_few(rows, vectors, tile, x, panel + 4 * first, (int32_t(*)[NR])&sums[0][first]);
        else
#endif
            add_columns(rows, vectors, tile, x, panel + 4 * first, (int32_t(*)[NR])&sums[0][first]);
    finish(rows, tile, sums, y);
}
