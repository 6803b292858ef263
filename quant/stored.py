"""Stored weights: what a quantized checkpoint holds for one weight, and how its codes become the kernels' own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..errors import CheckpointError
from .scheme import INTEGERS, Scheme


@dataclass(frozen=True)
class Stored:
    """One weight [N, K] (or several: [E, N, K]) as a tool stored it.

    `dense` gives float32 with the values that the tool itself computes, rounded as it rounds. codes [N, K] uint8, unsigned;
    scales [N, G] float32, exact; zeros [N, G] whole numbers in units of codes, or `offsets` [N, G] float32 that are added
    instead, or neither for the scheme's own; `across` says that the parameter itself, and `dense`, have K before N; groups [K] int64 names each input's group where that is not k // group (GPTQ's
    act-order); `input_scale` is the tensor scale of nvfp4 activations. `scheme` is None where no kernel knows what the codes
    mean: the weight is then used dense, for the reason that `why` gives. `note` tells a person what is computed otherwise than the tool does.
    """

    dense: Callable[[], torch.Tensor]
    scheme: Scheme | None = None
    codes: torch.Tensor | None = None
    scales: torch.Tensor | None = None
    zeros: torch.Tensor | None = None
    offsets: torch.Tensor | None = None
    groups: torch.Tensor | None = None
    input_scale: float | None = None
    across: bool = False
    why: str = ""
    note: str = ""

    def reshaped(self, shape: tuple[int, ...]) -> Stored:
        """Rows [N, K] as [E, N, K] or whatever shape the tensor has."""
        if self.codes is None or len(shape) == 2:
            return self
        parts = {n: getattr(self, n) for n in ("codes", "scales", "zeros", "offsets")}
        return replace(self, **{n: t.reshape(*shape[:-1], -1) for n, t in parts.items() if t is not None})

    def settled(self) -> Stored:
        """The same with a scheme that says everything a kernel must know, or without codes where no kernel takes them."""
        if self.scheme is None or self.codes is None or self.scales is None:
            return self
        scheme = self.scheme
        self._check_shapes(scheme)
        if scheme.group and scheme.group != 16 and scheme.group % 32:
            return Stored(self.dense, why=f"no kernel takes groups of {scheme.group}")
        if scheme.is_integer and scheme.kind not in INTEGERS:
            scheme = replace(scheme, kind={"int1": "int2", "int7": "int8"}[scheme.kind], asymmetric=True)
        zeros = self.zeros
        if scheme.asymmetric and zeros is None and self.offsets is None:
            assert self.scheme is not None
            zeros = torch.full_like(self.scales, float(1 << (self.scheme.bits - 1)))
        numbers = [self.scales] if self.offsets is None else [self.scales, self.offsets]
        scales = "f32" if scheme.group and not all(torch.equal(t.half().float(), t) for t in numbers) else ""
        order = hashlib.sha256(self.groups.numpy().tobytes()).hexdigest()[:8] if self.groups is not None else ""
        scheme = replace(scheme, stored=True, scales=scales, offset=self.offsets is not None, order=order)
        return replace(self, scheme=scheme, zeros=zeros)

    def _check_shapes(self, scheme: Scheme) -> None:
        assert self.codes is not None and self.scales is not None
        *lead, k = self.codes.shape
        wanted = (*lead, -(-k // scheme.group) if scheme.group else 1)
        for name in ("scales", "zeros", "offsets"):
            part = getattr(self, name)
            if part is not None and tuple(part.shape) != wanted:
                raise CheckpointError(
                    f"{name} of the shape {list(part.shape)} do not fit codes {list(self.codes.shape)} in groups of {scheme.group or k}"
                )
        if self.groups is not None and scheme.group and not bool((torch.bincount(self.groups)[:-1] == scheme.group).all()):
            raise CheckpointError(
                f"its groups are not of {scheme.group} inputs each", "config.json and the weights do not belong together"
            )

    def view(self, name: str) -> torch.Tensor:
        """codes, scales, zeros, offsets or groups with one entry a weight, [N, K] or [E, N, K], so that they move as the weight does."""
        assert self.codes is not None and self.scheme is not None
        k = self.codes.shape[-1]
        index = torch.arange(k) // (self.scheme.group or k) if self.groups is None else self.groups
        if name == "codes":
            found = self.codes
        elif name == "groups":
            found = index.expand(self.codes.shape)
        else:
            found = getattr(self, name)[..., index]
        return found.transpose(-1, -2) if self.across else found
