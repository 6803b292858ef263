"""Norms, and activations rounded to what the next product takes. One program a row; a row that is longer than a block is read twice or
thrice, a shorter one once.

Cost model: bytes = rows·K·(4 read + 1 to 4 written). Sums run over a row in blocks of one size, whatever the number of rows.
"""

import triton
import triton.language as tl

from .common import begin, fragment


@triton.jit
def near(x):
    """The nearest whole number, ties to even, for |x| < 2^22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def near_e4m3(x):
    """The nearest e4m3 number, ties to even, at most 448."""
    a = tl.abs(x)
    bits = a.to(tl.uint32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & 0xFFF00000).to(tl.float32, bitcast=True)
    r = tl.where(a < 0.015625, near(a * 512.0) * 0.001953125, normal)
    r = tl.minimum(r, 448.0)
    return tl.where(x < 0, -r, r)


@triton.jit
def norm(
    x_ptr, weight_ptr, bias_ptr, order_ptr, y_ptr, scale_ptr,
    K: tl.constexpr, HEADS: tl.constexpr, LDX: tl.constexpr, LDH: tl.constexpr, KPAD: tl.constexpr,
    NORM: tl.constexpr, EPS: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, ORDER: tl.constexpr, ROUND: tl.constexpr, BLOCK: tl.constexpr, FRAGMENTS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """y[row] = round(norm(x[row])), columns from K to KPAD zero. NORM: "", "rms", "layer", "l2"; ROUND: "" (none), "int8"
    (codes in ±127 and a scale for the row), "fp8-codes" (likewise), "int8-values" and "fp8" (their values, as bfloat16). ORDER picks inputs.
    Up to FRAGMENTS rows are stored in that order: by this kernel, since in another the compiler may lay out a sum otherwise."""
    row = tl.program_id(0).to(tl.int64)
    x_row = x_ptr + (row // HEADS) * LDX + (row % HEADS) * LDH
    lane = tl.arange(0, BLOCK)
    WHOLE: tl.constexpr = K <= BLOCK  # a row is read once, its weights before what the launches before write is there
    x = tl.zeros((BLOCK,), tl.float32)
    w = x
    if WHOLE and WEIGHT:
        w = tl.load(weight_ptr + lane, mask=lane < K, other=0.0)
    begin(OVERLAP)
    if WHOLE and not ORDER:
        x = tl.load(x_row + lane, mask=lane < K, other=0.0)
    mean = 0.0
    factor = 1.0
    if NORM == "layer":
        total = tl.zeros((BLOCK,), tl.float32)
        for k0 in range(0, K, BLOCK):
            if ORDER or not WHOLE:
                x = tl.load(x_row + k0 + lane, mask=k0 + lane < K, other=0.0)
            total += x
        mean = tl.sum(total, 0) / K
    if NORM != "":
        squares = tl.zeros((BLOCK,), tl.float32)
        for k0 in range(0, K, BLOCK):
            if ORDER or not WHOLE:
                x = tl.load(x_row + k0 + lane, mask=k0 + lane < K, other=0.0)
            d = tl.where(k0 + lane < K, x - mean, 0.0)
            squares += d * d
        square = tl.sum(squares, 0)
        if NORM != "l2":
            square = square / K
        factor = 1.0 / tl.sqrt(square + EPS)
    most = 0.0
    if ROUND != "":
        largest = tl.zeros((BLOCK,), tl.float32)
        for k0 in range(0, K, BLOCK):
            inside = k0 + lane < K
            if ORDER or not WHOLE:
                x = tl.load(x_row + k0 + lane, mask=inside, other=0.0)
            v = (x - mean) * factor
            if WEIGHT:
                if not WHOLE:
                    w = tl.load(weight_ptr + k0 + lane, mask=inside, other=0.0)
                v = v * w
            if BIAS:
                v = v + tl.load(bias_ptr + k0 + lane, mask=inside, other=0.0)
            if ROUND != "int8":
                v = v.to(tl.bfloat16).to(tl.float32)
            largest = tl.maximum(largest, tl.where(inside, tl.abs(v), 0.0))
        most = tl.max(largest, 0)
    for k0 in range(0, KPAD, BLOCK):
        k = k0 + lane
        inside = k < K
        if ORDER:
            k = tl.load(order_ptr + k, mask=inside, other=0)
        if ORDER or not WHOLE:
            x = tl.load(x_row + k, mask=inside, other=0.0)
        v = (x - mean) * factor
        if WEIGHT:
            if ORDER or not WHOLE:
                w = tl.load(weight_ptr + k, mask=inside, other=0.0)
            v = v * w
        if BIAS:
            v = v + tl.load(bias_ptr + k, mask=inside, other=0.0)
        v = tl.where(inside, v, 0.0)
        if ROUND == "int8":
            v = near(v * tl.where(most > 1e-35, 127.0 / most, 0.0))
        elif ROUND == "int8-values":
            scale = (most / 127.5).to(tl.bfloat16).to(tl.float32)
            t = tl.where(scale > 1e-30, v.to(tl.bfloat16).to(tl.float32) / scale, 0.0).to(tl.bfloat16).to(tl.float32)
            v = tl.minimum(tl.maximum(near(t), -128.0), 127.0) * scale
        elif ROUND == "fp8" or ROUND == "fp8-codes":
            scale = (most / 448.0).to(tl.bfloat16).to(tl.float32)
            t = tl.where(scale > 1e-30, v.to(tl.bfloat16).to(tl.float32) / scale, 0.0).to(tl.bfloat16).to(tl.float32)
            v = near_e4m3(t)
            if ROUND == "fp8":
                v = v * scale
        y = v.to(y_ptr.dtype.element_ty)
        if FRAGMENTS > 0 and tl.num_programs(0) <= FRAGMENTS:
            tl.store(y_ptr + row * KPAD + fragment(k0 + lane), y, mask=k0 + lane < KPAD)
        else:
            tl.store(y_ptr + row * KPAD + k0 + lane, y, mask=k0 + lane < KPAD)
    if ROUND == "int8":
        tl.store(scale_ptr + row, tl.where(most > 1e-35, most / 127.0, 0.0))
    if ROUND == "fp8-codes":
        tl.store(scale_ptr + row, (most / 448.0).to(tl.bfloat16).to(tl.float32))
