"""0, 1, 2, …"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class Iota(Op):
    """A vector start, start+step, … of type `type` (its text form, one dimension)."""

    name: ClassVar[str] = "iota"
    type: str
    start: int = 0
    step: int = 1

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        kind = TensorType.parse(self.type)
        require(len(kind.shape) == 1, f"iota makes a vector, not {kind}")
        return (kind,)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        kind = TensorType.parse(self.type)
        (count,) = ctx.shape(kind)
        return ((self.start + self.step * torch.arange(count)).to(ctx.dtype(kind.dtype)),)
