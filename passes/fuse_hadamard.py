"""Fuse a Hadamard transform into the linears that read it, where it happens as the activations are rounded for the product."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..compiler.ir.graph import Graph
from ..compiler.ir.ops.hadamard import Hadamard
from ..compiler.ir.ops.linear import Linear
from ..compiler.ir.rewrite import Rewriter
from .pass_ import Pass


@dataclass(frozen=True)
class FuseHadamard(Pass):
    """linear(hadamard(x)) → a linear with a `hadamard` block."""

    name: ClassVar[str] = "fuse_hadamard"

    def run(self, graph: Graph) -> Graph:
        producers = graph.producers()
        rewriter = Rewriter(graph)
        for node in graph.nodes:
            made = producers.get(node.inputs[0].name) if isinstance(node.op, Linear) else None
            if made is None or not isinstance(made.op, Hadamard) or made.output in node.inputs[1:]:
                rewriter.keep(node)
                continue
            assert isinstance(node.op, Linear)
            op = replace(node.op, hadamard=made.op.block)
            rewriter.replace(node.output, rewriter.add_as(node, op, (made.inputs[0], *node.inputs[1:]))[0])
        return rewriter.finish()
