"""Lowering: an IR graph to the calls of a step, the weights that they read, and the buffers that they use."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...compiler.ir.graph import Graph, Node, Value
from ...compiler.ir.ops.causal_conv import CausalConv
from ...compiler.ir.ops.concat import Concat
from ...compiler.ir.ops.embedding import Embedding
from ...compiler.ir.ops.experts import Experts
from ...compiler.ir.ops.fused_attention import FusedAttention
from ...compiler.ir.ops.head_linear import HeadLinear
from ...compiler.ir.ops.indexer import Indexer
from ...compiler.ir.ops.layer_norm import LayerNorm
from ...compiler.ir.ops.linear import Linear
from ...compiler.ir.ops.pointwise import ACTIVATIONS
from ...compiler.ir.ops.recurrence import Recurrence
from ...compiler.ir.ops.rms_norm import RmsNorm
from ...compiler.ir.ops.rope import Rope
from ...compiler.ir.ops.rope_table import RopeTable
from ...compiler.ir.types import Sym, product
from ...errors import UnsupportedError
from ...quant.scheme import SCALES, STATIC, Scheme, parse_scheme
from ...runtime.plan import BLOCK
from ..layout import Buffer, c_dim
from ..lowering import Cache, Lowering, Pointer, WeightSpec, assign_slots
from ..packing import ROUNDING, Kind, kind_of, tile_bytes, why_not_faster
from . import generic

OAI = 100
KV_KINDS = {"f32": "f32", "f16": "f16", "bf16": "bf16", "int16": "i16", "int8": "i8", "fp8": "e4m3"}


@dataclass
class Call:
    """One kernel call: `code` names its pointers @0, @1, …; equal code in several layers becomes one function."""

    label: str
    code: str
    pointers: list[Pointer]
    scope: str
    kernel: str
    scheme: str = ""
    weight_bytes: int = 0
    operations: int = 0
    operations_a_position: int = 0
    experts: tuple[int, ...] = ()  # how many a token takes, of how many; weight_bytes are of all
    reason: str = ""


@dataclass
class Lowered:
    """Everything that rendering needs. `states`: for each layer with a state, the floats of one sequence's."""

    calls: list[Call]
    weights: list[WeightSpec]
    buffers: list[Buffer]
    caches: list[Cache]
    states: list[int]
    logits: Buffer
    functions: dict[str, str]
    kinds: dict[str, set[str]]
    limits: dict[str, int]
    fallbacks: list[dict[str, str]] = field(default_factory=list)

    def slots(self) -> tuple[list[dict[str, int]], dict[int, int]]:
        """The arena's slots, in bytes a token, a row and fixed; and each buffer's."""
        return assign_slots([c.pointers for c in self.calls], self.buffers, self.logits, self.limits.get("list_bytes", 0))


class CpuLowering(Lowering):
    """Lowers for the CPU; `lowered` is the result."""

    loops = generic

    def __init__(self, graph: Graph, kv_kind: str) -> None:
        super().__init__(graph)
        self.kv_kind = KV_KINDS[kv_kind]
        linears = ((node, node.op) for node in graph.nodes if isinstance(node.op, Linear))
        self.bf16_products = any(self.scheme_of(node.inputs[1], op.scheme).activations == "bf16" for node, op in linears)
        self.calls: list[Call] = []
        self.caches: list[Cache] = []
        self.states: list[int] = []
        self.functions: dict[str, str] = {}
        self.kinds: dict[str, set[str]] = {
            "float": {"f32"},
            "dot": set(),
            "table": set(),
            "kv": {self.kv_kind},
            "experts": set(),
            "heads": set(),
            "halves": set(),
            "modes": set(),
            "hadamard": set(),
        }
        self.limits = {
            "k": 64,
            "shared_row_bytes": 64,
            "dk": 32,
            "dv": 32,
            "attention_rows": 32,
            "partial_bytes": 64,
            "turned_bytes": 0,
            "index_bytes": 0,
            "index_list_bytes": 0,
        }

    def run(self) -> Lowered:
        logits = self.walk()
        return Lowered(
            self.calls,
            self.weights,
            self.buffers,
            self.caches,
            self.states,
            logits.buffer,
            self.functions,
            self.kinds,
            self.limits,
            self.fallbacks,
        )

    def call(self, node: Node | None, kernel: str, code: str, pointers: Sequence[Pointer], **facts: object) -> None:
        scope = node.scope if node is not None else ""
        self.calls.append(Call(kernel, code, list(pointers), scope, kernel, **facts))  # type: ignore[arg-type]

    def call_generic(self, node: Node | None, kernel: str, *loop: Any) -> None:
        """Call a generated function; functions with equal bodies are one."""
        body, layouts = loop
        text = f"(step *s, int tid, {generic.Loop((), layouts).params()}) {{\n    const int T = s->b.tokens, R = s->b.rows;\n    (void)T; (void)R; (void)tid;\n    {body}\n}}"
        name = f"{kernel}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self.functions[name] = f"static void {name}{text}"
        pointers = [self._any_pointer(layout.buffer) for layout in layouts]
        self.call(node, kernel, f"{name}(s, tid, {', '.join(f'@{i}' for i in range(len(layouts)))});", pointers)

    def lower_embedding(self, node: Node) -> None:
        assert isinstance(node.op, Embedding)
        table, index = node.inputs
        scheme = parse_scheme(node.op.scheme) if node.op.scheme else Scheme(table.type.dtype)
        kind = Kind("f32") if table.type.dtype not in ("f32", "f16", "bf16") and not scheme.is_coded else kind_of(scheme)
        if table.name not in self.static:
            raise UnsupportedError(f"an embedding in a computed table ({node.scope})")
        where = self.layout(index)
        if not where.is_dense:
            where = self.copy(index, where)
        out = self.new_value(node.output)
        pointers = [*self._packed(table, scheme, kind), self._any_pointer(where.buffer), self.pointer(out.buffer)]
        ids = "(const int32_t *)@2, NULL" if where.buffer.dtype == "i32" else "NULL, (const int64_t *)@2"
        vocabulary, width = table.type.shape
        assert isinstance(vocabulary, int)
        self.kinds["table"].add(kind.name)
        self.kinds["dot" if kind.dot else "float"].add(kind.name)
        if scheme.group == 16:
            self.kinds["halves"].add(kind.name)
        zeros = f"@{len(pointers)}" if scheme.asymmetric else "NULL"
        if scheme.asymmetric:
            pointers.append(self.weight(WeightSpec(f"{table.name}.zeros", "zeros", (table,), scheme)))
        code = f"weights w = {{.codes = @0, .scales = {'@1' if scheme.is_coded else 'NULL'}, .zeros = {zeros}, .n = {vocabulary}, .k = {width}, {_grouping(scheme, vocabulary)}}};\nembed_{kind.name}(s, tid, (int)({c_dim(product(index.type.shape))}), &w, {ids}, {vocabulary}, @3);"
        self.call(node, f"embed_{kind.name}", code, pointers, scheme=str(scheme))

    # --- products -------------------------------------------------------------------------------------------------

    def _packed(self, weight: Value, scheme: Scheme, kind: Kind, gated: str = "") -> list[Pointer]:
        """Pointers to codes and scales (the codes again where a float has no scales)."""
        stem = weight.name
        if not scheme.is_coded:
            codes = self.weight(WeightSpec(stem, f"floats:{kind.name}", (weight,), None, gated))
            return [codes, codes]
        codes = self.weight(WeightSpec(stem, "codes", (weight,), scheme, gated))
        return [codes, self.weight(WeightSpec(f"{stem}.scales", "scales", (weight,), scheme, gated))]

    def lower_linear(self, node: Node) -> None:
        op = node.op
        assert isinstance(op, Linear)
        at = self.linear_operands(node)
        weight = at["weight"]
        scheme = self.scheme_of(weight, op.scheme)
        kind = kind_of(scheme)
        x, rows, ldx, offset = self.rows(at["x"])
        residual = self.rows(at["residual"]) if op.residual else None
        out = self.new_value(node.output)
        n, k = weight.type.shape
        assert isinstance(n, int) and isinstance(k, int)
        gated = "halves" if op.gated else ""
        pointers = [*self._packed(weight, scheme, kind, gated), self._any_pointer(x.buffer), self.pointer(out.buffer)]
        names = {}

        def add(name: str, pointer: Pointer) -> str:
            names[name] = f"@{len(pointers)}"
            pointers.append(pointer)
            return names[name]

        zeros = (
            add("zeros", self.weight(WeightSpec(f"{weight.name}.zeros", "zeros", (weight,), scheme, gated)))
            if scheme.asymmetric
            else "NULL"
        )
        bias = add("bias", self.vector(at["bias"], gated, "bias")) if op.bias else "NULL"
        order = (
            add("order", self.weight(WeightSpec(f"{weight.name}.order", "order", (weight,), scheme, gated)))
            if scheme.order
            else "NULL"
        )
        own = scheme.stored and scheme.activations in ("nvfp4", *STATIC)
        scale = (
            add("global", self.weight(WeightSpec(f"{weight.name}.input_scale", "input_scale", (weight,), scheme)))
            if own
            else "NULL"
        )
        norm_weight = add("norm_weight", self.vector(at["norm_weight"])) if op.norm_weight else "NULL"
        norm_bias = add("norm_bias", self.vector(at["norm_bias"])) if op.norm_bias else "NULL"
        if residual is not None:
            add("residual", self._any_pointer(residual[0].buffer))
        width = n // 2 if op.gated else n
        act = ACTIVATIONS.index(op.act) + 1 if op.act else 0
        code = f"""linear f = {{
    .w = {{.codes = @0, .scales = {"@1" if scheme.is_coded else "NULL"}, .zeros = {zeros}, .bias = {bias}, .n = {n}, .k = {k}, {_grouping(scheme, n, gated)}}},
    .q = {{{ {"rms": 1, "layer": 2}.get(op.norm, 0) }, {float(op.eps).hex()}f, {norm_weight}, {norm_bias}}}, .round = {self._rounding(scheme)}, .act = {act}, .gated = {int(op.gated)}, .order = {order}, .global = {scale}, .hadamard = {op.hadamard}}};
linear_{kind.name}(s, tid, (int)({c_dim(rows)}), &f, (const float *)@2 + {offset}, {ldx}, @3, {width}, {f"(const float *){names['residual']} + {residual[3]}, {residual[2]}" if residual else "NULL, 0"});"""
        self._product(kind, k, scheme)
        if op.hadamard:
            self.kinds["hadamard"].add(str(op.hadamard))
        self.call(
            node,
            f"linear_{kind.name}",
            code,
            pointers,
            scheme=str(scheme),
            weight_bytes=_weight_bytes(n, k, scheme),
            operations=2 * n * k,
            reason=why_not_faster(scheme),
        )

    def _rounding(self, scheme: Scheme) -> int:
        """How activations are rounded before a product of floats, by number."""
        mode = 0 if kind_of(scheme).dot else ROUNDING.get(scheme.activations, 0)
        if mode > 1:
            self.kinds["modes"].add(str(mode))
        return mode

    def _product(self, kind: Kind, k: int, scheme: Scheme) -> None:
        self.kinds["dot" if kind.dot else "float"].add(kind.name)
        if scheme.group == 16:
            self.kinds["halves"].add(kind.name)
        padded = -(-k // 64) * 64
        groups = -(-k // scheme.group) if scheme.group else 1
        self.limits["k"] = max(self.limits["k"], padded + groups)
        self.limits["shared_row_bytes"] = max(self.limits["shared_row_bytes"], _prepared_bytes(k, scheme))

    def lower_experts(self, node: Node) -> None:
        op = node.op
        assert isinstance(op, Experts)
        x, index, weight, w_in, *rest = node.inputs
        b_in = rest[0] if op.bias else None
        w_out, b_out = (rest[1], rest[2]) if op.bias else (rest[0], None)
        scheme = self.scheme_of(w_in, op.scheme)
        rounding, kind = self._rounding(scheme), kind_of(scheme)
        count, n_in, k = w_in.type.shape
        _, hidden, width = w_out.type.shape
        assert (
            isinstance(count, int)
            and isinstance(n_in, int)
            and isinstance(k, int)
            and isinstance(hidden, int)
            and isinstance(width, int)
        )
        layout, rows, ldx, offset = self.rows(x)
        idx, wts = self.dense(index), self.dense(weight)
        choices = index.type.shape[1]
        assert isinstance(choices, int) and isinstance(rows, Sym)
        gated = op.gate
        out = self.new_value(node.output)
        pairs = Sym(rows.name, rows.scale * choices)
        scratch = [self.new_buffer("f32", Sym(rows.name, rows.scale * choices * w)) for w in (width, hidden)]
        lists = self.new_buffer("i32", pairs)
        pointers = [
            *self._packed(w_in, scheme, kind, gated),
            *self._packed(w_out, scheme, kind),
            self._any_pointer(layout.buffer),
            self.pointer(idx.buffer),
            self.pointer(wts.buffer),
            self.pointer(scratch[0]),
            self.pointer(scratch[1]),
            self.pointer(lists),
            self.pointer(out.buffer),
        ]

        def add(pointer: Pointer) -> str:
            pointers.append(pointer)
            return f"@{len(pointers) - 1}"

        bias_in = add(self.vector(b_in, gated, "bias")) if b_in is not None else "NULL"
        bias_out = add(self.vector(b_out, "", "bias")) if b_out is not None else "NULL"
        zeros_in = (
            add(self.weight(WeightSpec(f"{w_in.name}.zeros", "zeros", (w_in,), scheme, gated))) if scheme.asymmetric else "NULL"
        )
        zeros_out = (
            add(self.weight(WeightSpec(f"{w_out.name}.zeros", "zeros", (w_out,), scheme))) if scheme.asymmetric else "NULL"
        )
        act = OAI if op.alpha else ACTIVATIONS.index(op.act) + 1
        strides = ", ".join(
            f".{name}_codes = {_codes_bytes(a, b, kind, g)}, .{name}_scales = {_scale_bytes(a, b, scheme, g)}, .{name}_zeros = {_zero_bytes(a, b, scheme, g)}"
            for name, a, b, g in (("in", n_in, k, gated), ("out", hidden, width, ""))
        )
        has = "@{}".format if scheme.is_coded else lambda _: "NULL"
        code = f"""experts f = {{
    .in = {{.codes = @0, .scales = {has(1)}, .zeros = {zeros_in}, .bias = {bias_in}, .n = {n_in}, .k = {k}, {_grouping(scheme, n_in, gated)}}},
    .out = {{.codes = @2, .scales = {has(3)}, .zeros = {zeros_out}, .bias = {bias_out}, .n = {hidden}, .k = {width}, {_grouping(scheme, hidden)}}},
    {strides},
    .experts = {count}, .choices = {choices}, .act = {act}, .gated = {int(bool(gated))}, .round = {rounding}, .limit = {float(op.limit).hex()}f, .alpha = {float(op.alpha).hex()}f}};
experts_{kind.name}(s, tid, (int)({c_dim(rows)}), &f, (const float *)@4 + {offset}, {ldx}, @5, @6, @7, @8, @9, @10);"""
        self.kinds["experts"].add(kind.name)
        self._product(kind, k, scheme)
        self._product(kind, width, scheme)
        gathered = choices * 2 * -(-k // 64) * 64
        self.limits["shared_row_bytes"] = max(
            self.limits["shared_row_bytes"], _prepared_bytes(k, scheme) + gathered, choices * _prepared_bytes(width, scheme)
        )
        self.limits["list_bytes"] = max(self.limits.get("list_bytes", 0), (count + 2) * 4)
        self.lists = lists
        self.call(
            node,
            f"experts_{kind.name}",
            code,
            pointers,
            scheme=str(scheme),
            weight_bytes=count * (_weight_bytes(n_in, k, scheme) + _weight_bytes(hidden, width, scheme)),
            operations=2 * choices * (n_in * k + hidden * width),
            experts=(choices, count),
            reason=why_not_faster(scheme),
        )

    def lower_head_linear(self, node: Node) -> None:
        assert isinstance(node.op, HeadLinear)
        x, weight = node.inputs
        if weight.name not in self.static:
            raise UnsupportedError(f"a product by head with a computed weight ({node.scope})", node.source)
        scheme = self.scheme_of(weight, node.op.scheme)
        if kind_of(scheme).dot:  # these products take floats
            scheme = scheme.with_activations("bf16")
        kind = kind_of(scheme)
        count, n, k = weight.type.shape
        assert isinstance(count, int) and isinstance(n, int) and isinstance(k, int)
        layout, rows, _, ldx, ldh, offset = self.heads(x)
        out = self.new_value(node.output)
        pointers = [*self._packed(weight, scheme, kind), self._any_pointer(layout.buffer), self.pointer(out.buffer)]
        zeros = "NULL"
        if scheme.asymmetric:
            pointers.append(self.weight(WeightSpec(f"{weight.name}.zeros", "zeros", (weight,), scheme)))
            zeros = "@4"
        code = f"""const weights w = {{.codes = @0, .scales = {"@1" if scheme.is_coded else "NULL"}, .zeros = {zeros}, .n = {n}, .k = {k}, {_grouping(scheme, n)}}};
heads_{kind.name}(s, tid, (int)({c_dim(rows)}), &w, {count}, {_codes_bytes(n, k, kind, "")}, {_scale_bytes(n, k, scheme, "")}, {_zero_bytes(n, k, scheme, "")}, {self._rounding(scheme)}, (const float *)@2 + {offset}, {ldx}, {ldh}, @3);"""
        self.kinds["heads"].add(kind.name)
        self._product(kind, k, scheme)
        groups = -(-k // scheme.group) if scheme.group else 1
        self.limits["shared_row_bytes"] = max(self.limits["shared_row_bytes"], count * (-(-k // 32) * 32 + groups) * 4 + 64)
        self.call(
            node,
            f"heads_{kind.name}",
            code,
            pointers,
            scheme=str(scheme),
            weight_bytes=count * _weight_bytes(n, k, scheme),
            operations=2 * count * n * k,
            reason=why_not_faster(scheme),
        )

    # --- norms, rotation, attention ---------------------------------------------------------------------------------

    def _norm(self, node: Node, kind: int, eps: float, weight: bool, bias: bool) -> None:
        x = node.inputs[0]
        width = x.type.shape[-1]
        if len(x.type.shape) >= 3 and isinstance(x.type.shape[-2], int):
            layout, rows, heads, ldx, ldh, offset = self.heads(x)
        else:
            layout, rows, ldx, offset = self.rows(x)
            heads, ldh = 1, 0
        out = self.new_value(node.output)
        pointers = [self._any_pointer(layout.buffer), self.pointer(out.buffer), *[self.vector(v) for v in node.inputs[1:]]]
        w = "@2" if weight else "NULL"
        b = ("@3" if weight else "@2") if bias else "NULL"
        code = f"norm q = {{{kind}, {float(eps).hex()}f, {w}, {b}}};\nnorm_rows(s, tid, (int)({c_dim(rows)}), {heads}, (const float *)@0 + {offset}, {ldx}, {ldh}, &q, {width}, @1);"
        self.call(node, "norm", code, pointers)

    def lower_rms_norm(self, node: Node) -> None:
        assert isinstance(node.op, RmsNorm)
        self._norm(node, 3 if node.op.l2 else 1, node.op.eps, node.op.weight, False)

    def lower_layer_norm(self, node: Node) -> None:
        assert isinstance(node.op, LayerNorm)
        self._norm(node, 2, node.op.eps, node.op.weight, node.op.bias)

    def lower_rope_table(self, node: Node) -> None:
        assert isinstance(node.op, RopeTable)
        positions, frequencies = node.inputs
        if positions.name != "%position_ids":
            raise UnsupportedError(f"a rotation by something else than positions ({node.scope})")
        out = self.new_value(node.output)
        pairs = frequencies.type.shape[0]
        code = f"rope_table(s, tid, T, @0, @1, {pairs}, {float(node.op.scale).hex()}f, @2);"
        self.call(
            node,
            "rope_table",
            code,
            [self.pointer(self.layout(positions).buffer), self.vector(frequencies), self.pointer(out.buffer)],
        )

    def lower_rope(self, node: Node) -> None:
        assert isinstance(node.op, Rope)
        x, table = node.inputs
        layout, rows, heads, ldx, ldh, offset = self.heads(x)
        out = self.new_value(node.output)
        pairs, width = table.type.shape[-1], x.type.shape[-1]
        code = f"rope_rows(s, tid, (int)({c_dim(rows)}), {heads}, (const float *)@0 + {offset}, {ldx}, {ldh}, {width}, @1, {pairs}, {int(node.op.interleaved)}, {node.op.offset}, @2);"
        self.call(
            node,
            "rope",
            code,
            [self._any_pointer(layout.buffer), self._any_pointer(self.layout(table).buffer), self.pointer(out.buffer)],
        )
        self.report(
            node, "the rotation is a kernel of its own: query and key do not share it in a form that fuses into attention"
        )

    def lower_fused_attention(self, node: Node) -> None:
        op = node.op
        assert isinstance(op, FusedAttention)
        at = {name: node.inputs[i] for name, i in op.operands.items()}
        q, k, v = (self.heads(at[name]) for name in "qkv")
        dk, dv = at["k"].type.shape[3], at["v"].type.shape[3]
        assert isinstance(dk, int) and isinstance(dv, int)
        heads, groups = q[2], k[2]
        out = self.new_value(node.output)
        cache = len(self.caches)
        within = self._begins_with(at["k"], at["v"]) and not op.k_norm and not (op.rope and op.offset < dv)
        self.caches.append(Cache(groups, dk, 0 if within else dv, self.kv_kind, op.reach))
        pointers = [
            Pointer("cache", cache),
            self._any_pointer(q[0].buffer),
            self._any_pointer(k[0].buffer),
            self._any_pointer(v[0].buffer),
            self.pointer(out.buffer),
        ]
        extra = []
        for name in ("table", "q_norm", "k_norm", "sinks", "slopes"):
            if name in at:
                extra.append(f".{name} = @{len(pointers)}")
                pointers.append(self._any_pointer(self.layout(at[name]).buffer) if name == "table" else self.vector(at[name]))
        if "relative" in at:
            near = self.heads(at["relative"])
            extra.append(
                f".relative = (const float *)@{len(pointers)} + {near[5]}, .ldr = {near[3]}, .ldrh = {near[4]}, .extent = {at['relative'].type.shape[3]}"
            )
            pointers.append(self._any_pointer(near[0].buffer))
        if "selected" in at:
            extra.append(f".selected = @{len(pointers)}, .choices = {at['selected'].type.shape[2]}")
            pointers.append(self.pointer(self.dense(at["selected"]).buffer))
        pairs = at["table"].type.shape[-1] if "table" in at else 0
        sides = ", ".join(
            f".{n} = (const float *)@{i} + {s[5]}, .ld{n} = {s[3]}, .ld{n}h = {s[4]}"
            for i, (n, s) in enumerate(zip("qkv", (q, k, v), strict=True), 1)
        )
        code = f"""attention a = {{.cache = @0, {sides}, .out = @4{"".join(", " + e for e in extra)},
    .heads = {heads}, .groups = {groups}, .dk = {dk}, .dv = {dv}, .pairs = {pairs}, .interleaved = {int(op.interleaved)}, .offset = {op.offset}, .window = {op.window}, .chunk = {op.chunk}, .causal = 1, .within = {int(within)}, .dots = {int(self.bf16_products)},
    .scale = {float(op.scale).hex()}f, .softcap = {float(op.softcap).hex()}f, .eps = {float(op.eps).hex()}f, .k_scale = {float(op.k_scale).hex()}f, .v_scale = {float(op.v_scale).hex()}f}};
attend_{self.kv_kind}(s, tid, &a);"""
        if not op.causal:
            raise UnsupportedError(f"attention that is not causal ({node.scope})")
        if self.kv_kind != "i16":  # which is multiplied as integers
            self.kinds["float"].add(self.kv_kind)
        share = heads // groups
        limits = self.limits
        limits["dk"], limits["dv"] = max(limits["dk"], -(-dk // 32) * 32), max(limits["dv"], -(-dv // 16) * 16)
        limits["attention_rows"] = max(limits["attention_rows"], -(-share // 32) * 32)
        limits["turned_bytes"] = max(limits["turned_bytes"], 4 * BLOCK * -(-dv // 16) * 16 if within else 0)
        limits["partial_bytes"] = max(limits["partial_bytes"], heads * (-(-dv // 16) * 16 + 2) * 4)
        self.call(node, f"attend_{self.kv_kind}", code, pointers, operations_a_position=2 * heads * (dk + dv))

    def _begins_with(self, whole: Value, part: Value) -> bool:
        """Whether a value's last dimension begins with another value, whole."""
        made = self.producers.get(whole.name)
        return made is not None and made.op == Concat(len(whole.type.shape) - 1) and made.inputs[0] == part

    def lower_indexer(self, node: Node) -> None:
        op = node.op
        assert isinstance(op, Indexer)
        q, key = (self.heads(v) for v in node.inputs[:2])
        weight = self.rows(node.inputs[2])
        heads, width = node.inputs[0].type.shape[2:]
        assert isinstance(heads, int) and isinstance(width, int)
        out = self.new_value(node.output)
        pointers = [
            Pointer("cache", len(self.caches)),
            self._any_pointer(q[0].buffer),
            self._any_pointer(key[0].buffer),
            self._any_pointer(weight[0].buffer),
            self.pointer(out.buffer),
        ]
        self.caches.append(Cache(1, width, 0, "f32"))
        code = f"""indexer f = {{.cache = @0, .q = (const float *)@1 + {q[5]}, .ldq = {q[3]}, .ldqh = {q[4]}, .key = (const float *)@2 + {key[5]}, .ldk = {key[3]}, .weight = (const float *)@3 + {weight[3]}, .ldw = {weight[2]}, .out = @4,
    .heads = {heads}, .width = {width}, .k = {op.k}, .scale = {float(op.scale).hex()}f}};
index_keys(s, tid, &f);"""
        self.kinds["kv"].add("f32")
        padded, rows = -(-width // 32) * 32, -(-heads // 4) * 4
        self.limits["index_bytes"] = max(self.limits["index_bytes"], 4 * (rows * (padded + 32) + 6 * op.k + 256))
        self.limits["index_list_bytes"] = max(self.limits["index_list_bytes"], 4 * (1 + 2 * op.k))
        self.call(node, "index_keys", code, pointers)

    # --- layers with a state ------------------------------------------------------------------------------------------

    def _state(self, floats: int) -> Pointer:
        self.states.append(floats)
        return Pointer("state", len(self.states) - 1)

    def lower_causal_conv(self, node: Node) -> None:
        op = node.op
        assert isinstance(op, CausalConv)
        x, weight, *bias = node.inputs
        channels, taps = weight.type.shape
        assert isinstance(channels, int) and isinstance(taps, int)
        if not all(v.name in self.static for v in (weight, *bias)):
            raise UnsupportedError(f"a convolution whose filters are computed ({node.scope})", node.source)
        layout, _, ldx, offset = self.rows(x)
        out = self.new_value(node.output)
        by_tap = self.weight(WeightSpec(weight.name, "transposed", (weight,)))
        pointers = [self._state((taps - 1) * channels), self._any_pointer(layout.buffer), by_tap, self.pointer(out.buffer)]
        pointers += [self.vector(b) for b in bias]
        code = f"""convolution f = {{.state = @0, .x = (const float *)@1 + {offset}, .ldx = {ldx}, .w = @2, .bias = {"@4" if bias else "NULL"}, .y = @3, .channels = {channels}, .taps = {taps}}};
convolve(s, tid, &f);"""
        self.call(node, "convolve", code, pointers)

    def lower_recurrence(self, node: Node) -> None:
        op = node.op
        assert isinstance(op, Recurrence)
        q, k, v, g, *rest = node.inputs
        (_, _, groups, keys), (_, _, heads, values) = k.type.shape, v.type.shape
        decays = g.type.shape[3] if len(g.type.shape) == 4 else 1
        assert isinstance(groups, int) and isinstance(keys, int) and isinstance(heads, int) and isinstance(values, int)
        assert isinstance(decays, int)
        channels = values == 1 and groups == 1 and decays == 1 and not op.delta
        columns = -(-heads // 16) * 16 if channels else -(-values // 16) * 16
        slot = keys * columns * (1 if channels else heads)
        out = self.new_value(node.output)
        sides = [self.heads(t) for t in (q, k, v)]
        if channels and sides[2][4] != 1:
            sides[2] = (self.dense(v), sides[2][1], heads, heads, 1, 0)
        pointers = [self._state(slot), self.pointer(out.buffer)]
        fields = []
        for name, side in zip("qkv", sides, strict=True):
            fields.append(f".{name} = (const float *)@{len(pointers)} + {side[5]}, .ld{name} = {side[3]}, .ld{name}h = {side[4]}")
            pointers.append(self._any_pointer(side[0].buffer))
        for name, value in (("g", g), *((("b", rest[-1]),) if op.delta else ())):
            layout = self.dense(value)
            field, width = ("g", decays) if name == "g" else ("beta", 1)
            fields.append(
                f".{field} = @{len(pointers)}, .ld{name} = {heads * width}" + (f", .ldgh = {width}" if name == "g" else "")
            )
            pointers.append(self.pointer(layout.buffer))
        if op.rates:
            fields.append(f".rates = @{len(pointers)}")
            pointers.append(self.vector(rest[0]) if rest[0].name in self.static else self.pointer(self.dense(rest[0]).buffer))
        self.limits["k"] = max(self.limits["k"], keys + 64)
        code = f"""recurrence f = {{.state = @0, .slot = {slot}, .out = @1, {", ".join(fields)},
    .heads = {heads}, .groups = {groups}, .keys = {keys}, .values = {values}, .columns = {columns}, .decays = {decays}, .delta = {int(op.delta)}}};
recur_{"channels" if channels else "heads"}(s, tid, &f);"""
        self.call(node, "recurrence", code, pointers)


def _weight_bytes(n: int, k: int, scheme: Scheme) -> int:
    """Bytes of a packed weight as a product reads it, scales and zero points included."""
    codes = n * k * scheme.bits // 8
    if not scheme.is_coded:
        return codes
    groups = -(-k // scheme.group) if scheme.group else 1
    width = scheme.scale_bytes
    return codes + n * groups * (width + (width if scheme.offset else int(scheme.asymmetric)))


def _grouping(scheme: Scheme, n: int, gate: str = "") -> str:
    """The fields of a C `weights` that say how scales and zero points are stored."""
    kind = SCALES.index(scheme.scale_kind) if scheme.is_coded else 0
    units = 4 * _padded_rows(n, gate) if scheme.is_coded and scheme.scale_kind == "int8" else 0
    return f".group = {scheme.group}, .scale = {kind}, .units = {units}, .offset = {int(scheme.offset)}"


def _padded_rows(n: int, gate: str) -> int:
    return 2 * (-(-(n // 2) // 16) * 16) if gate else -(-n // 32) * 32


def _codes_bytes(n: int, k: int, kind: Kind, gate: str) -> int:
    return _padded_rows(n, gate) // 16 * (-(-k // 64) * 2 if kind.dot else -(-k // 32)) * tile_bytes(kind)


def _prepared_bytes(k: int, scheme: Scheme) -> int:
    """Of a product's activations for one row: floats, the same as bfloat16, and sums of groups; or codes, a scale and sums."""
    return 6 * -(-k // 64) * 64 + 4 * (-(-k // scheme.group) if scheme.group else 1) + 64


def _scale_bytes(n: int, k: int, scheme: Scheme, gate: str) -> int:
    if not scheme.is_coded:
        return 0
    units = 4 if scheme.scale_kind == "int8" else 0
    return _padded_rows(n, gate) * ((-(-k // scheme.group) if scheme.group else 1) * scheme.scale_bytes + units)


def _zero_bytes(n: int, k: int, scheme: Scheme, gate: str) -> int:
    if not scheme.is_coded:
        return 0
    return _padded_rows(n, gate) * (-(-k // scheme.group) if scheme.group else 1) * (scheme.scale_bytes if scheme.offset else 1)


def lower(graph: Graph, kv_kind: str) -> Lowered:
    """Lower a graph for the CPU; raises UnsupportedError naming the module and the model's source line."""
    return CpuLowering(graph, kv_kind).run()
