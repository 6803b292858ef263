"""Fuse the norms and the rotation of queries and keys into attention, where the cache is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.graph import Graph, Node, Value
from ..compiler.ir.ops.attention import Attention
from ..compiler.ir.ops.fused_attention import FusedAttention
from ..compiler.ir.ops.rms_norm import RmsNorm
from ..compiler.ir.ops.rope import Rope
from ..compiler.ir.rewrite import Rewriter
from .pass_ import Pass


@dataclass(frozen=True)
class FuseAttention(Pass):
    """attention(rope(norm(q)), rope(norm(k)), v) → fused_attention; a side that differs from the other keeps its own nodes."""

    name: ClassVar[str] = "fuse_attention"

    def run(self, graph: Graph) -> Graph:
        producers, users = graph.producers(), graph.users()
        rewriter = Rewriter(graph)
        for node in graph.nodes:
            if isinstance(node.op, Attention):
                rewriter.replace(node.output, _fuse(node, producers, users, rewriter))
            else:
                rewriter.keep(node)
        return rewriter.finish()


def _fuse(node: Node, producers: dict[str, Node], users: dict[str, list[Node]], rewriter: Rewriter) -> Value:
    q, k, v, *extra = node.inputs
    assert isinstance(node.op, Attention)
    fields = dict(node.op.attributes())
    operands: list[Value] = []

    def above(value: Value, kind: type) -> Node | None:
        made = producers.get(value.name)
        return made if made is not None and isinstance(made.op, kind) and len(users[value.name]) == 1 else None

    a, b = above(q, Rope), above(k, Rope)
    if a is not None and b is not None and a.op == b.op and a.inputs[1] == b.inputs[1]:
        assert isinstance(a.op, Rope)
        fields |= {"rope": True, "interleaved": a.op.interleaved, "offset": a.op.offset}
        operands.append(a.inputs[1])
        q, k = a.inputs[0], b.inputs[0]
    if fields.get("rope") or (above(q, Rope) is None and above(k, Rope) is None):
        a, b = above(q, RmsNorm), above(k, RmsNorm)
        if a is not None and b is not None and a.op == b.op and isinstance(a.op, RmsNorm) and a.op.weight and not a.op.l2:
            fields |= {"q_norm": True, "k_norm": True, "eps": a.op.eps}
            operands += [a.inputs[1], b.inputs[1]]
            q, k = a.inputs[0], b.inputs[0]
    return rewriter.add_as(node, FusedAttention(**fields), (q, k, v, *operands, *extra))[0]  # type: ignore[arg-type]
