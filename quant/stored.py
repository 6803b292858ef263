"""Stored weights: what a quantized checkpoint holds for one weight, before anything is dequantized."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .scheme import Scheme


@dataclass(frozen=True)
class Stored:
    """One weight [N, K] as a tool stored it.

    codes [N, K] uint8, unsigned; scales [N, G] float32, exact; zeros [N, G] float32 in units of codes, or None for the scheme's
    own; groups [K] int64 names each input's group where that is not k // group (GPTQ's act-order), or None.
    `dense` is float32 with the values that the tool itself computes, rounded as it rounds. `scheme` is None where no scheme
    says what the codes mean: the weight is then used dense, for the reason that `why` gives.
    """

    dense: torch.Tensor
    scheme: Scheme | None = None
    codes: torch.Tensor | None = None
    scales: torch.Tensor | None = None
    zeros: torch.Tensor | None = None
    groups: torch.Tensor | None = None
    why: str = ""

    def without_codes(self, why: str) -> Stored:
        return replace(self, scheme=None, codes=None, scales=None, zeros=None, groups=None, why=why)
