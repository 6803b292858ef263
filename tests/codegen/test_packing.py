"""Packing: numpy reads the bytes by the layout that the kernels document, independently of the packer."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from llmc.codegen.cpu.lower import _codes_bytes, _scale_bytes
from llmc.codegen.packing import Kind, interleave_gate, kind_of, pack_codes, pack_floats, pack_groups, pack_vector
from llmc.quant.algorithms.rtn import quantize
from llmc.quant.scheme import parse_scheme

SIZES = st.tuples(st.integers(1, 70), st.integers(1, 140))


def place(n, k, chunk, size):
    """(tile and chunk, output in the tile, value in the chunk) of every element of [N, K]."""
    chunks = -(-size // chunk)
    return (n // 16) * chunks + k // chunk, n % 16, k % chunk


def grid(n, k):
    return np.meshgrid(np.arange(n), np.arange(k), indexing="ij")


@given(SIZES, st.sampled_from(["f32", "f16", "bf16"]), st.integers(0, 1 << 32))
def test_floats(size, kind, seed):
    n, k = size
    w = torch.as_tensor(np.random.default_rng(seed).normal(size=size).astype(np.float32))
    dtype = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[kind]
    data = pack_floats(w, kind).numpy().view(dtype)
    assert data.size == -(-n // 32) * 32 * (-(-k // 32) * 32) and data.nbytes == _codes_bytes(n, k, Kind(kind), "")
    tile, o, v = place(*grid(n, k), 32, k)
    inside = (v // 2) * 32 + (2 * o + v % 2 if kind == "bf16" else 16 * (v % 2) + o)
    got = data[tile * 512 + inside]
    wanted = w.to(torch.bfloat16).view(torch.uint16).numpy() if kind == "bf16" else w.numpy().astype(dtype)
    assert np.array_equal(got, wanted)
    assert np.count_nonzero(data) == np.count_nonzero(wanted), "padding is not zero"


def unpacked(data, n, k, kind):
    """Codes [N, K] and, where the layout pads, the padding's codes."""
    if kind == "i8":
        tile, o, v = place(*grid(-(-n // 32) * 32, -(-k // 32) * 32), 32, k)
        return data.view(np.int8)[tile * 512 + (v // 2) * 32 + 2 * o + v % 2].astype(int) + 128
    if kind == "d8":
        tile, o, v = place(*grid(-(-n // 32) * 32, -(-k // 64) * 64), 64, k)
        return data[tile * 1024 + (v // 4) * 64 + 4 * o + v % 4].astype(int)
    if kind == "d4":
        tile, o, v = place(*grid(-(-n // 32) * 32, -(-k // 64) * 64), 64, k)
        return data[tile * 512 + (v // 8) * 64 + 4 * o + v % 4].astype(int) >> np.where(v % 8 >= 4, 4, 0) & 15
    tile, o, v = place(*grid(-(-n // 32) * 32, -(-k // 32) * 32), 32, k)
    words = data.view(np.uint32)[tile * 64 + (v // 8) * 16 + o].astype(np.int64)
    return words >> (4 * ((v % 8) // 2) + 16 * (v % 2)) & 15


@given(
    SIZES,
    st.sampled_from(
        [
            "int8:channel/bf16",
            "int8:g64/bf16",
            "int8/int8",
            "int4:g32/int8",
            "int4:g64:asym/int8",
            "int4:g64/bf16",
            "int4:channel:asym/bf16",
            "int4:g128:asym/bf16",
        ]
    ),
    st.integers(0, 1 << 32),
)
def test_codes_scales_and_zeros(size, text, seed):
    n, k = size
    scheme = parse_scheme(text)
    codes = quantize(torch.as_tensor(np.random.default_rng(seed).normal(size=size)), scheme)
    kind = kind_of(scheme).name
    data = pack_codes(codes, scheme).numpy()
    got = unpacked(data, n, k, kind)
    assert got.size == data.size * (2 if kind[1] == "4" else 1), "not every code has a place"
    assert np.array_equal(got[:n, :k], codes.codes.numpy())
    fill = 0 if scheme.asymmetric else 1 << (scheme.bits - 1)
    padding = np.ones(got.shape, bool)
    padding[:n, :k] = False
    assert (got[padding] == fill).all(), "padding does not stand for zero"
    if not kind.startswith("d"):
        assert data.nbytes == _codes_bytes(n, k, kind_of(scheme), "")
    scales = pack_groups(codes.scales, torch.float16 if scheme.group else torch.float32).numpy()
    assert scales.nbytes == _scale_bytes(n, k, scheme, "")
    groups = codes.scales.shape[1]
    read = scales.view(np.float16 if scheme.group else np.float32).reshape(-1, groups, 16).transpose(0, 2, 1).reshape(-1, groups)
    assert np.array_equal(read[:n], codes.scales.numpy().astype(read.dtype)) and not read[n:].any()
    if codes.zeros is not None:
        zeros = pack_groups(codes.zeros, torch.uint8).numpy().reshape(-1, groups, 16).transpose(0, 2, 1).reshape(-1, groups)
        assert np.array_equal(zeros[:n], codes.zeros.numpy())


@given(st.integers(1, 50), st.integers(1, 5))
def test_gate_and_up_take_turns_by_tiles(half, k):
    rows = torch.arange(2 * half * k, dtype=torch.float32).reshape(2 * half, k) + 1
    made = interleave_gate(rows)
    padded = -(-half // 16) * 16
    assert made.shape == (2 * padded, k)
    for f in range(padded):
        gate, up = made[f // 16 * 32 + f % 16], made[f // 16 * 32 + 16 + f % 16]
        assert torch.equal(gate, rows[f] if f < half else torch.zeros(k)) and torch.equal(
            up, rows[half + f] if f < half else torch.zeros(k)
        )


@given(st.integers(1, 100), st.sampled_from([16, 32]))
def test_vectors_are_padded_with_zeros(size, multiple):
    data = pack_vector(torch.arange(1, size + 1), multiple).numpy().view(np.float32)
    assert data.size % multiple == 0 and data.size - size < multiple
    assert np.array_equal(data[:size], np.arange(1, size + 1)) and not data[size:].any()
