"""Fuse the residual addition into the linear before it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..compiler.ir.graph import Graph
from ..compiler.ir.ops.linear import Linear
from ..compiler.ir.ops.pointwise import Pointwise
from ..compiler.ir.rewrite import Rewriter
from .pass_ import Pass


@dataclass(frozen=True)
class FuseResidual(Pass):
    """linear(x) + r → linear with a residual operand, when nothing else reads the product."""

    name: ClassVar[str] = "fuse_residual"

    def run(self, graph: Graph) -> Graph:
        producers, users = graph.producers(), graph.users()
        static = graph.static_values()
        rewriter = Rewriter(graph)
        taken: set[str] = set()
        for node in graph.nodes:
            if not isinstance(node.op, Pointwise) or node.op.fn != "add" or node.inputs[0] == node.inputs[1]:
                rewriter.keep(node)
                continue
            for product, residual in (node.inputs[::-1], node.inputs):
                linear = producers.get(product.name)
                if linear is None or not isinstance(linear.op, Linear) or linear.op.residual or product.name in taken:
                    continue
                if len(users[product.name]) != 1 or residual.type != product.type or residual.name in static:
                    continue
                taken.add(product.name)
                fused = rewriter.add_as(linear, replace(linear.op, residual=True), (*linear.inputs, residual))
                rewriter.replace(node.output, fused[0])
                break
            else:
                rewriter.keep(node)
        return rewriter.finish()
