"""Checking that a region of a graph computes what a pass believes: both sides are run on random numbers in float64."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch

from ..compiler.ir.graph import Graph, Value
from ..compiler.ir.reference import TORCH_DTYPE, Context, evaluate


class Probe:
    """Evaluates values of one graph with chosen values for others.

    Parameters that no checkpoint holds keep their real values (`buffers`: rotary frequencies and scales lie there);
    weights are random, the same at each call.
    """

    def __init__(self, graph: Graph, buffers: Mapping[str, torch.Tensor]) -> None:
        self.graph = graph
        self._buffers = buffers
        self._types = {p.name[1:]: p.type for p in graph.params}

    def parameter(self, name: str) -> torch.Tensor:
        if name in self._buffers:
            return self._buffers[name]
        kind = self._types[name]
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return torch.randn(kind.concrete({}), generator=generator).to(TORCH_DTYPE[kind.dtype])

    def evaluate(self, value: Value, bindings: Mapping[Value, torch.Tensor], positions: torch.Tensor) -> torch.Tensor:
        """`value` in float64 with `bindings` given, for tokens at `positions` [T]."""
        count = positions.numel()
        context = Context({"T": count, "R": count}, positions, torch.zeros(count, dtype=torch.int64), torch.float64)
        bound = {v.name: t for v, t in bindings.items()}
        bound.setdefault("%position_ids", positions[None])
        bound.setdefault("%logits_rows", torch.arange(count))
        return evaluate(self.graph, [value], bound, self.parameter, context)[0]

    def random(self, value: Value, tokens: int, seed: int = 0) -> torch.Tensor:
        shape = value.type.concrete({"T": tokens, "R": tokens})
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-9) -> bool:
    """Whether two float64 results agree to rounding."""
    return (
        a.shape == b.shape
        and bool(torch.isfinite(a).all())
        and float((a - b).abs().max()) <= tolerance * (1 + float(b.abs().max()))
    )
