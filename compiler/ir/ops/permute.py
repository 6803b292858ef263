"""Reordering of dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class Permute(Op):
    """out.shape[i] = in.shape[order[i]]."""

    name: ClassVar[str] = "permute"
    order: tuple[int, ...]

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        require(sorted(self.order) == list(range(len(inputs[0].shape))), f"{self.order} does not permute {inputs[0]}")
        return (inputs[0].with_shape(tuple(inputs[0].shape[i] for i in self.order)),)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (inputs[0].permute(self.order),)
