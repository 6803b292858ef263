"""A product with a weight of its own for each head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class HeadLinear(Op):
    """x [..., H, K], W [H, N, K] → [..., H, N]: y[h] = x[h] · W[h]ᵀ. `scheme` is what the weight is to be stored in ("" keeps its dtype)."""

    name: ClassVar[str] = "head_linear"
    scheme: str = ""

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        x, w = inputs
        require(len(x.shape) >= 3 and len(w.shape) == 3, f"a product by head of {x} with {w}")
        require(x.shape[-2] == w.shape[0] and x.shape[-1] == w.shape[2], f"{x} does not fit the weight {w}")
        return (x.with_shape((*x.shape[:-1], w.shape[1])),)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, w = inputs[0], inputs[1].to(inputs[0].dtype)
        return (torch.einsum("...hk,hnk->...hn", x, w),)
