/* AMX tiles. tdpbf16ps is, for each output, one chain of fused multiply-adds over the even elements of a chunk and one over the odd
 * ones, both from zero, whose sum is added to the accumulator; it takes denormal numbers for zero. */
#include <sys/syscall.h>
#include <unistd.h>

/* The kernel grants tiles to a process that asks: XFEATURE_XTILEDATA through ARCH_REQ_XCOMP_PERM. */
INLINE int tiles_permitted(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }
/* Accumulators, 0 to 3, are 16 rows of 64 bytes; rows, 4 and 5, 16 of `depth` bytes (64 or 32); weights, 6 and 7, `depth` / 4 of 64. */
INLINE void tiles_configure(int depth) {
    struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } __attribute__((packed, aligned(64))) c;
    memset(&c, 0, sizeof c);
    c.palette = 1;
    for (int i = 0; i < 8; i++) { c.bytes[i] = i == 4 || i == 5 ? depth : 64; c.rows[i] = i < 6 ? 16 : depth / 4; }
    __asm__ volatile("" : : "r"(&c) : "memory"); /* gcc's intrinsic declares only 8 of the 64 bytes as read */
    _tile_loadconfig(&c);
}
INLINE void tiles_release(void) { _tile_release(); }
#define tile_zero(i) _tile_zero(i)
#define tile_load(i, p, stride) _tile_loadd(i, p, stride)
#define tile_store(i, p, stride) _tile_stored(i, p, stride)
#define tile_bf16(c, a, b) _tile_dpbf16ps(c, a, b)
#define tile_signed(c, a, b) _tile_dpbssd(c, a, b)   /* rows and weights are signed bytes */
#define tile_unsigned(c, a, b) _tile_dpbsud(c, a, b) /* weights are unsigned */
