"""Gather the rows whose logits are wanted before the last norm, so that it and the head run on them alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.graph import Graph
from ..compiler.ir.ops.index_select import IndexSelect
from ..compiler.ir.rewrite import Rewriter
from .pass_ import Pass


@dataclass(frozen=True)
class GatherLast(Pass):
    """index_select(norm(x), rows) → norm(index_select(x, rows)), when nothing else reads the norm."""

    name: ClassVar[str] = "gather_last"

    def run(self, graph: Graph) -> Graph:
        producers, users = graph.producers(), graph.users()
        rewriter = Rewriter(graph)
        for node in graph.nodes:
            norm = producers.get(node.inputs[0].name) if node.inputs else None
            rowwise = norm is not None and norm.op.name in ("rms_norm", "layer_norm")
            if (
                not isinstance(node.op, IndexSelect)
                or norm is None
                or not rowwise
                or len(users[norm.output.name]) != 1
                or node.op.dim == len(node.output.type.shape) - 1
            ):
                rewriter.keep(node)
                continue
            (rows,) = rewriter.add_as(node, node.op, (norm.inputs[0], node.inputs[1]))
            rewriter.replace(node.output, rewriter.add_as(norm, norm.op, (rows, *norm.inputs[1:]))[0])
        return rewriter.finish()
