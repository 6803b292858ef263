"""Fuse a norm into the linears that read it, where it happens as the activations are rounded for the product."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..compiler.ir.graph import Graph, Node
from ..compiler.ir.ops.layer_norm import LayerNorm
from ..compiler.ir.ops.linear import Linear
from ..compiler.ir.ops.rms_norm import RmsNorm
from ..compiler.ir.rewrite import Rewriter
from .pass_ import Pass


@dataclass(frozen=True)
class FuseNorm(Pass):
    """linear(norm(x)) → a linear with a norm, when only linears read the norm."""

    name: ClassVar[str] = "fuse_norm"

    def run(self, graph: Graph) -> Graph:
        producers, users = graph.producers(), graph.users()
        outputs = {v.name for v in graph.outputs}
        rewriter = Rewriter(graph)
        for node in graph.nodes:
            norm = producers.get(node.inputs[0].name) if node.inputs else None
            if (
                not isinstance(node.op, Linear)
                or node.op.norm
                or norm is None
                or not _fusible(norm)
                or norm.output.name in outputs
            ):
                rewriter.keep(node)
                continue
            if not all(
                isinstance(u.op, Linear) and u.inputs[0] == norm.output and norm.output not in u.inputs[1:]
                for u in users[norm.output.name]
            ):
                rewriter.keep(node)
                continue
            bias = isinstance(norm.op, LayerNorm) and norm.op.bias
            kind = "rms" if isinstance(norm.op, RmsNorm) else "layer"
            assert isinstance(norm.op, RmsNorm | LayerNorm)
            op = replace(node.op, norm=kind, eps=norm.op.eps, norm_weight=norm.op.weight, norm_bias=bias)
            made = rewriter.add_as(node, op, (norm.inputs[0], node.inputs[1], *norm.inputs[1:], *node.inputs[2:]))
            rewriter.replace(node.output, made[0])
        return rewriter.finish()


def _fusible(node: Node) -> bool:
    return isinstance(node.op, LayerNorm) or (isinstance(node.op, RmsNorm) and not node.op.l2)
