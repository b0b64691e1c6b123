/* Scaled-dot-product attention in float32, whatever the tensors' dtype: no scores in memory beyond a tile's.
 *
 * A thread brings a head's keys and values into panels, and keeps them while it works on tiles of its queries. Keys come
 * in blocks; the greatest score so far decides by how much earlier sums are scaled down (Milakov and Gimelshein,
 * arXiv 1805.02867; Dao et al., arXiv 2205.14135).
 */
#include <math.h>
#include <stdlib.h>

#include "floats.h"
#include "runs.h"
#include "sharing.h"

#define BLOCK 512 /* keys at a time: a tile's scores stay in the nearest cache */
#define PITCH (BLOCK + 16) /* of a row of scores: at a power of two, all rows would want the same few lines of the cache */

typedef struct {
    const char *data;
    int dtype;
    int64_t batch_stride, token_stride; /* in elements */
} Tokens;

#define LOG2_E 1.44269504f
#define PARTS 6 /* of a thread's buffer */
#define AHEAD 8 /* tokens: a head's parts of them lie far apart, where no processor looks ahead by itself */

/* `count` elements of a token of a head as float32. */
static inline void bring(const Tokens *from, int64_t batch, int64_t token, int64_t first, int64_t count, float *to) {
    const int64_t at = batch * from->batch_stride + token * from->token_stride + first;
    const int64_t size = from->dtype == FLOAT32 ? 4 : 2;
    const char *later = from->data + (at + AHEAD * from->token_stride) * size;
    for (int64_t i = 0; i < count * size; i += 64) __builtin_prefetch(later + i);
    widen(from->data, from->dtype, at, count, to);
}

typedef struct {
    int64_t keys, dim, wide;   /* of a head; wide: dim filled up to whole tiles */
    const float *k_panels;     /* [ceil(keys / FLOAT_COLUMNS)][dim][FLOAT_COLUMNS], zeros where there are no keys */
    const float *values;       /* [keys][wide], zeros beyond dim */
    const float *queries;      /* [rows][dim], scaled so that 2^score is the weight */
    float *scores, *outputs;   /* [rows][PITCH], [rows][wide] */
} Head;

/* Scores of a block of keys; then weights, and how they change what was summed before; then their sum of values. */
static inline __attribute__((always_inline)) void attend(const int rows, const Head *head) {
    float most[FLOAT_ROWS], total[FLOAT_ROWS];
    for (int i = 0; i < rows; i++) most[i] = -INFINITY, total[i] = 0.0f;
    for (int64_t first = 0; first < head->keys; first += BLOCK) {
        const int64_t count = head->keys - first < BLOCK ? head->keys - first : BLOCK;
        for (int64_t key = 0; key < count; key += FLOAT_COLUMNS) {
            Vector sums[FLOAT_ROWS][2];
#pragma GCC unroll 14
            for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = splat(0.0f);
            const float *panel = head->k_panels + (first + key) * head->dim;
            add_product(rows, head->dim, head->queries, head->dim, panel, FLOAT_COLUMNS, sums);
#pragma GCC unroll 14
            for (int i = 0; i < rows; i++) {
                store(head->scores + i * PITCH + key, sums[i][0]);
                store(head->scores + i * PITCH + key + WIDTH, sums[i][1]);
            }
        }
        const int64_t filled = (count + FLOAT_COLUMNS - 1) / FLOAT_COLUMNS * FLOAT_COLUMNS;
        float earlier[FLOAT_ROWS];
        for (int i = 0; i < rows; i++) {
            float *scores = head->scores + i * PITCH;
            for (int64_t key = count; key < filled; key++) scores[key] = -INFINITY;
            Vector high = splat(most[i]);
            for (int64_t key = 0; key < filled; key += WIDTH) high = greater(load(scores + key), high);
            float now = high[0];
            for (int j = 1; j < WIDTH; j++) now = high[j] > now ? high[j] : now;
            Vector sum = splat(0.0f);
            for (int64_t key = 0; key < filled; key += WIDTH) {
                const Vector weight = power_of_two(load(scores + key) - splat(now));
                store(scores + key, weight);
                sum += weight;
            }
            earlier[i] = exp2f(most[i] - now);
            total[i] = total[i] * earlier[i] + sum_of(sum);
            most[i] = now;
        }
        for (int64_t column = 0; column < head->wide; column += FLOAT_COLUMNS) {
            Vector sums[FLOAT_ROWS][2];
#pragma GCC unroll 14
            for (int i = 0; i < rows; i++) {
                const float *before = head->outputs + i * head->wide + column;
                sums[i][0] = first ? load(before) * splat(earlier[i]) : splat(0.0f);
                sums[i][1] = first ? load(before + WIDTH) * splat(earlier[i]) : splat(0.0f);
            }
            add_product(rows, count, head->scores, PITCH, head->values + first * head->wide + column, head->wide, sums);
#pragma GCC unroll 14
            for (int i = 0; i < rows; i++) {
                store(head->outputs + i * head->wide + column, sums[i][0]);
                store(head->outputs + i * head->wide + column + WIDTH, sums[i][1]);
            }
        }
    }
    for (int i = 0; i < rows; i++) {
        const Vector by = splat(1.0f / total[i]);
        float *output = head->outputs + i * head->wide;
        for (int64_t column = 0; column < head->wide; column += WIDTH) store(output + column, load(output + column) * by);
    }
}

/* y [batch, queries, heads * dim] of q of that shape and k and v [batch, keys, heads * dim], whose strides are in elements
 * and whose last one is 1. Returns nonzero where memory ran out. */
int mixdq_attention(const void *q, int64_t q_batch, int64_t q_token, const void *k, int64_t k_batch, int64_t k_token,
                    const void *v, int64_t v_batch, int64_t v_token, int dtype, int64_t batch, int64_t queries,
                    int64_t keys, int64_t heads, int64_t dim, float scale, void *y, int threads) {
    const Tokens of_q = {q, dtype, q_batch, q_token}, of_k = {k, dtype, k_batch, k_token}, of_v = {v, dtype, v_batch, v_token};
    const int64_t panels = (keys + FLOAT_COLUMNS - 1) / FLOAT_COLUMNS;
    const int64_t wide = (dim + FLOAT_COLUMNS - 1) / FLOAT_COLUMNS * FLOAT_COLUMNS;
    const int64_t tiles = (queries + FLOAT_ROWS - 1) / FLOAT_ROWS, work = batch * heads * tiles;
    const int64_t sizes[PARTS] = {panels * FLOAT_COLUMNS * dim, keys * wide, FLOAT_ROWS * dim, FLOAT_ROWS * PITCH,
                                  FLOAT_ROWS * wide, FLOAT_COLUMNS * dim};
    int64_t floats = 0;
    for (int i = 0; i < PARTS; i++) floats += (sizes[i] + 15) / 16 * 16;
    if (work == 0) return 0;
    /* Another head's keys and values are brought first, which must pay. */
    Sharing sharing = shared_out(work, threads, tiles / 8);
    int failed = 0;
#pragma omp parallel num_threads(sharing.threads) reduction(| : failed)
    {
        float *buffer = aligned_alloc(64, floats * 4), *at = buffer;
        failed = buffer == NULL;
        float *part[PARTS];
        for (int i = 0; i < PARTS && !failed; at += (sizes[i] + 15) / 16 * 16, i++) part[i] = at;
        Head head = {keys, dim, wide, part[0], part[1], part[2], part[3], part[4]};
        int64_t held = -1;
        Range range;
        while (!failed && take(&sharing, &range))
            for (int64_t item = range.first; item < range.last; item++) {
                const int64_t pair = item / tiles, n = pair / heads, first = pair % heads * dim, tile = item % tiles;
                if (held != pair) {
                    memset(part[5], 0, sizes[5] * 4);
                    memset(part[1], 0, sizes[1] * 4);
                    for (int64_t panel = 0; panel < panels; panel++) {
                        const int64_t key = panel * FLOAT_COLUMNS, left = keys - key;
                        for (int64_t i = 0; i < FLOAT_COLUMNS && i < left; i++) {
                            bring(&of_k, n, key + i, first, dim, part[5] + i * dim);
                            bring(&of_v, n, key + i, first, dim, part[1] + (key + i) * wide);
                        }
                        float *turned = part[0] + key * dim;
                        for (int64_t i = 0; i < dim; i++)
                            for (int j = 0; j < FLOAT_COLUMNS; j++) turned[i * FLOAT_COLUMNS + j] = part[5][j * dim + i];
                    }
                    held = pair;
                }
                const int64_t from = queries * tile / tiles, to = queries * (tile + 1) / tiles;
                for (int64_t row = from; row < to; row++) bring(&of_q, n, row, first, dim, part[2] + (row - from) * dim);
                for (int64_t i = 0; i < (to - from) * dim; i++) part[2][i] *= scale * LOG2_E;
#define ATTEND(ROWS) attend(ROWS, &head);
                WITH_ROWS(to - from, ATTEND)
#undef ATTEND
                for (int64_t row = from; row < to; row++) {
                    const float *output = part[4] + (row - from) * wide;
                    const int64_t place = (n * queries + row) * heads * dim + first;
                    narrow(output, dim, y, dtype, place);
                }
            }
        free(buffer);
    }
    return failed;
}
