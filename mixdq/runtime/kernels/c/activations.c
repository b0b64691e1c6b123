/* Activations to codes: one pass that quantizes, brings channels together and pads. */
#include <math.h>

#include "numbers.h"

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
 * A matrix [rows, in] is a picture of one line, or, where each row has a scale, as many pictures of one pixel.
 * `scales` and `zero_points` have one element, or one for each picture where `own` is nonzero.
 * Returns nonzero where x holds NaN or infinity. */
int mixdq_quantize(const void *x, int dtype, int64_t batch, int64_t channels, int64_t height, int64_t width,
                   int64_t batch_stride, int64_t channel_stride, int64_t line_stride, int64_t pixel_stride,
                   int64_t pad_h, int64_t pad_w, int64_t pitch, const float *scales, const int32_t *zero_points,
                   int own, int32_t low, int32_t high, uint8_t *codes) {
    const int64_t size = dtype == FLOAT32 ? 4 : 2, lines = height + 2 * pad_h, line = (width + 2 * pad_w) * pitch;
    /* A matrix is one long line: it is cut into pieces, so that threads share it. */
    const int64_t piece = lines == 1 && pad_w == 0 ? 64 : width, pieces = width ? (width + piece - 1) / piece : 1;
    int bad = 0;
#pragma omp parallel for collapse(2) reduction(| : bad) schedule(static)
    for (int64_t row = 0; row < batch * lines; row++)
        for (int64_t part = 0; part < pieces; part++) {
            const int64_t n = row / lines, h = row % lines - pad_h, first = part * piece;
            const int64_t count = first + piece < width ? piece : width - first;
            const int32_t zero_point = zero_points[own ? n : 0];
            const Grid grid = {scales[own ? n : 0], (float)zero_point, (float)low, (float)high};
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
