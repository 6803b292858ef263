"""A Hadamard transform of blocks of the last dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class Hadamard(Op):
    """x [..., K] → each `block` values, a power of two that divides K, times Sylvester's matrix / √block: orthogonal, and its own inverse."""

    name: ClassVar[str] = "hadamard"
    block: int = 0

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        width = x.shape[-1]
        require(self.block >= 2 and self.block & (self.block - 1) == 0, f"a block of {self.block} is no power of two")
        require(isinstance(width, int) and width % self.block == 0, f"{x} has no blocks of {self.block}")
        return (x,)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (transformed(inputs[0], self.block),)


def transformed(x: torch.Tensor, block: int) -> torch.Tensor:
    """x [..., K] with each `block` values transformed, in x's dtype."""
    y = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(*x.shape[:-1], -1, block)
    half = 1
    while half < block:
        pairs = y.reshape(*y.shape[:-1], -1, 2, half)
        y = torch.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], -2).reshape(y.shape)
        half *= 2
    return (y * block**-0.5).reshape(x.shape).to(x.dtype)
