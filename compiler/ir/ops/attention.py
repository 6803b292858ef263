"""Causal self-attention over packed sequences and the paged cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class Attention(Op):
    """softmax(scale · q·kᵀ, masked) · v for each query head, over the tokens of its own sequence up to its position.

    q [1,T,H,D], k [1,T,G,D], v [1,T,G,Dv], sinks [H] when `sinks` → [1,T,H,Dv]; head h reads key head h // (H/G).
    `window`: only the last `window` positions; `chunk`: only positions of the same chunk; `softcap`: c·tanh(s/c) of the
    scores; `sinks`: a score a head that takes part in the softmax and has no value; `slopes`: ALiBi slopes [H] added as
    slope · (key position − query position); `relative`: [1,T,H,L], where [t,h,d] is added to the score of the key d positions
    before the query (nothing from L on); `selected`: of those positions only the ones in [1,T,k], int32 that ascend and end in
    -1 where they are fewer. Optional inputs stand in this order. `cache` is the index of the layer's key/value cache.
    `k_scale`, `v_scale`: the step of a cache of 8-bit numbers (0: each position has its own); they do not change what is computed.
    """

    name: ClassVar[str] = "attention"
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

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        count = 3 + self.sinks + self.slopes + self.relative + self.selected
        names = "sinks, slopes, relative scores and selected positions"
        require(len(inputs) == count, f"attention takes q, k, v, and the {names} its flags name")
        q, k, v = inputs[:3]
        require(len(q.shape) == 4 and len(k.shape) == 4 and len(v.shape) == 4, f"attention of {q}, {k}, {v}")
        require(q.shape[3] == k.shape[3], f"head dims {q.shape[3]} != {k.shape[3]}")
        h, g = q.shape[2], k.shape[2]
        require(isinstance(h, int) and isinstance(g, int) and h % g == 0 and g == v.shape[2], f"{h} query heads on {g} key heads")
        if self.relative:
            added = inputs[3 + self.sinks + self.slopes]
            require(len(added.shape) == 4 and added.shape[:3] == q.shape[:3], f"relative scores {added} for queries {q}")
        if self.selected:
            chosen = inputs[-1]
            require(
                len(chosen.shape) == 3 and chosen.shape[:2] == q.shape[:2] and chosen.dtype == "i32",
                f"selected positions {chosen}",
            )
        return (q.with_shape((*q.shape[:3], v.shape[3])),)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = (t[0].transpose(0, 1) for t in inputs[:3])
        group = q.shape[0] // k.shape[0]
        wide = torch.promote_types(q.dtype, torch.float32)
        out = torch.empty(q.shape[0], q.shape[1], v.shape[2], dtype=q.dtype)
        for sequence in ctx.sequences.unique():
            rows = (ctx.sequences == sequence).nonzero()[:, 0]
            out[:, rows] = self._one(
                ctx.positions[rows],
                q[:, rows].to(wide),
                k[:, rows].to(wide).repeat_interleave(group, 0),
                v[:, rows].to(wide).repeat_interleave(group, 0),
                inputs[3 : 3 + self.sinks + self.slopes],
                inputs[3 + self.sinks + self.slopes][0, rows] if self.relative else None,
                inputs[-1][0, rows] if self.selected else None,
            ).to(q.dtype)
        return (out.transpose(0, 1)[None],)

    def _one(
        self,
        positions: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        extra: tuple[torch.Tensor, ...],
        relative: torch.Tensor | None,
        selected: torch.Tensor | None,
    ) -> torch.Tensor:
        scores = q @ k.transpose(1, 2) * self.scale
        if self.softcap:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        query, key = positions[:, None], positions[None, :]
        if self.slopes:
            scores = scores + extra[-1].to(q.dtype)[:, None, None] * (key - query).to(q.dtype)
        if relative is not None:
            distance, extent = query - key, relative.shape[2]
            near = distance.clamp(0, extent - 1)[None].expand(relative.shape[1], -1, -1)
            added = relative.to(q.dtype).transpose(0, 1).gather(2, near)
            scores = scores + added.masked_fill((distance < 0) | (distance >= extent), 0.0)
        allowed = key <= query if self.causal else torch.ones_like(key <= query)
        if self.window:
            allowed = allowed & (key > query - self.window)
        if self.chunk:
            allowed = allowed & (key // self.chunk == query // self.chunk)
        if selected is not None:
            there = torch.zeros(len(positions), int(positions.max()) + 2, dtype=torch.bool)
            allowed = allowed & there.scatter_(1, selected.long() + 1, True)[:, positions + 1]
        scores = scores.masked_fill(~allowed, float("-inf"))
        if self.sinks:
            sink = extra[0].to(q.dtype)[:, None, None].expand(-1, scores.shape[1], 1)
            return torch.softmax(torch.cat([scores, sink], -1), -1)[..., :-1] @ v
        return torch.softmax(scores, -1) @ v
