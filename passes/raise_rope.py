"""Recognise rotary embeddings by system identification: feed basis vectors, read the rotation at each position."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from ..compiler.ir.graph import Graph, Node, Value
from ..compiler.ir.ops.concat import Concat
from ..compiler.ir.ops.expand import Expand
from ..compiler.ir.ops.index_select import IndexSelect
from ..compiler.ir.ops.permute import Permute
from ..compiler.ir.ops.pointwise import Pointwise
from ..compiler.ir.ops.rope import Rope
from ..compiler.ir.ops.rope_table import RopeTable
from ..compiler.ir.ops.slice import Slice
from ..compiler.ir.ops.view import View
from ..compiler.ir.rewrite import Rewriter
from ..compiler.ir.types import Sym, TensorType
from .equivalence import Probe
from .pass_ import Pass

POSITIONS = (0, 1, 2, 3, 5, 9, 17, 33, 63, 129, 257, 700, 2500, 9000, 30000)
"""Positions under 200 alone would miss the slow frequencies."""
TOLERANCE = 1e-7
STOPS = ("linear", "rms_norm", "layer_norm", "embedding", "attention", "experts", "matmul")
LAYOUT = (View, Permute, Slice, Expand)


@dataclass(frozen=True)
class Rotation:
    """y = M(position) · x with M a rotation of pairs: the pairing, the frequencies, the scale."""

    frequencies: tuple[float, ...]
    interleaved: bool
    offset: int
    scale: float
    order: tuple[int, ...]


@dataclass(frozen=True)
class RaiseRope(Pass):
    """For each query and key: find the region that mixes positions into data, identify it, and put `rope` in its place."""

    name: ClassVar[str] = "raise_rope"
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False, repr=False)

    def run(self, graph: Graph) -> Graph:
        producers = graph.producers()
        data, position = _dependences(graph)
        probe = Probe(graph, self.buffers)
        known: dict[tuple[object, ...], Rotation | None] = {}
        found: dict[str, tuple[Value, Rotation]] = {}
        for attention in (*graph.find("attention"), *graph.find("indexer")):
            for operand in attention.inputs[:2]:
                for y, x, region in _candidates(operand, graph, producers, data, position):
                    key = _structure(region, x)
                    if key not in known:
                        known[key] = identify(probe, y, x)
                    rotation = known[key]
                    if rotation is not None:
                        found[y.name] = (x, rotation)
                        break
        rewriter = Rewriter(graph)
        for node in graph.nodes:
            if node.outputs[0].name not in found:
                rewriter.keep(node)
                continue
            x, rotation = found[node.output.name]
            rewriter.replace(node.output, _emit(rewriter, node, x, rotation))
        return rewriter.finish()


def _dependences(graph: Graph) -> tuple[set[str], set[str]]:
    """Names that depend on the tokens, and names that depend on positions but not on tokens."""
    data, position = {"%input_ids"}, {"%position_ids"}
    for node in graph.nodes:
        names = [v.name for v in node.inputs]
        target = data if any(n in data for n in names) else position if any(n in position for n in names) else None
        if target is not None:
            target.update(o.name for o in node.outputs)
    return data, position


def _candidates(
    operand: Value, graph: Graph, producers: dict[str, Node], data: set[str], position: set[str]
) -> list[tuple[Value, Value, list[Node]]]:
    """(y, x, region) from the attention operand up: the whole operand first, then the rotated part of a concatenation."""
    out = []
    y = operand
    for _ in range(8):
        node = producers.get(y.name)
        mixed = _mixed(y, graph, producers, data, position)
        if not mixed:
            if (node is not None and isinstance(node.op, LAYOUT)) or (
                node is not None and node.op.name in ("rms_norm", "pointwise")
            ):
                y = node.inputs[0]
                continue
            break
        if y.name in mixed:
            frontier = {
                v.name: v
                for n in graph.nodes
                if n.outputs[0].name in mixed
                for v in n.inputs
                if v.name in data and v.name not in mixed
            }
            x = _common_source(list(frontier.values()), y, graph, producers, data)
            if x is not None:
                region = _between(y, x, graph)
                out.append((y, x, region))
            elif isinstance(node.op if node else None, Concat):
                assert node is not None
                inner = [v for v in node.inputs if v.name in mixed]
                if len(inner) == 1:
                    y = inner[0]
                    continue
            break
        assert node is not None
        y = node.inputs[0]
    return out


def _mixed(y: Value, graph: Graph, producers: dict[str, Node], data: set[str], position: set[str]) -> set[str]:
    """Nodes above y, below the stops, in which positions meet data."""
    cone: set[str] = set()
    stack = [y]
    while stack:
        value = stack.pop()
        node = producers.get(value.name)
        if value.name in cone or node is None or node.op.name in STOPS:
            continue
        cone.add(value.name)
        stack.extend(node.inputs)
    mixed: set[str] = set()
    for node in graph.nodes:
        name = node.outputs[0].name
        if (
            name in cone
            and name in data
            and any(v.name in mixed or (v.name in position and v.type.is_float) for v in node.inputs)
        ):
            mixed.add(name)
    return mixed


def _common_source(frontier: list[Value], y: Value, graph: Graph, producers: dict[str, Node], data: set[str]) -> Value | None:
    """The nearest value through which the whole frontier flows, going up through layout alone, as wide as y."""
    order = {o.name: i for i, n in enumerate(graph.nodes) for o in n.outputs}
    work = {v.name: v for v in frontier}
    for _ in range(60):
        if not work:
            return None
        last = max(work.values(), key=lambda v: order.get(v.name, -1))
        if len(work) == 1 and last.type.shape[-1] == y.type.shape[-1]:
            return last
        node = producers.get(last.name)
        negation = node is not None and isinstance(node.op, Pointwise) and node.op.fn == "neg"
        if node is None or not (negation or isinstance(node.op, (*LAYOUT, Concat))):
            return None
        del work[last.name]
        work.update({v.name: v for v in node.inputs if v.name in data})
    return None


def _between(y: Value, x: Value, graph: Graph) -> list[Node]:
    needed, region = {y.name}, []
    for node in reversed(graph.nodes):
        if node.outputs[0].name in needed and node.outputs[0].name != x.name:
            region.append(node)
            needed.update(v.name for v in node.inputs if v.name != x.name)
    return region[::-1]


def _structure(region: list[Node], x: Value) -> tuple[object, ...]:
    """A key under which the same rotation in another layer is found again: names replaced by their order."""
    names = {x.name: 0}
    key: list[object] = [str(x.type)]
    for node in region:
        key.append((node.op, tuple(names.get(v.name, v.name) for v in node.inputs)))
        names[node.outputs[0].name] = len(names)
    return tuple(key)


def _token_axis(value: Value) -> int | None:
    axes = [i for i, d in enumerate(value.type.shape) if d == Sym("T")]
    return axes[0] if len(axes) == 1 else None


def identify(probe: Probe, y: Value, x: Value) -> Rotation | None:
    """Read M(position) from its action on basis vectors; None when it is not a rotation of pairs linear in position.

    A model that looks its angles up in a table has none for the largest positions: then those that it has must do.
    """
    for count in range(len(POSITIONS), 7, -1):
        try:
            return _identify(probe, y, x, POSITIONS[:count])
        except (IndexError, RuntimeError):
            continue
    return None


def _identify(probe: Probe, y: Value, x: Value, chosen: tuple[int, ...]) -> Rotation | None:
    width = x.type.shape[-1]
    tx, ty = _token_axis(x), _token_axis(y)
    if not isinstance(width, int) or tx is None or ty is None or width > 1024:
        return None
    positions = torch.tensor(chosen)
    tokens = positions.repeat_interleave(width)
    shape = list(x.type.concrete({"T": tokens.numel(), "R": 1}))
    basis = torch.eye(width, dtype=torch.float64).repeat(len(chosen), 1)
    feed = basis.reshape(
        [tokens.numel() if i == tx else (width if i == len(shape) - 1 else 1) for i in range(len(shape))]
    ).expand(shape)
    answer = probe.evaluate(y, {x: feed.contiguous()}, tokens).movedim(ty, 0).reshape(tokens.numel(), -1, width)
    if not torch.equal(answer, answer[:, :1].expand_as(answer)):
        return None
    matrices = answer[:, 0].reshape(len(chosen), width, width).transpose(1, 2)
    if not _linear(probe, y, x, tx, ty, positions, matrices):
        return None
    return _decompose(matrices, positions.double())


def _linear(probe: Probe, y: Value, x: Value, tx: int, ty: int, positions: torch.Tensor, matrices: torch.Tensor) -> bool:
    feed = probe.random(x, positions.numel())
    got = probe.evaluate(y, {x: feed}, positions).movedim(ty, 0).reshape(positions.numel(), -1, feed.shape[-1])
    rows = feed.movedim(tx, 0).reshape(positions.numel(), -1, feed.shape[-1])
    return got.shape == rows.shape and float((torch.einsum("tij,thj->thi", matrices, rows) - got).abs().max()) < TOLERANCE


def _decompose(matrices: torch.Tensor, positions: torch.Tensor) -> Rotation | None:
    width = matrices.shape[1]
    start = matrices[0]
    order = start.abs().argmax(1).tolist()
    if sorted(order) != list(range(width)) or int((start.abs() > TOLERANCE).sum()) != width or bool((start.sum(1) < 0).any()):
        return None
    turned = matrices[:, :, order]  # y[i] = Σ_j turned[i, j] x[order[j]]
    off = turned.clone()
    off[:, range(width), range(width)] = 0
    partner: dict[int, int] = {}
    for row in range(width):
        others = (off[:, row].abs().amax(0) > TOLERANCE).nonzero()[:, 0].tolist()
        if len(others) > 1:
            return None
        if others:
            partner[row] = others[0]
    if not partner or any(partner.get(b) != a for a, b in partner.items()):
        return None
    scale = float(turned[0].diagonal()[sorted(partner)].mean())
    rest = [i for i in range(width) if i not in partner]
    if any(abs(float(turned[k, i, i]) - 1) > TOLERANCE for i in rest for k in range(len(positions))):
        return None
    pairs = sorted((a, b) for a, b in partner.items() if a < b)
    frequencies = []
    for a, b in pairs:
        cos, sin = turned[:, a, a] / scale, turned[:, b, a] / scale
        if (
            float((turned[:, b, b] / scale - cos).abs().max()) > TOLERANCE
            or float((turned[:, a, b] / scale + sin).abs().max()) > TOLERANCE
        ):
            return None
        frequency = math.atan2(float(sin[1]), float(cos[1]))
        for k in range(2, len(positions)):
            position = float(positions[k])
            error = math.atan2(float(sin[k]), float(cos[k])) - frequency * position
            frequency += ((error + math.pi) % (2 * math.pi) - math.pi) / position
        if (
            float((torch.cos(positions * frequency) - cos).abs().max()) > 1e-5
            or float((torch.sin(positions * frequency) - sin).abs().max()) > 1e-5
        ):
            return None
        frequencies.append(float(torch.tensor(frequency, dtype=torch.float32)))
    return _layout(pairs, frequencies, scale, order)


def _layout(pairs: list[tuple[int, int]], frequencies: list[float], scale: float, order: list[int]) -> Rotation | None:
    """Express the pairs in input coordinates as (i, i+P) or (2i, 2i+1) from an offset."""
    count = len(pairs)
    where = [(order[a], order[b], f) for (a, b), f in zip(pairs, frequencies, strict=True)]
    where.sort()
    offset = where[0][0]
    for interleaved in (False, True):
        expected = [
            (offset + 2 * i, offset + 2 * i + 1) if interleaved else (offset + i, offset + i + count) for i in range(count)
        ]
        if [(a, b) for a, b, _ in where] == expected:
            permutation = () if order == list(range(len(order))) else tuple(order)
            return Rotation(tuple(f for _, _, f in where), interleaved, offset, scale, permutation)
    return None


def _emit(rewriter: Rewriter, node: Node, x: Value, rotation: Rotation) -> Value:
    """rope(x) in the layout [1, T, heads, D], with permutations to it and from it that `simplify` cancels."""
    out = node.output
    x = rewriter.resolve(x)
    frequencies = rewriter.constant("rope.frequencies", TensorType("f32", (len(rotation.frequencies),)), rotation.frequencies)
    positions = rewriter.graph.input("position_ids")
    (table,) = rewriter.add(RopeTable(rotation.scale), (positions, frequencies))
    axis = _token_axis(x)
    rank = len(x.type.shape)
    if rank == 4 and axis == 2:
        (x,) = rewriter.add_as(node, Permute((0, 2, 1, 3)), (x,))
    elif rank == 3 and axis == 1:
        (x,) = rewriter.add_as(node, View(f"1,T,1,{x.type.shape[-1]}"), (x,))
    (turned,) = rewriter.add_as(node, Rope(rotation.interleaved, rotation.offset), (x, table))
    if rotation.order:
        index = rewriter.constant("rope.order", TensorType("i64", (len(rotation.order),)), rotation.order)
        (turned,) = rewriter.add_as(node, IndexSelect(3), (turned, index))
    if turned.type.shape != out.type.shape and len(out.type.shape) == 4 and _token_axis(out) == 2:
        (turned,) = rewriter.add_as(node, Permute((0, 2, 1, 3)), (turned,))
    if turned.type.shape != out.type.shape:
        (turned,) = rewriter.add_as(node, View(",".join(map(str, out.type.shape))), (turned,))
    return turned
