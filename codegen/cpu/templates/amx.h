/* AMX tiles: 16 rows of 64 bytes. On a machine without them (LLMC_AMX_EMULATED) the same operations in plain code, so that the
 * kernels are tested everywhere: tdpbf16ps is, for each output, one chain of fused multiply-adds over the even elements of a
 * chunk and one over the odd ones, both from zero, whose sum is added to the accumulator. */
#include <sys/syscall.h>
#include <unistd.h>

#if defined(LLMC_AMX_EMULATED)
typedef struct { _Alignas(64) uint8_t b[16][64]; } tile;
static _Thread_local tile tile_registers[8];
INLINE int tiles_permitted(void) { return 1; }
INLINE void tiles_configure(void) {}
INLINE void tiles_release(void) {}
#define tile_zero(i) memset(&tile_registers[i], 0, 1024)
INLINE void tile_move(int i, const void *p, ptrdiff_t stride, void *out) {
    for (int r = 0; r < 16; r++) {
        if (out) memcpy((char *)out + r * stride, tile_registers[i].b[r], 64);
        else memcpy(tile_registers[i].b[r], (const char *)p + r * stride, 64);
    }
}
#define tile_load(i, p, stride) tile_move(i, p, stride, NULL)
#define tile_store(i, p, stride) tile_move(i, NULL, stride, p)
static void tile_bf16(int c, int a, int b) {
    for (int m = 0; m < 16; m++) for (int n = 0; n < 16; n++) {
        float e = 0.0f, o = 0.0f, sum;
        const uint16_t *x = (const uint16_t *)tile_registers[a].b[m];
        for (int k = 0; k < 16; k++) {
            const uint16_t *w = (const uint16_t *)tile_registers[b].b[k] + 2 * n;
            e = __builtin_fmaf(bf16_value(x[2 * k]), bf16_value(w[0]), e);
            o = __builtin_fmaf(bf16_value(x[2 * k + 1]), bf16_value(w[1]), o);
        }
        memcpy(&sum, tile_registers[c].b[m] + 4 * n, 4);
        sum += e + o;
        memcpy(tile_registers[c].b[m] + 4 * n, &sum, 4);
    }
}
static void tile_int8(int c, int a, int b) { /* signed rows, unsigned columns */
    for (int m = 0; m < 16; m++) for (int n = 0; n < 16; n++) {
        int32_t sum;
        memcpy(&sum, tile_registers[c].b[m] + 4 * n, 4);
        for (int k = 0; k < 16; k++) for (int i = 0; i < 4; i++) sum += (int32_t)(int8_t)tile_registers[a].b[m][4 * k + i] * (int32_t)tile_registers[b].b[k][4 * n + i];
        memcpy(tile_registers[c].b[m] + 4 * n, &sum, 4);
    }
}
#else
/* The kernel grants tiles to a process that asks: XFEATURE_XTILEDATA through ARCH_REQ_XCOMP_PERM. */
INLINE int tiles_permitted(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }
INLINE void tiles_configure(void) {
    struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } __attribute__((packed, aligned(64))) c;
    memset(&c, 0, sizeof c);
    c.palette = 1;
    for (int i = 0; i < 8; i++) { c.bytes[i] = 64; c.rows[i] = 16; }
    __asm__ volatile("" : : "r"(&c) : "memory"); /* gcc's intrinsic declares only 8 of the 64 bytes as read */
    _tile_loadconfig(&c);
}
INLINE void tiles_release(void) { _tile_release(); }
#define tile_zero(i) _tile_zero(i)
#define tile_load(i, p, stride) _tile_loadd(i, p, stride)
#define tile_store(i, p, stride) _tile_stored(i, p, stride)
#define tile_bf16(c, a, b) _tile_dpbf16ps(c, a, b)
#define tile_int8(c, a, b) _tile_dpbsud(c, a, b)
#endif
