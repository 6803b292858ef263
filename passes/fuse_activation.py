"""Fuse an activation, or a gate, into the linear that feeds it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..compiler.ir.graph import Graph, Node, Value
from ..compiler.ir.ops.concat import Concat
from ..compiler.ir.ops.linear import Linear
from ..compiler.ir.ops.pointwise import ACTIVATIONS, Pointwise
from ..compiler.ir.ops.slice import Slice
from ..compiler.ir.rewrite import Rewriter
from .hoist import hoisted
from .pass_ import Pass


@dataclass(frozen=True)
class FuseActivation(Pass):
    """act(x·Gᵀ) ∘ (x·Uᵀ) → one gated linear with the rows of G, then of U; act(x·Wᵀ) → a linear with an activation."""

    name: ClassVar[str] = "fuse_activation"

    def run(self, graph: Graph) -> Graph:
        graph = hoisted(graph)
        producers, users = graph.producers(), graph.users()
        rewriter = Rewriter(graph)
        for node in graph.nodes:
            made = _gated(node, producers, users, rewriter) or _activated(node, producers, users, rewriter)
            if made is None:
                rewriter.keep(node)
            else:
                rewriter.replace(node.output, made)
        return rewriter.finish()


def _plain(node: Node | None) -> bool:
    return node is not None and isinstance(node.op, Linear) and not (node.op.act or node.op.gated or node.op.residual)


def _activation(value: Value, producers: dict[str, Node], users: dict[str, list[Node]]) -> tuple[str, Value] | None:
    node = producers.get(value.name)
    if node is not None and isinstance(node.op, Pointwise) and node.op.fn in ACTIVATIONS and len(users[value.name]) == 1:
        return node.op.fn, node.inputs[0]
    return None


def _gated(node: Node, producers: dict[str, Node], users: dict[str, list[Node]], rewriter: Rewriter) -> Value | None:
    if not isinstance(node.op, Pointwise) or node.op.fn != "mul" or len(node.inputs) != 2:
        return None
    for left, up in (node.inputs, node.inputs[::-1]):
        activated = _activation(left, producers, users)
        if activated is None:
            continue
        fn, gate = activated
        a, b = producers.get(gate.name), producers.get(up.name)
        if _plain(a) and _plain(b):
            return _two_linears(node, fn, a, b, users, rewriter)
        if a is not None and b is not None and isinstance(a.op, Slice) and isinstance(b.op, Slice):
            return _two_halves(node, fn, a, b, producers, users, rewriter)
    return None


def _two_linears(
    node: Node, fn: str, a: Node | None, b: Node | None, users: dict[str, list[Node]], rewriter: Rewriter
) -> Value | None:
    assert a is not None and b is not None and isinstance(a.op, Linear)
    if a.op != b.op or a.inputs[0] != b.inputs[0] or a.inputs[1].type != b.inputs[1].type or a is b:
        return None
    if len(users[a.output.name]) != 1 or len(users[b.output.name]) != 1:
        return None
    joined = [rewriter.add_as(node, Concat(0), (x, y))[0] for x, y in zip(a.inputs[1:], b.inputs[1:], strict=True)]
    return rewriter.add_as(node, replace(a.op, act=fn, gated=True), (a.inputs[0], *joined))[0]


def _two_halves(
    node: Node, fn: str, a: Node, b: Node, producers: dict[str, Node], users: dict[str, list[Node]], rewriter: Rewriter
) -> Value | None:
    linear = producers.get(a.inputs[0].name)
    if a.inputs[0] != b.inputs[0] or not _plain(linear) or len(users[a.inputs[0].name]) != 2:
        return None
    assert linear is not None and isinstance(linear.op, Linear) and isinstance(a.op, Slice) and isinstance(b.op, Slice)
    total = linear.output.type.shape[-1]
    last = len(linear.output.type.shape) - 1
    assert isinstance(total, int)
    if {(a.op.start, a.op.stop), (b.op.start, b.op.stop)} != {(0, total // 2), (total // 2, total)} or a.op.dim != last:
        return None
    inputs = list(linear.inputs)
    if a.op.start != 0:  # up comes first in the weight: swap the halves
        for i in range(1, len(inputs)):
            halves = [rewriter.add_as(node, Slice(0, s, s + total // 2), (inputs[i],))[0] for s in (total // 2, 0)]
            inputs[i] = rewriter.add_as(node, Concat(0), halves)[0]
    return rewriter.add_as(node, replace(linear.op, act=fn, gated=True), inputs)[0]


def _activated(node: Node, producers: dict[str, Node], users: dict[str, list[Node]], rewriter: Rewriter) -> Value | None:
    if not isinstance(node.op, Pointwise) or node.op.fn not in ACTIVATIONS:
        return None
    linear = producers.get(node.inputs[0].name)
    follow = users.get(node.output.name, [])
    gates = any(isinstance(u.op, Pointwise) and u.op.fn == "mul" for u in follow)
    if not _plain(linear) or len(users[node.inputs[0].name]) != 1 or gates:
        return None
    assert linear is not None and isinstance(linear.op, Linear)
    return rewriter.add_as(node, replace(linear.op, act=node.op.fn), linear.inputs)[0]
