"""Layer normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class LayerNorm(Op):
    """(x − mean) · rsqrt(var + eps) · weight + bias over the last dimension.

    x [..., H]; weight [H] and bias [H], each absent when its flag is false. Source: arXiv 1607.06450.
    """

    name: ClassVar[str] = "layer_norm"
    eps: float
    weight: bool = True
    bias: bool = True

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        require(len(inputs) == 1 + self.weight + self.bias, "layer_norm takes x, a weight and a bias as its flags say")
        for w in inputs[1:]:
            require(w.shape == inputs[0].shape[-1:], f"weight {w} for {inputs[0]}")
        return (inputs[0],)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = inputs[0]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = wide - wide.mean(-1, keepdim=True)
        y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps)
        if self.weight:
            y = y * inputs[1].to(y.dtype)
        if self.bias:
            y = y + inputs[-1].to(y.dtype)
        return (y.to(x.dtype),)
