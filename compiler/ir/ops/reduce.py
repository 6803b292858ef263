"""Reductions over one dimension or several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType

FUNCTIONS = ("sum", "mean", "max", "min", "any", "all", "prod", "argmax")


@dataclass(frozen=True)
class Reduce(Op):
    """Reduce `dims` with `fn`; with keepdim they stay, of size one. Sums are taken in float32 or wider."""

    name: ClassVar[str] = "reduce"
    fn: str
    dims: tuple[int, ...]
    keepdim: bool
    dtype: str

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        require(self.fn in FUNCTIONS, f"unknown reduction {self.fn!r}")
        shape = inputs[0].shape
        require(all(0 <= d < len(shape) for d in self.dims), f"dimensions {self.dims} of {inputs[0]}")
        kept = [(1 if i in self.dims else s) for i, s in enumerate(shape) if self.keepdim or i not in self.dims]
        return (TensorType(self.dtype, tuple(kept)),)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, dims, keep = inputs[0], list(self.dims), self.keepdim
        if self.fn == "sum":
            out = x.sum(dims, keepdim=keep)
        elif self.fn == "mean":
            out = x.mean(dims, keepdim=keep)
        elif self.fn in ("max", "min"):
            out = (torch.amax if self.fn == "max" else torch.amin)(x, dims, keepdim=keep)
        elif self.fn == "argmax":
            out = torch.argmax(x, dims[0], keepdim=keep)
        else:
            out = x
            for d in sorted(dims, reverse=True):
                out = {"any": torch.any, "all": torch.all, "prod": torch.prod}[self.fn](out, d, keepdim=keep)
        return (out.to(ctx.dtype(self.dtype)),)
