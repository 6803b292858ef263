"""Where a value lies: a buffer seen through an offset and strides, so that views, permutations and slices cost nothing."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from ..compiler.ir.types import Dim, Sym, TensorType, product

C_TYPES = {"f32": "float", "i64": "int64_t", "i32": "int32_t", "bool": "uint8_t"}
BYTES = {"f32": 4, "i64": 8, "i32": 4, "bool": 1, "bf16": 2, "f16": 2, "i8": 1, "f8": 1}


def storage(dtype: str) -> str:
    """The dtype in which a computed value is held: every float as float32, every integer as int64."""
    if dtype in ("f64", "f32", "f16", "bf16"):
        return "f32"
    return "bool" if dtype == "bool" else "i64"


def c_dim(dim: Dim) -> str:
    """A dimension as a C expression over T and R."""
    if isinstance(dim, int):
        return str(dim)
    return f"(ptrdiff_t){dim.scale} * {dim.name}" if dim.scale != 1 else f"(ptrdiff_t){dim.name}"


@dataclass(frozen=True, slots=True)
class Buffer:
    """One computed value's memory. `dtype` is a storage dtype; `size` its number of elements. `pointer` is its number in the step's table."""

    id: int
    dtype: str
    size: Dim


@dataclass(frozen=True, slots=True)
class Layout:
    """Element (i0, i1, …) lies at offset + Σ i·stride elements of the buffer. A stride is an int or a multiple of T or R."""

    buffer: Buffer
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    offset: int = 0

    @staticmethod
    def dense(buffer: Buffer, shape: tuple[Dim, ...]) -> Layout:
        strides: list[Dim] = []
        for i in range(len(shape)):
            strides.append(product(shape[i + 1 :]))
        return Layout(buffer, shape, tuple(strides))

    @property
    def is_dense(self) -> bool:
        dense = Layout.dense(self.buffer, self.shape)
        return self.offset == 0 and all(s == d or n == 1 for s, d, n in zip(self.strides, dense.strides, self.shape, strict=True))

    def permute(self, order: tuple[int, ...]) -> Layout:
        return replace(self, shape=tuple(self.shape[i] for i in order), strides=tuple(self.strides[i] for i in order))

    def slice(self, dim: int, start: int, stop: int, step: int) -> Layout:
        stride = self.strides[dim]
        assert isinstance(stride, int)
        shape = (*self.shape[:dim], len(range(start, stop, step)), *self.shape[dim + 1 :])
        return Layout(
            self.buffer, shape, (*self.strides[:dim], stride * step, *self.strides[dim + 1 :]), self.offset + start * stride
        )

    def expand(self, shape: tuple[Dim, ...]) -> Layout:
        lead = len(shape) - len(self.shape)
        strides = [0] * lead + [
            0 if n == 1 and m != 1 else s for n, m, s in zip(self.shape, shape[lead:], self.strides, strict=True)
        ]
        return replace(self, shape=shape, strides=tuple(strides))

    def view(self, shape: tuple[Dim, ...]) -> Layout | None:
        """The same elements under another shape, or None when that needs a copy."""
        old = [(n, s) for n, s in zip(self.shape, self.strides, strict=True) if n != 1]
        new = [n for n in shape if n != 1]
        strides: list[Dim] = []
        i = j = 0
        while i < len(old) or j < len(new):
            if i >= len(old) or j >= len(new):
                return None
            a, b = [old[i]], [new[j]]
            i, j = i + 1, j + 1
            while product(tuple(n for n, _ in a)) != product(tuple(b)):
                if _smaller(product(tuple(n for n, _ in a)), product(tuple(b))):
                    if i >= len(old):
                        return None
                    a.append(old[i])
                    i += 1
                else:
                    if j >= len(new):
                        return None
                    b.append(new[j])
                    j += 1
            for (_, s), (n2, s2) in itertools.pairwise(a):
                if s != product((n2, s2)):
                    return None
            last = a[-1][1]
            for k in range(len(b)):
                strides.append(product((*b[k + 1 :], last)))
        full: list[Dim] = []
        at = 0
        for n in shape:
            full.append(1 if n == 1 else strides[at])
            at += n != 1
        return replace(self, shape=shape, strides=tuple(full))

    def rows(self) -> tuple[Dim, int, int] | None:
        """(number of rows, their stride, offset) when the last dimension is contiguous and the rest is regular; else None."""
        if not self.shape or (self.strides[-1] != 1 and self.shape[-1] != 1):
            return None
        flat = self.view((product(self.shape[:-1]), self.shape[-1]))
        if flat is None or not isinstance(flat.strides[0], int):
            return None
        width = self.shape[-1]
        assert isinstance(width, int)
        return flat.shape[0], flat.strides[0] if flat.shape[0] != 1 else width, self.offset

    def index(self, names: list[str]) -> str:
        """The element's place as a C expression over index variables."""
        terms = [str(self.offset)] if self.offset else []
        for n, stride, name in zip(self.shape, self.strides, names, strict=True):
            if n == 1 or stride == 0:
                continue
            terms.append(name if stride == 1 else f"{name} * ({c_dim(stride)})")
        return " + ".join(terms) or "0"


def _smaller(a: Dim, b: Dim) -> bool:
    """Whether one side of a reshape still needs more dimensions: a symbol outweighs any number."""
    if isinstance(a, Sym) != isinstance(b, Sym):
        return isinstance(b, Sym)
    return (a.scale if isinstance(a, Sym) else a) < (b.scale if isinstance(b, Sym) else b)


def dense_type(kind: TensorType) -> tuple[str, Dim]:
    """Storage dtype and number of elements of a value."""
    return storage(kind.dtype), product(kind.shape)
