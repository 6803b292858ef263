"""What every kernel begins with, and functions that several share."""

import triton
import triton.language as tl


@triton.jit
def begin(OVERLAP: tl.constexpr):
    """Where launches overlap: let the next one begin at once, and wait until what the ones before wrote is there. For kernels that take little
    of the device."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def wait(OVERLAP: tl.constexpr):
    """Wait until what the launches before wrote is there."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()


@triton.jit
def release(OVERLAP: tl.constexpr):
    """Let the next launch begin: what is left to do leaves room for it."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def fragment(k):
    """Where value k of a row lies that is in the order of fragments: of 64 values, what a thread of a matrix instruction takes of them (of each 16 four,
    2t, 2t + 1, 2t + 8 and 2t + 9) is in one piece."""
    return k // 64 * 64 + k % 8 // 2 * 16 + k % 64 // 16 * 4 + k % 16 // 8 * 2 + k % 2


@triton.jit
def prefetch_line(at):
    """Ask for the lines of 128 bytes at some addresses: they are on their way to the device's cache while the kernel waits for what the launches
    before write."""
    tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def prefetch(base_ptr, ROW: tl.constexpr, ROWS: tl.constexpr, LINES: tl.constexpr, THREADS: tl.constexpr):
    """Ask for LINES lines a thread: from ROWS rows, ROW bytes apart, as many from the beginning of each."""
    lane = tl.arange(0, THREADS)
    for i in tl.static_range(LINES):
        line = i * (THREADS // ROWS) + lane // ROWS
        prefetch_line(base_ptr.to(tl.int64) + (lane % ROWS).to(tl.int64) * ROW + line * 128)


@triton.jit
def activate(x, ACT: tl.constexpr):
    if ACT == "silu":
        x = x * tl.sigmoid(x)
    elif ACT == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACT == "gelu_tanh":
        u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        x = x * tl.sigmoid(2.0 * u)
    elif ACT == "quick_gelu":
        x = x * tl.sigmoid(1.702 * x)
    elif ACT == "relu":
        x = tl.maximum(x, 0.0)
    elif ACT == "relu2":
        x = tl.maximum(x, 0.0) * tl.maximum(x, 0.0)
    elif ACT == "sigmoid":
        x = tl.sigmoid(x)
    elif ACT == "tanh":
        x = 2.0 * tl.sigmoid(2.0 * x) - 1.0
    elif ACT == "softplus":
        x = tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))
    return x


@triton.jit
def gate(g, u, ACT: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr):
    """act(gate) ∘ up; with ALPHA gpt-oss's clamped form."""
    if LIMIT > 0.0:
        g = tl.minimum(g, LIMIT)
        u = tl.minimum(tl.maximum(u, -LIMIT), LIMIT)
    if ALPHA > 0.0:
        return (u + 1.0) * (g * tl.sigmoid(g * ALPHA))
    return activate(g, ACT) * u


@triton.jit
def decode(codes, KIND: tl.constexpr):
    """Bytes of 8-bit floats → bfloat16, exactly."""
    w = codes.to(tl.uint32)
    if KIND == "e4m3":
        bits = ((w & 0x80) << 24) | ((w & 0x7F) << 20)
        return (bits.to(tl.float32, bitcast=True) * 1.329227995784916e36).to(tl.bfloat16)
    bits = ((w & 0x80) << 24) | ((w & 0x7F) << 21)
    return (bits.to(tl.float32, bitcast=True) * 5.192296858534828e33).to(tl.bfloat16)


@triton.jit
def packed_row(n, GATED: tl.constexpr):
    """The row of the artifact's packing that row n on the device is. GATED: the artifact has 16 rows of the gate, then 16 of up, in turn;
    the device 8 and 8, which one thread of a matrix instruction holds together."""
    if GATED:
        j = n // 16 * 8 + n % 8
        n = j // 16 * 32 + n % 16 // 8 * 16 + j % 16
    return n
