"""Rewriting: build the next graph from a frozen one."""

from __future__ import annotations

from collections.abc import Sequence

from .graph import Graph, Node, Value
from .op import Op
from .types import TensorType


class Rewriter:
    """Collects changes to a graph and produces the new one; owns nothing but its own lists.

    `replace(old, new)` redirects every later use; `add(op, inputs)` appends a node and gives its outputs. Walk
    `graph.nodes` in order, call `keep(node)` for what stays, and `finish()` at the end: dead code is dropped.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[Node] = []
        self.params: dict[str, Value] = {p.name: p for p in graph.params}
        self.constants = dict(graph.constants)
        self._alias: dict[str, Value] = {}
        names = [v.name for n in graph.nodes for v in n.outputs] + [v.name for v in graph.inputs]
        self._next = 1 + max((int(n[1:]) for n in names if n[1:].isdigit()), default=-1)

    def resolve(self, value: Value) -> Value:
        while value.name in self._alias:
            value = self._alias[value.name]
        return value

    def replace(self, old: Value, new: Value) -> None:
        if old != new:
            self._alias[old.name] = new

    def keep(self, node: Node) -> Node:
        kept = Node(node.op, tuple(self.resolve(v) for v in node.inputs), node.outputs, node.scope, node.source)
        self.nodes.append(kept)
        return kept

    def add(self, op: Op, inputs: Sequence[Value], scope: str = "", source: str = "") -> tuple[Value, ...]:
        args = tuple(self.resolve(v) for v in inputs)
        outputs = tuple(Value(f"%{self._next + i}", t) for i, t in enumerate(op.infer(*(v.type for v in args))))
        self._next += len(outputs)
        self.nodes.append(Node(op, args, outputs, scope, source))
        return outputs

    def add_as(self, node: Node, op: Op, inputs: Sequence[Value]) -> tuple[Value, ...]:
        """Add an op in place of a node, keeping its scope and source."""
        return self.add(op, inputs, node.scope, node.source)

    def param(self, name: str, kind: TensorType) -> Value:
        value = Value(f"@{name}", kind)
        self.params[value.name] = value
        return value

    def constant(self, stem: str, kind: TensorType, numbers: Sequence[float | int]) -> Value:
        """A constant; equal constants share one parameter."""
        numbers = tuple(numbers)
        for name, existing in self.constants.items():
            if existing == numbers and self.params[name].type == kind:
                return self.params[name]
        name, i = stem, 0
        while f"@{name}" in self.params:
            i += 1
            name = f"{stem}.{i}"
        value = self.param(name, kind)
        self.constants[value.name] = numbers
        return value

    def finish(self, outputs: Sequence[Value] | None = None) -> Graph:
        """The new graph, without nodes, parameters and constants that nothing uses."""
        final = tuple(self.resolve(v) for v in (outputs or self.graph.outputs))
        live = {v.name for v in final}
        nodes: list[Node] = []
        for node in reversed(self.nodes):
            resolved = Node(node.op, tuple(self.resolve(v) for v in node.inputs), node.outputs, node.scope, node.source)
            if any(o.name in live for o in resolved.outputs):
                nodes.append(resolved)
                live.update(v.name for v in resolved.inputs)
        params = tuple(p for p in self.params.values() if p.name in live)
        constants = {k: v for k, v in self.constants.items() if k in live}
        return Graph(self.graph.inputs, params, tuple(nodes[::-1]), final, constants)
