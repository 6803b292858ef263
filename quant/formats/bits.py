"""Packed integers of other tools' files."""

from __future__ import annotations

import torch


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 or int16 words [R, C] → int32 values [R, C·(word bits // bits)], lowest bits first, no value across two words."""
    size = words.element_size() * 8
    shifts = torch.arange(0, size // bits * bits, bits)
    return ((words.long()[..., None] >> shifts) & ((1 << bits) - 1)).flatten(-2).int()


def unpack_stream(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 words [R, C] → int32 values [R, 32·C // bits], a stream of bits, lowest first: values may lie across two words."""
    if 32 % bits == 0:
        return unpack_words(words, bits)
    rows, cols = words.shape
    stream = ((words.long()[..., None] >> torch.arange(32)) & 1).reshape(rows, cols * 32)
    count = cols * 32 // bits
    return (stream[:, : count * bits].reshape(rows, count, bits) << torch.arange(bits)).sum(-1).int()


def nibbles(data: torch.Tensor) -> torch.Tensor:
    """uint8 [..., C] → uint8 [..., 2·C], the low half of each byte first."""
    return torch.stack([data & 15, data >> 4], -1).flatten(-2)


def spread(values: torch.Tensor, size: int, k: int) -> torch.Tensor:
    """One value a group [N, G] → one a weight [N, K]."""
    return values.repeat_interleave(size, -1)[..., :k]


def powers_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """E8M0 scales, biased exponents in a byte, as float32."""
    return torch.exp2(exponents.view(torch.uint8).double() - 127).float()
