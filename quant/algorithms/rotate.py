"""Rotations folded into weights (QuaRot, Ashkboos et al., 2024; SpinQuant's R1): the residual stream in a rotated basis.

An RMS norm without weights commutes with a rotation. So each norm's weight moves into the products that read it, what writes
to the stream is rotated, what reads from it rotated back, and nothing changes but how evenly values are spread: large ones in
few channels, which rounding of weights and activations suffers from, are shared out among all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from ...compiler.importer import Imported
from ...compiler.ir.graph import Graph, Node, Value
from ...compiler.ir.ops.cast import Cast
from ...compiler.ir.ops.embedding import Embedding
from ...compiler.ir.ops.experts import Experts
from ...compiler.ir.ops.index_select import IndexSelect
from ...compiler.ir.ops.linear import Linear
from ...compiler.ir.ops.pointwise import Pointwise
from ...compiler.ir.ops.rms_norm import RmsNorm
from ...compiler.ir.ops.view import View
from ...errors import UnsupportedError
from ..folding import Finder, Folds, Place

SEED = 20231


def rotated(imported: Imported, graph: Graph, params: Callable[[str], torch.Tensor]) -> tuple[Imported, Folds]:
    """The raised `graph` and its parameters with a rotated residual stream; tied heads get weights of their own.

    Raises UnsupportedError where the stream is read by anything but an RMS norm, or written by anything but products and tables.
    """
    graph, alias = _untied(graph)
    folds = Folds(lambda name: params(alias.get(name, name)))
    stream = _Stream(graph, folds)
    stream.follow()
    return replace(imported, graph=graph), folds


def rotation(size: int) -> torch.Tensor:
    """An orthogonal matrix [size, size] float64: Hadamard's with random signs where one is known to construct, else a random one."""
    generator = torch.Generator().manual_seed(SEED)
    signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
    found = hadamard(size)
    if found is not None:
        return found * signs / size**0.5
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0] * signs


def hadamard(size: int) -> torch.Tensor | None:
    """A Hadamard matrix by Sylvester's and Paley's constructions and their products; None where they give none."""
    if size in (1, 2):
        return torch.tensor([[1.0]] if size == 1 else [[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    for base in (2, *range(4, size + 1, 4)):
        if (size % base == 0 and base < size) or (base == size and base > 2):
            first = hadamard(2) if base == 2 else _paley(base)
            rest = hadamard(size // base) if first is not None else None
            if first is not None and rest is not None:
                return torch.kron(first, rest)
    return None


def _paley(size: int) -> torch.Tensor | None:
    for prime, second in ((size - 1, False), (size // 2 - 1, True)):
        if _is_prime(prime) and prime % 4 == (1 if second else 3):
            squares = {i * i % prime for i in range(1, prime)}
            character = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, prime)], dtype=torch.float64)
            index = torch.arange(prime)
            core = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
            core[1:, 1:] = character[(index[:, None] - index) % prime]
            core[0, 1:] = 1
            core[1:, 0] = 1 if second else -1
            one = torch.eye(prime + 1, dtype=torch.float64)
            if not second:
                return one + core
            plus = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
            minus = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
            return torch.kron(core, plus) + torch.kron(one, minus)
    return None


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % i for i in range(2, int(number**0.5) + 1))


def _untied(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """Each product whose weight is also a table gets a parameter of its own; new names → the checkpoint's."""
    tables = {n.inputs[0].name for n in graph.nodes if isinstance(n.op, Embedding)}
    alias: dict[str, str] = {}
    params, nodes = list(graph.params), []
    for node in graph.nodes:
        if isinstance(node.op, Linear) and node.inputs[1].name in tables:
            mine = Value(f"@{node.scope or 'head'}.untied.weight", node.inputs[1].type)
            alias[mine.name[1:]] = node.inputs[1].name[1:]
            params.append(mine)
            node = replace(node, inputs=(node.inputs[0], mine, *node.inputs[2:]))
        nodes.append(node)
    return replace(graph, params=tuple(params), nodes=tuple(nodes)), alias


class _Stream:
    """Follows the residual stream from the embedding, and changes what reads and writes it."""

    def __init__(self, graph: Graph, folds: Folds) -> None:
        self._graph, self._folds, self._finder = graph, folds, Finder(graph)
        table = next(
            (n for n in graph.nodes if isinstance(n.op, Embedding) and n.outputs[0].name not in graph.static_values()), None
        )
        if table is None or not isinstance(table.inputs[0].type.shape[-1], int):
            raise UnsupportedError("rotations start at an embedding table, and there is none", "use another --algorithm")
        self._start = table
        self._turn = rotation(table.inputs[0].type.shape[-1]).float()
        self._written: set[str] = set()

    def follow(self) -> None:
        members = self._members()
        for name in members:
            for node in self._finder.users.get(name, []):
                if isinstance(node.op, RmsNorm):
                    self._read(node)
                elif node.outputs[0].name not in members:
                    raise self._refused(node)
        for name in sorted(members):
            self._write(self._finder.made[name], members)

    def _members(self) -> set[str]:
        """The values of the stream, and what is added to it."""
        members: set[str] = set()
        stack = [self._start.outputs[0].name]
        while stack:
            name = stack.pop()
            if name in members:
                continue
            members.add(name)
            for node in self._finder.users.get(name, []):
                if self._is_linear(node):
                    stack.append(node.outputs[0].name)
                    stack += [v.name for v in node.inputs if v.name not in self._finder.static]
            made = self._finder.made[name]
            if self._is_linear(made):
                stack += [v.name for v in made.inputs if v.name not in self._finder.static]
        return members

    def _is_linear(self, node: Node) -> bool:
        """Whether a node only adds, scales by a number, casts or splits rows."""
        if isinstance(node.op, Cast) or (
            isinstance(node.op, View) and node.outputs[0].type.shape[-1] == node.inputs[0].type.shape[-1]
        ):
            return True
        if isinstance(node.op, Pointwise) and node.op.fn == "add":
            return all(v.name not in self._finder.static for v in node.inputs)
        if isinstance(node.op, Pointwise) and node.op.fn in ("mul", "div"):
            return self._finder.number(node.inputs[1]) is not None or self._finder.number(node.inputs[0]) is not None
        return False

    def _write(self, node: Node, members: set[str]) -> None:
        if self._is_linear(node):
            return
        if isinstance(node.op, Embedding):
            self._rotate(node, node.inputs[0], 1)
        elif isinstance(node.op, Linear):
            if node.op != Linear(bias=node.op.bias):
                raise self._refused(node)
            self._rotate(node, node.inputs[1], len(node.inputs[1].type.shape) - 2)
            if node.op.bias:
                self._rotate(node, node.inputs[2], 0)
        elif isinstance(node.op, Experts):
            self._rotate(node, node.inputs[5 if node.op.bias else 4], 1)
            if node.op.bias:
                self._rotate(node, node.inputs[6], 1)
        else:
            raise self._refused(node)

    def _read(self, norm: Node) -> None:
        """Move a norm's weight into the products that read it, and rotate them."""
        weights = self._finder.weights(norm.outputs[0], (IndexSelect,))
        if not weights or norm.op.l2:  # type: ignore[attr-defined]
            raise self._refused(norm)
        if len(norm.inputs) > 1:
            place = self._finder.norm_weight(norm.inputs[1])
            if place is None:
                raise self._refused(norm)
            scale = self._folds(place.param).float() + place.offset
            self._folds.change(place.param, partial(torch.full_like, fill_value=1.0 - place.offset))
            for _, target in weights:
                self._folds.multiply(target, scale)
        for _, target in weights:
            self._turned(target)

    def _rotate(self, node: Node, value: Value, axis: int) -> None:
        place = self._finder.place(value, axis)
        if place is None:
            raise self._refused(node)
        self._turned(place)

    def _turned(self, place: Place) -> None:
        if f"{place.param} {place.axis}" in self._written:
            return
        self._written.add(f"{place.param} {place.axis}")
        turn = self._turn
        self._folds.change(place.param, lambda t: (t.float().movedim(place.axis, -1) @ turn).movedim(-1, place.axis).contiguous())

    def _refused(self, node: Node) -> UnsupportedError:
        return UnsupportedError(
            f"the residual stream cannot be rotated: {node.op.name} in {node.scope or 'the model'} neither reads nor writes it linearly",
            "use an --algorithm without rotate",
        )
