"""Choosing a scheme for each weight: what each costs in bytes and in divergence, and the fewest bytes that meet a target.

A weight's rounding moves its product's output by δ. With g the gradient of the log-likelihood of a token drawn from the
model's own distribution, ½·E[(g·δ)²] is the divergence that this causes, to second order (g's second moments are the Fisher
information). One backward pass through the original gives g for every weight, and one product for each scheme gives δ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from ..compiler.ir.graph import Graph, Node, Value
from ..compiler.ir.reference import Context, ParamSource, evaluate
from .algorithms.rtn import quantize
from .scheme import Scheme, parse_scheme

CANDIDATES = ("int3:g32:asym/bf16", "int4:g64:asym/bf16", "int4:g32:asym/bf16", "int6:g64/bf16", "int8:g64/bf16", "bf16")
TABLE_CANDIDATES = ("int8:channel", "bf16")
HEAD_CANDIDATES = ("int4:g32:asym/bf16", "int6:g64/bf16", "int8:channel/bf16", "bf16")


@dataclass
class Group:
    """Weights that get one scheme: their modules, and bytes and divergence (nats a token) of each candidate."""

    modules: list[str] = field(default_factory=list)
    size: dict[str, int] = field(default_factory=dict)
    harm: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """One choice on the way from most bytes to fewest: scheme by module, bytes of these weights, predicted divergence."""

    rules: tuple[tuple[str, str], ...]
    size: int
    predicted: float


def stored_size(shape: Sequence[int], scheme: Scheme) -> int:
    """Bytes of a weight [..., N, K]: codes, scales and zero points."""
    count = int(np.prod(shape))
    if not scheme.is_coded:
        return count * scheme.bits // 8
    k = shape[-1]
    groups = count // k * -(-k // (scheme.group or k))
    return count * scheme.bits // 8 + groups * (scheme.scale_bytes + scheme.asymmetric)


@dataclass(frozen=True)
class Candidate:
    """A node whose weights may get one of several schemes; `key` names its group."""

    node: Node
    weights: tuple[Value, ...]
    key: str
    schemes: tuple[str, ...]


def logits(
    graph: Graph, params: ParamSource, tokens: torch.Tensor, chosen: Mapping[str, tuple[tuple[Value, ...], Scheme]]
) -> torch.Tensor:
    """tokens [T] → logits [T, V] float32, the weights of the nodes in `chosen` (by output) rounded to nearest in their schemes."""

    def change(node: Node, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        if node.outputs[0].name not in chosen:
            return inputs
        weights, scheme = chosen[node.outputs[0].name]
        names = {w.name for w in weights}
        return [rounded(t, scheme) if v.name in names else t for v, t in zip(node.inputs, inputs, strict=True)]

    with torch.no_grad():
        return _forward(graph, params, tokens, change)


def _forward(
    graph: Graph,
    params: ParamSource,
    tokens: torch.Tensor,
    change: Callable[[Node, list[torch.Tensor]], list[torch.Tensor]],
    made: Callable[[Node, torch.Tensor], torch.Tensor] = lambda node, output: output,
) -> torch.Tensor:
    """The logits [T, V]; `change` may replace a node's inputs, `made` its output."""
    context = _context(tokens.numel())
    static, out = graph.static_values(), graph.outputs[0].name
    env = {"%input_ids": tokens[None], "%position_ids": context.positions[None], "%logits_rows": torch.arange(tokens.numel())}
    moving = [n for n in graph.nodes if n.outputs[0].name not in static]
    left: dict[str, int] = {out: 1}
    for node in moving:
        for value in node.inputs:
            left[value.name] = left.get(value.name, 0) + 1
    for node in moving:
        inputs = [env[v.name] if v.name in env else evaluate(graph, [v], {}, params, context)[0] for v in node.inputs]
        outputs = list(node.op.reference(context, *change(node, inputs)))
        outputs[0] = made(node, outputs[0])
        for value in node.inputs:
            left[value.name] -= 1
            if left[value.name] == 0:
                env.pop(value.name, None)
        env.update({v.name: t for v, t in zip(node.outputs, outputs, strict=True) if left.get(v.name)})
    return env[out][0]


def _context(length: int) -> Context:
    return Context.single(length, wide=torch.float32)


def measure(
    graph: Graph,
    params: ParamSource,
    windows: torch.Tensor,
    candidates: Sequence[Candidate],
    groups: Mapping[str, Group],
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> None:
    """Add to each group the harm of its candidates, on `windows` [S, T] of tokens."""
    by_output = {c.node.outputs[0].name: c for c in candidates}
    for w in progress(range(windows.shape[0])):
        inputs_of: dict[str, list[torch.Tensor]] = {}
        output_of: dict[str, torch.Tensor] = {}

        def change(node: Node, inputs: list[torch.Tensor], kept: dict[str, list[torch.Tensor]] = inputs_of) -> list[torch.Tensor]:
            if node.outputs[0].name in by_output:
                kept[node.outputs[0].name] = [t.detach() for t in inputs]
            return inputs

        def made(node: Node, output: torch.Tensor, kept: dict[str, torch.Tensor] = output_of) -> torch.Tensor:
            if node.outputs[0].name not in by_output:
                return output
            output = output if output.requires_grad else output.detach().requires_grad_()
            output.retain_grad()
            kept[node.outputs[0].name] = output
            return output

        with torch.enable_grad():
            scores = _forward(graph, params, windows[w], change, made).float().log_softmax(-1)
            drawn = torch.multinomial(scores.detach().exp(), 1, generator=torch.Generator().manual_seed(w))
            scores.gather(1, drawn).sum().backward()
        context = _context(windows.shape[1])
        context.sizes = {"T": windows.shape[1], "R": windows.shape[1]}
        with torch.no_grad():
            for name, candidate in by_output.items():
                gradient, output = output_of[name].grad, output_of[name].detach()
                if gradient is None:
                    continue
                inputs, weights = inputs_of.pop(name), {v.name for v in candidate.weights}
                group = groups[candidate.key]
                for text in candidate.schemes:
                    scheme = parse_scheme(text)
                    changed = [
                        rounded(t, scheme) if v.name in weights else t for v, t in zip(candidate.node.inputs, inputs, strict=True)
                    ]
                    moved = candidate.node.op.reference(context, *changed)[0] - output
                    harm = float((moved * gradient).sum(-1).square().mean()) / 2 / windows.shape[0]
                    group.harm[text] = group.harm.get(text, 0.0) + harm


def rounded(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """A weight [N, K] or [E, N, K] as round to nearest stores it, float32."""
    if not scheme.is_coded:
        return weight.to({"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[scheme.kind]).float()
    if weight.ndim == 2:
        return quantize(weight, scheme).dequantize(scheme)
    return torch.stack([quantize(w, scheme).dequantize(scheme) for w in weight])


def path(groups: Iterable[Group]) -> list[Point]:
    """From the least harm to the fewest bytes, each step the one that saves most bytes for the harm it does."""
    groups = list(groups)
    current = [min(g.harm, key=lambda c: (g.harm[c], g.size[c])) for g in groups]
    hulls = [_hull(g, c) for g, c in zip(groups, current, strict=True)]
    steps = sorted(
        (
            ((g.harm[b] - g.harm[a]) / max(g.size[a] - g.size[b], 1), i, b)
            for i, (g, hull) in enumerate(zip(groups, hulls, strict=True))
            for a, b in pairwise(hull)
        ),
        key=lambda step: (step[0], step[1]),
    )
    points = [_point(groups, current)]
    for _, i, scheme in steps:
        current[i] = scheme
        points.append(_point(groups, current))
    return points


def _hull(group: Group, start: str) -> list[str]:
    """Candidates with fewer and fewer bytes, on the lower convex hull of harm over bytes."""
    hull = [start]
    while True:
        here = hull[-1]
        smaller = [c for c in group.size if group.size[c] < group.size[here]]
        if not smaller:
            return hull
        hull.append(
            min(smaller, key=lambda c: ((group.harm[c] - group.harm[here]) / (group.size[here] - group.size[c]), group.size[c]))
        )


def _point(groups: Sequence[Group], chosen: Sequence[str]) -> Point:
    rules = tuple((m, c) for g, c in zip(groups, chosen, strict=True) for m in g.modules)
    return Point(
        rules,
        sum(g.size[c] for g, c in zip(groups, chosen, strict=True)),
        sum(g.harm[c] for g, c in zip(groups, chosen, strict=True)),
    )
