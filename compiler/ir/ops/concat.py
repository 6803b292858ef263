"""Concatenation along one dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class Concat(Op):
    """The inputs one after the other along `dim`."""

    name: ClassVar[str] = "concat"
    dim: int

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        first = inputs[0]
        require(0 <= self.dim < len(first.shape), f"no dimension {self.dim} in {first}")
        total = 0
        for kind in inputs:
            size = kind.shape[self.dim] if len(kind.shape) == len(first.shape) else None
            require(isinstance(size, int), f"cannot concatenate {kind} along {self.dim}")
            rest = kind.shape[: self.dim] + kind.shape[self.dim + 1 :]
            require(
                rest == first.shape[: self.dim] + first.shape[self.dim + 1 :] and kind.dtype == first.dtype,
                f"{kind} does not join {first}",
            )
            total += size if isinstance(size, int) else 0
        return (first.with_shape((*first.shape[: self.dim], total, *first.shape[self.dim + 1 :])),)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.cat(inputs, self.dim),)
