/* A GPU's grid on a CPU: each work-item is a fiber, which a barrier suspends until its wave or its group has come to it. A barrier that some
 * never reach ends the process with a message. For tests: numbers, barriers and, under a sanitizer, addresses; not speed. */
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#define DEV static inline
#define KERNEL(threads) static void
#define SHARED(T, name, n) alignas(16) static T name[n]

enum { STACK = 256 << 10, MOST = 1024 };
enum state { READY, AT_GROUP, AT_WAVE, DONE };
struct fiber { ucontext_t context; int state, parity; };
static struct {
    fiber items[MOST];
    float exchanged[2][MOST];
    char *stacks;
    int threads, current, x, y, z, of_y, of_z;
    ucontext_t main;
    void (*body)(void **);
    void **arguments;
} grid;

static void run_item() {
    grid.body(grid.arguments);
    grid.items[grid.current].state = DONE;
    for (;;) swapcontext(&grid.items[grid.current].context, &grid.main);
}
static void wait_as(state s) {
    fiber *f = &grid.items[grid.current];
    f->state = s;
    swapcontext(&f->context, &grid.main);
}
/* Let those go on whose wave, or group, is complete at a barrier; whether anyone is left. A wave comes to a barrier, or ends, as one. */
static bool let_go(const char *name) {
    int live = 0, at_group = 0;
    for (int w = 0; w < grid.threads; w += WAVE) {
        int in[DONE + 1] = {};
        for (int i = w; i < w + WAVE; i++) in[grid.items[i].state]++;
        const int most = in[AT_WAVE] ? in[AT_WAVE] : in[AT_GROUP];
        if (most && most != WAVE) {
            fprintf(stderr, "%s, group (%d, %d, %d): a barrier that %d of a wave's %d work-items reach\n", name, grid.x, grid.y, grid.z, most, WAVE);
            abort();
        }
        live += !in[DONE];
        at_group += in[AT_GROUP] == WAVE;
        if (in[AT_WAVE]) for (int i = w; i < w + WAVE; i++) grid.items[i].state = READY;
    }
    if (live && at_group == live) for (int i = 0; i < grid.threads; i++) if (grid.items[i].state == AT_GROUP) grid.items[i].state = READY;
    return live > 0;
}
static void run_grid(const char *name, void (*body)(void **), int threads, const int *size, void **arguments) {
    if (threads > MOST || threads % WAVE) { fprintf(stderr, "%s: %d work-items\n", name, threads); abort(); }
    if (!grid.stacks) grid.stacks = (char *)mmap(NULL, (size_t)STACK * MOST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    grid.threads = threads; grid.body = body; grid.arguments = arguments; grid.of_y = size[1]; grid.of_z = size[2];
    for (grid.z = 0; grid.z < size[2]; grid.z++) for (grid.y = 0; grid.y < size[1]; grid.y++) for (grid.x = 0; grid.x < size[0]; grid.x++) {
        for (int i = 0; i < threads; i++) {
            fiber *f = &grid.items[i];
            f->state = READY; f->parity = 0;
            getcontext(&f->context);
            f->context.uc_stack.ss_sp = grid.stacks + (size_t)STACK * i; f->context.uc_stack.ss_size = STACK; f->context.uc_link = NULL;
            makecontext(&f->context, run_item, 0);
        }
        do {
            for (int i = 0; i < threads; i++) if (grid.items[i].state == READY) { grid.current = i; swapcontext(&grid.main, &grid.items[i].context); }
        } while (let_go(name));
    }
}
/* An argument where a launch put it, as whatever the kernel takes. */
struct argument { void *at; template <class T> operator T() const { return *(T *)at; } };
#define EMULATED(name, threads, ...) \
    extern "C" __attribute__((visibility("default"))) void emulate_##name(const int *size, void **arguments) { \
        run_grid(#name, [](void **p) { name(__VA_ARGS__); }, threads, size, arguments); \
    }

DEV int thread() { return grid.current; }
DEV int group_x() { return grid.x; }
DEV int group_y() { return grid.y; }
DEV int group_z() { return grid.z; }
DEV int groups_y() { return grid.of_y; }
DEV int groups_z() { return grid.of_z; }
DEV void meet() { wait_as(AT_GROUP); }
DEV float across(float v, int mask) {
    const int t = grid.current;
    float *x = grid.exchanged[grid.items[t].parity ^= 1];
    x[t] = v;
    wait_as(AT_WAVE);
    return x[(t & ~(WAVE - 1)) | ((t & (WAVE - 1)) ^ mask)];
}
