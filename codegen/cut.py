"""A graph cut in two between its layers: the first part for the CPU, the last layers and the head for a GPU.

What the second part reads of the first goes from one to the other as one value a step, `carry` [1,T,W] in float32. What follows from
positions alone, such as rotations, is computed in both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..compiler.ir.graph import Graph, Node, Value
from ..compiler.ir.op import Op
from ..compiler.ir.ops.cast import Cast
from ..compiler.ir.ops.concat import Concat
from ..compiler.ir.ops.permute import Permute
from ..compiler.ir.ops.slice import Slice
from ..compiler.ir.ops.view import View
from ..compiler.ir.types import Sym, TensorType
from ..compiler.ir.verify import verify
from ..errors import UnsupportedError
from .lowering import CARRY

TOKENS = Sym("T")


@dataclass(frozen=True)
class Cut:
    """`first` returns the carry, `second` takes it as an input; `width` is its W, `layers` how many layers `first` has."""

    first: Graph
    second: Graph
    width: int
    layers: int


def layer_of(scope: str) -> int | None:
    """The layer that a module's path lies in: its first number."""
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", scope)
    return int(found[1]) if found else None


def cut(graph: Graph, layers: int) -> Cut | None:
    """The last `layers` layers apart from those before; None where the graph has no more than that.

    Raises UnsupportedError naming a value that cannot go from one part to the other.
    """
    count = 1 + max((n for n in (layer_of(node.scope) for node in graph.nodes) if n is not None), default=-1)
    first = count - layers
    if first < 1:
        return None
    static = graph.static_values()
    positional = {v.name for v in graph.inputs if v.name != "%input_ids"} | static
    late: set[str] = set()
    for node in graph.nodes:
        names = [v.name for v in node.inputs]
        if (layer_of(node.scope) or 0) >= first or any(n in late for n in names):
            late.update(o.name for o in node.outputs)
        if all(n in positional for n in names):
            positional.update(o.name for o in node.outputs)
    carried = _carried(graph, late, positional)
    parts = [_flat(value) for value in carried]
    width = sum(size for _, size in parts)
    before, after = _Part("%out"), _Part("%in")
    pieces = []
    for value, (order, size) in zip(carried, parts, strict=True):
        pieces.append(before.add(View(f"1,T,{size}"), before.add(Cast("f32"), before.add(Permute(order), value))))
    total = before.add(Concat(2), *pieces) if len(pieces) > 1 else pieces[0]
    carry, start = Value(CARRY, TensorType("f32", (1, TOKENS, width))), 0
    seen = {}
    for value, (order, size) in zip(carried, parts, strict=True):
        shape = [value.type.shape[d] for d in order]
        x = after.add(View(",".join(map(str, shape))), after.add(Slice(2, start, start + size), carry))
        x = after.add(Permute(tuple(order.index(d) for d in range(len(order)))), x)
        seen[value.name] = after.add(Cast(value.type.dtype), x)
        start += size
    head = _needed([n for n in graph.nodes if n.outputs[0].name not in late], {v.name for v in carried})
    tail_nodes = [n for n in graph.nodes if n.outputs[0].name in late or n.outputs[0].name in positional]
    tail = _needed(tail_nodes, {v.name for v in graph.outputs})
    renamed = [Node(n.op, tuple(seen.get(v.name, v) for v in n.inputs), n.outputs, n.scope, n.source) for n in tail]
    outputs = tuple(seen.get(v.name, v) for v in graph.outputs)
    made = [
        _graph(graph, graph.inputs, [*head, *before.nodes], (total,)),
        _graph(graph, (*graph.inputs, carry), [*after.nodes, *renamed], outputs),
    ]
    return Cut(verify(made[0], "cut"), verify(made[1], "cut"), width, first)


def _carried(graph: Graph, late: set[str], positional: set[str]) -> list[Value]:
    """What the second part reads of the first, each once, in order."""
    inputs = {v.name for v in graph.inputs}
    read = [v for node in graph.nodes if node.outputs[0].name in late for v in node.inputs]
    found = {v.name: v for v in (*read, *graph.outputs) if v.name not in late | positional | inputs}
    if not found:
        raise UnsupportedError("--gpu-layers: the model's layers do not follow from each other", "leave --gpu-layers out")
    return list(found.values())


def _flat(value: Value) -> tuple[tuple[int, ...], int]:
    """How a value becomes [1,T,w]: the order of its dimensions with the tokens first, and w."""
    shape = value.type.shape
    tokens = [d for d, size in enumerate(shape) if size == TOKENS]
    rest = [size for size in shape if isinstance(size, int)]
    if len(tokens) != 1 or len(rest) != len(shape) - 1 or not value.type.is_float:
        raise UnsupportedError(
            f"--gpu-layers: {value.name} {value.type} cannot go from the CPU's layers to the GPU's",
            "give another number of layers",
        )
    return (tokens[0], *(d for d in range(len(shape)) if d != tokens[0])), math.prod(rest)


@dataclass
class _Part:
    """Nodes that one side needs at the cut, and how the names of their values begin."""

    names: str
    nodes: list[Node] = field(default_factory=list)

    def add(self, op: Op, value: Value, *more: Value) -> Value:
        inputs = (value, *more)
        (kind,) = op.infer(*(v.type for v in inputs))
        if len(inputs) == 1 and kind == value.type and not (isinstance(op, Permute) and op.order != tuple(range(len(op.order)))):
            return value
        out = Value(f"{self.names}{len(self.nodes)}", kind)
        self.nodes.append(Node(op, inputs, (out,)))
        return out


def _needed(nodes: list[Node], outputs: set[str]) -> list[Node]:
    """The nodes that the outputs follow from."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if any(o.name in wanted for o in node.outputs):
            wanted.update(v.name for v in node.inputs)
            kept.append(node)
    return kept[::-1]


def _graph(graph: Graph, inputs: Iterable[Value], nodes: list[Node], outputs: tuple[Value, ...]) -> Graph:
    used = {v.name for node in nodes for v in node.inputs} | {v.name for v in outputs}
    params = tuple(p for p in graph.params if p.name in used)
    return Graph(tuple(inputs), params, tuple(nodes), outputs, {n: v for n, v in graph.constants.items() if n in used})
