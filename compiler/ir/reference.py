"""The reference executor: the IR run by torch, node by node.

In *exact* mode every value has the dtype of its type, as the model's own eager forward has. In *wide* mode all
floating-point values are held in one dtype (float64 or float32) and casts between floating-point types are
identities: the values that the graph means, without rounding. Passes are checked in wide mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from ...errors import VerifyError
from .graph import Graph, Node, Value
from .types import TensorType

TORCH_DTYPE = {
    "f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
    "i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "i8": torch.int8, "u8": torch.uint8, "bool": torch.bool,
}  # fmt: skip
IR_DTYPE = {v: k for k, v in TORCH_DTYPE.items()}

ParamSource = Callable[[str], torch.Tensor]
"""Value of a parameter by its name without the '@'."""


@dataclass
class Context:
    """What a reference implementation may ask for: sizes of T and R, the token layout, and the mode.

    positions: [T] int64; sequences: [T] int64, the sequence each packed token belongs to.
    """

    sizes: dict[str, int]
    positions: torch.Tensor
    sequences: torch.Tensor
    wide: torch.dtype | None = None
    sequence_memo: dict[str, torch.Tensor] = field(default_factory=dict)

    def dtype(self, kind: str) -> torch.dtype:
        """The torch dtype that holds an IR dtype in this mode."""
        dtype = TORCH_DTYPE[kind]
        return self.wide if self.wide is not None and dtype.is_floating_point else dtype

    def shape(self, kind: TensorType) -> tuple[int, ...]:
        return kind.concrete(self.sizes)

    @staticmethod
    def single(length: int, rows: int | None = None, wide: torch.dtype | None = None, start: int = 0) -> Context:
        """One sequence of `length` tokens at positions start..start+length-1."""
        positions = torch.arange(start, start + length)
        return Context(
            {"T": length, "R": length if rows is None else rows}, positions, torch.zeros(length, dtype=torch.int64), wide
        )


def evaluate(
    graph: Graph, wanted: Iterable[Value], bindings: dict[str, torch.Tensor], params: ParamSource, ctx: Context
) -> list[torch.Tensor]:
    """Evaluate the cone of `wanted`, stopping at the names in `bindings` (inputs, or any intermediate value).

    Values are freed after their last use, so the memory is that of the live values. Raises VerifyError when the cone
    reaches an input that is not bound.
    """
    wanted = list(wanted)
    needed = _cone(graph, wanted, set(bindings))
    remaining: dict[str, int] = {}
    for node in needed:
        for value in node.inputs:
            remaining[value.name] = remaining.get(value.name, 0) + 1
    for value in wanted:
        remaining[value.name] = remaining.get(value.name, 0) + 1
    env = {name: _bound(tensor, ctx) for name, tensor in bindings.items()}
    param_types = {p.name: p.type for p in graph.params}

    def get(value: Value) -> torch.Tensor:
        if value.name not in env:
            if value.name in graph.constants:
                env[value.name] = (
                    torch.tensor(graph.constants[value.name], dtype=torch.float64 if value.type.is_float else torch.int64)
                    .reshape(value.type.concrete({}))
                    .to(ctx.dtype(value.type.dtype))
                )
            elif value.name in param_types:
                env[value.name] = _bound(params(value.name[1:]), ctx)
            else:
                raise VerifyError(f"{value.name} has no value: bind it")
        tensor = env[value.name]
        remaining[value.name] -= 1
        if remaining[value.name] == 0 and value not in wanted:
            del env[value.name]
        return tensor

    for node in needed:
        outputs = node.op.reference(ctx, *[get(v) for v in node.inputs])
        for value, tensor in zip(node.outputs, outputs, strict=True):
            if remaining.get(value.name, 0) > 0:
                env[value.name] = tensor
    return [get(v) for v in wanted]


def run(
    graph: Graph, params: ParamSource, tokens: torch.Tensor, ctx: Context, rows: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """The whole graph on packed tokens [T] at ctx.positions; `rows` [R] are the tokens whose logits are wanted (default all)."""
    rows = torch.arange(tokens.numel()) if rows is None else rows
    ctx.sizes = {"T": tokens.numel(), "R": rows.numel()}
    bound = {"%input_ids": tokens[None], "%position_ids": ctx.positions[None], "%logits_rows": rows}
    return evaluate(graph, graph.outputs, bound, params, ctx)


def _bound(tensor: torch.Tensor, ctx: Context) -> torch.Tensor:
    return tensor.to(ctx.wide) if ctx.wide is not None and tensor.is_floating_point() else tensor


def _cone(graph: Graph, wanted: list[Value], stop: set[str]) -> list[Node]:
    needed = {v.name for v in wanted} - stop
    picked: list[Node] = []
    for node in reversed(graph.nodes):
        if any(o.name in needed for o in node.outputs):
            picked.append(node)
            needed.update(v.name for v in node.inputs if v.name not in stop)
    return picked[::-1]
