"""AWQ checkpoints by AutoAWQ and GPTQModel: 4-bit codes with zero points, in the layouts of several GPU kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ...errors import CheckpointError, UnsupportedError
from ..algorithms.rtn import Codes
from ..scheme import Scheme, integer_scheme
from ..stored import Stored
from .bits import pack_words, spread, unpack_words
from .format import Format, Parts
from .marlin import read_marlin
from .writer import Writer, one_scheme, zero_points

GEMM_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where outputs 0 … 7 lie in a word
VERSIONS = ("gemm", "gemv", "gemv_fast", "llm-awq", "marlin", "exllama", "exllamav2", "ipex")
AS_GEMM = ("gemm", "exllama", "exllamav2", "ipex")  # kernels that take the gemm layout from disk


class Awq(Format):
    """qweight, qzeros and scales; the `version` says in which order."""

    name: ClassVar[str] = "awq"
    suffixes: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales")

    @classmethod
    def recognizes(cls, config: Mapping[str, Any], names: frozenset[str]) -> bool:
        return config.get("quant_method") == "awq"

    def read(self, weight: str, parts: Parts) -> Stored:
        version = str(self.config.get("version") or self.config.get("checkpoint_format") or "gemm").lower()
        bits, size = int(self.config.get("bits", 4)), int(self.config.get("group_size", 128))
        if version not in VERSIONS or bits != 4:
            raise UnsupportedError(
                f"AWQ checkpoints of the version {version} with {bits} bits are not supported", "save it as gemm"
            )
        if version == "marlin":
            return read_marlin(weight, *self.need(weight, parts, "qweight", "scales"))
        qweight, qzeros, scales = self.need(weight, parts, "qweight", "qzeros", "scales")
        if version in AS_GEMM:
            codes, zeros, scales = _columns(qweight).T, _columns(qzeros).T, scales.T
        elif version == "gemv":
            codes = unpack_words(qweight, 4)
        else:
            return self._fast(qweight, qzeros, scales, size)
        k = codes.shape[1]
        size = k if size < 0 else size
        groups = -(-k // size)
        if version == "gemv":
            zeros, scales = unpack_words(qzeros, 4)[:, :groups], scales[:, :groups]
        scales = scales.float()
        if scales.shape != (codes.shape[0], groups) or zeros.shape != scales.shape:
            raise CheckpointError(
                f"scales {list(scales.shape)} and zero points {list(zeros.shape)} do not fit {list(codes.shape)} codes in groups of {size}"
            )

        def dense() -> torch.Tensor:
            return (codes - spread(zeros, size, k)).float() * spread(scales, size, k)

        scheme = integer_scheme(4, 0 if size >= k else size, True)
        return Stored(dense, scheme, codes.to(torch.uint8).contiguous(), scales.contiguous(), zeros.float().contiguous())

    def _fast(self, qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, size: int) -> Stored:
        """gemv_fast: int16 [N/4, K], four outputs interleaved in strides of 64; qzeros are −zero·scale in float16."""
        codes = _deinterleave(qweight)
        _n, k = codes.shape
        size = k if size < 0 else size
        groups = -(-k // size)
        if scales.ndim != 2 or scales.shape[0] < groups or scales.shape[0] >= 2 * max(groups, 8) or scales.shape != qzeros.shape:
            raise CheckpointError(f"scales {list(scales.shape)} do not fit {list(codes.shape)} codes in groups of {size}")
        scale, offset = scales[:groups].T.float(), qzeros[:groups].T.float()

        def dense() -> torch.Tensor:
            return codes.float() * spread(scale, size, k) + spread(offset, size, k)

        scheme = integer_scheme(4, 0 if size >= k else size, True)
        return Stored(dense, scheme, codes.to(torch.uint8), scale.contiguous(), offsets=offset.contiguous())


def _columns(words: torch.Tensor) -> torch.Tensor:
    """Words of eight outputs in AWQ's order → one column an output."""
    rows, cols = words.shape
    return unpack_words(words, 4).reshape(rows, cols, 8)[..., list(GEMM_ORDER)].reshape(rows, cols * 8)


def _deinterleave(packed: torch.Tensor, interleave: int = 4, stride: int = 64) -> torch.Tensor:
    """The inverse of AutoAWQ's pack_intweight: int16 [N/4, K] → codes [N, K]."""
    rows, k = packed.shape
    n = rows * interleave
    values = packed.reshape(rows, k // stride, stride, 1).long() & 0xFFFF
    quads = torch.cat([(values >> (4 * i)) & 15 for i in range(4)], -1)  # [N/4, K/64, 64, 4]
    x = quads.reshape(rows, k // stride, interleave, stride).permute(0, 2, 1, 3).reshape(n, k)
    x = x.reshape(n, k // 32, 4, 2, 4).permute(0, 1, 2, 4, 3).reshape(n, k)  # undoes [0, 2, 4, 6, 1, 3, 5, 7]
    x = x.reshape(n, k // 32, 4, 4, 2).permute(0, 1, 3, 2, 4)
    return x.reshape(n, k).int()


class AwqWriter(Writer):
    """4 bits in the gemm layout; zero points may be those of a symmetric scheme."""

    name: ClassVar[str] = "awq"

    def parts(self, codes: Codes, scheme: Scheme) -> dict[str, torch.Tensor]:
        n, k = codes.codes.shape
        if scheme.kind != "int4":
            raise self.refuse(scheme, "it has 4-bit integers", "use int4:g128:asym, or another format")
        if n % 8 or k % (scheme.group or k):
            raise self.refuse(
                scheme, f"a weight [{n}, {k}] does not fill its words and groups", "choose other groups, or leave that module out"
            )
        return {
            "qweight": _words(codes.codes.T.int()),
            "qzeros": _words(zero_points(codes, scheme).T),
            "scales": codes.scales.T.half().contiguous(),
        }

    def config(self, schemes: Mapping[str, Scheme], plain: list[str]) -> dict[str, Any]:
        scheme = one_scheme(self, schemes)
        return {
            "quant_method": "awq", "bits": 4, "group_size": scheme.group or -1, "zero_point": True, "version": "gemm",
            "modules_to_not_convert": plain or None,
        }  # fmt: skip


def _words(values: torch.Tensor) -> torch.Tensor:
    """The inverse of _columns."""
    rows, cols = values.shape
    ordered = torch.empty(rows, cols // 8, 8, dtype=torch.int32)
    ordered[..., list(GEMM_ORDER)] = values.reshape(rows, cols // 8, 8).int()
    return pack_words(ordered.reshape(rows, cols), 4)
