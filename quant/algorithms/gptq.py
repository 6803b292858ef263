"""GPTQ (Frantar et al., 2022) with group scales searched beforehand, then coordinate descent over codes and scales.

Each row of a weight is chosen to minimise (w − q)ᵀ·H·(w − q), H the second moments of the inputs. GPTQ rounds the inputs one
after the other, those with the largest moments first, and lets the rest make up for each error. Its result is then improved
in sweeps that change one code, or one scale, at a time to the best value given all others (as in QuantEase, Behdin et al.,
2023), which GPTQ, going through the inputs once, cannot. Groups lie as they are stored: no permutation remains.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..scheme import Scheme
from .rtn import Codes, inverse, stored_scale

BLOCK = 64


@dataclass(frozen=True)
class Gptq:
    """`damping` is added to the diagonal of H, as a share of its mean; `sweeps` of coordinate descent; `search`: scales tried a group."""

    damping: float = 0.01
    sweeps: int = 5
    search: int = 20

    def quantize(self, weight: torch.Tensor, moments: torch.Tensor, scheme: Scheme) -> Codes:
        """weight [N, K] float32, moments [K, K] float32 = Σ x·xᵀ → integer Codes."""
        k = weight.shape[1]
        h = moments.clone()
        diagonal = h.diagonal()
        dead = diagonal <= 0
        diagonal[dead] = 1.0
        diagonal += self.damping * diagonal.mean()
        w = weight.masked_fill(dead, 0.0)
        size = scheme.group or k
        grid = _Grid.searched(w, diagonal, scheme, size, self.search)
        grid.codes = self._gptq(w, h, grid, size)
        self._descend(w, h, grid, size)
        return Codes(grid.codes.to(torch.uint8), grid.scales, grid.zeros if scheme.asymmetric else None)

    def _gptq(self, weight: torch.Tensor, h: torch.Tensor, grid: _Grid, size: int) -> torch.Tensor:
        n, k = weight.shape
        order = torch.argsort(h.diagonal(), descending=True, stable=True)
        w = weight[:, order].T.contiguous()  # [K, N]: a row is an input
        inverse_root = torch.linalg.cholesky(
            torch.cholesky_inverse(torch.linalg.cholesky(h[order][:, order].double())), upper=True
        ).float()
        codes = torch.empty_like(w)
        groups = order // size
        scales, zeros = grid.scales.T.contiguous(), grid.zeros.T.contiguous()
        inverses = inverse(scales)
        for start in range(0, k, BLOCK):
            end = min(start + BLOCK, k)
            errors = torch.empty(end - start, n)
            root = inverse_root[start:end, start:end]
            block = w[start:end]
            for i in range(end - start):
                scale, zero = scales[groups[start + i]], zeros[groups[start + i]]
                code = grid.nearest(block[i], inverses[groups[start + i]], zero)
                codes[start + i] = code
                error = (block[i] - (code - zero) * scale) / root[i, i]
                if i + 1 < end - start:
                    block[i + 1 :] -= torch.outer(root[i, i + 1 :], error)
                errors[i] = error
            if end < k:
                w[end:] -= inverse_root[start:end, end:].T @ errors
        out = torch.empty_like(codes)
        out[order] = codes
        return out.T.contiguous()

    def _descend(self, weight: torch.Tensor, h: torch.Tensor, grid: _Grid, size: int) -> None:
        """Sweeps over all scales, then over all codes. `slope` is (w − q)·H, what each input still asks for."""
        n, k = weight.shape
        groups = -(-k // size)
        codes, zeros = grid.codes.T.contiguous(), grid.zeros.T.contiguous()  # [K, N], [G, N]
        scales = grid.scales.T.contiguous()
        index = torch.arange(k) // size
        diagonal = h.diagonal()
        for sweep in range(self.sweeps):
            slope = h @ (weight.T - (codes - zeros[index]) * scales[index])
            for g in range(groups):
                part = slice(g * size, min((g + 1) * size, k))
                scale, zero = grid.refit(codes[part], scales[g], zeros[g], slope[part], h[part, part])
                change = (codes[part] - zero) * scale - (codes[part] - zeros[g]) * scales[g]
                slope -= h[:, part] @ change
                scales[g], zeros[g] = scale, zero
            inverses = inverse(scales)
            if sweep + 1 == self.sweeps:
                break
            for start in range(0, k, BLOCK):
                end = min(start + BLOCK, k)
                local, inner = slope[start:end], h[start:end, start:end]
                moved = torch.empty(end - start, n)
                for i in range(end - start):
                    j = start + i
                    scale, zero, per = scales[index[j]], zeros[index[j]], inverses[index[j]]
                    value = (codes[j] - zero) * scale
                    code = grid.nearest(value + local[i] / diagonal[j], per, zero)
                    moved[i] = (code - codes[j]) * scale
                    codes[j] = code
                    local -= torch.outer(inner[:, i], moved[i])
                rest = [slice(0, start), slice(end, k)]
                for part in rest:
                    if part.stop > part.start:
                        slope[part] -= h[part, start:end] @ moved
        grid.codes, grid.scales, grid.zeros = codes.T.contiguous(), scales.T.contiguous(), zeros.T.contiguous()


@dataclass
class _Grid:
    """The values that each group's codes may stand for: codes [N, K], scales and zeros [N, G], all float32."""

    scheme: Scheme
    scales: torch.Tensor
    zeros: torch.Tensor
    codes: torch.Tensor
    top: float

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
        candidates = [(stored_scale(scale + pull / curve.clamp(min=1e-30), self.scheme), zero)]
        if self.scheme.asymmetric:
            flat, lift = h.sum(), slope.sum(0)
            cross = through.sum(0)
            bottom = (curve * flat - cross * cross).clamp(min=1e-30)
            joint = scale + (pull * flat - lift * cross) / bottom
            offset = (lift * curve - pull * cross) / bottom - scale * zero
            joint = stored_scale(torch.where(joint.sign() == scale.sign(), joint, scale), self.scheme)
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

    @staticmethod
    def searched(weight: torch.Tensor, moments: torch.Tensor, scheme: Scheme, size: int, tries: int) -> _Grid:
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
        best: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        shares = [1.0 - 0.6 * i / tries for i in range(tries)]
        for share in shares:
            candidates = []
            if scheme.asymmetric:
                for other in shares[:: max(tries // 6, 1)]:
                    scale = stored_scale((share * high - other * low) / top, scheme)
                    candidates.append((scale, torch.round(-other * low * inverse(scale)).clamp(0, top)))
            else:
                for scale in (share * w.abs().amax(-1) / (middle - 1), share * most / -middle):
                    candidates.append((stored_scale(scale, scheme), torch.full_like(low, middle)))
            for scale, zero in candidates:
                codes = (torch.round(w * inverse(scale)[..., None]) + zero[..., None]).clamp_(0, top)
                error = (((codes - zero[..., None]) * scale[..., None] - w).square_() * weights).sum(-1)
                if best is None:
                    best = (scale, zero, error)
                else:
                    wins = error < best[2]
                    best = tuple(torch.where(wins, a, b) for a, b in zip((scale, zero, error), best, strict=True))  # type: ignore[assignment]
        assert best is not None
        return _Grid(scheme, best[0].contiguous(), best[1].contiguous(), torch.empty(0), top)
