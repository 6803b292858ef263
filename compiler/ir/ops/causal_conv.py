"""Short causal convolutions over the tokens of a sequence, one filter a channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class CausalConv(Op):
    """out[t,c] = bias[c] + Σ_j weight[c,j] · x[t − K + 1 + j, c], over the token's own sequence; what lies before it is 0.

    x [1,T,C], weight [C,K], bias [C] when `bias` → [1,T,C]. State of a sequence: its last K − 1 inputs, [K−1,C] float32.
    """

    name: ClassVar[str] = "causal_conv"
    bias: bool = False

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        require(len(inputs) == 2 + self.bias, "causal_conv takes x, weight, and a bias when it has one")
        x, weight = inputs[:2]
        require(len(x.shape) == 3 and len(weight.shape) == 2, f"causal_conv of {x} by {weight}")
        require(x.shape[2] == weight.shape[0], f"{weight.shape[0]} filters on {x.shape[2]} channels")
        return (x,)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, weight = inputs[0][0], inputs[1]
        wide = torch.promote_types(x.dtype, torch.float32)
        taps = weight.shape[1]
        out = torch.empty_like(x)
        for sequence in ctx.sequences.unique():
            rows = (ctx.sequences == sequence).nonzero()[:, 0]
            padded = torch.cat([x.new_zeros(taps - 1, x.shape[1]), x[rows]]).to(wide)
            total = inputs[2].to(wide).expand(len(rows), -1) if self.bias else torch.zeros(len(rows), x.shape[1], dtype=wide)
            for j in range(taps):
                total = total + padded[j : j + len(rows)] * weight[:, j].to(wide)
            out[rows] = total.to(x.dtype)
        return (out[None],)
