"""MXFP4 expert weights as gpt-oss stores them: blocks of 32 e2m1 values along K, with E8M0 scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ..levels import E2M1
from ..scheme import Scheme
from ..stored import Stored
from .bits import nibbles, powers_of_two, spread
from .format import Format, Parts


class Mxfp4(Format):
    """NAME_blocks [E, N, K/32, 16] uint8, NAME_scales [E, N, K/32] uint8; the parameter NAME is [E, K, N]."""

    name: ClassVar[str] = "mxfp4"
    suffixes: ClassVar[tuple[str, ...]] = ("blocks", "scales")

    @classmethod
    def recognizes(cls, config: Mapping[str, Any], names: frozenset[str]) -> bool:
        return config.get("quant_method") == "mxfp4"

    def part(self, name: str) -> tuple[str, str] | None:
        weight, _, suffix = name.rpartition("_")
        return (weight, suffix) if suffix in self.suffixes else None

    def read(self, weight: str, parts: Parts) -> Stored:
        blocks, scales = self.need(weight, parts, "blocks", "scales")
        codes = nibbles(blocks).flatten(-2)
        power = powers_of_two(scales)

        def dense() -> torch.Tensor:
            return torch.tensor(E2M1)[codes.long()] * spread(power, 32, codes.shape[-1])

        across = codes.ndim == 3  # transformers holds experts with K before N
        return Stored(
            lambda: dense().transpose(1, 2).contiguous() if across else dense(), Scheme("mxfp4", 32), codes, power, across=across
        )
