"""Round to nearest: each group's scale from its own range."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..scheme import Scheme


@dataclass(frozen=True)
class Codes:
    """codes [N, K] uint8 (unsigned: value + zero point), scales [N, G] float32, zeros [N, G] uint8 (None: symmetric, zero 2^(bits-1))."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None

    def dequantize(self, scheme: Scheme) -> torch.Tensor:
        """The values that the codes stand for, [N, K] float32."""
        k = self.codes.shape[1]
        size = scheme.group or k
        zero = self.zeros.float() if self.zeros is not None else torch.full_like(self.scales, float(1 << (scheme.bits - 1)))
        spread = lambda t: t.repeat_interleave(size, 1)[:, :k]  # noqa: E731
        return (self.codes.float() - spread(zero)) * spread(self.scales)


def quantize(weight: torch.Tensor, scheme: Scheme) -> Codes:
    """weight [N, K] of any float dtype → Codes; a last group may be short.

    Scales of groups are rounded to float16 before the codes are chosen, because that is how they are stored. For symmetric
    4-bit groups the better, by squared error, of the ranges ±max/7 and (largest value → −8) is taken.
    """
    w = weight.float()
    n, k = w.shape
    size = scheme.group or k
    groups = -(-k // size)
    padded = torch.nn.functional.pad(w, (0, groups * size - k)).reshape(n, groups, size)
    if scheme.asymmetric:
        return _asymmetric(padded, scheme, k)
    levels = 1 << (scheme.bits - 1)
    if scheme.bits == 8:
        candidates = [padded.abs().amax(-1) / (levels - 1)]
    else:
        top = padded.gather(-1, padded.abs().argmax(-1, keepdim=True))[..., 0]
        candidates = [padded.abs().amax(-1) / (levels - 1), top / -levels]
    best: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    for scale in candidates:
        scale = _stored(scale, scheme)
        codes = torch.round(padded * _inverse(scale)[..., None]).clamp(-(levels - 1) if scheme.bits == 8 else -levels, levels - 1)
        error = (codes * scale[..., None] - padded).square().sum(-1)
        if best is None:
            best = (codes, scale, error)
        else:
            better = error < best[2]
            best = (
                torch.where(better[..., None], codes, best[0]),
                torch.where(better, scale, best[1]),
                torch.where(better, error, best[2]),
            )
    assert best is not None
    codes = (best[0] + levels).to(torch.uint8).reshape(n, groups * size)[:, :k]
    return Codes(codes.contiguous(), best[1], None)


def _asymmetric(padded: torch.Tensor, scheme: Scheme, k: int) -> Codes:
    top = (1 << scheme.bits) - 1
    low, high = padded.amin(-1).clamp(max=0), padded.amax(-1).clamp(min=0)
    scale = _stored((high - low) / top, scheme)
    zero = torch.round(-low * _inverse(scale)).clamp(0, top)
    codes = (torch.round(padded * _inverse(scale)[..., None]) + zero[..., None]).clamp(0, top)
    return Codes(codes.to(torch.uint8).reshape(padded.shape[0], -1)[:, :k].contiguous(), scale, zero.to(torch.uint8))


def _stored(scale: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """The scale as it will be read: float16 for groups, float32 for channels."""
    if not scheme.group:
        return scale
    half = scale.clamp(-65504, 65504).to(torch.float16).float()  # float16 ends there
    return torch.where((half == 0) & (scale != 0), torch.sign(scale) * 2.0**-24, half)


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
