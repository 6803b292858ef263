"""Linear recurrences with a matrix of state a head: Mamba 1 and 2, gated delta nets, KDA, RG-LRU, lightning attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class Recurrence(Op):
    """S ← decay ⊙ S + k · uᵀ and out = Sᵀ · q for each token of a sequence in turn, with a state S [N,P] a head that starts as 0.

    q [1,T,G,N], k [1,T,G,N], v [1,T,H,P], g [1,T,H] or [1,T,H,N], rates [N,H] when `rates`, beta [1,T,H] when `delta`
    → [1,T,H,P]; head h reads query and key h // (H/G). The decay is exp(g), or exp(g · rates) when `rates`. u is v, or, when
    `delta`, beta · (v − Sᵀ · k) with the decayed S (the delta rule). State of a sequence: [H,N,P] float32.
    Sources: Dao and Gu 2024 (Mamba 2), Yang et al. 2025 (gated delta nets), Kimi Linear 2025 (KDA).
    """

    name: ClassVar[str] = "recurrence"
    rates: bool = False
    delta: bool = False

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        require(len(inputs) == 4 + self.rates + self.delta, "recurrence takes q, k, v, g, and the rates and beta its flags name")
        q, k, v, g = inputs[:4]
        require(all(len(t.shape) == 4 for t in (q, k, v)), f"recurrence of {q}, {k}, {v}")
        require(q.shape == k.shape, f"queries {q} and keys {k} differ in shape")
        heads, groups, keys = v.shape[2], k.shape[2], k.shape[3]
        require(
            isinstance(heads, int) and isinstance(groups, int) and heads % groups == 0,
            f"{heads} heads on {groups} groups of keys",
        )
        require(g.shape in (v.shape[:3], (*v.shape[:3], keys)), f"decays {g} for {heads} heads of {keys} keys")
        if self.rates:
            require(
                inputs[4].shape == (keys, heads) and g.shape == v.shape[:3], f"rates {inputs[4]} for {keys} keys, {heads} heads"
            )
        if self.delta:
            require(inputs[-1].shape == v.shape[:3], f"beta {inputs[-1]} for {v}")
        return (v,)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        wide = torch.promote_types(inputs[2].dtype, torch.float32)
        q, k, v, g = (t[0].to(wide) for t in inputs[:4])
        share = v.shape[1] // k.shape[1]
        q, k = q.repeat_interleave(share, 1), k.repeat_interleave(share, 1)
        log_decay = g if g.ndim == 3 else g[:, :, None]  # [T,H,N] or [T,H,1]
        if self.rates:
            log_decay = log_decay * inputs[4].to(wide).T
        decay = log_decay.exp()[..., None]
        beta = inputs[-1][0].to(wide)[..., None] if self.delta else None
        out = torch.empty_like(v)
        for sequence in ctx.sequences.unique():
            state = v.new_zeros(v.shape[1], k.shape[2], v.shape[2])
            for t in (ctx.sequences == sequence).nonzero()[:, 0].tolist():
                state = state * decay[t]
                update = v[t]
                if beta is not None:
                    update = beta[t] * (update - torch.einsum("hnp,hn->hp", state, k[t]))
                state = state + k[t][..., None] * update[:, None]
                out[t] = torch.einsum("hnp,hn->hp", state, q[t])
        return (out[None].to(inputs[2].dtype),)
