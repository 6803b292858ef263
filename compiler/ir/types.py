"""Types of IR values: a dtype and a shape whose dimensions are integers or named symbols."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ...errors import VerifyError

FLOATS = ("f64", "f32", "f16", "bf16")
INTEGERS = ("i64", "i32", "i16", "i8", "u8")
DTYPES = (*FLOATS, *INTEGERS, "bool")
DTYPE_BYTES = {"f64": 8, "i64": 8, "f32": 4, "i32": 4, "f16": 2, "bf16": 2, "i16": 2, "i8": 1, "u8": 1, "bool": 1}


@dataclass(frozen=True, slots=True)
class Sym:
    """A named dimension times an integer: `T` (tokens of a step), `R` (logit rows), `4*T`; of pairs of tokens `T*T`."""

    name: str
    scale: int = 1

    def __str__(self) -> str:
        return self.name if self.scale == 1 else f"{self.scale}*{self.name}"


Dim = int | Sym


def parse_dim(text: str) -> Dim:
    """Parse `576`, `T` or `4*T`; raises VerifyError on anything else."""
    if re.fullmatch(r"\d+", text):
        return int(text)
    match = re.fullmatch(r"(?:(\d+)\*)?([A-Za-z]\w*(?:\*[A-Za-z]\w*)*)", text)
    if match is None:
        raise VerifyError(f"not a dimension: {text!r}")
    return Sym(match[2], int(match[1] or 1))


@dataclass(frozen=True, slots=True)
class TensorType:
    """dtype and shape of a value, e.g. `bf16[1,T,576]`."""

    dtype: str
    shape: tuple[Dim, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise VerifyError(f"unknown dtype {self.dtype!r}; known: {', '.join(DTYPES)}")

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    @property
    def is_static(self) -> bool:
        return all(isinstance(d, int) for d in self.shape)

    def with_shape(self, shape: tuple[Dim, ...]) -> TensorType:
        return TensorType(self.dtype, shape)

    def with_dtype(self, dtype: str) -> TensorType:
        return TensorType(dtype, self.shape)

    def concrete(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """The shape with every symbol replaced, e.g. by {'T': 5, 'R': 1}."""
        return tuple(d if isinstance(d, int) else d.scale * math.prod(sizes[n] for n in d.name.split("*")) for d in self.shape)

    @staticmethod
    def parse(text: str) -> TensorType:
        match = re.fullmatch(r"(\w+)\[([^\]]*)\]", text.strip())
        if match is None:
            raise VerifyError(f"not a type: {text!r}")
        dims = tuple(parse_dim(d.strip()) for d in match[2].split(",")) if match[2].strip() else ()
        return TensorType(match[1], dims)


def product(shape: tuple[Dim, ...]) -> Dim:
    """Number of elements."""
    count, symbols = 1, []
    for dim in shape:
        count *= dim if isinstance(dim, int) else dim.scale
        symbols += dim.name.split("*") if isinstance(dim, Sym) else []
    return Sym("*".join(sorted(symbols)), count) if symbols else count


def broadcast(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """NumPy broadcasting of two shapes. Raises VerifyError when they do not agree."""
    out: list[Dim] = []
    for i in range(max(len(a), len(b))):
        x = a[len(a) - 1 - i] if i < len(a) else 1
        y = b[len(b) - 1 - i] if i < len(b) else 1
        if x != y and x != 1 and y != 1:
            raise VerifyError(f"shapes {a} and {b} do not broadcast")
        out.append(y if x == 1 else x)
    return tuple(reversed(out))
