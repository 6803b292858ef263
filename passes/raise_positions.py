"""Tokens that a model numbers by their place in the batch: in a step that packs sequences, the number is their position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.graph import Graph, Node, Value
from ..compiler.ir.ops.cast import Cast
from ..compiler.ir.ops.cumsum import Cumsum
from ..compiler.ir.ops.full import Full
from ..compiler.ir.ops.iota import Iota
from ..compiler.ir.ops.pointwise import Pointwise
from ..compiler.ir.ops.view import View
from ..compiler.ir.rewrite import Rewriter
from ..compiler.ir.types import Sym, TensorType
from .hoist import hoisted
from .pass_ import Pass


@dataclass(frozen=True)
class RaisePositions(Pass):
    """0, 1, 2 … over T, or the running sum of ones over T → position_ids (plus where it starts).

    Runs after attention is raised, which sees such numbers in masks; what relates tokens to each other otherwise is refused later.
    """

    name: ClassVar[str] = "raise_positions"

    def run(self, graph: Graph) -> Graph:
        graph = hoisted(graph)
        made = graph.producers()
        starts = {n.outputs[0].name: s for n in graph.nodes if (s := _start(n, made)) is not None}
        if not starts:
            return graph
        rewriter = Rewriter(graph)
        for node in graph.nodes:
            if node.outputs[0].name in starts:
                rewriter.replace(node.outputs[0], _positions(rewriter, node, starts[node.outputs[0].name]))
            else:
                rewriter.keep(node)
        return rewriter.finish()


def _start(node: Node, made: dict[str, Node]) -> int | None:
    """What the first token is numbered with; None for any other node."""
    if isinstance(node.op, Iota) and node.op.step == 1 and _over_tokens(node.outputs[0], 0):
        return node.op.start
    if isinstance(node.op, Cumsum) and _over_tokens(node.outputs[0], node.op.dim):
        summed = made.get(node.inputs[0].name)
        while summed is not None and summed.op.name in ("cast", "expand", "view"):
            summed = made.get(summed.inputs[0].name)
        if summed is not None and isinstance(summed.op, Full) and summed.op.value == 1:
            return 1
    return None


def _over_tokens(value: Value, dim: int) -> bool:
    others = [d for i, d in enumerate(value.type.shape) if i != dim]
    return value.type.shape[dim] == Sym("T") and all(d == 1 for d in others)


def _positions(rewriter: Rewriter, node: Node, start: int) -> Value:
    kind = node.outputs[0].type
    value = rewriter.graph.input("position_ids")
    if kind.shape != value.type.shape:
        (value,) = rewriter.add_as(node, View(",".join(map(str, kind.shape))), (value,))
    if kind.dtype != value.type.dtype:
        (value,) = rewriter.add_as(node, Cast(kind.dtype), (value,))
    if start:
        (number,) = rewriter.add_as(node, Full(str(TensorType(kind.dtype, ())), float(start)), ())
        (value,) = rewriter.add_as(node, Pointwise("add", kind.dtype), (value, number))
    return value
