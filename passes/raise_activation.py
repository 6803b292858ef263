"""Recognise activation functions that a model writes out, such as GPT-2's gelu."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from ..compiler.ir.graph import Graph, Node, Value
from ..compiler.ir.ops.full import Full
from ..compiler.ir.ops.pointwise import ACTIVATIONS, UNARY, Pointwise
from ..compiler.ir.rewrite import Rewriter
from .equivalence import Probe, close
from .pass_ import Pass

SEEDS = ("tanh", "sigmoid", "erf", "relu", "silu", "softplus")


@dataclass(frozen=True)
class RaiseActivation(Pass):
    """Grow an elementwise region around a tanh, sigmoid, erf or relu, and compare it with the known functions in float64."""

    name: ClassVar[str] = "raise_activation"
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False, repr=False)

    def run(self, graph: Graph) -> Graph:
        producers, users = graph.producers(), graph.users()
        probe = Probe(graph, self.buffers)
        found: dict[str, tuple[str, Value]] = {}
        for seed in graph.nodes:
            if isinstance(seed.op, Pointwise) and seed.op.fn in SEEDS:
                found.update(_identify(seed, producers, users, probe))
        rewriter = Rewriter(graph)
        for node in graph.nodes:
            if node.outputs[0].name in found:
                fn, root = found[node.output.name]
                rewriter.replace(node.output, rewriter.add_as(node, Pointwise(fn, "f32"), (root,))[0])
            else:
                rewriter.keep(node)
        return rewriter.finish()


def _elementwise_inputs(node: Node, producers: dict[str, Node]) -> list[Value] | None:
    """The inputs of an elementwise node that are not scalars; None when the node is something else."""
    if not isinstance(node.op, Pointwise):
        return None
    return [
        v
        for v in dict.fromkeys(node.inputs)
        if not (v.type.shape == () and v.name in producers and isinstance(producers[v.name].op, Full))
    ]


def _root(seed: Node, producers: dict[str, Node]) -> Value | None:
    """The one value that the seed's argument is an elementwise function of."""
    frontier = [seed.inputs[0]]
    for _ in range(12):
        if len(frontier) == 1 and (
            frontier[0].name not in producers or len(_elementwise_inputs(producers[frontier[0].name], producers) or [0, 0]) != 1
        ):
            candidate = frontier[0]
            node = producers.get(candidate.name)
            parts = _elementwise_inputs(node, producers) if node else None
            shared = (
                None
                if not parts or len(parts) != 2
                else next((p for p in parts if _reaches(next(q for q in parts if q != p), p, producers)), None)
            )
            if shared is None:
                return candidate
            frontier = [shared]
            continue
        node = producers.get(frontier[0].name)
        parts = _elementwise_inputs(node, producers) if node else None
        if not parts:
            return None
        frontier = parts
    return None


def _reaches(value: Value, target: Value, producers: dict[str, Node]) -> bool:
    """Whether `value` is an elementwise function of `target` alone."""
    for _ in range(6):
        if value == target:
            return True
        node = producers.get(value.name)
        parts = _elementwise_inputs(node, producers) if node else None
        if not parts or len(parts) != 1:
            return False
        value = parts[0]
    return False


def _identify(seed: Node, producers: dict[str, Node], users: dict[str, list[Node]], probe: Probe) -> dict[str, tuple[str, Value]]:
    root = _root(seed, producers)
    if root is None or not root.type.is_float or not root.type.shape:
        return {}
    inside = {root.name}
    outputs: list[Node] = []
    frontier = [root]
    while frontier:
        for user in users.get(frontier.pop().name, []):
            parts = _elementwise_inputs(user, producers)
            if (
                parts
                and user.output.name not in inside
                and all(p.name in inside for p in parts)
                and user.output.type == root.type
            ):
                inside.add(user.output.name)
                outputs.append(user)
                frontier.append(user.output)
    x = torch.linspace(-7, 7, 301, dtype=torch.float64)
    one = int(torch.tensor(root.type.concrete({"T": 1, "R": 1})).prod())
    tokens = max(3, -(-len(x) // one))  # all of x, or relu and its square look alike
    shape = root.type.concrete({"T": tokens, "R": tokens})
    count = int(torch.tensor(shape).prod())
    if count < len(x):
        x = x[:: -(-len(x) // count)]
    numbers = x.repeat(count // len(x) + 1)[:count].reshape(shape)
    order = {o.output.name: i for i, o in enumerate(outputs)}
    for node in sorted(outputs, key=lambda n: -order[n.output.name]):
        if node.inputs == (root,) and isinstance(node.op, Pointwise) and node.op.fn in UNARY:
            continue
        got = probe.evaluate(node.output, {root: numbers}, torch.arange(tokens))
        for fn in ACTIVATIONS:
            if close(got, UNARY[fn](numbers), 1e-7):
                return {node.output.name: (fn, root)}
    return {}
