"""Attach storage schemes: to each linear, to experts, and to embedding tables."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ..compiler.ir.graph import Graph, Node, Value, roots
from ..compiler.ir.ops.attention import Attention
from ..compiler.ir.ops.embedding import Embedding
from ..compiler.ir.ops.experts import Experts
from ..compiler.ir.ops.linear import Linear
from ..compiler.ir.rewrite import Rewriter
from ..compiler.ir.types import Sym
from ..errors import UsageError
from ..quant.scheme import Scheme, parse_scheme
from .pass_ import Pass

MOVES = ("cast", "concat", "expand", "permute", "slice", "view")  # what leaves each weight's value as it is


@dataclass(frozen=True)
class Quantize(Pass):
    """`scheme` for every linear ("" leaves it as it is), then `rules` (GLOB of module names, scheme), the last match winning.

    Under an integer scheme the head and the embedding tables get int8 per channel, under other coded ones they stay as they are, and
    so do routers, unless a rule names them. Weights that are tied share one scheme. Raises UsageError for a rule that matches nothing, or that gives two
    schemes to tied weights. Without a `scheme`, weights whose parameters `stored` names keep their codes; `activations` are then
    what they are multiplied by, unless it is "" and the checkpoint, or the weight's dtype, says. `cache` has the steps of stored
    keys and values by the attention's module, where the checkpoint fixes them.
    """

    name: ClassVar[str] = "quantize"
    scheme: str = ""
    rules: tuple[tuple[str, str], ...] = field(default=())
    stored: Mapping[str, Scheme] = field(default_factory=dict, compare=False)
    activations: str = ""
    cache: Mapping[str, tuple[float, float]] = field(default_factory=dict, compare=False)

    def run(self, graph: Graph) -> Graph:
        plan = self.plan(graph)
        rewriter = Rewriter(graph)
        for node in graph.nodes:
            chosen = plan.get(node.outputs[0].name)
            if isinstance(node.op, Attention) and node.scope in self.cache:
                k_scale, v_scale = self.cache[node.scope]
                made = rewriter.add_as(node, replace(node.op, k_scale=k_scale, v_scale=v_scale), node.inputs)
                rewriter.replace(node.output, made[0])
                continue
            if chosen is None:
                rewriter.keep(node)
                continue
            assert isinstance(node.op, Linear | Experts | Embedding)
            made = rewriter.add_as(node, replace(node.op, scheme=str(chosen)), node.inputs)
            rewriter.replace(node.output, made[0])
        return rewriter.finish()

    def plan(self, graph: Graph) -> dict[str, Scheme]:
        """The scheme of each weight-bearing node, by the name of its output."""
        default = parse_scheme(self.scheme) if self.scheme else None
        gates = routers(graph)
        plan: dict[str, Scheme] = {}
        used: set[int] = set()
        tied: dict[str, tuple[Scheme, bool, str]] = {}
        for node, weight in weight_nodes(graph):
            module = module_of(weight, graph)
            chosen, named = default, False
            if default is not None and default.is_integer:
                if isinstance(node.op, Embedding) or is_head(node):
                    chosen = Scheme("int8", activations=default.activations)
                elif node.output.name in gates:
                    chosen = None
            elif (
                default is not None
                and default.is_coded
                and (isinstance(node.op, Embedding) or is_head(node) or node.output.name in gates)
            ):
                chosen = None
            elif default is not None and isinstance(node.op, Embedding) and default.activations:
                chosen = replace(default, activations="")
            if default is None:
                chosen = self._kept(weight, graph)
                if chosen is None and node.output.name in gates:
                    chosen = Scheme("f32", activations="f32")  # small, and a rounding there changes which experts a token goes to
            for i, (glob, text) in enumerate(self.rules):
                if fnmatch.fnmatchcase(module, glob) or fnmatch.fnmatchcase(node.scope, glob):
                    chosen, named = parse_scheme(text), True
                    used.add(i)
            if chosen is None:
                continue
            root = root_param(weight, graph)
            if root in tied and tied[root][0] != chosen:
                other, other_named, other_module = tied[root]
                if named and other_named:
                    raise UsageError(
                        f"{module} and {other_module} share one weight, but get {chosen} and {other}",
                        "give tied weights the same scheme",
                    )
                chosen = other if other_named else chosen
                for key, value in list(plan.items()):
                    if value == other and not other_named and self._root_of(key, graph) == root:
                        plan[key] = chosen
            tied[root] = (chosen, named or (root in tied and tied[root][1]), module)
            plan[node.output.name] = chosen
        for i, (glob, _) in enumerate(self.rules):
            if i not in used:
                raise UsageError(
                    f"--scheme {glob!r} matches no module with a weight",
                    "globs match module names such as model.layers.0.mlp.down_proj",
                )
        return plan

    def _kept(self, weight: Value, graph: Graph) -> Scheme | None:
        """The scheme under which a weight is stored; None when it is not, or is more than its parts moved about."""
        found = {self.stored.get(name) for name in roots(graph, weight, MOVES)}
        if len(found) != 1:
            return None
        scheme = found.pop()
        if scheme is None or (scheme.order and len(weight.type.shape) == 3):
            return None
        return scheme.with_activations(self.activations or scheme.activations or weight.type.dtype)

    def _root_of(self, output: str, graph: Graph) -> str:
        node = graph.producers()[output]
        return root_param(_weight(node), graph)


def _weight(node: Node) -> Value:
    return (
        node.inputs[0] if isinstance(node.op, Embedding) else node.inputs[3] if isinstance(node.op, Experts) else node.inputs[1]
    )


def weights_of(node: Node) -> list[Value]:
    """The weight of a linear or an embedding; both of experts."""
    if isinstance(node.op, Experts):
        return [node.inputs[3], node.inputs[5 if node.op.bias else 4]]
    return [_weight(node)]


def weight_nodes(graph: Graph) -> list[tuple[Node, Value]]:
    """Linears, experts and embeddings of static tables that tokens index, with their weight."""
    static = graph.static_values()
    data = {"%input_ids"}
    found = []
    for node in graph.nodes:
        if any(v.name in data for v in node.inputs):
            data.update(o.name for o in node.outputs)
        if isinstance(node.op, Embedding) and node.inputs[1].name not in data:
            continue
        if isinstance(node.op, Linear | Experts | Embedding) and _weight(node).name in static:
            found.append((node, _weight(node)))
    return found


def is_named(node: Node, weight: Value, graph: Graph, rules: tuple[tuple[str, str], ...]) -> bool:
    """Whether a rule's glob matches a node or its weight's module."""
    return any(fnmatch.fnmatchcase(m, glob) for m in (module_of(weight, graph), node.scope) for glob, _ in rules)


def unnamed(graph: Graph, rules: tuple[tuple[str, str], ...]) -> bool:
    """Whether the rules leave out any weight, those of routers aside."""
    gates = routers(graph)
    return any(n.output.name not in gates and not is_named(n, w, graph, rules) for n, w in weight_nodes(graph))


def calibrated_nodes(graph: Graph, plan: Mapping[str, Scheme]) -> dict[str, Scheme]:
    """The part of a plan that an algorithm can choose codes for: coded weights of products that every token goes through."""
    return {
        node.output.name: plan[node.output.name]
        for node, _ in weight_nodes(graph)
        if node.output.name in plan
        and plan[node.output.name].is_coded
        and not isinstance(node.op, Embedding)
        and not is_head(node)
    }


def root_param(value: Value, graph: Graph) -> str:
    """The first parameter that a static value is made of."""
    producers = graph.producers()
    while value.name in producers:
        if not producers[value.name].inputs:
            return value.name
        value = producers[value.name].inputs[0]
    return value.name


def module_of(weight: Value, graph: Graph) -> str:
    """The module that owns a weight: its parameter's name without the last part."""
    return root_param(weight, graph)[1:].rpartition(".")[0]


def is_head(node: Node) -> bool:
    return isinstance(node.op, Linear) and any(isinstance(d, Sym) and d.name == "R" for d in node.output.type.shape)


def routers(graph: Graph) -> set[str]:
    """Linears whose output decides which experts a token goes to."""
    producers = graph.producers()
    found: set[str] = set()
    for node in graph.find("experts"):
        stack, seen = list(node.inputs[1:3]), set()
        while stack:
            value = stack.pop()
            made = producers.get(value.name)
            if made is None or value.name in seen:
                continue
            seen.add(value.name)
            if isinstance(made.op, Linear):
                found.add(value.name)
            else:
                stack.extend(made.inputs)
    return found
