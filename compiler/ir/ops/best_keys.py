"""The tokens that score best for each token: what a sparse attention is told to look at, before its indexer is recognised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


def best_positions(ctx: Context, scores: torch.Tensor, k: int) -> torch.Tensor:
    """Positions [T,k] int32, ascending, of the `k` largest of scores [T,T] among the tokens of the row's own sequence up to its own;
    ties take the lower position, and -1 fills up where there are fewer."""
    out = torch.full((scores.shape[0], k), -1, dtype=torch.int32)
    for sequence in ctx.sequences.unique():
        rows = (ctx.sequences == sequence).nonzero()[:, 0]
        positions = ctx.positions[rows]
        own = scores[rows][:, rows].masked_fill(positions[None] > positions[:, None], float("-inf"))
        order = torch.sort(own, dim=-1, descending=True, stable=True)
        late = torch.iinfo(torch.int32).max
        found = positions.to(torch.int32)[order.indices].masked_fill(order.values == float("-inf"), late)[:, :k].sort(-1).values
        out[rows, : found.shape[1]] = found.masked_fill(found == late, -1)
    return out


@dataclass(frozen=True)
class BestKeys(Op):
    """scores [1,T,T] → int32 [1,T,k]: for each token the positions of the `k` tokens that it may see whose scores are largest.

    Tokens see those of their own sequence up to themselves. Positions ascend; ties take the lower one; -1 fills up where a token
    sees fewer than `k`. No target has a kernel for it: `raise_indexer` puts `indexer` in its place.
    """

    name: ClassVar[str] = "best_keys"
    k: int

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (scores,) = inputs
        require(len(scores.shape) == 3 and scores.shape[1] == scores.shape[2] and self.k > 0, f"best {self.k} keys of {scores}")
        return (TensorType("i32", (*scores.shape[:2], self.k)),)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (best_positions(ctx, inputs[0][0], self.k)[None],)
