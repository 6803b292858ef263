"""Fine-grained FP8 checkpoints of transformers and DeepSeek: e4m3 codes, one scale a block, stored as `weight_scale_inv`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ..scheme import Scheme
from ..stored import Stored
from .bits import powers_of_two
from .format import Format, Parts


class Fp8(Format):
    """weight [N, K] float8_e4m3fn; weight_scale_inv [N/B, K/B], one a channel, or one: the value is their product in float32."""

    name: ClassVar[str] = "fp8"
    suffixes: ClassVar[tuple[str, ...]] = ("weight", "weight_scale_inv", "weight_scale", "activation_scale", "input_scale")

    @classmethod
    def recognizes(cls, config: Mapping[str, Any], names: frozenset[str]) -> bool:
        return config.get("quant_method") == "fp8"

    def part(self, name: str) -> tuple[str, str] | None:
        for ending in ("_scale_inv", "_activation_scale"):  # merged experts: gate_up_proj, gate_up_proj_scale_inv
            if name.endswith(ending) and not name.endswith(".weight" + ending):
                return name.removesuffix(ending), f"weight{ending}"
        found = super().part(name)
        return found if found is not None else (name, "weight")

    def complete(self, parts: Parts) -> bool:
        return "weight_scale_inv" in parts or "weight_scale" in parts

    def read(self, weight: str, parts: Parts) -> Stored:
        named = "weight_scale" if "weight_scale" in parts else "weight_scale_inv"  # AutoFP8 and vLLM use the first
        codes, scale = self.need(weight, parts, "weight", named)
        scale = powers_of_two(scale) if scale.dtype == torch.float8_e8m0fnu else scale.float()
        block = self.config.get("weight_block_size")
        *_, n, k = codes.shape
        if block and scale.ndim >= 2:
            rows, cols = (int(b) for b in block)
            full = scale.repeat_interleave(rows, -2)[..., :n, :].repeat_interleave(cols, -1)[..., :k]
        else:
            cols = k
            full = scale.reshape(*scale.shape, *[1] * (codes.ndim - scale.ndim)).expand(codes.shape)

        def dense() -> torch.Tensor:
            return codes.float() * full

        if codes.dtype != torch.float8_e4m3fn:
            return Stored(dense, why=f"its codes are {codes.dtype}")
        scheme = Scheme("fp8_e4m3", 0 if cols >= k else cols)
        return Stored(dense, scheme, codes.view(torch.uint8), full[..., ::cols].contiguous())
