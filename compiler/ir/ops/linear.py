"""A product with a weight, with the epilogues that fuse into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType
from .hadamard import Hadamard, transformed
from .layer_norm import LayerNorm
from .pointwise import UNARY
from .rms_norm import RmsNorm


@dataclass(frozen=True)
class Linear(Op):
    """y = act(h(norm(x)) · Wᵀ + bias), or act(gate) ∘ up when `gated`, then `+ residual`.

    Inputs: x [..., K], W [N, K], then what the flags name: norm weight [K], norm bias [K], bias [N], residual like the
    output. `norm`: "" | "rms" | "layer" (with `eps`), fused into the rounding of x; `hadamard`: the block
    of the transform h that follows it (0: none). `gated`: the first N/2 rows are the gate, the rest is up,
    and the output is [..., N/2]. `scheme` is what the weight is to be stored in ("" keeps its dtype); `activations`
    is how x is rounded before the product: "" (not at all), "bf16", or "int8" (per token, symmetric, dynamic).
    """

    name: ClassVar[str] = "linear"
    bias: bool = False
    residual: bool = False
    act: str = ""
    gated: bool = False
    scheme: str = ""
    activations: str = ""
    norm: str = ""
    eps: float = 0.0
    norm_weight: bool = False
    norm_bias: bool = False
    hadamard: int = 0

    @property
    def operands(self) -> dict[str, int]:
        """Where each operand stands among the inputs, by name."""
        names = ["x", "weight"]
        names += [
            n
            for n, there in (
                ("norm_weight", self.norm_weight),
                ("norm_bias", self.norm_bias),
                ("bias", self.bias),
                ("residual", self.residual),
            )
            if there
        ]
        return {n: i for i, n in enumerate(names)}

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        at = self.operands
        require(len(inputs) == len(at), f"linear takes {', '.join(at)}: {len(at)} inputs, got {len(inputs)}")
        require(self.norm in ("", "rms", "layer"), f"unknown norm {self.norm!r}")
        x, w = inputs[:2]
        if self.hadamard:
            Hadamard(self.hadamard).infer(x)
        require(len(w.shape) == 2, f"the weight is {w}")
        require(x.shape[-1] == w.shape[1], f"K {x.shape[-1]} != {w.shape[1]}")
        rows = w.shape[0]
        assert isinstance(rows, int)
        require(not self.gated or rows % 2 == 0, f"a gated linear needs an even N, not {rows}")
        require(not self.act or self.act in UNARY, f"unknown activation {self.act!r}")
        out = x.with_shape((*x.shape[:-1], rows // 2 if self.gated else rows))
        if self.bias:
            require(inputs[at["bias"]].shape == (rows,), f"bias {inputs[at['bias']]} for N={rows}")
        if self.residual:
            require(inputs[-1].shape == out.shape, f"residual {inputs[-1]} for {out}")
        for name in ("norm_weight", "norm_bias"):
            require(name not in at or inputs[at[name]].shape == x.shape[-1:], f"{name} for {x}")
        return (out,)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        at = self.operands
        x, w = inputs[0], inputs[1].to(inputs[0].dtype)
        if self.norm:
            affine = [inputs[at[n]] for n in ("norm_weight", "norm_bias") if n in at]
            norm = (
                RmsNorm(self.eps, self.norm_weight)
                if self.norm == "rms"
                else LayerNorm(self.eps, self.norm_weight, self.norm_bias)
            )
            (x,) = norm.reference(ctx, x, *affine)
        if self.hadamard:
            x = transformed(x, self.hadamard)
        if self.activations == "int8":
            scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
            x = torch.round(x / scale).clamp(-127, 127) * scale
        elif self.activations == "bf16":
            x = x.to(torch.bfloat16).to(x.dtype)
        y = torch.nn.functional.linear(x, w, inputs[at["bias"]].to(x.dtype) if self.bias else None)
        if self.gated:
            gate, y = y.chunk(2, -1)
            y = (UNARY[self.act](gate) if self.act else gate) * y
        elif self.act:
            y = UNARY[self.act](y)
        return (y + inputs[-1] if self.residual else y,)
