"""GGUF blocks: their codes and scales, for the types that are codes with scales; the others are used dequantized.

Layouts as in ggml's ggml-quants; the values themselves are gguf-py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from ..scheme import Scheme
from ..stored import Stored
from .bits import nibbles, powers_of_two

Blocks: TypeAlias = torch.Tensor  # uint8 [blocks, bytes of one]


def stored_blocks(kind: str, raw: torch.Tensor, rows: int, dense: Callable[[], torch.Tensor]) -> Stored:
    """One tensor of `rows` rows; `raw` are its bytes [blocks, block bytes], `kind` its type's name."""
    reader: Callable[[Blocks], Any] | None = READERS.get(kind)
    if reader is None:
        return Stored(dense, why=f"no kernel takes {kind} blocks")
    scheme, codes, scales, offsets = reader(raw)
    grid = lambda t: t.reshape(rows, -1).contiguous() if t is not None else None  # noqa: E731
    return Stored(dense, scheme, grid(codes), grid(scales), offsets=grid(offsets))


def dequantized(kind: str, raw: torch.Tensor) -> torch.Tensor:
    """Values of blocks that gguf-py does not dequantize, flat float32."""
    _scheme, codes, scales, offsets = READERS[kind](raw)
    groups = codes.reshape(scales.numel(), -1).float()
    return (groups * scales.reshape(-1, 1) + offsets.reshape(-1, 1)).flatten()


def _half(raw: Blocks, at: int) -> torch.Tensor:
    """A float16 of each block, as float32 [blocks, 1]."""
    return raw[:, at : at + 2].contiguous().view(torch.float16).float()


def _split(data: torch.Tensor) -> torch.Tensor:
    """Bytes whose low halves come before all high halves."""
    return torch.cat([data & 15, data >> 4], -1)


def _bits(raw: torch.Tensor) -> torch.Tensor:
    """uint8 [blocks, bytes] → single bits, lowest first."""
    return ((raw[..., None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten(-2)


def _q4_0(raw: Blocks) -> Any:
    return Scheme("int4", 32), _split(raw[:, 2:]), _half(raw, 0), None


def _q4_1(raw: Blocks) -> Any:
    return Scheme("int4", 32, True), _split(raw[:, 4:]), _half(raw, 0), _half(raw, 2)


def _q5_0(raw: Blocks) -> Any:
    return Scheme("int5", 32), _split(raw[:, 6:]) | (_bits(raw[:, 2:6]) << 4), _half(raw, 0), None


def _q5_1(raw: Blocks) -> Any:
    return Scheme("int5", 32, True), _split(raw[:, 8:]) | (_bits(raw[:, 4:8]) << 4), _half(raw, 0), _half(raw, 2)


def _q8_0(raw: Blocks) -> Any:
    return Scheme("int8", 32), raw[:, 2:] ^ 128, _half(raw, 0), None


def _quarters(data: torch.Tensor, size: int) -> torch.Tensor:
    """2-bit values of bytes in runs of `size`: all lowest pairs of a run, then the next ones."""
    runs = data.reshape(data.shape[0], -1, 1, size)
    return ((runs >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8).reshape(1, 1, 4, 1)) & 3).flatten(1)


def _halves(data: torch.Tensor, size: int) -> torch.Tensor:
    """4-bit values of bytes in runs of `size`: all low halves of a run, then all high ones."""
    runs = data.reshape(data.shape[0], -1, 1, size)
    return torch.cat([runs & 15, runs >> 4], 2).flatten(1)


def _six_bit_pairs(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The 8 scales and 8 minima of Q4_K and Q5_K, 6 bits each in 12 bytes."""
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    return torch.cat([a & 63, (c & 15) | ((a >> 6) << 4)], 1), torch.cat([b & 63, (c >> 4) | ((b >> 6) << 4)], 1)


def _q2_k(raw: Blocks) -> Any:
    scales, d, low = raw[:, :16], _half(raw, 80), _half(raw, 82)
    return Scheme("int2", 16, True), _quarters(raw[:, 16:80], 32), d * (scales & 15), -(low * (scales >> 4))


def _q3_k(raw: Blocks) -> Any:
    high, packed = raw[:, :32], raw[:, 96:108]
    low4 = torch.cat([packed[:, :8] & 15, packed[:, :8] >> 4], 1)
    high2 = torch.cat([(packed[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], 1)
    scales = (low4 | (high2 << 4)).float() - 32
    top = torch.cat([(high >> i) & 1 for i in range(8)], 1)
    return Scheme("int3", 16), _quarters(raw[:, 32:96], 32) | (top << 2), _half(raw, 108) * scales, None


def _q4_k(raw: Blocks) -> Any:
    scales, minima = _six_bit_pairs(raw[:, 4:16])
    return Scheme("int4", 32, True), _halves(raw[:, 16:], 32), _half(raw, 0) * scales, -(_half(raw, 2) * minima)


def _q5_k(raw: Blocks) -> Any:
    scales, minima = _six_bit_pairs(raw[:, 4:16])
    top = torch.cat([(raw[:, 16:48] >> i) & 1 for i in range(8)], 1)
    return Scheme("int5", 32, True), _halves(raw[:, 48:], 32) | (top << 4), _half(raw, 0) * scales, -(_half(raw, 2) * minima)


def _q6_k(raw: Blocks) -> Any:
    low = _halves(raw[:, :128], 64)
    scales = raw[:, 192:208].view(torch.int8).float()
    return Scheme("int6", 16), low | (_quarters(raw[:, 128:192], 32) << 4), _half(raw, 208) * scales, None


def _iq4_nl(raw: Blocks) -> Any:
    return Scheme("iq4", 32), _split(raw[:, 2:]), _half(raw, 0), None


def _iq4_xs(raw: Blocks) -> Any:
    low = nibbles(raw[:, 4:8])
    high = _quarters_of_words(raw[:, 2:4])
    scales = (low | (high << 4)).float() - 32
    return Scheme("iq4", 32), _halves(raw[:, 8:], 16), _half(raw, 0) * scales, None


def _quarters_of_words(data: torch.Tensor) -> torch.Tensor:
    """2-bit values of bytes, lowest first."""
    return ((data[..., None] >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)) & 3).flatten(-2)


def _mxfp4(raw: Blocks) -> Any:
    return Scheme("mxfp4", 32), _split(raw[:, 1:]), powers_of_two(raw[:, :1]), None


def _nvfp4(raw: Blocks) -> Any:
    codes = raw[:, 4:].reshape(-1, 4, 8)
    scales = raw[:, :4].clamp(max=0x7E).view(torch.float8_e4m3fn).float()
    return Scheme("nvfp4", 16), _split(codes).flatten(1), torch.where(raw[:, :4] == 0x7F, torch.zeros_like(scales), scales), None


def _q1_0(raw: Blocks) -> Any:
    d = _half(raw, 0)
    return Scheme("int2", 128, True), _bits(raw[:, 2:]) * 2, d, -d


def _q2_0(raw: Blocks) -> Any:
    d = _half(raw, 0)
    return Scheme("int2", 64, True), _quarters_of_words(raw[:, 2:]), d, -d


def _tq2_0(raw: Blocks) -> Any:
    d = _half(raw, 64).expand(-1, 2)
    return Scheme("int2", 128, True), _quarters(raw[:, :64], 32), d, -d


READERS: dict[str, Callable[[Blocks], Any]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k,
    "Q6_K": _q6_k, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs, "MXFP4": _mxfp4, "TQ2_0": _tq2_0, "NVFP4": _nvfp4, "Q1_0": _q1_0, "Q2_0": _q2_0,
}  # fmt: skip
OWN_VALUES = ("Q1_0", "Q2_0")
