"""A mixture of experts: each token goes through its chosen ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType
from .pointwise import UNARY


@dataclass(frozen=True)
class Experts(Op):
    """out[t] = Σ_j weight[t,j] · down_e(act(in_e(x[t]))), e = index[t,j].

    x [T,H], index [T,J] int64, weight [T,J], w_in [E,N,H] and w_out [E,H,F], biases [E,N] and [E,H] when `bias`.
    `gate`: "" applies `act` to in_e(x) (N = F); "halves": act(first F) ∘ last F; "interleaved": act(even rows) ∘ odd rows.
    `limit` and `alpha` (gpt-oss): gate = min(gate, limit), up = clamp(up, ±limit), out = (up + 1) ∘ gate · σ(alpha·gate).
    """

    name: ClassVar[str] = "experts"
    act: str
    gate: str = ""
    bias: bool = False
    limit: float = 0.0
    alpha: float = 0.0
    scheme: str = ""
    activations: str = ""

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        require(len(inputs) == 5 + 2 * self.bias, f"experts takes {5 + 2 * self.bias} inputs, got {len(inputs)}")
        x, index, weight, w_in = inputs[:4]
        w_out = inputs[5 if self.bias else 4]
        require(index.shape == weight.shape and index.shape[0] == x.shape[0], f"{index}, {weight} for {x}")
        require(
            len(w_in.shape) == 3 and len(w_out.shape) == 3 and w_in.shape[2] == x.shape[1] and w_out.shape[1] == x.shape[1],
            f"{w_in}, {w_out} for {x}",
        )
        require(self.gate in ("", "halves", "interleaved"), f"unknown gate {self.gate!r}")
        require(self.act in UNARY, f"unknown activation {self.act!r}")
        rows, width = w_in.shape[1], w_out.shape[2]
        require(rows == (2 * width if self.gate else width), f"{w_in} does not feed {w_out}")  # type: ignore[operator]
        return (x,)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, index, weight, w_in = inputs[:4]
        w_out = inputs[5 if self.bias else 4]
        out = torch.zeros(*index.shape, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
        for e in range(w_in.shape[0]):
            token, slot = torch.where(index == e)
            if token.numel() == 0:
                continue
            h = x[token] @ w_in[e].T + (inputs[4][e] if self.bias else 0)
            h = self.activate(h) @ w_out[e].T + (inputs[6][e] if self.bias else 0)
            out[token, slot] = (h * weight[token, slot, None].to(h.dtype)).to(out.dtype)
        return (out.sum(1).to(x.dtype),)

    def activate(self, h: torch.Tensor) -> torch.Tensor:
        """The activation between the two products: h [n, N] → [n, F]."""
        fn = UNARY[self.act]
        if not self.gate:
            return fn(h)
        gate, up = h.chunk(2, -1) if self.gate == "halves" else (h[..., 0::2], h[..., 1::2])
        if self.limit:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        if self.alpha:
            return (up + 1) * gate * torch.sigmoid(gate * self.alpha)
        return fn(gate) * up
