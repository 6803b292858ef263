"""Lowering of products, experts and embeddings for GPUs: weights as rows on the device, and what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...compiler.ir.graph import Node, Value
from ...compiler.ir.ops.embedding import Embedding
from ...compiler.ir.ops.experts import Experts
from ...compiler.ir.ops.linear import Linear
from ...compiler.ir.types import Dim, Sym, product
from ...errors import UnsupportedError
from ...quant.levels import FOUR_BITS
from ...quant.scheme import Scheme, parse_scheme
from ..hip import build as hip
from ..layout import BYTES, Buffer, Layout
from ..lowering import Pointer, WeightSpec
from ..packing import FIELDS, kind_of
from . import generic
from .plan import TYPES, Kernel, PlanLowering, Rows, Variant, power, up
from .tiles import Tile, float_tiles, nibble_cut, parts_of

ROUNDINGS = {"": "", "f32": "", "f16": "", "bf16": "", "int8": "int8-values", "fp8": "fp8"}
PREFETCHED_LINES = 1
"""Lines of 128 bytes of a weight that a thread asks for before it waits for its input. H200, one row of Llama-3.1-8B's shape: 4.26 ms a
step with none, 4.19 with 1, 4.21 with 2, 4.26 with 4."""
NIBBLE_GROUPS = (16, 32, 64, 128, 256)
APART_ROWS = 64
"""Rows up to which chunks of K are summed apart."""
GEMV_ROWS, GEMV_OUTPUTS = 4, 16
"""Rows that a product of few takes at most, and outputs that a program of it makes."""
GPU_SCALES = {"f32": "*fp32", "f16": "*fp16", "bf16": "*bf16"}


@dataclass(frozen=True)
class Stored:
    """How the kernels read a packed weight."""

    kind: str
    bits: int
    zero: int
    group: int
    groups: int
    span: int
    width: int
    codes: int
    scales: int | None
    zeros: int | None
    table: str = ""
    dtype: str = "u8"
    scale_type: str = "*fp32"
    offset: bool = False
    int8: bool = False

    def constants(self) -> dict[str, Any]:
        return {
            "KIND": self.kind,
            "BITS": self.bits,
            "ZERO": self.zero,
            "GROUP": self.group,
            "GROUPS": self.groups,
            "KW": self.width,
            "SPAN": self.span,
        }


def _scale_words(scheme: Scheme) -> tuple[str, int]:
    """As what a scheme's scales are moved, and their bytes."""
    if scheme.scale_kind == "int8":
        raise UnsupportedError("a GPU has no kernel for scales of 8 bits", "leave :scale-int8 out")
    return ("*i32", 4) if scheme.scale_kind == "f32" else ("*i16", 2)


class ProductLowering(PlanLowering):
    """Adds the products of rows with weights."""

    # --- weights --------------------------------------------------------------------------------------------------

    def _few(
        self, function: str, signature: Sequence[str], rows: Dim, packed: int, chunks: int = 1, **constants: Any
    ) -> list[Variant]:
        """A kernel for few rows whose sums run in another order than those for many, where such are allowed and there is one."""
        if not self.fast or constants["ACT"] not in hip.ACTIVATIONS or constants["LIMIT"] or constants["ALPHA"]:
            return []
        constants |= {"BN": GEMV_OUTPUTS, "BM": GEMV_ROWS}
        kernel = self._hip(function, signature, **constants)
        grid = [["1", packed, GEMV_OUTPUTS], [*generic.lanes_of(rows), GEMV_ROWS], ["1", chunks, 1]]
        return [Variant(GEMV_ROWS, kernel, grid)]

    def _rows(self, spec: WeightSpec, kernel: Kernel | None, grid: tuple[int, int], size: int) -> int:
        """A packed tensor as rows on the device; its number."""
        index = self.weight(spec).index
        key = (index, kernel.name if kernel is not None else "")
        if key not in self._on_device:
            self._on_device[key] = len(self.device)
            self.device.append(Rows(index, kernel, grid, size))
        return self._on_device[key]

    def _stored(self, weight: Value, scheme: Scheme, gated: str = "", *, turned: bool = False, signed: bool = False) -> Stored:
        """Codes, scales and zero points of a weight [N, K] or [E, N, K] as rows. turned: rows of gate and up 8 and 8, not 16 and 16. signed: 8-bit
        codes as numbers, not as what the zero point is taken from."""
        *lead, n, k = (d for d in weight.type.shape if isinstance(d, int))
        count = lead[0] if lead else 1
        rows = count * (2 * up(n // 2, 16) if gated else n)
        padded = count * (up(2 * up(n // 2, 16), 32) if gated else up(n, 32))
        rows = padded if lead else rows
        if not scheme.is_coded:
            kind = scheme.kind if scheme.kind in ("f32", "f16", "bf16") else "f32"
            width, element = up(k, 64), 4 if kind == "f32" else 2
            moved = "*i32" if kind == "f32" else "*i16"
            made = self._kernel(
                "layout",
                "rows_of_floats",
                [moved, moved],
                K=k,
                CHUNKS=up(k, 32) // 32,
                KW=width,
                PAIRED=kind == "bf16",
                GATED=turned,
                BLOCK=256,
            )
            spec = WeightSpec(weight.name, f"floats:{kind}", (weight,), None, gated)
            at = self._rows(spec, made, (rows, -(-width // 256)), rows * width * element)
            return Stored("float", 16, 0, width, 1, 32 if kind == "f32" else 64, width, at, None, None, dtype=kind)
        family = kind_of(scheme)
        group = scheme.group or k
        groups = -(-k // scheme.group) if scheme.group else 1
        bits = 4 if scheme.bits == 4 else 8
        span = min(64, group) if scheme.group else 64
        width = up(k, span * 8 // bits)
        chunk = 64 if family.dot else 32
        form, flip, zero = "bytes", 0, 0
        fields: tuple[int, ...] = (1, 0)
        if family.dot:
            form = "dot4" if scheme.bits == 4 else "quads"
        elif scheme.bits == 4:
            form = "nibbles"
        elif scheme.is_integer and scheme.bits in FIELDS:
            form, fields = "fields", (*FIELDS[scheme.bits], 0)[:2]
        elif family.name == "i8":
            flip = 128
        if scheme.is_integer and not scheme.asymmetric and not signed:
            zero = 1 << (scheme.bits - 1)
        if signed:
            flip = 128 - flip
        kind, table = "int", ""
        if not scheme.is_integer:
            kind = family.name if family.name in ("e4m3", "e5m2") else "level"
            if kind == "level":
                table = family.name
                self.tables[table] = tuple(FOUR_BITS[family.name])
        made = self._kernel(
            "layout", "rows_of_codes", ["*u8", "*u8"], K=k, CHUNKS=up(k, chunk) // chunk, KW=width, FORM=form, B0=fields[0], B1=fields[1], BITS=bits, SPAN=span,
            FILL=zero, FLIP=flip, GATED=turned, BLOCK=256,
        )  # fmt: skip
        size = width * bits // 8
        codes = self._rows(WeightSpec(weight.name, "codes", (weight,), scheme, gated), made, (rows, -(-size // 256)), rows * size)

        def turned_groups(pack: str, kind: str, element: int) -> int:
            turn = self._kernel("layout", "rows_of_groups", [kind, kind], GROUPS=groups, GATED=turned, BLOCK=16)
            spec = WeightSpec(f"{weight.name}.{pack}", pack, (weight,), scheme, gated)
            return self._rows(spec, turn, (rows, -(-groups // 16)), rows * groups * element)

        words = _scale_words(scheme)
        scales = turned_groups("scales", *words)
        zeros = turned_groups("zeros", *(words if scheme.offset else ("*u8", 1))) if scheme.asymmetric else None
        return Stored(
            kind, bits, zero, group, groups, span, width, codes, scales, zeros, table, "u8", GPU_SCALES[scheme.scale_kind], scheme.offset, family.dot,
        )  # fmt: skip

    def _weight_arguments(self, w: Stored) -> tuple[list[Any], list[str]]:
        """codes, scales, zeros, table: arguments and types."""
        items = [f"device:{w.codes}", f"device:{w.scales}" if w.scales is not None else None, f"device:{w.zeros}" if w.zeros is not None else None, f"table:{w.table}" if w.table else None]  # fmt: skip
        zero_type = w.scale_type if w.offset else "*u8"
        return items, [TYPES[w.dtype], w.scale_type, zero_type, "*fp32"]

    # --- products ---------------------------------------------------------------------------------------------------

    def lower_embedding(self, node: Node) -> None:
        op = node.op
        assert isinstance(op, Embedding)
        table, index = node.inputs
        if table.name not in self.static:
            raise UnsupportedError(f"an embedding in a computed table ({node.scope})", node.source)
        w = self._stored(table, parse_scheme(op.scheme) if op.scheme else Scheme(table.type.dtype))
        where = self.layout(index)
        where = where if where.is_dense else self.copy(index, where)
        out = self.new_value(node.output)
        vocabulary, width = table.type.shape
        assert isinstance(width, int)
        items, types = self._weight_arguments(w)
        block = min(1024, power(width))
        kernel = self._kernel(
            "rows",
            "embed",
            [TYPES[where.buffer.dtype], *types, "*fp32"],
            V=vocabulary,
            K=width,
            HAS_ZERO=w.zeros is not None,
            BLOCK=block,
            **w.constants(),
        )
        rows = product(index.type.shape)
        self._launch(node, [where, *items, out], kernel, [[*generic.lanes_of(rows), 1], ["1", width, block]], scheme=op.scheme)

    def _prepared(
        self, node: Node, x: Layout, rows: Dim, ldx: int, offset: int, k: int, rounding: str, *, norm: str = "", eps: float = 0.0,
        weight: Value | None = None, bias: Value | None = None, order: Pointer | None = None, heads: int = 1, ldh: int = 0, out: Layout | None = None,
        dtype: str = "f32",
    ) -> tuple[Buffer, Buffer | None]:  # fmt: skip
        """Rows, normed, reordered and rounded; and the scale of each where they are int8 codes."""
        count = Sym(rows.name, rows.scale * heads) if isinstance(rows, Sym) else rows * heads
        buffer = out.buffer if out is not None else self.new_buffer(dtype, product((count, k)))
        scale = self.new_buffer("f32", count) if dtype in ("i8", "f8") else None
        kernel = self._kernel(
            "norm", "norm", ["*fp32", "*fp32", "*fp32", "*i32", TYPES[dtype], "*fp32"],
            K=k, KPAD=k, HEADS=heads, LDX=ldx, LDH=ldh, NORM=norm, EPS=float(eps), WEIGHT=weight is not None, BIAS=bias is not None, ORDER=order is not None,
            ROUND=rounding, BLOCK=min(16384, power(k)), FRAGMENTS=0, warps=16 if k > 8192 else 8 if k > 2048 else 4,
        )  # fmt: skip
        vectors = [self.vector(v) if v is not None else None for v in (weight, bias)]
        self._launch(node, [(x, offset), *vectors, order, buffer, scale], kernel, [[*generic.lanes_of(count), 1]])
        return buffer, scale

    def _transformed(self, node: Node, op: Linear, x: Layout, rows: Dim, ldx: int, offset: int, k: int) -> Layout:
        """Rows, each block of them times a Hadamard matrix."""
        if op.norm:
            raise UnsupportedError(f"a GPU has no kernel for a norm and a transform in one product ({node.scope})")
        block = op.hadamard
        y = Layout.dense(self.new_buffer("f32", product((rows, k))), (rows, k))
        kernel = self._kernel(
            "rows",
            "hadamard",
            ["*fp32", "*fp32"],
            warps=1,
            LDX=ldx,
            K=k,
            BLOCK=block,
            STEPS=block.bit_length() - 1,
            UNIT=block**-0.5,
        )
        self._launch(node, [(x, offset), y], kernel, [[*generic.lanes_of(rows), 1], ["1", k, block]])
        return y

    def _reads(self, op: Linear, weight: Value) -> tuple[Scheme, str, str]:
        """How a product rounds its rows: (scheme, rounding, the type in which its kernel reads them)."""
        scheme = self.scheme_of(weight, op.scheme)
        if scheme.activations not in ROUNDINGS:
            raise UnsupportedError(
                f"a GPU has no kernel for activations in {scheme.activations} ({weight.name})", "give --activations bf16"
            )
        if not scheme.is_coded:
            return scheme, ROUNDINGS[scheme.activations], scheme.kind if scheme.kind in ("f16", "bf16") else "f32"
        family = kind_of(scheme)
        if family.dot:
            return scheme, "int8", "i8"
        if family.name == "e4m3" and not scheme.group and scheme.activations == "fp8" and self.target.multiplies_fp8:
            return scheme, "fp8-codes", "f8"
        level = not scheme.is_integer and family.name not in ("e4m3", "e5m2")
        return scheme, ROUNDINGS[scheme.activations], "f32" if level and scheme.activations in ("", "f32", "f16") else "bf16"

    def _output(self, value: Value) -> Layout:
        """A new value; in 16 bits where all that reads it are products that would round it so."""
        kinds = {self._read_by(value, user) for user in self.users.get(value.name, [])}
        if len(kinds) != 1 or kinds == {""} or value in self.graph.outputs:
            return self.new_value(value)
        layout = Layout.dense(self.new_buffer(kinds.pop(), product(value.type.shape)), value.type.shape)
        self.layouts[value.name] = layout
        return layout

    def _read_by(self, value: Value, user: Node) -> str:
        """The 16-bit type in which a node reads a value, "" for another or none."""
        if user.op.name == "view":
            kinds = {self._read_by(user.output, after) for after in self.users.get(user.output.name, [])}
            return kinds.pop() if len(kinds) == 1 and user.output not in self.graph.outputs else ""
        if not isinstance(user.op, Linear) or user.op.norm or user.op.hadamard:
            return ""
        at = {name: user.inputs[i] for name, i in user.op.operands.items()}
        if any(name != "x" and other.name == value.name for name, other in at.items()):
            return ""
        scheme, rounding, kind = self._reads(user.op, at["weight"])
        return "" if rounding or scheme.order or kind not in ("bf16", "f16") else kind

    def lower_linear(self, node: Node) -> None:
        op = node.op
        assert isinstance(op, Linear)
        at = self.linear_operands(node)
        weight = at["weight"]
        scheme, rounding, read = self._reads(op, weight)
        gated = "halves" if op.gated else ""
        n, k = weight.type.shape
        assert isinstance(n, int) and isinstance(k, int)
        layout, rows, ldx, offset = self.rows(at["x"])
        residual = self.rows(at["residual"]) if op.residual else None
        order = self.weight(WeightSpec(f"{weight.name}.order", "order", (weight,), scheme, gated)) if scheme.order else None
        if op.hadamard:
            layout, ldx, offset = self._transformed(node, op, layout, rows, ldx, offset, k), k, 0
        x: Any = (layout, offset)
        scale = None
        if op.norm or order is not None or rounding or layout.buffer.dtype != read:
            x, scale = self._prepared(
                node, layout, rows, ldx, offset, k, rounding, norm=op.norm, eps=op.eps, weight=at.get("norm_weight"), bias=at.get("norm_bias"), order=order, dtype=read,
            )  # fmt: skip
            ldx, offset = k, 0
        out = self._output(node.output)
        width = n // 2 if op.gated else n
        packed = 2 * up(n // 2, 16) if op.gated else n
        bias = self.vector(at["bias"], gated, "bias") if op.bias else None
        last = [bias, (residual[0], residual[3]) if residual else None, out, ["count", *generic.lanes_of(rows)]]
        types = ["*fp32", "*fp32", TYPES[out.buffer.dtype], "i32"]
        constants: dict[str, Any] = {
            "N": packed, "K": k, "LDX": ldx, "LDY": width, "LDR": residual[2] if residual else 0, "BIAS": op.bias, "RESIDUAL": op.residual, "ACT": op.act,
            "GATED": op.gated, "LIMIT": 0.0, "ALPHA": 0.0, "WIDTH": width,
        }  # fmt: skip
        facts: dict[str, Any] = {"rows": rows, "scheme": str(scheme), "operations": 2 * n * k}
        if scheme.is_integer and scheme.bits == 4 and scheme.group in NIBBLE_GROUPS and read == "bf16" and not scheme.offset:
            self._nibbles(node, weight, scheme, gated, x, last, types, constants, facts)
            return
        whole = read == "i8" and scheme.bits == 8 and not scheme.group and not scheme.asymmetric and self.target.family == "cuda"
        w = self._stored(weight, scheme, gated, turned=op.gated, signed=whole)
        items, held = self._weight_arguments(w)
        constants["KW"] = w.width
        facts["weight_bytes"] = self.device[w.codes].bytes
        if w.kind == "float" or read == "f8" or whole:
            element = BYTES[read]
            aligned = ldx * element % 16 == 0 and offset * element % 16 == 0
            name = f"{read} {packed}x{k}"
            tiles = float_tiles(self.target, packed, k, read, self.tuning.tiles(self.target.name, name), aligned=aligned)
            types = [TYPES[read], TYPES[read], w.scale_type, "*fp32", *types]
            variants = self._few("gemv", types, rows, packed, EACH=16 // element, SCALED=element == 1, **constants)
            variants += [self._float_variant(tile, element, types, rows, SCALED=element == 1, **constants) for tile in tiles]
            self._launch(node, [x, items[0], items[1], scale, *last], variants, product=name, **facts)
            return
        coded = [TYPES[read], *held, "*fp32", "*fp32", *types]
        variants, finished = [], 0
        parts = parts_of(self.target, packed, w.width * w.bits // (8 * w.span))
        if w.bits == 8 and w.kind != "level" and not w.offset and w.group % 16 == 0:
            has: dict[str, Any] = {"HAS_ZERO": w.zeros is not None, "INT8": w.int8}
            variants = self._few("gemv_coded", coded, rows, packed, **has, **{**constants, **w.constants()})
            finished = GEMV_ROWS if variants else 0
        for most, bm in ((16, 16), (APART_ROWS, 64), (0, 64)):
            apart = most > 0 and parts > 1
            kernel = self._kernel(
                "linear", "linear_coded", coded, HAS_ZERO=w.zeros is not None and not w.offset, HAS_OFFSET=w.offset, INT8=w.int8,
                BN=64, BM=bm, PARTS=parts, APART=apart, **{**constants, **w.constants()},
            )  # fmt: skip
            grid = [["1", packed, 64], [*generic.lanes_of(rows), bm], ["1", parts if apart else 1, 1]]
            variants.append(Variant(most, kernel, grid))
        self._launch(node, [x, *items, scale, "scratch:part", *last], variants, **facts)
        self._close(node, last, types, constants, parts, rows, finished)

    def _close(
        self, node: Node, last: list[Any], types: list[str], constants: dict[str, Any], parts: int, rows: Dim, finished: int
    ) -> None:
        """Add the parts of K that programs have left apart, where more rows than `finished` and at most APART_ROWS are summed."""
        if parts == 1:
            return
        ends = {k: constants[k] for k in ("N", "LDY", "LDR", "BIAS", "RESIDUAL", "ACT", "GATED", "LIMIT", "ALPHA", "WIDTH")}
        block = min(512, power(ends["WIDTH"]))
        kernel = self._kernel("linear", "close", ["*fp32", *types], PARTS=parts, BLOCK=block, **ends)
        grid = [[*generic.lanes_of(rows), 1], ["1", ends["WIDTH"], block]]
        nothing = [Variant(finished, kernel, [["1", 0, 1]])] if finished else []
        self._launch(node, ["scratch:part", *last], [*nothing, Variant(APART_ROWS, kernel, grid)], rows=rows)

    def _nibbles(
        self, node: Node, weight: Value, scheme: Scheme, gated: str, x: Any, last: list[Any], types: list[str], constants: dict[str, Any], facts: dict[str, Any],
    ) -> None:  # fmt: skip
        """A product with 4-bit integers in groups, in bfloat16."""
        packed, k, group = constants["N"], constants["K"], scheme.group
        name = f"int4:g{group} {packed}x{k}"
        cut = nibble_cut(self.target, packed, k, group, self.tuning.tiles(self.target.name, name))
        width, zero, turned = cut.width, 0 if scheme.asymmetric else 8, bool(gated)
        groups, held = -(-k // group), -(-width // group)
        made = self._kernel(
            "layout", "rows_of_words", ["*u8", "*i16"], K=k, CHUNKS=up(k, 32) // 32, KW=width, FORM="nibbles", B0=1, B1=0, FILL=zero, GATED=turned, BLOCK=256,
        )  # fmt: skip
        spec = WeightSpec(weight.name, "codes", (weight,), scheme, gated)
        codes = self._rows(spec, made, (packed, -(-width // 1024)), up(packed, 16) * width // 2)

        def columns(pack: str, source: str, to: str, element: int) -> int:
            turn = self._kernel("layout", "columns_of_groups", [source, to], N=packed, GROUPS=groups, GATED=turned, BLOCK=256)
            spec = WeightSpec(f"{weight.name}.{pack}", pack, (weight,), scheme, gated)
            return self._rows(spec, turn, (-(-packed // 256), groups), held * packed * element)

        moved, element = _scale_words(scheme)
        scales = columns("scales", moved, moved, element)
        zeros = f"device:{columns('zeros', '*u8', '*i16', 2)}" if scheme.asymmetric else None
        rows = facts["rows"]
        signature = ["*bf16", "*i16", GPU_SCALES[scheme.scale_kind], "*i16", "*fp32", *types]
        constants |= {"KW": width, "ZERO": zero, "GROUP": group, "HAS_ZERO": scheme.asymmetric}
        apart = {"CHUNKS": cut.parts, "APART": cut.parts > 1}
        variants = self._few("gemv_nibbles", signature, rows, packed, cut.parts, **constants, **apart)
        constants |= {"CHUNKS": cut.chunks, "PARTS": cut.parts, "ASM": self.target.family == "cuda"}
        paired = constants["LDX"] % 2 == 0 and (not isinstance(x, tuple) or x[1] % 2 == 0)  # rows as words of two values
        few = cut.few if paired else None
        if few is not None:
            ordered = self._in_fragments(x, rows, few.most, constants)
            kernel = self._kernel(
                "linear", "few_nibbles", signature, cut.chunks, 1, few.registers, DEPTH=few.depth, EARLY=few.early, X_FRAGMENTS=ordered, Y_FRAGMENTS=False, **constants,
            )  # fmt: skip
            variants.append(Variant(few.most, kernel, [["1", packed, 16]]))
        for tile in cut.tiles:
            kernel = self._kernel(
                "linear", "linear_nibbles", signature, tile.warps, tile.stages, BN=tile.bn, BM=tile.bm, APART=tile.apart, UNROLL=tile.unroll, STAGES=tile.stages, **constants,
            )  # fmt: skip
            grid = [["1", packed, tile.bn], [*generic.lanes_of(rows), tile.bm], ["1", cut.parts if tile.apart else 1, 1]]
            variants.append(Variant(tile.most, kernel, grid))
        given = [x, f"device:{codes}", f"device:{scales}", zeros, "scratch:part", *last]
        self._launch(node, given, variants, weight_bytes=self.device[codes].bytes, product=name, **facts)
        if few is not None and self._read_once(node.output):
            self._writers[last[2].buffer] = self.launches[-1]
        self._close(node, last, types, constants, cut.parts, rows, few.most if few is not None else 0)

    def _read_once(self, value: Value) -> bool:
        """Whether one node alone reads a value, through views too."""
        users = self.users.get(value.name, [])
        if value in self.graph.outputs or len(users) != 1:
            return False
        return users[0].op.name != "view" or self._read_once(users[0].output)

    def _in_fragments(self, x: Any, rows: Dim, most: int, constants: dict[str, Any]) -> bool:
        """Have the rows that this product alone reads written in the order of fragments where they are so few that it takes them so."""
        k = constants["K"]
        if isinstance(x, tuple):
            layout, offset = x
            writer, buffer = self._writers.get(layout.buffer), layout.buffer
            if offset:
                return False
        else:
            writer, buffer = self.launches[-1], x
        lanes = [*generic.lanes_of(rows)]
        if writer is None or constants["KW"] != k or k % 64 or constants["LDX"] != k or buffer.dtype != "bf16":
            return False
        (first, *others) = writer.variants
        if writer.kernel == "norm":
            writer.variants = [replace(first, kernel=first.kernel.with_constants(FRAGMENTS=most))]
        elif first.kernel.function == "few_nibbles" and writer.rows == lanes and first.most == most:
            writer.variants = [replace(first, kernel=first.kernel.with_constants(Y_FRAGMENTS=True)), *others]
        else:
            return False
        return True

    def _float_variant(self, tile: Tile, element: int, types: list[str], rows: Dim, **constants: Any) -> Variant:
        n = constants["N"]
        constants |= {"BN": tile.bn, "BM": tile.bm, "BK": tile.bk, "STAGES": tile.stages}
        if tile.programs:
            constants |= {"BAND": 8, "PROGRAMS": tile.programs, "FLAT": tile.flat, "PARTS": tile.parts}
            return Variant(tile.most, self._kernel("linear", "linear_tiles", types, tile.warps, tile.stages, **constants), [["1", tile.programs, 1]])  # fmt: skip
        constants |= {"BAND": 0 if tile.most else 8, "STRIDE": constants["KW"] * element, "THREADS": 32 * tile.warps}
        lines = PREFETCHED_LINES if self.target.overlaps and 0 < tile.most <= 64 and n % tile.bn == 0 else 0
        constants["LINES"] = min(lines, constants["STRIDE"] // 128 * tile.bn // constants["THREADS"])
        kernel = self._kernel("linear", "linear", types, tile.warps, tile.stages, **constants)
        return Variant(tile.most, kernel, [["1", n, tile.bn], [*generic.lanes_of(rows), tile.bm]])

    def lower_experts(self, node: Node) -> None:
        op = node.op
        assert isinstance(op, Experts)
        x, index, weight, w_in, *rest = node.inputs
        b_in, w_out, b_out = (rest[0], rest[1], rest[2]) if op.bias else (None, rest[0], None)
        scheme = self.scheme_of(w_in, op.scheme)
        if kind_of(scheme).dot:
            scheme = scheme.with_activations("bf16")
        rounding = ROUNDINGS.get(scheme.activations)
        if rounding is None or scheme.offset or scheme.order:
            raise UnsupportedError(f"a GPU has no experts' kernel for {scheme} ({node.scope})", "give another --quant")
        first, second = self._stored(w_in, scheme, op.gate, turned=bool(op.gate)), self._stored(w_out, scheme)
        count, n_in, k = w_in.type.shape
        _, hidden, width = w_out.type.shape
        choices = index.type.shape[1]
        assert isinstance(count, int) and isinstance(n_in, int) and isinstance(k, int)
        assert isinstance(hidden, int) and isinstance(width, int) and isinstance(choices, int)
        layout, rows, ldx, offset = self.rows(x)
        assert isinstance(rows, Sym)
        idx, weights = self.dense(index), self.dense(weight)
        pairs = Sym(rows.name, rows.scale * choices)
        order, starts = self.new_buffer("i32", pairs), self.new_buffer("i32", count + 1)
        inner, partial = (self.new_buffer("f32", Sym(rows.name, pairs.scale * w)) for w in (width, hidden))
        out = self.new_value(node.output)
        sort = self._kernel("experts", "by_expert", ["*i64", "*i32", "*i32", "i32"], EXPERTS=count, BLOCK=1024)
        self._launch(node, [idx, order, starts, ["count", *generic.lanes_of(pairs)]], sort, [["1", count, 1]])
        packed_in = up(2 * up(n_in // 2, 16), 32) if op.gate else up(n_in, 32)
        gate = {"ACT": op.act, "GATED": bool(op.gate), "LIMIT": float(op.limit), "ALPHA": float(op.alpha)}
        plain = {"ACT": "", "GATED": False, "LIMIT": 0.0, "ALPHA": 0.0}
        given_in, given_out = Layout.dense(layout.buffer, layout.shape), Layout.dense(inner, (pairs, width))
        steps = (
            (given_in, rows, ldx, offset, first, b_in, k, packed_in, width, choices, gate, inner),
            (given_out, pairs, width, 0, second, b_out, width, up(hidden, 32), hidden, 1, plain, partial),
        )
        for given, many, ld, at, w, bias, depth, packed, wide, divide, act, to in steps:
            level = w.kind == "level" and scheme.activations in ("", "f32", "f16")
            read = w.dtype if w.kind == "float" else "f32" if level else "bf16"
            source: Any = (given, at)
            if rounding or given.buffer.dtype != read:
                source, _ = self._prepared(node, given, many, ld, at, depth, rounding, dtype=read)
                ld = depth
            items, types = self._weight_arguments(w)
            vector = self.vector(bias, op.gate if w is first else "", "bias") if bias is not None else None
            constants = {
                "EXPERTS": count, "LANES": power(count), "DIVIDE": divide, "N": packed, "K": depth, "LDX": ld, "HAS_ZERO": w.zeros is not None, "BIAS": bias is not None,
                "WIDTH": wide, "BN": 64, **act, **w.constants(),
            }  # fmt: skip
            signature = [TYPES[read], "*i32", "*i32", *types, "*fp32", "*fp32"]
            symbol, factor = generic.lanes_of(pairs)
            # at most so many tiles of rows: one a pair; or all full ones, and one that is not full an expert
            bounds = ((16, 16, [symbol, factor, 1]), (0, 64, [symbol, factor, 64, count]))
            variants = [
                Variant(most, self._kernel("experts", "grouped", signature, BM=bm, **constants), [["1", packed, 64], tiles])
                for most, bm, tiles in bounds
            ]
            self._launch(
                node, [source, order, starts, *items, vector, to], variants, rows=rows, scheme=str(scheme), weight_bytes=self.device[w.codes].bytes,
                operations=2 * choices * depth * wide * (2 if act["GATED"] else 1),
            )  # fmt: skip
        block = min(1024, power(hidden))
        made = self._kernel("experts", "weigh", ["*fp32", "*fp32", "*fp32"], CHOICES=choices, K=hidden, BLOCK=block)
        self._launch(node, [partial, weights, out], made, [[*generic.lanes_of(rows), 1], ["1", hidden, block]])
