"""Lowering for GPUs: an IR graph to a Plan, a list of kernel launches with buffers and grid formulas.

The graph is the one that the CPU's kernels follow from, and the weights are the same tensors in the same packing: an artifact that
holds both kinds of targets holds one IR and one copy of the weights, which a GPU lays out as rows when it loads them.
"""

from __future__ import annotations

import math
from typing import Any

from ...compiler.ir.graph import Graph, Node
from ...compiler.ir.ops.fused_attention import FusedAttention
from ...compiler.ir.ops.layer_norm import LayerNorm
from ...compiler.ir.ops.rms_norm import RmsNorm
from ...compiler.ir.ops.rope import Rope
from ...compiler.ir.ops.rope_table import RopeTable
from ...compiler.ir.types import Sym
from ...errors import UnsupportedError
from ...runtime.plan import BLOCK, FEW_SPLITS, ONE, ONE_SPLITS, SHORT, SPLIT, SPLITS, STEPS
from ..lowering import CARRY, Cache
from ..tuning import Tuning
from . import generic
from .plan import TYPES, Kernel, Lowered, Variant, power
from .products import ProductLowering
from .target import GpuTarget
from .tiles import AttentionTile, attention_tiles

PARTS = 64
"""Programs that look for a row's largest logit."""
SPLIT_HEADS = 16
"""Query heads to a key that the kernel of HIP C++ for few rows takes at most."""


class GpuLowering(ProductLowering):
    """Lowers for one kind of GPU."""

    def run(self) -> Lowered:
        logits = self.walk()
        vocabulary = self.graph.outputs[0].type.shape[-1]
        assert isinstance(vocabulary, int)
        kernel = self._kernel("rows", "largest", ["*fp32", "*i32", "*fp32"], V=vocabulary, PARTS=PARTS, BLOCK=1024)
        self._launch(
            None, [logits.buffer, "input:sample_rows", "scratch:part"], kernel, [["DRAWS", 1, 1], ["1", PARTS, 1]], when="greedy"
        )
        kernel = self._kernel("rows", "argmax", ["*fp32", "*i32"], warps=1, PARTS=PARTS)
        self._launch(None, ["scratch:part", "output:tokens"], kernel, [["DRAWS", 1, 1]], when="greedy")
        kernel = self._kernel("rows", "draw", ["*fp32", "*i32", "*fp32", "*i32"], V=vocabulary, BLOCK=1024)
        inputs = ["input:draw_rows", "input:draw_settings"]
        self._launch(None, [logits.buffer, *inputs, "output:tokens"], kernel, [["DRAWS", 1, 1]], when="drawn")
        return Lowered(
            self.launches, self.weights, self.device, self.buffers, self.caches, logits.buffer, vocabulary, self.functions, self.tables,
            self.part_floats, self.fallbacks, next((int(str(v.type.shape[-1])) for v in self.graph.inputs if v.name == CARRY), 0),
        )  # fmt: skip

    def _norm(self, node: Node, norm: str, eps: float, weight: bool, bias: bool) -> None:
        x = node.inputs[0]
        width = x.type.shape[-1]
        assert isinstance(width, int)
        if len(x.type.shape) >= 3 and isinstance(x.type.shape[-2], int):
            layout, rows, heads, ldx, ldh, offset = self.heads(x)
        else:
            layout, rows, ldx, offset = self.rows(x)
            heads, ldh = 1, 0
        out = self.new_value(node.output)
        self._prepared(
            node, layout, rows, ldx, offset, width, "", norm=norm, eps=eps, weight=node.inputs[1] if weight else None, bias=node.inputs[-1] if bias else None,
            heads=heads, ldh=ldh, out=out,
        )  # fmt: skip

    def lower_rms_norm(self, node: Node) -> None:
        assert isinstance(node.op, RmsNorm)
        self._norm(node, "l2" if node.op.l2 else "rms", node.op.eps, node.op.weight, False)

    def lower_layer_norm(self, node: Node) -> None:
        assert isinstance(node.op, LayerNorm)
        self._norm(node, "layer", node.op.eps, node.op.weight, node.op.bias)

    def lower_rope_table(self, node: Node) -> None:
        assert isinstance(node.op, RopeTable)
        positions, frequencies = node.inputs
        if positions.name != "%position_ids":
            raise UnsupportedError(f"a rotation by something else than positions ({node.scope})", node.source)
        out = self.new_value(node.output)
        pairs = frequencies.type.shape[0]
        assert isinstance(pairs, int)
        kernel = self._kernel(
            "rows", "rope_table", ["*i32", "*fp32", "*fp32"], warps=1, PAIRS=pairs, SCALE=float(node.op.scale), BLOCK=power(pairs)
        )
        self._launch(node, [self.layout(positions), self.vector(frequencies), out], kernel, [["T", 1, 1]])

    def lower_rope(self, node: Node) -> None:
        assert isinstance(node.op, Rope)
        x, table = node.inputs
        layout, rows, heads, ldx, ldh, offset = self.heads(x)
        out = self.new_value(node.output)
        pairs, width = table.type.shape[-1], x.type.shape[-1]
        assert isinstance(width, int)
        kernel = self._kernel(
            "rows", "rope", ["*fp32", "*fp32", "*fp32"], warps=1, HEADS=heads, LDX=ldx, LDH=ldh, D=width, PAIRS=pairs, OFFSET=node.op.offset,
            INTERLEAVED=node.op.interleaved, BLOCK=power(width),
        )  # fmt: skip
        self._launch(node, [(layout, offset), self.layout(table), out], kernel, [[*generic.lanes_of(rows), 1], ["1", heads, 1]])
        self.report(
            node, "the rotation is a kernel of its own: query and key do not share it in a form that fuses into attention"
        )

    def lower_fused_attention(self, node: Node) -> None:
        op = node.op
        assert isinstance(op, FusedAttention)
        if not op.causal:
            raise UnsupportedError(f"attention that is not causal ({node.scope})", node.source)
        if op.selected or op.relative:
            what = "to selected positions" if op.selected else "with scores by distance"
            raise UnsupportedError(f"attention {what} has no kernel for this target ({node.scope})", node.source)
        at = {name: node.inputs[i] for name, i in op.operands.items()}
        q, k, v = (self.heads(at[name]) for name in "qkv")
        dk, dv = at["k"].type.shape[3], at["v"].type.shape[3]
        assert isinstance(dk, int) and isinstance(dv, int)
        heads, groups = q[2], k[2]
        cache = len(self.caches)
        self.caches.append(Cache(groups, dk, dv, self.kv_kind, op.reach))
        kv = TYPES[self.kv_kind]
        turned = self.new_buffer(self.kv_kind, Sym("T", heads * dk))
        out = self._output(node.output)
        table = self.layout(at["table"]) if "table" in at else None
        pairs = at["table"].type.shape[-1] if "table" in at else 0
        sides: dict[str, Any] = {
            "H": heads, "G": groups, "DK": dk, "DV": dv, "LDQ": q[3], "LDQH": q[4], "LDK": k[3], "LDKH": k[4], "LDV": v[3], "LDVH": v[4], "PAIRS": pairs, "OFFSET": op.offset,
            "INTERLEAVED": op.interleaved,
        }  # fmt: skip
        rows = [(q[0], q[5]), (k[0], k[5]), (v[0], v[5]), table]
        together = math.gcd(heads, groups, 8)
        write = self._kernel(
            "attention", "write_cache", ["*fp32", "*fp32", "*fp32", "*fp32", "*fp32", "*fp32", "*i32", kv, kv, kv], warps=4 if together == 8 else 1,
            Q_NORM=op.q_norm, K_NORM=op.k_norm, EPS=float(op.eps), BLOCK=power(max(dk, dv)), HEADS=together, **sides,
        )  # fmt: skip
        norms = [self.vector(at[n]) if n in at else None for n in ("q_norm", "k_norm")]
        # a norm's sum follows from how many rows a program has
        joins = self.target.family == "cuda" and not (op.q_norm or op.k_norm)
        steps = tuple(s for s in STEPS if s > ONE_SPLITS) if joins else ()
        caches = [f"cache_k:{cache}", f"cache_v:{cache}"]
        grid: list[list[Any]] = [["T", 1, 1], ["1", heads + 2 * groups, together]]
        self._launch(node, [*rows, *norms, f"slots:{cache}", turned, *caches], write, grid, steps=steps)
        share = heads // groups
        dkp, dvp = power(dk), power(dv)
        extra = [self.vector(at[n]) if n in at else None for n in ("sinks", "slopes")]
        to = TYPES[out.buffer.dtype]
        tiles = attention_tiles(self.target, share, dkp + dvp, self.kv_kind)
        constants: dict[str, Any] = {
            "H": heads, "G": groups, "DK": dk, "DV": dv, "DVP": dvp, "SCALE": float(op.scale), "SOFTCAP": float(op.softcap), "WINDOW": op.window, "CHUNK": op.chunk,
            "SLOPES": op.slopes, "SPLIT": SPLIT, "PAGE": BLOCK,
        }  # fmt: skip
        variants = []
        signature = [kv, kv, kv, "*fp32", "*fp32", "*i32", "*i32", "*i32", "*i32", "*fp32", to, "i32"]
        shapes = list(zip((FEW_SPLITS, SPLITS, SHORT, 0), (False, False, True, True), tiles, strict=True))
        if self.fast and dk % 8 == 0 and share <= SPLIT_HEADS:
            kernel = self._hip("attend_split", signature, ROWS=share, CHANNELS=min(dvp, 4 * self.target.warp), **constants)
            variants.append(Variant(SPLITS, kernel, [["1", groups, 1], ["TILES", 1, 1], ["SPLITS", 1, 1]], 1))
            shapes = shapes[2:]

        def attend(name: str, signature: list[str], tile: AttentionTile, **more: Any) -> Kernel:
            return self._kernel(
                "attention", name, signature, tile.warps, tile.stages, DKP=dkp, SINKS=op.sinks, BN=tile.bn, BM=tile.bm, INNER="ieee", STAGES=tile.stages,
                ASM=self.target.family == "cuda", AHEAD=tile.ahead, **constants | more,
            )  # fmt: skip

        early = self.target.overlaps and not op.reach
        for most, alone, tile in shapes:
            kernel = attend("attend", signature, tile, ALONE=alone, EARLY=early and most == FEW_SPLITS)
            grid = [["1", groups, 1], ["TILES", 1, 1], ["1" if alone else "SPLITS", 1, 1]]
            variants.append(Variant(most, kernel, grid, tile.bm // share))
        where = [*extra, "tiles", "input:start", "input:pos", f"block_tables:{cache}", "scratch:part", out, "size:BLOCKS"]
        self._launch(node, [turned, *caches, *where], variants, rows=Sym("STEP", 1), scheme=self.kv_kind, steps=steps)
        if joins:
            signature = ["*fp32", "*fp32", "*fp32", "*fp32", "*i32", kv, kv, "*fp32", "*fp32", "*i32", "*i32", "*fp32", to, "i32"]
            kernel = attend("attend_one", signature, tiles[0], EARLY=early, **sides)
            where = [*extra, "input:pos", f"block_tables:{cache}", "scratch:part", out, "size:BLOCKS"]
            grid = [["1", groups, 1], ["S", 1, 1], ["SPLITS", 1, 1]]
            self._launch(
                node, [*rows, f"slots:{cache}", *caches, *where], kernel, grid, scheme=self.kv_kind, steps=(ONE, ONE_SPLITS)
            )
        merge = self._kernel(
            "attention", "merge", ["*fp32", "*fp32", to, "i32"], warps=1, H=heads, DV=dv, DVP=dvp, SINKS=op.sinks, TOGETHER=8
        )
        grid, merged = [["T", 1, 1], ["1", heads, 1]], tuple(s for s in STEPS if (ONE if joins else 0) < s <= SPLITS)
        self._launch(node, ["scratch:part", extra[0], out, "size:SPLITS"], merge, grid, steps=merged)
        self.part_floats = max(self.part_floats, heads * (dvp + 2))


def lower(graph: Graph, kv_kind: str, target: GpuTarget, fast: bool = False, tuning: Tuning | None = None) -> Lowered:
    """Lower a graph for one kind of GPU; raises UnsupportedError naming the module and the model's source line. fast: with kernels whose bits
    depend on how many rows a step has, where there are such. tuning: the package's own unless another is given."""
    return GpuLowering(graph, kv_kind, target, fast, tuning).run()
