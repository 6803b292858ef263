"""Rows of a table by integer index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..op import Op, require
from ..reference import Context
from ..types import TensorType


@dataclass(frozen=True)
class Embedding(Op):
    """table [V, H], index [...] → [..., H]. `scheme` is the storage scheme of the table ("" keeps its dtype)."""

    name: ClassVar[str] = "embedding"
    scheme: str = ""

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        table, index = inputs
        require(len(table.shape) == 2 and not index.is_float, f"embedding of {index} in {table}")
        return (TensorType(table.dtype, (*index.shape, table.shape[1])),)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.nn.functional.embedding(inputs[1], inputs[0]),)
