/* How threads share work: each has a part of its own, and who is done takes over what others have left. */
#ifndef MIXDQ_SHARING_H
#define MIXDQ_SHARING_H

#include <stdint.h>
#if defined(_OPENMP)
#include <omp.h>
#endif

#define MAX_THREADS 256
#define CHUNKS 8 /* of each thread's part: as much as is taken at a time */

typedef struct {
    int64_t first, last;
} Range;

typedef struct {
    int threads;
    int64_t work, chunks;
    struct {
        _Alignas(64) int64_t next;
        int64_t end;
    } parts[MAX_THREADS];
} Sharing;

static inline Sharing shared_out(int64_t work, int threads) {
    Sharing sharing;
    sharing.threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    sharing.work = work;
    sharing.chunks = sharing.threads * CHUNKS < work ? sharing.threads * CHUNKS : work;
    for (int i = 0; i < sharing.threads; i++) {
        sharing.parts[i].next = sharing.chunks * i / sharing.threads;
        sharing.parts[i].end = sharing.chunks * (i + 1) / sharing.threads;
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
        int64_t *next = &sharing->parts[part].next;
        if (__atomic_load_n(next, __ATOMIC_RELAXED) >= sharing->parts[part].end) continue;
        const int64_t chunk = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (chunk >= sharing->parts[part].end) continue;
        range->first = sharing->work * chunk / sharing->chunks;
        range->last = sharing->work * (chunk + 1) / sharing->chunks;
        return 1;
    }
    return 0;
}

#endif
