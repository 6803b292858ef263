"""Attention over a paged cache on a GPU, for any mixture of prefill and decode.

Cost model: a decode reads each sequence's keys and values once for a group of heads; a prefill is bound by its products.

The cache of a layer is K [blocks, 32, G, DK], then V [blocks, 32, G, DV]. Sums are closed at positions that are multiples of SPLIT:
within a split an online softmax from its own beginning, tile by tile of BN positions; then splits are merged in their order. A tile
of BM rows is some tokens of one sequence by the heads that share a key head. A program does one split and leaves its sums for
`merge` (few rows, long contexts), or all of them in turn: by the same steps, so with the same bits.
"""

import triton
import triton.language as tl


@triton.jit
def rotated(
    row_ptr,
    weight_ptr,
    cos_ptr,
    lane,
    D: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    PAIRS: tl.constexpr,
    OFFSET: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """norm(row)·weight, rotated by the token's table [2, PAIRS]."""
    inside = lane < D
    x = tl.load(row_ptr + lane, mask=inside, other=0.0)
    factor = 1.0
    if NORM:
        factor = 1.0 / tl.sqrt(tl.sum(x * x, 0) / D + EPS)
        x = x * factor * tl.load(weight_ptr + lane, mask=inside, other=0.0)
    if PAIRS > 0:
        d = lane - OFFSET
        turns = (d >= 0) & (d < 2 * PAIRS)
        if INTERLEAVED:
            pair, second = d // 2, d % 2 == 1
            other = tl.where(second, lane - 1, lane + 1)
        else:
            pair, second = d % PAIRS, d >= PAIRS
            other = tl.where(second, lane - PAIRS, lane + PAIRS)
        y = tl.load(row_ptr + other, mask=turns, other=0.0)
        if NORM:
            y = y * factor * tl.load(weight_ptr + other, mask=turns, other=0.0)
        cos = tl.load(cos_ptr + pair, mask=turns, other=1.0)
        sin = tl.load(cos_ptr + PAIRS + pair, mask=turns, other=0.0)
        x = tl.where(turns, tl.where(second, x * cos + y * sin, x * cos - y * sin), x)
    return x


@triton.jit
def write_cache(
    q_ptr, k_ptr, v_ptr, table_ptr, q_norm_ptr, k_norm_ptr, slot_ptr, q_out_ptr, k_cache_ptr, v_cache_ptr,
    H: tl.constexpr, G: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, LDQ: tl.constexpr, LDQH: tl.constexpr, LDK: tl.constexpr, LDKH: tl.constexpr, LDV: tl.constexpr, LDVH: tl.constexpr,
    Q_NORM: tl.constexpr, K_NORM: tl.constexpr, EPS: tl.constexpr, PAIRS: tl.constexpr, OFFSET: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (tokens, H + 2G): queries go, rotated, to q_out [T, H, DK]; keys and values to their places in the cache (slot [T])."""
    t = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    lane = tl.arange(0, BLOCK)
    cos_ptr = table_ptr + t * 2 * PAIRS
    if head < H:
        x = rotated(q_ptr + t * LDQ + head * LDQH, q_norm_ptr, cos_ptr, lane, DK, Q_NORM, EPS, PAIRS, OFFSET, INTERLEAVED)
        tl.store(q_out_ptr + (t * H + head) * DK + lane, x.to(q_out_ptr.dtype.element_ty), mask=lane < DK)
    else:
        slot = tl.load(slot_ptr + t).to(tl.int64)
        if head < H + G:
            g = head - H
            x = rotated(k_ptr + t * LDK + g * LDKH, k_norm_ptr, cos_ptr, lane, DK, K_NORM, EPS, PAIRS, OFFSET, INTERLEAVED)
            tl.store(k_cache_ptr + (slot * G + g) * DK + lane, x.to(k_cache_ptr.dtype.element_ty), mask=lane < DK)
        else:
            g = head - H - G
            x = tl.load(v_ptr + t * LDV + g * LDVH + lane, mask=lane < DV, other=0.0)
            tl.store(v_cache_ptr + (slot * G + g) * DV + lane, x.to(v_cache_ptr.dtype.element_ty), mask=lane < DV)


@triton.jit
def attend(
    q_ptr, k_cache_ptr, v_cache_ptr, sinks_ptr, slopes_ptr, tile_ptr, start_ptr, pos_ptr, block_ptr, part_ptr, y_ptr, max_blocks, alone,
    H: tl.constexpr, G: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, DKP: tl.constexpr, DVP: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, SINKS: tl.constexpr, SLOPES: tl.constexpr,
    SPLIT: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, PAGE: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, G, splits or 1). tile [tiles, 2]: a sequence and its first token of the tile, counted within the step; start [S+1],
    pos [S], block [S, max_blocks] as in the batch. y [T, H, DV]. `alone`: a program does all splits; else only its own, into part."""
    tile, g, z = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    SHARE: tl.constexpr = H // G
    TOKENS: tl.constexpr = BM // SHARE
    sequence = tl.load(tile_ptr + 2 * tile)
    first = tl.load(tile_ptr + 2 * tile + 1)
    begin, end = tl.load(start_ptr + sequence), tl.load(start_ptr + sequence + 1)
    r = tl.arange(0, BM)
    token = first + r // SHARE
    head = g * SHARE + r % SHARE
    valid = (r < TOKENS * SHARE) & (begin + token < end)
    row = (begin + token).to(tl.int64)
    at = tl.load(pos_ptr + sequence) + token  # positions of the rows
    dk, dv, n = tl.arange(0, DKP), tl.arange(0, DVP), tl.arange(0, BN)
    q = tl.load(
        q_ptr + (row[:, None] * H + head[:, None]) * DK + dk[None, :], mask=valid[:, None] & (dk < DK)[None, :], other=0.0
    )
    slope = tl.zeros((BM,), tl.float32)
    if SLOPES:
        slope = tl.load(slopes_ptr + head, mask=valid, other=0.0)
    last = tl.max(tl.where(valid, at, 0), 0)
    low = 0  # the first position that a row of the tile may see
    if WINDOW > 0:
        low = tl.maximum(tl.min(tl.where(valid, at, 2147483647), 0) - WINDOW + 1, 0)
    if CHUNK > 0:
        low = tl.min(tl.where(valid, at, 2147483647), 0) // CHUNK * CHUNK
    total_m = tl.full((BM,), float("-inf"), tl.float32)
    total_l = tl.zeros((BM,), tl.float32)
    total = tl.zeros((BM, DVP), tl.float32)
    from_split = low // SPLIT
    to_split = last // SPLIT + 1
    if alone == 0:
        from_split = tl.maximum(from_split, z)
        to_split = tl.minimum(to_split, z + 1)
    for s in range(from_split, to_split):
        m = tl.full((BM,), float("-inf"), tl.float32)
        l = tl.zeros((BM,), tl.float32)
        acc = tl.zeros((BM, DVP), tl.float32)
        for p0 in range(s * SPLIT, tl.minimum((s + 1) * SPLIT, last + 1), BN):
            p = p0 + n
            there = p <= last
            block = tl.load(block_ptr + sequence * max_blocks + p // PAGE, mask=there, other=0).to(tl.int64)
            place = (block * PAGE + p % PAGE) * G + g
            k = tl.load(k_cache_ptr + place[:, None] * DK + dk[None, :], mask=there[:, None] & (dk < DK)[None, :], other=0.0)
            scores = tl.dot(q, tl.trans(k.to(q.dtype)), out_dtype=tl.float32, input_precision=INNER) * SCALE
            if SOFTCAP > 0.0:
                scores = SOFTCAP * (2.0 * tl.sigmoid(2.0 * (scores / SOFTCAP)) - 1.0)
            if SLOPES:
                scores += slope[:, None] * (p[None, :] - at[:, None]).to(tl.float32)
            seen = (p[None, :] <= at[:, None]) & valid[:, None]
            if WINDOW > 0:
                seen = seen & (p[None, :] > at[:, None] - WINDOW)
            if CHUNK > 0:
                seen = seen & (p[None, :] // CHUNK == at[:, None] // CHUNK)
            scores = tl.where(seen, scores, float("-inf"))
            new = tl.maximum(m, tl.max(scores, 1))
            safe = tl.where(new == float("-inf"), 0.0, new)
            kept = tl.exp(m - safe)
            e = tl.exp(scores - safe[:, None])
            l = l * kept + tl.sum(e, 1)
            v = tl.load(v_cache_ptr + place[:, None] * DV + dv[None, :], mask=there[:, None] & (dv < DV)[None, :], other=0.0)
            acc = acc * kept[:, None] + tl.dot(e.to(v.dtype), v, out_dtype=tl.float32, input_precision=INNER)
            m = new
        if alone == 0:
            splits = tl.num_programs(2)
            place = ((row * H + head) * splits + z) * (DVP + 2)
            tl.store(part_ptr + place, m, mask=valid)
            tl.store(part_ptr + place + 1, l, mask=valid)
            tl.store(part_ptr + place[:, None] + 2 + dv[None, :], acc, mask=valid[:, None])
        else:
            new = tl.maximum(total_m, m)
            safe = tl.where(new == float("-inf"), 0.0, new)
            a, b = tl.exp(total_m - safe), tl.exp(m - safe)
            total_l = total_l * a + l * b
            total = total * a[:, None] + acc * b[:, None]
            total_m = new
    if alone == 0:
        if (z < low // SPLIT) | (z > last // SPLIT):
            splits = tl.num_programs(2)
            place = ((row * H + head) * splits + z) * (DVP + 2)
            tl.store(part_ptr + place, total_m, mask=valid)
    else:
        if SINKS:
            sink = tl.load(sinks_ptr + head, mask=valid, other=0.0)
            new = tl.maximum(total_m, sink)
            a = tl.exp(total_m - new)
            total_l = total_l * a + tl.exp(sink - new)
            total = total * a[:, None]
        out = total / tl.where(total_l > 0.0, total_l, 1.0)[:, None]
        tl.store(y_ptr + (row[:, None] * H + head[:, None]) * DV + dv[None, :], out, mask=valid[:, None] & (dv < DV)[None, :])


@triton.jit
def merge(part_ptr, sinks_ptr, y_ptr, splits, H: tl.constexpr, DV: tl.constexpr, DVP: tl.constexpr, SINKS: tl.constexpr):
    """Grid (tokens, H): the splits of a row, in order; a split that the row does not see has the maximum −∞."""
    t, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dv = tl.arange(0, DVP)
    total_m = float("-inf")
    total_l = 0.0
    total = tl.zeros((DVP,), tl.float32)
    for s in range(splits):
        place = ((t * H + head) * splits + s) * (DVP + 2)
        m = tl.load(part_ptr + place)
        if m > float("-inf"):
            l = tl.load(part_ptr + place + 1)
            acc = tl.load(part_ptr + place + 2 + dv)
            new = tl.maximum(total_m, m)
            a, b = tl.exp(total_m - new), tl.exp(m - new)
            total_l = total_l * a + l * b
            total = total * a + acc * b
            total_m = new
    if SINKS:
        sink = tl.load(sinks_ptr + head)
        new = tl.maximum(total_m, sink)
        a = tl.exp(total_m - new)
        total_l = total_l * a + tl.exp(sink - new)
        total = total * a
    out = total / tl.where(total_l > 0.0, total_l, 1.0)
    tl.store(y_ptr + (t * H + head) * DV + dv, out, mask=dv < DV)
