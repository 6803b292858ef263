"""The k largest along the last dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class Topk(Op):
    """Values and int64 indices of the k largest of the last dimension, in descending order; ties take the lower index."""

    name: ClassVar[str] = "topk"
    k: int

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        shape = inputs[0].shape
        require(isinstance(shape[-1], int) and 0 < self.k <= shape[-1], f"top {self.k} of {inputs[0]}")
        out = (*shape[:-1], self.k)
        return inputs[0].with_shape(out), TensorType("i64", out)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        order = torch.sort(inputs[0], dim=-1, descending=True, stable=True)
        return order.values[..., : self.k], order.indices[..., : self.k]
