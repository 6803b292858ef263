"""Hand-made graphs: build one from a few ops, compile it with llmc's own functions, and run it on the CPU executor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from llmc.codegen.cpu.render import render
from llmc.codegen.lowering import place_caches, unique_names
from llmc.codegen.weights import WeightPacker, packed_bytes
from llmc.compiler.ir.graph import Graph, Value
from llmc.compiler.ir.ops.concat import Concat
from llmc.compiler.ir.ops.embedding import Embedding
from llmc.compiler.ir.ops.fused_attention import FusedAttention
from llmc.compiler.ir.ops.index_select import IndexSelect
from llmc.compiler.ir.ops.view import View
from llmc.compiler.ir.rewrite import Rewriter
from llmc.compiler.ir.types import Sym, TensorType
from llmc.compiler.ir.verify import verify
from llmc.runtime.artifact import WeightsFile, open_artifact, write_artifact
from llmc.runtime.blocks import BLOCK
from llmc.runtime.cpu_info import available_levels
from llmc.runtime.executors.cpu import Batch, CpuExecutor
from llmc.toolchain.c import build
from manifests import BASE

TOKENS = 128
"""Rows of the tables that stand for activations: token i reads row i."""


class Builder:
    """A graph whose logits are the values given to `out`, side by side; every `table` is one activation of each token."""

    def __init__(self) -> None:
        T, R = Sym("T"), Sym("R")
        self.ids, self.positions, self.rows = (
            Value(f"%{n}", TensorType("i64", s))
            for n, s in (("input_ids", (1, T)), ("position_ids", (1, T)), ("logits_rows", (R,)))
        )
        self.rewriter = Rewriter(Graph((self.ids, self.positions, self.rows), (), (), ()))
        self.tensors: dict[str, torch.Tensor] = {}
        self.columns: dict[str, slice] = {}
        self._outs: list[Value] = []
        self._width = 0

    def param(self, name: str, data: Any, dtype: str = "f32") -> Value:
        tensor = torch.as_tensor(np.asarray(data, np.float32))
        self.tensors[name] = tensor
        return self.rewriter.param(name, TensorType(dtype, tuple(tensor.shape)))

    def add(self, op: Any, *inputs: Value) -> Value:
        return self.rewriter.add(op, inputs)[0]

    def table(self, name: str, data: Any) -> Value:
        """[1, T, K]: row `token` of data [TOKENS, K]."""
        return self.add(Embedding(), self.param(name, data), self.ids)

    def out(self, name: str, value: Value) -> None:
        width = value.type.shape[-1]
        self.columns[name] = slice(self._width, self._width + width)
        self._width += width
        self._outs.append(value)

    def graph(self) -> Graph:
        """The graph, with a small attention, because an executor has at least one cache."""
        x = self.add(View("1,T,1,4"), self.table("cached", np.ones((TOKENS, 4))))
        self.out("cached", self.add(View("1,T,4"), self.add(FusedAttention(0, 1.0), x, x, x)))
        joined = self.add(Concat(2), *self._outs)
        return verify(self.rewriter.finish([self.add(IndexSelect(1), joined, self.rows)]))


class Program:
    """A compiled graph: `run(tokens)` gives the columns of each output, float32 [T, width]."""

    def __init__(self, builder: Builder, folder: Path, kv_dtype: str = "f32", level: str = "", threads: int = 2) -> None:
        graph = builder.graph()
        level = level or available_levels()[0]
        rendered = render(graph, kv_dtype)
        packer = WeightPacker(graph, builder.tensors.__getitem__)
        weights = WeightsFile(folder)
        for name, spec in zip(unique_names(rendered.lowered.weights), rendered.lowered.weights, strict=True):
            packed = packer.pack(spec)
            assert packed.nbytes == packed_bytes(spec), (name, spec.pack)
            weights.add(name, packed)
        self.reaches = place_caches(rendered.lowered.caches).reaches
        member = f"kernels/cpu/{level}/step.so"
        manifest = {
            **BASE,
            "model": {**BASE["model"], "vocab": graph.outputs[0].type.shape[-1], "context": 1 << 20},
            "targets": [{"name": f"cpu:{level}", "isa": level, "member": member, "bytes": 0, "kernels": []}],
            "weights": [list(w) for w in weights.listed],
            "memory_plan": {**BASE["memory_plan"], "reaches": list(self.reaches)},
        }
        path = folder / f"{level}.llmc"
        write_artifact(path, manifest, {member: build(rendered.sources, level)}, weights)
        weights.close()
        self.columns = builder.columns
        self.artifact = open_artifact(path)
        self.executor = CpuExecutor(
            self.artifact,
            threads=threads,
            max_tokens=TOKENS,
            max_sequences=4,
            max_rows=TOKENS,
            context=8 * BLOCK,
            blocks=8 + 8 * len(self.reaches),
            slots=2,
            isa=level,
        )

    def run(self, tokens: Any, start: int = 0) -> dict[str, np.ndarray]:
        """One sequence of tokens at positions start…; its cache is blocks 0…7 in the first table, 8…15 in the next."""
        ids = np.asarray(tokens, np.int32)
        n = ids.size
        self.executor.run(
            Batch(
                ids,
                np.arange(start, start + n, dtype=np.int32),
                np.array([0, n], np.int32),
                np.array([start], np.int32),
                np.arange(8 * len(self.reaches), dtype=np.int32).reshape(-1, 1, 8),
                np.arange(n, dtype=np.int32),
                np.zeros(1, np.int32),
            )
        )
        logits = self.executor.logits(n).copy()
        return {name: logits[:, s] for name, s in self.columns.items()}

    def close(self) -> None:
        self.executor.close()
        self.artifact.close()
