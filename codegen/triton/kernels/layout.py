"""Weights as the artifact holds them (tiles of 16 outputs by 32 values of K, ADR 3) → rows, once, when a model is loaded."""

import triton
import triton.language as tl

from .common import packed_row


@triton.jit
def rows_of_floats(
    src_ptr,
    dst_ptr,
    K: tl.constexpr,
    CHUNKS: tl.constexpr,
    KW: tl.constexpr,
    PAIRED: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (rows, blocks of KW). PAIRED: a pair's two values lie together (bfloat16); else 16 of the one, then 16 of the other."""
    n = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    p = packed_row(n, GATED)
    place = ((p // 16) * CHUNKS + k // 32) * 512 + (k % 32) // 2 * 32
    if PAIRED:
        place += (p % 16) * 2 + k % 2
    else:
        place += (k % 2) * 16 + p % 16
    v = tl.load(src_ptr + place, mask=k < K, other=0)
    tl.store(dst_ptr + n * KW + k, v, mask=k < KW)


@triton.jit
def code_at(src_ptr, n, k, mask, CHUNKS: tl.constexpr, FORM: tl.constexpr, B0: tl.constexpr, B1: tl.constexpr):
    """The code of output n, input k, as an int32. FORM: "bytes" (pairs), "quads" (8-bit dot products), "nibbles", "dot4", "fields"."""
    if FORM == "bytes":
        place = ((n // 16) * CHUNKS + k // 32) * 512 + (k % 32) // 2 * 32 + (n % 16) * 2 + k % 2
        return tl.load(src_ptr + place, mask=mask, other=0).to(tl.int32)
    if FORM == "quads":
        place = ((n // 16) * CHUNKS + k // 64) * 1024 + (k % 64) // 4 * 64 + (n % 16) * 4 + k % 4
        return tl.load(src_ptr + place, mask=mask, other=0).to(tl.int32)
    if FORM == "dot4":
        place = ((n // 16) * CHUNKS + k // 64) * 512 + (k % 64) // 8 * 64 + (n % 16) * 4 + k % 4
        return (tl.load(src_ptr + place, mask=mask, other=0).to(tl.int32) >> (k % 8 // 4 * 4)) & 15
    if FORM == "nibbles":
        shift = (k % 8) // 2 * 4 + (k % 2) * 16
        place = ((n // 16) * CHUNKS + k // 32) * 256 + (k % 32) // 8 * 64 + (n % 16) * 4 + shift // 8
        return (tl.load(src_ptr + place, mask=mask, other=0).to(tl.int32) >> (shift % 8)) & 15
    base = ((n // 16) * CHUNKS + k // 32) * (64 * (B0 + B1)) + (n % 16) * 4
    v = k % 32
    per0: tl.constexpr = 32 // B0
    shift0 = v % per0 * B0
    code = (tl.load(src_ptr + base + v // per0 * 64 + shift0 // 8, mask=mask, other=0).to(tl.int32) >> (shift0 % 8)) & (
        (1 << B0) - 1
    )
    if B1 > 0:
        per1: tl.constexpr = 32 // B1
        shift1 = v % per1 * B1
        high = (
            tl.load(src_ptr + base + (B0 + v // per1) * 64 + shift1 // 8, mask=mask, other=0).to(tl.int32) >> (shift1 % 8)
        ) & ((1 << B1) - 1)
        code += high << B0
    return code


@triton.jit
def rows_of_codes(
    src_ptr,
    dst_ptr,
    K: tl.constexpr,
    CHUNKS: tl.constexpr,
    KW: tl.constexpr,
    FORM: tl.constexpr,
    B0: tl.constexpr,
    B1: tl.constexpr,
    BITS: tl.constexpr,
    SPAN: tl.constexpr,
    FILL: tl.constexpr,
    FLIP: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (rows, blocks of bytes): 8-bit codes in order, FLIPped, or 4-bit ones as `linear` reads them. Places after K get FILL."""
    n = tl.program_id(0).to(tl.int64)
    p = packed_row(n, GATED)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if BITS == 8:
        code = tl.where(j < K, code_at(src_ptr, p, j, j < K, CHUNKS, FORM, B0, B1) ^ FLIP, FILL)
        tl.store(dst_ptr + n * KW + j, code.to(tl.uint8), mask=j < KW)
    else:
        k = j // SPAN * (2 * SPAN) + j % SPAN
        low = tl.where(k < K, code_at(src_ptr, p, k, k < K, CHUNKS, FORM, B0, B1), FILL)
        high = tl.where(k + SPAN < K, code_at(src_ptr, p, k + SPAN, k + SPAN < K, CHUNKS, FORM, B0, B1), FILL)
        tl.store(dst_ptr + n * (KW // 2) + j, (low | (high << 4)).to(tl.uint8), mask=j < KW // 2)


@triton.jit
def rows_of_words(
    src_ptr, dst_ptr, K: tl.constexpr, CHUNKS: tl.constexpr, KW: tl.constexpr, FORM: tl.constexpr, B0: tl.constexpr, B1: tl.constexpr, FILL: tl.constexpr, GATED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (rows, blocks of words): 4-bit codes as `operands` takes them. Places after K get FILL."""
    n = tl.program_id(0).to(tl.int64)
    p = packed_row(n, GATED)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # words of a row, 16 for each 64 values of K
    word = tl.zeros((BLOCK,), tl.int32)
    for q in tl.static_range(4):
        k = j // 16 * 64 + q * 16 + j % 16
        word |= tl.where(k < K, code_at(src_ptr, p, k, k < K, CHUNKS, FORM, B0, B1), FILL) << (4 * q)
    thread = n % 8 * 4 + j % 8 // 2
    place = ((n // 16 * (KW // 64) + j // 16) * 32 + thread) * 8 + j % 16 // 8 * 4 + n % 16 // 8 * 2 + j % 2
    tl.store(dst_ptr + place, word.to(tl.int16), mask=j < KW // 4)


@triton.jit
def columns_of_groups(src_ptr, dst_ptr, N: tl.constexpr, GROUPS: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (blocks of rows, groups): scales or zero points [tile][group][16] → [group][row]."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    g = tl.program_id(1)
    p = packed_row(n, GATED)
    v = tl.load(src_ptr + ((p // 16).to(tl.int64) * GROUPS + g) * 16 + p % 16, mask=n < N, other=0)
    tl.store(dst_ptr + g.to(tl.int64) * N + n, v.to(dst_ptr.dtype.element_ty), mask=n < N)


@triton.jit
def rows_of_groups(src_ptr, dst_ptr, GROUPS: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (rows, blocks of groups): scales or zero points [tile][group][16] → [row][group]."""
    n = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    p = packed_row(n, GATED)
    v = tl.load(src_ptr + ((p // 16) * GROUPS + g) * 16 + p % 16, mask=g < GROUPS, other=0)
    tl.store(dst_ptr + n * GROUPS + g, v, mask=g < GROUPS)
