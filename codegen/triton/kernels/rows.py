"""What moves or turns rows: embeddings, rotations, the largest logit."""

import triton
import triton.language as tl

from .common import begin


@triton.jit
def embed(
    ids_ptr,
    w_ptr,
    scale_ptr,
    zero_ptr,
    table_ptr,
    y_ptr,
    V: tl.constexpr,
    K: tl.constexpr,
    KW: tl.constexpr,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    ZERO: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Row ids[t] of a table [V, K], stored as `linear` stores weights, in float32. Grid (tokens, blocks of K)."""
    begin(OVERLAP)
    t = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = k < K
    row = tl.load(ids_ptr + t).to(tl.int64)
    row = tl.where((row < 0) | (row >= V), 0, row)
    if KIND == "float":
        y = tl.load(w_ptr + row * KW + k, mask=inside, other=0.0).to(tl.float32)
    else:
        if BITS == 4:
            byte = k // (2 * SPAN) * SPAN + k % SPAN
            c = (tl.load(w_ptr + row * (KW // 2) + byte, mask=inside, other=0).to(tl.int32) >> (4 * (k // SPAN % 2))) & 15
        else:
            c = tl.load(w_ptr + row * KW + k, mask=inside, other=0).to(tl.int32)
        g = tl.minimum(k // GROUP, GROUPS - 1)
        if KIND == "int":
            c = c - ZERO
            if HAS_ZERO:
                c = c - tl.load(zero_ptr + row * GROUPS + g, mask=inside, other=0).to(tl.int32)
            y = c.to(tl.float32)
        elif KIND == "level":
            y = tl.load(table_ptr + c, mask=inside, other=0.0)
        elif KIND == "e4m3":
            w = c.to(tl.uint32)
            y = (((w & 0x80) << 24) | ((w & 0x7F) << 20)).to(tl.float32, bitcast=True) * 1.329227995784916e36
        else:
            w = c.to(tl.uint32)
            y = (((w & 0x80) << 24) | ((w & 0x7F) << 21)).to(tl.float32, bitcast=True) * 5.192296858534828e33
        y = y * tl.load(scale_ptr + row * GROUPS + g, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + t * K + k, y, mask=inside)


@triton.jit
def rope_table(
    positions_ptr, frequencies_ptr, y_ptr, PAIRS: tl.constexpr, SCALE: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):
    """y [T, 2, PAIRS]: scale·cos and scale·sin of position·frequency, the product rounded to float32."""
    begin(OVERLAP)
    t = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, BLOCK)
    inside = p < PAIRS
    angle = tl.load(positions_ptr + t).to(tl.float32) * tl.load(frequencies_ptr + p, mask=inside, other=0.0)
    tl.store(y_ptr + t * 2 * PAIRS + p, tl.cos(angle) * SCALE, mask=inside)
    tl.store(y_ptr + (t * 2 + 1) * PAIRS + p, tl.sin(angle) * SCALE, mask=inside)


@triton.jit
def rope(
    x_ptr,
    table_ptr,
    y_ptr,
    HEADS: tl.constexpr,
    LDX: tl.constexpr,
    LDH: tl.constexpr,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    OFFSET: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid (rows, heads): rows of D values, rotated by their token's table."""
    begin(OVERLAP)
    t, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = tl.arange(0, BLOCK)
    inside = lane < D
    row_ptr = x_ptr + t * LDX + head * LDH
    x = tl.load(row_ptr + lane, mask=inside, other=0.0)
    d = lane - OFFSET
    turns = (d >= 0) & (d < 2 * PAIRS)
    if INTERLEAVED:
        pair, second = d // 2, d % 2 == 1
        other = tl.where(second, lane - 1, lane + 1)
    else:
        pair, second = d % PAIRS, d >= PAIRS
        other = tl.where(second, lane - PAIRS, lane + PAIRS)
    y = tl.load(row_ptr + other, mask=turns, other=0.0)
    cos = tl.load(table_ptr + t * 2 * PAIRS + pair, mask=turns, other=1.0)
    sin = tl.load(table_ptr + (t * 2 + 1) * PAIRS + pair, mask=turns, other=0.0)
    x = tl.where(turns, tl.where(second, x * cos + y * sin, x * cos - y * sin), x)
    tl.store(y_ptr + (t * HEADS + head) * D + lane, x, mask=inside)


@triton.jit
def hadamard(
    x_ptr,
    y_ptr,
    LDX: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    UNIT: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid (rows, blocks of K): 2^STEPS = BLOCK values times a Hadamard matrix and UNIT, by sums and differences."""
    begin(OVERLAP)
    t, k = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + t * LDX + k) * UNIT
    for i in tl.static_range(STEPS):
        a, b = tl.split(tl.permute(tl.reshape(x, (BLOCK // (2 << i), 2, 1 << i)), (0, 2, 1)))
        x = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 2, 1)), (BLOCK,))
    tl.store(y_ptr + t * K + k, x)


@triton.jit
def largest(x_ptr, rows_ptr, part_ptr, V: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """Grid (rows, PARTS): the largest of a part of row rows[i] of x [R, V] and its place, the first of equals → part [rows, PARTS, 2]."""
    begin(OVERLAP)
    i, part = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows_ptr + i).to(tl.int64)
    size: tl.constexpr = (V + PARTS - 1) // PARTS
    lane = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    where = tl.full((BLOCK,), part * size, tl.int32)
    for v0 in range(part * size, tl.minimum((part + 1) * size, V), BLOCK):
        inside = (v0 + lane < V) & (v0 + lane < (part + 1) * size)
        x = tl.load(x_ptr + row * V + v0 + lane, mask=inside, other=float("-inf"))
        wins = x > best
        best = tl.where(wins, x, best)
        where = tl.where(wins, v0 + lane, where)
    most = tl.max(best, 0)
    tl.store(part_ptr + (i * PARTS + part) * 2, most)
    tl.store(part_ptr + (i * PARTS + part) * 2 + 1, tl.min(tl.where(best == most, where, 2147483647), 0).to(tl.float32))


@triton.jit
def argmax(part_ptr, y_ptr, PARTS: tl.constexpr, OVERLAP: tl.constexpr):
    """y[i] = the place of the largest of row i's parts. Places are exact: a vocabulary is smaller than 2^24."""
    begin(OVERLAP)
    i = tl.program_id(0)
    at = part_ptr + (i * PARTS + tl.arange(0, PARTS)) * 2
    x, where = tl.load(at), tl.load(at + 1)
    tl.store(y_ptr + i, tl.min(tl.where(x == tl.max(x, 0), where, float("inf")), 0).to(tl.int32))


@triton.jit
def ordered(x):
    """Floats as integers of the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def above(row_ptr, least, most, inverse, V: tl.constexpr, BLOCK: tl.constexpr):
    """Of the values of a row whose order is `least` or more: how many, and Σ exp((x - most)·inverse)."""
    lane = tl.arange(0, BLOCK)
    count = tl.zeros((BLOCK,), tl.int32)
    total = tl.zeros((BLOCK,), tl.float32)
    for v0 in range(0, V, BLOCK):
        x = tl.load(row_ptr + v0 + lane, mask=v0 + lane < V, other=float("-inf"))
        held = (v0 + lane < V) & (ordered(x) >= least)
        count += held.to(tl.int32)
        total += tl.where(held, tl.exp((x - most) * inverse), 0.0)
    return tl.sum(count, 0), tl.sum(total, 0)


@triton.jit
def draw(x_ptr, whole_ptr, real_ptr, y_ptr, V: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """Grid (draws): y[i] drawn from a row of x [R, V]. whole [draws, 2]: the row, and how many of the largest logits are kept; real [draws, 4]:
    1 / temperature, top-p, min-p, and a number from 0 to 1. A threshold is found by halving the range of orders: nothing is sorted. Logits
    equal to the last that is kept are all kept; tokens stand in the order of their ids."""
    begin(OVERLAP)
    i = tl.program_id(0)
    row_ptr = x_ptr + tl.load(whole_ptr + 2 * i).to(tl.int64) * V
    k = tl.load(whole_ptr + 2 * i + 1)
    inverse, p = tl.load(real_ptr + 4 * i), tl.load(real_ptr + 4 * i + 1)
    min_p, at = tl.load(real_ptr + 4 * i + 2), tl.load(real_ptr + 4 * i + 3)
    lane = tl.arange(0, BLOCK)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    for v0 in range(0, V, BLOCK):
        largest = tl.maximum(largest, tl.load(row_ptr + v0 + lane, mask=v0 + lane < V, other=float("-inf")))
    most = tl.max(largest, 0)
    top = ordered(most).to(tl.int64)
    least = tl.full((), -2139095041, tl.int64)  # of -inf
    if k < V:
        high = top
        while least < high:
            middle = least + (high - least + 1) // 2
            count, _ = above(row_ptr, middle.to(tl.int32), most, inverse, V, BLOCK)
            least = tl.where(count >= k, middle, least)
            high = tl.where(count >= k, high, middle - 1)
    if p < 1.0:
        _, total = above(row_ptr, least.to(tl.int32), most, inverse, V, BLOCK)
        high = top
        while least < high:
            middle = least + (high - least + 1) // 2
            _, mass = above(row_ptr, middle.to(tl.int32), most, inverse, V, BLOCK)
            least = tl.where(mass >= p * total, middle, least)
            high = tl.where(mass >= p * total, high, middle - 1)
    total = tl.zeros((BLOCK,), tl.float32)
    for v0 in range(0, V, BLOCK):
        x = tl.load(row_ptr + v0 + lane, mask=v0 + lane < V, other=float("-inf"))
        w = tl.where(ordered(x) >= least.to(tl.int32), tl.exp((x - most) * inverse), 0.0)
        total += tl.where(w >= min_p, w, 0.0)
    target = at * tl.sum(total, 0)
    before = 0.0
    found = tl.full((), V, tl.int32)
    last = tl.full((), 0, tl.int32)
    for v0 in range(0, V, BLOCK):
        x = tl.load(row_ptr + v0 + lane, mask=v0 + lane < V, other=float("-inf"))
        w = tl.where(ordered(x) >= least.to(tl.int32), tl.exp((x - most) * inverse), 0.0)
        w = tl.where(w >= min_p, w, 0.0)
        past = (w > 0.0) & (before + tl.cumsum(w, 0) > target)
        found = tl.minimum(found, tl.min(tl.where(past, v0 + lane, V), 0))
        last = tl.maximum(last, tl.max(tl.where(w > 0.0, v0 + lane, 0), 0))
        before += tl.sum(w, 0)
    tl.store(y_ptr + i, tl.where(found < V, found, last))
