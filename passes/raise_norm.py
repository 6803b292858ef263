"""Recognise RMSNorm, LayerNorm and L2 norms in the arithmetic that a model writes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from ..compiler.ir.graph import Graph, Node, Value
from ..compiler.ir.op import Op
from ..compiler.ir.ops.full import Full
from ..compiler.ir.ops.layer_norm import LayerNorm
from ..compiler.ir.ops.pointwise import Pointwise
from ..compiler.ir.ops.reduce import Reduce
from ..compiler.ir.ops.rms_norm import RmsNorm
from ..compiler.ir.reference import Context
from ..compiler.ir.rewrite import Rewriter
from .equivalence import Probe, close
from .pass_ import Pass

SCALES = (1.0, 1e-3)
"""Inputs this large and this small: with large ones alone, a wrong eps goes unnoticed."""


@dataclass(frozen=True)
class _Match:
    op: Op
    inputs: tuple[Value, ...]
    out: Value


@dataclass(frozen=True)
class RaiseNorm(Pass):
    """Anchor on 1/sqrt(mean + eps), read the pieces around it, and accept the norm only if both sides agree in float64."""

    name: ClassVar[str] = "raise_norm"
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False, repr=False)

    def run(self, graph: Graph) -> Graph:
        producers, users, static = graph.producers(), graph.users(), graph.static_values()
        probe = Probe(graph, self.buffers)
        found: dict[str, _Match] = {}
        for node in graph.nodes:
            match = _match(node, producers, users, static)
            while match is not None:
                if _verified(match, probe):
                    found[match.out.name] = match
                    break
                match = _without_affine(match, producers)
        rewriter = Rewriter(graph)
        for node in graph.nodes:
            match = found.get(node.outputs[0].name)
            if match is None:
                rewriter.keep(node)
            else:
                rewriter.replace(node.output, rewriter.add_as(node, match.op, match.inputs)[0])
        return rewriter.finish()


def _is(node: Node | None, *fns: str) -> bool:
    return node is not None and isinstance(node.op, Pointwise) and node.op.fn in fns


def _mean_of_square(value: Value, producers: dict[str, Node]) -> tuple[Value, bool] | None:
    """x and whether it is a sum (an L2 norm), when value = mean(x²) or sum(x²) over the last dimension, kept."""
    reduce = producers.get(value.name)
    if reduce is None or not isinstance(reduce.op, Reduce) or reduce.op.fn not in ("mean", "sum") or not reduce.op.keepdim:
        return None
    if reduce.op.dims != (len(reduce.inputs[0].type.shape) - 1,):
        return None
    square = producers.get(reduce.inputs[0].name)
    if square is None or not (_is(square, "square") or (_is(square, "mul") and square.inputs[0] == square.inputs[1])):
        return None
    return square.inputs[0], reduce.op.fn == "sum"


def _match(node: Node, producers: dict[str, Node], users: dict[str, list[Node]], static: set[str]) -> _Match | None:
    if not _is(node, "rsqrt") and not (_is(node, "reciprocal") and _is(producers.get(node.inputs[0].name), "sqrt")):
        return None
    inner = node.inputs[0] if _is(node, "rsqrt") else producers[node.inputs[0].name].inputs[0]
    add = producers.get(inner.name)
    if not _is(add, "add"):
        return None
    assert add is not None
    pieces = [(_mean_of_square(a, producers), producers.get(b.name)) for a, b in (add.inputs, add.inputs[::-1])]
    chosen = next(((m, e.op.value) for m, e in pieces if m is not None and e is not None and isinstance(e.op, Full)), None)
    products = [u for u in users.get(node.output.name, []) if _is(u, "mul")]
    if chosen is None or len(products) != 1 or len(users[node.output.name]) != 1:
        return None
    (x, l2), eps = chosen
    other = [v for v in products[0].inputs if v != node.output]
    if other != [x]:
        return None
    centred = producers.get(x.name)
    layer, source = False, x
    if not l2 and _is(centred, "sub"):
        assert centred is not None
        mean = producers.get(centred.inputs[1].name)
        if mean is not None and isinstance(mean.op, Reduce) and mean.op.fn == "mean" and mean.inputs[0] == centred.inputs[0]:
            layer, source = True, centred.inputs[0]
    out, weight, bias = products[0].output, None, None
    while len(users.get(out.name, [])) == 1:
        user = users[out.name][0]
        operand = next((v for v in user.inputs if v != out), None)
        if (
            operand is None
            or operand.name not in static
            or operand.type.shape != source.type.shape[-1:]
            or user.output.type.shape != source.type.shape
        ):
            break
        if _is(user, "mul") and weight is None and bias is None:
            weight, out = operand, user.output
        elif _is(user, "add") and layer and bias is None:
            bias, out = operand, user.output
        else:
            break
    op: Op = LayerNorm(eps, weight is not None, bias is not None) if layer else RmsNorm(eps, weight is not None, l2)
    return _Match(op, tuple(v for v in (source, weight, bias) if v is not None), out)


def _without_affine(match: _Match, producers: dict[str, Node]) -> _Match | None:
    """The same norm without its weight (and bias), in case what looked like one is something else."""
    if len(match.inputs) == 1:
        return None
    node = producers[match.out.name]
    normed = next(v for v in node.inputs if v != match.inputs[-1])
    if isinstance(match.op, LayerNorm):
        op: Op = LayerNorm(match.op.eps, match.op.weight and match.op.bias, False)
    else:
        assert isinstance(match.op, RmsNorm)
        op = RmsNorm(match.op.eps, False, match.op.l2)
    return _Match(op, match.inputs[:-1], normed)


def _verified(match: _Match, probe: Probe) -> bool:
    positions = torch.arange(5)
    for scale in SCALES:
        x = probe.random(match.inputs[0], 5) * scale
        got = probe.evaluate(match.out, {match.inputs[0]: x}, positions)
        weights = [probe.evaluate(v, {}, positions) for v in match.inputs[1:]]
        context = Context({"T": 5, "R": 5}, positions, torch.zeros(5, dtype=torch.int64), torch.float64)
        if not close(got, match.op.reference(context, x, *weights)[0]):
            return False
    return True
