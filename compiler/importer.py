"""From torch's exported program to the IR: a table of ATen overloads, each a few lines."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import sympy
import torch

from ..errors import UnsupportedError, VerifyError
from .capture import Captured
from .ir.graph import Graph, Node, Value
from .ir.op import Op
from .ir.ops.attention import Attention
from .ir.ops.best_keys import BestKeys
from .ir.ops.cast import Cast
from .ir.ops.causal_conv import CausalConv
from .ir.ops.concat import Concat
from .ir.ops.cumsum import Cumsum
from .ir.ops.embedding import Embedding
from .ir.ops.expand import Expand
from .ir.ops.experts import Experts
from .ir.ops.full import Full
from .ir.ops.gather import Gather
from .ir.ops.index_select import IndexSelect
from .ir.ops.iota import Iota
from .ir.ops.layer_norm import LayerNorm
from .ir.ops.linear import Linear
from .ir.ops.matmul import Matmul
from .ir.ops.permute import Permute
from .ir.ops.pointwise import Pointwise
from .ir.ops.recurrence import Recurrence
from .ir.ops.reduce import Reduce
from .ir.ops.rms_norm import RmsNorm
from .ir.ops.scatter import Scatter
from .ir.ops.slice import Slice
from .ir.ops.softmax import Softmax
from .ir.ops.topk import Topk
from .ir.ops.view import View
from .ir.reference import IR_DTYPE, TORCH_DTYPE, Context
from .ir.types import Dim, Sym, TensorType, product

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Arg = Any
Handler = Callable[["_Importer", torch.fx.Node, list[Arg], dict[str, Arg]], "Value | tuple[Value, ...] | Padded | int"]


@dataclass
class Imported:
    """The graph, and the values of the parameters that no checkpoint holds (buffers and lifted constants), by name."""

    graph: Graph
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)


def import_program(captured: Captured) -> Imported:
    """Lower an exported program. Raises UnsupportedError that names the ATen op and the model's source line."""
    return _Importer(replace(captured, program=_decomposed(captured.program))).run()


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    """Functional, and what no lowering knows taken apart as torch does, where it can."""
    from torch._decomp import global_decomposition_table

    needed = reachable(program.graph)
    for node in reversed(list(program.graph.nodes)):
        if node.op == "call_function" and node not in needed and not node.users:  # what only assertions read
            program.graph.erase_node(node)
    program.graph_module.recompile()
    program = _apart(program, {})
    for _ in range(4):
        targets = {
            n.target for n in program.graph.nodes if n.op == "call_function" and isinstance(n.target, torch._ops.OpOverload)
        }
        unknown = {t for t in targets if handler_of(str(t)) is None and str(t) not in IGNORED}
        table = {
            t: f
            for t in unknown
            if "prelu" not in str(t) and (f := global_decomposition_table["post_autograd"].get(t)) is not None
        }
        if not table:
            return program
        program = _apart(program, table)
    return program


def _apart(program: ExportedProgram, table: dict[Any, Any]) -> ExportedProgram:
    try:
        return program.run_decompositions(table)
    except RuntimeError as error:
        raise UnsupportedError(f"torch cannot take this model's forward apart: {str(error).splitlines()[0]}") from error


def handler_of(name: str) -> Handler | None:
    """The handler of an operation, by its overload or by its name alone; other packages' come before llmc's own."""
    for known in (brought(), HANDLERS):
        found = known.get(name) or known.get(name.rpartition(".")[0])
        if found is not None:
            return found
    return None


@cache
def brought() -> dict[str, Handler]:
    """Handlers that other packages bring, as `llmc.lowerings` entry points named like HANDLERS' keys."""
    from importlib.metadata import entry_points

    return {entry.name: entry.load() for entry in entry_points(group="llmc.lowerings")}


def reachable(graph: torch.fx.Graph) -> set[torch.fx.Node]:
    """The nodes that the outputs depend on, and whatever writes into a tensor."""
    writes = lambda n: isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable  # noqa: E731
    stack, found = [n for n in graph.nodes if n.op == "output" or writes(n)], set()
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found


def shape_text(shape: Sequence[Dim]) -> str:
    return ",".join(map(str, shape))


class _Importer:
    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.nodes: list[Node] = []
        self.params: dict[str, Value] = {}
        self.env: dict[torch.fx.Node, Any] = {}
        self.buffers: dict[str, torch.Tensor] = {}
        self.symbols: dict[str, str] = {}
        self.scope = ""
        self.source = ""
        self.counter = 0
        self.caches: dict[tuple[int, str], int] = {}

    # --- building -------------------------------------------------------------------------------------------------

    def emit(self, op: Op, *inputs: Value) -> Value:
        (out,) = self.emit_all(op, *inputs)
        return out

    def emit_all(self, op: Op, *inputs: Value) -> tuple[Value, ...]:
        outputs = []
        for kind in op.infer(*(v.type for v in inputs)):
            outputs.append(Value(f"%{self.counter}", kind))
            self.counter += 1
        self.nodes.append(Node(op, inputs, tuple(outputs), self.scope, self.source))
        return tuple(outputs)

    def scalar(self, number: float, dtype: str) -> Value:
        return self.emit(Full(str(TensorType(dtype, ())), float(number)))

    def value(self, arg: Arg, dtype: str) -> Value:
        """An argument as a value: numbers become scalars of `dtype`."""
        return arg if isinstance(arg, Value) else self.scalar(arg, dtype)

    def cast(self, x: Value, dtype: str) -> Value:
        return x if x.type.dtype == dtype else self.emit(Cast(dtype), x)

    def view(self, x: Value, shape: Sequence[Dim]) -> Value:
        return x if tuple(shape) == x.type.shape else self.emit(View(shape_text(shape)), x)

    def uniform(self, x: Value) -> float | None:
        """The number that every element of a value is, where that is plain to see."""
        made = next((n for n in reversed(self.nodes) if x in n.outputs), None)
        if made is None:
            return None
        if isinstance(made.op, Full):
            return made.op.value
        if isinstance(made.op, Pointwise):
            numbers = [self.uniform(v) for v in made.inputs]
            if any(n is None for n in numbers):
                return None
            operands = [torch.tensor(n, dtype=TORCH_DTYPE[v.type.dtype]) for n, v in zip(numbers, made.inputs, strict=True)]
            return float(made.op.reference(Context.single(1), *operands)[0])
        return self.uniform(made.inputs[0]) if isinstance(made.op, View | Expand | Permute | Cast | Slice) else None

    # --- types ----------------------------------------------------------------------------------------------------

    def dim(self, size: int | torch.SymInt) -> Dim:
        if isinstance(size, int):
            return size
        expr = size.node.expr
        if expr.is_Integer:
            return int(expr)
        coefficient, rest = self.simplified(expr).as_coeff_Mul()
        if rest.is_Integer:
            return int(coefficient * rest)
        name = self.symbols.get(str(rest))
        if name is None or not coefficient.is_Integer:
            raise UnsupportedError(f"a dimension of size {expr} is not a multiple of T or R{self.place()}")
        return Sym(name, int(coefficient))

    def simplified(self, expr: Any) -> Any:
        """The same without maxima and minima that only one token would need: T and R are at least 2."""
        symbols = sorted(expr.free_symbols, key=str)
        if len(symbols) != 1:
            return expr
        (symbol,) = symbols
        at = [expr.xreplace({symbol: sympy.Integer(n)}).doit() for n in (2, 3, 100)]
        line = at[0] + (at[1] - at[0]) * (symbol - 2)
        return sympy.expand(line) if line.xreplace({symbol: sympy.Integer(100)}) == at[2] else expr

    def type_of(self, value: torch.Tensor) -> TensorType:
        if value.dtype == torch.complex64:  # its parts'
            return TensorType("f32", tuple(self.dim(d) for d in value.shape))
        if value.dtype not in IR_DTYPE:
            raise UnsupportedError(f"dtype {value.dtype} is not supported{self.place()}")
        return TensorType(IR_DTYPE[value.dtype], tuple(self.dim(d) for d in value.shape))

    def place(self) -> str:
        return f" at {self.scope or 'the top level'}{': ' + self.source if self.source else ''}"

    # --- the walk -------------------------------------------------------------------------------------------------

    def run(self) -> Imported:
        program = self.captured.program
        graph = program.graph_module.graph
        specs = dict(zip((n for n in graph.nodes if n.op == "placeholder"), program.graph_signature.input_specs, strict=True))
        inputs: list[Value] = []
        for node in specs:
            value = node.meta["val"]
            if node.name in ("input_ids", "position_ids") and not isinstance(value.shape[1], int):
                self.symbols.setdefault(str(value.shape[1].node.expr), "T")
            if node.name == "logits_rows":
                self.symbols.setdefault(str(value.shape[0].node.expr), "R")
        if not any(s == "R" for s in self.symbols.values()):
            raise UnsupportedError("the model's forward does not take the rows whose logits are wanted")
        outputs: tuple[Value, ...] = ()
        needed = reachable(graph)
        for node in graph.nodes:
            if node.op == "call_function" and node not in needed:
                continue  # what only assertions read
            if node.op == "placeholder":
                self.env[node] = self.placeholder(node, specs[node], inputs)
            elif node.op == "call_function":
                self.locate(node)
                try:
                    self.env[node] = self.call(node)
                except VerifyError as error:
                    raise UnsupportedError(f"{node.target}: {error}{self.place()}") from error
            elif node.op == "output":
                mutated = len(program.graph_signature.buffers_to_mutate)
                outputs = tuple(self.env[a] for a in node.args[0][mutated:] if isinstance(a, torch.fx.Node))
            else:
                raise UnsupportedError(f"a {node.op} node is not supported: {node}")
        return Imported(Graph(tuple(inputs), tuple(self.params.values()), tuple(self.nodes), outputs[-1:]), self.buffers)

    def placeholder(self, node: torch.fx.Node, spec: Any, inputs: list[Value]) -> Value:
        value = node.meta["val"]
        if spec.kind.name == "USER_INPUT":
            made = Value(f"%{node.name}", self.type_of(value))
            inputs.append(made)
            return made
        name = str(spec.target).removeprefix("m.")
        made = Value(f"@{name}", self.type_of(value))
        self.params[made.name] = made
        if name in self.captured.buffers:
            self.buffers[name] = self.captured.buffers[name]
        elif spec.kind.name == "CONSTANT_TENSOR":
            constant = self.captured.program.constants[spec.target]
            if constant.device.type == "meta" and constant.numel():
                raise UnsupportedError(f"the model makes a constant tensor {name} whose value is lost on the meta device")
            self.buffers[name] = (
                torch.empty(constant.shape, dtype=constant.dtype) if not constant.numel() else constant.detach().clone()
            )
        return made

    def locate(self, node: torch.fx.Node) -> None:
        stack = node.meta.get("nn_module_stack") or {}
        path = next(reversed(stack.values()))[0] if stack else ""
        self.scope = str(path)[2:]  # the path starts at the wrapper's `m`
        trace = node.meta.get("stack_trace") or ""
        lines = [line.strip() for line in trace.splitlines() if line.strip().startswith("File")]
        self.source = lines[-1] if lines else ""

    def lookup(self, arg: Arg) -> Arg:
        if isinstance(arg, torch.fx.Node):
            return self.env[arg]
        if isinstance(arg, list | tuple):
            return [self.lookup(a) for a in arg]
        return arg

    def call(self, node: torch.fx.Node) -> Any:
        made = node.meta.get("val")
        if isinstance(made, int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool):
            return made if not isinstance(made, torch.SymInt) else self.symbolic(made)
        if node.target is operator.getitem:
            return self.env[node.args[0]][node.args[1]]  # type: ignore[index]
        name = str(node.target)
        if name in IGNORED:
            return None
        handler = handler_of(name)
        if handler is None:
            raise UnsupportedError(f"{name} has no lowering{self.place()}", "docs/extending.md shows how to add one in a file")
        args, kwargs = [self.lookup(a) for a in node.args], {k: self.lookup(v) for k, v in node.kwargs.items()}
        if any(isinstance(a, Padded) for a in args) and handler not in OF_PADDED:
            raise UnsupportedError(f"a padded sequence is used by something else than a causal convolution{self.place()}")
        if any(isinstance(a, Complex) for a in args) and handler not in OF_COMPLEX:
            # whatever only moves numbers moves both parts alike
            parts = [handler(self, node, [a[i] if isinstance(a, Complex) else a for a in args], kwargs) for i in (0, 1)]
            result: Any = Complex(*parts)  # type: ignore[arg-type]
        else:
            result = handler(self, node, args, kwargs)
        self.check(node, result)
        return result

    def symbolic(self, size: torch.SymInt) -> Any:
        try:
            return self.dim(size)
        except UnsupportedError:
            return None  # a size that only guards use; a handler that needs it will say so

    def check(self, node: torch.fx.Node, result: Any) -> None:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and isinstance(result, Value):
            expected = self.type_of(value)
            if expected != result.type:
                raise UnsupportedError(
                    f"{node.target} gives {expected}, its lowering {result.type}{self.place()}",
                    "a bug in the importer: please report it",
                )


def _out(im: _Importer, node: torch.fx.Node) -> TensorType:
    return im.type_of(node.meta["val"])


def _unary(fn: str) -> Handler:
    return lambda im, node, args, kwargs: im.emit(Pointwise(fn, _out(im, node).dtype), args[0])


def _binary(fn: str, swap: bool = False) -> Handler:
    def handle(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
        out = _out(im, node)
        a, b = (args[1], args[0]) if swap else (args[0], args[1])
        alpha = kwargs.get("alpha", args[2] if len(args) > 2 and isinstance(args[2], int | float) else 1)
        kinds = [v.type.dtype for v in (a, b) if isinstance(v, Value)]
        number = out.dtype if out.is_float and out.dtype != "bool" else next((k for k in kinds if k != "bool"), "i64")
        if out.dtype == "bool" and any(isinstance(v, float) for v in (a, b)):
            number = next((k for k in kinds if k.startswith(("f", "bf"))), "f32")
        a, b = im.value(a, number), im.value(b, number)
        if alpha != 1:
            b = im.emit(Pointwise("mul", out.dtype), b, im.scalar(alpha, out.dtype))
        return im.emit(Pointwise(fn, out.dtype), a, b)

    return handle


class Padded(NamedTuple):
    """A value whose token dimension is longer: `left` zeros before it, `right` elements that nothing may look at after it."""

    value: Value
    dim: int
    left: int
    right: int
    fill: Value | None = None  # what lies before the tokens, [channels]; None: zeros


class Cut(NamedTuple):
    """A value without the last `tokens` of its tokens."""

    value: Value
    dim: int
    tokens: int


class Complex(NamedTuple):
    """A complex value: two real ones."""

    real: Value
    imaginary: Value


def _polar(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Complex:
    kind = _out(im, node).dtype
    length, angle = args
    parts = [im.emit(Pointwise("mul", kind), length, im.emit(Pointwise(fn, kind), angle)) for fn in ("cos", "sin")]
    return Complex(*parts)


def _as_complex(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Complex:
    (pairs,) = args
    last = len(pairs.type.shape) - 1
    return Complex(*(im.view(im.emit(Slice(last, i, i + 1), pairs), pairs.type.shape[:-1]) for i in (0, 1)))


def _as_real(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    parts = [im.view(part, (*part.type.shape, 1)) for part in args[0]]
    return im.emit(Concat(len(parts[0].type.shape) - 1), *parts)


def _mul(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value | Complex:
    a, b = args[:2]
    if not isinstance(a, Complex) and not isinstance(b, Complex):
        return _binary("mul")(im, node, args, kwargs)  # type: ignore[return-value]
    kind = _out(im, node).dtype
    pointwise = lambda fn, x, y: im.emit(Pointwise(fn, kind), im.value(x, kind), im.value(y, kind))  # noqa: E731
    if not isinstance(a, Complex) or not isinstance(b, Complex):
        value, factor = (a, b) if isinstance(a, Complex) else (b, a)
        return Complex(*(pointwise("mul", part, factor) for part in value))
    return Complex(
        pointwise("sub", pointwise("mul", a.real, b.real), pointwise("mul", a.imaginary, b.imaginary)),
        pointwise("add", pointwise("mul", a.real, b.imaginary), pointwise("mul", a.imaginary, b.real)),
    )


def _broadcast_tensors(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> tuple[Value, ...]:
    shapes = [im.type_of(v).shape for v in node.meta["val"]]
    return tuple(
        x if x.type.shape == shape else im.emit(Expand(shape_text(shape)), x) for x, shape in zip(args[0], shapes, strict=True)
    )


def _div(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    mode = kwargs.get("rounding_mode")
    if mode not in (None, "floor"):
        raise UnsupportedError(f"division with rounding {mode}{im.place()}")
    return _binary("floor_div" if mode else "div")(im, node, args, {})  # type: ignore[return-value]


def _log_sigmoid(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    """log σ(x) = −softplus(−x)."""
    kind = _out(im, node).dtype
    return im.emit(Pointwise("neg", kind), im.emit(Pointwise("softplus", kind), im.emit(Pointwise("neg", kind), args[0])))


def _pow(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    out = _out(im, node).dtype
    special = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}
    if isinstance(args[1], int | float) and args[1] in special:
        return im.emit(Pointwise(special[args[1]], out), args[0])
    return im.emit(Pointwise("pow", out), im.value(args[0], out), im.value(args[1], out))


def _clamp(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    out = _out(im, node).dtype
    low = args[1] if len(args) > 1 else kwargs.get("min")
    high = args[2] if len(args) > 2 else kwargs.get("max")
    x = args[0]
    if low is not None:
        x = im.emit(Pointwise("max", out), x, im.value(low, out))
    if high is not None:
        x = im.emit(Pointwise("min", out), x, im.value(high, out))
    return x


def _where(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    out = _out(im, node).dtype
    return im.emit(Pointwise("where", out), args[0], im.value(args[1], out), im.value(args[2], out))


def _masked_fill(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    out = _out(im, node).dtype
    return im.emit(Pointwise("where", out), args[1], im.value(args[2], out), args[0])


def _gelu(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    tanh = kwargs.get("approximate", "none") == "tanh"
    return im.emit(Pointwise("gelu_tanh" if tanh else "gelu", _out(im, node).dtype), args[0])


def _softplus(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    if args[1:] not in ([], [1], [1, 20], [1.0, 20.0], [1.0]):
        raise UnsupportedError(f"softplus with beta or threshold{im.place()}")
    return im.emit(Pointwise("softplus", _out(im, node).dtype), args[0])


def _cast(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    return im.cast(args[0], _out(im, node).dtype)


def _same(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    return args[0]


def _reshape(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    return im.view(args[0], _out(im, node).shape)


def _permute(order: Callable[[int, list[Arg]], list[int]]) -> Handler:
    def handle(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
        rank = len(args[0].type.shape)
        return im.emit(Permute(tuple(d % rank for d in order(rank, args))), args[0])

    return handle


def _swap(rank: int, args: list[Arg]) -> list[int]:
    order = list(range(rank))
    a, b = args[1] % rank, args[2] % rank
    order[a], order[b] = order[b], order[a]
    return order


def _expand(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    shape = _out(im, node).shape
    return args[0] if shape == args[0].type.shape else im.emit(Expand(shape_text(shape)), args[0])


def _slice(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    x = args[0]
    if isinstance(x, Value) and len(args) > 3 and args[2] in (None, 0) and isinstance(args[3], int) and args[3] < 0:
        axis = args[1] % len(x.type.shape)
        if isinstance(x.type.shape[axis], Sym) and (len(args) < 5 or args[4] == 1):
            return Cut(x, axis, -args[3])  # type: ignore[return-value]
    out = _out(im, node)
    if isinstance(x, Padded):
        first = len(args) > 1 and args[1] % len(x.value.type.shape) == x.dim and args[2] in (None, 0)
        if x.left or not first or out != x.value.type:
            raise UnsupportedError(f"a slice of a padded sequence that is not its own tokens{im.place()}")
        return x.value
    if out.shape == x.type.shape:
        return x
    dim = (args[1] if len(args) > 1 else 0) % len(x.type.shape)
    size = x.type.shape[dim]
    if not isinstance(size, int):
        raise UnsupportedError(f"a slice of the token dimension is not batch invariant{im.place()}")
    start = args[2] if len(args) > 2 and args[2] is not None else 0
    stop = args[3] if len(args) > 3 and args[3] is not None else size
    computed = len(args) > 2 and isinstance(node.args[2], torch.fx.Node)
    if isinstance(out.shape[dim], Sym) and computed and stop >= size:  # the last T
        places = im.emit(Iota(str(TensorType("i64", (out.shape[dim],))), 0, 1))
        last = im.emit(Reduce("max", (0,), True, "i64"), places)
        back = im.emit(Pointwise("sub", "i64"), im.scalar(size - 1, "i64"), last)
        return im.emit(IndexSelect(dim), x, im.emit(Pointwise("add", "i64"), places, back))
    if not (isinstance(start, int) and isinstance(stop, int)):  # the first T of something that was made for the longest sequence
        if start != 0 or not isinstance(out.shape[dim], Sym) or (len(args) > 4 and args[4] != 1):
            raise UnsupportedError(f"a slice from {start} to {stop} of {size} is not supported{im.place()}")
        return im.emit(IndexSelect(dim), x, im.emit(Iota(str(TensorType("i64", (out.shape[dim],))), 0, 1)))
    clip = lambda i: max(0, min(size, i + size if i < 0 else i))  # noqa: E731
    return im.emit(Slice(dim, clip(start), max(clip(start), clip(stop)), args[4] if len(args) > 4 else 1), x)


def _select(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    x, dim, index = args
    dim %= len(x.type.shape)
    size = x.type.shape[dim]
    if size == 1:
        return im.view(x, _out(im, node).shape)
    if not isinstance(size, int):
        raise UnsupportedError(f"one token is selected by its place in the batch{im.place()}")
    index %= size
    return im.view(im.emit(Slice(dim, index, index + 1), x), _out(im, node).shape)


def _split(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> tuple[Value, ...]:
    x, sizes = args[0], args[1]
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % len(x.type.shape)
    total = x.type.shape[dim]
    if not isinstance(total, int):
        raise UnsupportedError(f"the token dimension is split{im.place()}")
    if isinstance(sizes, int):
        sizes = [min(sizes, total - i) for i in range(0, total, sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(im.emit(Slice(dim, a, a + n), x) for a, n in zip(starts, sizes, strict=True))


def _chunk(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> tuple[Value, ...]:
    x = args[0]
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % len(x.type.shape)
    total = x.type.shape[dim]
    if not isinstance(total, int):
        raise UnsupportedError(f"the token dimension is split{im.place()}")
    return _split(im, node, [x, math.ceil(total / args[1]), dim], {})


def _unbind(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> tuple[Value, ...]:
    x = args[0]
    dim = (args[1] if len(args) > 1 else 0) % len(x.type.shape)
    shape = x.type.shape[:dim] + x.type.shape[dim + 1 :]
    return tuple(im.view(v, shape) for v in _split(im, node, [x, 1, dim], {}))


def _cat(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    out = _out(im, node)
    dim = (args[1] if len(args) > 1 else 0) % len(out.shape)
    if any(isinstance(v, Cut) for v in args[0]):
        return _delayed(im, args[0], dim)
    parts = [im.cast(v, out.dtype) for v in args[0] if v.type.shape != (0,)]
    return im.emit(Concat(dim), *parts) if len(parts) > 1 else parts[0]


def _delayed(im: _Importer, parts: list[Arg], dim: int) -> Value:
    """Every token sees what lies some places before it, the first ones something that is the same for all sequences."""
    if (
        len(parts) != 2
        or not isinstance(parts[1], Cut)
        or parts[1].dim != dim
        or parts[0].type.shape[dim] != parts[1].tokens
        or dim != 1
    ):
        raise UnsupportedError(f"tokens are cut off and put together otherwise{im.place()}")
    first, (x, _, count) = parts
    if count != 1 or len(x.type.shape) != 3:
        raise UnsupportedError(f"tokens are delayed by {count}{im.place()}")
    kind = x.type.dtype
    centred = im.emit(Pointwise("sub", kind), x, first)
    return im.emit(Pointwise("add", kind), _shifted(im, centred, 1), first)


def _shifted(im: _Importer, x: Value, by: int) -> Value:
    channels = x.type.shape[2]
    taps = [im.emit(Full(str(TensorType(x.type.dtype, (channels, 1))), float(i == 0))) for i in range(by + 1)]
    return im.emit(CausalConv(), x, im.emit(Concat(1), *taps))


def _stack(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    out = _out(im, node)
    dim = (args[1] if len(args) > 1 else 0) % len(out.shape)
    parts = [im.view(im.cast(v, out.dtype), (*v.type.shape[:dim], 1, *v.type.shape[dim:])) for v in args[0]]
    return im.emit(Concat(dim), *parts)


def _slice_scatter(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    """A range of a tensor overwritten: what lies before it, the new values, what lies after it."""
    base, src = args[0], args[1]
    dim = (args[2] if len(args) > 2 else 0) % len(base.type.shape)
    size = base.type.shape[dim]
    start = args[3] if len(args) > 3 and args[3] is not None else 0
    stop = args[4] if len(args) > 4 and args[4] is not None else size
    if src.type == base.type:
        return src
    if not isinstance(size, int):
        raise UnsupportedError(f"a slice of the token dimension is overwritten{im.place()}")
    stop = min(stop, size)
    step = args[5] if len(args) > 5 else 1
    if step != 1:
        taken = range(start, stop, step)
        mixed = [
            im.emit(Slice(dim, taken.index(i), taken.index(i) + 1), src) if i in taken else im.emit(Slice(dim, i, i + 1), base)
            for i in range(size)
        ]
        return im.emit(Concat(dim), *mixed)
    parts = [src]
    if start > 0:
        parts.insert(0, im.emit(Slice(dim, 0, start), base))
    if stop < size:
        parts.append(im.emit(Slice(dim, stop, size), base))
    return im.emit(Concat(dim), *parts) if len(parts) > 1 else src


def _select_scatter(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    """One index of a dimension overwritten."""
    base, src, dim, index = args
    dim %= len(base.type.shape)
    size = base.type.shape[dim]
    if not isinstance(size, int):
        raise UnsupportedError(f"one token is overwritten by its place in the batch{im.place()}")
    index %= size
    shape = base.type.shape
    return _slice_scatter(im, node, [base, im.view(src, (*shape[:dim], 1, *shape[dim + 1 :])), dim, index, index + 1], {})


def _repeat(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    x, counts = args
    x = im.view(x, (1,) * (len(counts) - len(x.type.shape)) + x.type.shape)
    for dim, count in enumerate(counts):
        shape = x.type.shape
        if isinstance(count, Sym) and shape[dim] == 1:
            x = im.emit(Expand(shape_text((*shape[:dim], count, *shape[dim + 1 :]))), x)
        elif count != 1 and isinstance(shape[dim], Sym):
            copies = im.emit(Expand(shape_text((*shape[:dim], count, *shape[dim:]))), im.view(x, (*shape[:dim], 1, *shape[dim:])))
            x = im.view(copies, (*shape[:dim], product((shape[dim], count)), *shape[dim + 1 :]))
        elif count != 1:
            x = im.emit(Concat(dim), *[x] * count)
    return x


def _repeat_interleave(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    x, count = args[0], args[1]
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % len(x.type.shape)
    shape = x.type.shape
    apart = im.view(x, (*shape[: dim + 1], 1, *shape[dim + 1 :]))
    repeated = im.emit(Expand(shape_text((*shape[: dim + 1], count, *shape[dim + 1 :]))), apart)
    return im.view(repeated, _out(im, node).shape)


def _reduce(fn: str) -> Handler:
    def handle(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
        x, out = args[0], _out(im, node)
        rank = len(x.type.shape)
        dims = args[1] if len(args) > 1 and args[1] is not None else list(range(rank))
        dims = [dims] if isinstance(dims, int) else (dims or list(range(rank)))
        keep = bool(args[2]) if len(args) > 2 else bool(kwargs.get("keepdim", False))
        return im.emit(Reduce(fn, tuple(sorted(d % rank for d in dims)), keep, out.dtype), x)

    return handle


def _std(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    """The standard deviation over the last dimension, kept or not; `correction` is taken from the count."""
    x, out = args[0], _out(im, node)
    rank = len(x.type.shape)
    dims = args[1] if len(args) > 1 and args[1] is not None else list(range(rank))
    size = x.type.shape[-1]
    if [d % rank for d in dims] != [rank - 1] or not isinstance(size, int):
        raise UnsupportedError(f"a standard deviation over {dims} is not supported{im.place()}")
    unbiased = args[2] if len(args) > 2 and isinstance(args[2], bool) else True
    correction = kwargs.get("correction", 1 if unbiased else 0)
    kind = out.dtype
    mean = im.emit(Reduce("mean", (rank - 1,), True, kind), x)
    centred = im.emit(Pointwise("sub", kind), x, mean)
    square = im.emit(Reduce("mean", (rank - 1,), True, kind), im.emit(Pointwise("square", kind), centred))
    scaled = im.emit(Pointwise("mul", kind), square, im.scalar(size / (size - correction), kind))
    return im.view(im.emit(Pointwise("sqrt", kind), scaled) if "std" in str(node.target) else scaled, out.shape)


def _vector_norm(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    """(Σ |x|^p)^(1/p) over dimensions."""
    names = ("x", "ord", "dim", "keepdim")
    given = {"ord": 2, "dim": None, "keepdim": False, **dict(zip(names, args, strict=False)), **kwargs}
    x, power, kind = given["x"], float(given["ord"]), _out(im, node).dtype
    rank = len(x.type.shape)
    dims = (
        range(rank)
        if given["dim"] is None
        else [d % rank for d in ([given["dim"]] if isinstance(given["dim"], int) else given["dim"])]
    )
    reduce = lambda fn, v: im.emit(Reduce(fn, tuple(dims), bool(given["keepdim"]), kind), v)  # noqa: E731
    size = im.emit(Pointwise("abs", kind), im.cast(x, kind))
    if power == math.inf:
        return reduce("max", size)
    if power == 1:
        return reduce("sum", size)
    if power == 2:
        return im.emit(Pointwise("sqrt", kind), reduce("sum", im.emit(Pointwise("square", kind), size)))
    raise UnsupportedError(f"a norm of order {power} is not supported{im.place()}")


def _logsumexp(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    """log Σ exp(x), from the largest."""
    x, kind = args[0], _out(im, node).dtype
    rank = len(x.type.shape)
    dims = tuple(d % rank for d in ([args[1]] if isinstance(args[1], int) else args[1]))
    keep = bool(args[2]) if len(args) > 2 else bool(kwargs.get("keepdim", False))
    most = im.emit(Reduce("max", dims, True, kind), x)
    total = im.emit(Reduce("sum", dims, True, kind), im.emit(Pointwise("exp", kind), im.emit(Pointwise("sub", kind), x, most)))
    out = im.emit(Pointwise("add", kind), im.emit(Pointwise("log", kind), total), most)
    return out if keep else im.view(out, _out(im, node).shape)


def _extreme(fn: str) -> Handler:
    """max.dim and min.dim: the values and where they are."""

    def handle(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> tuple[Value, ...]:
        x, dim = args[0], args[1] % len(args[0].type.shape)
        keep = bool(args[2]) if len(args) > 2 else bool(kwargs.get("keepdim", False))
        values = im.emit(Reduce(fn, (dim,), keep, x.type.dtype), x)
        if fn != "max":
            return values, values
        return values, im.emit(Reduce("argmax", (dim,), keep, "i64"), x)

    return handle


def _argmax(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    if len(args) < 2 or args[1] is None:
        raise UnsupportedError(f"argmax over all elements{im.place()}")
    keep = bool(args[2]) if len(args) > 2 else bool(kwargs.get("keepdim", False))
    return im.emit(Reduce("argmax", (args[1] % len(args[0].type.shape),), keep, "i64"), args[0])


def _softmax(log: bool) -> Handler:
    def handle(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
        return im.emit(Softmax(args[1] % len(args[0].type.shape), log, _out(im, node).dtype), args[0])

    return handle


def _topk(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> tuple[Value, ...]:
    x, k = args[0], args[1]
    dim = args[2] if len(args) > 2 else kwargs.get("dim", -1)
    largest = args[3] if len(args) > 3 else kwargs.get("largest", True)
    if dim % len(x.type.shape) != len(x.type.shape) - 1 or not largest:
        raise UnsupportedError(f"topk of another than the last dimension, or of the smallest{im.place()}")
    return im.emit_all(Topk(k), x)


def _sort(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> tuple[Value, ...]:
    x = args[0]
    rest = [a for a in args[1:] if not isinstance(a, bool)]
    dim = rest[0] if rest else kwargs.get("dim", -1)
    descending = kwargs.get("descending", next((a for a in args[1:] if isinstance(a, bool)), False))
    size = x.type.shape[-1]
    if dim % len(x.type.shape) != len(x.type.shape) - 1 or not descending or not isinstance(size, int):
        raise UnsupportedError(f"a sort that is not descending over the last dimension{im.place()}")
    return im.emit_all(Topk(size), x)


def _embedding(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    return im.emit(Embedding(), args[0], args[1])


def _index(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    """x[:, …, index]: one index, of one dimension or as a table look-up of the first."""
    x, indices = args
    number = im.uniform(x)
    if number is not None:
        return im.emit(Full(str(_out(im, node)), number))
    places = [i for i, index in enumerate(indices) if index is not None]
    if len(places) != 1 or indices[places[0]].type.dtype == "bool":
        raise UnsupportedError(f"indexing with several indices or a mask{im.place()}")
    (dim,), index = places, indices[places[0]]
    if len(index.type.shape) == 1:
        return im.emit(IndexSelect(dim), x, index)
    if dim == 0 and len(x.type.shape) <= 2:
        table = x if len(x.type.shape) == 2 else im.view(x, (*x.type.shape, 1))
        return im.view(im.emit(Embedding(), table, index), _out(im, node).shape)
    raise UnsupportedError(f"indexing dimension {dim} of {x.type} with {index.type}{im.place()}")


def _index_put(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    """x[mask] = number."""
    x, indices, values = args[:3]
    mask = indices[0] if len(indices) == 1 else None
    one = isinstance(values, Value) and product(values.type.shape) == 1
    if (
        not one
        or not isinstance(mask, Value)
        or mask.type.dtype != "bool"
        or mask.type.shape != x.type.shape[: len(mask.type.shape)]
    ):
        raise UnsupportedError(f"numbers are put at computed places{im.place()}")
    mask = im.view(mask, (*mask.type.shape, *(1 for _ in x.type.shape[len(mask.type.shape) :])))
    return im.emit(Pointwise("where", x.type.dtype), mask, im.view(values, ()), x)


def _index_select(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    return im.emit(IndexSelect(args[1] % len(args[0].type.shape)), args[0], args[2])


def _gather(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    return im.emit(Gather(args[1] % len(args[0].type.shape)), args[0], args[2])


def _scatter(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    x, dim, index, src = args[:4]
    if not isinstance(src, Value):
        src = im.emit(Full(str(TensorType(x.type.dtype, index.type.shape)), float(src)))
    return im.emit(Scatter(dim % len(x.type.shape)), x, index, im.cast(src, x.type.dtype))


def _cumsum(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    return im.emit(Cumsum(args[1] % len(args[0].type.shape)), im.cast(args[0], _out(im, node).dtype))


def _full(number: float | None, place: int = 1) -> Handler:
    def handle(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
        return im.emit(Full(str(_out(im, node)), float(args[place] if number is None else number)))

    return handle


def _arange(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    start, step = 0, 1
    if len(args) >= 2:
        start = args[0]
    if len(args) == 3:
        step = args[2]
    out = _out(im, node)
    return im.emit(Iota(str(out), start, step))


def _linear(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    bias = args[2] if len(args) > 2 else None
    return im.emit(Linear(bias=bias is not None), args[0], args[1], *([bias] if bias is not None else []))


def _addmm(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    bias, x, weight = args
    if not weight.is_param or kwargs:
        raise UnsupportedError(f"addmm of two computed matrices{im.place()}")
    return im.emit(Linear(bias=True), x, im.emit(Permute((1, 0)), weight), bias)


def _matmul(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    a, b = args
    if len(b.type.shape) == 2 and b.type.is_static and len(a.type.shape) >= 2:
        return im.emit(Linear(), a, im.emit(Permute((1, 0)), b))
    if len(a.type.shape) < 2 or len(b.type.shape) < 2:
        raise UnsupportedError(f"a product of {a.type} and {b.type}{im.place()}")
    return im.emit(Matmul(), a, b)


def _baddbmm(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    """beta·added + alpha·(a × b)."""
    added, a, b = args[:3]
    kind = _out(im, node).dtype
    out = im.emit(Matmul(), a, b)
    for factor, target in ((kwargs.get("alpha", 1), "out"), (kwargs.get("beta", 1), "added")):
        if factor != 1:
            scaled = im.emit(Pointwise("mul", kind), out if target == "out" else added, im.scalar(float(factor), kind))
            out, added = (scaled, added) if target == "out" else (out, scaled)
    return im.emit(Pointwise("add", kind), out, added)


def _pad(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value | Padded:
    """Zeros around the tokens (for a causal convolution, or a shift by one), or around static dimensions."""
    x, pads = args[0], args[1]
    mode, number = args[2:] if len(args) == 4 else ("constant", args[2] if len(args) == 3 else kwargs.get("value", 0))
    if mode != "constant":
        raise UnsupportedError(f"padding by {mode}{im.place()}")
    rank = len(x.type.shape)
    around = [(rank - 1 - i, pads[2 * i], pads[2 * i + 1]) for i in range(len(pads) // 2) if pads[2 * i] or pads[2 * i + 1]]
    moved = [p for p in around if isinstance(x.type.shape[p[0]], Sym)]
    if not moved:
        for dim, left, right in around:
            fill = [
                im.emit(Full(str(x.type.with_shape((*x.type.shape[:dim], n, *x.type.shape[dim + 1 :]))), float(number or 0)))
                for n in (left, right)
                if n > 0
            ]
            size = x.type.shape[dim]
            assert isinstance(size, int)
            if left < 0 or right < 0:
                x = im.emit(Slice(dim, max(0, -left), size - max(0, -right)), x)
            parts = [*fill[: left > 0], x, *fill[left > 0 :]]
            x = im.emit(Concat(dim), *parts) if len(parts) > 1 else x
        return x  # type: ignore[no-any-return]
    ((dim, left, right),) = moved if len(around) == 1 else ((0, 0, 0),)
    if len(around) != 1 or number not in (0, None) or left < 0 or (right and left + right):
        raise UnsupportedError(f"the tokens of a batch are padded by {pads}{im.place()}")
    if not right:
        return Padded(x, dim, left, 0)
    if len(x.type.shape) != 3 or dim != 1:  # left = -right: every token sees the one `left` places before it
        raise UnsupportedError(f"the tokens of a batch are shifted along dimension {dim} of {x.type}{im.place()}")
    channels = x.type.shape[2]
    taps = [im.emit(Full(str(TensorType(x.type.dtype, (channels, 1))), float(i == 0))) for i in range(left + 1)]
    return im.emit(CausalConv(), x, im.emit(Concat(1), *taps))


def _conv1d(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value | Padded:
    """A causal convolution, one filter a channel: K − 1 zeros before the tokens, and what comes after them cut off."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = dict(zip(names, args, strict=False)) | kwargs
    x, weight = given["input"], given["weight"]
    left, right = (x.left, x.right) if isinstance(x, Padded) else (0, 0)
    x = x.value if isinstance(x, Padded) else x
    one = lambda key, default: (given.get(key, [default]) or [default])[0]  # noqa: E731
    channels, depth, taps = weight.type.shape
    padding = one("padding", 0)
    fill = args[0].fill if isinstance(args[0], Padded) else None
    causal = (
        isinstance(x.type.shape[-1], Sym) and left + padding >= taps - 1 and (not padding or (left == 0 and padding == taps - 1))
    )
    whole = left + padding == taps - 1
    single = depth == 1 and channels == x.type.shape[1] == given.get("groups", 1)
    if causal and not right and one("stride", 1) == 1 and one("dilation", 1) == 1 and not (single and whole and fill is None):
        return _grouped_conv(im, given, x, left, padding, fill)
    causal = causal and single
    if not causal or right or left + padding != taps - 1 or one("stride", 1) != 1 or one("dilation", 1) != 1:
        raise UnsupportedError(f"a convolution that is not causal with one filter a channel{im.place()}")
    bias = given.get("bias")
    operands = [im.emit(Permute((0, 2, 1)), x), im.view(weight, (channels, taps)), *([bias] if bias is not None else [])]
    out = im.emit(Permute((0, 2, 1)), im.emit(CausalConv(bias is not None), *operands))
    return Padded(out, 2, 0, padding) if padding else out


def _grouped_conv(im: _Importer, given: dict[str, Arg], x: Value, left: int, padding: int, fill: Value | None) -> Value | Padded:
    """A causal convolution of any depth, x [1,C,T]: the taps' tokens beside one another, a product for each group. Before the tokens lies
    `fill`, or nothing; more zeros than the taps need go on to the next convolution, as what this one makes of them."""
    weight, bias, groups = given["weight"], given.get("bias"), given.get("groups", 1)
    channels, depth, taps = weight.type.shape
    kind = x.type.dtype
    tokens = im.emit(Permute((0, 2, 1)), x)
    if fill is not None:
        tokens = im.emit(Pointwise("sub", kind), tokens, fill)
    by_group = (groups, channels // groups, depth * taps)
    flat = im.view(im.emit(Permute((0, 2, 1)), weight), by_group)  # [groups, out, taps·depth]
    seen = [_shifted(im, tokens, taps - 1 - i) if i < taps - 1 else tokens for i in range(taps)]
    apart = [im.view(t, (1, x.type.shape[2], groups, 1, depth)) for t in seen]
    beside = im.view(im.emit(Concat(3), *apart), (1, x.type.shape[2], groups, taps * depth))
    product_ = im.emit(Matmul(), im.emit(Permute((0, 2, 1, 3)), beside), im.emit(Permute((0, 2, 1)), flat))
    out = im.view(im.emit(Permute((0, 2, 1, 3)), product_), (1, x.type.shape[2], channels))
    constant = bias
    if fill is not None:
        steady = im.emit(
            Reduce("sum", (2,), False, kind),
            im.emit(
                Pointwise("mul", kind),
                weight,
                im.view(
                    im.emit(Expand(shape_text((groups, channels // groups, depth))), im.view(fill, (groups, 1, depth))),
                    (channels, depth, 1),
                ),
            ),
        )
        steady = im.emit(Reduce("sum", (1,), False, kind), steady)
        constant = steady if bias is None else im.emit(Pointwise("add", kind), steady, bias)
    if constant is not None:
        out = im.emit(Pointwise("add", kind), out, constant)
    out = im.emit(Permute((0, 2, 1)), out)
    if left > taps - 1:
        before = constant if constant is not None else None
        return Padded(out, 2, left - (taps - 1), 0, before)
    return Padded(out, 2, 0, padding) if padding else out


def _recurrence(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    q, k, v, g, rates, beta = args
    return im.emit(Recurrence(rates is not None, beta is not None), q, k, v, g, *(t for t in (rates, beta) if t is not None))


def _layer_norm(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    x, shape = args[0], args[1]
    if len(shape) != 1:
        raise UnsupportedError(f"layer_norm over {len(shape)} dimensions{im.place()}")
    weight = args[2] if len(args) > 2 else kwargs.get("weight")
    bias = args[3] if len(args) > 3 else kwargs.get("bias")
    eps = args[4] if len(args) > 4 else kwargs.get("eps", 1e-5)
    return im.emit(LayerNorm(eps, weight is not None, bias is not None), x, *[v for v in (weight, bias) if v is not None])


def _rms_norm(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    weight = args[2] if len(args) > 2 else None
    eps = args[3] if len(args) > 3 else None
    if eps is None:
        eps = torch.finfo(node.args[0].meta["val"].dtype).eps  # type: ignore[union-attr]
    return im.emit(RmsNorm(eps, weight is not None), args[0], *([weight] if weight is not None else []))


def _attention(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    q, k, v, _layer, scale, window, chunk, softcap, sinks, causal, selected = args
    if selected is not None:
        best = next((n.op for n in im.nodes if selected in n.outputs), None)
        if not isinstance(best, BestKeys):
            raise UnsupportedError(f"attention to positions that are not the best keys of its own sequence{im.place()}")
        if best.k >= im.captured.context:
            selected = None  # all of them, always
    q, k, v = (im.emit(Permute((0, 2, 1, 3)), t) for t in (q, k, v))
    cache = len(im.caches)
    im.caches[cache, ""] = cache
    op = Attention(
        cache,
        float(scale),
        int(window or 0),
        int(chunk or 0),
        float(softcap or 0.0),
        sinks is not None,
        bool(causal),
        selected=selected is not None,
    )
    return im.emit(op, q, k, v, *(t for t in (sinks, selected) if t is not None))


def _experts(im: _Importer, node: torch.fx.Node, args: list[Arg], kwargs: dict[str, Arg]) -> Value:
    hidden, index, weight, w_in, b_in, w_out, b_out, gate, transposed = args
    if transposed:
        w_in, w_out = im.emit(Permute((0, 2, 1)), w_in), im.emit(Permute((0, 2, 1)), w_out)
    layout = gate.rpartition(":")[2]
    attributes = identify_gate(im.captured.gates[gate], layout, im.place())
    biases = [b for b in (b_in, b_out) if b is not None]
    ordered = [hidden, im.cast(index, "i64"), weight, w_in, *biases[:1], w_out, *biases[1:]]
    shape = hidden.type.shape
    rows = product(shape[:-1])
    ordered[0] = im.view(hidden, (rows, shape[-1]))
    return im.view(im.emit(Experts(gate=layout, bias=bool(biases), **attributes), *ordered), shape)


def identify_gate(fn: Any, layout: str, place: str) -> dict[str, Any]:
    """Find the activation of an experts module by running its gate function on numbers and comparing (in float64)."""
    from .ir.ops.pointwise import ACTIVATIONS

    generator = torch.Generator().manual_seed(0)
    h = torch.randn(64, 32, generator=generator, dtype=torch.float64) * 6
    got = fn(h)
    candidates: list[dict[str, Any]] = [{"act": a} for a in ACTIVATIONS]
    facts = {k: float(v) for k, v in vars(getattr(fn, "__self__", None) or object).items() if isinstance(v, int | float)}
    limits = [7.0, *(v for k, v in facts.items() if "limit" in k)]
    alphas = [1.702, *(v for k, v in facts.items() if "alpha" in k)]
    if layout:
        candidates += [{"act": "sigmoid", "limit": a, "alpha": b} for a in limits for b in alphas]
        candidates += [{"act": c, "limit": a} for a in limits for c in ACTIVATIONS]
    for attributes in candidates:
        expected = Experts(gate=layout, **attributes).activate(h)
        if expected.shape == got.shape and torch.allclose(expected, got, rtol=1e-9, atol=1e-9):
            return attributes
    raise UnsupportedError(f"the gate of the experts is not one that llmc knows{place}")


IGNORED = {
    "aten._assert_tensor_metadata.default", "aten._assert_scalar.default", "aten.sym_constrain_range_for_size.default",
    "aten.sym_constrain_range.default", "aten._assert_async.msg",
}  # fmt: skip

HANDLERS: dict[str, Handler] = {
    **{f"aten.{n}": _unary(n) for n in ("neg", "exp", "log", "sqrt", "rsqrt", "reciprocal", "abs", "sin", "cos", "tanh", "sigmoid", "relu", "erf", "floor", "ceil", "round", "sign", "expm1", "log1p", "silu", "square")},
    "aten.log_sigmoid": _log_sigmoid, "aten.logsigmoid": _log_sigmoid,
    "aten.logical_not": _unary("not"), "aten.bitwise_not": _unary("not"),
    "aten.add": _binary("add"), "aten.sub": _binary("sub"), "aten.mul": _mul, "aten.multiply": _binary("mul"), "aten.rsub": _binary("sub", swap=True),
    "aten.div": _div, "aten.true_divide": _div, "aten.floor_divide": _binary("floor_div"), "aten.remainder": _binary("mod"),
    "aten.maximum": _binary("max"), "aten.minimum": _binary("min"), "aten.pow": _pow,
    **{f"aten.{n}": _binary(n) for n in ("eq", "ne", "lt", "le", "gt", "ge")},
    "aten.logical_and": _binary("and"), "aten.logical_or": _binary("or"), "aten.bitwise_and": _binary("and"), "aten.bitwise_or": _binary("or"),
    "aten.__and__": _binary("and"), "aten.__or__": _binary("or"),
    "aten.clip": _clamp, "aten.clamp": _clamp, "aten.clamp_min": lambda im, n, a, k: _clamp(im, n, [a[0], a[1]], {}), "aten.clamp_max": lambda im, n, a, k: _clamp(im, n, [a[0], None, a[1]], {}),
    "aten.where": _where, "aten.masked_fill": _masked_fill, "aten.gelu": _gelu, "aten.softplus": _softplus,
    "aten._to_copy": _cast, "aten.to": _cast, "aten.type_as": _cast,
    "aten.clone": _same, "aten.contiguous": _same, "aten.detach": _same, "aten.alias": _same, "aten.dropout": _same, "aten.lift_fresh_copy": _same, "aten.lift_fresh": _same,
    "aten.copy": lambda im, n, a, k: im.cast(_expand(im, n, [a[1]], {}), _out(im, n).dtype),
    **{f"aten.{n}": _reshape for n in ("view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "flatten", "unflatten")},
    "aten.transpose": _permute(_swap), "aten.permute": _permute(lambda rank, args: list(args[1])), "aten.t": _permute(lambda rank, args: [1, 0][:rank] if rank == 2 else [0]),
    "aten.numpy_T": _permute(lambda rank, args: list(range(rank))[::-1]),
    "aten.expand": _expand, "aten.slice": _slice, "aten.select": _select, "aten.split": _split, "aten.split_with_sizes": _split, "aten.chunk": _chunk, "aten.unbind": _unbind,
    "aten.cat": _cat, "aten.concat": _cat, "aten.concatenate": _cat, "aten.stack": _stack, "aten.repeat": _repeat, "aten.repeat_interleave": _repeat_interleave, "aten.slice_scatter": _slice_scatter, "aten.select_scatter": _select_scatter,
    "aten.sum": _reduce("sum"), "aten.mean": _reduce("mean"), "aten.amax": _reduce("max"), "aten.amin": _reduce("min"), "aten.any": _reduce("any"), "aten.all": _reduce("all"), "aten.prod": _reduce("prod"),
    "aten.max.dim": _extreme("max"), "aten.min.dim": _extreme("min"), "aten.max.other": _binary("max"), "aten.min.other": _binary("min"), "aten.argmax": _argmax,
    "aten.softmax": _softmax(False), "aten._softmax": _softmax(False), "aten.log_softmax": _softmax(True), "aten._log_softmax": _softmax(True),
    "aten.topk": _topk, "aten.sort": _sort, "aten.embedding": _embedding, "aten.index": _index, "aten.index_select": _index_select, "aten.index_put": _index_put,
    "aten.gather": _gather, "aten.scatter": _scatter, "aten.cumsum": _cumsum,
    "aten.zeros": _full(0.0), "aten.zeros_like": _full(0.0), "aten.ones": _full(1.0), "aten.ones_like": _full(1.0), "aten.full": _full(None), "aten.full_like": _full(None),
    "aten.new_zeros": _full(0.0), "aten.new_ones": _full(1.0), "aten.new_full": _full(None, 2), "aten.scalar_tensor": _full(None, 0), "aten.empty": _full(0.0), "aten.empty_like": _full(0.0), "aten.new_empty": _full(0.0),
    "aten.empty_permuted": _full(0.0), "aten.arange": _arange,
    "aten.linear": _linear, "aten.addmm": _addmm, "aten.matmul": _matmul, "aten.mm": _matmul, "aten.bmm": _matmul, "aten.baddbmm": _baddbmm,
    "aten.erfinv": _unary("erfinv"), "aten.std": _std, "aten.var": _std, "aten.logsumexp": _logsumexp, "aten.linalg_vector_norm": _vector_norm, "aten.polar": _polar, "aten.view_as_complex": _as_complex, "aten.view_as_real": _as_real, "aten.broadcast_tensors": _broadcast_tensors,
    "aten.layer_norm": _layer_norm, "aten.rms_norm": _rms_norm, "aten._fused_rms_norm": lambda im, n, a, k: (_rms_norm(im, n, a, k),),
    "llmc.attention": _attention, "llmc.best_keys": lambda im, n, a, k: im.emit(BestKeys(a[1]), a[0]), "llmc.experts": _experts, "llmc.recurrence": _recurrence,
    "aten.conv1d": _conv1d, "aten.constant_pad_nd": _pad, "aten.pad": _pad,
}  # fmt: skip
OF_COMPLEX = (_mul, _as_real)
OF_PADDED = (_slice, _conv1d)
OF_CUT = (_cat,)
