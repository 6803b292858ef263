"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) over its latent: the cache keeps that, not the heads made of it.

Keys and values are products of one latent c a token: k[h] = U[h]·c and v[h] = V[h]·c, beside channels that all heads share, such
as rotated ones. q[h]·(U[h]·c) = (U[h]ᵀ·q[h])·c, and Σ p·(V[h]·c) = V[h]·Σ p·c. So attention has one key head, [c, shared], whose
values are c, and U and V move to the queries and to the output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..compiler.ir.graph import Graph, Node, Value
from ..compiler.ir.ops.attention import Attention
from ..compiler.ir.ops.cast import Cast
from ..compiler.ir.ops.concat import Concat
from ..compiler.ir.ops.expand import Expand
from ..compiler.ir.ops.head_linear import HeadLinear
from ..compiler.ir.ops.linear import Linear
from ..compiler.ir.ops.permute import Permute
from ..compiler.ir.ops.slice import Slice
from ..compiler.ir.ops.view import View
from ..compiler.ir.rewrite import Rewriter
from ..compiler.ir.types import Sym
from ..quant.scheme import STATIC, parse_scheme
from .pass_ import Pass

TOKENS = Sym("T")
LESS = 2  # the cache must become smaller by this factor


@dataclass(frozen=True)
class _Part:
    """Channels start … stop of a value: a product's rows for each head, or what all heads share [.., T, width]."""

    value: Value
    start: int
    stop: int
    shared: bool


@dataclass(frozen=True)
class _Latent:
    """One attention that can be compressed: the product that makes keys and values, and which channels come from where."""

    made: Node
    heads: int
    keys: tuple[_Part, ...]
    values: _Part


@dataclass(frozen=True)
class CompressLatent(Pass):
    """attention whose keys and values are products of one latent → attention over the latent itself, with a product by head on
    either side. The output's weight keeps the scheme of the product that it comes from; that on the queries' side keeps its dtype."""

    name: ClassVar[str] = "compress_latent"

    def run(self, graph: Graph) -> Graph:
        finder = _Finder(graph)
        rewriter = Rewriter(graph)
        for node in graph.nodes:
            found = finder.latent(node) if isinstance(node.op, Attention) else None
            if found is None:
                rewriter.keep(node)
            else:
                rewriter.replace(node.output, _compressed(node, found, rewriter))
        return rewriter.finish()


def _compressed(node: Node, latent: _Latent, rewriter: Rewriter) -> Value:
    made, heads, values = latent.made, latent.heads, latent.values
    assert isinstance(made.op, Linear) and isinstance(node.op, Attention)

    def add(op: object, *inputs: Value, at: Node = node) -> Value:
        return rewriter.add_as(at, op, inputs)[0]  # type: ignore[arg-type]

    weight = made.inputs[1]
    rows, width = weight.type.shape
    assert isinstance(rows, int) and isinstance(width, int)
    by_head = add(View(f"{heads},{rows // heads},{width}"), weight, at=made)
    c = add(View(f"1,T,1,{width}"), made.inputs[0])
    queries, keys, place = [], [c], 0
    for part in latent.keys:
        size = part.stop - part.start
        q = add(Slice(3, place, place + size), node.inputs[0])
        place += size
        if part.shared:
            x = part.value
            whole = add(View(f"1,T,1,{x.type.shape[-1]}"), x)
            keys.append(add(Slice(3, part.start, part.stop), whole))
            queries.append(q)
        else:
            turned = add(Permute((0, 2, 1)), add(Slice(1, part.start, part.stop), by_head, at=made), at=made)
            queries.insert(0, add(HeadLinear(), q, turned, at=made))
    out = add(node.op, add(Concat(3), *queries), add(Concat(3), *keys), c, *node.inputs[3:])
    return add(HeadLinear(made.op.scheme), out, add(Slice(1, values.start, values.stop), by_head, at=made), at=made)


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self._made = graph.producers()

    def latent(self, node: Node) -> _Latent | None:
        op = node.op
        assert isinstance(op, Attention)
        heads, width = node.inputs[1].type.shape[2:]
        if (
            op.k_scale
            or op.v_scale
            or node.inputs[0].type.shape[2] != heads
            or not isinstance(heads, int)
            or not isinstance(width, int)
        ):
            return None
        keys, values = self._parts(node.inputs[1], heads), self._parts(node.inputs[2], heads)
        if keys is None or values is None or len(values) != 1 or values[0].shared:
            return None
        own = [p for p in keys if not p.shared]
        if len(own) != 1 or own[0].value != values[0].value or sum(p.stop - p.start for p in keys) != width:
            return None
        made = self._made.get(own[0].value.name)
        if made is None or not isinstance(made.op, Linear) or made.op != Linear(scheme=made.op.scheme):
            return None
        scheme = parse_scheme(made.op.scheme) if made.op.scheme else None
        if scheme is not None and (scheme.order or scheme.activations in ("nvfp4", *STATIC)):
            return None  # a product by head has no order of its inputs, and no step of theirs
        rank = made.inputs[1].type.shape[1]
        assert isinstance(rank, int)
        before = heads * (width + values[0].stop - values[0].start)
        if LESS * (2 * rank + sum(p.stop - p.start for p in keys if p.shared)) > before:
            return None
        return _Latent(made, heads, tuple(keys), values[0])

    def _parts(self, value: Value, heads: int) -> list[_Part] | None:
        """Where the channels of a value [1,T,H,D] or [1,H,T,D] come from; None where that cannot be said."""
        node = self._made.get(value.name)
        if node is None:
            return None
        last = len(value.type.shape) - 1
        if isinstance(node.op, Cast):
            return self._parts(node.inputs[0], heads)
        if isinstance(node.op, Permute) and len(node.op.order) == 4 and node.op.order[3] == 3:
            return self._parts(node.inputs[0], heads)
        if isinstance(node.op, Concat) and node.op.dim == last:
            parts = [self._parts(v, heads) for v in node.inputs]
            return None if any(p is None for p in parts) else [q for p in parts if p is not None for q in p]
        if isinstance(node.op, Slice) and node.op.dim == last and node.op.step == 1:
            whole = self._parts(node.inputs[0], heads)
            return _cut(whole, node.op.start, node.op.stop) if whole is not None else None
        if isinstance(node.op, Expand):
            source = node.inputs[0]
            shape = source.type.shape
            if len(shape) == 4 and [d for d in shape if d != 1] == [TOKENS, shape[3]] and isinstance(shape[3], int):
                return [_Part(source, 0, shape[3], True)]
            return None
        if isinstance(node.op, View) and len(value.type.shape) == 4 and value.type.shape[:3] == (1, TOKENS, heads):
            source, size = node.inputs[0], value.type.shape[3]
            if isinstance(size, int) and source.type.shape[-1] == heads * size:
                return [_Part(source, 0, size, False)]
        return [_Part(value, 0, int(str(value.type.shape[last])), False)] if node.op.name == "full" else None


def _cut(parts: list[_Part], start: int, stop: int) -> list[_Part]:
    """Channels start … stop of the channels that `parts` are."""
    found, place = [], 0
    for part in parts:
        size = part.stop - part.start
        low, high = max(start - place, 0), min(stop - place, size)
        if low < high:
            found.append(replace(part, start=part.start + low, stop=part.start + high))
        place += size
    return found
