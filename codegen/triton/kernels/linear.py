"""Products with weights on a GPU.

Cost model (N×K weight, M rows): bytes = the weight once for each tile of rows, operations = 2·M·N·K. One to some tens of rows are
bound by the device's memory, more by its matrix units.

The weight is the left operand, so that one instruction shape serves any number of rows: out[n, m] = Σ_k w[n, k]·x[m, k], K in steps
of one instruction, in order, from zero. Codes are exact in bfloat16 (or int8); a group's sum is scaled in float32 and added. So a
row's bits depend on neither the number of rows, nor its place among them, nor the shape of the tiles.
"""

import triton
import triton.language as tl

from .common import activate, begin, decode, fetch, gate, packed_row


@triton.jit
def finish(
    acc, tile, m, m_in, bias_ptr, residual_ptr, y_ptr,
    N: tl.constexpr, LDY: tl.constexpr, LDR: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr,
    LIMIT: tl.constexpr, ALPHA: tl.constexpr, WIDTH: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Bias, activation or gate, residual; y[m, n] of a tile acc [BN, BM]."""
    n = tile * BN + tl.arange(0, BN)
    if BIAS:
        acc += tl.load(bias_ptr + packed_row(n, GATED), mask=n < N, other=0.0)[:, None]
    if GATED:
        g, u = tl.split(tl.permute(tl.reshape(acc, (BN // 16, 2, 8, BM)), (0, 2, 3, 1)))
        acc = tl.reshape(gate(g, u, ACT, LIMIT, ALPHA), (BN // 2, BM))
        n = tile * (BN // 2) + tl.arange(0, BN // 2)
    else:
        acc = activate(acc, ACT)
    inside = (n < WIDTH)[:, None] & m_in[None, :]
    if RESIDUAL:
        acc += tl.load(residual_ptr + m[None, :].to(tl.int64) * LDR + n[:, None], mask=inside, other=0.0)
    tl.store(y_ptr + m[None, :].to(tl.int64) * LDY + n[:, None], acc.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def banded(pid, rows, TILES: tl.constexpr, BM: tl.constexpr, BAND: tl.constexpr):
    """(tile of N, tile of rows) number pid: bands of BAND tiles of rows, so that what runs at a time shares weights and rows."""
    tiles_m = tl.cdiv(rows, BM)
    width: tl.constexpr = BAND * TILES
    first = pid // width * BAND
    size = tl.minimum(tiles_m - first, BAND)
    return pid % width // size, first + pid % width % size


@triton.jit
def scaled(acc, tile, m, m_in, scale_ptr, xscale_ptr, N: tl.constexpr, SCALED: tl.constexpr, BN: tl.constexpr):
    """A tile of sums of 8-bit floats, times the scales of its outputs and of its rows."""
    if SCALED:
        n = tile * BN + tl.arange(0, BN)
        acc = acc * tl.load(scale_ptr + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
        acc = acc * tl.load(xscale_ptr + m, mask=m_in, other=0.0)[None, :]
    return acc


@triton.jit
def linear(
    x_ptr, w_ptr, scale_ptr, xscale_ptr, bias_ptr, residual_ptr, y_ptr, rows,
    N: tl.constexpr, K: tl.constexpr, KW: tl.constexpr, LDX: tl.constexpr, LDY: tl.constexpr, LDR: tl.constexpr, SCALED: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr, WIDTH: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BAND: tl.constexpr, STAGES: tl.constexpr, FETCH: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """y [rows, WIDTH] = epilogue(x [rows, K] · wᵀ), w [N, KW] in the type of x. Grid (tiles of N, tiles of rows). SCALED: both are 8-bit
    floats, with a scale for each row of either."""
    tiles: tl.constexpr = (N + BN - 1) // BN
    tile, tile_m = tl.program_id(0), tl.program_id(1)
    if BAND > 0:
        tile, tile_m = banded(tile_m * tiles + tile, rows, tiles, BM, BAND)
    n = tile * BN + tl.arange(0, BN)
    m = tile_m * BM + tl.arange(0, BM)
    m_in = m < rows
    k = tl.arange(0, BK)
    held = tl.where(n < N, n, 0).to(tl.int64)  # rows past the last are computed, not stored
    w_row = w_ptr + held[:, None] * KW
    if FETCH > 0:
        fetch(w_ptr + held * KW, FETCH)
    begin(OVERLAP)
    x_row = x_ptr + m[:, None].to(tl.int64) * LDX
    acc = tl.zeros((BN, BM), tl.float32)
    for k0 in tl.range(0, KW, BK, num_stages=STAGES):
        if KW == K and KW % BK == 0:
            x = tl.load(x_row + (k0 + k)[None, :], mask=m_in[:, None], other=0.0)
            w = tl.load(w_row + (k0 + k)[None, :])
        else:
            x = tl.load(x_row + (k0 + k)[None, :], mask=m_in[:, None] & (k0 + k < K)[None, :], other=0.0)
            w = tl.load(w_row + (k0 + k)[None, :], mask=(k0 + k < KW)[None, :], other=0.0)
        acc = tl.dot(w, tl.trans(x), acc, input_precision="ieee")
    acc = scaled(acc, tile, m, m_in, scale_ptr, xscale_ptr, N, SCALED, BN)
    finish(acc, tile, m, m_in, bias_ptr, residual_ptr, y_ptr, N, LDY, LDR, BIAS, RESIDUAL, ACT, GATED, LIMIT, ALPHA, WIDTH, BN, BM)


@triton.jit
def linear_tiles(
    x_ptr, w_ptr, scale_ptr, xscale_ptr, bias_ptr, residual_ptr, y_ptr, rows,
    N: tl.constexpr, K: tl.constexpr, KW: tl.constexpr, LDX: tl.constexpr, LDY: tl.constexpr, LDR: tl.constexpr, SCALED: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr, WIDTH: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BAND: tl.constexpr, STAGES: tl.constexpr, PROGRAMS: tl.constexpr, FLAT: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """`linear` for many rows on chips that copy tiles by themselves: PROGRAMS programs, each taking one tile after another."""
    begin(OVERLAP)
    tiles: tl.constexpr = (N + BN - 1) // BN
    count = tiles * tl.cdiv(rows, BM)
    x_tiles = tl.make_tensor_descriptor(x_ptr, [rows, K], [LDX, 1], [BM, BK])
    w_tiles = tl.make_tensor_descriptor(w_ptr, [N, KW], [KW, 1], [BN, BK])
    for pid in tl.range(tl.program_id(0), count, PROGRAMS, flatten=FLAT):
        tile, tile_m = banded(pid, rows, tiles, BM, BAND)
        acc = tl.zeros((BN, BM), tl.float32)
        for k0 in tl.range(0, KW, BK, num_stages=STAGES):
            acc = tl.dot(w_tiles.load([tile * BN, k0]), x_tiles.load([tile_m * BM, k0]).T, acc)
        m = tile_m * BM + tl.arange(0, BM)
        acc = scaled(acc, tile, m, m < rows, scale_ptr, xscale_ptr, N, SCALED, BN)
        finish(acc, tile, m, m < rows, bias_ptr, residual_ptr, y_ptr, N, LDY, LDR, BIAS, RESIDUAL, ACT, GATED, LIMIT, ALPHA, WIDTH, BN, BM)


@triton.jit
def group_sum(
    codes,
    x,
    table_ptr,
    zero,
    KIND: tl.constexpr,
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
            part = tl.dot(c.to(tl.int8), tl.trans(x), out_dtype=tl.int32).to(tl.float32)
        else:
            part = tl.dot(c.to(tl.bfloat16), tl.trans(x), out_dtype=tl.float32)
    elif KIND == "level":
        c = tl.load(table_ptr + codes.to(tl.int32))
        part = tl.dot(c, tl.trans(x.to(tl.float32)), out_dtype=tl.float32, input_precision="ieee")
    else:
        part = tl.dot(decode(codes, KIND), tl.trans(x), out_dtype=tl.float32)
    return part


@triton.jit
def linear_coded(
    x_ptr, w_ptr, scale_ptr, zero_ptr, table_ptr, xscale_ptr, bias_ptr, residual_ptr, y_ptr, rows,
    N: tl.constexpr, K: tl.constexpr, KW: tl.constexpr, LDX: tl.constexpr, LDY: tl.constexpr, LDR: tl.constexpr,
    KIND: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    HAS_ZERO: tl.constexpr, HAS_OFFSET: tl.constexpr, INT8: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr, WIDTH: tl.constexpr,
    SPAN: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, FETCH: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """`linear` with coded weights. KIND: "int", "level", "e4m3" or "e5m2", scales [N, GROUPS] (one group: the whole channel).
    Codes of 4 bits: byte j of a block of 2·SPAN values holds values j and SPAN + j."""
    tile = tl.program_id(0)
    n = tile * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    n_in, m_in = n < N, m < rows
    if FETCH > 0:
        fetch(w_ptr + tl.where(n_in, n, 0).to(tl.int64) * (KW * BITS // 8), FETCH)
    begin(OVERLAP)
    x_row = x_ptr + m[:, None].to(tl.int64) * LDX
    acc = tl.zeros((BN, BM), tl.float32)
    k = tl.arange(0, SPAN)
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
            part = group_sum(codes, x, table_ptr, zero, KIND, ZERO, HAS_ZERO, INT8)
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
    finish(acc, tile, m, m_in, bias_ptr, residual_ptr, y_ptr, N, LDY, LDR, BIAS, RESIDUAL, ACT, GATED, LIMIT, ALPHA, WIDTH, BN, BM)
