"""AWQ (Lin et al., 2024): the inputs that matter are multiplied into their weights' scales before those are rounded.

Here the error that chooses the factors is that of all calibration tokens, through their second moments, and the ranges are
then clipped to the least error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..scheme import Scheme
from .rtn import quantize
from .smoothquant import tied

MOST_ROWS = 512  # of each weight that judge the factors


@dataclass(frozen=True)
class Awq:
    """Searches factors mean|x|^a, and mean|x|^a / mean|W|^(1 − a), for `steps` values of a in 0 … 1."""

    steps: int = 12

    def factors(
        self,
        x: torch.Tensor,
        moments: torch.Tensor,
        weights: Sequence[torch.Tensor],
        schemes: Sequence[Scheme],
        tie: torch.Tensor,
    ) -> torch.Tensor:
        """x [..., K], moments [K, K] = Σ x·xᵀ, weights [N, K] that it is multiplied by → factors [K], equal where `tie` [K] is."""
        large = x.reshape(-1, x.shape[-1]).abs().mean(0).clamp(min=1e-5)
        heavy = torch.stack([w.abs().mean(0) for w in weights]).mean(0).clamp(min=1e-5)
        judged = [w[:: -(-w.shape[0] // MOST_ROWS)] for w in weights]
        best, least = torch.ones_like(large), self._error(torch.ones_like(large), moments, judged, schemes)
        for i in range(1, self.steps + 1):
            share = i / self.steps
            for candidate in (large**share, large**share / heavy ** (1 - share)):
                factors = tied(candidate, tie)
                factors = (factors / (factors.max() * factors.min()).sqrt()).clamp(1e-4, 1e4)
                error = self._error(factors, moments, judged, schemes)
                if error < least:
                    best, least = factors, error
        return best

    def _error(
        self, factors: torch.Tensor, moments: torch.Tensor, weights: Sequence[torch.Tensor], schemes: Sequence[Scheme]
    ) -> float:
        total = 0.0
        for weight, scheme in zip(weights, schemes, strict=True):
            error = quantize(weight * factors, scheme).dequantize(scheme) / factors - weight
            total += float(((error @ moments) * error).sum())
        return total
