"""Products with weights on a GPU.

Cost model (N×K weight, M rows): bytes = the weight once for each tile of rows, operations = 2·M·N·K. One to some tens of rows are
bound by the device's memory, more by its matrix units.

The weight is the left operand, so that one instruction shape serves any number of rows: out[n, m] = Σ_k w[n, k]·x[m, k], K in steps
of one instruction, in order, from zero. Codes are exact in bfloat16 (or int8); a group's sum is scaled in float32 and added. So a
row's bits depend on neither the number of rows, nor its place among them, nor the shape of the tiles.
"""

import triton
import triton.language as tl

from .common import activate, begin, decode, fragment, gate, packed_row, prefetch, release, wait

NIBBLES = tl.constexpr(
    "{ .reg .b32 a, low, high, off; mov.b32 low, 0x7E807E80; mov.b32 high, 0x7C807C80; mov.b32 off, 0xBD80BD80;"
    " and.b32 $0, $4, 0x000F000F; fma.rn.bf16x2 $0, $0, low, off;"
    " and.b32 $1, $4, 0x00F000F0; fma.rn.bf16x2 $1, $1, high, off;"
    " shr.u32 a, $4, 8; and.b32 $2, a, 0x000F000F; fma.rn.bf16x2 $2, $2, low, off;"
    " and.b32 $3, a, 0x00F000F0; fma.rn.bf16x2 $3, $3, high, off; }"
)
"""The bits of q alone are the bfloat16 q·2^-133, those of 16·q likewise: times 2^126 or 2^122, less 8·2^-7."""
UNSIGNED_NIBBLES = tl.constexpr(NIBBLES.value.replace("0xBD80BD80", "0"))
UNIT, BACK = tl.constexpr(0.0078125), tl.constexpr(128.0)
"""What a code's step is worth among the values of `quarters`, and what a group's scale takes back, exactly."""


@triton.jit
def finish(
    acc, tile, m, m_in, bias_ptr, residual_ptr, y_ptr,
    N: tl.constexpr, LDY: tl.constexpr, LDR: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr,
    LIMIT: tl.constexpr, ALPHA: tl.constexpr, WIDTH: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, FRAGMENTS: tl.constexpr = False,
):  # fmt: skip
    """Bias, activation or gate, residual; y[m, n] of a tile acc [BN, BM]. FRAGMENTS: rows of y are in that order."""
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
    if FRAGMENTS:
        n = fragment(n)
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
    """A tile of sums of 8-bit numbers, times the scales of its outputs and of its rows."""
    if SCALED:
        acc = acc.to(tl.float32)
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
    floats or integers, with a scale for each row of either; integers are summed exactly."""
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
    SUM: tl.constexpr = tl.int32 if x_ptr.dtype.element_ty == tl.int8 else tl.float32
    acc = tl.zeros((BN, BM), SUM)
    for k0 in tl.range(0, KW, BK, num_stages=STAGES):
        if KW == K and KW % BK == 0:
            x = tl.load(x_row + (k0 + k)[None, :], mask=m_in[:, None], other=0.0)
            w = tl.load(w_row + (k0 + k)[None, :])
        else:
            x = tl.load(x_row + (k0 + k)[None, :], mask=m_in[:, None] & (k0 + k < K)[None, :], other=0.0)
            w = tl.load(w_row + (k0 + k)[None, :], mask=(k0 + k < KW)[None, :], other=0.0)
        acc = tl.dot(w, tl.trans(x), acc, input_precision="ieee", out_dtype=SUM)
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
    SUM: tl.constexpr = tl.int32 if x_ptr.dtype.element_ty == tl.int8 else tl.float32
    for pid in tl.range(tl.program_id(0), count, PROGRAMS, flatten=FLAT):
        tile, tile_m = banded(pid, rows, tiles, BM, BAND)
        acc = tl.zeros((BN, BM), SUM)
        for k0 in tl.range(0, KW, BK, num_stages=STAGES):
            acc = tl.dot(w_tiles.load([tile * BN, k0]), x_tiles.load([tile_m * BM, k0]).T, acc, out_dtype=SUM)
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
    """Words of four 4-bit codes → four values less ZERO (0 or 8), times UNIT, as bfloat16. ASM: two words at a time, in nine instructions."""
    if ASM:
        code: tl.constexpr = UNSIGNED_NIBBLES if ZERO == 0 else NIBBLES
        a, b, c, d = tl.inline_asm_elementwise(
            code, "=r,=r,=r,=r,r", [words], dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
        )
    else:
        wide = words.to(tl.int32)
        a, b = (((wide & 15) - ZERO) * UNIT).to(tl.bfloat16), ((((wide >> 4) & 15) - ZERO) * UNIT).to(tl.bfloat16)
        c, d = ((((wide >> 8) & 15) - ZERO) * UNIT).to(tl.bfloat16), ((((wide >> 12) & 15) - ZERO) * UNIT).to(tl.bfloat16)
    return a, b, c, d


@triton.jit
def sixteen(values, TILES: tl.constexpr):
    """A quarter of words [TILES, 256] → [TILES, 16 outputs, 16 values of K]."""
    return tl.reshape(tl.permute(tl.reshape(values, (TILES, 8, 4, 2, 2, 2)), (0, 4, 1, 3, 2, 5)), (TILES, 16, 16))


@triton.jit
def operands(words, ZERO: tl.constexpr, ASM: tl.constexpr, TILES: tl.constexpr, EACH: tl.constexpr):
    """Words [TILES, 256], each 16 outputs by 64 values of K → left operands [16·TILES, EACH] of EACH (16, 32 or 64) values of K one after the
    other. A word lies where the thread of a matrix instruction wants it: bits of its place are g·4·2·2·2 (output % 8, pair of K), k / 8,
    output / 8, k % 2; its four codes are 16 values of K apart."""
    a, b, c, d = quarters(words, ZERO, ASM)
    if EACH == 16:
        found = (
            tl.reshape(sixteen(a, TILES), (16 * TILES, 16)),
            tl.reshape(sixteen(b, TILES), (16 * TILES, 16)),
            tl.reshape(sixteen(c, TILES), (16 * TILES, 16)),
            tl.reshape(sixteen(d, TILES), (16 * TILES, 16)),
        )
    elif EACH == 32:
        first, second = tl.join(a, b), tl.join(c, d)
        found = (
            tl.reshape(tl.permute(tl.reshape(first, (TILES, 8, 4, 2, 2, 2, 2)), (0, 4, 1, 6, 3, 2, 5)), (16 * TILES, 32)),
            tl.reshape(tl.permute(tl.reshape(second, (TILES, 8, 4, 2, 2, 2, 2)), (0, 4, 1, 6, 3, 2, 5)), (16 * TILES, 32)),
        )
    else:
        all4 = tl.join(tl.join(a, b), tl.join(c, d))
        found = (
            tl.reshape(tl.permute(tl.reshape(all4, (TILES, 8, 4, 2, 2, 2, 2, 2)), (0, 4, 1, 7, 6, 3, 2, 5)), (16 * TILES, 64)),
        )
    return found


@triton.jit
def linear_nibbles(
    x_ptr, w_ptr, scale_ptr, zero_ptr, part_ptr, bias_ptr, residual_ptr, y_ptr, rows,
    N: tl.constexpr, K: tl.constexpr, KW: tl.constexpr, LDX: tl.constexpr, LDY: tl.constexpr, LDR: tl.constexpr, ZERO: tl.constexpr, GROUP: tl.constexpr, HAS_ZERO: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr, WIDTH: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, CHUNKS: tl.constexpr, PARTS: tl.constexpr, APART: tl.constexpr, UNROLL: tl.constexpr, STAGES: tl.constexpr, ASM: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """`linear` with 4-bit integers in groups, as [N / 16][KW / 64][256 words] (`operands`); scales and zero points [KW / GROUP, N]. K is summed
    in CHUNKS, each from zero; those in order in PARTS, each from zero; those in order. APART: a program sums one part (grid: tiles of N,
    tiles of rows, PARTS) into part [PARTS, rows, N], which `close` adds; else all in turn. UNROLL: steps of 64 values at a time."""
    tile = tl.program_id(0)
    n = tile * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    n_in, m_in = n < N, m < rows
    STEPS: tl.constexpr = KW // 64 // CHUNKS  # of 64 values, a chunk
    EACH: tl.constexpr = min(64, GROUP)  # values of K a product
    PER: tl.constexpr = max(64, GROUP) // 64  # steps a group
    wait(OVERLAP)
    k = tl.arange(0, EACH)
    held = tl.where(n_in, n, 0)
    block = tile * (BN // 16) + tl.arange(0, BN // 16)
    w_row = w_ptr + tl.where(block < (N + 15) // 16, block, 0).to(tl.int64)[:, None] * (KW * 4) + tl.arange(0, 256)[None, :]
    x_row = x_ptr + m[:, None].to(tl.int64) * LDX
    acc = tl.zeros((BN, BM), tl.float32)  # of a chunk
    whole = tl.zeros((BN, BM), tl.float32)  # of a part
    total = whole
    first = tl.program_id(2) if APART else 0
    span: tl.constexpr = STEPS * (CHUNKS // PARTS)
    for step in tl.range(first * span, (first + 1) * span if APART else PARTS * span, UNROLL, num_stages=STAGES):
        part = tl.zeros((BN, BM), tl.float32)
        for i in tl.static_range(UNROLL):
            words = tl.load(w_row + (step + i) * 256)
            found = operands(words, ZERO, ASM, BN // 16, EACH)
            for q in tl.static_range(64 // EACH):
                at = (step + i) * 64 + q * EACH
                if K == KW:
                    x = tl.load(x_row + (at + k)[None, :], mask=m_in[:, None], other=0.0)
                else:
                    x = tl.load(x_row + (at + k)[None, :], mask=m_in[:, None] & (at + k < K)[None, :], other=0.0)
                g = at // GROUP
                w = found[q]
                if HAS_ZERO:
                    w = w - (tl.load(zero_ptr + g * N + held) * UNIT).to(tl.bfloat16)[:, None]
                part = tl.dot(w, tl.trans(x), part)
                if EACH < 64 or (i + 1) % PER == 0:
                    acc += part * (tl.load(scale_ptr + g * N + held).to(tl.float32) * BACK)[:, None]
                    part = tl.zeros((BN, BM), tl.float32)
        if CHUNKS > 1:
            if (step + UNROLL) % STEPS == 0:
                whole += acc
                acc = tl.zeros((BN, BM), tl.float32)
                if PARTS > 1 and not APART:
                    if (step + UNROLL) % span == 0:
                        total += whole
                        whole = tl.zeros((BN, BM), tl.float32)
    if CHUNKS == 1:
        whole += acc
    if APART or PARTS == 1:
        total = whole
    release(OVERLAP)
    if APART:
        place = (first * rows + m)[None, :].to(tl.int64) * N + n[:, None]
        tl.store(part_ptr + place, total, mask=n_in[:, None] & m_in[None, :])
    else:
        finish(
            total, tile, m, m_in, bias_ptr, residual_ptr, y_ptr, N, LDY, LDR, BIAS, RESIDUAL, ACT, GATED, LIMIT, ALPHA, WIDTH, BN, BM,
        )  # fmt: skip


@triton.jit
def pair(words):
    """Words of two bfloat16 [...] → [..., 2]."""
    low, high = tl.inline_asm_elementwise(
        "mov.b32 {$0, $1}, $2;", "=h,=h,r", [words], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=1
    )
    return tl.join(low, high)


@triton.jit
def pieces_of(acc, COUNT: tl.constexpr):
    """[A, B, COUNT] → its COUNT pieces in order; COUNT a power of two."""
    if COUNT == 1:
        found = (tl.reshape(acc, (acc.shape[0], acc.shape[1])),)
    else:
        even, odd = tl.split(tl.reshape(acc, (acc.shape[0], acc.shape[1], COUNT // 2, 2)))
        a, b = pieces_of(even, COUNT // 2), pieces_of(odd, COUNT // 2)
        found = ()
        for i in tl.static_range(COUNT // 2):
            found = found + (a[i], b[i])
    return found


@triton.jit
def four_words(at):
    """Four words in one piece, from an address on."""
    return tl.inline_asm_elementwise(
        "ld.global.v4.b32 {$0, $1, $2, $3}, [$4];", "=r,=r,=r,=r,l", [at.to(tl.int64)], dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def few_inputs(
    x_row, pairs, k_at, step, K: tl.constexpr, KW: tl.constexpr, DEPTH: tl.constexpr, FRAGMENTS: tl.constexpr, ASM: tl.constexpr
):
    """Right operands of DEPTH steps of 64 values of K from `step` on, as `few_nibbles` multiplies them."""
    inputs = ()
    if FRAGMENTS and ASM:
        for i in tl.static_range(2 * DEPTH):
            a, b, c, d = four_words(pairs + (step * 32 + i // 2 * 32 + i % 2 * 4))
            inputs = inputs + ((a, b), (c, d))
        return inputs
    for i in tl.static_range(4 * DEPTH):
        at = (k_at + step * 64 + i * 16)[:, None, None]
        if not ASM:
            place = at + tl.arange(0, 16)[None, :, None]
            if FRAGMENTS:
                place = fragment(place)
            inputs = inputs + ((tl.load(x_row[None, None, :] + place, mask=place < K, other=0.0),),)
        elif K == KW:
            inputs = inputs + ((tl.load(pairs + (step * 32 + i * 8)), tl.load(pairs + (step * 32 + i * 8 + 4))),)
        else:
            place = at + 2 * tl.arange(0, 4)[None, None, :]
            low = tl.load(pairs + (step * 32 + i * 8), mask=place < K, other=0)
            high = tl.load(pairs + (step * 32 + i * 8 + 4), mask=place + 8 < K, other=0)
            inputs = inputs + ((low, high),)
    return inputs


@triton.jit
def few_scales(at, step, N: tl.constexpr, COUNT: tl.constexpr, GROUP: tl.constexpr):
    """Scales of COUNT groups from step `step` of 64 values of K on."""
    scales = ()
    for i in tl.static_range(COUNT):
        scales = scales + (tl.load(at + (step * 64 // GROUP + i) * N),)
    return scales


@triton.jit
def few_nibbles(
    x_ptr, w_ptr, scale_ptr, zero_ptr, part_ptr, bias_ptr, residual_ptr, y_ptr, rows,
    N: tl.constexpr, K: tl.constexpr, KW: tl.constexpr, LDX: tl.constexpr, LDY: tl.constexpr, LDR: tl.constexpr, ZERO: tl.constexpr, GROUP: tl.constexpr, HAS_ZERO: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr, WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr, EARLY: tl.constexpr, X_FRAGMENTS: tl.constexpr, Y_FRAGMENTS: tl.constexpr, ASM: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """`linear_nibbles` for up to 8 rows, with its bits; fast for one or two. Grid: tiles of 16 outputs. A warp sums a chunk of K: weights go
    from memory into the registers that multiply them, DEPTH steps of 64 values ahead, the first before the wait. EARLY: the next launch may
    begin at once. X_FRAGMENTS, Y_FRAGMENTS: rows of x, of y, are in that order."""
    tile = tl.program_id(0)
    STEPS: tl.constexpr = KW // 64 // CHUNKS
    PIECE: tl.constexpr = 8 if X_FRAGMENTS else 1  # words of x that a thread has in one piece
    chunk = tl.arange(0, CHUNKS)
    n = tile * 16 + tl.arange(0, 16)
    w_at = w_ptr + tile.to(tl.int64) * (KW * 4) + chunk[:, None] * (STEPS * 256) + tl.arange(0, 256)[None, :]
    g_at = chunk[:, None] * (STEPS * 64 // GROUP * N) + tl.where(n < N, n, 0)[None, :]
    if EARLY:
        release(OVERLAP)
    now = ()
    for i in tl.static_range(DEPTH):
        now = now + (tl.load(w_at + i * 256),)
    scales = few_scales(scale_ptr + g_at, 0, N, DEPTH * 64 // GROUP, GROUP)
    wait(OVERLAP)
    k_at = chunk * (STEPS * 64)
    m = tl.arange(0, 8)
    x_row = x_ptr + tl.minimum(m, rows - 1).to(tl.int64) * LDX  # rows past the last are computed, not stored
    pairs = (
        x_row.to(tl.pointer_type(tl.int32))[None, :, None]
        + (chunk[:, None] * (STEPS * 32) + PIECE * tl.arange(0, 4)[None, :])[:, None, :]
    )
    acc = tl.zeros((CHUNKS, 16, 8), tl.float32)
    inputs = few_inputs(x_row, pairs, k_at, 0, K, KW, DEPTH, X_FRAGMENTS, ASM)
    for step in tl.range(0, STEPS, DEPTH, num_stages=1):
        ahead, then, factors = now, inputs, scales
        if STEPS > DEPTH:
            ahead = ()
            following = tl.minimum(step + DEPTH, STEPS - DEPTH)  # read once more at the end
            then = few_inputs(x_row, pairs, k_at, following, K, KW, DEPTH, X_FRAGMENTS, ASM)
            factors = few_scales(scale_ptr + g_at, following, N, DEPTH * 64 // GROUP, GROUP)
            for i in tl.static_range(DEPTH):
                ahead = ahead + (tl.load(w_at + (step + DEPTH + i) * 256, mask=step + DEPTH + i < STEPS, other=0),)
        part = tl.zeros((CHUNKS, 16, 8), tl.float32)
        for i in tl.static_range(DEPTH):
            four = quarters(now[i], ZERO, ASM)
            for q in tl.static_range(4):
                w = sixteen(four[q], CHUNKS)
                if HAS_ZERO:
                    zero = tl.load(zero_ptr + g_at + ((step + i) * 64 + q * 16) // GROUP * N)
                    w = w - (zero * UNIT).to(tl.bfloat16)[:, :, None]
                x = inputs[4 * i + q][0]
                if ASM:
                    both = tl.join(pair(x), pair(inputs[4 * i + q][1]))
                    x = tl.reshape(tl.permute(both, (0, 4, 2, 3, 1)), (CHUNKS, 16, 8))
                part = tl.dot(w, x, part)
                if (i * 64 + q * 16 + 16) % GROUP == 0:
                    acc += part * (scales[(i * 64 + q * 16) // GROUP].to(tl.float32) * BACK)[:, :, None]
                    part = tl.zeros((CHUNKS, 16, 8), tl.float32)
        now, inputs, scales = ahead, then, factors
    if not EARLY:
        release(OVERLAP)
    pieces = pieces_of(tl.permute(acc, (1, 2, 0)), CHUNKS)
    total = tl.zeros((16, 8), tl.float32)
    for p in tl.static_range(PARTS):
        whole = tl.zeros((16, 8), tl.float32)
        for i in tl.static_range(CHUNKS // PARTS):
            whole += pieces[p * (CHUNKS // PARTS) + i]
        total += whole
    finish(
        total, tile, m, m < rows, bias_ptr, residual_ptr, y_ptr, N, LDY, LDR, BIAS, RESIDUAL, ACT, GATED, LIMIT, ALPHA, WIDTH, 16, 8, Y_FRAGMENTS,
    )  # fmt: skip


@triton.jit
def close(
    part_ptr, bias_ptr, residual_ptr, y_ptr, rows,
    N: tl.constexpr, LDY: tl.constexpr, LDR: tl.constexpr, PARTS: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr,
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
    for number in tl.static_range(PARTS):
        row = part_ptr + (number * rows + m).to(tl.int64) * N
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
def times(a, b):
    """a·b, rounded: a compiler may not take this product and a sum that follows as one, as it would where the sum is in the same kernel."""
    return tl.fma(a, tl.broadcast_to(b, a.shape), tl.zeros(a.shape, tl.float32))


@triton.jit
def linear_coded(
    x_ptr, w_ptr, scale_ptr, zero_ptr, table_ptr, xscale_ptr, part_ptr, bias_ptr, residual_ptr, y_ptr, rows,
    N: tl.constexpr, K: tl.constexpr, KW: tl.constexpr, LDX: tl.constexpr, LDY: tl.constexpr, LDR: tl.constexpr,
    KIND: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    HAS_ZERO: tl.constexpr, HAS_OFFSET: tl.constexpr, INT8: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr, WIDTH: tl.constexpr,
    SPAN: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, PARTS: tl.constexpr, APART: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """`linear` with coded weights. KIND: "int", "level", "e4m3" or "e5m2", scales [N, GROUPS] (one group: the whole channel).
    Codes of 4 bits: byte j of a block of 2·SPAN values holds values j and SPAN + j. PARTS and APART as in `linear_nibbles`, of one chunk
    each."""
    tile = tl.program_id(0)
    n = tile * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    n_in, m_in = n < N, m < rows
    first = tl.program_id(2) if APART else 0
    STEP: tl.constexpr = SPAN * 8 // BITS
    LENGTH: tl.constexpr = KW // PARTS
    WHOLE: tl.constexpr = GROUPS == 1 and not HAS_OFFSET
    channel = tl.full((BN,), 1.0, tl.float32)
    if WHOLE:
        channel = tl.load(scale_ptr + n, mask=n_in, other=0.0).to(tl.float32)
    wait(OVERLAP)
    row = tl.full((BM,), 1.0, tl.float32)
    if INT8:
        row = tl.load(xscale_ptr + m, mask=m_in, other=0.0)
    x_row = x_ptr + m[:, None].to(tl.int64) * LDX
    total = tl.zeros((BN, BM), tl.float32)
    acc = tl.zeros((BN, BM), tl.float32)
    k = tl.arange(0, SPAN)
    w_row = w_ptr + n[:, None].to(tl.int64) * (KW * BITS // 8)
    for k0 in range(first * LENGTH, (first + 1) * LENGTH if APART else KW, STEP):
        raw = tl.load(w_row + (k0 * BITS // 8 + k)[None, :], mask=n_in[:, None], other=0)
        for half in tl.static_range(0, 8 // BITS):
            at = k0 + half * SPAN
            x = tl.load(x_row + (at + k)[None, :], mask=m_in[:, None] & (at + k < K)[None, :], other=0)
            g = tl.minimum(at // GROUP, GROUPS - 1)
            part = group_sum(raw, x, half, g, n, n_in, zero_ptr, table_ptr, KIND, BITS, ZERO, GROUPS, HAS_ZERO, INT8)
            if WHOLE:
                acc += part
            else:
                acc += part * tl.load(scale_ptr + n * GROUPS + g, mask=n_in, other=0.0).to(tl.float32)[:, None]
                if HAS_OFFSET:
                    offset = tl.load(zero_ptr + n * GROUPS + g, mask=n_in, other=0.0).to(tl.float32)
                    acc += offset[:, None] * tl.sum(x.to(tl.float32), 1)[None, :]
        if (k0 + STEP) % LENGTH == 0:
            if WHOLE:
                acc = times(acc, channel[:, None])
            if INT8:
                acc = times(acc, row[None, :])
            total += acc
            acc = tl.zeros((BN, BM), tl.float32)
    release(OVERLAP)
    if APART:
        place = (first * rows + m)[None, :].to(tl.int64) * N + n[:, None]
        tl.store(part_ptr + place, total, mask=n_in[:, None] & m_in[None, :])
    else:
        finish(
            total, tile, m, m_in, bias_ptr, residual_ptr, y_ptr, N, LDY, LDR, BIAS, RESIDUAL, ACT, GATED, LIMIT, ALPHA, WIDTH, BN, BM,
        )  # fmt: skip
