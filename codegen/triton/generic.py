"""Loops for what no kernel covers, rendered as Triton for one shape: an element of the output a lane, everything else in turn."""

from __future__ import annotations

from collections.abc import Callable

from ...compiler.ir.types import Dim, Sym, product
from ..expression import Expr
from ..layout import Layout

FUNCTIONS = {
    "neg": "(-{0})", "exp": "tl.exp({0})", "log": "tl.log({0})", "sqrt": "tl.sqrt({0})", "rsqrt": "(1.0 / tl.sqrt({0}))",
    "reciprocal": "(1.0 / {0})", "abs": "tl.abs({0})", "tanh": "tanh({0})", "sigmoid": "tl.sigmoid({0})", "relu": "tl.maximum({0}, 0)",
    "erf": "tl.erf({0})", "silu": "({0} * tl.sigmoid({0}))", "gelu": "(0.5 * {0} * (1.0 + tl.erf({0} * 0.7071067811865476)))",
    "gelu_tanh": "gelu_tanh({0})", "quick_gelu": "({0} * tl.sigmoid(1.702 * {0}))", "relu2": "relu2({0})", "softplus": "softplus({0})",
    "square": "({0} * {0})", "copy": "{0}", "expm1": "expm1({0})", "log1p": "log1p({0})", "sin": "tl.sin({0})", "cos": "tl.cos({0})",
    "floor": "tl.floor({0})", "ceil": "tl.ceil({0})", "round": "(({0} + 12582912.0) - 12582912.0)", "sign": "(({0} > 0).to(tl.float32) - ({0} < 0).to(tl.float32))",
    "not": "({0} == 0)", "pow": "power({0}, {1})",
    "add": "({0} + {1})", "sub": "({0} - {1})", "mul": "({0} * {1})", "div": "({0}.to(tl.float32) / {1}.to(tl.float32))",
    "max": "tl.maximum({0}, {1})", "min": "tl.minimum({0}, {1})",
    "eq": "({0} == {1})", "ne": "({0} != {1})", "lt": "({0} < {1})", "le": "({0} <= {1})", "gt": "({0} > {1})", "ge": "({0} >= {1})",
    "and": "(({0} != 0) & ({1} != 0))", "or": "(({0} != 0) | ({1} != 0))", "where": "tl.where({0} != 0, {1}, {2})",
}  # fmt: skip
INTEGER = {
    "floor_div": "floor_div({0}, {1})",
    "mod": "({0} - floor_div({0}, {1}) * {1})",
    "sign": "(({0} > 0).to(tl.int64) - ({0} < 0).to(tl.int64))",
}
FLOAT = {"floor_div": "tl.floor({0} / {1})", "mod": "({0} - tl.floor({0} / {1}) * {1})"}
TYPES = {"f32": "tl.float32", "i64": "tl.int64", "i32": "tl.int32", "bool": "tl.int1"}
BLOCK = 256
HEAD = '''"""Loops that llmc generated for this model."""

import triton
import triton.language as tl

from .common import begin


@triton.jit
def tanh(x):
    t = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - t) / (1.0 + t)
    return tl.where(x < 0, -y, y)


@triton.jit
def gelu_tanh(x):
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def relu2(x):
    y = tl.maximum(x, 0.0)
    return y * y


@triton.jit
def log1p(x):
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * x / tl.where(u == 1.0, 1.0, u - 1.0))


@triton.jit
def expm1(x):
    u = tl.exp(x)
    small = tl.where((u == 1.0) | (u <= 0.0), 0.5, u)
    return tl.where(u == 1.0, x, tl.where(u - 1.0 == -1.0, -1.0, (u - 1.0) * x / tl.log(small)))


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def power(x, y):
    size = tl.exp(y * tl.log(tl.where(x == 0.0, 1.0, tl.abs(x))))
    odd = y - 2.0 * tl.floor(y * 0.5) == 1.0
    return tl.where(y == 0.0, 1.0, tl.where(x == 0.0, tl.where(y > 0.0, 0.0, float("inf")), tl.where((x < 0.0) & odd, -size, size)))


@triton.jit
def floor_div(a, b):
    q = a // tl.where(b == 0, 1, b)
    return tl.where(b == 0, 0, q - ((a - q * b != 0) & ((a < 0) != (b < 0))).to(tl.int64))
'''


def supports(fn: str, dtypes: list[str]) -> bool:
    """Whether a pointwise function can be rendered for operands of these storage dtypes."""
    return fn in FUNCTIONS or fn in FLOAT


def size(dim: Dim) -> str:
    """A dimension as an expression over T and R."""
    return str(dim) if isinstance(dim, int) else dim.name if dim.scale == 1 else f"({dim.scale} * {dim.name})"


def place(layout: Layout, names: list[str]) -> str:
    """An element's place in its buffer, over index variables."""
    terms = [str(layout.offset)] if layout.offset else []
    for n, stride, name in zip(layout.shape, layout.strides, names, strict=True):
        if n != 1 and stride != 0:
            terms.append(name if stride == 1 else f"{name} * {size(stride)}")
    return " + ".join(terms) or "0"


class Lanes:
    """The body of a generated kernel: a lane for each element of `shape`; pointers p0, p1, … follow `layouts`."""

    def __init__(self, shape: tuple[Dim, ...], layouts: list[Layout]) -> None:
        self.shape, self.layouts = shape, layouts
        self.names = [f"i{d}" for d in range(len(shape))]
        self.lines: list[str] = []
        rest = "i"
        for d in reversed(range(len(shape))):
            if d == 0:
                self.lines.append(f"i0 = {rest}")
            else:
                self.lines.append(f"i{d} = {rest} % {size(shape[d])}")
                self.lines.append(f"j{d} = {rest} // {size(shape[d])}")
                rest = f"j{d}"

    def load(self, layout: Layout, names: list[str], mask: str = "inside") -> str:
        """An element as a value: booleans as such."""
        text = f"tl.load(p{self.layouts.index(layout)} + i * 0 + {place(layout, names)}, mask={mask}, other=0)"
        return f"({text} != 0)" if layout.buffer.dtype == "bool" else text

    def store(self, layout: Layout, names: list[str], value: str, mask: str = "inside") -> None:
        kind = "tl.uint8" if layout.buffer.dtype == "bool" else TYPES[layout.buffer.dtype]
        self.lines.append(
            f"tl.store(p{self.layouts.index(layout)} + i * 0 + {place(layout, names)}, ({value}).to({kind}), mask={mask})"
        )

    def text(self) -> str:
        """The body, for a function (p0, …, T, R, BLOCK)."""
        count = size(product(self.shape))
        head = ["i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)", f"inside = i < {count}"]
        return "\n".join(f"    {line}" for line in (*head, *self.lines))


Made = tuple[str, list[Layout], Dim]
"""A body, the layouts of its pointers, and its number of lanes."""


def code(expr: Expr, load: Callable[[Layout], str]) -> str:
    """The expression for a lane."""
    if expr.number is not None:
        value = expr.number
        text = (
            f'float("{value}")'
            if value in (float("inf"), float("-inf")) or value != value
            else repr(float(value) if expr.dtype == "f32" else int(value))
        )
        return f"tl.full((BLOCK,), {text}, {TYPES[expr.dtype]})"
    if expr.leaf is not None:
        return load(expr.leaf)
    args = [code(a, load) for a in expr.args]
    if expr.fn in ("cast", "copy"):
        return f"({args[0]} != 0)" if expr.dtype == "bool" else f"{args[0]}.to({TYPES[expr.dtype]})"
    floats = any(a.dtype == "f32" for a in expr.args)
    table = {**FUNCTIONS, **(FLOAT if floats else INTEGER)}
    made = table[expr.fn].format(*args)
    return made if expr.dtype == "bool" else f"{made}.to({TYPES[expr.dtype]})"


def pointwise(expr: Expr, out: Layout) -> Made:
    lanes = Lanes(out.shape, [out, *[leaf for leaf in expr.leaves() if leaf != out]])

    def load(layout: Layout) -> str:
        return lanes.load(layout, lanes.names[len(lanes.names) - len(layout.shape) :])

    lanes.store(out, lanes.names, code(expr, load))
    return lanes.text(), lanes.layouts, product(out.shape)


def reduction(fn: str, x: Layout, dims: tuple[int, ...], keepdim: bool, out: Layout) -> Made:
    """Reduce `dims` of x into out, element by element in order."""
    kept = [d for d in range(len(x.shape)) if d not in dims]
    lanes = Lanes(tuple(x.shape[d] if d in kept else 1 for d in range(len(x.shape))), [out, x])
    names = [f"r{d}" if d in dims else lanes.names[d] for d in range(len(x.shape))]
    kind = TYPES[x.buffer.dtype]
    element = lanes.load(x, names)
    start, update = {
        "sum": ("0", "a + v"), "mean": ("0", "a + v"), "prod": ("1", "a * v"), "any": ("0", "a | v"), "all": ("1", "a & v"),
        "max": ('float("-inf")', "tl.maximum(a, v)"), "min": ('float("inf")', "tl.minimum(a, v)"), "argmax": ('float("-inf")', "tl.maximum(a, v)"),
    }[fn]  # fmt: skip
    if fn in ("max", "min", "argmax") and x.buffer.dtype != "f32":
        start = "-9223372036854775808" if fn != "min" else "9223372036854775807"
    wide = {"tl.int1": "tl.int32"}.get(kind, kind)
    lanes.lines.append(f"a = tl.full((BLOCK,), {start}, {wide})")
    if fn == "argmax":
        lanes.lines.append("where = tl.zeros((BLOCK,), tl.int64)")
    pad = ""
    for d in dims:
        lanes.lines.append(f"{pad}for r{d} in range({size(x.shape[d])}):")
        pad += "    "
    lanes.lines.append(f"{pad}v = {element}.to({wide})")
    if fn == "argmax":
        lanes.lines.append(f"{pad}where = tl.where(v > a, r{dims[0]}, where)")
    lanes.lines.append(f"{pad}a = {update}")
    count = " * ".join(size(x.shape[d]) for d in dims)
    value = {"mean": f"a / ({count})", "argmax": "where", "any": "a != 0", "all": "a != 0"}.get(fn, "a")
    lanes.store(out, lanes.names if keepdim else [lanes.names[d] for d in kept], value)
    return lanes.text(), lanes.layouts, product(lanes.shape)


def softmax(x: Layout, dim: int, log: bool, out: Layout) -> Made:
    lanes = Lanes(tuple(1 if d == dim else n for d, n in enumerate(x.shape)), [out, x])
    names = ["r" if d == dim else name for d, name in enumerate(lanes.names)]
    n, element = size(x.shape[dim]), lanes.load(x, names)
    lanes.lines += [
        'most = tl.full((BLOCK,), float("-inf"), tl.float32)', "total = tl.zeros((BLOCK,), tl.float32)",
        f"for r in range({n}):", f"    most = tl.maximum(most, {element})",
        f"for r in range({n}):", f"    total += tl.exp({element} - most)",
        f"for r in range({n}):",
    ]  # fmt: skip
    last = len(lanes.lines)
    lanes.store(out, names, f"{element} - most - tl.log(total)" if log else f"tl.exp({element} - most) / total")
    lanes.lines[last] = "    " + lanes.lines[last]
    return lanes.text(), lanes.layouts, product(lanes.shape)


def topk(x: Layout, k: int, values: Layout, indices: Layout) -> Made:
    """The k largest of the last dimension: k sweeps, each taking the best that comes after the one before."""
    lanes = Lanes((*x.shape[:-1], 1), [values, indices, x])
    head = lanes.names[:-1]
    lanes.lines += [
        'last = tl.full((BLOCK,), float("inf"), tl.float32)', "before = tl.full((BLOCK,), -1, tl.int64)", f"for j in range({k}):",
        '    best = tl.full((BLOCK,), float("-inf"), tl.float32)', "    where = tl.full((BLOCK,), -1, tl.int64)",
        f"    for e in range({size(x.shape[-1])}):", f"        v = {lanes.load(x, [*head, 'e'])}",
        "        wins = ((v < last) | ((v == last) & (e > before))) & ((where < 0) | (v > best))",
        "        best = tl.where(wins, v, best)", "        where = tl.where(wins, e, where)", "    where = tl.where(where < 0, j, where)",
    ]  # fmt: skip
    at = len(lanes.lines)
    lanes.store(values, [*head, "j"], "best")
    lanes.store(indices, [*head, "j"], "where")
    lanes.lines[at:] = [f"    {line}" for line in lanes.lines[at:]]
    lanes.lines += ["    last = best", "    before = where"]
    return lanes.text(), lanes.layouts, product(lanes.shape)


def _indexed(lanes: Lanes, out: Layout, x: Layout, index: str, dim: int) -> Made:
    lanes.lines += [f"where = {index}.to(tl.int64)", f"where = tl.where((where < 0) | (where >= {size(x.shape[dim])}), 0, where)"]
    names = ["where" if d == dim else name for d, name in enumerate(lanes.names)]
    lanes.store(out, lanes.names, lanes.load(x, names))
    return lanes.text(), lanes.layouts, product(out.shape)


def gather(x: Layout, index: Layout, dim: int, out: Layout) -> Made:
    lanes = Lanes(out.shape, [out, x, index])
    return _indexed(lanes, out, x, lanes.load(index, lanes.names), dim)


def index_select(x: Layout, index: Layout, dim: int, out: Layout) -> Made:
    lanes = Lanes(out.shape, [out, x, index])
    return _indexed(lanes, out, x, lanes.load(index, [lanes.names[dim]]), dim)


def scatter(x: Layout, index: Layout, source: Layout, dim: int, out: Layout) -> Made:
    lanes = Lanes(tuple(1 if d == dim else n for d, n in enumerate(x.shape)), [out, x, index, source])
    at = ["r" if d == dim else name for d, name in enumerate(lanes.names)]
    to = ["where" if d == dim else name for d, name in enumerate(lanes.names)]
    lanes.lines.append(f"for r in range({size(x.shape[dim])}):")
    first = len(lanes.lines)
    lanes.store(out, at, lanes.load(x, at))
    lanes.lines[first] = "    " + lanes.lines[first]
    lanes.lines += [
        "tl.debug_barrier()",
        f"for r in range({size(index.shape[dim])}):",
        f"    where = {lanes.load(index, at)}.to(tl.int64)",
    ]
    first = len(lanes.lines)
    lanes.store(out, to, lanes.load(source, at), f"inside & (where >= 0) & (where < {size(x.shape[dim])})")
    lanes.lines[first] = "    " + lanes.lines[first]
    return lanes.text(), lanes.layouts, product(lanes.shape)


def cumsum(x: Layout, dim: int, out: Layout) -> Made:
    lanes = Lanes(tuple(1 if d == dim else n for d, n in enumerate(x.shape)), [out, x])
    names = ["r" if d == dim else name for d, name in enumerate(lanes.names)]
    kind = TYPES[out.buffer.dtype]
    lanes.lines += [
        f"a = tl.zeros((BLOCK,), {kind})",
        f"for r in range({size(x.shape[dim])}):",
        f"    a += {lanes.load(x, names)}.to({kind})",
    ]
    at = len(lanes.lines)
    lanes.store(out, names, "a")
    lanes.lines[at] = "    " + lanes.lines[at]
    return lanes.text(), lanes.layouts, product(lanes.shape)


def matmul(a: Layout, b: Layout, out: Layout) -> Made:
    lanes = Lanes(out.shape, [out, a, b])
    lead = lanes.names[:-2]
    left = lanes.load(a, [*lead[len(lead) - (len(a.shape) - 2) :], lanes.names[-2], "r"])
    right = lanes.load(b, [*lead[len(lead) - (len(b.shape) - 2) :], "r", lanes.names[-1]])
    lanes.lines += ["a = tl.zeros((BLOCK,), tl.float32)", f"for r in range({size(a.shape[-1])}):", f"    a += {left} * {right}"]
    lanes.store(out, lanes.names, "a")
    return lanes.text(), lanes.layouts, product(out.shape)


def function(name: str, body: str, pointers: int) -> str:
    """The kernel's text."""
    arguments = ", ".join(f"p{i}" for i in range(pointers))
    return (
        f"@triton.jit\ndef {name}({arguments}, T, R, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):\n    begin(OVERLAP)\n{body}\n"
    )


def lanes_of(count: Dim) -> tuple[str, int]:
    """(symbol, factor) of a number of lanes."""
    return (count.name, count.scale) if isinstance(count, Sym) else ("1", count)
