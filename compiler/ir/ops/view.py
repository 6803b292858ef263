"""The same elements in the same order under another shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType, parse_dim, product


@dataclass(frozen=True)
class View(Op):
    """Reshape to `shape`, a comma-separated list of dimensions: `1,T,9,64`."""

    name: ClassVar[str] = "view"
    shape: str

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        dims = tuple(parse_dim(d) for d in self.shape.split(",")) if self.shape else ()
        require(product(dims) == product(inputs[0].shape), f"{inputs[0]} has not the elements of [{self.shape}]")
        return (inputs[0].with_shape(dims),)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        dims = tuple(parse_dim(d) for d in self.shape.split(",")) if self.shape else ()
        return (inputs[0].reshape(ctx.shape(TensorType("f32", dims))),)
