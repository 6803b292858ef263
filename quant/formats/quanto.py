"""optimum-quanto checkpoints: 8-bit integers and fp8, by channel or tensor. quanto_qmap.json names the modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ...errors import CheckpointError, UnsupportedError
from ..scheme import Scheme
from ..stored import Stored
from .format import Format, Parts

KINDS = {torch.int8: "int8", torch.float8_e4m3fn: "fp8_e4m3", torch.float8_e5m2: "fp8_e5m2"}


class Quanto(Format):
    """value = code·scale in the dtype of the scales. Sources: optimum-quanto 0.2.7, tensor/weights/qbytes.py and models/transformers_models.py."""

    name: ClassVar[str] = "quanto"
    suffixes: ClassVar[tuple[str, ...]] = ("_data", "_scale", "_shift", "input_scale", "output_scale")

    @classmethod
    def recognizes(cls, config: Mapping[str, Any], names: frozenset[str]) -> bool:
        return config.get("quant_method") == "quanto" or any(n.endswith(".weight._scale") for n in names)

    def part(self, name: str) -> tuple[str, str] | None:
        module, _, suffix = name.rpartition(".")
        if suffix in ("input_scale", "output_scale"):
            return f"{module}.weight", suffix
        return (module.removesuffix("._data"), suffix) if suffix in self.suffixes else None

    def complete(self, parts: Parts) -> bool:
        return "_data" in parts

    def read(self, weight: str, parts: Parts) -> Stored:
        if "_shift" in parts:
            raise UnsupportedError(
                f"{weight}: quanto's weights of 2 and 4 bits are not supported: their files do not say how many inputs there are",
                "quantize the original with llmc: --quant int4:g128:asym",
            )
        data, scale = self.need(weight, parts, "_data", "_scale")
        kind = KINDS.get(data.dtype)
        if kind is None or data.ndim != 2 or scale.numel() not in (1, data.shape[0]):
            raise CheckpointError(
                f"{weight}: {list(data.shape)} {data.dtype} with {scale.numel()} scales is no weight of quanto's"
            )

        def dense() -> torch.Tensor:
            return (scale * data.to(scale.dtype)).float()

        codes = data.view(torch.uint8) ^ (128 if kind == "int8" else 0)
        scales = scale.float().reshape(-1, 1).expand(data.shape[0], 1).contiguous()
        static = any(name in parts and float(parts[name]()) != 1.0 for name in ("input_scale", "output_scale"))
        note = "quanto rounds the activations of its products to 8 bits; they stay in bfloat16 here" if static else ""
        return Stored(dense, Scheme(kind), codes, scales, note=note)
