"""The cosines and sines of a step's positions, shared by all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class RopeTable(Op):
    """positions [..., T] int64, inverse frequencies [P] → [..., T, 2, P]: scale·cos(position·f), then scale·sin(position·f)."""

    name: ClassVar[str] = "rope_table"
    scale: float = 1.0

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        positions, frequencies = inputs
        require(not positions.is_float and len(frequencies.shape) == 1, f"rope_table of {positions} and {frequencies}")
        return (TensorType("f32", (*positions.shape, 2, frequencies.shape[0])),)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        dtype = ctx.dtype("f32")
        angle = inputs[0][..., None].to(dtype) * inputs[1].to(dtype)
        return (torch.stack([angle.cos(), angle.sin()], -2) * self.scale,)
