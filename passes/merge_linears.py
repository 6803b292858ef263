"""Linears that read the same value become one with the rows of all: q, k and v are read in one product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.graph import Graph, Node, Value
from ..compiler.ir.ops.concat import Concat
from ..compiler.ir.ops.linear import Linear
from ..compiler.ir.ops.slice import Slice
from ..compiler.ir.rewrite import Rewriter
from .hoist import hoisted
from .pass_ import Pass


@dataclass(frozen=True)
class MergeLinears(Pass):
    """Same input, same attributes (scheme included), same weight dtype, no epilogue → one linear and slices of its output."""

    name: ClassVar[str] = "merge_linears"

    def run(self, graph: Graph) -> Graph:
        graph = hoisted(graph)
        static = graph.static_values()
        groups: dict[tuple[object, ...], list[Node]] = {}
        for node in graph.find("linear"):
            assert isinstance(node.op, Linear)
            if not (node.op.act or node.op.gated or node.op.residual) and all(v.name in static for v in node.inputs[1:]):
                groups.setdefault((node.inputs[0].name, node.op, node.inputs[1].type.dtype), []).append(node)
        member = {n.output.name: g for g in groups.values() if len(g) > 1 for n in g}
        rewriter = Rewriter(graph)
        for node in graph.nodes:
            group = member.get(node.outputs[0].name)
            if group is None:
                rewriter.keep(node)
            elif node is group[0]:
                _merge(rewriter, group)
        return rewriter.finish()


def _merge(rewriter: Rewriter, group: list[Node]) -> None:
    first = group[0]
    scope = "+".join(dict.fromkeys(n.scope for n in group))
    joined: list[Value] = []
    for operands in zip(*(n.inputs[1:] for n in group), strict=True):
        joined += rewriter.add(Concat(0), operands, scope)
    (merged,) = rewriter.add(first.op, (first.inputs[0], *joined), scope, first.source)
    start = 0
    dim = len(merged.type.shape) - 1
    for node in group:
        width = node.output.type.shape[-1]
        assert isinstance(width, int)
        (part,) = rewriter.add(Slice(dim, start, start + width), (merged,), node.scope)
        rewriter.replace(node.output, part)
        start += width
