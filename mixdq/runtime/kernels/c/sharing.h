/* How threads share work: each has a part of its own, and who is done takes over what others have left. */
#ifndef MIXDQ_SHARING_H
#define MIXDQ_SHARING_H

#include <stdint.h>
#if defined(_OPENMP)
#include <omp.h>
#endif

#define MAX_THREADS 256
#define SHARE 8 /* a thread takes one in so many of what a part still has: less and less, so that all end at once */

typedef struct {
    int64_t first, last;
} Range;

typedef struct {
    int threads;
    int64_t least;
    struct {
        _Alignas(64) int64_t next;
        int64_t end;
    } parts[MAX_THREADS];
} Sharing;

/* `work` items, not fewer than `least` at a time. */
static inline Sharing shared_out(int64_t work, int threads, int64_t least) {
    Sharing sharing;
    sharing.threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    sharing.least = least < 1 ? 1 : least;
    for (int i = 0; i < sharing.threads; i++) {
        sharing.parts[i].next = work * i / sharing.threads;
        sharing.parts[i].end = work * (i + 1) / sharing.threads;
    }
    return sharing;
}

/* Takes a range of work for the calling thread; returns 0 where nothing is left. */
static inline int take(Sharing *sharing, Range *range) {
    int self = 0;
#if defined(_OPENMP)
    self = omp_get_thread_num();
#endif
    for (int i = 0; i < sharing->threads; i++) {
        const int part = (self + i) % sharing->threads;
        const int64_t end = sharing->parts[part].end;
        int64_t *next = &sharing->parts[part].next, first = __atomic_load_n(next, __ATOMIC_RELAXED), last;
        do {
            const int64_t wanted = (end - first) / SHARE;
            last = first + (wanted > sharing->least ? wanted : sharing->least);
            last = last < end ? last : end;
        } while (first < end && !__atomic_compare_exchange_n(next, &first, last, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
        if (first >= end) continue;
        range->first = first;
        range->last = last;
        return 1;
    }
    return 0;
}

#endif
