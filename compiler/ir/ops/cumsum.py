"""Running sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class Cumsum(Op):
    """out[i] = x[0] + … + x[i] along `dim`."""

    name: ClassVar[str] = "cumsum"
    dim: int

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        require(0 <= self.dim < len(inputs[0].shape), f"no dimension {self.dim} in {inputs[0]}")
        return (inputs[0],)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (inputs[0].cumsum(self.dim),)
