/* Vectors of 16 lanes, written once for every instruction set.
 *
 * clang splits a 64-byte vector into what the machine has (one register on AVX-512, two on AVX2, four on NEON), so the
 * arithmetic, and with it every bit of the result, is the same on all of them. -ffp-contract=off: only fma() fuses. */
#include <stdint.h>
#include <stddef.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef float v16 __attribute__((vector_size(64)));
typedef int32_t i16v __attribute__((vector_size(64)));
typedef uint32_t u16v __attribute__((vector_size(64)));
typedef uint16_t h16v __attribute__((vector_size(32)));
typedef int8_t b16v __attribute__((vector_size(16)));
typedef uint8_t ub16v __attribute__((vector_size(16)));
typedef _Float16 f16x16 __attribute__((vector_size(32)));
typedef struct { v16 e, o; } pair;

INLINE v16 splat(float x) { return (v16){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
INLINE i16v splati(int32_t x) { return (i16v){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
INLINE v16 load16(const float *p) { v16 v; memcpy(&v, p, 64); return v; }
INLINE void store16(float *p, v16 v) { memcpy(p, &v, 64); }
INLINE u16v loadu32(const void *p) { u16v v; memcpy(&v, p, 64); return v; }

#ifndef __has_builtin
#define __has_builtin(x) 0
#endif
INLINE v16 fma16(v16 a, v16 b, v16 c) {
#if __has_builtin(__builtin_elementwise_fma)
    return __builtin_elementwise_fma(a, b, c);
#elif defined(__AVX512F__)
    return (v16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    v16 r;
    for (int i = 0; i < 16; i++) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return r;
#endif
}
#if defined(__AVX512F__) /* the same, NaN and signed zeros included */
INLINE v16 max16(v16 a, v16 b) { return (v16)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE v16 min16(v16 a, v16 b) { return (v16)_mm512_min_ps((__m512)a, (__m512)b); }
#else
INLINE v16 max16(v16 a, v16 b) { return (v16)((((u16v)(a > b)) & (u16v)a) | (~((u16v)(a > b)) & (u16v)b)); }
INLINE v16 min16(v16 a, v16 b) { return (v16)((((u16v)(a < b)) & (u16v)a) | (~((u16v)(a < b)) & (u16v)b)); }
#endif
INLINE v16 select16(i16v mask, v16 a, v16 b) { return (v16)(((u16v)mask & (u16v)a) | (~(u16v)mask & (u16v)b)); }
INLINE v16 abs16(v16 a) { return (v16)((u16v)a & 0x7fffffffu); }

/* Round to the nearest integer, ties to even, |x| < 2^22: the constant pushes the fraction out of the mantissa. */
INLINE v16 rint16(v16 x) { v16 m = splat(12582912.0f); return (x + m) - m; }
INLINE i16v to_int16(v16 x) { return __builtin_convertvector(x, i16v); }
INLINE i16v near_int16(v16 x) { /* to_int16(rint16(x)) */
#if defined(__AVX512F__)
    return (i16v)_mm512_cvtps_epi32((__m512)x);
#else
    return to_int16(rint16(x));
#endif
}
INLINE v16 to_float16v(i16v x) { return __builtin_convertvector(x, v16); }

/* Round float32 to bfloat16 precision (nearest even), kept as float32. NaN stays NaN. */
INLINE v16 round_bf16(v16 x) {
    u16v u = (u16v)x;
    u16v r = (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u;
    return select16((i16v)(x == x), (v16)r, x);
}
/* Sixteen floats that are exact in bfloat16. */
INLINE void narrow16(uint16_t *to, v16 v) { h16v h = __builtin_convertvector((u16v)v >> 16, h16v); memcpy(to, &h, 32); }
INLINE void narrow(const float *x, int n, uint16_t *to) { for (int i = 0; i < n; i += 16) narrow16(to + i, load16(x + i)); } /* n of them, a multiple of 16 */
INLINE uint16_t bf16_bits(float x) {
    uint32_t u; memcpy(&u, &x, 4);
    if (x != x) return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
INLINE float bf16_value(uint16_t b) { uint32_t u = (uint32_t)b << 16; float f; memcpy(&f, &u, 4); return f; }

/* Sums and maxima over lanes in one fixed order. */
INLINE float sum16(v16 v) {
    float t[16]; memcpy(t, &v, 64);
    for (int w = 8; w; w >>= 1) for (int i = 0; i < w; i++) t[i] += t[i + w];
    return t[0];
}
INLINE float hmax16(v16 v) {
    float t[16]; memcpy(t, &v, 64);
    for (int w = 8; w; w >>= 1) for (int i = 0; i < w; i++) t[i] = t[i] > t[i + w] ? t[i] : t[i + w];
    return t[0];
}

/* acc + the products of pairs of 16-bit numbers, exactly: of lane i, w's and x's two. */
INLINE i16v dot_pairs(i16v acc, u16v w, u16v x) {
#if defined(__AVX512VNNI__)
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));   /* of the intrinsic clang makes two instructions */
    return acc;
#elif defined(__AVX2__)
    __m256i a[2], b[2], c[2];
    memcpy(a, &w, 64); memcpy(b, &x, 64); memcpy(c, &acc, 64);
    for (int i = 0; i < 2; i++) c[i] = _mm256_add_epi32(c[i], _mm256_madd_epi16(a[i], b[i]));
    memcpy(&acc, c, 64);
    return acc;
#else
    return acc + ((i16v)(w << 16) >> 16) * ((i16v)(x << 16) >> 16) + ((i16v)w >> 16) * ((i16v)x >> 16);
#endif
}

/* --- functions: polynomials of our own, so that no library's version changes a bit ------------------------------- */

INLINE v16 exp_within16(v16 x) { /* for -104 <= x <= 88.72283 */
    v16 n = rint16(x * splat(1.44269504088896341f));
    v16 r = fma16(n, splat(-0.693359375f), x);
    r = fma16(n, splat(2.12194440e-4f), r);
    v16 p = splat(1.9875691500e-4f);
    p = fma16(p, r, splat(1.3981999507e-3f));
    p = fma16(p, r, splat(8.3334519073e-3f));
    p = fma16(p, r, splat(4.1665795894e-2f));
    p = fma16(p, r, splat(1.6666665459e-1f));
    p = fma16(p, r, splat(5.0000001201e-1f));
    p = fma16(p, r * r, r) + splat(1.0f);
#if defined(__AVX512F__)
    return (v16)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    /* 2^n in two steps, so that results below 2^-126 are right too */
    i16v k = to_int16(n), half = k >> 1;
    return p * (v16)((half + 127) << 23) * (v16)((k - half + 127) << 23);
#endif
}
INLINE v16 exp16(v16 x) { return exp_within16(min16(splat(88.72283f), max16(splat(-104.0f), x))); } /* in this order NaN stays NaN */
INLINE v16 log16(v16 x) { /* x > 0; 0 gives -inf, negative gives NaN */
    v16 tiny = (v16)(x < splat(1.17549435e-38f));
    v16 scaled = select16((i16v)tiny, x * splat(8388608.0f), x);
    i16v bits = (i16v)scaled;
    i16v e = (bits - 0x3f3504f3) >> 23;
    v16 m = (v16)(bits - (e << 23)) - splat(1.0f);
    v16 ef = to_float16v(e) - (v16)((u16v)tiny & (u16v)splat(23.0f));
    v16 p = splat(7.0376836292e-2f);
    p = fma16(p, m, splat(-1.1514610310e-1f)); p = fma16(p, m, splat(1.1676998740e-1f));
    p = fma16(p, m, splat(-1.2420140846e-1f)); p = fma16(p, m, splat(1.4249322787e-1f));
    p = fma16(p, m, splat(-1.6668057665e-1f)); p = fma16(p, m, splat(2.0000714765e-1f));
    p = fma16(p, m, splat(-2.4999993993e-1f)); p = fma16(p, m, splat(3.3333331174e-1f));
    v16 z = m * m;
    v16 y = m * z * p;
    y = fma16(ef, splat(-2.12194440e-4f), y);
    y = fma16(z, splat(-0.5f), y);
    v16 r = fma16(ef, splat(0.693359375f), m + y);
    r = select16((i16v)(x == splat(0.0f)), splat(-__builtin_inff()), r);
    r = select16((i16v)(x == splat(__builtin_inff())), x, r);
    return select16((i16v)((x < splat(0.0f)) | (x != x)), splat(__builtin_nanf("")), r);
}
INLINE v16 sqrt16(v16 x) {
#if defined(__AVX512F__)
    return (v16)_mm512_sqrt_ps((__m512)x);
#else
    v16 r;
    for (int i = 0; i < 16; i++) r[i] = __builtin_sqrtf(x[i]);
    return r;
#endif
}
INLINE v16 sigmoid16(v16 x) { return splat(1.0f) / (splat(1.0f) + exp16(-x)); }
INLINE v16 tanh16(v16 x) { /* odd polynomial near 0, where 1 - 2/(e^2x + 1) cancels */
    v16 a = abs16(x), z = x * x;
    v16 p = splat(-5.70498872745e-3f);
    p = fma16(p, z, splat(2.06390887954e-2f)); p = fma16(p, z, splat(-5.37397155531e-2f));
    p = fma16(p, z, splat(1.33314422036e-1f)); p = fma16(p, z, splat(-3.33332819422e-1f));
    v16 small = fma16(p * z, x, x);
    v16 large = splat(1.0f) - splat(2.0f) / (exp16(a + a) + splat(1.0f));
    large = (v16)((u16v)large | ((u16v)x & 0x80000000u));
    return select16((i16v)(a < splat(0.625f)), small, large);
}
INLINE v16 erf16(v16 x) { /* |x| < 1: Maclaurin-like minimax; else 1 - erfc by exp(-x^2) and a rational in t (Numerical Recipes' erfccheb, error < 1.2e-7) */
    v16 a = abs16(x), z = x * x;
    v16 p = splat(7.853861353153693E-5f);
    p = fma16(p, z, splat(-8.010193625184903E-4f)); p = fma16(p, z, splat(5.188327685732524E-3f));
    p = fma16(p, z, splat(-2.685381193529856E-2f)); p = fma16(p, z, splat(1.128358514861418E-1f));
    p = fma16(p, z, splat(-3.761262582423300E-1f)); p = fma16(p, z, splat(1.128379165726710E+0f));
    v16 small = x * p;
    v16 t = splat(1.0f) / fma16(splat(0.5f), a, splat(1.0f));
    v16 q = splat(0.17087277f);
    q = fma16(q, t, splat(-0.82215223f)); q = fma16(q, t, splat(1.48851587f)); q = fma16(q, t, splat(-1.13520398f));
    q = fma16(q, t, splat(0.27886807f)); q = fma16(q, t, splat(-0.18628806f)); q = fma16(q, t, splat(0.09678418f));
    q = fma16(q, t, splat(0.37409196f)); q = fma16(q, t, splat(1.00002368f)); q = fma16(q, t, splat(-1.26551223f));
    v16 large = splat(1.0f) - t * exp16(q - a * a);
    large = (v16)((u16v)large | ((u16v)x & 0x80000000u));
    return select16((i16v)(a < splat(1.0f)), small, large);
}
INLINE v16 log1p16(v16 x) { /* accurate near 0: log(1+x) * x / ((1+x) - 1) */
    v16 u = splat(1.0f) + x, d = u - splat(1.0f);
    v16 r = log16(u) * (x / d);
    return select16((i16v)(d == splat(0.0f)), x, r);
}
INLINE v16 expm116(v16 x) {
    v16 t = tanh16(x * splat(0.5f));
    v16 small = (t + t) / (splat(1.0f) - t);
    return select16((i16v)(abs16(x) < splat(0.5f)), small, exp16(x) - splat(1.0f));
}
INLINE v16 silu16(v16 x) { return x / (splat(1.0f) + exp16(-x)); }
INLINE v16 gelu16(v16 x) { return splat(0.5f) * x * (splat(1.0f) + erf16(x * splat(0.70710678118654752f))); }
INLINE v16 gelu_tanh16(v16 x) {
    v16 u = splat(0.79788456080286536f) * fma16(splat(0.044715f) * x * x, x, x);
    return splat(0.5f) * x * (splat(1.0f) + tanh16(u));
}
INLINE v16 quick_gelu16(v16 x) { return x * sigmoid16(splat(1.702f) * x); }
INLINE v16 relu16(v16 x) { return max16(splat(0.0f), x); }
INLINE v16 relu216(v16 x) { v16 r = relu16(x); return r * r; }
INLINE v16 softplus16(v16 x) { return select16((i16v)(x > splat(20.0f)), x, max16(splat(0.0f), x) + log1p16(exp16(-abs16(x)))); }

/* sine and cosine of a float32 angle: reduced in double (positions reach millions of radians), polynomials of double. */
INLINE void sincos1(float angle, float *s, float *c) {
    double x = (double)angle, n = __builtin_floor(x * 0.63661977236758134308 + 0.5);
    double r = x - n * 1.57079632679489655800e+00;
    r -= n * 6.12323399573676603587e-17;
    double z = r * r;
    double sn = r + r * z * (-1.66666666666666324348e-01 + z * (8.33333333332248946124e-03 + z * (-1.98412698298579493134e-04 + z * (2.75573137070700676789e-06 + z * (-2.50507602534068634195e-08 + z * 1.58969099521155010221e-10)))));
    double cs = 1.0 - 0.5 * z + z * z * (4.16666666666666019037e-02 + z * (-1.38888888888741095749e-03 + z * (2.48015872894767294178e-05 + z * (-2.75573143513906633035e-07 + z * (2.08757232129817482790e-09 + z * -1.13596475577881948265e-11)))));
    int64_t q = (int64_t)n & 3;
    double a = q & 1 ? cs : sn, b = q & 1 ? sn : cs;
    *s = (float)(q & 2 ? -a : a);
    *c = (float)((q == 1 || q == 2) ? -b : b);
}
