"""Softmax over one dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class Softmax(Op):
    """exp(x − max) / Σ exp(x − max) over `dim`; its logarithm with `log`."""

    name: ClassVar[str] = "softmax"
    dim: int
    log: bool
    dtype: str

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        require(0 <= self.dim < len(inputs[0].shape), f"no dimension {self.dim} in {inputs[0]}")
        return (inputs[0].with_dtype(self.dtype),)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        fn = torch.log_softmax if self.log else torch.softmax
        return (fn(inputs[0], self.dim).to(ctx.dtype(self.dtype)),)
