"""Simplify: dead code, common subexpressions, and views, permutations and arithmetic that change nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.graph import Graph, Node, Value
from ..compiler.ir.ops.cast import Cast
from ..compiler.ir.ops.concat import Concat
from ..compiler.ir.ops.expand import Expand
from ..compiler.ir.ops.full import Full
from ..compiler.ir.ops.linear import Linear
from ..compiler.ir.ops.permute import Permute
from ..compiler.ir.ops.pointwise import Pointwise
from ..compiler.ir.ops.rms_norm import RmsNorm
from ..compiler.ir.ops.slice import Slice
from ..compiler.ir.ops.view import View
from ..compiler.ir.rewrite import Rewriter
from ..compiler.ir.types import Sym
from .pass_ import Pass


@dataclass(frozen=True)
class Simplify(Pass):
    """One walk in order; each node is replaced by a value it equals, or by a shorter node."""

    name: ClassVar[str] = "simplify"

    def run(self, graph: Graph) -> Graph:
        rewriter = Rewriter(graph)
        made: dict[str, Node] = {}
        seen: dict[tuple[object, ...], tuple[Value, ...]] = {}
        for node in graph.nodes:
            inputs = tuple(rewriter.resolve(v) for v in node.inputs)
            node = Node(node.op, inputs, node.outputs, node.scope, node.source)
            same = _identity(node, made)
            if same is not None:
                rewriter.replace(node.output, same)
                continue
            node = _shorter(node, made)
            node = _inside_out(node, made, rewriter)
            key = (node.op, tuple(v.name for v in node.inputs))
            if key in seen:
                for old, new in zip(node.outputs, seen[key], strict=True):
                    rewriter.replace(old, new)
                continue
            kept = rewriter.keep(node)
            seen[key] = kept.outputs
            made.update({o.name: kept for o in kept.outputs})
        return rewriter.finish()


def _inside_out(node: Node, made: dict[str, Node], rewriter: Rewriter) -> Node:
    """Move layout behind what works row by row: a linear of [T, K] becomes one of [1, T, K], norm(permute(x)) permute(norm(x))."""
    before = made.get(node.inputs[0].name) if node.inputs else None
    if (
        isinstance(node.op, Linear)
        and not node.op.residual
        and len(node.inputs[0].type.shape) == 2
        and node.inputs[0].type.shape[0] == Sym("T")
    ):
        x = node.inputs[0]
        inner = before.inputs[0] if before is not None and isinstance(before.op, View) else x
        if inner.type.shape != (1, *x.type.shape):
            (inner,) = rewriter.add_as(node, View(",".join(map(str, (1, *x.type.shape)))), (inner,))
            made[inner.name] = rewriter.nodes[-1]
        (inner,) = rewriter.add_as(node, node.op, (inner, *node.inputs[1:]))
        made[inner.name] = rewriter.nodes[-1]
        return Node(View(",".join(map(str, node.output.type.shape))), (inner,), node.outputs, node.scope, node.source)
    if (
        isinstance(node.op, RmsNorm)
        and before is not None
        and isinstance(before.op, Permute)
        and before.op.order[-1] == len(before.op.order) - 1
    ):
        (inner,) = rewriter.add_as(node, node.op, (before.inputs[0], *node.inputs[1:]))
        made[inner.name] = rewriter.nodes[-1]
        return Node(before.op, (inner,), node.outputs, node.scope, node.source)
    return node


def _identity(node: Node, made: dict[str, Node]) -> Value | None:
    """A value that this node's only output equals, if there is one."""
    if len(node.outputs) != 1:
        return None
    out, first = node.output, node.inputs[0] if node.inputs else None
    if first is None:
        return None
    if isinstance(node.op, View | Expand | Cast) and first.type == out.type:
        return first
    if isinstance(node.op, Permute):
        before = made.get(first.name)
        if node.op.order == tuple(range(len(node.op.order))):
            return first
        if (
            before
            and isinstance(before.op, Permute)
            and tuple(before.op.order[i] for i in node.op.order) == tuple(range(len(node.op.order)))
        ):
            return before.inputs[0]
    if isinstance(node.op, Slice) and first.type == out.type:
        return first
    if isinstance(node.op, View):
        before = made.get(first.name)
        if before and isinstance(before.op, View) and before.inputs[0].type == out.type:
            return before.inputs[0]
    if isinstance(node.op, Pointwise) and len(node.inputs) == 2:
        for kept, other in (node.inputs, node.inputs[::-1]):
            number = _number(other, made)
            neutral = {"mul": 1.0, "add": 0.0}.get(node.op.fn)
            if kept is node.inputs[0]:
                neutral = {"div": 1.0, "sub": 0.0}.get(node.op.fn, neutral)
            if number is not None and number == neutral and kept.type == out.type:
                return kept
    if isinstance(node.op, Concat) and len(node.inputs) == 1:
        return first
    return _reassembled(node, made)


def _reassembled(node: Node, made: dict[str, Node]) -> Value | None:
    """concat(slice(x, 0:a), slice(x, a:b), …) that covers x is x."""
    if not isinstance(node.op, Concat):
        return None
    at, source = 0, None
    for value in node.inputs:
        part = made.get(value.name)
        if (
            part is None
            or not isinstance(part.op, Slice)
            or part.op.dim != node.op.dim
            or part.op.start != at
            or part.op.step != 1
        ):
            return None
        if source is not None and part.inputs[0] != source:
            return None
        source, at = part.inputs[0], part.op.stop
    return source if source is not None and source.type == node.output.type else None


def _number(value: Value, made: dict[str, Node]) -> float | None:
    node = made.get(value.name)
    return node.op.value if node is not None and isinstance(node.op, Full) and value.type.shape == () else None


def _shorter(node: Node, made: dict[str, Node]) -> Node:
    """Views of views and permutations of permutations become one."""
    before = made.get(node.inputs[0].name) if node.inputs else None
    if before is None:
        return node
    if isinstance(node.op, View) and isinstance(before.op, View):
        return Node(node.op, before.inputs, node.outputs, node.scope, node.source)
    if isinstance(node.op, Permute) and isinstance(before.op, Permute):
        order = tuple(before.op.order[i] for i in node.op.order)
        return Node(Permute(order), before.inputs, node.outputs, node.scope, node.source)
    return node
