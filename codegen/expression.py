"""Pointwise expressions: what a generated loop computes for each element."""

from __future__ import annotations

from dataclasses import dataclass

from ..compiler.ir.types import Dim
from .layout import Layout


@dataclass(frozen=True)
class Expr:
    """A pointwise expression: a leaf (a layout, or a number) or a function of others. dtype is a storage dtype."""

    dtype: str
    shape: tuple[Dim, ...]
    fn: str = ""
    args: tuple[Expr, ...] = ()
    leaf: Layout | None = None
    number: float | None = None

    def leaves(self) -> list[Layout]:
        found = [self.leaf] if self.leaf is not None else []
        for a in self.args:
            found += [leaf for leaf in a.leaves() if leaf not in found]
        return found
