"""Conversion of dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class Cast(Op):
    """The same values in another dtype, rounded to nearest even."""

    name: ClassVar[str] = "cast"
    dtype: str

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        return (inputs[0].with_dtype(self.dtype),)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (inputs[0].to(ctx.dtype(self.dtype)),)
