/* Gated activations in one pass, computed in float32. */
#include "floats.h"
#include "runs.h"

#define BLOCK 512

/* x * Phi(x), the Gaussian error linear unit, off by at most 2e-7 * |x|: erf by formula 7.1.26 of Abramowitz and Stegun. */
static inline Vector gelu(Vector x) {
    const Whole positive = (Whole)x & 0x7fffffff;
    const Vector z = (Vector)positive * splat(0.70710678f);
    const Vector t = splat(1.0f) / fused(z, splat(0.3275911f), splat(1.0f));
    Vector tail = splat(1.061405429f);
    tail = fused(tail, t, splat(-1.453152027f));
    tail = fused(tail, t, splat(1.421413741f));
    tail = fused(tail, t, splat(-0.284496736f));
    tail = fused(tail, t, splat(0.254829592f));
    /* Half of what is beyond |x| on one side. */
    const Vector beyond = splat(0.5f) * tail * t * power_of_two(z * z * splat(-1.44269504f));
    const Whole negative = x < splat(0.0f);
    const Vector below = splat(1.0f) - beyond;
    return x * (Vector)(((Whole)beyond & negative) | ((Whole)below & ~negative));
}

/* y [rows, width] = x[:, :width] * gelu(x[:, width:]) of x [rows, 2 * width], both contiguous. */
void mixdq_geglu(const void *x, int dtype, int64_t rows, int64_t width, void *y, int threads) {
    const int64_t blocks = (width + BLOCK - 1) / BLOCK;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t first = block * BLOCK, count = width - first < BLOCK ? width - first : BLOCK;
            float values[BLOCK], gates[BLOCK];
            widen(x, dtype, row * 2 * width + first, count, values);
            widen(x, dtype, (row * 2 + 1) * width + first, count, gates);
            for (int64_t i = count; i % WIDTH; i++) values[i] = gates[i] = 0.0f;
            for (int64_t i = 0; i < count; i += WIDTH) store(values + i, load(values + i) * gelu(load(gates + i)));
            narrow(values, count, y, dtype, row * width + first);
        }
}
