/* The machine's ceilings, for `llmc bench`: how fast it reads, and how fast it multiplies when nothing else limits it. */

EXPORT int64_t llmc_peak_read(const char *p, int64_t bytes) {
    u16v a[8] = {0};
    for (int64_t i = 0; i + 512 <= bytes; i += 512) UNROLL for (int j = 0; j < 8; j++) a[j] ^= loadu32(p + i + 64 * j);
    for (int j = 1; j < 8; j++) a[0] ^= a[j];
    return a[0][0];
}
#if defined(LLMC_AMX)
/* Operations of one round: four products of tiles, 16 × 16 outputs and 64 bytes of K each. */
EXPORT int llmc_peak_float_operations(void) { return 4 * 16 * 16 * 32 * 2; }
EXPORT int llmc_peak_int8_operations(void) { return 4 * 16 * 16 * 64 * 2; }
INLINE int32_t peak_tiles(int64_t rounds, const int of) {
    int32_t out[256] __attribute__((aligned(64)));
    tiles_configure(64);
    amx_zero(); tile_zero(4); tile_zero(5); tile_zero(6); tile_zero(7);
    for (int64_t r = 0; r < rounds; r++) { AMX_PRODUCT(0, 4, 6); AMX_PRODUCT(1, 4, 7); AMX_PRODUCT(2, 5, 6); AMX_PRODUCT(3, 5, 7); }
    tile_store(0, out, 64);
    tiles_release();
    return out[0];
}
EXPORT float llmc_peak_float(int64_t rounds, float seed) { return seed + peak_tiles(rounds, FLOATS); }
EXPORT int32_t llmc_peak_int8(int64_t rounds, int32_t seed) { return seed + peak_tiles(rounds, SIGNED); }
#else
/* Operations of one round: 12 vectors of 16 lanes, a product and a sum each (and two or four of them where an instruction pairs them). */
#if defined(__AVX512BF16__)
EXPORT int llmc_peak_float_operations(void) { return 12 * 16 * 4; }
#else
EXPORT int llmc_peak_float_operations(void) { return 12 * 16 * 2; }
#endif
EXPORT float llmc_peak_float(int64_t rounds, float seed) {
    v16 a[12], x = splat(seed), y = splat(seed * 0.5f);
    for (int i = 0; i < 12; i++) a[i] = splat((float)i);
    for (int64_t r = 0; r < rounds; r++) UNROLL for (int i = 0; i < 12; i++) {
#if defined(__AVX512BF16__)
        a[i] = (v16)_mm512_dpbf16_ps((__m512)a[i], (__m512bh)x, (__m512bh)y);
#else
        a[i] = fma16(a[i], x, y);
#endif
    }
    for (int i = 1; i < 12; i++) a[0] += a[i];
    return a[0][0];
}
#if defined(__AVX512VNNI__)
INLINE i16v peak_dot(i16v a, u16v w, int32_t x) { return (i16v)_mm512_dpbusd_epi32((__m512i)a, (__m512i)w, _mm512_set1_epi32(x)); }
#elif defined(__AVX2__)
INLINE i16v peak_dot(i16v a, u16v w, int32_t x) {
    struct { __m256i a, b; } h;
    memcpy(&h, &w, 64);
    __m256i xb = _mm256_set1_epi32(x), one = _mm256_set1_epi16(1);
    h.a = _mm256_madd_epi16(_mm256_maddubs_epi16(h.a, xb), one);
    h.b = _mm256_madd_epi16(_mm256_maddubs_epi16(h.b, xb), one);
    i16v d; memcpy(&d, &h, 64);
    return a + d;
}
#else
INLINE i16v peak_dot(i16v a, u16v w, int32_t x) { return a + (i16v)w * x; }
#endif
EXPORT int llmc_peak_int8_operations(void) { return 12 * 16 * 8; }
EXPORT int32_t llmc_peak_int8(int64_t rounds, int32_t seed) {
    i16v a[12];
    u16v w = (u16v)splati(seed) & 0x0f0f0f0fu;
    for (int i = 0; i < 12; i++) a[i] = splati(i);
    for (int64_t r = 0; r < rounds; r++) UNROLL for (int i = 0; i < 12; i++) {
        a[i] = peak_dot(a[i], w, seed);
    }
    for (int i = 1; i < 12; i++) a[0] += a[i];
    return a[0][0];
}
#endif
