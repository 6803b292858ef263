"""Packing: weights in the order in which every CPU level reads them (ADR 3).

A tile is 16 outputs by a chunk of K, laid out as an AMX right-hand operand: for each pair (bf16) or quad (int8) of K values, the 16
outputs. Float activations use chunks of 32, int8 activations chunks of 64. N is padded to 32 outputs, K to the chunk, with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import UnsupportedError
from ...quant.algorithms.rtn import Codes
from ...quant.scheme import Scheme


@dataclass(frozen=True)
class Kind:
    """How a packed weight is read: `name` as in the templates, `dot` for int8 activations."""

    name: str
    dot: bool = False


def kind_of(scheme: Scheme) -> Kind:
    """The kernel family for a scheme; raises UnsupportedError where there is none."""
    if not scheme.is_integer:
        if scheme.activations == "int8":
            raise UnsupportedError(f"{scheme}: int8 activations need integer weights")
        return Kind(scheme.kind)
    if scheme.activations == "int8":
        return Kind("d8" if scheme.bits == 8 else "d4", dot=True)
    if scheme.bits == 8:
        if scheme.asymmetric:
            raise UnsupportedError(f"{scheme}: asymmetric 8-bit weights are not supported yet")
        return Kind("i8")
    return Kind("u4" if scheme.asymmetric else "i4")


def _tiles(x: torch.Tensor, chunk: int) -> torch.Tensor:
    """[N, K] → [tiles, chunks, 16, chunk], padded with zeros."""
    n, k = x.shape
    rows, cols = -(-n // 32) * 32, -(-k // chunk) * chunk
    if (rows, cols) != (n, k):
        padded = torch.zeros(rows, cols, dtype=x.dtype)
        padded[:n, :k] = x
        x = padded
    return x.reshape(rows // 16, 16, cols // chunk, chunk).permute(0, 2, 1, 3)


def pack_floats(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """weight [N, K] → flat uint8. bf16: [tile][chunk][pair][output][2]; f32, f16: [tile][chunk][pair][2][output]."""
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind]
    tiles = _tiles(weight.to(dtype), 32)
    pairs = tiles.reshape(*tiles.shape[:3], 16, 2)
    order = (0, 1, 3, 2, 4) if kind == "bf16" else (0, 1, 3, 4, 2)
    return pairs.permute(*order).contiguous().view(torch.uint8).flatten()


def pack_codes(codes: Codes, scheme: Scheme) -> torch.Tensor:
    """codes [N, K] → flat uint8 in the order of the scheme's kernel family."""
    kind = kind_of(scheme).name
    if kind == "i8":
        tiles = _tiles((codes.codes.to(torch.int16) - 128).to(torch.int8), 32)
        return tiles.reshape(*tiles.shape[:3], 16, 2).permute(0, 1, 3, 2, 4).contiguous().view(torch.uint8).flatten()
    if kind == "d8":
        tiles = _tiles_filled(codes.codes, 64, 128)
        return tiles.reshape(*tiles.shape[:3], 16, 4).permute(0, 1, 3, 2, 4).contiguous().flatten()
    if kind == "d4":
        tiles = _tiles_filled(codes.codes, 64, 8)
        quads = tiles.reshape(*tiles.shape[:3], 8, 2, 4).permute(0, 1, 3, 4, 2, 5)  # [tile][chunk][line][low, high][output][4]
        return (quads[:, :, :, 0] | (quads[:, :, :, 1] << 4)).contiguous().flatten()
    tiles = _tiles_filled(codes.codes, 32, 0 if scheme.asymmetric else 8).to(torch.int32)
    nibbles = tiles.reshape(*tiles.shape[:3], 4, 4, 2).permute(0, 1, 3, 2, 4, 5)  # [tile][chunk][line][output][pair][parity]
    shifts = torch.tensor([[0, 16], [4, 20], [8, 24], [12, 28]], dtype=torch.int64)
    words = (nibbles.to(torch.int64) << shifts).sum((-1, -2))
    return (words - ((words >> 31) << 32)).to(torch.int32).contiguous().view(torch.uint8).flatten()


def _tiles_filled(codes: torch.Tensor, chunk: int, fill: int) -> torch.Tensor:
    """As _tiles, but padded with the code that stands for zero."""
    n, k = codes.shape
    rows, cols = -(-n // 32) * 32, -(-k // chunk) * chunk
    if (rows, cols) != (n, k):
        padded = torch.full((rows, cols), fill, dtype=codes.dtype)
        padded[:n, :k] = codes
        codes = padded
    return codes.reshape(rows // 16, 16, cols // chunk, chunk).permute(0, 2, 1, 3)


def pack_groups(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """scales or zeros [N, G] → [tile][group][16] of `dtype`, as flat uint8."""
    n, g = values.shape
    rows = -(-n // 32) * 32
    padded = torch.zeros(rows, g, dtype=dtype)
    padded[:n] = values.to(dtype)
    return padded.reshape(rows // 16, 16, g).permute(0, 2, 1).contiguous().view(torch.uint8).flatten()


def interleave_gate(rows: torch.Tensor) -> torch.Tensor:
    """[2F, …] (gate rows, then up rows) → tiles of 16 gate rows and 16 up rows in turn, F padded to 16, so that one thread has both."""
    half = rows.shape[0] // 2
    padded = -(-half // 16) * 16
    gate = torch.zeros(padded, *rows.shape[1:], dtype=rows.dtype)
    up = gate.clone()
    gate[:half], up[:half] = rows[:half], rows[half:]
    both = torch.stack([gate.reshape(-1, 16, *rows.shape[1:]), up.reshape(-1, 16, *rows.shape[1:])], 1)
    return both.reshape(2 * padded, *rows.shape[1:])


def pack_vector(values: torch.Tensor, multiple: int = 16) -> torch.Tensor:
    """A vector as float32, padded with zeros, as flat uint8."""
    flat = values.float().flatten()
    size = -(-flat.numel() // multiple) * multiple
    return torch.nn.functional.pad(flat, (0, size - flat.numel())).contiguous().view(torch.uint8)
