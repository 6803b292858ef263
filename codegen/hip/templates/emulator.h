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

enum { STACK = 256 << 10, SHARED_MOST = 256 << 10 };
enum state { READY, AT_GROUP, AT_WAVE, AT_SOME, AT_GRID, DONE };
struct fiber {
    ucontext_t context;
    int state, parity, barrier, wanted;
    float exchanged[2];
    u32 operands[2][6];
};
static struct {
    fiber *items;
    char *stacks, *shared;
    int threads, count, room, current, x, y, z, of_y, of_z;
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
/* Let those go on whose wave, group, grid, or part of a group is complete at a barrier; whether anyone is left. A wave comes to a barrier, or ends, as one. */
static bool let_go(const char *name) {
    int live = 0, at_grid = 0;
    for (int from = 0; from < grid.count; from += grid.threads) {
        fiber *items = grid.items + from;
        int here = 0, at_group = 0;
        for (int w = 0; w < grid.threads; w += WAVE) {
            int in[DONE + 1] = {};
            for (int i = w; i < w + WAVE; i++) in[items[i].state]++;
            for (int s = AT_GROUP; s <= AT_GRID; s++) if (in[s] && in[s] != WAVE) {
                fprintf(stderr, "%s, group (%d, %d, %d): a barrier that %d of a wave's %d work-items reach\n", name, grid.x + from / grid.threads, grid.y, grid.z, in[s], WAVE);
                abort();
            }
            here += !in[DONE];
            at_group += in[AT_GROUP] == WAVE;
            at_grid += in[AT_GRID] == WAVE;
            if (in[AT_WAVE]) for (int i = w; i < w + WAVE; i++) items[i].state = READY;
        }
        for (int b = 1; b < 16; b++) {
            int come = 0, wanted = 0;
            for (int i = 0; i < grid.threads; i++) if (items[i].state == AT_SOME && items[i].barrier == b) { come++; wanted = items[i].wanted; }
            if (come && come == wanted) for (int i = 0; i < grid.threads; i++) if (items[i].state == AT_SOME && items[i].barrier == b) items[i].state = READY;
        }
        if (here && at_group == here) for (int i = 0; i < grid.threads; i++) if (items[i].state == AT_GROUP) items[i].state = READY;
        live += here;
    }
    if (live && at_grid == live) for (int i = 0; i < grid.count; i++) if (grid.items[i].state == AT_GRID) grid.items[i].state = READY;
    return live > 0;
}
static void *pages(size_t size) { return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); }
/* together: groups of x that run at the same time, as a kernel wants that meets in the grid. */
static void run_grid(const char *name, void (*body)(void **), int threads, const int *size, void **arguments, bool together) {
    if (threads % WAVE) { fprintf(stderr, "%s: %d work-items\n", name, threads); abort(); }
    const int at_once = together ? size[0] : 1;
    grid.threads = threads; grid.count = threads * at_once; grid.body = body; grid.arguments = arguments; grid.of_y = size[1]; grid.of_z = size[2];
    if (grid.room < grid.count) {
        grid.stacks = (char *)pages((size_t)STACK * grid.count);
        grid.items = (fiber *)pages(sizeof(fiber) * grid.count);
        grid.room = grid.count;
    }
    grid.shared = together ? (char *)pages((size_t)SHARED_MOST * at_once) : nullptr;
    for (grid.z = 0; grid.z < size[2]; grid.z++) for (grid.y = 0; grid.y < size[1]; grid.y++) for (grid.x = 0; grid.x < size[0]; grid.x += at_once) {
        for (int i = 0; i < grid.count; i++) {
            fiber *f = &grid.items[i];
            f->state = READY; f->parity = 0;
            getcontext(&f->context);
            f->context.uc_stack.ss_sp = grid.stacks + (size_t)STACK * i; f->context.uc_stack.ss_size = STACK; f->context.uc_link = NULL;
            makecontext(&f->context, run_item, 0);
        }
        do {
            for (int i = 0; i < grid.count; i++) if (grid.items[i].state == READY) { grid.current = i; swapcontext(&grid.main, &grid.items[i].context); }
        } while (let_go(name));
    }
    if (together) munmap(grid.shared, (size_t)SHARED_MOST * at_once);
}
/* An argument where a launch put it, as whatever the kernel takes. */
struct argument { void *at; template <class T> operator T() const { return *(T *)at; } };
#define EMULATED(name, threads, ...) \
    extern "C" __attribute__((visibility("default"))) void emulate_##name(const int *size, void **arguments) { \
        run_grid(#name, [](void **p) { name(__VA_ARGS__); }, threads, size, arguments, TOGETHER); \
    }

DEV int thread() { return grid.current % grid.threads; }
DEV int group_x() { return grid.x + grid.current / grid.threads; }
DEV int group_y() { return grid.y; }
DEV int group_z() { return grid.z; }
DEV int groups_y() { return grid.of_y; }
DEV int groups_z() { return grid.of_z; }
DEV void meet() { wait_as(AT_GROUP); }
DEV float across(float v, int mask) {
    const int t = grid.current, parity = grid.items[t].parity ^= 1;
    grid.items[t].exchanged[parity] = v;
    wait_as(AT_WAVE);
    return grid.items[(t & ~(WAVE - 1)) | ((t & (WAVE - 1)) ^ mask)].exchanged[parity];
}
/* What cuda.h has for NVIDIA's GPUs. */
typedef u32 u32x4 __attribute__((ext_vector_type(4)));
#define KERNEL_ALONE(threads) KERNEL(threads)
#define METHOD inline
/* A group's n bytes: only in kernels that run together. */
#define SHARED_BYTES(name, n) char *const name = grid.shared + (size_t)group_x() * SHARED_MOST
DEV void let_next_begin() {}
DEV void await_former() {}
DEV void copy_16(void *to, const void *from) { memcpy(to, from, 16); }
DEV void end_of_copies() {}
template <int LEFT> DEV void await_copies() {}
DEV void meet_wave() { wait_as(AT_WAVE); }
DEV void meet_grid(u64 *, u64) { wait_as(AT_GRID); }
DEV void arrive(u64 *) {}
DEV bool last_of(u32 *counter, int wanted, int *room) {
    meet();
    if (thread() == 0 && (*room = ++*counter == (u32)wanted)) *counter = 0;
    meet();
    return *room;
}
DEV int self() { return thread(); }
DEV float fresh(const float *x) { return *x; }
DEV u32 fresh(const u32 *x) { return *x; }
DEV float power_flushed(float x) { return exp2f(x); }
DEV void meet_some(int barrier, int threads) {
    grid.items[grid.current].barrier = barrier;
    grid.items[grid.current].wanted = threads;
    wait_as(AT_SOME);
}
DEV float low_half(u32 pair) { const u32 bits = pair << 16; float x; memcpy(&x, &bits, 4); return x; }
DEV float high_half(u32 pair) { const u32 bits = pair & 0xffff0000u; float x; memcpy(&x, &bits, 4); return x; }
/* c [16, 8] += a [16, 16] · b [16, 8], of bfloat16: lane 4·g + t holds c[g][2t], c[g][2t+1], and of row g + 8 the same; a[g][2t..], a[g+8][2t..], a[g][2t+8..], a[g+8][2t+8..];
 * b[2t..][g], b[2t+8..][g]. */
DEV void multiply(float *c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    const int t = grid.current, parity = grid.items[t].parity ^= 1;
    u32 *mine = grid.items[t].operands[parity];
    mine[0] = a0; mine[1] = a1; mine[2] = a2; mine[3] = a3; mine[4] = b0; mine[5] = b1;
    wait_as(AT_WAVE);
    const int lane = t & 31;
    const fiber *wave = grid.items + (t & ~31);
    for (int i = 0; i < 4; i++) {
        double sum = 0.0;
        for (int k = 0; k < 16; k++) {
            const u32 left = wave[(lane & ~3) + k % 8 / 2].operands[parity][(i / 2) + k / 8 * 2], right = wave[(lane % 4 * 2 + i % 2) * 4 + k % 8 / 2].operands[parity][4 + k / 8];
            sum += (double)(k % 2 ? high_half(left) : low_half(left)) * (k % 2 ? high_half(right) : low_half(right));
        }
        c[i] = (float)(c[i] + sum);
    }
}
DEV void load_if(bool wanted, const void *from, int offset, u32x4 &to) { if (wanted) memcpy(&to, (const char *)from + offset, 16); }
/* A barrier is what it waits for, who has come, and its phase, in words of 16, 16 and 32 bits. */
DEV void begin_barrier(u64 *barrier, int count) { *barrier = (u64)count; }
DEV void barriers_begun() {}
DEV void come_to(u64 *barrier) {
    const u64 come = (*barrier >> 16 & 0xffff) + 1, wanted = *barrier & 0xffff;
    *barrier = come == wanted ? ((*barrier >> 32) + 1) << 32 | wanted : (*barrier & ~0xffff0000ull) | come << 16;
}
DEV bool phase_over(const u64 *barrier, int parity) { return (int)(*barrier >> 32 & 1) != parity; }
DEV void await_phase(const u64 *barrier, int parity) { while (!phase_over(barrier, parity)) wait_as(READY); }
DEV void copy_to(void *to, const void *from, int bytes, u64 *barrier) { memcpy(to, from, bytes); come_to(barrier); }
DEV u32 held_by(u32 x, int lane) {
    const int t = grid.current, parity = grid.items[t].parity ^= 1;
    grid.items[t].operands[parity][0] = x;
    wait_as(AT_WAVE);
    return grid.items[(t & ~31) + lane].operands[parity][0];
}
DEV void transposed(u32 *out, const void *row) {
    const int t = grid.current, parity = grid.items[t].parity ^= 1, lane = t & 31;
    memcpy(grid.items[t].operands[parity], &row, sizeof row);
    wait_as(AT_WAVE);
    for (int i = 0; i < 4; i++) {
        u16 pair[2];
        for (int odd = 0; odd < 2; odd++) {
            const char *from;
            memcpy(&from, grid.items[(t & ~31) + i * 8 + lane % 4 * 2 + odd].operands[parity], sizeof from);
            memcpy(&pair[odd], from + lane / 4 * 2, 2);
        }
        out[i] = (u32)pair[0] | (u32)pair[1] << 16;
    }
}
/* Of four codes in either half of a word, number q → a pair of bfloat16 (code - ZERO)·2^-7. */
template <int ZERO> DEV u32 nibble_pair(u32 word, int q) {
    u32 pair = 0;
    for (int half = 0; half < 2; half++) {
        const float x = ((int)(word >> (16 * half + 4 * q) & 15) - ZERO) * 0.0078125f;
        u32 bits;
        memcpy(&bits, &x, 4);
        pair |= bits >> 16 << (16 * half);
    }
    return pair;
}
