"""Attention that a model writes out: recognised by what it computes, not by how it is written.

The anchor is a softmax over [T,T]. Its scores must be α·q·k + B, where B depends on positions alone: α is found by evaluating
the region on random numbers, and B is taken apart into a causal mask, a window, and ALiBi slopes. The whole region is then run
against the attention op; only where both agree is it replaced.

A number that each key adds to its scores is a channel of the key, for which every query has a 1. Numbers that a query adds by the
distance of the key are an operand of the op.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from ..compiler.ir.graph import Graph, Node, Value
from ..compiler.ir.ops.attention import Attention
from ..compiler.ir.ops.cast import Cast
from ..compiler.ir.ops.concat import Concat
from ..compiler.ir.ops.cumsum import Cumsum
from ..compiler.ir.ops.expand import Expand
from ..compiler.ir.ops.full import Full
from ..compiler.ir.ops.gather import Gather
from ..compiler.ir.ops.indexer import Indexer
from ..compiler.ir.ops.matmul import Matmul
from ..compiler.ir.ops.permute import Permute
from ..compiler.ir.ops.pointwise import Pointwise
from ..compiler.ir.ops.softmax import Softmax
from ..compiler.ir.ops.view import View
from ..compiler.ir.rewrite import Rewriter
from ..compiler.ir.types import Sym, TensorType
from ..errors import UnsupportedError
from .equivalence import Probe, close
from .hoist import hoisted
from .pass_ import Pass

TOKENS = 24
MASKED = -1e4  # scores at or below are those of positions that are not seen


@dataclass(frozen=True)
class _Region:
    """One attention: the products' operands, and what lies between them."""

    softmax: Node
    query: Value  # [..., T, D]
    key: Value  # [..., D, T]
    value: Value  # [..., T, Dv]
    out: Value
    bias: Value | None = None  # what a key adds to its scores: T, or heads and T in some order; if relative, a query by distance
    relative: bool = False


@dataclass(frozen=True)
class RaiseAttention(Pass):
    """softmax(α·q·kᵀ + B)·v over all pairs of tokens → attention, B causal, windowed, with slopes or without."""

    name: ClassVar[str] = "raise_attention"
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False)

    def run(self, graph: Graph) -> Graph:
        regions = [r for r in (_region(n, graph) for n in graph.find("softmax")) if r is not None]
        if not regions:
            return graph
        graph = hoisted(graph)
        probe = Probe(graph, self.buffers)
        caches = 1 + max((n.op.cache for n in graph.nodes if isinstance(n.op, Attention)), default=-1)
        found: dict[str, tuple[_Region, Attention, list[float]]] = {}
        for region in regions:
            identified = _identify(region, probe, caches + len(found))
            if identified is not None:
                found[region.out.name] = (region, *identified)
        rewriter = Rewriter(graph)
        for node in graph.nodes:
            if node.outputs[0].name in found:
                region, op, slopes = found[node.outputs[0].name]
                rewriter.replace(region.out, _attention(rewriter, node, region, op, slopes))
            else:
                rewriter.keep(node)
        return rewriter.finish()


FEW_HEADS = 8
"""An indexer's score is 0 where no head agrees with a token: one in 2^heads, by chance."""


def refuse_unserved(graph: Graph) -> None:
    """Raise UnsupportedError for what would be wrong when tokens of several sequences share a step: a value for each pair of
    tokens, a number for each token by its place in the step, or a sum over tokens. Such attention was not recognised. So are
    indexers whose choice is not defined."""
    for node in graph.nodes:
        tokens = [[d for d in v.type.shape if isinstance(d, Sym) and d.name == "T"] for v in node.outputs]
        counts = node.op.name == "iota" and tokens[0]
        sums = isinstance(node.op, Cumsum) and isinstance(node.inputs[0].type.shape[node.op.dim], Sym)
        if counts or sums or any(len(t) > 1 for t in tokens):
            what = "relates all tokens of a step to each other" if not counts else "numbers the tokens of a step itself"
            raise UnsupportedError(
                f"{node.scope or 'the model'} {what}, in a way that is not recognised as attention ({node.source.splitlines()[0] if node.source else node.op.name})"
            )
        heads = node.inputs[0].type.shape[2] if isinstance(node.op, Indexer) else None
        if isinstance(node.op, Indexer) and isinstance(heads, int) and heads < FEW_HEADS:
            raise UnsupportedError(
                f"{node.scope}: with {heads} heads many of its scores are exactly 0, and which of equal ones transformers takes is not defined",
                f"give --context {node.op.k}, where every token is taken",
            )


def _region(softmax: Node, graph: Graph) -> _Region | None:
    assert isinstance(softmax.op, Softmax)
    shape = softmax.outputs[0].type.shape
    if softmax.op.log or len(shape) < 3 or softmax.op.dim != len(shape) - 1 or not all(isinstance(d, Sym) for d in shape[-2:]):
        return None
    made, users, data = graph.producers(), graph.users(), _data(graph)
    value, bias, relative = softmax.inputs[0], None, False
    while True:
        node = made.get(value.name)
        if node is None:
            return None
        if isinstance(node.op, Matmul):
            break
        sources = [v for v in node.inputs if v.name in data]
        if bias is None and len(sources) == 2 and isinstance(node.op, Pointwise) and node.op.fn == "add":
            found = [_of_one_token(v, made, data) for v in sources]
            if (found[0] is None) != (found[1] is None):
                (added, value) = (found[0], sources[1]) if found[0] is not None else (found[1], sources[0])
                assert added is not None
                bias, relative = added
                continue
        if not isinstance(node.op, Pointwise | Cast | View | Expand | Permute) or len(sources) != 1 or _gain(node, data):
            return None
        value = sources[0]
    scores = node
    below = softmax.outputs[0]
    while True:
        readers = users.get(below.name, [])
        if len(readers) != 1:
            return None
        node = readers[0]
        if isinstance(node.op, Matmul):
            if node.inputs[0].name != below.name or node.inputs[1].name == below.name:
                return None
            return _Region(softmax, scores.inputs[0], scores.inputs[1], node.inputs[1], node.outputs[0], bias, relative)
        if not isinstance(node.op, Cast | View | Expand) and not (isinstance(node.op, Pointwise) and node.op.fn == "copy"):
            return None
        below = node.outputs[0]


def _gain(node: Node, data: set[str]) -> bool:
    """Whether data are multiplied by a number of each token's position: what it is far away, the first positions do not say. (A number
    of each pair may be a mask.)"""
    others = [v for v in node.inputs if v.name not in data]
    product = isinstance(node.op, Pointwise) and node.op.fn in ("mul", "div", "pow")
    return product and any(sum(isinstance(d, Sym) for d in v.type.shape) == 1 for v in others)


def _of_one_token(value: Value, made: dict[str, Node], data: set[str]) -> tuple[Value, bool] | None:
    """What a value of pairs of tokens is made of, where that is one value of single tokens, repeated or masked, and whether numbers of
    its last dimension are looked up; else None."""
    stack, found, gathered = [value], {}, False
    while stack:
        value = stack.pop()
        if sum(isinstance(d, Sym) for d in value.type.shape) < 2:
            found[value.name] = value
            continue
        node = made.get(value.name)
        if node is None or not isinstance(node.op, Pointwise | Cast | View | Expand | Permute | Gather) or _gain(node, data):
            return None
        if isinstance(node.op, Gather):
            gathered = node.op.dim == len(node.inputs[0].type.shape) - 1
            if not gathered or node.inputs[1].name in data:
                return None
        stack.extend(v for v in node.inputs if v.name in data)
    return (next(iter(found.values())), gathered) if len(found) == 1 else None


def _per_head(region: _Region, tensor: torch.Tensor, heads: int) -> torch.Tensor | None:
    """The bias as [H,T], where its dimensions are T alone, or T and a number of heads that divides `heads`."""
    assert region.bias is not None
    sizes = [d for d in region.bias.type.shape if d != 1]
    count = next((d for d in sizes if isinstance(d, int)), 1)
    if len(sizes) != 1 + (count != 1) or heads % count:
        return None
    flat = tensor.reshape([n for n, d in zip(tensor.shape, region.bias.type.shape, strict=True) if d != 1])
    by_head = flat[None] if count == 1 else flat if isinstance(sizes[1], Sym) else flat.T
    return by_head.repeat_interleave(heads // count, 0)


def _by_distance(region: _Region, tensor: torch.Tensor, heads: int) -> torch.Tensor | None:
    """The relative scores as [H,T,L], where their dimensions are T and L, with or without H between or before."""
    assert region.bias is not None
    sizes = [d for d in region.bias.type.shape[:-1] if d != 1]
    if sizes not in ([Sym("T")], [Sym("T"), heads], [heads, Sym("T")]):
        return None
    flat = tensor.reshape(*[n for n, d in zip(tensor.shape[:-1], region.bias.type.shape[:-1], strict=True) if d != 1], -1)
    return flat[None].expand(heads, -1, -1) if len(sizes) == 1 else flat if sizes[0] == heads else flat.transpose(0, 1)


def _added(region: _Region, probe: Probe, heads: int, tokens: int) -> torch.Tensor | None:
    """What random numbers in the bias's place should add to the scores [H,T,T]."""
    (tensor,) = _bias(region, probe, tokens, 1).values()
    if not region.relative:
        by_head = _per_head(region, tensor, heads)
        return None if by_head is None else by_head[:, None].expand(-1, tokens, -1)
    by_distance = _by_distance(region, tensor, heads)
    if by_distance is None:
        return None
    extent = by_distance.shape[2]
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)[None]
    near = by_distance.gather(2, distance.clamp(0, extent - 1)[None].expand(heads, -1, -1))
    return near.masked_fill((distance < 0) | (distance >= extent), 0.0)


def _adds(region: _Region, probe: Probe, heads: int, tokens: int) -> bool:
    """Whether the bias adds to scores what an attention's would, for that many tokens; queries and keys are zeros."""
    ids = {v: torch.zeros(1, tokens, dtype=torch.int64) for v in probe.graph.inputs if v.name == "%input_ids"}
    empty = {v: torch.zeros(v.type.concrete({"T": tokens, "R": tokens}), dtype=torch.float64) for v in (region.query, region.key)}
    without, with_it = (
        probe.evaluate(region.softmax.inputs[0], {**ids, **empty, **_bias(region, probe, tokens, size)}, torch.arange(tokens))
        for size in (0, 1)
    )
    wanted = _added(region, probe, heads, tokens)
    if wanted is None or with_it.numel() != wanted.numel():
        return False
    seen = without.reshape(wanted.shape) > MASKED
    return close((with_it - without).reshape(wanted.shape)[seen], wanted[seen], 1e-6)


def _data(graph: Graph) -> set[str]:
    """Values that depend on what the tokens are, not only on how many and where."""
    found = {"%input_ids"}
    for node in graph.nodes:
        reads = {v.name for v in node.inputs} & found
        if reads - {"%input_ids"} or (reads and node.op.name == "embedding"):
            found.update(o.name for o in node.outputs)
    return found


def _mask_at(region: _Region, probe: Probe, tokens: int) -> torch.Tensor | None:
    ids = {v: torch.zeros(1, tokens, dtype=torch.int64) for v in probe.graph.inputs if v.name == "%input_ids"}
    query, key = (
        torch.zeros(v.type.concrete({"T": tokens, "R": tokens}), dtype=torch.float64) for v in (region.query, region.key)
    )
    given = {**ids, **_bias(region, probe, tokens, 0), region.query: query, region.key: key}
    scores = probe.evaluate(region.softmax.inputs[0], given, torch.arange(tokens))
    seen = scores.reshape(-1, tokens, tokens) > MASKED
    return seen[0] if bool((seen == seen[:1]).all()) else None


def _bias(region: _Region, probe: Probe, tokens: int, size: float) -> dict[Value, torch.Tensor]:
    return {} if region.bias is None else {region.bias: size * probe.random(region.bias, tokens, 7)}


def _window(region: _Region, probe: Probe) -> int | None:
    """How many tokens a query sees at most, 0 where it sees all before it; None for any other mask. A model that looks its mask up
    has none for more tokens than it knows: then the most that it has must do."""
    low, most = TOKENS, None
    for tokens in (TOKENS, 96, 384, 1536):
        try:
            mask = _mask_at(region, probe, tokens)
        except (IndexError, RuntimeError):
            if most is None:
                most = tokens
            while most - low > 1:  # the longest that it knows
                middle = (low + most) // 2
                try:
                    mask, low = _mask_at(region, probe, middle), middle
                except (IndexError, RuntimeError):
                    most = middle
            tokens, mask = low, _mask_at(region, probe, low)
        if mask is None:
            return None
        low = tokens
        later, earlier = torch.arange(tokens)[None], torch.arange(tokens)[:, None]
        causal = later <= earlier
        if not torch.equal(mask, causal):
            window = int(mask[-1].sum())
            return window if torch.equal(mask, causal & (later > earlier - window)) else None
        if most is not None:
            break
    return 0


def _identify(region: _Region, probe: Probe, cache: int) -> tuple[Attention, list[float]] | None:
    """The attention that the region computes, and its slopes; None when it computes anything else."""
    positions = torch.arange(TOKENS)
    ids = {v: torch.zeros(1, TOKENS, dtype=torch.int64) for v in probe.graph.inputs if v.name == "%input_ids"}
    query, key, value = (probe.random(v, TOKENS, seed) for seed, v in enumerate((region.query, region.key, region.value)))
    given = {**ids, **_bias(region, probe, TOKENS, 0), region.query: query, region.key: key}
    scores = probe.evaluate(region.softmax.inputs[0], given, positions)
    nothing = probe.evaluate(region.softmax.inputs[0], {**given, region.query: torch.zeros_like(query)}, positions)
    products = torch.matmul(query, key)
    flat = lambda t: t.expand_as(scores).reshape(-1, TOKENS, TOKENS)  # noqa: E731
    if products.numel() != scores.numel():
        return None
    scores, nothing, products = scores.reshape(-1, TOKENS, TOKENS), flat(nothing), products.reshape(-1, TOKENS, TOKENS)
    seen = nothing > MASKED
    mask = seen[0]
    if not bool((seen == mask).all()):
        return None
    later, earlier = positions[None], positions[:, None]
    window = _window(region, probe)
    if window is None:
        return None
    if not torch.equal(mask, (later <= earlier) & ((later > earlier - window) if window else True)):
        return None
    moved, product = (scores - nothing)[seen], products[seen]
    alpha = float((moved * product).sum() / product.square().sum())
    if not close(moved, alpha * product, 1e-6):
        return None
    distance = (later - earlier).double()
    bias = nothing - torch.diagonal(nothing, dim1=1, dim2=2)[:, :, None]
    slopes = (bias * distance).masked_fill(~mask, 0).sum((1, 2)) / (distance.square() * mask).sum()
    if not close((bias - slopes[:, None, None] * distance)[seen], torch.zeros_like(bias[seen]), 1e-4):
        return None
    added: torch.Tensor | float = 0.0
    if region.bias is not None:
        extent = region.bias.type.shape[-1] if region.relative else 0
        if not isinstance(extent, int) or not _adds(region, probe, len(scores), max(TOKENS, extent + 3)):
            return None
        given |= _bias(region, probe, TOKENS, 1)
        found = _added(region, probe, len(scores), TOKENS)
        assert found is not None
        added = found
    got = probe.evaluate(region.out, {**given, region.value: value}, positions)
    wanted = (alpha * products + slopes[:, None, None] * distance + added).masked_fill(~mask, float("-inf")).softmax(-1)
    if not close(got.reshape(-1, TOKENS, got.shape[-1]), wanted @ value.reshape(-1, TOKENS, value.shape[-1]), 1e-4):
        return None
    sloped = bool(slopes.abs().max() > 1e-6)
    return Attention(cache, alpha, window, slopes=sloped, relative=region.relative), slopes.tolist() if sloped else []


def _attention(rewriter: Rewriter, node: Node, region: _Region, op: Attention, slopes: list[float]) -> Value:
    """The op in place of the region, around it what brings its operands into shape: [1,T,H,D]."""

    def heads(value: Value, across: bool) -> Value:
        shape = value.type.shape
        count = 1
        for d in shape[:-2]:
            assert isinstance(d, int)
            count *= d
        (flat,) = rewriter.add_as(node, View(",".join(map(str, (1, count, *shape[-2:])))), (value,))
        (turned,) = rewriter.add_as(node, Permute((0, 3, 1, 2) if across else (0, 2, 1, 3)), (flat,))
        return turned

    operands = [heads(region.query, False), heads(region.key, True), heads(region.value, False)]
    if region.bias is not None and not region.relative:
        operands[:2] = _with_bias(rewriter, node, region.bias, operands[0], operands[1], op.scale)
    if slopes:
        operands.append(rewriter.constant("attention.slopes", TensorType("f32", (len(slopes),)), slopes))
    if region.bias is not None and region.relative:
        operands.append(_relative(rewriter, node, region.bias, operands[0]))
    (out,) = rewriter.add_as(node, op, operands)
    (turned,) = rewriter.add_as(node, Permute((0, 2, 1, 3)), (out,))
    (shaped,) = rewriter.add_as(node, View(",".join(map(str, region.out.type.shape))), (turned,))
    return (
        shaped if shaped.type.dtype == region.out.type.dtype else rewriter.add_as(node, Cast(region.out.type.dtype), (shaped,))[0]
    )


def _with_bias(rewriter: Rewriter, node: Node, bias: Value, query: Value, key: Value, scale: float) -> tuple[Value, Value]:
    """Queries [1,T,H,D+1] that end in 1, and keys [1,T,H,D+1] that end in what they add to their scores, divided by the scale."""
    kind, (_, tokens, heads, _) = query.type.dtype, key.type.shape
    sizes = [d for d in bias.type.shape if d != 1]
    count = next((d for d in sizes if isinstance(d, int)), 1)
    assert isinstance(heads, int)
    if count != 1 and isinstance(sizes[1], Sym):
        (flat,) = rewriter.add_as(node, View(f"{count},T"), (bias,))
        (bias,) = rewriter.add_as(node, Permute((1, 0)), (flat,))
    (grouped,) = rewriter.add_as(node, View(f"1,T,{count},1"), (bias,))
    (repeated,) = rewriter.add_as(node, Expand(f"1,T,{count},{heads // count}"), (grouped,))
    (each,) = rewriter.add_as(node, View(f"1,T,{heads},1"), (repeated,))
    (factor,) = rewriter.add_as(node, Full(f"{kind}[]", 1 / scale), ())
    (scaled,) = rewriter.add_as(node, Pointwise("mul", kind), (each, factor))
    (ones,) = rewriter.add_as(node, Full(str(TensorType(kind, (1, tokens, heads, 1))), 1.0), ())
    return rewriter.add_as(node, Concat(3), (query, ones))[0], rewriter.add_as(node, Concat(3), (key, scaled))[0]


def _relative(rewriter: Rewriter, node: Node, bias: Value, query: Value) -> Value:
    """Scores by distance [1,T,H,L] for queries [1,T,H,D]."""
    heads, extent = query.type.shape[2], bias.type.shape[-1]
    sizes = [d for d in bias.type.shape[:-1] if d != 1]
    if sizes[0] == Sym("T"):
        (shaped,) = rewriter.add_as(node, View(f"1,T,{heads if len(sizes) == 2 else 1},{extent}"), (bias,))
        return shaped if len(sizes) == 2 else rewriter.add_as(node, Expand(f"1,T,{heads},{extent}"), (shaped,))[0]
    (shaped,) = rewriter.add_as(node, View(f"1,{heads},T,{extent}"), (bias,))
    return rewriter.add_as(node, Permute((0, 2, 1, 3)), (shaped,))[0]
