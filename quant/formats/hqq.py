"""HQQ checkpoints, by transformers (safetensors) and by the hqq library (qmodel.pt): zero points are floating-point numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ...errors import CheckpointError, UnsupportedError
from ..scheme import Scheme
from ..stored import Stored
from .format import Format, Parts

PACKED = ("W_q", "scale", "zero", "shape", "nbits", "group_size", "axis", "packing")
FACTS = ("axis", "channel_wise", "compute_dtype", "encoded_state_dict", "group_size", "nbits", "offload_meta", "optimize", "packing", "quant_scale", "quant_zero", "round_zero", "shape", "stores_quant_config", "unpack_view_dtype", "view_as_float")  # fmt: skip


class Hqq(Format):
    """value = (code − zero)·scale in the dtype of the scales; codes packed along the first dimension of [groups, size]."""

    name: ClassVar[str] = "hqq"
    suffixes: ClassVar[tuple[str, ...]] = ("W_q", "scale", "zero", *FACTS)

    @classmethod
    def recognizes(cls, config: Mapping[str, Any], names: frozenset[str]) -> bool:
        return config.get("quant_method") == "hqq" or any(n.endswith(".W_q") for n in names)

    def read(self, weight: str, parts: Parts) -> Stored:
        packed, scale, zero, shape, bits, axis = self.need(weight, parts, "W_q", "scale", "zero", "shape", "nbits", "axis")
        if any(int(parts[name]().flatten()[0]) for name in ("quant_scale", "quant_zero") if name in parts):
            raise UnsupportedError(f"{weight}: HQQ with quantized scales or zero points is not supported")
        if "view_as_float" in parts and packed.is_floating_point():
            packed = packed.view(torch.int32 if int(bits) == 3 else torch.uint8)
        n, k = (int(v) for v in shape)
        size = int(parts["group_size"]()) if "group_size" in parts and parts["group_size"]().numel() else 0
        across = int(axis) == 0
        size = size or (n if across else k)
        codes = _unpack(packed, int(bits))
        rows = n * k // size
        codes = codes[:, :rows] if across else codes[:rows]
        if codes.numel() != n * k:
            raise CheckpointError(f"{weight}: {codes.numel()} codes are stored for {n} outputs and {k} inputs")

        def dense() -> torch.Tensor:
            return ((codes.to(scale.dtype) - zero) * scale).reshape(n, k).float()

        if across or k % size:
            return Stored(dense, why="its groups lie across outputs")
        scales = scale.float().reshape(n, k // size)
        return Stored(
            dense,
            Scheme(f"int{int(bits)}", 0 if size == k else size, True),
            codes.to(torch.uint8).reshape(n, k),
            scales,
            offsets=-zero.float().reshape(n, k // size) * scales,
        )


def _unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes of [rows, columns] packed in stripes of rows, the first stripe in the highest bits."""
    if bits in (5, 6, 7, 8):  # a byte each
        return packed.view(torch.uint8)
    if bits not in (1, 2, 3, 4):
        raise UnsupportedError(f"HQQ weights of {bits} bits are not supported")
    count = {4: 2, 2: 4, 1: 8, 3: 10}[bits]
    wide = packed.long() & (0xFFFFFFFF if bits == 3 else 0xFF)
    top = bits * (count - 1)
    return torch.cat([(wide >> (top - bits * i)) & ((1 << bits) - 1) for i in range(count)], 0)
