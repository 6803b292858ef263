/* The inner loops of calibration, for one thread's part of the work: rounding codes one after the other, descent over codes, and
 * products of bfloat16 factors.
 *
 * Cost model of rounding and of a sweep: K²/2 and at most K² multiply-adds an output, in strips of 32 outputs whose errors stay in
 * the L2 cache (K·128 bytes) while the matrix of moments streams past once a strip; a code that stays costs nothing.
 * Cost model of a search: 8 operations a value and candidate; a group stays in the L1 cache.
 * Cost model of a product: 2·R·M·N operations; factors are packed once into panels of pairs, 12 by 32 sums stay in registers. */
#include <stdint.h>
#include <stddef.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
#define STRIP 32
typedef float v16 __attribute__((vector_size(64)));
typedef struct { v16 a, b; } lanes;

INLINE v16 splat(float x) { return (v16){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
INLINE lanes load(const float *p) { lanes v; memcpy(&v, p, sizeof v); return v; }
INLINE lanes fetch(const float *p, int width) { lanes v = {splat(0.0f), splat(0.0f)}; memcpy(&v, p, (size_t)width * 4); return v; }
INLINE void put(float *p, lanes v, int width) { memcpy(p, &v, (size_t)width * 4); }
INLINE v16 within(v16 x, v16 top) { return __builtin_elementwise_min(__builtin_elementwise_max(x, splat(0.0f)), top); }
/* codes of a grid of integers: round(x / scale) + zero, from 0 to top */
INLINE v16 nearest(v16 x, v16 inverse, v16 zero, v16 top) { return within(__builtin_elementwise_rint(x * inverse) + zero, top); }

typedef struct {
    int32_t k, n;
    const int32_t *group;                      /* [k]: of each input */
    const float *scales, *inverses, *zeros;    /* [groups][n] */
    float top;
} grid;

INLINE void grid_of(const grid *g, int i, int at, int width, lanes *scale, lanes *inverse, lanes *zero) {
    const ptrdiff_t place = (ptrdiff_t)g->group[i] * g->n + at;
    *scale = fetch(g->scales + place, width); *inverse = fetch(g->inverses + place, width); *zero = fetch(g->zeros + place, width);
}
/* rows[from..to) -= factors[from..to) ∘ v */
INLINE void less(float *rows, const float *factors, int from, int to, lanes v) {
    for (int j = from; j < to; j++) {
        lanes w = load(rows + (ptrdiff_t)j * STRIP);
        const v16 f = splat(factors[j]);
        w.a -= f * v.a; w.b -= f * v.b;
        memcpy(rows + (ptrdiff_t)j * STRIP, &w, sizeof w);
    }
}

/* GPTQ for outputs [first, last): inputs in the order of the rows of w [k][n]; root [k][k] is the upper root of the moments' inverse.
 * codes [k][n]; room: k·32 floats. */
EXPORT void llmc_round_codes(const grid *g, int first, int last, const float *w, const float *root, float *codes, float *room) {
    const int k = g->k;
    const v16 top = splat(g->top);
    for (int at = first; at < last; at += STRIP) {
        const int width = last - at < STRIP ? last - at : STRIP;
        for (int i = 0; i < k; i++) put(room + (ptrdiff_t)i * STRIP, fetch(w + (ptrdiff_t)i * g->n + at, width), STRIP);
        for (int i = 0; i < k; i++) {
            lanes scale, inverse, zero, x = load(room + (ptrdiff_t)i * STRIP), c, error;
            grid_of(g, i, at, width, &scale, &inverse, &zero);
            c.a = nearest(x.a, inverse.a, zero.a, top); c.b = nearest(x.b, inverse.b, zero.b, top);
            put(codes + (ptrdiff_t)i * g->n + at, c, width);
            const v16 diagonal = splat(root[(ptrdiff_t)i * k + i]);
            error.a = (x.a - (c.a - zero.a) * scale.a) / diagonal; error.b = (x.b - (c.b - zero.b) * scale.b) / diagonal;
            less(room, root + (ptrdiff_t)i * k, i + 1, k, error);
        }
    }
}

/* One sweep of coordinate descent for outputs [first, last): each code in turn to its best value given all others.
 * slope [k][n] = H·(w − q) before; h [k][k]; codes [k][n] change; room: k·32 floats. */
EXPORT void llmc_sweep_codes(const grid *g, int first, int last, const float *slope, const float *h, float *codes, float *room) {
    const int k = g->k;
    const v16 top = splat(g->top);
    for (int at = first; at < last; at += STRIP) {
        const int width = last - at < STRIP ? last - at : STRIP;
        for (int i = 0; i < k; i++) put(room + (ptrdiff_t)i * STRIP, fetch(slope + (ptrdiff_t)i * g->n + at, width), STRIP);
        for (int i = 0; i < k; i++) {
            lanes scale, inverse, zero, pull = load(room + (ptrdiff_t)i * STRIP), old = fetch(codes + (ptrdiff_t)i * g->n + at, width), c, moved;
            grid_of(g, i, at, width, &scale, &inverse, &zero);
            const float *row = h + (ptrdiff_t)i * k;
            const v16 diagonal = splat(row[i]);
            c.a = nearest((old.a - zero.a) * scale.a + pull.a / diagonal, inverse.a, zero.a, top);
            c.b = nearest((old.b - zero.b) * scale.b + pull.b / diagonal, inverse.b, zero.b, top);
            if (!memcmp(&c, &old, sizeof c)) continue;
            put(codes + (ptrdiff_t)i * g->n + at, c, width);
            moved.a = (c.a - old.a) * scale.a; moved.b = (c.b - old.b) * scale.b;
            less(room, row, 0, k, moved);
        }
    }
}

/* For the groups of outputs [first, last) the candidate with the least weighted squared error, the first of equals, in best [n][groups].
 * w [n][groups][size] and weights [groups][size], size a multiple of 16; scales, inverses and zeros [candidates][n][groups]. */
EXPORT void llmc_best_candidates(int first, int last, int n, int groups, int size, int candidates, float top, const float *w, const float *weights, const float *scales, const float *inverses, const float *zeros, int32_t *best) {
    const v16 most = splat(top);
    const ptrdiff_t stride = (ptrdiff_t)n * groups;
    for (int r = first; r < last; r++) for (int g = 0; g < groups; g++) {
        const ptrdiff_t place = (ptrdiff_t)r * groups + g;
        const float *row = w + place * size, *weight = weights + (ptrdiff_t)g * size;
        float least = __builtin_inff();
        for (int c = 0; c < candidates; c++) {
            const v16 scale = splat(scales[c * stride + place]), inverse = splat(inverses[c * stride + place]), zero = splat(zeros[c * stride + place]);
            v16 sum = splat(0.0f), x, factor;
            for (int i = 0; i < size; i += 16) {
                memcpy(&x, row + i, sizeof x); memcpy(&factor, weight + i, sizeof factor);
                const v16 off = (nearest(x, inverse, zero, most) - zero) * scale - x;
                sum += off * off * factor;
            }
            float error = 0.0f;
            for (int i = 0; i < 16; i++) error += sum[i];
            if (error < least) { least = error; best[place] = c; }
        }
        if (!(least < __builtin_inff())) best[place] = 0;
    }
}

#if defined(__AVX512BF16__)
#include <immintrin.h>
#define ROWS 12
#define DEEP 1536       /* values that are summed before the sums go to memory */
#define TALL 96         /* rows whose panels stay in the L2 cache */

typedef struct { const float *at; ptrdiff_t r, c; } factor;   /* [R][columns], strides in floats */

typedef uint32_t u16v __attribute__((vector_size(64)));
typedef uint16_t h16v __attribute__((vector_size(32)));
/* 16 numbers rounded to bfloat16, each in the low half of its lane */
INLINE u16v narrow(const float *p) {
    h16v h = (h16v)_mm512_cvtneps_pbh(_mm512_loadu_ps(p));
    return __builtin_convertvector(h, u16v);
}

/* A panel of `width` columns from `c0` on: pairs of rows [r0, r1) as [pair][width][2]; what is not there is 0. */
static void pack(const factor *f, int r0, int r1, int c0, int columns, const int width, uint32_t *out) {
    const int there = columns - c0 < width ? columns - c0 : width, pairs = (r1 - r0 + 1) / 2;
    float x[32] __attribute__((aligned(64))) = {0}, y[32] __attribute__((aligned(64))) = {0};
    if (f->c == 1) {            /* columns lie side by side */
        for (int p = 0; p < pairs; p++, out += width) {
            const float *even = f->at + (r0 + 2 * p) * f->r + c0;
            memcpy(x, even, (size_t)there * 4);
            if (r0 + 2 * p + 1 < r1) memcpy(y, even + f->r, (size_t)there * 4); else memset(y, 0, sizeof y);
            for (int c = 0; c < 32; c += 16) {
                const u16v both = narrow(x + c) | narrow(y + c) << 16;
                if (c < width) memcpy(out + c, &both, (size_t)(width - c < 16 ? width - c : 16) * 4);
            }
        }
        return;
    }
    for (int p = 0; p < pairs; p += 16) {     /* rows do, or nothing does */
        uint32_t turned[32][16];
        const int count = r1 - (r0 + 2 * p) < 32 ? r1 - (r0 + 2 * p) : 32;
        memset(turned[there], 0, sizeof turned[0] * (size_t)(width - there));
        for (int c = 0; c < there; c++) {
            const float *from = f->at + (r0 + 2 * p) * f->r + (c0 + c) * f->c;
            if (count < 32) memset(x, 0, sizeof x);
            if (f->r == 1) memcpy(x, from, (size_t)count * 4); else for (int r = 0; r < count; r++) x[r] = from[r * f->r];
            const __m512i v = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x));
            memcpy(turned[c], &v, 64);
        }
        for (int q = 0; q < 16 && p + q < pairs; q++) for (int c = 0; c < width; c++) out[(ptrdiff_t)(p + q) * width + c] = turned[c][q];
    }
}

static void block(const uint32_t *a, const uint32_t *b, int pairs, float *c, ptrdiff_t ld, int rows, int columns, int fresh) {
    __m512 sum[ROWS][2];
    for (int m = 0; m < ROWS; m++) sum[m][0] = sum[m][1] = _mm512_setzero_ps();
    for (int p = 0; p < pairs; p++, a += ROWS, b += 32) {
        const __m512bh x = (__m512bh)_mm512_loadu_si512(b), y = (__m512bh)_mm512_loadu_si512(b + 16);
        _Pragma("clang loop unroll(full)")
        for (int m = 0; m < ROWS; m++) {
            const __m512bh v = (__m512bh)_mm512_set1_epi32((int)a[m]);
            sum[m][0] = _mm512_dpbf16_ps(sum[m][0], v, x); sum[m][1] = _mm512_dpbf16_ps(sum[m][1], v, y);
        }
    }
    for (int m = 0; m < rows; m++) {
        lanes s = {(v16)sum[m][0], (v16)sum[m][1]}, old = fresh ? (lanes){splat(0.0f), splat(0.0f)} : fetch(c + m * ld, columns);
        s.a += old.a; s.b += old.b;
        put(c + m * ld, s, columns);
    }
}

/* c [M][N] = Σ over rows [first, last) of aᵀ·b in bfloat16, for columns [m0, m1) of a; triangle: only blocks that reach the diagonal
 * or lie above it. room: llmc_product_room(n) floats. */
EXPORT int64_t llmc_product_room(int n) { return (int64_t)DEEP / 2 * ((n + 31) / 32 * 32 + TALL) + 64; }
EXPORT void llmc_product(const factor *a, const factor *b, int first, int last, int m0, int m1, int n, float *c, ptrdiff_t ld, int triangle, float *room) {
    uint32_t *right = (uint32_t *)room, *left = right + (ptrdiff_t)DEEP / 2 * ((n + 31) / 32 * 32);
    for (int r = first; r < last; r += DEEP) {
        const int end = last - r < DEEP ? last : r + DEEP, pairs = (end - r + 1) / 2;
        for (int j = 0; j < n; j += 32) pack(b, r, end, j, n, 32, right + (ptrdiff_t)pairs * j);
        for (int m = m0; m < m1; m += TALL) {
            const int tall = m1 - m < TALL ? m1 - m : TALL;
            for (int i = 0; i < tall; i += ROWS) pack(a, r, end, m + i, m1, ROWS, left + (ptrdiff_t)pairs * i);
            for (int j = triangle ? m / 32 * 32 : 0; j < n; j += 32)
                for (int i = 0; i < tall; i += ROWS) {
                    if (triangle && j + 32 <= m + i) continue;
                    block(left + (ptrdiff_t)pairs * i, right + (ptrdiff_t)pairs * j, pairs, c + (ptrdiff_t)(m + i) * ld + j, ld, tall - i < ROWS ? tall - i : ROWS, n - j < 32 ? n - j : 32, r == first);
                }
        }
    }
}
#endif
