"""Attention together with what precedes it: the norms and the rotation of queries and keys, and the cache write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType
from .attention import Attention
from .rms_norm import RmsNorm
from .rope import Rope


@dataclass(frozen=True)
class FusedAttention(Op):
    """attention(rope(norm(q)), rope(norm(k)), v), each step where its flag says so; the fields are those of the parts.

    Inputs: q [1,T,H,D], k [1,T,G,D], v [1,T,G,Dv], then what the flags name, in this order: rope table, q norm weight [D],
    k norm weight [D], sinks [H], slopes [H], relative scores [1,T,H,L],
    selected positions [1,T,k].
    """

    name: ClassVar[str] = "fused_attention"
    cache: int
    scale: float
    window: int = 0
    chunk: int = 0
    softcap: float = 0.0
    sinks: bool = False
    causal: bool = True
    slopes: bool = False
    k_scale: float = 0.0
    v_scale: float = 0.0
    relative: bool = False
    selected: bool = False
    rope: bool = False
    interleaved: bool = False
    offset: int = 0
    q_norm: bool = False
    k_norm: bool = False
    eps: float = 0.0

    @property
    def operands(self) -> dict[str, int]:
        """Where each operand stands among the inputs, by name."""
        flags = {
            "table": self.rope,
            "q_norm": self.q_norm,
            "k_norm": self.k_norm,
            "sinks": self.sinks,
            "slopes": self.slopes,
            "relative": self.relative,
            "selected": self.selected,
        }
        return {n: i for i, n in enumerate(["q", "k", "v", *(n for n, there in flags.items() if there)])}

    @property
    def reach(self) -> int:
        """How many positions a query sees at most, itself included; 0 for all before it."""
        return min((n for n in (self.window, self.chunk) if n), default=0)

    @property
    def plain(self) -> Attention:
        return Attention(
            self.cache,
            self.scale,
            self.window,
            self.chunk,
            self.softcap,
            self.sinks,
            self.causal,
            self.slopes,
            relative=self.relative,
            selected=self.selected,
        )

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        at = self.operands
        require(len(inputs) == len(at), f"fused_attention takes {', '.join(at)}: {len(at)} inputs, got {len(inputs)}")
        if self.rope:
            Rope(self.interleaved, self.offset).infer(inputs[0], inputs[at["table"]])
            Rope(self.interleaved, self.offset).infer(inputs[1], inputs[at["table"]])
        for name, operand in (("q_norm", inputs[0]), ("k_norm", inputs[1])):
            require(name not in at or inputs[at[name]].shape == operand.shape[-1:], f"{name} for {operand}")
        return self.plain.infer(*inputs[:3], *[inputs[at[n]] for n in ("sinks", "slopes", "relative", "selected") if n in at])

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        at = self.operands
        q, k, v = inputs[:3]
        if self.q_norm:
            (q,) = RmsNorm(self.eps).reference(ctx, q, inputs[at["q_norm"]])
        if self.k_norm:
            (k,) = RmsNorm(self.eps).reference(ctx, k, inputs[at["k_norm"]])
        if self.rope:
            rope = Rope(self.interleaved, self.offset)
            (q,), (k,) = rope.reference(ctx, q, inputs[at["table"]]), rope.reference(ctx, k, inputs[at["table"]])
        return self.plain.reference(
            ctx, q, k, v, *[inputs[at[n]] for n in ("sinks", "slopes", "relative", "selected") if n in at]
        )
