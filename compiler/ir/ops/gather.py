"""Elementwise gather along a dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class Gather(Op):
    """out[i][j] = x[i][index[i][j]] for dim=1, as torch.gather."""

    name: ClassVar[str] = "gather"
    dim: int

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        x, index = inputs
        require(len(x.shape) == len(index.shape) and not index.is_float, f"gather {index} from {x}")
        return (x.with_shape(index.shape),)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (inputs[0].gather(self.dim, inputs[1]),)
