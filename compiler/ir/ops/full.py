"""A tensor filled with one number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class Full(Op):
    """A tensor of type `type` (its text form) in which every element is `value`."""

    name: ClassVar[str] = "full"
    type: str
    value: float

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        return (TensorType.parse(self.type),)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        kind = TensorType.parse(self.type)
        return (torch.full(ctx.shape(kind), self.value, dtype=ctx.dtype(kind.dtype)),)
