"""Root-mean-square normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class RmsNorm(Op):
    """x · rsqrt(mean(x²) + eps) · weight over the last dimension; Σ instead of the mean with `l2`.

    x [..., H]; weight [H], absent when `weight` is false. Source: arXiv 1910.07467.
    """

    name: ClassVar[str] = "rms_norm"
    eps: float
    weight: bool = True
    l2: bool = False

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        require(len(inputs) == 1 + self.weight, "rms_norm takes x and, with weight, a weight")
        if self.weight:
            require(inputs[1].shape == inputs[0].shape[-1:], f"weight {inputs[1]} for {inputs[0]}")
        return (inputs[0],)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = inputs[0]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        square = wide.square().sum(-1, keepdim=True) if self.l2 else wide.square().mean(-1, keepdim=True)
        y = wide * torch.rsqrt(square + self.eps)
        return ((y * inputs[1].to(y.dtype) if self.weight else y).to(x.dtype),)
