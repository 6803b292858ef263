"""Marlin's layout of 4-bit weights, as AutoAWQ and AutoGPTQ save it: tiles permuted for one GPU kernel (Frantar et al., IST-DASLab/marlin)."""

from __future__ import annotations

import torch

from ...errors import CheckpointError
from ..scheme import integer_scheme
from ..stored import Stored
from .bits import spread

TILE = 16
ZERO = 8  # the layout has no zero points


def _order() -> torch.Tensor:
    """Where each of 1024 codes of a row of four tiles comes from."""
    found: list[int] = []
    for i in range(32):
        rows = [2 * (i % 4), 2 * (i % 4) + 1, 2 * (i % 4 + 4), 2 * (i % 4 + 4) + 1]
        one = [16 * row + i // 4 + 8 * block for block in (0, 1) for row in rows]
        found += [p + 256 * j for j in range(4) for p in one]
    return torch.tensor(found).reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].flatten()


GROUPED = torch.tensor([i + 8 * j for i in range(8) for j in range(8)])
BY_CHANNEL = torch.tensor([2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)])


def read_marlin(weight: str, words: torch.Tensor, scales: torch.Tensor) -> Stored:
    """words int32 [K/16, 2N], scales [G, N] → the stored weight. Raises CheckpointError when they do not fit each other."""
    k, n = words.shape[0] * TILE, words.shape[1] // 2
    if words.ndim != 2 or n % 64 or scales.ndim != 2 or scales.shape[1] != n or k % scales.shape[0]:
        raise CheckpointError(f"{weight}: {list(words.shape)} words and {list(scales.shape)} scales are no marlin weight")
    codes = torch.stack([(words.long() >> (4 * i)) & 15 for i in range(8)], -1).reshape(k // TILE, -1)
    order = _order()
    plain = torch.empty_like(codes.reshape(-1, order.numel()))
    plain[:, order] = codes.reshape(-1, order.numel())
    codes = plain.reshape(k // TILE, n // TILE, TILE, TILE).permute(0, 2, 1, 3).reshape(k, n).T.contiguous()
    groups = scales.shape[0]
    places = BY_CHANNEL if groups == 1 else GROUPED
    moved = scales.reshape(-1, places.numel())
    ordered = torch.empty_like(moved)
    ordered[:, places] = moved
    by_group = ordered.reshape(groups, n).T.float().contiguous()
    size = k // groups

    def dense() -> torch.Tensor:
        return (codes - ZERO).float() * spread(by_group, size, k)

    return Stored(dense, integer_scheme(4, 0 if groups == 1 else size, False), codes.to(torch.uint8), by_group)
