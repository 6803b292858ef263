"""GPTQ (Frantar et al., 2022) with group scales searched beforehand, then coordinate descent over codes and scales.

Each row of a weight is chosen to minimise (w − q)ᵀ·H·(w − q), H the second moments of the inputs. GPTQ rounds the inputs one
after the other, those with the largest moments first, and lets the rest make up for each error. Its result is then improved
in sweeps that change one code, or one scale, at a time to the best value given all others (as in QuantEase, Behdin et al.,
2023), which GPTQ, going through the inputs once, cannot. Groups lie as they are stored: no permutation remains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .. import native
from ..levels import levels_of
from ..scheme import Scheme
from .grid import Grid
from .rtn import Codes, inverse, nearest_level, quantize

BLOCK = 64


@dataclass(frozen=True)
class Gptq:
    """`damping` is added to the diagonal of H, as a share of its mean; `sweeps` of coordinate descent; `search`: scales tried a group."""

    compensates = True
    damping: float = 0.01
    sweeps: int = 5
    search: int = 20

    def quantize(self, weight: torch.Tensor, moments: torch.Tensor, scheme: Scheme) -> Codes:
        """weight [N, K] float32, moments [K, K] float32 = Σ x·xᵀ → Codes. Kinds other than integers keep the scales of rounding to
        nearest; where several outputs share a scale, codes are rounded to nearest."""
        if scheme.share:
            return quantize(weight, scheme)
        k = weight.shape[1]
        h = moments.clone()
        diagonal = h.diagonal()
        dead = diagonal <= 0
        diagonal[dead] = 1.0
        diagonal += self.damping * diagonal.mean()
        w = weight.masked_fill(dead, 0.0)
        size = scheme.group or k
        if not scheme.is_integer:
            return self._levels(w, h, scheme, size)
        grid = Grid.searched(w, diagonal, scheme, size, self.search)
        grid.codes = self._gptq(w, h, grid, size)
        self._descend(w, h, grid, size)
        return Codes(grid.codes.to(torch.uint8), grid.scales, grid.zeros if scheme.asymmetric else None)

    def _gptq(self, weight: torch.Tensor, h: torch.Tensor, grid: Grid, size: int) -> torch.Tensor:
        order = torch.argsort(h.diagonal(), descending=True, stable=True)
        codes = torch.empty_like(weight)
        places = native.Places(order // size, grid.scales.T, grid.zeros.T, grid.top)
        codes[:, order] = native.round_codes(weight[:, order].T, _inverse_root(h, order), places).T
        return codes

    def _levels(self, weight: torch.Tensor, h: torch.Tensor, scheme: Scheme, size: int) -> Codes:
        """GPTQ over levels that are not evenly spaced: floating-point numbers and tables."""
        plain = quantize(weight, scheme)
        levels, scales = levels_of(scheme.kind), plain.scales.T.contiguous()
        inverses = inverse(scales)

        def nearest(values: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
            code = nearest_level(values * inverses[group], scheme.kind)
            return code.float(), levels[code.long()] * scales[group]

        return Codes(_one_by_one(weight, h, size, nearest).to(torch.uint8), plain.scales)

    def _descend(self, weight: torch.Tensor, h: torch.Tensor, grid: Grid, size: int) -> None:
        """Sweeps over all scales, then over all codes. `slope` is (w − q)·H, what each input still asks for."""
        k = weight.shape[1]
        groups = -(-k // size)
        codes, zeros = grid.codes.T.contiguous(), grid.zeros.T.contiguous()  # [K, N], [G, N]
        scales = grid.scales.T.contiguous()
        index = torch.arange(k) // size
        sweeps = self.sweeps if grid.scheme.bits < 8 else min(self.sweeps, 2)  # eight bits leave little to gain
        for sweep in range(sweeps):
            slope = h @ (weight.T - (codes - zeros[index]) * scales[index])
            for g in range(groups):
                part = slice(g * size, min((g + 1) * size, k))
                scale, zero = grid.refit(codes[part], scales[g], zeros[g], slope[part], h[part, part])
                change = (codes[part] - zero) * scale - (codes[part] - zeros[g]) * scales[g]
                slope -= h[:, part] @ change
                scales[g], zeros[g] = scale, zero
            if sweep + 1 < sweeps:
                native.sweep_codes(slope, h, codes, native.Places(index, scales, zeros, grid.top))
        grid.codes, grid.scales, grid.zeros = codes.T.contiguous(), scales.T.contiguous(), zeros.T.contiguous()


def _inverse_root(h: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor [K, K] of the inverse of the moments, inputs in another order."""
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h[order][:, order].double())), upper=True).float()


@dataclass(frozen=True)
class GptqPlain(Gptq):
    """GPTQ as it was published, after the search for scales: no sweeps, and nothing is made up for that earlier layers did."""

    compensates = False
    sweeps: int = 0


Nearest = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
"""For values [N] of one input and its group: their codes, and the values that those stand for."""


def _one_by_one(weight: torch.Tensor, h: torch.Tensor, size: int, nearest: Nearest) -> torch.Tensor:
    """Codes [N, K]: inputs are rounded in the order of their moments, and each error is made up for by the inputs that are left."""
    n, k = weight.shape
    order = torch.argsort(h.diagonal(), descending=True, stable=True)
    w = weight[:, order].T.contiguous()  # [K, N]: a row is an input
    inverse_root = _inverse_root(h, order)
    codes = torch.empty_like(w)
    groups = (order // size).tolist()
    for start in range(0, k, BLOCK):
        end = min(start + BLOCK, k)
        errors = torch.empty(end - start, n)
        root = inverse_root[start:end, start:end]
        block = w[start:end]
        for i in range(end - start):
            codes[start + i], value = nearest(block[i], groups[start + i])
            errors[i] = (block[i] - value) / root[i, i]
            if i + 1 < end - start:
                block[i + 1 :] -= torch.outer(root[i, i + 1 :], errors[i])
        if end < k:
            w[end:] -= inverse_root[start:end, end:].T @ errors
    out = torch.empty_like(codes)
    out[order] = codes
    return out.T.contiguous()
