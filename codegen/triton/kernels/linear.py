"""Products with weights on a GPU.

Cost model (N×K weight, M rows): bytes = the weight once for each tile of rows, operations = 2·M·N·K. One to some tens of rows are
bound by the device's memory, more by its matrix units.

The weight is the left operand, so that one instruction shape serves any number of rows: out[n, m] = Σ_k w[n, k]·x[m, k], K in steps
of one instruction, in order, from zero. Codes are exact in bfloat16 (or int8); a group's sum is scaled in float32 and added. So a
row's bits depend on neither the number of rows, nor its place among them, nor the shape of the tiles.
"""

import triton
import triton.language as tl

from .common import activate, begin, decode, gate, packed_row, prefetch, release, wait

NIBBLES = tl.constexpr(
    "{ .reg .b32 a, one, off; mov.b32 one, 0x3F803F80; mov.b32 off, 0xC308C308;"
    " lop3.b32 $0, $4, 0x000F000F, 0x43004300, 0xEA; fma.rn.bf16x2 $0, $0, one, off;"
    " shr.u32 a, $4, 4; lop3.b32 $1, a, 0x000F000F, 0x43004300, 0xEA; fma.rn.bf16x2 $1, $1, one, off;"
    " shr.u32 a, $4, 8; lop3.b32 $2, a, 0x000F000F, 0x43004300, 0xEA; fma.rn.bf16x2 $2, $2, one, off;"
    " shr.u32 a, $4, 12; lop3.b32 $3, a, 0x000F000F, 0x43004300, 0xEA; fma.rn.bf16x2 $3, $3, one, off; }"
)
"""q + 128 is a bfloat16 whose last four bits are q; 136 is subtracted."""
UNSIGNED_NIBBLES = tl.constexpr(NIBBLES.value.replace("0xC308C308", "0xC300C300"))


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
    BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BAND: tl.constexpr, STAGES: tl.constexpr, LINES: tl.constexpr, STRIDE: tl.constexpr, THREADS: tl.constexpr,
    OVERLAP: tl.constexpr,
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
    if LINES > 0:
        prefetch(w_ptr + (tile * BN).to(tl.int64) * KW, STRIDE, BN, LINES, THREADS)
    wait(OVERLAP)
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
    release(OVERLAP)
    acc = scaled(acc, tile, m, m_in, scale_ptr, xscale_ptr, N, SCALED, BN)
    finish(
        acc, tile, m, m_in, bias_ptr, residual_ptr, y_ptr, N, LDY, LDR, BIAS, RESIDUAL, ACT, GATED, LIMIT, ALPHA, WIDTH, BN, BM
    )


@triton.jit
def linear_tiles(
    x_ptr, w_ptr, scale_ptr, xscale_ptr, bias_ptr, residual_ptr, y_ptr, rows,
    N: tl.constexpr, K: tl.constexpr, KW: tl.constexpr, LDX: tl.constexpr, LDY: tl.constexpr, LDR: tl.constexpr, SCALED: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr, WIDTH: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BAND: tl.constexpr, STAGES: tl.constexpr, PROGRAMS: tl.constexpr, FLAT: tl.constexpr, PARTS: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """`linear` for many rows on chips that copy tiles by themselves: PROGRAMS programs, each taking one tile after another. PARTS: the rows of a
    tile are finished in so many parts."""
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
        if PARTS == 2:
            pieces = tl.split(tl.permute(tl.reshape(acc, (BN, 2, BM // 2)), (0, 2, 1)))
        else:
            pieces = (acc,)
        for i in tl.static_range(PARTS):
            m = tile_m * BM + i * (BM // PARTS) + tl.arange(0, BM // PARTS)
            piece = scaled(pieces[i], tile, m, m < rows, scale_ptr, xscale_ptr, N, SCALED, BN)
            finish(
                piece, tile, m, m < rows, bias_ptr, residual_ptr, y_ptr, N, LDY, LDR, BIAS, RESIDUAL, ACT, GATED, LIMIT, ALPHA, WIDTH, BN, BM // PARTS,
            )  # fmt: skip


@triton.jit
def quarters(words, ZERO: tl.constexpr, ASM: tl.constexpr):
    """Words of four 4-bit codes → four values less ZERO (0 or 8), as bfloat16. ASM: two words at a time, in eleven instructions."""
    if ASM:
        code: tl.constexpr = UNSIGNED_NIBBLES if ZERO == 0 else NIBBLES
        a, b, c, d = tl.inline_asm_elementwise(
            code, "=r,=r,=r,=r,r", [words], dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
        )
    else:
        wide = words.to(tl.int32)
        a, b = ((wide & 15) - ZERO).to(tl.bfloat16), (((wide >> 4) & 15) - ZERO).to(tl.bfloat16)
        c, d = (((wide >> 8) & 15) - ZERO).to(tl.bfloat16), (((wide >> 12) & 15) - ZERO).to(tl.bfloat16)
    return a, b, c, d


@triton.jit
def linear_nibbles(
    x_ptr, w_ptr, scale_ptr, zero_ptr, part_ptr, bias_ptr, residual_ptr, y_ptr, rows,
    N: tl.constexpr, K: tl.constexpr, KW: tl.constexpr, LDX: tl.constexpr, LDY: tl.constexpr, LDR: tl.constexpr, ZERO: tl.constexpr, GROUP: tl.constexpr, HAS_ZERO: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr, WIDTH: tl.constexpr,
    SPAN: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, CHUNKS: tl.constexpr, APART: tl.constexpr, STAGES: tl.constexpr, ASM: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """`linear` with 4-bit integers in groups: word j of a block of 4·SPAN values holds values j, SPAN + j, 2·SPAN + j and 3·SPAN + j, and blocks
    lie as [N / 64][KW / 4·SPAN][64][SPAN]; scales and zero points [KW / GROUP, N]. K is summed in CHUNKS, each from zero, then those in
    order. APART: a program sums one chunk (grid: tiles of N, tiles of rows, CHUNKS) into part [CHUNKS, rows, N], which `close` adds; else
    all in turn."""
    tile = tl.program_id(0)
    n = tile * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    n_in, m_in = n < N, m < rows
    STEPS: tl.constexpr = KW // (4 * SPAN) // CHUNKS
    PER: tl.constexpr = 4 * SPAN // GROUP  # groups a step
    WORDS: tl.constexpr = KW // (4 * SPAN)
    wait(OVERLAP)
    k = tl.arange(0, SPAN)
    held = tl.where(n_in, n, 0)
    w_row = w_ptr + ((held // 64).to(tl.int64) * (WORDS * 64) + held % 64)[:, None] * SPAN
    x_row = x_ptr + m[:, None].to(tl.int64) * LDX
    total = tl.zeros((BN, BM), tl.float32)
    first = tl.program_id(2) if APART else 0
    for chunk in range(first, first + 1 if APART else CHUNKS):
        acc = tl.zeros((BN, BM), tl.float32)
        for step in tl.range(chunk * STEPS, (chunk + 1) * STEPS, num_stages=STAGES):
            words = tl.load(w_row + (step * (64 * SPAN) + k)[None, :])
            four = quarters(words, ZERO, ASM)
            part = tl.zeros((BN, BM), tl.float32)
            for q in tl.static_range(4):
                at = step * (4 * SPAN) + q * SPAN
                if K == KW:
                    x = tl.load(x_row + (at + k)[None, :], mask=m_in[:, None], other=0.0)
                else:
                    x = tl.load(x_row + (at + k)[None, :], mask=m_in[:, None] & (at + k < K)[None, :], other=0.0)
                g = step * PER + q * SPAN // GROUP
                w = four[q]
                if HAS_ZERO:
                    w = w - tl.load(zero_ptr + g * N + held).to(tl.bfloat16)[:, None]
                part = tl.dot(w, tl.trans(x), part)
                if (q + 1) * SPAN % GROUP == 0:
                    acc += part * tl.load(scale_ptr + g * N + held).to(tl.float32)[:, None]
                    part = tl.zeros((BN, BM), tl.float32)
        total += acc
    release(OVERLAP)
    if APART:
        place = (first * rows + m)[None, :].to(tl.int64) * N + n[:, None]
        tl.store(part_ptr + place, total, mask=n_in[:, None] & m_in[None, :])
    else:
        finish(
            total,
            tile,
            m,
            m_in,
            bias_ptr,
            residual_ptr,
            y_ptr,
            N,
            LDY,
            LDR,
            BIAS,
            RESIDUAL,
            ACT,
            GATED,
            LIMIT,
            ALPHA,
            WIDTH,
            BN,
            BM,
        )


@triton.jit
def close(
    part_ptr, bias_ptr, residual_ptr, y_ptr, rows,
    N: tl.constexpr, LDY: tl.constexpr, LDR: tl.constexpr, CHUNKS: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr,
    LIMIT: tl.constexpr, ALPHA: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (rows, blocks of WIDTH): what `linear_nibbles` left apart, added in order, and its epilogue."""
    begin(OVERLAP)
    m = tl.program_id(0)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = n < WIDTH
    at = n
    if GATED:
        at = n // 8 * 16 + n % 8
    acc = tl.zeros((BLOCK,), tl.float32)
    up = tl.zeros((BLOCK,), tl.float32)
    for chunk in tl.static_range(CHUNKS):
        row = part_ptr + (chunk * rows + m).to(tl.int64) * N
        acc += tl.load(row + at, mask=inside, other=0.0)
        if GATED:
            up += tl.load(row + at + 8, mask=inside, other=0.0)
    if BIAS:
        acc += tl.load(bias_ptr + packed_row(at, GATED), mask=inside, other=0.0)
        if GATED:
            up += tl.load(bias_ptr + packed_row(at + 8, GATED), mask=inside, other=0.0)
    if GATED:
        acc = gate(acc, up, ACT, LIMIT, ALPHA)
    else:
        acc = activate(acc, ACT)
    if RESIDUAL:
        acc += tl.load(residual_ptr + m.to(tl.int64) * LDR + n, mask=inside, other=0.0)
    tl.store(y_ptr + m.to(tl.int64) * LDY + n, acc.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def group_sum(
    raw, x, half, g, row, n_in, zero_ptr, table_ptr,
    KIND: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr, GROUPS: tl.constexpr, HAS_ZERO: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    """Σ over one span of K, all of group g: codes of rows `row` [BN, S], the half of bytes `raw` that 4 bits take, by x [BM, S] → float32
    [BN, BM]."""
    codes = raw
    if BITS == 4:
        codes = (raw >> (4 * half)) & 15
    if KIND == "int":
        c = codes.to(tl.int32) - ZERO
        if HAS_ZERO:
            c = c - tl.load(zero_ptr + row * GROUPS + g, mask=n_in, other=0).to(tl.int32)[:, None]
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
    SPAN: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """`linear` with coded weights. KIND: "int", "level", "e4m3" or "e5m2", scales [N, GROUPS] (one group: the whole channel).
    Codes of 4 bits: byte j of a block of 2·SPAN values holds values j and SPAN + j."""
    tile = tl.program_id(0)
    n = tile * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    n_in, m_in = n < N, m < rows
    wait(OVERLAP)
    x_row = x_ptr + m[:, None].to(tl.int64) * LDX
    acc = tl.zeros((BN, BM), tl.float32)
    k = tl.arange(0, SPAN)
    w_row = w_ptr + n[:, None].to(tl.int64) * (KW * BITS // 8)
    for k0 in range(0, KW, SPAN * 8 // BITS):
        raw = tl.load(w_row + (k0 * BITS // 8 + k)[None, :], mask=n_in[:, None], other=0)
        for half in tl.static_range(0, 8 // BITS):
            at = k0 + half * SPAN
            x = tl.load(x_row + (at + k)[None, :], mask=m_in[:, None] & (at + k < K)[None, :], other=0)
            g = tl.minimum(at // GROUP, GROUPS - 1)
            part = group_sum(raw, x, half, g, n, n_in, zero_ptr, table_ptr, KIND, BITS, ZERO, GROUPS, HAS_ZERO, INT8)
            if GROUPS == 1 and not HAS_OFFSET:
                acc += part
            else:
                acc += part * tl.load(scale_ptr + n * GROUPS + g, mask=n_in, other=0.0).to(tl.float32)[:, None]
                if HAS_OFFSET:
                    offset = tl.load(zero_ptr + n * GROUPS + g, mask=n_in, other=0.0).to(tl.float32)
                    acc += offset[:, None] * tl.sum(x.to(tl.float32), 1)[None, :]
    release(OVERLAP)
    if GROUPS == 1 and not HAS_OFFSET:
        acc = acc * tl.load(scale_ptr + n, mask=n_in, other=0.0).to(tl.float32)[:, None]
    if INT8:
        acc = acc * tl.load(xscale_ptr + m, mask=m_in, other=0.0)[None, :]
    finish(
        acc, tile, m, m_in, bias_ptr, residual_ptr, y_ptr, N, LDY, LDR, BIAS, RESIDUAL, ACT, GATED, LIMIT, ALPHA, WIDTH, BN, BM
    )
