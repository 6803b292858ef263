"""Rotary position embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class Rope(Op):
    """Rotate pairs of the last dimension by the step's angles.

    x [..., T, heads, D], table [..., T, 2, P]. The pairs lie in dimensions offset … offset+2P: (i, i+P) when `interleaved`
    is false, (2i, 2i+1) when it is true; the other dimensions pass through. Source: RoFormer (arXiv 2104.09864).
    """

    name: ClassVar[str] = "rope"
    interleaved: bool = False
    offset: int = 0

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        x, table = inputs
        pairs, width = table.shape[-1], x.shape[-1]
        require(
            isinstance(pairs, int) and isinstance(width, int) and self.offset + 2 * pairs <= width,
            f"{table} rotates more than {x} has",
        )
        require(table.shape[-3] == x.shape[-3], f"{table} has not the tokens of {x}")
        return (x,)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, table = inputs
        dtype = torch.promote_types(x.dtype, torch.float32)
        cos, sin = (t.to(dtype)[..., None, :] for t in table.unbind(-2))
        count = table.shape[-1]
        rotated = x[..., self.offset : self.offset + 2 * count].to(dtype)
        if self.interleaved:
            a, b = rotated[..., 0::2], rotated[..., 1::2]
            out = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        else:
            a, b = rotated[..., :count], rotated[..., count:]
            out = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        return (torch.cat([x[..., : self.offset], out.to(x.dtype), x[..., self.offset + 2 * count :]], -1),)
