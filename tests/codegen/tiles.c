/* AMX instructions, carried out where the CPU does not know them: an illegal one is decoded and done as Intel's manual says
 * (Instruction Set Reference, chapter 8), then the program goes on. Preloaded, so that the machine code of the AMX level runs as it
 * is on any machine with AVX-512. Whatever hardware would refuse ends the process with a line that says why: no permission asked
 * for, tiles used before a configuration, shapes that do not fit, an instruction that is none of AMX. */
#define _GNU_SOURCE
#include <errno.h>
#include <immintrin.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

typedef struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } __attribute__((packed)) config;
static _Thread_local config shape;
static _Thread_local _Alignas(64) uint8_t registers[8][16][64];
static int permitted;
static uint64_t products;

static void fail(const char *why) {
    write(2, "tiles: ", 7), write(2, why, strlen(why)), write(2, "\n", 1);
    _exit(99);
}

/* The C library's syscall(), which grants tiles where the kernel does not. */
__attribute__((visibility("default"))) long syscall(long number, ...) {
    long a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
    va_end(list);
    register long r10 __asm__("r10") = a[3], r8 __asm__("r8") = a[4], r9 __asm__("r9") = a[5];
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    if (number == SYS_arch_prctl && a[0] == 0x1023 && result && a[1] == 18) return permitted = 1, 0;
    if (result < 0 && result > -4096) return errno = -result, -1;
    return result;
}

static void configure(const config *c) {
    if (!permitted) fail("ldtilecfg without permission for tiles");
    if (c->palette != 1 || c->start) fail("ldtilecfg with another palette than 1");
    for (int i = 0; i < 14; i++) if (c->reserved[i]) fail("ldtilecfg with reserved bytes set");
    for (int i = 0; i < 16; i++) {
        if (c->bytes[i] > 64 || c->rows[i] > 16 || !c->bytes[i] != !c->rows[i]) fail("ldtilecfg with a shape that no tile has");
        if (i >= 8 && c->rows[i]) fail("ldtilecfg with more than 8 tiles");
    }
    shape = *c;
    memset(registers, 0, sizeof registers);
}

static void used(int i) {
    if (!shape.palette) fail("a tile is used before ldtilecfg");
    if (i > 7 || !shape.rows[i]) fail("a tile is used that has no shape");
}

static void move(int i, char *p, int64_t stride, int out) {
    used(i);
    if (!out) memset(registers[i], 0, sizeof registers[i]);
    for (int r = 0; r < shape.rows[i]; r++) {
        if (out) memcpy(p + r * stride, registers[i][r], shape.bytes[i]);
        else memcpy(registers[i][r], p + r * stride, shape.bytes[i]);
    }
}

/* c [M, N] += a [M, K] b [K, N], K in units of four bytes. */
static void product(int c, int a, int b, int opcode, int prefix) {
    used(a), used(b), used(c), __atomic_add_fetch(&products, 1, __ATOMIC_RELAXED);
    int rows = shape.rows[c], columns = shape.bytes[c], depth = shape.bytes[a] / 4;
    if (a == b || a == c || b == c) fail("a product of a tile and itself");
    if (shape.rows[a] != rows || shape.bytes[b] != columns || shape.rows[b] != depth || columns % 4) fail("a product of tiles whose shapes do not fit");
    __mmask16 lanes = (1u << (columns / 4)) - 1;
    for (int m = 0; m < rows; m++) {
        if (opcode == 0x5C) {
            __m512 even = _mm512_setzero_ps(), odd = even, sum = _mm512_load_ps(registers[c][m]);
            for (int k = 0; k < depth; k++) {
                uint32_t x;
                memcpy(&x, registers[a][m] + 4 * k, 4);
                __m512i w = _mm512_load_si512(registers[b][k]);
                even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_set1_epi32(x << 16)), _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)), even);
                odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_set1_epi32(x & 0xffff0000)), _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(0xffff0000))), odd);
            }
            _mm512_mask_store_ps(registers[c][m], lanes, _mm512_add_ps(sum, _mm512_add_ps(even, odd)));
            continue;
        }
        int signed_a = prefix == 3 || prefix == 2, signed_b = prefix == 3 || prefix == 1; /* F2 ss, F3 su, 66 us, none uu */
        for (int n = 0; n < columns / 4; n++) {
            int32_t sum;
            memcpy(&sum, registers[c][m] + 4 * n, 4);
            for (int k = 0; k < depth; k++) for (int i = 0; i < 4; i++) {
                uint8_t x = registers[a][m][4 * k + i], w = registers[b][k][4 * n + i];
                sum += (signed_a ? (int8_t)x : x) * (signed_b ? (int8_t)w : w);
            }
            memcpy(registers[c][m] + 4 * n, &sum, 4);
        }
    }
}

static void illegal(int number, siginfo_t *info, void *context) {
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *p = (const uint8_t *)g[REG_RIP];
    if (p[0] != 0xC4 || (p[1] & 0x1f) != 2 || p[2] & 0x84) fail("an illegal instruction that is none of AMX");
    int far = !(p[1] & 0x80), index_high = !(p[1] & 0x40), base_high = !(p[1] & 0x20), prefix = p[2] & 3, second = ~(p[2] >> 3) & 15;
    int opcode = p[3], mod = p[4] >> 6, reg = (p[4] >> 3 & 7) | far << 3, low = p[4] & 7;
    _mm_setcsr(0x9fc0); /* tiles round to nearest and know no denormal numbers; the interrupted code's state comes back by itself */
    if (mod == 3) {
        if (opcode == 0x49 && prefix == 0 && p[4] == 0xC0) memset(&shape, 0, sizeof shape);
        else if (opcode == 0x49 && prefix == 3 && !low) used(reg), memset(registers[reg], 0, sizeof registers[reg]);
        else if ((opcode == 0x5C && prefix == 2) || opcode == 0x5E) product(reg, low, second, opcode, prefix);
        else fail("an unknown instruction on tiles");
        g[REG_RIP] += 5;
        return;
    }
    int length = 5, scale = 0, index = -1, base = low | base_high << 3;
    if (low == 4) {
        scale = p[5] >> 6, index = (p[5] >> 3 & 7) | index_high << 3, base = (p[5] & 7) | base_high << 3, length = 6;
        if (index == 4) index = -1;
    }
    int64_t address = 0, stride = index < 0 ? 0 : (int64_t)g[order[index]] * (1 << scale);
    int32_t wide;
    if (mod == 1) address = (int8_t)p[length++];
    else if (mod == 2 || (base & 7) == 5) memcpy(&wide, p + length, 4), address = wide, length += 4;
    if (mod == 0 && (base & 7) == 5) address += low == 4 ? 0 : (int64_t)p + length;
    else address += g[order[base]];
    if (opcode == 0x49 && prefix == 0 && !(reg & 7)) configure((const config *)address);
    else if (opcode == 0x4B && low == 4 && prefix) move(reg, (char *)address, stride, prefix == 2);
    else fail("an unknown instruction on tiles and memory");
    g[REG_RIP] += length;
}

__attribute__((constructor)) static void begin(void) {
    struct sigaction action = {.sa_sigaction = illegal, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGILL, &action, 0);
}

/* Products of tiles that were carried out here. */
__attribute__((visibility("default"))) uint64_t tiles_multiplied(void) { return products; }
