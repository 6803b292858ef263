"""What writing a format is: codes and scales as the tensors and the configuration that other tools read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ...errors import UnsupportedError
from ..algorithms.rtn import Codes
from ..scheme import Scheme


class Writer(ABC):
    """Writes one format. `dtype` is that of the tensors that stay unquantized."""

    name: ClassVar[str]
    dtype: torch.dtype

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    @abstractmethod
    def parts(self, codes: Codes, scheme: Scheme) -> dict[str, torch.Tensor]:
        """The tensors of one weight [N, K], by the ending that follows the module's name.

        Raises UnsupportedError for a scheme or shape that the format has no place for.
        """

    @abstractmethod
    def config(self, schemes: Mapping[str, Scheme], plain: list[str]) -> dict[str, Any]:
        """config.json's quantization_config for these modules; linears in `plain` are not quantized."""

    def refuse(self, scheme: Scheme, why: str, hint: str) -> UnsupportedError:
        return UnsupportedError(f"the format {self.name} cannot hold {scheme}: {why}", hint)


def zero_points(codes: Codes, scheme: Scheme) -> torch.Tensor:
    """[N, G] int32, in units of codes."""
    if codes.zeros is None:
        return torch.full(codes.scales.shape, 1 << (scheme.bits - 1), dtype=torch.int32)
    return codes.zeros.int()


def one_scheme(writer: Writer, schemes: Mapping[str, Scheme]) -> Scheme:
    """The scheme of all modules; raises UnsupportedError where there are several."""
    found = sorted({str(s) for s in schemes.values()})
    if len(found) > 1:
        raise UnsupportedError(f"the format {writer.name} holds one scheme, not {' and '.join(found)}", "use compressed-tensors")
    return next(iter(schemes.values()))
