"""What a compile tells about a graph."""

from __future__ import annotations

import re

from .ir.graph import Graph, roots
from .ir.ops.embedding import Embedding
from .ir.ops.experts import Experts
from .ir.ops.head_linear import HeadLinear
from .ir.ops.linear import Linear
from .ir.ops.permute import Permute


def quantization_report(graph: Graph) -> dict[str, str]:
    """Scheme by module of each weight, layers' numbers replaced by a star where all layers agree: what --scheme takes."""
    found: dict[str, set[str]] = {}
    exact: dict[str, str] = {}
    producers = graph.producers()
    for node in graph.nodes:
        if not isinstance(node.op, Linear | Experts | Embedding | HeadLinear):
            continue
        weight = (
            node.inputs[0]
            if isinstance(node.op, Embedding)
            else node.inputs[3]
            if isinstance(node.op, Experts)
            else node.inputs[1]
        )
        if isinstance(node.op, HeadLinear) and isinstance(producers[weight.name].op, Permute):
            continue  # the other half of a weight whose scheme is told already
        scheme = node.op.scheme or weight.type.dtype
        modules = dict.fromkeys(name.rpartition(".")[0] for name in roots(graph, weight) if "@" + name not in graph.constants)
        for module in modules or [node.scope or node.op.name]:
            exact[module] = scheme
            found.setdefault(_starred(module), set()).add(scheme)
    report: dict[str, str] = {}
    for module, scheme in exact.items():
        glob = _starred(module)
        report[glob if len(found[glob]) == 1 else module] = scheme
    return report


def _starred(module: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", module)
