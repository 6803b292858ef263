/* What a step works on, and the kernels that are not products. */
#include <stdio.h>
#include <time.h>
#include <sys/mman.h>

#define KV_BLOCK 32      /* positions in a cache block: one chunk of the value product */
#define SPLIT 256        /* attention sums are closed at positions that are multiples of this */
#define SMALL 4          /* up to this many rows every thread prepares activations for itself: no barrier */

/* The batch: T tokens of S sequences, packed; sequence s has tokens start[s] … start[s+1]-1 at positions from pos[s] on. */
typedef struct {
    int32_t tokens, sequences, rows, max_blocks;
    const int32_t *ids, *positions, *start, *pos, *block_tables, *row_tokens;
} batch;

typedef struct step {
    pool threads;
    batch b;
    void **ptr;                /* weights, then buffers, then caches, by the numbers that the generated code uses */
    char *arena; size_t arena_bytes;
    char *kv; size_t kv_bytes;
    char *scratch; size_t scratch_bytes;   /* a piece for each thread */
    char *shared;              /* prepared activations, and attention's partial results */
    int max_tokens, max_sequences, max_rows, blocks;
    int profile; double *times; int64_t *counts;
} step;

INLINE char *private_scratch(step *s, int tid) { return s->scratch + (size_t)tid * s->scratch_bytes; }
INLINE void meet(step *s) { barrier(&s->threads); }

/* Take rows in pieces; every row is computed by one thread. */
#define FOR_PIECES(s, total, size, i) \
    for (int i##_at = next_piece(&(s)->threads, size); i##_at < (total); i##_at = next_piece(&(s)->threads, size)) \
        for (int i = i##_at; i < (total) && i < i##_at + (size); i++)

/* --- norms and preparation ------------------------------------------------------------------------------------------- */

typedef struct { int kind; float eps; const float *weight, *bias; } norm; /* kind: 0 none, 1 rms, 2 layer, 3 l2 */

INLINE v16 load_tail(const float *p, int n) { float t[16] = {0}; memcpy(t, p, (size_t)n * 4); return load16(t); }

/* y[0..k) = norm(x[0..k)); y may be x. Sums run over 16 lanes, then over the lanes in one order. */
static void norm_row(const norm *q, const float *x, float *y, int k) {
    const int full = k & ~15, tail = k & 15;
    float mean = 0.0f;
    if (q->kind == 2) {
        v16 a = splat(0.0f);
        for (int i = 0; i < full; i += 16) a += load16(x + i);
        if (tail) a += load_tail(x + full, tail);
        mean = sum16(a) / (float)k;
    }
    v16 sq = splat(0.0f), m = splat(mean);
    for (int i = 0; i < full; i += 16) { v16 d = load16(x + i) - m; sq = fma16(d, d, sq); }
    float rest = 0.0f;
    for (int i = full; i < k; i++) { float d = x[i] - mean; rest = __builtin_fmaf(d, d, rest); }
    float sum = sum16(sq) + rest;
    float r = 1.0f / __builtin_sqrtf((q->kind == 3 ? sum : sum / (float)k) + q->eps);
    v16 rv = splat(r);
    for (int i = 0; i < full; i += 16) {
        v16 d = (load16(x + i) - m) * rv;
        if (q->weight) d = d * load16(q->weight + i);
        if (q->bias) d = d + load16(q->bias + i);
        store16(y + i, d);
    }
    for (int i = full; i < k; i++) {
        float d = (x[i] - mean) * r;
        if (q->weight) d = d * q->weight[i];
        if (q->bias) d = d + q->bias[i];
        y[i] = d;
    }
}

/* Float activations: norm, round to bfloat16 when asked, pad K to chunks with zeros; sums of each group when asked. */
static void prepare_float(const norm *q, int round, const float *x, int k, int kpad, float *out, float *sums, int group) {
    if (q->kind) norm_row(q, x, out, k);
    else if (out != x) memcpy(out, x, (size_t)k * 4);
    for (int i = k; i < kpad; i++) out[i] = 0.0f;
    if (round) for (int i = 0; i < kpad; i += 16) store16(out + i, round_bf16(load16(out + i)));
    if (sums) {
        const int size = group ? group : kpad;
        for (int g = 0, at = 0; at < k; g++, at += size) {
            v16 a = splat(0.0f);
            for (int i = at; i < at + size && i < kpad; i += 16) a += load16(out + i);
            sums[g] = sum16(a);
        }
    }
}

/* Int8 activations: norm, then x ≈ scale · code with code in ±127, one scale a row; sums of each group's codes. */
static void prepare_int8(const norm *q, const float *x, int k, int kpad, float *tmp, int8_t *out, float *scale, int32_t *sums, int group) {
    if (q->kind) { norm_row(q, x, tmp, k); x = tmp; }
    v16 a = splat(0.0f);
    const int full = k & ~15;
    for (int i = 0; i < full; i += 16) a = max16(abs16(load16(x + i)), a);
    float most = hmax16(a);
    for (int i = full; i < k; i++) { float m = __builtin_fabsf(x[i]); most = m > most ? m : most; }
    const float inverse = most > 1e-35f ? 127.0f / most : 0.0f; /* below, the quotient would overflow */
    *scale = inverse > 0.0f ? most / 127.0f : 0.0f;
    v16 inv = splat(inverse);
    for (int i = 0; i < full; i += 16) {
        b16v c = __builtin_convertvector(to_int16(rint16(load16(x + i) * inv)), b16v);
        memcpy(out + i, &c, 16);
    }
    if (full < k) {
        b16v c = __builtin_convertvector(to_int16(rint16(load_tail(x + full, k - full) * inv)), b16v);
        memcpy(out + full, &c, (size_t)(k - full));
    }
    for (int i = k; i < kpad; i++) out[i] = 0;
    const int size = group ? group : kpad;
    for (int g = 0, at = 0; at < k; g++, at += size) {
        int32_t sum = 0;
        for (int i = at; i < at + size && i < kpad; i++) sum += out[i];
        sums[g] = sum;
    }
}

/* --- rows -------------------------------------------------------------------------------------------------------------- */

static void norm_rows(step *s, int tid, int rows, int heads, const float *x, ptrdiff_t ldx, ptrdiff_t ldh, const norm *q, int k, float *y) {
    (void)tid;
    FOR_PIECES(s, rows, 8, t) for (int h = 0; h < heads; h++) norm_row(q, x + t * ldx + h * ldh, y + ((ptrdiff_t)t * heads + h) * k, k);
}

/* table[t] = scale·cos(position·f), scale·sin(position·f); the product is rounded to float32, as transformers does. */
static void rope_table(step *s, int tid, int rows, const int32_t *positions, const float *frequencies, int pairs, float scale, float *table) {
    (void)tid;
    FOR_PIECES(s, rows, 16, t) for (int p = 0; p < pairs; p++) {
        float sn, cs;
        sincos1((float)positions[t] * frequencies[p], &sn, &cs);
        table[((ptrdiff_t)t * 2) * pairs + p] = cs * scale;
        table[((ptrdiff_t)t * 2 + 1) * pairs + p] = sn * scale;
    }
}
/* Rotate one head in place. */
INLINE void rope_row(float *x, const float *table, int pairs, int interleaved, int offset) {
    const float *cs = table, *sn = table + pairs;
    x += offset;
    for (int i = 0; i < pairs; i++) {
        const int a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + pairs;
        const float u = x[a], v = x[b];
        x[a] = __builtin_fmaf(u, cs[i], -(v * sn[i]));
        x[b] = __builtin_fmaf(v, cs[i], u * sn[i]);
    }
}
static void rope_rows(step *s, int tid, int rows, int heads, const float *x, ptrdiff_t ldx, ptrdiff_t ldh, int width, const float *table, int pairs, int interleaved, int offset, float *y) {
    (void)tid;
    FOR_PIECES(s, rows, 8, t) for (int h = 0; h < heads; h++) {
        float *to = y + ((ptrdiff_t)t * heads + h) * width;
        memcpy(to, x + t * ldx + h * ldh, (size_t)width * 4);
        rope_row(to, table + (ptrdiff_t)t * 2 * pairs, pairs, interleaved, offset);
    }
}
