/* What the kernels' sources are written in: one source for AMD GPUs, by clang's builtins alone, and, with EMULATE, for this CPU
 * (emulator.h). WAVE, the lanes of a wave, is given by the compiler's command line. */
#pragma once
typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;
struct bf16 { u16 bits; };
struct f16 { u16 bits; };
struct e4m3 { u8 bits; };

#if defined(EMULATE)
#include "emulator.h"
#else
#define DEV static inline __attribute__((device, always_inline))
#define KERNEL(threads) extern "C" __attribute__((global, amdgpu_flat_work_group_size(threads, threads))) void
#define SHARED(T, name, n) __attribute__((shared)) static T name[n]
#define EMULATED(name, ...)
DEV int thread() { return (int)__builtin_amdgcn_workitem_id_x(); }
DEV int group_x() { return (int)__builtin_amdgcn_workgroup_id_x(); }
DEV int group_y() { return (int)__builtin_amdgcn_workgroup_id_y(); }
DEV int group_z() { return (int)__builtin_amdgcn_workgroup_id_z(); }
DEV int groups_y() { return (int)(__builtin_amdgcn_grid_size_y() / __builtin_amdgcn_workgroup_size_y()); }
DEV int groups_z() { return (int)(__builtin_amdgcn_grid_size_z() / __builtin_amdgcn_workgroup_size_z()); }
/* All threads of the group meet, and see what each wrote before. */
DEV void meet() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
/* The value of the lane whose number differs in the bits of mask. */
DEV float across(float v, int mask) {
    const int lane = WAVE == 64 ? __builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0u)) : __builtin_amdgcn_mbcnt_lo(~0u, 0u);
    return __builtin_bit_cast(float, __builtin_amdgcn_ds_bpermute((lane ^ mask) << 2, __builtin_bit_cast(int, v)));
}
#endif

DEV u32 bits_of(float x) { return __builtin_bit_cast(u32, x); }
DEV float float_of(u32 bits) { return __builtin_bit_cast(float, bits); }
DEV float infinity() { return __builtin_inff(); }
DEV float larger(float a, float b) { return a > b ? a : b; }
DEV float smaller(float a, float b) { return a < b ? a : b; }
DEV float magnitude(float x) { return __builtin_fabsf(x); }
/* The nearest whole number, ties to even, for |x| < 2^22. */
DEV float near(float x) { return (x + 12582912.0f) - 12582912.0f; }

DEV float wide(float x) { return x; }
DEV float wide(i8 x) { return (float)x; }
DEV float wide(u8 x) { return (float)x; }
DEV float wide(int x) { return (float)x; }
DEV float wide(bf16 x) { return float_of((u32)x.bits << 16); }
DEV float wide(f16 x) { return (float)__builtin_bit_cast(_Float16, x.bits); }
DEV float wide(e4m3 x) { return float_of((((u32)x.bits & 0x80) << 24) | (((u32)x.bits & 0x7f) << 20)) * 1.329227995784916e36f; }
/* To a type, rounded to nearest even; to 8 bits only what they hold. */
DEV void put(float *to, float x) { *to = x; }
DEV void put(i8 *to, float x) { *to = (i8)x; }
DEV void put(bf16 *to, float x) { const u32 u = bits_of(x); to->bits = (u16)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16); }
DEV void put(f16 *to, float x) { to->bits = __builtin_bit_cast(u16, (_Float16)x); }
DEV void put(e4m3 *to, float x) {
    const u32 sign = bits_of(x) >> 24 & 0x80;
    const float a = magnitude(x);
    to->bits = (u8)(sign | (a < 0.015625f ? (u32)(a * 512.0f) : (bits_of(a) >> 20) - (120u << 3)));
}
DEV float as_bf16(float x) { bf16 y; put(&y, x); return wide(y); }
DEV float near_e4m3(float x) {
    const float a = magnitude(x);
    const u32 bits = bits_of(a);
    const float normal = float_of((bits + 0x7ffffu + ((bits >> 20) & 1u)) & 0xfff00000u);
    const float r = smaller(a < 0.015625f ? near(a * 512.0f) * 0.001953125f : normal, 448.0f);
    return x < 0.0f ? -r : r;
}

DEV float sum_of_wave(float v) {
#pragma unroll
    for (int mask = WAVE / 2; mask > 0; mask >>= 1) v += across(v, mask);
    return v;
}
DEV float most_of_wave(float v) {
#pragma unroll
    for (int mask = WAVE / 2; mask > 0; mask >>= 1) v = larger(v, across(v, mask));
    return v;
}
/* Over all threads of the group, in one order; `room` has a place for each wave. */
template <int WAVES> DEV float sum_of_group(float v, float *room) {
    v = sum_of_wave(v);
    if (WAVES == 1) return v;
    meet();
    if (thread() % WAVE == 0) room[thread() / WAVE] = v;
    meet();
    v = 0.0f;
    for (int i = 0; i < WAVES; i++) v += room[i];
    return v;
}
template <int WAVES> DEV float most_of_group(float v, float *room) {
    v = most_of_wave(v);
    if (WAVES == 1) return v;
    meet();
    if (thread() % WAVE == 0) room[thread() / WAVE] = v;
    meet();
    v = room[0];
    for (int i = 1; i < WAVES; i++) v = larger(v, room[i]);
    return v;
}

DEV float power_of_two(float x) { return __builtin_exp2f(x); }
DEV float sigmoid(float x) { return 1.0f / (1.0f + power_of_two(-1.4426950408889634f * x)); }
/* The row of the artifact's packing that row n on the device is: see `packed_row` of the Triton kernels. */
DEV int packed_row(int n, bool gated) {
    if (!gated) return n;
    const int j = n / 16 * 8 + n % 8;
    return j / 16 * 32 + n % 16 / 8 * 16 + j % 16;
}
