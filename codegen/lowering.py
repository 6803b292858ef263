"""What lowering does alike for every target: where each value lies, which weights are read, which loops stand in for kernels."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..compiler.ir.graph import Graph, Node, Value
from ..compiler.ir.ops.cast import Cast
from ..compiler.ir.ops.concat import Concat
from ..compiler.ir.ops.cumsum import Cumsum
from ..compiler.ir.ops.expand import Expand
from ..compiler.ir.ops.full import Full
from ..compiler.ir.ops.gather import Gather
from ..compiler.ir.ops.index_select import IndexSelect
from ..compiler.ir.ops.iota import Iota
from ..compiler.ir.ops.linear import Linear
from ..compiler.ir.ops.matmul import Matmul
from ..compiler.ir.ops.permute import Permute
from ..compiler.ir.ops.pointwise import Pointwise
from ..compiler.ir.ops.reduce import Reduce
from ..compiler.ir.ops.scatter import Scatter
from ..compiler.ir.ops.slice import Slice
from ..compiler.ir.ops.softmax import Softmax
from ..compiler.ir.ops.topk import Topk
from ..compiler.ir.types import Dim, Sym, product
from ..errors import UnsupportedError
from ..quant.scheme import Scheme, parse_scheme
from .expression import Expr
from .layout import BYTES, Buffer, Layout, dense_type, storage

CARRY = "%carry"
"""What the layers before a cut hand to those after it, an input of the second part: [1,T,W] float32."""
INPUTS = {"%input_ids": 0, "%position_ids": 1, "%logits_rows": 2, CARRY: 3}
WHOLE_COST = 4
"""A layer that sees everything counts as much as this many with a window, where a region of a block may stay unused."""
MOST_COST = 1.1


@dataclass(frozen=True)
class Pointer:
    """What a call points at: a weight, a buffer, a cache, a state, or an input of the step."""

    kind: str
    index: int


@dataclass(frozen=True)
class WeightSpec:
    """A tensor of the artifact: how to pack which static values of the graph. `name` says what it is to a person."""

    name: str
    pack: str
    values: tuple[Value, ...]
    scheme: Scheme | None = None
    gated: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        return (self.pack, tuple(v.name for v in self.values), self.scheme, self.gated)


@dataclass(frozen=True)
class Cache:
    """One layer's key/value cache. `reach`: how many positions a query sees at most, itself included; 0 for all before it."""

    groups: int
    dk: int
    dv: int
    kind: str
    reach: int = 0


@dataclass(frozen=True)
class CachePlaces:
    """Which table of blocks and which region of memory each cache has; `reaches`: what the caches of each table reach.

    A block of the pool is one of every region, whatever table it stands in: layers that see everything and layers with a window
    take blocks from one pool, and give them back on their own.
    """

    reaches: tuple[int, ...]
    places: tuple[tuple[int, int], ...]

    @property
    def regions(self) -> list[list[int]]:
        """The caches that share each region."""
        count = 1 + max((region for _, region in self.places), default=-1)
        return [[i for i, (_, region) in enumerate(self.places) if region == r] for r in range(count)]


def place_caches(caches: Sequence[Cache], tables: str = "each") -> CachePlaces:
    """A table for the caches of one reach, or several of equal size: as large as they may be without leaving many regions of a block unused.
    tables: "alike", one table for all unless the caches of a region have one shape; "one", one table for all."""
    if tables == "one":
        return CachePlaces((0,), tuple((0, i) for i in range(len(caches))))
    kinds: dict[int, list[int]] = {}
    for i, cache in enumerate(caches):
        kinds.setdefault(cache.reach, []).append(i)
    by_reach = sorted(kinds.items())
    if len(by_reach) < 2:
        return CachePlaces((by_reach[0][0] if by_reach else 0,), tuple((0, i) for i in range(len(caches))))

    def cost(size: int) -> int:  # whole contexts weigh more than windows
        return sum(-(-len(held) // size) * size * (1 if reach else WHOLE_COST) for reach, held in by_reach)

    size = max(n for n in range(1, len(caches) + 1) if cost(n) <= MOST_COST * cost(1))
    reaches: list[int] = []
    places = [(0, 0)] * len(caches)
    for reach, held in by_reach:
        largest_first = sorted(held, key=lambda i: -caches[i].groups * (caches[i].dk + caches[i].dv))
        for at, i in enumerate(largest_first):
            places[i] = (len(reaches) + at // size, at % size)
        reaches += [reach] * -(-len(held) // size)
    made = CachePlaces(tuple(reaches), tuple(places))
    if tables == "alike" and any(len({replace(caches[i], reach=0) for i in held}) > 1 for held in made.regions):
        return place_caches(caches, "one")
    return made


class Lowering(ABC):
    """Walks a graph once. Owns the layout of every computed value; a target adds `lower_NAME` for the ops it has kernels for.

    `loops` makes the generated loops: a module with `pointwise`, `reduction`, `softmax`, … whose results go to `call_generic`.
    """

    loops: Any

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.static = graph.static_values()
        self.producers = graph.producers()
        self.users = graph.users()
        self.specs: dict[tuple[object, ...], int] = {}
        self.weights: list[WeightSpec] = []
        self.buffers: list[Buffer] = []
        self.layouts: dict[str, Layout] = {}
        self.exprs: dict[str, Expr] = {}
        self.fallbacks: list[dict[str, str]] = []

    @abstractmethod
    def call_generic(self, node: Node | None, kernel: str, *loop: Any) -> None:
        """Call what a function of `loops` made."""

    def walk(self) -> Layout:
        """Lower every node; the layout of the logits."""
        for value in self.graph.inputs:
            buffer = Buffer(-1 - INPUTS[value.name], "f32" if value.name == CARRY else "i32", product(value.type.shape))
            self.layouts[value.name] = Layout.dense(buffer, value.type.shape)
        for node in self.graph.nodes:
            if node.outputs[0].name not in self.static or (isinstance(node.op, Full) and node.output.type.shape == ()):
                self.lower(node)
        (output,) = self.graph.outputs
        return self.dense(output)

    # --- pieces ---------------------------------------------------------------------------------------------------

    def new_buffer(self, dtype: str, size: Dim) -> Buffer:
        buffer = Buffer(len(self.buffers), dtype, size)
        self.buffers.append(buffer)
        return buffer

    def new_value(self, value: Value) -> Layout:
        dtype, size = dense_type(value.type)
        layout = Layout.dense(self.new_buffer(dtype, size), value.type.shape)
        self.layouts[value.name] = layout
        return layout

    def new_tokens_first(self, value: Value) -> Layout:
        """A new buffer in which the other dimensions of a token lie together, so that they can be cut with fixed strides."""
        shape = value.type.shape
        order = sorted(range(len(shape)), key=lambda d: not isinstance(shape[d], Sym))
        dtype, size = dense_type(value.type)
        dense = Layout.dense(self.new_buffer(dtype, size), tuple(shape[d] for d in order))
        layout = dense.permute(tuple(order.index(d) for d in range(len(shape))))
        self.layouts[value.name] = layout
        return layout

    def pointer(self, buffer: Buffer) -> Pointer:
        return Pointer("input", -1 - buffer.id) if buffer.id < 0 else Pointer("buffer", buffer.id)

    def weight(self, spec: WeightSpec) -> Pointer:
        if spec.key not in self.specs:
            self.specs[spec.key] = len(self.weights)
            self.weights.append(spec)
        return Pointer("weight", self.specs[spec.key])

    def vector(self, value: Value, gated: str = "", pad: str = "vector") -> Pointer:
        return self.weight(WeightSpec(value.name, pad, (value,), gated=gated))

    def layout(self, value: Value) -> Layout:
        """Where a value lies; a deferred pointwise expression is computed now, a static one is stored as a weight."""
        if value.name in self.layouts:
            return self.layouts[value.name]
        if value.name in self.exprs:
            expr = self.exprs.pop(value.name)
            out = self.new_value(value)
            self.call_generic(self.producers.get(value.name), "pointwise", *self.loops.pointwise(expr, out))
            return out
        if value.name in self.static:
            dtype, size = dense_type(value.type)
            assert isinstance(size, int), value
            pack = "vector" if dtype == "f32" else "integers"
            pointer = self.weight(WeightSpec(value.name, pack, (value,)))
            self.layouts[value.name] = Layout.dense(Buffer(-1000 - pointer.index, dtype, size), value.type.shape)
            return self.layouts[value.name]
        raise AssertionError(f"{value.name} has not been lowered")

    def dense(self, value: Value) -> Layout:
        """The value in a buffer of its own, contiguous."""
        layout = self.layout(value)
        if layout.is_dense and layout.buffer.id >= 0:
            return layout
        return self.copy(value, layout)

    def copy(self, value: Value, layout: Layout, *, tokens_first: bool = False) -> Layout:
        out = self.new_tokens_first(value) if tokens_first else self.new_value(value)
        self.call_generic(
            self.producers.get(value.name),
            "copy",
            *self.loops.pointwise(Expr(layout.buffer.dtype, layout.shape, leaf=layout), out),
        )
        return out

    def rows(self, value: Value) -> tuple[Layout, Dim, int, int]:
        """(layout, rows, stride, offset): the value as regular rows of contiguous floats; copied when it is not."""
        layout = self.layout(value)
        found = layout.rows()
        if found is None:
            layout = self.copy(value, layout)
            found = layout.rows()
            assert found is not None
        return (layout, *found)

    def linear_operands(self, node: Node) -> dict[str, Value]:
        """A linear's operands by name; raises UnsupportedError where its weight is computed."""
        assert isinstance(node.op, Linear)
        at = {name: node.inputs[i] for name, i in node.op.operands.items()}
        if at["weight"].name not in self.static:
            raise UnsupportedError(f"a linear with a computed weight ({node.scope})", node.source)
        return at

    def scheme_of(self, weight: Value, text: str) -> Scheme:
        """A product's scheme: as the graph says it, or its weight's dtype. With bfloat16 weights activations are bfloat16 unless it says more."""
        scheme = parse_scheme(text) if text else Scheme(weight.type.dtype)
        return scheme.with_activations("bf16") if scheme.kind == "bf16" and not scheme.activations else scheme

    def heads(self, value: Value) -> tuple[Layout, Dim, int, int, int, int]:
        """(layout, rows, heads, row stride, head stride, offset) of a value [..., rows, heads, width] with a contiguous width."""
        shape = value.type.shape
        layout = self.layout(value)
        lead = layout.view((product(shape[:-2]), *shape[-2:])) if len(shape) >= 2 else layout.view((1, 1, *shape))
        if (
            lead is None
            or (lead.strides[2] not in (1,) and shape[-1] != 1)
            or not isinstance(lead.strides[0], int)
            or not isinstance(lead.strides[1], int)
            or not isinstance(lead.shape[1], int)
        ):
            layout = self.copy(value, layout)
            lead = (
                layout.view((product(shape[:-1]), 1, shape[-1]))
                if len(shape) < 2 or not isinstance(shape[-2], int)
                else layout.view((product(shape[:-2]), *shape[-2:]))
            )
            assert lead is not None
        rows, heads = lead.shape[0], lead.shape[1]
        row, head = lead.strides[0], lead.strides[1]
        assert isinstance(heads, int) and isinstance(row, int) and isinstance(head, int)
        return layout, rows, heads, row, head, lead.offset

    def _any_pointer(self, buffer: Buffer) -> Pointer:
        return Pointer("weight", -1000 - buffer.id) if buffer.id <= -1000 else self.pointer(buffer)

    def report(self, node: Node, reason: str) -> None:
        self.fallbacks.append(
            {"module": node.scope, "op": node.op.name if not isinstance(node.op, Pointwise) else node.op.fn, "reason": reason}
        )

    # --- nodes ----------------------------------------------------------------------------------------------------

    def lower(self, node: Node) -> None:
        handler: Callable[[Node], None] | None = getattr(self, f"lower_{node.op.name}", None)
        if handler is None:
            raise UnsupportedError(f"{node.op.name} has no kernel for this target ({node.scope})", node.source)
        handler(node)

    def _view_like(self, node: Node, change: Callable[[Layout], Layout | None]) -> None:
        layout = self.layout(node.inputs[0])
        made = change(layout)
        if made is None:
            made = change(self.copy(node.inputs[0], layout))
        assert made is not None
        self.layouts[node.output.name] = made

    def lower_view(self, node: Node) -> None:
        self._view_like(node, lambda x: x.view(node.output.type.shape))

    def lower_permute(self, node: Node) -> None:
        assert isinstance(node.op, Permute)
        order = node.op.order
        self._view_like(node, lambda x: x.permute(order))

    def lower_slice(self, node: Node) -> None:
        op = node.op
        assert isinstance(op, Slice)
        layout = self.layout(node.inputs[0])
        if not isinstance(layout.strides[op.dim], int):
            layout = self.copy(node.inputs[0], layout, tokens_first=True)
        self.layouts[node.output.name] = layout.slice(op.dim, op.start, op.stop, op.step)

    def lower_expand(self, node: Node) -> None:
        assert isinstance(node.op, Expand)
        self._view_like(node, lambda x: x.expand(node.output.type.shape))

    def lower_full(self, node: Node) -> None:
        assert isinstance(node.op, Full)
        self.exprs[node.output.name] = Expr(storage(node.output.type.dtype), node.output.type.shape, number=node.op.value)

    def lower_iota(self, node: Node) -> None:
        assert isinstance(node.op, Iota)
        raise UnsupportedError(f"a computed index vector remains ({node.scope})")

    def expression(self, value: Value) -> Expr:
        if value.name in self.exprs and (len(self.users.get(value.name, [])) == 1 or self.exprs[value.name].number is not None):
            return self.exprs[value.name]
        layout = self.layout(value)
        return Expr(layout.buffer.dtype, layout.shape, leaf=layout)

    def _pointwise(self, node: Node, fn: str, dtype: str) -> None:
        args = tuple(self.expression(v) for v in node.inputs)
        if fn != "cast" and not self.loops.supports(fn, [a.dtype for a in args]):
            raise UnsupportedError(f"{fn} has no code for this target ({node.scope})", node.source)
        expr = Expr(storage(dtype), node.output.type.shape, fn, args)
        for value in node.inputs:
            if value.name in self.exprs and self.exprs[value.name].number is None:
                del self.exprs[value.name]
        self.exprs[node.output.name] = expr
        self.report(node, "runs as a generic elementwise loop")
        follow = self.users.get(node.output.name, [])
        elementwise = (
            len(follow) == 1
            and isinstance(follow[0].op, Pointwise | Cast)
            and follow[0].output.type.shape == node.output.type.shape
        )
        if not elementwise:
            self.layout(node.output)

    def lower_pointwise(self, node: Node) -> None:
        assert isinstance(node.op, Pointwise)
        self._pointwise(node, node.op.fn, node.op.dtype)

    def lower_cast(self, node: Node) -> None:
        assert isinstance(node.op, Cast)
        source = node.inputs[0]
        if storage(source.type.dtype) == storage(node.op.dtype) and source.name in self.layouts:
            self.layouts[node.output.name] = self.layouts[source.name]
        else:
            self._pointwise(node, "cast", node.op.dtype)

    def _refuse_token_sum(self, node: Node, dims: Sequence[int]) -> None:
        shape = node.inputs[0].type.shape
        if any(isinstance(shape[d], Sym) for d in dims):
            raise UnsupportedError(
                f"{node.op.name} runs over the tokens of a batch, so a request's result would depend on its neighbours ({node.scope})",
                node.source,
            )

    def lower_reduce(self, node: Node) -> None:
        op = node.op
        assert isinstance(op, Reduce)
        self._refuse_token_sum(node, op.dims)
        x = self.layout(node.inputs[0])
        self.call_generic(node, "reduce", *self.loops.reduction(op.fn, x, op.dims, op.keepdim, self.new_value(node.output)))
        self.report(node, "runs as a generic reduction")

    def lower_softmax(self, node: Node) -> None:
        op = node.op
        assert isinstance(op, Softmax)
        self._refuse_token_sum(node, (op.dim,))
        x = self.layout(node.inputs[0])
        self.call_generic(node, "softmax", *self.loops.softmax(x, op.dim, op.log, self.new_value(node.output)))

    def lower_topk(self, node: Node) -> None:
        assert isinstance(node.op, Topk)
        x = self.layout(node.inputs[0])
        values, indices = (self.new_value(o) for o in node.outputs)
        self.call_generic(node, "topk", *self.loops.topk(x, node.op.k, values, indices))

    def lower_gather(self, node: Node) -> None:
        assert isinstance(node.op, Gather)
        self._refuse_token_sum(node, (node.op.dim,))
        x, index = (self.layout(v) for v in node.inputs)
        self.call_generic(node, "gather", *self.loops.gather(x, index, node.op.dim, self.new_value(node.output)))

    def lower_index_select(self, node: Node) -> None:
        assert isinstance(node.op, IndexSelect)
        x, index = (self.layout(v) for v in node.inputs)
        self.call_generic(node, "index_select", *self.loops.index_select(x, index, node.op.dim, self.new_value(node.output)))

    def lower_scatter(self, node: Node) -> None:
        assert isinstance(node.op, Scatter)
        self._refuse_token_sum(node, (node.op.dim,))
        x, index, source = (self.layout(v) for v in node.inputs)
        self.call_generic(node, "scatter", *self.loops.scatter(x, index, source, node.op.dim, self.new_value(node.output)))

    def lower_cumsum(self, node: Node) -> None:
        assert isinstance(node.op, Cumsum)
        self._refuse_token_sum(node, (node.op.dim,))
        self.call_generic(
            node, "cumsum", *self.loops.cumsum(self.layout(node.inputs[0]), node.op.dim, self.new_value(node.output))
        )

    def lower_concat(self, node: Node) -> None:
        assert isinstance(node.op, Concat)
        out, start = self.new_tokens_first(node.output), 0
        for value in node.inputs:
            x = self.layout(value)
            size = value.type.shape[node.op.dim]
            assert isinstance(size, int)
            part = out.slice(node.op.dim, start, start + size, 1)
            self.call_generic(node, "concat", *self.loops.pointwise(Expr(x.buffer.dtype, x.shape, leaf=x), part))
            start += size

    def lower_matmul(self, node: Node) -> None:
        assert isinstance(node.op, Matmul)
        self._refuse_token_sum(node, (len(node.inputs[0].type.shape) - 1,))
        a, b = (self.layout(v) for v in node.inputs)
        self.call_generic(node, "matmul", *self.loops.matmul(a, b, self.new_value(node.output)))
        self.report(node, "runs as a generic matrix product")


def plain_name(text: str) -> str:
    """A weight's name in the artifact: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^\w.\-]", "_", text.lstrip("@%"))


def unique_names(specs: list[WeightSpec]) -> list[str]:
    """A name in the artifact for each tensor."""
    names: list[str] = []
    for i, spec in enumerate(specs):
        stem = plain_name(spec.name)
        names.append(stem if stem not in names else f"{stem}.{i}")
    return names


def assign_slots(
    uses: Sequence[Sequence[Pointer]], buffers: Sequence[Buffer], logits: Buffer, list_bytes: int = 0
) -> tuple[list[dict[str, int]], dict[int, int]]:
    """Give every buffer a slot of the arena; buffers whose lives do not overlap share one. Returns slots and buffer → slot.

    `uses`: the pointers of each call, in order; `list_bytes`: what an i32 buffer has beyond its elements.
    """
    last: dict[int, int] = {}
    first: dict[int, int] = {}
    for i, pointers in enumerate(uses):
        for pointer in pointers:
            if pointer.kind == "buffer":
                first.setdefault(pointer.index, i)
                last[pointer.index] = i
    last[logits.id] = len(uses)
    slots: list[dict[str, int]] = []
    free_at: list[int] = []
    of: dict[int, int] = {}
    for buffer in sorted(buffers, key=lambda b: first.get(b.id, 0)):
        if buffer.id not in first:
            continue
        need = _slot_need(buffer, list_bytes)
        options = [
            i
            for i, end in enumerate(free_at)
            if end < first[buffer.id]
            and (slots[i]["tokens"] > 0) == (need["tokens"] > 0)
            and (slots[i]["rows"] > 0) == (need["rows"] > 0)
        ]
        if options:
            chosen = min(options, key=lambda i: (abs(sum(slots[i].values()) - sum(need.values())), i))
            for key, size in need.items():
                slots[chosen][key] = max(slots[chosen][key], size)
        else:
            chosen = len(slots)
            slots.append(need)
            free_at.append(0)
        free_at[chosen] = last[buffer.id]
        of[buffer.id] = chosen
    return slots, of


def _slot_need(buffer: Buffer, list_bytes: int) -> dict[str, int]:
    element = BYTES[buffer.dtype]
    need = {"tokens": 0, "rows": 0, "fixed": list_bytes if buffer.dtype == "i32" else 0}
    if isinstance(buffer.size, Sym):
        need["tokens" if buffer.size.name == "T" else "rows"] = buffer.size.scale * element
    else:
        need["fixed"] += buffer.size * element
    return need
