"""Widen: values between kernels are float32, whatever the model's dtype; only weights, products and the cache are narrower.

A target that keeps its buffers in float32 drops the casts that a bfloat16 forward is full of. Rounding that the model
means (a scale stored in bfloat16) lies in static values, which keep their dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..compiler.ir.graph import Graph, Value
from ..compiler.ir.ops.cast import Cast
from ..compiler.ir.ops.embedding import Embedding
from ..compiler.ir.ops.full import Full
from ..compiler.ir.ops.pointwise import Pointwise
from ..compiler.ir.ops.reduce import Reduce
from ..compiler.ir.ops.softmax import Softmax
from ..compiler.ir.rewrite import Rewriter
from ..compiler.ir.types import TensorType
from .pass_ import Pass


@dataclass(frozen=True)
class Widen(Pass):
    """Every computed floating-point value becomes float32; casts between floating-point types disappear."""

    name: ClassVar[str] = "widen"

    def run(self, graph: Graph) -> Graph:
        rewriter = Rewriter(graph)
        static = graph.static_values()
        for node in graph.nodes:
            computed = not all(v.name in static for v in node.inputs) or (not node.inputs and isinstance(node.op, Full))
            if not computed and all(rewriter.resolve(v).type == v.type for v in node.inputs):
                rewriter.keep(node)
                continue
            inputs = [rewriter.resolve(v) for v in node.inputs]
            op = node.op
            if isinstance(op, Cast) and TensorType(op.dtype, ()).is_float and inputs[0].type.is_float:
                rewriter.replace(node.output, inputs[0])
                continue
            if isinstance(op, Cast | Pointwise | Reduce | Softmax) and TensorType(op.dtype, ()).is_float:
                op = replace(op, dtype="f32")
            elif isinstance(op, Full):
                kind = TensorType.parse(op.type)
                op = replace(op, type=str(kind.with_dtype("f32") if kind.is_float else kind))
            if not isinstance(op, Pointwise | Embedding) or len(inputs) == 1:
                inputs = [self._wide(rewriter, v) if self._mixes(op.name, i) else v for i, v in enumerate(inputs)]
            made = rewriter.add_as(node, op, inputs)
            if isinstance(op, Embedding) and made[0].type.dtype != "f32" and made[0].type.is_float:
                made = rewriter.add_as(node, Cast("f32"), made)
            for old, new in zip(node.outputs, made, strict=True):
                rewriter.replace(old, new)
        return rewriter.finish()

    def _mixes(self, op_name: str, index: int) -> bool:
        """Whether that operand must have the dtype of the computed ones (weights of linears, norms and tables need not)."""
        return op_name in ("concat", "matmul", "gather", "scatter", "index_select")

    def _wide(self, rewriter: Rewriter, value: Value) -> Value:
        if not value.type.is_float or value.type.dtype == "f32":
            return value
        return rewriter.add(Cast("f32"), (value,))[0]
