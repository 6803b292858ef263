"""The integer grids of a weight's groups: scales and zero points searched for the least error, and codes on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import native
from ..scheme import Scheme
from .rtn import Codes, inverse, quantize, stored_scale, unit_of


@dataclass(frozen=True)
class Clipped:
    """Round to nearest, each group's range clipped to the least error weighted by the inputs' moments."""

    compensates = False
    search: int = 20

    def quantize(self, weight: torch.Tensor, moments: torch.Tensor, scheme: Scheme) -> Codes:
        """weight [N, K] float32, moments [K, K] → Codes."""
        if not scheme.is_integer or scheme.share:
            return quantize(weight, scheme)
        size = scheme.group or weight.shape[1]
        grid = Grid.searched(weight, moments.diagonal().clamp(min=0), scheme, size, self.search)
        return grid.rounded(weight, size)


@dataclass
class Grid:
    """The values that each group's codes may stand for: codes [N, K], scales and zeros [N, G], all float32; `unit` [N] is what
    scales of 8 bits count."""

    scheme: Scheme
    scales: torch.Tensor
    zeros: torch.Tensor
    codes: torch.Tensor
    top: float
    unit: torch.Tensor | None = None

    def stored(self, scale: torch.Tensor) -> torch.Tensor:
        """The scales [N] of one group as they will be read."""
        return stored_scale(scale, self.scheme, self.unit)

    def nearest(self, values: torch.Tensor, per_scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        return (values * per_scale).round_().add_(zero).clamp_(0, self.top)

    def refit(
        self, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, slope: torch.Tensor, h: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The scale [N], and zero point [N], of one group that lower the error most for its codes [size, N]; they stay where
        nothing does."""
        centred = codes - zero
        through = h @ centred
        curve, pull = (centred * through).sum(0), (slope * centred).sum(0)
        candidates = [(self.stored(scale + pull / curve.clamp(min=1e-30)), zero)]
        if self.scheme.asymmetric:
            flat, lift = h.sum(), slope.sum(0)
            cross = through.sum(0)
            bottom = (curve * flat - cross * cross).clamp(min=1e-30)
            joint = scale + (pull * flat - lift * cross) / bottom
            offset = (lift * curve - pull * cross) / bottom - scale * zero
            joint = self.stored(torch.where(joint.sign() == scale.sign(), joint, scale))
            moved = torch.round(-offset * inverse(joint)).clamp(0, self.top)
            candidates += [(joint, moved), (scale, (zero + 1).clamp(max=self.top)), (scale, (zero - 1).clamp(min=0))]
        best, gain = (scale, zero), torch.zeros_like(scale)
        for new_scale, new_zero in candidates:
            change = (codes - new_zero) * new_scale - centred * scale
            won = 2 * (slope * change).sum(0) - (change * (h @ change)).sum(0)
            better = won > gain
            best = (torch.where(better, new_scale, best[0]), torch.where(better, new_zero, best[1]))
            gain = torch.where(better, won, gain)
        return best

    def rounded(self, weight: torch.Tensor, size: int) -> Codes:
        """weight [N, K] on the nearest points of the grid."""
        spread = lambda t: t.repeat_interleave(size, 1)[:, : weight.shape[1]]  # noqa: E731
        codes = self.nearest(weight.clone(), spread(inverse(self.scales)), spread(self.zeros))
        return Codes(codes.to(torch.uint8), self.scales, self.zeros if self.scheme.asymmetric else None)

    @staticmethod
    def searched(weight: torch.Tensor, moments: torch.Tensor, scheme: Scheme, size: int, tries: int) -> Grid:
        """For each group the range, a share of its extremes, with the least error weighted by the inputs' moments [K]."""
        n, k = weight.shape
        groups = -(-k // size)
        pad = groups * size - k
        w = torch.nn.functional.pad(weight, (0, pad)).reshape(n, groups, size)
        weights = torch.nn.functional.pad(moments, (0, pad)).reshape(groups, size)
        top = float((1 << scheme.bits) - 1)
        low, high = w.amin(-1).clamp(max=0), w.amax(-1).clamp(min=0)
        most = w.gather(-1, w.abs().argmax(-1, keepdim=True))[..., 0]
        middle = float(1 << (scheme.bits - 1))
        shares = [1.0 - 0.6 * i / tries for i in range(tries)]
        candidates = []
        for share in shares:
            if scheme.asymmetric:
                for other in shares[:: max(tries // 6, 1)]:
                    scale = stored_scale((share * high - other * low) / top, scheme)
                    candidates.append((scale, torch.round(-other * low * inverse(scale)).clamp(0, top)))
            else:
                for scale in (share * w.abs().amax(-1) / (middle - 1), share * most / -middle):
                    candidates.append((stored_scale(scale, scheme), torch.full_like(low, middle)))
        tried, offsets = (torch.stack(t) for t in zip(*candidates, strict=True))
        best = native.best_candidates(w, weights, tried, offsets, top)[None]
        scales, zeros = (t.gather(0, best)[0] for t in (tried, offsets))
        unit = None
        if scheme.scale_kind == "int8":
            unit = unit_of(scales)
            scales, unit = stored_scale(scales, scheme, unit), unit[:, 0]
        return Grid(scheme, scales, zeros, torch.empty(0), top, unit)
