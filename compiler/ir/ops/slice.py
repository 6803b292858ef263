"""A range of one dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class Slice(Op):
    """Elements start, start+step, … below `stop` of dimension `dim`."""

    name: ClassVar[str] = "slice"
    dim: int
    start: int
    stop: int
    step: int = 1

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        shape = inputs[0].shape
        require(
            0 <= self.dim < len(shape) and isinstance(shape[self.dim], int), f"cannot slice dimension {self.dim} of {inputs[0]}"
        )
        size = shape[self.dim]
        require(
            isinstance(size, int) and 0 <= self.start <= self.stop <= size and self.step > 0,
            f"range {self.start}:{self.stop}:{self.step} of {inputs[0]}",
        )
        count = len(range(self.start, self.stop, self.step))
        return (inputs[0].with_shape((*shape[: self.dim], count, *shape[self.dim + 1 :])),)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        index = [slice(None)] * inputs[0].ndim
        index[self.dim] = slice(self.start, self.stop, self.step)
        return (inputs[0][tuple(index)],)
