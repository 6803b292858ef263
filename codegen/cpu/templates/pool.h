/* The thread pool: one caller and n-1 workers run the same function; barriers spin, then sleep on a futex. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/syscall.h>
#include <linux/futex.h>

#define MAX_THREADS 256
#define SPINS 3000
#define SLOTS 64

typedef struct { _Alignas(64) atomic_int value; } counter;

typedef struct pool {
    _Alignas(64) atomic_uint generation;   /* bumped to start a run */
    _Alignas(64) atomic_uint arrived;
    _Alignas(64) atomic_uint phase;
    atomic_int sleepers;
    counter work[SLOTS];                   /* work[phase % SLOTS]: the next piece of this phase */
    void (*run)(void *, int);
    void *arg;
    int threads, stopping;
    pthread_t ids[MAX_THREADS];
} pool;

INLINE void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}
static void futex_wait(atomic_uint *at, unsigned seen) { syscall(SYS_futex, at, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0); }
static void futex_wake(atomic_uint *at) { syscall(SYS_futex, at, FUTEX_WAKE_PRIVATE, 0x7fffffff, NULL, NULL, 0); }

static void wait_change(pool *p, atomic_uint *at, unsigned seen) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(at, memory_order_acquire) != seen) return;
        pause_cpu();
    }
    atomic_fetch_add(&p->sleepers, 1);
    while (atomic_load(at) == seen) futex_wait(at, seen);
    atomic_fetch_sub(&p->sleepers, 1);
}
static void announce(pool *p, atomic_uint *at) {
    atomic_fetch_add(at, 1);
    if (atomic_load(&p->sleepers)) futex_wake(at);
}

/* All threads meet here; the last one clears the counter that comes into use half a cycle later. */
static void barrier(pool *p) {
    if (p->threads == 1) {
        unsigned phase = atomic_load_explicit(&p->phase, memory_order_relaxed);
        atomic_store_explicit(&p->work[(phase + SLOTS / 2) % SLOTS].value, 0, memory_order_relaxed);
        atomic_store_explicit(&p->phase, phase + 1, memory_order_relaxed);
        return;
    }
    unsigned phase = atomic_load_explicit(&p->phase, memory_order_acquire);
    if (atomic_fetch_add(&p->arrived, 1) == (unsigned)p->threads - 1) {
        atomic_store(&p->arrived, 0);
        atomic_store(&p->work[(phase + SLOTS / 2) % SLOTS].value, 0);
        announce(p, &p->phase);
    } else {
        wait_change(p, &p->phase, phase);
    }
}
/* The next piece of the current phase, in steps of `step`; pieces beyond the end mean that nothing is left. */
INLINE int next_piece(pool *p, int step) {
    unsigned phase = atomic_load_explicit(&p->phase, memory_order_relaxed);
    return atomic_fetch_add_explicit(&p->work[phase % SLOTS].value, step, memory_order_relaxed);
}

typedef struct { pool *p; int id; } worker;
static void *work_loop(void *raw) {
    worker w = *(worker *)raw;
    free(raw);
    unsigned seen = 0;
    for (;;) {
        wait_change(w.p, &w.p->generation, seen);
        seen = atomic_load(&w.p->generation);
        if (w.p->stopping) return NULL;
        w.p->run(w.p->arg, w.id);
        barrier(w.p);
    }
}
static void pool_run(pool *p, void (*run)(void *, int), void *arg) {
    p->run = run;
    p->arg = arg;
    if (p->threads > 1) announce(p, &p->generation);
    run(arg, 0);
    barrier(p);
}
static int pool_start(pool *p, int threads) {
    p->threads = threads;
    for (int i = 1; i < threads; i++) {
        worker *w = malloc(sizeof *w);
        if (!w) return -1;
        w->p = p;
        w->id = i;
        if (pthread_create(&p->ids[i], NULL, work_loop, w)) { free(w); p->threads = i; return -1; }
    }
    return 0;
}
static void pool_stop(pool *p) {
    p->stopping = 1;
    if (p->threads > 1) announce(p, &p->generation);
    for (int i = 1; i < p->threads; i++) pthread_join(p->ids[i], NULL);
}
