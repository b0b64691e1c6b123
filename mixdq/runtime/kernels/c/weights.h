/* Panels: a weight's codes in the order in which the products read them. */
#ifndef MIXDQ_WEIGHTS_H
#define MIXDQ_WEIGHTS_H

#include <stdint.h>

/* Output channels of a panel. Its codes lie as [k / 4][NR][4]: four at a time, as dot-product instructions read them.
 * Below 8 bits a panel is one little-endian stream of codes in that order. */
#define NR 32

/* Unpacks the `count` codes of a panel, a multiple of 4 * NR, into signed bytes less the zero points [NR] of its columns. */
void mixdq_unpack_panel(const uint8_t *packed, int bits, int64_t count, const int8_t *zero_points, int8_t *to);

#endif
