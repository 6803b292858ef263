"""bitsandbytes checkpoints: nf4 and fp4 blocks with or without doubly quantized scales, and int8 rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ...errors import CheckpointError
from ..levels import NF4
from ..scheme import Scheme, integer_scheme
from ..stored import Stored
from .format import Format, Parts

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class BitsAndBytes(Format):
    """4 bits: weight [N·K/2, 1] uint8, the high half first, blocks of 64 or more over the flattened weight. 8 bits: int8 rows, SCB.

    The library rounds activations to int8 except for outliers that it looks for in the whole batch; here they stay as they are, so
    that a request's result does not depend on its neighbours.
    """

    name: ClassVar[str] = "bitsandbytes"
    suffixes: ClassVar[tuple[str, ...]] = ("weight", "SCB", "weight_format")

    @classmethod
    def recognizes(cls, config: Mapping[str, Any], names: frozenset[str]) -> bool:
        return config.get("quant_method") == "bitsandbytes" or bool(config.get("load_in_4bit") or config.get("load_in_8bit"))

    def part(self, name: str) -> tuple[str, str] | None:
        weight, found, rest = name.partition(".weight.")
        if found:
            return f"{weight}.weight", "quant_state" if rest.startswith("quant_state.") else rest
        return super().part(name)

    def read(self, weight: str, parts: Parts) -> Stored:
        return self._rows(weight, parts) if "SCB" in parts else self._blocks(weight, parts)

    def _rows(self, weight: str, parts: Parts) -> Stored:
        codes, scale = self.need(weight, parts, "weight", "SCB")
        scales = scale.float()[:, None] / 127
        codes8 = (codes.int() + 128).to(torch.uint8)

        def dense() -> torch.Tensor:
            return codes.float() * scale.float()[:, None] / 127

        return Stored(dense, integer_scheme(8, 0, False), codes8, scales)

    def _blocks(self, weight: str, parts: Parts) -> Stored:
        packed, absmax, table, state = self.need(weight, parts, "weight", "absmax", "quant_map", "quant_state")
        try:
            facts = json.loads(bytes(state.tolist()))
            shape, size, dtype = tuple(facts["shape"]), int(facts["blocksize"]), DTYPES[facts["dtype"]]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{weight}: its quantization state is damaged: {error}") from error
        if "nested_absmax" in parts:
            nested, levels = self.need(weight, parts, "nested_absmax", "nested_quant_map")
            wide = nested.float().repeat_interleave(int(facts["nested_blocksize"]))[: absmax.numel()]
            absmax = levels.float()[absmax.flatten().long()] * wide + float(facts["nested_offset"])
        flat = packed.flatten().view(torch.uint8)
        codes = torch.stack([flat >> 4, flat & 15], -1).flatten()[: torch.Size(shape).numel()]
        scales = absmax.float().flatten()
        values = table.float()[codes.long()] * scales.repeat_interleave(size)[: codes.numel()]

        def dense() -> torch.Tensor:
            return values.to(dtype).float().reshape(shape)

        n, k = shape
        if facts.get("quant_type") != "nf4" or k % size or not torch.equal(table.float(), torch.tensor(NF4)):
            return Stored(dense, why=f"{facts.get('quant_type')} in blocks of {size}")
        return Stored(dense, Scheme("nf4", size), codes.reshape(shape), scales.reshape(n, k // size))
