"""Elementwise scatter along a dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class Scatter(Op):
    """A copy of x with out[i][index[i][j]] = src[i][j] for dim=1, as torch.scatter."""

    name: ClassVar[str] = "scatter"
    dim: int

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        x, index, src = inputs
        require(
            len(x.shape) == len(index.shape) and index.shape == src.shape and not index.is_float,
            f"scatter {src} at {index} into {x}",
        )
        return (x,)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (inputs[0].scatter(self.dim, inputs[1], inputs[2].to(inputs[0].dtype)),)
