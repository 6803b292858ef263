"""GPTQ checkpoints by AutoGPTQ, GPTQModel and optimum: codes packed along K, zero points along N, optional act-order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ...errors import CheckpointError, UnsupportedError
from ..algorithms.rtn import Codes
from ..scheme import Scheme, integer_scheme
from ..stored import Stored
from .bits import pack_stream, unpack_stream
from .format import Format, Parts
from .marlin import read_marlin
from .writer import Writer, zero_points

FORMATS = ("", "gptq", "gptq_v2", "marlin")


class Gptq(Format):
    """qweight [K·bits/32, N], qzeros [G, N·bits/32], scales [G, N], g_idx [K]. Version 1 stores zero points less one.

    GPTQModel rounds the scales to bfloat16 when it loads them; AutoGPTQ does not, and takes a stored zero point of −1 for 2^bits.
    """

    name: ClassVar[str] = "gptq"
    suffixes: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales", "g_idx", "B", "s", "workspace")

    @classmethod
    def recognizes(cls, config: Mapping[str, Any], names: frozenset[str]) -> bool:
        return config.get("quant_method") == "gptq"

    def _settings(self, module: str) -> Mapping[str, Any]:
        """The configuration of one module: GPTQModel's `dynamic` has exceptions, "+:PATTERN" or "PATTERN"."""
        exceptions: Mapping[str, Any] = self.config.get("dynamic") or {}
        found: Any = next((v for p, v in exceptions.items() if re.match(p.removeprefix("+:"), module)), {})
        return {**self.config, **found} if isinstance(found, dict) else self.config

    def read(self, weight: str, parts: Parts) -> Stored:
        by_optimum = any(str(q).startswith("optimum") for q in (self.config.get("meta") or {}).get("quantizer", ()))
        stale = by_optimum and self.config.get(
            "sym", True
        )  # it saves such with zero points of version 1, whatever its `format` says
        form = str(self.config.get("checkpoint_format") or ("" if stale else self.config.get("format")) or "")
        form = "marlin" if self.config.get("is_marlin_format") else form
        if form not in FORMATS:
            raise UnsupportedError(f"GPTQ checkpoints in the {form} format are not supported", "save it as gptq")
        if form == "marlin":
            return read_marlin(weight, *self.need(weight, parts, *(("B", "s") if "B" in parts else ("qweight", "scales"))))
        config = self._settings(weight.removesuffix(".weight"))
        bits = int(config["bits"])
        if bits not in (2, 3, 4, 5, 6, 7, 8):
            raise UnsupportedError(f"GPTQ weights of {bits} bits are not supported")
        qweight, qzeros, scales = self.need(weight, parts, "qweight", "qzeros", "scales")
        codes = unpack_stream(qweight.T.contiguous(), bits)
        n, k = codes.shape
        groups = parts["g_idx"]().long() if "g_idx" in parts else None
        size = int(config.get("group_size", -1))
        size = k if size < 0 else size
        if size == 0:
            raise CheckpointError("config.json says groups of 0 inputs")
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


class GptqWriter(Writer):
    """2, 3, 4 or 8 bits. Symmetric weights are version 1, which every reader takes; asymmetric ones version 2, which has a zero point of 0."""

    name: ClassVar[str] = "gptq"

    def parts(self, codes: Codes, scheme: Scheme) -> dict[str, torch.Tensor]:
        n, k = codes.codes.shape
        if not scheme.is_integer or scheme.bits not in (2, 3, 4, 8):
            raise self.refuse(scheme, "it has integers of 2, 3, 4 and 8 bits", "use int4:g128, or --format compressed-tensors")
        if n % 32 or k % 32 or (scheme.group and k % scheme.group):
            raise self.refuse(
                scheme, f"a weight [{n}, {k}] does not fill its words and groups", "choose other groups, or leave that module out"
            )
        zeros = zero_points(codes, scheme)
        return {
            "qweight": pack_stream(codes.codes.int(), scheme.bits).T.contiguous(),
            "qzeros": pack_stream(zeros.T.contiguous() - (0 if scheme.asymmetric else 1), scheme.bits),
            "scales": codes.scales.T.half().contiguous(),
            "g_idx": (torch.arange(k) // (scheme.group or k)).int(),
        }

    def config(self, schemes: Mapping[str, Scheme], plain: list[str]) -> dict[str, Any]:
        def facts(scheme: Scheme) -> dict[str, Any]:
            return {"bits": scheme.bits, "group_size": scheme.group or -1, "sym": not scheme.asymmetric}

        counts: dict[Scheme, int] = {}
        for scheme in schemes.values():
            counts[scheme] = counts.get(scheme, 0) + 1
        most = max(counts, key=lambda s: (counts[s], str(s)))
        versions = {s.asymmetric for s in counts}
        if len(versions) > 1:
            raise UnsupportedError(
                "the format gptq holds symmetric or asymmetric weights, not both", "use --format compressed-tensors"
            )
        others: dict[str, Any] = {f"+:^{re.escape(m)}$": facts(s) for m, s in sorted(schemes.items()) if s != most}
        others |= {f"-:^{re.escape(m)}$": {} for m in plain if m != "lm_head"}
        form = "gptq_v2" if most.asymmetric else "gptq"
        return {
            "quant_method": "gptq", **facts(most), "desc_act": False, "lm_head": "lm_head" in schemes, "checkpoint_format": form,
            "pack_dtype": "int32", **({"dynamic": others} if others else {}),
        }  # fmt: skip
