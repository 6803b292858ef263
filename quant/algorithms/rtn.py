"""Round to nearest: each group's scale from its own range, clipped where that lowers the squared error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..levels import levels_of
from ..scheme import Scheme

SMALLEST_HALF = 2.0**-24
SHARES = (1.0, 0.95, 0.8)  # of a group's range
PIECE = 1 << 19
"""Values that are quantized at a time: what is computed on the way stays in the cache."""


@dataclass(frozen=True)
class Codes:
    """A quantized weight. codes [N, K] uint8, unsigned: index of a level (integers: value + zero point); scales [N, G] float32;
    zeros [N, G] float32 in units of codes (None: the scheme's own); order [K] int64, the inputs in the order in which groups lie
    together (None: as they are); offsets [N, G] float32 are added instead of zero points."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None
    order: torch.Tensor | None = None
    offsets: torch.Tensor | None = None

    def dequantize(self, scheme: Scheme) -> torch.Tensor:
        """The values that the codes stand for, [N, K] float32."""
        k = self.codes.shape[1]
        size = scheme.group or k
        spread = lambda t: t.repeat_interleave(size, 1)[:, :k]  # noqa: E731
        if scheme.is_integer:
            zero = self.zeros if self.zeros is not None else torch.full_like(self.scales, float(1 << (scheme.bits - 1)))
            values = (self.codes.float() - spread(zero)) * spread(self.scales)
        else:
            values = levels_of(scheme.kind)[self.codes.long()] * spread(self.scales)
        return values if self.order is None else values[:, torch.argsort(self.order)]


def quantize(weight: torch.Tensor, scheme: Scheme) -> Codes:
    """weight [N, K] of any float dtype → Codes; a last group may be short.

    Scales are rounded to how they are stored before the codes are chosen. For integers of 6 bits or fewer, several ranges are
    tried, each group's scale is then fitted to its codes, and the least squared error wins.
    """
    rows = max(PIECE // weight.shape[1], 1) // 128 * 128 or 128
    if scheme.share == "tensor" or scheme.kind == "nvfp4" or rows >= weight.shape[0]:  # all outputs share something
        return _quantized(weight.float(), scheme)
    parts = [_quantized(part.float(), scheme) for part in weight.split(rows)]
    zeros = torch.cat([p.zeros for p in parts if p.zeros is not None]) if scheme.asymmetric else None
    return Codes(torch.cat([p.codes for p in parts]), torch.cat([p.scales for p in parts]), zeros)


def _quantized(w: torch.Tensor, scheme: Scheme) -> Codes:
    n, k = w.shape
    size = scheme.group or k
    groups = -(-k // size)
    padded = torch.nn.functional.pad(w, (0, groups * size - k)).reshape(n, groups, size)
    cut = lambda codes: codes.to(torch.uint8).reshape(n, groups * size)[:, :k].contiguous()  # noqa: E731
    if not scheme.is_integer:
        levels = levels_of(scheme.kind)
        scale = stored_scale(float_scale(shared(padded.abs().amax(-1), scheme), scheme, levels), scheme)
        return Codes(cut(nearest_level(padded * inverse(scale)[..., None], scheme.kind)), scale)
    best: tuple[torch.Tensor, ...] | None = None
    fits = scheme.bits < 8 and not scheme.share
    for scale, zero in _ranges(padded, scheme, SHARES if fits else (1.0,)):
        if fits:
            values = _codes(padded, scale, zero, scheme) - zero[..., None]
            fitted = (padded * values).sum(-1) / values.square().sum(-1).clamp(min=1.0)
            scale = stored_scale(torch.where(fitted == 0, scale, fitted), scheme)
        codes = _codes(padded, scale, zero, scheme)
        found = (codes, scale, zero, ((codes - zero[..., None]) * scale[..., None] - padded).square().sum(-1))
        best = found if best is None else _better(best, found)
    assert best is not None
    codes, scale, zero, _ = best
    if scheme.scale_kind == "int8":  # the best of each group, which count one unit again
        scale = stored_scale(scale, scheme)
        codes = _codes(padded, scale, zero, scheme)
    return Codes(cut(codes), scale, zero if scheme.asymmetric else None)


def _ranges(padded: torch.Tensor, scheme: Scheme, shares: tuple[float, ...]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """[N, G, size] → scales and zero points [N, G] for these shares of each group's range; symmetric ones of fewer than 8 bits are
    ±max and (largest value → lowest code)."""
    top = (1 << scheme.bits) - 1
    if scheme.asymmetric:
        low, high = shared(padded.amin(-1).clamp(max=0), scheme, torch.amin), shared(padded.amax(-1).clamp(min=0), scheme)
        for share in shares:
            scale = stored_scale(share * (high - low) / top, scheme)
            yield scale, torch.round(-share * low * inverse(scale)).clamp(0, top)
        return
    most = shared(padded.abs().amax(-1), scheme)
    middle = torch.full_like(most, float(1 << (scheme.bits - 1)))
    for share in shares:
        yield stored_scale(share * most / (top // 2), scheme), middle
        if scheme.bits < 8 and not scheme.share:
            largest = padded.gather(-1, padded.abs().argmax(-1, keepdim=True))[..., 0]
            yield stored_scale(share * largest / -(top // 2 + 1), scheme), middle


def _codes(padded: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    least = 1 if scheme.bits == 8 and not scheme.asymmetric else 0  # eight symmetric bits end at ±127
    return torch.round(padded * inverse(scale)[..., None]).add_(zero[..., None]).clamp_(least, (1 << scheme.bits) - 1)


def _better(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """For each group whichever has the smaller error, which stands last."""
    wins = b[-1] < a[-1]
    return tuple(torch.where(wins[..., None] if x.ndim == 3 else wins, y, x) for x, y in zip(a, b, strict=True))


def float_scale(most: torch.Tensor, scheme: Scheme, levels: torch.Tensor) -> torch.Tensor:
    """The scale that maps a group's largest magnitude to the largest level, in the numbers that the scheme has for scales."""
    if scheme.kind in ("mxfp4", "mxfp8"):  # powers of two: OCP Microscaling 1.0, rounded up from three quarters on
        bits = (most.contiguous().view(torch.int32) + (1 << 21)) & 0x7F800000
        exponent = (bits >> 23) - 127 - (2 if scheme.kind == "mxfp4" else 8)
        return torch.where(most == 0, torch.zeros_like(most), torch.exp2(exponent.clamp(-127, 127).double()).float())
    scale = most / levels.max()
    if scheme.kind == "nvfp4":  # e4m3 numbers times one float32 for the tensor
        total = (most.amax() / (448 * 6)).clamp(min=2.0**-100)
        return (scale / total).clamp(max=448).to(torch.float8_e4m3fn).float() * total
    return scale


def nearest_level(values: torch.Tensor, kind: str) -> torch.Tensor:
    """Codes of the levels nearest to values; fp8 rounds as its hardware does, ties to even."""
    if kind in ("fp8_e4m3", "mxfp8"):
        return values.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    if kind == "fp8_e5m2":
        return values.clamp(-57344, 57344).to(torch.float8_e5m2).view(torch.uint8)
    levels, order = levels_of(kind).sort(stable=True)
    bounds = (levels[1:] + levels[:-1]) / 2
    return order[torch.bucketize(values.contiguous(), bounds)]


def shared(values: torch.Tensor, scheme: Scheme, reduce: Callable[..., torch.Tensor] = torch.amax) -> torch.Tensor:
    """[N, G] with the extreme of all outputs that share a scale in each place."""
    if scheme.share == "tensor":
        return reduce(values, (0, 1), keepdim=True).expand_as(values).contiguous()
    if scheme.share == "block":
        return torch.cat([reduce(part, 0, keepdim=True).expand_as(part) for part in values.split(128)])
    return values


def stored_scale(scale: torch.Tensor, scheme: Scheme, unit: torch.Tensor | None = None) -> torch.Tensor:
    """The scale as it will be read. `unit`, for scales of 8 bits, is what they count, and broadcasts to `scale`; without one `scale`
    [N, G] is all that its outputs have."""
    if scheme.scale_kind == "f32":
        return scale
    if scheme.scale_kind == "int8":
        unit = unit_of(scale) if unit is None else unit
        counted = torch.round(scale / unit).clamp(-127, 127)
        return torch.where((counted == 0) & (scale != 0), torch.sign(scale), counted) * unit
    if scheme.scale_kind == "bf16":
        return scale.bfloat16().float()
    half = scale.clamp(-65504, 65504).to(torch.float16).float()  # float16 ends there
    return torch.where((half == 0) & (scale != 0), torch.sign(scale) * SMALLEST_HALF, half)


def unit_of(scale: torch.Tensor) -> torch.Tensor:
    """[N, G] → [N, 1]: the least power of two of which 127 are enough for every scale of an output."""
    most = scale.abs().amax(-1, keepdim=True).double()
    return torch.where(most > 0, torch.exp2(torch.ceil(torch.log2(most.clamp(min=1e-300) / 127)).clamp(-120, 120)), 1.0).float()


def inverse(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
