"""Calibration: a graph run node by node on text, each weight's codes chosen from what reaches it.

Inputs come from products that are already quantized, as they will at run time ("true sequential"). Only values that a later
node reads are kept, so memory is that of one layer's activations for all tokens.
"""

from __future__ import annotations

import contextlib
import ctypes
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode

from ..compiler.ir.graph import Graph, Node, Value
from ..compiler.ir.ops.attention import Attention
from ..compiler.ir.ops.experts import Experts
from ..compiler.ir.ops.linear import Linear
from ..compiler.ir.ops.pointwise import Pointwise
from ..compiler.ir.reference import TORCH_DTYPE, Context, ParamSource, evaluate
from . import native
from .algorithms.rtn import Codes, stored_scale
from .folding import Folds, Place, Region, regions
from .journal import Journal, State
from .scheme import Scheme

CHUNK = 8192  # tokens whose products are summed at a time
BLOCK = 384  # inputs whose products with the others are one matrix product
FEW_TOKENS = 64
MANY_ROWS = 256  # of a product that is worth packing
COMPENSATION_DAMPING = 0.05
FEW_LIVE = 6  # values that are alive between two layers, at most
SAVE_EVERY = 20.0  # seconds
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


class Rounding(Protocol):
    """Chooses a weight's codes from the second moments of its inputs. `compensates`: its weights may make up for earlier errors."""

    compensates: bool

    def quantize(self, weight: torch.Tensor, moments: torch.Tensor, scheme: Scheme) -> Codes: ...


class Scaling(Protocol):
    """Chooses factors [K] by which the inputs x [..., K] of several weights [N, K] are divided; equal where `tie` [K] is."""

    def factors(
        self,
        x: torch.Tensor,
        moments: torch.Tensor,
        weights: Sequence[torch.Tensor],
        schemes: Sequence[Scheme],
        tie: torch.Tensor,
    ) -> torch.Tensor: ...


@dataclass
class Calibrated:
    """Codes by the name of the weight's value in the graph, one for each expert, with their schemes; `params` are the parameters
    with the factors folded into them; `warnings` are for a person."""

    params: Folds
    codes: dict[str, list[Codes]] = field(default_factory=dict)
    schemes: dict[str, Scheme] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def view(self, name: str, view: str) -> torch.Tensor:
        """codes, scales or zeros of a value with one entry a weight: [N, K], or [E, N, K]."""
        scheme = self.schemes[name]
        parts = []
        for codes in self.codes[name]:
            k = codes.codes.shape[1]
            found = getattr(codes, view)
            parts.append(found if view == "codes" else found.repeat_interleave(scheme.group or k, 1)[:, :k])
        return torch.stack(parts) if len(parts) > 1 else parts[0]


def calibrate(
    graph: Graph,
    params: ParamSource,
    tokens: torch.Tensor,
    plan: dict[str, Scheme],
    rounding: Rounding,
    scaling: Scaling | None = None,
    journal: Journal | None = None,
    progress: Callable[[Iterable[Node], int], Iterable[Node]] = lambda nodes, count: nodes,
    disk: Path | None = None,
) -> Calibrated:
    """Choose codes for the weights of the nodes that `plan` names (by their output), on windows `tokens` [S, T] of text.

    Weights that appear several times are chosen once. A `journal` keeps the state, and gives it back; values that are
    alive lie in files in the folder `disk`, if there is one. Values are float32; products may round their factors to bfloat16.
    """
    return _Run(graph, params, tokens, plan, rounding, scaling, journal, disk).run(progress)


class _Run:
    def __init__(
        self,
        graph: Graph,
        params: ParamSource,
        tokens: torch.Tensor,
        plan: dict[str, Scheme],
        rounding: Rounding,
        scaling: Scaling | None,
        journal: Journal | None,
        disk: Path | None,
    ) -> None:
        self._journal, self._disk = journal, disk
        self._factors: list[tuple[Place, torch.Tensor]] = []
        self._saved: set[str] = set()
        self._graph, self._plan, self._rounding, self._scaling = graph, plan, rounding, scaling
        self._params = Folds(params)
        self._types = {p.name[1:]: TORCH_DTYPE[p.type.dtype] for p in graph.params}
        self._regions = regions(graph, plan) if scaling is not None else {}
        self._schemes = {v.name: plan[n.outputs[0].name] for n in graph.nodes if n.outputs[0].name in plan for v in n.inputs}
        count, length = self._windows = tokens.shape
        positions = torch.arange(length).repeat(count)
        self._context = Context(
            {"T": count * length, "R": 1}, positions, torch.arange(count).repeat_interleave(length), wide=torch.float32
        )
        self._env: dict[str, torch.Tensor] = {
            "%input_ids": tokens.reshape(1, -1), "%position_ids": positions[None], "%logits_rows": torch.zeros(1, dtype=torch.int64),
        }  # fmt: skip
        self._clean = dict(self._env)  # the same values as the original computes them, where the rounding compares with them
        self._static = graph.static_values()
        self._adds = _residual_adds(graph)
        self._drifting = {  # inputs of some product with as many outputs
            n.inputs[0].name for n in graph.find("linear") if n.outputs[0].name in plan and _is_tall(n.inputs[1])
        }
        self._moments: dict[str, torch.Tensor] = {}
        self._drift: dict[str, torch.Tensor] = {}
        self._products = Products(exact=any(s.activations in ("f32", "f16") for s in plan.values()))
        self.found = Calibrated(self._params)

    def run(self, progress: Callable[[Iterable[Node], int], Iterable[Node]]) -> Calibrated:
        moving = [n for n in self._graph.nodes if n.outputs[0].name not in self._static]
        wanted = set(self._plan)  # and the sums that they go into, so that what they are added to is still there
        last = max((i for i, n in enumerate(moving) if wanted & {n.outputs[0].name, *(v.name for v in n.inputs)}), default=-1)
        nodes = moving[: last + 1]
        left: dict[str, int] = {}
        for node in nodes:
            for value in node.inputs:
                left[value.name] = left.get(value.name, 0) + 1
        numbers = {n.inputs[at].name: i for i, n in enumerate(nodes) for at in range(len(n.inputs))}
        start = self._resume(nodes, left)
        last_save = time.monotonic()
        with torch.no_grad(), _freed_memory_kept():
            for place, node in enumerate(progress(nodes, len(nodes))):
                if place < start:
                    continue
                if self._journal is not None and len(self._env) <= FEW_LIVE and time.monotonic() - last_save > SAVE_EVERY:
                    self._save(place, numbers)
                    last_save = time.monotonic()
                outputs = self._node(node)
                clean = outputs
                if self._rounding.compensates:
                    with self._products.everywhere():
                        clean = self._computed(node, [self._value(v, self._clean) for v in node.inputs])
                self._release(node, left)
                for value, tensor, original in zip(node.outputs, outputs, clean, strict=True):
                    if left.get(value.name):
                        self._env[value.name], self._clean[value.name] = self._placed(tensor), self._placed(original)
                if node.outputs[0].name in self._regions:
                    self._rescale(self._regions[node.outputs[0].name])
        return self.found

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same values where they are to be kept: a file that is gone when nothing reads it any more, or memory."""
        if self._disk is None or not tensor.is_floating_point():
            return tensor
        with tempfile.NamedTemporaryFile(dir=self._disk, prefix="values-") as file:
            kept = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype).reshape(tensor.shape)
        return kept.copy_(tensor)

    def _release(self, node: Node, left: dict[str, int]) -> None:
        """Forget the values that no later node reads."""
        for value in node.inputs:
            left[value.name] -= 1
            if left[value.name] == 0:
                for held in (self._env, self._clean, self._moments, self._drift):
                    held.pop(value.name, None)

    def _resume(self, nodes: list[Node], left: dict[str, int]) -> int:
        """Take up the journal's state; the number of nodes that are done."""
        state = self._journal.load() if self._journal is not None else None
        if state is None:
            return 0
        self._env, self._clean = ({n: self._placed(t) for n, t in state.values[kind].items()} for kind in ("env", "clean"))
        self._moments = state.values["moments"]
        for node in nodes[: state.done]:
            self._release(node, left)
        self.found.codes.update(state.codes)
        self._saved.update(state.codes)
        for node in nodes:
            scheme = self._plan.get(node.outputs[0].name)
            if scheme is not None:
                self.found.schemes.update({v.name: scheme for v in node.inputs if v.name in state.codes})
        for param, axis, offset, factors in state.factors:
            self._fold(Place(param, axis, offset), factors)
        return state.done

    def _save(self, done: int, numbers: dict[str, int]) -> None:
        assert self._journal is not None
        fresh = {n: c for n, c in self.found.codes.items() if n not in self._saved}
        factors = [(p.param, p.axis, p.offset, f) for p, f in self._factors]
        values = {"env": self._env, "clean": self._clean, "moments": self._moments}
        self._journal.save(State(done, values, fresh, factors), numbers)
        self._saved.update(fresh)

    def _fold(self, place: Place, factors: torch.Tensor) -> None:
        self._factors.append((place, factors))
        self._params.multiply(place, factors)

    def _rescale(self, region: Region) -> None:
        """Divide a value by factors that its weights are multiplied by, and have what made it absorb them."""
        assert self._scaling is not None
        name, coded = region.x.name, self.found.codes.get(region.coded)
        if coded is not None and self.found.schemes[region.coded].share:
            return  # rows that share a scale cannot absorb a factor each
        x = self._env[name]
        pairs = [(_sampled(self._value(w)), self._schemes[w.name]) for w, _ in region.weights if w.name in self._schemes]
        moments = self._products.second_moments(x)
        factors = self._scaling.factors(x, moments, [w for w, _ in pairs], [s for _, s in pairs], region.rows)
        by_row = torch.ones(int(region.rows.max()) + 1)
        by_row[region.rows] = factors
        if region.exact:  # norm weights are rounded to the model's dtype: take the factors that they then stand for
            place = region.absorbers[0]
            before = self._params(place.param).float() + place.offset
            after = (before / by_row - place.offset).to(self._types[place.param]).float() + place.offset
            by_row = torch.where((after == 0) | (before == 0), torch.ones_like(by_row), before / after)
            factors = by_row[region.rows]
        for place in region.absorbers:
            size = self._params(place.param).shape[place.axis]
            self._fold(place, 1 / torch.nn.functional.pad(by_row, (0, size - by_row.numel()), value=1.0))
        for _, place in region.weights:
            self._fold(place, factors)
        if coded is not None:
            scheme = self.found.schemes[region.coded]
            scale = torch.nn.functional.pad(by_row, (0, coded[0].scales.shape[0] - by_row.numel()), value=1.0)[:, None]
            self._saved.discard(region.coded)
            self.found.codes[region.coded] = [replace(c, scales=stored_scale(c.scales / scale, scheme)) for c in coded]
        self._env[name], self._clean[name] = x / factors, self._clean[name] / factors
        self._moments[name] = moments / torch.outer(factors, factors)

    def _value(self, value: Value, values: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        values = self._env if values is None else values
        if value.name in values:
            return values[value.name]
        return evaluate(self._graph, [value], {}, self._params, self._context)[0]

    def _node(self, node: Node) -> tuple[torch.Tensor, ...]:
        scheme = self._plan.get(node.outputs[0].name)
        if scheme is None:
            return self._computed(node, [self._value(v) for v in node.inputs])
        if isinstance(node.op, Experts):
            return self._experts(node, node.op, scheme)
        assert isinstance(node.op, Linear)
        x, weight = self._value(node.inputs[0]), node.inputs[1]
        rounded = round_activations(x, scheme.activations)
        if weight.name not in self.found.codes:
            if node.inputs[0].name not in self._moments:
                self._moments[node.inputs[0].name] = self._products.second_moments(rounded)
            moments = self._moments[node.inputs[0].name]
            target = self._value(weight).float()
            if self._rounding.compensates:
                target = self._compensated(node, target, rounded, moments)
            codes = self._rounding.quantize(target, moments, scheme)
            self._keep(weight, scheme, [codes])
        dense = self.found.codes[weight.name][0].dequantize(scheme)
        rest = [self._value(v) for v in node.inputs[2:]]
        with self._products.everywhere():
            return node.op.reference(self._context, rounded, dense, *rest)

    def _computed(self, node: Node, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """What a node computes: by its reference, but causal attention, which that writes out, all windows at once."""
        op, (count, length) = node.op, self._windows
        if not isinstance(op, Attention) or replace(op, cache=0, scale=1.0, k_scale=0.0, v_scale=0.0) != Attention(0, 1.0):
            return node.op.reference(self._context, *inputs)
        q, k, v = (t.reshape(count, length, *t.shape[2:]).transpose(1, 2) for t in inputs)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=op.scale, enable_gqa=True)
        return (out.transpose(1, 2).reshape(1, count * length, *out.shape[1::2]),)

    def _compensated(self, node: Node, weight: torch.Tensor, x: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
        """The weight whose products with the inputs as they are now come nearest to the original's products with its own,
        and, where the product is added to a running sum, nearest to the original's sum: earlier errors are made up for."""
        source, clean = node.inputs[0].name, self._value(node.inputs[0], self._clean)
        other = self._adds.get(node.outputs[0].name)
        missed = None if other is None or other.name not in self._env else self._value(other, self._clean) - self._value(other)
        if source in self._drifting:  # [K, K], which other products of this input use too
            if source not in self._drift:
                self._drift[source] = self._products.cross_moments(clean - x, x)
            wanted = weight @ self._drift[source]
            if missed is not None:
                wanted += self._products.cross_moments(missed, x)
        else:
            with self._products.everywhere():
                off = torch.nn.functional.linear(clean - x, weight)
            wanted = self._products.cross_moments(off if missed is None else off.add_(missed), x)
        h = moments.double()
        h.diagonal().add_(COMPENSATION_DAMPING * h.diagonal().mean())
        return weight + torch.cholesky_solve(wanted.T.double(), torch.linalg.cholesky(h)).T.float()

    def _experts(self, node: Node, op: Experts, scheme: Scheme) -> tuple[torch.Tensor, ...]:
        """Each expert from the tokens that go to it; the second product from what the first, quantized, gives."""
        inputs = [self._value(v) for v in node.inputs]
        x, index, _, w_in = inputs[:4]
        at_out = 5 if op.bias else 4
        w_out = inputs[at_out]
        x = round_activations(x, scheme.activations)
        first, second, few = [], [], []
        for e in range(w_in.shape[0]):
            token = (index == e).any(1).nonzero()[:, 0]
            if token.numel() < FEW_TOKENS:
                few.append(e)
            seen = x[token] if token.numel() else x
            first.append(self._rounding.quantize(w_in[e], self._products.second_moments(seen), scheme))
            inner = seen @ first[-1].dequantize(scheme).T + (inputs[4][e] if op.bias else 0)
            inner = round_activations(op.activate(inner), scheme.activations)
            second.append(self._rounding.quantize(w_out[e], self._products.second_moments(inner), scheme))
        if few:
            self.found.warnings.append(
                f"{node.scope}: {len(few)} of {w_in.shape[0]} experts saw fewer than {FEW_TOKENS} tokens of the calibration text"
            )
        self._keep(node.inputs[3], scheme, first)
        self._keep(node.inputs[at_out], scheme, second)
        inputs[0] = x
        inputs[3] = torch.stack([c.dequantize(scheme) for c in first])
        inputs[at_out] = torch.stack([c.dequantize(scheme) for c in second])
        return op.reference(self._context, *inputs)

    def _keep(self, weight: Value, scheme: Scheme, codes: list[Codes]) -> None:
        self.found.codes[weight.name], self.found.schemes[weight.name] = codes, scheme


class Products:
    """Products of activations, in bfloat16 with float32 sums where the machine does that faster and activations are that coarse
    (`exact`: they are not)."""

    def __init__(self, *, exact: bool) -> None:
        self._exact = exact
        self._native = not exact and native.multiplies()

    @contextlib.contextmanager
    def everywhere(self) -> Iterator[None]:
        """All products of an op's reference."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest" if self._exact else "medium")  # medium: what tiles compute
        try:
            with _NativeLinear() if self._native else contextlib.nullcontext():
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    def cross_moments(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """a [..., M], b [..., K] → Σ aᵀ·b [M, K] float32."""
        left, right = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
        if self._native:
            return native.product(left, right, over="rows")
        out = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64)
        with self.everywhere():
            for one, other in zip(left.split(CHUNK), right.split(CHUNK), strict=True):
                out += (one.T @ other).double()
        return out.float()

    def second_moments(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., K] → Σ xᵀ·x [K, K] float32."""
        rows = x.reshape(-1, x.shape[-1])
        k = rows.shape[1]
        if self._native:
            upper = native.product(rows, rows, over="rows", triangle=True)
        else:
            sums = torch.zeros(k, k, dtype=torch.float64)
            with self.everywhere():
                for part in rows.split(CHUNK):
                    for start in range(0, k, BLOCK):  # the rest is the same below the diagonal
                        sums[start : start + BLOCK, start:] += (part[:, start : start + BLOCK].T @ part[:, start:]).double()
            upper = sums.float()
        return upper.triu() + upper.triu(1).T


class _NativeLinear(TorchFunctionMode):
    """Large products with a weight by native.c."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.nn.functional.linear and not kwargs:
            x, weight, bias = (*args, None)[:3]
            if x.dtype == weight.dtype == torch.float32 and x.numel() // x.shape[-1] >= MANY_ROWS:
                y = native.product(x.reshape(-1, x.shape[-1]), weight, over="columns").reshape(*x.shape[:-1], -1)
                return y if bias is None else y.add_(bias)
        return func(*args, **(kwargs or {}))


def _sampled(weight: torch.Tensor) -> torch.Tensor:
    """A weight [N, K] itself; as many rows as one has of several [E, N, K]."""
    return weight if weight.ndim == 2 else weight.flatten(0, 1)[:: weight.shape[0]]


def _is_tall(weight: Value) -> bool:
    n, k = weight.type.shape
    return isinstance(n, int) and isinstance(k, int) and n >= k


def _residual_adds(graph: Graph) -> dict[str, Value]:
    """For each product that is only added to another value of its shape: that value."""
    users = graph.users()
    found = {}
    for node in graph.find("linear"):
        readers = users.get(node.outputs[0].name, [])
        if len(readers) == 1 and isinstance(readers[0].op, Pointwise) and readers[0].op.fn == "add":
            others = [v for v in readers[0].inputs if v.name != node.outputs[0].name]
            if len(others) == 1 and others[0].type.shape == node.output.type.shape:
                found[node.outputs[0].name] = others[0]
    return found


@contextlib.contextmanager
def _freed_memory_kept() -> Iterator[None]:
    """Have glibc keep what is freed: each new layer would have to fault its activations in again, which takes longer than most ops."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # as a size: the largest
    except (OSError, AttributeError):  # another C library
        yield
        return
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_MAX, 1 << 16)
        libc.mallopt(M_TRIM_THRESHOLD, 128 << 10)
        libc.malloc_trim(0)


def round_activations(x: torch.Tensor, activations: str) -> torch.Tensor:
    """x [..., K] rounded as a product with such activations takes it."""
    if activations == "bf16":
        return x.bfloat16().float()
    if activations == "int8":
        most = x.abs().amax(-1, keepdim=True).clamp(min=1e-35)
        return torch.round(x * (127 / most)) * (most / 127)
    if activations == "fp8":
        scale = (x.bfloat16().abs().amax(-1, keepdim=True) / 448).bfloat16().clamp(min=1e-30)
        return ((x.bfloat16() / scale).float().clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale).bfloat16().float()
    return x
