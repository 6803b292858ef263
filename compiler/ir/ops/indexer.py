"""The indexer of sparse attention: a small attention without values that says which tokens the large one looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType
from .best_keys import best_positions


@dataclass(frozen=True)
class Indexer(Op):
    """The positions of the `k` tokens s up to t whose score Σ_h weight[t,h] · relu(scale · q[t,h]·key[s]) is largest.

    q [1,T,H,D], key [1,T,1,D], weight [1,T,H] (the indexer's own heads) → int32 [1,T,k]. Tokens see those of their own sequence up to themselves. Positions
    ascend; ties take the lower one; -1 fills up where a token sees fewer than `k`. `cache` is the index of the keys' cache.
    Source: DeepSeek-V3.2-Exp (the lightning indexer of DeepSeek Sparse Attention).
    """

    name: ClassVar[str] = "indexer"
    cache: int
    k: int
    scale: float = 1.0

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        require(len(inputs) == 3, "indexer takes q, key and weight")
        q, key, weight = inputs
        require(len(q.shape) == 4 and key.shape == (*q.shape[:2], 1, q.shape[3]), f"indexer of queries {q} and keys {key}")
        require(weight.shape == q.shape[:3], f"weights {weight} for queries {q}")
        require(self.k > 0 and self.scale > 0, f"indexer with k {self.k}, scale {self.scale}")
        return (TensorType("i32", (*q.shape[:2], self.k)),)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        wide = torch.promote_types(inputs[0].dtype, torch.float32)
        q, key, weight = (t[0].to(wide) for t in inputs)
        scores = torch.zeros(q.shape[0], q.shape[0], dtype=wide)
        for j in range(q.shape[1]):
            scores = scores + weight[:, j, None] * torch.relu(self.scale * (q[:, j] @ key[:, 0].T))
        return (best_positions(ctx, scores, self.k)[None],)
