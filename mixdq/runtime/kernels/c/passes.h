/* The passes that a layer is made of; what they do stands with them. */
#ifndef MIXDQ_PASSES_H
#define MIXDQ_PASSES_H

#include <stdint.h>

int mixdq_own_scales(const void *x, int dtype, int64_t batch, int64_t channels, int64_t height, int64_t width,
                     int64_t batch_stride, int64_t channel_stride, int64_t line_stride, int64_t pixel_stride,
                     int32_t low, int32_t high, float *extremes, float *scales, int32_t *zero_points);

int mixdq_quantize(const void *x, int dtype, int64_t batch, int64_t channels, int64_t height, int64_t width,
                   int64_t batch_stride, int64_t channel_stride, int64_t line_stride, int64_t pixel_stride,
                   int64_t pad_h, int64_t pad_w, int64_t pitch, const float *scales, const int32_t *zero_points,
                   int own, int32_t low, int32_t high, void *to);

int mixdq_product(const void *x, int64_t batch, int64_t height, int64_t width, int64_t picture, int64_t line,
                  int64_t pitch, const int64_t *tap_offsets, int64_t taps, int64_t depth, const uint8_t *panels,
                  int bits, const int8_t *zero_points, int64_t columns, const int32_t *sums, const float *scale,
                  const float *bias, const int32_t *x_zero_points, const float *row_scales, int64_t rows_each, void *y,
                  int dtype, int64_t row_stride, int threads);

#endif
