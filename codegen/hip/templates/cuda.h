/* NVIDIA's GPUs, by clang's builtins and PTX. */
#pragma once
#define DEV static inline __attribute__((device, always_inline))
#define KERNEL(threads) extern "C" __attribute__((global, launch_bounds(threads))) void
/* A kernel of which a multiprocessor holds one group. */
#define KERNEL_ALONE(threads) extern "C" __attribute__((global, launch_bounds(threads, 1))) void
#define METHOD inline __attribute__((device, always_inline))
#define SHARED(T, name, n) __attribute__((shared)) static T name[n]
/* The memory that the launch gives the group, n bytes. */
#define SHARED_BYTES(name, n) extern __attribute__((shared, aligned(16))) char name[]
#define EMULATED(name, ...)
typedef u32 u32x4 __attribute__((ext_vector_type(4)));
DEV int thread() { return (int)__nvvm_read_ptx_sreg_tid_x(); }
/* The same, asked for anew: what follows from it need not be kept. */
DEV int self() { int i; asm volatile("mov.u32 %0, %%tid.x;" : "=r"(i)); return i; }
DEV int group_x() { return (int)__nvvm_read_ptx_sreg_ctaid_x(); }
DEV int group_y() { return (int)__nvvm_read_ptx_sreg_ctaid_y(); }
DEV int group_z() { return (int)__nvvm_read_ptx_sreg_ctaid_z(); }
DEV int groups_y() { return (int)__nvvm_read_ptx_sreg_nctaid_y(); }
DEV int groups_z() { return (int)__nvvm_read_ptx_sreg_nctaid_z(); }
/* All threads of the group, of a wave, or so many as share a barrier (1 to 15), meet and see what each wrote before. */
DEV void meet() { asm volatile("bar.sync 0;" ::: "memory"); }
DEV void meet_wave() { asm volatile("bar.warp.sync 0xffffffff;" ::: "memory"); }
DEV void meet_some(int barrier, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory"); }
/* All groups of the grid, which must be there at the same time, meet: counter, which each raises by one, has come to goal. */
DEV void meet_grid(u64 *counter, u64 goal) {
    meet();
    if (thread() == 0) {
        u64 come;
        asm volatile("red.release.gpu.global.add.u64 [%0], 1;" ::"l"(counter) : "memory");
        do asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(come) : "l"(counter) : "memory");
        while (come < goal);
    }
    meet();
}
/* Come to the grid's last meeting, which nobody waits for. */
DEV void arrive(u64 *counter) {
    meet();
    if (thread() == 0) asm volatile("red.release.gpu.global.add.u64 [%0], 1;" ::"l"(counter) : "memory");
}
/* Whether this group is the last of `wanted` to come to a counter, which then begins anew; what the others wrote before is there. room: a word of the group's. */
DEV bool last_of(u32 *counter, int wanted, int *room) {
    meet();
    if (thread() == 0) {
        u32 come;
        asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(come) : "l"(counter) : "memory");
        *room = come == (u32)wanted - 1;
        if (*room) *counter = 0;
    }
    meet();
    const bool last = *(volatile int *)room;
    return last;
}
/* What other groups have written since this kernel began. */
DEV float fresh(const float *x) { float y; asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(y) : "l"(x)); return y; }
DEV u32 fresh(const u32 *x) { u32 y; asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(y) : "l"(x)); return y; }
/* 2^x in one instruction, 0 for results under the smallest normal number. */
DEV float power_flushed(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
/* The value of the lane whose number differs in the bits of mask. */
DEV float across(float v, int mask) {
    float y;
    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, 0xffffffff;" : "=f"(y) : "f"(v), "r"(mask));
    return y;
}
/* Launches overlap: the next may begin; what the former wrote is there. */
DEV void let_next_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
DEV void await_former() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
/* 16 bytes of global memory to the group's, on their way; copies come in batches, which arrive in order. */
DEV void copy_16(void *to, const void *from) {
    const u32 at = (u32)(u64)(__attribute__((address_space(3))) void *)to;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
}
DEV void end_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* All of this thread's batches but the LEFT last have arrived. */
template <int LEFT> DEV void await_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }
/* c [16, 8] += a [16, 16] · b [16, 8], of bfloat16: lane 4·g + t holds c[g][2t], c[g][2t+1], and of row g + 8 the same; a[g][2t..], a[g+8][2t..], a[g][2t+8..],
 * a[g+8][2t+8..]; b[2t..][g], b[2t+8..][g]. */
DEV void multiply(float *c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
DEV u32 shared_address(const void *p) { return (u32)(u64)(__attribute__((address_space(3))) const void *)p; }
/* 16 bytes of shared memory, where `wanted`; else what was there stays. */
DEV void load_if(bool wanted, const void *from, int offset, u32x4 &to) {
    u32 a = to[0], b = to[1], c = to[2], d = to[3];
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %5, 0; @p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4+%6]; }" : "+r"(a), "+r"(b), "+r"(c), "+r"(d) : "r"(shared_address(from)), "r"((u32)wanted), "n"(offset) : "memory");
    to = u32x4{a, b, c, d};
}
/* Barriers in shared memory: a phase is over when `count` have come and all bytes that were announced are there. */
DEV void begin_barrier(u64 *barrier, int count) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory"); }
DEV void barriers_begun() { asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async;" ::: "memory"); }
DEV void await_phase(const u64 *barrier, int parity) {
    asm volatile("{ .reg .pred p; AGAIN%=: mbarrier.try_wait.parity.shared.b64 p, [%0], %1; @!p bra AGAIN%=; }" ::"r"(shared_address(barrier)), "r"(parity) : "memory");
}
/* Bytes of global memory to the group's, on their way; they, and the one who asks, come to the barrier. */
DEV void copy_to(void *to, const void *from, int bytes, u64 *barrier) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier)) : "memory");
}
DEV u32 held_by(u32 x, int lane) {
    u32 y;
    asm volatile("shfl.sync.idx.b32 %0, %1, %2, 31, 0xffffffff;" : "=r"(y) : "r"(x), "r"(lane));
    return y;
}
/* Four matrices of 8 by 8 elements of 16 bits: `row` is where row lane % 8 of matrix lane / 8 begins; of each, this lane gets those at [2t][g] and [2t+1][g]. */
DEV void transposed(u32 *out, const void *row) {
    const u32 at = (u32)(u64)(__attribute__((address_space(3))) const void *)row;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(at) : "memory");
}
/* Of four codes in either half of a word, number q → a pair of bfloat16 (code - ZERO)·2^-7: the bits of a code alone are the bfloat16 code·2^-133. */
template <int ZERO> DEV u32 nibble_pair(u32 word, int q) {
    u32 pair = (q < 2 ? word : word >> 8) & (q % 2 ? 0x00F000F0 : 0x000F000F);
    asm("fma.rn.bf16x2 %0, %0, %1, %2;" : "+r"(pair) : "r"(q % 2 ? 0x7C807C80 : 0x7E807E80), "r"(ZERO ? 0xBD80BD80 : 0));
    return pair;
}
