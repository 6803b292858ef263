"""Repetition along dimensions of size one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType, broadcast, parse_dim


@dataclass(frozen=True)
class Expand(Op):
    """Broadcast to `shape`, a comma-separated list of dimensions."""

    name: ClassVar[str] = "expand"
    shape: str

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        dims = tuple(parse_dim(d) for d in self.shape.split(",")) if self.shape else ()
        require(broadcast(inputs[0].shape, dims) == dims, f"{inputs[0]} does not expand to [{self.shape}]")
        return (inputs[0].with_shape(dims),)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        dims = tuple(parse_dim(d) for d in self.shape.split(",")) if self.shape else ()
        return (inputs[0].expand(ctx.shape(TensorType("f32", dims))),)
