"""The indexer of sparse attention that a model writes out: recognised by what it computes, not by how it is written.

The anchor is `best_keys`. Its scores must be Σ_h w[t,h] · relu(α · q[t,h]·k[s]): the values with one token dimension that they are
made of are given random numbers, and only where the scores are those of the op is the region replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from ..compiler.ir.graph import Graph, Node, Value
from ..compiler.ir.ops.attention import Attention
from ..compiler.ir.ops.best_keys import BestKeys
from ..compiler.ir.ops.expand import Expand
from ..compiler.ir.ops.indexer import Indexer
from ..compiler.ir.ops.matmul import Matmul
from ..compiler.ir.ops.permute import Permute
from ..compiler.ir.ops.view import View
from ..compiler.ir.rewrite import Rewriter
from ..compiler.ir.types import Dim, Sym
from .equivalence import Probe, close
from .hoist import hoisted
from .pass_ import Pass

TOKENS = 11


@dataclass(frozen=True)
class _Region:
    """One indexer's operands, and the size of its heads: each value has one token dimension."""

    scores: Value
    query: Value  # T, H and D in some order
    key: Value  # T and D
    weight: Value  # T and H
    width: int


@dataclass(frozen=True)
class RaiseIndexer(Pass):
    """best_keys(Σ_h w · relu(α · q·kᵀ)) over all pairs of tokens → indexer."""

    name: ClassVar[str] = "raise_indexer"
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False)

    def run(self, graph: Graph) -> Graph:
        if not any(isinstance(n.op, BestKeys) for n in graph.nodes):
            return graph
        graph = hoisted(graph)
        probe = Probe(graph, self.buffers)
        caches = 1 + max((n.op.cache for n in graph.nodes if isinstance(n.op, Attention | Indexer)), default=-1)
        rewriter = Rewriter(graph)
        for node in graph.nodes:
            region = _region(node, graph) if isinstance(node.op, BestKeys) else None
            scale = _identify(region, probe) if region is not None else None
            if region is None or scale is None:
                rewriter.keep(node)
                continue
            assert isinstance(node.op, BestKeys)
            made = rewriter.add_as(node, Indexer(caches, node.op.k, scale), _operands(rewriter, node, region))
            rewriter.replace(node.output, made[0])
            caches += 1
        return rewriter.finish()


def _tokens(value: Value) -> int:
    """How many token dimensions a value has."""
    return sum(d.name.split("*").count("T") for d in value.type.shape if isinstance(d, Sym))


def _region(anchor: Node, graph: Graph) -> _Region | None:
    """What lies between values of one token each and the scores of all pairs of them."""
    made, static = graph.producers(), graph.static_values()
    inside: dict[str, Node] = {}
    stack = [anchor.inputs[0]]
    while stack:
        node = made.get(stack.pop().name)
        if node is not None and node.output.name not in inside:
            inside[node.output.name] = node
            stack.extend(v for v in node.inputs if _tokens(v) > 1)
    outside = {v.name: v for n in inside.values() for v in n.inputs if v.name not in inside and v.name not in static}
    outside = {name: v for name, v in outside.items() if _tokens(v) == 1}
    products = [
        n for n in inside.values() if isinstance(n.op, Matmul) and all(_source(v, made).name in outside for v in n.inputs)
    ]
    if len(products) != 1 or len(outside) != 3:
        return None
    left, right = products[0].inputs
    query, key, width = _source(left, made), _source(right, made), left.type.shape[-1]
    if query == key or not isinstance(width, int):
        return None
    (weight,) = (v for name, v in outside.items() if name not in (query.name, key.name))
    region = _Region(anchor.inputs[0], query, key, weight, width)
    return region if _heads(region) is not None else None


def _source(value: Value, made: dict[str, Node]) -> Value:
    """What a value of pairs of tokens repeats, or the value itself."""
    while _tokens(value) > 1 and (node := made.get(value.name)) is not None and isinstance(node.op, Expand | View | Permute):
        value = node.inputs[0]
    return value


def _sizes(value: Value) -> list[Dim]:
    return [d for d in value.type.shape if d != 1]


def _heads(region: _Region) -> int | None:
    """H, where the operands' dimensions are those of an indexer: [T,H,D] or [H,T,D], [T,D] or [D,T], [T,H] or [H,T]; else None."""
    token, width = Sym("T"), region.width
    query, key, weight = _sizes(region.query), _sizes(region.key), _sizes(region.weight)
    if (
        token not in query
        or token not in key
        or token not in weight
        or query[-1] != width
        or sorted(map(str, key)) != sorted((str(token), str(width)))
    ):
        return None
    heads = [d for d in query[:-1] if d != token]
    if len(heads) > 1 or [d for d in weight if d != token] != heads:
        return None
    count = heads[0] if heads else 1
    return count if isinstance(count, int) else None


def _identify(region: _Region, probe: Probe) -> float | None:
    """α, where the scores are those of an indexer; None for anything else."""
    heads = _heads(region)
    assert heads is not None
    alpha = None
    for seed in (0, 1):
        draw = [probe.random(v, TOKENS, 3 * seed + i) for i, v in enumerate((region.query, region.key, region.weight))]
        got = probe.evaluate(
            region.scores, dict(zip((region.query, region.key, region.weight), draw, strict=True)), torch.arange(TOKENS)
        )
        q = _token_first(draw[0], region.query).reshape(TOKENS, heads, region.width)
        k, w = (_token_first(t, v).reshape(TOKENS, -1) for t, v in zip(draw[1:], (region.key, region.weight), strict=True))
        plain = torch.einsum("tj,tjs->ts", w, torch.relu(torch.einsum("tje,se->tjs", q, k)))
        if got.numel() != plain.numel():
            return None
        got = got.reshape(plain.shape)
        if alpha is None:
            alpha = float(f"{float((got * plain).sum() / plain.square().sum()):.12g}")
        if not alpha > 0 or not close(got, alpha * plain, 1e-6):
            return None
    return alpha


def _token_first(tensor: torch.Tensor, value: Value) -> torch.Tensor:
    return tensor.movedim(value.type.shape.index(Sym("T")), 0)


def _operands(rewriter: Rewriter, node: Node, region: _Region) -> list[Value]:
    """q [1,T,H,D], key [1,T,1,D], weight [1,T,H]."""
    heads = _heads(region)
    operands = []
    for value, shape in (
        (region.query, (1, Sym("T"), heads, region.width)),
        (region.key, (1, Sym("T"), 1, region.width)),
        (region.weight, (1, Sym("T"), heads)),
    ):
        at = value.type.shape.index(Sym("T"))
        order = (at, *(i for i in range(len(value.type.shape)) if i != at))
        if order != tuple(range(len(order))):
            (value,) = rewriter.add_as(node, Permute(order), (value,))
        operands.append(rewriter.add_as(node, View(",".join(map(str, shape))), (value,))[0])
    return operands
