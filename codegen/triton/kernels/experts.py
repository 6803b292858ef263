"""A mixture of experts on a GPU: the rows that go to one expert are a tile of a product with its weight.

Cost model: bytes = each chosen expert's weight once for every BM rows that chose it, so a decode reads what it must and a prefill each expert
a few times; operations = 2·pairs·N·K. Sums run as those of `linear` and `linear_coded`: a row's bits depend on no other row.
"""

import triton
import triton.language as tl

from .common import begin, wait
from .linear import finish, group_sum


@triton.jit
def chosen(index_ptr, p, inside, EXPERTS: tl.constexpr):
    """The experts of pairs p; one that is none counts as the first."""
    e = tl.load(index_ptr + p, mask=inside, other=0).to(tl.int32)
    return tl.where(inside, tl.where((e < 0) | (e >= EXPERTS), 0, e), EXPERTS)


@triton.jit
def by_expert(index_ptr, order_ptr, start_ptr, pairs, EXPERTS: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """Grid (EXPERTS): the pairs (token, choice) of an expert, in order, to its part of order [pairs], which begins at start [EXPERTS + 1]."""
    begin(OVERLAP)
    e = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    at = 0
    for p0 in range(0, pairs, BLOCK):
        at += tl.sum((chosen(index_ptr, p0 + lane, p0 + lane < pairs, EXPERTS) < e).to(tl.int32), 0)
    tl.store(start_ptr + e, at)
    if e == EXPERTS - 1:
        tl.store(start_ptr + EXPERTS, pairs)
    for p0 in range(0, pairs, BLOCK):
        p = p0 + lane
        mine = (chosen(index_ptr, p, p < pairs, EXPERTS) == e).to(tl.int32)
        tl.store(order_ptr + at + tl.cumsum(mine, 0) - mine, p, mask=mine == 1)
        at += tl.sum(mine, 0)


@triton.jit
def grouped(
    x_ptr, order_ptr, start_ptr, w_ptr, scale_ptr, zero_ptr, table_ptr, bias_ptr, y_ptr,
    EXPERTS: tl.constexpr, LANES: tl.constexpr, DIVIDE: tl.constexpr, N: tl.constexpr, K: tl.constexpr, KW: tl.constexpr, LDX: tl.constexpr,
    KIND: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, HAS_ZERO: tl.constexpr,
    BIAS: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr, WIDTH: tl.constexpr,
    SPAN: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of N, tiles of pairs, or more): y [pairs, WIDTH] = epilogue(w_e · x[pair // DIVIDE]) for the pairs of `by_expert`; N rows an
    expert. LANES: the power of two from EXPERTS on."""
    wait(OVERLAP)
    tile, j = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, LANES)
    held = tl.load(start_ptr + lane + 1, mask=lane < EXPERTS, other=0) - tl.load(start_ptr + lane, mask=lane < EXPERTS, other=0)
    tiles = (held + BM - 1) // BM
    if j < tl.sum(tiles, 0):
        e = tl.sum((tl.cumsum(tiles, 0) <= j).to(tl.int32), 0)
        place = tl.load(start_ptr + e) + (j - tl.sum(tl.where(lane < e, tiles, 0), 0)) * BM + tl.arange(0, BM)
        m_in = place < tl.load(start_ptr + e + 1)
        pair = tl.load(order_ptr + place, mask=m_in, other=0)
        n = tile * BN + tl.arange(0, BN)
        n_in = n < N
        row = e.to(tl.int64) * N + tl.where(n_in, n, 0)
        x_row = x_ptr + (pair // DIVIDE)[:, None].to(tl.int64) * LDX
        w_row = w_ptr + row[:, None] * (KW * BITS // 8 if KIND != "float" else KW)
        k = tl.arange(0, SPAN)
        acc = tl.zeros((BN, BM), tl.float32)
        if KIND == "float":
            for k0 in range(0, KW, SPAN):
                x = tl.load(x_row + (k0 + k)[None, :], mask=m_in[:, None] & (k0 + k < K)[None, :], other=0.0)
                w = tl.load(w_row + (k0 + k)[None, :])
                acc = tl.dot(w, tl.trans(x), acc, input_precision="ieee")
        else:
            for k0 in range(0, KW, SPAN * 8 // BITS):
                raw = tl.load(w_row + (k0 * BITS // 8 + k)[None, :])
                for half in tl.static_range(0, 8 // BITS):
                    at = k0 + half * SPAN
                    x = tl.load(x_row + (at + k)[None, :], mask=m_in[:, None] & (at + k < K)[None, :], other=0)
                    g = tl.minimum(at // GROUP, GROUPS - 1)
                    part = group_sum(raw, x, half, g, row, n_in, zero_ptr, table_ptr, KIND, BITS, ZERO, GROUPS, HAS_ZERO, False)
                    acc += part * tl.load(scale_ptr + row * GROUPS + g).to(tl.float32)[:, None]
        finish(
            acc, tile, pair, m_in, bias_ptr + e * N, y_ptr, y_ptr, N, WIDTH, 0, BIAS, False, ACT, GATED, LIMIT, ALPHA, WIDTH, BN, BM,
        )  # fmt: skip


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
