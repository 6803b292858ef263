"""Packing an artifact's weights: each spec's static values are evaluated, quantized and packed, one at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...compiler.ir.graph import Graph, Value
from ...compiler.ir.reference import TORCH_DTYPE, Context, ParamSource, evaluate
from ...quant.algorithms.rtn import Codes, quantize
from ...quant.scheme import Scheme
from .lower import WeightSpec
from .packing import interleave_gate, pack_codes, pack_floats, pack_groups, pack_vector


class WeightPacker:
    """Evaluates and packs; keeps the last quantized weight, because its codes, scales and zeros follow each other."""

    def __init__(self, graph: Graph, params: ParamSource) -> None:
        self._graph = graph
        self._types = {p.name[1:]: p.type for p in graph.params}
        self._params = params
        self._last: tuple[tuple[object, ...], list[Codes]] | None = None

    def parameter(self, name: str) -> torch.Tensor:
        """A parameter in the dtype that the graph gives it."""
        tensor = self._params(name)
        return tensor.to(TORCH_DTYPE[self._types[name].dtype]) if tensor.is_floating_point() else tensor

    def value(self, value: Value) -> torch.Tensor:
        """A static value, as the graph computes it."""
        context = Context({}, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
        return evaluate(self._graph, [value], {}, self.parameter, context)[0]

    def pack(self, spec: WeightSpec) -> memoryview:
        """The bytes of one tensor of the artifact."""
        kind, _, detail = spec.pack.partition(":")
        if kind in ("vector", "bias"):
            tensor = self.value(spec.values[0])
            parts = [_gate(t, spec.gated) for t in (tensor if tensor.ndim == 2 and kind == "bias" else [tensor])]
            packed = torch.cat([pack_vector(p, 32 if kind == "bias" else 16) for p in parts])
        elif kind == "integers":
            packed = self.value(spec.values[0]).to(torch.int64).contiguous().view(torch.uint8).flatten()
        elif kind == "input_scale":
            packed = pack_vector(self.stored(spec.values[0]).input_scale)
        elif kind == "floats":
            packed = torch.cat([pack_floats(m, detail) for m in self._matrices(spec)])
        else:
            assert spec.scheme is not None
            packed = torch.cat([_pack_part(kind, codes, spec.scheme) for codes in self._codes(spec, spec.scheme)])
        return memoryview(packed.contiguous().numpy()).cast("B")

    def _matrices(self, spec: WeightSpec) -> Iterator[torch.Tensor]:
        weight = self.value(spec.values[0])
        for matrix in weight if weight.ndim == 3 else [weight]:
            yield _gate(matrix, spec.gated)

    def _codes(self, spec: WeightSpec, scheme: Scheme) -> list[Codes]:
        key = (spec.values, scheme, spec.gated)
        if self._last is None or self._last[0] != key:
            self._last = (key, [quantize(m, scheme) for m in self._matrices(spec)])
        return self._last[1]


def _gate(rows: torch.Tensor, layout: str) -> torch.Tensor:
    """Rows of a gated weight in the order of the packed tiles; "interleaved" ones are sorted into halves first."""
    if layout == "interleaved":
        rows = torch.cat([rows[0::2], rows[1::2]])
    return interleave_gate(rows) if layout else rows


def _pack_part(kind: str, codes: Codes, scheme: Scheme) -> torch.Tensor:
    if kind == "codes":
        return pack_codes(codes, scheme)
    width = torch.float32 if scheme.wide_scales else torch.float16
    if kind == "scales":
        return pack_groups(codes.scales, width)
    if kind == "order":
        assert codes.order is not None
        return codes.order.to(torch.int32).contiguous().view(torch.uint8)
    assert codes.zeros is not None
    if scheme.offset:  # what the sum of a group's activations is multiplied by
        return pack_groups(-codes.zeros * codes.scales, width)
    return pack_groups(codes.zeros, torch.uint8)
