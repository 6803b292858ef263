"""Packing an artifact's weights: each spec's static values are evaluated, quantized and packed, one at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..compiler.ir.graph import Graph, Value, roots
from ..compiler.ir.reference import TORCH_DTYPE, Context, ParamSource, evaluate
from ..compiler.ir.types import product
from ..errors import LlmcError
from ..quant.algorithms.rtn import Codes, quantize
from ..quant.calibrate import Calibrated
from ..quant.formats.bound import BoundStored
from ..quant.levels import levels_of
from ..quant.scheme import Scheme
from .lowering import WeightSpec
from .packing import Kind, interleave_gate, kind_of, pack_codes, pack_counts, pack_floats, pack_groups, pack_vector, tile_bytes

SCALE_TYPES = {"f16": torch.float16, "f32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


class WeightPacker:
    """Evaluates and packs; keeps the last quantized weight, because its codes, scales and zeros follow each other."""

    def __init__(
        self, graph: Graph, params: ParamSource, stored: BoundStored | None = None, chosen: Calibrated | None = None
    ) -> None:
        self._stored, self._chosen = stored, chosen
        self._used: set[str] = set()
        self._graph = graph
        self._types = {p.name[1:]: p.type for p in graph.params}
        self._params = params
        self._last: tuple[tuple[object, ...], list[Codes]] | None = None

    def parameter(self, name: str) -> torch.Tensor:
        """A parameter in the dtype that the graph gives it."""
        tensor = self._params(name)
        return tensor.to(TORCH_DTYPE[self._types[name].dtype]) if tensor.is_floating_point() else tensor

    def value(self, value: Value, wide: bool = False) -> torch.Tensor:
        """A static value, as the graph computes it, or from the checkpoint's own numbers in float32."""
        context = Context(
            {}, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), wide=torch.float32 if wide else None
        )
        return evaluate(self._graph, [value], {}, self._params if wide else self.parameter, context)[0]

    def pack(self, spec: WeightSpec) -> memoryview:
        """The bytes of one tensor of the artifact."""
        kind, _, detail = spec.pack.partition(":")
        if kind in ("vector", "bias"):
            tensor = self.value(spec.values[0])
            parts = [_gate(t, spec.gated) for t in (tensor if tensor.ndim == 2 and kind == "bias" else [tensor])]
            packed = torch.cat([pack_vector(p, 32 if kind == "bias" else 16) for p in parts])
        elif kind == "transposed":
            packed = pack_vector(self.value(spec.values[0]).T.flatten())
        elif kind == "integers":
            packed = self.value(spec.values[0]).to(torch.int64).contiguous().view(torch.uint8).flatten()
        elif kind == "input_scale":
            packed = pack_vector(self._input_scale(spec.values[0]))
        elif kind == "floats":
            packed = _joined([pack_floats(m, detail) for m in self._matrices(spec)])
        else:
            assert spec.scheme is not None
            packed = _joined([_pack_part(kind, codes, spec.scheme) for codes in self._codes(spec, spec.scheme)])
        return memoryview(packed.contiguous().numpy()).cast("B")

    def _matrices(self, spec: WeightSpec) -> Iterator[torch.Tensor]:
        value = spec.values[0]
        weight = self._chosen_values(value) if self._covered(value) else self.value(value, wide=spec.pack == "floats:f32")
        for matrix in weight if weight.ndim == 3 else [weight]:
            yield _gate(matrix, spec.gated)

    def _codes(self, spec: WeightSpec, scheme: Scheme) -> list[Codes]:
        key = (spec.values, scheme, spec.gated)
        if self._last is None or self._last[0] != key:
            kept = scheme.stored or self._covered(spec.values[0])
            made = self._kept(spec, scheme) if kept else [quantize(m, scheme) for m in self._matrices(spec)]
            self._last = (key, made)
        return self._last[1]

    def _kept(self, spec: WeightSpec, scheme: Scheme) -> list[Codes]:
        """Codes as the checkpoint has them: they and their scales, one a weight, go where the graph moves the weight."""
        value = spec.values[0]
        codes = self._moved(value, "codes")
        parts = ["scales", *(["offsets"] if scheme.offset else ["zeros"] if scheme.asymmetric else [])]
        found = {name: self._moved(value, name) for name in parts}
        order = None
        if scheme.order:
            groups = self._moved(value, "groups")
            order = torch.argsort(groups[0], stable=True)
        out = []
        for e in range(codes.shape[0] if codes.ndim == 3 else 1):
            pick = lambda t: _gate(t[e] if t.ndim == 3 else t, spec.gated)  # noqa: E731
            grouped = {name: _one_a_group(pick(t), scheme, order, value.name) for name, t in found.items()}
            mine = pick(codes).to(torch.uint8)
            out.append(
                Codes(
                    mine if order is None else mine[:, order].contiguous(),
                    grouped["scales"],
                    grouped.get("zeros"),
                    order,
                    grouped.get("offsets"),
                )
            )
        return out

    def _covered(self, value: Value) -> list[str]:
        """The values with chosen codes that this one is made of; empty when it is made of anything else."""
        if self._chosen is None:
            return []
        producers, stack, found = self._graph.producers(), [value.name], []
        while stack:
            name = stack.pop()
            if name in self._chosen.codes:
                found.append(name)
            elif name in producers:
                stack.extend(v.name for v in producers[name].inputs)
            else:
                return []
        return found

    def _chosen_values(self, value: Value) -> torch.Tensor:
        """What the chosen codes of a value stand for, where it is not packed as codes: groups may lie any way."""
        assert self._chosen is not None
        scheme = self._chosen.schemes[self._covered(value)[0]]
        codes, scales = self._moved(value, "codes"), self._moved(value, "scales")
        if not scheme.is_integer:
            return levels_of(scheme.kind)[codes.long()] * scales
        zeros = self._moved(value, "zeros") if scheme.asymmetric else float(1 << (scheme.bits - 1))
        return (codes.float() - zeros) * scales

    def finish(self) -> None:
        """Raise LlmcError when codes that an algorithm chose were left aside."""
        unused = set(self._chosen.codes) - self._used if self._chosen is not None else set()
        if unused:
            raise LlmcError(f"the codes chosen for {sorted(unused)[0]} were not used", "this is a bug in llmc: please report it")

    def _moved(self, value: Value, view: str) -> torch.Tensor:
        context = Context({}, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), wide=torch.float64)
        chosen, names = self._chosen, self._covered(value)
        self._used.update(names)
        bindings = {name: chosen.view(name, view).double() for name in names} if chosen is not None else {}

        def stored(name: str) -> torch.Tensor:
            assert self._stored is not None
            return self._stored.view(name, view).double()

        moved = evaluate(self._graph, [value], bindings, stored, context)[0]
        return moved if view in ("codes", "groups") else moved.float()

    def _input_scale(self, value: Value) -> torch.Tensor:
        assert self._stored is not None
        found = {self._stored.input_scale(name) for name in roots(self._graph, value)}
        assert len(found) == 1, value.name
        return torch.tensor([found.pop()])


def packed_bytes(spec: WeightSpec) -> int:
    """Bytes of one tensor of the artifact, from its shape alone."""
    kind, _, detail = spec.pack.partition(":")
    shape = tuple(d for d in spec.values[0].type.shape if isinstance(d, int))
    count = product(shape)
    assert isinstance(count, int)
    if kind in ("vector", "transposed", "bias", "input_scale"):
        multiple, parts = (32, shape[0] if len(shape) == 2 else 1) if kind == "bias" else (16, 1)
        each = 1 if kind == "input_scale" else count // parts
        each = 2 * _up(each // 2, 16) if spec.gated else each
        return 4 * parts * _up(each, multiple)
    if kind == "integers":
        return 8 * count
    experts, (n, k) = (shape[0] if len(shape) == 3 else 1), shape[-2:]
    rows = _up(2 * _up(n // 2, 16) if spec.gated else n, 32)
    if kind == "floats":
        return experts * rows // 16 * (_up(k, 32) // 32) * tile_bytes(Kind(detail))
    scheme = spec.scheme
    assert scheme is not None
    if kind == "order":
        return 4 * k
    if kind == "codes":
        family = kind_of(scheme)
        chunk = 64 if family.dot else 32
        return experts * rows // 16 * (_up(k, chunk) // 32) * tile_bytes(family)
    groups = -(-k // scheme.group) if scheme.group else 1
    if kind == "zeros" and not scheme.offset:
        return experts * rows * groups
    return experts * rows * (groups * scheme.scale_bytes + (4 if scheme.scale_kind == "int8" else 0))


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Parts one after the other; a single one, which may be most of a gigabyte, is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _gate(rows: torch.Tensor, layout: str) -> torch.Tensor:
    """Rows of a gated weight in the order of the packed tiles; "interleaved" ones are sorted into halves first."""
    if layout == "interleaved":
        rows = torch.cat([rows[0::2], rows[1::2]])
    return interleave_gate(rows) if layout else rows


def _pack_part(kind: str, codes: Codes, scheme: Scheme) -> torch.Tensor:
    if kind == "codes":
        return pack_codes(codes, scheme)
    width = SCALE_TYPES[scheme.scale_kind]
    if kind == "scales":
        return pack_counts(codes.scales) if scheme.scale_kind == "int8" else pack_groups(codes.scales, width)
    if kind == "order":
        assert codes.order is not None
        return codes.order.to(torch.int32).contiguous().view(torch.uint8)
    if scheme.offset:  # what the sum of a group's activations is multiplied by
        assert codes.offsets is not None
        return pack_groups(codes.offsets, width)
    assert codes.zeros is not None
    return pack_groups(codes.zeros, torch.uint8)


def _one_a_group(values: torch.Tensor, scheme: Scheme, order: torch.Tensor | None, name: str) -> torch.Tensor:
    """[N, K], equal within each group, → [N, G]."""
    k = values.shape[1]
    size = scheme.group or k
    values = values if order is None else values[:, order]
    grouped = values[:, ::size].contiguous()
    if not torch.equal(grouped.repeat_interleave(size, 1)[:, :k], values):
        raise LlmcError(f"{name}: its groups do not lie together")
    return grouped
