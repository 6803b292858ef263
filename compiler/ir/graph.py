"""The IR: one flat SSA graph of frozen values. A decoder has no control flow, so there are no blocks and no regions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .op import Op
from .types import TensorType


@dataclass(frozen=True, slots=True)
class Value:
    """An SSA value: `%12`, or a parameter `@model.norm.weight`."""

    name: str
    type: TensorType

    @property
    def is_param(self) -> bool:
        return self.name.startswith("@")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. `scope` is the module path that made it and `source` the line of the model's code, for people."""

    op: Op
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    scope: str = ""
    source: str = ""

    @property
    def output(self) -> Value:
        assert len(self.outputs) == 1, f"{self.op.name} has {len(self.outputs)} outputs"
        return self.outputs[0]


@dataclass(frozen=True)
class Graph:
    """inputs, parameters (weights, by name) and constants (small tensors, by name) → nodes → outputs.

    `constants` maps a parameter's name to its flat tuple of numbers; other parameters take their values from
    the checkpoint (or, after layout, from the artifact's weights).
    """

    inputs: tuple[Value, ...]
    params: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    constants: Mapping[str, tuple[float | int, ...]] = field(default_factory=dict)

    def producers(self) -> dict[str, Node]:
        return {out.name: node for node in self.nodes for out in node.outputs}

    def users(self) -> dict[str, list[Node]]:
        users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                users.setdefault(value.name, []).append(node)
        return users

    def static_values(self) -> set[str]:
        """Names of the values that depend on parameters and constants alone, of a known shape: known at compile time."""
        static = {p.name for p in self.params}
        for node in self.nodes:
            if all(v.name in static for v in node.inputs) and all(o.type.is_static for o in node.outputs):
                static.update(o.name for o in node.outputs)
        return static

    def input(self, name: str) -> Value:
        return next(v for v in self.inputs if v.name == f"%{name}")

    def find(self, op_name: str) -> Iterator[Node]:
        return (n for n in self.nodes if n.op.name == op_name)


def roots(graph: Graph, value: Value, moves: tuple[str, ...] = ()) -> list[str]:
    """The parameters that a static value is made of, without their "@". With `moves`, a value that any other op has
    a part in gives [""]."""
    producers = graph.producers()
    found: list[str] = []
    stack = [value]
    while stack:
        here = stack.pop()
        node = producers.get(here.name)
        if node is None:
            found.append(here.name[1:])
        elif moves and node.op.name not in moves:
            return [""]
        else:
            stack.extend(node.inputs)
    return found
