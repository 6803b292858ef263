"""SmoothQuant (Xiao et al., 2023): inputs with large values are divided, and their weights multiplied, before both are rounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..scheme import Scheme


@dataclass(frozen=True)
class SmoothQuant:
    """Factors max|x|^strength / max|W|^(1 − strength)."""

    strength: float = 0.5

    def factors(
        self,
        x: torch.Tensor,
        moments: torch.Tensor,
        weights: Sequence[torch.Tensor],
        schemes: Sequence[Scheme],
        tie: torch.Tensor,
    ) -> torch.Tensor:
        """x [..., K], weights [N, K] that it is multiplied by → [K], equal where `tie` [K] is."""
        largest = x.reshape(-1, x.shape[-1]).abs().amax(0).clamp(min=1e-5)
        weight = torch.stack([w.abs().amax(0) for w in weights]).amax(0).clamp(min=1e-5)
        return tied(largest**self.strength / weight ** (1 - self.strength), tie)


def tied(factors: torch.Tensor, tie: torch.Tensor) -> torch.Tensor:
    """The geometric mean of the factors [K] of each class of `tie` [K]."""
    count = int(tie.max()) + 1
    total = torch.zeros(count).index_add_(0, tie, factors.log())
    return (total / torch.bincount(tie, minlength=count).clamp(min=1))[tie].exp()
