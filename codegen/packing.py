"""Packing: weights in the order in which every CPU level reads them (ADR 3).

A tile is 16 outputs by a chunk of K, laid out as an AMX right-hand operand: for each pair (bf16) or quad (int8) of K values, the 16
outputs. Float activations use chunks of 32, int8 activations chunks of 64. N is padded to 32 outputs, K to the chunk, with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import LlmcError
from ..quant.algorithms.rtn import PIECE, Codes, unit_of
from ..quant.scheme import Scheme


@dataclass(frozen=True)
class Kind:
    """How a packed weight is read: `name` as in the templates, `dot` for 8-bit dot products with int8 activations."""

    name: str
    dot: bool = False


FIELDS = {2: (2,), 3: (2, 1), 5: (4, 1), 6: (4, 2)}  # widths of the parts of a code, lowest first
LEVEL_KINDS = {
    "fp8_e4m3": "e4m3",
    "mxfp8": "e4m3",
    "fp8_e5m2": "e5m2",
    "mxfp4": "e2m1",
    "nvfp4": "e2m1",
    "nf4": "nf4",
    "iq4": "iq4",
}
FLOAT_BYTES = {"f32": 2048, "f16": 1024, "bf16": 1024}
DOT_ACTIVATIONS = 2  # the rounding mode of int8 activations
ROUNDING = {
    "bf16": 1,
    "int8": DOT_ACTIVATIONS,
    "int8-asym": 3,
    "fp8": 4,
    "fp8-g128": 5,
    "mxfp8": 6,
    "mxfp4": 7,
    "nvfp4": 8,
    "int8-static": 9,
    "fp8-static": 10,
}


def kind_of(scheme: Scheme) -> Kind:
    """The kernel family for a scheme. Int8 activations go to dot products for 4 and 8 bits with whole zero points, and are
    rounded and multiplied as floats with all other weights."""
    if not scheme.is_coded:
        return Kind(scheme.kind)
    if not scheme.is_integer:
        return Kind(LEVEL_KINDS[scheme.kind])
    dot = scheme.activations == "int8" and not scheme.offset and not (scheme.group and scheme.group % 32)
    if dot and (scheme.bits == 4 or (scheme.bits == 8 and not scheme.asymmetric)):
        return Kind(f"d{scheme.bits}", dot=True)
    return Kind(f"{'u' if scheme.asymmetric else 'i'}{scheme.bits}")


def why_not_faster(scheme: Scheme) -> str:
    """Why a product with this weight does not run on a faster kernel; empty where there is none."""
    kind = kind_of(scheme)
    if kind.dot:
        return ""
    if scheme.activations in ("int8", "int8-static") and scheme.is_integer:
        if scheme.offset:
            return "its zero points are no whole numbers: 8-bit dot products do not take them, activations are rounded and multiplied as floats"
        if scheme.bits not in (4, 8):
            return f"8-bit dot products take weights of 4 and 8 bits, not {scheme.bits}: activations are rounded and multiplied as floats"
        if scheme.group % 32:
            return f"8-bit dot products take groups of 32 and more, not {scheme.group}: activations are rounded and multiplied as floats"
        return "8-bit dot products take no zero points with 8-bit weights: activations are rounded and multiplied as floats"
    if scheme.kind in ("f32", "f16"):
        return f"{scheme.kind} weights are multiplied in float32; bf16 and int8 read fewer bytes"
    if scheme.is_coded and (scheme.bits not in (4, 8) or scheme.kind == "nf4"):
        return f"{scheme.kind} codes are put together as they are read; those of 4 and 8 bits unpack faster"
    if scheme.activations not in ("", "bf16", "f32", "f16"):
        return (
            f"activations are rounded to {scheme.activations} and multiplied as floats: this CPU has no products of such numbers"
        )
    return ""


def tile_bytes(kind: Kind) -> int:
    """Bytes of 16 outputs by 32 values of K."""
    if kind.name in FLOAT_BYTES:
        return FLOAT_BYTES[kind.name]
    return {"e4m3": 512, "e5m2": 512, "e2m1": 256, "nf4": 256, "iq4": 256}.get(kind.name) or 64 * int(kind.name[1:])


def _tiles(x: torch.Tensor, chunk: int, fill: int = 0) -> torch.Tensor:
    """[N, K] → [tiles, chunks, 16, chunk], padded with the code that stands for zero."""
    n, k = x.shape
    rows, cols = -(-n // 32) * 32, -(-k // chunk) * chunk
    if (rows, cols) != (n, k):
        padded = torch.full((rows, cols), fill, dtype=x.dtype)
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
    rows = max(PIECE // codes.codes.shape[1] // 32, 1) * 32
    return torch.cat([_pack_rows(part, scheme) for part in codes.codes.split(rows)])


def _pack_rows(values: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Whole tiles of codes, but for the last."""
    kind = kind_of(scheme).name
    zero = 1 << (scheme.bits - 1) if scheme.is_integer and not scheme.asymmetric else 0
    if kind in ("i8", "u8", "e4m3", "e5m2"):
        tiles = _tiles(values ^ 128 if kind == "i8" else values, 32)  # signed codes: zero is 0
        return tiles.reshape(*tiles.shape[:3], 16, 2).permute(0, 1, 3, 2, 4).contiguous().flatten()
    if kind == "d8":
        tiles = _tiles(values, 64, zero)
        return tiles.reshape(*tiles.shape[:3], 16, 4).permute(0, 1, 3, 2, 4).contiguous().flatten()
    if kind == "d4":
        tiles = _tiles(values, 64, zero)
        quads = tiles.reshape(*tiles.shape[:3], 8, 2, 4).permute(0, 1, 3, 4, 2, 5)  # [tile][chunk][line][low, high][output][4]
        return (quads[:, :, :, 0] | (quads[:, :, :, 1] << 4)).contiguous().flatten()
    if kind in ("i4", "u4", "e2m1", "nf4", "iq4"):
        tiles = _tiles(values, 32, zero)
        # [tile][chunk][line][output][parity][byte][low, high]
        halves = tiles.reshape(*tiles.shape[:3], 4, 2, 2, 2).permute(0, 1, 3, 2, 6, 4, 5)
        return (halves[..., 0] | (halves[..., 1] << 4)).contiguous().flatten()
    tiles, parts, low = _tiles(values, 32, zero).long(), [], 0
    for width in FIELDS[scheme.bits]:  # each part of the codes in words of its own: [tile][chunk][word][output]
        field = (tiles >> low) & ((1 << width) - 1)
        words = field.reshape(*tiles.shape[:3], width, 32 // width) << torch.arange(0, 32, width)
        parts.append(words.sum(-1).permute(0, 1, 3, 2))
        low += width
    return _words(torch.cat(parts, 2))


def _words(values: torch.Tensor) -> torch.Tensor:
    """Unsigned 32-bit values in int64 → their bytes."""
    return (values - ((values >> 31) << 32)).to(torch.int32).contiguous().view(torch.uint8).flatten()


def pack_groups(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """scales or zeros [N, G] → [tile][group][16] of `dtype`, as flat uint8."""
    n, g = values.shape
    rows = -(-n // 32) * 32
    padded = torch.zeros(rows, g, dtype=dtype)
    padded[:n] = values.to(dtype)
    return padded.reshape(rows // 16, 16, g).permute(0, 2, 1).contiguous().view(torch.uint8).flatten()


def pack_counts(scales: torch.Tensor) -> torch.Tensor:
    """scales [N, G] of 8 bits → the units, f32 [tile][16], then their counts, i8 [tile][group][16], as flat uint8."""
    unit = unit_of(scales)
    counts = scales / unit
    if not torch.equal(counts, counts.round()):
        raise LlmcError("scales of 8 bits do not count one unit", "this is a bug in llmc: please report it")
    return torch.cat([pack_groups(unit, torch.float32), pack_groups(counts, torch.int8)])


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
