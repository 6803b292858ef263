"""A mixture of experts on a GPU: each (token, choice) pair reads the tile of its expert's weight that it needs.

Cost model: bytes = the chosen experts' weights once a pair, so a decode reads what it must; operations = 2·pairs·N·K. The sum over K
runs in blocks of SPAN in order, by plain arithmetic: no pair's bits depend on another.
"""

import triton
import triton.language as tl

from .common import activate, begin, decode, gate


@triton.jit
def expert(
    x_ptr, index_ptr, w_ptr, scale_ptr, zero_ptr, table_ptr, bias_ptr, y_ptr,
    EXPERTS: tl.constexpr, DIVIDE: tl.constexpr, N: tl.constexpr, K: tl.constexpr, KW: tl.constexpr, LDX: tl.constexpr,
    KIND: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, HAS_ZERO: tl.constexpr,
    BIAS: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr, WIDTH: tl.constexpr,
    SPAN: tl.constexpr, BN: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (pairs, tiles of N): y [pairs, WIDTH] = act(w_e · x[pair // DIVIDE] + bias_e), e = index[pair]; N rows an expert."""
    begin(OVERLAP)
    pair = tl.program_id(0).to(tl.int64)
    e = tl.load(index_ptr + pair).to(tl.int64)
    e = tl.where((e < 0) | (e >= EXPERTS), 0, e)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    row = e * N + n
    n_in = n < N
    x_row = x_ptr + (pair // DIVIDE) * LDX
    k = tl.arange(0, SPAN)
    acc = tl.zeros((BN,), tl.float32)
    for k0 in range(0, KW, SPAN):
        x = tl.load(x_row + k0 + k, mask=k0 + k < K, other=0.0).to(tl.float32)
        if KIND == "float":
            w = tl.load(w_ptr + row[:, None] * KW + (k0 + k)[None, :], mask=n_in[:, None], other=0.0)
            acc += tl.sum(w.to(tl.float32) * x.to(w.dtype).to(tl.float32)[None, :], 1)
        else:
            if BITS == 4:
                place = k0 // (2 * SPAN) * SPAN
                raw = tl.load(w_ptr + row[:, None] * (KW // 2) + (place + k)[None, :], mask=n_in[:, None], other=0).to(tl.int32)
                codes = (raw >> (4 * (k0 // SPAN % 2))) & 15
            else:
                codes = tl.load(w_ptr + row[:, None] * KW + (k0 + k)[None, :], mask=n_in[:, None], other=0).to(tl.int32)
            g = tl.minimum(k0 // GROUP, GROUPS - 1)
            if KIND == "int":
                codes = codes - ZERO
                if HAS_ZERO:
                    codes = codes - tl.load(zero_ptr + row * GROUPS + g, mask=n_in, other=0).to(tl.int32)[:, None]
                w = codes.to(tl.float32)
            elif KIND == "level":
                w = tl.load(table_ptr + codes)
            else:
                w = decode(codes, KIND).to(tl.float32)
            scale = tl.load(scale_ptr + row * GROUPS + g, mask=n_in, other=0.0).to(tl.float32)
            acc += tl.sum(w * x[None, :], 1) * scale
    if BIAS:
        acc += tl.load(bias_ptr + row, mask=n_in, other=0.0)
    if GATED:
        both = tl.permute(tl.reshape(acc, (BN // 32, 2, 16)), (0, 2, 1))
        g2, u = tl.split(both)
        acc = tl.reshape(gate(g2, u, ACT, LIMIT, ALPHA), (BN // 2,))
        n = tl.program_id(1) * (BN // 2) + tl.arange(0, BN // 2)
    else:
        acc = activate(acc, ACT)
    tl.store(y_ptr + pair * WIDTH + n, acc, mask=n < WIDTH)


@triton.jit
def weigh(x_ptr, weight_ptr, y_ptr, CHOICES: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """Grid (tokens, blocks of K): y[t] = Σ_j weight[t, j]·x[t, j], in the order of choices."""
    begin(OVERLAP)
    t = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for j in range(CHOICES):
        acc += tl.load(x_ptr + (t * CHOICES + j) * K + k, mask=k < K, other=0.0) * tl.load(weight_ptr + t * CHOICES + j)
    tl.store(y_ptr + t * K + k, acc, mask=k < K)
