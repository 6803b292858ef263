"""A Hadamard transform of blocks of the last dimension."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType

FACTOR = 32  # the largest of the small matrices


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
    """x [..., K] with each `block` values transformed, in x's dtype. The matrix is a Kronecker product of small ones."""
    y, inner = x.to(torch.promote_types(x.dtype, torch.float32)), 1
    while inner < block:  # values `inner` apart, brought together
        size = min(block // inner, FACTOR)
        matrix = sylvester(size).to(y.dtype) * size**-0.5
        y = y.reshape(-1, size, inner).transpose(1, 2).reshape(-1, size) @ matrix
        y = y.reshape(-1, inner, size).transpose(1, 2)
        inner *= size
    return y.reshape(x.shape).to(x.dtype)


@cache
def sylvester(size: int) -> torch.Tensor:
    """The Hadamard matrix [size, size] of ±1 float64, `size` a power of two."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix
