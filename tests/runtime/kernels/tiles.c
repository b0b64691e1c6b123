/* Runs products of the kernels that are compiled with it, for test_tiles.py.
 *
 *     tiles name       prints which way of computing tiles it was compiled with
 *     tiles products   reads products from the standard input until it ends, writes what each made
 *     tiles float16    writes every float16 as float32; then reads float32 until the input ends, writes each as float16
 *
 * A product is NUMBERS int64 and then its arrays, each with its length in bytes, 0 for null. Every array ends where
 * memory ends that may be touched: one step beyond is the program's last.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "float16.h"

enum { BATCH, HEIGHT, WIDTH, PICTURE, LINE, PITCH, TAPS, DEPTH, BITS, COLUMNS, ROWS_EACH, DTYPE, ROW_STRIDE, THREADS, NUMBERS };
enum { X, TAP_OFFSETS, PANELS, ZERO_POINTS, SUMS, SCALE, BIAS, X_ZERO_POINTS, ROW_SCALES, Y, ARRAYS };

const char *mixdq_way(void);
int mixdq_product(const uint8_t *x, int64_t batch, int64_t height, int64_t width, int64_t picture, int64_t line,
                  int64_t pitch, const int64_t *tap_offsets, int64_t taps, int64_t depth, const uint8_t *panels,
                  int bits, const int8_t *zero_points, int64_t columns, const int32_t *sums, const float *scale,
                  const float *bias, const int32_t *x_zero_points, const float *row_scales, int64_t rows_each, void *y,
                  int dtype, int64_t row_stride, int threads);

static void must(int well, const char *what) {
    if (well) return;
    fprintf(stderr, "%s\n", what);
    exit(1);
}

#define PAGE (64 * 1024) /* a multiple of every system's */

static int64_t whole_pages(int64_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

static void *fenced(int64_t bytes) {
    const int64_t size = whole_pages(bytes);
    char *from = mmap(NULL, size + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(from != MAP_FAILED && mprotect(from + size, PAGE, PROT_NONE) == 0, "no memory");
    return from + size - bytes;
}

static void unfenced(void *array, int64_t bytes) {
    if (array) munmap((char *)array + bytes - whole_pages(bytes), whole_pages(bytes) + PAGE);
}

static void products(void) {
    int64_t n[NUMBERS];
    while (fread(n, sizeof n, 1, stdin) == 1) {
        void *arrays[ARRAYS];
        int64_t bytes[ARRAYS];
        for (int i = 0; i < ARRAYS; i++) {
            must(fread(&bytes[i], 8, 1, stdin) == 1, "an array has no length");
            arrays[i] = bytes[i] ? fenced(bytes[i]) : NULL;
            must((int64_t)fread(arrays[i], 1, bytes[i], stdin) == bytes[i], "an array is not whole");
        }
        const int failed = mixdq_product(
            arrays[X], n[BATCH], n[HEIGHT], n[WIDTH], n[PICTURE], n[LINE], n[PITCH], arrays[TAP_OFFSETS], n[TAPS],
            n[DEPTH], arrays[PANELS], (int)n[BITS], arrays[ZERO_POINTS], n[COLUMNS], arrays[SUMS], arrays[SCALE],
            arrays[BIAS], arrays[X_ZERO_POINTS], arrays[ROW_SCALES], n[ROWS_EACH], arrays[Y], (int)n[DTYPE],
            n[ROW_STRIDE], (int)n[THREADS]);
        must(!failed, "the product failed");
        fwrite(arrays[Y], 1, bytes[Y], stdout);
        for (int i = 0; i < ARRAYS; i++) unfenced(arrays[i], bytes[i]);
    }
}

static void float16(void) {
    for (int bits = 0; bits < 1 << 16; bits++) {
        const float value = from_float16((uint16_t)bits);
        fwrite(&value, 4, 1, stdout);
    }
    float value;
    while (fread(&value, 4, 1, stdin) == 1) {
        const uint16_t bits = to_float16(value);
        fwrite(&bits, 2, 1, stdout);
    }
}

int main(int count, char **words) {
    must(count == 2, "tiles name | products | float16");
    if (strcmp(words[1], "name") == 0) puts(mixdq_way());
    if (strcmp(words[1], "products") == 0) products();
    if (strcmp(words[1], "float16") == 0) float16();
    return 0;
}
