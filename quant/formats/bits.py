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


def pack_words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Values [R, C] → int32 words [R, ⌈C/(32 // bits)⌉], the inverse of unpack_words; missing values are 0."""
    count = 32 // bits
    padded = torch.nn.functional.pad(values.long(), (0, -values.shape[1] % count))
    words = (padded.reshape(values.shape[0], -1, count) << torch.arange(0, count * bits, bits)).sum(-1)
    return _signed(words)


def pack_stream(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Values [R, C], C·bits a multiple of 32, → int32 words [R, C·bits/32]: the inverse of unpack_stream."""
    if 32 % bits == 0:
        return pack_words(values, bits)
    stream = ((values.long()[..., None] >> torch.arange(bits)) & 1).reshape(values.shape[0], -1, 32)
    return _signed((stream << torch.arange(32)).sum(-1))


def _signed(words: torch.Tensor) -> torch.Tensor:
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def nibbles(data: torch.Tensor) -> torch.Tensor:
    """uint8 [..., C] → uint8 [..., 2·C], the low half of each byte first."""
    return torch.stack([data & 15, data >> 4], -1).flatten(-2)


def pack_nibbles(values: torch.Tensor) -> torch.Tensor:
    """uint8 [..., 2·C] → uint8 [..., C]: the inverse of nibbles."""
    return values[..., 0::2] | (values[..., 1::2] << 4)


def spread(values: torch.Tensor, size: int, k: int) -> torch.Tensor:
    """One value a group [N, G] → one a weight [N, K]."""
    return values.repeat_interleave(size, -1)[..., :k]


def powers_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """E8M0 scales, biased exponents in a byte, as float32."""
    return torch.exp2(exponents.view(torch.uint8).double() - 127).float()
