"""GPTQ checkpoints by AutoGPTQ, GPTQModel and optimum: codes packed along K, zero points along N, optional act-order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ...errors import CheckpointError, UnsupportedError
from ..scheme import integer_scheme
from ..stored import Stored
from .bits import unpack_stream
from .format import Format, Parts

FORMATS = ("", "gptq", "gptq_v2")


class Gptq(Format):
    """qweight [K·bits/32, N], qzeros [G, N·bits/32], scales [G, N], g_idx [K]. Version 1 stores zero points less one.

    GPTQModel rounds the scales to bfloat16 when it loads them; AutoGPTQ does not, and takes a stored zero point of −1 for 2^bits.
    """

    name: ClassVar[str] = "gptq"
    suffixes: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales", "g_idx")

    @classmethod
    def recognizes(cls, config: Mapping[str, Any], names: frozenset[str]) -> bool:
        return config.get("quant_method") == "gptq"

    def read(self, weight: str, parts: Parts) -> Stored:
        form = str(self.config.get("checkpoint_format") or "")
        if form not in FORMATS:
            raise UnsupportedError(f"GPTQ checkpoints in the {form} format are not supported", "save it as gptq")
        bits = int(self.config["bits"])
        qweight, qzeros, scales = self.need(weight, parts, "qweight", "qzeros", "scales")
        codes = unpack_stream(qweight.T.contiguous(), bits)
        n, k = codes.shape
        groups = parts["g_idx"]().long() if "g_idx" in parts else None
        size = int(self.config.get("group_size", -1))
        size = k if size < 0 else size
        plain = torch.arange(k) // size
        if groups is None or torch.equal(groups, plain):
            groups = None
        by_gptqmodel = "meta" in self.config
        if form != "gptq_v2" and by_gptqmodel and 32 % bits == 0:
            qzeros = (qzeros.long() + sum(1 << i for i in range(0, 32, bits))).int()  # as it does: a carry goes on to the next
        zeros = unpack_stream(qzeros, bits)[:, :n].T
        if form != "gptq_v2" and not (by_gptqmodel and 32 % bits == 0):
            zeros = zeros + 1
        index = plain if groups is None else groups
        if scales.shape != (zeros.shape[1], n) or int(index.max()) >= zeros.shape[1] or int(index.min()) < 0:
            raise CheckpointError(f"{weight}: its scales {list(scales.shape)} do not fit {n} outputs and {k} inputs")
        if by_gptqmodel:
            scales = scales.bfloat16()
        scales = scales.float().T

        def dense() -> torch.Tensor:
            return (codes - zeros[:, index]).float() * scales[:, index]

        symmetric = bool((zeros == 1 << (bits - 1)).all())
        return Stored(
            dense, integer_scheme(bits, 0 if size >= k else size, not symmetric), codes.to(torch.uint8), scales.contiguous(),
            None if symmetric else zeros.float().contiguous(), groups=groups,
        )  # fmt: skip
