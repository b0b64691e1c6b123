/* Activations to codes, or to floats: one pass that quantizes, brings channels together and pads, and one before it that
 * finds the scale of each picture where it has its own. */
#include <float.h>
#include <math.h>

#include "passes.h"
#include "runs.h"

typedef struct {
    float scale, inverse;        /* inverse: 0 where a division must do */
    float limit;                 /* beyond it, either way, every value has the greatest or the least code */
    float zero_point, low, high; /* low and high: the least and the greatest code */
} Grid;

/* value / scale, rounded as a division is, without its price. With the inverse rounded to nearest and a fused
 * multiply-add, one correction gives the very same float (Markstein, IBM Journal of Research and Development 34, 1990). */
static inline float quotient(float value, Grid grid) {
#if defined(__FMA__) || defined(__aarch64__)
    if (grid.inverse == 0.0f) return value / grid.scale;
    value = value < -grid.limit ? -grid.limit : value;
    value = value > grid.limit ? grid.limit : value;
    const float near = value * grid.inverse;
    return __builtin_fmaf(__builtin_fmaf(-near, grid.scale, value), grid.inverse, near);
#else
    return value / grid.scale;
#endif
}

static inline uint8_t code_of(float value, Grid grid) {
    float code = nearbyintf(quotient(value, grid)) + grid.zero_point;
    code = code < grid.low ? grid.low : code;
    code = code > grid.high ? grid.high : code;
    return (uint8_t)((int32_t)code + 128);
}

#define BLOCK 256 /* numbers that are widened at a time */

/* Codes of `count` numbers from element `at` of x on, `step` apart. Returns nonzero where one is NaN or infinite. */
static inline int run(const void *x, int dtype, int64_t at, int64_t count, Grid grid, uint8_t *restrict to, int64_t step) {
    float values[BLOCK];
    int bad = 0;
    for (int64_t first = 0; first < count; first += BLOCK) {
        const int64_t here = count - first < BLOCK ? count - first : BLOCK;
        widen(x, dtype, at + first, here, values);
        for (int64_t i = 0; i < here; i++) bad |= !(fabsf(values[i]) <= FLT_MAX);
        uint8_t *restrict out = to + first * step;
        if (step == 1)
            for (int64_t i = 0; i < here; i++) out[i] = code_of(values[i], grid);
        else
            for (int64_t i = 0; i < here; i++) out[i * step] = code_of(values[i], grid);
    }
    return bad;
}

/* The same numbers as floats. */
static inline void floats(const void *x, int dtype, int64_t at, int64_t count, float *restrict to, int64_t step) {
    float values[BLOCK];
    for (int64_t first = 0; first < count; first += BLOCK) {
        const int64_t here = count - first < BLOCK ? count - first : BLOCK;
        widen(x, dtype, at + first, here, values);
        for (int64_t i = 0; i < here; i++) to[(first + i) * step] = values[i];
    }
}

static inline int put(const void *x, int dtype, int64_t at, int64_t count, const Grid *grid, void *to, int64_t step) {
    if (grid) return run(x, dtype, at, count, *grid, to, step);
    floats(x, dtype, at, count, to, step);
    return 0;
}

#define LANES 16

typedef struct {
    float least[LANES], greatest[LANES];
} Extremes;

/* Widens `extremes` by `count` numbers from element `at` of x on. */
static inline void meet(const void *x, int dtype, int64_t at, int64_t count, Extremes *extremes) {
    float values[BLOCK + LANES];
    for (int64_t first = 0; first < count; first += BLOCK) {
        const int64_t here = count - first < BLOCK ? count - first : BLOCK;
        widen(x, dtype, at + first, here, values);
        memset(values + here, 0, LANES * sizeof(float)); /* zero is in every range */
        for (int64_t i = 0; i < here; i += LANES)
            for (int j = 0; j < LANES; j++) {
                const float value = values[i + j];
                extremes->least[j] = value < extremes->least[j] ? value : extremes->least[j];
                extremes->greatest[j] = value > extremes->greatest[j] ? value : extremes->greatest[j];
            }
    }
}

/* Scale and zero point of each picture of x, as mixdq.quant.qparams.row_qparams makes them, operation by operation; x as
 * mixdq_quantize has it, `extremes` [batch, height, 2] is room to work in. NaN and infinity are found by the other pass. */
int mixdq_own_scales(const void *x, int dtype, int64_t batch, int64_t channels, int64_t height, int64_t width,
                     int64_t batch_stride, int64_t channel_stride, int64_t line_stride, int64_t pixel_stride,
                     int32_t low, int32_t high, float *extremes, float *scales, int32_t *zero_points) {
    const int together = channel_stride == 1 && pixel_stride == channels;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t n = 0; n < batch; n++)
        for (int64_t h = 0; h < height; h++) {
            Extremes lanes = {{0}, {0}};
            const int64_t at = n * batch_stride + h * line_stride;
            if (together) {
                meet(x, dtype, at, width * channels, &lanes);
            } else if (channel_stride == 1) {
                for (int64_t w = 0; w < width; w++) meet(x, dtype, at + w * pixel_stride, channels, &lanes);
            } else {
                for (int64_t c = 0; c < channels; c++) meet(x, dtype, at + c * channel_stride, width, &lanes);
            }
            float *of_line = extremes + 2 * (n * height + h);
            of_line[0] = of_line[1] = 0.0f;
            for (int j = 0; j < LANES; j++) {
                if (lanes.least[j] < of_line[0]) of_line[0] = lanes.least[j];
                if (lanes.greatest[j] > of_line[1]) of_line[1] = lanes.greatest[j];
            }
        }
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < batch; n++) {
        double least = 0.0, greatest = 0.0;
        for (const float *line = extremes + 2 * n * height; line < extremes + 2 * (n + 1) * height; line += 2) {
            if (line[0] < least) least = line[0];
            if (line[1] > greatest) greatest = line[1];
        }
        double scale = (greatest - least) / (high - low);
        scale = scale == 0.0 ? 1.0 : scale < FLT_MIN ? FLT_MIN : scale > FLT_MAX ? FLT_MAX : scale;
        scales[n] = (float)scale;
        const double code = low - nearbyint(least / scales[n]);
        zero_points[n] = (int32_t)(code < low ? low : code > high ? high : code);
    }
    return 0;
}

/* Codes of x [batch, channels, height, width], strides in elements, one of channels' and width's being 1, as bytes
 * [batch, height + 2 pad_h, width + 2 pad_w, pitch] with borders of the zero point's code and unused channels of 0; or,
 * where `scales` is null, x itself as float32 in that order, with zeros there.
 * A matrix [rows, in] is a picture of one line, or, where each row has a scale, as many pictures of one pixel.
 * `scales` and `zero_points` have one element, or one for each picture where `own` is nonzero.
 * Returns nonzero where NaN or infinity should become a code. */
int mixdq_quantize(const void *x, int dtype, int64_t batch, int64_t channels, int64_t height, int64_t width,
                   int64_t batch_stride, int64_t channel_stride, int64_t line_stride, int64_t pixel_stride,
                   int64_t pad_h, int64_t pad_w, int64_t pitch, const float *scales, const int32_t *zero_points,
                   int own, int32_t low, int32_t high, void *to) {
    const int64_t size = scales ? 1 : 4, pixel = pitch * size;
    const int64_t lines = height + 2 * pad_h, line = (width + 2 * pad_w) * pixel;
    /* A matrix is one long line: it is cut into pieces, so that threads share it. */
    const int64_t piece = lines == 1 && pad_w == 0 ? 64 : width, pieces = width ? (width + piece - 1) / piece : 1;
    int bad = 0;
#pragma omp parallel for collapse(2) reduction(| : bad) schedule(static)
    for (int64_t row = 0; row < batch * lines; row++)
        for (int64_t part = 0; part < pieces; part++) {
            const int64_t n = row / lines, h = row % lines - pad_h, first = part * piece;
            const int64_t count = first + piece < width ? piece : width - first;
            const int32_t zero_point = scales ? zero_points[own ? n : 0] : 0;
            const float scale = scales ? scales[own ? n : 0] : 1.0f;
            const int usual = scale > 0x1p-100f && scale < 0x1p100f; /* so that nothing over- or underflows */
            const Grid grid = {scale, usual ? 1.0f / scale : 0.0f, 1024.0f * scale, (float)zero_point, (float)low, (float)high};
            const Grid *codes = scales ? &grid : NULL;
            const int border = scales ? zero_point + 128 : 0;
            char *out = (char *)to + row * line;
            if (h < 0 || h >= height) {
                memset(out, border, line);
                continue;
            }
            if (pad_w) {
                memset(out, border, pad_w * pixel);
                memset(out + (pad_w + width) * pixel, border, pad_w * pixel);
            }
            out += (pad_w + first) * pixel;
            const int64_t at = n * batch_stride + h * line_stride + first * pixel_stride;
            if (channel_stride == 1 && pixel_stride == channels && pitch == channels) {
                bad |= put(x, dtype, at, count * channels, codes, out, 1);
            } else if (channel_stride == 1) {
                for (int64_t w = 0; w < count; w++)
                    bad |= put(x, dtype, at + w * pixel_stride, channels, codes, out + w * pixel, 1);
            } else {
                for (int64_t c = 0; c < channels; c++)
                    bad |= put(x, dtype, at + c * channel_stride, count, codes, out + c * size, pitch);
            }
            if (pitch > channels)
                for (int64_t w = 0; w < count; w++) memset(out + w * pixel + channels * size, 0, (pitch - channels) * size);
        }
    return bad;
}
