"""torchao checkpoints in safetensors: each weight names its tensor class, and its parts, in the file's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ...errors import UnsupportedError
from ..scheme import Scheme, integer_scheme
from ..stored import Stored
from .format import Format, Parts

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TorchAo(Format):
    """Int8Tensor, IntxUnpackedToInt8Tensor and Float8Tensor: qdata, scale and zero_point, one scale a block of K."""

    name: ClassVar[str] = "torchao"
    suffixes: ClassVar[tuple[str, ...]] = ("qdata", "scale", "zero_point")

    @classmethod
    def recognizes(cls, config: Mapping[str, Any], names: frozenset[str]) -> bool:
        return config.get("quant_method") == "torchao"

    def part(self, name: str) -> tuple[str, str] | None:
        module, _, last = name.rpartition(".")
        for suffix in self.suffixes:
            if last.startswith("_") and last.endswith(f"_{suffix}"):
                return f"{module}.{last[1 : -len(suffix) - 1]}", suffix
        return None

    def read(self, weight: str, parts: Parts) -> Stored:
        facts = json.loads(self.metadata.get(weight, "{}"))
        kind, data = facts.get("_type"), facts.get("_data", {})
        if kind not in ("Int8Tensor", "IntxUnpackedToInt8Tensor", "Float8Tensor"):
            raise UnsupportedError(
                f"{weight} is a torchao {kind}, which is not supported", "save it with int8, intx or float8 weights"
            )
        codes, scale = self.need(weight, parts, "qdata", "scale")
        dtype = DTYPES[data["dtype"]["_data"]]
        n, k = codes.shape
        size = int(data["block_size"][-1])
        full = scale.repeat_interleave(n // scale.shape[0], 0).repeat_interleave(size, 1)[:, :k]
        if kind == "Float8Tensor":

            def values() -> torch.Tensor:
                return (codes.float() * full.float()).to(dtype).float()

            scheme = Scheme("fp8_e4m3", 0 if size >= k else size)
            return Stored(values, scheme, codes.view(torch.uint8), full[:, ::size].float().contiguous())
        bits = 8
        if kind == "IntxUnpackedToInt8Tensor":
            bits = int(str(data["target_dtype"]["_data"]).removeprefix("int"))
        zeros = parts["zero_point"]().int() if "zero_point" in parts else None
        spread = zeros.repeat_interleave(n // zeros.shape[0], 0).repeat_interleave(size, 1)[:, :k] if zeros is not None else 0

        def dense() -> torch.Tensor:
            return ((codes.int() - spread).to(scale.dtype) * full).to(dtype).float()

        offset = 1 << (bits - 1)
        rounded = {"int8_asym_per_token": "int8-asym", "int8_sym_per_token": "int8"}.get(
            str(data.get("activation_quantization")), ""
        )
        symmetric = zeros is None or not bool(zeros.any())
        scales = full[:, ::size].float().contiguous()
        stored_zeros = None if zeros is None or symmetric else (zeros + offset).float().expand(n, -1).contiguous()
        return Stored(
            dense,
            integer_scheme(bits, 0 if size >= k else size, not symmetric).with_activations(rounded),
            (codes.int() + offset).to(torch.uint8),
            scales,
            stored_zeros,
        )
