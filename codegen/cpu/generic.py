"""Loops for what no kernel covers: fused pointwise expressions, reductions, and data movement, rendered as C for one shape."""

from __future__ import annotations

from collections.abc import Callable

from ...compiler.ir.types import Dim, Sym
from ..expression import Expr
from ..layout import C_TYPES, Layout, c_dim

VECTOR = {
    "neg": "(-{0})", "exp": "exp16({0})", "log": "log16({0})", "sqrt": "sqrt16({0})", "rsqrt": "(splat(1.0f) / sqrt16({0}))",
    "reciprocal": "(splat(1.0f) / {0})", "abs": "abs16({0})", "tanh": "tanh16({0})", "sigmoid": "sigmoid16({0})", "relu": "relu16({0})",
    "erf": "erf16({0})", "silu": "silu16({0})", "gelu": "gelu16({0})", "gelu_tanh": "gelu_tanh16({0})", "quick_gelu": "quick_gelu16({0})",
    "relu2": "relu216({0})", "softplus": "softplus16({0})", "square": "square16({0})", "copy": "{0}", "expm1": "expm116({0})", "log1p": "log1p16({0})",
    "add": "({0} + {1})", "sub": "({0} - {1})", "mul": "({0} * {1})", "div": "({0} / {1})", "max": "max16({0}, {1})", "min": "min16({0}, {1})",
}  # fmt: skip
SCALAR = {
    "neg": "(-{0})", "sqrt": "__builtin_sqrtf({0})", "rsqrt": "(1.0f / __builtin_sqrtf({0}))", "reciprocal": "(1.0f / {0})",
    "abs": "({0} < 0 ? -{0} : {0})", "floor": "__builtin_floorf({0})", "ceil": "__builtin_ceilf({0})", "round": "__builtin_rintf({0})",
    "sign": "(({0} > 0) - ({0} < 0))", "not": "(!{0})", "square": "({0} * {0})", "copy": "{0}",
    "sin": "sin_of({0})", "cos": "cos_of({0})", "pow": "pow_of({0}, {1})",
    "add": "({0} + {1})", "sub": "({0} - {1})", "mul": "({0} * {1})", "div": "((float){0} / (float){1})",
    "max": "({0} > {1} ? {0} : {1})", "min": "({0} < {1} ? {0} : {1})",
    "eq": "({0} == {1})", "ne": "({0} != {1})", "lt": "({0} < {1})", "le": "({0} <= {1})", "gt": "({0} > {1})", "ge": "({0} >= {1})",
    "and": "({0} && {1})", "or": "({0} || {1})", "where": "({0} ? {1} : {2})",
}  # fmt: skip
INTEGER = {"floor_div": "floor_div({0}, {1})", "mod": "floor_mod({0}, {1})"}
FLOAT = {"floor_div": "__builtin_floorf({0} / {1})", "mod": "({0} - __builtin_floorf({0} / {1}) * {1})"}
HELPERS = """
INLINE v16 square16(v16 x) { return x * x; }
INLINE float sin_of(float x) { float s, c; sincos1(x, &s, &c); return s; }
INLINE float cos_of(float x) { float s, c; sincos1(x, &s, &c); return c; }
INLINE float pow_of(float x, float y) { return y == 0.0f ? 1.0f : x == 0.0f ? (y > 0.0f ? 0.0f : __builtin_inff()) : exp16(splat(y * log16(splat(x < 0.0f ? -x : x))[0]))[0] * (x < 0.0f && ((int64_t)y & 1) ? -1.0f : 1.0f); }
INLINE int64_t floor_div(int64_t a, int64_t b) { if (!b) return 0; int64_t q = a / b; return q - (a % b != 0 && (a < 0) != (b < 0)); }
INLINE int64_t floor_mod(int64_t a, int64_t b) { return b ? a - floor_div(a, b) * b : 0; }
""".strip()


def supports(fn: str, dtypes: list[str]) -> bool:
    """Whether a pointwise function can be rendered for operands of these storage dtypes."""
    return fn in SCALAR or fn in VECTOR or fn in INTEGER


class Loop:
    """One generated function: pointers in, loops over a shape, a body. `render()` gives C with pointers named p0, p1, …"""

    def __init__(self, shape: tuple[Dim, ...], layouts: list[Layout]) -> None:
        self.shape = shape
        self.layouts = layouts
        self.names = [f"i{k}" for k in range(len(shape))]

    def place(self, layout: Layout, names: list[str] | None = None) -> str:
        names = names or self.names
        shape = layout.shape
        offset = len(names) - len(shape)
        return f"p{self.layouts.index(layout)}[{layout.index(names[offset:])}]"

    def params(self) -> str:
        return ", ".join(f"{C_TYPES[layout.buffer.dtype]} *p{i}" for i, layout in enumerate(self.layouts))

    def wrap(self, body: str, dims: int | None = None) -> str:
        """The body inside loops over the first `dims` dimensions; the widest is shared out among threads."""
        count = len(self.shape) if dims is None else dims
        outer = next((k for k in range(count) if isinstance(self.shape[k], Sym)), None)
        if outer is None:
            outer = max(range(count), key=lambda k: self.shape[k], default=None)  # type: ignore[arg-type,return-value]
        lines = []
        if outer is None:
            lines.append("if (tid) return;")
        else:
            lines.append(
                f"FOR_PIECES(s, (int)({c_dim(self.shape[outer])}), {1 if isinstance(self.shape[outer], Sym) else 64}, i{outer})"
            )
        for k in range(count):
            if k != outer:
                lines.append(
                    f"for (ptrdiff_t i{k} = 0; i{k} < {c_dim(self.shape[k])}; i{k}++)"
                    if self.shape[k] != 1
                    else f"for (int i{k} = 0; i{k} < 1; i{k}++)"
                )
        return "\n    ".join(lines) + " {\n        " + body.replace("\n", "\n        ") + "\n    }"


def scalar_code(expr: Expr, place: Callable[[Layout], str]) -> str:
    """The expression for one element, in C."""
    if expr.number is not None:
        return _number(expr.number, expr.dtype)
    if expr.leaf is not None:
        return place(expr.leaf)
    args = [scalar_code(a, place) for a in expr.args]
    if expr.fn == "cast" or expr.fn == "copy":
        return f"(({C_TYPES[expr.dtype]})({args[0]}{' != 0' if expr.dtype == 'bool' else ''}))"
    integers = all(a.dtype != "f32" for a in expr.args)
    table = {**SCALAR, **(INTEGER if integers else FLOAT)}
    if expr.fn in table:
        return f"(({C_TYPES[expr.dtype]}){table[expr.fn].format(*args)})"
    return f"({VECTOR[expr.fn].format(*[f'splat((float){a})' for a in args])}[0])"


def vector_code(expr: Expr, place: Callable[[Layout], str]) -> str:
    """The expression for 16 elements along the last dimension, in C."""
    if expr.number is not None:
        return f"splat({_number(expr.number, 'f32')})"
    if expr.leaf is not None:
        return place(expr.leaf)
    args = [vector_code(a, place) for a in expr.args]
    return args[0] if expr.fn == "cast" else VECTOR[expr.fn].format(*args)


def _vectorizes(expr: Expr) -> bool:
    if expr.dtype != "f32":
        return False
    if expr.leaf is not None:
        last = expr.leaf.strides[-1] if expr.leaf.shape else 0
        return not expr.leaf.shape or last in (0, 1) or expr.leaf.shape[-1] == 1
    return expr.number is not None or ((expr.fn in VECTOR or expr.fn == "cast") and all(_vectorizes(a) for a in expr.args))


def _number(value: float, dtype: str) -> str:
    if dtype != "f32":
        return str(int(value))
    if value != value:
        return '__builtin_nanf("")'
    if value in (float("inf"), float("-inf")):
        return "__builtin_inff()" if value > 0 else "(-__builtin_inff())"
    text = float(value).hex()
    return f"{text}f" if value >= 0 else f"({text}f)"


def pointwise(expr: Expr, out: Layout) -> tuple[str, list[Layout]]:
    """The body of a function that stores the expression, and the layouts of its pointers (the output first)."""
    layouts = [out, *[leaf for leaf in expr.leaves() if leaf != out]]
    loop = Loop(out.shape, layouts)
    width = out.shape[-1] if out.shape else 1
    if out.shape and isinstance(width, int) and width >= 16 and _vectorizes(expr):
        last = loop.names[-1]

        def wide(layout: Layout) -> str:
            if not layout.shape or layout.strides[-1] == 0 or layout.shape[-1] == 1:
                return f"splat({loop.place(layout)})"
            return f"load16(&{loop.place(layout)})"

        def tail(layout: Layout) -> str:
            if not layout.shape or layout.strides[-1] == 0 or layout.shape[-1] == 1:
                return f"splat({loop.place(layout)})"
            return f"load_tail(&{loop.place(layout)}, {width % 16})"

        body = f"ptrdiff_t {last} = 0;\nfor (; {last} + 16 <= {width}; {last} += 16) store16(&{loop.place(out)}, {vector_code(expr, wide)});"
        if width % 16:
            body += f"\nv16 last_ = {vector_code(expr, tail)};\nmemcpy(&{loop.place(out)}, &last_, {width % 16 * 4});"
        return loop.wrap(body, len(out.shape) - 1), layouts
    return loop.wrap(f"{loop.place(out)} = {scalar_code(expr, loop.place)};"), layouts


def reduction(fn: str, x: Layout, dims: tuple[int, ...], keepdim: bool, out: Layout) -> tuple[str, list[Layout]]:
    """Reduce `dims` of x into out, element by element in order."""
    kept = [d for d in range(len(x.shape)) if d not in dims]
    loop = Loop(tuple(x.shape[d] if d in kept else 1 for d in range(len(x.shape))), [out, x])
    names = loop.names
    out_names = names if keepdim else [names[d] for d in kept]
    kind, real = C_TYPES[out.buffer.dtype], C_TYPES[x.buffer.dtype]
    inner = " ".join(f"for (ptrdiff_t r{d} = 0; r{d} < {c_dim(x.shape[d])}; r{d}++)" for d in dims)
    at = [f"r{d}" if d in dims else names[d] for d in range(len(x.shape))]
    element = f"p1[{x.index(at)}]"
    count = " * ".join(f"({c_dim(x.shape[d])})" for d in dims)
    target = f"p0[{out.index(out_names)}]"
    if fn == "argmax":
        d = dims[0]
        body = f"{real} best = 0; ptrdiff_t where = 0;\n{inner} {{ {real} v = {element}; if (r{d} == 0 || v > best) {{ best = v; where = r{d}; }} }}\n{target} = where;"
    else:
        start, update = {
            "sum": ("0", "a += v"), "mean": ("0", "a += v"), "prod": ("1", "a *= v"), "any": ("0", "a |= v != 0"), "all": ("1", "a &= v != 0"),
            "max": ("0", "if (!some || v > a) a = v"), "min": ("0", "if (!some || v < a) a = v"),
        }[fn]  # fmt: skip
        body = f"{kind} a = {start}; int some = 0;\n{inner} {{ {real} v = {element}; {update}; some = 1; }}\n{target} = {f'a / (float)({count})' if fn == 'mean' else 'a'}; (void)some;"
    return loop.wrap(body), [out, x]


def softmax(x: Layout, dim: int, log: bool, out: Layout) -> tuple[str, list[Layout]]:
    shape = tuple(1 if d == dim else n for d, n in enumerate(x.shape))
    loop = Loop(shape, [out, x])
    at = [f"r{d}" if d == dim else loop.names[d] for d in range(len(shape))]
    over = f"for (ptrdiff_t r{dim} = 0; r{dim} < {c_dim(x.shape[dim])}; r{dim}++)"
    a, b = f"p1[{x.index(at)}]", f"p0[{out.index(at)}]"
    end = f"float z = log16(splat(sum))[0];\n{over} {b} = {a} - most - z;" if log else f"{over} {b} = {b} / sum;"
    body = f"float most = -__builtin_inff(), sum = 0.0f;\n{over} most = {a} > most ? {a} : most;\n{over} {{ float e = exp16(splat({a} - most))[0]; sum += e;{'' if log else f' {b} = e;'} }}\n{end}"
    return loop.wrap(body), [out, x]


def topk(x: Layout, k: int, values: Layout, indices: Layout) -> tuple[str, list[Layout]]:
    """The k largest of the last dimension: k sweeps, each taking the best that comes after the one before."""
    loop = Loop((*x.shape[:-1], 1), [values, indices, x])
    head = loop.names[:-1]
    n = c_dim(x.shape[-1])
    body = f"""float last_ = __builtin_inff(); ptrdiff_t from = -1;
for (int j = 0; j < {k}; j++) {{
    float best = -__builtin_inff(); ptrdiff_t where = -1;
    for (ptrdiff_t e = 0; e < {n}; e++) {{
        float v = p2[{x.index([*head, "e"])}];
        if ((v < last_ || (v == last_ && e > from)) && (where < 0 || v > best)) {{ best = v; where = e; }}
    }}
    if (where < 0) where = j; /* only where values are not numbers */
    p0[{values.index([*head, "j"])}] = best; p1[{indices.index([*head, "j"])}] = where;
    last_ = best; from = where;
}}"""
    return loop.wrap(body), [values, indices, x]


def gather(x: Layout, index: Layout, dim: int, out: Layout) -> tuple[str, list[Layout]]:
    loop = Loop(out.shape, [out, x, index])
    at = [("where" if d == dim else name) for d, name in enumerate(loop.names)]
    body = f"int64_t where = {loop.place(index)}; if (where < 0 || where >= {c_dim(x.shape[dim])}) where = 0;\n{loop.place(out)} = p1[{x.index(at)}];"
    return loop.wrap(body), [out, x, index]


def index_select(x: Layout, index: Layout, dim: int, out: Layout) -> tuple[str, list[Layout]]:
    loop = Loop(out.shape, [out, x, index])
    at = [("where" if d == dim else name) for d, name in enumerate(loop.names)]
    body = f"int64_t where = p2[{index.index([loop.names[dim]])}]; if (where < 0 || where >= {c_dim(x.shape[dim])}) where = 0;\n{loop.place(out)} = p1[{x.index(at)}];"
    return loop.wrap(body), [out, x, index]


def scatter(x: Layout, index: Layout, source: Layout, dim: int, out: Layout) -> tuple[str, list[Layout]]:
    shape = tuple(1 if d == dim else n for d, n in enumerate(x.shape))
    loop = Loop(shape, [out, x, index, source])
    at = [("r" if d == dim else name) for d, name in enumerate(loop.names)]
    to = [("where" if d == dim else name) for d, name in enumerate(loop.names)]
    body = f"""for (ptrdiff_t r = 0; r < {c_dim(x.shape[dim])}; r++) p0[{out.index(at)}] = p1[{x.index(at)}];
for (ptrdiff_t r = 0; r < {c_dim(index.shape[dim])}; r++) {{ int64_t where = p2[{index.index(at)}]; if (where >= 0 && where < {c_dim(x.shape[dim])}) p0[{out.index(to)}] = p3[{source.index(at)}]; }}"""
    return loop.wrap(body), [out, x, index, source]


def cumsum(x: Layout, dim: int, out: Layout) -> tuple[str, list[Layout]]:
    shape = tuple(1 if d == dim else n for d, n in enumerate(x.shape))
    loop = Loop(shape, [out, x])
    at = [("r" if d == dim else name) for d, name in enumerate(loop.names)]
    body = f"{C_TYPES[out.buffer.dtype]} a = 0;\nfor (ptrdiff_t r = 0; r < {c_dim(x.shape[dim])}; r++) {{ a += p1[{x.index(at)}]; p0[{out.index(at)}] = a; }}"
    return loop.wrap(body), [out, x]


def matmul(a: Layout, b: Layout, out: Layout) -> tuple[str, list[Layout]]:
    loop = Loop(out.shape, [out, a, b])
    lead = loop.names[:-2]
    left = a.index([*lead[len(lead) - (len(a.shape) - 2) :], loop.names[-2], "r"])
    right = b.index([*lead[len(lead) - (len(b.shape) - 2) :], "r", loop.names[-1]])
    body = f"float sum = 0.0f;\nfor (ptrdiff_t r = 0; r < {c_dim(a.shape[-1])}; r++) sum = __builtin_fmaf(p1[{left}], p2[{right}], sum);\n{loop.place(out)} = sum;"
    return loop.wrap(body), [out, a, b]
