"""Slices of a dimension by an index vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class IndexSelect(Op):
    """x [..., D, ...], index [n] → [..., n, ...] at dimension `dim`."""

    name: ClassVar[str] = "index_select"
    dim: int

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        x, index = inputs
        require(len(index.shape) == 1 and not index.is_float and 0 <= self.dim < len(x.shape), f"select {index} from {x}")
        return (x.with_shape((*x.shape[: self.dim], index.shape[0], *x.shape[self.dim + 1 :])),)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (inputs[0].index_select(self.dim, inputs[1]),)
