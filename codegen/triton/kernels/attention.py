"""Attention over a paged cache on a GPU, for any mixture of prefill and decode.

Cost model: a decode reads each sequence's keys and values once for a group of heads; a prefill is bound by its products.

The cache of a layer is K [blocks, 32, G, DK], then V [blocks, 32, G, DV]. Sums are closed at positions that are multiples of SPLIT:
within a split an online softmax from its own beginning, tile by tile of BN positions; then splits are merged in their order. A tile
of BM rows is some tokens of one sequence by the heads that share a key head. A program does one split and leaves its sums for
`merge` (few rows, long contexts), or all of them in turn: by the same steps, so with the same bits. Both sums of a split, of weights
and of weighted values, are matrix products, whose order does not follow from the shape of a tile as a plain sum's would.
"""

import triton
import triton.language as tl

from .common import begin, prefetch_line, release, wait

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def rotated(
    row, weight_ptr, cos_ptr, lane, inside,
    D: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, PAIRS: tl.constexpr, OFFSET: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """norm(row)·weight, rotated by the token's table [2, PAIRS]; row: pointers [heads, 1], lane [1, BLOCK]."""
    x = tl.load(row + lane, mask=inside, other=0.0)
    factor = 1.0
    if NORM:
        factor = (1.0 / tl.sqrt(tl.sum(x * x, 1) / D + EPS))[:, None]
        x = x * factor * tl.load(weight_ptr + lane, mask=lane < D, other=0.0)
    if PAIRS > 0:
        d = lane - OFFSET
        turns = (d >= 0) & (d < 2 * PAIRS)
        if INTERLEAVED:
            pair, second = d // 2, d % 2 == 1
            other = tl.where(second, lane - 1, lane + 1)
        else:
            pair, second = d % PAIRS, d >= PAIRS
            other = tl.where(second, lane - PAIRS, lane + PAIRS)
        y = tl.load(row + other, mask=inside & turns, other=0.0)
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
    Q_NORM: tl.constexpr, K_NORM: tl.constexpr, EPS: tl.constexpr, PAIRS: tl.constexpr, OFFSET: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (tokens, (H + 2G) / HEADS): queries go, rotated, to q_out [T, H, DK]; keys and values to their places in the cache (slot [T])."""
    begin(OVERLAP)
    t = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * HEADS
    head = tl.arange(0, HEADS)[:, None]
    lane = tl.arange(0, BLOCK)[None, :]
    cos_ptr = table_ptr + t * 2 * PAIRS
    if first < H:
        row = q_ptr + t * LDQ + (first + head) * LDQH
        x = rotated(row, q_norm_ptr, cos_ptr, lane, (lane < DK) & (head >= 0), DK, Q_NORM, EPS, PAIRS, OFFSET, INTERLEAVED)
        tl.store(q_out_ptr + (t * H + first + head) * DK + lane, x.to(q_out_ptr.dtype.element_ty), mask=(lane < DK) & (head >= 0))
    else:
        slot = tl.load(slot_ptr + t).to(tl.int64)
        if first < H + G:
            g = first - H + head
            row = k_ptr + t * LDK + g * LDKH
            x = rotated(row, k_norm_ptr, cos_ptr, lane, (lane < DK) & (g >= 0), DK, K_NORM, EPS, PAIRS, OFFSET, INTERLEAVED)
            tl.store(k_cache_ptr + (slot * G + g) * DK + lane, x.to(k_cache_ptr.dtype.element_ty), mask=(lane < DK) & (g >= 0))
        else:
            g = first - H - G + head
            inside = (lane < DV) & (g >= 0)
            x = tl.load(v_ptr + t * LDV + g * LDVH + lane, mask=inside, other=0.0)
            tl.store(v_cache_ptr + (slot * G + g) * DV + lane, x.to(v_cache_ptr.dtype.element_ty), mask=inside)


@triton.jit
def power_of_two(x, ASM: tl.constexpr):
    """2^x; ASM: in one instruction, with 0 for results under the smallest normal number."""
    if ASM:
        y = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        y = tl.exp2(x)
    return y


@triton.jit
def slots(block_ptr, p, there, PAGE: tl.constexpr):
    """Where positions lie in the cache, of those that are there."""
    return tl.load(block_ptr + p // PAGE, mask=there, other=0).to(tl.int64) * PAGE + p % PAGE


@triton.jit
def split_sums(
    q, k_cache_ptr, v_cache_ptr, block_ptr, max_blocks, low, high, last, at, valid, slope, g,
    G: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, DKP: tl.constexpr, DVP: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr,
    CHUNK: tl.constexpr, SLOPES: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, PAGE: tl.constexpr, INNER: tl.constexpr, STAGES: tl.constexpr, ASM: tl.constexpr, AHEAD: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Positions [low, high) for the rows of a tile: the largest score in powers of two [BM], Σ weights [BM, 16] (equal columns), Σ weights·values
    [BM, DVP]. MASKED: some row does not see all of them. AHEAD: the next tile's pages are looked up while a tile is worked on."""
    m = tl.full((BM,), float("-inf"), tl.float32)
    l = tl.zeros((BM, 16), tl.float32)
    acc = tl.zeros((BM, DVP), tl.float32)
    ones = tl.full((BN, 16), 1.0, v_cache_ptr.dtype.element_ty)
    dk, dv, n = tl.arange(0, DKP), tl.arange(0, DVP), tl.arange(0, BN)
    PAGES: tl.constexpr = BN // PAGE
    if AHEAD:
        tl.static_assert(PAGES <= 2)
        page = low // PAGE
        first = tl.load(block_ptr + page)
        second = tl.load(block_ptr + page + 1, mask=page + 1 < max_blocks, other=0)
    for p0 in tl.range(low, high, BN, num_stages=STAGES):
        p = p0 + n
        there = p <= last
        if AHEAD:
            slot = first.to(tl.int64) * PAGE + n
            if PAGES == 2:
                slot = tl.where(n < PAGE, slot, second.to(tl.int64) * PAGE + n - PAGE)
            page = (p0 + BN) // PAGE
            first = tl.load(block_ptr + page, mask=page < max_blocks, other=0)
            if PAGES == 2:
                second = tl.load(block_ptr + page + 1, mask=page + 1 < max_blocks, other=0)
        elif MASKED:
            slot = slots(block_ptr, p, there, PAGE)
        else:
            slot = tl.load(block_ptr + p // PAGE).to(tl.int64) * PAGE + p % PAGE
        place = slot * G + g
        k_at = k_cache_ptr + place[:, None] * DK + dk[None, :]
        v_at = v_cache_ptr + place[:, None] * DV + dv[None, :]
        if MASKED or DK != DKP:
            k = tl.load(k_at, mask=there[:, None] & (dk < DK)[None, :], other=0.0)
        else:
            k = tl.load(k_at)
        if MASKED or DV != DVP:
            v = tl.load(v_at, mask=there[:, None] & (dv < DV)[None, :], other=0.0)
        else:
            v = tl.load(v_at)
        scores = tl.dot(q, tl.trans(k), out_dtype=tl.float32, input_precision=INNER)
        if SOFTCAP > 0.0:
            scores = (SOFTCAP * LOG2E) * (2.0 * tl.sigmoid((2.0 * SCALE / SOFTCAP) * scores) - 1.0)
        if SLOPES:
            if SOFTCAP == 0.0:
                scores = scores * (SCALE * LOG2E)
            scores += slope[:, None] * (p[None, :] - at[:, None]).to(tl.float32) * LOG2E
        FACTOR: tl.constexpr = 1.0 if SOFTCAP > 0.0 or SLOPES else SCALE * LOG2E.value
        if MASKED:
            seen = (p[None, :] <= at[:, None]) & valid[:, None]
            if WINDOW > 0:
                seen = seen & (p[None, :] > at[:, None] - WINDOW)
            if CHUNK > 0:
                seen = seen & (p[None, :] // CHUNK == at[:, None] // CHUNK)
            scores = tl.where(seen, scores, float("-inf"))
        new = tl.maximum(m, tl.max(scores, 1) * FACTOR)
        safe = new
        if MASKED:
            safe = tl.where(new == float("-inf"), 0.0, new)
        kept = power_of_two(m - safe, ASM)
        e = power_of_two(scores * FACTOR - safe[:, None], ASM).to(v.dtype)
        l = tl.dot(e, ones, l * kept[:, None], input_precision=INNER)
        acc = tl.dot(e, v, acc * kept[:, None], input_precision=INNER)
        m = new
    return m, l, acc


@triton.jit
def one_split(
    q, k_cache_ptr, v_cache_ptr, block_ptr, max_blocks, z, whole, last, at, valid, slope, g, SPLIT: tl.constexpr,
    G: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, DKP: tl.constexpr, DVP: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr,
    CHUNK: tl.constexpr, SLOPES: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, PAGE: tl.constexpr, INNER: tl.constexpr, STAGES: tl.constexpr, ASM: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """`split_sums` of split z; every row sees to their end those before split `whole`."""
    if z < whole:
        m, l, acc = split_sums(
            q, k_cache_ptr, v_cache_ptr, block_ptr, max_blocks, z * SPLIT, (z + 1) * SPLIT, last, at, valid, slope, g,
            G, DK, DV, DKP, DVP, SCALE, SOFTCAP, WINDOW, CHUNK, SLOPES, BN, BM, PAGE, INNER, STAGES, ASM, AHEAD, False,
        )  # fmt: skip
    else:
        m, l, acc = split_sums(
            q, k_cache_ptr, v_cache_ptr, block_ptr, max_blocks, z * SPLIT, tl.minimum((z + 1) * SPLIT, last + 1), last, at, valid, slope, g,
            G, DK, DV, DKP, DVP, SCALE, SOFTCAP, WINDOW, CHUNK, SLOPES, BN, BM, PAGE, INNER, STAGES, ASM, AHEAD, True,
        )  # fmt: skip
    return m, l, acc


@triton.jit
def ask(cache_ptr, block_ptr, low, end, g, G: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, SPLIT: tl.constexpr):
    """Ask for a split's rows before position `end`, which earlier steps have written."""
    SIZE: tl.constexpr = cache_ptr.dtype.element_ty.primitive_bitwidth // 8
    p = low + tl.arange(0, SPLIT)
    at = (cache_ptr + (slots(block_ptr, p, p < end, PAGE) * G + g) * D).to(tl.int64)
    for offset in tl.static_range(0, D * SIZE, 128):
        prefetch_line(at + offset)


@triton.jit
def joined(total_m, total_l, total, m, l, acc):
    """Sums of the splits so far and of the next one, together."""
    new = tl.maximum(total_m, m)
    safe = tl.where(new == float("-inf"), 0.0, new)
    a, b = tl.exp2(total_m - safe), tl.exp2(m - safe)
    return new, total_l * a[:, None] + l * b[:, None], total * a[:, None] + acc * b[:, None]


@triton.jit
def closed(m, l, acc, sinks_ptr, head, valid, SINKS: tl.constexpr):
    """What rows come to: m [BM], Σ weights [BM], Σ weights·values [BM, DVP] of all of their splits."""
    if SINKS:
        sink = tl.load(sinks_ptr + head, mask=valid, other=0.0) * LOG2E
        new = tl.maximum(m, sink)
        a = tl.exp2(m - new)
        l = l * a + tl.exp2(sink - new)
        acc = acc * a[:, None]
    return acc / tl.where(l > 0.0, l, 1.0)[:, None]


@triton.jit
def attend(
    q_ptr, k_cache_ptr, v_cache_ptr, sinks_ptr, slopes_ptr, tile_ptr, start_ptr, pos_ptr, block_ptr, part_ptr, y_ptr, max_blocks,
    H: tl.constexpr, G: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, DKP: tl.constexpr, DVP: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, SINKS: tl.constexpr, SLOPES: tl.constexpr,
    SPLIT: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, PAGE: tl.constexpr, INNER: tl.constexpr, STAGES: tl.constexpr, ALONE: tl.constexpr, ASM: tl.constexpr, AHEAD: tl.constexpr, EARLY: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (G, tiles, splits or 1). tile [tiles, 2]: a sequence and its first token of the tile, counted within the step; start [S+1],
    pos [S], block [S, max_blocks] as in the batch, which are there before the step begins. y [T, H, DV]. ALONE: a program does all splits;
    else only its own, into part. EARLY: what the cache holds since earlier steps is asked for while launches before this one run; for rows that see
    all of it."""
    release(OVERLAP)
    g, z = tl.program_id(0), tl.program_id(2)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)  # the longest first
    SHARE: tl.constexpr = H // G
    TOKENS: tl.constexpr = BM // SHARE
    sequence = tl.load(tile_ptr + 2 * tile)
    first = tl.load(tile_ptr + 2 * tile + 1)
    begin_, end = tl.load(start_ptr + sequence), tl.load(start_ptr + sequence + 1)
    pos = tl.load(pos_ptr + sequence)
    block_ptr += sequence * max_blocks
    r = tl.arange(0, BM)
    token = first + r // SHARE
    head = g * SHARE + r % SHARE
    valid = (r < TOKENS * SHARE) & (begin_ + token < end)
    row = (begin_ + token).to(tl.int64)
    at = pos + token  # positions of the rows
    lowest = pos + first
    last = pos + tl.minimum(first + TOKENS, end - begin_) - 1
    dk, dv = tl.arange(0, DKP), tl.arange(0, DVP)
    if EARLY:  # H200, one row of Llama-3.1-8B's shape at 500 in int4:g128: 1.90 ms a step; 1.94 without; 1.97 where all waits
        ask(k_cache_ptr, block_ptr, z * SPLIT, pos, g, G, DK, PAGE, SPLIT)
        ask(v_cache_ptr, block_ptr, z * SPLIT, pos, g, G, DV, PAGE, SPLIT)
    wait(OVERLAP)
    q = tl.load(
        q_ptr + (row[:, None] * H + head[:, None]) * DK + dk[None, :], mask=valid[:, None] & (dk < DK)[None, :], other=0.0
    )
    slope = tl.zeros((BM,), tl.float32)
    if SLOPES:
        slope = tl.load(slopes_ptr + head, mask=valid, other=0.0)
    low = 0  # the first position that a row of the tile may see
    if WINDOW > 0:
        low = tl.maximum(lowest - WINDOW + 1, 0)
    if CHUNK > 0:
        low = lowest // CHUNK * CHUNK
    from_split = low // SPLIT
    to_split = last // SPLIT + 1
    whole = from_split  # splits before this one are seen by every row, to their end
    if WINDOW == 0 and CHUNK == 0:
        whole = (lowest + 1) // SPLIT
    if ALONE:
        total_m = tl.full((BM,), float("-inf"), tl.float32)
        total_l = tl.zeros((BM, 16), tl.float32)
        total = tl.zeros((BM, DVP), tl.float32)
        for s in range(from_split, whole):
            m, l, acc = split_sums(
                q, k_cache_ptr, v_cache_ptr, block_ptr, max_blocks, s * SPLIT, (s + 1) * SPLIT, last, at, valid, slope, g,
                G, DK, DV, DKP, DVP, SCALE, SOFTCAP, WINDOW, CHUNK, SLOPES, BN, BM, PAGE, INNER, STAGES, ASM, AHEAD, False,
            )  # fmt: skip
            total_m, total_l, total = joined(total_m, total_l, total, m, l, acc)
        for s in range(whole, to_split):
            m, l, acc = split_sums(
                q, k_cache_ptr, v_cache_ptr, block_ptr, max_blocks, s * SPLIT, tl.minimum((s + 1) * SPLIT, last + 1), last, at, valid, slope, g,
                G, DK, DV, DKP, DVP, SCALE, SOFTCAP, WINDOW, CHUNK, SLOPES, BN, BM, PAGE, INNER, STAGES, ASM, AHEAD, True,
            )  # fmt: skip
            total_m, total_l, total = joined(total_m, total_l, total, m, l, acc)
        out = closed(total_m, tl.max(total_l, 1), total, sinks_ptr, head, valid, SINKS)
        tl.store(
            y_ptr + (row[:, None] * H + head[:, None]) * DV + dv[None, :], out.to(y_ptr.dtype.element_ty),
            mask=valid[:, None] & (dv < DV)[None, :],
        )  # fmt: skip
    else:
        place = ((row * H + head) * tl.num_programs(2) + z) * (DVP + 2)
        if (z < from_split) | (z >= to_split):
            tl.store(part_ptr + place, tl.full((BM,), float("-inf"), tl.float32), mask=valid)
        else:
            m, l, acc = one_split(
                q, k_cache_ptr, v_cache_ptr, block_ptr, max_blocks, z, whole, last, at, valid, slope, g, SPLIT,
                G, DK, DV, DKP, DVP, SCALE, SOFTCAP, WINDOW, CHUNK, SLOPES, BN, BM, PAGE, INNER, STAGES, ASM, AHEAD,
            )  # fmt: skip
            tl.store(part_ptr + place, m, mask=valid)
            tl.store(part_ptr + place + 1, tl.max(l, 1), mask=valid)
            tl.store(part_ptr + place[:, None] + 2 + dv[None, :], acc, mask=valid[:, None])


@triton.jit
def merge(
    part_ptr, sinks_ptr, y_ptr, splits,
    H: tl.constexpr, DV: tl.constexpr, DVP: tl.constexpr, SINKS: tl.constexpr, TOGETHER: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (tokens, H): the splits of a row, in order, TOGETHER of them read at a time; one that the row does not see has the maximum −∞."""
    begin(OVERLAP)
    t, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dv = tl.arange(0, DVP)
    total_m = float("-inf")
    total_l = 0.0
    total = tl.zeros((DVP,), tl.float32)
    for s0 in range(0, splits, TOGETHER):
        for i in tl.static_range(TOGETHER):
            there = s0 + i < splits
            place = ((t * H + head) * splits + s0 + i) * (DVP + 2)
            m = tl.load(part_ptr + place, mask=there, other=float("-inf"))
            seen = m > float("-inf")
            l = tl.load(part_ptr + place + 1, mask=there, other=0.0)
            acc = tl.load(part_ptr + place + 2 + dv, mask=there & (dv < DVP), other=0.0)
            new = tl.maximum(total_m, m)
            safe = tl.where(new == float("-inf"), 0.0, new)
            a, b = tl.exp2(total_m - safe), tl.exp2(m - safe)
            total_l = total_l * a + tl.where(seen, l, 0.0) * b
            total = total * a + tl.where(seen, acc, 0.0) * b
            total_m = new
    if SINKS:
        sink = tl.load(sinks_ptr + head) * LOG2E
        new = tl.maximum(total_m, sink)
        a = tl.exp2(total_m - new)
        total_l = total_l * a + tl.exp2(sink - new)
        total = total * a
    out = total / tl.where(total_l > 0.0, total_l, 1.0)
    tl.store(y_ptr + (t * H + head) * DV + dv, out.to(y_ptr.dtype.element_ty), mask=dv < DV)


@triton.jit
def attend_one(
    q_ptr, k_ptr, v_ptr, table_ptr, slot_ptr, k_cache_ptr, v_cache_ptr, sinks_ptr, slopes_ptr, pos_ptr, block_ptr, part_ptr, y_ptr, max_blocks,
    H: tl.constexpr, G: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, DKP: tl.constexpr, DVP: tl.constexpr, LDQ: tl.constexpr, LDQH: tl.constexpr, LDK: tl.constexpr, LDKH: tl.constexpr,
    LDV: tl.constexpr, LDVH: tl.constexpr, PAIRS: tl.constexpr, OFFSET: tl.constexpr, INTERLEAVED: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, SINKS: tl.constexpr, SLOPES: tl.constexpr,
    SPLIT: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, PAGE: tl.constexpr, INNER: tl.constexpr, STAGES: tl.constexpr, ASM: tl.constexpr, AHEAD: tl.constexpr, EARLY: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (G, sequences, splits): `write_cache` and `attend` in one, where each sequence has one token. The program of the split that holds the
    token puts its key and value into the cache. One split is all of the result; else each is left for `merge`."""
    release(OVERLAP)
    g, t, z = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    SHARE: tl.constexpr = H // G
    pos = tl.load(pos_ptr + t)
    block_ptr += t * max_blocks
    row = t.to(tl.int64)
    r = tl.arange(0, BM)
    head = g * SHARE + r % SHARE
    valid = r < SHARE
    dk, dv = tl.arange(0, DKP), tl.arange(0, DVP)
    low = 0  # the first position that the token sees
    if WINDOW > 0:
        low = tl.maximum(pos - WINDOW + 1, 0)
    if CHUNK > 0:
        low = pos // CHUNK * CHUNK
    from_split = low // SPLIT
    to_split = pos // SPLIT + 1
    if EARLY:
        ask(k_cache_ptr, block_ptr, z * SPLIT, pos, g, G, DK, PAGE, SPLIT)
        ask(v_cache_ptr, block_ptr, z * SPLIT, pos, g, G, DV, PAGE, SPLIT)
    slot = tl.load(slot_ptr + t).to(tl.int64) * G + g
    wait(OVERLAP)
    splits = tl.num_programs(2)
    place = ((row * H + head) * splits + z) * (DVP + 2)
    if (z < from_split) | (z >= to_split):
        tl.store(part_ptr + place, tl.full((BM,), float("-inf"), tl.float32), mask=valid)
    else:
        cos_ptr = table_ptr + row * 2 * PAIRS
        one = tl.arange(0, 1)[:, None]
        inside = (dk < DK)[None, :]
        q = rotated(
            q_ptr + row * LDQ + head[:, None] * LDQH, q_ptr, cos_ptr, dk[None, :], valid[:, None] & inside, DK, False, 0.0, PAIRS, OFFSET, INTERLEAVED,
        ).to(k_cache_ptr.dtype.element_ty)  # fmt: skip
        key = rotated(
            k_ptr + row * LDK + g * LDKH + one, k_ptr, cos_ptr, dk[None, :], (one == 0) & inside, DK, False, 0.0, PAIRS, OFFSET, INTERLEAVED,
        )  # fmt: skip
        value = tl.load(v_ptr + row * LDV + g * LDVH + dv, mask=dv < DV, other=0.0)
        if z == to_split - 1:
            tl.store(k_cache_ptr + slot * DK + one + dk[None, :], key.to(k_cache_ptr.dtype.element_ty), mask=(one == 0) & inside)
            tl.store(v_cache_ptr + slot * DV + dv, value.to(v_cache_ptr.dtype.element_ty), mask=dv < DV)
            tl.debug_barrier()
        slope = tl.zeros((BM,), tl.float32)
        if SLOPES:
            slope = tl.load(slopes_ptr + head, mask=valid, other=0.0)
        at = pos + tl.zeros((BM,), tl.int32)
        whole = from_split  # splits before this one are seen by every row, to their end
        if WINDOW == 0 and CHUNK == 0:
            whole = (pos + 1) // SPLIT
        m, l, acc = one_split(
            q, k_cache_ptr, v_cache_ptr, block_ptr, max_blocks, z, whole, pos, at, valid, slope, g, SPLIT,
            G, DK, DV, DKP, DVP, SCALE, SOFTCAP, WINDOW, CHUNK, SLOPES, BN, BM, PAGE, INNER, STAGES, ASM, AHEAD,
        )  # fmt: skip
        weights = tl.max(l, 1)
        if splits == 1:
            out = closed(m, weights, acc, sinks_ptr, head, valid, SINKS)
            tl.store(
                y_ptr + (row * H + head)[:, None] * DV + dv[None, :],
                out.to(y_ptr.dtype.element_ty),
                mask=valid[:, None] & (dv < DV)[None, :],
            )
        else:
            tl.store(part_ptr + place, m, mask=valid)
            tl.store(part_ptr + place + 1, weights, mask=valid)
            tl.store(part_ptr + place[:, None] + 2 + dv[None, :], acc, mask=valid[:, None])
