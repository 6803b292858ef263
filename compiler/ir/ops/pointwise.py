"""Elementwise arithmetic with NumPy broadcasting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from ..op import Op, require
from ..reference import Context
from ..types import TensorType, broadcast

UNARY = {
    "neg": torch.neg, "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "reciprocal": torch.reciprocal,
    "abs": torch.abs, "sin": torch.sin, "cos": torch.cos, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu,
    "erf": torch.erf, "erfinv": torch.erfinv, "floor": torch.floor, "ceil": torch.ceil, "round": torch.round, "sign": torch.sign, "not": torch.logical_not, "expm1": torch.expm1,
    "log1p": torch.log1p, "silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "relu2": lambda x: torch.relu(x) ** 2, "softplus": F.softplus,
    "square": torch.square, "copy": lambda x: x,
}  # fmt: skip
BINARY = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "max": torch.maximum, "min": torch.minimum, "pow": torch.pow,
    "floor_div": lambda a, b: torch.div(a, b, rounding_mode="floor"), "mod": torch.remainder,
    "eq": torch.eq, "ne": torch.ne, "lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge, "and": torch.logical_and, "or": torch.logical_or,
}  # fmt: skip
TERNARY = {"where": torch.where}
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "sigmoid", "tanh", "softplus")
FUNCTIONS = {**UNARY, **BINARY, **TERNARY}


@dataclass(frozen=True)
class Pointwise(Op):
    """out[i] = fn(inputs[i], …), in dtype `dtype`."""

    name: ClassVar[str] = "pointwise"
    fn: str
    dtype: str

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        require(self.fn in FUNCTIONS, f"unknown function {self.fn!r}")
        count = 1 if self.fn in UNARY else 2 if self.fn in BINARY else 3
        require(len(inputs) == count, f"{self.fn} takes {count} inputs, got {len(inputs)}")
        shape = inputs[0].shape
        for other in inputs[1:]:
            shape = broadcast(shape, other.shape)
        return (TensorType(self.dtype, shape),)

    def reference(self, ctx: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (FUNCTIONS[self.fn](*inputs).to(ctx.dtype(self.dtype)),)
