/* Integer products on CPUs, and the pass that makes their inputs.
 *
 *     y[row, n] = scale[n] * (sum_k x[row, k] * w[k, n] - correction[n]) + bias[n]
 *
 * x are unsigned bytes (a code plus 128), w signed ones; the sum is an exact int32 and correction[n] is
 * zero_point * sum_k w[k, n]. A convolution is the same product with k running over taps and channels: row and tap give
 * an address in the padded, channels-last input, so no patches are copied.
 *
 * Weights lie in panels of NR output channels: [k / 4][NR][4], as the dot-product instructions read them. Below 8 bits a
 * panel is one little-endian stream of codes in that order, unpacked into a thread's own buffer when its turn comes.
 *
 * Plain C with GCC's and clang's extensions; threads are OpenMP's where the compiler has it.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define VNNI 1
#endif

#define NR 32 /* output channels of a panel */
#define MR 14 /* rows of a tile: MR * NR int32 sums fill 28 of 32 registers */
#define NEAR_BYTES (512 * 1024) /* of unpacked weights that a thread goes on with at a time: a share of its second-level cache */

enum { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

/* What the library was compiled for: 1 where it has the dot-product instructions, 0 where it is plain C. */
int mixdq_has_vnni(void) {
#ifdef VNNI
    return 1;
#else
    return 0;
#endif
}

static inline float from_bfloat16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static inline uint16_t to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16); /* to nearest, ties to even */
}

/* ---- Activations to codes -------------------------------------------------------------------------------------- */

typedef struct {
    float scale, zero_point, low, high; /* low and high: the least and the greatest code */
} Grid;

static inline uint8_t code_of(float value, Grid grid) {
    float code = nearbyintf(value / grid.scale) + grid.zero_point;
    code = code < grid.low ? grid.low : code;
    code = code > grid.high ? grid.high : code;
    return (uint8_t)((int32_t)code + 128);
}

/* Returns nonzero where a value is NaN or infinite. `step` is the distance of `to`'s elements. */
#define DEFINE_RUN(NAME, TYPE, READ)                                                                               \
    static inline int NAME(const TYPE *restrict from, int64_t count, Grid grid, uint8_t *restrict to, int64_t step) { \
        int bad = 0;                                                                                               \
        if (step == 1) {                                                                                           \
            for (int64_t i = 0; i < count; i++) {                                                                  \
                float value = READ(from[i]);                                                                       \
                bad |= !(fabsf(value) <= 3.402823466e38f);                                                         \
                to[i] = code_of(value, grid);                                                                      \
            }                                                                                                      \
        } else {                                                                                                   \
            for (int64_t i = 0; i < count; i++) {                                                                  \
                float value = READ(from[i]);                                                                       \
                bad |= !(fabsf(value) <= 3.402823466e38f);                                                         \
                to[i * step] = code_of(value, grid);                                                               \
            }                                                                                                      \
        }                                                                                                          \
        return bad;                                                                                                \
    }

#define AS_IT_IS(value) (value)
#define AS_FLOAT(value) ((float)(value))
DEFINE_RUN(run_float32, float, AS_IT_IS)
DEFINE_RUN(run_bfloat16, uint16_t, from_bfloat16)
DEFINE_RUN(run_float16, _Float16, AS_FLOAT)

static inline int run(int dtype, const char *from, int64_t count, Grid grid, uint8_t *to, int64_t step) {
    switch (dtype) {
    case FLOAT32: return run_float32((const float *)from, count, grid, to, step);
    case BFLOAT16: return run_bfloat16((const uint16_t *)from, count, grid, to, step);
    default: return run_float16((const _Float16 *)from, count, grid, to, step);
    }
}

/* Codes of x [batch, channels, height, width], strides in elements, one of channels' and width's being 1, as bytes
 * [batch, height + 2 pad_h, width + 2 pad_w, pitch] with borders of the zero point's code and unused channels of 0.
 * A matrix [rows, in] is a picture of one line. Returns nonzero where x holds NaN or infinity. */
int mixdq_quantize(const void *x, int dtype, int64_t batch, int64_t channels, int64_t height, int64_t width,
                   int64_t batch_stride, int64_t channel_stride, int64_t line_stride, int64_t pixel_stride,
                   int64_t pad_h, int64_t pad_w, int64_t pitch, float scale, int32_t zero_point, int32_t low,
                   int32_t high, uint8_t *codes) {
    const Grid grid = {scale, (float)zero_point, (float)low, (float)high};
    const int64_t size = dtype == FLOAT32 ? 4 : 2, lines = height + 2 * pad_h, line = (width + 2 * pad_w) * pitch;
    /* A matrix is one long line: it is cut into pieces, so that threads share it. */
    const int64_t piece = lines == 1 && pad_w == 0 ? 64 : width, pieces = width ? (width + piece - 1) / piece : 1;
    int bad = 0;
#pragma omp parallel for collapse(2) reduction(| : bad) schedule(static)
    for (int64_t row = 0; row < batch * lines; row++)
        for (int64_t part = 0; part < pieces; part++) {
            const int64_t n = row / lines, h = row % lines - pad_h, first = part * piece;
            const int64_t count = first + piece < width ? piece : width - first;
            uint8_t *out = codes + row * line;
            if (h < 0 || h >= height) {
                memset(out, zero_point + 128, line);
                continue;
            }
            if (pad_w) {
                memset(out, zero_point + 128, pad_w * pitch);
                memset(out + (pad_w + width) * pitch, zero_point + 128, pad_w * pitch);
            }
            out += (pad_w + first) * pitch;
            const char *in = (const char *)x + size * (n * batch_stride + h * line_stride + first * pixel_stride);
            if (channel_stride == 1 && pixel_stride == channels && pitch == channels) {
                bad |= run(dtype, in, count * channels, grid, out, 1);
            } else if (channel_stride == 1) {
                for (int64_t w = 0; w < count; w++)
                    bad |= run(dtype, in + size * w * pixel_stride, channels, grid, out + w * pitch, 1);
            } else {
                for (int64_t c = 0; c < channels; c++)
                    bad |= run(dtype, in + size * c * channel_stride, count, grid, out + c, pitch);
            }
            if (pitch > channels)
                for (int64_t w = 0; w < count; w++) memset(out + w * pitch + channels, 0, pitch - channels);
        }
    return bad;
}

/* ---- Weights ---------------------------------------------------------------------------------------------------- */

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

/* Unpacks the `count` codes of a panel, a multiple of 128, into signed bytes less the zero points [NR] of its columns. */
static void unpack_panel(const uint8_t *restrict packed, int bits, int64_t count, const int8_t *zero_points,
                         int8_t *restrict to) {
    const int64_t bytes = count * bits / 8;
    int8_t shift[NR * 4];
    const int8_t sign = (int8_t)(1 << (bits - 1));
    for (int j = 0; j < NR * 4; j++) shift[j] = (int8_t)(sign + (zero_points ? zero_points[j / 4] : 0));
    for (int64_t i = 0; i < count; i += NR * 4)
        for (int half = 0; half < 2; half++) {
            const int64_t first = i + half * 64, at = first * bits / 8;
            int8_t codes[64];
#ifdef VNNI
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

/* ---- Products ---------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t taps, depth;        /* sums run over taps * depth bytes, depth a multiple of 4 */
    const int64_t *tap_offsets; /* bytes from a row's address to each tap's */
    int64_t pitch;              /* bytes from a row's address to the next one's */
    int64_t columns;            /* of this panel that exist: 1 to NR */
    const int32_t *correction;
    const float *scale, *bias; /* bias may be null */
    int dtype;                 /* of y */
    int64_t row_stride;        /* of y, in elements */
} Product;

static inline void store(const Product *product, int64_t row, int64_t column, float value, void *y) {
    const int64_t at = row * product->row_stride + column;
    switch (product->dtype) {
    case FLOAT32: ((float *)y)[at] = value; break;
    case BFLOAT16: ((uint16_t *)y)[at] = to_bfloat16(value); break;
    default: ((_Float16 *)y)[at] = (_Float16)value;
    }
}

#ifdef VNNI

static inline __attribute__((always_inline)) void finish(const Product *product, __m512i sum, int64_t row, int half,
                                                         void *y) {
    const int64_t first = 16 * half, left = product->columns - first;
    if (left <= 0) return;
    const __mmask16 mask = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
    sum = _mm512_sub_epi32(sum, _mm512_maskz_loadu_epi32(mask, product->correction + first));
    __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_maskz_loadu_ps(mask, product->scale + first));
    if (product->bias) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, product->bias + first));
    const int64_t at = row * product->row_stride + first;
    if (product->dtype == FLOAT32) {
        _mm512_mask_storeu_ps((float *)y + at, mask, value);
    } else if (product->dtype == FLOAT16) {
        _mm256_mask_storeu_epi16((uint16_t *)y + at, mask, _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
    } else {
        /* To nearest, ties to even; values are finite or infinite, for NaN cannot come of integers. */
        const __m512i bits = _mm512_castps_si512(value);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        _mm256_mask_storeu_epi16((uint16_t *)y + at, mask, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
    }
}

static inline __attribute__((always_inline)) __m512i four(const uint8_t *x) {
    int32_t word;
    memcpy(&word, x, 4);
    return _mm512_set1_epi32(word);
}

/* `rows` is a constant wherever this is called, so every loop over it unrolls and the sums stay in registers. Rows are
 * reached from four addresses and a scaled pitch, for sixteen pointers would not fit. */
static inline __attribute__((always_inline)) void tile(const int rows, const Product *product, const uint8_t *x,
                                                       const int8_t *panel, void *y) {
    __m512i sums[MR][2];
    const int64_t pitch = product->pitch;
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = _mm512_setzero_si512();
    for (int64_t t = 0; t < product->taps; t++) {
        const uint8_t *at0 = x + product->tap_offsets[t], *at3 = at0 + 3 * pitch;
        const uint8_t *at5 = at0 + 5 * pitch, *at10 = at0 + 10 * pitch;
        for (int64_t k = 0; k < product->depth; k += 4, panel += 4 * NR) {
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
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
        finish(product, sums[i][0], i, 0, y);
        finish(product, sums[i][1], i, 1, y);
    }
}

#else

static void tile(const int rows, const Product *product, const uint8_t *x, const int8_t *panel, void *y) {
    for (int i = 0; i < rows; i++, x += product->pitch) {
        int32_t sums[NR] = {0};
        const int8_t *w = panel;
        for (int64_t t = 0; t < product->taps; t++)
            for (int64_t k = 0; k < product->depth; k += 4, w += 4 * NR) {
                const uint8_t *bytes = x + product->tap_offsets[t] + k;
                const int32_t a = bytes[0], b = bytes[1], c = bytes[2], d = bytes[3];
                for (int j = 0; j < NR; j++)
                    sums[j] += a * w[4 * j] + b * w[4 * j + 1] + c * w[4 * j + 2] + d * w[4 * j + 3];
            }
        for (int64_t j = 0; j < product->columns; j++) {
            float value = (float)(sums[j] - product->correction[j]) * product->scale[j];
            store(product, i, j, product->bias ? value + product->bias[j] : value, y);
        }
    }
}

#endif

static void tile_of(int64_t rows, const Product *product, const uint8_t *x, const int8_t *panel, void *y) {
    switch (rows) {
#define CASE(ROWS) \
    case ROWS: tile(ROWS, product, x, panel, y); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7)
        CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#undef CASE
    }
}

/* y [batch, height, width, columns] of bytes x whose rows lie `pitch` apart along the width, `line` along the height and
 * `picture` along the batch (in bytes, all of them the output's steps). `panels` has ceil(columns / NR) panels, each of
 * taps * depth * NR codes of `bits` bits. `zero_points` [ceil(columns / NR) * NR] belong to the weight and are null at 8
 * bits. Returns nonzero where memory ran out. */
int mixdq_product(const uint8_t *x, int64_t batch, int64_t height, int64_t width, int64_t picture, int64_t line,
                  int64_t pitch, const int64_t *tap_offsets, int64_t taps, int64_t depth, const uint8_t *panels,
                  int bits, const int8_t *zero_points, int64_t columns, const int32_t *correction, const float *scale,
                  const float *bias, void *y, int dtype, int64_t row_stride, int threads) {
    const int64_t codes = taps * depth * NR, bytes = codes * bits / 8, size = dtype == FLOAT32 ? 4 : 2;
    const int64_t num_panels = (columns + NR - 1) / NR, lines = batch * height;
    /* Tiles of one line, as even as they come. */
    const int64_t per_line = (width + MR - 1) / MR, tiles = lines * per_line;
    if (tiles == 0) return 0;
    /* A tile meets several panels while it is in the nearest cache; they stay in the next one. */
    int64_t together = NEAR_BYTES / codes;
    together = together > num_panels / (2 * threads) ? num_panels / (2 * threads) : together;
    together = together < 1 ? 1 : together;
    const int64_t bundles = (num_panels + together - 1) / together;
    /* Rows are shared out too where there are too few bundles for all threads. */
    int64_t shares = (2 * threads + bundles - 1) / bundles;
    shares = threads == 1 || shares < 1 ? 1 : shares > tiles ? tiles : shares;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        int8_t *buffer = bits == 8 ? NULL : aligned_alloc(64, together * codes);
        failed = bits != 8 && buffer == NULL;
        int64_t held = -1;
#pragma omp for collapse(2) schedule(dynamic, 1)
        for (int64_t bundle = 0; bundle < bundles; bundle++)
            for (int64_t share = 0; share < shares; share++) {
                if (failed) continue;
                const int64_t first = bundle * together, last = first + together < num_panels ? first + together : num_panels;
                const int8_t *ready = (const int8_t *)panels + first * bytes;
                if (bits != 8) {
                    for (int64_t p = first; p < last && held != bundle; p++)
                        unpack_panel(panels + p * bytes, bits, codes, zero_points ? zero_points + p * NR : NULL,
                               buffer + (p - first) * codes);
                    held = bundle;
                    ready = buffer;
                }
                for (int64_t at = tiles * share / shares; at < tiles * (share + 1) / shares; at++) {
                    const int64_t row = at / per_line, part = at % per_line;
                    const int64_t from = width * part / per_line, to = width * (part + 1) / per_line;
                    const uint8_t *in = x + row / height * picture + row % height * line + from * pitch;
                    for (int64_t p = first; p < last; p++) {
                        const int64_t column = p * NR;
                        const Product product = {
                            .taps = taps, .depth = depth, .tap_offsets = tap_offsets, .pitch = pitch,
                            .columns = columns - column < NR ? columns - column : NR,
                            .correction = correction + column, .scale = scale + column,
                            .bias = bias ? bias + column : NULL, .dtype = dtype, .row_stride = row_stride,
                        };
                        char *out = (char *)y + size * ((row * width + from) * row_stride + column);
                        tile_of(to - from, &product, in, ready + (p - first) * codes, out);
                    }
                }
            }
        free(buffer);
    }
    return failed;
}
