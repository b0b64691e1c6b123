/* A Linear or Conv2d layer in one call: its input becomes codes, or floats, and is multiplied. */
#include <stdlib.h>

#include "numbers.h"
#include "passes.h"
#include "weights.h"

enum { NOT_FINITE = 1, NO_MEMORY = 2 };

/* What a layer is, whatever its input. Pointers are to contiguous tensors, those marked * may be null; a matrix
 * [rows, in] is a picture of one line, seen through a window of one pixel. */
typedef struct {
    int64_t channels, columns, groups; /* in, out; of all groups */
    int64_t kernel[2], stride[2], padding[2], dilation[2];
    const uint8_t *panels;             /* [groups * panels of a group, bytes of a panel], see weights.h */
    const int8_t *zero_points;         /* * [groups * columns of full panels] */
    const int32_t *sums;               /* [columns], of the weight's codes less zero points */
    const float *scale, *bias;         /* [columns]; * bias */
    const float *x_scale;              /* * [1]; null where pictures, or pixels, have their own */
    const int32_t *x_zero_point;       /* * [1] */
    int32_t bits, low, high;           /* of the weight; least and greatest code of x, both 0 where x stays as it is */
    int32_t pixels_alone, dtype;       /* whether pixels have scales of their own, not pictures; of y */
} Layer;

static int64_t filled(int64_t channels) { return (channels + 3) / 4 * 4; }

/* Takes `bytes` of a buffer that grows as needed: a sum of sizes first, then addresses. */
static int64_t taken(int64_t *used, int64_t bytes) {
    const int64_t at = *used;
    *used += (bytes + 63) / 64 * 64;
    return at;
}

/* y [batch, out height, out width, columns] of x [batch, channels, height, width], whose strides are in elements and one of
 * whose channels' and width's is 1. Returns NOT_FINITE where NaN or infinity should become codes, NO_MEMORY where it ran
 * out. */
int mixdq_layer(const Layer *layer, const void *x, int dtype, int64_t batch, int64_t height, int64_t width,
                int64_t batch_stride, int64_t channel_stride, int64_t line_stride, int64_t pixel_stride, void *y,
                int threads) {
    const int floats = layer->low == layer->high, own = !floats && layer->x_scale == NULL;
    const int64_t *kernel = layer->kernel, *padding = layer->padding, *dilation = layer->dilation;
    const int64_t size = floats ? 4 : 1, pitch = filled(layer->channels), taps = kernel[0] * kernel[1];
    const int64_t lines = height + 2 * padding[0], line = (width + 2 * padding[1]) * pitch * size;
    const int64_t out_height = (lines - dilation[0] * (kernel[0] - 1) - 1) / layer->stride[0] + 1;
    const int64_t out_width = (width + 2 * padding[1] - dilation[1] * (kernel[1] - 1) - 1) / layer->stride[1] + 1;
    /* Where pixels stand alone, each is a picture. */
    const int64_t pictures = layer->pixels_alone ? width : batch, rows = layer->pixels_alone ? 1 : height;
    const int64_t columns = layer->pixels_alone ? 1 : width, apart = layer->pixels_alone ? pixel_stride : batch_stride;

    int64_t used = 0;
    /* The last channels of the last group may be read past their end, against weights of zero. */
    const int64_t room = batch * lines * line, codes_at = taken(&used, room + 4 * size);
    const int64_t taps_at = taken(&used, taps * 8), extremes_at = taken(&used, own ? 8 * pictures * rows : 0);
    const int64_t scales_at = taken(&used, own ? 4 * pictures : 0), zeros_at = taken(&used, own ? 4 * pictures : 0);
    char *buffer = aligned_alloc(64, used);
    if (buffer == NULL) return NO_MEMORY;
    char *codes = buffer + codes_at;
    memset(codes + room, 0, 4 * size);
    int64_t *offsets = (int64_t *)(buffer + taps_at);
    for (int64_t i = 0; i < taps; i++)
        offsets[i] = i / kernel[1] * dilation[0] * line + i % kernel[1] * dilation[1] * pitch * size;
    const float *scales = own ? (float *)(buffer + scales_at) : layer->x_scale;
    const int32_t *zero_points = own ? (int32_t *)(buffer + zeros_at) : layer->x_zero_point;
    if (own)
        mixdq_own_scales(x, dtype, pictures, layer->channels, rows, columns, apart, channel_stride, line_stride, pixel_stride,
                         layer->low, layer->high, (float *)(buffer + extremes_at), (float *)scales, (int32_t *)zero_points);
    int status = 0;
    if (mixdq_quantize(x, dtype, pictures, layer->channels, rows, columns, apart, channel_stride, line_stride, pixel_stride,
                       padding[0], padding[1], pitch, floats ? NULL : scales, zero_points, own, layer->low, layer->high, codes))
        status = NOT_FINITE;

    const int64_t out = layer->columns / layer->groups, in = layer->channels / layer->groups;
    const int64_t panels = (out + NR - 1) / NR, bytes = taps * filled(in) * NR * layer->bits / 8;
    for (int64_t g = 0; g < layer->groups && !status; g++) {
        const int8_t *of_group = layer->zero_points ? layer->zero_points + g * panels * NR : NULL;
        if (mixdq_product(codes + g * in * size, batch, out_height, out_width, lines * line, layer->stride[0] * line,
                          layer->stride[1] * pitch * size, offsets, taps, filled(in), layer->panels + g * panels * bytes,
                          layer->bits, of_group, out, layer->sums + g * out, layer->scale + g * out,
                          layer->bias ? layer->bias + g * out : NULL, floats ? NULL : zero_points, own ? scales : NULL,
                          !own ? 0 : layer->pixels_alone ? 1 : out_height * out_width,
                          (char *)y + g * out * (layer->dtype == FLOAT32 ? 4 : 2), layer->dtype, layer->columns, threads))
            status = NO_MEMORY;
    }
    free(buffer);
    return status;
}
