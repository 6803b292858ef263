"""Matrix product of two computed tensors (a product with a weight is `linear`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType, broadcast


@dataclass(frozen=True)
class Matmul(Op):
    """[..., M, K] × [..., K, N] → [..., M, N], leading dimensions broadcast."""

    name: ClassVar[str] = "matmul"

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        a, b = inputs
        require(len(a.shape) >= 2 and len(b.shape) >= 2 and a.shape[-1] == b.shape[-2], f"{a} × {b}")
        return (a.with_shape((*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])),)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.matmul(inputs[0], inputs[1]),)
