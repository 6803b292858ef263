"""Products with packed weights on a GPU.

Cost model (N×K weight, M rows): bytes = the weight once for each tile of rows, operations = 2·M·N·K. One to some tens of rows are
bound by the device's memory, more by its matrix units.

The weight is the left operand, so that one instruction shape serves any number of rows: out[n, m] = Σ_k w[n, k]·x[m, k], K in steps
of one size, from zero. Codes are exact in bfloat16 (or int8); a group's sum is scaled in float32 and added. So a row's bits depend
on neither the number of rows nor its place among them.
"""

import triton
import triton.language as tl


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
def group_sum(
    codes,
    x,
    table_ptr,
    zero,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    ZERO: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    INT8: tl.constexpr,
):
    """Σ over one span of K, all of one group: codes [BN, S] by x [BM, S] → float32 [BN, BM]."""
    if KIND == "int":
        c = codes.to(tl.int32) - ZERO
        if HAS_ZERO:
            c = c - zero[:, None]
        if INT8:
            return tl.dot(c.to(tl.int8), tl.trans(x), out_dtype=tl.int32).to(tl.float32)
        return tl.dot(c.to(tl.bfloat16), tl.trans(x.to(tl.bfloat16)), out_dtype=tl.float32)
    if KIND == "level":
        c = tl.load(table_ptr + codes.to(tl.int32))
        return tl.dot(c, tl.trans(x.to(tl.float32)), out_dtype=tl.float32, input_precision="ieee")
    return tl.dot(decode(codes, KIND), tl.trans(x.to(tl.bfloat16)), out_dtype=tl.float32)


@triton.jit
def linear(
    x_ptr, w_ptr, scale_ptr, zero_ptr, table_ptr, bias_ptr, residual_ptr, xscale_ptr, y_ptr, rows,
    N: tl.constexpr, K: tl.constexpr, KW: tl.constexpr, LDX: tl.constexpr, LDY: tl.constexpr, LDR: tl.constexpr,
    KIND: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    HAS_ZERO: tl.constexpr, HAS_OFFSET: tl.constexpr, INT8: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    ACT: tl.constexpr, GATED: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr, WIDTH: tl.constexpr,
    SPAN: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """y [rows, WIDTH] = epilogue(x [rows, K] · wᵀ). KIND: "float" (w [N, KW] as it is), "int", "level", "e4m3" or "e5m2" with scales
    [N, GROUPS] (one group: the whole channel). Codes of 4 bits: byte j of a block of 2·SPAN values holds values j and SPAN + j."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    n_in, m_in = n < N, m < rows
    x_row = x_ptr + m[:, None].to(tl.int64) * LDX
    acc = tl.zeros((BN, BM), tl.float32)
    k = tl.arange(0, SPAN)
    if KIND == "float":
        w_row = w_ptr + n[:, None].to(tl.int64) * KW
        for k0 in range(0, KW, SPAN):
            x = tl.load(x_row + (k0 + k)[None, :], mask=m_in[:, None] & (k0 + k < K)[None, :], other=0.0)
            w = tl.load(w_row + (k0 + k)[None, :], mask=n_in[:, None], other=0.0)
            acc = tl.dot(w, tl.trans(x.to(w.dtype)), acc, input_precision="ieee")
    else:
        w_row = w_ptr + n[:, None].to(tl.int64) * (KW * BITS // 8)
        for k0 in range(0, KW, SPAN * 8 // BITS):
            raw = tl.load(w_row + (k0 * BITS // 8 + k)[None, :], mask=n_in[:, None], other=0)
            for half in tl.static_range(0, 8 // BITS):
                at = k0 + half * SPAN
                codes = raw
                if BITS == 4:
                    codes = (raw >> (4 * half)) & 15
                x = tl.load(x_row + (at + k)[None, :], mask=m_in[:, None] & (at + k < K)[None, :], other=0)
                g = tl.minimum(at // GROUP, GROUPS - 1)
                zero = tl.zeros((BN,), tl.int32)
                if HAS_ZERO:
                    zero = tl.load(zero_ptr + n * GROUPS + g, mask=n_in, other=0).to(tl.int32)
                part = group_sum(codes, x, table_ptr, zero, KIND, BITS, ZERO, HAS_ZERO, INT8)
                if GROUPS == 1 and not HAS_OFFSET:
                    acc += part
                else:
                    acc += part * tl.load(scale_ptr + n * GROUPS + g, mask=n_in, other=0.0).to(tl.float32)[:, None]
                    if HAS_OFFSET:
                        offset = tl.load(zero_ptr + n * GROUPS + g, mask=n_in, other=0.0).to(tl.float32)
                        acc += offset[:, None] * tl.sum(x.to(tl.float32), 1)[None, :]
        if GROUPS == 1 and not HAS_OFFSET:
            acc = acc * tl.load(scale_ptr + n, mask=n_in, other=0.0).to(tl.float32)[:, None]
    if INT8:
        acc = acc * tl.load(xscale_ptr + m, mask=m_in, other=0.0)[None, :]
    if BIAS:
        acc += tl.load(bias_ptr + n, mask=n_in, other=0.0)[:, None]
    if GATED:  # rows come as 16 of the gate, then 16 of up, in turn
        both = tl.permute(tl.reshape(acc, (BN // 32, 2, 16, BM)), (0, 2, 3, 1))
        g, u = tl.split(both)
        acc = tl.reshape(gate(g, u, ACT, LIMIT, ALPHA), (BN // 2, BM))
        n = tl.program_id(0) * (BN // 2) + tl.arange(0, BN // 2)
    else:
        acc = activate(acc, ACT)
    inside = (n < WIDTH)[:, None] & m_in[None, :]
    if RESIDUAL:
        acc += tl.load(residual_ptr + m[None, :].to(tl.int64) * LDR + n[:, None], mask=inside, other=0.0)
    tl.store(y_ptr + m[None, :].to(tl.int64) * LDY + n[:, None], acc, mask=inside)
